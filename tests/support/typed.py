"""The command at a real terminal: what it shows there, and what is typed."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path
from typing import Self

from support.command import CIVICSKY

COLUMNS = 80


def _at_the_terminal() -> None:
    """Ours to control, and Ctrl-C means something, also where the tests were started without."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Typed:
    """`civicsky ARGS`, with a terminal of 80 columns for all three of its streams."""

    def __init__(self, *args: str | Path, **environment: str) -> None:
        self.shown = ""
        self._seen = 0
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("CIVICSKY_", "COLUMNS"))}
        self._process = subprocess.Popen(
            [CIVICSKY, *map(str, args)], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**plain, "TERM": "xterm", **environment},
            preexec_fn=_at_the_terminal,  # noqa: PLW1509  (no threads of ours are there)
        )  # fmt: skip
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def until(self, text: str, seconds: float = 60) -> "Typed":
        """Wait until it shows this, after what was waited for before."""
        end = time.monotonic() + seconds
        while text not in self.shown[self._seen :]:
            assert time.monotonic() < end, f"waited in vain for {text!r}:\n{self.shown}"
            assert self._read(), f"it ended without {text!r}:\n{self.shown}"
        self._seen = self.shown.index(text, self._seen) + len(text)
        return self

    def answer(self, question: str, text: str, *, unseen: bool = False) -> "Typed":
        """Type a line once a question is there, and the terminal shows or hides what is typed."""
        self.until(question)
        end = time.monotonic() + 60
        while not self.shown.endswith(": ") or bool(termios.tcgetattr(self._ours)[3] & termios.ECHO) == unseen:
            assert time.monotonic() < end, f"nothing may be typed:\n{self.shown}"
            self._read(0.02)
        self.press(text.encode() + b"\n")
        return self

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def end(self, seconds: float = 60, pressing: bytes = b"") -> int:
        """Its exit code; all that it showed is in `shown` then.

        `pressing`: keys that are pressed, and again while nothing happens, as people do: a signal that comes just
        before a program waits for input does not wake it.
        """
        until = time.monotonic() + seconds
        self.press(pressing)
        before = self.shown
        while self._read(3):
            assert time.monotonic() < until, f"it does not end:\n{self.shown}"
            if self.shown == before and self._process.poll() is None:
                self.press(pressing)
            before = self.shown
        return self._process.wait(seconds)

    def _read(self, seconds: float = 1) -> bool:
        if not select.select([self._ours], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # Linux's word for the other end being closed
            return False
        self.shown += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)
