"""The installed command, killed as `kill -9` does, again and again: nothing is lost, doubled, or paid for twice."""

import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from support.command import LAST_SEQ, cursor, end_when, finish, query, sample_relay, start, until
from support.tried import lots

SMALL: dict[str, Any] = {"worker__batch_frames": 16, "source__start": "window", "log__level": "warning"}
POSTS = "SELECT did, rkey, cid, rev, idx, state, fields FROM post ORDER BY did, rkey"
CALLS = "SELECT sum(calls) FROM spend"  # a midnight may part them
COUNTS = "SELECT unit, outcome, reason, sum(n) FROM count GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"


def collect_all(folder: Path, relay: str, **settings: Any) -> None:
    process = start("collect", "--relay", relay, "--data-dir", folder, **SMALL, **settings)
    ended = end_when(process, lambda: cursor(folder) >= LAST_SEQ, "the end of the sample")
    assert ended.code == 0, ended.err


def outcomes(folder: Path) -> list[Any]:
    """What became of each frame and operation; an inclusive relay's repetitions apart."""
    counts = query(folder / "journal.db", COUNTS)
    received = sum(n for unit, outcome, _, n in counts if (unit, outcome) == ("frame", "received"))
    assert received == sum(n for unit, outcome, _, n in counts if unit == "frame" and outcome != "received")
    return [row for row in counts if row[:2] not in {("frame", "received"), ("frame", "duplicate")}]


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):
            found += map(int, (task / "children").read_text().split())
    return found


def is_gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.drawn
@pytest.mark.timeout(300)
def test_collect_killed_at_20_random_moments_equals_an_undisturbed_run(tmp_path: Path) -> None:
    draw = lots()
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    with sample_relay("--rate", "2000", "--mode", draw.choice(["inclusive", "exclusive"])) as relay:
        collect_all(quiet, relay)
        at_commit = 0
        for moment in sorted(draw.sample(range(1, LAST_SEQ - 100), 20)):
            between_begin_and_commit = moment % 2 == 0 or at_commit < moment // (LAST_SEQ // 6)
            fault = {"fault": f"journal.commit:{draw.randint(1, 3)}"} if between_begin_and_commit else {}
            process = start("collect", "--relay", relay, "--data-dir", killed, **SMALL, **fault)
            if not between_begin_and_commit:
                until(lambda: cursor(killed) >= moment or process.poll() is not None, "the moment to kill")  # noqa: B023
                workers = children(process.pid)
                process.kill()
                until(lambda: all(map(is_gone, workers)), "the workers to end with their parent")  # noqa: B023
            ended = finish(process)
            assert ended.code == -signal.SIGKILL, ended.err
            at_commit += between_begin_and_commit
        assert at_commit >= 5
        collect_all(killed, relay)
    assert query(killed / "journal.db", POSTS) == query(quiet / "journal.db", POSTS)
    assert outcomes(killed) == outcomes(quiet)


FAULTS = ["journal.commit", "ledger.commit", "label.answer", "store.written"]


def labels(folder: Path) -> dict[str, Any]:
    """Of every live post in the store: what was said of it."""
    found = {}
    for uri, packed in query(folder / "posts.db", "SELECT _id, doc FROM posts"):
        doc = json.loads(packed)
        told = doc.get("labels", {}).get("civic", {}).get("fields") if doc["state"] == "live" else None
        found[uri] = (doc["state"], doc.get("text"), doc.get("cid"), doc.get("rev"), told)
    return found


def all_is_labelled(folder: Path) -> bool:
    waiting = "SELECT 1 FROM job JOIN doc USING (did, rkey) WHERE job.state = 'pending' AND doc.state = 'live' LIMIT 1"
    followed = query(folder / "ledger.db", "SELECT n FROM position")
    last = query(folder / "journal.db", "SELECT seq FROM sqlite_sequence WHERE name = 'change'")
    return (
        cursor(folder) >= LAST_SEQ
        and bool(followed)
        and followed[0][0] == last[0][0]
        and not query(folder / "ledger.db", waiting)
        and not query(folder / "ledger.db", "SELECT 1 FROM doc WHERE v > stored_v LIMIT 1")
    )


def run_all(folder: Path, relay: str, model: str) -> None:
    process = start(
        "run",
        "--relay",
        relay,
        "--data-dir",
        folder,
        "--model-url",
        model,
        "--model",
        "mock",
        **SMALL,
        label__slots=SLOTS,
    )
    ended = end_when(process, lambda: all_is_labelled(folder), "all to be labelled and stored")
    assert ended.code == 0, ended.err


SLOTS = 4


@pytest.mark.drawn
@pytest.mark.timeout(300)
def test_run_killed_everywhere_pays_no_answer_twice_and_stores_the_same(
    tmp_path: Path, model: tuple[str, Path]
) -> None:
    draw = lots()
    url, log = model
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    with sample_relay("--rate", "1000") as relay:
        run_all(quiet, relay, url)
        asked_quietly = len(log.read_text().splitlines())
        answered_quietly = query(quiet / "ledger.db", CALLS)[0][0]
        assert asked_quietly == answered_quietly, "without a kill, each answer is paid for once"
        log.write_text("")
        kills = 0
        for fault in FAULTS * 5:
            process = start(
                "run", "--relay", relay, "--data-dir", killed, "--model-url", url, "--model", "mock",
                **SMALL, label__slots=SLOTS, fault=f"{fault}:{draw.randint(1, 12)}",
            )  # fmt: skip
            until(lambda: process.poll() is not None or all_is_labelled(killed), f"{fault} to fire")  # noqa: B023
            if process.poll() is None:  # nothing was left to do at that place
                process.kill()
            ended = finish(process)
            assert ended.code == -signal.SIGKILL, ended.err
            kills += 1
        run_all(killed, relay, url)
    asked = len(log.read_text().splitlines())
    answered = query(killed / "ledger.db", CALLS)[0][0]
    assert answered <= asked <= answered + SLOTS * kills
    assert labels(killed) == labels(quiet)
    assert sum(told is not None for *_, told in labels(killed).values()) >= 350
    assert query(killed / "journal.db", POSTS) == query(quiet / "journal.db", POSTS)
