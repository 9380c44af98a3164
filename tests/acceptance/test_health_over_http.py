"""A real service with a real relay, model and MongoDB that go away and come back: what it says of itself over HTTP."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from conftest import Mongod, _loadable, skip
from support import fake_relay
from support.command import CIVICSKY, environment, finish, model_server, query, run, start, tell, until
from support.converge import CLIENT, post
from support.ports import free_port
from support.promtool import promtool

BOUND = 2.0
"""Seconds, of everything."""
PROBE = 2.0
"""Seconds between two probes, as a container's health check would have them; looked at more often here."""
SETTINGS: dict[str, Any] = {
    "source__backoff_seconds": 0.05, "source__backoff_max_seconds": 0.2, "source__start": "window",
    "worker__batch_frames": 32, "worker__processes": 1, "label__pause_seconds": 0.05, "label__pause_max_seconds": 0.2,
    "store__timeout_seconds": 1, "store__retry_max_seconds": 0.2, "health__relay_seconds": BOUND,
    "health__lag_seconds": BOUND, "health__behind_seconds": BOUND, "health__model_seconds": BOUND,
    "health__store_seconds": BOUND, "health__quiet_seconds": 0.5, "appview__recheck": "false",
    "label__prices": '{"mock": {"input": 1, "output": 1}}',
}  # fmt: skip


