"""A worker that lies, floods and guesses, and a NATS that forbids: what the home node takes, and what it tells."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from civicsky import doctor
from civicsky.errors import Unsent
from civicsky.model import Asked
from civicsky.settings import Settings
from civicsky.workers import dispatch, listen, messages, serve
from civicsky.workers.bus import Bus
from civicsky.workers.messages import Beat, Claim, Job, Result
from civicsky.workers.roster import MAX_WORKERS, NEWS
from civicsky.workers.workqueue import ROOM, Delivery, WorkQueue
from integration.test_workers import (
    KEY,
    Home,
    Model,
    become,
    home,
    model as model,  # noqa: PLC0414  (a fixture)
    own,
    speaking,
    taking,
    value,
)
from support.model_says import answer_for
from support.nats_server import NatsServer, nats_server, worker_here, worker_settings


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with nats_server(tmp_path_factory.mktemp("nats")) as nats:
        yield nats


class Liar:
    """Whoever has a worker's password, with one job in hand."""

    def __init__(self, bus: Bus, settings: Settings, job: Job, delivery: Delivery) -> None:
        self.job, self.delivery = job, delivery
        self._bus, self._home = bus, f"{settings.workers.name}.home.{job.home}"

    async def claim(self, delivery: int = 1, worker: str = "liar", proof: str = "its proof") -> bytes:
        claim = Claim(self.job.id, self.job.attempt, delivery, worker, proof)
        return await self._bus.request(f"{self._home}.claim", messages.encode(claim), 5)

    async def answer(self, proof: str = "its proof", **said: Any) -> bytes:
        whole: dict[str, Any] = {"kind": "reply", "by": "x", "status": 200, "body": b"{}", **said}
        result = Result(self.job.id, self.job.attempt, "liar", proof=proof, **whole)
        return await self._bus.request(f"{self._home}.result", messages.encode(result), 5)


@asynccontextmanager
async def lying(settings: Settings) -> AsyncIterator[tuple[Home, "asyncio.Task[Any]", Liar]]:
    """A home node that asks about a post, and a liar who was given the job."""
    async with home(settings) as asker, taking(settings) as take, speaking(settings) as bus:
        asked = asyncio.create_task(asker.slot().ask("civic", [Asked("A post")]))
        yield asker, asked, Liar(bus, settings, *(await take()))
        asked.cancel()
        await asyncio.wait([asked])


async def test_a_result_counts_only_from_a_worker_that_was_let_make_the_call(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "forged")
    async with lying(settings) as (asker, asked, liar):
        assert await liar.answer() == b"ok"
        assert asker.counts.late == 1
        await liar.delivery.nak()
        async with worker_here(settings):
            (answer,) = await asked
        assert value(answer) == answer_for("A post")["civic"]
    assert model.calls == 1


async def test_a_result_counts_only_with_the_proof_of_the_claim_whoever_it_says_it_is(
    shared: NatsServer, model: Model
) -> None:
    async with lying(own(shared, model, "proof")) as (asker, asked, liar):
        assert await liar.claim() == b"go"
        for proof in ("", "another", "its proof ", "\u00e4"):
            assert await liar.answer(proof) == b"ok"
        assert asker.counts.late == 4
        assert not asked.done()
        await liar.answer(kind="unusable", why="too_long", status=0)
        assert [one.reason for one in await asked] == ["too_long"]


async def test_a_delivery_is_claimed_by_one_worker_and_a_job_by_no_more_than_it_has_deliveries(
    shared: NatsServer, model: Model
) -> None:
    async with lying(own(shared, model, "claims", workers__deliveries=3)) as (asker, _, liar):
        assert await liar.claim(1) == b"go"
        assert await liar.claim(1) == b"go", "its word may have been lost"
        for n in range(20):
            assert await liar.claim(1, f"w{n}", f"p{n}") == b"leave"
        for delivery in (0, 4, 2**52):
            assert await liar.claim(delivery, proof="p") == b"leave"
        assert asker.counts.claimed == 1


