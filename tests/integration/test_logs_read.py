"""`civicsky logs` as it is used: followed, piped, ended, on files that a service writes and rotates, on a terminal."""

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from support.command import CIVICSKY, Ended, environment, finish, run, start, until

AT = "2026-11-24T00:37:{:02}.5Z"


def line(n: int, event: str = "minute", level: str = "info", **values: Any) -> str:
    return json.dumps({"stage": "source", **values, "n": n, "event": event, "level": level, "timestamp": AT.format(n)})


def write(path: Path, *lines: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{one}\n" for one in lines)


def numbers(text: str) -> list[int]:
    return [int(one.rpartition("n=")[2]) for one in text.splitlines()]


class Follower:
    """`civicsky logs --follow` with its output in a file, which can be looked at while it runs."""

    def __init__(self, out: Path, *args: str | Path) -> None:
        self._out = out
        with out.open("w") as stream:
            self.process = subprocess.Popen(
                [CIVICSKY, "logs", "--follow", *map(str, args)],
                env=environment(), stdout=stream, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip

    def text(self) -> str:
        return self._out.read_text(encoding="utf-8")

    def end(self) -> Ended:
        self.process.send_signal(signal.SIGINT)
        return finish(self.process)


@pytest.fixture
def followers() -> Iterator[list[Follower]]:
    made: list[Follower] = []
    yield made
    for one in made:
        with suppress(ProcessLookupError):
            one.process.kill()
        one.process.communicate()


def test_a_file_is_shown_with_what_is_no_json_and_chosen_from(tmp_path: Path) -> None:
    file = tmp_path / "x.log"
    write(file, line(1), line(2, "source_down", "warning"), "civicsky: the disk is full", line(3, stage="label"))
    whole = run("logs", file)
    assert (whole.code, whole.err, len(whole.out.splitlines())) == (0, "", 4)
    assert "civicsky: the disk is full" in whole.out.splitlines()
    assert numbers(run("logs", file, "--stage", "label").out) == [3]
    assert numbers(run("logs", file, "--event", "minute", "--event", "source_down").out) == [1, 2, 3]
    assert numbers(run("logs", file, "--event", "minute", "--since", AT.format(2)).out) == [3]
    assert run("logs", file, "--level", "warning").out.splitlines()[1:] == ["civicsky: the disk is full"]


def test_for_programs_the_lines_stay_json_and_jq_reads_them_all(tmp_path: Path) -> None:
    file = tmp_path / "x.log"
    write(file, line(1, why="é \x1b[2J"), "Traceback (most recent call last):", line(2))
    ended = run("logs", file, "--json")
    asked = subprocess.run(["jq", "-c", ".n, .why"], input=ended.out, capture_output=True, text=True, check=True)
    assert asked.stdout.split("\n") == ["1", '"é \\u001b[2J"', "2", "null", ""]


def test_standard_input_is_read_as_it_comes_and_ends_with_it(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(
            [CIVICSKY, "logs", "-"],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert process.stdin is not None
    process.stdin.write(line(1) + "\n")
    process.stdin.flush()
    until(lambda: numbers((tmp_path / "out").read_text()) == [1], "the first line, before the end")
    process.stdin.write("no end")
    assert finish(process).code == 0
    assert (tmp_path / "out").read_text().splitlines()[1:] == ["no end"]


def test_following_begins_with_the_last_ten_goes_over_rotations_and_ends_well_on_ctrl_c(
    tmp_path: Path, followers: list[Follower]
) -> None:
    file = tmp_path / "x.log"
    write(file, *map(line, range(15)))
    followers.append(follower := Follower(tmp_path / "out", file))
    until(lambda: numbers(follower.text()) == list(range(5, 15)), "the last ten")
    write(file, line(15))
    file.rename(tmp_path / "x.log.1")
    write(file, line(16))
    until(lambda: numbers(follower.text()) == list(range(5, 17)), "what came over a rotation")
    ended = follower.end()
    assert (ended.code, ended.err) == (0, "")


def test_a_file_that_is_not_there_yet_is_waited_for_and_without_following_it_is_an_error(
    tmp_path: Path, followers: list[Follower]
) -> None:
    file = tmp_path / "x.log"
    ended = run("logs", file)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("civicsky: ")
    assert "is not there" in ended.err
    followers.append(follower := Follower(tmp_path / "out", file))
    write(file, line(1))
    until(lambda: numbers(follower.text()) == [1], "the first line of a new file")
    assert follower.end().code == 0


def test_a_reader_that_has_seen_enough_ends_it_without_a_word(tmp_path: Path) -> None:
    file = tmp_path / "x.log"
    write(file, *[line(1)] * 20_000)
    for words in ([], ["--follow"], ["--follow", "--since", "2026-11-01"], ["--json"]):
        process = start("logs", file, *words)
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == "", words
        process.stderr.close()
        assert process.wait(60) == 0, words


def test_on_a_terminal_there_is_colour_and_no_escape_of_the_lines_own(tmp_path: Path) -> None:
    file = tmp_path / "x.log"
    write(
        file, line(1, "source_down", "warning", why="\x1b[2J\u202e"), "raw \x1b[2J \x9b31m \u202e", "\x1b]0;title\x07"
    )
    for words, escapes in ((["logs", file], {"\x1b[33m", "\x1b[0m"}), (["logs", file, "--json"], set())):
        master, slave = pty.openpty()
        settled = {**environment(), "TERM": "xterm"}
        subprocess.run([CIVICSKY, *map(str, words)], env=settled, stdout=slave, check=True)
        os.close(slave)
        shown = b""
        with suppress(OSError):  # a terminal without a writer
            while data := os.read(master, 65536):
                shown += data
        os.close(master)
        text = shown.decode()
        assert {part[: part.find("m") + 1] for part in ("\x1b" + rest for rest in text.split("\x1b")[1:])} == escapes
        assert not any(char in text for char in ("\u202e", "\x9b", "\x07"))


@pytest.mark.parametrize("halves", [("run",), ("collect", "label")])
def test_a_services_own_files_are_found_and_read_in_the_order_of_time(
    halves: tuple[str, ...], relay: str, model: tuple[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    for half in halves:
        words = ["--max-posts", "50"] if half != "label" else ["--drain"]
        asks = ["--model-url", model[0], "--model", "mock"] if half != "collect" else []
        relays = ["--relay", relay] if half != "label" else []
        ended = run(
            half, *words, *asks, *relays, "--data-dir", folder, "--log-file", "civicsky.log",
            source__start="window", log__minute_seconds=0.01, log__file_megabytes=0.002, log__files=60,
        )  # fmt: skip
        assert (ended.code, ended.err) == (0, ""), "with a file nothing stands on standard error"
    names = {path.name for path in folder.glob("civicsky*.log*")}
    assert (
        {"civicsky.log.1"} <= names if halves == ("run",) else {"civicsky-collect.log", "civicsky-label.log"} <= names
    )
    assert all(path.stat().st_mode & 0o77 == 0 for path in folder.glob("civicsky*.log*"))
    found = [json.loads(one) for one in run("logs", "--data-dir", folder, "--json").out.splitlines()]
    assert [one["timestamp"] for one in found] == sorted(one["timestamp"] for one in found)
    (first, *_), last = [one["event"] for one in found], found[-1]["event"]
    assert (first, last) == ("started", "summary")


def test_where_there_is_no_log_one_line_says_what_to_do(tmp_path: Path) -> None:
    ended = run("logs", "--data-dir", tmp_path)
    assert ended.code == 2
    assert ended.err.startswith("civicsky: no log found: neither ")
    assert ended.err.endswith("; name a FILE, or give the service --log-file FILE\n")
    assert ended.err.count("\n") == 1
    assert run("logs", tmp_path).err.endswith("is a folder; name a file in it\n")


def test_a_second_service_does_not_touch_the_first_ones_file(relay: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    words = ("collect", "--relay", relay, "--data-dir", folder, "--log-file", "x.log")
    first = start(*words)
    file = folder / "x-collect.log"
    until(lambda: file.exists() and '"event": "started"' in file.read_text(), "the first to start")
    second = run(*words)
    assert (second.code, second.err.count("is held by")) == (2, 1)
    first.send_signal(signal.SIGTERM)
    assert finish(first).code == 0
    assert file.read_text().count('"event": "started"') == 1


def test_an_event_that_there_is_not_is_a_typing_error_and_not_an_empty_answer(tmp_path: Path) -> None:
    write(tmp_path / "log", line(1))
    ended = run("logs", tmp_path / "log", "--event", "minutes")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "civicsky: --event minutes: there is no such event; docs/operations.md lists them\n"
