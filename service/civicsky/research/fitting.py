"""A linear head over vectors, and a threshold for it: how `train-gate` reckons. Pure; numbers in, numbers out.

Everything is made from a seed and from what it is given, so the same GOLD gives the same gate.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from scipy import optimize, special

Floats = np.typing.NDArray[np.float64]
Bools = np.typing.NDArray[np.bool_]
Ints = np.typing.NDArray[np.int64]

STRENGTH: Final = 1.0
"""Inverse of the penalty on the weights, as in scikit-learn's `C`. Not chosen by the data: between 0.1 and 3 the area
under the curve on the packaged sample varies by .01, and a choice would have to be cross-validated as well."""
FOLDS: Final = 10


class Head(NamedTuple):
    """P(yes) = 1 / (1 + exp(-(x . weights + bias)))."""

    weights: Floats
    bias: float

    def probabilities(self, vectors: Floats) -> Floats:
        """Of each row."""
        found: Floats = special.expit(vectors @ self.weights + self.bias)
        return found


def fit(vectors: Floats, yes: Bools) -> Head:
    """Logistic regression with a ridge penalty: the weights of least sum of losses + |w|^2 / (2 STRENGTH)."""
    signs = np.where(yes, 1.0, -1.0)
    width = vectors.shape[1]

    def loss(at: Floats) -> tuple[float, Floats]:
        weights, margins = at[:width], signs * (vectors @ at[:width] + at[width])
        pull = -signs * special.expit(-margins)
        value = float(np.logaddexp(0, -margins).sum() + weights @ weights / (2 * STRENGTH))
        return value, np.append(vectors.T @ pull + weights / STRENGTH, pull.sum())

    begin = np.zeros(width + 1)
    found = optimize.minimize(loss, begin, jac=True, method="L-BFGS-B", options={"maxiter": 1_000, "gtol": 1e-6})
    return Head(found.x[:width], float(found.x[width]))


def folds(groups: Sequence[str], yes: Bools, seed: int, n: int = FOLDS) -> Ints:
    """A fold for each post: all posts of a group in one, and about as many with yes, and in all, in each.

    The largest groups first, each into the fold that has the fewest like its own; ties by lot.
    """
    names, of = np.unique(np.array(groups, str), return_inverse=True)
    sizes, hits = np.bincount(of), np.bincount(of, yes)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled, having = np.zeros(n), np.zeros(n)
    fold_of = np.zeros(len(names), int)
    for group in order:
        own = hits[group] / max(1.0, float(hits.sum())), sizes[group] / len(of)
        cost = (having / max(1.0, float(hits.sum())) + own[0]) ** 2 + (filled / len(of) + own[1]) ** 2
        cost -= (having / max(1.0, float(hits.sum()))) ** 2 + (filled / len(of)) ** 2
        best = int(np.argmin(cost))
        fold_of[group] = best
        filled[best] += sizes[group]
        having[best] += hits[group]
    found: Ints = fold_of[of]
    return found


def out_of_fold(vectors: Floats, yes: Bools, fold: Ints) -> Floats:
    """The probability of each post by a head that was fitted without its fold."""
    found = np.zeros(len(yes))
    for one in np.unique(fold):
        held = fold == one
        found[held] = fit(vectors[~held], yes[~held]).probabilities(vectors[held])
    return found


def least(recall: float) -> int:
    """Posts with yes that a threshold for this recall needs at least."""
    return int(np.ceil(1 / (1 - recall) - 1e-9)) - 1


def threshold(probabilities: Floats, yes: Bools, recall: float) -> float:
    """The highest one that a new post with yes reaches with probability `recall` or more.

    Of n posts with yes the k-th lowest probability, k = floor((n + 1)(1 - recall)): a new one is as likely to take any
    of the n + 1 places, so it lies below with probability k / (n + 1) at most (Vovk, Gammerman and Shafer 2005,
    Algorithmic Learning in a Random World). The probabilities must be of heads that had not seen their posts.
    """
    having = np.sort(probabilities[yes])
    k = int(np.floor((len(having) + 1) * (1 - recall) + 1e-9))
    return float(having[k - 1]) if k else 0.0


def held_out(vectors: Floats, yes: Bools, groups: Sequence[str], recall: float, seed: int) -> Bools:
    """Whether each post passes a gate that was made, head and threshold, without its fold."""
    outer = folds(groups, yes, seed)
    passes = np.zeros(len(yes), bool)
    names = np.array(groups, str)
    for one in np.unique(outer):
        held = outer == one
        head, bound = train(vectors[~held], yes[~held], names[~held].tolist(), recall, seed + 1)
        passes[held] = head.probabilities(vectors[held]) >= bound
    return passes


def train(vectors: Floats, yes: Bools, groups: Sequence[str], recall: float, seed: int) -> tuple[Head, float]:
    """A head of all posts, and its threshold by cross-validation."""
    fold = folds(groups, yes, seed)
    return fit(vectors, yes), threshold(out_of_fold(vectors, yes, fold), yes, recall)
