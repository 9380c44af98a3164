"""The demo: the packaged recording served by a real relay, through the same code as in production, with a report."""

import asyncio
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Final

import uvloop
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from civicsky import log
from civicsky.app import Summary, serve
from civicsky.errors import EXIT_FAILED, Failed
from civicsky.frames import read_frames, sample_file
from civicsky.loading import load
from civicsky.metrics import Metrics
from civicsky.relay import Playback, Relay
from civicsky.report import demo_report
from civicsky.settings import Settings

ENOUGH_LABELS: Final = 200
DRAIN_SECONDS: Final = 480
_PLAIN_SECONDS: Final = 5
_LONG_AGO: Final = 1e9
"""Seconds; thirty years."""


def run_demo(parent: Path, say: Callable[[str], None], first: int | None = None) -> int:
    """Do the main job on the sample, or on its first so many frames; gives the exit code."""
    folder = parent / datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
    whole = list(read_frames(sample_file()))
    frames = whole[:first]
    flags: dict[str, Any] = {
        "data_dir": folder,
        "source.start": "window",
        "label.model": "local",
        "limits.max_frames": len(frames),
        "limits.drain_seconds": DRAIN_SECONDS,
        "journal.reject_sample": 1.0,
        # It was recorded long ago, which is nothing to warn of.
        "health.behind_seconds": _LONG_AGO,
        "health.lag_seconds": _LONG_AGO,
        "log.level": "warning",
    }
    settings = load(None, flags)
    if settings.store.chosen == "mongo" and settings.store.mongo_database == "civicsky":
        # Made-up posts have no business in a database of real ones.
        settings = load(None, {**flags, "store.mongo_database": "civicsky_demo"})
    log.configure(settings.log)
    say(f"civicsky demo: {len(frames):,} recorded frames, served by a relay on this machine, into {folder}")
    summary = uvloop.run(_run(frames, settings))
    say(uvloop.run(demo_report(settings, summary, sample_file().with_name("truth.jsonl"))))
    if summary.exit_code or summary.labelled < ENOUGH_LABELS * len(frames) // len(whole):
        raise Failed(_too_few(summary))
    return 0 if summary.exit_code == 0 else EXIT_FAILED


def _too_few(summary: Summary) -> str:
    """Why that is not enough, and what to do."""
    few = f"demo: only {summary.labelled} posts were labelled, {summary.waiting} wait"
    if summary.exit_code or not summary.labelled:
        return f"{few}; the lines above say what is wrong"
    return (
        f"{few}: this machine was too slow or too busy for the model in {DRAIN_SECONDS // 60} minutes; all else is as "
        "it should be: try again when it is idle, or `civicsky demo --frames 300`"
    )


async def _run(frames: list[bytes], settings: Settings) -> Summary:
    metrics = Metrics()
    async with Relay(frames, Playback()).serve() as url:
        settings = settings.model_copy(update={"source": settings.source.model_copy(update={"relays": (url,)})})
        show = asyncio.create_task(_show(metrics, len(frames)), name="progress")
        try:
            return await serve(settings, "both", drain=False, metrics=metrics)
        finally:
            show.cancel()
            await asyncio.wait([show])


async def _show(metrics: Metrics, frames: int) -> None:
    """Progress until cancelled: live on a terminal, else a line now and then."""
    console = Console(stderr=True)
    if not console.is_terminal:
        while True:
            await asyncio.sleep(_PLAIN_SECONDS)
            print(_line(metrics), file=sys.stderr, flush=True)
    bars = Progress(TextColumn("{task.description:10}"), BarColumn(30), MofNCompleteColumn())
    read, done = bars.add_task("frames", total=frames), bars.add_task("labelled", total=None)
    with Live(bars, console=console, refresh_per_second=5) as live:
        for turn in count():
            bars.update(read, completed=metrics.counts["frames"])
            counts = metrics.counts
            bars.update(done, completed=counts["labelled"], total=(counts["labelled"] + metrics.waiting) or None)
            if turn % 10 == 0:  # rates over 2 s: shorter ones only flicker
                line = _line(metrics)
            table = Table.grid(padding=(0, 2))
            table.add_row(bars)
            table.add_row(line)
            live.update(table)
            await asyncio.sleep(0.2)


def _line(metrics: Metrics) -> str:
    counts = metrics.counts
    frames, labelled = metrics.rate("show", "frames"), metrics.rate("show", "labelled")
    return (
        f"frames {counts['frames']:,} ({frames:.0f}/s)  posts {counts['posts']:,}  kept {counts['kept']:,}  "
        f"labelled {counts['labelled']:,} ({labelled:.1f}/s)  waiting {metrics.waiting:,}"
        + (f"  model: {metrics.model_why}" if metrics.model_why else "")
    )
