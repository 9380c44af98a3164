"""How one connection follows on another, and what was held in all."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, strategies as st

from civicsky.coverage import CLEAR, FEW, Hours, Stretch, clock, cover, resume_of
from civicsky.model import Gap, Held

A, B = "wss://a", "wss://b"
TOLERANCE = 5_000_000


def held(first_at: int, last_at: int, resume: Any = "first", host: str = A, epoch: int = 1, frames: int = 100) -> Held:
    return Held(host, epoch, resume, first_at, last_at, first_at, last_at, frames)


def gap(from_at: int | None, until_at: int | None, cause: Any = "not_replayed", host: str = A) -> Gap:
    return Gap(host, 1, cause, 7, 1, from_at, 8, until_at)


def kinds(found: list[Stretch]) -> list[tuple[int, int, str]]:
    return [(one.begin, one.end, one.kind) for one in found]


# ---- the stream's time -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, 10**18])
@pytest.mark.parametrize("at", range(FEW))
def test_one_wrong_clock_does_not_move_the_streams_time(wrong: int, at: int) -> None:
    times = list(range(1000, 1000 + 30))
    first, last = times.copy(), times.copy()
    first[at] = last[-1 - at] = wrong
    assert abs(clock(first) - times[0]) <= FEW
    assert abs(clock(last, last=True) - times[-1]) <= FEW


@given(st.lists(st.integers(0, 2**50), min_size=1))
def test_the_streams_time_is_that_of_one_of_its_events(times: list[int]) -> None:
    assert clock(times) in times[:FEW]
    assert clock(times, last=True) in times[-FEW:]


# ---- resumes ---------------------------------------------------------------------------------------------------------


def test_without_a_cursor_or_anything_before_it_a_connection_is_the_first() -> None:
    assert resume_of(None, held(0, 10), 20, TOLERANCE, replayed=True) == "first"
    assert resume_of(5, None, 20, TOLERANCE, replayed=True) == "first"


def test_the_event_at_the_cursor_coming_again_proves_that_nothing_is_missing_however_late_it_is() -> None:
    assert resume_of(5, held(0, 10), 10**15, TOLERANCE, replayed=True) == "replayed"


@pytest.mark.parametrize(("jump", "expected"), [(-(10**9), "in_time"), (0, "in_time"), (TOLERANCE, "in_time")])
def test_events_that_follow_closely_are_in_time(jump: int, expected: str) -> None:
    before = held(0, 10**9, frames=10**6)
    assert resume_of(5, before, before.last_at + jump, TOLERANCE, replayed=False) == expected


def test_one_microsecond_beyond_the_tolerance_of_a_busy_stream_is_a_gap() -> None:
    before = held(0, 10**9, frames=10**6)
    assert resume_of(5, before, before.last_at + TOLERANCE + 1, TOLERANCE, replayed=False) == "gap"


def test_a_silence_counts_as_a_gap_from_as_many_events_on_as_would_have_come() -> None:
    before = held(0, 1_000_000_000, frames=100 + FEW)  # one in ten seconds; the medians hide some
    clear = (CLEAR + FEW) * 10_000_000
    assert resume_of(5, before, before.last_at + clear - 1, TOLERANCE, replayed=False) == "unverified"
    assert resume_of(5, before, before.last_at + clear, TOLERANCE, replayed=False) == "gap"


@pytest.mark.parametrize("n", range(2, 40))
def test_few_events_of_a_slow_stream_are_no_measure_for_a_silence_not_much_longer(n: int) -> None:
    """Ten events read at once, a hundred seconds apart: the medians of their ends are next to each other."""
    times = [at * 100_000_000 for at in range(n)]
    before = held(clock(times), clock(times, last=True), frames=n)
    later = [times[-1] + 1_000_000_000 + at for at in times]
    assert resume_of(5, before, clock(later), TOLERANCE, replayed=False) == "unverified"


def test_after_a_single_moment_nobody_can_tell() -> None:
    assert resume_of(5, held(10, 10, frames=10**6), 10**12, TOLERANCE, replayed=False) == "unverified"


# ---- the sum of it all -----------------------------------------------------------------------------------------------


def test_nothing_held_has_no_share_and_one_event_has_none_either() -> None:
    assert cover([], []) == ([], [], [])
    assert cover([], []).share is None
    assert cover([held(5, 5)], []).share is None
    assert kinds(cover([held(5, 5)], []).stretches) == [(5, 5, "held")]


def test_a_host_never_held_more_than_its_time_though_a_clock_went_back() -> None:
    (host,) = cover([held(0, 100), held(110, 90, "in_time")], []).hosts
    assert (host["last_at"], host["share_held"]) == (110, 1.0)


def test_a_gap_is_named_by_its_cause() -> None:
    rows = [held(0, 100), held(300, 400, "gap")]
    found = cover(rows, [gap(100, 300, "outdated_cursor")])
    assert kinds(found.stretches) == [(0, 100, "held"), (100, 300, "outdated_cursor"), (300, 400, "held")]
    assert found.share == 0.5
    assert found.seconds("held", "outdated_cursor") == 400 / 1e6


@pytest.mark.parametrize("resume", ["replayed", "in_time"])
def test_a_proved_resume_holds_the_time_between(resume: str) -> None:
    assert kinds(cover([held(0, 100), held(300, 400, resume)], []).stretches) == [(0, 400, "held")]


def test_a_resume_that_nobody_could_tell_of_is_unverified() -> None:
    found = cover([held(0, 100), held(300, 400, "unverified")], [])
    assert kinds(found.stretches) == [(0, 100, "held"), (100, 300, "unverified"), (300, 400, "held")]


def test_a_time_without_any_row_was_not_collected() -> None:
    found = cover([held(0, 100), held(300, 400, "first", epoch=2)], [])
    assert kinds(found.stretches) == [(0, 100, "held"), (100, 300, "not_collected"), (300, 400, "held")]


def test_a_hole_is_cut_where_its_cause_changes() -> None:
    rows = [held(0, 100), held(500, 600, "gap")]
    found = cover(rows, [gap(50, 200, "undecodable"), gap(300, 500, "too_large")])
    assert kinds(found.stretches)[1:-1] == [
        (100, 200, "undecodable"), (200, 300, "not_collected"), (300, 500, "too_large")
    ]  # fmt: skip


def test_a_gap_that_is_not_over_yet_takes_no_time() -> None:
    found = cover([held(0, 100)], [gap(100, None)])
    assert kinds(found.stretches) == [(0, 100, "held")]
    assert len(found.gaps) == 1


def test_two_hosts_fill_each_others_holes() -> None:
    rows = [held(0, 100), held(90, 310, host=B), held(300, 400, "gap"), held(390, 500, "gap", host=B)]
    found = cover(rows, [gap(100, 300), gap(310, 390, host=B)])
    assert kinds(found.stretches) == [(0, 500, "held")]
    assert found.share == 1
    assert [gap.host for gap in found.gaps] == [A, B], "it was a gap of its host all the same"
    assert {(host["host"], host["frames"], host["connections"]) for host in found.hosts} == {(A, 200, 2), (B, 200, 2)}


def test_of_a_gap_by_the_window_only_what_lies_outside_of_its_hours_is_called_so() -> None:
    """Held to the end of one opening; the next one was missed, and the one after it began late."""
    rows = [held(0, 100), held(920, 1000, "gap")]
    hours = Hours(wanted=[(0, 110), (400, 510), (900, 1010)])
    found = cover(rows, [gap(100, 920, "window")], hours)
    assert kinds(found.stretches) == [
        (0, 100, "held"), (100, 110, "not_collected"), (110, 400, "window"), (400, 510, "not_collected"),
        (510, 900, "window"), (900, 920, "not_collected"), (920, 1000, "held"),
    ]  # fmt: skip
    assert found.held_within(900, 1010) == 80 / 1e6
    assert found.held_within(400, 510) == 0
    assert kinds(cover(rows, [gap(100, 920, "window")]).stretches)[1] == (100, 920, "window"), "its hours are not known"


def test_an_opening_that_a_limit_ended_is_told_from_one_that_was_missed() -> None:
    rows = [held(0, 40), held(400, 500, "gap")]
    found = cover(rows, [gap(40, 400, "window")], Hours([(0, 110), (400, 510)], limited=[(40, 110)]))
    assert kinds(found.stretches)[1:-1] == [(40, 110, "limit"), (110, 400, "window")]


def test_a_gap_of_another_cause_is_never_hidden_by_the_window() -> None:
    rows = [held(0, 100), held(300, 400, "gap")]
    found = cover(rows, [gap(50, 300, "window"), gap(100, 300, "outdated_cursor", host=B)], Hours([(0, 110)]))
    assert kinds(found.stretches)[1:-1] == [(100, 300, "outdated_cursor")]


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 50)), max_size=6))
def test_window_and_lost_hours_add_up_to_the_whole_hole(openings: list[tuple[int, int]]) -> None:
    wanted: list[tuple[int, int]] = []
    for begin, lasts in sorted(openings):
        if not wanted or begin > wanted[-1][1]:
            wanted.append((begin, begin + lasts))
    found = cover([held(0, 20), held(180, 200, "gap")], [gap(20, 180, "window")], Hours(wanted))
    hole = found.stretches[1:-1]
    assert [one.begin for one in hole] == [20, *(one.end for one in hole[:-1])]
    inside = {at for begin, end in wanted for at in range(begin, end)}
    for one in hole:
        assert all((at in inside) == (one.kind == "not_collected") for at in range(one.begin, one.end))


def test_what_one_host_held_says_nothing_of_another_hosts_resume() -> None:
    found = cover([held(0, 100), held(300, 400, "in_time", host=B)], [])
    assert kinds(found.stretches) == [(0, 100, "held"), (100, 300, "not_collected"), (300, 400, "held")]


def test_a_renumbered_window_that_is_read_again_closes_the_gap() -> None:
    found = cover([held(0, 100), held(20, 300, "first", epoch=2)], [gap(100, 20, "renumbered")])
    assert kinds(found.stretches) == [(0, 300, "held")]
    assert [host["epoch"] for host in found.hosts] == [1, 2]


TIMES = st.integers(1, 60)
ROWS = st.lists(
    st.builds(
        lambda begin, lasts, resume, host, epoch: held(begin, begin + lasts, resume, host, epoch, frames=3),
        TIMES,
        st.integers(-3, 20),
        st.sampled_from(["first", "replayed", "in_time", "unverified", "gap"]),
        st.sampled_from([A, B]),
        st.integers(1, 2),
    ),
    max_size=8,
)
CAUSES = st.sampled_from(["renumbered", "outdated_cursor", "undecodable", "too_large", "not_replayed"])
GAPS = st.lists(st.builds(gap, st.none() | TIMES, st.none() | TIMES, CAUSES), max_size=5)


@given(ROWS, GAPS)
def test_stretches_are_in_order_without_overlap_or_hole_from_the_first_event_to_the_last(
    rows: list[Held], gaps: list[Gap]
) -> None:
    found = cover(rows, gaps)
    assert bool(found.stretches) == bool(rows)
    for one, other in pairwise(found.stretches):
        assert one.end == other.begin
        assert one.kind != other.kind
        assert one.end > one.begin or one.kind == "held"
    if rows:
        assert found.stretches[0].begin == min(row.first_at for row in rows)
        assert found.stretches[-1].end == max(max(row.first_at, row.last_at) for row in rows)
        assert {found.stretches[0].kind, found.stretches[-1].kind} == {"held"}
    assert found.share is None or 0 <= found.share <= 1
    assert sum(host["frames"] for host in found.hosts) == 3 * len(rows)
    assert sum(host["connections"] for host in found.hosts) == len(rows)


@given(ROWS, GAPS)
def test_all_that_was_held_is_held_and_only_that_and_proved_resumes(rows: list[Held], gaps: list[Gap]) -> None:
    found = cover(rows, gaps)
    sure = {at for row in rows for at in range(row.first_at, row.last_at)}
    ends: dict[tuple[str, int], int] = {}
    for row in rows:
        end = ends.get((row.host, row.epoch))
        if end is not None and row.resume in {"replayed", "in_time"}:
            sure |= set(range(end, row.first_at))
        ends[row.host, row.epoch] = max(end or 0, row.first_at, row.last_at)
    assert {at for one in found.stretches if one.kind == "held" for at in range(one.begin, one.end)} == sure
    known = {gap.cause for gap in gaps} | {"held", "unverified", "not_collected"}
    assert {one.kind for one in found.stretches} <= known


@given(ROWS, ROWS, GAPS)
def test_another_host_never_makes_less_of_what_was_held(rows: list[Held], more: list[Held], gaps: list[Gap]) -> None:
    alone = cover(rows, gaps).seconds("held")
    both = cover([*rows, *(row._replace(host="wss://c") for row in more)], gaps).seconds("held")
    assert both >= alone - 1e-9
