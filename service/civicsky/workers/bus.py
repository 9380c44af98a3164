"""The line to NATS: one connection, made anew whenever it ends; requests, and the work queue; the home of nats-py.

nats-py's own reconnecting is not used: after some errors of the server it ends for good, it buffers what would be sent
into a connection that is gone, and it sends passwords in clear to a server that says it has no TLS.

Every way in which NATS can fail becomes `Transient` (`Nobody`: nobody listens there), or `Refused`.
"""

import asyncio
import json
import ssl
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple
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
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    Header,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import APIError, BadRequestError, NotFoundError

CONNECT_SECONDS: Final = 5
PING_SECONDS: Final = 3
"""A connection that is cut without a word is noticed after three of them."""
AGAIN_SECONDS: Final = 0.5
"""From one attempt to connect to the next."""
API_SECONDS: Final = 5.0
MAX_JOBS: Final = 10_000
"""In the stream: more than any home node has slots, with room for attempts that are not taken back yet."""
MAX_AGE: Final = 3600.0
"""Seconds that a job stays in the stream at most, whatever became of the home node: its text is somebody's post."""

Handler = Callable[[bytes], Awaitable[bytes | None]]
"""Is given a message, and gives the reply; None: there is none."""

_FAILURES: Final = (NatsError, OSError, asyncio.TimeoutError, ssl.SSLError)


class Nobody(Transient):
    """Nobody listens there now."""


class Look(NamedTuple):
    """The work queue."""

    made: str
    """When: another time, another queue."""
    jobs: int
    handed_out: int
    redelivered: int
    """Of those handed out."""


