"""The log's file on a real disk: rotated, moved away, torn, full."""

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import structlog

from civicsky.log import configure, event, to_file
from civicsky.logfile import LogFile, path_of
from civicsky.logs import Line, Tail
from civicsky.settings import Log


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.fixture
def files() -> Iterator[Callable[[Path, int, int], LogFile]]:
    """Makes files that are closed in the end."""
    with ExitStack() as stack:
        yield lambda path, size, n: stack.enter_context(closing(LogFile(path, size, n)))


@pytest.fixture
def tails() -> Iterator[Callable[[Path, bool], Tail]]:
    with ExitStack() as stack:
        yield lambda path, former: stack.enter_context(closing(Tail(path, former=former)))


Files = Callable[[Path, int, int], LogFile]
Tails = Callable[[Path, bool], Tail]


def told(path: Path) -> list[str]:
    """All lines of the file and its former selves, the oldest first."""
    with closing(Tail(path, former=True)) as tail:
        return [found.text for found in tail.lines()]


def events(lines: list[str]) -> list[tuple[str, Any]]:
    return [(found["event"], found.get("n")) for found in map(json.loads, lines)]


def test_a_file_is_rotated_by_size_and_there_are_never_more_than_so_many(tmp_path: Path, files: Files) -> None:
    path = tmp_path / "civicsky.log"
    file = files(path, 1000, 3)
    for n in range(200):
        assert file.write(f"{n:03} " + "x" * 95) == ""
    names = sorted(found.name for found in tmp_path.iterdir())
    assert names == ["civicsky.log", "civicsky.log.1", "civicsky.log.2"]
    assert sum(found.stat().st_size for found in tmp_path.iterdir()) <= 3 * 1000
    assert [text[:3] for text in told(path)] == [f"{n:03}" for n in range(200 - len(told(path)), 200)]


def test_it_is_for_its_owner_alone_and_its_folder_is_made(tmp_path: Path, files: Files) -> None:
    path = tmp_path / "logs" / "civicsky.log"
    before = os.umask(0)
    try:
        assert files(path, 1000, 2).write("x") == ""
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_file_that_somebody_moves_or_removes_is_made_anew(tmp_path: Path, files: Files) -> None:
    path = tmp_path / "civicsky.log"
    file = files(path, 10_000, 2)
    file.write("one")
    path.rename(tmp_path / "mine")
    file.write("two")
    path.unlink()
    file.write("three")
    assert ((tmp_path / "mine").read_text(), path.read_text()) == ("one\n", "three\n")


def test_half_a_line_that_a_killed_process_left_is_ended(tmp_path: Path, files: Files) -> None:
    path = tmp_path / "civicsky.log"
    path.write_text('{"event": "min')
    files(path, 10_000, 2).write("next")
    assert path.read_text() == '{"event": "min\nnext\n'


def test_each_half_has_a_file_of_its_own() -> None:
    folder = Path("/data")
    assert path_of("civicsky.log", folder, "both") == Path("/data/civicsky.log")
    assert path_of("civicsky.log", folder, "collect") == Path("/data/civicsky-collect.log")
    assert path_of("/var/log/c.txt", folder, "label") == Path("/var/log/c-label.txt")


def test_with_a_file_standard_error_stays_empty_and_the_file_has_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(Log(format="console"))
    path = tmp_path / "civicsky.log"
    with to_file(path, Log()):
        event("source_down", why="x\ny\u202e\udcff")
    event("summary")
    assert "source_down" not in (err := capsys.readouterr().err)
    assert "summary" in err
    (line,) = path.read_text().splitlines()
    assert (json.loads(line)["event"], json.loads(line)["why"]) == ("source_down", "x?y?\udcff")


