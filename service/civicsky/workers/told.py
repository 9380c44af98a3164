"""What the running home node tells of its label workers to other processes: a small file in the data directory."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from civicsky.log import harmless
from civicsky.metrics import Workers
from civicsky.model import format_time, now_us, parse_time

FILE: Final = "workers.json"
EVERY_SECONDS: Final = 5.0
MAX_SHOWN: Final = 50
"""For people."""
STALE_SECONDS: Final = 30.0
"""An older file was left by a home node that was killed."""


def write(folder: Path, told: Workers, rate: float) -> None:
    """Tell how things stand; `rate` is results a second of late. A disk without room is others' business."""
    shown = {
        "at": format_time(now_us()),
        "why": told.why,
        "workers": [one._asdict() for one in told.there],
        "queued": told.queued,
        "in_flight": told.in_flight,
        "results": told.results,
        "results_per_s": round(rate, 2),
        "redelivered": told.redelivered,
        "lost": told.dispatched_again,
        "late": told.late,
    }
    new = folder / f".{FILE}"
    with suppress(OSError):
        new.write_text(json.dumps(shown))
        new.replace(folder / FILE)


def remove(folder: Path) -> None:
    """Nobody asks by way of workers any more."""
    with suppress(OSError):
        (folder / FILE).unlink(missing_ok=True)


def read(folder: Path) -> dict[str, Any] | None:
    """What was told of late; None when nothing was."""
    try:
        told = json.loads((folder / FILE).read_text())
        at = parse_time(told["at"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    fresh = at is not None and now_us() - at < STALE_SECONDS * 1e6
    return told if fresh and isinstance(told, dict) else None


def as_text(told: Mapping[str, Any] | None) -> list[str]:
    """For people."""
    if told is None:
        return []
    lines = [
        f"workers          {len(told['workers'])} there, {told['results_per_s']:,} answers/s, "
        f"{told['in_flight']:,} in flight, {told['queued']:,} wait for one, {told['redelivered']:,} redelivered, "
        f"{told['lost']:,} lost by NATS"
    ]
    if told["why"]:
        lines.append(f"workers          {harmless(told['why'])}")
    for one in told["workers"][:MAX_SHOWN]:
        why = f"; rests: {harmless(one['why'])}" if one["why"] else ""
        lines.append(
            f"worker           {harmless(one['name'])}  {harmless(one['server'])}  {one['in_flight']} of "
            f"{one['slots']} at work, {one['done']:,} done, civicsky {harmless(one['version'])}{why}"
        )
    if (more := len(told["workers"]) - MAX_SHOWN) > 0:
        lines.append(f"worker           and {more:,} more")
    return lines
