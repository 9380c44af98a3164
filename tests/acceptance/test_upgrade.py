"""Databases that earlier versions left behind are taken up where they were."""

import asyncio
import gzip
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from civicsky import ledger, sqlite, store, tables
from support.appview_server import appview_server
from support.command import LAST_SEQ, Ended, end_when, query, run, start
from support.led import led_relay
from support.shown import english_posts, feed_uri

VERSIONS = sorted((Path(__file__).parents[1] / "upgrades").iterdir())


def left_behind(version: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in version.glob("*.db.gz"):
        (folder / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    return folder


def posts(folder: Path) -> dict[str, Any]:
    """State and text of every post, and for a live one whether it has a label."""
    docs = [json.loads(doc) for (doc,) in query(folder / "posts.db", "SELECT doc FROM posts")]
    return {
        doc["_id"]: (doc["state"], doc.get("text"), "civic" in doc["labels"] if doc["state"] == "live" else None)
        for doc in docs
    }


def labels(folder: Path) -> dict[tuple[str, str], Any]:
    """The labels under this version's prompt, and those that an earlier version left: by post and prompt."""
    docs = [json.loads(doc) for (doc,) in query(folder / "posts.db", "SELECT doc FROM labels")]
    return {(doc["uri"], doc["prompt"]): doc["fields"] for doc in docs if doc["state"] == "live"}


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_databases_of_an_earlier_version_are_taken_up_and_end_as_a_fresh_run_does(
    version: Path, relay: str, tmp_path: Path, model: tuple[str, Path]
) -> None:
    """They hold the first 800 frames of the sample, from a relay at another address, the last 100 not yet labelled."""
    old, fresh = left_behind(version, tmp_path / "old"), tmp_path / "fresh"
    before = run("status", "--json", "--data-dir", old)
    assert before.code == 2
    assert "older civicsky" in before.err
    assert query(old / "journal.db", "SELECT cursor FROM host") == [(800,)]
    for folder in (old, fresh):
        ended = run(
            "run", "--relay", relay, "--data-dir", folder, "--model-url", model[0], "--model", "mock",
            "--max-frames", LAST_SEQ, source__start="window",
        )  # fmt: skip
        assert ended.code == 0, ended.err
    assert posts(old) == posts(fresh)
    # What was labelled stays as it was, with the prompt of its time; what waited is labelled as in a fresh directory.
    new, former = labels(fresh), labels(old)
    assert len({prompt for _, prompt in former}) == 2
    assert former.keys() & new.keys()
    for name in former.keys() & new.keys():
        assert former[name] == new[name]
    tasks = query(old / "ledger.db", "SELECT prompt_hash FROM task")
    assert {prompt for _, prompt in former} <= {prompt for (prompt,) in tasks}, "each label's task file is kept"
    after = json.loads(run("status", "--json", "--data-dir", old).out)
    assert after["balances"][1]["outcomes"]["stale"] > 200, "what the other relay repeats is recognised"
    assert all(balance["closes"] for balance in after["balances"])


# ---- what they were stays beside them --------------------------------------------------------------------------------

SCHEMAS = {"journal.db": tables.SCHEMA, "ledger.db": ledger.SCHEMA, "posts.db": store.SCHEMA}


def brought_up(old: Path, model: tuple[str, Path], **settings: Any) -> Ended:
    """The labelling half opens all three files."""
    return run("label", "--drain", "--data-dir", old, "--model-url", model[0], "--model", "mock", **settings)


def kept(folder: Path) -> dict[str, Path]:
    """The copies that were left, by the name of their file."""
    found = sorted(folder.glob("upgrades/*"))
    assert found, "none is there"
    assert len({path.name.partition("-")[0] for path in found}) == len(found), "one of each"
    return {path.name.partition("-")[0] + ".db": path for path in found}


def content(file: Path) -> list[str]:
    """All tables and rows."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        return list(db.iterdump())


def formats(folder: Path) -> dict[str, int]:
    return {name: query(folder / name, "PRAGMA user_version")[0][0] for name in SCHEMAS}


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
async def test_before_a_database_is_brought_up_a_copy_that_the_earlier_version_can_go_on_with_is_left_beside(
    version: Path, model: tuple[str, Path], tmp_path: Path
) -> None:
    old, untouched = left_behind(version, tmp_path / "old"), left_behind(version, tmp_path / "untouched")
    was = formats(untouched)
    ended = await asyncio.to_thread(brought_up, old, model)
    assert ended.code == 0, ended.err
    assert formats(old) == {name: len(schema.steps) for name, schema in SCHEMAS.items()}
    left = kept(old)
    assert left.keys() == SCHEMAS.keys()
    for name, copy in left.items():
        assert copy.stat().st_mode & 0o777 == 0o600
        assert content(copy) == content(untouched / name)
        earlier = SCHEMAS[name]._replace(steps=SCHEMAS[name].steps[: was[name]])
        async with sqlite.reading(copy, earlier) as database:
            assert await sqlite.defects(database, thorough=True) == []
    told = [event for line in ended.err.splitlines() if (event := json.loads(line))["event"].startswith("upgrad")]
    for name, schema in SCHEMAS.items():
        begun, done = [event for event in told if event["file"] == name]
        assert (begun["event"], done["event"]) == ("upgrading", "upgraded")
        assert (begun["was"], begun["to"], begun["mb"] > 0) == (was[name], len(schema.steps), True)
        assert (done["kept"], done["seconds"] >= 0) == (str(left[name]), True)
    again = await asyncio.to_thread(brought_up, old, model)
    assert "upgrad" not in again.err
    assert kept(old) == left


@pytest.mark.parametrize("fault", [f"upgrade.{place}:{n}" for place in ("commit", "kept") for n in (1, 2, 3)])
@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_an_upgrade_that_is_killed_is_done_by_the_next_start(
    version: Path, fault: str, model: tuple[str, Path], tmp_path: Path
) -> None:
    old, untouched = left_behind(version, tmp_path / "old"), left_behind(version, tmp_path / "untouched")
    assert brought_up(old, model, fault=fault).code == -9
    n = int(fault.rpartition(":")[2])
    assert sum(formats(old)[name] > 1 for name in SCHEMAS) == n - 1, "the one that was under way is as it was"
    ended = brought_up(old, model)
    assert ended.code == 0, ended.err
    assert formats(old) == {name: len(schema.steps) for name, schema in SCHEMAS.items()}
    assert {name: content(copy) for name, copy in kept(old).items()} == {
        name: content(untouched / name) for name in SCHEMAS
    }


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_without_room_for_the_copy_it_is_not_brought_up(version: Path, small_disk: Path, tmp_path: Path) -> None:
    old = small_disk / "old"
    old.mkdir()
    shutil.copy(left_behind(version, tmp_path / "old") / "journal.db", old)
    ended = run("collect", "--data-dir", old, "--relay", "ws://127.0.0.1:1")
    assert ended.code == 1
    (line,) = [line for line in ended.err.splitlines() if not line.startswith("{")]
    assert f"to bring up {old}/journal.db and keep a copy of it needs " in line
    assert " MB free; nothing was changed: make room" in line
    assert query(old / "journal.db", "PRAGMA user_version") == [(1,)]
    assert list(old.glob("upgrades/*")) == []


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_the_copies_go_after_some_days_and_erase_names_those_that_are_there(version: Path, tmp_path: Path) -> None:
    old = left_behind(version, tmp_path / "old")
    assert run("erase", "did:plc:nobody", "--data-dir", old).code == 0
    (copy,) = (old / "upgrades").glob("journal-*")
    assert f"copy before an upgrade {copy}: " in run("erase", "did:plc:nobody", "--data-dir", old).out
    former = copy.rename(copy.with_name("journal-v1-20260101T000000Z.db"))
    newer = copy.with_name("ledger-v1-20991231T000000Z.db")
    newer.touch()
    with led_relay() as relay:
        process = start("collect", "--data-dir", old, "--relay", relay.url)
        ended = end_when(process, lambda: not former.exists(), "the old copy to go")
    assert ended.code == 0, ended.err
    assert newer.exists()


# ---- whatever runs first brings them up, be it one half or a command alone -------------------------------------------

OTHER = feed_uri("other")
OF_FEED = "SELECT count(*) FROM posts WHERE doc ->> '$.origins[0].kind' = 'feed'"


@pytest.mark.parametrize("flags", [(), ("--due",)])
@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_a_fetch_without_a_service_brings_them_up(version: Path, flags: tuple[str, ...], tmp_path: Path) -> None:
    old = left_behind(version, tmp_path / "old")
    with appview_server() as appview:
        appview.feeds[OTHER] = english_posts(5)
        known: dict[str, Any] = {"feeds__lists": json.dumps({"other": OTHER}), "feeds__at": "00:00"}
        ended = run("fetch", "other", *flags, "--data-dir", old, appview__url=appview.url, feeds__zone="UTC", **known)
    assert ended.code == 0, ended.err
    assert query(old / "posts.db", OF_FEED) == [(5,)]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_a_collecting_half_alone_brings_them_up(version: Path, tmp_path: Path) -> None:
    with led_relay() as relay:
        process = start("collect", "--data-dir", left_behind(version, tmp_path / "old"), "--relay", relay.url)
        ended = end_when(process, lambda: relay.asked, "it to connect")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_a_labelling_half_alone_brings_them_up(version: Path, model: tuple[str, Path], tmp_path: Path) -> None:
    old = left_behind(version, tmp_path / "old")
    ended = run("label", "--drain", "--data-dir", old, "--model-url", model[0], "--model", "mock")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    "command",
    [("report", "--out", "OUT.html"), ("export", "--format", "csv", "--out", "OUT"), ("estimate",), ("plan",),
     ("coverage",), ("status",)],
)  # fmt: skip
@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_what_only_reads_does_its_work_or_says_who_brings_them_up(
    version: Path, command: tuple[str, ...], tmp_path: Path
) -> None:
    old = left_behind(version, tmp_path / "old")
    words = [word.replace("OUT", str(tmp_path / "out")) for word in command]
    ended = run(*words, "--data-dir", old)
    assert ended.code == 0 or (ended.code == 2 and "brings it up" in ended.err), ended.err
