"""The collecting half, as installed, against a relay that sends garbage between good frames."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from civicsky.relay import Playback, Relay
from support.command import end_when, query, start
from support.world import commit, frame, post, scripted_relay

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


async def test_each_bad_frame_is_quarantined_alone_and_text_frames_are_counted_as_ignored(tmp_path: Path) -> None:
    bad = [b"", GOOD[0][: len(GOOD[0]) // 2], random.Random(7).randbytes(300)]
    messages: list[bytes | str] = [*GOOD[:3], "a text frame", *bad[:2], *GOOD[3:6], bad[2], *GOOD[6:]]
    await collect(tmp_path, messages)
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
