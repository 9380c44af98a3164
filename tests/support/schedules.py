"""Seeded schedules of stops, kills and misbehaviour; each ends in the oracle's state or is wrong.

    python tests/support/schedules.py --seeds FIRST:END[:STEP] --folder DIR [--installed]

Without --installed the service's code is loaded once, and each of its lives is a fork of this process, made before any
loop, thread or database exists here; records are then judged in the process itself instead of in a pool. With it, each
life is the installed command with its pool. Prints one line of JSON a schedule.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

# Loaded once, and not in each life that logs, or asks the public API.
import atproto  # type: ignore[import-untyped]  # noqa: F401
import structlog  # noqa: F401

from civicsky import app, faults, filter as filters, worker
from civicsky.cli.main import run_command
from civicsky.line import by_picows, by_websockets  # noqa: F401  (as above)
from civicsky.model import PostOp, Verdict
from civicsky.pulse import Pulse
from civicsky.settings import Filter, Worker
from support import fake_relay
from support.command import CIVICSKY, environment, is_up
from support.converge import cursors, differences, documents, ended, get, has_converged
from support.misbehave import GAPS

EVENTS = 500
LIVES = 2
"""Ends of the service that a schedule asks for, before the last life goes on to the end."""
PATIENCE = 90.0
RELAY = fake_relay.__file__
MODEL = str(Path(__file__).with_name("model_server.py"))
SMALL = {
    "source__start": "window", "source__backoff_seconds": 0.02, "source__backoff_max_seconds": 0.1,
    "source__liveness_seconds": 0.8, "source__connect_seconds": 2, "source__failover_attempts": 2,
    "source__prefer_seconds": 0.5, "worker__batch_frames": 32, "worker__batch_seconds": 0.02, "worker__processes": 1,
    "ledger__poll_seconds": 0.05, "store__batch_documents": 40, "label__slots": 4, "log__minute_seconds": 1,
    "sample__posts_per_day": 0,
    "appview__per_second": 1000, "appview__recheck_after_seconds": 0, "limits__drain_seconds": 20,
}  # fmt: skip
KNOBS: tuple[dict[str, Any], ...] = (
    {"name": "close_without_close_frame"},
    {"name": "reset"},
    {"name": "stall_answering_pings", "seconds": 1.5},
    {"name": "stall_deaf", "seconds": 5},
    {"name": "accept_then_hang_up", "times": 2},
    {"name": "consumer_too_slow"},
    {"name": "duplicate"},
    {"name": "renumber"},
    {"name": "go_live_after_gap", "skip": 20, "jump_seconds": 120},
    {"name": "outdated_cursor", "skip": 20, "jump_seconds": 120},
    {"name": "refuse", "retry_after": None, "times": 2},
    {"name": "slow_start", "seconds": 0.3},
    {"name": "bad_frames_in_a_row", "count": 3},
    {"name": "bad_frames_in_a_row", "count": 10},
    {"name": "bad_frames_in_a_row", "count": 10, "times": 2},
    {"name": "big_frame"},
)  # fmt: skip


@dataclass(frozen=True)
class End:
    """How one life of the service ends."""

    place: str
    """A crash point, or nothing: from outside, once the cursor has moved by so many events."""
    n: int
    how: str
    """`kill` or `term`."""


_TIMES = {"store": 1}
"""How often the store is written depends on the machine: the faster it is, the larger are the batches."""
EVERY_END = tuple(
    End(place, _TIMES.get(place.partition(".")[0], 3), how) for place in faults.IN_SERVICE for how in ("kill", "term")
)


@dataclass(frozen=True)
class Schedule:
    """All that is drawn of a seed."""

    seed: int
    client: str
    mode: str
    hosts: int
    knobs: tuple[dict[str, Any], ...]
    ends: tuple[End, ...]


def draw(seed: int) -> Schedule:
    """The schedule of a seed, always the same."""
    lot = random.Random(seed)
    knobs = [{**knob, "after": lot.randrange(5, 120)} for knob in lot.sample(KNOBS, lot.randrange(1, 4))]
    hosts = 2 if lot.random() < 0.25 else 1
    if hosts == 2:
        # A gap's jump moves the clock of events that the other host may have sent already.
        knobs = [knob for knob in knobs if knob["name"] not in GAPS]
        knobs.insert(lot.randrange(len(knobs) + 1), {"name": "down", "seconds": 1.5, "after": lot.randrange(5, 120)})
    ends = [_end(lot) for _ in range(LIVES)]
    if seed < len(EVERY_END):  # so that each crash point is reached both ways
        ends[0] = EVERY_END[seed]
    client = ("picows", "websockets")[seed // 2 % 2]  # of neighbours one ends by kill, one by term
    return Schedule(seed, client, lot.choice(["inclusive", "exclusive"]), hosts, tuple(knobs), tuple(ends))


def _end(lot: random.Random) -> End:
    place = lot.choice([*faults.IN_SERVICE, ""])
    most = {"source": EVENTS // 3, "decode": EVENTS // 3, "journal": 6, "label": 25, "ledger": 30, "store": 4, "": 200}
    stage = place.partition(".")[0]
    n = lot.randrange(1, most[stage])
    return End(place, _TIMES.get(stage, n), lot.choice(["kill", "kill", "term"]))


class Life:
    """One process of the service."""

    def __init__(self, pid: int, wait: Callable[[bool], int | None]) -> None:
        self.pid, self._wait = pid, wait
        self.code: int | None = None

    def poll(self) -> int | None:
        """The exit code (negative: the signal) once it has ended."""
        if self.code is None:
            self.code = self._wait(False)
        return self.code

    def end(self, number: signal.Signals) -> int:
        """Send a signal, and wait."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
        deadline = time.monotonic() + PATIENCE
        while self.poll() is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                self._wait(True)
                raise AssertionError(f"did not end after {number.name}")
            time.sleep(0.005)
        assert self.code is not None
        return self.code


