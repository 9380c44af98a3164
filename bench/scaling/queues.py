"""Queues, simulated one arrival after the other. Pure: chance comes from a `Random` that is passed in."""

import heapq
import math
from collections.abc import Callable, Sequence
from random import Random

Seconds = Callable[[], float]
"""Gives how long the next one takes."""


def always(seconds: float) -> Seconds:
    """The same each time."""
    return lambda: seconds


def by_chance(rng: Random, seconds: float) -> Seconds:
    """Exponential, with this mean."""
    return lambda: rng.expovariate(1 / seconds)


def waits(between: Seconds, service: Seconds, servers: int, n: int) -> list[float]:
    """Seconds that each of `n` arrivals waits until one of the servers is free; first come, first served."""
    free = [0.0] * servers
    now, waited = 0.0, []
    for _ in range(n):
        now += between()
        begin = max(now, heapq.heappop(free))
        heapq.heappush(free, begin + service())
        waited.append(begin - now)
    return waited


def answers_a_second(slots: int, latency: Seconds, cost: Seconds, n: int) -> float:
    """What a home node gets done with so many calls in flight.

    Each is away for the model's latency. When it is back the home node's one processor needs `cost` seconds for it,
    before it is sent out with the next post.

    `n` answers are simulated, of which the first half does not count.
    """
    back = [latency() for _ in range(slots)]
    heapq.heapify(back)
    free = began = 0.0
    for nth in range(n):
        free = max(free, heapq.heappop(back)) + cost()
        heapq.heappush(back, free + latency())
        if nth == n // 2:
            began = free
    return (n - 1 - n // 2) / (free - began)


def day(rng: Random, mean: float, busiest: float, surge: tuple[float, float, float] | None = None) -> list[float]:
    """Posts that come in each minute of a day, whose hours go up and down like a cosine, the busiest at 18:00.

    `mean`, `busiest`: posts a second. `surge`: (from hour, to hour, times).
    """
    posts = []
    for minute in range(1440):
        hour = minute / 60
        rate = mean + (busiest - mean) * math.cos(2 * math.pi * (hour - 18) / 24)
        if surge and surge[0] <= hour < surge[1]:
            rate *= surge[2]
        posts.append(max(0.0, round(rng.gauss(60 * rate, math.sqrt(60 * rate)))))
    return posts


def waiting(posts: Sequence[float], a_minute: float) -> list[float]:
    """How many wait at the end of each minute when so many can be labelled in one."""
    left, found = 0.0, []
    for came in posts:
        left = max(0.0, left + came - a_minute)
        found.append(left)
    return found
