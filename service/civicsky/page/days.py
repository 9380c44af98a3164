"""Coverage as a calendar: each day in cells of a quarter of an hour, and what each of them is. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

from civicsky.coverage import Stretch
from civicsky.model import format_time

CELLS: Final = 96
"""Of a day."""
DAY_US: Final = 86_400_000_000
CELL_US: Final = DAY_US // CELLS
FULL: Final = 0.999
"""Share of a cell that must be held for it to count as held: 0.9 s may be missing."""
_SIGNS: Final = {"held": "h", "unverified": "u", "window": "w", "not_collected": "n", "limit": "w"}
"""By a stretch's kind; any other is a gap."""
GAP: Final = "g"
NOTHING: Final = "."
"""Before the first event that was held, and after the last."""


def calendar(stretches: Sequence[Stretch], now: int, days: int) -> list[dict[str, Any]]:
    """The last so many days (UTC) until now, the newest first; those before the first event are left out.

    A day: `day`, `cells` (a sign for each), `held` (the share of its time from the first event to the last that was
    held, None without any) and `seconds` by kind of what was not.
    """
    if not stretches:
        return []
    first = max(now // DAY_US - days + 1, stretches[0].begin // DAY_US)
    found = []
    for day in range(now // DAY_US, first - 1, -1):
        begin = day * DAY_US
        within = [one for one in stretches if one.begin < begin + DAY_US and one.end > begin]
        seconds = _seconds(within, begin, begin + DAY_US)
        whole = sum(seconds.values())
        found.append(
            {
                "day": format_time(begin)[:10],
                "cells": _cells(within, begin),
                "held": seconds.get("held", 0.0) / whole if whole else None,
                "seconds": {kind: round(n, 1) for kind, n in seconds.items() if kind != "held"},
            }
        )
    return found


def _seconds(stretches: Iterable[Stretch], begin: int, end: int) -> dict[str, float]:
    seconds = defaultdict[str, float](float)
    for one in stretches:
        seconds[one.kind] += (min(one.end, end) - max(one.begin, begin)) / 1e6
    return dict(seconds)


def _cells(stretches: Sequence[Stretch], begin: int) -> str:
    """The sign of what most of a cell's missing time is; held where next to none is missing."""
    cells: list[dict[str, int]] = [{} for _ in range(CELLS)]
    for one in stretches:
        first = max(0, (one.begin - begin) // CELL_US)
        last = min(CELLS - 1, (one.end - 1 - begin) // CELL_US)
        for at in range(first, last + 1):
            low = begin + at * CELL_US
            part = min(one.end, low + CELL_US) - max(one.begin, low)
            sign = _SIGNS.get(one.kind, GAP)
            cells[at][sign] = cells[at].get(sign, 0) + part
    return "".join(map(_sign, cells))


def _sign(kinds: dict[str, int]) -> str:
    whole = sum(kinds.values())
    if not whole:
        return NOTHING
    if kinds.get("h", 0) >= whole * FULL:
        return "h"
    return max((sign for sign in kinds if sign != "h"), key=lambda sign: (sign == GAP, kinds[sign]))