class World(NamedTuple):
    """A service and what it needs."""

    process: "subprocess.Popen[str]"
    folder: Path
    url: str
    control: str
    model: str
    mongod: Mongod
    relay: "subprocess.Popen[str]"

    def readyz(self) -> dict[str, Any]:
        answer = CLIENT.get(self.url + "/readyz")
        told: dict[str, Any] = answer.json()
        assert answer.status_code == (200 if told["ready"] else 503)
        return told

    def names(self) -> set[str]:
        return {one["name"] for one in self.readyz()["reasons"]}

    def is_ready(self) -> bool:
        with suppress(httpx.TransportError):  # it does not listen yet
            return bool(self.readyz()["ready"])
        return False

    def metrics(self) -> dict[str, float]:
        """By name and labels."""
        lines = CLIENT.get(self.url + "/metrics").text.splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if why := _loadable():
        skip(why)
    folder = tmp_path_factory.mktemp("health")
    with ExitStack() as stack:
        mongod = Mongod(folder / "mongod")
        stack.callback(mongod.stop)
        mongod.start()
        relay = subprocess.Popen(
            [sys.executable, fake_relay.__file__, "--seed", "7", "--rate", "60", "--hostile", "0", "--from-start"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        stack.callback(relay.communicate)
        stack.callback(relay.kill)
        assert relay.stdout is not None
        address, control = relay.stdout.readline().split()
        model = stack.enter_context(model_server(folder / "model.log"))
        port = free_port()
        process = subprocess.Popen(
            [CIVICSKY, "run", "--relay", address, "--data-dir", folder / "data", "--model-url", model,
             "--model", "mock", "--http", str(port)],
            env=environment(**SETTINGS, store__mongo_uri=mongod.uri), stdout=subprocess.DEVNULL,
            stderr=stack.enter_context((folder / "log").open("w")), text=True,
        )  # fmt: skip
        stack.callback(process.wait)
        stack.callback(process.kill)
        found = World(process, folder / "data", f"http://127.0.0.1:{port}", control, model, mongod, relay)
        until(found.is_ready, "the service to be ready")
        yield found


def unready(world: World, name: str) -> dict[str, Any]:
    """Wait until it is unready for this reason; the reason as it was first told. Before the bound it is none."""

    def look() -> Any:
        told = world.readyz()
        assert not [one for one in told["pending"] if one["seconds"] >= one["bound"]]
        return next((one for one in told["reasons"] if one["name"] == name), None)

    reason: dict[str, Any] = until(look, f"{name} to make it unready")
    assert reason["bound"] == BOUND
    assert BOUND <= reason["seconds"] <= BOUND + 2 * PROBE
    return reason


def test_a_model_that_is_away_makes_it_unready_after_the_bound_and_ready_again(world: World) -> None:
    tell(world.model, status=503)
    assert "503" in unready(world, "model_down")["why"]
    asked = run("health", "--url", world.url)
    assert (asked.code, asked.err) == (1, "")
    assert asked.out.startswith("not ready: model_down for ")
    until(lambda: world.metrics()['civicsky_condition_over{name="model_down"}'], "the metrics to say so")
    tell(world.model, status=200)
    until(world.is_ready, "the model to be back")
    asked = run("health", "--url", world.url)
    assert (asked.code, asked.out, asked.err) == (0, "ready\n", "")


def test_a_store_that_is_away_makes_it_unready_after_the_bound_and_ready_again(world: World) -> None:
    world.mongod.stop()
    unready(world, "store_down")
    until(lambda: world.metrics()["civicsky_waiting_documents"] > 0, "documents to wait")
    world.mongod.start()
    until(world.is_ready, "the store to be back")
    until(lambda: world.metrics()["civicsky_waiting_documents"] < 20, "the store to be told")


def workers(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"anyio" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_frames_that_are_not_committed_make_it_unready_after_the_bound_and_ready_again(world: World) -> None:
    (worker,) = workers(world.process.pid)
    os.kill(worker, signal.SIGSTOP)
    try:
        unready(world, "behind")
        assert CLIENT.get(world.url + "/livez").status_code == 200
    finally:
        os.kill(worker, signal.SIGCONT)
    until(world.is_ready, "it to have caught up")


def test_a_relay_that_is_away_makes_it_unready_after_the_bound_and_ready_again(world: World) -> None:
    connections = world.metrics()["civicsky_connections_total"]
    post(world.control + "/knob", {"name": "down", "seconds": BOUND + 3 * PROBE})
    unready(world, "relay_down")
    until(lambda: world.metrics()["civicsky_connected"] == 0, "the metrics to say so")
    until(world.is_ready, "the relay to be back")
    until(lambda: world.metrics()["civicsky_connections_total"] == connections + 1, "the metrics to say so")
    assert world.metrics()["civicsky_connect_failures_total"] > 1


def test_a_relay_that_sends_nothing_never_makes_it_unready(world: World) -> None:
    frames = world.metrics()["civicsky_frames_received_total"]
    post(world.control + "/knob", {"name": "stall_answering_pings", "seconds": 3 * BOUND})
    until(lambda: world.readyz()["quiet"], "it to be quiet")
    seen = []
    while world.readyz()["quiet"]:
        told = world.readyz()
        seen.append((told["ready"], [one["name"] for one in told["reasons"]]) if told["quiet"] else (True, []))
    assert len(seen) > 10
    assert set(map(str, seen)) == {"(True, [])"}
    until(lambda: world.metrics()["civicsky_frames_received_total"] > frames, "the relay to go on")
    until(world.is_ready, "it to have caught up")


def counted(world: World) -> dict[str, float]:
    """What the databases count, by the metrics' names."""
    sums = "SELECT unit, outcome, reason, sum(n) FROM count WHERE outcome <> 'received' GROUP BY 1, 2, 3"
    found: dict[str, float] = {"civicsky_frames_received_total": 0.0}
    for unit, outcome, reason, n in query(world.folder / "journal.db", sums):
        if unit == "frame":
            name = f'civicsky_frames_total{{outcome="{outcome}"}}'
            found[name] = found.get(name, 0.0) + n
            found["civicsky_frames_received_total"] += n
        elif unit == "post":
            found[f'civicsky_posts_total{{outcome="{outcome}",reason="{reason}"}}'] = n
    spent = "SELECT (SELECT count(*) FROM label), sum(calls), sum(tokens_in), sum(tokens_out) FROM spend"
    ((labels, calls, tokens_in, tokens_out),) = query(world.folder / "ledger.db", spent)
    return {
        **found,
        'civicsky_labels_total{task="civic"}': labels,
        "civicsky_model_calls_total": calls,
        'civicsky_tokens_total{direction="in"}': tokens_in,
        'civicsky_tokens_total{direction="out"}': tokens_out,
    }


def differences(world: World) -> dict[str, tuple[float, float | None]]:
    """By metric (what the databases count, what the metrics say), where these differ."""
    shown = world.metrics()
    return {name: (n, shown.get(name)) for name, n in counted(world).items() if shown.get(name) != n}


def test_the_metrics_count_what_the_journal_and_the_ledger_count(world: World) -> None:
    assert promtool_says(CLIENT.get(world.url + "/metrics").content) == ""
    world.relay.send_signal(signal.SIGSTOP)
    try:
        idle = ("civicsky_waiting_labels", "civicsky_waiting_documents")
        until(lambda: world.readyz()["quiet"] and not any(world.metrics()[name] for name in idle), "all to be done")
        with suppress(AssertionError):  # what differs is shown below
            until(lambda: not differences(world), "the metrics to say so", 20)
        assert differences(world) == {}
        shown = world.metrics()
    finally:
        world.relay.send_signal(signal.SIGCONT)
    assert shown['civicsky_frames_total{outcome="commit"}'] > 100
    assert shown["civicsky_model_calls_total"] >= shown['civicsky_labels_total{task="civic"}'] > 10
    tokens = shown['civicsky_tokens_total{direction="in"}'] + shown['civicsky_tokens_total{direction="out"}']
    assert shown['civicsky_cost_total{currency="USD",model="mock"}'] == pytest.approx(tokens / 1e6)
    assert shown['civicsky_processes{kind="worker"}'] == 1
    assert shown['civicsky_resident_bytes{kind="main"}'] > 10_000_000
    assert shown["civicsky_journal_bytes"] > 10_000
    assert shown["civicsky_loop_stall_seconds_count"] > 10
    assert abs(shown["civicsky_start_time_seconds"] - time.time()) < 3600


def promtool_says(text: bytes) -> str:
    ran = subprocess.run([promtool(), "check", "metrics"], input=text, capture_output=True, check=False)
    return (ran.stdout + ran.stderr).decode()


def test_it_says_that_it_ends_and_ends_well_though_clients_hold_on(world: World) -> None:
    port = int(world.url.rpartition(":")[2])
    with ExitStack() as stack:
        for _ in range(20):
            held = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            held.sendall(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n")
        tell(world.model, delay=1.5)  # a call in flight keeps it for a while
        until(lambda: get_waiting(world) > 0, "a call in flight")
        world.process.send_signal(signal.SIGTERM)
        until(lambda: "stopping" in world.names(), "it to say so")
        assert CLIENT.get(world.url + "/livez").status_code == 200
        assert world.process.wait(120) == 0
    asked = run("health", "--live", "--url", world.url)
    assert asked.code == 1
    assert asked.out == f"no answer from {world.url}: Connection refused\n"


def get_waiting(world: World) -> float:
    return world.metrics()["civicsky_waiting_labels"]


# ---- without a service ----


def test_a_port_that_is_taken_ends_the_start_with_2_and_one_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ended = run("collect", "--relay", "ws://127.0.0.1:1", "--data-dir", tmp_path / "data", "--http", port)
    assert ended.code == 2
    assert ended.err == (
        f"civicsky: http.listen: cannot listen on 127.0.0.1:{port}: another program listens there; name another port, "
        "or end that program\n"
    )


def test_beyond_loopback_the_start_wants_a_token_and_no_secret_is_shown(tmp_path: Path) -> None:
    token = "one-secret-of-sixteen"
    asked = ("collect", "--relay", "ws://127.0.0.1:1", "--data-dir", tmp_path / "data", "--http", "0.0.0.0:0")
    ended = run(*asked)
    assert ended.code == 2
    assert ended.err.startswith("civicsky: http.listen: 0.0.0.0:0 can be reached from other machines, and there is no")
    assert len(ended.err.splitlines()) == 1
    process = start(*asked, "--max-minutes", 0.02, http__token=token)
    arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    good = finish(process)
    assert good.code == 0, good.err
    assert token not in good.out + good.err
    assert token.encode() not in arguments
    assert not query(tmp_path / "data" / "journal.db", "SELECT 1 FROM run WHERE settings LIKE ?", f"%{token}%")


def test_health_asks_with_the_token_and_where_the_settings_listen(tmp_path: Path) -> None:
    token, port = "one-secret-of-sixteen", free_port()
    settings: dict[str, Any] = {"http__token": token, "http__listen": f"[::1]:{port}"}
    process = start("collect", "--relay", "ws://127.0.0.1:1", "--data-dir", tmp_path / "data", **settings)
    until(lambda: query(tmp_path / "data" / "journal.db", "SELECT 1 FROM run"), "it to have begun")
    assert run("health", "--live", **settings).out == "alive\n"
    assert run("health", **settings).out.startswith("not ready: relay_down for ")
    without = run("health", "--url", f"http://[::1]:{port}")
    assert (without.code, without.out) == (1, "HTTP 401: a token is needed\n")
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 0


def test_a_flow_that_stands_still_is_not_alive(tmp_path: Path, relay: str) -> None:
    port = free_port()
    settings: dict[str, Any] = {
        "source__start": "window", "worker__batch_frames": 32, "limits__wedged_seconds": 3,
        "fault": "journal.commit:3:hang",
    }  # fmt: skip
    process = start("collect", "--relay", relay, "--data-dir", tmp_path / "data", "--http", port, **settings)
    url = f"http://127.0.0.1:{port}/livez"

    def stuck() -> str:
        with suppress(httpx.TransportError):  # it does not listen yet
            answer = CLIENT.get(url)
            return answer.text if answer.status_code == 503 else ""
        return ""

    assert until(stuck, "it to say that it is stuck").startswith("stuck: journal stands still with work in hand, for ")
    process.kill()
    finish(process)


def test_health_without_an_address_is_a_wrong_use() -> None:
    ended = run("health")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("civicsky: http.listen is not set, so nothing answers: give the service --http PORT")


def test_health_loads_nothing_heavy() -> None:
    """Measured: 0.35 s and 46 MB, as much as `civicsky --version`."""
    command = [sys.executable, "-X", "importtime", "-m", "civicsky", "health", "--url", "http://127.0.0.1:1"]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in ran.stderr.splitlines()}
    assert "civicsky" in loaded
    heavy = {"starlette", "uvicorn", "prometheus_client", "websockets", "motor", "pymongo", "libipld", "fasttext"}
    assert not loaded & {*heavy, "httpx", "anyio", "uvloop", "aiosqlite", "atproto", "pycld2", "numpy"}
    assert ran.returncode == 1
    assert json.dumps(ran.stdout).startswith('"no answer from')
