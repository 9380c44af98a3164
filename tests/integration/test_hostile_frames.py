"""The collecting half, as installed, against a relay that sends garbage between good frames."""

import asyncio
import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cbor2

from civicsky.relay import Playback, Relay
from support.clients import both_clients
from support.command import end_when, model_server, query, run, start
from support.world import block_and_cid, commit, frame, post, scripted_relay, varint

GOOD = [
    commit(seq, [("create", f"3aaaaaaaaaa{seq}", post(f"Good morning, this is the post number {seq}"))])
    for seq in range(1, 10)
]


async def collect(folder: Path, messages: Sequence[bytes | str], **settings: Any) -> None:
    """Collect until every message was committed, then stop."""
    async with scripted_relay(messages) as url:
        process = start(
            "collect", "--relay", url, "--data-dir", folder, worker__batch_seconds=0.05, log__level="debug", **settings
        )
        done = await asyncio.to_thread(
            end_when, process, lambda: received(folder) >= len(messages), f"{len(messages)} messages to be committed"
        )
    assert done.code == 0, done.err


def received(folder: Path) -> int:
    rows = query(folder / "journal.db", "SELECT sum(n) FROM count WHERE unit = 'frame' AND outcome = 'received'")
    return int(rows[0][0] or 0) if rows else 0


def counts(folder: Path, unit: str) -> dict[tuple[str, str], int]:
    rows = query(
        folder / "journal.db",
        "SELECT outcome, reason, sum(n) FROM count WHERE unit = ? AND outcome <> 'received' GROUP BY 1, 2",
        unit,
    )
    return {(outcome, reason): n for outcome, reason, n in rows}


def texts(folder: Path) -> list[str]:
    return [text for (text,) in query(folder / "journal.db", "SELECT fields ->> '$.text' FROM post ORDER BY rkey")]


