"""Our lines in a crontab, read by the real shell, and everybody else's lines left alone."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from civicsky.errors import Usage
from civicsky.setup.crontab import KINDS, MAX_COMMAND_BYTES, Kind, kind_of, line, merged
from support.tried import tried

DATA = Path("/data")
FETCH = line("fetch", "15 * * * *", ["/bin/civicsky", "fetch"], DATA, DATA / "cron.log")
LATER = line("fetch", "45 * * * *", ["/bin/civicsky", "fetch"], DATA, DATA / "cron.log")
ALIVE = line("keep-alive", "*/5 * * * *", ["/bin/civicsky", "run"], DATA, DATA / "cron.log")
BOTH: dict[Kind, str | None] = {"fetch": FETCH, "keep-alive": ALIVE}
NONE: dict[Kind, str | None] = dict.fromkeys(KINDS)
THEIRS = [
    "",
    "# a comment\n",
    "MAILTO=me@example.org\nSHELL = /bin/bash\n\n0 3 * * * backup  # civicsky is not this\n",
    "0 3 * * * windows\r\n# also\r\n",
    "0 3 * * * no end",
    "\n\n0 3 * * * 50\\% done\n\n",
    "0 3 * * * caf\udce9 # bytes that are no UTF-8\n",
    f"#{FETCH}\n",
    "15 * * * * x # civicsky fetch: /data2\n15 * * * * x # civicsky fetch: /other/data\n",
]


def as_cron_hands_it(one: str) -> str:
    """The command of a line as the shell gets it: after five fields, with \\% undone (man 5 crontab)."""
    command = one.split(" ", 5)[5]
    assert "%" not in command.replace("\\%", ""), "cron would cut the command here"
    return command.replace("\\%", "%")


@pytest.mark.parametrize("theirs", THEIRS)
def test_installing_twice_gives_one_line_of_each_kind_and_touches_no_other(theirs: str) -> None:
    once = merged(theirs, DATA, BOTH)
    end = "" if not theirs or theirs.endswith("\n") else "\n"
    assert once == f"{theirs}{end}{FETCH}\n{ALIVE}\n"
    assert merged(once, DATA, BOTH) == once
    assert merged(once, DATA, NONE) == theirs + end


def test_a_folder_whose_name_ends_in_a_space_has_one_line_too() -> None:
    folder = Path("/my data ")
    lines: dict[Kind, str | None] = {"fetch": line("fetch", "15 * * * *", ["/bin/civicsky"], folder, folder / "log")}
    once = merged("", folder, lines)
    assert merged(once, folder, lines) == once
    assert merged(once, folder, {"fetch": None}) == ""


@pytest.mark.parametrize("theirs", THEIRS)
def test_taking_out_what_is_not_there_changes_nothing(theirs: str) -> None:
    assert merged(theirs, DATA, NONE) == theirs


def test_a_changed_line_replaces_its_former_self_where_it_stood() -> None:
    text = f"a\n{FETCH}\nb\n{ALIVE}\n"
    assert merged(text, DATA, {"fetch": LATER}) == f"a\n{LATER}\nb\n{ALIVE}\n"
    assert merged(text, DATA, {"fetch": None}) == f"a\nb\n{ALIVE}\n"
    assert merged(f"{FETCH}\na\n{FETCH}\n", DATA, {"fetch": LATER}) == f"{LATER}\na\n", "a double one goes"
    assert merged(f"{FETCH}\r\na\r\n", DATA, {"fetch": LATER}) == f"{LATER}\na\r\n", "as an editor left it"
    assert merged(f"a\n{FETCH}", DATA, {"fetch": LATER}) == f"a\n{LATER}\n"


def test_each_data_directory_has_lines_of_its_own() -> None:
    other = Path("/data2")
    theirs = line("fetch", "15 * * * *", ["/bin/civicsky", "fetch"], other, other / "cron.log")
    both = merged(merged("", DATA, {"fetch": FETCH}), other, {"fetch": theirs})
    assert both == f"{FETCH}\n{theirs}\n"
    assert merged(both, DATA, NONE) == f"{theirs}\n"
    assert kind_of(theirs, DATA) is None


@given(st.lists(st.text(st.characters(exclude_characters="\n", codec="utf-8"), max_size=20), max_size=5), st.booleans())
def test_whatever_stands_there_comes_back_as_it_was(lines: list[str], ended: bool) -> None:
    theirs = "\n".join(lines) + ("\n" if ended else "")
    once = merged(theirs, DATA, BOTH)
    assert once.startswith(theirs)
    assert merged(merged(once, DATA, BOTH), DATA, NONE) in {theirs, theirs + "\n"}


WORDS = [
    "plain", "two words", "it's", 'a "quote"', "50%", "%%", "$HOME", "`id`", "$(id)", "a;b", "a&b", "a|b", "#", "*",
    "~", "!!", "{a,b}", "-n", "é", "日本", "a=b", "''", "%'%",
]  # fmt: skip


def argv_of(words: list[str], folder: Path) -> list[str]:
    """What a program gets that a line of ours starts as cron does; it writes it into the line's log."""
    code = "import sys, json; print(json.dumps(sys.argv[1:]), flush=True); print('oh', file=sys.stderr)"
    program = [sys.executable, "-c", code]
    log = folder / "cron.log"
    command = as_cron_hands_it(line("fetch", "1 * * * *", [*program, *words], folder, log))
    ran = subprocess.run(["/bin/sh", "-c", command], env={}, cwd="/", capture_output=True, check=True, timeout=60)
    assert (ran.stdout, ran.stderr) == (b"", b""), "nothing is left for cron to mail"
    shown, error = log.read_text(encoding="utf-8").splitlines()
    assert error == "oh", "standard error is in the log, too"
    found: list[str] = json.loads(shown)
    return found


