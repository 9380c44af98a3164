"""Two releases side by side, as during an upgrade: home nodes and label workers of both, as processes.

Their messages differ in version, or only the releases do. Whoever does not understand the other takes nothing from it,
and says so on both sides; each post is labelled once, and each label is one call.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from civicsky.workers import told
from support import model_server
from support.asked import did, rkey
from support.command import CIVICSKY, finish, query, server, until
from support.led import Led, led_relay
from support.nats_server import NatsServer, nats_server
from support.released import of, release

HOME: dict[str, Any] = {
    "source__backoff_seconds": 0.05, "source__backoff_max_seconds": 0.2, "worker__batch_seconds": 0.05,
    "worker__processes": 1, "sample__posts_per_day": 0, "label__anchors": 0, "label__slots": 16,
    "label__pause_seconds": 0.05, "label__pause_max_seconds": 0.2, "ledger__poll_seconds": 0.05,
    "appview__recheck": "false", "workers__wait_seconds": 2,
}  # fmt: skip


class Worker:
    """A label worker of a release, its own model, and its log."""

    def __init__(self, world: "World", name: str, which: Path | None, model: str = "mock") -> None:
        self.log, self._calls = world.folder / f"{name}.log", world.folder / f"{name}.calls"
        self._calls.touch()
        url = world.stack.enter_context(
            server(sys.executable, model_server.__file__, "--log", self._calls, "--delay", 0.05)
        )
        command = [CIVICSKY, "label", "--worker", world.nats.url, "--model-url", url, "--model", model]
        world.started(
            subprocess.Popen(
                [*command, "--log-file", str(self.log)], env=of(which, label__slots=4, label__pause_seconds=0.05),
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip

    @property
    def calls(self) -> int:
        return len(self._calls.read_text().splitlines())

    def said(self, event: str) -> list[str]:
        return said(self.log, event)


class World:
    """The home node, and what is around it."""

    def __init__(self, folder: Path, nats: NatsServer, relay: Led, stack: ExitStack) -> None:
        self.folder, self.nats, self.relay, self.stack = folder, nats, relay, stack
        self.data, self.sent = folder / "data", 0

    def started(self, process: "subprocess.Popen[Any]") -> None:
        self.stack.callback(process.communicate)
        self.stack.callback(process.kill)

    def home(self, which: Path | None, log: Path, **settings: Any) -> "subprocess.Popen[str]":
        command = [CIVICSKY, "run", "--relay", self.relay.url, "--data-dir", str(self.data), "--model", "mock"]
        process = subprocess.Popen(
            [*command, "--log-file", str(log)], env=of(which, **HOME, workers__url=self.nats.url, **settings),
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.started(process)
        return process

    def posts(self, n: int) -> None:
        for at in range(self.sent, self.sent + n):
            self.relay.post(rkey(at), f"A post in plain English about the council, number {at}", did=did(at))
        self.sent += n

    def labelled(self) -> int:
        rows = query(self.data / "ledger.db", "SELECT count(*) FROM label")
        return int(rows[0][0]) if rows else 0

    def seen(self) -> dict[str, str]:
        """Why each worker takes nothing, by its release; empty: it takes."""
        found = told.read(self.data)
        return {one["version"]: one["why"] for one in found["workers"]} if found else {}

    def status(self) -> str:
        return self._out("status", of(None))

    def doctor(self, which: Path | None) -> str:
        urls = {"workers__url": self.nats.url, "source__relays": json.dumps([self.relay.url])}
        return self._out("doctor", of(which, label__model="mock", **urls))

    def _out(self, command: str, env: dict[str, str]) -> str:
        words = [CIVICSKY, command, "--data-dir", str(self.data)]
        return subprocess.run(words, env=env, capture_output=True, text=True, check=False).stdout


@contextmanager
def world(folder: Path) -> Iterator[World]:
    with ExitStack() as stack, nats_server(folder / "nats") as nats, led_relay() as relay:
        made = World(folder, nats, relay, stack)
        try:
            yield made
        finally:
            stack.close()


def said(log: Path, event: str) -> list[str]:
    """Why, by each line of that event."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [line.get("why", "") for line in map(json.loads, lines) if line["event"] == event]


