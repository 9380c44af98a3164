"""The facts of a period as plain data: what came in, what was held, what the labels say, what changed, what it cost.

Contract: everything comes from the store, but for drift and what calls cost in all, which only the data directory's
ledger knows; `missing` says what could not be had. All values are JSON values, times RFC 3339 in UTC. No post's text,
address or author is in it: of what authors wrote only hashtags and the domains of links of civic posts, and of authors
who ask not to be shown to the public none of it when `authors.respect` is `drop`. Raises `Usage` for what is asked
wrongly, `Transient` for a store out of reach.

Posts go by `event_at`. Counts by the hour and what labels cost go by our own clock.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from civicsky import __version__, datadir, rounds
from civicsky.coverage import Stretch, cover, rows_of
from civicsky.document import Document
from civicsky.errors import Failed
from civicsky.ledger import LedgerReader
from civicsky.model import format_time, now_us, parse_time
from civicsky.research.estimate import (
    FIREHOSE,
    Reading,
    Window,
    as_json,
    by_uri,
    gold_of,
    is_within,
    open_existing,
    origins_of,
    tables,
    want_drawn_from,
    window_of,
)
from civicsky.research.figures import cluster, plain, truths
from civicsky.research.gold import Gold
from civicsky.research.measure import scores
from civicsky.sample import HOUR_US
from civicsky.settings import Settings
from civicsky.share import Share
from civicsky.store import Store
from civicsky.task import Task, load_task

TOP: Final = 25
"""Domains and hashtags listed."""
MIN_AUTHORS: Final = 2
"""What fewer authors used is not listed: it would tell of one person, or of one machine."""
MAX_WORD: Final = 200
"""Characters of a hashtag or domain that are looked at."""
HIDDEN_MARK: Final = "no-unauthenticated"
"""An author's wish not to be shown to those who are not signed in."""
MILLISECOND_US: Final = 1_000
"""How exactly times are told."""
END: Final = 253_402_300_800_000_000
"""The year 10000: after all times."""
DAY_US: Final = 24 * HOUR_US

Facts = dict[str, Any]
Span = tuple[int, int]
"""From when, and before when, in microseconds since 1970 UTC."""


class Wanted(NamedTuple):
    """What is asked for."""

    since: str = ""
    until: str = ""
    """Dates or RFC 3339 times; `until` is not included. Empty: all that there is."""
    gold: Path | None = None
    tasks: Sequence[str] = ()
    """Names or files; none: those of the settings."""
    origin: str = FIREHOSE
    """See `estimate.Wanted`."""


async def gather(settings: Settings, wanted: Wanted) -> Facts:
    """Read the store, and the ledger where there is one."""
    window = window_of(wanted.since, wanted.until)
    tasks = [load_task(name)[0] for name in wanted.tasks or settings.label.tasks]
    reading = Reading(tasks, settings.sample.unit, wanted.origin)
    gold = {task.name: gold_of(wanted.gold, task) for task in tasks} if wanted.gold else {}
    store = await open_existing(settings)
    try:
        silent = await _silent(store) if settings.authors.respect == "drop" else frozenset()
        posts = _Posts(reading, silent, keep_labels=wanted.gold is not None)
        async for document in store.documents("posts"):
            if is_within(document, window):
                posts.take(document)
        asked = _Asked(window)
        async for document in store.documents("labels"):
            asked.take(document)
        hours = [one async for one in store.documents("hours") if _has_hour(one, window)]
        runs = sorted([one async for one in store.documents("runs")], key=lambda one: str(one["started"]))
        coverage = [one async for one in store.documents("coverage")]
        fetches = await _fetches(store, window)
    finally:
        await store.close()
    want_drawn_from(gold, reading)
    stretches = _stretches(coverage)
    span = _span(window, stretches, hours, posts.times, None if wanted.origin == FIREHOSE else posts.counted)
    # What goes by our clock may lie elsewhere: a recording's events are older than the run that took them in.
    bounds = window[0] or 0, END if window[1] is None else window[1]
    by_day = tables(reading, "day", {}) if len(reading.collected) > 1 else []
    estimates = as_json([*tables(reading, "none", {name: by_uri(one) for name, one in gold.items()}), *by_day])
    return {
        "civicsky": __version__,
        "at": format_time(now_us()),
        "since": format_time(span[0]),
        "until": format_time(span[1]),
        "origin": wanted.origin,
        "tasks": [_task(task) for task in tasks],
        "posts": posts.facts(),
        **_counted(hours),
        "coverage": _coverage(stretches, coverage, span),
        **estimates,
        "makers": posts.makers_told(),
        "breaks": _breaks(runs, posts, bounds),
        "english_only": _english_only(runs, bounds),
        "feeds": [{**one, "posts": posts.feeds[one["name"]]} for one in fetches],
        "agreement": [row for task in tasks if task.name in gold for row in _agreement(task, gold[task.name], posts)],
        **await _from_ledger(settings.data_dir / datadir.LEDGER, bounds, asked),
        "missing": [
            *([] if reading.collected else ["No live post of the period is of this origin: look at both."]),
            *_missing(settings, hours, coverage, runs),
        ],
    }


