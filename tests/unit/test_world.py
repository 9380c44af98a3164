"""The made world, against our decoder, the SDK and cbor2: the truth of its events is what its frames say."""

import io
from collections import Counter
from functools import cache

import cbor2
import pytest
from atproto import CAR, firehose_models, parse_subscribe_repos_message  # type: ignore[import-untyped]

from civicsky.decode import decode
from civicsky.errors import BadInput
from civicsky.model import RejectReason, cid_text, parse_time
from civicsky.worker import judge_record
from support.hostile import HOSTILE
from support.world import Event, World


@cache
def world() -> World:
    made = World(7, hostile=0.1)
    made.take(4000)
    return made


def as_decoded(event: Event) -> tuple[str, str, list[tuple[int, str, str, str, str]]]:
    """(outcome, reason, operations on posts with their verdicts), as civicsky has them."""
    data = event.data()
    if isinstance(data, str):
        return "ignored", "text", []
    try:
        found = decode(data)
    except BadInput as bad:
        return "quarantined", bad.reason, []
    ops: list[tuple[int, str, str, str, str]] = []
    for op in found.posts:
        if op.action == "delete":
            verdict = ""
        elif op.fault:
            verdict = op.fault
        else:
            judged = judge_record(op.cid, op.block)
            verdict = judged.reason or "kept"
        ops.append((op.idx, op.action, op.rkey, cid_text(op.cid) if op.cid else "", verdict))
    if found.outcome != "ignored":
        assert (found.seq, found.did, found.rev if event.ops else "") == (
            event.n, event.did, event.rev if event.ops else ""
        )  # fmt: skip
        assert found.time == event.at == parse_time(event.time)
        assert found.status == event.status
    return found.outcome, found.name, ops


def test_our_decoding_and_judgement_of_every_event_is_what_it_is_marked_with() -> None:
    seen = set()
    for event in world():
        meant = [
            (idx, op.action, op.rkey, "" if event.kind == "null_cid" else op.cid, op.verdict)
            for idx, op in zip(event.idx, event.ops, strict=True)
        ]
        assert as_decoded(event) == (event.outcome, event.reason, meant), event
        seen.add(event.kind)
    assert seen >= set(HOSTILE)


def test_the_mix_has_everything_in_about_the_right_shares() -> None:
    ops = Counter(op.verdict or op.action for event in world() for op in event.ops)
    kinds = Counter(event.kind for event in world())
    reasons: tuple[RejectReason, ...] = ("language", "no_text", "adult")
    assert min(ops[reason] for reason in reasons) > 10
    assert kinds["other"] > 0.45 * world().head
    assert 0.2 < kinds["post"] / world().head < 0.3
    assert {"again", "update", "delete", "delete_unseen", "identity", "sync", "empty", "large", "end"} <= set(kinds)
    assert {event.status for event in world()} >= {"active", "deactivated", "takendown", "suspended", "deleted"}


def test_every_valid_frame_is_what_the_sdk_and_cbor2_find_in_it() -> None:
    for event in world():
        if event.kind in HOSTILE:
            continue
        data = event.data()
        assert isinstance(data, bytes)
        message = firehose_models.Frame.from_bytes(data)
        parsed = parse_subscribe_repos_message(message)
        header, body = (decoder := cbor2.CBORDecoder(io.BytesIO(data))).decode(), decoder.decode()
        assert header == {"t": message.type, "op": 1}
        assert message.type == "#" + event.outcome
        assert cbor2.dumps(header, canonical=True) + cbor2.dumps(body, canonical=True) == data
        assert (parsed.seq, parsed.time, body["seq"], body["time"]) == (event.n, event.time) * 2
        if event.outcome != "commit":
            continue
        assert len(parsed.ops) <= 200
        records = {str(cid): record for cid, record in CAR.from_bytes(parsed.blocks).blocks.items()}
        told = {at: op for at, op in enumerate(parsed.ops) if op.path.startswith("app.bsky.feed.post/")}
        assert list(told) == list(event.idx)
        for op, meant in zip(told.values(), event.ops, strict=True):
            assert (op.action, op.path.rpartition("/")[2], str(op.cid or "")) == (meant.action, meant.rkey, meant.cid)
            if op.cid:
                assert records[str(op.cid)]["text"] == meant.text


def test_the_same_seed_gives_the_same_events_and_another_seed_others() -> None:
    first, second, other = (
        [event.data() for event in World(seed, crash_mark="C", hang_mark="H").take(300)] for seed in (3, 3, 4)
    )
    assert first == second
    assert first != other


def test_no_two_texts_are_the_same_and_revisions_rise() -> None:
    texts = [op.text for event in world() for op in event.ops if op.text]
    assert len(set(texts)) == len(texts)
    revs = [event.rev for event in world() if event.ops]
    assert revs == sorted(set(revs))


def test_a_deleted_account_makes_nothing_more_and_a_hidden_one_may() -> None:
    status: dict[str, str] = {}
    while_hidden = 0
    for event in world():
        before = status.get(event.did, "active")
        assert before != "deleted"
        while_hidden += before != "active" and bool(event.ops)
        if event.status:
            assert event.status != before
            status[event.did] = event.status
    assert while_hidden


def test_marked_posts_are_made_only_when_asked_for() -> None:
    marked = World(5, hostile=0.5, crash_mark="CRASHMARK", hang_mark="HANGMARK")
    verdicts = Counter(op.verdict for event in marked.take(600) for op in event.ops)
    assert verdicts["worker_crashed"] > 3
    assert verdicts["worker_timeout"] > 3
    assert not any("MARK" in op.text for event in world() for op in event.ops)


def test_times_can_be_shifted_and_messages_forgotten() -> None:
    made = World(5)
    made.take(10)
    before = [event.at for event in made]
    made.shift(6, 1_000_000)
    assert [event.at for event in made] == before[:5] + [at + 1_000_000 for at in before[5:]]
    assert made.make().at == before[-1] + 1_003_000
    made.forget(3)
    with pytest.raises(AssertionError, match="forgotten"):
        made.event(3).data()


def test_a_big_event_is_as_big_as_asked_and_can_be_decoded() -> None:
    made = World(5)
    made.take(10)
    made.want_big(5_000_000)
    event = made.make()
    data = event.data()
    assert isinstance(data, bytes)
    assert 5_000_000 <= len(data) < 5_010_000
    (op,) = decode(data).posts
    assert judge_record(op.cid, op.block).kind == "kept"
    assert made.state(event.did, op.rkey) == "live"
