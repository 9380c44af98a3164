"""The fuzzer's own parts, without the fuzzer: what it checks, what it plants, and what it changes."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any
from unittest.mock import patch

import pytest

from fuzz import target
from fuzz.fuzz_frames import seeds
from fuzz.mutate import mutate
from support.world import commit, post
from unit.recorded import body, cid_of, frame, link, op

SEEDS = list(seeds())
FEATURE = {"facets": [{"features": [{"$type": 7}]}]}
BREAKING = {
    "car": frame(body(ops=[op(cid=link(cid_of(b"")))], blocks=b"\x80")),
    "type": commit(1, [("create", "r", post("hello", **FEATURE))]),
    "text": commit(1, [("create", "r", post("cafe\u0301"))]),
}


@pytest.fixture(autouse=True)
def _nothing_planted() -> Iterator[None]:
    target.seen.clear()
    yield
    patch.stopall()


def flip(data: bytes, most: int) -> bytes:
    return bytes([data[0] ^ 1, *data[1:most]]) if data else b"\0"


def test_every_seed_keeps_the_promises_and_they_reach_kept_and_rejected_posts() -> None:
    for data in SEEDS:
        target.check(data)
    assert {"frame commit", "frame account", "post kept", "post rejected language", "post delete"} <= {
        end.strip() for end in target.seen
    }


@pytest.mark.parametrize("name", sorted(target.PLANTED))
def test_each_planted_bug_is_seen_and_the_code_as_it_is_has_none_of_them(name: str) -> None:
    target.check(BREAKING[name])
    target.plant(name)
    with pytest.raises((target.Broken, AttributeError, IndexError)):
        target.check(BREAKING[name])


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("civicsky.worker.judge_record", lambda *_: ("kept", "", "{}")),
        ("civicsky.decode.find_blocks", lambda _, wanted: dict.fromkeys(wanted, b"\xa0")),
    ],
)
def test_a_verdict_of_another_kind_and_a_block_from_elsewhere_are_seen(name: str, instead: Callable[..., Any]) -> None:
    patch(name, instead).start()
    with pytest.raises(target.Broken):
        target.check(BREAKING["text"])


def test_most_changes_get_past_the_hash_check() -> None:
    chance = Random(1)
    for seed in range(2000):
        target.check(mutate(chance.choice(SEEDS), 32_000, seed, flip, SEEDS))
    records = sum(n for end, n in target.seen.items() if end.startswith(("post kept", "post rejected", "post bad ")))
    assert target.seen["frame commit"] > 1200
    assert target.seen["post bad wrong_hash"] < records / 5
    assert sum(n for end, n in target.seen.items() if end.startswith(("post kept", "post rejected"))) > 500


def test_a_changed_message_is_never_larger_than_allowed() -> None:
    assert all(len(mutate(SEEDS[0], 500, seed, flip, SEEDS)) <= 500 for seed in range(200))
