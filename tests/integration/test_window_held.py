"""`source.window` with the installed command and a relay on the same clock: edges, restarts, hosts and limits."""

import asyncio
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support.clock import Clock, days, micros
from support.command import Ended, end_when, finish, is_up, query, until
from support.fake import asked, begin, compare, coverage, cursors, events
from support.fake_relay import FakeRelay
from support.led import balance_closes, counts

CLOSES, OPENS = micros("2026-05-05T03:30"), micros("2026-05-05T03:40")
NEARLY_ALL_DAY = {"source__window__from": "03:40", "source__window__to": "03:30", "source__window__zone": "UTC"}
"""Closed for ten minutes: three seconds on the tests' clock."""
START = "2026-05-05T03:02"
SOON = 150_000_000
"""Within which things are done, on that clock."""
HOURS = "SELECT opened, closes, resume, why FROM opening ORDER BY opened"


def collecting(folder: Path, relay: FakeRelay, clock: Clock, *args: Any, **settings: Any) -> "subprocess.Popen[str]":
    usual: dict[str, Any] = {**NEARLY_ALL_DAY, "clock": clock.told, "source__start": "live", "worker__batch_frames": 16,
             "journal__gap_seconds": 60}  # fmt: skip
    return begin(folder, relay, *args, **usual | settings)


async def ended(process: "subprocess.Popen[str]", condition: Callable[[], Any], what: str) -> Ended:
    done = await asyncio.to_thread(end_when, process, condition, what)
    assert done.code == 0, done.err
    return done


def held_since(folder: Path, at: int) -> bool:
    """Whether the event of some minutes later, by the events' clock, is in the journal."""
    return query(folder / "journal.db", "SELECT 1 FROM host WHERE event_at > ?", at + 180_000_000) != []


def held_of(folder: Path, begin_at: int, end_at: int) -> int:
    """Posts in the journal by when they happened."""
    sql = "SELECT count(*) FROM post WHERE event_at >= ? AND event_at < ?"
    return int(query(folder / "journal.db", sql, begin_at, end_at)[0][0])


async def test_live_nothing_is_held_while_closed_and_both_edges_are_in_the_ledger(tmp_path: Path) -> None:
    async with days(START) as (relay, clock):
        process = collecting(tmp_path, relay, clock, log__minute_seconds=0.1, log__burst=10_000)
        done = await ended(process, lambda: held_since(tmp_path, OPENS), "the second opening to be held")
        assert relay.hosts[0].cursors == [None, None], "neither the cursor nor the window's beginning is asked for"
    assert held_of(tmp_path, 0, CLOSES) > 20
    assert held_of(tmp_path, CLOSES + SOON, OPENS - SOON) == 0
    assert held_of(tmp_path, OPENS, 2**62) > 0
    ((cause, after_seq, from_at, until_at, until_seq),) = query(
        tmp_path / "journal.db", "SELECT cause, after_seq, from_at, until_at, until_seq FROM gap"
    )
    assert (cause, after_seq < until_seq) == ("window", True)
    assert CLOSES - SOON < from_at < CLOSES + SOON < OPENS - SOON < until_at
    assert query(tmp_path / "journal.db", "SELECT epoch, resume FROM held ORDER BY id") == [(1, "first"), (1, "gap")]
    assert query(tmp_path / "journal.db", "SELECT count(*) FROM recheck WHERE why = 'gap'") == [(1,)]
    yesterday, tomorrow = OPENS - 86_400_000_000, CLOSES + 86_400_000_000
    assert query(tmp_path / "journal.db", HOURS) == [(yesterday, CLOSES, "live", ""), (OPENS, tomorrow, "live", "")]
    ((posts, kept),) = query(tmp_path / "journal.db", "SELECT sum(posts), sum(kept) FROM opening")
    assert kept == counts(tmp_path, "post")["kept"]
    assert posts > kept
    told = [(line["event"], line["until"]) for line in lines(done)]
    assert told == [
        ("window_opened", "2026-05-05T03:30:00.000Z"),
        ("window_closed", "2026-05-05T03:40:00.000Z"),
        ("window_opened", "2026-05-06T03:30:00.000Z"),
    ]
    minutes = [(line["health"], line["why"]) for line in events(done, "minute")]
    assert ("ok", "window: closed until 2026-05-05T03:40:00.000Z") in minutes
    assert "bad" not in {health for health, _ in minutes}
    assert events(done, "source_down") == []
    assert balance_closes(tmp_path)


