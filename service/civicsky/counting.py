"""Counts labelled posts again at fixed ages: `civicsky hydrate --counts`.

Likes, reposts, replies and quotes, as the public API gives them, go through the inbox into the journal and from there
to the store as snapshots, each post once an age. A post that is not shown has no count, which is not 0: it is looked
up by the rules of `verify`.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.progress import Progress

from civicsky import datadir, inbox, log
from civicsky.appview import AppView
from civicsky.beside import Stored, bars, existing_store, imported, stored_now
from civicsky.context import posts_of
from civicsky.document import Document
from civicsky.errors import BadInput, Failed, Refused, Transient
from civicsky.feeds import Outcomes
from civicsky.inbox import Header, Item
from civicsky.journal import Journal, JournalReader
from civicsky.model import format_time, now_us, post_key
from civicsky.recheck import Rechecks
from civicsky.settings import Settings
from civicsky.store import Store
from civicsky.tables import RECHECK_PAGE
from civicsky.verify import Checker

PER_FILE: Final = 5000
"""Posts in one file at most, which take 200 calls: its time is that of the first."""
_PAGE: Final = 1000
_HOUR_US: Final = 3_600_000_000
_DAY: Final = 24


class Age(NamedTuple):
    """What was counted at one age."""

    name: str
    due: int
    counted: int
    not_shown: int
    """They are looked up: the author may have deleted the post, or be hidden."""


class Report(NamedTuple):
    """All of it."""

    ages: list[Age]
    why: str
    """Why the API could not be asked to the end; empty when it could."""
    outcomes: Outcomes | None
    """What became of what was counted; None when the running service has not imported all of it."""
    stored: Stored

    @property
    def good(self) -> bool:
        """Whether all was done."""
        return not self.why and self.outcomes is not None and self.stored.good


async def count(settings: Settings) -> Report:
    """Count all posts that are due, and have the counts imported. Raises `Held` when another one is under way."""
    os.umask(0o077)
    folder = datadir.existing(settings.data_dir)
    with datadir.locked(folder, ("counts",)):
        store = await existing_store(settings, folder)
        journal = await Journal.open(folder / datadir.JOURNAL, settings.journal)
        reader = await JournalReader.open(folder / datadir.JOURNAL)
        appview = AppView(settings.appview)
        counting = _Counting(settings, folder, store, reader, appview, Checker(Rechecks(journal.database), appview))
        try:
            with bars("posts") as progress:
                await counting.run(progress)
        finally:
            for part in (appview, reader, journal, store):
                await part.close()
        rows = await imported(settings, folder, counting.files)
        stored = await stored_now(settings, folder)
    outcomes = sum(rows.values(), Outcomes()) if len(rows) == len(counting.files) else None
    return Report(counting.ages, counting.why, outcomes, stored)


def age_name(hours: int) -> str:
    """What the snapshots of an age are called: 24h, 7d."""
    return f"{hours}h" if hours <= _DAY or hours % _DAY else f"{hours // _DAY}d"


class _Counting:
    """The posts that are due, and what is got of them."""

    def __init__(
        self, settings: Settings, folder: Path, store: Store, reader: JournalReader, appview: AppView, checker: Checker
    ) -> None:
        self._settings, self._folder = settings, folder
        self._store, self._reader, self._appview, self._checker = store, reader, appview, checker
        self.ages: list[Age] = []
        self.files: set[str] = set()
        """All files that are to be imported, also of one that was killed."""
        self.why = ""
        self._waiting: set[tuple[str, str]] = set()
        self._items: list[Item] = []
        self._at = 0

    async def run(self, progress: Progress) -> None:
        """Count at each age, until all is done or the API cannot be asked."""
        self._waiting = await self._not_imported()
        for hours in self._settings.feeds.count_hours:
            age = Age(age_name(hours), 0, 0, 0)
            self.ages.append(age)
            try:
                await self._count(age, hours, progress)
            except (Transient, Refused, Failed) as error:
                self.why = log.harmless(str(error))
                return
            finally:
                await self._write(age.name)

    async def _count(self, age: Age, hours: int, progress: Progress) -> None:
        now = now_us()
        until = now - hours * _HOUR_US
        since = until - int(self._settings.feeds.count_late_hours * _HOUR_US)
        bar = progress.add_task(age.name, total=None)
        async for posts in _pages(self._store.by_time(format_time(since), format_time(until), labelled=True)):
            due = await self._due(age.name, posts)
            age = self._told(age._replace(due=age.due + len(due)))
            progress.update(bar, total=age.due)
            missing = {post["_id"]: post for post in due}
            async for part, shown in posts_of(list(missing), self._appview.shown):
                await self._take(age.name, [shown[uri].item for uri in part if uri in shown])
                for uri in shown:
                    del missing[uri]
                age = self._told(age._replace(counted=age.counted + len(shown)))
                progress.update(bar, completed=age.counted + age.not_shown)
            age = self._told(age._replace(not_shown=age.not_shown + len(missing)))
            progress.update(bar, completed=age.counted + age.not_shown)
            await self._look_up(list(missing.values()))
        progress.update(bar, total=age.due)

    def _told(self, age: Age) -> Age:
        self.ages[-1] = age
        return age

    async def _due(self, name: str, posts: Sequence[Document]) -> list[Document]:
        """Those that have no snapshot of this age: in the store, in the journal, or on their way there."""
        uris = [post["_id"] for post in posts]
        done = {one["uri"] for one in await self._store.of_posts("snapshots", uris) if one["why"] == name}
        counted = await self._reader.counted([post_key(uri) for uri in uris], name)
        return [
            post
            for post in posts
            if (uri := post["_id"]) not in done and post_key(uri) not in counted and (uri, name) not in self._waiting
        ]

    async def _take(self, name: str, items: Sequence[Item]) -> None:
        if not self._items:
            self._at = max(now_us(), self._at + 1000)  # a file's name has its time, in milliseconds
        for item in items:
            self._items.append(item._replace(rank=len(self._items) + 1, record=""))
        if len(self._items) > PER_FILE - RECHECK_PAGE:
            await self._write(name)

    async def _write(self, name: str) -> None:
        """Put what was got into the inbox."""
        if self._items:
            header = Header("counts", name, "", self._at, complete=True, why="end", pages=1)
            path = await asyncio.to_thread(inbox.write, self._folder, header, self._items)
            self.files.add(path.name)
        self._items = []

    async def _look_up(self, posts: Sequence[Document]) -> None:
        for n in range(0, len(posts), RECHECK_PAGE):
            await self._checker.check(posts[n : n + RECHECK_PAGE], [item.uri for item in self._items[-RECHECK_PAGE:]])

    async def _not_imported(self) -> set[tuple[str, str]]:
        """(URI, age) of what lies in the inbox since one before was killed, or the running service is slow."""
        done = {row["file"] for row in await self._reader.fetches() if row["imported_at"] is not None}
        found: set[tuple[str, str]] = set()
        for path in await asyncio.to_thread(inbox.files, self._folder):
            if path.name in done:
                continue
            try:
                header, items = await asyncio.to_thread(inbox.read, path)
            except (BadInput, OSError):
                continue
            if header.kind == "counts":
                self.files.add(path.name)
                found |= {(item.uri, header.name) for item in items}
        return found


async def _pages(posts: AsyncIterator[Document]) -> AsyncIterator[list[Document]]:
    page: list[Document] = []
    async for post in posts:
        page.append(post)
        if len(page) == _PAGE:
            yield page
            page = []
    if page:
        yield page


# ---- what is said ----------------------------------------------------------------------------------------------------


def as_text(report: Report) -> str:
    """For people."""
    lines = [
        f"{one.name}: {one.due:,} due, {one.counted:,} counted, {one.not_shown:,} not shown" for one in report.ages
    ]
    if report.why:
        lines.append(f"not all could be asked for: {report.why}")
    if report.outcomes is None:
        lines.append("the running service has not imported all of it yet; it will")
    elif report.outcomes:
        gone = sum(n for (what, _), n in report.outcomes.items() if what == "rejected")
        known = report.outcomes.total() - gone
        lines.append(f"imported: {known:,} snapshots; {gone:,} posts were deleted meanwhile")
    return "\n".join([*lines, *([f"store: {report.stored.why}"] if report.stored.why else [])])


def as_json(report: Report) -> dict[str, Any]:
    """For programs."""
    outcomes = [[*key, n] for key, n in sorted(report.outcomes.items())] if report.outcomes is not None else None
    return {
        "good": report.good,
        "ages": [age._asdict() for age in report.ages],
        "why": report.why,
        "imported": outcomes,
        "store": {**report.stored.counts, "why": report.stored.why},
    }
