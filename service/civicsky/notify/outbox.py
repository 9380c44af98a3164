"""What is still to be told, on disk until it was: the book of what was told, and the messages that wait for each way.

All of it is one small file for each role, `notified-collect.json` or `notified-label.json`, and no table of the
journal's: the labelling half does not write there, and what is to be told may be that the journal is damaged or the
disk is full. The file is replaced as a whole. It has room to spare, so that on a full disk, where there is no space
for a second one, it can be written in place: a service that dies of a full disk again and again tells it once.

With `run` both halves share the file of `collect`. What lasts while `run` becomes two processes, or the other way
round, may be told again.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from civicsky import log
from civicsky.errors import BadInput, Doubtful, Refused, Transient
from civicsky.lifecycle import happened
from civicsky.model import now_us
from civicsky.notify.notices import Book

KEPT_SECONDS: Final = 24 * 3600
"""A message that could not be sent for so long is given up."""
WAITING: Final = 100
"""Messages that wait for one way at most, some 100 kB; beyond it the oldest is given up."""
DOUBTS: Final = 10
"""A message that may have arrived so often is given up: whoever takes messages without saying so gets no more of it."""
PAUSE_SECONDS: Final = 1.0
DOUBTFUL_SECONDS: Final = 60.0
"""Least pause after a message may have arrived."""
PAUSE_MAX_SECONDS: Final = 3600.0
ROOM: Final = 4096
"""Bytes that the file has to spare, and a multiple of which it is long."""
_OURS: Final = frozenset({"at_us", "doubts"})
MAX_FILE_BYTES: Final = 4_000_000


class Way(Protocol):
    """See `notify.Webhook` and `notify.Command`."""

    name: str

    async def send(self, message: dict[str, Any]) -> None:
        """Send one message; when this returns, it has arrived. Raises `Transient`, `Refused` or `BadInput`."""
        ...

    async def close(self) -> None:
        """Release what it holds."""
        ...


def file_of(role: str) -> str:
    """The name of the file; `role` is run, collect or label."""
    return f"notified-{'label' if role == 'label' else 'collect'}.json"


class State:
    """The book, the outboxes, and whether a run is under way: all that must outlive the process."""

    def __init__(self, file: Path, ways: Sequence[str]) -> None:
        self._file = file
        self.book = Book()
        self.outboxes: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        """Messages that are still to be sent, by way, the oldest first."""
        self.running: int | None = None
        """When the run began that has not said that it ended."""
        self._written = b""
        self._complained = False

    def load(self) -> None:
        """Read the file. None, or one that cannot be used, is an empty state: then something may be told again."""
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            if self._file.stat().st_size > MAX_FILE_BYTES:
                return
            values = json.loads(self._file.read_bytes())
            book, running = Book.of_values(values["book"]), values["running"]
            found = {way: [dict(one) for one in values["outboxes"].get(way, ())] for way in self.outboxes}
            if not all(_is_sendable(one) for outbox in found.values() for one in outbox):
                return
            self.book, self.outboxes = book, found
            self.running = None if running is None else int(running)

    def as_text(self) -> bytes:
        """What is to be written now."""
        values = {"running": self.running, "book": self.book.as_values(), "outboxes": self.outboxes}
        return json.dumps(values).encode()

    def write(self, text: bytes) -> None:
        """Write the file if that is new. What cannot be written is said once, and kept in memory."""
        if text == self._written:
            return
        try:
            try:
                _replace(self._file, _padded(text))
            except OSError:
                _overwrite(self._file, text)
        except OSError as error:
            if not self._complained:
                log.event("notify_unsaved", stage="notify", why=error.strerror or str(error))
            self._complained = True
        else:
            self._written, self._complained = text, False

    def put(self, told: dict[str, Any]) -> int:
        """Put a message into all outboxes; gives how many older ones were given up for it."""
        given_up = 0
        for outbox in self.outboxes.values():
            outbox.append(told)
            given_up += len(outbox) - WAITING if len(outbox) > WAITING else 0
            del outbox[:-WAITING]
        return given_up


def _is_sendable(told: dict[str, Any]) -> bool:
    return (
        isinstance(told["at_us"], int)
        and isinstance(told.get("doubts", 0), int)
        and all(isinstance(told[name], str) for name in ("id", "kind", "problem", "why", "name", "role", "text"))
    )


def _padded(text: bytes) -> bytes:
    return text + b" " * (ROOM - 1 + -len(text) % ROOM) + b"\n"


def _replace(file: Path, content: bytes) -> None:
    new = file.with_suffix(".new")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(file)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise


def _overwrite(file: Path, text: bytes) -> None:
    """Write into the room that the file has already. Raises OSError where that is not enough."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CLOEXEC), "wb") as stream:
        room = os.fstat(stream.fileno()).st_size
        if len(text) > room:
            raise OSError("the disk is full")
        stream.write(text.ljust(room))
        stream.flush()
        os.fsync(stream.fileno())


