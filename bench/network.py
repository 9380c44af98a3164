"""What the frames of the network are: commits, and the other kinds, as often as they come."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from libipld import encode_dag_cbor

from bench import dagcbor, texts
from bench.records import AUTHORS, FOLLOW, LIKE, POST, PROFILE, Op, Records, rfc3339, tid
from bench.truth import PostTruth, Truth

MIX: Final = {
    "like": 50.0, "follow": 15.0, "post": 8.98, "repost": 8.5, "unlike": 5.0, "unfollow": 4.0, "delete": 1.2,
    "block": 2.5, "listitem": 1.0, "threadgate": 0.8, "profile": 1.0, "foreign": 0.5, "edit": 0.1, "many": 0.02,
    "empty": 0.1, "identity": 0.6, "account": 0.6, "sync": 0.1,
}  # fmt: skip
"""Percent of the frames, by what they do. `many`: 3 to 200 posts at once."""


@dataclass(slots=True)
class Odd:
    """How a hostile commit differs from what it should be."""

    rev: bytes = b""
    """Its CBOR, in place of the right one."""
    cut: int = 0
    """So many bytes are missing at the end of the CAR."""
    left_out: bool = False
    """The record's block is missing."""
    more: bytes = b""
    """A whole block of the CAR, put first."""
    extra: bool = False
    """Fields that nobody knows yet."""
    path: bytes = b""
    """CBOR in place of the operation's path."""


