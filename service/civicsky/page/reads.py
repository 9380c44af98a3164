"""What the page asks of the ledger and the journal: by their indexes only, and never for more than a bounded number.

Every query here is answered from keys: jobs by their numbers, which rise in the order in which posts came; all else by
the key of a post. A job's number is also how moments are found (`first_since`) and how posts of a time are drawn by lot
(`lots`): so a week of ten million posts costs no more than an hour of a thousand.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from statistics import median_low
from typing import Any, Final, NamedTuple
from zlib import crc32

from civicsky.model import STREAM, Key
from civicsky.sqlite import Database

LOOK_JOBS: Final = 128
"""Jobs in a row that are looked at to judge a place among them."""
GALLOPS: Final = 24
"""Steps, each twice as wide as the one before, over jobs of rounds and probes, which lie among those of the stream."""
KEYS_AT_ONCE: Final = 100
"""Posts of a part, after which the service's own work goes first: some milliseconds."""


class JobRow(NamedTuple):
    """A job of the stream, with its post as the ledger knows it."""

    id: int
    rkey: str
    did: str
    cid: str
    task: str
    state: str
    p: float
    """Probability with which it was drawn, and let through by a gate: p_sampled * p_asked."""
    reason: str | None
    post_state: str
    post_cid: str
    event_at: int
    v: int

    @property
    def key(self) -> Key:
        """Its post's."""
        return self.rkey, self.did

    @property
    def is_current(self) -> bool:
        """Whether it is about what the post says now, and the post is there."""
        return self.post_state == "live" and self.cid == self.post_cid


class Said(NamedTuple):
    """A label."""

    cid: str
    at: int
    fields: dict[str, tuple[str, float | None]]
    """By field (value, probability)."""
    model: str
    latency_ms: int
    calls: int
    """0 for a copy of another answer."""


class Written(NamedTuple):
    """A post as the journal has it."""

    state: str
    cid: str
    host: str
    p_kept: float
    fields: dict[str, Any] | None


_JOB: Final = (
    "SELECT job.id, job.rkey, job.did, job.cid, task, job.state, p_sampled * coalesce((SELECT p_asked FROM gate "
    "WHERE (gate.rkey, gate.did, gate.cid, gate.task) = (job.rkey, job.did, job.cid, job.task)), 1), "
    "reason, doc.state, doc.cid, event_at, v "
    "FROM job JOIN doc ON doc.rkey = job.rkey AND doc.did = job.did "
)


async def last_job(ledger: Database) -> int:
    """The highest number of a job; 0 without one."""
    ((n,),) = await ledger.rows("SELECT coalesce(max(id), 0) FROM job")
    return int(n)


async def first_since(ledger: Database, since: int, last: int) -> int:
    """The number of about the first job of the stream whose post's event is of `since` or later; `last` + 1: none is.

    Posts come in the order of their events but for some seconds: the rest is left to whoever looks at each.
    """

    async def is_late(at: int) -> bool | None:
        found = await _near(ledger, at, last)
        return None if not found else median_low([event_at for _, event_at in found[:9]]) >= since

    return await _search(is_late, last)


async def last_settled(ledger: Database, last: int) -> int:
    """The number of about the last job of the stream that is done or given up; those before it mostly are, too."""

    async def none_settled(at: int) -> bool | None:
        found = await _near(ledger, at, last)
        return None if not found else not _any_settled(found)

    return min(last, await _search(none_settled, last) + LOOK_JOBS - 1)


async def goes_on(ledger: Database, at: int, last: int) -> bool:
    """Whether labelling is beyond this number: of the next jobs of the stream from there on some are settled."""
    return _any_settled(await _near(ledger, at, last))


def _any_settled(found: Iterable[tuple[str, int]]) -> bool:
    return any(state in {"done", "dead", "gated", "erased"} for state, _ in found)


async def _near(ledger: Database, at: int, last: int) -> list[tuple[str, int]]:
    """(state, event_at) of jobs of the stream from this number on, about the nearest; empty: none up to `last`.

    However wide the steps become, the last jobs of all are looked at.
    """
    step, end = LOOK_JOBS, last - LOOK_JOBS + 1
    for _ in range(GALLOPS):
        if at > last:
            break
        found = await ledger.rows(
            "SELECT job.state, event_at FROM (SELECT * FROM job WHERE id >= ? ORDER BY id LIMIT ?) AS job "
            f"JOIN doc ON doc.rkey = job.rkey AND doc.did = job.did WHERE run = {STREAM}",
            (at, LOOK_JOBS),
        )
        if found:
            return [(str(state), int(event_at)) for state, event_at in found]
        at, step = min(at + step, max(end, at + LOOK_JOBS)), step * 2
    return []


async def _search(is_beyond: Any, last: int) -> int:
    """The first number of which this is true, by halves; True must not be followed by False but by a few."""
    low, high = 1, last + 1
    while low < high:
        middle = (low + high) // 2
        if await is_beyond(middle) is False:
            low = middle + 1
        else:
            high = middle
    return low


