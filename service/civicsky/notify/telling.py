"""Tells people of the running service what wants them. What is told is decided in `notices.py`, sent by `ways.py`.

Nothing here delays the flow: what is to be told goes into an outbox, which a task for each way sends by itself.
"""

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from civicsky import log
from civicsky.errors import CivicskyError, Held, first_of
from civicsky.health import Look
from civicsky.metrics import Metrics
from civicsky.model import Gap, now_us
from civicsky.notify.notices import Notice, Seen, message
from civicsky.notify.outbox import Delivery, State, Way, file_of
from civicsky.notify.ways import ways_of, who
from civicsky.settings import Settings

LAST_SECONDS: Final = 5.0
"""How long the end of the process waits for its last messages; what is not sent then is sent by the next start."""
_GAPS_SHOWN: Final = 5
_WAIT_FOR_END_US: Final = 600_000_000
"""How long a gap is waited for to end before it is told without its length."""
UNCLEAN: Final = (
    "the run before ended without a word: killed, out of memory, or the machine stopped; it has been started again"
)


class Notifier:
    """Keeps the state and has it sent. Whoever lets it know of something goes on at once."""

    def __init__(self, settings: Settings, folder: Path, role: str, metrics: Metrics, ways: Sequence[Way]) -> None:
        self._settings, self._metrics, self._ways = settings.notify, metrics, tuple(ways)
        self._who = who(settings, folder, role)
        self._state = State(folder / file_of(role), [way.name for way in ways])
        self._saving, self._closing = asyncio.Lock(), asyncio.Event()
        self._deliveries: list[Delivery] = []
        self._first_seen: dict[str, int] = {}
        self._unbalanced = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._last_write: asyncio.Future[None] | None = None

    # ---- what happens ----

    def begin(self) -> None:
        """Read what was told before, and start to send. A run before that ended without a word is told now."""
        self._state.load()
        now = now_us()
        if self._state.running is not None:
            self._ended(UNCLEAN, since=now)
        self._state.running = now
        self._state.write(self._state.as_text())
        boxes = self._state.outboxes
        self._deliveries = [Delivery(way, boxes[way.name], self._closing, self._save) for way in self._ways]
        self._tasks = [
            asyncio.create_task(delivery.run(), name=f"notify-{way.name}")
            for way, delivery in zip(self._ways, self._deliveries, strict=True)
        ]

    def heed(self, look: Look) -> None:
        """Take note of what is wrong; to be called once a second or so."""
        now = now_us()
        seen = [*self._parked(), *self._conditions(look)]
        if self._unbalanced:
            seen.append(("balance", self._unbalanced, True))
        # How long the service sees it, not how far behind it is.
        self._first_seen = {name: min(self._first_seen.get(name, now), now) for name, _, _ in seen}
        found = [Seen(name, why, self._first_seen[name], wanting) for name, why, wanting in seen]
        self._tell(self._state.book.see(found, self._settings, now))

    def journal(self, gaps: Sequence[Gap], unbalanced: str) -> None:
        """Take note of all gaps of the coverage, and of a balance that does not close (empty: they all do)."""
        self._unbalanced = unbalanced
        book, now = self._state.book, now_us()
        if book.gaps is None or book.gaps > len(gaps):  # older gaps, or another journal's
            book.gaps = len(gaps)
        new = list(gaps[book.gaps :])
        while new and new[-1].until_at is None and now - new[-1].at < _WAIT_FOR_END_US:
            new.pop()  # its length is not known yet
        book.gaps += len(new)
        missed = [gap for gap in new if _is_missed(gap)]
        if missed:
            since, until = _extent(missed)
            self._tell(book.note("gap", _gaps_text(missed), self._settings, since, until, now))
        self._wake()  # how many there were is written down

    def failed(self, why: str) -> None:
        """The service ends by itself."""
        self._ended(why, since=now_us())

    def _ended(self, why: str, since: int) -> None:
        self._tell(self._state.book.meet(Seen("ended", why, since, wanting=True), self._settings, now_us()))

    def _parked(self) -> list[tuple[str, str, bool]]:
        facts = self._metrics
        parked = (("model_parked", facts.model_parked), ("store_parked", facts.store_parked))
        return [(name, why, True) for name, why in parked if why]

    def _conditions(self, look: Look) -> list[tuple[str, str, bool]]:
        """What lasts; of what is parked that alone is told."""
        told_apart = {"model_down": self._metrics.model_parked, "store_down": self._metrics.store_parked}
        return [(one.name, one.why, one.over and not told_apart.get(one.name)) for one in look.conditions]

    def _tell(self, notices: Sequence[Notice]) -> None:
        for notice in notices:
            told = {**message(notice, self._who, secrets.token_hex(8)), "at_us": notice.at}
            log.event("notified", stage="notify", kind=notice.kind, problem=notice.name, id=told["id"])
            if given_up := self._state.put(told):
                log.event("notify_down", stage="notify", why="too many messages wait", given_up=given_up)
        if notices:
            self._wake()

    def _wake(self) -> None:
        for delivery in self._deliveries:
            delivery.news.set()

    # ---- sending ----

    async def watch(self) -> None:
        """Until cancelled; raises what a sending task died of."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    async def _save(self) -> None:
        """Have the state written, in a thread, since a disk may be slow; one at a time."""
        async with self._saving:
            await asyncio.shield(self._writing(self._state.as_text()))

    def _writing(self, text: bytes) -> "asyncio.Future[None]":
        self._last_write = asyncio.ensure_future(asyncio.to_thread(self._state.write, text))
        return self._last_write

    async def finish(self, seconds: float) -> None:
        """Send what waits for at most so long; then nothing runs any more, and the end is noted."""
        self._state.running = None
        self._closing.set()
        self._wake()
        try:
            if seconds:
                await asyncio.wait(self._tasks, timeout=seconds)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=LAST_SECONDS)
            if self._last_write:
                await asyncio.wait([self._last_write])
            self._state.write(self._state.as_text())
            for way in self._ways:
                await way.close()


def _is_missed(gap: Gap) -> bool:
    """Whether somebody wants to know: not of hours that were not wanted, nor of what was read again."""
    return gap.cause != "window" and (gap.from_at is None or gap.until_at is None or gap.until_at > gap.from_at)


def _extent(gaps: Sequence[Gap]) -> tuple[int, int | None]:
    """From the begin of the first to the end of the last, by the events' times, where they are known."""
    since = min(gap.at if gap.from_at is None else gap.from_at for gap in gaps)
    ends = [gap.until_at for gap in gaps if gap.until_at is not None]
    return since, max(ends, default=None)


