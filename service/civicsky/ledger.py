"""The labelling half's database: jobs, labels, spend, and what the store must still be told.

A paid answer is durable here, together with its job and its cost, before anything else happens to it.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from civicsky.model import (
    Answer,
    Change,
    FieldLabel,
    Job,
    Key,
    LabelRow,
    Outgoing,
    PostRow,
    Spend,
    format_time,
    now_us,
    post_uri,
)
from civicsky.sqlite import Connection, Database, Schema, open_reader, open_writer, rows

SCHEMA: Final = Schema(
    0x63737932,  # "csy2"
    (
        """
CREATE TABLE position (name TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE task (
  name TEXT NOT NULL, version TEXT NOT NULL, prompt_hash TEXT NOT NULL, text TEXT NOT NULL, first_used INTEGER NOT NULL,
  PRIMARY KEY (name, version, prompt_hash)) WITHOUT ROWID;
CREATE TABLE doc (
  rkey TEXT NOT NULL, did TEXT NOT NULL, state TEXT NOT NULL, cid TEXT NOT NULL, event_at INTEGER NOT NULL,
  v INTEGER NOT NULL, known INTEGER NOT NULL, stored_v INTEGER NOT NULL DEFAULT 0, refused TEXT,
  PRIMARY KEY (rkey, did)) WITHOUT ROWID;
CREATE INDEX doc_outgoing ON doc (v) WHERE v > stored_v;
CREATE INDEX doc_by_author ON doc (did);
CREATE TABLE job (
  id INTEGER PRIMARY KEY, rkey TEXT NOT NULL, did TEXT NOT NULL, cid TEXT NOT NULL, task TEXT NOT NULL,
  state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, next_at INTEGER NOT NULL DEFAULT 0,
  priority INTEGER NOT NULL DEFAULT 0, p_sampled REAL NOT NULL DEFAULT 1, reason TEXT, UNIQUE (rkey, did, cid, task));
CREATE INDEX job_pending ON job (priority, id) WHERE state = 'pending';
CREATE TABLE label (
  label_id TEXT PRIMARY KEY, rkey TEXT NOT NULL, did TEXT NOT NULL, cid TEXT NOT NULL, task TEXT NOT NULL,
  task_version TEXT NOT NULL, prompt_hash TEXT NOT NULL, p_sampled REAL NOT NULL, at INTEGER NOT NULL,
  attempts INTEGER NOT NULL, answer TEXT) WITHOUT ROWID;
CREATE INDEX label_by_post ON label (rkey, did);
CREATE TABLE spend (
  day TEXT NOT NULL, model TEXT NOT NULL, calls INTEGER NOT NULL, tokens_in INTEGER NOT NULL,
  tokens_out INTEGER NOT NULL, PRIMARY KEY (day, model)) WITHOUT ROWID;
""",
    ),
)


class Ledger:
    """The writer. One instance a data directory (the lock of the role `label` sees to it)."""

    def __init__(self, database: Database) -> None:
        self._db = database

    @classmethod
    async def open(cls, path: Path) -> "Ledger":
        """Open or make the database. Errors as in `sqlite.open_writer`."""
        # FULL: an answer costs money, so it must outlive a power cut.
        return cls(await open_writer(path, SCHEMA, synchronous="FULL"))

    async def close(self) -> None:
        """Release the file."""
        await self._db.close()

    async def register_task(self, name: str, version: str, prompt_hash: str, text: str) -> None:
        """Keep the full text of a task, so that each label's prompt can be shown."""
        await self._db.execute(
            "INSERT OR IGNORE INTO task VALUES (?,?,?,?,?)", (name, version, prompt_hash, text, now_us())
        )

    async def position(self) -> int:
        """The last change of the journal that was taken over."""
        return await _position(self._db)

    async def follow(self, changes: Sequence[Change], posts: Iterable[PostRow], task: str) -> None:
        """Take over changes of the journal: documents to project, jobs to do, jobs to cancel; one transaction.

        `posts` are the journal's present rows of the posts that the changes name. A post that is no longer there
        counts as its change says. What is done to an account reaches all its posts, also those that the journal no
        longer has.
        """
        async with self._db.transaction("ledger") as db:
            present = {(row.rkey, row.did): row for row in posts}
            # A post is put before it can be deleted, so this does not depend on when we look.
            known = {(change.rkey, change.did) for change in changes if change.kind == "put"}
            for key, row in present.items():
                await self._project(db, key, row.state, row.cid, row.event_at, known=key in known)
                if row.state == "deleted":
                    await self._erase(db, row.rkey, row.did)
                else:
                    await self._want(db, row, task)
            for change in changes:
                key = (change.rkey, change.did)
                if change.kind == "delete" and key not in present:
                    await self._project(db, key, "deleted", "", change.at, known=key in known)
                    await self._erase(db, *key)
                elif change.kind in _STATES:
                    await self._change_account(db, change.did, _STATES[change.kind])
            await db.execute("INSERT OR REPLACE INTO position VALUES ('journal', ?)", (changes[-1].n,))

    async def due(self, held: Iterable[int], limit: int) -> list[Job]:
        """Jobs to do now, oldest first, without those that the caller holds. Hidden posts' jobs wait."""
        mine = set(held)
        found = await self._db.rows(
            "SELECT job.id, job.did, job.rkey, job.cid, job.task, job.attempts, job.p_sampled FROM job "
            "JOIN doc ON doc.rkey = job.rkey AND doc.did = job.did "
            "WHERE job.state = 'pending' AND job.next_at <= ? AND doc.state = 'live' "
            "ORDER BY job.priority, job.id LIMIT ?",
            (now_us(), limit + len(mine)),
        )
        return [job for row in found if (job := Job(*row)).id not in mine][:limit]

    async def waiting(self) -> int:
        """Jobs that can be done, now or after a pause."""
        return await _waiting(self._db)

    async def answered(self, job: Job, label: LabelRow) -> bool:
        """Store a paid answer: label, job and spend in one transaction.

        False when nobody wants it any more (the post was deleted or edited meanwhile): then only its cost is kept.
        """
        assert label.answer is not None
        async with self._db.transaction("ledger") as db:
            wanted = await db.execute(
                "UPDATE job SET state = 'done', attempts = ?, reason = NULL WHERE id = ? AND state = 'pending'",
                (label.attempts, job.id),
            )
            if wanted.rowcount:
                await db.execute("INSERT OR REPLACE INTO label VALUES (?,?,?,?,?,?,?,?,?,?,?)", _packed(label))
                await self._touch(db, job.rkey, job.did)
            await self._spend(db, label.answer.spend)
        return bool(wanted.rowcount)

    async def put_off(
        self, job: Job, reason: str, seconds: float, attempts: int, *, dead: bool = False, spend: Spend | None = None
    ) -> bool:
        """Try a job again after so many seconds, or never (`dead`); keep what the vain attempt cost.

        False when nobody wants it any more.
        """
        async with self._db.transaction("ledger") as db:
            changed = await db.execute(
                "UPDATE job SET attempts = ?, reason = ?, next_at = ?, state = ? WHERE id = ? AND state = 'pending'",
                (attempts, reason, now_us() + int(seconds * 1e6), "dead" if dead else "pending", job.id),
            )
            if spend and spend.calls:
                await self._spend(db, spend)
        return bool(changed.rowcount)

    async def outgoing(self, limit: int) -> list[Outgoing]:
        """Posts of which the store knows an older version, or nothing, in the order in which they changed."""
        return [
            Outgoing(*row)
            for row in await self._db.rows(
                "SELECT did, rkey, v, state, event_at, known, cid FROM doc WHERE v > stored_v ORDER BY v LIMIT ?",
                (limit,),
            )
        ]

    async def labels_of(self, keys: Iterable[Key]) -> dict[Key, list[LabelRow]]:
        """All labels of these posts, oldest first; erased ones without their answer."""
        found: dict[Key, list[LabelRow]] = {}
        for row in await self._db.rows_by_key(
            "SELECT label_id, did, rkey, cid, task, task_version, prompt_hash, p_sampled, at, attempts, answer "
            "FROM label WHERE (rkey, did) IN (VALUES {keys}) ",
            keys,
        ):
            label = LabelRow(*[*row[:-1], _unpacked(row[-1])])
            found.setdefault((label.rkey, label.did), []).append(label)
        for labels in found.values():
            labels.sort(key=lambda label: label.at)
        return found

    async def stored(self, done: Iterable[Outgoing], refused: dict[Outgoing, str]) -> None:
        """The store has these versions now, or refuses them for good (with the reason)."""
        async with self._db.transaction("ledger") as db:
            await db.executemany(
                "UPDATE doc SET stored_v = ?, refused = ? WHERE rkey = ? AND did = ?",
                [(out.v, refused.get(out), out.rkey, out.did) for out in done],
            )
            # The network deletes far more posts than we keep; a deletion that was none of ours has done its work.
            await db.executemany(
                "DELETE FROM doc WHERE rkey = ? AND did = ? AND v = stored_v AND known = 0",
                [(out.rkey, out.did) for out in done if not out.known],
            )

    async def retry(self, what: Literal["label", "store"], key: Key | None = None) -> int:
        """Have failed posts (or one of them) asked about, or told to the store, once more; how many."""
        where, values = (" AND rkey = ? AND did = ?", key) if key else ("", ())
        if what == "label":
            sql = "UPDATE job SET state = 'pending', attempts = 0, next_at = 0 WHERE state = 'dead'"
            return await self._db.execute(sql + where, values)
        sql = "UPDATE doc SET refused = NULL, v = max(v + 1, ?) WHERE refused IS NOT NULL"
        return await self._db.execute(sql + where, (now_us(), *values))

    async def _project(self, db: Connection, key: Key, state: str, cid: str, event_at: int, *, known: bool) -> None:
        await db.execute(
            "INSERT INTO doc (rkey, did, state, cid, event_at, v, known) VALUES (?,?,?,?,?,?,?) "
            # Deleted without a row in the journal: the time of the post is better known here.
            "ON CONFLICT DO UPDATE SET state = excluded.state, cid = excluded.cid, "
            "event_at = CASE WHEN excluded.cid = '' AND known THEN event_at ELSE excluded.event_at END, "
            "v = max(v + 1, excluded.v), known = max(known, excluded.known)",
            (*key, state, cid, event_at, now_us(), known),
        )

    async def _change_account(self, db: Connection, did: str, state: str) -> None:
        await db.execute(
            "UPDATE doc SET state = ?1, cid = CASE ?1 WHEN 'deleted' THEN '' ELSE cid END, v = max(v + 1, ?2) "
            "WHERE did = ?3 AND state NOT IN ('deleted', ?1)",
            (state, now_us(), did),
        )
        if state == "deleted":
            for rkey, author in await rows(db, "SELECT rkey, did FROM doc WHERE did = ?", (did,)):
                await self._erase(db, rkey, author)

    async def _touch(self, db: Connection, rkey: str, did: str) -> None:
        await db.execute("UPDATE doc SET v = max(v + 1, ?) WHERE rkey = ? AND did = ?", (now_us(), rkey, did))

    async def _want(self, db: Connection, row: PostRow, task: str) -> None:
        """A job for the text as it is now; jobs for former texts are no longer wanted."""
        await db.execute(
            "UPDATE job SET state = 'cancelled' WHERE rkey = ? AND did = ? AND cid <> ? AND state = 'pending'",
            (row.rkey, row.did, row.cid),
        )
        await db.execute(
            # An edit may be taken back, or a deleted post made again: then that very text is to be labelled again.
            "INSERT INTO job (rkey, did, cid, task, state) VALUES (?,?,?,?,'pending') "
            "ON CONFLICT DO UPDATE SET state = 'pending', attempts = 0, next_at = 0 "
            "WHERE state IN ('cancelled', 'erased')",
            (row.rkey, row.did, row.cid, task),
        )

    async def _erase(self, db: Connection, rkey: str, did: str) -> None:
        """The author's deletion wins over jobs, answers in flight and labels."""
        await db.execute(
            "UPDATE job SET state = 'cancelled' WHERE rkey = ? AND did = ? AND state IN ('pending', 'dead')",
            (rkey, did),
        )
        await db.execute("UPDATE job SET state = 'erased' WHERE rkey = ? AND did = ? AND state = 'done'", (rkey, did))
        await db.execute("UPDATE label SET answer = NULL WHERE rkey = ? AND did = ?", (rkey, did))

    async def _spend(self, db: Connection, spend: Spend) -> None:
        await db.execute(
            "INSERT INTO spend VALUES (?,?,?,?,?) ON CONFLICT DO UPDATE SET calls = calls + excluded.calls, "
            "tokens_in = tokens_in + excluded.tokens_in, tokens_out = tokens_out + excluded.tokens_out",
            (datetime.now(UTC).date().isoformat(), *spend),
        )


_STATES: Final = {"hide": "hidden", "show": "live", "remove": "deleted"}
"""What a change of an account makes of its posts."""


class LedgerReader:
    """Reads what the labelling half wrote, while it writes or when it does not run."""

    def __init__(self, database: Database) -> None:
        self._db = database

    @classmethod
    async def open(cls, path: Path) -> "LedgerReader":
        """Open an existing ledger."""
        return cls(await open_reader(path, SCHEMA))

    async def close(self) -> None:
        """Release the file."""
        await self._db.close()

    async def position(self) -> int:
        """The last change of the journal that was taken over."""
        return await _position(self._db)

    async def settled(self, keys: Sequence[Key]) -> list[Key]:
        """Which of these posts are labelled (or cannot be) and stored."""
        stored = await self._db.rows_by_key(
            "SELECT rkey, did FROM doc WHERE v <= stored_v AND (rkey, did) IN (VALUES {keys})", keys
        )
        waiting = await self._db.rows_by_key(
            "SELECT rkey, did FROM job WHERE state = 'pending' AND (rkey, did) IN (VALUES {keys})", keys
        )
        return list({(rkey, did) for rkey, did in stored} - {(rkey, did) for rkey, did in waiting})

    async def failed(self) -> list[dict[str, Any]]:
        """Posts that got no label, and documents that the store refused, with the reason."""
        jobs = await self._db.rows("SELECT did, rkey, task, reason, attempts FROM job WHERE state = 'dead' ORDER BY id")
        refused = await self._db.rows("SELECT did, rkey, refused, v FROM doc WHERE refused IS NOT NULL ORDER BY v")
        return [
            {"kind": "label", "uri": post_uri(did, rkey), "task": task, "reason": reason, "attempts": attempts}
            for did, rkey, task, reason, attempts in jobs
        ] + [
            {"kind": "store", "uri": post_uri(did, rkey), "reason": reason, "at": format_time(v)}
            for did, rkey, reason, v in refused
        ]

    async def unstored(self, did: str) -> int:
        """Documents of an account that the store must still be told."""
        ((n,),) = await self._db.rows("SELECT count(*) FROM doc WHERE did = ? AND v > stored_v", (did,))
        return int(n)

    async def summary(self) -> dict[str, Any]:
        """Jobs by state, documents that wait for the store, and what was spent."""
        jobs = Counter(dict(await self._db.rows("SELECT state, count(*) FROM job GROUP BY state")))
        failed = dict(await self._db.rows("SELECT reason, count(*) FROM job WHERE state = 'dead' GROUP BY reason"))
        ((unstored,),) = await self._db.rows("SELECT count(*) FROM doc WHERE v > stored_v")
        ((refused,),) = await self._db.rows("SELECT count(*) FROM doc WHERE refused IS NOT NULL")
        spend = await self._db.rows(
            "SELECT model, sum(calls), sum(tokens_in), sum(tokens_out) FROM spend GROUP BY model"
        )
        return {
            "waiting": await _waiting(self._db),
            "hidden": jobs["pending"] - await _waiting(self._db),
            "labelled": jobs["done"],
            "failed": jobs["dead"],
            "failed_by_reason": failed,
            "cancelled": jobs["cancelled"],
            "unstored": unstored,
            "refused_by_store": refused,
            "spend": [
                {"model": model, "calls": calls, "tokens_in": tokens_in, "tokens_out": tokens_out}
                for model, calls, tokens_in, tokens_out in spend
            ],
        }


async def _position(db: Database) -> int:
    found = await db.rows("SELECT n FROM position WHERE name = 'journal'")
    return int(found[0][0]) if found else 0


async def _waiting(db: Database) -> int:
    ((n,),) = await db.rows(
        "SELECT count(*) FROM job JOIN doc ON doc.rkey = job.rkey AND doc.did = job.did "
        "WHERE job.state = 'pending' AND doc.state = 'live'",
    )
    return int(n)


def _packed(label: LabelRow) -> tuple[Any, ...]:
    assert label.answer is not None
    return (
        label.label_id,
        label.rkey,
        label.did,
        label.cid,
        label.task,
        label.task_version,
        label.prompt_hash,
        label.p_sampled,
        label.at,
        label.attempts,
        json.dumps(label.answer._asdict(), ensure_ascii=False, separators=(",", ":")),
    )


def _unpacked(text: str | None) -> Answer | None:
    if text is None:
        return None
    values = json.loads(text)
    values["fields"] = {name: FieldLabel(*pair) for name, pair in values["fields"].items()}
    return Answer(**values)
