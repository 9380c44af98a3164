"""The log's own files: where they are, and one that is rotated by size. Knows nothing of events.

Two processes must not rotate one file under one another: so each half has a file of its own, and holds its lock.
"""

import errno
import os
import stat
import sys
from contextlib import suppress
from logging import LogRecord, makeLogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final, Literal, TextIO

from civicsky.settings import expanded

PATIENCE: Final = 1.0
"""Seconds that a thread waits for another one that writes."""
HALVES: Final = ("both", "collect", "label")

_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""Not blocking: some devices would hold us up for ever."""


def path_of(name: str, folder: Path, halves: Literal["both", "collect", "label"]) -> Path:
    """The file of what runs: `civicsky.log`, or `civicsky-collect.log` and `civicsky-label.log` side by side.

    A relative name is taken in the data directory.
    """
    path = expanded(Path(name)) if name.startswith("~") else expanded(folder) / name
    return path if halves == "both" else path.with_name(f"{path.stem}-{halves}{path.suffix}")


class LogFile(RotatingFileHandler):
    """A file of lines, mode 600, and its former selves `.1` (the newest) to `.N`.

    Bound on disk: `files` times (`size` bytes and one line). Made anew when somebody removes or moves it.
    """

    def __init__(self, path: Path, size: int, files: int) -> None:
        super().__init__(
            path, maxBytes=size, backupCount=files - 1, encoding="utf-8", errors="backslashreplace", delay=True
        )
        self._why = ""

    def write(self, line: str) -> str:
        """Write a line; why it could not be, or nothing. Never raises: a log must not end what it tells of."""
        assert self.lock is not None
        # A disk that hangs holds up whoever writes, but not the thread that is to end a process that hangs.
        if not self.lock.acquire(timeout=PATIENCE):
            return "another thread hangs in it"
        try:
            self._why = ""
            if self.stream is not None and not self._is_there(self.stream.fileno()):
                self._let_go()
            self.handle(makeLogRecord({"msg": line}))
            return self._why
        finally:
            self.lock.release()

    def handleError(self, record: LogRecord) -> None:  # noqa: ARG002, N802  (logging's own)
        """What `logging` calls while it handles an exception."""
        error = sys.exc_info()[1]
        self._why = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
        self._let_go()

    def _open(self) -> TextIO:  # type: ignore[override]
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(self.baseFilename, _FLAGS, 0o600)
        try:
            _make_fit(file)
        except OSError:
            os.close(file)
            raise
        return os.fdopen(file, "a", encoding=self.encoding, errors=self.errors)

    def _is_there(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), Path(self.baseFilename).stat())
        except OSError:
            return False

    def _let_go(self) -> None:
        """Without what a full disk did not take: it would be written later, in the midst of others."""
        stream, self.stream = self.stream, None
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.close()


def _make_fit(file: int) -> None:
    """Refuse a pipe, and end half a line that a process that was killed, or a full disk, may have left."""
    now = os.fstat(file)
    if stat.S_ISFIFO(now.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, which holds whoever writes up")
    if stat.S_ISREG(now.st_mode) and now.st_size and os.pread(file, 1, now.st_size - 1) != b"\n":
        os.write(file, b"\n")
