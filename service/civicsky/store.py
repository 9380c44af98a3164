"""What users read: MongoDB, or a SQLite file of the same documents. The one home of motor.

Contract of both: `put` replaces each document whose stored `v` is smaller, adds those that are new, and leaves alone
those that are not newer; each document is its own success or failure. A store never resurrects what `v` has passed.

Motor is past its end of life (critical fixes until May 2027). PyMongo's own `AsyncMongoClient` has the same calls:
the change would be the import, the class's name, and nothing outside this file.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol

from civicsky.document import TIMES, Document
from civicsky.errors import Refused, Transient, Usage
from civicsky.model import format_time
from civicsky.settings import Store as StoreSettings
from civicsky.sqlite import Connection, Database, Schema, open_writer, rows

Collection = Literal["posts", "labels", "snapshots", "authors", "runs", "coverage", "hours"]
_IDS_A_QUERY: Final = 500
_PAGE: Final = 1000
_BRIEF: Final = ("_id", "cid", "rev", "state", "event_at")
"""What `Store.by_time` gives of a post."""
_SYNTAX: Final = frozenset({"mongodb://", "mongodb+srv://", ":", "[", "]", "&", ";"})
"""What is quoted in complaints about a connection string, and is no piece of one."""
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class Put(NamedTuple):
    """What became of the documents of one `put`."""

    written: int
    stale: int
    """The store has a newer version."""
    refused: dict[str, str]
    """`_id` -> why the store cannot hold it."""
    duplicate: int = 0
    """The store has this very version: it was written before."""


class Store(Protocol):
    """Both stores."""

    where: str
    """For people: the path or address, without secrets."""

    async def put(self, collection: Collection, documents: Sequence[Document], *, only_existing: bool = False) -> Put:
        """Write documents (each with `_id` and `v`); with `only_existing`, replace but never add.

        Raises `Transient` when the store cannot be reached, `Refused` when it will not have us.
        """
        ...

    async def change(self, collection: Collection, changes: Sequence[Document]) -> dict[str, str]:
        """Set the given fields of documents that are there in an older version (each with `_id` and `v`).

        Gives what was refused, and why. Errors as for `put`.
        """
        ...

    async def remove(self, collection: Collection, uris: Sequence[str]) -> None:
        """Remove all documents whose `uri` is one of these. Errors as for `put`."""
        ...

    def documents(self, collection: Collection) -> AsyncIterator[Document]:
        """All documents of a collection, in the order of their ids, times as RFC 3339 strings."""
        ...

    def by_time(self, since: str, until: str, *, labelled: bool = False) -> AsyncIterator[Document]:
        """The posts that are not deleted and whose `event_at` is `since` or later, and before `until`.

        In the order of `event_at`, each with `_id`, `cid`, `rev`, `state` and `event_at` only; times are RFC 3339
        strings as `format_time` gives them. With `labelled` those alone that are live and have a label. A page of
        1,000 is in memory at a time; somebody may write meanwhile. Errors as for `documents`.
        """
        ...

    async def find(self, collection: Collection, ids: Sequence[str]) -> list[Document]:
        """The documents with these ids, times as RFC 3339 strings; in no order, each once, missing ones left out.

        It asks for 500 at a time; all that is found is held in memory. Errors as for `documents`.
        """
        ...

    async def of_posts(self, collection: Collection, uris: Sequence[str]) -> list[Document]:
        """The documents of these posts: those whose `uri` is one of these, in the order of `uri` and then of `_id`.

        Times are RFC 3339 strings. It asks for 500 posts at a time; all that is found is held in memory. Errors as
        for `documents`.
        """
        ...

    async def count(self, collection: Collection) -> int:
        """How many documents a collection has, for a progress bar: it may be a little off while somebody writes."""
        ...

    async def close(self) -> None:
        """Release the file or connection."""
        ...


# ---- SQLite ----------------------------------------------------------------------------------------------------------

_VIEW: Final = """
CREATE VIEW civic AS SELECT _id AS uri, text, event_at,
  doc ->> '$.labels.civic.fields.civic.value' AS civic,
  doc ->> '$.labels.civic.fields.civic.probability' AS probability,
  doc ->> '$.labels.civic.fields.lean.value' AS lean, doc ->> '$.labels.civic.fields.us_politics.value' AS us_politics,
  doc ->> '$.labels.civic.model' AS model, state
  FROM posts WHERE doc ->> '$.labels.civic.fields.civic.value' IS NOT NULL;
