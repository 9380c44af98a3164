"""What the page tells besides the moment: shares, coverage, counts by reason, cost, drift. Each is asked now and then.

Every function reads a bounded number of rows by key, in parts small enough for the service's loop to turn in between.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import quantiles
from typing import Any, Final, NamedTuple, cast

from civicsky.holding import GAP_COLUMNS, HELD_COLUMNS, OPENING_COLUMNS
from civicsky.journal import JournalReader
from civicsky.model import Gap, Held, Key, Opened, format_time, post_uri
from civicsky.page import days, reads
from civicsky.page.reads import JobRow, Said
from civicsky.page.shares import Drawn, Figure, of_field
from civicsky.rounds import drift as drift_of
from civicsky.settings import Settings
from civicsky.share import Share
from civicsky.sqlite import Database
from civicsky.status import covered
from civicsky.task import Task

PERIODS: Final = {"hour": 3_600, "day": 86_400, "week": 604_800}
"""Seconds."""
DRAWN: Final = 2_000
"""Posts of a period, of each task, from which a share is found at most: more would make an interval of two points
either way, at 30 %, not much shorter."""
ROWS: Final = 400
"""Connections, gaps and openings from which coverage is laid out at most; the newest."""
DAYS: Final = 28
SPEND_DAYS: Final = 7
DRIFT_DAYS: Final = 7
PROBES: Final = 20_000
"""Answers that are compared for the drift at most."""
HOUR_US: Final = 3_600_000_000


class _Period(NamedTuple):
    """What was found of a period."""

    drawn: dict[str, list[Drawn]]
    told: dict[str, Any]


async def shares(
    ledger: Database, journal: Database, tasks: Sequence[Task], unit: str, now: int, pause: Callable[[], Any]
) -> dict[str, Any]:
    """Shares of every field's values in the last hour, day and week, by the time of the events.

    `periods`: for each task `n` labelled posts of about so many (`of`), of which some are `pending`; `all`: whether it
    is of all of them, and not of some drawn by lot. `tasks`: by task and field each value's figure in each period.
    """
    last = await reads.last_job(ledger)
    found = {
        name: await _period(ledger, journal, tasks, unit, (now - seconds * 1_000_000, last), pause)
        for name, seconds in PERIODS.items()
    }
    told = []
    for task in tasks:
        fields = []
        for field in task.fields:
            rows: dict[str, dict[str, Any]] = {}
            for name, period in found.items():
                for value, figure in of_field(period.drawn[task.name], field):
                    rows.setdefault(value, {"value": value})[name] = _figure(figure)
                    await pause()
            fields.append({"name": field.name, "only_if": dict(field.only_if), "values": list(rows.values())})
        told.append({"name": task.name, "fields": fields})
    return {"at": now // 1000, "periods": {name: one.told for name, one in found.items()}, "tasks": told}


async def _period(
    ledger: Database, journal: Database, tasks: Sequence[Task], unit: str, span: tuple[int, int],
    pause: Callable[[], Any],
) -> _Period:  # fmt: skip
    since, last = span
    low = await reads.first_since(ledger, since, last)
    numbers = reads.lots(low, last + 1, DRAWN * max(1, len(tasks)))
    drawn: dict[str, list[Drawn]] = {task.name: [] for task in tasks}
    n: Counter[tuple[str, str]] = Counter()
    unknown = 0
    for at in range(0, len(numbers), reads.KEYS_AT_ONCE):
        rows = await reads.jobs(ledger, numbers[at : at + reads.KEYS_AT_ONCE])
        rows = [row for row in rows if row.is_current and row.event_at >= since and row.task in drawn]
        keys = [row.key for row in rows]
        known = await reads.weights(journal, keys)
        rows = [row for row in rows if reads.is_drawn_of(row, known)]
        labels = await reads.said(ledger, [row.key for row in rows if row.state == "done"])
        for row in rows:
            post = _drawn(row, labels, known, unit)
            n[row.task, "of"] += 1
            n[row.task, "pending"] += row.state == "pending"
            n[row.task, "n"] += post is not None and post.fields is not None
            unknown += row.key not in known
            if post:
                drawn[row.task].append(post)
        await pause()
    share = len(numbers) / max(1, last + 1 - low) or 1.0
    told = {
        task: {"n": n[task, "n"], **{name: round(n[task, name] / share) for name in ("pending", "of")}}
        for task in drawn
    }
    return _Period(drawn, {"tasks": told, "all": share >= 1, "weights_unknown": unknown})


def _drawn(
    row: JobRow, labels: Mapping[Key, Mapping[str, Said]], known: Mapping[Key, tuple[str, float, str]], unit: str
) -> Drawn | None:
    """None: it waits, or its label is gone."""
    label = labels.get(row.key, {}).get(row.task)
    fields = {name: value for name, (value, _) in label.fields.items()} if label and label.cid == row.cid else None
    if row.state not in {"done", "dead"} or (row.state == "done" and fields is None):
        return None
    _, p_kept, root = known.get(row.key, ("", 1.0, ""))
    uri = post_uri(row.did, row.rkey)
    lot = {"author": row.did, "thread": root or uri}.get(unit, uri)
    return Drawn(row.did, lot, 1 / (p_kept * row.p), fields if row.state == "done" else None)


def _figure(figure: Figure | None) -> dict[str, Any] | None:
    return figure._asdict() if figure else None


class _Recent:
    """The journal's coverage as `status.covered` reads it, without what is too long ago to be many rows."""

    def __init__(self, journal: Database) -> None:
        self._db = journal
        self.is_whole = True
        """Whether nothing of what was held was left out."""

    async def openings(self) -> list[Opened]:
        """See `JournalReader.openings`."""
        rows = await self._db.rows(f"SELECT {OPENING_COLUMNS} FROM opening ORDER BY opened DESC LIMIT {ROWS}")
        return [Opened(*row) for row in reversed(rows)]

    async def held(self) -> list[Held]:
        """See `JournalReader.held`."""
        rows = await self._db.rows(f"SELECT {HELD_COLUMNS} FROM held ORDER BY id DESC LIMIT {ROWS}")
        self.is_whole = len(rows) < ROWS
        return [Held(*row) for row in reversed(rows)]

    async def gaps(self) -> list[Gap]:
        """See `JournalReader.gaps`."""
        rows = await self._db.rows(f"SELECT {GAP_COLUMNS} FROM gap ORDER BY id DESC LIMIT {ROWS}")
        return [Gap(*row) for row in reversed(rows)]

    async def runs(self) -> list[dict[str, Any]]:
        """The newest one; see `JournalReader.runs`."""
        rows = await self._db.rows("SELECT settings FROM run ORDER BY id DESC LIMIT 1")
        return [{"settings": settings} for (settings,) in rows]


