"""The collecting half, to be read from top to bottom: source -> decode -> worker -> journal. Never waits for a model.

It knows the stages only by the small shapes declared here.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import dataclass
from itertools import chain, repeat
from time import monotonic
from typing import Protocol

from civicsky import faults, log
from civicsky.clock import Clock
from civicsky.coverage import FEW
from civicsky.errors import BadInput
from civicsky.lifecycle import Every, Stop, happened
from civicsky.metrics import Metrics
from civicsky.model import (
    Arrival,
    Batch,
    Committed,
    Event,
    Frame,
    FrameOutcome,
    Gap,
    Handful,
    Key,
    Opening,
    Position,
    PostOp,
    Verdict,
    made,
)
from civicsky.queue import Closed, Queue
from civicsky.settings import Settings

AHEAD_US = 5 * 60_000_000
"""How far a relay's clock may be ahead of ours."""
FULL_SECONDS = 5.0
"""How often room is looked for while the disk's bound is reached."""


class GateShape(Protocol):
    """See `opening.Gate`."""

    def end(self, opening: Opening, why: str) -> None: ...
    def count(self, opening: Opening | None, posts: int) -> None: ...


class SourceShape(Protocol):
    """See `source.Source`."""

    @property
    def gate(self) -> GateShape: ...
    def handfuls(self) -> AsyncGenerator[Handful, None]: ...
    def settle_all(self, handful: Handful, seqs: Sequence[int | None]) -> list[Arrival] | None: ...
    def settle(self, seq: int | None) -> FrameOutcome | None: ...
    def settle_bad(self, digest: str) -> None: ...
    def renumber(self) -> None: ...
    def outdated(self) -> None: ...
    def take_gaps(self) -> list[Gap]: ...
    def go_back(self, positions: Mapping[str, Position]) -> None: ...
    def stop(self) -> None: ...


class PoolShape(Protocol):
    """See `worker.Pool`."""

    processes: int

    async def judge(self, ops: Sequence[PostOp]) -> list[Verdict]: ...


class JournalShape(Protocol):
    """See `journal.Journal`."""

    room: asyncio.Event

    @property
    def shedding(self) -> bool: ...
    @property
    def size(self) -> int: ...
    async def commit(
        self, batch: Batch, verdicts: Sequence[Verdict], received: Counter[str], *, kept_limit: int | None = None
    ) -> Committed: ...
    async def positions(self, hosts: Iterable[str]) -> Mapping[str, Position]: ...
    async def prune(
        self, followed: int | None, settled: Callable[[Sequence[Key]], Awaitable[Sequence[Key]]]
    ) -> None: ...


class LedgerShape(Protocol):
    """How far the labelling half is; see `ledger.LedgerReader`."""

    async def position(self) -> int: ...
    async def settled(self, keys: Sequence[Key]) -> list[Key]: ...


async def collect(
    source: SourceShape,
    decode: Callable[[bytes], Event],
    pool: PoolShape,
    journal: JournalShape,
    settings: Settings,
    metrics: Metrics,
    stop: Stop,
    wake: Callable[[], None],
) -> None:
    """Hold the stream until `stop`; everything taken in is committed, in order, before this returns.

    Memory: `processes + 2` batches of at most `worker.batch_bytes` plus one frame each.
    """
    batches: Queue[_Sent] = Queue(pool.processes + 1, settings.worker.batch_bytes * (pool.processes + 1))
    intake = _Intake(source, decode, pool, batches, journal.room, settings, metrics, stop)
    try:
        async with asyncio.TaskGroup() as group:
            intake.group = group
            group.create_task(_commit(batches, source, journal, settings, metrics, stop, wake), name="journal")
            ticker = group.create_task(intake.tick(), name="source-ticker")
            group.create_task(_hang_up(source, stop), name="source-stop")
            await intake.read()
            ticker.cancel()
            await batches.close()
            if not stop.requested.is_set():
                stop.request("the stream ended", drain=True)
    finally:
        metrics.in_hand = 0
        metrics.pulse.frames.clear()
        stop.collected.set()
        wake()


@dataclass
class _Sent:
    """A batch on its way through the pool."""

    batch: Batch
    received: Counter[str]
    verdicts: "asyncio.Task[list[Verdict]] | None"


