"""Label workers as processes: killed, cut off, without NATS, without MongoDB. What the store shows in the end is right.

Calls are counted by the models themselves: as many as posts without faults; with them, besides, at most what was in
flight at each fault.
"""

import ipaddress
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from civicsky.workers import told
from conftest import Client, Mongod, _loadable, skip
from support import model_server
from support.asked import did, rkey
from support.command import CIVICSKY, environment, finish, query, server, start, until
from support.led import Led, led_relay, uri
from support.nats_server import NatsServer, nats_server

SLOTS = 4
ACK_SECONDS = 2
SEED = int(os.environ.get("CHAOS_SEED", "1"))
AT_HOME = 16
"""Questions that the home node has out: of those it may have the answer in hand, and not on disk yet."""
POSTS = int(os.environ.get("CHAOS_POSTS", "900"))
"""Of the long storm."""
HOME: dict[str, Any] = {
    "source__backoff_seconds": 0.05, "source__backoff_max_seconds": 0.2, "worker__batch_seconds": 0.05,
    "sample__posts_per_day": 0, "label__anchors": 0, "label__slots": AT_HOME, "label__pause_seconds": 0.05,
    "label__pause_max_seconds": 0.2, "ledger__poll_seconds": 0.05, "appview__recheck": "false",
    "store__timeout_seconds": 1, "store__retry_max_seconds": 0.2, "workers__ack_seconds": ACK_SECONDS,
}  # fmt: skip


