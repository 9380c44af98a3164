"""Sums: what traffic asks of each part, and what a part can give. Pure.

What is not measured by `make bench` is an assumption, and stands here with where it comes from.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from civicsky.settings import Journal

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
"""The most calls that a home node has in flight (`label.slots`) without workers."""
SLOTS_OF_WORKERS: Final = 4_096
"""And by way of workers."""
LINK: Final = 1e9
"""Bits a second of the home node's network."""
LABEL_DOCUMENTS: Final = 3.0
"""Writes to the store for a post that is labelled: the post as it came, the post with its label, and the label."""
JOURNAL_BYTES: Final = 1_600
"""Of a kept post in the journal: docs/operations.md#disk, as are the others."""
POST_BYTES: Final = 240 + 1_600
"""Of a kept post in ledger and SQLite store."""
LABEL_BYTES: Final = 1_800 + 2_200
"""What its label adds in both."""
DISK: Final = 1e12
FULL: Final = "home node full"
"""What was measured by way of workers with all the calls that it can have in flight."""
ANSWERING: Final = "256 in flight, 200 ms"
"""Measured of a home node that is full, with a model that takes a while: less than with one that takes no time."""


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
    reading, writing = _seconds(gpu, tokens_in, tokens_out)
    return 1 / (reading + writing / AT_ONCE)


def call_seconds(gpu: Gpu, tokens_in: float, tokens_out: float, labels: float) -> float:
    """How long a call takes on a GPU that has so many a second; fewer than it can do.

    While it is under way labels x T questions of others are read in between: T = writing + labels x T x reading.
    """
    reading, writing = _seconds(gpu, tokens_in, tokens_out)
    return writing / (1 - labels * reading)


def _seconds(gpu: Gpu, tokens_in: float, tokens_out: float) -> tuple[float, float]:
    """(to read a question with the GPU to itself, to write an answer, be it alone or with others)."""
    return (
        tokens_in * 2 * PARAMETERS / (READING * gpu.flops),
        tokens_out * WEIGHT_BYTES * PARAMETERS / (WRITING * gpu.bandwidth),
    )


def waits_at_most(servers: int, busy: float, share: float = 0.99) -> float:
    """Seconds that so large a share of calls waits for a free slot at most, calls of 1 s; Erlang's formula (M/M/c)."""
    load = servers * busy
    terms = [load**k / math.factorial(k) for k in range(servers)]
    last = load**servers / math.factorial(servers) / (1 - busy)
    waiting = last / (sum(terms) + last)
    return max(0.0, math.log(waiting / (1 - share)) / (servers * (1 - busy)))


def gpus(labels: float, each: float, most: float = 0.7) -> int:
    """How many, so that none is busier than that: waiting grows without bound towards 1."""
    return math.ceil(labels / (each * most))


def in_flight(labels: float, seconds: float) -> float:
    """Little's law: calls under way = calls a second x seconds of one."""
    return labels * seconds


def replayed(parts: Measured) -> float:
    """Frames a second that a home node reads after a stop: by its processors, or by its network."""
    return min(median(parts, "collect", "civicsky with picows, TLS"), LINK / (8 * FRAME_BYTES))


def bytes_a_day(labels: float | None = None, times: float = 1) -> float:
    """Of ledger and SQLite store, for ever; `labels` a day, None: of each post."""
    posts = 86_400 * POSTS * ENGLISH * times
    return posts * POST_BYTES + (posts if labels is None else labels) * LABEL_BYTES


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
    answers, websockets = median(parts, "label", ANSWERING), median(parts, "collect", "civicsky, TLS")
    kept = Journal()
    yield Stage(
        "the journal's bound", "GB", kept.post_days * 86_400 * POSTS * ENGLISH * JOURNAL_BYTES / 1e9,
        kept.max_bytes / 1e9, f"setting; {kept.post_days:g} days of mean traffic",
    )  # fmt: skip
    yield Stage("network, from the relay", "Mbit/s", frames * FRAME_BYTES * 8 / 1e6, LINK / 1e6, "assumed: 1 Gbit/s")
    yield Stage("collecting, websockets", "frames/s", frames, websockets, "measured")
    yield Stage(
        "collecting, picows", "frames/s", frames, median(parts, "collect", "civicsky with picows, TLS"), "measured"
    )
    yield Stage(
        "`run`: both halves in one process", "answers/s", english, 1 / (1 / answers + frames / english / websockets),
        "reckoned: both add up",
    )  # fmt: skip
    calls = in_flight(english, call_seconds)
    yield Stage("calls in flight", "calls", calls, SLOTS, f"bound; {call_seconds:g} s a call")
    yield Stage(
        "calls in flight, by way of workers", "calls", calls, SLOTS_OF_WORKERS, f"bound; {call_seconds:g} s a call"
    )
    yield Stage("labelling, the home node's processor", "answers/s", english, answers, "measured")
    if (by_workers := cost_by_workers(parts)) is not None:
        is_full = FULL in parts["workers"]["figures"]
        told = "from processor time" if is_full else "at least: from processor time while it was not full"
        yield Stage("labelling, by way of workers", "answers/s", english, 1 / by_workers, told)
        both = 1 / (by_workers + frames / english / websockets)
        yield Stage("`run`, by way of workers", "answers/s", english, both, "reckoned: both add up")
    if (nats := nats_cost(parts)) is not None:
        yield Stage("one nats-server", "answers/s", english, 1 / nats, "one processor, from its time")
    for name, store in (("one MongoDB", "MongoDB"), ("the SQLite store", "SQLite")):
        slower = min(median(parts, "store", f"{store}, {motion}") for motion in ("inserts", "updates"))
        yield Stage(name, "documents/s", english * LABEL_DOCUMENTS, slower, "measured")


def nats_cost(parts: Measured) -> float | None:
    """Seconds of nats-server's processor for an answer by way of workers; None: not measured."""
    figures = parts.get("workers", {}).get("figures", {})
    found = figures.get(f"{FULL}: CPU of nats-server a post")
    return None if found is None else found["median"] / 1000


def cost_by_workers(parts: Measured) -> float | None:
    """Seconds of the home node's processor for an answer by way of workers, when busiest; None: not measured."""
    figures = parts.get("workers", {}).get("figures", {})
    found = [one["median"] / 1000 for name, one in figures.items() if name.endswith("CPU of the home node a post")]
    return found[-1] if found else None


def first_to_break(found: list[Stage]) -> list[Stage]:
    """By the traffic at which each is full."""
    return sorted(found, key=lambda stage: stage.breaks_at)
