"""Whatever numbers a relay sends, in whatever order: what holds of cursors, epochs and gaps. No socket is opened."""

from copy import copy
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import given, strategies as st

from civicsky.metrics import Metrics
from civicsky.model import FrameOutcome, Gap, Handful, Position
from civicsky.settings import Source as SourceSettings
from civicsky.source import BAD_IN_A_ROW, PATH, Source
from support.tried import tried

often = tried(400)

HOSTS = ("ws://a.example", "ws://b.example")
Kind = Literal["frame", "bad", "ten_bad", "future", "outdated", "too_large", "connect"]
Step = tuple[Kind, Any]

numbers = st.integers(1, 12) | st.integers(1, 2**53 - 1)
steps: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        st.tuples(st.just("frame"), numbers),
        st.tuples(st.just("frame"), numbers),
        st.tuples(st.just("frame"), st.none() | numbers),
        st.tuples(st.just("bad"), st.sampled_from("xy")),
        st.tuples(st.just("ten_bad"), st.sampled_from("xy")),
        st.tuples(st.just("connect"), st.sampled_from(HOSTS)),
        st.tuples(st.sampled_from(["future", "outdated", "too_large"]), st.none()),
    ),
    max_size=40,
)
starts = st.tuples(st.none() | st.integers(1, 12), st.none() | st.integers(1, 12))


class Held:
    """A source on made-up connections: one that it drops is followed by another to the same host."""

    def __init__(self, cursors: tuple[int | None, int | None], start: str) -> None:
        self.positions = {host: Position(host, 1, cursor) for host, cursor in zip(HOSTS, cursors, strict=True)}
        self.source = Source(SourceSettings(relays=HOSTS, start=start), self.positions, Metrics())
        self.taken: list[int] = []
        self.connect(HOSTS[0])

    @property
    def at(self) -> Position:
        return self.positions[self.source.host]

    def connect(self, host: str) -> None:
        """What `arrivals` does when a connection is open."""
        self.source.host = host
        self.source._line = SimpleNamespace(abort=lambda: None)
        self.source._begin_link()
        self.taken = []

    def do(self, kind: Kind, value: Any) -> FrameOutcome | None:
        """One step; what `settle` said of a numbered frame."""
        if kind == "frame":
            outcome = self.source.settle(value)
            if value is not None and outcome is None:
                self.taken.append(value)
            return outcome
        if kind in {"bad", "ten_bad"}:
            for _ in range(BAD_IN_A_ROW if kind == "ten_bad" else 1):
                if self.source._line is not None:  # nothing more is read from a dropped connection
                    self.source.settle_bad(value)
        elif kind == "future":
            self.source.settle(None)
            self.source.renumber()
        elif kind == "outdated":
            self.source.settle(None)
            self.source.outdated()
        elif kind == "too_large":
            self.source._step_over_too_large()
            self.source._drop()
        else:
            self.connect(value)
        return None

    def go_on(self) -> None:
        """Connect again if the source hung up."""
        if self.source._line is None:
            self.connect(self.source.host)


def causes(gaps: list[Gap]) -> list[str]:
    return [gap.cause for gap in gaps]


def moved(kind: Kind, before: Position, after: Position, gaps: list[Gap]) -> None:
    """Hold one step against what is promised of one host's cursor and epoch."""
    for gap in gaps:
        assert (gap.host, gap.epoch) == (before.host, before.epoch)
    if after.epoch != before.epoch:
        assert (after.epoch, after.cursor) == (before.epoch + 1, None)
        assert [(gap.cause, gap.after_seq) for gap in gaps] == [("renumbered", before.cursor)]
        assert before.cursor is not None
        return
    assert "renumbered" not in causes(gaps)
    if after.cursor is None:
        assert before.cursor is None or [(gap.cause, gap.after_seq) for gap in gaps] == [("undecodable", before.cursor)]
        return
    assert after.cursor > 0
    assert before.cursor is None or after.cursor >= before.cursor
    if kind == "too_large" and after.cursor != before.cursor:
        assert set(causes(gaps)) <= {"too_large"}, "the first step tells of it"


@often
@given(starts, st.sampled_from(["live", "window"]), steps)
def test_a_cursor_never_falls_in_an_epoch_and_each_new_epoch_records_its_gap(
    cursors: tuple[int | None, int | None], start: str, todo: list[Step]
) -> None:
    held = Held(cursors, start)
    for kind, value in todo:
        before = copy(held.at)
        held.do(kind, value)
        if kind != "connect":
            moved(kind, before, held.at, held.source.take_gaps())
        held.go_on()


@often
@given(starts, steps)
def test_only_the_current_hosts_position_ever_changes(cursors: tuple[int | None, int | None], todo: list[Step]) -> None:
    held = Held(cursors, "window")
    for kind, value in todo:
        before = {host: copy(at) for host, at in held.positions.items()}
        on = held.source.host
        held.do(kind, value)
        for host, at in held.positions.items():
            assert at == before[host] or (host == on and kind != "connect")
        held.go_on()


