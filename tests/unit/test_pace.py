"""The pace at which a server is asked: never above a limit in any minute of the server's, and hardly below it."""

from bisect import bisect_left
from dataclasses import dataclass
from email.utils import formatdate
from itertools import accumulate

import pytest
from hypothesis import given, strategies as st

from civicsky.pace import DAY, LATE, Call, Pace, Unit, pace, retry_after, seconds
from support.tried import tried

START = 1_800_000_000.0
NONE: dict[Unit, int | None] = {"requests": None, "tokens": None}
NOTHING: dict[Unit, int] = {"requests": 0, "tokens": 0}


def a_pace(now: float = START, *, rpm: int | None = None, tpm: int | None = None) -> Pace:
    return pace({"requests": rpm, "tokens": tpm}, NONE, NOTHING, now)


@dataclass
class Log:
    """What a server wrote down: when each request came, and what it cost."""

    at: list[float]
    tokens: list[int]

    def most(self, amounts: list[int]) -> int:
        """The most in any 60 s."""
        sums = [0, *accumulate(amounts)]
        return max(sums[bisect_left(self.at, at + 60)] - sums[n] for n, at in enumerate(self.at))


def ask(paced: Pace, tokens: int, now: float) -> float:
    """Wait until the pace lets a request through; gives the time."""
    for _ in range(1000):
        wait = paced.delay(tokens, now)
        if wait <= 0:
            return now
        now += wait + 1e-6
    raise AssertionError("the pace never lets a request through")


def played(paced: Pace, gaps: list[float], used: list[tuple[int, int]], late: list[float]) -> Log:
    """Callers who come after so many seconds each; (estimated, used) tokens; how late each comes to the server."""
    now, arrivals = START, []
    for gap, (estimate, tokens), lag in zip(gaps, used, late, strict=True):
        now = ask(paced, estimate, now + gap)
        paced.end(paced.begin(estimate, now), {}, now, tokens)
        arrivals.append((now + lag, tokens))
    arrivals.sort()
    return Log([at for at, _ in arrivals], [tokens for _, tokens in arrivals])


GAPS = st.one_of(st.just(0.0), st.floats(0, 0.5), st.floats(0, 90))


@tried(60)
@given(rpm=st.integers(1, 400), data=st.data())
def test_no_minute_of_the_servers_has_more_requests_than_allowed(rpm: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 3 * rpm + 5))
    pattern = data.draw(st.lists(GAPS, min_size=1, max_size=20))
    lags = data.draw(st.lists(st.floats(0, LATE - 0.01), min_size=1, max_size=20))
    gaps = [pattern[k % len(pattern)] for k in range(n)]
    late = [lags[k % len(lags)] for k in range(n)]
    log = played(a_pace(rpm=rpm), gaps, [(1, 1)] * n, late)
    assert log.most([1] * n) <= rpm


@tried(60)
@given(tpm=st.integers(1_000, 50_000), data=st.data())
def test_no_minute_of_the_servers_has_more_tokens_than_allowed(tpm: int, data: st.DataObject) -> None:
    used = data.draw(st.lists(st.tuples(st.integers(0, 700), st.integers(1, 300)), min_size=1, max_size=100))
    gaps = data.draw(st.lists(GAPS, min_size=len(used), max_size=len(used)))
    amounts = [(tokens + above, tokens) for above, tokens in used]  # an estimate is never too low here
    log = played(a_pace(tpm=tpm), gaps, amounts, [0.0] * len(used))
    assert log.most(log.tokens) <= tpm


@pytest.mark.parametrize("rpm", [6, 30, 600, 6_000])
def test_callers_who_always_wait_get_at_least_95_percent_of_the_requests(rpm: int) -> None:
    paced, now, n = a_pace(rpm=rpm), START, 0
    while now < START + 600:
        now = ask(paced, 1, now)
        paced.end(paced.begin(1, now), {}, now)
        n += 1
    assert 0.95 * rpm * 10 <= n <= rpm * 10


TOKENS_AND_ABOVE = {"tokens": st.integers(1, 200), "above": st.integers(0, 400)}


@tried(15)
@given(**TOKENS_AND_ABOVE)
def test_callers_who_always_wait_get_at_least_95_percent_of_the_tokens(tokens: int, above: int) -> None:
    all_tokens_are_used(tokens, above)


@pytest.mark.long
@tried(100)
@given(**TOKENS_AND_ABOVE)
def test_callers_who_always_wait_get_at_least_95_percent_of_the_tokens_whatever_they_take(
    tokens: int, above: int
) -> None:
    all_tokens_are_used(tokens, above)


