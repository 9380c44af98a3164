"""Fetches feeds of the public API into the inbox, and has them imported: the command `fetch`.

Each feed is one file, and one feed's failure does nothing to another's. A running collecting half imports the files;
else this does, under the lock `collect`, and lets ledger and store follow.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from rich.progress import Progress, TaskID

from civicsky import datadir, inbox, log
from civicsky.appview import AppView
from civicsky.beside import Stored, bars, feeds_in, imported, stored_now
from civicsky.errors import BadInput, CivicskyError, Transient, Usage
from civicsky.feeds import Outcomes
from civicsky.inbox import Header
from civicsky.journal import Journal
from civicsky.model import feed_place, feed_uri, now_us
from civicsky.paging import ENDS, Gathering
from civicsky.settings import FEED_FORMS, Feeds as FeedsSettings, Settings

T = TypeVar("T")


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
        header = Header("feed", name, uri, at, complete=why == "end", why=why, pages=pages)
        file = (await asyncio.to_thread(inbox.write, work.folder, header, gathering.items)).name
    elif why in ENDS:
        why = "it showed no post"
    name = name or f"{feed.owner}/{feed.rkey}"
    work.say("feed_fetched", feed=name, items=n, pages=pages, complete=why == "end", why=why)
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
    uri = feed_uri(feed.owner, feed.rkey)
    for path in reversed(inbox.files(folder)):
        try:
            header, items = inbox.read(path)
        except BadInput:
            continue
        if header.kind == "feed" and (header.name == feed.name or header.uri == uri):
            return Fetched(header.name, header.uri, path.name, len(items), header.pages, header.why, sound=True)
    return Fetched(
        feed.name or uri, "", "", 0, 0, "no fetched file of it is there; leave out --from-local", sound=False
    )


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
    how = ENDS.get(feed.why) or f"not complete: {log.harmless(feed.why)}"
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
