"""Puts the parts together and runs them: the only file that knows every concrete part."""

import asyncio
import gc
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple

import uvloop

from civicsky import __version__, backups, datadir, filter as filters, log
from civicsky.annotate.votes import Forgetting
from civicsky.appview import AppView
from civicsky.authors import Authors, Work as AuthorsWork, read_lists
from civicsky.collecting import collect, housekeep
from civicsky.context import Contexts
from civicsky.decode import decode
from civicsky.errors import EXIT_DONE, EXIT_FAILED, Failed, Held, Usage, first_of
from civicsky.events.events import Events
from civicsky.feeds import Feeds, watch
from civicsky.gate import Gatekeeper, open_gate
from civicsky.health import Health, Look
from civicsky.journal import Journal, JournalReader, Numbered
from civicsky.label import ways_of
from civicsky.labelling import Labelling
from civicsky.ledger import Ledger, LedgerReader
from civicsky.lifecycle import Stop, happened, signals
from civicsky.loading import effective
from civicsky.local import find_weights
from civicsky.logfile import path_of
from civicsky.metrics import Metrics
from civicsky.model import Spend, format_time, now_us
from civicsky.notify.telling import Notifier, telling
from civicsky.prompt import prompt_hash
from civicsky.publishing import publish
from civicsky.recheck import Rechecks, recheck
from civicsky.rounds import Rounds
from civicsky.settings import Settings
from civicsky.slots import labelling_slots
from civicsky.source import Source
from civicsky.status import unbalanced
from civicsky.store import Store, open_store
from civicsky.task import Task, load_tasks
from civicsky.watch.systemd import Manager
from civicsky.watch.watchdog import Watchdog
from civicsky.worker import Pool

HOUSEKEEPING_SECONDS = 60.0
COPIES_SECONDS = 3600.0
BRIEF_SECONDS = 600.0
"""How long a start waits for a command that will soon let go, such as one that tells the store of a backlog."""
COMMAND_SECONDS = 120.0
"""How long a command waits for another one."""

Work = tuple[str, Callable[[], Coroutine[Any, Any, None]]]
"""A half's name and what runs it."""


class Beside(NamedTuple):
    """What runs beside the halves, and ends with them."""

    listeners: tuple[Callable[[Look], None], ...] = ()
    """Whom each look at the health is told."""
    works: tuple[Work, ...] = ()


NO_MODEL = (
    "no model chosen: give --model-url URL --model NAME for an OpenAI-compatible server "
    "(Groq, vLLM, Ollama, llama.cpp), or --model local for the small model that civicsky starts itself "
    "(good for trying things out, not for papers), or use `civicsky collect` to collect now and label later"
)
NO_MODEL_OF_WORKERS: Final = (
    "no model chosen for label workers (workers.url): give --model NAME, the one that they have; --model-url is theirs"
)
GARBAGE_AFTER: Final = 50_000
"""Objects made between two looks for garbage in cycles: some batches. There is next to none, and each look takes its
time from the stream."""


class Summary(NamedTuple):
    """How a run went."""

    started: str
    ended: str
    minutes: float
    frames: int
    posts: int
    kept: int
    labelled: int
    waiting: int
    why: str
    exit_code: int


def run_service(
    settings: Settings, halves: datadir.Halves, *, drain: bool = False, metrics: Metrics | None = None
) -> Summary:
    """Run until a limit or a signal. Raises `CivicskyError` with one line for the user."""
    return uvloop.run(serve(settings, halves, drain=drain, metrics=metrics or Metrics()))


