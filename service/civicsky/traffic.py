"""How much comes from the network, also by hour of the day, and how long until so many posts have come. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Final, NamedTuple

from civicsky.coverage import Stretch

FRAMES_A_SECOND: Final = (288, 450)
"""Of the whole network, as published counts of 2025 and 2026 have it; the middle is reckoned with."""
POSTS_A_SECOND: Final = 25
PEAK_POSTS_A_SECOND: Final = 36
"""Mean and busiest hour of the same years: 2.2 million posts a day."""
ENGLISH: Final = 0.45
"""Share of the posts that is kept. A guess: no count of it is published."""

MIN_HELD_US: Final = 3_600_000_000
"""Less than a whole hour says too little of a day."""
MIN_DAYS: Final = 3
"""Days on which an hour of the day was held, below which it says nothing: the middle of three bears one odd day."""
WHOLE: Final = 0.9
"""Share of an hour from which on it counts as held."""
LONGEST_DAYS: Final = 366

_HOUR_US: Final = 3_600_000_000
_DAY_SECONDS: Final = 86_400

Counts = Counter[tuple[str, str]]
"""By (unit, outcome), as the journal counts."""
Reading = Callable[[int], float]
"""Share of the hour that begins at a moment (microseconds since 1970 UTC) during which the source reads."""


def always(_hour_us: int) -> float:
    """Day and night: what is read when no window is set."""
    return 1.0


class Traffic(NamedTuple):
    """What comes on a day."""

    posts: float
    """Of all languages."""
    kept: float
    hours: float | None
    """Held, over which it was measured; None: assumed."""
    frames: float

    def an_hour(self) -> "Hourly":
        """The mean of the day."""
        return Hourly(self.posts / 24, self.kept / 24, self.frames / 24, 0)

    def read(self, share: float) -> "Traffic":
        """What of it is read, when the source reads for this share of the day."""
        return self._replace(posts=self.posts * share, kept=self.kept * share, frames=self.frames * share)


class Hourly(NamedTuple):
    """What comes in an hour."""

    posts: float
    kept: float
    frames: float
    days: int
    """Days on which this hour of the day was held; 0: the mean of all hours."""


def assumed_traffic(*, only_english: bool) -> Traffic:
    """Of the whole network."""
    posts = float(POSTS_A_SECOND * _DAY_SECONDS)
    return Traffic(posts, posts * ENGLISH if only_english else posts, None, fmean(FRAMES_A_SECOND) * _DAY_SECONDS)


def measured_traffic(hours: Iterable[Counts], held_us: int) -> Traffic | None:
    """From the journal's counts of some hours, and the time of the stream that was held in them.

    None when that was less than an hour. What was read twice is not counted: it is `stale` the second time.
    """
    if held_us < MIN_HELD_US:
        return None
    came = _came(sum(hours, Counter()), _DAY_SECONDS * 1e6 / held_us)
    return Traffic(came.posts, came.kept, held_us / _HOUR_US, came.frames)


def held_since(stretches: Sequence[Stretch], days: float) -> tuple[int, int]:
    """(beginning, microseconds held) of the last days before the end of what was held."""
    if not stretches:
        return 0, 0
    since = stretches[-1].end - int(days * _DAY_SECONDS * 1e6)
    return since, _held_us(stretches, since, stretches[-1].end)


def by_hour(hours: Mapping[int, Counts], stretches: Sequence[Stretch]) -> dict[int, Hourly]:
    """What comes in each hour of the day (0 to 23, UTC), as far as that hour was held on enough days: the median.

    `hours`: the counts by the hour's beginning. An hour counts when nine tenths of it were held. What is caught up
    after an outage was counted in too late an hour; the median bears that.
    """
    seen: dict[int, list[Hourly]] = {}
    for begin, counts in hours.items():
        held = _held_us(stretches, begin, begin + _HOUR_US)
        if held >= WHOLE * _HOUR_US:
            seen.setdefault(begin // _HOUR_US % 24, []).append(_came(counts, _HOUR_US / held))
    return {hour: _median(came) for hour, came in seen.items() if len(came) >= MIN_DAYS}


def seconds_until(n: float, now_us: int, an_hour: Callable[[int], float]) -> float | None:
    """How long it takes from now until n have come; None: longer than a year.

    `an_hour` tells what comes in the hour that begins at a moment (microseconds since 1970 UTC).
    """
    at, left = now_us, n
    while at < now_us + LONGEST_DAYS * _DAY_SECONDS * 1_000_000:
        begin = at // _HOUR_US * _HOUR_US
        rate, end = an_hour(begin), begin + _HOUR_US
        if (comes := rate * (end - at) / _HOUR_US) >= left:
            return (at - now_us + (left / rate * _HOUR_US if left else 0)) / 1e6
        left, at = left - comes, end
    return None


def expected(hourly: Mapping[int, Hourly], mean: Hourly, begin_us: int, reading: Reading = always) -> Hourly:
    """What is read in the hour that begins at a moment: by its hour of the day if that is known, else the mean."""
    known, share = hourly.get(begin_us // _HOUR_US % 24, mean), reading(begin_us)
    return Hourly(known.posts * share, known.kept * share, known.frames * share, known.days)


def _median(came: Sequence[Hourly]) -> Hourly:
    posts, kept, frames = (median(column) for column in zip(*(one[:3] for one in came), strict=True))
    return Hourly(posts, kept, frames, len(came))


def share_of_day(reading: Reading, now_us: int) -> float:
    """Share of the 24 hours from now's own hour on during which the source reads."""
    this = now_us // _HOUR_US * _HOUR_US
    return fmean(reading(this + n * _HOUR_US) for n in range(24))


def _came(counts: Counts, times: float) -> Hourly:
    kept = counts["post", "kept"] + counts["post", "shed"]
    frames = sum(n for (unit, what), n in counts.items() if unit == "frame" and what not in {"received", "duplicate"})
    return Hourly((kept + counts["post", "rejected"]) * times, kept * times, frames * times, 1)


def _held_us(stretches: Sequence[Stretch], begin: int, end: int) -> int:
    held = (min(one.end, end) - max(one.begin, begin) for one in stretches if one.kind == "held")
    return sum(max(0, us) for us in held)
