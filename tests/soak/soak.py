"""A long run of the installed service under every kind of fault; in the end it holds what the oracle holds, or fails.

    python tests/soak/soak.py --minutes 22 [--seed N] [--rate 300]

Real relay (the fake one), real mongod, real HTTP model, real pool of workers. Each kind of fault fires at least three
times; the memory of all processes of the service at the end is at most 1.10 times that of minute 5.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from civicsky.faults import IN_SERVICE
from conftest import Client, Mongod
from support import fake_relay, model_server
from support.command import CIVICSKY, environment, is_up, query
from support.converge import differences, ended, get, has_converged, post

CRASH, HANG = "CRASHMARK", "HANGMARK"
TIMES = 3
"""How often each kind must fire."""
PATIENCE = 120.0
DISK_MB = 1500
SETTINGS = {
    "source__start": "window", "source__backoff_seconds": 0.1, "source__backoff_max_seconds": 1,
    "source__liveness_seconds": 3, "source__connect_seconds": 3, "source__failover_attempts": 3,
    "source__prefer_seconds": 20, "source__max_frame_bytes": 6_000_000, "worker__processes": 2,
    "worker__job_seconds": 1, "journal__gap_seconds": 0.2, "label__slots": 8, "sample__posts_per_day": 0,
    "label__pause_seconds": 0.2, "label__pause_max_seconds": 1,
    "store__timeout_seconds": 2, "store__retry_max_seconds": 1, "store__mongo_database": "soak",
    "appview__per_second": 1000, "appview__recheck_after_seconds": 1, "limits__drain_seconds": 30,
}  # fmt: skip
KNOBS: dict[str, dict[str, Any]] = {
    "close_without_close_frame": {},
    "reset": {},
    "stall_answering_pings": {"seconds": 6},
    "stall_deaf": {"seconds": 8},
    "accept_then_hang_up": {"times": 3},
    "consumer_too_slow": {},
    "slow_start": {"seconds": 1},
    "duplicate": {},
    "out_of_order": {},
    "renumber": {},
    "down": {"seconds": 8},
    # By so many that the jump in time is seen; the clock itself stays, since the other host has told of it already.
    "go_live_after_gap": {"skip": 1200},
    "outdated_cursor": {"skip": 1200},
    "refuse": {"times": 2, "retry_after": None},
    "big_frame": {"bytes": 5_000_000},
    "too_big_frame": {"bytes": 30_000_000},
    "bad_frames_in_a_row": {"count": 10},
}


class Soak:
    """The service and the world around it."""

    def __init__(self, folder: Path, seed: int, rate: float, events: int) -> None:
        self.folder, self.lot, self.fired = folder, random.Random(seed), Counter[str]()
        self.data = folder / "data"
        self.mongod = Mongod(folder / "mongod")
        self.mongod.start()
        self.model_port = 0
        self.model: subprocess.Popen[str] | None = None
        self.model_url = self.start_model()
        self.relay = subprocess.Popen(
            [sys.executable, fake_relay.__file__, "--seed", str(seed), "--rate", str(rate), "--events", str(events),
             "--hosts", "2", "--behind", "14400", "--crash-mark", CRASH, "--hang-mark", HANG, "--hostile", "0.004",
             "--window", "60000",
             "--mode", self.lot.choice(["inclusive", "exclusive"])],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.relay.stdout is not None
        first, self.control, *others = self.relay.stdout.readline().split()
        self.hosts = [first, *others]
        self.service: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def close(self) -> None:
        for process in (self.service, self.model, self.relay):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        self.mongod.stop()

    # ---- parts ----

    def start_model(self) -> str:
        self.model = subprocess.Popen(
            [sys.executable, model_server.__file__, "--log", "/dev/null", "--port", str(self.model_port)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.model.stdout is not None
        url = self.model.stdout.readline().split()[0]
        self.model_port = int(url.split(":")[2].partition("/")[0])
        return url

    def start(self, fault: str = "") -> "subprocess.Popen[bytes]":
        """Start the service; its log grows in a file."""
        env = environment(
            **SETTINGS, appview__url=self.control, store__mongo_uri=self.mongod.uri,
            fault=f"worker.record:{CRASH};worker.hang:{HANG};{fault}",
        )  # fmt: skip
        env["MALLOC_ARENA_MAX"] = "2"  # as the service's unit and its container set it
        args = ["run", "--data-dir", str(self.data), "--model-url", self.model_url, "--model", "mock"]
        for host in self.hosts:
            args += ["--relay", host]
        with (self.folder / "log").open("ab") as log:
            self.service = subprocess.Popen([CIVICSKY, *args], env=env, stdout=log, stderr=log)
        self.starts += 1
        service = self.service
        until(lambda: is_up(service.pid) or service.poll() is not None, "the service to start")
        return service

    def stop(self, number: signal.Signals, code: int) -> None:
        """End the service by a signal, and hold it to its exit code."""
        assert self.service is not None
        self.service.send_signal(number)
        assert self.service.wait(PATIENCE) == code, f"ended with {self.service.returncode} after {number.name}"
        ended(self.data, self.control, self.hosts)

    @property
    def host(self) -> int:
        """The host that the service is connected to now."""
        connections = get(self.control + "/state")["connections"]
        return next((number for number, found in enumerate(connections) if found["open"]), 0)

    # ---- faults ----

    def knob(self, name: str) -> None:
        """Let the relay misbehave, and wait until it has."""
        count = get(self.control + "/state")["fired"].get(name, 0)
        after = 0 if name in {"big_frame", "too_big_frame", "renumber"} else 5
        deadline = time.monotonic() + PATIENCE
        while get(self.control + "/state")["fired"].get(name, 0) == count:
            # The service may change hosts meanwhile: then the other one misbehaves.
            host = self.host
            if name not in get(self.control + "/state")["plans"][host]:
                post(self.control + "/knob", [{"name": name, "host": host, "after": after, **KNOBS[name]}])
            assert time.monotonic() < deadline, f"waited in vain for: {name}"
            time.sleep(0.2)

    def kill(self) -> None:
        """As `kill -9`."""
        self.stop(signal.SIGKILL, -signal.SIGKILL)
        self.start()

    def term(self) -> None:
        """As systemd stops it."""
        self.stop(signal.SIGTERM, 0)
        self.start()

    def crash(self, place: str) -> None:
        """Killed, or stopped, at a crash point."""
        how = self.lot.choice(["kill", "kill", "term"])
        self.stop(signal.SIGTERM, 0)
        service = self.start(f"{place}:{self.lot.randrange(1, 8)}:{how}")
        code = service.wait(PATIENCE)
        assert code == (-signal.SIGKILL if how == "kill" else 0), f"{place}:{how}: ended with {code}"
        ended(self.data, self.control, self.hosts)
        self.start()

    def kill_mongod(self) -> None:
        self.mongod.stop()
        time.sleep(self.lot.uniform(0.5, 4))  # how long it is away; nothing depends on it
        self.mongod.start()

    def kill_model(self) -> None:
        assert self.model is not None
        self.model.kill()
        self.model.wait()
        time.sleep(self.lot.uniform(0.5, 4))
        self.start_model()

    def fill_disk(self) -> None:
        """No byte is left: exit 1; with room again the next start goes on."""
        assert self.service is not None
        ballast = self.data / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 65536)
        code = self.service.wait(PATIENCE)
        assert code == 1, f"a full disk: ended with {code}"
        ballast.unlink()
        ended(self.data, self.control, self.hosts)
        self.start()

    def kinds(self, *, ending: bool) -> dict[str, Callable[[], None]]:
        """What can happen; `ending`: also what ends the service."""
        found: dict[str, Callable[[], None]] = {name: lambda name=name: self.knob(name) for name in KNOBS}  # type: ignore[misc]
        found |= {"mongod_killed": self.kill_mongod, "model_killed": self.kill_model}
        if ending:
            found |= {"killed": self.kill, "terminated": self.term}
            found |= {place: lambda place=place: self.crash(place) for place in IN_SERVICE}
            if os.path.ismount(self.data):
                found["disk_full"] = self.fill_disk
        return found

    def draw(self, *, ending: bool) -> str:
        """What happens next: what fired too seldom so far, and of that rather what ends the service, while it may."""
        after = self.kinds(ending=False)
        kinds = [name for name in self.kinds(ending=ending) if self.fired[name] < TIMES]
        first = [name for name in kinds if name not in after]
        return self.lot.choice(first if first and self.lot.random() < 0.6 else kinds or list(after))

    def resident(self) -> int:
        """Bytes in memory of the service and all its children."""
        assert self.service is not None
        return sum(map(_rss, [self.service.pid, *_children(self.service.pid)]))


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_children(child)]
    return found


def _rss(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain for: {what}")
        time.sleep(0.05)


@contextmanager
def disk(folder: Path) -> Iterator[None]:
    """A small disk of its own for the data directory, where we may mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)], capture_output=True, check=False
    ).returncode == 0  # fmt: skip
    if not mounted:
        print("no disk of its own can be mounted here: disk_full is left out")
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)


