"""What the source makes of the numbers in its frames; no socket is opened here."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from civicsky.log import configure
from civicsky.metrics import Metrics
from civicsky.model import Position
from civicsky.settings import Log, Source as SourceSettings
from civicsky.source import BAD_IN_A_ROW, PATH, REMEMBERED, Source

A, B = "ws://a.example", "ws://b.example"


class Reader:
    """A source with positions and metrics at hand."""

    def __init__(self, cursor: int | None = None, *, start: str = "live", other: int | None = None) -> None:
        self.positions = {A: Position(A, 1, cursor, 5), B: Position(B, 1, other, 5)}
        self.metrics = Metrics()
        settings = SourceSettings(relays=(A, B), start=start)
        self.source = Source(settings, self.positions, self.metrics)
        self.connected()

    @property
    def cursor(self) -> int | None:
        return self.positions[A].cursor

    @property
    def epoch(self) -> int:
        return self.positions[A].epoch

    def asks_for(self, host: str = A) -> str:
        """The query with which the source would connect now."""
        self.source.host = host
        url = self.source._url()
        assert url.startswith(host + PATH)
        self.source.host = A
        return url[len(host + PATH) :]

    def connected(self) -> "Reader":
        """As after a reconnect: the next frame is the first of its connection."""
        self.source._begin_link()
        return self

    def gaps(self) -> list[tuple[str, int, str, int | None]]:
        return [gap[:4] for gap in self.source.take_gaps()]

    def bad(self, *digests: str) -> None:
        for digest in digests:
            self.source.settle_bad(digest)


TEN = tuple(str(n) for n in range(BAD_IN_A_ROW))


# ---- what is asked for -----------------------------------------------------------------------------------------------


def test_without_a_cursor_only_what_happens_now_is_asked_for() -> None:
    assert Reader().asks_for() == ""


def test_without_a_cursor_the_whole_window_is_asked_for_when_that_is_wanted() -> None:
    reader = Reader(start="window")
    assert reader.asks_for() == "?cursor=0"
    assert reader.cursor is None


@pytest.mark.parametrize("start", ["live", "window"])
def test_with_a_cursor_it_is_asked_for(start: str) -> None:
    assert Reader(41, start=start).asks_for() == "?cursor=41"


def test_the_cursor_of_one_host_is_never_sent_to_another() -> None:
    reader = Reader(41)
    assert (reader.asks_for(A), reader.asks_for(B)) == ("?cursor=41", "?cursor=0")
    reader.source.settle(42)
    assert (reader.asks_for(A), reader.asks_for(B)) == ("?cursor=42", "?cursor=0")
    both = Reader(41, other=7)
    assert (both.asks_for(A), both.asks_for(B)) == ("?cursor=41", "?cursor=7")


def test_every_new_frame_moves_what_is_asked_for() -> None:
    reader = Reader(start="window")
    for seq in (3, 4, 9):
        reader.source.settle(seq)
        assert reader.asks_for() == f"?cursor={seq}"


# ---- settle ----------------------------------------------------------------------------------------------------------


def test_frames_after_an_exclusive_cursor_are_new() -> None:
    reader = Reader(41)
    assert [reader.source.settle(seq) for seq in (42, 43, 50)] == [None, None, None]
    assert (reader.cursor, reader.epoch, reader.gaps()) == (50, 1, [])


def test_the_event_at_an_inclusive_cursor_is_a_duplicate_and_the_next_is_new() -> None:
    reader = Reader(41)
    assert [reader.source.settle(seq) for seq in (41, 42)] == ["duplicate", None]
    assert (reader.cursor, reader.epoch, reader.gaps()) == (42, 1, [])


def test_a_number_that_was_taken_in_before_is_a_duplicate() -> None:
    reader = Reader(4)
    assert [reader.source.settle(seq) for seq in (5, 5, 4, 1, 6, 6)] == [None, *["duplicate"] * 3, None, "duplicate"]
    assert (reader.cursor, reader.epoch, reader.gaps()) == (6, 1, [])


def test_a_late_frame_is_no_double_and_does_not_move_the_cursor_back() -> None:
    reader = Reader(4)
    assert [reader.source.settle(seq) for seq in (5, 8, 6, 6, 7, 5)] == [
        None,
        None,
        None,
        "duplicate",
        None,
        "duplicate",
    ]
    assert reader.cursor == 8


def test_a_number_below_all_that_are_remembered_is_a_duplicate() -> None:
    reader = Reader(4)
    for seq in range(10, 10 + REMEMBERED + 1):
        assert reader.source.settle(seq) is None
    assert [reader.source.settle(seq) for seq in (5, 10)] == ["duplicate", "duplicate"]


def test_another_host_that_was_never_held_is_read_from_its_windows_beginning_once_there_is_something_to_follow() -> (
    None
):
    reader = Reader()
    assert reader.asks_for(B) == ""
    reader.source.settle(5)
    assert (reader.asks_for(A), reader.asks_for(B)) == ("?cursor=5", "?cursor=0")


def test_a_jump_in_the_numbers_is_no_gap() -> None:
    reader = Reader(41)
    assert reader.source.settle(41_000_000) is None
    assert reader.gaps() == []


def test_a_first_frame_with_a_lower_number_begins_a_new_epoch_and_the_window_is_read_again() -> None:
    reader = Reader(41)
    assert reader.source.settle(40) == "ignored"
    assert (reader.cursor, reader.epoch) == (None, 2)
    assert reader.gaps() == [(A, 1, "renumbered", 41)]
    assert reader.asks_for() == "?cursor=0"
    assert reader.positions[B] == Position(B, 1, None, 5)


def test_in_the_new_epoch_low_numbers_are_new() -> None:
    reader = Reader(41)
    reader.source.settle(40)
    reader.connected()
    assert [reader.source.settle(seq) for seq in (1, 2, 40)] == [None, None, None]
    assert (reader.cursor, reader.epoch, reader.gaps()) == (40, 2, [(A, 1, "renumbered", 41)])


def test_a_lower_number_later_in_a_connection_is_only_a_duplicate() -> None:
    reader = Reader(41)
    assert [reader.source.settle(seq) for seq in (42, 3)] == [None, "duplicate"]
    assert (reader.cursor, reader.epoch, reader.gaps()) == (42, 1, [])


def test_a_lower_number_after_the_repeated_event_is_only_a_duplicate() -> None:
    reader = Reader(41)
    assert [reader.source.settle(seq) for seq in (41, 40)] == ["duplicate", "duplicate"]
    assert reader.epoch == 1


def test_a_frame_without_a_number_is_new_and_not_the_first() -> None:
    reader = Reader(41)
    assert reader.source.settle(None) is None
    assert (reader.cursor, reader.epoch) == (41, 1)
    assert reader.source.settle(40) == "ignored"
    assert reader.epoch == 2


def test_a_host_without_a_cursor_cannot_be_renumbered_by_its_first_frame() -> None:
    reader = Reader()
    assert reader.source.settle(1) is None
    assert (reader.cursor, reader.epoch, reader.gaps()) == (1, 1, [])


def test_the_cursor_of_the_window_is_never_stored() -> None:
    reader = Reader(41)
    reader.source.settle(40)
    fresh = Reader(start="window")
    fresh.asks_for()
    for one in (reader, fresh):
        assert one.asks_for() == "?cursor=0"
        assert one.cursor is None


def test_a_new_frame_shows_that_the_relay_serves_us() -> None:
    reader = Reader(41)
    reader.metrics.relay_why = "relay: down"
    reader.source.settle(41)
    assert (reader.metrics.connected, reader.metrics.relay_why) == (False, "relay: down")
    reader.source.settle(42)
    assert (reader.metrics.connected, reader.metrics.host, reader.metrics.relay_why) == (True, A, "")


# ---- frames that cannot be decoded -----------------------------------------------------------------------------------


def test_nine_bad_frames_in_a_row_change_nothing() -> None:
    reader = Reader(41)
    reader.bad(*TEN[:-1])
    reader.source.settle(42)
    reader.bad(*TEN[:-1])
    assert (reader.cursor, reader.gaps(), reader.source._bad_before) == (42, [], [])


def test_ten_bad_frames_in_a_row_lose_nothing_the_first_time() -> None:
    reader = Reader(41)
    reader.bad(*TEN)
    assert (reader.cursor, reader.asks_for(), reader.gaps()) == (41, "?cursor=41", [])
    assert reader.source._bad_before == list(TEN)


@pytest.mark.parametrize("start", ["live", "window"])
def test_the_same_ten_bad_frames_again_are_given_up_with_a_gap(start: str) -> None:
    reader = Reader(41, start=start)
    reader.bad(*TEN)
    reader.connected().bad(*TEN)
    assert (reader.cursor, reader.epoch, reader.asks_for()) == (None, 1, "")
    assert reader.gaps() == [(A, 1, "undecodable", 41)]


def test_the_same_ten_bad_frames_after_the_repeated_event_are_given_up_too() -> None:
    reader = Reader(41)
    reader.bad(*TEN)
    assert reader.connected().source.settle(41) == "duplicate"
    reader.bad(*TEN)
    assert reader.gaps() == [(A, 1, "undecodable", 41)]


def test_ten_other_bad_frames_are_tried_again() -> None:
    reader = Reader(41)
    reader.bad(*TEN)
    reader.connected().bad(*TEN[1:], "other")
    assert (reader.cursor, reader.gaps()) == (41, [])
    reader.connected().bad(*TEN[1:], "other")
    assert (reader.cursor, reader.gaps()) == (None, [(A, 1, "undecodable", 41)])


def test_bad_frames_of_a_window_are_given_up_by_going_live() -> None:
    reader = Reader(start="window")
    reader.bad(*TEN)
    assert reader.asks_for() == "?cursor=0"
    reader.connected().bad(*TEN)
    assert (reader.asks_for(), reader.gaps()) == ("", [(A, 1, "undecodable", None)])


# ---- messages above the bound ----------------------------------------------------------------------------------------


def test_a_message_above_the_bound_is_tried_again_and_then_stepped_over_with_growing_steps() -> None:
    reader = Reader(41)
    asked = []
    for _ in range(5):
        reader.source._step_over_too_large()
        asked.append(reader.asks_for())
    assert asked == ["?cursor=41", "?cursor=42", "?cursor=44", "?cursor=48", "?cursor=56"]
    assert reader.gaps() == [(A, 1, "too_large", 41)], "one gap, however many steps it takes"


def test_after_a_good_frame_the_steps_begin_anew() -> None:
    reader = Reader(41)
    reader.source._step_over_too_large()
    reader.source._step_over_too_large()
    reader.source.settle(43)
    reader.source._step_over_too_large()
    assert (reader.asks_for(), reader.gaps()) == ("?cursor=43", [(A, 1, "too_large", 41)])


# ---- what the relay says of itself -----------------------------------------------------------------------------------


def test_a_cursor_from_the_future_begins_a_new_epoch() -> None:
    reader = Reader(41)
    reader.source.settle(None)
    reader.source.renumber()
    assert (reader.cursor, reader.epoch, reader.asks_for()) == (None, 2, "?cursor=0")
    assert reader.gaps() == [(A, 1, "renumbered", 41)]


def test_a_host_that_refuses_even_its_own_window_is_read_live() -> None:
    reader = Reader(41)
    reader.source.renumber()
    reader.source.renumber()
    assert (reader.cursor, reader.epoch, reader.asks_for()) == (None, 2, "")
    assert reader.gaps() == [(A, 1, "renumbered", 41)]


def test_an_outdated_cursor_is_a_gap_and_the_cursor_stays() -> None:
    reader = Reader(41)
    reader.source.outdated()
    assert (reader.cursor, reader.epoch, reader.gaps()) == (41, 1, [(A, 1, "outdated_cursor", 41)])


def test_gaps_are_handed_over_once() -> None:
    reader = Reader(41)
    reader.source.outdated()
    reader.source.renumber()
    assert [cause for _, _, cause, _ in reader.gaps()] == ["outdated_cursor", "renumbered"]
    assert reader.gaps() == []


# ---- what is said of it ----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The events that were logged since the last look, without their times."""
    found = [json.loads(line) for line in capsys.readouterr().err.split("\n") if line]
    return [{name: value for name, value in line.items() if name not in {"timestamp", "stage"}} for line in found]


