"""The shapes that all parts of the benchmark share."""

from collections.abc import Iterator

import pytest

from bench.part import Against, Ask, CannotRun, Fact, Figure, Measure, Part, Ratio, Result, gather, met

PART = Part("one", "One", "a against b")


def test_values_of_the_same_name_are_gathered_in_the_order_of_their_rounds() -> None:
    def rounds() -> Iterator[Measure]:
        yield Fact("frames", 10)
        for value in (3.0, 1.0, 2.0):
            yield Figure("a", "frames/s", value)
            yield Against("a over b", value / 2, bar=0.5)

    measured = gather(PART, rounds())
    assert measured.facts == {"frames": 10}
    assert measured.results == {"a": Result("one", "a", "frames/s", [3.0, 1.0, 2.0])}
    assert measured.ratios == {"a over b": Ratio("one", "a over b", [1.5, 0.5, 1.0], bar=0.5)}


def test_what_cannot_run_is_told_and_what_was_measured_before_it_is_kept() -> None:
    def rounds() -> Iterator[Measure]:
        yield CannotRun("theirs: not installed")
        yield Figure("a", "frames/s", 1.0)
        raise CannotRun("no mongod")

    measured = gather(PART, rounds())
    assert measured.left_out == ["theirs: not installed", "no mongod"]
    assert measured.results["a"].values == [1.0]


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (Ratio("p", "r", [1, 9, 5], bar=5), True),
        (Ratio("p", "r", [1, 9, 4], bar=5), False),
        (Ratio("p", "r", [1, 9, 5], bar=5, at_least=False), True),
        (Ratio("p", "r", [1, 9, 6], bar=5, at_least=False), False),
        (Result("p", "f", "ms", [3, 1, 2], better="lower", bar=2), True),
        (Result("p", "f", "ms", [3, 1, 4], better="lower", bar=2), False),
        (Result("p", "f", "1/s", [3, 1, 4], bar=2), True),
        (Result("p", "f", "1/s", [3, 1, 4]), None),
    ],
)
def test_the_median_is_held_against_the_bar(one: Ratio | Result, expected: bool | None) -> None:
    assert met(one) is expected


def test_a_quick_run_is_small_and_never_empty() -> None:
    assert Ask(quick=True).size(100_000) == 2_000
    assert Ask(scale=0.5).size(100_000) == 50_000
    assert Ask(quick=True).size(10, least=3) == 3
