"""Labels that can be defended: what is asked, what is not asked twice, what it may cost, and whether a model drifts."""

import asyncio
import json
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support.command import LAST_SEQ, end_when, model_server, query, run, start, tell, until
from support.drawing import known_lots
from support.led import Led, led_relay
from support.told_model import told_model
from support.world import tid

TOXICITY = Path(__file__).parents[1] / "tasks" / "toxicity.toml"
TEXTS = [f"The council voted on line {number} of the tram tonight." for number in range(12)]


def asked(log: Path) -> list[str]:
    """SHA-256 of each question that the model was given."""
    return log.read_text().split() if log.exists() else []


def stored(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(doc) for (doc,) in query(folder / "posts.db", "SELECT doc FROM posts")]


def labels(folder: Path) -> list[dict[str, Any]]:
    rows = query(folder / "posts.db", "SELECT doc FROM labels WHERE doc ->> '$.state' = 'live'")
    return [json.loads(doc) for (doc,) in rows]


def all_told(folder: Path, done: int) -> bool:
    """So many jobs are done, and the store knows everything."""
    jobs = query(folder / "ledger.db", "SELECT count(*) FROM job WHERE state = 'done'")
    return jobs == [(done,)] and not query(folder / "ledger.db", "SELECT 1 FROM doc WHERE v > stored_v")


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("status", "--json", "--data-dir", folder).out)
    return found


def live(folder: Path, relay: Led, model: str, done: int, **settings: Any) -> None:
    """A life of the service, until so many jobs are done."""
    process = start(
        "run", "--relay", relay.url, "--data-dir", folder, "--model-url", model, "--model", "mock",
        worker__batch_seconds=0.05, **settings,
    )  # fmt: skip
    ended = end_when(process, lambda: all_told(folder, done), f"{done} labels")
    assert ended.code == 0, ended.err


@pytest.fixture(scope="module")
def whole_sample(relay: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with the sample, of which nothing is labelled. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("whole_sample")
    ended = run("collect", "--relay", relay, "--data-dir", folder, "--max-frames", LAST_SEQ, source__start="window")
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def collected(whole_sample: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_sample, tmp_path / "data"))


def label(folder: Path, model: str, *more: str, **settings: Any) -> Any:
    return run("label", "--data-dir", folder, "--model-url", model, "--model", "mock", "--drain", *more, **settings)


# ---- the cache ----


def test_after_a_restart_repeated_texts_cause_no_request(tmp_path: Path) -> None:
    folder, log = tmp_path / "data", tmp_path / "log"
    with led_relay() as relay, model_server(log) as model:
        for number, text in enumerate(TEXTS):
            relay.post(tid(number), text)
        live(folder, relay, model, len(TEXTS))
        assert len(asked(log)) == len(TEXTS)
        for number, text in enumerate(TEXTS):
            relay.post(tid(100 + number), text)
        live(folder, relay, model, 2 * len(TEXTS))
    assert len(asked(log)) == len(TEXTS), "they were paid for before"
    first, copies = (
        {doc["_id"]: doc for doc in labels(folder) if bool(doc["cached_from"]) is copied} for copied in (False, True)
    )
    assert len(copies) == len(TEXTS)
    for doc in copies.values():
        source = first[doc["cached_from"]]
        assert (doc["tokens_in"], doc["calls"]) == (0, 0)
        assert [doc[name] for name in ("fields", "model", "prompt", "input_hash")] == [
            source[name] for name in ("fields", "model", "prompt", "input_hash")
        ]


# ---- again ----


def another_wording(tmp_path: Path) -> Path:
    """The task that ships, with a definition that somebody changed."""
    import civicsky  # noqa: PLC0415

    shipped = Path(str(civicsky.__file__)).parent / "data" / "tasks" / "civic.toml"
    mine = tmp_path / "mine.toml"
    mine.write_text(shipped.read_text().replace("A post is civic when", "We call a post civic when"))
    return mine


