"""The recorded streams and what is known of them, and small builders of frames and records."""

import gzip
import hashlib
import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import cbor2

POST = "app.bsky.feed.post"
DID = "did:plc:oad33l6rbjzqnu5ow23htckw"
REV = "3n2vmmrldjs24"
TIME = "2026-11-22T12:30:45.740Z"
TIME_US = 1_795_350_645_740_000

FRAMES = Path(__file__).parents[1] / "frames"
SAMPLE = Path(str(files("civicsky"))) / "data" / "sample"
STREAMS = {
    "live": FRAMES / "frames.bin.gz",
    "replay": FRAMES / "replay.bin.gz",
    "sample": SAMPLE / "frames.bin.gz",
}


@cache
def stream(name: str) -> tuple[bytes, ...]:
    """The frames of one recording; read without the code under test."""
    data = gzip.decompress(STREAMS[name].read_bytes())
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return tuple(found)


@cache
def index() -> tuple[dict[str, Any], ...]:
    """What the server said of each frame of the stream `live`."""
    return _rows(gzip.decompress((FRAMES / "index.jsonl.gz").read_bytes()))


@cache
def truth() -> tuple[dict[str, Any], ...]:
    """What is known of each post of the stream `sample`."""
    return _rows((SAMPLE / "truth.jsonl").read_bytes())


def _rows(data: bytes) -> tuple[dict[str, Any], ...]:
    # Not splitlines: it also breaks lines at characters that posts contain.
    return tuple(json.loads(line) for line in data.decode().split("\n") if line)


def encode(value: Any) -> bytes:
    """DAG-CBOR for values without floats."""
    return cbor2.dumps(value, canonical=True)


def link(cid: bytes) -> cbor2.CBORTag:
    """A CID as DAG-CBOR writes it."""
    return cbor2.CBORTag(42, b"\0" + cid)


def cid_of(block: bytes) -> bytes:
    """The CID of a DAG-CBOR block: version 1, codec, SHA-256, length, digest."""
    return b"\x01\x71\x12\x20" + hashlib.sha256(block).digest()


def varint(n: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


def car(blocks: Iterable[bytes]) -> bytes:
    """A CAR v1 of these blocks; its root is an empty map's CID."""
    header = encode({"roots": [link(cid_of(b"\xa0"))], "version": 1})
    return section(header) + b"".join(section(cid_of(block) + block) for block in blocks)


def section(content: bytes) -> bytes:
    """One part of a CAR: its length and its bytes."""
    return varint(len(content)) + content


def frame(body: Any, header: Any = None) -> bytes:
    """One binary message."""
    return encode({"op": 1, "t": "#commit"} if header is None else header) + encode(body)


def body(**changes: Any) -> dict[str, Any]:
    """A commit's body without operations; `...` as a value leaves the field out."""
    full = {"seq": 7, "repo": DID, "time": TIME, "rev": REV, "ops": [], "blocks": b"", **changes}
    return {name: value for name, value in full.items() if value is not ...}


def account(**changes: Any) -> bytes:
    """An #account frame; `...` as a value leaves the field out."""
    full = {"seq": 7, "did": DID, "time": TIME, "active": True, **changes}
    return frame({name: value for name, value in full.items() if value is not ...}, {"op": 1, "t": "#account"})


def op(**changes: Any) -> dict[str, Any]:
    """A commit's operation that creates a post; `...` as a value leaves the field out."""
    full = {"action": "create", "path": f"{POST}/3n2vmmzh27s24", "cid": None, **changes}
    return {name: value for name, value in full.items() if value is not ...}


def post(**fields: Any) -> bytes:
    """The block of a post's record; `...` as a value leaves the field out."""
    full = {"$type": POST, "text": "hello", "createdAt": TIME, **fields}
    return encode({name: value for name, value in full.items() if value is not ...})