def _missing(
    settings: Settings, hours: Sequence[Document], coverage: Sequence[Document], runs: Sequence[Document]
) -> list[str]:
    """What could not be had, and why."""
    found = []
    if not hours:
        found.append(
            "The store has no hourly counts of the period: how many posts came in, and what was rejected, is not known."
        )
    if not coverage:
        found.append("The store has no coverage: nothing is known of gaps.")
    if not runs:
        found.append("The store has no runs: a change of the filter or of civicsky would not be seen.")
    if not (settings.data_dir / datadir.LEDGER).is_file():
        found.append(
            f"The data directory has no {datadir.LEDGER}: drift is not known, and costs are those of the labels alone."
        )
    return found


# ---- posts -----------------------------------------------------------------------------------------------------------


class _Posts:
    """Tallies of the posts of the period."""

    def __init__(self, reading: Reading, silent: frozenset[str], *, keep_labels: bool) -> None:
        self._reading, self._silent, self._keeps = reading, silent, keep_labels
        self.states, self.flags, self.labelled, self.feeds = (Counter[str]() for _ in range(4))
        self.unlabelled: dict[str, Counter[str]] = defaultdict(Counter)
        self.makers: dict[tuple[str, str, str], list[Any]] = {}
        """By task, model and prompt: first and last event, and how many posts."""
        self.labels: dict[tuple[str, str], dict[str, str]] = {}
        """By task and URI the label's values; only with gold."""
        self.domains, self.tags = _Top(), _Top()
        self.left_out = 0
        self.times: Span | None = None
        self.counted: Span | None = None
        """First and last event of all posts, and of those that count."""

    def take(self, document: Document) -> None:
        """Count a post of the period."""
        self.states[document["state"]] += 1
        at = parse_time(document["event_at"]) or 0
        self.times = _stretched(self.times, at)
        if not self._reading.take(document):
            return
        self.counted = _stretched(self.counted, at)
        self.flags.update((document.get("filter") or {}).get("flags") or ())
        self.feeds.update(origin.removeprefix("feed:") for origin in origins_of(document) - {FIREHOSE})
        labels = document.get("labels") or {}
        for task in self._reading.tasks:
            if label := labels.get(task.name):
                self._take_label(document, task.name, label)
            elif why := (document.get("unlabelled") or {}).get(task.name):
                self.unlabelled[task.name][why["reason"]] += 1
        if any(_is_about(task, labels.get(task.name)) for task in self._reading.tasks):
            self._take_content(document)

    def _take_label(self, document: Document, task: str, label: Mapping[str, Any]) -> None:
        self.labelled[task] += 1
        at = document["event_at"]
        maker = self.makers.setdefault((task, label["model"], label["prompt"]), [at, at, 0])
        maker[:] = [min(at, maker[0]), max(at, maker[1]), maker[2] + 1]
        if self._keeps:
            self.labels[task, document["_id"]] = {name: one["value"] for name, one in label["fields"].items()}

    def _take_content(self, document: Document) -> None:
        if document["did"] in self._silent:
            self.left_out += 1
            return
        self.tags.add({tag[:MAX_WORD].casefold() for tag in document.get("tags") or ()}, document["did"])
        addresses = [*(document.get("links") or ()), (document.get("link") or {}).get("uri") or ""]
        self.domains.add({name for address in addresses if (name := domain(address))}, document["did"])

    def facts(self) -> Facts:
        """As JSON values."""
        return {
            "states": dict(self.states),
            "by_day": dict(sorted(self._reading.collected.items())),
            "counted": self._reading.collected.total(),
            "labelled": dict(self.labelled),
            "unlabelled": {task: dict(found.most_common()) for task, found in self.unlabelled.items()},
            "flags": dict(self.flags.most_common()),
            "domains": self.domains.listed(),
            "tags": self.tags.listed(),
            "left_out": self.left_out,
        }

    def makers_told(self) -> list[Facts]:
        """Which models and prompts the labels of the period are of, by task, in the order of their first post."""
        return [
            {"task": task, "model": model, "prompt": prompt, "first": first, "last": last, "posts": n}
            for (task, model, prompt), (first, last, n) in sorted(
                self.makers.items(), key=lambda one: (one[0][0], one[1][0])
            )
        ]


