"""Named places where a test may end the process. Off unless CIVICSKY_FAULT is set; imports nothing of ours.

`CIVICSKY_FAULT=journal.commit:3` kills this process, as `kill -9` would, the third time it gets to that place;
`journal.commit:3:term` sends it a SIGTERM instead. `worker.record:TEXT` makes a worker crash, and `worker.hang:TEXT`
hang, on any record that contains TEXT.
"""

import os
import signal
from time import sleep
from typing import Final, Literal, get_args

Place = Literal[
    "source.received",
    "decode.decoded",
    "journal.commit",
    "journal.committed",
    "label.answer",
    "ledger.commit",
    "ledger.committed",
    "store.write",
    "store.written",
]
"""In the order of the flow. `commit` and `write` come just before, `committed` and `written` just after."""

PLACES: Final = get_args(Place)


class _Armed:
    """What a test asked for."""

    place = ""
    argument = ""
    left = 0
    signal = signal.SIGKILL


_armed = _Armed()


def arm(asked: str) -> None:
    """Set the fault, in the form of CIVICSKY_FAULT; an empty text disarms."""
    _armed.place, _, rest = asked.partition(":")
    _armed.argument, _, how = rest.partition(":")
    _armed.left = int(_armed.argument) if _armed.argument.isdecimal() else 0
    _armed.signal = signal.SIGTERM if how == "term" else signal.SIGKILL


def point(place: Place) -> None:
    """End here, if a test asked for it."""
    if place != _armed.place:
        return
    _armed.left -= 1
    if _armed.left == 0:
        os.kill(os.getpid(), _armed.signal)


def poison(block: bytes) -> None:
    """Crash or hang as a fault in native code would, if a test marked this record."""
    if not _armed.place.startswith("worker.") or _armed.argument.encode() not in block:
        return
    if _armed.place == "worker.record":
        os.kill(os.getpid(), signal.SIGSEGV)
    sleep(3600)


arm(os.environ.get("CIVICSKY_FAULT", ""))