async def coverage(journal: Database, now: int) -> dict[str, Any]:
    """The last days, and the newest gaps. `whole`: whether every connection of the past is in it."""
    recent = _Recent(journal)
    found, _, _ = await covered(cast("JournalReader", recent))  # it asks just these four questions
    calendar = await asyncio.to_thread(days.calendar, found.stretches, now, DAYS)
    gaps = sorted(found.gaps, key=lambda gap: gap.at, reverse=True)
    return {
        "at": now // 1000,
        "days": calendar,
        "whole": recent.is_whole,
        "connections": ROWS,
        "since": format_time(found.stretches[0].begin) if found.stretches else None,
        "gaps": [
            {"host": gap.host, "cause": gap.cause, "at": gap.at // 1000,
             "from": None if gap.from_at is None else gap.from_at // 1000,
             "until": None if gap.until_at is None else gap.until_at // 1000}
            for gap in gaps[:10]
        ],
    }  # fmt: skip


async def counts(journal: Database, now: int) -> dict[str, Any]:
    """What became of posts and frames in the last hours: this hour and the one before, and the last 24."""
    hour = now // HOUR_US * HOUR_US
    return {
        "at": now // 1000,
        "hour": await reads.counts(journal, [hour, hour - HOUR_US]),
        "hour_since": (hour - HOUR_US) // 1000,
        "day": await reads.counts(journal, [hour - n * HOUR_US for n in range(24)]),
        "day_since": (hour - 23 * HOUR_US) // 1000,
    }


async def cost(ledger: Database, settings: Settings, now: int) -> dict[str, Any]:
    """What was spent on the last days, against the day's budget."""
    label = settings.label
    first = format_time(now - (SPEND_DAYS - 1) * days.DAY_US)[:10]
    return {
        "today": format_time(now)[:10],
        "days": await reads.spend(ledger, first),
        "currency": label.currency,
        "priced": label.model in label.prices,
        "budget_tokens": label.budget_tokens,
        "budget_money": label.budget_money,
    }


async def drift(ledger: Database, settings: Settings) -> list[dict[str, Any]]:
    """The daily probes: how many anchors were asked again, and how many answers are others now."""
    label = settings.label
    a_day = max(1, label.anchors * len(label.tasks))
    found = await drift_of(ledger, days=max(1, min(DRIFT_DAYS, PROBES // a_day)))
    rows = []
    for row in found[: 4 * DRIFT_DAYS]:
        share = Share(row["flipped"], row["n"])
        low, high = share.interval()
        names = ("day", "task", "model", "n", "failed", "flipped", "flipped_by_field")
        rows.append({**{name: row[name] for name in names}, "low": low, "high": high})
    return rows


def latency(seconds: Sequence[float]) -> dict[str, Any]:
    """How long calls took: the median, the 90th percentile, and of how many; None without any."""
    if len(seconds) < 2:  # noqa: PLR2004  (what statistics wants)
        return {"n": len(seconds), "median": seconds[0] if seconds else None, "p90": seconds[0] if seconds else None}
    tenths = quantiles(seconds, n=10, method="inclusive")
    return {"n": len(seconds), "median": round(tenths[4], 4), "p90": round(tenths[8], 4)}
