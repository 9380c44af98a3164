import json
from math import nextafter

import pytest
import structlog

from civicsky import log
from civicsky.health import Health, Look, Pace, _tell
from civicsky.metrics import Metrics
from civicsky.model import now_us
from civicsky.settings import Health as Bounds, Log

BOUNDS = Bounds(
    relay_seconds=120,
    behind_seconds=60,
    lag_seconds=600,
    model_seconds=300,
    store_seconds=200,
    disk_seconds=30,
    quiet_seconds=60,
)


def health(*, collects: bool = True, labels: bool = True) -> tuple[Health, Metrics]:
    metrics = Metrics(connected=True)
    return Health(BOUNDS, metrics, collects=collects, labels=labels), metrics


def names(look: Look) -> list[str]:
    return [one.name for one in look.conditions]


def test_whoever_was_never_connected_is_not_ready_and_then_has_the_bound() -> None:
    one, facts = health()
    facts.connected = False
    first = one.look(0)
    assert (names(first), first.ready, first.over, first.passed) == (["relay_down"], False, (), ())
    assert [c.name for c in first.reasons] == ["relay_down"]
    assert [c.name for c in one.look(120).passed] == ["relay_down"]
    facts.connected, facts.news = True, 1
    one.look(0)
    assert one.look(1).ready
    facts.connected, facts.relay_why = False, "refused"
    assert one.look(2).ready
    assert one.look(121).ready
    passed = one.look(122)
    assert not passed.ready
    assert [(c.name, c.why, c.seconds, c.bound) for c in passed.passed] == [("relay_down", "refused", 120, 120)]
    assert one.look(123).passed == ()
    facts.connected = True
    over = one.look(124)
    assert over.ready
    assert [c.name for c in over.ended] == ["relay_down"]


def test_a_relay_that_comes_back_in_vain_again_and_again_is_down_all_the_while() -> None:
    """It answers a ping, so it counts as connected, and hangs up before it sends anything."""
    one, facts = health()
    told = []
    for at in range(1000):
        facts.connected = at % 45 >= 30
        look = one.look(at)
        told += [("passed", at)] * len(look.passed) + [("ended", at)] * bool(at >= 120 and look.ended)
    assert told == [("passed", 120)]
    facts.connected, facts.news = True, 1
    over = one.look(1000)
    assert (over.ready, [c.name for c in over.ended]) == (True, ["relay_down"])
    facts.connected = False
    assert [c.seconds for c in one.look(1001).conditions] == [0], "what it brought counts"


def test_a_relay_that_stays_without_a_word_is_quiet_and_no_longer_down() -> None:
    one, facts = health()
    for at in range(150):
        facts.connected = at % 45 >= 30
        one.look(at)
    facts.connected = True
    assert next(at for at in range(150, 400) if one.look(at).ready) == 150 + BOUNDS.quiet_seconds
    facts.connected = False
    assert [c.seconds for c in one.look(400).conditions] == [0]


def test_whoever_may_have_a_wrong_clock_is_told_so_where_that_looks_like_being_behind() -> None:
    one, facts = health()
    facts.behind_seconds = 3600
    facts.clock_doubts.add("handshake")
    (behind,) = one.look(0).conditions
    assert behind.why == "3,600 s behind the stream, unless it is this machine's clock that is off"


@pytest.mark.parametrize(
    ("fact", "name", "bound"),
    [
        ("model_why", "model_down", 300),
        ("context_why", "context_down", 300),
        ("store_why", "store_down", 200),
        ("journal_why", "disk_full", 30),
    ],
)
def test_each_condition_begins_passes_its_bound_and_ends(fact: str, name: str, bound: int) -> None:
    one, facts = health()
    assert names(one.look(1000)) == []
    setattr(facts, fact, "away")
    began = one.look(1001)
    assert [c.name for c in began.began] == [name]
    assert began.ready
    setattr(facts, fact, "away for another reason")
    still = one.look(1000 + bound)
    assert (still.began, still.ready) == ((), True)
    assert not one.look(1001 + bound).ready
    setattr(facts, fact, "")
    over = one.look(1002 + bound)
    assert over.ready
    assert [c.name for c in over.ended] == [name]
    setattr(facts, fact, "away again")
    assert one.look(1003 + bound).ready  # it begins anew


def test_a_half_is_not_judged_by_what_the_other_half_needs() -> None:
    collects, facts = health(labels=False)
    facts.model_why = facts.store_why = facts.context_why = "away"
    assert names(collects.look(0)) == []
    labels, facts = health(collects=False)
    facts.connected, facts.relay_why, facts.behind_seconds = False, "away", 9999
    assert names(labels.look(0)) == []


def test_a_quiet_relay_is_told_and_is_nothing_wrong() -> None:
    one, facts = health()
    facts.settle(0, now_us())
    facts.counts["frames"] = 5
    assert not one.look(0).quiet
    assert not one.look(59).quiet
    for at in (60, 600, 600_000):
        look = one.look(at)
        assert (look.quiet, look.conditions, look.ready) == (True, (), True)
    facts.add("frames")
    assert not one.look(600_001).quiet


