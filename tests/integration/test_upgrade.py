"""A data directory of a former version is brought up by whatever runs first, be it one half or one command alone."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from civicsky import ledger, store, tables
from support.appview_server import appview_server
from support.command import end_when, query, run, start
from support.led import led_relay
from support.shown import english_posts, feed_uri

FEED = feed_uri("other")


@pytest.fixture
def former(tmp_path: Path) -> Path:
    """As v0.1.0 left it: the first steps of each schema, which are kept as they were."""
    schemas = {"journal.db": tables.SCHEMA, "ledger.db": ledger.SCHEMA, "posts.db": store.SCHEMA}
    for name, schema in schemas.items():
        with closing(sqlite3.connect(tmp_path / name)) as db:
            db.executescript(
                f"PRAGMA journal_mode=WAL;{schema.steps[0]};"
                f"PRAGMA application_id={schema.application_id};PRAGMA user_version=1"
            )
    return tmp_path


@pytest.mark.parametrize("flags", [(), ("--due",)])
def test_a_fetch_without_a_service_brings_it_up(flags: tuple[str, ...], former: Path) -> None:
    with appview_server() as appview:
        appview.feeds[FEED] = english_posts(5)
        known: dict[str, Any] = {"feeds__lists": f'{{"other": "{FEED}"}}', "feeds__at": "00:00", "feeds__zone": "UTC"}
        ended = run("fetch", "other", *flags, "--data-dir", former, appview__url=appview.url, **known)
    assert ended.code == 0, ended.err
    assert query(former / "posts.db", "SELECT count(*) FROM posts") == [(5,)]


def test_a_collecting_half_alone_brings_it_up(former: Path) -> None:
    with led_relay() as relay:
        process = start("collect", "--data-dir", former, "--relay", relay.url)
        ended = end_when(process, lambda: relay.asked, "it to connect")
    assert ended.code == 0, ended.err


def test_a_labelling_half_alone_brings_it_up(former: Path, model: tuple[str, Path]) -> None:
    ended = run("label", "--drain", "--data-dir", former, "--model-url", model[0], "--model", "mock")
    assert ended.code == 0, ended.err