class Memory:
    """Samples of the service's memory around some moment."""

    def __init__(self) -> None:
        self.samples: list[int] = []

    def take(self, soak: Soak, seconds: float) -> float:
        """Bytes, the median over so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.samples.append(soak.resident())
            time.sleep(1)
        return median(self.samples)


def run(soak: Soak, minutes: float) -> float:
    """All faults, in a random order, until the time is over; gives memory at the end as a share of minute 5's."""
    began = time.monotonic()
    # The service is ended only in between: at both moments it has run undisturbed for some minutes.
    early, quiet_from = min(5.0, minutes / 4), minutes * 0.7
    at_5, said = 0.0, 0

    def elapsed() -> float:
        return (time.monotonic() - began) / 60

    while elapsed() < minutes:
        if not at_5 and elapsed() >= early:
            at_5 = Memory().take(soak, 20)
        name = soak.draw(ending=early <= elapsed() < quiet_from)
        soak.kinds(ending=True)[name]()
        soak.fired[name] += 1
        assert soak.service is not None
        assert soak.service.poll() is None, f"the service ended with {soak.service.returncode} after {name}"
        time.sleep(soak.lot.uniform(0.2, 1.5))  # so that faults fall on every state; nothing depends on it
        if int(elapsed()) > said:
            said = int(elapsed())
            memory = soak.resident() / 1e6
            print(f"minute {said}: {sum(soak.fired.values())} faults, last {name}, {memory:.0f} MB", flush=True)
    at_end = Memory().take(soak, 20)
    print(f"memory of all processes: {at_5 / 1e6:.1f} MB at minute {early:g}, {at_end / 1e6:.1f} MB at the end")
    return at_end / at_5