def all_tokens_are_used(tokens: int, above: int) -> None:
    tpm, paced, now, n = 20_000, a_pace(tpm=20_000), START, 0
    while now < START + 300:
        now = ask(paced, tokens + above, now)
        paced.end(paced.begin(tokens + above, now), {}, now, tokens)
        n += tokens
    assert 0.95 * tpm * 5 <= n <= tpm * 5 + tokens


def test_two_thousand_posts_at_six_thousand_a_minute_take_hardly_more_than_a_third_of_a_minute() -> None:
    log = played(a_pace(rpm=6_000), [0.0] * 2_000, [(1, 1)] * 2_000, [0.0] * 2_000)
    took = log.at[-1] - START
    assert 20 <= took <= 20 / 0.95
    per_second = [sum(second <= at - START < second + 1 for at in log.at) for second in range(20)]
    assert max(per_second) <= 101, "it is spread evenly, from the start"


def test_what_a_wait_cost_is_caught_up_on_but_never_more_than_a_second_of_it() -> None:
    paced = a_pace(rpm=600)
    now = START + 40
    at_once = 0
    while paced.delay(1, now) <= 0:
        paced.begin(1, now)
        at_once += 1
    assert 5 <= at_once <= 11


@tried(50)
@given(rpm=st.integers(1, 300), lives=st.lists(st.floats(0, 40), min_size=1, max_size=12))
def test_a_restart_gives_no_burst_anew(rpm: int, lives: list[float]) -> None:
    now, log = START, Log([], [])
    for life in lives:
        paced, until = a_pace(now, rpm=rpm), now + life
        while (at := ask(paced, 1, now)) <= until:
            now = at
            paced.begin(1, now)
            log.at.append(now)
        now = until
    assert not log.at or log.most([1] * len(log.at)) <= rpm


@tried(60)
@given(rpm=st.integers(1, 300), data=st.data())
def test_what_waited_elsewhere_after_its_turn_makes_no_minute_fuller(rpm: int, data: st.DataObject) -> None:
    """All that waited is sent at once then, as far as that may be, and the rest takes new turns."""
    paced, now, log = a_pace(rpm=rpm), START, Log([], [])
    for _ in range(data.draw(st.integers(1, 6), "times")):
        held: list[Call] = []
        for _ in range(data.draw(st.integers(1, 12), "together")):
            now = ask(paced, 1, now)
            held.append(paced.begin(1, now))
        now += data.draw(st.floats(0, 90), "seconds away")
        for call in held:
            while not paced.recount(call, now):
                paced.withdraw(call)
                paced.end(call, {}, now)
                now = ask(paced, 1, now)
                call = paced.begin(1, now)  # noqa: PLW2901  (its next turn)
            log.at.append(now)
            paced.end(call, {}, now)
    assert log.most([1] * len(log.at)) <= rpm


def test_what_was_never_sent_takes_nothing_from_the_minute_nor_the_day_nor_what_a_server_says_is_left() -> None:
    paced = pace({"requests": None, "tokens": 100}, {"requests": 2, "tokens": 100}, NOTHING, START)
    first = paced.begin(10, START)
    paced.end(first, told(1, "60s"), START, 10)
    for n in range(50):
        now = START + 10 + 10 * n
        assert paced.delay(90, now) == 0
        call = paced.begin(90, now)
        paced.withdraw(call)
        paced.end(call, {}, now)


def test_a_request_above_the_limit_waits_for_the_whole_minute_and_goes_alone() -> None:
    paced = a_pace(tpm=1_000)
    first = ask(paced, 5_000, START)
    paced.begin(5_000, first)
    assert ask(paced, 5_000, first) >= first + 60


def test_a_day_begins_with_what_was_used_of_it_and_ends_at_midnight() -> None:
    now = START // DAY * DAY + DAY / 2
    paced = pace(NONE, {"requests": 10, "tokens": 1_000}, {"requests": 8, "tokens": 100}, now)
    paced.end(paced.begin(100, now), {}, now, 50)
    assert paced.delay(100, now) == 0
    paced.begin(100, now)
    assert paced.delay(1, now) == pytest.approx(DAY / 2)
    assert paced.delay(1, now + DAY / 2 + 1) == 0


def test_tokens_of_a_day_are_corrected_after_the_call() -> None:
    paced = pace(NONE, {"requests": None, "tokens": 1_000}, NOTHING, START)
    call = paced.begin(900, START)
    assert paced.delay(200, START) > 0
    paced.end(call, {}, START, 100)
    assert paced.delay(200, START) == 0


