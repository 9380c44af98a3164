"""The log alone tells of every fault when it began and when it was over: one service, ten faults, and the queries that
docs/operations.md gives, put to its log by jq itself."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import Mongod, skip
from docs.pages import named, rows, section
from support import model_server
from support.command import environment, finish, run, start
from support.led import led_relay, now_moment

POISON = "zanzibar quagmire"
SETTINGS: dict[str, Any] = {
    "fault": f"worker.record:{POISON}",
    "source__backoff_seconds": 0.05, "source__backoff_max_seconds": 0.1, "source__liveness_seconds": 4,
    "worker__batch_seconds": 0.05, "worker__processes": 1, "sample__posts_per_day": 0,
    "label__pause_seconds": 0.05, "label__pause_max_seconds": 0.1,
    "store__timeout_seconds": 1, "store__retry_max_seconds": 0.2, "store__kind": "mongo", "store__mongo_database": "jq",
    "health__quiet_seconds": 7, "health__behind_seconds": 60, "appview__recheck": "false",
    "journal__max_bytes": 1_000_000, "journal__post_days": 0, "log__minute_seconds": 1,
}  # fmt: skip


def queries() -> dict[str, tuple[str, str]]:
    """Of each fault how its beginning and its end are found, as the page has it."""
    _, *found = rows(section("docs/operations.md", "Finding faults with jq"))
    return {fault: (began.strip("`"), ended.strip("`")) for fault, began, ended in found}


class Case:
    """One service, the four things that it needs, and its log."""

    def __init__(self, folder: Path, mongod: Mongod) -> None:
        self.folder, self.mongod = folder, mongod
        self.log = folder / "data" / "civicsky.log"
        self.model_port = 0
        self.stack = ExitStack()
        self.relay = self.stack.enter_context(led_relay())
        self.start_model()
        self.posts = 0
        self.process = start(
            "run", "--relay", self.relay.url, "--data-dir", folder / "data", "--log-file", self.log,
            "--model-url", f"http://127.0.0.1:{self.model_port}/v1", "--model", "mock",
            store__mongo_uri=mongod.uri, **SETTINGS,
        )  # fmt: skip

    def start_model(self) -> None:
        self.model = subprocess.Popen(
            [sys.executable, model_server.__file__, "--log", self.folder / "model.log", "--port", str(self.model_port)],
            stdout=subprocess.PIPE, env=environment(), text=True,
        )  # fmt: skip
        assert self.model.stdout is not None
        self.model_port = int(self.model.stdout.readline().split()[0].split(":")[2].partition("/")[0])

    def end_model(self) -> None:
        self.model.kill()
        self.model.communicate()

    def post(self, text: str = "The council's budget is discussed again", *, age: float = 0) -> None:
        self.posts += 1
        name = f"3aaaaaaa{self.posts:05}".translate(str.maketrans("0189", "bcde"))
        self.relay.post(name, f"{text} {self.posts}", did=f"did:plc:{name:a>24}", at=now_moment(age))

    def beat(self) -> None:
        """Something that is no post and of which nothing stays."""
        self.relay.account("active", at=now_moment())

    def lines(self) -> list[dict[str, Any]]:
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def wait(self, event: str, since: int, *, do: Callable[[], object] | None = None, **values: Any) -> None:
        """Until the log has such a line, while the relay goes on sending; `do`: what it does instead."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if any(line["event"] == event and values.items() <= line.items() for line in self.lines()[since:]):
                return
            assert self.process.poll() is None, finish(self.process).err
            (do or self.beat)()
            time.sleep(0.05)
        raise AssertionError(f"waited in vain for {event} {values}: {self.lines()[since:]}")


def nothing() -> None:
    """The relay is silent."""


# ---- faults, each with its end ---------------------------------------------------------------------------------------


def relay_gone(case: Case, since: int) -> None:
    case.stack.close()
    case.wait("source_down", since, do=nothing)
    case.relay = case.stack.enter_context(led_relay(case.relay))
    case.wait("source_up", since)


def relay_deaf(case: Case, since: int) -> None:
    case.relay.deaf = True
    case.wait("source_down", since, do=nothing)
    case.relay.deaf = False
    case.wait("source_up", since)


def relay_quiet(case: Case, since: int) -> None:
    case.wait("source_quiet", since, do=nothing)
    case.wait("source_heard", since)


