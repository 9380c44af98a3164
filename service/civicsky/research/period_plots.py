"""The plots of a report of a period: facts in (see `period`), elements of a page with their legends out.

Names that others chose stand in legends, which the template escapes, or are cut and made harmless by `cut`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import ceil, floor, nan
from typing import Final

from civicsky.model import format_time
from civicsky.report import printable
from civicsky.research.drawing import (
    INK,
    MAIN,
    MARKERS,
    SERIES,
    SIGNS,
    SOFT,
    Axes,
    Figure,
    Markup,
    across,
    canvas,
    day_of,
    time_axis,
)
from civicsky.research.period import DAY_US, Facts
from civicsky.shown import visible

HOURS_DRAWN: Final = 31 * 24
"""Above so many hours plots are by day."""
FEWEST_DAYS: Final = 4
"""That a plot by day shows, so that one bar is not all of it."""
FEWEST_STEPS: Final = 12
"""The same of a plot by hour."""
HELD: Final = 0.4
"""Opacity of what was held, so that gaps stand out; the template has the same."""
WORDS: Final = {
    "held": "held",
    "not_collected": "not collected",
    "unverified": "unverified",
    "not_replayed": "not replayed",
    "too_large": "too large",
    "outdated_cursor": "outdated cursor",
}


def cut(text: str, most: int = 28) -> str:
    """A name of others for an axis: one line, harmless, bounded."""
    return printable(visible(text, most), most)


# ---- posts by hour ---------------------------------------------------------------------------------------------------


def by_day(hours: Sequence[Facts]) -> list[Facts]:
    """The counts of hours, added up by day."""
    days: dict[str, Counter[str]] = {}
    for one in hours:
        days.setdefault(one["hour"][:10], Counter()).update({name: n for name, n in one.items() if isinstance(n, int)})
    found = []
    for day, n in days.items():
        english = n["kept"] + n["shed"]
        judged = english + n["not_english"]
        found.append({"hour": f"{day}T00:00:00.000Z", **n, "english": english / judged if judged else None})
    return found


def posts(found: Facts, marks: Mapping[int, float]) -> Facts | None:
    """Posts by hour, and which share of them is English."""
    hours = found["hours"]
    if not hours:
        return None
    unit, rows = ("hour", hours) if len(hours) <= HOURS_DRAWN else ("day", by_day(hours))
    total, english = sum(one["posts"] for one in rows), sum(one["kept"] + one["shed"] for one in rows)
    says = f"posts by {unit}: {total:,} in all, {english:,} of them English"
    edges, values = _grid(rows, 1 / 24 if unit == "hour" else 1.0)
    return {
        "unit": unit,
        "total": total,
        "english": english,
        "not_english": sum(one["not_english"] for one in rows),
        "counts": across(partial(_draw_counts, edges, values, marks, unit), "posts", says),
        "shares": across(partial(_draw_english, edges, values, marks), "english", f"share of English posts by {unit}"),
    }


def _grid(rows: Sequence[Facts], step: float) -> tuple[list[float], list[Facts | None]]:
    """The edges of all hours or days from the first to the last, and the rows between; None where nothing came in."""
    at = {round(day_of(one["hour"]) / step): one for one in rows}
    first, last = min(at), max(at)
    spare = max(0, FEWEST_STEPS - (last - first + 1))
    first, last = first - spare // 2, last + (spare + 1) // 2
    return [n * step for n in range(first, last + 2)], [at.get(n) for n in range(first, last + 1)]


def _draw_counts(
    edges: list[float], values: Sequence[Facts | None], marks: Mapping[int, float], unit: str, width: float
) -> Figure:
    figure, axes = canvas(width, 2.4)
    for name, colour in (("posts", SOFT), ("kept", MAIN)):
        n = [nan if one is None else one[name] + (one["shed"] if name == "kept" else 0) for one in values]
        axes.stairs(n, edges, fill=True, color=colour, alpha=0.45 if colour == SOFT else 1)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylabel(f"posts by {unit}")
    time_axis(axes, edges[0], edges[-1], marks)
    return figure


def _draw_english(
    edges: list[float], values: Sequence[Facts | None], marks: Mapping[int, float], width: float
) -> Figure:
    figure, axes = canvas(width, 1.9)
    shares = [nan if one is None or one["english"] is None else one["english"] for one in values]
    axes.stairs(shares, edges, baseline=None, color=MAIN, linewidth=1.6)
    axes.set_ylim(0, 1)
    axes.set_ylabel("English share")
    time_axis(axes, edges[0], edges[-1], marks)
    return figure


# ---- shares ----------------------------------------------------------------------------------------------------------


def tables(found: Facts, marks: Mapping[int, float]) -> list[Facts]:
    """Each field of each task: the whole period, its days, and a plot of them."""
    shown = []
    for number, whole in enumerate(one for one in found["estimates"] if one["period"] == "all"):
        days = [
            one
            for one in found["estimates"]
            if one["period"] != "all" and (one["task"], one["field"]) == (whole["task"], whole["field"])
        ]
        mine = {n: at for n, at in marks.items() if found["breaks"][n - 1]["task"] in {None, whole["task"]}}
        values = [row["value"] for row in whole["rows"] if not row["value"].startswith("unlabelled: ")]
        drawn = values[: 1 if len(values) == 2 else len(SERIES)]  # noqa: PLR2004  (of two values one tells the other)
        name = f"{cut(whole['field'], 40)}"
        if not whole["drawn"]:
            plot = None
        elif days:
            says = f"{name} by day, with 95 % intervals: {', '.join(cut(one, 40) for one in drawn)}"
            plot = across(partial(_draw_days, days, drawn, found, mine), f"field{number}", says)
        else:
            plot = across(partial(_draw_whole, whole), f"field{number}", f"{name}: shares with 95 % intervals")
        shown.append(
            {
                "whole": whole,
                "days": days,
                "values": values,
                "plot": plot,
                "keys": _keys(drawn) if days else [],
                "is_first": any(
                    task["about"].startswith(f"{whole['field']}: ") and task["name"] == whole["task"]
                    for task in found["tasks"]
                ),
            }
        )
    return shown


def _keys(names: Sequence[str]) -> list[Facts]:
    """A legend: sign, colour's number, name."""
    return [{"sign": SIGNS[n], "colour": n + 1, "name": name} for n, name in enumerate(names[: len(SERIES)])]


