"""Frames of the benchmark's generator, made once for all tests of a run."""

from functools import cache

from bench.hostile import WAYS
from bench.traffic import HOSTILE_EVERY, frames
from bench.truth import Truth

Made = list[tuple[bytes, Truth]]


@cache
def of_all_ways() -> Made:
    """As many as it takes to see every hostile way once: do not change them."""
    return list(frames(HOSTILE_EVERY * len(WAYS)))
