"""Named places where a test may end the process, and a clock that a test may set. Imports nothing of ours.

The places are off unless CIVICSKY_FAULT is set.

`CIVICSKY_FAULT=journal.commit:3` kills this process, as `kill -9` would, the third time it gets to that place;
`journal.commit:3:term` sends it a SIGTERM instead,
`journal.commit:3:block` blocks the event loop there for ever, and `journal.commit:3:hang` lets only the stage that
got there hang for ever. `worker.record:TEXT` makes a worker crash, and
`worker.hang:TEXT` hang, on any record that contains TEXT.

`CIVICSKY_CLOCK=2026-11-01T05:50:00Z*600` sets the clock by which `source.window` opens and closes, and nothing else: it
shows that time when the process starts, and goes 600 times as fast as ours. With `@1764153000.5` behind it, it showed
that time at that moment (seconds since 1970), so that processes may share it.
"""

import os
import signal
from datetime import datetime
from time import sleep, time
from typing import ClassVar, Final, Literal, NamedTuple, get_args

Place = Literal[
    "source.received",
    "decode.decoded",
    "journal.commit",
    "journal.committed",
    "label.answer",
    "ledger.commit",
    "ledger.committed",
    "store.write",
    "store.written",
    "export.page",
    "export.name",
    "upgrade.kept",
    "upgrade.commit",
    "backup.copied",
    "restore.moved",
    "annotate.vote",
    "annotate.voted",
]
"""In the order of the flow. `commit` and `write` come just before, `committed` and `written` just after."""

PLACES: Final = get_args(Place)
IN_SERVICE: Final = tuple(
    place for place in PLACES if place.partition(".")[0] not in {"export", "upgrade", "backup", "restore", "annotate"}
)
"""Those that the service passes again and again."""
How = Literal["kill", "term", "block", "hang"]
"""What happens at a place. Where a whole stage cannot hang, `hang` does nothing."""


class _Armed:
    """What a test asked for."""

    points: ClassVar[dict[str, tuple[int, How]]] = {}
    """How often a place may still be reached, and what happens then."""
    crash = b""
    hang = b""


def arm(asked: str) -> None:
    """Set the faults, in the form of CIVICSKY_FAULT, several with a semicolon between; an empty text disarms."""
    _Armed.points, _Armed.crash, _Armed.hang = {}, b"", b""
    for one in asked.split(";"):
        place, _, rest = one.partition(":")
        if place == "worker.record":
            _Armed.crash = rest.encode()
        elif place == "worker.hang":
            _Armed.hang = rest.encode()
        elif place in PLACES:
            n, _, how = rest.partition(":")
            _Armed.points[place] = (int(n), next((one for one in get_args(How) if one == how), "kill"))


def armed() -> bool:
    """Whether a test asked for any: who passes a place at each frame need not ask at each."""
    return bool(_Armed.points)


def point(place: Place) -> None:
    """End, or stand still, here, if a test asked for it."""
    how = _due(place)
    if how in {"kill", "term"}:
        os.kill(os.getpid(), signal.SIGTERM if how == "term" else signal.SIGKILL)
    while how == "block":
        sleep(3600)


async def stage(place: Place) -> None:
    """The same, where a stage as a whole can hang."""
    await hangs(place)
    point(place)


async def hangs(place: Place) -> None:
    """Hang here, if a test asked for it: for a stage that gets to the place itself, with `point`, in another thread."""
    if place in _Armed.points and _Armed.points[place] == (1, "hang"):
        import asyncio  # noqa: PLC0415  (the worker processes do without)

        await asyncio.Event().wait()


def _due(place: Place) -> How | None:
    """What is to happen now."""
    if place not in _Armed.points:
        return None
    left, how = _Armed.points[place]
    _Armed.points[place] = (left - 1, how)
    return how if left == 1 else None


def poison(block: bytes) -> None:
    """Crash or hang as a fault in native code would, if a test marked this record."""
    if _Armed.crash and _Armed.crash in block:
        os.kill(os.getpid(), signal.SIGSEGV)
    if _Armed.hang and _Armed.hang in block:
        sleep(3600)


class Clock(NamedTuple):
    """A clock of its own speed."""

    start: float = 0.0
    """What it shows at `since`, in seconds since 1970 UTC."""
    speed: float = 1.0
    """Its seconds in one of ours."""
    since: float = 0.0

    def now_us(self) -> int:
        """What it shows now, in microseconds since 1970 UTC."""
        return int((self.start + (time() - self.since) * self.speed) * 1_000_000)


def set_clock(asked: str) -> Clock:
    """The clock that was asked for, in the form of CIVICSKY_CLOCK; the real one for an empty text."""
    if not asked:
        return Clock()
    asked, _, since = asked.partition("@")
    start, _, speed = asked.partition("*")
    return Clock(datetime.fromisoformat(start).timestamp(), float(speed or 1), float(since or time()))


arm(os.environ.get("CIVICSKY_FAULT", ""))
clock = set_clock(os.environ.get("CIVICSKY_CLOCK", ""))
"""What `source.window` goes by."""
