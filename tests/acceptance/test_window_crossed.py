"""A service that holds only hours of the day crosses their edges and changes of summer time; the ledger shows it."""

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

from support.clock import Clock, days, micros
from support.command import Ended, end_when, query, run
from support.fake import begin, coverage, events
from support.fake_relay import FakeRelay
from support.led import balance_closes, counts

SPEED = 300
SOON = 300_000_000
"""Within which things are done, on the tests' clock."""
OPENINGS = "SELECT opened, closes, resume, why FROM opening ORDER BY opened"


def at(text: str) -> str:
    """A time of a day of 2026 as it is shown."""
    return f"2026-{text}:00.000Z"


def us(text: str) -> int:
    return micros(f"2026-{text}")


def collecting(
    folder: Path, relay: FakeRelay, clock: Clock, hours: tuple[str, str], **settings: Any
) -> "subprocess.Popen[str]":
    """The installed command, with a window in Chicago."""
    window: dict[str, Any] = {
        "source__window__from": hours[0], "source__window__to": hours[1], "source__window__zone": "America/Chicago",
        "source__start": "live", "clock": clock.told, "worker__batch_frames": 16,
    }  # fmt: skip
    return begin(folder, relay, **window | settings)


async def until_shown(process: "subprocess.Popen[str]", clock: Clock, text: str) -> Ended:
    """Let it run until the clock shows a time, then stop it."""
    ended = await asyncio.to_thread(end_when, process, lambda: clock.now_us() > us(text), f"the clock to show {text}")
    assert ended.code == 0, ended.err
    return ended


def edges(ended: Ended) -> list[tuple[str, str]]:
    """Each opening and closing that the log tells of, in order, with what it says is next."""
    found = [line for name in ("window_opened", "window_closed") for line in events(ended, name)]
    return [(line["event"], line["until"]) for line in sorted(found, key=lambda line: str(line["timestamp"]))]


def posts_between(folder: Path, begin_at: str, end_at: str) -> int:
    sql = "SELECT count(*) FROM post WHERE event_at >= ? AND event_at < ?"
    return int(query(folder / "journal.db", sql, us(begin_at), us(end_at))[0][0])


async def test_at_the_end_of_summer_time_hours_that_come_twice_are_held_twice(tmp_path: Path) -> None:
    async with days("2026-11-01T05:20", speed=SPEED) as (relay, clock):
        ended = await until_shown(collecting(tmp_path, relay, clock, ("01:00", "01:40")), clock, "11-01T07:46")
        assert relay.hosts[0].cursors == [None, None]
    assert edges(ended) == [
        ("window_closed", at("11-01T06:00")),
        ("window_opened", at("11-01T06:40")),
        ("window_closed", at("11-01T07:00")),  # the clock shows 01:40, and in twenty minutes 01:00 again
        ("window_opened", at("11-01T07:40")),
        ("window_closed", at("11-02T07:00")),  # by now an hour later than in summer
    ]
    assert query(tmp_path / "journal.db", OPENINGS) == [
        (us("11-01T06:00"), us("11-01T06:40"), "live", ""),
        (us("11-01T07:00"), us("11-01T07:40"), "live", ""),
    ]
    assert posts_between(tmp_path, "11-01T06:00", "11-01T06:40") > 20
    assert posts_between(tmp_path, "11-01T06:45", "11-01T06:59") == 0
    assert posts_between(tmp_path, "11-01T07:00", "11-01T07:40") > 20
    ((cause, from_at, until_at),) = query(tmp_path / "journal.db", "SELECT cause, from_at, until_at FROM gap")
    assert cause == "window"
    assert abs(from_at - us("11-01T06:40")) < SOON
    assert abs(until_at - us("11-01T07:00")) < SOON
    assert query(tmp_path / "journal.db", "SELECT resume FROM held ORDER BY id") == [("first",), ("gap",)]
    found = await asyncio.to_thread(coverage, tmp_path)
    assert found["seconds"]["window"] == 1200, "the twenty minutes between, and no more"
    assert found["seconds"]["held"] < 2 * 2400 + 2 * SOON / 1e6, "closed hours are not reported as held"
    first, second = found["window"]["openings"]
    assert [one["opened"] for one in (first, second)] == [at("11-01T06:00"), at("11-01T07:00")]
    assert found["window"]["share_held"] > 0.85 > found["share_held"], "of its hours, and of the whole time"
    assert first["kept"] + second["kept"] == counts(tmp_path, "post")["kept"]
    assert balance_closes(tmp_path)
    shown = await asyncio.to_thread(run, "coverage", "--data-dir", tmp_path)
    assert f"opening          {first['opened']} to {first['closes']}  live  " in shown.out
    assert "window           01:00 to 01:40 America/Chicago, resume live: " in shown.out
    assert "gap  " not in shown.out
    told = await asyncio.to_thread(
        run, "status", "--json", "--data-dir", tmp_path, clock="2026-11-01T07:10:00Z*1"
    )  # fmt: skip
    window = json.loads(told.out)["window"]
    assert (window["open"], window["until"]) == (True, at("11-01T07:40"))


