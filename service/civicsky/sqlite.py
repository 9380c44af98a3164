"""How our SQLite files are opened, written and read; the one home of aiosqlite.

Each file has one frequent writer. Write-ahead log; `secure_delete`, so that a deleted text cannot be read from the
file's free pages; incremental vacuum, so that pruning can give space back.
"""

import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import aiosqlite

from civicsky import faults
from civicsky.errors import Failed, Usage

Connection = aiosqlite.Connection
_KEYS_A_QUERY = 500


class Schema(NamedTuple):
    """One database's tables. `steps[i]` brings version i to version i + 1."""

    application_id: int
    steps: Sequence[str]


async def open_writer(path: Path, schema: Schema, *, synchronous: Literal["NORMAL", "FULL"]) -> Connection:
    """Open a database for writing, making or upgrading its tables.

    Raises `Usage` when it belongs to a newer civicsky, `Failed` when it is damaged or is something else.
    """
    with translated(path):
        connection = await aiosqlite.connect(path, isolation_level=None)
        try:
            # Both must stand before the first table is made.
            await connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            await connection.execute("PRAGMA journal_mode=WAL")
            await connection.execute(f"PRAGMA synchronous={synchronous}")
            await _prepare(connection)
            await _upgrade(connection, path, schema)
        except BaseException:
            await connection.close()
            raise
    path.chmod(0o600)
    return connection


async def open_reader(path: Path) -> Connection:
    """Open a database that another connection writes. It cannot write."""
    with translated(path):
        connection = await aiosqlite.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
        await _prepare(connection)
        return connection


@asynccontextmanager
async def transaction(connection: Connection, place: faults.Place) -> AsyncIterator[None]:
    """One write transaction, whole or not at all; `place` names its crash point just before the commit."""
    await connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        faults.point(place)
        await connection.commit()
    except BaseException:
        await connection.rollback()
        raise


async def rows(connection: Connection, sql: str, values: Sequence[Any] = ()) -> list[Any]:
    """All rows of a query."""
    async with connection.execute(sql, values) as cursor:
        return list(await cursor.fetchall())


async def rows_by_key(
    connection: Connection, sql: str, keys: Iterable[tuple[str, str]], values: Sequence[Any] = ()
) -> list[Any]:
    """All rows of a query that ends in `... IN (VALUES {keys})`, for any number of (rkey, did) pairs."""
    found: list[Any] = []
    wanted = list(keys)
    for at in range(0, len(wanted), _KEYS_A_QUERY):
        part = wanted[at : at + _KEYS_A_QUERY]
        marks = ",".join(["(?,?)"] * len(part))
        flat = [item for key in part for item in key]
        found += await rows(connection, sql.format(keys=marks), [*values, *flat])
    return found


class translated:  # noqa: N801  (used as a statement)
    """SQLite's errors on a file of ours, as one line with the remedy."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
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
    if "unable to open" in text:
        return Usage(f"{path} cannot be opened; look at the folder and its permissions, or name another --data-dir")
    return Failed(f"{path}: {text}")


async def _prepare(connection: Connection) -> None:
    await connection.execute("PRAGMA secure_delete=ON")
    await connection.execute("PRAGMA busy_timeout=30000")
    await connection.execute("PRAGMA temp_store=MEMORY")


async def _upgrade(connection: Connection, path: Path, schema: Schema) -> None:
    ((version,),) = await rows(connection, "PRAGMA user_version")
    ((owner,),) = await rows(connection, "PRAGMA application_id")
    ((tables,),) = await rows(connection, "SELECT count(*) FROM sqlite_schema")
    if owner != schema.application_id and (owner or tables):
        raise Failed(f"{path} is not the civicsky database that its name says; move it away and start again")
    if version > len(schema.steps):
        raise Usage(f"{path} was written by a newer civicsky (format {version}); upgrade civicsky")
    for number in range(version, len(schema.steps)):
        # executescript commits first, so the transaction is part of the script.
        await connection.executescript(
            f"BEGIN IMMEDIATE;{schema.steps[number]};"
            f"PRAGMA application_id={schema.application_id};PRAGMA user_version={number + 1};COMMIT"
        )
