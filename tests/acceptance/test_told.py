"""A real service tells a real webhook what wants a human: once, and once when it is over, also across restarts."""

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.command import (
    CIVICSKY,
    Ended,
    cursor,
    end_when,
    finish,
    is_up,
    model_server,
    query,
    run,
    sample_relay,
    server,
    start,
    until,
)
from support.fake import begin, playing
from support.ports import free_port
from support.webhook import Webhook, webhook

NOWHERE = "ws://127.0.0.1:1"
SECRET = "hunter2-in-the-path"
QUICK: dict[str, Any] = {
    "health__relay_seconds": 0, "health__lag_seconds": 1e12,
    "notify__well_seconds": 1.5, "notify__journal_seconds": 0.2,
    "source__backoff_seconds": 0.05, "source__backoff_max_seconds": 0.1, "source__start": "window",
    "notify__timeout_seconds": 20, "appview__recheck": "false", "worker__batch_seconds": 0.05,
}  # fmt: skip
PROBLEM, OVER = ("problem", "relay_down"), ("recovered", "relay_down")


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook(f"/{SECRET}") as listening:
        yield listening


def collect(folder: Path, relay: str, hook: Webhook, **settings: Any) -> "subprocess.Popen[str]":
    quick = {**QUICK, "notify__url": hook.url, **settings}
    return start("collect", "--relay", relay, "--data-dir", folder, **quick)


def stop(process: "subprocess.Popen[str]") -> Ended:
    process.send_signal(signal.SIGTERM)
    return finish(process)


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def state(folder: Path, role: str = "collect") -> dict[str, Any]:
    """What the service wrote down; {} before that."""
    file = folder / f"notified-{role}.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def lives(folder: Path) -> list[Any]:
    """The runs that the journal knows of: each begins after what ended the one before was told."""
    return query(folder / "journal.db", "SELECT started FROM run")


