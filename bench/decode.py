"""Decoding: bytes of a frame in, the posts that it writes or deletes out, one thread, from memory.

All routes give the same: (action, DID, rkey, CID, text) of each operation on a post. A post's record is decoded; what
else a frame holds is each route's own business. Ours also checks every field of the frame, the rkey, and the record's
SHA-256, which nobody else does. Seconds are the process's own CPU time; every route takes each 2,000 frames in turn.
"""

import hashlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any, Final, NamedTuple

import cbor2
from atproto import CID  # type: ignore[import-untyped]
from libipld import decode_car, decode_dag_cbor, decode_dag_cbor_multi

from bench import dagcbor, sdk as sdk_way
from bench.part import Against, Ask, Fact, Figure, Measure, Part
from bench.records import POST
from bench.traffic import read, recording, truths
from bench.truth import Truth
from civicsky.decode import decode
from civicsky.worker import judge_record

PART: Final = Part(
    "decode",
    "Decoding a frame",
    "ours, the SDK's documented way, libipld and cbor2 on the same frames",
)
FRAMES: Final = 100_000
BAR: Final = 15
IN_TURN: Final = 2000
_PREFIX: Final = POST + "/"


class Found(NamedTuple):
    """An operation on a post."""

    action: str
    did: str
    rkey: str
    cid: bytes
    """Empty for a deletion."""
    text: str | None


Route = Callable[[bytes], list[Found]]


def ours(data: bytes) -> list[Found]:
    """The service's `decode`, then what a worker does before it filters: hash, record, its type."""
    event, found = decode(data), []
    for op in event.posts:
        if op.action == "delete":
            found.append(Found(op.action, event.did, op.rkey, b"", None))
        elif op.block and op.cid == dagcbor.CID + hashlib.sha256(op.block).digest():
            record = decode_dag_cbor(op.block)
            if isinstance(record, dict) and record.get("$type") == POST and isinstance(record.get("text"), str):
                found.append(Found(op.action, event.did, op.rkey, op.cid, record["text"]))
    return found


def ours_judged(data: bytes) -> list[Found]:
    """`decode`, then all that a worker does: extracted, and its language found out."""
    event = decode(data)
    return [
        Found(op.action, event.did, op.rkey, op.cid, None)
        for op in event.posts
        if not op.needs_verdict or judge_record(op.cid, op.block).kind != "bad"
    ]


def ours_main_process(data: bytes) -> list[Found]:
    """`decode` alone: what the service's main process does; blocks of posts are cut out and not decoded."""
    event = decode(data)
    return [Found(op.action, event.did, op.rkey, op.cid, None) for op in event.posts]


def sdk(data: bytes) -> list[Found]:
    """See `bench.sdk`."""
    commit = sdk_way.commit_of(sdk_way.message(data))
    return _of_sdk(sdk_way.ops_by_type(commit)) if commit else []


def sdk_posts_only(data: bytes) -> list[Found]:
    """See `bench.sdk.posts_only`."""
    commit = sdk_way.commit_of(sdk_way.message(data))
    return _of_sdk(sdk_way.posts_only(commit)) if commit else []


def _of_sdk(ops: Any) -> list[Found]:
    return [
        Found(
            action,
            op["author"],
            op["uri"].rpartition("/")[2],
            op.get("cid", b""),
            op["record"].text if "record" in op else None,
        )
        for action, some in ops.get(POST, {}).items()
        for op in some
    ]


def libipld(data: bytes) -> list[Found]:
    """Its decoders of frames and CARs."""
    header, body = decode_dag_cbor_multi(data)
    if header.get("t") != "#commit":
        return []
    _, blocks = decode_car(body["blocks"])
    return [_found(body["repo"], op, blocks.get(op["cid"])) for op in body["ops"] if op["path"].startswith(_PREFIX)]


def with_cbor2(data: bytes) -> list[Found]:
    """The frame and all blocks of its CAR by cbor2."""
    stream = io.BytesIO(data)
    header, body = cbor2.load(stream), cbor2.load(stream)
    if header.get("t") != "#commit":
        return []
    blocks = dict(_blocks(body["blocks"]))
    return [
        _found(body["repo"], {**op, "cid": cid}, blocks.get(cid or b""))
        for op in body["ops"]
        if op["path"].startswith(_PREFIX)
        for cid in [op["cid"].value[1:] if op["cid"] else None]
    ]


