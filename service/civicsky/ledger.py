"""The labelling half's database: jobs, labels, spend, and what the store must still be told.

A paid answer is durable here, together with its job and its cost, before anything else happens to it.
"""

import json
import secrets
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from civicsky import faults
from civicsky.model import (
    STREAM,
    Answer,
    Attempts,
    Change,
    FieldLabel,
    Gated,
    Job,
    Judged,
    Key,
    LabelRow,
    Outgoing,
    PostRow,
    Spend,
    Unlabelled,
    did_of,
    format_time,
    now_us,
    post_uri,
)
from civicsky.sample import HOUR_US, HOURS_A_DAY, Drawing, Hour, is_asked, is_drawn, probability
from civicsky.sqlite import Connection, Database, Schema, open_reader, open_writer, row_values, rows, rows_by_key
from civicsky.together import Together

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
        """
ALTER TABLE job RENAME TO former_job;
DROP INDEX job_pending;
CREATE TABLE job (
  id INTEGER PRIMARY KEY, rkey TEXT NOT NULL, did TEXT NOT NULL, cid TEXT NOT NULL, task TEXT NOT NULL,
  run INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
  broken INTEGER NOT NULL DEFAULT 0, busy INTEGER NOT NULL DEFAULT 0, next_at INTEGER NOT NULL DEFAULT 0,
  priority INTEGER NOT NULL DEFAULT 0, p_sampled REAL NOT NULL DEFAULT 1, reason TEXT,
  UNIQUE (rkey, did, cid, task, run));
INSERT INTO job (id, rkey, did, cid, task, state, attempts, next_at, priority, p_sampled, reason)
  SELECT id, rkey, did, cid, task, state, attempts, next_at, priority, p_sampled, reason FROM former_job;
DROP TABLE former_job;
CREATE INDEX job_pending ON job (priority, id) WHERE state = 'pending';
ALTER TABLE label ADD COLUMN run INTEGER NOT NULL DEFAULT 0;
ALTER TABLE label ADD COLUMN key TEXT;
CREATE INDEX label_by_key ON label (key) WHERE key IS NOT NULL;
UPDATE label SET answer = json_set(answer, '$.prompt_hash', prompt_hash) WHERE answer IS NOT NULL;
ALTER TABLE spend ADD COLUMN tokens_reasoning INTEGER NOT NULL DEFAULT 0;
ALTER TABLE spend ADD COLUMN cost REAL NOT NULL DEFAULT 0;
ALTER TABLE spend ADD COLUMN posts INTEGER NOT NULL DEFAULT 0;
CREATE TABLE secret (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE hour (hour INTEGER PRIMARY KEY, seen INTEGER NOT NULL, drawn INTEGER NOT NULL);
CREATE TABLE ability (
  endpoint TEXT NOT NULL, model TEXT NOT NULL, ability TEXT NOT NULL, at INTEGER NOT NULL,
  PRIMARY KEY (endpoint, model)) WITHOUT ROWID;
CREATE TABLE context (uri TEXT PRIMARY KEY, did TEXT NOT NULL, at INTEGER NOT NULL, post TEXT) WITHOUT ROWID;
CREATE INDEX context_by_author ON context (did);
CREATE TABLE raw (
  rkey TEXT NOT NULL, did TEXT NOT NULL, task TEXT NOT NULL, at INTEGER NOT NULL, reason TEXT NOT NULL,
  text TEXT NOT NULL);
CREATE INDEX raw_by_post ON raw (rkey, did);
CREATE TABLE round (
  id INTEGER PRIMARY KEY, started INTEGER NOT NULL, task TEXT NOT NULL, wish TEXT NOT NULL,
  rkey TEXT NOT NULL DEFAULT '', did TEXT NOT NULL DEFAULT '', posts INTEGER NOT NULL DEFAULT 0,
  listed INTEGER NOT NULL DEFAULT 0);
CREATE TABLE anchor (
  task TEXT NOT NULL, prompt_hash TEXT NOT NULL, model TEXT NOT NULL, rkey TEXT NOT NULL, did TEXT NOT NULL,
  cid TEXT NOT NULL, at INTEGER NOT NULL, fields TEXT NOT NULL,
  PRIMARY KEY (task, prompt_hash, model, rkey, did)) WITHOUT ROWID;
CREATE INDEX anchor_by_post ON anchor (rkey, did);
CREATE TABLE probe (
  day INTEGER NOT NULL, task TEXT NOT NULL, prompt_hash TEXT NOT NULL, model TEXT NOT NULL, rkey TEXT NOT NULL,
  did TEXT NOT NULL, at INTEGER NOT NULL, fingerprint TEXT, server TEXT, reason TEXT, fields TEXT, was TEXT NOT NULL,
  PRIMARY KEY (day, task, prompt_hash, model, rkey, did)) WITHOUT ROWID;
CREATE INDEX probe_by_post ON probe (rkey, did);
""",
        """
CREATE TABLE author (
  did TEXT PRIMARY KEY, state TEXT NOT NULL DEFAULT 'live', at INTEGER NOT NULL DEFAULT 0, handle TEXT, profile TEXT,
  v INTEGER NOT NULL DEFAULT 0, stored_v INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX author_due ON author (at) WHERE state = 'live';
CREATE INDEX author_outgoing ON author (v) WHERE v > stored_v;
INSERT INTO author (did) SELECT DISTINCT did FROM label WHERE answer IS NOT NULL;
""",
        """
CREATE TABLE gate_file (version TEXT PRIMARY KEY, text TEXT NOT NULL, first_used INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE gate (
  rkey TEXT NOT NULL, did TEXT NOT NULL, cid TEXT NOT NULL, task TEXT NOT NULL, version TEXT NOT NULL,
  probability REAL, passed INTEGER, p_asked REAL NOT NULL, at INTEGER NOT NULL,
  PRIMARY KEY (rkey, did, cid, task)) WITHOUT ROWID;
""",
    ),
)

_JudgedTexts = dict[tuple[str, str, str, str], Judged]
"""What the gate said, by rkey, did, cid and task."""
_Told = TypeVar("_Told", LabelRow, Unlabelled)


Also = Callable[[sqlite3.Connection], object]
"""What others do in the ledger's transaction; it runs in the database's thread."""


