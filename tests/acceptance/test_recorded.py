"""The official server's recorded stream, through the installed command, against what its API said of each record."""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from civicsky.frames import FrameWriter, read_frames
from support.command import CIVICSKY, end_when, model_server, query, server, start

FRAMES = Path(__file__).parents[1] / "frames"
DAY = timedelta(hours=24)


def index() -> Iterator[dict[str, Any]]:
    with gzip.open(FRAMES / "index.jsonl.gz", "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def moment(text: str) -> str:
    """With milliseconds, as documents have it."""
    return datetime.fromisoformat(text).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def expected(last: int = 478) -> dict[str, dict[str, Any]]:
    """What a perfect collector holds after a frame, by URI: the server's own word, without code of ours."""
    posts: dict[str, dict[str, Any]] = {}
    for line in takewhile(lambda line: line["seq"] <= last, index()):
        did = line.get("repo")
        if line["t"] == "#account":
            for uri, doc in posts.items():
                if doc["did"] == did and doc["state"] != "deleted":
                    state = "live" if line["active"] else "deleted" if line["status"] == "deleted" else "hidden"
                    posts[uri] = doc | {"state": state}
        for op in line.get("ops", []):
            collection, rkey = op["path"].split("/")
            uri = f"at://{did}/{op['path']}"
            if collection != "app.bsky.feed.post":
                continue
            if op["action"] == "delete":
                posts[uri] = {"did": did, "state": "deleted"}
            else:
                first = line["time"] if op["action"] == "create" else posts[uri]["event_at"]
                posts[uri] = document(op["truth"], first) | {
                    "did": did, "rkey": rkey, "cid": op["cid"], "rev": line["rev"], "state": "live", "uri": uri,
                }  # fmt: skip
    return posts


def document(truth: dict[str, Any], event_at: str) -> dict[str, Any]:
    embed = truth.get("embed") or {}
    media = embed.get("media", embed)
    record = embed.get("record") or {}
    external = media.get("external")
    features = [feature for facet in truth.get("facets", []) for feature in facet["features"]]
    kinds = {"tags": ("#tag", "tag"), "links": ("#link", "uri"), "mentions": ("#mention", "did")}
    found = {
        name: list(dict.fromkeys(f[key] for f in features if f["$type"].endswith(kind)))
        for name, (kind, key) in kinds.items()
    }
    found["tags"] = list(dict.fromkeys(found["tags"] + truth.get("tags", [])))
    kind = media.get("$type", "").rpartition(".")[2]
    created = datetime.fromisoformat(truth["createdAt"])
    return {
        "text": truth["text"],
        "langs": truth.get("langs", []),
        "created_at": moment(truth["createdAt"]),
        "event_at": moment(event_at),
        "backdated": created < datetime.fromisoformat(event_at) - DAY,
        "reply_root": truth.get("reply", {}).get("root", {}).get("uri"),
        "reply_parent": truth.get("reply", {}).get("parent", {}).get("uri"),
        "quote_uri": record.get("uri") or record.get("record", {}).get("uri"),
        "link": external and {name: external[name] for name in ("uri", "title", "description")},
        "alts": [image["alt"] for image in media.get("images", []) if image["alt"]],
        "media": kind if kind not in {"", "record"} else None,
        "self_labels": [value["val"] for value in truth.get("labels", {}).get("values", [])],
        **found,
    }


def collect(folder: Path, frames: Path, last: int, work: Path) -> dict[str, dict[str, Any]]:
    """Run everything over a recording with the language filter open; gives the store's posts by id."""
    with server(CIVICSKY, "dev", "serve-frames", frames) as relay, model_server(work / f"{folder.name}.log") as model:
        process = start(
            "run", "--relay", relay, "--data-dir", folder, "--model-url", model, "--model", "mock",
            source__start="window", filter__keep="all", worker__batch_frames=32,
        )  # fmt: skip

        def done() -> bool:
            followed = query(folder / "ledger.db", "SELECT n FROM position")
            return (
                query(folder / "journal.db", "SELECT cursor FROM host") == [(last,)]
                and followed == query(folder / "journal.db", "SELECT seq FROM sqlite_sequence WHERE name = 'change'")
                and not query(folder / "ledger.db", "SELECT 1 FROM doc WHERE v > stored_v LIMIT 1")
            )

        ended = end_when(process, done, "the recording to be stored")
    assert ended.code == 0, ended.err
    return {uri: json.loads(doc) for uri, doc in query(folder / "posts.db", "SELECT _id, doc FROM posts")}


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    work = tmp_path_factory.mktemp("recorded")
    return work / "live", collect(work / "live", FRAMES / "frames.bin.gz", 478, work)


def test_all_634_record_versions_of_the_recording_are_in_its_truth() -> None:
    versions = [op["truth"] for line in index() for op in line.get("ops", []) if op.get("truth")]
    posts = [truth for truth in versions if truth["$type"] == "app.bsky.feed.post"]
    assert (len(versions), len(posts)) == (634, 345)


def test_every_field_and_state_of_every_post_is_right(live: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    _, stored = live
    wanted = expected()
    assert len(wanted) > 300
    assert {uri: doc["state"] for uri, doc in stored.items()} == {uri: doc["state"] for uri, doc in wanted.items()}
    for uri, doc in wanted.items():
        if doc["state"] == "deleted":
            assert set(stored[uri]) == {"_id", "uri", "v", "state", "event_at"}
        else:
            assert {name: stored[uri][name] for name in doc} == doc, uri


def test_posts_of_an_account_that_is_not_active_are_hidden_until_it_is_again(tmp_path: Path) -> None:
    last = next(line["seq"] for line in index() if line["t"] == "#account" and line.get("status") == "deactivated")
    writer = FrameWriter(tmp_path / "cut.bin.gz")
    for _, frame in zip(range(last), read_frames(FRAMES / "frames.bin.gz"), strict=False):
        writer.write(frame)
    writer.close()
    stored = {
        uri: doc["state"] for uri, doc in collect(tmp_path / "cut", tmp_path / "cut.bin.gz", last, tmp_path).items()
    }
    assert stored == {uri: doc["state"] for uri, doc in expected(last).items()}
    assert "hidden" in stored.values()


def test_records_are_kept_byte_for_byte(live: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    folder, _ = live
    rows = query(folder / "journal.db", "SELECT cid, record FROM post WHERE state <> 'deleted'")
    assert len(rows) > 250
    for cid, record in rows:
        digest = b"\x01\x71\x12\x20" + hashlib.sha256(record).digest()
        assert cid == "b" + base64.b32encode(digest).decode().lower().rstrip("=")


def test_nothing_is_lost_doubled_or_quarantined(live: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    folder, _ = live
    counts = query(
        folder / "journal.db", "SELECT unit, outcome, sum(n) FROM count WHERE unit <> 'record' GROUP BY 1, 2"
    )
    found = {(unit, outcome): n for unit, outcome, n in counts}
    actions = [
        op["action"] for line in index() for op in line.get("ops", []) if op["path"].startswith("app.bsky.feed.post/")
    ]
    kinds = [line["t"] for line in index()]
    frames = {("frame", kind.lstrip("#")): kinds.count(kind) for kind in set(kinds)}
    assert found == {
        ("frame", "received"): 478,
        **frames,
        ("post", "received"): len(actions),
        ("post", "kept"): actions.count("create"),
        ("post", "updated"): actions.count("update"),
        ("post", "deleted"): actions.count("delete"),
    }


def test_the_replay_gives_the_same_rows_for_accounts_that_still_exist(
    live: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    _, stored = live
    replayed = collect(tmp_path / "replay", FRAMES / "replay.bin.gz", 478, tmp_path)
    gone = {line["repo"] for line in index() if line["t"] == "#account" and line.get("status") == "deleted"}
    ours = {"v", "received_at", "origins"}  # a relay's address is another one here

    def comparable(docs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {
            uri: {name: value for name, value in doc.items() if name not in ours | {"labels"}}
            for uri, doc in docs.items()
            if uri.split("/")[2] not in gone
        }

    assert len(gone) >= 1
    assert len(comparable(stored)) > 250
    assert comparable(replayed) == comparable(stored)
