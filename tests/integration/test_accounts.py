"""What becomes of an account's posts in journal, ledger and store, also when the journal has let go of them."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Client, Mongod
from support.command import cursor, end_when, query, until
from support.led import (
    FIRST,
    NOW,
    OTHER,
    SECOND,
    SECRET,
    A,
    B,
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
    three_posts,
    uri,
)

HIDING = ["takendown", "suspended", "deactivated", "desynchronized", "throttled"]


@pytest.fixture
def relay() -> Iterator[Led]:
    with led_relay() as led:
        yield led


def told(folder: Path, relay: Led) -> bool:
    return cursor(folder) == relay.seq and all_told(folder)


def stored_states(folder: Path) -> dict[str, str]:
    return {rkey: doc["state"] for rkey, doc in in_store(folder).items()}


# ---- through the stream ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", HIDING)
def test_a_hidden_accounts_posts_are_hidden_everywhere_and_come_back_with_it(
    status: str, relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    three_posts(relay)
    process = service(tmp_path, relay, model)
    until(lambda: told(tmp_path, relay), "all to be labelled and stored")
    relay.account(status, did=A)
    until(lambda: told(tmp_path, relay), "the account to be hidden")
    for found in states(tmp_path):
        assert found == {FIRST: "hidden", SECOND: "hidden", OTHER: "live"}
    relay.post("3aaaaaaaaaaad", "Written by an account that is hidden, in plain English", did=A)
    until(lambda: cursor(tmp_path) == relay.seq and "3aaaaaaaaaaad" in in_store(tmp_path), "a post made meanwhile")
    assert states(tmp_path)[2]["3aaaaaaaaaaad"] == "hidden"
    relay.account("active", did=A)
    end_when(process, lambda: told(tmp_path, relay), "the account to be back")
    for found in states(tmp_path):
        assert set(found.values()) == {"live"}
        assert len(found) == 4
    assert all(doc["labels"]["civic"]["fields"] for doc in in_store(tmp_path).values())
    assert balance_closes(tmp_path)


def test_a_hidden_post_is_labelled_only_once_it_is_to_be_seen_again(
    relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    relay.account("deactivated", did=A)
    three_posts(relay)
    process = service(tmp_path, relay, model)
    until(lambda: told(tmp_path, relay), "the others to be labelled and stored")
    assert len(model[1].read_text().splitlines()) == 1
    assert stored_states(tmp_path) == {FIRST: "hidden", SECOND: "hidden", OTHER: "live"}
    relay.account("active", did=A)
    end_when(process, lambda: told(tmp_path, relay), "the account to be back")
    assert len(model[1].read_text().splitlines()) == 3
    assert all(doc["labels"]["civic"]["fields"] for doc in in_store(tmp_path).values())


def test_a_deleted_accounts_posts_are_gone_everywhere_for_good(
    relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    three_posts(relay)
    process = service(tmp_path, relay, model)
    until(lambda: told(tmp_path, relay), "all to be labelled and stored")
    relay.account("deleted", did=A)
    until(lambda: told(tmp_path, relay), "the account to be gone")
    relay.account("active", did=A)
    end_when(process, lambda: told(tmp_path, relay), "the account to be back, without its posts")
    for found in states(tmp_path):
        assert found == {FIRST: "deleted", SECOND: "deleted", OTHER: "live"}
    assert files_that_hold(tmp_path, SECRET) == []
    assert balance_closes(tmp_path)


def test_what_comes_late_of_a_deleted_account_is_stale(relay: Led, model: tuple[str, Path], tmp_path: Path) -> None:
    late = NOW - 37_000_000_000
    three_posts(relay)
    relay.account("deleted", did=A)
    relay.post("3aaaaaaaaaaad", f"A late word on the {SECRET}", did=A, at=late)
    relay.account("active", did=A, at=late)
    end_when(service(tmp_path, relay, model), lambda: told(tmp_path, relay), "all to be told")
    assert in_journal(tmp_path)[FIRST] == ("deleted", None)
    assert "3aaaaaaaaaaad" not in in_journal(tmp_path)
    assert files_that_hold(tmp_path, SECRET) == []
    assert query(tmp_path / "journal.db", "SELECT status FROM account") == [("deleted",)]


def test_a_deletion_that_comes_before_its_post_wins(relay: Led, model: tuple[str, Path], tmp_path: Path) -> None:
    """A late frame: its revision is older than the deletion's."""
    relay.seq = 10
    relay.delete(FIRST, did=A)
    relay.seq = 9
    relay.post(FIRST, f"A late word on the {SECRET}", did=A)
    relay.seq = 11
    relay.post(OTHER, "Another post, in plain English", did=B)
    end_when(service(tmp_path, relay, model), lambda: cursor(tmp_path) == 12 and all_told(tmp_path), "all to be told")
    assert in_journal(tmp_path)[FIRST] == ("deleted", None)
    assert stored_states(tmp_path) == {OTHER: "live"}
    assert files_that_hold(tmp_path, SECRET) == []


# ---- after the journal let go ----------------------------------------------------------------------------------------


