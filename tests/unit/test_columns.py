"""Columns of exports: names once each, cells of their types, and nothing at the level public that leads back."""

from typing import Any

import pytest

from civicsky.export.columns import HOUR_US, TABLES, Column, Kind, Level, Row, Table, cells, columns_of, weight
from civicsky.export.pseudonyms import Pseudonyms

NAMES = Pseudonyms(b"k" * 32)
CIVIC = {"civic": ["civic", "lean"]}
URI = "at://did:plc:author/app.bsky.feed.post/3kaa"
LABEL = {
    "fields": {"civic": {"value": "civic", "probability": 0.123456789}, "lean": {"value": "unclear"}},
    "p_sampled": 0.123456789, "model": "m", "prompt": "f" * 64, "cid": "bafy", "label_id": "id",
    "at": "2026-11-22T13:12:25.063Z",
}  # fmt: skip
POST: dict[str, Any] = {
    "_id": URI, "uri": URI, "did": "did:plc:author", "rkey": "3kaa", "cid": "bafy", "rev": "r", "state": "live",
    "text": "a text", "event_at": "2026-11-22T13:12:25.063Z", "p_kept": 0.5, "labels": {"civic": LABEL},
    "origins": [{"kind": "firehose", "host": "wss://relay"}, {"kind": "feed", "name": "today", "rank": 3}],
}  # fmt: skip


def row(**more: Any) -> Row:
    found: dict[str, Any] = {"post": POST, "author": {}, "labels": {"civic": LABEL}, "unlabelled": {}, "about": {}}
    return Row(**(found | more))


def told(table: Table, level: Level, one: Row, tasks: dict[str, list[str]] = CIVIC) -> dict[str, Any]:
    columns = columns_of(table, level, tasks, NAMES)
    return dict(zip([column.name for column in columns], cells(columns, one), strict=True))


@pytest.mark.parametrize("level", TABLES)
def test_every_column_has_its_name_once_also_when_tasks_are_called_like_other_columns(level: Level) -> None:
    tasks = {"p": ["kept"], "filter": ["version"], "civic": ["model", "at", "weight"], "a": ["b_c"], "a_b": ["c"]}
    for table in TABLES[level]:
        names = [column.name for column in columns_of(table, level, tasks, NAMES)]
        assert len(names) == len(set(names)), table
    if level != "restricted":
        assert {"p_kept", "p_kept_", "civic_model", "civic_model_", "a_b_c", "a_b_c_"} <= {
            column.name for column in columns_of("posts", level, tasks, NAMES)
        }


@pytest.mark.parametrize(
    ("kind", "value", "cell"),
    [
        ("text", "a", "a"),
        ("text", "nul \x00 and half \ud83d", "nul \ufffd and half \ufffd"),
        ("text", 1, None),
        ("text", ["a"], None),
        ("json", ["é", {"a": 1}], '["é", {"a": 1}]'),
        ("json", [], "[]"),
        ("json", ["half \ud83d"], '["half \ufffd"]'),
        ("json", [float("nan")], None),
        ("json", None, None),
        ("time", "1970-01-01T00:00:01.500Z", 1_500_000),
        ("time", "yesterday", None),
        ("time", "2026-11-22T13:12:25", None),
        ("bool", True, True),
        ("bool", 1, None),
        ("int", 2**63 - 1, 2**63 - 1),
        ("int", 2**63, None),
        ("int", True, None),
        ("int", 1.5, None),
        ("float", 1, 1.0),
        ("float", float("inf"), None),
        ("float", float("nan"), None),
        ("float", 10**400, None),
        ("float", "1", None),
    ],
)
def test_a_cell_is_of_its_columns_type_or_left_out(kind: Kind, value: Any, cell: Any) -> None:
    (found,) = cells([Column("c", kind, "", lambda _row: value)], row())
    assert (found, type(found)) == (cell, type(cell))


def test_a_post_without_any_of_its_fields_is_a_row_of_nothing() -> None:
    bare = row(post={"_id": URI, "uri": URI, "did": "did:plc:author"}, labels={})
    found = told("posts", "internal", bare)
    known = {"uri", "did", "from_firehose", "from_feed", "feeds"}
    assert {name for name, cell in found.items() if cell is not None} == known
    assert (found["from_firehose"], found["from_feed"], found["feeds"]) == (False, False, "[]")


def test_a_drawn_post_weighs_by_both_probabilities_whether_it_has_a_label_or_not() -> None:
    assert weight({"p_kept": 0.5}, {"p_sampled": 0.25}) == 8
    assert weight({"p_kept": 0.5}, None) is None
    assert weight({}, {"p_sampled": 0.0}) is None
    without = told("posts", "internal", row(labels={}, unlabelled={"civic": {"reason": "refusal", "p_sampled": 0.25}}))
    assert (without["civic_weight"], without["civic_unlabelled"], without["civic_civic"]) == (8, "refusal", None)
    waits = told("posts", "internal", row(labels={}))
    assert (waits["civic_weight"], waits["civic_p_sampled"], waits["civic_unlabelled"]) == (None, None, None)


def test_origins_are_columns_that_can_be_asked_for() -> None:
    found = told("posts", "internal", row())
    assert (found["from_firehose"], found["from_feed"], found["feeds"]) == (True, True, '["today"]')


def test_a_label_fills_the_columns_of_its_own_task_only() -> None:
    tasks = {"civic": ["civic"], "other": ["civic"]}
    found = told("labels", "internal", row(about={**LABEL, "_id": "id", "task": "other"}), tasks)
    assert (found["civic_civic"], found["other_civic"]) == (None, "civic")
    assert found["current_text"] is True


def test_pseudonyms_are_the_same_for_the_same_key_and_tell_authors_from_posts() -> None:
    other = Pseudonyms(b"o" * 32)
    names = [NAMES.author("a"), NAMES.author("b"), NAMES.post("a"), other.author("a"), other.post("a")]
    assert len(set(names)) == len(names)
    assert NAMES.author("a") == Pseudonyms(b"k" * 32).author("a")
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in names)
    assert NAMES.check() != other.check()


def test_the_level_public_has_these_columns_and_no_others() -> None:
    posts = told("posts", "public", row())
    assert set(posts) == {
        "post", "author", "event_hour", "from_firehose", "from_feed", "filter_version", "p_kept",
        "civic_civic", "civic_civic_probability", "civic_lean", "civic_lean_probability",
        "civic_p_sampled", "civic_weight", "civic_unlabelled", "civic_model", "civic_prompt",
    }  # fmt: skip
    labels = told("labels", "public", row(about={**LABEL, "task": "civic"}))
    assert set(labels) == {
        "post", "current_text", "task", "task_version", "run", "prompt", "model", "model_asked", "fingerprint",
        "server", "way", "parameters", "p_sampled", "label_hour", "events_why",
        "civic_civic", "civic_civic_probability", "civic_lean", "civic_lean_probability",
    }  # fmt: skip


def test_at_the_level_public_times_are_hours_and_probabilities_are_rounded() -> None:
    posts, labels = told("posts", "public", row()), told("labels", "public", row(about={**LABEL, "task": "civic"}))
    for hour in (posts["event_hour"], labels["label_hour"]):
        assert hour % HOUR_US == 0
    assert posts["civic_civic_probability"] == labels["civic_civic_probability"] == 0.12
    assert posts["civic_p_sampled"] == labels["p_sampled"] == 0.123
    assert posts["civic_weight"] == 16.2
    assert posts["post"] == labels["post"] == NAMES.post(URI)


def test_the_level_restricted_has_the_address_alone() -> None:
    assert told("posts", "restricted", row()) == {"uri": URI}
