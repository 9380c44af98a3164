"""When the daily fetch is due, against an oracle that walks through the year in steps of five minutes."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from civicsky.errors import Usage
from civicsky.loading import load
from civicsky.schedule import due, last_due, missing
from civicsky.settings import Feeds

MINUTE = 60_000_000
DAY = 24 * 60 * MINUTE


def us(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * 1_000_000


def shown(moment_us: int, zone: str) -> str:
    return datetime.fromtimestamp(moment_us / 1e6, ZoneInfo(zone)).isoformat()


def walked(begin: str, days: int, at: str, zone: str) -> Iterator[int]:
    """Moments at which it is due, as somebody sees them who looks at a wall clock every five minutes.

    A date is done when its time shows, or when the clock, without having shown it, is past it.
    """
    place, hour_minute = ZoneInfo(zone), tuple(map(int, at.split(":")))
    done: set[object] = set()
    start = us(begin)
    for now in range(start, start + days * DAY, 5 * MINUTE):
        clock = datetime.fromtimestamp(now // 1_000_000, place)
        dates = [clock.date() - timedelta(days=1), clock.date()]
        for date in dates:
            is_past = date < clock.date() or (clock.hour, clock.minute) >= hour_minute
            if is_past and date not in done:
                done.add(date)
                if now > start + DAY:  # of the beginning it is not known what was there before
                    yield now


# Usual summer time; half an hour of it, in the other hemisphere; none; a change at midnight.
ZONES = ["America/Chicago", "Australia/Lord_Howe", "Asia/Kolkata", "Africa/Cairo"]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("at", ["16:15", "02:10", "01:45", "00:30"])
def test_over_a_year_it_is_due_when_a_wall_clock_says_so(zone: str, at: str) -> None:
    moments = list(walked("2025-12-30T00:00:00+00:00", 400, at, zone))
    assert 397 <= len(moments) <= 399
    for before, moment in pairwise(moments):
        assert last_due(moment, at, zone) == moment, shown(moment, zone)
        assert last_due(moment + MINUTE - 1, at, zone) == moment, shown(moment, zone)
        assert last_due(moment - 1, at, zone) == before, shown(moment, zone)
        assert last_due((before + moment) // 2, at, zone) == before, shown(moment, zone)


@pytest.mark.parametrize(
    ("at", "zone", "day", "is_due"),
    [
        # 02:00 becomes 03:00; 02:30 is not there
        ("02:30", "America/Chicago", "2026-03-08T12:00:00-05:00", "2026-03-08T03:00:00-05:00"),
        # 02:00 becomes 01:00; 01:30 is there twice
        ("01:30", "America/Chicago", "2026-11-01T12:00:00-06:00", "2026-11-01T01:30:00-05:00"),
        # 00:00 becomes 01:00
        ("00:15", "Africa/Cairo", "2026-04-24T12:00:00+03:00", "2026-04-24T01:00:00+03:00"),
        # 24:00 becomes 23:00: 23:30 is there twice
        ("23:30", "Africa/Cairo", "2026-10-30T12:00:00+02:00", "2026-10-29T23:30:00+03:00"),
        # half an hour
        ("02:10", "Australia/Lord_Howe", "2026-10-04T12:00:00+11:00", "2026-10-04T02:30:00+11:00"),
        ("16:15", "America/Chicago", "2026-07-01T16:14:59-05:00", "2026-06-30T16:15:00-05:00"),
        ("16:15", "America/Chicago", "2026-07-01T16:15:00-05:00", "2026-07-01T16:15:00-05:00"),
        # a day that a whole country left out, and one whose midnight was shown twice
        ("16:15", "Pacific/Apia", "2011-12-31T01:00:00+14:00", "2011-12-31T00:00:00+14:00"),
        ("00:00", "America/St_Johns", "2010-11-06T23:30:00-03:30", "2010-11-07T00:00:00-02:30"),
    ],
)
def test_a_time_that_is_not_there_is_due_at_the_jump_and_one_that_is_there_twice_the_first_time(
    at: str, zone: str, day: str, is_due: str
) -> None:
    assert shown(last_due(us(day), at, zone), zone) == is_due


def test_it_does_not_matter_where_the_machine_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    now = us("2026-03-08T12:00:00+00:00")
    found = set()
    for machine in ("UTC", "Asia/Kolkata", "America/Chicago"):
        monkeypatch.setenv("TZ", machine)
        time.tzset()
        found.add(last_due(now, "02:30", "America/Chicago"))
    monkeypatch.undo()
    time.tzset()
    assert found == {us("2026-03-08T08:00:00+00:00")}


def test_a_fetch_is_due_until_a_complete_one_was_made_since() -> None:
    was_due = us("2026-07-01T16:15:00-05:00")
    for later in (0, MINUTE, DAY - 1):
        now = was_due + later
        assert due(now, "16:15", "America/Chicago", None)
        assert due(now, "16:15", "America/Chicago", was_due - 1)
        assert not due(now, "16:15", "America/Chicago", was_due)
        assert not due(now, "16:15", "America/Chicago", now)
    assert due(was_due + DAY, "16:15", "America/Chicago", was_due), "the next day's"
    assert due(was_due + 9 * DAY, "16:15", "America/Chicago", was_due), "after the machine was off"


def test_whoever_looks_once_an_hour_fetches_once_a_day_and_each_feed_by_itself() -> None:
    fetched: dict[str, int | None] = {"today": None, "week": None}
    counts = {"today": 0, "week": 0}
    for now in range(us("2026-01-01T00:15:00+00:00"), us("2027-01-01T00:00:00+00:00"), 60 * MINUTE):
        for name in missing(now, "02:15", "America/Chicago", fetched):
            if name == "week" and datetime.fromtimestamp(now / 1e6, UTC).hour < 12:
                continue  # its server is down in the morning
            fetched[name] = now
            counts[name] += 1
    assert counts == {"today": 366, "week": 365}, "one at once, which makes up for the day before; then one a day"


def test_without_a_time_it_says_what_to_set() -> None:
    with pytest.raises(Usage, match=r"set feeds\.at and feeds\.zone"):
        due(0, "", "", None)


@pytest.mark.parametrize("at", ["16:15", "00:00", "23:59"])
def test_times_of_the_day_are_taken(at: str) -> None:
    assert Feeds(at=at, zone="UTC").at == at


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('at = "16:15"', "feeds.at is 16:15 and feeds.zone is empty: set feeds.zone"),
        ('at = "4:15 pm"\nzone = "UTC"', "feeds.at: '4:15 pm' is not a time of the day: write HH:MM"),
        ('at = "24:00"\nzone = "UTC"', "feeds.at: '24:00' is not a time of the day"),
        ('at = "16:15\\n"\nzone = "UTC"', "is not a time of the day"),
        ('at = "16:15"\nzone = "Chicago"', "feeds.zone: 'Chicago' is no IANA time zone"),
        ('at = "16:15"\nzone = "America"', "feeds.zone: 'America' is no IANA time zone"),
        ('at = "16:15"\nzone = "../../../etc/passwd"', "is no IANA time zone"),
    ],
)
def test_a_schedule_that_cannot_be_kept_is_refused_with_the_remedy(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "civicsky.toml"
    file.write_text(f"[feeds]\n{text}\n", encoding="utf-8")
    with pytest.raises(Usage) as told:
        load(file)
    assert said in str(told.value)


def test_no_zone_is_taken_for_granted() -> None:
    assert (Feeds().at, Feeds().zone) == ("", "")
