"""How our SQLite files are opened, written, read and brought up; the one home of aiosqlite.

Each file has one frequent writer. Write-ahead log; `secure_delete`, so that a deleted text cannot be read from the
file's free pages; incremental vacuum, so that pruning can give space back.

Before a file of an earlier format is brought up, a copy of it is left in the folder `upgrades/` beside it.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final, Literal, NamedTuple, TypeVar

import aiosqlite

from civicsky import copies, faults, log
from civicsky.errors import Failed, Usage

T = TypeVar("T")
_KEYS_A_QUERY: Final = 500
_ROWS_A_STATEMENT: Final = 256
_CACHE_KIB: Final = 16_000
"""Of a connection; SQLite's own 2,000 hold too little of the indexes by author, whose pages are hit at random."""
_BUSY_TIMEOUT: Final = "PRAGMA busy_timeout=30000"
_BEFORE: Final[dict[str, faults.Place]] = {"journal": "journal.commit", "ledger": "ledger.commit"}
_AFTER: Final[dict[str, faults.Place]] = {"journal": "journal.committed", "ledger": "ledger.committed"}
UPGRADES: Final = "upgrades"
"""The folder, beside a database, of what it was before it was brought up."""
UPGRADE_STAMP: Final = "%Y%m%dT%H%M%SZ"
_MARGIN: Final = 1_000_000
"""Bytes beside the pages themselves, for the log's frames and what else is written meanwhile."""


class Connection(aiosqlite.Connection):
    """A connection and the thread in which its statements run.

    A journey to the thread and back wakes two threads, which takes longer than a small statement does.
    """

    async def at_once(self, do: Callable[[sqlite3.Connection], T]) -> T:
        """Have a plain function run in the thread: all its statements take one journey."""
        result: T = await self._execute(do, self._conn)  # type: ignore[no-untyped-call]
        return result


class Schema(NamedTuple):
    """One database's tables. `steps[i]` brings version i to version i + 1."""

    application_id: int
    steps: Sequence[str]


class Database:
    """One connection to one file, for any number of tasks: a statement outside never gets into a transaction.

    SQLite's errors come out as `Failed` or `Usage` with the file's name and a remedy.
    """

    def __init__(self, connection: Connection, path: Path) -> None:
        self._connection, self._path = connection, path
        self._alone = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self, name: Literal["journal", "ledger"] | None = None) -> AsyncIterator[Connection]:
        """One write transaction, whole or not at all; `name` is that of its crash points."""
        async with self._alone:
            with _translated(self._path):
                try:
                    await self._connection.execute("BEGIN IMMEDIATE")
                    yield self._connection
                    if name:
                        await faults.stage(_BEFORE[name])
                    await self._connection.commit()
                    if name:
                        faults.point(_AFTER[name])
                except BaseException:
                    await self._connection.rollback()
                    raise

    async def at_once(self, do: Callable[[sqlite3.Connection], T], name: Literal["ledger"] | None = None) -> T:
        """The same for a plain function, in one journey to the connection's thread: see `Connection`.

        Once it is under way it is done, also if its caller is cancelled.
        """
        async with self._alone:
            with _translated(self._path):
                return await self._connection.at_once(partial(_whole, do, name))

    async def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows of a query."""
        async with self._alone:
            with _translated(self._path):
                return await rows(self._connection, sql, values)

    async def look(self, do: Callable[[sqlite3.Connection], T]) -> T:
        """Have a plain function read, in the connection's thread: see `Connection`."""
        async with self._alone:
            with _translated(self._path):
                return await self._connection.at_once(do)

    async def rows_by_key(self, sql: str, keys: Iterable[tuple[str, str]]) -> list[Any]:
        """All rows of a query that ends in `... IN ({keys})`, for any number of (rkey, did) pairs."""
        async with self._alone:
            with _translated(self._path):
                return await rows_by_key(self._connection, sql, keys)

    async def execute(self, sql: str, values: Sequence[Any] = ()) -> int:
        """One statement, committed by itself; gives the number of rows that it changed."""
        async with self._alone:
            with _translated(self._path):
                return (await self._connection.execute(sql, values)).rowcount

    async def truncate_log(self) -> None:
        """Leave nothing in the write-ahead log of what was overwritten or deleted.

        A reader in its midst is not waited for: the next time will do.
        """
        async with self._alone:
            with _translated(self._path):
                await self._connection.execute("PRAGMA busy_timeout=100")
                await rows(self._connection, "PRAGMA wal_checkpoint(TRUNCATE)")
                await self._connection.execute(_BUSY_TIMEOUT)

    async def interrupt(self) -> None:
        """Have the statement that is under way fail."""
        await self._connection.interrupt()

    async def give_back(self, pages: int) -> None:
        """Make the file smaller by so many free pages at most."""
        async with self._alone:
            with _translated(self._path):
                # A script, since a statement by itself would be stepped, and so free a page, only once.
                await self._connection.executescript(f"PRAGMA incremental_vacuum({pages})")

    async def close(self) -> None:
        """Release the file."""
        await self._connection.close()


