"""Fetches feeds of the public API into the inbox, and has them imported: the command `fetch`.

Each feed is one file, and one feed's failure does nothing to another's. A running collecting half imports the files;
else this does, under the lock `collect`, and lets ledger and store follow.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from civicsky import datadir, inbox, log
from civicsky.appview import MAX_PAGE, AppView
from civicsky.beside import Stored, feeds_in, imported, stored_now
from civicsky.errors import BadInput, CivicskyError, Transient, Usage
from civicsky.feeds import Outcomes
from civicsky.inbox import Header, Item
from civicsky.journal import Journal
from civicsky.model import feed_place, feed_uri, now_us
from civicsky.settings import FEED_FORMS, Feeds as FeedsSettings, Settings
from civicsky.views import UNREADABLE, Page

T = TypeVar("T")
MAX_PAGES: Final = 200
"""Pages of one feed at most, which are 20,000 posts: a feed that has more has no end."""
MAX_BYTES: Final = inbox.MAX_BYTES * 3 // 4
"""Bytes of the records of one feed at most, so that its file can be read again."""
IN_VAIN: Final = 3
"""Pages in a row without a post, or without a new one, after which a feed counts as ended."""

_ENDS: Final = {
    "end": "complete",
    "limit": "the first ones only: --limit",
    "loop": "ended where its cursors go round",
    "empty": f"ended by {IN_VAIN} empty pages",
    "repeating": f"ended by {IN_VAIN} pages without a new post",
    "bound": f"the first ones only: more than {MAX_PAGES} pages, or too many bytes",
}
"""How a feed may end, none of which is a failure; only the first is its own end."""


class Feed(NamedTuple):
    """A feed to fetch."""

    name: str
    """As in `feeds.lists`; empty when it has no name there, and then its AT-URI stands for one."""
    owner: str
    """DID or handle."""
    rkey: str


class Fetched(NamedTuple):
    """How it went with one feed."""

    name: str
    uri: str
    """Empty when it could not be found out."""
    file: str
    """The file's name in the inbox; empty when nothing was got, or no file was found."""
    items: int
    pages: int
    why: str
    """A key of `_ENDS`, or what was wrong."""
    outcomes: Outcomes | None = None
    """What became of the items; None while they are not imported."""

    @property
    def good(self) -> bool:
        """Whether all was done that was asked for."""
        return self.why in _ENDS and self.outcomes is not None


class Report(NamedTuple):
    """All of it."""

    feeds: list[Fetched]
    stored: Stored
    english: bool
    """Whether only English posts are kept."""

    @property
    def good(self) -> bool:
        """Whether all was done that was asked for."""
        return self.stored.good and all(feed.good for feed in self.feeds)


async def fetch(settings: Settings, names: Sequence[str], limit: int | None = None, *, local: bool = False) -> Report:
    """Fetch feeds, those of `feeds.daily` when none is named, and import them; at most `limit` posts of each.

    `local`: import the newest file of each again, without the network. Raises `Usage` for what is no feed, and `Held`
    when another fetch is under way.
    """
    os.umask(0o077)  # what we write holds texts that their authors may delete: nobody else should have copied them
    if local and limit is not None:
        raise Usage("--limit is for what is fetched: leave it out, or leave out --from-local")
    wanted = feeds_of(settings.feeds, names)
    folder = datadir.prepare(settings.data_dir)
    with datadir.locked(folder, ("fetch",)):
        got = await _again(settings, folder, wanted) if local else await _fetch_all(settings, folder, wanted, limit)
        rows = await imported(settings, folder, {one.file for one in got if one.file})
        told = await stored_now(settings, folder) if rows else Stored({})
    feeds = [one._replace(outcomes=rows.get(one.file)) for one in got]
    return Report(feeds, told, settings.filter.keep == "english")


def feeds_of(settings: FeedsSettings, names: Sequence[str]) -> list[Feed]:
    """What is meant by names, AT-URIs and web addresses, each once. Raises `Usage`."""
    known = {feed_place(address): name for name, address in settings.lists.items()}
    found: dict[Feed, None] = {}
    for name in names or settings.daily:
        place = feed_place(settings.lists.get(name, name))
        if place is None:
            named = ", ".join(settings.lists) or "none is named"
            raise Usage(f"{log.harmless(name)!r} is not in feeds.lists ({named}), and {FEED_FORMS}")
        found[Feed(name if name in settings.lists else known.get(place, ""), *place)] = None
    return list(found)


# ---- fetching --------------------------------------------------------------------------------------------------------


