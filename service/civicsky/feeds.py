"""The second way in: imports what was fetched from the public API (see `inbox`) into the journal.

Every file is one transaction, whole or not at all, and may be imported again: then nothing is new. A post goes through
the same filter and lies in the same row as the firehose's. Any operation of the firehose wins over what a feed shows,
and a deletion beats it. Whoever imports holds the lock `collect`.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from civicsky import inbox, log
from civicsky.errors import BadInput
from civicsky.inbox import Header, Item
from civicsky.lifecycle import Every, Stop, happened
from civicsky.model import FeedOutcome, Key, Verdict, format_time, now_us, parse_time, post_uri
from civicsky.order import BEFORE_ALL, HELD, Account, Known, PostWrite, state_for
from civicsky.sqlite import Connection, Database, rows, rows_by_key, write_many
from civicsky.tables import WRITE_POST, add_counts

_DAY_US: Final = 24 * 3_600_000_000
_HOUSEKEEPING_SECONDS: Final = 3600.0

Outcomes = Counter[tuple[FeedOutcome, str]]
"""By (outcome, reason)."""


class PoolShape(Protocol):
    """See `worker.Pool`."""

    async def judge_told(self, records: Sequence[tuple[str, str]]) -> Sequence["ToldShape"]:
        """One for each record (CID, JSON), in order."""
        ...


class ToldShape(Protocol):
    """See `worker.Told`."""

    @property
    def verdict(self) -> Verdict:
        """Whether it is kept, and why not."""
        ...

    @property
    def block(self) -> bytes:
        """The record as DAG-CBOR."""
        ...


class LedgerShape(Protocol):
    """See `ledger.LedgerReader`."""

    async def states(self, keys: Iterable[Key]) -> dict[Key, str]:
        """The states of posts that it knows, also of those that the journal has pruned."""
        ...


Ledger = Callable[[], AbstractAsyncContextManager[LedgerShape | None]]


class Imported(NamedTuple):
    """What became of one file."""

    file: str
    name: str
    """The feed's; empty when the file could not be read."""
    fetched: int
    outcomes: Outcomes


class Judged(NamedTuple):
    """One item, and what is known of it before it is applied."""

    item: Item
    verdict: Verdict
    block: bytes


