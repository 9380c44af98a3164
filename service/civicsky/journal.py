"""The collecting half's database: posts, deletions, cursors, coverage and counts, and the feed of their changes.

`Journal` is its one frequent writer; `JournalReader` is what the labelling half and `status` read it with.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from civicsky import order
from civicsky.model import Batch, Change, Committed, Frame, Key, Position, PostRow, Verdict, now_us
from civicsky.settings import Journal as JournalSettings
from civicsky.sqlite import Connection, Database, Schema, open_reader, open_writer, rows, rows_by_key

_HOUR: Final = 3_600_000_000
_DAY: Final = 24 * _HOUR

SCHEMA: Final = Schema(
    0x63737931,  # "csy1"
    (
        """
CREATE TABLE host (name TEXT PRIMARY KEY, epoch INTEGER NOT NULL, cursor INTEGER, event_at INTEGER) WITHOUT ROWID;
CREATE TABLE post (
  id INTEGER PRIMARY KEY, rkey TEXT NOT NULL, did TEXT NOT NULL, rev TEXT, idx INTEGER NOT NULL, cid TEXT NOT NULL,
  state TEXT NOT NULL, host TEXT NOT NULL, event_at INTEGER NOT NULL, received_at INTEGER NOT NULL,
  p_kept REAL NOT NULL DEFAULT 1, record BLOB, fields TEXT, UNIQUE (rkey, did));
CREATE INDEX post_by_author ON post (did);
CREATE TABLE change (
  n INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, did TEXT NOT NULL, rkey TEXT NOT NULL, rev TEXT NOT NULL,
  at INTEGER NOT NULL);
