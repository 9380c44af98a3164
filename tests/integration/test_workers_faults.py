"""Label workers over a real nats-server when something is wrong: with the queue, other home nodes, or a worker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from structlog.testing import capture_logs

from civicsky.errors import BadInput, Refused, Transient, Unsent
from civicsky.model import Asked
from civicsky.workers import bus as line, messages
from civicsky.workers.serve import AGAIN_SECONDS
from civicsky.workers.wanted import wanted_while
from civicsky.workers.workqueue import WorkQueue
from integration.test_workers import (
    EXPIRING,
    KEY,
    Home,
    Model,
    ask_until_taken,
    become,
    connected,
    home,
    let_go,
    model,
    nats,
    own,
    shared,
    speaking,
    taking,
    value,
    working,
)
from support.model_says import answer_for
from support.model_server import ModelServer, Told, serve
from support.nats_server import NatsServer, nats_server, worker_here

__all__ = ["model", "nats", "shared"]  # fixtures

RESTING: dict[str, Any] = {"label__pause_seconds": 1.0, "label__pause_max_seconds": 60.0}
"""A server that failed rests for long enough to see who is asked meanwhile."""


@asynccontextmanager
async def another_model(file: Path, **told: Any) -> AsyncIterator[Model]:
    made = Model(file)
    made.server = ModelServer(Told(**told), [], None, file)
    server, made.url = await serve(made.server)
    try:
        yield made
    finally:
        server.close()


async def ask_all(asker: Home, texts: list[str], at_once: int = 8) -> None:
    """Each gets its own answer."""
    slots = [asker.slot() for _ in range(at_once)]

    async def ask(at: int) -> None:
        for text in texts[at::at_once]:
            try:
                (answer,) = await slots[at].ask("civic", [Asked(text)])
            except Transient as error:
                raise AssertionError(f"{text} was given back: {error}") from error
            assert not isinstance(answer, BadInput), answer.reason
            assert value(answer) == answer_for(text)["civic"]

    await asyncio.gather(*map(ask, range(at_once)))


# ---- several home nodes ----------------------------------------------------------------------------------------------


async def test_two_home_nodes_with_one_name_and_one_model_share_workers_and_each_post_is_one_call(
    shared: NatsServer, model: Model
) -> None:
    settings = own(shared, model, "twins", label__slots=4)
    model.tell(delay=0.01)
    async with worker_here(settings), home(settings) as one:
        early = asyncio.create_task(ask_all(one, [f"Post {n} of the first" for n in range(80)]))
        await become(lambda: one.counts.results > 5, "the first to be at work")
        async with home(settings) as two:  # it comes when the other has jobs in the queue, and goes before it
            await ask_all(two, [f"Post {n} of the second" for n in range(40)])
        await early
        assert (one.counts.dispatched_again, two.counts.dispatched_again) == (0, 0)
        assert (one.counts.late, two.counts.late) == (0, 0)
    assert model.calls == 120


async def test_home_nodes_with_one_name_and_different_models_do_not_disturb_each_other(
    shared: NatsServer, model: Model, tmp_path: Path
) -> None:
    settings = own(shared, model, "siblings")
    async with another_model(tmp_path / "else", model="else") as other_model:
        others = own(shared, other_model, "siblings", label__model="else")
        async with worker_here(settings), worker_here(others), home(settings) as one, home(others) as other:
            await asyncio.gather(
                ask_all(one, [f"Post {n}" for n in range(40)]), ask_all(other, [f"Post {n}" for n in range(40)])
            )
            assert one.counts.dispatched_again == other.counts.dispatched_again == 0
        assert (model.calls, other_model.calls) == (40, 40)


async def test_a_home_nodes_questions_wait_in_line_behind_anothers_for_as_long_as_workers_take_some(
    shared: NatsServer, model: Model
) -> None:
    settings = own(shared, model, "line", label__slots=1, workers__wait_seconds=5)
    model.tell(delay=0.1)
    async with home(settings) as many:
        async with worker_here(settings):
            await many.ask("the first finds out how")
        before = many.counts.dispatched
        crowd = asyncio.create_task(ask_all(many, [f"Post {n}" for n in range(60)], at_once=60))
        await become(lambda: many.counts.dispatched == before + 60, "all to be in the queue")
        async with home(settings) as one, worker_here(settings):
            await one.ask("Behind six seconds of work, which is longer than it waits for a worker")
            await crowd
    assert model.calls == 62


async def test_what_a_home_node_that_is_no_more_left_in_the_queue_is_taken_out_by_another(
    shared: NatsServer, model: Model
) -> None:
    settings = own(shared, model, "heirs")
    async with home(settings) as asker, home(settings) as living, speaking(settings) as bus:
        waits = asyncio.create_task(living.ask("A post of another that lives"))
        await become(lambda: living.counts.dispatched, "it to be in the queue")
        dead = WorkQueue(bus, settings.workers, KEY, "dead")
        for n in range(20):
            job = messages.Job(f"dead-{n}", 1, "dead", "POST", "/chat/completions", 5, 1, 5, b"{}")
            await dead.put(messages.encode(job), messages.message_id(job))
        async with asyncio.timeout(30):
            while (look := await dead.look()) is None or look.jobs:
                pass
        async with worker_here(settings):
            await asker.ask("A post")
            await waits
        assert living.counts.dispatched_again == 0, "who lives keeps its jobs"
    assert model.calls == 2


# ---- the queue -------------------------------------------------------------------------------------------------------


async def test_a_consumer_that_somebody_deleted_is_made_again_and_each_post_called_once(
    shared: NatsServer, model: Model
) -> None:
    settings = own(shared, model, "nobody-takes")
    model.tell(held=True)
    async with home(settings) as asker, speaking(settings) as bus, worker_here(settings):
        called = asyncio.create_task(asker.ask("A post that is being called for"))
        await become(lambda: asker.counts.claimed, "the call to begin")
        js = bus.connected().jetstream()
        await js.delete_consumer("nobody-takes", messages.consumer_name(KEY))
        model.tell(held=False)
        await asyncio.gather(called, ask_all(asker, [f"Post {n}" for n in range(10)]))
        async with asyncio.timeout(30):  # until the last ack has come to NATS, too
            while (await js.stream_info("nobody-takes")).state.messages:
                pass
    assert model.calls == 11


async def test_a_nats_without_jetstream_is_told_and_workers_wait_for_it_without_haste(
    tmp_path: Path, model: Model
) -> None:
    server = NatsServer(tmp_path / "nats")
    server.file.write_text(server.file.read_text().replace("jetstream {", "# {"))
    server.start()
    try:
        settings = own(server, model, "plain", workers__wait_seconds=3)
        began = monotonic()
        async with home(settings) as asker, worker_here(settings) as (worker, _, _):
            await connected(asker)
            with pytest.raises(Unsent, match="has no JetStream"):
                await asker.ask("A post")
            assert "has no JetStream" in asker.counts.why
            pulls = [puller._n for puller in worker._pullers]
            assert max(pulls) <= 1 + (monotonic() - began) / AGAIN_SECONDS, "none asks more often than it should"
    finally:
        server.kill()


async def test_a_nats_without_room_is_told_and_what_waits_goes_back_to_disk(tmp_path: Path, model: Model) -> None:
    with nats_server(tmp_path / "nats") as server:
        server.kill()
        text = server.file.read_text()
        server.file.write_text(text.replace("jetstream {", "jetstream { max_memory_store: 3KB,"))
        server.start()
        settings = own(server, model, "full", workers__wait_seconds=1)
        async with home(settings) as asker:
            await become(lambda: asker.dispatcher._made, "the queue to be made")
            body = b"x" * 5_000
            asked = [asker.dispatcher.exchange("POST", "/chat/completions", body, 5) for _ in range(4)]
            done = await asyncio.gather(*asked, return_exceptions=True)
            assert all(isinstance(one, Unsent) for one in done)
            assert any("takes no job" in str(one) for one in done), done


async def test_a_question_that_was_given_to_workers_in_vain_goes_back_though_others_are_taken(
    shared: NatsServer, model: Model
) -> None:
    settings = own(shared, model, "vain", workers__wait_seconds=3, workers__ack_seconds=60)
    async with home(settings) as asker, taking(settings) as take:
        async with worker_here(settings):
            await ask_until_taken(asker, "the first finds out how")
        lost = asyncio.create_task(asker.ask("A post"))
        await take()  # by somebody who says nothing of it
        async with worker_here(settings):
            until = monotonic() + 5 * settings.workers.wait_seconds
            while not lost.done():
                assert monotonic() < until, "it waits for as long as others come"
                await ask_until_taken(asker, "Another post")
        with pytest.raises(Unsent, match="nobody took"):
            await lost


async def test_an_answer_too_long_for_nats_is_one_of_no_use_and_ends_no_worker(tmp_path: Path, model: Model) -> None:
    with nats_server(tmp_path / "nats", "max_payload: 60KB\n") as server:
        settings = own(server, model, "long")
        async with worker_here(settings) as (_, _, task), home(settings) as asker:
            await asker.ask("A post")
            model.tell(say="x" * 200_000)
            (answer,) = await asker.slot().ask("civic", [Asked("Another")])
            assert isinstance(answer, BadInput)
            assert answer.reason == "too_long"
            model.tell(say="")
            await asker.ask("A third")
            assert not task.done()


async def test_a_question_too_long_for_nats_is_told_with_what_to_raise(tmp_path: Path, model: Model) -> None:
    with nats_server(tmp_path / "nats", "max_payload: 2KB\n") as server:
        settings = own(server, model, "short")
        async with home(settings) as asker:
            with pytest.raises(Refused, match="raise its max_payload"):
                await asker.ask("A post")


# ---- what is said, and not heard -------------------------------------------------------------------------------------


async def test_a_claim_whose_answer_came_too_late_is_called_back_and_counts_as_no_call(
    shared: NatsServer, model: Model
) -> None:
    settings = own(shared, model, "void")
    async with home(settings) as asker, taking(settings) as take, speaking(settings) as bus:
        asked = asyncio.create_task(asker.ask("A post"))
        job, delivery = await take()
        claim = await let_go(bus, settings, job, delivery, "one that waited in vain")
        subject = f"{settings.workers.name}.home.{job.home}.claim"
        await bus.publish(subject, messages.encode(claim._replace(void=True)))
        await delivery.nak()
        async with worker_here(settings):
            answer = await asked
        assert answer.calls == 1
    assert model.calls == 1


async def test_who_has_an_older_delivery_is_told_to_leave_it_to_the_next(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "older", **EXPIRING)
    async with home(settings) as asker, taking(settings) as take, speaking(settings) as bus:
        asked = asyncio.create_task(asker.ask("A post"))
        job, first = await take()
        _, second = await take()  # after the ack wait
        assert first.number < second.number
        subject = f"{settings.workers.name}.home.{job.home}"
        claims = [messages.Claim(job.id, job.attempt, n, f"worker {n}") for n in (first.number, second.number)]
        assert await bus.request(f"{subject}.claim", messages.encode(claims[1]), 5) == b"go"
        assert await bus.request(f"{subject}.claim", messages.encode(claims[0]), 5) == b"leave"
        failed = messages.Result(job.id, job.attempt, claims[0].worker, "unreachable", "x", why="its model is away")
        assert await bus.request(f"{subject}.result", messages.encode(failed), 5) == b"ok"
        assert not asked.done(), "another one has it, so that a failure decides nothing"
        asked.cancel()


async def test_a_question_that_was_given_up_while_its_claim_is_looked_at_is_sent_to_no_model(
    shared: NatsServer, model: Model
) -> None:
    settings = own(shared, model, "meanwhile")
    looks, goes_on = asyncio.Event(), asyncio.Event()

    async def wanted() -> bool:
        looks.set()
        await goes_on.wait()
        return True

    async with home(settings) as asker, worker_here(settings):

        async def ask() -> None:
            with wanted_while(wanted):
                await asker.ask("A post")

        asked = asyncio.create_task(ask())
        await looks.wait()
        asked.cancel()
        await asyncio.wait([asked])
        goes_on.set()
        await asker.ask("Another post")
    assert model.calls == 1


async def test_each_call_counts_for_the_days_limit_also_one_that_was_made_twice(
    shared: NatsServer, model: Model
) -> None:
    settings = own(shared, model, "limit", **EXPIRING, label__requests_per_day=3)
    async with home(settings) as asker, taking(settings) as take, speaking(settings) as bus:
        asked = asyncio.create_task(asker.ask("A post"))
        job, delivery = await take()
        await let_go(bus, settings, job, delivery, "one that dies")
        async with worker_here(settings):
            assert (await asked).calls == 2
            assert asker.endpoints.delay() == 0
            await asker.ask("Another post")
        assert asker.endpoints.delay() > 0, "three are as many as a day has"
    assert model.calls == 2


async def test_a_call_counts_though_nats_refuses_us_before_its_result_came(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nats_server(tmp_path / "nats", 'authorization { token: "one-of-its-tokens" }\n') as nats:
        settings = own(nats, model, "refusing", workers__token="one-of-its-tokens")
        async with home(settings) as asker, taking(settings) as take, speaking(settings) as bus:
            asked = asyncio.create_task(asker.ask("A post"))
            job, delivery = await take()
            await let_go(bus, settings, job, delivery, "one that is cut off")
            monkeypatch.setattr(line, "REFUSED_SECONDS", 0)
            nats.kill()
            nats.file.write_text(nats.file.read_text().replace("one-of-its-tokens", "another-of-its-tokens"))
            nats.start()
            with pytest.raises(Transient) as caught:
                await asked
            assert caught.value.spend.calls == 1
            with pytest.raises(Refused, match="does not let us in"):
                await asker.ask("Another post")


# ---- a worker among others -------------------------------------------------------------------------------------------


async def test_a_worker_with_a_dead_server_asks_its_other_one(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "two", **RESTING, label__more_urls=("http://127.0.0.1:9/v1",))
    async with worker_here(settings), home(settings) as asker:
        await ask_all(asker, [f"Post {n}" for n in range(30)])
        assert asker.endpoints.delay() == 0
    assert model.calls == 30


async def test_a_worker_whose_server_breaks_holds_up_nobody_and_costs_no_post_an_attempt(
    shared: NatsServer, model: Model, tmp_path: Path
) -> None:
    async with another_model(tmp_path / "sick") as sick:
        settings = own(shared, model, "sick", **RESTING, label__slots=2)
        ailing = own(shared, sick, "sick", **RESTING, label__slots=2)
        async with worker_here(settings), worker_here(ailing) as (one, _, _), home(settings) as asker:
            await working(asker, 2)
            await asker.ask("the first finds out how")
            sick.tell(status=500)
            model.tell(delay=0.02)
            with capture_logs() as lines:
                await ask_all(asker, [f"Post {n}" for n in range(60)])
            rested = [line["server"] for line in lines if line["event"] == "workers_resting"]
            assert set(rested) == {one.servers.names}
        assert sick.calls <= 60
        assert model.calls >= 60 - 1


async def test_what_broke_at_one_worker_is_for_another_one_though_the_first_asks_for_it_again(
    shared: NatsServer, model: Model
) -> None:
    settings = own(shared, model, "again")
    async with home(settings) as asker, taking(settings) as take, speaking(settings) as bus:
        await connected(asker)

        async def both_are_there() -> None:
            for name in ("sick", "well"):
                beat = messages.Beat(name, "1", "x", 2, 0, 0)
                assert await bus.request(f"{settings.workers.name}.beat", messages.encode(beat), 5) == b""

        asked = asyncio.create_task(asker.ask("A post"))

        async def claimed(name: str) -> tuple[bytes, str, messages.Claim]:
            job, delivery = await take()
            await both_are_there()
            claim = messages.Claim(job.id, job.attempt, delivery.number, name, name)
            subject = f"{settings.workers.name}.home.{job.home}"
            word = await bus.request(f"{subject}.claim", messages.encode(claim), 5)
            await (delivery.nak() if word == b"rest" else delivery.ack())
            return word, subject, claim

        word, subject, claim = await claimed("sick")
        assert word == b"go"
        broken = messages.Result(claim.id, claim.attempt, "sick", "reply", "x", 500, proof="sick")
        assert await bus.request(f"{subject}.result", messages.encode(broken), 5) == b"rest"
        word, _, again = await claimed("sick")
        assert (word, again.attempt) == (b"rest", claim.attempt + 1)
        assert (await claimed("well"))[0] == b"go"
        asked.cancel()


async def test_what_every_workers_server_turns_away_is_heard_at_home(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "busy", label__slots=2)
    async with worker_here(settings), worker_here(settings), home(settings) as asker:
        await working(asker, 2)
        await asker.ask("the first finds out how")
        model.tell(status=429)
        with pytest.raises(Transient, match="HTTP 429") as caught:
            await asker.ask("A post")
        assert caught.value.busy
        assert caught.value.spend.calls == 2, "each worker tried, and no more"
