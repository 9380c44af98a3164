"""When the stream may be held, by a clock that the test sets, and which cursor is asked for. No socket is opened."""

import asyncio
from time import time
from typing import Any

import pytest

from civicsky import faults
from civicsky.faults import Clock, set_clock
from civicsky.metrics import Metrics
from civicsky.model import Opened, Position
from civicsky.opening import SLACK_US, Gate
from civicsky.settings import Source as SourceSettings, Window
from civicsky.source import PATH, Source
from support.clock import micros

A, B = "ws://a.example", "ws://b.example"
HOURS = {"from": "16:00", "to": "20:00", "zone": "America/Chicago"}
OPENS, CLOSES = micros("2026-05-05T21:00"), micros("2026-05-06T01:00")
DAY = 86_400_000_000
MINUTE = 60_000_000


@pytest.fixture(autouse=True)
def _clock_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "clock", Clock())


def at(micro: int) -> None:
    """Stop the clock there."""
    faults.clock = Clock(micro / 1e6, 1e-9, time())


def gate(last: Opened | None = None, **settings: Any) -> Gate:
    return Gate(Window(**{**HOURS, **settings}), Metrics(), last)


def state(one: Gate) -> tuple[bool, str]:
    return one.is_open(), one._metrics.window_why


# ---- open and closed -------------------------------------------------------------------------------------------------


def test_without_a_window_it_is_always_open() -> None:
    one = Gate(Window(), Metrics())
    assert one.is_open()
    assert (one.opening, one.leaves_out, one.seconds_left()) == (None, False, float("inf"))


def test_it_is_open_in_its_hours_and_says_when_it_is_not_and_until_when() -> None:
    one = gate()
    at(OPENS - 1_000_000)
    assert state(one) == (False, "window: closed until 2026-05-05T21:00:00.000Z")
    assert one._metrics.health() == ("ok", "window: closed until 2026-05-05T21:00:00.000Z")
    at(OPENS + 1_000_000)
    assert state(one) == (True, "")
    assert one.opening is not None
    assert (one.opening.opened, one.opening.closes, one.opening.resume) == (OPENS, CLOSES, "live")
    at(CLOSES + 1_000_000)
    assert state(one) == (False, "window: closed until 2026-05-06T21:00:00.000Z")
    at(OPENS + DAY + 1_000_000)
    assert one.is_open()
    assert one.opening.opened == OPENS + DAY, "the clock is not that of the process's start"


