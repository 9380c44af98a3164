"""The main job on the packaged recording, through the installed command."""

import json
import re
import shutil
import socketserver
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.server import ServerConnection, serve

from civicsky.frames import read_frames
from conftest import Client, Mongod
from support.command import (
    BIN,
    CIVICSKY,
    LAST_SEQ,
    Ended,
    cursor,
    end_when,
    environment,
    finish,
    model_server,
    query,
    run,
    server,
    start,
    until,
)
from support.ports import free_port

WINDOW: dict[str, Any] = {"source__start": "window"}
HIDDEN = {"takendown": "hidden", "deactivated": "hidden", "account-deleted": "deleted"}


def truth() -> dict[str, dict[str, Any]]:
    text = (files("civicsky") / "data" / "sample" / "truth.jsonl").read_text(encoding="utf-8")
    return {row["uri"]: row for row in map(json.loads, text.strip("\n").split("\n"))}


def label_all(folder: Path, relay: str, model: str, *options: str, **settings: Any) -> Ended:
    return run(
        "run", "--relay", relay, "--data-dir", folder, "--model-url", model, "--model", "mock",
        "--max-frames", LAST_SEQ, *options, **WINDOW, **settings,
    )  # fmt: skip


@pytest.fixture(scope="session")
def everything(relay: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample collected with nothing but the sampling of rejects set apart. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("everything")
    ended = run(
        "collect", "--relay", relay, "--data-dir", folder, "--max-frames", LAST_SEQ, **WINDOW, journal__reject_sample=1
    )
    assert ended.code == 0, ended.err
    return folder


def test_english_is_kept_with_precision_and_recall_as_promised(everything: Path) -> None:
    """Over posts with letters; undetermined language and adult self-labels apart."""
    decided = truth()
    kept = {
        f"at://{did}/app.bsky.feed.post/{rkey}"
        for did, rkey in query(everything / "journal.db", "SELECT did, rkey FROM post")
    }
    listed = [
        json.loads(line)
        for line in run("rejects", "--json", "--limit", 10_000, "--data-dir", everything).out.split("\n")
        if line
    ]
    rejected = {row["uri"]: row for row in listed if row["kind"] == "rejected"}
    assert set(decided) == kept | set(rejected)
    assert not kept & set(rejected)
    assert set(Counter(row["why"] for row in rejected.values())) == {"language", "adult", "no_text"}
    silent = {uri for uri, row in rejected.items() if row["text"] is None}
    assert silent == {uri for uri in rejected if decided[uri]["final"] == "account-deleted"}, "erased with its author"
    scored = {
        uri: row
        for uri, row in decided.items()
        if row["true_lang"] != "und" and not row.get("self_labels") and any(map(str.isalpha, row["text"]))
    }
    right = sum(row["true_lang"] == "en" for uri, row in scored.items() if uri in kept)
    precision = right / sum(uri in kept for uri in scored)
    recall = right / sum(row["true_lang"] == "en" for row in scored.values())
    print(f"n={len(scored)} precision={precision:.4f} recall={recall:.4f}")
    assert precision >= 0.985
    assert recall >= 0.98


def test_the_rejects_command_shows_hostile_text_harmlessly(everything: Path) -> None:
    ended = run("rejects", "--limit", 10_000, "--data-dir", everything)
    assert ended.code == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]", ended.out)
    assert len(ended.out.splitlines()) > 180


def test_status_tells_host_cursor_and_closing_balances_without_a_running_process(everything: Path) -> None:
    said = json.loads(run("status", "--json", "--data-dir", everything).out)
    (host,) = said["hosts"]
    assert (host["epoch"], host["cursor"]) == (1, LAST_SEQ)
    assert host["lag_s"] > 0
    frames, posts = said["balances"]
    assert frames == {
        "unit": "frame",
        "received": 1649,
        "closes": True,
        "outcomes": {
            "commit": 1521, "account": 45, "identity": 42, "sync": 41, "info": 0, "error": 0, "duplicate": 0,
            "ignored": 0, "quarantined": 0,
        },
    }  # fmt: skip
    assert posts["closes"]
    assert (posts["received"], posts["outcomes"]["updated"], posts["outcomes"]["deleted"]) == (624, 8, 15)
    shown = run("status", "--data-dir", everything).out
    assert "frame: received 1,649 = commit 1,521 + account 45" in shown
    assert "DOES NOT CLOSE" not in shown


