import time

import pytest
from hypothesis import given, strategies as st

from civicsky.decode import decode
from civicsky.model import (
    Arrival,
    Batch,
    Event,
    Frame,
    FrameOutcome,
    PostOp,
    cid_text,
    format_time,
    now_us,
    parse_time,
    post_uri,
)
from support.tried import tried
from unit.recorded import DID, TIME, TIME_US, cid_of, index, stream


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        (TIME, TIME_US),
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.000001Z", 1),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T23:00:00-01:00", 0),
        ("2026-11-22T12:30:45.740123Z", TIME_US + 123),
        ("2026-11-22T12:30:45.7401239Z", TIME_US + 123),
        ("2026-11-22T18:00:45.740+05:30", TIME_US),
        ("2024-02-29T00:00:00Z", 1_709_164_800_000_000),
        ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999_999),
    ],
)
def test_a_time_with_a_zone_is_read_as_microseconds(text: str, micros: int) -> None:
    assert parse_time(text) == micros


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "0",
        "2026-11-22",
        "2026-11-22T12:30:45",
        "2026-11-22T12:30:45.740",
        "2025-02-29T00:00:00Z",
        "2026-11-22T24:00:01Z",
        "2026-11-22T12:30:45.740Z ",
        "2026-11-22T12:30:45.740Zjunk",
        "1969-12-31T23:59:59.999Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59",
        "10000-01-01T00:00:00Z",
        "9999-12-31T23:59:59-23:59",
        "2026-11-22T12:30:45+99:00",
        "\u0662\u0660\u0662\u0666-11-22T12:30:45Z",
    ],
)
def test_what_is_no_time_or_lacks_a_zone_or_lies_before_1970_is_none(text: str) -> None:
    assert parse_time(text) is None


def test_a_time_is_written_with_milliseconds() -> None:
    assert format_time(0) == "1970-01-01T00:00:00.000Z"
    assert format_time(TIME_US) == TIME
    assert format_time(TIME_US + 999) == TIME
    assert format_time(1_000_000 - 1) == "1970-01-01T00:00:00.999Z"
    assert format_time(253_402_300_799_999_999) == "9999-12-31T23:59:59.999Z"


def test_every_recorded_time_is_written_as_it_was_read() -> None:
    for row in index():
        micros = parse_time(row["time"])
        assert micros is not None
        assert format_time(micros) == row["time"]


@tried(1000)
@given(st.integers(0, 253_402_300_799_999_999))
def test_a_time_that_was_written_is_read_as_its_millisecond(micros: int) -> None:
    assert parse_time(format_time(micros)) == micros // 1000 * 1000


def test_the_present_is_told_in_microseconds() -> None:
    before = time.time_ns() // 1000
    now = now_us()
    after = time.time_ns() // 1000
    assert before - 1 <= now <= after + 1


def test_a_cid_is_written_as_the_protocol_does() -> None:
    assert cid_text(cid_of(b"\xa0")) == "bafyreigbtj4x7ip5legnfznufuopl4sg4knzc2cof6duas4b3q2fy6swua"


def test_a_posts_address_has_account_collection_and_key() -> None:
    assert post_uri(DID, "3k") == f"at://{DID}/app.bsky.feed.post/3k"


def test_a_batch_gives_the_records_to_judge_in_the_order_of_the_stream() -> None:
    def frame(outcome: FrameOutcome, *ops: PostOp) -> Frame:
        return Frame(Arrival(1, "", 1, 1, None, b"", 0), Event(outcome, posts=list(ops)), outcome, "")

    one = PostOp(0, "create", "a", b"cid", b"block")
    two = PostOp(1, "update", "b", b"cid", b"block")
    bare = PostOp(2, "delete", "c", b"", b"")
    lost = PostOp(3, "create", "d", b"cid", b"", "no_block")
    batch = Batch([frame("commit", one, bare), frame("duplicate", one), frame("account"), frame("commit", lost, two)])
    assert batch.records() == [one, two]
    assert Batch().records() == []


def test_every_recorded_commits_records_are_those_that_need_a_verdict() -> None:
    for data in stream("live"):
        event = decode(data)
        arrival = Arrival(1, "", 1, 1, None, data, 0)
        records = Batch([Frame(arrival, event, event.outcome, "")]).records()
        assert records == [op for op in event.posts if op.action != "delete" and op.fault is None]
