"""Named places where a test may kill the process. Off unless CIVICSKY_FAULT is set; imports nothing of ours.

`CIVICSKY_FAULT=journal.commit:3` kills this process, as `kill -9` would, the third time it gets to that place.
`CIVICSKY_FAULT=worker.record:TEXT` makes a worker crash on any record that contains TEXT.
"""

import os
import signal
from typing import Final, Literal

Place = Literal["journal.commit", "ledger.commit", "label.answer", "store.write"]

_place, _, _argument = os.environ.get("CIVICSKY_FAULT", "").partition(":")
_left = int(_argument) if _argument.isdecimal() else 0
_POISON: Final = _argument.encode() if _place == "worker.record" else b""


def point(place: Place) -> None:
    """Die here, if a test asked for it."""
    global _left  # noqa: PLW0603  (one counter a process, only ever used by tests)
    if place != _place:
        return
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)


def poison(block: bytes) -> None:
    """Crash like a fault in native code would, if a test marked this record."""
    if _POISON and _POISON in block:
        os.kill(os.getpid(), signal.SIGSEGV)
