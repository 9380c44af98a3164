from typing import Any

import pytest

from civicsky.document import BACKDATED_US, hour_document, label_document, post_changes, post_document
from civicsky.model import Answer, FieldLabel, LabelRow, Outgoing, PostRow, PostState, Unlabelled
from unit.recorded import DID

URI = f"at://{DID}/app.bsky.feed.post/3k"
EVENT_AT = 1_795_350_645_740_000
FIELDS: dict[str, Any] = {
    "text": "hello",
    "langs": ["en"],
    "created_at": EVENT_AT - 1_000_000,
    "reply_root": "at://root",
    "reply_parent": "at://parent",
    "quote_uri": "at://quote",
    "link": {"uri": "u", "title": "t", "description": "d"},
    "alts": ["alt"],
    "media": "images",
    "tags": ["tag"],
    "links": ["link"],
    "mentions": ["did:plc:m"],
    "self_labels": ["!warn"],
    "filter": {"version": "v", "english_by": ["tag"], "scores": {}, "flags": []},
}
ANSWER = Answer(
    fields={"civic": FieldLabel("civic", 0.9), "lean": FieldLabel("unclear", None)},
    way="words",
    prompt_hash="hash",
    model_asked="asked",
    model_named="named",
    fingerprint="print",
    parameters='{"temperature":0}',
    endpoint="http://model",
    input_hash="ab",
    tokens_in=11,
    tokens_out=2,
    latency_ms=33,
    calls=2,
    context_hash="cd",
    tokens_reasoning=1,
    cost=0.25,
    currency="EUR",
    server="llama.cpp 1",
    reason="It is about a law.",
    cached_from="id0",
)


def out(state: PostState = "live") -> Outgoing:
    return Outgoing(DID, "3k", v=7, state=state, event_at=EVENT_AT, known=True)


def row(**changes: Any) -> PostRow:
    full = {
        "rkey": "3k",
        "did": DID,
        "rev": "3n2vmmrldjs24",
        "cid": "bafy1",
        "state": "live",
        "host": "wss://relay",
        "event_at": EVENT_AT,
        "received_at": EVENT_AT + 5_000_000,
        "p_kept": 1.0,
        "fields": FIELDS,
    }
    return PostRow(**{**full, **changes})


def label(**changes: Any) -> LabelRow:
    full = {
        "label_id": "id1",
        "did": DID,
        "rkey": "3k",
        "cid": "bafy1",
        "task": "civic",
        "task_version": "1",
        "run": 2,
        "p_sampled": 0.5,
        "at": EVENT_AT + 9_000_000,
        "attempts": 3,
        "answer": ANSWER,
    }
    return LabelRow(**{**full, **changes})


TOMBSTONE = {"_id": URI, "uri": URI, "v": 7, "state": "deleted", "event_at": "2026-11-22T12:30:45.740Z"}
LABEL_FIELDS = {
    "civic": {"value": "civic", "probability": 0.9},
    "lean": {"value": "unclear", "probability": None},
}


# ---- posts -----------------------------------------------------------------------------------------------------------


def test_a_posts_document_has_every_field() -> None:
    assert post_document(out(), row(), [label()]) == {
        "_id": URI,
        "uri": URI,
        "did": DID,
        "rkey": "3k",
        "cid": "bafy1",
        "rev": "3n2vmmrldjs24",
        "v": 7,
        "state": "live",
        "text": "hello",
        "langs": ["en"],
        "created_at": "2026-11-22T12:30:44.740Z",
        "event_at": "2026-11-22T12:30:45.740Z",
        "received_at": "2026-11-22T12:30:50.740Z",
        "backdated": False,
        "reply_root": "at://root",
        "reply_parent": "at://parent",
        "quote_uri": "at://quote",
        "link": {"uri": "u", "title": "t", "description": "d"},
        "alts": ["alt"],
        "media": "images",
        "tags": ["tag"],
        "links": ["link"],
        "mentions": ["did:plc:m"],
        "self_labels": ["!warn"],
        "origins": [{"kind": "firehose", "host": "wss://relay"}],
        "moderation": [],
        "filter": {"version": "v", "english_by": ["tag"], "scores": {}, "flags": []},
        "p_kept": 1.0,
        "labels": {
            "civic": {
                "fields": LABEL_FIELDS,
                "p_sampled": 0.5,
                "model": "named",
                "prompt": "hash",
                "cid": "bafy1",
                "label_id": "id1",
                "at": "2026-11-22T12:30:54.740Z",
            }
        },
        "unlabelled": {},
    }


def test_a_hidden_post_is_told_as_hidden_with_its_text() -> None:
    document = post_document(out("hidden"), row(state="hidden"), [])
    assert document is not None
    assert (document["state"], document["text"], document["labels"]) == ("hidden", "hello", {})


@pytest.mark.parametrize(
    ("created", "text", "backdated"),
    [
        (None, None, False),
        (EVENT_AT, "2026-11-22T12:30:45.740Z", False),
        (EVENT_AT + 10**12, "2026-12-04T02:17:25.740Z", False),
        (EVENT_AT - BACKDATED_US, "2026-11-21T12:30:45.740Z", False),
        (EVENT_AT - BACKDATED_US - 1, "2026-11-21T12:30:45.739Z", True),
        (0, "1970-01-01T00:00:00.000Z", True),
    ],
)
def test_a_post_is_backdated_when_it_claims_to_be_more_than_a_day_older(
    created: int | None, text: str | None, *, backdated: bool
) -> None:
    document = post_document(out(), row(fields={**FIELDS, "created_at": created}), [])
    assert document is not None
    assert (document["created_at"], document["backdated"]) == (text, backdated)


