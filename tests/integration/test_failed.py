"""`civicsky failed`: what could not be decoded, labelled or stored is listed, shown, and tried once more."""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from conftest import Client, Mongod
from support.command import cursor, end_when, model_server, query, run, start
from support.frames import block_and_cid, commit, commit_of, operation, post, tid
from support.led import Led, all_told, balance_closes, did_of, in_journal, in_store, led_relay, moment, uri

CRASH = "CRASHMARK"
A = did_of(1)
FIRST, SECOND = "3aaaaaaaaaaaa", "3aaaaaaaaaaab"
QUICK: dict[str, Any] = {"worker__batch_seconds": 0.05, "appview__recheck": "false"}


@pytest.fixture
def relay() -> Iterator[Led]:
    with led_relay() as led:
        yield led


def collect(folder: Path, relay: Led, frames: int, **settings: Any) -> None:
    ended = run("collect", "--relay", relay.url, "--data-dir", folder, "--max-frames", frames, **QUICK | settings)
    assert ended.code == 0, ended.err


def listed(folder: Path) -> list[dict[str, Any]]:
    ended = run("failed", "list", "--json", "--data-dir", folder)
    assert ended.code == 0, ended.err
    return [json.loads(line) for line in ended.out.splitlines()]


def retried(folder: Path, *ids: str, **settings: Any) -> str:
    ended = run("failed", "retry", *ids, "--data-dir", folder, **settings)
    assert ended.code == 0, ended.err
    return ended.out


def counts(folder: Path) -> list[Any]:
    return query(folder / "journal.db", "SELECT unit, outcome, reason, sum(n) FROM count GROUP BY 1, 2, 3")


# ---- frames ----------------------------------------------------------------------------------------------------------


def test_a_frame_that_is_still_bad_stays_as_it_is(relay: Led, tmp_path: Path) -> None:
    seq = relay.next()
    block, cid = block_and_cid(["not a record"])
    bad = commit_of(seq, [operation("create", FIRST, cid)], [(block, cid)], rev=tid(seq), did=A, time=moment(seq))
    relay.send(b"\xff\x1b[31m", bad)
    collect(tmp_path, relay, 2)
    undecodable, not_a_record = listed(tmp_path)
    assert (undecodable["kind"], undecodable["reason"], undecodable["did"]) == ("frame", "undecodable", "")
    assert (not_a_record["reason"], not_a_record["did"], not_a_record["bytes"]) == ("not_a_record", A, len(bad))
    shown = json.loads(run("failed", "show", not_a_record["id"], "--data-dir", tmp_path).out)
    assert shown == {**not_a_record, "hex": bad.hex(), "sha256": sha256(bad).hexdigest()}
    before = counts(tmp_path)
    assert retried(tmp_path) == "frame: 2 tried again, 0 of use now\n"
    assert listed(tmp_path) == [undecodable, not_a_record]
    assert counts(tmp_path) == before
    assert in_journal(tmp_path) == {}
    assert cursor(tmp_path) == 1


def test_a_frame_that_has_become_good_is_applied_and_the_balance_still_closes(relay: Led, tmp_path: Path) -> None:
    relay.post(FIRST, f"A post with {CRASH}, in plain English", did=A)
    relay.post(SECOND, "Another post, in plain English", did=A)
    collect(tmp_path, relay, 2, fault=f"worker.record:{CRASH}")
    (row,) = listed(tmp_path)
    assert (row["reason"], row["did"]) == ("worker_crashed", A)
    assert in_journal(tmp_path).keys() == {SECOND}
    assert retried(tmp_path, row["id"], fault=f"worker.record:{CRASH}") == "frame: 1 tried again, 0 of use now\n"
    assert retried(tmp_path, row["id"]) == "frame: 1 tried again, 1 of use now\n"
    assert in_journal(tmp_path)[FIRST] == ("live", f"A post with {CRASH}, in plain English")
    assert listed(tmp_path) == []
    assert balance_closes(tmp_path)
    assert cursor(tmp_path) == 2
    assert ("retry", "kept", "", 1) in counts(tmp_path)
    assert query(tmp_path / "journal.db", "SELECT count(*) FROM change WHERE rkey = ?", FIRST) == [(1,)]


