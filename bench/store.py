"""Stores: documents a second into a real MongoDB and into SQLite, as the labelling half writes them.

Made-up posts go through the service's own stores in batches of 500: first new ones, then the same in a newer version,
as when a label comes. MongoDB is a one-node replica set on this machine and acknowledges what its majority has
journalled; SQLite waits for the disk at each commit. Processor time is that of this process, without mongod's own.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench.part import Against, Ask, CannotRun, Fact, Figure, Measure, Part
from bench.processes import folder
from civicsky.settings import Store as StoreSettings
from civicsky.store import MongoStore, SqliteStore, Store
from conftest import Mongod, _loadable as why_not
from support.large_store import post

PART: Final = Part("store", "Stores", "documents a second into a real mongod and into SQLite, in batches of 500")
POSTS: Final = 20_000
BATCH: Final = StoreSettings().batch_documents
MOTIONS: Final = ("inserts", "updates")


def rounds(ask: Ask) -> Iterator[Measure]:
    """Both stores in each round, each empty at first."""
    posts = ask.size(POSTS, least=BATCH)
    yield Fact("documents", posts)
    yield Fact("documents in a batch", BATCH)
    draw = random.Random(7)
    made = [post(number, draw) for number in range(posts)]
    with folder() as where, _mongod(where) as server:
        if isinstance(server, str):
            yield CannotRun(f"MongoDB: {server}")
        for turn in range(ask.rounds):
            ask.say(f"store: round {turn + 1} of {ask.rounds}")
            took = {"SQLite": asyncio.run(_timed(_sqlite(where / f"{turn}.db"), made))}
            if isinstance(server, Mongod):
                took["MongoDB"] = asyncio.run(_timed(_mongo(server.uri, f"round{turn}"), made))
            for name, values in took.items():
                for motion, (rate, cpu_us) in zip(MOTIONS, values, strict=True):
                    yield Figure(f"{name}, {motion}", "documents/s", rate)
                    yield Figure(f"{name}, {motion}: CPU", "us/document", cpu_us, "lower")
            if len(took) > 1:
                for motion, (ours, _), (theirs, _) in zip(MOTIONS, took["MongoDB"], took["SQLite"], strict=True):
                    yield Against(f"MongoDB over SQLite, {motion}, documents/s", ours / theirs)


async def _timed(opened: Awaitable[Store], made: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """(documents a second, microseconds of processor time a document) of inserts and of updates; all were written."""
    store = await opened
    took = []
    try:
        for v in range(1, len(MOTIONS) + 1):
            batches = [
                [{**document, "v": v} for document in made[at : at + BATCH]] for at in range(0, len(made), BATCH)
            ]
            began, cpu, written = time.perf_counter(), time.process_time(), 0
            for batch in batches:
                written += (await store.put("posts", batch)).written
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            assert written == len(made), f"{store.where}: {written} of {len(made)} were written"
            took.append((written / seconds, cpu / written * 1e6))
        assert await store.count("posts") == len(made)
    finally:
        await store.close()
    return took


async def _sqlite(path: Path) -> Store:
    return await SqliteStore.open(path)


async def _mongo(uri: str, database: str) -> Store:
    store = MongoStore(StoreSettings.model_validate({"mongo_uri": uri, "mongo_database": database}))
    await store.put("runs", [{"_id": "warm", "v": 1}])  # connections and indexes are there before the clock runs
    return store


@contextmanager
def _mongod(where: Path) -> Iterator[Mongod | str]:
    """A server, or why there is none."""
    if why := why_not():
        yield why
        return
    server = Mongod(where / "mongod")
    try:
        server.folder.mkdir()
        server.start()
        yield server
    finally:
        server.stop()
