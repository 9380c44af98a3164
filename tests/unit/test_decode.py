import hashlib
import random
from datetime import datetime
from typing import Any

import pytest

from civicsky.decode import COLLECTIONS, MAX_OPS, decode, find_blocks
from civicsky.errors import BadInput
from civicsky.model import Event, PostOp, cid_text
from unit.recorded import (
    DID,
    POST,
    REV,
    TIME,
    TIME_US,
    account,
    body,
    car,
    cid_of,
    encode,
    frame,
    index,
    link,
    op,
    post,
    section,
    stream,
    varint,
)

RKEY = "3n2vmmzh27s24"
BLOCK = post()
CID = cid_of(BLOCK)


def micros(text: str) -> int:
    moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%f%z")
    return round(moment.timestamp() * 1000) * 1000


def reason(data: bytes) -> str:
    """Why a frame cannot be used; fails when it can be."""
    with pytest.raises(BadInput) as caught:
        decode(data)
    return caught.value.reason


def survives(data: bytes) -> None:
    """Whatever the bytes are, an event or a reason comes out."""
    try:
        found = decode(data).outcome
    except BadInput as bad:
        found = bad.reason  # type: ignore[assignment]
    assert found in {"commit", "account", "identity", "sync", "info", "error", "ignored", "undecodable", "bad_field"}


# ---- recorded frames -------------------------------------------------------------------------------------------------


def test_every_recorded_frame_decodes_to_what_the_index_says() -> None:
    frames = stream("live")
    assert len(frames) == len(index()) == 478
    for data, row in zip(frames, index(), strict=True):
        event = decode(data)
        is_commit = row["t"] == "#commit"
        assert (f"#{event.outcome}", event.seq, event.did) == (row["t"], row["seq"], row["repo"])
        assert event.time == micros(row["time"])
        assert event.rev == (row["rev"] if is_commit else "")
        assert event.name == ""


def test_every_recorded_operation_decodes_to_what_the_index_says() -> None:
    posts = others = 0
    for data, row in zip(stream("live"), index(), strict=True):
        event = decode(data)
        expected_posts, expected_others = [], []
        for idx, given in enumerate(row.get("ops", [])):
            collection, _, rkey = given["path"].partition("/")
            if collection == POST:
                expected_posts.append((idx, given["action"], rkey, given["cid"], None))
            else:
                expected_others.append((collection if collection in COLLECTIONS else "other", given["action"]))
        found = [(p.idx, p.action, p.rkey, cid_text(p.cid) if p.cid else None, p.fault) for p in event.posts]
        assert found == expected_posts
        assert list(event.others) == expected_others
        posts, others = posts + len(found), others + len(event.others)
    assert (posts, others) == (361, 295)


def test_every_recorded_post_comes_with_the_block_that_its_cid_names() -> None:
    blocks = [p for name in ("live", "replay", "sample") for data in stream(name) for p in decode(data).posts]
    assert len(blocks) == 361 + 343 + 624
    for found in blocks:
        if found.action == "delete":
            assert (found.cid, found.block) == (b"", b"")
        else:
            assert found.cid == b"\x01\x71\x12\x20" + hashlib.sha256(found.block).digest()


def test_the_status_of_every_recorded_account_event_is_told() -> None:
    found = [decode(data).status for data, row in zip(stream("live"), index(), strict=True) if row["t"] == "#account"]
    expected = ["active" if row["active"] else row["status"] for row in index() if row["t"] == "#account"]
    assert found == expected
    assert found.count("active") == 22
    assert [status for status in found if status != "active"] == [
        "deactivated",
        "deactivated",
        "takendown",
        "takendown",
        "deleted",
    ]


def test_a_replay_lacks_the_numbers_of_a_deleted_account_and_nothing_else() -> None:
    live, replay = ({decode(data).seq: data for data in stream(name)} for name in ("live", "replay"))
    assert all(live[seq] == data for seq, data in replay.items())
    missing = sorted(seq for seq in live if seq is not None and seq not in replay)
    assert len(missing) == 53
    assert sum(seq - 1 not in missing for seq in missing) == 39


