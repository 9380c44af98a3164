"""The public API's client against a real HTTP server: what is there, and each way in which an API can fail."""

import asyncio
import gzip
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from email.utils import formatdate
from typing import Any

import pytest

from civicsky import __version__, xrpc
from civicsky.appview import MAX_PER_CALL, AppView
from civicsky.errors import BadInput, Refused, Transient, Usage
from civicsky.record import MAX_TEXT, readable
from civicsky.settings import AppView as AppViewSettings
from support.appview_server import AppViewServer, Trouble, appview_server

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
URIS = [f"at://{DID}/app.bsky.feed.post/3n2v{n:09}" for n in range(MAX_PER_CALL)]
POSTS = {uri: f"bafyrei{n}" for n, uri in enumerate(URIS)}


@pytest.fixture
def server() -> Iterator[AppViewServer]:
    with appview_server() as told:
        told.posts |= POSTS
        told.profiles.add(DID)
        told.handles["alice.test"] = DID
        yield told


@pytest.fixture
async def api(server: AppViewServer) -> AsyncIterator[AppView]:
    opened = AppView(settings(server))
    yield opened
    await opened.close()


def settings(server: AppViewServer, **more: Any) -> AppViewSettings:
    return AppViewSettings(url=server.url, **{"per_second": 1000, **more})


# ---- what is there -----------------------------------------------------------------------------------------------


async def test_25_posts_are_asked_for_in_one_call(api: AppView, server: AppViewServer) -> None:
    assert await api.posts(URIS) == POSTS
    (call,) = server.calls
    assert call.query["uris"] == URIS


async def test_posts_that_are_gone_are_not_in_the_answer(api: AppView, server: AppViewServer) -> None:
    del server.posts[URIS[3]], server.posts[URIS[24]]
    assert await api.posts(URIS) == {uri: cid for uri, cid in POSTS.items() if uri not in {URIS[3], URIS[24]}}
    server.posts.clear()
    assert await api.posts(URIS) == {}


async def test_a_post_that_was_not_asked_for_is_ignored(api: AppView, server: AppViewServer) -> None:
    server.always = {URIS[7]: "bafyother"}
    assert await api.posts(URIS[:2]) == {uri: POSTS[uri] for uri in URIS[:2]}


async def test_a_name_asked_for_twice_is_asked_once(api: AppView, server: AppViewServer) -> None:
    assert await api.posts([URIS[0]] * 30) == {URIS[0]: POSTS[URIS[0]]}
    assert server.calls[0].query["uris"] == [URIS[0]]


async def test_a_post_that_is_in_the_answer_twice_is_there(api: AppView, server: AppViewServer) -> None:
    item = b'{"uri": "%s", "cid": "a"}' % URIS[0].encode()
    server.next.append(Trouble(body=b'{"posts": [' + item + b", " + item + b"]}"))
    assert await api.posts(URIS) == {URIS[0]: "a"}


async def test_accounts_that_are_there(api: AppView, server: AppViewServer) -> None:
    assert await api.accounts([DID, "did:plc:gone", "did:web:gone.test"]) == {DID}
    assert [call.query["actors"] for call in server.calls] == [[DID, "did:plc:gone", "did:web:gone.test"]]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (None, "deleted"),
        ({"error": "AccountTakedown", "message": "Account has been suspended"}, "takendown"),
        ({"error": "AccountDeactivated", "message": "Account is deactivated"}, "deactivated"),
    ],
)
async def test_what_became_of_an_account(
    api: AppView, server: AppViewServer, answer: dict[str, str] | None, status: str
) -> None:
    assert await api.status(DID) == "active"
    server.profiles.clear()
    if answer:
        server.refusals[DID] = answer
    assert await api.status(DID) == status


async def test_an_account_that_is_refused_for_another_reason_counts_as_nothing(
    api: AppView, server: AppViewServer
) -> None:
    server.profiles.clear()
    server.refusals[DID] = {"error": "InvalidRequest", "message": "Error: actor must be a valid did or a handle"}
    with pytest.raises(BadInput):
        await api.status(DID)


