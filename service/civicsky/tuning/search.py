"""Which candidate is best, for few calls: successive halving. It asks nothing itself.

All candidates are judged on the first few validation posts, the best third of them on more, and so on; only what is
left in the end is judged on all. Jamieson and Talwalkar (2016), AISTATS: "Non-stochastic best arm identification".
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Final, Literal, NamedTuple, TypeVar

from civicsky.tuning.candidates import Candidate

Measure = Literal["f1", "accuracy"]
Judge = Callable[[Candidate, int], Awaitable[float]]
"""A candidate's score on the first so many validation posts. Raises `Spent`."""

KEEP: Final = 3
"""One in so many goes on to the next rung."""
FIRST: Final = 8
"""Posts of the first rung at least: fewer tell next to nothing."""
T = TypeVar("T")


class Spent(Exception):
    """The budget does not allow the next step. What was judged stays judged."""


class Judged(NamedTuple):
    """A candidate that was judged on all validation posts."""

    candidate: Candidate
    score: float


def rungs(posts: int, candidates: int) -> list[int]:
    """How many posts the candidates are judged on, rung by rung; the last one is all of them."""
    steps, left = 0, candidates
    while left > 1:
        steps, left = steps + 1, left // KEEP
    sizes = [round(posts / KEEP**step) for step in range(steps, 0, -1)]
    return [*sorted({size for size in sizes if FIRST <= size < posts}), posts]


async def halve(candidates: Sequence[Candidate], sizes: Sequence[int], judge: Judge) -> list[Judged]:
    """Those that were judged on all posts, best first; fewer, or none, when the budget ends before."""
    left = list(candidates)
    done: list[Judged] = []
    try:
        for at, size in enumerate(sizes):
            scored = []
            for one in left:
                scored.append(Judged(one, await judge(one, size)))
                if at == len(sizes) - 1:
                    done.append(scored[-1])
            left = [one.candidate for one in best_first(scored)[: max(1, len(scored) // KEEP)]]
    except Spent:
        pass
    return best_first(done)


def best_first(judged: Sequence[Judged]) -> list[Judged]:
    """By score; of equal ones the shorter first, then the earlier: a longer prompt costs more with each post."""
    return sorted(judged, key=lambda one: (-one.score, len(one.candidate.shots)))


def spread(items: Sequence[T], values: Sequence[str], seed: int) -> list[T]:
    """In an order by the seed in which each beginning has about the same shares of values as the whole."""
    rng = Random(f"order {seed}")  # noqa: S311  (nobody is to be kept from guessing it)
    piles: dict[str, list[T]] = {}
    for item, value in zip(items, values, strict=True):
        piles.setdefault(value, []).append(item)
    placed: list[tuple[float, T]] = []
    for value in sorted(piles):
        pile = piles[value]
        rng.shuffle(pile)
        first = rng.random()
        placed += [((at + first) / len(pile), item) for at, item in enumerate(pile)]
    return [item for _, item in sorted(placed, key=lambda one: one[0])]


def score(gold: Sequence[str], given: Sequence[str | None], by: Measure) -> float:
    """Accuracy, or macro F1 over the values that occur; no answer is wrong. As `measure.scores`, without intervals."""
    if by == "accuracy":
        return sum(one == other for one, other in zip(gold, given, strict=True)) / len(gold)
    true, said = Counter(gold), Counter(value for value in given if value is not None)
    right = Counter(one for one, other in zip(gold, given, strict=True) if one == other)
    values = sorted({*true, *said})
    return sum(2 * right[value] / (true[value] + said[value]) for value in values) / len(values)
