"""The command's entry. It imports nothing heavy: the worker processes run this file too."""

import atexit
import gc
import os
import signal
import sys
import threading
from typing import Any, NoReturn

_STREAMS = ("stdin", "stdout", "stderr")
_GARBAGE = 20_000
"""New objects after which garbage is looked for; Python's own 700 are for programs that hold less."""


def main() -> None:
    """Run the command line."""
    _fill_gaps()
    if os.getpid() == 1:
        # The kernel spares a container's first process what it has not asked for, and so SIGTERM until then.
        signal.signal(signal.SIGTERM, _end)
    # Read when numpy is loaded. Its threads spin while they wait for one another: where others use the processors, too,
    # they took six times the processor time of one.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.disable()  # what is imported stays: to look through it again and again is a tenth of the start
    from civicsky.cli.main import run_command  # noqa: PLC0415

    gc.freeze()
    gc.enable()
    gc.set_threshold(_GARBAGE)
    _leave(run_command())


def _fill_gaps() -> None:
    """Where a standard stream is closed, nothing is read or written; else a socket or a database would get its number.

    libuv ends a process that closes one of those, and whoever writes to standard error would write into it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < len(_STREAMS):
        os.set_inheritable(number, True)
        if getattr(sys, _STREAMS[number]) is None:
            setattr(sys, _STREAMS[number], open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
    os.close(number)


def _leave(code: int) -> NoReturn:
    """End. All is closed and written by now; to free each object first would cost as much as a tenth of the start."""
    atexit._run_exitfuncs()  # noqa: SLF001  (nothing else runs them, and logging and executors count on it)
    if threading.active_count() == 1 and _is_written():
        os._exit(code)
    sys.exit(code)


def _is_written() -> bool:
    """Whether both outputs took all; if not, Python says so at its own end."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return False
    return True


def _end(number: int, _frame: Any) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
