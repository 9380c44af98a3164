"""Hostile messages, each marked with what a perfect collector does with it.

A message is made with placeholders for its sequence number and its time (see `split`), so that each host can put in
its own; a message without them has no number, and only its place in the stream.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

import cbor2

from support.frames import block_and_cid, cid_of, cid_text, commit_of, frame, operation, post

SEQ = 0x1EED_C0DE_1EED_C0DE
AT = "0000-00-00T00:00:00.000000Z"
_SEQ_BYTES = b"\x63seq" + cbor2.dumps(SEQ)
_AT_BYTES = b"\x64time" + cbor2.dumps(AT)
_NEST = cbor2.dumps(b"A NEST GOES HERE")
DEEP = 2000


class Op(NamedTuple):
    """One operation on a post, as it was meant."""

    action: str
    rkey: str
    cid: str
    """Empty for a delete."""
    text: str
    verdict: str
    """kept; language, adult, no_text: not kept; else the reason of its quarantine. Empty for a delete."""


Parts = tuple[bytes, bytes, bytes]
"""A message around its sequence number and its time."""


class Bad(NamedTuple):
    """A hostile message. `outcome` and `reason` are those of the frame, an operation's stand in `ops`."""

    message: bytes | str | Parts
    ops: tuple[Op, ...] = ()
    outcome: str = "commit"
    reason: str = ""


@dataclass(frozen=True)
class Clay:
    """What a hostile message is made of."""

    did: str
    rev: str
    rkey: str
    text: str
    randomness: Random

    def commit(self, verdict: str, cid: bytes, block: bytes | None, *, named: bool = True, **fields: Any) -> Bad:
        """A commit that creates one post; without a block or without naming it in its operation, if so told."""
        listed = [operation("create", self.rkey, cid if named else None)]
        blocks = [] if block is None else [(block, cid)]
        made = commit_of(SEQ, listed, blocks, rev=self.rev, did=self.did, time=AT, **fields)
        return Bad(split(made), (Op("create", self.rkey, cid_text(cid), self.text, verdict),))

    def record(self, verdict: str, record: Any) -> Bad:
        """A commit that creates this record."""
        block, cid = block_and_cid(record)
        return self.commit(verdict, cid, block)

    def block(self, verdict: str, block: bytes) -> Bad:
        """A commit that creates a record of these bytes."""
        return self.commit(verdict, cid_of(block), block)


def split(message: bytes) -> Parts:
    """Take a message apart where its number and its time go."""
    head, seq, rest = message.partition(_SEQ_BYTES)
    middle, at, tail = rest.partition(_AT_BYTES)
    assert seq
    assert at
    return head + seq[:4], middle + at[:5], tail


def join(parts: Parts, seq: int, time: str) -> bytes:
    """Put in a number and a time."""
    head, middle, tail = parts
    return head + cbor2.dumps(seq) + middle + cbor2.dumps(time) + tail


def _unknown_kind(clay: Clay) -> Bad:
    body = {"seq": SEQ, "did": clay.did, "time": AT, "text": clay.text}
    return Bad(split(frame("#future", body)), (), "ignored", "unknown_kind")


def _unknown_op(clay: Clay) -> Bad:
    body = {"seq": SEQ, "did": clay.did, "time": AT}
    return Bad(split(frame("#commit", body).replace(b"bop\x01", b"bop\x07", 1)), (), "ignored", "unknown_op")


def _null_cid(clay: Clay) -> Bad:
    block, cid = block_and_cid(post(clay.text))
    return clay.commit("bad_operation", cid, block, named=False)


def _missing_block(clay: Clay) -> Bad:
    return clay.commit("no_block", block_and_cid(post(clay.text))[1], None)


def _wrong_hash(clay: Clay) -> Bad:
    block, _ = block_and_cid(post(clay.text))
    return clay.commit("wrong_hash", cid_of(b"another"), block)


def _truncated_car(clay: Clay) -> Bad:
    block, cid = block_and_cid(post(clay.text))
    return clay.commit("no_block", cid, block, cut=20)


