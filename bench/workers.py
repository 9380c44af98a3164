"""Label workers: answers a second by way of 1, 2, 4 and 8 of them, over a real nats-server, against linear.

As in `label`: the installed command, made-up posts that wait, a mock that only waits (200 ms), answers counted in the
home node's ledger by the time at which they were made. Each worker is a process with 4 calls in flight; the home node
has 8 questions more out than all of them together can call. Besides, what they bring when the home node is full: all
the calls that it can have in flight, by few workers.
"""

import asyncio
import shutil
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, Final

from bench.large_journal import fill
from bench.part import Against, Ask, CannotRun, Fact, Figure, Measure, Part
from bench.processes import CIVICSKY, Child, folder, running, until
from civicsky.app import catch_up
from civicsky.datadir import LEDGER
from civicsky.metrics import Metrics
from civicsky.settings import Settings

PART = Part("workers", "Label workers", "answers a second by way of workers over NATS, against their number")
WORKERS: Final = (1, 2, 4, 8)
SLOTS: Final = 4
FULL: Final = (4, 62)
"""Workers, and calls of each: with those that lie ready as many as a home node has."""
FASTEST: Final = 700
"""No more answers a second than this are thought possible: how many posts must wait."""
MORE: Final = 8
"""Questions out beyond what all workers can call: they lie ready."""
LATENCY: Final = 0.2
OF_LINEAR: Final = 0.9
SETTINGS: Final[dict[str, Any]] = {"sample": {"posts_per_day": 0}}


def rounds(ask: Ask) -> Iterator[Measure]:
    """All numbers of workers, in each round."""
    server = shutil.which("nats-server") or shutil.which("nats-server", path="/usr/sbin")
    if server is None:
        raise CannotRun("there is no nats-server")
    seconds = max(1.0, (2.0 if ask.quick else 10.0) * ask.scale)
    posts = 1000 + int(FASTEST * (seconds + 20))
    yield Fact("seconds a run, without start-up", seconds)
    with folder() as where:
        fill(where / "made", posts, waiting=True)
        asyncio.run(catch_up(where / "made", Settings(**SETTINGS), Metrics()))
        for _ in range(ask.rounds):
            for many in (1, 2) if ask.quick else WORKERS:
                ask.say(f"workers: {many}")
                rate, cpu, *_ = run(server, where, (many, SLOTS), seconds)
                ideal = many * SLOTS / LATENCY
                yield Figure(f"{many} workers", "answers/s", rate)
                yield Against(f"{many} workers: answers/s over linear ({ideal:,.0f}/s)", rate / ideal, OF_LINEAR)
                yield Figure(f"{many} workers: CPU of the home node a post", "ms", cpu, "lower")
            if not ask.quick:
                ask.say("workers: as fast as the home node goes")
                rate, cpu, nats, workers = run(server, where, FULL, seconds)
                yield Figure("home node full", "answers/s", rate)
                yield Figure("home node full: CPU of the home node a post", "ms", cpu, "lower")
                yield Figure("home node full: CPU of nats-server a post", "ms", nats, "lower")
                yield Figure("home node full: CPU of its worker a post", "ms", workers, "lower")


def run(server: str, where: Path, by: tuple[int, int], seconds: float) -> tuple[float, ...]:
    """By (workers, calls of each): answers a second; milliseconds of home node, nats-server and worker for each."""
    many, slots = by
    data = where / "data"
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(where / "made", data)
    with ExitStack() as stack:
        url, nats = _nats(stack, server, where)
        mock = stack.enter_context(
            running(Child([sys.executable, "-m", "bench.model_mock", "--latency", str(LATENCY)]))
        )
        model = ["--model-url", mock.heard()["url"], "--model", "mock"]
        home = stack.enter_context(
            running(
                Child(
                    [CIVICSKY, "label", "--data-dir", data, "--model", "mock"], workers__url=url,
                    label__slots=many * slots + MORE, sample__posts_per_day=0,
                )
            )
        )  # fmt: skip
        workers = [
            stack.enter_context(running(Child([CIVICSKY, "label", "--worker", url, *model], label__slots=slots)))
            for _ in range(many)
        ]
        until(lambda: _at_work(data) == many, "all workers to be there", home, every=0.1)
        ready = _labels(data)
        until(lambda: _labels(data) > ready + 4 * many * slots, "labels", home, every=0.1)
        children = ((home,), (nats,), workers)
        began, before = time.time(), [sum(one.cpu() for one in some) for some in children]
        time.sleep(seconds)
        ended, after = time.time(), [sum(one.cpu() for one in some) for some in children]
    with closing(sqlite3.connect(data / LEDGER)) as db:
        ((labels,),) = db.execute("SELECT count(*) FROM label WHERE at BETWEEN ? AND ?", (began * 1e6, ended * 1e6))
        ((left,),) = db.execute("SELECT count(*) FROM job WHERE state = 'pending'")
    if not left:
        raise CannotRun(f"{many} workers: no post was left at the end; more of them must wait")
    spent = (1000 * (then - first) / max(1, labels) for first, then in zip(before, after, strict=True))
    return labels / (ended - began), *spent


def _nats(stack: ExitStack, server: str, where: Path) -> tuple[str, Child]:
    """Its address, and itself."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    file = where / "nats.conf"
    file.write_text(f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{where / "nats"}" }}\n')
    child = stack.enter_context(running(Child([server, "-c", file])))
    until(lambda: _listens(port), "nats-server to listen", child, every=0.05)
    return f"nats://127.0.0.1:{port}", child


def _listens(port: int) -> bool:
    with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), timeout=1)):
        return True
    return False


def _at_work(data: Path) -> int:
    from civicsky.workers import told  # noqa: PLC0415

    found = told.read(data)
    return sum(one["done"] > 0 for one in found["workers"]) if found else 0


def _labels(data: Path) -> int:
    with closing(sqlite3.connect(f"file:{data / LEDGER}?mode=ro", uri=True, timeout=30)) as db:
        ((labels,),) = db.execute("SELECT count(*) FROM label")
    return int(labels)
