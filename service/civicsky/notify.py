"""Tells people what wants them: by a webhook, by a command of theirs, or both. What is told is decided in `notices.py`.

Nothing here delays the flow. What is to be told is put into an outbox, on disk before it is sent, and each way sends it in
a task of its own: in order, again and again with a rising pause, for a day at most. So a message may come twice (it has
an `id`), when the process dies between sending and noting it; it is lost when nobody takes it for a day.

The book and the outbox are one small file for each role, `notified-collect.json` or `notified-label.json`, and no table
of the journal's: the labelling half does not write there, and what is to be told may be that the journal is damaged or
the disk is full. The file is replaced as a whole. It has room to spare, so that on a full disk, where there is no space
for a second one, it can be written in place: a service that dies of a full disk again and again tells it once.

With `run` both halves share the book of `collect`. A problem that lasts while `run` becomes two processes, or the other
way round, may be told again.

The address of the webhook is a secret: no message, log line or error has it, nor what a server or command says.
"""

import asyncio
import json
import os
import secrets
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import time
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

import httpx

from civicsky import __version__, log, pace
from civicsky.errors import EXIT_DONE, EXIT_FAILED, BadInput, CivicskyError, Held, Refused, Transient, Usage, first_of
from civicsky.health import Look
from civicsky.lifecycle import happened
from civicsky.metrics import Metrics
from civicsky.model import Gap, now_us
from civicsky.notices import Book, Notice, Seen, Who, message
from civicsky.settings import Notify, Settings

KEPT_SECONDS: Final = 24 * 3600
"""A message that could not be sent for so long is given up."""
OUTBOX: Final = 100
"""Messages that wait for one way at most, some 100 kB; beyond it the oldest is given up."""
PAUSE_SECONDS: Final = 1.0
PAUSE_MAX_SECONDS: Final = 300.0
LAST_SECONDS: Final = 5.0
"""How long the end of the process waits for its last messages; what is not sent then is sent by the next start."""
ROOM: Final = 4096
"""Bytes that the file has to spare, and a multiple of which it is long."""
MAX_FILE_BYTES: Final = 4_000_000
_NOT_THIS: Final = frozenset({400, 413, 415, 422})
"""Statuses that refuse one message, not all."""
_LATER: Final = frozenset({408, 409, 425, 429})
_STANDARD_ERROR: Final = 2
_KILLED_SECONDS: Final = 2.0
_GAPS_SHOWN: Final = 5
_WAIT_FOR_END_US: Final = 600_000_000
"""How long a gap is waited for to end before it is told without its length."""
NONE_SET: Final = "nobody is told: set notify.url (CIVICSKY_NOTIFY__URL) or notify.command, and try again"
UNCLEAN: Final = (
    "the run before ended without a word: killed, out of memory, or the machine stopped; it has been started again"
)


class Way(Protocol):
    """One way to tell people."""

    name: str

    async def send(self, message: dict[str, Any]) -> None:
        """Send one message; when this returns, it has arrived.

        Raises `Transient`, `Refused` (a person must act), or `BadInput` when only this message is not taken.
        """
        ...

    async def close(self) -> None:
        """Release what it holds."""
        ...


def ways_of(settings: Notify, *, output: int | None = asyncio.subprocess.DEVNULL) -> list[Way]:
    """The ways that the settings choose; a command's own output goes to `output`, None: to ours."""
    ways: list[Way] = [Webhook(settings)] if settings.url.get_secret_value() else []
    return [*ways, Command(settings, output)] if settings.command else ways


# ---- webhook -------------------------------------------------------------------------------------------------------