CREATE TABLE account (did TEXT PRIMARY KEY, status TEXT NOT NULL, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE reject (
  rkey TEXT NOT NULL, did TEXT NOT NULL, rev TEXT NOT NULL, idx INTEGER NOT NULL, reason TEXT NOT NULL,
  at INTEGER NOT NULL, record BLOB, PRIMARY KEY (rkey, did)) WITHOUT ROWID;
CREATE INDEX reject_sampled ON reject (did) WHERE record IS NOT NULL;
CREATE INDEX reject_by_time ON reject (at);
CREATE TABLE count (
  hour INTEGER NOT NULL, unit TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL, n INTEGER NOT NULL,
  PRIMARY KEY (hour, unit, outcome, reason)) WITHOUT ROWID;
CREATE TABLE held (
  id INTEGER PRIMARY KEY, host TEXT NOT NULL, epoch INTEGER NOT NULL, resumed_after INTEGER, proved INTEGER NOT NULL,
  first_seq INTEGER, last_seq INTEGER, first_at INTEGER, last_at INTEGER, frames INTEGER NOT NULL);
CREATE TABLE gap (
  id INTEGER PRIMARY KEY, host TEXT NOT NULL, epoch INTEGER NOT NULL, cause TEXT NOT NULL, after_seq INTEGER,
  at INTEGER NOT NULL);
CREATE TABLE quarantine (
  id INTEGER PRIMARY KEY, sha256 TEXT NOT NULL, host TEXT NOT NULL, epoch INTEGER NOT NULL, after_seq INTEGER,
  reason TEXT NOT NULL, bytes BLOB NOT NULL, at INTEGER NOT NULL, did TEXT NOT NULL, rkey TEXT NOT NULL);
CREATE INDEX quarantine_by_author ON quarantine (did);
CREATE TABLE run (
  id INTEGER PRIMARY KEY, started INTEGER NOT NULL, version TEXT NOT NULL, filter_version TEXT NOT NULL,
  settings TEXT NOT NULL, settings_hash TEXT NOT NULL);
""",
    ),
)

_POST_COLUMNS: Final = "rkey, did, rev, cid, state, host, event_at, received_at, p_kept, fields"


class Journal:
    """The writer. One instance a data directory (the lock of the role `collect` sees to it)."""

    def __init__(self, database: Database, settings: JournalSettings) -> None:
        self._db, self._settings = database, settings
        self._held: tuple[int, int] = (0, 0)  # (link, row id) of the stretch that is being held

    @classmethod
    async def open(cls, path: Path, settings: JournalSettings) -> "Journal":
        """Open or make the database. Errors as in `sqlite.open_writer`."""
        return cls(await open_writer(path, SCHEMA, synchronous="NORMAL"), settings)

    async def close(self) -> None:
        """Release the file."""
        await self._db.close()

    async def begin_run(
        self, version: str, filter_version: str, settings: str, settings_hash: str, followed: int | None
    ) -> None:
        """Record what runs, with which settings (secrets masked).

        `followed` is the last change that the labelling half took over. A journal that was lost, or lost its tail in a
        power cut, may be behind it: then the numbers go on from there, or the new changes would never be followed.
        """
        async with self._db.transaction() as db:
            ((last,),) = await rows(db, "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'change'")
            if followed is not None and followed > last:
                await db.execute("DELETE FROM sqlite_sequence WHERE name = 'change'")
                await db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('change', ?)", (followed,))
        await self._db.execute(
            "INSERT INTO run (started, version, filter_version, settings, settings_hash) VALUES (?,?,?,?,?)",
            (now_us(), version, filter_version, settings, settings_hash),
        )

    async def position(self, host: str) -> Position:
        """Where we are in a host's stream; a new host starts at epoch 1 without a cursor."""
        async with self._db.transaction() as db:
            return await _position(db, host)

    async def commit(
        self, batch: Batch, verdicts: Sequence[Verdict], received: Counter[str], *, kept_limit: int | None = None
    ) -> Committed:
        """Write a batch's posts, deletions, counts and cursor in one transaction.

        `verdicts` belong to `batch.records()`, in order. `received` is the source's and the decoder's own count (units
        `frame` and `post`). With `kept_limit`, frames behind the one that reaches it are not written, and the cursor
        stays before them.
        """
        last = batch.frames[-1]
        async with self._db.transaction("journal.commit") as db:
            assert len(verdicts) == len(batch.records())
            plan = await self._known(db, batch)
            done, reached = await self._apply(db, plan, batch, iter(verdicts), kept_limit)
            await self._flush(db, plan)
            position = await self._move(db, plan, last, done)
            await self._hold(db, done)
            await db.executemany("INSERT INTO gap (host, epoch, cause, after_seq, at) VALUES (?,?,?,?,?)", batch.gaps)
            if reached:
                posts = sum(len(frame.event.posts) for frame in done if frame.outcome == "commit")
                received = Counter(frame=len(done), post=posts)
            await self._count(db, plan.counts, received)
        return Committed(plan.counts, position, reached)

    async def prune(self, followed: int | None) -> None:
        """Drop what has outlived its use: old rejects, quarantine beyond its bounds, changes behind `followed`."""
        settings, now = self._settings, now_us()
        await self._db.execute("DELETE FROM reject WHERE at < ?", (now - int(settings.reject_days * _DAY),))
        await self._db.execute("DELETE FROM quarantine WHERE at < ?", (now - int(settings.quarantine_days * _DAY),))
        await self._db.execute(
            "DELETE FROM quarantine WHERE id IN (SELECT id FROM (SELECT id, sum(length(bytes)) OVER newer AS size, "
            "count(*) OVER newer AS n FROM quarantine WINDOW newer AS (ORDER BY id DESC)) WHERE size > ? OR n > ?)",
            (settings.quarantine_bytes, settings.quarantine_rows),
        )
        if followed is not None:
            await self._db.execute("DELETE FROM change WHERE n <= ?", (followed,))
        await self._db.rows("PRAGMA incremental_vacuum(1000)")
        await self._db.rows("PRAGMA wal_checkpoint(TRUNCATE)")

    async def _known(self, db: Connection, batch: Batch) -> order.Plan:
        wanted = order.keys(batch.frames)
        known: dict[Key, order.Known] = {}
        for table, columns in (("reject", "'rejected', 0, 0"), ("post", "state, event_at, received_at")):
            sql = f"SELECT rkey, did, rev, idx, {columns} FROM {table} WHERE (rkey, did) IN (VALUES {{keys}})"
            for rkey, did, *values in await rows_by_key(db, sql, wanted):
                found, other = order.Known(*values), known.get((rkey, did))
                # A tombstone and a later rejection of the same key may both be there: the newer one counts.
                if other is None or (found.rev or "", found.idx) > (other.rev or "", other.idx):
                    known[rkey, did] = found
        accounts: dict[str, order.Account] = {}
        authors = list(order.dids(batch.frames))
        for at in range(0, len(authors), 500):
            part = authors[at : at + 500]
            marks = ",".join("?" * len(part))
            for did, status, when in await rows(
                db, f"SELECT did, status, at FROM account WHERE did IN ({marks})", part
            ):
                accounts[did] = order.Account(status, when)
        return order.Plan(known, accounts, None, self._settings.reject_sample)

    async def _apply(
        self, db: Connection, plan: order.Plan, batch: Batch, verdicts: Any, kept_limit: int | None
    ) -> tuple[list[Frame], bool]:
        """Apply the frames in order; gives those that were applied, and whether the limit ended it."""
        for at, frame in enumerate(batch.frames):
            account = order.apply(plan, frame, verdicts)
            if account:
                await self._flush(db, plan)
                await self._change_posts(db, frame.event.did, account)
            if kept_limit is not None and plan.kept >= kept_limit:
                return batch.frames[: at + 1], True
        return batch.frames, False

    async def _change_posts(self, db: Connection, did: str, account: order.Account) -> None:
        if account.status == "deleted":
            await db.execute(
                "UPDATE post SET state = 'deleted', cid = '', record = NULL, fields = NULL WHERE did = ?", (did,)
            )
            await db.execute("UPDATE reject SET record = NULL WHERE did = ? AND record IS NOT NULL", (did,))
            await db.execute("DELETE FROM quarantine WHERE did = ?", (did,))
        else:
            await db.execute(
                "UPDATE post SET state = ? WHERE did = ? AND state <> 'deleted'", (order.state_for(account), did)
            )

    async def _flush(self, db: Connection, plan: order.Plan) -> None:
        """Write what the plan holds, and empty it of that."""
        await db.executemany(
            "INSERT INTO post (rkey, did, rev, idx, cid, state, host, event_at, received_at, record, fields) "
            "VALUES (?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (rkey, did) DO UPDATE SET rev = excluded.rev, "
            "idx = excluded.idx, cid = excluded.cid, host = excluded.host, record = excluded.record, "
            "fields = excluded.fields, state = excluded.state, event_at = excluded.event_at, "
            "received_at = excluded.received_at",
            plan.posts.values(),
        )
        await db.executemany("DELETE FROM reject WHERE rkey = ? AND did = ?", plan.forgotten_rejects)
        await db.executemany("INSERT OR REPLACE INTO reject VALUES (?,?,?,?,?,?,?)", plan.rejects.values())
        await db.executemany(
            "INSERT OR REPLACE INTO account VALUES (?,?,?)",
            [(did, account.status, account.at) for did, account in plan.account_writes.items()],
        )
        await db.executemany("INSERT INTO change (kind, did, rkey, rev, at) VALUES (?,?,?,?,?)", plan.changes)
        await db.executemany(
            "INSERT INTO quarantine (sha256, host, epoch, after_seq, reason, bytes, at, did, rkey) "
            "VALUES (?,?,?,?,?,?,?,?,?)",
            plan.quarantine,
        )
        gone = [(row.did, row.rkey) for row in plan.posts.values() if row.state == "deleted"]
        await db.executemany("DELETE FROM quarantine WHERE did = ? AND rkey IN (?, '')", gone)
        for written in (
            plan.posts, plan.forgotten_rejects, plan.rejects, plan.account_writes, plan.changes, plan.quarantine
        ):  # fmt: skip
            written.clear()

    async def _move(self, db: Connection, plan: order.Plan, last: Frame, done: list[Frame]) -> Position:
        """Move the cursor to the end of what this transaction holds."""
        before = await _position(db, last.arrival.host)
        cursor = plan.cursor if plan.cursor is not None or before.epoch != last.arrival.epoch else before.cursor
        times = [frame.event.time for frame in done if frame.event.time and frame.outcome != "duplicate"]
        position = Position(last.arrival.host, last.arrival.epoch, cursor, times[-1] if times else before.event_at)
        await db.execute(
            "INSERT OR REPLACE INTO host (name, epoch, cursor, event_at) VALUES (?,?,?,?)",
            (position.host, position.epoch, position.cursor, position.event_at),
        )
        return position

    async def _hold(self, db: Connection, done: list[Frame]) -> None:
        """Write down what is being held: one row for each connection and epoch."""
        first = done[0].arrival
        new = [f.event for f in done if f.event.seq is not None and f.outcome not in {"duplicate", "ignored"}]
        if self._held[0] != first.link:
            # The event at the cursor came again: nothing was missed in between.
            proved = done[0].outcome == "duplicate" and done[0].event.seq == first.resumed_after
            cursor = await db.execute(
                "INSERT INTO held (host, epoch, resumed_after, proved, frames) VALUES (?,?,?,?,0)",
                (first.host, first.epoch, first.resumed_after, proved),
            )
            self._held = (first.link, cursor.lastrowid or 0)
        if new:
            await db.execute(
                "UPDATE held SET first_seq = coalesce(first_seq, ?), first_at = coalesce(first_at, ?), "
                "last_seq = ?, last_at = ?, frames = frames + ? WHERE id = ?",
                (new[0].seq, new[0].time, new[-1].seq, new[-1].time, len(new), self._held[1]),
            )

    async def _count(self, db: Connection, counts: Counter[tuple[str, str, str]], received: Counter[str]) -> None:
        hour = now_us() // _HOUR * _HOUR
        every = [(hour, *name, n) for name, n in counts.items() if n]
        every += [(hour, unit, "received", "", n) for unit, n in received.items() if n]
        await db.executemany("INSERT INTO count VALUES (?,?,?,?,?) ON CONFLICT DO UPDATE SET n = n + excluded.n", every)


class JournalReader:
    """Reads what the collecting half wrote, while it writes or when it does not run."""

    def __init__(self, database: Database) -> None:
        self._db = database

    @classmethod
    async def open(cls, path: Path) -> "JournalReader":
        """Open an existing journal."""
        return cls(await open_reader(path))

    async def close(self) -> None:
        """Release the file."""
        await self._db.close()

    async def changes(self, after: int, limit: int) -> list[Change]:
        """The next entries of the change feed."""
        return [
            Change(*row)
            for row in await self._db.rows(
                "SELECT n, kind, did, rkey, rev, at FROM change WHERE n > ? ORDER BY n LIMIT ?",
                (after, limit),
            )
        ]

    async def last_change(self) -> int:
        """The number of the newest change; 0 before the first."""
        found = await self._db.rows("SELECT seq FROM sqlite_sequence WHERE name = 'change'")
        return int(found[0][0]) if found else 0

    async def posts(self, keys: Iterable[Key]) -> dict[Key, PostRow]:
        """The rows of these posts, tombstones included; a pruned post is left out."""
        found = await self._db.rows_by_key(
            f"SELECT {_POST_COLUMNS} FROM post WHERE (rkey, did) IN (VALUES {{keys}})", keys
        )
        return {(row[0], row[1]): _post_row(row) for row in found}

    async def posts_of(self, did: str) -> list[PostRow]:
        """All rows of one account."""
        return [
            _post_row(row) for row in await self._db.rows(f"SELECT {_POST_COLUMNS} FROM post WHERE did = ?", (did,))
        ]

    async def positions(self) -> list[Position]:
        """Every host's position, the one that moved last first."""
        return [
            Position(*row)
            for row in await self._db.rows("SELECT name, epoch, cursor, event_at FROM host ORDER BY event_at DESC")
        ]

    async def counts(self) -> Counter[tuple[str, str, str]]:
        """All counts since the journal was made, by (unit, outcome, reason)."""
        found = await self._db.rows("SELECT unit, outcome, reason, sum(n) FROM count GROUP BY unit, outcome, reason")
        return Counter({(unit, outcome, reason): n for unit, outcome, reason, n in found})

    async def runs(self) -> list[dict[str, Any]]:
        """What ran: version, filter version, settings (secrets masked) and their hash."""
        columns = ("started", "version", "filter_version", "settings", "settings_hash")
        return _named(columns, await self._db.rows(f"SELECT {', '.join(columns)} FROM run ORDER BY id"))

    async def coverage(self) -> list[dict[str, Any]]:
        """What was held (`kind` held: contiguous frames of one connection) and what is known to be missing (gap)."""
        held = ("host", "epoch", "resumed_after", "proved", "first_seq", "last_seq", "first_at", "last_at", "frames")
        gap = ("host", "epoch", "cause", "after_seq", "at")
        rows_held = await self._db.rows(f"SELECT {', '.join(held)} FROM held WHERE first_at IS NOT NULL ORDER BY id")
        rows_gap = await self._db.rows(f"SELECT {', '.join(gap)} FROM gap ORDER BY id")
        return [{"kind": "held", **row} for row in _named(held, rows_held)] + [
            {"kind": "gap", **row} for row in _named(gap, rows_gap)
        ]

    async def rejects(self, limit: int) -> list[dict[str, Any]]:
        """The newest rejected posts, with the record's bytes for those in the sample."""
        columns = ("did", "rkey", "reason", "at", "record")
        found = await self._db.rows(f"SELECT {', '.join(columns)} FROM reject ORDER BY at DESC LIMIT ?", (limit,))
        return _named(columns, found)

    async def flagged(self, limit: int) -> list[dict[str, Any]]:
        """The newest kept posts that the filter flagged."""
        found = await self._db.rows(
            "SELECT did, rkey, json_extract(fields, '$.filter.flags') FROM post "
            "WHERE fields IS NOT NULL AND json_array_length(fields, '$.filter.flags') > 0 ORDER BY id DESC LIMIT ?",
            (limit,),
        )
        return [{"did": did, "rkey": rkey, "flags": json.loads(flags)} for did, rkey, flags in found]


def _named(columns: Sequence[str], found: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in found]


async def _position(db: Connection, host: str) -> Position:
    found = await rows(db, "SELECT name, epoch, cursor, event_at FROM host WHERE name = ?", (host,))
    return Position(*found[0]) if found else Position(host)


def _post_row(row: Sequence[Any]) -> PostRow:
    return PostRow(*[*row[:-1], json.loads(row[-1]) if row[-1] is not None else None])
