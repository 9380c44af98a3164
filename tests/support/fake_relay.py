"""A relay that plays a made world, misbehaves as told, and knows what a perfect collector would hold.

As a program it prints, as its first line, the websocket address of its first host, the address of its control server,
and the addresses of its other hosts. Each host has sequence numbers of its own. See `--help`, `support.misbehave` for
the knobs, `support.control` for what the control server answers, and `support.oracle` for what counts as held.

One event follows the other, numbered or not; a cursor stands for a place among them. A message that carries no number
comes again whenever the cursor stands before it, so that none of them is ever skipped in silence.

To go on where a former run ended, on its ports: the same options, its `--start`, and its head as `--backlog`. It does
not know what that run had sent; the knob `down` does.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from support.control import serve_control
from support.host import Host, Link
from support.misbehave import Knob
from support.oracle import Sent, oracle
from support.world import World

TICK = 0.005
WINDOW_STEP = 256
"""Events are forgotten so many at a time."""


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

    async def quiet(self) -> None:
        """Wait until all events were made."""
        while not self.is_quiet:  # noqa: ASYNC110  (a test's wait)
            await asyncio.sleep(TICK)

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
            "plans": [[knob.name for knob in host.plan] for host in self.hosts],
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
