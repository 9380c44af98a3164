"""What was held of the stream and what was not: how one connection follows on another, and the sum of it all. Pure.

Sequence numbers have gaps of their own (a deleted account's events vanish from a replay), so a jump in them proves
nothing. What tells is the event at the cursor coming again, and the events' times.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import median_low
from typing import Any, Final, NamedTuple

from civicsky.model import Gap, Held, Resume, parse_time

CLEAR: Final = 20
"""Events that would have come in a jump, at the rate held before, from which on it counts as a gap: by chance alone a
silence as long comes once in e^20 times."""
FEW: Final = 9
"""Events over which a time is averaged (the median): the clocks of single servers are wrong now and then."""


def clock(times: Sequence[int], *, last: bool = False) -> int:
    """The stream's time at its beginning (or end), in spite of single clocks that are wrong."""
    return median_low(times[-FEW:] if last else times[:FEW])


def resume_of(
    resumed_after: int | None, before: Held | None, first_at: int, tolerance_us: int, *, replayed: bool
) -> Resume:
    """How a connection follows on `before`, the last that held this host's epoch; `first_at` is its `clock`."""
    if resumed_after is None or before is None:
        return "first"
    if replayed:
        return "replayed"
    jump = first_at - before.last_at
    if jump <= tolerance_us:
        return "in_time"
    lasted = before.last_at - before.first_at
    # The medians make what was held too short by some events, and the jump too long.
    is_clear = lasted > 0 and (before.frames - FEW) * jump >= (CLEAR + FEW) * lasted
    return "gap" if is_clear else "unverified"


class Stretch(NamedTuple):
    """A time between two events, in microseconds since 1970 UTC, and what is known of it."""

    begin: int
    end: int
    kind: str
    """`held`, `unverified`, or the cause of the gap; `limit`: the rest of an opening that a limit ended;
    `not_collected`: nothing was connected, or no cursor was kept."""

    @property
    def seconds(self) -> float:
        """How long it is."""
        return (self.end - self.begin) / 1e6


Span = tuple[int, int]


class Hours(NamedTuple):
    """What a window wanted to be held. Spans are in order and do not overlap."""

    wanted: Sequence[Span] = ()
    """Its openings."""
    limited: Sequence[Span] = ()
    """Ends of openings that a limit left out."""


class Coverage(NamedTuple):
    """The whole, from the first event ever held to the last."""

    stretches: list[Stretch]
    """In order, without overlap and without a hole."""
    hosts: list[dict[str, Any]]
    """By host and epoch: first_at, last_at, frames, connections, seconds_held, share_held."""
    gaps: list[Gap]
    """Every gap that was noted, also those whose time was held by another host or read again."""

    def seconds(self, *kinds: str) -> float:
        """How long all stretches of these kinds are."""
        return sum(stretch.seconds for stretch in self.stretches if stretch.kind in kinds)

    @property
    def share(self) -> float | None:
        """Share of the time that was held; None before the second event."""
        whole = sum(stretch.seconds for stretch in self.stretches)
        return self.seconds("held") / whole if whole else None

    def held_within(self, begin: int, end: int) -> float:
        """Seconds held between two moments."""
        parts = ((max(one.begin, begin), min(one.end, end)) for one in self.stretches if one.kind == "held")
        return sum(max(0, stop - start) for start, stop in parts) / 1e6


def rows_of(documents: Iterable[Mapping[str, Any]]) -> tuple[list[Held], list[Gap]]:
    """What was held, in order, and the gaps, from the store's documents; also from those that 0.1.0 wrote."""
    held, gaps = [], []
    for document in documents:
        row = {
            name: parse_time(value) if isinstance(value, str) and (name == "at" or name.endswith("_at")) else value
            for name, value in document.items()
        }
        if row.get("kind") == "held" and row.get("first_at") is not None and row.get("last_at") is not None:
            first: Resume = "first" if row.get("resumed_after") is None else "unverified"
            known = {"resume": "replayed" if row.get("proved") else first, **row}
            held.append(Held(**{name: known.get(name) for name in Held._fields}))  # type: ignore[arg-type]
        elif row.get("kind") == "gap":
            gaps.append(Gap(**{name: row.get(name) for name in Gap._fields if name != "n"}))  # type: ignore[arg-type]
    return sorted(held, key=lambda one: one.first_at), gaps


