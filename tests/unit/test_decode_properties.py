"""Whatever the bytes, `decode` gives an event or a reason, and never anything else."""

from collections.abc import Callable
from typing import Any

import cbor2
from hypothesis import given, strategies as st

from civicsky.decode import MAX_SEQ, decode, find_blocks
from civicsky.errors import BadInput
from civicsky.model import Event
from support.tried import tried
from unit.recorded import account, body, car, cid_of, frame, index, link, op, post, section, stream

often = tried(300)

# One of each kind and number of operations, and some commits of posts.
REAL = [
    *{(row["t"], len(row.get("ops", []))): data for data, row in zip(stream("live"), index(), strict=True)}.values(),
    *stream("sample")[100:1600:100],
]
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20) | st.binary(max_size=40)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def check(data: bytes) -> Event | None:
    """Decode; check what is promised of every event. None when the frame cannot be used."""
    try:
        event = decode(data)
    except BadInput as bad:
        assert bad.reason in {"undecodable", "bad_field"}  # noqa: PT017  (either outcome is right)
        return None
    assert event.seq is None or 0 < event.seq < MAX_SEQ
    assert (event.seq is None) == (event.outcome in {"info", "error", "ignored"})
    for found in event.posts:
        whole = found.fault is None and found.action != "delete"
        assert whole or not found.block
        assert len(found.cid) == (36 if whole or found.fault == "no_block" else 0)
        assert found.rkey or found.fault == "bad_operation"
    return event


@st.composite
def flipped(draw: Callable[..., Any]) -> bytes:
    """A real frame with a few of its bytes changed."""
    data = bytearray(draw(st.sampled_from(REAL)))
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] ^= draw(st.integers(1, 255))
    return bytes(data)


@often
@given(flipped())
def test_a_real_frame_with_flipped_bytes_gives_an_event_or_a_reason(data: bytes) -> None:
    check(data)


@often
@given(st.sampled_from(REAL), st.floats(0, 1, exclude_max=True))
def test_a_real_frame_that_is_cut_anywhere_is_undecodable(data: bytes, share: float) -> None:
    assert check(data[: int(len(data) * share)]) is None


@often
@given(st.sampled_from(REAL), st.floats(0, 1), st.binary(min_size=1, max_size=9))
def test_a_real_frame_with_bytes_put_in_gives_an_event_or_a_reason(data: bytes, share: float, more: bytes) -> None:
    at = int(len(data) * share)
    check(data[:at] + more + data[at:])


@often
@given(st.sampled_from(sorted(body())), anything)
def test_a_commit_with_any_value_in_any_field_gives_an_event_or_a_reason(name: str, value: Any) -> None:
    check(frame(body(**{name: value})))


@often
@given(st.sampled_from(["seq", "did", "time", "active", "status"]), anything)
def test_an_account_event_with_any_value_in_any_field_gives_an_event_or_a_reason(name: str, value: Any) -> None:
    check(account(**{name: value}))


@often
@given(anything, anything)
def test_any_two_values_give_an_event_or_a_reason(header: Any, content: Any) -> None:
    check(frame(content, header))
    check(frame(content, {"op": 1, "t": "#commit"}))
    check(frame(content, {"op": -1}))


@often
@given(st.lists(anything | st.fixed_dictionaries({"path": anything, "cid": anything, "action": anything}), max_size=5))
def test_every_operation_is_told_once_whatever_it_is(ops: list[Any]) -> None:
    event = check(frame(body(ops=ops)))
    assert event is not None
    assert len(event.posts) + len(event.others) == len(ops)