class Inline:
    """Judges records in this process: the pool's shape, for forked lives."""

    processes = 1

    def __init__(self, _settings: Worker, filtering: Filter, _pulse: Pulse) -> None:
        self._keep = filtering.keep

    async def start(self) -> None:
        """There is nothing to start."""

    async def judge(self, ops: Sequence[PostOp]) -> list[Verdict]:
        """As `worker.judge_batch`."""
        return [worker.judge_record(op.cid, op.block, self._keep) for op in ops]


def fork(args: Sequence[str], env: dict[str, str], fault: str, err: Path) -> Life:
    """The service as a child of this process, which must have neither loop nor thread."""
    pid = os.fork()
    if pid:
        return Life(pid, lambda block: _reap(pid, block=block))
    code = 70
    try:
        os.environ.clear()
        os.environ.update(env)
        file = os.open(err, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)
        faults.arm(fault)
        setattr(app, "Pool", Inline)  # noqa: B010  (where app looks it up)
        sys.argv = ["civicsky", *args]
        code = run_command()
        sys.stdout.flush()
    finally:
        os._exit(code)


def fork_relay(args: Sequence[str]) -> tuple[int, str]:
    """The fake relay as a child of this process; its pid, and the line that it prints."""
    ours, its = os.pipe()
    pid = os.fork()
    if pid:
        os.close(its)
        with os.fdopen(ours) as pipe:
            return pid, pipe.readline()
    try:
        os.dup2(its, 1)
        sys.argv = [RELAY, *args]
        asyncio.run(fake_relay.main())
    finally:
        os._exit(70)


