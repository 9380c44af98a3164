"""`annotations.db`: draws of posts to label by hand, and every vote. Addresses and judgements, and no post's text.

Votes are only ever added: a changed mind is a new vote, and the newest counts. What a vote says leaves the file when
the post's author deletes it, and nothing else takes it away; the tables' triggers see to both. A note that a person
wrote may quote the post, and goes with it. The file has no frequent writer: each vote is a short transaction of its
own, by as many processes as there are people labelling.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from civicsky import datadir, faults
from civicsky.annotate.draw import Among, Kind, Pick
from civicsky.model import Change, Key, PostRow, did_of, now_us, post_key, post_uri
from civicsky.sqlite import Database, Schema, open_reader, open_writer, reading, rows, write_many

VoteKind = Literal["vote", "skip", "adjudication"]
"""skip: put off, and nothing said. adjudication: a decision after the others had voted."""

SCHEMA: Final = Schema(
    0x63737935,  # "csy5"
    (
        """
CREATE TABLE draw (
  id INTEGER PRIMARY KEY, task TEXT NOT NULL, task_version TEXT NOT NULL, task_sha256 TEXT NOT NULL,
  fields TEXT NOT NULL, kind TEXT NOT NULL, among TEXT NOT NULL, origin TEXT NOT NULL, since TEXT NOT NULL,
  until TEXT NOT NULL, seed INTEGER NOT NULL, wanted INTEGER NOT NULL, population INTEGER NOT NULL, about TEXT NOT NULL,
  at INTEGER NOT NULL);
CREATE TABLE item (
  draw INTEGER NOT NULL, uri TEXT NOT NULL, did TEXT NOT NULL, version TEXT NOT NULL, p REAL, p_kept REAL NOT NULL,
  p_sampled REAL, why TEXT NOT NULL, gone INTEGER, PRIMARY KEY (draw, uri)) WITHOUT ROWID;
CREATE TABLE vote (
  id INTEGER PRIMARY KEY AUTOINCREMENT, token TEXT NOT NULL UNIQUE, draw INTEGER NOT NULL, uri TEXT NOT NULL,
  did TEXT NOT NULL, version TEXT NOT NULL, kind TEXT NOT NULL, annotator TEXT NOT NULL, task_version TEXT NOT NULL,
  task_sha256 TEXT NOT NULL, english INTEGER, answers TEXT, note TEXT NOT NULL, seconds REAL NOT NULL,
  at INTEGER NOT NULL);
CREATE INDEX vote_by_person ON vote (draw, annotator);
CREATE INDEX vote_by_author ON vote (did);
CREATE TRIGGER vote_stays BEFORE DELETE ON vote BEGIN SELECT raise(ABORT, 'a vote is never deleted'); END;
CREATE TRIGGER vote_is_only_emptied BEFORE UPDATE ON vote
  WHEN NOT (new.answers IS NULL AND new.english IS NULL AND new.note = '' AND
    (new.id, new.token, new.draw, new.uri, new.did, new.kind, new.annotator, new.task_sha256, new.at) =
    (old.id, old.token, old.draw, old.uri, old.did, old.kind, old.annotator, old.task_sha256, old.at))
  BEGIN SELECT raise(ABORT, 'a vote is never changed'); END;
""",
    ),
)


class Draw(NamedTuple):
    """A draw, as it was made."""

    id: int
    task: str
    task_version: str
    task_sha256: str
    fields: str
    """The fields' names, values and conditions as JSON: votes under others would be votes on another question."""
    kind: Kind
    among: Among
    origin: str
    since: str
    until: str
    """The times of its population, RFC 3339; `until` is not included."""
    seed: int
    wanted: int
    population: int
    about: str
    """What else is known of the population, as JSON."""
    at: int


class Item(NamedTuple):
    """A post that was drawn."""

    uri: str
    did: str
    version: str
    p: float | None
    """With which probability it was drawn from the population; None where nobody knows."""
    p_kept: float
    p_sampled: float | None
    why: str
    gone: int | None
    """When it was found to be deleted."""


