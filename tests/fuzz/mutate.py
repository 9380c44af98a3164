"""Changes a frame so that the change reaches the code behind the checks: a changed record gets its right CID again."""

import hashlib
import io
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

import cbor2

from civicsky.model import POSTS

BLIND: Final = 0.04
"""The share of changes that know nothing of frames; several come on top of each other."""
Flip = Callable[[bytes, int], bytes]
"""Changes bytes without knowing what they mean; the second argument is the most bytes that it may give."""


def mutate(data: bytes, most: int, seed: int, flip: Flip, spare: Sequence[bytes]) -> bytes:
    """A changed message of at most `most` bytes: record, operations or CAR of a commit, or any byte.

    A message that is no frame any more mostly gives way to a changed one of `spare`: behind it there is little to find.
    """
    chance = Random(seed)
    if chance.random() < BLIND:
        return flip(data, most)
    changed = _changed_frame(data, chance, flip) or _changed_frame(chance.choice(spare), chance, flip)
    return changed if changed and len(changed) <= most else flip(data, most)


def _changed_frame(data: bytes, chance: Random, flip: Flip) -> bytes | None:
    """The frame with a change in one of its parts; None when it is none or lacks that part."""
    kind = chance.random()
    try:
        header, body = _parts(data)
        if kind < 0.8:
            _change_record(body, chance, flip)
        elif kind < 0.87:
            body["blocks"] = _changed_bytes(body["blocks"], chance, flip)
        else:
            body = _changed(body, chance)
        return _encode(header) + _encode(body)
    except Exception:  # noqa: BLE001  (no such frame: whatever it lacks does not matter)
        return None


def sections(car: bytes) -> list[bytes]:
    """The parts of a CAR v1: its header, then each CID with its block."""
    found, at = [], 0
    while at < len(car):
        size = shift = 0
        while True:
            byte = car[at]
            at += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        found.append(car[at : at + size])
        at += size
    return found


def _parts(data: bytes) -> tuple[Any, Any]:
    decoder = cbor2.CBORDecoder(io.BytesIO(data))
    return decoder.decode(), decoder.decode()


def _encode(value: Any) -> bytes:
    return cbor2.dumps(value, canonical=True)


def _change_record(body: dict[str, Any], chance: Random, flip: Flip) -> None:
    """Change one post's record and what names it: the section of the CAR and the operation."""
    op = chance.choice([op for op in body["ops"] if op["path"].startswith(POSTS) and op["cid"]])
    header, *rest = sections(body["blocks"])
    blocks = {section[:36]: section[36:] for section in rest}
    before = op["cid"].value[1:]
    block = blocks.pop(before)
    if chance.random() < 0.15:
        block = _changed_bytes(block, chance, flip)
    else:
        block = _encode(_changed(cbor2.loads(block), chance))
    cid = b"\x01\x71\x12\x20" + hashlib.sha256(block).digest()
    blocks[cid] = block
    op["cid"] = cbor2.CBORTag(42, b"\0" + cid)
    body["blocks"] = b"".join(_section(part) for part in (header, *(cid + block for cid, block in blocks.items())))


def _changed_bytes(data: bytes, chance: Random, flip: Flip) -> bytes:
    return data[: chance.randrange(len(data) + 1)] if chance.random() < 0.2 else flip(data, len(data) + 64)


def _section(content: bytes) -> bytes:
    size, out = len(content), bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*out, size]) + content


def _changed(value: Any, chance: Random) -> Any:
    """The value with one change somewhere inside it."""
    if not value or not isinstance(value, dict | list) or chance.random() < 0.15:
        return _other(value, chance)
    if isinstance(value, list):
        at = chance.randrange(len(value))
        return [*value[:at], *_instead(value[at], chance), *value[at + 1 :]]
    name = chance.choice(list(value))
    kept = {key: item for key, item in value.items() if key != name}
    kept.update((name, item) for item in _instead(value[name], chance))
    if chance.random() < 0.1:
        kept[chance.choice(NAMES)] = _any(chance)
    return kept


def _instead(value: Any, chance: Random) -> list[Any]:
    """What stands in a value's place: mostly it changed, now and then nothing, or it many times."""
    kind = chance.random()
    if kind < 0.06:
        return []
    return [value] * chance.choice([2, 70]) if kind < 0.12 else [_changed(value, chance)]


def _other(value: Any, chance: Random) -> Any:
    if isinstance(value, str) and chance.random() < 0.7:
        at = chance.randrange(len(value) + 1)
        return value[:at] + chance.choice(TEXTS) + value[at + chance.randrange(3) :]
    if isinstance(value, int) and not isinstance(value, bool) and chance.random() < 0.7:
        return max(-(2**63), min(value + chance.choice([-1, 1, -(2**32), 2**32]), 2**64 - 1))
    return _any(chance)


def _any(chance: Random) -> Any:
    """A value of any type."""
    kind = chance.random()
    if kind < 0.1:
        nested: Any = chance.choice([0, [], {}])
        for _ in range(chance.choice([1, 3, 200, 2000])):
            nested = [nested] if chance.random() < 0.5 else {chance.choice(NAMES): nested}
        return nested
    return chance.choice(TEXTS if kind < 0.4 else VALUES)


NAMES: Final = [
    "$type", "text", "langs", "createdAt", "reply", "root", "uri", "embed", "media", "record", "external", "images",
    "alt", "facets", "features", "tag", "did", "tags", "labels", "values", "val", "", "cid", "path", "action",
]  # fmt: skip
TEXTS: Final = [
    "", " ", "\0", "\n", "e\u0301", "\u200d", "\u202e", "\ufeff", "\U0001f3f3\ufe0f", "\U0010ffff", "\u0130", "ß",
    "#", "@a.b", "https://a.example/b", "www.", "-" * 3000, "a." * 2000, "x" * 10_001, "en", "en-GB", "porn", "gore",
    POSTS, POSTS + "/", "app.bsky.embed.images", "app.bsky.embed.recordWithMedia", "app.bsky.richtext.facet#tag",
    "1970-01-01T00:00:00Z", "0000-00-00", "9999-12-31T23:59:59.999999-23:59", "2026-11-22T12:00:00", "delete",
]  # fmt: skip
VALUES: Final[list[Any]] = [
    None, True, False, 0, -1, 2**53, 2**64 - 1, -(2**63), 0.1, b"", b"\xff" * 36, [], {}, [[]], [{}], [None],
    {"": None}, ["a", 1, None], {"$type": "app.bsky.embed.record"},
    cbor2.CBORTag(42, b"\0\x01\x71\x12\x20" + b"\1" * 32),
]  # fmt: skip