def _stretched(span: Span | None, at: int) -> Span:
    return (min(at, span[0]), max(at, span[1])) if span else (at, at)


class _Top:
    """How many posts, and how many authors, have a word."""

    def __init__(self) -> None:
        self._posts, self._authors = Counter[str](), defaultdict[str, set[str]](set)

    def add(self, words: Iterable[str], author: str) -> None:
        """A post's words, each once."""
        for word in words:
            if word.strip():
                self._posts[word] += 1
                self._authors[word].add(author)

    def listed(self) -> list[Facts]:
        """The most frequent ones."""
        several = [(word, n) for word, n in self._posts.items() if len(self._authors[word]) >= MIN_AUTHORS]
        found = sorted(several, key=lambda one: (-one[1], -len(self._authors[one[0]]), one[0]))
        return [{"word": word, "posts": n, "authors": len(self._authors[word])} for word, n in found[:TOP]]


def domain(address: str) -> str:
    """The host of a web address, without `www.`; empty when there is none."""
    try:
        parts = urlsplit(address[:2000])
        host = (parts.hostname or "") if parts.scheme in {"http", "https"} else ""
    except ValueError:
        return ""
    return host[:MAX_WORD].removeprefix("www.")


def _is_about(task: Task, label: Mapping[str, Any] | None) -> bool:
    """Whether a post is what the task is about: it has the first value of the task's first field, such as civic."""
    first = task.fields[0]
    return label is not None and label["fields"].get(first.name, {}).get("value") == first.values[0]


async def _silent(store: Store) -> frozenset[str]:
    """Accounts that ask not to be shown to the public."""
    marked = [one["did"] async for one in store.documents("authors") if HIDDEN_MARK in (one.get("marks") or ())]
    return frozenset(marked)


def _task(task: Task) -> Facts:
    first = task.fields[0]
    return {
        "name": task.name,
        "version": task.version,
        "about": f"{first.name}: {first.values[0]}",
        "fields": [{"name": field.name, "values": list(field.values), "among": field.only_if} for field in task.fields],
    }


# ---- counts, coverage ------------------------------------------------------------------------------------------------


def _has_hour(document: Document, window: Window) -> bool:
    """Whether an hour lies in the period, be it with a part."""
    at = parse_time(document.get("hour") or "")
    since, until = window
    return at is not None and (since is None or at + HOUR_US > since) and (until is None or at < until)


def _counted(hours: Sequence[Document]) -> Facts:
    """What the journal counted, by hour and in all. English posts are those kept or shed; the others are `language`."""
    rows, totals = [], {"frame": Counter[str](), "post": Counter[str](), "feed": Counter[str]()}
    reasons = {name: Counter[str]() for name in ("rejected", "quarantined", "feed_rejected", "feed_failed")}
    for one in sorted(hours, key=lambda one: str(one["hour"])):
        for unit, total in totals.items():
            total.update(one["counts"].get(unit) or {})
        for name, found in reasons.items():
            found.update(one.get(name) or {})
        of = Counter(one["counts"].get("post") or {})
        english = of["kept"] + of["shed"]
        other = (one.get("rejected") or {}).get("language", 0)
        rows.append(
            {
                "hour": one["hour"],
                "posts": english + of["rejected"],
                "kept": of["kept"],
                "shed": of["shed"],
                "rejected": of["rejected"],
                "not_english": other,
                "english": english / (english + other) if english + other else None,
            }
        )
    return {
        "hours": rows,
        "received": {unit: dict(sorted(total.items(), key=_received_first)) for unit, total in totals.items()},
        **{name: dict(found.most_common()) for name, found in reasons.items()},
    }


