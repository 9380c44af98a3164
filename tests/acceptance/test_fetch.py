"""`civicsky fetch` by the installed command: 999 posts are 999 rows, whoever imports them, and failures stay apart."""

import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from civicsky import datadir
from conftest import Client, Mongod
from support.appview_server import AppViewServer, FeedPage, Trouble, appview_server
from support.command import CIVICSKY, Ended, end_when, environment, finish, query, run, start, until
from support.frames import post
from support.led import (
    FIRST,
    A,
    Led,
    all_told,
    balance_closes,
    counts,
    files_that_hold,
    led_relay,
    service,
    three_posts,
)
from support.shown import credentials, english_posts, feed_uri, foreign_posts, shown, uri_of

TODAY, OTHER = feed_uri("today"), feed_uri("other")
QUICK: dict[str, Any] = {
    "feeds__lists": json.dumps({"today": TODAY, "other": OTHER}), "feeds__retry_seconds": 0.01,
    "feeds__poll_seconds": 0.05, "appview__per_second": 1000,
}  # fmt: skip
TWELVE_HOURS_AGO = {"feeds__at": f"{datetime.now(UTC) - timedelta(hours=12):%H:%M}", "feeds__zone": "UTC"}
"""The day's time, so that none comes while a test runs."""
STORED = "SELECT count(*) FROM posts WHERE doc ->> '$.state' = 'live'"
SNAPSHOTS = "SELECT n, count(*) FROM (SELECT count(*) AS n FROM snapshots GROUP BY uri) GROUP BY n"