class Ledger:
    """The writer. One instance a data directory (the lock of the role `label` sees to it)."""

    def __init__(self, database: Database, looking: Database, sample_key: bytes) -> None:
        self._db, self._sample_key = database, sample_key
        self._looking = looking
        """A reader: what is looked up for each post must not wait until others' answers are on the disk."""
        self._scrubbed = False
        self._gate: tuple[str, str] | None = None
        """Task and version of the gate that is on."""
        self._has_judged = False
        """Whether any gate ever was: else nobody need look for what it said."""
        # With many calls in flight these come at once, and each would be a wait for the disk or its thread.
        self._looked_up: Together[_Lookup, _Found] = Together(self._looked_up_all)
        self._answered: Together[_Answered, bool] = Together(self._answered_all)
        self._admit: Together[Sequence[tuple[Job, Judged]], tuple[set[int], set[int]]] = Together(self._admit_all)

    @classmethod
    async def open(cls, path: Path) -> "Ledger":
        """Open or make the database. Errors as in `sqlite.open_writer`."""
        # FULL: an answer costs money, so it must outlive a power cut.
        database = await open_writer(path, SCHEMA, synchronous="FULL")
        await database.execute("INSERT OR IGNORE INTO secret VALUES ('sample', ?)", (secrets.token_bytes(32),))
        ((key,),) = await database.rows("SELECT value FROM secret WHERE name = 'sample'")
        ledger = cls(database, await open_reader(path, SCHEMA), key)
        ((ledger._has_judged,),) = await database.rows("SELECT EXISTS (SELECT 1 FROM gate)")
        return ledger

    async def close(self) -> None:
        """Release the file."""
        await self._looking.close()
        await self._db.close()

    @property
    def database(self) -> Database:
        """For `rounds` and `authors`, which keep their own tables in the same file."""
        return self._db

    async def register_task(self, name: str, version: str, prompt_hash: str, text: str) -> None:
        """Keep the full text of a task, so that each label's prompt can be shown."""
        await self._db.execute(
            "INSERT OR IGNORE INTO task VALUES (?,?,?,?,?)", (name, version, prompt_hash, text, now_us())
        )

    async def register_gate(self, task: str, version: str, text: str) -> None:
        """From now on this gate is on; its file is kept, so that each decision can be shown."""
        await self._db.execute("INSERT OR IGNORE INTO gate_file VALUES (?,?,?)", (version, text, now_us()))
        self._gate = task, version

    async def position(self, name: Literal["journal", "snapshot"] = "journal") -> int:
        """The last change of the journal that was taken over, or the last snapshot that the store was told."""
        return await _position(self._db, name)

    # ---- what comes from the journal ----

    async def follow(
        self,
        changes: Sequence[Change],
        posts: Iterable[PostRow],
        tasks: Sequence[str],
        drawing: Drawing,
        certain: Collection[Key] = (),
    ) -> None:
        """Take over changes of the journal: documents to project, jobs to do, jobs to cancel; one transaction.

        `posts` are the journal's present rows of the posts that the changes name. A post that is no longer there
        counts as its change says. What is done to an account reaches all its posts, also those that the journal no
        longer has. A new post is drawn or not, once for all tasks and for ever: an edit does not change its lot.
        Those that are `certain` are labelled in any case, beside the sample, with probability 1.
        """
        async with self._db.transaction("ledger") as db:
            present = {(row.rkey, row.did): row for row in posts}
            # A post is put before it can be deleted, so this does not depend on when we look.
            known = {(change.rkey, change.did) for change in changes if change.kind == "put"}
            drawn = await self._draw(db, present, drawing, certain)
            gone: dict[Key, int] = {}
            for change in changes:
                key = (change.rkey, change.did)
                if change.kind == "delete" and key not in present:
                    gone[key] = change.at  # whatever is done to its account, before or after: it is deleted
                elif change.kind in _STATES:
                    await self._change_account(db, change.did, _STATES[change.kind])
                elif change.kind == "put" and key not in present:  # pruned, and a feed shows it now
                    await touch(db, *key)
            await self._project(db, [(*key, "deleted", "", at, key in known) for key, at in gone.items()])
            # The rows were read after the changes, so they come last: an account that was removed may be back.
            await self._project(
                db,
                [
                    (*key, row.state, row.cid, row.event_at, key in known or row.fields is not None)
                    for key, row in present.items()
                ],
            )
            await self._erase(db, [*gone, *(key for key, row in present.items() if row.state == "deleted")])
            wanted = {
                key: (row.cid, drawn[key])
                for key, row in present.items()
                if row.state != "deleted" and key not in certain and key in drawn
            }
            await self._want(db, wanted, tasks)
            await self._want_certain(db, certain, tasks)
            await db.execute("INSERT OR REPLACE INTO position VALUES ('journal', ?)", (changes[-1].n,))
        if self._scrubbed:  # contexts, reasons and answers of no use are texts
            await self._db.truncate_log()
            self._scrubbed = False

    async def _draw(
        self, db: Connection, present: Mapping[Key, PostRow], drawing: Drawing, certain: Collection[Key]
    ) -> dict[Key, float]:
        """The posts that are to be labelled, each with the probability with which it was drawn."""
        keys = list(present)
        drawn: dict[Key, float] = {
            (rkey, did): p
            for rkey, did, p in await rows_by_key(
                db,
                f"SELECT rkey, did, p_sampled FROM job WHERE run = {STREAM} AND (rkey, did) IN ({{keys}})",
                keys,
            )
        }
        seen = {
            (rkey, did)
            for rkey, did in await rows_by_key(
                db, "SELECT rkey, did FROM doc WHERE known AND (rkey, did) IN ({keys})", keys
            )
        }
        # What a feed shows is no part of the sample, and must not make the lots of others smaller.
        fresh = [
            row for key, row in present.items() if row.fields is not None and key not in seen and key not in certain
        ]
        if not fresh:
            return drawn
        earliest = min(row.received_at for row in fresh) // HOUR_US - HOURS_A_DAY
        hours = {
            hour: Hour(*counts) for hour, *counts in await rows(db, "SELECT * FROM hour WHERE hour >= ?", (earliest,))
        }
        for row in fresh:
            hour = row.received_at // HOUR_US
            p = probability(drawing.posts_per_day, hours, hour)
            hit = is_drawn(self._sample_key, _unit(row, drawing.unit), p)
            if hit:
                drawn[row.rkey, row.did] = p
            before = hours.get(hour, Hour())
            hours[hour] = Hour(before.seen + 1, before.drawn + hit)
        await db.executemany(
            "INSERT OR REPLACE INTO hour VALUES (?,?,?)",
            [(hour, *hours[hour]) for hour in {row.received_at // HOUR_US for row in fresh}],
        )
        return drawn

    # ---- jobs ----

    async def due(self, tasks: Sequence[str], held: Iterable[int], limit: int) -> list[Job]:
        """Jobs of these tasks to do now, without those that the caller holds; hidden posts' jobs wait.

        First posts as they come, oldest first, then rounds and probes.
        """
        mine = set(held)
        found = await self._db.rows(
            "SELECT job.id, job.did, job.rkey, job.cid, task, run, attempts, broken, busy, p_sampled FROM job "
            "JOIN doc ON doc.rkey = job.rkey AND doc.did = job.did "
            f"WHERE job.state = 'pending' AND (next_at <= ? OR next_at > ?) AND doc.state = 'live' "
            f"AND task IN ({_marks(tasks)}) ORDER BY priority, job.id LIMIT ?",
            # Nothing is put off for more than a day: what lies further ahead is of a clock that was wrong.
            (now_us(), now_us() + 2 * _DAY_US, *tasks, limit + len(mine)),
        )
        jobs = [Job(*row[:6], Attempts(*row[6:9]), row[9]) for row in found]  # type: ignore[call-arg,unused-ignore]
        return [job for job in jobs if job.id not in mine][:limit]

    async def looked_up(self, jobs: Iterable[Job], keys: Iterable[str]) -> "_Found":
        """What is to be known before a question is put.

        The ids of those jobs that are still wanted: a post may be deleted, edited or hidden while it waits its turn.
        And (label id, answer) of questions that were paid for before, by `Question.key`.
        """
        return await self._looked_up(([job.id for job in jobs], list(keys)))

    async def _looked_up_all(self, wanted: Sequence["_Lookup"]) -> list["_Found"]:
        numbers = [number for ids, _ in wanted for number in ids]
        keys = [key for _, some in wanted for key in some]
        due, known = await self._looking.look(lambda db: (_still_due(db, numbers), _cached(db, keys)))
        return [(due.intersection(ids), {key: known[key] for key in some if key in known}) for ids, some in wanted]

    async def waiting(self, tasks: Sequence[str]) -> int:
        """Jobs of these tasks that can be done, now or after a pause."""
        return await _waiting(self._db, tasks)

    async def unstored(self) -> int:
        """Documents of which the store knows an older version, or nothing."""
        ((n,),) = await self._db.rows("SELECT count(*) FROM doc WHERE v > stored_v")
        return int(n)

    async def backlog(self, before: int) -> int:
        """Posts received before a time (microseconds) that still wait for a label."""
        ((n,),) = await self._db.rows(
            "SELECT count(DISTINCT job.rkey || job.did) FROM job JOIN doc ON doc.rkey = job.rkey AND doc.did = job.did "
            f"WHERE job.state = 'pending' AND doc.state = 'live' AND run = {STREAM} AND doc.event_at < ?",
            (before,),
        )
        return int(n)

    async def answered(self, job: Job, label: LabelRow, also: Also | None = None, *, more: bool = False) -> bool:
        """Store a paid answer: label, job and spend in one transaction, with the answers that come at the same time.

        False when nobody wants it any more (the post was deleted or edited meanwhile): then only its cost is kept.
        `also` is done in the same transaction if the label is wanted. `more`: the post is to be asked about once more,
        so its job stays; see `settle`.
        """
        await faults.hangs("ledger.commit")  # here: a turn that has begun cannot be cancelled
        return await self._answered((job, label, also, more))

    async def settle(self, job: Job, label: LabelRow, also: Also | None = None) -> bool:
        """A label that was kept as one of `more` is the last one. False when nobody wants it any more."""
        return await self._db.at_once(partial(_settle, job, label, also), "ledger")

    async def _answered_all(self, answers: Sequence["_Answered"]) -> list[bool]:
        return await self._db.at_once(partial(_keep_answers, answers), "ledger")

    # ---- the gate ----

    async def admit(self, judged: Sequence[tuple[Job, Judged]]) -> tuple[set[int], set[int]]:
        """Keep what the gate says of jobs' texts; (jobs about which the model is to be asked, those it is kept from).

        A text about which something was decided before keeps that: another gate, a cache that has filled since, or an
        attempt in vain change no probability. Those it is kept from are done with, without a label. What was deleted
        or edited meanwhile is among neither.
        """
        return await self._admit(judged)

    async def _admit_all(self, wanted: Sequence[Sequence[tuple[Job, Judged]]]) -> list[tuple[set[int], set[int]]]:
        async with self._db.transaction("ledger") as db:
            flat = [one for some in wanted for one in some]
            numbers = [job.id for job, _ in flat]
            # Of one that was deleted or edited meanwhile nothing is kept.
            found = await rows(db, f"SELECT id FROM job WHERE id IN ({_marks(numbers)}) AND state = 'pending'", numbers)
            pending = {number for (number,) in found}
            fresh = [(job, one) for job, one in flat if job.id in pending]
            before = await _judged(db, [(job.rkey, job.did) for job, _ in fresh])
            fresh = [(job, one) for job, one in fresh if (job.rkey, job.did, job.cid, job.task) not in before]
            skipped = [job for job, one in fresh if not self._is_asked(job, one)]
            now = now_us()
            for sql, values in (
                (
                    "INSERT INTO gate VALUES (?,?,?,?,?,?,?,?,?)",
                    [(job.rkey, job.did, job.cid, job.task, *one, now) for job, one in fresh],
                ),
                ("UPDATE job SET state = 'gated', reason = NULL WHERE id = ?", [(job.id,) for job in skipped]),
                (_TOUCH, [(now, job.rkey, job.did) for job in skipped]),
            ):
                await _many(db, sql, values)
        self._has_judged |= bool(fresh)
        kept_back = {job.id for job in skipped}
        found = [{job.id for job, _ in some} & pending for some in wanted]
        return [(numbers - kept_back, numbers & kept_back) for numbers in found]

    def _is_asked(self, job: Job, judged: Judged) -> bool:
        return judged.p_asked >= 1 or is_asked(self._sample_key, post_uri(job.did, job.rkey), judged.p_asked)

    async def gated_of(self, keys: Iterable[Key]) -> dict[Key, list[Gated]]:
        """Of these posts those about which the gate said something, each with what it did not let pass, if anything."""
        if not self._has_judged:
            return {}
        found: dict[Key, list[Gated]] = {}
        for rkey, did, cid, task, is_gated, p, *judged in await self._db.rows_by_key(
            "SELECT rkey, did, cid, task, state = 'gated', p_sampled, version, probability, passed, p_asked "
            f"FROM gate JOIN job USING (rkey, did, cid, task) WHERE run = {STREAM} AND (rkey, did) IN ({{keys}})",
            keys,
        ):
            mine = found.setdefault((rkey, did), [])
            if is_gated:
                mine.append(Gated(did, rkey, cid, task, p, _judgement(*judged)))
        return found

    async def _judged_of(self, keys: Iterable[Key]) -> _JudgedTexts:
        """What the gate said of these posts."""
        if not self._has_judged:
            return {}
        return _by_text(await self._db.rows_by_key(_JUDGED, keys))

    async def put_off(
        self,
        job: Job,
        reason: str,
        seconds: float,
        attempts: Attempts,
        *,
        dead: bool = False,
        spend: Spend | None = None,
        raw: str = "",
    ) -> bool:
        """Try a job again after so many seconds, or never (`dead`); keep what the vain attempt cost, and said.

        False when nobody wants it any more.
        """
        async with self._db.transaction("ledger") as db:
            changed = await db.execute(
                "UPDATE job SET attempts = ?, broken = ?, busy = ?, reason = ?, next_at = ?, state = ? "
                "WHERE id = ? AND state = 'pending'",
                (*attempts, reason, now_us() + int(seconds * 1e6), "dead" if dead else "pending", job.id),
            )
            if changed.rowcount and raw:
                values = (job.rkey, job.did, job.task, now_us(), reason, raw)
                await db.execute("INSERT INTO raw VALUES (?,?,?,?,?,?)", values)
            if changed.rowcount and dead:
                await touch(db, job.rkey, job.did)
            if spend and spend.calls:
                await keep_spend(db, spend, posts=0)
        return bool(changed.rowcount)

    # ---- money, servers, contexts ----

    async def spent(self) -> Spend:
        """What was spent today (UTC), over all models."""
        ((*sums,),) = await self._db.rows(f"SELECT {_SUMS} FROM spend WHERE day = ?", (_today(),))
        return Spend("", *sums)

    async def paid(self, summaries: Sequence[tuple[int, Spend]]) -> list[Spend]:
        """Count what summaries of articles cost; each by its number once, however often it is told. Gives the new ones.

        Numbers rise.
        """
        async with self._db.transaction("ledger") as db:
            found = await rows(db, "SELECT n FROM position WHERE name = 'summary'")
            last = found[0][0] if found else 0
            fresh = [(number, spend) for number, spend in summaries if number > last]
            for number, spend in fresh:
                await keep_spend(db, spend, posts=0)
                await db.execute("INSERT OR REPLACE INTO position VALUES ('summary', ?)", (number,))
        return [spend for _, spend in fresh]

    async def spent_a_post(self) -> tuple[int, Spend]:
        """(posts labelled, what was spent) in the last seven days with a spend: what a post costs on average."""
        return await _spent_a_post(self._db)

    async def abilities(self, model: str) -> dict[str, str]:
        """What was found out about the servers of a model: {endpoint: ability}."""
        found = await self._db.rows("SELECT endpoint, ability FROM ability WHERE model = ?", (model,))
        return dict(found)

    async def remember(self, endpoint: str, model: str, ability: str) -> None:
        """Keep what a server can."""
        await self._db.execute("INSERT OR REPLACE INTO ability VALUES (?,?,?,?)", (endpoint, model, ability, now_us()))

    async def contexts(self, uris: Sequence[str]) -> dict[str, str | None]:
        """Posts that were fetched as context, as JSON; None for one that was not there."""
        found = await self._db.rows(f"SELECT uri, post FROM context WHERE uri IN ({_marks(uris)})", list(uris))
        return dict(found)

    async def keep_contexts(self, posts: Mapping[str, str | None]) -> None:
        """Keep fetched posts, by AT-URI; None for one that is not there."""
        async with self._db.transaction() as db:
            await db.executemany(
                "INSERT OR REPLACE INTO context VALUES (?,?,?,?)",
                [(uri, did_of(uri), now_us(), post) for uri, post in posts.items()],
            )

    async def prune(self, context_days: float, raw_days: float) -> None:
        """Forget what has a short retention: contexts, and answers of no use."""
        async with self._db.transaction() as db:
            await db.execute("DELETE FROM context WHERE at < ?", (now_us() - int(context_days * _DAY_US),))
            await db.execute("DELETE FROM raw WHERE at < ?", (now_us() - int(raw_days * _DAY_US),))
        await self._db.truncate_log()  # or it would go on holding what is forgotten, and what was deleted

    # ---- the store ----

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
            "SELECT label_id, did, rkey, cid, task, task_version, run, p_sampled, at, attempts, answer "
            "FROM label WHERE (rkey, did) IN ({keys}) ",
            keys,
        ):
            label = LabelRow(*[*row[:-1], None if row[-1] is None else unpack(row[-1])])
            found.setdefault((label.rkey, label.did), []).append(label)
        for labels in found.values():
            labels.sort(key=lambda label: label.at)
        # Read last: what the gate said was there before the label.
        judged = await self._judged_of(found)
        return {key: [_with(judged, label) for label in labels] for key, labels in found.items()} if judged else found

    async def unlabelled_of(self, keys: Iterable[Key]) -> dict[Key, list[Unlabelled]]:
        """Of these posts those that were drawn and got no label."""
        found: dict[Key, list[Unlabelled]] = {}
        for row in await self._db.rows_by_key(
            "SELECT did, rkey, cid, task, reason, p_sampled FROM job "
            # Also of rounds: under a task that was added later there is nothing else.
            f"WHERE state = 'dead' AND run >= {STREAM} AND (rkey, did) IN ({{keys}})",
            keys,
        ):
            failure = Unlabelled(*row)
            found.setdefault((failure.rkey, failure.did), []).append(failure)
        judged = await self._judged_of(found)
        return {key: [_with(judged, one) for one in own] for key, own in found.items()} if judged else found

    async def told_snapshots(self, n: int) -> None:
        """The store has all snapshots up to this number."""
        await self._db.execute("INSERT OR REPLACE INTO position VALUES ('snapshot', ?)", (n,))

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
            sql = (
                "UPDATE job SET state = 'pending', attempts = 0, broken = 0, busy = 0, next_at = 0 WHERE state = 'dead'"
            )
            return await self._db.execute(sql + where, values)
        sql = "UPDATE doc SET refused = NULL, v = max(v + 1, ?) WHERE refused IS NOT NULL"
        return await self._db.execute(sql + where, (now_us(), *values))

    async def _project(self, db: Connection, posts: Sequence[tuple[str, str, str, str, int, bool]]) -> None:
        """What the store must be told of posts: (rkey, did, state, cid, event_at, whether it was ever one of ours)."""
        now = now_us()
        await _many(
            db,
            f"INSERT INTO doc (rkey, did, state, cid, event_at, known, v) VALUES (?,?,?,?,?,?,{now}) "
            # Deleted without a row in the journal: the time of the post is better known here.
            "ON CONFLICT DO UPDATE SET state = excluded.state, cid = excluded.cid, "
            "event_at = CASE WHEN excluded.cid = '' AND known THEN event_at ELSE excluded.event_at END, "
            "v = max(v + 1, excluded.v), known = max(known, excluded.known)",
            posts,
        )

    async def _change_account(self, db: Connection, did: str, state: str) -> None:
        await db.execute(
            "UPDATE doc SET state = ?1, cid = CASE ?1 WHEN 'deleted' THEN '' ELSE cid END, v = max(v + 1, ?2) "
            "WHERE did = ?3 AND state NOT IN ('deleted', ?1)",
            (state, now_us(), did),
        )
        # Of an account that is shown again, what is kept says only that its posts were not there.
        gone = await db.execute("DELETE FROM context WHERE did = ?", (did,))
        self._scrubbed |= gone.rowcount > 0
        await db.execute(_AUTHOR_STATE, (did, state, now_us()))
        if state == "deleted":
            await self._erase(db, await rows(db, "SELECT rkey, did FROM doc WHERE did = ?", (did,)))

    async def _want_certain(self, db: Connection, keys: Collection[Key], tasks: Sequence[str]) -> None:
        """Jobs for posts that are labelled in any case, and 1 as the probability of all that was said of them.

        Which of them were drawn before must not count: else such a post would weigh more the luckier it was.
        """
        found = await rows_by_key(
            db, "SELECT rkey, did, cid FROM doc WHERE state <> 'deleted' AND (rkey, did) IN ({keys})", keys
        )
        certain = {(rkey, did): (cid, 1.0) for rkey, did, cid in found}
        await self._want(db, certain, tasks)
        for table in ("job", "label"):
            await _many(
                db, f"UPDATE {table} SET p_sampled = 1 WHERE rkey = ? AND did = ? AND p_sampled < 1", list(certain)
            )
        await self._admit_certain(db, certain)

    async def _admit_certain(self, db: Connection, posts: Mapping[Key, tuple[str, float]]) -> None:
        """Past the gate: also those that it did not let pass before, and those that it would not."""
        if not self._has_judged and self._gate is None:
            return
        await _many(db, "UPDATE gate SET p_asked = 1 WHERE rkey = ? AND did = ? AND p_asked < 1", list(posts))
        texts = [(*key, cid) for key, (cid, _) in posts.items()]
        await _many(
            db, "UPDATE job SET state = 'pending' WHERE rkey = ? AND did = ? AND cid = ? AND state = 'gated'", texts
        )
        if self._gate is not None:
            task, version = self._gate
            passed = [(*text, task, version, None, None, 1.0, now_us()) for text in texts]
            await _many(db, "INSERT OR IGNORE INTO gate VALUES (?,?,?,?,?,?,?,?,?)", passed)
            self._has_judged = True

    async def _want(self, db: Connection, posts: Mapping[Key, tuple[str, float]], tasks: Sequence[str]) -> None:
        """Jobs for the texts (CIDs) as they are now, with the probabilities with which they were drawn.

        What is about former texts is no longer wanted.
        """
        texts = [(*key, cid) for key, (cid, _) in posts.items()]
        await _many(
            db,
            "UPDATE job SET state = 'cancelled' WHERE rkey = ? AND did = ? AND cid <> ? AND state = 'pending'",
            texts,
        )
        await _many(db, "DELETE FROM anchor WHERE rkey = ? AND did = ? AND cid <> ?", texts)
        await _many(db, "DELETE FROM raw WHERE rkey = ? AND did = ?", list(posts))
        await _many(
            db,
            # An edit may be taken back, or a deleted post made again: then that very text is to be labelled again.
            "INSERT INTO job (rkey, did, cid, task, state, p_sampled) VALUES (?,?,?,?,'pending',?) "
            "ON CONFLICT DO UPDATE SET state = 'pending', attempts = 0, broken = 0, busy = 0, next_at = 0 "
            "WHERE state IN ('cancelled', 'erased')",
            [(*key, cid, task, p) for key, (cid, p) in posts.items() for task in tasks],
        )

    async def _erase(self, db: Connection, posts: Sequence[Key]) -> None:
        """The author's deletion wins over jobs, answers in flight, labels, and all that was fetched or said."""
        keys = [tuple(post) for post in posts]
        await _many(
            db,
            "UPDATE job SET state = 'cancelled' WHERE rkey = ? AND did = ? AND state IN ('pending', 'dead', 'gated')",
            keys,
        )
        await _many(db, "UPDATE job SET state = 'erased' WHERE rkey = ? AND did = ? AND state = 'done'", keys)
        # A copy has the same text, and the source's id leads to the post: it must not tell whose text it also was.
        copies = await rows_by_key(
            db,
            "SELECT copy.label_id, copy.rkey, copy.did FROM label AS source JOIN label AS copy USING (key) "
            "WHERE copy.answer ->> '$.cached_from' = source.label_id AND (source.rkey, source.did) IN ({keys})",
            posts,
        )
        for label_id, *post in copies:
            await db.execute(
                f"UPDATE label SET answer = json_set(answer, '$.cached_from', '{ERASED}') WHERE label_id = ?",
                (label_id,),
            )
            await touch(db, *post)
        scrubs: list[tuple[str, Sequence[Sequence[Any]]]] = [
            # The key goes too: who guesses a short text could prove by its hash that it was the post's.
            ("UPDATE label SET answer = NULL, key = NULL WHERE rkey = ? AND did = ? AND answer IS NOT NULL", keys),
            *((f"DELETE FROM {table} WHERE rkey = ? AND did = ?", keys) for table in _OF_TEXTS),
            ("DELETE FROM context WHERE uri = ?", [(post_uri(did, rkey),) for rkey, did in posts]),
            (_FORGET_AUTHOR, [(did, now_us()) for _, did in posts]),
        ]
        for sql, values in scrubs:
            self._scrubbed |= await _many(db, sql, values) > 0


_OF_TEXTS: Final = ("anchor", "probe", "raw", "gate")
"""What else was made from a post's text."""
_JUDGED: Final = (
    "SELECT rkey, did, cid, task, version, probability, passed, p_asked FROM gate WHERE (rkey, did) IN ({keys})"
)
_TOUCH: Final = "UPDATE doc SET v = max(v + 1, ?) WHERE rkey = ? AND did = ?"
_LABELLED: Final = (
    # Who was forgotten and is labelled again is looked up again.
    "INSERT INTO author (did) VALUES {rows} ON CONFLICT DO UPDATE SET state = 'live', at = 0 WHERE state = 'deleted'"
)
_AUTHOR_STATE: Final = (
    # The store is told only of those whose profile it may have.
    "UPDATE author SET state = ?2, v = CASE v WHEN 0 THEN 0 ELSE max(v + 1, ?3) END "
    "WHERE did = ?1 AND ?2 <> 'deleted' AND state NOT IN ('deleted', ?2)"
)
_FORGET_AUTHOR: Final = (
    "UPDATE author SET state = 'deleted', handle = NULL, profile = NULL, "
    "v = CASE v WHEN 0 THEN 0 ELSE max(v + 1, ?2) END WHERE did = ?1 AND state <> 'deleted' AND NOT EXISTS "
    "(SELECT 1 FROM doc JOIN label USING (rkey, did) WHERE doc.did = ?1 AND doc.state <> 'deleted' "
    "AND label.answer IS NOT NULL)"
)
"""When the last labelled post of an author is gone, so is what is known of the author. See `authors.py`."""


async def _judged(db: Connection, keys: Sequence[Key]) -> _JudgedTexts:
    return _by_text(await rows_by_key(db, _JUDGED, keys))


def _with(judged: _JudgedTexts, one: _Told) -> _Told:
    return one._replace(judged=judged.get((one.rkey, one.did, one.cid, one.task)))


def _judgement(version: str, probability: float | None, passed: int | None, p_asked: float) -> Judged:
    return Judged(version, probability, None if passed is None else bool(passed), p_asked)


def _by_text(found: Iterable[Sequence[Any]]) -> _JudgedTexts:
    return {(rkey, did, cid, task): _judgement(*judged) for rkey, did, cid, task, *judged in found}


async def _many(db: Connection, sql: str, values: Sequence[Sequence[Any]]) -> int:
    """One statement for many rows; gives how many were changed."""
    return (await db.executemany(sql, values)).rowcount if values else 0


_Lookup = tuple[list[int], list[str]]
"""Ids of jobs, and keys of questions."""
_Found = tuple[set[int], dict[str, tuple[str, Answer]]]
"""As `Ledger.looked_up`."""


def _still_due(db: sqlite3.Connection, numbers: Sequence[int]) -> set[int]:
    found = db.execute(
        "SELECT job.id FROM job JOIN doc ON doc.rkey = job.rkey AND doc.did = job.did "
        f"WHERE job.id IN ({_marks(numbers)}) AND job.state = 'pending' AND doc.state = 'live'",
        numbers,
    )
    return {number for (number,) in found}


def _cached(db: sqlite3.Connection, keys: Sequence[str]) -> dict[str, tuple[str, Answer]]:
    found = db.execute(
        f"SELECT key, label_id, answer FROM label WHERE key IN ({_marks(keys)}) AND answer IS NOT NULL "
        "ORDER BY at DESC, label_id",
        keys,
    )
    return {key: (label_id, unpack(answer)) for key, label_id, answer in found}


_Answered = tuple[Job, LabelRow, Also | None, bool]
"""As `Ledger.answered` is given it."""


def _keep_answers(answers: Sequence[_Answered], db: sqlite3.Connection) -> list[bool]:
    """Labels, jobs and spend of answers, inside a transaction; for each answer whether it was wanted."""
    numbers = [job.id for job, _, _, _ in answers]
    found = db.execute(f"SELECT id, p_sampled FROM job WHERE id IN ({_marks(numbers)}) AND state = 'pending'", numbers)
    wanted: dict[int, float] = dict(found.fetchall())
    if wanted:
        # While the model was asked a feed may have shown the post: now it is labelled in any case.
        own = [(job, label, more) for job, label, _, more in answers if job.id in wanted]
        _keep_wanted([(job, label._replace(p_sampled=wanted[job.id]), more) for job, label, more in own], db)
    for also in (also for job, _, also, _ in answers if also and job.id in wanted):
        also(db)
    for spend, posts in _spends((label, more) for _, label, _, more in answers):
        db.execute(_SPEND, (_today(), *spend, posts))
    return [job.id in wanted for job, _, _, _ in answers]


def _settle(job: Job, label: LabelRow, also: Also | None, db: sqlite3.Connection) -> bool:
    """Inside a transaction: a job is done by a label that is there."""
    done = "UPDATE job SET state = 'done', attempts = ?, reason = NULL WHERE id = ? AND state = 'pending'"
    wanted = db.execute(done, (label.attempts, job.id)).rowcount > 0
    # After a kill its own answer is found in the cache: the post was not counted yet.
    is_new = label.answer is not None and (not label.answer.cached_from or (_is_there(label) and job.run == STREAM))
    if wanted and label.answer and is_new:
        db.execute(_SPEND, (_today(), *Spend(label.answer.model_asked, 0, 0, 0), 1))
    if wanted and also:
        also(db)
    return wanted


def _keep_wanted(answers: Sequence[tuple[Job, LabelRow, bool]], db: sqlite3.Connection) -> None:
    """One statement of each kind for all: at each the thread has to wait for its turn again."""
    # A copy of the label itself is there, and was paid for: now it is the newest.
    fresh = [_packed(label) for _, label, _ in answers if not _is_there(label)]
    vain: dict[int, list[int]] = {}
    for job, label in ((job, label) for job, label, more in answers if not more):
        vain.setdefault(label.attempts, []).append(job.id)
    for attempts, numbers in vain.items():
        sql = f"UPDATE job SET state = 'done', attempts = ?, reason = NULL WHERE id IN ({_marks(numbers)})"
        db.execute(sql, (attempts, *numbers))
    if fresh:
        marks, values = row_values(fresh)
        db.execute(f"INSERT OR REPLACE INTO label VALUES {marks}", values)
    for label in (label for _, label, _ in answers if _is_there(label)):
        db.execute("UPDATE label SET at = ? WHERE label_id = ?", (label.at, label.label_id))
    keys = [(job.rkey, job.did) for job, _, _ in answers]
    texts = [(*key, job.task) for key, (job, _, _) in zip(keys, answers, strict=True)]
    # Not `IN (VALUES ...)` itself: with two rows or more SQLite then reads the whole table.
    marks, values = row_values(texts)
    db.execute(f"DELETE FROM raw WHERE (rkey, did, task) IN (SELECT * FROM (VALUES {marks}))", values)
    marks, values = row_values(keys)
    db.execute(
        f"UPDATE doc SET v = max(v + 1, ?) WHERE (rkey, did) IN (SELECT * FROM (VALUES {marks}))",
        (now_us(), *values),
    )
    marks, values = row_values([(did,) for _, did in keys])
    db.execute(_LABELLED.format(rows=marks), values)


async def touch(db: Connection, rkey: str, did: str) -> None:
    """The store must be told of a post once more."""
    await db.execute(_TOUCH, (now_us(), rkey, did))


async def keep_spend(db: Connection, spend: Spend, *, posts: int) -> None:
    """Add to what was spent today; `posts` were labelled by it."""
    await db.execute(_SPEND, (_today(), *spend, posts))


_SPEND: Final = (
    "INSERT INTO spend (day, model, calls, tokens_in, tokens_out, tokens_reasoning, cost, posts) "
    "VALUES (?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET calls = calls + excluded.calls, "
    "tokens_in = tokens_in + excluded.tokens_in, tokens_out = tokens_out + excluded.tokens_out, "
    "tokens_reasoning = tokens_reasoning + excluded.tokens_reasoning, cost = cost + excluded.cost, "
    "posts = posts + excluded.posts"
)
ERASED: Final = "erased"
"""What a copied answer says of its source once that was deleted."""
_STATES: Final = {"hide": "hidden", "show": "live", "remove": "deleted"}
"""What a change of an account makes of its posts."""
_DAY_US: Final = 24 * HOUR_US
_SUMS: Final = ", ".join(
    f"coalesce(sum({name}), 0)" for name in ("calls", "tokens_in", "tokens_out", "tokens_reasoning", "cost")
)


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

    @property
    def database(self) -> Database:
        """For `rounds`."""
        return self._db

    async def position(self, name: Literal["journal", "snapshot"] = "journal") -> int:
        """The last change of the journal that was taken over, or the last snapshot that the store was told."""
        return await _position(self._db, name)

    async def states(self, keys: Iterable[Key]) -> dict[Key, str]:
        """The states of posts that it knows, also of those that the journal has pruned."""
        found = await self._db.rows_by_key("SELECT rkey, did, state FROM doc WHERE (rkey, did) IN ({keys})", keys)
        return {(rkey, did): state for rkey, did, state in found}

    async def settled(self, keys: Sequence[Key]) -> list[Key]:
        """Which of these posts are labelled (or cannot be) and stored."""
        stored = await self._db.rows_by_key(
            "SELECT rkey, did FROM doc WHERE v <= stored_v AND (rkey, did) IN ({keys})", keys
        )
        waiting = await self._db.rows_by_key(
            "SELECT rkey, did FROM job WHERE state = 'pending' AND (rkey, did) IN ({keys})", keys
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

    async def is_untold(self) -> bool:
        """Whether the store must still be told of any document."""
        ((is_untold,),) = await self._db.rows("SELECT EXISTS (SELECT 1 FROM doc WHERE v > stored_v)")
        return bool(is_untold)

    async def unstored(self, did: str) -> int:
        """Documents of an account that the store must still be told."""
        ((n,),) = await self._db.rows(
            "SELECT (SELECT count(*) FROM doc WHERE did = ?1 AND v > stored_v) "
            "+ (SELECT count(*) FROM author WHERE did = ?1 AND v > stored_v)",
            (did,),
        )
        return int(n)

    async def summary(self) -> dict[str, Any]:
        """Jobs by state, documents that wait for the store, what was drawn and what was spent."""
        jobs = Counter(dict(await self._db.rows("SELECT state, count(*) FROM job GROUP BY state")))
        failed = dict(await self._db.rows("SELECT reason, count(*) FROM job WHERE state = 'dead' GROUP BY reason"))
        ((unstored,),) = await self._db.rows("SELECT count(*) FROM doc WHERE v > stored_v")
        ((refused,),) = await self._db.rows("SELECT count(*) FROM doc WHERE refused IS NOT NULL")
        ((seen, drawn),) = await self._db.rows("SELECT coalesce(sum(seen), 0), coalesce(sum(drawn), 0) FROM hour")
        spend = await self._db.rows(
            f"SELECT model, {_SUMS}, sum(CASE day WHEN ? THEN tokens_in + tokens_out ELSE 0 END), "
            "sum(CASE day WHEN ? THEN cost ELSE 0 END) FROM spend GROUP BY model",
            (_today(), _today()),
        )
        currency = await self._db.rows(
            "SELECT answer ->> '$.currency' FROM label WHERE answer ->> '$.currency' IS NOT NULL LIMIT 1"
            if any(row[_SPENT.index("cost")] for row in spend)
            else "SELECT NULL"
        )
        waiting = await _waiting(self._db)
        ((passed, under),) = await self._db.rows(
            "SELECT coalesce(sum(passed), 0), coalesce(sum(NOT passed), 0) FROM gate"
        )
        return {
            "waiting": waiting,
            "hidden": jobs["pending"] - waiting,
            "labelled": jobs["done"],
            "failed": jobs["dead"],
            "failed_by_reason": failed,
            "cancelled": jobs["cancelled"],
            "gate": {"skipped": jobs["gated"], "asked_anyway": under - jobs["gated"], "passed": passed},
            "unstored": unstored,
            "refused_by_store": refused,
            "sample": {"seen": seen, "drawn": drawn},
            "spend": [dict(zip(_SPENT, row, strict=True)) for row in spend],
            "currency": currency[0][0] if currency else None,
        }

    async def hours(self, since: int) -> dict[int, Hour]:
        """Posts seen and drawn, by the hour (since 1970 UTC) in which they were received."""
        found = await self._db.rows("SELECT hour, seen, drawn FROM hour WHERE hour >= ?", (since,))
        return {hour: Hour(seen, drawn) for hour, seen, drawn in found}

    async def spent_a_post(self, model: str | None = None) -> tuple[int, Spend]:
        """As `Ledger.spent_a_post`, of one model if it is named."""
        return await _spent_a_post(self._db, model=model)

    async def spend_by_day(self, first: str, last: str) -> list[dict[str, Any]]:
        """What calls cost on the days (UTC, such as 2026-11-22) from `first` to `last`, by day and model as asked.

        All calls count, also those of probes, of answers of no use, and for labels that were erased since.
        """
        names = ("day", "model", "calls", "tokens_in", "tokens_out", "tokens_reasoning", "cost", "posts")
        found = await self._db.rows(
            f"SELECT {', '.join(names)} FROM spend WHERE day BETWEEN ? AND ? ORDER BY day, model", (first, last)
        )
        return [dict(zip(names, row, strict=True)) for row in found]

    async def looked_at(self, task: str, version: str) -> tuple[int, int]:
        """(texts of which this gate said how likely they are, those of them under its threshold)."""
        ((n, under),) = await self._db.rows(
            "SELECT count(passed), coalesce(sum(NOT passed), 0) FROM gate WHERE task = ? AND version = ?",
            (task, version),
        )
        return int(n), int(under)

    async def seconds_a_call(self, labels: int = 1000) -> tuple[int, float]:
        """(calls, seconds that one took on average) of so many labels at most, those that were paid for.

        A label's id is a hash, so the first ones are as good as drawn by lot.
        """
        ((calls, seconds),) = await self._db.rows(
            "SELECT coalesce(sum(calls), 0), coalesce(sum(ms), 0) / 1000.0 FROM (SELECT answer ->> '$.calls' AS calls, "
            "answer ->> '$.latency_ms' AS ms FROM label WHERE answer IS NOT NULL AND calls > 0 LIMIT ?)",
            (labels,),
        )
        return int(calls), seconds / max(1, calls)

    async def raw(self, key: Key) -> list[dict[str, Any]]:
        """Answers of no use about a post, as they came."""
        found = await self._db.rows(
            "SELECT task, at, reason, text FROM raw WHERE rkey = ? AND did = ? ORDER BY at", key
        )
        return [{"task": task, "at": format_time(at), "reason": reason, "raw": raw} for task, at, reason, raw in found]


_SPENT: Final = (
    "model", "calls", "tokens_in", "tokens_out", "tokens_reasoning", "cost", "tokens_today", "cost_today",
)  # fmt: skip


async def _position(db: Database, name: str) -> int:
    found = await db.rows("SELECT n FROM position WHERE name = ?", (name,))
    return int(found[0][0]) if found else 0


async def _waiting(db: Database, tasks: Sequence[str] | None = None) -> int:
    among = "" if tasks is None else f" AND task IN ({_marks(tasks)})"
    ((n,),) = await db.rows(
        "SELECT count(*) FROM job JOIN doc ON doc.rkey = job.rkey AND doc.did = job.did "
        f"WHERE job.state = 'pending' AND doc.state = 'live'{among}",
        list(tasks or ()),
    )
    return int(n)


async def _spent_a_post(db: Database, days: int = 7, model: str | None = None) -> tuple[int, Spend]:
    ((posts, *sums),) = await db.rows(
        f"SELECT coalesce(sum(posts), 0), {_SUMS} FROM spend WHERE ?1 IN (model, '') "
        "AND day IN (SELECT DISTINCT day FROM spend WHERE ?1 IN (model, '') ORDER BY day DESC LIMIT ?2)",
        (model or "", days),
    )
    return int(posts), Spend("", *sums)


def _unit(row: PostRow, unit: str) -> str:
    """What a post's lot is drawn for."""
    if unit == "author":
        return row.did
    own = post_uri(row.did, row.rkey)
    return (row.fields or {}).get("reply_root") or own if unit == "thread" else own


def _is_there(label: LabelRow) -> bool:
    """Whether an answer is a copy of this very label."""
    return label.answer is not None and label.answer.cached_from == label.label_id


def _spends(labels: Iterable[tuple[LabelRow, bool]]) -> list[tuple[Spend, int]]:
    """What answers cost, and how many posts were labelled by it, one for each model; none by those of `more`."""
    sums: dict[str, tuple[Spend, int]] = {}
    for label, more in labels:
        assert label.answer is not None
        spend, n = label.answer.spend, 0 if label.answer.cached_from or more else 1
        before, posts = sums.get(spend.model, (Spend(spend.model, 0, 0, 0), 0))
        sums[spend.model] = before.plus(spend), posts + n
    return list(sums.values())


def _marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _packed(label: LabelRow) -> tuple[Any, ...]:
    assert label.answer is not None
    return (
        label.label_id,
        label.rkey,
        label.did,
        label.cid,
        label.task,
        label.task_version,
        label.answer.prompt_hash,
        label.p_sampled,
        label.at,
        label.attempts,
        pack(label.answer),
        label.run,
        label.answer.key,
    )


def pack(answer: Answer) -> str:
    """As text, for a column."""
    return json.dumps(answer.plain(), ensure_ascii=False, separators=(",", ":"))


def unpack(text: str) -> Answer:
    """The answer that `pack` packed; also of earlier versions, whose missing fields have their defaults."""
    values = json.loads(text)
    values["fields"] = {name: FieldLabel(*pair) for name, pair in values["fields"].items()}
    return Answer(**values)
