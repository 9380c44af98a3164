"""The labelling half: journal's changes -> ledger's jobs -> queue -> model -> ledger -> store.

As fast as the model allows, and as far as the budget does.
It knows the stages only by the small shapes declared here and in `asking`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final, Literal, Protocol, get_args

from civicsky import asking, faults, log
from civicsky.asking import Asking, ContextsShape, GateShape, Item, SlotShape
from civicsky.document import Document, label_document, post_changes, post_document, snapshot_document
from civicsky.errors import Refused, Transient
from civicsky.events.giving import EventsShape
from civicsky.lifecycle import Every, Stop, happened
from civicsky.metrics import Metrics
from civicsky.model import (
    Change,
    Gated,
    Job,
    Key,
    LabelRow,
    Outgoing,
    PostRow,
    Question,
    Shown,
    Snapshot,
    Spend,
    Unlabelled,
    parse_time,
    post_uri,
)
from civicsky.queue import Closed, Queue
from civicsky.record import readable
from civicsky.sample import Drawing, allowance
from civicsky.settings import Settings
from civicsky.task import Task

MINUTE: Final = 60.0
STORE_CALLS: Final = 8
"""Calls to the store in one round, more or less; each is bounded by itself."""
STORE_PAUSE: Final = 0.5
"""Seconds from a batch that was not full to the next: labels come one by one, and each batch is a dozen look-ups and
some waits for the disk, however many documents it has."""
COUNT_SHARE: Final = 0.002
"""The part of the time that is spent on counting what waits: with many posts nobody can write meanwhile."""
STORE_PATIENCE: Final = 12
"""Times `store.timeout_seconds` for one of them: a silent socket is waited for six times, and tried once more."""


class ReaderShape(Protocol):
    """See `journal.JournalReader`."""

    async def changes(self, after: int, limit: int) -> list[Change]: ...
    async def last_change(self) -> int: ...
    async def posts(self, keys: Iterable[Key]) -> dict[Key, PostRow]: ...
    async def shown(self, keys: Iterable[Key]) -> dict[Key, Shown]: ...
    async def snapshots(self, after: int, limit: int) -> list[Snapshot]: ...


class LedgerShape(asking.LedgerShape, Protocol):
    """See `ledger.Ledger`."""

    async def position(self, name: Literal["journal", "snapshot"] = "journal") -> int: ...
    async def follow(
        self,
        changes: Sequence[Change],
        posts: Iterable[PostRow],
        tasks: Sequence[str],
        drawing: Drawing,
        certain: Collection[Key] = (),
    ) -> None: ...
    async def due(self, tasks: Sequence[str], held: Iterable[int], limit: int) -> list[Job]: ...
    async def waiting(self, tasks: Sequence[str]) -> int: ...
    async def unstored(self) -> int: ...
    async def backlog(self, before: int) -> int: ...
    async def spent_a_post(self) -> tuple[int, Spend]: ...
    async def prune(self, context_days: float, raw_days: float) -> None: ...
    async def outgoing(self, limit: int) -> list[Outgoing]: ...
    async def labels_of(self, keys: Iterable[Key]) -> dict[Key, list[LabelRow]]: ...
    async def unlabelled_of(self, keys: Iterable[Key]) -> dict[Key, list[Unlabelled]]: ...
    async def gated_of(self, keys: Iterable[Key]) -> dict[Key, list[Gated]]: ...
    async def stored(self, done: Iterable[Outgoing], refused: dict[Outgoing, str]) -> None: ...
    async def told_snapshots(self, n: int) -> None: ...


class RoundsShape(asking.RoundsShape, Protocol):
    """See `rounds.Rounds`."""

    async def extend(self, tasks: Collection[str]) -> int: ...
    async def plan_probes(self, questions: Sequence[tuple[str, str, str]]) -> int: ...


class ForgettingShape(Protocol):
    """See `annotate.votes.Forgetting`."""

    async def heed(
        self, changes: Iterable[Change], journal: Callable[[Iterable[Key]], Awaitable[Mapping[Key, PostRow]]]
    ) -> None: ...


Loop = Literal["ledger", "queue", "store"]
"""Who may be told that there is work."""
Told = Literal["posts", "labels", "snapshots"]
"""What the store is told of posts."""


class PutShape(Protocol):
    """See `store.Put`."""

    @property
    def written(self) -> int: ...
    @property
    def stale(self) -> int: ...
    @property
    def duplicate(self) -> int: ...
    @property
    def refused(self) -> dict[str, str]: ...


class StoreShape(Protocol):
    """See `store.Store`."""

    async def put(
        self, collection: Told, documents: Sequence[Document], *, only_existing: bool = False
    ) -> PutShape: ...
    async def remove(self, collection: Literal["snapshots"], uris: Sequence[str]) -> None: ...
    async def change(self, collection: Literal["posts", "labels"], changes: Sequence[Document]) -> dict[str, str]: ...
    async def find(self, collection: Literal["posts", "labels"], ids: Sequence[str]) -> list[Document]: ...


class Labelling:
    """Loops around the ledger: `follow` the journal, `feed` the queue, `label` (one for each call in flight), `store`.

    With `strict`, a model or store that refuses us ends everything; without it that part stands still and the rest
    goes on. Memory: the queue's bound, `label.posts_per_request` posts for each slot, and one batch of documents.
    """

    def __init__(
        self,
        reader: ReaderShape,
        ledger: LedgerShape,
        rounds: RoundsShape,
        contexts: ContextsShape | None,
        tasks: Mapping[str, Task],
        settings: Settings,
        metrics: Metrics,
        stop: Stop,
        *,
        strict: bool,
        gate: GateShape | None = None,
        events: EventsShape | None = None,
        by_hand: ForgettingShape | None = None,
    ) -> None:
        """`by_hand`: what people said of posts, which must be forgotten with them."""
        self._reader, self._ledger, self._rounds, self._tasks = reader, ledger, rounds, tuple(tasks)
        self._settings, self._metrics, self._stop, self._strict = settings, metrics, stop, strict
        self._contexts, self._by_hand = contexts, by_hand
        self._asking = Asking(ledger, rounds, contexts, tasks, settings.label, metrics, stop, gate, events)
        self._queue: Queue[Item] = Queue(settings.queue.items, settings.queue.bytes)
        self._held: set[int] = set()
        self._signs: dict[Loop, asyncio.Event] = {loop: asyncio.Event() for loop in get_args(Loop)}
        self._followed_all = False
        self._labelled_all = asyncio.Event()
        self._drawing, self._draw_anew = Drawing(), Every(MINUTE)
        self._store_seconds = STORE_CALLS * STORE_PATIENCE * settings.store.timeout_seconds

    async def run(self, slots: Sequence[SlotShape], store: StoreShape) -> None:
        """Until `stop`, and then until what is held (with `drain`: all that waits) is labelled and stored."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="ledger")
            group.create_task(self._store(store), name="store")
            group.create_task(self._feed(store), name="queue")
            regular = [
                group.create_task(self._count(), name="waiting"),
                group.create_task(self._keep_house(slots), name="probes"),
            ]
            async with asyncio.TaskGroup() as labels:
                for number, slot in enumerate(slots):
                    labels.create_task(self._label(slot), name=f"label-{number}")
            self._labelled_all.set()
            for task in regular:
                task.cancel()
            self.wake()

    async def catch_up(self, store: StoreShape) -> None:
        """Follow the journal and tell the store, without asking the model: for a command that changed something.

        Raises `Transient` or `Refused` of the store.
        """
        while await self._follow_some():
            pass
        while await self._store_some(store):
            pass

    def wake(self, *loops: Loop) -> None:
        """There may be work for these loops, or for all: called by the collecting half of the process, and by them."""
        for loop in loops or self._signs:
            self._signs[loop].set()

    # ---- follow ----

    async def _follow(self) -> None:
        """Turn the journal's changes, and the rounds that were asked for, into jobs, until nothing more can come."""
        while not self._stop.hurried or not self._stop.collected.is_set():
            last_look = self._stop.collected.is_set()
            with self._metrics.pulse.work("ledger"):
                found = await self._follow_some()
                found = found or (not self._stop.hurried and await self._rounds.extend(self._tasks))
            if found:
                self.wake("queue", "store")
            elif last_look:
                break
            else:
                await self._rest("ledger")
        self._followed_all = True
        self.wake()

    async def _follow_some(self) -> int:
        """Take over one batch of changes; gives how many."""
        changes = await self._reader.changes(await self._ledger.position(), self._settings.ledger.changes)
        if changes:
            if self._draw_anew.is_due():
                self._drawing = await self._drawn_now()
            rows = await self._reader.posts({(change.rkey, change.did) for change in changes if change.rkey})
            certain = await self._shown_by_feeds(changes) if self._settings.feeds.label_all else set()
            for change in changes:  # before the ledger scrubs its cache, for what is being fetched now
                if self._contexts and change.kind in {"delete", "hide", "remove"}:
                    self._contexts.forget(change.did, change.rkey)
                elif self._contexts and change.kind == "show":
                    self._contexts.recall(change.did)
            if self._by_hand:  # before the ledger is past them: after a crash they are told again
                await self._by_hand.heed(changes, self._reader.posts)
            await self._ledger.follow(changes, rows.values(), self._tasks, self._drawing, certain)
        return len(changes)

    async def _shown_by_feeds(self, changes: Sequence[Change]) -> set[Key]:
        put = {(change.rkey, change.did) for change in changes if change.kind == "put"}
        return {key for key, shown in (await self._reader.shown(put)).items() if shown.seen}

    async def _drawn_now(self) -> Drawing:
        """How many posts of a day are drawn: what the user wants, less what waits, and no more than can be paid."""
        wish, label = self._settings.sample, self._settings.label
        labels, spend = await self._ledger.spent_a_post()
        affordable = None
        for budget, spent in (
            (label.budget_tokens, spend.tokens_in + spend.tokens_out),
            (label.budget_money, spend.cost),
        ):
            if budget and labels and spent:
                affordable = min(affordable or float("inf"), budget / (spent / labels * len(self._tasks)))
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        backlog = await self._ledger.backlog(int(today.timestamp() * 1e6))
        return Drawing(allowance(wish.posts_per_day, affordable, backlog), wish.unit)

    # ---- feed ----

    async def _feed(self, store: StoreShape) -> None:
        """Keep the queue filled from the ledger, until told to stop; with `drain`, until nothing waits any more."""
        with suppress(Closed):
            while not self._stop.hurried:
                followed = self._followed_all
                with self._metrics.pulse.work("queue"):
                    spent = await self._asking.is_spent()
                fed = 0 if spent else await self._feed_some(store)
                idle = not fed and followed and not self._held
                if idle and (spent or not await self._ledger.waiting(self._tasks)):
                    break  # what the budget does not pay for waits on disk
                if not fed:
                    await self._rest("queue")
        # What is left in the queue of a hurried end is safe on disk.
        await self._queue.close(discard=self._stop.hurried)

    async def _feed_some(self, store: StoreShape) -> int:
        """Put jobs that are due into the queue; gives how many."""
        with self._metrics.pulse.work("queue", self._store_seconds):
            jobs = await self._ledger.due(self._tasks, self._held, self._settings.queue.items)
            rows = await self._reader.posts((job.rkey, job.did) for job in jobs)
            pruned = await self._stored_texts([job for job in jobs if (job.rkey, job.did) not in rows], store)
        fed = 0
        for job in jobs:
            key = (job.rkey, job.did)
            row = rows.get(key)
            cid, fields = (row.cid, row.fields) if row else pruned.get(key, ("", None))
            if fields is None or cid != job.cid:
                # Pruned everywhere, or else deleted or edited just now: then the change that says so is on its way.
                if row is None and key not in pruned:
                    await self._ledger.put_off(job, "text_later", MINUTE, job.attempts)
                elif row is None or self._followed_all:
                    await self._ledger.put_off(job, "text_gone", 0, job.attempts, dead=True)
                continue
            self._held.add(job.id)
            await self._queue.put(Item(job, fields, _made_at(row, fields)), len(readable(fields)))
            fed += 1
            if self._stop.hurried:
                break
        return fed

    async def _stored_texts(
        self, jobs: Sequence[Job], store: StoreShape
    ) -> dict[Key, tuple[str, dict[str, Any] | None]]:
        """(cid, fields) of posts that the journal has pruned, from the store; nothing when it cannot be reached now."""
        if not jobs:
            return {}
        try:
            found = await store.find("posts", [post_uri(job.did, job.rkey) for job in jobs])
        except (Transient, Refused):
            return {}
        documents = {doc["_id"]: doc for doc in found if doc.get("text") is not None}
        texts: dict[Key, tuple[str, dict[str, Any] | None]] = {}
        for job in jobs:
            document = documents.get(post_uri(job.did, job.rkey))
            texts[job.rkey, job.did] = (document["cid"], document) if document else ("", None)
        return texts

    # ---- label ----

    async def _label(self, slot: SlotShape) -> None:
        """Ask about one post after the other, until the queue is closed or the model refuses us."""
        try:
            with suppress(Transient), self._metrics.pulse.work("label", asking.longest(self._settings.label)):
                await slot.probe()  # if it fails, the first question will find it out again
            while True:
                try:
                    items = await self._queue.take(self._settings.label.posts_per_request)
                except Closed:
                    return
                try:
                    for together in asking.requests_of(items):
                        await self._asking.ask(slot, together[0].job.task, together)
                finally:
                    self._held -= {item.job.id for item in items}
                    # With nothing held the end may have come; else there is no more to feed than before.
                    self.wake("store", *(() if self._held else ("queue",)))
        except Refused as error:
            if self._strict:
                raise
            self._park_model(str(error))
            await self._queue.close(discard=True)

    def _park_model(self, why: str) -> None:
        if self._metrics.model_why != why:
            log.event("label_parked", stage="label", why=why)
        self._metrics.model_why = self._metrics.model_parked = why

    async def _keep_house(self, slots: Sequence[SlotShape]) -> None:
        """Once a day the anchors are asked again; what has a short retention goes. Until cancelled."""
        planned: tuple[int, list[Question]] | None = None
        prune = Every(60 * MINUTE)
        while True:
            if prune.is_due():
                await self._ledger.prune(self._settings.context.cache_days, self._settings.label.raw_days)
            # Before it is known how the servers are asked, it is not known what was asked of them.
            if self._settings.label.anchors and (slots[0].abilities() or self._asking.has_answers):
                questions = [slots[0].question(task) for task in self._tasks]
                now = (datetime.now(UTC).toordinal(), questions)
                if now != planned and await self._rounds.plan_probes(
                    [(task, one.prompt_hash, one.model) for task, one in zip(self._tasks, questions, strict=True)]
                ):
                    self.wake("queue")
                planned = now
            await asyncio.sleep(MINUTE if planned else self._settings.ledger.poll_seconds)

    # ---- store ----

    async def _store(self, store: StoreShape) -> None:
        """Tell the store what changed, until all is labelled and told."""
        pause = 1.0
        while True:
            last_look = self._labelled_all.is_set() and self._followed_all
            try:
                with self._metrics.pulse.work("store", self._store_seconds):
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
                self._park_store(str(error))
                return
            if self._metrics.store_why and told:  # with nothing to tell it was not asked
                log.event("store_up", stage="store")
                self._metrics.store_why = ""
            pause = 1.0
            if not told and last_look:
                return
            await self._rest_from_storing(told)

    async def _rest_from_storing(self, told: int) -> None:
        if not told:
            await self._rest("store")
        elif told < self._settings.store.batch_documents:
            await happened(self._labelled_all, STORE_PAUSE)

    def _park_store(self, why: str) -> None:
        if self._metrics.store_why != why:  # runs and coverage may have been refused before
            log.event("store_parked", stage="store", why=why)
        self._metrics.store_why = self._metrics.store_parked = why

    async def _store_some(self, store: StoreShape) -> int:
        """Write one batch of documents, snapshots first; gives how many posts and snapshots it was about."""
        told = await self._store_snapshots(store)
        outs = await self._ledger.outgoing(self._settings.store.batch_documents)
        if not outs:
            return told
        posts, tombstones, changes, stories = await self._documents(outs, store)
        await faults.stage("store.write")
        # Labels first: a post never points to a label that is not there.
        told_labels = await store.put("labels", stories)
        put = await store.put("posts", posts)
        gone = await store.put("posts", tombstones, only_existing=True)
        changed = await store.change("posts", changes)
        # In the same loop as they are written: none can come after its post's deletion.
        await store.remove("snapshots", [post_uri(out.did, out.rkey) for out in outs if out.state == "deleted"])
        faults.point("store.written")
        by_uri = {story["uri"]: why for story in stories if (why := told_labels.refused.get(story["_id"]))}
        by_uri |= put.refused | gone.refused | changed
        refused = {out: why for out in outs if (why := by_uri.get(post_uri(out.did, out.rkey)))}
        if refused:
            log.event("store_refused", stage="store", n=len(refused), why=next(iter(refused.values())))
        await self._ledger.stored(outs, refused)
        for name, n in (("stored", put.written), ("stale", put.stale), ("duplicate", put.duplicate)):
            self._metrics.add(name, n)
        self._metrics.add("refused", len(refused))
        return told + len(outs)

    async def _documents(
        self, outs: Sequence[Outgoing], store: StoreShape
    ) -> tuple[list[Document], list[Document], list[Document], list[Document]]:
        """(posts, tombstones of posts that were none of ours, changes of pruned posts, labels)."""
        keys = [(out.rkey, out.did) for out in outs]
        rows, labels = await self._reader.posts(keys), await self._ledger.labels_of(keys)
        failures, shown = await self._ledger.unlabelled_of(keys), await self._reader.shown(keys)
        gated = await self._ledger.gated_of(keys)
        former = await self._origins([key for key in shown if key not in rows], store)
        posts: list[Document] = []
        tombstones: list[Document] = []
        changes: list[Document] = []
        stories: list[Document] = []
        for out, key in zip(outs, keys, strict=True):
            own, vain = labels.get(key, []), failures.get(key, [])
            stories += [label_document(out, label) for label in own]
            document = post_document(out, rows.get(key), own, vain, shown.get(key, Shown()), gated.get(key))
            if document is None:
                changes.append(post_changes(out, own, vain, shown.get(key), former.get(key, ()), gated.get(key)))
            else:
                (posts if out.known else tombstones).append(document)
        return posts, tombstones, changes, stories

    async def _origins(self, pruned: Sequence[Key], store: StoreShape) -> dict[Key, list[Document]]:
        """Where the store says that posts came from which the journal no longer has."""
        keys = {post_uri(did, rkey): (rkey, did) for rkey, did in pruned}
        found = await store.find("posts", list(keys)) if keys else []
        return {keys[document["_id"]]: document.get("origins") or [] for document in found}

    async def _store_snapshots(self, store: StoreShape) -> int:
        """Write one batch of snapshots; gives how many."""
        after = await self._ledger.position("snapshot")
        some = await self._reader.snapshots(after, self._settings.store.batch_documents)
        if some:
            put = await store.put("snapshots", [snapshot_document(one) for one in some])
            if put.refused:
                log.event("store_refused", stage="store", n=len(put.refused), why=next(iter(put.refused.values())))
            await self._ledger.told_snapshots(some[-1].n)
            self._metrics.add("snapshots", put.written)
        return len(some)

    # ---- all loops ----

    async def _rest(self, loop: Loop) -> None:
        """Until a sign of work, also one that came meanwhile, or the poll interval is over."""
        await happened(self._signs[loop], self._settings.ledger.poll_seconds)
        self._signs[loop].clear()

    async def _count(self) -> None:
        """Keep the numbers of what waits fresh, spending little time on it (see COUNT_SHARE), until cancelled."""
        while True:
            began = monotonic()
            self._metrics.waiting = await self._ledger.waiting(self._tasks)
            self._metrics.unstored = await self._ledger.unstored()
            await asyncio.sleep(max(self._settings.ledger.poll_seconds, (monotonic() - began) / COUNT_SHARE))


def _made_at(row: PostRow | None, fields: Mapping[str, Any]) -> int:
    """When a post was made, in microseconds: by the relay or the author's program, the earlier one; 0: nobody says."""
    said = [row.event_at if row else None, fields.get("event_at"), fields.get("created_at")]
    # Of the store's documents they are texts.
    times = [parse_time(one) if isinstance(one, str) else one for one in said]
    return min((one for one in times if one is not None), default=0)
