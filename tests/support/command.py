"""Runs the installed command and the servers around it, as processes."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

BIN = Path(sys.executable).parent
CIVICSKY = str(BIN / "civicsky")
MODEL_SERVER = str(Path(__file__).with_name("model_server.py"))
HANGING_MOUNT = """
import ctypes, os, sys
fuse = os.open('/dev/fuse', os.O_RDWR)
options = f'fd={fuse},rootmode=40000,user_id=0,group_id=0'.encode()
assert ctypes.CDLL(None).mount(b'host:/x', sys.argv[1].encode(), b'fuse.sshfs', 0, options) == 0
os.set_inheritable(fuse, True)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""A program that mounts a network file system that never answers on its first argument, and becomes its second."""
_started: list["subprocess.Popen[str]"] = []
LAST_SEQ = 1649
"""The sequence number of the sample's last frame."""


def environment(**settings: Any) -> dict[str, str]:
    """Ours without settings of ours, plus these: `worker__processes=2`."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("CIVICSKY_")}
    return {**plain, **{f"CIVICSKY_{name.upper()}": str(value) for name, value in settings.items()}}


between: Callable[[Sequence[str], dict[str, Any]], tuple[Sequence[str], dict[str, Any]]] | None = None
"""What changes the arguments and settings of a command that is started; see `support.over_workers`."""


def start(*args: str | Path | float, **settings: Any) -> "subprocess.Popen[str]":
    """Start the command; both of its outputs are piped."""
    words: Sequence[str] = list(map(str, args))
    if between is not None:
        words, settings = between(words, settings)
    process = subprocess.Popen(
        [CIVICSKY, *words],
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _started.append(process)
    return process


def end_all() -> None:
    """Kill what a failed test left behind."""
    while _started:
        process = _started.pop()
        if process.returncode is None:
            process.kill()
            process.communicate()


@dataclass
class Ended:
    code: int
    out: str
    err: str


def finish(process: "subprocess.Popen[str]", timeout: float = 120) -> Ended:
    """Wait for the end; a command that hangs is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"did not end within {timeout} s:\n{out}\n{err}") from None
    return Ended(process.returncode, out, err)


def run(*args: str | Path | float, timeout: float = 120, **settings: Any) -> Ended:
    """Run the command to its end."""
    return finish(start(*args, **settings), timeout)


@contextmanager
def server(*command: str | Path | float, **settings: Any) -> Iterator[str]:
    """A server that prints its address as the first word of its first line."""
    process = subprocess.Popen(
        list(map(str, command)),
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[0]
    finally:
        process.kill()
        process.communicate()


def sample_relay(*options: str) -> Any:
    """The packaged recording, played by a relay in a process of its own."""
    return server(CIVICSKY, "dev", "serve-frames", "sample", *options)


def model_server(log: Path, *options: str | Path) -> Any:
    """The deterministic model."""
    return server(sys.executable, MODEL_SERVER, "--log", log, *options)


def until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Wait for a condition; its value. Fails the test after a generous time.

    A tenth of a processor is for asking, where the answer is quick: what is waited for needs the rest.
    """
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        value = condition()
        if value:
            return value
        time.sleep(min(0.1, max(0.01, 9 * (time.monotonic() - began))))
    raise AssertionError(f"waited {seconds} s in vain for: {what}")


def query(file: Path, sql: str, *values: Any) -> list[Any]:
    """Rows of a database that another process may be writing; none while there is no such file or table."""
    if not file.exists():
        return []
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)) as db:
        try:
            return db.execute(sql, values).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise


def cursor(folder: Path) -> int:
    """The committed cursor; 0 before the first."""
    rows = query(folder / "journal.db", "SELECT cursor FROM host")
    return int(rows[0][0] or 0) if rows else 0


def end_when(process: "subprocess.Popen[str]", condition: Callable[[], Any], what: str) -> Ended:
    """SIGTERM once the condition holds."""
    until(lambda: (condition() and is_up(process.pid)) or process.poll() is not None, what)
    process.send_signal(signal.SIGTERM)
    return finish(process)


def is_up(pid: int) -> bool:
    """Whether it handles signals already: it does before it takes the locks."""
    with suppress(FileNotFoundError):  # it has ended
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                if fd.readlink().suffix == ".lock":
                    return True
    return False


def tell(model: str, **told: Any) -> dict[str, Any]:
    """Have the deterministic model behave otherwise from now on; its state. See `support.model_server.Told`."""
    request = Request(  # noqa: S310  (our own address)
        model.removesuffix("/v1") + "/control", json.dumps(told).encode(), {"Content-Type": "application/json"}
    )
    with urlopen(request, timeout=30) as answer:  # noqa: S310
        state: dict[str, Any] = json.load(answer)
        return state
