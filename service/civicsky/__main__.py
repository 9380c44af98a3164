"""The command's entry. It imports nothing heavy: the worker processes run this file too."""

import atexit
import gc
import os
import signal
import sys
import threading
from typing import Any, NoReturn

_GARBAGE = 20_000
"""New objects after which garbage is looked for; Python's own 700 are for programs that hold less."""


def main() -> None:
    """Run the command line."""
    if os.getpid() == 1:
        # The kernel spares a container's first process what it has not asked for, and so SIGTERM until then.
        signal.signal(signal.SIGTERM, _end)
    gc.disable()  # what is imported stays: to look through it again and again is a tenth of the start
    from civicsky.cli.main import run_command  # noqa: PLC0415

    gc.freeze()
    gc.enable()
    gc.set_threshold(_GARBAGE)
    _leave(run_command())


def _leave(code: int) -> NoReturn:
    """End. All is closed and written by now; to free each object first would cost as much as a tenth of the start."""
    atexit._run_exitfuncs()  # noqa: SLF001  (nothing else runs them, and logging and executors count on it)
    if threading.active_count() == 1 and _is_written():
        os._exit(code)
    sys.exit(code)


def _is_written() -> bool:
    """Whether both outputs took all; if not, Python says so at its own end."""
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):  # None: it was closed from the start
            stream.flush()
    except (OSError, ValueError):
        return False
    return True


def _end(number: int, _frame: Any) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