async def open_writer(path: Path, schema: Schema, *, synchronous: Literal["NORMAL", "FULL"]) -> Database:
    """Open a database for writing, making or upgrading its tables.

    Raises `Usage` when it belongs to a newer civicsky, `Failed` when it is damaged or is something else, or when there
    is no room to bring it up.
    """
    with _translated(path):
        connection = await _connect(path)
        try:
            version = await _version(connection, path, schema)
            # Both must stand before the first table is made.
            await connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            await connection.execute("PRAGMA journal_mode=WAL")
            await connection.execute(f"PRAGMA synchronous={synchronous}")
            await _prepare(connection)
            if version < len(schema.steps):
                await _upgrade(connection, path, schema)
        except BaseException:
            await connection.close()
            raise
    path.chmod(0o600)
    return Database(connection, path)


async def open_reader(path: Path, schema: Schema) -> Database:
    """Open a database that another connection writes. It cannot write.

    Raises `Usage` when it is not of this civicsky's format, `Failed` when it is damaged or is something else.
    """
    with _translated(path):
        connection = await _connect(f"file:{path}?mode=ro", uri=True)
        try:
            if await _version(connection, path, schema) < len(schema.steps):
                raise Usage(f"{path} was written by an older civicsky; its service brings it up when it starts next")
            await _prepare(connection)
        except BaseException:
            await connection.close()
            raise
        return Database(connection, path)


@asynccontextmanager
async def reading(path: Path, schema: Schema) -> AsyncIterator[Database]:
    """A reader for a while; when its user is cancelled, the query under way is given up. Errors as in `open_reader`."""
    database = await open_reader(path, schema)
    try:
        yield database
    except asyncio.CancelledError:
        await database.interrupt()
        raise
    finally:
        await database.close()


async def defects(database: Database, *, thorough: bool) -> list[str]:
    """What SQLite finds wrong with a file, a few at most; `thorough` compares the indexes with their tables, too."""
    found = await database.rows(f"PRAGMA {'integrity_check' if thorough else 'quick_check'}(3)")
    return [str(text) for (text,) in found if text != "ok"]


async def rows(connection: Connection, sql: str, values: Sequence[Any] = ()) -> list[Any]:
    """All rows of a query, inside a transaction."""
    return list(await connection.execute_fetchall(sql, values))  # at once: each step is a journey to its thread


async def rows_by_key(connection: Connection, sql: str, keys: Iterable[tuple[str, str]]) -> list[Any]:
    """As `Database.rows_by_key`, inside a transaction."""
    found: list[Any] = []
    wanted = list(keys)
    for at in range(0, len(wanted), _KEYS_A_QUERY):
        part = wanted[at : at + _KEYS_A_QUERY]
        # Not `IN (VALUES ...)` itself: with two rows or more SQLite then reads the whole table.
        marks = f"SELECT * FROM (VALUES {','.join(['(?,?)'] * len(part))})"
        found += await rows(connection, sql.format(keys=marks), [item for key in part for item in key])
    return found


async def write_many(connection: Connection, sql: str, many: Iterable[Sequence[Any]]) -> None:
    """Write many rows, inside a transaction, with a statement that ends in `... VALUES {rows} ...`; no two of one key.

    As `executemany`, which gives up and takes back the interpreter's lock at every row: here it is free meanwhile.
    """
    rest = list(many)
    for at in range(0, len(rest), _ROWS_A_STATEMENT):
        part = rest[at : at + _ROWS_A_STATEMENT]
        marks = "(" + ",".join("?" * len(part[0])) + ")"
        values = [value for row in part for value in row]
        await connection.execute(sql.format(rows=",".join([marks] * len(part))), values)


class _translated:  # noqa: N801  (used as a statement)
    """SQLite's errors on a file of ours, as one line with the remedy."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Raise the error's translation, if it is SQLite's."""
        if isinstance(error, sqlite3.Error):
            raise explain(error, self._path) from error


