"""Who is there, and why nobody takes questions: hears workers for a moment, for `civicsky doctor`."""

import asyncio
from contextlib import suppress
from time import monotonic
from typing import NamedTuple

import civicsky
from civicsky.settings import Workers as WorkersSettings
from civicsky.workers import messages
from civicsky.workers.bus import CONNECT_SECONDS, Bus
from civicsky.workers.messages import Garbled
from civicsky.workers.roster import ASK_SECONDS, BEAT_SECONDS, Roster


class Heard(NamedTuple):
    """What can be found out from outside."""

    host: str
    workers: int
    shortage: str
    """See `Roster.shortage`."""
    forbidden: str
    """What NATS forbids us of it."""


async def listened(settings: WorkersSettings, key: str, model: str) -> Heard:
    """Whether NATS lets us in, and which workers say that they are there. Raises `Transient`, `Refused` or `Usage`.

    It takes as long as an idle worker may be silent.
    """
    roster = Roster(lambda _beat: None, lambda _beat, _how: None)
    bus = Bus(settings, "civicsky doctor")

    async def on_beat(data: bytes) -> None:
        with suppress(Garbled):
            beat = messages.decode_beat(data)
            unlike = messages.unlike(beat, model, key, civicsky.__version__)
            roster.heard(beat._replace(why=unlike or beat.why), monotonic())

    bus.on(f"{settings.name}.beat", on_beat)
    run = asyncio.create_task(bus.run())
    try:
        await bus.wait_up(CONNECT_SECONDS)
        await asyncio.sleep(2 * BEAT_SECONDS + ASK_SECONDS)
    finally:
        run.cancel()
        await asyncio.wait([run])
    return Heard(bus.host, len(roster.there()), roster.shortage(key, model), bus.forbidden)
