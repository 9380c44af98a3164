"""Puts the commands together and runs one; maps how it ended to an exit code."""

import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer
from typer.main import get_command_name

from civicsky.cli.options import app, complain
from civicsky.errors import EXIT_FAILED, FULL, CivicskyError

# Each adds its commands, in this order.
# isort: off
from civicsky.cli import starting, looking, changing, reporting, annotating, tools  # noqa: F401
# isort: on

_INTERRUPTED = 130
"""What typer makes of Ctrl-C."""


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from civicsky import __version__  # noqa: PLC0415

        print(f"civicsky {__version__}")
        raise typer.Exit


@contextmanager
def only_called(words: Sequence[str]) -> Iterator[None]:
    """Leave for a while only the command or group that the first word names; all, where it names none.

    Typer builds whatever is there, of which one is wanted: 20 ms of each start.
    """
    commands, groups = app.registered_commands, app.registered_groups
    alone = [
        one for one in commands if one.callback and get_command_name(one.name or one.callback.__name__) in words[:1]
    ]
    group = [one for one in groups if one.name in words[:1]]
    try:
        if alone or group:
            app.registered_commands, app.registered_groups = alone, group
        yield
    finally:
        app.registered_commands, app.registered_groups = commands, groups


def run_command() -> int:
    """Run the command line; gives the exit code."""
    try:
        with only_called(sys.argv[1:]):
            app(standalone_mode=True)
    except CivicskyError as error:
        return complain(str(error), error.exit_code)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            return complain("ended by Ctrl-C", EXIT_FAILED)
        return end.code if isinstance(end.code, int) else EXIT_FAILED
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = error.filename or "a file"
        return complain(
            f"{where}: {error.strerror}; nothing is lost: make room on the disk and start again", EXIT_FAILED
        )
    except sqlite3.Error as error:
        return complain(f"a database could not be read: {error}", EXIT_FAILED)
    except KeyboardInterrupt:
        return complain("ended by Ctrl-C", EXIT_FAILED)
    return 0
