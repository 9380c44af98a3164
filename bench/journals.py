"""A journal as a reader from outside sees it, and whether it holds what the frames say."""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from bench.processes import Broken
from bench.traffic import FIRST_SEQ, SPAN
from bench.truth import Truth
from civicsky.model import cid_text

Key = tuple[str, str]
"""(rkey, did)."""


class Cursor:
    """The committed cursor, read again and again; that costs some 20 us."""

    def __init__(self, folder: Path) -> None:
        self._db = sqlite3.connect(f"file:{folder / 'journal.db'}?mode=ro", uri=True, isolation_level=None, timeout=30)

    def read(self) -> int:
        """0 before the first."""
        row = self._db.execute("SELECT cursor FROM host WHERE cursor IS NOT NULL").fetchone()
        return int(row[0]) if row else 0

    def close(self) -> None:
        self._db.close()


def frames_up_to(seq: int, block: int) -> int:
    """How many frames were sent up to this sequence number, of a recording of `block` frames turn by turn."""
    turn, at = divmod(seq - FIRST_SEQ, turn_span(block))
    return turn * block + at + 1


def last_seq(truths: Sequence[Truth], frames: int | None = None) -> int:
    """The highest sequence number that can be committed of so many frames, sent turn by turn; without: of one turn."""
    turn, rest = divmod((frames or len(truths)) - 1, len(truths))
    seqs = [truth.seq for truth in truths[: rest + 1] if truth.kind.startswith("#")]
    if not seqs:
        raise ValueError("no such frame has a number")
    return max(seqs) + turn * turn_span(len(truths))


def turn_span(block: int) -> int:
    """By how much sequence numbers rise from turn to turn of a recording of `block` frames."""
    return -(-block // SPAN) * SPAN


class Post(NamedTuple):
    """What a journal has of a post that it keeps."""

    rev: str
    idx: int
    cid: str
    event_at: int
    record: bytes | None
    fields: str


def kept(folder: Path) -> dict[Key, Post]:
    """The posts that are there, whether shown or hidden."""
    with closing(sqlite3.connect(folder / "journal.db")) as db:
        found = db.execute(
            "SELECT rkey, did, rev, idx, cid, event_at, record, fields FROM post WHERE state <> 'deleted'"
        ).fetchall()
    return {(rkey, did): Post(*rest) for rkey, did, *rest in found}


def check(folder: Path, truths: Sequence[Truth]) -> None:
    """Raises `Broken` when civicsky's journal does not hold exactly what these frames say."""
    with closing(sqlite3.connect(folder / "journal.db")) as db:
        rows = db.execute("SELECT rkey, did, state, cid FROM post").fetchall()
        rejected = set(db.execute("SELECT rkey, did FROM reject").fetchall())
        counted = db.execute("SELECT unit, outcome, sum(n) FROM count GROUP BY unit, outcome").fetchall()
    states = {(rkey, did): (state, cid) for rkey, did, state, cid in rows}
    counts = Counter({(unit, outcome): n for unit, outcome, n in counted})
    expected = last_operations(truths)
    faulty = sum(bool(post.fault) for one in truths for post in one.posts)
    _same("frames", counts["frame", "received"], len(truths))
    _same("faulty operations", counts["post", "quarantined"], faulty)
    _same("posts", states.keys() | rejected, expected.keys())
    _same("posts both kept and rejected", states.keys() & rejected, set())
    gone = {truth.did for truth in truths if truth.kind == "#account"}
    for key, (action, cid) in expected.items():
        if key in states and key[1] not in gone:
            state, has = states[key]
            _same(f"the state of {key}", state == "deleted", action == "delete")
            _same(f"the record of {key}", has, "" if action == "delete" else cid)


def last_operations(truths: Iterable[Truth]) -> dict[Key, tuple[str, str]]:
    """By post the last operation that can be used: (action, CID as text)."""
    return {
        (post.rkey, truth.did): (post.action, cid_text(bytes.fromhex(post.cid)) if post.cid else "")
        for truth in truths
        for post in truth.posts
        if not post.fault
    }


def clear_cut(truths: Iterable[Truth]) -> set[Key]:
    """The posts that were made once, by a frame that every reader can read, and not touched again."""
    times = Counter((post.rkey, truth.did) for truth in truths for post in truth.posts)
    made = {
        (post.rkey, truth.did)
        for truth in truths
        for post in truth.posts
        if post.action == "create" and not truth.hostile
    }
    return {key for key in made if times[key] == 1}


def check_same(ours: dict[Key, Post], theirs: dict[Key, Post], truths: Sequence[Truth]) -> int:
    """Raises `Broken` when both do not keep the same of what is clear-cut; how many posts that is."""
    keys = clear_cut(truths)
    left, right = ({key: one[key] for key in one.keys() & keys} for one in (ours, theirs))
    _same("posts kept by both", left.keys(), right.keys())
    for key, post in left.items():
        _same(f"post {key}", post, right[key])
    return len(left)


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise Broken(f"{what}: {str(found)[:300]}, but {str(expected)[:300]} is expected")
