import json
from typing import Any

import pytest

from civicsky.model import Answer, FieldLabel
from civicsky.research.figures import (
    PAIRS,
    Said,
    cluster,
    comparisons,
    disagreements,
    effort,
    field_scores,
    gold_field,
    plain,
    truths,
)
from civicsky.research.gold import Item
from civicsky.task import Field

CIVIC = Field(name="civic", values=("civic", "not civic"), description="?")
LEAN = Field(name="lean", values=("left", "right", "unclear"), description="?", only_if={"civic": "civic"})
BOTH = ("civic", "lean")


def item(key: str, civic: str = "", lean: str = "", author: str | None = "a", **others: dict[str, str]) -> Item:
    said = {name: value for name, value in (("civic", civic), ("lean", lean)) if value}
    return Item(key, 1, key, None, author, {"ann": said, **others})


def answer(civic: str | None, lean: str | None = None, p: float | None = None, **more: Any) -> Answer:
    fields = {name: FieldLabel(value, p) for name, value in (("civic", civic), ("lean", lean)) if value}
    told: dict[str, Any] = {
        "fields": fields, "way": "schema", "prompt_hash": "h", "model_asked": "m", "model_named": "m",
        "fingerprint": None, "parameters": "{}", "endpoint": "e", "input_hash": "i", "tokens_in": 10, "tokens_out": 2,
        "latency_ms": 500, "calls": 1,
    }  # fmt: skip
    return Answer(**(told | more))


def said(answers: dict[str, Answer], name: str = "v", failed: dict[str, str] | None = None) -> Said:
    return Said(name, BOTH, answers, failed or {})


@pytest.mark.parametrize(
    ("judged", "given", "truth"),
    [
        (BOTH, item("k", "civic", "left"), ("judged", "left")),
        (BOTH, item("k", "civic"), ("not_judged", None)),
        (BOTH, item("k", "civic", "?"), ("cannot_tell", None)),
        (BOTH, item("k", "not civic"), ("not_applicable", None)),
        (BOTH, item("k", "not civic", "left"), ("not_applicable", None)),
        (BOTH, item("k", "", "left"), ("judged", "left")),
        (BOTH, item("k", "?", "left"), ("cannot_tell", None)),
        (BOTH, item("k", "civic", "left", bob={"civic": "not civic"}), ("tie", None)),
        (("lean",), item("k", "", "left"), ("judged", "left")),
    ],
)
def test_a_field_with_a_condition_counts_where_gold_does_not_hold_otherwise(
    judged: tuple[str, ...], given: Item, truth: tuple[str, str | None]
) -> None:
    assert truths([given], LEAN, judged) == {"k": truth}