def _gaps_text(gaps: Sequence[Gap]) -> str:
    shown = [f"{gap.cause} at {gap.host}, {_length(gap)}" for gap in gaps[:_GAPS_SHOWN]]
    more = len(gaps) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _length(gap: Gap) -> str:
    if gap.from_at is None or gap.until_at is None:
        return "its length is not known"
    return f"{(gap.until_at - gap.from_at) / 1e6:,.1f} s"


@asynccontextmanager
async def telling(settings: Settings, folder: Path, role: str, metrics: Metrics) -> AsyncIterator[Notifier | None]:
    """A notifier for as long as the service runs, which tells when that ends by an error; None: nobody is to be told.

    The caller holds the role's lock. A second signal, which cancels, waits for no message.
    """
    if not settings.notify.chosen:
        yield None
        return
    notifier = Notifier(settings, folder, role, metrics, ways_of(settings.notify))
    notifier.begin()
    seconds = min(LAST_SECONDS, settings.limits.drain_seconds)
    try:
        yield notifier
    except asyncio.CancelledError:
        seconds = 0.0
        raise
    except Held:
        raise
    except BaseException as error:
        notifier.failed(_why(error))
        raise
    finally:
        await notifier.finish(seconds)


def _why(error: BaseException) -> str:
    """In one line. What is no word of ours may quote anything, so its kind is enough."""
    first = first_of(error) if isinstance(error, BaseExceptionGroup) else error
    if isinstance(first, sqlite3.Error):
        return f"a database could not be used: {first}"
    if isinstance(first, OSError):
        return first.strerror or type(first).__name__
    return str(first) if isinstance(first, CivicskyError) else f"a defect: {type(first).__name__}"
