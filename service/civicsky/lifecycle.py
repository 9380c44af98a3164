"""How a run ends: the reason, the signals, and the time to finish what is held."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic

from civicsky import log


@dataclass
class Stop:
    """Why and how the work ends.

    `drain` means: also finish all posts that wait, not only what is in hand. A later request without it cancels that.
    """

    requested: asyncio.Event = field(default_factory=asyncio.Event)
    drain: bool = False
    why: str = ""
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when only what is in hand is to be finished."""
    collected: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when nothing more will be written into the journal."""

    def request(self, why: str, *, drain: bool = False) -> None:
        """End the work; the first reason is the one that is told."""
        if not self.requested.is_set():
            log.event("stopping", why=why)
            self.why, self.drain = why, drain
            self.requested.set()
        if not drain:
            self.drain = False
            self.hurry.set()

    @property
    def hurried(self) -> bool:
        """Finish only what is in hand."""
        return self.hurry.is_set()


@contextmanager
def signals(stop: Stop) -> Iterator[None]:
    """SIGTERM and SIGINT ask for an end; a second one cancels the task that is in this context."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    seen = 0

    def on_signal(name: str) -> None:
        nonlocal seen
        seen += 1
        stop.request(name)
        if seen > 1:
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def happened(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event for at most so long; whether it came."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


class Every:
    """Something that is due every so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._next = seconds, 0.0

    def is_due(self) -> bool:
        """Whether it is, and then not again for so long."""
        if monotonic() < self._next:
            return False
        self._next = monotonic() + self._seconds
        return True
