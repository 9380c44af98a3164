"""The work queue: a JetStream stream in memory, one consumer for each model; home and workers see it from here.

Several home nodes may share it: the stream is made by whoever finds none, and each has its jobs under a subject of its
own.

Every way in which NATS can fail becomes `Transient` (`Nobody`: nobody listens there), or `Refused`.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    ConsumerInfo,
    DiscardPolicy,
    Header,
    RetentionPolicy,
    StorageType,
    StreamConfig,
    StreamInfo,
)
from nats.js.errors import APIError, BadRequestError, NotFoundError, ServiceUnavailableError

from civicsky.errors import Refused, Transient
from civicsky.settings import Workers as WorkersSettings
from civicsky.workers import messages
from civicsky.workers.bus import FAILURES, PENDING_BYTES, Bus, Nobody

API_SECONDS: Final = 5.0
MAX_JOBS: Final = 10_000
"""In the stream: more than any home node has slots, with room for attempts that are not taken back yet."""
MAX_AGE: Final = 3600.0
"""Seconds that a job stays in the stream at most, whatever became of the home node: its text is somebody's post."""
ROOM: Final = 64
"""What may lie before a slot that is at work; the rest waits in nats-py, which bounds its bytes."""
_WRONG: Final = (*FAILURES, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)
"""All that nats-py raises when what comes is none of JetStream's: whoever is let into NATS may answer in its place."""
_NONE_NOW: Final = frozenset({"404", "408"})
"""How JetStream says that there is no job now."""


class Look(NamedTuple):
    """The work queue."""

    made: str
    """When: another time, another queue."""
    jobs: int
    """Of ours."""
    others: tuple[str, ...]
    """Home nodes, by session, that have jobs for the same model there."""
    delivered: int
    """The highest number that was handed out so far."""
    handed_out: int


class Delivery:
    """A job in hand, and what is said about it. What is said into a dead connection is lost: the job comes again."""

    def __init__(self, msg: Any) -> None:
        self._msg = msg
        self.data: bytes = msg.data
        self.number: int = msg.metadata.num_delivered
        """1 for the first. nats-server 2.9.10 may count wrong, also from 1 anew, when a pull ends just as an ack wait
        does: such a job may be left lying, and goes back at its question's bound at the latest."""

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
        with suppress(*FAILURES):
            await what()