async def test_nobody_is_asked_about_nothing_and_nothing_is_imported(server: AppViewServer) -> None:
    api = AppView(settings(server))
    assert await api.posts([]) == {}
    assert await api.accounts([]) == set()
    await api.close()
    assert not server.calls


async def test_more_than_25_is_a_defect_of_the_caller(api: AppView, server: AppViewServer) -> None:
    with pytest.raises(ValueError, match="26 names"):
        await api.posts([*URIS, f"at://{DID}/app.bsky.feed.post/more"])
    assert not server.calls


@pytest.mark.parametrize("handle", ["alice.test", "@alice.test", " Alice.TEST "])
async def test_a_handle_has_a_did(api: AppView, server: AppViewServer, handle: str) -> None:
    assert await api.resolve(handle) == DID
    assert server.calls[0].query["handle"] == ["alice.test"]


async def test_a_handle_that_nobody_has_is_wrong_usage(api: AppView) -> None:
    with pytest.raises(Usage, match=r"handle 'bob\.test': no account has it"):
        await api.resolve("bob.test")


@pytest.mark.parametrize(
    "handle", ["", "alice", "alice.test/x", "a\udcff.test", "a b.test", ".test", "x" * 300 + ".test"]
)
async def test_what_is_no_handle_is_not_asked(api: AppView, server: AppViewServer, handle: str) -> None:
    with pytest.raises(Usage, match="is not a handle"):
        await api.resolve(handle)
    assert not server.calls


# ---- odd answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(b"[1, 2]", id="a list"),
        pytest.param(b"null", id="null"),
        pytest.param(b'"] } a string"', id="a string"),
        pytest.param(b"{}", id="empty"),
        pytest.param(b'{"$type": "app.bsky.feed.post", "text": 7, "createdAt": [], "langs": "en"}', id="wrong types"),
        pytest.param(b'{"$type": 5, "embed": {"$type": "org.example.new", "a": {}}}', id="unknown embed"),
        pytest.param(b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", id="deep"),
        pytest.param(b'{"a": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}", id="deep objects"),
        pytest.param(b'{"text": "\\ud800", "tags": ["\\udfff"]}', id="half of a surrogate pair"),
        pytest.param(b'{"text": "\xff\xfe"}', id="not UTF-8"),
        pytest.param(b'{"n": ' + b"9" * 10_000 + b"}", id="an endless number"),
        pytest.param(b'{"text": "\\\\", "x": "\\"}]}", "uri": "at://x", "cid": 5}', id="brackets and names in strings"),
        pytest.param(b'{"text": "' + b"\\u0000" * 1_000_000 + b'"}', id="6 MB"),
    ],
)
async def test_one_odd_record_spoils_nothing(api: AppView, server: AppViewServer, record: bytes) -> None:
    server.records[URIS[12]] = record
    assert await api.posts(URIS) == POSTS


async def test_an_answer_that_is_not_packed_is_read_as_well(api: AppView, server: AppViewServer) -> None:
    assert await api.posts(URIS) == POSTS
    server.packed = False
    assert await api.posts(URIS) == POSTS


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html>maintenance</html>", id="not JSON"),
        pytest.param(b'"fine"', id="a string"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"{}", id="no posts"),
        pytest.param(b'{"posts": {}}', id="no list"),
        pytest.param(b'{"posts": null}', id="null"),
        pytest.param(b'{"posts": []', id="no end"),
        pytest.param(b'{"posts": []}}', id="more than an end"),
        pytest.param(b'{"posts": ["', id="a string without an end"),
        pytest.param(b'{"posts": [' + b'\\"' * 500_000, id="many quotes without an end"),
        pytest.param(b"[" * 1_000_000, id="only brackets"),
        pytest.param(b'{"posts": [null]}', id="an item that is none"),
        pytest.param(b'{"posts": [{"cid": "a"}]}', id="no uri"),
        pytest.param(b'{"posts": [{"uri": 7, "cid": "a"}]}', id="uri a number"),
        pytest.param(b'{"posts": [{"uri": "%s"}]}' % URIS[0].encode(), id="no cid"),
        pytest.param(b'{"posts": [{"uri": "%s", "cid": ""}]}' % URIS[0].encode(), id="cid empty"),
    ],
)
async def test_an_answer_that_cannot_be_read_never_means_that_a_post_is_gone(
    api: AppView, server: AppViewServer, body: bytes
) -> None:
    server.next.append(Trouble(body=body))
    with pytest.raises(BadInput, match="appview_answer"):
        await api.posts(URIS)
    assert await api.posts(URIS) == POSTS


