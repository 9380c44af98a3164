"""What a labelling will take, before any call: posts, requests, tokens, money, hours, disk, precision, three prompts.

Each figure says what it rests on: the data directory, the packaged sample, or an assumption. Nobody is asked anything.
"""

import json
import os
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any, Final, NamedTuple

from civicsky import datadir
from civicsky.coverage import Stretch, cover
from civicsky.decode import decode
from civicsky.errors import BadInput, Usage
from civicsky.frames import read_frames, sample_file
from civicsky.journal import JournalReader
from civicsky.ledger import LedgerReader
from civicsky.log import harmless
from civicsky.model import Asked, Spend
from civicsky.prompt import MAX_REASON_CHARS, Message, Way, messages, response_format, word_messages
from civicsky.record import readable
from civicsky.settings import Label, Price, Settings
from civicsky.task import Task, load_tasks
from civicsky.window import share_of_day, window_of
from civicsky.worker import judge_record

FRAMES_A_SECOND: Final = (300, 450)
"""Of the whole network, as published counts of 2025 and 2026 have it; the middle is reckoned with."""
POSTS_A_FRAME: Final = 0.09
ENGLISH: Final = 0.45
"""Share of the posts that is kept. A guess: no count of it is published."""
CHARACTERS_A_TOKEN: Final = 4
"""Of English text, as the makers of tokenisers say; other languages and emoji take more tokens."""
SECONDS_A_CALL: Final = 1.0

MIN_HELD_US: Final = 3_600_000_000
"""Less than a whole hour says too little of a day."""
MIN_LABELS: Final = 100
MIN_KEPT: Final = 1000
WINDOW_DAYS: Final = 7
NEWEST: Final = 200
"""Posts whose length is measured."""
SHOWN: Final = 3
"""Rendered prompts of each task."""
DAYS_A_MONTH: Final = 30
COLUMNS: Final = 100
"""Of the figures for people."""

_DAY_SECONDS: Final = 86_400
_Z: Final = 1.959963984540054  # the 97.5 % quantile of the normal distribution


class Traffic(NamedTuple):
    """Posts of a day, as they come from the network."""

    posts: float
    kept: float
    hours: float | None
    """Held, over which it was measured; None: assumed."""


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


def assumed_traffic(*, only_english: bool) -> Traffic:
    """Of the whole network."""
    posts = fmean(FRAMES_A_SECOND) * POSTS_A_FRAME * _DAY_SECONDS
    return Traffic(posts, posts * ENGLISH if only_english else posts, None)


def measured_traffic(hours: Iterable[Counter[tuple[str, str]]], held_us: int) -> Traffic | None:
    """From the journal's counts of some hours, and the time of the stream that was held in them.

    None when that was less than an hour. What was read twice is not counted: it is `stale` the second time.
    """
    if held_us < MIN_HELD_US:
        return None
    total: Counter[tuple[str, str]] = sum(hours, Counter())
    kept = total["post", "kept"] + total["post", "shed"]
    a_day = _DAY_SECONDS * 1e6 / held_us
    return Traffic((kept + total["post", "rejected"]) * a_day, kept * a_day, held_us / 3.6e9)


def held_since(stretches: Sequence[Stretch], days: float) -> tuple[int, int]:
    """(beginning, microseconds held) of the last days before the end of what was held."""
    if not stretches:
        return 0, 0
    since = stretches[-1].end - int(days * _DAY_SECONDS * 1e6)
    return since, sum(max(0, one.end - max(one.begin, since)) for one in stretches if one.kind == "held")


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


async def gather(settings: Settings) -> dict[str, Any]:
    """The plan. Raises `Usage` for a task that cannot be read and for a database of another version."""
    tasks = [task for task, _ in load_tasks(settings.label.tasks)]
    found = await _found(settings)
    label, context = settings.label, settings.context
    asked = [Asked(readable(fields)[: label.max_chars]) for fields in found.posts]
    loads = [found.load or estimated_load(task, label, asked, _parts(task, settings, found.posts)) for task in tasks]
    price = label.prices.get(label.model)
    tokens_a_post = sum(load.tokens_in + load.tokens_out for load in loads)
    money_a_post = money(price, sum(load.tokens_in for load in loads), sum(load.tokens_out for load in loads))
    probes = 0 if found.load else label.anchors  # else they are in the load
    draw = drawn(settings, found.traffic.kept, probes, tokens_a_post, money_a_post)
    asked_a_task = draw.posts + min(probes, draw.posts)
    requests, tokens_in, tokens_out = (
        asked_a_task * sum(getattr(load, name) for load in loads) for name in ("requests", "tokens_in", "tokens_out")
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
            "hours_a_day": _share_of_day(settings) * 24,
            "posts_a_day": found.traffic.posts,
            "kept_a_day": found.traffic.kept,
            "kept": settings.filter.keep,
        },
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