@often
@given(starts, steps)
def test_no_number_is_taken_in_twice_by_one_connection(
    cursors: tuple[int | None, int | None], todo: list[Step]
) -> None:
    held = Held(cursors, "live")
    for kind, value in todo:
        held.do(kind, value)
        assert len(held.taken) == len(set(held.taken))
        held.go_on()


@often
@given(starts, steps)
def test_a_number_above_the_cursor_becomes_the_cursor_and_one_that_is_only_late_is_taken_in(
    cursors: tuple[int | None, int | None], todo: list[Step]
) -> None:
    held = Held(cursors, "live")
    for kind, value in todo:
        before, first = held.at.cursor, held.source._first
        floor, taken = held.source._resumed_after or 0, set(held.taken)
        outcome = held.do(kind, value)
        if kind == "frame" and value is not None:
            if before is None or value > before:
                assert (outcome, held.at.cursor) == (None, value)
            elif first and value < before:
                assert (outcome, held.at.cursor, held.source._line) == ("ignored", None, None)
            else:
                late = value > floor and value not in taken
                assert (outcome, held.at.cursor) == (None if late else "duplicate", before)
        held.go_on()


@often
@given(starts, st.sampled_from(["live", "window"]), steps)
def test_a_host_is_only_ever_asked_for_its_own_cursor(
    cursors: tuple[int | None, int | None], start: str, todo: list[Step]
) -> None:
    held = Held(cursors, start)
    for kind, value in todo:
        held.do(kind, value)
        url, own = held.source._url(), held.at.cursor
        assert url in {f"{held.source.host}{PATH}{end}" for end in ([f"?cursor={own}"] if own else ["", "?cursor=0"])}
        held.go_on()


@often
@given(st.integers(1, 12), st.lists(st.sampled_from(["frame", "future", "connect"]), max_size=20), st.data())
def test_each_epoch_that_a_stream_went_through_has_exactly_one_gap(
    cursor: int, kinds: list[Kind], data: st.DataObject
) -> None:
    held = Held((cursor, None), "live")
    for kind in kinds:
        held.do(kind, data.draw(st.integers(1, 12)) if kind == "frame" else HOSTS[0])
        held.go_on()
    gaps = held.source.take_gaps()
    assert [(gap.host, gap.epoch, gap.cause) for gap in gaps] == [
        (HOSTS[0], epoch, "renumbered") for epoch in range(1, held.at.epoch)
    ]
    assert all(gap.after_seq for gap in gaps)


@pytest.mark.parametrize("kind", ["frame", "future"])
def test_the_steps_do_reach_a_new_epoch(kind: Kind) -> None:
    held = Held((9, None), "live")
    held.do(kind, 3)
    assert (held.at.epoch, held.source._line) == (2, None)


rising = st.builds(lambda first, steps: [first + sum(steps[:n]) for n in range(1, len(steps) + 1)],
                   numbers, st.lists(st.integers(1, 3), min_size=1, max_size=12))  # fmt: skip


@often
@given(starts, st.lists(rising | st.lists(st.none() | numbers, min_size=1, max_size=12), max_size=12))
def test_a_handful_at_once_is_the_same_as_one_by_one(
    cursors: tuple[int | None, int | None], handfuls: list[list[int | None]]
) -> None:
    together, alone = Held(cursors, "window"), Held(cursors, "window")
    for seqs in handfuls:
        handful = Handful(1, 5, [str(seq).encode() for seq in seqs], iter(()))
        before = together.source._arrived
        arrivals = together.source.settle_all(handful, seqs)
        if arrivals is None:
            assert together.source._arrived == before
            outcomes = [together.source.settle(seq) for seq in seqs if together.source._line]
        else:
            assert [(one.n, one.data, one.host, one.received_at) for one in arrivals] == [
                (before + 1 + at, data, HOSTS[0], 5) for at, data in enumerate(handful.messages)
            ]
            outcomes = [None] * len(seqs)
        assert outcomes == [alone.source.settle(seq) for seq in seqs if alone.source._line]
        assert (together.at, together.source._floor, together.source._recent) == (
            alone.at, alone.source._floor, alone.source._recent
        )  # fmt: skip
        assert together.source._metrics.news == alone.source._metrics.news
        if together.source._line is None:
            together.connect(HOSTS[0])
            alone.connect(HOSTS[0])


def test_an_ordinary_handful_is_taken_at_once() -> None:
    held = Held((5, None), "live")
    assert held.source.settle(5) == "duplicate"
    assert held.source.settle_all(Handful(1, 5, [b"", b""], iter(())), [6, 9]) is not None
    assert held.source.settle_all(Handful(1, 5, [b"", b""], iter(())), [9, 10]) is None
    assert held.source.settle_all(Handful(1, 5, [b"", b""], iter(())), [11, 11]) is None
    assert held.at.cursor == 9
