"""Kept alive by something that starts it again and again: real processes, of which one at most works."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from civicsky import app
from civicsky.datadir import holding, locked, running
from civicsky.errors import Held
from civicsky.metrics import Metrics
from civicsky.settings import Settings
from support.appview_server import appview_server
from support.command import CIVICSKY, cursor, environment, finish, is_up, run, start, until

# A relay that is not there never ends a run, so what is started stays.
NOWHERE = "ws://127.0.0.1:9"
HALVES = {
    "run": ("--model-url", "http://127.0.0.1:9/v1", "--model", "m", "--relay", NOWHERE),
    "collect": ("--relay", NOWHERE),
    "label": ("--model-url", "http://127.0.0.1:9/v1", "--model", "m"),
}
Args = tuple[str | Path, ...]
HEAVY = ("civicsky.app", "motor", "uvloop", "anyio", "fasttext", "atproto", "httpx")


@pytest.fixture
def collected(tmp_path: Path, relay: str) -> Path:
    folder = tmp_path / "data"
    assert run("collect", "--relay", relay, "--data-dir", folder, "--max-frames", 100).code == 0
    return folder


@pytest.mark.parametrize("command", HALVES)
def test_what_runs_already_is_left_alone_with_one_line_and_no_error(command: str, collected: Path) -> None:
    args: Args = (command, *HALVES[command], "--data-dir", collected, "--if-not-running")
    first = start(*args)
    until(lambda: is_up(first.pid), "the first one to hold its locks")
    second = run(*args)
    assert (second.code, second.err) == (0, "")
    assert len(second.out.splitlines()) == 1
    assert "nothing to do, it runs already" in second.out
    assert f'"pid": {first.pid}' in second.out
    assert first.poll() is None, "the first one goes on"
    without = run(*args[:-1])
    assert without.code == 2, "without the flag it is an error"
    assert "is held by" in without.err


@pytest.mark.parametrize("command", HALVES)
def test_after_a_kill_the_next_one_starts(command: str, collected: Path) -> None:
    args: Args = (command, *HALVES[command], "--data-dir", collected, "--if-not-running")
    for _time in range(2):
        process = start(*args)
        until(partial(is_up, process.pid), "it to hold its locks")
        process.kill()
        process.communicate()


def test_of_many_that_are_started_at_once_one_works(tmp_path: Path) -> None:
    args: Args = ("collect", *HALVES["collect"], "--data-dir", tmp_path, "--if-not-running")
    many = [start(*args) for _ in range(4)]
    until(lambda: sum(one.poll() is not None for one in many) == 3, "all but one to end")
    (left,) = (one for one in many if one.poll() is None)
    until(lambda: is_up(left.pid), "the last one to work")
    assert holding(tmp_path, "collect").held
    for one in many:
        if one is not left:
            ended = finish(one)
            assert (ended.code, ended.err) == (0, "")
            assert "nothing to do, it runs already" in ended.out


def test_run_leaves_alone_what_works_in_halves(collected: Path) -> None:
    half = start("label", *HALVES["label"], "--data-dir", collected)
    until(lambda: is_up(half.pid), "the half to hold its lock")
    ended = run("run", *HALVES["run"], "--data-dir", collected, "--if-not-running")
    assert ended.code == 0
    assert "the role 'label' is held by" in ended.out


def test_what_does_not_run_is_started_and_does_its_work(tmp_path: Path, relay: str) -> None:
    ended = run("collect", "--relay", relay, "--data-dir", tmp_path, "--max-frames", 100, "--if-not-running")
    assert ended.code == 0
    assert "100 frames" in ended.out
    assert cursor(tmp_path) > 0


def test_looking_whether_it_runs_loads_nothing_heavy_and_makes_nothing(tmp_path: Path) -> None:
    def loaded(folder: Path, *more: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-X", "importtime", CIVICSKY, "collect", "--data-dir", str(folder), *more]
        return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=120)

    with locked(tmp_path, ("collect",)):
        looked = loaded(tmp_path, "--if-not-running")
    assert (looked.returncode, [file.name for file in tmp_path.iterdir()]) == (0, ["collect.lock"])
    assert "nothing to do, it runs already" in looked.stdout
    names = {line.rpartition("|")[2].strip() for line in looked.stderr.splitlines()}
    assert "civicsky.cli" in names, "what was loaded is seen"
    assert not {name for name in names if name.startswith(HEAVY)}


@pytest.mark.parametrize("flags", [(), ("--if-not-running",)])
def test_a_command_that_has_the_lock_for_a_moment_is_waited_for(flags: Args, tmp_path: Path) -> None:
    with locked(tmp_path, ("collect",), brief=True):
        process = start("collect", *HALVES["collect"], "--data-dir", tmp_path, "--max-minutes", "0.01", *flags)
        until(lambda: process.poll() is not None or is_up(process.pid), "it to look at the lock")
        assert process.poll() is None, "it waits"
        assert str(process.pid) not in holding(tmp_path, "collect").holder
    ended = finish(process)
    assert ended.code == 0, ended.err
    assert f'"pid": {process.pid}' in holding(tmp_path, "collect").holder


def test_a_stop_while_it_waits_ends_at_once(tmp_path: Path) -> None:
    with locked(tmp_path, ("collect",), brief=True):
        process = start("collect", *HALVES["collect"], "--data-dir", tmp_path)
        until(lambda: is_up(process.pid), "it to look at the lock")
        process.terminate()
        ended = finish(process)
    assert ended.code == 2
    assert "is held by" in ended.err


@pytest.mark.parametrize(("brief", "code"), [(True, 1), (False, 2)])
async def test_who_waited_in_vain_for_a_command_may_be_started_again_and_who_met_a_service_may_not(
    brief: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service's unit does not start again what ended with 2: then a long command would end the service for good."""
    monkeypatch.setattr(app, "BRIEF_SECONDS", 0.0)
    with locked(tmp_path, ("collect",), brief=brief), pytest.raises(Held) as raised:
        await app.serve(Settings(data_dir=tmp_path), "collect", drain=False, metrics=Metrics())
    assert raised.value.exit_code == code


def test_a_long_command_says_that_it_will_let_go(tmp_path: Path, relay: str) -> None:
    assert run("collect", "--relay", relay, "--data-dir", tmp_path, "--max-kept", 3).code == 0
    with appview_server() as appview:
        appview.answering.clear()
        process = start("recheck", "--data-dir", tmp_path, appview__url=appview.url)
        until(lambda: appview.calls or process.poll() is not None, "it to ask")
        assert process.poll() is None, finish(process)
        assert holding(tmp_path, "collect").held
        assert running(tmp_path, ("collect",)) is None, "whoever starts the service is not told that it runs"
        process.kill()
        finish(process)
        appview.answering.set()
