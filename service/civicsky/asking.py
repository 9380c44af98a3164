"""Between queue and ledger: a post's question is put, to the cache or to the model, and its answer kept.

It knows model, ledger, rounds and contexts only by the small shapes declared here.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple, Protocol, get_args

from civicsky import faults, log
from civicsky.endpoint import PATIENCE
from civicsky.errors import UNREACHABLE, BadInput, Refused, Transient
from civicsky.events.giving import EventsShape, First, Writer, is_unclear
from civicsky.lifecycle import Stop
from civicsky.metrics import Metrics
from civicsky.model import STREAM, Answer, Asked, Attempts, Job, Judged, LabelRow, Question, Spend, now_us, post_uri
from civicsky.prompt import Message, Way
from civicsky.pulse import Work
from civicsky.record import readable
from civicsky.settings import Label as LabelSettings
from civicsky.task import Task
from civicsky.workers.wanted import Withdrawn, wanted_while

UNUSABLE_IN_A_ROW = 10


class SlotShape(Protocol):
    """See `label.Slot`."""

    async def probe(self) -> None: ...
    def delay(self) -> float: ...
    def abilities(self) -> Mapping[str, str]: ...
    def question(self, task: str) -> Question: ...
    async def ask(self, task: str, posts: Sequence[Asked]) -> list[Answer | BadInput]: ...
    async def is_well(self) -> tuple[bool, Spend]: ...
    async def write(self, messages: Sequence[Message], max_tokens: int) -> tuple[str, Spend]: ...


Also = Callable[[Any], object]
"""See `ledger.Also`."""


class LedgerShape(Protocol):
    """See `ledger.Ledger`."""

    async def looked_up(
        self, jobs: Iterable[Job], keys: Iterable[str]
    ) -> tuple[set[int], dict[str, tuple[str, Answer]]]: ...
    async def answered(self, job: Job, label: LabelRow, also: Also | None = None, *, more: bool = False) -> bool: ...
    async def settle(self, job: Job, label: LabelRow, also: Also | None = None) -> bool: ...
    async def put_off(
        self, job: Job, reason: str, seconds: float, attempts: Attempts,
        *, dead: bool = False, spend: Spend | None = None, raw: str = "",
    ) -> bool: ...  # fmt: skip
    async def admit(self, judged: Sequence[tuple[Job, Judged]]) -> tuple[set[int], set[int]]: ...
    async def spent(self) -> Spend: ...
    async def remember(self, endpoint: str, model: str, ability: str) -> None: ...


class RoundsShape(Protocol):
    """See `rounds.Rounds`."""

    def anchoring(self, label: LabelRow, most: int) -> Also | None: ...
    async def probed(self, job: Job, answer: Answer | None, reason: str = "") -> bool: ...


class ContextsShape(Protocol):
    """See `context.Contexts`."""

    why: str

    async def of(self, task: Task, fields: dict[str, Any]) -> str: ...
    def forget(self, did: str, rkey: str = "") -> None: ...
    def recall(self, did: str) -> None: ...


class GateShape(Protocol):
    """See `gate.Gatekeeper`."""

    @property
    def task(self) -> str: ...
    async def judge(self, texts: Sequence[str]) -> list[Judged]: ...


class Item(NamedTuple):
    """What waits in the queue."""

    job: Job
    fields: dict[str, Any]
    """Of the post, as `record.extract` or the store's document has them."""
    at: int = 0
    """When it was made, in microseconds since 1970 UTC, by the relay or the author's program: the earlier one."""


def longest(settings: LabelSettings) -> float:
    """Seconds that a slot may wait for one call: its own, or another slot's that finds out how each server is asked."""
    return (1 + len(settings.more_urls)) * len(get_args(Way)) * (settings.request_seconds + PATIENCE)


def requests_of(items: Sequence[Item]) -> list[list[Item]]:
    """The posts that share a request: of one task. One that came back is asked alone: it may be what spoilt others'."""
    shared: dict[tuple[str, int], list[Item]] = {}
    for item in items:
        shared.setdefault((item.job.task, item.job.id if any(item.job.attempts) else 0), []).append(item)
    return list(shared.values())


