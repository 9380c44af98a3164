"""The command's entry. It imports nothing heavy: the worker processes run this file too."""

import os
import signal
import sys
from typing import Any


def main() -> None:
    """Run the command line."""
    if os.getpid() == 1:
        # The kernel spares a container's first process what it has not asked for, and so SIGTERM until then.
        signal.signal(signal.SIGTERM, _end)
    from civicsky.cli.main import run_command  # noqa: PLC0415

    sys.exit(run_command())


def _end(number: int, _frame: Any) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
