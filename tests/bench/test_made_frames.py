"""The made-up frames of the benchmark: what they say is what their truth says, and they are like the network's."""

import statistics
from collections import Counter
from hashlib import sha256
from pathlib import Path

import libipld
import pytest

from bench import traffic
from bench.hostile import WAYS
from bench.records import SPAN_US, STEP_US
from bench.traffic import FIRST_SEQ, SPAN, Block, frames
from bench.truth import Truth
from civicsky.decode import COLLECTIONS, decode
from civicsky.errors import BadInput
from civicsky.model import Event, PostOp
from civicsky.worker import judge_record
from support.made_frames import Made


def test_every_frame_is_decoded_to_what_its_truth_says(made: Made) -> None:
    for frame, truth in made:
        if truth.kind == "bad":
            with pytest.raises(BadInput):
                decode(frame)
            continue
        event = decode(frame)
        assert event.outcome == truth.kind.removeprefix("#")
        if truth.kind == "ignored":
            continue
        assert (event.seq, event.did, event.time) == (truth.seq, truth.did, truth.time)
        assert event.rev == (truth.rev if truth.kind == "#commit" else "")
        assert list(event.others) == [
            (name if name in COLLECTIONS else "other", action) for name, action in truth.others
        ]
        assert [(op.action, op.rkey, op.cid.hex()) for op in event.posts] == [post[:3] for post in truth.posts]


def test_every_post_is_judged_as_its_truth_says(made: Made) -> None:
    seen: Counter[str] = Counter()
    for event, truth in commits(made):
        for op, post in zip(event.posts, truth.posts, strict=True):
            assert fault_of(op) == post.fault
            if op.block and not post.fault:
                record = libipld.decode_dag_cbor(op.block)
                assert record["text"] == post.text
            seen[post.fault or post.action] += 1
    assert seen.keys() >= {"create", "update", "delete", "bad_operation", "no_block", "wrong_hash", "bad_text"}


def test_every_hostile_way_comes_and_all_others_are_flawless(made: Made) -> None:
    assert [truth.hostile for _, truth in made if truth.hostile] == list(WAYS)
    assert not [truth for _, truth in made if not truth.hostile and any(post.fault for post in truth.posts)]


def test_the_shares_of_posts_and_of_english_are_the_networks(made: Made) -> None:
    assert 0.08 < statistics.fmean(truth.new_posts > 0 for _, truth in made) < 0.1
    posts = [post for _, truth in made for post in truth.posts if post.lang]
    assert 0.3 < statistics.fmean(post.lang == "en" for post in posts) < 0.4
    others = Counter(name for _, truth in made for name, action in truth.others if action == "create")
    assert 0.45 < others["app.bsky.feed.like"] / len(made) < 0.55
    assert {"#account", "#identity", "#sync"} <= {truth.kind for _, truth in made}


def test_the_filter_keeps_nearly_what_is_english(made: Made) -> None:
    right: list[bool] = []
    for event, truth in commits(made):
        for op, post in zip(event.posts, truth.posts, strict=True):
            if post.lang and not post.fault:
                verdict = judge_record(op.cid, op.block)
                right.append((verdict.kind == "kept") == (post.lang == "en") or verdict.reason == "adult")
    assert len(right) > 500
    assert statistics.fmean(right) > 0.97


def test_commits_are_as_large_as_the_networks(made: Made) -> None:
    sizes = [len(frame) for frame, truth in made if truth.kind == "#commit"]
    lower, middle, upper = statistics.quantiles(sizes, n=4)
    assert 2700 < lower < 3300
    assert 3400 < middle < 4000
    assert 4200 < upper < 4800


def test_seq_and_time_and_an_authors_revisions_rise(made: Made) -> None:
    assert [truth.seq for _, truth in made] == list(range(FIRST_SEQ, FIRST_SEQ + len(made)))
    times = [truth.time for _, truth in made if truth.time]
    assert times == sorted(times)
    last: dict[str, str] = {}
    for _, truth in made:
        if truth.rev:
            assert truth.rev > last.get(truth.did, "")
            last[truth.did] = truth.rev


