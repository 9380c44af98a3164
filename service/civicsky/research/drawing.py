"""What reports draw and write with: pages that load nothing, plots as elements of them, hostile texts made harmless.

The one home of jinja2 and matplotlib, which come with the extra `research`: import this module where a command needs
it. Every text is escaped by the templates; `visible` shows what is invisible in it, and bounds its length. Plots follow
the page's colours, light and dark. matplotlib's settings are set here, for the whole process.
"""

import logging
import re
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.resources import files
from io import StringIO
from typing import Any, Final

from civicsky.errors import Usage
from civicsky.shown import visible

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its font cache

try:
    import matplotlib as mpl
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:  # pragma: no cover
    raise Usage(
        f"this needs the extra `research` ({error.name} is missing): "
        "pip install --require-hashes -r requirements/research.txt in the folder with civicsky's source"
    ) from None

__all__ = ["Axes", "Figure", "Markup"]

WIDE: Final = 8.0
"""Inches of a plot across a desk's screen, or paper."""
NARROW: Final = 4.0
"""The same of a phone."""
NEAR: Final = 0.07
"""Of an axis' length: marks that are nearer to each other share a number."""

INK, PAPER, MAIN, SOFT, ACCENT = "#010101", "#fefefe", "#0101fe", "#808182", "#fe0101"
SERIES: Final = tuple(f"#01f0{n:02d}" for n in range(1, 9))
"""Colours of what stands side by side. None of them is the only mark: see `MARKERS`."""
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")
SIGNS: Final = "\u25cf\u25a0\u25b2\u25c6\u25bc\u271a\u2716\u2605"
"""The same markers, for legends in a page."""
_COLOURS: Final = {
    INK: "currentColor", PAPER: "var(--paper)", MAIN: "var(--main)", SOFT: "var(--soft)", ACCENT: "var(--accent)",
    **{colour: f"var(--c{n})" for n, colour in enumerate(SERIES, 1)},
}  # fmt: skip
"""What matplotlib draws with, and what stands for it in the page, so that plots follow light and dark."""
_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
mpl.rcParams.update(_STYLE)


def page(template: str, **values: Any) -> str:
    """A page made from a template of ours (a file's name in `data/`); every value is escaped."""
    environment = Environment(
        loader=FunctionLoader(lambda name: (files("civicsky") / "data" / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure_markup, "visible": visible, "thousands": "{:,}".format}
    return environment.get_template(template).render(**values)


def figure_text(figure: Mapping[str, Any] | None) -> str:
    """A number with its interval and n."""
    if figure is None or not figure["n"]:
        return "no data n = 0"
    if figure["value"] is None:
        return f"not defined n = {figure['n']:,}"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}] n = {figure['n']:,}"


def figure_markup(figure: Mapping[str, Any] | None) -> Markup:
    """The same for a page: it may break before its n only."""
    number, mark, n = figure_text(figure).rpartition(" n = ")
    return Markup('<span class="number">{}</span> <span class="number">{}</span>').format(number, f"{mark}{n}".strip())


# ---- plots -----------------------------------------------------------------------------------------------------------


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure, in inches, and its axes; the page shows through."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return figure, axes


def day_of(time: str) -> float:
    """An RFC 3339 time as matplotlib counts: days since 1970 UTC."""
    return datetime.fromisoformat(time).timestamp() / 86_400


def time_axis(axes: Axes, begin: float, end: float, marks: Mapping[int, float]) -> None:
    """Make the x axis one of time, in UTC, with a numbered line at each mark inside. Times as of `day_of`."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    axes.set_xlim(begin, end)
    most = 5 if figure.get_figwidth() < WIDE else 9
    locator = AutoDateLocator(minticks=3, maxticks=most)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    told: list[tuple[float, list[int]]] = []
    for number, at in sorted(marks.items(), key=lambda one: one[1]):
        if begin <= at <= end:
            axes.axvline(at, color=ACCENT, linestyle="--", linewidth=1)
            if told and at - told[-1][0] < (end - begin) * NEAR:
                told[-1][1].append(number)
            else:
                told.append((at, [number]))
    for at, numbers in told:
        text = f"{numbers[0]}" if len(numbers) == 1 else f"{min(numbers)}\u2013{max(numbers)}"
        place: Any = {
            "xycoords": ("data", "axes fraction"),
            "textcoords": "offset points",
            "ha": "center",
            "va": "bottom",
        }
        axes.annotate(text, (at, 1), xytext=(0, 2), color=ACCENT, size=9, **place)


def svg(figure: Figure, salt: str, says: str) -> Markup:
    """A figure as an element of a page, in the page's colours. Texts in it are escaped by matplotlib.

    `salt`: another one for each figure of a page; `says`: what it shows, for those who do not see it.
    """
    out = StringIO()
    with mpl.rc_context({"svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts draw the texts, not ours
        FigureCanvasSVG(figure)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for drawn, meant in _COLOURS.items():
        text = text.replace(drawn, meant)
    # Ids of several figures share one page.
    mark = re.sub(r"\W", "", salt)
    text = re.sub(r'\bid="', f'id="{mark}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{mark}-", text)
    label = Markup.escape(visible(says))
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))  # noqa: S704  (matplotlib's own)


def across(draw: Callable[[float], Figure], salt: str, says: str) -> Markup:
    """A figure across the page: drawn for two widths in inches, of which the page shows the one that fits."""
    return Markup('<div class="plot-wide">{}</div><div class="plot-narrow">{}</div>').format(
        svg(draw(WIDE), f"{salt}w", says), svg(draw(NARROW), f"{salt}n", says)
    )