def _received_first(count: tuple[str, int]) -> tuple[bool, int]:
    return count[0] != "received", -count[1]


def _stretches(documents: Sequence[Document]) -> list[Stretch]:
    """What was held and what was not, over all that was ever held."""
    return cover(*rows_of(documents)).stretches


def _span(
    window: Window, stretches: Sequence[Stretch], hours: Sequence[Document], times: Span | None, fed: Span | None
) -> Span:
    """The period: as asked for, else what was held, from its first event to the last; else that of the posts, or hours.

    Single clocks are wrong now and then, so posts tell only where nothing else does. But what feeds showed (`fed`) may
    lie outside of what was held, and is in the period all the same.
    """
    known = [(one.begin, one.end) for one in stretches]
    if known and fed:
        known.append((fed[0], fed[1] + MILLISECOND_US))
    if not known and times:
        known = [(times[0], times[1] + MILLISECOND_US)]
    if not known:
        known = [(at, at + HOUR_US) for one in hours if (at := parse_time(one["hour"])) is not None]
    since, until = window
    if (since is None or until is None) and not known:
        raise Failed("there is nothing in the store yet: no hour, no coverage and no post of that period")
    begin = since if since is not None else min(begin for begin, _ in known)
    end = until if until is not None else max(end for _, end in known)
    return begin, max(end, begin + 1)


def _coverage(stretches: Sequence[Stretch], documents: Sequence[Document], span: Span) -> Facts:
    """The period, all of it up to now: what lies before the first event ever held, or after the last, is a gap, too."""
    begin, end = span[0], max(span[0] + 1, min(span[1], now_us()))
    inside = [
        Stretch(max(one.begin, begin), min(one.end, end), one.kind)
        for one in stretches
        if one.begin < end and one.end > begin
    ]
    edges = [begin, *(edge for one in inside for edge in (one.begin, one.end)), end]
    holes = [Stretch(a, b, "not_collected") for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a]
    laid = sorted([*inside, *holes])
    seconds = {
        kind: sum(one.seconds for one in laid if one.kind == kind) for kind in {"held", *(one.kind for one in laid)}
    }
    gaps = [one for one in documents if one["kind"] == "gap" and span[0] <= (_when(one) or 0) < span[1]]
    return {
        "share_held": seconds["held"] / ((end - begin) / 1e6),
        "seconds": {kind: round(n, 3) for kind, n in sorted(seconds.items(), key=lambda one: -one[1])},
        "stretches": [
            {"kind": one.kind, "from": format_time(one.begin), "to": format_time(one.end), "seconds": one.seconds}
            for one in laid
        ],
        "gaps": [
            {name: one.get(name) for name in ("host", "cause", "from_at", "until_at", "at")}
            for one in sorted(gaps, key=lambda one: _when(one) or 0)
        ],
    }


def _when(gap: Document) -> int | None:
    """When a gap began: by the events' times, or when it was noticed."""
    return parse_time(gap.get("from_at") or gap["at"])


# ---- what changed ----------------------------------------------------------------------------------------------------


def _breaks(runs: Sequence[Document], posts: _Posts, bounds: Span) -> list[Facts]:
    """Where the instrument changed: program, filter, and for each task model or prompt."""
    found = []
    for before, after in pairwise(runs):
        found += [
            {"at": after["started"], "kind": kind, "task": None, "was": was, "now": now}
            for (kind, was), (_, now) in zip(_instrument(before), _instrument(after), strict=True)
            if was != now
        ]
    for task in dict.fromkeys(one["task"] for one in posts.makers_told()):
        makers = [one for one in posts.makers_told() if one["task"] == task]
        for was, now in pairwise(makers):
            found += [
                {"at": now["first"], "kind": kind, "task": task, "was": was[kind], "now": now[kind]}
                for kind in ("model", "prompt")
                if was[kind] != now[kind]
            ]
    inside = [one for one in found if bounds[0] <= (parse_time(one["at"]) or 0) < bounds[1]]
    return sorted(inside, key=lambda one: (one["at"], one["kind"]))