def lines(done: Ended) -> list[dict[str, Any]]:
    """What the log says of openings, in order."""
    found = [line for name in ("window_opened", "window_closed") for line in events(done, name)]
    return sorted(found, key=lambda line: str(line["timestamp"]))


@pytest.mark.parametrize(("mode", "resume"), [("exclusive", "in_time"), ("inclusive", "replayed")])
async def test_from_the_cursor_the_closed_hours_are_read_when_it_opens_and_nothing_is_missed(
    mode: str, resume: str, tmp_path: Path
) -> None:
    async with days(START, mode=mode) as (relay, clock):
        process = collecting(tmp_path, relay, clock, source__window__resume="cursor")
        done = await ended(process, lambda: held_since(tmp_path, OPENS), "the second opening to be held")
        first, (second,) = relay.hosts[0].cursors[0], asked(relay.hosts[0])
        told = relay.oracle(cursors=cursors(tmp_path, relay))
        closed_at = relay.world.event(relay.hosts[0].numbering.upto(second)).at
    assert first is None
    assert abs(closed_at - CLOSES) < SOON, "the cursor is where the first opening ended"
    assert told["lost"] == 0
    compare(tmp_path, told, least=50)
    assert held_of(tmp_path, CLOSES + SOON, OPENS - SOON) > 5
    assert query(tmp_path / "journal.db", "SELECT * FROM gap") == []
    assert query(tmp_path / "journal.db", "SELECT epoch, resume FROM held ORDER BY id") == [(1, "first"), (1, resume)]
    assert [row[2] for row in query(tmp_path / "journal.db", HOURS)] == ["cursor", "cursor"]
    assert len(events(done, "window_closed")) == 1
    found = await asyncio.to_thread(coverage, tmp_path)
    assert found["share_held"] == 1
    assert {row["resume"] for row in found["window"]["openings"]} == {"cursor"}


async def test_coverage_tells_what_was_held_of_the_windows_hours_and_of_the_whole_time(tmp_path: Path) -> None:
    async with days(START) as (relay, clock):
        process = collecting(tmp_path, relay, clock)
        await ended(process, lambda: held_since(tmp_path, OPENS), "the second opening to be held")
        found = await asyncio.to_thread(coverage, tmp_path)
    kinds = found["seconds"]
    assert set(kinds) <= {"held", "window", "not_collected"}
    assert kinds["window"] == (OPENS - CLOSES) / 1e6, "just the closed hours are called so, to the microsecond"
    assert found["share_held"] < 1
    window = found["window"]
    assert (window["from"], window["to"], window["zone"], window["resume"]) == ("03:40", "03:30", "UTC", "live")
    before, after = window["openings"]
    assert (before["closes"], after["opened"]) == ("2026-05-05T03:30:00.000Z", "2026-05-05T03:40:00.000Z")
    assert before["share_held"] > 0.9
    assert (before["why"], before["resume"]) == ("its hours were over", "live")
    assert before["posts"] >= before["kept"] > 20
    assert "·" in found["strip"]