def _reap(pid: int, *, block: bool) -> int | None:
    got, status = os.waitpid(pid, 0 if block else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if got else None


def spawn(args: Sequence[str], env: dict[str, str], fault: str, err: Path) -> Life:
    """The installed command."""
    with err.open("ab") as log:
        process = subprocess.Popen(
            [CIVICSKY, *args], env={**env, "CIVICSKY_FAULT": fault}, stdout=log, stderr=log, start_new_session=True
        )
    return Life(process.pid, lambda block: process.wait() if block else process.poll())


def run(schedule: Schedule, folder: Path, model: str, start: Callable[..., Life]) -> dict[str, Any]:
    """Live through a schedule; what fired, and what is wrong in the end."""
    relay, line = fork_relay(
        ["--seed", str(schedule.seed), "--events", str(EVENTS), "--mode", schedule.mode, "--hosts", str(schedule.hosts),
         "--plan", json.dumps(schedule.knobs)]
    )  # fmt: skip
    try:
        first, control, *others = line.split()
        hosts = [first, *others]
        args = ["run", "--data-dir", str(folder), "--model-url", model, "--model", "mock"]
        for host in hosts:
            args += ["--relay", host]
        env = environment(**SMALL, source__client=schedule.client, appview__url=control)
        fired, wrong = [], []
        life: Life | None = None
        try:
            for end in schedule.ends:
                life = start(args, env, f"{end.place}:{end.n}:{end.how}" if end.place else "", folder / "err")
                fired.append(_live(life, end, folder, control, hosts))
                ended(folder, control, hosts)
            life = start(args, env, "", folder / "err")
            _wait(
                lambda: life.poll() is not None or (has_converged(folder, control, hosts) and is_up(life.pid)),
                "the end of the stream",
            )
            code = life.end(signal.SIGTERM)
            wrong = [] if code == 0 else [f"the last life ended with {code}"]
            wrong += differences(folder, control, hosts, documents(folder))
        except (AssertionError, OSError) as error:
            wrong.append(f"{type(error).__name__}: {error}")
            if life is not None and life.poll() is None:
                life.end(signal.SIGKILL)
        return {
            **asdict(schedule), "fired": fired, "acted": get(control + "/state")["fired"], "wrong": wrong[:20],
            "posts": len(documents(folder)),
        }  # fmt: skip
    finally:
        os.kill(relay, signal.SIGKILL)
        os.waitpid(relay, 0)


def _live(life: Life, end: End, folder: Path, control: str, hosts: list[str]) -> str:
    """One life to its end; how it ended."""
    if end.place:
        _wait(lambda: life.poll() is not None or has_converged(folder, control, hosts), "a crash point")
        if life.poll() is None and life.end(signal.SIGKILL) == -signal.SIGKILL:
            return "at rest"  # there was nothing left to do at that place
        assert life.code == (-signal.SIGKILL if end.how == "kill" else 0), f"{end}: ended with {life.code}"
        return f"{end.place}:{end.how}"
    reached = sum(cursors(folder, hosts).values()) + end.n
    _wait(
        lambda: (
            life.poll() is not None
            or (
                (sum(cursors(folder, hosts).values()) >= reached or has_converged(folder, control, hosts))
                and is_up(life.pid)
            )
        ),
        "a moment",
    )
    number = signal.SIGKILL if end.how == "kill" else signal.SIGTERM
    code = life.end(number)
    assert code == (-number if end.how == "kill" else 0), f"{end}: ended with {code}"
    return f"outside:{end.how}"


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not converge in {PATIENCE:g} s: waited in vain for {what}")
        time.sleep(0.04)


def main() -> int:
    """Run the schedules of these seeds; 1 when one of them ends wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", required=True, help="FIRST:END[:STEP]")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--installed", action="store_true")
    told = parser.parse_args()
    told.folder.mkdir(parents=True, exist_ok=True)
    filters.load()
    gc.collect()
    gc.freeze()  # what was loaded stays: each life would look through it again, and so get pages of its own
    model = subprocess.Popen(
        [sys.executable, MODEL, "--log", str(told.folder / "model.log")], stdout=subprocess.PIPE, text=True
    )
    bad = 0
    try:
        assert model.stdout is not None
        address = model.stdout.readline().split()[0]
        for seed in range(*map(int, told.seeds.split(":"))):
            folder = told.folder / str(seed)
            folder.mkdir()
            done = run(draw(seed), folder, address, spawn if told.installed else fork)
            print(json.dumps(done), flush=True)
            bad += bool(done["wrong"])
    finally:
        model.kill()
        model.communicate()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
