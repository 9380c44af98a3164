"""The plan from databases that were really written, and that nobody is asked for it."""

import json
import socket
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from civicsky import datadir
from civicsky.journal import Journal, JournalReader
from civicsky.ledger import Ledger
from civicsky.model import (
    Answer,
    Arrival,
    Asked,
    Batch,
    Change,
    Event,
    FieldLabel,
    Frame,
    LabelRow,
    PostOp,
    Verdict,
    now_us,
)
from civicsky.plan import gather, sample_posts
from civicsky.plan_text import as_text
from civicsky.sample import Drawing
from civicsky.settings import Journal as JournalSettings, Label, Settings
from civicsky.status import gather_coverage
from support.command import run
from support.frames import tid

MINUTE = 60_000_000
BEGAN = now_us() - 48 * 60 * MINUTE
LABELS = 150


async def collected(folder: Path, minutes: int, *, began: int = BEGAN, every: int = MINUTE) -> None:
    """A frame a minute (or otherwise) with a post each; every third is rejected."""
    texts = sample_posts()
    journal = await Journal.open(folder / datadir.JOURNAL, JournalSettings())
    await journal.positions(["wss://a"])
    frames, verdicts = [], []
    for n in range(1, minutes + 1):
        op = PostOp(0, "create", f"3{n:012}", b"c" * 36, b"b")
        event = Event("commit", seq=n, did="did:plc:a", time=began + n * every, rev=tid(n), posts=[op])
        frames.append(Frame(Arrival(n, "wss://a", 1, 1, None, b"", n), event, "commit", ""))
        verdicts.append(
            Verdict("rejected", "language", "{}") if n % 3 == 0 else Verdict("kept", "", json.dumps(texts[n % 300]))
        )
    await journal.commit(Batch(frames), verdicts, Counter(frame=minutes, post=minutes))
    await journal.close()


async def labelled(folder: Path) -> None:
    """Labels of 1,000 tokens in and 10 out, each of one call of half a second; every tenth took another, in vain."""
    reader = await JournalReader.open(folder / datadir.JOURNAL)
    changes: list[Change] = await reader.changes(0, 10_000)
    posts = await reader.posts((change.rkey, change.did) for change in changes)
    await reader.close()
    ledger = await Ledger.open(folder / datadir.LEDGER)
    await ledger.follow(changes, posts.values(), ["civic"], Drawing())
    for n, job in enumerate(await ledger.due(["civic"], (), LABELS)):
        answer = Answer(
            {"civic": FieldLabel("civic", None)}, "schema", "p", "m", "m", None, "{}", "e", Asked(str(n)).input_hash,
            1000, 10, 500, 1,
        )  # fmt: skip
        if n % 10 == 0:
            await ledger.put_off(job, "not_json", 0, job.attempts, spend=answer.spend)
        await ledger.answered(
            job, LabelRow(f"{n:032x}", job.did, job.rkey, job.cid, "civic", "1", 0, 1.0, 1, 1, answer)
        )
    await ledger.close()


def settings(folder: Path, **own: Any) -> Settings:
    return Settings(data_dir=folder, label=Label.model_validate({"model": "m", **own}))


async def test_traffic_and_tokens_are_those_of_the_data_directory(tmp_path: Path) -> None:
    await collected(tmp_path, 300)
    await labelled(tmp_path)
    held = (await gather_coverage(tmp_path))["seconds"]["held"]
    assert held > 4.5 * 3600
    plan = await gather(settings(tmp_path, slots=1))
    assert plan["traffic"]["basis"] == "measured"
    assert plan["traffic"]["hours_held"] == pytest.approx(held / 3600)
    assert plan["traffic"]["posts_a_day"] == pytest.approx(300 * 86_400 / held)
    assert plan["traffic"]["kept_a_day"] == pytest.approx(200 * 86_400 / held)
    assert (plan["sample"]["bounded_by"], plan["sample"]["share"]) == ("all", 1)
    assert (plan["tokens"]["basis"], plan["tokens"]["labels"]) == ("measured", LABELS)
    assert (plan["tokens"]["in_a_label"], plan["tokens"]["out_a_label"]) == (1100, 11), "vain calls are paid, too"
    assert plan["requests_a_day"] == pytest.approx(1.1 * plan["traffic"]["kept_a_day"])
    assert (plan["busy"]["basis"], plan["busy"]["seconds_a_call"]) == ("measured", 0.5)
    assert plan["busy"]["hours_a_day"] == pytest.approx(plan["requests_a_day"] * 0.5 / 3600)
    assert plan["disk"]["posts"] is None, "200 posts are too few to measure"


