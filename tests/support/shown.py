"""What feeds show: posts with real records and their real CIDs, as the public API sends them."""

import json
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import cbor2

from support.frames import block_and_cid, cid_text, post, rfc3339, tid
from support.words import english, foreign

GENERATORS = "did:plc:feedsfeedsfeedsfeedsfeed"
BEGIN = 1_767_225_600_000_000
"""2026-01-01, in microseconds."""


def feed_uri(name: str) -> str:
    """A feed of the one who makes all feeds."""
    return f"at://{GENERATORS}/app.bsky.feed.generator/{name}"


def as_json(value: Any) -> Any:
    """A record as atproto's JSON has it: links and bytes are objects (https://atproto.com/specs/data-model)."""
    if isinstance(value, cbor2.CBORTag):
        return {"$link": cid_text(value.value[1:])}
    if isinstance(value, bytes):
        return {"$bytes": b64encode(value).decode().rstrip("=")}
    if isinstance(value, dict):
        return {name: as_json(item) for name, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list) else value


def view(uri: str, cid: str, record: bytes, **fields: Any) -> bytes:
    """One item of a feed; `record` is JSON of any kind, `fields` are those of the post's view."""
    shown = {
        "uri": uri,
        "cid": cid,
        "author": {"did": uri.split("/")[2], "handle": "a.test", "labels": [{"val": "x"}]},
        "likeCount": 7,
        "repostCount": 5,
        "replyCount": 3,
        "quoteCount": 2,
        "indexedAt": "2026-01-01T12:00:00.000Z",
        "labels": [],
        **fields,
    }
    known = {name: value for name, value in shown.items() if value is not None}
    return b'{"post": ' + json.dumps(known).encode()[:-1] + b', "record": ' + record + b'}, "feedContext": "x"}'


def shown(record: dict[str, Any], n: int, **fields: Any) -> bytes:
    """The nth post of a feed, of an author of its own, with its true CID."""
    cid = cid_text(block_and_cid(record)[1])
    at = rfc3339(BEGIN + n * 1_000_000)
    return view(uri_of(n), cid, json.dumps(as_json(record)).encode(), **{"indexedAt": at, "likeCount": n, **fields})


def uri_of(n: int) -> str:
    letters = "".join("abcdefghijklmnopqrstuvwxyz234567"[n >> (5 * at) & 31] for at in range(4))
    return f"at://did:plc:{letters.rjust(24, 'a')}/app.bsky.feed.post/{tid(n)}"


def english_posts(count: int, first: int = 0) -> list[bytes]:
    """So many English posts, no two alike."""
    return [shown(post(english(Random(n), n), langs=["en"]), n) for n in range(first, first + count)]


def foreign_posts(count: int, first: int) -> list[bytes]:
    """So many in other languages."""
    tagged = [(n, *foreign(Random(n), n)) for n in range(first, first + count)]
    return [shown(post(text, langs=[tag]), n) for n, tag, text in tagged]


def uris(items: Sequence[bytes]) -> list[str]:
    return [json.loads(item)["post"]["uri"] for item in items]


def credentials(
    folder: Path, text: str = 'handle = "me.test"\napp_password = "abcd-efgh"\n', mode: int = 0o600
) -> Path:
    """A credentials file."""
    file = folder / "credentials.toml"
    file.write_text(text)
    file.chmod(mode)
    return file
