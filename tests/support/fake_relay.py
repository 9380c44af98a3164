"""A relay that plays a made world, misbehaves as told, and knows what a perfect collector would hold.

As a program it prints, as its first line, the websocket address of its first host, the address of its control server,
and the addresses of its other hosts. Each host has sequence numbers of its own. See `--help`, `support.misbehave` for
the knobs, `support.control` for what the control server answers, and `support.oracle` for what counts as held.

One event follows the other, numbered or not; a cursor stands for a place among them. A message that carries no number
comes again whenever the cursor stands before it, so that none of them is ever skipped in silence.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from websockets.asyncio.server import Request, Response, Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from support.control import serve_control
from support.misbehave import ACTIONS, FUTURE, HANDSHAKE, OUTDATED, Knob
from support.oracle import Extent, Sent, oracle
from support.world import Event, World

PATH = "/xrpc/com.atproto.sync.subscribeRepos"
BASES = (26_650_000_000, 17_500_000_000)
"""Where the numbers of the hosts begin."""
RENUMBERED_BY = 1_000_000_000
TICK = 0.005
WINDOW_STEP = 256
"""Events are forgotten so many at a time."""


@dataclass(frozen=True)
class Numbering:
    """One host's numbers for the world's events: rising, with gaps of its own."""

    base: int
    host: int

    def seq(self, n: int) -> int:
        """The number of event `n`."""
        return self.base + 4 * n + ((n * 2654435761 + self.host * 40503) >> 7 & 3)

    def upto(self, seq: int) -> int:
        """The last event whose number is not above this one."""
        n = max(0, (seq - self.base) // 4)
        return n if n == 0 or self.seq(n) <= seq else n - 1


@dataclass(frozen=True)
class Options:
    """How a relay plays its world."""

    rate: float | None = None
    """Events a second, made whether anybody listens or not; None: an event is made when a reader wants it."""
    events: int | None = None
    """After so many it is quiet."""
    window: int | None = None
    """Events that can be read again; None: all."""
    mode: Literal["inclusive", "exclusive"] = "exclusive"
    from_start: bool = False
    """Whether no cursor means the whole window; else, what happens from now on."""
    outdated: Literal["silent", "info"] = "silent"
    future: Literal["error", "live", "window"] = "error"
    log: Path | None = None


@dataclass
class Link:
    """One connection."""

    connection: ServerConnection
    number: int
    extent: Extent
    next: int
    """The event to send next."""
    last: bytes | str | None = None

    @property
    def socket(self) -> Any:
        return self.connection.transport.get_extra_info("socket")


class FakeRelay:
    """Hosts that serve one world."""

    def __init__(
        self, world: World, options: Options | None = None, *, hosts: int = 1, plan: Sequence[Knob] = ()
    ) -> None:
        self.world, self.options = world, options or Options()
        self.sent = Sent()
        self.fired = Counter[str]()
        self.hosts = [Host(self, number) for number in range(hosts)]
        self.control = ""
        self._forgotten = 0
        for knob in plan:
            self.turn(knob)

    @asynccontextmanager
    async def serve(self, ports: Sequence[int] = (), control_port: int = 0) -> AsyncIterator[list[str]]:
        """Listen on loopback (port 0: any free one); gives the hosts' addresses, and sets `control`."""
        clock = asyncio.create_task(self._live()) if self.options.rate else None
        try:
            for number, host in enumerate(self.hosts):
                await host.listen(ports[number] if number < len(ports) else 0)
            async with serve_control(self, control_port) as self.control:
                yield [host.address for host in self.hosts]
        finally:
            if clock:
                clock.cancel()
            for host in self.hosts:
                await host.end()

    def turn(self, knob: Knob) -> None:
        """Put a knob at the end of its host's plan."""
        self.hosts[knob.host].plan.append(knob)
        self.wake()

    def make(self) -> None:
        """Make the next event, and forget those that have left the window."""
        self.world.make()
        window = self.options.window
        if window is not None and self.world.head - self._forgotten > window + WINDOW_STEP:
            for _ in range(WINDOW_STEP):
                self._forgotten += 1
                self.world.forget(self._forgotten)

    def make_big(self, size: int, *, too_large: bool = False) -> None:
        """Make a big event now, even when the world is quiet."""
        self.world.want_big(size, too_large=too_large)
        self.make()
        self.wake()

    def may_make(self) -> bool:
        """Whether a reader may have another event made."""
        return self.options.rate is None and not self.is_quiet

    @property
    def is_quiet(self) -> bool:
        """Whether all events were made."""
        return self.options.events is not None and self.world.head >= self.options.events

    @property
    def first(self) -> int:
        """The first event of the window."""
        return 1 if self.options.window is None else max(1, self.world.head - self.options.window + 1)

    def wake(self) -> None:
        """Let every connection look again at what there is to do."""
        for host in self.hosts:
            host.wake()

    def note(self, knob: Knob, host: "Host", link: Link | None) -> None:
        """Count a knob that acted, and write it into the log."""
        knob.fired += 1
        self.fired[knob.name] += 1
        line = {
            "at": round(time.time(), 3), "name": knob.name, "host": host.number,
            "connection": link.number if link else None, "event": link.extent.last if link else None,
            "head": self.world.head,
        }  # fmt: skip
        if self.options.log:
            with self.options.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")

    def state(self) -> dict[str, Any]:
        """What happened so far; `last_seq` is the cursor of a client that has taken in everything."""
        counting = next((event.n for event in reversed(self.world.events) if event.counts), 0)
        return {
            "fired": dict(self.fired),
            "waiting": [knob.name for host in self.hosts for knob in host.plan],
            "head": self.world.head,
            "quiet": self.is_quiet,
            "head_seq": [host.numbering.seq(self.world.head) for host in self.hosts],
            "last_seq": [host.numbering.seq(counting) for host in self.hosts],
            "connections": [{"open": len(host.links), "total": host.connections, "cursors": host.cursors[-20:]}
                            for host in self.hosts],
        }  # fmt: skip

    def oracle(self, *, rechecked: bool = False, cursors: dict[int, int] | None = None) -> dict[str, Any]:
        """What a perfect collector holds; `cursors`: what the client has committed in the end, by host."""
        for number, cursor in (cursors or {}).items():
            self.hosts[number].ask(cursor)
        return oracle(self.world, self.sent, rechecked=rechecked)

    async def _live(self) -> None:
        """Make events in time, whether anybody listens or not."""
        assert self.options.rate
        began, made = time.monotonic(), 0
        while True:
            await asyncio.sleep(TICK)
            due = int((time.monotonic() - began) * self.options.rate)
            while made < due and not self.is_quiet:
                self.make()
                made += 1
            self.wake()