class Feeds:
    """The imports, in the journal's database."""

    def __init__(self, database: Database, data_dir: Path, ledger: Ledger) -> None:
        self._db, self._data_dir, self._ledger = database, data_dir, ledger
        self._told: dict[str, str] = {}

    async def import_waiting(self, pool: PoolShape) -> list[Imported]:
        """Import every file that is not imported yet, the oldest first, and scrub what was deleted since.

        A file that cannot be read now is tried again by the next. Raises `OSError` when nothing can be done there.
        """
        done = {name for (name,) in await self._db.rows("SELECT file FROM fetched WHERE imported_at IS NOT NULL")}
        files = await asyncio.to_thread(inbox.files, self._data_dir)
        imported = [await self._import(path, pool) for path in files if path.name not in done]
        await self.scrub()
        return [one for one in imported if one is not None]

    async def import_again(self, file: str) -> None:
        """Have a file imported once more, by whoever imports next."""
        await self._db.execute("UPDATE fetched SET imported_at = NULL WHERE file = ?", (file,))

    async def scrub(self) -> int:
        """Take the posts that were deleted out of the files; how many there were."""
        found = await self._db.rows("SELECT file, did, rkey FROM scrub")
        by_file: dict[str, set[Key]] = {}
        for file, did, rkey in found:
            by_file.setdefault(file, set()).add((rkey, did))
        n = 0
        for file, keys in by_file.items():
            n += await asyncio.to_thread(inbox.scrub, self._data_dir / inbox.FOLDER / file, keys)
            async with self._db.transaction() as db:
                for table in ("scrub", "inboxed"):
                    await db.executemany(
                        f"DELETE FROM {table} WHERE file = ? AND did = ? AND rkey = ?",
                        [(file, did, rkey) for rkey, did in keys],
                    )
        return n

    async def tidy(self, inbox_days: float, post_days: float, told: int) -> None:
        """Forget old files, what feeds showed of posts that are gone from here, and snapshots that the store has."""
        now = now_us()
        before = now - int(post_days * _DAY_US)
        for name in await asyncio.to_thread(inbox.tidy, self._data_dir, now - int(inbox_days * _DAY_US)):
            await self._db.execute("DELETE FROM inboxed WHERE file = ?", (name,))
        for table in ("seen", "moderation"):
            await self._db.execute(
                f"DELETE FROM {table} WHERE at < ? AND NOT EXISTS "
                f"(SELECT 1 FROM post WHERE post.rkey = {table}.rkey AND post.did = {table}.did)",
                (before,),
            )
        await self._db.execute("DELETE FROM snapshot WHERE n <= ? AND at < ?", (told, before))

    def tell(self, file: str, error: OSError) -> None:
        """Log why a file, or the folder, cannot be used now: once each."""
        why = error.strerror or type(error).__name__
        if self._told.get(file) != why:
            log.event("feed_unreadable", stage="feeds", file=file, reason=why)
        self._told[file] = why

    async def _import(self, path: Path, pool: PoolShape) -> Imported | None:
        try:
            header, items = await asyncio.to_thread(inbox.read, path)
        except BadInput as bad:
            log.event("feed_unreadable", stage="feeds", file=path.name, reason=bad.reason)
            nobody = Header("feed", "", "", now_us(), complete=False, why=bad.reason, pages=0)
            async with self._db.transaction() as db:
                await _note(db, path.name, nobody, 0, Counter())
            return Imported(path.name, "", 0, Counter())
        except OSError as error:
            self.tell(path.name, error)
            return None
        judged = await _judge(header, items, pool)
        async with self._ledger() as ledger:
            elsewhere = await ledger.states([key for item in items if (key := item.key)]) if ledger else {}
        async with self._db.transaction("journal") as db:
            outcomes = await _apply(db, path.name, header, judged, elsewhere)
        numbers = {outcome: sum(n for (one, _), n in outcomes.items() if one == outcome) for outcome, _ in outcomes}
        log.event("feed_imported", stage="feeds", file=path.name, name=header.name, fetched=len(items), **numbers)
        return Imported(path.name, header.name, len(items), outcomes)


async def watch(
    feeds: Feeds,
    pool: PoolShape,
    told: Callable[[], Awaitable[int]],
    days: tuple[float, float],
    poll_seconds: float,
    stop: Stop,
    wake: Callable[[], None],
) -> None:
    """Import what is fetched while the collecting half runs, until `stop`.

    `told` gives the number of the last snapshot that the store has; `days` are those of files and of posts.
    """
    tidy = Every(_HOUSEKEEPING_SECONDS)
    while True:
        try:
            if await feeds.import_waiting(pool):
                wake()
            if tidy.is_due():
                await feeds.tidy(*days, await told())
        except OSError as error:  # a full disk, or the folder's rights: the stream is held all the same
            feeds.tell(inbox.FOLDER, error)
        if await happened(stop.requested, poll_seconds):
            return


async def _judge(header: Header, items: Sequence[Item], pool: PoolShape) -> list[Judged]:
    if header.kind == "counts":
        return [Judged(item, Verdict("bad"), b"") for item in items]
    told = await pool.judge_told([(item.cid, item.record) for item in items])
    return [Judged(item, one.verdict, one.block) for item, one in zip(items, told, strict=True)]


async def _apply(
    db: Connection, file: str, header: Header, judged: Sequence[Judged], elsewhere: Mapping[Key, str]
) -> Outcomes:
    """Apply a file's items in their order."""
    keys = [key for one in judged if (key := one.item.key)]
    plan = _Plan(file, header, await _known(db, keys, elsewhere), await _accounts(db, keys), await _erased(db, keys))
    for one in judged:
        plan.outcomes[plan.take(one)] += 1
    await _write(db, plan, keys)
    await _note(db, file, header, len(judged), plan.outcomes)
    unit = header.kind
    counts: Counter[tuple[str, str, str]] = Counter({(unit, "received", ""): len(judged)})
    counts.update({(unit, outcome, reason): n for (outcome, reason), n in plan.outcomes.items()})
    await add_counts(db, counts)
    return plan.outcomes


