"""Statistics of labels: by hand, against scikit-learn and krippendorff, and how often the intervals hold."""

import math
import subprocess
import sys
import warnings

import krippendorff
import numpy as np
import pytest
from hypothesis import given, strategies as st

from civicsky.research import measure
from civicsky.research.measure import Figure
from support.tried import tried

Floats = np.typing.NDArray[np.float64]


def value(figure: Figure) -> float:
    assert figure.value is not None
    return figure.value


# ---- by hand ---------------------------------------------------------------------------------------------------------

# Ten posts of six authors:
#               given left  given right  given none  no answer
#   left             3           1            0          1       5
#   right            1           2            0          0       3
#   none             0           1            1          0       2
#                    4           4            1          1      10
TRUTH: list[str] = ["left"] * 5 + ["right"] * 3 + ["none"] * 2
GIVEN: list[str | None] = ["left", "left", "left", "right", None, "left", "right", "right", "right", "none"]
AUTHORS = ["a", "a", "b", "c", "d", "a", "b", "e", "f", "f"]


def test_scores_are_those_computed_by_hand() -> None:
    found = measure.scores(TRUTH, GIVEN, AUTHORS, ["left", "right", "none"])
    assert found.confusion == [[3, 1, 0, 1], [1, 2, 0, 0], [0, 1, 1, 0]]
    assert value(found.accuracy) == pytest.approx(6 / 10)  # 3 + 2 + 1 of 10
    assert found.majority == "left"
    assert value(found.baseline) == pytest.approx(5 / 10)
    assert value(found.precision["left"]) == pytest.approx(3 / 4)
    assert value(found.precision["right"]) == pytest.approx(2 / 4)
    assert value(found.precision["none"]) == pytest.approx(1 / 1)
    assert value(found.recall["left"]) == pytest.approx(3 / 5)
    assert value(found.recall["right"]) == pytest.approx(2 / 3)
    assert value(found.recall["none"]) == pytest.approx(1 / 2)
    assert value(found.f1["left"]) == pytest.approx(6 / 9)  # 2 * 3 / (4 + 5)
    assert value(found.f1["right"]) == pytest.approx(4 / 7)  # 2 * 2 / (4 + 3)
    assert value(found.f1["none"]) == pytest.approx(2 / 3)  # 2 * 1 / (1 + 2)
    assert value(found.macro_f1) == pytest.approx((6 / 9 + 4 / 7 + 2 / 3) / 3)
    assert value(found.macro_precision) == pytest.approx((3 / 4 + 2 / 4 + 1) / 3)
    assert value(found.macro_recall) == pytest.approx((3 / 5 + 2 / 3 + 1 / 2) / 3)
    # By chance (5 * 4 + 3 * 4 + 2 * 1) / 100 = .34 agree: (.6 - .34) / (1 - .34).
    assert value(found.kappa) == pytest.approx(0.26 / 0.66)


def test_every_figure_has_the_n_that_counts_for_it() -> None:
    found = measure.scores(TRUTH, GIVEN, AUTHORS, ["left", "right", "none"])
    assert (found.n, found.clusters) == (10, 6)
    assert found.accuracy[3:] == (10, 6)
    assert found.precision["left"][3:] == (4, 2)  # those called left: three posts of a, one of b
    assert found.recall["left"][3:] == (5, 4)  # those that are left: a, a, b, c, d
    assert found.f1["none"][3:] == (2, 1)  # those that are none or called so: both of f
    assert found.warning is not None
    assert "only 6 authors" in found.warning


def test_brier_score_and_calibration_error_are_those_computed_by_hand() -> None:
    found = measure.calibration([0.9, 0.8, 0.6, 0.3], [True, True, False, False], ["a", "b", "c", "d"], bins=2)
    assert value(found.brier) == pytest.approx((0.01 + 0.04 + 0.36 + 0.09) / 4)
    below, above = found.bins
    assert (below.above, below.upto, below.probability, value(below.share), below.share.n) == (0, 0.5, 0.3, 0, 1)
    assert above.probability == pytest.approx(2.3 / 3)
    assert above.share.n == 3
    assert value(above.share) == pytest.approx(2 / 3)
    # 1/4 |0 - .3| + 3/4 |2/3 - 2.3/3| = .075 + .075
    assert value(found.error) == pytest.approx(0.15)


