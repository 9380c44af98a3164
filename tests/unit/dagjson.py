"""DAG-JSON, to compare records with what a server's API said of them (https://ipld.io/specs/codecs/dag-json/spec/)."""

import base64
import json
from typing import Any

import cbor2


def of_block(block: bytes) -> str:
    """A DAG-CBOR block as canonical DAG-JSON."""
    return canonical(_plain(cbor2.loads(block)))


def canonical(value: Any) -> str:
    """JSON that is the same for the same value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def text_of(cid: bytes) -> str:
    """A binary CID v1 as text: multibase base32."""
    return "b" + base64.b32encode(cid).decode().rstrip("=").lower()


def _plain(value: Any) -> Any:
    if isinstance(value, cbor2.CBORTag):
        assert (value.tag, value.value[:1]) == (42, b"\0")
        return {"$link": text_of(value.value[1:])}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode().rstrip("=")}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
