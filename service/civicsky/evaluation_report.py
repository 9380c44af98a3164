"""The report of an evaluation: figures in, one HTML page that loads nothing, or a short text for a terminal.

The one home of jinja2 and matplotlib, which come with the extra `research`: import this module where a command needs
it. Posts are hostile: every text is escaped by the template, its invisible characters are shown, its length is bounded.
"""

import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence
from importlib.resources import files
from io import StringIO
from typing import Any, Final

from civicsky.errors import Usage
from civicsky.report import printable

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its font cache

try:
    import matplotlib as mpl
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:  # pragma: no cover
    raise Usage(
        f"this needs the extra `research` ({error.name} is missing): pip install 'civicsky[research]'"
    ) from None

Row = Mapping[str, Any]

MAX_LISTED: Final = 200
"""Disagreements shown of each field; how many there are is said besides."""
MAX_SHOWN: Final = 1_000
"""Characters shown of a post."""
MAX_MARKS: Final = 4
"""Accents on one letter; more of them would paint over the lines around."""

_JOINERS: Final = frozenset("\u200d\u200c")
"""They make emoji, and letters of some scripts, out of several characters."""
_INK, _PAPER, _MAIN, _SOFT, _ACCENT = "#010101", "#fefefe", "#0101fe", "#808182", "#fe0101"
_COLOURS: Final = {
    _INK: "currentColor", _PAPER: "var(--paper)", _MAIN: "var(--main)", _SOFT: "var(--soft)", _ACCENT: "var(--accent)"
}  # fmt: skip
"""What matplotlib draws with, and what stands for it in the page, so that plots follow light and dark."""
_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def html_page(found: Row, texts: Mapping[str, str]) -> str:
    """The page. `found`: all figures, see `evaluate`; `texts`: of the items, by their keys."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": _figure_markup, "visible": visible, "thousands": "{:,}".format}
    template = (files("civicsky") / "data" / "evaluation.html.j2").read_text(encoding="utf-8")
    plots, baselines = {}, {}
    for number, field in enumerate(found["fields"]):
        name = field["name"]
        scored = [
            (variant["name"], row)
            for variant in found["variants"]
            for row in variant["fields"]
            if row["field"] == name and row["all"]
        ]
        if not scored:
            continue
        baselines[name] = scored[0][1]["all"]
        plots[name] = {
            "bars": _bars(scored, f"{number}"),
            "confusions": {
                variant: _confusion(row["all"], f"{number}-{at}") for at, (variant, row) in enumerate(scored)
            },
            "curves": {
                variant: _curve(row["calibration"], f"{number}-{at}")
                for at, (variant, row) in enumerate(scored)
                if row["calibration"]
            },
        }
    listed = {
        name: [row for row in found["disagreements"] if row["field"] == name][:MAX_LISTED]
        for name in (field["name"] for field in found["fields"])
    }
    return environment.from_string(template).render(
        found=found, plots=plots, baselines=baselines, listed=listed, texts=texts
    )


def text_table(found: Row) -> str:
    """The figures that matter most, for a terminal."""
    gold = found["gold"]
    lines = [
        f"{printable(gold['file'])}: {gold['items']:,} items in {gold['rows']:,} rows, {gold['asked']:,} asked about; "
        f"{gold['shown']:,} dropped as examples that the model is shown, {gold['without_text']:,} without a text",
    ]
    for field in found["fields"]:
        counts = {"judged": 0, **field["outcomes"]}
        lines += ["", f"{field['name']}: " + ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in counts.items())]
        if field["annotators"]:
            lines.append(f"  {'annotators agree':34} {_figure(field['annotators']['agreement'])} pairs")
            lines.append(f"  {'Krippendorff alpha':34} {_figure(field['annotators']['alpha'])}")
        told = False
        for variant in found["variants"]:
            for row in variant["fields"]:
                if row["field"] != field["name"] or not row["all"]:
                    continue
                if not told:
                    lines.append(f"  {'always ' + repr(row['all']['majority']):34} {_figure(row['all']['baseline'])}")
                    told = True
                lines.append(f"  {printable(variant['name'], 76)}")
                if row["answered"]:
                    lines.append(f"    {'accuracy, of those answered':32} {_figure(row['answered']['accuracy'])}")
                    lines.append(f"    {'macro F1':32} {_figure(row['answered']['macro_f1'])}")
                    lines.append(f"    {'kappa':32} {_figure(row['answered']['kappa'])}")
                lines.append(f"    {'accuracy, no answer being wrong':32} {_figure(row['all']['accuracy'])}")
        for pair in (row for row in found["comparisons"] if row["field"] == field["name"]):
            result = pair["result"]
            lines.append(
                f"  {printable(pair['first'], 60)} less {printable(pair['second'], 60)}: "
                f"{_figure(result['difference'])}, McNemar p = {result['p_value']:.3g}"
            )
    for variant in found["variants"]:
        lines += ["", f"{printable(variant['name'], 76)}: {_took(variant['effort'], variant['answered'])}"]
        lines += [f"  failed: {reason} {n:,}" for reason, n in sorted(variant["failed"].items())]
    return "\n".join(lines)


def _took(one: Row, answered: int) -> str:
    parts = [f"{answered:,} of {one['posts']:,} answered", f"{one['calls']:,} calls"]
    parts += [f"{one['tokens_in']:,} tokens in", f"{one['tokens_out']:,} out"]
    if one["cost"] is not None:
        parts.append(f"{one['cost']:.4f} {one['currency']}")
    if one["seconds_median"] is not None:
        parts.append(f"{one['seconds_median']:.2f} s a post (median)")
    return ", ".join(parts)


def visible(text: str) -> str:
    """A post's text for the page: what would move, hide or turn other text is named instead; bounded."""
    shown: list[str] = []
    marks = 0
    for char in text[:MAX_SHOWN]:
        kind = unicodedata.category(char)
        marks = marks + 1 if kind in {"Mn", "Me"} else 0
        if marks > MAX_MARKS:
            continue
        if kind in {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"} and char not in _JOINERS and char != "\n":
            shown.append(f"\u2039U+{ord(char):04X}\u203a")
        else:
            shown.append(char)
    return "".join(shown) + ("\u2026" if len(text) > MAX_SHOWN else "")


def _figure(figure: Row | None) -> str:
    """A number with its interval and n."""
    if figure is None or figure["value"] is None:
        return f"no data n = {figure['n'] if figure else 0:,}"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}] n = {figure['n']:,}"


