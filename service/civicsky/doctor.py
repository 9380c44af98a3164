"""Looks over an installation and its data directory: what is wrong, and what to do about it.

Each check stands for itself: one that fails or takes too long never hides another. Nothing is written to a database,
the service may run or not, and all words of the far side are made harmless before they are shown.
"""

import asyncio
import json
import os
import platform
import re
import socket
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Literal, NamedTuple, get_args

from civicsky import __version__, datadir, journal, ledger, log, store, tables
from civicsky.annotate import votes
from civicsky.appview import AppView
from civicsky.clock import SKEW_SECONDS, is_off, skew_seconds
from civicsky.decode import decode
from civicsky.endpoint import open_endpoints
from civicsky.errors import BadInput, CivicskyError, Transient
from civicsky.events import tables as events
from civicsky.journal import JournalReader
from civicsky.label import Slot
from civicsky.ledger import LedgerReader
from civicsky.local import find_weights, fingerprint_of
from civicsky.model import format_time, now_us
from civicsky.recheck import Rechecks
from civicsky.settings import Label as LabelSettings, Settings, expanded
from civicsky.source import reach
from civicsky.sqlite import Schema, defects, reading
from civicsky.status import balance, covered, window_shown, window_told
from civicsky.window import share_open, was_closed

State = Literal["ok", "problem", "unknown"]

DEFAULT_SECONDS: Final = 10.0
"""Bound of each check. While a database is read, its write-ahead log cannot be cut short."""
THOROUGH_BYTES: Final = 1_000_000_000
"""Databases up to this size are compared with their indexes, too: that takes seconds a gigabyte, and more."""
FREE_BYTES: Final = 1_000_000_000
"""Free space below which the disk counts as full."""
DAYS_AHEAD: Final = 14
"""A bound that will be reached within so many days is told as a problem."""
MIN_HOURS: Final = 2
MIN_KEPT: Final = 1000
"""Whole hours and posts held, below which nothing is foretold."""
FAR_BEHIND: Final = 1000
"""Changes or documents that may wait, however old they are."""
WAIT_US: Final = 3_600_000_000
"""How long things may wait in line, and how long a running service may receive nothing."""
FAILED_SHARE: Final = 0.01
"""Share of failed labels or quarantined frames above which it is not single posts that are at fault."""
_TOLD: Final = frozenset({"atproto", "httpx", "libipld", "motor", "pymongo", "websockets"})
"""Packages whose versions a report of a defect should name."""
OLDEST_SQLITE: Final = (3, 38)
"""The first with the operator ->>."""
LISTEN_SECONDS: Final = 3.0
WELL_KNOWN: Final = "did:plc:z72i7hdynmk6r22z27h6tvur"
"""Bluesky's own account."""

_HOUR_US: Final = 3_600_000_000
_DAY_US: Final = 24 * _HOUR_US


class Finding(NamedTuple):
    """What one check found out."""

    name: str
    state: State
    what: str
    remedy: str = ""
    """What to do about it; empty when there is nothing to do."""


@dataclass(frozen=True)
class Context:
    """What the checks look at."""

    settings: Settings
    folder: Path

    @asynccontextmanager
    async def journal(self) -> AsyncIterator[JournalReader]:
        """The journal, for a while."""
        async with reading(self.folder / datadir.JOURNAL, tables.SCHEMA) as database:
            yield JournalReader(database)

    @asynccontextmanager
    async def ledger(self) -> AsyncIterator[LedgerReader | None]:
        """The ledger, for a while; None when there is none yet."""
        file = self.folder / datadir.LEDGER
        if not file.is_file():
            yield None
            return
        async with reading(file, ledger.SCHEMA) as database:
            yield LedgerReader(database)


Check = Callable[[Context], Awaitable[list[Finding]]]


def _ok(name: str, what: str) -> list[Finding]:
    return [Finding(name, "ok", what)]


def _judged(name: str, what: str, remedy: str, *, bad: bool) -> list[Finding]:
    return [Finding(name, "problem", what, remedy) if bad else Finding(name, "ok", what)]


# ---- the installation ------------------------------------------------------------------------------------------------


