"""The parts of frames made for a test: valid commits with real CIDs and CARs, and a relay that plays a script."""

import hashlib
from base64 import b32encode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import cbor2
from websockets.asyncio.server import ServerConnection, serve

POSTS = "app.bsky.feed.post"
DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
TIME = "2026-11-22T12:00:00.000Z"
_DIGITS = "234567abcdefghijklmnopqrstuvwxyz"


def block_and_cid(value: Any) -> tuple[bytes, bytes]:
    """DAG-CBOR bytes and their binary CID."""
    block = cbor2.dumps(value, canonical=True)
    return block, cid_of(block)


def cid_of(block: bytes) -> bytes:
    """The binary CID of a block."""
    return b"\x01\x71\x12\x20" + hashlib.sha256(block).digest()


def cid_text(cid: bytes) -> str:
    """A binary CID as the string that the protocol uses."""
    return "b" + b32encode(cid).decode().rstrip("=").lower()


def link(cid: bytes) -> cbor2.CBORTag:
    return cbor2.CBORTag(42, b"\x00" + cid)


def varint(n: int) -> bytes:
    out = b""
    while n > 0x7F:
        out += bytes([n & 0x7F | 0x80])
        n >>= 7
    return out + bytes([n])


def car(root: bytes, blocks: Sequence[tuple[bytes, bytes]]) -> bytes:
    header = cbor2.dumps({"roots": [link(root)], "version": 1}, canonical=True)
    return varint(len(header)) + header + b"".join(varint(len(c) + len(b)) + c + b for b, c in blocks)


def post(text: str, **fields: Any) -> dict[str, Any]:
    return {"$type": POSTS, "text": text, "createdAt": TIME, "langs": ["en"], **fields}


def frame(kind: str, body: dict[str, Any]) -> bytes:
    return cbor2.dumps({"t": kind, "op": 1}, canonical=True) + cbor2.dumps(body, canonical=True)


def commit(
    seq: int, ops: Sequence[tuple[str, str, Any]], *, rev: str | None = None, did: str = DID, time: str = TIME
) -> bytes:
    """A commit frame; ops are (action, rkey of a post or a whole path, record or None)."""
    blocks, listed = [], []
    for action, rkey, record in ops:
        cid = None
        if record is not None:
            block, cid = block_and_cid(record)
            blocks.append((block, cid))
        listed.append(operation(action, rkey, cid))
    root = block_and_cid({"made": "for a test", "seq": seq})
    return commit_of(seq, listed, blocks, rev=rev or tid(seq), did=did, time=time, root=root)


def operation(action: str, rkey: str, cid: bytes | None) -> dict[str, Any]:
    """An entry of a commit's `ops`."""
    path = rkey if "/" in rkey else f"{POSTS}/{rkey}"
    return {"action": action, "path": path, "cid": None if cid is None else link(cid)}


def commit_of(
    seq: int,
    listed: Sequence[dict[str, Any]],
    blocks: Sequence[tuple[bytes, bytes]],
    *,
    rev: str,
    did: str = DID,
    time: str = TIME,
    root: tuple[bytes, bytes] | None = None,
    cut: int = 0,
    **fields: Any,
) -> bytes:
    """A commit frame of these operations and (block, CID) pairs; `cut` bytes are missing at the end of its CAR."""
    root = root or root_block(did, rev)
    whole = car(root[1], [root, *blocks])
    body = {
        "seq": seq,
        "rebase": False,
        "tooBig": False,
        "repo": did,
        "commit": link(root[1]),
        "rev": rev,
        "since": None,
        "blocks": whole[: len(whole) - cut],
        "ops": list(listed),
        "blobs": [],
        "time": time,
        **fields,
    }
    return frame("#commit", body)


def root_block(did: str, rev: str) -> tuple[bytes, bytes]:
    """A repository's commit block and its CID; the signature is none."""
    return block_and_cid(
        {"did": did, "rev": rev, "data": link(cid_of(b"\xa0")), "prev": None, "sig": b"", "version": 3}
    )


def tid(n: int) -> str:
    """A revision that rises with n: thirteen digits of the sortable base 32."""
    return "3n2v" + "".join(_DIGITS[n >> (5 * at) & 31] for at in reversed(range(9)))


def rfc3339(micros: int) -> str:
    """A time as a relay writes it, from microseconds since 1970."""
    whole = datetime.fromtimestamp(micros // 1_000_000, UTC)
    return whole.strftime("%Y-%m-%dT%H:%M:%S.") + f"{micros % 1_000_000:06d}Z"


@asynccontextmanager
async def scripted_relay(messages: Sequence[bytes | str], port: int = 0) -> AsyncIterator[str]:
    """Sends every message to whoever connects, whatever cursor is asked for, then stays quiet."""

    async def play(connection: ServerConnection) -> None:
        for message in messages:
            await connection.send(message)
        await connection.wait_closed()

    async with serve(play, "127.0.0.1", port, compression=None, ping_interval=None) as server:
        (listener,) = server.sockets
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}"