def ended(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    assert finish(process).code == 0


def until_told(condition: Callable[[], Any], what: str) -> Any:
    return until(condition, what, 60)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_two_releases_whose_messages_differ_label_each_post_once_and_say_on_both_sides_who_must_be_upgraded(
    tmp_path: Path,
) -> None:
    newer = release(tmp_path / "newer", "9.0.0", speaks=2)
    with world(tmp_path) as made:
        home = made.home(None, tmp_path / "home-old.log")
        old, new = Worker(made, "old", None), Worker(made, "new", newer)
        made.posts(60)
        until(lambda: made.labelled() == 60, "all posts to be labelled")
        assert (old.calls, new.calls) == (60, 0)

        seen = until_told(lambda: made.seen() if made.seen().get("9.0.0") else None, "the home node to tell of both")
        assert seen.pop("9.0.0").endswith("version 1: upgrade the home node")
        assert list(seen.values()) == [""]
        assert "upgrade the home node" in made.status()
        (why,) = until(lambda: said(tmp_path / "home-old.log", "workers_foreign"), "the home node's log")
        assert "upgrade the home node" in why
        until(lambda: "upgrade the home node" in "".join(new.said("workers_idle")), "the worker's log")

        made.posts(60)
        until(lambda: made.labelled() > 70, "some more to be labelled")
        ended(home)
        home = made.home(newer, tmp_path / "home-new.log")
        until(lambda: made.labelled() == 120, "the rest to be labelled")
        assert old.calls + new.calls == 120
        assert new.calls > 0
        until(lambda: "upgrade the worker" in "".join(old.said("workers_idle")), "the older worker's log")
        assert new.said("workers_working")
        by_old = old.calls
        made.posts(30)
        until(lambda: made.labelled() == 150, "all posts to be labelled")
        ended(home)
        assert (old.calls, old.calls + new.calls) == (by_old, 150)
        assert query(made.data / "ledger.db", "SELECT sum(calls) FROM spend") == [(150,)]
        assert not old.said("workers_foreign"), "it saw nothing that it does not know"


@pytest.mark.long
@pytest.mark.timeout(300)
def test_two_releases_with_the_same_messages_work_side_by_side(tmp_path: Path) -> None:
    newer = release(tmp_path / "newer", "0.1.1")
    with world(tmp_path) as made:
        for which, log in ((None, "old"), (newer, "new")):
            home = made.home(which, tmp_path / f"home-{log}.log")
            if which is None:
                workers = [Worker(made, "old", None), Worker(made, "new", newer)]
            until(lambda: len(made.seen()) == 2, "both to be there")
            before = [one.calls for one in workers]
            made.posts(80)
            until(lambda: made.labelled() == made.sent, "all posts to be labelled")
            assert all(one.calls > was for one, was in zip(workers, before, strict=True))
            assert set(made.seen().values()) == {""}
            ended(home)
        assert sum(one.calls for one in workers) == made.sent


@pytest.mark.long
@pytest.mark.timeout(300)
def test_while_all_workers_are_of_another_version_posts_wait_and_log_and_status_say_for_what(tmp_path: Path) -> None:
    newer = release(tmp_path / "newer", "9.0.0", speaks=2)
    with world(tmp_path) as made:
        home = made.home(None, tmp_path / "home.log")
        new = Worker(made, "new", newer)
        made.posts(5)
        (why, *_) = until(lambda: said(tmp_path / "home.log", "label_down"), "the home node's log")
        assert "of 1 label workers none takes questions" in why
        assert "upgrade the home node" in why
        assert (made.labelled(), new.calls) == (0, 0)
        assert "upgrade the home node" in made.doctor(None)
        Worker(made, "old", None)
        until(lambda: made.labelled() == 5, "all posts to be labelled")
        ended(home)
        assert new.calls == 0