@both_clients
async def test_each_bad_frame_is_quarantined_alone_and_text_frames_are_counted_as_ignored(
    client: str, tmp_path: Path
) -> None:
    bad = [b"", GOOD[0][: len(GOOD[0]) // 2], random.Random(7).randbytes(300)]
    messages: list[bytes | str] = [*GOOD[:3], "a text frame", *bad[:2], *GOOD[3:6], bad[2], *GOOD[6:]]
    await collect(tmp_path, messages, source__client=client)
    assert counts(tmp_path, "frame") == {
        ("commit", ""): 9,
        ("ignored", "text"): 1,
        ("quarantined", "undecodable"): 3,
    }
    assert counts(tmp_path, "post") == {("kept", ""): 9}
    aside = query(tmp_path / "journal.db", "SELECT bytes, reason, after_seq FROM quarantine ORDER BY id")
    assert aside == [(bad[0], "undecodable", 3), (bad[1], "undecodable", 3), (bad[2], "undecodable", 6)]


async def test_a_record_that_crashes_a_worker_is_quarantined_alone(tmp_path: Path) -> None:
    poison = commit(10, [("create", "3bbbbbbbbbbb1", post("This text is POISON for the worker"))])
    last = commit(11, [("create", "3bbbbbbbbbbb2", post("And this good text came right after it"))])
    await collect(tmp_path, [*GOOD, poison, last], fault="worker.record:POISON")
    assert counts(tmp_path, "post") == {("kept", ""): 10, ("quarantined", "worker_crashed"): 1}
    assert len(texts(tmp_path)) == 10
    assert not any("POISON" in text for text in texts(tmp_path))


async def test_unknown_kinds_and_operations_are_counted_and_nothing_of_them_is_kept(tmp_path: Path) -> None:
    odd = [
        frame("#future", {"seq": 10, "did": "did:plc:x"}),
        commit(
            11,
            [("create", "3bbbbbbbbbbb1", ["not", "a", "map"]), ("create", "3bbbbbbbbbbb2", post("fine English text"))],
        ),
        commit(12, [("create", "3bbbbbbbbbbb3", {**post("x"), "$type": "app.bsky.feed.like"})]),
        commit(13, [("create", "3bbbbbbbbbbb4", {**post("x"), "text": 5})]),
        commit(14, [("create", "3bbbbbbbbbbb5", post("A number of 64 bits is no trouble", odd=-(2**63)))]),
        commit(15, [("create", "3bbbbbbbbbbb6", None)]),
        commit(16, []),
    ]
    await collect(tmp_path, [*GOOD, *odd])
    assert counts(tmp_path, "frame") == {("commit", ""): 15, ("ignored", "unknown_kind"): 1}
    assert counts(tmp_path, "post") == {
        ("kept", ""): 11,
        ("quarantined", "not_a_record"): 1,
        ("quarantined", "wrong_type"): 1,
        ("quarantined", "bad_text"): 1,
        ("quarantined", "bad_operation"): 1,
    }


async def test_what_once_ended_the_service_is_put_aside_or_kept_harmlessly(tmp_path: Path) -> None:
    """An action that is a list, a record of no bytes, and times at the end of the calendar."""
    list_action = cbor2.loads(GOOD[0][len(cbor2.dumps({"t": "#commit", "op": 1})) :]) | {"seq": 10}
    list_action["ops"][0]["action"] = []
    nothing = commit(11, [("create", "3bbbbbbbbbbb1", post("Replaced by nothing"))])
    block, cid = block_and_cid(post("Replaced by nothing"))
    empty = b"\x01\x71\x12\x20" + hashlib.sha256(b"").digest()
    nothing = nothing.replace(varint(36 + len(block)) + cid + block, varint(36) + empty).replace(cid, empty)
    odd = [
        frame("#commit", list_action),
        fix_length(nothing, len(varint(36 + len(block))) + len(block) - len(varint(36))),
        commit(12, [("create", "3bbbbbbbbbbb2", post("A good text in the same batch"))]),
        commit(
            13, [("create", "3bbbbbbbbbbb3", {**post("The end of time"), "createdAt": "9999-12-31T23:59:59-12:00"})]
        ),
        commit(
            14, [("create", "3bbbbbbbbbbb4", {**post("The end again"), "createdAt": "9999-12-31T23:59:59.999999Z"})]
        ),
        commit(15, [("create", "3bbbbbbbbbbb5", post("A relay ahead of us"))], time="2999-01-01T00:00:00.000Z"),
    ]
    await collect(tmp_path, [*GOOD, *odd])
    assert counts(tmp_path, "frame") == {("commit", ""): 15}
    assert counts(tmp_path, "post") == {
        ("kept", ""): 13,
        ("quarantined", "bad_operation"): 1,
        ("quarantined", "no_block"): 1,
    }
    assert texts(tmp_path)[-4:] == [
        "A good text in the same batch", "The end of time", "The end again", "A relay ahead of us"
    ]  # fmt: skip
    log = tmp_path / "log"
    with model_server(log) as model:
        labelled = await asyncio.to_thread(
            run, "label", "--drain", "--data-dir", tmp_path, "--model-url", model, "--model", "mock"
        )
    assert labelled.code == 0, labelled.err
    assert query(tmp_path / "posts.db", "SELECT count(*) FROM posts WHERE event_at < '2030'") == [(13,)]


def fix_length(frame_bytes: bytes, less: int) -> bytes:
    """The frame with the length of its `blocks` lowered."""
    at = frame_bytes.index(b"\x66blocks") + 7
    assert frame_bytes[at] == 0x58, "a byte string with a length of one byte"
    return frame_bytes[: at + 1] + bytes([frame_bytes[at + 1] - less]) + frame_bytes[at + 2 :]


async def test_a_relay_that_refuses_every_cursor_is_not_stormed(tmp_path: Path) -> None:
    """FutureCursor again and again: one epoch and one gap, then backoff."""
    refusal = cbor2.dumps({"op": -1}, canonical=True) + cbor2.dumps({"error": "FutureCursor"}, canonical=True)
    async with scripted_relay(GOOD) as relay:
        process = start("collect", "--relay", relay, "--data-dir", tmp_path, worker__batch_seconds=0.05)
        first = await asyncio.to_thread(end_when, process, lambda: received(tmp_path) >= 9, "the good frames")
    async with scripted_relay([refusal], int(relay.rpartition(":")[2])):
        process = start(
            "collect", "--relay", relay, "--data-dir", tmp_path, worker__batch_seconds=0.05, source__backoff_seconds=0.2
        )
        second = await asyncio.to_thread(end_when, process, lambda: received(tmp_path) >= 12, "three refusals")
    assert (first.code, second.code) == (0, 0)
    assert query(tmp_path / "journal.db", "SELECT cause FROM gap") == [("renumbered",)]
    assert query(tmp_path / "journal.db", "SELECT epoch FROM host") == [(2,)]
    assert received(tmp_path) < 20


async def test_ten_bad_frames_in_a_row_reconnect_and_the_same_ten_again_go_live_with_a_gap(tmp_path: Path) -> None:
    bad = [bytes([n]) * 3 for n in range(200, 210)]
    async with Relay([*GOOD, *bad], Playback(mode="inclusive")).serve() as url:
        process = start(
            "collect", "--relay", url, "--data-dir", tmp_path, worker__batch_seconds=0.05, source__backoff_seconds=0.05
        )
        gap = "SELECT cause, after_seq FROM gap"
        done = await asyncio.to_thread(
            end_when, process, lambda: query(tmp_path / "journal.db", gap), "the gap to be recorded"
        )
    assert done.code == 0, done.err
    assert query(tmp_path / "journal.db", gap)[0] == ("undecodable", 9)
    assert counts(tmp_path, "post")["kept", ""] == 9
    assert counts(tmp_path, "frame")["duplicate", ""] >= 1, "the frame at the cursor came again"
