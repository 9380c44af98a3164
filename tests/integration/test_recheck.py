"""Posts looked up again: what a gap, a `#sync` or a person asks for, against a real server of the API's methods."""

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from civicsky.appview import AppView
from civicsky.journal import Journal
from civicsky.recheck import Checked, Rechecks, Round, look_up
from civicsky.settings import AppView as AppViewSettings, Journal as JournalSettings
from civicsky.tables import RECHECK_PAGE, ask_recheck, ask_recheck_of
from support.appview_server import AppViewServer, Trouble, appview_server
from support.command import cursor, end_when, query, run, start, until
from support.converge import has_converged
from support.fake import begin, compare, cursors, events, playing
from support.led import NOW, Led, balance_closes, did_of, in_journal, led_relay, states, uri

QUICK: dict[str, Any] = {"worker__batch_seconds": 0.05, "appview__per_second": 1000}


@pytest.fixture
def appview() -> Iterator[AppViewServer]:
    with appview_server() as server:
        yield server


@pytest.fixture
def relay() -> Iterator[Led]:
    with led_relay() as led:
        yield led


@pytest.fixture(scope="module")
def collected_70(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collected")
    with led_relay() as led:
        collected(folder, led, 70, 3)
    return folder


def rkey(n: int) -> str:
    return f"3aaaaaaaaa{n:03d}"


def collected(folder: Path, relay: Led, posts: int, authors: int) -> None:
    """Posts 1, 2, ... of authors 0, 1, ..., in turn."""
    before = relay.seq
    for n in range(before, before + posts):
        relay.post(rkey(n + 1), f"A post in plain English, number {n + 1}", did=did_of(n % authors))
    ended = run("collect", "--relay", relay.url, "--data-dir", folder, "--max-frames", posts, **QUICK)
    assert ended.code == 0, ended.err


def know(appview: AppViewServer, folder: Path) -> None:
    """Let the API know every post that the journal holds, and its author."""
    for did, name, cid in query(folder / "journal.db", "SELECT did, rkey, cid FROM post WHERE state <> 'deleted'"):
        appview.posts[uri(name, did)] = cid
        appview.profiles.add(did)


def asked(appview: AppViewServer) -> list[str]:
    """The posts that were asked about, in order."""
    return [name for call in appview.named("getPosts") for name in call.query["uris"]]


def counted(folder: Path) -> dict[str, int]:
    sql = "SELECT outcome, sum(n) FROM count WHERE unit = 'recheck' AND outcome <> 'account' GROUP BY outcome"
    return dict(query(folder / "journal.db", sql))


# ---- rounds that a person asks for -----------------------------------------------------------------------------------


def test_what_is_gone_becomes_a_tombstone_in_journal_ledger_and_store_and_accounts_follow_their_state(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    collected(tmp_path, relay, 10, 5)
    drain = ("label", "--drain", "--data-dir", tmp_path, "--model-url", model[0], "--model", "mock")
    assert run(*drain).code == 0
    know(appview, tmp_path)
    del appview.posts[uri(rkey(1), did_of(0))]
    for n, refusal in ((1, {"error": "AccountTakedown", "message": "x"}), (2, {"error": "x", "message": "x"})):
        for post in (n + 1, n + 6):
            del appview.posts[uri(rkey(post), did_of(n))]
        appview.profiles.discard(did_of(n))
        appview.refusals[did_of(n)] = refusal
    appview.refusals[did_of(2)] = {"error": "InvalidRequest", "message": "Profile not found"}
    ended = run("recheck", "--data-dir", tmp_path, appview__url=appview.url, **QUICK)
    assert (ended.code, ended.out) == (0, "10 posts looked up\n"), ended.err
    assert run(*drain).code == 0
    gone, hidden = {rkey(n) for n in (1, 3, 8)}, {rkey(n) for n in (2, 7)}
    for found in states(tmp_path):
        assert {name for name, state in found.items() if state == "deleted"} == gone
        assert {name for name, state in found.items() if state == "hidden"} == hidden
        assert len(found) == 10
    assert {text for name, (_, text) in in_journal(tmp_path).items() if name in gone} == {None}
    assert counted(tmp_path) == {"deleted": 1, "present": 5}
    assert balance_closes(tmp_path)

    # The account that was hidden is there again.
    know(appview, tmp_path)
    assert run("recheck", "--data-dir", tmp_path, appview__url=appview.url, **QUICK).code == 0
    assert run(*drain).code == 0
    for found in states(tmp_path):
        assert {name for name, state in found.items() if state == "deleted"} == gone
        assert "hidden" not in found.values()


def test_only_those_who_are_named_are_looked_up_when_somebody_is_named(
    relay: Led, appview: AppViewServer, tmp_path: Path
) -> None:
    collected(tmp_path, relay, 6, 3)
    know(appview, tmp_path)
    appview.handles["alice.test"] = did_of(1)
    post = uri(rkey(3), did_of(2))
    ended = run("recheck", "alice.test", post, "--data-dir", tmp_path, appview__url=appview.url, **QUICK)
    assert ended.code == 0, ended.err
    assert set(asked(appview)) == {uri(rkey(2), did_of(1)), uri(rkey(5), did_of(1)), post}
    unknown = run("recheck", "bob.test", "--data-dir", tmp_path, appview__url=appview.url)
    assert unknown.code == 2
    assert unknown.err.startswith("civicsky: handle 'bob.test': no account has it")


def test_a_running_service_takes_over_what_a_person_asks_for(
    relay: Led, appview: AppViewServer, tmp_path: Path
) -> None:
    collected(tmp_path, relay, 4, 2)
    know(appview, tmp_path)
    del appview.posts[uri(rkey(2), did_of(1))]
    process = start("collect", "--relay", relay.url, "--data-dir", tmp_path, appview__url=appview.url, **QUICK)
    until(lambda: len(relay.asked) == 2, "the service to run")
    ended = run("recheck", did_of(1), "--data-dir", tmp_path, appview__url=appview.url)
    assert (ended.code, ended.out) == (0, "the running service will look them up\n")
    end_when(process, lambda: in_journal(tmp_path)[rkey(2)] == ("deleted", None), "the post to be found gone")
    assert set(asked(appview)) == {uri(rkey(n), did_of(1)) for n in (2, 4)}


def test_an_api_that_says_that_everything_is_gone_is_not_believed(
    relay: Led, appview: AppViewServer, tmp_path: Path
) -> None:
    collected(tmp_path, relay, 6, 6)
    know(appview, tmp_path)
    appview.posts.clear()
    ended = run("recheck", "--data-dir", tmp_path, appview__url=appview.url, **QUICK)
    assert ended.code == 1
    assert ended.err.startswith("civicsky: ")
    assert ended.err.count("\n") == 1
    assert {state for state, _ in in_journal(tmp_path).values()} == {"live"}


def test_one_odd_post_does_not_spoil_what_is_found_of_the_others(
    relay: Led, appview: AppViewServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected(tmp_path, relay, 30, 3)
    know(appview, tmp_path)
    odd, gone = uri(rkey(20), did_of(19 % 3)), uri(rkey(21), did_of(20 % 3))
    del appview.posts[gone]
    answer = appview.answer

    def spoiled(method: str, query: dict[str, list[str]]) -> tuple[int, bytes]:
        return (400, b"{}") if odd in query.get("uris", []) else answer(method, query)

    monkeypatch.setattr(appview, "answer", spoiled)
    ended = run("recheck", "--data-dir", tmp_path, appview__url=appview.url, **QUICK)
    assert ended.code == 0, ended.err
    found = in_journal(tmp_path)
    assert [name for name, (state, _) in found.items() if state == "deleted"] == [rkey(21)]
    assert counted(tmp_path) == {"deleted": 1, "present": 28, "doubtful": 1}
    assert [len(call.query["uris"]) for call in appview.named("getPosts")][:3] == [RECHECK_PAGE, 1, 1]


def test_a_busy_api_is_asked_again_after_a_pause(relay: Led, appview: AppViewServer, tmp_path: Path) -> None:
    collected(tmp_path, relay, 3, 3)
    know(appview, tmp_path)
    del appview.posts[uri(rkey(3), did_of(2))]
    appview.next.append(Trouble(status=503))
    process = start("collect", "--relay", relay.url, "--data-dir", tmp_path, appview__url=appview.url, **QUICK)
    until(lambda: len(relay.asked) == 2, "the service to run")
    assert run("recheck", "--data-dir", tmp_path, appview__url=appview.url).code == 0
    ended = end_when(process, lambda: in_journal(tmp_path)[rkey(3)] == ("deleted", None), "the answer")
    assert [event["why"] for event in events(ended, "appview_down")] == [
        f"public API at {appview.url} answers HTTP 503"
    ]
    assert len(events(ended, "appview_up")) == 1
    assert len(appview.named("getPosts")) == 3, "once in vain, and twice, since an account may come back in between"


def test_a_round_goes_on_at_its_place_after_a_restart(
    relay: Led, appview: AppViewServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected(tmp_path, relay, 60, 3)
    know(appview, tmp_path)
    answer = appview.answer

    def once(method: str, query: dict[str, list[str]]) -> tuple[int, bytes]:
        return (503, b"{}") if len(appview.calls) > 1 else answer(method, query)

    monkeypatch.setattr(appview, "answer", once)
    ended = run("recheck", "--data-dir", tmp_path, appview__url=appview.url, **QUICK)
    assert ended.code == 1
    assert ended.err.startswith(f"civicsky: public API at {appview.url} answers HTTP 503; what is left is looked up")
    monkeypatch.undo()
    first, appview.calls = [uri(rkey(n), did_of((n - 1) % 3)) for n in range(60, 35, -1)], []
    process = start(
        "collect", "--relay", relay.url, "--data-dir", tmp_path, appview__url=appview.url,
        appview__recheck_after_seconds=0, **QUICK,
    )  # fmt: skip
    end_when(process, lambda: query(tmp_path / "journal.db", "SELECT count(*) FROM recheck") == [(0,)], "its end")
    assert len(asked(appview)) == 35
    assert not set(first) & set(asked(appview))


# ---- rounds that the stream asks for ---------------------------------------------------------------------------------


def test_a_sync_asks_about_its_own_account_only(relay: Led, appview: AppViewServer, tmp_path: Path) -> None:
    collected(tmp_path, relay, 6, 3)
    know(appview, tmp_path)
    del appview.posts[uri(rkey(4), did_of(0))]
    process = start(
        "collect", "--relay", relay.url, "--data-dir", tmp_path, appview__url=appview.url,
        appview__recheck_after_seconds=0, **QUICK,
    )  # fmt: skip
    for n in (0, 9, 0):  # of an account without posts, too; and twice
        relay.sync(did=did_of(n))
    end_when(
        process,
        lambda: in_journal(tmp_path)[rkey(4)] == ("deleted", None) and cursor(tmp_path) == relay.seq
        and not query(tmp_path / "journal.db", "SELECT 1 FROM recheck"),
        "the post to be found gone",
    )  # fmt: skip
    assert set(asked(appview)) == {uri(rkey(n), did_of(0)) for n in (1, 4)}


def test_after_a_silence_that_nobody_can_tell_from_a_gap_posts_are_looked_up(
    relay: Led, appview: AppViewServer, tmp_path: Path
) -> None:
    """Six posts are no measure for hours in which the relay sent nothing, or left it out."""
    collected(tmp_path, relay, 6, 3)
    know(appview, tmp_path)
    del appview.posts[uri(rkey(2), did_of(1))]
    process = start(
        "collect", "--relay", relay.url, "--data-dir", tmp_path, appview__url=appview.url,
        appview__recheck_after_seconds=0, **QUICK,
    )  # fmt: skip
    relay.delete(rkey(9), at=NOW)  # of a post that we never had
    end_when(process, lambda: in_journal(tmp_path)[rkey(2)] == ("deleted", None), "the post to be found gone")
    assert query(tmp_path / "journal.db", "SELECT resume FROM held ORDER BY id") == [("first",), ("unverified",)]
    assert query(tmp_path / "journal.db", "SELECT 1 FROM gap") == []
    assert set(asked(appview)) == {uri(rkey(n), did_of((n - 1) % 3)) for n in range(1, 7)}


def test_nothing_is_asked_when_that_is_switched_off(relay: Led, appview: AppViewServer, tmp_path: Path) -> None:
    collected(tmp_path, relay, 2, 1)
    process = start(
        "collect", "--relay", relay.url, "--data-dir", tmp_path, appview__url=appview.url,
        appview__recheck_after_seconds=0, appview__recheck="false", **QUICK,
    )  # fmt: skip
    relay.sync(did=did_of(0))
    waits = "SELECT why FROM recheck"
    end_when(process, lambda: query(tmp_path / "journal.db", waits) == [("sync",)], "the round to be asked for")
    assert appview.calls == []


async def test_after_a_gap_all_three_databases_hold_what_there_is(tmp_path: Path, model: tuple[str, Path]) -> None:
    plan = {"name": "go_live_after_gap", "after": 500, "skip": 300, "jump_seconds": 100}
    async with playing(plan, rate=400, events=1400) as relay:
        process = begin(
            tmp_path, relay, "--model-url", model[0], "--model", "mock", verb="run", appview__recheck="true",
            appview__recheck_after_seconds=0.5,
        )  # fmt: skip
        ended = await asyncio.to_thread(
            end_when, process, lambda: has_converged(tmp_path, relay.control, [relay.hosts[0].address]),
            "all to be held and looked up",
        )  # fmt: skip
        plain = relay.oracle(cursors=cursors(tmp_path, relay))
        told = relay.oracle(cursors=cursors(tmp_path, relay), rechecked=True)
    assert ended.code == 0, ended.err
    assert told["lost"] > 100
    assert plain["posts"] != told["posts"]
    compare(tmp_path, told)
    in_journal, in_ledger, in_store = states(tmp_path)
    for name, state in in_journal.items():
        assert in_ledger.get(name, "deleted") == in_store.get(name, "deleted") == state, name
    assert events(ended, "rechecked")


# ---- what happens meanwhile ------------------------------------------------------------------------------------------


async def a_page(rechecks: Rechecks) -> tuple[Round, list[Checked]]:
    page = await rechecks.next_page(2**62)
    assert page is not None
    return page


async def test_a_post_that_changed_between_question_and_answer_is_left_alone(
    relay: Led, appview: AppViewServer, tmp_path: Path
) -> None:
    await asyncio.to_thread(collected, tmp_path, relay, 2, 1)
    await asyncio.to_thread(know, appview, tmp_path)
    appview.posts.clear()
    journal = await Journal.open(tmp_path / "journal.db", JournalSettings())
    client = AppView(AppViewSettings(url=appview.url, per_second=1000))
    try:
        rechecks = Rechecks(journal.database)
        await rechecks.ask([])
        taken, page = await a_page(rechecks)
        found = await look_up(client, page, [])
        assert len(found.gone) == 2
        with closing(sqlite3.connect(tmp_path / "journal.db")) as db, db:
            db.execute("UPDATE post SET rev = '3zzzzzzzzzzzz', cid = 'new' WHERE rkey = ?", (rkey(2),))
        await rechecks.apply(taken, page, found)
    finally:
        await client.close()
        await journal.close()
    assert {name: state for name, (state, _) in in_journal(tmp_path).items()} == {rkey(1): "deleted", rkey(2): "live"}
    assert counted(tmp_path) == {"deleted": 1}


async def test_an_account_whose_second_sync_comes_between_question_and_answer_is_looked_up_again(
    relay: Led, appview: AppViewServer, tmp_path: Path
) -> None:
    """The answer on its way does not know yet what the second one took away."""
    await asyncio.to_thread(collected, tmp_path, relay, 2, 1)
    await asyncio.to_thread(know, appview, tmp_path)
    journal = await Journal.open(tmp_path / "journal.db", JournalSettings())
    client = AppView(AppViewSettings(url=appview.url, per_second=1000))
    try:
        rechecks = Rechecks(journal.database)
        async with journal.database.transaction() as db:
            await ask_recheck_of(db, did_of(0))
        taken, page = await a_page(rechecks)
        found = await look_up(client, page, [])
        del appview.posts[uri(rkey(2), did_of(0))]
        async with journal.database.transaction() as db:
            await ask_recheck_of(db, did_of(0))
        await rechecks.apply(taken, page, found)
        taken, page = await a_page(rechecks)
        assert [post.rkey for post in page] == [rkey(2), rkey(1)]
        await rechecks.apply(taken, page, await look_up(client, page, []))
        assert await rechecks.next_page(2**62) is None
    finally:
        await client.close()
        await journal.close()
    assert {name: state for name, (state, _) in in_journal(tmp_path).items()} == {rkey(1): "live", rkey(2): "deleted"}


@pytest.mark.parametrize("seed", range(8))
async def test_every_post_is_looked_up_after_the_last_gap_however_many_came_during_the_rounds(
    seed: int, collected_70: Path, appview: AppViewServer, tmp_path: Path
) -> None:
    """Also those of the page whose answer was on its way."""
    folder, randomness = Path(shutil.copytree(collected_70, tmp_path / "data")), Random(seed)
    know(appview, folder)
    journal = await Journal.open(folder / "journal.db", JournalSettings())
    client = AppView(AppViewSettings(url=appview.url, per_second=1000))
    since: set[str] = set()
    gaps = 6
    try:
        rechecks = Rechecks(journal.database)
        while (page := await rechecks.next_page(2**62)) or gaps:
            found = await look_up(client, page[1], []) if page else None
            since |= {post.uri for post in page[1]} if page else set()
            if gaps and (randomness.random() < 0.4 or page is None):
                gaps -= 1
                since.clear()
                async with journal.database.transaction() as db:
                    await ask_recheck(db, "gap", 0)
            assert await rechecks.waiting() <= 2
            if page and found:
                await rechecks.apply(*page, found)
    finally:
        await client.close()
        await journal.close()
    assert since == {uri(rkey(n), did_of((n - 1) % 3)) for n in range(1, 71)}


def test_a_status_that_is_on_its_way_wins_over_an_answer_that_lagged(
    relay: Led, appview: AppViewServer, tmp_path: Path
) -> None:
    """The API still called the account deactivated; the stream then says when it came back, some seconds earlier."""
    collected(tmp_path, relay, 2, 1)
    appview.refusals[did_of(0)] = {"error": "AccountDeactivated", "message": "x"}
    assert run("recheck", "--data-dir", tmp_path, appview__url=appview.url, **QUICK).code == 0
    assert {state for state, _ in in_journal(tmp_path).values()} == {"hidden"}
    relay.account("active", did=did_of(0))
    process = start("collect", "--relay", relay.url, "--data-dir", tmp_path, **QUICK)
    end_when(process, lambda: cursor(tmp_path) == relay.seq, "the account's word")
    assert {state for state, _ in in_journal(tmp_path).values()} == {"live"}
