"""The labelling half's database, on a real file: who is drawn, what is asked again, and what is forgotten."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from civicsky import datadir, ledger as ledger_module, rounds, tables
from civicsky.amend import again as label_again
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
from civicsky.settings import Settings
from civicsky.sqlite import open_writer
from civicsky.task import load_task
from support.command import query

HOUR = 3_600_000_000
NOON = 490_000 * HOUR
QUESTION = Question("prompt", "m", "{}")


@asynccontextmanager
async def opened(file: Path) -> AsyncIterator[Ledger]:
    """Closed whatever happens: a database that stays open keeps its process from ending."""
    ledger = await Ledger.open(file)
    try:
        yield ledger
    finally:
        await ledger.close()


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with opened(tmp_path / "ledger.db") as one:
        yield one


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
            async with opened(file) as ledger:
                ledger._sample_key = bytes(32)
                await put(ledger, *posts[600 * part // lives : 600 * (part + 1) // lives], drawing=Drawing(240))
                drawn.append({job.rkey: job.p_sampled for job in await due(ledger)})
    assert drawn[0] == drawn[-1]


async def test_a_post_that_a_feed_shows_while_the_model_is_asked_about_it_gets_a_label_that_was_certain(
    ledger: Ledger,
) -> None:
    await put(ledger, *(row(n) for n in range(500)), drawing=Drawing(240))
    job = (await due(ledger))[-1]
    assert job.p_sampled < 1
    post = row(int(job.rkey))
    change = Change(await ledger.position() + 1, "put", post.did, post.rkey, "r", NOON)
    await ledger.follow([change], [post], ("civic",), Drawing(240), {(post.rkey, post.did)})
    assert await ledger.answered(job, label(job, answer()))
    (kept,) = (await ledger.labels_of([(post.rkey, post.did)]))[post.rkey, post.did]
    assert kept.p_sampled == 1


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
    assert (await ledger.looked_up([], [key, "another"]))[1] == {key: (made.label_id, made.answer)}
    assert (await ledger.looked_up([], [QUESTION.key(Asked("the text", "its context"))]))[1] == {}
    for other in ({"model": "n"}, {"parameters": '{"max_chars": 9}'}, {"prompt_hash": "reworded"}):
        assert (await ledger.looked_up([], [QUESTION._replace(**other).key(Asked("the text"))]))[1] == {}
    await delete(ledger, (made.rkey, made.did))
    assert (await ledger.looked_up([], [key]))[1] == {}


async def test_a_cached_answer_costs_nothing_and_does_not_count_as_asked(ledger: Ledger) -> None:
    await put(ledger, row(1), row(2))
    first, second = await due(ledger)
    await ledger.answered(first, label(first, answer("same")))
    copied = answer("same", cached_from="id", calls=0, tokens_in=0, tokens_out=0, cost=0.0)
    await ledger.answered(second, label(second, copied))
    assert await ledger.spent() == Spend("", 1, 10, 2, 0, 0.5)
    assert await ledger.spent_a_post() == (1, Spend("", 1, 10, 2, 0, 0.5))


# ---- what failed ----


async def raw_of(job: Job, folder: Path) -> list[str]:
    reader = await LedgerReader.open(folder / "ledger.db")
    try:
        return [one["raw"] for one in await reader.raw((job.rkey, job.did))]
    finally:
        await reader.close()


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
    assert await raw_of(job, tmp_path) == ["sorry, I can not", "no"]
    await ledger.retry("label")
    await answer_all(ledger)
    assert await raw_of(job, tmp_path) == []
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


async def anchor(ledger: Ledger, again: Rounds, made: LabelRow) -> bool:
    """Whether the label is taken as one of 20."""
    take = again.anchoring(made, 20)
    return take is not None and bool(await ledger.database.at_once(take))


async def test_a_deletion_reaches_contexts_raw_answers_anchors_and_probes(ledger: Ledger, tmp_path: Path) -> None:
    await put(ledger, row(1), row(2, did="did:plc:b"))
    again = Rounds(ledger.database)
    for made in await answer_all(ledger):
        assert await anchor(ledger, again, made)
    await make_old(tmp_path)
    await again.plan_probes([("civic", QUESTION.prompt_hash, "m")])
    for job in await due(ledger):
        assert await again.probed(job, answer())
        await ledger.keep_contexts({post_uri(job.did, job.rkey): "{}"})
    await again.begin("civic", Wish())
    await list_all(again)
    for job in await due(ledger):
        await ledger.put_off(job, "not_json", 0, Attempts(1), raw="I would rather not say that")
    for table in ("anchor", "probe", "context", "raw"):
        assert query(tmp_path / "ledger.db", f"SELECT count(*) FROM {table}") == [(2,)], table
    await delete(ledger, (f"{1:013}", "did:plc:a"))
    n = await ledger.position() + 1
    await ledger.follow([Change(n, "remove", "did:plc:b", "", "", NOON)], [], ("civic",), Drawing())
    for table in ("anchor", "probe", "context", "raw"):
        assert query(tmp_path / "ledger.db", f"SELECT count(*) FROM {table}") == [(0,)], table
    assert query(tmp_path / "ledger.db", "SELECT DISTINCT answer, key FROM label") == [(None, None)]


async def test_what_was_not_there_while_its_account_was_hidden_is_looked_up_again(ledger: Ledger) -> None:
    uris = [post_uri(did, "1") for did in ("did:plc:q", "did:plc:r")]
    await ledger.follow([Change(1, "hide", "did:plc:q", "", "", NOON)], [], ("civic",), Drawing())
    await ledger.keep_contexts(dict.fromkeys(uris))
    await ledger.follow([Change(2, "show", "did:plc:q", "", "", NOON)], [], ("civic",), Drawing())
    assert await ledger.contexts(uris) == {uris[1]: None}


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
    async with opened(file) as ledger:
        await put(ledger, *(row(n) for n in range(1_200)))
        await answer_all(ledger)
        first = await Rounds(ledger.database).begin("civic", Wish())
        assert await Rounds(ledger.database).extend(("civic",)) == rounds.PAGE
    async with opened(file) as ledger:
        assert len(await due(ledger)) == rounds.PAGE
        assert await Rounds(ledger.database).begin("civic", Wish()) == first, "it is not done yet"
        await list_all(Rounds(ledger.database))
        assert len(await due(ledger)) == 1_200
        await answer_all(ledger, answer(question=QUESTION._replace(prompt_hash="new")))
        assert await Rounds(ledger.database).begin("civic", Wish()) != first
    ((listed, *_),) = [query(file, "SELECT count(*) FROM label WHERE run > 0")[0]]
    assert listed == 1_200
    assert query(file, "SELECT count(*) FROM label") == [(2_400,)], "the former labels stay"


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
    taken = [await anchor(ledger, again, made) for made in await answer_all(ledger)]
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
        await anchor(ledger, again, made)
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


# ---- what must not get lost, and what must not stay ----


async def test_a_post_that_came_after_its_account_was_removed_lives(ledger: Ledger) -> None:
    """The account came back and posted: rows are newer than the changes that are followed with them."""
    await put(ledger, row(1))
    n = await ledger.position()
    changes = [
        Change(n + 1, "remove", "did:plc:a", "", "", NOON),
        Change(n + 2, "show", "did:plc:a", "", "", NOON),
        Change(n + 3, "put", "did:plc:a", f"{2:013}", "r", NOON),
    ]
    await ledger.follow(changes, [row(2)], ("civic",), Drawing())
    assert {out.rkey: out.state for out in await ledger.outgoing(10)} == {f"{1:013}": "deleted", f"{2:013}": "live"}
    assert [job.rkey for job in await due(ledger)] == [f"{2:013}"]


async def test_a_post_that_is_seen_before_its_change_is_drawn_once(ledger: Ledger, tmp_path: Path) -> None:
    """Deleted before we knew of it, and made again while the deletion was followed."""
    again = row(1)
    await ledger.follow([Change(1, "delete", again.did, again.rkey, "r", NOON)], [again], ("civic",), Drawing())
    await ledger.follow([Change(2, "put", again.did, again.rkey, "r", NOON)], [again], ("civic",), Drawing())
    assert query(tmp_path / "ledger.db", "SELECT seen, drawn FROM hour") == [(1, 1)]


async def test_a_deleted_source_is_not_named_by_its_copies(ledger: Ledger, tmp_path: Path) -> None:
    """A copy has the same text: with the source's label, whose tombstone names its post, that text would be known."""
    await put(ledger, row(1), row(2, did="did:plc:b"), row(3, did="did:plc:c"))
    first, second, third = await due(ledger)
    source = label(first, answer("same"))
    await ledger.answered(first, source)
    copied = answer("same", cached_from=source.label_id, calls=0, tokens_in=0, tokens_out=0, cost=0.0)
    await ledger.answered(second, label(second, copied))
    await ledger.answered(third, label(third, answer("other")))
    await ledger.stored(await ledger.outgoing(10), {})
    await delete(ledger, (first.rkey, first.did))
    told = {(out.rkey, out.did) for out in await ledger.outgoing(10)}
    assert told == {(first.rkey, first.did), (second.rkey, second.did)}, "the store must be told of the copy, too"
    ((left,),) = (await ledger.labels_of([(second.rkey, second.did)])).values()
    assert left.answer is not None
    assert left.answer.cached_from == "erased", "it was not paid for, and nobody can tell whose it was"
    assert source.label_id not in str(query(tmp_path / "ledger.db", "SELECT answer FROM label"))
    _, known = await ledger.looked_up([], [left.answer.key])
    assert known[left.answer.key][0] == left.label_id, "it may be copied in turn"


