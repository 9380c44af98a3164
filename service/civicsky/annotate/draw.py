"""Which posts are labelled by hand, and in which order each person sees them. Pure.

A draw is fixed by its seed and its population: each post has a lot, a hash of its address with the seed, and the posts
with the lowest lots are drawn. So a uniform draw is a simple random sample whatever the order of reading, and memory is
that of the posts drawn. A draw by uncertainty or disagreement takes what scores lowest, with the lot for ties only:
nothing can be estimated from it.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import combinations, pairwise
from typing import Any, Final, Literal, NamedTuple

from civicsky.sample import lot

Kind = Literal["uniform", "uncertainty", "disagreement", "rejects"]
"""How a draw was made. `rejects` is uniform, too, from the sampled rejects."""
Among = Literal["labelled", "collected"]
"""The population: live posts with a label of the task, or all live posts."""

MOST: Final = 20_000
"""Posts of a draw: more than people label, and some MB."""


class Pick(NamedTuple):
    """A post that may be drawn."""

    uri: str
    version: str = ""
    """Which text it has: the record's CID, or of a rejected one its revision."""
    p_kept: float = 1.0
    p_sampled: float | None = None
    """None: it was not drawn for labelling, or waits."""
    why: str = ""
    """Of a rejected post: the filter's reason. Never shown to who labels."""


def shares_within(runs: Sequence[tuple[int, float]], first: int, last: int) -> list[tuple[int, float]]:
    """Which shares of the rejected posts had their records kept between two times, and since when each.

    `runs`: when each began, and its share, in order. With more than one share chances were unequal.
    """
    found: list[tuple[int, float]] = []
    for (began, share), (ended, _) in pairwise([*runs, (last + 1, 0.0)]):
        if began <= last and ended > first and (not found or found[-1][1] != share):
            found.append((began, share))
    return found


class Drawing:
    """Takes a population in, in any order, and holds what is drawn of it."""

    def __init__(self, seed: int, n: int) -> None:
        self._key = _key(str(seed))
        self._n = n
        self._held: list[tuple[float, int, Pick]] = []  # a heap whose first has the highest score and lot
        self.population = 0
        self.first = self.last = ""
        """First and last time in the population, as `offer` was told."""

    def offer(self, pick: Pick, at: str, score: float = 0.0) -> None:
        """One of the population; `at` its time (RFC 3339, of one form). Low scores are taken first."""
        self.population += 1
        self.first = min(self.first or at, at)
        self.last = max(self.last, at)
        entry = (-score, -lot(self._key, pick.uri), pick)
        if len(self._held) < self._n:
            heapq.heappush(self._held, entry)
        elif entry[:2] > self._held[0][:2]:
            heapq.heapreplace(self._held, entry)

    def drawn(self) -> list[Pick]:
        """In the order of their addresses, which says nothing of why they were drawn."""
        return sorted((pick for _, _, pick in self._held), key=lambda pick: pick.uri)


def order_for(seed: int, name: str, uris: Iterable[str]) -> list[str]:
    """The posts in a person's own order. What was done of it at any time is a random part of the draw."""
    key = _key(f"{seed}\n{name}")
    return sorted(uris, key=lambda uri: (lot(key, uri), uri))


def lettered(seed: int, uri: str, names: Iterable[str]) -> dict[str, str]:
    """A letter for each annotator of a post, another one from post to post, so that none is known by it."""
    key = _key(f"{seed}\n{uri}")
    return {_letter(n): name for n, name in enumerate(sorted(names, key=lambda name: (lot(key, name), name)))}


def surety(fields: Mapping[str, Mapping[str, Any]]) -> float | None:
    """How sure a label is of its least sure value, 0 to 1; None when it tells no probability."""
    known = [one["probability"] for one in fields.values() if one.get("probability") is not None]
    return min(known) if known else None


def discord(labels: Sequence[Mapping[str, Any]]) -> float:
    """How far labels of one post by several models, prompts or ways differ: the share of pairs that differ, 0 to 1.

    `labels` are documents of one task and text; of the same model, prompt and way the newest counts.
    """
    newest: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for label in sorted(labels, key=lambda one: str(one.get("at"))):
        newest[tuple(label.get(name) for name in ("model", "prompt", "way"))] = label
    said = [{name: one["value"] for name, one in label["fields"].items()} for label in newest.values()]
    pairs = list(combinations(said, 2))
    return sum(one != other for one, other in pairs) / len(pairs) if pairs else 0.0


def _key(text: str) -> bytes:
    return sha256(text.encode()).digest()


def _letter(n: int) -> str:
    return chr(ord("A") + n) if n < 26 else f"A{n}"  # noqa: PLR2004
