"""A relay that plays a recorded stream (a real websocket server, for the demo and for trials), and a recorder.

With a cursor it sends what comes after it (inclusive: from it on); without one it plays from the beginning, as if the
recording were live. At the end it keeps the connection open, like a quiet relay.
"""

import asyncio
import io
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

import cbor2
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from civicsky.decode import decode
from civicsky.errors import BadInput, Usage
from civicsky.frames import FrameWriter
from civicsky.metrics import Metrics
from civicsky.model import Position
from civicsky.settings import Source as SourceSettings, Window
from civicsky.source import PATH, Source


@dataclass(frozen=True)
class Playback:
    """How a recording is played."""

    rate: float | None = None
    """Frames a second; None as fast as the reader takes them."""
    loop: bool = False
    """Begin again at the end, with sequence numbers that go on rising."""
    mode: Literal["inclusive", "exclusive"] = "exclusive"
    """Whether the event at the cursor is sent again."""


class Relay:
    """Serves one recording to any number of readers."""

    def __init__(self, frames: Sequence[bytes], playback: Playback) -> None:
        if not frames:
            raise Usage("there is no frame to serve")
        self._frames, self._playback = list(frames), playback
        self._seqs = _sequence_numbers(self._frames)

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[str]:
        """Listen on loopback (port 0: any free one); gives the address to use as a relay.

        Raises `Usage` when the port is taken.
        """
        try:
            server = await serve(self._play, "127.0.0.1", port, compression=None, ping_interval=None)
        except OSError as error:
            raise Usage(f"port {port} cannot be used: {error.strerror}; choose another with --port") from None
        async with server:
            (listener,) = server.sockets
            yield f"ws://127.0.0.1:{listener.getsockname()[1]}"

    async def _play(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        target = urlsplit(connection.request.path)
        if target.path != PATH:
            await connection.close(1008, "no such method")
            return
        given = parse_qs(target.query).get("cursor", [""])[0]
        try:
            cursor = int(given) if given else None
        except ValueError:
            await self._refuse(connection, "InvalidRequest", "Invalid cursor")
            return
        if cursor is not None and cursor > self._seqs[-1] and not self._playback.loop:
            await self._refuse(connection, "FutureCursor", "Cursor in the future.")
            return
        try:
            await self._send(connection, cursor)
            await connection.wait_closed()
        except ConnectionClosed:
            pass

    async def _send(self, connection: ServerConnection, cursor: int | None) -> None:
        span = self._seqs[-1]
        turn, at = 0, 0
        if cursor is not None:
            turn = max(0, cursor - 1) // span if self._playback.loop else 0
            find = bisect_left if self._playback.mode == "inclusive" else bisect_right
            at = find(self._seqs, cursor - turn * span)
        pace = _Pace(self._playback.rate)
        while True:
            for number in range(at, len(self._frames)):
                frame = self._frames[number]
                await connection.send(_renumbered(frame, turn * span) if turn else frame)
                await pace.next()
            if not self._playback.loop:
                return
            turn, at = turn + 1, 0

    async def _refuse(self, connection: ServerConnection, error: str, message: str) -> None:
        await connection.send(cbor2.dumps({"op": -1}) + cbor2.dumps({"error": error, "message": message}))
        await connection.close(1008, error)


async def capture_frames(settings: SourceSettings, max_frames: int, file: Path) -> int:
    """Record so many frames of a relay; gives how many were written."""
    settings = settings.model_copy(update={"window": Window()})  # it is asked for now
    source = Source(settings, {relay: Position(relay) for relay in settings.relays}, Metrics())
    writer = FrameWriter(file)
    n = 0
    try:
        async for handful in source.handfuls():
            for arrival in handful.one_by_one:
                if isinstance(arrival.data, str):
                    source.settle(None)
                    continue
                try:
                    is_new = source.settle(decode(arrival.data).seq) is None
                except BadInput:
                    is_new = True  # record what came, whatever it is
                if is_new:
                    writer.write(arrival.data)
                    n += 1
                if n >= max_frames:
                    return n
    finally:
        writer.close()
    return n


class _Pace:
    """Waits so that, on average, `rate` frames go out a second."""

    def __init__(self, rate: float | None) -> None:
        self._rate, self._sent = rate, 0
        self._began = asyncio.get_running_loop().time()

    async def next(self) -> None:
        self._sent += 1
        if self._rate:
            await asyncio.sleep(max(0.0, self._began + self._sent / self._rate - asyncio.get_running_loop().time()))


def _sequence_numbers(frames: Sequence[bytes]) -> list[int]:
    """The number of each frame; one without a number counts with the frame before it."""
    numbers: list[int] = []
    for frame in frames:
        try:
            seq = decode(frame).seq
        except BadInput:
            seq = None
        numbers.append(seq if seq is not None else (numbers[-1] if numbers else 0))
    return numbers


def _renumbered(frame: bytes, offset: int) -> bytes:
    """The same frame with a higher sequence number; links keep their tag."""
    decoder = cbor2.CBORDecoder(io.BytesIO(frame))
    header, body = decoder.decode(), decoder.decode()
    if isinstance(body, dict) and isinstance(body.get("seq"), int):
        body["seq"] += offset
    return cbor2.dumps(header, canonical=True) + cbor2.dumps(body, canonical=True)