class Delivery:
    """A job in hand, and what is said about it. What is said into a dead connection is lost: the job comes again."""

    def __init__(self, msg: Any) -> None:
        self._msg = msg
        self.data: bytes = msg.data
        self.number: int = msg.metadata.num_delivered
        """1 for the first."""

    async def ack(self) -> None:
        """It is done with."""
        await self._say(self._msg.ack)

    async def nak(self, seconds: float = 0.0) -> None:
        """It is for another one, after so many seconds."""
        await self._say(lambda: self._msg.nak(seconds or None))

    async def in_progress(self) -> None:
        """Somebody is at it."""
        await self._say(self._msg.in_progress)

    async def _say(self, what: Callable[[], Awaitable[None]]) -> None:
        with suppress(*_FAILURES):
            await what()


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
        self.stream = settings.name
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
                except _FAILURES as error:
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

    async def request(self, subject: str, data: bytes, seconds: float) -> bytes:
        """Say something and wait for the reply."""
        return bytes((await self._asked(subject, data, seconds)).data)

    async def publish(self, subject: str, data: bytes) -> None:
        """Say something to whoever listens."""
        client = self._connected()
        try:
            await client.publish(subject, data)
        except _FAILURES as error:
            raise Transient(_told(self.host, error)) from error

    def takes(self, size: int) -> bool:
        """Whether a message may have so many bytes."""
        return self._client is None or size <= self._client.max_payload

    async def _asked(self, subject: str, data: bytes, seconds: float, headers: dict[str, str] | None = None) -> Any:
        client = self._connected()
        try:
            return await client.request(subject, data, timeout=seconds, headers=headers)
        except NoRespondersError as error:
            raise Nobody(f"nobody listens in NATS at {self.host}") from error
        except MaxPayloadError as error:
            raise Refused(
                f"NATS at {self.host} takes no message of {len(data):,} bytes; raise its max_payload"
            ) from error
        except _FAILURES as error:
            raise Transient(_told(self.host, error)) from error

    def _connected(self) -> Client:
        if self._client is None or not self.up.is_set():
            raise Transient(self.why)
        return self._client

    # ---- the work queue, seen from home ----

    async def make(self, subject: str, consumer: str) -> str:
        """A new, empty queue instead of any that is there, and whose jobs those on `subject` are; gives when.

        Raises `Refused` when there is a stream of that name that is none of ours, or none can be made.
        """
        js = self._connected().jetstream(timeout=API_SECONDS)
        ours = [f"{self.stream}.job.>"]
        try:
            with suppress(NotFoundError):
                info = await js.stream_info(self.stream)
                if info.config.subjects != ours:
                    raise Refused(
                        f"NATS at {self.host} has a stream {self.stream!r} that is none of ours; set workers.name"
                    )
                await js.delete_stream(self.stream)
            await js.add_stream(
                StreamConfig(
                    name=self.stream,
                    subjects=ours,
                    retention=RetentionPolicy.WORK_QUEUE,
                    storage=StorageType.MEMORY,
                    discard=DiscardPolicy.NEW,
                    max_msgs=MAX_JOBS,
                    max_age=MAX_AGE,
                    duplicate_window=120,
                )
            )
            await self.make_consumer(subject, consumer)
            return str((await js.stream_info(self.stream)).created)
        except BadRequestError as error:
            raise Refused(f"NATS at {self.host} makes no work queue: {_description(error)}") from error
        except _FAILURES as error:
            raise Transient(_told(self.host, error)) from error

    async def make_consumer(self, subject: str, consumer: str) -> None:
        """Whose jobs those on `subject` are; nothing is changed if it is there."""
        settings = self._settings
        js = self._connected().jetstream(timeout=API_SECONDS)
        try:
            await js.add_consumer(
                self.stream,
                ConsumerConfig(
                    durable_name=consumer,
                    filter_subject=subject,
                    ack_policy=AckPolicy.EXPLICIT,
                    ack_wait=settings.ack_seconds,
                    max_deliver=settings.deliveries + 1,  # the last one says so
                    max_ack_pending=settings.in_hand,
                    max_waiting=8_192,
                ),
            )
        except _FAILURES as error:
            raise Transient(_told(self.host, error)) from error

    async def look(self, consumer: str) -> Look | None:
        """How things stand; None when there is no queue, or nobody whose jobs they are."""
        js = self._connected().jetstream(timeout=API_SECONDS)
        try:
            stream = await js.stream_info(self.stream)
            info = await js.consumer_info(self.stream, consumer)
        except NotFoundError:
            return None
        except _FAILURES as error:
            raise Transient(_told(self.host, error)) from error
        return Look(str(stream.created), stream.state.messages, info.num_ack_pending or 0, info.num_redelivered or 0)

    async def put(self, subject: str, data: bytes, message_id: str) -> int:
        """Put a job into the queue; gives its number there. However often, it is there once. Raises `Nobody`."""
        reply = await self._asked(subject, data, API_SECONDS, {str(Header.MSG_ID.value): message_id})
        told = json.loads(reply.data)
        if "error" in told:
            raise Transient(f"NATS at {self.host} takes no job: {str(told['error'].get('description'))[:200]}")
        return int(told["seq"])

    async def has(self, number: int) -> bool:
        """Whether a job is still in the queue."""
        js = self._connected().jetstream(timeout=API_SECONDS)
        try:
            await js.get_msg(self.stream, number)
        except NotFoundError:
            return False
        except _FAILURES as error:
            raise Transient(_told(self.host, error)) from error
        return True

    async def take_back(self, number: int) -> None:
        """Take a job out of the queue, if that can be done now; who has it in hand already finds out by itself."""
        with suppress(Transient, *_FAILURES):
            await self._connected().jetstream(timeout=API_SECONDS).delete_msg(self.stream, number)

    # ---- the work queue, seen by a worker ----

    def puller(self, consumer: str) -> "Puller":
        """For one slot, which takes one job after the other."""
        return Puller(self, f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{consumer}")

    def connected(self) -> Client:
        """The connection. Raises `Transient`."""
        return self._connected()

    # ---- the connection ----

    async def _connect(self, gone: asyncio.Event) -> None:
        async def lost() -> None:
            gone.set()

        async def failed(error: Exception) -> None:
            if "authorization" in str(error).lower() or "authentication" in str(error).lower():
                self.refused = f"NATS at {self.host} does not let us in; mend workers.user, token or credentials"
            elif "permissions" in str(error).lower():
                log.event("nats_forbids", stage="label", why=str(error)[:300])
            elif not isinstance(error, _FAILURES):  # a handler of ours failed: a defect, or the ledger is damaged
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
                error_cb=failed, closed_cb=lost, disconnected_cb=lost, **secrets,
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
            self.why = self.refused or _told(self.host, error)
            if first:
                log.event("nats_down", stage="label", host=self.host, why=self.why)

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):  # what is left of it is of no use to anybody
                async with asyncio.timeout(1):
                    await client.close()