# ---- what a server tells ---------------------------------------------------------------------------------------------


def told(left: float, reset: str, limit: int | None = None, unit: Unit = "requests") -> dict[str, str]:
    own = {f"x-ratelimit-remaining-{unit}": str(left), f"x-ratelimit-reset-{unit}": reset}
    return own | ({f"x-ratelimit-limit-{unit}": str(limit)} if limit else {})


def begun(paced: Pace, now: float, tokens: int = 10) -> int:
    """How many requests can be begun at once, without an answer (at most 100)."""
    n = 0
    while n < 100 and paced.delay(tokens, now) <= 0:
        paced.begin(tokens, now)
        n += 1
    return n


def test_no_more_are_under_way_than_the_server_says_are_left() -> None:
    paced = a_pace()
    first, other = paced.begin(10, START), paced.begin(10, START)
    paced.end(first, told(3, "10s"), START)
    assert begun(paced, START) == 2, "one of the three may be under way already"
    assert paced.delay(10, START) == pytest.approx(10)
    paced.end(other, {}, START + 1)
    assert begun(paced, START + 1) == 0, "an answer without headers frees nothing"
    assert begun(paced, START + 10.1) == 100


def test_tokens_that_are_left_are_kept_to() -> None:
    paced = a_pace()
    paced.end(paced.begin(100, START), told(250, "7.66s", unit="tokens"), START, 80)
    assert begun(paced, START, tokens=100) == 2
    assert paced.delay(100, START) == pytest.approx(7.66)


def test_an_answer_to_an_older_call_does_not_overrule_a_newer_one() -> None:
    paced = a_pace()
    old, new = paced.begin(10, START), paced.begin(10, START)
    paced.end(new, told(0, "10s"), START)
    paced.end(old, told(50, "10s"), START)
    assert begun(paced, START) == 0


def test_the_last_answer_tells_all_that_is_left() -> None:
    paced = a_pace()
    calls = [paced.begin(10, START) for _ in range(20)]
    for number, call in enumerate(calls):
        paced.end(call, told(30 - number, "60s"), START)
    assert begun(paced, START) == 11


def test_after_the_reset_there_is_no_more_than_the_limit() -> None:
    paced = a_pace()
    paced.end(paced.begin(10, START), told(0, "5s", limit=7), START)
    assert begun(paced, START + 4.9) == 0
    assert begun(paced, START + 5.1) == 7


def test_a_server_that_counts_below_nothing_is_not_believed() -> None:
    paced = a_pace()
    paced.end(paced.begin(10, START), told(-1, "60s"), START)
    paced.end(paced.begin(10, START), {"x-ratelimit-remaining-requests": "many"}, START)
    assert begun(paced, START) == 100


def test_headers_without_a_unit_are_of_requests() -> None:
    paced = a_pace()
    paced.end(paced.begin(10, START), {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(START + 9)}, START)
    assert paced.delay(10, START) == pytest.approx(9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6m0s", 360),
        ("1s", 1),
        ("20ms", 0.02),
        ("2.5s", 2.5),
        ("1h2m3.5s", 3723.5),
        ("2m59.56s", 179.56),
        ("1d", DAY),
        ("12", 12),
        ("0.25", 0.25),
        (" 7 ", 7),
        (str(START + 30), 30),
        (str((START + 30) * 1000), 30),
        (str(START - 30), 0),
        (formatdate(START + 90, usegmt=True), 90),
        (formatdate(START - 90, usegmt=True), 0),
        ("2027-01-15T08:00:10Z", 10),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("nan", None),
        ("1e9", None),
        ("9" * 60, None),
        ("s", None),
        ("5 apples", None),
        ("Fri, 99 Xyz 9999", None),
    ],
)
def test_spans_and_times_are_read_in_all_forms_that_servers_use(text: str, expected: float | None) -> None:
    found = seconds(text, START)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-3))
    assert retry_after({"retry-after": text}, START) == found


@given(st.text(max_size=80))
def test_no_text_of_a_server_breaks_it(text: str) -> None:
    found = seconds(text, START)
    assert found is None or found >= 0
    paced = a_pace()
    headers = {f"x-ratelimit-{what}-{unit}": text for what in ("limit", "remaining", "reset") for unit in NONE}
    paced.end(paced.begin(1, START), headers, START)
    assert 0 <= paced.delay(1, START) <= DAY
