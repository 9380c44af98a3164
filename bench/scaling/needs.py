"""Sums: what traffic asks of each part, and what a part can give. Pure.

What is not measured by `make bench` is an assumption, and stands here with where it comes from.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

Measured = Mapping[str, Any]
"""`bench/results.json`: its parts by name."""

POSTS: Final = 25.0
"""Of the whole network, a second, in 2025 and 2026."""
BUSIEST: Final = 36.0
"""In the busiest hour."""
FRAMES: Final = 450.0
"""A second, the upper end of 288 to 450."""
FRAME_BYTES: Final = 5_000
ENGLISH: Final = 0.45
"""Share of posts, as `civicsky plan` assumes."""
TIMES: Final = (1, 10, 100)
TOKENS_IN: Final = 1_442
TOKENS_OUT: Final = 18
"""Of a label by the task `civic`, held to its schema: `civicsky plan`, at four characters a token."""
TOKENS_OWN: Final = 60
"""Of these the post's own, behind the beginning that all questions share: what a server with a prefix cache reads."""
PARAMETERS: Final = 8e9
WEIGHT_BYTES: Final = 2
"""Half precision."""
READING: Final = 0.4
WRITING: Final = 0.6
"""Shares of a GPU's peak that a server reaches while it reads prompts (arithmetic) and writes answers (memory)."""
AT_ONCE: Final = 64
"""Answers that a GPU writes at the same time."""
SLOTS: Final = 256
"""The most calls that a home node has in flight (`label.slots`)."""
LINK: Final = 1e9
"""Bits a second of the home node's network."""
LABEL_DOCUMENTS: Final = 2.0
"""Writes to the store for a post that is labelled: the post, and its label."""
STORE_BYTES: Final = 3_800
"""Of both, in a SQLite store: docs/operations.md#disk."""
JOURNAL_BYTES: Final = 1_600
"""Of a kept post in the journal: likewise."""


class Gpu(NamedTuple):
    """A GPU by its maker's data sheet."""

    name: str
    flops: float
    """Half precision, dense, a second."""
    bandwidth: float
    """Bytes a second."""


GPUS: Final = (Gpu("L4", 121e12, 300e9), Gpu("A100 80 GB", 312e12, 2_039e9), Gpu("H100 SXM", 989e12, 3_350e9))


def labels_a_second(gpu: Gpu, tokens_in: float, tokens_out: float) -> float:
    """Reading and writing share the GPU: 1 / (seconds to read + seconds to write).

    A token read is two operations a parameter. For each token written the weights pass through memory once, for all
    answers that are written at the same time.
    """
    reads = READING * gpu.flops / (2 * PARAMETERS)
    writes = WRITING * gpu.bandwidth / (WEIGHT_BYTES * PARAMETERS) * AT_ONCE
    return 1 / (tokens_in / reads + tokens_out / writes)


def gpus(labels: float, each: float, most: float = 0.7) -> int:
    """How many, so that none is busier than that: waiting grows without bound towards 1."""
    return math.ceil(labels / (each * most))


def in_flight(labels: float, seconds: float) -> float:
    """Little's law: calls under way = calls a second x seconds of one."""
    return labels * seconds


def catch_up_hours(behind_hours: float, rate: float, capacity: float) -> float:
    """Until a stop of so many hours is made up for; infinite when more comes than can be read."""
    return behind_hours * rate / (capacity - rate) if capacity > rate else math.inf


class Stage(NamedTuple):
    """A part of the service, and how much of it today's busiest hour takes."""

    name: str
    unit: str
    wanted: float
    """Today, in the busiest hour."""
    capacity: float
    whence: str

    def share(self, times: float) -> float:
        """Of its capacity, at so many times today's traffic."""
        return self.wanted * times / self.capacity

    @property
    def breaks_at(self) -> float:
        """Times today's traffic."""
        return self.capacity / self.wanted


def median(parts: Measured, part: str, what: str) -> float:
    """A measured figure. Raises `KeyError` when there is none."""
    return float(parts[part]["figures"][what]["median"])


def stages(parts: Measured, call_seconds: float = 1.0) -> Iterator[Stage]:
    """Those of a home node, with every English post labelled."""
    english = BUSIEST * ENGLISH
    frames = FRAMES * BUSIEST / POSTS
    inserts, answers = median(parts, "store", "MongoDB, inserts"), median(parts, "label", "256 in flight, 0 ms")
    yield Stage("network, from the relay", "Mbit/s", frames * FRAME_BYTES * 8 / 1e6, LINK / 1e6, "assumed: 1 Gbit/s")
    yield Stage("collecting, websockets", "frames/s", frames, median(parts, "collect", "civicsky, TLS"), "measured")
    yield Stage(
        "collecting, picows", "frames/s", frames, median(parts, "collect", "civicsky with picows, TLS"), "measured"
    )
    yield Stage(
        "calls in flight", "calls", in_flight(english, call_seconds), SLOTS, f"bound; {call_seconds:g} s a call"
    )
    yield Stage("labelling, the home node's processor", "answers/s", english, answers, "measured")
    if (by_workers := cost_by_workers(parts)) is not None:
        yield Stage("the same, by way of workers", "answers/s", english, 1 / by_workers, "from processor time")
    yield Stage("one MongoDB", "documents/s", english * LABEL_DOCUMENTS, inserts, "measured")
    sqlite = median(parts, "store", "SQLite, inserts")
    yield Stage("the SQLite store", "documents/s", english * LABEL_DOCUMENTS, sqlite, "measured")


def cost_by_workers(parts: Measured) -> float | None:
    """Seconds of the home node's processor for an answer by way of workers, the most of them; None: not measured."""
    figures = parts.get("workers", {}).get("figures", {})
    found = [one["median"] / 1000 for name, one in figures.items() if name.endswith("CPU of the home node a post")]
    return found[-1] if found else None


def first_to_break(found: list[Stage]) -> list[Stage]:
    """By the traffic at which each is full."""
    return sorted(found, key=lambda stage: stage.breaks_at)