async def _found(settings: Settings) -> Found:
    folder = settings.data_dir.expanduser().absolute()
    traffic = assumed_traffic(only_english=settings.filter.keep == "english")
    found = Found(traffic, None, None, ON_SAMPLE, [], from_journal=False)
    if (folder / datadir.JOURNAL).is_file():
        found = await _measured(folder, settings, found)
    share, all_day = _share_of_day(settings), found.traffic
    found = found._replace(traffic=Traffic(all_day.posts * share, all_day.kept * share, all_day.hours))
    return found if found.posts else found._replace(posts=sample_posts())


def _share_of_day(settings: Settings) -> float:
    """Which part of a day is held."""
    hours = settings.source.window
    is_part = hours.is_set and hours.resume == "live"
    return share_of_day(window_of(hours.begin, hours.to, hours.zone)) if is_part else 1.0


async def _measured(folder: Path, settings: Settings, found: Found) -> Found:
    label = settings.label
    async with AsyncExitStack() as stack:
        journal = await JournalReader.open(folder / datadir.JOURNAL)
        stack.push_async_callback(journal.close)
        since, held = held_since(cover(await journal.held(), await journal.gaps()).stretches, WINDOW_DAYS)
        hours = await journal.hours(since - MIN_HELD_US)
        posts = [fields for row in await journal.newest(NEWEST) if (fields := row.fields)]
        found = found._replace(
            traffic=measured_traffic(hours.values(), held) or found.traffic, posts=posts, from_journal=bool(posts),
            there=True,
        )  # fmt: skip
        if not (folder / datadir.LEDGER).is_file():
            return found
        ledger = await LedgerReader.open(folder / datadir.LEDGER)
        stack.push_async_callback(ledger.close)
        calls, seconds = await ledger.seconds_a_call()
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


# ---- for people ------------------------------------------------------------------------------------------------------


def as_text(plan: dict[str, Any]) -> str:
    """For people, prompts and all."""
    traffic, sample, tokens, hours = plan["traffic"], plan["sample"], plan["tokens"], plan["busy"]
    low, high = FRAMES_A_SECOND
    only_english = traffic["kept"] == "english"
    which = "English ones" if only_english else "kept"
    basis = f"assumed: {low} to {high} frames/s, {POSTS_A_FRAME:.0%} posts"
    basis += f", {ENGLISH:.0%} of them English" if only_english else ""
    if traffic["basis"] == "measured":
        basis = f"measured: {traffic['hours_held']:,.1f} hours held"
        basis += "; less than a day, so look at the time of day" if traffic["hours_held"] < 23.5 else ""  # noqa: PLR2004
    basis += f"; source.window: {traffic['hours_a_day']:.1f} hours a day" if traffic["hours_a_day"] < 24 else ""  # noqa: PLR2004
    probes = "" if tokens["basis"] == "measured" else ", drift probes included"
    there = "" if plan["data_dir_used"] else " (nothing was collected there: all is assumed)"
    lines = [
        f"data directory   {harmless(plan['data_dir'])}{there}",
        f"model            {harmless(plan['model']) or 'none chosen'}; tasks: {', '.join(plan['tasks'])}",
        f"traffic          {traffic['posts_a_day']:,.0f} posts a day, {traffic['kept_a_day']:,.0f} {which} ({basis})",
        f"drawn            {sample['posts_a_day']:,.0f} a day ({_why(sample)})",
        f"precision        {_precision(plan['precision'])}",
        f"requests         {plan['requests_a_day']:,.0f} a day{probes}",
        f"tokens           {tokens['in_a_day']:,.0f} in, {tokens['out_a_day']:,.0f} out a day; "
        f"{tokens['in_a_label']:,.0f} and {tokens['out_a_label']:,.0f} a label ({_rule(plan)})",
        f"cost             {_cost(plan)}",
        f"busy             {hours['hours_a_day']:,.1f} hours a day by {hours['bounded_by']} "
        f"({hours['seconds_a_call']:.2f} s a call, {hours['basis']})" + _too_much(hours),
        *_disk_text(plan["disk"]),
    ]
    wrap = textwrap.TextWrapper(COLUMNS, subsequent_indent=" " * 17, break_long_words=False, break_on_hyphens=False)
    lines = [part for line in lines for part in wrap.wrap(line)]
    lines += [
        "",
        f"What would be sent, about posts of the {plan['prompts_of']}"
        + (" (made up)" if plan["prompts_of"] == "sample" else "")
        + ("; the context would be fetched first" if plan["context"] else ""),
    ]
    beginnings: set[str] = set()
    for request in plan["prompts"]:
        about = f", {request['field']}" if "field" in request else ""
        lines += ["", f"== {request['task']}{about} ({request['way']})"]
        for message in request["messages"]:
            again = message["role"] == "system" and message["content"] in beginnings
            shown = ["(the same as above)"] if again else map(_whole, message["content"].split("\n"))
            lines += [f"-- {message['role']}", *shown]
            beginnings.add(message["content"])
    return "\n".join(lines)


