"""The table of faults: one line that says what, where, and what to do; and the rest of the service goes on."""

import ctypes
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from conftest import Client, Mongod, skip
from support.command import (
    CIVICSKY,
    HANGING_MOUNT,
    LAST_SEQ,
    Ended,
    cursor,
    end_when,
    environment,
    model_server,
    query,
    run,
    start,
    until,
)

WINDOW: dict[str, Any] = {"source__start": "window", "limits__drain_seconds": 20}
NOWHERE = "http://127.0.0.1:1/v1"


TOXICITY = Path(__file__).parents[1] / "tasks" / "toxicity.toml"


def one_line(ended: Ended) -> str:
    """The only line on standard error that is not of the log."""
    lines = [line for line in ended.err.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("civicsky: ")
    return lines[0]


def events(ended: Ended) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ended.err.splitlines() if line.startswith("{")]


def names(ended: Ended) -> list[str]:
    return [event["event"] for event in events(ended)]


@pytest.fixture(scope="session")
def collected(relay: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with the whole sample in its journal and nothing labelled. Copy it before use."""
    folder = tmp_path_factory.mktemp("collected")
    ended = run("collect", "--relay", relay, "--data-dir", folder, "--max-frames", LAST_SEQ, **WINDOW)
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def folder(collected: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(collected, tmp_path / "data"))


# ---- wrong usage and settings ----------------------------------------------------------------------------------------


def test_no_model_chosen_offers_the_three_ways(tmp_path: Path) -> None:
    ended = run("run", "--data-dir", tmp_path)
    assert ended.code == 2
    assert all(way in one_line(ended) for way in ("--model-url", "--model local", "civicsky collect"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"source__relys": "x"}, "CIVICSKY_SOURCE__RELYS: no such setting"),
        ({"label__slots": "many"}, "CIVICSKY_LABEL__SLOTS: label.slots: Input should be a valid integer"),
        ({"config": "/nowhere/civicsky.toml"}, "/nowhere/civicsky.toml: No such file or directory"),
    ],
)
def test_a_wrong_setting_names_itself_and_where_it_came_from(settings: dict[str, Any], says: str) -> None:
    ended = run("config", **settings)
    assert ended.code == 2
    assert says in one_line(ended)


def test_an_unknown_key_in_the_settings_file_names_itself(tmp_path: Path) -> None:
    file = tmp_path / "civicsky.toml"
    file.write_text("[store]\nmongo_url = 'mongodb://user:hunter2@host'\n")
    ended = run("config", "--config", file)
    assert ended.code == 2
    assert "store.mongo_url" in one_line(ended)
    assert str(file) in one_line(ended)
    assert "hunter2" not in ended.err


def test_config_masks_secrets() -> None:
    ended = run("config", store__mongo_uri="mongodb://u:hunter2@h", label__api_key="sk-hunter3")
    assert ended.code == 0
    assert "hunter" not in ended.out + ended.err
    assert "**********" in ended.out


def test_config_tells_the_tasks_and_their_files_hashes() -> None:
    both = json.dumps(["civic", str(TOXICITY)])
    digest = hashlib.sha256(TOXICITY.read_bytes()).hexdigest()
    ended = run("config", label__tasks=both)
    assert ended.code == 0
    assert f"task toxicity, version 1, SHA-256 of its file {digest}" in ended.out.splitlines()
    told = json.loads(run("config", "--json", label__tasks=both).out)["tasks"]
    assert [task["name"] for task in told] == ["civic", "toxicity"]
    assert told[1] == {"name": "toxicity", "version": "1", "sha256": digest}


def test_config_checks_the_task_files(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text(TOXICITY.read_text(encoding="utf-8").replace('toxic = "yes"', 'toxic = "maybe"'))
    ended = run("config", label__tasks=json.dumps([str(file)]))
    assert (ended.code, ended.out) == (2, "")
    assert f"task file {file}: examples.0.answer.toxic: there is no value 'maybe'; give it one of" in one_line(ended)
    ended = run("config", label__tasks='["civics"]')
    assert ended.code == 2
    assert "task 'civics': no such task ships with civicsky; name one of ['civic'], or the path" in one_line(ended)


# ---- the data directory ----------------------------------------------------------------------------------------------


def test_an_unwritable_data_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = run("collect", "--data-dir", tmp_path / "file" / "data")
    assert ended.code == 2
    assert f"data directory {tmp_path}/file/data cannot be written" in one_line(ended)
    assert "--data-dir" in one_line(ended)


def test_a_data_directory_on_a_network_file_system_is_refused_even_when_the_mount_hangs(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        skip("mounting needs root and /dev/fuse")
    place = tmp_path / "mount"
    place.mkdir()
    command = [CIVICSKY, "collect", "--data-dir", str(place / "data")]
    ran = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", HANGING_MOUNT, str(place), *command],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=30,
        check=False,
    )
    ended = Ended(ran.returncode, ran.stdout, ran.stderr)
    assert ended.code == 2, ended.err
    assert "network file system (fuse.sshfs)" in one_line(ended)
    assert ctypes.sizeof(ctypes.c_void_p) == 8


def test_a_locked_data_directory_names_its_holder(relay: str, tmp_path: Path) -> None:
    first = start("collect", "--relay", relay, "--data-dir", tmp_path, **WINDOW)

    until(lambda: cursor(tmp_path) >= LAST_SEQ, "the first to run")
    refused = run("collect", "--data-dir", tmp_path)
    ended = end_when(first, lambda: True, "the first to run")
    assert refused.code == 2
    assert "'collect'" in one_line(refused)
    assert f'"pid": {first.pid}' in one_line(refused)
    assert ended.code == 0


def test_a_database_of_a_newer_version_is_not_touched(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "journal.db")) as db:
        db.execute("PRAGMA user_version = 99")
    before = (folder / "journal.db").read_bytes()
    ended = run("collect", "--data-dir", folder)
    assert ended.code == 2
    assert "journal.db was written by a newer civicsky (format 99); upgrade civicsky" in one_line(ended)
    assert (folder / "journal.db").read_bytes() == before


@pytest.mark.parametrize("garbage", [b"not a database at all" * 500, None])
def test_a_damaged_database_ends_loudly(folder: Path, garbage: bytes | None, relay: str) -> None:
    file = folder / "journal.db"
    if garbage is None:
        data = bytearray(file.read_bytes())
        data[4096 * 2 :] = os.urandom(len(data) - 4096 * 2)
        garbage = bytes(data)
    file.write_bytes(garbage)
    for name in ("journal.db-wal", "journal.db-shm"):
        (folder / name).unlink(missing_ok=True)
    ended = run("collect", "--relay", relay, "--data-dir", folder, "--max-frames", 100, **WINDOW)
    assert ended.code == 1
    assert "journal.db is damaged" in one_line(ended)


# ---- the relay -------------------------------------------------------------------------------------------------------


def test_a_relay_that_is_not_there_does_not_fail_the_start(tmp_path: Path) -> None:
    process = start("collect", "--relay", "ws://127.0.0.1:1", "--data-dir", tmp_path)
    ended = end_when(process, (tmp_path / "journal.db").exists, "the start")
    assert ended.code == 0
    assert names(ended).count("source_down") <= 1


# ---- the model -------------------------------------------------------------------------------------------------------


def test_label_with_an_unreachable_model_waits_and_says_so_once(folder: Path) -> None:
    process = start("label", "--data-dir", folder, "--model-url", NOWHERE, "--model", "m", label__pause_seconds=0.05)
    tried = "SELECT 1 FROM job WHERE reason = 'unreachable' LIMIT 1"
    ended = end_when(process, lambda: query(folder / "ledger.db", tried), "the first attempt")
    assert ended.code == 0, ended.err
    assert names(ended).count("label_down") == 1
    (down,) = [event for event in events(ended) if event["event"] == "label_down"]
    assert down["why"] == "model at http://127.0.0.1:1 cannot be reached (ConnectError)"
    assert query(folder / "ledger.db", "SELECT count(*) FROM job WHERE attempts > 0") == [(0,)]


@pytest.mark.parametrize(
    ("options", "model", "says"),
    [
        (("--key", "right"), "mock", "refuses the key (HTTP 401); set CIVICSKY_LABEL__API_KEY"),
        ((), "other", "does not know the model 'other'"),
    ],
)
def test_a_model_that_refuses_ends_label_and_parks_run(
    folder: Path, tmp_path: Path, relay: str, options: tuple[str, ...], model: str, says: str
) -> None:
    with model_server(tmp_path / "log", *options) as url:
        asks = ("--model-url", url, "--model", model)
        alone = run("label", "--drain", "--data-dir", folder, *asks, label__api_key="hunter2")
        log = tmp_path / "both.log"
        both = start(
            "run", "--relay", relay, "--data-dir", tmp_path / "both", *asks, **WINDOW, label__api_key="hunter2",
            log__file=log,
        )  # fmt: skip
        stored = "SELECT count(*) FROM posts"
        ended = end_when(
            both,
            lambda: (
                cursor(tmp_path / "both") >= LAST_SEQ
                and query(tmp_path / "both" / "posts.db", stored)[0][0] > 380
                and "label_parked" in log.read_text()
            ),
            "all to be collected and stored, and labelling to be parked",
        )
    assert alone.code == 2
    assert says in one_line(alone)
    assert "hunter2" not in alone.err + ended.err + log.read_text()
    assert ended.code == 0, ended.err
    assert log.read_text().count('"label_parked"') == 1


def test_an_overloaded_model_uses_up_no_attempts(folder: Path, tmp_path: Path) -> None:
    with model_server(tmp_path / "log", "--status", "503") as url:
        process = start(
            "label", "--data-dir", folder, "--model-url", url, "--model", "mock",
            label__pause_seconds=0.01, label__pause_max_seconds=0.1,
        )  # fmt: skip
        ended = end_when(process, lambda: len((tmp_path / "log").read_text()) > 65 * 20, "20 requests")
    assert ended.code == 0
    tried = "SELECT count(*) FROM job WHERE state = 'dead' OR attempts > 0 OR broken > 0 OR busy > 0"
    assert query(folder / "ledger.db", tried) == [(0,)]


def test_unusable_answers_end_as_failed_with_their_reason(folder: Path, tmp_path: Path) -> None:
    with model_server(tmp_path / "log", "--say", "I would rather not") as url:
        ended = run(
            "label", "--drain", "--data-dir", folder, "--model-url", url, "--model", "mock",
            label__pause_seconds=0.01, label__attempts=2,
        )  # fmt: skip
    assert ended.code == 0, ended.err
    dead = query(folder / "ledger.db", "SELECT state, reason, attempts, count(*) FROM job GROUP BY 1, 2, 3")
    assert [row for row in dead if row[0] == "dead"] == [("dead", "not_json", 2, 373)]
    said = json.loads(run("status", "--json", "--data-dir", folder).out)
    assert said["failed_by_reason"] == {"not_json": 373}


def test_a_server_that_forbids_one_post_costs_only_that_post(folder: Path, tmp_path: Path) -> None:
    with model_server(tmp_path / "log", "--forbid", "End of the sample stream") as url:
        ended = run(
            "label", "--drain", "--data-dir", folder, "--model-url", url, "--model", "mock", label__pause_seconds=0.01
        )
    assert ended.code == 0, ended.err
    states = dict(query(folder / "ledger.db", "SELECT state, count(*) FROM job WHERE state <> 'cancelled' GROUP BY 1"))
    assert states["done"] == 372
    assert query(folder / "ledger.db", "SELECT reason, attempts FROM job WHERE state = 'dead'") == [
        ("request_rejected", 3)
    ]


def test_a_server_without_schemas_is_asked_without_them(folder: Path, tmp_path: Path) -> None:
    with model_server(tmp_path / "log", "--only-plain") as url:
        ended = run("label", "--drain", "--data-dir", folder, "--model-url", url, "--model", "mock")
    assert ended.code == 0, ended.err
    assert query(folder / "ledger.db", "SELECT count(*) FROM label") == [(373,)]


# ---- MongoDB ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def guarded(mongod: Mongod, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """A mongod that asks for a password: admin may do anything, reader may only read."""
    folder = tmp_path_factory.mktemp("guarded")
    key = folder / "key"
    key.write_text("c2VjcmV0c2VjcmV0")
    key.chmod(0o600)
    server = Mongod(folder, "--keyFile", str(key))
    server.start()
    with Client(server.uri) as db:
        db.admin.command("createUser", "admin", pwd="hunter2", roles=["root"])
    with Client(server.uri, username="admin", password="hunter2") as db:
        db.admin.command("createUser", "reader", pwd="hunter2", roles=[{"role": "read", "db": "civicsky"}])
    yield server
    server.stop()


def with_login(server: Mongod, user: str, password: str) -> str:
    return f"mongodb://{user}:{password}@127.0.0.1:{server.port}/?replicaSet=rs0&authSource=admin"


@pytest.mark.parametrize(
    ("user", "password", "says"),
    [
        ("admin", "hunter3", "the user name or password is wrong (code 18)"),
        ("reader", "hunter2", "the user may not write there (code 13)"),
    ],
)
def test_a_mongodb_that_refuses_ends_label_and_parks_run(
    guarded: Mongod,
    folder: Path,
    tmp_path: Path,
    relay: str,
    model: tuple[str, Path],
    user: str,
    password: str,
    says: str,
) -> None:
    uri = with_login(guarded, user, password)
    asks = ("--model-url", model[0], "--model", "mock", "--store", "mongo")
    alone = run("label", "--drain", "--data-dir", folder, *asks, store__mongo_uri=uri)
    assert alone.code == 2
    assert says in one_line(alone)
    assert f"127.0.0.1:{guarded.port}/civicsky" in one_line(alone)
    both = start("run", "--relay", relay, "--data-dir", tmp_path / "both", *asks, **WINDOW, store__mongo_uri=uri)
    labelled = "SELECT count(*) FROM job WHERE state = 'done'"
    ended = end_when(
        both, lambda: (query(tmp_path / "both" / "ledger.db", labelled) or [(0,)])[0][0] >= 373, "all to be labelled"
    )
    assert ended.code == 0, ended.err
    assert [name for name in names(ended) if name.startswith("store_")] == ["store_parked"]
    assert password not in alone.err + ended.err


def test_documents_wait_in_the_ledger_while_mongodb_is_away(
    tmp_path: Path, relay: str, model: tuple[str, Path], mongod: Mongod, tmp_path_factory: pytest.TempPathFactory
) -> None:
    late = Mongod(tmp_path_factory.mktemp("late"))
    process = start(
        "run", "--relay", relay, "--data-dir", tmp_path, "--model-url", model[0], "--model", "mock", "--store", "mongo",
        **WINDOW, store__mongo_uri=late.uri, store__timeout_seconds=0.5,
    )  # fmt: skip
    labelled = "SELECT count(*) FROM job WHERE state = 'done'"
    try:
        until(lambda: (query(tmp_path / "ledger.db", labelled) or [(0,)])[0][0] >= 373, "all to be labelled")
        late.start()
        waits = "SELECT count(*) FROM doc WHERE v > stored_v"
        ended = end_when(process, lambda: query(tmp_path / "ledger.db", waits) == [(0,)], "all to be stored")
        with Client(late.uri) as db:
            assert db.civicsky.posts.count_documents({"labels.civic": {"$exists": True}}) >= 373
    finally:
        late.stop()
    assert ended.code == 0, ended.err
    assert [name for name in names(ended) if name.startswith("store_")] == ["store_down", "store_up"]