async def test_going_back_to_a_former_question_makes_its_label_the_current_one(ledger: Ledger) -> None:
    await put(ledger, row(1))
    (old,) = await answer_all(ledger, answer("x", "civic"))
    again, other = Rounds(ledger.database), QUESTION._replace(prompt_hash="other")
    await again.begin("civic", Wish())
    await list_all(again)
    (job,) = await due(ledger)
    await ledger.answered(job, label(job, answer("x", "not civic", other))._replace(at=NOON + 1))
    await again.begin("civic", Wish())
    await list_all(again)
    await ledger.stored(await ledger.outgoing(10), {})
    (job,) = await due(ledger)
    copied = answer("x", "civic", cached_from=old.label_id, calls=0)
    await ledger.answered(job, label(job, copied)._replace(at=NOON + 2))
    (newest,) = [labels[-1] for labels in (await ledger.labels_of([(job.rkey, job.did)])).values()]
    assert (newest.label_id, newest.answer) == (old.label_id, old.answer), "as it was paid for"
    assert len(await ledger.outgoing(10)) == 1, "the store must be told"


async def test_a_round_that_got_no_label_under_a_task_added_later_is_told(ledger: Ledger) -> None:
    again = Rounds(ledger.database)
    await put(ledger, row(1), row(2))
    await answer_all(ledger)
    await again.begin("toxicity", Wish())
    await again.begin("civic", Wish())
    await list_all(again)
    for job in await due(ledger, "civic", "toxicity"):
        await ledger.put_off(job, "refusal", 0, Attempts(3), dead=True)
    keys = [(f"{n:013}", "did:plc:a") for n in (1, 2)]
    failures = await ledger.unlabelled_of(keys)
    assert [{one.task for one in failures[key]} for key in keys] == [{"civic", "toxicity"}] * 2


