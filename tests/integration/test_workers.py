"""Label workers over a real nats-server: what is asked, by whom, how often, and what becomes of it in the end."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from civicsky.endpoint import open_endpoints
from civicsky.errors import Refused, Transient, Unsent
from civicsky.label import Slot
from civicsky.lifecycle import Stop
from civicsky.metrics import Metrics
from civicsky.model import Answer, Asked
from civicsky.settings import Settings
from civicsky.task import load_task
from civicsky.workers import messages
from civicsky.workers.bus import Bus
from civicsky.workers.dispatch import NAME, Dispatcher, dispatching
from civicsky.workers.wanted import Withdrawn, wanted_while
from civicsky.workers.workqueue import Delivery, WorkQueue
from support.model_says import answer_for
from support.model_server import ModelServer, Told, serve
from support.nats_server import NatsServer, nats_server, worker_here, worker_settings

TASK = load_task("civic")[0]
KEY = messages.model_key("mock", None)
QUICK: dict[str, Any] = {
    "label__pause_seconds": 0.05, "label__pause_max_seconds": 0.2, "label__request_seconds": 10,
}  # fmt: skip
EXPIRING: dict[str, Any] = {"workers__ack_seconds": 1}
"""For who waits until an ack wait is over. Elsewhere none ends: a machine that stands still is no fault."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with nats_server(tmp_path_factory.mktemp("nats")) as nats:
        yield nats


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    """One of the test's own, to be killed."""
    with nats_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def model(tmp_path: Path) -> AsyncIterator["Model"]:
    made = Model(tmp_path / "requests")
    server, made.url = await serve(made.server)
    yield made
    server.close()


class Model:
    """A server, and what came to it."""

    def __init__(self, file: Path) -> None:
        self.file, self.url = file, ""
        self.server = ModelServer(Told(), [], None, file)

    @property
    def calls(self) -> int:
        return self.server.count["requests"]

    def tell(self, **told: Any) -> None:
        self.server.control(told)


class Home:
    """A dispatcher, and slots that ask by it."""

    def __init__(self, settings: Settings, dispatcher: Dispatcher, metrics: Metrics, stop: Stop) -> None:
        self.dispatcher, self.counts, self.stop = dispatcher, metrics.workers, stop
        self.endpoints = open_endpoints(settings.label, fars={NAME: dispatcher})
        self._settings = settings

    def slot(self) -> Slot:
        return Slot(self.endpoints, {"civic": TASK}, self._settings.label)

    async def ask(self, text: str) -> Answer:
        (answer,) = await self.slot().ask("civic", [Asked(text)])
        assert isinstance(answer, Answer), answer
        return answer


@asynccontextmanager
async def home(settings: Settings) -> AsyncIterator[Home]:
    metrics, stop = Metrics(), Stop()
    async with dispatching(settings.workers, settings.label.model, None, metrics, stop) as dispatcher:
        yield Home(settings, dispatcher, metrics, stop)