def test_a_new_epoch_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Log(format="json"))
    Reader(41).source.settle(40)
    assert said(capsys) == [{"event": "source_epoch", "level": "warning", "host": A, "epoch": 2}]


def test_ten_bad_frames_in_a_row_are_a_warning_that_tells_the_second_time_from_the_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(Log(format="json"))
    reader = Reader(41)
    reader.bad(*TEN[:-1])
    assert said(capsys) == []
    reader.bad(TEN[-1])
    assert said(capsys) == [{"event": "source_bad_frames", "level": "warning", "host": A, "again": False}]
    reader.connected().bad(*TEN)
    assert said(capsys) == [{"event": "source_bad_frames", "level": "warning", "host": A, "again": True}]


def test_that_the_relay_serves_us_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Log(format="json"))
    reader = Reader(41)
    reader.source.settle(41)
    assert said(capsys) == []
    for seq in (42, 43):
        reader.source.settle(seq)
    (line,) = said(capsys)
    assert (line["event"], line["level"], line["host"], line["epoch"]) == ("source_up", "info", A, 1)


def test_ten_bad_frames_are_the_same_again_only_when_nothing_new_came_between() -> None:
    reader = Reader(41)
    reader.bad(*TEN)
    reader.connected().source.settle(42)
    reader.bad(*TEN)
    assert (reader.cursor, reader.gaps()) == (42, [])
    reader.connected().bad(*TEN)
    assert (reader.cursor, [gap[2] for gap in reader.gaps()]) == (None, ["undecodable"])


def test_only_a_new_frame_proves_that_a_relay_serves_us() -> None:
    reader = Reader(cursor=10)
    told = []
    for seq in (10, None, 11, 11, 12):
        reader.source.settle(seq)
        told.append(reader.metrics.news)
    assert told == [0, 0, 1, 1, 2]
