"""A label worker: takes jobs, asks its own model's server, gives back what came. It keeps nothing.

Each of its slots does one job after the other: pull, claim, call, result, ack. See `civicsky.workers` for what is said.
"""

import asyncio
import os
import secrets
import socket
from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic
from typing import Final

import civicsky
from civicsky import log
from civicsky.endpoint import Endpoints, Line
from civicsky.errors import Failed, Refused, Transient, Usage, first_of
from civicsky.lifecycle import Stop, happened, signals
from civicsky.local import find_weights
from civicsky.model import Spend
from civicsky.settings import Settings
from civicsky.slots import model_endpoints
from civicsky.task import load_tasks
from civicsky.watch.systemd import Manager
from civicsky.workers import messages
from civicsky.workers.bus import Bus, Nobody
from civicsky.workers.messages import Beat, Claim, Foreign, Garbled, Job, Result
from civicsky.workers.roster import ASK_SECONDS, BEAT_SECONDS
from civicsky.workers.servers import Servers
from civicsky.workers.workqueue import Delivery, Puller, WorkQueue

PULL_SECONDS: Final = 3.0
"""For so long a free slot asks for a job, then anew."""
CLAIM_SECONDS: Final = 5.0
RESULT_SECONDS: Final = 5.0
KEEP_SECONDS: Final = 120.0
"""A result is offered for so long: the home node, or NATS, may be away for a moment, and it was paid for."""
BRIEFLY_SECONDS: Final = 10.0
"""So long that a job was delivered too often: nobody paid for that."""
ENDED: Final = 64
"""So many home nodes that are no more are known."""
AGAIN_SECONDS: Final = 0.5
AWAY_SECONDS: Final = 1.0
"""A job about which the home node says nothing comes back after so many seconds."""
FOREIGN_SECONDS: Final = PULL_SECONDS + 1.0
"""A job that is for others comes back after so many seconds: none of our slots waits for a job then."""
FOREIGN_REST: Final = 10.0
"""For so long no slot asks for another job, so that others get it."""
SHORT_BYTES: Final = 40_000
"""What is kept of an answer that is too long for NATS."""
NO_QUEUE: Final = "no home node has a work queue for this model, or it is of another version and does not say so"
NO_MODEL: Final = "--worker needs a model: give --model-url URL --model NAME, or --model local"


def run_worker(settings: Settings) -> str:
    """Work until a signal; gives a line for the user. Raises `CivicskyError` with one."""
    if not settings.label.chosen:
        raise Usage(NO_MODEL)
    file = Path(settings.log.file)
    if settings.log.file and not file.is_absolute():
        raise Usage("--log-file: a worker has no data directory; give the file's whole path")
    try:
        return asyncio.run(_work(settings))
    except BaseExceptionGroup as group:
        error = first_of(group)
        log.event("failed", why=str(error) or type(error).__name__)
        raise error from group


async def _work(settings: Settings) -> str:
    os.umask(0o077)
    stop = Stop()
    tasks = {task.name: task for task, _ in load_tasks(settings.label.tasks)}
    weights = find_weights(settings.label.gguf) if settings.label.model == "local" else None
    unlimited = dict.fromkeys(("requests_per_minute", "requests_per_day", "tokens_per_minute", "tokens_per_day"))
    label = settings.label.model_copy(update=unlimited)  # the home node heeds them
    try:
        with signals(stop), ExitStack() as stack:
            if settings.log.file:
                stack.enter_context(log.to_file(Path(settings.log.file), settings.log))
            async with model_endpoints(label, tasks, weights, {}, Spend("", 0, 0, 0)) as (endpoints, slots):
                worker = Worker(settings, endpoints, slots, stop)
                await worker.run()
    except asyncio.CancelledError:
        raise Failed("ended by a second signal; other workers get what was in hand") from None
    if worker.servers.refused:
        raise Refused(worker.servers.refused)
    return f"ended: {stop.why}; {worker.done:,} calls made"


