"""The line to NATS: one connection, made anew whenever it ends, and messages; with `workqueue` the home of nats-py.

nats-py's own reconnecting is not used: after some errors of the server it ends for good, it buffers what would be sent
into a connection that is gone, and it sends passwords in clear to a server that says it has no TLS.

Every way in which NATS can fail becomes `Transient` (`Nobody`: nobody listens there), or `Refused`.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, time
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from civicsky import log
from civicsky.errors import Refused, Transient, Usage
from civicsky.lifecycle import happened
from civicsky.model import format_time
from civicsky.settings import Workers as WorkersSettings, is_loopback
from civicsky.workers import credentials

if find_spec("nats") is None:
    raise Usage(
        "label workers need the extra `nats`; in the folder with civicsky's source: "
        "pip install --require-hashes -r requirements/nats.txt"
    )

from nats.aio.client import Client, RawCredentials
from nats.errors import Error as NatsError, MaxPayloadError, NoRespondersError, SecureConnWantedError

CONNECT_SECONDS: Final = 5
PING_SECONDS = 3
"""A connection that is cut without a word is noticed after three of them."""
SAY_SECONDS = 5.0
"""So long what is said may wait until what was said before is sent; the library would wait for ever for a dead line."""
AGAIN_SECONDS: Final = 0.5
"""From one attempt to connect to the next."""
REFUSED_SECONDS = 60.0
"""Who was let in once is refused for good only after so long: a NATS that starts may not know its users at once."""
PENDING_BYTES: Final = 16 * 1024 * 1024
"""Of one subject's messages that wait for us: more are dropped, and said or asked again. All answers that may be under
way at once fit by far."""
MAX_FORBIDDEN: Final = 20
"""Things that NATS forbids us, told once each."""
Role = Literal["home", "worker"]
"""Each has an inbox of its own, so that rights can tell them apart: replies to one are not heard by the other."""
Handler = Callable[[bytes], Awaitable[bytes | None]]
"""Is given a message, and gives the reply; None: there is none."""

FAILURES: Final = (NatsError, OSError, asyncio.TimeoutError, ssl.SSLError)
"""All that nats-py raises when NATS does not do what it should."""


class Nobody(Transient):
    """Nobody listens there now."""


class _OurClient(Client):
    """Says nothing before TLS, where the address insists on it: the library would send its password all the same.

    And whoever is cancelled is cancelled: Python 3.11's `wait_for` forgets that when the reply comes just then, and the
    library where it waits for what is still to be sent.
    """

    insists = False
    let_in = False

    def _connect_command(self) -> bytes:
        if self.insists and not self._server_info.get("tls_required"):
            raise SecureConnWantedError
        return super()._connect_command()

    async def request(self, *words: Any, **named: Any) -> Any:
        with _heeding_cancellation():
            return await super().request(*words, **named)

    async def publish(self, *words: Any, **named: Any) -> None:
        with _heeding_cancellation():
            async with asyncio.timeout(SAY_SECONDS):
                await super().publish(*words, **named)

    async def _process_op_err(self, e: Exception) -> None:
        with suppress(OSError):  # there was still something to be sent; `Bus._lost` sees that it is closed
            await super()._process_op_err(e)

    def hang_up(self) -> None:
        """End the connection at once; what was not sent is dropped."""
        for name in ("_io_writer", "_bare_io_writer"):  # with TLS, and below it
            writer = getattr(self._transport, name, None)
            if writer is not None:
                writer.transport.abort()


class Bus:
    """One connection, as long as `run` runs. Raises `Usage` for files that cannot be used."""

    def __init__(self, settings: WorkersSettings, who: str, role: Role = "home") -> None:
        self._settings, self._who = settings, who
        self._inbox = f"{settings.name}.inbox.{role}"
        parts = urlsplit(settings.url)
        self.host = f"{parts.hostname}:{parts.port or 4222}"
        self._tls = _trusting(settings) if parts.scheme == "tls" or settings.ca or settings.certificate else None
        self._insists = parts.scheme == "tls"
        if settings.credentials:
            _check_usable(settings.credentials)
        elif not (self._insists or settings.in_clear or is_loopback(parts.hostname or "")) and _has_secret(settings):
            raise Usage(f"workers.url: a password or token would go to {self.host} in clear; write tls:// and use TLS")
        self._login: credentials.Login | None = None
        self._client: _OurClient | None = None
        self._handlers: dict[str, Handler] = {}
        self.up = asyncio.Event()
        self.why = f"NATS at {self.host} is not reached yet"
        """Why there is no connection."""
        self.refused = ""
        """Why NATS does not let us in; empty while it may."""
        self.forbidden = ""
        """What this connection may not do that we need, by NATS's own words; empty: nothing that we know of."""
        self._told_forbidden: set[str] = set()
        self._told_down: set[str] = set()
        """Why, since the last connection."""
        self._no, self._no_since = "", 0.0
        """What it said to the last attempt to connect, and since when it says so."""
        self._last: BaseException | None = None
        self._defect: Exception | None = None
        self.connections = 0
        """So far."""

    def on(self, subject: str, handler: Handler) -> None:
        """Answer what comes there. Before `run`."""
        self._handlers[subject] = handler

    async def run(self) -> None:
        """Be connected, until cancelled."""
        try:
            while True:
                gone = asyncio.Event()
                self._last = None
                try:
                    await self._connect(gone)
                except Usage as error:  # it is being replaced, perhaps
                    self._down(Transient(str(error)))
                except Exception as error:  # noqa: BLE001  (what else than NATS says there can end the library in any way)
                    self._down(self._last or error)
                else:
                    _heed_cancellation()
                    await self._lost(gone)
                    if self._defect is not None:
                        raise self._defect
                    self._down(None)
                await self._close()
                _heed_cancellation()
                await asyncio.sleep(AGAIN_SECONDS)
        finally:
            self.up.clear()
            await self._close()

    async def _lost(self, gone: asyncio.Event) -> None:
        """Wait until the connection is lost. The library closes one that is silent, but says so only when all is sent.

        Into a line that is cut TCP sends for a quarter of an hour.
        """
        while not await happened(gone, PING_SECONDS):
            if self._client is None or self._client.is_closed:
                return

    async def wait_up(self, seconds: float) -> None:
        """Until there is a connection. Raises `Refused` when NATS does not want us, `Transient` after the time."""
        until = monotonic() + seconds
        while not await happened(self.up, min(0.1, seconds)):
            if self.refused:
                raise Refused(self.refused)
            if monotonic() > until:
                raise Transient(self.why)

    # ---- messages ----

    async def request(self, subject: str, data: bytes, seconds: float, headers: dict[str, str] | None = None) -> bytes:
        """Say something and wait for the reply. Raises `Nobody`, `Transient`, or `Refused` if it is too long."""
        client = self.connected()
        try:
            return bytes((await client.request(subject, data, timeout=seconds, headers=headers)).data)
        except NoRespondersError as error:
            raise Nobody(f"nobody listens in NATS at {self.host}") from error
        except MaxPayloadError as error:
            raise Refused(
                f"NATS at {self.host} takes no message of {len(data):,} bytes; raise its max_payload"
            ) from error
        except FAILURES as error:
            raise self.failed(error) from error

    async def publish(self, subject: str, data: bytes) -> None:
        """Say something to whoever listens."""
        client = self.connected()
        try:
            await client.publish(subject, data)
        except FAILURES as error:
            raise self.failed(error) from error

    def connected(self) -> Client:
        """The connection. Raises `Transient`."""
        if self._client is None or not self.up.is_set():
            raise Transient(self.why)
        return self._client

    def failed(self, error: BaseException | None) -> Transient:
        """What a failure of nats-py means, in one line; its own text may quote what we sent."""
        if isinstance(error, Transient):
            return error
        if self.forbidden and isinstance(error, TimeoutError):  # it does not answer what it forbids
            return Transient(f"NATS at {self.host} says {self.forbidden}; mend the rights of its user")
        if isinstance(error, ssl.SSLCertVerificationError):
            why = log.harmless(error.verify_message)
            return Transient(
                f"NATS at {self.host} has a certificate that is not trusted: {why}; mend it, or workers.ca"
            )
        what = type(error).__name__ if error else "the connection ended"
        return Transient(f"NATS at {self.host} cannot be reached ({what})")

    # ---- the connection ----

    async def _connect(self, gone: asyncio.Event) -> None:
        async def lost() -> None:
            gone.set()

        async def complained(error: Exception) -> None:
            if "permissions" in str(error).lower():
                self._forbids(str(error))
            elif not client.let_in:
                self._last = error
                self._no = self._refusal(error) if _is_refusal(error) else ""
            elif not isinstance(error, FAILURES):  # a handler of ours failed: a defect, or the ledger is damaged
                self._defect = error
                gone.set()

        own, client = self._settings, _OurClient()
        client.insists = self._insists
        self._client, self.forbidden = client, ""
        secrets: dict[str, Any] = {}
        if own.user:
            secrets = {"user": own.user, "password": own.password.get_secret_value()}
        elif token := own.token.get_secret_value():
            secrets = {"token": token}
        elif own.credentials:
            login = self._login = credentials.read(own.credentials)
            secrets = {"user_credentials": RawCredentials(login.raw())} if login.jwt else {"nkeys_seed_str": login.seed}
        address = own.url if urlsplit(own.url).port else f"{own.url}:4222"
        async with asyncio.timeout(4 * CONNECT_SECONDS):
            await client.connect(
                address, name=self._who, allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0,
                connect_timeout=CONNECT_SECONDS, ping_interval=PING_SECONDS, max_outstanding_pings=2, tls=self._tls,
                error_cb=complained, closed_cb=lost, disconnected_cb=lost, inbox_prefix=self._inbox, **secrets,
            )  # fmt: skip
            client.let_in = True
            for subject, handler in self._handlers.items():
                await client.subscribe(
                    subject, cb=_answering(client, handler, f"{own.name}.inbox."), pending_bytes_limit=PENDING_BYTES
                )
            await client.flush(CONNECT_SECONDS)
        self.connections += 1
        self.why = self.refused = self._no = ""
        self._told_down.clear()
        log.event("nats_up", stage="label", host=self.host)
        self.up.set()

    def _down(self, error: BaseException | None) -> None:
        """There is no connection. Told once, and again for a reason that a person must mend."""
        self.up.clear()
        if not self._no:
            self._no_since = 0.0
        elif not self._no_since:
            self._no_since = monotonic()
        if self._no and (self.connections == 0 or monotonic() - self._no_since >= REFUSED_SECONDS):
            self.refused = self._no
        why = self._no or str(self.failed(error))
        if not self._told_down or (why not in self._told_down and "; " in why):  # the latter names what to do
            self._told_down.add(why)
            log.event("nats_down", stage="label", host=self.host, why=why)
        self.why, self._no = why, ""

    def _refusal(self, error: Exception) -> str:
        if isinstance(error, ssl.SSLError):
            return f"NATS at {self.host} does not accept our certificate; mend workers.certificate and workers.key"
        ended = credentials.ends(self._login) if self._login else None
        if ended is not None and ended < time():
            day = format_time(int(ended * 1e6))
            file = self._settings.credentials
            return f"NATS at {self.host} does not let us in; {file} ended at {day}: put a new one there"
        return f"NATS at {self.host} does not let us in; mend workers.user, token or credentials"

    def _forbids(self, text: str) -> None:
        """Once for each: a worker that may not ask for jobs would say so every few seconds."""
        self.forbidden = log.harmless(text.removeprefix("nats: "))[:300]
        if self.forbidden not in self._told_forbidden and len(self._told_forbidden) < MAX_FORBIDDEN:
            self._told_forbidden.add(self.forbidden)
            log.event("nats_forbids", stage="label", why=self.forbidden)

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        try:
            with suppress(Exception):  # what is left of it is of no use to anybody
                async with asyncio.timeout(1):
                    await client.close()
        finally:  # also when we are cancelled once more: a socket would stay open
            client.hang_up()


