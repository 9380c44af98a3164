"""Whoever reads the stream and is cancelled ends, at whichever step of a connection's end that comes."""

import asyncio
from contextlib import aclosing, suppress

import pytest
import uvloop

from civicsky.metrics import Metrics
from civicsky.model import Position
from civicsky.settings import Client, Source as SourceSettings
from civicsky.source import Source
from support.raw import Connection, frame, raw_server

STEPS = 20
"""Turns of the event loop: some more than a connection's end takes."""
PATIENCE = 10


async def goes_on(client: Client, step: int) -> bool:
    """Whether a reader that is cancelled so many steps after the server hung up goes on all the same."""
    came, gone = asyncio.Event(), asyncio.Event()

    async def play(connection: Connection) -> None:
        if gone.is_set():
            await connection.gone()
            return
        await connection.send(frame(b"x"))
        await came.wait()
        connection.reset()
        gone.set()

    async with raw_server(play) as url:
        host = url.partition("/x")[0]
        settings = SourceSettings(relays=(host,), client=client, backoff_seconds=0.01)
        source = Source(settings, {host: Position(host, 1, 5)}, Metrics())

        async def read() -> None:
            async with aclosing(source.handfuls()) as handfuls:
                async for _ in handfuls:
                    came.set()

        reader = asyncio.create_task(read())
        await gone.wait()
        for _ in range(step):
            await asyncio.sleep(0)
        reader.cancel()
        _, left = await asyncio.wait([reader], timeout=PATIENCE)
        reader.cancel()
        with suppress(asyncio.CancelledError):
            await reader
        return bool(left)


@pytest.mark.parametrize("client", ["websockets", "picows"])
def test_a_reader_that_is_cancelled_while_its_connection_ends_does_not_connect_again(client: Client) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for step in range(STEPS):
            assert not runner.run(goes_on(client, step)), f"cancelled {step} steps after the end"