async def serve(settings: Settings, halves: datadir.Halves, *, drain: bool, metrics: Metrics) -> Summary:
    """The same, in a loop that runs already."""
    gc.freeze()  # what was loaded stays: it need not be looked through again and again
    gc.set_threshold(GARBAGE_AFTER)
    if halves != "collect" and not settings.asks:
        raise Usage(NO_MODEL_OF_WORKERS if settings.workers.url else NO_MODEL)
    os.umask(0o077)  # what we write holds texts that their authors may delete: nobody else should have copied them
    if halves == "label":
        datadir.existing(settings.data_dir)
    folder = datadir.prepare(settings.data_dir)
    stop = Stop()
    metrics.pulse.bound = settings.limits.wedged_seconds
    watchdog = Watchdog(Manager.from_environment(os.environ), metrics, stop, endless=halves == "label")
    try:
        async with watchdog.on_duty():
            with signals(stop), ExitStack() as locks:
                await _lock(locks, folder, datadir.roles_of(halves), stop)
                if settings.log.file:  # not before the lock: another process may rotate it
                    locks.enter_context(log.to_file(path_of(settings.log.file, folder, halves), settings.log))
                return await _serve_locked(folder, settings, halves, metrics, stop, watchdog, drain=drain)
    except asyncio.CancelledError:
        raise Failed("ended by a second signal; what was in hand is read again at the next start") from None


async def _serve_locked(
    folder: Path, settings: Settings, halves: datadir.Halves, metrics: Metrics, stop: Stop, watchdog: Watchdog,
    *, drain: bool,
) -> Summary:  # fmt: skip
    try:
        async with (
            telling(settings, folder, "run" if halves == "both" else halves, metrics) as notifier,
            AsyncExitStack() as stack,
        ):
            served = await _prepare_http(stack, settings, metrics, stop, halves)
            works = await _prepare(stack, folder, settings, halves, metrics, stop)
            log.event("started", halves=halves, version=__version__, data_dir=str(folder))
            watchdog.started()
            told = _prepare_notify(notifier, folder, settings, halves)
            await _run(
                works, [Beside((_settle_log, watchdog.heed)), served, told], settings, metrics, stop, drain=drain
            )
        waiting = await _waiting(folder) if halves != "collect" else 0
    except BaseExceptionGroup as group:
        error = first_of(group)
        log.settle(at_once=True)
        log.event("failed", why=str(error) or type(error).__name__)
        raise error from group
    log.settle(at_once=True)
    return _summary(metrics, stop, waiting)


async def _lock(locks: ExitStack, folder: Path, roles: tuple[datadir.Role, ...], stop: Stop) -> None:
    """Take the locks; a command that has one for a moment is waited for. Raises `Held`."""
    patience = monotonic() + BRIEF_SECONDS
    while True:
        try:
            locks.enter_context(datadir.locked(folder, roles))
        except Held as held:
            if held.brief and monotonic() > patience:
                held.exit_code = EXIT_FAILED  # it will end: whoever starts us may try again
            if not held.brief or monotonic() > patience or await happened(stop.requested, 0.2):
                raise
        else:
            return


@asynccontextmanager
async def lock_soon(folder: Path, role: datadir.Role) -> AsyncIterator[None]:
    """A lock for a command, which lets go of it; another command that has it is waited for. Raises `Held`."""
    patience = monotonic() + COMMAND_SECONDS
    with ExitStack() as locks:
        while True:
            try:
                locks.enter_context(datadir.locked(folder, (role,), brief=True))
                break
            except Held as held:
                if not held.brief or monotonic() > patience:
                    raise
            await asyncio.sleep(0.2)
        yield


async def _prepare(
    stack: AsyncExitStack, folder: Path, settings: Settings, halves: datadir.Halves, metrics: Metrics, stop: Stop
) -> list[Work]:
    """Open and start what the halves need; gives what is then to be run, by name."""
    works: list[Work] = []
    wake: Callable[[], None] = _nobody
    if halves != "label":
        journal = await _opened(stack, Journal.open(folder / datadir.JOURNAL, settings.journal))
    if halves != "collect":
        labelling, work = await _prepare_label(stack, folder, settings, metrics, stop, strict=halves == "label")
        works.append(("label", work))
        wake = labelling.wake
    if halves != "label":
        works.append(("collect", await _prepare_collect(folder, settings, journal, metrics, stop, wake)))
    return works


