"""Which posts are labelled: a uniform sample of a day, spread over it, with a probability known for each post. Pure.

The probability depends only on how many posts came before, never on what they say or on what a model said of them; so
a share weighted by 1 / p is unbiased (Horvitz and Thompson 1952), whatever the rate, its changes, and the traffic do.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Final, Literal, NamedTuple

HOUR_US: Final = 3_600_000_000
HOURS_A_DAY: Final = 24
LEAST_SHARE: Final = 0.25
"""However much waits, so much of the day's number is still drawn: else a whole day would have no estimate."""


class Hour(NamedTuple):
    """Posts of one hour (UTC, by `received_at`)."""

    seen: int = 0
    drawn: int = 0


class Drawing(NamedTuple):
    """How posts are drawn for labelling."""

    posts_per_day: float = 0
    """As in `probability`; 0: all of them."""
    unit: Literal["post", "author", "thread"] = "post"


def probability(posts_per_day: float, hours: Mapping[int, Hour], hour: int) -> float:
    """With which probability the next post of `hour` (hours since 1970 UTC) is drawn.

    What is left of the day's number is divided evenly among the hours left; an hour's part is drawn from as many posts
    as the last 24 known hours had on average. Where more come, or nothing is known, the k-th post is drawn with
    probability part / k, so that the number drawn grows with the logarithm only. `hours` holds this hour too, with the
    posts seen and drawn so far.
    """
    if posts_per_day <= 0:
        return 1.0
    part, expected = of_hour(posts_per_day, hours, hour)
    so_far = hours[hour].seen if hour in hours else 0
    return min(1.0, part / max(expected, so_far + 1))


def of_hour(posts_per_day: float, hours: Mapping[int, Hour], hour: int) -> tuple[float, float]:
    """An hour's part of a day's number (> 0), and how many posts it is to be drawn from; by the hours before alone."""
    left = HOURS_A_DAY - hour % HOURS_A_DAY
    today = range(hour - hour % HOURS_A_DAY, hour)
    drawn = sum(hours[at].drawn for at in today if at in hours)
    part = max((posts_per_day - drawn) / left, posts_per_day * LEAST_SHARE / HOURS_A_DAY)
    past = [hours[at].seen for at in range(hour - HOURS_A_DAY, hour) if at in hours]
    return part, sum(past) / len(past) if past else 0.0


def is_drawn(key: bytes, unit: str, p: float) -> bool:
    """Whether a post is drawn. All posts of a unit (itself, its author, its thread) share one lot.

    A unit drawn at a small probability is also drawn at a greater one. `key` is secret, so that nobody can write into
    the sample.
    """
    return lot(key, unit) < p * 2**64


def lot(key: bytes, name: str) -> int:
    """Of 2**64 equally likely ones, the same each time for a key (64 bytes at most) and a name."""
    return int.from_bytes(blake2b(name.encode(errors="surrogatepass"), key=key, digest_size=8).digest())


def is_asked(key: bytes, uri: str, p: float) -> bool:
    """Whether a post that the gate does not let pass is asked about all the same.

    Each post has a lot of its own for this, whatever its unit: it must not depend on the lot by which it was drawn.
    """
    return is_drawn(key, f"asked {uri}", p)


def allowance(posts_per_day: int, affordable: float | None, backlog: int) -> float:
    """Posts to draw today: what the user wants and the budget pays for, less what waits from the days before."""
    if posts_per_day <= 0 and affordable is None:
        return 0.0  # all of them
    most = min(posts_per_day or float("inf"), float("inf") if affordable is None else affordable)
    return max(most - backlog, most * LEAST_SHARE)