@contextmanager
def _heeding_cancellation() -> Iterator[None]:
    """One that comes within. Who was cancelled before says what it has to say at its end."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        yield
    finally:
        _heed_cancellation(before)


def _heed_cancellation(before: int = 0) -> None:
    """The library swallows a cancellation that comes while it closes, and we would be connected for ever."""
    task = asyncio.current_task()
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError


def _answering(client: Client, handler: Handler, inboxes: str) -> Callable[[Any], Awaitable[None]]:
    """Replies go to inboxes alone: else who asks could have us say things where only we may speak."""

    async def answer(msg: Any) -> None:
        reply = await handler(bytes(msg.data))
        if reply is not None and msg.reply.startswith(inboxes):
            with suppress(*FAILURES):
                await client.publish(msg.reply, reply)

    return answer


def _has_secret(settings: WorkersSettings) -> bool:
    return bool(settings.password.get_secret_value() or settings.token.get_secret_value())


def _check_usable(file: Path) -> None:
    if find_spec("nkeys") is None:
        raise Usage(
            "workers.credentials: the package nkeys is not installed; install requirements/nats.txt, or use a token"
        )
    credentials.read(file)


def _is_refusal(error: Exception) -> bool:
    """Whether NATS does not want us, rather than cannot just now."""
    if isinstance(error, ssl.SSLError):
        reason = str(error.reason)
        return "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason)
    return any(word in str(error).lower() for word in ("authorization", "authentication"))


def _trusting(settings: WorkersSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca)
        if settings.certificate:
            context.load_cert_chain(settings.certificate, settings.key, password=_no_passphrase)
    except (OSError, ssl.SSLError) as error:
        raise Usage(
            f"workers.ca, certificate or key: a file cannot be used ({type(error).__name__}); they are PEM files"
        ) from None
    return context


def _no_passphrase() -> str:
    raise Usage("workers.key: the key has a passphrase, which nobody is there to type; store it without one")
