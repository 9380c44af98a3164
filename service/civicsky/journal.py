"""The collecting half's database: posts, deletions, cursors, coverage and counts, and the feed of their changes.

`Journal` is its one frequent writer; `JournalReader` is what the labelling half and `status` read it with.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from civicsky import order
from civicsky.holding import GAP_COLUMNS, HELD_COLUMNS, Holding, kept_left, note_opening, openings
from civicsky.model import (
    POSTS,
    Batch,
    Change,
    Committed,
    Frame,
    Gap,
    Held,
    Key,
    Opened,
    Position,
    PostRow,
    Seen,
    Shown,
    Snapshot,
    Verdict,
    now_us,
)
from civicsky.settings import Journal as JournalSettings
from civicsky.sqlite import Connection, Database, open_reader, open_writer, rows, rows_by_key, write_many
from civicsky.tables import OF_FEEDS, SCHEMA, WRITE_POST, add_counts, ask_recheck_of, change_posts, delete_posts

_DAY: Final = 24 * 3_600_000_000

ROOMY: Final = 0.9
"""Share of the disk bound below which all is as before."""
BEYOND: Final = 1.25
"""Times the disk bound at which even shedding is not enough."""
PRUNED_AT_ONCE: Final = 5000
"""Rows that one statement deletes at most, while commits wait for it."""

Counts = Counter[tuple[str, str, str]]
"""By (unit, outcome, reason)."""
Settled = Callable[[Sequence[Key]], Awaitable[Sequence[Key]]]
"""Which of these posts are labelled and stored, so that the journal need not keep them."""

Numbered = Literal["change", "snapshot"]
"""What the labelling half follows by rising numbers."""

_POST_COLUMNS: Final = "rkey, did, rev, cid, state, host, event_at, received_at, p_kept, fields"


class Journal:
    """The writer. One instance a data directory (the lock of the role `collect` sees to it)."""

    def __init__(self, database: Database, settings: JournalSettings) -> None:
        self._db, self._settings = database, settings
        self._holding = Holding(settings.gap_seconds)
        self._erased: frozenset[str] = frozenset()
        self._others_wrote = -1
        self._pruned_to = 0
        self._shed_key = b""
        self._shedding = False
        self._size = 0
        self.room = asyncio.Event()
        """Set while the disk bound lets us read on."""
        self.room.set()

    @classmethod
    async def open(cls, path: Path, settings: JournalSettings) -> "Journal":
        """Open or make the database. Errors as in `sqlite.open_writer`."""
        return cls(await open_writer(path, SCHEMA, synchronous="NORMAL"), settings)

    async def close(self) -> None:
        """Release the file."""
        await self._db.close()

    async def begin_run(
        self, version: str, filter_version: str, settings: str, settings_hash: str, followed: Mapping[Numbered, int]
    ) -> None:
        """Record what runs, with which settings (secrets masked).

        `followed` is the last change and the last snapshot that the labelling half took over. A journal that was lost,
        or lost its tail in a power cut, may be behind it: then the numbers go on from there, or what is new would never
        be followed.
        """
        async with self._db.transaction() as db:
            for name, number in followed.items():
                ((last,),) = await rows(db, "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?", (name,))
                if number > last:
                    await db.execute("DELETE FROM sqlite_sequence WHERE name = ?", (name,))
                    await db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (name, number))
        await self._db.execute(
            "INSERT INTO run (started, version, filter_version, settings, settings_hash) VALUES (?,?,?,?,?)",
            (now_us(), version, filter_version, settings, settings_hash),
        )

    async def positions(self, hosts: Iterable[str]) -> dict[str, Position]:
        """Where we are in every host's stream; those of `hosts` that are new start at epoch 1 without a cursor."""
        async with self._db.transaction() as db:
            known = {name for (name,) in await rows(db, "SELECT name FROM host")}
            return {host: await _position(db, host) for host in known.union(hosts)}

    async def held_until(self) -> dict[str, int]:
        """By host the time of the last events held: a median, which one server's wrong clock does not move."""
        async with self._db.transaction() as db:
            found = await rows(db, "SELECT host, last_at, max(id) FROM held GROUP BY host")
        return {host: last_at for host, last_at, _ in found}

    async def opened(self) -> Opened | None:
        """The newest opening of `source.window`."""
        async with self._db.transaction() as db:
            found = await openings(partial(rows, db))
        return found[-1] if found else None

    async def erase(self, name: str) -> int:
        """Take a DID's or an AT-URI's posts away, and never collect them again; how many there were.

        The rest (labels, the store) follows through the change feed.
        """
        now, counted = now_us(), "SELECT count(*) FROM post WHERE state <> 'deleted' AND did = ?"
        async with self._db.transaction() as db:
            await db.execute("INSERT OR IGNORE INTO erased VALUES (?,?)", (name, now))
            if not name.startswith("at://"):
                ((n,),) = await rows(db, counted, (name,))
                await change_posts(db, name, "deleted")
                await db.execute("DELETE FROM recheck WHERE name = ?", (name,))
                await db.execute(
                    "INSERT INTO change (kind, did, rkey, rev, at) VALUES ('remove',?,'','',?)", (name, now)
                )
                return int(n)
            did, _, rkey = name.removeprefix("at://").partition(f"/{POSTS}/")
            ((n,),) = await rows(db, counted + " AND rkey = ?", (did, rkey))
            await delete_posts(db, [(rkey, did, "")], now)
            return int(n)

    async def retry(self, number: int, frame: Frame, verdicts: Sequence[Verdict]) -> bool:
        """Apply a frame that was put aside under this number once more; False, and no change, when it is still bad.

        The cursor and the balance stay as they are; what became of its operations is counted apart.
        """
        async with self._db.transaction() as db:
            plan = await self._known(db, [frame])
            await self._apply(db, plan, [frame], iter(verdicts), None)
            if plan.quarantine:
                return False
            await self._flush(db, plan)
            outcomes = {("retry", outcome, why): n for (unit, outcome, why), n in plan.counts.items() if unit == "post"}
            await add_counts(db, Counter(outcomes))
            await db.execute("DELETE FROM quarantine WHERE id = ?", (number,))
        return True

    @property
    def database(self) -> Database:
        """For the other writers of this process (see `recheck.py`)."""
        return self._db

    async def commit(
        self, batch: Batch, verdicts: Sequence[Verdict], received: Counter[str], *, kept_limit: int | None = None
    ) -> Committed:
        """Write a batch's posts, deletions, counts and cursor in one transaction.

        `verdicts` belong to `batch.records()`, in order. `received` is the source's and the decoder's own count (units
        `frame` and `post`). With `kept_limit`, frames behind the one that reaches it are not written, and the cursor
        stays before them. So it is with the limit of the opening in which they came.
        """
        last = batch.frames[-1]
        opening = last.arrival.opening
        async with self._db.transaction("journal") as db:
            assert len(verdicts) == len(batch.records())
            plan = await self._known(db, batch.frames)
            before = await _position(db, last.arrival.host)
            plan.cursor = before.cursor if before.epoch == last.arrival.epoch else None
            limits = [limit for limit in (kept_limit, await kept_left(db, opening)) if limit is not None]
            done, reached = await self._apply(db, plan, batch.frames, iter(verdicts), min(limits, default=None))
            await self._flush(db, plan)
            resume = await self._holding.note(db, done, batch.gaps, before)
            position = await self._move(db, plan, last, done, before)
            opening_why = await note_opening(db, opening, done, plan.kept)
            if reached:
                posts = sum(len(frame.event.posts) for frame in done if frame.outcome == "commit")
                received = Counter(frame=len(done), post=posts)
            await add_counts(db, {**plan.counts, **{(unit, "received", ""): n for unit, n in received.items()}})
            size = await _live_bytes(db)
        self._heed(size)
        is_enough = kept_limit is not None and plan.kept >= kept_limit
        return Committed(plan.counts, position, is_enough, resume, opening_why, self._holding.gaps)

    async def prune(self, followed: int | None, settled: Settled) -> None:
        """Drop what has outlived its use.

        That is: old rejects and tombstones, quarantine beyond its bounds, changes behind `followed`, and old posts of
        which `settled` says that they are labelled and stored.
        """
        settings, now = self._settings, now_us()
        await self._prune_posts(now, settled)
        await self._drop("reject", "(rkey, did)", "at", now - int(settings.reject_days * _DAY))
        await self._db.execute("DELETE FROM quarantine WHERE at < ?", (now - int(settings.quarantine_days * _DAY),))
        await self._db.execute(
            "DELETE FROM quarantine WHERE id IN (SELECT id FROM (SELECT id, sum(length(bytes)) OVER newer AS size, "
            "count(*) OVER newer AS n FROM quarantine WINDOW newer AS (ORDER BY id DESC)) WHERE size > ? OR n > ?)",
            (settings.quarantine_bytes, settings.quarantine_rows),
        )
        if followed is not None:
            await self._drop("change", "n", "n", followed + 1)
        await self._db.give_back(1000)
        await self._db.truncate_log()
        async with self._db.transaction() as db:
            size = await _live_bytes(db)
        self._heed(size)

    async def _drop(self, table: str, key: str, by: str, before: int) -> None:
        """Delete all rows below a value, in pages: after a long stop there are millions, and a commit waits for one."""
        columns = key.strip("()")
        page = f"SELECT {columns} FROM {table} WHERE {by} < ? ORDER BY {by} LIMIT {PRUNED_AT_ONCE}"
        while await self._db.execute(f"DELETE FROM {table} WHERE {key} IN ({page})", (before,)) == PRUNED_AT_ONCE:
            pass

    async def _prune_posts(self, now: int, settled: Settled) -> None:
        """One round over the oldest posts, in pages, so that nothing waits long for us."""
        settings = self._settings
        await self._db.execute(
            "DELETE FROM post WHERE id IN "
            "(SELECT id FROM post WHERE state = 'deleted' AND received_at < ? ORDER BY received_at LIMIT 5000)",
            (now - int(settings.tombstone_days * _DAY),),
        )
        for _page in range(10):
            page = await self._db.rows(
                "SELECT id, rkey, did FROM post WHERE id > ? AND received_at < ? AND state <> 'deleted' "
                "ORDER BY id LIMIT 500",
                (self._pruned_to, now - int(settings.post_days * _DAY)),
            )
            if not page:
                self._pruned_to = 0  # from the beginning again, next time
                return
            self._pruned_to = page[-1][0]
            done = await settled([(rkey, did) for _, rkey, did in page])
            async with self._db.transaction() as db:
                await db.executemany("DELETE FROM post WHERE rkey = ? AND did = ? AND state <> 'deleted'", done)

    def _heed(self, size: int) -> None:
        """At the disk bound: pause, or shed; with some way back before it is over."""
        settings, self._size = self._settings, size
        full, roomy = size >= settings.max_bytes, size < settings.max_bytes * ROOMY
        sheds = settings.at_bound == "shed"
        if sheds and (full or roomy):
            self._shedding = full
        # Shedding slows the growth; it does not end it.
        if size >= settings.max_bytes * (BEYOND if sheds else 1):
            self.room.clear()
        elif roomy or (sheds and size < settings.max_bytes * (BEYOND + 1) / 2):
            self.room.set()

    @property
    def shedding(self) -> bool:
        """Whether new posts are kept by chance only."""
        return self._shedding

    @property
    def size(self) -> int:
        """Bytes in use, as of the last commit or pruning."""
        return self._size

    async def _known(self, db: Connection, frames: Sequence[Frame]) -> order.Plan:
        """What the journal knows of what these frames touch."""
        some = [frames[at] for at in order.notable(frames)]
        wanted = order.keys(some)
        known: dict[Key, order.Known] = {}
        rejected: set[Key] = set()
        for table, columns in (("reject", "'rejected', 0, 0"), ("post", "state, event_at, received_at")):
            sql = f"SELECT rkey, did, rev, idx, {columns} FROM {table} WHERE (rkey, did) IN ({{keys}})"
            for rkey, did, *values in await rows_by_key(db, sql, wanted):
                found, other = order.Known(*values), known.get((rkey, did))
                if found.state == "rejected":
                    rejected.add((rkey, did))
                # A tombstone and a later rejection of the same key may both be there: the newer one counts.
                if other is None or (found.rev or "", found.idx) > (other.rev or "", other.idx):
                    known[rkey, did] = found
        accounts: dict[str, order.Account] = {}
        dids = list(order.dids(some))
        for at in range(0, len(dids), 500):
            part = dids[at : at + 500]
            marks = ",".join("?" * len(part))
            for did, status, when in await rows(
                db, f"SELECT did, status, at FROM account WHERE did IN ({marks})", part
            ):
                accounts[did] = order.Account(status, when)
        changing = [frame.event.did for frame in some if frame.outcome == "account"]
        authors = await _with_rows(db, changing) if changing else set()
        return order.Plan(known, accounts, None, await self._rules(db), rejected=rejected, authors=authors)

    async def _rules(self, db: Connection) -> order.Rules:
        ((others,),) = await rows(db, "PRAGMA data_version")  # the command line may have erased something
        if others != self._others_wrote:
            self._others_wrote = others
            self._erased = frozenset(name for (name,) in await rows(db, "SELECT name FROM erased"))
            ((self._shed_key,),) = await rows(db, "SELECT value FROM secret WHERE name = 'shed'")
        share = self._settings.shed_share if self._shedding else 1.0
        return order.Rules(self._settings.reject_sample, self._erased, share, self._shed_key)

    async def _apply(
        self, db: Connection, plan: order.Plan, frames: list[Frame], verdicts: Any, kept_limit: int | None
    ) -> tuple[list[Frame], bool]:
        """Apply the frames in order; gives those that were applied, and whether the limit ended it."""
        done = 0
        for at in order.notable(frames) if kept_limit is None else range(len(frames)):
            order.pass_by(plan, frames[done:at])
            frame, done = frames[at], at + 1
            account = order.apply(plan, frame, verdicts)
            if account and frame.event.did in plan.authors:
                await self._flush(db, plan)
                await change_posts(db, frame.event.did, account.status)
                if account.status == "active":  # while it was hidden nobody could look its posts up
                    await ask_recheck_of(db, frame.event.did)
            if kept_limit is not None and plan.kept >= kept_limit:
                return frames[:done], True
        order.pass_by(plan, frames[done:])
        return frames, False

    async def _flush(self, db: Connection, plan: order.Plan) -> None:
        """Write what the plan holds, and empty it of that."""
        await write_many(db, WRITE_POST, plan.tombstones.values())
        await write_many(db, WRITE_POST, plan.posts.values())
        await write_many(  # not `IN (VALUES ...)` itself: see `sqlite.rows_by_key`
            db, "DELETE FROM reject WHERE (rkey, did) IN (SELECT * FROM (VALUES {rows}))", plan.forgotten_rejects
        )
        await write_many(db, "INSERT OR REPLACE INTO reject VALUES {rows}", plan.rejects.values())
        await write_many(
            db,
            "INSERT OR REPLACE INTO account VALUES {rows}",
            [(did, account.status, account.at) for did, account in plan.account_writes.items()],
        )
        await write_many(db, "INSERT INTO change (kind, did, rkey, rev, at) VALUES {rows}", plan.changes)
        authors = [(did,) for did in plan.deleting]
        await write_many(db, "DELETE FROM quarantine WHERE did IN (SELECT * FROM (VALUES {rows}))", authors)
        await write_many(
            db,
            # One without a number comes again at each reconnect.
            "INSERT OR IGNORE INTO quarantine (sha256, host, epoch, after_seq, reason, bytes, at, did) VALUES {rows}",
            plan.quarantine,
        )
        for written in (
            plan.tombstones, plan.posts, plan.forgotten_rejects, plan.rejects, plan.account_writes, plan.changes,
            plan.deleting, plan.quarantine,
        ):  # fmt: skip
            written.clear()

    async def _move(
        self, db: Connection, plan: order.Plan, last: Frame, done: list[Frame], before: Position
    ) -> Position:
        """Move the cursor to the end of what this transaction holds."""
        times = (frame.event.time for frame in reversed(done) if frame.event.time and frame.outcome != "duplicate")
        position = Position(last.arrival.host, last.arrival.epoch, plan.cursor, next(times, before.event_at))
        await db.execute(
            "INSERT OR REPLACE INTO host (name, epoch, cursor, event_at) VALUES (?,?,?,?)",
            (position.host, position.epoch, position.cursor, position.event_at),
        )
        return position