# ---- the protocol's other frames, byte for byte ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "outcome", "name"),
    [
        (
            "a1626f7020a2656572726f726c467574757265437572736f72676d6573736167657543757273"
            "6f7220696e20746865206675747572652e",
            "error",
            "FutureCursor",
        ),
        (
            "a1626f7020a2656572726f726f436f6e73756d6572546f6f536c6f77676d6573736167657818"
            "53747265616d20636f6e73756d657220746f6f20736c6f77",
            "error",
            "ConsumerTooSlow",
        ),
        (
            "a261746523696e666f626f7001a2646e616d656e4f75746461746564437572736f72676d6573"
            "73616765783852657175657374656420637572736f72206578636565646564206c696d69742e"
            "20506f737369626c79206d697373696e67206576656e7473",
            "info",
            "OutdatedCursor",
        ),
    ],
)
def test_the_servers_messages_about_the_cursor_are_known_by_name(data: str, outcome: Any, name: str) -> None:
    assert decode(bytes.fromhex(data)) == Event(outcome, name=name)


@pytest.mark.parametrize("header", [{"op": -1}, {"op": 1, "t": "#info"}])
def test_a_name_that_the_far_side_chose_is_made_harmless_and_bounded(header: dict[str, Any]) -> None:
    field = "error" if header["op"] == -1 else "name"
    assert decode(frame({field: "a\x1b[31m b\u202e"}, header)).name == "a??31m?b?"
    assert decode(frame({field: "x" * 1000}, header)).name == "x" * 64
    assert decode(frame({field: ["FutureCursor"]}, header)).name == ""
    assert decode(frame({}, header)).name == ""


def test_an_unknown_kind_is_ignored_even_with_a_body_that_makes_no_sense() -> None:
    assert decode(frame({"seq": "x"}, {"op": 1, "t": "#labels"})) == Event("ignored", name="unknown_kind")
    assert decode(frame(body(), {"op": 1, "t": ""})) == Event("ignored", name="unknown_kind")
    assert decode(frame(body(), {"op": 1, "t": "commit"})) == Event("ignored", name="unknown_kind")


@pytest.mark.parametrize(
    "header",
    [{"op": 2, "t": "#commit"}, {"op": 0, "t": "#commit"}, {"op": "1", "t": "#commit"}, {"t": "#commit"}, {"op": 1}]
    + [{"op": 1, "t": kind} for kind in (None, 1, ["#commit"], {"#commit": 1}, b"#commit")],
)
def test_an_unknown_operation_code_or_kind_of_kind_is_ignored(header: dict[str, Any]) -> None:
    assert decode(frame(body(), header)) == Event("ignored", name="unknown_op")


@pytest.mark.parametrize("kind", ["identity", "sync"])
def test_a_numbered_event_without_operations_gives_its_account_and_time(kind: Any) -> None:
    data = frame({"seq": 9, "did": DID, "time": TIME, "handle": "x.test", "blocks": 1}, {"op": 1, "t": f"#{kind}"})
    assert decode(data) == Event(kind, seq=9, did=DID, time=TIME_US)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "active"),
        ({"status": "deleted"}, "active"),
        ({"active": False, "status": "deleted"}, "deleted"),
        ({"active": False, "status": "takendown"}, "takendown"),
        ({"active": False, "status": "something new"}, "something?new"),
        ({"active": False}, "deactivated"),
        ({"active": False, "status": ""}, "deactivated"),
        ({"active": False, "status": 7}, "deactivated"),
    ],
)
def test_the_status_of_an_account_is_active_or_what_it_says(changes: dict[str, Any], status: str) -> None:
    assert decode(account(**changes)) == Event("account", seq=7, did=DID, time=TIME_US, status=status)


@pytest.mark.parametrize("active", [..., None, 0, 1, "true"])
def test_an_account_event_that_does_not_say_whether_it_is_active_is_bad(active: Any) -> None:
    assert reason(account(active=active)) == "bad_field"


# ---- malformed frames ------------------------------------------------------------------------------------------------


def test_no_bytes_at_all_are_undecodable() -> None:
    assert reason(b"") == "undecodable"


def test_a_commit_that_is_cut_short_at_any_byte_is_undecodable() -> None:
    data = next(data for data in stream("live") if decode(data).posts)
    assert len(data) > 1000
    assert {reason(data[:size]) for size in range(len(data))} == {"undecodable"}


