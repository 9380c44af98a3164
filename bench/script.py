"""A plain script: one thread, the SDK's models, the cursor saved every 500 numbers before the write, row by row.

That is what one writes first. In the callback of the SDK's client it turns each message into models, keeps the posts
that their client tagged as English, and inserts them into SQLite one at a time, a transaction each. Here frames come
from memory, so nothing of the network is in the figures. With SQLite's own defaults each transaction waits for the
disk; the same without waiting says what the script itself takes.

Ours is the service's decode, worker and journal over the same frames, in this one process, with a transaction for each
500 frames, as safe as the service's own. It does more: language, counts, order, quarantine. Wall time, because waiting
is part of it.
"""

import asyncio
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench import sdk
from bench.part import Against, Ask, Fact, Figure, Measure, Part
from bench.traffic import read, recording, truths
from civicsky.decode import decode
from civicsky.errors import BadInput
from civicsky.filter import load
from civicsky.journal import Journal
from civicsky.model import Arrival, Batch, Event, Frame, now_us
from civicsky.settings import Journal as JournalSettings
from civicsky.worker import judge_record

PART: Final = Part("script", "A plain script", "one thread, the SDK's models and row-by-row SQLite, against ours")
FRAMES: Final = 20_000
SAVE_EVERY: Final = 500
BATCH: Final = 500
TABLES: Final = """
CREATE TABLE post (uri TEXT PRIMARY KEY, cid TEXT, author TEXT, text TEXT, langs TEXT, created_at TEXT);
CREATE TABLE state (service TEXT PRIMARY KEY, cursor INTEGER);
INSERT INTO state VALUES ('bsky.network', 0);
"""
HOST: Final = "wss://bsky.network"


class Script:
    """The callback and its database."""

    def __init__(self, path: Path, *, waits: bool) -> None:
        self.db = sqlite3.connect(path)
        if not waits:
            self.db.executescript("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY")
        self.db.executescript(TABLES)

    def on_message(self, data: bytes) -> None:
        """One message of the client."""
        commit = sdk.commit_of(sdk.message(data))
        if commit is None:
            return
        if commit.seq % SAVE_EVERY == 0:
            self.db.execute("UPDATE state SET cursor = ?", (commit.seq,))
            self.db.commit()
        for created in sdk.ops_by_type(commit)[sdk.POSTS]["create"]:
            record = created["record"]
            if "en" in (record.langs or ()):
                self._insert(created, record)

    def _insert(self, created: dict[str, Any], record: Any) -> None:
        row = (created["uri"], created["cid"], created["author"], record.text, ",".join(record.langs))
        self.db.execute("INSERT OR REPLACE INTO post VALUES (?,?,?,?,?,?)", (*row, record.created_at))
        self.db.commit()


class Took(NamedTuple):
    seconds: float
    """From the first frame to the last commit: making and opening the database is not in it."""
    posts: int
    """That are kept in the end."""


def plain(frames: Sequence[bytes], folder: Path, *, waits: bool) -> Took:
    script = Script(folder / "script.db", waits=waits)
    with closing(script.db):
        begin = time.perf_counter()
        for data in frames:
            with suppress(Exception):  # what it cannot read is lost
                script.on_message(data)
        seconds = time.perf_counter() - begin
        return Took(seconds, int(script.db.execute("SELECT count(*) FROM post").fetchone()[0]))


def ours(frames: Sequence[bytes], folder: Path) -> Took:
    return asyncio.run(_ours(frames, folder))


async def _ours(frames: Sequence[bytes], folder: Path) -> Took:
    journal, kept = await Journal.open(folder / "journal.db", JournalSettings()), 0
    try:
        await journal.positions([HOST])
        begin = time.perf_counter()
        for at in range(0, len(frames), BATCH):
            some = frames[at : at + BATCH]
            batch = Batch([_frame(at + nth + 1, data) for nth, data in enumerate(some)], size=sum(map(len, some)))
            verdicts = [judge_record(op.cid, op.block) for op in batch.records()]
            received = Counter(frame=len(some), post=sum(frame.event.new_posts for frame in batch.frames))
            kept += (await journal.commit(batch, verdicts, received)).counts["post", "kept", ""]
        return Took(time.perf_counter() - begin, kept)
    finally:
        await journal.close()


def _frame(n: int, data: bytes) -> Frame:
    arrival = Arrival(n, HOST, 1, 1, None, data, now_us())
    try:
        event = decode(data)
    except BadInput as bad:
        return Frame(arrival, Event("quarantined"), "quarantined", bad.reason)
    return Frame(arrival, event, event.outcome, event.name if event.outcome == "ignored" else "")


OURS: Final = "ours in one process"
WAYS: Final[dict[str, Callable[[Sequence[bytes], Path], Took]]] = {
    OURS: ours,
    "a plain script": partial(plain, waits=True),
    "a plain script that does not wait for the disk": partial(plain, waits=False),
}


def rounds(ask: Ask) -> Iterator[Measure]:
    """See `bench.part`."""
    n = ask.size(FRAMES, least=500)
    path = recording(n)
    frames = read(path)
    english = sum(post.lang == "en" and post.action == "create" for truth in truths(path) for post in truth.posts)
    yield Fact("frames", n)
    load()
    with tempfile.TemporaryDirectory(dir=path.parent) as name:  # not /tmp, which may be memory
        folder = Path(name)
        _all_ways(frames[:500], folder / "warm")
        for nth in range(ask.rounds):
            took = _all_ways(frames, folder / str(nth))
            rates = {way: n / one.seconds for way, one in took.items()}
            yield Fact("posts", {"created in English": english, **{way: one.posts for way, one in took.items()}})
            for way, rate in rates.items():
                yield Figure(way, "frames/s", rate)
                if way != OURS:
                    yield Against(f"{OURS} over {way}, frames/s", rates[OURS] / rate)


def _all_ways(frames: Sequence[bytes], folder: Path) -> dict[str, Took]:
    took = {}
    for nth, (name, way) in enumerate(WAYS.items()):
        (folder / str(nth)).mkdir(parents=True)
        took[name] = way(frames, folder / str(nth))
    return took