@pytest.mark.parametrize("body", [b"{}", b'{"did": 5}', b'{"did": "alice"}', b'{"did": "did:plc:a/b"}', b"[]"])
async def test_a_did_that_is_none_is_no_answer(api: AppView, server: AppViewServer, body: bytes) -> None:
    server.next.append(Trouble(body=body))
    with pytest.raises(BadInput, match="appview_answer"):
        await api.resolve("alice.test")


async def test_an_answer_without_an_end_is_given_up_at_its_bound(
    api: AppView, server: AppViewServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xrpc, "MAX_ANSWER_BYTES", 5_000_000)
    server.next.append(Trouble(endless=True))
    with pytest.raises(BadInput, match="appview_answer"):
        await api.posts(URIS)
    assert await api.posts(URIS) == POSTS


async def test_an_answer_that_is_huge_when_unpacked_is_given_up_at_its_bound(
    api: AppView, server: AppViewServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xrpc, "MAX_ANSWER_BYTES", 5_000_000)
    bomb = gzip.compress(b'{"posts": [' + b" " * 6_000_000 + b"]}")
    server.next.append(Trouble(body=bomb, headers={"Content-Encoding": "gzip"}))
    with pytest.raises(BadInput, match="appview_answer"):
        await api.posts(URIS)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [("gzip", b"no gzip"), ("gzip", gzip.compress(b'{"posts": []}', mtime=0)[:-9]), ("br", b'{"posts": []}')],
)
async def test_an_answer_that_cannot_be_unpacked_is_of_no_use(
    api: AppView, server: AppViewServer, encoding: str, body: bytes
) -> None:
    server.next.append(Trouble(body=body, headers={"Content-Encoding": encoding}))
    with pytest.raises(BadInput, match="appview_answer"):
        await api.posts(URIS)


# ---- what authors wrote --------------------------------------------------------------------------------------------

NO_TEXT: dict[str, Any] = {
    "text": "", "langs": [], "created_at": None, "reply_root": None, "reply_parent": None, "quote_uri": None,
    "link": None, "alts": [], "media": None, "tags": [], "links": [], "mentions": [], "self_labels": [],
}  # fmt: skip


async def test_the_records_of_25_posts_come_in_one_call(api: AppView, server: AppViewServer) -> None:
    for n, uri in enumerate(URIS):
        server.write(uri, f"text {n}", langs=["en"], created_at="2026-11-22T13:12:25.063Z")
    records = await api.records(URIS)
    assert records == {
        uri: {
            **NO_TEXT, "uri": uri, "cid": POSTS[uri], "did": DID, "text": f"text {n}", "langs": ["en"],
            "created_at": 1795353145063000,
        }
        for n, uri in enumerate(URIS)
    }  # fmt: skip
    (call,) = server.calls
    assert call.query["uris"] == URIS


async def test_of_a_record_its_quote_its_alt_texts_and_its_link_card_are_read(
    api: AppView, server: AppViewServer
) -> None:
    server.write(URIS[0], "with pictures", quote=URIS[5], alts=["a cat", "a dog"])
    server.write(URIS[1], "", alts=["only a picture"])
    server.write(URIS[2], "a card", link={"uri": "https://a.test", "title": "Title", "description": "More"})
    records = await api.records(URIS[:3])
    assert (records[URIS[0]]["quote_uri"], records[URIS[0]]["alts"]) == (URIS[5], ["a cat", "a dog"])
    assert [readable(records[uri]) for uri in URIS[:3]] == [
        "with pictures\nImage: a cat\nImage: a dog",
        "Image: only a picture",
        "a card\nLink: Title - More",
    ]


