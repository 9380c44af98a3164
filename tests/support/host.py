"""One host of a fake relay: its numbers, its connections, its plan of misbehaviours."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import cbor2
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from support.misbehave import ACTIONS, FUTURE, GAPS, HANDSHAKE, OUTDATED, TOO_SLOW, Knob
from support.oracle import Extent
from support.world import Event

if TYPE_CHECKING:
    from support.fake_relay import FakeRelay

PATH = "/xrpc/com.atproto.sync.subscribeRepos"
BASES = (26_650_000_000, 17_500_000_000)
"""Where the numbers of the hosts begin."""
RENUMBERED_BY = 1_000_000_000
FIRST_FEW = 20
"""Frames that a client without a cursor gets before it is hung up on so that it comes back with one."""
BREATH = 16
"""Frames sent until others have their turn."""


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


@dataclass
class Link:
    """One connection."""

    connection: ServerConnection
    number: int
    extent: Extent
    next: int
    """The event to send next."""
    cursor: int | None
    done: Knob | None = None
    """The knob that acted here last; it does so once a connection."""
    last: bytes | str | None = None

    @property
    def socket(self) -> Any:
        return self.connection.transport.get_extra_info("socket")


class Host:
    """One address, with numbers, a plan and connections of its own."""

    def __init__(self, relay: "FakeRelay", number: int) -> None:
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
            process_request=self._handshake, open_timeout=600,
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
        if target.path != PATH or (given and not given.isdecimal()):
            refusal = {"error": "InvalidRequest", "message": "Invalid cursor"}
            await connection.send(cbor2.dumps({"op": -1}) + cbor2.dumps(refusal, canonical=True))
            await connection.close(1008, "InvalidRequest")
            return None
        cursor = int(given) if given else None
        self.cursors.append(cursor)
        upto = self.ask(cursor)
        if knob := self._armed("accept_then_hang_up"):
            self._fire(knob, None)
            connection.transport.abort()
            return None
        start, word = self._start(cursor, upto)
        if (knob := self._armed(*GAPS)) and cursor and upto is not None:
            start = self._leave_gap(knob, upto)
            word = OUTDATED if knob.name == "outdated_cursor" else None
        if word is not None:
            await connection.send(word)
        if word == FUTURE:
            await connection.close(1008, "FutureCursor")
            return None
        extent = self.relay.sent.open(self.number, len(self.numberings) - 1, start)
        return Link(connection, number, extent, start, cursor)

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
            knob = self._knob(link)
            if knob is not armed:
                armed, left = knob, knob.after if knob else 0
                if knob and knob.name in GAPS and not link.cursor:
                    left = max(left, FIRST_FEW)
            if knob and left <= 0:
                if not await self._act(knob, link):
                    return
            elif await self._ready(link, link.next, lambda: self._knob(link)):
                await self.send_next(link)
                left -= 1

    def _knob(self, link: Link) -> Knob | None:
        """The one that is armed for this connection."""
        if not self.plan or link.number != self.connections or self.plan[0] is link.done:
            return None
        return self.plan[0]

    async def _act(self, knob: Knob, link: Link) -> bool:
        if knob.name in HANDSHAKE:  # it acts on the next connection
            link.connection.transport.close()
            return False
        link.done = knob
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
        if event.message is None:  # the window has passed the reader
            await link.connection.send(TOO_SLOW)
            await link.connection.close(1008, "ConsumerTooSlow")
            raise ConnectionAbortedError
        if event.n % BREATH == 0:
            await asyncio.sleep(0)
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
