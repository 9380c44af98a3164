"""What users read: a post's row and its labels in, the store's documents out. Pure.

Both stores hold the same documents; times are RFC 3339 strings here, and the store may keep them as dates.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from civicsky.model import (
    AuthorRow,
    Gated,
    Judged,
    LabelRow,
    Outgoing,
    PostRow,
    Seen,
    Shown,
    Snapshot,
    Unlabelled,
    format_time,
    post_uri,
)

Document = dict[str, Any]
FIREHOSE: Final = "firehose"
ANY: Final = "any"
FEED: Final = "feed:"
"""How a post came (`origins_of`); `any` stands for all ways, `feed:` begins those of feeds."""

TIMES: Final = frozenset(
    {
        "created_at",
        "event_at",
        "received_at",
        "at",
        "started",
        "first_at",
        "last_at",
        "from_at",
        "until_at",
        "fetched_at",
        "looked_up_at",
        "hour",
    }
)
"""Keys, at any depth, whose values are times."""
_ACTIONS: Final = frozenset({"create", "update", "delete"})
BACKDATED_US: Final = 24 * 3_600_000_000


def origins_of(document: Document) -> set[str]:
    """The ways by which a post came: `firehose`, `feed:NAME`."""
    return {FEED + one["name"] if one["kind"] == "feed" else FIREHOSE for one in document.get("origins") or ()}


def post_document(
    out: Outgoing,
    row: PostRow | None,
    labels: Sequence[LabelRow],
    failures: Sequence[Unlabelled] = (),
    shown: Shown = Shown(),  # noqa: B008  (a tuple)
    gated: Sequence[Gated] | None = None,
) -> Document | None:
    """The document of one post; a tombstone for a deleted one; None when the row is gone but the post is not deleted.

    The row may be newer than `out`: then the deletion that it shows counts already.
    """
    if out.state == "deleted" or (row is not None and row.fields is None):
        return _tombstone(out, post_uri(out.did, out.rkey))
    if row is None or row.fields is None:
        return None
    fields = row.fields
    created = fields["created_at"]
    return {
        "_id": post_uri(out.did, out.rkey),
        "uri": post_uri(out.did, out.rkey),
        "did": out.did,
        "rkey": out.rkey,
        "cid": row.cid,
        "rev": row.rev,
        "v": out.v,
        "state": out.state,
        "text": fields["text"],
        "langs": fields["langs"],
        "created_at": None if created is None else format_time(created),
        "event_at": format_time(row.event_at),
        "received_at": format_time(row.received_at),
        "backdated": created is not None and created < row.event_at - BACKDATED_US,
        **{name: fields[name] for name in _PLAIN},
        "origins": [*([{"kind": "firehose", "host": row.host}] if row.host else []), *map(_feed, shown.seen)],
        "moderation": list(shown.moderation or ()),
        "filter": fields["filter"],
        "p_kept": row.p_kept,
        **_said(row.cid, labels, failures),
        **_not_let_pass(row.cid, gated or (), always=False),
    }


def post_changes(
    out: Outgoing,
    labels: Sequence[LabelRow],
    failures: Sequence[Unlabelled] = (),
    shown: Shown | None = None,
    former: Sequence[Document] = (),
    gated: Sequence[Gated] | None = None,
) -> Document:
    """What may still change of a stored post whose record the journal no longer has: its state and its labels.

    And, when a feed showed it since, what that says of it; `former` are the origins that the store has. `gated` is None
    when no gate ever said anything of the post.
    """
    document = {"_id": post_uri(out.did, out.rkey), "v": out.v, "state": out.state}
    if shown and shown.seen and former:
        there = {origin.get("name") for origin in former}
        document["origins"] = [*former, *(_feed(one) for one in shown.seen if one.name not in there)]
    if shown and shown.moderation is not None:
        document["moderation"] = list(shown.moderation)
    passed = _not_let_pass(out.cid, gated or (), always=gated is not None)
    return {**document, **_said(out.cid, labels, failures), **passed}


def snapshot_document(one: Snapshot) -> Document:
    """The document of what was counted of a post at one time."""
    uri, at = post_uri(one.did, one.rkey), format_time(one.at)
    counts = {"likes": one.likes, "reposts": one.reposts, "replies": one.replies, "quotes": one.quotes}
    return {
        "_id": f"{uri} {at} {one.why}",
        "uri": uri,
        "v": one.at,
        "at": at,
        "why": one.why,
        "rank": one.rank,
        **counts,
    }


def author_document(out: AuthorRow) -> Document:
    """The document of an author of labelled posts; a tombstone without a profile once nothing of theirs is left."""
    document = {"_id": out.did, "did": out.did, "v": out.v, "state": out.state}
    if out.profile is None:
        return document
    profile = out.profile
    created = profile["created_at"]
    return {
        **document,
        "handle": out.handle or None,
        "created_at": None if created is None else format_time(created),
        **{name: profile[name] for name in ("followers", "follows", "posts", "marks", "lists")},
        "moderation": [{**label, "at": label["at"] or None} for label in profile["moderation"]],
        "looked_up_at": format_time(profile["looked_up_at"]),
    }


def _feed(one: Seen) -> Document:
    return {"kind": "feed", "name": one.name, "rank": one.rank, "fetched_at": format_time(one.at)}


def _said(cid: str, labels: Sequence[LabelRow], failures: Sequence[Unlabelled]) -> Document:
    # Later labels of a task replace earlier ones; a label of a former text is not this text's.
    current = {label.task: _current(label) for label in labels if label.cid == cid and label.answer}
    return {
        "labels": current,
        "unlabelled": {
            one.task: {"reason": one.reason, "p_sampled": one.p_sampled, **_judged(one.judged)}
            for one in failures
            if one.cid == cid and one.task not in current
        },
    }


def _judged(one: Judged | None) -> Document:
    """What the gate said; nothing where it was not asked."""
    if one is None:
        return {}
    gate = {"version": one.version, "probability": one.probability, "passed": one.passed}
    return {"p_asked": one.p_asked, "gate": gate}


def _not_let_pass(cid: str, gated: Sequence[Gated], *, always: bool) -> Document:
    """By task, what the gate kept from the model; without any, nothing, or with `always` that there is none."""
    found = {one.task: {"p_sampled": one.p_sampled, **_judged(one.judged)} for one in gated if one.cid == cid}
    return {"gated": found} if found or always else {}


def label_document(out: Outgoing, label: LabelRow) -> Document:
    """The document of one label, with all that is needed to defend it; a tombstone once it was erased."""
    answer = label.answer
    uri = post_uri(label.did, label.rkey)
    if answer is None or out.state == "deleted":
        return {**_tombstone(out, uri), "_id": label.label_id}
    return {
        "_id": label.label_id,
        "uri": uri,
        "v": out.v,
        "state": out.state,
        "cid": label.cid,
        "task": label.task,
        "task_version": label.task_version,
        "run": label.run,
        "prompt": answer.prompt_hash,
        "fields": _fields(label),
        "reason": answer.reason,
        "p_sampled": label.p_sampled,
        **_judged(label.judged),
        "model": answer.model_named,
        "model_asked": answer.model_asked,
        "fingerprint": answer.fingerprint,
        "server": answer.server,
        "way": answer.way,
        "parameters": answer.parameters,
        "endpoint": answer.endpoint,
        "input_hash": answer.input_hash,
        "context_hash": answer.context_hash,
        "tokens_in": answer.tokens_in,
        "tokens_out": answer.tokens_out,
        "tokens_reasoning": answer.tokens_reasoning,
        "cost": answer.cost,
        "currency": answer.currency,
        "cached_from": answer.cached_from,
        "latency_ms": answer.latency_ms,
        "calls": answer.calls,
        "attempts": label.attempts,
        "at": format_time(label.at),
        **({"events": json.loads(answer.events)} if answer.events else {}),
    }


def _current(label: LabelRow) -> Document:
    assert label.answer is not None
    return {
        "fields": _fields(label),
        "p_sampled": label.p_sampled,
        **_judged(label.judged),
        "model": label.answer.model_named,
        "prompt": label.answer.prompt_hash,
        "cid": label.cid,
        "label_id": label.label_id,
        "at": format_time(label.at),
    }


def _fields(label: LabelRow) -> Document:
    assert label.answer is not None
    return {
        name: {"value": field.value, "probability": field.probability} for name, field in label.answer.fields.items()
    }


def hour_document(hour: int, counts: Mapping[tuple[str, str, str], int]) -> Document:
    """The document of one hour of the journal's counts, by (unit, outcome, reason); `hour` is its beginning.

    Names that the far side chooses are not keys: what collections there are is left out, and so is why a frame was
    ignored.
    """
    found: dict[str, Counter[str]] = {unit: Counter() for unit in ("frame", "post", "record", "feed")}
    reasons: dict[str, Counter[str]] = {
        name: Counter() for name in ("rejected", "quarantined", "feed_rejected", "feed_failed")
    }
    for (unit, outcome, reason), n in counts.items():
        known = unit != "record" or outcome in _ACTIONS
        found.setdefault(unit, Counter())[outcome if known else "other"] += n
        name = f"feed_{outcome}" if unit == "feed" else outcome
        if reason and unit in {"frame", "post", "feed"} and name in reasons:
            reasons[name][reason] += n
    at = format_time(hour)
    return {"_id": at, "hour": at, "counts": _sorted(found), **_sorted(reasons)}


def _sorted(counts: Mapping[str, Mapping[str, int]]) -> Document:
    return {name: dict(sorted(inner.items())) for name, inner in counts.items()}


def _tombstone(out: Outgoing, uri: str) -> Document:
    """URI and time only: it stays, so that nothing late brings the post back."""
    return {"_id": uri, "uri": uri, "v": out.v, "state": "deleted", "event_at": format_time(out.event_at)}


_PLAIN: Final = (
    "reply_root",
    "reply_parent",
    "quote_uri",
    "link",
    "alts",
    "media",
    "tags",
    "links",
    "mentions",
    "self_labels",
)