async def _versions(_context: Context) -> list[Finding]:
    shown = [f"civicsky {__version__}", f"Python {platform.python_version()}", f"SQLite {sqlite3.sqlite_version}"]
    missing = []
    for name in _required():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if name in _TOLD:
            shown.append(f"{name} {version}")
    with suppress(metadata.PackageNotFoundError):  # an extra
        shown.append(f"picows {metadata.version('picows')}")
    if missing:
        return [Finding("versions", "problem", f"not installed: {', '.join(missing)}", "install civicsky again")]
    return _judged(
        "versions", ", ".join(shown), "use a Python whose SQLite is 3.38 or newer",
        bad=sqlite3.sqlite_version_info < OLDEST_SQLITE,
    )  # fmt: skip


def _required() -> list[str]:
    """The packages that civicsky cannot do without."""
    try:
        required = metadata.requires("civicsky") or []
    except metadata.PackageNotFoundError:  # it runs from its sources
        return []
    return sorted(re.split(r"[^\w.-]", line)[0] for line in required if "extra ==" not in line)


# ---- the folder ------------------------------------------------------------------------------------------------------


async def _place(context: Context) -> list[Finding]:
    """Whether the folder can be looked at without harm. A network mount that hangs would hang us: it is not touched."""
    folder = context.folder
    for place in (folder, None):
        kind = datadir.kind_of(place or folder.resolve())
        if kind in datadir.NETWORK:
            return [
                Finding(
                    "file system", "problem", f"{folder} is on a network file system ({kind}), where SQLite loses data",
                    "move it to a local disk and name it with --data-dir",
                )
            ]  # fmt: skip
    found = _ok("file system", f"{kind or 'of unknown type'}, on this machine")
    if (folder / datadir.JOURNAL).is_file():
        return found
    there = f"{folder} holds no {datadir.JOURNAL}" if folder.is_dir() else f"there is no folder {folder}"
    remedy = "name the right one with --data-dir, or start `civicsky run` or `civicsky collect`, which makes it"
    return [*found, Finding("data directory", "problem", there, remedy)]


async def _permissions(context: Context) -> list[Finding]:
    """The folder is for its owner alone; whoever may write there may replace the databases."""
    folder, found = context.folder, []
    mode = folder.stat().st_mode
    if mode & 0o027:
        what = f"{folder} is open to others (mode {mode & 0o777:o})"
        found.append(Finding("permissions", "problem", what, f"chmod 700 {folder}"))
    if not os.access(folder, os.W_OK):
        what = f"{folder} cannot be written by this user"
        found.append(Finding("permissions", "problem", what, "look at its owner, or run as the service's user"))
    names = (datadir.JOURNAL, datadir.LEDGER, datadir.POSTS, datadir.ANNOTATIONS, datadir.EVENTS)
    files = [folder / (name + tail) for name in names for tail in ("", "-wal", "-shm")]
    for file in filter(Path.is_file, files):
        mode = file.stat().st_mode
        if mode & 0o077:
            what = f"{file} is open to others (mode {mode & 0o777:o})"
            found.append(Finding("permissions", "problem", what, f"chmod 600 {file}"))
        if not os.access(file, os.W_OK):
            what = f"{file} cannot be written by this user"
            found.append(Finding("permissions", "problem", what, "look at its owner, or run as the service's user"))
    return found or _ok("permissions", f"{folder} and its files are for their owner alone")


async def _locks(context: Context) -> list[Finding]:
    return [_lock(context.folder, role) for role in get_args(datadir.Role)]


def _lock(folder: Path, role: datadir.Role) -> Finding:
    name, found = f"lock {role}", datadir.holding(folder, role)
    if not found.held:
        return Finding(name, "ok", "free" + (f"; last taken by {found.holder}" if found.holder else ""))
    if not _gone(found.holder):
        return Finding(name, "ok", f"held by {found.holder or 'another process'}")
    return Finding(
        name, "problem", f"held, though the process that took it is no more: {found.holder}",
        f"another process has it: `fuser -v {folder / role}.lock` names it; end it",
    )  # fmt: skip