def test_a_balance_that_does_not_close_is_said(everything: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(everything, tmp_path / "data"))
    with closing(sqlite3.connect(folder / "journal.db")) as db, db:
        db.execute("UPDATE count SET n = n - 1 WHERE unit = 'frame' AND outcome = 'identity'")
    assert "DOES NOT CLOSE" in run("status", "--data-dir", folder).out


def test_the_two_halves_alone_do_what_both_do_together(
    relay: str, tmp_path: Path, model: tuple[str, Path], everything: Path
) -> None:
    together, apart = tmp_path / "together", Path(shutil.copytree(everything, tmp_path / "apart"))
    both = label_all(together, relay, model[0])
    alone = run("label", "--drain", "--data-dir", apart, "--model-url", model[0], "--model", "mock")
    assert (both.code, alone.code) == (0, 0), both.err + alone.err
    assert re.search(r"1,649 frames, 601 posts, 416 kept, \d+ labelled$", both.out.strip())

    def posts(folder: Path) -> dict[str, Any]:
        docs = [json.loads(doc) for (doc,) in query(folder / "posts.db", "SELECT doc FROM posts")]
        return {
            doc["_id"]: (
                doc["state"], doc.get("text"), doc["labels"]["civic"]["fields"] if doc["state"] == "live" else None
            )
            for doc in docs
        }  # fmt: skip

    found = posts(apart)
    assert posts(together) == found
    assert Counter(state for state, *_ in found.values()) == Counter(
        HIDDEN.get(row["final"], row["final"]) for uri, row in truth().items() if uri in found
    )


def test_each_label_carries_what_is_needed_to_defend_it(relay: str, tmp_path: Path, model: tuple[str, Path]) -> None:
    assert label_all(tmp_path / "d", relay, model[0]).code == 0
    labels = [json.loads(doc) for (doc,) in query(tmp_path / "d" / "posts.db", "SELECT doc FROM labels")]
    live = [label for label in labels if label["state"] == "live"]
    assert len(live) >= 370
    tasks = query(tmp_path / "d" / "ledger.db", "SELECT prompt_hash, version FROM task")
    for label in live:
        assert (label["prompt"], label["task_version"]) in tasks
        assert label["model"] == "mock-0001"
        assert label["model_asked"] == "mock"
        assert label["fingerprint"] == "fp_test"
        assert label["endpoint"] == model[0].removesuffix("/v1")
        assert json.loads(label["parameters"])["temperature"] == 0
        assert (label["tokens_in"], label["tokens_out"], label["attempts"]) == (100, 10, 1)
        assert re.fullmatch("[0-9a-f]{64}", label["input_hash"])
        assert label["cid"].startswith("bafyrei")
        assert label["latency_ms"] >= 0
    posts = [json.loads(doc) for (doc,) in query(tmp_path / "d" / "posts.db", "SELECT doc FROM posts")]
    by_id = {label["_id"]: label for label in live}
    for post in posts:
        if post["state"] == "live":
            told = post["labels"]["civic"]
            assert by_id[told["label_id"]]["fields"] == told["fields"]
            assert told["cid"] == post["cid"]
            assert set(told["fields"]) == (
                {"civic", "lean", "us_politics"} if told["fields"]["civic"]["value"] == "civic" else {"civic"}
            )


