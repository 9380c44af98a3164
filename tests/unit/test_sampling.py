"""The draw of posts for labelling: what is drawn, and that shares estimated from it hold what is true.

10,000 posts on two days of traffic that varies threefold by hour, drawn 1,000 times.
"""

import json
import sqlite3
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pytest

from civicsky.research import measure
from civicsky.research.measure import Share
from civicsky.sample import Hour, allowance, is_drawn, of_hour, probability

Floats = np.typing.NDArray[np.float64]
Ints = np.typing.NDArray[np.int64]
Bools = np.typing.NDArray[np.bool_]

FIRST_HOUR = 20_000 * 24  # a midnight
HOURS = 48
POSTS = 10_000
GAP_HOUR = 30  # nothing was collected
BUDGET_GONE_HOUR = 15  # of the first day: what is drawn from then on is labelled on the second
RATES = {0: 1_200, 7: 2_000, 13: 700, 24: 1_500, 33: 2_400, 41: 900}
"""From which hour on how many posts a day are wished for: changed five times."""
DEAD_SHARE = 0.05


def _traffic() -> Ints:
    """Posts of each hour: three times as many at the busiest as at the quietest."""
    wave = 1 + 0.5 * np.sin((np.arange(HOURS) - 8) / 24 * 2 * np.pi)
    wave[GAP_HOUR] = 0
    counts: Ints = np.floor(wave / wave.sum() * POSTS).astype(int)
    counts[20] += POSTS - counts.sum()
    return counts


TRAFFIC = _traffic()
HOUR_OF = np.repeat(np.arange(HOURS), TRAFFIC)


def _through_json(hours: Mapping[int, Hour]) -> dict[int, Hour]:
    kept = json.dumps([[hour, *counts] for hour, counts in hours.items()])
    return {hour: Hour(*counts) for hour, *counts in json.loads(kept)}


def _through_sqlite(hours: Mapping[int, Hour]) -> dict[int, Hour]:
    with sqlite3.connect(":memory:") as db:
        db.execute("CREATE TABLE hour (hour INTEGER PRIMARY KEY, seen INTEGER, drawn INTEGER)")
        db.executemany("INSERT INTO hour VALUES (?,?,?)", [(hour, *counts) for hour, counts in hours.items()])
        return {hour: Hour(*counts) for hour, *counts in db.execute("SELECT * FROM hour")}


RESTARTS = {5: _through_json, 17: _through_sqlite, 29: _through_json, 31: _through_sqlite, 44: _through_json}


class Drawn(NamedTuple):
    p: Floats
    hit: Bools


class Sampler:
    """Draws from the traffic with the product's own probabilities.

    Between the posts of an hour only `seen` and `drawn` of that hour change, and its `drawn` does not matter until the
    next hour; so the probabilities of an hour's posts are computed at once, for each state in which it can begin.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[float, int, int], Floats] = {}

    def draw(self, lots: Floats) -> Drawn:
        hours: dict[int, Hour] = {}
        p, hit = np.ones(POSTS), np.zeros(POSTS, bool)
        wish, begin, backlog = 0, 0, 0
        for at in range(HOURS):
            hour = FIRST_HOUR + at
            wish = RATES.get(at, wish)
            hours = RESTARTS.get(at, dict)(hours)
            # What was drawn after the budget was gone waits, and the next day's number is smaller by it.
            rate = allowance(wish, None, backlog if at >= 24 else 0)
            many = int(TRAFFIC[at])
            here = slice(begin, begin + many)
            p[here] = self._probabilities(rate, hours, hour, many)
            hit[here] = lots[here] < p[here]
            drawn = int(hit[here].sum())
            if BUDGET_GONE_HOUR <= at < 24:
                backlog += drawn
            if many:
                hours[hour] = Hour(many, drawn)
            begin += many
        return Drawn(p, hit)

    def _probabilities(self, rate: float, hours: Mapping[int, Hour], hour: int, many: int) -> Floats:
        today = sum(hours[at].drawn for at in range(hour - hour % 24, hour) if at in hours)
        key = (rate, hour, today)
        if key not in self._known:
            self._known[key] = np.ones(many)
            if rate > 0:
                part, expected = of_hour(rate, hours, hour)
                self._known[key] = np.minimum(1.0, part / np.maximum(expected, np.arange(many) + 1))
        return self._known[key]


def test_the_simulation_draws_as_the_service_does_post_by_post() -> None:
    lots = np.random.default_rng(0).random(POSTS)
    drawn = Sampler().draw(lots)
    hours: dict[int, Hour] = {}
    rate, backlog = 0.0, 0
    for post, at in enumerate(HOUR_OF.tolist()):
        hour = FIRST_HOUR + at
        rate = allowance(RATES[max(begin for begin in RATES if begin <= at)], None, backlog if at >= 24 else 0)
        p = probability(rate, hours, hour)
        hit = bool(lots[post] < p)
        assert (p, hit) == (drawn.p[post], drawn.hit[post])
        before = hours.get(hour, Hour())
        hours[hour] = Hour(before.seen + 1, before.drawn + hit)
        backlog += hit and BUDGET_GONE_HOUR <= at < 24


# ---- what is true, and what is estimated of it -----------------------------------------------------------------------

AUTHORS = 4_000
LEANING = 0.3
"""Share of an average author's posts that are civic at a quiet time of day."""
EVENT = np.where(HOUR_OF % 24 >= 12, 0.4, 0.05)
"""Share of posts that are civic whatever their author: the hours in which few are drawn differ from the others."""
CIVIC = float(np.mean(EVENT + (1 - EVENT) * LEANING))
EXPECTED = {"civic": CIVIC * (1 - DEAD_SHARE), "not": (1 - CIVIC) * (1 - DEAD_SHARE), "unlabelled": DEAD_SHARE}
"""Of any such two days: the truth about the population."""