def _gone(holder: str) -> bool:
    """Whether a lock's holder was a process of this machine that has ended."""
    try:
        told = json.loads(holder)
        pid = int(told["pid"])
    except (ValueError, TypeError, KeyError):
        return False
    if told.get("host") != socket.gethostname() or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


# ---- the databases ---------------------------------------------------------------------------------------------------


async def _journal_file(context: Context) -> list[Finding]:
    return await _database(context.folder / datadir.JOURNAL, tables.SCHEMA)


async def _ledger_file(context: Context) -> list[Finding]:
    return await _database(context.folder / datadir.LEDGER, ledger.SCHEMA)


async def _posts_file(context: Context) -> list[Finding]:
    if context.settings.store.chosen != "sqlite":
        return []
    return await _database(context.folder / datadir.POSTS, store.SCHEMA)


async def _annotations_file(context: Context) -> list[Finding]:
    file = context.folder / datadir.ANNOTATIONS
    return await _database(file, votes.SCHEMA) if file.is_file() else []  # most never label by hand


async def _events_file(context: Context) -> list[Finding]:
    file = context.folder / datadir.EVENTS
    return await _database(file, events.SCHEMA) if file.is_file() else []  # most give no articles


async def _database(file: Path, schema: Schema) -> list[Finding]:
    """Whether it is ours, of our format, and sound."""
    if not file.is_file():
        return _ok(file.name, "not made yet: nothing was labelled")
    size = file.stat().st_size
    async with reading(file, schema) as database:
        found = await defects(database, thorough=size <= THOROUGH_BYTES)
    if found:
        remedy = "restore a backup of the whole directory, or move the file away, and start again"
        return [Finding(file.name, "problem", f"{file} is damaged: {found[0]}", remedy)]
    return _ok(file.name, f"format {len(schema.steps)}, {_bytes(size)}, sound")


async def _balances(context: Context) -> list[Finding]:
    async with context.journal() as reader:
        counts = await reader.counts()
    remedy = "a defect of civicsky: please report it, with the output of `civicsky status --json`"
    found: list[Finding] = []
    for unit in ("frame", "post"):
        equation = balance(counts, unit)
        found += _judged("balance", str(equation), remedy, bad=not equation.closes)
    return found


async def _quarantine(context: Context) -> list[Finding]:
    bounds = context.settings.journal
    async with context.journal() as reader:
        n, size = await reader.quarantine()
        hours = await reader.hours(now_us() - _DAY_US)
    day = sum(hours.values(), Counter[tuple[str, str]]())
    told = f"{n:,} of {bounds.quarantine_rows:,} things, {_bytes(size)} of {_bytes(bounds.quarantine_bytes)}"
    full = n > 0 and (n >= bounds.quarantine_rows or size >= bounds.quarantine_bytes * 0.9)
    found = _judged(
        "quarantine", told, "the oldest are dropped: look at them with `civicsky failed list`, or raise "
        "journal.quarantine_rows and journal.quarantine_bytes", bad=full,
    )  # fmt: skip
    for unit in ("frame", "post"):
        bad, of = day[unit, "quarantined"], day[unit, "received"]
        if bad > FAILED_SHARE * of:
            what = f"{bad:,} of {of:,} {unit}s could not be read in the last day"
            found.append(Finding("quarantine", "problem", what, "look at them with `civicsky failed list`"))
    return found


async def _gaps(context: Context) -> list[Finding]:
    """What was missed for good cannot be mended, so only what is new is a problem."""
    async with context.journal() as reader:
        found, hours, opened = await covered(reader)
        told, _ = await window_told(reader)
    gaps = [gap for gap in found.gaps if gap.cause != "window"]  # those are wanted
    now = now_us()
    new = [gap for gap in gaps if gap.at > now - _DAY_US]
    unsure = sum(one.seconds for one in found.stretches if one.kind == "unverified" and one.end > now - _DAY_US)
    window, share, of = window_shown(told, found, hours, opened), found.share, "the time"
    if window is not None:
        share, of = window["share_held"], "the window's hours"
    share_held = "nothing" if share is None else f"{share:.3%} of {of}"
    remedy = "`civicsky coverage` shows all; deletions that were missed are found by `civicsky recheck`"
    if new:
        what = f"{len(new):,} new in the last day, the last one: {new[-1].cause} at {new[-1].host}"
        return [Finding("gaps", "problem", what, remedy)]
    if unsure:
        what = f"of {unsure:,.0f} s in the last day nobody can tell whether all was received"
        return [Finding("gaps", "problem", what, remedy)]
    return _ok("gaps", f"none new in the last day; {share_held} was held, {len(gaps):,} gaps in all")