def converge(soak: Soak) -> list[str]:
    """Let the stream end and everything be labelled and stored; what differs from the oracle."""
    until(lambda: has_converged(soak.data, soak.control, soak.hosts), "the end of the stream", 900)
    soak.stop(signal.SIGTERM, 0)
    with Client(soak.mongod.uri) as db:
        stored = {doc["_id"]: _plain(doc) for doc in db["soak"]["posts"].find()}
    return differences(soak.data, soak.control, soak.hosts, stored)


def _plain(doc: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in doc.items() if name != "_class"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=22)
    parser.add_argument("--rate", type=float, default=300)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--folder", type=Path)
    told = parser.parse_args()
    print(f"seed {told.seed}, {told.minutes:g} minutes at {told.rate:g} frames a second", flush=True)
    folder = told.folder or Path(tempfile.mkdtemp(prefix="civicsky-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    with disk(folder / "data"):
        soak = Soak(folder, told.seed, told.rate, int(told.rate * 60 * told.minutes))
        try:
            soak.start()
            share = run(soak, told.minutes)
            wrong = converge(soak)
            state = get(soak.control + "/state")
            sql = "SELECT reason, sum(n) FROM count WHERE outcome = 'quarantined' AND unit = 'post' GROUP BY 1"
            crashes = dict(query(soak.data / "journal.db", sql))
            soak.fired["worker_crashed"] = crashes.get("worker_crashed", 0)
            soak.fired["worker_hung"] = crashes.get("worker_timeout", 0)
            posts = query(soak.data / "journal.db", "SELECT count(*) FROM post")[0][0]
            print(f"{state['head']:,} events, {posts:,} posts, {soak.starts} starts, faults:")
            print(json.dumps(dict(sorted(soak.fired.items())), indent=1))
            for line in wrong[:3]:
                print(line, *get(soak.control + "/story", uri=line.split(" ")[1]), sep="\n  ")
            wrong += [f"{name} fired {n} times only" for name, n in soak.fired.items() if n < TIMES]
            wrong += [f"{name} never fired" for name in soak.kinds(ending=True) if not soak.fired[name]]
            wrong += [f"memory grew to {share:.2f} of minute 5's"] if share > 1.10 else []
        except AssertionError as error:
            wrong = [str(error)]
        finally:
            soak.close()
            if (folder / "data").is_dir():  # a disk of its own will be gone
                shutil.copytree(folder / "data", folder / "kept", dirs_exist_ok=True)
            if told.folder is None:
                print(f"log: {folder / 'log'}")
    if wrong:
        print(f"{len(wrong)} WRONG, the first:", *wrong[:20], sep="\n  ")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    print(f"all is as the oracle says; memory at the end {share:.2f} of minute 5's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
