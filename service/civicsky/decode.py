"""Bytes of one websocket message in, an `Event` out. Pure: no socket, no clock, no database.

The main process stops here: what an author wrote (the record's block) is cut out of the commit's CAR by its CID and
never decoded, so that hostile content can only hurt a worker. The frame format is the AT Protocol's event stream:
https://atproto.com/specs/event-stream ; the CAR v1 layout: https://ipld.io/specs/transport/car/carv1/ .
"""

import re
from operator import itemgetter
from typing import Any, ClassVar, Final

from libipld import decode_dag_cbor_multi

from civicsky.errors import BadInput
from civicsky.model import POSTS, Event, FrameOutcome, PostOp, made, parse_time

MAX_SEQ: Final = 2**53
MAX_OPS: Final = 1000
"""The protocol allows 200 operations in a commit."""
_is_rkey: Final = re.compile(r"[A-Za-z0-9._:~-]{1,512}").fullmatch
_is_did: Final = re.compile(r"did:[a-z]+:[A-Za-z0-9._:%-]{1,2000}").fullmatch
_is_rev: Final = re.compile(r"[2-7a-z]{13}").fullmatch
_ACTIONS: Final = frozenset({"create", "update", "delete"})
_COMMIT: Final = {"op": 1, "t": "#commit"}
_TIME_LENGTH: Final = len("2026-11-22T13:12:25.063Z")
_MILLIS: Final = {f"{n:03}Z": n * 1000 for n in range(1, 1000)}
_commit_fields: Final = itemgetter("seq", "repo", "time", "rev", "ops", "blocks")
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
_OTHER: Final = {action: ("other", action) for action in _ACTIONS}
_COUNTED: Final = {name: {action: (name, action) for action in _ACTIONS} for name in COLLECTIONS} | {POSTS: _OTHER}


def decode(data: bytes) -> Event:
    """Decode one binary message.

    Raises `BadInput` ("undecodable" or "bad_field") when the frame as a whole cannot be used. Operations that cannot
    be read are returned as `PostOp` with `fault` set, so that one bad operation costs nothing else.
    """
    try:
        header, body = decode_dag_cbor_multi(data)
    except (ValueError, RecursionError, OverflowError) as error:  # ValueError: also when they are not two
        raise BadInput("undecodable") from error
    try:
        return _commit(body) if header == _COMMIT else _by_header(header, body)
    except (KeyError, TypeError) as error:  # a field is missing, or of another type
        raise BadInput("bad_field" if isinstance(body, dict) else "undecodable") from error


def _by_header(header: Any, body: Any) -> Event:
    if not isinstance(header, dict) or not isinstance(body, dict):
        raise BadInput("undecodable")
    op, kind = header.get("op"), header.get("t")
    if op == -1:
        return Event("error", name=_word(body.get("error")))
    if op != 1 or not isinstance(kind, str):
        return Event("ignored", name="unknown_op")
    reader = _READERS.get(kind)
    return reader(body) if reader else Event("ignored", name="unknown_kind")


def find_blocks(car: bytes, wanted: set[bytes]) -> dict[bytes, bytes]:
    """The blocks of a CAR v1 whose CIDs are wanted. A CAR that is cut short gives what was found before."""
    found: dict[bytes, bytes] = {}
    length, starts, cids = len(car), car.startswith, tuple(wanted)
    try:
        size, at = _varint(car, 0)
        at += size
        while at < length:
            size, at = car[at], at + 1
            if size > 0x7F:  # noqa: PLR2004  (the high bit says that more bytes follow: nearly always just one)
                more, at = car[at], at + 1
                size = size & 0x7F | more << 7
                if more > 0x7F:  # noqa: PLR2004
                    size, at = _varint(car, at - 2)
            end = at + size
            if starts(cids, at) and end <= length:
                found[car[at : at + _CID_LENGTH]] = car[at + _CID_LENGTH : end]
                if len(found) == len(cids):
                    break
            at = end
    except IndexError:
        pass
    return found


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