async def _collecting(context: Context) -> list[Finding]:
    async with context.journal() as reader:
        hours = await reader.hours(now_us() - 2 * WAIT_US)
        runs = await reader.runs()
        _, window = await window_told(reader)
    if not datadir.holding(context.folder, "collect").held:
        return _ok("collecting", "does not run")
    received = sum(hour["frame", "received"] for hour in hours.values())
    started = runs[-1]["started"] if runs else now_us()
    is_quiet = window is not None and was_closed(window, now_us() - 2 * WAIT_US, now_us())
    return _judged(
        "collecting", f"runs since {format_time(started)}, {received:,} messages in the last hours",
        "look at the service's log, the network, and source.relays",
        bad=not received and started < now_us() - WAIT_US and not is_quiet,
    )  # fmt: skip


async def _labelling(context: Context) -> list[Finding]:
    async with context.journal() as reader, context.ledger() as follower:
        last = await reader.last_change()
        if follower is None:
            chosen = context.settings.asks
            return _judged(
                "labelling", f"{last:,} changes wait; nothing was labelled yet", "start `civicsky label`",
                bad=chosen and last > FAR_BEHIND and not datadir.holding(context.folder, "label").held,
            )  # fmt: skip
        position = await follower.position()
        oldest = await reader.changes(position, 1)
        told = await follower.summary()
    runs = datadir.holding(context.folder, "label").held
    behind = last - position
    remedy = "look at the service's log" if runs else "start `civicsky label`"
    late = bool(oldest) and oldest[0].at < now_us() - WAIT_US
    found = _judged("labelling", f"{behind:,} changes to follow", remedy, bad=behind > FAR_BEHIND and late)
    asked = told["labelled"] + told["failed"]
    found += _judged(
        "labels", f"{told['labelled']:,} labelled, {told['waiting']:,} wait, {told['failed']:,} failed",
        "`civicsky failed list` tells why; mend the cause, then `civicsky failed retry`",
        bad=told["failed"] > FAILED_SHARE * asked,
    )  # fmt: skip
    found += _judged(
        "documents", f"{told['unstored']:,} wait for the store, {told['refused_by_store']:,} refused by it",
        "`civicsky failed list` tells why; then `civicsky failed retry`" if told["refused_by_store"] else remedy,
        bad=told["refused_by_store"] > 0 or (told["unstored"] > FAR_BEHIND and late),
    )  # fmt: skip
    return found


async def _rechecks(context: Context) -> list[Finding]:
    settings = context.settings.appview
    async with reading(context.folder / datadir.JOURNAL, tables.SCHEMA) as database:
        waiting, oldest = await Rechecks(database).waiting(), await Rechecks(database).oldest()
    late = oldest is not None and oldest < now_us() - _DAY_US - int(settings.recheck_after_seconds * 1e6)
    since = f", the oldest since {format_time(oldest)}" if oldest else ""
    return _judged(
        "rechecks", f"{waiting:,} rounds wait{since}",
        "`civicsky recheck` looks the posts up now; the public API must answer, and appview.recheck be on",
        bad=late,
    )  # fmt: skip


# ---- room ------------------------------------------------------------------------------------------------------------


