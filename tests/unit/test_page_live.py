"""What the page says of this moment."""

from pathlib import Path
from typing import Any, get_args

from civicsky.metrics import Metrics
from civicsky.page import live
from civicsky.page.facts import latency
from civicsky.page.live import RATED, STATES, Rates, Stage, State
from civicsky.page.reads import lots
from civicsky.settings import Gate, Settings

FINE: dict[str, Any] = {"reasons": [], "pending": [], "quiet": False, "window": ""}


def stages(
    metrics: Metrics, *, halves: str = "both", told: dict[str, Any] = FINE, rate: float = 1.0,
    gate: Path | None = None, **rates: float,
) -> dict[str, Stage]:  # fmt: skip
    settings = Settings(gate=Gate(file=gate))
    found = live.stages(metrics, settings, {**dict.fromkeys(RATED, rate), **rates}, told, halves)
    return {one.name: one for one in found}


def test_the_stages_are_those_of_the_architecture_in_its_order() -> None:
    assert list(stages(Metrics())) == ["source", "decode", "worker", "journal", "ledger", "queue", "label", "store"]
    assert set(STATES) == set(get_args(State))


def test_each_stage_says_what_it_is_in() -> None:
    metrics = Metrics(connected=True)
    assert {one.state for one in stages(metrics).values()} == {"flowing"}
    assert {one.state for one in stages(metrics, rate=0.0).values()} == {"idle"}
    metrics.waiting, metrics.unstored = 5, 5
    assert stages(metrics, rate=0.0)["label"].state == stages(metrics, rate=0.0)["store"].state == "behind"
    metrics.model_why, metrics.store_why = "HTTP 503", "away"
    assert stages(metrics)["label"][::3] == ("label", "HTTP 503")
    assert (stages(metrics)["label"].state, stages(metrics)["store"].state) == ("down", "down")
    metrics.model_parked = metrics.store_parked = "refused"
    assert (stages(metrics)["label"].state, stages(metrics)["store"].state) == ("parked", "parked")
    metrics.paused, metrics.journal_why = True, "full"
    assert stages(metrics)["journal"][::3] == ("journal", "full")
    metrics.connected, metrics.relay_why = False, "refused"
    assert (stages(metrics)["source"].state, stages(metrics)["source"].why) == ("down", "refused")
    metrics.window_why = "closed until 9"
    assert (stages(metrics)["source"].state, stages(metrics)["source"].why) == ("closed", "closed until 9")


def test_what_a_gate_keeps_back_stands_beside_what_is_labelled_and_is_something_that_passes() -> None:
    metrics = Metrics(connected=True, waiting=5)
    metrics.add("gated", 7)
    found = stages(metrics, gate=Path("gate.json"), rate=0.0, gated=2.0)
    assert ("kept back by the gate", 7, "") in found["label"].figures
    assert {found[name].state for name in ("ledger", "queue", "label")} == {"flowing"}
    assert list(found) == list(stages(metrics)), "it is no stage more"
    assert not any("gate" in figure[0] for one in stages(metrics).values() for figure in one.figures)


def test_the_other_half_is_elsewhere_and_words_of_others_are_harmless() -> None:
    metrics = Metrics(connected=True, model_why="\x1b[2J" + "x" * 1000)
    alone = stages(metrics, halves="collect")
    assert {name for name, one in alone.items() if one.state == "elsewhere"} == {"ledger", "queue", "label", "store"}
    assert stages(metrics, halves="label")["source"].state == "elsewhere"
    assert "\x1b" not in stages(metrics)["label"].why
    assert len(stages(metrics)["label"].why) <= 200


def test_rates_are_over_the_last_seconds_and_not_known_at_first() -> None:
    rates, counts = Rates(), dict.fromkeys(RATED, 0)
    assert set(rates.note(0.0, counts).values()) == {None}
    assert rates.note(2.0, {**counts, "frames": 10})["frames"] == 5.0
    for second in range(4, 60, 2):
        last = rates.note(float(second), {**counts, "frames": 10 + 100 * (second - 2)})
    assert last["frames"] == 100.0
    rates.clear()
    assert rates.note(99.0, counts)["frames"] is None


def test_posts_are_drawn_by_lot_evenly_and_nearly_the_same_a_moment_later() -> None:
    assert lots(5, 9, 10) == [5, 6, 7, 8]
    assert lots(9, 9, 10) == []
    drawn = lots(1_000, 1_000_000, 2_000)
    assert 1_000 <= len(drawn) <= 2_000
    assert drawn == sorted(set(drawn))
    assert all(1_000 <= number < 1_000_000 for number in drawn)
    halves = sum(number < 500_000 for number in drawn)
    assert abs(halves / len(drawn) - 0.5) < 0.02
    assert abs(sum(number % 2 for number in drawn) / len(drawn) - 0.5) < 0.05
    later = lots(3_000, 1_002_000, 2_000)
    assert len(set(drawn) & set(later)) > 0.99 * len(drawn)


def test_latency_has_its_n() -> None:
    assert latency([]) == {"n": 0, "median": None, "p90": None}
    assert latency([2.0]) == {"n": 1, "median": 2.0, "p90": 2.0}
    assert latency([float(n) for n in range(1, 102)]) == {"n": 101, "median": 51.0, "p90": 91.0}
