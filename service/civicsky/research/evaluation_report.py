"""The report of an evaluation: figures in, one HTML page that loads nothing, or a short text for a terminal.

Posts are hostile: every text is escaped by the template, its invisible characters are shown, its length is bounded.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from civicsky.report import printable
from civicsky.research.drawing import ACCENT, INK, MAIN, SOFT, Markup, canvas, figure_text, page, svg

Row = Mapping[str, Any]

MAX_LISTED: Final = 200
"""Disagreements shown of each field; how many there are is said besides."""


def html_page(found: Row, texts: Mapping[str, str]) -> str:
    """The page. `found`: all figures, see `evaluate`; `texts`: of the items, by their keys."""
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
    return page("evaluation.html.j2", found=found, plots=plots, baselines=baselines, listed=listed, texts=texts)


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
            lines.append(f"  {'annotators agree':34} {figure_text(field['annotators']['agreement'])} pairs")
            lines.append(f"  {'Krippendorff alpha':34} {figure_text(field['annotators']['alpha'])}")
        told = False
        for variant in found["variants"]:
            for row in variant["fields"]:
                if row["field"] != field["name"] or not row["all"]:
                    continue
                if not told:
                    lines.append(
                        f"  {'always ' + repr(row['all']['majority']):34} {figure_text(row['all']['baseline'])}"
                    )
                    told = True
                lines.append(f"  {printable(variant['name'], 76)}")
                if row["answered"]:
                    lines.append(f"    {'accuracy, of those answered':32} {figure_text(row['answered']['accuracy'])}")
                    lines.append(f"    {'macro F1':32} {figure_text(row['answered']['macro_f1'])}")
                    lines.append(f"    {'kappa':32} {figure_text(row['answered']['kappa'])}")
                lines.append(f"    {'accuracy, no answer being wrong':32} {figure_text(row['all']['accuracy'])}")
        for pair in (row for row in found["comparisons"] if row["field"] == field["name"]):
            result = pair["result"]
            difference = figure_text(result["difference"])
            lines.append(
                f"  accuracy of {printable(pair['first'], 60)}, less that of {printable(pair['second'], 60)}:\n"
                f"    {'no answer being wrong':32} {difference}, McNemar p = {result['p_value']:.3g}"
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


# ---- plots -----------------------------------------------------------------------------------------------------------


def _bars(rows: Sequence[tuple[str, Row]], salt: str) -> Markup:
    """Accuracy with interval of each variant, beside always saying the most frequent value."""
    figure, axes = canvas(6.4, 0.9 + 0.45 * (len(rows) + 1))
    bars = [(f"always {rows[0][1]['all']['majority']}", rows[0][1]["all"]["baseline"], SOFT)]
    bars += [(name, row["all"]["accuracy"], MAIN) for name, row in rows]
    for place, (_, bar, colour) in enumerate(bars):
        value = bar["value"] or 0.0
        axes.barh(place, value, height=0.6, color=colour)
        error = [[max(0.0, value - bar["low"])], [max(0.0, bar["high"] - value)]]
        axes.errorbar(value, place, xerr=error, color=INK, capsize=4, linewidth=1.2)
    axes.axvline(bars[0][1]["value"] or 0.0, color=SOFT, linestyle=":", linewidth=1)
    names = [f"{_cut(name)}\nn = {bar['n']:,}" for name, bar, _ in bars]
    axes.set_yticks(range(len(bars)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("accuracy, no answer being wrong; 95 % interval")
    return svg(figure, f"bars{salt}", "accuracy of each variant beside the majority baseline")


def _confusion(scores: Row, salt: str) -> Markup:
    """Rows: gold; columns: the model, last without a value. Shades are shares of a row."""
    classes, counts = scores["classes"], scores["confusion"]
    figure, axes = canvas(1.9 + 0.9 * (len(classes) + 1), 1.4 + 0.6 * len(classes))
    for y, row in enumerate(counts):
        for x, n in enumerate(row):
            share = n / sum(row) if sum(row) else 0.0
            right = x == y
            axes.barh(y, 0.96, left=x - 0.48, height=0.94, color=MAIN if right else ACCENT, alpha=0.75 * share)
            axes.text(x, y, f"{n:,}", ha="center", va="center")
    axes.set_xticks(range(len(classes) + 1), [*map(_cut, classes), "no value"], rotation=30, ha="right")
    axes.set_yticks(
        range(len(classes)), [f"{_cut(name)}\nn = {sum(row):,}" for name, row in zip(classes, counts, strict=True)]
    )
    axes.set_xlim(-0.5, len(classes) + 0.5)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlabel("the model")
    axes.set_ylabel("gold")
    return svg(figure, f"confusion{salt}", "confusion matrix: rows gold, columns the model")


def _curve(calibration: Row, salt: str) -> Markup:
    """How often probabilities came true."""
    figure, axes = canvas(4.2, 4.0)
    axes.plot([0, 1], [0, 1], color=SOFT, linestyle=":", linewidth=1)
    for one in calibration["bins"]:
        share = one["share"]
        if one["probability"] is None or share["value"] is None:
            continue
        error = [[max(0.0, share["value"] - share["low"])], [max(0.0, share["high"] - share["value"])]]
        axes.errorbar(one["probability"], share["value"], yerr=error, color=MAIN, marker="o", capsize=3, linewidth=1.2)
        axes.text((one["above"] + one["upto"]) / 2, -0.02, f"{share['n']:,}", ha="center", va="top", size=8)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.08, 1.03)
    axes.set_xlabel("probability given; at the foot n of each bin")
    axes.set_ylabel("share that came true; 95 % interval")
    return svg(figure, f"curve{salt}", "reliability curve")


def _cut(name: str) -> str:
    return printable(name, 28)
