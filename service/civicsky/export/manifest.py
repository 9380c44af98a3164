"""What goes with an export: its manifest and codebook. Pure: from counts and the store's documents.

`Tally` counts while the posts pass by; what it holds does not grow with their number.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from civicsky import __version__
from civicsky.coverage import Stretch, cover, rows_of
from civicsky.document import Document
from civicsky.export.columns import Column, Format, Level, Row, Table, feeds_of, is_from, weight
from civicsky.export.methods import filled
from civicsky.model import format_time, parse_time
from civicsky.task import Task, codebook

MANIFEST: Final = "manifest.json"
CODEBOOK: Final = "codebook.md"
DISTINCT: Final = 1_000
"""Different models, prompts or feeds that are counted apart at most; further ones are `others`."""


class Maker(NamedTuple):
    """What made a label."""

    task: str
    task_version: str | None
    model: str | None
    prompt: str | None
    way: str | None
    fingerprint: str | None
    parameters: str | None


class Tally:
    """Counts of the posts of a period."""

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        """All posts that the store has of the period, tombstones among them."""
        self.left_out: Counter[str] = Counter()
        """Live ones that were left out: `consent`, `origin`, `label` (no label as asked for)."""
        self.authors: Counter[str] = Counter()
        """Of the posts exported: `marked`, `not_looked_up`."""
        self.origins: Counter[str] = Counter()
        """Of the posts exported: `firehose`, `feed`, `feed:NAME`."""
        self.filters: Counter[str] = Counter()
        self.labelled: Counter[str] = Counter()
        self.unlabelled: Counter[tuple[str, str]] = Counter()
        self.gated: Counter[str] = Counter()
        """Drawn ones that a gate kept from the model."""
        self.neither: Counter[str] = Counter()
        self.makers: Counter[Maker] = Counter()
        self.ranges: dict[str, tuple[float, float]] = {}
        self.first: int | None = None
        self.last: int | None = None

    def collected(self, row: Row, tasks: Iterable[str]) -> None:
        """A live post of the period, before labels are asked for."""
        for task in tasks:
            if task in row.labels:
                self.labelled[task] += 1
            elif task in row.unlabelled:
                self.unlabelled[task, str(row.unlabelled[task].get("reason"))] += 1
            elif task in (row.post.get("gated") or {}):
                self.gated[task] += 1
            else:
                self.neither[task] += 1
            about = row.labels.get(task) or row.unlabelled.get(task)
            if weight(row.post, about) is not None:
                assert about is not None
                self._range(f"p_sampled {task}", about["p_sampled"])
        self._range("p_kept", row.post.get("p_kept", 1.0))

    def exported(self, row: Row, at: int, *, marked: bool) -> None:
        """A post that goes into the files."""
        self.first = at if self.first is None else min(self.first, at)
        self.last = at if self.last is None else max(self.last, at)
        self.authors["marked"] += marked
        self.authors["not_looked_up"] += not row.author
        for kind in ("firehose", "feed"):
            self.origins[kind] += is_from(row.post, kind)
        self.origins["both"] += is_from(row.post, "firehose") and is_from(row.post, "feed")
        for name in feeds_of(row.post):
            _count(self.origins, f"feed:{name}")
        _count(self.filters, str((row.post.get("filter") or {}).get("version")))

    def made(self, task: str, label: Document) -> None:
        """A label that a post of the files shows."""
        names = Maker._fields[1:]
        _count(self.makers, Maker(task, *(label.get(name) for name in names)), Maker("others", *[None] * len(names)))

    def _range(self, name: str, value: Any) -> None:
        if isinstance(value, int | float):
            low, high = self.ranges.get(name, (value, value))
            self.ranges[name] = (min(low, value), max(high, value))


def _count(counter: Counter[Any], key: Any, others: Any = "others") -> None:
    counter[key if key in counter or len(counter) < DISTINCT else others] += 1


# ---- the manifest ----------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """What the user asked for."""

    level: Level
    form: Format
    since: int | None
    until: int | None
    tasks: tuple[str, ...]
    where: tuple[str, ...]
    origin: str
    model: str
    prompt: str
    respect: str


def manifest(
    asked: Asked,
    at: int,
    tally: Tally,
    tasks: Mapping[str, tuple[Task, str] | None],
    runs: Iterable[Document],
    coverage: Iterable[Document],
    key_check: str | None,
) -> dict[str, Any]:
    """All of it but the files, as JSON values.

    `tasks`: by name the task of the settings and its file's SHA-256; None for one that is not there.
    """
    public = asked.level == "public"
    states = tally.states
    whole = states.total()
    # Of what was not asked for the coverage has bounds of its own: feeds show posts from before anything was held.
    begin, end = asked.since, asked.until if asked.until is None else min(asked.until, at)
    return {
        "civicsky": __version__,
        "at": format_time(at),
        "level": asked.level,
        "format": asked.form,
        "asked": {
            "since": _said(asked.since),
            "until": _said(asked.until),
            "tasks": list(asked.tasks),
            "where": list(asked.where),
            # The name of a feed may be an address, which names its maker.
            "origin": asked.origin.partition(":")[0] if public else asked.origin,
            "model": asked.model or None,
            "prompt": asked.prompt or None,
            "consent": asked.respect,
        },
        "files": [],
        "posts": {
            "first_event": _hour(tally.first, cut=public),
            "last_event": _hour(tally.last, cut=public),
            "collected": states["live"] - tally.left_out["consent"] - tally.left_out["origin"],
            "exported": states["live"] - tally.left_out.total(),
            "hidden": states["hidden"],
            "deleted": states["deleted"],
            "share_deleted": states["deleted"] / whole if whole else None,
            "left_out": {name: tally.left_out[name] for name in ("consent", "origin", "label")},
            "authors_marked": tally.authors["marked"],
            "authors_not_looked_up": tally.authors["not_looked_up"],
        },
        "origins": {name: n for name, n in sorted(tally.origins.items()) if not (public and ":" in name)},
        "filters": dict(sorted(tally.filters.items())),
        "tasks": {name: _task_facts(name, found, tally) for name, found in tasks.items()},
        "labels_made_by": [{**maker._asdict(), "posts": n} for maker, n in tally.makers.most_common()],
        "probabilities": {"p_kept": _range(tally.ranges.get("p_kept"), rounded=public)},
        "coverage": covered(coverage, begin, end),
        "runs": _runs(runs, begin, end),
        "pseudonyms": None if key_check is None else {"check": key_check},
    }


def _task_facts(name: str, found: tuple[Task, str] | None, tally: Tally) -> dict[str, Any]:
    labelled = tally.labelled[name]
    reasons = {reason: n for (task, reason), n in sorted(tally.unlabelled.items()) if task == name}
    asked, gated = labelled + sum(reasons.values()), tally.gated[name]
    return {
        "version": found[0].version if found else None,
        "sha256": found[1] if found else None,
        "drawn": asked + gated,
        **({"gated": gated} if gated else {}),
        "labelled": labelled,
        "unlabelled": reasons,
        "not_drawn_or_waiting": tally.neither[name],
        "share_labelled": labelled / asked if asked else None,
        "p_sampled": _range(tally.ranges.get(f"p_sampled {name}"), rounded=True),
    }


def _range(found: tuple[float, float] | None, *, rounded: bool) -> list[float] | None:
    if found is None:
        return None
    return [float(f"{value:.3g}") for value in found] if rounded else list(found)


def _said(at: int | None) -> str | None:
    return None if at is None else format_time(at)


def _hour(at: int | None, *, cut: bool) -> str | None:
    return _said(at - at % 3_600_000_000 if cut and at is not None else at)


def _runs(documents: Iterable[Document], begin: int | None, end: int | None) -> list[dict[str, Any]]:
    """Versions, filters and settings that were at work in the period, with the first and last start of each."""
    starts = sorted((parse_time(doc.get("started") or "") or 0, doc) for doc in documents if doc.get("started"))
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    names = ("version", "filter_version", "settings_hash")
    for number, (started, doc) in enumerate(starts):
        ended = starts[number + 1][0] if number + 1 < len(starts) else None
        if (end is not None and started > end) or (begin is not None and ended is not None and ended < begin):
            continue
        row = found.setdefault(
            tuple(doc.get(name) for name in names),
            {**{name: doc.get(name) for name in names}, "first_start": doc["started"], "starts": 0},
        )
        row |= {"last_start": doc["started"], "starts": row["starts"] + 1}
    return list(found.values())


def covered(documents: Iterable[Document], begin: int | None, end: int | None) -> dict[str, Any]:
    """What of the period was held: the share, the seconds of each kind, and the gaps."""
    stretches = cover(*rows_of(documents)).stretches
    if not stretches:
        return {"share_held": None, "from": None, "until": None, "seconds": {}, "gaps": []}
    start = stretches[0].begin if begin is None else begin
    stop = max(start, stretches[-1].end if end is None else end)
    inside = _clipped(stretches, start, stop)
    seconds: dict[str, float] = {}
    for one in inside:
        seconds[one.kind] = seconds.get(one.kind, 0) + one.seconds
    return {
        "share_held": seconds.get("held", 0) / ((stop - start) / 1e6) if stop > start else None,
        "from": format_time(start),
        "until": format_time(stop),
        "seconds": {kind: round(n, 3) for kind, n in seconds.items()},
        "gaps": [
            {"cause": one.kind, "from": format_time(one.begin), "until": format_time(one.end),
             "seconds": round(one.seconds, 3)}
            for one in inside if one.kind != "held"
        ],
    }  # fmt: skip


def _clipped(stretches: Sequence[Stretch], start: int, stop: int) -> list[Stretch]:
    """What lies in the period; before the first event that was held and after the last nothing was collected."""
    outer = [
        Stretch(min(start, stretches[0].begin), stretches[0].begin, "not_collected"),
        *stretches,
        Stretch(stretches[-1].end, max(stop, stretches[-1].end), "not_collected"),
    ]
    cut = [Stretch(max(one.begin, start), min(one.end, stop), one.kind) for one in outer]
    return [one for one in cut if one.end > one.begin]


# ---- the codebook ----------------------------------------------------------------------------------------------------

_TYPES: Final = {
    "text": "text", "json": "text (JSON)", "time": "time, UTC", "bool": "true or false", "int": "whole number",
    "float": "number",
}  # fmt: skip
_LEVELS: Final[dict[Level, str]] = {
    "internal": "Level `internal`: texts, addresses and accounts, with labels that may be about political opinions. "
    "For those who work with the data; not to be handed on. Delete it when its purpose is over, and make it anew "
    "before each analysis: posts that were deleted meanwhile are then gone from it.",
    "restricted": "Level `restricted`: addresses of posts, and nothing that was found out about them. An address "
    "names its author. Whoever gets the texts by these addresses gets only what is still there.",
    "public": "Level `public`: `author` and `post` are keyed pseudonyms, times are cut to the hour, probabilities "
    "rounded, and rows stand in the order of the pseudonyms. There is no text and no address. It is pseudonymous, "
    "not anonymous: who has an archive of the network can look for an author by the hours of many posts.",
}
_CSV: Final = (
    "CSV: UTF-8, commas, quotes doubled (RFC 4180). Empty text and no value look the same. A text that a spreadsheet "
    "could take for a formula (its first visible character, apostrophes aside, is one of = + - @, or a tab or carriage "
    "return comes before it) has an apostrophe before it. To undo that, take one leading apostrophe away where the "
    "same rule holds for what you read; `civicsky.export.writers.unguarded` does it. Numbers are as they are."
)
_NOTES: Final = (
    "Times are UTC. A list is JSON text. NUL characters and halves of surrogate pairs are replaced by U+FFFD. For "
    "shares and totals count each post by its weight, and rows without a label too, by their reason. About the "
    "network, take rows where `from_firehose` is true: what only a feed showed is no sample of it. If labels were "
    "asked for, by a value, a model or a prompt, no share can be reckoned from these rows."
)


def codebook_text(
    asked: Asked, tables: Mapping[Table, Sequence[Column]], tasks: Mapping[str, tuple[Task, str] | None]
) -> str:
    """The codebook of an export, in Markdown."""
    parts = ["# Codebook", filled(_LEVELS[asked.level])]
    if asked.level != "restricted":
        parts.append(filled(_NOTES))
    if asked.form == "csv":
        parts.append(filled(_CSV))
    for table, columns in tables.items():
        rows = [f"| `{column.name}` | {_TYPES[column.kind]} | {column.meaning} |" for column in columns]
        parts += [f"## {table}", "\n".join(["| column | type | meaning |", "|---|---|---|", *rows])]
    if asked.level == "restricted":
        return "\n\n".join(parts) + "\n"
    for name, found in tasks.items():
        parts.append(f"## The task `{name}`")
        if found is None:
            parts.append("Its file is not in the settings, so that only its labels are known.")
        elif asked.level == "public":
            # Whoever wrote the task may have taken them from real posts.
            parts.append(codebook(found[0].model_copy(update={"boundaries": (), "examples": ()})))
            parts.append("Boundary cases and examples are left out, since they may quote posts.")
        else:
            parts.append(codebook(found[0]))
    return "\n\n".join(parts) + "\n"