@pytest.mark.parametrize(
    "data",
    [
        encode({"op": 1, "t": "#commit"}),
        frame(body()) + encode({}),
        frame(body()) + b"\0",
        frame([]),
        frame(None),
        frame(b""),
        frame(body(), []),
        frame(body(), "op"),
        b"\xff" * 8,
        b"\xa1\x61",
        b"\x9b" + b"\xff" * 8,
        b"\xbb" + b"\xff" * 8,
        b"\x5b\x00\x00\x00\x7f\xff\xff\xff\xff",
        frame(body(ops=[op(cid=link(CID[:-1]))])),
        frame(body(new=link(b""))),
    ],
)
def test_what_is_not_two_maps_is_undecodable(data: bytes) -> None:
    assert reason(data) == "undecodable"


def test_random_bytes_give_an_event_or_a_reason() -> None:
    randomness = random.Random(20261122)
    for _ in range(3000):
        survives(randomness.randbytes(randomness.randrange(200)))
        survives(encode({"op": 1, "t": "#commit"}) + randomness.randbytes(randomness.randrange(200)))


@pytest.mark.parametrize("opener", [b"\x81", b"\xa1\x61a", b"\xd8\x2a"])
def test_nesting_ten_thousand_deep_is_undecodable(opener: bytes) -> None:
    nest = opener * 10_000 + b"\0"
    assert reason(nest) == "undecodable"
    assert reason(encode({"op": 1, "t": "#commit"}) + nest) == "undecodable"
    assert reason(encode({"op": 1, "t": "#commit"}) + b"\xa1\x63ops" + nest) == "undecodable"


def test_a_record_that_nests_ten_thousand_deep_is_passed_on_unread() -> None:
    block = b"\x81" * 10_000 + b"\0"
    data = frame(body(ops=[op(cid=link(cid_of(block)))], blocks=car([block])))
    assert decode(data).posts == [PostOp(0, "create", RKEY, cid_of(block), block)]


def test_fields_that_nobody_told_us_of_change_nothing() -> None:
    given = [op(cid=link(CID), new={"a": [1]})]
    data = frame(
        body(ops=given, blocks=car([BLOCK]), tooBig=True, rebase=True, since=5, prevData=None, new=[{}]),
        {"op": 1, "t": "#commit", "new": 1},
    )
    assert decode(data) == Event(
        "commit", seq=7, did=DID, time=TIME_US, rev=REV, posts=[PostOp(0, "create", RKEY, CID, BLOCK)], others=[]
    )


WRONG: dict[str, list[Any]] = {
    "seq": [..., None, True, False, 0, -1, 2**53, 2**64 - 1, "7", b"7", [7], {"seq": 7}],
    "repo": [..., None, 7, b"did:plc:abc", [DID], "", "did:plc:", "did:PLC:abc", "did:plc", "plc:abc", f" {DID}"],
    "time": [..., None, 7, b"", [], "", "now", "2026-11-22", "2026-11-22T12:30:45", "1969-12-31T23:59:59Z"],
    "rev": [..., None, 7, REV.encode(), [REV], "", "3n2vmmrldjs2", f"{REV}4", "3N2VMMRLDJS24", "3n2vmmrldjs21"],
    "ops": [..., None, 7, "", b"", {}, {"0": op()}],
    "blocks": [..., None, 7, "", [], {}],
}
WRONG["repo"] += [f"{DID}\n", f"{DID}/x", "did:plc:a b", "did:plc:" + "a" * 2001, "did:plc:\u00e9", "did:plc:a\0"]
WRONG["rev"] += [f"{REV}\n", "3n2vmmrldjs2\n"]
WRONG["time"] += ["2026-13-01T12:30:45Z", "2026-11-22T12:30:61Z"]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_commit_with_a_field_that_is_missing_or_of_another_type_is_bad(name: str, value: Any) -> None:
    assert reason(frame(body(**{name: value}))) == "bad_field"


@pytest.mark.parametrize("kind", ["#account", "#identity", "#sync"])
@pytest.mark.parametrize(("name", "value"), [("seq", 0), ("seq", True), ("did", "x"), ("did", 7), ("time", "x")])
def test_every_other_numbered_event_is_as_strict(kind: str, name: str, value: Any) -> None:
    fields = {"seq": 7, "did": DID, "time": TIME, "active": True, name: value}
    assert reason(frame(fields, {"op": 1, "t": kind})) == "bad_field"


@pytest.mark.parametrize("seq", [1, 2**53 - 1])
def test_the_least_and_the_largest_sequence_number_are_taken(seq: int) -> None:
    assert decode(frame(body(seq=seq))).seq == seq


