"""How a SQLite file of ours is copied while others write it; the copy is one file, fit for any file system.

Several files are copied as of one moment: for some milliseconds nobody else may write to any of them, and meanwhile a
read snapshot of each is taken. So the copies are what `kill -9` at that moment would have left. What is written to them
later lies in the write-ahead logs, which cannot be truncated before the snapshots are released.

Everything here blocks. SQLite's errors come out as they are, those of the file system as `OSError`.
"""

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from civicsky.errors import Failed

Shown = Callable[[int, int], None]
"""Is told (bytes done, bytes in all)."""

_PAGES: Final = 1000
"""Pages that are copied at once: 4 MB, so that progress shows and Ctrl-C is heard."""
_PIN_SECONDS: Final = 60.0
"""How long writers may keep us from a moment at which none of them is at work."""
_GATE_SECONDS: Final = 0.2
"""How long one file's writer is waited for while the others wait for us."""
_THOROUGH_BYTES: Final = 1_000_000_000
"""Up to this size the indexes are compared with their tables; above, it would take hours on a network."""
_FORMAT_AT: Final = 18
"""Where a file's header says how it is written and read: 1 each without a write-ahead log, 2 each with one.
https://sqlite.org/fileformat2.html#file_format_version_numbers
"""
_BLOCK: Final = 1 << 20


@contextmanager
def one_moment(present: Callable[[], Sequence[Path]]) -> Iterator[dict[Path, sqlite3.Connection]]:
    """Connections that see the files as they were at one moment, whatever is written later.

    `present` names the files that there are now. Close a connection, and its file's log may be truncated again.
    Raises `Failed` when writers leave no such moment within a minute.
    """
    patience = monotonic() + _PIN_SECONDS
    while True:
        with ExitStack() as pins:
            pinned = _pin(pins, present)
            if pinned is not None:
                yield pinned
                return
        if monotonic() > patience:
            raise Failed("a database was being written for a whole minute; try again when there is less to do")
        sleep(_GATE_SECONDS)


def _pin(pins: ExitStack, present: Callable[[], Sequence[Path]]) -> dict[Path, sqlite3.Connection] | None:
    """Snapshots of all files while all their writers wait; None when one of these is at work for long."""
    files = present()
    with ExitStack() as gates:
        for file in files:
            gate = gates.enter_context(closing(_connect(file, "rw", timeout=_GATE_SECONDS)))
            try:
                gate.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                return None
        if present() != files:
            return None  # one was made just now: it belongs to what the others hold
        pinned = {}
        for file in files:
            pinned[file] = pins.enter_context(closing(_connect(file, "ro")))
            pinned[file].execute("BEGIN")
            pinned[file].execute("SELECT count(*) FROM sqlite_schema").fetchone()  # only a read takes the snapshot
        return pinned


def reading(file: Path) -> sqlite3.Connection:
    """A connection that sees the file as it is now, whatever is written later."""
    connection = _connect(file, "ro")
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    return connection


def size_of(source: sqlite3.Connection) -> int:
    """Bytes that a copy will have."""
    return int(_number(source, "page_count") * _number(source, "page_size"))


def format_of(source: sqlite3.Connection) -> tuple[int, int]:
    """(whose file it is, the number of its format)."""
    return _number(source, "application_id"), _number(source, "user_version")


def write(source: sqlite3.Connection, target: Path, shown: Shown) -> None:
    """Copy what `source` sees into a new file, mode 600; it is whole, sound and safe on disk when this returns.

    It has no write-ahead log and needs none to be read; nobody else may open it before. Raises `Failed` when the copy
    is damaged, which the source then is, too.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    page = _number(source, "page_size")
    # No locks: many project spaces have none, and nobody else has the file.
    with closing(_connect(target, "rw", more="&nolock=1")) as copy:
        copy.execute("PRAGMA journal_mode=OFF")
        copy.execute("PRAGMA synchronous=OFF")  # that is done below, once
        source.backup(copy, pages=_PAGES, progress=lambda _, left, total: shown((total - left) * page, total * page))
    handle = os.open(target, os.O_WRONLY)
    try:
        os.pwrite(handle, b"\x01\x01", _FORMAT_AT)
        os.fsync(handle)
    finally:
        os.close(handle)
    if wrong := defects(target):
        raise Failed(f"{target.name} is damaged ({wrong}), and so is its copy; see `civicsky doctor`")


def with_log(file: Path) -> None:
    """Give a copy that lies on a local disk again its write-ahead log, so that readers and a writer can share it."""
    with closing(_connect(file, "rw")) as copy:
        copy.execute("PRAGMA journal_mode=WAL")


def defects(file: Path) -> str:
    """What SQLite finds wrong with a copy, or nothing."""
    check = "integrity_check" if file.stat().st_size <= _THOROUGH_BYTES else "quick_check"
    try:
        with closing(_connect(file, "ro", more="&nolock=1")) as copy:
            found = [text for (text,) in copy.execute(f"PRAGMA {check}(3)")]
    except sqlite3.DatabaseError as error:
        return str(error)
    return "" if found == ["ok"] else "; ".join(found)[:200]


def digest(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def copied(source: Path, target: Path, shown: Shown = lambda _done, _total: None) -> str:
    """Copy any file into a new one, mode 600 and safe on disk; the SHA-256 of what was read."""
    total, done, found = source.stat().st_size, 0, hashlib.sha256()
    with source.open("rb") as stream:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as out:
            while block := stream.read(_BLOCK):
                out.write(block)
                found.update(block)
                done += len(block)
                shown(done, total)
            out.flush()
            os.fsync(out.fileno())
    return found.hexdigest()


def synced(folder: Path) -> None:
    """Make names in a folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def want_room(folder: Path, needed: int, what: str) -> None:
    """Raise `Failed`, with the figures, when a folder's disk has less than so many bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Failed(
            f"{what} needs {needed / 1e6:,.1f} MB, and {folder} has {free / 1e6:,.1f} MB free; nothing was changed: "
            "make room, and try again"
        )


def _connect(file: Path, mode: str, *, timeout: float = 30.0, more: str = "") -> sqlite3.Connection:
    address = f"{file.absolute().as_uri()}?mode={mode}{more}"
    return sqlite3.connect(address, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)


def _number(source: sqlite3.Connection, pragma: str) -> int:
    ((number,),) = source.execute(f"PRAGMA {pragma}").fetchall()
    return int(number)