def test_mcnemar_is_that_of_a_known_table() -> None:
    # Agresti (2002, Categorical Data Analysis, table 10.1) has 86 and 150 discordant pairs among 1,600 people:
    # z^2 = (86 - 150)^2 / 236 = 17.36, so that P < .0001. A small table: 1 and 8 discordant pairs, for which the exact
    # P is twice P(X <= 1) of 9 throws of a coin: 2 (1 + 9) / 512.
    truth = ["yes"] * 20
    first = ["yes"] * 11 + ["no"] * 9
    second = ["yes"] * 10 + ["no"] + ["yes"] * 8 + ["no"]
    authors = [str(i) for i in range(20)]
    found = measure.compare(truth, first, second, authors)
    assert found[:4] == (10, 1, 8, 1)
    assert found.p_value == pytest.approx(20 / 512)
    assert value(found.difference) == pytest.approx(-7 / 20)
    large = [["yes"] * 794 + ["yes"] * 150 + ["no"] * 656, ["yes"] * 794 + ["no"] * 150 + ["yes"] * 86 + ["no"] * 570]
    known = measure.compare(["yes"] * 1600, large[0], large[1], [str(i) for i in range(1600)])
    assert known[:4] == (794, 150, 86, 570)
    assert known.p_value < 0.0001
    # Agresti's interval for the difference of these two proportions: .04 +- .0187
    assert known.difference[1:3] == pytest.approx((0.0213, 0.0587), abs=2e-3)


@pytest.mark.parametrize("one", [0, 1, 2, 7, 40, 400])
@pytest.mark.parametrize("other", [0, 1, 3, 40, 393])
def test_mcnemar_is_the_two_sided_binomial_test_of_scipy(one: int, other: int) -> None:
    from scipy import stats  # noqa: PLC0415  (what the code under test does without)

    first, second = ["a"] * one + ["b"] * other, ["b"] * one + ["a"] * other
    found = measure.compare(["a"] * (one + other), first, second, [str(n) for n in range(one + other)])
    wanted = stats.binomtest(one, one + other, 0.5).pvalue if one + other else 1.0
    assert found.p_value == pytest.approx(float(wanted), rel=1e-9)


# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section C: nominal data of four
# observers on twelve units. 0: not judged.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
    [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
]


def test_alpha_is_that_of_the_published_example() -> None:
    items = [{str(o): str(row[i]) for o, row in enumerate(OBSERVERS) if row[i]} for i in range(12)]
    found = measure.agreement(items, [str(i) for i in range(12)])
    assert value(found.alpha) == pytest.approx(0.743, abs=5e-4)
    assert found.items == 11  # the last unit was judged once
    # Pairs: 3 in each of units 1, 10 (three judgements), 1 in unit 11, 6 in each of the other eight: 55. They agree
    # wholly in units 1, 3, 4, 5, 7, 9, 10, 11 (3 + 6 * 5 + 3 + 1); in 3 of 6 of units 2 and 8; in none of unit 6.
    assert found.agreement.n == 55
    assert value(found.agreement) == pytest.approx((3 + 30 + 3 + 1 + 3 + 3) / 55)
    first = found.pairs[0]
    assert (first.first, first.second, first.agreement.n) == ("0", "1", 9)
    assert value(first.agreement) == pytest.approx(8 / 9)


# ---- oracles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    from sklearn import metrics  # noqa: PLC0415  (two seconds of each worker that collects this file)

    rng = np.random.default_rng(seed)
    k, n = int(rng.integers(2, 6)), int(rng.integers(20, 400))
    names = [f"class {i}" for i in range(k)]
    truth = [names[i] for i in rng.integers(0, k, n)]
    said = [one if rng.random() < 0.6 else names[int(rng.integers(0, k))] for one in truth]
    found = measure.scores(truth, said, [str(i) for i in rng.integers(0, 30, n)], names)
    assert [row[:k] for row in found.confusion] == metrics.confusion_matrix(truth, said, labels=names).tolist()
    assert value(found.accuracy) == pytest.approx(metrics.accuracy_score(truth, said))
    assert value(found.kappa) == pytest.approx(metrics.cohen_kappa_score(truth, said))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = metrics.precision_recall_fscore_support(truth, said, labels=names, zero_division=np.nan)
        macro = metrics.precision_recall_fscore_support(truth, said, average="macro", zero_division=0)
    for ours, theirs in zip((found.precision, found.recall, found.f1), parts[:3], strict=True):
        for name, other in zip(names, theirs, strict=True):
            mine = ours[name].value
            assert (math.nan if mine is None else mine) == pytest.approx(float(other), nan_ok=True)
    assert value(found.macro_precision) == pytest.approx(macro[0])
    assert value(found.macro_recall) == pytest.approx(macro[1])
    assert value(found.macro_f1) == pytest.approx(macro[2])


