"""The home node's side: what would be sent to a model's server is put into the work queue, and the result awaited.

    async with dispatching(settings.workers, model, fingerprint, metrics, stop) as dispatcher:
        endpoints = open_endpoints(settings.label, local, abilities, spent, {NAME: dispatcher})

One task looks at the queue and the clock; claims and results come in as messages. A question's own task waits, and ends
by itself at its bound: it rests on nobody else being alive. Memory: one request for each of `label.slots`.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any, Final

import civicsky
from civicsky import log, pulse
from civicsky.endpoint import ALWAYS, Came, May
from civicsky.errors import Refused, Transient, Unsent
from civicsky.lifecycle import Stop, happened
from civicsky.metrics import Metrics, WorkerSeen
from civicsky.settings import Workers as WorkersSettings
from civicsky.workers import messages
from civicsky.workers.asked import Question, is_workers_own
from civicsky.workers.bus import Bus, Nobody
from civicsky.workers.messages import Beat, Claim, Foreign, Garbled, Job, Result
from civicsky.workers.others import Others
from civicsky.workers.roster import Roster
from civicsky.workers.wanted import Withdrawn, current
from civicsky.workers.workqueue import Look, WorkQueue

NAME: Final = "workers"
"""What the home node calls the server that all workers together are."""
LOOK_SECONDS: Final = 1.0
STEP_SECONDS: Final = 5.0
"""How often a question that waits looks at the clock."""
END_SECONDS: Final = 2.0
AT_THE_END: Final = "the work ends, so it was not sent any more"


class Dispatcher:
    """Sends requests by way of workers; see `endpoint.Far`. `run` must run."""

    def __init__(
        self, settings: WorkersSettings, model: str, fingerprint: str | None, metrics: Metrics, stop: Stop
    ) -> None:
        """Raises `Usage` for files of the settings that cannot be used."""
        self._settings, self._metrics, self._stop = settings, metrics, stop
        self.session = secrets.token_hex(6)
        self._bus = Bus(settings, f"civicsky home {self.session}")
        self._model, self._key = model, messages.model_key(model, fingerprint)
        self._queue = WorkQueue(self._bus, settings, self._key, self.session)
        self._others = Others(self._bus, self._queue, settings.name)
        home = f"{settings.name}.home.{self.session}"
        self._bus.on(f"{home}.claim", self._on_claim)
        self._bus.on(f"{home}.result", self._on_result)
        self._bus.on(f"{home}.alive", self._others.alive)
        self._bus.on(f"{settings.name}.beat", self._on_beat)
        self._asked: dict[str, Question] = {}
        self._roster = Roster(self._joined, self._left)
        self._made = ""
        """When the queue was made that we know; empty: there is none that we know of."""
        self._trouble = ""
        """Why the queue cannot be used; empty while it can."""
        self._delivered = 0
        self._moved_at = 0.0
        """When a worker last took a question, whoever's."""
        self._behind: set[asyncio.Task[None]] = set()
        self._defect: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    # ---- one question ----

    async def exchange(self, method: str, path: str, content: bytes, seconds: float, may: May = ALWAYS) -> Came:
        """One request, by whichever worker takes it first. See `endpoint.Far`."""
        if self._bus.refused and not self._bus.up.is_set():
            raise Refused(self._bus.refused)
        if self._stop.hurried:
            raise Unsent(AT_THE_END)
        own = self._settings
        job = Job(  # its id nobody can guess who was not given the job
            secrets.token_hex(8), 0, self.session, method, path, seconds, own.ack_seconds, own.deliveries, content
        )
        asked = self._asked[job.id] = Question(job, current(), may, monotonic())
        try:
            await self._dispatch(asked)
            return await self._result(asked)
        finally:
            del self._asked[job.id]
            if asked.number is not None and not asked.has_come():
                self._later(self._queue.take_back(asked.number))

    async def _result(self, asked: Question) -> Came:
        """Wait for it; gives it back when nobody takes it, or who took it is silent for too long."""
        while not asked.result.done():
            bound = asked.bound(self._queue.ack_seconds, self._settings.wait_seconds, self._delivered, self._moved_at)
            left = bound - monotonic()
            if left <= 0:
                break
            if not self._bus.up.is_set() and self._bus.refused:
                asked.refuse(Refused(self._bus.refused))
            await asyncio.wait({asked.result}, timeout=min(left, STEP_SECONDS))
            pulse.moved()  # here it is others who are slow
        asked.give_back(self._bus.why or self._trouble or self._untaken(asked))
        return asked.result.result()

    def _untaken(self, asked: Question) -> str:
        there = f"{len(self._roster.working(self._key))} label workers are there, all at work"
        why = self._bus.forbidden or self._roster.shortage(self._key, self._model) or there
        return f"nobody took a question within {self._settings.wait_seconds:g} s: {asked.why or why}"

    async def _dispatch(self, asked: Question) -> None:
        """Put it into the queue under its next attempt. If that cannot be done now, `run` tries again."""
        if self._stop.hurried:
            asked.give_back(AT_THE_END)
        else:
            asked.again(monotonic(), self._queue.ack_seconds, self._queue.deliveries)
            await self._put(asked)

    async def _put(self, asked: Question) -> None:
        """Put it into the queue, if there is one; the same attempt twice is one."""
        job, made = asked.job, self._made
        if not made or asked.putting or asked.result.done():
            return
        asked.putting = True
        try:
            number = await self._queue.put(messages.encode(job), messages.message_id(job))
        except Nobody:
            self._made = "" if self._made == made else self._made  # there is no queue: `run` makes one
        except Transient as error:
            asked.why = str(error)
        except Refused as error:
            asked.fail(error)
        else:
            self._metrics.workers.dispatched += 1
            asked.why = ""
            if asked.job.attempt == job.attempt:
                asked.number = number
        finally:
            asked.putting = False

    # ---- what workers say ----

    async def _on_claim(self, data: bytes) -> bytes | None:
        """Whether a worker may send a job to its model's server now."""
        try:
            claim = messages.decode_claim(data)
        except (Foreign, Garbled):
            return None
        asked = self._asked.get(claim.id)
        if claim.void:
            if asked is not None:
                asked.call_back(claim)
            return None
        if asked is None or not self._may_claim(asked, claim):
            return b"drop"
        if asked.is_with_another(claim):
            return b"leave"
        if claim.worker in asked.broke_at and self._roster.working(self._key, besides=claim.worker):
            return b"rest"
        if asked.wanted is not None and not await asked.wanted():
            asked.fail(Withdrawn("its post was deleted or changed while it waited"))
        if not self._may_claim(asked, claim) or not asked.is_in_turn():  # perhaps just now
            return b"drop"
        now = monotonic()
        if asked.let_go(claim, now):
            self._moved_at = now
            self._metrics.workers.claimed += 1
            self._metrics.workers.redelivered += claim.delivery > 1
        return b"go"

    def _may_claim(self, asked: Question, claim: Claim) -> bool:
        """Whether it still waits for this attempt; one that the queue has lost is about to get another."""
        waits = self._asked.get(claim.id) is asked and not asked.result.done()
        return waits and claim.attempt == asked.job.attempt and asked.lost_at is None

    async def _on_result(self, data: bytes) -> bytes | None:
        """What a worker's call came to. The first result of a question is taken, whatever its attempt."""
        try:
            result = messages.decode_result(data)
        except (Foreign, Garbled):
            return None
        self._metrics.workers.results += 1
        asked = self._asked.get(result.id)
        if asked is None or asked.result.done() or not asked.is_due(result):
            self._metrics.workers.late += 1
        elif result.kind == "given_up":
            self._given_up(asked, result)
        elif is_workers_own(result):
            return self._broken(asked, result)
        else:
            self._end(asked, result)
        return b"ok"

    def _given_up(self, asked: Question, result: Result) -> None:
        """It was delivered as often as it may be."""
        if result.attempt != asked.job.attempt:
            return
        if asked.calls:
            self._end(asked, result)
        elif asked.job.attempt < asked.job.deliveries:  # it was only given back: nobody called
            self._later(self._dispatch(asked))
        else:
            asked.give_back("label workers gave a question back again and again")

    def _broken(self, asked: Question, result: Result) -> bytes:
        """That worker's server is away, busy, or refuses its key: if there are others they go on, and it shall rest."""
        others = bool(self._roster.working(self._key, besides=result.worker))
        if others:
            self._roster.rests(result.worker, result.why or f"HTTP {result.status}")
        if not asked.is_elsewhere(result):
            if others and asked.is_for_another(result):
                asked.broke_at.add(result.worker)
                self._later(self._dispatch(asked))
            else:
                self._end(asked, result)
        return b"rest" if others else b"ok"

    def _end(self, asked: Question, result: Result) -> None:
        asked.end(result)
        if result.attempt != asked.job.attempt and asked.number is not None:
            self._later(self._queue.take_back(asked.number))

    async def _on_beat(self, data: bytes) -> bytes | None:
        """A worker is there; the reply is why it gets nothing, for one that asks."""
        try:
            beat = messages.decode_beat(data)
        except Garbled:
            return None
        unlike = messages.unlike(beat, self._model, self._key, civicsky.__version__)
        if beat.speaks != messages.VERSION and self._roster.heard_foreign(monotonic()):
            log.event("workers_foreign", stage="label", why=unlike)
        self._roster.heard(beat._replace(why=unlike or beat.why), monotonic())
        return unlike.encode()

    def _joined(self, beat: Beat) -> None:
        log.event("workers_joined", stage="label", worker=beat.worker, server=beat.server, slots=beat.slots,
                  version=beat.version)  # fmt: skip
        if beat.key not in {self._key, ""} and beat.speaks == messages.VERSION:
            log.event("workers_unlike", stage="label", worker=beat.worker, why=beat.why)

    def _left(self, beat: Beat, how: str) -> None:
        log.event("workers_left", stage="label", worker=beat.worker, how=how, n=len(self._roster.there()))

    # ---- what may be lost ----

    async def run(self) -> None:
        """Keep the connection, the queue, and the list of workers, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._bus.run(), name="nats")
            group.create_task(self._watch(), name="workers")
            group.create_task(self._others.run(), name="homes")
            group.create_task(self._hurry(), name="hurry")
            group.create_task(self._fail(), name="defects")

    async def _fail(self) -> None:
        raise await self._defect

    async def _hurry(self) -> None:
        """At a hurried end, what no worker has taken yet waits on disk; what one has is waited for."""
        await self._stop.hurry.wait()
        for asked in self._asked.values():
            if not asked.claims:
                asked.give_back(AT_THE_END)

    async def _watch(self) -> None:
        while True:
            self._roster.turn(monotonic())
            look = None
            if self._bus.up.is_set():
                try:
                    look = await self._look()
                    self._trouble = ""
                except Transient as error:
                    self._trouble = str(error)
                except Refused as error:
                    self._trouble = str(error)
                    for asked in self._asked.values():
                        asked.refuse(error)
            self._tell(look)
            if self._bus.up.is_set():
                await asyncio.sleep(LOOK_SECONDS)
            else:
                await happened(self._bus.up, LOOK_SECONDS)

    async def _look(self) -> Look | None:
        """See that the queue is there and has what we put into it; what it lost is dispatched again."""
        if not self._made:
            await self._make()
        before = [(asked, asked.number) for asked in self._asked.values() if asked.number is not None]
        look = await self._queue.look()
        self._others.there = look.others if look else ()
        if look is None:
            await self._make()
        elif look.made != self._made:  # another home node made it
            self._made = look.made
            self._all_lost()
        else:
            self._notice(look)
            there = [asked for asked, number in before if asked.number == number and asked.job.id in self._asked]
            if look.jobs < len(there):
                await self._find_lost(there)
        await self._again()
        return look

    async def _make(self) -> None:
        """See that there is a queue; whatever was in the one before is lost."""
        made, is_new = await self._queue.make()
        if made != self._made:
            self._made, self._delivered = made, 0
            self._all_lost()
        if is_new:
            with suppress(Transient):
                await self._bus.publish(f"{self._settings.name}.queue", b"")

    def _notice(self, look: Look) -> None:
        """How far workers have come: who has not been given to one yet waits in line."""
        now = monotonic()
        if look.delivered != self._delivered:
            self._moved_at = now
        for asked in self._asked.values():
            if asked.number is not None and self._delivered < asked.number <= look.delivered:
                asked.since = now
        self._delivered = look.delivered

    def _all_lost(self) -> None:
        now = monotonic()
        there = [asked for asked in self._asked.values() if asked.number is not None]
        for asked in there:
            asked.lost_at = now
        if there:
            log.event("workers_queue_lost", stage="label", n=len(there))

    async def _find_lost(self, asked: Sequence[Question]) -> None:
        """Some of these jobs are gone though their result has not come."""
        for one in asked:
            number = one.number
            if number is None or one.lost_at is not None or one.result.done() or await self._queue.has(number):
                continue
            if one.number == number and not one.result.done():
                one.lost_at = monotonic()

    async def _again(self) -> None:
        """Dispatch anew what was lost, and what never got there.

        Who claimed it before may still bring the result: it is waited for as long as the queue itself would have.
        """
        now = monotonic()
        for asked in list(self._asked.values()):
            if asked.result.done():
                continue
            if asked.lost_at is not None:
                if not asked.claims or now - asked.claimed_at > self._queue.ack_seconds:
                    self._metrics.workers.dispatched_again += 1
                    await self._dispatch(asked)
            elif asked.number is None:
                await self._put(asked)

    def _tell(self, look: Look | None) -> None:
        told = self._metrics.workers
        told.used, told.why = True, self._bus.why or self._trouble
        told.there = tuple(
            WorkerSeen(one.worker, one.version, one.server, one.slots, one.in_flight, one.done, one.why)
            for one in self._roster.there()
        )
        told.in_flight = sum(bool(asked.claims) for asked in self._asked.values())
        told.queued = len(self._asked) - told.in_flight
        told.handed_out = look.handed_out if look else 0

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Have it done beside; the set keeps it alive, and a defect ends `run`."""
        task = asyncio.create_task(work)
        self._behind.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._behind.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self._defect.done():
            self._defect.set_result(error)

    async def end(self) -> None:
        """Wait for what is done beside, and leave no text of a post behind, as long as that is quick."""
        self._later(self._queue.leave(self.session))  # our own task may be cancelled already
        await asyncio.wait(self._behind, timeout=END_SECONDS)


@asynccontextmanager
async def dispatching(
    settings: WorkersSettings, model: str, fingerprint: str | None, metrics: Metrics, stop: Stop
) -> AsyncIterator[Dispatcher]:
    """A dispatcher that runs. Raises `Usage`, and when NATS cannot be used any more ends what is within."""
    dispatcher = Dispatcher(settings, model, fingerprint, metrics, stop)
    async with asyncio.TaskGroup() as group:
        run = group.create_task(dispatcher.run(), name="workers")
        try:
            yield dispatcher
        finally:
            await dispatcher.end()
            run.cancel()