async def test_a_job_that_one_worker_is_given_twice_as_the_same_delivery_is_called_once(
    shared: NatsServer, model: Model
) -> None:
    """So it is when NATS counts deliveries wrong, or holds a job twice."""
    settings = own(shared, model, "twice", label__slots=2, workers__ack_seconds=20)
    async with home(settings) as asker, worker_here(settings), speaking(settings) as bus:
        await asker.ask("the first finds out how")
        model.tell(delay=1.0)
        asked = asyncio.create_task(asker.ask("A post"))
        await become(lambda: asker.counts.claimed == 2, "the call to begin")
        (question,) = asker.dispatcher._asked.values()
        queue = WorkQueue(bus, settings.workers, KEY, asker.dispatcher.session)
        number = await queue.put(messages.encode(question.job), "the same again")
        assert number > (question.number or 0), "it is there twice"
        await asked
        assert asker.counts.claimed == 2
    assert model.calls == 2


async def test_what_comes_to_a_slot_that_is_at_work_fills_no_memory(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "piles", label__slots=1)
    async with home(settings) as asker, worker_here(settings) as (worker, _, _), speaking(settings) as bus:
        await asker.ask("the first finds out how")
        model.tell(delay=1.0)
        asked = asyncio.create_task(asker.ask("A post"))
        await become(lambda: worker._in_flight, "the call to begin")
        (puller,) = worker._pullers
        ended = worker._ended
        for n in range(500):
            await bus.publish(f"{puller._inbox}.{n}", b"x")
            await bus.publish("piles.queue", b"" if n % 2 else b"x" * 10_000)
        await bus.publish("piles.queue", b"the last")
        await become(lambda: "the last" in ended, "all to be heard")
        assert puller._came.qsize() <= ROOM
        assert max(len(session) for session in ended) < 100
        await asked
        await asker.ask("Another post")
    assert model.calls == 3


async def test_what_looks_like_a_delivery_and_is_none_ends_no_worker(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "looks", label__slots=1)
    async with home(settings) as asker, worker_here(settings) as (worker, _, task), speaking(settings) as bus:
        await asker.ask("A post")
        (puller,) = worker._pullers
        for reply in ("$JS.ACK.", "$JS.ACK.a.b.c.d.e.f.g", f"$JS.ACK.a.b.1.1.1.{'9' * 40}.1", "$JS.ACK" + ".x" * 12):
            await bus.connected().publish(f"{puller._inbox}.1", b"{}", reply=reply)
        await bus.connected().flush()
        await asker.ask("Another post")
        assert not task.done()
    assert model.calls == 2