def lots(low: int, high: int, most: int) -> list[int]:
    """Numbers from `low` to `high` - 1, all, or else `most` / 2 to `most` drawn by lot: one of each so many in a row.

    The lot is fixed for each place, so that a moment later nearly the same ones are drawn.
    """
    step = 1
    while step * most < high - low:
        step *= 2
    blocks = range(low // step, (high - 1) // step + 1)
    drawn = (block * step + crc32(b"%d of %d" % (block, step)) % step for block in blocks)
    return [number for number in drawn if low <= number < high]


async def jobs(ledger: Database, numbers: Sequence[int]) -> list[JobRow]:
    """Those of the stream among these numbers (`KEYS_AT_ONCE` or fewer)."""
    marks = ",".join("?" * len(numbers))
    found = await ledger.rows(f"{_JOB}WHERE job.id IN ({marks}) AND run = {STREAM}", numbers)
    return [JobRow(*row) for row in found]


async def settled(ledger: Database, low: int, high: int, limit: int) -> list[JobRow]:
    """Jobs of the stream in this range of numbers that are done or given up, the last ones first."""
    found = await ledger.rows(
        f"{_JOB}WHERE job.id BETWEEN ? AND ? AND run = {STREAM} AND job.state IN ('done', 'dead') "
        "ORDER BY job.id DESC LIMIT ?",
        (low, high, limit),
    )
    return [JobRow(*row) for row in found]


async def said(ledger: Database, keys: Iterable[Key]) -> dict[Key, dict[str, Said]]:
    """By post and task the newest label."""
    found: dict[Key, dict[str, Said]] = {}
    for rkey, did, task, cid, at, answer in await ledger.rows_by_key(
        "SELECT rkey, did, task, cid, at, answer FROM label WHERE (rkey, did) IN ({keys}) AND answer IS NOT NULL", keys
    ):
        tasks = found.setdefault((rkey, did), {})
        if task not in tasks or tasks[task].at < at:
            told = json.loads(answer)
            fields = {name: (pair[0], pair[1]) for name, pair in told["fields"].items()}
            calls = 0 if told.get("cached_from") else int(told.get("calls") or 0)
            tasks[task] = Said(
                cid, at, fields, str(told.get("model_named") or ""), int(told.get("latency_ms") or 0), calls
            )
    return found


async def states(ledger: Database, keys: Iterable[Key]) -> dict[Key, tuple[str, str, int]]:
    """(state, cid, v) of posts as the ledger has them."""
    found = await ledger.rows_by_key("SELECT rkey, did, state, cid, v FROM doc WHERE (rkey, did) IN ({keys})", keys)
    return {(rkey, did): (state, cid, v) for rkey, did, state, cid, v in found}


async def journal_states(journal: Database, keys: Iterable[Key]) -> dict[Key, tuple[str, str]]:
    """(state, cid) of posts as the journal has them; one that it has pruned is left out."""
    found = await journal.rows_by_key("SELECT rkey, did, state, cid FROM post WHERE (rkey, did) IN ({keys})", keys)
    return {(rkey, did): (state, cid) for rkey, did, state, cid in found}


async def written(journal: Database, keys: Iterable[Key]) -> dict[Key, Written]:
    """Posts as the journal has them, with what their authors wrote."""
    found = await journal.rows_by_key(
        "SELECT rkey, did, state, cid, host, p_kept, fields FROM post WHERE (rkey, did) IN ({keys})", keys
    )
    return {
        (rkey, did): Written(state, cid, host, p_kept, json.loads(fields) if fields else None)
        for rkey, did, state, cid, host, p_kept, fields in found
    }


async def weights(journal: Database, keys: Iterable[Key]) -> dict[Key, tuple[str, float, str]]:
    """(host, p_kept, first post of the thread or empty); host is empty for a post that only a feed showed."""
    found = await journal.rows_by_key(
        "SELECT rkey, did, host, p_kept, coalesce(fields ->> '$.reply_root', '') FROM post "
        "WHERE (rkey, did) IN ({keys})",
        keys,
    )
    return {(rkey, did): (host, p_kept, root) for rkey, did, host, p_kept, root in found}


async def counts(journal: Database, hours: Sequence[int]) -> dict[str, dict[str, int]]:
    """What became of posts and frames in these hours: by `unit.outcome`, by reason; read by their key."""
    marks = ",".join("?" * len(hours))
    found: dict[str, dict[str, int]] = {}
    for unit, outcome, reason, n in await journal.rows(
        f"SELECT unit, outcome, reason, sum(n) FROM count WHERE hour IN ({marks}) AND unit IN ('frame', 'post') "
        "GROUP BY unit, outcome, reason",
        hours,
    ):
        name = reason if unit == "post" or outcome == "quarantined" else ""  # a relay names why frames are ignored
        of = found.setdefault(f"{unit}.{outcome}", {})
        of[name] = of.get(name, 0) + n
    return found


async def spend(ledger: Database, first: str) -> list[dict[str, Any]]:
    """What calls cost since a day (UTC, such as 2026-11-22), the newest day first; one row for each day."""
    names = ("day", "calls", "tokens", "cost", "posts")
    found = await ledger.rows(
        "SELECT day, sum(calls), sum(tokens_in + tokens_out), sum(cost), sum(posts) FROM spend WHERE day >= ? "
        "GROUP BY day ORDER BY day DESC",
        (first,),
    )
    return [dict(zip(names, row, strict=True)) for row in found]


def is_drawn_of(row: JobRow, known: Mapping[Key, tuple[str, float, str]]) -> bool:
    """Whether a job's post is a draw from the network: the firehose brought it, or nobody knows any more."""
    return row.key not in known or bool(known[row.key][0])