def _blocks(car: bytes) -> Iterator[tuple[bytes, Any]]:
    size, at = _varint(car, 0)
    at += size
    while at < len(car):
        size, at = _varint(car, at)
        yield car[at : at + 36], cbor2.loads(car[at + 36 : at + size])
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] > 0x7F:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    return value | data[at] << shift, at + 1


def _found(did: str, op: dict[str, Any], record: Any) -> Found:
    action, rkey = op["action"], op["path"][len(_PREFIX) :]
    return Found(action, did, rkey, op["cid"] or b"", None if action == "delete" else record["text"])


def frame_alone(data: bytes) -> list[Found]:
    """The frame's two objects by libipld, and nothing with them: below this nobody gets who decodes whole frames."""
    decode_dag_cbor_multi(data)
    return []


FLOOR: Final = "libipld, the frame alone"
ROUTES: Final[dict[str, Route]] = {
    "ours": ours,
    "the SDK's documented way": sdk,
    "the SDK, looking for posts first": sdk_posts_only,
    "libipld decode_dag_cbor_multi and decode_car": libipld,
    "cbor2, frame and all blocks": with_cbor2,
    "ours, the main process's part alone": ours_main_process,
    "ours, with language and filter": ours_judged,
    FLOOR: frame_alone,
}
SAME: Final = [name for name, route in ROUTES.items() if route not in (ours_main_process, ours_judged, frame_alone)]
"""Those that give everything, and so must give the same."""
AGAINST: Final = "the SDK's documented way"


def expected(truth: Truth) -> list[Found]:
    """What a route should find in a frame."""
    return [
        Found(
            post.action, truth.did, post.rkey, bytes.fromhex(post.cid), None if post.action == "delete" else post.text
        )
        for post in truth.posts
        if not post.fault
    ]


class Checked(NamedTuple):
    """How what a route gives compares with the truth."""

    posts: int
    """Operations that were right."""
    wrong: int
    """Flawless frames of which it gave something else, or nothing."""
    hostile: int
    """Hostile frames that have no usable post and gave one, or that had one and did not give it."""


def check(route: Route, frames: Sequence[bytes], known: Sequence[Truth]) -> Checked:
    """Compare a route with the truth, frame by frame. An error gives no posts."""
    posts = wrong = hostile = 0
    for data, truth in zip(frames, known, strict=True):
        want, got = sorted(expected(truth), key=repr), _anyhow(route, data)
        if got == want:
            posts += len(want)
        elif truth.hostile:
            hostile += 1
        else:
            wrong += 1
    return Checked(posts, wrong, hostile)


def _anyhow(route: Route, data: bytes) -> list[Found]:
    try:
        return sorted((one._replace(cid=_binary(one.cid)) for one in route(data)), key=repr)
    except Exception:  # noqa: BLE001  (what a route raises is its own business)
        return []


def _binary(cid: Any) -> bytes:
    """The SDK gives CIDs as text."""
    return dagcbor.CID + bytes(CID.decode(cid).hash.digest) if isinstance(cid, str) else bytes(cid)


def timed(route: Route, frames: Sequence[bytes]) -> float:
    """Seconds of CPU."""
    begin = time.process_time()
    for data in frames:
        try:
            route(data)
        except Exception:  # noqa: BLE001, S112  (of hostile frames; the same for every route)
            continue
    return time.process_time() - begin


def rounds(ask: Ask) -> Iterator[Measure]:
    """See `bench.part`."""
    n = ask.size(FRAMES, least=500)
    ask.say(f"{n:,} frames")
    path = recording(n)
    frames, known = read(path), truths(path)
    yield Fact("frames", n)
    yield Fact("versions", {name: version(name) for name in ("atproto", "libipld", "cbor2")})
    yield Fact("same as the truth", {name: check(ROUTES[name], frames, known)._asdict() for name in SAME})
    for _ in range(ask.rounds):
        seconds = dict.fromkeys(ROUTES, 0.0)
        for at in range(0, n, IN_TURN):
            for name, route in ROUTES.items():
                seconds[name] += timed(route, frames[at : at + IN_TURN])
        for name, spent in seconds.items():
            yield Figure(name, "frames/s", n / spent)
            yield Figure(f"{name}, a frame", "us", spent / n * 1e6, better="lower")
        for name in ROUTES:
            if name not in ("ours", FLOOR):
                yield Against(
                    f"ours over {name}, frames/s", seconds[name] / seconds["ours"], bar=BAR if name == AGAINST else None
                )
