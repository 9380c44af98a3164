"""Labelling: answers a second, and processor time a post, with the installed command and a model that only waits.

A data directory of made-up posts that all wait for a label is made once: journal, ledger that followed it, and SQLite
store that was told of them (that, too, is measured). For each run it is copied; `civicsky label` asks the mock over
real HTTP, keeps each answer in its ledger and tells the store. Ideal is what the model allows: calls in flight /
latency. Start-up is left out: measured is from when the calls are under way, for some seconds; labels are counted in
the ledger, by the time at which they were made.
"""

import asyncio
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from bench.large_journal import fill
from bench.part import Against, Ask, CannotRun, Fact, Figure, Measure, Part
from bench.processes import CIVICSKY, Child, folder, running, until
from civicsky.app import catch_up
from civicsky.datadir import LEDGER
from civicsky.metrics import Metrics
from civicsky.settings import Settings

PART = Part(
    "label", "Labelling", "answers a second through HTTP, ledger and store, against what the model's latency allows"
)
LATENCIES: Final = (0, 50, 200, 500)
"""Milliseconds."""
IN_FLIGHT: Final = (1, 4, 16, 64, 256)
OF_IDEAL: Final = {(64, 200): 0.85, (64, 50): 0.6}
"""Bars, by (in flight, milliseconds)."""
CPU_IN_FLIGHT: Final = 16
CPU_MS: Final = 2.0
"""Most processor time a post."""
FASTEST: Final = 2500
"""No more labels a second than this are thought possible: how many posts must wait."""
SETTINGS: Final[dict[str, Any]] = {"sample": {"posts_per_day": 0}}
"""All posts are labelled."""
LEAST: Final = 100
"""Labels in a run below which processor time a post says nothing."""


def rounds(ask: Ask) -> Iterator[Measure]:
    """All latencies at all numbers in flight, in each round."""
    seconds = max(0.2, (2.0 if ask.quick else 5.0) * ask.scale)
    grid = [(16, 50), (64, 50)] if ask.quick else [(many, ms) for ms in LATENCIES for many in IN_FLIGHT]
    posts = 1000 + int(FASTEST * (seconds + 3))
    yield Fact("seconds a run, without start-up", seconds)
    yield Fact("posts that wait", posts)
    with folder() as where:
        fill(where / "made", posts, waiting=True)
        ask.say(f"label: {posts:,} posts are followed, and told to the store")
        began = time.perf_counter(), time.process_time()
        asyncio.run(catch_up(where / "made", Settings(**SETTINGS), Metrics()))
        wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
        yield Figure("posts followed and stored, before any is labelled", "posts/s", posts / wall)
        yield Figure("posts followed and stored: CPU a post", "ms", 1000 * cpu / posts, "lower")
        for _ in range(ask.rounds):
            for many, ms in grid:
                ask.say(f"label: {many} in flight, {ms} ms")
                yield from _measured(many, ms, run(where, many, ms / 1000, seconds))


class Ran:
    """What one run did while it was measured."""

    def __init__(self, labels: int, seconds: float, cpu: float) -> None:
        self.rate = labels / seconds
        self.labels = labels
        self.cpu_ms = 1000 * cpu / max(1, labels)


def run(where: Path, many: int, latency: float, seconds: float) -> Ran:
    """Label for so many seconds with so many calls in flight. Raises `CannotRun` when it runs out of posts."""
    data = where / "data"
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(where / "made", data)
    with running(Child([sys.executable, "-m", "bench.model_mock", "--latency", str(latency)])) as mock:
        flags: list[str | Path] = ["--data-dir", data, "--model-url", mock.heard()["url"], "--model", "mock"]
        command: list[str | Path] = [CIVICSKY, "label", *flags]
        with running(Child(command, label__slots=many, sample__posts_per_day=0)) as child:
            until(lambda: _labels(data) >= 2 * many, "the first labels", child, every=0.05)
            began, cpu = time.time(), child.cpu()
            time.sleep(max(seconds, 4 * latency))
            ended, cpu = time.time(), child.cpu() - cpu
            child.finish()
    with closing(sqlite3.connect(data / LEDGER)) as db:
        ((labels,),) = db.execute("SELECT count(*) FROM label WHERE at BETWEEN ? AND ?", (began * 1e6, ended * 1e6))
        ((left,),) = db.execute("SELECT count(*) FROM job WHERE state = 'pending'")
    if not left:
        raise CannotRun(f"{many} in flight, {latency} s: no post was left at the end; more of them must wait")
    return Ran(labels, ended - began, cpu)


def _labels(data: Path) -> int:
    with closing(sqlite3.connect(f"file:{data / LEDGER}?mode=ro", uri=True, timeout=30)) as db:
        ((labels,),) = db.execute("SELECT count(*) FROM label")
    return int(labels)


def _measured(many: int, ms: int, ran: Ran) -> Iterator[Measure]:
    at = f"{many} in flight, {ms} ms"
    yield Figure(at, "answers/s", ran.rate)
    if ms:
        ideal = many * 1000 / ms
        yield Against(f"{at}: answers/s over ideal ({ideal:,.0f}/s)", ran.rate / ideal, OF_IDEAL.get((many, ms)))
    if ran.labels >= LEAST:
        bar = CPU_MS if many == CPU_IN_FLIGHT else None
        yield Figure(f"{at}: CPU a post", "ms", ran.cpu_ms, "lower", bar)
