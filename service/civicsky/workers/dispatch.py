"""The home node's side: what would be sent to a model's server is put into the work queue, and the result awaited.

    async with dispatching(settings.workers, model, fingerprint, metrics, stop) as dispatcher:
        endpoints = open_endpoints(settings.label, local, abilities, spent, {NAME: dispatcher})

One task looks at the queue and the clock; claims and results come in as messages. A question's own task waits, and ends
by itself at its bound: it rests on nobody else being alive. Memory: one request for each of `label.slots`.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any, Final

import civicsky
from civicsky import log, pulse
from civicsky.endpoint import MAX_ANSWER_BYTES, Came
from civicsky.errors import BadInput, Refused, Transient, Unsent
from civicsky.lifecycle import Stop, happened
from civicsky.metrics import Metrics, WorkerSeen
from civicsky.settings import Workers as WorkersSettings
from civicsky.workers import messages
from civicsky.workers.bus import CONNECT_SECONDS, Bus, Nobody
from civicsky.workers.messages import Beat, Claim, Foreign, Garbled, Job, Result
from civicsky.workers.roster import BEAT_SECONDS, Roster
from civicsky.workers.wanted import Wanted, Withdrawn, current
from civicsky.workers.workqueue import Look, WorkQueue

NAME: Final = "workers"
"""What the home node calls the server that all workers together are."""
LOOK_SECONDS: Final = 1.0
STEP_SECONDS: Final = 5.0
"""How often a question that waits looks at the clock."""
UNAUTHORIZED: Final = 401
AT_THE_END: Final = "the work ends, so it was not sent any more"


class _Asked:
    """A question that waits for its result."""

    def __init__(self, job: Job, wanted: Wanted | None, now: float) -> None:
        self.job, self.wanted = job, wanted
        self.number: int | None = None
        """In the queue; None: it is not known to be there."""
        self.since = now
        """When it was put there, or should have been."""
        self.claims: set[tuple[str, int]] = set()
        """(worker, delivery) of each call that was let go."""
        self.claimed_at = 0.0
        self.lost_at: float | None = None
        """When the queue was found to have lost it; None: it has not."""
        self.result: asyncio.Future[Came] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(error)


class Dispatcher:
    """Sends requests by way of workers; see `endpoint.Far`. `run` must run."""

    def __init__(
        self, settings: WorkersSettings, model: str, fingerprint: str | None, metrics: Metrics, stop: Stop
    ) -> None:
        """Raises `Usage` for files of the settings that cannot be used."""
        self._settings, self._metrics, self._stop = settings, metrics, stop
        self.session = secrets.token_hex(6)
        self._model, self._key = model, messages.model_key(model, fingerprint)
        self._bus = Bus(settings, f"civicsky home {self.session}")
        self._queue = WorkQueue(self._bus, settings, self._key)
        home = f"{settings.name}.home.{self.session}"
        self._bus.on(f"{home}.claim", self._on_claim)
        self._bus.on(f"{home}.result", self._on_result)
        self._bus.on(f"{settings.name}.beat", self._on_beat)
        self._asked: dict[str, _Asked] = {}
        self._roster = Roster(self._joined, self._left)
        self._made = ""
        self._making = asyncio.Lock()
        self._n = 0
        self._claimed_at = 0.0
        """When a worker last took a question."""
        self._behind: set[asyncio.Task[None]] = set()

    # ---- one question ----

    async def exchange(self, method: str, path: str, content: bytes, seconds: float) -> Came:
        """One request, by whichever worker takes it first. See `endpoint.Far`."""
        if self._bus.refused and not self._bus.up.is_set():
            raise Refused(self._bus.refused)
        if self._stop.hurried:
            raise Unsent(AT_THE_END)
        self._n += 1
        own = self._settings
        job = Job(
            f"{self.session}-{self._n}", 0, self.session, method, path, seconds, own.ack_seconds, own.deliveries,
            content,
        )  # fmt: skip
        asked = self._asked[job.id] = _Asked(job, current(), monotonic())
        try:
            await self._dispatch(asked)
            return await self._result(asked)
        finally:
            del self._asked[job.id]
            if asked.number is not None and not _came(asked):
                self._later(self._queue.take_back(asked.number))

    async def _result(self, asked: _Asked) -> Came:
        """Wait for it; gives it back when nobody takes it, or who took it is silent for too long."""
        while not asked.result.done():
            left = self._bound(asked) - monotonic()
            if left <= 0:
                break
            if not self._bus.up.is_set() and self._bus.refused:
                raise Refused(self._bus.refused)
            await asyncio.wait({asked.result}, timeout=min(left, STEP_SECONDS))
            pulse.moved()  # here it is others who are slow
        if asked.result.done():
            return asked.result.result()
        if not asked.claims:
            why = self._roster.why_nobody_took()
            raise Unsent(self._bus.why or f"nobody took a question within {self._settings.wait_seconds:g} s: {why}")
        why = "a label worker took a question and is silent, or cut off"
        return Came(0, {}, "", calls=len(asked.claims), failure=Transient(why))

    def _bound(self, asked: _Asked) -> float:
        own = self._settings
        if not asked.claims:
            return max(asked.since, self._claimed_at) + own.wait_seconds  # while others are taken, its turn comes
        return asked.claimed_at + asked.job.seconds + 2 * own.ack_seconds + own.wait_seconds

    async def _dispatch(self, asked: _Asked) -> None:
        """Put it into the queue under its next attempt. If that cannot be done now, `run` tries again."""
        asked.number, asked.lost_at = None, None
        asked.job = asked.job._replace(attempt=asked.job.attempt + 1)
        await self._put(asked)

    async def _put(self, asked: _Asked) -> None:
        """Put it into the queue; the same attempt twice is one."""
        job, made = asked.job, self._made
        try:
            if not made:
                await self._make(made)
                made = self._made
            number = await self._queue.put(messages.encode(job), messages.message_id(job))
        except Nobody:
            self._made = "" if self._made == made else self._made  # there is no queue: `run` makes one
        except Transient:
            pass
        except Refused as error:
            asked.fail(error)
        else:
            self._metrics.workers.dispatched += 1
            if asked.job.attempt == job.attempt:
                asked.number = number

    # ---- what workers say ----

    async def _on_claim(self, data: bytes) -> bytes | None:
        """Whether a worker may send a job to its model's server now."""
        try:
            claim = messages.decode_claim(data)
        except (Foreign, Garbled):
            return None
        asked = self._asked.get(claim.id)
        if asked is None or asked.result.done() or claim.attempt != asked.job.attempt:
            return b"drop"
        if any(delivery > claim.delivery for _, delivery in asked.claims):
            return b"leave"  # it lay with that worker for too long, and another one has it
        if asked.wanted is not None and not await asked.wanted():
            asked.fail(Withdrawn("its post was deleted or changed while it waited"))
        if asked.result.done():  # perhaps just now
            return b"drop"
        self._let_go(asked, claim)
        return b"go"

    def _let_go(self, asked: _Asked, claim: Claim) -> None:
        who = (claim.worker, claim.delivery)
        if who in asked.claims:  # it asked again, since our word was lost
            return
        asked.claims.add(who)
        asked.claimed_at = self._claimed_at = monotonic()
        self._metrics.workers.claimed += 1
        self._metrics.workers.redelivered += claim.delivery > 1

    async def _on_result(self, data: bytes) -> bytes | None:
        """What a worker's call came to. The first result of a question is taken, whatever its attempt."""
        try:
            result = messages.decode_result(data)
        except (Foreign, Garbled):
            return None
        self._metrics.workers.results += 1
        asked = self._asked.get(result.id)
        if asked is None or asked.result.done():
            self._metrics.workers.late += 1
            return b"ok"
        if result.status == UNAUTHORIZED and self._roster.working(besides=result.worker):
            # That worker's key is refused, and it ends; others have theirs.
            self._later(self._dispatch(asked))
            return b"ok"
        if result.kind == "given_up" and not asked.claims:  # it was only given back: nobody called
            self._later(self._dispatch(asked))
            return b"ok"
        asked.result.set_result(_came_of(result, max(1, len(asked.claims))))
        if result.attempt != asked.job.attempt and asked.number is not None:
            self._later(self._queue.take_back(asked.number))
        return b"ok"

    async def _on_beat(self, data: bytes) -> bytes | None:
        """A worker is there; the reply is why it gets nothing, for one that asks."""
        try:
            beat = messages.decode_beat(data)
        except Garbled:
            return None
        unlike = self._unlike(beat)
        self._roster.heard(beat._replace(why=unlike or beat.why), monotonic())
        return unlike.encode()

    def _unlike(self, beat: Beat) -> str:
        return messages.unlike(beat, self._model, self._key, civicsky.__version__)

    def _joined(self, beat: Beat) -> None:
        log.event("workers_joined", stage="label", worker=beat.worker, server=beat.server, slots=beat.slots,
                  version=beat.version)  # fmt: skip
        if unlike := self._unlike(beat):
            log.event("workers_unlike", stage="label", worker=beat.worker, why=unlike)

    def _left(self, beat: Beat, how: str) -> None:
        log.event("workers_left", stage="label", worker=beat.worker, how=how, n=len(self._roster.there()))

    # ---- what may be lost ----

    async def run(self) -> None:
        """Keep the connection, the queue, and the list of workers, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._bus.run(), name="nats")
            group.create_task(self._watch(), name="workers")
            group.create_task(self._hurry(), name="hurry")

    async def _hurry(self) -> None:
        """At a hurried end, what no worker has taken yet waits on disk; what one has is waited for."""
        await self._stop.hurry.wait()
        for asked in self._asked.values():
            if not asked.claims:
                asked.fail(Unsent(AT_THE_END))

    async def _watch(self) -> None:
        while True:
            self._roster.turn(monotonic())
            look = None
            if self._bus.up.is_set():
                with suppress(Transient):
                    try:
                        look = await self._look()
                    except Refused as error:
                        for asked in self._asked.values():
                            asked.fail(error)
            self._tell(look)
            if self._bus.up.is_set():
                await asyncio.sleep(LOOK_SECONDS)
            else:
                await happened(self._bus.up, LOOK_SECONDS)

    async def _look(self) -> Look | None:
        """See that the queue is there and has what we put into it; what it lost is dispatched again."""
        if not self._made:
            await self._make("")
        look = await self._queue.look()
        if look is None:
            await self._make(self._made)
        elif look.made != self._made:
            self._made = look.made
            self._all_lost()
        elif look.jobs < sum(asked.number is not None for asked in self._asked.values()):
            await self._find_lost()
        await self._again()
        return look

    async def _make(self, seen: str) -> None:
        """Make the queue anew, unless that was done since the caller saw it."""
        async with self._making:
            if self._made == seen:
                self._made = await self._queue.make()
                self._all_lost()
                with suppress(Transient):
                    await self._bus.publish(f"{self._settings.name}.queue", self.session.encode())

    def _all_lost(self) -> None:
        now = monotonic()
        there = [asked for asked in self._asked.values() if asked.number is not None]
        for asked in there:
            asked.lost_at = now
        if there:
            log.event("workers_queue_lost", stage="label", n=len(there))

    async def _find_lost(self) -> None:
        """Some job is gone though its result has not come."""
        for asked in list(self._asked.values()):
            if asked.number is not None and asked.lost_at is None and not await self._queue.has(asked.number):
                asked.lost_at = monotonic()

    async def _again(self) -> None:
        """Dispatch anew what was lost, and what never got there.

        Who claimed it before may still bring the result: it is waited for as long as the queue itself would have.
        """
        now = monotonic()
        for asked in list(self._asked.values()):
            if asked.result.done():
                continue
            if asked.lost_at is not None:
                if not asked.claims or now - asked.claimed_at > self._settings.ack_seconds:
                    self._metrics.workers.dispatched_again += 1
                    await self._dispatch(asked)
            elif asked.number is None and now - asked.since > LOOK_SECONDS:
                await self._put(asked)

    def _tell(self, look: Look | None) -> None:
        told = self._metrics.workers
        told.used, told.why = True, self._bus.why
        told.there = tuple(
            WorkerSeen(one.worker, one.version, one.server, one.slots, one.in_flight, one.done, one.why)
            for one in self._roster.there()
        )
        told.in_flight = sum(bool(asked.claims) for asked in self._asked.values())
        told.queued = len(self._asked) - told.in_flight
        told.handed_out = look.handed_out if look else 0

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Have it done beside; the set keeps it alive."""
        task = asyncio.create_task(work)
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    async def end(self) -> None:
        """Wait for what is done beside, as long as that is quick."""
        if self._behind:
            await asyncio.wait(self._behind, timeout=2)


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


