"""The one rule of order: what one batch of the stream does to what the journal knows. Pure.

An operation on a post applies only if its (rev, idx) is greater than the row's; replays, overlap of hosts and a delete
that comes before its create need nothing else. An account's status has no rev: the newest event time wins.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Literal, NamedTuple

from civicsky.model import HIDING, Event, Frame, Key, PostOp, PostOutcome, PostState, Verdict, post_uri

BEFORE_ALL: Final = ("", -1)
"""(rev, idx) before that of any operation: of a post that only a feed showed."""
HELD: Final = frozenset({"live", "hidden"})
"""States of a post that is there."""
CHANGES: Final = {"active": "show", "deleted": "remove"}
"""What an account's status does to its posts; any other hides them."""


class Known(NamedTuple):
    """What the journal knows of a post: its order and state. Rejected posts are known by key alone."""

    rev: str | None
    idx: int
    state: PostState | Literal["rejected"]
    event_at: int = 0
    received_at: int = 0


class Account(NamedTuple):
    """An account's newest status: `active`, or why not."""

    status: str
    at: int


class PostWrite(NamedTuple):
    """A row to write into the table of posts; columns in their order there."""

    rkey: str
    did: str
    rev: str | None
    """None: only a feed showed it."""
    idx: int
    cid: str
    state: PostState
    host: str
    event_at: int
    received_at: int
    p_kept: float
    record: bytes | None
    fields: str | None


class RejectWrite(NamedTuple):
    """A row to write into the table of rejected posts."""

    rkey: str
    did: str
    rev: str
    idx: int
    reason: str
    at: int
    record: bytes | None


class QuarantineWrite(NamedTuple):
    """Bytes to put aside."""

    sha256: str
    host: str
    epoch: int
    after_seq: int | None
    reason: str
    bytes: bytes
    at: int
    did: str
    """Empty when it could not be told."""


@dataclass(frozen=True)
class Rules:
    """What besides the stream decides whether a post is kept."""

    reject_sample: float = 0.0
    """Share of the rejected posts whose record is kept."""
    erased: frozenset[str] = frozenset()
    """DIDs and AT-URIs that must never come back."""
    share: float = 1.0
    """Below 1 while the disk is full: the probability with which a new post is kept."""
    key: bytes = b""
    """Of the hash that draws the share: without it nobody can tell which posts will be kept."""


@dataclass
class Plan:
    """What must be written for the frames applied so far, and what is known after them."""

    known: dict[Key, Known]
    accounts: dict[str, Account]
    cursor: int | None
    rules: Rules
    posts: dict[Key, PostWrite] = field(default_factory=dict)
    tombstones: dict[Key, PostWrite] = field(default_factory=dict)
    """Of posts that were made again behind it; to be written before them, for what else goes with a deletion."""
    rejects: dict[Key, RejectWrite] = field(default_factory=dict)
    rejected: set[Key] = field(default_factory=set)
    """Those with a row in the table of rejected posts."""
    authors: set[str] = field(default_factory=set)
    """Those with posts, sampled rejects or frames put aside, before these frames or by them."""
    forgotten_rejects: set[Key] = field(default_factory=set)
    account_writes: dict[str, Account] = field(default_factory=dict)
    changes: list[tuple[str, str, str, str, int]] = field(default_factory=list)
    """(kind, did, rkey, rev, at)."""
    quarantine: list[QuarantineWrite] = field(default_factory=list)
    deleting: set[str] = field(default_factory=set)
    """Authors who deleted a post: what was put aside of them before goes, since it may hold that post."""
    frame_aside: int = 0
    """The last arrival that was put aside."""
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    @property
    def kept(self) -> int:
        """New posts kept."""
        return self.counts["post", "kept", ""]


def notable(frames: Sequence[Frame]) -> list[int]:
    """Where the frames are that do more than move the cursor and the counts; the others are for `pass_by`."""
    return [at for at, frame in enumerate(frames) if frame.event.posts or frame.outcome != "commit"]


