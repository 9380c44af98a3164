"""Journals of any size, fast: rows as collecting leaves them, in the journal's own tables.

    fill(folder, posts=10_000_000, waiting=False)

Rows have the sizes of real ones (median: a record of 230 bytes, fields of 450), texts of their own, record keys that
rise with time and end an hour before `NEWEST`, authors without any order, ten posts each on average, and two rejected
posts for each one kept among those of the last `REJECTED` posts. With `waiting`, each post has its entry in the feed of
changes, so that the labelling half finds all of them new; without, that feed was followed and pruned.

About 150,000 posts a second; 10 million take 11 GB.
"""

import asyncio
import hashlib
import json
import os
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from civicsky.datadir import JOURNAL
from civicsky.journal import Journal
from civicsky.settings import Journal as JournalSettings

NEWEST: Final = 1_767_222_000_000_000
"""Microseconds: an hour before the made-up frames begin."""
POSTS_A_SECOND: Final = 12
"""Kept posts of the live stream."""
REJECTED: Final = 2_000_000
"""Rejected posts are kept for days, posts until they are labelled: so many of them at most."""
POSTS_AN_AUTHOR: Final = 10
REPLIES: Final = 0.45
TEMPLATES: Final = 997
HOST: Final = "wss://relay.example"
DIGITS: Final = "234567abcdefghijklmnopqrstuvwxyz"
TRIPLES: Final = [a + b + c for a in DIGITS for b in DIGITS for c in DIGITS]
WORDS: Final = """
the a of we they vote senate tax cat bread rain school rent again council budget train song game friend today never
really people think about what would could should city water garden morning coffee law court judge
"""
Row = tuple[Any, ...]


def fill(folder: Path, posts: int, *, waiting: bool = False, seed: int = 7) -> None:
    """Make the journal in a data directory; it must not be there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    asyncio.run(_empty(folder / JOURNAL))
    with closing(sqlite3.connect(folder / JOURNAL, isolation_level=None)) as db:
        for name, value in (("journal_mode", "OFF"), ("synchronous", "OFF"), ("cache_size", -400_000)):
            db.execute(f"PRAGMA {name}={value}")
        indexes = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL").fetchall()
        triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        db.execute("BEGIN")
        for name, _ in indexes:
            db.execute(f"DROP INDEX {name}")
        for name, _ in triggers:
            db.execute(f"DROP TRIGGER {name}")
        draw = random.Random(seed)
        marks = ",".join("?" * 11)
        columns = "rkey, did, rev, idx, cid, state, host, event_at, received_at, record, fields"
        db.executemany(f"INSERT INTO post ({columns}) VALUES ({marks})", _posts(posts, draw))
        rejects = min(2 * posts, REJECTED)
        db.executemany("INSERT INTO reject VALUES (?,?,?,0,'language',?,NULL)", _rejects(posts, rejects, draw))
        if waiting:
            db.execute(
                "INSERT INTO change (kind, did, rkey, rev, at) SELECT 'put', did, rkey, rev, event_at FROM post "
                "ORDER BY id"
            )
        for _, sql in (*indexes, *triggers):
            db.execute(sql)
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode=WAL")


async def _empty(path: Path) -> None:
    await (await Journal.open(path, JournalSettings())).close()


def _posts(posts: int, draw: random.Random) -> Iterator[Row]:
    dids = [_did(number) for number in range(max(1, posts // POSTS_AN_AUTHOR))]
    templates = [_template(draw) for _ in range(TEMPLATES)]
    step = 1_000_000 // POSTS_A_SECOND
    at = NEWEST - posts * step
    for number in range(posts):
        at += step
        key = tid(at)
        (record, record_end), (fields, fields_end) = templates[number % TEMPLATES]
        yield (
            key, dids[int(draw.random() * len(dids))], key, 0, _cid(), "live", HOST, at, at + 700_000,
            b"%b%012d%b" % (record, number, record_end), f"{fields}{number:012d}{fields_end}",
        )  # fmt: skip


def _rejects(posts: int, rejects: int, draw: random.Random) -> Iterator[Row]:
    authors = max(1, posts // POSTS_AN_AUTHOR)
    step = 1_000_000 // (2 * POSTS_A_SECOND)
    at = NEWEST - rejects * step
    for _ in range(rejects):
        at += step
        key = tid(at + 1)
        yield key, _did(authors + int(draw.random() * authors)), key, at


def _template(draw: random.Random) -> tuple[tuple[bytes, bytes], tuple[str, str]]:
    """Record and fields, each in two parts: a number between them makes the text that of one post alone."""
    words = WORDS.split()
    text = " ".join(draw.choices(words, k=min(50, max(1, int(draw.lognormvariate(2.6, 0.8))))))
    reply = f"at://{_did(draw.getrandbits(32))}/app.bsky.feed.post/{tid(NEWEST)}" if draw.random() < REPLIES else None
    scores = {"fasttext": round(draw.random(), 4), "cld2": 0.99}
    ways = {"version": "english-vote-2", "english_by": ["tag", "cld2", "fasttext"], "scores": scores}
    fields = {
        "text": f"{text} #", "langs": ["en"], "created_at": NEWEST, "reply_root": reply, "reply_parent": reply,
        "quote_uri": None, "link": None, "alts": [], "media": None, "tags": [], "links": [], "mentions": [],
        "self_labels": [], "filter": {**ways, "flags": [], "reason": None},
    }  # fmt: skip
    before, after = json.dumps(fields, separators=(",", ":")).split("#")
    record = text.encode() + (reply or "").encode() * 2 + b"$type\x72app.bsky.feed.post langs createdAt 2026-01-01T00"
    return (record, b"Z" * 20), (before, after)


def tid(at: int) -> str:
    """A record key of a time in microseconds; it rises with it."""
    whole = at << 10
    parts = [TRIPLES[whole >> shift & 0x7FFF] for shift in (45, 30, 15, 0)]
    return DIGITS[whole >> 60 & 31] + "".join(parts)


def _did(number: int) -> str:
    return "did:plc:" + hashlib.blake2b(number.to_bytes(8), digest_size=12).hexdigest()


def _cid() -> str:
    return "bafyrei" + os.urandom(26).hex()