class WorkQueue:
    """The jobs for one model. Whoever has `Bus.run` running may use it."""

    def __init__(self, bus: Bus, settings: WorkersSettings, key: str, session: str = "") -> None:
        """`key` is the model's, of `messages.model_key`; `session` the home node's, if it is one."""
        self._bus, self._settings, self._name = bus, settings, settings.name
        self._subjects = messages.subject_of_jobs(settings.name, key, "*")
        self.subject = messages.subject_of_jobs(settings.name, key, session)
        self._consumer = messages.consumer_name(key)
        self.ack_seconds, self.deliveries = settings.ack_seconds, settings.deliveries
        """As they are in force: of several home nodes with one model those of the last that came."""

    # ---- seen from home ----

    async def make(self) -> tuple[str, bool]:
        """See that there is a queue; gives when it was made, and whether that was now.

        Raises `Refused` when there is a stream of that name that is none of ours, or none can be made.
        """
        try:
            info = await self._stream()
            if info.config.subjects != [f"{self._name}.job.>"]:
                whose = f"NATS at {self._bus.host} has a stream {self._name!r} that is none of ours"
                raise Refused(f"{whose}; set workers.name")
            is_new = await self._is_unknown()
            return _made(info, await self._make_consumer()), is_new
        except BadRequestError as error:
            raise Refused(f"NATS at {self._bus.host} makes no work queue: {str(error.description)[:200]}") from error
        except _WRONG as error:
            raise self._failed(error) from error

    async def _stream(self) -> StreamInfo:
        """What is there, or else is made."""
        js = self._js()
        try:
            return await js.stream_info(self._name)
        except NotFoundError:
            try:
                return await js.add_stream(
                    StreamConfig(
                        name=self._name,
                        subjects=[f"{self._name}.job.>"],
                        retention=RetentionPolicy.WORK_QUEUE,
                        storage=StorageType.MEMORY,
                        discard=DiscardPolicy.NEW,
                        max_msgs=MAX_JOBS,
                        max_age=MAX_AGE,
                        duplicate_window=120,
                    )
                )
            except BadRequestError:
                with suppress(NotFoundError):  # another version of us was quicker
                    return await js.stream_info(self._name)
                raise

    async def _is_unknown(self) -> bool:
        try:
            await self._js().consumer_info(self._name, self._consumer)
        except NotFoundError:
            return True
        return False

    async def _make_consumer(self) -> ConsumerInfo:
        own = self._settings
        info = await self._js().add_consumer(
            self._name,
            ConsumerConfig(
                durable_name=self._consumer,
                filter_subject=self._subjects,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=own.ack_seconds,
                max_deliver=own.deliveries + 1,  # the last one says so
                max_ack_pending=own.in_hand,
                max_waiting=8_192,
            ),
        )
        self._heed(info)
        return info

    def _heed(self, info: ConsumerInfo) -> None:
        own = self._settings
        self.ack_seconds = float(info.config.ack_wait or own.ack_seconds)
        self.deliveries = max(1, int(info.config.max_deliver or own.deliveries + 1) - 1)

    async def look(self) -> Look | None:
        """How things stand; None when there is no queue, or nobody whose jobs they are."""
        js = self._js()
        try:
            stream = await js.stream_info(self._name, self._subjects)
            info = await js.consumer_info(self._name, self._consumer)
            return self._seen(stream, info)
        except NotFoundError:
            return None
        except _WRONG as error:
            raise self._failed(error) from error

    def _seen(self, stream: StreamInfo, info: ConsumerInfo) -> Look:
        self._heed(info)
        jobs = stream.state.subjects or {}
        others = tuple(subject.rpartition(".")[2] for subject in sorted(jobs) if subject != self.subject)
        delivered = info.delivered.stream_seq if info.delivered else 0
        ours = int(jobs.get(self.subject, 0))
        return Look(_made(stream, info), ours, others, int(delivered), int(info.num_ack_pending or 0))

    async def bury(self, session: str) -> None:
        """Take out all jobs of a home node that is no more.

        One by one: a purge by subject lets the consumer of nats-server 2.9 forget what others have there.
        """
        js = self._js()
        try:
            with suppress(NotFoundError):  # there are no more of them
                for _ in range(MAX_JOBS):
                    last = await js.get_last_msg(self._name, f"{self._subjects[:-1]}{session}")
                    await js.delete_msg(self._name, last.seq or 0)
        except _WRONG as error:
            raise self._failed(error) from error

    async def leave(self, session: str) -> None:
        """Take out all of ours, if that can be done now."""
        with suppress(Transient):
            await self.bury(session)

    async def put(self, data: bytes, message_id: str) -> int:
        """Put a job into the queue; gives its number there. However often, it is there once. Raises `Nobody`."""
        header = {str(Header.MSG_ID.value): message_id}
        said = await self._bus.request(self.subject, data, API_SECONDS, header)
        told = _object(said)
        if type(number := told.get("seq")) is int and "error" not in told:
            return number
        error = told.get("error")
        why = error.get("description") if isinstance(error, dict) else "its answer is none of JetStream's"
        raise Transient(f"NATS at {self._bus.host} takes no job: {str(why)[:200]}")

    async def has(self, number: int) -> bool:
        """Whether a job is still in the queue."""
        js = self._js()
        try:
            await js.get_msg(self._name, number)
        except NotFoundError:
            return False
        except _WRONG as error:
            raise self._failed(error) from error
        return True

    async def take_back(self, number: int) -> None:
        """Take a job out of the queue, if that can be done now; who has it in hand already finds out by itself."""
        with suppress(Transient, *_WRONG):
            await self._js().delete_msg(self._name, number)

    # ---- seen by a worker ----

    def puller(self) -> "Puller":
        """For one slot, which takes one job after the other."""
        return Puller(self._bus, f"$JS.API.CONSUMER.MSG.NEXT.{self._name}.{self._consumer}")

    # ----

    def _failed(self, error: BaseException) -> Transient:
        if isinstance(error, APIError) and error.description:
            return Transient(f"NATS at {self._bus.host} makes no work queue: {str(error.description)[:200]}")
        if isinstance(error, ServiceUnavailableError):
            return Transient(f"NATS at {self._bus.host} has no JetStream, or not yet")
        if error is not None and not isinstance(error, FAILURES):
            return Transient(f"NATS at {self._bus.host} gives answers that are none of JetStream's")
        return self._bus.failed(error)

    def _js(self) -> JetStreamContext:
        return self._bus.connected().jetstream(timeout=API_SECONDS)


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
        self._came: asyncio.Queue[Any] = asyncio.Queue(ROOM)

    def wake(self) -> None:
        """There is a new queue, which knows nothing of a request to the one before."""
        if self._came.empty():
            self._came.put_nowait(None)

    async def next(self, seconds: float) -> Delivery | None:
        """The next job, if one comes in so many seconds.

        Raises `Nobody` when the queue does not even say that it has none, or says something else: it is not there, was
        made anew, or too many wait for its jobs.
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
                    if msg is None:
                        return None
                    if msg.subject == f"{self._inbox}.{self._n}":
                        if (msg.headers or {}).get(Header.STATUS.value) not in _NONE_NOW:
                            raise Nobody(f"NATS at {self._bus.host} has no work queue that gives us jobs")
                        return None
        except TimeoutError as error:
            raise Nobody(f"there is no work queue in NATS at {self._bus.host}") from error
        except FAILURES as error:
            raise self._bus.failed(error) from error

    async def close(self) -> None:
        """Take no more; others get what came too late for us."""
        if self._sub is not None and self._client is not None and self._client.is_connected:
            with suppress(*FAILURES):
                async with asyncio.timeout(1):
                    await self._sub.drain()
        while not self._came.empty():
            if late := self._read(self._came.get_nowait()):
                await late.nak()

    async def _listen(self, client: Client) -> None:
        if client is self._client:
            return
        self._came = asyncio.Queue(ROOM)  # what came over a connection that is gone cannot be acked, and comes again
        self._inbox = client.new_inbox()
        self._sub = await client.subscribe(f"{self._inbox}.*", cb=self._came.put, pending_bytes_limit=PENDING_BYTES)
        self._client = client

    @staticmethod
    def _read(msg: Any) -> Delivery | None:
        if msg is not None and msg.reply.startswith("$JS.ACK."):
            with suppress(*_WRONG):
                return Delivery(msg)
        return None


def _made(stream: StreamInfo, consumer: ConsumerInfo) -> str:
    return f"{stream.created} {consumer.created}"


def _object(data: bytes) -> dict[str, Any]:
    """JSON's object; empty when it is none."""
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}