class Puller:
    """Takes jobs for one slot.

    A job comes under the subject on which it was put into the queue, only word that there is none under that of the
    request: so each request has a number, and word of an earlier one is none of the next. A job that comes late, after
    its request was given up, is kept for the next one.
    """

    def __init__(self, bus: Bus, subject: str) -> None:
        self._bus, self._subject = bus, subject
        self._client: Client | None = None
        self._sub: Any = None
        self._inbox = ""
        self._n = 0
        self._came: asyncio.Queue[Any] = asyncio.Queue()

    def wake(self) -> None:
        """There is a new queue, which knows nothing of a request to the one before."""
        self._came.put_nowait(None)

    async def next(self, seconds: float) -> Delivery | None:
        """The next job, if one comes in so many seconds.

        Raises `Nobody` when the queue does not even say that it has none: it is not there, or was made anew.
        """
        while not self._came.empty():
            if late := self._read(self._came.get_nowait()):
                return late
        client = self._bus.connected()
        try:
            await self._listen(client)
            self._n += 1
            order = {"batch": 1, "expires": int(seconds * 1e9)}
            await client.publish(self._subject, json.dumps(order).encode(), reply=f"{self._inbox}.{self._n}")
            async with asyncio.timeout(seconds + 1):
                while True:
                    msg = await self._came.get()
                    if delivery := self._read(msg):
                        return delivery
                    if msg is None or msg.subject == f"{self._inbox}.{self._n}":
                        return None
        except TimeoutError as error:
            raise Nobody(f"there is no work queue in NATS at {self._bus.host}") from error
        except _FAILURES as error:
            raise Transient(_told(self._bus.host, error)) from error

    async def close(self) -> None:
        """Take no more; others get what came too late for us."""
        if self._sub is not None and self._client is not None and self._client.is_connected:
            with suppress(*_FAILURES):
                async with asyncio.timeout(1):
                    await self._sub.drain()
        while not self._came.empty():
            if late := self._read(self._came.get_nowait()):
                await late.nak()

    async def _listen(self, client: Client) -> None:
        if client is self._client:
            return
        self._came = asyncio.Queue()  # what came over a connection that is gone cannot be acked, and comes again
        self._inbox = client.new_inbox()
        self._sub = await client.subscribe(f"{self._inbox}.*", cb=self._came.put)
        self._client = client

    @staticmethod
    def _read(msg: Any) -> Delivery | None:
        return Delivery(msg) if msg is not None and msg.reply.startswith("$JS.ACK.") else None


def _answering(client: Client, handler: Handler) -> Callable[[Any], Awaitable[None]]:
    async def answer(msg: Any) -> None:
        reply = await handler(bytes(msg.data))
        if reply is not None and msg.reply:
            with suppress(*_FAILURES):
                await client.publish(msg.reply, reply)

    return answer


def _told(host: str, error: BaseException | None) -> str:
    """In one line; the library's own text may quote what we sent."""
    what = type(error).__name__ if error else "the connection ended"
    return f"NATS at {host} cannot be reached ({what})"


def _description(error: APIError) -> str:
    return str(error.description)[:200]


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
