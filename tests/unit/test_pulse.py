"""What holds work and stands still is named; whoever rests is never late."""

import asyncio

from hypothesis import given, strategies as st

from civicsky import pulse as pulses
from civicsky.metrics import Metrics
from civicsky.pulse import Pulse


def test_work_that_stands_still_beyond_its_own_limit_and_the_bound_is_named() -> None:
    pulse = Pulse(bound=10)
    with pulse.work("store", 5):
        pulse.turn(15)
        assert pulse.stuck() == ""
        pulse.turn(1)
        assert pulse.stuck() == "store stands still with work in hand, for 16 s"
    assert pulse.stuck() == ""


def test_a_part_that_is_done_begins_the_time_anew_also_from_far_below() -> None:
    pulse = Pulse(bound=10)

    async def below() -> None:
        pulses.moved()

    with pulse.work("label"):
        pulse.turn(9)
        asyncio.run(below())
        pulse.turn(9)
        assert pulse.stuck() == ""
        pulse.turn(2)
        assert pulse.stuck()
    pulses.moved()  # of nobody's work


def test_whoever_rests_is_never_late() -> None:
    pulse = Pulse(bound=10)
    with pulse.work("journal"):
        pulse.turn(1)
    pulse.turn(1_000_000)
    assert pulse.stuck() == ""


def test_of_several_that_stand_still_the_one_that_did_so_longest_is_named() -> None:
    pulse = Pulse(bound=10)
    with pulse.work("queue"):
        pulse.turn(1)
        with pulse.work("ledger"):
            pulse.turn(20)
            assert pulse.stuck().startswith("queue ")


def test_a_frame_in_hand_that_no_step_is_at_work_on_is_told() -> None:
    metrics = Metrics(pulse=Pulse(bound=10))
    metrics.take()
    metrics.pulse.turn(11)
    assert metrics.pulse.stuck().startswith("collect ")
    metrics.settle(1)
    metrics.pulse.turn(11)
    assert metrics.pulse.stuck() == "", "none is in hand"


def test_frames_wait_for_as_long_as_a_step_before_them_is_at_work_within_its_limits() -> None:
    metrics = Metrics(pulse=Pulse(bound=10))
    metrics.take()
    for _record in range(256):  # each hangs a worker for its whole time
        with metrics.pulse.work("worker", 30):
            metrics.pulse.turn(39)
            assert metrics.pulse.stuck() == ""
    with metrics.pulse.work("worker", 30):
        metrics.pulse.turn(41)
        assert metrics.pulse.stuck().startswith("worker ")


@given(st.lists(st.sampled_from(["take", "settle", "turn", "rest"]), max_size=60))
def test_a_flow_that_settles_what_it_takes_within_the_bound_is_never_stuck(steps: list[str]) -> None:
    metrics = Metrics(pulse=Pulse(bound=10))
    for step in steps:
        match step:
            case "take":
                metrics.take()
            case "turn":
                metrics.pulse.turn(5)
                metrics.settle(metrics.in_hand)
            case "settle" if metrics.in_hand:
                metrics.settle(1)
            case "rest" if not metrics.in_hand:
                metrics.pulse.turn(1000)
        assert metrics.pulse.stuck() == ""
