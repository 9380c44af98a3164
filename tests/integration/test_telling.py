"""What the running service makes of health, the journal and its own end, told by a real command into a real file."""

import json
from pathlib import Path
from typing import Any

import pytest

from civicsky.errors import Failed, Held, Refused
from civicsky.health import Condition, Look
from civicsky.metrics import Metrics
from civicsky.model import Gap, GapCause, now_us
from civicsky.notify.telling import telling
from civicsky.settings import Limits, Notify, Settings

SECOND = 1_000_000


def settings(folder: Path, **values: Any) -> Settings:
    tell = folder / "tell"
    tell.write_text(f"#!/bin/sh\ncat >> {folder}/told\n")
    tell.chmod(0o700)
    notify = Notify(command=(str(tell),), **{"well_seconds": 0, **values})
    return Settings(notify=notify, limits=Limits(drain_seconds=60))


def told(folder: Path) -> list[tuple[str, str, str]]:
    """(kind, problem, why) in order."""
    file = folder / "told"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [(line["kind"], line["problem"], line["why"]) for line in lines]


def condition(name: Any, seconds: float = 10, bound: float = 5) -> Condition:
    return Condition(name, f"{name} it is", seconds, bound)


def gap(cause: GapCause, length: int | None, at: int = 0) -> Gap:
    until = None if length is None else length * SECOND
    return Gap("wss://relay", 1, cause, 1, at, 0, 2, until)


async def test_only_what_is_beyond_its_bound_is_told_and_of_what_is_parked_that_alone(tmp_path: Path) -> None:
    facts = Metrics()
    async with telling(settings(tmp_path), tmp_path, "run", facts) as notifier:
        assert notifier
        notifier.heed(Look((condition("model_down", 4), condition("behind"))))
        facts.model_parked = "the key is refused"
        notifier.heed(Look((condition("model_down", 400), condition("behind"))))
    assert told(tmp_path) == [
        ("problem", "behind", "behind it is"),
        ("problem", "model_parked", "the key is refused"),
    ]


async def test_gaps_that_were_there_before_closed_hours_and_what_was_read_again_are_not_told(tmp_path: Path) -> None:
    gaps = [gap("outdated_cursor", 50)]
    async with telling(settings(tmp_path), tmp_path, "collect", Metrics()) as notifier:
        assert notifier
        notifier.journal(gaps, "")
        gaps += [gap("window", 60), gap("renumbered", -60), gap("too_large", 1), gap("not_replayed", 90)]
        gaps += [gap("not_replayed", None, now_us())]
        notifier.journal(gaps, "")
        gaps[-1] = gap("not_replayed", 7)
        notifier.journal(gaps, "")
        notifier.journal(gaps, "")
    async with telling(settings(tmp_path), tmp_path, "collect", Metrics()) as notifier:
        assert notifier
        notifier.journal([*gaps, gap("undecodable", None, 1)], "")
    assert told(tmp_path) == [
        ("note", "gap", "too_large at wss://relay, 1.0 s; not_replayed at wss://relay, 90.0 s"),
        ("note", "gap", "not_replayed at wss://relay, 7.0 s"),
        ("note", "gap", "undecodable at wss://relay, its length is not known"),
    ]


async def test_a_balance_that_does_not_close_is_told_once_and_when_it_closes(tmp_path: Path) -> None:
    async with telling(settings(tmp_path), tmp_path, "collect", Metrics()) as notifier:
        assert notifier
        for unbalanced in ("frame: received 2 = commit 1", "frame: received 3 = commit 2", "", ""):
            notifier.journal([], unbalanced)
            notifier.heed(Look())
            notifier.heed(Look())
    assert [one[:2] for one in told(tmp_path)] == [("problem", "balance"), ("recovered", "balance")]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (Failed("the disk is full"), "the disk is full"),
        (ExceptionGroup("", [ExceptionGroup("", [Refused("no key")])]), "no key"),
        (ExceptionGroup("", [Refused("no key"), ValueError("hunter2")]), "a defect: ValueError"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (KeyError("hunter2"), "a defect: KeyError"),
    ],
)
async def test_an_end_by_an_error_is_told_before_the_process_ends_and_only_once(
    error: Exception, why: str, tmp_path: Path
) -> None:
    for _ in range(2):
        with pytest.raises(type(error)):
            async with telling(settings(tmp_path), tmp_path, "run", Metrics()):
                raise error
    assert told(tmp_path) == [("problem", "ended", why)]


async def test_nobody_is_told_of_a_lock_that_another_has_nor_without_a_way_to_tell(tmp_path: Path) -> None:
    with pytest.raises(Held):
        async with telling(settings(tmp_path), tmp_path, "run", Metrics()):
            raise Held("another")
    assert told(tmp_path) == []
    empty = tmp_path / "empty"
    empty.mkdir()
    async with telling(Settings(), empty, "run", Metrics()) as notifier:
        assert notifier is None
    assert list(empty.iterdir()) == []