async def _run(
    works: list[Work], beside: Sequence[Beside], settings: Settings, metrics: Metrics, stop: Stop, *, drain: bool
) -> None:
    """Run the halves to their end; when one fails, all stop."""
    async with asyncio.TaskGroup() as group:
        names = dict(works)
        listeners = [listener for one in beside for listener in one.listeners]
        health = Health(settings.health, metrics, collects="collect" in names, labels="label" in names)
        regular = [
            group.create_task(_minutes(settings, metrics), name="minute"),
            group.create_task(health.watch(listeners), name="health"),
            *(group.create_task(work(), name=name) for one in beside for name, work in one.works),
        ]
        if settings.limits.max_minutes:
            regular.append(group.create_task(_end_after(settings.limits.max_minutes, stop), name="max-minutes"))
        if "collect" not in names:
            regular.append(group.create_task(_nothing_collected(stop), name="no-collect"))
        if drain:
            stop.request("all labelled (--drain)", drain=True)
        await asyncio.wait([group.create_task(work(), name=name) for name, work in works])
        for task in regular:
            task.cancel()


async def _prepare_http(
    stack: AsyncExitStack, settings: Settings, metrics: Metrics, stop: Stop, halves: datadir.Halves
) -> Beside:
    """Answer over HTTP from now on, if the settings say where: also while databases are opened, and to the end."""
    if not settings.http.listen:
        return Beside()
    from civicsky.watch import web  # noqa: PLC0415  (whoever serves nothing does without: 4 MB)
    from civicsky.watch.monitor import Monitor  # noqa: PLC0415

    monitor = Monitor(settings, metrics, lambda: stop.why, metrics.pulse.stuck)
    answers = web.Answers(monitor.stuck, monitor.readiness, monitor.exposition)
    works: list[Work] = [("loop", monitor.watch_loop)]
    page = None
    if settings.http.page:
        from civicsky.page.gather import Page  # noqa: PLC0415

        page = Page(settings, metrics, monitor.readiness, halves)
        works.append(("page", page.gather))
    server = await stack.enter_async_context(web.serving(web.listen(settings.http), settings.http, answers, page))

    async def serve_on() -> None:
        await asyncio.shield(server)

    return Beside((monitor.heed,), (("http", serve_on), *works))


def _prepare_notify(notifier: Notifier | None, folder: Path, settings: Settings, halves: datadir.Halves) -> Beside:
    if notifier is None:
        return Beside()
    works: list[Work] = [("notify", notifier.watch)]
    if halves != "label":
        journal = partial(_tell_of_journal, folder, notifier, settings.notify.journal_seconds)
        works.append(("notify-journal", journal))
    return Beside((notifier.heed,), tuple(works))


async def _tell_of_journal(folder: Path, notifier: Notifier, seconds: float) -> None:
    """Look regularly for new gaps, and for a balance that does not close. Until cancelled."""
    reader = await JournalReader.open(folder / datadir.JOURNAL)
    try:
        while True:
            notifier.journal(await reader.gaps(), unbalanced(await reader.counts()))
            await asyncio.sleep(seconds)
    finally:
        await reader.close()