@pytest.mark.parametrize("held", [None, row(), row(fields=None, state="deleted", cid="")])
def test_a_deleted_post_leaves_address_and_time_only(held: PostRow | None) -> None:
    assert post_document(out("deleted"), held, [label()]) == TOMBSTONE


@pytest.mark.parametrize("state", ["live", "hidden"])
def test_a_deletion_that_the_row_shows_counts_already(state: PostState) -> None:
    assert post_document(out(state), row(fields=None, state="deleted", cid=""), [label()]) == TOMBSTONE


@pytest.mark.parametrize("state", ["live", "hidden"])
def test_a_post_whose_row_is_gone_has_no_document(state: PostState) -> None:
    assert post_document(out(state), None, [label()]) is None


def test_a_label_of_a_former_text_or_one_that_was_erased_is_not_the_posts() -> None:
    labels = [label(cid="bafy0"), label(task="other", answer=None)]
    document = post_document(out(), row(), labels)
    assert document is not None
    assert document["labels"] == {}


def test_the_last_label_of_each_task_is_the_posts() -> None:
    labels = [label(label_id="a"), label(label_id="b", task="other"), label(label_id="c"), label(label_id="d", cid="x")]
    document = post_document(out(), row(), labels)
    assert document is not None
    assert {task: of["label_id"] for task, of in document["labels"].items()} == {"civic": "c", "other": "b"}


def failure(task: str = "civic", cid: str = "bafy1") -> Unlabelled:
    return Unlabelled(DID, "3k", cid, task, "refusal", 0.5)


def test_a_post_that_was_drawn_and_got_no_label_says_why_and_with_which_probability_it_was_drawn() -> None:
    document = post_document(out(), row(), [label()], [failure("toxicity")])
    assert document is not None
    assert document["unlabelled"] == {"toxicity": {"reason": "refusal", "p_sampled": 0.5}}
    assert document["labels"].keys() == {"civic"}


def test_a_failure_under_a_former_text_or_one_that_has_a_label_by_now_is_not_told() -> None:
    for of in (row(), None):
        failures = [failure(), failure("toxicity", "bafy0")]
        changes = (
            post_document(out(), of, [label()], failures)
            if of
            else post_changes(out()._replace(cid="bafy1"), [label()], failures)
        )
        assert changes is not None
        assert changes["unlabelled"] == {}


# ---- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["live", "hidden"])
def test_a_labels_document_has_all_that_is_needed_to_defend_it(state: PostState) -> None:
    assert label_document(out(state), label()) == {
        "_id": "id1",
        "uri": URI,
        "v": 7,
        "state": state,
        "cid": "bafy1",
        "task": "civic",
        "task_version": "1",
        "run": 2,
        "prompt": "hash",
        "fields": LABEL_FIELDS,
        "reason": "It is about a law.",
        "p_sampled": 0.5,
        "model": "named",
        "model_asked": "asked",
        "fingerprint": "print",
        "server": "llama.cpp 1",
        "way": "words",
        "parameters": '{"temperature":0}',
        "endpoint": "http://model",
        "input_hash": "ab",
        "context_hash": "cd",
        "tokens_in": 11,
        "tokens_out": 2,
        "tokens_reasoning": 1,
        "cost": 0.25,
        "currency": "EUR",
        "cached_from": "id0",
        "latency_ms": 33,
        "calls": 2,
        "attempts": 3,
        "at": "2026-11-22T12:30:54.740Z",
    }


@pytest.mark.parametrize(
    ("state", "held"), [("live", label(answer=None)), ("deleted", label()), ("deleted", label(answer=None))]
)
def test_a_label_that_was_erased_leaves_a_tombstone(state: PostState, held: LabelRow) -> None:
    assert label_document(out(state), held) == {**TOMBSTONE, "_id": "id1"}


def test_a_label_keeps_the_cid_of_the_text_that_was_read() -> None:
    assert label_document(out(), label(cid="bafy0"))["cid"] == "bafy0"


def test_an_hour_has_its_counts_by_outcome_and_the_reasons_of_what_was_not_kept() -> None:
    document = hour_document(
        1_795_708_800_000_000,
        {
            ("frame", "received", ""): 9, ("frame", "commit", ""): 7, ("frame", "ignored", "$made.up"): 1,
            ("frame", "quarantined", "undecodable"): 1, ("post", "kept", ""): 4, ("post", "rejected", "language"): 2,
            ("post", "rejected", "adult"): 1, ("post", "quarantined", "undecodable"): 2, ("record", "create", "a.b"): 5,
            ("record", "create", "other"): 1, ("record", "$set.x", "other"): 1, ("feed", "new", ""): 3,
            ("feed", "rejected", "language"): 2, ("feed", "failed", "bad_text"): 1, ("recheck", "deleted", ""): 1,
            ("retry", "rejected", "adult"): 1,
        },
    )  # fmt: skip
    assert document == {
        "_id": "2026-11-26T16:00:00.000Z",
        "hour": "2026-11-26T16:00:00.000Z",
        "counts": {
            "frame": {"commit": 7, "ignored": 1, "quarantined": 1, "received": 9},
            "post": {"kept": 4, "quarantined": 2, "rejected": 3},
            "record": {"create": 6, "other": 1},
            "feed": {"failed": 1, "new": 3, "rejected": 2},
            "recheck": {"deleted": 1},
            "retry": {"rejected": 1},
        },
        "rejected": {"adult": 1, "language": 2},
        "quarantined": {"undecodable": 3},
        "feed_rejected": {"language": 2},
        "feed_failed": {"bad_text": 1},
    }