@often
@given(st.lists(st.sampled_from(["create", "update", "delete"]), max_size=5), st.data())
def test_every_operation_gets_its_own_block_wherever_it_lies(actions: list[str], data: st.DataObject) -> None:
    blocks = [post(text=str(at)) for at in range(len(actions))]
    ops = [
        op(action=action, path=f"app.bsky.feed.post/{at}", cid=None if action == "delete" else link(cid_of(blocks[at])))
        for at, action in enumerate(actions)
    ]
    shuffled = data.draw(st.permutations([*blocks, b"\xa0", b"\xa1\x61a\x01"]))
    event = check(frame(body(ops=ops, blocks=car(shuffled))))
    assert event is not None
    assert [(found.idx, found.action, found.rkey, found.block) for found in event.posts] == [
        (at, action, str(at), b"" if action == "delete" else blocks[at]) for at, action in enumerate(actions)
    ]


@often
@given(st.lists(st.binary(max_size=300), max_size=8, unique=True), st.data())
def test_exactly_the_wanted_blocks_of_any_car_are_found(blocks: list[bytes], data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.sampled_from(blocks), unique=True)) if blocks else []
    found = find_blocks(car(blocks), {cid_of(block) for block in wanted} | {cid_of(b"not in it")})
    assert found == {cid_of(block): block for block in wanted}


@often
@given(st.binary(max_size=400), st.sets(st.binary(max_size=40), max_size=3))
def test_the_scan_of_any_bytes_gives_only_what_was_wanted(data: bytes, wanted: set[bytes]) -> None:
    assert set(find_blocks(data, wanted)) <= wanted


@often
@given(st.lists(st.binary(max_size=80), min_size=1, max_size=5, unique=True), st.data())
def test_the_scan_of_a_damaged_car_gives_only_what_lies_in_it(blocks: list[bytes], data: st.DataObject) -> None:
    damaged = bytearray(car(blocks))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    wanted = {cid_of(block) for block in blocks}
    found = find_blocks(bytes(damaged), wanted)
    assert set(found) <= wanted
    assert all(cid + block in damaged for cid, block in found.items())


@often
@given(st.binary(max_size=60), st.integers(1, 200))
def test_a_block_is_found_behind_any_number_of_others(block: bytes, others: int) -> None:
    filler = b"".join(section(cid_of(cbor2.dumps(n)) + cbor2.dumps(n)) for n in range(others))
    assert find_blocks(car([]) + filler + section(cid_of(b"x" + block) + b"x" + block), {cid_of(b"x" + block)}) == {
        cid_of(b"x" + block): b"x" + block
    }


@st.composite
def jumbled(draw: Callable[..., Any]) -> tuple[bytes, set[bytes]]:
    """Pieces of real CARs in any order, with their lengths wrong or right; and the CIDs in them."""
    ops = [op for data in draw(st.lists(st.sampled_from(REAL), min_size=1, max_size=3)) for op in decode(data).posts]
    blocks = [op.block for op in ops if op.block] + [b"", b"\xa0"]
    pieces = [car([]), b"\0", b"\x24", b"\x80", b"\xff" * 9 + b"\x01", *(cid_of(block) for block in blocks), *blocks]
    pieces += [section(cid_of(block) + block) for block in blocks] + [section(block) for block in blocks]
    chosen = draw(st.lists(st.sampled_from(pieces) | st.binary(max_size=4), max_size=10))
    return b"".join(chosen), {cid_of(block) for block in blocks}


@often
@given(jumbled())
def test_the_scan_of_any_car_gives_only_blocks_that_lie_in_it_behind_their_cid(
    pair: tuple[bytes, set[bytes]],
) -> None:
    data, wanted = pair
    found = find_blocks(data, wanted)
    assert set(found) <= wanted
    assert all(cid + block in data for cid, block in found.items())


@often
@given(st.lists(st.binary(max_size=200), max_size=6, unique=True), st.floats(0, 1))
def test_the_scan_of_a_car_that_is_cut_gives_exactly_the_blocks_before_the_cut(
    blocks: list[bytes], share: float
) -> None:
    at = int(share * len(car(blocks)))
    before = {cid_of(block): block for n, block in enumerate(blocks) if len(car(blocks[: n + 1])) <= at}
    assert find_blocks(car(blocks)[:at], {cid_of(block) for block in blocks} | {cid_of(b"not in it")}) == before
