"""`civicsky hydrate --verify`: every post of the store is looked up, also those that the journal has pruned."""

import asyncio
import json
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from civicsky import inbox
from conftest import Client, Mongod
from support.appview_server import AppViewServer, Trouble, appview_server
from support.asked import ASKS, GIVES_UP, asked, collected, did, know, labelled, post_uri, rkey
from support.command import Ended, end_when, finish, model_server, query, run, start, until
from support.inboxed import FETCHED, item, leave
from support.led import (
    SECRET,
    Led,
    all_told,
    balance_closes,
    files_that_hold,
    in_journal,
    in_ledger,
    in_store,
    led_relay,
    prune,
    service,
    states,
)

GONE = {"error": "InvalidRequest", "message": "Profile not found"}
TAKEN_DOWN = {"error": "AccountTakedown", "message": "x"}


@pytest.fixture
def relay() -> Iterator[Led]:
    with led_relay() as led:
        yield led


@pytest.fixture
def appview() -> Iterator[AppViewServer]:
    with appview_server() as server:
        yield server


class Template(NamedTuple):
    """A data directory to be copied, and what the API knows of it."""

    folder: Path
    posts: dict[str, str]
    profiles: set[str]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """70 posts of 7 authors, labelled and stored, that the journal has pruned; and 3 that it has."""
    folder = tmp_path_factory.mktemp("pruned") / "data"
    log = folder.with_name("model.log")
    log.touch()
    with led_relay() as relay, appview_server() as api, model_server(log) as url:
        collected(folder, relay, [300.0 - n for n in range(70)])
        labelled(folder, (url, log))
        know(api, folder)
        asyncio.run(prune(folder))
        assert in_journal(folder) == {}
        for n in (70, 71, 72):
            relay.post(rkey(n), f"A newer post in plain English, number {n}", did=did(n))
        ended = run("collect", "--relay", relay.url, "--data-dir", folder, "--max-frames", 3, **ASKS)
        assert ended.code == 0, ended.err
        labelled(folder, (url, log))
        know(api, folder)
        return Template(folder, dict(api.posts), set(api.profiles))


@pytest.fixture
def pruned(template: Template, appview: AppViewServer, tmp_path: Path) -> Path:
    """A copy of it, for one test."""
    appview.posts |= template.posts
    appview.profiles |= template.profiles
    return Path(shutil.copytree(template.folder, tmp_path / "data"))


def verified(folder: Path, appview: AppViewServer, *args: str, **settings: Any) -> dict[str, Any]:
    ended = attempt(folder, appview, *args, "--json", **settings)
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def attempt(folder: Path, appview: AppViewServer, *args: str, **settings: Any) -> Ended:
    return run("hydrate", "--verify", *args, "--data-dir", folder, appview__url=appview.url, **{**ASKS, **settings})


def state_of(folder: Path) -> dict[str, str]:
    return {key: document["state"] for key, document in in_store(folder).items()}


# ---- what is found ---------------------------------------------------------------------------------------------------


async def test_what_is_gone_of_pruned_and_unpruned_posts_becomes_a_tombstone_everywhere_and_accounts_follow(
    pruned: Path, appview: AppViewServer
) -> None:
    for n in (5, 6, 71):
        del appview.posts[post_uri(n)]
    for n, refusal in {3: TAKEN_DOWN, 4: GONE}.items():
        appview.profiles.discard(did(n))
        appview.refusals[did(n)] = refusal
        for post in range(n, 73, 7):
            del appview.posts[post_uri(post)]
    hidden = {rkey(n) for n in range(3, 73, 7)}
    removed = {rkey(n) for n in range(4, 73, 7)}
    gone = {rkey(n) for n in (5, 6, 71)} | removed
    found = verified(pruned, appview)
    assert found["looked_up"] == found["there"] + found["deleted"] + found["not_there"]
    assert (found["deleted"], found["there"]) == (3, 73 - 3 - len(hidden) - len(removed))
    assert (found["accounts_hidden"], found["accounts_removed"], found["stored"]) == (1, 1, True)
    store = in_store(pruned)
    assert {key for key, doc in store.items() if doc["state"] == "deleted"} == gone
    assert {key for key, doc in store.items() if doc["state"] == "hidden"} == hidden
    assert all("text" not in doc for key, doc in store.items() if key in gone)
    assert {key for key, state in in_ledger(pruned).items() if state == "deleted"} == gone
    labels = query(
        pruned / "posts.db", "SELECT uri, doc ->> '$.fields' FROM labels WHERE doc ->> '$.state' = 'deleted'"
    )
    assert {uri.rpartition("/")[2] for uri, _ in labels} == gone
    assert {fields for _, fields in labels} == {None}
    assert not (pruned / "verify.json").exists()
    assert balance_closes(pruned)

    # Once more nothing is new, and what was hidden is shown when it is there again.
    for post in range(3, 73, 7):
        appview.posts[post_uri(post)] = in_store(pruned)[rkey(post)]["cid"]
    appview.profiles.add(did(3))
    found = verified(pruned, appview)
    assert (found["looked_up"], found["deleted"], found["accounts_shown"]) == (73 - len(gone), 0, 1)
    assert {key for key, state in state_of(pruned).items() if state == "deleted"} == gone
    assert "hidden" not in state_of(pruned).values()


