"""The articles' own database: each kept once, found by keyword and by vector; the one home of apsw and sqlite-vec.

apsw carries a SQLite of its own, which can always load an extension. That of Python often cannot: pyenv's, and those
of macOS, are built without. All here is derived from the folder, but for summaries, which were paid for.

One instance a file, one call at a time. Calls block for milliseconds: they are made in threads.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from civicsky.embedding import ARTICLES, Embedding
from civicsky.errors import Failed, Usage
from civicsky.events.articles import Article
from civicsky.events.finding import Bounds, Hit, Terms, is_named
from civicsky.events.tables import SCHEMA, VECTORS
from civicsky.model import Spend, now_us

if TYPE_CHECKING:
    import apsw

MAX_ARTICLES: Final = 20_000
"""Kept at most: some 100 MB, and 30 ms a search. What is beyond is left out and told."""
CANDIDATES: Final = 64
"""Articles that a search looks at, by vector and by keyword each."""
SAME_EVENT: Final = 0.55
"""Cosine distance up to which two articles are about the same event: of 16 made-up pairs all were below 0.48, and of
480 pairs of different events none below 0.64."""
SAME_EVENT_US: Final = 14 * 24 * 3_600_000_000
"""And they came out within so many microseconds."""
MAX_TRIES: Final = 3
"""Vain calls for one summary; then its articles' beginnings are taken instead, for good."""


class File(NamedTuple):
    """What is known of an article file."""

    name: str
    size: int
    mtime: int
    """In nanoseconds, as of before it was read."""
    articles: int = 0
    """Lines that are articles, those that were there already among them."""
    doubled: int = 0
    """Of these, those whose article stands in an earlier line, or in another file."""
    bad: int = 0
    left_out: int = 0
    """Articles that there was no room for."""


class Summary(NamedTuple):
    """What a model made of one side's articles about one event."""

    text: str | None
    """None: it made nothing of use so far."""
    articles: tuple[str, ...]
    """Of which ones; their ids."""
    tries: int
    """Vain calls."""


class About(NamedTuple):
    """Which summary: made once for each event and side by a model that is asked in one way."""

    event: int
    side: str
    model: str
    prompt: str


