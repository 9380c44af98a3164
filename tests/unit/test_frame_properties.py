"""A real commit, damaged in any way, gives for each post the very record that the SDK reads, or a counted reason."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain
from typing import Any, get_args

import cbor2
import pytest
from atproto import CAR, firehose_models, parse_subscribe_repos_message  # type: ignore[import-untyped]
from hypothesis import given, strategies as st

from civicsky.decode import decode
from civicsky.errors import BadInput
from civicsky.model import (
    Arrival,
    BadReason,
    Event,
    Frame,
    FrameOutcome,
    PostOutcome,
    cid_text,
    parse_time,
)
from civicsky.order import Plan, Rules, apply
from civicsky.worker import judge_record
from support.tried import tried
from unit.recorded import car, cid_of, encode, frame, section, stream

often = tried(300)

Ends = set[tuple[str, str, str]]


def with_posts() -> Iterator[bytes]:
    """Recorded commits that bring posts, one of each number of operations and shape of record."""
    known = set()
    for data in chain(stream("sample"), stream("live")):
        posts = [op for op in decode(data).posts if op.block]
        shape = (len(decode(data).posts), *(tuple(cbor2.loads(op.block)) for op in posts))
        if posts and shape not in known and len(data) < 8000:
            known.add(shape)
            yield data


REAL = list(with_posts())
real = st.sampled_from(REAL)


@cache
def by_sdk(data: bytes) -> dict[str, Any]:
    """The records of an undamaged commit by CID, as the SDK reads them."""
    parsed = parse_subscribe_repos_message(firehose_models.Frame.from_bytes(data))
    return {str(cid): record for cid, record in CAR.from_bytes(parsed.blocks).blocks.items()}


@cache
def parts(data: bytes) -> list[tuple[int, int]]:
    """Where the frame's header, operations, CAR header, blocks and records lie."""
    header = len(encode({"op": 1, "t": "#commit"}))
    blocks = cbor2.loads(data[header:])["blocks"]
    car_at = data.index(blocks)
    records = [(data.index(op.block), data.index(op.block) + len(op.block)) for op in decode(data).posts if op.block]
    cids = [(start - 36, start) for start, _ in records]
    return [(0, header), (header, car_at), (car_at, car_at + 60), (car_at, car_at + len(blocks)), *cids, *records]


def taken_in(data: bytes) -> tuple[Plan, Event]:
    """What the service would write for one message: decoded, judged, applied. Nothing is left out by language."""
    plan = Plan({}, {}, None, Rules())
    arrival = Arrival(1, "ws://relay", 1, 1, None, data, 1)
    try:
        event = decode(data)
        now = Frame(arrival, event, event.outcome, event.name)
    except BadInput as bad:
        event = Event("quarantined")
        now = Frame(arrival, event, "quarantined", bad.reason)
    verdicts = [judge_record(op.cid, op.block, "all") for op in event.posts if op.needs_verdict]
    apply(plan, now, iter(verdicts))
    return plan, event


def check(data: bytes, *of: bytes) -> Ends:
    """Take in one message made of pieces of real ones; hold what comes of it against the SDK. Gives its ends."""
    plan, event = taken_in(data)
    ends = Counter({end: n for end, n in plan.counts.items() if end[0] != "record"})
    ((_, outcome, reason),) = (end for end in ends if end[0] == "frame")
    assert outcome in get_args(FrameOutcome)
    assert outcome != "quarantined" or reason in get_args(BadReason)
    assert ends.total() == 1 + len(event.posts)
    for _, outcome, reason in (end for end in ends if end[0] == "post"):
        assert outcome in get_args(PostOutcome)
        assert reason in get_args(BadReason) if outcome == "quarantined" else not reason
    records = {cid: record for one in of for cid, record in by_sdk(one).items()}
    for row in plan.posts.values():
        if row.state == "deleted":
            assert (row.cid, row.record, row.fields) == ("", None, None)
            continue
        theirs = records[row.cid]
        assert row.record is not None
        assert cid_text(cid_of(row.record)) == row.cid
        ours = json.loads(row.fields or "")
        assert (ours["text"], ours["langs"]) == (theirs["text"], theirs.get("langs") or [])
        assert ours["created_at"] == parse_time(theirs["createdAt"])
    return set(ends)


@st.composite
def flipped(draw: Callable[..., Any]) -> tuple[bytes, bytes]:
    """A real frame, and it with some bytes of one of its parts changed."""
    whole = draw(real)
    start, end = draw(st.sampled_from(parts(whole)))
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        data[draw(st.integers(start, end - 1))] ^= draw(st.integers(1, 255))
    return whole, bytes(data)