async def _prepare_collect(
    folder: Path, settings: Settings, journal: Journal, metrics: Metrics, stop: Stop, wake: Callable[[], None]
) -> Callable[[], Coroutine[Any, Any, None]]:
    await begin_run(folder, settings, journal)
    pool = Pool(settings.worker, settings.filter, metrics.pulse)
    await pool.start()
    positions = await journal.positions(settings.source.relays)
    source = Source(settings.source, positions, metrics, await journal.opened(), await journal.held_until())
    rechecks = Rechecks(journal.database)
    feeds = Feeds(journal.database, folder, partial(ledger_reader, folder))
    days = (settings.feeds.inbox_days, settings.journal.post_days)

    async def told() -> int:
        async with ledger_reader(folder) as ledger:
            return await ledger.position("snapshot") if ledger else 0

    async def work() -> None:
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            regular = [
                group.create_task(
                    housekeep(journal, partial(ledger_reader, folder), HOUSEKEEPING_SECONDS, metrics, stop),
                    name="housekeeping",
                ),
                group.create_task(_tidy_copies(folder, settings.backup.upgrade_days), name="upgrade-copies"),
                group.create_task(
                    watch(feeds, pool, told, days, settings.feeds.poll_seconds, stop, wake), name="feeds"
                ),
            ]
            if settings.appview.recheck:
                appview = AppView(settings.appview)
                stack.push_async_callback(appview.close)
                delay = settings.appview.recheck_after_seconds
                regular.append(
                    group.create_task(
                        recheck(rechecks, appview, metrics, stop, delay_seconds=delay, endless=True), name="recheck"
                    )
                )
            await collect(source, decode, pool, journal, settings, metrics, stop, wake)
            for task in regular:
                task.cancel()  # a call that hangs keeps nobody waiting; its round goes on at the next start

    return work


async def _tidy_copies(folder: Path, days: float) -> None:
    """Remove copies that upgrades left long ago, until cancelled."""
    while True:
        with suppress(OSError):  # it is tried again
            backups.tidy(folder, days, datetime.now(UTC))
        await asyncio.sleep(COPIES_SECONDS)


async def begin_run(folder: Path, settings: Settings, journal: Journal) -> None:
    """Note what writes the journal from now on. The caller holds the lock `collect`."""
    await bring_up(folder, settings)
    shown = json.dumps(effective(settings), sort_keys=True)
    digest = hashlib.sha256(shown.encode()).hexdigest()
    followed: dict[Numbered, int] = {}
    async with ledger_reader(folder) as ledger:
        if ledger:
            followed = {"change": await ledger.position(), "snapshot": await ledger.position("snapshot")}
    await journal.begin_run(__version__, filters.VERSION, shown, digest, followed)


async def bring_up(folder: Path, settings: Settings) -> None:
    """Bring databases that an older civicsky wrote to our format, unless they have a writer, which did it."""
    journal, ledger = folder / datadir.JOURNAL, folder / datadir.LEDGER
    if journal.is_file() and not await _is_ours(JournalReader.open(journal)):
        with suppress(Held), datadir.locked(folder, ("collect",), brief=True):
            await (await Journal.open(journal, settings.journal)).close()
    if ledger.is_file() and not await _is_ours(LedgerReader.open(ledger)):
        with suppress(Held), datadir.locked(folder, ("label",), brief=True):
            await (await Ledger.open(ledger)).close()


async def _is_ours(opening: Coroutine[Any, Any, JournalReader | LedgerReader]) -> bool:
    try:
        await (await opening).close()
    except Usage:
        return False
    return True


async def catch_up(folder: Path, settings: Settings, metrics: Metrics) -> None:
    """Let ledger and store follow the journal now, without a model: for a command that changed something.

    Raises `Held` when a labelling half runs, which does it itself, or a command is at work for long; `Transient` or
    `Refused` of the store.
    """
    async with lock_soon(folder, "label"), AsyncExitStack() as stack:
        parts = await open_labelling(stack, folder, settings, metrics, Stop(), strict=True)
        await parts.labelling.catch_up(parts.store)
        await Authors(parts.ledger.database).tell(parts.store)
        once = Stop()
        once.collected.set()
        await publish(parts.reader, parts.store, metrics, once, strict=True)


class Parts(NamedTuple):
    """The labelling half without a model."""

    labelling: Labelling
    reader: JournalReader
    ledger: Ledger
    store: Store
    tasks: Mapping[str, Task]
    events: Events | None


