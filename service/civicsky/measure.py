"""Statistics of labels: how good they are, how far annotators agree, and what share they find. Pure; reads no file.

The one home of numpy and scipy, which come with the extra `research`: import this module where a command needs it,
never at start. Every figure carries its n. Intervals are 95 % and clustered by author, since posts of one author are
alike: an author, with all their posts, is what is drawn again. From `FEW_CLUSTERS` authors on they hold in simulations
(93-97 % of 1,000 simulated sets); below that they are too narrow, and results say so in `warning`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, Final, NamedTuple

from civicsky.errors import Usage

try:
    import numpy as np
    from scipy import special, stats
except ModuleNotFoundError as error:  # pragma: no cover
    raise Usage(f"this needs the extra `research` ({error.name} is missing): pip install 'civicsky[research]'") from None

Floats = np.typing.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""(sets, cells) of summed cells -> (sets, statistics); NaN where a statistic is undefined."""

RESAMPLES: Final = 2_000
FEW_CLUSTERS: Final = 40
LEVEL: Final = 0.95


class Figure(NamedTuple):
    """A number with its 95 % interval, and what it was found from."""

    value: float | None
    """None: undefined (nothing to divide by)."""
    low: float
    high: float
    """With no data, or one author only, the interval is all that is possible."""
    n: int
    """Posts (or pairs) that count for it: of precision those given the class, of recall those that have it."""
    clusters: int
    """Authors of these posts."""

    def __str__(self) -> str:
        if self.value is None:
            return f"no data  n = {self.n:,}"
        return f"{self.value:.3f}  [{self.low:.3f}, {self.high:.3f}]  n = {self.n:,} ({self.clusters:,} authors)"


class Scores(NamedTuple):
    """One rater against the truth."""

    classes: tuple[str, ...]
    confusion: list[list[int]]
    """Rows: the true classes; columns: the classes given, and last all other answers, None among them."""
    accuracy: Figure
    majority: str
    """The most frequent true class."""
    baseline: Figure
    """The accuracy of always saying `majority`."""
    precision: dict[str, Figure]
    recall: dict[str, Figure]
    f1: dict[str, Figure]
    macro_precision: Figure
    macro_recall: Figure
    macro_f1: Figure
    kappa: Figure
    n: int
    clusters: int
    warning: str | None
    """What to say beside the figures: too few authors for the intervals."""


class PairAgreement(NamedTuple):
    """Two annotators, over the items that both judged."""

    first: str
    second: str
    agreement: Figure
    kappa: Figure


class Agreement(NamedTuple):
    """How far several annotators agree."""

    alpha: Figure
    """Krippendorff's, nominal. n: items with two judgements or more."""
    agreement: Figure
    """The share of pairs of judgements of one item that are the same. n: pairs."""
    pairs: list[PairAgreement]
    items: int
    """Items with two judgements or more."""
    clusters: int
    warning: str | None


class Comparison(NamedTuple):
    """Two raters on the same posts."""

    both_right: int
    first_only: int
    second_only: int
    both_wrong: int
    p_value: float
    """McNemar's exact test, two-sided. It takes posts as independent; `difference` does not."""
    difference: Figure
    """Accuracy of the first less that of the second."""
    warning: str | None


class Bin(NamedTuple):
    """One bin of a reliability curve: probabilities above `above`, up to and with `upto` (the first one has 0, too)."""

    above: float
    upto: float
    probability: float | None
    """Mean probability that was given."""
    share: Figure
    """How often it came true."""


class Calibration(NamedTuple):
    """How far probabilities can be believed."""

    brier: Figure
    error: Figure
    """Expected calibration error. It cannot be below 0, and chance alone makes it positive: compare at equal n."""
    bins: list[Bin]
    n: int
    clusters: int
    warning: str | None


class Share(NamedTuple):
    """An estimated share, about two things."""

    population: Figure
    """Of what such authors post: the interval is clustered by author."""
    collected: Figure
    """Of the very posts that were collected: the interval knows of no chance but that of the draw. A census has none."""
    effective: float
    """Posts of a simple random sample that would tell as much about the population."""
    warning: str | None


class Corrected(NamedTuple):
    """A share corrected by human judgement of a part of the posts."""

    share: Figure
    """n and clusters: of the gold posts. The interval is about the population."""
    tuning: float
    """How far the model was relied on: 0 not at all (gold alone), 1 fully."""
    warning: str | None


# ---- classification --------------------------------------------------------------------------------------------------


def scores(
    truth: Sequence[str],
    given: Sequence[str | None],
    authors: Sequence[str],
    classes: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> Scores:
    """Score one rater, post by post. `classes` are those to average over (default: all that occur).

    An answer that is None or no class counts as wrong. A class that was never given has undefined precision, which
    counts as 0 in the macro average, as scikit-learn does; a class that neither occurs nor is given is left out.
    Cohen's kappa: Cohen (1960), Educ. Psychol. Meas. 20:37. Raises ValueError for a true class that is no class.
    """
    raise NotImplementedError


def compare(
    truth: Sequence[str],
    first: Sequence[str | None],
    second: Sequence[str | None],
    authors: Sequence[str],
    *,
    seed: int = 0,
) -> Comparison:
    """Compare two raters of the same posts: McNemar's exact test (McNemar 1947, Psychometrika 12:153; Fagerland,
    Lydersen and Laake 2013, BMC Med. Res. Methodol. 13:91), and the difference in accuracy."""
    raise NotImplementedError


def agreement(items: Sequence[Mapping[str, str]], authors: Sequence[str], *, seed: int = 0) -> Agreement:
    """Agreement among annotators; an item is {annotator: value}, without those who did not judge it.

    Krippendorff's alpha for nominal data: Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability".
    """
    raise NotImplementedError


def calibration(
    probabilities: Sequence[float],
    outcomes: Sequence[bool],
    authors: Sequence[str],
    *,
    bins: int = 10,
    seed: int = 0,
) -> Calibration:
    """Brier score (Brier 1950, Mon. Weather Rev. 78:1; here (p - outcome)^2 of one event, from 0 to 1), reliability
    curve over bins of equal width, and expected calibration error: sum of n_b/n |share_b - mean p_b| (Guo et al. 2017,
    ICML). What the event is, the caller decides: the post is civic, or the label given is right."""
    raise NotImplementedError


# ---- shares ----------------------------------------------------------------------------------------------------------


def weighted_share(
    values: Sequence[bool],
    weights: Sequence[float],
    clusters: Sequence[str],
    units: Sequence[str] | None = None,
) -> Share:
    """The share of posts for which `values` is true, from a sample drawn with known probabilities.

    `weights` are 1 / (p_kept * p_sampled), 1 or more; `clusters` are authors; `units` what was drawn together with one
    lot (the authors or threads, default: each post by itself). The estimator is Hajek's, s = sum(w y) / sum(w).
    """
    raise NotImplementedError


def corrected_share(
    said: Sequence[bool],
    truth: Sequence[bool | None],
    weights: Sequence[float],
    clusters: Sequence[str],
    said_among: Sequence[bool] | None = None,
    truth_among: Sequence[bool | None] | None = None,
) -> Corrected:
    """The share that is true, from what the model said of all labelled posts and people of some of them.

    `truth` is None where there is no gold. Gold must have been drawn uniformly from the labelled posts. With `*_among`,
    the share is among the posts for which these are true (lean among civic posts).
    """
    raise NotImplementedError