@pytest.mark.parametrize(
    "did", ["did:web:example.com", "did:web:localhost%3A2583", "did:plc:" + "a" * 2000, "did:key:z6M"]
)
def test_accounts_of_every_method_are_taken(did: str) -> None:
    assert decode(frame(body(repo=did))).did == did


# ---- malformed operations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        None,
        7,
        "create",
        [],
        {},
        op(path=...),
        op(path=None),
        op(path=7),
        op(path=[f"{POST}/x"]),
        op(action=...),
        op(action=None),
        op(action=7),
        op(action=""),
        op(action="Create"),
        op(action="move"),
        op(action=b"create"),
        op(action=[]),
        op(action=["create"]),
        op(action={"create": 1}),
    ],
)
def test_an_operation_without_a_path_or_a_known_action_is_a_bad_operation(given: Any) -> None:
    assert decode(frame(body(ops=[given]))).posts == [PostOp(0, "create", "", b"", b"", "bad_operation")]


@pytest.mark.parametrize("rkey", ["", " ", "a/b", "a\n", "a\0", "\u00e9", "a b", "x" * 513, "#"])
def test_an_operation_on_a_post_whose_key_cannot_be_one_is_a_bad_operation(rkey: str) -> None:
    for action in ("create", "update", "delete"):
        event = decode(frame(body(ops=[op(action=action, path=f"{POST}/{rkey}", cid=link(CID))], blocks=car([BLOCK]))))
        assert event.posts == [PostOp(0, action, "", b"", b"", "bad_operation")]


@pytest.mark.parametrize("rkey", ["3n2vmmzh27s24", "self", "a.b_c:d~e-F9", "x" * 512])
def test_every_key_that_the_protocol_allows_is_taken(rkey: str) -> None:
    event = decode(frame(body(ops=[op(path=f"{POST}/{rkey}", cid=link(CID))], blocks=car([BLOCK]))))
    assert event.posts == [PostOp(0, "create", rkey, CID, BLOCK)]


@pytest.mark.parametrize("cid", [..., None, 7, "bafyrei", [], {}, b"", CID[:-1], CID + b"\0"])
@pytest.mark.parametrize("action", ["create", "update"])
def test_a_create_or_update_without_a_readable_cid_is_a_bad_operation(action: Any, cid: Any) -> None:
    event = decode(frame(body(ops=[op(action=action, cid=cid)], blocks=car([BLOCK]))))
    assert event.posts == [PostOp(0, action, RKEY, b"", b"", "bad_operation")]


@pytest.mark.parametrize("cid", [..., None, 7, link(CID)])
def test_a_delete_needs_no_cid_and_gets_no_block(cid: Any) -> None:
    event = decode(frame(body(ops=[op(action="delete", cid=cid)], blocks=car([BLOCK]))))
    assert event.posts == [PostOp(0, "delete", RKEY, b"", b"")]


@pytest.mark.parametrize("blocks", [b"", b"\0", car([]), car([post(text="another")]), BLOCK, b"\xff" * 40])
def test_a_create_whose_block_is_not_there_is_marked(blocks: bytes) -> None:
    event = decode(frame(body(ops=[op(cid=link(CID))], blocks=blocks)))
    assert event.posts == [PostOp(0, "create", RKEY, CID, b"", "no_block")]


def test_an_empty_block_is_no_record() -> None:
    event = decode(frame(body(ops=[op(cid=link(cid_of(b"")))], blocks=car([b"", BLOCK]))))
    assert event.posts == [PostOp(0, "create", RKEY, cid_of(b""), b"", "no_block")]


def test_a_commit_with_more_operations_than_anybody_may_send_is_bad() -> None:
    assert len(decode(frame(body(ops=[op(action="delete")] * MAX_OPS))).posts) == MAX_OPS
    assert reason(frame(body(ops=[op(action="delete")] * (MAX_OPS + 1)))) == "bad_field"
    assert MAX_OPS >= 200


def test_one_bad_operation_costs_the_others_of_its_commit_nothing() -> None:
    given = [op(path=7), op(cid=link(CID)), op(path="app.bsky.feed.like/a"), op(path=f"{POST}/b"), op(action="delete")]
    event = decode(frame(body(ops=given, blocks=car([BLOCK]))))
    assert event.posts == [
        PostOp(0, "create", "", b"", b"", "bad_operation"),
        PostOp(1, "create", RKEY, CID, BLOCK),
        PostOp(3, "create", "b", b"", b"", "bad_operation"),
        PostOp(4, "delete", RKEY, b"", b""),
    ]
    assert event.others == [("app.bsky.feed.like", "create")]