class World(NamedTuple):
    author: Ints
    values: dict[str, Bools]


def _world(rng: np.random.Generator) -> World:
    """Two days' posts: authors differ in how much they write and in how often they are civic."""
    activity = rng.pareto(1.5, AUTHORS) + 1
    author = np.searchsorted(np.cumsum(activity) / activity.sum(), rng.random(POSTS))
    own = rng.beta(5 * LEANING, 5 * (1 - LEANING), AUTHORS + 1)[author]
    civic = rng.random(POSTS) < EVENT + (1 - EVENT) * own
    dead = rng.random(POSTS) < DEAD_SHARE  # asked three times in vain, when drawn
    return World(author, {"civic": civic & ~dead, "not": ~civic & ~dead, "unlabelled": dead})


def _estimates(world: World, drawn: Drawn, *, by_author: bool) -> dict[str, Share]:
    hit = drawn.hit
    authors = world.author[hit].astype(str).tolist()
    weights = (1 / drawn.p[hit]).tolist()
    return {
        name: measure.weighted_share(of[hit].tolist(), weights, authors, authors if by_author else None)
        for name, of in world.values.items()
    }


@pytest.mark.parametrize(
    ("unit", "repeats", "tolerance"),
    [
        ("post", 120, 0.04),
        ("author", 200, 0.045),
        pytest.param("post", 1000, 0.02, marks=pytest.mark.long),
        pytest.param("author", 300, 0.035, marks=pytest.mark.long),
    ],
)
def test_the_intervals_hold_the_truth_whatever_traffic_rate_and_budget_do(
    unit: str, repeats: int, tolerance: float
) -> None:
    sampler, held = (
        Sampler(),
        dict.fromkeys([(name, kind) for name in EXPECTED for kind in ("collected", "population")], 0),
    )
    errors, unweighted = dict.fromkeys(EXPECTED, 0.0), 0.0
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        world = _world(rng)
        lots = rng.random(AUTHORS + 1)[world.author] if unit == "author" else rng.random(POSTS)
        drawn = sampler.draw(lots)
        for name, share in _estimates(world, drawn, by_author=unit == "author").items():
            of = world.values[name]
            assert share.collected.value is not None
            truth = float(of.mean())  # of the collected posts of this very repeat
            held[name, "collected"] += share.collected.low <= truth <= share.collected.high
            held[name, "population"] += share.population.low <= EXPECTED[name] <= share.population.high
            errors[name] += (share.collected.value - truth) / repeats
            unweighted += (name == "civic") * (float(of[drawn.hit].mean()) - truth) / repeats
    coverage = {key: n / repeats for key, n in held.items()}
    assert all(abs(one - 0.95) <= tolerance for one in coverage.values()), coverage
    assert all(abs(error) < 0.005 for error in errors.values()), errors
    assert unweighted < -0.02  # so that it is the weights that make it right


# ---- how many are drawn, and when ------------------------------------------------------------------------------------