class Models:
    """Deterministic models, and how often all of them were asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.logs: list[Path] = []

    @contextmanager
    def one(self, seconds: float, *before: str) -> Iterator[str]:
        log = self._folder / f"model-{len(self.logs)}.log"
        log.touch()
        self.logs.append(log)
        with server(*before, sys.executable, model_server.__file__, "--log", log, "--delay", seconds) as url:
            yield url

    @property
    def calls(self) -> int:
        return sum(len(log.read_text().splitlines()) for log in self.logs)


class World:
    """The home node and what is around it."""

    def __init__(self, folder: Path, nats: NatsServer, relay: Led) -> None:
        self.folder, self.nats, self.relay = folder, nats, relay
        self.sent = 0
        self._workers: list[subprocess.Popen[bytes]] = []

    def home(self, **settings: Any) -> "subprocess.Popen[str]":
        return start(
            "run", "--relay", self.relay.url, "--data-dir", self.folder, "--model", "mock",
            **{**HOME, **settings}, workers__url=self.nats.url,
        )  # fmt: skip

    def worker(self, model: str, *before: str, url: str = "") -> "subprocess.Popen[bytes]":
        command = [CIVICSKY, "label", "--worker", url or self.nats.url, "--model-url", model, "--model", "mock"]
        log = self.folder.parent / f"worker-{len(self._workers)}.log"
        process = subprocess.Popen(
            [*before, *command, "--log-file", log],
            env=environment(label__slots=SLOTS, label__pause_seconds=0.05),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._workers.append(process)
        return process

    def posts(self, n: int, of: int = 0) -> None:
        self.sent += n
        for at in range(of, of + n):
            self.relay.post(rkey(at), f"A post in plain English about the council, number {at}", did=did(at))

    def labelled(self) -> int:
        rows = query(self.folder / "ledger.db", "SELECT count(*) FROM label")
        return int(rows[0][0]) if rows else 0

    def deleted(self) -> int:
        rows = query(self.folder / "journal.db", "SELECT count(*) FROM post WHERE state = 'deleted'")
        return int(rows[0][0]) if rows else 0

    def is_done(self) -> bool:
        """Whether all that was sent came, is followed, nothing waits, and the store knows it."""
        if query(self.folder / "journal.db", "SELECT count(*) FROM post") != [(self.sent,)]:
            return False
        last = query(self.folder / "journal.db", "SELECT seq FROM sqlite_sequence WHERE name = 'change'")
        ledger = self.folder / "ledger.db"
        waits = query(ledger, "SELECT count(*) FROM job WHERE state = 'pending'")
        untold = query(ledger, "SELECT count(*) FROM doc WHERE v > stored_v")
        followed = query(ledger, "SELECT n FROM position WHERE name = 'journal'")
        return bool(last) and followed == last and waits == untold == [(0,)]

    def end(self) -> None:
        for process in self._workers:
            process.kill()
            process.communicate()


@contextmanager
def world(tmp_path: Path) -> Iterator[tuple[World, Models]]:
    with nats_server(tmp_path / "nats") as nats, led_relay() as relay:
        made = World(tmp_path / "data", nats, relay)
        try:
            yield made, Models(tmp_path)
        finally:
            made.end()


def ended_well(process: "subprocess.Popen[Any]") -> None:
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, (out, err)


def test_without_faults_each_post_is_one_call_and_workers_come_and_go(tmp_path: Path) -> None:
    with world(tmp_path) as (made, models), models.one(0.1) as model:
        home = made.home(workers__ack_seconds=30)  # a machine that stands still for a moment is no fault
        first = made.worker(model)
        made.posts(200)
        until(lambda: made.labelled() > 30, "the first labels")
        second = made.worker(model)
        until(lambda: made.labelled() > 80, "more labels")
        ended_well(first)
        until(made.is_done, "all to be labelled")
        ended_well(second)
        home.send_signal(signal.SIGTERM)
        assert finish(home).code == 0
        assert models.calls == made.labelled() == 200
        (spent,) = query(made.folder / "ledger.db", "SELECT sum(calls) FROM spend")
        assert spent == (200,)


@contextmanager
def cut_off() -> Iterator[tuple[list[str], str, Callable[[str], None]]]:
    """A network of its own: how a command runs in it, our address seen from there, and what pulls its cable."""
    if os.geteuid() != 0:
        skip("a network namespace needs root")
    name, ours = f"cs{os.getpid()}", f"cs{os.getpid()}h"
    # Four addresses of its own: what another one, which was killed, has left takes nothing from it.
    first = ipaddress.ip_address("10.208.0.0") + 4 * os.getpid() % 2**20
    here, there = str(first + 1), str(first + 2)

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    ip("netns", "add", name)
    try:
        ip("link", "add", ours, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("addr", "add", f"{here}/30", "dev", ours)
        ip("link", "set", ours, "up")
        for words in (["addr", "add", f"{there}/30", "dev", "eth0"], ["link", "set", "eth0", "up"],
                      ["link", "set", "lo", "up"]):  # fmt: skip
            ip("-n", name, *words)
        yield ["ip", "netns", "exec", name], here, lambda state: ip("link", "set", ours, state)
    finally:
        ip("netns", "del", name)


@pytest.mark.mongo
@pytest.mark.timeout(300)
def test_whatever_dies_or_is_cut_off_each_post_is_labelled_once_and_deletions_hold(tmp_path: Path) -> None:
    if why := _loadable():
        skip(why)
    mongod = Mongod(tmp_path / "mongod")
    mongod.start()
    try:
        with cut_off() as (inside, here, cable), led_relay() as relay:
            nats = NatsServer(tmp_path / "nats", host="0.0.0.0")  # noqa: S104  (also the other network's)
            nats.start()
            made, models = World(tmp_path / "data", nats, relay), Models(tmp_path)
            try:
                with models.one(0.25) as model, models.one(0.25, *inside) as other_model:
                    _storm(made, models, mongod, model, (other_model, inside, here, cable))
            finally:
                made.end()
                nats.kill()
    finally:
        mongod.stop()


def _storm(made: World, models: Models, mongod: Mongod, model: str, other: tuple[str, list[str], str, Any]) -> None:
    other_model, inside, here, cable = other
    nats_url = made.nats.url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
    home = start(
        "run", "--relay", made.relay.url, "--data-dir", made.folder, "--model", "mock", **HOME,
        workers__url=nats_url, store__mongo_uri=mongod.uri,
    )  # fmt: skip
    victim = made.worker(model, url=nats_url)
    made.worker(model, url=nats_url)
    made.worker(other_model, *inside, url=f"nats://{here}:{made.nats.port}")
    made.posts(400)
    in_flight = 0
    until(lambda: made.labelled() > 40, "the first labels")

    victim.kill()
    in_flight += SLOTS
    made.worker(model, url=nats_url)
    gone = [n for n in range(400) if n % 9 == 0]
    for n in gone:
        made.relay.delete(rkey(n), did=did(n))
    until(lambda: made.labelled() > 90, "labels after a worker's death")

    made.nats.wipe()
    in_flight += 3 * SLOTS
    until(lambda: (told.read(made.folder) or {}).get("why"), "the loss to be noticed")
    made.nats.start()
    until(lambda: made.labelled() > 150, "labels after NATS was wiped")

    mongod.stop()
    until(lambda: made.labelled() > 190, "labels while MongoDB is away")
    mongod.start()

    until(lambda: len((told.read(made.folder) or {"workers": ()})["workers"]) == 3, "all workers to be there")
    made.posts(160, of=400)  # so that all have something in hand when the cable is cut
    before = made.labelled()
    until(lambda: made.labelled() > before + 10, "labels with MongoDB back")
    before_cut = until(lambda: told.read(made.folder), "it to be told how workers are")["redelivered"]
    cable("down")
    in_flight += SLOTS
    before = made.labelled()
    until(lambda: made.labelled() > before + 10, "labels of those that are not cut off")
    # Longer than the ack wait: until another worker has got what the one that is cut off holds.
    until(lambda: (told.read(made.folder) or {"redelivered": 0})["redelivered"] > before_cut, "the ack wait to be over")
    cable("up")
    until(made.is_done, "all to be labelled and stored", 120)
    home.send_signal(signal.SIGTERM)
    ended = finish(home)
    assert ended.code == 0, ended.err
    _judge(made, models, mongod, set(gone), in_flight)


def _judge(made: World, models: Models, mongod: Mongod, gone: set[int], in_flight: int) -> None:
    with Client(mongod.uri) as client:
        posts = {doc["_id"]: doc for doc in client["civicsky"]["posts"].find({})}
        labels = Counter(doc["uri"] for doc in client["civicsky"]["labels"].find({}) if doc.get("fields"))
    for n in range(made.sent):
        doc = posts.get(uri(rkey(n), did(n)))
        assert doc is not None, f"post {n} is lost"
        if n in gone:
            assert doc["state"] == "deleted"
            assert not doc.get("text")
            assert not doc.get("labels")
        else:
            assert doc["state"] == "live"
            assert doc["labels"]["civic"]["fields"], f"post {n} has no label"
            assert labels[doc["_id"]] == 1
    asked = made.sent - len(gone)
    print(f"{made.sent} posts, {len(gone)} deleted, {models.calls} calls, at most {made.sent + in_flight}")
    assert asked <= models.calls <= made.sent + in_flight


def test_a_home_node_that_is_killed_costs_no_post_and_no_label_twice(tmp_path: Path) -> None:
    with world(tmp_path) as (made, models), models.one(0.15) as model:
        made.worker(model)
        made.posts(120)
        for done in (15, 50):
            home = made.home()
            until(lambda: made.labelled() > done, "labels")  # noqa: B023
            home.kill()
            finish(home)
        home = made.home()
        until(made.is_done, "all to be labelled")
        home.send_signal(signal.SIGTERM)
        assert finish(home).code == 0
        assert made.labelled() == 120
        assert 120 <= models.calls <= 120 + 2 * AT_HOME


class Storm:
    """Faults one after the other, by lot. Each gives how many calls it may have cost."""

    def __init__(self, made: World, mongod: Mongod, model: str, lot: random.Random) -> None:
        self.made, self.mongod, self.model, self.lot = made, mongod, model, lot
        self.url = made.nats.url
        self.home = self._run()
        self.workers = [made.worker(model) for _ in range(3)]

    @property
    def in_flight(self) -> int:
        return SLOTS * len(self.workers)

    def a_worker_is_killed(self) -> int:
        victim = self.workers.pop(self.lot.randrange(len(self.workers)))
        victim.kill()
        self.workers.append(self.made.worker(self.model))
        return SLOTS

    def a_worker_freezes(self) -> int:
        before, victim = self._redelivered(), self.lot.choice(self.workers)
        victim.send_signal(signal.SIGSTOP)
        until(lambda: self._redelivered() > before or self.made.is_done(), "others to get what it holds", 60)
        victim.send_signal(signal.SIGCONT)
        return SLOTS

    def nats_is_wiped(self) -> int:
        self.made.nats.wipe()
        until(self._why, "the loss to be noticed", 60)
        self.made.nats.start()
        return self.in_flight

    def nats_freezes(self) -> int:
        assert self.made.nats.process is not None
        self.made.nats.process.send_signal(signal.SIGSTOP)
        until(self._why, "its silence to be noticed", 60)
        self.made.nats.process.send_signal(signal.SIGCONT)
        return self.in_flight

    def the_home_node_freezes(self) -> int:
        self.home.send_signal(signal.SIGSTOP)
        time.sleep(3 * ACK_SECONDS)  # that long is what the fault is
        self.home.send_signal(signal.SIGCONT)
        return self.in_flight

    def the_home_node_is_killed(self) -> int:
        self.home.kill()
        finish(self.home)
        self.home = self._run()
        return AT_HOME

    def mongodb_is_killed(self) -> int:
        self.mongod.stop()
        self._more(20)
        self.mongod.start()
        return 0

    def go_on(self) -> None:
        """Until more is labelled, or there is no more."""
        self._more(25)

    def _more(self, n: int) -> None:
        before = self.made.labelled()
        until(lambda: self.made.labelled() > before + n or not self._waits(), "more labels", 120)

    def _waits(self) -> bool:
        rows = query(self.made.folder / "ledger.db", "SELECT count(*) FROM job WHERE state = 'pending'")
        return rows != [(0,)]

    def _run(self) -> "subprocess.Popen[str]":
        return self.made.home(store__mongo_uri=self.mongod.uri)

    def _redelivered(self) -> int:
        return int((told.read(self.made.folder) or {"redelivered": 0})["redelivered"])

    def _why(self) -> str:
        return str((told.read(self.made.folder) or {"why": ""})["why"])


@pytest.mark.mongo
@pytest.mark.long
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_a_long_storm_drawn_by_lot_costs_no_post_and_no_label_twice(tmp_path: Path, seed: int) -> None:
    if why := _loadable():
        skip(why)
    lot, posts = random.Random(seed), POSTS
    mongod = Mongod(tmp_path / "mongod")
    mongod.start()
    try:
        with world(tmp_path) as (made, models), models.one(0.25) as model:
            storm = Storm(made, mongod, model, lot)
            made.posts(posts)
            gone, may = set[int](), 0
            faults = [
                storm.a_worker_is_killed, storm.a_worker_freezes, storm.nats_is_wiped, storm.nats_freezes,
                storm.the_home_node_freezes, storm.the_home_node_is_killed, storm.mongodb_is_killed,
            ]  # fmt: skip
            lot.shuffle(faults)
            for fault in faults:
                storm.go_on()
                some = {lot.randrange(posts) for _ in range(posts // 60)} - gone
                for n in sorted(some):
                    made.relay.delete(rkey(n), did=did(n))
                gone.update(some)
                until(lambda: made.deleted() >= len(gone), "deletions to be known")  # this relay sends nothing twice
                may += fault()
            until(made.is_done, "all to be labelled and stored", 300)
            storm.home.send_signal(signal.SIGTERM)
            assert finish(storm.home).code == 0
            _judge(made, models, mongod, gone, may)
    finally:
        mongod.stop()