def test_any_word_reaches_the_program_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s "50%" of $HOME é'
    folder.mkdir()
    assert argv_of(WORDS, folder) == WORDS


@tried(20)
@given(
    st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"], exclude_characters="\\"), max_size=30)
)
def test_any_text_reaches_the_program_as_it_is(tmp_path_factory: pytest.TempPathFactory, word: str) -> None:
    assert argv_of([word], tmp_path_factory.mktemp("words")) == [word]


@pytest.mark.parametrize("name", ["a\nb", "a\\b", "a\rb", "a\x00b", "a\x1bb", os.fsdecode(b"a\xffb")])
def test_a_path_that_cron_cannot_be_given_is_refused(name: str) -> None:
    with pytest.raises(Usage, match="rename it"):
        line("fetch", "1 * * * *", ["/bin/civicsky", f"/{name}"], DATA, DATA / "cron.log")
    with pytest.raises(Usage, match="rename it"):
        line("fetch", "1 * * * *", ["/bin/civicsky"], Path("/") / name, DATA / "cron.log")


def test_a_command_that_cron_would_cut_off_is_refused() -> None:
    def of(n: int) -> str:
        return line("fetch", "1 * * * *", ["/bin/civicsky", "x" * n], DATA, DATA / "cron.log")

    fits = MAX_COMMAND_BYTES - len(of(1).split(" ", 5)[5]) + 1
    assert len(of(fits).split(" ", 5)[5]) == MAX_COMMAND_BYTES
    with pytest.raises(Usage, match="longer than the 998 bytes that cron takes"):
        of(fits + 1)


def test_a_line_names_its_data_directory_for_people() -> None:
    assert FETCH == "15 * * * * /bin/civicsky fetch >> /data/cron.log 2>&1 # civicsky fetch: /data"
    assert shlex.split(as_cron_hands_it(FETCH), comments=True)[:2] == ["/bin/civicsky", "fetch"]