async def _room(context: Context) -> list[Finding]:
    settings = context.settings.journal
    free = _free(context.folder)
    found = _judged("disk", f"{_bytes(free)} free", f"make room in {context.folder}", bad=free < FREE_BYTES)
    async with context.journal() as reader:
        size = await reader.size()
        hours = await reader.hours(now_us() - int(max(settings.post_days, 2) * _DAY_US))
        kept = sum(n for (unit, what, _), n in (await reader.counts()).items() if (unit, what) == ("post", "kept"))
        chosen, open_hours = await window_told(reader)
    told = f"{_bytes(size)} in use, {size / settings.max_bytes:.1%} of journal.max_bytes"
    does = "reading stands still" if settings.at_bound == "pause" else "posts are left out by chance"
    found += _judged(
        "journal size", told, f"at the bound {does}: label faster, lower journal.post_days, or raise journal.max_bytes",
        bad=size >= settings.max_bytes * journal.ROOMY,
    )  # fmt: skip
    rate = per_day(hours)
    window = sum(hour["post", "kept"] for hour in hours.values())
    if not rate or window < MIN_KEPT:
        what = f"too little was held to tell ({MIN_HOURS} whole hours and {MIN_KEPT:,} posts are needed)"
        return [*found, Finding("forecast", "ok", what)]
    if open_hours is not None and chosen["resume"] == "live":
        rate *= share_open(open_hours, now_us(), now_us() + _DAY_US)
    others = sum((context.folder / name).stat().st_size for name in _followers(context)) / kept
    return found + forecast(context, Growth(rate, size / window, others, size, free))


