"""Estimates from the store alone: which share of the posts has which label, weighted, with intervals, and corrected.

A post counts by 1 / (p_kept * p_sampled * p_asked); p_asked is below 1 for what a gate would have kept from the model.
Posts that were drawn and got no label count too, by their reason. Which posts count at all goes by their origin: a
feed's posts are no draw from the network. Text and figures out; nothing is printed here.
"""

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from civicsky import datadir, log
from civicsky.document import ANY, FEED, FIREHOSE, Document, origins_of
from civicsky.errors import Usage
from civicsky.model import parse_time
from civicsky.research.files import read_file
from civicsky.research.gold import Gold, Item, read_gold
from civicsky.research.measure import Corrected, Figure, Share, corrected_share, passed_share, weighted_share
from civicsky.settings import Settings
from civicsky.store import Store, open_existing as open_existing_store
from civicsky.task import Field, Task, load_task
from civicsky.typed import moment_of

Unit = Literal["post", "author", "thread"]
By = Literal["none", "day"]

COLUMNS: Final = 100
"""Of the notes for people."""
NOTE: Final = (
    "The posts are those that were collected in the period, by the relay's clock (UTC), and are still live: deleted "
    "and hidden ones are gone, and gaps in coverage are not in it (see `civicsky coverage`). Posts that still wait for "
    "a label are not in it either. The first interval is about what such authors post, clustered by author; the second "
    "about the collected posts themselves."
)
NOTES_ORIGIN: Final = {
    FIREHOSE: "Only posts that the firehose brought count (`--origin firehose`). A feed chooses what it shows: a post "
    "known only from a feed is no draw from the network. One that both brought counts. With `feeds.label_all` it was "
    "labelled for certain and has p_sampled 1, so it stands for itself alone, and the others for those like them.",
    FEED: "Only posts that this feed showed count. They say what the feed shows, and nothing of the network. A post of "
    "a feed is here whether or not posts were left out by chance, so p_kept does not count.",
    ANY: "Posts of every origin count, those that only a feed showed too: these shares are of this collection, and no "
    "estimate of the network.",
}
"""By what `Wanted.origin` begins with."""
NOTE_GOLD: Final = (
    "Corrected shares are of the posts that got a label, and hold if the gold posts are a uniform draw from those."
)


class Wanted(NamedTuple):
    """What is asked for."""

    tasks: Sequence[str] = ()
    """Names or files; none: those of the settings."""
    fields: Sequence[str] = ()
    """Names; none: all fields."""
    since: str = ""
    until: str = ""
    """Dates or RFC 3339 times, by `event_at`; `until` is not included."""
    gold: Path | None = None
    by: By = "none"
    origin: str = FIREHOSE
    """`firehose`, `feed:NAME`, or `any`; a post of both counts under both."""


Window = tuple[int | None, int | None]
"""From when, and before when, in microseconds since 1970 UTC; None: without an end."""


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
    p_asked: float = 1.0
    """By the gate's lot, which each post has for itself. It is in `weight`."""
    passed: bool | None = None
    """Whether the gate let it pass, or it was asked about all the same; None: no gate looked at it."""


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
    passed: Figure | None = None
    """Of those with this value that a gate looked at, the share that it let pass: what it does not miss. None without
    any."""


class Table(NamedTuple):
    """A field of a task in a period."""

    task: str
    field: str
    among: dict[str, str]
    """The values of other fields that a post must have for this field to mean anything."""
    period: str
    """A day, or `all`."""
    origin: str
    """See `Wanted.origin`."""
    collected: int
    """Live posts of this origin collected in the period, drawn or not."""
    drawn: int
    """Posts behind `share`."""
    authors: int
    unlabelled: dict[str, int]
    gold: int
    """Gold posts found among the labelled ones, for which the field means something."""
    rows: list[Row]
    warnings: list[str]
    gated: int = 0
    """Posts that were drawn and that the gate kept from the model: calls saved. They are in no share; those that it
    would have kept and that were asked about all the same stand for them."""


async def estimate(settings: Settings, wanted: Wanted) -> list[Table]:
    """Read the store and estimate. Raises `Usage` for what is asked wrongly, `Transient` for a store out of reach."""
    window = window_of(wanted.since, wanted.until)
    tasks = [load_task(name)[0] for name in wanted.tasks or settings.label.tasks]
    known = [field.name for task in tasks for field in task.fields]
    for name in wanted.fields:
        if name not in known:
            raise Usage(f"--field {name}: no task asked for has it; they have {', '.join(known)}")
    reading = Reading(tasks, settings.sample.unit, wanted.origin)
    gold = {task.name: gold_of(wanted.gold, task) for task in tasks} if wanted.gold else {}
    store = await open_existing(settings)
    try:
        async for document in store.documents("posts"):
            if is_within(document, window):
                reading.take(document)
    finally:
        await store.close()
    want_drawn_from(gold, reading)
    return tables(reading, wanted.by, {name: by_uri(one) for name, one in gold.items()}, wanted.fields)


