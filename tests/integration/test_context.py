"""What stands around a post: fetched from a real HTTP server, kept in a real ledger, gone when its author says so."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from civicsky import context
from civicsky.appview import AppView
from civicsky.context import MAX_GONE, MAX_PER_CALL, NEW_US, Contexts, records_of, texts_of
from civicsky.errors import Failed, Refused, Transient
from civicsky.ledger import Ledger
from civicsky.model import now_us, post_uri
from civicsky.settings import AppView as AppViewSettings, Context
from civicsky.store import SqliteStore
from civicsky.task import load_task
from support.appview_server import AppViewServer, Trouble, appview_server

TASK = load_task("civic")[0]
DID, RKEY = "did:plc:quoted", "3kq"
QUOTED = post_uri(DID, RKEY)
WANTED = Context(quote=True, root=True)
SECRET = "what the quagmire said"
ALL = Context(quote=True, root=True, parent=True)
PLAIN = TASK.model_copy(update={"context_format": "Q={quote}\nR={root}\nP={parent}"})
URIS = [post_uri(DID, f"3kq{n:03}") for n in range(60)]
TROUBLES = [Trouble(500), Trouble(400), Trouble(body=b"<html>"), Trouble(cut=True)]


@pytest.fixture
def server() -> Iterator[AppViewServer]:
    with appview_server() as told:
        told.write(QUOTED, SECRET)
        yield told


@pytest.fixture
def posts(server: AppViewServer) -> list[str]:
    """Posts that are there."""
    for n, uri in enumerate(URIS):
        server.write(uri, f"text {n}")
    return URIS


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  (it is a count of theirs that nobody tells)
        await asyncio.sleep(0)


def asked(server: AppViewServer) -> list[list[str]]:
    return [call.query["uris"] for call in server.calls]


@pytest.fixture
async def api(server: AppViewServer) -> AsyncIterator[AppView]:
    opened = AppView(AppViewSettings(url=server.url, per_second=1000))
    yield opened
    await opened.close()


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(tmp_path / "ledger.db")
    yield opened
    await opened.close()


@pytest.fixture
async def contexts(api: AppView, ledger: Ledger) -> AsyncIterator[Contexts]:
    opened = Contexts(ALL, 4000, api, ledger)
    yield opened
    await opened.close()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path / "posts.db")
    yield opened
    await opened.close()


async def test_a_quoted_post_is_fetched_once_for_all_who_quote_it(
    server: AppViewServer, api: AppView, ledger: Ledger
) -> None:
    for _ in range(2):  # the second time as after a restart
        contexts = Contexts(WANTED, 4000, api, ledger)
        given = await contexts.of(TASK, {"quote_uri": QUOTED, "reply_root": None})
        assert given == TASK.context_format.splitlines()[0].replace("{quote}", SECRET)
        await contexts.close()
    assert len(server.calls) == 1
    nothing = Contexts(Context(), 4000, api, ledger)
    assert await nothing.of(TASK, {"quote_uri": QUOTED}) == "", "no setting asks for it"


@pytest.mark.parametrize("deleted", [(DID, RKEY), (DID,)], ids=["post", "account"])
async def test_what_was_deleted_is_not_given_though_the_cache_and_the_api_still_have_it(
    api: AppView, ledger: Ledger, deleted: tuple[str, ...]
) -> None:
    contexts = Contexts(WANTED, 4000, api, ledger)
    assert SECRET in await contexts.of(TASK, {"quote_uri": QUOTED})
    contexts.forget(*deleted)
    assert await contexts.of(TASK, {"quote_uri": QUOTED}) == ""
    await contexts.close()


async def test_what_is_deleted_while_it_is_fetched_does_not_stay_in_the_cache(api: AppView, ledger: Ledger) -> None:
    class DeletedMeanwhile:
        """The ledger, to which the deletion comes just before the answer."""

        async def contexts(self, uris: Sequence[str]) -> dict[str, str | None]:
            return await ledger.contexts(uris)

        async def keep_contexts(self, posts: Mapping[str, str | None]) -> None:
            mine.forget(DID, RKEY)
            await ledger.keep_contexts(posts)

    mine = Contexts(WANTED, 4000, api, DeletedMeanwhile())
    assert await mine.of(TASK, {"quote_uri": QUOTED}) == ""
    assert await ledger.contexts([QUOTED]) == {QUOTED: None}
    await mine.close()


async def test_what_is_deleted_while_the_api_answers_is_not_given_and_not_kept(
    server: AppViewServer, contexts: Contexts, ledger: Ledger
) -> None:
    server.answering.clear()
    asking = asyncio.create_task(contexts.of(TASK, {"quote_uri": QUOTED}))
    assert await asyncio.to_thread(server.called.wait, 30)
    contexts.forget(DID, RKEY)
    server.answering.set()
    assert await asking == ""
    assert await ledger.contexts([QUOTED]) == {QUOTED: None}


async def test_of_deletions_the_newest_are_remembered(server: AppViewServer, contexts: Contexts) -> None:
    other = post_uri(DID, "other")
    server.write(other, "another's")
    contexts.forget(DID, "other")
    contexts.forget(DID, RKEY)
    for n in range(MAX_GONE - 1):
        contexts.forget(DID, f"n{n}")
    assert await contexts.of(PLAIN, {"quote_uri": QUOTED, "reply_root": other}) == "R=another's"


# ---- which posts, and how they are written -----------------------------------------------------------------------


async def test_quote_root_and_parent_are_told_apart(
    contexts: Contexts, posts: list[str], server: AppViewServer
) -> None:
    fields = {"quote_uri": posts[0], "reply_root": posts[1], "reply_parent": posts[2]}
    assert await contexts.of(PLAIN, fields) == "Q=text 0\nR=text 1\nP=text 2"
    assert [sorted(uris) for uris in asked(server)] == [posts[:3]]


async def test_a_post_that_is_root_and_parent_is_given_once(
    contexts: Contexts, posts: list[str], server: AppViewServer
) -> None:
    fields = {"quote_uri": None, "reply_root": posts[1], "reply_parent": posts[1]}
    assert await contexts.of(PLAIN, fields) == "P=text 1"
    assert asked(server) == [[posts[1]]]


async def test_only_what_settings_and_task_ask_for_is_fetched(
    api: AppView, ledger: Ledger, posts: list[str], server: AppViewServer
) -> None:
    fields = {"quote_uri": posts[0], "reply_root": posts[1], "reply_parent": posts[2]}
    some = Contexts(Context(root=True, parent=True), 4000, api, ledger)
    task = TASK.model_copy(update={"context_format": "Q={quote}\nP={parent}"})
    assert await some.of(task, fields) == "P=text 2"
    assert asked(server) == [[posts[2]]]
    await some.close()


@pytest.mark.parametrize(
    "uri",
    [
        None, "", 7, "https://bsky.app/profile/a.test/post/3kq", "at://a.test/app.bsky.feed.post/3kq",
        "at://did:plc:a/app.bsky.graph.list/3kq", "at://did:plc:a/app.bsky.feed.post/", f"{QUOTED}#a", f"{QUOTED}/a",
        "at://did:plc:a/app.bsky.feed.post/..", f"{QUOTED}\n", "at://did:plc:a%/app.bsky.feed.post/3kq",
        "at://did:plc:\ud800/app.bsky.feed.post/3kq", "at://did:plc:" + "a" * 5000 + "/app.bsky.feed.post/3kq",
    ],
)  # fmt: skip
async def test_what_names_no_post_is_not_asked_for(contexts: Contexts, server: AppViewServer, uri: Any) -> None:
    assert await contexts.of(PLAIN, {"quote_uri": uri}) == ""
    assert not server.calls


async def test_alt_texts_are_given_when_settings_ask_for_them_whatever_is_cached(
    api: AppView, ledger: Ledger, server: AppViewServer
) -> None:
    server.write(QUOTED, "look", alts=["a cat", "a dog"])
    for alts, given in {True: "Q=look\nImage: a cat\nImage: a dog", False: "Q=look"}.items():
        contexts = Contexts(Context(quote=True, alts=alts), 4000, api, ledger)
        assert await contexts.of(PLAIN, {"quote_uri": QUOTED}) == given
        await contexts.close()
    assert len(server.calls) == 1


async def test_a_text_that_looks_like_a_placeholder_is_only_text(contexts: Contexts, server: AppViewServer) -> None:
    root = post_uri(DID, "root")
    server.write(QUOTED, "a {root} and {quote}\nR={root}")
    server.write(root, "first")
    given = await contexts.of(PLAIN, {"quote_uri": QUOTED, "reply_root": root})
    assert given == "Q=a {root} and {quote}\nR={root}\nR=first"


async def test_a_context_has_its_bound_and_the_longest_text_is_cut(
    api: AppView, ledger: Ledger, server: AppViewServer
) -> None:
    root, parent = post_uri(DID, "root"), post_uri(DID, "parent")
    for uri, text in {QUOTED: "q" * 9000, root: "short", parent: "p" * 9000}.items():
        server.write(uri, text)
    contexts = Contexts(ALL, 100, api, ledger)
    given = await contexts.of(PLAIN, {"quote_uri": QUOTED, "reply_root": root, "reply_parent": parent})
    # 100 less five for "short" and eight for the format leave 43 and 44.
    assert sorted((line[0], len(line)) for line in given.splitlines()) == [("P", 45), ("Q", 46), ("R", 7)]
    assert len(given) == 100
    await contexts.close()
    for bound in (5, 1):  # less than the format alone
        contexts = Contexts(ALL, bound, api, ledger)
        assert len(await contexts.of(PLAIN, {"quote_uri": QUOTED, "reply_root": root})) <= bound
        await contexts.close()


async def test_what_is_kept_of_a_post_has_its_bound(contexts: Contexts, server: AppViewServer, ledger: Ledger) -> None:
    server.write(QUOTED, "t" * 9_000, alts=["a" * 9_000] * 64)
    await contexts.of(PLAIN, {"quote_uri": QUOTED})
    assert len((await ledger.contexts([QUOTED]))[QUOTED] or "") < 21_000


# ---- gone --------------------------------------------------------------------------------------------------------


async def test_a_post_that_is_gone_renders_as_nothing_and_is_asked_for_once(
    contexts: Contexts, posts: list[str], server: AppViewServer, ledger: Ledger
) -> None:
    del server.posts[posts[0]]
    for _ in range(2):
        assert await contexts.of(PLAIN, {"quote_uri": posts[0], "reply_root": posts[1]}) == "R=text 1"
    assert len(server.calls) == 1
    assert (await ledger.contexts([posts[0]])) == {posts[0]: None}
    assert await contexts.of(PLAIN, {"quote_uri": posts[0]}) == ""


async def test_a_post_too_new_for_the_api_is_asked_for_again(contexts: Contexts, server: AppViewServer) -> None:
    digits = "234567abcdefghijklmnopqrstuvwxyz"  # https://atproto.com/specs/tid
    new, old = (
        post_uri(DID, "".join(digits[(now_us() - age) << 10 >> 5 * at & 31] for at in reversed(range(13))))
        for age in (0, 2 * NEW_US)
    )
    fields = {"quote_uri": new, "reply_root": old}
    assert await contexts.of(PLAIN, fields) == ""
    server.write(new, "now it is there")
    server.write(old, "so is this one, too late")
    assert await contexts.of(PLAIN, fields) == "Q=now it is there"


async def test_a_record_that_cannot_be_read_is_a_post_without_text(
    contexts: Contexts, posts: list[str], server: AppViewServer
) -> None:
    server.records[posts[0]] = b'{"text": [' + b"[" * 100_000 + b"]" * 100_000 + b"]}"
    server.records[posts[1]] = b'{"text": "\\ud800"}'
    fields = {"quote_uri": posts[0], "reply_root": posts[1], "reply_parent": posts[2]}
    given = await contexts.of(PLAIN, fields)
    assert given == "R=?\nP=text 2"
    given.encode()


# ---- together ----------------------------------------------------------------------------------------------------


async def test_what_is_asked_while_a_call_is_under_way_goes_together_into_the_next(
    contexts: Contexts, posts: list[str], server: AppViewServer
) -> None:
    server.answering.clear()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(contexts.of(PLAIN, {"quote_uri": posts[0]}))]
        assert await asyncio.to_thread(server.called.wait, 30)
        tasks += [group.create_task(contexts.of(PLAIN, {"quote_uri": uri})) for uri in [*posts[1:40], *posts[:40]]]
        await until(lambda: len(contexts._asked) == 40)
        server.answering.set()
    assert [task.result() for task in tasks] == [f"Q=text {n}" for n in [*range(40), *range(40)]]
    assert [len(uris) for uris in asked(server)] == [1, MAX_PER_CALL, 39 - MAX_PER_CALL]
    assert sorted(uri for uris in asked(server) for uri in uris) == posts[:40]
    assert not contexts._asked


async def test_a_caller_that_is_cancelled_takes_nothing_from_the_others(
    contexts: Contexts, posts: list[str], server: AppViewServer
) -> None:
    server.answering.clear()
    first, second = (asyncio.create_task(contexts.of(PLAIN, {"quote_uri": posts[0]})) for _ in range(2))
    assert await asyncio.to_thread(server.called.wait, 30)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    server.answering.set()
    assert await second == "Q=text 0"
    assert len(server.calls) == 1


async def test_closing_leaves_nobody_waiting(contexts: Contexts, posts: list[str], server: AppViewServer) -> None:
    server.answering.clear()
    waiting = asyncio.create_task(contexts.of(PLAIN, {"quote_uri": posts[0]}))
    assert await asyncio.to_thread(server.called.wait, 30)
    await contexts.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    server.answering.set()
    assert await contexts.of(PLAIN, {"quote_uri": posts[0]}) == "Q=text 0"


# ---- failures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [*TROUBLES, Trouble(429, {"Retry-After": "7"}), Trouble(503)])
async def test_an_api_that_fails_tells_all_who_wait_and_nothing_is_taken_for_gone(
    contexts: Contexts, posts: list[str], server: AppViewServer, ledger: Ledger, trouble: Trouble
) -> None:
    server.next.extend([trouble] * 100)
    fields: list[dict[str, Any]] = [{"quote_uri": uri} for uri in posts[:9]]
    ended = await asyncio.gather(*(contexts.of(PLAIN, one) for one in fields), return_exceptions=True)
    assert [type(end) for end in ended] == [Transient] * 9
    assert {end.retry_after for end in ended if isinstance(end, Transient)} == {7.0 if trouble.headers else None}
    assert await ledger.contexts(posts) == {}
    server.next.clear()
    assert [await contexts.of(PLAIN, one) for one in fields] == [f"Q=text {n}" for n in range(9)]


async def test_an_api_that_is_down_costs_one_call_more_for_each_batch(
    contexts: Contexts, posts: list[str], server: AppViewServer
) -> None:
    await contexts.of(PLAIN, {"quote_uri": posts[0]})
    server.next.extend([Trouble(500)] * 10)
    fields = {"quote_uri": posts[1], "reply_root": posts[2], "reply_parent": posts[3]}
    with pytest.raises(Transient, match="HTTP 500"):
        await contexts.of(PLAIN, fields)
    assert len(asked(server)) == 3
    assert asked(server)[2] == [posts[0]]


async def test_an_api_that_refuses_us_is_said(contexts: Contexts, posts: list[str], server: AppViewServer) -> None:
    server.next.append(Trouble(403))
    with pytest.raises(Refused, match="HTTP 403"):
        await contexts.of(PLAIN, {"quote_uri": posts[0]})


@pytest.mark.parametrize("known", [True, False], ids=["after others", "as the first"])
@pytest.mark.parametrize("trouble", TROUBLES)
async def test_a_post_that_the_api_stumbles_over_costs_nothing_of_the_others(
    contexts: Contexts, posts: list[str], server: AppViewServer, ledger: Ledger, trouble: Trouble, known: bool
) -> None:
    if known:
        assert await contexts.of(PLAIN, {"quote_uri": posts[59]}) == "Q=text 59"
    bad = {posts[3], *([posts[4], posts[20]] if known else [])}
    server.stumbles = dict.fromkeys(bad, trouble)
    server.answering.clear()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(contexts.of(PLAIN, {"quote_uri": uri})) for uri in posts[:MAX_PER_CALL]]
        await until(lambda: len(contexts._asked) == MAX_PER_CALL)
        server.answering.set()
    assert [task.result() for task in tasks] == [
        "" if uri in bad else f"Q=text {n}" for n, uri in enumerate(posts[:MAX_PER_CALL])
    ]
    assert not set(await ledger.contexts(posts)) & bad, "it is not known to be gone"
    server.stumbles.clear()
    assert await contexts.of(PLAIN, {"quote_uri": posts[3]}) == "Q=text 3"


async def test_a_post_that_the_api_stumbles_over_is_told_from_an_api_that_is_down_when_it_is_alone(
    contexts: Contexts, posts: list[str], server: AppViewServer
) -> None:
    server.stumbles[posts[3]] = Trouble(500)
    with pytest.raises(Transient):  # nothing was answered yet: nobody can tell
        await contexts.of(PLAIN, {"quote_uri": posts[3]})
    await contexts.of(PLAIN, {"quote_uri": posts[0]})
    assert await contexts.of(PLAIN, {"quote_uri": posts[3]}) == ""


async def test_a_cache_that_fails_is_said_to_whoever_waits(api: AppView, posts: list[str]) -> None:
    class Full:
        async def contexts(self, _uris: Sequence[str]) -> dict[str, str | None]:
            return {}

        async def keep_contexts(self, _posts: Mapping[str, str | None]) -> None:
            raise Failed("disk is full")

    contexts = Contexts(ALL, 4000, api, Full())
    with pytest.raises(Failed, match="disk is full"):
        await contexts.of(PLAIN, {"quote_uri": posts[0]})
    await contexts.close()


# ---- texts of posts that are known by their addresses only ---------------------------------------------------------


async def test_a_text_that_the_store_knows_as_deleted_is_not_fetched_again(
    server: AppViewServer, api: AppView, store: SqliteStore
) -> None:
    """The API may show a deleted post for a while; what is hidden may be shown again by now."""
    here, gone, hidden, unknown = (post_uri(DID, rkey) for rkey in ("here", "gone", "hidden", "unknown"))
    for uri in (here, gone, hidden, unknown):
        server.write(uri, "as the API has it")
    read = {"v": 1, "text": "as the store has it", "link": None, "alts": []}
    await store.put("posts", [{"_id": here, "state": "live", **read}, {"_id": hidden, "state": "hidden", **read}])
    await store.put("posts", [{"_id": gone, "state": "deleted", "v": 1}])
    found = await texts_of([here, gone, hidden, unknown], store, api)
    assert found == {
        here: "as the store has it",
        gone: None,
        hidden: "as the API has it",
        unknown: "as the API has it",
    }
    assert [uri for call in server.calls for uri in call.query["uris"]] == [hidden, unknown]


async def test_texts_come_25_a_call_and_it_is_told_how_many_are_done(
    server: AppViewServer, api: AppView, store: SqliteStore, posts: list[str]
) -> None:
    stored = [{"_id": uri, "v": 1, "state": "live", "text": "stored", "link": None, "alts": ["x"]} for uri in posts[:4]]
    await store.put("posts", [*stored[1:], {**stored[0], "text": "", "alts": []}])
    del server.posts[posts[9]]
    server.write(posts[10], "", alts=["only a picture"])
    odd = ["at://a.test/app.bsky.feed.post/3kq", "no address", "half \ud800"]
    told: list[int] = []
    found = await texts_of([*posts, *odd, *posts], store, api, told.append)
    assert found == {
        **{uri: f"text {n}" for n, uri in enumerate(posts)},
        posts[0]: None,
        **dict.fromkeys(posts[1:4], "stored\nImage: x"),
        posts[9]: None,
        posts[10]: "Image: only a picture",
        **dict.fromkeys(odd),
    }
    assert [len(uris) for uris in asked(server)] == [25, 25, 6]
    assert told == [7, 32, 57, 63]


async def test_texts_come_from_the_store_or_the_api_alone(
    server: AppViewServer, api: AppView, store: SqliteStore, posts: list[str]
) -> None:
    await store.put("posts", [{"_id": posts[0], "v": 1, "state": "live", "text": "stored", "link": None, "alts": []}])
    assert await texts_of(posts[:2], None, api) == {posts[0]: "text 0", posts[1]: "text 1"}
    server.calls.clear()
    assert await texts_of(posts[:2], store, None) == {posts[0]: "stored", posts[1]: None}
    assert await texts_of(posts[:2], None, None) == dict.fromkeys(posts[:2])
    assert await texts_of([], store, api) == {}
    assert not server.calls


async def test_texts_are_asked_for_again_when_the_api_cannot_just_now(
    server: AppViewServer, api: AppView, posts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "PAUSES", (0.0, 0.0))
    server.next.extend([Trouble(503), Trouble(429, {"Retry-After": "0"})])
    assert await texts_of(posts[:2], None, api) == {posts[0]: "text 0", posts[1]: "text 1"}
    server.next.extend([Trouble(503)] * 3)
    with pytest.raises(Transient, match="HTTP 503"):
        await texts_of(posts[:2], None, api)
    assert not server.next
    server.next.extend([Trouble(429, {"Retry-After": "3000"}), Trouble(500)])
    with pytest.raises(Transient, match="HTTP 429"):
        await texts_of(posts[:2], None, api)
    assert len(server.next) == 1, "one that asks us to wait for long is not asked again"


async def test_records_come_whole_and_only_of_posts(server: AppViewServer, api: AppView, posts: list[str]) -> None:
    server.write(posts[0], "quotes", quote=posts[1])
    del server.posts[posts[2]]
    server.stumbles[posts[3]] = Trouble(400)
    got = [batch async for batch in records_of([*posts[:30], "no address", posts[0]], api)]
    assert [asked_for for asked_for, _ in got] == [posts[:25], posts[25:30]]
    records = got[0][1] | got[1][1]
    assert set(records) == set(posts[:30]) - {posts[2], posts[3]}
    assert (records[posts[0]]["quote_uri"], records[posts[0]]["did"]) == (posts[1], DID)


async def test_a_text_that_the_api_stumbles_over_costs_no_other(
    server: AppViewServer, api: AppView, posts: list[str]
) -> None:
    server.stumbles[posts[7]] = Trouble(500)
    found = await texts_of(posts[:30], None, api)
    assert found == {uri: None if n == 7 else f"text {n}" for n, uri in enumerate(posts[:30])}