async def test_who_answers_in_place_of_jetstream_ends_no_home_node(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside JetStream he has to be quicker, so here there is none."""
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.02)
    answers = [b"garbage", b"[]", b"{}", b"[" * 50_000, b'{"config": 1, "state": {"subjects": 1}}'] * 2
    server = NatsServer(tmp_path / "nats")
    server.file.write_text(server.file.read_text().replace("jetstream {", "# {"))
    server.start()
    settings = own(server, model, "inplace", workers__wait_seconds=0.5)
    said = 0

    async def lie(_data: bytes) -> bytes:
        nonlocal said
        said += 1
        return answers[said % len(answers)]

    bus = Bus(settings.workers, "a liar")
    bus.on("$JS.API.>", lie)
    run = asyncio.create_task(bus.run())
    try:
        await bus.wait_up(10)
        async with home(settings) as asker:
            await become(lambda: said > len(answers), "all of it to be said")
            await become(lambda: "none of JetStream's" in asker.counts.why, "it to be told")
            with pytest.raises(Unsent):
                await asker.ask("A post")
    finally:
        run.cancel()
        await asyncio.wait([run])
        server.kill()


async def test_the_home_node_replies_to_inboxes_alone_and_speaks_for_nobody_elsewhere(
    shared: NatsServer, model: Model
) -> None:
    settings = own(shared, model, "replies")
    async with lying(settings) as (_, _, liar), speaking(settings) as bus:
        claim = messages.encode(Claim(liar.job.id, liar.job.attempt, 1, "liar", "its proof"))
        queue = WorkQueue(bus, settings.workers, KEY, liar.job.home)
        await bus.connected().publish(f"replies.home.{liar.job.home}.claim", claim, reply=queue.subject)
        await bus.connected().flush()
        assert await liar.claim() == b"go", "the one before was heard, too"
        look = await queue.look()
        assert look is not None
        assert look.jobs == 1


async def test_who_is_cancelled_while_a_reply_comes_ends(shared: NatsServer) -> None:
    bus = Bus(worker_settings(shared, "http://127.0.0.1:9").workers, "a test")

    async def echo(data: bytes) -> bytes:
        return data

    async def ask() -> None:
        while True:
            await bus.request("echo", b"", 5)

    bus.on("echo", echo)
    run = asyncio.create_task(bus.run())
    await bus.wait_up(10)
    for steps in range(200):
        task = asyncio.create_task(ask())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=20)
        assert task.cancelled(), steps
    run.cancel()
    await asyncio.wait([run])


async def test_who_was_cancelled_still_says_all_that_it_has_to_say_at_its_end(shared: NatsServer) -> None:
    bus = Bus(worker_settings(shared, "http://127.0.0.1:9").workers, "a test")
    heard: list[bytes] = []

    async def hear(data: bytes) -> bytes:
        heard.append(data)
        return b""

    async def end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await bus.publish("ends", b"first")
            await bus.publish("ends", b"second")
            await bus.request("ends", b"last", 5)

    bus.on("ends", hear)
    run = asyncio.create_task(bus.run())
    await bus.wait_up(10)
    task = asyncio.create_task(end())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert heard == [b"first", b"second", b"last"]
    run.cancel()
    await asyncio.wait([run])


async def test_a_jobs_number_tells_nothing_of_the_next_ones(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "numbers")
    async with home(settings) as asker, taking(settings) as take:
        asked = [asyncio.create_task(asker.dispatcher.exchange("GET", "/models", b"", 5)) for _ in range(2)]
        first, second = [(await take())[0].id for _ in asked]
        assert len(first) >= 16
        assert first[:8] != second[:8]
        for task in asked:
            task.cancel()
        await asyncio.wait(asked)


@pytest.mark.parametrize(
    "said",
    [{"kind": "unusable", "why": "made_up_\x1b[2J", "status": 0}, {"status": 0}, {"status": 10**15}, {"status": 99}],
)
async def test_what_a_worker_makes_up_becomes_no_reason_of_ours(
    shared: NatsServer, model: Model, said: dict[str, Any]
) -> None:
    async with lying(own(shared, model, "made-up")) as (_, asked, liar):
        await liar.claim()
        await liar.answer(**said)
        assert [one.reason for one in await asked] == ["bad_response"]


async def test_the_name_that_a_worker_gives_its_server_moves_no_cursor(shared: NatsServer, model: Model) -> None:
    async with lying(own(shared, model, "by")) as (asker, asked, _):
        asked.cancel()
        exchange = asyncio.create_task(asker.dispatcher.exchange("GET", "/models", b"", 5))
        async with taking(own(shared, model, "by")) as take, speaking(own(shared, model, "by")) as bus:
            job, delivery = await take()
            while job.path != "/models":
                await delivery.ack()
                job, delivery = await take()
            other = Liar(bus, own(shared, model, "by"), job, delivery)
            await other.claim()
            await other.answer(by="evil\x1b[2J\u202e<script>")
        assert (await exchange).by == "evil?[2J?<script>"


async def test_a_flood_of_beats_with_names_that_nobody_has_stops_no_answer_and_fills_no_log(
    shared: NatsServer, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = own(shared, model, "flood")
    async with home(settings) as asker, speaking(settings) as bus, worker_here(settings) as (worker, _, _):
        await become(asker.dispatcher._roster.there, "the worker to be there")
        full = asyncio.create_task(
            become(lambda: len(asker.dispatcher._roster.there()) == MAX_WORKERS, "the list to be full")
        )
        for n in range(5_000):
            beat = Beat(f"\x1b[2J<b>{n}", "\x07" * 400, "\u202e" * 400, 10**9, 10**9, 10**9, key="k")
            await bus.publish("flood.beat", messages.encode(beat))
        assert value(await asker.ask("A post")) == answer_for("A post")["civic"]
        await full
        assert worker.name in {one.worker for one in asker.dispatcher._roster.there()}
    said = "".join(capsys.readouterr())
    assert said.count("workers_joined") + said.count("workers_left") < NEWS + 50


async def test_nothing_of_a_post_stays_in_nats_when_the_home_node_has_ended(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "left")
    async with speaking(settings) as bus:
        async with lying(settings) as (_, asked, liar):
            queue = WorkQueue(bus, settings.workers, KEY, liar.job.home)
            await liar.claim()
            await liar.answer(kind="unusable", why="too_long", status=0)
            await asyncio.wait([asked])
            look = await queue.look()
            assert look is not None
            assert look.jobs == 1, "its worker never said that it is done with"
        look = await queue.look()
        assert look is not None
        assert look.jobs == 0


# ---- what is told ----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _beats_come_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that who listens for some of them need not wait for seconds."""
    monkeypatch.setattr(serve, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(listen, "BEAT_SECONDS", 0.5)


async def said_by_doctor(settings: Settings, folder: Path) -> doctor.Finding:
    (found,) = await doctor._workers(doctor.Context(settings, folder))
    return found


async def test_a_worker_with_another_models_name_is_told_where_one_looks_for_it(
    shared: NatsServer, model: Model, tmp_path: Path
) -> None:
    settings = own(shared, model, "names", workers__wait_seconds=1)
    async with worker_here(own(shared, model, "names", label__model="mocc")):
        async with home(settings) as asker:
            await become(asker.dispatcher._roster.there, "the worker to be there")
            with pytest.raises(Unsent, match=r"with another model or other weights \(mocc, here mock\)"):
                await asker.ask("A post")
        found = await said_by_doctor(settings, tmp_path)
    assert (found.state, found.remedy) == ("unknown", "give them the same --model")
    assert "mocc" in found.what


async def test_a_worker_that_speaks_another_version_is_told(
    shared: NatsServer, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = own(shared, model, "versions", workers__wait_seconds=1)
    beat = messages.encode(Beat("w", "9", "s", 1, 0, 0)).replace(b'"v": 1', b'"v": 9')

    async def speak(bus: Bus) -> None:
        while True:
            await bus.publish("versions.beat", beat)
            await asyncio.sleep(0.2)

    async with speaking(settings) as bus, asyncio.TaskGroup() as group:
        beats = group.create_task(speak(bus))
        async with home(settings) as asker:
            await become(asker.dispatcher._roster.there, "the worker to be there")
            with pytest.raises(Unsent, match=r"speaks version 9 of .* upgrade the home node"):
                await asker.ask("A post")
        assert "version" in (await said_by_doctor(settings, tmp_path)).what
        beats.cancel()
    assert capsys.readouterr().out.count("workers_foreign") == 1


async def test_without_workers_or_without_nats_doctor_says_which_and_what_to_do(
    shared: NatsServer, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await said_by_doctor(own(shared, model, "nobody"), tmp_path)
    assert (found.state, found.what.partition("; ")[2]) == ("unknown", "no label worker is there")
    assert "civicsky label --worker URL" in found.remedy
    monkeypatch.setattr(listen, "CONNECT_SECONDS", 1)
    away = Settings.model_validate({"workers": {"url": "nats://127.0.0.1:9"}, "label": {"model": "mock"}})
    found = await said_by_doctor(away, tmp_path)
    assert (found.state, found.remedy) == ("problem", "start NATS, or mend workers.url; until then posts wait on disk")


async def test_rights_that_are_lacking_are_told_once_each_and_in_place_of_what_comes_of_it(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rights = (
        'authorization { users: [ { user: u, password: "of-no-rights", permissions: '
        '{ publish: ["$JS.API.STREAM.>"], subscribe: ["civicsky.inbox.>", "civicsky.home.>"] } } ] }\n'
    )
    with nats_server(tmp_path / "nats", rights) as nats:
        settings = worker_settings(nats, model.url, workers__user="u", workers__password="of-no-rights",
                                   workers__wait_seconds=1)  # fmt: skip
        found = await said_by_doctor(settings, tmp_path)
        assert (found.state, "civicsky.beat" in found.what) == ("problem", True)
        assert "rights of workers.user" in found.remedy
        capsys.readouterr()
        async with home(settings) as asker:
            await become(lambda: asker.dispatcher._bus.forbidden, "it to be forbidden something")
            with pytest.raises(Unsent, match=r"(?i)permissions violation"):
                await asker.ask("A post")
            for _ in range(20):
                await asker.dispatcher._bus.publish("elsewhere", b"")
            await become(lambda: "elsewhere" in asker.dispatcher._bus.forbidden, "it to be forbidden")
    said = "".join(capsys.readouterr())
    assert said.count("elsewhere") == 1
    assert "of-no-rights" not in said
