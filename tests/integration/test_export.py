"""Exports from both stores, filled by hand as the other parts fill them, and read back by three readers."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from math import isnan
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from civicsky.document import Document
from civicsky.errors import Usage
from civicsky.export.columns import TABLES
from civicsky.export.dataset import PAGE, Wanted, export
from civicsky.export.pseudonyms import KEY, Pseudonyms
from civicsky.export.writers import unguarded
from civicsky.loading import load
from civicsky.model import format_time
from civicsky.settings import Settings
from civicsky.store import Collection, Store, open_store
from conftest import Mongod

MARKED, KNOWN, UNKNOWN = "did:plc:marked", "did:plc:known", "did:web:un-known.example"
HOUR = "2026-11-22T13"
HOSTILE = "=1+1 nul \x00, \"quoted\" 'single'; line\r\nbreak, \u202eevil \U0001f600"


@pytest.fixture(params=["sqlite", "mongo"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    flags: dict[str, Any] = {"data_dir": str(tmp_path / "data"), "store.kind": request.param}
    (tmp_path / "data").mkdir()
    if request.param == "mongo":
        server: Mongod = request.getfixturevalue("mongod")
        flags |= {"store.mongo_uri": server.uri, "store.mongo_database": request.getfixturevalue("mongo_database")}
    return load(None, flags)


@pytest.fixture
def sqlite(tmp_path: Path) -> Settings:
    (tmp_path / "data").mkdir()
    return load(None, {"data_dir": str(tmp_path / "data"), "store.kind": "sqlite"})


def uri_of(did: str, n: int) -> str:
    return f"at://{did}/app.bsky.feed.post/3rkey{n:04d}"


def said(civic: str = "civic", lean: str | None = "unclear", p: float | None = 0.123456789) -> dict[str, Any]:
    found = {"civic": {"value": civic, "probability": p}}
    return found | ({"lean": {"value": lean, "probability": None}} if lean else {})


def post(did: str, n: int, *, origins: Sequence[Mapping[str, Any]] = (), **more: Any) -> Document:
    uri = uri_of(did, n)
    return {
        "_id": uri, "uri": uri, "did": did, "rkey": f"3rkey{n:04d}", "cid": f"bafycid{n}", "rev": f"3rev{n}", "v": 1,
        "state": "live", "text": f"{HOSTILE} text number {n}", "langs": ["en", "de"],
        "created_at": f"{HOUR}:12:25.063Z", "event_at": f"{HOUR}:{n:02d}:26.000Z", "received_at": f"{HOUR}:12:27.000Z",
        "backdated": False, "reply_root": uri_of(KNOWN, 90), "reply_parent": None, "quote_uri": None,
        "link": {"uri": f"https://link.example/{n}", "title": f"title {n}", "description": f"description {n}"},
        "alts": [f"alt {n}"], "media": "images", "tags": [f"tag{n}"], "links": [f"https://in.example/{n}"],
        "mentions": ["did:plc:mentioned"], "self_labels": [],
        "moderation": [{"source": "did:plc:mod", "value": "rude", "at": None}],
        "origins": list(origins) or [{"kind": "firehose", "host": "wss://relay.example"}],
        "filter": {"version": "english-vote-2", "english_by": ["tag"], "scores": {"fasttext": 0.9, "cld2": 0.8},
                   "flags": [], "reason": None},
        "p_kept": 0.5, "labels": {}, "unlabelled": {}, **more,
    }  # fmt: skip


def current(n: int, **fields: Any) -> dict[str, Any]:
    return {
        "fields": said(**fields), "p_sampled": 0.25, "model": "m1", "prompt": "aaaa1111" * 8, "cid": f"bafycid{n}",
        "label_id": f"label{n}", "at": f"{HOUR}:30:00.000Z",
    }  # fmt: skip


def labelled(did: str, n: int, **fields: Any) -> dict[str, Any]:
    return post(did, n, labels={"civic": current(n, **fields)})


def label(did: str, n: int, **more: Any) -> Document:
    found = {
        "_id": f"label{n}", "uri": uri_of(did, n), "v": 1, "state": "live", "cid": f"bafycid{n}", "task": "civic",
        "task_version": "2", "run": 0, "prompt": "aaaa1111" * 8, "fields": said(), "reason": f"it quotes number {n}",
        "p_sampled": 0.25, "model": "m1", "model_asked": "m", "fingerprint": "fp", "server": None, "way": "schema",
        "parameters": "{}", "endpoint": "http://node.example/v1", "input_hash": f"hash{n}", "context_hash": None,
        "tokens_in": 10, "tokens_out": 2, "tokens_reasoning": 0, "cost": 0.5, "currency": "USD", "cached_from": None,
        "latency_ms": 12, "calls": 1, "attempts": 1, "at": f"{HOUR}:30:00.000Z",
    }  # fmt: skip
    return found | more


def snapshot(did: str, n: int) -> Document:
    at, uri = f"{HOUR}:50:00.000Z", uri_of(did, n)
    return {"_id": f"{uri} {at} today", "uri": uri, "v": 1, "at": at, "why": "today", "rank": 3, "likes": 1234567,
            "reposts": 5, "replies": 6, "quotes": 7}  # fmt: skip


def author(did: str, *marks: str) -> Document:
    return {
        "_id": did, "did": did, "v": 1, "state": "live", "handle": f"{did[8:]}.handle.example",
        "created_at": f"{HOUR}:00:00.000Z", "followers": 1, "follows": 2, "posts": 3,
        "marks": list(marks), "lists": ["news"], "moderation": [], "looked_up_at": f"{HOUR}:00:00.000Z",
    }  # fmt: skip


FEED = {"kind": "feed", "name": "today", "rank": 3, "fetched_at": f"{HOUR}:50:00.000Z"}
DOCUMENTS: dict[Collection, list[Document]] = {
    "posts": [
        labelled(KNOWN, 1, lean="left-leaning"),
        labelled(KNOWN, 2, civic="not civic", lean=None),
        post(KNOWN, 3, unlabelled={"civic": {"reason": "refusal", "p_sampled": 0.25}}),
        post(KNOWN, 4),
        post(UNKNOWN, 5, origins=[FEED], rev=None),
        post(UNKNOWN, 6, origins=[{"kind": "firehose", "host": "wss://relay.example"}, FEED]),
        labelled(MARKED, 7),
        {**labelled(KNOWN, 8), "state": "hidden"},
        {"_id": uri_of(KNOWN, 9), "uri": uri_of(KNOWN, 9), "v": 2, "state": "deleted",
         "event_at": f"{HOUR}:09:26.000Z"},
    ],
    "labels": [
        label(KNOWN, 1), label(KNOWN, 2), label(MARKED, 7), label(KNOWN, 8, state="hidden"),
        label(KNOWN, 1, _id="old1", cid="bafyformer", at=f"{HOUR}:20:00.000Z"),
        label(KNOWN, 1, _id="other1", model="m2", prompt="bbbb2222" * 8, fields=said("civic", "moderate"),
              at=f"{HOUR}:25:00.000Z"),
        label(KNOWN, 2, _id="tox2", task="toxic", fields={"toxic": {"value": "yes", "probability": 0.5}}),
        {"_id": "gone", "uri": uri_of(KNOWN, 9), "v": 2, "state": "deleted", "event_at": f"{HOUR}:09:26.000Z"},
    ],
    "snapshots": [snapshot(UNKNOWN, 5), snapshot(MARKED, 7), snapshot(KNOWN, 8)],
    "authors": [author(KNOWN, "automated"), author(MARKED, "no-unauthenticated"), author("did:plc:nobody")],
    "runs": [{"_id": "1", "v": 1, "started": f"{HOUR}:00:00.000Z", "version": "0.1.0",
              "filter_version": "english-vote-2", "settings": "{}", "settings_hash": "hash of settings"}],
    "coverage": [{"_id": "held", "v": 1, "kind": "held", "host": "wss://relay.example", "epoch": 1, "resume": "first",
                  "first_seq": 1, "last_seq": 9, "frames": 9, "first_at": f"{HOUR}:01:26.000Z",
                  "last_at": f"{HOUR}:07:26.000Z"}],
}  # fmt: skip


async def fill(settings: Settings, documents: Mapping[Collection, Sequence[Document]] = DOCUMENTS) -> None:
    await in_store(settings, lambda store: [store.put(name, docs) for name, docs in documents.items()])


async def in_store(settings: Settings, work: Callable[[Store], Any]) -> None:
    store = await open_store(settings.store, settings.data_dir / "posts.db")
    for one in work(store):
        await one
    await store.close()


async def exported(settings: Settings, **wanted: Any) -> tuple[Path, dict[str, Any]]:
    """The folder and its manifest."""
    out = settings.data_dir.parent / f"out{len(list(settings.data_dir.parent.iterdir()))}"
    done = await export(settings, Wanted(out=out, **wanted), print)
    found = json.loads((out / "manifest.json").read_bytes())
    assert done.found == {"folder": str(out), **found}
    return out, found


def rows(out: Path, table: str = "posts") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = parquet.read_table(out / f"{table}.parquet").to_pylist()
    return found


def numbers(out: Path, table: str = "posts") -> list[int]:
    return sorted(int(row["uri"][-4:]) for row in rows(out, table))


# ---- what is in it ---------------------------------------------------------------------------------------------------


async def test_live_posts_are_exported_with_their_labels_snapshots_and_authors(settings: Settings) -> None:
    await fill(settings)
    out, found = await exported(settings)
    assert numbers(out) == [1, 2, 3, 4, 5, 6, 7]
    assert sorted(row["label_id"] for row in rows(out, "labels")) == [
        "label1",
        "label2",
        "label7",
        "old1",
        "other1",
        "tox2",
    ]
    assert numbers(out, "snapshots") == [5, 7]
    assert [row["did"] for row in rows(out, "authors")] == [KNOWN, MARKED]
    first = rows(out)[0]
    text = HOSTILE.replace("\x00", "\ufffd")
    assert first["text"] == f"{text} text number 1"
    assert (first["civic_lean"], first["civic_weight"], first["civic_civic_probability"]) == (
        "left-leaning",
        8.0,
        0.123456789,
    )
    assert (first["langs"], first["link_title"], first["filter_cld2"]) == ('["en", "de"]', "title 1", 0.8)
    assert (first["author_marks"], first["author_lists"]) == ('["automated"]', '["news"]')
    assert first["event_at"].isoformat() == "2026-11-22T13:01:26+00:00"
    by = {row["uri"]: row for row in rows(out)}
    assert by[uri_of(KNOWN, 3)]["civic_unlabelled"] == "refusal"
    assert by[uri_of(KNOWN, 3)]["civic_weight"] == 8.0
    assert by[uri_of(KNOWN, 4)]["civic_weight"] is None
    assert by[uri_of(UNKNOWN, 5)]["author_marks"] is None
    assert [row["current_text"] for row in rows(out, "labels") if row["label_id"] == "old1"] == [False]
    posts = found["posts"]
    assert (posts["exported"], posts["hidden"], posts["deleted"]) == (7, 1, 1)
    assert posts["share_deleted"] == pytest.approx(1 / 9)
    assert (posts["authors_marked"], posts["authors_not_looked_up"]) == (1, 2)
    civic = found["tasks"]["civic"]
    assert (civic["drawn"], civic["labelled"], civic["unlabelled"], civic["share_labelled"]) == (
        4,
        3,
        {"refusal": 1},
        0.75,
    )
    assert civic["not_drawn_or_waiting"] == 3
    assert found["origins"] == {"both": 1, "feed": 2, "feed:today": 2, "firehose": 6}
    assert found["probabilities"]["p_kept"] == [0.5, 0.5]
    assert found["coverage"]["share_held"] == 1.0
    assert [run["settings_hash"] for run in found["runs"]] == ["hash of settings"]
    (made,) = found["labels_made_by"]
    assert (made["model"], made["fingerprint"], made["way"], made["posts"]) == ("m1", "fp", "schema", 3)


async def test_what_waits_or_was_not_drawn_is_told_beside_the_share_that_is_labelled(sqlite: Settings) -> None:
    await fill(sqlite)
    done = await export(sqlite, Wanted(out=sqlite.data_dir.parent / "out"), print)
    assert "civic: 3 labelled (75.0%) of 4 drawn; 3 not drawn, or waiting\n" in done.text


async def test_a_task_that_only_the_store_knows_has_its_columns(settings: Settings) -> None:
    await fill(settings)
    out, found = await exported(settings)
    assert found["tasks"]["toxic"]["sha256"] is None
    assert [row["toxic_toxic"] for row in rows(out, "labels") if row["task"] == "toxic"] == ["yes"]
    assert {row["toxic_toxic"] for row in rows(out)} == {None}, "it is no post's current label"
    out, found = await exported(settings, tasks=["civic"])
    assert list(found["tasks"]) == ["civic"]
    assert {row["task"] for row in rows(out, "labels")} == {"civic"}
    assert "toxic_toxic" not in rows(out)[0]


async def test_a_post_deleted_between_two_exports_is_gone_from_the_second_in_all_tables(settings: Settings) -> None:
    await fill(settings)
    before, _ = await exported(settings)
    gone = {"v": 2, "state": "deleted", "event_at": f"{HOUR}:07:26.000Z", "uri": uri_of(MARKED, 7)}
    await in_store(
        settings,
        lambda store: [
            store.put("posts", [{"_id": uri_of(MARKED, 7), **gone}]),
            store.put("labels", [{"_id": "label7", **gone}]),
        ],
    )
    after, found = await exported(settings)
    for table in ("posts", "labels", "snapshots"):
        assert 7 in numbers(before, table)
        assert 7 not in numbers(after, table), table
    assert MARKED in {row["did"] for row in rows(before, "authors")}
    assert MARKED not in {row["did"] for row in rows(after, "authors")}
    assert found["posts"]["deleted"] == 2


async def test_a_label_of_a_deleted_post_stays_out_even_while_its_own_tombstone_is_on_its_way(
    settings: Settings,
) -> None:
    await fill(settings)
    gone = {
        "_id": uri_of(MARKED, 7),
        "uri": uri_of(MARKED, 7),
        "v": 2,
        "state": "deleted",
        "event_at": f"{HOUR}:07:26.000Z",
    }
    await in_store(settings, lambda store: [store.put("posts", [gone])])
    out, _ = await exported(settings)
    for table in ("posts", "labels", "snapshots"):
        assert 7 not in numbers(out, table)


async def test_posts_of_authors_who_ask_for_it_are_dropped_when_the_setting_says_so(settings: Settings) -> None:
    await fill(settings)
    authors = settings.authors.model_copy(update={"respect": "drop"})
    settings = settings.model_copy(update={"authors": authors})
    out, found = await exported(settings)
    for table in ("posts", "labels", "snapshots"):
        assert 7 not in numbers(out, table)
    assert [row["did"] for row in rows(out, "authors")] == [KNOWN]
    assert found["posts"]["left_out"]["consent"] == 1
    assert found["tasks"]["civic"]["labelled"] == 2


# ---- filters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        ({"since": f"{HOUR}:03:26Z"}, [3, 4, 5, 6, 7]),
        ({"until": f"{HOUR}:03:26Z"}, [1, 2]),
        ({"since": "2026-11-23"}, []),
        ({"origin": "firehose"}, [1, 2, 3, 4, 6, 7]),
        ({"origin": "feed:today"}, [5, 6]),
        ({"origin": "feed:week"}, []),
        ({"where": ["civic=civic"]}, [1, 7]),
        ({"where": ["civic=civic", "lean=unclear"]}, [7]),
        ({"where": ["civic=not civic"]}, [2]),
        ({"model": "m1"}, [1, 2, 7]),
        ({"model": "m"}, [1, 2, 7]),
        ({"model": "m2"}, [1]),
        ({"prompt": "bbbb2222"}, [1]),
        ({"prompt": "aaaa", "model": "m2"}, []),
        ({"model": "m2", "where": ["lean=moderate"]}, [1]),
        ({"model": "m2", "where": ["lean=left-leaning"]}, []),
        ({"tasks": ["toxic"], "where": ["toxic=yes"]}, []),
    ],
)
async def test_filters_choose_posts(settings: Settings, wanted: dict[str, Any], left: list[int]) -> None:
    await fill(settings)
    out, found = await exported(settings, **wanted)
    assert numbers(out) == left
    assert found["posts"]["exported"] == len(left)
    assert set(numbers(out, "labels")) <= set(left)
    assert set(numbers(out, "snapshots")) <= set(left)


async def test_labels_of_a_model_that_was_asked_for_are_shown_in_place_of_the_current_ones(settings: Settings) -> None:
    await fill(settings)
    out, _ = await exported(settings, model="m2")
    (only,) = rows(out)
    assert (only["civic_lean"], only["civic_model"], only["civic_label_id"]) == ("moderate", "m2", "other1")
    assert [row["label_id"] for row in rows(out, "labels")] == ["other1"]
    out, _ = await exported(settings, model="m1")
    assert rows(out)[0]["civic_label_id"] == "label1", "not that of the former text"


async def test_the_newest_label_of_the_present_text_is_shown(settings: Settings) -> None:
    label_of = {"model": "m3", "_id": "now"}
    former = {"model": "m3", "_id": "former", "cid": "bafyformer", "at": f"{HOUR}:59:00.000Z"}
    older = {"model": "m3", "_id": "older", "at": f"{HOUR}:01:00.000Z"}
    await fill(settings, {**DOCUMENTS, "labels": [label(KNOWN, 1, **more) for more in (label_of, former, older)]})
    out, _ = await exported(settings, model="m3")
    assert [row["civic_label_id"] for row in rows(out)] == ["now"]
    assert len(rows(out, "labels")) == 3


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"since": "yesterday"}, "--since yesterday: neither a date"),
        ({"since": "2026-11-22", "until": "2026-11-22"}, "not before --until"),
        ({"where": ["civic"]}, "--where civic: no task has such a field or value; there are civic=civic|not civic"),
        ({"where": ["civic=maybe"]}, "no task has such a field or value"),
        ({"origin": "rss"}, "--origin rss: is neither any, nor firehose, nor feed:NAME"),
        ({"tasks": ["nothing"]}, "--task nothing: neither in label.tasks nor among the labels; there are civic, toxic"),
        ({"level": "public", "tables": ["authors"]}, "--table authors: the level public has posts and labels only"),
        ({"tables": ["pots"]}, "--table pots"),
        ({"level": "restricted", "where": ["civic=civic"]}, "addresses chosen by their labels would tell the labels"),
        ({"key_file": Path("/nowhere")}, "--key-file: the level internal has no pseudonyms"),
        ({"level": "public", "key_file": Path("/nowhere/key")}, "/nowhere/key: No such file or directory"),
    ],
)
async def test_what_is_asked_wrongly_is_told_and_leaves_nothing(
    sqlite: Settings, wanted: dict[str, Any], told: str
) -> None:
    await fill(sqlite)
    with pytest.raises(Usage, match=re.escape(told)):
        await exported(sqlite, **wanted)
    assert [file.name for file in sqlite.data_dir.parent.iterdir()] == ["data"]


async def test_a_folder_without_a_store_is_told(sqlite: Settings) -> None:
    with pytest.raises(Usage, match="there is no store"):
        await exported(sqlite)


# ---- formats ---------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A cell as all readers can give it: text as it is, times as text, nothing for what is empty."""
    if value is None or value is pd.NaT or value == "" or (isinstance(value, float) and isnan(value)):
        return None
    return format_time(round(value.timestamp() * 1000) * 1000) if isinstance(value, datetime) else value


