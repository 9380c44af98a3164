"""The README's help is the command's, links lead somewhere, and the version is told the same everywhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from civicsky import __version__
from docs.pages import ROOT, anchor, page

PAGES = sorted(
    str(file.relative_to(ROOT)) for file in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")] if file.is_file()
)


def fenced_after(text: str, line: str) -> str:
    """What a page shows as a command's output: the block after its line, or the rest of the block with that line."""
    lines = text.splitlines()
    at = next((n for n, found in enumerate(lines) if found.strip().strip("`") == line), None)
    assert at is not None, f"there is no line {line!r}"
    rest = lines[at + 1 :]
    while rest and not rest[0].strip():
        rest = rest[1:]
    if rest and rest[0].startswith("```"):
        rest = rest[1:]
    return "\n".join(rest[: next(n for n, found in enumerate(rest) if found.startswith("```"))])


def test_the_readmes_help_is_the_commands() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CIVICSKY_")}
    real = subprocess.run(
        [Path(sys.executable).with_name("civicsky"), "--help"],
        env={**environment, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    shown = fenced_after(page("README.md"), "$ civicsky --help")
    assert [line.rstrip() for line in shown.strip().splitlines()] == [
        line.rstrip() for line in real.strip().splitlines()
    ]


@pytest.mark.parametrize("name", PAGES)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    text = re.sub(r"^```.*?^```$", "", page(name), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", text):
        if re.match(r"[a-z+]+:", target):
            continue
        path, _, place = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), f"{name}: {target}"
        if place:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert place in map(anchor, headings), f"{name}: {target}"


def test_the_links_are_found_at_all() -> None:
    assert "docs/development.md" in page("CONTRIBUTING.md")
    assert len(PAGES) >= 8


def test_changelog_and_citation_tell_the_version() -> None:
    (release,) = re.findall(rf"^## {re.escape(__version__)} - (\d{{4}}-\d\d-\d\d)$", page("CHANGELOG.md"), re.MULTILINE)
    citation = page("CITATION.cff").splitlines()
    assert f"version: {__version__}" in citation
    assert f"date-released: {release}" in citation
