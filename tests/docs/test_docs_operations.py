"""docs/operations.md tells every command, event, file and exit code as the code has them."""

import ast
import re
from typing import get_args

import typer

from civicsky import datadir, errors
from civicsky.app import minute_line
from civicsky.backups import NOTES
from civicsky.cli.main import run_command  # noqa: F401  (it has all commands)
from civicsky.cli.options import app
from civicsky.health import MEANINGS
from civicsky.loading import documented
from civicsky.log import EVENTS
from civicsky.login import SESSION
from civicsky.metrics import Metrics
from civicsky.notify.notices import ABOUT, Kind, Notice, Who, message as message_of
from civicsky.notify.outbox import file_of
from civicsky.notify.ways import bare_environment
from civicsky.sqlite import UPGRADES
from docs.pages import ROOT, anchor, named, page, quoted, rows, section

OPERATIONS = "docs/operations.md"
IN_EVERY_COMMAND = {"--help"}
NO_SETTINGS = {
    "--json", "--drain", "--limit", "--offline", "--seconds", "--verbose",
    "--from-local", "--again", "--task", "--since", "--until", "--where", "--out", "--way", "--field", "--gold", "--by",
    "--counts", "--verify", "--authors",
    "--due", "--if-not-running", "--posts", "--origin",
    "--cron", "--timer", "--systemd", "--split", "--keep-alive", "--print", "--keep",
    "--format", "--table", "--level", "--prompt", "--key-file", "--live", "--url", "--follow", "--stage", "--event",
    "--yes", "--force", "--frames",
    "--annotator", "--adjudicate", "--rejects", "--among", "--seed", "--draw", "--new", "--port", "--text",
}  # fmt: skip

OF_ITS_OWN = {("civicsky export", "--model")}
"""A flag that means something else there than the setting that it is called like."""


def commands(group: typer.core.TyperGroup, name: str = "civicsky") -> dict[str, set[str]]:
    """Every command with its options."""
    found: dict[str, set[str]] = {}
    for word, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            found |= commands(command, f"{name} {word}")
        else:
            options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
            found[f"{name} {word}"] = options - IN_EVERY_COMMAND
    return found


def test_every_event_is_told_with_its_level() -> None:
    told = {name: cells[0] for name, cells in named(section(OPERATIONS, "Events")).items()}
    assert told == {name: meaning.partition(":")[0] for name, meaning in EVENTS.items()}


def test_every_condition_is_told_with_its_bound_and_its_meaning() -> None:
    told = {name: cells for name, cells in named(section(OPERATIONS, "Health")).items() if len(cells) == 3}
    assert list(told) == list(MEANINGS)
    known = {name: default for name, default, _ in documented()}
    for name, meaning in MEANINGS.items():
        setting, default, words = told[name]
        assert default == f"{float(known[setting.strip('`')]):g} s", name
        assert words.startswith(meaning), name


def test_every_field_of_the_minute_line_is_told() -> None:
    told = {name for name, cells in named(section(OPERATIONS, "The `minute` line")).items() if cells}
    assert told - {"ok", "degraded", "bad"} == set(minute_line(Metrics()))


def test_every_health_is_told() -> None:
    metrics = Metrics()
    seen = {metrics.health()[0]}
    metrics.store_why = "away"
    seen.add(metrics.health()[0])
    metrics.relay_why = "away"
    seen.add(metrics.health()[0])
    assert len(seen) == 3
    assert seen <= set(named(section(OPERATIONS, "The `minute` line")))


def test_every_exit_code_is_told() -> None:
    codes = {str(value) for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert {first for first, *_ in rows(section(OPERATIONS, "Exit codes"))} - {"exit code"} == codes


def test_every_command_is_told_with_its_options() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    told = {name: set(re.findall(r"--[a-z-]+", " ".join(cells))) for name, cells in commands_told().items()}
    assert told == commands(group)


def commands_told() -> dict[str, list[str]]:
    return named(section(OPERATIONS, "Commands"))


def test_every_flag_that_is_a_setting_is_told_with_its_commands() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    real: dict[str, set[str]] = {}
    for command, options in commands(group).items():
        for option in options - NO_SETTINGS if " dev " not in command and command != "civicsky demo" else ():
            if (command, option) not in OF_ITS_OWN:
                real.setdefault(option, set()).add(command.removeprefix("civicsky "))
    told = named(section("docs/configuration.md", "Flags"))
    assert {flag: set(quoted(cells[1])) for flag, cells in told.items()} == real
    settings = {name for name, _, _ in documented()}
    assert {cells[0].strip("`") for cells in told.values()} <= settings | {"the file"}


def test_every_message_with_a_remedy_is_one_that_we_give() -> None:
    sources = [ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "service/civicsky").rglob("*.py")]
    texts = [
        node.value
        for source in sources
        for node in ast.walk(source)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    for first, remedy in rows(section(OPERATIONS, "Messages"))[1:]:
        assert remedy
        for message in quoted(first):
            for part in filter(None, map(str.strip, re.split(r"\.\.\.", message))):
                assert any(part in text for text in texts), message


def test_every_file_of_the_data_directory_is_told() -> None:
    told = quoted(section(OPERATIONS, "Files"))
    for file in (
        datadir.JOURNAL,
        datadir.LEDGER,
        datadir.POSTS,
        "collect.lock",
        "label.lock",
        "fetch.lock",
        "backup.lock",
        SESSION,
        NOTES,
        f"{UPGRADES}/",
    ):
        assert file in told
    assert {file_of("collect"), file_of("label")} <= set(told)


def test_every_problem_kind_and_field_of_a_message_is_told_and_its_section_is_there() -> None:
    text = section(OPERATIONS, "Being told")
    values = message_of(Notice("test", "test", "", 0, 0), Who("", "", "", "", ""), "")
    in_first_cells = [name for first, *_ in rows(text) for name in quoted(first)]
    assert in_first_cells == [*ABOUT, *values]
    assert set(get_args(Kind)) <= set(quoted(" ".join(named(text)["kind"])))
    assert {name for name in bare_environment(values) if name != "LANG"} <= set(quoted(text))
    headings = {anchor(heading) for heading in re.findall(r"^#+ (.*)$", page(OPERATIONS), re.MULTILINE)}
    assert {about.section for about in ABOUT.values()} <= headings


def test_every_page_of_the_documentation_is_led_to_by_another() -> None:
    pages = ["architecture", "configuration", "operations", "cluster", "codebook", "research", "development"]
    everything = "\n".join(page(f"docs/{name}.md") for name in pages) + page("README.md") + page("CONTRIBUTING.md")
    for name in pages:
        assert f"{name}.md" in everything