def test_what_came_later_wins_over_a_frame_that_is_tried_again(relay: Led, tmp_path: Path) -> None:
    relay.post(FIRST, f"An early text with {CRASH}, in plain English", did=A)
    relay.post(SECOND, f"Another early text with {CRASH}, in plain English", did=A)
    relay.post(FIRST, "The text of an edit, in plain English", did=A, action="update")
    collect(tmp_path, relay, 3, fault=f"worker.record:{CRASH}")
    assert retried(tmp_path) == "frame: 2 tried again, 2 of use now\n"
    assert in_journal(tmp_path) == {
        FIRST: ("live", "The text of an edit, in plain English"),
        SECOND: ("live", f"Another early text with {CRASH}, in plain English"),
    }
    assert ("retry", "stale", "", 1) in counts(tmp_path)
    assert balance_closes(tmp_path)


def test_a_deleted_authors_frame_cannot_be_tried_again(relay: Led, tmp_path: Path) -> None:
    relay.post(FIRST, f"A text with {CRASH}, in plain English", did=A)
    relay.delete(FIRST, did=A)
    collect(tmp_path, relay, 2, fault=f"worker.record:{CRASH}")
    assert listed(tmp_path) == []
    assert retried(tmp_path) == "nothing failed\n"
    assert in_journal(tmp_path)[FIRST] == ("deleted", None)


def test_an_erased_authors_frame_is_not_brought_back(relay: Led, tmp_path: Path) -> None:
    relay.post(FIRST, "A post in plain English", did=A)
    relay.send(b"\xff")
    collect(tmp_path, relay, 2)
    assert run("erase", A, "--data-dir", tmp_path).code == 0
    relay.post(SECOND, f"A text with {CRASH}, in plain English", did=A)
    collect(tmp_path, relay, 1, fault=f"worker.record:{CRASH}")
    retried(tmp_path)
    assert SECOND not in in_journal(tmp_path)
    assert [row["reason"] for row in listed(tmp_path)] == ["undecodable"]


def test_one_bad_operation_leaves_the_whole_frame_aside_and_its_good_ones_once(relay: Led, tmp_path: Path) -> None:
    good, bad = block_and_cid(post("A good post, in plain English")), block_and_cid(post(f"{CRASH} in plain English"))
    seq = relay.next()
    listed_ops = [operation("create", FIRST, good[1]), operation("create", SECOND, bad[1])]
    relay.send(commit_of(seq, listed_ops, [good, bad], rev=tid(seq), did=A, time=moment(seq)))
    collect(tmp_path, relay, 1, fault=f"worker.record:{CRASH}")
    assert in_journal(tmp_path).keys() == {FIRST}
    assert retried(tmp_path) == "frame: 1 tried again, 1 of use now\n"
    assert in_journal(tmp_path).keys() == {FIRST, SECOND}
    retries = {(outcome, n) for unit, outcome, _, n in counts(tmp_path) if unit == "retry"}
    assert retries == {("stale", 1), ("kept", 1)}
    assert balance_closes(tmp_path)


def test_what_others_chose_cannot_move_a_terminals_cursor(relay: Led, tmp_path: Path) -> None:
    seq = relay.next()
    block, cid = block_and_cid([1])
    for did in ("did:plc:\x1b[2Jx", "did:plc:\u202ex", "did:web:\x9b31m"):
        relay.send(
            commit_of(seq, [operation("create", "\x1b[31m", cid)], [(block, cid)], rev=tid(seq), did=did,
                      time=moment(seq))
        )  # fmt: skip
        seq = relay.next()
    relay.send(commit(seq, [("create", "3aaa\x1b[2J", post("A post in plain English"))], did=A, time=moment(seq)))
    collect(tmp_path, relay, 4)
    assert listed(tmp_path)
    outs = [run("failed", *how, "--data-dir", tmp_path).out for how in ((), ("list",), ("list", "--json"))]
    outs += [run("failed", "show", row["id"], "--data-dir", tmp_path).out for row in listed(tmp_path)]
    for out in outs:
        assert out
        assert not [char for char in out if (ord(char) < 32 and char != "\n") or 0x7F <= ord(char) < 0xA0]
        assert "\u202e" not in out


