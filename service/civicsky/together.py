"""Calls that come while one is under way are done together in the next. It knows nothing of what is done."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
MOST: Final = 16
"""Items done at once: enough that few wait for the disk, and too few for all calls to keep step from then on."""


class Together(Generic[T, R]):
    """One transaction, and one wait for the disk, for all that many tasks want at the same time.

    `do` is given items in the order in which they came, and gives a result for each; when it fails, it fails for all
    of them. It never runs twice at a time, nor twice for one item. Whoever has the turn does it for the others; one
    that is cancelled meanwhile ends after its turn, which may be on the disk already.
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
            if not future.cancel() and not future.cancelled():  # it wants nothing any more, nor to be told of a failure
                future.exception()
            raise
        return await future

    async def _next(self) -> None:
        """Do the oldest that wait; the caller has the turn, and is one of them."""
        wanted = [entry for entry in self._waiting if not entry[1].done()]
        some, self._waiting = wanted[:MOST], wanted[MOST:]
        turn = asyncio.ensure_future(self._do([item for item, _ in some]))  # noqa: RUF006  (it is waited for)
        ended: asyncio.CancelledError | None = None
        while not turn.done():
            try:
                await asyncio.wait([turn])
            except asyncio.CancelledError as error:
                ended = error
        failure = None if turn.cancelled() else turn.exception()
        for at, future in enumerate(future for _, future in some):
            if future.done():
                continue
            if turn.cancelled():
                future.cancel()
            elif failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(turn.result()[at])
        if ended is not None:
            raise ended
