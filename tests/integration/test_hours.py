"""The journal's hourly counts on their way to the store: each hour once, and again when it changed."""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from civicsky import publishing
from civicsky.document import Document
from civicsky.journal import Journal, JournalReader
from civicsky.lifecycle import Stop
from civicsky.metrics import Metrics
from civicsky.model import format_time, now_us
from civicsky.sample import HOUR_US
from civicsky.settings import Journal as JournalSettings
from civicsky.store import SqliteStore
from civicsky.tables import add_counts

BEGAN = {n: (now_us() // HOUR_US - n) * HOUR_US for n in (50, 49)}
"""Two hours of long ago, whatever the hour in which a test runs."""
OLD = [format_time(began) for began in BEGAN.values()]


async def count(journal: Journal, n: int) -> None:
    async with journal.database.transaction() as db:
        await add_counts(db, Counter({("post", "kept", ""): n}))


async def hours(store: SqliteStore, enough: Callable[[list[Document]], bool]) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            found = [one async for one in store.documents("hours")]
            if enough(found):
                return {one["_id"]: one for one in found}
            await asyncio.sleep(0.01)


async def test_hours_are_told_once_and_again_only_when_something_was_counted_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "PUBLISH_SECONDS", 0.01)
    journal = await Journal.open(tmp_path / "journal.db", JournalSettings())
    for n, began in BEGAN.items():
        await journal.database.execute("INSERT INTO count VALUES (?,'post','rejected','language',?)", (began, n))
    await count(journal, 1)
    reader = await JournalReader.open(tmp_path / "journal.db")
    store = await SqliteStore.open(tmp_path / "posts.db")
    stop = Stop()
    task = asyncio.create_task(publishing.publish(reader, store, Metrics(), stop, strict=True))
    first = await hours(store, lambda found: len(found) == 3)
    assert [first[name]["rejected"] for name in OLD] == [{"language": 50}, {"language": 49}]
    await count(journal, 2)
    later = await hours(store, lambda found: sum(one["counts"]["post"].get("kept", 0) for one in found) == 3)
    await count(journal, 4)
    stop.collected.set()
    await task
    last = await hours(store, lambda _: True)
    assert sum(one["counts"]["post"].get("kept", 0) for one in last.values()) == 7, "also what came at the very end"
    assert {name: first[name] for name in OLD} == {name: last[name] for name in OLD}, "not written again"
    newest = max(first)
    assert first[newest]["v"] < later[newest]["v"] or len(later) > 3, "a changed hour is told again"
    for part in (reader, store, journal):
        await part.close()