def _free(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _followers(context: Context) -> list[str]:
    """The databases that grow for ever."""
    names = [datadir.LEDGER, *([datadir.POSTS] if context.settings.store.chosen == "sqlite" else [])]
    return [name for name in names if (context.folder / name).is_file()]


def per_day(hours: dict[int, Counter[tuple[str, str]]]) -> float | None:
    """Posts kept a day, from the last whole hours in which anything was received; None when there are too few."""
    now = now_us() // _HOUR_US * _HOUR_US
    busy = [hours[hour]["post", "kept"] for hour in sorted(hours) if hour < now and hours[hour]["frame", "received"]]
    whole = busy[1:][-24:]  # the first one was begun late
    return fmean(whole) * 24 if len(whole) >= MIN_HOURS else None


class Growth(NamedTuple):
    """What a forecast is made of."""

    posts_a_day: float
    journal_bytes: float
    """For a post that was kept."""
    other_bytes: float
    """The same, in the databases of which nothing is ever dropped."""
    size: int
    """Of the journal, in use."""
    free: int
    """On the disk."""

    @property
    def journal_a_day(self) -> float:
        """Bytes that are added to the journal a day."""
        return self.posts_a_day * self.journal_bytes

    @property
    def others_a_day(self) -> float:
        """Bytes that are added to the others a day."""
        return self.posts_a_day * self.other_bytes


def forecast(context: Context, growth: Growth) -> list[Finding]:
    """When the journal's bound is reached, and when the disk is full, if all goes on like this."""
    settings = context.settings.journal
    labels = (context.folder / datadir.LEDGER).is_file()
    need = growth.journal_a_day * max(settings.post_days, 1) if labels else inf  # unlabelled posts are never dropped
    to_bound = max(0.0, settings.max_bytes - growth.size) / growth.journal_a_day if need > settings.max_bytes else inf
    fills = max(0.0, min(need, settings.max_bytes) - growth.size)
    both = growth.free / (growth.journal_a_day + growth.others_a_day)
    to_full = both
    if both * growth.journal_a_day > fills:  # the journal is done growing before
        to_full = (growth.free - fills) / growth.others_a_day if growth.others_a_day else inf
    told = f"{_bytes(growth.journal_a_day + growth.others_a_day)} a day; the journal will need " + (
        f"{_bytes(need)} for {settings.post_days:g} days of posts" if labels else "ever more, as nothing is labelled"
    )
    found = _judged(
        "forecast", f"{told}; its bound is {_days(to_bound)}",
        "raise journal.max_bytes, lower journal.post_days, or label faster",
        bad=to_bound < DAYS_AHEAD,
    )  # fmt: skip
    return found + _judged(
        "forecast", f"the disk's end is {_days(to_full)}", "make room, move to a larger disk, or store in MongoDB",
        bad=to_full < DAYS_AHEAD,
    )  # fmt: skip


def _days(days: float) -> str:
    return "not reached" if days == inf else f"reached in {days:,.1f} days"


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:  # noqa: PLR2004
            return f"{n:,.0f} {unit}" if unit == "B" else f"{n:,.1f} {unit}"
        n /= 1000
    return f"{n:,.1f} TB"


# ---- clocks ----------------------------------------------------------------------------------------------------------


async def _event_times(context: Context) -> list[Finding]:
    async with context.journal() as reader:
        newest = {row.host: row.last_at for row in await reader.held()}  # not of one server, whose clock may be wrong
    ahead = (max(newest.values()) - now_us()) / 1e6 if newest else -inf
    return _judged(
        "clock", f"the newest event is {ahead:,.0f} s in the future" if ahead > 0 else "no event is of the future",
        "set this machine's clock (NTP); if it is right, the relay's is wrong",
        bad=ahead > SKEW_SECONDS,
    )  # fmt: skip


def _clock(whose: str, date: str) -> list[Finding]:
    """Our clock against an HTTP date that was sent just now; nothing when there is none."""
    skew = skew_seconds(date)
    if skew is None:
        return []
    return _judged(
        "clock", f"{abs(skew):,.0f} s {'behind' if skew > 0 else 'ahead of'} that of {whose}",
        "set this machine's clock (NTP)", bad=is_off(skew),
    )  # fmt: skip


# ---- the far side ----------------------------------------------------------------------------------------------------


async def _relays(context: Context) -> list[Finding]:
    parts = await asyncio.gather(*(_relay(context, relay) for relay in context.settings.source.relays))
    return [finding for part in parts for finding in part]


async def _relay(context: Context, relay: str) -> list[Finding]:
    remedy = "look at the network and source.relays; the service tries again for ever"
    try:
        found = await reach(relay, context.settings.source, LISTEN_SECONDS)
    except CivicskyError as error:
        return [Finding("relay", "problem", str(error), remedy)]
    clock = _clock(relay, found.date)
    if found.first is None:
        return [*_ok("relay", f"{relay} is open, and quiet"), *clock]
    try:
        event = decode(found.first if isinstance(found.first, bytes) else b"")
    except BadInput:
        return [Finding("relay", "problem", f"{relay} sends something else than events", remedy), *clock]
    return [
        *_judged("relay", f"{relay} sends {event.outcome} {event.name}".strip(), remedy, bad=event.outcome == "error"),
        *clock,
    ]


async def _model(context: Context) -> list[Finding]:
    label = context.settings.label
    if context.settings.workers.url:
        return await _workers(context)
    if not label.chosen:
        return _ok("model", "none is chosen; `civicsky collect` needs none")
    if label.model == "local":
        return _ok("model", f"local, {find_weights(label.gguf)}")
    parts = await asyncio.gather(*(_model_at(label, url) for url in dict.fromkeys((label.model_url, *label.more_urls))))
    return [finding for part in parts for finding in part]


async def _workers(context: Context) -> list[Finding]:
    """Whether NATS lets us in, and who is there."""
    from civicsky.workers.listen import listened  # noqa: PLC0415  (only with `workers.url`)
    from civicsky.workers.messages import model_key  # noqa: PLC0415

    label = context.settings.label
    if label.model == "local":
        weights = find_weights(label.gguf)
        model, fingerprint = weights.name, await asyncio.to_thread(fingerprint_of, weights)
    else:
        model, fingerprint = label.model, None
    try:
        heard = await listened(context.settings.workers, model_key(model, fingerprint), model)
    except Transient as error:
        return [_troubled("model", error, "start NATS, or mend workers.url; until then posts wait on disk")]
    if heard.forbidden:
        remedy = "mend the rights of workers.user: docs/operations.md has those of a home node"
        return [Finding("model", "problem", f"NATS at {heard.host} says {heard.forbidden}", remedy)]
    if heard.shortage:
        what, _, own = heard.shortage.partition("; ")
        remedy = own or "start workers: civicsky label --worker URL; until then posts wait on disk"
        return [Finding("model", "unknown", f"NATS at {heard.host} lets us in; {what}", remedy)]
    return _ok("model", f"NATS at {heard.host} lets us in; {heard.workers} label workers are there")


async def _model_at(label: LabelSettings, url: str) -> list[Finding]:
    """One of the model's servers, asked once, whatever its limits."""
    unlimited = dict.fromkeys(("requests_per_minute", "requests_per_day", "tokens_per_minute", "tokens_per_day"))
    endpoints = open_endpoints(label.model_copy(update={"model_url": url, "more_urls": (), **unlimited}))
    endpoint = endpoints.servers[0].name
    slot = Slot(endpoints, {}, label)
    try:
        listed = await slot.models()
    except CivicskyError as error:
        return [_troubled("model", error, _REMEDIES[_model])]
    finally:
        await slot.close()
    if listed and label.model not in listed:
        what = f"{endpoint} does not list {label.model!r}, but: {', '.join(sorted(listed)[:5])}"
        return [Finding("model", "unknown", what, "mend --model, unless the server takes other names, too")]
    return _ok("model", f"{label.model} at {endpoint}" + ("" if listed else " (it does not list its models)"))


async def _mongo(context: Context) -> list[Finding]:
    if context.settings.store.chosen != "mongo":
        return []
    there = store.MongoStore(context.settings.store)
    try:
        await there.check()
    finally:
        await there.close()
    return _ok("store", f"MongoDB at {there.where}, may be written")


async def _public_api(context: Context) -> list[Finding]:
    settings = context.settings.appview
    if not settings.recheck:
        return _ok("public API", "not asked, as appview.recheck is off")
    appview = AppView(settings)
    try:
        await appview.accounts([WELL_KNOWN])
        return [*_ok("public API", f"{settings.url} answers"), *_clock(settings.url, appview.date)]
    except BadInput:
        what = f"{settings.url} answers with something else than the public API would"
        return [Finding("public API", "problem", what, "mend appview.url, or look at the proxy")]
    finally:
        await appview.close()


# ---- all of them -----------------------------------------------------------------------------------------------------

FOLDER: Final[tuple[Check, ...]] = (
    _permissions, _locks, _journal_file, _ledger_file, _posts_file, _annotations_file, _events_file, _balances, _room,
    _collecting, _labelling, _quarantine, _gaps, _rechecks, _event_times,
)  # fmt: skip
NETWORK: Final[tuple[Check, ...]] = (_relays, _model, _mongo, _public_api)

_NAMES: Final[dict[Check, str]] = {
    _journal_file: datadir.JOURNAL, _ledger_file: datadir.LEDGER, _posts_file: datadir.POSTS,
    _annotations_file: datadir.ANNOTATIONS, _events_file: datadir.EVENTS, _balances: "balance", _room: "disk",
    _event_times: "clock", _relays: "relay", _mongo: "store", _public_api: "public API",
}  # fmt: skip


_REMEDIES: Final[dict[Check, str]] = {
    _model: "start the server, or mend --model-url; until then posts wait on disk",
    _mongo: "start MongoDB, or mend CIVICSKY_STORE__MONGO_URI; until then documents wait on disk",
    _public_api: "look at the network and appview.url; until then posts are not looked up again",
}


async def examine(settings: Settings, *, offline: bool = False, seconds: float = DEFAULT_SECONDS) -> list[Finding]:
    """Look over everything; each check may take so many seconds. Raises nothing."""
    context = Context(_hurried(settings, seconds / 2), expanded(settings.data_dir))
    place = await _bounded(_place, context, seconds)
    checks = [*(FOLDER if all(one.state == "ok" for one in place) else ()), *(() if offline else NETWORK)]
    parts = await asyncio.gather(*(_bounded(check, context, seconds) for check in (_versions, *checks)))
    found = [*parts[0], *place, *(finding for part in parts[1:] for finding in part)]
    return _merged([_shown(finding, settings) for finding in found])


async def far_sides(settings: Settings, *, seconds: float = DEFAULT_SECONDS) -> list[Finding]:
    """Look only whether relays, model and store can be had. Raises nothing."""
    context = Context(_hurried(settings, seconds / 2), expanded(settings.data_dir))
    parts = await asyncio.gather(*(_bounded(check, context, seconds) for check in (_relays, _model, _mongo)))
    found = [finding for part in parts for finding in part]
    if settings.store.chosen == "sqlite":
        found += _ok("store", f"SQLite, {context.folder / datadir.POSTS}")
    return [_shown(finding, settings) for finding in found]


def _hurried(settings: Settings, seconds: float) -> Settings:
    """With the far sides' own bounds below ours, so that each can be told by its name."""
    bounds = (("source", "connect_seconds"), ("label", "request_seconds"), ("store", "timeout_seconds"))
    groups = {}
    for name, field in (*bounds, ("appview", "request_seconds")):
        group = getattr(settings, name)
        groups[name] = group.model_copy(update={field: min(seconds, getattr(group, field))})
    return settings.model_copy(update=groups)


async def _bounded(check: Check, context: Context, seconds: float) -> list[Finding]:
    name = _NAMES.get(check, check.__name__.strip("_"))
    try:
        async with asyncio.timeout(seconds):
            return await check(context)
    except TimeoutError:
        what = f"not known after {seconds:g} s"
        if check in NETWORK:
            return [Finding(name, "problem", what, "look at the network, or give it longer with --seconds")]
        return [Finding(name, "unknown", what, "give it longer with --seconds")]
    except CivicskyError as error:
        return [_troubled(name, error, _REMEDIES.get(check, ""))]
    except OSError as error:
        return [Finding(name, "problem", str(error), "look at the folder and its permissions")]
    except Exception as error:  # noqa: BLE001  (a defect in one check must not hide what the others found)
        what = f"this check failed: {type(error).__name__}: {error}"
        return [Finding(name, "problem", what, "a defect of civicsky: please report it")]


def _troubled(name: str, error: CivicskyError, remedy: str) -> Finding:
    """What an error says; most name their own remedy."""
    what, _, own = str(error).partition("; ")
    return Finding(name, "problem", what, own or remedy)


def _shown(finding: Finding, settings: Settings) -> Finding:
    """Without secrets, and with the far side's words made harmless."""
    uri = settings.store.mongo_uri.get_secret_value()
    password = uri.partition("://")[2].rpartition("@")[0].partition(":")[2]
    texts = [finding.what, finding.remedy]
    workers = (settings.workers.password.get_secret_value(), settings.workers.token.get_secret_value())
    for secret in filter(None, (uri, password, settings.label.api_key.get_secret_value(), *workers)):
        texts = [text.replace(secret, "***") for text in texts]
    return Finding(finding.name, finding.state, *map(log.harmless, texts))


def _merged(found: Sequence[Finding]) -> list[Finding]:
    """What kept several checks from their work is told once."""
    merged: list[Finding] = []
    names: dict[Finding, list[str]] = {}
    for finding in found:
        same = finding._replace(name="")
        if finding.state == "problem" and same in names:
            names[same].append(finding.name)
        else:
            merged.append(finding)
            names[same] = []
    return [_with_others(finding, names[finding._replace(name="")]) for finding in merged]


def _with_others(finding: Finding, names: Sequence[str]) -> Finding:
    others = [name for name in dict.fromkeys(names) if name != finding.name]
    if finding.state != "problem" or not others:
        return finding
    return finding._replace(what=f"{finding.what} (so nothing is known of: {', '.join(others)})")


def healthy(found: Sequence[Finding]) -> bool:
    """Whether there is no problem."""
    return all(finding.state != "problem" for finding in found)


def as_json(found: Sequence[Finding]) -> dict[str, Any]:
    """For programs."""
    return {"healthy": healthy(found), "findings": [finding._asdict() for finding in found]}


def as_text(found: Sequence[Finding], *, verbose: bool) -> str:
    """For people: a line each, those that are ok only when asked for, and how many there are."""
    lines = [
        f"{finding.state:8} {finding.name:14} {finding.what}" + (f"; {finding.remedy}" if finding.remedy else "")
        for finding in found
        if verbose or finding.state != "ok"
    ]
    n = Counter(finding.state for finding in found)
    unknown = f", {n['unknown']} not known" if n["unknown"] else ""
    problems = f"{n['problem'] or 'no'} problem{'' if n['problem'] == 1 else 's'}"
    return "\n".join([*lines, f"{problems}{unknown}, {n['ok']} ok"])
