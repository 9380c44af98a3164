"""The slots of a run or a command: how many calls may be in flight, and by whom they are made.

That is the servers that the settings name, a local model that is started here, or label workers on other machines.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

from civicsky.endpoint import Endpoints, open_endpoints
from civicsky.label import Slot
from civicsky.lifecycle import Stop
from civicsky.local import JSON_TOKENS, WORD_TOKENS, LocalServer, threads
from civicsky.metrics import Metrics
from civicsky.model import Spend
from civicsky.settings import Label, Settings
from civicsky.task import Task
from civicsky.workers import told


def labelling_slots(
    settings: Settings, folder: Path, tasks: Mapping[str, Task], weights: Path | None, abilities: Mapping[str, str],
    spent: Spend, metrics: Metrics, stop: Stop,
) -> AbstractAsyncContextManager[list[Slot]]:  # fmt: skip
    """Those of the labelling half: by way of workers, if the settings want that."""
    if settings.workers.url:
        return _worker_slots(settings, folder, tasks, weights, abilities, spent, metrics, stop)
    return model_slots(settings.label, tasks, weights, abilities, spent)


@asynccontextmanager
async def model_slots(
    label: Label, tasks: Mapping[str, Task], weights: Path | None, abilities: Mapping[str, str], spent: Spend
) -> AsyncIterator[list[Slot]]:
    """Slots that ask the chosen model about these tasks; with `weights`, a local one that is started here.

    `abilities` and `spent` are what is known of its servers, and of today's use of them.
    """
    async with (
        model_endpoints(label, tasks, weights, abilities, spent) as (endpoints, count),
        AsyncExitStack() as stack,
    ):
        yield _slots(stack, endpoints, count, tasks, label)


@asynccontextmanager
async def _worker_slots(
    settings: Settings, folder: Path, tasks: Mapping[str, Task], weights: Path | None, abilities: Mapping[str, str],
    spent: Spend, metrics: Metrics, stop: Stop,
) -> AsyncIterator[list[Slot]]:  # fmt: skip
    """The same by way of workers; `weights` tell which local model is theirs."""
    from civicsky.workers.dispatch import NAME, dispatching  # noqa: PLC0415  (only with `workers.url`)

    local = LocalServer(weights, 1, WORD_TOKENS) if weights else None  # it is not started
    model, fingerprint = (local.name, local.fingerprint) if local else (settings.label.model, None)
    async with (
        dispatching(settings.workers, model, fingerprint, metrics, stop) as dispatcher,
        asyncio.TaskGroup() as group,
        AsyncExitStack() as stack,
    ):
        stack.callback(group.create_task(_tell_workers(folder, metrics), name="workers-told").cancel)
        endpoints = open_endpoints(settings.label, local, abilities, spent, {NAME: dispatcher})
        yield _slots(stack, endpoints, settings.label.slots, tasks, settings.label)


async def _tell_workers(folder: Path, metrics: Metrics) -> None:
    """Tell other processes, such as `civicsky status`, how the workers are. Until cancelled."""
    before = 0
    try:
        while True:
            await asyncio.sleep(told.EVERY_SECONDS)
            told.write(folder, metrics.workers, (metrics.workers.results - before) / told.EVERY_SECONDS)
            before = metrics.workers.results
    finally:
        told.remove(folder)


def _slots(
    stack: AsyncExitStack, endpoints: Endpoints, count: int, tasks: Mapping[str, Task], label: Label
) -> list[Slot]:
    slots = [Slot(endpoints, tasks, label) for _ in range(count)]
    for slot in slots:
        stack.push_async_callback(slot.close)
    return slots


@asynccontextmanager
async def model_endpoints(
    label: Label, tasks: Mapping[str, Task], weights: Path | None, abilities: Mapping[str, str], spent: Spend
) -> AsyncIterator[tuple[Endpoints, int]]:
    """The servers, and how many calls are to be in flight. See `model_slots`."""
    async with AsyncExitStack() as stack:
        local, count = None, label.slots
        if weights is not None:
            # It gains nothing from more calls than it has processors.
            count = min(label.slots, threads())
            words = sum(len(task.words) for task in tasks.values()) if label.way in {"auto", "words"} else 0
            # A slot of the server for each question of each caller: then each finds its own preamble in a cache.
            local = LocalServer(weights, count * max(1, words), WORD_TOKENS if words else JSON_TOKENS)
            stack.push_async_callback(local.stop)
            await local.start()
            group = await stack.enter_async_context(asyncio.TaskGroup())
            watch = group.create_task(local.supervise(), name="model")
            stack.callback(watch.cancel)
        yield open_endpoints(label, local, abilities, spent), count
