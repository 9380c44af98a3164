"""Copies of databases that are being written: whole, of one moment, and of no need of a write-ahead log."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from civicsky import copies
from civicsky.errors import Failed
from support.command import query, until

NAMES = ("journal.db", "ledger.db", "posts.db")
WRITER = """
import sqlite3, sys
journal, ledger, store = [sqlite3.connect(path, isolation_level=None, timeout=60) for path in sys.argv[1:]]
for db in (journal, ledger, store):
    db.execute("PRAGMA synchronous=OFF")
n = 0
while True:
    n += 1
    journal.execute("INSERT INTO change VALUES (?)", (n,))
    ledger.execute("UPDATE position SET n = ?", (n,))
    store.execute("INSERT INTO posts VALUES (?)", (n,))
    ledger.execute("UPDATE position SET told = ?", (n,))
    journal.execute("DELETE FROM change WHERE n <= ?", (n,))
"""
"""What flows through the three files: a change, the position that follows it, what the store takes, what it is known
to have, and the change pruned behind the position. Each step is a transaction of its own."""


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    files = [tmp_path / name for name in NAMES]
    for file, table in zip(files, ("change (n)", "position (n, told)", "posts (n)"), strict=True):
        with closing(sqlite3.connect(file, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(f"CREATE TABLE {table}")
            if file.name == "ledger.db":
                db.execute("INSERT INTO position VALUES (0, 0)")
    return files


@contextmanager
def written(files: list[Path]) -> Iterator[None]:
    """They are being written as fast as can be."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, *map(str, files)])
    try:
        until(lambda: query(files[1], "SELECT told FROM position WHERE told > 100"), "the writer to be at work")
        yield
        assert process.poll() is None, "it wrote all the time"
    finally:
        process.kill()
        process.wait()


def test_files_that_feed_one_another_are_seen_as_of_one_moment(files: list[Path]) -> None:
    position = 0
    with written(files):
        for _ in range(25):
            until(partial(query, files[1], "SELECT n FROM position WHERE n > ?", position), "the writer to go on")
            with copies.one_moment(lambda: files) as pinned:
                journal, ledger, store = pinned.values()
                # Each is read late: only the moment at which its snapshot was taken may count.
                stored = {n for (n,) in store.execute("SELECT n FROM posts")}
                ((position, told),) = ledger.execute("SELECT n, told FROM position")
                changes = [n for (n,) in journal.execute("SELECT n FROM change ORDER BY n")]
            assert changes in ([], [position], [position + 1]), f"at {position} the journal has {changes}"
            assert told <= max(stored) == len(stored), f"the ledger counts on {told} that the store does not have"


def test_nobody_writes_to_any_of_them_between_the_first_snapshot_and_the_last(files: list[Path]) -> None:
    looks, refused = 0, []

    def present() -> list[Path]:
        nonlocal looks
        looks += 1
        for file in files if looks == 2 else ():  # the second look comes just before the first snapshot
            with closing(sqlite3.connect(file, isolation_level=None, timeout=0)) as db:
                try:
                    db.execute("CREATE TABLE more (n)")
                except sqlite3.OperationalError as error:
                    refused.append((file, str(error)))
        return files

    with copies.one_moment(present) as pinned:
        assert refused == [(file, "database is locked") for file in files]
        for file in files:  # and nobody waits any more when they are there
            with closing(sqlite3.connect(file, isolation_level=None, timeout=0)) as db:
                db.execute("CREATE TABLE more (n)")
            assert pinned[file].execute("SELECT count(*) FROM sqlite_schema").fetchall() == [(1,)]


def test_a_copy_is_what_was_seen_however_much_is_written_meanwhile(files: list[Path], tmp_path: Path) -> None:
    with closing(sqlite3.connect(files[2], isolation_level=None)) as db:
        db.execute("CREATE TABLE more (bytes)")
        db.executemany("INSERT INTO more VALUES (?)", [(os.urandom(3000),) for _ in range(4000)])
    shown = []

    def write_more(done: int, total: int) -> None:
        shown.append((done, total))
        with closing(sqlite3.connect(files[2], isolation_level=None)) as db:
            db.execute("UPDATE more SET bytes = 'later' WHERE rowid = ?", (4000 - len(shown),))

    with written(files), copies.one_moment(lambda: files) as pinned:
        before = [source.execute("SELECT count(*) FROM posts").fetchall() for source in [pinned[files[2]]]]
        copies.write(pinned[files[2]], tmp_path / "copy.db", write_more)
    assert len(shown) > 2
    assert shown[-1][0] == shown[-1][1]
    assert [query(tmp_path / "copy.db", "SELECT count(*) FROM posts")] == before
    assert query(tmp_path / "copy.db", "SELECT count(*) FROM more WHERE bytes = 'later'") == [(0,)]
    assert query(files[2], "SELECT count(*) FROM more WHERE bytes = 'later'") == [(len(shown),)]


def test_a_copy_is_one_file_for_us_alone_that_needs_no_write_ahead_log(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    copy = tmp_path / "far" / "copy.db"
    os.umask(0)
    with copies.one_moment(lambda: files[:1]) as pinned:
        copies.write(pinned[files[0]], copy, lambda _done, _total: None)
    os.umask(0o022)
    assert query(copy, "PRAGMA journal_mode") == [("delete",)]
    assert query(files[0], "PRAGMA journal_mode") == [("wal",)]
    assert [path.name for path in copy.parent.iterdir()] == ["copy.db"]
    assert copy.stat().st_mode & 0o777 == 0o600
    assert copies.defects(copy) == ""


def test_what_is_damaged_is_not_copied_in_silence(files: list[Path], tmp_path: Path) -> None:
    with closing(sqlite3.connect(files[0], isolation_level=None)) as db:
        db.executemany("INSERT INTO change VALUES (?)", [("x" * 500,) for _ in range(1000)])
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with files[0].open("r+b") as stream:
        stream.seek(4096 * 40)
        stream.write(os.urandom(4096 * 20))
    with pytest.raises(Failed, match=r"copy\.db is damaged"), copies.one_moment(lambda: files[:1]) as pinned:
        copies.write(pinned[files[0]], tmp_path / "copy.db", lambda _done, _total: None)


def test_a_file_that_is_made_meanwhile_belongs_to_the_moment(files: list[Path]) -> None:
    looks = iter([files[:1], files])  # the second look finds more: it begins again

    def present() -> list[Path]:
        return next(looks, files)

    with copies.one_moment(present) as pinned:
        assert list(pinned) == files
