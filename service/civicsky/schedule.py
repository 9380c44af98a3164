"""When the daily fetch is due, by the clocks of a time zone, across changes of summer time. Pure.

Nobody need start the fetch at its very moment: whoever looks once an hour, or after a machine was off, is told by `due`
whether one is missing.
"""

from bisect import bisect_left
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from civicsky.errors import Usage

NO_TIME: Final = (
    "no daily fetch is set: set feeds.at and feeds.zone in the settings file, "
    'such as at = "16:15" and zone = "America/Chicago" under [feeds]'
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_AROUND: Final = (1, 0, -1, -2)
"""Days around now's own date: clocks put back over midnight show a date twice, and a zone can skip a whole one."""


def last_due(now_us: int, at: str, zone: str) -> int:
    """The last moment at or before now at which the daily fetch was due. Both are in microseconds since 1970 UTC.

    `at` is HH:MM by the clocks of `zone` (an IANA name). A time that a day does not have is due when the clocks jump
    over it; one that it has twice, the first time. Raises `Usage` when `at` is empty.
    """
    if not at:
        raise Usage(NO_TIME)
    place, wall = ZoneInfo(zone), time.fromisoformat(at)
    today = (_EPOCH + timedelta(microseconds=now_us)).astimezone(place).date()
    return max(m for days in _AROUND if (m := _moment(today + timedelta(days=days), wall, place)) <= now_us)


def due(now_us: int, at: str, zone: str, last_fetched_us: int | None) -> bool:
    """Whether no complete fetch was made since it was last due; None: there never was one. Otherwise as `last_due`."""
    since = last_due(now_us, at, zone)
    return last_fetched_us is None or last_fetched_us < since


def missing(now_us: int, at: str, zone: str, last_fetched_us: Mapping[str, int | None]) -> list[str]:
    """Of some feeds, by the time of each one's last complete fetch: the names of those that are due."""
    return [name for name, last in last_fetched_us.items() if due(now_us, at, zone, last)]


def _moment(day: date, wall: time, place: ZoneInfo) -> int:
    """When clocks first show a time on a day, or jump over it."""
    there = datetime.combine(day, wall, tzinfo=place)
    shown = there.astimezone(UTC)
    if shown.astimezone(place).replace(tzinfo=None) != there.replace(tzinfo=None):
        shown = _jump(there)
    return round((shown - _EPOCH) / timedelta(microseconds=1))


def _jump(there: datetime) -> datetime:
    """When clocks jump over a time that they never show: the first second by the later offset."""
    before, after = there.replace(fold=0), there.replace(fold=1)
    begin, end = after.astimezone(UTC), before.astimezone(UTC)
    seconds = range(int((end - begin).total_seconds()) + 1)
    return begin + timedelta(
        seconds=bisect_left(
            seconds,
            True,
            key=lambda n: (begin + timedelta(seconds=n)).astimezone(there.tzinfo).utcoffset() != before.utcoffset(),
        )
    )
