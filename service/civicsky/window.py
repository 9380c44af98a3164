"""Hours of the day in which the stream is held (`source.window`): open or closed, and when that changes. Pure.

A window is open exactly while its zone's wall clock shows a time in [from, to); `to` before `from` wraps over midnight.
So when clocks go forward, hours that do not exist that day are not held; when they go back, hours that come twice are
held twice. Times are microseconds since 1970 UTC. What is reckoned here is exact as long as a zone's clock is
changed at most once in `_STEP`; no zone does it more often than once in some weeks.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

_MICROSECOND: Final = timedelta(microseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY: Final = 86_400_000_000
_STEP: Final = _DAY // 4


class Window(NamedTuple):
    """Hours of the day in a zone."""

    begin: int
    """By the wall clock, in microseconds since midnight."""
    end: int
    """The same, not included; never equal to `begin`."""
    zone: ZoneInfo


def window_of(begin: str, end: str, zone: str) -> Window:
    """The window from `begin` to `end` (HH:MM) in a zone of the tz database, all as the settings have checked them."""
    return Window(_since_midnight(begin), _since_midnight(end), ZoneInfo(zone))


def is_open(window: Window, at: int) -> bool:
    """Whether it is open at this moment."""
    shown = (at + _offset(window.zone, at)) % _DAY
    if window.begin < window.end:
        return window.begin <= shown < window.end
    return shown >= window.begin or shown < window.end


def next_edge(window: Window, at: int) -> int:
    """The first moment after `at` at which it opens (if it is closed at `at`) or closes (if it is open)."""
    was, here, offset = is_open(window, at), at, _offset(window.zone, at)
    shows = window.end if was else window.begin
    while True:
        edge = here + (shows - here - offset) % _DAY
        there = min(edge, here + _STEP)
        if _offset(window.zone, there) != offset:
            here = _change(window.zone, here, there, offset)
            offset = _offset(window.zone, here)
            if is_open(window, here) != was:
                return here
        elif there == edge:
            return edge
        else:
            here = there


def opened(window: Window, at: int) -> int:
    """When it opened last: the beginning of the opening that goes on at `at`."""
    # No opening is longer than a day and what clocks are put back by.
    edge = at - 2 * _DAY
    while (later := next_edge(window, edge)) <= at:
        edge = later
    return edge


def openings(window: Window, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Every opening of which a part lies between two moments, whole, in order: when it opens and when it closes."""
    opens = opened(window, begin) if is_open(window, begin) else next_edge(window, begin)
    while opens < end:
        closes = next_edge(window, opens)
        yield opens, closes
        opens = next_edge(window, closes)


def share_open(window: Window, begin: int, end: int) -> float:
    """Which part of the time between two moments it is open."""
    parts = (min(closes, end) - max(opens, begin) for opens, closes in openings(window, begin, end))
    return sum(parts) / (end - begin)


def was_closed(window: Window, begin: int, end: int) -> bool:
    """Whether it was closed at any moment from `begin` to `end`."""
    return not is_open(window, begin) or next_edge(window, begin) <= end


def _change(zone: ZoneInfo, here: int, there: int, offset: int) -> int:
    """The first moment after `here` whose offset is not `offset`; at `there` it is another."""
    while there - here > 1:
        middle = (here + there) // 2
        here, there = (middle, there) if _offset(zone, middle) == offset else (here, middle)
    return there


def _offset(zone: ZoneInfo, at: int) -> int:
    """What the zone's wall clock is ahead of UTC."""
    ahead = (_EPOCH + timedelta(microseconds=at)).astimezone(zone).utcoffset()
    assert ahead is not None
    return ahead // _MICROSECOND


def _since_midnight(text: str) -> int:
    shown = time.fromisoformat(text)
    return (shown.hour * 60 + shown.minute) * 60_000_000