class Vote(NamedTuple):
    """One vote. Without answers it is a skip, says that the post is not English, or was emptied by a deletion."""

    id: int
    uri: str
    version: str
    kind: VoteKind
    annotator: str
    task_version: str
    task_sha256: str
    english: bool | None
    """False: not in English, so nothing else was asked. None: nothing is said."""
    answers: dict[str, str] | None
    note: str
    seconds: float
    at: int


class NewVote(NamedTuple):
    """A vote to be kept. `token` is the page's name for it: the same one again is the same vote."""

    token: str
    draw: int
    uri: str
    version: str
    kind: VoteKind
    annotator: str
    task_version: str
    task_sha256: str
    english: bool | None
    answers: Mapping[str, str] | None
    note: str
    seconds: float


_DRAW: Final = ", ".join(Draw._fields)
_ITEM: Final = ", ".join(Item._fields)
_VOTE: Final = ", ".join(Vote._fields)


class Votes:
    """The file."""

    def __init__(self, database: Database) -> None:
        self._db = database

    @classmethod
    async def open(cls, folder: Path) -> "Votes":
        """Open or make it. Errors as in `sqlite.open_writer`."""
        # FULL: a person's work is not done twice.
        return cls(await open_writer(folder / datadir.ANNOTATIONS, SCHEMA, synchronous="FULL"))

    @classmethod
    async def look(cls, folder: Path) -> "Votes":
        """Open the existing file to read it only. Errors as in `sqlite.open_reader`."""
        return cls(await open_reader(folder / datadir.ANNOTATIONS, SCHEMA))

    async def close(self) -> None:
        """Release the file."""
        await self._db.close()

    async def draws(self, task: str = "") -> list[Draw]:
        """All draws, of one task if it is named, the oldest first."""
        found = await self._db.rows(f"SELECT {_DRAW} FROM draw WHERE ?1 IN ('', task) ORDER BY id", (task,))
        return [Draw(*row) for row in found]

    async def add(self, draw: Draw, picks: Sequence[Pick], *, unless_after: int | None) -> Draw:
        """Keep a new draw (its `id` is given here) with its posts.

        With `unless_after` the draw of the same task and kind that another process made since that one is given in its
        place: people who begin at the same time get the same posts.
        """
        p = len(picks) / draw.population if draw.kind in {"uniform", "rejects"} and draw.population else None
        async with self._db.transaction() as db:
            if unless_after is not None:
                sql = f"SELECT {_DRAW} FROM draw WHERE task = ? AND kind = ? AND id > ? ORDER BY id LIMIT 1"
                if other := await rows(db, sql, (draw.task, draw.kind, unless_after)):
                    return Draw(*other[0])
            marks = ",".join("?" * (len(Draw._fields) - 1))
            added = await db.execute(f"INSERT INTO draw ({_DRAW.removeprefix('id, ')}) VALUES ({marks})", draw[1:])
            number = added.lastrowid
            assert number is not None
            await write_many(
                db,
                f"INSERT INTO item (draw, {_ITEM}) VALUES {{rows}}",
                [
                    (number, one.uri, did_of(one.uri), one.version, p, one.p_kept, one.p_sampled, one.why, None)
                    for one in picks
                ],
            )
        return draw._replace(id=number)

    async def items(self, draw: int) -> list[Item]:
        """The posts of a draw."""
        return [Item(*row) for row in await self._db.rows(f"SELECT {_ITEM} FROM item WHERE draw = ?", (draw,))]

    async def of(self, draw: int, annotator: str | None = None) -> list[Vote]:
        """The votes of a draw, in order; of one person, if named."""
        who, values = (" AND annotator = ?", (annotator,)) if annotator is not None else ("", ())
        found = await self._db.rows(f"SELECT {_VOTE} FROM vote WHERE draw = ?{who} ORDER BY id", (draw, *values))
        return [_vote(row) for row in found]

    async def keep(self, vote: NewVote) -> None:
        """Keep a vote; it is on the disk when this returns. The same token again changes nothing."""
        answers = None if vote.answers is None else json.dumps(dict(vote.answers), ensure_ascii=False)
        async with self._db.transaction() as db:
            # A deletion may have been found since the post was shown.
            gone = await rows(db, "SELECT 1 FROM item WHERE draw = ? AND uri = ? AND gone", vote[1:3])
            if gone:
                return
            await db.execute(
                "INSERT OR IGNORE INTO vote (token, draw, uri, did, version, kind, annotator, task_version, "
                "task_sha256, english, answers, note, seconds, at) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (
                    *vote[:3], did_of(vote.uri), *vote[3:8], vote.english, answers, vote.note, vote.seconds, now_us(),
                ),
            )  # fmt: skip
            faults.point("annotate.vote")
        faults.point("annotate.voted")

    async def forget(self, uris: Iterable[str]) -> None:
        """These posts are deleted: empty what was said of them, in every draw."""
        await self._forget("uri = ?", uris)

    async def forget_named(self, names: Iterable[str]) -> None:
        """The same of all posts of these DIDs, and of these AT-URIs."""
        await self._forget("? IN (uri, did)", names)

    async def _forget(self, which: str, names: Iterable[str]) -> None:
        wanted = [(name,) for name in dict.fromkeys(names)]
        if not wanted:
            return
        now = now_us()
        async with self._db.transaction() as db:
            await db.executemany(
                f"UPDATE item SET gone = {now}, version = '', why = '' WHERE gone IS NULL AND {which}", wanted
            )
            await db.executemany(
                f"UPDATE vote SET answers = NULL, english = NULL, note = '', version = '' WHERE {which}", wanted
            )
        await self._db.truncate_log()


