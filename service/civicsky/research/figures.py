"""How good labels are: gold items and what each variant said of them in, all figures of an evaluation out. Pure.

A variant is one task asked of one model in one way. Every variant is held against the same items, so that figures can
stand side by side. A field that is asked only of some posts (lean, of civic ones) is scored where gold says it applies.

Each field is scored twice: `answered`, over the items for which the variant gave the field a value, and `all`, where no
value counts as wrong: the call failed, or the model held that the field does not apply.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean, median
from typing import Any, Final, Literal, NamedTuple

from civicsky.model import Answer
from civicsky.research.gold import ADJUDICATED, CANNOT_TELL, Item
from civicsky.research.measure import (
    Agreement,
    Calibration,
    Comparison,
    Scores,
    agreement,
    calibration,
    compare,
    scores,
)
from civicsky.task import Field

PAIRS: Final = 45
"""Comparisons of a field at most: all pairs of ten variants."""

Outcome = Literal["judged", "not_judged", "cannot_tell", "tie", "not_applicable"]


class Said(NamedTuple):
    """What one variant said of the items, by their keys."""

    name: str
    fields: tuple[str, ...]
    """Of the gold's fields those that its task has."""
    answers: Mapping[str, Answer]
    failed: Mapping[str, str]
    """Why there is no answer of use."""


class GoldField(NamedTuple):
    """A field of the gold items: what it is held to be, and how far annotators agree on it."""

    name: str
    values: tuple[str, ...]
    outcomes: dict[Outcome, int]
    """Of all items. cannot_tell, tie: counted and never scored. not_applicable: by another field's gold value."""
    classes: dict[str, int]
    """Of the judged items, by value."""
    annotators: Agreement | None
    """None when no item has two judgements."""


class FieldScores(NamedTuple):
    """One variant on one field."""

    field: str
    n: int
    """Items that gold judges."""
    failed: int
    """Of these those without any answer."""
    unsaid: int
    """Of these those where the model held that the field does not apply."""
    answered: Scores | None
    """None when there is nothing to score."""
    all: Scores | None
    event: str
    """What the probabilities of `calibration` are about."""
    calibration: Calibration | None
    """None when the way of asking gives no probability."""


class FieldComparison(NamedTuple):
    """Two variants on one field, on all items that gold judges; no value counts as wrong."""

    field: str
    first: str
    second: str
    result: Comparison


class Disagreement(NamedTuple):
    """An item that a variant got wrong in one field."""

    field: str
    key: str
    gold: str
    judgements: dict[str, str]
    said: dict[str, tuple[str | None, float | None]]
    """By variant: value and probability; (None, None) where it gave none."""
    reasons: dict[str, str]
    """By variant the model's own sentence, where the task asks for one; it may quote the post."""


class Effort(NamedTuple):
    """What a variant's answers took; those of no use and those paid in earlier runs included."""

    posts: int
    calls: int
    tokens_in: int
    tokens_out: int
    tokens_reasoning: int
    cost: float | None
    """None when the model has no price."""
    currency: str | None
    seconds_median: float | None
    """Seconds for one post, of those answered."""
    seconds_mean: float | None


def truths(items: Iterable[Item], field: Field, judged: Sequence[str]) -> dict[str, tuple[Outcome, str | None]]:
    """By item what gold holds of a field. `judged`: the fields that the file has."""
    found: dict[str, tuple[Outcome, str | None]] = {}
    for item in items:
        outcome: Outcome
        outcome, value = item.truth(field.name)
        for name, wanted in field.only_if.items():
            condition = item.truth(name)
            if name not in judged or condition.outcome == "not_judged":
                continue  # who judged the field held that it applies
            if condition.value != wanted:
                outcome, value = ("not_applicable" if condition.outcome == "judged" else condition.outcome), None
        found[item.key] = outcome, value
    return found


def gold_field(items: Sequence[Item], field: Field, judged: Sequence[str]) -> GoldField:
    """The gold's side of a field."""
    found = truths(items, field, judged)
    classes = Counter(value for _, value in found.values() if value is not None)
    votes = [
        {
            who: said[field.name]
            for who, said in item.judgements.items()
            if who != ADJUDICATED and said.get(field.name, CANNOT_TELL) != CANNOT_TELL
        }
        for item in items
    ]
    several = [(vote, item) for vote, item in zip(votes, items, strict=True) if len(vote) > 1]
    return GoldField(
        field.name,
        field.values,
        dict(Counter(outcome for outcome, _ in found.values())),
        {value: classes[value] for value in field.values if value in classes},
        agreement([vote for vote, _ in several], [cluster(item) for _, item in several]) if several else None,
    )


