"""A first-in, first-out queue that is bounded in items and bytes and can be closed."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """The queue is closed and, for a reader, empty."""


class Queue(Generic[T]):
    """Any number of writers and readers in one event loop.

    Worst case in memory: `max_bytes` plus one item, since an item larger than the bound is let in when the queue is
    empty (it would otherwise wait for ever). A full queue makes `put` wait; nothing is ever dropped by it.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items, self._max_bytes = max_items, max_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._closed = False
        lock = asyncio.Lock()
        self._filled, self._freed = asyncio.Condition(lock), asyncio.Condition(lock)

    def __len__(self) -> int:
        return len(self._items)

    async def put(self, item: T, size: int = 0) -> None:
        """Append, waiting for room. Raises `Closed` when the queue was closed, also while waiting."""
        async with self._freed:
            await self._freed.wait_for(lambda: self._closed or self._fits(size))
            if self._closed:
                raise Closed
            self._items.append((item, size))
            self._bytes += size
            self._filled.notify()  # one item, one reader: 256 of them may wait

    async def get(self) -> T:
        """Take the oldest item. As `take`."""
        return (await self.take())[0]

    async def take(self, most: int = 1) -> list[T]:
        """Take the oldest items, `most` at most, waiting for one. Raises `Closed` when closed and empty."""
        async with self._filled:
            await self._filled.wait_for(lambda: self._closed or bool(self._items))
            if not self._items:
                raise Closed
            taken: list[T] = []
            while self._items and len(taken) < most:
                item, size = self._items.popleft()
                self._bytes -= size
                taken.append(item)
            self._freed.notify_all()
            return taken

    async def close(self, *, discard: bool = False) -> None:
        """No more items come; readers take what is left, unless it is to be discarded (it is safe on disk)."""
        async with self._filled:
            self._closed = True
            if discard:
                self._items.clear()
                self._bytes = 0
            self._filled.notify_all()
            self._freed.notify_all()

    def _fits(self, size: int) -> bool:
        if not self._items:
            return True
        return len(self._items) < self._max_items and self._bytes + size <= self._max_bytes