class Reading:
    """What estimates need of the posts of a period."""

    def __init__(self, tasks: Sequence[Task], unit: Unit, origin: str) -> None:
        """Raises `Usage` for an origin that cannot be."""
        if origin not in {FIREHOSE, ANY} and not (origin.startswith(FEED) and origin != FEED):
            raise Usage(f"--origin {origin}: give firehose, any, or feed:NAME with the feed's name in the settings")
        self.tasks, self.origin = tasks, origin
        self.collected: Counter[str] = Counter()
        """Live posts by day, drawn or not."""
        self.posts: dict[str, list[Post]] = {task.name: [] for task in tasks}
        """Those that were drawn, by task."""
        self.gated: dict[str, Counter[str]] = {task.name: Counter() for task in tasks}
        """Those that a gate kept from the model, by task and day."""
        self.first = self.last = ""
        """Times of the first and last of those that have a label."""
        self._unit = unit

    def take(self, document: Document) -> bool:
        """Take a post in; False when it does not count, since it is not live or of another origin."""
        if document.get("state") != "live" or (self.origin != ANY and self.origin not in origins_of(document)):
            return False
        day = document["event_at"][:10]
        self.collected[day] += 1
        for name, found in self.posts.items():
            post = _post(document, name, self._unit, day, self.origin)
            if post is not None:
                found.append(post)
            self.gated[name][day] += name in (document.get("gated") or {})
            if post is not None and post.fields is not None:
                self.first = min(self.first or document["event_at"], document["event_at"])
                self.last = max(self.last, document["event_at"])
        return True


def tables(reading: Reading, by: By, gold: Mapping[str, Mapping[str, Item]], fields: Sequence[str] = ()) -> list[Table]:
    """Estimate from what was read. `gold`: by task and URI; `fields`: none means all."""
    found = []
    for task in reading.tasks:
        mine: dict[str, list[Post]] = {"all": reading.posts[task.name]}
        if by == "day":
            mine = {day: [] for day in sorted(reading.collected)}
            for post in reading.posts[task.name]:
                mine[post.day].append(post)
        for period, within in mine.items():
            live = reading.collected.total() if period == "all" else reading.collected[period]
            skipped = reading.gated[task.name]
            gated = skipped.total() if period == "all" else skipped[period]
            found += [
                _table(task, field, (period, reading.origin), live, within, gold.get(task.name), gated)
                for field in task.fields
                if not fields or field.name in fields
            ]
    return found


def note_of(origin: str) -> str:
    """What must be said of an origin."""
    return NOTES_ORIGIN[FEED if origin.startswith(FEED) else origin]


def as_json(tables: Iterable[Table]) -> dict[str, Any]:
    """For programs. Intervals are 95 %."""
    tables = list(tables)
    return {
        "note": NOTE,
        "notes_origin": {table.origin: note_of(table.origin) for table in tables},
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
                        "passed": None if row.passed is None else _figure_json(row.passed),
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
            + (f"; gold for {table.gold:,}" if any(row.corrected for row in table.rows) else "")
            + (f"; {table.gated:,} calls saved by the gate" if table.gated else ""),
        ]
        if not table.drawn:
            why = (
                "has a label: look at the period, or label it first"
                if table.collected
                else f"is live and of the origin {table.origin}: look at both; `civicsky status` names the feeds"
            )
            lines += [f"  no post of the period {log.harmless(why)}", ""]
            continue
        width = max(24, *(len(row.value) for row in table.rows))
        for row in table.rows:
            lines.append(
                f"  {row.value:{width}} {row.share.population}  of the collected {_interval(row.share.collected)}"
            )
            if row.of_labelled is not None:
                lines.append(f"  {'  of those labelled':{width}} {row.of_labelled.population}")
            if row.corrected is not None:
                lines.append(f"  {'  corrected by gold':{width}} {row.corrected.share}")
            if row.passed is not None:
                lines.append(f"  {'  passed the gate':{width}} {row.passed}")
        lines += [*(f"  ! {warning}" for warning in table.warnings), ""]
    corrected = any(row.corrected for table in tables for row in table.rows)
    origins = dict.fromkeys(table.origin for table in tables)
    notes = [NOTE, *map(note_of, origins), *([NOTE_GOLD] if corrected else [])]
    return "\n".join([*lines, *(part for note in notes for part in textwrap.wrap(note, COLUMNS))])


# ---- reading ---------------------------------------------------------------------------------------------------------


async def open_existing(settings: Settings) -> Store:
    """The store of the settings. Raises `Usage` when it is a file that is not there."""
    return await open_existing_store(settings.store, settings.data_dir / datadir.POSTS)


def is_within(document: Document, window: Window) -> bool:
    """Whether its event lies in the window; one without a time does not."""
    at = parse_time(document.get("event_at") or "")
    since, until = window
    return at is not None and (since is None or at >= since) and (until is None or at < until)


def _p_kept(document: Document, origin: str) -> float:
    """With which probability a post of this origin is here at all: a feed brings also what was left out by chance."""
    is_shown = origin != FIREHOSE and origins_of(document) - {FIREHOSE}
    return 1.0 if is_shown else float(document.get("p_kept", 1.0))