def pruned(folder: Path, relay: Led, model: tuple[str, Path]) -> None:
    """Three posts, labelled and stored, which the journal holds no more."""
    three_posts(relay)
    end_when(service(folder, relay, model), lambda: told(folder, relay), "all to be labelled and stored")
    asyncio.run(prune(folder))
    assert in_journal(folder) == {}
    assert SECRET in in_store(folder)[FIRST]["text"]


@pytest.mark.parametrize("status", ["deactivated", "takendown"])
def test_a_hidden_accounts_pruned_posts_are_hidden_and_come_back_with_their_text_and_label(
    status: str, relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    pruned(tmp_path, relay, model)
    before = in_store(tmp_path)
    relay.account(status, did=A)
    process = service(tmp_path, relay, model)
    until(lambda: told(tmp_path, relay), "the account to be hidden")
    assert stored_states(tmp_path) == {FIRST: "hidden", SECOND: "hidden", OTHER: "live"}
    relay.account("active", did=A)
    end_when(process, lambda: told(tmp_path, relay), "the account to be back")
    after = in_store(tmp_path)
    assert {rkey: doc | {"v": 0} for rkey, doc in after.items()} == {
        rkey: doc | {"v": 0} for rkey, doc in before.items()
    }  # fmt: skip
    assert len(model[1].read_text().splitlines()) == 3


@pytest.mark.parametrize("all_of_it", [True, False])
def test_a_pruned_post_that_is_deleted_leaves_the_store(
    all_of_it: bool, relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    pruned(tmp_path, relay, model)
    if all_of_it:
        relay.account("deleted", did=A)
    else:
        relay.delete(FIRST, did=A)
        relay.delete(SECOND, did=A)
    end_when(service(tmp_path, relay, model), lambda: told(tmp_path, relay), "the deletion to be told")
    assert stored_states(tmp_path) == {FIRST: "deleted", SECOND: "deleted", OTHER: "live"}
    assert in_ledger(tmp_path) == stored_states(tmp_path)
    assert in_store(tmp_path)[FIRST].keys() == {"_id", "uri", "v", "state", "event_at"}
    assert query(tmp_path / "ledger.db", "SELECT count(*) FROM label WHERE answer IS NOT NULL") == [(1,)]
    assert files_that_hold(tmp_path, SECRET) == []


def test_a_pruned_posts_tombstone_keeps_the_time_of_the_post(
    relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    pruned(tmp_path, relay, model)
    before = in_store(tmp_path)[FIRST]["event_at"]
    relay.delete(FIRST, did=A, at=NOW)
    end_when(service(tmp_path, relay, model), lambda: told(tmp_path, relay), "the deletion to be told")
    assert in_store(tmp_path)[FIRST] == {
        "_id": uri(FIRST, A), "uri": uri(FIRST, A), "state": "deleted", "event_at": before,
        "v": in_store(tmp_path)[FIRST]["v"],
    }  # fmt: skip


def test_a_window_that_is_read_again_does_not_make_pruned_posts_twice(
    relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    pruned(tmp_path, relay, model)
    before = in_store(tmp_path)
    relay.seq = 0
    process = service(tmp_path, relay, model)
    three_posts(relay)
    until(lambda: len(relay.asked) == 3, "the relay to be found renumbered")  # its first frame was dropped with it
    relay.seq = 0
    three_posts(relay)
    ended = end_when(process, lambda: told(tmp_path, relay), "the window to be read again")
    assert ended.code == 0, ended.err
    after = in_store(tmp_path)
    assert {rkey: doc["text"] for rkey, doc in after.items()} == {rkey: doc["text"] for rkey, doc in before.items()}
    assert len(model[1].read_text().splitlines()) == 3, "no answer is paid twice"


# ---- MongoDB ---------------------------------------------------------------------------------------------------------


def test_a_deletion_while_mongodb_is_down_is_told_when_it_is_back(
    relay: Led, model: tuple[str, Path], mongod: Mongod, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    server = Mongod(tmp_path_factory.mktemp("down"))
    server.start()
    try:
        three_posts(relay)
        process = service(tmp_path, relay, model, store__mongo_uri=server.uri, store__timeout_seconds=0.5)
        until(lambda: told(tmp_path, relay), "all to be labelled and stored")
        server.stop()
        relay.account("deleted", did=A)
        relay.account("deactivated", did=B)
        waits = "SELECT count(*) FROM doc WHERE v > stored_v"
        until(lambda: cursor(tmp_path) == relay.seq and query(tmp_path / "ledger.db", waits) == [(3,)], "the ledger")
        server.start()
        ended = end_when(process, lambda: told(tmp_path, relay), "the store to be told")
        with Client(server.uri) as db:
            posts = {doc["_id"]: doc for doc in db.civicsky.posts.find()}
            labels = list(db.civicsky.labels.find())
    finally:
        server.stop()
    assert ended.code == 0, ended.err
    assert {name.rpartition("/")[2]: doc["state"] for name, doc in posts.items()} == {
        FIRST: "deleted", SECOND: "deleted", OTHER: "hidden"
    }  # fmt: skip
    assert SECRET not in str(posts) + str(labels)
    assert files_that_hold(tmp_path, SECRET) == []