def pass_by(plan: Plan, frames: Sequence[Frame]) -> None:
    """Apply commits without an operation on a post: nine in ten of all frames."""
    if not frames:
        return
    plan.counts["frame", "commit", ""] += len(frames)
    for (collection, action), n in Counter(chain.from_iterable([frame.event.others for frame in frames])).items():
        plan.counts["record", action, collection] += n
    plan.cursor = max(plan.cursor or 0, *[frame.event.seq or 0 for frame in frames])


def apply(plan: Plan, frame: Frame, verdicts: Iterator[Verdict]) -> Account | None:
    """Apply one frame; `verdicts` yields those of its records, in order.

    Gives the account's new status when posts that lie in the database change state with it: the caller must write the
    plan out, change those posts, and only then go on.
    """
    event = frame.event
    plan.counts["frame", frame.outcome, frame.reason] += 1
    if frame.outcome == "quarantined":
        _set_aside(plan, frame, frame.reason)
    if event.seq is not None and frame.outcome not in {"duplicate", "ignored"}:
        plan.cursor = max(event.seq, plan.cursor or 0)  # a late frame does not move it back
    if frame.outcome == "commit":
        for collection, action in event.others:
            plan.counts["record", action, collection] += 1
        for op in event.posts:
            verdict = next(verdicts) if op.needs_verdict else Verdict("bad", op.fault or "")
            outcome, reason = _apply_op(plan, frame, op, verdict)
            plan.counts["post", outcome, reason] += 1
    return _apply_account(plan, event) if frame.outcome == "account" else None


def keys(frames: Iterable[Frame]) -> set[Key]:
    """The posts that these frames touch."""
    return {
        (op.rkey, frame.event.did)
        for frame in frames
        if frame.outcome == "commit"
        for op in frame.event.posts
        if op.rkey
    }


def dids(frames: Iterable[Frame]) -> set[str]:
    """The accounts whose status matters to these frames."""
    return {
        frame.event.did
        for frame in frames
        if frame.outcome == "account" or (frame.outcome == "commit" and frame.event.posts)
    }


def state_for(account: Account | None) -> PostState:
    """The state of a post that is there, given its account's status."""
    return "live" if account is None or account.status == "active" else "hidden"


def sampled(key: Key, share: float, what: bytes = b"reject-sample", secret: bytes = b"") -> bool:
    """Draw a uniform share of keys for some purpose (`what`), always the same ones."""
    digest = hashlib.blake2b("/".join(key).encode(), digest_size=8, person=what, key=secret).digest()
    return int.from_bytes(digest) < share * 2**64


def _apply_op(plan: Plan, frame: Frame, op: PostOp, verdict: Verdict) -> tuple[PostOutcome, str]:
    event, key, rules = frame.event, (op.rkey, frame.event.did), plan.rules
    if event.did in rules.erased and (op.fault or op.action != "delete"):
        return "rejected", "erased"
    if op.fault is not None:
        _set_aside(plan, frame, op.fault)
        return "quarantined", op.fault
    known = plan.known.get(key)
    if known and (event.rev, op.idx) <= ((known.rev, known.idx) if known.rev else BEFORE_ALL):
        return "stale", ""
    account = plan.accounts.get(event.did)
    if account and account.status == "deleted" and event.time <= account.at:
        return "stale", ""
    if op.action == "delete":
        _write(plan, frame, op, "deleted", "", None)
        return "deleted", ""
    if rules.erased and post_uri(event.did, op.rkey) in rules.erased:
        return "rejected", "erased"
    if verdict.kind == "bad":
        _set_aside(plan, frame, verdict.reason)
        return "quarantined", verdict.reason
    is_held = known is not None and known.state in HELD
    if verdict.kind == "rejected" and not is_held:
        _reject(plan, frame, op, verdict.reason)
        return "rejected", verdict.reason
    if not is_held and rules.share < 1 and not sampled(key, rules.share, b"shed", rules.key):
        return "shed", ""
    # A post once kept stays, whatever an edit made of it: it must not vanish silently. The verdict on the new text is
    # in its `filter` field.
    _write(plan, frame, op, state_for(account), verdict.cid, verdict.fields)
    return ("updated" if is_held else "kept"), ""