async def test_a_restart_while_closed_resumes_live_when_it_opens(tmp_path: Path) -> None:
    async with days(START) as (relay, clock):
        process = collecting(tmp_path, relay, clock)
        await ended(process, lambda: clock.now_us() > CLOSES + 30_000_000, "the window to close")
        before = held_of(tmp_path, 0, CLOSES)
        process = collecting(tmp_path, relay, clock)
        done = await ended(process, lambda: held_since(tmp_path, OPENS), "the second opening to be held")
        assert relay.hosts[0].cursors == [None, None]
    assert before > 20
    assert query(tmp_path / "journal.db", "SELECT cause FROM gap") == [("window",)]
    assert held_of(tmp_path, CLOSES + SOON, OPENS - SOON) == 0
    assert [event["event"] for event in events(done, "window_opened")] == ["window_opened"]


async def test_a_restart_inside_an_opening_resumes_from_its_cursor(tmp_path: Path) -> None:
    async with days("2026-05-05T03:45") as (relay, clock):
        some = "SELECT 1 FROM opening WHERE posts > 5"
        await ended(collecting(tmp_path, relay, clock), lambda: query(tmp_path / "journal.db", some), "some posts")
        ((counted,),) = query(tmp_path / "journal.db", "SELECT posts FROM opening")
        then = clock.now_us()
        process = collecting(tmp_path, relay, clock)
        more = f"SELECT 1 FROM opening WHERE posts > {counted + 5}"
        await ended(process, lambda: held_since(tmp_path, then) and query(tmp_path / "journal.db", more), "it to go on")
        told = relay.oracle(cursors=cursors(tmp_path, relay))
        assert [cursor is None for cursor in relay.hosts[0].cursors] == [True, False]
    assert told["lost"] == 0
    compare(tmp_path, told, least=10)
    assert query(tmp_path / "journal.db", "SELECT * FROM gap") == []
    ((posts, opened),) = query(tmp_path / "journal.db", "SELECT posts, opened FROM opening")
    assert posts > counted + 5
    assert opened == OPENS


async def test_one_servers_wrong_clock_does_not_make_a_restart_take_an_opening_for_another(tmp_path: Path) -> None:
    """The last event before the restart says that it happened yesterday."""
    async with days("2026-05-05T03:45") as (relay, clock):
        some = "SELECT 1 FROM opening WHERE posts > 5"
        await ended(collecting(tmp_path, relay, clock), lambda: query(tmp_path / "journal.db", some), "some posts")
        with closing(sqlite3.connect(tmp_path / "journal.db")) as db, db:
            db.execute("UPDATE host SET event_at = ?", (OPENS - 86_400_000_000,))
        then = clock.now_us()
        await ended(collecting(tmp_path, relay, clock), lambda: held_since(tmp_path, then), "it to go on")
        assert [cursor is None for cursor in relay.hosts[0].cursors] == [True, False]
    assert query(tmp_path / "journal.db", "SELECT * FROM gap") == []


async def test_sigterm_while_closed_ends_at_once_and_nobody_was_asked(tmp_path: Path) -> None:
    async with days("2026-05-05T03:30", speed=1) as (relay, clock):
        process = collecting(tmp_path, relay, clock)
        await asyncio.to_thread(until, lambda: is_up(process.pid) and (tmp_path / "journal.db").exists(), "it to be up")
        process.send_signal(signal.SIGTERM)
        done = await asyncio.to_thread(finish, process)
        assert relay.hosts[0].connections == 0
    assert done.code == 0, done.err
    assert events(done, "stopping")[0]["why"] == "SIGTERM"


