"""Bytes of one websocket message in, an `Event` out. Pure: no socket, no clock, no database.

The main process stops here: what an author wrote (the record's block) is cut out of the commit's CAR by its CID and
never decoded, so that hostile content can only hurt a worker. The frame format is the AT Protocol's event stream:
https://atproto.com/specs/event-stream ; the CAR v1 layout: https://ipld.io/specs/transport/car/carv1/ .
"""

import re
from typing import Any, Final

from libipld import decode_dag_cbor_multi

from civicsky.errors import BadInput
from civicsky.model import POSTS, Event, PostOp, parse_time

MAX_SEQ: Final = 2**53
MAX_OPS: Final = 1000
"""The protocol allows 200 operations in a commit."""
_RKEY: Final = re.compile(r"[A-Za-z0-9._:~-]{1,512}")
_DID: Final = re.compile(r"did:[a-z]+:[A-Za-z0-9._:%-]{1,2000}")
_REV: Final = re.compile(r"[2-7a-z]{13}")
_POST_PREFIX: Final = POSTS + "/"
_ACTIONS: Final = frozenset({"create", "update", "delete"})
_CID_LENGTH: Final = 36  # version, codec, hash function, digest length: one byte each; then SHA-256

COLLECTIONS: Final = frozenset(
    {
        "app.bsky.actor.profile",
        "app.bsky.actor.status",
        "app.bsky.feed.generator",
        "app.bsky.feed.like",
        "app.bsky.feed.postgate",
        "app.bsky.feed.repost",
        "app.bsky.feed.threadgate",
        "app.bsky.graph.block",
        "app.bsky.graph.follow",
        "app.bsky.graph.list",
        "app.bsky.graph.listblock",
        "app.bsky.graph.listitem",
        "app.bsky.graph.starterpack",
        "app.bsky.graph.verification",
        "app.bsky.labeler.service",
        "chat.bsky.actor.declaration",
    }
)
"""Counted by name; any other is counted as `other`, so that authors cannot fill the table of counts."""


def decode(data: bytes) -> Event:
    """Decode one binary message.

    Raises `BadInput` ("undecodable" or "bad_field") when the frame as a whole cannot be used. Operations that cannot
    be read are returned as `PostOp` with `fault` set, so that one bad operation costs nothing else.
    """
    header, body = _objects(data)
    op = header.get("op")
    if op == -1:
        return Event("error", name=_word(body.get("error")))
    kind = header.get("t")
    if op != 1 or not isinstance(kind, str):
        return Event("ignored", name="unknown_op")
    reader = _READERS.get(kind)
    if reader is None:
        return Event("ignored", name="unknown_kind")
    return reader(body)


def find_blocks(car: bytes, wanted: set[bytes]) -> dict[bytes, bytes]:
    """The blocks of a CAR v1 whose CIDs are wanted. A CAR that is cut short gives what was found before."""
    found: dict[bytes, bytes] = {}
    try:
        size, at = _varint(car, 0)
        at += size
        while at < len(car) and len(found) < len(wanted):
            size, at = _varint(car, at)
            end = at + size
            cid = car[at : at + _CID_LENGTH]
            if cid in wanted and end <= len(car):
                found[cid] = car[at + _CID_LENGTH : end]
            at = end
    except IndexError:
        pass
    return found


def _objects(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        objects = decode_dag_cbor_multi(data)
    except (ValueError, RecursionError, OverflowError) as error:
        raise BadInput("undecodable") from error
    if len(objects) != 2 or not isinstance(objects[0], dict) or not isinstance(objects[1], dict):  # noqa: PLR2004
        raise BadInput("undecodable")
    return objects[0], objects[1]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004  (the high bit says that more bytes follow)
            return value, at
        shift += 7
        if shift > 63:  # noqa: PLR2004  (a varint of the CAR format has at most nine bytes)
            raise IndexError


def _event(outcome: Any, body: dict[str, Any], account: str) -> Event:
    """The fields that every numbered event has."""
    seq, did, time = body.get("seq"), body.get(account), body.get("time")
    if type(seq) is not int or not 0 < seq < MAX_SEQ:
        raise BadInput("bad_field")
    if not isinstance(did, str) or not _DID.fullmatch(did) or not isinstance(time, str):
        raise BadInput("bad_field")
    micros = parse_time(time)
    if micros is None:
        raise BadInput("bad_field")
    return Event(outcome, seq=seq, did=did, time=micros)


def _commit(body: dict[str, Any]) -> Event:
    event = _event("commit", body, "repo")
    rev, ops, blocks = body.get("rev"), body.get("ops"), body.get("blocks")
    if not isinstance(rev, str) or not _REV.fullmatch(rev):
        raise BadInput("bad_field")
    if not isinstance(ops, list) or len(ops) > MAX_OPS or not isinstance(blocks, bytes):
        raise BadInput("bad_field")
    event.rev = rev
    for idx, op in enumerate(ops):
        _operation(event, idx, op)
    _attach_blocks(event, blocks)
    return event


def _operation(event: Event, idx: int, op: Any) -> None:
    path = op.get("path") if isinstance(op, dict) else None
    action: Any = op.get("action") if isinstance(op, dict) else None
    if not isinstance(path, str) or not isinstance(action, str) or action not in _ACTIONS:
        event.posts.append(PostOp(idx, "create", "", b"", b"", "bad_operation"))
        return
    if not path.startswith(_POST_PREFIX):
        collection = path.partition("/")[0]
        event.others.append((collection if collection in COLLECTIONS else "other", action))
        return
    verb: Any = action
    rkey, cid = path[len(_POST_PREFIX) :], op.get("cid")
    if not _RKEY.fullmatch(rkey):
        event.posts.append(PostOp(idx, verb, "", b"", b"", "bad_operation"))
    elif action == "delete":
        event.posts.append(PostOp(idx, verb, rkey, b"", b""))
    elif not isinstance(cid, bytes) or len(cid) != _CID_LENGTH:
        event.posts.append(PostOp(idx, verb, rkey, b"", b"", "bad_operation"))
    else:
        event.posts.append(PostOp(idx, verb, rkey, cid, b""))


def _attach_blocks(event: Event, blocks: bytes) -> None:
    wanted = {op.cid for op in event.posts if op.cid}
    if not wanted:
        return
    found = find_blocks(blocks, wanted)
    for at, op in enumerate(event.posts):
        if not op.cid:
            continue
        block = found.get(op.cid)
        event.posts[at] = op._replace(block=block) if block else op._replace(fault="no_block")


def _account(body: dict[str, Any]) -> Event:
    event = _event("account", body, "did")
    active, status = body.get("active"), body.get("status")
    if not isinstance(active, bool):
        raise BadInput("bad_field")
    # The specification allows `active: false` without a status: hide the posts, as for any unknown reason.
    event.status = "active" if active else _word(status) or "deactivated"
    return event


def _identity(body: dict[str, Any]) -> Event:
    return _event("identity", body, "did")


def _sync(body: dict[str, Any]) -> Event:
    return _event("sync", body, "did")


def _info(body: dict[str, Any]) -> Event:
    return Event("info", name=_word(body.get("name")))


def _word(value: Any) -> str:
    """A name that the far side chose, made safe for logs and bounded."""
    return re.sub(r"[^A-Za-z0-9_.-]", "?", value)[:64] if isinstance(value, str) else ""


_READERS: Final = {
    "#commit": _commit,
    "#account": _account,
    "#identity": _identity,
    "#sync": _sync,
    "#info": _info,
}
