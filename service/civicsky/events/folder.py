"""The folder of articles, held against what the index has of it: at start and every minute.

A file is read again when its size or time changed; then what it held before goes. What cannot be read now stays as it
was, and is told. A bad line is told and counted, and stops nothing.
"""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Protocol

from civicsky import log
from civicsky.errors import BadInput, Usage
from civicsky.events.articles import MAX_LINE, Article, read_line
from civicsky.events.index import File

MAX_FILES: Final = 1_000
"""Files looked at, by name; a folder of so many is not looked through in a moment."""


class IndexShape(Protocol):
    """See `index.Index`."""

    def files(self) -> dict[str, File]:
        """What was read so far."""
        ...

    def take(self, file: File, articles: Iterator[tuple[int, Article | None]]) -> File:
        """Put a file's articles in the place of what it held before."""
        ...

    def drop(self, name: str) -> None:
        """A file is gone."""
        ...


class Synced(NamedTuple):
    """What one look at the folder changed."""

    read: int = 0
    """Files that were read."""
    gone: int = 0
    articles: int = 0
    """Lines of the files read that are articles."""
    doubled: int = 0
    """Of these, those that were there already."""
    bad: int = 0
    left_out: int = 0
    unreadable: int = 0


def check(folder: Path) -> None:
    """Raises `Usage` when it is no folder that can be read."""
    try:
        next(iter(folder.iterdir()), None)
    except OSError as error:
        raise Usage(
            f"events.folder {folder}: {error.strerror}; name a folder of .jsonl files that can be read"
        ) from None


def sync(folder: Path, index: IndexShape) -> Synced:
    """Bring the index up to what the folder holds now. Blocks while files are read. Errors as the index's."""
    before = index.files()
    try:
        found = sorted(file for file in folder.iterdir() if file.suffix == ".jsonl")[:MAX_FILES]
    except OSError as error:
        log.event("events_unreadable", stage="label", file=str(folder), why=error.strerror)
        return Synced(unreadable=1)
    done = Synced()
    for file in found:
        known = before.pop(file.name, None)
        try:
            read = _read(file, known, index)
        except OSError as error:
            log.event("events_unreadable", stage="label", file=str(file), why=error.strerror)
            done = done._replace(unreadable=done.unreadable + 1)
            continue
        if read:
            done = Synced(
                done.read + 1, done.gone, done.articles + read.articles, done.doubled + read.doubled,
                done.bad + read.bad, done.left_out + read.left_out, done.unreadable,
            )  # fmt: skip
    for name in before:
        index.drop(name)
    done = done._replace(gone=len(before))
    if done.read or done.gone:
        log.event("events_read", stage="label", **done._asdict())
    return done


def _read(file: Path, known: File | None, index: IndexShape) -> File | None:
    """Read a file if it changed."""
    there = file.stat()
    if not stat.S_ISREG(there.st_mode) or (known and (known.size, known.mtime) == (there.st_size, there.st_mtime_ns)):
        return None
    # As of before it is read: what is written to it meanwhile has it read again.
    fresh = File(file.name, there.st_size, there.st_mtime_ns)
    with file.open("rb") as stream:
        return index.take(fresh, _articles(file, stream))


def _articles(file: Path, stream: BinaryIO) -> Iterator[tuple[int, Article | None]]:
    """By line what stands there; None for a bad one."""
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        rest = line
        while len(rest) > MAX_LINE and not rest.endswith(b"\n"):  # of one that is too long the rest is passed over
            rest = stream.readline(MAX_LINE + 1)
        if not line.strip():
            continue
        try:
            yield number, read_line(line)
        except BadInput as bad:
            log.event("events_bad_line", stage="label", file=str(file), line=number, why=bad.reason)
            yield number, None
