"""`civicsky doctor` names each trouble, which is provoked for real, with a remedy; and nothing where there is none."""

import asyncio
import fcntl
import gzip
import hashlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.server import serve

from civicsky.annotate.votes import Votes
from civicsky.embedding import load
from civicsky.events.folder import sync
from civicsky.events.index import Index
from conftest import Client, Mongod, skip
from support.appview_server import Trouble, appview_server
from support.command import (
    CIVICSKY,
    HANGING_MOUNT,
    LAST_SEQ,
    MODEL_SERVER,
    Ended,
    cursor,
    end_when,
    environment,
    model_server,
    run,
    server,
    start,
    until,
)
from support.events import both, write
from support.misbehave import TOO_SLOW

WINDOW: dict[str, Any] = {"source__start": "window", "limits__drain_seconds": 20}
HOUR = 3_600_000_000
OLD = Path(__file__).parents[1] / "upgrades" / "v0.1.0"


@pytest.fixture(scope="module")
def labelled(relay: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with the whole sample, labelled and stored. Copy it before use."""
    folder = tmp_path_factory.mktemp("labelled")
    with server(sys.executable, MODEL_SERVER, "--log", folder.with_name("log")) as url:
        ended = run(
            "run", "--relay", relay, "--data-dir", folder, "--max-frames", LAST_SEQ,
            "--model-url", url, "--model", "mock", **WINDOW,
        )  # fmt: skip
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def folder(labelled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(labelled, tmp_path / "data"))


def labelled_by_hand(folder: Path) -> None:
    async def make() -> None:
        await (await Votes.open(folder)).close()

    asyncio.run(make())


def given_articles(folder: Path) -> None:
    index = Index.opened(folder / "events.db", load())
    sync(write(folder.with_name("news") / "a.jsonl", both(0)).parent, index)
    index.close()


def doctor(folder: Path, *args: str | Path, offline: bool = True, **settings: Any) -> Ended:
    ended = run("doctor", "--data-dir", folder, *(["--offline"] if offline else []), *args, **settings)
    assert not ended.err, ended.err
    return ended


def problems(ended: Ended) -> list[str]:
    return [line for line in ended.out.splitlines() if line.startswith("problem ")]


def the_problem(ended: Ended) -> str:
    """The only one; it has a remedy."""
    assert ended.code == 1, ended.out
    (line,) = problems(ended)
    assert "; " in line
    return line


def change(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.db")}


@contextmanager
def dated(skew: timedelta) -> Iterator[str]:
    """A public API whose clock is wrong."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"profiles": []}')

        def date_time_string(self, timestamp: float | None = None) -> str:  # noqa: ARG002
            return format_datetime(datetime.now(UTC) + skew, usegmt=True)

        def log_message(self, *_args: Any) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


# ---- nothing is wrong ------------------------------------------------------------------------------------------------


def test_a_healthy_installation_has_no_problem(folder: Path, relay: str, model: tuple[str, Path]) -> None:
    before = digests(folder)
    with appview_server() as api:
        ended = doctor(
            folder, "--relay", relay, "--model-url", model[0], "--model", "mock", "--verbose",
            offline=False, appview__url=api.url,
        )  # fmt: skip
        assert [call.method for call in api.calls] == ["app.bsky.actor.getProfiles"]
    assert ended.code == 0, ended.out
    *lines, last = ended.out.splitlines()
    assert all(line.startswith("ok ") for line in lines), ended.out
    assert last.startswith("no problems, ")
    assert digests(folder) == before
    assert model[1].read_text() == "", "the model is asked nothing that costs"
    quiet = doctor(folder)
    assert (quiet.code, len(quiet.out.splitlines())) == (0, 1)


def test_it_works_beside_the_running_service(tmp_path: Path, relay: str) -> None:
    folder = tmp_path / "data"
    process = start("collect", "--relay", relay, "--data-dir", folder, **WINDOW)
    until(lambda: cursor(folder) >= LAST_SEQ, "all to be collected")
    ended = doctor(folder, "--verbose")
    stopped = end_when(process, lambda: True, "the end")
    assert ended.code == 0, ended.out
    assert f'held by {{"pid": {process.pid}' in ended.out
    assert "runs since" in ended.out
    assert stopped.code == 0, stopped.err


def test_the_answer_for_programs_has_every_check(folder: Path) -> None:
    told = json.loads(doctor(folder, "--json").out)
    assert told["healthy"] is True
    assert {"balance", "journal.db", "ledger.db", "posts.db", "disk", "gaps", "quarantine", "rechecks", "clock"} <= {
        one["name"] for one in told["findings"]
    }
    assert all(set(one) == {"name", "state", "what", "remedy"} for one in told["findings"])


def test_wrong_usage_is_told_from_a_problem(folder: Path) -> None:
    assert run("doctor", "--data-dir", folder, "--seconds", "0").code == 2
    assert run("doctor", "--data-dir", folder, source__relys="x").code == 2


# ---- the folder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("made", "says"), [(False, "there is no folder"), (True, "holds no journal.db")])
def test_a_folder_without_a_journal(tmp_path: Path, made: bool, says: str) -> None:
    if made:
        (tmp_path / "data").mkdir()
    line = the_problem(doctor(tmp_path / "data"))
    assert says in line
    assert "--data-dir" in line
    assert (tmp_path / "data").exists() is made


def test_a_folder_and_a_file_that_others_can_read(folder: Path) -> None:
    folder.chmod(0o755)
    (folder / "posts.db").chmod(0o644)
    first, second = problems(doctor(folder))
    assert f"chmod 700 {folder}" in first
    assert f"chmod 600 {folder}/posts.db" in second


def test_a_network_file_system_is_told_and_not_touched(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        skip("mounting needs root and /dev/fuse")
    place = tmp_path / "mount"
    place.mkdir()
    command = [CIVICSKY, "doctor", "--offline", "--data-dir", str(place / "data")]
    ran = _unshared("-c", HANGING_MOUNT, str(place), *command)
    assert "network file system (fuse.sshfs)" in the_problem(ran)


def test_a_full_disk(folder: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        skip("mounting needs root")
    mount = (
        "import ctypes, os, shutil, sys\n"
        "assert ctypes.CDLL(None).mount(b'none', sys.argv[1].encode(), b'tmpfs', 0, b'size=50m,mode=700') == 0\n"
        "shutil.copytree(sys.argv[2], sys.argv[1] + '/data')\n"
        "os.execv(sys.argv[3], sys.argv[3:])\n"
    )
    place = tmp_path / "mount"
    place.mkdir()
    command = [CIVICSKY, "doctor", "--offline", "--data-dir", str(place / "data")]
    line = the_problem(_unshared("-c", mount, str(place), str(folder), *command))
    assert "MB free; make room" in line


def _unshared(*command: str) -> Ended:
    ran = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, *command],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=30,
        check=False,
    )
    return Ended(ran.returncode, ran.stdout, ran.stderr)


def test_a_lock_that_outlived_its_holder(folder: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    file = folder / "collect.lock"
    file.write_text(json.dumps({"pid": ended.pid, "host": socket.gethostname(), "since": "2026-11-22T00:00:00.000Z"}))
    assert doctor(folder).code == 0, "a free lock's old text is no problem"
    holder = subprocess.Popen(["flock", file, "sleep", "60"], start_new_session=True)
    try:
        until(lambda: subprocess.run(["flock", "-n", file, "true"], check=False).returncode, "the lock to be held")
        line = the_problem(doctor(folder))
    finally:
        os.killpg(holder.pid, 9)
        holder.wait()
    assert "lock collect" in line
    assert f'"pid": {ended.pid}' in line


# ---- the databases ---------------------------------------------------------------------------------------------------


def test_a_balance_that_does_not_close(folder: Path) -> None:
    change(folder / "journal.db", "UPDATE count SET n = n + 1 WHERE unit = 'frame' AND outcome = 'received'")
    line = the_problem(doctor(folder))
    assert "received 1,650" in line
    assert "DOES NOT CLOSE" in line
    assert "report it" in line


@pytest.mark.parametrize("name", ["journal.db", "ledger.db", "posts.db", "annotations.db", "events.db"])
def test_a_damaged_database(folder: Path, name: str) -> None:
    file = folder / name
    if name == "annotations.db":
        labelled_by_hand(folder)
    if name == "events.db":
        given_articles(folder)
    with closing(sqlite3.connect(file)) as db:
        ((page,),) = db.execute("SELECT rootpage FROM sqlite_schema WHERE type = 'index' ORDER BY rootpage LIMIT 1")
        ((size,),) = db.execute("PRAGMA page_size")
    with file.open("r+b") as stream:
        stream.seek((page - 1) * size)
        stream.write(os.urandom(size))
    ended = doctor(folder)
    assert ended.code == 1
    assert any(f"{file} is damaged" in line and "restore a backup" in line for line in problems(ended)), ended.out


@pytest.mark.parametrize(("name", "made"), [("annotations.db", labelled_by_hand), ("events.db", given_articles)])
def test_what_people_said_by_hand_and_articles_with_what_was_paid_for_them_are_looked_over_too(
    name: str, made: Callable[[Path], None], folder: Path
) -> None:
    assert name not in doctor(folder, "--verbose").out
    made(folder)
    assert f"ok       {name}" in doctor(folder, "--verbose").out
    (folder / name).chmod(0o640)
    assert f"chmod 600 {folder}/{name}" in the_problem(doctor(folder))
    (folder / name).chmod(0o600)
    change(folder / name, "PRAGMA user_version = 99")
    assert f"{name} was written by a newer civicsky (format 99)" in the_problem(doctor(folder))


def test_an_index_that_does_not_fit_its_table(folder: Path) -> None:
    file, schema = folder / "journal.db", "UPDATE sqlite_schema SET sql = {} WHERE name = 'post_by_author'"
    change(file, "PRAGMA writable_schema=ON", schema.format("sql || ' WHERE did > ''m'''"))
    change(file, "DELETE FROM post WHERE id % 2")  # leaves their entries in the index
    change(file, "PRAGMA writable_schema=ON", schema.format("substr(sql, 1, instr(sql, ' WHERE') - 1)"))
    assert "journal.db is damaged" in the_problem(doctor(folder))


def test_a_file_that_is_no_database_hides_nothing_else(folder: Path) -> None:
    (folder / "journal.db").write_bytes(b"not a database at all" * 500)
    for tail in ("-wal", "-shm"):
        (folder / f"journal.db{tail}").unlink(missing_ok=True)
    folder.chmod(0o755)
    access, damage = problems(doctor(folder))
    assert "chmod 700" in access
    assert "journal.db is damaged (file is not a database) (so nothing is known of: balance, " in damage
    assert "ok       ledger.db" in doctor(folder, "--verbose").out


def test_databases_of_an_older_format(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    for packed in OLD.glob("*.db.gz"):
        file = tmp_path / packed.stem
        file.write_bytes(gzip.decompress(packed.read_bytes()))
        file.chmod(0o600)
    lines = problems(doctor(tmp_path))
    for line, name in zip(lines, ("journal.db", "ledger.db", "posts.db"), strict=True):
        assert f"{name} was written by an older civicsky" in line
        assert "its service brings it up when it starts next" in line


def test_a_database_of_a_newer_format(folder: Path) -> None:
    change(folder / "ledger.db", "PRAGMA user_version = 99")
    assert "ledger.db was written by a newer civicsky (format 99)" in the_problem(doctor(folder))


def test_a_check_that_takes_too_long_is_given_up(folder: Path) -> None:
    rows = "INSERT INTO reject SELECT value, 'did:plc:x', '', 0, 'language', 0, NULL FROM generate"
    numbers = "WITH RECURSIVE generate (value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM generate LIMIT 900000) "
    change(folder / "journal.db", numbers + rows)
    ended = doctor(folder, "--seconds", "0.1")
    assert ended.code == 0, ended.out
    assert "unknown  journal.db" in ended.out
    assert "not known after 0.1 s; give it longer with --seconds" in ended.out


# ---- room ------------------------------------------------------------------------------------------------------------


def test_a_journal_at_its_bound(folder: Path) -> None:
    line = the_problem(doctor(folder, journal__max_bytes=100_000))
    assert "of journal.max_bytes" in line
    assert "reading stands still" in line


def test_a_bound_that_will_be_reached_is_foretold(folder: Path) -> None:
    now = int(time.time() * 1e6) // HOUR * HOUR
    past = [
        f"INSERT INTO count VALUES ({now - n * HOUR}, '{unit}', '{outcome}', '', 5000)"
        for n in range(1, 12)
        for unit, outcome in (("frame", "received"), ("frame", "commit"), ("post", "received"), ("post", "kept"))
    ]
    change(folder / "journal.db", *past)
    assert doctor(folder).code == 0
    line = the_problem(doctor(folder, journal__max_bytes=2_000_000))
    assert "forecast" in line
    assert "for 7 days of posts; its bound is reached in " in line
    assert "; raise journal.max_bytes" in line
    assert doctor(folder, journal__max_bytes=2_000_000, journal__post_days=0.1).code == 0


# ---- what waits, what failed, what is missing ------------------------------------------------------------------------


def test_changes_that_nobody_follows(folder: Path) -> None:
    change(folder / "ledger.db", "UPDATE position SET n = -1000")
    line = the_problem(doctor(folder))
    assert "changes to follow; start `civicsky label`" in line


def test_failed_labels_and_refused_documents(folder: Path) -> None:
    change(
        folder / "ledger.db",
        "UPDATE job SET state = 'dead', reason = 'not_json' WHERE id % 10 = 0",
        "UPDATE doc SET refused = 'too large' WHERE rkey = (SELECT min(rkey) FROM doc)",
    )
    labels, documents = problems(doctor(folder))
    assert "civicsky failed retry" in labels
    assert "1 refused by it" in documents


def test_a_quarantine_at_its_bounds(folder: Path) -> None:
    change(
        folder / "journal.db",
        "INSERT INTO quarantine (sha256, host, epoch, reason, bytes, at, did) VALUES ('', '', 1, 'undecodable', "
        f"zeroblob(1000), {int(time.time() * 1e6)}, '')",
    )
    assert doctor(folder).code == 0
    assert "journal.quarantine_rows" in the_problem(doctor(folder, journal__quarantine_bytes=1000))


def test_new_gaps_and_times_that_nobody_can_tell_of(folder: Path) -> None:
    now = int(time.time() * 1e6)
    gap = "INSERT INTO gap (host, epoch, cause, after_seq, at) VALUES ('wss://\x1b[31mr', 1, 'renumbered', 7, {})"
    held = (
        "INSERT INTO held (host, epoch, resume, first_seq, last_seq, first_at, last_at, frames) "
        "SELECT host, epoch, 'unverified', 2000, 2001, {0}, {0} + 1, 2 FROM held LIMIT 1"
    )
    change(folder / "journal.db", gap.format(now - 48 * HOUR))
    assert doctor(folder).code == 0, "what is old cannot be mended"
    change(folder / "journal.db", held.format(now - HOUR))
    assert "nobody can tell" in the_problem(doctor(folder))
    change(folder / "journal.db", gap.format(now - HOUR))
    line = the_problem(doctor(folder))
    assert "1 new in the last day" in line
    assert "\x1b" not in line
    assert "wss://?[31mr" in line


def test_posts_that_were_not_looked_up_again(folder: Path) -> None:
    change(folder / "journal.db", f"UPDATE recheck SET at = {int(time.time() * 1e6) - 48 * HOUR}")
    assert "`civicsky recheck`" in the_problem(doctor(folder))


def test_a_service_that_runs_and_receives_nothing(folder: Path) -> None:
    past = int(time.time() * 1e6) // HOUR * HOUR - 5 * HOUR
    # What it counted may be parted by an hour's end, and then would be there twice.
    change(folder / "journal.db", f"UPDATE OR REPLACE count SET hour = {past}", f"UPDATE run SET started = {past}")
    assert doctor(folder).code == 0, "it does not run"
    with (folder / "collect.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = the_problem(doctor(folder))
    assert "0 messages in the last hours; look at the service's log" in line


# ---- clocks ----------------------------------------------------------------------------------------------------------


def test_events_of_the_future(folder: Path) -> None:
    change(folder / "journal.db", f"UPDATE held SET last_at = {int(time.time() * 1e6) + HOUR}")
    line = the_problem(doctor(folder))
    assert " s in the future" in line
    assert "NTP" in line


@pytest.mark.parametrize(("minutes", "says"), [(5, "behind that of"), (-5, "ahead of that of")])
def test_a_clock_that_differs_from_the_public_apis(folder: Path, relay: str, minutes: int, says: str) -> None:
    with dated(timedelta(minutes=minutes)) as url:
        ended = doctor(folder, "--relay", relay, offline=False, appview__url=url)
    line = the_problem(ended)
    assert says in line
    assert " 300 s " in line or " 299 s " in line or " 301 s " in line
    assert "NTP" in line


# ---- the far side ----------------------------------------------------------------------------------------------------


def test_nothing_can_be_reached(folder: Path) -> None:
    nowhere = "http://127.0.0.1:1"
    ended = doctor(
        folder, "--relay", "ws://127.0.0.1:1", "--model-url", f"{nowhere}/v1", "--model", "m", "--store", "mongo",
        "--seconds", "4", offline=False, appview__url=nowhere,
        store__mongo_uri="mongodb://user:hunter2@127.0.0.1:1/",
    )  # fmt: skip
    relay, model, store, api = problems(ended)
    assert "relay ws://127.0.0.1:1 cannot be had" in relay
    assert "model at http://127.0.0.1:1 cannot be reached" in model
    assert "MongoDB at 127.0.0.1:1/civicsky cannot be reached" in store
    assert "public API at http://127.0.0.1:1 cannot be reached" in api
    assert all("; " in line for line in (relay, model, store, api))
    assert "hunter2" not in ended.out


def test_servers_that_accept_and_say_nothing_are_given_up(folder: Path) -> None:
    """Whoever waited for them would never end."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        ended = doctor(
            folder, "--relay", f"ws://{address}", "--model-url", f"http://{address}/v1", "--model", "m",
            "--seconds", "2", offline=False, appview__url=f"http://{address}",
        )  # fmt: skip
    assert len(problems(ended)) == 3


def test_a_relay_that_is_another_kind_of_server(folder: Path, model: tuple[str, Path]) -> None:
    address = model[0].removesuffix("/v1").replace("http://", "ws://")
    with appview_server() as api:
        line = the_problem(doctor(folder, "--relay", address, offline=False, appview__url=api.url))
    assert f"relay {address} cannot be had: HTTP 404" in line


@pytest.mark.parametrize(
    ("message", "says"), [(TOO_SLOW, "sends error ConsumerTooSlow"), (b"hello", "something else than events")]
)
def test_a_relay_that_turns_us_away(folder: Path, message: bytes, says: str) -> None:
    with serve(lambda socket: socket.send(message), "127.0.0.1", 0) as refusing, appview_server() as api:
        thread = threading.Thread(target=refusing.serve_forever)
        thread.start()
        address = f"ws://127.0.0.1:{refusing.socket.getsockname()[1]}"
        line = the_problem(doctor(folder, "--relay", address, offline=False, appview__url=api.url))
        refusing.shutdown()
        thread.join()
    assert says in line


@pytest.mark.parametrize(
    ("key", "name", "state", "says"),
    [
        ("hunter2", "mock", "problem", "refuses the key (HTTP 401); set CIVICSKY_LABEL__API_KEY"),
        ("right", "other", "unknown", "does not list 'other', but: mock; mend --model"),
    ],
)
def test_a_model_with_another_key_or_name(
    folder: Path, tmp_path: Path, relay: str, key: str, name: str, state: str, says: str
) -> None:
    with model_server(tmp_path / "log", "--key", "right") as url, appview_server() as api:
        ended = doctor(
            folder, "--relay", relay, "--model-url", url, "--model", name, offline=False,
            appview__url=api.url, label__api_key=key,
        )  # fmt: skip
    (line,) = [line for line in ended.out.splitlines() if line.startswith(f"{state:8} model")]
    assert says in line
    assert ended.code == (1 if state == "problem" else 0)
    assert "hunter2" not in ended.out


def test_each_of_several_servers_is_looked_at_whatever_the_limits(folder: Path, tmp_path: Path, relay: str) -> None:
    with (
        model_server(tmp_path / "one", "--key", "right") as well,
        model_server(tmp_path / "two", "--key", "another") as strict,
        appview_server() as api,
    ):
        ended = doctor(
            folder, "--relay", relay, "--model-url", well, "--model", "mock", "--verbose", offline=False,
            appview__url=api.url, label__api_key="right", label__more_urls=json.dumps([strict]),
            label__requests_per_minute=1,
        )  # fmt: skip
    line = the_problem(ended)
    assert f"{strict.removesuffix('/v1')} refuses the key (HTTP 401); set CIVICSKY_LABEL__API_KEY" in line
    assert f"mock at {well.removesuffix('/v1')}\n" in ended.out


@pytest.mark.parametrize(("status", "says"), [(403, "refuses us (HTTP 403)"), (400, "something else than the public")])
def test_a_public_api_that_is_none(folder: Path, relay: str, status: int, says: str) -> None:
    with appview_server() as api:
        api.next.append(Trouble(status))
        assert says in the_problem(doctor(folder, "--relay", relay, offline=False, appview__url=api.url))


def test_a_mongodb_that_may_be_written_is_not_changed(
    folder: Path, relay: str, mongod: Mongod, mongo_database: str
) -> None:
    with appview_server() as api:
        ended = doctor(
            folder, "--relay", relay, "--verbose", offline=False, appview__url=api.url,
            store__mongo_uri=mongod.uri, store__mongo_database=mongo_database,
        )  # fmt: skip
    assert ended.code == 0, ended.out
    assert f"/{mongo_database}, may be written" in ended.out
    with Client(mongod.uri) as db:
        assert mongo_database not in db.list_database_names()


def test_a_mongodb_user_who_may_only_read(
    folder: Path, relay: str, mongod: Mongod, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("guarded")
    key = place / "key"
    key.write_text("c2VjcmV0c2VjcmV0")
    key.chmod(0o600)
    guarded = Mongod(place, "--keyFile", str(key))
    guarded.start()
    try:
        with Client(guarded.uri) as db:
            db.admin.command("createUser", "admin", pwd="hunter2", roles=["root"])
        with Client(guarded.uri, username="admin", password="hunter2") as db:
            roles = [{"role": "read", "db": "civicsky"}]
            db.admin.command("createUser", "reader", pwd="hunter2", roles=roles)
        uri = f"mongodb://reader:hunter2@127.0.0.1:{guarded.port}/?replicaSet=rs0&authSource=admin"
        with appview_server() as api:
            ended = doctor(
                folder, "--relay", relay, offline=False, appview__url=api.url, store__mongo_uri=uri
            )  # fmt: skip
    finally:
        guarded.stop()
    assert "the user may not write there (code 13); mend CIVICSKY_STORE__MONGO_URI" in the_problem(ended)
    assert "hunter2" not in ended.out
