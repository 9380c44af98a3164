"""The log: structlog, JSON lines on standard error unless that is a terminal, or in a file that is rotated.

Every event's name is one of `EVENTS`. Never a post's text, never a secret, nothing per event above debug. A far side
that makes us say the same again and again cannot fill the disk: see `log.burst`, and `CHANGES` for faults that come
and go. Nothing here raises for a disk that is full or a reader that is gone.
"""

import json
import logging
import re
import select
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from math import inf
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, get_args

from civicsky.lean import without

if TYPE_CHECKING:  # whoever logs nothing, such as a worker process, does without
    from civicsky.logfile import LogFile
    from civicsky.settings import Log

EventName = Literal[
    "started",
    "stopping",
    "summary",
    "minute",
    "upgrading",
    "upgraded",
    "source_up",
    "source_down",
    "source_epoch",
    "source_info",
    "source_bad_frames",
    "source_host",
    "source_client",
    "source_resumed",
    "source_attempt",
    "source_quiet",
    "source_heard",
    "window_opened",
    "window_closed",
    "worker_restarted",
    "worker_up",
    "quarantined",
    "journal_full",
    "journal_room",
    "appview_up",
    "appview_down",
    "login",
    "rechecked",
    "feed_fetched",
    "feed_again",
    "feed_imported",
    "feed_unreadable",
    "label_up",
    "label_down",
    "label_parked",
    "label_left_out",
    "label_way",
    "label_failed",
    "label_unusable",
    "label_budget",
    "nats_up",
    "nats_down",
    "nats_forbids",
    "workers_joined",
    "workers_left",
    "workers_unlike",
    "workers_queue_lost",
    "workers_cleared_up",
    "workers_resting",
    "workers_working",
    "workers_foreign",
    "workers_idle",
    "workers_result_lost",
    "label_gate",
    "events_read",
    "events_bad_line",
    "events_unreadable",
    "progress",
    "model_started",
    "model_ended",
    "store_up",
    "store_down",
    "store_parked",
    "store_refused",
    "behind",
    "catching_up",
    "caught_up",
    "unready",
    "recovered",
    "clock_off",
    "clock_right",
    "log_down",
    "log_up",
    "log_left_out",
    "wedged",
    "moving",
    "notified",
    "notify_down",
    "notify_up",
    "notify_unsaved",
    "http_up",
    "http_failed",
    "drain_over",
    "failed",
]