@pytest.mark.parametrize("action", ["show", "retry"])
@pytest.mark.parametrize("name", ["frame:77", "frame:x", "nonsense", f"label:{uri(FIRST, A)}"])
def test_an_unknown_id_is_wrong_usage(action: str, name: str, relay: Led, tmp_path: Path) -> None:
    relay.post(FIRST, "A post in plain English", did=A)
    collect(tmp_path, relay, 1)
    ended = run("failed", action, name, "--data-dir", tmp_path)
    assert ended.code == 2
    assert f"nothing failed under {name!r}; `civicsky failed list` shows what did" in ended.err


def test_nothing_failed_is_said(relay: Led, tmp_path: Path) -> None:
    relay.post(FIRST, "A post in plain English", did=A)
    collect(tmp_path, relay, 1)
    assert run("failed", "--data-dir", tmp_path).out == "nothing failed\n"
    assert run("failed", "show", "--data-dir", tmp_path).code == 2


# ---- labels and documents --------------------------------------------------------------------------------------------


def drain(folder: Path, url: str, **settings: Any) -> None:
    ended = run(
        "label", "--drain", "--data-dir", folder, "--model-url", url, "--model", "mock", label__pause_seconds=0.01,
        label__attempts=2, **settings,
    )  # fmt: skip
    assert ended.code == 0, ended.err


def test_a_post_without_a_usable_answer_is_asked_about_again_when_told(relay: Led, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    relay.post(FIRST, "A post in plain English", did=A)
    relay.post(SECOND, "Another post in plain English", did=A)
    collect(folder, relay, 2)
    with model_server(tmp_path / "log", "--say", "I would rather not") as url:
        drain(folder, url)
    first, second = listed(folder)
    assert first == {"id": f"label:{uri(FIRST, A)}", "kind": "label", "uri": uri(FIRST, A), "task": "civic",
                     "reason": "not_json", "attempts": 2}  # fmt: skip
    shown = json.loads(run("failed", "show", first["id"], "--data-dir", folder).out)
    assert shown["fields"]["text"] == "A post in plain English"
    assert "label: 1 tried again, 1 put back in line\n" in retried(folder, first["id"])
    assert listed(folder) == [second]
    with model_server(tmp_path / "log") as url:
        drain(folder, url)
    assert in_store(folder)[FIRST]["labels"]["civic"]["fields"]
    assert in_store(folder)[SECOND]["labels"] == {}
    assert "label: 1 tried again, 1 put back in line\n" in retried(folder)
    with model_server(tmp_path / "log") as url:
        drain(folder, url)
    assert in_store(folder)[SECOND]["labels"]["civic"]["fields"]
    assert listed(folder) == []


def test_a_document_that_the_store_refused_is_told_again_when_told(
    relay: Led, model: tuple[str, Path], mongod: Mongod, mongo_database: str, tmp_path: Path
) -> None:
    relay.post(FIRST, "A post that somebody's rule forbids", did=A)
    relay.post(SECOND, "Another post in plain English", did=A)
    mongo: dict[str, Any] = {"store__mongo_uri": mongod.uri, "store__mongo_database": mongo_database}
    with Client(mongod.uri) as db:
        db[mongo_database].create_collection("posts", validator={"text": {"$not": {"$regex": "forbids"}}})
        process = start(
            "run", "--relay", relay.url, "--data-dir", tmp_path, "--model-url", model[0], "--model", "mock",
            **QUICK, **mongo,
        )  # fmt: skip
        ended = end_when(process, lambda: cursor(tmp_path) == 2 and all_told(tmp_path), "all to be told")
        assert ended.code == 0, ended.err
        (row,) = listed(tmp_path)
        assert (row["id"], row["kind"]) == (f"store:{uri(FIRST, A)}", "store")
        assert "validation" in row["reason"]
        assert [doc["_id"] for doc in db[mongo_database].posts.find()] == [uri(SECOND, A)]
        db[mongo_database].command("collMod", "posts", validator={})
        assert "store: 1 tried again, 1 put back in line\n" in retried(tmp_path, row["id"])
        drain(tmp_path, model[0], **mongo)
        assert {doc["_id"] for doc in db[mongo_database].posts.find()} == {uri(FIRST, A), uri(SECOND, A)}
    assert listed(tmp_path) == []