class _Intake:
    """Reads the source, decodes, and sends full or old batches to the pool."""

    def __init__(
        self,
        source: SourceShape,
        decode: Callable[[bytes], Event],
        pool: PoolShape,
        batches: Queue[_Sent],
        room: asyncio.Event,
        settings: Settings,
        metrics: Metrics,
        stop: Stop,
    ) -> None:
        self._source, self._decode, self._pool, self._batches = source, decode, pool, batches
        self._room = room
        self._bounds, self._limits = settings.worker, settings.limits
        self._limited = bool(settings.limits.max_frames or settings.limits.max_posts)
        self._link = 0
        self._metrics, self._stop = metrics, stop
        self._batch = Batch()
        self._posts_in_batch = 0
        self._sent_n = 0
        self._began = 0.0
        self._sending = asyncio.Lock()
        self._clock = Clock("event", metrics.clock_doubts)
        self.group: asyncio.TaskGroup

    async def read(self) -> None:
        """Until the source ends or a limit is reached."""
        async with aclosing(self._source.handfuls()) as handfuls:
            async for handful in handfuls:
                await self._take(handful)
                await self._wait_for_room()
                if self._stop.requested.is_set():
                    break
        await self._send()

    async def tick(self) -> None:
        """Send a batch that has become old."""
        while True:
            await asyncio.sleep(self._bounds.batch_seconds / 2)
            if self._batch.frames and monotonic() - self._began >= self._bounds.batch_seconds / 2:
                await self._send()

    async def _take(self, handful: Handful) -> None:
        """Decode what is there into the batch, which is sent when it is full."""
        if handful.link != self._link:
            await self._send()  # a batch belongs to one connection, so to one host and epoch
            self._link = handful.link
        events: list[Event] = []
        frames = self._all_at_once(handful, events)
        if frames is None:
            await self._take_one_by_one(handful, events)
            return
        size = sum(map(len, handful.messages))
        if not self._has_room(len(frames), size):
            await self._send()
        self._add(frames, size)
        self._metrics.take(len(frames))

    def _all_at_once(self, handful: Handful, events: list[Event]) -> list[Frame] | None:
        """The frames of a handful in which nothing is out of the ordinary, settled; None: they come one by one.

        `events` is empty and gets what the messages were decoded to, up to the first that cannot be.
        """
        messages, bounds = handful.messages, self._bounds
        if self._limited or len(messages) > bounds.batch_frames or faults.armed() or str in map(type, messages):
            return None
        try:
            for data in messages:
                events.append(self._decode(data))  # type: ignore[arg-type]  # all are bytes
        except BadInput:
            return None
        arrivals = self._source.settle_all(handful, [event.seq for event in events])
        if arrivals is None:
            return None
        if self._metrics.clock_doubts or max(event.time for event in events) > handful.at:
            events = [self._on_time(event, arrival) for event, arrival in zip(events, arrivals, strict=True)]
        return [
            made(Frame, (arrival, event, event.outcome, "")) for arrival, event in zip(arrivals, events, strict=True)
        ]

    def _add(self, frames: Sequence[Frame], size: int) -> None:
        """Put frames into the batch."""
        if not self._batch.frames:
            self._began = monotonic()
        self._batch.frames += frames
        self._batch.size += size
        for frame in frames:
            if frame.event.posts and frame.outcome == "commit":
                self._note_posts(frame)

    def _has_room(self, frames: int, size: int) -> bool:
        batch, bounds = self._batch, self._bounds
        return len(batch.frames) + frames <= bounds.batch_frames and batch.size + size <= bounds.batch_bytes

    async def _take_one_by_one(self, handful: Handful, events: Sequence[Event]) -> None:
        """`events`: what the first of them were decoded to already."""
        taken = 0
        for arrival, event in zip(handful.one_by_one, chain(events, repeat(None)), strict=False):
            self._add([self._settle(arrival, event)], len(arrival.data))
            taken += 1
            is_over = self._limited and self._is_over(taken)
            if is_over or not self._has_room(1, 1):
                self._metrics.take(taken)
                taken = 0
                await self._send()
                await self._wait_for_room()
                if self._stop.requested.is_set():
                    break
        self._metrics.take(taken)

    async def _wait_for_room(self) -> None:
        """At the disk's bound: the relay waits at the socket."""
        while not self._room.is_set() and not self._stop.requested.is_set():
            await happened(self._room, 0.5)

    def _note_posts(self, frame: Frame) -> None:
        self._posts_in_batch += len(frame.event.posts)
        self._metrics.add("posts", frame.event.new_posts)
        self._source.gate.count(frame.arrival.opening, frame.event.new_posts)

    def _settle(self, arrival: Arrival, event: Event | None) -> Frame:
        """Decode one arrival, if it is not yet, and decide what becomes of it."""
        if isinstance(arrival.data, str):
            return Frame(arrival, Event("ignored"), "ignored", "text")
        try:
            event = event or self._decode(arrival.data)
        except BadInput as bad:
            digest = hashlib.sha256(arrival.data).hexdigest()
            log.event("quarantined", stage="decode", host=arrival.host, reason=bad.reason, sha256=digest)
            self._source.settle_bad(digest)
            return Frame(arrival, Event("quarantined"), "quarantined", bad.reason)
        faults.point("decode.decoded")
        if event.time > arrival.received_at or self._metrics.clock_doubts:
            event = self._on_time(event, arrival)
        judged = self._source.settle(event.seq)
        if event.seq is None and event.outcome in {"info", "error"}:
            self._heed(event)
        if judged is not None:
            return Frame(arrival, event, judged, "renumbered" if judged == "ignored" else "")
        return Frame(arrival, event, event.outcome, event.name)

    def _on_time(self, event: Event, arrival: Arrival) -> Event:
        """Look at the clocks; one that is ahead must not outrank all that comes later. Old events are replayed."""
        if event.time:
            self._clock.look(arrival.host, max(0, event.time - arrival.received_at) / 1e6)
        return event._replace(time=min(event.time, arrival.received_at + AHEAD_US))

    def _heed(self, event: Event) -> None:
        log.event("source_info", stage="source", name=event.name)
        if event.name == "FutureCursor":
            self._source.renumber()
        elif event.name == "OutdatedCursor":
            self._source.outdated()

    def _is_over(self, taken: int) -> bool:
        """Whether a limit of the run is reached, with so many frames that are not counted yet."""
        counts, limits = self._metrics.counts, self._limits
        if limits.max_frames and counts["frames"] + taken >= limits.max_frames:
            self._stop.request(f"limit of {limits.max_frames} frames", drain=True)
        if limits.max_posts and counts["posts"] >= limits.max_posts:
            self._stop.request(f"limit of {limits.max_posts} posts", drain=True)
        return self._stop.requested.is_set()

    async def _send(self) -> None:
        # Reader and ticker both come here: the lock keeps the batches in order.
        async with self._sending:
            batch, self._batch = self._batch, Batch()
            posts, self._posts_in_batch = self._posts_in_batch, 0
            if not batch.frames:
                return
            batch.gaps = self._source.take_gaps()
            last = batch.frames[-1].arrival.n
            received = Counter(frame=last - self._sent_n, post=posts)
            self._sent_n = last
            ops = batch.records()
            job = self.group.create_task(self._pool.judge(ops), name="worker") if ops else None
            with suppress(Closed):  # closed by the journal, at a limit: what is behind it is not wanted
                await self._batches.put(_Sent(batch, received, job), batch.size)