EVENTS: Final[dict[EventName, str]] = {
    "started": "info: locks held, databases open, pool up",
    "stopping": "info: a limit or a signal ends the work; why= says which",
    "summary": "info: the last line of a run: minutes, frames, posts, kept, labelled, waiting",
    "minute": "info: the regular line: counts, rates, waiting, lag_s, health=ok|degraded|bad, why=",
    "upgrading": "info: a database of an earlier civicsky is brought up; file=, was= and to= (formats), mb=",
    "upgraded": "info: it is; file=, was=, to=, seconds=, kept= (the copy of what it was)",
    "source_up": "info: the relay sends frames or answers pings; host=, epoch=, cursor=",
    "source_down": "warning: the relay cannot be reached, or its socket died; why=. Once a change, not once an attempt",
    "source_epoch": "warning: the host was renumbered; a gap is recorded and its window is read again",
    "source_info": "warning: the relay sent #info or an error frame; name=",
    "source_bad_frames": "warning: ten frames in a row could not be decoded; reconnecting, or going live if again=true",
    "source_host": "warning: another relay is tried; host=, was=, why=",
    "source_client": "info: another client than the one that was to be used; client=, why=. Once a run",
    "source_resumed": "info: how a connection follows on what was held: "
    "resume=first|replayed|in_time|unverified|gap; see `civicsky coverage`",
    "source_attempt": "debug: one attempt to connect; wait_s= until the next",
    "source_quiet": "info: a connected relay sends nothing; host=. The whole network is never quiet",
    "source_heard": "info: it sends again; host=",
    "window_opened": "info: source.window opens; until=, resume=live|cursor",
    "window_closed": "info: it closes, or is closed at the start; until=, why= names the limit that ended the opening",
    "worker_restarted": "warning: a worker died or hung; its batch is tried record by record",
    "worker_up": "info: the workers are well again; all records= of that batch were judged",
    "quarantined": "debug: a frame or record was put aside; reason=, sha256=",
    "journal_full": "warning: the journal's disk bound is reached; why= says what is done",
    "journal_room": "info: the journal is below its bound again",
    "appview_up": "info: the public API answers again",
    "appview_down": "warning: posts cannot be looked up again, or (stage=label) contexts not be fetched, now; why=",
    "login": "info: a session for feeds that want a login; how=created|refreshed, handle=, server=",
    "rechecked": "info: posts were looked up again and are gone, hidden, or changed",
    "feed_fetched": "info: a feed was asked for; feed=, items=, pages=, complete=, why=",
    "feed_again": "warning: a page of a feed could not be had and is asked for again; feed=, page=, why=, wait_s=",
    "feed_imported": "info: a fetched file is imported; file=, name=, fetched=, and new=, known=, rejected=, failed=",
    "feed_unreadable": "warning: a file in the inbox is none of ours, or cannot be used now; file=, reason=",
    "label_up": "info: the model answers",
    "label_down": "warning: the model cannot be reached or is overloaded; posts wait on disk; why=",
    "label_parked": "error: the model refuses the key or the name; labelling stands still until a restart; why=",
    "label_left_out": "warning: one of several servers refuses the key or the name and is asked no more; why=",
    "label_way": "info: how the question is put; way=",
    "label_failed": "debug: a post got no usable answer; reason=",
    "label_unusable": "warning: ten answers in a row were of no use: it is the server, not the posts; reason=",
    "label_gate": "info: a gate keeps posts from the model; task=, gate= (its version), threshold=",
    "label_budget": "info: today's budget is spent (spent=true) and posts wait, or a new day has begun; tokens=, cost=",
    "nats_up": "info: NATS is reached; host=",
    "nats_down": "warning: NATS cannot be reached; posts wait on disk, workers wait; host=, why=",
    "nats_forbids": "warning: NATS forbids a subject to our user; why= names it",
    "workers_joined": "info: a label worker is there; worker=, server= (its model's), slots=, version=",
    "workers_left": "info: a label worker is gone; worker=, how=leaving|silent, n= (how many are left)",
    "workers_unlike": "warning: a label worker gets nothing here: its model or weights are others; worker=, why=",
    "workers_queue_lost": "warning: NATS has lost the work queue; n= jobs are dispatched again",
    "workers_cleared_up": "info: a home node is no more; its jobs were taken out of NATS; home= (its session)",
    "workers_resting": "warning: at a worker, a server of its model cannot be used; without another it takes nothing; "
    "server=, why=",
    "workers_working": "info: at a worker, a server of its model is used (again); server=",
    "workers_foreign": "warning: a job of an unknown version is left to others, or, at home, a worker speaks one; why=",
    "workers_result_lost": "warning: at a worker, the home node did not take what a call brought; n=",
    "workers_idle": "info: at a worker, nobody has jobs for it; it looks again and again; why=",
    "events_read": "info: article files were read; read=, gone= (files), articles=, doubled=, bad=, left_out= (lines)",
    "events_bad_line": "warning: a line of an article file is left out; file=, line=, why=",
    "events_unreadable": "warning: an article file, or the folder, cannot be read now; it counts as it was; file=",
    "progress": "info: how far `evaluate` or `dev tune` is, where no terminal shows bars; what=, done=, of=",
    "model_started": "info: the local model's server is ready; pid=",
    "model_ended": "warning: the local model's server died and is started again; code=",
    "store_up": "info: the store takes documents",
    "store_down": "warning: the store cannot be reached; documents wait in the ledger; why=",
    "store_parked": "error: the store refuses us; storing stands still until a restart; why=",
    "store_refused": "warning: documents that the store cannot hold; n=",
    "behind": "warning: what is committed is old: frames wait, or the relay replays; seconds=",
    "catching_up": "info: we come nearer, each minute; seconds=, speed= (times real time), left_s=, told= (in words)",
    "caught_up": "info: what is committed is fresh again",
    "unready": "warning: something has been wrong beyond its bound; name= the condition, why=, seconds=, bound=",
    "recovered": "info: nothing is wrong beyond its bound any more",
    "clock_off": "warning: this machine's clock differs from the relay's, or events are ahead of it; off_s=, by=",
    "clock_right": "info: it does not differ any more",
    "log_down": "warning: log.file cannot be written; lines go to standard error meanwhile; why=",
    "log_up": "info: it can be written again",
    "log_left_out": "warning: whoever reads standard error took nothing; so many lines were left out: n=",
    "wedged": "error: a loop stands still with work in hand, and the service is ended soon; loop=, seconds=",
    "moving": "info: what stood still moves again",
    "notified": "info: a message for people is to be sent; kind=, problem=, id=",
    "notify_down": "warning: messages for people cannot be sent; why=, and given_up= once some are given up",
    "notify_up": "info: they can be sent again; given_up=",
    "notify_unsaved": "warning: what was told cannot be written down; after a restart it may be told again; why=",
    "http_up": "info: the page, /livez, /readyz and /metrics are served; url=",
    "http_failed": "error: a defect, a request over HTTP could not be answered; path=, why=. The service goes on",
    "drain_over": "warning: the time to finish was over; what was in flight waits on disk for the next start",
    "failed": "error: the service ends because of this; why=",
}
"""Every event, with its level and meaning. The documentation's table is tested against this."""