async def open_labelling(
    stack: AsyncExitStack,
    folder: Path,
    settings: Settings,
    metrics: Metrics,
    stop: Stop,
    *,
    strict: bool,
    asks: bool = False,
    gate: Gatekeeper | None = None,
) -> Parts:
    """Open what the labelling half needs besides a model; `stack` closes it. The caller holds the lock `label`.

    `asks`: whether posts will be asked about.
    """
    files = load_tasks(settings.label.tasks)
    tasks = {task.name: task for task, _ in files}
    await bring_up(folder, settings)
    reader = await _opened(stack, JournalReader.open(folder / datadir.JOURNAL))
    ledger = await _opened(stack, Ledger.open(folder / datadir.LEDGER))
    for task, text in files:
        for way in ways_of(settings.label):
            await ledger.register_task(task.name, task.version, prompt_hash(task, way), text)
    store = await _opened(stack, open_store(settings.store, folder / datadir.POSTS))
    contexts = None
    if settings.context.quote or settings.context.root or settings.context.parent:
        appview = AppView(settings.appview)
        stack.push_async_callback(appview.close)
        contexts = Contexts(settings.context, settings.label.max_chars, appview, ledger)
        stack.push_async_callback(contexts.close)
    rounds = Rounds(ledger.database)
    if gate is not None:
        await ledger.register_gate(gate.task, gate.gate.version, gate.gate.text())
        log.event("label_gate", stage="label", task=gate.task, gate=gate.gate.version, threshold=gate.gate.threshold)
    events = await _open_events(stack, folder, settings, ledger, metrics) if asks else None
    labelling = Labelling(
        reader, ledger, rounds, contexts, tasks, settings, metrics, stop, strict=strict, gate=gate, events=events,
        by_hand=Forgetting(folder),
    )  # fmt: skip
    return Parts(labelling, reader, ledger, store, tasks, events)


async def _open_events(
    stack: AsyncExitStack, folder: Path, settings: Settings, ledger: Ledger, metrics: Metrics
) -> Events | None:
    """Articles on current events, if the settings want any."""
    if settings.events.folder is None:
        return None

    async def paid(summaries: Sequence[tuple[int, Spend]]) -> None:
        for spend in await ledger.paid(summaries):
            for name, n in (("calls", spend.calls), ("tokens_in", spend.tokens_in), ("tokens_out", spend.tokens_out)):
                metrics.add(name, n)
            metrics.cost += spend.cost

    model = settings.label.model if settings.label.model != "local" else None  # it is too small to sum up
    events = await Events.open(settings.events, folder / datadir.EVENTS, model, paid)
    stack.push_async_callback(events.close)
    return events


async def _prepare_label(
    stack: AsyncExitStack, folder: Path, settings: Settings, metrics: Metrics, stop: Stop, *, strict: bool
) -> tuple[Labelling, Callable[[], Coroutine[Any, Any, None]]]:
    weights = find_weights(settings.label.gguf) if settings.label.model == "local" else None
    gate = open_gate(settings.gate, load_tasks(settings.label.tasks))
    labelling, reader, ledger, store, tasks, events = await open_labelling(
        stack, folder, settings, metrics, stop, strict=strict, asks=True, gate=gate
    )
    authors = await _prepare_authors(stack, settings, ledger, store, metrics)
    abilities = await ledger.abilities(weights.name if weights else settings.label.model)
    spent = await ledger.spent()

    async def work() -> None:
        async with labelling_slots(settings, folder, tasks, weights, abilities, spent, metrics, stop) as slots:
            try:
                async with asyncio.timeout(None) as deadline, asyncio.TaskGroup() as group:
                    arm = group.create_task(_arm(deadline, stop, settings, endless=strict), name="drain")
                    group.create_task(publish(reader, store, metrics, stop, strict=strict), name="publish")
                    profiles = group.create_task(authors.run(settings.ledger.poll_seconds, stop), name="authors")
                    regular = [arm, profiles]
                    if events:
                        await events.sync()
                        regular.append(group.create_task(events.run(), name="events"))
                    await labelling.run(slots, store)
                    for task in regular:
                        task.cancel()
                    await authors.tell()
            except TimeoutError:
                log.event("drain_over", seconds=settings.limits.drain_seconds)

    return labelling, work