async def _commit(
    batches: Queue[_Sent],
    source: SourceShape,
    journal: JournalShape,
    settings: Settings,
    metrics: Metrics,
    stop: Stop,
    wake: Callable[[], None],
) -> None:
    """Commit batches in the order in which they were read; what comes behind the end of its opening is dropped."""
    limit = settings.limits.max_kept
    over: int | None = None
    while True:
        try:
            sent = await batches.get()
        except Closed:
            return
        verdicts = await sent.verdicts if sent.verdicts else []
        opening = sent.batch.frames[0].arrival.opening
        if opening is not None and opening.opened == over:
            metrics.settle(len(sent.batch.frames))
            continue
        left = None if limit is None else limit - metrics.counts["kept"]
        with metrics.pulse.work("journal"):
            committed = await journal.commit(sent.batch, verdicts, sent.received, kept_limit=left)
        for (unit, outcome, reason), n in committed.counts.items():
            if (unit, outcome) == ("post", "quarantined"):
                log.event("quarantined", stage="worker", reason=reason, n=n)
        metrics.add("kept", committed.counts["post", "kept", ""])
        metrics.outcomes.update({what: n for what, n in committed.counts.items() if what[0] in {"frame", "post"}})
        metrics.gaps.update(committed.gaps)
        metrics.event_at = committed.position.event_at
        # Some: the clock of a single server may be wrong.
        metrics.settle(len(sent.batch.frames), max(frame.event.time for frame in sent.batch.frames[-FEW:]) or None)
        if committed.resume:
            at = committed.position
            log.event("source_resumed", stage="source", host=at.host, epoch=at.epoch, resume=committed.resume)
        _note_room(journal, metrics)
        wake()
        if opening is not None and committed.opening_why:
            over = opening.opened
            source.gate.end(opening, committed.opening_why)
            source.go_back(await journal.positions(()))
        if committed.kept_limit_reached:
            stop.request(f"limit of {limit} posts kept", drain=True)
            await batches.close(discard=True)
            return


async def _hang_up(source: SourceShape, stop: Stop) -> None:
    await stop.requested.wait()
    source.stop()


def _note_room(journal: JournalShape, metrics: Metrics) -> None:
    """Say when the disk's bound is reached, and when it is over."""
    metrics.journal_bytes = journal.size
    paused = not journal.room.is_set()
    why = "the disk bound is reached: reading pauses" if paused else ""
    why = why or ("the disk bound is reached: new posts are shed" if journal.shedding else "")
    if why != metrics.journal_why:
        log.event("journal_full" if why else "journal_room", stage="journal", why=why)
    metrics.journal_why, metrics.paused = why, paused


async def housekeep(
    journal: JournalShape,
    ledger: Callable[[], AbstractAsyncContextManager[LedgerShape | None]],
    seconds: float,
    metrics: Metrics,
    stop: Stop,
) -> None:
    """Prune the journal now and then, more often while it is full, until `stop`."""
    regular = Every(seconds)
    regular.is_due()
    while not await happened(stop.requested, min(seconds, FULL_SECONDS)):
        if journal.room.is_set() and not regular.is_due():
            continue
        async with ledger() as reader:
            if reader is None:
                await journal.prune(None, _nothing_settled)
            else:
                await journal.prune(await reader.position(), reader.settled)
        _note_room(journal, metrics)


async def _nothing_settled(_keys: Sequence[Key]) -> list[Key]:
    return []