def test_labelling_again_that_was_killed_goes_on_and_asks_nothing_twice(collected: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with model_server(log) as model:
        assert label(collected, model).code == 0
        before = {doc["_id"]: doc for doc in labels(collected)}
        log.write_text("")
        mine = json.dumps([str(another_wording(tmp_path))])
        ((posts,),) = query(collected / "ledger.db", "SELECT count(*) FROM doc WHERE state = 'live'")
        assert posts == 373
        again = ("label", "--data-dir", collected, "--model-url", model, "--model", "mock", "--drain", "--again")
        process = start(*again, label__tasks=mine, label__slots=1)
        until(lambda: len(asked(log)) >= posts // 2, "half of them to be asked")
        process.kill()
        process.communicate()
        ended = run(*again, label__tasks=mine, label__slots=1)
        assert ended.code == 0, ended.err
    questions = Counter(asked(log))
    ((answered,),) = query(collected / "ledger.db", "SELECT count(*) FROM label WHERE run > 0")
    assert answered == posts
    # Of equal texts one is asked; the one call that was in flight at the kill had no answer yet.
    assert len(questions) <= sum(questions.values()) <= len(questions) + 1
    after = {doc["_id"]: doc for doc in labels(collected)}
    assert {name: after[name] for name in before} == {
        name: {**doc, "v": after[name]["v"]} for name, doc in before.items()
    }, "the former labels stay as they were"
    newest = {doc["labels"]["civic"]["prompt"] for doc in stored(collected) if doc["state"] == "live"}
    assert len(newest) == 1
    assert newest.isdisjoint(doc["prompt"] for doc in before.values())
    assert status(collected)["rounds"][0]["posts"] == posts


def test_labelling_again_with_the_same_question_asks_nothing(collected: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with model_server(log) as model:
        assert label(collected, model).code == 0
        before = len(asked(log))
        ended = label(collected, model, "--again", "--where", "civic=civic", "--since", "2020-01-01")
        assert ended.code == 0, ended.err
    assert len(asked(log)) == before
    assert status(collected)["rounds"][0]["posts"] > 0


@pytest.mark.parametrize("n", [1, 10])
def test_a_post_that_breaks_the_server_costs_itself_only_and_a_drain_ends(
    collected: Path, tmp_path: Path, n: int
) -> None:
    with told_model(tmp_path / "model") as model:
        model.tell({"name": "status", "status": 500, "text": "End of the sample stream"})
        quick = {"label__pause_seconds": 0.05, "label__transport_attempts": 3}
        ended = label(collected, model.url, label__posts_per_request=n, **quick)
    assert ended.code == 0, ended.err
    states = "SELECT state, reason, count(*) FROM job WHERE state IN ('done', 'dead') GROUP BY 1, 2 ORDER BY 1"
    assert query(collected / "ledger.db", states) == [("dead", "unreachable", 1), ("done", None, 372)]


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--again", "--where", "lean=purple"), "--where lean=purple: the task civic has no such field or value"),
        (("--again", "--task", "nosuch"), "--task nosuch: not among label.tasks (civic)"),
        (("--again", "--since", "yesterday"), "--since yesterday: neither a date"),
        (("--since", "2026-01-01"), "choose what --again asks about: add --again, or leave them out"),
    ],
)
def test_what_cannot_be_meant_is_said(collected: Path, flags: tuple[str, ...], why: str) -> None:
    ended = label(collected, "http://127.0.0.1:9/v1", *flags)
    assert ended.code == 2
    assert why in " ".join(ended.err.split()).replace("│ ", "")


# ---- several tasks ----


def test_a_second_task_file_runs_without_code(collected: Path, tmp_path: Path) -> None:
    with model_server(tmp_path / "log") as model:
        tasks = json.dumps(["civic", str(TOXICITY)])
        ended = label(collected, model, label__tasks=tasks)
        assert ended.code == 0, ended.err
        ended = label(collected, model, "--again", "--where", "toxic=yes", label__tasks=tasks)
        assert (ended.code, ended.err.endswith("name the task that you mean with --task\n")) == (2, True)
    documents = [doc for doc in stored(collected) if doc["state"] == "live"]
    assert len(documents) == 373
    assert all(doc["labels"].keys() == {"civic", "toxicity"} for doc in documents)
    assert {doc["labels"]["toxicity"]["fields"]["toxic"]["value"] for doc in documents} <= {"yes", "no", "unclear"}
    reasons = {bool(doc["reason"]) for doc in labels(collected) if doc["task"] == "toxicity"}
    assert reasons == {True}, "the task asks for one"


# ---- what stands around a post ----


def test_an_api_that_gives_no_contexts_is_told_and_the_posts_without_any_are_labelled(
    collected: Path, tmp_path: Path
) -> None:
    tried = "SELECT 1 FROM job WHERE (state = 'done' OR reason = 'context_unreachable')"
    with model_server(tmp_path / "log") as model:
        process = start(
            "label", "--data-dir", collected, "--model-url", model, "--model", "mock",
            context__quote=True, context__parent=True, appview__url="http://127.0.0.1:9", log__minute_seconds=0.1,
        )  # fmt: skip
        ended = end_when(process, lambda: len(query(collected / "ledger.db", tried)) == 373, "all to be tried")
    waiting = len(query(collected / "ledger.db", f"{tried} AND state = 'pending'"))
    assert 0 < waiting < 40, "those that quote or answer"
    lines = [json.loads(line) for line in ended.err.splitlines()]
    assert [(one["stage"], bool(one["why"])) for one in lines if one["event"] == "appview_down"] == [("label", True)]
    last = [one for one in lines if one["event"] == "minute"][-1]
    assert last["health"] == "degraded"
    assert "public API" in last["why"]
    assert status(collected)["waiting"] == waiting


# ---- money and choice ----


def test_what_the_budget_does_not_pay_for_waits(collected: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    prices = json.dumps({"mock": {"input": 1000, "output": 1000}})  # 110 tokens a post: 0.11 each
    with model_server(log) as model:
        ended = label(collected, model, label__prices=prices, label__budget_money=2.2, label__slots=1)
    assert ended.code == 1, "not all is labelled"
    assert 20 <= len(asked(log)) <= 21
    assert '"spent": true' in ended.err
    assert ended.err.endswith(
        "civicsky: not all is labelled: today's budget is spent; start again after midnight UTC, or raise "
        "label.budget_tokens or label.budget_money\n"
    )
    found = status(collected)
    assert found["waiting"] == 373 - found["labelled"]
    assert found["currency"] == "USD"
    assert found["spend"][0]["cost"] == pytest.approx(0.11 * len(asked(log)))
    assert {round(doc["cost"], 9) for doc in labels(collected) if not doc["cached_from"]} == {0.11}
    assert {doc["currency"] for doc in labels(collected)} == {"USD"}


def received_at_noon(folder: Path) -> None:
    """As if all had come at noon yesterday; and the secret by which lots are drawn is always the same."""
    asyncio.run(known_lots(folder / "ledger.db", bytes(32)))
    with closing(sqlite3.connect(folder / "journal.db")) as db, db:
        moved = db.execute("UPDATE post SET received_at = (received_at / 86400000000 * 2 - 1) * 43200000000")
        assert moved.rowcount > 0


def test_a_sample_is_labelled_with_its_probability(collected: Path, tmp_path: Path) -> None:
    received_at_noon(collected)  # half of a day's number is for the hours left
    with model_server(tmp_path / "log") as model:
        ended = label(collected, model, sample__posts_per_day=240)
        assert ended.code == 0, ended.err
    drawn = [doc for doc in stored(collected) if doc.get("labels")]
    shares = {doc["labels"]["civic"]["p_sampled"] for doc in drawn}
    assert 0 < min(shares) < 1 == max(shares)
    found = status(collected)["sample"]
    assert found["drawn"] < found["seen"]
    weighted = sum(1 / doc["labels"]["civic"]["p_sampled"] for doc in drawn)
    assert weighted == pytest.approx(found["seen"], rel=0.5), "the weights stand for all"


# ---- failures ----


def test_a_post_without_a_label_says_why_in_the_store(collected: Path, tmp_path: Path) -> None:
    with model_server(tmp_path / "log", "--say", "I would rather not.") as model:
        ended = label(collected, model, label__attempts=1, label__pause_seconds=0.01)
        assert ended.code == 0, ended.err
    documents = [doc for doc in stored(collected) if doc["state"] == "live"]
    assert {json.dumps(doc["unlabelled"]) for doc in documents} == {
        '{"civic": {"reason": "not_json", "p_sampled": 1.0}}'
    }
    name = f"label:{documents[0]['_id']}"
    shown = json.loads(run("failed", "show", name, "--data-dir", collected).out)
    assert shown["answers"][0]["raw"] == "I would rather not."


# ---- drift ----


def test_anchors_are_asked_again_the_next_day_and_flips_are_shown(collected: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with model_server(log) as model:
        assert label(collected, model, label__anchors=20).code == 0
        before = len(asked(log))
        with closing(sqlite3.connect(collected / "ledger.db")) as db, db:  # as if a day had passed
            db.execute("UPDATE anchor SET at = at - 86400000000")
            db.execute("UPDATE job SET state = 'pending' WHERE id = (SELECT max(id) FROM job WHERE state = 'done')")
            db.execute("UPDATE label SET key = NULL")
        said = json.dumps({"civic": "civic", "lean": "moderate", "us_politics": "no"})
        tell(model, say=said)
        process = start("label", "--data-dir", collected, "--model-url", model, "--model", "mock", label__anchors=20)
        probed = "SELECT count(*) FROM probe"
        ended = end_when(process, lambda: query(collected / "ledger.db", probed) == [(20,)], "the anchors")
        assert ended.code == 0, ended.err
    assert len(asked(log)) == before + 21, "past the cache"
    (drift,) = status(collected)["drift"]
    assert drift["n"] == 20
    assert 0 < drift["flipped"] <= 20
    assert drift["interval"][0] < drift["flip_rate"] < drift["interval"][1] or drift["flip_rate"] == 1
    assert drift["fingerprints"] == ["fp_test"]
    assert "labels changed" in run("status", "--data-dir", collected).out
    assert len([doc for doc in labels(collected) if doc["run"] < 0]) == 0, "a probe is no label"
