"""Growth: how fast a collector takes the stream when it has little, much, or very much already.

Journals of 10 thousand, 1 million and 10 million posts are made, and one of which a million wait for the labelling half
(see `large_journal`); then `civicsky collect` takes the same frames into each, as in `collect`, and what it added is
taken away again for the next round. The large journals are rather in the page cache than not, as far as memory goes;
that, too, is told.
"""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from bench.collect import Took, Traffic, sending, started, to_cursor
from bench.large_journal import NEWEST, fill
from bench.part import Against, Ask, CannotRun, Fact, Figure, Measure, Part
from bench.processes import folder, running
from civicsky.datadir import JOURNAL

PART: Final = Part(
    "growth", "Growth", "the rate of collecting with many posts in the journal, over that with 10 thousand"
)
FRAMES: Final = 100_000
SMALL: Final = "10 k posts"
LARGE: Final = "10 M posts"
JOURNALS: Final[dict[str, tuple[int, bool]]] = {
    SMALL: (10_000, False),
    "1 M posts": (1_000_000, False),
    "1 M posts that wait": (1_000_000, True),
    LARGE: (10_000_000, False),
}
"""Posts, and whether they wait for the labelling half."""
BYTES_A_POST: Final = 1500
BAR: Final = 0.8
KEPT: Final[dict[str, Any]] = {"journal__reject_days": 100_000, "journal__max_bytes": 10**12}
"""The made-up past is not pruned, and there is room."""


def rounds(ask: Ask) -> Iterator[Measure]:
    """All journals in each round."""
    traffic = Traffic.of(ask.size(FRAMES, least=2000))
    sizes = {name: (ask.size(posts, least=1000), waits) for name, (posts, waits) in JOURNALS.items()}
    yield Fact("frames", len(traffic.truths))
    with folder() as where:
        _want_room(where, sum(posts for posts, _ in sizes.values()) * BYTES_A_POST)
        for name, (posts, waits) in sizes.items():
            ask.say(f"growth: a journal of {posts:,} posts is made")
            fill(where / name, posts, waiting=waits)
            yield Fact(f"{name}: there are", posts)
            yield Fact(f"{name}: bytes", (where / name / JOURNAL).stat().st_size)
        for turn in range(ask.rounds):
            took: dict[str, Took] = {}
            for name, (posts, waits) in sizes.items():
                ask.say(f"growth: round {turn + 1} of {ask.rounds}, {name}")
                took[name] = _collected(traffic, where / name, posts)
                _take_away(where / name / JOURNAL, posts, posts if waits else 0)
            for name, one in took.items():
                yield Figure(name, "frames/s", one.rate)
                yield Figure(f"{name}, CPU", "us/frame", one.each_us, better="lower")
                if name != SMALL:
                    bar = BAR if name == LARGE else None
                    yield Against(f"{name} over {SMALL}, frames/s", one.rate / took[SMALL].rate, bar)


def _want_room(where: Path, size: int) -> None:
    free = shutil.disk_usage(where).free
    if free < 2 * size:
        raise CannotRun(f"the journals need {2 * size / 1e9:.0f} GB, and {where} has {free / 1e9:.0f}; see TMPDIR")


def _collected(traffic: Traffic, data: Path, posts: int) -> Took:
    """Take all frames into a journal that is there; each kept post is."""
    with sending(traffic) as sender, running(started(sender, data, **KEPT)) as child:
        took = to_cursor(sender, child, traffic, data)
        child.finish()
    with closing(sqlite3.connect(data / JOURNAL)) as db:
        ((kept,),) = db.execute("SELECT sum(n) FROM count WHERE unit = 'post' AND outcome = 'kept'")
        ((more,),) = db.execute("SELECT count(*) FROM post WHERE id > ? AND state <> 'deleted'", (posts,))
        ((least,),) = db.execute("SELECT count(*) FROM post WHERE id <= ?", (posts,))
    if least != posts or not more or more > kept:
        raise CannotRun(f"{data.name}: of {posts} posts {least} are left, and {more} were added of {kept} kept")
    return took


def _take_away(journal: Path, posts: int, changes: int) -> None:
    """Leave what `fill` made."""
    with closing(sqlite3.connect(journal, isolation_level=None)) as db:
        db.execute("BEGIN")
        db.execute("DELETE FROM post WHERE id > ?", (posts,))
        db.execute("DELETE FROM change WHERE n > ?", (changes,))
        db.execute("DELETE FROM reject WHERE at > ?", (NEWEST,))
        for table in ("host", "account", "count", "held", "gap", "quarantine", "recheck", "run", "opening"):
            db.execute(f"DELETE FROM {table}")
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
