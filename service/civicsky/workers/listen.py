"""Who is there: hears workers for a moment, for `civicsky doctor`."""

import asyncio
from contextlib import suppress
from time import monotonic

from civicsky.settings import Workers as WorkersSettings
from civicsky.workers import messages
from civicsky.workers.bus import CONNECT_SECONDS, Bus
from civicsky.workers.messages import Beat, Foreign, Garbled
from civicsky.workers.roster import BEAT_SECONDS, Roster


async def listened(settings: WorkersSettings) -> tuple[str, list[Beat]]:
    """NATS's address, and the workers that say that they are there. Raises `Transient`, `Refused` or `Usage`."""
    roster = Roster(lambda _beat: None, lambda _beat, _how: None)
    bus = Bus(settings, "civicsky doctor")

    async def on_beat(data: bytes) -> None:
        with suppress(Foreign, Garbled):
            roster.heard(messages.decode_beat(data), monotonic())

    bus.on(f"{settings.name}.beat", on_beat)
    run = asyncio.create_task(bus.run())
    try:
        await bus.wait_up(CONNECT_SECONDS)
        await asyncio.sleep(1.5 * BEAT_SECONDS)
    finally:
        run.cancel()
        await asyncio.wait([run])
    return bus.host, roster.there()