assert set(get_args(EventName)) == set(EVENTS)

CHANGES: Final[Mapping[EventName, EventName]] = {
    "source_down": "source_up",
    "source_quiet": "source_heard",
    "behind": "caught_up",
    "unready": "recovered",
    "journal_full": "journal_room",
    "worker_restarted": "worker_up",
    "appview_down": "appview_up",
    "label_down": "label_up",
    "model_ended": "model_started",
    "nats_down": "nats_up",
    "workers_resting": "workers_working",
    "store_down": "store_up",
    "clock_off": "clock_right",
    "log_down": "log_up",
    "wedged": "moving",
    "notify_down": "notify_up",
}
"""Changes of state: what tells that something is wrong, and what tells that it is over."""
CHANGES_A_MINUTE: Final = 10
"""Lines of each of the two in a minute, of each stage: enough to follow, and no storm. The last one is always written,
when its minute is over (see `settle`): the log never ends with what is no longer true."""

_UNSAFE: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    r"\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Control characters, and those that are invisible or change the direction of a line."""
_MAX_CHARS: Final = 500
_MAX_ITEMS: Final = 20
_MAX_DEPTH: Final = 3
_MINUTE: Final = 60.0
_STALL_SECONDS: Final = 1.0
"""How long a reader of standard error is waited for, once: as a whole service waits meanwhile."""


def configure(settings: "Log") -> None:
    """Set up the log of this process."""
    logging.getLogger("asyncio").addFilter(_says_something)
    structlog = _structlog()
    console = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    _Now.limit = _Limit(settings.burst)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _stamp,
            _Now.limit,
            _harmless,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(settings.level),
        logger_factory=lambda *_: _StandardError(),
        cache_logger_on_first_use=False,
    )


@contextmanager
def to_file(path: Path, settings: "Log") -> Iterator[None]:
    """Write into a file, and to standard error only if that is a terminal, or while the file cannot be written."""
    from civicsky.logfile import LogFile  # noqa: PLC0415  (see above)

    structlog = _structlog()
    *processors, renderer = structlog.get_config()["processors"]
    with closing(LogFile(path, int(settings.file_megabytes * 1e6), settings.files)) as file:
        structlog.configure(processors=[*processors, _ToFile(file), renderer])
        try:
            yield
        finally:
            structlog.configure(processors=[*processors, renderer])


def _says_something(record: logging.LogRecord) -> bool:
    """Of each TLS connection that the far side ends asyncio has a line of its own: no event, and no fault."""
    return "eof_received() has no effect" not in str(record.msg)


def settle(*, at_once: bool = False) -> None:
    """Write the last change of state that was left out, once its minute is over; to be called now and then.

    It bears the time at which it happened.
    """
    for values in _Now.limit.overdue(at_once=at_once) if _Now.limit else ():
        getattr(_structlog().get_logger(), EVENTS[values["event"]].partition(":")[0])(**values)


def event(name: EventName, /, *, stage: str = "", **values: Any) -> None:
    """Write one event, at the level its description names."""
    level = EVENTS[name].partition(":")[0]
    if stage:
        values = {"stage": stage, **values}
    getattr(_structlog().get_logger(), level)(name, **values)


def harmless(text: str) -> str:
    """A text of the far side as it may be shown: bounded, and nothing in it moves the cursor or hides."""
    return _UNSAFE.sub("?", text[:_MAX_CHARS])


