"""Estimates from the store alone: which share of the posts has which label, weighted, with intervals, and corrected.

A post counts by 1 / (p_kept * p_sampled). Posts that were drawn and got no label count too, by their reason. Text and
figures out; nothing is printed here.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from civicsky import datadir
from civicsky.document import Document
from civicsky.errors import Usage
from civicsky.gold import MAX_BYTES, Item, read_gold
from civicsky.measure import Corrected, Figure, Share, corrected_share, weighted_share
from civicsky.model import format_time, parse_moment, parse_time
from civicsky.settings import Settings
from civicsky.store import Store, open_store
from civicsky.task import Field, Task, load_task

Unit = Literal["post", "author", "thread"]
By = Literal["none", "day"]

NOTE: Final = (
    "The posts are those that were collected in the period, by the relay's clock (UTC), and are still live: deleted "
    "and hidden ones are gone, and gaps in coverage are not in it (see `civicsky coverage`). Posts that still wait for "
    "a label are not in it either. The first interval is about what such authors post, clustered by author; the second "
    "about the collected posts themselves."
)
NOTE_GOLD: Final = (
    "Corrected shares are of the posts that got a label, and hold if the gold posts are a uniform draw from those."
)


class Wanted(NamedTuple):
    """What is asked for."""

    tasks: Sequence[str] = ()
    """Names or files; none: those of the settings."""
    field: str | None = None
    """None: all fields."""
    since: str = ""
    until: str = ""
    """Dates or RFC 3339 times, by `event_at`; `until` is not included."""
    gold: Path | None = None
    by: By = "none"


class Post(NamedTuple):
    """A post that was drawn."""

    uri: str
    author: str
    unit: str
    day: str
    weight: float
    fields: Mapping[str, str] | None
    """The label; None: there is none."""
    reason: str
    """Why there is none."""
    made_by: tuple[str, str]
    """Model and prompt."""


class Row(NamedTuple):
    """One value of a field."""

    value: str
    """Or, of posts without a label: `unlabelled: REASON`."""
    share: Share
    """Of all that were drawn; for a field that only some posts have, of those that the model says have it."""
    of_labelled: Share | None
    """Of those that got a label; None where `share` is that already, and for posts without one."""
    corrected: Corrected | None
    """None without gold."""


class Table(NamedTuple):
    """A field of a task in a period."""

    task: str
    field: str
    among: dict[str, str]
    """The values of other fields that a post must have for this field to mean anything."""
    period: str
    """A day, or `all`."""
    collected: int
    """Live posts collected in the period, drawn or not."""
    drawn: int
    """Posts behind `share`."""
    authors: int
    unlabelled: dict[str, int]
    gold: int
    """Gold posts found among the labelled ones, for which the field means something."""
    rows: list[Row]
    warnings: list[str]


async def estimate(settings: Settings, wanted: Wanted) -> list[Table]:
    """Read the store and estimate. Raises `Usage` for what is asked wrongly, `Transient` for a store out of reach."""
    since, until = _moment("--since", wanted.since), _moment("--until", wanted.until)
    if since is not None and until is not None and since >= until:
        raise Usage(f"--since {wanted.since} is not before --until {wanted.until}")
    tasks = [load_task(name)[0] for name in wanted.tasks or settings.label.tasks]
    if wanted.field and not any(wanted.field == field.name for task in tasks for field in task.fields):
        known = ", ".join(field.name for task in tasks for field in task.fields)
        raise Usage(f"--field {wanted.field}: no task asked for has it; they have {known}")
    gold = {task.name: _gold(wanted.gold, task) for task in tasks} if wanted.gold else {}
    store = await _open(settings)
    try:
        collected, posts = await _read(store, tasks, settings.sample.unit, (since, until))
    finally:
        await store.close()
    tables = []
    for task in tasks:
        mine = posts[task.name]
        for period in ["all"] if wanted.by == "none" else sorted(collected):
            within = mine if period == "all" else [post for post in mine if post.day == period]
            live = collected.total() if period == "all" else collected[period]
            tables += [
                _table(task, field, period, live, within, gold.get(task.name))
                for field in task.fields
                if wanted.field in {None, field.name}
            ]
    return tables


def as_json(tables: Iterable[Table]) -> dict[str, Any]:
    """For programs. Intervals are 95 %."""
    return {
        "note": NOTE,
        "note_gold": NOTE_GOLD,
        "estimates": [
            {
                **table._asdict(),
                "rows": [
                    {
                        "value": row.value,
                        "share": _share_json(row.share),
                        "of_labelled": None if row.of_labelled is None else _share_json(row.of_labelled),
                        "corrected": None
                        if row.corrected is None
                        else {**_figure_json(row.corrected.share), "tuning": row.corrected.tuning},
                    }
                    for row in table.rows
                ],
            }
            for table in tables
        ],
    }


def as_text(tables: Sequence[Table]) -> str:
    """For people."""
    lines: list[str] = []
    for table in tables:
        period = "" if table.period == "all" else f", {table.period}"
        among = ", where " + " and ".join(f"{k} is {v}" for k, v in table.among.items()) if table.among else ""
        lines += [
            f"{table.task}: {table.field}{among}{period}",
            f"  {table.collected:,} posts collected, {table.drawn:,} behind these shares ({table.authors:,} authors)"
            + (f"; gold for {table.gold:,}" if any(row.corrected for row in table.rows) else ""),
        ]
        for row in table.rows:
            lines.append(f"  {row.value:24} {row.share.population}  of the collected {_interval(row.share.collected)}")
            if row.of_labelled is not None:
                lines.append(f"  {'  of those labelled':24} {row.of_labelled.population}")
            if row.corrected is not None:
                lines.append(f"  {'  corrected by gold':24} {row.corrected.share}")
        lines += [*(f"  ! {warning}" for warning in table.warnings), ""]
    corrected = any(row.corrected for table in tables for row in table.rows)
    return "\n".join([*lines, NOTE, *([NOTE_GOLD] if corrected else [])])


# ---- reading ---------------------------------------------------------------------------------------------------------


async def _open(settings: Settings) -> Store:
    file = settings.data_dir / datadir.POSTS
    if settings.store.chosen == "sqlite" and not file.is_file():
        raise Usage(f"there is no store {file}; name its folder with --data-dir, or MongoDB with --store mongo")
    return await open_store(settings.store, file)


async def _read(
    store: Store, tasks: Sequence[Task], unit: Unit, window: tuple[int | None, int | None]
) -> tuple[Counter[str], dict[str, list[Post]]]:
    """(live posts by day, posts drawn by task) of the window of time."""
    collected: Counter[str] = Counter()
    posts: dict[str, list[Post]] = {task.name: [] for task in tasks}
    since, until = window
    async for document in store.documents("posts"):
        at = parse_time(document.get("event_at") or "")
        if document.get("state") != "live" or at is None:
            continue
        if (since is not None and at < since) or (until is not None and at >= until):
            continue
        day = format_time(at)[:10]
        collected[day] += 1
        for name, found in posts.items():
            post = _post(document, name, unit, day)
            if post is not None:
                found.append(post)
    return collected, posts


def _post(document: Document, task: str, unit: Unit, day: str) -> Post | None:
    """None: it was not drawn, or waits."""
    label = (document.get("labels") or {}).get(task)
    failure = (document.get("unlabelled") or {}).get(task)
    about = label or failure
    if not about:
        return None
    uri, author = document["_id"], document["did"]
    return Post(
        uri,
        author,
        {"post": uri, "author": author, "thread": document.get("reply_root") or uri}[unit],
        day,
        1 / (document.get("p_kept", 1.0) * about["p_sampled"]),
        {name: field["value"] for name, field in label["fields"].items()} if label else None,
        "" if label else about["reason"],
        (label["model"], label["prompt"]) if label else ("", ""),
    )


def _gold(file: Path | None, task: Task) -> dict[str, Item]:
    """Gold items by URI; those without one cannot be found in the store."""
    assert file is not None
    try:
        if file.stat().st_size > MAX_BYTES:
            raise Usage(f"{file}: more than {MAX_BYTES:,} bytes; split the file")
        data = file.read_bytes()
    except OSError as error:
        raise Usage(f"{file}: {error.strerror}; name a CSV or JSONL file of judged posts") from None
    gold = read_gold(file.name, data, {field.name: field.values for field in task.fields})
    return {item.uri: item for item in gold.items if item.uri}


def _moment(flag: str, text: str) -> int | None:
    moment = parse_moment(text) if text else None
    if text and moment is None:
        raise Usage(f"{flag} {text}: neither a date (2026-11-22, UTC) nor a time (2026-11-22T16:00:00Z)")
    return moment


# ---- estimating ------------------------------------------------------------------------------------------------------


def _table(
    task: Task, field: Field, period: str, collected: int, posts: Sequence[Post], gold: Mapping[str, Item] | None
) -> Table:
    labelled = [post for post in posts if post.fields is not None]
    having = [post for post in labelled if _value(post, field.name) is not None]
    # Which posts without a label would have had a field that only some have, nobody knows.
    base = having if field.only_if else [*having, *(post for post in posts if post.fields is None)]
    reasons = Counter(post.reason for post in base if post.fields is None)
    seen = {_value(post, field.name) or "" for post in having}
    values = [*field.values, *sorted(seen - {*field.values})]  # also those of an older version of the task
    judged = [_judged(gold.get(post.uri), field) for post in labelled] if gold is not None else []
    rows = [
        Row(
            value,
            _share(base, [_value(post, field.name) == value for post in base]),
            _share(having, [_value(post, field.name) == value for post in having]) if reasons else None,
            _corrected(labelled, judged, field, value) if gold is not None else None,
        )
        for value in values
    ]
    rows += [
        Row(
            f"unlabelled: {why}",
            _share(base, [post.fields is None and post.reason == why for post in base]),
            None,
            None,
        )
        for why in sorted(reasons)
    ]
    found = sum(truth is not None and truth.applies for truth in judged)
    return Table(
        task.name,
        field.name,
        dict(field.only_if),
        period,
        collected,
        len(base),
        len({post.author for post in base}),
        dict(reasons),
        found,
        rows,
        _warnings(rows, labelled, found if gold is not None else None),
    )


def _value(post: Post, field: str) -> str | None:
    return post.fields.get(field) if post.fields is not None else None


def _share(posts: Sequence[Post], hits: Sequence[bool]) -> Share:
    return weighted_share(
        hits, [post.weight for post in posts], [post.author for post in posts], [post.unit for post in posts]
    )


class _Truth(NamedTuple):
    applies: bool
    value: str | None


def _judged(item: Item | None, field: Field) -> _Truth | None:
    """What people say of a field; None when nobody does, or not clearly."""
    if item is None:
        return None
    for name, value in field.only_if.items():
        truth = item.truth(name)
        if truth.value is None:
            return None
        if truth.value != value:
            return _Truth(applies=False, value=None)
    truth = item.truth(field.name)
    return None if truth.value is None else _Truth(applies=True, value=truth.value)


def _corrected(posts: Sequence[Post], judged: Sequence[_Truth | None], field: Field, value: str) -> Corrected:
    return corrected_share(
        [_value(post, field.name) == value for post in posts],
        [None if truth is None else truth.value == value for truth in judged],
        [post.weight for post in posts],
        [post.author for post in posts],
        [_value(post, field.name) is not None for post in posts],
        [None if truth is None else truth.applies for truth in judged],
    )


def _warnings(rows: Sequence[Row], labelled: Sequence[Post], gold: int | None) -> list[str]:
    found = [row.share.warning for row in rows[:1] if row.share.warning]
    makers = Counter(post.made_by for post in labelled)
    if len(makers) > 1:
        found.append(f"labels of {len(makers)} models or prompts are mixed; `civicsky label --again` makes them one")
    if gold == 0:
        found.append("none of the gold posts is among the labelled posts of the period: nothing could be corrected")
    elif gold is not None:
        found += [f"gold: {row.corrected.warning}" for row in rows[:1] if row.corrected and row.corrected.warning]
    return found


# ---- showing ---------------------------------------------------------------------------------------------------------


def _interval(figure: Figure) -> str:
    return f"[{figure.low:.3f}, {figure.high:.3f}]"


def _figure_json(figure: Figure) -> dict[str, Any]:
    return {
        "value": figure.value, "low": figure.low, "high": figure.high, "n": figure.n, "authors": figure.clusters
    }  # fmt: skip


def _share_json(share: Share) -> dict[str, Any]:
    return {
        **_figure_json(share.population),
        "collected_low": share.collected.low,
        "collected_high": share.collected.high,
        "effective_n": share.effective,
    }