async def test_records_of_posts_that_are_gone_are_not_in_the_answer(api: AppView, server: AppViewServer) -> None:
    del server.posts[URIS[3]]
    server.always = {f"at://{DID}/app.bsky.feed.post/nobody-asked": "bafyother"}
    assert set(await api.records(URIS)) == set(URIS) - {URIS[3]}
    assert await api.records([]) == {}
    with pytest.raises(ValueError, match="26 names"):
        await api.records([*URIS, f"at://{DID}/app.bsky.feed.post/more"])


DEEP = 100_000


@pytest.mark.parametrize(
    ("record", "text"),
    [
        pytest.param(b"[1, 2]", "", id="a list"),
        pytest.param(b"null", "", id="null"),
        pytest.param(b"0", "", id="a number"),
        pytest.param(b'"] } a string"', "", id="a string"),
        pytest.param(b"{}", "", id="empty"),
        pytest.param(b'{"text": 7, "createdAt": [], "langs": "en", "embed": [{}]}', "", id="wrong types"),
        pytest.param(b'{"text": "t", "a": ' + b"[" * DEEP + b"]" * DEEP + b"}", "t", id="deep"),
        pytest.param(b'{"text": "t", "embed": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}", "t", id="deep embed"),
        pytest.param(b'{"a": ' + b"[" * DEEP + b"]" * DEEP + b', "text": "t"}', "t", id="deep, before the text"),
        pytest.param(
            b'{"text": "\\ud83d\\ude00 \\ud800 \\udfff.", "tags": ["\\udfff"]}', "\U0001f600 ? ?.", id="halves"
        ),
        pytest.param(b'{"text": "\xff\xfe."}', "\ufffd\ufffd.", id="not UTF-8"),
        pytest.param(b'{"n": ' + b"9" * 100_000 + b', "text": "t"}', "t", id="an endless number"),
        pytest.param(b'{"n": [NaN, Infinity, -0, 1e999], "text": "t"}', "t", id="odd numbers"),
        pytest.param(b'{"n": [1, ], "text": "t"}', "", id="no JSON"),
        pytest.param(b'{"n": [1}, "text": "t"]', "", id="brackets that do not match"),
        pytest.param(b'{"text": "a\nb"}', "", id="a line's end in a string"),
        pytest.param(b'{"text": "\\u0000"}', "\x00", id="NUL"),
        pytest.param(b'{"text": "a", "text": "b"}', "b", id="twice"),
        pytest.param(b'{"text": "\\\\", "x": "\\"}]}", "uri": "at://x", "cid": 5}', "\\", id="brackets in strings"),
        pytest.param(b'{"text": "[0]", "langs": [[0], [1]], "embed": [2]}', "[0]", id="looks like our own marks"),
        pytest.param(b'{"text": "' + b"\\u2029" * 1_000_000 + b'"}', "\u2029" * MAX_TEXT, id="6 MB"),
        pytest.param(b'{"text": "' + b"x" * 8_000_000 + b'"}', "", id="beyond any record"),
    ],
)
async def test_what_one_author_wrote_does_nothing_to_the_others(
    api: AppView, server: AppViewServer, record: bytes, text: str
) -> None:
    for n, uri in enumerate(URIS):
        server.write(uri, f"text {n}", alts=[f"picture {n}"])
    whole = await api.records(URIS)
    server.records[URIS[12]] = record
    odd = await api.records(URIS)
    assert {uri: odd[uri] for uri in URIS if uri != URIS[12]} == {uri: whole[uri] for uri in URIS if uri != URIS[12]}
    assert {name: odd[URIS[12]][name] for name in ("uri", "cid", "did", "text", "alts")} == {
        "uri": URIS[12],
        "cid": POSTS[URIS[12]],
        "did": DID,
        "text": text,
        "alts": [],
    }
    json.dumps(odd, ensure_ascii=False).encode()  # sound Unicode


async def test_a_post_without_its_record_is_one_without_text(api: AppView, server: AppViewServer) -> None:
    item = b'{"uri": "%s", "cid": "a"}' % URIS[0].encode()
    server.next.append(Trouble(body=b'{"posts": [' + item + b"]}"))
    assert await api.records(URIS) == {URIS[0]: {**NO_TEXT, "uri": URIS[0], "cid": "a", "did": DID}}


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"posts": [null]}', b'{"posts": [{"cid": "a", "record": {}}]}'])
async def test_records_that_cannot_be_told_apart_are_no_answer(
    api: AppView, server: AppViewServer, body: bytes
) -> None:
    server.next.append(Trouble(body=body))
    with pytest.raises(BadInput, match="appview_answer"):
        await api.records(URIS)