async def test_what_another_model_took_says_nothing(tmp_path: Path) -> None:
    await collected(tmp_path, 300)
    await labelled(tmp_path)
    assert (await gather(settings(tmp_path, model="other")))["tokens"]["basis"] == "estimated"


async def test_the_newest_posts_are_shown_as_they_would_be_sent(tmp_path: Path) -> None:
    await collected(tmp_path, 30)
    plan = await gather(settings(tmp_path))
    texts = sample_posts()
    assert plan["traffic"]["basis"] == "assumed", "half an hour is too little"
    assert plan["prompts_of"] == "journal"
    shown = [one["messages"][-1]["content"] for one in plan["prompts"]]
    assert len(shown) == 3
    for content, n in zip(shown, (29, 28, 26), strict=True):
        (first, *_) = texts[n % 300]["text"].split()
        assert first in content


async def test_disk_is_measured_on_the_users_own_posts(tmp_path: Path) -> None:
    await collected(tmp_path, 1600)
    await labelled(tmp_path)
    (tmp_path / datadir.POSTS).write_bytes(bytes(2_134_000))
    reader = await JournalReader.open(tmp_path / datadir.JOURNAL)
    size, kept = await reader.size(), await reader.n_posts()
    await reader.close()
    assert kept == 1067
    plan = await gather(settings(tmp_path))
    a_day = plan["traffic"]["kept_a_day"]
    assert plan["disk"]["posts"] == kept
    assert plan["disk"]["journal"]["a_day"] == pytest.approx(a_day * size / kept)
    assert plan["disk"]["store"]["a_day"] == pytest.approx(a_day * 2000)


def test_the_command_asks_nobody(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        ended = run(
            "plan", "--json", "--data-dir", tmp_path / "none", "--model-url", url, "--model", "m",
            context__parent="true", appview__url=url.removesuffix("/v1"),
        )  # fmt: skip
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert ended.code == 0, ended.err
    plan = json.loads(ended.out)
    assert plan["context"] == ["parent"]
    assert len(plan["prompts"]) == 3
    assert not (tmp_path / "none").exists()


def test_a_task_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    ended = run("plan", label__tasks='["nothing.toml"]')
    assert ended.code == 2
    assert "nothing.toml" in ended.err


async def test_posts_at_this_hour_come_as_they_came_at_this_hour(tmp_path: Path) -> None:
    """Four days of a post every four hours; the counts of one hour of the day are then made three times as high."""
    day, hour = 24 * 60 * MINUTE, 60 * MINUTE
    now = (now_us() - 12 * hour) // day * day + 5 * hour
    await collected(
        tmp_path, 30, began=now - 5 * day + 6 * hour, every=4 * hour
    )  # held for sure: from its fifth frame on
    with closing(sqlite3.connect(tmp_path / datadir.JOURNAL)) as db:
        db.execute("DELETE FROM count")
        for begin in range(now - 4 * day, now, hour):
            many = 3 if begin // hour % 24 == 5 else 1
            rows = [("post", "kept", 40), ("post", "rejected", 20), ("frame", "commit", 600)]
            db.executemany(
                "INSERT INTO count VALUES (?, ?, ?, '', ?)", [(begin, unit, what, n * many) for unit, what, n in rows]
            )
        db.commit()
    plan = await gather(settings(tmp_path), posts=90, now=now)
    time = plan["time"]
    assert (time["basis"], time["days"]) == ("measured at this hour", 3)
    assert (time["posts_an_hour"], time["kept_an_hour"], time["frames_an_hour"]) == (180, 120, 1800)
    assert time["seconds"] == pytest.approx(1800)
    later = (await gather(settings(tmp_path), posts=180 + 60, now=now))["time"]
    assert later["seconds"] == pytest.approx(2 * 3600), "and then as they came in the hour after it"
    assert "measured at this hour of 3 days" in " ".join(as_text(plan).split())


async def test_posts_at_an_hour_that_was_never_held_come_as_on_the_mean(tmp_path: Path) -> None:
    await collected(tmp_path, 300)
    plan = await gather(settings(tmp_path), posts=60)
    assert (plan["time"]["basis"], plan["time"]["days"]) == ("measured", 0)
    assert plan["time"]["seconds"] == pytest.approx(60 / plan["traffic"]["posts_an_hour"] * 3600)
    assert plan["traffic"]["frames_a_day"] == pytest.approx(plan["traffic"]["posts_a_day"]), "a post in each frame"
    assert "all are taken to be alike" in " ".join(as_text(plan).split())


def test_the_command_takes_the_number_of_posts(tmp_path: Path) -> None:
    ended = run("plan", "--json", "--data-dir", tmp_path / "none", "--model", "m", "--posts", 250)
    assert json.loads(ended.out)["time"]["seconds"] == pytest.approx(10)
    assert run("plan", "--posts", 0).code == 2
