"""What must hold whatever bytes a relay sends: one message in, and each post's verdict keeps to its record."""

import hashlib
import io
import json
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, get_args
from unittest.mock import patch

import cbor2
from libipld import decode_dag_cbor

from civicsky import decode, record, worker
from civicsky.errors import BadInput
from civicsky.model import POSTS, FrameOutcome, PostOp, RejectReason, Verdict

BAD_RECORD: Final = frozenset({"wrong_hash", "undecodable", "not_a_record", "wrong_type", "bad_text"})
seen: Final[Counter[str]] = Counter()
"""How often each end was reached: tells whether the inputs get past the hash check."""


class Broken(Exception):
    """The code under test returned, but not what it promises."""


def hold(fact: object, promise: str) -> None:
    """An assertion that no option of Python turns off."""
    if not fact:
        raise Broken(promise)


def check(data: bytes) -> None:
    """Decode one message and judge its records. Raises what the code under test lets out, or `Broken`."""
    try:
        event = decode.decode(data)
    except BadInput as bad:
        hold(bad.reason in {"undecodable", "bad_field"}, "a frame is bad for one of two reasons")
        seen["frame " + bad.reason] += 1
        return
    seen["frame " + event.outcome] += 1
    hold(event.outcome in get_args(FrameOutcome), "a frame's outcome is one of those told")
    hold((event.seq is None) == (event.outcome in {"info", "error", "ignored"}), "other frames have a number")
    hold(event.seq is None or 0 < event.seq < decode.MAX_SEQ, "a number is within its bounds")
    for op in event.posts:
        if op.needs_verdict:
            check_record(data, op)
        else:
            hold(not op.block, "only a record to be judged has a block")
            hold(op.fault in {None, "bad_operation", "no_block"}, "a fault is one of two")
            seen[f"post {op.fault or op.action}"] += 1


def check_record(data: bytes, op: PostOp) -> None:
    """Judge one record; hold the verdict against what others read from the same bytes."""
    hold(op.block and op.cid + op.block in data, "a block lies in the frame behind its CID")
    verdict = worker.judge_record(op.cid, op.block, "english")
    hold(isinstance(verdict, Verdict), "a verdict is a Verdict")
    seen[f"post {verdict.kind} {verdict.reason}"] += 1
    if verdict.kind == "bad":
        hold(verdict.reason in BAD_RECORD and not verdict.fields, "a bad record has a known reason and no fields")
        return
    hold(verdict.reason in get_args(RejectReason) if verdict.kind == "rejected" else not verdict.reason, "a reason")
    hold(op.cid[4:] == hashlib.sha256(op.block).digest(), "a record's hash is its CID's")
    fields = json.loads(verdict.fields.encode())
    text = decode_dag_cbor(op.block)["text"]
    hold(fields["text"] == text[: record.MAX_TEXT], "the text is the record's")
    hold(by_cbor2(op.block).get("text", text) == text, "another decoder reads the same text")
    hold(named_by_frame(data, op), "the frame's own operation names this key and CID")


def by_cbor2(block: bytes) -> dict[str, Any]:
    """A record as cbor2 reads it; nothing where it refuses what DAG-CBOR allows."""
    try:
        found = cbor2.loads(block)
    except (cbor2.CBORDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def named_by_frame(data: bytes, op: PostOp) -> bool:
    """Whether cbor2 reads the same operation at the same place; yes where it refuses the frame."""
    decoder = cbor2.CBORDecoder(io.BytesIO(data))
    try:
        _, body = decoder.decode(), decoder.decode()
    except (cbor2.CBORDecodeError, RecursionError):
        return True
    told = body["ops"][op.idx]
    cid = told["cid"].value[1:] if isinstance(told["cid"], cbor2.CBORTag) else told["cid"]
    return bool((told["path"], told["action"], cid) == (f"{POSTS}/{op.rkey}", op.action, op.cid))


# ---- planted bugs: each is one that the code guards against ----------------------------------------------------------


def _find_blocks_without_guard(car: bytes, wanted: set[bytes]) -> dict[bytes, bytes]:
    """The scan as it would be if nobody had thought of a CAR that is cut inside a length."""
    found: dict[bytes, bytes] = {}
    size, at = decode._varint(car, 0)
    at += size
    while at < len(car) and len(found) < len(wanted):
        size, at = decode._varint(car, at)
        end = at + size
        cid = car[at : at + 36]
        if cid in wanted and end <= len(car):
            found[cid] = car[at + 36 : end]
        at = end
    return found


def _extract_that_trusts_types(content: dict[str, Any]) -> dict[str, Any]:
    """Believes that the `$type` of a facet's feature is always text."""
    for facet in record._list(content.get("facets")):
        for feature in record._list(record._map(facet).get("features")):
            record._map(feature).get("$type", "").rpartition("#")
    return record.extract(content)


def _extract_that_tidies(content: dict[str, Any]) -> dict[str, Any]:
    """Stores a text in Unicode's composed form, which is not what the author wrote."""
    fields = record.extract(content)
    return {**fields, "text": unicodedata.normalize("NFC", fields["text"])}


PLANTED: Final[dict[str, tuple[str, Callable[..., Any]]]] = {
    "car": ("civicsky.decode.find_blocks", _find_blocks_without_guard),
    "type": ("civicsky.worker.extract", _extract_that_trusts_types),
    "text": ("civicsky.worker.extract", _extract_that_tidies),
}


def plant(name: str) -> None:
    """Put a bug into the code under test, for as long as this process lives."""
    patch(*PLANTED[name]).start()
