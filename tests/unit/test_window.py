"""When a window opens and closes, held against tables of 2026 that were written by hand, and against plain cases.

The oracle has no time zone's code: whole minutes since 1970, and the minutes by which each zone's clock is ahead.
"""

from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise

import pytest

from civicsky.window import is_open, next_edge, opened, openings, was_closed, window_of

MINUTE = 60_000_000


def minute(text: str) -> int:
    """Minutes since 1970 of a time in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) // 60


BEGIN, END = minute("2026-01-01"), minute("2027-01-01")
# From when on each zone's clock is ahead of UTC by how many minutes, in 2026.
AHEAD = {
    "America/Chicago": [("2025-12-01", -360), ("2026-03-08T08:00", -300), ("2026-11-01T07:00", -360)],
    "Europe/Berlin": [("2025-12-01", 60), ("2026-03-29T01:00", 120), ("2026-10-25T01:00", 60)],
    "Australia/Lord_Howe": [("2025-12-01", 660), ("2026-04-04T15:00", 630), ("2026-10-03T15:30", 660)],
    "Asia/Kolkata": [("2025-12-01", 330)],
}
HOURS = [
    ("16:00", "20:00"),
    ("22:00", "02:30"),  # over midnight, to the midst of an hour that may be missing or come twice
    ("02:00", "03:00"),
    ("01:30", "01:45"),
    ("02:15", "02:45"),
    ("01:59", "01:58"),
]
CASES = [(zone, *hours) for zone in AHEAD for hours in HOURS]


@cache
def expected(zone: str, begin: str, end: str) -> tuple[bytearray, list[int]]:
    """For each minute of the year and two days on both sides whether the window is open (1), and where that changes."""
    first, last = (int(text[:2]) * 60 + int(text[3:]) for text in (begin, end))
    shown_open, at = bytearray(1440), first
    while at != last:
        shown_open[at] = 1
        at = (at + 1) % 1440
    found = bytearray()
    turns = [(minute(since), ahead) for since, ahead in AHEAD[zone]]
    for (since, ahead), (until, _) in pairwise([*turns, (END + 2880, 0)]):
        for n in range(max(since, BEGIN - 2880), until):
            found.append(shown_open[(n + ahead) % 1440])
    return found, [n + BEGIN - 2880 for n in range(1, len(found)) if found[n] != found[n - 1]]


def says_open(case: Sequence[str], n: int) -> int:
    return expected(*case)[0][n - BEGIN + 2880]


@pytest.mark.parametrize("zone", AHEAD)
def test_in_each_minute_of_a_year_the_window_is_open_as_the_clock_of_the_zone_says(zone: str) -> None:
    case = (zone, *HOURS[0])
    window = window_of(*case[1:], zone)
    assert [n for n in range(BEGIN, END) if is_open(window, n * MINUTE) != says_open(case, n)] == []


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_around_each_edge_and_each_change_of_the_clock_every_minute_is_as_the_clock_says(case: Sequence[str]) -> None:
    zone, begin, end = case
    window, edges = window_of(begin, end, zone), expected(zone, begin, end)[1]
    wanted = {n + by for n in edges for by in (-1, 0)}
    for since, _ in AHEAD[zone][1:]:
        wanted |= set(range(minute(since) - 1440, minute(since) + 1440))
    wrong = [n for n in wanted if any(is_open(window, n * MINUTE + by) != says_open(case, n) for by in (0, MINUTE - 1))]
    assert wrong == []


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_next_edge_of_a_year_is_always_the_next_change_of_the_clocks_hours(case: Sequence[str]) -> None:
    zone, begin, end = case
    window, edges = window_of(begin, end, zone), expected(zone, begin, end)[1]
    asked = set(range(BEGIN, END, 97)) | {n + by for n in edges for by in (-1, 0, 1)}
    for since, _ in AHEAD[zone][1:]:
        asked |= set(range(minute(since) - 180, minute(since) + 180))
    for n in asked:
        if BEGIN <= n < END:
            assert next_edge(window, n * MINUTE) == edges[bisect_right(edges, n)] * MINUTE, n
            assert next_edge(window, n * MINUTE - 1) == edges[bisect_right(edges, n - 1)] * MINUTE, n


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_openings_of_a_year_are_those_of_the_clock(case: Sequence[str]) -> None:
    zone, begin, end = case
    window, edges = window_of(begin, end, zone), expected(zone, begin, end)[1]
    told = [(a, b) for a, b in pairwise(edges) if says_open(case, a) and b > BEGIN and a < END]
    assert [(a // MINUTE, b // MINUTE) for a, b in openings(window, BEGIN * MINUTE, END * MINUTE)] == told
    for opens, closes in told:
        for at in (opens * MINUTE, (opens + closes) * MINUTE // 2, closes * MINUTE - 1):
            assert opened(window, at) == opens * MINUTE


def edges_of(day: str, begin: str, end: str, zone: str = "America/Chicago") -> list[str]:
    """The edges of 24 hours from a time in UTC on, as HH:MM in UTC, the opening ones first."""
    window, found = window_of(begin, end, zone), []
    at = minute(day) * MINUTE
    while (edge := next_edge(window, at)) < (minute(day) + 1440) * MINUTE:
        found.append(datetime.fromtimestamp(edge // 1_000_000, UTC).strftime("%H:%M"))
        at = edge
    assert not is_open(window, minute(day) * MINUTE)
    return found


def test_hours_that_do_not_exist_on_a_day_are_not_held_that_day() -> None:
    assert edges_of("2026-03-08T06:00", "02:00", "03:00") == []
    assert edges_of("2026-03-09T06:00", "02:00", "03:00") == ["07:00", "08:00"]
    assert edges_of("2026-03-08T06:00", "02:15", "02:45") == []


def test_a_window_that_begins_or_ends_in_the_missing_hour_has_its_edge_where_the_clock_jumps() -> None:
    assert edges_of("2026-03-08T06:00", "01:30", "02:30") == ["07:30", "08:00"]
    assert edges_of("2026-03-08T06:00", "02:30", "04:00") == ["08:00", "09:00"]


def test_hours_that_come_twice_are_held_twice() -> None:
    assert edges_of("2026-11-01T05:00", "01:30", "01:45") == ["06:30", "06:45", "07:30", "07:45"]
    assert edges_of("2026-11-01T05:00", "01:00", "02:00") == ["06:00", "08:00"], "they follow each other at once"
    assert edges_of("2026-11-01T04:30", "00:00", "01:30") == ["05:00", "06:30", "07:00", "07:30"]


def test_the_hours_follow_the_wall_clock_over_the_end_of_summer_time() -> None:
    assert edges_of("2026-10-31T12:00", "16:00", "20:00") == ["21:00", "01:00"]
    assert edges_of("2026-11-01T12:00", "16:00", "20:00") == ["22:00", "02:00"]


def test_a_time_in_which_the_window_was_closed_for_a_moment_is_told_from_one_in_which_it_was_open() -> None:
    window = window_of("16:00", "15:59", "UTC")
    at = minute("2026-05-01T15:59") * MINUTE
    assert was_closed(window, at - 1, at)
    assert was_closed(window, at + MINUTE - 1, at + 2 * MINUTE)
    assert was_closed(window, at - 10 * MINUTE, at + 10 * MINUTE)
    assert not was_closed(window, at + MINUTE, at + 1440 * MINUTE - 1)
