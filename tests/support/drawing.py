"""Ledgers whose lots are known beforehand: each makes a secret key of its own, and by it posts are drawn."""

import asyncio
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from itertools import count
from pathlib import Path

from civicsky.ledger import Ledger
from civicsky.sample import lot

LEAST = 0.25 / 24 / 10
"""With no less probability one of ten posts is drawn where one a day is wished for, at whatever hour it comes."""


async def known_lots(file: Path, key: bytes) -> None:
    """Make the ledger, if there is none yet, and have it draw by this key."""
    await (await Ledger.open(file)).close()
    with closing(sqlite3.connect(file)) as db, db:
        assert db.execute("UPDATE secret SET value = ? WHERE name = 'sample'", (key,)).rowcount == 1


def draws_first(folder: Path, uris: Iterable[str]) -> None:
    """Of ten posts at most, and one a day, it draws the first at any hour, and never all.

    Those after it have lots that only a probability above a half reaches: none but an hour's first post may have one.
    """
    first, *others = uris
    assert 2 <= len(others) < 10
    wanted = (key for key in (n.to_bytes(32) for n in count()) if lot(key, first) < LEAST * 2**64)
    key = next(key for key in wanted if all(lot(key, uri) > 2**63 for uri in others[-2:]))
    asyncio.run(known_lots(folder / "ledger.db", key))