async def listened(settings: WorkersSettings, model: str, fingerprint: str | None) -> tuple[str, dict[str, str]]:
    """NATS's address, and the workers that say that they are there: why each is not for a home node with that model.

    Raises `Transient`, `Refused` or `Usage`.
    """
    roster = Roster(lambda _beat: None, lambda _beat, _how: None)
    bus = Bus(settings, "civicsky doctor")

    async def on_beat(data: bytes) -> None:
        with suppress(Garbled):
            roster.heard(messages.decode_beat(data), monotonic())

    bus.on(f"{settings.name}.beat", on_beat)
    run = asyncio.create_task(bus.run())
    try:
        await bus.wait_up(CONNECT_SECONDS)
        await asyncio.sleep(1.5 * BEAT_SECONDS)
    finally:
        run.cancel()
        await asyncio.wait([run])
    key = messages.model_key(model, fingerprint)
    return bus.host, {beat.worker: messages.unlike(beat, model, key, civicsky.__version__) for beat in roster.there()}


def _came(asked: _Asked) -> bool:
    return asked.result.done() and not asked.result.cancelled() and asked.result.exception() is None


def _came_of(result: Result, calls: int) -> Came:
    text = result.body[: MAX_ANSWER_BYTES + 1].decode(errors="replace")
    if result.kind == "reply":
        return Came(result.status, result.headers, text, result.by, calls)
    if result.kind == "unusable":
        bad = BadInput(result.why)
        bad.raw = text
        return Came(0, {}, "", result.by, calls, bad)
    why = (
        result.why if result.kind == "unreachable" else "label workers took a question again and again, and were silent"
    )
    return Came(0, {}, "", result.by, calls, Transient(log.harmless(why)))