class Delivery:
    """Sends what waits for one way: in order, each again and again with a rising pause, for a day at most.

    So a message may come twice, with the same `id`, when the process dies between sending and noting it.
    """

    def __init__(
        self, way: Way, waiting: list[dict[str, Any]], closing: asyncio.Event, save: Callable[[], Awaitable[None]]
    ) -> None:
        self._way, self._waiting, self._closing, self._save = way, waiting, closing, save
        self.news = asyncio.Event()
        """To be set when there is something new to send or to save, and when `closing` was set."""
        self._pause = 0.0
        self._down, self._given_up = False, 0

    async def run(self) -> None:
        """Until `closing` is set; then what waits is tried once more, up to the first failure."""
        while True:
            if self._pause and self._waiting:
                await happened(self._closing, self._pause)
            elif not self._waiting:
                if self._closing.is_set():
                    return
                await self.news.wait()
                self.news.clear()
                await self._save()
                continue
            self._give_up_old()
            if self._waiting and not await self._send(self._waiting[0]) and self._closing.is_set():
                return  # the next start sends it

    async def _send(self, told: dict[str, Any]) -> bool:
        """Whether it need not be sent any more."""
        await self._save()  # on disk before anybody knows it
        try:
            await self._way.send({name: value for name, value in told.items() if name not in _OURS})
        except BadInput as bad:
            self._log_down(bad.reason, given_up=1)
            self._pause = 0.0
        except (Transient, Refused) as error:
            if not self._down:
                self._log_down(str(error))
            self._down = True
            self._pause = _pause_after(error, self._pause)
            if not self._is_enough(told, error):
                return False
        else:
            if self._down:
                log.event("notify_up", stage="notify", way=self._way.name, given_up=self._given_up)
            self._down, self._given_up, self._pause = False, 0, 0.0
        if self._waiting and self._waiting[0] is told:  # it may have been given up meanwhile
            del self._waiting[0]
        await self._save()
        return True

    def _is_enough(self, told: dict[str, Any], error: Transient | Refused) -> bool:
        """Whether it may have arrived often enough."""
        if not isinstance(error, Doubtful):
            return False
        told["doubts"] = told.get("doubts", 0) + 1
        if told["doubts"] < DOUBTS:
            return False
        self._given_up += 1
        self._log_down(str(error), given_up=1)
        return True

    def _give_up_old(self) -> None:
        oldest = now_us() - KEPT_SECONDS * 1_000_000
        fresh = [told for told in self._waiting if told["at_us"] >= oldest]
        if n := len(self._waiting) - len(fresh):
            self._given_up += n
            self._log_down("not sent for a day", given_up=n)
            self._waiting[:] = fresh

    def _log_down(self, why: str, **more: int) -> None:
        log.event("notify_down", stage="notify", way=self._way.name, why=why, **more)


def _pause_after(error: Transient | Refused, before: float) -> float:
    asked = getattr(error, "retry_after", None) or 0.0
    least = DOUBTFUL_SECONDS if isinstance(error, Doubtful) else PAUSE_SECONDS
    return min(max(before * 2, least, asked), PAUSE_MAX_SECONDS)