class Network(Records):
    """Makes one frame after the other."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.seq = 0
        self._off: list[str] = []
        """Deactivated accounts."""
        self._mix = list(MIX)
        self._weights = list(accumulate(MIX.values()))
        rkeys = [self.old_rkey().encode() for _ in range(1000)]
        self._wholes = [b"app.bsky.feed.like/" + rkey for rkey in rkeys]
        self._rests = [b"post/" + rkey if nth % 4 == 0 else rkey[4 + nth % 4 :] for nth, rkey in enumerate(rkeys)]

    def usual(self) -> tuple[bytes, Truth]:
        """A frame of the kinds that come."""
        what = self.random.choices(self._mix, cum_weights=self._weights)[0]
        match what:
            case "identity":
                return self.identity()
            case "account":
                return self._account()
            case "sync":
                return self._sync()
            case "edit" | "delete":
                return self._changed(what)
        did = self.author()
        return self.commit(did, self._ops(what, did))

    def _ops(self, what: str, did: str) -> list[Op]:
        chance = self.random.random()
        match what:
            case "post":
                ops = [self.new_post(did)]
                if chance < 0.03:  # its own thread, at once
                    ops += [self.new_post(did, nth + 1) for nth in range(self.random.randrange(1, 5))]
                return ops
            case "many":
                return [
                    self.new_post(did, nth) for nth in range(self.random.choices([3, 10, 50, 200], [12, 6, 3, 1])[0])
                ]
            case "unlike":
                gone = Op("delete", f"{LIKE}/{self.old_rkey()}", prev=True)
                return [gone, self.other(LIKE, self.subject())] if chance < 0.05 else [gone]
            case "unfollow":
                return [Op("delete", f"{FOLLOW}/{self.old_rkey()}", prev=True)]
            case "empty":
                return []
            case "profile":
                record = {
                    "$type": PROFILE,
                    "displayName": texts.draw(self.random).text[:40],
                    "createdAt": self.time(),
                }
                block = encode_dag_cbor(record)
                return [Op("update", f"{PROFILE}/self", block, dagcbor.cid_of(block), prev=True)]
        return [self.other(*self._simple(what))]

    def _changed(self, what: str) -> tuple[bytes, Truth]:
        """A post is edited, or deleted: one of those that were made lately, or one that is long gone."""
        if what == "delete" and self.random.random() < 0.6:
            rkey = self.old_rkey()
            gone = Op("delete", f"{POST}/{rkey}", prev=True, post=PostTruth("delete", rkey))
            return self.commit(self.author(), [gone])
        known = self.random.choice(self.posts)
        if what == "delete":
            self.posts.remove(known)
            gone = Op("delete", f"{POST}/{known.rkey}", prev=True, post=PostTruth("delete", known.rkey))
            return self.commit(known.did, [gone])
        return self.commit(known.did, [self.post_op("update", known.rkey, *self.post_record())])

    def identity(self) -> tuple[bytes, Truth]:
        did = self.author()
        return self.plain("#identity", did, [("handle", dagcbor.text(did[8:20] + ".bsky.example"))])

    def _account(self) -> tuple[bytes, Truth]:
        """Mostly new ones. Those that end are among the authors who write least."""
        chance = self.random.random()
        if chance < 0.6:
            return self.plain("#account", self.author(), [("active", b"\xf5")])
        if self._off and chance < 0.7:
            return self.plain("#account", self._off.pop(), [("active", b"\xf5")])
        did = self.author_at(self.random.randrange(AUTHORS * 9 // 10, AUTHORS))
        status = self.random.choices(["deactivated", "takendown", "deleted"], [50, 30, 20])[0]
        if status == "deactivated":
            self._off.append(did)
        return self.plain("#account", did, [("active", dagcbor.FALSE), ("status", dagcbor.text(status))])

    def _sync(self) -> tuple[bytes, Truth]:
        did, rev = self.author(), tid(self.made, self.random.getrandbits(10))
        block = self._commit_block(did, rev, self.noise_cid())
        car = dagcbor.car(dagcbor.cid_of(block), [(dagcbor.cid_of(block), block)])
        return self.plain("#sync", did, [("rev", dagcbor.text(rev)), ("blocks", dagcbor.byte_string(car))], rev)

    def plain(self, kind: str, did: str, more: list[tuple[str, bytes]], rev: str = "") -> tuple[bytes, Truth]:
        """A frame that is no commit."""
        fields = [("did", dagcbor.text(did)), *self._numbered(), *more]
        return _frame(kind, fields, Truth(kind, self.seq, did, self.now // 1000 * 1000, rev))

    def _numbered(self) -> list[tuple[str, bytes]]:
        return [("seq", dagcbor.head(0, self.seq)), ("time", dagcbor.text(rfc3339(self.now)))]

    def commit(self, did: str, ops: Sequence[Op], odd: Odd | None = None) -> tuple[bytes, Truth]:
        """A commit of these operations."""
        odd, rev = odd or Odd(), tid(self.made, self.random.getrandbits(10))
        nodes = self._nodes(ops)
        signed = self._commit_block(did, rev, nodes[0][0])
        root = dagcbor.cid_of(signed)
        blocks = nodes + [(op.cid or self.noise_cid(), op.block) for op in ops if op.block and not odd.left_out]
        car = odd.more + b"".join(dagcbor.car_block(cid, block) for cid, block in [*blocks, (root, signed)])
        car = dagcbor.car_head(root) + car
        fields = [
            *self._numbered(),
            ("repo", dagcbor.text(did)),
            ("rev", odd.rev or dagcbor.text(rev)),
            ("since", dagcbor.text(self.old_rkey())),
            ("ops", dagcbor.head(4, len(ops)) + b"".join(self._op(op, odd) for op in ops)),
            ("blobs", b"\x80"),
            ("blocks", dagcbor.byte_string(car[: len(car) - odd.cut])),
            ("commit", dagcbor.link(root)),
            ("rebase", dagcbor.FALSE),
            ("tooBig", dagcbor.FALSE),
            ("prevData", dagcbor.link(self.noise_cid())),
        ]
        if odd.extra:
            fields += [("later", b"\xa1\x61a\x01"), ("alsoLater", dagcbor.NULL)]
        truth = Truth("#commit", self.seq, did, self.now // 1000 * 1000, rev)
        for op in ops:
            if op.post:
                truth.posts.append(op.post)
            else:
                truth.others.append((op.path.partition("/")[0], op.action))
        return _frame("#commit", fields, truth, [] if odd.path else [op.path for op in ops])

    def _op(self, op: Op, odd: Odd) -> bytes:
        fields = [
            ("cid", dagcbor.link(op.cid) if op.cid else dagcbor.NULL),
            ("path", odd.path or dagcbor.text(op.path)),
        ]
        fields.append(("action", dagcbor.text(op.action)))
        if op.prev:
            fields.append(("prev", dagcbor.link(self.noise_cid())))
        if odd.extra:
            fields.append(("later", b"\x01"))
        return dagcbor.map_of(fields)

    def _nodes(self, ops: Sequence[Op]) -> list[tuple[bytes, bytes]]:
        """(CID, node) of the MST, from its root down to where the records are."""
        random = self.random
        depth = min(9, max(1, round(random.gauss(6.2, 1.3)) + len(ops) // 3))
        nodes: list[tuple[bytes, bytes]] = []
        below = b""
        for _ in range(depth):
            node = self._node(max(1, min(30, int(random.lognormvariate(1.15, 0.85)))), below)
            below = dagcbor.cid_of(node)
            nodes.append((below, node))
        return nodes[::-1]

    def _node(self, entries: int, below: bytes) -> bytes:
        random, leaf = self.random, not below
        follows = random.randrange(entries) if below else -1
        parts = [b"\xa2\x61e", dagcbor.head(4, entries)]
        for nth in range(entries):
            key = self._key(whole=nth == 0)
            tree = below if nth == follows else b"" if leaf or random.random() < 0.3 else self.noise_cid()
            parts += [
                b"\xa4\x61k",
                dagcbor.byte_string(key),
                b"\x61p",
                dagcbor.head(0, 0 if nth == 0 else 24),
                b"\x61t",
            ]
            parts += [dagcbor.link(tree) if tree else dagcbor.NULL, b"\x61v", dagcbor.link(self.noise_cid())]
        parts += [b"\x61l", dagcbor.NULL if leaf else dagcbor.link(self.noise_cid())]
        return b"".join(parts)

    def _key(self, *, whole: bool) -> bytes:
        """An entry's key; those after the first leave away what they share with the one before."""
        return self.random.choice(self._wholes if whole else self._rests)

    def _commit_block(self, did: str, rev: str, data: bytes) -> bytes:
        signature = self.random.randbytes(64)
        fields = [
            ("did", dagcbor.text(did)),
            ("rev", dagcbor.text(rev)),
            ("sig", dagcbor.byte_string(signature)),
            ("data", dagcbor.link(data)),
        ]
        return dagcbor.map_of([*fields, ("prev", dagcbor.NULL), ("version", b"\x03")])


def _frame(
    kind: str, fields: Sequence[tuple[str, bytes]], truth: Truth, paths: Sequence[str] = ()
) -> tuple[bytes, Truth]:
    """A frame of these fields; its truth then says where the moving ones stand."""
    frame = b"\xa2\x61t" + dagcbor.text(kind) + b"\x62op\x01" + dagcbor.map_of(fields)
    # Each value is looked for behind its key, and keys stand before the blocks or are followed by their value's head.
    truth.seq_at = frame.index(b"\x63seq\x1b") + 5
    truth.time_at = frame.index(b"\x64time\x78\x18") + 7
    if kind in ("#commit", "#sync") and (at := frame.find(b"\x63rev\x6d")) >= 0:
        truth.tids.append(at + 5)
    if kind == "#commit":
        truth.tids.append(frame.index(b"\x65since\x6d") + 7)
    at = 0
    for path in paths:
        at = frame.index(b"\x64path" + dagcbor.text(path), at) + 5
        if not path.endswith("/self"):
            truth.tids.append(at + len(dagcbor.text(path)) - 13)
    return frame, truth
