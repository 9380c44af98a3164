"""Feeds against a real HTTP server: pages to the end, all ways in which a page can be odd or fail, what is written."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from civicsky import fetch, fetch_text, inbox, paging
from civicsky.appview import AppView
from civicsky.errors import BadInput, Refused, Transient, Usage
from civicsky.fetch import Fetched
from civicsky.inbox import Header, Item
from civicsky.loading import load
from civicsky.model import now_us, parse_time
from civicsky.settings import Settings
from civicsky.views import UNREADABLE
from support.appview_server import AppViewServer, FeedPage, Trouble, appview_server
from support.frames import block_and_cid, cid_of, cid_text, link, post
from support.shown import BEGIN, english_posts, feed_uri, foreign_posts, shown, uri_of, uris, view

TODAY, OTHER = feed_uri("today"), feed_uri("other")
QUICK = {"appview.per_second": 10_000.0, "feeds.retry_seconds": 0.01, "feeds.retry_max_seconds": 0.05}
DEEP = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
HOSTILE: dict[str, bytes] = {
    "deep": DEEP,
    "half of a pair": rb'{"text": "\ud800"}',
    "a huge number": b'{"n": ' + b"9" * 10_000 + b"}",
    "a huge exponent": b'{"n": 1e999999}',
    "a list": b"[1, [2, [3]]]",
    "a text": rb'"} ] \" \ud800 ["',
    "a number": b"9" * 10_000,
    "brackets in a text": rb'{"text": "}}]]{{[[\"\\", "b": {"c": "]"}}',
    "not UTF-8": b'{"text": "\xff\xfe"}',
    "null": b"null",
}


@pytest.fixture
def server() -> Iterator[AppViewServer]:
    with appview_server() as told:
        told.handles["alice.test"] = "did:plc:feedsfeedsfeedsfeedsfeed"
        yield told


@pytest.fixture
async def api(server: AppViewServer, tmp_path: Path) -> AsyncIterator[AppView]:
    opened = AppView(settings(server, tmp_path).appview)
    yield opened
    await opened.close()


def settings(server: AppViewServer, folder: Path, **more: Any) -> Settings:
    lists = {"today": TODAY, "other": OTHER, "page": "https://bsky.app/profile/alice.test/feed/today"}
    flags = {"data_dir": folder, "appview.url": server.url, "feeds.lists": lists, "feeds.daily": ("today",), **QUICK}
    return load(None, {**flags, **{name.replace("__", "."): value for name, value in more.items()}})


async def fetched(
    server: AppViewServer, folder: Path, *names: str, limit: int | None = None, **more: Any
) -> list[Fetched]:
    """Fetch without importing."""
    said = settings(server, folder, **more)
    return await fetch._fetch_all(said, folder, fetch.feeds_of(said.feeds, names), limit)


def read(folder: Path, one: Fetched) -> tuple[Header, list[Item]]:
    return inbox.read(folder / "inbox" / one.file)


async def one(server: AppViewServer, folder: Path, limit: int | None = None, **more: Any) -> tuple[Fetched, list[Item]]:
    """How it went with the feed `today`, and what its file holds."""
    (found,) = await fetched(server, folder, limit=limit, **more)
    return found, read(folder, found)[1] if found.file else []


# ---- what a page says --------------------------------------------------------------------------------------------


async def test_a_page_gives_what_the_api_counts_and_the_record_as_it_was_written(
    api: AppView, server: AppViewServer
) -> None:
    record = post("A plain sentence", odd=b"\x00\xff", picture={"ref": link(cid_of(b"x"))})
    item = shown(record, 5, repostCount=6, replyCount=0, quoteCount=2**40)
    server.feeds[TODAY] = [item]
    page = await api.feed(TODAY)
    (got,) = page.items
    assert page.cursor is None
    assert got[:-2] == (0, uri_of(5), cid_text(block_and_cid(record)[1]), BEGIN + 5_000_000, 5, 6, 0, 2**40)
    assert json.loads(got.record)["odd"] == {"$bytes": "AP8"}
    assert got.record.encode() in item, "byte for byte"


async def test_labels_of_moderation_services_are_kept_but_neither_what_they_took_back_nor_the_authors_own(
    api: AppView, server: AppViewServer
) -> None:
    labels: list[Any] = [
        {"src": "did:plc:mod", "uri": uri_of(1), "val": "graphic-media", "cts": "2026-01-01T10:00:00+01:00"},
        {"src": "did:plc:mod", "uri": uri_of(1), "val": "spam", "cts": "2026-01-01T10:00:00Z"},
        {"src": "did:plc:mod", "uri": uri_of(1), "val": "spam", "cts": "2026-01-01T11:00:00Z", "neg": True},
        {"src": "did:plc:other", "uri": uri_of(1), "val": "spam", "cts": "yesterday", "neg": False},
        {"src": uri_of(1).split("/")[2], "uri": uri_of(1), "val": "!no-unauthenticated", "cts": "2026-01-01T10:00:00Z"},
        {"src": 5, "val": "x"}, {"val": "x"}, {"src": "did:plc:mod"}, "x", None, [[]],
    ]  # fmt: skip
    server.feeds[TODAY] = [shown(post("A plain sentence"), 1, labels=labels), shown(post("Another"), 2, labels=None)]
    first, second = (await api.feed(TODAY)).items
    assert first.moderation == [
        {"source": "did:plc:mod", "value": "graphic-media", "at": "2026-01-01T09:00:00.000Z"},
        {"source": "did:plc:other", "value": "spam", "at": ""},
    ]
    assert second.moderation == []


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_record_spoils_nothing_and_goes_on_as_it_came(
    name: str, api: AppView, server: AppViewServer, tmp_path: Path
) -> None:
    before, after = english_posts(2)
    server.feeds[TODAY] = [before, view(uri_of(9), "bafyx", HOSTILE[name]), after]
    found = (await api.feed(TODAY)).items
    assert [item.uri for item in found] == [uri_of(0), uri_of(9), uri_of(1)]
    if HOSTILE[name][:1] in b"{[" and name != "not UTF-8":
        assert found[1].record.encode() == HOSTILE[name]
    _, items = await one(server, tmp_path)
    assert [item.record for item in items] == [item.record for item in found], "and it comes through the file"


@pytest.mark.parametrize("missing", ["uri", "cid"])
@pytest.mark.parametrize("value", [None, "", 5, ["x"], {"x": {}}, "x" * 8193])
async def test_what_has_no_name_is_counted_and_takes_its_place(
    missing: str, value: Any, server: AppViewServer, tmp_path: Path
) -> None:
    first, last = english_posts(2)
    bad = json.dumps({"post": json.loads(first)["post"] | {missing: value}}).encode()
    server.feeds[TODAY] = [first, bad, b"5", b"{}", b'{"post": []}', last]
    found, items = await one(server, tmp_path)
    assert [item.uri for item in items] == [uri_of(0), "", "", "", "", uri_of(1)]
    assert items[1:5] == [UNREADABLE._replace(rank=rank) for rank in (2, 3, 4, 5)]
    assert items[5].rank == 6
    assert found.items == 6


@pytest.mark.parametrize("value", [-1, 1.5, 1e400, "7", True, None, [], {"a": {}}, 2**63])
async def test_a_count_that_is_none_is_0(value: Any, server: AppViewServer, tmp_path: Path) -> None:
    server.feeds[TODAY] = [shown(post("A plain sentence"), 1, likeCount=value, indexedAt=value)]
    _, (item,) = await one(server, tmp_path)
    assert (item.likes, item.indexed_at, item.reposts) == (0, 0, 5)


async def test_a_reposted_or_answered_post_is_that_post(api: AppView, server: AppViewServer) -> None:
    plain = json.loads(english_posts(1)[0])
    other = {"uri": uri_of(7), "cid": "bafyother", "record": {"text": "]"}}
    reason = {"$type": "app.bsky.feed.defs#reasonRepost", "by": {"did": "did:plc:b"}, "uri": "at://x", "cid": "y"}
    full = {**plain, "reason": reason, "reply": {"root": other, "parent": other}}
    server.feeds[TODAY] = [json.dumps(full).encode()]
    (item,) = (await api.feed(TODAY)).items
    assert item.uri == uri_of(0)
    assert json.loads(item.record) == plain["post"]["record"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b'{"feed": {}}', b'{"feed": [', b"<html>", b'{"feed": [], "cursor": 5}', b'{"feed": ["]}',
        b'{"feed": [], "cursor": ["x"]}', b'{"feed": []}}', b'{"feed": [], "cursor": "' + b"x" * 4001 + b'"}',
    ],
)  # fmt: skip
async def test_an_answer_that_is_no_page_is_of_no_use(body: bytes, api: AppView, server: AppViewServer) -> None:
    server.next.append(Trouble(body=body))
    with pytest.raises(BadInput, match="appview_answer"):
        await api.feed(TODAY)


# ---- pages to the end --------------------------------------------------------------------------------------------


async def test_999_posts_come_in_10_pages_of_100_and_each_has_its_rank(server: AppViewServer, tmp_path: Path) -> None:
    server.feeds[TODAY] = english_posts(999)
    found, items = await one(server, tmp_path)
    assert (found.items, found.pages, found.why) == (999, 10, "end")
    assert [item.uri for item in items] == uris(server.feeds[TODAY])
    assert [item.rank for item in items] == list(range(1, 1000))
    assert {call.query["limit"][0] for call in server.calls} == {"100"}
    assert [call.query.get("cursor", [""])[0] for call in server.calls] == ["", *map(str, range(100, 1000, 100))]


@pytest.mark.parametrize(("limit", "asked", "why"), [(250, ["100", "100", "50"], "limit"), (100, ["100"], "limit"),
                                                     (300, ["100"] * 3, "end"), (1, ["1"], "limit")])  # fmt: skip
async def test_no_more_is_asked_for_and_taken_than_is_wanted(
    limit: int, asked: list[str], why: str, server: AppViewServer, tmp_path: Path
) -> None:
    server.feeds[TODAY] = english_posts(300)
    found, items = await one(server, tmp_path, limit)
    assert (len(items), found.why) == (limit, why)
    assert [call.query["limit"][0] for call in server.calls] == asked
    assert read(tmp_path, found)[0].complete == (why == "end")


async def test_a_feed_that_gives_more_than_asked_for_is_cut(server: AppViewServer, tmp_path: Path) -> None:
    server.pages[TODAY] = [FeedPage(english_posts(20), None)]
    found, items = await one(server, tmp_path, 5)
    assert (len(items), found.why) == (5, "limit")


async def test_short_pages_are_no_end(server: AppViewServer, tmp_path: Path) -> None:
    posts = english_posts(6)
    server.pages[TODAY] = [
        FeedPage(posts[:1], "a"), FeedPage([], "b"), FeedPage([], "c"), FeedPage(posts[1:4], "d"), FeedPage([], "e"),
        FeedPage(posts[4:], None),
    ]  # fmt: skip
    found, items = await one(server, tmp_path)
    assert [item.uri for item in items] == uris(posts)
    assert (found.pages, found.why) == (6, "end")


async def test_a_post_that_is_shown_twice_counts_where_it_came_first(server: AppViewServer, tmp_path: Path) -> None:
    a, b, c, d = english_posts(4)
    server.pages[TODAY] = [FeedPage([a, b, a], "1"), FeedPage([b, c, c], "2"), FeedPage([a, d], None)]
    found, items = await one(server, tmp_path)
    assert [(item.rank, item.uri) for item in items] == [(n + 1, uri_of(n)) for n in range(4)]
    assert found.why == "end"


async def test_three_empty_pages_with_cursors_are_the_end(server: AppViewServer, tmp_path: Path) -> None:
    server.pages[TODAY] = [FeedPage(english_posts(2), "0"), *(FeedPage([], str(n)) for n in range(1, 9))]
    found, items = await one(server, tmp_path)
    assert (found.pages, found.why, len(items)) == (4, "empty", 2)
    assert read(tmp_path, found)[0].complete, "it shows no more"


async def test_three_pages_without_a_new_post_are_the_end(server: AppViewServer, tmp_path: Path) -> None:
    posts = english_posts(3)
    server.pages[TODAY] = [FeedPage(posts[: 3 - n % 2], str(n)) for n in range(9)]
    found, items = await one(server, tmp_path)
    assert (found.pages, found.why, len(items)) == (4, "repeating", 3)


async def test_a_cursor_that_came_before_is_the_end(server: AppViewServer, tmp_path: Path) -> None:
    server.pages[TODAY] = [FeedPage(english_posts(2, 2 * n), "ab"[n % 2]) for n in range(9)]
    found, items = await one(server, tmp_path)
    assert (found.pages, found.why, len(items)) == (3, "loop", 6)


async def test_a_feed_without_an_end_is_given_up_at_its_bound(
    server: AppViewServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "MAX_PAGES", 7)
    server.pages[TODAY] = [FeedPage(english_posts(1, n), str(n)) for n in range(30)]
    found, items = await one(server, tmp_path)
    assert (found.pages, found.why, len(items)) == (7, "bound", 7)
    monkeypatch.setattr(paging, "MAX_BYTES", 1000)
    server.calls.clear()
    found, items = await one(server, tmp_path)
    assert found.why == "bound"
    assert not read(tmp_path, found)[0].complete
    assert 1 <= len(items) < 7


async def test_a_feed_that_shows_nothing_leaves_no_file_and_says_so(server: AppViewServer, tmp_path: Path) -> None:
    server.feeds[TODAY] = []
    (found,) = await fetched(server, tmp_path)
    assert (found.file, found.why, found.good) == ("", "it showed no post", False)
    assert inbox.files(tmp_path) == []


# ---- pages that fail ---------------------------------------------------------------------------------------------


FAULTS: dict[str, Trouble] = {
    "429": Trouble(429), "500": Trouble(500), "502": Trouble(502), "503": Trouble(503), "408": Trouble(408),
    "not JSON": Trouble(body=b"<html>"), "cut": Trouble(cut=True), "drips": Trouble(drip=True),
    "no end": Trouble(endless=True), "redirect": Trouble(302, {"Location": "http://127.0.0.1:1/"}),
    "teapot": Trouble(418), "half a page": Trouble(body=b'{"feed": [{"post": {"uri"'),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_page_that_fails_for_a_while_is_had_in_the_end(
    fault: str, server: AppViewServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("civicsky.xrpc.MAX_ANSWER_BYTES", 3_000_000)
    server.feeds[TODAY] = english_posts(250)
    server.breaks[TODAY] = [None, FAULTS[fault], FAULTS[fault]]
    found, items = await one(server, tmp_path, appview__request_seconds=0.5 if fault == "drips" else 20)
    assert [item.uri for item in items] == uris(server.feeds[TODAY])
    assert (found.why, found.pages, len(server.calls)) == ("end", 3, 5)


@pytest.mark.parametrize("fault", ["500", "429", "not JSON"])
async def test_of_a_feed_with_a_page_that_stays_bad_what_was_got_is_kept_and_said_to_be_a_part(
    fault: str, server: AppViewServer, tmp_path: Path
) -> None:
    server.feeds[TODAY] = english_posts(250)
    server.breaks[TODAY] = [None, None, *[FAULTS[fault]] * 99]
    found, items = await one(server, tmp_path)
    assert [item.uri for item in items] == uris(server.feeds[TODAY])[:200]
    header, _ = read(tmp_path, found)
    assert (header.complete, header.pages, header.why) == (False, 2, found.why)
    assert ("cannot be used" if fault == "not JSON" else f"HTTP {fault}") in header.why
    assert not found.good
    assert len(server.calls) == 2 + 5, "five times, and no more"


@pytest.mark.parametrize("header", ["Retry-After", "Retry-After as a date", "RateLimit-Reset"])
async def test_the_wait_that_the_api_asks_for_is_kept_to_up_to_a_bound(
    header: str, server: AppViewServer, tmp_path: Path
) -> None:
    server.feeds[TODAY] = english_posts(1)

    async def waited(asked: int, most: float) -> float:
        headers = {
            "Retry-After": {"Retry-After": str(asked)},
            "Retry-After as a date": {"Retry-After": formatdate(time.time() + asked + 1, usegmt=True)},
            "RateLimit-Reset": {"RateLimit-Reset": str(int(time.time()) + asked + 1)},
        }[header]
        server.calls.clear()
        server.breaks[TODAY] = [Trouble(429, headers)]
        await one(server, tmp_path, feeds__retry_max_seconds=most)
        first, second = server.calls
        return second.at - first.at

    assert await waited(1, 30) >= 0.9
    assert await waited(1000, 0.2) < 30


async def test_pauses_double(server: AppViewServer, tmp_path: Path) -> None:
    server.feeds[TODAY] = english_posts(1)
    server.breaks[TODAY] = [Trouble(500)] * 3
    await one(server, tmp_path, feeds__retry_seconds=0.2, feeds__retry_max_seconds=9)
    at = [call.at for call in server.calls]
    pauses = [later - earlier for earlier, later in pairwise(at)]
    assert [pause >= least for pause, least in zip(pauses, (0.2, 0.4, 0.8), strict=True)] == [True] * 3


async def test_a_feed_that_nobody_knows_is_asked_for_once_and_the_remedy_is_told(
    api: AppView, server: AppViewServer, tmp_path: Path
) -> None:
    with pytest.raises(Usage, match=r"knows no feed at://did:plc:feeds.*UnknownFeed.*mend"):
        await api.feed(TODAY)
    server.calls.clear()
    (found,) = await fetched(server, tmp_path)
    assert "knows no feed" in found.why
    assert (found.file, len(server.calls)) == ("", 1)
    server.next.append(Trouble(400, body=b'{"error": "InvalidRequest", "message": "could not find feed"}'))
    with pytest.raises(Usage, match="knows no feed"):
        await api.feed(TODAY)


async def test_what_else_the_api_rejects_is_told_harmlessly(api: AppView, server: AppViewServer) -> None:
    server.next.append(Trouble(400, body='{"error": "Odd\u202e", "message": "\\u001b[2J boo"}'.encode()))
    with pytest.raises(Refused) as refused:
        await api.feed(TODAY)
    assert "Odd?: ?[2J boo" in str(refused.value)


@pytest.mark.parametrize("code", [401, 403])
async def test_a_feed_that_wants_a_login_is_given_up_with_the_remedy_when_none_is_set(
    code: int, server: AppViewServer, tmp_path: Path
) -> None:
    server.breaks[TODAY] = [Trouble(code, body=b'{"error": "AuthMissing", "message": "x"}')]
    (found,) = await fetched(server, tmp_path)
    assert f"wants a login (HTTP {code}, AuthMissing)" in found.why
    assert "CIVICSKY_APPVIEW__APP_PASSWORD" in found.why
    assert len(server.calls) == 1


@pytest.mark.parametrize("fault", ["500", "unknown", "login", "not JSON"])
@pytest.mark.parametrize("first", [True, False])
async def test_one_feeds_failure_never_spoils_anothers(
    fault: str, first: bool, server: AppViewServer, tmp_path: Path
) -> None:
    server.feeds[OTHER] = english_posts(150)
    if fault != "unknown":
        server.feeds[TODAY] = english_posts(150)
        server.breaks[TODAY] = [Trouble(401) if fault == "login" else FAULTS[fault]] * 99
    names = ("today", "other") if first else ("other", "today")
    found = {one.name: one for one in await fetched(server, tmp_path, *names)}
    assert (found["other"].why, found["other"].items) == ("end", 150)
    assert found["today"].why not in paging.ENDS
    assert [path.name for path in inbox.files(tmp_path)] == [found["other"].file]


async def test_an_api_that_cannot_be_reached_ends_each_feed_with_its_reason(tmp_path: Path) -> None:
    with appview_server() as gone:
        said = settings(gone, tmp_path, feeds__attempts=2)
    found = await fetch._fetch_all(said, tmp_path, fetch.feeds_of(said.feeds, ["today", "page"]), None)
    assert all("cannot be reached" in one.why for one in found)


# ---- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kept_as"),
    [
        ("today", "today"),
        (TODAY, "today"),
        ("https://bsky.app/profile/did:plc:feedsfeedsfeedsfeedsfeed/feed/today", "today"),
        ("https://bsky.app/profile/did:plc:feedsfeedsfeedsfeedsfeed/feed/third", feed_uri("third")),
        ("https://bsky.app/profile/alice.test/feed/third?x=y", feed_uri("third")),
        (feed_uri("third"), feed_uri("third")),
        ("page", "page"),
    ],
)
async def test_a_feed_may_be_named_by_its_name_its_uri_and_its_web_address(
    name: str, kept_as: str, server: AppViewServer, tmp_path: Path
) -> None:
    server.feeds[TODAY] = server.feeds[feed_uri("third")] = english_posts(3)
    (found,) = await fetched(server, tmp_path, name)
    header, items = read(tmp_path, found)
    assert header.name == kept_as
    assert header.uri in {TODAY, feed_uri("third")}
    assert len(items) == 3


async def test_without_a_name_the_daily_ones_are_fetched_each_once(server: AppViewServer, tmp_path: Path) -> None:
    server.feeds[TODAY] = server.feeds[OTHER] = english_posts(1)
    found = await fetched(server, tmp_path, feeds__daily=("other", TODAY, "today"))
    assert [one.name for one in found] == ["other", "today"]


@pytest.mark.parametrize(
    "name",
    [
        "tody", "", "https://bsky.app/profile/alice.test", "https://evil.test/profile/alice.test/feed/x", "\x1b[2J",
        "at://did:plc:a/app.bsky.feed.post/x", "at://a/b/c/feed/d",
    ],
)  # fmt: skip
def test_what_is_no_feed_is_wrong_usage(name: str, server: AppViewServer, tmp_path: Path) -> None:
    with pytest.raises(Usage, match=r"is not in feeds\.lists .today, other, page.") as wrong:
        fetch.feeds_of(settings(server, tmp_path).feeds, [name])
    assert "\x1b" not in str(wrong.value)


async def test_a_handle_that_nobody_has_ends_that_feed_alone(server: AppViewServer, tmp_path: Path) -> None:
    server.feeds[TODAY] = english_posts(2)
    found = await fetched(server, tmp_path, "https://bsky.app/profile/bob.test/feed/x", "today")
    assert "no account has it" in found[0].why
    assert found[1].items == 2


# ---- times, files, and what is said ------------------------------------------------------------------------------


async def test_each_fetch_has_the_time_of_its_own_call(server: AppViewServer, tmp_path: Path) -> None:
    server.feeds[TODAY] = server.feeds[OTHER] = english_posts(2)
    server.breaks[OTHER] = [Trouble(500)]
    times: list[int] = []
    for _again in range(2):
        times.append(now_us())
        found = await fetched(server, tmp_path, "today", "other", feeds__retry_seconds=0.05)
        times += [read(tmp_path, one)[0].at for one in found]
        await asyncio.sleep(0.01)
    times.append(now_us())
    assert times == sorted(set(times)), "each later than the one before"
    assert len(inbox.files(tmp_path)) == 4
    stamps = [path.name.split("-")[0] for path in inbox.files(tmp_path)]
    assert len(set(stamps)) == 4


async def test_the_file_says_what_was_asked_for_and_how_it_went(server: AppViewServer, tmp_path: Path) -> None:
    server.feeds[TODAY] = english_posts(120)
    found, _ = await one(server, tmp_path)
    header, _ = read(tmp_path, found)
    assert header == Header("feed", "today", TODAY, header.at, complete=True, why="end", pages=2)
    assert (tmp_path / "inbox" / found.file).stat().st_mode & 0o777 == 0o600
    stamp = f"{found.file[:4]}-{found.file[4:6]}-{found.file[6:11]}:{found.file[11:13]}:{found.file[13:20]}"
    assert parse_time(stamp) == header.at // 1000 * 1000


async def test_the_whole_way_is_told_in_words_and_numbers(server: AppViewServer, tmp_path: Path) -> None:
    server.feeds[TODAY] = [*english_posts(79), *foreign_posts(20, first=500), b"{}"]
    server.breaks[OTHER] = [Trouble(500, {"x": "y"}, b"\x1b[2J")] * 9
    report = await fetch.fetch(settings(server, tmp_path), ["today", "other"])
    text = fetch_text.as_text(report)
    told, other, store = text.split("\n")
    assert told.startswith(
        "today: 100 fetched on 1 page (complete): 79 new, 0 known, 20 rejected (language 20), 1 failed (bad_field 1), "
        "79.8 % English; inbox/"
    )
    assert other.startswith("other: nothing fetched: public API at http://127.0.0.1:")
    assert store == "store: 79 written, 0 stale, 0 duplicate, 0 failed"
    assert "\x1b" not in text
    as_json = fetch_text.as_json(report)
    assert json.loads(json.dumps(as_json)) == as_json
    assert as_json["feeds"][0]["english_share"] == 79 / 99
    assert as_json["feeds"][0]["rejected"] == {"language": 20}
    assert not report.good


async def test_errors_are_told_apart(api: AppView, server: AppViewServer) -> None:
    server.next += [Trouble(429, {"Retry-After": "7"}), Trouble(502)]
    with pytest.raises(Transient) as busy:
        await api.feed(TODAY)
    assert (busy.value.retry_after, busy.value.busy) == (7, True)
    with pytest.raises(Transient, match="HTTP 502"):
        await api.feed(TODAY)
