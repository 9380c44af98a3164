"""What a perfect collector would hold of a made world, told apart from what it was never given.

**Held.** A relay knows what it sent, and by the cursors of later connections what the client took in:

1. What a connection sends, in the order of the stream, is held for now.
2. A connection that asks for a cursor says that the client took in nothing of this host (in this numbering) behind it:
   what was sent behind the cursor is not held any more, until it is sent again. If the relay then starts further on,
   what lies between was lost.
3. A connection without a cursor, or with cursor 0, says nothing of that kind when the client has shown a cursor of this
   host before: it has forgotten it on purpose, after it took in what it could use. A client that never showed one has
   committed nothing, so nothing that was sent before is held. (A cursor that was shown may be one that was never
   committed: whoever kills a client that has none committed must say so, with `forget`.)
4. What was sent behind ten bad frames in a row is held only if a later cursor says so, or if the connection is still
   open. What was sent behind a message above all bounds is never held from this connection.
5. Held is what is held from any host.

At the end rule 2 can be applied once more, with the cursors that the client has committed.

**Lost.** What is not held, between the first event of all connections that count and the last that is held. One client
at a time, over all hosts, is what these rules are made for.

**Fold.** For each post the operation with the greatest (rev, idx) among those that are held decides; those in
quarantine do not count. Then the account's newest status: deleted ends all its posts for good, another
inactive one hides them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from support.hostile import Op
from support.world import Event, World

NOT_KEPT = frozenset({"language", "adult", "no_text"})


@dataclass
class Extent:
    """What one connection sent: the events from `first` to `last`."""

    host: int
    numbering: int
    first: int
    last: int
    sure: int | None = None
    """The last one that the client could get to (rule 4); None: all."""
    is_open: bool = True
    is_over: bool = False
    """Nothing that is sent from now on counts."""

    def sent(self, n: int) -> None:
        """Event `n` was sent."""
        if not self.is_over:
            self.last = max(self.last, n)

    @property
    def end(self) -> int:
        """The last event that counts as held."""
        return self.last if self.is_open or self.sure is None else min(self.last, self.sure)


@dataclass
class Sent:
    """All that was sent by all hosts."""

    extents: list[Extent] = field(default_factory=list)
    shown: set[int] = field(default_factory=set)
    """Hosts of which the client has shown a cursor."""

    def ask(self, host: int, numbering: int, upto: int | None) -> None:
        """A client connects with a cursor at event `upto`, or without one."""
        ours = [extent for extent in self.extents if extent.host == host]
        for extent in ours:
            extent.is_over = True
        if upto is not None:
            self.shown.add(host)
            for extent in ours:
                if extent.numbering == numbering:
                    extent.last, extent.sure = min(extent.last, upto), None
        elif host not in self.shown:
            self.extents = [extent for extent in self.extents if extent.host != host]
        else:
            for extent in ours:
                extent.last, extent.sure = extent.last if extent.sure is None else extent.sure, None

    def forget(self, host: int) -> None:
        """The client was killed before it committed anything of this host, whatever cursor it has shown."""
        self.shown.discard(host)
        self.extents = [extent for extent in self.extents if extent.host != host]

    def open(self, host: int, numbering: int, first: int) -> Extent:
        """A connection begins to send with event `first`."""
        extent = Extent(host, numbering, first, first - 1)
        self.extents.append(extent)
        return extent

    def held(self, head: int) -> list[bool]:
        """For each event up to `head`, by number (place 0 is unused), whether it is held."""
        found = [False] * (head + 1)
        for extent in self.extents:
            if extent.end >= extent.first:
                found[extent.first : extent.end + 1] = [True] * (extent.end + 1 - extent.first)
        return found


def story(world: World, sent: Sent, uri: str) -> list[dict[str, Any]]:
    """All that happened to a post and its account, and whether each event is held: to see why something differs."""
    did, _, rkey = uri.removeprefix("at://").split("/")
    held = sent.held(world.head)
    return [
        {"n": event.n, "at": event.at, "kind": event.kind, "status": event.status, "rev": event.rev,
         "ops": [op.action for op in event.ops if op.rkey == rkey], "held": held[event.n]}
        for event in world
        if event.did == did and (event.status or event.outcome == "sync" or any(op.rkey == rkey for op in event.ops))
    ]  # fmt: skip


def oracle(world: World, sent: Sent, *, rechecked: bool = False) -> dict[str, Any]:
    """What a perfect collector holds: posts ever kept by URI, and counts of distinct events and operations.

    `rechecked`: posts that are there take the state that the world has by now, as after looking each up.
    """
    held = sent.held(world.head)
    events = [event for event in world if held[event.n]]
    first = min((extent.first for extent in sent.extents), default=1)
    last = events[-1].n if events else 0
    posts = fold(events)
    if rechecked:
        _recheck(world, posts)
    return {
        "posts": posts,
        **counts(events),
        "lost": sum(world.event(n).counts and not held[n] for n in range(first, last + 1)),
        "events": len(events),
    }


def fold(events: Iterable[Event]) -> dict[str, dict[str, Any]]:
    """State, CID and text of every post that was ever kept, by URI."""
    newest: dict[tuple[str, str], tuple[tuple[str, int], Op]] = {}
    kept: set[tuple[str, str]] = set()
    status: dict[str, tuple[int, str]] = {}
    for event in events:
        if event.outcome == "account":
            status[event.did] = max(status.get(event.did, (0, "")), (event.at, event.status))
        if event.outcome != "commit":
            continue
        for idx, op in zip(event.idx, event.ops, strict=True):
            key, order = (event.did, op.rkey), (event.rev, idx)
            if op.action != "delete" and op.verdict != "kept":
                continue
            if op.verdict == "kept":
                kept.add(key)
            if key not in newest or newest[key][0] < order:
                newest[key] = (order, op)
    return {
        f"at://{did}/app.bsky.feed.post/{rkey}": _told(newest[did, rkey][1], status.get(did, (0, "active"))[1])
        for did, rkey in kept
    }


def counts(events: Sequence[Event]) -> dict[str, dict[str, int]]:
    """Why messages and operations were not kept; each event counts once, however often it was sent."""
    never_kept, quarantined, ignored = Counter[str](), Counter[str](), Counter[str]()
    for event in events:
        if event.outcome == "ignored":
            ignored[event.reason] += 1
        elif event.outcome == "quarantined":
            quarantined[event.reason] += 1
        else:
            for op in event.ops:
                if op.verdict in NOT_KEPT:
                    never_kept[op.verdict] += 1
                elif op.verdict not in {"kept", ""}:
                    quarantined[op.verdict] += 1
    return {"never_kept": dict(never_kept), "quarantined": dict(quarantined), "ignored": dict(ignored)}


def _told(op: Op, status: str) -> dict[str, Any]:
    if op.action == "delete" or status == "deleted":
        return {"state": "deleted", "cid": "", "text": None}
    return {"state": "live" if status == "active" else "hidden", "cid": op.cid, "text": op.text}


def _recheck(world: World, posts: dict[str, dict[str, Any]]) -> None:
    for uri, told in posts.items():
        if told["state"] != "deleted":
            did, _, rkey = uri.removeprefix("at://").split("/")
            state = world.state(did, rkey)
            gone = {"state": "deleted", "cid": "", "text": None}
            if state == "deleted" and world.accounts[did].status not in {"active", "deleted"}:
                # Nobody can look up a post of an account that is hidden: it may have been told as gone before.
                told.update({"state": "hidden", "may_be_gone": True})
            else:
                told.update(gone if state == "deleted" else {"state": state})