def _figure_markup(figure: Row | None) -> Markup:
    """The same for the page: it may break before its n only."""
    number, mark, n = _figure(figure).rpartition(" n = ")
    return Markup('<span class="number">{}</span> <span class="number">{}</span>').format(number, f"{mark}{n}".strip())


# ---- plots -----------------------------------------------------------------------------------------------------------


def _svg(figure: Figure, salt: str, says: str) -> Markup:
    """A figure as an element of the page, in the page's colours. Texts in it are escaped by matplotlib."""
    out = StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": salt}):
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
    label = Markup.escape(says)
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))  # noqa: S704  (matplotlib's own)


def _bars(rows: Sequence[tuple[str, Row]], salt: str) -> Markup:
    """Accuracy with interval of each variant, beside always saying the most frequent value."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 0.9 + 0.45 * (len(rows) + 1)), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        bars = [(f"always {rows[0][1]['all']['majority']}", rows[0][1]["all"]["baseline"], _SOFT)]
        bars += [(name, row["all"]["accuracy"], _MAIN) for name, row in rows]
        for place, (_, bar, colour) in enumerate(bars):
            value = bar["value"] or 0.0
            axes.barh(place, value, height=0.6, color=colour)
            error = [[max(0.0, value - bar["low"])], [max(0.0, bar["high"] - value)]]
            axes.errorbar(value, place, xerr=error, color=_INK, capsize=4, linewidth=1.2)
        axes.axvline(bars[0][1]["value"] or 0.0, color=_SOFT, linestyle=":", linewidth=1)
        names = [f"{_cut(name)}\nn = {bar['n']:,}" for name, bar, _ in bars]
        axes.set_yticks(range(len(bars)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel("accuracy, no answer being wrong; 95 % interval")
    return _svg(figure, f"bars{salt}", "accuracy of each variant beside the majority baseline")


def _confusion(scores: Row, salt: str) -> Markup:
    """Rows: gold; columns: the model, last without a value. Shades are shares of a row."""
    classes, counts = scores["classes"], scores["confusion"]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(1.9 + 0.9 * (len(classes) + 1), 1.4 + 0.6 * len(classes)), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        for y, row in enumerate(counts):
            for x, n in enumerate(row):
                share = n / sum(row) if sum(row) else 0.0
                right = x == y
                axes.barh(y, 0.96, left=x - 0.48, height=0.94, color=_MAIN if right else _ACCENT, alpha=0.75 * share)
                axes.text(x, y, f"{n:,}", ha="center", va="center")
        axes.set_xticks(range(len(classes) + 1), [*map(_cut, classes), "no value"], rotation=30, ha="right")
        axes.set_yticks(
            range(len(classes)), [f"{_cut(name)}\nn = {sum(row):,}" for name, row in zip(classes, counts, strict=True)]
        )
        axes.set_xlim(-0.5, len(classes) + 0.5)
        axes.set_ylim(len(classes) - 0.5, -0.5)
        axes.set_xlabel("the model")
        axes.set_ylabel("gold")
    return _svg(figure, f"confusion{salt}", "confusion matrix: rows gold, columns the model")


def _curve(calibration: Row, salt: str) -> Markup:
    """How often probabilities came true."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.2, 4.0), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.plot([0, 1], [0, 1], color=_SOFT, linestyle=":", linewidth=1)
        for one in calibration["bins"]:
            share = one["share"]
            if one["probability"] is None or share["value"] is None:
                continue
            error = [[max(0.0, share["value"] - share["low"])], [max(0.0, share["high"] - share["value"])]]
            axes.errorbar(
                one["probability"], share["value"], yerr=error, color=_MAIN, marker="o", capsize=3, linewidth=1.2
            )
            axes.text((one["above"] + one["upto"]) / 2, -0.02, f"{share['n']:,}", ha="center", va="top", size=8)
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.08, 1.03)
        axes.set_xlabel("probability given; at the foot n of each bin")
        axes.set_ylabel("share that came true; 95 % interval")
    return _svg(figure, f"curve{salt}", "reliability curve")


def _cut(name: str) -> str:
    return printable(name, 28)
