"""Lines of a log, whoever wrote them, as they are shown to people and handed to programs."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from civicsky import logs
from civicsky.errors import Usage
from civicsky.log import _UNSAFE
from civicsky.logs import Cutter, Line, Reader, Tail, Wanted, as_json, as_text, is_wanted, moment
from civicsky.model import now_us, parse_time

AT = "2026-11-24T00:37:49.205928Z"
DOWN = {"stage": "source", "why": "no answer in time", "n": 3, "event": "source_down", "level": "warning"}


def line(values: Any, at: str = AT) -> Line:
    return Reader().read(json.dumps({**values, "timestamp": at}).encode())


def test_a_line_is_shown_as_time_level_stage_event_and_values() -> None:
    shown = as_text(line(DOWN), colour=False)
    assert shown == '2026-11-24T00:37:49Z warning source  source_down       why="no answer in time" n=3'


def test_colour_is_put_around_the_same_words() -> None:
    shown = as_text(line(DOWN), colour=True)
    assert "\x1b[33m" in shown
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown) == as_text(line(DOWN), colour=False)


def test_a_value_can_be_told_from_another_key() -> None:
    shown = as_text(line({**DOWN, "why": 'x" level=error host=evil', "m": {"a": ["b c"]}, "none": None}), colour=False)
    assert shown.endswith(r'why="x\" level=error host=evil" n=3 m={"a": ["b c"]} none=null')


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(), lambda inner: st.lists(inner)
                    | st.dictionaries(st.text(), inner), max_leaves=20))  # fmt: skip
def test_whatever_a_line_holds_nothing_of_it_moves_a_terminal(value: Any) -> None:
    hostile = {"event": value, "level": value, "stage": value, "timestamp": value, "\x1b]0;x\x07\u202e": value}
    for found in (Reader().read(json.dumps(hostile).encode()), Reader().read(json.dumps([value]).encode())):
        shown = as_text(found, colour=False)
        assert shown == _UNSAFE.sub("?", shown)
        for text in filter(None, [as_json(found)]):
            assert text.isascii()
            assert text.isprintable()
            assert json.loads(text) == json.loads(found.text)


@given(st.binary())
def test_whatever_bytes_a_line_is_made_of_nothing_of_it_moves_a_terminal(raw: bytes) -> None:
    shown = as_text(Reader().read(raw), colour=False)
    assert shown == _UNSAFE.sub("?", shown)


def test_a_line_that_is_no_json_is_shown_as_it_is_and_has_the_time_of_the_one_before() -> None:
    reader = Reader()
    reader.read(json.dumps({**DOWN, "timestamp": AT}).encode())
    found = reader.read(b"civicsky: the disk is full")
    assert (as_text(found, colour=False), found.at) == ("civicsky: the disk is full", parse_time(AT))


@pytest.mark.parametrize(
    "raw", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, '{"n": NaN}', '{"n": Infinity}', '{"n": -1e999}', "{", ""]
)
def test_what_looks_like_json_and_is_none_is_an_ordinary_line(raw: str) -> None:
    found = Reader().read(raw.encode())
    assert as_json(found) is None
    assert len(as_text(found, colour=False)) <= 500


def test_no_shown_line_is_endless() -> None:
    assert len(as_text(line({f"k{n}": "x" * 1000 for n in range(1000)}), colour=False)) <= logs.MAX_CHARS
    assert len(as_text(line({"event": "x" * 10**6, "stage": "x" * 10**6}), colour=False)) <= logs.MAX_CHARS


@given(st.lists(st.binary(max_size=20)))
def test_lines_are_the_same_however_the_bytes_come_in_pieces(pieces: list[bytes]) -> None:
    cutter = Cutter()
    found = [line for piece in pieces for line in cutter.feed(piece)]
    assert [*found, cutter.rest()] == b"".join(pieces).split(b"\n")


def test_of_an_endless_line_only_the_beginning_is_kept_and_the_next_line_is_whole() -> None:
    cutter = Cutter()
    found = [line for _ in range(100) for line in cutter.feed(b"x" * 10_000)]
    found += cutter.feed(b"y\nnext\n")
    assert [len(one) for one in found] == [logs.MAX_BYTES, 4]


def test_lines_are_chosen_by_level_stage_event_and_time() -> None:
    found = line(DOWN)
    assert is_wanted(found, Wanted())
    assert is_wanted(found, Wanted(("label", "source"), ("source_down",), "warning", found.at))
    assert not is_wanted(found, Wanted(("label",)))
    assert not is_wanted(found, Wanted(events=("source_up",)))
    assert not is_wanted(found, Wanted(level="error"))
    assert not is_wanted(found, Wanted(since=found.at + 1))


def test_the_end_of_a_service_is_shown_at_every_level_and_is_no_stages_line() -> None:
    found = Reader().read(b"civicsky: the disk is full")
    assert is_wanted(found, Wanted(level="error"))
    assert not is_wanted(found, Wanted(("source",)))
    assert not is_wanted(found, Wanted(events=("failed",)))
    assert not is_wanted(Reader().read(b"  "), Wanted())


def test_since_takes_a_date_a_time_or_how_long_ago() -> None:
    assert moment("") is None
    assert moment("2026-11-24") == parse_time("2026-11-24T00:00:00Z")
    assert moment(AT) == parse_time(AT)
    for text, seconds in (("90s", 90), ("30m", 1800), ("2h", 7200), ("3d", 259_200)):
        before = now_us() - seconds * 1_000_000
        found = moment(text)
        assert found is not None
        assert before <= found <= now_us() - seconds * 1_000_000
    for text in ("2 h", "yesterday", "-3d", "3w", "\x1b[31m"):
        with pytest.raises(Usage) as raised:
            moment(text)
        assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_in_a_followed_files_place_is_passed_over(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "x.log"
    file.write_text("one\n")
    tail = Tail(file, former=True)
    assert [line.text for line in tail.lines()] == ["one"]
    file.unlink()
    os.mkfifo(file) if kind == "pipe" else file.mkdir()
    assert list(tail.lines()) == []
    file.rename(tmp_path / "away")
    file.write_text("two\n")
    assert [line.text for line in tail.lines()] == ["two"]
    tail.close()