@pytest.mark.parametrize("fault", ["a full disk", "no rights", "a folder"])
def test_a_file_that_cannot_be_written_ends_nothing_and_its_lines_stand_on_standard_error(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "logs" / "civicsky.log"
    if fault == "a full disk":
        path.parent.mkdir()
        path.symlink_to("/dev/full")
    elif fault == "no rights":
        path.parent.write_text("a file where the folder should be")
    else:
        path.mkdir(parents=True)
    configure(Log(format="json"))
    with to_file(path, Log()):
        event("minute", n=1)
        event("minute", n=2)
        if fault == "no rights":
            path.parent.unlink()
        else:
            path.unlink() if path.is_symlink() else path.rmdir()
        event("minute", n=3)
        event("minute", n=4)
    said = events(capsys.readouterr().err.splitlines())
    assert said == [("log_down", None), ("minute", 1), ("minute", 2)]
    assert events(path.read_text().splitlines()) == [("minute", 3), ("log_up", None), ("minute", 4)]


def test_a_pipe_that_nobody_reads_holds_nobody_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "civicsky.log"
    os.mkfifo(path)
    configure(Log(format="json"))
    with to_file(path, Log()):
        event("minute", n=1)
    assert events(capsys.readouterr().err.splitlines()) == [("log_down", None), ("minute", 1)]


def test_a_thread_that_hangs_in_the_file_holds_no_other_one_up(tmp_path: Path, files: Files) -> None:
    file = files(tmp_path / "civicsky.log", 1000, 2)
    hangs, over = Event(), Event()

    def hang() -> None:
        assert file.lock is not None
        with file.lock:
            hangs.set()
            over.wait()

    thread = Thread(target=hang)
    thread.start()
    hangs.wait()
    assert file.write("x") == "another thread hangs in it"
    over.set()
    thread.join()
    assert file.write("x") == ""


# ---- reading while it is written -------------------------------------------------------------------------------------


def texts(tail: Tail) -> list[str]:
    found: list[Line] = list(tail.lines())
    return [one.text for one in found]


def test_who_follows_misses_no_line_and_sees_none_twice_however_often_the_file_is_rotated(
    tmp_path: Path, files: Files, tails: Tails
) -> None:
    path = tmp_path / "civicsky.log"
    tail, file = tails(path, True), files(path, 300, 6)
    assert texts(tail) == [], "it is not there yet"
    seen: list[str] = []
    n = 0
    for step in (1, 2, 5, 0, 12, 3, 1, 9):  # of some ten lines a file, so up to two rotations between two looks
        for _ in range(step):
            file.write(f"{n:04} " + "x" * 25)
            n += 1
        seen += texts(tail)
    assert [text[:4] for text in seen] == [f"{at:04}" for at in range(n)]


def test_who_follows_goes_on_with_the_oldest_there_is_when_it_fell_behind(
    tmp_path: Path, files: Files, tails: Tails
) -> None:
    path = tmp_path / "civicsky.log"
    tail, file = tails(path, True), files(path, 100, 2)
    file.write("first")
    assert texts(tail) == ["first"]
    for n in range(50):
        file.write(f"{n:02} " + "x" * 25)
    found = [text[:2] for text in texts(tail)]
    had, rest = found[:3], found[3:]
    assert had == ["00", "01", "02"], "what stood in the file that it had open"
    assert len(rest) > 2
    assert rest == [f"{at:02}" for at in range(50 - len(rest), 50)]


def test_who_follows_goes_on_after_a_file_was_cut_short_or_replaced(tmp_path: Path, tails: Tails) -> None:
    path = tmp_path / "x.log"
    tail = tails(path, False)
    path.write_text("one\ntwo\n")
    assert texts(tail) == ["one", "two"]
    path.write_text("3\n")
    assert texts(tail) == ["3"]
    path.unlink()
    assert texts(tail) == []
    path.write_text("four\n")
    assert texts(tail) == ["four"]


def test_a_line_is_given_when_it_is_whole(tmp_path: Path, tails: Tails) -> None:
    path = tmp_path / "x.log"
    tail = tails(path, False)
    path.write_text("on")
    assert texts(tail) == []
    with path.open("a") as more:
        more.write("e\ntw")
    assert texts(tail) == ["one"]
    assert [found.text for found in tail.unfinished()] == ["tw"]