class Gathering:
    """What the pages of one feed come to. Pure."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self.items: list[Item] = []
        self.pages = 0
        self._seen: set[str] = set()
        self._cursors: set[str] = set()
        self._empty = self._idle = self._bytes = 0

    @property
    def wanted(self) -> int:
        """How many posts to ask for."""
        return MAX_PAGE if self._limit is None else min(MAX_PAGE, self._limit - len(self.items))

    def take(self, page: Page) -> str:
        """Take a page in; how the feed ends with it (see `_ENDS`), or nothing."""
        self.pages += 1
        new = [item for item in page.items if self._is_new(item)]
        room = len(new) if self._limit is None else self._limit - len(self.items)
        for item in new[:room]:
            self._bytes += len(json.dumps(item.record))
            if self._bytes > MAX_BYTES:
                return "bound"
            self.items.append(item._replace(rank=len(self.items) + 1))
        if page.cursor is None:
            return "end" if len(new) <= room else "limit"
        if len(new) >= room and self._limit is not None:
            return "limit"
        return self._goes_on(page, page.cursor, idle=all(item == UNREADABLE for item in new))

    def _goes_on(self, page: Page, cursor: str, *, idle: bool) -> str:
        self._empty = 0 if page.items else self._empty + 1
        self._idle = self._idle + 1 if idle else 0
        if cursor in self._cursors:
            return "loop"
        self._cursors.add(cursor)
        if self._empty == IN_VAIN:
            return "empty"
        if self._idle == IN_VAIN:
            return "repeating"
        return "bound" if self.pages == MAX_PAGES else ""

    def _is_new(self, item: Item) -> bool:
        """Whether it is the first time that a post is shown; what cannot be read counts each time."""
        if item == UNREADABLE:
            return True
        known = item.uri in self._seen
        self._seen.add(item.uri)
        return not known


async def _fetch_all(settings: Settings, folder: Path, wanted: Sequence[Feed], limit: int | None) -> list[Fetched]:
    """Fetch each feed and write its file."""
    appview = AppView(settings.appview, folder)
    try:
        with _progress() as progress:
            return [await _fetch(settings.feeds, folder, appview, feed, limit, progress) for feed in wanted]
    finally:
        await appview.close()


async def _fetch(
    settings: FeedsSettings, folder: Path, appview: AppView, feed: Feed, limit: int | None, progress: Progress
) -> Fetched:
    at, name, uri, gathering = now_us(), feed.name, "", Gathering(limit)
    bar = progress.add_task(log.harmless(name or feed.rkey), total=limit)
    try:
        uri = await _uri(settings, appview, feed)
        name = name or uri
        why = await _gather(settings, appview, name, uri, gathering, partial(progress.update, bar))
    except (CivicskyError, BadInput) as error:
        why = _in_words(error)
    progress.update(bar, total=len(gathering.items))
    file = ""
    if gathering.items:
        header = Header("feed", name, uri, at, complete=why == "end", why=why, pages=gathering.pages)
        file = (await asyncio.to_thread(inbox.write, folder, header, gathering.items)).name
    elif why in _ENDS:
        why = "it showed no post"
    log.event(
        "feed_fetched", stage="feeds", feed=name, items=len(gathering.items), pages=gathering.pages,
        complete=why == "end", why=why,
    )  # fmt: skip
    return Fetched(name or f"{feed.owner}/{feed.rkey}", uri, file, len(gathering.items), gathering.pages, why)


async def _gather(
    settings: FeedsSettings, appview: AppView, name: str, uri: str, gathering: Gathering, show: Callable[..., None]
) -> str:
    """Fetch page after page to the end; how it ended."""
    cursor: str | None = None
    while True:
        ask = partial(appview.feed, uri, cursor, gathering.wanted)
        page = await _tried(settings, name, gathering.pages + 1, ask)
        why = gathering.take(page)
        show(completed=len(gathering.items))
        if why:
            return why
        cursor = page.cursor


async def _uri(settings: FeedsSettings, appview: AppView, feed: Feed) -> str:
    """The feed's AT-URI, with its owner's DID."""
    did = feed.owner
    if not did.startswith("did:"):
        did = await _tried(settings, feed.name or feed.rkey, 0, partial(appview.resolve, did))
    return feed_uri(did, feed.rkey)


async def _tried(settings: FeedsSettings, name: str, page: int, ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until there is an answer of use; at most `feeds.attempts` times."""
    pause = settings.retry_seconds
    for attempt in count(1):
        try:
            return await ask()
        except (Transient, BadInput) as error:
            if attempt == settings.attempts:
                raise
            wait = min(max(pause, getattr(error, "retry_after", None) or 0.0), settings.retry_max_seconds)
            log.event("feed_again", stage="feeds", feed=name, page=page, why=_in_words(error), wait_s=round(wait, 1))
        await asyncio.sleep(wait)
        pause *= 2
    raise AssertionError  # pragma: no cover - the loop has no end


