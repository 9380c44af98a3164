"""Files as `civicsky fetch` leaves them, with real records and their real CIDs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from civicsky import inbox
from civicsky.inbox import Header, Item
from support.frames import DID, block_and_cid, cid_text, post
from support.led import NOW, uri

FETCHED = NOW - 3_600_000_000
"""An hour before the tests began."""


def item(rank: int, rkey: str, wrote: dict[str, Any] | str, *, did: str = DID, **fields: Any) -> Item:
    """A post of a feed; what its author wrote may be the text alone."""
    value = post(wrote) if isinstance(wrote, str) else wrote
    known: dict[str, Any] = {
        "rank": rank,
        "uri": uri(rkey, did),
        "cid": cid_text(block_and_cid(value)[1]),
        "indexed_at": FETCHED - rank * 1_000_000,
        "likes": 1000 - rank,
        "reposts": 5,
        "replies": 3,
        "quotes": 1,
        "moderation": [],
        "record": json.dumps(value),
    }
    return Item(**{**known, **fields})


def leave(folder: Path, items: Sequence[Item], *, at: int = FETCHED, name: str = "today", **fields: Any) -> Path:
    """Put a fetched file into a data directory's inbox."""
    known: dict[str, Any] = {"kind": "feed", "uri": f"at://did:plc:feeds/app.bsky.feed.generator/{name}"}
    known |= {"complete": True, "why": "end", "pages": 1}
    return inbox.write(folder, Header(name=name, at=at, **{**known, **fields}), items)
