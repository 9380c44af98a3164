"""Our decoding against the atproto SDK's and cbor2's, and against what a server's own API said of each record."""

import io
from functools import cache
from typing import Any

import cbor2
import pytest
from atproto import CAR, firehose_models, parse_subscribe_repos_message  # type: ignore[import-untyped]
from libipld import decode_dag_cbor

from civicsky.decode import decode, find_blocks
from civicsky.model import Event, cid_text
from unit import dagjson
from unit.recorded import POST, STREAMS, index, stream

SIZES = {"live": 478, "replay": 425, "sample": 1649}
every_stream = pytest.mark.parametrize("name", STREAMS)

Told = tuple[str, int | None, str, str, list[tuple[int, str, str, str | None]], list[tuple[str, str]]]
"""(kind, seq, account, rev, operations on posts, operations on other collections)."""


def ours(event: Event) -> Told:
    posts: list[tuple[int, str, str, str | None]] = [
        (p.idx, p.action, p.rkey, cid_text(p.cid) if p.cid else None) for p in event.posts
    ]
    return f"#{event.outcome}", event.seq, event.did, event.rev, posts, list(event.others)


@cache
def by_cbor2(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    decoder = cbor2.CBORDecoder(io.BytesIO(data))
    return decoder.decode(), decoder.decode()


def operations(
    ops: list[tuple[str, str, str | None]],
) -> tuple[list[tuple[int, str, str, str | None]], list[tuple[str, str]]]:
    posts, others = [], []
    for idx, (action, path, cid) in enumerate(ops):
        collection, _, rkey = path.partition("/")
        if collection == POST:
            posts.append((idx, action, rkey, cid))
        else:
            others.append((collection if collection.startswith("app.bsky.") else "other", action))
    return posts, others


def without_tags(value: Any) -> Any:
    """cbor2's view of a record in libipld's form, in which a CID is its bytes."""
    if isinstance(value, cbor2.CBORTag):
        assert value.tag == 42
        return value.value[1:]
    if isinstance(value, dict):
        return {key: without_tags(item) for key, item in value.items()}
    return [without_tags(item) for item in value] if isinstance(value, list | tuple) else value


@every_stream
def test_our_decoding_of_every_frame_agrees_with_the_sdks(name: str) -> None:
    assert len(stream(name)) == SIZES[name]
    for data in stream(name):
        message = firehose_models.Frame.from_bytes(data)
        parsed = parse_subscribe_repos_message(message)
        is_commit = message.type == "#commit"
        ops = [(op.action, op.path, str(op.cid) if op.cid else None) for op in parsed.ops] if is_commit else []
        account = parsed.repo if is_commit else parsed.did
        rev = parsed.rev if is_commit else ""
        assert ours(decode(data)) == (message.type, parsed.seq, account, rev, *operations(ops))


@every_stream
def test_our_decoding_of_every_frame_agrees_with_cbor2s(name: str) -> None:
    for data in stream(name):
        header, body = by_cbor2(data)
        ops = []
        for op in body.get("ops", []):
            cid = op["cid"]
            assert cid is None or (cid.tag, cid.value[:1]) == (42, b"\0")
            ops.append((op["action"], op["path"], dagjson.text_of(cid.value[1:]) if cid else None))
        account = body["repo"] if header["t"] == "#commit" else body["did"]
        rev = body["rev"] if header["t"] == "#commit" else ""
        assert header["op"] == 1
        assert ours(decode(data)) == (header["t"], body["seq"], account, rev, *operations(ops))


@every_stream
def test_every_block_that_we_cut_out_is_the_record_that_the_sdk_finds(name: str) -> None:
    compared = 0
    for data in stream(name):
        event = decode(data)
        if not any(post.block for post in event.posts):
            continue
        parsed = parse_subscribe_repos_message(firehose_models.Frame.from_bytes(data))
        records = {str(cid): record for cid, record in CAR.from_bytes(parsed.blocks).blocks.items()}
        for post in event.posts:
            if post.action != "delete":
                assert decode_dag_cbor(post.block) == records[cid_text(post.cid)]
                assert without_tags(cbor2.loads(post.block)) == records[cid_text(post.cid)]
                compared += 1
    assert compared == {"live": 345, "replay": 327, "sample": 609}[name]


def test_every_record_version_is_what_the_servers_api_said_of_it() -> None:
    versions = 0
    for data, row in zip(stream("live"), index(), strict=True):
        for op, told in zip(by_cbor2(data)[1].get("ops", []), row.get("ops", []), strict=True):
            if "truth" not in told:
                continue
            cid = op["cid"].value[1:]
            found = find_blocks(by_cbor2(data)[1]["blocks"], {cid})
            assert dagjson.of_block(found[cid]) == dagjson.canonical(told["truth"])
            versions += 1
    assert versions == 634


def test_the_comparison_with_the_servers_api_sees_links_bytes_and_large_numbers() -> None:
    block = cbor2.dumps({"a": cbor2.CBORTag(42, b"\0\x01\x55"), "b": b"\xff\xfe", "n": [2**53 - 1, None, True]})
    assert dagjson.of_block(block) == '{"a":{"$link":"bafkq"},"b":{"$bytes":"//4"},"n":[9007199254740991,null,true]}'
