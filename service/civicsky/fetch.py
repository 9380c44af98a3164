"""Fetches feeds of the public API into the inbox, and has them imported: the command `fetch`.

Each feed is one file, and one feed's failure does nothing to another's. A running collecting half imports the files;
else this does, under the lock `collect`, and lets ledger and store follow.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from rich.progress import Progress, TaskID

from civicsky import datadir, inbox, log
from civicsky.app import bring_up, ledger_reader
from civicsky.appview import AppView
from civicsky.beside import Stored, bars, feeds_in, imported, stored_now
from civicsky.errors import BadInput, CivicskyError, Transient, Usage
from civicsky.feeds import Outcomes
from civicsky.inbox import Header
from civicsky.journal import Journal, JournalReader
from civicsky.model import feed_place, feed_uri, now_us
from civicsky.paging import ENDS, WHOLE, Gathering
from civicsky.schedule import due as is_due, last_due
from civicsky.settings import FEED_FORMS, Feeds as FeedsSettings, Settings

T = TypeVar("T")


class Feed(NamedTuple):
    """A feed to fetch."""

    name: str
    """As in `feeds.lists`; empty when it has no name there, and then its AT-URI stands for one."""
    owner: str
    """DID or handle."""
    rkey: str

    def is_of(self, name: str, uri: str) -> bool:
        """Whether a fetch under this name, of the feed with this AT-URI, was one of this feed."""
        if self.name:
            return name == self.name
        handle = not self.owner.startswith("did:")  # whose it is only the API knows
        return uri == feed_uri(self.owner, self.rkey) or (handle and name == uri and uri.endswith(f"/{self.rkey}"))


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
    """A key of `ENDS`, or what was wrong."""
    sound: bool
    """Whether nothing was wrong."""
    outcomes: Outcomes | None = None
    """What became of the items; None while they are not imported."""

    @property
    def good(self) -> bool:
        """Whether all was done that was asked for."""
        return self.sound and self.outcomes is not None


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


async def fetch(
    settings: Settings, names: Sequence[str], limit: int | None = None, *, local: bool = False, due: bool = False
) -> Report:
    """Fetch feeds, those of `feeds.daily` when none is named, and import them; at most `limit` posts of each.

    `local`: import the newest file of each again, without the network. `due`: only those of which there was no whole
    fetch since the day's time. Raises `Usage` for what is no feed, and `Held` when another fetch is under way.
    """
    os.umask(0o077)  # what we write holds texts that their authors may delete: nobody else should have copied them
    if (limit is not None) + local + due > 1:
        raise Usage("--limit, --from-local and --due do not go together: choose one")
    wanted = feeds_of(settings.feeds, names)
    folder = datadir.prepare(settings.data_dir)
    with datadir.locked(folder, ("fetch",)):
        waiting = set[str]()
        if due:
            await bring_up(folder, settings)
            wanted, waiting = await _due(settings, folder, wanted)
        got = await _again(settings, folder, wanted) if local else await _fetch_all(settings, folder, wanted, limit)
        rows = await imported(settings, folder, {one.file for one in got if one.file} | waiting)
        told = await stored_now(settings, folder) if rows or (due and await _is_behind(folder)) else Stored({})
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


async def _due(settings: Settings, folder: Path, wanted: Sequence[Feed]) -> tuple[list[Feed], set[str]]:
    """(those that are due, files that wait to be imported).

    What was fetched counts, imported or not: the one that fetched it may have been killed before it could import it.
    """
    whole: list[tuple[str, str, int]] = []
    done = set[str]()
    if (folder / datadir.JOURNAL).is_file():
        reader = await JournalReader.open(folder / datadir.JOURNAL)
        try:
            told = await reader.fetches()
        finally:
            await reader.close()
        done = {row["file"] for row in told if row["imported_at"] is not None}
        rows = [row for row in told if row["kind"] == "feed"]
        whole = [(row["name"], row["uri"], row["at"]) for row in rows if row["why"] in WHOLE | {"bound"}]
    now, hour = now_us(), settings.feeds
    since = last_due(now, hour.at, hour.zone)
    for header in await asyncio.to_thread(_headers, folder, since):
        if header.why in WHOLE | {"bound"}:
            whole.append((header.name, header.uri, header.at))
    last = {feed: max((at for name, uri, at in whole if feed.is_of(name, uri)), default=None) for feed in wanted}
    found = [feed for feed, at in last.items() if is_due(now, hour.at, hour.zone, at)]
    return found, {path.name for path in inbox.files(folder)} - done


async def _is_behind(folder: Path) -> bool:
    """Whether ledger and store have not followed the journal yet: the store was away, or somebody was killed."""
    if not (folder / datadir.JOURNAL).is_file():
        return False
    reader = await JournalReader.open(folder / datadir.JOURNAL)
    try:
        async with ledger_reader(folder) as ledger:
            return ledger is None or await ledger.position() < await reader.last_change() or await ledger.is_untold()
    finally:
        await reader.close()


def _headers(folder: Path, since: int) -> list[Header]:
    """Of the feeds that were fetched since then."""
    found = []
    for path in reversed(inbox.files(folder)):
        with suppress(BadInput, OSError):
            header, _ = inbox.read(path)
            if header.at < since:
                break
            found.append(header)
    return [header for header in found if header.kind == "feed"]


# ---- fetching --------------------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """What fetching needs."""

    settings: FeedsSettings
    folder: Path
    appview: AppView
    progress: Progress

    def say(self, name: Literal["feed_fetched", "feed_again"], **values: Any) -> None:
        """A line of the log, not into the midst of the bar."""
        self.progress.stop()
        log.event(name, stage="feeds", **values)
        self.progress.start()


async def _fetch_all(settings: Settings, folder: Path, wanted: Sequence[Feed], limit: int | None) -> list[Fetched]:
    """Fetch each feed and write its file."""
    appview = AppView(settings.appview, folder)
    try:
        with bars("posts") as progress:
            work = Work(settings.feeds, folder, appview, progress)
            return [await _fetch(work, feed, limit) for feed in wanted]
    finally:
        await appview.close()


async def _fetch(work: Work, feed: Feed, limit: int | None) -> Fetched:
    at, name, uri, gathering = now_us(), feed.name, "", Gathering(limit)
    bar = work.progress.add_task(log.harmless(name or feed.rkey), total=limit)
    try:
        uri = await _uri(work, feed)
        name = name or uri
        why = await _gather(work, name, uri, gathering, bar)
    except (CivicskyError, BadInput) as error:
        why = _in_words(error)
    n, pages, file = len(gathering.items), gathering.pages, ""
    work.progress.update(bar, total=n)
    if n:
        header = Header("feed", name, uri, at, complete=why in WHOLE, why=why, pages=pages)
        file = (await asyncio.to_thread(inbox.write, work.folder, header, gathering.items)).name
    elif why in ENDS:
        why = "it showed no post"
    name = name or f"{feed.owner}/{feed.rkey}"
    work.say("feed_fetched", feed=name, items=n, pages=pages, complete=why in WHOLE, why=why)
    return Fetched(name, uri, file, n, pages, why, sound=why in ENDS)


async def _gather(work: Work, name: str, uri: str, gathering: Gathering, bar: TaskID) -> str:
    """Fetch page after page to the end; how it ended."""
    cursor: str | None = None
    while True:
        ask = partial(work.appview.feed, uri, cursor, gathering.wanted)
        page = await _tried(work, name, gathering.pages + 1, ask)
        why = gathering.take(page)
        work.progress.update(bar, completed=len(gathering.items))
        if why:
            return why
        cursor = page.cursor


async def _uri(work: Work, feed: Feed) -> str:
    """The feed's AT-URI, with its owner's DID."""
    did = feed.owner
    if not did.startswith("did:"):
        did = await _tried(work, feed.name or feed.rkey, 0, partial(work.appview.resolve, did))
    return feed_uri(did, feed.rkey)


async def _tried(work: Work, name: str, page: int, ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until there is an answer of use; at most `feeds.attempts` times."""
    pause = work.settings.retry_seconds
    for attempt in count(1):
        try:
            return await ask()
        except (Transient, BadInput) as error:
            if attempt == work.settings.attempts:
                raise
            wait = min(max(pause, getattr(error, "retry_after", None) or 0.0), work.settings.retry_max_seconds)
            work.say("feed_again", feed=name, page=page, why=_in_words(error), wait_s=round(wait, 1))
        await asyncio.sleep(wait)
        pause *= 2
    raise AssertionError  # pragma: no cover - the loop has no end


def _in_words(error: Exception) -> str:
    return "the public API's answer cannot be used" if isinstance(error, BadInput) else log.harmless(str(error))


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
    for path in reversed(inbox.files(folder)):
        try:
            header, items = inbox.read(path)
        except (BadInput, OSError):
            continue
        if header.kind == "feed" and feed.is_of(header.name, header.uri):
            return Fetched(header.name, header.uri, path.name, len(items), header.pages, header.why, sound=True)
    return Fetched(
        feed.name or feed_uri(feed.owner, feed.rkey),
        "",
        "",
        0,
        0,
        "no fetched file of it is there; leave out --from-local",
        sound=False,
    )