@pytest.fixture
def appview() -> Iterator[AppViewServer]:
    """The feed `today` is of 999 English posts on 11 pages, since one of them is short."""
    with appview_server() as told:
        posts = english_posts(999)
        ends = [100, 200, 250, *range(350, 999, 100), 999]
        pages = [posts[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
        told.pages[TODAY] = [FeedPage(page, str(n) if n < 10 else None) for n, page in enumerate(pages)]
        assert len(pages) == 11
        told.feeds[OTHER] = english_posts(20, first=2000)
        yield told


@pytest.fixture
def relay() -> Iterator[Led]:
    with led_relay() as led:
        yield led


def fetch(appview: AppViewServer, folder: Path, *words: str | Path | float, **settings: Any) -> Ended:
    """Run the command; the feed `today` begins anew each time."""
    appview.calls.clear()
    return run("fetch", *words, "--data-dir", folder, appview__url=appview.url, **{**QUICK, **settings})


def feeds_balance(folder: Path) -> bool:
    """Whether the items that were fetched are the sum of what became of them."""
    found = counts(folder, "feed")
    return balance_closes(folder) and 2 * found["received"] == sum(found.values())


def rows(folder: Path) -> tuple[int, dict[int, int]]:
    """(posts in the store, snapshots of a post -> of how many posts)."""
    ((n,),) = query(folder / "posts.db", STORED)
    return n, dict(query(folder / "posts.db", SNAPSHOTS))


@contextmanager
def held(folder: Path, role: datadir.Role) -> Iterator[None]:
    """Somebody else has a role's lock."""
    folder.mkdir(exist_ok=True)
    with datadir.locked(folder, (role,)):
        yield


# ---- the main job ----------------------------------------------------------------------------------------------------


def test_999_posts_in_11_pages_are_999_rows_and_twice_999_with_two_snapshots_each(
    appview: AppViewServer, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    first = fetch(appview, folder)
    assert first.code == 0, first.err
    assert first.out.startswith(
        "today: 999 fetched on 11 pages (complete): 999 new, 0 known, 0 rejected, 0 failed, 100.0 %"
    )
    assert "\nstore: 999 written, 0 stale, 0 duplicate, 0 failed\n" in first.out
    assert rows(folder) == (999, {1: 999})
    second = fetch(appview, folder)
    assert second.code == 0, second.err
    assert ": 0 new, 999 known, 0 rejected, 0 failed, 100.0 %" in second.out
    assert rows(folder) == (999, {2: 999})
    assert feeds_balance(folder)
    assert len(list((folder / "inbox").glob("2*-today.jsonl"))) == 2
    hours = [json.loads(doc) for (doc,) in query(folder / "posts.db", "SELECT doc FROM hours")]
    assert sum(one["counts"]["feed"]["known"] for one in hours if "known" in one["counts"]["feed"]) == 999
    ((runs,),) = query(folder / "posts.db", "SELECT count(*) FROM runs")
    assert runs > 0, "the store can tell of which version it is"


@pytest.mark.mongo
def test_999_posts_are_999_documents_of_a_real_mongod_and_twice_999(
    appview: AppViewServer, tmp_path: Path, mongod: Mongod, mongo_database: str
) -> None:
    store = {"store__mongo_uri": mongod.uri, "store__mongo_database": mongo_database}
    for snapshots in (1, 2):
        ended = fetch(appview, tmp_path / "data", "--json", **store)
        assert ended.code == 0, ended.err
        told = json.loads(ended.out)
        (feed,) = told["feeds"]
        assert (feed["fetched"], feed["complete"], feed["imported"]) == (999, True, True)
        assert (feed["new"], feed["known"]) == ((999, 0) if snapshots == 1 else (0, 999))
        assert set(told["store"]) == {"written", "stale", "duplicate", "failed", "why"}
        assert told["store"]["failed"] == 0
        with Client(mongod.uri) as db:
            posts = list(db[mongo_database].posts.find({}, {"origins": 1, "state": 1}))
            shots = Counter(doc["uri"] for doc in db[mongo_database].snapshots.find({}, {"uri": 1}))
        assert len(posts) == 999
        assert {post["state"] for post in posts} == {"live"}
        assert {origin["name"] for post in posts for origin in post["origins"]} == {"today"}
        assert Counter(shots.values()) == {snapshots: 999}


@pytest.mark.parametrize("halves", ["run", "collect"])
def test_while_the_service_runs_it_imports_what_is_fetched(
    halves: str, appview: AppViewServer, relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    three_posts(relay)
    words: list[str | Path] = ["--relay", relay.url, "--data-dir", folder]
    words += ["--model-url", model[0], "--model", "mock"] if halves == "run" else []
    process = start(halves, *words, source__start="window", **QUICK)
    until(lambda: query(folder / "journal.db", "SELECT 1 FROM post"), "the service to collect")
    for n in (1, 2):
        ended = fetch(appview, folder)
        assert ended.code == 0, ended.err
        assert f": {999 if n == 1 else 0} new, {0 if n == 1 else 999} known" in ended.out
        assert query(folder / "journal.db", "SELECT count(*) FROM fetched WHERE imported_at IS NOT NULL") == [(n,)]
        if halves == "run":
            assert "store: the running service tells the store" in ended.out
    until(lambda: rows(folder) == (1002, {2: 999}), "the store to have all of them")
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 0
    assert feeds_balance(folder)


def test_what_the_firehose_brought_is_known_and_one_document_with_both_origins(
    appview: AppViewServer, relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    three_posts(relay)
    end_when(service(folder, relay, model), lambda: all_told(folder), "all to be stored")
    ((record,),) = query(
        folder / "posts.db", "SELECT doc ->> '$.text' FROM posts WHERE _id = ?", f"at://{A}/app.bsky.feed.post/{FIRST}"
    )
    shown_too = json.loads(shown(post(record), 1))
    shown_too["post"] |= {"uri": f"at://{A}/app.bsky.feed.post/{FIRST}"}
    appview.pages[TODAY] = [FeedPage([json.dumps(shown_too).encode()], None)]
    ended = fetch(appview, folder)
    assert ": 0 new, 1 known" in ended.out
    ((origins,),) = query(
        folder / "posts.db", "SELECT doc ->> '$.origins' FROM posts WHERE _id = ?", shown_too["post"]["uri"]
    )
    assert [origin["kind"] for origin in json.loads(origins)] == ["firehose", "feed"]


def test_the_limit_is_kept_to(appview: AppViewServer, tmp_path: Path) -> None:
    ended = fetch(appview, tmp_path / "data", "--limit", 120)
    assert ended.code == 0, ended.err
    assert "120 fetched on 2 pages (the first ones only: --limit)" in ended.out
    assert rows(tmp_path / "data") == (120, {1: 120})


def test_rejected_and_failed_items_are_told_by_reason(appview: AppViewServer, tmp_path: Path) -> None:
    adult = {"$type": "com.atproto.label.defs#selfLabels", "values": [{"val": "porn"}]}
    odd = [
        shown(post("A plain English sentence", labels=adult), 3000),
        b"{}",
        shown(post(""), 3001),
    ]
    appview.feeds[OTHER] = [*english_posts(30, first=2000), *foreign_posts(9, first=2100), *odd]
    ended = fetch(appview, tmp_path / "data", "other", "--json")
    (feed,) = json.loads(ended.out)["feeds"]
    assert (
        feed["fetched"]
        == 42
        == feed["new"] + feed["known"] + sum(feed["rejected"].values()) + sum(feed["failed"].values())
    )
    assert feed["rejected"] == {"language": 9, "adult": 1, "no_text": 1}
    assert feed["failed"] == {"bad_field": 1}
    assert feed["english_share"] == 30 / 39


# ---- failures --------------------------------------------------------------------------------------------------------


def test_one_feeds_failure_ends_with_1_and_the_other_is_imported_all_the_same(
    appview: AppViewServer, tmp_path: Path
) -> None:
    appview.breaks[TODAY] = [None, None, *[Trouble(502)] * 9]
    ended = fetch(appview, tmp_path / "data", "today", feed_uri("nobody"), "other")
    assert ended.code == 1
    lines = ended.out.split("\n")
    assert lines[0].startswith("today: 200 fetched on 2 pages (not complete: public API at http://127.0.0.1:")
    assert "HTTP 502): 200 new" in lines[0]
    assert lines[1].startswith(f"{feed_uri('nobody')}: nothing fetched: the public API knows no feed")
    assert lines[2].startswith("other: 20 fetched on 1 page (complete): 20 new")
    assert rows(tmp_path / "data") == (220, {1: 220})
    assert [row[0] for row in query(tmp_path / "data" / "journal.db", "SELECT complete FROM fetched ORDER BY at")] == [
        0,
        1,
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["tody"],
        ["--limit", "0"],
        ["--limit", "5", "--from-local"],
        ["--due"],
        ["--due", "--limit", "5"],
        ["https://bsky.app/x"],
    ],
)
def test_wrong_usage_ends_with_2_and_fetches_nothing(words: list[str], appview: AppViewServer, tmp_path: Path) -> None:
    ended = fetch(appview, tmp_path / "data", *words)
    assert ended.code == 2
    assert not appview.calls


def test_two_fetches_at_once_are_refused(appview: AppViewServer, tmp_path: Path) -> None:
    with held(tmp_path / "data", "fetch"):
        ended = fetch(appview, tmp_path / "data")
    assert (ended.code, ended.out) == (2, "")
    assert re.fullmatch(r"civicsky: data directory .*: the role 'fetch' is held by .*\n", ended.err)
    assert not appview.calls


def test_success_is_not_said_before_the_import_is_committed(appview: AppViewServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with held(folder, "collect"):
        ended = fetch(appview, folder, "other", feeds__import_seconds=1)
    assert ended.code == 1
    assert "the running service has not imported it yet; it will" in ended.out
    assert " new" not in ended.out
    ended = fetch(appview, folder, "today")
    assert ended.code == 0, ended.err
    assert rows(folder) == (1019, {1: 1019}), "what waited is imported by the next one"


def test_a_service_that_ends_meanwhile_leaves_the_import_to_us(appview: AppViewServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with held(folder, "collect"):
        process = start("fetch", "other", "--data-dir", folder, appview__url=appview.url, **QUICK)
        until(lambda: list((folder / "inbox").glob("2*")), "the file to be there")
    ended = finish(process)
    assert ended.code == 0, ended.err
    assert rows(folder) == (20, {1: 20})


def test_while_a_labelling_half_runs_the_store_is_its_business(appview: AppViewServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with held(folder, "label"):
        ended = fetch(appview, folder, "other")
    assert ended.code == 0, ended.err
    assert "store: the running service tells the store" in ended.out
    assert not (folder / "posts.db").exists()


def test_a_store_that_is_away_is_told_later_and_the_import_stands(appview: AppViewServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    away = {"store__mongo_uri": "mongodb://127.0.0.1:1/", "store__timeout_seconds": 0.2}
    ended = fetch(appview, folder, "other", **away)
    assert ended.code == 1
    assert "20 new" in ended.out
    assert "store: it follows when civicsky runs next: " in ended.out
    ended = fetch(appview, folder, "other")
    assert ended.code == 0, ended.err
    assert rows(folder) == (20, {2: 20})


def test_a_fetch_killed_in_its_midst_leaves_nothing_half_done(appview: AppViewServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    appview.breaks[TODAY] = [None, None, Trouble(drip=True)]
    process = start("fetch", "--data-dir", folder, appview__url=appview.url, **QUICK)
    until(lambda: len(appview.named("getFeed")) == 3, "the third page to be asked for")
    process.kill()
    finish(process)
    assert not (folder / "inbox").exists()
    assert fetch(appview, folder).code == 0
    assert rows(folder) == (999, {1: 999})


def test_where_no_service_runs_a_fetch_keeps_to_the_journals_retention(appview: AppViewServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    appview.feeds[OTHER] = [*english_posts(3), *foreign_posts(2, first=100)]
    days = {"journal__reject_days": 0, "journal__post_days": 0}
    rejects = "SELECT count(*) FROM reject"
    assert fetch(appview, folder, "other", **days).code == 0
    assert query(folder / "journal.db", rejects) == [(2,)], "before the store was told nothing of it is pruned"
    assert fetch(appview, folder, "other", **days).code == 0
    assert query(folder / "journal.db", rejects) == [(0,)]
    assert query(folder / "journal.db", "SELECT count(*) FROM change WHERE n <= 3") == [(0,)]
    assert rows(folder) == (3, {2: 3})


# ---- again, without the network --------------------------------------------------------------------------------------


def test_from_local_imports_the_newest_file_again_without_the_network(appview: AppViewServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    fetch(appview, folder, "other", feeds__label_all="false")
    assert "20 new" in fetch(appview, folder, "--limit", 10).out.replace("10 new", "20 new")
    for file in folder.glob("*.db*"):
        file.unlink()
    appview.calls.clear()
    ended = fetch(appview, folder, "today", OTHER, "--from-local")
    assert ended.code == 0, ended.err
    assert "today: 10 fetched on 1 page (the first ones only: --limit)" in ended.out
    assert "other: 20 fetched on 1 page (complete): 20 new" in ended.out
    assert not appview.calls
    assert rows(folder) == (30, {1: 30})
    ended = fetch(appview, folder, "other", "--from-local")
    assert ": 0 new, 20 known" in ended.out
    assert rows(folder) == (30, {1: 30}), "one snapshot for each fetch, however often it is imported"


def test_from_local_says_when_there_is_nothing(appview: AppViewServer, tmp_path: Path) -> None:
    ended = fetch(appview, tmp_path / "data", "--from-local")
    assert ended.code == 1
    assert ended.out == "today: nothing fetched: no fetched file of it is there; leave out --from-local\n"


def test_from_local_while_the_service_runs(appview: AppViewServer, relay: Led, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    process = start("collect", "--relay", relay.url, "--data-dir", folder, **QUICK)
    assert fetch(appview, folder, "other").code == 0
    ended = fetch(appview, folder, "other", "--from-local")
    assert ": 0 new, 20 known" in ended.out, ended.err
    assert not appview.calls
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 0


# ---- once a day ------------------------------------------------------------------------------------------------------


def test_due_is_what_was_not_wholly_fetched_since_the_days_time(appview: AppViewServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    daily = {**TWELVE_HOURS_AGO, "feeds__daily": '["today", "other"]', "feeds__attempts": 1}
    appview.breaks[TODAY] = [None, Trouble(502)]
    ended = fetch(appview, folder, "--due", **daily)
    assert ended.code == 1
    assert "today: 100 fetched on 1 page (not complete" in ended.out
    assert "other: 20 fetched" in ended.out
    ended = fetch(appview, folder, "other", "today", "--limit", 3, **daily)
    ended = fetch(appview, folder, "--due", **daily)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("today: 999 fetched on 11 pages (complete)"), "a part is not enough"
    assert "other" not in ended.out
    for _time in range(2):
        ended = fetch(appview, folder, "--due", **daily)
        assert (ended.code, ended.out) == (0, "nothing is due\n")
        assert not appview.calls


def test_what_was_fetched_and_waits_to_be_imported_is_not_due(appview: AppViewServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    daily = {**TWELVE_HOURS_AGO, "feeds__daily": '["other"]', "feeds__import_seconds": 0.1}
    with held(folder, "collect"):
        assert fetch(appview, folder, **daily).code == 1
        assert fetch(appview, folder, "--due", **daily).out == "nothing is due\n"


def test_what_a_killed_fetch_left_in_the_inbox_is_imported_by_the_next_that_looks(
    appview: AppViewServer, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    daily = {**TWELVE_HOURS_AGO, "feeds__daily": '["other"]'}
    assert fetch(appview, folder, **daily, fault="journal.commit:1").code == -9
    ended = fetch(appview, folder, "--due", **daily)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("nothing is due\nstore: 20 written")
    assert not appview.calls
    assert rows(folder) == (20, {1: 20})


def test_a_store_that_was_away_is_told_by_the_next_that_looks(appview: AppViewServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    daily = {**TWELVE_HOURS_AGO, "feeds__daily": '["other"]'}
    away = {"store__mongo_uri": "mongodb://127.0.0.1:1/", "store__timeout_seconds": 0.2}
    assert fetch(appview, folder, **daily, **away).code == 1
    assert fetch(appview, folder, "--due", **daily, **away).code == 1, "nothing is due, and the work is not done"
    assert fetch(appview, folder, "--due", **daily).code == 0
    assert rows(folder) == (20, {1: 20})
    assert fetch(appview, folder, "--due", **daily).out == "nothing is due\n"


# ---- the login -------------------------------------------------------------------------------------------------------


def test_a_private_feed_is_fetched_with_a_login_that_no_output_and_no_process_list_shows(
    appview: AppViewServer, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    appview.private.add(OTHER)
    appview.logins["me.test"] = "abcd-efgh"
    login = {"appview__login_url": appview.url, "log__level": "debug"}
    process = start(
        "fetch", "other", "--data-dir", folder, appview__url=appview.url, appview__handle="me.test",
        appview__app_password="abcd-efgh", **QUICK, **login,
    )  # fmt: skip
    shown_by_ps = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    ended = finish(process)
    assert ended.code == 0, ended.err
    second = fetch(appview, folder, "other", appview__credentials_file=credentials(tmp_path), **login)
    assert second.code == 0, second.err
    assert [call.method.rpartition(".")[2] for call in appview.calls] == ["getFeed", "getFeed"], "the session is kept"
    assert rows(folder) == (20, {2: 20})
    tokens = appview.access | appview.refresh
    assert len(tokens) == 2
    for secret in ["abcd-efgh", *tokens]:
        assert secret not in ended.out + ended.err + second.out + second.err
        assert secret.encode() not in shown_by_ps
    assert files_that_hold(folder, "abcd-efgh") == []
    for token in tokens:
        assert files_that_hold(folder, token) == ["session.json"]
    assert (folder / "session.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("what", ["missing", "open to others", "broken"])
def test_a_bad_credentials_file_disturbs_nothing_that_needs_no_login(
    what: str, appview: AppViewServer, tmp_path: Path
) -> None:
    file = tmp_path / "none" if what == "missing" else credentials(tmp_path, "%", 0o644 if what[0] == "o" else 0o600)
    bad: dict[str, Any] = {"appview__credentials_file": file}
    assert fetch(appview, tmp_path / "data", "other", **bad).code == 0
    for words in (["status"], ["coverage"], ["rejects"], ["fetch", "--from-local", "other"]):
        ended = run(*words, "--data-dir", tmp_path / "data", **bad, **QUICK)
        assert ended.code == 0, ended.err
    assert run("config", **bad).code == 0
    appview.private.add(TODAY)
    ended = fetch(appview, tmp_path / "data", "today", "other", **bad)
    assert ended.code == 1
    assert f"today: nothing fetched: credentials file {file}" in ended.out
    assert "other: 20 fetched" in ended.out


def test_credentials_are_not_read_at_import_or_by_a_fetch_that_needs_none(
    appview: AppViewServer, tmp_path: Path
) -> None:
    """A file that nobody opens: a pipe would keep whoever does waiting for ever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    ended = fetch(appview, tmp_path / "data", "other", appview__credentials_file=pipe, timeout=60)
    assert ended.code == 0, ended.err


# ---- on a terminal ---------------------------------------------------------------------------------------------------


def test_the_bar_is_shown_on_a_terminal_only(appview: AppViewServer, tmp_path: Path) -> None:
    ended = fetch(appview, tmp_path / "data", "other")
    assert "━" not in ended.err
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [CIVICSKY, "fetch", "other", "--data-dir", tmp_path / "data"],
        env=environment(appview__url=appview.url, **QUICK) | {"TERM": "xterm", "LANG": "C.UTF-8"},
        stdout=subprocess.DEVNULL, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            while part := terminal.read(4096):
                seen += part
        except OSError:  # the other end is closed
            pass
    assert process.wait() == 0
    assert "20/20" in seen.decode()
    assert "━" in seen.decode()


def test_hostile_words_of_the_api_do_not_reach_the_terminal_as_they_are(appview: AppViewServer, tmp_path: Path) -> None:
    body = b'{"error": "UnknownFeed", "message": "\\u001b]0;evil\\u0007\\u202e"}'
    appview.breaks[OTHER] = [Trouble(400, body=body)]
    ended = fetch(appview, tmp_path / "data", "other")
    assert ended.code == 1
    assert "evil" in ended.out
    assert not set("\x1b\x07\u202e") & set(ended.out + ended.err)


def test_the_posts_are_those_that_the_feed_showed_in_its_order(appview: AppViewServer, tmp_path: Path) -> None:
    fetch(appview, tmp_path / "data")
    found = query(tmp_path / "data" / "posts.db", "SELECT uri, doc ->> '$.rank' AS rank FROM snapshots ORDER BY rank")
    assert found == [(uri_of(n), n + 1) for n in range(999)]