@st.composite
def spliced(draw: Callable[..., Any]) -> tuple[bytes, bytes, bytes]:
    """Two real frames, and the head of one with the tail of the other."""
    one, other = draw(real), draw(real)
    return one, other, one[: draw(st.integers(0, len(one)))] + other[draw(st.integers(0, len(other))) :]


def test_an_undamaged_commit_gives_every_post_as_the_sdk_reads_it() -> None:
    for data in REAL:
        ends = check(data, data)
        assert {outcome for unit, outcome, _ in ends if unit == "post"} <= {"kept", "updated", "deleted"}
        assert ("frame", "commit", "") in ends


def test_the_comparison_with_the_sdk_sees_another_record_and_another_text(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = REAL[:2]
    with pytest.raises(KeyError):
        check(one, other)
    changed = {cid: record | {"text": "another"} for cid, record in by_sdk(one).items()}
    monkeypatch.setitem(globals(), "by_sdk", lambda _: changed)
    with pytest.raises(AssertionError):
        check(one, one)


@often
@given(flipped())
def test_a_commit_with_flipped_bytes_gives_the_sdks_record_or_a_counted_reason(pair: tuple[bytes, bytes]) -> None:
    whole, data = pair
    check(data, whole)


@often
@given(real, st.floats(0, 1), st.floats(0, 1))
def test_a_commit_with_bytes_cut_out_gives_the_sdks_record_or_a_counted_reason(
    whole: bytes, first: float, second: float
) -> None:
    start, end = sorted((int(first * len(whole)), int(second * len(whole))))
    check(whole[:start] + whole[end:], whole)


@often
@given(real, st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_a_commit_split_in_two_messages_gives_two_counted_reasons_and_no_post(whole: bytes, share: float) -> None:
    at = max(1, min(int(share * len(whole)), len(whole) - 1))
    for half in (whole[:at], whole[at:]):
        ((unit, outcome, reason),) = check(half)
        assert (unit, outcome) == ("frame", "quarantined")
        assert reason == "undecodable"


@often
@given(spliced())
def test_the_head_of_one_commit_and_the_tail_of_another_give_only_what_the_sdk_reads_in_them(
    pieces: tuple[bytes, bytes, bytes],
) -> None:
    one, other, data = pieces
    check(data, one, other)


@often
@given(real, st.data())
def test_a_commit_whose_car_is_damaged_gives_the_sdks_record_or_a_counted_reason(
    whole: bytes, data: st.DataObject
) -> None:
    header, content = whole[: parts(whole)[0][1]], cbor2.loads(whole[parts(whole)[0][1] :])
    damaged = bytearray(content["blocks"][: data.draw(st.integers(0, len(content["blocks"])))])
    for _ in range(data.draw(st.integers(0, 2)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    ends = check(header + encode(content | {"blocks": bytes(damaged)}), whole)
    assert ("frame", "commit", "") in ends
    assert {reason for _, outcome, reason in ends if outcome == "quarantined"} <= {"no_block", "wrong_hash"}


@often
@given(real, real)
def test_another_commits_record_under_a_posts_cid_is_a_wrong_hash_and_never_its_text(
    whole: bytes, other: bytes
) -> None:
    ours, theirs = (next(op for op in decode(data).posts if op.block) for data in (whole, other))
    content = cbor2.loads(whole[parts(whole)[0][1] :])
    ends = check(frame(content | {"blocks": car([]) + section(ours.cid + theirs.block)}), whole)
    assert (("post", "quarantined", "wrong_hash") in ends) == (theirs.cid != ours.cid)


def test_every_byte_of_a_commit_flipped_in_turn_reaches_every_kind_of_end() -> None:
    whole = min(REAL, key=len)
    ends: Ends = set()
    for at in range(len(whole)):
        for mask in (1, 0x20, 0xFF):
            ends |= check(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :], whole)
    assert {end[1:] for end in ends if end[0] == "frame"} == {
        ("commit", ""),
        ("ignored", "unknown_kind"),
        ("ignored", "unknown_op"),
        ("quarantined", "undecodable"),
        ("quarantined", "bad_field"),
    }
    assert {end[1:] for end in ends if end[0] == "post"} == {
        ("kept", ""),
        ("quarantined", "bad_operation"),
        ("quarantined", "no_block"),
        ("quarantined", "wrong_hash"),
    }
