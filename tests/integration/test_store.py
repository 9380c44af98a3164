"""One contract over both stores: the SQLite file and a real MongoDB."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from civicsky.document import Document
from civicsky.errors import Refused, Transient
from civicsky.settings import Store as StoreSettings
from civicsky.store import Collection, MongoStore, Put, SqliteStore, Store
from conftest import Mongod


@pytest.fixture(params=["sqlite", "mongo"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened: Store
    if request.param == "mongo":
        server: Mongod = request.getfixturevalue("mongod")
        opened = MongoStore(mongo_settings(server, request.getfixturevalue("mongo_database")))
    else:
        opened = await SqliteStore.open(tmp_path / "posts.db")
    yield opened
    await opened.close()


def mongo_settings(server: Mongod, database: str, **more: Any) -> StoreSettings:
    return StoreSettings(mongo_uri=SecretStr(server.uri), mongo_database=database, **more)


def document(name: str, v: int, **fields: Any) -> Document:
    return {"_id": name, "v": v, "state": "live", "text": f"text of {name}", **fields}


async def everything(store: Store, collection: Collection = "posts") -> list[Document]:
    return [doc async for doc in store.documents(collection)]


async def test_a_new_document_is_written_and_read_back_as_it_was(store: Store) -> None:
    doc = document(
        "a",
        1,
        event_at="2026-11-22T13:12:25.063Z",
        created_at=None,
        labels={
            "civic": {"at": "2026-11-22T13:12:25.999Z", "fields": {"lean": {"value": "unclear", "probability": None}}}
        },
        alts=["nul \x00 and \u2028 and \U0001f600"],
        p_kept=0.25,
    )
    assert await store.put("posts", [doc]) == Put(1, 0, {})
    assert await everything(store) == [doc]


async def test_a_write_lands_only_over_a_smaller_version(store: Store) -> None:
    await store.put("posts", [document("a", 5)])
    assert await store.put("posts", [document("a", 5, text="same"), document("b", 1)]) == Put(1, 0, {}, 1)
    assert await store.put("posts", [document("a", 4, text="older")]) == Put(0, 1, {})
    assert await store.put("posts", [document("a", 6, text="newer")]) == Put(1, 0, {})
    assert [(doc["_id"], doc["v"], doc["text"]) for doc in await everything(store)] == [
        ("a", 6, "newer"),
        ("b", 1, "text of b"),
    ]


async def test_what_is_there_already_is_told_from_what_is_newer_there_and_from_what_cannot_be_held(
    store: Store,
) -> None:
    await store.put("posts", [document("same", 5), document("newer", 9)])
    some = [document("same", 5), document("newer", 5), document("fresh", 5), document("same", 4)]
    assert await store.put("posts", some[:3]) == Put(written=1, stale=1, refused={}, duplicate=1)
    assert await store.put("posts", some[3:]) == Put(written=0, stale=1, refused={}, duplicate=0)


async def test_documents_of_a_post_are_removed_by_its_uri_and_no_other_is(store: Store) -> None:
    await store.put("snapshots", [{"_id": f"{uri} {n}", "uri": uri, "v": n} for uri in ("a", "b") for n in (1, 2)])
    await store.remove("snapshots", ["a", "not there"])
    await store.remove("snapshots", [])
    assert [doc["_id"] for doc in await everything(store, "snapshots")] == ["b 1", "b 2"]


async def test_a_tombstone_replaces_every_field_and_nothing_late_brings_the_text_back(store: Store) -> None:
    await store.put("posts", [document("a", 5, labels={"civic": {}})])
    await store.put("posts", [{"_id": "a", "v": 9, "state": "deleted"}])
    assert await store.put("posts", [document("a", 8)]) == Put(0, 1, {})
    assert await everything(store) == [{"_id": "a", "v": 9, "state": "deleted"}]


async def test_only_existing_documents_are_replaced_when_asked_so(store: Store) -> None:
    await store.put("posts", [document("a", 5)])
    tombstones = [{"_id": name, "v": 9, "state": "deleted"} for name in ("a", "b")]
    put = await store.put("posts", tombstones, only_existing=True)
    assert put.written == 1
    assert await everything(store) == [{"_id": "a", "v": 9, "state": "deleted"}]


async def test_collections_are_apart_and_no_document_is_no_work(store: Store) -> None:
    assert await store.put("labels", []) == Put(0, 0, {})
    await store.put("labels", [document("a", 1)])
    await store.put("runs", [document("r", 1)])
    assert await everything(store) == []
    assert [doc["_id"] for doc in await everything(store, "labels")] == ["a"]


async def test_many_documents_come_back_in_the_order_of_their_ids(store: Store) -> None:
    names = [f"{n:05d}" for n in range(2500)]
    for at in range(0, len(names), 500):
        await store.put("posts", [document(name, 1) for name in reversed(names[at : at + 500])])
    assert [doc["_id"] for doc in await everything(store)] == names


async def test_documents_are_found_by_their_ids_each_once_and_missing_ones_are_left_out(store: Store) -> None:
    docs = [document("a", 1, event_at="2026-11-22T13:12:25.063Z", created_at=None), document("b", 1), document("c", 1)]
    await store.put("posts", docs)
    await store.put("labels", [document("d", 1)])
    found = await store.find("posts", ["c", "nobody", "a", "a", "d", "", "half \ud800 of a pair", "nul \x00"])
    assert sorted(found, key=lambda doc: doc["_id"]) == [docs[0], docs[2]]
    assert await store.find("labels", ["a", "d"]) == [document("d", 1)]
    assert await store.find("posts", []) == []
    assert await store.find("runs", ["a"]) == []


async def test_posts_come_in_the_order_of_their_time_and_only_those_of_the_time_that_is_asked_for(
    store: Store,
) -> None:
    def at(second: int) -> str:
        return f"2026-11-22T13:{second // 60:02d}:{second % 60:02d}.000Z"

    seconds = [(n * 7919) % 1500 for n in range(3000)]  # each twice, in no order
    posts: list[Document] = [
        {
            "_id": f"p{n:04d}", "v": 1, "cid": f"c{n}", "rev": None if n % 5 else "rev", "event_at": at(second),
            "state": ("live", "hidden", "deleted")[n % 3], "labels": {"civic": {}} if n % 4 else {}, "text": "x",
        }
        for n, second in enumerate(seconds)
    ]  # fmt: skip
    posts += [{**posts[0], "_id": f"same{n:04d}", "event_at": at(700)} for n in range(1200)]  # more than a page
    for begin in range(0, len(posts), 500):
        await store.put("posts", posts[begin : begin + 500])
    told = ("_id", "cid", "rev", "state", "event_at")
    for labelled in (False, True):
        wanted = [
            {name: doc[name] for name in told}
            for doc in posts
            if at(60) <= str(doc["event_at"]) < at(1400)
            and (doc["state"] == "live" and doc["labels"] if labelled else doc["state"] != "deleted")
        ]
        found = [doc async for doc in store.by_time(at(60), at(1400), labelled=labelled)]
        assert [doc["event_at"] for doc in found] == sorted(str(doc["event_at"]) for doc in wanted)
        assert sorted(found, key=lambda doc: doc["_id"]) == sorted(wanted, key=lambda doc: str(doc["_id"]))
    assert [doc async for doc in store.by_time(at(60), at(60))] == []


async def test_documents_of_posts_are_found_by_the_posts_in_their_order(store: Store) -> None:
    some = [{"_id": f"{uri} {n}", "uri": uri, "v": n} for uri in ("b", "a", "c") for n in (1, 2)]
    await store.put("snapshots", some)
    found = await store.of_posts("snapshots", ["b", "nobody", "a", "b"])
    assert [doc["_id"] for doc in found] == ["a 1", "a 2", "b 1", "b 2"]
    assert await store.of_posts("snapshots", []) == []


async def test_more_ids_than_one_query_takes_are_all_found(store: Store) -> None:
    names = [f"{n:05d}" for n in range(1700)]
    for at in range(0, len(names), 500):
        await store.put("posts", [document(name, 1) for name in names[at : at + 500]])
    found = await store.find("posts", [*names[::-1], *(f"other {n}" for n in range(1700)), *names])
    assert sorted(doc["_id"] for doc in found) == names


async def test_what_belongs_to_posts_is_found_by_their_uris_in_order_and_counted(store: Store) -> None:
    names = [f"at://{n:05d}" for n in range(1100)]
    for at in range(0, len(names), 500):
        await store.put("snapshots", [document(f"{name} b", 1, uri=name) for name in names[at : at + 500]])
    await store.put("snapshots", [document(f"{names[7]} a", 1, uri=names[7], at="2026-11-22T13:12:25.063Z")])
    await store.put("labels", [document("l", 1, uri=names[7])])
    found = await store.of_posts("snapshots", [*names[::-1], *names, "nobody", "half \ud800 of a pair"])
    assert [doc["_id"] for doc in found] == sorted([*(f"{name} b" for name in names), f"{names[7]} a"])
    assert found[7]["at"] == "2026-11-22T13:12:25.063Z"
    assert [doc["_id"] for doc in await store.of_posts("labels", names)] == ["l"]
    assert await store.of_posts("labels", []) == []
    assert [await store.count(name) for name in ("snapshots", "labels", "posts")] == [1101, 1, 0]


@pytest.mark.parametrize("bad", [2**63, {"nested": {"x": 2**70}}])
async def test_a_value_that_bson_refuses_costs_only_its_own_document(
    mongod: Mongod, mongo_database: str, bad: Any
) -> None:
    store = MongoStore(mongo_settings(mongod, mongo_database))
    batch: Sequence[Document] = [document(f"{n}", 1, value=bad if n == 3 else n) for n in range(8)]
    put = await store.put("posts", batch)
    assert put.written == 7
    assert list(put.refused) == ["3"]
    assert sorted(doc["_id"] for doc in await everything(store)) == ["0", "1", "2", "4", "5", "6", "7"]
    await store.close()


async def test_a_tombstone_that_a_validator_refuses_still_takes_the_text_away(
    mongod: Mongod, mongo_database: str
) -> None:
    store = MongoStore(mongo_settings(mongod, mongo_database))
    await store._connect().create_collection("posts", validator={"$jsonSchema": {"required": ["text"]}})
    await store.put("posts", [document("a", 1), document("b", 1)])
    put = await store.put("posts", [{"_id": "a", "v": 2, "state": "deleted"}, {"_id": "c", "v": 1, "state": "live"}])
    assert (put.written, list(put.refused)) == (1, ["c"])
    assert [doc["_id"] for doc in await everything(store)] == ["b"]
    await store.close()


async def test_times_are_dates_in_mongodb_for_those_who_query_there(mongod: Mongod, mongo_database: str) -> None:
    store = MongoStore(mongo_settings(mongod, mongo_database))
    await store.put("posts", [document("a", 1, event_at="2026-11-22T13:12:25.063Z")])
    found = await store._connect()["posts"].find_one({"event_at": {"$type": "date"}})
    assert found is not None
    assert found["_id"] == "a"
    indexes = await store._connect()["posts"].index_information()
    assert {"reply_root_1", "reply_parent_1", "quote_uri_1", "event_at_1", "did_1"} <= set(indexes)
    await store.close()


async def test_an_unreachable_mongodb_is_transient_and_the_message_holds_no_password() -> None:
    uri = SecretStr("mongodb://somebody:hunter2@127.0.0.1:1/?directConnection=true")
    store = MongoStore(StoreSettings(mongo_uri=uri, timeout_seconds=0.2))
    with pytest.raises(Transient, match=r"MongoDB at 127\.0\.0\.1:1/civicsky cannot be reached") as caught:
        await store.put("posts", [document("a", 1)])
    assert "hunter2" not in str(caught.value)
    with pytest.raises(Transient, match=r"MongoDB at 127\.0\.0\.1:1/civicsky cannot be reached") as caught:
        await store.find("posts", ["a"])
    assert "hunter2" not in str(caught.value)
    await store.close()


async def test_a_name_that_cannot_be_looked_up_now_is_transient() -> None:
    store = MongoStore(
        StoreSettings(mongo_uri=SecretStr("mongodb+srv://u:hunter2@cluster.invalid/?w=1"), timeout_seconds=0.2)
    )
    with pytest.raises(Transient, match=r"MongoDB at cluster\.invalid/civicsky cannot be looked up") as caught:
        await store.put("posts", [document("a", 1)])
    assert "hunter2" not in str(caught.value)
    await store.close()


@pytest.mark.parametrize(
    "uri",
    [
        "mongo://user:hunter2@host",
        "mongodb://user:some/hunter2@host/",
        "mongodb://user:some%2Ahunter2/more@host/",
        "mongodb://user:hunter2/more@host/",
        "mongodb://user:some@hunter2@host",
    ],
)
def test_a_wrong_connection_string_is_refused_and_no_piece_of_it_is_shown(uri: str) -> None:
    with pytest.raises(Refused, match="not a MongoDB connection string") as caught:
        MongoStore(StoreSettings(mongo_uri=SecretStr(uri)))
    assert "hunter2" not in str(caught.value)