def _post(document: Document, task: str, unit: Unit, day: str, origin: str) -> Post | None:
    """None: it was not drawn, or waits."""
    label = (document.get("labels") or {}).get(task)
    failure = (document.get("unlabelled") or {}).get(task)
    about = label or failure
    if not about:
        return None
    uri, author = document["_id"], document["did"]
    p_asked = about.get("p_asked", 1.0)
    return Post(
        uri,
        author,
        {"post": uri, "author": author, "thread": document.get("reply_root") or uri}[unit],
        day,
        1 / (_p_kept(document, origin) * about["p_sampled"] * p_asked),
        {name: field["value"] for name, field in label["fields"].items()} if label else None,
        "" if label else about["reason"],
        (label["model"], label["prompt"]) if label else ("", ""),
        p_asked,
        (about.get("gate") or {}).get("passed"),
    )


def gold_of(file: Path, task: Task) -> Gold:
    """A file of judged posts, as a task's fields need it. Raises `Usage`."""
    gold = read_gold(file.name, read_file(file), {field.name: field.values for field in task.fields})
    if gold.skewed:
        raise Usage(
            f"{file}: posts drawn by {log.harmless(gold.skewed)}, not uniformly, correct nothing; "
            "leave --gold out, or label a uniform draw"
        )
    return gold


def want_drawn_from(gold: Mapping[str, Gold], reading: Reading) -> None:
    """Raises `Usage` when gold that says what it was drawn from was drawn from other posts than those that count."""
    for frame in dict.fromkeys(frame for one in gold.values() for frame in one.frames):
        if frame.origin != reading.origin:
            raise Usage(
                f"--gold: drawn from posts of the origin {log.harmless(frame.origin)}, and this is about those of "
                f"{reading.origin}; give --origin {log.harmless(frame.origin)}, or gold of the same origin"
            )
        if reading.first and not (frame.since <= reading.first and reading.last < frame.until):
            raise Usage(
                f"--gold: drawn from posts from {log.harmless(frame.since)} to {log.harmless(frame.until)}, and others "
                "count here; give that period with --since and --until, or label a draw from this one"
            )


def by_uri(gold: Gold) -> dict[str, Item]:
    """Gold items by URI; those without one cannot be found in the store."""
    return {item.uri: item for item in gold.items if item.uri}


def window_of(since: str, until: str) -> Window:
    """A period as a person typed it; empty: without an end. Raises `Usage`."""
    window = moment_of("--since", since), moment_of("--until", until)
    if window[0] is not None and window[1] is not None and window[0] >= window[1]:
        raise Usage(f"--since {since} is not before --until {until}")
    return window


# ---- estimating ------------------------------------------------------------------------------------------------------


def _table(
    task: Task,
    field: Field,
    of: tuple[str, str],
    collected: int,
    posts: Sequence[Post],
    gold: Mapping[str, Item] | None,
    gated: int,
) -> Table:
    """`of`: period and origin."""
    labelled = [post for post in posts if post.fields is not None]
    having = [post for post in labelled if _value(post, field.name) is not None]
    # Which posts without a label would have had a field that only some have, nobody knows.
    base = having if field.only_if else [*having, *(post for post in posts if post.fields is None)]
    reasons = Counter(post.reason for post in base if post.fields is None)
    seen = {_value(post, field.name) or "" for post in having}
    values = [*field.values, *sorted(seen - {*field.values})]  # also those of an older version of the task
    judged = [_judged(gold.get(post.uri), field) for post in labelled] if gold is not None else []
    missed = [post.weight for post in posts if post.passed is False]
    rows = [
        Row(
            value,
            _share(base, [_value(post, field.name) == value for post in base]),
            _share(having, [_value(post, field.name) == value for post in having]) if reasons else None,
            _corrected(labelled, judged, field, value) if gold is not None else None,
            _passed([post for post in having if _value(post, field.name) == value], missed),
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
        *of,
        collected,
        len(base),
        len({post.author for post in base}),
        dict(reasons),
        found,
        rows,
        _warnings(rows, labelled, found if gold is not None else None),
        gated,
    )


def _value(post: Post, field: str) -> str | None:
    return post.fields.get(field) if post.fields is not None else None


def _share(posts: Sequence[Post], hits: Sequence[bool]) -> Share:
    return weighted_share(
        hits, [post.weight for post in posts], [post.author for post in posts], [post.unit for post in posts],
        [post.p_asked for post in posts],
    )  # fmt: skip


def _passed(posts: Sequence[Post], missed: Sequence[float]) -> Figure | None:
    """Which share of these posts a gate let pass; of those that it looked at.

    `missed`: what posts of any value weigh that it did not let pass; without any, nothing can be said.
    """
    seen = [post for post in posts if post.passed is not None]
    if not seen or not missed:
        return None
    passed, weights = [bool(post.passed) for post in seen], [post.weight for post in seen]
    return passed_share(passed, weights, [post.author for post in seen], sum(missed) / len(missed))


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