def _shares(table: Facts) -> dict[str, Facts]:
    return {row["value"]: row["share"] for row in table["rows"]}


def _intervals(axes: Axes, points: Sequence[tuple[float, Facts]], series: int) -> None:
    """Shares with their intervals; neighbouring days are joined by a line."""
    x = [at for at, _ in points]
    y = [share["value"] for _, share in points]
    error = [
        [max(0.0, share["value"] - share["low"]) for _, share in points],
        [max(0.0, share["high"] - share["value"]) for _, share in points],
    ]
    colour = SERIES[series]
    axes.errorbar(
        x,
        y,
        yerr=error,
        color=colour,
        marker=MARKERS[series],
        markersize=5,
        capsize=2,
        elinewidth=1.1,
        linestyle="none",
    )
    joined = [(b if b[0] - a[0] < 1.5 else (b[0], nan)) for a, b in pairwise(zip(x, y, strict=True))]  # noqa: PLR2004
    line = [*zip(x[:1], y[:1], strict=True), *joined]
    axes.plot([at for at, _ in line], [value for _, value in line], color=colour, linewidth=0.7)


def _draw_days(
    days: Sequence[Facts], values: Sequence[str], found: Facts, marks: Mapping[int, float], width: float
) -> Figure:
    figure, axes = canvas(width, 2.6)
    spread = 0.5 / max(1, len(values))
    for series, value in enumerate(values):
        shift = 0.5 + spread * (series - (len(values) - 1) / 2)
        points = [
            (day_of(f"{one['period']}T00:00:00Z") + shift, share)
            for one in days
            if (share := _shares(one).get(value)) and share["value"] is not None
        ]
        _intervals(axes, points, series)
    axes.set_ylim(0, min(1.02, axes.get_ylim()[1]))
    axes.set_ylabel("share; 95 % interval")
    time_axis(axes, *_reach(found, [one["period"] for one in days]), marks)
    return figure