async def test_an_anchor_is_part_of_a_round(ledger: Ledger, tmp_path: Path) -> None:
    again = Rounds(ledger.database)
    await put(ledger, row(1))
    for made in await answer_all(ledger):
        await anchor(ledger, again, made)
    await make_old(tmp_path)
    assert await again.plan_probes([("civic", QUESTION.prompt_hash, "m")]) == 1
    number = await again.begin("civic", Wish())
    await list_all(again)
    assert {job.run for job in await due(ledger)} >= {number}, "a probe makes no label"


async def test_a_hidden_post_does_not_keep_a_round_from_being_done(ledger: Ledger) -> None:
    again = Rounds(ledger.database)
    await put(ledger, row(1), row(2, did="did:plc:b"))
    await answer_all(ledger)
    first = await again.begin("civic", Wish())
    await list_all(again)
    n = await ledger.position()
    await ledger.follow([Change(n + 1, "hide", "did:plc:b", "", "", NOON)], [], ("civic",), Drawing())
    await answer_all(ledger, answer(question=QUESTION._replace(prompt_hash="new")))
    assert (await rounds.listed(ledger.database))[0]["waiting"] == 0
    assert await again.begin("civic", Wish()) != first, "else nothing could be labelled again until it is shown"


async def test_what_was_deleted_hidden_or_edited_meanwhile_is_not_wanted(ledger: Ledger) -> None:
    await put(ledger, *(row(n, did=f"did:plc:{n}") for n in range(4)))
    jobs = await due(ledger)
    await delete(ledger, (jobs[0].rkey, jobs[0].did))
    await ledger.follow(
        [Change(await ledger.position() + 1, "hide", "did:plc:1", "", "", NOON)], [], ("civic",), Drawing()
    )
    await put(ledger, row(2, "c2", did="did:plc:2"))
    assert (await ledger.looked_up(jobs, []))[0] == {jobs[3].id}


async def test_another_wording_begins_a_round_of_its_own(tmp_path: Path) -> None:
    """Else the posts that the unfinished round had reached already would keep the former wording's labels."""
    shipped = load_task("civic")[1]
    mine = tmp_path / "mine.toml"
    mine.write_text(shipped)
    settings = Settings.model_validate({"data_dir": tmp_path, "label": {"tasks": (str(mine),), "model": "m"}})
    for name, schema in ((datadir.JOURNAL, tables.SCHEMA), (datadir.LEDGER, ledger_module.SCHEMA)):
        await (await open_writer(tmp_path / name, schema, synchronous="NORMAL")).close()
    for wording in (shipped, shipped, shipped.replace("A post is civic when", "We call a post civic when")):
        mine.write_text(wording)
        await label_again(settings, (), "", "", "")
    assert query(tmp_path / "ledger.db", "SELECT count(*) FROM round") == [(2,)]