class Host:
    """One address, with numbers, a plan and connections of its own."""

    def __init__(self, relay: FakeRelay, number: int) -> None:
        self.relay, self.number = relay, number
        self.numberings = [Numbering(BASES[number % 2] + number // 2 * 100_000_000, number)]
        self.plan: deque[Knob] = deque()
        self.links: dict[int, Link] = {}
        self.connections = 0
        self.cursors: list[int | None] = []
        self.first = 1
        """The first event that it still has, whatever the window."""
        self.address = ""
        self._port = 0
        self._server: Server | None = None
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def numbering(self) -> Numbering:
        """The present one."""
        return self.numberings[-1]

    async def listen(self, port: int = 0) -> None:
        self._server = await serve(
            self._play, "127.0.0.1", port, compression=None, ping_interval=None, close_timeout=1,
            process_request=self._handshake,
        )  # fmt: skip
        (listener,) = self._server.sockets
        self._port = int(listener.getsockname()[1])
        self.address = f"ws://127.0.0.1:{self._port}"

    async def end(self) -> None:
        """Hang up on everybody."""
        for task in self._tasks:
            task.cancel()
        await self._close()

    def wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def renumber(self) -> None:
        """New, lower numbers for everything."""
        self.numberings.append(Numbering(self.numbering.base - RENUMBERED_BY, self.number))

    def go_down(self, seconds: float) -> None:
        """Neither listen nor serve for a while."""
        self._tasks.add(asyncio.create_task(self._be_down(seconds)))

    async def send_next(self, link: Link) -> None:
        """Send one event; waits for it."""
        event = await self._event(link, link.next)
        await self._send(link, event)
        link.next += 1

    async def send_swapped(self, link: Link) -> bool:
        """Send the next two in the wrong order, if both are commits; else send nothing."""
        first, second = await self._event(link, link.next), await self._event(link, link.next + 1)
        if (first.outcome, second.outcome) != ("commit", "commit"):
            return False
        await self._send(link, second)
        await self._send(link, first)
        link.next += 2
        return True

    def ask(self, cursor: int | None) -> int | None:
        """Take note of what a cursor says; gives the last event that it covers, None for one that is not ours."""
        head = self.relay.world.head
        if cursor:
            for number in reversed(range(len(self.numberings))):
                numbering = self.numberings[number]
                if numbering.seq(1) <= cursor <= numbering.seq(head):
                    self.relay.sent.ask(self.number, number, numbering.upto(cursor))
                    return numbering.upto(cursor) if numbering is self.numbering else None
        else:
            self.relay.sent.ask(self.number, len(self.numberings) - 1, None)
        if cursor is not None and cursor <= self.numbering.seq(head):
            return self.numbering.upto(cursor)
        return None

    # ---- connections -------------------------------------------------------------------------------------------------

    def _armed(self, *names: str) -> Knob | None:
        return self.plan[0] if self.plan and self.plan[0].name in names else None

    def _fire(self, knob: Knob, link: Link | None) -> None:
        self.relay.note(knob, self, link)
        if knob.fired >= knob.times:
            self.plan.popleft()

    async def _handshake(self, connection: ServerConnection, _request: Request) -> Response | None:
        if knob := self._armed("refuse"):
            self._fire(knob, None)
            response = connection.respond(HTTPStatus(knob.status), "as told\n")
            if knob.retry_after is not None:
                response.headers["Retry-After"] = str(knob.retry_after)
            return response
        if knob := self._armed("slow_start"):
            self._fire(knob, None)
            await asyncio.sleep(knob.seconds)
        return None

    async def _play(self, connection: ServerConnection) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        number = self.connections
        try:
            if link := await self._begin(connection, number):
                self.links[number] = link
                ended = asyncio.create_task(connection.wait_closed())
                ended.add_done_callback(lambda _task: self.wake())
                await self._go_on(link)
        except (ConnectionClosed, OSError):
            pass
        finally:
            if gone := self.links.pop(number, None):
                gone.extent.is_open = False

    async def _begin(self, connection: ServerConnection, number: int) -> Link | None:
        """Answer the cursor; None when the connection is over already."""
        assert connection.request is not None
        target = urlsplit(connection.request.path)
        given = parse_qs(target.query).get("cursor", [""])[0]
        cursor = int(given) if given else None
        self.cursors.append(cursor)
        upto = self.ask(cursor)
        if target.path != PATH:
            await connection.close(1008, "no such method")
            return None
        if knob := self._armed("accept_then_hang_up"):
            self._fire(knob, None)
            connection.transport.abort()
            return None
        start, word = self._start(cursor, upto)
        if knob := self._armed("go_live_after_gap", "outdated_cursor"):
            if cursor and upto is not None:
                start = self._leave_gap(knob, upto)
                word = OUTDATED if knob.name == "outdated_cursor" else None
        if word is not None:
            await connection.send(word)
        if word == FUTURE:
            await connection.close(1008, "FutureCursor")
            return None
        return Link(connection, number, self.relay.sent.open(self.number, len(self.numberings) - 1, start), start)

    def _start(self, cursor: int | None, upto: int | None) -> tuple[int, bytes | None]:
        """The first event to send, and what is said before it."""
        options, head = self.relay.options, self.relay.world.head
        first = max(self.first, self.relay.first)
        if cursor is None:
            return (first if options.from_start else head + 1), None
        if upto is None:
            if options.future == "error":
                return 0, FUTURE
            return (first if options.future == "window" else head + 1), None
        again = options.mode == "inclusive" and upto > 0 and self.numbering.seq(upto) == cursor
        start = upto if again else upto + 1
        if start >= first or cursor == 0:
            return max(start, first), None
        return first, OUTDATED if options.outdated == "info" else None

    def _leave_gap(self, knob: Knob, upto: int) -> int:
        """The window has passed: what follows the cursor cannot be had any more from this host."""
        self.first = max(self.first, upto + knob.skip + 1)
        while self.relay.world.head < self.first:
            self.relay.make()
        self.relay.world.shift(self.first, round(knob.jump_seconds * 1_000_000))
        self._fire(knob, None)
        return self.first

    async def _go_on(self, link: Link) -> None:
        """Send what there is, and act on the plan, until the connection ends."""
        armed, left = None, 0
        while True:
            knob = self.plan[0] if self.plan and link.number == self.connections else None
            if knob is not armed:
                armed, left = knob, knob.after if knob else 0
            if knob and left <= 0:
                if not await self._act(knob, link):
                    return
                armed = None
            elif await self._ready(link, link.next, lambda: self.plan[0] if self.plan else None):
                await self.send_next(link)
                left -= 1

    async def _act(self, knob: Knob, link: Link) -> bool:
        if knob.name in HANDSHAKE:  # it acts on the next connection
            link.connection.transport.close()
            return False
        self._fire(knob, link)
        return await ACTIONS[knob.name](self, link, knob)

    async def _event(self, link: Link, n: int) -> Event:
        while not await self._ready(link, n):
            pass
        return self.relay.world.event(n)

    async def _ready(self, link: Link, n: int, plan: Callable[[], Any] | None = None) -> bool:
        """Wait until event `n` is there, or until the plan has changed. Raises `ConnectionClosed`."""
        before = plan() if plan else None
        while self.relay.world.head < n:
            if self.relay.may_make():
                self.relay.make()
                continue
            news = self._news
            await news.wait()
            if link.connection.close_code is not None or link.connection.transport.is_closing():
                raise ConnectionAbortedError
            if plan and plan() is not before:
                return False
        return True

    async def _send(self, link: Link, event: Event) -> None:
        if event.message is None:  # the reader is so slow that the window has passed it
            return
        data = link.last = event.data(self.numberings[link.extent.numbering].seq(event.n))
        await link.connection.send(data)
        link.extent.sent(event.n)
        if event.reason == "too_large":
            link.extent.is_over = True

    async def _be_down(self, seconds: float) -> None:
        await self._close()
        await asyncio.sleep(seconds)
        await self.listen(self._port)

    async def _close(self) -> None:
        if self._server is None:
            return
        self._server.close(close_connections=False)
        for link in list(self.links.values()):
            link.connection.transport.abort()
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                await self._server.wait_closed()


async def main() -> None:
    told = _arguments()
    step = round(1_000_000 / told.rate) if told.rate else 1000
    behind = told.behind if told.behind is not None else 0 if told.rate else 86_400
    start = told.start or int((time.time() - behind) * 1_000_000)
    world = World(
        told.seed, start, step=step, accounts=told.accounts, hostile=told.hostile, crash_mark=told.crash_mark,
        hang_mark=told.hang_mark,
    )  # fmt: skip
    world.take(told.backlog)
    options = Options(
        told.rate, told.events, told.window, told.mode, told.from_start, told.outdated, told.future, told.log
    )
    relay = FakeRelay(world, options, hosts=told.hosts, plan=[Knob.read(knob) for knob in json.loads(told.plan)])
    async with relay.serve(told.port, told.control_port) as hosts:
        print(hosts[0], relay.control, *hosts[1:], flush=True)
        await asyncio.Event().wait()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, help="events a second; without it, as fast as the reader takes them")
    parser.add_argument("--events", type=int, help="be quiet after so many")
    parser.add_argument("--backlog", type=int, default=0, help="events made before the start")
    parser.add_argument("--window", type=int, help="events that can be read again (all)")
    parser.add_argument("--mode", choices=["inclusive", "exclusive"], default="exclusive")
    parser.add_argument("--from-start", action="store_true", help="no cursor: play the window, not from now on")
    parser.add_argument("--outdated", choices=["silent", "info"], default="silent")
    parser.add_argument("--future", choices=["error", "live", "window"], default="error")
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--port", type=int, nargs="*", default=[], help="of each host")
    parser.add_argument("--control-port", type=int, default=0)
    parser.add_argument("--plan", default="[]", help='JSON: [{"name": "reset", "after": 37, "host": 0}, ...]')
    parser.add_argument("--log", type=Path, help="a line of JSON for each knob that acts")
    parser.add_argument("--start", type=int, help="the world's clock at its start, in microseconds since 1970")
    parser.add_argument("--behind", type=float, help="seconds by which the clock starts in the past (a day, or 0)")
    parser.add_argument("--accounts", type=int, default=200)
    parser.add_argument("--hostile", type=float, default=0.03, help="share of hostile messages")
    parser.add_argument("--crash-mark")
    parser.add_argument("--hang-mark")
    return parser.parse_args()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
