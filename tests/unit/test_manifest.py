"""What goes with an export: coverage cut to the period, and a methods paragraph that invents nothing."""

import json
import re
from typing import Any

import pytest

from civicsky.export.columns import Row
from civicsky.export.manifest import DISTINCT, Asked, Maker, Tally, codebook_text, covered, manifest
from civicsky.export.methods import methods_text
from civicsky.model import format_time
from civicsky.task import Task, file_hash, load_task

ASKED = Asked("internal", "parquet", None, None, ("civic",), (), "any", "", "", "flag")
SECOND = 1_000_000
BEGIN = 1_795_000_000 * SECOND


def at(second: float) -> str:
    return format_time(BEGIN + round(second * SECOND))


def held(begin: float, end: float, resume: str = "first", **more: Any) -> dict[str, Any]:
    return {
        "_id": f"held/{begin}", "v": 1, "kind": "held", "host": "wss://relay", "epoch": 1, "resume": resume,
        "first_seq": 1, "last_seq": 2, "first_at": at(begin), "last_at": at(end), "frames": 100, **more,
    }  # fmt: skip


GAP = {
    "_id": "gap", "v": 1, "kind": "gap", "host": "wss://relay", "epoch": 1, "cause": "not_replayed", "after_seq": 2,
    "at": at(200), "from_at": at(100), "until_seq": 3, "until_at": at(150),
}  # fmt: skip


def test_the_share_held_is_that_of_the_period_and_its_gaps_are_cut_to_it() -> None:
    found = covered([held(150, 300, "gap"), GAP, held(0, 100)], BEGIN + 75 * SECOND, BEGIN + 125 * SECOND)
    assert found["share_held"] == 0.5
    assert found["seconds"] == {"held": 25, "not_replayed": 25}
    assert found["gaps"] == [{"cause": "not_replayed", "from": at(100), "until": at(125), "seconds": 25}]


def test_what_lies_before_the_first_event_and_after_the_last_was_not_collected() -> None:
    found = covered([held(0, 100)], BEGIN - 50 * SECOND, BEGIN + 150 * SECOND)
    assert found["share_held"] == 0.5
    assert [gap["cause"] for gap in found["gaps"]] == ["not_collected"] * 2
    assert covered([held(0, 100)], None, None)["share_held"] == 1
    outside = covered([held(0, 100)], BEGIN + 500 * SECOND, BEGIN + 600 * SECOND)
    assert (outside["share_held"], outside["seconds"]) == (0, {"not_collected": 100})


def test_without_coverage_nothing_is_said_of_it() -> None:
    assert covered([], BEGIN, None)["share_held"] is None


def post(n: int, **more: Any) -> Row:
    document = {
        "_id": str(n),
        "p_kept": 1.0,
        "origins": [{"kind": "firehose", "host": "h"}],
        "filter": {"version": "f-1"},
    }
    found: dict[str, Any] = {"post": document, "author": {}, "labels": {}, "unlabelled": {}, "about": {}}
    return Row(**(found | more))


