"""The labelling half's database, on a real file: who is drawn, what is asked again, and what is forgotten."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from civicsky import rounds
from civicsky.ledger import Ledger, LedgerReader
from civicsky.model import (
    Answer,
    Asked,
    Attempts,
    Change,
    FieldLabel,
    Job,
    Key,
    LabelRow,
    PostRow,
    Question,
    Spend,
    post_uri,
)
from civicsky.rounds import Rounds, Wish
from civicsky.sample import Drawing
from support.command import query

HOUR = 3_600_000_000
NOON = 490_000 * HOUR
QUESTION = Question("prompt", "m", "{}")


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(tmp_path / "ledger.db")
    yield opened
    await opened.close()


def row(number: int, cid: str = "c1", *, did: str = "did:plc:a", at: int = NOON, **fields: Any) -> PostRow:
    said = {"text": f"post {number}", "link": None, "alts": [], "reply_root": None, **fields}
    return PostRow(f"{number:013}", did, "r", cid, "live", "relay", at, at, 1.0, said)


async def put(
    ledger: Ledger, *posts: PostRow, tasks: tuple[str, ...] = ("civic",), drawing: Drawing | None = None
) -> None:
    n = await ledger.position()
    changes = [Change(n + 1 + at, "put", post.did, post.rkey, "r", post.event_at) for at, post in enumerate(posts)]
    await ledger.follow(changes, posts, tasks, drawing or Drawing())


async def delete(ledger: Ledger, *keys: Key) -> None:
    n = await ledger.position()
    changes = [Change(n + 1 + at, "delete", did, rkey, "r", NOON) for at, (rkey, did) in enumerate(keys)]
    await ledger.follow(changes, [], ("civic",), Drawing())


def answer(text: str = "x", civic: str = "civic", question: Question = QUESTION, **more: Any) -> Answer:
    values: dict[str, Any] = {
        "fields": {"civic": FieldLabel(civic, 0.9)}, "way": "schema", "prompt_hash": question.prompt_hash,
        "model_asked": question.model, "model_named": question.model, "fingerprint": "fp", "parameters": "{}",
        "endpoint": "e", "input_hash": Asked(text).input_hash, "tokens_in": 10, "tokens_out": 2, "latency_ms": 1,
        "calls": 1, "cost": 0.5, "currency": "USD",
    }  # fmt: skip
    return Answer(**{**values, **more})


def label(job: Job, said: Answer) -> LabelRow:
    return LabelRow(
        f"id-{job.rkey}-{job.cid}-{said.prompt_hash}", job.did, job.rkey, job.cid, job.task, "1", job.run,
        job.p_sampled, NOON, 1, said,
    )  # fmt: skip


async def due(ledger: Ledger, *tasks: str) -> list[Job]:
    return await ledger.due(tasks or ("civic",), (), 10_000)


async def answer_all(ledger: Ledger, said: Answer | None = None) -> list[LabelRow]:
    labels = [label(job, said or answer(job.rkey)) for job in await due(ledger)]
    for job, made in zip(await due(ledger), labels, strict=True):
        assert await ledger.answered(job, made)
    return labels


# ---- the sample ----


async def test_a_post_is_drawn_once_for_all_tasks_with_its_probability(ledger: Ledger) -> None:
    await put(ledger, *(row(n) for n in range(2_000)), tasks=("civic", "toxicity"), drawing=Drawing(240))
    jobs = await due(ledger, "civic", "toxicity")
    by_task = {name: {(job.rkey, job.p_sampled) for job in jobs if job.task == name} for name in ("civic", "toxicity")}
    assert by_task["civic"] == by_task["toxicity"]
    probabilities = [p for _, p in sorted(by_task["civic"])]
    assert probabilities[0] == 1, "an hour's part is drawn whole as long as nothing is known"
    assert all(0 < p < 1 for p in probabilities[-5:])
    assert 1 < len(probabilities) < 2_000


async def test_an_edit_does_not_change_a_lot(ledger: Ledger) -> None:
    posts = [row(n) for n in range(500)]
    await put(ledger, *posts, drawing=Drawing(240))
    before = {job.rkey: job.p_sampled for job in await due(ledger)}
    assert 0 < len(before) < 500
    await put(ledger, *(post._replace(cid="c2") for post in posts), drawing=Drawing(0))
    assert {job.rkey: job.p_sampled for job in await due(ledger)} == before, "whatever the rate is by then"
    assert {job.cid for job in await due(ledger)} == {"c2"}


async def test_the_counts_of_an_hour_outlive_a_restart(tmp_path: Path) -> None:
    """What was drawn before counts: the same posts in two lives are drawn as in one."""
    posts = [row(n, at=NOON + n) for n in range(600)]
    drawn = []
    for lives in (1, 3):
        file = tmp_path / f"{lives}.db"
        for part in range(lives):
            ledger = await Ledger.open(file)
            ledger._sample_key = bytes(32)
            await put(ledger, *posts[600 * part // lives : 600 * (part + 1) // lives], drawing=Drawing(240))
            drawn.append({job.rkey: job.p_sampled for job in await due(ledger)})
            await ledger.close()
    assert drawn[0] == drawn[-1]


@pytest.mark.parametrize(("unit", "whole"), [("author", "did"), ("thread", "root")])
async def test_an_author_or_a_thread_is_drawn_whole(ledger: Ledger, unit: Any, whole: str) -> None:
    root = {number: post_uri("did:plc:root", f"{number:013}") for number in range(40)}
    posts = [
        row(n, did=f"did:plc:{n % 40 if whole == 'did' else n}", reply_root=root[n % 40] if whole == "root" else None)
        for n in range(400)
    ]
    # One hour is known already, so that the probability is the same for all.
    await put(ledger, *(row(1000 + n, at=NOON - HOUR) for n in range(2_000)))
    await put(ledger, *posts, drawing=Drawing(12 * 1_000, unit))
    drawn = {int(job.rkey) for job in await due(ledger)} & set(range(400))
    groups = {n % 40 for n in drawn}
    assert 0 < len(groups) < 40
    assert drawn == {n for n in range(400) if n % 40 in groups}


# ---- the cache ----


async def test_a_question_that_was_paid_for_is_known_and_forgotten_with_its_post(ledger: Ledger) -> None:
    await put(ledger, row(1))
    (made,) = await answer_all(ledger, answer("the text"))
    key = QUESTION.key(Asked("the text"))
    assert await ledger.cached([key, "another"]) == {key: (made.label_id, made.answer)}
    assert await ledger.cached([QUESTION.key(Asked("the text", "its context"))]) == {}
    assert await ledger.cached([QUESTION._replace(model="n").key(Asked("the text"))]) == {}
    await delete(ledger, (made.rkey, made.did))
    assert await ledger.cached([key]) == {}


async def test_a_cached_answer_costs_nothing_and_does_not_count_as_asked(ledger: Ledger) -> None:
    await put(ledger, row(1), row(2))
    first, second = await due(ledger)
    await ledger.answered(first, label(first, answer("same")))
    copied = answer("same", cached_from="id", calls=0, tokens_in=0, tokens_out=0, cost=0.0)
    await ledger.answered(second, label(second, copied))
    assert await ledger.spent() == Spend("", 1, 10, 2, 0, 0.5)
    assert await ledger.spent_a_post() == (1, Spend("", 1, 10, 2, 0, 0.5))


# ---- what failed ----


async def test_a_post_without_a_label_is_told_with_its_reason_until_it_has_one(ledger: Ledger, tmp_path: Path) -> None:
    await put(ledger, row(1))
    (job,) = await due(ledger)
    await ledger.stored(await ledger.outgoing(10), {})
    spend = Spend("m", 1, 7, 3)
    assert await ledger.put_off(job, "not_json", 0, Attempts(1, 2, 3), spend=spend, raw="sorry, I can not")
    assert await ledger.outgoing(10) == [], "it still waits"
    (job,) = await due(ledger)
    assert job.attempts == Attempts(1, 2, 3)
    assert await ledger.put_off(job, "refusal", 0, Attempts(2, 2, 3), dead=True, raw="no")
    (failure,) = (await ledger.unlabelled_of([(job.rkey, job.did)]))[job.rkey, job.did]
    assert (failure.task, failure.reason, failure.p_sampled) == ("civic", "refusal", 1.0)
    assert len(await ledger.outgoing(10)) == 1, "the store must be told"
    reader = await LedgerReader.open(tmp_path / "ledger.db")
    assert [one["raw"] for one in await reader.raw((job.rkey, job.did))] == ["sorry, I can not", "no"]
    await ledger.retry("label")
    await answer_all(ledger)
    assert await reader.raw((job.rkey, job.did)) == []
    await reader.close()
    assert await ledger.unlabelled_of([(job.rkey, job.did)]) == {}


async def test_raw_answers_and_contexts_are_forgotten_in_time(ledger: Ledger, tmp_path: Path) -> None:
    await put(ledger, row(1))
    (job,) = await due(ledger)
    await ledger.put_off(job, "not_json", 0, Attempts(1), raw="sorry")
    await ledger.keep_contexts({"at://did:plc:q/app.bsky.feed.post/1": "{}"})
    await ledger.prune(context_days=1, raw_days=1)
    assert query(tmp_path / "ledger.db", "SELECT (SELECT count(*) FROM raw), (SELECT count(*) FROM context)") == [
        (1, 1)
    ]
    await ledger.prune(context_days=0, raw_days=0)
    assert query(tmp_path / "ledger.db", "SELECT (SELECT count(*) FROM raw), (SELECT count(*) FROM context)") == [
        (0, 0)
    ]


async def test_a_deletion_reaches_contexts_raw_answers_anchors_and_probes(ledger: Ledger, tmp_path: Path) -> None:
    await put(ledger, row(1), row(2, did="did:plc:b"))
    again = Rounds(ledger.database)
    for made in await answer_all(ledger):
        assert await again.anchor(made, 200)
    await make_old(tmp_path)
    await again.plan_probes([("civic", QUESTION.prompt_hash, "m")])
    for job in await due(ledger):
        assert await again.probed(job, answer())
        await ledger.keep_contexts({post_uri(job.did, job.rkey): "{}"})
    await delete(ledger, (f"{1:013}", "did:plc:a"))
    n = await ledger.position() + 1
    await ledger.follow([Change(n, "remove", "did:plc:b", "", "", NOON)], [], ("civic",), Drawing())
    for table in ("anchor", "probe", "context", "raw"):
        assert query(tmp_path / "ledger.db", f"SELECT count(*) FROM {table}") == [(0,)], table
    assert query(tmp_path / "ledger.db", "SELECT DISTINCT answer, key FROM label") == [(None, None)]


async def test_what_a_hidden_account_wrote_is_no_context(ledger: Ledger) -> None:
    uri = post_uri("did:plc:q", "1")
    await ledger.keep_contexts({uri: "{}", "at://did:plc:r/app.bsky.feed.post/1": None})
    await ledger.follow([Change(1, "hide", "did:plc:q", "", "", NOON)], [], ("civic",), Drawing())
    assert await ledger.contexts([uri, "at://did:plc:r/app.bsky.feed.post/1"]) == {
        "at://did:plc:r/app.bsky.feed.post/1": None
    }


# ---- again ----


async def list_all(again: Rounds) -> None:
    while await again.extend(("civic", "toxicity")):
        pass


async def test_a_round_asks_once_more_after_fresh_posts_and_keeps_the_probability(ledger: Ledger) -> None:
    again = Rounds(ledger.database)
    await put(ledger, *(row(n) for n in range(1_200)), drawing=Drawing(2_400))
    drawn = {job.rkey: job.p_sampled for job in await due(ledger)}
    assert 0 < len(drawn) < 1_200
    await answer_all(ledger)
    number = await again.begin("civic", Wish())
    await list_all(again)
    await put(ledger, row(5_000, at=NOON + 5 * HOUR))
    jobs = await due(ledger)
    assert [job.run for job in jobs] == [0, *[number] * len(drawn)]
    assert {job.rkey: job.p_sampled for job in jobs[1:]} == drawn


async def test_a_round_takes_only_what_is_wished_for(ledger: Ledger) -> None:
    again = Rounds(ledger.database)
    await put(ledger, *(row(n, at=NOON + n * HOUR) for n in range(6)))
    for at, job in enumerate(await due(ledger)):
        await ledger.answered(job, label(job, answer(job.rkey, "civic" if at % 2 else "not civic")))
    await again.begin("civic", Wish(since=NOON + HOUR, until=NOON + 5 * HOUR, field="civic", value="civic"))
    await list_all(again)
    assert [int(job.rkey) for job in await due(ledger)] == [1, 3]


async def test_a_round_under_another_task_takes_the_posts_that_were_drawn(ledger: Ledger) -> None:
    again = Rounds(ledger.database)
    await put(ledger, *(row(n) for n in range(300)), drawing=Drawing(240))
    labelled = {made.rkey for made in await answer_all(ledger)}
    await again.begin("toxicity", Wish())
    await list_all(again)
    assert {job.rkey for job in await due(ledger, "toxicity")} == labelled


async def test_a_round_goes_on_where_it_was_and_is_not_begun_twice(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    ledger = await Ledger.open(file)
    await put(ledger, *(row(n) for n in range(1_200)))
    await answer_all(ledger)
    first = await Rounds(ledger.database).begin("civic", Wish())
    assert await Rounds(ledger.database).extend(("civic",)) == rounds.PAGE
    await ledger.close()
    ledger = await Ledger.open(file)
    assert len(await due(ledger)) == rounds.PAGE
    assert await Rounds(ledger.database).begin("civic", Wish()) == first, "it is not done yet"
    await list_all(Rounds(ledger.database))
    assert len(await due(ledger)) == 1_200
    await answer_all(ledger, answer(question=QUESTION._replace(prompt_hash="new")))
    assert await Rounds(ledger.database).begin("civic", Wish()) != first
    ((listed, *_),) = [query(file, "SELECT count(*) FROM label WHERE run > 0")[0]]
    assert listed == 1_200
    assert query(file, "SELECT count(*) FROM label") == [(2_400,)], "the former labels stay"
    await ledger.close()


# ---- drift ----


async def make_old(folder: Path) -> None:
    """As if the anchors had been taken yesterday."""
    import sqlite3  # noqa: PLC0415
    from contextlib import closing  # noqa: PLC0415

    with closing(sqlite3.connect(folder / "ledger.db")) as db, db:
        db.execute("UPDATE anchor SET at = at - ?", (24 * HOUR,))


async def test_anchors_are_asked_once_a_day_and_compared_with_the_first_label(ledger: Ledger, tmp_path: Path) -> None:
    again = Rounds(ledger.database)
    question = ("civic", QUESTION.prompt_hash, "m")
    await put(ledger, *(row(n) for n in range(30)))
    taken = [await again.anchor(made, 20) for made in await answer_all(ledger)]
    assert taken == [True] * 20 + [False] * 10, "so many, and no more"
    assert await again.plan_probes([question]) == 0, "not on the day on which they were taken"
    await make_old(tmp_path)
    assert await again.plan_probes([("civic", "another prompt", "m")]) == 0
    assert await again.plan_probes([question]) == 20
    assert await again.plan_probes([question]) == 0
    jobs = await due(ledger)
    assert len(jobs) == 20
    assert all(job.is_probe for job in jobs)
    for at, job in enumerate(jobs[:18]):
        assert await again.probed(job, answer(civic="not civic" if at < 3 else "civic", fingerprint=f"fp{at % 2}"))
    assert await again.probed(jobs[18], None, "refusal")
    assert await again.plan_probes([question]) == 0, "asked already today"
    assert [job.rkey for job in await due(ledger)] == [jobs[19].rkey]
    (found,) = await rounds.drift(ledger.database)
    assert (found["n"], found["failed"], found["flipped"], found["flipped_by_field"]) == (18, 1, 3, {"civic": 3})
    assert sorted(found["fingerprints"]) == ["fp0", "fp1"]
    assert query(tmp_path / "ledger.db", "SELECT count(*) FROM label") == [(30,)], "a probe is no label"
    assert (await ledger.spent()).calls == 30 + 18, "and it is paid for"


async def test_a_probe_of_a_former_text_is_not_compared(ledger: Ledger, tmp_path: Path) -> None:
    again = Rounds(ledger.database)
    await put(ledger, row(1))
    for made in await answer_all(ledger):
        await again.anchor(made, 20)
    await make_old(tmp_path)
    await again.plan_probes([("civic", QUESTION.prompt_hash, "m")])
    (probe,) = await due(ledger)
    await put(ledger, row(1, "c2"))
    assert not await again.probed(probe, answer(civic="not civic"))
    assert await rounds.drift(ledger.database) == []
    assert query(tmp_path / "ledger.db", "SELECT count(*) FROM anchor") == [(0,)]


async def test_an_answer_of_an_earlier_version_is_read(ledger: Ledger) -> None:
    from civicsky.ledger import pack, unpack  # noqa: PLC0415

    said = answer()
    former = {name: value for name, value in json.loads(pack(said)).items() if name not in Answer._field_defaults}
    assert unpack(json.dumps(former)) == answer(cost=None, currency=None)
