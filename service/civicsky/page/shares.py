"""Shares of labelled posts with their 95 % intervals, as `civicsky estimate` finds them. Pure, and without numpy.

The same estimator and the same interval as `research.measure.weighted_share` (its tests hold one against the other),
for a service that does not load 60 MB of libraries to show a page: Hajek's ratio, posts weighted by the probabilities
with which they were kept and drawn, authors as clusters, Wilson's interval at the effective sample size.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from math import cos, exp, gamma, pi, sqrt, tan
from statistics import NormalDist
from typing import Any, Final, NamedTuple

from civicsky.task import Field

_TINY: Final = 1e-12
_TAIL: Final = 0.05
_NORMAL: Final = NormalDist()
FEW_DEGREES: Final = 3.0
"""Below which Hill's series is not good enough."""
_STEPS: Final = 64


class Drawn(NamedTuple):
    """A post that was drawn for labelling, and labelled or given up."""

    author: str
    unit: str
    """What shared its lot: itself, its author or its thread."""
    weight: float
    """1 / (p_kept * p_sampled * p_asked), or a multiple of it that is the same for all."""
    fields: Mapping[str, str] | None
    """The label; None: there is none, and it counts as unlabelled."""


class Figure(NamedTuple):
    """A share with its 95 % interval, and what it was found from."""

    value: float
    low: float
    high: float
    n: int
    authors: int


def of_field(posts: Sequence[Drawn], field: Field) -> Iterable[tuple[str, Figure | None]]:
    """Each value of a field with its share, one by one, since each takes some milliseconds; None without a post.

    Of all that were drawn; of a field that only some posts have, of those that have it. Last, under an empty name, the
    share of posts without a label, if there are any and the field is one that all have.
    """
    having = [post for post in posts if post.fields is not None and field.name in post.fields]
    without = [] if field.only_if else [post for post in posts if post.fields is None]
    base = having + without
    seen = {post.fields[field.name] for post in having if post.fields}
    for value in [*field.values, *sorted(seen - {*field.values})]:
        yield value, weighted(base, [post.fields is not None and post.fields[field.name] == value for post in base])
    if without:
        yield "", weighted(base, [post.fields is None for post in base])


def weighted(posts: Sequence[Drawn], hits: Sequence[bool]) -> Figure | None:
    """The share of posts that hit; None without posts. See `research.measure.weighted_share`, `Share.population`."""
    total = sum(post.weight for post in posts)
    if not posts or total <= 0:
        return None
    share = min(1.0, sum(post.weight for post, hit in zip(posts, hits, strict=True) if hit) / total)
    by_author, by_lot, by_both, of_author = (defaultdict[Any, float](float) for _ in range(4))
    squares = 0.0
    for post, hit in zip(posts, hits, strict=True):
        error = post.weight * (hit - share) / total
        by_author[post.author] += error
        by_lot[post.unit] += error
        by_both[post.author, post.unit] += error
        of_author[post.author] += post.weight
        squares += post.weight**2
    count = len(by_author)
    if count == 1:
        return Figure(share, 0.0, 1.0, len(posts), 1)
    variance = _squared(by_author) + max(0.0, _squared(by_lot) - _squared(by_both))
    variance *= count / (count - 1)
    authors = total**2 / _squared(of_author)
    size = share * (1 - share) / variance if variance > _TINY**2 else authors
    by_weights = total**2 / squares
    size = size if size <= by_weights else 2 / (1 / size + 1 / by_weights)
    return Figure(share, *_score_interval(share, size, t_quantile(authors - 1)), len(posts), count)


def _squared(sums: Mapping[Any, float]) -> float:
    return float(sum(value * value for value in sums.values()))


def _score_interval(share: float, size: float, t: float) -> tuple[float, float]:
    middle = (share + t * t / (2 * size)) / (1 + t * t / size)
    half = t / (1 + t * t / size) * sqrt(share * (1 - share) / size + (t / (2 * size)) ** 2)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def t_quantile(freedom: float) -> float:
    """The 97.5 % quantile of Student's t, for 1 degree of freedom or more (Hill 1970, Algorithm 396, CACM 13:619)."""
    n = max(1.0, freedom)
    if n < FEW_DEGREES:
        return _by_halves(round(n, 2))
    a = 1 / (n - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * sqrt(a * pi / 2) * n
    y = (d * _TAIL) ** (2 / n)
    if y > 0.05 + a:
        x = _NORMAL.inv_cdf(_TAIL / 2)
        y = x * x
        c += 0.3 * (n - 4.5) * (x + 0.6) if n < 5 else 0.0  # noqa: PLR2004
        c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = exp(a * y * y) - 1
    else:
        y = ((1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)) * y - 1) * (n + 1) / (n + 2)
        y += 1 / (d * _TAIL) ** (2 / n)
    return sqrt(n * y)


@cache
def _by_halves(n: float) -> float:
    """The same, with x = sqrt(n) tan(a): then the density is cos(a) ** (n - 1), up to a factor. To three digits."""
    whole = sqrt(pi) / 2 * gamma(n / 2) / gamma((n + 1) / 2)
    low, high = 0.0, pi / 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _area(middle, n) < whole * (1 - _TAIL) else (low, middle)
    return sqrt(n) * tan(low)


def _area(upto: float, n: float) -> float:
    """The integral of cos(a) ** (n - 1) from 0, by Simpson's rule."""
    width = upto / _STEPS
    values: list[float] = [max(0.0, cos(at * width)) ** (n - 1) for at in range(_STEPS + 1)]
    return width / 3 * (values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2]))
