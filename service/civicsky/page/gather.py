"""Gathers what the page shows, while somebody watches it; nobody else has to wait for that, and nothing depends on it.

It has connections of its own that can only read. However many watch, it asks once in `TURN_SECONDS`, and nothing at all
when nobody does. Whatever fails here is told on the page and tried again: the service goes on.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from importlib.resources import files
from time import monotonic
from typing import Any, Final

from civicsky import __version__, datadir, ledger as ledgers, log, tables
from civicsky.errors import CivicskyError, Usage
from civicsky.metrics import Metrics
from civicsky.model import now_us
from civicsky.page import facts, live
from civicsky.page.hub import Hub, Listener
from civicsky.page.live import Rates
from civicsky.page.recent import Recent, packed_event
from civicsky.settings import Settings
from civicsky.sqlite import Database, open_reader
from civicsky.task import Task, load_tasks

TURN_SECONDS: Final = 2.0
LINGER_SECONDS: Final = 8.0
"""How long it goes on when nobody watches any more: whoever loads the page anew finds all there."""
AGAIN_SECONDS: Final = 5.0
"""After a failure."""
EVERY: Final[dict[str, float]] = {"cost": 10, "counts": 20, "shares": 60, "coverage": 60, "drift": 300}
"""Seconds after which a fact is asked for again."""
TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


class Page:
    """The page of one running service: its files, and whoever watches it."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        readiness: Callable[[], tuple[bool, Mapping[str, Any]]],
        halves: str,
    ) -> None:
        self._settings, self._metrics, self._readiness, self._halves = settings, metrics, readiness, halves
        self.files = dict(_files())
        """By name (content, content type), in memory: nothing is read from a disk for a request."""
        self._recent = Recent()
        self._rates = Rates()
        self._asked: dict[str, float] = {}
        self._why = ""
        self._alone_since: float | None = None
        self._tasks: list[Task] = []
        self._hub = Hub(self._posts)

    def _posts(self) -> Iterator[bytes]:
        return self._recent.events()  # of the list as it is then: it is another one after a pause

    @property
    def is_full(self) -> bool:
        """Whether nobody else can watch now."""
        return self._hub.is_full

    def join(self) -> Listener | None:
        """Somebody watches from now on; None when too many do."""
        return self._hub.join()

    def leave(self, listener: Listener) -> None:
        """Somebody watches no more."""
        self._hub.leave(listener)

    async def gather(self) -> None:
        """Tell whoever watches, until cancelled."""
        try:
            while True:
                await self._hub.somebody.wait()
                await self._watch()
        finally:
            self._hub.end()

    async def _watch(self) -> None:
        """As long as somebody watches, and a little longer."""
        is_greeted = False
        while self._goes_on():
            why, is_whole = "", False
            try:
                if not is_greeted:
                    await self._greet()
                    is_greeted = True
                is_whole = await self._turn_on()
            except CivicskyError as error:
                why = log.harmless(str(error))
            except Exception as error:  # noqa: BLE001  (a defect here must not end the service)
                log.event("http_failed", path="/page/events", why=repr(error))
                why = "a defect: see the service's log"
            if not is_whole:
                self._tell_why(why)
                await asyncio.sleep(AGAIN_SECONDS if why else TURN_SECONDS)
        self._forget()  # nobody came since it was asked

    def _tell_why(self, why: str) -> None:
        """Tell why figures stand still, if that can be told."""
        self._why = why
        try:
            self._tell_state()
        except Exception as error:  # noqa: BLE001  (it may be what failed)
            log.event("http_failed", path="/page/events", why=repr(error))

    def _goes_on(self) -> bool:
        """Whether anybody watches, or did a moment ago."""
        if len(self._hub):
            self._alone_since = None
            return True
        self._alone_since = self._alone_since or monotonic()
        return monotonic() - self._alone_since < LINGER_SECONDS

    async def _turn_on(self) -> bool:
        """Turn by turn while anybody watches; False, after one turn, while one of the databases is not there yet."""
        async with AsyncExitStack() as stack:
            ledger = await self._opened(stack, datadir.LEDGER, ledgers.SCHEMA)
            journal = await self._opened(stack, datadir.JOURNAL, tables.SCHEMA)
            while self._goes_on():
                began = monotonic()
                self._tell_state()
                await self._turn(ledger, journal)
                if ledger is None or journal is None:
                    return False
                await asyncio.sleep(max(TURN_SECONDS / 2, began + TURN_SECONDS - monotonic()))
        return True

    def _forget(self) -> None:
        """Nobody watches: hold no text, and nothing that grows old."""
        self._recent = Recent()
        self._rates.clear()
        self._asked.clear()
        self._hub.forget()

    async def _opened(self, stack: AsyncExitStack, name: str, schema: Any) -> Database | None:
        path = self._settings.data_dir / name
        if not path.is_file():
            return None
        database = await open_reader(path, schema)
        stack.push_async_callback(database.close)
        return database

    async def _greet(self) -> None:
        """What does not change while the service runs."""
        try:
            self._tasks = [task for task, _ in await asyncio.to_thread(load_tasks, self._settings.label.tasks)]
        except Usage:
            self._tasks = []  # only the labelling half minds
        told = {
            "version": __version__,
            "started": self._metrics.started_at // 1000,
            "halves": self._halves,
            "unit": self._settings.sample.unit,
            "signed": bool(self._settings.http.token.get_secret_value()),
            "turn": TURN_SECONDS,
            "tasks": [
                {"name": task.name, "fields": [{"name": f.name, "values": f.values} for f in task.fields]}
                for task in self._tasks
            ],
            "stages": live.STATES,
        }
        self._hub.replace("hello", told)

    def _tell_state(self) -> None:
        """The moment, from memory."""
        metrics, now = self._metrics, now_us()
        ready, told = self._readiness()
        rates = self._rates.note(monotonic(), metrics.counts)
        stages = live.stages(metrics, self._settings, rates, told, self._halves)
        state = {
            "at": now // 1000,
            "ready": ready,
            "reasons": [{"name": one["name"], "why": one["why"]} for one in told["reasons"]],
            "pending": [{"name": one["name"], "why": one["why"]} for one in told["pending"]],
            "quiet": told["quiet"],
            "window": told["window"],
            "host": log.harmless(metrics.host),
            "connected": metrics.connected,
            "lag": metrics.lag_seconds,
            "rates": rates,
            "totals": {name: metrics.counts[name] for name in live.RATED},
            "rejected": live.rejected(metrics),
            "waiting": metrics.waiting,
            "unstored": metrics.unstored,
            "journal_bytes": metrics.journal_bytes,
            "journal_max_bytes": self._settings.journal.max_bytes,
            "stages": [one._asdict() for one in stages],
            "latency": facts.latency(self._recent.calls),
            "failed": list(self._recent.failed.values()),
            "posts": len(self._recent),
            "why": self._why,
        }
        self._hub.replace("state", state)

    async def _turn(self, ledger: Database | None, journal: Database | None) -> None:
        """Ask the databases once, for what is due."""
        if ledger is not None and journal is not None:
            turn = await self._recent.turn(ledger, journal)
            if turn.gone:
                self._hub.put("gone", turn.gone)
            if turn.posts:
                self._hub.put_packed(packed_event(turn.posts))
        self._why = ""
        for name, ask in self._due(ledger, journal):
            self._hub.replace(name, await ask())
            self._asked[name] = monotonic()

    def _due(
        self, ledger: Database | None, journal: Database | None
    ) -> Iterator[tuple[str, Callable[[], Awaitable[Any]]]]:
        """The facts to be asked for now; of those that take long only one a turn."""
        settings, now = self._settings, now_us()
        asks: dict[str, Callable[[], Awaitable[Any]]] = {}
        if journal is not None:
            asks["counts"] = lambda: facts.counts(journal, now)
            asks["coverage"] = lambda: facts.coverage(journal, now)
        if ledger is not None:
            asks["cost"] = lambda: facts.cost(ledger, settings, now)
            asks["drift"] = lambda: facts.drift(ledger, settings)
        if ledger is not None and journal is not None:
            unit = settings.sample.unit
            asks["shares"] = lambda: facts.shares(ledger, journal, self._tasks, unit, now, _pause)
        for name, ask in asks.items():
            if monotonic() - self._asked.get(name, -EVERY[name]) >= EVERY[name]:
                yield name, ask


async def _pause() -> None:
    """Let the service's own work go first."""
    await asyncio.sleep(0)


def _files() -> Iterator[tuple[str, tuple[bytes, str]]]:
    for file in (files("civicsky.page") / "static").iterdir():
        kind = TYPES.get(file.name.rpartition(".")[2])
        if kind:
            yield file.name, (file.read_bytes(), kind)