async def test_what_is_found_gone_stays_gone_whatever_a_feed_shows_later(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    text = f"The {SECRET} of the council's budget"
    kept = leave(folder, [item(n + 1, rkey(n), f"{text} {n}", did=did(n)) for n in range(7)])
    process = service(folder, relay, model)
    end_when(process, lambda: len(in_store(folder)) == 7 and all_told(folder), "the feed to be labelled")
    know(appview, folder)
    await prune(folder)
    assert in_journal(folder) == {}
    for n in range(2):
        del appview.posts[post_uri(n)]
    assert verified(folder, appview)["deleted"] == 2
    assert [one.key for one in inbox.read(kept)[1]] == [(rkey(n), did(n)) for n in range(2, 7)]
    assert query(folder / "posts.db", "SELECT count(*) FROM snapshots") == [(5,)]
    leave(folder, [item(1, rkey(0), f"{text} 0", did=did(0))], at=FETCHED + 60_000_000)
    process = service(folder, relay, model)
    until(lambda: len(query(folder / "journal.db", "SELECT 1 FROM fetched")) == 2, "the second feed")
    until(lambda: query(folder / "journal.db", "SELECT count(*) FROM scrub") == [(0,)], "its file to be scrubbed")
    end_when(process, lambda: all_told(folder), "all to be told")
    assert state_of(folder)[rkey(0)] == "deleted"
    assert files_that_hold(folder, f"{SECRET} of the council's budget 0") == []


async def test_posts_of_mongodb_are_looked_up_too(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path, mongod: Mongod, mongo_database: str
) -> None:
    mongo = {"store__mongo_uri": mongod.uri, "store__mongo_database": mongo_database}
    collected(tmp_path, relay, [100.0 - n for n in range(30)])
    labelled(tmp_path, model, **mongo)
    know(appview, tmp_path)
    await prune(tmp_path)
    for n in (1, 28):
        del appview.posts[post_uri(n)]
    assert verified(tmp_path, appview, **mongo)["deleted"] == 2
    with Client(mongod.uri) as db:
        gone = db[mongo_database].posts.find({"state": "deleted"})
        assert {one["_id"] for one in gone} == {post_uri(1), post_uri(28)}
        assert db[mongo_database].posts.count_documents({"text": {"$exists": True}}) == 28


async def test_a_post_that_was_edited_meanwhile_stays_and_is_told(pruned: Path, appview: AppViewServer) -> None:
    appview.posts[post_uri(7)] = "bafyother"
    found = verified(pruned, appview)
    assert (found["changed"], found["deleted"], found["there"]) == (1, 0, 73)


async def test_only_posts_of_a_time_are_looked_up_when_asked_so(pruned: Path, appview: AppViewServer) -> None:
    times = {key: document["event_at"] for key, document in in_store(pruned).items()}
    found = verified(pruned, appview, "--since", times[rkey(10)], "--until", times[rkey(20)])
    assert found["looked_up"] == 10
    assert set(asked(appview)) == {post_uri(n) for n in range(10, 20)}
    ended = attempt(pruned, appview, "--since", "yesterday")
    assert ended.code == 2
    assert ended.err.startswith("civicsky: --since yesterday: neither a date")


async def test_one_odd_post_does_not_spoil_what_is_found_of_the_others(pruned: Path, appview: AppViewServer) -> None:
    appview.stumbles[post_uri(30)] = Trouble(status=400)
    del appview.posts[post_uri(31)]
    found = verified(pruned, appview)
    assert (found["looked_up"], found["deleted"], found["unclear"]) == (73, 1, 1)


# ---- an API that is not to be believed -------------------------------------------------------------------------------


async def test_an_api_that_knows_no_post_of_anybody_is_never_believed(pruned: Path, appview: AppViewServer) -> None:
    appview.posts.clear()
    ended = attempt(pruned, appview)
    assert ended.code == 1
    assert ended.err.startswith("civicsky: the public API shows no post of anybody")
    assert ended.err.count("\n") == 1
    assert set(state_of(pruned).values()) == {"live"}


async def test_an_api_that_forgets_all_posts_halfway_is_not_believed_either(
    pruned: Path, appview: AppViewServer
) -> None:
    answer = appview.answer

    def forgetful(method: str, query: dict[str, list[str]]) -> tuple[int, bytes]:
        if len(appview.named("getPosts")) > 1:
            appview.posts.clear()
        return answer(method, query)

    appview.answer = forgetful  # type: ignore[method-assign]
    assert attempt(pruned, appview).code == 1
    assert set(state_of(pruned).values()) == {"live"}


async def test_an_api_that_says_nothing_of_use_about_accounts_deletes_nothing(
    pruned: Path, appview: AppViewServer
) -> None:
    appview.posts.clear()
    appview.profiles.clear()
    appview.refusals.update({did(n): {"error": "InternalServerError", "message": "x"} for n in range(7)})
    assert verified(pruned, appview)["unclear"] == 73
    assert set(state_of(pruned).values()) == {"live"}


# ---- beside a service, and again -------------------------------------------------------------------------------------


async def test_while_the_service_runs_ledger_and_store_follow_before_the_command_ends(
    pruned: Path, relay: Led, appview: AppViewServer, model: tuple[str, Path]
) -> None:
    process = service(pruned, relay, model)
    until(lambda: len(relay.asked) == 1, "the service to run")
    for n in (5, 72):
        del appview.posts[post_uri(n)]
    found = verified(pruned, appview)
    assert (found["deleted"], found["stored"]) == (2, True)
    assert {key for key, state in state_of(pruned).items() if state == "deleted"} == {rkey(5), rkey(72)}
    end_when(process, lambda: True, "the end")
    for told in states(pruned)[1:]:
        assert {key for key, state in told.items() if state == "deleted"} == {rkey(5), rkey(72)}


async def test_one_that_was_killed_goes_on_where_it_was(pruned: Path, appview: AppViewServer) -> None:
    del appview.posts[post_uri(3)], appview.posts[post_uri(60)]
    answer = appview.answer

    def stopping(method: str, query: dict[str, list[str]]) -> tuple[int, bytes]:
        if post_uri(55) in query.get("uris", ()):
            appview.answering.clear()
            appview.answering.wait()
        return answer(method, query)

    appview.answer = stopping  # type: ignore[method-assign]
    process = start("hydrate", "--verify", "--data-dir", pruned, appview__url=appview.url, **ASKS)
    until(lambda: post_uri(55) in asked(appview), "the third page")
    process.send_signal(signal.SIGKILL)
    assert finish(process).code == -9
    appview.answer = answer  # type: ignore[method-assign]
    appview.answering.set()
    appview.calls.clear()
    found = verified(pruned, appview)
    assert (found["looked_up"], found["deleted"]) == (73, 2)
    assert set(asked(appview)[:23]) == {post_uri(n) for n in range(50, 73)}, "what was looked up is not looked up again"
    assert {key for key, state in state_of(pruned).items() if state == "deleted"} == {rkey(3), rkey(60)}


async def test_an_api_that_cannot_be_asked_ends_with_1_and_the_next_one_goes_on(
    pruned: Path, appview: AppViewServer
) -> None:
    del appview.posts[post_uri(3)]
    appview.stumbles[post_uri(30)] = Trouble(status=503, headers=GIVES_UP)
    ended = attempt(pruned, appview)
    assert ended.code == 1
    assert "answers HTTP 503; 25 posts are looked up, the next --verify goes on from there" in ended.err
    appview.stumbles.clear()
    assert verified(pruned, appview)["looked_up"] == 73
    assert state_of(pruned)[rkey(3)] == "deleted"


async def test_a_note_that_cannot_be_read_is_told(pruned: Path, appview: AppViewServer) -> None:
    (pruned / "verify.json").write_text("{")
    ended = attempt(pruned, appview)
    assert ended.code == 2
    assert "verify.json cannot be read; remove it" in ended.err


async def test_an_edit_that_came_between_question_and_answer_wins(pruned: Path, appview: AppViewServer) -> None:
    del appview.posts[post_uri(71)]
    answer = appview.answer

    def editing(method: str, query: dict[str, list[str]]) -> tuple[int, bytes]:
        if post_uri(71) in query.get("uris", ()):
            with closing(sqlite3.connect(pruned / "journal.db")) as db:
                db.execute("UPDATE post SET rev = '3zzzzzzzzzzzz', cid = 'new' WHERE rkey = ?", (rkey(71),))
                db.commit()
        return answer(method, query)

    appview.answer = editing  # type: ignore[method-assign]
    assert verified(pruned, appview)["deleted"] == 0
    assert in_journal(pruned)[rkey(71)][0] == "live"