# ---- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520])
async def test_an_api_that_cannot_just_now_is_asked_later(api: AppView, server: AppViewServer, status: int) -> None:
    for body in (b'{"error": "AsTold"}', b'"busy"', b"[1]", b"", b"<html>"):
        server.next.append(Trouble(status, body=body))
        with pytest.raises(Transient, match=f"answers HTTP {status}") as caught:
            await api.posts(URIS)
        assert caught.value.retry_after is None
        assert caught.value.busy == (status in {425, 429, 503})
    assert await api.posts(URIS) == POSTS


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"Retry-After": "7"}, 7, 7),
        ({"Retry-After": "1.5"}, 1.5, 1.5),
        ({"Retry-After": "0"}, 0, 0),
        ({"Retry-After": "999999999"}, 3600, 3600),
        ({"Retry-After": "7", "RateLimit-Reset": "99999999999"}, 7, 7),
        ({"Retry-After": "soon", "RateLimit-Reset": "99999999999"}, 3600, 3600),
        ({"Retry-After": formatdate(time.time() + 600_000, usegmt=True)}, 3600, 3600),
    ],
)
async def test_the_api_says_how_long_to_wait(
    api: AppView, server: AppViewServer, headers: dict[str, str], least: float, most: float
) -> None:
    server.next.append(Trouble(429, headers))
    with pytest.raises(Transient) as caught:
        await api.posts(URIS)
    assert caught.value.busy
    assert caught.value.retry_after is not None
    assert least <= caught.value.retry_after <= most


async def test_the_end_of_the_rate_limits_window_is_waited_for(api: AppView, server: AppViewServer) -> None:
    server.next.append(Trouble(429, {"RateLimit-Reset": str(int(time.time()) + 1000)}))
    with pytest.raises(Transient) as caught:
        await api.posts(URIS)
    assert 0 < (caught.value.retry_after or 0) <= 1000


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "soon"},
        {"Retry-After": "-5"},
        {"Retry-After": "Mon, 01 Jan 2001 00:00:00 GMT"},
        {"Retry-After": "nan"},
        {"RateLimit-Reset": "1000000000"},
        {"RateLimit-Reset": "9" * 400},
    ],
)
async def test_a_wait_that_makes_no_sense_is_none(api: AppView, server: AppViewServer, headers: dict[str, str]) -> None:
    server.next.append(Trouble(429, headers))
    with pytest.raises(Transient) as caught:
        await api.posts(URIS)
    assert caught.value.retry_after is None


@pytest.mark.parametrize("status", [401, 403, 404, 407, 501])
async def test_an_api_that_refuses_us_needs_a_person(api: AppView, server: AppViewServer, status: int) -> None:
    server.next.append(Trouble(status))
    with pytest.raises(Refused, match=rf"appview: .*HTTP {status}.*mend appview\.url"):
        await api.posts(URIS)


@pytest.mark.parametrize("status", [204, 206, 400, 413, 418])
async def test_any_other_status_is_an_answer_of_no_use(api: AppView, server: AppViewServer, status: int) -> None:
    server.next.append(Trouble(status, body=b"" if status == 204 else b'{"posts": []}'))
    with pytest.raises(BadInput, match="appview_answer"):
        await api.posts(URIS)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(server: AppViewServer, status: int) -> None:
    with appview_server() as elsewhere:
        api = AppView(settings(server))
        server.next.append(Trouble(status, {"Location": elsewhere.url}))
        with pytest.raises(Refused if status in {301, 308} else Transient, match=str(status)):
            await api.posts(URIS)
        await api.close()
        assert not elsewhere.calls