async def test_a_clock_that_was_wrong_for_a_while_lets_no_post_wait_for_ever(ledger: Ledger) -> None:
    """Nothing is put off for more than a day; what lies further ahead was noted by a clock that was put back since."""
    await put(ledger, row(1), row(2))
    first, second = await due(ledger)
    await ledger.put_off(first, "unreachable", 20 * 3600, Attempts())
    await ledger.put_off(second, "unreachable", 365 * 24 * 3600, Attempts())
    assert [job.rkey for job in await due(ledger)] == [second.rkey]


# ---- many at the same time ----


async def test_answers_that_come_at_the_same_time_share_a_transaction_and_each_is_durable(
    ledger: Ledger, tmp_path: Path
) -> None:
    await put(ledger, *(row(n) for n in range(64)))
    jobs = await due(ledger)
    said: list[str] = []
    await ledger.database._connection.set_trace_callback(said.append)
    wanted = await asyncio.gather(*(ledger.answered(job, label(job, answer(job.rkey))) for job in jobs))
    assert wanted == [True] * 64
    assert said.count("COMMIT") <= 5, "64 answers must not wait for the disk 64 times"
    assert query(tmp_path / "ledger.db", "SELECT count(*) FROM label") == [(64,)]
    assert query(tmp_path / "ledger.db", "SELECT calls, posts FROM spend") == [(64, 64)]


async def test_of_answers_that_share_a_transaction_only_those_that_nobody_wants_are_dropped(
    ledger: Ledger, tmp_path: Path
) -> None:
    await put(ledger, *(row(n) for n in range(4)))
    jobs = await due(ledger)
    await delete(ledger, (jobs[1].rkey, jobs[1].did))
    wanted = await asyncio.gather(*(ledger.answered(job, label(job, answer(job.rkey))) for job in jobs))
    assert wanted == [True, False, True, True]
    assert query(tmp_path / "ledger.db", "SELECT count(*) FROM label") == [(3,)]
    assert query(tmp_path / "ledger.db", "SELECT calls, posts FROM spend") == [(4, 4)], "it was paid for all the same"


async def test_who_is_cancelled_at_the_commit_for_several_has_no_answer_counted_twice(
    ledger: Ledger, tmp_path: Path
) -> None:
    await put(ledger, *(row(n) for n in range(4)))
    alone, at_its_turn, *others = [
        asyncio.create_task(ledger.answered(job, label(job, answer(job.rkey)))) for job in await due(ledger)
    ]
    await alone
    loop = asyncio.get_running_loop()

    def heed(said: str) -> None:
        if said == "COMMIT":
            loop.call_soon_threadsafe(at_its_turn.cancel)

    await ledger.database._connection.set_trace_callback(heed)
    assert await asyncio.gather(*others) == [True, True]
    with pytest.raises(asyncio.CancelledError):
        await at_its_turn
    assert query(tmp_path / "ledger.db", "SELECT calls, posts FROM spend") == [(4, 4)]


async def test_an_answer_whose_transaction_fails_leaves_nothing_and_can_be_kept_again(
    ledger: Ledger, tmp_path: Path
) -> None:
    await put(ledger, row(1))
    (job,) = await due(ledger)
    made = label(job, answer(job.rkey))

    def broken(_db: object) -> None:
        raise RuntimeError("at the end of it")

    with pytest.raises(RuntimeError, match="at the end of it"):
        await ledger.answered(job, made, broken)
    file = tmp_path / "ledger.db"
    counts = "SELECT (SELECT count(*) FROM label), (SELECT count(*) FROM spend), state FROM job"
    assert query(file, counts) == [(0, 0, "pending")]
    assert await ledger.answered(job, made)
    assert query(file, counts) == [(1, 1, "done")]


async def test_look_ups_that_come_at_the_same_time_find_each_its_own(ledger: Ledger) -> None:
    await put(ledger, *(row(n) for n in range(5)))
    jobs = await due(ledger)
    await delete(ledger, (jobs[2].rkey, jobs[2].did))
    found = await asyncio.gather(*(ledger.looked_up([job], []) for job in jobs))
    assert found == [(set() if at == 2 else {job.id}, {}) for at, job in enumerate(jobs)]
    made = label(jobs[0], answer(jobs[0].rkey))
    assert await ledger.answered(jobs[0], made)
    assert made.answer is not None
    known = await asyncio.gather(*(ledger.looked_up([], keys) for keys in ([made.answer.key], ["nobody's"], [])))
    assert [list(one) for _, one in known] == [[made.answer.key], [], []]