def _day(rate: float, traffic: Ints, days: int, rng: np.random.Generator) -> Ints:
    """Posts drawn in each hour of the last day."""
    hours: dict[int, Hour] = {}
    for at in range(24 * days):
        hour = FIRST_HOUR + at
        for _ in range(int(traffic[at % 24])):
            before = hours.get(hour, Hour())
            hit = rng.random() < probability(rate, hours, hour)
            hours[hour] = Hour(before.seen + 1, before.drawn + hit)
    return np.array([hours[FIRST_HOUR + 24 * (days - 1) + at].drawn for at in range(24)])


@pytest.mark.parametrize("rate", [500, 1000, 3000])
def test_the_days_number_is_near_the_wish_and_spread_over_all_hours(rate: int) -> None:
    drawn = _day(rate, TRAFFIC[:24], 2, np.random.default_rng(rate))
    assert abs(drawn.sum() - rate) < 0.1 * rate + 3 * rate**0.5
    even = rate / 24
    assert drawn.min() > even / 4
    assert drawn.max() < even * 2.5


def test_the_first_day_keeps_to_its_number_too_though_it_knows_no_traffic() -> None:
    drawn = _day(1000, TRAFFIC[:24], 1, np.random.default_rng(0))
    assert 900 < drawn.sum() < 1300
    assert drawn[:12].sum() < 800


def test_a_wish_of_none_and_a_wish_of_more_than_there_is_draw_all() -> None:
    assert probability(0, {}, FIRST_HOUR) == 1
    assert _day(100_000, TRAFFIC[:24], 1, np.random.default_rng(0)).sum() == TRAFFIC[:24].sum()


def test_no_hour_is_drawn_from_with_less_than_a_quarter_of_an_even_share() -> None:
    """However many were drawn before: what can never be drawn has no weight, so the day would have no estimate."""
    hours = {FIRST_HOUR + at: Hour(100, 100) for at in range(20)}
    assert probability(240, hours, FIRST_HOUR + 20) == 240 / 24 / 4 / 100


def test_a_state_that_went_through_a_restart_gives_the_same_probabilities() -> None:
    hours = {FIRST_HOUR + at: Hour(100 + at, at) for at in range(30)}
    for kept in (_through_json(hours), _through_sqlite(hours)):
        assert kept == hours
        assert probability(500, kept, FIRST_HOUR + 30) == probability(500, hours, FIRST_HOUR + 30)


def test_what_waits_and_what_can_be_paid_lower_the_days_number_but_never_to_nothing() -> None:
    assert allowance(1000, None, 0) == 1000
    assert allowance(1000, 400.0, 100) == 300
    assert allowance(1000, None, 5000) == 250
    assert allowance(0, 400.0, 0) == 400
    assert allowance(0, None, 10**6) == 0  # all


# ---- lots ------------------------------------------------------------------------------------------------------------


def _lot(key: bytes, units: list[str], p: float) -> set[str]:
    return {unit for unit in units if is_drawn(key, unit, p)}


UNITS = [f"at://did:plc:{i}/app.bsky.feed.post/{i}" for i in range(20_000)]


def test_the_same_key_draws_the_same_lot_and_another_key_another() -> None:
    one, other = _lot(b"k" * 32, UNITS, 0.1), _lot(b"l" * 32, UNITS, 0.1)
    assert one == _lot(b"k" * 32, UNITS, 0.1)
    # 2,000 +- 3 * 42 each, of which a tenth is in both by chance
    assert abs(len(one) - 2000) < 130
    assert abs(len(other) - 2000) < 130
    assert 140 < len(one & other) < 260


def test_a_greater_probability_draws_all_that_a_smaller_one_draws() -> None:
    small, large = _lot(b"k" * 32, UNITS, 0.05), _lot(b"k" * 32, UNITS, 0.2)
    assert small < large
    assert _lot(b"k" * 32, UNITS, 1.0) == set(UNITS)
    assert not _lot(b"k" * 32, UNITS, 0.0)


def test_posts_of_one_author_share_a_lot_when_the_unit_is_the_author() -> None:
    authors = [f"did:plc:{i % 500}" for i in range(5000)]
    hit = [is_drawn(b"k" * 32, author, 0.3) for author in authors]
    drawn = {author for author, one in zip(authors, hit, strict=True) if one}
    assert all(one == (author in drawn) for author, one in zip(authors, hit, strict=True))
    assert 110 < len(drawn) < 190