async def become(condition: Callable[[], Any], what: str) -> None:
    """Wait for a condition; fails after a generous time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110  (others make it true, and need not know of us)
                await asyncio.sleep(0.01)
    assert condition(), f"waited in vain for {what}"


async def connected(asker: Home) -> None:
    """Until the home node hears what is said to it."""
    await become(asker.dispatcher._bus.up.is_set, "it to be connected")


async def working(asker: Home, n: int) -> None:
    """Until the home node knows of so many workers that they take questions: one may be there, and not know of it."""
    await become(lambda: len(asker.dispatcher._roster.working(KEY)) == n, f"{n} to take questions")


async def ask_until_taken(asker: Home, text: str) -> None:
    """A worker has to come first."""
    async with asyncio.timeout(30):
        while True:
            with suppress(Unsent):
                await asker.ask(text)
                return


def value(answer: Answer) -> str:
    return answer.fields["civic"].value


def own(nats: NatsServer, model: Model, name: str, **given: Any) -> Settings:
    return worker_settings(nats, model.url, **{**QUICK, "workers__name": name, **given})


async def let_go(bus: Bus, settings: Settings, job: messages.Job, delivery: Delivery, worker: str) -> messages.Claim:
    """Claim a job for a worker that there is not; it may make the call."""
    claim = messages.Claim(job.id, job.attempt, delivery.number, worker)
    subject = f"{settings.workers.name}.home.{job.home}.claim"
    assert await bus.request(subject, messages.encode(claim), 5) == b"go"
    return claim


# ---- what is asked, and how often ------------------------------------------------------------------------------------


async def test_an_answer_by_way_of_a_worker_is_the_servers_own(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "own")
    async with worker_here(settings), home(settings) as asker:
        answer = await asker.ask("A post about the election")
    assert value(answer) == answer_for("A post about the election")["civic"]
    assert answer.endpoint == model.url.removesuffix("/v1"), "who answered, not who was asked to ask"
    assert (answer.model_asked, answer.model_named, answer.calls) == ("mock", "mock-0001", 1)


async def test_without_faults_each_post_is_exactly_one_call_whoever_makes_it(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "exact", label__slots=3)
    async with worker_here(settings) as (one, _, _), worker_here(settings) as (two, _, _), home(settings) as asker:
        model.tell(delay=0.02)
        texts = [f"Post {n} about the election" for n in range(120)]
        slots = [asker.slot() for _ in range(12)]

        async def ask(slot: Slot, own_texts: list[str]) -> list[str]:
            return [value((await slot.ask("civic", [Asked(text)]))[0]) for text in own_texts]  # type: ignore[arg-type]

        said = await asyncio.gather(*(ask(slot, texts[at::12]) for at, slot in enumerate(slots)))
        for at, answers in enumerate(said):
            assert answers == [answer_for(text)["civic"] for text in texts[at::12]]
        assert model.calls == 120
        assert one.done > 10
        assert two.done > 10
        counts = asker.counts
        assert (counts.claimed, counts.results, counts.redelivered, counts.late) == (120, 120, 0, 0)
        assert model.server.most_in_flight <= 6, "two workers with three slots each"


async def test_all_workers_together_hold_no_more_than_they_may(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "inhand", label__slots=4, workers__in_hand=3)
    async with worker_here(settings), worker_here(settings), home(settings) as asker:
        await asker.ask("the first finds out how")
        model.tell(delay=0.05)
        await asyncio.gather(*(asker.ask(f"Post {n}") for n in range(30)))
    assert model.server.most_in_flight == 3


async def test_a_worker_with_another_model_takes_nothing(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "other", workers__wait_seconds=2)
    async with worker_here(own(shared, model, "other", label__model="else")), home(settings) as asker:
        await become(lambda: asker.counts.there, "the worker to be there")
        with pytest.raises(Unsent, match=r"with another model or other weights \(else, here mock\)"):
            await asker.ask("A post")
    assert model.calls == 0


async def test_a_worker_that_was_idle_says_so_and_that_it_works_once_somebody_asks_for_its_model(
    shared: NatsServer, model: Model
) -> None:
    settings = own(shared, model, "idle")
    with capture_logs() as lines:

        def told() -> list[str]:
            return [line["event"] for line in lines if line["event"] in {"workers_idle", "workers_working"}]

        async with worker_here(settings):
            await become(lambda: told()[-1:] == ["workers_idle"], "it to be idle")
            async with home(settings) as asker:
                await asker.ask("A post about the election")
                await become(lambda: told()[-2:] == ["workers_idle", "workers_working"], "it to say so")


async def test_a_question_that_nobody_takes_goes_back_as_if_it_had_never_been_asked(
    shared: NatsServer, model: Model
) -> None:
    settings = own(shared, model, "nobody", workers__wait_seconds=0.3)
    async with home(settings) as asker:
        await connected(asker)
        with pytest.raises(Unsent, match="no label worker is there") as caught:
            await asker.ask("A post")
        assert caught.value.spend.calls == 0
        assert asker.endpoints.delay() == 0, "the next question need not wait for a server that was never asked"
        async with worker_here(settings):
            await ask_until_taken(asker, "Another post")
    assert model.calls == 1, "what was given back was taken out of the queue"


async def test_what_waited_for_a_worker_is_sent_at_the_pace_of_the_limits(shared: NatsServer, model: Model) -> None:
    """Limits are of when requests are sent, not of when they were put into the queue."""
    settings = own(shared, model, "pace", label__requests_per_minute=600, label__slots=32, workers__wait_seconds=30)
    async with home(settings) as asker:
        async with worker_here(settings):
            await asker.ask("The first one finds out what the server can")
        # Catching up takes two seconds' worth in any one. Half a second more for what was let go and is on its way.
        model.tell(limits=[(25, 1, "requests")])
        asked = [asyncio.create_task(asker.ask(f"Post {n} about the election")) for n in range(30)]
        await become(lambda: asker.counts.dispatched >= 1 + len(asked), "all to wait in the queue")
        async with worker_here(settings):
            said = await asyncio.gather(*asked, return_exceptions=True)
    assert (model.calls, model.server.count["excess"]) == (1 + len(asked), 0)
    assert all(isinstance(answer, Answer) for answer in said)


async def test_what_no_worker_took_uses_up_no_limit(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "unused", label__requests_per_day=2, workers__wait_seconds=0.3)
    async with home(settings) as asker:
        tries = [asker.ask("A post") for _ in range(4)]
        assert [type(found) for found in await asyncio.gather(*tries, return_exceptions=True)] == [Unsent] * 4
        async with worker_here(settings):
            for text in ("A post", "Another post"):
                await ask_until_taken(asker, text)
            with pytest.raises(Transient, match="may only be asked in"):
                await asker.ask("One too many")
    assert model.server.count["questions"] == 2


# ---- what is not wanted any more -------------------------------------------------------------------------------------


async def test_a_post_that_is_not_wanted_any_more_when_its_turn_comes_is_sent_to_no_model(
    shared: NatsServer, model: Model
) -> None:
    settings = own(shared, model, "gone")
    is_wanted = True

    async def wanted() -> bool:
        return is_wanted

    async with home(settings) as asker:

        async def ask() -> None:
            with wanted_while(wanted):
                await asker.ask("A post that its author takes back")

        asked = asyncio.create_task(ask())
        await become(lambda: asker.counts.dispatched, "it to be in the queue")
        is_wanted = False
        async with worker_here(settings):
            with pytest.raises(Withdrawn):
                await asked
            await asker.ask("Another post")
    assert [json.loads(line)["posts"] for line in model.file.read_text().splitlines()].__len__() == 1


async def test_a_question_that_is_cancelled_is_taken_out_of_the_queue(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "cancel")
    async with home(settings) as asker:
        asked = asyncio.create_task(asker.ask("A post"))
        await become(lambda: asker.counts.dispatched, "it to be in the queue")
        asked.cancel()
        await asyncio.wait([asked])
        async with worker_here(settings):
            await asker.ask("Another post")
    assert model.calls == 1


# ---- what is lost ----------------------------------------------------------------------------------------------------


async def test_a_job_of_a_worker_that_fell_silent_goes_to_another_after_the_ack_wait(
    shared: NatsServer, model: Model
) -> None:
    settings = own(shared, model, "silent", **EXPIRING)
    async with home(settings) as asker, taking(settings) as take:
        asked = asyncio.create_task(asker.ask("A post"))
        job, delivery = await take()
        assert (job.attempt, delivery.number) == (1, 1)  # and not another word
        async with worker_here(settings):
            assert value(await asked) == answer_for("A post")["civic"]
        assert (asker.counts.claimed, asker.counts.redelivered) == (1, 1)
    assert model.calls == 1


async def test_a_long_call_is_not_given_to_another_while_its_worker_speaks_up(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "long", workers__ack_seconds=3)
    model.tell(delay=4.0)
    async with home(settings) as asker, worker_here(settings), worker_here(settings):
        await asker.ask("A post that takes longer than an ack wait")
    assert model.calls == 1


async def test_what_a_wiped_nats_lost_is_dispatched_again_and_called_once(nats: NatsServer, model: Model) -> None:
    settings = own(nats, model, "wiped")
    async with home(settings) as asker:
        asked = [asyncio.create_task(asker.ask(f"Post {n}")) for n in range(10)]
        await become(lambda: asker.counts.dispatched, "some to be in the queue")
        nats.wipe()
        await become(lambda: asker.counts.why, "the loss to be noticed")
        nats.start()
        async with worker_here(settings):
            done = await asyncio.gather(*asked, return_exceptions=True)
    assert not [one for one in done if isinstance(one, BaseException)], "none goes back to those that wait on disk"
    assert model.calls == 10


async def test_the_result_of_a_call_outlives_a_wiped_nats(nats: NatsServer, model: Model) -> None:
    """The worker keeps it until the home node has it, and nobody else makes the call meanwhile."""
    settings = own(nats, model, "outlives")
    model.tell(held=True)
    async with home(settings) as asker, worker_here(settings) as (worker, _, _):
        asked = asyncio.create_task(asker.ask("A post"))
        await become(lambda: asker.counts.claimed, "the call to begin")
        nats.wipe()
        await become(lambda: asker.counts.why, "the loss to be noticed")
        model.tell(held=False)
        await become(lambda: worker.done, "the call to end while NATS is away")
        nats.start()
        await asked
    assert model.calls == 1


async def test_a_job_that_somebody_purged_is_dispatched_again_under_another_attempt(
    shared: NatsServer, model: Model
) -> None:
    settings = own(shared, model, "purged")
    async with home(settings) as asker:
        asked = asyncio.create_task(asker.ask("A post"))
        await become(lambda: asker.counts.dispatched, "it to be in the queue")
        async with speaking(settings) as bus:
            await WorkQueue(bus, settings.workers, KEY).take_back(1)
        await become(lambda: asker.counts.dispatched == 2, "it to be in the queue again")
        async with taking(settings) as take:
            job, delivery = await take()
            assert job.attempt == 2
            await delivery.nak()
        async with worker_here(settings):
            await asked
    assert model.calls == 1


async def test_a_job_that_ends_its_workers_again_and_again_counts_as_a_call_that_broke(
    shared: NatsServer, model: Model
) -> None:
    settings = own(shared, model, "poison", **EXPIRING, workers__deliveries=2)
    async with home(settings) as asker, taking(settings) as take:
        asked = asyncio.create_task(asker.ask("A post"))
        for number in (1, 2):
            job, delivery = await take()
            assert delivery.number == number
            async with speaking(settings) as bus:
                await let_go(bus, settings, job, delivery, "one that dies")
        async with worker_here(settings):
            with pytest.raises(Transient, match="again and again") as caught:
                await asked
        assert caught.value.spend.calls == 2, "each of them may have made the call"
    assert model.calls == 0


async def test_a_late_result_is_thanked_for_and_dropped(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "late")
    async with home(settings) as asker, speaking(settings) as bus, worker_here(settings):
        answer = await asker.ask("A post")
        forged = messages.Result(f"{asker.dispatcher.session}-1", 1, "w", "reply", "x", 200, {}, "", b"{}")
        subject = f"{settings.workers.name}.home.{asker.dispatcher.session}.result"
        assert await bus.request(subject, messages.encode(forged), 5) == b"ok"
        assert asker.counts.late == 1
        assert value(answer) == answer_for("A post")["civic"]


async def test_an_end_in_a_hurry_waits_for_calls_and_not_for_workers(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "hurry", label__slots=1)
    model.tell(held=True)
    async with home(settings) as asker, worker_here(settings):
        called = asyncio.create_task(asker.ask("One"))
        await become(lambda: asker.counts.claimed, "the call to begin")
        waits = asyncio.create_task(Slot(asker.endpoints, {"civic": TASK}, settings.label).is_well())
        await become(lambda: asker.counts.dispatched == 2, "another to wait")
        asker.stop.request("the test says so")
        assert (await waits)[0] is False
        model.tell(held=False)
        await called
    assert model.calls == 1


# ---- versions and strangers ------------------------------------------------------------------------------------------


async def test_a_job_of_a_newer_version_is_left_to_others(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "newer")
    async with home(settings) as asker, worker_here(settings), speaking(settings) as bus:
        await asker.ask("A post")
        queue = WorkQueue(bus, settings.workers, KEY, asker.dispatcher.session)
        newer = json.dumps({"v": 2, "is": "job", "id": "n", "whatever": "it has"}).encode() + b"\n"
        await queue.put(newer, "newer.1")
        puller = queue.puller()
        found = None
        with suppress(TimeoutError):
            async with asyncio.timeout(60):
                while (found := await puller.next(3)) is None or found.data != newer:
                    pass
        assert found is not None, "it was not left to others"
        assert found.data == newer
        await found.ack()
        await asker.ask("Another post: the worker is well")
    assert model.calls == 2


async def test_a_worker_without_jobs_says_why_as_the_home_node_tells_it(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "why", workers__wait_seconds=2)
    async with worker_here(own(shared, model, "why", label__model="else")) as (worker, _, _):
        await become(lambda: "no home node is there" in worker._says().why, "it to be alone")
        async with home(settings) as asker:
            await become(lambda: "asks for 'mock'" in worker._says().why, "it to be told")
            await become(lambda: any("asks for 'mock'" in one.why for one in asker.counts.there), "us to be told")
        async with home(own(shared, model, "why", label__model="else")) as asker:
            await become(lambda: not worker._says().why, "it to have a queue")
            await become(lambda: any(not one.why for one in asker.counts.there), "us to be told")


async def test_a_worker_of_a_newer_version_is_there_and_told_who_is_too_old(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "newbeat", workers__wait_seconds=1)
    line = json.loads(messages.encode(messages.Beat("w", "9.0.0", "http://a", 4, 0, 0)))
    newer = json.dumps({**line, "v": messages.VERSION + 1, "whatever": "it has"}).encode()
    async with home(settings) as asker, speaking(settings) as bus:
        await connected(asker)
        said = (await bus.request("newbeat.beat", newer, 5)).decode()
        assert said.endswith("upgrade the home node")
        await become(lambda: asker.counts.there, "it to be there")
        with pytest.raises(Unsent, match=r"none takes questions: .* upgrade the home node"):
            await asker.ask("A post")
        assert [(one.version, one.why) for one in asker.counts.there] == [("9.0.0", said)]


async def test_garbage_in_the_queue_ends_nobody_and_is_gone(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "garbage")
    async with home(settings) as asker, worker_here(settings) as (_, _, task), speaking(settings) as bus:
        await asker.ask("A post")
        queue = WorkQueue(bus, settings.workers, KEY, asker.dispatcher.session)
        for n, data in enumerate((b"", b"\xff\n", b"[]", b'{"v": 1}', b'{"v": 1, "is": "job"}\n' + b"x" * 10_000)):
            await queue.put(data, f"garbage.{n}")
        for end in ("claim", "result"):
            with pytest.raises(Transient):
                await bus.request(f"garbage.home.{asker.dispatcher.session}.{end}", b"garbage", 0.2)
        await bus.publish("garbage.beat", b"\x00")
        await asker.ask("Another post")
        assert not task.done()
        async with asyncio.timeout(30):  # until the last ack has come to NATS, too
            while (await queue.look()).jobs:  # type: ignore[union-attr]
                pass


async def test_a_stream_of_somebody_elses_is_left_alone(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "theirs")
    async with speaking(settings) as bus:
        js = bus.connected().jetstream()
        await js.add_stream(name="theirs", subjects=["their.business"])
        await js.publish("their.business", b"data")
        async with home(settings) as asker:
            with pytest.raises(Refused, match=r"none of ours; set workers\.name"):
                await asker.ask("A post")
        assert (await js.stream_info("theirs")).state.messages == 1


# ---- a worker's own troubles -----------------------------------------------------------------------------------------


async def test_a_worker_whose_key_is_refused_ends_and_the_others_go_on(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "keys", label__api_key="good")
    bad = own(shared, model, "keys", label__api_key="bad")
    async with worker_here(bad) as (refused, _, ended), home(settings) as asker:
        await become(lambda: asker.counts.there, "one to be there")
        async with worker_here(settings):
            await working(asker, 2)
            model.tell(key="good")
            answers = await asyncio.gather(*(asker.ask(f"Post {n}") for n in range(20)))
            assert len(answers) == 20
            await asyncio.wait([ended], timeout=30)
            assert "refuses the key" in refused.servers.refused


async def test_a_refused_key_of_the_only_worker_is_told_as_if_it_were_ours(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "onekey")
    async with worker_here(settings), home(settings) as asker:
        await become(lambda: asker.counts.there, "it to be there")
        model.tell(key="another")
        with pytest.raises(Refused, match="refuses the key"):
            await asker.ask("A post")


async def test_a_worker_whose_model_is_away_takes_nothing_meanwhile(shared: NatsServer, model: Model) -> None:
    away = own(shared, model, "away", label__model_url="http://127.0.0.1:9/v1")
    settings = own(shared, model, "away")
    async with worker_here(away) as (resting, _, _), worker_here(settings), home(settings) as asker:
        await asyncio.gather(*(asker.ask(f"Post {n}") for n in range(20)))
        assert resting.done == 0
        await become(lambda: sorted(bool(one.why) for one in asker.counts.there) == [False, True], "both to be there")
    assert model.calls == 20


async def test_a_worker_that_is_told_to_end_finishes_its_call_and_takes_no_other(
    shared: NatsServer, model: Model
) -> None:
    settings = own(shared, model, "drain", label__slots=1)
    model.tell(held=True)
    async with home(settings) as asker:
        async with worker_here(settings) as (worker, stop, task):
            first = asyncio.create_task(asker.ask("One"))
            await become(lambda: asker.counts.claimed, "the call to begin")
            second = asyncio.create_task(asker.slot().ask("civic", [Asked("Two")]))
            stop.request("SIGTERM")
            model.tell(held=False)
            await first
            await task
            assert worker.done == 1
        async with worker_here(settings):
            await second
        assert asker.counts.redelivered == 0
    assert model.calls == 2


async def test_the_models_key_comes_home_in_no_answer(shared: NatsServer, model: Model) -> None:
    settings = own(shared, model, "echo", label__api_key="sk-hunter2-hunter2")
    model.tell(say="your key is sk-hunter2-hunter2", key="sk-hunter2-hunter2", server="key: sk-hunter2-hunter2")
    asker_settings = own(shared, model, "echo")
    async with worker_here(settings), home(asker_settings) as asker:
        came = await asker.dispatcher.exchange("GET", "/models", b"", 5)
        assert came.status == 200
        assert came.headers["server"] == "key: ***"
        (answer,) = await asker.slot().ask("civic", [Asked("A post")])
        assert "hunter2" not in repr(answer)
        assert "hunter2" not in repr(getattr(answer, "raw", ""))


@asynccontextmanager
async def speaking(settings: Settings) -> AsyncIterator[Bus]:
    """A line to NATS."""
    bus = Bus(settings.workers, "a test")
    run = asyncio.create_task(bus.run())
    await bus.wait_up(10)
    try:
        yield bus
    finally:
        run.cancel()
        await asyncio.wait([run])


@asynccontextmanager
async def taking(settings: Settings) -> AsyncIterator[Callable[[], Any]]:
    """Somebody who takes jobs, and says nothing of them.

    Its pulls are longer than the ack wait: nats-server 2.9.10 miscounts the deliveries of a job whose ack wait ends
    just when a pull does.
    """
    async with speaking(settings) as bus:
        queue = WorkQueue(bus, settings.workers, KEY)
        puller = queue.puller()

        async def take() -> tuple[messages.Job, Delivery]:
            async with asyncio.timeout(30):
                while True:
                    with suppress(Transient):
                        if await queue.look() is not None and (delivery := await puller.next(5)):
                            return messages.decode_job(delivery.data), delivery
                    await asyncio.sleep(0.05)

        yield take
