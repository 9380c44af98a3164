"""Whatever the pages and scripts tell to type is something that the command line takes."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from civicsky.cli.main import run_command  # noqa: F401  (it has all commands)
from civicsky.cli.options import app
from conftest import skip
from docs.pages import ROOT, page
from docs.test_docs_operations import commands

PAGES = ["README.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "deploy" / "slurm").iterdir())
PROGRAM = re.compile(r"(?:\S*/)?civicsky|\$CIVICSKY")
BEFORE = re.compile(r"\w+=\S*|exec|nohup|env|\*/?\S*|\d+|@\w+")
"""What may stand before a program: variables, the shell's words, and the times of a crontab."""


def lines(text: str) -> list[str]:
    """Lines of a shell, continued ones joined, without what is only shown."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [line.strip().removeprefix("$ ") for line in joined.splitlines()]


def typed(text: str) -> list[list[str]]:
    """The words of every call of ours in a text, the program itself left out."""
    found = []
    for line in lines(text):
        for part in re.split(r" && | \|\| | \| |; ", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # a quotation mark of a message
                continue
            while words and BEFORE.fullmatch(words[0]):
                words.pop(0)
            if words and PROGRAM.fullmatch(words[0]):
                found.append(words[1:])
    return found


def fenced(name: str) -> str:
    """The blocks of a page that a shell is given, or that show one."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page(name), re.MULTILINE | re.DOTALL)
    return "\n".join(text for language, text in found if language in {"", "sh", "bash"})


def quoted_calls(name: str) -> str:
    """Calls in the middle of a sentence, in backticks."""
    plain = re.sub(r"^```.*?^```$", "", page(name), flags=re.MULTILINE | re.DOTALL)
    return "\n".join(" ".join(one.split()) for one in re.findall(r"`(civicsky [^`]+)`", plain))


def fault(words: list[str]) -> str:
    """Why the command line would not take these; empty when it does."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    known = commands(group)
    if not words or words[0] in {"--help", "--version", "COMMAND"}:
        return ""
    name = next((name for n in (2, 1) if (name := " ".join(["civicsky", *words[:n]])) in known), None)
    if name is None:
        is_group = any(one.startswith(f"civicsky {words[0]} ") for one in known)
        return "" if is_group and len(words) == 1 else f"no command: {words}"
    flags = {re.split("[=|]", word)[0] for word in words if word.startswith("--")} - {"--help"}
    return f"{name} has no {flags - known[name]}" if flags - known[name] else ""


@pytest.mark.parametrize("name", PAGES)
def test_every_command_that_a_page_tells_to_type_is_there_with_its_flags(name: str) -> None:
    calls = typed(fenced(name)) + typed(quoted_calls(name))
    assert [wrong for words in calls if (wrong := fault(words))] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_command_that_a_script_calls_is_there_with_its_flags(name: str) -> None:
    assert [wrong for words in typed(page(name)) if (wrong := fault(words))] == []


def test_calls_are_found_and_a_wrong_one_is_told() -> None:
    assert len(typed(fenced("docs/cluster.md"))) > 12
    assert len(typed(page("deploy/slurm/civicsky.sbatch"))) == 3
    assert len(typed(fenced("docs/operations.md"))) > 14
    told = "$ civicsky run \\\n   --data-dir x  # why\nA=b /x/civicsky status --json && civicsky collect\n"
    told += "*/5 * * * * /x/civicsky label\n"
    assert typed(told) == [["run", "--data-dir", "x"], ["status", "--json"], ["collect"], ["label"]]
    assert not any(map(fault, typed(told)))
    for wrong in (["runs"], ["run", "--datadir", "x"], ["service", "instal"], ["status", "--relay"], ["dev"]):
        assert bool(fault(wrong)) == (wrong != ["dev"])


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_for_a_cluster_are_read_by_bash_and_shellcheck_without_a_word(name: str) -> None:
    assert subprocess.run(["bash", "-n", ROOT / name], capture_output=True, check=False).stderr == b""
    if not shutil.which("shellcheck"):
        skip("shellcheck is not installed (Debian: shellcheck)")
    told = subprocess.run(["shellcheck", ROOT / name], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (0, "")


def test_every_script_is_named_by_the_page_for_clusters() -> None:
    for name in SCRIPTS:
        assert f"](../{name})" in page("docs/cluster.md"), name
    assert len(SCRIPTS) == 5
    assert Path(ROOT / "deploy/slurm/tunnel.sh").stat().st_mode & 0o100
