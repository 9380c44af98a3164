import subprocess
from pathlib import Path
from typing import get_args

import pytest

from civicsky.model import FrameOutcome
from civicsky.watch import scrape
from civicsky.watch.scrape import MEASURES, STALL_SECONDS, Stalls, exposition
from support.promtool import promtool


def lines(values: dict[str, scrape.Samples], stalls: Stalls | None = None) -> list[str]:
    """The samples of the text."""
    text = exposition(values, stalls or Stalls()).decode()
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_a_value_from_outside_makes_no_series_of_its_own() -> None:
    reasons = [f"{n}\n# HELP x y" for n in range(1000)]
    posts: dict[tuple[str, ...], float] = {("rejected", reason): 1.0 for reason in reasons}
    posts["kept", ""] = 7.0
    shown = [line for line in lines({"civicsky_posts_total": posts}) if line.startswith("civicsky_posts_total")]
    assert shown == [
        'civicsky_posts_total{outcome="rejected",reason="other"} 1000.0',
        'civicsky_posts_total{outcome="kept",reason=""} 7.0',
    ]


def test_every_label_has_its_values_or_comes_from_the_settings() -> None:
    for measure in MEASURES:
        for label, values in measure.labels.items():
            assert label in get_args(scrape.Label)
            assert bool(values) != (label in scrape.CONFIGURED), (measure.name, label)
            assert len(values) < 30


def test_what_has_no_value_is_left_out() -> None:
    assert not [line for line in lines({}) if "lag_seconds" in line]
    assert "civicsky_lag_seconds 3.0" in lines({"civicsky_lag_seconds": {(): 3.0}})


def test_names_of_tasks_and_models_cannot_break_out_of_their_quotes() -> None:
    shown = lines({"civicsky_labels_total": {('a"} 1\nb{c="\\',): 2.0}})
    assert 'civicsky_labels_total{task="a\\"} 1\\nb{c=\\"\\\\"} 2.0' in shown


def test_stalls_are_a_histogram_that_adds_up() -> None:
    stalls = Stalls()
    for late in (-0.1, 0.0, 0.01, 0.2, 3.0, 1000.0):
        stalls.note(late, now=0.0)
    shown = lines({}, stalls)
    assert 'civicsky_loop_stall_seconds_bucket{le="0.01"} 3.0' in shown
    assert 'civicsky_loop_stall_seconds_bucket{le="0.25"} 4.0' in shown
    assert 'civicsky_loop_stall_seconds_bucket{le="30.0"} 5.0' in shown
    assert 'civicsky_loop_stall_seconds_bucket{le="+Inf"} 6.0' in shown
    assert "civicsky_loop_stall_seconds_count 6.0" in shown
    assert "civicsky_loop_stall_seconds_sum 1003.21" in shown
    assert len([line for line in shown if "bucket" in line]) == len(STALL_SECONDS) + 1


def test_the_longest_stall_is_told_for_one_to_two_minutes() -> None:
    stalls = Stalls()
    stalls.note(9.0, now=119.0)
    assert stalls.longest(119.5) == 9.0
    assert stalls.longest(179.0) == 9.0
    stalls.note(2.0, now=179.5)
    assert stalls.longest(180.0) == 2.0
    assert stalls.longest(299.0) == 0.0


def test_promtool_finds_nothing_to_say_about_all_of_them(tmp_path: Path) -> None:
    values: dict[str, scrape.Samples] = {
        measure.name: {tuple((known or ("mine",))[0] for known in measure.labels.values()): 1.0} for measure in MEASURES
    }
    text = exposition(values, Stalls())
    for measure in MEASURES:
        assert f"# TYPE {measure.name} {measure.kind}\n".encode() in text
    ran = subprocess.run([promtool(), "check", "metrics"], input=text, capture_output=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")


@pytest.mark.parametrize("outcome", get_args(FrameOutcome))
def test_each_outcome_of_a_frame_is_shown_as_itself(outcome: str) -> None:
    assert f'civicsky_frames_total{{outcome="{outcome}"}} 1.0' in lines({"civicsky_frames_total": {(outcome,): 1.0}})
