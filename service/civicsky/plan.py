"""What a labelling will take, before any call: posts, requests, tokens, money, hours, disk, precision, three prompts.

Each figure says what it rests on: the data directory, the packaged sample, or an assumption. Nobody is asked anything.
"""

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any, Final, NamedTuple

from civicsky import datadir
from civicsky.coverage import cover
from civicsky.decode import decode
from civicsky.errors import BadInput, Usage
from civicsky.frames import read_frames, sample_file
from civicsky.gate import Gate, chosen
from civicsky.journal import JournalReader
from civicsky.ledger import LedgerReader
from civicsky.model import Asked, Spend, format_time, now_us
from civicsky.prompt import MAX_REASON_CHARS, Message, Way, messages, response_format, word_messages
from civicsky.record import readable
from civicsky.sample import HOUR_US
from civicsky.settings import Label, Price, Settings, expanded
from civicsky.task import Task, load_tasks
from civicsky.traffic import (
    MIN_HELD_US,
    Hourly,
    Reading,
    Traffic,
    always,
    assumed_traffic,
    by_hour,
    expected,
    held_since,
    measured_traffic,
    seconds_until,
    share_of_day,
)
from civicsky.window import share_open, window_of
from civicsky.worker import judge_record

CHARACTERS_A_TOKEN: Final = 4
"""Of English text, as the makers of tokenisers say; other languages and emoji take more tokens."""
SECONDS_A_CALL: Final = 1.0

POSTS: Final = 10_000
"""For which it is told how long they take, unless another number is asked for."""
MIN_LABELS: Final = 100
MIN_KEPT: Final = 1000
WINDOW_DAYS: Final = 7
NEWEST: Final = 200
"""Posts whose length is measured."""
SHOWN: Final = 3
"""Rendered prompts of each task."""
DAYS_A_MONTH: Final = 30
_Z: Final = 1.959963984540054  # the 97.5 % quantile of the normal distribution


class Load(NamedTuple):
    """What one label takes: one post under one task."""

    requests: float
    tokens_in: float
    tokens_out: float
    labels: int | None = None
    """Labels over which it was measured, with failures and probes; None: estimated."""


class Drawn(NamedTuple):
    """Posts drawn a day."""

    posts: float
    why: str
    """The setting that bounds them, or `all`."""


class Behind(NamedTuple):
    """What a gate lets through of one task's drawn posts."""

    gate: Gate
    asked: float
    """Share of them about which the model is asked."""
    posts: int | None = None
    """Posts of the data directory that this gate looked at, if it is measured on them; None: on its GOLD."""


class Bound(NamedTuple):
    """One thing that a day's calls take time of."""

    name: str
    hours: float
    """A day, if nothing else held them up."""


class Bytes(NamedTuple):
    """Disk that one post takes."""

    journal: float
    """A kept post."""
    ledger: float
    ledger_label: float
    """A label, above what the kept post takes."""
    store: float
    store_label: float
    posts: int | None = None
    """Kept posts over which the user's own were measured; then what labels take is in the two others."""


ON_SAMPLE: Final = Bytes(1_500, 240, 1_840, 1_610, 2_170)
"""Measured on the packaged sample (416 kept posts, 373 labels, pages in use), in SQLite's files."""


# ---- the arithmetic --------------------------------------------------------------------------------------------------