def test_a_quiet_relay_that_goes_away_was_not_heard(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(Log(format="json"))
    metrics = Metrics(connected=True, host="wss://relay")
    _tell(Look(), Look(quiet=True), metrics)
    metrics.connected = False
    _tell(Look(quiet=True), Look(), metrics)
    metrics.connected = True
    _tell(Look(quiet=True), Look(), metrics)
    told = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    structlog.reset_defaults()
    assert told == ["source_quiet", "source_heard"]


@pytest.mark.parametrize("fact", ["not connected", "paused"])
def test_whoever_reads_nothing_cannot_tell_that_it_is_quiet(fact: str) -> None:
    one, facts = health()
    facts.connected, facts.paused = fact != "not connected", fact == "paused"
    one.look(0)
    assert not one.look(1000).quiet
    facts.connected, facts.paused = True, False
    assert not one.look(1001).quiet
    assert one.look(1060).quiet


def test_a_closed_window_is_nothing_wrong() -> None:
    one, facts = health()
    facts.connected, facts.window_why, facts.behind_seconds = False, "window: closed until tomorrow", 7200
    assert one.look(0).conditions == ()
    assert one.look(10_000).ready


def test_behind_is_how_old_the_last_commit_was_and_unready_from_its_own_bound_on() -> None:
    one, facts = health()
    facts.behind_seconds = 59
    assert names(one.look(0)) == []
    facts.behind_seconds = 300
    look = one.look(1)
    assert [(c.name, c.seconds, c.bound, c.over) for c in look.conditions] == [("behind", 300, 600, False)]
    facts.behind_seconds = 600
    assert not one.look(2).ready


def test_silence_does_not_put_us_behind_but_frames_that_wait_here_do() -> None:
    one, facts = health()
    facts.settle(0, now_us())
    assert one.look(facts.moved_at + 5000).conditions == ()
    facts.take()
    waiting = one.look(facts.moved_at + 5000)
    assert names(waiting) == ["behind"]
    assert waiting.conditions[0].seconds == pytest.approx(5000, abs=1)
    assert not waiting.ready
    facts.settle(1, now_us())
    assert one.look(facts.moved_at + 5000).conditions == ()


def test_a_quiet_relay_that_gave_all_it_had_leaves_us_ready_however_old_that_was() -> None:
    one, facts = health()
    one.look(0)
    facts.take()
    facts.settle(1, now_us())
    facts.behind_seconds = 4 * 86400
    assert [c.name for c in one.look(1).over] == ["behind"]
    assert not one.look(60).ready
    look = one.look(61)
    assert (look.quiet, look.ready, [c.name for c in look.ended]) == (True, True, ["behind"])


def test_catching_up_is_told_once_and_one_late_frame_is_no_change() -> None:
    one, facts = health()
    told = []
    for at, lag in enumerate([100, 500, 480, 400, 390, 200, 61, 59, 61, 40, 31, 29, 40, 59, 61, 10]):
        facts.behind_seconds = lag
        look = one.look(at)
        told += ["began"] * len(look.began) + ["falling"] * look.falling + ["ended"] * len(look.ended)
    assert told == ["began", "falling", "ended", "began", "ended"]


def test_how_fast_we_come_nearer_is_told_in_words_once_it_can_be() -> None:
    one, facts = health()
    paces = []
    for at in range(100):
        facts.behind_seconds = 31 * 3600 - 45 * at
        paces.append(one.look(at).pace)
    assert paces[:10] == [None] * 10, "too short a time tells nothing"
    assert {round(pace.speed, 6) for pace in paces[10:] if pace} == {46.0}
    assert str(paces[10]) == "31 h behind, 46x real time, done in 41 min"
    facts.behind_seconds = 32 * 3600
    assert one.look(100).pace is None, "we fall back"
    facts.behind_seconds = 0
    assert one.look(101).pace is None
    facts.behind_seconds = 3600
    assert one.look(111).pace is None, "what was before is another matter"


def test_a_lag_that_is_less_by_a_hair_is_none_that_goes_down() -> None:
    one, facts = health()
    facts.behind_seconds = 70
    one.look(0)
    facts.behind_seconds = 31
    one.look(1)
    facts.behind_seconds = nextafter(31, 0)
    facts.counts["frames"] += 1
    assert one.look(61).pace is None


@pytest.mark.parametrize(
    ("behind", "speed", "told"),
    [
        (90, 2.0, "90 s behind, 2x real time, done in 90 s"),
        (3 * 86_400, 1.5, "3 d behind, 1.5x real time, done in 6 d"),
    ],
)
def test_times_are_told_in_the_largest_unit_that_has_two_of_them(behind: float, speed: float, told: str) -> None:
    assert str(Pace(behind, speed)) == told


def test_frames_in_hand_are_those_taken_and_not_settled() -> None:
    facts = Metrics()
    facts.take()
    began = facts.moved_at
    facts.take()
    assert (facts.in_hand, facts.counts["frames"], facts.moved_at) == (2, 2, began)
    then = now_us() - 5_000_000
    facts.settle(2, then)
    assert facts.in_hand == 0
    assert 5 <= facts.behind_seconds <= (now_us() - then) / 1e6
    facts.settle(0)
    assert facts.behind_seconds >= 5
