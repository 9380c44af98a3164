"""What is said of a tuning: figures of old and new task side by side, the verdict, the table in the new file. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from civicsky.model import Answer
from civicsky.report import printable
from civicsky.research import figures
from civicsky.research.gold import Item
from civicsky.research.measure import compare, compare_f1
from civicsky.task import Field, Task
from civicsky.tuning.search import Measure

Row = Mapping[str, Any]
VERDICTS: Final = {
    "better": "better on posts that nothing was chosen by; the whole interval of the difference lies above 0",
    "noise": "the difference is within noise: its interval holds 0. Keep the old task",
    "worse": "worse on posts that nothing was chosen by. Keep the old task",
}


def side(
    items: Sequence[Item],
    judged: Sequence[str],
    task: Task,
    field: Field,
    old: Mapping[str, Answer],
    new: Mapping[str, Answer],
) -> dict[str, Any]:
    """Both tasks on the same posts, their answers by item; as JSON values. Differences are those of new less old."""
    names = tuple(one.name for one in task.fields)
    said = [
        figures.Said(name, names, answers, {item.key: "no answer" for item in items if item.key not in answers})
        for name, answers in (("new", new), ("old", old))
    ]
    scored = [
        {one.name: figures.field_scores(items, part, judged, one) for one in said}
        for part in task.fields
        if part.name in judged
    ]
    held = figures.truths(items, field, judged)
    rows = [(item, value) for item in items if (value := held[item.key][1]) is not None]
    gold, authors = [value for _, value in rows], [figures.cluster(item) for item, _ in rows]
    given = [[_value(answers.get(item.key), field.name) for item, _ in rows] for answers in (new, old)]
    accuracy = compare(gold, given[0], given[1], authors)
    found: dict[str, Any] = figures.plain(
        {
            "posts": len(rows),
            "authors": len(set(authors)),
            "fields": scored,
            "accuracy": accuracy,
            "f1": compare_f1(gold, given[0], given[1], authors, field.values),
        }
    )
    return found


def _value(answer: Answer | None, field: str) -> str | None:
    label = answer.fields.get(field) if answer else None
    return label.value if label else None


def difference(one: Row, by: Measure) -> dict[str, Any]:
    """New less old, by the measure that decides."""
    found: dict[str, Any] = one["f1"] if by == "f1" else one["accuracy"]["difference"]
    return found


def verdict(found: Row) -> str:
    """One of `VERDICTS`, by the held-out posts alone."""
    told = difference(found["held_out"], found["measure"])
    return "better" if told["low"] > 0 else "worse" if told["high"] < 0 else "noise"


def tuned(found: Row, posts: Sequence[str]) -> dict[str, Any]:
    """The new file's table `tuned`. `posts`: the addresses of those whose texts are in the file; empty: not known."""
    parts = found["split"]["parts"]
    return {
        "from": found["from"],
        "at": found["at"],
        "civicsky": found["civicsky"],
        "verdict": found["verdict"],
        "model": found["model"],
        "way": found["way"],
        "field": found["field"],
        "measure": found["measure"],
        "seed": found["search"]["seed"],
        "wording": found["wording"],
        "gold": {**found["split"]["gold"], "rows": found["split"]["rows"]},
        "parts": {name: {key: part[key] for key in ("posts", "authors", "sha256")} for name, part in parts.items()},
        "search": {key: found["search"][key] for key in ("kind", "candidates", "sizes", "replace", "no_texts")},
        "validation": _scores(found, "validation"),
        "held_out": _scores(found, "held_out"),
        "posts": list(posts),
    }


def _scores(found: Row, where: str) -> dict[str, Any]:
    told = {name: _brief(figure) for name, figure in _decisive(found, where).items()}
    return told | {"mcnemar_p": float(found[where]["accuracy"]["p_value"])}


def _decisive(found: Row, where: str) -> dict[str, Row]:
    """Old, new and difference in the measure that decides."""
    row = next(row for row in found[where]["fields"] if row["new"]["field"] == found["field"])
    name = "macro_f1" if found["measure"] == "f1" else "accuracy"
    return {
        "old": row["old"]["all"][name],
        "new": row["new"]["all"][name],
        "difference": difference(found[where], found["measure"]),
    }


def _brief(figure: Row) -> dict[str, Any]:
    told = {key: round(float(figure[key] or 0.0), 4) for key in ("value", "low", "high")}
    return {**told, "n": figure["n"], "authors": figure["clusters"]}