class _Plan:
    """What a file's items do to what is known. Pure."""

    def __init__(
        self,
        file: str,
        header: Header,
        known: dict[Key, "_There"],
        accounts: Mapping[str, Account],
        erased: Collection[str],
    ) -> None:
        self.file, self.header = file, header
        self._known, self._accounts, self._erased = known, accounts, erased
        self.outcomes: Outcomes = Counter()
        self.posts: list[PostWrite] = []
        self.rejects: list[tuple[Any, ...]] = []
        self.changed: dict[Key, None] = {}
        """Posts of which the other half must hear."""
        self.shown: list[tuple[Key, Item]] = []
        self.gone: list[Key] = []
        """Posts whose text must leave the file."""

    def take(self, one: Judged) -> tuple[FeedOutcome, str]:
        """What becomes of an item, and why."""
        item, key = one.item, one.item.key
        if key is None:
            return "failed", "bad_field"
        why = self._barred(key)
        if why:
            self.gone.append(key)
            return "rejected", why
        there = self._known.get(key)
        if there and there.known.state in HELD:
            if self.header.kind == "feed" and there.here and not there.known.rev and there.cid != item.cid:
                self._rewrite(key, one, there.known)
            self.shown.append((key, item))
            return "known", ""
        if self.header.kind == "counts":
            return "rejected", "deleted"  # pruned everywhere, or it never was ours
        if there and there.known.state == "rejected" and there.known.rev:
            return "rejected", there.reason  # the firehose's own, of this or a later text
        return self._new(key, one)

    def _barred(self, key: Key) -> str:
        rkey, did = key
        if did in self._erased or post_uri(did, rkey) in self._erased:
            return "erased"
        account, there = self._accounts.get(did), self._known.get(key)
        gone = (account and account.status == "deleted") or (there and there.known.state == "deleted")
        return "deleted" if gone else ""

    def _new(self, key: Key, one: Judged) -> tuple[FeedOutcome, str]:
        if one.verdict.kind == "bad":
            return "failed", one.verdict.reason
        if one.verdict.kind == "rejected":
            self.rejects.append((*key, "", -1, one.verdict.reason, self.header.at, None))
            return "rejected", one.verdict.reason
        at = min(one.item.indexed_at or self.header.at, self.header.at)
        known = Known(None, BEFORE_ALL[1], state_for(self._accounts.get(key[1])), at, self.header.at)
        self._put(key, one, known)
        self.shown.append((key, one.item))
        return "new", ""

    def _rewrite(self, key: Key, one: Judged, known: Known) -> None:
        """The author changed a post of which only feeds told; once kept it stays, as after an edit by the firehose."""
        if one.verdict.kind != "bad":
            self._put(key, one, known)

    def _put(self, key: Key, one: Judged, known: Known) -> None:
        state = state_for(self._accounts.get(key[1]))
        self._known[key] = _There(known._replace(state=state), one.item.cid)
        self.posts.append(
            PostWrite(
                *key, None, known.idx, one.item.cid, state, "", known.event_at, known.received_at, 1.0,
                one.block or None, one.verdict.fields,
            )
        )  # fmt: skip
        self.changed[key] = None


class _There(NamedTuple):
    """What is known of a post before a feed's item is applied."""

    known: Known
    cid: str
    reason: str = ""
    """Why it was rejected."""
    here: bool = True
    """Whether the journal has it; else only the ledger knows it."""


async def _known(db: Connection, keys: Sequence[Key], elsewhere: Mapping[Key, str]) -> dict[Key, _There]:
    found = {key: _There(Known(None, -1, state), "", here=False) for key, state in elsewhere.items()}  # type: ignore[arg-type]
    for rkey, did, rev, idx, reason in await rows_by_key(
        db, "SELECT rkey, did, rev, idx, reason FROM reject WHERE (rkey, did) IN ({keys})", keys
    ):
        found.setdefault((rkey, did), _There(Known(rev, idx, "rejected"), "", reason))
    sql = "SELECT rkey, did, cid, rev, idx, state, event_at, received_at FROM post WHERE (rkey, did) IN ({keys})"
    for rkey, did, cid, *values in await rows_by_key(db, sql, keys):
        found[rkey, did] = _There(Known(*values), cid)
    return found


