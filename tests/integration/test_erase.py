"""What an author or a person takes back is in no file and no store, and does not come again."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest

from conftest import Client, Mongod
from support.appview_server import AppViewServer, appview_server
from support.command import cursor, end_when, query, run, until
from support.frames import block_and_cid, commit_of, operation, post, tid
from support.led import (
    FIRST,
    OTHER,
    QUICK,
    SECOND,
    SECRET,
    A,
    B,
    Led,
    all_told,
    balance_closes,
    counts,
    did_of,
    files_that_hold,
    in_journal,
    in_store,
    led_relay,
    moment,
    service,
    states,
    three_posts,
    uri,
)


@pytest.fixture
def relay() -> Iterator[Led]:
    with led_relay() as led:
        yield led


@pytest.fixture
def appview() -> Iterator[AppViewServer]:
    with appview_server() as server:
        server.handles["alice.test"] = A
        yield server


NAMES: dict[str, tuple[str, int]] = {
    "did": (A, 2),
    "handle": ("alice.test", 2),
    "handle with @": ("@Alice.test", 2),
    "uri": (uri(FIRST, A), 1),
    "page": (f"https://bsky.app/profile/alice.test/post/{FIRST}", 1),
    "page with a DID": (f"https://bsky.app/profile/{A}/post/{FIRST}", 1),
}


# ---- at your word ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", NAMES)
def test_what_is_erased_while_nothing_runs_is_in_no_file_and_does_not_come_again(
    how: str, relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    name, posts = NAMES[how]
    folder = tmp_path / "data"
    three_posts(relay)
    process = service(folder, relay, model)
    end_when(process, lambda: cursor(folder) == 3 and all_told(folder), "all to be labelled and stored")
    assert len(files_that_hold(folder, SECRET)) >= 2, "the test looks in the right place"
    ended = run("erase", name, "--data-dir", folder, appview__url=appview.url)
    assert ended.code == 0, ended.err
    assert f": {posts} posts erased\n" in ended.out
    gone = {FIRST, SECOND} if posts == 2 else {FIRST}
    for found in states(folder):
        assert {rkey for rkey, state in found.items() if state == "deleted"} == gone
    if posts == 2:
        assert files_that_hold(folder, SECRET) == []
    assert "text" not in in_store(folder)[FIRST]

    # It is made again, and edited; and the store does not follow.
    relay.post(FIRST, f"Again the {SECRET}", did=A)
    relay.post(FIRST, f"Still the {SECRET}", did=A, action="update")
    relay.post("3aaaaaaaaaaad", "A later post of the same author, in plain English", did=A)
    process = service(folder, relay, model)
    end_when(process, lambda: cursor(folder) == 6 and all_told(folder), "what comes later")
    rejected = query(folder / "journal.db", "SELECT n FROM count WHERE outcome = 'rejected' AND reason = 'erased'")
    assert sum(n for (n,) in rejected) == (3 if posts == 2 else 2)
    assert ("3aaaaaaaaaaad" in in_store(folder)) == (posts == 1)
    assert balance_closes(folder)
    if posts == 2:
        assert files_that_hold(folder, SECRET) == []


@pytest.mark.parametrize("labelled", [True, False])
def test_what_is_erased_while_the_service_runs_is_in_no_file(
    labelled: bool, relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    three_posts(relay)
    address = model if labelled else ("http://127.0.0.1:1/v1", model[1])
    process = service(folder, relay, address)
    stored = "SELECT count(*) FROM posts"
    until(lambda: all_told(folder) if labelled else query(folder / "posts.db", stored) == [(3,)], "all to be stored")
    ended = run("erase", A, "--data-dir", folder)
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"{A}: 2 posts erased\n")
    for found in states(folder):
        assert {rkey for rkey, state in found.items() if state == "deleted"} == {FIRST, SECOND}
    relay.post(FIRST, f"Again the {SECRET}", did=A)
    end_when(process, lambda: cursor(folder) == 4, "what comes later")
    assert files_that_hold(folder, SECRET) == []
    assert counts(folder, "post")["rejected"] == 1


def test_what_was_only_collected_can_be_erased(relay: Led, tmp_path: Path) -> None:
    three_posts(relay)
    ended = run("collect", "--relay", relay.url, "--data-dir", tmp_path, "--max-frames", 3, **QUICK)
    assert ended.code == 0, ended.err
    ended = run("erase", A, uri(OTHER, B), "--data-dir", tmp_path)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[:2] == [f"{A}: 2 posts erased", f"{uri(OTHER, B)}: 1 posts erased"]
    assert files_that_hold(tmp_path, SECRET) == []
    assert {state for state, _ in in_journal(tmp_path).values()} == {"deleted"}


def test_erasing_twice_or_what_was_never_held_is_no_error(relay: Led, tmp_path: Path) -> None:
    three_posts(relay)
    assert run("collect", "--relay", relay.url, "--data-dir", tmp_path, "--max-frames", 3, **QUICK).code == 0
    for n in (2, 0):
        ended = run("erase", A, A, "--data-dir", tmp_path)
        assert (ended.code, ended.out.splitlines()[0]) == (0, f"{A}: {n} posts erased")
    assert run("erase", did_of(7), "--data-dir", tmp_path).out.startswith(f"{did_of(7)}: 0 posts erased")


@pytest.mark.parametrize("name", ["nonsense", "at://x/y", "", "https://example.com/x", "at://alice.test/x/y"])
def test_a_name_that_is_none_says_what_to_give(name: str, relay: Led, tmp_path: Path) -> None:
    three_posts(relay)
    assert run("collect", "--relay", relay.url, "--data-dir", tmp_path, "--max-frames", 3, **QUICK).code == 0
    ended = run("erase", A, name, "--data-dir", tmp_path)
    assert ended.code == 2
    assert ended.err.startswith("civicsky: ")
    assert "give a DID" in ended.err
    assert {state for state, _ in in_journal(tmp_path).values()} == {"live"}, "all or nothing"


def test_a_handle_that_nobody_has_or_nobody_can_look_up_now_erases_nothing(
    relay: Led, appview: AppViewServer, tmp_path: Path
) -> None:
    three_posts(relay)
    assert run("collect", "--relay", relay.url, "--data-dir", tmp_path, "--max-frames", 3, **QUICK).code == 0
    ended = run("erase", "bob.test", "--data-dir", tmp_path, appview__url=appview.url)
    assert (ended.code, "handle 'bob.test': no account has it" in ended.err) == (2, True)
    ended = run("erase", "alice.test", "--data-dir", tmp_path, appview__url="http://127.0.0.1:1")
    assert (ended.code, "cannot be reached" in ended.err) == (1, True)
    assert {state for state, _ in in_journal(tmp_path).values()} == {"live"}


def test_what_is_erased_leaves_mongodb(
    relay: Led, model: tuple[str, Path], mongod: Mongod, mongo_database: str, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    mongo: dict[str, Any] = {"store__mongo_uri": mongod.uri, "store__mongo_database": mongo_database}
    three_posts(relay)
    process = service(folder, relay, model, **mongo)
    end_when(process, lambda: cursor(folder) == 3 and all_told(folder), "all to be labelled and stored")
    with Client(mongod.uri) as db:
        assert db[mongo_database].posts.count_documents({"text": {"$regex": SECRET}}) == 2
        ended = run("erase", A, "--data-dir", folder, **mongo)
        assert ended.code == 0, ended.err
        documents = [*db[mongo_database].posts.find(), *db[mongo_database].labels.find()]
    assert SECRET not in str(documents)
    assert sorted(doc["state"] for doc in documents) == ["deleted"] * 4 + ["live"] * 2
    assert files_that_hold(folder, SECRET) == []


def test_a_store_that_is_away_is_said_and_told_later(relay: Led, tmp_path: Path, model: tuple[str, Path]) -> None:
    folder = tmp_path / "data"
    three_posts(relay)
    end_when(service(folder, relay, model), lambda: cursor(folder) == 3 and all_told(folder), "all to be stored")
    away: dict[str, Any] = {
        "store__mongo_uri": "mongodb://127.0.0.1:1/?directConnection=true",
        "store__timeout_seconds": 0.2,
    }
    ended = run("erase", A, "--data-dir", folder, **away)
    assert ended.code == 1
    assert "2 posts erased; the store follows: MongoDB at 127.0.0.1:1/civicsky cannot be reached" in ended.out
    again = run("erase", A, "--data-dir", folder)
    assert again.code == 0
    assert files_that_hold(folder, SECRET) == []


# ---- at the author's word --------------------------------------------------------------------------------------------


def reply_with_link(text: str) -> dict[str, Any]:
    """A post that holds the text in each of its fields that are kept."""
    external = {"uri": f"https://example.com/{text}", "title": text, "description": text}
    return post(
        f"The {text} of the council's budget", embed={"$type": "app.bsky.embed.external", "external": external},
        tags=[text], odd=text,
    )  # fmt: skip


def planted(relay: Led) -> None:
    """One text in each place that is scrubbed: a post that is kept, one that is rejected, a frame that is put aside."""
    seq = relay.next()
    block, cid = block_and_cid(reply_with_link(SECRET))
    relay.send(commit_of(seq, [operation("create", FIRST, cid)], [(block, cid)], rev=tid(seq), did=A, time=moment(seq)))
    seq = relay.next()
    german = post(f"Der {SECRET} im Haushalt der Stadt ist ein Thema für den Rat und die Bürger", langs=["de"])
    block, cid = block_and_cid(german)
    relay.send(
        commit_of(seq, [operation("create", SECOND, cid)], [(block, cid)], rev=tid(seq), did=A, time=moment(seq))
    )
    seq = relay.next()
    block, cid = block_and_cid([SECRET])
    relay.send(commit_of(seq, [operation("create", OTHER, cid)], [(block, cid)], rev=tid(seq), did=A, time=moment(seq)))
    assert SECRET in str(cbor2.loads(block))


PLACES = {
    "journal.post": "SELECT count(*) FROM post WHERE instr(record, ?1) AND instr(fields, ?1)",
    "journal.reject": "SELECT count(*) FROM reject WHERE instr(record, ?1)",
    "journal.quarantine": "SELECT count(*) FROM quarantine WHERE instr(bytes, ?1)",
    "posts.posts": "SELECT count(*) FROM posts WHERE instr(doc, ?1)",
}


def places(folder: Path) -> dict[str, int]:
    return {
        name: query(folder / f"{name.partition('.')[0]}.db", sql.replace("?1", f"CAST('{SECRET}' AS BLOB)")
                    if name.startswith("journal") and "fields" not in sql else sql.replace("?1", f"'{SECRET}'"))[0][0]
        for name, sql in PLACES.items()
    }  # fmt: skip


def delete_one_by_one(relay: Led) -> None:
    for rkey in (FIRST, SECOND, OTHER):
        relay.delete(rkey, did=A)


def delete_the_account(relay: Led) -> None:
    relay.account("deleted", did=A)


@pytest.mark.parametrize("way", [delete_one_by_one, delete_the_account])
def test_a_text_that_its_author_deleted_is_in_no_file(
    way: Callable[[Led], None], relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    planted(relay)
    process = service(folder, relay, model, journal__reject_sample=1)
    until(lambda: cursor(folder) == 3 and all_told(folder), "all to be labelled and stored")
    assert places(folder) == dict.fromkeys(PLACES, 1)
    assert query(folder / "ledger.db", "SELECT count(*) FROM label WHERE answer IS NOT NULL") == [(1,)]
    way(relay)
    ended = end_when(process, lambda: cursor(folder) == relay.seq and all_told(folder), "the deletion to be told")
    assert ended.code == 0, ended.err
    assert places(folder) == dict.fromkeys(PLACES, 0)
    assert files_that_hold(folder, SECRET) == []
    assert query(folder / "ledger.db", "SELECT count(*) FROM label WHERE answer IS NOT NULL") == [(0,)]
    labels = query(folder / "posts.db", "SELECT doc ->> '$.state', doc ->> '$.fields' FROM labels")
    assert labels == [("deleted", None)]
    assert SECRET not in ended.err
    assert balance_closes(folder)


def test_a_deletion_takes_away_the_frames_that_were_put_aside_of_its_author_only(relay: Led, tmp_path: Path) -> None:
    planted(relay)
    seq = relay.next()
    block, cid = block_and_cid(["another's"])
    relay.send(commit_of(seq, [operation("create", FIRST, cid)], [(block, cid)], rev=tid(seq), did=B, time=moment(seq)))
    relay.delete("3zzzzzzzzzzzz", did=A)
    ended = run("collect", "--relay", relay.url, "--data-dir", tmp_path, "--max-frames", 5, **QUICK)
    assert ended.code == 0, ended.err
    assert query(tmp_path / "journal.db", "SELECT did FROM quarantine") == [(B,)]
