"""What is said to a service manager, on real sockets, and what happens to a wedged process that nobody watches."""

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from civicsky.health import Condition, Look
from civicsky.lifecycle import Stop
from civicsky.metrics import Metrics
from civicsky.pulse import Pulse
from civicsky.watch.systemd import Manager, status
from civicsky.watch.watchdog import Watchdog
from support.command import CIVICSKY, cursor, environment, finish, start, until


class Heard:
    """A manager's socket, and what was said to it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)
        self._said: list[str] = []

    def lines(self) -> list[str]:
        """All lines so far."""
        while True:
            try:
                self._said += self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return self._said

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["a file", "abstract"])
def heard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Heard]:
    at = str(tmp_path / "notify") if request.param == "a file" else f"@civicsky-test-{os.getpid()}"
    heard = Heard(at)
    yield heard
    heard.close()


def test_the_managers_variables_are_taken_out_of_the_environment(heard: Heard) -> None:
    mine = {"NOTIFY_SOCKET": heard.address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    manager = Manager.from_environment(mine)
    assert mine == {"HOME": "/"}
    assert (manager.watches, manager.watchdog_seconds) == (True, 3.0)
    assert manager.tell("READY=1", "STATUS=so")
    assert heard.lines() == ["READY=1", "STATUS=so"]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"NOTIFY_SOCKET": "vsock:2:1234"},
        {"NOTIFY_SOCKET": "/nowhere/at/all"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"},
    ],
)
def test_nobody_is_told_nothing_and_it_is_no_error(variables: dict[str, str]) -> None:
    manager = Manager.from_environment(variables)
    assert not manager.tell("READY=1")
    assert manager.watchdog_seconds == 0, "a watchdog of another process is not ours"


def test_status_is_one_short_line_whatever_the_far_side_says() -> None:
    metrics = Metrics(connected=True, host="wss://relay.example", waiting=12)
    assert status(metrics, Look()) == "wss://relay.example, 12 waiting, ok"
    evil = Condition("model_down", "model: \x1b[2J\nREADY=0\u202e" + "x" * 1000, 1, 60)
    told = status(metrics, Look(conditions=(evil,)), stopping="SIGTERM")
    assert told.startswith("stopping: SIGTERM, wss://relay.example, 12 waiting, model: ?[2J?READY=0?xxx")
    assert len(told) == 200


async def test_ready_and_signs_of_life_are_told_and_end_when_the_flow_stands_still(heard: Heard) -> None:
    metrics, stop = Metrics(pulse=Pulse(bound=0.1)), Stop()
    watchdog = Watchdog(Manager(heard.address, 0.2), metrics, stop, endless=False)
    async with watchdog.on_duty():
        await heard_of(heard, "EXTEND_TIMEOUT_USEC=300000000")
        assert "READY=1" not in heard.lines()
        watchdog.started()
        assert heard.lines().count("READY=1") == 1
        before = heard.lines().count("WATCHDOG=1")
        await heard_of(heard, "WATCHDOG=1", before + 3)
        with metrics.pulse.work("journal"):
            await eventually(lambda: bool(metrics.pulse.stuck()))
            await until_looked(watchdog, 1)
            fed = heard.lines().count("WATCHDOG=1")
            await until_looked(watchdog, 3)
            assert heard.lines().count("WATCHDOG=1") == fed, "it is not fed while a step stands still"
        await heard_of(heard, "WATCHDOG=1", fed + 1)
        stop.request("enough")
        await heard_of(heard, "STOPPING=1")
        await heard_of(heard, "EXTEND_TIMEOUT_USEC=30000000")
    assert heard.lines().count("READY=1") == 1


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  (nobody tells)
            await asyncio.sleep(0.01)


async def heard_of(heard: Heard, line: str, n: int = 1) -> None:
    await eventually(lambda: heard.lines().count(line) >= n)


async def until_looked(watchdog: Watchdog, more: int) -> None:
    end = watchdog.looked + more
    await eventually(lambda: watchdog.looked >= end)


async def test_a_drain_without_a_bound_is_no_end_before_a_signal_comes(heard: Heard) -> None:
    """A manager bounds what comes behind STOPPING."""
    stop = Stop()
    watchdog = Watchdog(Manager(heard.address, 0.2), Metrics(), stop, endless=True)
    async with watchdog.on_duty():
        watchdog.started()
        stop.request("all labelled (--drain)", drain=True)
        await until_looked(watchdog, 3)
        assert "STOPPING=1" not in heard.lines()
        stop.request("SIGTERM")
        await heard_of(heard, "STOPPING=1")


async def test_a_process_that_ran_out_of_files_for_a_while_still_gives_signs_of_life(heard: Heard) -> None:
    """A manager that hears nothing would end it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    watchdog = Watchdog(Manager(heard.address, 0.2), Metrics(), Stop(), endless=False)
    async with watchdog.on_duty():
        watchdog.started()
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            assert not Manager(heard.address).tell("WATCHDOG=1")
            await until_looked(watchdog, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await heard_of(heard, "WATCHDOG=1", heard.lines().count("WATCHDOG=1") + 2)


@pytest.mark.parametrize(("how", "loop"), [("block", "event loop"), ("hang", "journal")])
def test_what_is_wedged_where_nobody_watches_ends_by_itself_and_the_next_start_goes_on(
    how: str, loop: str, tmp_path: Path, relay: str
) -> None:
    """WATCHDOG_USEC alone says how patient we are, not that somebody else acts."""
    small: dict[str, Any] = {"worker__batch_frames": 16, "worker__processes": 1, "source__start": "window"}
    wedged = subprocess.Popen(
        [CIVICSKY, "collect", "--relay", relay, "--data-dir", str(tmp_path)],
        env={**environment(**small, fault=f"journal.commit:3:{how}", limits__wedged_seconds=1),
             "WATCHDOG_USEC": "2000000"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    ended = finish(wedged)
    assert ended.code == 1
    told = [json.loads(line) for line in ended.err.splitlines() if line.startswith("{")]
    assert [(one["level"], one["loop"]) for one in told if one["event"] == "wedged"] == [("error", loop)]
    (line,) = [line for line in ended.err.splitlines() if line.startswith("civicsky:")]
    assert loop in line
    assert "nothing is lost" in line
    before = cursor(tmp_path)
    process = start("collect", "--relay", relay, "--data-dir", tmp_path, **small)
    until(lambda: cursor(tmp_path) > before, "the next start to go on")
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 0


def test_a_process_that_was_stopped_for_long_did_not_stand_still(tmp_path: Path, relay: str) -> None:
    """As by Slurm, or a laptop's lid."""
    process = subprocess.Popen(
        [CIVICSKY, "collect", "--relay", relay, "--data-dir", str(tmp_path)],
        env={**environment(worker__processes=1), "WATCHDOG_USEC": "3000000"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: cursor(tmp_path), "it to collect")
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(4.5)
    process.send_signal(signal.SIGCONT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    process.send_signal(signal.SIGTERM)
    ended = finish(process)
    assert ended.code == 0
    assert "wedged" not in ended.err


def test_whoever_reads_no_log_any_more_ends_nothing(tmp_path: Path, relay: str) -> None:
    """As a terminal after Ctrl-S, or a journal that hangs."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    process = subprocess.Popen(
        [CIVICSKY, "collect", "--relay", relay, "--data-dir", str(tmp_path)],
        env={**environment(worker__processes=1, log__minute_seconds=0.1), "WATCHDOG_USEC": "2000000"},
        stderr=writer,
    )
    os.close(writer)
    try:
        until(lambda: cursor(tmp_path), "it to collect")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(4)
        with os.fdopen(reader, "rb") as log:
            while b'"log_left_out"' not in (line := log.readline()):
                assert line, "it tells of what it left out"
            process.send_signal(signal.SIGTERM)
            log.read()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