async def _prepare_authors(
    stack: AsyncExitStack, settings: Settings, ledger: Ledger, store: Store, metrics: Metrics
) -> AuthorsWork:
    appview = None
    lists = read_lists(settings.authors.lists) if settings.authors.fetch else {}
    if settings.authors.fetch:
        appview = AppView(settings.appview)
        stack.push_async_callback(appview.close)
    return AuthorsWork(Authors(ledger.database), appview, store, settings.authors, lists, metrics)


async def _arm(deadline: asyncio.Timeout, stop: Stop, settings: Settings, *, endless: bool) -> None:
    """Bound the time to finish. `civicsky label --drain` may take as long as it needs, until a signal comes."""
    await (stop.hurry if endless else stop.requested).wait()
    deadline.reschedule(asyncio.get_running_loop().time() + settings.limits.drain_seconds)


async def _minutes(settings: Settings, metrics: Metrics) -> None:
    while True:
        await asyncio.sleep(settings.log.minute_seconds)
        log.event("minute", **minute_line(metrics))


def _settle_log(_look: Look) -> None:
    log.settle()


def minute_line(metrics: Metrics) -> dict[str, Any]:
    """The fixed fields of the regular line."""
    health, why = metrics.health()
    counts = metrics.counts
    lag = metrics.lag_seconds
    return {
        "health": health,
        "why": why,
        "host": metrics.host,
        "lag_s": None if lag is None else round(lag, 1),
        "frames": counts["frames"],
        "frames_per_s": round(metrics.rate("minute", "frames"), 1),
        "posts": counts["posts"],
        "kept": counts["kept"],
        "labelled": counts["labelled"],
        "labelled_per_s": round(metrics.rate("minute", "labelled"), 1),
        "failed": counts["failed"],
        "stored": counts["stored"],
        "waiting": metrics.waiting,
    }


async def _end_after(minutes: float, stop: Stop) -> None:
    if not await happened(stop.requested, minutes * 60):
        stop.request(f"limit of {minutes:g} minutes", drain=True)


async def _nothing_collected(stop: Stop) -> None:
    """`label` alone: another process may collect, so the journal counts as complete only when we are told to end."""
    await stop.requested.wait()
    stop.collected.set()


async def _opened(stack: AsyncExitStack, opening: Coroutine[Any, Any, Any]) -> Any:
    part = await opening
    stack.push_async_callback(part.close)
    return part


@asynccontextmanager
async def ledger_reader(folder: Path) -> AsyncIterator[LedgerReader | None]:
    """The labelling half's ledger; None when there is none yet."""
    if not (folder / datadir.LEDGER).is_file():
        yield None
        return
    reader = await LedgerReader.open(folder / datadir.LEDGER)
    try:
        yield reader
    finally:
        await reader.close()


async def _waiting(folder: Path) -> int:
    """Posts without a label, and changes that the ledger has not seen."""
    ledger = await LedgerReader.open(folder / datadir.LEDGER)
    journal = await JournalReader.open(folder / datadir.JOURNAL)
    try:
        unseen = await journal.last_change() - await ledger.position()
        return int((await ledger.summary())["waiting"]) + unseen
    finally:
        await ledger.close()
        await journal.close()


def _summary(metrics: Metrics, stop: Stop, waiting: int) -> Summary:
    ended = now_us()
    unfinished = stop.drain and waiting > 0
    summary = Summary(
        started=format_time(metrics.started_at),
        ended=format_time(ended),
        minutes=round((ended - metrics.started_at) / 60e6, 2),
        frames=metrics.counts["frames"],
        posts=metrics.counts["posts"],
        kept=metrics.counts["kept"],
        labelled=metrics.counts["labelled"],
        waiting=waiting,
        why=stop.why,
        exit_code=EXIT_FAILED if unfinished else EXIT_DONE,
    )
    log.event("summary", **{k: v for k, v in summary._asdict().items() if k != "exit_code"})
    return summary


def _nobody() -> None:
    """Nothing to wake: the labelling half runs elsewhere, or not at all."""
