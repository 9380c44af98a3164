"""From the one who gathers to those who watch: server-sent events, with a bound for each.

What is only of the moment (a state) is kept once by name: a slow listener gets the newest, never a line of old ones.
What must come one after the other (posts, and which are gone) stands in a queue; who does not read for so long that it
is full is let go, comes again by itself, and gets all anew.
"""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

LISTENERS: Final = 16
"""At once: tabs of browsers. One that is one too many is told so."""
QUEUED: Final = 256
"""News for one listener at most, of 100 kB or so; all queues share one copy of each."""
HEARTBEAT: Final = b": still here\n\n"
HEARTBEAT_SECONDS: Final = 15.0


def event(name: str, told: Any) -> bytes:
    """One event. ASCII only, and JSON has no line breaks: nothing in it can end it."""
    return f"event: {name}\ndata: {json.dumps(told, separators=(',', ':'))}\n\n".encode("ascii")


class Listener:
    """One who watches."""

    def __init__(self, latest: Mapping[str, bytes], first: Iterable[bytes]) -> None:
        """`first` comes before all news, and is asked for part by part, as it is read."""
        self._first = iter(first)
        self._queue: deque[bytes] = deque()
        self._latest = dict(latest)
        self._news = asyncio.Event()
        self.is_over = False
        """It fell behind, or the service ends: hang up."""

    def put(self, one: bytes) -> None:
        """In its order."""
        if len(self._queue) >= QUEUED:
            self.end()
        else:
            self._queue.append(one)
            self._news.set()

    def replace(self, name: str, one: bytes) -> None:
        """Instead of what was to be told under this name."""
        self._latest[name] = one
        self._news.set()

    def end(self) -> None:
        """No more."""
        self._queue.clear()
        self._first = iter(())
        self.is_over = True
        self._news.set()

    async def next(self) -> bytes | None:
        """What to send next, as much as there is up to some 100 kB; a heartbeat when nothing comes; None at the end."""
        found = self._taken()
        if not found and not self.is_over:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), HEARTBEAT_SECONDS)
            except TimeoutError:
                return HEARTBEAT
            found = self._taken()
        return None if self.is_over else b"".join(found)

    def _taken(self) -> list[bytes]:
        """All that is of the moment, and one part of the rest."""
        found = list(self._latest.values())
        self._latest = {}
        part = next(self._first, None)
        if part is None and self._queue:
            part = self._queue.popleft()
        return found if part is None else [*found, part]


class Hub:
    """Everybody who watches, and what they must be told at first."""

    def __init__(self, posts: Callable[[], Iterable[bytes]]) -> None:
        """`posts` gives the events that make up the list of posts as it is now."""
        self._posts = posts
        self._listeners: set[Listener] = set()
        self._latest: dict[str, bytes] = {}
        self.somebody = asyncio.Event()
        """Set while anybody watches."""

    @property
    def is_full(self) -> bool:
        """Whether there is room for nobody else."""
        return len(self._listeners) >= LISTENERS

    def join(self) -> Listener | None:
        """One more; None when there are too many."""
        if self.is_full:
            return None
        listener = Listener(self._latest, self._posts())
        self._listeners.add(listener)
        self.somebody.set()
        return listener

    def leave(self, listener: Listener) -> None:
        """One less."""
        self._listeners.discard(listener)
        if not self._listeners:
            self.somebody.clear()

    def put(self, name: str, told: Any) -> None:
        """Tell all, in its order."""
        self.put_packed(event(name, told))

    def put_packed(self, one: bytes) -> None:
        """The same of an event that is made already."""
        for listener in self._listeners:
            listener.put(one)

    def replace(self, name: str, told: Any) -> None:
        """Tell all, and those who come later, what holds now."""
        one = self._latest[name] = event(name, told)
        for listener in self._listeners:
            listener.replace(name, one)

    def forget(self) -> None:
        """Nothing of what was told holds any more."""
        self._latest.clear()

    def end(self) -> None:
        """Let everybody go."""
        for listener in self._listeners:
            listener.end()

    def __len__(self) -> int:
        return len(self._listeners)