def by_arrow(out: Path, table: str) -> list[list[Any]]:
    return [[plain(cell) for cell in row.values()] for row in rows(out, table)]


def by_pandas(out: Path, table: str) -> list[list[Any]]:
    frame = pd.read_parquet(out / f"{table}.parquet", dtype_backend="pyarrow")
    return [[None if cell is pd.NA else plain(cell) for cell in row] for row in frame.itertuples(index=False)]


def by_duckdb(out: Path, table: str, form: str = "parquet") -> list[list[Any]]:
    file = out / f"{table}.{form}"
    source = {"parquet": f"'{file}'", "jsonl": f"read_json('{file}', format='newline_delimited', sample_size=-1)"}[form]
    with duckdb.connect() as db:
        return [[plain(cell) for cell in row] for row in db.execute(f"SELECT * FROM {source}").fetchall()]


async def test_every_reader_sees_the_same_rows_in_every_format(settings: Settings) -> None:
    await fill(settings)
    out, _ = await exported(settings)
    jsonl, _ = await exported(settings, form="jsonl")
    csv, found = await exported(settings, form="csv")
    for table in TABLES["internal"]:
        rows = by_arrow(out, table)
        assert rows
        assert by_pandas(out, table) == rows
        assert by_duckdb(out, table) == rows
        lines = (jsonl / f"{table}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        assert [[plain(cell) for cell in json.loads(line).values()] for line in lines] == rows
        assert len(by_duckdb(jsonl, table, "jsonl")) == len(rows)
        # A CSV file has text only: read it with the types that the manifest tells.
        columns = next(file["columns"] for file in found["files"] if file.get("table") == table)
        frame = pd.read_csv(csv / f"{table}.csv", dtype=str, keep_default_na=False, encoding="utf-8")
        typed = [
            [as_told(cell, column["type"]) for cell, column in zip(row, columns, strict=True)]
            for row in frame.itertuples(index=False)
        ]
        assert typed == rows
        with duckdb.connect() as db:
            counted = db.execute(f"SELECT count(*) FROM read_csv('{csv / table}.csv', all_varchar=true)").fetchall()
        assert counted == [(len(rows),)]
        assert [column["name"] for column in columns] == list(frame.columns)


def as_told(cell: str, kind: str) -> Any:
    if cell == "":
        return None
    makers: dict[str, Callable[[str], Any]] = {
        "bool": lambda text: {"true": True, "false": False}[text], "int64": int, "double": float, "string": unguarded
    }  # fmt: skip
    return makers.get(kind, str)(cell)


@pytest.mark.parametrize("level", ["internal", "restricted", "public"])
async def test_no_column_is_null_or_nested_and_times_are_utc_in_microseconds(sqlite: Settings, level: Any) -> None:
    await fill(sqlite, {"posts": [post(UNKNOWN, 4, link=None, created_at=None)]})
    out, found = await exported(sqlite, level=level)
    for table in TABLES[level]:
        schema = parquet.read_schema(out / f"{table}.parquet")
        for field in schema:
            assert not pa.types.is_null(field.type), field
            assert not pa.types.is_nested(field.type), field
            if pa.types.is_temporal(field.type):
                assert field.type == pa.timestamp("us", tz="UTC")
        told = next(file["columns"] for file in found["files"] if file.get("table") == table)
        assert told == [{"name": field.name, "type": str(field.type)} for field in schema]


async def test_rows_of_many_pages_come_each_once(settings: Settings) -> None:
    n = 2 * PAGE + 7
    docs = [post(f"did:plc:{k // 3:05d}", k % 60, text=str(k)) for k in range(n)]
    for k, doc in enumerate(docs):
        doc["_id"] = doc["uri"] = f"at://{doc['did']}/app.bsky.feed.post/{k:06d}"
    await fill(settings, {"posts": docs, "authors": [author(f"did:plc:{k:05d}") for k in range(n // 3 + 1)]})
    out, _ = await exported(settings)
    assert sorted(int(row["text"]) for row in rows(out)) == list(range(n))
    dids = [row["did"] for row in rows(out, "authors")]
    assert dids == sorted(set(dids))
    assert len(dids) == n // 3 + 1


# ---- levels ----------------------------------------------------------------------------------------------------------


def words(value: Any) -> Iterator[str]:
    """Every text in a document that is a person's or leads to one."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from words(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from words(inner)
    elif isinstance(value, str):
        yield value


OURS = {
    "live", "hidden", "deleted", "firehose", "feed", "civic", "not civic", "toxic", "yes", "unclear", "left-leaning",
    "moderate", "m", "m1", "m2", "fp", "schema", "{}", "2", "refusal", "english-vote-2", "aaaa1111" * 8,
    "bbbb2222" * 8, "en", "de", "images", "tag", "USD", "news", "rude", "today", "wss://relay.example", "automated",
    "no-unauthenticated",
}  # fmt: skip
"""Words of ours, of the task and of servers; all else of posts, labels, snapshots and authors must not be found."""


def secrets() -> set[str]:
    found = set()
    for name in TABLES["internal"]:
        for doc in DOCUMENTS[name]:
            found |= set(words(doc))
    return {word for word in found - OURS if word}


async def test_the_level_public_holds_nothing_that_leads_back(settings: Settings) -> None:
    await fill(settings)
    wanted = secrets()
    assert {
        KNOWN,
        "3rkey0001",
        uri_of(KNOWN, 1),
        "bafycid1",
        "known.handle.example",
        "label1",
        "hash1",
        "alt 1",
    } <= wanted
    assert f"{HOUR}:01:26.000Z" in wanted
    for form in ("parquet", "csv", "jsonl"):
        out, found = await exported(settings, level="public", form=form)
        assert sorted(file.name for file in out.iterdir()) == sorted(
            [f"labels.{form}", f"posts.{form}", "codebook.md", "manifest.json", "methods.md"]
        )
        texts = {file.name: file.read_bytes().decode(errors="replace") for file in out.iterdir()}
        if form == "parquet":
            texts |= {
                table: json.dumps(rows(out, table), default=str, ensure_ascii=False) for table in ("posts", "labels")
            }
            # What a text begins with would also lead back.
            assert all(f"{HOUR}:" not in text.replace(":00:00", "") for text in texts.values() if text.startswith("["))
        coverage = {found["coverage"][name] for name in ("from", "until")}
        started = {run["first_start"] for run in found["runs"]}
        for word in wanted - coverage - started:
            for name, text in texts.items():
                assert word not in text, (name, word)
                assert json.dumps(word)[1:-1] not in text, (name, word)
        assert not re.search(r"did:|at://|app\.bsky|https?://", "".join(texts.values()))


async def test_public_rows_have_labels_weights_and_pseudonyms_in_the_order_of_these(settings: Settings) -> None:
    await fill(settings)
    out, found = await exported(settings, level="public")
    names = Pseudonyms(bytes.fromhex((settings.data_dir / KEY).read_text().strip()))
    by = {row["post"]: row for row in rows(out)}
    assert list(by) == sorted(by)
    assert set(by) == {names.post(uri_of(did, n)) for did, n in (
        (KNOWN, 1), (KNOWN, 2), (KNOWN, 3), (KNOWN, 4), (UNKNOWN, 5), (UNKNOWN, 6), (MARKED, 7))}  # fmt: skip
    first = by[names.post(uri_of(KNOWN, 1))]
    assert first["author"] == names.author(KNOWN)
    assert (first["civic_lean"], first["civic_civic_probability"], first["civic_weight"]) == ("left-leaning", 0.12, 8.0)
    assert str(first["event_hour"]) == "2026-11-22 13:00:00+00:00"
    assert by[names.post(uri_of(KNOWN, 3))]["civic_unlabelled"] == "refusal"
    labels = rows(out, "labels")
    assert [row["post"] for row in labels] == sorted(row["post"] for row in labels)
    assert len(labels) == 6
    assert found["pseudonyms"] == {"check": names.check()}
    assert names.key.hex() not in (out / "manifest.json").read_text()
    again, _ = await exported(settings, level="public")
    assert rows(again) == rows(out), "the same key gives the same names"


async def test_the_level_restricted_has_addresses_and_nothing_else(settings: Settings) -> None:
    await fill(settings)
    out, found = await exported(settings, level="restricted")
    assert rows(out) == [
        {"uri": uri} for uri in sorted(doc["_id"] for doc in DOCUMENTS["posts"] if doc["state"] == "live")
    ]
    assert sorted(file.name for file in out.iterdir()) == [
        "codebook.md",
        "manifest.json",
        "methods.md",
        "posts.parquet",
    ]
    for file in out.iterdir():
        text = file.read_bytes().decode(errors="replace")
        assert "civic=" not in text
        assert "lean" not in text, file
    assert (found["tasks"], found["labels_made_by"]) == ({}, [])


async def test_the_key_is_made_once_for_its_owner_alone_and_refused_when_others_can_read_it(sqlite: Settings) -> None:
    await fill(sqlite)
    file = sqlite.data_dir.parent / "my.key"
    first, _ = await exported(sqlite, level="public", key_file=file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert not (sqlite.data_dir / KEY).exists()
    other, _ = await exported(sqlite, level="public")
    assert {row["post"] for row in rows(first)} & {row["post"] for row in rows(other)} == set()
    file.chmod(0o640)
    with pytest.raises(Usage, match=r"others may read this key.*chmod 600"):
        await exported(sqlite, level="public", key_file=file)
    file.chmod(0o600)
    file.write_text("secret")
    with pytest.raises(Usage, match="is no key") as told:
        await exported(sqlite, level="public", key_file=file)
    assert "secret" not in str(told.value)


# ---- what goes with it -----------------------------------------------------------------------------------------------


async def test_the_manifest_tells_the_hash_size_rows_and_columns_of_each_file(settings: Settings) -> None:
    await fill(settings)
    out, found = await exported(settings, where=["civic=civic"], since="2026-11-22")
    files = {file["name"]: file for file in found["files"]}
    assert set(files) | {"manifest.json"} == {file.name for file in out.iterdir()}
    for name, file in files.items():
        data = (out / name).read_bytes()
        assert (file["sha256"], file["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
    assert files["posts.parquet"]["rows"] == 2
    assert found["asked"] == {
        "since": "2026-11-22T00:00:00.000Z", "until": None, "tasks": ["civic", "toxic"], "where": ["civic=civic"],
        "origin": "any", "model": None, "prompt": None, "consent": "flag",
    }  # fmt: skip
    assert found["tasks"]["civic"]["labelled"] == 3, "of all that were collected"
    assert {file.stat().st_mode & 0o077 for file in out.iterdir()} == {0}, "for its owner alone"


async def test_codebook_and_methods_tell_what_was_exported(settings: Settings) -> None:
    await fill(settings)
    out, found = await exported(settings)
    codebook = (out / "codebook.md").read_text()
    for file in found["files"]:
        for column in file.get("columns", ()):
            assert f"| `{column['name']}` |" in codebook
    assert "| `lean` | `left-leaning`" in codebook
    methods = " ".join((out / "methods.md").read_text().split())
    assert "4 of these were taken, each with probability" in methods, "a feed showed one of them"
    assert "1 (25.0%) could not be labelled, most often because of refusal." in methods


async def test_a_leftover_of_a_killed_export_is_told(sqlite: Settings) -> None:
    await fill(sqlite)
    left = sqlite.data_dir.parent / f"old.unfinished-{os.getpid()}"
    left.mkdir()
    told: list[str] = []
    await export(sqlite, Wanted(out=sqlite.data_dir.parent / "new"), told.append)
    assert told == [f"{left} was left by an export that was killed; nobody needs it: remove it"]