class Worker:
    """Does jobs until `stop`, and then finishes what it holds. Memory: one request and one answer for each slot."""

    def __init__(self, settings: Settings, endpoints: Endpoints, slots: int, stop: Stop) -> None:
        self._settings, self._endpoints, self._slots, self._stop = settings, endpoints, slots, stop
        self.name = f"{socket.gethostname()[:60]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._bus = Bus(settings.workers, f"civicsky worker {self.name}", "worker")
        self._model, key = endpoints.model, messages.model_key(endpoints.model, endpoints.fingerprint)
        self._model_key = key
        queue = WorkQueue(self._bus, settings.workers, key)
        self._bus.on(f"{settings.workers.name}.queue", self._on_queue)
        self._pullers = [queue.puller() for _ in range(slots)]
        self._ended: deque[str] = deque(maxlen=ENDED)
        """Home nodes, by session, that did not answer others any more."""
        self._free = asyncio.Event()
        """Slots may look for a job; also at the end, so that they see it."""
        self._others_until = 0.0
        self._in_flight = 0
        self.done = 0
        self.servers = Servers(settings.label, endpoints, stop)
        self._queue_why = ""
        """Why there are no jobs for it; empty while there may be some."""
        self._idle_told, self._done_told = "", 0
        self._news = asyncio.Event()
        """The home node is to hear at once that we take jobs: until then it counts on others alone."""

    async def run(self) -> None:
        """Until told to stop, and then until what is in hand is done, or the time for that is over."""
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(self._bus.run(), name="nats"),
                group.create_task(self._beat(), name="beat"),
                group.create_task(self._rest(), name="rest"),
            ]
            slots = [group.create_task(self._slot(puller), name=f"slot-{n}") for n, puller in enumerate(self._pullers)]
            if not self._stop.requested.is_set():
                await self._until_stop(group, slots)
            self._free.set()
            self._wake()  # no slot waits for a job any more
            _, late = await asyncio.wait(slots, timeout=self._settings.limits.drain_seconds)
            if late:
                log.event("drain_over", seconds=self._settings.limits.drain_seconds)
            for task in late:
                task.cancel()
            with suppress(Transient):
                await self._bus.publish(
                    f"{self._settings.workers.name}.beat", messages.encode(self._says(leaving=True))
                )
            for task in beside:
                task.cancel()

    async def _until_stop(self, group: asyncio.TaskGroup, slots: list[asyncio.Task[None]]) -> None:
        requested = group.create_task(self._stop.requested.wait(), name="stop")
        await asyncio.wait([requested, *slots], return_when=asyncio.FIRST_COMPLETED)
        requested.cancel()

    # ---- being there ----

    async def _beat(self) -> None:
        """Say regularly that we are there, also to who started us."""
        manager = Manager.from_environment(os.environ)
        told = False
        await happened(self._bus.up, BEAT_SECONDS)
        while True:
            if self._bus.refused and not self._bus.up.is_set():
                raise Refused(self._bus.refused)
            self._news.clear()
            with suppress(Transient):
                await self._tell()
                if not told:
                    told = manager.tell("READY=1")
            why = self._bus.why or self._bus.forbidden or self.servers.why or self._queue_why or "ok"
            manager.tell(
                f"STATUS={log.harmless(f'{self._in_flight} in flight, {self.done:,} done, {why}')[:200]}", "WATCHDOG=1"
            )
            await happened(self._news, BEAT_SECONDS)

    async def _tell(self) -> None:
        """How we are; when nothing was done since the last time, also ask why. Raises `Transient`.

        That a queue is there says nothing: it may be of a home node that is no more, or of another version.
        """
        subject, beat = f"{self._settings.workers.name}.beat", messages.encode(self._says())
        before, self._done_told = self._done_told, self.done
        if self._in_flight or self.done != before:
            await self._bus.publish(subject, beat)
            return
        try:
            said = (await self._bus.request(subject, beat, ASK_SECONDS)).decode(errors="replace")[: messages.MAX_CHARS]
        except Nobody:
            said = f"no home node is there by the workers.name {self._settings.workers.name!r}"
        except Transient:
            if not self._bus.up.is_set():
                raise
            said = NO_QUEUE if self._queue_why else ""  # a home node of a time when beats were not answered
        if not self._in_flight:  # else a job came meanwhile
            self._idle(said)

    def _idle(self, why: str) -> None:
        """Why there are no jobs; empty: there may be some."""
        self._queue_why = why
        if why != self._idle_told:
            self._idle_told = why
            if why:
                log.event("workers_idle", stage="label", why=why)
            else:
                log.event("workers_working", stage="label")
                self._news.set()

    def _says(self, *, leaving: bool = False) -> Beat:
        return Beat(
            self.name, civicsky.__version__, self.servers.names, self._slots, self._in_flight, self.done,
            self.servers.refused or self.servers.why or self._queue_why, leaving, self._model, self._model_key,
        )  # fmt: skip

    async def _rest(self) -> None:
        """Look after servers that cannot be used; while there is no other, no jobs are taken."""
        line = self._endpoints.line()
        try:
            while True:
                await self.servers.look(line)
                if not self.servers.why and monotonic() >= self._others_until:
                    self._free.set()
                await asyncio.sleep(min(0.2, self._settings.label.pause_seconds))
        finally:
            await line.close()

    def _hold_if_resting(self) -> None:
        if self.servers.why:
            self._hold()

    def _hold(self) -> None:
        """No slot looks for a job now; `_rest` says when they may."""
        if not self._stop.requested.is_set():
            self._free.clear()

    # ---- jobs ----

    async def _on_queue(self, data: bytes) -> None:
        if data:
            self._ended.append(data[: messages.MAX_SESSION].decode(errors="replace"))
        else:
            self._wake()

    def _wake(self) -> None:
        for puller in self._pullers:
            puller.wake()

    async def _slot(self, puller: Puller) -> None:
        line = self._endpoints.line()
        try:
            while await self._free.wait() and not self._stop.requested.is_set():
                delivery = await self._pulled(puller)
                if delivery is not None:
                    await self._do(line, delivery)
        finally:
            try:
                await puller.close()
            finally:  # also when that is cut short
                await line.close()

    async def _pulled(self, puller: Puller) -> Delivery | None:
        """The next job. A queue that does not answer was wiped, or is not made yet: we look again, and soon."""
        try:
            delivery = await puller.next(PULL_SECONDS)
        except Transient as error:
            if isinstance(error, Nobody):
                self._queue_why = self._queue_why or NO_QUEUE
            await happened(self._stop.requested, AGAIN_SECONDS)
            return None
        if delivery is not None:
            self._idle("")
        return delivery

    async def _do(self, line: Line, delivery: Delivery) -> None:
        """One job, or what is to be done with one that is not for us."""
        try:
            job = messages.decode_job(delivery.data)
        except Foreign as error:
            log.event("workers_foreign", stage="label", why=str(error))
            self._others_until = monotonic() + FOREIGN_REST
            self._hold()
            await delivery.nak(FOREIGN_SECONDS)
            return
        except Garbled:
            await delivery.ack()
            return
        is_last = delivery.number > job.deliveries  # nobody gets it after us: the home node must be told
        if (self._stop.requested.is_set() or self.servers.why) and not is_last:
            await delivery.nak(AWAY_SECONDS if delivery.number > 1 else 0)  # it came back to us, or one like us
            return
        self._in_flight += 1
        silence = asyncio.create_task(_speaking_up(delivery, job.ack_seconds))
        try:
            await self._do_ours(line, job, delivery)
        finally:
            self._in_flight -= 1
            silence.cancel()

    async def _do_ours(self, line: Line, job: Job, delivery: Delivery) -> None:
        if delivery.number > job.deliveries:
            await self._give(Result(job.id, job.attempt, self.name, "given_up", ""), job, delivery)
            return
        # One for each claim: NATS may give one job to two of our slots, as the same delivery.
        claim = Claim(job.id, job.attempt, delivery.number, self.name, secrets.token_hex(16))
        word = await self._claim(claim, job.home)
        if word == b"go":
            began = monotonic()
            blank = Result(job.id, job.attempt, self.name, "reply", "", proof=claim.proof)
            result = await self.servers.call(line, job, blank)
            self.done += 1
            self._hold_if_resting()
            if await self._give(result, job, delivery) == b"rest":  # it is for another worker now
                self.servers.rest(result, began)
                self._hold_if_resting()
        elif word == b"drop":
            await delivery.ack()
        elif word != b"leave":
            await delivery.nak(AWAY_SECONDS)

    async def _claim(self, claim: Claim, home: str) -> bytes:
        """What the home node says to our doing it; empty: nothing, it may be away."""
        subject = f"{self._settings.workers.name}.home.{home}.claim"
        try:
            return await self._bus.request(subject, messages.encode(claim), CLAIM_SECONDS)
        except Transient as error:
            if not isinstance(error, Nobody):  # its word may come too late for us
                with suppress(Transient):
                    await self._bus.publish(subject, messages.encode(claim._replace(void=True)))
            return b""

    async def _give(self, result: Result, job: Job, delivery: Delivery) -> bytes:
        """Offer a result until the home node has it, and give its word; only then is the job done with."""
        subject = f"{self._settings.workers.name}.home.{job.home}.result"
        until = monotonic() + (KEEP_SECONDS if result.kind != "given_up" else BRIEFLY_SECONDS)
        while monotonic() < until:
            try:
                word = await self._bus.request(subject, messages.encode(result), RESULT_SECONDS)
            except Transient:
                if job.home in self._ended:
                    break  # nobody waits for it any more
                await asyncio.sleep(AGAIN_SECONDS)
            except Refused:  # NATS does not take so long an answer
                if not result.body:
                    raise
                shorter = result.body[:SHORT_BYTES] if len(result.body) > SHORT_BYTES else b""
                result = result._replace(kind="unusable", why="too_long", body=shorter)
            else:
                await delivery.ack()
                return word
        if result.kind != "given_up":
            log.event("workers_result_lost", stage="label", n=1)
        await delivery.nak()
        return b""


async def _speaking_up(delivery: Delivery, ack_seconds: float) -> None:
    """Say regularly that somebody is at it, until cancelled."""
    while True:
        await asyncio.sleep(ack_seconds / 3)
        await delivery.in_progress()