def estimated_load(task: Task, label: Label, posts: Sequence[Asked], parts: float) -> Load:
    """By the length of the rendered prompts of some posts: four characters a token, nothing for the chat's own marks.

    `parts`: how many other posts are given with one on average; each is taken to be as long as a post. The answer is
    taken to be the longest that the task allows. With `words` every word is taken to be asked for.
    """
    around = parts * fmean(len(asked.text) for asked in posts)
    if way_of(task, label) == "words":
        sent = fmean(sum(_length(word_messages(words, asked)) for words in task.words) for asked in posts)
        n = len(task.words)
        return Load(n, (sent + n * around) / CHARACTERS_A_TOKEN, n)
    together = list(_batches(posts, label.posts_per_request))
    sent = sum(_length(_messages(task, request)) for request in together) / len(posts)
    longest: dict[str, str] = {field.name: max(field.values, key=len) for field in task.fields}
    if task.reason:
        longest["reason"] = "x" * (MAX_REASON_CHARS // 2)
    said = min(len(json.dumps(longest)) / CHARACTERS_A_TOKEN, label.max_tokens)
    return Load(len(together) / len(posts), (sent + around) / CHARACTERS_A_TOKEN, said)


def measured_load(labels: int, spend: Spend) -> Load | None:
    """From what was spent on some labels; None when they are too few."""
    if labels < MIN_LABELS or not spend.calls:
        return None
    return Load(spend.calls / labels, spend.tokens_in / labels, spend.tokens_out / labels, labels)


def behind(gate: Gate, ask_anyway: float, looked_at: int, under: int) -> Behind:
    """By what this gate said of the user's own posts once they are enough, else by what its file states of GOLD."""
    measured = looked_at >= MIN_LABELS
    skipped = under / looked_at if measured else gate.skipped.value
    return Behind(gate, 1 - skipped * (1 - ask_anyway), looked_at if measured else None)


def money(price: Price | None, tokens_in: float, tokens_out: float) -> float | None:
    """In `label.currency`; None without a price. Input that the server has in its cache may cost less."""
    return None if price is None else (tokens_in * price.input + tokens_out * price.output) / 1e6


def drawn(settings: Settings, kept: float, probes: int, tokens_a_post: float, money_a_post: float | None) -> Drawn:
    """Posts of a day that are drawn: what is wished for, what the budgets pay for besides the probes, what there is."""
    bounds = [Drawn(kept, "all")]
    if settings.sample.posts_per_day:
        bounds.append(Drawn(settings.sample.posts_per_day, "sample.posts_per_day"))
    if settings.label.budget_tokens and tokens_a_post:
        bounds.append(Drawn(settings.label.budget_tokens / tokens_a_post - probes, "label.budget_tokens"))
    if settings.label.budget_money and money_a_post:
        bounds.append(Drawn(settings.label.budget_money / money_a_post - probes, "label.budget_money"))
    least = min(bounds, key=lambda bound: bound.posts)
    return least._replace(posts=max(0.0, least.posts))


def busy(label: Label, requests: float, tokens: float, seconds_a_call: float) -> list[Bound]:
    """Hours a day that the model's servers need, by what holds them up; the longest first."""
    servers, slots = 1 + len(label.more_urls), label.slots
    if label.model == "local":
        servers, slots = 1, min(slots, max(1, len(os.sched_getaffinity(0)) - 1))
    bounds = [Bound("label.slots", requests * seconds_a_call / slots / 3600)]
    for name, amount in (("requests", requests), ("tokens", tokens)):
        minute, day = getattr(label, f"{name}_per_minute"), getattr(label, f"{name}_per_day")
        if minute:
            bounds.append(Bound(f"label.{name}_per_minute", amount / (minute * servers) / 60))
        if day:
            bounds.append(Bound(f"label.{name}_per_day", amount / (day * servers) * 24))
    return sorted(bounds, key=lambda bound: -bound.hours)


def half_width(n: float) -> float | None:
    """Of the 95 % interval of a share of .5 that n posts give, each drawn by itself; None without a post."""
    return _Z * sqrt(0.25 / n) if n > 0 else None


def way_of(task: Task, label: Label) -> Way:
    """How a task is asked about first; a server that cannot answer so is asked in the next way.

    Raises `Usage` when words are wanted and the task has none.
    """
    if label.way == "words" and not task.words:
        raise Usage(
            f"label.way: the task {task.name!r} has no words; add [[words]] to its file, or set label.way to auto"
        )
    if label.way == "words" or (label.way == "auto" and label.model == "local" and task.words):
        return "words"
    return "schema" if label.way == "auto" else label.way


def rendered(task: Task, label: Label, posts: Sequence[Asked]) -> list[dict[str, Any]]:
    """The requests that would be sent about these posts; the ids of several posts are others each time."""
    way = way_of(task, label)
    if way == "words":
        return [
            {"task": task.name, "way": way, "field": words.field, "messages": word_messages(words, asked)}
            for asked in posts[:SHOWN]
            for words in task.words
        ]
    n = label.posts_per_request
    form = response_format(task, way, many=n > 1)
    return [
        {"task": task.name, "way": way, "response_format": form, "messages": _messages(task, request, several=n > 1)}
        for request in list(_batches(posts, n))[:SHOWN]
    ]


def _messages(task: Task, posts: Sequence[Asked], *, several: bool | None = None) -> list[Message]:
    many = len(posts) > 1 if several is None else several
    return messages(task, posts, [f"{number:08x}" for number in range(1, len(posts) + 1)] if many else ())


def _batches(posts: Sequence[Asked], n: int) -> Iterable[Sequence[Asked]]:
    return (posts[at : at + n] for at in range(0, len(posts), n))


def _length(sent: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in sent)


# ---- what is there ---------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What the data directory says, or the sample and the assumptions say instead."""

    traffic: Traffic
    hourly: dict[int, Hourly]
    """By hour of the day (UTC), as far as it was measured."""
    load: Load | None
    """As measured."""
    seconds_a_call: float | None
    bytes: Bytes
    posts: list[dict[str, Any]]
    """Fields of the newest kept posts."""
    from_journal: bool
    """Whether `posts` are the journal's."""
    there: bool = False
    """Whether there is a journal."""
    gate: Behind | None = None


async def gather(settings: Settings, *, posts: int = POSTS, now: int | None = None) -> dict[str, Any]:
    """The plan, with how long it takes from now (microseconds since 1970 UTC) until so many posts have come.

    Raises `Usage` for a task or a gate that cannot be read and for a database of another version.
    """
    files = load_tasks(settings.label.tasks)
    tasks = [task for task, _ in files]
    now = now_us() if now is None else now
    found = await _found(settings, chosen(settings.gate, files))
    mean, reading = found.traffic.an_hour(), _reading(settings)
    found = found._replace(traffic=found.traffic.read(share_of_day(reading, now)))
    label, context = settings.label, settings.context
    asked = [Asked(readable(fields)[: label.max_chars]) for fields in found.posts]
    loads = [found.load or estimated_load(task, label, asked, _parts(task, settings, found.posts)) for task in tasks]
    price = label.prices.get(label.model)
    tokens_a_post = sum(load.tokens_in + load.tokens_out for load in loads)
    money_a_post = money(price, sum(load.tokens_in for load in loads), sum(load.tokens_out for load in loads))
    probes = 0 if found.load else label.anchors  # else they are in the load
    draw = drawn(settings, found.traffic.kept, probes, tokens_a_post, money_a_post)
    # A gate keeps back drawn posts and no probes. The draw heeds budgets as if there were none.
    asked_of = [
        draw.posts * (found.gate.asked if found.gate and found.gate.gate.task == task.name else 1.0)
        + min(probes, draw.posts)
        for task in tasks
    ]
    requests, tokens_in, tokens_out = (
        sum(n * getattr(load, name) for n, load in zip(asked_of, loads, strict=True))
        for name in ("requests", "tokens_in", "tokens_out")
    )
    cost = money(price, tokens_in, tokens_out)
    seconds = found.seconds_a_call or SECONDS_A_CALL
    bounds = busy(label, requests, tokens_in + tokens_out, seconds)
    return {
        "data_dir": str(settings.data_dir),
        "data_dir_used": found.there,
        "model": label.model,
        "tasks": [task.name for task in tasks],
        "traffic": {
            "basis": "assumed" if found.traffic.hours is None else "measured",
            "hours_held": found.traffic.hours,
            "hours_a_day": share_of_day(reading, now) * 24,
            "posts_a_day": found.traffic.posts,
            "kept_a_day": found.traffic.kept,
            "kept": settings.filter.keep,
            "frames_a_day": found.traffic.frames,
            "frames_an_hour": mean.frames,
            "posts_an_hour": mean.posts,
            "kept_an_hour": mean.kept,
        },
        "time": _time(found, mean, posts, now, reading),
        "sample": {
            "posts_a_day": draw.posts,
            "bounded_by": draw.why,
            "share": draw.posts / found.traffic.kept if found.traffic.kept else None,
            "unit": settings.sample.unit,
        },
        "precision": {
            "half_width_a_day": half_width(draw.posts),
            "half_width_a_month": half_width(draw.posts * DAYS_A_MONTH),
        },
        **_gate(found.gate),
        "requests_a_day": requests,
        "anchors_a_day": label.anchors * len(tasks),
        "tokens": {
            "basis": "measured" if found.load else "estimated",
            "labels": found.load.labels if found.load else None,
            "characters_of": "journal" if found.from_journal else "sample",
            "in_a_day": tokens_in,
            "out_a_day": tokens_out,
            "in_a_label": fmean(load.tokens_in for load in loads),
            "out_a_label": fmean(load.tokens_out for load in loads),
        },
        "cost": {
            "currency": label.currency,
            "a_day": cost,
            "a_month": None if cost is None else cost * DAYS_A_MONTH,
            "budget_without_price": label.budget_money is not None and price is None,
            "cached_is_cheaper": price is not None and price.cached is not None and price.cached < price.input,
        },
        "busy": {
            "hours_a_day": bounds[0].hours,
            "bounded_by": bounds[0].name,
            "seconds_a_call": seconds,
            "basis": "measured" if found.seconds_a_call else "assumed",
            "bounds": {bound.name: bound.hours for bound in bounds},
        },
        "disk": _disk(settings, found, draw.posts * len(tasks)),
        "context": [name for name in ("quote", "root", "parent") if getattr(context, name)],
        "prompts_of": "journal" if found.from_journal else "sample",
        "prompts": [request for task in tasks for request in rendered(task, label, asked)],
    }


def _gate(found: Behind | None) -> dict[str, Any]:
    """What a gate saves; nothing without one."""
    if found is None:
        return {}
    basis = "gold" if found.posts is None else "measured"
    about = {"task": found.gate.task, "version": found.gate.version, "asked": found.asked}
    return {"gate": {**about, "basis": basis, "posts": found.posts or found.gate.gold_posts}}


def _reading(settings: Settings) -> Reading:
    """When the source reads: always, or in the hours of a window that leaves the others out."""
    hours = settings.source.window
    if not hours.is_set or hours.resume == "cursor":
        return always
    window = window_of(hours.begin, hours.to, hours.zone)
    return lambda begin: share_open(window, begin, begin + HOUR_US)


def _time(found: Found, mean: Hourly, posts: int, now: int, reading: Reading) -> dict[str, Any]:
    """How long until so many posts, and as many kept ones, have come, by the hours through which that lasts."""

    def hour(begin: int) -> Hourly:
        return expected(found.hourly, mean, begin, reading)

    this = hour(now)
    basis = "assumed" if found.traffic.hours is None else "measured"
    return {
        "posts": posts,
        "from": format_time(now),
        "seconds": seconds_until(posts, now, lambda begin: hour(begin).posts),
        "kept_seconds": seconds_until(posts, now, lambda begin: hour(begin).kept),
        "basis": basis if not this.days else "measured at this hour",
        "days": this.days,
        "posts_an_hour": this.posts,
        "kept_an_hour": this.kept,
        "frames_an_hour": this.frames,
    }


def _disk(settings: Settings, found: Found, labels: float) -> dict[str, Any]:
    """Bytes a day in each database, and of the journal, which forgets, in the steady state."""
    size, kept = found.bytes, found.traffic.kept
    journal = kept * size.journal
    need = journal * max(settings.journal.post_days, 1)
    disk: dict[str, Any] = {
        "basis": "measured on the packaged sample" if size.posts is None else "measured on the data directory",
        "posts": size.posts,
        "journal": {
            "a_day": journal,
            "steady": min(need, float(settings.journal.max_bytes)),
            "bound_reached": need > settings.journal.max_bytes,
        },
        "ledger": {"a_day": kept * size.ledger + labels * size.ledger_label},
        "store": {"kind": settings.store.chosen, "a_day": kept * size.store + labels * size.store_label},
    }
    for name in ("ledger", "store"):
        disk[name]["a_month"] = disk[name]["a_day"] * DAYS_A_MONTH
    return disk


def _parts(task: Task, settings: Settings, posts: Sequence[dict[str, Any]]) -> float:
    """How many other posts are given with one, on average."""
    fields = {"quote": "quote_uri", "root": "reply_root", "parent": "reply_parent"}
    wanted = [
        field
        for name, field in fields.items()
        if getattr(settings.context, name) and f"{{{name}}}" in task.context_format
    ]
    return fmean(len({post[field] for field in wanted} - {None}) for post in posts) if wanted else 0.0


async def _found(settings: Settings, gate: Gate | None) -> Found:
    folder = expanded(settings.data_dir)
    traffic = assumed_traffic(only_english=settings.filter.keep == "english")
    found = Found(traffic, {}, None, None, ON_SAMPLE, [], from_journal=False)
    if gate is not None:
        found = found._replace(gate=behind(gate, settings.gate.ask_anyway, 0, 0))
    if (folder / datadir.JOURNAL).is_file():
        found = await _measured(folder, settings, found)
    return found if found.posts else found._replace(posts=sample_posts())


async def _measured(folder: Path, settings: Settings, found: Found) -> Found:
    label = settings.label
    async with AsyncExitStack() as stack:
        journal = await JournalReader.open(folder / datadir.JOURNAL)
        stack.push_async_callback(journal.close)
        stretches = cover(await journal.held(), await journal.gaps()).stretches
        since, held = held_since(stretches, WINDOW_DAYS)
        hours = await journal.hours(since - MIN_HELD_US)
        posts = [fields for row in await journal.newest(NEWEST) if (fields := row.fields)]
        found = found._replace(
            traffic=measured_traffic(hours.values(), held) or found.traffic, hourly=by_hour(hours, stretches),
            posts=posts, from_journal=bool(posts), there=True,
        )  # fmt: skip
        if not (folder / datadir.LEDGER).is_file():
            return found
        ledger = await LedgerReader.open(folder / datadir.LEDGER)
        stack.push_async_callback(ledger.close)
        calls, seconds = await ledger.seconds_a_call()
        if found.gate is not None:
            gate = found.gate.gate
            found = found._replace(
                gate=behind(gate, settings.gate.ask_anyway, *await ledger.looked_at(gate.task, gate.version))
            )
        kept = (await journal.counts())["post", "kept", ""]
        in_journal = await journal.n_posts()
        files = [datadir.LEDGER, *([datadir.POSTS] if settings.store.chosen == "sqlite" else [])]
        sizes = [(folder / name).stat().st_size if (folder / name).is_file() else 0 for name in files]
        own = found.bytes
        if kept >= MIN_KEPT and in_journal >= MIN_KEPT and all(sizes):
            store = sizes[1] / kept if len(sizes) > 1 else None
            own = Bytes(
                await journal.size() / in_journal, sizes[0] / kept, 0.0,
                own.store if store is None else store, own.store_label if store is None else 0.0, kept,
            )  # fmt: skip
        return found._replace(
            load=measured_load(*await ledger.spent_a_post(None if label.model == "local" else label.model)),
            seconds_a_call=seconds if calls >= MIN_LABELS else None,
            bytes=own,
        )


def sample_posts() -> list[dict[str, Any]]:
    """Fields of the posts of the packaged sample that are kept. They are made up."""
    kept: dict[str, dict[str, Any]] = {}
    for frame in read_frames(sample_file()):
        try:
            ops = decode(frame).posts
        except BadInput:
            continue
        for op in ops:
            verdict = judge_record(op.cid, op.block) if op.needs_verdict else None
            if verdict and verdict.kind == "kept":
                kept[op.rkey] = json.loads(verdict.fields)
    return list(kept.values())