class Index:
    """Open the file with `opened`. Errors of the database come out as `Failed`, with the remedy."""

    def __init__(self, connection: "apsw.Connection", path: Path, embedding: Embedding) -> None:
        self._db, self._path, self._embedding = connection, path, embedding
        self._lock = Lock()

    @classmethod
    def opened(cls, path: Path, embedding: Embedding) -> "Index":
        """Open or make the file. Vectors of another model are thrown away: the folder is read again then.

        Raises `Usage` when the extra is not installed or the file is of a newer civicsky, `Failed` when it is damaged.
        """
        if not all(map(find_spec, ("apsw", "sqlite_vec"))):
            raise Usage(ARTICLES.install)
        import apsw  # noqa: PLC0415  (whoever has no articles does without)
        import sqlite_vec  # noqa: PLC0415

        with _translated(path):
            connection = apsw.Connection(str(path))
            try:
                connection.enable_load_extension(True)
                connection.load_extension(sqlite_vec.loadable_path())
                connection.enable_load_extension(False)
                connection.set_busy_timeout(30_000)
                # FULL: a summary costs money, so it must outlive a power cut.
                for pragma in ("journal_mode=WAL", "synchronous=FULL", "temp_store=MEMORY", "secure_delete=ON"):
                    connection.execute(f"PRAGMA {pragma}").fetchall()
                index = cls(connection, path, embedding)
                index._prepare()
            except BaseException:
                connection.close()
                raise
        path.chmod(0o600)
        return index

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._db.close()

    # ---- the folder ----

    def files(self) -> dict[str, File]:
        """What was read so far, by name."""
        return {row[0]: File(*row) for row in self._rows("SELECT * FROM file")}

    def take(self, file: File, articles: Iterable[tuple[int, Article | None]]) -> File:
        """A file's articles, with their lines, in the place of what the file held before; one transaction.

        None stands for a bad line. Gives the counts. An article that is there already is not kept again; one that
        stands nowhere any more goes.
        """
        with self._transaction():
            self._run("DELETE FROM place WHERE file = ?", (file.name,))
            there = dict(self._run("SELECT id, number FROM article"))
            placed = {number for (number,) in self._run("SELECT DISTINCT article FROM place")}
            whole = doubled = bad = left_out = 0
            for line, article in articles:
                if article is None:
                    bad += 1
                    continue
                number = there.get(article.id)
                if number is None and len(there) >= MAX_ARTICLES:
                    left_out += 1
                    continue
                whole += 1
                doubled += number in placed
                if number is None:
                    number = there[article.id] = self._add(article)
                placed.add(number)
                self._run(
                    "INSERT INTO place VALUES (?,?,?,?,?,?,?)",
                    (file.name, line, number, article.outlet, article.side, article.at, article.url),
                )
            self._settle()
            read = file._replace(articles=whole, doubled=doubled, bad=bad, left_out=left_out)
            self._run("INSERT OR REPLACE INTO file VALUES (?,?,?,?,?,?,?)", read)
        return read

    def drop(self, name: str) -> None:
        """A file is gone, and with it the articles that stand nowhere else."""
        with self._transaction():
            self._run("DELETE FROM place WHERE file = ?", (name,))
            self._run("DELETE FROM file WHERE name = ?", (name,))
            self._settle()

    def size(self) -> int:
        """How many articles there are."""
        return int(self._rows("SELECT count(*) FROM article")[0][0])

    def sides(self) -> frozenset[str]:
        """All that articles are of."""
        return frozenset(side for (side,) in self._rows("SELECT DISTINCT side FROM article"))

    # ---- finding ----

    def hits(self, text: str, wanted: Terms, bounds: Bounds) -> list[Hit]:
        """Articles that may be about what a text is about, within the bounds' distance and times; nearest first.

        By vector the nearest ones, by keyword those that bm25 puts first; of both the distance is known.
        """
        (found,) = self._embedding.vectors([text])
        if not found.any():
            return []  # a text without a word is near to nothing
        vector = found.tobytes()
        with self._lock, _translated(self._path):
            distances = self._nearest(vector, bounds.since, bounds.until, CANDIDATES)
            distances |= self._by_keyword(vector, wanted, bounds)
            near = {number: far for number, far in distances.items() if far <= bounds.distance}
            shared = self._shared(near, wanted)
            rows = self._run(
                "SELECT number, id, title, text, outlet, side, at, event FROM article "
                f"WHERE number IN ({_marks(near)})",
                [*near],
            )
        hits = []
        for number, *article in rows:
            hits.append(Hit._make([*article, near[number], is_named(shared[number], wanted)]))
        return sorted(hits, key=lambda hit: (hit.distance, hit.id))

    def _nearest(self, vector: bytes, since: int, until: int, most: int) -> dict[int, float]:
        return dict(
            self._run(
                "SELECT number, distance FROM vector WHERE embedding MATCH ? AND k = ? AND at BETWEEN ? AND ?",
                (vector, most, since, until),
            )
        )

    def _by_keyword(self, vector: bytes, wanted: Terms, bounds: Bounds) -> dict[int, float]:
        every = [*wanted.names, *wanted.words]
        if not every:
            return {}
        return dict(
            self._run(
                "SELECT number, vec_distance_cosine(embedding, ?) FROM vector WHERE number IN ("
                "SELECT word.rowid FROM word JOIN article ON number = word.rowid "
                "WHERE word MATCH ? AND article.at BETWEEN ? AND ? ORDER BY bm25(word, 4.0, 1.0) LIMIT ?)",
                (vector, " OR ".join(map(_quoted, every)), bounds.since, bounds.until, CANDIDATES),
            )
        )

    def _shared(self, near: Iterable[int], wanted: Terms) -> dict[int, set[str]]:
        """By article the terms that it has."""
        shared: dict[int, set[str]] = {number: set() for number in near}
        for term in [*wanted.names, *wanted.words] if shared else ():
            for (number,) in self._run("SELECT rowid FROM word WHERE word MATCH ?", (_quoted(term),)):
                if number in shared:
                    shared[number].add(term)
        return shared

    # ---- summaries ----

    def summary(self, about: About) -> Summary:
        """What there is."""
        found = self._rows(
            "SELECT text, articles, tries FROM summary WHERE event = ? AND side = ? AND model = ? AND prompt = ?", about
        )
        if not found:
            return Summary(None, (), 0)
        text, articles, tries = found[0]
        return Summary(text, tuple(json.loads(articles or "[]")), tries)

    def keep(self, about: About, text: str | None, articles: Sequence[str], spend: Spend) -> None:
        """An answer, or (None) that there was none of use, with what it cost: on the disk when this returns."""
        with self._transaction():
            self._run(
                "INSERT INTO summary VALUES (?,?,?,?,?,?,?,?) "
                "ON CONFLICT DO UPDATE SET tries = tries + excluded.tries, text = excluded.text, "
                "articles = excluded.articles, at = excluded.at",
                (*about, int(text is None), text, json.dumps(articles), now_us()),
            )
            self._add_spend(spend)

    def keep_spend(self, spend: Spend) -> None:
        """What a call cost that came to nothing, through no fault of its articles."""
        with self._transaction():
            self._add_spend(spend)

    def paid(self, after: int = 0) -> list[tuple[int, Spend]]:
        """What summaries cost, numbered in order, beyond a number."""
        found = self._rows("SELECT number, spend FROM paid WHERE number > ? ORDER BY number", (after,))
        return [(number, Spend(*json.loads(spend))) for number, spend in found]

    # ---- inside ----

    def _prepare(self) -> None:
        with self._transaction():
            ((version,),) = self._run("PRAGMA user_version")
            ((owner,),) = self._run("PRAGMA application_id")
            ((tables,),) = self._run("SELECT count(*) FROM sqlite_schema")
            if owner != SCHEMA.application_id and (owner or tables):
                raise Failed(f"{self._path} is not the civicsky database that its name says; move it away")
            if version > len(SCHEMA.steps):
                raise Usage(f"{self._path} was written by a newer civicsky (format {version}); upgrade civicsky")
            if not version:
                for statement in SCHEMA.steps[0].split(";\n"):
                    self._run(statement)
                self._run(VECTORS.format(width=self._embedding.width))
                self._run(f"PRAGMA application_id={SCHEMA.application_id}")
                self._run(f"PRAGMA user_version={len(SCHEMA.steps)}")
            model = json.dumps(self._embedding.identity)
            known = self._run("SELECT value FROM about WHERE name = 'model'")
            if known and known != [(model,)]:
                for table in ("file", "article", "place", "word", "summary"):
                    self._run(f"DELETE FROM {table}")
                self._run("DROP TABLE vector")
                self._run(VECTORS.format(width=self._embedding.width))
            self._run("INSERT OR REPLACE INTO about VALUES ('model', ?)", (model,))

    def _add(self, article: Article) -> int:
        (found,) = self._embedding.vectors([f"{article.title}. {article.text}"])
        vector = found.tobytes()
        like = self._nearest(vector, article.at - SAME_EVENT_US, article.at + SAME_EVENT_US, 1) if found.any() else {}
        event = None
        for number, distance in like.items():
            if distance <= SAME_EVENT:
                ((event,),) = self._run("SELECT event FROM article WHERE number = ?", (number,))
        self._run(
            "INSERT INTO article (id, title, text, event, outlet, side, at, url) VALUES (?,?,?,?,?,?,?,?)",
            (
                article.id,
                article.title,
                article.text,
                event or 0,
                article.outlet,
                article.side,
                article.at,
                article.url,
            ),
        )
        number = self._db.last_insert_rowid()  # never used again: an event's number is that of its first article
        if event is None:
            self._run("UPDATE article SET event = number WHERE number = ?", (number,))
        self._run("INSERT INTO word (rowid, title, text) VALUES (?,?,?)", (number, article.title, article.text))
        if found.any():
            self._run("INSERT INTO vector VALUES (?,?,?)", (number, vector, article.at))
        return number

    def _add_spend(self, spend: Spend) -> None:
        if spend.calls:
            ((last,),) = self._run("SELECT coalesce(max(number), 0) FROM paid")
            # Numbers are times, so that those of a file that was made anew go on above.
            self._run("INSERT INTO paid VALUES (?,?)", (max(last + 1, now_us()), json.dumps(spend)))

    def _settle(self) -> None:
        """Articles that stand nowhere any more go; of the others the first place says outlet, side and date."""
        for number, name, event in self._run(
            "SELECT number, id, event FROM article WHERE NOT EXISTS (SELECT 1 FROM place WHERE article = number)"
        ):
            for table, column in (("word", "rowid"), ("vector", "number"), ("article", "number")):
                self._run(f"DELETE FROM {table} WHERE {column} = ?", (number,))
            self._run(  # what was made of it is no longer used either
                "DELETE FROM summary WHERE event = ? AND EXISTS (SELECT 1 FROM json_each(articles) WHERE value = ?)",
                (event, name),
            )
        for number, *placed in self._run(
            "SELECT number, p.outlet, p.side, p.at, p.url FROM article AS a JOIN place AS p ON p.article = number "
            "AND (p.file, p.line) = (SELECT file, line FROM place WHERE article = number ORDER BY file, line LIMIT 1) "
            "WHERE (p.outlet, p.side, p.at, p.url) IS NOT (a.outlet, a.side, a.at, a.url)"
        ):
            self._run("UPDATE article SET outlet = ?, side = ?, at = ?, url = ? WHERE number = ?", (*placed, number))
            self._run("UPDATE vector SET at = ? WHERE number = ?", (placed[2], number))

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock, _translated(self._path):
            return self._run(sql, values)

    def _run(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """One statement, carried out to its end; its rows."""
        return self._db.execute(sql, tuple(values)).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Whole or not at all."""
        with self._lock, _translated(self._path), self._db:
            yield


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """SQLite's errors as one line with the remedy."""
    import apsw  # noqa: PLC0415

    try:
        yield
    except (apsw.FullError, apsw.IOError) as error:
        raise Failed(f"{path}: {error}; nothing is lost: make room on the disk and start again") from error
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise Failed(
            f"{path} is damaged ({error}); take it from a backup, or move it away and start again: it is made anew "
            "from events.folder, and summaries are asked for again"
        ) from error
    except (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError) as error:
        raise Usage(f"{path} cannot be opened ({error}); look at the folder and its permissions") from error
    except apsw.Error as error:
        raise Failed(f"{path}: {error}") from error


def _quoted(term: str) -> str:
    """As FTS5 takes a string: nothing in it is an operator."""
    return '"' + term.replace('"', '""') + '"'


def _marks(values: Mapping[int, float]) -> str:
    return ",".join("?" * len(values))
