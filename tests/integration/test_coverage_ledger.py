"""No gap is silent: what the installed command writes down of a relay that leaves some, or seems to."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.frames import Frame, Opcode

from support import host as hosts
from support.clients import both_clients
from support.command import cursor, end_when, query, run
from support.fake import all_taken, asked, begin, collect, compare, coverage, cursors, events, playing
from support.frames import commit, post, rfc3339, scripted_relay
from support.led import NOW, balance_closes, led_relay
from support.misbehave import Knob

HELD = "SELECT epoch, resume FROM held ORDER BY id"
GAPS = "SELECT epoch, cause, after_seq, until_seq, from_at, until_at FROM gap ORDER BY id"


def at(seconds: float) -> str:
    return rfc3339(NOW - 40_000_000_000 + round(seconds * 1e6))


def a_post(seq: int, seconds: float) -> bytes:
    return commit(seq, [("create", f"3aaaaaaa{seq:05d}", post("A post in plain English"))], time=at(seconds))


# ---- gaps ------------------------------------------------------------------------------------------------------------


async def test_a_gap_that_nobody_tells_of_shows_in_the_jump_of_time(tmp_path: Path) -> None:
    async with playing(
        {"name": "go_live_after_gap", "after": 200, "skip": 100, "jump_seconds": 100}, events=600
    ) as relay:
        ended = await asyncio.to_thread(collect, tmp_path, relay)
        told = relay.oracle(cursors=cursors(tmp_path, relay))
        (before,) = asked(relay.hosts[0])
        last = relay.world.event(relay.hosts[0].numbering.upto(before))
        after = relay.world.event(last.n + 101)
    assert told["lost"] > 50
    compare(tmp_path, told)
    assert query(tmp_path / "journal.db", HELD) == [(1, "first"), (1, "gap")]
    gaps = query(tmp_path / "journal.db", GAPS)
    assert [gap[:3] for gap in gaps] == [(1, "not_replayed", before)]
    ((_, _, _, until_seq, from_at, until_at),) = gaps
    assert relay.hosts[0].numbering.upto(until_seq) >= after.n
    assert last.at - 100_000 < from_at <= last.at
    assert after.at <= until_at < after.at + 100_000
    found = await asyncio.to_thread(coverage, tmp_path)
    assert [stretch["kind"] for stretch in found["stretches"]] == ["held", "not_replayed", "held"]
    assert found["stretches"][1]["from"] == found["gaps"][0]["from"]
    assert found["gaps"][0]["seconds"] > 100
    assert found["share_held"] < 0.05
    shown = (await asyncio.to_thread(run, "coverage", "--data-dir", tmp_path)).out
    assert f"after {before}: not_replayed, {found['gaps'][0]['seconds']:,.1f} s" in shown
    assert [event["resume"] for event in events(ended, "source_resumed")] == ["first", "gap"]


async def test_a_relay_that_says_that_its_window_has_passed_leaves_one_gap(tmp_path: Path) -> None:
    async with playing(
        {"name": "outdated_cursor", "after": 200, "skip": 100, "jump_seconds": 100}, events=600
    ) as relay:
        await asyncio.to_thread(collect, tmp_path, relay)
        (before,) = asked(relay.hosts[0])
    ((_, cause, after_seq, until_seq, from_at, until_at),) = query(tmp_path / "journal.db", GAPS)
    assert (cause, after_seq) == ("outdated_cursor", before)
    assert until_seq > before
    assert 100_000_000 < until_at - from_at < 110_000_000
    found = await asyncio.to_thread(coverage, tmp_path)
    assert [stretch["kind"] for stretch in found["stretches"]] == ["held", "outdated_cursor", "held"]


@pytest.mark.parametrize(("mode", "resume"), [("exclusive", "in_time"), ("inclusive", "replayed")])
async def test_a_resume_without_loss_is_no_gap(mode: str, resume: str, tmp_path: Path) -> None:
    plan = [{"name": "close_without_close_frame", "after": 200}, {"name": "reset", "after": 200}]
    async with playing(*plan, events=600, mode=mode) as relay:
        await asyncio.to_thread(collect, tmp_path, relay)
        told = relay.oracle(cursors=cursors(tmp_path, relay))
    assert told["lost"] == 0
    compare(tmp_path, told)
    assert query(tmp_path / "journal.db", HELD) == [(1, "first"), (1, resume), (1, resume)]
    assert query(tmp_path / "journal.db", GAPS) == []
    assert (await asyncio.to_thread(coverage, tmp_path))["share_held"] == 1


async def two_runs(folder: Path, first: list[bytes], second: list[bytes]) -> None:
    for frames in (first, second):
        async with scripted_relay(frames, port_of(folder)) as relay:
            ended = await asyncio.to_thread(
                run, "collect", "--relay", relay, "--data-dir", folder, "--max-frames", len(frames)
            )
            (folder / "port").write_text(relay.rpartition(":")[2])
        assert ended.code == 0, ended.err


def port_of(folder: Path) -> int:
    file = folder / "port"
    return int(file.read_text()) if file.exists() else 0


async def test_a_mere_jump_in_numbers_is_no_gap(tmp_path: Path) -> None:
    first = [a_post(seq, seq / 10) for seq in range(1, 101)]
    second = [a_post(10_000 + seq, 10 + seq / 10) for seq in range(1, 101)]
    await two_runs(tmp_path, first, second)
    assert query(tmp_path / "journal.db", HELD) == [(1, "first"), (1, "in_time")]
    assert query(tmp_path / "journal.db", GAPS) == []
    assert query(tmp_path / "journal.db", "SELECT 1 FROM recheck") == []


async def test_a_quiet_relays_long_silence_is_unverified_and_no_gap(tmp_path: Path) -> None:
    first = [a_post(seq, seq * 100) for seq in range(1, 21)]
    second = [a_post(seq, 1000 + seq * 100) for seq in range(21, 41)]
    await two_runs(tmp_path, first, second)
    assert query(tmp_path / "journal.db", HELD) == [(1, "first"), (1, "unverified")]
    assert query(tmp_path / "journal.db", GAPS) == []
    found = await asyncio.to_thread(coverage, tmp_path)
    assert [stretch["kind"] for stretch in found["stretches"]] == ["held", "unverified", "held"]


async def test_one_servers_wrong_clock_makes_no_gap_and_hides_none(tmp_path: Path) -> None:
    """The first event behind the resume, and the last one before it, are hours off."""
    first = [a_post(seq, seq / 10) for seq in range(1, 100)] + [a_post(100, -9000)]
    second = [a_post(101, 9000)] + [a_post(seq, seq / 10) for seq in range(102, 201)]
    await two_runs(tmp_path, first, second)
    assert query(tmp_path / "journal.db", HELD) == [(1, "first"), (1, "in_time")]
    third = [a_post(201, 20)] + [a_post(seq, 3600 + seq / 10) for seq in range(202, 301)]
    await two_runs(tmp_path, third[:50], third[50:])
    assert query(tmp_path / "journal.db", HELD) == [(1, "first"), (1, "in_time"), (1, "gap"), (1, "in_time")]


async def test_a_window_that_is_read_again_after_a_renumbering_says_so(tmp_path: Path) -> None:
    async with playing({"name": "renumber", "after": 300}, events=600) as relay:
        await asyncio.to_thread(collect, tmp_path, relay)
        told = relay.oracle(cursors=cursors(tmp_path, relay))
        before = asked(relay.hosts[0])[0]
    assert told["lost"] == 0
    compare(tmp_path, told)
    assert query(tmp_path / "journal.db", HELD) == [(1, "first"), (2, "first")]
    ((epoch, cause, after_seq, _, from_at, until_at),) = query(tmp_path / "journal.db", GAPS)
    assert (epoch, cause, after_seq) == (1, "renumbered", before)
    assert until_at < from_at
    found = await asyncio.to_thread(coverage, tmp_path)
    assert [stretch["kind"] for stretch in found["stretches"]] == ["held"]
    assert (await asyncio.to_thread(run, "coverage", "--data-dir", tmp_path)).out.endswith(
        f"after {before}: renumbered, read again from the host's window\n"
    )
    assert query(tmp_path / "journal.db", "SELECT count(*) FROM recheck WHERE why = 'gap'") == [(0,)], (
        "nothing was missed"
    )


# ---- hosts -----------------------------------------------------------------------------------------------------------


def own_numbers(relay: Any) -> bool:
    """Whether each host was only ever asked for its own cursors."""
    return all(
        host.numbering.seq(1) <= cursor <= host.numbering.seq(relay.world.head)
        for host in relay.hosts
        for cursor in asked(host)
    )


@both_clients
async def test_the_second_host_is_taken_while_the_first_is_down_and_the_first_again_when_it_is_back(
    client: str, tmp_path: Path
) -> None:
    async with playing({"name": "down", "after": 300, "seconds": 3}, hosts=2, rate=300, events=2400) as relay:
        process = begin(
            tmp_path, relay, source__prefer_seconds=1, source__failover_attempts=2, source__liveness_seconds=1,
            source__client=client,
        )  # fmt: skip
        first, second = relay.hosts
        ended = await asyncio.to_thread(
            end_when, process,
            lambda: relay.is_quiet and all_taken(tmp_path, relay) and first.links and not second.links,
            "the first host to be held again to the end",
        )  # fmt: skip
        told = relay.oracle(cursors=cursors(tmp_path, relay))
        assert own_numbers(relay)
        assert asked(first)
        assert second.connections >= 1
    assert ended.code == 0, ended.err
    assert told["lost"] == 0
    compare(tmp_path, told)
    assert balance_closes(tmp_path)
    moves = [(event["host"], event["why"] == "it is preferred") for event in events(ended, "source_host")]
    assert moves[0] == (second.address, False)
    assert moves[-1] == (first.address, True)
    assert query(tmp_path / "journal.db", "SELECT count(*), count(DISTINCT rkey || did) FROM post") == [
        (len(query(tmp_path / "journal.db", "SELECT 1 FROM post")),) * 2
    ]  # fmt: skip
    assert {host["host"] for host in (await asyncio.to_thread(coverage, tmp_path))["hosts"]} == {
        first.address, second.address
    }  # fmt: skip


@both_clients
async def test_a_quiet_host_that_answers_pings_is_kept(
    client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pings = 0

    class Counting(ServerConnection):
        def process_event(self, event: Any) -> None:
            nonlocal pings
            pings += isinstance(event, Frame) and event.opcode is Opcode.PING
            super().process_event(event)

    def counting(*args: Any, **options: Any) -> Any:
        return serve(*args, **options, create_connection=Counting)

    monkeypatch.setattr(hosts, "serve", counting)
    async with playing(hosts=2, events=200) as relay:
        quick: dict[str, Any] = {"source__liveness_seconds": 0.4, "source__failover_attempts": 1}
        process = begin(tmp_path, relay, **quick, source__client=client)
        await asyncio.to_thread(
            end_when, process, lambda: all_taken(tmp_path, relay) and pings > 40, "many answered pings"
        )  # fmt: skip
        assert [host.connections for host in relay.hosts] == [1, 0]


@both_clients
async def test_a_host_that_is_deaf_is_left_for_the_other(client: str, tmp_path: Path) -> None:
    async with playing({"name": "stall_deaf", "after": 200, "seconds": 600}, hosts=2, events=400) as relay:
        relay.turn(Knob("refuse", times=1000, retry_after=None))
        quick: dict[str, Any] = {"source__liveness_seconds": 0.4, "source__failover_attempts": 2}
        process = begin(tmp_path, relay, **quick, source__client=client)
        await asyncio.to_thread(
            end_when, process, lambda: relay.is_quiet and all_taken(tmp_path, relay), "the second host to be held"
        )
        told = relay.oracle(cursors=cursors(tmp_path, relay))
        assert own_numbers(relay)
        assert relay.hosts[1].connections == 1
    assert told["lost"] == 0
    compare(tmp_path, told, least=50)


def test_a_single_relay_that_comes_and_goes_is_asked_for_its_cursor_each_time(tmp_path: Path) -> None:
    with led_relay() as relay:
        for n in range(3):
            relay.post(f"3aaaaaaaaaaa{'abc'[n]}", "A post in plain English")
            process = run(
                "collect", "--relay", relay.url, "--data-dir", tmp_path, "--max-frames", 1, worker__batch_seconds=0.05
            )
            assert process.code == 0, process.err
            assert cursor(tmp_path) == n + 1
        assert relay.asked == ["", "cursor=1", "cursor=2"]
