"""Databases that earlier versions left behind are taken up where they were."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from support.appview_server import appview_server
from support.command import LAST_SEQ, end_when, query, run, start
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
