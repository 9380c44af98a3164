"""The authors of labelled posts: looked up if that is asked for, within a rate, told to the store, and forgotten."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from civicsky import authors
from civicsky.authors import read_lists
from civicsky.errors import Usage
from civicsky.ledger import Ledger
from civicsky.model import parse_time
from conftest import Client, Mongod
from support.appview_server import AppViewServer, Trouble, appview_server
from support.asked import asked, rkey
from support.command import Ended, end_when, finish, query, run, until
from support.drawing import draws_first
from support.fake import events
from support.led import NOW, Led, all_told, did_of, files_that_hold, in_store, led_relay, service, uri

FAST: dict[str, Any] = {
    "authors__fetch": "true",
    "authors__calls_per_minute": 6000,
    "appview__per_second": 1000,
    "ledger__poll_seconds": 0.1,
}
FIELDS = {
    "_id", "did", "v", "state", "handle", "created_at", "followers", "follows", "posts", "marks", "lists", "moderation",
    "looked_up_at",
}  # fmt: skip


@pytest.fixture
def relay() -> Iterator[Led]:
    with led_relay() as led:
        yield led


@pytest.fixture
def appview() -> Iterator[AppViewServer]:
    with appview_server() as server:
        yield server


def says(did: str, value: str, source: str = "", **fields: Any) -> dict[str, Any]:
    return {"src": source or did, "val": value, "cts": "2026-11-22T12:00:00.000Z", "uri": did, **fields}


def post(relay: Led, appview: AppViewServer, authors: int, first: int = 0) -> None:
    """A post of each of so many authors that the API knows."""
    for n in range(first, first + authors):
        relay.post(rkey(n), f"A post in plain English about the council, number {n}", did=did_of(n))
        appview.profiles.add(did_of(n))
        appview.named_as[did_of(n)] = f"Author{n}.test"


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: json.loads(doc) for name, doc in query(folder / "posts.db", "SELECT _id, doc FROM authors")}


def looked_up(folder: Path) -> int:
    return sum("handle" in document for document in stored(folder).values())


def all_of_them(folder: Path, n: int) -> bool:
    return looked_up(folder) == n and all_told(folder)


# ---- what is looked up -----------------------------------------------------------------------------------------------


def test_nobody_is_looked_up_unless_the_settings_ask_for_it(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    post(relay, appview, 5)
    asks = {**FAST, "authors__fetch": "false"}
    process = service(tmp_path, relay, model, appview__url=appview.url, **asks)
    end_when(process, lambda: len(in_store(tmp_path)) == 5 and all_told(tmp_path), "all to be labelled")
    assert stored(tmp_path) == {}
    assert appview.calls == []


def test_authors_of_labelled_posts_are_told_to_the_store_with_marks_counts_and_lists_and_without_their_words(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    post(relay, appview, 5)
    appview.labels = {
        did_of(0): [says(did_of(0), "!no-unauthenticated"), says(did_of(0), "spam", "did:plc:mod")],
        did_of(1): [says(did_of(1), "bot"), says(did_of(1), "!no-unauthenticated")],
        did_of(2): [says(did_of(2), "bot", "did:plc:mod"), says(did_of(2), "!no-unauthenticated", neg=True)],
    }
    appview.named_as[did_of(4)] = "handle.invalid"
    (tmp_path / "news.csv").write_text(f"did,note\n{did_of(0)},x\n")
    (tmp_path / "others.csv").write_text(f"handle,did\n@AUTHOR1.test,\n,{did_of(0)}\n")
    lists = json.dumps({"news": str(tmp_path / "news.csv"), "others": str(tmp_path / "others.csv")})
    process = service(folder, relay, model, appview__url=appview.url, authors__lists=lists, **FAST)
    end_when(process, lambda: all_of_them(folder, 5), "all authors to be told")
    found = stored(folder)
    assert all(set(document) == FIELDS for document in found.values())
    told = found[did_of(0)]
    assert parse_time(told.pop("looked_up_at")) >= NOW  # type: ignore[operator]
    del told["v"]
    assert told == {
        "_id": did_of(0), "did": did_of(0), "state": "live", "handle": "author0.test", "followers": 30, "follows": 20,
        "posts": 10, "created_at": "2024-02-06T12:00:00.000Z", "marks": ["no-unauthenticated"],
        "lists": ["news", "others"],
        "moderation": [{"source": "did:plc:mod", "value": "spam", "at": "2026-11-22T12:00:00.000Z"}],
    }  # fmt: skip
    assert {did: document["marks"] for did, document in found.items()} == {
        did_of(0): ["no-unauthenticated"],
        did_of(1): ["no-unauthenticated", "automated"],
        did_of(2): [],
        did_of(3): [],
        did_of(4): [],
    }
    assert [found[did_of(n)]["lists"] for n in range(5)] == [["news", "others"], ["others"], [], [], []]
    assert found[did_of(4)]["handle"] is None
    for words in ("the display name", "what the account says of itself"):
        assert files_that_hold(folder, words) == []
    assert len(asked(appview, "getProfiles")) == 5


def test_authors_are_told_to_mongodb_too_where_their_times_are_dates(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path, mongod: Mongod, mongo_database: str
) -> None:
    mongo = {"store__mongo_uri": mongod.uri, "store__mongo_database": mongo_database}
    post(relay, appview, 3)
    process = service(tmp_path, relay, model, appview__url=appview.url, **FAST, **mongo)
    with Client(mongod.uri) as db:
        kept = db[mongo_database].authors
        end_when(process, lambda: kept.count_documents({"looked_up_at": {"$type": "date"}}) == 3, "all authors")
        assert {one["handle"] for one in kept.find()} == {"author0.test", "author1.test", "author2.test"}


def test_only_authors_of_labelled_posts_are_looked_up(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    post(relay, appview, 10)
    draws_first(tmp_path, (uri(rkey(n), did_of(n)) for n in range(10)))
    process = service(tmp_path, relay, model, appview__url=appview.url, sample__posts_per_day=1, **FAST)
    labelled = "SELECT DISTINCT did FROM label"
    until(lambda: len(in_store(tmp_path)) == 10 and all_told(tmp_path), "all to be stored")
    drawn = {did for (did,) in query(tmp_path / "ledger.db", labelled)}
    assert 0 < len(drawn) < 10, "the test needs posts that were not drawn"
    end_when(process, lambda: looked_up(tmp_path) == len(drawn), "the authors")
    assert set(asked(appview, "getProfiles")) == drawn == set(stored(tmp_path))


# ---- when ------------------------------------------------------------------------------------------------------------


def test_calls_keep_to_the_rate(relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path) -> None:
    post(relay, appview, 120)
    asks = {**FAST, "authors__calls_per_minute": 60}
    process = service(tmp_path, relay, model, appview__url=appview.url, **asks)
    end_when(process, lambda: all_of_them(tmp_path, 120), "all authors")
    calls = appview.named("getProfiles")
    assert 5 <= len(calls) <= 30, "25 in a call where there are so many"
    assert max(len(call.query["actors"]) for call in calls) == 25
    took = calls[-1].at - calls[0].at
    assert took > 0.8 * (len(calls) - 1), "by the server's own clock: one a second at most"


def test_a_profile_is_looked_up_again_when_it_is_old_and_not_before(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    post(relay, appview, 2)
    process = service(tmp_path, relay, model, appview__url=appview.url, **FAST)
    end_when(process, lambda: all_of_them(tmp_path, 2), "all authors")
    before = stored(tmp_path)
    appview.labels[did_of(1)] = [says(did_of(1), "bot")]
    process = service(tmp_path, relay, model, appview__url=appview.url, **FAST)
    post(relay, appview, 1, first=2)
    end_when(process, lambda: all_of_them(tmp_path, 3), "the new author")
    assert asked(appview, "getProfiles").count(did_of(1)) == 1
    asks = {**FAST, "authors__refresh_days": 1e-7}
    process = service(tmp_path, relay, model, appview__url=appview.url, **asks)
    end_when(process, lambda: stored(tmp_path)[did_of(1)]["marks"] == ["automated"], "the new mark")
    assert stored(tmp_path)[did_of(1)]["v"] > before[did_of(1)]["v"]


def test_a_list_that_was_changed_counts_from_the_next_start_without_a_call(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    folder, file = tmp_path / "data", tmp_path / "news.csv"
    file.write_text(f"did\n{did_of(0)}\n")
    asks = {**FAST, "appview__url": appview.url, "authors__lists": json.dumps({"news": str(file)})}
    post(relay, appview, 3)
    process = service(folder, relay, model, **asks)
    end_when(process, lambda: all_of_them(folder, 3), "all authors")
    assert [stored(folder)[did_of(n)]["lists"] for n in range(3)] == [["news"], [], []]
    calls = len(appview.calls)
    file.write_text("handle\nauthor1.test\nauthor2.test\n")
    process = service(folder, relay, model, **asks)
    lists = [[], ["news"], ["news"]]
    end_when(process, lambda: [stored(folder)[did_of(n)]["lists"] for n in range(3)] == lists, "the new list")
    assert len(appview.calls) == calls


def test_an_api_that_is_down_keeps_nobody_waiting_and_is_asked_again(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    appview.next.append(Trouble(status=503))
    post(relay, appview, 3)
    process = service(tmp_path, relay, model, appview__url=appview.url, **FAST)
    until(lambda: len(in_store(tmp_path)) == 3 and all_told(tmp_path), "all to be labelled all the same")
    ended = end_when(process, lambda: looked_up(tmp_path) == 3, "the authors in the end")
    told = [event for event in events(ended, "appview_down") if event["stage"] == "authors"]
    assert [event["why"] for event in told] == [f"public API at {appview.url} answers HTTP 503"]
    assert [event["stage"] for event in events(ended, "appview_up")] == ["authors"]


def test_one_account_at_which_the_api_stumbles_costs_no_other(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    answer = appview.answer

    def odd(method: str, query: dict[str, list[str]]) -> tuple[int, bytes]:
        return (400, b"{}") if did_of(3) in query.get("actors", ()) else answer(method, query)

    appview.answer = odd  # type: ignore[method-assign]
    post(relay, appview, 8)
    process = service(tmp_path, relay, model, appview__url=appview.url, **FAST)
    end_when(process, lambda: looked_up(tmp_path) == 7, "the others")
    assert did_of(3) not in stored(tmp_path)


def test_an_api_that_shows_nobody_is_not_taken_at_its_word(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    post(relay, appview, 6)
    process = service(tmp_path, relay, model, appview__url=appview.url, **FAST)
    end_when(process, lambda: all_of_them(tmp_path, 6), "all authors")
    before = stored(tmp_path)
    appview.profiles.clear()
    asks = {**FAST, "authors__refresh_days": 1e-7, "appview__url": appview.url}
    process = service(tmp_path, relay, model, **asks)
    calls = len(appview.named("getProfiles"))
    until(lambda: len(appview.named("getProfiles")) > calls + 1, "it to be asked again, and so its answer to be taken")
    ended = end_when(process, lambda: True, "the end")
    assert stored(tmp_path) == before
    assert [event["why"] for event in events(ended, "appview_down")] == [
        "the public API shows nobody of whom it is asked"
    ]


# ---- who is gone -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["account", "erase", "last post"])
def test_whose_account_or_last_labelled_post_is_gone_leaves_no_handle_and_no_profile(
    how: str, relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    post(relay, appview, 3)
    relay.post(rkey(9), "A second post in plain English, about taxes", did=did_of(2))
    process = service(tmp_path, relay, model, appview__url=appview.url, **FAST)
    until(lambda: all_of_them(tmp_path, 3) and len(in_store(tmp_path)) == 4, "all authors")
    assert "author1.test" in json.dumps(stored(tmp_path)[did_of(1)])
    if how == "account":
        relay.account("deleted", did=did_of(1))
    elif how == "erase":
        ended = run("erase", did_of(1), "--data-dir", tmp_path)
        assert ended.code == 0, ended.err
    else:
        relay.delete(rkey(1), did=did_of(1))
    relay.delete(rkey(9), did=did_of(2))
    until(lambda: in_store(tmp_path)[rkey(9)]["state"] == "deleted", "the other's first deletion")
    end_when(process, lambda: "handle" not in stored(tmp_path)[did_of(1)] and all_told(tmp_path), "the author to go")
    told = stored(tmp_path)
    assert set(told[did_of(1)]) == {"_id", "did", "v", "state"}
    assert told[did_of(1)]["state"] == "deleted"
    assert told[did_of(2)]["handle"] == "author2.test", "another labelled post of theirs is left"
    assert files_that_hold(tmp_path, "author1.test") == []


def test_who_was_forgotten_and_is_labelled_again_is_looked_up_again(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    post(relay, appview, 1)
    process = service(tmp_path, relay, model, appview__url=appview.url, **FAST)
    until(lambda: looked_up(tmp_path) == 1, "the author")
    relay.delete(rkey(0), did=did_of(0))
    until(lambda: stored(tmp_path)[did_of(0)]["state"] == "deleted", "the author to go")
    relay.post(rkey(1), "A new post in plain English, about schools", did=did_of(0))
    end_when(process, lambda: stored(tmp_path)[did_of(0)]["state"] == "live", "the author to come back")
    assert stored(tmp_path)[did_of(0)]["handle"] == "author0.test"


def test_a_hidden_accounts_document_says_so_and_it_is_not_looked_up_meanwhile(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    post(relay, appview, 2)
    asks = {**FAST, "appview__url": appview.url}
    process = service(tmp_path, relay, model, **asks)
    until(lambda: looked_up(tmp_path) == 2, "the authors")
    relay.account("takendown", did=did_of(0))
    until(lambda: stored(tmp_path)[did_of(0)]["state"] == "hidden", "the author to be hidden")
    post(relay, appview, 1, first=2)
    until(lambda: looked_up(tmp_path) == 3, "another author")
    assert asked(appview, "getProfiles").count(did_of(0)) == 1
    relay.account("active", did=did_of(0))
    end_when(process, lambda: stored(tmp_path)[did_of(0)]["state"] == "live", "the author to be shown again")


# ---- by hand ---------------------------------------------------------------------------------------------------------


def by_hand(folder: Path, appview: AppViewServer, **settings: Any) -> Ended:
    asks = {"appview__per_second": 1000, "authors__calls_per_minute": 6000, **settings}
    return run("hydrate", "--authors", "--data-dir", folder, appview__url=appview.url, **asks)


def test_without_a_service_a_command_looks_them_up_and_with_one_that_does_it_says_so(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    post(relay, appview, 30)
    process = service(tmp_path, relay, model, appview__url=appview.url)
    until(lambda: len(in_store(tmp_path)) == 30 and all_told(tmp_path), "all to be labelled")
    refused = by_hand(tmp_path, appview)
    assert refused.code == 2
    assert "the role 'label' is held by" in refused.err
    taken = by_hand(tmp_path, appview, authors__fetch="true")
    assert (taken.code, taken.out) == (0, "the running service looks them up\n")
    end_when(process, lambda: True, "the end")
    assert appview.calls == []
    ended = by_hand(tmp_path, appview)
    assert (ended.code, ended.out) == (0, "30 authors looked up\n"), ended.err
    assert looked_up(tmp_path) == 30
    assert by_hand(tmp_path, appview).out == "0 authors looked up\n"
    assert len(appview.named("getProfiles")) == 2


def test_accounts_that_are_gone_are_done_with_when_the_api_shows_others(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    """Five accounts of spam, taken down before they were looked up, must not be asked for at every start for ever."""
    post(relay, appview, 1)
    process = service(tmp_path, relay, model)
    end_when(process, lambda: len(in_store(tmp_path)) == 1 and all_told(tmp_path), "it to be labelled")
    assert by_hand(tmp_path, appview).out == "1 authors looked up\n"
    post(relay, appview, 5, first=1)
    process = service(tmp_path, relay, model)
    end_when(process, lambda: len(in_store(tmp_path)) == 6 and all_told(tmp_path), "all to be labelled")
    appview.profiles = {did_of(0)}
    ended = by_hand(tmp_path, appview)
    assert (ended.code, ended.out) == (0, "0 authors looked up\n"), ended.err
    n = len(appview.named("getProfiles"))
    assert by_hand(tmp_path, appview).code == 0
    assert len(appview.named("getProfiles")) == n, "nobody is due"
    appview.profiles.clear()
    assert by_hand(tmp_path, appview, authors__refresh_days=1e-7).code == 1, "now it shows nobody of anybody"


def test_by_hand_an_api_that_is_down_ends_with_1(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    post(relay, appview, 30)
    process = service(tmp_path, relay, model)
    end_when(process, lambda: len(in_store(tmp_path)) == 30 and all_told(tmp_path), "all to be labelled")
    answer = appview.answer
    appview.answer = lambda method, query: (503, b"{}") if len(appview.calls) > 1 else answer(method, query)  # type: ignore[method-assign]
    ended = by_hand(tmp_path, appview)
    assert ended.code == 1
    assert "answers HTTP 503; what was got is kept, and the same command goes on from there" in ended.err
    assert looked_up(tmp_path) == 25


# ---- lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "No such file or directory; mend the path"),
        ("name\nx\n", "it has no column `did` and none `handle`"),
        ("", "it has no column `did` and none `handle`"),
        ("did\ndid:plc:a\nnobody\n", "line 3: 'nobody' is not a DID"),
        ("handle\nno handle\n", "line 2: 'no handle' is not a handle"),
        ("did,handle\n,\n", "line 2: neither a DID nor a handle"),
        (b"did\n\xff\n", "not a CSV file in UTF-8"),
    ],
)
def test_a_list_that_cannot_be_used_is_told_with_its_file_and_line(
    text: str | bytes | None, why: str, tmp_path: Path
) -> None:
    file = tmp_path / "news.csv"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Usage) as caught:
        read_lists({"news": file})
    assert str(caught.value).startswith(f"authors.lists: news: {file}: ")
    assert why in str(caught.value)


def test_a_bad_list_ends_the_start_with_2(model: tuple[str, Path], relay: Led, tmp_path: Path) -> None:
    asks = {**FAST, "authors__lists": json.dumps({"news": str(tmp_path / "nowhere.csv")})}
    ended = finish(service(tmp_path / "data", relay, model, **asks))
    assert ended.code == 2
    assert "nowhere.csv: No such file or directory; mend the path" in ended.err


async def test_a_ledger_of_before_knows_the_authors_of_its_labels(
    relay: Led, appview: AppViewServer, model: tuple[str, Path], tmp_path: Path
) -> None:
    """What was labelled before there were authors is looked up, too."""
    post(relay, appview, 3)
    process = service(tmp_path, relay, model)
    end_when(process, lambda: len(in_store(tmp_path)) == 3 and all_told(tmp_path), "all to be labelled")
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
        db.executescript("DROP TABLE author; DROP TABLE gate; DROP TABLE gate_file; PRAGMA user_version=2;")
    ledger = await Ledger.open(tmp_path / "ledger.db")
    try:
        assert await authors.Authors(ledger.database).due(NOW, 10) == sorted(did_of(n) for n in range(3))
    finally:
        await ledger.close()