class Webhook:
    """Sends messages by POST. Redirects are not followed, certificates are verified, answers are not read."""

    name = "webhook"

    def __init__(self, settings: Notify) -> None:
        self._settings = settings
        self._client: httpx.AsyncClient | None = None

    async def send(self, message: dict[str, Any]) -> None:
        """See `Way`."""
        url, seconds = self._settings.url.get_secret_value(), self._settings.timeout_seconds
        body, kind = body_of(message, self._settings.format)
        try:
            # The client's own bound is for each read; a server may drip for ever. The answer's body stays unread.
            async with asyncio.timeout(seconds):
                client = self._client or await self._open(url)
                async with client.stream("POST", url, content=body, headers={"Content-Type": kind}) as response:
                    status, after = response.status_code, pace.retry_after(response.headers, time())
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            # Its words may quote the address; those of its kind are enough.
            raise Transient(f"the webhook cannot be reached ({type(error).__name__})") from None
        _judge(status, after)

    async def close(self) -> None:
        """See `Way`."""
        if self._client is not None:
            await self._client.aclose()

    async def _open(self, url: str) -> httpx.AsyncClient:
        host, token = urlsplit(url).hostname or "", self._settings.token.get_secret_value()
        near = host in {"localhost", "::1"} or host.startswith("127.")
        trusted = await asyncio.to_thread(httpx.create_ssl_context)  # reads some hundred certificates
        self._client = httpx.AsyncClient(
            timeout=self._settings.timeout_seconds,
            headers={
                "User-Agent": f"civicsky/{__version__}",
                "Accept-Encoding": "identity",
                "Connection": "close",  # the next message may be a day away
                **({"Authorization": f"Bearer {token}"} if token else {}),
            },
            trust_env=not near,
            verify=trusted,
            follow_redirects=False,
        )
        return self._client


def body_of(message: dict[str, Any], form: str) -> tuple[bytes, str]:
    """(body, its type) in one of the formats of `notify.format`. No far side's words call people or make links."""
    if form == "plain":
        return message["text"].encode(), "text/plain; charset=utf-8"
    values: dict[str, Any] = message
    if form == "slack":
        text = message["text"].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        values = {"text": text}
    if form == "discord":
        values = {"content": message["text"][:1900], "allowed_mentions": {"parse": []}}
    return json.dumps(values).encode(), "application/json"


def _judge(status: int, after: float | None) -> None:
    if httpx.codes.is_success(status):
        return
    if status in _NOT_THIS:
        raise BadInput(f"the webhook does not take it: HTTP {status}; see notify.format")
    if httpx.codes.is_redirect(status):
        raise Refused(f"the webhook answers HTTP {status}, a redirect, which is not followed: correct notify.url")
    if httpx.codes.is_client_error(status) and status not in _LATER:
        raise Refused(f"the webhook refuses us with HTTP {status}: correct notify.url or notify.token")
    raise Transient(f"the webhook answers HTTP {status}", after)


# ---- command -------------------------------------------------------------------------------------------------------


class Command:
    """Runs a program for each message, in a process group of its own, which is killed when it is late.

    It inherits nothing of our environment but where programs and a home are: our secrets may stand there.
    """

    name = "command"

    def __init__(self, settings: Notify, output: int | None) -> None:
        self._words, self._seconds, self._output = settings.command, settings.timeout_seconds, output

    async def send(self, message: dict[str, Any]) -> None:
        """See `Way`."""
        try:
            child = await asyncio.create_subprocess_exec(
                *self._words,
                stdin=asyncio.subprocess.PIPE,
                stdout=_STANDARD_ERROR if self._output is None else self._output,
                stderr=self._output,
                env=bare_environment(message),
                cwd="/",
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise Refused(f"notify.command cannot be run: {why}; correct it, with the program's whole path") from None
        try:
            async with asyncio.timeout(self._seconds):
                await child.communicate(json.dumps(message).encode() + b"\n")
        except TimeoutError:
            raise Transient(f"notify.command took longer than {self._seconds:g} s, and was killed") from None
        finally:
            await _end(child)
        if child.returncode:
            raise Transient(f"notify.command ended with {_code(child.returncode)}")

    async def close(self) -> None:
        """See `Way`."""


def bare_environment(message: dict[str, Any]) -> dict[str, str]:
    """All that a command finds: the path, a home, a language, and the message's main fields."""
    told = {"KIND": "kind", "PROBLEM": "problem", "WHY": "why", "NAME": "name", "ROLE": "role", "TEXT": "text"}
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": os.environ.get("HOME", "/"),
        "LANG": "C.UTF-8",
        **{f"NOTIFY_{variable}": message[field] for variable, field in told.items()},
    }


async def _end(child: asyncio.subprocess.Process) -> None:
    """Kill a child that still runs, and its group. One that cannot be killed, or hangs in the kernel, is left alone."""
    if child.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        with suppress(TimeoutError):
            async with asyncio.timeout(_KILLED_SECONDS):
                await child.wait()


