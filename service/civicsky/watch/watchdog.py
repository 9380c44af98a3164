"""Sees to it that a service which stands still does not go on standing still, and tells the service manager how it is.

The event loop itself feeds the watchdog, each few seconds, and only while `pulse` says that the flow moves. When it is
not fed for as long as the manager allows (WATCHDOG_USEC), the manager ends the process and starts it again: nothing is
lost by that, as by any kill. Where no manager watches (a container, cron, Slurm), a thread does the same after
`PATIENCE`: it ends the process with exit code 1, so that whoever starts it again finds no lock held. Before that,
`wedged` in the log names what stands still, as far as anything can still be said.
"""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Final

from civicsky import log
from civicsky.errors import EXIT_FAILED
from civicsky.health import Look
from civicsky.lifecycle import Every, Stop, happened
from civicsky.metrics import Metrics
from civicsky.watch.systemd import Manager, extended, status

PATIENCE: Final = 180.0
"""Seconds of silence after which we end ourselves, where no manager says how many: as in the units that ship."""
TICK: Final = 5.0
"""Seconds between two looks at most, and between two lines of STATUS at least."""
START_SECONDS: Final = 300.0
"""How much longer a start may take from each look on: a large database may be brought up, and a copy made before."""
STOP_SECONDS: Final = 30.0
"""The same for an end: `limits.drain_seconds` bounds it, whatever the unit says."""
TOLD_AT: Final = 0.75
"""The part of the patience after which a loop that is blocked is told in the log, before the process is ended."""


class Watchdog:
    """`endless`: the work may be finished for as long as it takes, so the end begins with a signal only."""

    def __init__(self, manager: Manager, metrics: Metrics, stop: Stop, *, endless: bool) -> None:
        self._manager, self._metrics, self._stop = manager, metrics, stop
        self._ending = stop.hurry if endless else stop.requested
        self.patience = manager.watchdog_seconds or PATIENCE
        self.tick = min(TICK, self.patience / 4)
        self.looked = self.fed = 0
        """How often the loop came by, and how often it found that the flow moves."""
        self._started = self._ready = self._stopping = False
        self._wedged = False
        self._stuck = ""
        """What stands still, as of the last look: the other thread may not ask the loop's own books."""
        self._health = Look()
        self._status, self._may_tell = "", Every(TICK)

    @asynccontextmanager
    async def on_duty(self) -> AsyncIterator["Watchdog"]:
        """Look after the process until the end of this context."""
        over = threading.Event()
        guard = threading.Thread(target=self._guard, args=(over,), name="watchdog", daemon=True)
        task = asyncio.create_task(self._watch(), name="watchdog")
        guard.start()
        try:
            yield self
        finally:
            over.set()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def started(self) -> None:
        """Locks are held, databases open, the pool is up: from now on we must never be silent."""
        self._started = True
        self._look(anew=True)

    def heed(self, look: Look) -> None:
        """What `health` sees, for STATUS."""
        self._health = look

    # ---- in the event loop ----

    async def _watch(self) -> None:
        while True:
            began = monotonic()
            self._look()
            if self._stopping:
                await asyncio.sleep(self.tick)
            else:
                await happened(self._ending, self.tick)
            # A process that was stopped or frozen for an hour did not stand still for an hour.
            self._metrics.pulse.turn(min(monotonic() - began, 2 * self.tick))

    def _look(self, *, anew: bool = False) -> None:
        """Feed, unless something stands still; tell the manager what is new, and at once when things are `anew`."""
        self.looked += 1
        self._note_wedged()
        lines = [] if self._wedged else self._signs_of_life()
        if self._ending.is_set() and not self._stopping:
            lines.append("STOPPING=1")
            self._stopping = anew = True
        text = self._stuck or self._status_now()
        if text != self._status and (self._may_tell.is_due() or anew):
            lines.append(f"STATUS={text}")
            self._status = text
        if lines and self._manager.tell(*lines):
            self._ready = self._ready or "READY=1" in lines

    def _signs_of_life(self) -> list[str]:
        self.fed += 1
        lines = ["WATCHDOG=1"]
        if not self._started:
            lines.append(extended(START_SECONDS))
        elif not self._ready:
            lines.append("READY=1")
        if self._ending.is_set():
            lines.append(extended(STOP_SECONDS))
        return lines

    def _status_now(self) -> str:
        if not self._started:
            return "starting: taking the locks, opening the databases"
        return status(self._metrics, self._health, stopping=self._stop.why if self._ending.is_set() else "")

    def _note_wedged(self) -> None:
        work = self._metrics.pulse.stillest()
        if work and not self._wedged:
            log.event("wedged", loop=work.loop, seconds=round(work.still))
        elif self._wedged and not work:
            log.event("moving")
        self._wedged = work is not None
        self._stuck = self._metrics.pulse.stuck()

    # ---- in a thread of its own ----

    def _guard(self, over: threading.Event) -> None:
        """Tell of a blocked loop, and end the process if nobody else does. Counts looks, not time: see `_watch`."""
        looked = fed = 0
        since_looked = since_fed = 0.0
        while not over.wait(self.tick):
            since_looked = 0.0 if looked != self.looked or not self._started else since_looked + self.tick
            since_fed = 0.0 if fed != self.fed or not self._started else since_fed + self.tick
            told, looked, fed = since_looked - self.tick >= self.patience * TOLD_AT, self.looked, self.fed
            if since_looked >= self.patience * TOLD_AT and not told:
                _in_time(partial(log.event, "wedged", loop="event loop", seconds=round(since_looked), where=_where()))
            if since_fed >= self.patience and not self._manager.watches:
                _end(self._stuck or "event loop")


def _end(what: str) -> None:
    line = f"civicsky: {what or 'the flow'} stands still; ended, so that it can be started again: nothing is lost\n"
    _in_time(partial(os.write, sys.stderr.fileno(), line.encode()))
    os._exit(EXIT_FAILED)


def _in_time(say: Callable[[], object]) -> None:
    """Say something, though whoever reads it may be what everything waits for."""
    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    thread.join(2)


def _where() -> str:
    """The innermost place of ours at which the event loop stands."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001  (documented for this)
    places = []
    while frame:
        file = Path(frame.f_code.co_filename)
        places.append((file.parent.name, f"{file.name}:{frame.f_lineno} {frame.f_code.co_name}"))
        frame = frame.f_back
    ours = [place for folder, place in places if folder == "civicsky"]
    return next(iter(ours), places[0][1] if places else "")
