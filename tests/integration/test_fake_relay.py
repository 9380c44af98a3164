"""The fake relay: what a plain client sees of each misbehaviour, and the installed command against its oracle."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import cbor2
import httpx
import pytest
from atproto import models  # type: ignore[import-untyped]
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from civicsky.decode import decode
from civicsky.errors import BadInput
from support import command
from support.clients import both_clients
from support.converge import covers
from support.fake import all_taken, cursors
from support.fake_relay import FakeRelay, Options
from support.host import PATH, Numbering
from support.misbehave import ACTIONS, HANDSHAKE, Knob
from support.oracle import Sent, fold, oracle
from support.world import World

RELAY = str(Path(command.__file__).with_name("fake_relay.py"))


class Client:
    """A plain one."""

    def __init__(self, url: str) -> None:
        self.url = url + PATH

    @asynccontextmanager
    async def at(self, cursor: int | None = None) -> AsyncIterator[ClientConnection]:
        asked = "" if cursor is None else f"?cursor={cursor}"
        async with connect(
            self.url + asked, max_size=None, compression=None, ping_interval=None, close_timeout=0.1
        ) as socket:
            yield socket

    async def read(self, number: int, cursor: int | None = 0) -> list[int]:
        async with self.at(cursor) as socket:
            return await numbers(socket, number)

    async def until_up(self) -> None:
        """Try until it is let in."""
        async with asyncio.timeout(20):
            while True:
                with suppress(ConnectionRefusedError):
                    await self.read(1)
                    return
                await asyncio.sleep(0.05)

    async def read_all(self, cursor: int | None = 0) -> tuple[list[bytes | str], ConnectionClosed]:
        """All messages until the relay hangs up, and how it did."""
        messages: list[bytes | str] = []
        async with self.at(cursor) as socket:
            try:
                async with asyncio.timeout(20):
                    while True:
                        messages.append(await socket.recv())
            except ConnectionClosed as closed:
                return messages, closed


async def numbers(socket: ClientConnection, number: int) -> list[int]:
    """The sequence numbers of the next frames."""
    async with asyncio.timeout(20):
        return [seq_of(await socket.recv()) for _ in range(number)]


def seq_of(message: bytes | str) -> int:
    assert isinstance(message, bytes)
    return decode(message).seq or 0


@asynccontextmanager
async def playing(
    *plan: dict[str, Any], hostile: float = 0, crash_mark: str | None = None, **options: Any
) -> AsyncIterator[tuple[FakeRelay, Client]]:
    world = World(5, hostile=hostile, crash_mark=crash_mark)
    relay = FakeRelay(world, Options(**options), plan=[Knob.read(knob) for knob in plan])
    async with relay.serve() as urls:
        yield relay, Client(urls[0])


async def get(relay: FakeRelay, path: str, **asked: Any) -> Any:
    async with httpx.AsyncClient() as http:
        response = await http.get(relay.control + path, params=asked)
    return response.json()


def seqs(first: int, last: int, host: int = 0, numbering: int = 0) -> list[int]:
    return [
        Numbering((26_650_000_000, 17_500_000_000)[host] - numbering * 1_000_000_000, host).seq(n)
        for n in range(first, last + 1)
    ]


# ---- cursors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [0, 1])
def test_numbers_rise_with_gaps_and_lead_back_to_their_events(host: int) -> None:
    numbering, rises = Numbering(1000, host), set()
    for n in range(1, 500):
        rises.add(numbering.seq(n + 1) - numbering.seq(n))
        assert [numbering.upto(seq) for seq in range(numbering.seq(n), numbering.seq(n + 1))] == [n] * (
            numbering.seq(n + 1) - numbering.seq(n)
        )
    assert min(rises) >= 1
    assert len(rises) > 2
    assert numbering.upto(0) == 0


async def test_cursors_lead_to_their_place_in_the_window() -> None:
    async with playing(window=1000, events=20) as (relay, client):
        assert await client.read(3) == seqs(1, 3)
        assert await client.read(3, seqs(7, 7)[0]) == seqs(8, 10)
        assert await client.read(3, seqs(8, 8)[0] - 1) == seqs(8, 10)
        async with client.at(None) as socket:
            async with httpx.AsyncClient() as http:
                await http.post(relay.control + "/make", json={"events": 2})
            assert await numbers(socket, 2) == seqs(21, 22), "live"
        assert (await get(relay, "/state"))["connections"][0]["cursors"] == [
            0, seqs(7, 7)[0], seqs(8, 8)[0] - 1, None
        ]  # fmt: skip
    async with playing(mode="inclusive") as (_, client):
        assert await client.read(12) == seqs(1, 12)
        assert await client.read(3, seqs(7, 7)[0]) == seqs(7, 9)
    async with playing(from_start=True) as (relay, client):
        relay.world.take(20)
        assert await client.read(2, None) == seqs(1, 2)


@pytest.mark.parametrize("outdated", ["silent", "info"])
async def test_an_old_cursor_starts_at_the_windows_beginning(outdated: str) -> None:
    async with playing(window=100, outdated=outdated) as (relay, client):
        for _ in range(500):
            relay.make()
        assert relay.world.event(100).message is None
        async with client.at(seqs(10, 10)[0]) as socket:
            if outdated == "info":
                assert decode(await socket.recv()).name == "OutdatedCursor"  # type: ignore[arg-type]
            assert await numbers(socket, 2) == seqs(401, 402)
        assert await client.read(1, 0) == seqs(401, 401)


async def test_a_cursor_from_the_future_is_refused_or_goes_live() -> None:
    async with playing() as (_, client):
        messages, closed = await client.read_all(seqs(9, 9)[0])
        assert [decode(data).name for data in messages if isinstance(data, bytes)] == ["FutureCursor"]
        assert closed.rcvd is not None
        assert closed.rcvd.code == 1008
        messages, _ = await client.read_all("x")  # type: ignore[arg-type]
        assert [decode(data).name for data in messages if isinstance(data, bytes)] == ["InvalidRequest"]
    async with playing(future="live") as (relay, client):
        relay.world.take(10)
        assert await client.read(1, seqs(99, 99)[0]) == seqs(11, 11)


async def test_a_world_with_a_rate_goes_on_alone_and_then_is_quiet() -> None:
    async with playing(rate=400, events=100) as (relay, client):
        async with asyncio.timeout(20):
            await relay.quiet()
        async with client.at(0) as socket:
            assert await numbers(socket, 100) == seqs(1, 100)
            await (await socket.ping())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await socket.recv()
            relay.make_big(1000)
            assert await numbers(socket, 1) == seqs(101, 101)


async def test_two_hosts_serve_one_world_under_other_numbers() -> None:
    relay = FakeRelay(World(5, hostile=0), Options(), hosts=2)
    async with relay.serve() as (first, second):
        assert await Client(first).read(10) == seqs(1, 10)
        assert await Client(second).read(10) == seqs(1, 10, 1)
    assert seqs(1, 10) != seqs(1, 10, 1)


async def test_hostile_messages_come_in_their_place_and_again_with_it() -> None:
    async with playing(hostile=0.5, events=60) as (relay, client):
        for _ in range(2):
            async with client.at(0) as socket:
                got = [await socket.recv() for _ in range(60)]
            assert got == [event.data(seqs(event.n, event.n)[0]) for event in relay.world]


# ---- knobs -----------------------------------------------------------------------------------------------------------


async def fired(relay: FakeRelay, name: str, times: int = 1) -> None:
    assert (await get(relay, "/state"))["fired"] == {name: times}


@pytest.mark.parametrize("name", ["close_without_close_frame", "reset", "consumer_too_slow", "renumber", "down"])
async def test_a_connection_ends_after_so_many_frames(name: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with playing({"name": name, "after": 7, "seconds": 1}, log=log) as (relay, client):
        messages, closed = await client.read_all()
        if name == "consumer_too_slow":
            assert decode(messages.pop()).name == "ConsumerTooSlow"  # type: ignore[arg-type]
            assert closed.rcvd is not None
            assert closed.rcvd.code == 1008
        else:
            assert isinstance(closed, ConnectionClosedError)
            assert closed.rcvd is None
        assert [seq_of(data) for data in messages] == seqs(1, len(messages))
        assert len(messages) == 7 or (name == "reset" and len(messages) < 7)
        await fired(relay, name)
        if name == "down":
            with pytest.raises(ConnectionRefusedError):
                await client.read(1)
            await client.until_up()
        assert await client.read(9) == seqs(1, 9, 0, name == "renumber")
    (line,) = log.read_text().splitlines()
    assert json.loads(line)["name"] == name
    assert json.loads(line)["event"] == 7


async def test_a_renumbered_host_does_not_know_its_former_numbers() -> None:
    async with playing({"name": "renumber", "after": 7}) as (_, client):
        await client.read_all()
        messages, _ = await client.read_all(seqs(7, 7)[0])
        assert [decode(data).name for data in messages if isinstance(data, bytes)] == ["FutureCursor"]


async def test_a_stalled_connection_answers_pings_and_goes_on() -> None:
    async with playing({"name": "stall_answering_pings", "after": 7, "seconds": 0.6}) as (relay, client):
        async with client.at(0) as socket:
            assert await numbers(socket, 7) == seqs(1, 7)
            async with asyncio.timeout(0.4):
                await (await socket.ping())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await socket.recv()
            assert await numbers(socket, 2) == seqs(8, 9)
        await fired(relay, "stall_answering_pings")


async def test_a_deaf_connection_answers_nothing_and_stays_open() -> None:
    async with playing({"name": "stall_deaf", "after": 7, "seconds": 0.6}) as (relay, client):
        async with client.at(0) as socket:
            assert await numbers(socket, 7) == seqs(1, 7)
            pong = await socket.ping()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await pong
            assert socket.close_code is None
        await fired(relay, "stall_deaf")


async def test_frames_come_twice_or_in_the_wrong_order() -> None:
    plan: list[dict[str, Any]] = [
        {"name": "duplicate", "after": 3},
        {"name": "duplicate"},
        {"name": "out_of_order", "after": 2},
    ]
    async with playing(*plan) as (relay, client):
        got = await client.read(40)
        assert got[:5] == seqs(1, 3) + seqs(3, 3) * 2
        rest = got[5:]
        assert sorted(rest) == seqs(4, 38)
        assert sum(one > other for one, other in pairwise(rest)) == 1
        assert relay.fired == {"duplicate": 2, "out_of_order": 1}


async def test_a_gap_is_left_in_silence_or_with_a_word_and_time_jumps() -> None:
    for name in ("go_live_after_gap", "outdated_cursor"):
        async with playing({"name": name, "after": 7, "skip": 50, "jump_seconds": 3600}) as (relay, client):
            messages, _ = await client.read_all(None)
            assert len(messages) == 20, "a few more than asked for, so that it comes back with a cursor"
            async with client.at(seqs(7, 7)[0]) as socket:
                if name == "outdated_cursor":
                    assert decode(await socket.recv()).name == "OutdatedCursor"  # type: ignore[arg-type]
                after = decode(await socket.recv())  # type: ignore[arg-type]
            assert after.seq == seqs(58, 58)[0]
            assert after.time - relay.world.event(7).at > 3600_000_000
            await fired(relay, name)
            assert (await get(relay, "/oracle"))["lost"] == 50
            assert await client.read(1, seqs(7, 7)[0]) == seqs(58, 58), "what has left the window does not come back"


async def test_connections_are_refused_hung_up_on_or_slow() -> None:
    plan = [
        {"name": "refuse", "times": 2, "status": 429, "retry_after": 9},
        {"name": "accept_then_hang_up", "times": 2},
        {"name": "slow_start", "seconds": 0.4},
    ]
    async with playing(*plan) as (relay, client):
        for _ in range(2):
            with pytest.raises(InvalidStatus) as refused:
                await client.read(1)
            assert refused.value.response.status_code == 429
            assert refused.value.response.headers["Retry-After"] == "9"
        for _ in range(2):
            assert (await client.read_all())[0] == []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.read(1)
        assert await client.read(1) == seqs(1, 1)
        assert relay.fired == {"refuse": 2, "accept_then_hang_up": 2, "slow_start": 1}
        relay.turn(Knob("refuse"))
        assert relay.hosts[0].plan


async def test_a_knob_pushed_over_http_acts_on_the_connection_there_is() -> None:
    async with playing(events=10) as (relay, client), client.at(0) as socket:
        assert await numbers(socket, 10) == seqs(1, 10)
        async with httpx.AsyncClient() as http:
            bad = await http.post(relay.control + "/knob", json={"name": "nonsense"})
            good = await http.post(relay.control + "/knob", json={"host": 0, "name": "refuse"})
        assert (bad.status_code, good.status_code) == (400, 200)
        with pytest.raises(ConnectionClosedError):
            await socket.recv()
        with pytest.raises(InvalidStatus):
            await client.read(1)


async def test_big_frames_stand_in_the_stream_and_what_lies_behind_too_big_ones_is_not_held() -> None:
    async with playing({"name": "big_frame", "after": 3, "bytes": 5_000_000}) as (relay, client):
        async with client.at(0) as socket:
            sizes = [len(await socket.recv()) for _ in range(6)]
        assert [size > 5_000_000 for size in sizes] == [False] * 3 + [True] + [False] * 2
        await fired(relay, "big_frame")
        assert any(len(data) > 5_000_000 for data in [relay.world.event(4).data()])
        assert (await get(relay, "/oracle", cursor=f"0:{seqs(6, 6)[0]}"))["events"] == 6
    async with playing({"name": "too_big_frame", "after": 3, "bytes": 20_000_000}) as (relay, client):
        async with client.at(0) as socket:
            await numbers(socket, 8)
        async with client.at(seqs(6, 6)[0]) as socket:
            assert await numbers(socket, 2) == seqs(7, 8)
        told = await get(relay, "/oracle", cursor=f"0:{seqs(8, 8)[0]}")
        assert (told["events"], told["lost"], told["ignored"]) == (6, 2, {"too_large": 1})


async def test_bad_frames_come_in_a_row_on_as_many_connections_as_asked() -> None:
    async with playing({"name": "bad_frames_in_a_row", "after": 3, "count": 12, "times": 2}) as (relay, client):
        for expected in (range(3, 15), range(3, 15), ()):
            async with client.at(0) as socket:
                got = [await socket.recv() for _ in range(20)]
            assert [at for at, data in enumerate(got) if not _is_decodable(data)] == list(expected)
        await fired(relay, "bad_frames_in_a_row", 2)


def _is_decodable(data: bytes | str) -> bool:
    try:
        return isinstance(data, bytes) and bool(decode(data))
    except BadInput:
        return False


def test_a_cursor_of_a_former_numbering_does_not_cover_the_stream() -> None:
    relay = FakeRelay(World(5), Options(events=50))
    relay.world.take(50)
    last = relay.state()["last_seq"][0]
    assert covers(relay.state(), {0: last})
    assert not covers(relay.state(), {0: last - 1})
    relay.hosts[0].renumber()
    assert relay.state()["last_seq"][0] < last
    assert not covers(relay.state(), {0: last})


def test_every_knob_is_known_by_name() -> None:
    assert len(ACTIONS) + len(HANDSHAKE) == 17
    for name in (*ACTIONS, *HANDSHAKE):
        assert Knob.read({"name": name, "after": 1}).name == name
    with pytest.raises(ValueError, match="no such knob"):
        Knob.read({"name": "x"})
    with pytest.raises(ValueError, match="unexpected"):
        Knob.read({"name": "reset", "x": 1})


# ---- what is held ----------------------------------------------------------------------------------------------------


def sends(sent: Sent, first: int, last: int, numbering: int = 0, host: int = 0) -> Any:
    extent = sent.open(host, numbering, first)
    extent.sent(last)
    return extent


def held(sent: Sent, head: int = 20) -> list[int]:
    return [n for n, is_held in enumerate(sent.held(head)) if is_held]


def test_what_was_sent_behind_the_cursor_is_not_held_until_it_is_sent_again() -> None:
    sent = Sent()
    sent.ask(0, 0, None)
    sends(sent, 1, 10)
    assert held(sent) == list(range(1, 11))
    sent.ask(0, 0, 4)
    assert held(sent) == [1, 2, 3, 4]
    sends(sent, 8, 12)
    assert held(sent) == [1, 2, 3, 4, 8, 9, 10, 11, 12]
    sends(sent, 6, 7, host=1)
    assert held(sent) == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12]


def test_a_client_that_never_showed_a_cursor_has_committed_nothing() -> None:
    sent = Sent()
    sent.ask(0, 0, None)
    sends(sent, 1, 10)
    sent.ask(0, 0, None)
    sends(sent, 15, 16)
    assert held(sent) == [15, 16]


def test_after_ten_bad_frames_a_client_that_goes_live_holds_what_came_before_them() -> None:
    sent = Sent()
    sends(sent, 1, 10)
    sent.ask(0, 0, 5)
    extent = sends(sent, 6, 7)
    extent.sure = 7
    extent.sent(10)
    assert held(sent) == list(range(1, 11)), "still open"
    sent.ask(0, 0, None)
    extent.sent(12)
    sends(sent, 15, 15)
    assert held(sent) == [1, 2, 3, 4, 5, 6, 7, 15]


def test_a_cursor_says_nothing_of_a_former_numbering() -> None:
    sent = Sent()
    sends(sent, 1, 10)
    sent.ask(0, 0, 8)
    sent.ask(0, 1, 2)
    assert held(sent) == list(range(1, 9))


def test_the_fold_does_not_depend_on_the_order_of_events() -> None:
    world = World(9, accounts=20)
    events = world.take(3000)
    told = fold(events)
    assert told == fold(reversed(events))
    assert {post["state"] for post in told.values()} == {"live", "hidden", "deleted"}
    for uri, post in told.items():
        did, _, rkey = uri.removeprefix("at://").split("/")
        if post["state"] == world.state(did, rkey) != "deleted":
            assert world.accounts[did].posts[rkey][1] == post["cid"]
    differ = [
        uri
        for uri, post in told.items()
        if post["state"] != world.state(*(uri.removeprefix("at://").split("/")[at] for at in (0, 2)))
    ]
    syncs = sum(event.outcome == "sync" for event in events)
    assert 0 < len(differ) <= syncs, "only what vanished at a #sync"


def test_a_recheck_finds_what_was_lost_and_what_vanished() -> None:
    world, sent = World(9, accounts=20), Sent()
    world.take(3000)
    sends(sent, 1, 1500)
    sends(sent, 2001, 3000)
    plain, rechecked = oracle(world, sent), oracle(world, sent, rechecked=True)
    assert plain["lost"] == sum(event.counts for event in world.events[1500:2000])
    assert plain["posts"].keys() == rechecked["posts"].keys()
    assert plain["posts"] != rechecked["posts"]
    for uri, post in rechecked["posts"].items():
        did, _, rkey = uri.removeprefix("at://").split("/")
        assert post["state"] in {world.state(did, rkey), "deleted"} or post["may_be_gone"]
        assert post["state"] != "deleted" or post == {"state": "deleted", "cid": "", "text": None}


# ---- the AppView -----------------------------------------------------------------------------------------------------


async def test_the_appview_answers_from_the_worlds_present_in_the_apis_shape() -> None:
    relay = FakeRelay(World(9, accounts=20))
    relay.world.take(2000)
    states = {
        f"at://{event.did}/app.bsky.feed.post/{op.rkey}": relay.world.state(event.did, op.rkey)
        for event in relay.world
        for op in event.ops
    }
    wanted = [[uri for uri in states if states[uri] == state][:8] for state in ("live", "hidden", "deleted")]
    async with relay.serve():
        told = await get(relay, "/xrpc/app.bsky.feed.getPosts", uris=list(chain(*wanted)))
        profiles = await get(relay, "/xrpc/app.bsky.actor.getProfiles", actors=list(relay.world.accounts)[:25])
        handle = profiles["profiles"][0]["handle"]
        resolved = await get(relay, "/xrpc/com.atproto.identity.resolveHandle", handle=handle)
        too_many = await get(relay, "/xrpc/app.bsky.feed.getPosts", uris=["at://a/b/c"] * 26)
        unknown = await get(relay, "/xrpc/com.atproto.identity.resolveHandle", handle="nobody.example.com")
    assert [post["uri"] for post in told["posts"]] == wanted[0]
    parsed = models.get_or_create(told, models.AppBskyFeedGetPosts.Response)
    assert [post.record.text for post in parsed.posts] == [post["record"]["text"] for post in told["posts"]]
    models.get_or_create(profiles, models.AppBskyActorGetProfiles.Response)
    active = [did for did, account in list(relay.world.accounts.items())[:25] if account.status == "active"]
    assert [profile["did"] for profile in profiles["profiles"]] == active
    assert resolved == {"did": active[0]}
    assert (too_many["error"], unknown["error"]) == ("InvalidRequest", "InvalidRequest")


# ---- the installed command -------------------------------------------------------------------------------------------


def journal(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        f"at://{did}/app.bsky.feed.post/{rkey}": {"state": state, "cid": cid, "text": text}
        for did, rkey, state, cid, text in command.query(
            folder / "journal.db", "SELECT did, rkey, state, cid, fields ->> '$.text' FROM post"
        )
    }


def collect(folder: Path, relay: FakeRelay, urls: list[str], **settings: Any) -> None:
    """Run the command until it holds everything; runs in a thread."""
    relays = [part for url in urls for part in ("--relay", url)]
    process = command.start(
        "collect", *relays, "--data-dir", folder, worker__batch_seconds=0.05, source__backoff_seconds=0.05,
        source__liveness_seconds=1, source__start="window", **settings,
    )  # fmt: skip
    done = command.end_when(process, lambda: relay.is_quiet and all_taken(folder, relay), "all to be held")
    assert done.code == 0, done.err


def compare(folder: Path, told: dict[str, Any]) -> None:
    posts = journal(folder)
    assert len(told["posts"]) > 300
    assert {uri: posts.get(uri) for uri in told["posts"]} == told["posts"]
    others = [post for uri, post in posts.items() if uri not in told["posts"]]
    assert all(post == {"state": "deleted", "cid": "", "text": None} for post in others)


def quarantined(folder: Path) -> dict[str, int]:
    rows = command.query(
        folder / "journal.db", "SELECT reason, sum(n) FROM count WHERE outcome = 'quarantined' GROUP BY reason"
    )
    return dict(rows)


async def test_the_installed_command_holds_what_the_oracle_says(tmp_path: Path) -> None:
    async with playing(events=2000, hostile=0.05, crash_mark="CRASHMARK") as (relay, _):
        await asyncio.to_thread(collect, tmp_path, relay, [relay.hosts[0].address], fault="worker.record:CRASHMARK")
        told = relay.oracle(cursors=cursors(tmp_path, relay))
    assert told["lost"] == 0
    compare(tmp_path, told)
    assert quarantined(tmp_path) == told["quarantined"]
    assert told["quarantined"]["worker_crashed"] > 1


async def test_the_installed_command_goes_from_host_to_host_and_holds_what_the_oracle_says(tmp_path: Path) -> None:
    plan = [Knob("down", after=200, seconds=2), Knob("down", host=1, after=300, seconds=2)]
    relay = FakeRelay(World(5), Options(rate=500, events=2000), hosts=2, plan=plan)
    async with relay.serve() as urls:
        await asyncio.to_thread(collect, tmp_path, relay, urls)
        told = relay.oracle(cursors=cursors(tmp_path, relay))
        assert relay.fired == {"down": 2}
    assert told["lost"] == 0
    compare(tmp_path, told)


@both_clients
async def test_the_installed_command_holds_what_the_oracle_says_of_a_relay_that_misbehaves(
    client: str, tmp_path: Path
) -> None:
    plan: list[dict[str, Any]] = [
        {"name": "reset", "after": 150},
        {"name": "refuse", "retry_after": None},
        {"name": "duplicate", "after": 20},
        {"name": "consumer_too_slow", "after": 100},
        {"name": "close_without_close_frame", "after": 100},
        {"name": "accept_then_hang_up"},
        {"name": "go_live_after_gap", "after": 100, "skip": 100, "jump_seconds": 100},
        {"name": "renumber", "after": 200},
        {"name": "stall_deaf", "after": 50, "seconds": 30},
        {"name": "big_frame", "after": 50},
    ]
    async with playing(*plan, rate=700, events=3000, hostile=0.03) as (relay, _):
        await asyncio.to_thread(collect, tmp_path, relay, [relay.hosts[0].address], source__client=client)
        told = relay.oracle(cursors=cursors(tmp_path, relay))
        assert relay.fired == {knob["name"]: 1 for knob in plan}
    assert told["lost"] > 50
    compare(tmp_path, told)


async def test_the_program_says_its_addresses_and_plays_the_same_stream_on_the_same_seed(tmp_path: Path) -> None:
    options = ("--seed", "3", "--events", "50", "--start", "1767225600000000", "--hosts", "2", "--hostile", "0.2")
    streams = []
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(sys.executable, RELAY, *options, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        url, control, other = (await process.stdout.readline()).decode().split()
        try:
            assert other.startswith("ws://")
            async with Client(url).at(0) as socket:
                streams.append([await socket.recv() for _ in range(50)])
            async with httpx.AsyncClient() as http:
                state = (await http.get(control + "/state")).json()
            assert (state["head"], state["quiet"]) == (50, True)
        finally:
            process.terminate()  # an interrupt is ignored by what a shell runs in the background
            assert await process.wait() == -signal.SIGTERM
    assert streams[0] == streams[1]
    assert cbor2.loads(streams[0][0])  # type: ignore[arg-type]