def _in_words(error: Exception) -> str:
    return "the public API's answer cannot be used" if isinstance(error, BadInput) else log.harmless(str(error))


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(30), MofNCompleteColumn(), TextColumn("posts"))
    return Progress(*columns, console=console, disable=not console.is_terminal)


# ---- importing -------------------------------------------------------------------------------------------------------


async def _again(settings: Settings, folder: Path, wanted: Sequence[Feed]) -> list[Fetched]:
    """The newest file of each feed, to be imported once more."""
    found = [await asyncio.to_thread(_newest, folder, feed) for feed in wanted]
    if (folder / datadir.JOURNAL).is_file():
        journal = await Journal.open(folder / datadir.JOURNAL, settings.journal)
        try:
            for file in {one.file for one in found if one.file}:
                await feeds_in(journal, folder).import_again(file)
        finally:
            await journal.close()
    return found


def _newest(folder: Path, feed: Feed) -> Fetched:
    uri = feed_uri(feed.owner, feed.rkey)
    for path in reversed(inbox.files(folder)):
        try:
            header, items = inbox.read(path)
        except BadInput:
            continue
        if header.kind == "feed" and (header.name == feed.name or header.uri == uri):
            return Fetched(header.name, header.uri, path.name, len(items), header.pages, "end")
    return Fetched(feed.name or uri, "", "", 0, 0, "no fetched file of it is there; leave out --from-local")


# ---- what is said ----------------------------------------------------------------------------------------------------


def as_text(report: Report) -> str:
    """For people; everything that others chose is escaped."""
    lines = [_line(feed, report.english) for feed in report.feeds]
    if report.stored.counts:
        told = ", ".join(f"{n:,} {name}" for name, n in report.stored.counts.items())
        lines.append("store: " + (report.stored.why or told))
    return "\n".join(lines)


def as_json(report: Report) -> dict[str, Any]:
    """For programs."""
    feeds = []
    for feed in report.feeds:
        told = {name: _by_reason(feed.outcomes, name) for name in ("rejected", "failed")} if feed.outcomes else {}
        kept = {name: _sum(feed.outcomes, name) for name in ("new", "known")} if feed.outcomes else {}
        feeds.append(
            {
                "name": feed.name, "uri": feed.uri, "file": feed.file, "fetched": feed.items, "pages": feed.pages,
                "complete": feed.why == "end", "why": feed.why, "imported": feed.outcomes is not None, **kept, **told,
                "english_share": _share(feed.outcomes) if report.english and feed.outcomes else None,
            }
        )  # fmt: skip
    store = {**report.stored.counts, "why": report.stored.why} if report.stored.counts else None
    return {"good": report.good, "feeds": feeds, "store": store}


def _line(feed: Fetched, english: bool) -> str:  # noqa: FBT001
    name = log.harmless(feed.name)
    if not feed.file:
        return f"{name}: nothing fetched: {log.harmless(feed.why)}"
    how = _ENDS.get(feed.why) or f"not complete: {log.harmless(feed.why)}"
    said = f"{name}: {feed.items:,} fetched on {feed.pages:,} pages ({how})"
    if feed.outcomes is None:
        return f"{said}; the running service has not imported it yet; it will; {inbox.FOLDER}/{feed.file}"
    parts = [f"{_sum(feed.outcomes, 'new'):,} new, {_sum(feed.outcomes, 'known'):,} known"]
    for outcome in ("rejected", "failed"):
        reasons = ", ".join(f"{why} {n:,}" for why, n in _by_reason(feed.outcomes, outcome).items())
        parts.append(f"{_sum(feed.outcomes, outcome):,} {outcome}" + (f" ({reasons})" if reasons else ""))
    share = _share(feed.outcomes) if english else None
    parts += [f"{100 * share:.1f} % English"] if share is not None else []
    return f"{said}: {', '.join(parts)}; {inbox.FOLDER}/{feed.file}"


def _sum(outcomes: Outcomes, name: str) -> int:
    return sum(n for (outcome, _), n in outcomes.items() if outcome == name)


def _by_reason(outcomes: Outcomes, name: str) -> dict[str, int]:
    found: Iterable[tuple[str, int]] = ((why, n) for (outcome, why), n in outcomes.items() if outcome == name)
    return dict(sorted(found, key=lambda one: (-one[1], one[0])))


def _share(outcomes: Outcomes) -> float | None:
    """Of the posts that were kept, or rejected for their language alone, how many were kept."""
    kept = _sum(outcomes, "new") + _sum(outcomes, "known")
    judged = kept + outcomes["rejected", "language"]
    return kept / judged if judged else None