def test_two_operations_may_name_the_same_block() -> None:
    given = [op(cid=link(CID)), op(action="update", path=f"{POST}/b", cid=link(CID))]
    assert decode(frame(body(ops=given, blocks=car([BLOCK])))).posts == [
        PostOp(0, "create", RKEY, CID, BLOCK),
        PostOp(1, "update", "b", CID, BLOCK),
    ]


def test_a_delete_and_a_create_of_one_commit_keep_their_places() -> None:
    given = [op(action="delete"), op(cid=link(CID))]
    found = decode(frame(body(ops=given, blocks=car([BLOCK])))).posts
    assert [(p.idx, p.action) for p in found] == [(0, "delete"), (1, "create")]


@pytest.mark.parametrize("path", ["com.example.thing/x", "", "/", "app.bsky.feed.posts/x", "app.bsky.feed.post", "\0"])
def test_a_collection_that_is_not_known_is_counted_as_other(path: str) -> None:
    event = decode(frame(body(ops=[op(path=path, action="update")])))
    assert (event.posts, event.others) == ([], [("other", "update")])


def test_known_collections_are_counted_by_name() -> None:
    event = decode(frame(body(ops=[op(path=f"{name}/x", action="delete") for name in sorted(COLLECTIONS)])))
    assert (event.posts, event.others) == ([], [(name, "delete") for name in sorted(COLLECTIONS)])
    assert len(event.others) == 16


# ---- the scan of a CAR -----------------------------------------------------------------------------------------------

BLOCKS = [post(text=text) for text in ("one", "two", "x" * 300)]
CIDS = [cid_of(block) for block in BLOCKS]


def test_the_wanted_blocks_are_found_and_no_others() -> None:
    whole = car(BLOCKS)
    assert find_blocks(whole, set(CIDS)) == dict(zip(CIDS, BLOCKS, strict=True))
    assert find_blocks(whole, {CIDS[1]}) == {CIDS[1]: BLOCKS[1]}
    assert find_blocks(whole, set()) == {}
    assert find_blocks(whole, {cid_of(b"elsewhere")}) == {}


def test_a_car_that_is_cut_short_gives_the_blocks_before_the_cut() -> None:
    whole = car(BLOCKS)
    ends, at = [], len(car([]))
    for block in BLOCKS:
        at += len(section(cid_of(block) + block))
        ends.append(at)
    assert ends[-1] == len(whole)
    for size in range(len(whole) + 1):
        expected = {cid: block for cid, block, end in zip(CIDS, BLOCKS, ends, strict=True) if end <= size}
        assert find_blocks(whole[:size], set(CIDS)) == expected


@pytest.mark.parametrize("bad", [b"\xff" * 9 + b"\x01", b"\xff" * 40, b"\x80" * 9 + b"\x01", b"\x80" * 1000])
def test_a_length_of_more_than_nine_bytes_ends_the_scan(bad: bytes) -> None:
    assert find_blocks(bad, {CID}) == {}
    assert find_blocks(car([BLOCKS[0]]) + bad + section(CIDS[1] + BLOCKS[1]), set(CIDS)) == {CIDS[0]: BLOCKS[0]}


def test_a_length_that_points_behind_the_end_ends_the_scan() -> None:
    for size in (len(BLOCKS[1]) + 37, 2**31, 2**62):
        data = car([BLOCKS[0]]) + varint(size) + CIDS[1] + BLOCKS[1]
        assert find_blocks(data, set(CIDS)) == {CIDS[0]: BLOCKS[0]}


def test_sections_that_are_too_short_for_a_cid_are_stepped_over() -> None:
    for size in range(36):
        data = car([]) + section(b"\x01" * size) + section(CIDS[0] + BLOCKS[0])
        assert find_blocks(data, {CIDS[0]}) == {CIDS[0]: BLOCKS[0]}


def test_a_million_empty_sections_are_stepped_over() -> None:
    data = car([]) + b"\0" * 1_000_000 + section(CIDS[0] + BLOCKS[0])
    assert find_blocks(data, {CIDS[0]}) == {CIDS[0]: BLOCKS[0]}