async def test_a_wait_lasts_as_long_as_the_clock_says_and_a_nudge_ends_it() -> None:
    one = gate()
    faults.clock = Clock(OPENS / 1e6 - 60, 6000, time())
    assert not one.is_open()
    await one.wait()
    assert one.is_open()
    at(OPENS - DAY // 2)
    assert not one.is_open()
    waiting = asyncio.create_task(one.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    one.nudge()
    await waiting


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_a_limit_ends_the_opening_and_not_the_next_one() -> None:
    one = gate(max_posts=3)
    at(OPENS)
    assert one.is_open()
    one.count(one.opening, 2)
    assert one.is_open()
    one.count(one.opening, 1)
    assert state(one) == (
        False, "window: closed until 2026-05-06T21:00:00.000Z, limit of 3 posts in an opening"
    )  # fmt: skip
    at(OPENS + DAY)
    assert one.is_open()
    one.count(one.opening, 2)
    assert one.is_open(), "it counts anew"


@pytest.mark.parametrize(("limits", "goes_on"), [({"max_kept": 5}, False), ({"max_posts": 9}, False), ({}, True)])
def test_after_a_restart_an_opening_that_a_limit_ended_stays_closed(limits: dict[str, int], goes_on: bool) -> None:
    at(OPENS + MINUTE)
    one = gate(Opened(OPENS, CLOSES, "live", 9, 5, "", None), **limits)
    assert one.is_open() is goes_on
    at(OPENS + DAY)
    assert one.is_open()


def test_after_a_restart_posts_are_counted_from_where_they_were() -> None:
    at(OPENS + MINUTE)
    one = gate(Opened(OPENS, CLOSES, "live", 8, 5, "", None), max_posts=9)
    assert one.is_open()
    one.count(one.opening, 1)
    assert not one.is_open()


# ---- what is asked for -----------------------------------------------------------------------------------------------


class Reader:
    """A source with positions at hand."""

    def __init__(self, a: Position, b: Position, **window: Any) -> None:
        self.positions = {A: a, B: b}
        settings = SourceSettings(relays=(A, B), window=Window(**{**HOURS, **window}))
        until = {host: at.event_at for host, at in self.positions.items() if at.event_at is not None}
        self.source = Source(settings, self.positions, Metrics(), None, until)

    def asks_for(self, host: str = A) -> str:
        """The query with which the source connects now."""
        assert self.source.gate.is_open()
        self.source.host = host
        self.source._leave_out_closed_hours()
        return self.source._url()[len(host + PATH) :]

    def gaps(self) -> list[Any]:
        return [(gap.host, gap.cause, gap.after_seq, gap.from_at) for gap in self.source.take_gaps()]


def test_live_a_cursor_of_the_opening_before_is_left_with_one_gap_and_is_never_0() -> None:
    at(OPENS + MINUTE)
    reader = Reader(Position(A, 1, 41, CLOSES - DAY - 1), Position(B))
    assert [reader.asks_for() for _ in range(3)] == ["", "", ""]
    assert reader.gaps() == [(A, "window", 41, None)]
    assert (reader.positions[A].cursor, reader.positions[A].epoch) == (None, 1)


@pytest.mark.parametrize("event_at", [OPENS + 1, OPENS - SLACK_US + 1, OPENS + 5 * MINUTE])
def test_live_a_cursor_of_the_same_opening_is_asked_for(event_at: int) -> None:
    at(OPENS + MINUTE)
    reader = Reader(Position(A, 1, 41, event_at), Position(B))
    assert (reader.asks_for(), reader.gaps()) == ("?cursor=41", [])


def test_live_a_reconnect_of_the_same_process_goes_by_when_it_last_held_the_host() -> None:
    at(OPENS + MINUTE)
    reader = Reader(Position(A, 1, 41, CLOSES - DAY - 1), Position(B))
    reader.asks_for()
    reader.source._begin_link()
    reader.source.settle(50)
    at(OPENS + 90 * MINUTE)
    assert (reader.asks_for(), len(reader.gaps())) == ("?cursor=50", 1)
    at(OPENS + DAY)
    assert (reader.asks_for(), reader.gaps()) == ("", [(A, "window", 50, None)])


def test_live_a_host_that_was_never_held_is_read_from_now_and_its_gap_begins_where_others_ended() -> None:
    at(OPENS + 30 * MINUTE)
    reader = Reader(Position(A, 1, 41, OPENS + 5), Position(B))
    assert [reader.asks_for(B) for _ in range(2)] == ["", ""]
    assert reader.gaps() == [(B, "window", None, OPENS + 5)]
    reader.source._begin_link()
    reader.source.settle(7)
    assert (reader.asks_for(B), reader.gaps()) == ("?cursor=7", [])


def test_live_with_nothing_held_there_is_no_gap() -> None:
    at(OPENS)
    reader = Reader(Position(A), Position(B))
    assert (reader.asks_for(), reader.gaps()) == ("", [])
    reader.source._begin_link()
    reader.source.settle(5)
    assert reader.asks_for(B) == "", "not from the beginning of its window either"


def test_live_a_renumbered_host_is_read_from_now() -> None:
    at(OPENS)
    reader = Reader(Position(A, 1, 41, OPENS), Position(B))
    reader.asks_for()
    reader.source._begin_link()
    assert reader.source.settle(40) == "ignored"
    assert (reader.asks_for(), reader.positions[A].epoch) == ("", 2)
    assert reader.gaps() == [(A, "renumbered", 41, None)]


def test_from_the_cursor_the_closed_hours_are_asked_for_and_another_host_is_read_from_its_beginning() -> None:
    at(OPENS + MINUTE)
    reader = Reader(Position(A, 1, 41, CLOSES - DAY - 1), Position(B), resume="cursor")
    assert (reader.asks_for(), reader.asks_for(B), reader.gaps()) == ("?cursor=41", "?cursor=0", [])


# ---- the clock of the tests ------------------------------------------------------------------------------------------


def test_the_clock_of_the_tests_shows_the_time_and_goes_at_the_speed_that_was_asked_for() -> None:
    one = set_clock("2026-11-01T05:50:00Z*600@1000")
    assert one == Clock(micros("2026-11-01T05:50") / 1e6, 600, 1000)
    shown, again = set_clock("2026-11-01T05:50:00Z*600"), Clock()
    assert abs(shown.now_us() - micros("2026-11-01T05:50")) < 600 * 5_000_000
    assert set_clock("") == again
    assert set_clock("2026-11-01T05:50:00Z").speed == 1
