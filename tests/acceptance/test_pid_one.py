"""The command as the first process of a container, which the kernel treats unlike any other."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import skip
from support.command import LAST_SEQ, cursor, finish, query, sample_relay, until
from support.contained import First, contained, why_not


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if why := why_not():
        skip(why)


def killed(first: First, which: Callable[[str], bool]) -> list[int]:
    """Kill these children of process 1; their numbers."""
    children = [pid for pid, state in first.members().items() if pid != first.pid and state != "Z"]
    found = [pid for pid in children if which(Path(f"/proc/{pid}/cmdline").read_text())]
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return found


def test_a_command_that_does_not_handle_sigterm_is_ended_by_it_as_process_1_too() -> None:
    with contained("dev", "serve-frames", "sample") as first:
        assert first.process.stdout is not None
        assert first.process.stdout.readline().startswith("ws://")
        os.kill(first.pid, signal.SIGTERM)
        assert finish(first.process, 30).code == 128 + signal.SIGTERM


def test_as_process_1_killed_workers_leave_no_zombie_and_sigterm_ends_it_with_0(tmp_path: Path) -> None:
    with sample_relay("--rate", "400") as relay:
        options = ("--relay", relay, "--data-dir", str(tmp_path))
        small = {"source__start": "window", "worker__batch_frames": 16, "worker__processes": 2}
        with contained("collect", *options, **small) as first:
            until(lambda: cursor(tmp_path) > 0, "the first frames")
            workers = killed(first, lambda line: "anyio" in line)
            assert len(workers) == 2
            until(lambda: cursor(tmp_path) >= LAST_SEQ, "the rest of them, from new workers")
            assert first.zombies() == []
            assert len(first.members()) == 3
            assert not set(workers) & set(first.members())
            os.kill(first.pid, signal.SIGTERM)
            ended = finish(first.process)
    assert ended.code == 0, ended.err
    assert query(tmp_path / "journal.db", "SELECT count(*) FROM post WHERE state = 'live'")[0][0] > 0


@pytest.mark.local_model
def test_as_process_1_a_killed_local_model_leaves_no_zombie(relay: str, tmp_path: Path) -> None:
    with contained("run", "--relay", relay, "--data-dir", tmp_path, "--model", "local") as first:
        assert first.process.stderr is not None
        assert any('"event": "model_started"' in line for line in first.process.stderr)
        (model,) = killed(first, lambda line: "civicsky.local" in line)
        until(lambda: model not in first.members(), "its parent to ask about it")
        os.kill(first.pid, signal.SIGTERM)
        assert finish(first.process).code == 0
