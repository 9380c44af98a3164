"""Draws what was measured: one plot of all bars, and one for each part, as SVG files on white."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from bench.results import Entry, named
from bench.shown import number
from civicsky.research import drawing  # its settings hold for all plots of the process

FILE: Final = "performance-{}.svg"
INK, SOFT, MET, MISSED = drawing.INK, drawing.SOFT, "#2a6f97", "#c1121f"
ROW: Final = 0.26
"""Inches a row."""
MOST: Final = 24
"""Rows in one panel."""


def draw(docs: Path, parts: dict[str, Entry]) -> dict[str, str]:
    """Draw all plots into a folder; their files' names by part, and that of all bars under "bars"."""
    mpl.rcParams["svg.hashsalt"] = "civicsky"  # the same file for the same figures
    drawn: dict[str, str] = {}
    for name, figure in _figures(parts):
        drawn[name] = FILE.format(name)
        FigureCanvasSVG(figure)
        figure.savefig(docs / drawn[name], format="svg", facecolor="white", metadata={"Date": None})
    return drawn


def _figures(parts: dict[str, Entry]) -> Iterator[tuple[str, Figure]]:
    barred = [
        (f"{name}: {what}", one) for name, part in parts.items() for what, one in named(part).items() if one["bar"]
    ]
    if barred:
        yield "bars", _over_bars(barred)
    for name, part in parts.items():
        panels = {unit: rows for unit, rows in _by_unit(part).items() if rows}
        if panels:
            yield name, _panels(panels)


def _by_unit(part: Entry) -> dict[str, list[tuple[str, Entry]]]:
    units: dict[str, list[tuple[str, Entry]]] = {}
    for what, one in named(part).items():
        units.setdefault(one.get("unit", "ratio"), []).append((what, one))
    return {unit: rows[:MOST] for unit, rows in units.items()}


def _over_bars(barred: list[tuple[str, Entry]]) -> Figure:
    """How many times over its bar each median is; where less is better, how many times below."""
    figure = Figure(figsize=(9, 1.0 + ROW * len(barred)), layout="constrained")
    axes = figure.add_subplot()
    for at, (_, one) in enumerate(barred):
        times = [_times(one, value) for value in (one["median"], one["min"], one["max"])]
        colour, marker = (MET, "o") if one["met"] else (MISSED, "X")
        axes.plot(sorted(times[1:]), [at, at], color=colour, linewidth=2)
        axes.plot(times[0], at, marker, color=colour, markersize=8)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([0.125, 0.25, 0.5, 1, 2, 4, 8]))
    axes.xaxis.set_major_formatter("{x:g}")  # a log scale's own has formulas, which are not drawn here
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("times better than the bar; a cross misses it")
    _rows(axes, [name for name, _ in barred])
    return figure


def _times(one: Entry, value: float) -> float:
    if not value:
        return 1e-3 if one["at_least"] else 1e3
    return float(value / one["bar"] if one["at_least"] else one["bar"] / value)


def _panels(panels: dict[str, list[tuple[str, Entry]]]) -> Figure:
    """One panel a unit: medians, with a line from the smallest to the largest."""
    heights = [ROW * len(rows) + 0.7 for rows in panels.values()]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    every = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)
    for (axes,), (unit, rows) in zip(every, panels.items(), strict=True):
        for at, (_, one) in enumerate(rows):
            axes.barh(at, one["median"], color=MISSED if one["met"] is False else MET, height=0.6)
            axes.plot([one["min"], one["max"]], [at, at], color=INK, linewidth=1)
            if one["bar"] is not None:
                axes.plot([one["bar"]] * 2, [at - 0.45, at + 0.45], color=INK, linewidth=2)
            axes.annotate(
                number(one["median"]), (one["max"], at), xytext=(4, 0), textcoords="offset points", va="center"
            )
        axes.set_xlabel(unit + (" (the thick mark is the bar)" if any(one["bar"] for _, one in rows) else ""))
        axes.margins(x=0.12)
        _rows(axes, [name for name, _ in rows])
    return figure


def _rows(axes: Any, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), [name if len(name) < 72 else name[:70] + "..." for name in names])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=SOFT, alpha=0.3)
    axes.set_axisbelow(True)
