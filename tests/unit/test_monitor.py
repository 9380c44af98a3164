import asyncio
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from civicsky.health import Condition, Look
from civicsky.loading import load
from civicsky.metrics import Metrics
from civicsky.settings import Settings
from civicsky.watch import monitor as monitors
from civicsky.watch.monitor import Monitor, resident

DOWN = Condition("relay_down", "relay: no answer\x1b[2J in time", 130.0, 120.0)
WARMING = Condition("model_down", "the model is down", 5.0, 600.0)


def made(metrics: Metrics | None = None, why: str = "", settings: Settings | None = None) -> Monitor:
    return Monitor(settings or load(), metrics or Metrics(), lambda: why, lambda: "")


def heeded(*conditions: Condition, quiet: bool = False, met: bool = True) -> Monitor:
    monitor = made()
    monitor.heed(Look(conditions, quiet=quiet, met=met))
    return monitor


def names(monitor: Monitor) -> list[str]:
    ready, told = monitor.readiness()
    assert ready == told["ready"] == (not told["reasons"])
    json.dumps(told)
    return [one["name"] for one in told["reasons"]]


def test_before_the_first_look_it_is_starting_and_not_ready() -> None:
    assert names(made()) == ["starting"]


def test_a_service_that_ends_is_not_ready() -> None:
    monitor = made(why="SIGTERM")
    monitor.heed(Look())
    assert names(monitor) == ["stopping"]


def test_what_is_beyond_its_bound_is_a_reason_with_since_when_and_the_bound() -> None:
    _, told = heeded(DOWN, WARMING).readiness()
    (reason,), (pending,) = told["reasons"], told["pending"]
    assert (reason["name"], reason["seconds"], reason["bound"]) == ("relay_down", 130.0, 120.0)
    assert reason["why"] == "relay: no answer?[2J in time"
    assert reason["since"].endswith("Z")
    assert pending["name"] == "model_down"
    assert told["bounds"] == load().health.model_dump()


def test_what_is_not_beyond_its_bound_does_not_look_so() -> None:
    ready, told = heeded(WARMING._replace(seconds=599.99)).readiness()
    assert (ready, told["pending"][0]["seconds"]) == (True, 599.9)


def test_whoever_never_had_a_relay_is_not_ready_before_the_bound() -> None:
    assert names(heeded(DOWN._replace(seconds=1.0), met=False)) == ["relay_down"]
    assert names(heeded(DOWN._replace(seconds=1.0))) == []


def test_quiet_is_told_and_is_ready() -> None:
    monitor = heeded(quiet=True)
    assert names(monitor) == []
    assert monitor.readiness()[1]["quiet"] is True


def test_a_closed_window_is_told_and_is_ready() -> None:
    monitor = made(Metrics(window_why="window: closed until 16:00"))
    monitor.heed(Look())
    assert names(monitor) == []
    assert monitor.readiness()[1]["window"] == "window: closed until 16:00"


def test_a_look_that_is_old_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = heeded()
    monkeypatch.setattr(monitors, "STALE_SECONDS", -1.0)
    assert names(monitor) == ["unknown"]


def test_metrics_are_put_together_once_a_second_however_often_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = Metrics()
    monitor = made(metrics)
    before = monitor.exposition()
    metrics.add("frames")
    assert monitor.exposition() == before
    monkeypatch.setattr(monitors, "FRESH_SECONDS", 0.0)
    assert b"civicsky_frames_received_total 1.0" in monitor.exposition()[0]


def test_names_that_a_relay_chooses_are_no_label() -> None:
    metrics = Metrics()
    metrics.outcomes.update({("frame", "info", "a name"): 2, ("frame", "info", "another"): 3})
    assert b'civicsky_frames_total{outcome="info"} 5.0' in made(metrics).exposition()[0]
    assert b"another" not in made(metrics).exposition()[0]


def test_money_is_told_by_the_model_and_the_currency_of_the_settings() -> None:
    settings = load(None, {"label.model_url": "http://127.0.0.1:1/v1", "label.model": "m", "label.currency": "EUR"})
    text, _ = made(Metrics(cost=1.5), settings=settings).exposition()
    assert b'civicsky_cost_total{currency="EUR",model="m"} 1.5' in text


async def test_a_loop_that_stands_still_shows() -> None:
    monitor = made()
    watch = asyncio.create_task(monitor.watch_loop())
    await asyncio.sleep(0)  # it has begun
    blocked = subprocess.run(["sleep", "0.6"], check=True)  # noqa: ASYNC221  (that is what is tested)
    assert blocked.returncode == 0
    await asyncio.sleep(0.01)
    watch.cancel()
    with suppress(asyncio.CancelledError):
        await watch
    text, _ = monitor.exposition()
    (longest,) = [line for line in text.decode().splitlines() if line.startswith("civicsky_loop_stall_max_seconds")]
    assert float(longest.split()[1]) > 0.4


def test_memory_is_told_of_this_process_and_its_children_by_kind(tmp_path: Path) -> None:
    package = tmp_path / "civicsky"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "local.py").write_text("import sys\nprint('up', flush=True)\nsys.stdin.read()\n")
    with subprocess.Popen(
        [sys.executable, "-m", "civicsky.local"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        found = resident()
        child.communicate()
    assert len(found["main"]) == 1
    assert found["main"][0] > os.sysconf("SC_PAGE_SIZE")
    assert len(found["model"]) == 1
    assert 1_000_000 < found["model"][0] < found["main"][0]
    assert not resident()["model"]