def _code(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"signal {-code}"


# ---- state ---------------------------------------------------------------------------------------------------------


class State:
    """The book, the outboxes, and whether a run is under way: all that must outlive the process."""

    def __init__(self, file: Path, ways: Sequence[str]) -> None:
        self._file = file
        self.book = Book()
        self.outboxes: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        """Messages that are still to be sent, by way, the oldest first."""
        self.running: int | None = None
        """When the run began that has not said that it ended."""
        self._written = b""
        self._complained = False

    def load(self) -> None:
        """Read the file. None, or one that cannot be used, is an empty state: the worst is a message that comes twice."""
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            if self._file.stat().st_size > MAX_FILE_BYTES:
                return
            values = json.loads(self._file.read_bytes())
            book, running = Book.of_values(values["book"]), values["running"]
            found = {way: [dict(one) for one in values["outboxes"].get(way, ())] for way in self.outboxes}
            if not all(_is_sendable(one) for outbox in found.values() for one in outbox):
                return
            self.book, self.outboxes = book, found
            self.running = None if running is None else int(running)

    def as_text(self) -> bytes:
        """What is to be written now."""
        values = {"running": self.running, "book": self.book.as_values(), "outboxes": self.outboxes}
        return json.dumps(values).encode()

    def write(self, text: bytes) -> None:
        """Write the file if that is new. What cannot be written is said once, and kept in memory."""
        if text == self._written:
            return
        try:
            try:
                _replace(self._file, _padded(text))
            except OSError:
                _overwrite(self._file, text)
        except OSError as error:
            if not self._complained:
                log.event("notify_unsaved", stage="notify", why=error.strerror or str(error))
            self._complained = True
        else:
            self._written, self._complained = text, False

    def put(self, told: dict[str, Any]) -> int:
        """Put a message into all outboxes; gives how many older ones were given up for it."""
        given_up = 0
        for outbox in self.outboxes.values():
            outbox.append(told)
            given_up += len(outbox) - OUTBOX if len(outbox) > OUTBOX else 0
            del outbox[:-OUTBOX]
        return given_up


def _is_sendable(told: dict[str, Any]) -> bool:
    return isinstance(told["at_us"], int) and all(
        isinstance(told[name], str) for name in ("id", "kind", "problem", "why", "name", "role", "text")
    )


def _padded(text: bytes) -> bytes:
    return text + b" " * (ROOM - 1 + -len(text) % ROOM) + b"\n"


def _replace(file: Path, content: bytes) -> None:
    new = file.with_suffix(".new")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(file)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise


def _overwrite(file: Path, text: bytes) -> None:
    """Write into the room that the file has already. Raises OSError where that is not enough."""
    with open(os.open(file, os.O_WRONLY | os.O_CLOEXEC), "wb") as stream:
        room = os.fstat(stream.fileno()).st_size
        if len(text) > room:
            raise OSError("the disk is full")
        stream.write(text.ljust(room))
        stream.flush()
        os.fsync(stream.fileno())


# ---- the notifier --------------------------------------------------------------------------------------------------


class Notifier:
    """Decides by `notices.Book`, keeps the state, and sends. All but `watch`, `deliver` and `finish` returns at once."""

    def __init__(self, settings: Settings, folder: Path, role: str, metrics: Metrics, ways: Sequence[Way]) -> None:
        self._settings, self._metrics, self._ways = settings.notify, metrics, tuple(ways)
        self._relay_seconds = settings.health.relay_seconds
        self._who = who(settings.notify, folder, role)
        self._state = State(folder / file_of(role), [way.name for way in ways])
        self._saving = asyncio.Lock()
        self._news = {way.name: asyncio.Event() for way in ways}
        self._closing = asyncio.Event()
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
        self._tasks = [asyncio.create_task(self._deliver(way), name=f"notify-{way.name}") for way in self._ways]
        self._wake()

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
        missed = [gap for gap in new if gap.cause != "window"]  # those hours were not wanted
        if missed:
            since, until = _extent(missed)
            self._tell(book.note("gap", _gaps_text(missed), self._settings, since, until, now))

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
        """What lasts. That the relay was not there from the beginning wants a human as late as if it had been."""
        parked = {"model_down": self._metrics.model_parked, "store_down": self._metrics.store_parked}
        return [
            (one.name, one.why, one.over and (one.name != "relay_down" or one.seconds >= self._relay_seconds))
            for one in look.conditions
            if not parked.get(one.name)
        ]

    def _tell(self, notices: Sequence[Notice]) -> None:
        for notice in notices:
            told = {**message(notice, self._who, secrets.token_hex(8)), "at_us": notice.at}
            log.event("notified", stage="notify", kind=notice.kind, problem=notice.name, id=told["id"])
            if given_up := self._state.put(told):
                log.event("notify_down", stage="notify", why="too many messages wait", given_up=given_up)
        if notices:
            self._wake()

    def _wake(self) -> None:
        for event in self._news.values():
            event.set()

    # ---- sending ----

    async def watch(self) -> None:
        """Until cancelled; raises what a sending task died of."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    async def _deliver(self, way: Way) -> None:
        """Send what is in a way's outbox, the oldest first, until the end of the process."""
        news, pause, down, given_up = self._news[way.name], 0.0, False, 0
        while True:
            if pause:
                await happened(self._closing, pause)
            elif not self._outbox(way):
                if self._closing.is_set():
                    return
                await news.wait()
                news.clear()
                await self._save()
                continue
            given_up += self._give_up_old(way)
            if not (outbox := self._outbox(way)):
                pause = 0.0
                continue
            told = outbox[0]
            await self._save()  # what is told is on disk before anybody knows it
            try:
                await way.send(_public(told))
            except BadInput as bad:
                log.event("notify_down", stage="notify", way=way.name, why=bad.reason, given_up=1)
                pause = 0.0
            except (Transient, Refused) as error:
                if not down:
                    log.event("notify_down", stage="notify", way=way.name, why=str(error))
                down = True
                if self._closing.is_set():
                    return  # the next start sends it
                pause = _longer(pause, error)
                continue
            else:
                if down:
                    log.event("notify_up", stage="notify", way=way.name, given_up=given_up)
                down, pause, given_up = False, 0.0, 0
            if outbox and outbox[0] is told:
                del outbox[0]
            await self._save()

    def _outbox(self, way: Way) -> list[dict[str, Any]]:
        return self._state.outboxes[way.name]

    def _give_up_old(self, way: Way) -> int:
        outbox, oldest = self._outbox(way), now_us() - KEPT_SECONDS * 1_000_000
        fresh = [told for told in outbox if told["at_us"] >= oldest]
        n = len(outbox) - len(fresh)
        if n:
            log.event("notify_down", stage="notify", way=way.name, why="not sent for a day", given_up=n)
            outbox[:] = fresh
        return n

    async def _save(self) -> None:
        """Have the state written in a thread, since a disk may be slow; one at a time, also when a caller is cancelled."""
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


def who(settings: Notify, folder: Path, role: str) -> Who:
    """Who says what this process tells."""
    host = socket.gethostname()
    return Who(settings.name or f"{host} {folder}", host, str(folder), role, __version__)


def file_of(role: str) -> str:
    """The name of the state's file."""
    return f"notified-{'label' if role == 'label' else 'collect'}.json"


def _public(told: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name != "at_us"}


def _longer(pause: float, error: Transient | Refused) -> float:
    asked = getattr(error, "retry_after", None) or 0.0
    return min(max(pause * 2, PAUSE_SECONDS, asked), PAUSE_MAX_SECONDS)


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
    seconds = (gap.until_at - gap.from_at) / 1e6
    return f"{seconds:,.1f} s" if seconds > 0 else "read again from the host's window"


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


async def test(settings: Settings, say: Callable[[str], None], complain: Callable[[str], None]) -> int:
    """Send a test message by each way, say whether it arrived, and give the exit code. Raises `Usage` if there is none."""
    if not settings.notify.chosen:
        raise Usage(NONE_SET)
    folder, now = settings.data_dir.expanduser().absolute(), now_us()
    notice = Notice("test", "test", "", now, now)
    told = message(notice, who(settings.notify, folder, "notify"), secrets.token_hex(8))
    codes = [EXIT_DONE]
    for way in ways_of(settings.notify, output=None):
        try:
            await way.send(told)
            say(f"{way.name}: arrived")
        except (Transient, Refused) as error:
            complain(str(error))
            codes.append(error.exit_code)
        except BadInput as bad:
            complain(bad.reason)
            codes.append(EXIT_FAILED)
        finally:
            await way.close()
    return max(codes)