async def forget_in(folder: Path, names: Sequence[str]) -> None:
    """Empty what was said of erased accounts' and posts, if anybody ever labelled by hand here."""
    if not (folder / datadir.ANNOTATIONS).is_file():
        return
    votes = await Votes.open(folder)
    try:
        await votes.forget_named(names)
    finally:
        await votes.close()


class Forgetting:
    """Empties what was said of posts as their deletions are told, for who follows the journal."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def heed(
        self, changes: Iterable[Change], journal: Callable[[Iterable[Key]], Awaitable[Mapping[Key, PostRow]]]
    ) -> None:
        """Forget the drawn posts that these changes delete; told again, it changes nothing.

        `journal` gives posts as they are now: one that was made again behind its deletion stays. Nothing is made, and
        nothing is written unless a drawn post is gone. Errors as in `sqlite.open_writer`.
        """
        posts, accounts = set[str](), set[str]()
        for change in changes:
            if change.kind == "delete":
                posts.add(post_uri(change.did, change.rkey))
            elif change.kind == "remove":
                accounts.add(change.did)
        file = self._folder / datadir.ANNOTATIONS
        if not (posts or accounts) or not file.is_file():
            return
        async with reading(file, SCHEMA) as database:
            drawn = await database.rows("SELECT DISTINCT uri, did FROM item WHERE gone IS NULL")
        named = [post_key(uri) for uri, did in drawn if uri in posts or did in accounts]
        if named:
            now = await journal(named)
            gone = [key for key in named if key not in now or now[key].state == "deleted"]
            await forget_in(self._folder, [post_uri(did, rkey) for rkey, did in gone])


def newest(votes: Iterable[Vote], kind: VoteKind = "vote") -> dict[str, dict[str, Vote]]:
    """By post and person the newest vote of a kind that says something."""
    found: dict[str, dict[str, Vote]] = {}
    for vote in votes:
        if vote.kind == kind and vote.english is not None:
            found.setdefault(vote.uri, {})[vote.annotator] = vote
    return found


def _vote(row: Sequence[Any]) -> Vote:
    vote = Vote(*row)
    return vote._replace(
        english=None if vote.english is None else bool(vote.english),
        answers=None if row[8] is None else json.loads(row[8]),
    )