def test_a_fresh_data_directory_against_the_same_mongodb_gives_the_same_and_doubles_nothing(
    relay: str, tmp_path: Path, model: tuple[str, Path], mongod: Mongod, mongo_database: str
) -> None:
    def once(name: str) -> tuple[dict[str, Any], set[str]]:
        ended = label_all(
            tmp_path / name, relay, model[0], "--store", "mongo",
            store__mongo_uri=mongod.uri, store__mongo_database=mongo_database,
        )  # fmt: skip
        assert ended.code == 0, ended.err
        with Client(mongod.uri) as db:
            posts = {
                doc["_id"]: (doc["state"], doc["labels"]["civic"]["fields"] if doc["state"] == "live" else None)
                for doc in db[mongo_database].posts.find()
            }
            return posts, {doc["_id"] for doc in db[mongo_database].labels.find({"state": "live"})}

    first, labels = once("first")
    second, labels_again = once("second")
    assert len(first) == 416
    assert Counter(state for state, _ in first.values())["live"] == 373
    assert second == first
    assert labels_again >= labels
    assert len(labels_again) == len(labels)


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "n", "counted"),
    [("--max-frames", 700, "700 frames"), ("--max-posts", 123, "123 posts"), ("--max-kept", 77, "77 kept")],
)
def test_a_limit_is_met_exactly_and_ends_with_0(flag: str, n: int, counted: str, relay: str, tmp_path: Path) -> None:
    ended = run("collect", "--relay", relay, "--data-dir", tmp_path, flag, n, **WINDOW)
    assert ended.code == 0, ended.err
    assert re.search(rf"\b{counted}\b", ended.out)
    if flag == "--max-kept":
        assert query(tmp_path / "journal.db", "SELECT count(*) FROM post") == [(77,)]
    said = json.loads(run("status", "--json", "--data-dir", tmp_path).out)
    assert all(balance["closes"] for balance in said["balances"])
    # The next start goes on where this one ended.
    again = run(
        "collect", "--relay", relay, "--data-dir", tmp_path, "--max-frames", LAST_SEQ - cursor(tmp_path), **WINDOW
    )
    assert again.code == 0
    assert query(tmp_path / "journal.db", "SELECT outcome, sum(n) FROM count WHERE unit = 'post' GROUP BY 1") == [
        ("deleted", 15), ("kept", 416), ("received", 624), ("rejected", 185), ("updated", 8)
    ]  # fmt: skip


def test_max_minutes_ends_by_itself(relay: str, tmp_path: Path) -> None:
    ended = run("collect", "--relay", relay, "--data-dir", tmp_path, "--max-minutes", 0.03, **WINDOW)
    assert ended.code == 0
    assert "1,649 frames" in ended.out


def test_a_model_that_does_not_finish_within_the_drain_time_ends_with_1_and_says_how_many_wait(
    relay: str, tmp_path: Path
) -> None:
    with model_server(tmp_path / "log", "--delay", "30") as slow:
        ended = label_all(tmp_path / "d", relay, slow, limits__drain_seconds=3)
    assert ended.code == 1
    assert re.search(r"; 373 wait for a label$", ended.out.strip())
    said = json.loads(run("status", "--json", "--data-dir", tmp_path / "d").out)
    assert said["waiting"] == 373


