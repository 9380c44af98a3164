"""The work queue: a JetStream stream in memory, one consumer for each model; home and workers see it from here.

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
    DiscardPolicy,
    Header,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import BadRequestError, NotFoundError

from civicsky.errors import Refused, Transient
from civicsky.settings import Workers as WorkersSettings
from civicsky.workers import messages
from civicsky.workers.bus import FAILURES, Bus, Nobody

API_SECONDS: Final = 5.0
MAX_JOBS: Final = 10_000
"""In the stream: more than any home node has slots, with room for attempts that are not taken back yet."""
MAX_AGE: Final = 3600.0
"""Seconds that a job stays in the stream at most, whatever became of the home node: its text is somebody's post."""


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
        with suppress(*FAILURES):
            await what()


class WorkQueue:
    """The jobs for one model. Whoever has `Bus.run` running may use it."""

    def __init__(self, bus: Bus, settings: WorkersSettings, key: str) -> None:
        """`key` is the model's, of `messages.model_key`."""
        self._bus, self._settings, self._name = bus, settings, settings.name
        self.subject = messages.subject_of_jobs(settings.name, key)
        self._consumer = messages.consumer_name(key)

    # ---- seen from home ----

    async def make(self) -> str:
        """A new, empty queue instead of any that is there; gives when.

        Raises `Refused` when there is a stream of that name that is none of ours, or none can be made.
        """
        js = self._js()
        ours = [f"{self._name}.job.>"]
        try:
            with suppress(NotFoundError):
                info = await js.stream_info(self._name)
                if info.config.subjects != ours:
                    whose = f"NATS at {self._bus.host} has a stream {self._name!r} that is none of ours"
                    raise Refused(f"{whose}; set workers.name")
                await js.delete_stream(self._name)
            await js.add_stream(
                StreamConfig(
                    name=self._name,
                    subjects=ours,
                    retention=RetentionPolicy.WORK_QUEUE,
                    storage=StorageType.MEMORY,
                    discard=DiscardPolicy.NEW,
                    max_msgs=MAX_JOBS,
                    max_age=MAX_AGE,
                    duplicate_window=120,
                )
            )
            await self._make_consumer()
            return str((await js.stream_info(self._name)).created)
        except BadRequestError as error:
            raise Refused(f"NATS at {self._bus.host} makes no work queue: {str(error.description)[:200]}") from error
        except FAILURES as error:
            raise self._bus.failed(error) from error

    async def _make_consumer(self) -> None:
        own = self._settings
        await self._js().add_consumer(
            self._name,
            ConsumerConfig(
                durable_name=self._consumer,
                filter_subject=self.subject,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=own.ack_seconds,
                max_deliver=own.deliveries + 1,  # the last one says so
                max_ack_pending=own.in_hand,
                max_waiting=8_192,
            ),
        )

    async def look(self) -> Look | None:
        """How things stand; None when there is no queue, or nobody whose jobs they are."""
        js = self._js()
        try:
            stream = await js.stream_info(self._name)
            info = await js.consumer_info(self._name, self._consumer)
        except NotFoundError:
            return None
        except FAILURES as error:
            raise self._bus.failed(error) from error
        return Look(str(stream.created), stream.state.messages, info.num_ack_pending or 0, info.num_redelivered or 0)

    async def put(self, data: bytes, message_id: str) -> int:
        """Put a job into the queue; gives its number there. However often, it is there once. Raises `Nobody`."""
        header = {str(Header.MSG_ID.value): message_id}
        told = json.loads(await self._bus.request(self.subject, data, API_SECONDS, header))
        if "error" in told:
            raise Transient(f"NATS at {self._bus.host} takes no job: {str(told['error'].get('description'))[:200]}")
        return int(told["seq"])

    async def has(self, number: int) -> bool:
        """Whether a job is still in the queue."""
        js = self._js()
        try:
            await js.get_msg(self._name, number)
        except NotFoundError:
            return False
        except FAILURES as error:
            raise self._bus.failed(error) from error
        return True

    async def take_back(self, number: int) -> None:
        """Take a job out of the queue, if that can be done now; who has it in hand already finds out by itself."""
        with suppress(Transient, *FAILURES):
            await self._js().delete_msg(self._name, number)

    # ---- seen by a worker ----

    def puller(self) -> "Puller":
        """For one slot, which takes one job after the other."""
        return Puller(self._bus, f"$JS.API.CONSUMER.MSG.NEXT.{self._name}.{self._consumer}")

    # ----

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
        self._came = asyncio.Queue()  # what came over a connection that is gone cannot be acked, and comes again
        self._inbox = client.new_inbox()
        self._sub = await client.subscribe(f"{self._inbox}.*", cb=self._came.put)
        self._client = client

    @staticmethod
    def _read(msg: Any) -> Delivery | None:
        return Delivery(msg) if msg is not None and msg.reply.startswith("$JS.ACK.") else None
