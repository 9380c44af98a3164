"""What comes from the network, against figures that were worked out by hand."""

from collections import Counter

import pytest

from civicsky.coverage import Stretch
from civicsky.traffic import (
    Hourly,
    Traffic,
    always,
    assumed_traffic,
    by_hour,
    expected,
    held_since,
    measured_traffic,
    seconds_until,
    share_of_day,
)

HOUR = 3_600_000_000
DAY = 24 * HOUR


def test_the_assumed_traffic_is_that_of_25_posts_in_369_frames_a_second() -> None:
    found = assumed_traffic(only_english=True)
    assert found == Traffic(2_160_000, 972_000, None, 31_881_600)
    assert 0.06 < found.posts / found.frames < 0.09
    assert assumed_traffic(only_english=False)[:2] == (2_160_000, 2_160_000)


def test_traffic_is_what_was_counted_by_the_time_that_was_held() -> None:
    hours = [
        Counter(
            {
                ("post", "kept"): 60,
                ("post", "rejected"): 30,
                ("post", "stale"): 500,
                ("frame", "commit"): 900,
                ("frame", "received"): 950,
            }
        ),
        Counter(
            {
                ("post", "kept"): 20,
                ("post", "shed"): 20,
                ("post", "rejected"): 30,
                ("post", "deleted"): 7,
                ("frame", "account"): 10,
                ("frame", "duplicate"): 40,
            }
        ),
    ]
    # 100 kept or shed and 60 rejected in 910 new frames in 2.5 h
    assert measured_traffic(hours, int(2.5 * HOUR)) == Traffic(160 / 2.5 * 24, 100 / 2.5 * 24, 2.5, 910 / 2.5 * 24)


def test_less_than_an_hour_tells_nothing_of_a_day() -> None:
    hours = [Counter({("post", "kept"): 60})]
    assert measured_traffic(hours, HOUR - 1) is None
    assert measured_traffic(hours, HOUR) == Traffic(1440, 1440, 1, 0)


def test_only_what_was_held_counts_and_only_the_last_days_of_it() -> None:
    day = 24 * HOUR
    stretches = [
        Stretch(0, day, "held"), Stretch(day, 2 * day, "not_replayed"), Stretch(2 * day, 2 * day + HOUR, "held"),
        Stretch(2 * day + HOUR, 3 * day, "unverified"),
    ]  # fmt: skip
    assert held_since(stretches, 7) == (-4 * day, day + HOUR)
    assert held_since(stretches, 2.5) == (day // 2, day // 2 + HOUR)
    assert held_since([], 7) == (0, 0)


def counts(posts: int, kept: int, frames: int) -> Counter[tuple[str, str]]:
    return Counter({("post", "kept"): kept, ("post", "rejected"): posts - kept, ("frame", "commit"): frames})


def test_an_hour_of_the_day_is_the_median_of_the_days_on_which_it_was_held() -> None:
    at, later = 16 * HOUR, 17 * HOUR
    hours = {day * DAY + at: counts(100 * (day + 1), 10, 1000) for day in range(4)}
    hours |= {day * DAY + later: counts(7, 7, 7) for day in range(2)}
    stretches = [Stretch(0, 10 * DAY, "held")]
    assert by_hour(hours, stretches) == {16: Hourly(250, 10, 1000, 4)}, "two days of the hour after it are too few"


def test_an_hour_that_was_hardly_held_says_nothing_and_one_almost_whole_is_made_whole() -> None:
    hours = {day * DAY: counts(95, 19, 950) for day in range(4)}
    half = [Stretch(day * DAY, day * DAY + HOUR // 2, "held") for day in range(4)]
    assert by_hour(hours, half) == {}
    almost = [Stretch(day * DAY, day * DAY + HOUR * 95 // 100, "held") for day in range(4)]
    assert by_hour(hours, almost)[0] == pytest.approx(Hourly(100, 20, 1000, 4))
    gaps = [Stretch(day * DAY, day * DAY + HOUR, "not_replayed") for day in range(4)]
    assert by_hour(hours, gaps) == {}


def test_one_odd_day_of_three_changes_nothing() -> None:
    hours = {0: counts(0, 0, 0), DAY: counts(100, 50, 1000), 2 * DAY: counts(120, 60, 1200)}
    assert by_hour(hours, [Stretch(0, 3 * DAY, "held")])[0] == Hourly(100, 50, 1000, 3)


def test_posts_come_at_the_rate_of_each_hour_that_they_last_through() -> None:
    rates = {0: 60.0, 1: 120.0, 2: 30.0}

    def an_hour(begin: int) -> float:
        return rates.get(begin // HOUR, 0)

    # half of the first hour gives 30, the second 120, then 15 of 30 in half of the third
    assert seconds_until(165, HOUR // 2, an_hour) == pytest.approx(2 * 3600)
    assert seconds_until(30, HOUR // 2, an_hour) == pytest.approx(1800)
    assert seconds_until(1, 0, an_hour) == pytest.approx(60)
    assert seconds_until(211, 0, an_hour) is None, "no more ever come"
    assert seconds_until(10, 5 * HOUR, an_hour) is None


def test_what_is_not_read_does_not_come() -> None:
    """A window of the hours 16 to 20: at the place where one is to be heeded."""

    def window(begin: int) -> float:
        return 1.0 if 16 <= begin // HOUR % 24 < 20 else 0.0

    assert share_of_day(window, 9 * HOUR + HOUR // 2) == pytest.approx(4 / 24)
    assert share_of_day(always, 0) == 1
    assert Traffic(24, 12, None, 240).read(0.5) == Traffic(12, 6, None, 120)
    mean = Hourly(60, 30, 600, 0)
    hourly = {17: Hourly(120, 40, 900, 5)}
    assert expected(hourly, mean, 16 * HOUR) == mean
    assert expected(hourly, mean, DAY + 17 * HOUR) == hourly[17]
    assert expected(hourly, mean, 3 * HOUR, window) == Hourly(0, 0, 0, 0)
    # from 19:00 on 60, then from 16:00 of the next day 60 and 120
    seconds = seconds_until(240, 19 * HOUR, lambda begin: expected(hourly, mean, begin, window).posts)
    assert seconds == pytest.approx((21 + 2) * 3600)