async def test_at_the_beginning_of_summer_time_hours_that_do_not_exist_are_not_held(tmp_path: Path) -> None:
    async with days("2026-03-08T06:50", speed=SPEED) as (relay, clock):
        ended = await until_shown(collecting(tmp_path, relay, clock, ("01:40", "02:30")), clock, "03-08T08:10")
        assert relay.hosts[0].cursors == [None]
    assert edges(ended) == [
        ("window_closed", at("03-08T07:40")),
        ("window_opened", at("03-08T08:00")),  # the clock goes from 02:00 to 03:00
        ("window_closed", at("03-09T06:40")),
    ]
    assert query(tmp_path / "journal.db", OPENINGS) == [(us("03-08T07:40"), us("03-08T08:00"), "live", "")]
    assert posts_between(tmp_path, "03-08T07:40", "03-08T08:00") > 10
    assert posts_between(tmp_path, "03-08T08:05", "03-09T00:00") == 0
    found = await asyncio.to_thread(coverage, tmp_path)
    (opening,) = found["window"]["openings"]
    assert (opening["seconds"] <= 1200, opening["why"]) == (True, "its hours were over")
    assert opening["share_held"] > 0.7


async def test_a_window_in_the_hour_that_is_missing_does_not_open_that_day(tmp_path: Path) -> None:
    async with days("2026-03-08T07:30", speed=3 * SPEED) as (relay, clock):
        ended = await until_shown(collecting(tmp_path, relay, clock, ("02:00", "03:00")), clock, "03-08T09:30")
        assert relay.hosts[0].connections == 0
    assert edges(ended) == [("window_closed", at("03-09T07:00"))]
    assert query(tmp_path / "journal.db", OPENINGS) == []


async def test_from_the_cursor_nothing_is_missed_over_the_end_of_summer_time(tmp_path: Path) -> None:
    async with days("2026-11-01T05:45", speed=SPEED) as (relay, clock):
        process = collecting(
            tmp_path, relay, clock, ("01:00", "01:40"), source__window__resume="cursor", journal__gap_seconds=60
        )
        await until_shown(process, clock, "11-01T07:30")
        first, second = relay.hosts[0].cursors
        assert second is not None
        last = relay.world.event(relay.hosts[0].numbering.upto(second))
    assert first is None
    assert abs(last.at - us("11-01T06:40")) < SOON
    assert posts_between(tmp_path, "11-01T06:45", "11-01T06:59") > 3, "what happened meanwhile was read afterwards"
    assert query(tmp_path / "journal.db", "SELECT * FROM gap") == []
    assert query(tmp_path / "journal.db", "SELECT resume FROM held ORDER BY id") == [("first",), ("in_time",)]
    found = await asyncio.to_thread(coverage, tmp_path)
    assert found["share_held"] == 1
    assert [one["resume"] for one in found["window"]["openings"]] == ["cursor", "cursor"]
