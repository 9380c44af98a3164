"""What of the articles is given to a model with a post, and the summaries that are asked for on the way.

An article is used only within `events.max_distance` of the post, and if it came out before it, `events.days` at most. A
summary is made once for each event, side, model and prompt, of the articles that the first post to need it may use; for
another post it is taken only if that one may use them all, too. Else, and without a model, how its articles begin.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from weakref import WeakValueDictionary

from civicsky.embedding import ARTICLES, load
from civicsky.errors import BadInput, Transient
from civicsky.events import folder
from civicsky.events.finding import Bounds, Hit, chosen, terms
from civicsky.events.giving import Given, WriterShape
from civicsky.events.index import MAX_TRIES, About, Index
from civicsky.events.writing import (
    SUMMARY_ARTICLES,
    SUMMARY_TOKENS,
    context_of,
    part_of,
    read_summary,
    summary_hash,
    summary_messages,
)
from civicsky.model import Spend, format_time
from civicsky.settings import Events as EventsSettings, expanded

T = TypeVar("T")

LOOK_SECONDS: Final = 60.0
"""From one look at the folder to the next."""
_DAY_US: Final = 24 * 3_600_000_000


class Current(NamedTuple):
    """Some articles of one side about one event, and what is said of them."""

    hits: tuple[Hit, ...]
    about: About | None
    """The summary, if it is one."""
    text: str | None


Paid = Callable[[Sequence[tuple[int, Spend]]], Awaitable[None]]
"""Takes what summaries cost, numbered; counts each number once, however often it is told. See `ledger.Ledger.paid`."""


class Events:
    """The articles of a folder, for any number of tasks at once."""

    def __init__(self, settings: EventsSettings, articles: Path, index: Index, model: str | None, paid: Paid) -> None:
        self._settings, self._folder, self._index, self._paid = settings, articles, index, paid
        self._model = model if settings.summarise else None
        self._prompt = summary_hash()
        self._sides: frozenset[str] = frozenset()
        self._told = 0
        # Of its own: a look at a large folder takes a while, and others must not wait for that.
        self._thread = ThreadPoolExecutor(1, "events")
        self._being_made: WeakValueDictionary[About, asyncio.Lock] = WeakValueDictionary()

    @classmethod
    async def open(cls, settings: EventsSettings, file: Path, model: str | None, paid: Paid) -> "Events":
        """Open the index, without reading the folder. `model`: who makes summaries; None: nobody.

        Raises `Usage` when the folder cannot be read or the extra is not installed, `Failed` when the file is damaged.
        """
        assert settings.folder is not None
        articles = expanded(settings.folder)
        folder.check(articles)
        return cls(settings, articles, await asyncio.to_thread(_opened, file), model, paid)

    @property
    def unclear(self) -> Collection[str]:
        """Fields that, when they are unclear, have a post asked about once more."""
        return self._settings.unclear

    async def close(self) -> None:
        """Release the index."""
        await self._in_thread(self._index.close)
        self._thread.shutdown()

    async def sync(self) -> None:
        """Take over what the folder holds now. Raises `Failed` for the index's errors."""
        await self._in_thread(folder.sync, self._folder, self._index)
        self._sides = await self._in_thread(self._index.sides)
        await self._pay()  # what a crash kept from being counted

    async def run(self) -> None:
        """Look at the folder every minute, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.sync()

    async def of(self, text: str, at: int, writer: WriterShape | None, *, named: bool) -> Given | None:
        """What to give with a post of this text and time (microseconds); None: nothing.

        `named`: only when the post names an event, and only that one's articles. `writer`: who may be asked for
        summaries now; None: nobody, and what would be a new one is how its articles begin. Raises `Transient` when a
        summary cannot be had just now, `Refused`.
        """
        bounds = self._bounds(at)
        hits = await self._in_thread(self._index.hits, text, terms(text), bounds)
        if named:
            events = {hit.event for hit in hits if hit.named}
            hits = [hit for hit in hits if hit.event in events]
        found = [await self._said(group, hits, writer) for group in _groups(chosen(hits, bounds, self._sides))]
        parts = [part_of(one.hits, one.text, self._settings.max_chars) for one in found]
        given = context_of(parts, self._settings.max_chars)
        return Given(given, self._provenance(given, found, named=named)) if given else None

    # ---- summaries ----

    async def _said(self, group: Sequence[Hit], hits: Sequence[Hit], writer: WriterShape | None) -> Current:
        """One side's articles about one event, by their summary if there can be one."""
        whole = Current(tuple(group), None, None)
        if self._model is None:
            return whole
        about = About(group[0].event, group[0].side, self._model, self._prompt)
        lock = self._being_made.setdefault(about, asyncio.Lock())
        async with lock:
            there = await self._in_thread(self._index.summary, about)
            if there.text is None and there.tries < MAX_TRIES and writer is not None:
                await self._make(about, group[:SUMMARY_ARTICLES], writer)
                there = await self._in_thread(self._index.summary, about)
        if there.text is None:
            return whole
        mine = {hit.id: hit for hit in hits if (hit.event, hit.side) == (about.event, about.side)}
        # What this post may not use must not reach it in a summary, nor more than it may use.
        if len(there.articles) > len(group) or not mine.keys() >= set(there.articles):
            return whole
        return Current(tuple(mine[name] for name in there.articles), about, there.text)

    async def _make(self, about: About, hits: Sequence[Hit], writer: WriterShape) -> None:
        """Ask for a summary; what is paid for is on the disk before anything else happens to it."""
        ids = [hit.id for hit in hits]
        text, spend = None, Spend(about.model, 0, 0, 0)
        try:
            said, spend = await writer.write(summary_messages(hits), SUMMARY_TOKENS)
            text = read_summary(said)
        except BadInput as bad:
            spend = bad.spend if isinstance(bad.spend, Spend) else spend
        except Transient as error:
            if isinstance(error.spend, Spend) and error.spend.calls:
                await self._in_thread(self._index.keep_spend, error.spend)
                await self._pay()
            raise
        await self._in_thread(self._index.keep, about, text, ids, spend)
        await self._pay()

    async def _pay(self) -> None:
        """Have counted what is not counted yet."""
        rows = await self._in_thread(self._index.paid, self._told)
        if rows:
            await self._paid(rows)
            self._told = rows[-1][0]

    # ---- inside ----

    async def _in_thread(self, do: Callable[..., T], *with_these: Any) -> T:
        """One call of the index at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, do, *with_these)

    def _bounds(self, at: int) -> Bounds:
        own = self._settings
        return Bounds(own.max_distance, at - int(own.days * _DAY_US), at, own.max_articles)

    def _provenance(self, given: str, found: Sequence[Current], *, named: bool) -> str:
        whole: dict[str, Any] = {
            "why": "named" if named else "unclear",
            "sha256": hashlib.sha256(given.encode()).hexdigest(),
            "max_distance": self._settings.max_distance,
            "days": self._settings.days,
            "articles": [
                {"id": hit.id, "side": hit.side, "outlet": hit.outlet, "at": format_time(hit.at),
                 "distance": round(hit.distance, 6)}
                for one in found for hit in one.hits
            ],
            "summaries": [
                {"side": one.about.side, "model": one.about.model, "prompt": one.about.prompt,
                 "articles": [hit.id for hit in one.hits]}
                for one in found if one.about
            ],
        }  # fmt: skip
        return json.dumps(whole, ensure_ascii=False)


def _opened(file: Path) -> Index:
    return Index.opened(file, load(ARTICLES))


def _groups(hits: Sequence[Hit]) -> list[list[Hit]]:
    """By event and side, in the order of the nearest."""
    groups: dict[tuple[int, str], list[Hit]] = {}
    for hit in hits:
        groups.setdefault((hit.event, hit.side), []).append(hit)
    return list(groups.values())