def cover(held: Sequence[Held], gaps: Sequence[Gap], hours: Hours | None = None) -> Coverage:
    """Lay out what was held, over all hosts: a time is held when any of them held it.

    A gap by the window reaches from one event to the next, and may so hold hours in which it was open and nothing was
    collected. With `hours` these are told apart.
    """
    sure, unsure = _joined(held)
    causes = _causes(gaps, hours)
    stretches: list[Stretch] = []
    for begin, end in _union(sure):
        if stretches:
            stretches += _hole(stretches[-1].end, begin, [*((a, b, "unverified") for a, b in unsure), *causes])
        stretches.append(Stretch(begin, end, "held"))
    return Coverage(stretches, _by_host(held), list(gaps))


def _joined(held: Sequence[Held]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """What is held for sure, resumes included, and the times of resumes that nobody could tell of."""
    sure, unsure = [], []
    ends: dict[tuple[str, int], int] = {}
    for row in held:
        name = (row.host, row.epoch)
        end = ends.get(name)
        sure.append((row.first_at, max(row.first_at, row.last_at)))
        if end is not None and end < row.first_at:
            if row.resume in {"replayed", "in_time"}:
                sure.append((end, row.first_at))
            elif row.resume == "unverified":
                unsure.append((end, row.first_at))
        ends[name] = max(end or 0, row.first_at, row.last_at)
    return sure, unsure


def _union(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def _causes(gaps: Sequence[Gap], hours: Hours | None) -> list[tuple[int, int, str]]:
    """What is known of times that were not held; of two that overlap the first one counts."""
    whole: list[tuple[int, int, str]] = [
        (gap.from_at, gap.until_at, gap.cause) for gap in gaps if gap.from_at and gap.until_at
    ]
    if hours is None:
        return whole
    windows = [(begin, end) for begin, end, cause in whole if cause == "window"]
    return [
        *(one for one in whole if one[2] != "window"),
        *((begin, end, "limit") for begin, end in hours.limited),
        *((a, b, "window") for begin, end in windows for a, b in _without(begin, end, hours.wanted)),
    ]


def _without(begin: int, end: int, spans: Iterable[Span]) -> list[Span]:
    """What is left of a time when these are taken out."""
    left = []
    for opens, closes in spans:
        if begin < opens and begin < end:
            left.append((begin, min(opens, end)))
        begin = max(begin, closes)
    return [*left, (begin, end)] if begin < end else left


def _hole(begin: int, end: int, known: Sequence[tuple[int, int, str]]) -> list[Stretch]:
    """What lies between two held times, cut where its cause changes."""
    marks = {begin, end}
    inside = [span for span in known if span[0] < end and span[1] > begin]
    for a, b, _cause in inside:
        marks |= {min(max(a, begin), end), min(max(b, begin), end)}
    edges = sorted(marks)
    parts: list[Stretch] = []
    for a, b in pairwise(edges):
        kind = next((cause for start, stop, cause in inside if start <= a and stop >= b), "not_collected")
        if parts and parts[-1].kind == kind:
            parts[-1] = Stretch(parts[-1].begin, b, kind)
        else:
            parts.append(Stretch(a, b, kind))
    return parts


def _by_host(held: Sequence[Held]) -> list[dict[str, Any]]:
    grouped: dict[tuple[str, int], list[Held]] = {}
    for row in held:
        grouped.setdefault((row.host, row.epoch), []).append(row)
    found = []
    for (host, epoch), own in grouped.items():
        first, last = min(row.first_at for row in own), max(max(row.first_at, row.last_at) for row in own)
        seconds = sum(end - begin for begin, end in _union(_joined(own)[0])) / 1e6
        found.append(
            {
                "host": host,
                "epoch": epoch,
                "first_at": first,
                "last_at": last,
                "frames": sum(row.frames for row in own),
                "connections": len(own),
                "seconds_held": seconds,
                "share_held": seconds / ((last - first) / 1e6) if last > first else None,
            }
        )
    return found
