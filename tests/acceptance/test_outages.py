"""What the service needs goes away in the midst of a run, and comes back: nothing is lost, doubled or wrong."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from conftest import Client, Mongod, _loadable, skip
from support import fake_relay, model_server
from support.clients import both_clients
from support.command import environment, finish, query, start, until
from support.converge import cursors, differences, documents, ended, get, has_converged, post
from support.webhook import webhook

EVENTS = 1500
QUICK: dict[str, Any] = {
    "source__start": "window", "source__backoff_seconds": 0.05, "source__backoff_max_seconds": 0.2,
    "worker__batch_frames": 32, "label__pause_seconds": 0.05, "label__pause_max_seconds": 0.2,
    "store__timeout_seconds": 1, "store__retry_max_seconds": 0.2, "appview__per_second": 1000,
    "appview__recheck_after_seconds": 0, "log__minute_seconds": 1,
}  # fmt: skip


class Model:
    """The deterministic model's server, on a port that it keeps."""

    def __init__(self, log: Path) -> None:
        self.log, self.port = log, 0
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, model_server.__file__, "--log", str(self.log), "--port", str(self.port)],
            stdout=subprocess.PIPE, env=environment(), text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[0]
        self.port = int(self.url.split(":")[2].partition("/")[0])

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def world(tmp_path: Path) -> Iterator[tuple[str, str, Model]]:
    """(relay, its control server, model)."""
    relay = subprocess.Popen(
        [sys.executable, fake_relay.__file__, "--seed", "5", "--events", str(EVENTS), "--rate", "400", "--behind", "60",
         "--from-start"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    model = Model(tmp_path / "model.log")
    try:
        assert relay.stdout is not None
        url, control = relay.stdout.readline().split()
        yield url, control, model
    finally:
        relay.kill()
        relay.communicate()
        model.kill()


def run(folder: Path, relay: str, control: str, model: Model, **settings: Any) -> "subprocess.Popen[str]":
    asks = ("--model-url", model.url, "--model", "mock")
    return start("run", "--relay", relay, "--data-dir", folder, *asks, **QUICK, **settings, appview__url=control)


def labelled(folder: Path) -> int:
    rows = query(folder / "ledger.db", "SELECT count(*) FROM job WHERE state = 'done'")
    return int(rows[0][0]) if rows else 0


def test_a_model_that_is_killed_and_comes_back_costs_no_post(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with world(tmp_path) as (relay, control, model):
        process = run(folder, relay, control, model)
        for done in (20, 60):
            until(lambda: labelled(folder) >= done, "some labels")  # noqa: B023
            model.kill()
            down = "SELECT 1 FROM job WHERE state = 'pending' AND reason = 'unreachable'"
            until(lambda: query(folder / "ledger.db", down), "the outage to be noticed")  # noqa: B023
            post(control + "/make", {"events": 50})
            last = get(control + "/state")["last_seq"][0]
            until(lambda: cursors(folder, [relay])[0] >= last, "collecting to go on without the model")  # noqa: B023
            model.start()
        until(lambda: has_converged(folder, control, [relay]), "the end of the stream")
        process.send_signal(signal.SIGTERM)
        assert finish(process).code == 0
        assert differences(folder, control, [relay], documents(folder)) == []


@pytest.mark.mongo
def test_a_mongod_that_is_killed_and_comes_back_has_every_document_once(tmp_path: Path) -> None:
    if why := _loadable():
        skip(why)
    mongod, folder = Mongod(tmp_path / "mongod"), tmp_path / "data"
    mongod.start()
    try:
        with world(tmp_path) as (relay, control, model):
            process = run(folder, relay, control, model, store__mongo_uri=mongod.uri)
            for done in (20, 60):
                until(lambda: labelled(folder) >= done, "some labels")  # noqa: B023
                mongod.stop()
                until(lambda: labelled(folder) >= done + 20, "labelling to go on without MongoDB")  # noqa: B023
                mongod.start()
            until(lambda: has_converged(folder, control, [relay]), "the end of the stream")
            process.send_signal(signal.SIGTERM)
            assert finish(process).code == 0
            with Client(mongod.uri) as db:
                stored = {doc["_id"]: doc for doc in db["civicsky"]["posts"].find()}
            assert differences(folder, control, [relay], stored) == []
    finally:
        mongod.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty folder on a disk of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_with_1_and_the_next_start_goes_on(small_disk: Path, tmp_path: Path) -> None:
    folder, ballast = small_disk / "data", small_disk / "ballast"
    with world(tmp_path) as (relay, control, model), webhook() as hook:
        process = run(folder, relay, control, model, notify__url=hook.url)
        until(lambda: labelled(folder) >= 20, "some labels")
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
        full = finish(process)
        assert full.code == 1, full.err
        assert "make room on the disk" in full.err.splitlines()[-1]
        for _ in range(2):
            again = finish(run(folder, relay, control, model, notify__url=hook.url))
            assert again.code == 1, "still no room"
        assert [one for one in hook.told() if one[1] == "ended"] == [("problem", "ended")], "however often it starts"
        assert any("make room on the disk" in one.values["why"] for one in hook.heard)
        ballast.unlink()
        ended(folder, control, [relay])
        process = run(folder, relay, control, model)
        until(lambda: has_converged(folder, control, [relay]), "the end of the stream")
        process.send_signal(signal.SIGTERM)
        assert finish(process).code == 0
        assert differences(folder, control, [relay], documents(folder)) == []


@both_clients
def test_a_relay_process_that_is_gone_and_comes_back_is_resumed_without_a_gap(client: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with world(tmp_path) as (relay, control, model):
        process = run(folder, relay, control, model, source__client=client)
        until(lambda: labelled(folder) >= 20, "some labels")
        post(control + "/knob", [{"name": "down", "seconds": 1}, {"name": "down", "seconds": 1, "after": 100}])
        post(control + "/make", {"events": 200})  # the world may be at its end already
        until(lambda: get(control + "/state")["fired"].get("down") == 2, "two outages")
        until(lambda: has_converged(folder, control, [relay]), "the end of the stream")
        process.send_signal(signal.SIGTERM)
        assert finish(process).code == 0
        assert differences(folder, control, [relay], documents(folder)) == []
    assert query(folder / "journal.db", "SELECT * FROM gap") == []
    assert {resume for (resume,) in query(folder / "journal.db", "SELECT resume FROM held")} == {"first", "in_time"}
