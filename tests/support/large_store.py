"""A large store of made-up posts, fast, and how much memory a command needs that reads it."""

import json
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

WORDS = ["the", "a", "of", "we", "they", "vote", "senate", "tax", "cat", "bread", "rain", "school", "rent", "again"]
BEGIN = 1_795_000_000
ADD = "INSERT INTO {} (_id, v, doc) VALUES (?, 1, ?)"
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""A small process between us and a command: a child's peak begins with that of what it was forked from."""


def run_with_peak(command: Sequence[str | Path]) -> tuple[bytes, float]:
    """(what a command prints, MB of memory that it needed at its peak)."""
    ran = subprocess.run([sys.executable, "-c", PEAK, *command], check=True, stdout=subprocess.PIPE).stdout
    told, _, kilobytes = ran.rstrip().rpartition(b"\n")
    return told, int(kilobytes) / 1024


def fill(folder: Path, posts: int) -> None:
    """A store as labelling leaves it: four posts an author, every fourth drawn, one drawn post in 20 unlabelled."""
    subprocess.run([sys.executable, "-c", EMPTY, folder], check=True)
    with closing(sqlite3.connect(folder / "posts.db", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=OFF")
        db.execute("PRAGMA synchronous=OFF")
        indexes = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL").fetchall()
        db.execute("BEGIN")
        for name, _ in indexes:
            db.execute(f"DROP INDEX {name}")
        draw = random.Random(1)
        db.executemany(ADD.format("posts"), (packed(post(n, draw)) for n in range(posts)))
        db.executemany(ADD.format("labels"), (packed(label(n, draw)) for n in range(0, posts, 4) if n % 80))
        db.executemany(ADD.format("authors"), (packed(author(n)) for n in range(0, posts, 4)))
        for _, sql in indexes:
            db.execute(sql)
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode=WAL")


EMPTY = """
import asyncio, pathlib, sys
from civicsky.store import SqliteStore
async def make():
    await (await SqliteStore.open(pathlib.Path(sys.argv[1]) / 'posts.db')).close()
asyncio.run(make())
"""


def packed(document: dict[str, Any]) -> tuple[str, str]:
    return document["_id"], json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def names(n: int) -> tuple[str, str, str]:
    did = f"did:plc:{n // 4:024d}"
    return did, f"{n:013d}", f"at://{did}/app.bsky.feed.post/{n:013d}"


def moment(n: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(BEGIN + n)) + f".{n % 1000:03d}Z"


def said(n: int) -> dict[str, Any]:
    if n % 12:
        return {"civic": {"value": "not civic", "probability": 0.9}}
    return {
        "civic": {"value": "civic", "probability": 0.7},
        "lean": {"value": "unclear", "probability": None},
        "us_politics": {"value": "yes", "probability": 0.6},
    }


def post(n: int, draw: random.Random) -> dict[str, Any]:
    did, rkey, uri = names(n)
    current = {
        "fields": said(n), "p_sampled": 0.25, "model": "a-model", "prompt": "663e8b37" * 8, "cid": f"bafyrei{n:052d}",
        "label_id": f"{n:064x}", "at": moment(n),
    }  # fmt: skip
    labelled = n % 4 == 0 and n % 80 != 0
    return {
        "_id": uri, "uri": uri, "did": did, "rkey": rkey, "cid": f"bafyrei{n:052d}", "rev": rkey, "v": 1,
        "state": "live" if n % 50 else "hidden", "text": " ".join(draw.choices(WORDS, k=draw.randint(3, 40))),
        "langs": ["en"], "created_at": moment(n), "event_at": moment(n), "received_at": moment(n), "backdated": False,
        "reply_root": names(n // 2)[2] if n % 2 else None, "reply_parent": None, "quote_uri": None,
        "link": {"uri": f"https://news.example/{n}", "title": "A title", "description": "What it is about"}
        if n % 5 == 0 else None,
        "alts": [], "media": None, "tags": ["politics"] if n % 7 == 0 else [], "links": [], "mentions": [],
        "self_labels": [], "origins": [{"kind": "firehose", "host": "wss://relay.example"}], "moderation": [],
        "filter": {"version": "english-vote-2", "english_by": ["tag", "cld2"],
                   "scores": {"fasttext": 0.9, "cld2": 0.99}, "flags": [], "reason": None},
        "p_kept": 1.0, "labels": {"civic": current} if labelled else {},
        "unlabelled": {"civic": {"reason": "refusal", "p_sampled": 0.25}} if n % 80 == 0 else {},
    }  # fmt: skip


def label(n: int, draw: random.Random) -> dict[str, Any]:
    return {
        "_id": f"{n:064x}", "uri": names(n)[2], "v": 1, "state": "live" if n % 50 else "hidden",
        "cid": f"bafyrei{n:052d}", "task": "civic", "task_version": "2", "run": 0, "prompt": "663e8b37" * 8,
        "fields": said(n), "reason": None, "p_sampled": 0.25, "model": "a-model", "model_asked": "a-model",
        "fingerprint": None, "server": None, "way": "schema", "parameters": "{}", "endpoint": "http://127.0.0.1/v1",
        "input_hash": f"{draw.getrandbits(256):064x}", "context_hash": None, "tokens_in": 1400, "tokens_out": 18,
        "tokens_reasoning": 0, "cost": None, "currency": None, "cached_from": None, "latency_ms": 300, "calls": 1,
        "attempts": 1, "at": moment(n),
    }  # fmt: skip


def author(n: int) -> dict[str, Any]:
    did, _, _ = names(n)
    return {
        "_id": did, "did": did, "v": 1, "state": "live", "handle": f"user{n}.example", "created_at": moment(n),
        "followers": 5, "follows": 6, "posts": 4, "marks": [], "lists": [], "moderation": [], "looked_up_at": moment(n),
    }  # fmt: skip