def _draw_whole(table: Facts, width: float) -> Figure:
    rows = [row for row in table["rows"] if row["share"]["value"] is not None][:20]
    figure, axes = canvas(width, 0.7 + 0.32 * len(rows))
    for place, row in enumerate(rows):
        share = row["share"]
        error = [[max(0.0, share["value"] - share["low"])], [max(0.0, share["high"] - share["value"])]]
        axes.barh(place, share["value"], height=0.55, color=SOFT if "unlabelled: " in row["value"] else MAIN)
        axes.errorbar(share["value"], place, xerr=error, color=INK, capsize=3, linewidth=1.1)
    axes.set_yticks(range(len(rows)), [cut(row["value"]) for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share; 95 % interval")
    return figure


# ---- rejects, coverage -----------------------------------------------------------------------------------------------


def bars(counts: Mapping[str, int], salt: str) -> Markup | None:
    """Counts by reason."""
    rows = list(counts.items())[:20]
    if not rows:
        return None
    says = "rejected posts: " + ", ".join(f"{cut(why, 40)} {n:,}" for why, n in rows)
    return across(partial(_draw_bars, rows), salt, says)


def _draw_bars(rows: Sequence[tuple[str, int]], width: float) -> Figure:
    figure, axes = canvas(width, 0.5 + 0.3 * len(rows))
    bars = axes.barh(range(len(rows)), [n for _, n in rows], height=0.6, color=MAIN)
    axes.bar_label(bars, [f"{n:,}" for _, n in rows], padding=3)
    axes.set_yticks(range(len(rows)), [cut(why) for why, _ in rows])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    return figure


def length(gap: Facts) -> float:
    """Days that it lasted; one that is not over comes first."""
    if gap["from_at"] is None or gap["until_at"] is None:
        return float("inf")
    return day_of(gap["until_at"]) - day_of(gap["from_at"])


def strip(found: Facts) -> Facts:
    """The coverage as a calendar: a row for each day (or week, or four weeks), gaps coloured by their cause."""
    coverage = found["coverage"]
    kinds = [kind for kind in coverage["seconds"] if kind != "held"]
    colours = {kind: n % (len(SERIES) - 1) + 1 for n, kind in enumerate(kinds)}  # the first one looks like `held`
    begin, end = day_of(found["since"]), day_of(found["until"])
    is_short = end - begin < 1
    if not is_short:
        begin, end = floor(begin), ceil(end)
    days = end - begin
    per_row = days if is_short else 1 if days <= 31 else 7 if days <= 371 else 28  # noqa: PLR2004
    says = f"coverage: {coverage['share_held']:.2%} of the time held; " + (
        ", ".join(f"{kind} {n:,.0f} s" for kind, n in coverage["seconds"].items() if kind != "held") or "no gap"
    )
    return {
        "plot": across(partial(_draw_strip, coverage["stretches"], colours, (begin, end, per_row)), "strip", says),
        "per_row": "the period" if is_short else {1: "a day", 7: "a week", 28: "four weeks"}[int(per_row)],
        "keys": [{"sign": "\u25a0", "colour": "held", "name": "held"}]
        + [{"sign": "\u25a0", "colour": n + 1, "name": WORDS.get(kind, kind)} for kind, n in colours.items()],
    }


def _draw_strip(
    stretches: Sequence[Facts], colours: Mapping[str, int], place: tuple[float, float, float], width: float
) -> Figure:
    begin, end, per_row = place
    rows = ceil((end - begin) / per_row)
    figure, axes = canvas(width, 0.6 + max(0.14, 0.24 - rows * 0.001) * rows)
    for (row, kind), spans in _laid(stretches, place, rows).items():
        colour = MAIN if kind == "held" else SERIES[colours[kind]]
        axes.broken_barh(spans, (row - 0.39, 0.78), facecolors=colour, linewidth=0, alpha=HELD if kind == "held" else 1)
    if end - begin < 1:
        axes.set_yticks([])
        digits = 16 if per_row > 0.02 else 19  # noqa: PLR2004  (below half an hour the seconds, too)
        ticks = [n / 4 * per_row for n in range(5)]
        axes.set_xticks(ticks, [format_time(int((begin + tick) * DAY_US))[11:digits] for tick in ticks])
    else:
        every = ceil(rows / 16)
        labels = [(row, format_time(int((begin + row * per_row) * DAY_US))[:10]) for row in range(0, rows, every)]
        axes.set_yticks([row for row, _ in labels], [label for _, label in labels], size=8)
        ticks = [n / 4 * per_row for n in range(5)]
        axes.set_xticks(ticks, [f"{n * 24:.0f} h" for n in ticks] if per_row == 1 else [f"day {n:g}" for n in ticks])
    axes.set_xlim(0, per_row)
    axes.set_ylim(rows - 0.5, -0.5)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _laid(
    stretches: Sequence[Facts], place: tuple[float, float, float], rows: int
) -> dict[tuple[int, str], list[tuple[float, float]]]:
    """By row and kind (left end, width) in days; gaps last, so that they lie over what was held."""
    begin, _, per_row = place
    narrowest = per_row * 0.004  # that can be seen
    found: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for one in sorted(stretches, key=lambda one: one["kind"] != "held"):
        a, b = day_of(one["from"]) - begin, day_of(one["to"]) - begin
        for row in range(floor(a / per_row), min(rows, ceil(b / per_row))):
            left, right = max(a - row * per_row, 0), min(b - row * per_row, per_row)
            wide = right - left if one["kind"] == "held" else max(right - left, narrowest)
            found.setdefault((row, one["kind"]), []).append((min(left, per_row - wide), wide))
    return found


# ---- drift, cost -----------------------------------------------------------------------------------------------------


def drift(found: Facts, marks: Mapping[int, float]) -> Facts | None:
    """Which share of the anchors' labels changed, by day, for each task, model and prompt."""
    rows = [row for row in found["drift"] or () if row["n"]]
    names = list(dict.fromkeys((row["task"], row["model"], row["prompt"]) for row in rows))[: len(SERIES)]
    if not rows:
        return None
    keys = [f"{task}, {model}, prompt {prompt[:8]}" for task, model, prompt in names]
    drawn = [(names.index(name), row) for row in rows if (name := (row["task"], row["model"], row["prompt"])) in names]
    return {
        "plot": across(
            partial(_draw_drift, drawn, found, marks), "drift", "share of the anchors' labels that changed, by day"
        ),
        "keys": _keys(keys),
    }


def _draw_drift(rows: Sequence[tuple[int, Facts]], found: Facts, marks: Mapping[int, float], width: float) -> Figure:
    figure, axes = canvas(width, 2.2)
    for series in dict(rows):
        points = [(day_of(f"{row['day']}T12:00:00Z") + 0.04 * n, row["share"]) for n, row in rows if n == series]
        _intervals(axes, points, series)
    axes.set_ylim(0, min(1.02, axes.get_ylim()[1]))
    axes.set_ylabel("labels changed")
    time_axis(axes, *_reach(found, [row["day"] for _, row in rows]), marks)
    return figure


def _reach(found: Facts, days: Sequence[str]) -> tuple[float, float]:
    """From when to when: the period, or the days that have something, where our clock is not the events'."""
    shown = [day_of(f"{day}T00:00:00Z") for day in days]
    since, until = floor(day_of(found["since"])), ceil(day_of(found["until"]))
    begin, end = min(shown), max(shown) + 1
    if begin < until and end > since:
        begin, end = min(begin, since), max(end, until)
    spare = max(0.0, FEWEST_DAYS - (end - begin)) / 2
    return begin - spare, end + spare


def vain(cost: Facts) -> Facts | None:
    """What was spent beyond the labels that are there: on probes, answers of no use, and labels erased since."""
    if cost["spend"] is None:
        return None
    names = ("calls", "tokens_in", "tokens_out", "cost")
    return {name: sum(one[name] for one in cost["spend"]) - sum(one[name] for one in cost["labels"]) for name in names}


def cost(found: Facts, marks: Mapping[int, float]) -> Facts | None:
    """Cost by day and model: all calls where the ledger is there, else those of the labels."""
    cost = found["cost"]
    rows = cost["labels"] if cost["spend"] is None else cost["spend"]
    currencies = sorted({one["currency"] for one in cost["labels"] if one["currency"]})
    priced = any(one["cost"] for one in rows)
    amounts: dict[str, Counter[str]] = {}
    for one in rows:
        amount = one["cost"] if priced else one["tokens_in"] + one["tokens_out"]
        amounts.setdefault(one["model"], Counter())[one["day"]] += amount
    models = sorted(amounts, key=lambda name: -amounts[name].total())[: len(SERIES)]
    if not any(amounts[name].total() for name in models):
        return None
    unit = (cut(currencies[0], 12) if len(currencies) == 1 else "money") if priced else "tokens"
    says = f"{unit} by day: " + ", ".join(f"{cut(name, 40)} {amounts[name].total():,.2f}" for name in models)
    series = [amounts[name] for name in models]
    return {
        "unit": unit,
        "plot": across(partial(_draw_cost, series, unit, found, marks), "cost", says),
        "keys": [{**key, "sign": "\u25a0"} for key in _keys(models)],
    }


def _draw_cost(
    series: Sequence[Mapping[str, float]], unit: str, found: Facts, marks: Mapping[int, float], width: float
) -> Figure:
    figure, axes = canvas(width, 2.2)
    below: Counter[str] = Counter()
    for n, amounts in enumerate(series):
        days = list(amounts)
        x = [day_of(f"{day}T12:00:00Z") for day in days]
        axes.bar(x, [amounts[day] for day in days], bottom=[below[day] for day in days], width=0.8, color=SERIES[n])
        below.update(amounts)
    axes.yaxis.set_major_formatter("{x:,g}" if max(below.values()) < 10 else "{x:,.0f}")  # noqa: PLR2004
    axes.set_ylabel(f"{unit} by day")
    time_axis(axes, *_reach(found, [day for amounts in series for day in amounts]), marks)
    return figure
