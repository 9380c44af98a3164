"""`civicsky hydrate --counts`: labelled posts are counted once at each age, and what is not shown has no count."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from civicsky import counting, datadir, inbox
from civicsky.counting import age_name
from civicsky.loading import load
from civicsky.model import parse_time
from conftest import Client, Mongod
from support.appview_server import AppViewServer, Trouble, appview_server
from support.asked import ASKS, GIVES_UP, asked, collected, know, labelled, post_uri, rkey
from support.command import end_when, query, run, until
from support.drawing import draws_first
from support.led import NOW, Led, all_told, in_journal, in_ledger, led_relay, prune, service

HOURS = [300.0, 203.0, 169.0, 100.0, 59.0, 25.0, 2.0]
"""Ages of posts 0 to 6: 1 and 2 are due for 7d, 4 and 5 for 24h."""


@pytest.fixture
def relay() -> Iterator[Led]:
    with led_relay() as led:
        yield led


@pytest.fixture
def appview() -> Iterator[AppViewServer]:
    with appview_server() as server:
        yield server


def count(folder: Path, appview: AppViewServer, **settings: Any) -> dict[str, Any]:
    ended = run("hydrate", "--counts", "--json", "--data-dir", folder, appview__url=appview.url, **{**ASKS, **settings})
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def ages(found: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    return {one["name"]: (one["due"], one["counted"], one["not_shown"]) for one in found["ages"]}


def snapshots(folder: Path) -> list[tuple[str, str, int]]:
    rows = query(folder / "posts.db", "SELECT uri, why, doc ->> '$.likes' FROM snapshots")
    return sorted((uri.rpartition("/")[2], why, likes) for uri, why, likes in rows)


@pytest.fixture(params=["sqlite", "mongo"])
def store(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "sqlite":
        return {}
    server: Mongod = request.getfixturevalue("mongod")
    return {"store__mongo_uri": server.uri, "store__mongo_database": request.getfixturevalue("mongo_database")}


def stored(folder: Path, store: dict[str, Any]) -> list[tuple[str, str, int]]:
    if not store:
        return snapshots(folder)
    with Client(store["store__mongo_uri"], tz_aware=True) as db:
        found = [*db[store["store__mongo_database"]].snapshots.find()]
    return sorted((one["uri"].rpartition("/")[2], one["why"], one["likes"]) for one in found)


def test_labelled_posts_are_counted_exactly_once_at_each_age_in_either_store(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path, store: dict[str, Any]
) -> None:
    collected(tmp_path, relay, HOURS)
    labelled(tmp_path, model, **store)
    know(appview, tmp_path)
    appview.likes = {post_uri(n): 100 + n for n in range(7)}
    assert ages(count(tmp_path, appview, **store)) == {"24h": (2, 2, 0), "7d": (2, 2, 0)}
    expected = sorted([(rkey(n), "7d", 100 + n) for n in (1, 2)] + [(rkey(n), "24h", 100 + n) for n in (4, 5)])
    assert stored(tmp_path, store) == expected
    assert sorted(asked(appview)) == sorted(post_uri(n) for n in (1, 2, 4, 5)), "nobody else was asked about"
    appview.likes = {}
    assert ages(count(tmp_path, appview, **store)) == {"24h": (0, 0, 0), "7d": (0, 0, 0)}
    assert stored(tmp_path, store) == expected
    assert len(asked(appview)) == 4


def test_a_snapshot_says_what_was_counted_and_when_it_was_truly_asked(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    collected(tmp_path, relay, [30.0])
    labelled(tmp_path, model)
    know(appview, tmp_path)
    label = {"src": "did:plc:mod", "val": "rude", "cts": "2026-11-22T12:00:00.000Z"}
    appview.labels[post_uri(0)] = [label, {**label, "src": post_uri(0).split("/")[2], "val": "own"}]
    count(tmp_path, appview)
    ((packed, post),) = query(
        tmp_path / "posts.db", "SELECT snapshots.doc, posts.doc FROM snapshots JOIN posts ON posts._id = snapshots.uri"
    )
    found = json.loads(packed)
    assert {name: found[name] for name in ("why", "rank", "likes", "reposts", "replies", "quotes")} == {
        "why": "24h", "rank": None, "likes": 1, "reposts": 2, "replies": 3, "quotes": 4,
    }  # fmt: skip
    at = parse_time(found["at"])
    assert at is not None
    assert at > NOW, "not when the post became a day old"
    assert json.loads(post)["moderation"] == [{"source": "did:plc:mod", "value": "rude", "at": label["cts"]}]


def test_posts_without_a_label_are_not_counted(relay: Led, appview: AppViewServer, tmp_path: Path, model: Any) -> None:
    collected(tmp_path, relay, [30.0, 29.0, 28.0])
    know(appview, tmp_path)
    draws_first(tmp_path, map(post_uri, range(3)))
    labelled(tmp_path, model, sample__posts_per_day=1)
    ((n,),) = query(tmp_path / "posts.db", "SELECT count(*) FROM posts WHERE doc ->> '$.labels' <> '{}'")
    assert 0 < n < 3, "the test needs posts that were not drawn"
    assert ages(count(tmp_path, appview))["24h"] == (n, n, 0)


def test_counts_are_taken_while_the_service_runs_which_imports_them_once(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    collected(tmp_path, relay, HOURS)
    labelled(tmp_path, model)
    know(appview, tmp_path)
    process = service(tmp_path, relay, model)
    until(lambda: len(relay.asked) == 2, "the service to run")
    found = count(tmp_path, appview)
    assert found["store"]["why"] == "the running service tells the store"
    assert ages(count(tmp_path, appview)) == {"24h": (0, 0, 0), "7d": (0, 0, 0)}, "told or not, they are known"
    end_when(process, lambda: len(snapshots(tmp_path)) == 4, "the service to store the counts")
    assert [(why, key) for key, why, _ in snapshots(tmp_path)].count(("24h", rkey(4))) == 1
    assert len(asked(appview)) == 4


def test_what_a_killed_one_left_in_the_inbox_is_not_counted_again_and_is_imported(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    collected(tmp_path, relay, [30.0, 29.0])
    labelled(tmp_path, model)
    know(appview, tmp_path)
    item = inbox.Item(1, post_uri(0), "cid", 0, 9, 8, 7, 6, [], "")
    inbox.write(tmp_path, inbox.Header("counts", "24h", "", NOW, complete=True, why="end", pages=1), [item])
    assert ages(count(tmp_path, appview))["24h"] == (1, 1, 0)
    assert asked(appview) == [post_uri(1)]
    assert snapshots(tmp_path) == sorted([(rkey(0), "24h", 9), (rkey(1), "24h", 1)])


def test_a_post_that_is_not_shown_has_no_count_and_is_looked_up_also_when_the_journal_has_pruned_it(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    collected(tmp_path, relay, [30.0, 29.5, 29.0, 28.0])
    labelled(tmp_path, model)
    know(appview, tmp_path)
    del appview.posts[post_uri(1)], appview.posts[post_uri(2)]
    appview.profiles.discard(post_uri(2).split("/")[2])
    appview.refusals[post_uri(2).split("/")[2]] = {"error": "AccountTakedown", "message": "x"}
    until_pruned(tmp_path)
    assert ages(count(tmp_path, appview))["24h"] == (4, 2, 2)
    assert snapshots(tmp_path) == sorted([(rkey(0), "24h", 1), (rkey(3), "24h", 1)])
    rows = query(tmp_path / "posts.db", "SELECT _id, state FROM posts")
    assert {uri.rpartition("/")[2]: state for uri, state in rows} == {
        rkey(0): "live", rkey(1): "deleted", rkey(2): "hidden", rkey(3): "live",
    }  # fmt: skip
    assert ages(count(tmp_path, appview))["24h"] == (0, 0, 0), "and is not asked about for ever"


def until_pruned(folder: Path) -> None:
    asyncio.run(prune(folder))
    assert in_journal(folder) == {}


def test_a_deleted_posts_snapshots_vanish(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    collected(tmp_path, relay, HOURS)
    labelled(tmp_path, model)
    know(appview, tmp_path)
    count(tmp_path, appview)
    process = service(tmp_path, relay, model)
    until(lambda: len(relay.asked) == 2, "the service to run")
    relay.delete(rkey(4), did=post_uri(4).split("/")[2], at=NOW)
    end_when(process, lambda: in_ledger(tmp_path)[rkey(4)] == "deleted" and all_told(tmp_path), "the deletion")
    assert sorted(key for key, _, _ in snapshots(tmp_path)) == sorted(rkey(n) for n in (1, 2, 5))
    assert query(tmp_path / "journal.db", "SELECT count(*) FROM snapshot WHERE rkey = ?", rkey(4)) == [(0,)]


def test_an_api_that_cannot_be_asked_ends_with_1_and_what_was_got_is_kept(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    collected(tmp_path, relay, [40.0 - n / 10 for n in range(30)])
    labelled(tmp_path, model)
    know(appview, tmp_path)
    appview.stumbles[post_uri(27)] = Trouble(status=503, headers=GIVES_UP)
    ended = run("hydrate", "--counts", "--data-dir", tmp_path, appview__url=appview.url, **ASKS)
    assert ended.code == 1
    assert "24h: 30 due, 25 counted, 0 not shown\n" in ended.out
    assert f"not all could be asked for: public API at {appview.url} answers HTTP 503" in ended.out
    assert len(snapshots(tmp_path)) == 25
    appview.stumbles.clear()
    assert ages(count(tmp_path, appview))["24h"] == (5, 5, 0)
    assert len(snapshots(tmp_path)) == 30


def test_many_posts_are_counted_in_files_of_a_bounded_size(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected(tmp_path, relay, [40.0 - n / 10 for n in range(60)])
    labelled(tmp_path, model)
    know(appview, tmp_path)
    monkeypatch.setattr(counting, "PER_FILE", 30)
    flags = {"data_dir": tmp_path, "appview.url": appview.url, "appview.per_second": 1000.0}
    done = asyncio.run(counting.count(load(None, flags)))
    assert done.good
    sizes = [len(inbox.read(path)[1]) for path in inbox.files(tmp_path)]
    assert sum(sizes) == 60
    assert max(sizes) <= 30
    assert len(snapshots(tmp_path)) == 60


@pytest.mark.parametrize(
    ("hours", "name"), [(24, "24h"), (168, "7d"), (1, "1h"), (36, "36h"), (48, "2d"), (100, "100h")]
)
def test_an_age_has_a_name(hours: int, name: str) -> None:
    assert age_name(hours) == name


def test_a_second_one_at_a_time_is_refused(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    collected(tmp_path, relay, [30.0])
    labelled(tmp_path, model)
    with datadir.locked(tmp_path, ("counts",)):
        ended = run("hydrate", "--counts", "--data-dir", tmp_path, appview__url=appview.url, **ASKS)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "the role 'counts' is held by" in ended.err
    assert asked(appview) == []


def test_a_folder_without_data_is_told(tmp_path: Path) -> None:
    ended = run("hydrate", "--counts", "--data-dir", tmp_path)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "holds no journal.db" in ended.err