"""
SCHEMA: Final = Schema(
    0x63737933,  # "csy3"
    (
        "".join(
            f"CREATE TABLE {name} (_id TEXT PRIMARY KEY, v INTEGER NOT NULL, doc TEXT NOT NULL"
            + "".join(f", {column} TEXT AS (doc ->> '$.{column}') VIRTUAL" for column in columns)
            + ");"
            for name, columns in {
                "posts": ("did", "state", "text", "event_at", "created_at", "reply_root", "reply_parent", "quote_uri"),
                "labels": ("uri", "task", "model", "at"),
                "runs": ("started",),
                "coverage": ("host", "kind"),
            }.items()
        )
        + "CREATE INDEX posts_by_author ON posts (did);CREATE INDEX posts_by_time ON posts (event_at);"
        + "CREATE INDEX labels_by_post ON labels (uri);"
        + _VIEW,
        "".join(
            f"CREATE TABLE {name} (_id TEXT PRIMARY KEY, v INTEGER NOT NULL, doc TEXT NOT NULL"
            + "".join(f", {column} TEXT AS (doc ->> '$.{column}') VIRTUAL" for column in columns)
            + ");"
            for name, columns in {"snapshots": ("uri", "at", "why"), "authors": ("did", "handle"), "hours": ()}.items()
        )
        + "CREATE INDEX snapshots_by_post ON snapshots (uri);",
    ),
)


class SqliteStore:
    """posts.db: one table a collection, the document as JSON in `doc`, and the view `civic` for quick questions."""

    def __init__(self, database: Database, path: Path) -> None:
        self._db = database
        self.where = str(path)

    @classmethod
    async def open(cls, path: Path) -> "SqliteStore":
        """Open or make the file. Errors as in `sqlite.open_writer`."""
        # FULL, since the ledger counts on what was written here.
        return cls(await open_writer(path, SCHEMA, synchronous="FULL"), path)

    async def put(self, collection: Collection, documents: Sequence[Document], *, only_existing: bool = False) -> Put:
        """See `Store.put`."""
        sql = (
            f"UPDATE {collection} SET v = ?2, doc = ?3 WHERE _id = ?1 AND v < ?2"
            if only_existing
            else f"INSERT INTO {collection} (_id, v, doc) VALUES (?1,?2,?3) "
            "ON CONFLICT DO UPDATE SET v = excluded.v, doc = excluded.doc WHERE v < excluded.v"
        )
        if not documents:
            return Put(0, 0, {})
        async with self._db.transaction() as db:
            written, duplicate = await _outcomes(db, collection, documents, only_existing=only_existing)
            await db.executemany(
                sql,
                [
                    (document["_id"], document["v"], json.dumps(document, ensure_ascii=False, separators=(",", ":")))
                    for document in documents
                ],
            )
        if any(document.get("state") == "deleted" for document in documents):
            await self._db.truncate_log()
        return Put(written, len(documents) - written - duplicate, {}, duplicate)

    async def change(self, collection: Collection, changes: Sequence[Document]) -> dict[str, str]:
        """See `Store.change`."""
        if not changes:
            return {}
        async with self._db.transaction() as db:
            for change in changes:
                # json_patch would merge `labels` into what is there; a label that is gone must go.
                old = await rows(
                    db, f"SELECT doc FROM {collection} WHERE _id = ? AND v < ?", (change["_id"], change["v"])
                )
                for (doc,) in old:
                    packed = json.dumps({**json.loads(doc), **change}, ensure_ascii=False, separators=(",", ":"))
                    await db.execute(
                        f"UPDATE {collection} SET v = ?, doc = ? WHERE _id = ?", (change["v"], packed, change["_id"])
                    )
        return {}

    async def remove(self, collection: Collection, uris: Sequence[str]) -> None:
        """See `Store.remove`."""
        if uris:
            async with self._db.transaction() as db:
                await db.executemany(f"DELETE FROM {collection} WHERE uri = ?", [(uri,) for uri in uris])

    async def documents(self, collection: Collection) -> AsyncIterator[Document]:
        """See `Store.documents`."""
        after = ""
        while page := await self._db.rows(
            f"SELECT _id, doc FROM {collection} WHERE _id > ? ORDER BY _id LIMIT 1000", (after,)
        ):
            for after, packed in page:  # noqa: B007  (the last id is where the next page begins)
                yield json.loads(packed)

    async def by_time(self, since: str, until: str, *, labelled: bool = False) -> AsyncIterator[Document]:
        """See `Store.by_time`."""
        which = "state = 'live' AND doc ->> '$.labels' <> '{}'" if labelled else "state <> 'deleted'"
        columns = ", ".join(f"doc ->> '$.{name}'" for name in _BRIEF)
        after = ""
        while page := await self._db.rows(
            f"SELECT {columns} FROM posts WHERE event_at >= ?1 AND event_at < ?2 AND (event_at, _id) > (?1, ?3) "
            f"AND {which} ORDER BY event_at, _id LIMIT {_PAGE}",
            (since, until, after),
        ):
            for row in page:
                document = dict(zip(_BRIEF, row, strict=True))
                since, after = document["event_at"], document["_id"]
                yield document

    async def find(self, collection: Collection, ids: Sequence[str]) -> list[Document]:
        """See `Store.find`."""
        found: list[Document] = []
        for part in _parts(ids):
            marks = ",".join("?" * len(part))
            packed = await self._db.rows(f"SELECT doc FROM {collection} WHERE _id IN ({marks})", part)
            found += [json.loads(doc) for (doc,) in packed]
        return found

    async def of_posts(self, collection: Collection, uris: Sequence[str]) -> list[Document]:
        """See `Store.of_posts`."""
        found: list[Document] = []
        for part in _parts(uris):
            marks = ",".join("?" * len(part))
            packed = await self._db.rows(f"SELECT doc FROM {collection} WHERE uri IN ({marks})", part)
            found += [json.loads(doc) for (doc,) in packed]
        return sorted(found, key=_by_post)

    async def count(self, collection: Collection) -> int:
        """See `Store.count`."""
        ((n,),) = await self._db.rows(f"SELECT count(*) FROM {collection}")
        return int(n)

    async def close(self) -> None:
        """Release the file."""
        await self._db.close()


async def _outcomes(
    db: Connection, collection: Collection, documents: Sequence[Document], *, only_existing: bool
) -> tuple[int, int]:
    """How many of these a `put` will write, and how many are there in this very version; in its transaction."""
    there: dict[str, int] = {}
    for part in _parts([document["_id"] for document in documents]):
        marks = ",".join("?" * len(part))
        there |= dict(await rows(db, f"SELECT _id, v FROM {collection} WHERE _id IN ({marks})", part))
    written = duplicate = 0
    for document in documents:
        name, v = document["_id"], document["v"]
        if there.get(name, -1) < v and (name in there or not only_existing):
            written += 1
            there[name] = v
        else:
            duplicate += there.get(name) == v
    return written, duplicate


# ---- MongoDB ---------------------------------------------------------------------------------------------------------

_DUPLICATE: Final = 11000
_UNAUTHORIZED: Final = frozenset({13, 18, 8000, 8003})
"""Unauthorized, AuthenticationFailed, AtlasError."""
_QUOTA: Final = "quota"
_UNFIT: Final = frozenset({2, 14, 22, 52, 56, 57, 121, 10334, 17280})
"""Codes that are about the document itself: BadValue, TypeMismatch, InvalidBSON, names of fields, DocumentValidation,
too large. Any other failure of a write may pass."""


class MongoStore:
    """A MongoDB database: one collection each, times as dates, indexes on author, time, reply and quote."""

    def __init__(self, settings: StoreSettings) -> None:
        from pymongo.errors import PyMongoError  # noqa: PLC0415
        from pymongo.uri_parser import parse_uri  # noqa: PLC0415

        self._uri = settings.mongo_uri.get_secret_value()
        self._settings, self._ready = settings, False
        self._client: Any = None
        if not self._uri:
            raise Refused("store: MongoDB was chosen but store.mongo_uri is empty; set CIVICSKY_STORE__MONGO_URI")
        if self._uri.startswith("mongodb+srv://"):
            hosts = self._uri.rpartition("@")[2].removeprefix("mongodb+srv://").partition("/")[0]
        else:
            try:
                hosts = ",".join(f"{host}:{port}" for host, port in parse_uri(self._uri)["nodelist"])
                self._connect()
            except (PyMongoError, ValueError) as error:
                why = _unquoted(_brief(error, self._uri), self._uri)
                raise Refused(f"store: store.mongo_uri is not a MongoDB connection string ({why})") from None
        self.where = f"{hosts}/{settings.mongo_database}"

    def _connect(self) -> Any:
        """The database. An address with `+srv` is looked up in the DNS here, so this may have to be tried again."""
        from motor.motor_asyncio import AsyncIOMotorClient  # noqa: PLC0415  (0.3 s that the SQLite store need not pay)

        if self._client is None:
            milliseconds = int(self._settings.timeout_seconds * 1000)
            self._client = AsyncIOMotorClient(
                self._uri,
                w="majority",
                journal=True,
                retryWrites=True,
                serverSelectionTimeoutMS=milliseconds,
                connectTimeoutMS=milliseconds,
                socketTimeoutMS=milliseconds * 6,
                wTimeoutMS=milliseconds * 3,
                appname="civicsky",
                tz_aware=True,
            )
        return self._client[self._settings.mongo_database]

    async def put(self, collection: Collection, documents: Sequence[Document], *, only_existing: bool = False) -> Put:
        """See `Store.put`."""
        from bson.errors import InvalidDocument  # noqa: PLC0415
        from pymongo import ReplaceOne  # noqa: PLC0415
        from pymongo.errors import BulkWriteError, DocumentTooLarge, PyMongoError  # noqa: PLC0415

        if not documents:
            return Put(0, 0, {})
        requests = [
            ReplaceOne({"_id": doc["_id"], "v": {"$lt": doc["v"]}}, _with_dates(doc), upsert=not only_existing)
            for doc in documents
        ]
        try:
            database = self._connect()
            await self._prepare(database)
            result = await database[collection].bulk_write(requests, ordered=False)
        except BulkWriteError as error:
            put, behind = self._sort_out(documents, error.details)
            put = put._replace(duplicate=await self._same(database[collection], behind))
            put = put._replace(stale=put.stale - put.duplicate)
            return await self._remove_refused_tombstones(database[collection], documents, put)
        except (InvalidDocument, DocumentTooLarge, OverflowError, UnicodeEncodeError) as error:
            return await self._bisect(collection, documents, str(error), only_existing=only_existing)
        except PyMongoError as error:
            raise self._translated(error) from None
        written = result.upserted_count + result.matched_count
        return Put(written, len(documents) - written, {})

    async def change(self, collection: Collection, changes: Sequence[Document]) -> dict[str, str]:
        """See `Store.change`."""
        from pymongo import UpdateOne  # noqa: PLC0415
        from pymongo.errors import BulkWriteError, PyMongoError  # noqa: PLC0415

        if not changes:
            return {}
        requests = [
            UpdateOne({"_id": one["_id"], "v": {"$lt": one["v"]}}, {"$set": _with_dates(one)}) for one in changes
        ]
        try:
            await self._connect()[collection].bulk_write(requests, ordered=False)
        except BulkWriteError as error:
            return self._sort_out(changes, error.details)[0].refused
        except PyMongoError as error:
            raise self._translated(error) from None
        return {}

    async def remove(self, collection: Collection, uris: Sequence[str]) -> None:
        """See `Store.remove`."""
        from pymongo.errors import PyMongoError  # noqa: PLC0415

        try:
            for part in _parts(uris):
                await self._connect()[collection].delete_many({"uri": {"$in": part}})
        except PyMongoError as error:
            raise self._translated(error) from None

    async def check(self) -> None:
        """Find out whether we may write, by a change of nothing. Errors as for `Store.put`."""
        from pymongo.errors import PyMongoError  # noqa: PLC0415

        try:
            await self._connect()["posts"].update_one({"_id": {"$in": []}}, {"$set": {"v": 0}})
        except PyMongoError as error:
            raise self._translated(error) from None

    async def documents(self, collection: Collection) -> AsyncIterator[Document]:
        """See `Store.documents`."""
        from pymongo.errors import PyMongoError  # noqa: PLC0415

        try:
            async for document in self._connect()[collection].find().sort("_id", 1):
                yield _with_strings(document)
        except PyMongoError as error:
            raise self._translated(error) from None

    async def by_time(self, since: str, until: str, *, labelled: bool = False) -> AsyncIterator[Document]:
        """See `Store.by_time`."""
        which = {"state": "live", "labels": {"$ne": {}}} if labelled else {"state": {"$ne": "deleted"}}
        same: list[str] = []  # of the time at which the last page ended
        while page := await self._page(since, until, {**which, "_id": {"$nin": same}}):
            last = page[-1]["event_at"]
            same = [one["_id"] for one in page if one["event_at"] == last] + (same if last == since else [])
            since = last
            for document in page:
                yield document

    async def _page(self, since: str, until: str, which: Document) -> list[Document]:
        """A page of posts, the oldest first. Sorted by the index alone: it never holds more than the page."""
        from pymongo.errors import PyMongoError  # noqa: PLC0415

        when = {"event_at": {"$gte": datetime.fromisoformat(since), "$lt": datetime.fromisoformat(until)}}
        try:
            found = self._connect()["posts"].find({**when, **which}, dict.fromkeys(_BRIEF, 1))
            return [_with_strings(document) async for document in found.sort("event_at", 1).limit(_PAGE)]
        except PyMongoError as error:
            raise self._translated(error) from None

    async def find(self, collection: Collection, ids: Sequence[str]) -> list[Document]:
        """See `Store.find`."""
        from pymongo.errors import PyMongoError  # noqa: PLC0415

        found: list[Document] = []
        try:
            for part in _parts(ids):
                async for document in self._connect()[collection].find({"_id": {"$in": part}}):
                    found.append(_with_strings(document))
        except PyMongoError as error:
            raise self._translated(error) from None
        return found

    async def of_posts(self, collection: Collection, uris: Sequence[str]) -> list[Document]:
        """See `Store.of_posts`."""
        from pymongo.errors import PyMongoError  # noqa: PLC0415

        found: list[Document] = []
        try:
            for part in _parts(uris):
                async for document in self._connect()[collection].find({"uri": {"$in": part}}):
                    found.append(_with_strings(document))
        except PyMongoError as error:
            raise self._translated(error) from None
        return sorted(found, key=_by_post)

    async def count(self, collection: Collection) -> int:
        """See `Store.count`."""
        from pymongo.errors import PyMongoError  # noqa: PLC0415

        try:
            return int(await self._connect()[collection].estimated_document_count())
        except PyMongoError as error:
            raise self._translated(error) from None

    async def close(self) -> None:
        """Release the connections."""
        if self._client is not None:
            self._client.close()

    async def _prepare(self, database: Any) -> None:
        """Make the indexes, once; it also shows whether we may write."""
        if self._ready:
            return
        posts = database["posts"]
        for name in ("did", "event_at", "state", "reply_root", "reply_parent", "quote_uri"):
            await posts.create_index(name)
        await database["labels"].create_index("uri")
        await database["snapshots"].create_index("uri")
        self._ready = True

    async def _bisect(
        self, collection: Collection, documents: Sequence[Document], why: str, *, only_existing: bool
    ) -> Put:
        """Find the documents that BSON cannot hold, without losing the others."""
        if len(documents) == 1:
            return Put(0, 0, {documents[0]["_id"]: why[:200]})
        middle = len(documents) // 2
        left = await self.put(collection, documents[:middle], only_existing=only_existing)
        right = await self.put(collection, documents[middle:], only_existing=only_existing)
        return Put(
            left.written + right.written,
            left.stale + right.stale,
            left.refused | right.refused,
            left.duplicate + right.duplicate,
        )

    async def _remove_refused_tombstones(self, collection: Any, documents: Sequence[Document], put: Put) -> Put:
        """A rule of the user's (a validator) may refuse a tombstone: then the deleted text must go all the same."""
        gone = {
            doc["_id"]: doc["v"] for doc in documents if doc.get("state") == "deleted" and doc["_id"] in put.refused
        }
        for name, v in gone.items():
            await collection.delete_one({"_id": name, "v": {"$lt": v}})
        left = {name: why for name, why in put.refused.items() if name not in gone}
        return put._replace(written=put.written + len(gone), refused=left)

    async def _same(self, collection: Any, documents: Sequence[Document]) -> int:
        """How many of these documents are in the store in this very version."""
        from pymongo.errors import PyMongoError  # noqa: PLC0415

        versions = {document["_id"]: document["v"] for document in documents}
        n = 0
        try:
            for part in _parts(list(versions)):
                async for found in collection.find({"_id": {"$in": part}}, {"v": 1}):
                    n += found["v"] == versions[found["_id"]]
        except PyMongoError as error:
            raise self._translated(error) from None
        return n

    def _sort_out(self, documents: Sequence[Document], details: Any) -> tuple[Put, list[Document]]:
        """Part of an unordered write failed; what became of it, and the documents that were not newer.

        A duplicate key means that the store has a version as new as ours.
        """
        behind: list[Document] = []
        refused: dict[str, str] = {}
        for failure in details.get("writeErrors", []):
            code = failure.get("code")
            if code == _DUPLICATE:
                behind.append(documents[failure["index"]])
            elif code in _UNAUTHORIZED or _QUOTA in str(failure.get("errmsg", "")).lower():
                raise Refused(f"store: MongoDB at {self.where} refuses to write: {failure.get('errmsg')}"[:300])
            elif code in _UNFIT:
                refused[documents[failure["index"]]["_id"]] = str(failure.get("errmsg"))[:200]
            else:
                raise Transient(f"MongoDB at {self.where} could not write: code {code}")
        if details.get("writeConcernErrors"):
            # Written, but not yet known to be safe: the same write again will say "stale" when it was.
            raise Transient(f"MongoDB at {self.where} did not confirm a write in time")
        return Put(len(documents) - len(behind) - len(refused), len(behind), refused), behind

    def _translated(self, error: Exception) -> Exception:
        from pymongo.errors import ConfigurationError, OperationFailure  # noqa: PLC0415

        text = _brief(error, self._uri)
        code = getattr(error, "code", None)
        if isinstance(error, ConfigurationError) and "DNS" in text:
            return Transient(f"MongoDB at {self.where} cannot be looked up: {text}")
        if isinstance(error, ConfigurationError):
            return Refused(f"store: store.mongo_uri cannot be used: {text}")
        if isinstance(error, OperationFailure) and (code in _UNAUTHORIZED or _QUOTA in text.lower()):
            what = "the user name or password is wrong" if code in {18, 8000} else "the user may not write there"
            return Refused(
                f"store: MongoDB at {self.where} refuses us: {what} (code {code}); "
                "mend CIVICSKY_STORE__MONGO_URI or the user's rights, and start again"
            )
        return Transient(f"MongoDB at {self.where} cannot be reached: {text}")