async def test_another_host_that_was_never_held_is_read_live_inside_an_opening(tmp_path: Path) -> None:
    async with days("2026-05-05T03:45", {"name": "down", "after": 200, "seconds": 600}, hosts=2) as (relay, clock):
        process = collecting(
            tmp_path, relay, clock, source__failover_attempts=1, source__connect_seconds=1, worker__batch_frames=4
        )
        first, second = relay.hosts
        await ended(
            process,
            lambda: query(tmp_path / "journal.db", "SELECT 1 FROM held WHERE host = ?", second.address),
            "the second host to be held",
        )
        assert first.cursors[0] is None
        assert second.cursors[0] is None, "not 0, which would bring hours that were not wanted"
        oldest = relay.world.event(1).at
    ((host, cause, after_seq, from_at, until_at),) = query(
        tmp_path / "journal.db", "SELECT host, cause, after_seq, from_at, until_at FROM gap"
    )
    assert (host, cause, after_seq) == (second.address, "window", None)
    assert oldest < from_at < until_at
    found = await asyncio.to_thread(coverage, tmp_path)
    assert [one["kind"] for one in found["stretches"]] == ["held", "not_collected", "held"], "its hours were open"
    assert query(tmp_path / "journal.db", "SELECT count(*) FROM recheck WHERE why = 'gap'") == [(1,)]
    assert query(tmp_path / "journal.db", "SELECT DISTINCT cursor IS NULL OR cursor > 0 FROM host") == [(1,)]


@pytest.mark.parametrize("resume", ["live", "cursor"])
async def test_a_limit_ends_its_opening_only_and_holds_on_after_a_restart(resume: str, tmp_path: Path) -> None:
    limits = {"source__window__max_kept": 5, "source__window__resume": resume}
    over = "limit of 5 posts kept in an opening"
    async with days("2026-05-05T03:10") as (relay, clock):
        process = collecting(tmp_path, relay, clock, **limits)
        done = await ended(
            process, lambda: query(tmp_path / "journal.db", "SELECT 1 FROM opening WHERE why <> ''"), "it"
        )
        assert events(done, "window_closed")[0]["why"] == over
        assert events(done, "stopping")[0]["why"] == "SIGTERM"
        before, connections = cursors(tmp_path, relay), relay.hosts[0].connections
        (first,) = query(tmp_path / "journal.db", "SELECT kept, why FROM opening")
        assert (5 <= first[0] < 9, first[1]) == (True, over), "a commit may hold several"
        process = collecting(tmp_path, relay, clock, **limits)
        await asyncio.to_thread(until, lambda: clock.now_us() > CLOSES, "its hours to be over")
        assert (cursors(tmp_path, relay), relay.hosts[0].connections) == (before, connections), "it stays closed"
        sql = "SELECT kept, why FROM opening ORDER BY opened"
        await ended(process, lambda: len(query(tmp_path / "journal.db", sql)) == 2, "the next opening")
        told = relay.oracle(cursors=cursors(tmp_path, relay))
        asked_for = relay.hosts[0].cursors
    assert query(tmp_path / "journal.db", sql)[0] == first
    assert query(tmp_path / "journal.db", sql)[1][0] < 9
    found = await asyncio.to_thread(coverage, tmp_path)
    if resume == "live":
        assert asked_for == [None] * len(asked_for)
        assert [one["kind"] for one in found["stretches"] if one["kind"] not in {"held", "not_collected"}] == [
            "limit", "window"
        ]  # fmt: skip
    else:
        assert asked_for[-1] == before[0], "what came behind the limit is asked for again"
        assert told["lost"] == 0
        compare(tmp_path, told, least=4)
    assert found["window"]["openings"][0]["why"] == over
    assert balance_closes(tmp_path)


async def test_a_limit_of_posts_seen_ends_the_opening_too(tmp_path: Path) -> None:
    async with days("2026-05-05T03:10") as (relay, clock):
        process = collecting(tmp_path, relay, clock, source__window__max_posts=7)
        await ended(
            process, lambda: query(tmp_path / "journal.db", "SELECT 1 FROM opening WHERE why <> ''"), "the limit"
        )
    ((posts, why, ended_at),) = query(tmp_path / "journal.db", "SELECT posts, why, ended_at FROM opening")
    assert (7 <= posts < 12, why) == (True, "limit of 7 posts in an opening"), "a commit may hold several"
    assert ended_at < CLOSES
    assert balance_closes(tmp_path)