async def test_a_server_that_is_not_there_is_asked_later(server: AppViewServer) -> None:
    with appview_server() as gone:
        pass
    api = AppView(settings(gone))
    with pytest.raises(Transient, match=r"cannot be reached \(ConnectError\)"):
        await api.posts(URIS)
    await api.close()


async def test_an_answer_that_is_cut_off_is_asked_for_again(api: AppView, server: AppViewServer) -> None:
    server.next.append(Trouble(cut=True))
    with pytest.raises(Transient, match="cannot be reached"):
        await api.posts(URIS)
    assert await api.posts(URIS) == POSTS


async def test_a_server_that_drips_is_given_up(server: AppViewServer) -> None:
    api = AppView(settings(server, request_seconds=0.3))
    server.next.append(Trouble(drip=True))
    with pytest.raises(Transient, match="cannot be reached"):
        await api.posts(URIS)
    await api.close()


async def test_a_call_can_be_cancelled_and_the_next_one_works(api: AppView, server: AppViewServer) -> None:
    server.next.append(Trouble(drip=True))
    task = asyncio.create_task(api.posts(URIS))
    assert await asyncio.to_thread(server.called.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await api.posts(URIS) == POSTS


# ---- manners -------------------------------------------------------------------------------------------------------


async def test_calls_are_one_at_a_time_and_each_gets_its_own_answer(api: AppView, server: AppViewServer) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = {uri: group.create_task(api.posts([uri])) for uri in URIS}
        account = group.create_task(api.accounts([DID]))
        did = group.create_task(api.resolve("alice.test"))
    assert {uri: task.result() for uri, task in tasks.items()} == {uri: {uri: POSTS[uri]} for uri in URIS}
    assert (account.result(), did.result()) == ({DID}, DID)
    assert server.most_at_once == 1
    assert [call.query["uris"] for call in server.named("getPosts")] == [[uri] for uri in URIS]


async def test_calls_are_spaced_also_when_they_fail(server: AppViewServer) -> None:
    api = AppView(settings(server, per_second=20))
    server.next.extend([Trouble(500), Trouble(429)])
    ended = await asyncio.gather(*(api.posts(URIS[:1]) for _ in range(5)), return_exceptions=True)
    assert [isinstance(end, Transient) for end in ended] == [True, True, False, False, False]
    await api.close()
    times = [call.at for call in server.calls]
    # The first may be long under way; each later one starts a twentieth of a second after the one before it.
    assert times[4] - times[0] >= 3 / 20


async def test_the_api_is_told_who_asks(server: AppViewServer) -> None:
    for contact, agent in {"": f"civicsky/{__version__}", "a@b.test": f"civicsky/{__version__} (a@b.test)"}.items():
        api = AppView(settings(server, contact=contact))
        await api.posts(URIS)
        await api.close()
        assert server.calls[-1].headers["user-agent"] == agent
        assert "authorization" not in server.calls[-1].headers


async def test_a_server_on_this_machine_is_asked_without_the_proxy(
    server: AppViewServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    api = AppView(settings(server))
    assert await api.posts(URIS) == POSTS
    await api.close()


async def test_another_server_is_asked_by_the_proxy(server: AppViewServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    for name in ("http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    api = AppView(AppViewSettings(url="http://api.invalid/xrpc/", per_second=1000))
    assert await api.posts(URIS) == POSTS  # a host that does not exist: it was the proxy that answered
    await api.close()
    assert [call.method for call in server.calls] == ["app.bsky.feed.getPosts"]


def test_the_sdk_is_not_imported_before_the_first_call() -> None:
    program = (
        "import sys, civicsky.app, civicsky.appview, civicsky.settings\n"
        "civicsky.appview.AppView(civicsky.settings.AppView())\n"
        "print([name for name in sys.modules if name.startswith('atproto')])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