async def _accounts(db: Connection, keys: Sequence[Key]) -> dict[str, Account]:
    found = {}
    for did in {did for _, did in keys}:
        for status, at in await rows(db, "SELECT status, at FROM account WHERE did = ?", (did,)):
            found[did] = Account(status, at)
    return found


async def _erased(db: Connection, keys: Sequence[Key]) -> set[str]:
    names = {did for _, did in keys} | {post_uri(did, rkey) for rkey, did in keys}
    erased = {name for (name,) in await rows(db, "SELECT name FROM erased")}
    return names & erased


async def _write(db: Connection, plan: _Plan, keys: Sequence[Key]) -> None:
    """Write what the plan holds."""
    header = plan.header
    await write_many(db, WRITE_POST, {(post.rkey, post.did): post for post in plan.posts}.values())
    await db.executemany("DELETE FROM reject WHERE rkey = ? AND did = ?", [row[:2] for row in plan.posts])
    await db.executemany("INSERT OR REPLACE INTO reject VALUES (?,?,?,?,?,?,?)", plan.rejects)
    await _write_shown(db, plan)
    await db.executemany(
        "INSERT INTO change (kind, did, rkey, rev, at) VALUES ('put',?,?,'',?)",
        [(did, rkey, header.at) for rkey, did in plan.changed],
    )
    if header.kind == "feed":  # the others hold no text
        await db.executemany(
            "INSERT OR IGNORE INTO inboxed VALUES (?,?,?)", [(did, rkey, plan.file) for rkey, did in keys]
        )
        await db.executemany(
            "INSERT OR IGNORE INTO scrub VALUES (?,?,?)", [(plan.file, did, rkey) for rkey, did in plan.gone]
        )


async def _write_shown(db: Connection, plan: _Plan) -> None:
    """Snapshots, which feed showed a post first, and what moderation services say of it."""
    header = plan.header
    for key, item in plan.shown:
        counts = (item.likes, item.reposts, item.replies, item.quotes)
        rank = item.rank if header.kind == "feed" else None
        await db.execute(
            "INSERT OR IGNORE INTO snapshot (rkey, did, at, why, rank, likes, reposts, replies, quotes) "
            "VALUES (?,?,?,?,?,?,?,?,?)",
            (*key, header.at, header.name, rank, *counts),
        )
        if header.kind == "feed":
            added = await db.execute(
                "INSERT OR IGNORE INTO seen VALUES (?,?,?,?,?)", (*key, header.name, item.rank, header.at)
            )
            if added.rowcount:
                plan.changed[key] = None
        if await _moderate(db, key, item, header.at):
            plan.changed[key] = None


async def _moderate(db: Connection, key: Key, item: Item, at: int) -> bool:
    """Keep the labels of moderation services; whether they are others than before."""
    labels = json.dumps(sorted((_sound(label) for label in item.moderation), key=json.dumps))
    before = await rows(db, "SELECT at, labels FROM moderation WHERE rkey = ? AND did = ?", key)
    ((then, was),) = before or [(0, "[]")]
    if at < then or (not before and labels == "[]"):
        return False
    await db.execute("INSERT OR REPLACE INTO moderation VALUES (?,?,?,?)", (*key, at, labels))
    return bool(labels != was)


def _sound(label: Mapping[str, Any]) -> dict[str, str | None]:
    """A label in our form; its time is the service's claim."""
    at = parse_time(label.get("at") or "") if isinstance(label.get("at"), str) else None
    return {
        "source": _unicode(label.get("source", ""))[:2048],
        "value": _unicode(label.get("value", ""))[:128],
        "at": None if at is None else format_time(at),
    }


def _unicode(value: Any) -> str:
    """A text that stores can hold: halves of surrogate pairs become question marks."""
    return str(value).encode(errors="replace").decode()


async def _note(db: Connection, file: str, header: Header, items: int, outcomes: Outcomes) -> None:
    told = json.dumps([[outcome, reason, n] for (outcome, reason), n in sorted(outcomes.items())])
    await db.execute(
        "INSERT OR REPLACE INTO fetched VALUES (?,?,?,?,?,?,?,?,?,?)",
        (file, header.kind, header.name, header.uri, header.at, header.complete, header.why, items, now_us(), told),
    )