def test_sigterm_ends_run_with_0_and_what_was_in_flight_is_labelled(relay: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with model_server(log, "--delay", "0.5") as slow:
        process = start(
            "run", "--relay", relay, "--data-dir", tmp_path / "d", "--model-url", slow, "--model", "mock", **WINDOW
        )
        ended = end_when(process, lambda: len(log.read_text()) >= 65 * 8, "eight requests")
    assert ended.code == 0, ended.err
    asked = len(log.read_text().splitlines())
    assert query(tmp_path / "d" / "ledger.db", "SELECT count(*) FROM label") == [(asked,)]
    stored = [json.loads(doc) for (doc,) in query(tmp_path / "d" / "posts.db", "SELECT doc FROM posts")]
    assert sum("civic" in doc.get("labels", {}) for doc in stored) == asked


# ---- a relay that comes and goes -------------------------------------------------------------------------------------


def test_a_relay_down_then_up_then_down_never_ends_us_and_is_told_once_a_change(tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "log"
    with log.open("w") as err:
        process = subprocess.Popen(
            [CIVICSKY, "collect", "--relay", f"ws://127.0.0.1:{port}", "--data-dir", str(tmp_path / "d")],
            env=environment(**WINDOW, source__backoff_seconds=0.05, log__level="debug"),
            stderr=err,
        )
    until(lambda: "source_down" in log.read_text(), "the first attempt to fail")
    with server(CIVICSKY, "dev", "serve-frames", "sample", "--port", port):
        until(lambda: cursor(tmp_path / "d") >= LAST_SEQ, "the sample")
    until(
        lambda: log.read_text().rpartition("source_up")[2].count("source_attempt") >= 3, "attempts after it went down"
    )
    assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=30) == 0
    changes = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert [name for name in changes if name in {"source_up", "source_down"}] == [
        "source_down",
        "source_up",
        "source_down",
    ]


@contextmanager
def hanging_up(attempts: list[float], *, after_the_handshake: bool) -> Iterator[int]:
    """A relay that hangs up on everybody and notes when; its port."""

    class HangUp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            attempts.append(time.monotonic())

    def greet(_connection: ServerConnection) -> None:
        attempts.append(time.monotonic())

    if after_the_handshake:
        with serve(greet, "127.0.0.1", 0) as relay:
            threading.Thread(target=relay.serve_forever, daemon=True).start()
            yield relay.socket.getsockname()[1]
            relay.shutdown()
    else:
        with socketserver.TCPServer(("127.0.0.1", 0), HangUp) as hang_up:
            threading.Thread(target=hang_up.serve_forever, daemon=True).start()
            yield hang_up.server_address[1]
            hang_up.shutdown()


@pytest.mark.parametrize(("after_the_handshake", "client"), [(False, "picows"), (True, "websockets")])
def test_a_relay_that_hangs_up_at_once_is_tried_ten_times_in_the_first_minute_and_twice_a_minute_after(
    tmp_path: Path, client: str, *, after_the_handshake: bool
) -> None:
    """In a time of one twentieth: 3 s stand for a minute."""
    attempts: list[float] = []
    with hanging_up(attempts, after_the_handshake=after_the_handshake) as port:
        process = start(
            "collect", "--relay", f"ws://127.0.0.1:{port}", "--data-dir", tmp_path,
            source__backoff_seconds=1 / 20, source__backoff_max_seconds=30 / 20, source__client=client,
        )  # fmt: skip
        until(lambda: attempts and time.monotonic() - attempts[0] > 9, "three minutes")
        process.terminate()
        ended = finish(process)
    assert ended.code == 0
    minutes = Counter(int((at - attempts[0]) / 3) for at in attempts)
    assert 4 <= minutes[0] <= 10
    assert minutes[1] <= 3  # two a minute, and one that falls onto the edge
    assert minutes[1] + minutes[2] <= 4
    assert sum("source_down" in line for line in ended.err.splitlines()) == 1


# ---- small commands --------------------------------------------------------------------------------------------------


def test_a_captured_stream_can_be_served_again(relay: str, tmp_path: Path) -> None:
    ended = run("dev", "capture", "--relay", relay, "--window", "--max-frames", 500, tmp_path / "frames.bin.gz")
    assert ended.code == 0, ended.err
    sample = files("civicsky") / "data" / "sample" / "frames.bin.gz"
    assert list(read_frames(tmp_path / "frames.bin.gz")) == list(read_frames(Path(str(sample))))[:500]
    with server(CIVICSKY, "dev", "serve-frames", tmp_path / "frames.bin.gz") as again:
        ended = run("collect", "--relay", again, "--data-dir", tmp_path / "d", "--max-frames", 500, **WINDOW)
    assert "500 frames" in ended.out


def test_a_looped_recording_goes_on_with_rising_numbers(tmp_path: Path) -> None:
    with server(CIVICSKY, "dev", "serve-frames", "sample", "--loop") as relay:
        ended = run("collect", "--relay", relay, "--data-dir", tmp_path, "--max-frames", 2 * LAST_SEQ, **WINDOW)
    assert ended.code == 0, ended.err
    assert cursor(tmp_path) == 2 * LAST_SEQ
    counts = dict(query(tmp_path / "journal.db", "SELECT outcome, sum(n) FROM count WHERE unit = 'post' GROUP BY 1"))
    assert counts["stale"] == 624, "the rev rule drops what was seen before"


def test_the_command_is_installed_and_tells_its_version() -> None:
    assert (BIN / "civicsky").exists()
    assert run("--version").out == "civicsky 0.1.0\n"