def log_of(ended: Ended, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in ended.err.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


def test_a_relay_that_goes_away_and_comes_back_is_told_once_and_its_return_once(tmp_path: Path, hook: Webhook) -> None:
    port = free_port()
    relay = f"ws://127.0.0.1:{port}"
    play = (CIVICSKY, "dev", "serve-frames", "sample", "--rate", 100, "--loop", "--port", port)
    with server(*play):
        process = collect(tmp_path, relay, hook)
        until(lambda: cursor(tmp_path), "the relay to be held")
    until(lambda: PROBLEM in hook.told(), "its loss to be told")
    with server(*play):
        until(lambda: OVER in hook.told(), "its return to be told")
        ended = stop(process)
    assert ended.code == 0, ended.err
    assert [one for one in hook.told() if one[1] == "relay_down"] == [PROBLEM, OVER]
    down, over = (one.values for one in hook.heard if one.values["problem"] == "relay_down")
    assert down["why"]
    assert (down["data_dir"], down["role"], down["host"]) == (str(tmp_path), "collect", socket.gethostname())
    assert down["look"] == f"civicsky doctor --data-dir {tmp_path}"
    assert (over["since"], down["lasted_seconds"]) == (down["since"], None)
    assert over["lasted_seconds"] >= 0
    assert [line["id"] for line in log_of(ended, "notified")] == [one.values["id"] for one in hook.heard]


def test_a_service_that_is_started_again_and_again_says_the_same_once_and_all_is_well_only_when_it_is(
    tmp_path: Path, hook: Webhook
) -> None:
    ended = ("problem", "ended")
    for life in range(3):
        process = collect(tmp_path, NOWHERE, hook, notify__well_seconds=120)
        until(lambda: len(lives(tmp_path)) > life, "the start")  # noqa: B023
        until(lambda: state(tmp_path)["outboxes"] == {"webhook": []} and PROBLEM in hook.told(), "all to be sent")
        kill(process)
        assert hook.told() == [PROBLEM, ended][: life + 1]
    assert "without a word" in hook.heard[1].values["why"]
    process = collect(tmp_path, NOWHERE, hook, notify__well_seconds=120)
    until(lambda: len(lives(tmp_path)) > life + 1, "the start")
    assert stop(process).code == 0
    assert hook.told() == [PROBLEM, ended]
    with sample_relay("--rate", "100", "--loop") as relay:
        process = collect(tmp_path, relay, hook)
        until(lambda: len(hook.told()) == 4, "both to be over")
        assert stop(process).code == 0
    assert sorted(hook.told()[2:]) == [("recovered", "ended"), OVER]


def test_a_service_that_ends_by_itself_says_why_once(tmp_path: Path, hook: Webhook) -> None:
    assert run("collect", "--relay", NOWHERE, "--data-dir", tmp_path, "--max-minutes", 0.0001).code == 0
    with model_server(tmp_path / "log", "--key", "right") as url:
        asks = ("--data-dir", tmp_path, "--model-url", url, "--model", "mock")
        for _ in range(2):
            refused = run("label", *asks, **QUICK, notify__url=hook.url, label__api_key="hunter3")
            assert refused.code == 2
    (told,) = hook.heard
    assert (told.values["kind"], told.values["problem"], told.values["role"]) == ("problem", "ended", "label")
    assert "refuses the key (HTTP 401)" in told.values["why"]
    assert b"hunter" not in told.body
    assert list(state(tmp_path, "label")["book"]["problems"]) == ["ended"]
    assert state(tmp_path) == {}, "each role has a file of its own"


def test_a_model_that_refuses_the_key_is_told_at_once_and_labelling_alone_is_parked(
    tmp_path: Path, hook: Webhook, relay: str
) -> None:
    with model_server(tmp_path / "log", "--key", "right") as url:
        asks = ("--model-url", url, "--model", "mock", "--relay", relay, "--data-dir", tmp_path / "data")
        process = start("run", *asks, **QUICK, notify__url=hook.url, label__api_key="hunter3", health__model_seconds=0)
        until(lambda: ("problem", "model_parked") in hook.told(), "it to be told")
        ended = end_when(process, lambda: cursor(tmp_path / "data") > 1000, "collecting to go on")
    assert ended.code == 0, ended.err
    assert [one for one in hook.told() if "model" in one[1]] == [("problem", "model_parked")]


def test_the_second_copy_that_is_turned_away_tells_nobody_and_leaves_the_first_ones_book_alone(
    tmp_path: Path, hook: Webhook
) -> None:
    first = collect(tmp_path, NOWHERE, hook)
    until(lambda: PROBLEM in hook.told() and state(tmp_path)["outboxes"] == {"webhook": []}, "the problem")
    before = state(tmp_path)["running"]
    assert run("collect", "--data-dir", tmp_path, **QUICK, notify__url=hook.url).code == 2
    assert state(tmp_path)["running"] == before
    assert stop(first).code == 0
    assert hook.told() == [PROBLEM]


def test_a_webhook_that_is_down_delays_neither_the_flow_nor_the_end_and_hears_all_after_the_next_start(
    tmp_path: Path, hook: Webhook, relay: str
) -> None:
    hook.behave, patient = "slow", {"notify__timeout_seconds": 10_000, "limits__drain_seconds": 1}
    process = collect(tmp_path, NOWHERE, hook, **patient)
    until(lambda: hook.heard, "the first message")
    ended = stop(process)
    assert ended.code == 0, ended.err
    waiting = state(tmp_path)["outboxes"]["webhook"]
    assert [one["problem"] for one in waiting] == ["relay_down"]
    flows = collect(tmp_path, relay, hook, **patient)
    ended = end_when(flows, lambda: cursor(tmp_path) > 1000, "the flow beside a webhook that hangs")
    assert ended.code == 0, ended.err
    hook.behave = "ok"
    hook.release.set()
    last = collect(tmp_path, NOWHERE, hook)
    until(lambda: state(tmp_path)["outboxes"] == {"webhook": []}, "all to be sent")
    assert stop(last).code == 0
    assert {one.values["id"] for one in hook.heard} == {waiting[0]["id"]}


def test_a_command_tells_too_also_while_the_webhook_is_down(tmp_path: Path) -> None:
    out, tell = tmp_path / "out", tmp_path / "tell"
    tell.write_text(f'#!/bin/sh\nread -r line\nprintf "%s\\n" "$line" >> {out}\nenv >> {tmp_path}/env\n')
    tell.chmod(0o700)
    command = json.dumps([str(tell)])
    with webhook() as hook:
        hook.behave = "503"
        process = collect(
            tmp_path / "data", NOWHERE, hook, notify__command=command, notify__token="hunter4", label__api_key="hunter3"
        )
        until(lambda: hook.heard and out.exists() and out.read_text().endswith("\n"), "both to be tried")
        until(lambda: state(tmp_path / "data")["outboxes"]["command"] == [], "the command's success to be noted")
        ended = stop(process)
    (line,) = out.read_text().splitlines()
    assert (json.loads(line)["kind"], json.loads(line)["problem"]) == PROBLEM
    assert "hunter" not in (tmp_path / "env").read_text()
    assert [(one["way"], one["why"]) for one in log_of(ended, "notify_down")] == [
        ("webhook", "the webhook answers HTTP 503")
    ]


async def test_a_gap_is_one_message_with_its_cause_and_its_length(tmp_path: Path, hook: Webhook) -> None:
    import asyncio  # noqa: PLC0415

    knob = {"name": "outdated_cursor", "after": 200, "skip": 100, "jump_seconds": 100}
    async with playing(knob, events=600) as relay:
        process = begin(tmp_path, relay, **QUICK | {"notify__url": hook.url, "health__relay_seconds": 600})
        await asyncio.to_thread(until, lambda: hook.heard, "the gap to be told")
        ended = await asyncio.to_thread(stop, process)
    assert ended.code == 0, ended.err
    ((cause, seconds),) = query(tmp_path / "journal.db", "SELECT cause, (until_at - from_at) / 1e6 FROM gap")
    (told,) = [one.values for one in hook.heard if one.values["problem"] == "gap"]
    assert (told["kind"], told["why"]) == ("note", f"{cause} at {relay.hosts[0].address}, {seconds:,.1f} s")
    assert told["lasted_seconds"] == int(seconds)
    assert state(tmp_path)["book"]["gaps"] == 1


def test_the_webhooks_address_is_nowhere_to_be_seen(tmp_path: Path, hook: Webhook) -> None:
    for behave in ("404", "hang_up"):
        hook.behave, before = behave, len(hook.heard)
        process = collect(tmp_path / behave, NOWHERE, hook, notify__token="hunter4", log__level="debug")
        until(lambda: len(hook.heard) > before, "an attempt")  # noqa: B023
        until(lambda: is_up(process.pid), "the start")  # noqa: B023
        cmdline = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        shown = run("status", "--data-dir", tmp_path / behave)
        ended = stop(process)
        assert log_of(ended, "notify_down")
        files = [file.read_bytes() for file in (tmp_path / behave).iterdir() if file.is_file()]
        for text in (ended.err, ended.out, shown.out, shown.err, repr(cmdline), repr(files)):
            assert "hunter" not in text
    listed = run("config", notify__url=hook.url, notify__token="hunter4")
    assert listed.code == 0
    assert "hunter" not in listed.out + listed.err
    wrong = run("config", notify__url=f"http://chat.example/{SECRET}")
    assert (wrong.code, "https:// only" in wrong.err, "hunter" in wrong.err) == (2, True, False)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_civicsky_notify_says_whether_a_test_message_arrived(tmp_path: Path, hook: Webhook) -> None:
    told = run("notify", "--data-dir", tmp_path, notify__url=hook.url, notify__name="lab")
    assert (told.code, told.out, told.err) == (0, "webhook: arrived\n", "")
    assert hook.told() == [("test", "test")]
    assert "[lab]" in hook.heard[0].values["text"]
    nobody = run("notify", "--data-dir", tmp_path)
    assert nobody.code == 2
    assert "notify.url" in nobody.err
    for behave, code, says in (
        ("404", 2, "notify.url"),
        ("302", 2, "redirect"),
        ("500", 1, "HTTP 500"),
        ("400", 1, "400"),
    ):
        hook.behave = behave
        failed = run("notify", "--data-dir", tmp_path, notify__url=hook.url, notify__command='["true"]')
        assert (failed.code, failed.out) == (code, "command: arrived\n")
        assert says in failed.err
        assert SECRET not in failed.err
        assert len(failed.err.splitlines()) == 1
    broken = run("notify", "--data-dir", tmp_path, notify__command='["sh", "-c", "echo no such user >&2; exit 3"]')
    assert (broken.code, broken.err) == (1, "no such user\ncivicsky: notify.command ended with exit code 3\n")
    assert list(tmp_path.iterdir()) == [], "nothing is made"
