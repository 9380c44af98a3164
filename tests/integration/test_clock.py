"""A machine's wrong clock is told once, by what the relay's handshake and events say; a replay is no wrong clock."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from civicsky.clock import skew_seconds
from support.clients import both_clients
from support.command import Ended, cursor, end_when, start
from support.led import Led, led_relay, now_moment

HOUR = 3600.0
QUICK: dict[str, Any] = {"worker__batch_seconds": 0.05, "source__backoff_max_seconds": 0.1}


def told(ended: Ended) -> list[tuple[str, str, int]]:
    """(event, evidence, whole minutes) of each line about the clock."""
    found = [json.loads(line) for line in ended.err.splitlines() if line.startswith("{")]
    return [(one["event"], one["by"], round(one["off_s"] / 60)) for one in found if one["event"].startswith("clock")]


def collected(folder: Path, relay: Led, *steps: Callable[[Led], None], **settings: Any) -> Ended:
    """Let the relay do these, each once the one before was committed, and end."""
    process = start("collect", "--relay", relay.url, "--data-dir", folder, **QUICK, **settings)
    left = list(steps)

    def is_done() -> bool:
        if cursor(folder) < relay.seq:
            return False
        if not left:
            return True
        left.pop(0)(relay)
        return False

    ended = end_when(process, is_done, "the steps")
    assert ended.code == 0, ended.err
    return ended


def events(ahead: float) -> Callable[[Led], None]:
    def send(relay: Led) -> None:
        for _ in range(5):
            relay.account("active", at=now_moment(-ahead))

    return send


def again(ahead: float) -> Callable[[Led], None]:
    """A new connection, with another date in its handshake."""

    def send(relay: Led) -> None:
        relay.clock_ahead = ahead
        relay.hang_up()
        relay.account("active", at=now_moment())

    return send


@pytest.mark.parametrize(("ahead", "client"), [(HOUR, "picows"), (-HOUR, "websockets")])
def test_a_clock_that_is_an_hour_off_the_relays_is_told_once_and_nothing_ends(
    ahead: float, client: str, tmp_path: Path
) -> None:
    with led_relay() as relay:
        relay.clock_ahead = ahead
        ended = collected(tmp_path, relay, events(ahead), again(ahead), again(ahead), again(0), source__client=client)
    first, (name, _, minutes) = told(ended)
    assert first == ("clock_off", "handshake", round(ahead / 60))
    assert (name, minutes) == ("clock_right", 0)


def test_a_replay_is_no_wrong_clock(tmp_path: Path) -> None:
    with led_relay() as relay:
        ended = collected(tmp_path, relay, events(-72 * HOUR), events(-HOUR), events(0))
    assert told(ended) == []


def test_events_of_the_future_are_told_once_and_when_they_are_over(tmp_path: Path) -> None:
    with led_relay() as relay:
        ended = collected(tmp_path, relay, events(0), events(HOUR), events(HOUR), events(-HOUR))
    assert told(ended) == [("clock_off", "event", 60), ("clock_right", "event", 0)]


@both_clients
def test_a_relay_that_sends_a_header_twice_ends_nothing(client: str, tmp_path: Path) -> None:
    with led_relay() as relay:
        relay.refusals = 3
        ended = collected(tmp_path, relay, events(0), source__client=client)
        assert relay.refusals == 0
    assert '"HTTP 503"' in ended.err


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d{1,9} [A-Z][a-z]{2} \d{1,9} \d{1,9}:\d\d:\d\d [+-]?\d{0,9}"))
def test_a_date_that_is_none_tells_nothing(text: str) -> None:
    assert isinstance(skew_seconds(text), float | None)