def cleaned(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a line as they may be shown: harmless, and none of them endless."""
    return {_clean(str(key), 0): _clean(item, _MAX_DEPTH) for key, item in values.items()}


@cache
def _structlog() -> ModuleType:
    """The library, without what would draw tracebacks in colour: we log none."""
    with without("rich"):
        import structlog  # noqa: PLC0415  (see above)
    return structlog


class _StandardError:
    """Prints to standard error. A reader that went away or reads no more, or a full disk behind it, ends nothing."""

    left_out: ClassVar[int] = 0
    """Lines, since the reader took the last one."""

    def msg(self, line: str) -> None:
        """One line."""
        if not _is_taken(0 if self.left_out else _STALL_SECONDS):
            _StandardError.left_out += 1
            return
        if n := self.left_out:
            _StandardError.left_out = 0
            event("log_left_out", stage="log", n=n)
        with suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)

    debug = info = warning = error = msg


def _is_taken(seconds: float) -> bool:
    """Whether a line can be written to standard error without waiting for its reader, now or in so many seconds."""
    try:
        poll = select.poll()
        poll.register(sys.stderr.fileno(), select.POLLOUT)
        return bool(poll.poll(seconds * 1000))
    except (OSError, ValueError):
        return True


class _ToFile:
    """A processor that writes JSON lines into a file, and lets through what must stand on standard error."""

    def __init__(self, file: "LogFile") -> None:
        self._file, self._is_down = file, False

    def __call__(self, _logger: Any, _method: str, values: Any) -> Any:
        why = self._file.write(json.dumps(values, ensure_ascii=False))
        if bool(why) != self._is_down:
            self._is_down = bool(why)
            event("log_down", stage="log", why=why) if why else event("log_up", stage="log")
        if why or sys.stderr.isatty():
            return values
        raise _structlog().DropEvent


class _Limit:
    """Leaves out an event's lines beyond so many in a minute; the next one that is written says how many.

    Of changes of state the last one is kept, one for each pair and stage, to be written later.
    """

    def __init__(self, burst: int) -> None:
        self._burst = burst
        self._began: dict[_Key, float] = {}
        self._lines, self._left_out = Counter[_Key](), Counter[_Key]()
        self._last: dict[_Key, tuple[float, dict[str, Any]]] = {}

    def __call__(self, _logger: Any, _method: str, values: Any) -> Any:
        """Let a line through, or not."""
        pair = _PAIRS.get(values["event"])
        stage = values.get("stage", "") if pair else ""
        key, state, now = (values["event"], stage), (pair or "", stage), monotonic()
        if "suppressed" in values:
            return values  # it was kept for later, and later is now
        if now - self._began.get(key, -inf) >= _MINUTE:
            self._began[key], self._lines[key] = now, 0
        if self._lines[key] >= (min(self._burst, CHANGES_A_MINUTE) if pair else self._burst):
            self._left_out[key] += 1
            if pair:
                self._last[state] = (self._began[key] + _MINUTE, dict(values))
            raise _structlog().DropEvent
        self._lines[key] += 1
        self._last.pop(state, None)  # what is written now is newer
        left_out = self._left_out.pop(key, 0)
        return {**values, "suppressed": left_out} if left_out else values

    def overdue(self, *, at_once: bool) -> list[dict[str, Any]]:
        """The last changes that were left out and are to be written now, each with how many more there were."""
        now = monotonic()
        due = [state for state, (until, _) in self._last.items() if at_once or now >= until]
        found = [self._last.pop(state)[1] for state in due]
        for values in found:
            values["suppressed"] = self._left_out.pop((values["event"], values.get("stage", "")), 1) - 1
        return found


_Key = tuple[str, str]
"""An event or pair, and its stage if it is a change of state."""
_PAIRS: Final[dict[str, str]] = {name: down for down, up in CHANGES.items() for name in (down, up)}


class _Now:
    """What `configure` set up."""

    limit: ClassVar[_Limit | None] = None


def _stamp(_logger: Any, _method: str, values: Any) -> Any:
    """When it happened, which is not always when it is written."""
    values.setdefault("timestamp", datetime.now(UTC).isoformat().replace("+00:00", "Z"))
    return values


def _harmless(_logger: Any, _method: str, values: Any) -> Any:
    """No control or direction-changing character of the far side's words reaches a terminal; no value is endless."""
    return cleaned(values)


def _clean(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, dict | list | tuple) and not depth:
        return "..."
    if isinstance(value, dict):
        return {_clean(str(key), 0): _clean(item, depth - 1) for key, item in islice(value.items(), _MAX_ITEMS)}
    if isinstance(value, list | tuple):
        return [_clean(item, depth - 1) for item in value[:_MAX_ITEMS]]
    return _clean(repr(value), 0)