def _precision(precision: dict[str, Any]) -> str:
    if precision["half_width_a_day"] is None:
        return "no posts, no estimate"
    return (
        f"a share of .5 is known to within {precision['half_width_a_day']:.4f} from a day, "
        f"{precision['half_width_a_month']:.4f} from {DAYS_A_MONTH} (95 %; less well where few authors post much)"
    )


def _why(sample: dict[str, Any]) -> str:
    if sample["bounded_by"] == "all":
        return "all"
    return f"{sample['bounded_by']}; {sample['share']:.1%} of these, drawn by {sample['unit']}"


def _rule(plan: dict[str, Any]) -> str:
    tokens = plan["tokens"]
    if tokens["basis"] == "measured":
        return f"measured on {tokens['labels']:,} labels"
    rule = f"estimated: {CHARACTERS_A_TOKEN} characters a token, longest answer, posts of the {tokens['characters_of']}"
    return rule + (", context as long as the post for each part" if plan["context"] else "")


def _cost(plan: dict[str, Any]) -> str:
    cost = plan["cost"]
    if cost["a_day"] is None:
        void = "; until then label.budget_money bounds nothing" if cost["budget_without_price"] else ""
        return f"no price given for {harmless(plan['model']) or 'a model'}: set label.prices{void}"
    at_most = "; less where the server has the beginning of a prompt in its cache" if cost["cached_is_cheaper"] else ""
    return f"{cost['a_day']:,.2f} {cost['currency']} a day, {cost['a_month']:,.2f} in {DAYS_A_MONTH} days{at_most}"


def _too_much(hours: dict[str, Any]) -> str:
    return "; MORE THAN A DAY HAS: fewer posts, more servers" if hours["hours_a_day"] > 24 else ""  # noqa: PLR2004


def _disk_text(disk: dict[str, Any]) -> list[str]:
    journal = disk["journal"]
    bound = " (journal.max_bytes is reached)" if journal["bound_reached"] else ""
    return [
        f"disk             {disk['basis']}" + (f", {disk['posts']:,} kept posts" if disk["posts"] else ""),
        f"  journal        {_bytes(journal['a_day'])} a day, {_bytes(journal['steady'])} in the long run{bound}",
        *(
            f"  {name:14} {_bytes(disk[name]['a_day'])} a day, {_bytes(disk[name]['a_month'])} a month, for ever"
            for name in ("ledger", "store")
        ),
    ]


def _bytes(n: float) -> str:
    return f"{n / 1e9:,.2f} GB" if n >= 1e9 else f"{n / 1e6:,.1f} MB"  # noqa: PLR2004


def _whole(line: str) -> str:
    """Harmless as a line of the log is, but not cut."""
    return "".join(harmless(line[at : at + 500]) for at in range(0, len(line), 500))
