import contextlib
import inspect
import json
import logging
import os
import re
from asyncio import sslproto
from collections.abc import Iterator
from datetime import datetime
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import structlog
from hypothesis import given, strategies as st

from civicsky import log
from civicsky.log import EVENTS, EventName, configure, event
from civicsky.settings import Log

LEVELS = ("debug", "info", "warning", "error")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def written(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The JSON lines on standard error; nothing may stand on standard output."""
    out, err = capsys.readouterr()
    assert out == ""
    return [json.loads(line) for line in err.split("\n") if line]


# ---- events ----------------------------------------------------------------------------------------------------------


def test_every_event_is_documented_with_its_level() -> None:
    assert set(EVENTS) == set(get_args(EventName))
    for name, text in EVENTS.items():
        level, _, meaning = text.partition(": ")
        assert level in LEVELS, name
        assert len(meaning) > 10, name
        assert name.replace("_", "").islower(), name


@pytest.mark.parametrize("name", get_args(EventName))
def test_every_event_is_written_at_its_documented_level(name: EventName, capsys: pytest.CaptureFixture[str]) -> None:
    configure(Log(level="debug", format="json"))
    event(name, why="because")
    (line,) = written(capsys)
    assert (line["event"], line["level"], line["why"]) == (name, EVENTS[name].partition(":")[0], "because")


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_below_the_chosen_level_is_written(level: Any, capsys: pytest.CaptureFixture[str]) -> None:
    configure(Log(level=level, format="json"))
    for name in EVENTS:
        event(name)
    found = {line["level"] for line in written(capsys)}
    assert found == set(LEVELS[LEVELS.index(level) :])


def test_an_event_is_one_json_line_with_time_stage_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Log(format="json"))
    event("source_up", stage="source", host="wss://relay", epoch=2, cursor=None, share=0.5, on=True)
    event("label_up")
    first, second = written(capsys)
    moment = datetime.fromisoformat(first.pop("timestamp"))
    assert moment.utcoffset() is not None
    assert first == {
        "event": "source_up",
        "level": "info",
        "stage": "source",
        "host": "wss://relay",
        "epoch": 2,
        "cursor": None,
        "share": 0.5,
        "on": True,
    }
    assert "stage" not in second


def test_what_asyncio_says_of_a_tls_connection_that_ends_is_no_line_of_the_log_and_what_else_it_says_is_heard(
    caplog: pytest.LogCaptureFixture,
) -> None:
    noise = "returning true from eof_received() has no effect when using ssl"
    assert noise in re.sub(r"'\s+'", "", inspect.getsource(sslproto))
    configure(Log(format="json"))
    logging.getLogger("asyncio").warning(noise)
    logging.getLogger("asyncio").warning("a task was destroyed")
    assert caplog.messages == ["a task was destroyed"]


def test_the_format_is_json_where_standard_error_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Log())
    event("started")
    assert [line["event"] for line in written(capsys)] == ["started"]


def test_the_console_format_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Log(format="console"))
    event("source_down", stage="source", why="no answer")
    _, err = capsys.readouterr()
    assert "source_down" in err
    assert "no answer" in err
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(err)


# ---- floods ----------------------------------------------------------------------------------------------------------


def test_an_event_that_comes_again_and_again_is_left_out_and_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(log, "monotonic", lambda: now[0])
    configure(Log(format="json", burst=3))
    for n in range(5000):
        event("source_info", n=n)
    event("source_down")
    lines = written(capsys)
    assert [(line["event"], line.get("n")) for line in lines] == [
        ("source_info", 0), ("source_info", 1), ("source_info", 2), ("source_down", None)
    ]  # fmt: skip
    now[0] += 59.9
    event("source_info")
    assert written(capsys) == []
    now[0] += 0.1
    event("source_info")
    event("source_info")
    event("source_down")
    assert [line.get("suppressed") for line in written(capsys)] == [4998, None, None]


def test_lines_below_the_chosen_level_use_up_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Log(format="json", burst=1, level="warning"))
    for _ in range(10):
        event("source_up")
    event("source_info")
    (line,) = written(capsys)
    assert (line["event"], "suppressed" in line) == ("source_info", False)


def test_a_fault_that_comes_and_goes_is_no_storm_and_the_log_ends_with_what_is_true(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(log, "monotonic", lambda: now[0])
    configure(Log(format="json"))
    for n in range(100):
        event("store_down", stage="store", n=n)
        now[0] += 0.3
        event("store_up", stage="store", n=n)
        now[0] += 0.2
        log.settle()
    event("store_down", stage="store", n=100)
    log.settle()
    storm = written(capsys)
    assert len(storm) == 2 * log.CHANGES_A_MINUTE
    now[0] += 60
    log.settle()
    log.settle()
    (last,) = written(capsys)
    assert (last["event"], last["n"], last["level"], last["stage"]) == ("store_down", 100, "warning", "store")
    assert last["suppressed"] == 90
    assert last["timestamp"] >= storm[-1]["timestamp"]
    event("store_up", stage="store", n=101)
    (up,) = written(capsys)
    assert (up["event"], up["suppressed"]) == ("store_up", 90)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["appview_down", "appview_up"]),
            st.sampled_from(["appview", "label"]),
            st.sampled_from([0] * 16 + [0.1, 1, 30, 61]),
            st.booleans(),
        ),
        min_size=20,
        max_size=60,
    )
)
def test_however_faults_come_and_go_the_last_line_of_each_is_the_last_change(steps: list[Any]) -> None:
    now, lines = [0.0], list[dict[str, Any]]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "monotonic", lambda: now[0])
        patch.setattr(log, "CHANGES_A_MINUTE", 2)  # or few examples would be a storm
        patch.setattr(log, "_StandardError", lambda: SimpleNamespace(**dict.fromkeys(LEVELS, keep)))

        def keep(line: str) -> None:
            lines.append({**json.loads(line), "now": now[0]})

        configure(Log(format="json"))
        for n, (name, stage, seconds, settles) in enumerate(steps):
            event(name, stage=stage, n=n)
            now[0] += seconds
            if settles:
                log.settle()
        before_the_end = len(lines)
        log.settle(at_once=True)
    last = {(name.partition("_")[0], stage): n for n, (name, stage, *_) in enumerate(steps)}
    told = {(line["event"].partition("_")[0], line["stage"]): line["n"] for line in lines}
    assert told == last
    assert len(lines) + sum(line.get("suppressed", 0) for line in lines) <= len(steps)
    for line in lines[:before_the_end]:
        same = [one for one in lines[:before_the_end] if (one["event"], one["stage"]) == (line["event"], line["stage"])]
        near = [one for one in same if line["now"] <= one["now"] < line["now"] + 60]
        assert len(near) <= 2 * 2 + 1


def test_a_reader_of_standard_error_that_went_away_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        monkeypatch.setattr("sys.stderr", gone)
        configure(Log(format="json"))
        event("started")
        with contextlib.suppress(BrokenPipeError):
            gone.close()


# ---- hostile words ---------------------------------------------------------------------------------------------------

HOSTILE = [
    *map(chr, range(0x20)),
    "\x7f",
    *map(chr, range(0x80, 0xA0)),
    *"\xad\u034f\u061c\u115f\u180e\u2060\u2061\u2062\u2063\u2064\u206a\u206f\u2800\u3164\ufe0f\ufeff\ufff9\ufffb",
    "\U000e0001",
    "\U000e0041",
    "\U0001d173",
    "\u200b",
    "\u200d",
    "\u200e",
    "\u200f",
    "\u2028",
    "\u2029",
    "\u202a",
    "\u202b",
    "\u202c",
    "\u202d",
    "\u202e",
    "\u2066",
    "\u2067",
    "\u2068",
    "\u2069",
]


@pytest.mark.parametrize("char", HOSTILE, ids=lambda char: f"U+{ord(char):04X}")
@pytest.mark.parametrize("form", ["json", "console"])
def test_a_character_that_moves_or_turns_text_is_neutralised(
    char: str, form: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(Log(format=form))
    event("source_down", why=f"x{char}y")
    _, err = capsys.readouterr()
    assert "x?y" in err
    assert char == "\n" or f"x{char}y" not in err
    assert err.count("\n") == 1


def test_a_value_cannot_begin_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Log(format="json"))
    event("source_down", why='x\n{"event": "started"}')
    assert [(line["event"], line["why"]) for line in written(capsys)] == [("source_down", 'x?{"event": "started"}')]


def test_other_characters_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Log(format="json"))
    event("source_down", why='é 日本 🔥 "quoted" \\ <b>')
    assert written(capsys)[0]["why"] == 'é 日本 🔥 "quoted" \\ <b>'


def test_no_value_is_endless(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Log(format="json"))
    event("source_down", why="x" * 100_000)
    assert written(capsys)[0]["why"] == "x" * 500


@pytest.mark.parametrize("form", ["json", "console"])
def test_values_inside_of_values_are_neutralised_and_bounded_too(form: Any, capsys: pytest.CaptureFixture[str]) -> None:
    configure(Log(format=form))
    bad = "x\x1b\u202ey" + "z" * 1000
    event("source_down", why=[bad], a=(bad, 1, None, 0.5, True), b={bad: {"in": [bad]}}, c=ValueError(bad), d={bad})
    _, err = capsys.readouterr()
    assert "x??y" in err
    assert "x\x1b" not in err  # a console's colours have escapes of their own
    assert "\u202e" not in err
    assert "z" * 499 not in err
    assert err.count("\n") == 1


def test_what_is_nested_keeps_its_shape(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Log(format="json"))
    event("source_down", a=[1, "é", None, 0.5, True], b=("x", ["y"]), c={"k": {"l": [2]}}, d=[], e={})
    (line,) = written(capsys)
    values = {key: line[key] for key in "abcde"}
    assert values == {"a": [1, "é", None, 0.5, True], "b": ["x", ["y"]], "c": {"k": {"l": [2]}}, "d": [], "e": {}}


def test_nothing_nested_is_endless(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Log(format="json"))
    deep: list[Any] = []
    deep.append(deep)
    event("source_down", a=["x"] * 1000, b={str(n): n for n in range(1000)}, c=deep, d=("x" * 100_000,))
    (line,) = written(capsys)
    assert (line["a"], line["b"]) == (["x"] * 20, {str(n): n for n in range(20)})
    assert line["c"] == [[["..."]]]
    assert line["d"] == ["x" * 500]


def test_an_event_that_is_not_known_is_a_defect() -> None:
    with pytest.raises(KeyError):
        event("no_such_event")  # type: ignore[arg-type]