@pytest.mark.parametrize("seed", range(5))
def test_the_difference_of_macro_f1_is_that_of_both_raters_scores(seed: int) -> None:
    rng, names = np.random.default_rng(seed), ["a", "b", "c"]
    authors = [str(i) for i in rng.integers(0, 30, 100)]
    truth = [str(one) for one in rng.choice(names[: 2 + seed % 2], 100)]
    raters = [[None if one == "d" else str(one) for one in rng.choice([*names, "d"], 100)] for _ in range(2)]
    found = measure.compare_f1(truth, raters[0], raters[1], authors, names)
    first, second = (measure.scores(truth, rater, authors, names).macro_f1 for rater in raters)
    assert value(found) == pytest.approx(value(first) - value(second))
    assert (found.n, found.clusters) == (100, len(set(authors)))
    assert found.low < value(found) < found.high
    mirrored = measure.compare_f1(truth, raters[1], raters[0], authors, names)
    assert mirrored.low == pytest.approx(-found.high, abs=0.02)
    assert mirrored.high == pytest.approx(-found.low, abs=0.02)
    assert measure.compare_f1([], [], [], [], names).value is None


@pytest.mark.parametrize("seed", range(10))
def test_calibration_is_that_of_scikit_learn(seed: int) -> None:
    from sklearn.calibration import calibration_curve  # noqa: PLC0415  (as above)
    from sklearn.metrics import brier_score_loss  # noqa: PLC0415

    rng = np.random.default_rng(seed)
    p = rng.random(300).round(2)  # many lie on the edge of a bin
    came = rng.random(300) < p**1.5
    found = measure.calibration(list(p), list(came), [str(i) for i in rng.integers(0, 80, 300)])
    assert value(found.brier) == pytest.approx(brier_score_loss(came, p))
    shares, means = calibration_curve(came, p, n_bins=10)
    filled = [one for one in found.bins if one.share.n]
    assert [value(one.share) for one in filled] == pytest.approx(list(shares))
    assert [one.probability for one in filled] == pytest.approx(list(means))
    assert sum(one.share.n for one in found.bins) == 300


@pytest.mark.parametrize("seed", range(10))
def test_alpha_is_that_of_the_package_krippendorff(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 3, 60)
    table = np.where(rng.random((4, 60)) < 0.7, true, rng.integers(0, 3, (4, 60))).astype(float)
    table[rng.random((4, 60)) < 0.3] = np.nan
    items = [{str(o): str(table[o, i]) for o in range(4) if not np.isnan(table[o, i])} for i in range(60)]
    found = measure.agreement(items, [str(i % 25) for i in range(60)])
    assert value(found.alpha) == pytest.approx(krippendorff.alpha(table, level_of_measurement="nominal"))


# ---- invariants ------------------------------------------------------------------------------------------------------

answers = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", "c", None]), st.sampled_from("wxyz")))


@given(answers)
@tried(60)
def test_every_interval_holds_its_value_and_stays_in_bounds(posts: list[tuple[str, str | None, str]]) -> None:
    truth, said, authors = [list(column) for column in zip(*posts, strict=True)] if posts else ([], [], [])
    found = measure.scores(truth, said, authors, ["a", "b", "c"])
    figures = [
        (found.accuracy, 0),
        (found.kappa, -1),
        (found.macro_f1, 0),
        *[(one, 0) for part in (found.precision, found.recall, found.f1) for one in part.values()],
    ]
    for figure, least in figures:
        assert least <= figure.low < figure.high <= 1
        assert figure.value is None or figure.low <= figure.value <= figure.high
        assert (figure.value is None) <= (figure.n == 0 or figure is found.kappa)
    assert sum(map(sum, found.confusion)) == found.n == len(posts)