def field_scores(items: Sequence[Item], field: Field, judged: Sequence[str], said: Said) -> FieldScores:
    """Hold one variant against gold on one field."""
    found = truths(items, field, judged)
    rows = [(item, value) for item in items if (value := found[item.key][1]) is not None]
    given = [_given(said, item, field.name) for item, _ in rows]
    with_value = [(row, value) for row, (value, _) in zip(rows, given, strict=True) if value is not None]
    failed = sum(item.key in said.failed for item, _ in rows)
    sure = [(row, value, p) for row, (value, p) in zip(rows, given, strict=True) if value is not None and p is not None]
    event, first = "the label given is right", field.values[0]
    if len(field.values) == 2:  # noqa: PLR2004
        event = f"the post is {first}"
        pairs = [(p if value == first else 1 - p, gold == first) for (_, gold), value, p in sure]
    else:
        pairs = [(p, gold == value) for (_, gold), value, p in sure]
    return FieldScores(
        field.name,
        len(rows),
        failed,
        len(rows) - len(with_value) - failed,
        _scores([row for row, _ in with_value], [value for _, value in with_value], field),
        _scores(rows, [value for value, _ in given], field),
        event,
        calibration([p for p, _ in pairs], [true for _, true in pairs], [cluster(item) for (item, _), _, _ in sure])
        if sure
        else None,
    )


def comparisons(
    items: Sequence[Item], field: Field, judged: Sequence[str], variants: Sequence[Said]
) -> list[FieldComparison]:
    """Each two variants on one field."""
    found = truths(items, field, judged)
    rows = [(item, value) for item in items if (value := found[item.key][1]) is not None]
    if not rows:
        return []
    gold, authors = [value for _, value in rows], [cluster(item) for item, _ in rows]
    given = {one.name: [_given(one, item, field.name)[0] for item, _ in rows] for one in variants}
    pairs = list(combinations([one.name for one in variants if field.name in one.fields], 2))[:PAIRS]
    return [
        FieldComparison(field.name, first, second, compare(gold, given[first], given[second], authors))
        for first, second in pairs
    ]


def disagreements(
    items: Sequence[Item], field: Field, judged: Sequence[str], variants: Sequence[Said]
) -> list[Disagreement]:
    """What at least one variant got wrong: first what most got wrong, then the surest ones."""
    found = truths(items, field, judged)
    asked = [one for one in variants if field.name in one.fields]
    rows: list[tuple[tuple[float, float], Disagreement]] = []
    for item in items:
        gold = found[item.key][1]
        said = {one.name: _given(one, item, field.name) for one in asked}
        wrong = [p or 0.0 for value, p in said.values() if value != gold]
        if gold is None or not wrong:
            continue
        votes = {who: given[field.name] for who, given in item.judgements.items() if field.name in given}
        answers = {one.name: one.answers.get(item.key) for one in asked}
        reasons = {name: answer.reason for name, answer in answers.items() if answer and answer.reason}
        rows.append(((-len(wrong), -max(wrong)), Disagreement(field.name, item.key, gold, votes, said, reasons)))
    return [row for _, row in sorted(rows, key=lambda row: row[0])]


def effort(answers: Iterable[Answer], vain: Iterable[Mapping[str, float]], posts: int) -> Effort:
    """Add up what was paid. `vain`: what answers of no use cost."""
    known, lost = list(answers), list(vain)
    seconds = [answer.latency_ms / 1000 for answer in known]
    priced = [answer.cost for answer in known if answer.cost is not None]

    def total(name: str) -> int:
        return int(sum(getattr(answer, name) for answer in known) + sum(one.get(name, 0) for one in lost))

    return Effort(
        posts,
        calls=total("calls"),
        tokens_in=total("tokens_in"),
        tokens_out=total("tokens_out"),
        tokens_reasoning=total("tokens_reasoning"),
        cost=sum(priced) + sum(one.get("cost", 0.0) for one in lost) if priced else None,
        currency=next((answer.currency for answer in known if answer.currency), None),
        seconds_median=median(seconds) if seconds else None,
        seconds_mean=fmean(seconds) if seconds else None,
    )


def cluster(item: Item) -> str:
    """Whose posts are alike: the author's; an item of nobody known stands for itself."""
    return item.author or f"\0{item.key}"


def plain(value: Any) -> Any:
    """Figures as JSON values: tuples with names become objects."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def _given(said: Said, item: Item, field: str) -> tuple[str | None, float | None]:
    answer = said.answers.get(item.key)
    label = answer.fields.get(field) if answer else None
    return (label.value, label.probability) if label else (None, None)


def _scores(rows: Sequence[tuple[Item, str]], given: Sequence[str | None], field: Field) -> Scores | None:
    if not rows:
        return None
    return scores([gold for _, gold in rows], given, [cluster(item) for item, _ in rows], field.values)