def relay_renumbered(case: Case, since: int) -> None:
    case.relay.hang_up()
    case.relay.seq = 0
    case.wait("source_resumed", since, epoch=2)


def bad_frames(case: Case, since: int) -> None:
    case.relay.send(*[b"\xff bad"] * 10)
    case.wait("source_bad_frames", since, do=nothing)
    case.wait("source_up", since)


def behind(case: Case, since: int) -> None:
    case.wait("behind", since, do=lambda: case.post(age=100))
    case.wait("caught_up", since)


def worker_crash(case: Case, since: int) -> None:
    case.post(POISON)
    case.wait("worker_up", since)


def model_down(case: Case, since: int) -> None:
    case.end_model()
    case.wait("label_down", since, do=case.post)
    case.start_model()
    case.wait("label_up", since)


def store_down(case: Case, since: int) -> None:
    assert case.mongod.process is not None
    case.mongod.process.send_signal(signal.SIGSTOP)
    try:
        case.post()
        case.wait("store_down", since)
    finally:
        case.mongod.process.send_signal(signal.SIGCONT)
    case.wait("store_up", since)


def disk_full(case: Case, since: int) -> None:
    def flood() -> None:
        for _ in range(20):
            case.post("The council's budget is discussed again, at length. " * 50)

    case.wait("journal_full", since, do=flood)
    case.wait("journal_room", since, do=nothing)


FAULTS: dict[str, Callable[[Case, int], None]] = {
    "the relay cannot be reached": relay_gone,
    "the relay stalls: no answer to a ping": relay_deaf,
    "the relay is quiet, which may be no fault": relay_quiet,
    "what comes is old": behind,
    "the relay was renumbered": relay_renumbered,
    "nothing but bad frames": bad_frames,
    "a worker died or hung": worker_crash,
    "the model is down": model_down,
    "the store is down": store_down,
    "the disk bound is reached": disk_full,
}


# ---- the log ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case(mongod: Mongod, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    if shutil.which("jq") is None:
        skip("jq is not installed")
    with _case(tmp_path_factory.mktemp("jq"), mongod) as made:
        yield made


@contextmanager
def _case(folder: Path, mongod: Mongod) -> Iterator[Case]:
    made = Case(folder, mongod)
    try:
        made.post()
        made.wait("label_up", 0)
        yield made
    finally:
        made.process.kill()
        made.process.communicate()
        made.end_model()
        made.stack.close()


def jq(query: str, log: str) -> list[dict[str, Any]]:
    ran = subprocess.run(["jq", "-c", f"select({query})"], input=log, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.mark.mongo
def test_jq_over_the_log_alone_finds_each_of_ten_faults_and_its_end(case: Case) -> None:
    asked = queries()
    assert asked.keys() == FAULTS.keys()
    parts: dict[str, tuple[int, int]] = {}
    for fault, happen in FAULTS.items():
        since = len(case.lines())
        happen(case, since)
        parts[fault] = (since, len(case.lines()))
    case.process.send_signal(signal.SIGTERM)
    assert finish(case.process).code == 0
    shown = run("logs", "--data-dir", case.folder / "data", "--json").out.splitlines()
    assert [json.loads(line) for line in shown] == case.lines()
    for fault, (first, last) in parts.items():
        log = "\n".join(shown[first:last])
        found = [jq(query, log) for query in asked[fault]]
        assert [len(one) for one in found] == [1, 1], f"{fault}: {log}"
        (began,), (ended,) = found
        assert began["timestamp"] <= ended["timestamp"], fault
        others = [event for event in ("source_down", "label_down", "store_down") if f'"{event}"' in log]
        assert set(others) <= {began["event"], "source_down"}, fault
    assert len(jq(asked["the relay was renumbered"][0], "\n".join(shown))) == 1
    minutes = jq('.event == "minute"', "\n".join(shown))
    told = {name for name, cells in named(section("docs/operations.md", "The `minute` line")).items() if cells}
    fields = (told - {"ok", "degraded", "bad"}) | {"event", "level", "timestamp"}
    assert len(minutes) > 5
    assert all(minute.keys() == fields for minute in minutes), "a real line has the fields that are told, and no other"
    for event in ("unready", "log_down"):
        assert jq(f'.event == "{event}"', "\n".join(shown)) == []
