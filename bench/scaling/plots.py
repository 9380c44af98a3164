"""The plots of docs/scale.md, as SVG files on white."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from bench.plots import INK, MET, MISSED, SOFT
from bench.scaling.needs import TIMES, Stage

FILE: Final = "scale-{}.svg"
COLOURS: Final = (MET, "#e07a1f", MISSED, "#5a3e85")
MARKERS: Final = ("o", "s", "^", "D")


def save(docs: Path, name: str, figure: Figure) -> None:
    """Write one; the same file for the same figures."""
    mpl.rcParams["svg.hashsalt"] = "civicsky"
    FigureCanvasSVG(figure)
    figure.savefig(docs / FILE.format(name), format="svg", facecolor="white", metadata={"Date": None})


def shares(found: Sequence[Stage]) -> Figure:
    """How much of each stage today's busiest hour takes, and ten and a hundred times as much."""
    figure = Figure(figsize=(9, 1.2 + 0.45 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    for at, stage in enumerate(found):
        axes.plot([stage.share(times) for times in TIMES], [at] * len(TIMES), color=SOFT, linewidth=1, zorder=1)
    for times, colour, marker in zip(TIMES, COLOURS, MARKERS, strict=False):
        label = "today" if times == 1 else f"{times} times"
        values = [stage.share(times) for stage in found]
        axes.plot(values, range(len(found)), marker, color=colour, markersize=8, label=label)
    axes.axvline(1, color=INK, linewidth=1.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([0.001, 0.01, 0.1, 1, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("of what it can do, in the busiest hour; right of the line it is too much")
    axes.set_yticks(range(len(found)), [stage.name.replace("`", "") for stage in found])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    _plain(axes)
    axes.legend(loc="upper center", bbox_to_anchor=(0.35, 1 + 1.2 / len(found)), ncols=3, frameon=False)
    return figure


def ceilings(lines: dict[str, list[tuple[float, float]]], measured: dict[str, list[tuple[float, float]]]) -> Figure:
    """Answers a second by calls in flight: simulated as lines, measured as marks."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, points), colour, marker in zip(lines.items(), COLOURS, MARKERS, strict=False):
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.5)
        axes.plot(*zip(*measured[name], strict=True), marker, color=colour, markersize=8, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator([1, 4, 16, 64, 256]))
    axes.yaxis.set_major_locator(FixedLocator([2, 10, 50, 200, 600]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("calls in flight")
    axes.set_ylabel("answers/s")
    axes.legend(title="a call takes (marks: measured, lines: simulated)", loc="lower right", frameon=False)
    _plain(axes)
    return figure


def backlogs(curves: dict[str, list[float]]) -> Figure:
    """Posts that wait through a day, for several numbers of GPUs."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for (name, values), colour, style in zip(curves.items(), COLOURS, ("-", "--", "-.", ":"), strict=False):
        axes.plot([minute / 60 for minute in range(len(values))], values, style, color=colour, linewidth=2, label=name)
    axes.set_xlim(0, max(map(len, curves.values())) / 60)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(FixedLocator(list(range(0, 49, 6))))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("hours since the first day's beginning")
    axes.set_ylabel("posts that wait")
    axes.legend(loc="upper right", frameon=False)
    _plain(axes)
    return figure


def _plain(axes: Any) -> None:
    axes.grid(color=SOFT, alpha=0.3)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
