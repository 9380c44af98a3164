"""Exports a large store of made-up posts with the installed command: time, peak memory, and what other readers see.

    .venv/bin/python bench/export_million.py [--posts N] [--format parquet ...] [--folder DIR]

Exit code 1 when the command needed 300 MB of memory or more, or when a file is not what it should be.
"""

import argparse
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

CIVICSKY = Path(sys.executable).with_name("civicsky")
LIMIT_MB = 300
WORDS = ["the", "a", "of", "we", "they", "vote", "senate", "tax", "cat", "bread", "rain", "school", "rent", "again"]
BEGIN = 1_795_000_000
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""A small process between us and the command: a child's peak begins with that of the process that it was forked from."""
ADD = "INSERT INTO {} (_id, v, doc) VALUES (?, 1, ?)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", type=int, default=1_000_000)
    parser.add_argument("--format", choices=["parquet", "csv", "jsonl"], action="append")
    parser.add_argument("--level", choices=["internal", "public"], default="internal")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=told.folder) as name:
        folder = Path(name)
        began = time.monotonic()
        fill(folder, told.posts)
        size = (folder / "posts.db").stat().st_size / 1e9
        print(f"store: {told.posts:,} posts, {size:.2f} GB, {time.monotonic() - began:.0f} s", flush=True)
        return max(measure(folder, told.posts, form, told.level) for form in told.format or ["parquet"])


def measure(folder: Path, posts: int, form: str, level: str) -> int:
    """Export once; 0 when all is well."""
    out, began = folder / "out", time.monotonic()
    command = [CIVICSKY, "export", "--data-dir", folder, "--out", out, "--format", form, "--level", level, "--json"]
    ran = subprocess.run([sys.executable, "-c", PEAK, *command], check=True, stdout=subprocess.PIPE).stdout
    seconds = time.monotonic() - began
    told, _, peak_kb = ran.rstrip().rpartition(b"\n")
    found, peak = json.loads(told), int(peak_kb) / 1024
    rows = {file["name"]: file["rows"] for file in found["files"] if "rows" in file}
    megabytes = sum(file["bytes"] for file in found["files"]) / 1e6
    print(f"{form}: {rows}, {megabytes:,.0f} MB, {seconds:.0f} s, {posts / seconds:,.0f} posts/s, peak {peak:.0f} MB")
    wrong = [f"peak of {peak:.0f} MB"] if peak >= LIMIT_MB else []
    for table in ("posts", "labels"):
        wrong += [f"{table}: {what}" for what in READ[form](out / f"{table}.{form}", rows[f"{table}.{form}"])]
    for what in wrong:
        print(f"  wrong: {what}")
    shutil.rmtree(out)
    return int(bool(wrong))


# ---- what others read ------------------------------------------------------------------------------------------------


def read_parquet(file: Path, rows: int) -> Iterator[str]:
    opened = parquet.ParquetFile(file)
    for field in opened.schema_arrow:
        if pa.types.is_null(field.type) or pa.types.is_nested(field.type):
            yield f"{field.name} is {field.type}"
        if pa.types.is_timestamp(field.type) and str(field.type) != "timestamp[us, tz=UTC]":
            yield f"{field.name} is {field.type}"
    if opened.metadata.num_rows != rows:
        yield f"pyarrow sees {opened.metadata.num_rows:,} rows"
    narrow = [name for name in opened.schema_arrow.names if "civic" in name or name in {"event_at", "event_hour", "at"}]
    frame = pd.read_parquet(file, columns=narrow)
    if len(frame) != rows:
        yield f"pandas sees {len(frame):,} rows"
    counted = duckdb.sql(f"SELECT count(*), count(civic_civic) FROM '{file}'").fetchall()[0]
    if counted != (rows, int(frame["civic_civic"].notna().sum())) or not counted[1]:
        yield f"DuckDB sees {counted}"
    described = duckdb.sql(f"SELECT DISTINCT column_type FROM (DESCRIBE '{file}') ORDER BY 1").fetchall()
    types = ", ".join(kind for (kind,) in described)
    print(f"  {file.name}: {opened.metadata.num_row_groups} row groups, {len(opened.schema_arrow)} columns: {types}")


def read_csv(file: Path, rows: int) -> Iterator[str]:
    yield from _counted(file, rows, f"read_csv('{file}', header=true, all_varchar=true)")


def read_jsonl(file: Path, rows: int) -> Iterator[str]:
    yield from _counted(file, rows, f"read_json('{file}', format='newline_delimited')")


def _counted(file: Path, rows: int, source: str) -> Iterator[str]:
    counted = duckdb.sql(f"SELECT count(*), count(civic_civic) FROM {source}").fetchall()[0]
    if counted[0] != rows or not counted[1]:
        yield f"DuckDB sees {counted}"
    print(f"  {file.name}: {counted}")


READ: dict[str, Callable[[Path, int], Iterator[str]]] = {"parquet": read_parquet, "csv": read_csv, "jsonl": read_jsonl}


# ---- the store -------------------------------------------------------------------------------------------------------


def fill(folder: Path, posts: int) -> None:
    """A store as labelling leaves it: four posts an author, every fourth post drawn, one drawn post in 20 unlabelled."""
    subprocess.run([sys.executable, "-c", EMPTY, folder], check=True)
    with closing(sqlite3.connect(folder / "posts.db", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=OFF")
        db.execute("PRAGMA synchronous=OFF")
        indexes = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL").fetchall()
        db.execute("BEGIN")
        for name, _ in indexes:
            db.execute(f"DROP INDEX {name}")
        draw = random.Random(1)  # noqa: S311  (made-up texts)
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


if __name__ == "__main__":
    sys.exit(main())