def _write(plan: Plan, frame: Frame, op: PostOp, state: PostState, cid: str, fields: str | None) -> None:
    event, key = frame.event, (op.rkey, frame.event.did)
    known = plan.known.get(key)
    event_at, received_at = event.time, frame.arrival.received_at
    if known and known.state in HELD:  # an edit or a deletion does not change when the post was made
        if known.rev or op.action != "create":  # else only a feed told of it, and the relay knows the time better
            event_at = known.event_at
        if state != "deleted":  # of a tombstone it says since when it is one
            received_at = known.received_at
    if state == "deleted":
        plan.deleting.add(event.did)
        plan.quarantine[:] = [row for row in plan.quarantine if row.did != event.did]
        plan.frame_aside = frame.arrival.n  # the post may lie in this very frame
    before = plan.posts.get(key)
    if before is not None and before.state == "deleted" != state:
        plan.tombstones[key] = before
    plan.posts[key] = PostWrite(
        op.rkey,
        event.did,
        event.rev,
        op.idx,
        cid,
        state,
        frame.arrival.host,
        event_at,
        received_at,
        plan.rules.share,
        op.block or None,
        fields,
    )
    plan.authors.add(event.did)
    plan.rejects.pop(key, None)
    if key in plan.rejected:
        plan.forgotten_rejects.add(key)
    plan.known[key] = Known(event.rev, op.idx, state, event_at, received_at)
    plan.changes.append(("delete" if state == "deleted" else "put", event.did, op.rkey, event.rev, event.time))


def _reject(plan: Plan, frame: Frame, op: PostOp, reason: str) -> None:
    event, key = frame.event, (op.rkey, frame.event.did)
    record = op.block if sampled(key, plan.rules.reject_sample) else None
    plan.rejects[key] = RejectWrite(op.rkey, event.did, event.rev, op.idx, reason, frame.arrival.received_at, record)
    plan.rejected.add(key)
    plan.authors.add(event.did)
    plan.known[key] = Known(event.rev, op.idx, "rejected")


def _apply_account(plan: Plan, event: Event) -> Account | None:
    before = plan.accounts.get(event.did)
    if before and event.time < before.at:
        return None
    status = event.status if event.status in HIDING | {"active", "deleted"} else "deactivated"
    now = Account(status, event.time)
    plan.accounts[event.did] = plan.account_writes[event.did] = now
    again = before is not None and event.time == before.at
    # A lookup may have told of a deletion before the stream did: what was kept in between goes now.
    if status == (before.status if before else "active") and (status != "deleted" or again):
        return None
    plan.changes.append((CHANGES.get(status, "hide"), event.did, "", "", event.time))
    for key, row in plan.known.items():
        if key[1] == event.did and row.state in HELD:
            plan.known[key] = row._replace(state="deleted" if status == "deleted" else state_for(now))
    return now


def _set_aside(plan: Plan, frame: Frame, reason: str) -> None:
    """Keep a frame to be looked at or tried again: once, however many of its operations are at fault."""
    arrival = frame.arrival
    if not isinstance(arrival.data, bytes) or plan.frame_aside == arrival.n:
        return
    erased = plan.rules.erased
    if erased and any(post_uri(frame.event.did, op.rkey) in erased for op in frame.event.posts):
        return  # the frame holds a text that must not come back
    plan.frame_aside = arrival.n
    plan.authors.add(frame.event.did)
    plan.quarantine.append(
        QuarantineWrite(
            hashlib.sha256(arrival.data).hexdigest(),
            arrival.host,
            arrival.epoch,
            plan.cursor,
            reason,
            arrival.data,
            arrival.received_at,
            frame.event.did,
        )
    )
