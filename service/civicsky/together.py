"""Calls that come while one is under way are done together in the next. It knows nothing of what is done."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
MOST: Final = 256
"""Items done at once: as many as there can be slots, so nobody waits for more than two turns."""


class Together(Generic[T, R]):
    """One transaction, and one wait for the disk, for all that many tasks want at the same time.

    `do` is given items in the order in which they came, and gives a result for each; when it fails, it fails for all
    of them. It never runs twice at a time. Whoever has the turn does it for the others; when that one is cancelled,
    the next does it again for those that are not: the tasks of one group, which are cancelled together, may share it.
    Memory: an item for each task that waits.
    """

    def __init__(self, do: Callable[[Sequence[T]], Awaitable[Sequence[R]]]) -> None:
        self._do = do
        self._turn = asyncio.Lock()
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []

    async def __call__(self, item: T) -> R:
        """Do it, perhaps with others' items; returns once it is done. Raises what `do` raises."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        try:
            async with self._turn:
                if not future.done():
                    await self._next()
        except asyncio.CancelledError:
            future.cancel()  # it wants nothing any more
            raise
        return await future

    async def _next(self) -> None:
        """Do the oldest that wait; the caller has the turn, and is one of them."""
        wanted = [entry for entry in self._waiting if not entry[1].done()]
        some, self._waiting = wanted[:MOST], wanted[MOST:]
        try:
            results = await self._do([item for item, _ in some])
        except asyncio.CancelledError:
            self._waiting = [*some, *self._waiting]
            raise
        except Exception as error:  # noqa: BLE001  (each caller gets it)
            for _, future in some:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(some, results, strict=True):
            if not future.done():
                future.set_result(result)
