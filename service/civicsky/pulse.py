"""Whether the flow moves. Pure: it has no clock of its own; `watchdog.py` turns it.

A step that holds work, and is done with it in a time that can be bounded, does it inside of `with pulse.work(...)`.
Where it waits for what may take for ever (a message of the relay, a turn at the model, room on the disk, something to
do) it is outside, and rests: whoever rests is never late. So a quiet stream, a closed window, a far side that is down
and a long drain starve nobody. `Hand` adds up what was taken in and is not done with yet, in whatever step it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Literal

Loop = Literal["collect", "worker", "journal", "ledger", "queue", "label", "store"]
"""What can stand still: the steps of both halves, and `collect` for a frame in hand that no step is at work on."""
DEFAULT_BOUND: Final = 600.0


class Work:
    """One piece of work in hand."""

    def __init__(self, pulse: "Pulse", loop: Loop, seconds: float) -> None:
        self.loop: Loop = loop
        self._pulse, self._seconds = pulse, seconds
        self._since = pulse.now

    def moved(self) -> None:
        """A part of it is done: its time begins anew."""
        self._since = self._pulse.now

    @property
    def still(self) -> float:
        """Seconds since it moved."""
        return self._pulse.now - self._since

    @property
    def over(self) -> float:
        """Seconds by which it stands still for too long; 0 or less while it does not."""
        return self.still - self._seconds - self._pulse.bound


class Hand:
    """What was taken in and is not done with. Only while there is any, and none of its steps is at work, time runs."""

    def __init__(self, pulse: "Pulse", loop: Loop, steps: tuple[Loop, ...]) -> None:
        self.steps = steps
        self._pulse, self._loop = pulse, loop
        self._n = 0
        self.work: Work | None = None

    def take(self, n: int = 1) -> None:
        """So many more are in hand."""
        self._n += n
        if self.work is None:
            self.work = Work(self._pulse, self._loop, 0)

    def give(self, n: int) -> None:
        """So many are done with."""
        self._n -= n
        if self._n <= 0:
            self.clear()
        elif self.work:
            self.work.moved()

    def clear(self) -> None:
        """Nothing is in hand any more, or none of it is wanted."""
        self._n, self.work = 0, None


class Pulse:
    """All work of a process. `bound` is how many seconds beyond its own limits a piece of work may stand still."""

    def __init__(self, bound: float = DEFAULT_BOUND) -> None:
        self.bound = bound
        self.now = 0.0
        """Seconds that the loop has turned. Time in which the whole process stood still is not in it."""
        self.frames = Hand(self, "collect", ("worker", "journal"))
        self._works: set[Work] = set()

    @contextmanager
    def work(self, loop: Loop, seconds: float = 0) -> Iterator[Work]:
        """Hold a piece of work; `seconds` is what it may take by its own limits, or each part of it (see `moved`)."""
        work = Work(self, loop, seconds)
        token = _current.set(work)
        self._works.add(work)
        try:
            yield work
        finally:
            self._works.discard(work)
            _current.reset(token)
            if loop in self.frames.steps and self.frames.work:
                self.frames.work.moved()

    def turn(self, seconds: float) -> None:
        """Time has passed, and the loop turns."""
        self.now += seconds
        at_work = any(work.loop in self.frames.steps and work.over <= 0 for work in self._works)
        if self.frames.work and at_work:
            self.frames.work.moved()

    def stillest(self) -> Work | None:
        """The work that stands still for too long, of several the one that did so longest; steps first."""
        late = [work for work in self._works if work.over > 0]
        late = late or [work for work in (self.frames.work,) if work and work.over > 0]
        return max(late, key=lambda work: work.still, default=None)

    def stuck(self) -> str:
        """Which loop stands still, and since when; empty while all move or rest."""
        work = self.stillest()
        return f"{work.loop} stands still with work in hand, for {work.still:.0f} s" if work else ""


_current: ContextVar[Work | None] = ContextVar("work", default=None)


def moved() -> None:
    """A part of the work in hand is done: for those who do not know what they are a part of."""
    if work := _current.get():
        work.moved()
