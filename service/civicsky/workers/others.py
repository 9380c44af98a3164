"""Other home nodes that share the work queue. What one left there that is no more is taken out by those that are.

Else workers would take its jobs again and again, and find nobody who wants them.
"""

import asyncio
from typing import Final

from civicsky import log
from civicsky.errors import Transient
from civicsky.workers.bus import Bus
from civicsky.workers.workqueue import WorkQueue

LOOK_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 2.0
MISSES: Final = 3
"""A home node that does not answer so often in a row is no more. One that was cut off only dispatches its jobs anew."""
AT_ONCE: Final = 32
"""Of so many we see whether they live, at a time."""


class Others:
    """Looks after them. `there` are those that have jobs for our model in the queue, by session."""

    def __init__(self, bus: Bus, queue: WorkQueue, name: str) -> None:
        self._bus, self._queue, self._name = bus, queue, name
        self.there: tuple[str, ...] = ()
        self._missed: dict[str, int] = {}

    @staticmethod
    async def alive(_data: bytes) -> bytes:
        """What we say when others ask."""
        return b"alive"

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            there = self.there[:AT_ONCE]
            self._missed = {session: n for session, n in self._missed.items() if session in there}
            async with asyncio.TaskGroup() as group:
                for session in there:
                    group.create_task(self._look_after(session), name=f"home-{session}")
            await asyncio.sleep(LOOK_SECONDS)

    async def _look_after(self, session: str) -> None:
        try:
            await self._bus.request(f"{self._name}.home.{session}.alive", b"", ANSWER_SECONDS)
        except Transient:
            if self._bus.up.is_set():
                self._missed[session] = self._missed.get(session, 0) + 1
        else:
            self._missed.pop(session, None)
        if self._missed.get(session, 0) >= MISSES:
            await self._bury(session)

    async def _bury(self, session: str) -> None:
        try:
            await self._queue.bury(session)
            await self._bus.publish(f"{self._name}.queue", session.encode())
        except Transient:
            return
        del self._missed[session]
        log.event("workers_cleared_up", stage="label", home=session)
