"""Of all commands a start builds only the one that is called, and all where somebody looks for one."""

from contextlib import suppress

import pytest

from civicsky.cli.main import only_called
from civicsky.cli.options import app


def names() -> set[str]:
    commands = {one.name or one.callback.__name__ for one in app.registered_commands if one.callback}
    return commands | {str(one.name) for one in app.registered_groups}


def test_there_are_commands_and_groups() -> None:
    assert {"run", "status", "dev", "service"} < names()


@pytest.mark.parametrize("words", [["status", "--data-dir", "run"], ["dev", "status"], ["run"]])
def test_a_command_that_is_called_is_built_alone_and_afterwards_all_are_back(words: list[str]) -> None:
    before = names()
    with suppress(KeyError), only_called(words):
        assert names() == {words[0]}
        raise KeyError
    assert names() == before


@pytest.mark.parametrize("words", [[], ["--help"], ["--version", "status"], ["statsu"], ["--", "status"]])
def test_whoever_names_none_is_shown_all(words: list[str]) -> None:
    before = names()
    with only_called(words):
        assert names() == before
