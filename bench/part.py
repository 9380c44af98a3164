"""What every part of the benchmark shares: a part is a module that measures, round by round; `bench.run` does the rest.

A part has

    PART = Part("decode", "Decoding one frame", "ours, the SDK's way, ... on the same frames")

    def rounds(ask: Ask) -> Iterator[Measure]:
        ...make what all rounds need, outside of what is measured...
        yield Fact("frames", n)
        for _ in range(ask.rounds):        # all candidates in each round: A B C A B C
            ours, theirs = ..., ...
            yield Figure("ours", "frames/s", ours)
            yield Figure("the SDK's way", "frames/s", theirs)
            yield Against("ours over the SDK's way, frames/s", ours / theirs, bar=15)

and cleans up after itself, also when the generator is closed. The names gather the rounds: values of the same name
become one `Result` or `Ratio`, whose median is held against the bar. A bar on a figure itself (`Figure(..., bar=2)`)
is for what the machine's speed hardly changes, or where the bar is meant so. A part that cannot run, or a candidate
that cannot, raises or yields `CannotRun` with the reason: it is told, and never silently left out.
"""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

Better = Literal["higher", "lower"]
QUICK: Final = 0.02
"""What `--quick` makes of a part's size, unless the part says otherwise: enough to see that it works."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a part is called: `name` after `--only`, the rest for people."""

    name: str
    title: str
    what: str
    """One sentence: what is measured against what."""


@dataclass(frozen=True, slots=True)
class Ask:
    """How much is wanted of a part."""

    rounds: int = 5
    scale: float = 1.0
    """Times the part's full size. Bars are meant for 1.0."""
    quick: bool = False
    """Only to see that it works: sizes of a few seconds. Bars are told, and mean nothing."""
    say: Callable[[str], None] = field(default=lambda _: None, compare=False)
    """Tells people what is done now."""

    def size(self, full: int, least: int = 1) -> int:
        """So many of what are `full` at full size."""
        return max(least, int(full * self.scale * (QUICK if self.quick else 1)))


@dataclass(frozen=True, slots=True)
class Figure:
    """One candidate's value in one round."""

    name: str
    unit: str
    value: float
    better: Better = "higher"
    bar: float | None = None
    """At least this where higher is better, at most where lower is."""


@dataclass(frozen=True, slots=True)
class Against:
    """A ratio of two figures of the same round; `name` says what is divided by what: "ours over theirs, frames/s"."""

    name: str
    value: float
    bar: float | None = None
    at_least: bool = True


@dataclass(frozen=True, slots=True)
class Fact:
    """What one must know beside the figures: how many frames, which version, what a check of sameness found."""

    name: str
    value: Any


class CannotRun(Exception):
    """A part, or one candidate of it, cannot run here; the message says why."""


Measure = Figure | Against | Fact | CannotRun


@dataclass(frozen=True, slots=True)
class Result:
    """All rounds of one figure."""

    part: str
    name: str
    unit: str
    values: list[float]
    better: Better = "higher"
    bar: float | None = None

    @property
    def at_least(self) -> bool:
        """Which side of the bar is good."""
        return self.better == "higher"


@dataclass(frozen=True, slots=True)
class Ratio:
    """All rounds of one ratio."""

    part: str
    name: str
    values: list[float]
    bar: float | None = None
    at_least: bool = True
    unit: str = ""


def met(one: Result | Ratio) -> bool | None:
    """Whether the median keeps to the bar; None without one."""
    if one.bar is None:
        return None
    median = statistics.median(one.values)
    return median >= one.bar if one.at_least else median <= one.bar


@dataclass(slots=True)
class Measured:
    """What one part measured, in the order in which it was first told."""

    part: Part
    facts: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    ratios: dict[str, Ratio] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """What could not run, and why."""
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def take(self, measure: Measure) -> None:
        """One more value."""
        name = self.part.name
        match measure:
            case Figure():
                empty = Result(name, measure.name, measure.unit, [], measure.better, measure.bar)
                self.results.setdefault(measure.name, empty).values.append(measure.value)
            case Against():
                bare = Ratio(name, measure.name, [], measure.bar, measure.at_least)
                self.ratios.setdefault(measure.name, bare).values.append(measure.value)
            case Fact():
                self.facts[measure.name] = measure.value
            case CannotRun():
                self.left_out.append(str(measure))


def gather(part: Part, measures: Iterable[Measure]) -> Measured:
    """All of a part, also when it ends with `CannotRun`."""
    measured = Measured(part)
    try:
        for measure in measures:
            measured.take(measure)
    except CannotRun as why:
        measured.left_out.append(str(why))
    return measured
