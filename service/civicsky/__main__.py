"""The command's entry. It imports nothing heavy: the worker processes run this file too."""

import sys


def main() -> None:
    """Run the command line."""
    from civicsky.cli import run_command  # noqa: PLC0415

    sys.exit(run_command())


if __name__ == "__main__":
    main()
