"""The line to NATS: one connection, made anew whenever it ends, and messages; with `workqueue` the home of nats-py.

nats-py's own reconnecting is not used: after some errors of the server it ends for good, it buffers what would be sent
into a connection that is gone, and it sends passwords in clear to a server that says it has no TLS.

Every way in which NATS can fail becomes `Transient` (`Nobody`: nobody listens there), or `Refused`.
"""

import asyncio
import ssl
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

from civicsky import log
from civicsky.errors import Refused, Transient, Usage
from civicsky.lifecycle import happened
from civicsky.settings import Workers as WorkersSettings, is_loopback

if find_spec("nats") is None:
    raise Usage(
        "label workers need the extra `nats`; in the folder with civicsky's source: "
        "pip install --require-hashes -r requirements/nats.txt"
    )

from nats.aio.client import Client
from nats.errors import Error as NatsError, MaxPayloadError, NoRespondersError, SecureConnWantedError

CONNECT_SECONDS: Final = 5
PING_SECONDS: Final = 3
"""A connection that is cut without a word is noticed after three of them."""
AGAIN_SECONDS: Final = 0.5
"""From one attempt to connect to the next."""
Handler = Callable[[bytes], Awaitable[bytes | None]]
"""Is given a message, and gives the reply; None: there is none."""

FAILURES: Final = (NatsError, OSError, asyncio.TimeoutError, ssl.SSLError)
"""All that nats-py raises when NATS does not do what it should."""


class Nobody(Transient):
    """Nobody listens there now."""


class _OurClient(Client):
    """Says nothing before TLS, where the address insists on it: the library would send its password all the same."""

    insists = False

    def _connect_command(self) -> bytes:
        if self.insists and not self._server_info.get("tls_required"):
            raise SecureConnWantedError
        return super()._connect_command()


class Bus:
    """One connection, as long as `run` runs. Raises `Usage` for files that cannot be used."""

    def __init__(self, settings: WorkersSettings, who: str) -> None:
        self._settings, self._who = settings, who
        parts = urlsplit(settings.url)
        self.host = f"{parts.hostname}:{parts.port or 4222}"
        self._tls = _trusting(settings) if parts.scheme == "tls" or settings.ca or settings.certificate else None
        self._insists = parts.scheme == "tls"
        if settings.credentials:
            _check_private(settings.credentials)
        elif not self._insists and not is_loopback(parts.hostname or "") and _has_secret(settings):
            raise Usage(f"workers.url: a password or token would go to {self.host} in clear; write tls:// and use TLS")
        self._client: Client | None = None
        self._handlers: dict[str, Handler] = {}
        self.up = asyncio.Event()
        self.why = f"NATS at {self.host} is not reached yet"
        """Why there is no connection."""
        self.refused = ""
        """Why NATS does not let us in; empty while it may."""
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
                try:
                    await self._connect(gone)
                except FAILURES as error:
                    self._down(error)
                else:
                    await gone.wait()
                    if self._defect is not None:
                        raise self._defect
                    self._down(None)
                await self._close()
                await asyncio.sleep(AGAIN_SECONDS)
        finally:
            self.up.clear()
            await self._close()

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

    def takes(self, size: int) -> bool:
        """Whether a message may have so many bytes."""
        return self._client is None or size <= self._client.max_payload

    def connected(self) -> Client:
        """The connection. Raises `Transient`."""
        if self._client is None or not self.up.is_set():
            raise Transient(self.why)
        return self._client

    def failed(self, error: BaseException | None) -> Transient:
        """What a failure of nats-py means, in one line; its own text may quote what we sent."""
        what = type(error).__name__ if error else "the connection ended"
        return Transient(f"NATS at {self.host} cannot be reached ({what})")

    # ---- the connection ----

    async def _connect(self, gone: asyncio.Event) -> None:
        async def lost() -> None:
            gone.set()

        async def complained(error: Exception) -> None:
            if "authorization" in str(error).lower() or "authentication" in str(error).lower():
                self.refused = f"NATS at {self.host} does not let us in; mend workers.user, token or credentials"
            elif "permissions" in str(error).lower():
                log.event("nats_forbids", stage="label", why=str(error)[:300])
            elif not isinstance(error, FAILURES):  # a handler of ours failed: a defect, or the ledger is damaged
                self._defect = error
                gone.set()

        own, client = self._settings, _OurClient()
        client.insists = self._insists
        self._client = client
        secrets: dict[str, Any] = {}
        if own.user:
            secrets = {"user": own.user, "password": own.password.get_secret_value()}
        elif token := own.token.get_secret_value():
            secrets = {"token": token}
        elif own.credentials:
            secrets = {"user_credentials": own.credentials}
        address = own.url if urlsplit(own.url).port else f"{own.url}:4222"
        async with asyncio.timeout(4 * CONNECT_SECONDS):
            await client.connect(
                address, name=self._who, allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0,
                connect_timeout=CONNECT_SECONDS, ping_interval=PING_SECONDS, max_outstanding_pings=2, tls=self._tls,
                error_cb=complained, closed_cb=lost, disconnected_cb=lost, **secrets,
            )  # fmt: skip
            for subject, handler in self._handlers.items():
                await client.subscribe(subject, cb=_answering(client, handler))
            await client.flush(CONNECT_SECONDS)
        self.connections += 1
        self.why = self.refused = ""
        log.event("nats_up", stage="label", host=self.host)
        self.up.set()

    def _down(self, error: BaseException | None) -> None:
        self.up.clear()
        if not self.why or self.connections == 0:
            first = not self.why or self.why.endswith("yet")
            self.why = self.refused or str(self.failed(error))
            if first:
                log.event("nats_down", stage="label", host=self.host, why=self.why)

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):  # what is left of it is of no use to anybody
                async with asyncio.timeout(1):
                    await client.close()


def _answering(client: Client, handler: Handler) -> Callable[[Any], Awaitable[None]]:
    async def answer(msg: Any) -> None:
        reply = await handler(bytes(msg.data))
        if reply is not None and msg.reply:
            with suppress(*FAILURES):
                await client.publish(msg.reply, reply)

    return answer


def _has_secret(settings: WorkersSettings) -> bool:
    return bool(settings.password.get_secret_value() or settings.token.get_secret_value())


def _check_private(file: Path) -> None:
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise Usage(f"workers.credentials: {file} cannot be read ({type(error).__name__})") from None
    if stat.S_IMODE(mode) & 0o077:
        raise Usage(f"workers.credentials: others can read {file}; chmod 600 it")


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
