"""Whoever starts the command may have closed its standard streams, as daemons' starters do: it works all the same."""

import subprocess
from pathlib import Path

import pytest

from support.command import CIVICSKY, LAST_SEQ, cursor, environment


def started(closed: str, *args: object, folder: Path) -> "subprocess.CompletedProcess[str]":
    """The command with these streams closed; `closed` is in the shell's words."""
    words = ["sh", "-c", f'exec "$@" {closed}', "sh", CIVICSKY, *map(str, args), "--data-dir", str(folder)]
    env = environment(source__start="window", appview__recheck="false")
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_run_whose_standard_streams_are_closed_holds_the_stream(closed: str, relay: str, tmp_path: Path) -> None:
    ended = started(closed, "collect", "--relay", relay, "--max-frames", LAST_SEQ, folder=tmp_path)
    assert (ended.returncode, cursor(tmp_path)) == (0, LAST_SEQ), ended.stderr


def test_a_wrong_use_is_not_said_where_its_stream_is_closed_and_ends_as_ever(tmp_path: Path) -> None:
    ended = started("2>&-", "collect", "--no-such-option", folder=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