def made(asked: Asked = ASKED, *, posts: int = 0, **more: Any) -> dict[str, Any]:
    """A manifest of so many labelled posts, and a fourth as many that could not be labelled."""
    tally, about = Tally(), {"p_sampled": 0.25}
    label = {**about, "model": "m", "prompt": "0123456789ab", "way": "schema", "task_version": "2", "fingerprint": "fp"}
    for n in range(posts):
        one = post(n, labels={"civic": label})
        tally.collected(one, asked.tasks)
        tally.exported(one, BEGIN + n * SECOND, marked=False)
        tally.made("civic", label)
    for n in range(posts // 4):
        tally.collected(post(n, unlabelled={"civic": {**about, "reason": "refusal"}}), asked.tasks)
    tally.states.update({"live": posts + posts // 4, **more.pop("states", {})})
    tally.left_out.update(more.pop("left_out", {}))
    tasks: dict[str, tuple[Task, str] | None] = {name: own() for name in asked.tasks}
    at = BEGIN + 100 * SECOND
    return manifest(asked, at, tally, tasks, more.get("runs", []), more.get("coverage", []), more.get("check"))


def own() -> tuple[Task, str]:
    task, text = load_task("civic")
    return task, file_hash(text)


def prose(found: dict[str, Any]) -> str:
    return " ".join(methods_text(found).split())


def test_a_methods_paragraph_of_nothing_claims_nothing() -> None:
    text = prose(made())
    for word in ("collected", "drawn", "labelled by", "deleted by", "weight", "None", "[", "nan"):
        assert word not in text.partition("Not in the store")[0].replace("posts that were kept", ""), word


def test_a_methods_paragraph_has_the_facts_of_the_manifest() -> None:
    runs = [{"_id": "1", "started": at(-10), "version": "0.2.0", "filter_version": "f-1", "settings_hash": "h"}]
    asked = ASKED._replace(since=BEGIN, until=BEGIN + 7 * SECOND)
    text = prose(
        made(
            asked, posts=8, runs=runs, coverage=[held(-5, 5)], states={"deleted": 5, "hidden": 2},
            left_out={"consent": 1},
        )
    )  # fmt: skip
    for fact in (
        "with civicsky 0.2.0, which held 71.43% of that time; the rest was not_collected (2 s)",
        "kept by the filter f-1",
        "10 of these were drawn, each with probability 0.25, and 8 labelled by m "
        "(fingerprint fp, way schema, version of the task 2, prompt 01234567)",
        "2 (20.0%) could not be labelled, most often because of refusal",
        "By 2026-11-18, 5 posts of the period (29.4% of those known) had been deleted",
        "We left out 2 posts of accounts that were not active.",
        "We left out 1 post because their authors ask",
    ):
        assert fact in text
    assert not re.search(r"\bNone\b|\[", text)


def test_what_a_feed_showed_is_not_said_to_be_drawn() -> None:
    drawn = made(posts=4)
    mixed = drawn | {"origins": {"feed": 2, "both": 1, "firehose": 3}}
    mixed["tasks"] = {"civic": drawn["tasks"]["civic"] | {"p_sampled": [0.25, 1.0]}}
    text = prose(mixed)
    assert "5 of these were drawn by chance or, where a feed showed them, taken for certain, with probabilities" in text
    fed = mixed | {"tasks": {"civic": drawn["tasks"]["civic"] | {"p_sampled": [1.0, 1.0]}}}
    assert "5 of these were taken, each with probability 1, and 4 labelled" in prose(fed)


def test_coverage_is_that_of_what_was_held_where_no_period_was_asked_for_and_never_of_the_future() -> None:
    old, fed = post(1), Tally()
    old.post["origins"] = [{"kind": "feed", "name": "week"}]
    fed.exported(old, BEGIN - 500 * SECOND, marked=False)
    found = manifest(ASKED, BEGIN + 9 * SECOND, fed, {}, [], [held(-5, 5)], None)["coverage"]
    assert (found["from"], found["until"], found["share_held"]) == (at(-5), at(5), 1)
    asked = ASKED._replace(since=BEGIN - 5 * SECOND, until=BEGIN + 500 * SECOND)
    found = manifest(asked, BEGIN + 10 * SECOND, fed, {}, [], [held(-5, 5)], None)["coverage"]
    assert (found["until"], found["seconds"]) == (at(10), {"held": 10, "not_collected": 5})


def test_labels_of_two_models_are_told_apart() -> None:
    found = made(posts=8)
    found["labels_made_by"].append({**Maker("civic", *[None] * 6)._asdict(), "model": "other", "posts": 3})
    assert "labelled by m (" in prose(found)
    assert "8 posts exported) and other (3 posts exported)" in prose(found)


def test_what_was_chosen_by_labels_is_told_and_no_draw_is_claimed_of_it() -> None:
    asked = ASKED._replace(where=("lean=unclear",), model="m", origin="firehose")
    text = prose(made(asked, posts=4, left_out={"label": 1}))
    assert "Only posts of the origin firehose are in the data." in text
    assert "Of these, the 4 posts with labels of lean=unclear and model m were taken." in text
    assert "drawn" not in text.partition("Each post drawn")[0]


def test_only_the_runs_of_the_period_are_named_and_equal_ones_once() -> None:
    def run(second: float, version: str) -> dict[str, Any]:
        return {
            "_id": str(second),
            "started": at(second),
            "version": version,
            "filter_version": "f",
            "settings_hash": "h",
        }

    runs = [run(200, "4"), run(-300, "1"), run(-200, "2"), run(-100, "2"), run(2, "3"), run(4, "3")]
    asked = ASKED._replace(since=BEGIN, until=BEGIN + 100 * SECOND)
    found = made(asked, runs=runs)["runs"]
    assert [(one["version"], one["starts"]) for one in found] == [("2", 1), ("3", 2)]
    assert (found[1]["first_start"], found[1]["last_start"]) == (at(2), at(4))


def test_counts_of_what_servers_name_are_bounded() -> None:
    tally = Tally()
    for n in range(DISTINCT + 50):
        tally.made("civic", {"model": f"m{n}"})
    assert len(tally.makers) == DISTINCT + 1
    assert tally.makers[Maker("others", *[None] * 6)] == 50


def test_a_public_manifest_names_no_feed_and_no_time_of_a_post() -> None:
    feed = "at://did:plc:maker/app.bsky.feed.generator/x"
    asked = ASKED._replace(level="public", origin=f"feed:{feed}")
    tally = Tally()
    one = post(1)
    one.post["origins"] = [{"kind": "feed", "name": feed}]
    tally.exported(one, BEGIN + 1234 * SECOND, marked=False)
    found = manifest(asked, BEGIN + 5000 * SECOND, tally, {}, [], [held(0, 2000)], "check")
    assert at(1234) not in json.dumps(found)
    assert "did:plc" not in json.dumps(found)
    assert found["origins"] == {"both": 0, "feed": 1, "firehose": 0}
    assert found["posts"]["first_event"].endswith(":00:00.000Z")
    assert feed in json.dumps(manifest(asked._replace(level="internal"), BEGIN, tally, {}, [], [], None))


@pytest.mark.parametrize(("level", "shown"), [("internal", True), ("public", False)])
def test_cases_and_examples_of_a_task_are_in_no_public_codebook_since_they_may_quote_posts(
    level: Any, shown: bool
) -> None:
    task, _ = own()
    text = codebook_text(ASKED._replace(level=level), {}, {"civic": own(), "gone": None})
    assert (task.examples[0].post in text.replace("\\", "")) is shown
    assert "| `lean` |" in text
    assert "not in the settings" in text


def test_a_restricted_codebook_says_nothing_of_labels() -> None:
    assert "civic" not in codebook_text(ASKED._replace(level="restricted"), {}, {"civic": own()}).lower()