def test_blocks_are_canonical_and_have_the_cids_that_they_are_listed_under(made: Made) -> None:
    for frame, truth in made[:150]:
        body = libipld.decode_dag_cbor_multi(frame)[1]
        assert libipld.encode_dag_cbor(body) == frame[frame.index(b"\x62op\x01") + 4 :]
        if truth.kind == "#commit":
            header, blocks = libipld.decode_car(body["blocks"])
            assert header["roots"] == [body["commit"]]
            assert blocks[body["commit"]]["data"] in blocks
            for cid, block in blocks.items():
                assert cid[4:] == sha256(libipld.encode_dag_cbor(block)).digest()


def test_the_same_seed_gives_the_same_frames_and_another_seed_others() -> None:
    once, longer, other = list(frames(300)), list(frames(400)), list(frames(300, seed=8))
    assert once == longer[:300]
    assert {frame for frame, _ in once}.isdisjoint(frame for frame, _ in other)


def test_a_number_that_is_not_nine_bytes_long_is_refused() -> None:
    with pytest.raises(ValueError, match="first_seq"):
        next(frames(1, first_seq=1))


@pytest.fixture
def recorded(own_cache: Path) -> Path:
    return traffic.recording(1000)


def test_a_recording_holds_the_frames_and_their_truth_and_is_made_once(recorded: Path) -> None:
    assert list(zip(traffic.read(recorded), traffic.truths(recorded), strict=True)) == list(frames(1000))
    made_at = recorded.stat().st_mtime_ns
    assert traffic.recording(1000) == recorded
    assert recorded.stat().st_mtime_ns == made_at
    assert len(list(recorded.parent.iterdir())) == 2


def test_a_repetition_makes_new_posts_with_newer_keys_of_the_same_records(recorded: Path) -> None:
    block = Block(recorded)
    assert [block.frame(i) for i in range(len(block))] == traffic.read(recorded)
    first = usable(block)
    block.renew(3)
    again = usable(block)
    assert len(again) == len(first) > 900
    for before, after in zip(first, again, strict=True):
        assert before.seq
        assert (after.seq, after.did) == (before.seq + 3 * SPAN, before.did)
        assert after.time - before.time == 3 * SPAN_US // 1000 * 1000
        assert after.rev > max(event.rev for event in first) or not after.rev
        assert [(op.action, op.cid, op.block) for op in after.posts] == [
            (op.action, op.cid, op.block) for op in before.posts
        ]
        assert all(new.rkey > old.rkey for new, old in zip(after.posts, before.posts, strict=True) if old.rkey)
    keys = [{(event.did, op.rkey) for event in some for op in event.posts} for some in (first, again)]
    assert keys[0].isdisjoint(keys[1])
    block.renew(0)
    assert [block.frame(i) for i in range(len(block))] == traffic.read(recorded)


def test_a_repetition_begins_where_the_one_before_it_ended() -> None:
    assert 0 <= SPAN_US - SPAN * STEP_US < 100_000


def test_any_head_can_stand_before_the_frames(recorded: Path) -> None:
    block = Block(recorded, head=lambda size: b"\x82\x7e" + size.to_bytes(3, "big"))
    block.renew(1)
    first = int(block.starts[0])
    assert block.data[: first - 3] == b"\x82\x7e"
    assert int.from_bytes(block.data[first - 3 : first], "big") == len(block.frame(0))
    assert decode(block.frame(999)).seq == FIRST_SEQ + 999 + SPAN


def usable(block: Block) -> list[Event]:
    """What is in all frames that have a number."""
    found = []
    for i in range(len(block)):
        try:
            event = decode(block.frame(i))
        except BadInput:
            continue
        if event.seq:
            found.append(event)
    return found


def commits(made: Made) -> list[tuple[Event, Truth]]:
    return [(decode(frame), truth) for frame, truth in made if truth.kind == "#commit"]


def fault_of(op: PostOp) -> str:
    """What is wrong with an operation or its record, by the service's own judgement; empty: nothing."""
    if not op.block:
        return op.fault or ""
    verdict = judge_record(op.cid, op.block)
    return str(verdict.reason) if verdict.kind == "bad" else ""
