"""Collects the way the SDK is documented, into the same tables: what civicsky's collecting half is held against.

    python -m bench.sdk_collect URL FOLDER LAST [--batch N]

The SDK's `FirehoseSubscribeReposClient` with its documented steps: `parse_subscribe_repos_message`, `CAR.from_bytes`,
`AtUri`, `models.get_or_create`. A post's verdict is civicsky's own (`worker.judge_record`), here in the same process.
Posts, rejects, changes and the cursor go into a journal with civicsky's tables, columns and pragmas, a batch of frames
in one transaction. It does less than civicsky: it does not look up what it knows of a post, nor count, nor keep
what it cannot read. It ends when it has committed LAST, the last sequence number.
"""

import argparse
import sqlite3
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from libipld import decode_multibase

from civicsky.decode import find_blocks
from civicsky.filter import load
from civicsky.model import POSTS, now_us, parse_time
from civicsky.order import PostWrite, RejectWrite, sampled
from civicsky.settings import Journal
from civicsky.tables import SCHEMA
from civicsky.worker import judge_record

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from atproto import (  # type: ignore[import-untyped]
        CAR,
        AtUri,
        FirehoseSubscribeReposClient,
        models,
        parse_subscribe_repos_message,
    )

REPOS: Final = models.ComAtprotoSyncSubscribeRepos
SAMPLE: Final = Journal().reject_sample
WRITE_POST: Final = (
    "INSERT INTO post (rkey, did, rev, idx, cid, state, host, event_at, received_at, p_kept, record, fields) "
    "VALUES (?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (rkey, did) DO UPDATE SET rev = excluded.rev, idx = excluded.idx, "
    "cid = excluded.cid, host = excluded.host, record = excluded.record, fields = excluded.fields, "
    "event_at = excluded.event_at, received_at = excluded.received_at, p_kept = excluded.p_kept, state = excluded.state"
)


class Collector:
    """Takes messages of the SDK's client, and writes a journal."""

    def __init__(self, folder: Path, host: str, batch: int) -> None:
        self._host, self._batch = host, batch
        self._db = open_journal(folder / "journal.db")
        self._posts: dict[tuple[str, str], PostWrite] = {}
        self._rejects: dict[tuple[str, str], RejectWrite] = {}
        self._changes: list[tuple[str, str, str, str, int]] = []
        self._frames = 0
        self._event_at = 0
        self.cursor = 0

    def take(self, message: Any) -> None:
        """One message; one that the SDK cannot read is lost."""
        with suppress(Exception):
            event = parse_subscribe_repos_message(message)
            self.cursor = event.seq or self.cursor
            if isinstance(event, REPOS.Commit):
                self._event_at = parse_time(event.time) or 0
                self._commit(event)
            elif isinstance(event, REPOS.Account):
                self._account(event)
        self._frames += 1
        if self._frames >= self._batch:
            self.write()

    def _commit(self, commit: Any) -> None:
        blocks: Any = None
        for idx, op in enumerate(commit.ops):
            uri = AtUri.from_str(f"at://{commit.repo}/{op.path}")
            if op.action == "delete":
                if uri.collection == POSTS:
                    self._put(commit, idx, uri.rkey, "deleted", "", None, None)
                continue
            if not op.cid:
                continue
            if blocks is None:
                blocks = CAR.from_bytes(commit.blocks).blocks
            raw = blocks.get(op.cid)
            if not raw:
                continue
            record = models.get_or_create(raw, strict=False)
            if uri.collection == POSTS and models.is_record_type(record, models.ids.AppBskyFeedPost):
                self._judge(commit, idx, op, uri.rkey)

    def _judge(self, commit: Any, idx: int, op: Any, rkey: str) -> None:
        cid = decode_multibase(str(op.cid))[1]
        block = find_blocks(commit.blocks, {cid}).get(cid, b"")
        verdict = judge_record(cid, block)
        if verdict.kind == "kept":
            self._put(commit, idx, rkey, "live", str(op.cid), block, verdict.fields)
        elif verdict.kind == "rejected":
            key = (rkey, commit.repo)
            record = block if sampled(key, SAMPLE) else None
            self._rejects[key] = RejectWrite(rkey, commit.repo, commit.rev, idx, verdict.reason, now_us(), record)

    def _put(
        self, commit: Any, idx: int, rkey: str, state: Any, cid: str, block: bytes | None, fields: str | None
    ) -> None:
        key = (rkey, commit.repo)
        self._rejects.pop(key, None)
        self._posts[key] = PostWrite(
            rkey, commit.repo, commit.rev, idx, cid, state, self._host, self._event_at, now_us(), 1.0, block, fields
        )
        self._changes.append(("delete" if state == "deleted" else "put", commit.repo, rkey, commit.rev, self._event_at))

    def _account(self, account: Any) -> None:
        """What an account's end does to its posts; few frames say so."""
        state = "live" if account.active else "deleted" if account.status == "deleted" else "hidden"
        self.write()
        emptied = ", cid = '', record = NULL, fields = NULL" if state == "deleted" else ""
        self._db.execute(
            f"UPDATE post SET state = ?{emptied} WHERE did = ? AND state <> 'deleted'", (state, account.did)
        )

    def write(self) -> None:
        """Commit what was taken in, with the cursor."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        db.executemany(WRITE_POST, self._posts.values())
        db.executemany("DELETE FROM reject WHERE rkey = ? AND did = ?", self._posts)
        db.executemany("INSERT OR REPLACE INTO reject VALUES (?,?,?,?,?,?,?)", self._rejects.values())
        db.executemany("INSERT INTO change (kind, did, rkey, rev, at) VALUES (?,?,?,?,?)", self._changes)
        db.execute(
            "INSERT OR REPLACE INTO host (name, epoch, cursor, event_at) VALUES (?,1,?,?)",
            (self._host, self.cursor, self._event_at),
        )
        db.execute("COMMIT")
        self._posts.clear()
        self._rejects.clear()
        self._changes.clear()
        self._frames = 0


def open_journal(path: Path) -> sqlite3.Connection:
    """A new journal, opened as `civicsky.sqlite` opens its own."""
    db = sqlite3.connect(path, isolation_level=None)
    for pragma in (
        "auto_vacuum=INCREMENTAL", "journal_mode=WAL", "synchronous=NORMAL", "secure_delete=ON", "busy_timeout=30000",
        "temp_store=MEMORY",
    ):  # fmt: skip
        db.execute(f"PRAGMA {pragma}")
    for step in SCHEMA.steps:
        db.executescript(step)
    return db


class Client(FirehoseSubscribeReposClient):  # type: ignore[misc]
    """The SDK's, which goes on behind a frame that is no DAG-CBOR: by itself it would end there."""

    def _handle_frame_decoding_error(self, exception: Exception) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("last", type=int)
    parser.add_argument("--batch", type=int, default=256)
    told = parser.parse_args()
    load()
    collector = Collector(told.folder, told.url, told.batch)
    client = Client(base_uri=f"{told.url}/xrpc")

    failed: list[BaseException] = []

    def on_message(message: Any) -> None:
        collector.take(message)
        if collector.cursor >= told.last:
            collector.write()
            client.stop()

    def on_error(error: BaseException) -> None:
        failed.append(error)
        client.stop()

    client.start(on_message, on_error)
    if failed:
        raise failed[0]
    return 0


if __name__ == "__main__":
    sys.exit(main())