def _brief(error: Exception, uri: str) -> str:
    """The first part of an error, which must never carry the connection string or its password."""
    text = str(error).split(", Timeout:")[0].split(", full error")[0].replace(uri, "the connection string")
    password = uri.partition("://")[2].rpartition("@")[0].partition(":")[2]
    return (text.replace(password, "***") if password else text)[:200]


def _unquoted(text: str, uri: str) -> str:
    """A complaint about a connection string without its pieces: half a password may be taken for a host or a name."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"", lambda found: found[0] if found[0][1:-1] in _SYNTAX else "***", text)
    head, colon, tail = text.rpartition(": ")
    return f"{head}: ***" if colon and tail in uri else text


def _with_dates(document: Document) -> Document:
    return {key: _dated(key, value) for key, value in document.items()}


def _dated(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return _with_dates(value)
    if isinstance(value, list):
        return [_dated("", item) for item in value]
    return datetime.fromisoformat(value) if key in TIMES and isinstance(value, str) else value


def _with_strings(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_strings(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_strings(item) for item in value]
    if isinstance(value, datetime):
        return format_time(round(value.astimezone(UTC).timestamp() * 1000) * 1000)
    return value


def _by_post(document: Document) -> tuple[str, str]:
    return str(document["uri"]), str(document["_id"])


def _parts(ids: Sequence[str]) -> Iterator[list[str]]:
    """Ids for one query each, every id once. What is no Unicode text can be no store's id, and no query may hold it."""
    sound = [name for name in dict.fromkeys(ids) if not _SURROGATE.search(name)]
    for at in range(0, len(sound), _IDS_A_QUERY):
        yield sound[at : at + _IDS_A_QUERY]


async def open_store(settings: StoreSettings, path: Path) -> Store:
    """The store that the settings choose; `path` is the SQLite store's file. MongoDB is not contacted yet."""
    return MongoStore(settings) if settings.chosen == "mongo" else await SqliteStore.open(path)


async def open_existing(settings: StoreSettings, path: Path) -> Store:
    """The same, for who only reads it. Raises `Usage` when it is a file that is not there."""
    if settings.chosen == "sqlite" and not path.is_file():
        raise Usage(f"there is no store {path}; name its folder with --data-dir, or MongoDB with --store mongo")
    return await open_store(settings, path)