def _numbered(seq: Any, did: Any, time: Any) -> int:
    """Check sequence number, DID and time, which every numbered event has; gives the time in microseconds."""
    if type(seq) is not int or not 0 < seq < MAX_SEQ or not _is_did(did):
        raise BadInput("bad_field")
    micros = _micros(time)
    if micros is None:
        raise BadInput("bad_field")
    return micros


def _micros(time: str) -> int | None:
    """As `parse_time`, and remembers the second: nearly every frame is of the same one as the frame before."""
    found = parse_time(time)
    if found is not None and len(time) == _TIME_LENGTH and time[19] == "." and time[23] == "Z":
        _Second.last = (time[:20], found - found % 1_000_000)
    return found


class _Second:
    """The whole second that was read last: its text, up to the point, and the microseconds."""

    last: ClassVar[tuple[str, int]] = ("", 0)


def _commit(body: dict[str, Any]) -> Event:
    seq, did, time, rev, ops, blocks = _commit_fields(body)
    whole, since = _Second.last
    after = _MILLIS.get(time[20:]) if time[:20] == whole else None
    micros = since + after if after else _micros(time)
    if (
        type(seq) is not int
        or not 0 < seq < MAX_SEQ
        or not _is_did(did)
        or not _is_rev(rev)
        or type(ops) is not list
        or len(ops) > MAX_OPS
        or type(blocks) is not bytes
        or micros is None
    ):
        raise BadInput("bad_field")
    named: list[tuple[int, Any, str, Any]] = []
    others: list[tuple[str, str]] = []
    for idx, op in enumerate(ops):
        try:
            action = op["action"]
            collection, slash, rkey = op["path"].partition("/")
            counted = _COUNTED.get(collection, _OTHER)[action]
        except (KeyError, TypeError, AttributeError):
            named.append((idx, "create", "", None))
            continue
        if slash and collection == POSTS:
            named.append((idx, action, rkey, op.get("cid")))
        else:
            others.append(counted)
    posts = _post_operations(named, blocks) if named else []
    return made(Event, ("commit", seq, did, micros, rev, posts, others, "", ""))


def _post_operations(named: list[tuple[int, Any, str, Any]], blocks: bytes) -> list[PostOp]:
    """`named` are (index, action, rkey, CID); an empty rkey is one that cannot be read."""
    wanted = {cid for _, action, _, cid in named if action != "delete" and _is_cid(cid)}
    found = find_blocks(blocks, wanted) if wanted else {}
    return [_post_operation(idx, action, rkey, cid, found) for idx, action, rkey, cid in named]


def _is_cid(value: Any) -> bool:
    return type(value) is bytes and len(value) == _CID_LENGTH


def _post_operation(idx: int, action: Any, rkey: str, cid: Any, found: dict[bytes, bytes]) -> PostOp:
    if not _is_rkey(rkey):
        return PostOp(idx, action, "", b"", b"", "bad_operation")
    if action == "delete":
        return PostOp(idx, action, rkey, b"", b"")
    if not _is_cid(cid):
        return PostOp(idx, action, rkey, b"", b"", "bad_operation")
    block = found.get(cid)
    return made(PostOp, (idx, action, rkey, cid, block or b"", None if block else "no_block"))


def _account(body: dict[str, Any]) -> Event:
    event = _of_account("account", body)
    active, status = body.get("active"), body.get("status")
    if not isinstance(active, bool):
        raise BadInput("bad_field")
    # The specification allows `active: false` without a status: hide the posts, as for any unknown reason.
    return event._replace(status="active" if active else _word(status) or "deactivated")


def _of_account(outcome: FrameOutcome, body: dict[str, Any]) -> Event:
    seq, did = body["seq"], body["did"]
    return Event(outcome, seq, did, _numbered(seq, did, body["time"]))


def _identity(body: dict[str, Any]) -> Event:
    return _of_account("identity", body)


def _sync(body: dict[str, Any]) -> Event:
    return _of_account("sync", body)


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
