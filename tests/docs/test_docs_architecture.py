"""docs/architecture.md and docs/development.md name the files, tests and crash points that there are."""

import re
from typing import get_args

from civicsky.faults import Place
from civicsky.settings import Group, Settings
from docs.pages import ROOT, named, page, quoted, rows, section

ARCHITECTURE, DEVELOPMENT = "docs/architecture.md", "docs/development.md"
PACKAGE = ROOT / "service" / "civicsky"


def existing_tests() -> set[str]:
    sources = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    return set(re.findall(r"^\s*(?:async )?def (test_\w+)\(", sources, re.MULTILINE))


def test_every_guarantee_names_a_test_and_every_test_it_names_exists() -> None:
    there = existing_tests()
    table, _, _ = section(ARCHITECTURE, "Guarantees").partition("Where they end today")
    _, *guarantees = rows(table)
    assert len(guarantees) >= 11
    for guarantee, _, tests in guarantees:
        names = [name for name in quoted(tests) if name.startswith("test_")]
        assert names, f"no test is named for: {guarantee}"
        assert set(names) <= there, f"no such test: {set(names) - there}"


def test_every_test_that_the_readme_names_exists() -> None:
    names = {name for name in quoted(page("README.md")) if name.startswith("test_")}
    assert names <= existing_tests()


def test_every_stage_has_its_word_its_file_and_its_settings() -> None:
    told = named(section(ARCHITECTURE, "The flow"))
    groups = {name for name, info in Settings.model_fields.items() if isinstance(info.default, Group)}
    assert groups - {"backup", "log", "limits", "health", "http", "notify", "workers"} <= set(told)
    for word, (files, _) in told.items():
        assert f"{word}.py" in quoted(files)


def test_every_file_of_the_package_is_named_and_no_other() -> None:
    told = {name for name in quoted(page(ARCHITECTURE)) if re.fullmatch(r"\w+\.py", name)}
    assert told == {file.name for file in PACKAGE.rglob("*.py")} - {"__init__.py", "__main__.py"}


def test_every_crash_point_is_told() -> None:
    told = {word.partition("=")[2].partition(":")[0] for word in quoted(section(DEVELOPMENT, "Crash points"))}
    assert {*get_args(Place), "worker.record"} <= told


def test_every_target_of_the_makefile_is_told() -> None:
    (targets,) = re.findall(r"^\.PHONY: (.*)$", page("Makefile"), re.MULTILINE)
    assert list(named(section(DEVELOPMENT, "Set-up"))) == [f"make {target}" for target in targets.split()]


def test_every_lock_file_is_told() -> None:
    told = quoted(section(DEVELOPMENT, "Lock files"))
    for file in (ROOT / "requirements").glob("*.txt"):
        assert f"requirements/{file.name}" in told