def explain(error: sqlite3.Error, path: Path) -> Failed | Usage:
    """What to tell the user of an error that SQLite gave."""
    text = str(error)
    if "disk is full" in text or "disk I/O" in text:
        return Failed(f"{path}: {text}; nothing is lost: make room on the disk and start again")
    if "malformed" in text or "not a database" in text:
        return Failed(f"{path} is damaged ({text}); restore a backup or move the file away, and start again")
    if "unable to open" in text or "readonly" in text:
        return Usage(
            f"{path} cannot be opened ({text}); look at the folder and its permissions, or name another --data-dir"
        )
    return Failed(f"{path}: {text}")


async def _connect(name: str | Path, *, uri: bool = False) -> Connection:
    connection = Connection(partial(sqlite3.connect, name, uri=uri, isolation_level=None), iter_chunk_size=64)
    await connection
    return connection


def _whole(do: Callable[[sqlite3.Connection], T], name: str | None, connection: sqlite3.Connection) -> T:
    """One write transaction, in the connection's thread."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        result = do(connection)
        if name:
            faults.point(_BEFORE[name])
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    if name:
        faults.point(_AFTER[name])
    return result


async def _prepare(connection: Connection) -> None:
    await connection.execute("PRAGMA secure_delete=ON")
    await connection.execute(_BUSY_TIMEOUT)
    await connection.execute("PRAGMA temp_store=MEMORY")
    await connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")


async def _version(connection: Connection, path: Path, schema: Schema) -> int:
    """The format of a database, 0 for a new one. Raises `Usage` or `Failed` when it is not for us; changes nothing."""
    ((version,),) = await rows(connection, "PRAGMA user_version")
    ((owner,),) = await rows(connection, "PRAGMA application_id")
    ((tables,),) = await rows(connection, "SELECT count(*) FROM sqlite_schema")
    if owner != schema.application_id and (owner or tables):
        raise Failed(f"{path} is not the civicsky database that its name says; move it away and start again")
    if version > len(schema.steps):
        raise Usage(f"{path} was written by a newer civicsky (format {version}); upgrade civicsky")
    return int(version)


async def _upgrade(connection: Connection, path: Path, schema: Schema) -> None:
    """Make the tables, or bring them up: all steps in one transaction, and before them a copy of what was there."""
    began = monotonic()
    await connection.execute("BEGIN IMMEDIATE")
    try:
        ((version,),) = await rows(connection, "PRAGMA user_version")  # somebody may have been faster
        if version:
            log.event("upgrading", file=path.name, was=version, to=len(schema.steps), mb=await _megabytes(connection))
            kept = await asyncio.to_thread(_keep, path, version)
            faults.point("upgrade.kept")
        for step in schema.steps[version:]:
            for statement in _statements(step):
                await connection.execute(statement)
        await connection.execute(f"PRAGMA application_id={schema.application_id}")
        await connection.execute(f"PRAGMA user_version={len(schema.steps)}")
        if version:
            faults.point("upgrade.commit")
        await connection.execute("COMMIT")
    except BaseException:
        await connection.rollback()
        raise
    if version:
        seconds = round(monotonic() - began, 1)
        log.event("upgraded", file=path.name, was=version, to=len(schema.steps), seconds=seconds, kept=str(kept))


async def _megabytes(connection: Connection) -> float:
    ((pages,),), ((size,),) = [await rows(connection, f"PRAGMA {name}") for name in ("page_count", "page_size")]
    return round(float(pages * size / 1e6), 1)


def _keep(path: Path, version: int) -> Path:
    """Leave a copy of a database as it is, in the place of an earlier one of the same format; nobody writes meanwhile.

    Raises `Failed` when there is no room for it, and for the upgrade, which may write every page once more.
    """
    folder, name = path.parent / UPGRADES, f"{path.stem}-v{version}-"
    kept = folder / f"{name}{datetime.now(UTC):{UPGRADE_STAMP}}.db"
    half = folder / f".{path.stem}.half"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        half.unlink(missing_ok=True)  # of a start that was killed
        with closing(copies.reading(path)) as source:
            copies.want_room(folder, 2 * copies.size_of(source) + _MARGIN, f"to bring up {path} and keep a copy of it")
            copies.write(source, half, lambda _done, _total: None)
        half.replace(kept)
        copies.synced(folder)
        for former in folder.glob(f"{name}*.db"):
            if former != kept:
                former.unlink()
    except OSError as error:
        raise Failed(f"{error.filename or folder}: {error.strerror}; {path} was not brought up: mend it") from None
    return kept


def _statements(step: str) -> Iterator[str]:
    """One after the other: a script would commit what is under way. A trigger is one, with all that it does."""
    statement = ""
    for part in step.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