@given(answers.filter(bool), st.randoms(use_true_random=False))
@tried(40)
def test_neither_order_nor_the_names_of_authors_matter(
    posts: list[tuple[str, str | None, str]], random: object
) -> None:
    shuffled = sorted(posts, key=lambda _: random.random())  # type: ignore[attr-defined]
    truth, said, authors = zip(*posts, strict=True)
    other_truth, other_said, other_authors = zip(*shuffled, strict=True)
    found = measure.scores(truth, said, authors, "abc")
    other = measure.scores(other_truth, other_said, ["!" + name for name in other_authors], "abc")
    assert (found.accuracy, found.kappa, found.f1) == (other.accuracy, other.kappa, other.f1)


@given(
    st.lists(
        st.tuples(st.booleans(), st.floats(0.01, 1), st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=40
    )
)
@tried(200)
def test_a_share_and_its_complement_mirror_each_other(posts: list[tuple[bool, float, int, int]]) -> None:
    weights, authors, units = (
        [1 / p for _, p, _, _ in posts],
        [str(a) for _, _, a, _ in posts],
        [str(u) for *_, u in posts],
    )
    yes = measure.weighted_share([y for y, *_ in posts], weights, authors, units)
    no = measure.weighted_share([not y for y, *_ in posts], weights, authors, units)
    for one, other in ((yes.population, no.population), (yes.collected, no.collected)):
        assert 0 <= one.low <= value(one) <= one.high <= 1
        assert (value(one), one.low, one.high) == pytest.approx(
            (1 - value(other), 1 - other.high, 1 - other.low), abs=1e-6
        )
    assert yes.population.high > yes.population.low


# ---- edges -----------------------------------------------------------------------------------------------------------


def test_no_posts_give_no_value_and_say_nothing() -> None:
    for figure in (
        measure.scores([], [], []).accuracy,
        measure.weighted_share([], [], []).population,
        measure.weighted_share([], [], []).collected,
        measure.calibration([], [], []).brier,
        measure.agreement([], []).agreement,
        measure.corrected_share([], [], [], []).share,
    ):
        assert figure == Figure(None, 0.0, 1.0, 0, 0)
        assert str(figure) == "no data  n = 0"
    assert measure.compare([], [], [], []).p_value == 1
    assert measure.agreement([], []).alpha == measure.scores([], [], []).kappa == Figure(None, -1.0, 1.0, 0, 0)


def test_one_author_alone_tells_nothing_of_others() -> None:
    assert measure.scores(["a", "b"], ["a", "a"], ["x", "x"]).accuracy == Figure(0.5, 0.0, 1.0, 2, 1)
    share = measure.weighted_share([True, False], [2, 2], ["x", "x"])
    assert share.population[:3] == (0.5, 0.0, 1.0)
    assert share.warning is not None


def test_no_error_seen_is_not_no_error_possible() -> None:
    # Exactly 1 in 100 authors' posts could still be wrong: (1 - .05 / 2)^(1/100) bounds it at .963 (Clopper-Pearson).
    truth = ["a", "b"] * 50
    authors = [str(i) for i in range(100)]
    found = measure.scores(truth, truth, authors)
    assert value(found.accuracy) == found.accuracy.high == 1
    assert found.accuracy.low == pytest.approx(0.963, abs=0.002)
    assert 0.9 < found.kappa.low < 0.97
    assert 0.9 < found.f1["a"].low < 0.95  # of 50
    same = measure.compare(truth, truth, truth, authors)
    assert same.difference.low == -same.difference.high == pytest.approx(-0.037, abs=0.002)


def test_a_macro_average_of_one_that_varies_has_an_interval_too() -> None:
    # Drawn again without "w", the precision of "a" is undefined and counts as 0.
    found = measure.scores(["a", "a"], ["a", None], ["w", "x"], "abc")
    assert value(found.macro_precision) == 1
    assert found.macro_precision.low < 0.5


def test_no_post_with_a_value_is_not_a_share_of_zero() -> None:
    share = measure.weighted_share([False] * 200, [4.0] * 200, [str(i) for i in range(200)])
    assert value(share.population) == share.population.low == 0
    assert share.population.high == pytest.approx(1 - 0.025 ** (1 / 200), abs=0.001)
    assert 0 < share.collected.high < share.population.high  # a quarter of the collected posts was seen


def test_ten_equal_posts_of_each_author_tell_hardly_more_than_one() -> None:
    """Both intervals are clustered: posts of one author that are all alike must not narrow them."""
    authors, hit = [str(n) for n in range(60)], [n % 3 == 0 for n in range(60)]
    truth, given = ["a"] * 60, ["a" if one else "b" for one in hit]
    once = measure.weighted_share(hit, [2.0] * 60, authors).population, measure.scores(truth, given, authors).accuracy
    tenfold = (
        measure.weighted_share(hit * 10, [2.0] * 600, authors * 10).population,
        measure.scores(truth * 10, given * 10, authors * 10).accuracy,
    )
    for one, ten in zip(once, tenfold, strict=True):
        assert value(ten) == pytest.approx(20 / 60)
        assert (ten.n, ten.clusters) == (600, 60)
        assert ten.high - ten.low == pytest.approx(one.high - one.low, rel=0.05)


def test_a_census_has_no_error_of_the_draw() -> None:
    share = measure.weighted_share([True, False] * 30, [1.0] * 60, [str(i // 2) for i in range(60)])
    assert share.collected[:3] == (0.5, 0.5, 0.5)
    assert share.population.low < 0.5 < share.population.high


def test_a_weight_below_one_or_unequal_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="1 / probability"):
        measure.weighted_share([True], [0.5], ["a"])
    with pytest.raises(ValueError, match="1 / probability"):
        measure.weighted_share([True], [math.inf], ["a"])
    with pytest.raises(ValueError, match="differ in number"):
        measure.weighted_share([True], [1.0], ["a", "b"])
    with pytest.raises(ValueError, match="no class: c"):
        measure.scores(["c"], ["a"], ["x"], ["a", "b"])
    with pytest.raises(ValueError, match="between 0 and 1"):
        measure.calibration([1.2], [True], ["x"])


def test_the_draws_variance_over_units_is_the_sum_over_pairs() -> None:
    # Two posts of one unit, p = .5 and .25, share a lot; a third, p = .2, is alone. Weights 2, 4, 5; s = 2 / 11.
    # e = w (y - s) / 11: 2 (1 - s) = 18/11, -4 s = -8/11, -5 s = -10/11, each / 11.
    # Pairs: .5 (18)^2 + .75 (8)^2 + 2 * .5 * 18 * (-8)  [1 - max(.5, .25) = .5]  + .8 (10)^2 = 162 + 48 - 144 + 80
    variance = 146 / 121**2
    found = measure.weighted_share([True, False, False], [2, 4, 5], ["a", "b", "c"], ["u", "u", "v"])
    s, seen = 2 / 11, 2 / 11 * 9 / 11 / variance
    # That stands for 14.9 posts, the weights alone for 121 / (2 * 1 + 4 * 3 + 5 * 4) = 3.6: half-way in variance.
    size = 2 / (1 / seen + 34 / 121)
    t = 12.706  # of 1 degree of freedom: two units of weights 6 and 5 count as 121 / 61 = 1.98 equal ones
    middle, half = (
        (s + t**2 / 2 / size) / (1 + t**2 / size),
        t / (1 + t**2 / size) * math.sqrt(s * (1 - s) / size + (t / 2 / size) ** 2),
    )
    assert (found.collected.low, found.collected.high) == pytest.approx((middle - half, middle + half), abs=1e-3)


# ---- how often the intervals hold ------------------------------------------------------------------------------------


def _raters(rng: np.random.Generator, authors: int, classes: int, right: float) -> tuple[list[str], ...]:
    """Authors, truth, and two raters. One author in 20 has ten posts or more; authors differ in what they write and in
    how often raters are right about them."""
    posts = np.minimum(rng.zipf(2.3, authors), 30)
    of = np.repeat(np.arange(authors), posts)
    mix = np.array([0.6, 0.4]) if classes == 2 else np.array([0.5, 0.3, 0.2])
    own = rng.dirichlet(mix * 4, authors)[of].cumsum(axis=1)
    truth = np.minimum((rng.random(len(of))[:, None] > own).sum(axis=1), classes - 1)
    columns = [of, truth]
    for chance in (right, right - 0.05):
        hit = rng.random(len(of)) < rng.beta(10 * chance, 10 * (1 - chance), authors)[of]
        columns.append(np.where(hit, truth, (truth + rng.integers(1, classes, len(of))) % classes))
    return tuple([str(one) for one in column] for column in columns)


def _found(authors: list[str], truth: list[str], first: list[str], second: list[str]) -> dict[str, Figure]:
    names = sorted(set(truth))
    one = measure.scores(truth, first, authors, names)
    items = [{f"rater {i}": given for i, given in enumerate(row)} for row in zip(truth, first, second, strict=True)]
    agreed = measure.agreement(items, authors)
    return {
        "accuracy": one.accuracy,
        "kappa": one.kappa,
        "macro F1": one.macro_f1,
        "F1": one.f1[names[0]],
        "precision": one.precision[names[0]],
        "recall": one.recall[names[0]],
        "difference": measure.compare(truth, first, second, authors).difference,
        "difference of macro F1": measure.compare_f1(truth, first, second, authors, names),
        "alpha": agreed.alpha,
        "agreement": agreed.agreement,
    }


@pytest.mark.parametrize(
    ("authors", "classes", "right", "sets", "tolerance"),
    [
        (40, 2, 0.87, 300, 0.035),
        pytest.param(40, 2, 0.87, 1000, 0.02, marks=pytest.mark.long),
        pytest.param(100, 3, 0.75, 1000, 0.02, marks=pytest.mark.long),
    ],
)
def test_intervals_clustered_by_author_hold_in_93_to_97_of_100_sets(
    authors: int, classes: int, right: float, sets: int, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as once:
        once.setattr(measure, "RESAMPLES", 2)  # the truth needs no interval
        large = _found(*_raters(np.random.default_rng(10**6), 100_000, classes, right))
    monkeypatch.setattr(measure, "RESAMPLES", 500)
    truth = {name: value(figure) for name, figure in large.items()}
    held = dict.fromkeys(truth, 0)
    for seed in range(sets):
        for name, figure in _found(*_raters(np.random.default_rng(seed), authors, classes, right)).items():
            held[name] += figure.low <= truth[name] <= figure.high
    assert all(abs(n / sets - 0.95) <= tolerance for n in held.values()), held


def _two_phases(rng: np.random.Generator, share: float, among: float) -> tuple[Figure, Figure, Figure]:
    """A share from 200 gold posts of about 1,500 drawn ones; a share among those; the first from gold alone."""
    of = np.repeat(np.arange(1000), np.minimum(rng.zipf(2.3, 1000), 30))
    civic = rng.random(len(of)) < rng.beta(4 * share, 4 * (1 - share), 1000)[of]
    left = rng.random(len(of)) < rng.beta(8 * among, 8 * (1 - among), 1000)[of]
    said = rng.random(len(of)) < np.where(civic, 0.8, 0.15)
    said_left = rng.random(len(of)) < np.where(left, 0.9, 0.3)
    p = rng.choice([0.3, 0.6, 1.0], len(of))
    drawn = np.flatnonzero(rng.random(len(of)) < p)
    gold = set(rng.choice(drawn, 200, replace=False).tolist())
    weights, authors = (1 / p[drawn]).tolist(), [str(author) for author in of[drawn]]
    truth = [bool(civic[i]) if i in gold else None for i in drawn]
    truth_left = [bool(left[i]) if i in gold and civic[i] else None for i in drawn]
    in_among = (said & said_left)[drawn].tolist(), truth_left, weights, authors, said[drawn].tolist(), truth
    known = [k for k, i in enumerate(drawn) if i in gold]
    alone = measure.weighted_share(
        [bool(truth[k]) for k in known], [weights[k] for k in known], [authors[k] for k in known]
    )
    return (
        measure.corrected_share(said[drawn].tolist(), truth, weights, authors).share,
        measure.corrected_share(*in_among).share,
        alone.population,
    )


@pytest.mark.parametrize("sets", [300, pytest.param(1000, marks=pytest.mark.long)])
def test_corrected_shares_hold_the_truth_though_the_model_errs_and_are_narrower_than_gold_alone(sets: int) -> None:
    share, among = 0.35, 0.6
    held, width, alone = [0, 0], 0.0, 0.0
    for seed in range(sets):
        *found, gold = _two_phases(np.random.default_rng(seed), share, among)
        for i, (figure, truth) in enumerate(zip(found, (share, among), strict=True)):
            held[i] += figure.low <= truth <= figure.high
        width, alone = width + found[0].high - found[0].low, alone + gold.high - gold.low
    assert all(abs(n / sets - 0.95) <= 0.02 for n in held), held
    assert width < 0.85 * alone


def test_a_model_that_is_no_use_is_not_relied_on() -> None:
    rng = np.random.default_rng(1)
    said, truth = (rng.random(3000) < 0.5).tolist(), (rng.random(3000) < 0.2).tolist()
    authors, weights = [str(i) for i in range(3000)], [1.0] * 3000
    found = measure.corrected_share(said, [one if i < 300 else None for i, one in enumerate(truth)], weights, authors)
    assert found.tuning < 0.15
    right = measure.corrected_share(truth, [one if i < 300 else None for i, one in enumerate(truth)], weights, authors)
    assert right.tuning > 0.95
    assert value(right.share) == pytest.approx(sum(truth) / 3000, abs=0.005)


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.one_of(st.none(), st.booleans()),
            st.floats(0.01, 1),
            st.integers(0, 5),
            st.booleans(),
            st.one_of(st.none(), st.booleans()),
        ),
        max_size=30,
    )
)
@tried(200)
def test_a_corrected_share_stays_in_bounds_whatever_it_is_given(
    posts: list[tuple[bool, bool | None, float, int, bool, bool | None]],
) -> None:
    said, truth, p, author, among, really = [list(column) for column in zip(*posts, strict=True)] if posts else [[]] * 6
    weights, authors = [1 / one for one in p], [str(one) for one in author]
    for found in (
        measure.corrected_share(said, truth, weights, authors),
        measure.corrected_share(said, truth, weights, authors, among, really),
    ):
        share = found.share
        assert 0 <= share.low < share.high <= 1
        assert share.value is None or share.low <= share.value <= share.high
        assert 0 <= found.tuning <= 1


def test_posts_of_a_thread_are_alike_though_their_authors_differ() -> None:
    held = {"population": 0, "collected": 0}
    for seed in range(500):
        rng = np.random.default_rng(seed)
        thread = np.repeat(np.arange(400), rng.integers(1, 20, 400))
        civic = (rng.random(400) < 0.3)[thread]
        author = rng.integers(0, 3000, len(thread))
        hit = (rng.random(400) < 0.5)[thread]
        found = measure.weighted_share(
            civic[hit].tolist(),
            [2.0] * int(hit.sum()),
            author[hit].astype(str).tolist(),
            thread[hit].astype(str).tolist(),
        )
        held["population"] += found.population.low <= 0.3 <= found.population.high
        held["collected"] += found.collected.low <= civic.mean() <= found.collected.high
    assert all(460 <= n <= 490 for n in held.values()), held


# ---- the extra that it needs -----------------------------------------------------------------------------------------


def _python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_service_starts_without_numpy() -> None:
    block = "import sys; sys.modules.update(dict.fromkeys(['numpy', 'scipy', 'matplotlib', 'jinja2']))\n"
    done = _python(f"{block}import civicsky.cli.main, civicsky.app, civicsky.report, civicsky.doctor, civicsky.demo")
    assert done.returncode == 0, done.stderr


def test_without_the_extra_the_command_says_how_to_install_it() -> None:
    block = "import sys; sys.modules['numpy'] = None; sys.argv = ['civicsky', 'estimate']\n"
    done = _python(f"{block}from civicsky.__main__ import main\nsys.exit(main())")
    assert done.returncode == 2
    assert "pip install --require-hashes -r requirements/research.txt" in done.stderr
    assert "Traceback" not in done.stderr