def _surrogate(clay: Clay) -> Bad:
    """Three bytes that would be a lone surrogate, if UTF-8 allowed it."""
    block = cbor2.dumps(post(clay.text + "\x01\x02\x03"), canonical=True)
    return clay.block("undecodable", block.replace(b"\x01\x02\x03", b"\xed\xa0\x80"))


def _nested(clay: Clay) -> Bad:
    block = cbor2.dumps(post(clay.text, embed=b"A NEST GOES HERE"), canonical=True)
    return clay.block("undecodable", block.replace(_NEST, b"\x81" * DEEP + b"\x00"))


def _nested_frame(clay: Clay) -> Bad:
    block, cid = block_and_cid(post(clay.text))
    good = clay.commit("", cid, block, zzzzzzzz=b"A NEST GOES HERE").message
    assert isinstance(good, tuple)
    return Bad((*good[:2], good[2].replace(_NEST, b"\x81" * DEEP + b"\x00")), (), "quarantined", "undecodable")


def _bad_seq(clay: Clay) -> Bad:
    body = {"seq": "7", "did": clay.did, "time": "2026-01-01T00:00:00Z", "active": True}
    return Bad(frame("#account", body | {"status": clay.text}), (), "quarantined", "bad_field")


def _bad_did(clay: Clay) -> Bad:
    return Bad(
        split(frame("#identity", {"seq": SEQ, "did": clay.did, "time": AT}).replace(b"did:", b"dad:")),
        (),
        "quarantined",
        "bad_field",
    )


def _crash(clay: Clay, mark: str) -> Bad:
    return clay.record("worker_crashed", post(f"{clay.text} {mark}"))


def _hang(clay: Clay, mark: str) -> Bad:
    return clay.record("worker_timeout", post(f"{clay.text} {mark}"))


def _garbage(clay: Clay) -> Bad:
    return Bad(b"\xff" + clay.randomness.randbytes(100), (), "quarantined", "undecodable")


HOSTILE: dict[str, Callable[[Clay], Bad]] = {
    "unknown_kind": _unknown_kind,
    "unknown_op": _unknown_op,
    "null_cid": _null_cid,
    "missing_block": _missing_block,
    "wrong_hash": _wrong_hash,
    "truncated_car": _truncated_car,
    "list_record": lambda clay: clay.record("not_a_record", [post(clay.text)]),
    "bytes_record": lambda clay: clay.record("not_a_record", clay.text.encode()),
    "wrong_type": lambda clay: clay.record("wrong_type", post(clay.text) | {"$type": "app.bsky.feed.like"}),
    "text_is_a_number": lambda clay: clay.record("bad_text", post(clay.text) | {"text": 5, "was": clay.text}),
    "text_is_missing": lambda clay: clay.record("bad_text", {"$type": "app.bsky.feed.post", "was": clay.text}),
    "number_of_64_bits": lambda clay: clay.record("kept", post(clay.text, odd=[2**64 - 1, -(2**64)])),
    "number_over_64_bits": lambda clay: clay.record("undecodable", post(clay.text, odd=2**70)),
    "nul_in_key": lambda clay: clay.record("kept", post(clay.text) | {"a\0b": 1}),
    "unknown_field": lambda clay: clay.commit(
        "kept", block_and_cid(post(clay.text))[1], block_and_cid(post(clay.text))[0], prevData=None, zzzzzzzz=[1]
    ),
    "surrogate": _surrogate,
    "nested": _nested,
    "nested_frame": _nested_frame,
    "bad_seq": _bad_seq,
    "bad_did": _bad_did,
    "text_frame": lambda clay: Bad(clay.text, (), "ignored", "text"),
    "garbage": _garbage,
    "empty": lambda _clay: Bad(b"", (), "quarantined", "undecodable"),
}
"""By name. A perfect collector keeps what its decoder can decode."""
MARKED: dict[str, Callable[[Clay, str], Bad]] = {"crash": _crash, "hang": _hang}
"""Made only when a mark is given: the collector must have been told to crash or hang on it."""