class JournalReader:
    """Reads what the collecting half wrote, while it writes or when it does not run."""

    def __init__(self, database: Database) -> None:
        self._db = database

    @classmethod
    async def open(cls, path: Path) -> "JournalReader":
        """Open an existing journal."""
        return cls(await open_reader(path, SCHEMA))

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
        found = await self._db.rows_by_key(f"SELECT {_POST_COLUMNS} FROM post WHERE (rkey, did) IN ({{keys}})", keys)
        return {(row[0], row[1]): _post_row(row) for row in found}

    async def shown(self, keys: Iterable[Key]) -> dict[Key, Shown]:
        """What the public API showed of these posts; only those of which it showed something."""
        wanted = list(keys)
        feeds: dict[Key, list[Seen]] = {}
        for rkey, did, *values in await self._db.rows_by_key(
            "SELECT rkey, did, name, rank, at FROM seen WHERE (rkey, did) IN ({keys})", wanted
        ):
            feeds.setdefault((rkey, did), []).append(Seen(*values))
        labels = {
            (rkey, did): tuple(json.loads(packed))
            for rkey, did, packed in await self._db.rows_by_key(
                "SELECT rkey, did, labels FROM moderation WHERE (rkey, did) IN ({keys})", wanted
            )
        }
        return {
            key: Shown(tuple(sorted(feeds.get(key, ()), key=lambda one: one.at)), labels.get(key))
            for key in feeds.keys() | labels.keys()
        }

    async def snapshots(self, after: int, limit: int) -> list[Snapshot]:
        """The next snapshots, without those of posts that were deleted meanwhile."""
        found = await self._db.rows(
            "SELECT n, did, rkey, at, why, rank, likes, reposts, replies, quotes FROM snapshot WHERE n > ? "
            "ORDER BY n LIMIT ?",
            (after, limit),
        )
        return [Snapshot(*row) for row in found]

    async def counted(self, keys: Iterable[Key], why: str) -> set[Key]:
        """Of these posts those that have a snapshot of this occasion, as long as the journal has it."""
        found = await self._db.rows_by_key("SELECT rkey, did, why FROM snapshot WHERE (rkey, did) IN ({keys})", keys)
        return {(rkey, did) for rkey, did, occasion in found if occasion == why}

    async def fetches(self) -> list[dict[str, Any]]:
        """What was fetched, the oldest first: outcomes are [outcome, reason, n] each; `imported_at` None: it waits."""
        columns = ("file", "kind", "name", "uri", "at", "complete", "why", "items", "imported_at", "outcomes")
        found = await self._db.rows(f"SELECT {', '.join(columns)} FROM fetched ORDER BY at, file")
        return [{**row, "outcomes": json.loads(row["outcomes"])} for row in _named(columns, found)]

    async def newest(self, limit: int) -> list[PostRow]:
        """The live posts that came in last."""
        found = await self._db.rows(
            f"SELECT {_POST_COLUMNS} FROM post WHERE state = 'live' ORDER BY id DESC LIMIT ?", (limit,)
        )
        return [_post_row(row) for row in found]

    async def n_posts(self) -> int:
        """How many posts it has, without tombstones."""
        ((n,),) = await self._db.rows("SELECT count(*) FROM post WHERE state <> 'deleted'")
        return int(n)

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

    async def hours(self, since: int) -> dict[int, Counter[tuple[str, str]]]:
        """The counts of each hour since then, by (unit, outcome); an hour is named by its beginning."""
        found: dict[int, Counter[tuple[str, str]]] = {}
        for hour, unit, outcome, n in await self._db.rows(
            "SELECT hour, unit, outcome, sum(n) FROM count WHERE hour >= ? GROUP BY hour, unit, outcome", (since,)
        ):
            found.setdefault(hour, Counter())[unit, outcome] = n
        return found

    async def hours_told(self, since: int) -> dict[int, Counts]:
        """All counts of each hour from `since` on, by (unit, outcome, reason); an hour is named by its beginning."""
        found: dict[int, Counts] = {}
        for hour, unit, outcome, reason, n in await self._db.rows(
            "SELECT hour, unit, outcome, reason, n FROM count WHERE hour >= ? ORDER BY hour", (since,)
        ):
            found.setdefault(hour, Counter())[unit, outcome, reason] = n
        return found

    async def quarantine(self) -> tuple[int, int]:
        """How many frames and records are put aside, and their bytes."""
        ((n, size),) = await self._db.rows("SELECT count(*), coalesce(sum(length(bytes)), 0) FROM quarantine")
        return int(n), int(size)

    async def runs(self) -> list[dict[str, Any]]:
        """What ran: version, filter version, settings (secrets masked) and their hash."""
        columns = ("started", "version", "filter_version", "settings", "settings_hash")
        return _named(columns, await self._db.rows(f"SELECT {', '.join(columns)} FROM run ORDER BY id"))

    async def held(self) -> list[Held]:
        """What was held, one row for each connection, in order."""
        return [Held(*row) for row in await self._db.rows(f"SELECT {HELD_COLUMNS} FROM held ORDER BY id")]

    async def openings(self) -> list[Opened]:
        """The openings of `source.window` in which anything came, in order."""
        return await openings(self._db.rows)

    async def gaps(self) -> list[Gap]:
        """What is known to be missing, in the order in which it was noted."""
        return [Gap(*row) for row in await self._db.rows(f"SELECT {GAP_COLUMNS} FROM gap ORDER BY id")]

    async def size(self) -> int:
        """Bytes in use: not the file's size, which has free pages."""
        return await _live_bytes(self._db)

    async def rejects(self, limit: int) -> list[dict[str, Any]]:
        """The newest rejected posts, with the record's bytes for those in the sample."""
        columns = ("did", "rkey", "reason", "at", "record")
        found = await self._db.rows(f"SELECT {', '.join(columns)} FROM reject ORDER BY at DESC LIMIT ?", (limit,))
        return _named(columns, found)

    async def quarantined(self, number: int | None = None) -> list[dict[str, Any]]:
        """The frames that were put aside, or one of them, the oldest first."""
        columns = ("id", "sha256", "host", "epoch", "after_seq", "reason", "bytes", "at", "did")
        where, values = ("WHERE id = ?", (number,)) if number is not None else ("", ())
        found = await self._db.rows(f"SELECT {', '.join(columns)} FROM quarantine {where} ORDER BY id", values)
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


async def _with_rows(db: Connection, dids: list[str]) -> set[str]:
    """Of these accounts those of which something is held that changes with their status."""
    found: set[str] = set()
    for at in range(0, len(dids), 500):
        part = dids[at : at + 500]
        marks = ",".join("?" * len(part))
        sql = " UNION ".join(
            f"SELECT did FROM {table} WHERE did IN ({marks})"
            for table in (*OF_FEEDS, "post", "quarantine", "reject INDEXED BY reject_sampled")
        )
        found |= {did for (did,) in await rows(db, sql + " AND record IS NOT NULL", part * (3 + len(OF_FEEDS)))}
    return found


async def _live_bytes(db: Connection | Database) -> int:
    read = db.rows if isinstance(db, Database) else partial(rows, db)
    ((size,),) = await read(
        "SELECT (page_count - freelist_count) * page_size "
        "FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
    )
    return int(size)


async def _position(db: Connection, host: str) -> Position:
    found = await rows(db, "SELECT name, epoch, cursor, event_at FROM host WHERE name = ?", (host,))
    return Position(*found[0]) if found else Position(host)


def _post_row(row: Sequence[Any]) -> PostRow:
    return PostRow(*[*row[:-1], json.loads(row[-1]) if row[-1] is not None else None])