class Asking:
    """Shared by all slots: one state of the model, one count of answers. Keeps no post beyond a call."""

    def __init__(
        self,
        ledger: LedgerShape,
        rounds: RoundsShape,
        contexts: ContextsShape | None,
        tasks: Mapping[str, Task],
        settings: LabelSettings,
        metrics: Metrics,
        stop: Stop,
        gate: GateShape | None = None,
        events: EventsShape | None = None,
    ) -> None:
        self._ledger, self._rounds, self._contexts, self._gate = ledger, rounds, contexts, gate
        self._events = events
        self._tasks, self._settings, self._metrics, self._stop = tasks, settings, metrics, stop
        self.answers = 0
        """That the model gave."""
        self._unusable = 0
        self._was_spent = False
        self._remembered: dict[str, str] = {}
        self._longest = longest(settings)
        metrics.labels.update({(task, what): 0 for task in tasks for what in ("labelled", "failed", "gated")})

    @property
    def has_answers(self) -> bool:
        """Whether the model gave one: then it is known how it is asked."""
        return self.answers > 0

    async def is_spent(self) -> bool:
        """Whether today's budget is spent. It can be passed by the calls that are in flight when it is reached."""
        bounds = self._settings
        if bounds.budget_tokens is None and bounds.budget_money is None:
            return False
        spend = await self._ledger.spent()
        tokens = spend.tokens_in + spend.tokens_out
        over = (bounds.budget_tokens is not None and tokens >= bounds.budget_tokens) or (
            bounds.budget_money is not None and spend.cost >= bounds.budget_money
        )
        if over != self._was_spent:
            self._was_spent = over
            log.event("label_budget", stage="label", spent=over, tokens=tokens, cost=round(spend.cost, 4))
        return over

    async def ask(self, slot: SlotShape, task: str, items: Sequence[Item]) -> None:
        """Have these posts labelled under one task, in one request; every one is kept, put off, or failed.

        Raises `Refused` when no server will have us. Those that are not asked stay as they are: when the run ends
        hurriedly, or the budget is spent.
        """
        asked = await self._asked(task, items)
        if self._events is None:
            await self._put(slot, task, asked, {})
            return
        made = {item.job.id: item.at for item in items}
        again, after = list[tuple[Job, Asked]](), dict[int, int]()
        for first in await self._put(slot, task, await self._with_articles(slot, asked, made, named=True), {}):
            for job, text in await self._with_articles(slot, [(first.job, first.asked)], made, named=False):
                if text.events:
                    again.append((job, text))
                    after[job.id] = first.label.at
                else:
                    await self._settle(first)
        if again:
            await self._put(slot, task, again, after)

    async def _put(
        self, slot: SlotShape, task: str, asked: Sequence[tuple[Job, Asked]], after: Mapping[int, int]
    ) -> list[First]:
        """Have these labelled, by the cache or by the model. `after`: by job the time of the answer before, if any.

        Gives those whose answer is kept and may not be the last one.
        """
        left, firsts = await self._from_cache(slot.question(task), asked, after)
        # A second question is about a post that was let pass, or whose first answer was there.
        if left and not after and self._gate is not None and self._gate.task == task:
            left = await self._admitted(self._gate, task, left)
        waits = slot.delay() > 0
        if not left or not await self.is_free(slot):
            return firsts
        with self.at_work():
            if await self.is_spent():
                return firsts
            if waits:
                # Its turn may have come hours later: what its author took back meanwhile is sent to nobody.
                due, _ = await self._ledger.looked_up([job for job, _ in left], ())
                left = [(job, text) for job, text in left if job.id in due]
            if left:
                firsts += await self._ask_model(slot, task, left, after)
        return firsts

    async def _with_articles(
        self, slot: SlotShape, asked: Sequence[tuple[Job, Asked]], made: Mapping[int, int], *, named: bool
    ) -> list[tuple[Job, Asked]]:
        """The same with articles, where there are some; without those that must wait for them.

        A probe is given none: anchors had none.
        """
        assert self._events is not None
        found = []
        for job, text in asked:
            if job.is_probe:
                found.append((job, text))
                continue
            writer = None if await self.is_spent() else Writer(self, slot)
            try:
                given = await self._events.of(text.text, made[job.id], writer, named=named)
            except Transient as error:
                self._note_down(error)
                seconds = max(slot.delay(), self._settings.pause_seconds)
                await self._give_back(job, "context_unreachable", seconds, job.attempts, dead=False, spend=None)
                continue
            found.append((job, given.to(text) if given else text))
        return found

    async def _ask_model(
        self, slot: SlotShape, task: str, left: Sequence[tuple[Job, Asked]], after: Mapping[int, int]
    ) -> list[First]:
        firsts = list[First]()
        before = self.answers
        try:
            with wanted_while(partial(self._are_wanted, [job for job, _ in left])):
                answers = await slot.ask(task, [text for _, text in left])
        except Withdrawn:
            return firsts  # the ledger knows
        except Transient as error:
            self._note_down(error)
            seconds = max(slot.delay(), self._settings.pause_seconds)
            at_fault = await self.is_at_fault(slot, error, before)
            for number, (job, _) in enumerate(left):
                attempts = _one_more(job.attempts, error) if at_fault else job.attempts
                dead = self._is_beyond(attempts)
                await self._give_back(job, UNREACHABLE, seconds, attempts, dead=dead,
                                      spend=None if number else error.spend)  # fmt: skip
            return firsts
        for (job, text), answer in zip(left, answers, strict=True):
            if isinstance(answer, BadInput):
                await self._refuse(job, answer)
            else:
                self._note_up()
                await faults.stage("label.answer")
                firsts += await self._keep(job, text, answer, after)
        await self._remember(slot, slot.question(task).model)
        return firsts

    async def _are_wanted(self, jobs: Sequence[Job]) -> bool:
        """Whether any of them still is; an author may have taken back what waits to be sent."""
        due, _ = await self._ledger.looked_up(jobs, ())
        return bool(due)

    async def is_at_fault(self, slot: SlotShape, error: Transient, before: int) -> bool:
        """Whether a call failed by its post: only when it was sent, and others succeed.

        When there are no others, the server is asked: else a post that breaks it would be asked about for ever.
        """
        if error.spend is None or not error.spend.calls:
            return False
        if self.answers > before or error.busy or self._stop.hurried:
            return self.answers > before
        is_well, cost = await slot.is_well()
        error.spend = error.spend.plus(cost)
        return is_well

    async def _asked(self, task: str, items: Sequence[Item]) -> list[tuple[Job, Asked]]:
        """Each post as the model reads it, but for articles; without those whose surroundings cannot be fetched now."""
        asked: list[tuple[Job, Asked]] = []
        contexts: list[str | Transient] = [""] * len(items)
        if self._contexts is not None:
            contexts = await asyncio.gather(*(self._context(self._contexts, task, item) for item in items))
        self._note_contexts(self._contexts.why if self._contexts else "")
        for item, context in zip(items, contexts, strict=True):
            if isinstance(context, str):
                self._metrics.appview_why = "" if context else self._metrics.appview_why
                asked.append((item.job, Asked(readable(item.fields)[: self._settings.max_chars], context)))
            else:
                seconds = max(context.retry_after or 0.0, self._settings.pause_max_seconds)
                await self._give_back(
                    item.job, "context_unreachable", seconds, item.job.attempts, dead=False, spend=None
                )
        return asked

    async def _context(self, contexts: ContextsShape, task: str, item: Item) -> str | Transient:
        try:
            return await contexts.of(self._tasks[task], item.fields)
        except (Transient, Refused) as error:
            return error if isinstance(error, Transient) else Transient(str(error))
        except BadInput as bad:
            return Transient(f"the public API's answer cannot be used ({bad.reason})")

    async def _from_cache(
        self, question: Question, asked: Sequence[tuple[Job, Asked]], after: Mapping[int, int]
    ) -> tuple[list[tuple[Job, Asked]], list[First]]:
        """Keep what was paid for before; gives what was not, and is still wanted. A probe is always asked."""
        keys = {job.id: question.key(text) for job, text in asked if not job.is_probe}
        due, known = await self._ledger.looked_up([job for job, _ in asked], keys.values())
        left, firsts = list[tuple[Job, Asked]](), list[First]()
        for job, text in asked:
            if job.id in keys and keys[job.id] in known:
                label_id, answer = known[keys[job.id]]
                copied = answer._replace(
                    cached_from=label_id, calls=0, tokens_in=0, tokens_out=0, tokens_reasoning=0, latency_ms=0,
                    cost=None if answer.cost is None else 0.0, events=text.events or None,
                )  # fmt: skip
                firsts += await self._keep(job, text, copied, after)
            elif job.id in due:
                left.append((job, text))
        return left, firsts

    async def _admitted(
        self, gate: GateShape, task: str, asked: Sequence[tuple[Job, Asked]]
    ) -> list[tuple[Job, Asked]]:
        """Those about which the gate has the model asked. A round and a probe ask again, so it is not asked."""
        fresh = [(job, text) for job, text in asked if job.run == STREAM]
        if not fresh:
            return list(asked)
        with self.at_work():
            judged = await gate.judge([text.text for _, text in fresh])
            jobs = [job for job, _ in fresh]
            admitted, kept_back = await self._ledger.admit(list(zip(jobs, judged, strict=True)))
        self._metrics.add("gated", len(kept_back))
        self._metrics.labels[task, "gated"] += len(kept_back)
        return [(job, text) for job, text in asked if job.run != STREAM or job.id in admitted]

    async def _keep(self, job: Job, text: Asked, answer: Answer, after: Mapping[int, int]) -> list[First]:
        """Keep an answer; gives it when articles may tell what the post means, and it had none."""
        task = self._tasks[job.task]
        label = LabelRow(
            label_id=_label_id(job, answer),
            did=job.did,
            rkey=job.rkey,
            cid=job.cid,
            task=task.name,
            task_version=task.version,
            run=job.run,
            p_sampled=job.p_sampled,
            # Of two answers the later one decides, also when the clock was set back between them.
            at=max(now_us(), after.get(job.id, 0) + 1),
            attempts=sum(job.attempts) + 1,
            answer=answer,
        )
        self._note_spend(answer.calls, answer.tokens_in, answer.tokens_out, answer.cost or 0.0)
        if job.is_probe:
            await self._rounds.probed(job, answer)
            return []
        if self._events is not None and not text.events and is_unclear(task, answer, self._events.unclear):
            if await self._ledger.answered(job, label, more=True):
                return [First(job, text, label)]
            self._metrics.add("unwanted")
            return []
        self._count(job, wanted=await self._ledger.answered(job, label, self._anchoring(label)))
        return []

    async def _settle(self, first: First) -> None:
        """There are no articles for it: its answer is the last one."""
        self._count(first.job, wanted=await self._ledger.settle(first.job, first.label, self._anchoring(first.label)))

    def _anchoring(self, label: LabelRow) -> Also | None:
        # With articles it is another question, which a probe could not put again once they are gone.
        if not self._settings.anchors or (label.answer and label.answer.events):
            return None
        return self._rounds.anchoring(label, self._settings.anchors)

    def _count(self, job: Job, *, wanted: bool) -> None:
        self._metrics.add("labelled" if wanted else "unwanted")
        self._metrics.labels[job.task, "labelled"] += wanted

    async def _refuse(self, job: Job, bad: BadInput) -> None:
        """An answer of no use: one is that post's; many in a row are the server's."""
        if bad.reason == UNREACHABLE:  # though others of the same call had answers
            sent = isinstance(bad.spend, Spend) and bad.spend.calls > 0
            attempts = job.attempts._replace(transport=job.attempts.transport + sent)
            dead = self._is_beyond(attempts)
            await self._give_back(job, bad.reason, self._settings.pause_seconds, attempts, dead=dead, spend=bad.spend)
            return
        self._unusable += 1
        if self._unusable == UNUSABLE_IN_A_ROW:
            log.event("label_unusable", stage="label", reason=bad.reason, n=self._unusable)
            self._metrics.model_why = f"the model's answers are of no use ({bad.reason})"
        attempts = job.attempts._replace(answer=job.attempts.answer + 1)
        dead = self._is_beyond(attempts)
        await self._give_back(
            job, bad.reason, self._settings.pause_seconds, attempts, dead=dead, spend=bad.spend, raw=bad.raw
        )

    async def _give_back(
        self, job: Job, reason: str, seconds: float, attempts: Attempts,
        *, dead: bool, spend: Spend | None, raw: str = "",
    ) -> None:  # fmt: skip
        log.event("label_failed", stage="label", uri=post_uri(job.did, job.rkey), reason=reason, dead=dead)
        if spend:
            self._note_spend(spend.calls, spend.tokens_in, spend.tokens_out, spend.cost)
        is_post = not job.is_probe
        kept = await self._ledger.put_off(job, reason, seconds, attempts, dead=dead and is_post, spend=spend, raw=raw)
        if dead and kept and is_post:
            self._metrics.add("failed")
            self._metrics.labels[job.task, "failed"] += 1
        elif dead and kept:
            await self._rounds.probed(job, None, reason)

    def at_work(self) -> AbstractContextManager[Work]:
        """While a call is on its way."""
        return self._metrics.pulse.work("label", self._longest)

    async def is_free(self, slot: SlotShape) -> bool:
        """Wait until a server may be called. False when the run ends hurriedly meanwhile."""
        while (left := slot.delay()) > 0:
            if self._stop.hurried:
                return False
            await asyncio.sleep(min(left, 0.5))
        return True

    async def _remember(self, slot: SlotShape, model: str) -> None:
        """Keep what was found out about the servers, so that the next start need not find it out again."""
        for endpoint, ability in slot.abilities().items():
            if self._remembered.get(endpoint) != ability:
                self._remembered[endpoint] = ability
                await self._ledger.remember(endpoint, model, ability)

    def _is_beyond(self, attempts: Attempts) -> bool:
        bounds = self._settings
        return (
            attempts.answer >= bounds.attempts
            or attempts.transport >= bounds.transport_attempts
            or attempts.overload >= bounds.overload_attempts
        )

    def _note_spend(self, calls: int, tokens_in: int, tokens_out: int, cost: float) -> None:
        for name, n in (("calls", calls), ("tokens_in", tokens_in), ("tokens_out", tokens_out)):
            self._metrics.add(name, n)
        self._metrics.cost += cost

    def _note_contexts(self, why: str) -> None:
        if bool(why) != bool(self._metrics.context_why):
            log.event("appview_down" if why else "appview_up", stage="label", **({"why": why} if why else {}))
        self._metrics.context_why = why

    def _note_down(self, error: Transient) -> None:
        if not self._metrics.model_why:
            log.event("label_down", stage="label", why=str(error))
        self._metrics.model_why = str(error)

    def _note_up(self) -> None:
        self.answers += 1
        self._unusable = 0
        if self._metrics.model_why or self.answers == 1:
            log.event("label_up", stage="label")
        self._metrics.model_why = ""


def _one_more(attempts: Attempts, error: Transient) -> Attempts:
    if error.busy:
        return attempts._replace(overload=attempts.overload + 1)
    return attempts._replace(transport=attempts.transport + 1)


def _label_id(job: Job, answer: Answer) -> str:
    """The same question about the same text has the same id, also from another data directory: stores hold it once."""
    parts = [post_uri(job.did, job.rkey), job.cid, job.task, answer.prompt_hash, answer.model_asked, answer.parameters]
    parts += [answer.context_hash] if answer.context_hash else []
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
