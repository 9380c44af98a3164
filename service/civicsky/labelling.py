"""The labelling half: journal's changes -> ledger's jobs -> queue -> model -> ledger -> store.

As fast as the model allows.
It knows the stages only by the small shapes declared here.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Literal, Protocol

from civicsky import faults, log
from civicsky.document import Document, label_document, post_changes, post_document
from civicsky.errors import BadInput, Refused, Transient
from civicsky.lifecycle import Stop, happened
from civicsky.metrics import Metrics
from civicsky.model import Answer, Change, Job, Key, LabelRow, Outgoing, PostRow, Spend, now_us, post_uri
from civicsky.queue import Closed, Queue
from civicsky.record import readable
from civicsky.settings import Settings
from civicsky.task import Prompt

UNUSABLE_IN_A_ROW = 10


class ReaderShape(Protocol):
    """See `journal.JournalReader`."""

    async def changes(self, after: int, limit: int) -> list[Change]: ...
    async def last_change(self) -> int: ...
    async def posts(self, keys: Iterable[Key]) -> dict[Key, PostRow]: ...


class LedgerShape(Protocol):
    """See `ledger.Ledger`."""

    async def position(self) -> int: ...
    async def follow(self, changes: Sequence[Change], rows: Iterable[PostRow], task: str) -> None: ...
    async def due(self, held: Iterable[int], limit: int) -> list[Job]: ...
    async def waiting(self) -> int: ...
    async def answered(self, job: Job, label: LabelRow) -> bool: ...
    async def put_off(
        self, job: Job, reason: str, seconds: float, attempts: int, *, dead: bool = False, spend: Spend | None = None
    ) -> bool: ...
    async def outgoing(self, limit: int) -> list[Outgoing]: ...
    async def labels_of(self, keys: Iterable[Key]) -> dict[Key, list[LabelRow]]: ...
    async def stored(self, done: Iterable[Outgoing], refused: dict[Outgoing, str]) -> None: ...


class SlotShape(Protocol):
    """See `label.Slot`."""

    async def probe(self) -> None: ...
    async def ask(self, fields: dict[str, Any]) -> Answer: ...


class PutShape(Protocol):
    """See `store.Put`."""

    @property
    def written(self) -> int: ...
    @property
    def refused(self) -> dict[str, str]: ...


class StoreShape(Protocol):
    """See `store.Store`."""

    async def put(
        self, collection: Literal["posts", "labels"], documents: Sequence[Document], *, only_existing: bool = False
    ) -> PutShape: ...
    async def change(self, collection: Literal["posts", "labels"], changes: Sequence[Document]) -> dict[str, str]: ...


class Labelling:
    """Loops around the ledger: `follow` the journal, `feed` the queue, `label` (one for each call in flight), `store`.

    With `strict`, a model or store that refuses us ends everything; without it that part stands still and the rest
    goes on. Memory: the queue's bound, one post for each slot, and one batch of documents.
    """

    def __init__(
        self,
        reader: ReaderShape,
        ledger: LedgerShape,
        prompt: Prompt,
        settings: Settings,
        metrics: Metrics,
        stop: Stop,
        *,
        strict: bool,
    ) -> None:
        self._reader, self._ledger, self._prompt = reader, ledger, prompt
        self._settings, self._metrics, self._stop, self._strict = settings, metrics, stop, strict
        self._queue: Queue[tuple[Job, PostRow]] = Queue(settings.queue.items, settings.queue.bytes)
        self._held: set[int] = set()
        self._changed = asyncio.Event()
        self._followed_all = False
        self._labelled_all = False
        self._answers = 0
        self._unusable = 0
        self._model_pause = 0.0
        self._model_free_at = 0.0

    async def run(self, slots: Sequence[SlotShape], store: StoreShape) -> None:
        """Until `stop`, and then until what is held (with `drain`: all that waits) is labelled and stored."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="ledger")
            group.create_task(self._store(store), name="store")
            group.create_task(self._feed(), name="queue")
            counting = group.create_task(self._count(), name="waiting")
            async with asyncio.TaskGroup() as labels:
                for number, slot in enumerate(slots):
                    labels.create_task(self._label(slot), name=f"label-{number}")
            self._labelled_all = True
            counting.cancel()
            self.wake()

    async def catch_up(self, store: StoreShape) -> None:
        """Follow the journal and tell the store, without asking the model: for a command that changed something.

        Raises `Transient` or `Refused` of the store.
        """
        while await self._follow_some():
            pass
        while await self._store_some(store):
            pass

    def wake(self) -> None:
        """There may be work: called by the collecting half of the same process, and by the loops themselves."""
        self._changed.set()

    # ---- follow ----

    async def _follow(self) -> None:
        """Turn the journal's changes into jobs, until nothing more can come."""
        while not self._stop.hurried or not self._stop.collected.is_set():
            last_look = self._stop.collected.is_set()
            if await self._follow_some():
                self.wake()
            elif last_look:
                break
            else:
                await self._rest()
        self._followed_all = True
        self.wake()

    async def _follow_some(self) -> int:
        """Take over one batch of changes; gives how many."""
        changes = await self._reader.changes(await self._ledger.position(), self._settings.ledger.changes)
        if changes:
            rows = await self._reader.posts({(change.rkey, change.did) for change in changes if change.rkey})
            await self._ledger.follow(changes, rows.values(), self._prompt.task.name)
        return len(changes)

    # ---- feed ----

    async def _feed(self) -> None:
        """Keep the queue filled from the ledger, until told to stop; with `drain`, until nothing waits any more."""
        with suppress(Closed):
            while not self._stop.hurried:
                followed = self._followed_all
                fed = await self._feed_some()
                if not fed and followed and not self._held and not await self._ledger.waiting():
                    break
                if not fed:
                    await self._rest()
        # What is left in the queue of a hurried end is safe on disk.
        await self._queue.close(discard=self._stop.hurried)

    async def _feed_some(self) -> int:
        """Put jobs that are due into the queue; gives how many."""
        jobs = await self._ledger.due(self._held, self._settings.queue.items)
        rows = await self._reader.posts((job.rkey, job.did) for job in jobs)
        fed = 0
        for job in jobs:
            row = rows.get((job.rkey, job.did))
            if row is None or row.fields is None or row.cid != job.cid:
                # Pruned, or else deleted or edited just now: then the change that says so is on its way to the ledger.
                if row is None or self._followed_all:
                    await self._ledger.put_off(job, "text_gone", 0, job.attempts, dead=True)
                continue
            self._held.add(job.id)
            await self._queue.put((job, row), len(readable(row.fields)))
            fed += 1
            if self._stop.hurried:
                break
        return fed

    # ---- label ----

    async def _label(self, slot: SlotShape) -> None:
        """Ask about one post after the other, until the queue is closed or the model refuses us."""
        try:
            with suppress(Transient):  # then the first question will find it out again
                await slot.probe()
            while True:
                try:
                    job, row = await self._queue.get()
                except Closed:
                    return
                try:
                    await self._label_one(slot, job, row)
                finally:
                    self._held.discard(job.id)
                    self.wake()
        except Refused as error:
            if self._strict:
                raise
            self._park_model(str(error))
            await self._queue.close(discard=True)

    async def _label_one(self, slot: SlotShape, job: Job, row: PostRow) -> None:
        assert row.fields is not None
        if not await self._model_is_free():
            return
        answers_before = self._answers
        try:
            answer = await slot.ask(row.fields)
        except Transient as error:
            pause = self._pause_model(error)
            # Only a post that fails while others succeed is itself at fault.
            attempts = job.attempts + (self._answers > answers_before and not error.busy)
            dead = attempts >= self._settings.label.attempts
            await self._give_back(job, "unreachable", pause, attempts, dead=dead, spend=error.spend)
        except BadInput as bad:
            self._note_unusable(bad.reason)
            attempts = job.attempts + 1
            dead = attempts >= self._settings.label.attempts
            pause = self._settings.label.pause_seconds
            await self._give_back(job, bad.reason, pause, attempts, dead=dead, spend=bad.spend)
        else:
            self._answers += 1
            self._unusable = 0
            self._mark_model_up()
            faults.point("label.answer")
            await self._keep(job, answer)

    async def _keep(self, job: Job, answer: Answer) -> None:
        task = self._prompt.task
        label = LabelRow(
            label_id=_label_id(job, self._prompt.hash, answer),
            did=job.did,
            rkey=job.rkey,
            cid=job.cid,
            task=task.name,
            task_version=task.version,
            prompt_hash=self._prompt.hash,
            p_sampled=job.p_sampled,
            at=now_us(),
            attempts=job.attempts + 1,
            answer=answer,
        )
        wanted = await self._ledger.answered(job, label)
        self._metrics.add("labelled" if wanted else "unwanted")
        self._metrics.add("calls", answer.calls)
        self._metrics.add("tokens_in", answer.tokens_in)
        self._metrics.add("tokens_out", answer.tokens_out)

    async def _give_back(
        self, job: Job, reason: str, seconds: float, attempts: int, *, dead: bool, spend: Spend | None
    ) -> None:
        log.event("label_failed", stage="label", uri=post_uri(job.did, job.rkey), reason=reason, dead=dead)
        if await self._ledger.put_off(job, reason, seconds, attempts, dead=dead, spend=spend) and dead:
            self._metrics.add("failed")

    async def _model_is_free(self) -> bool:
        """Wait out a pause, which all slots share. False when the run ends hurriedly meanwhile."""
        while (left := self._model_free_at - monotonic()) > 0:
            if self._stop.hurried:
                return False
            await asyncio.sleep(min(left, 0.5))
        return True

    def _pause_model(self, error: Transient) -> float:
        """Let all slots rest; gives the seconds. The rest doubles while nothing succeeds."""
        bounds = self._settings.label
        if monotonic() >= self._model_free_at:  # several slots fail at once: one doubling
            self._model_pause = min(max(bounds.pause_seconds, self._model_pause * 2), bounds.pause_max_seconds)
        pause = max(self._model_pause, error.retry_after or 0.0)
        self._model_free_at = monotonic() + pause
        if not self._metrics.model_why:
            log.event("label_down", stage="label", why=str(error))
        self._metrics.model_why = str(error)
        return pause

    def _note_unusable(self, reason: str) -> None:
        """One bad answer is that post's; many in a row are the server's."""
        self._unusable += 1
        if self._unusable == UNUSABLE_IN_A_ROW:
            log.event("label_unusable", stage="label", reason=reason, n=self._unusable)
            self._metrics.model_why = f"the model's answers are of no use ({reason})"

    def _mark_model_up(self) -> None:
        if self._metrics.model_why or self._answers == 1:
            log.event("label_up", stage="label")
        self._metrics.model_why = ""
        self._model_pause = 0.0

    def _park_model(self, why: str) -> None:
        if self._metrics.model_why != why:
            log.event("label_parked", stage="label", why=why)
        self._metrics.model_why = why

    # ---- store ----

    async def _store(self, store: StoreShape) -> None:
        """Tell the store what changed, until all is labelled and told."""
        pause = 1.0
        while True:
            last_look = self._labelled_all and self._followed_all
            try:
                told = await self._store_some(store)
            except Transient as error:
                if not self._metrics.store_why:
                    log.event("store_down", stage="store", why=str(error))
                self._metrics.store_why = str(error)
                if self._stop.hurried:
                    return  # it waits in the ledger
                await asyncio.sleep(pause)
                pause = min(pause * 2, self._settings.store.retry_max_seconds)
                continue
            except Refused as error:
                if self._strict:
                    raise
                self._metrics.store_why = str(error)
                log.event("store_parked", stage="store", why=str(error))
                return
            if self._metrics.store_why:
                log.event("store_up", stage="store")
                self._metrics.store_why = ""
            pause = 1.0
            if not told and last_look:
                return
            if not told:
                await self._rest()

    async def _store_some(self, store: StoreShape) -> int:
        """Write one batch of documents; gives how many posts it was about."""
        outs = await self._ledger.outgoing(self._settings.store.batch_documents)
        if not outs:
            return 0
        keys = [(out.rkey, out.did) for out in outs]
        rows, labels = await self._reader.posts(keys), await self._ledger.labels_of(keys)
        posts: list[Document] = []
        changes: list[Document] = []
        tombstones: list[Document] = []
        stories: list[Document] = []
        for out, key in zip(outs, keys, strict=True):
            own = labels.get(key, [])
            stories += [label_document(out, label) for label in own]
            document = post_document(out, rows.get(key), own)
            if document is None:
                changes.append(post_changes(out, own))
            else:
                (posts if out.known else tombstones).append(document)
        faults.point("store.write")
        # Labels first: a post never points to a label that is not there.
        told = await store.put("labels", stories)
        put = await store.put("posts", posts)
        gone = await store.put("posts", tombstones, only_existing=True)
        changed = await store.change("posts", changes)
        faults.point("store.written")
        by_uri = {story["uri"]: why for story in stories if (why := told.refused.get(story["_id"]))}
        by_uri |= put.refused | gone.refused | changed
        refused = {out: why for out in outs if (why := by_uri.get(post_uri(out.did, out.rkey)))}
        if refused:
            log.event("store_refused", stage="store", n=len(refused), why=next(iter(refused.values())))
        await self._ledger.stored(outs, refused)
        self._metrics.add("stored", put.written)
        return len(outs)

    # ---- all loops ----

    async def _rest(self) -> None:
        """Until a sign of work, or the poll interval is over."""
        self._changed.clear()
        await happened(self._changed, self._settings.ledger.poll_seconds)

    async def _count(self) -> None:
        """Keep the number of waiting posts fresh, spending at most a tenth of the time on it, until cancelled."""
        while True:
            began = monotonic()
            self._metrics.waiting = await self._ledger.waiting()
            await asyncio.sleep(max(self._settings.ledger.poll_seconds, 10 * (monotonic() - began)))


def _label_id(job: Job, prompt_hash: str, answer: Answer) -> str:
    """The same question about the same text has the same id, also from another data directory: stores hold it once."""
    parts = (post_uri(job.did, job.rkey), job.cid, job.task, prompt_hash, answer.model_asked, answer.parameters)
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
