"""The whole service against a relay that a test leads by the hand."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.server import ServerConnection, serve

from support.command import cursor, end_when, model_server, query, start, until
from support.world import DID, commit, post, scripted_relay, tid

SECRET = "The zanzibar quagmire of the council's budget"
URI = f"at://{DID}/app.bsky.feed.post/3aaaaaaaaaaaa"


@asynccontextmanager
async def led_relay() -> AsyncIterator[tuple[str, "asyncio.Queue[bytes]"]]:
    """A relay that sends what is put into the queue."""
    script: asyncio.Queue[bytes] = asyncio.Queue()

    async def play(connection: ServerConnection) -> None:
        while message := await script.get():
            await connection.send(message)

    async with serve(play, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
        (listener,) = server.sockets
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}", script
        await script.put(b"")  # the end


def service(folder: Path, relay: str, model: str) -> "subprocess.Popen[str]":
    asks = ("--model-url", model, "--model", "mock")
    return start("run", "--relay", relay, "--data-dir", folder, *asks, worker__batch_seconds=0.05)


def all_told(folder: Path, labelled: int) -> bool:
    """So many jobs are done, and the store knows everything."""
    done = query(folder / "ledger.db", "SELECT count(*) FROM job WHERE state = 'done'")
    return done == [(labelled,)] and not query(folder / "ledger.db", "SELECT 1 FROM doc WHERE v > stored_v")


def files_that_hold(folder: Path, text: str) -> list[str]:
    return [file.name for file in folder.iterdir() if text.encode() in file.read_bytes()]


def stored(folder: Path) -> dict[str, Any]:
    return {uri: json.loads(doc) for uri, doc in query(folder / "posts.db", "SELECT _id, doc FROM posts")}


async def test_a_deletion_wins_over_the_answer_in_flight_and_no_file_holds_the_text(tmp_path: Path) -> None:
    folder, log = tmp_path / "data", tmp_path / "log"
    with model_server(log, "--delay", "2") as model:
        async with led_relay() as (relay, script):
            process = service(folder, relay, model)
            await script.put(commit(1, [("create", "3aaaaaaaaaaaa", post(SECRET))]))
            await asyncio.to_thread(until, log.read_text, "the question to be asked")
            assert files_that_hold(folder, "zanzibar quagmire"), "the test looks in the right place"
            await script.put(commit(2, [("delete", "3aaaaaaaaaaaa", None)]))
            await script.put(commit(3, [("create", "3aaaaaaaaaaab", post("A later post, in plain English"))]))
            ended = await asyncio.to_thread(
                end_when,
                process,
                lambda: all_told(folder, 1),
                "the later post to be labelled and stored",
            )
    assert ended.code == 0, ended.err
    docs = stored(folder)
    assert docs.pop(URI).keys() == {"_id", "uri", "v", "state", "event_at"}
    assert [doc["text"] for doc in docs.values()] == ["A later post, in plain English"]
    assert query(folder / "ledger.db", "SELECT count(*) FROM label WHERE rkey = '3aaaaaaaaaaaa'") == [(0,)]
    assert query(folder / "ledger.db", "SELECT sum(calls) FROM spend") == [(2,)], "what it cost is kept"
    assert files_that_hold(folder, "zanzibar quagmire") == []


async def test_a_deletion_erases_the_label_that_was_stored(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with model_server(tmp_path / "log") as model:
        async with led_relay() as (relay, script):
            process = service(folder, relay, model)
            await script.put(commit(1, [("create", "3aaaaaaaaaaaa", post(SECRET))]))
            labelled = "SELECT doc FROM labels WHERE doc ->> '$.state' = 'live'"
            ((before,),) = await asyncio.to_thread(until, lambda: query(folder / "posts.db", labelled), "the label")
            await script.put(commit(2, [("delete", "3aaaaaaaaaaaa", None)]))
            ended = await asyncio.to_thread(
                end_when, process, lambda: not query(folder / "posts.db", labelled), "the label to be erased"
            )
    assert ended.code == 0, ended.err
    assert json.loads(before)["fields"]
    ((after,),) = query(folder / "posts.db", "SELECT doc FROM labels")
    assert json.loads(after).keys() == {"_id", "uri", "v", "state", "event_at"}
    assert stored(folder)[URI]["state"] == "deleted"
    assert query(folder / "ledger.db", "SELECT answer FROM label") == [(None,)]
    assert files_that_hold(folder, "zanzibar quagmire") == []


async def test_a_deleted_post_that_is_made_again_is_labelled_again(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    live = "SELECT count(*) FROM labels WHERE doc ->> '$.state' = 'live'"
    with model_server(tmp_path / "log") as model:
        async with led_relay() as (relay, script):
            process = service(folder, relay, model)
            await script.put(commit(1, [("create", "3aaaaaaaaaaaa", post(SECRET))]))
            await asyncio.to_thread(until, lambda: query(folder / "posts.db", live) == [(1,)], "the label")
            await script.put(commit(2, [("delete", "3aaaaaaaaaaaa", None)]))
            await asyncio.to_thread(until, lambda: query(folder / "posts.db", live) == [(0,)], "the erasure")
            await script.put(commit(3, [("create", "3aaaaaaaaaaaa", post(SECRET))]))
            ended = await asyncio.to_thread(
                end_when, process, lambda: query(folder / "posts.db", live) == [(1,)], "the label again"
            )
    assert ended.code == 0, ended.err
    assert stored(folder)[URI]["labels"]["civic"]["fields"]


async def test_an_edit_is_labelled_again_and_the_former_label_stays_as_of_the_former_text(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with model_server(tmp_path / "log") as model:
        async with led_relay() as (relay, script):
            process = service(folder, relay, model)
            done = "SELECT count(*) FROM job WHERE state = 'done'"
            await script.put(commit(1, [("create", "3aaaaaaaaaaaa", post("The first text of this post"))]))
            await asyncio.to_thread(until, lambda: query(folder / "ledger.db", done) == [(1,)], "the first label")
            await script.put(commit(2, [("update", "3aaaaaaaaaaaa", post("The second text of this post"))]))
            ended = await asyncio.to_thread(
                end_when,
                process,
                lambda: all_told(folder, 2),
                "the second label",
            )
    assert ended.code == 0, ended.err
    doc = stored(folder)[URI]
    labels = {row[0]: json.loads(row[1]) for row in query(folder / "posts.db", "SELECT _id, doc FROM labels")}
    assert doc["text"] == "The second text of this post"
    assert labels[doc["labels"]["civic"]["label_id"]]["cid"] == doc["cid"]
    assert len({label["cid"] for label in labels.values()}) == 2


async def test_a_renumbered_host_begins_an_epoch_with_a_recorded_gap_and_loses_nothing(tmp_path: Path) -> None:
    """Silently: the relay sends low numbers whatever cursor is asked for."""
    before = [
        commit(seq, [("create", f"3aaaaaaaaa{seq}", post(f"An early post, number {seq}"))]) for seq in (1001, 1002)
    ]
    after = [
        commit(seq, [("create", f"3bbbbbbbbb{seq}", post(f"A later post, number {seq}"))], rev=tid(2000 + seq))
        for seq in (1, 2, 3)
    ]
    async with scripted_relay(before) as relay:
        process = start("collect", "--relay", relay, "--data-dir", tmp_path, worker__batch_seconds=0.05)
        first = await asyncio.to_thread(end_when, process, lambda: cursor(tmp_path) == 1002, "the first numbers")
        port = int(relay.rpartition(":")[2])
    async with scripted_relay(after, port):
        process = start("collect", "--relay", relay, "--data-dir", tmp_path, worker__batch_seconds=0.05)
        second = await asyncio.to_thread(end_when, process, lambda: cursor(tmp_path) == 3, "the new numbers")
    assert (first.code, second.code) == (0, 0), second.err
    assert query(tmp_path / "journal.db", "SELECT epoch, cursor FROM host") == [(2, 3)]
    assert query(tmp_path / "journal.db", "SELECT cause, epoch, after_seq FROM gap") == [("renumbered", 1, 1002)]
    assert query(tmp_path / "journal.db", "SELECT count(*) FROM post") == [(5,)]
    assert query(tmp_path / "journal.db", "SELECT epoch, first_seq, last_seq FROM held WHERE frames > 0") == [
        (1, 1001, 1002), (2, 1, 3)
    ]  # fmt: skip
    assert second.err.count("source_epoch") == 1
