"""Values as the network writes them: canonical DAG-CBOR, CIDs, CAR v1. `civicsky.decode` names the specifications."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from support.frames import varint

CID: Final = b"\x01\x71\x12\x20"
"""How the CID of a record, a node or a commit begins: DAG-CBOR, SHA-256."""
RAW_CID: Final = b"\x01\x55\x12\x20"
"""How that of a picture or a video begins."""
NULL: Final = b"\xf6"
FALSE: Final = b"\xf4"
TRUE: Final = b"\xf5"


def head(major: int, n: int) -> bytes:
    """CBOR's initial byte with its argument, in canonical form."""
    if n < 24:
        return bytes([major << 5 | n])
    for more, size in ((24, 1), (25, 2), (26, 4)):
        if n < 1 << 8 * size:
            return bytes([major << 5 | more]) + n.to_bytes(size, "big")
    return bytes([major << 5 | 27]) + n.to_bytes(8, "big")


def text(value: str) -> bytes:
    coded = value.encode()
    return head(3, len(coded)) + coded


def byte_string(value: bytes) -> bytes:
    return head(2, len(value)) + value


def link(cid: bytes) -> bytes:
    return b"\xd8\x2a\x58\x25\x00" + cid


def cid_text(cid: bytes) -> str:
    number = int.from_bytes(cid, "big") << 2  # 288 bits are 58 digits of five, two bits of which are empty
    return "b" + "".join("abcdefghijklmnopqrstuvwxyz234567"[number >> shift & 31] for shift in range(285, -1, -5))


def cid_of(block: bytes) -> bytes:
    return CID + sha256(block).digest()


def map_of(fields: Sequence[tuple[str, bytes]]) -> bytes:
    """A map of keys and their values' CBOR, in canonical order: shorter keys first."""
    ordered = sorted(fields, key=lambda pair: (len(pair[0]), pair[0]))
    return head(5, len(ordered)) + b"".join(text(key) + value for key, value in ordered)


def car_block(cid: bytes, block: bytes) -> bytes:
    return varint(len(cid) + len(block)) + cid + block


def car_head(root: bytes) -> bytes:
    described = map_of([("roots", b"\x81" + link(root)), ("version", b"\x01")])
    return varint(len(described)) + described


def car(root: bytes, blocks: Sequence[tuple[bytes, bytes]]) -> bytes:
    return car_head(root) + b"".join(car_block(cid, block) for cid, block in blocks)
