"""Frames made for a test: valid commits with real CIDs and CARs, and a relay that plays a script."""

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import cbor2
from websockets.asyncio.server import ServerConnection, serve

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
TIME = "2026-11-22T12:00:00.000Z"


def block_and_cid(value: Any) -> tuple[bytes, bytes]:
    """DAG-CBOR bytes and their binary CID."""
    block = cbor2.dumps(value, canonical=True)
    return block, b"\x01\x71\x12\x20" + hashlib.sha256(block).digest()


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
    return {"$type": "app.bsky.feed.post", "text": text, "createdAt": TIME, "langs": ["en"], **fields}


def frame(kind: str, body: dict[str, Any]) -> bytes:
    return cbor2.dumps({"t": kind, "op": 1}, canonical=True) + cbor2.dumps(body, canonical=True)


def commit(
    seq: int, ops: Sequence[tuple[str, str, Any]], *, rev: str | None = None, did: str = DID, time: str = TIME
) -> bytes:
    """A commit frame; ops are (action, rkey of a post, record or None)."""
    blocks, listed = [], []
    for action, rkey, record in ops:
        cid = None
        if record is not None:
            block, cid = block_and_cid(record)
            blocks.append((block, cid))
        path = rkey if "/" in rkey else f"app.bsky.feed.post/{rkey}"
        listed.append({"action": action, "path": path, "cid": None if cid is None else link(cid)})
    root = block_and_cid({"made": "for a test", "seq": seq})
    body = {
        "seq": seq,
        "rebase": False,
        "tooBig": False,
        "repo": did,
        "commit": link(root[1]),
        "rev": rev or tid(seq),
        "since": None,
        "blocks": car(root[1], [root, *blocks]),
        "ops": listed,
        "blobs": [],
        "time": time,
    }
    return frame("#commit", body)


def tid(n: int) -> str:
    """A revision that rises with n: thirteen digits of the sortable base 32."""
    return "3n2v" + "".join("234567abcdefghijklmnopqrstuvwxyz"[n >> (5 * at) & 31] for at in reversed(range(9)))


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
