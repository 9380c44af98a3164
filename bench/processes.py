"""Processes of a benchmark, and what they take: processor time and memory of a whole tree, from outside."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import clock_gettime, monotonic, sleep
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
CIVICSKY: Final = str(Path(sys.executable).with_name("civicsky"))
PATIENCE: Final = 120.0
"""Seconds for what takes a moment; after that something is wrong."""
_QUIET_SECONDS: Final = 0.1
_QUIET_CPU: Final = 0.005


class Broken(Exception):
    """A process did not do what it was to do; the message has what it said last."""


class Child:
    """A process of ours and all that it starts. Its standard error goes to a file, which is told when it fails."""

    def __init__(self, command: Sequence[str | Path], **settings: Any) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by `end`)
        self._process = subprocess.Popen(
            list(map(str, command)),
            env=environment(**settings),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def heard(self) -> dict[str, Any]:
        """Its next line of JSON. Raises `Broken` when it ends instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self.broken("ended early")
        found: dict[str, Any] = json.loads(line)
        return found

    def broken(self, why: str) -> Broken:
        """What is wrong with it, with the end of what it said."""
        self._errors.seek(0)
        said = self._errors.read()[-2000:]
        return Broken(f"{' '.join(map(str, self._process.args[:4]))}: {why}\n{said}")  # type: ignore[index]

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def finish(self) -> None:
        """Ask it to end, as a service manager does. Raises `Broken` when it does not end well."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        if code := self._process.wait(PATIENCE):
            raise self.broken(f"ended with {code}")

    def end(self) -> None:
        """Whatever it does: no process stays."""
        pids = tree(self.pid)
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        for pid in pids[1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._errors.close()

    def cpu(self) -> float:
        """Seconds of processor that the tree has taken; what has ended in it is left out."""
        return sum(map(_cpu, tree(self.pid)))

    def settle(self) -> float:
        """Wait until it stands still; `cpu` then."""
        before, end = self.cpu(), monotonic() + PATIENCE
        while monotonic() < end:
            if self.has_ended():
                raise self.broken("ended early")
            sleep(_QUIET_SECONDS)
            now = self.cpu()
            if now - before < _QUIET_CPU:
                return now
            before = now
        raise self.broken("never stands still")

    def memory(self) -> "Memory":
        """Of the tree, now."""
        rolls = list(map(_rollup, tree(self.pid)))
        return Memory(len(rolls), sum(roll["Rss"] for roll in rolls), sum(roll["Pss"] for roll in rolls))


class Memory(NamedTuple):
    """Bytes of a tree. RSS counts what processes share in each of them, PSS once."""

    processes: int
    rss: int
    pss: int


class Sender(Child):
    """See `sender`."""

    def __init__(self, recording: Path, *options: str | Path) -> None:
        super().__init__([sys.executable, "-m", "bench.sender", recording, *options])
        self.url: str = self.heard()["url"]

    def wait_for_reader(self) -> None:
        """Until somebody is connected. Raises `Broken` when that one is refused, or gone at once."""
        if "connected" not in self.heard():
            raise self.broken("its reader did not stay")

    def send(self, until: int, rate: float | None = None) -> float:
        """Have it send up to so many frames in all; the moment at which it began."""
        self.tell(f"{until} {rate}" if rate else str(until))
        began: float = self.heard()["began"]
        return began

    def wait_sent(self) -> float:
        """The moment at which the last of them went out. Raises `Broken` when the reader hung up instead."""
        told = self.heard()
        if "ended" not in told:
            raise self.broken(f"the reader hung up after {told['sent']:,} frames")
        ended: float = told["ended"]
        return ended


@contextmanager
def running(child: "Child") -> Iterator[Any]:
    """End it, whatever happens."""
    try:
        yield child
    finally:
        child.end()


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for a while."""
    name = Path(tempfile.mkdtemp(prefix="civicsky-bench-"))
    try:
        yield name
    finally:
        shutil.rmtree(name)


def environment(**settings: Any) -> dict[str, str]:
    """Ours, without proxies and settings from outside; `source__client="picows"` is a setting of civicsky's.

    `trusted` names a certificate, which is then the only one that is trusted.
    """
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("CIVICSKY_") and not name.lower().endswith("_proxy")
    }
    trusted = settings.pop("trusted", None)
    if trusted:
        plain["SSL_CERT_FILE"] = str(trusted)
    ours = {f"CIVICSKY_{name.upper()}": str(value) for name, value in settings.items()}
    return {**plain, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "PYTHONUNBUFFERED": "1", **ours}


def until(condition: Callable[[], Any], what: str, *children: Child, every: float = 0.005) -> Any:
    """Wait for a condition; its value. Raises `Broken` when one of the processes that work on it ends before."""
    looked = monotonic()
    while not (value := condition()):
        if monotonic() - looked > 1:
            looked = monotonic()
            ended = [child for child in children if child.has_ended()]
            if ended and not condition():  # it may have ended well, just now
                raise ended[0].broken(f"ended before {what}")
        sleep(every)
    return value


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for one in found:
        with suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def _cpu(pid: int) -> float:
    with suppress(OSError):
        return clock_gettime((~pid << 3) | 2)  # the number of a process' own clock: see clock_getcpuclockid(3)
    return 0.0


def _rollup(pid: int) -> dict[str, int]:
    """Bytes by name; of a process that has just ended none."""
    found = {"Rss": 0, "Pss": 0}
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, size, *_ = line.split()
            found[name.rstrip(":")] = int(size) * 1024
    return found