def _instrument(run: Document) -> list[tuple[str, str]]:
    return [
        ("civicsky", run["version"]),
        ("filter", run["filter_version"]),
        ("filter settings", json.dumps(_kept(run))),
    ]


def _kept(run: Document) -> Any:
    """The settings of the filter, as the run had them."""
    try:
        return json.loads(run["settings"]).get("filter")
    except (ValueError, AttributeError):
        return None


def _english_only(runs: Sequence[Document], bounds: Span) -> bool:
    """Whether the filter rejected other languages, in all runs of the period."""
    started = [parse_time(one["started"]) or 0 for one in runs]
    ends = [*started[1:], bounds[1]]
    since, until = bounds
    during = [run for run, begin, end in zip(runs, started, ends, strict=False) if begin < until and end > since]
    return all((_kept(run) or {}).get("keep", "english") == "english" for run in during)


# ---- what it cost, drift ---------------------------------------------------------------------------------------------


class _Asked:
    """What the labels of the period cost, by day, model and currency."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self.days: dict[tuple[str, str, str], Counter[str]] = {}

    def take(self, document: Document) -> None:
        """Count a label that was given in the period."""
        at = document.get("at")  # a tombstone has none
        if at is None or not is_within({"event_at": at}, self._window):
            return
        key = (at[:10], document.get("model_asked") or document["model"], document.get("currency") or "")
        found = self.days.setdefault(key, Counter())
        found.update(labels=1, copied=int(bool(document.get("cached_from"))))
        found.update({name: document.get(name) or 0 for name in _SPENT})

    def facts(self) -> list[Facts]:
        """As JSON values."""
        return [
            {"day": day, "model": model, "currency": currency or None, **{n: found[n] for n in _COLUMNS}}
            for (day, model, currency), found in sorted(self.days.items())
        ]


_SPENT: Final = ("calls", "tokens_in", "tokens_out", "cost")
_COLUMNS: Final = ("labels", "copied", *_SPENT)


async def _from_ledger(file: Path, bounds: Span, asked: _Asked) -> Facts:
    """Drift, spend, and what the labels cost."""
    labels = asked.facts()
    if not file.is_file():
        return {"cost": {"labels": labels, "spend": None}, "drift": None}
    first, last = format_time(bounds[0])[:10], format_time(bounds[1] - 1)[:10]
    ledger = await LedgerReader.open(file)
    try:
        spend = await ledger.spend_by_day(first, last)
        back = (now_us() - bounds[0]) // DAY_US + 1
        drift = [
            {**row, "share": _share(row)}
            for row in await rounds.drift(ledger.database, back)
            if first <= row["day"] <= last
        ]
    finally:
        await ledger.close()
    return {"cost": {"labels": labels, "spend": spend}, "drift": drift[::-1]}


def _share(row: Mapping[str, Any]) -> Facts:
    share = Share(row["flipped"], row["n"])
    low, high = share.interval()
    return {"value": share.hits / share.n if share.n else None, "low": low, "high": high, "n": share.n}


# ---- feeds, hand labels ----------------------------------------------------------------------------------------------


async def _fetches(store: Store, window: Window) -> list[Facts]:
    """By feed what was fetched in the period, as snapshots tell: those of posts that were deleted since are gone."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    async for one in store.documents("snapshots"):
        if one.get("rank") is not None and is_within({"event_at": one["at"]}, window):
            found[one["why"]][one["at"]] += 1
    return [
        {"name": name, "fetches": len(times), "items": times.total(), "first": min(times), "last": max(times)}
        for name, times in sorted(found.items())
    ]


def _agreement(task: Task, gold: Gold, posts: _Posts) -> list[Facts]:
    """The stored labels against what people judged, by field. n: judged posts that have a label in the period."""
    items = [item for item in by_uri(gold).values() if (task.name, item.uri) in posts.labels]
    found = []
    for field in task.fields:
        truth = truths(items, field, gold.fields)
        rows = [(item, value) for item in items if (value := truth[item.key][1]) is not None]
        if not rows:
            continue
        said = [posts.labels[task.name, item.uri or ""].get(field.name) for item, _ in rows]
        scored = scores([value for _, value in rows], said, [cluster(item) for item, _ in rows], field.values)
        found.append({"task": task.name, "field": field.name, "items": len(items), **plain(scored)})
    return found
