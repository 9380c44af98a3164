"""CHANGELOG.md says in each version what changes labels or filtering, and names what is in force today."""

import re

import pytest

from civicsky import __version__, filter as filters
from civicsky.prompt import prompt_hash
from civicsky.task import load_task
from docs.pages import page

VERSIONS = re.split(r"^## ", page("CHANGELOG.md"), flags=re.MULTILINE)[1:]
HEADING = "### Changes labels or filtering\n\n"
TASK = load_task("civic")[0]


def measured(version: str) -> str:
    """What a version says of it."""
    return re.split(r"^### ", version.partition(HEADING)[2], maxsplit=1, flags=re.MULTILINE)[0]


def test_the_newest_version_stands_first() -> None:
    assert VERSIONS[0].startswith(("Unreleased\n", f"{__version__} "))


@pytest.mark.parametrize("version", VERSIONS, ids=lambda text: text.partition("\n")[0])
def test_each_version_says_what_changes_labels_or_filtering(version: str) -> None:
    assert version.count(HEADING) == 1
    assert measured(version).startswith("- "), "where nothing changed, that is said"


def newest(pattern: str) -> str:
    """What the newest version that says anything of it says."""
    found = [match[1] for match in (re.search(pattern, measured(version)) for version in VERSIONS) if match]
    assert found, pattern
    return found[0]


def test_the_filters_version_named_there_is_todays() -> None:
    assert newest(r"filter's version is `([^`]+)`") == filters.VERSION


def test_the_packaged_tasks_version_named_there_is_todays() -> None:
    assert newest(r"task `civic` has version `([^`]+)`") == TASK.version


@pytest.mark.parametrize("way", ["schema", "json", "plain", "words"])
def test_the_packaged_tasks_prompts_named_there_are_todays(way: str) -> None:
    """So no word of a prompt changes without being told."""
    assert newest(rf"`([0-9a-f]{{8}})`\s+\(`{way}`\)") == prompt_hash(TASK, way)[:8]  # type: ignore[arg-type]