def head(found: Row, posts: int) -> list[str]:
    """What stands at the top of the new file."""
    lines = [f"Made by `civicsky dev tune` from the task {found['from']['name']}, version {found['from']['version']}."]
    if posts:
        lines += [
            f"It holds the texts of {posts} posts that people wrote, as examples: do not publish it as it is. When an",
            "author deletes a post, take it out here: [tuned] has the addresses as far as they are known. The model is",
            "then asked another question: give the file another version, and evaluate it again.",
        ]
    lines.append("How it was found, and how good it is, stands in the table [tuned] at the end.")
    return lines


# ---- for a terminal --------------------------------------------------------------------------------------------------

_READ: Final = (
    "in brackets: 95 % intervals, clustered by author. Macro F1: the mean of the values' F1, so a rare value counts as "
    "much as a frequent one",
)
_MEASURES: Final = {"f1": "macro F1", "accuracy": "accuracy"}


def text(found: Row, out: str, folder: str) -> str:
    """The whole result."""
    lines = [*_beginning(found), *_READ, ""]
    for where, name in (
        ("validation", "validation (the new one was chosen by these posts: too good)"),
        ("held_out", "held-out (nothing was chosen by these posts)"),
    ):
        side = found[where]
        lines.append(f"{name}: {side['posts']:,} posts of {side['authors']:,} authors")
        for row in (row for row in side["fields"] if row["new"]["all"]):
            lines += [f"  {row[one]['field']} {one:4} {_both(row[one])}" for one in ("old", "new")]
        lines.append(f"  {found['field']} new less old: accuracy {_figure(side['accuracy']['difference'])}")
        lines.append(f"  {found['field']} new less old: macro F1 {_figure(side['f1'])}")
        lines.append(f"  McNemar's test of the two accuracies: p = {side['accuracy']['p_value']:.3g}")
        if side["accuracy"]["warning"]:
            lines.append(f"  {side['accuracy']['warning']}")
    new = found["new"]
    lines += ["", f"{new['name']} {new['version']} by {_MEASURES[found['measure']]}: {VERDICTS[found['verdict']]}."]
    lines.append(f"new task file: {printable(out)}; all figures: {printable(folder)}")
    return "\n".join(lines)


def nothing_better(found: Row) -> str:
    """When no candidate was worth opening the held-out posts for."""
    scores = found["validation_scores"]
    best = "none was judged on all of them within the budget" if scores["best"] is None else f"{scores['best']:.3f}"
    return "\n".join(
        [
            *_beginning(found),
            "",
            f"Nothing better was found on the validation posts: {_MEASURES[found['measure']]} of the old task "
            f"{scores['old']:.3f}, of the best other: {best}. Keep the old task. No file was written, and the held-out "
            "posts were not opened.",
        ]
    )


def _beginning(found: Row) -> list[str]:
    split, search, effort = found["split"], found["search"], found["effort"]
    parts = ", ".join(
        f"{name} {part['posts']:,} posts ({part['authors']:,} authors)" for name, part in split["parts"].items()
    )
    left = ", ".join(f"{n:,} {why.replace('_', ' ')}" for why, n in split["left_out"].items() if n)
    wordings = len(search["wordings"]) + search["written"] - search["written_in_vain"]
    tokens = f"{effort['tokens_in']:,} tokens in, {effort['tokens_out']:,} out"
    cost = "" if effort["cost"] is None else f", {effort['cost']:.4f} {effort['currency']}"
    lines = [
        f"{found['from']['name']} {found['from']['version']}, {printable(str(found['model']))}, way {found['way']}, "
        f"decided by {found['field']}",
        f"split by seed {search['seed']}: {parts}" + (f"; left out: {left}" if left else ""),
        f"search: {search['kind']}, {search['candidates']} candidates, {wordings} other wordings; "
        f"{effort['calls']:,} calls, {tokens}{cost}",
    ]
    if search["written_in_vain"]:
        lines.append(f"{search['written_in_vain']} wordings that the model wrote could not be used")
    return lines


def _figure(figure: Row) -> str:
    if figure["value"] is None:
        return f"{'not defined' if figure['n'] else 'no data'} n = {figure['n']:,}"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}] n = {figure['n']:,}"


def _both(row: Row) -> str:
    return f"accuracy {_figure(row['all']['accuracy'])}, macro F1 {_figure(row['all']['macro_f1'])}"