def test_what_the_model_leaves_out_counts_as_wrong_only_among_all() -> None:
    items = [
        item("1", "civic", "left"),
        item("2", "civic", "left"),
        item("3", "civic", "right"),
        item("4", "not civic"),
    ]
    variant = said(
        {"1": answer("civic", "left"), "2": answer("not civic"), "4": answer("civic", "left")},
        failed={"3": "refusal"},
    )
    row = field_scores(items, LEAN, BOTH, variant)
    assert (row.n, row.failed, row.unsaid) == (3, 1, 1)
    assert row.answered is not None
    assert row.all is not None
    assert (row.answered.accuracy.value, row.answered.accuracy.n) == (1, 1)
    assert row.all.accuracy.value == pytest.approx(1 / 3)
    assert row.all.accuracy.n == 3
    assert row.all.confusion == [[1, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert row.calibration is None


def test_of_two_values_the_probability_is_the_first_ones_of_more_that_of_the_label_being_right() -> None:
    items = [item("1", "civic", "left", "a"), item("2", "civic", "right", "b")]
    variant = said({"1": answer("civic", "left", 0.8), "2": answer("not civic", None, 0.9)})
    row = field_scores(items, CIVIC, BOTH, variant)
    assert row.event == "the post is civic"
    assert row.calibration is not None
    assert row.calibration.brier.value == pytest.approx(((0.8 - 1) ** 2 + (0.1 - 1) ** 2) / 2)
    row = field_scores(items, LEAN, BOTH, variant)
    assert row.event == "the label given is right"
    assert row.calibration is not None
    assert row.calibration.brier.value == pytest.approx(0.04)
    assert row.calibration.n == 1


def test_nothing_judged_is_no_figure_at_all() -> None:
    items = [item("1"), item("2", "?")]
    row = field_scores(items, CIVIC, BOTH, said({"1": answer("civic")}))
    assert (row.n, row.answered, row.all, row.calibration) == (0, None, None, None)
    assert comparisons(items, CIVIC, BOTH, [said({}, "a"), said({}, "b")]) == []
    assert gold_field(items, CIVIC, BOTH).classes == {}


def test_annotators_are_compared_without_blanks_cannot_tell_and_the_adjudicator() -> None:
    items = [
        item("1", "civic", bob={"civic": "civic"}, adjudicated={"civic": "not civic"}),
        item("2", "civic", bob={"civic": "?"}),
        item("3", "civic", adjudicated={"civic": "civic"}),
        item("4", "civic", bob={}),
    ]
    found = gold_field(items, CIVIC, BOTH)
    assert found.annotators is not None
    assert (found.annotators.items, found.annotators.agreement.value) == (1, 1)
    assert found.classes == {"civic": 2, "not civic": 1}
    assert found.outcomes == {"judged": 3, "tie": 1}
    assert gold_field(items[1:], CIVIC, BOTH).annotators is None


def test_the_surest_mistakes_come_first_and_say_who_said_what() -> None:
    items = [item(key, "civic") for key in "1234"]
    one = said(
        name="one", answers={"1": answer("not civic", p=0.6), "2": answer("not civic", p=0.9), "3": answer("civic")}
    )
    two = said(
        name="two", answers={"1": answer("civic"), "2": answer("civic"), "3": answer("civic"), "4": answer("not civic")}
    )
    rows = disagreements(items, CIVIC, BOTH, [one, two])
    assert [row.key for row in rows] == ["4", "2", "1"]
    assert rows[0].said == {"one": (None, None), "two": ("not civic", None)}
    assert rows[1].judgements == {"ann": "civic"}


def test_comparisons_are_bounded_and_only_between_tasks_that_have_the_field() -> None:
    items = [item("1", "civic")]
    assert len(comparisons(items, CIVIC, BOTH, [said({}, str(n)) for n in range(12)])) == PAIRS
    other = Said("other", ("toxic",), {}, {})
    assert [pair.second for pair in comparisons(items, CIVIC, BOTH, [said({}, "a"), other, said({}, "b")])] == ["b"]


def test_what_was_paid_in_vain_is_counted_in() -> None:
    paid = [answer("civic", cost=0.5, currency="EUR"), answer("civic", cost=0.25, currency="EUR", latency_ms=1500)]
    took = effort(paid, [{"calls": 2, "tokens_in": 7, "tokens_out": 1, "tokens_reasoning": 3, "cost": 0.25}], 3)
    assert (took.posts, took.calls, took.tokens_in, took.tokens_out, took.tokens_reasoning) == (3, 4, 27, 5, 3)
    assert (took.cost, took.currency, took.seconds_median, took.seconds_mean) == (1.0, "EUR", 1.0, 1.0)
    assert effort([answer("civic")], [], 1).cost is None
    assert effort([], [], 0).seconds_median is None


def test_an_item_of_nobody_known_is_a_cluster_of_its_own() -> None:
    assert cluster(item("1", author=None)) != cluster(item("2", author=None))
    assert cluster(item("1", author="x")) == cluster(item("2", author="x"))


def test_figures_become_json_without_a_value_that_json_has_not() -> None:
    items = [item("1", "civic", "left"), item("2", "not civic")]
    row = field_scores(items, CIVIC, BOTH, said({"1": answer("civic")}))
    text = json.dumps(plain(row), allow_nan=False)
    assert json.loads(text)["all"]["accuracy"]["n"] == 2
