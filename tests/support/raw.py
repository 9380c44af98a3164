"""A server of websockets that a test scripts byte by byte: whatever answer, whatever frames, cut wherever."""

import asyncio
import base64
import hashlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
FIN = 0x80

Play: TypeAlias = Callable[["Connection"], Awaitable[None]]


def frame(payload: bytes = b"", kind: int = BINARY, *, first: int = FIN, size: int | None = None) -> bytes:
    """A frame as a server sends it; `first` has FIN and the reserved bits, `size` what it says of its length."""
    size = len(payload) if size is None else size
    if size < 126:
        head = bytes([first | kind, size])
    elif size < 65536:
        head = struct.pack("!BBH", first | kind, 126, size)
    else:
        head = struct.pack("!BBQ", first | kind, 127, size)
    return head + payload


def close_frame(code: int, reason: str = "") -> bytes:
    return frame(struct.pack("!H", code) + reason.encode(), CLOSE)


class Connection:
    """The server's side of one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.request = ""
        self.sent = 0

    async def read_request(self) -> None:
        self.request = (await self.reader.readuntil(b"\r\n\r\n")).decode()

    async def shake(self, *more: str, connection: str = "Upgrade", accept: str = "") -> None:
        """Answer the handshake as it should be, or not quite."""
        key = next(line[19:] for line in self.request.split("\r\n") if line.lower().startswith("sec-websocket-key: "))
        right = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()  # noqa: S324  (RFC 6455)
        await self.say(
            "HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", f"Connection: {connection}",
            f"Sec-WebSocket-Accept: {accept or base64.b64encode(right).decode()}", *more,
        )  # fmt: skip

    async def say(self, *lines: str) -> None:
        await self.send("".join(f"{line}\r\n" for line in [*lines, ""]).encode())

    async def send(self, *chunks: bytes) -> None:
        """Each chunk by a write of its own, once the one before has left."""
        for chunk in chunks:
            self.writer.write(chunk)
            self.sent += len(chunk)
            await self.writer.drain()

    async def frame(self) -> tuple[int, bytes]:
        """The next frame of the client, unmasked: its kind, its payload. Raises `EOFError`."""
        first, second = await self.reader.readexactly(2)
        assert first & 0xF0 == FIN
        assert second & 0x80, "a client masks its frames"
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", await self.reader.readexactly(2))
        mask = await self.reader.readexactly(4)
        payload = await self.reader.readexactly(size)
        return first & 0xF, bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))

    async def gone(self) -> None:
        """Until the client has closed or hung up; then it is for the server to end the connection (RFC 6455, 7.1.1)."""
        with suppress(OSError, EOFError):
            while (await self.frame())[0] != CLOSE:
                pass

    def reset(self) -> None:
        """Hang up as a host does whose process is gone."""
        link = self.writer.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@asynccontextmanager
async def raw_server(play: Play, *, tls: ssl.SSLContext | None = None, shake: bool = True) -> AsyncIterator[str]:
    """Plays to each client, to its end; gives the address. A defect of the play shows in the test."""
    tasks: set[asyncio.Task[None]] = set()
    faults: list[Exception] = []

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tls is None:  # uvloop's TLS never finds its buffer empty
            writer.transport.set_write_buffer_limits(high=0)
        connection = Connection(reader, writer)
        try:
            await connection.read_request()
            if shake:
                await connection.shake()
            await play(connection)
        except (OSError, EOFError):  # the client hung up
            pass
        except Exception as error:  # noqa: BLE001  (raised below)
            faults.append(error)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0, ssl=tls, limit=1 << 20)
    try:
        scheme, host = ("wss", "localhost") if tls else ("ws", "127.0.0.1")
        yield f"{scheme}://{host}:{server.sockets[0].getsockname()[1]}/x?cursor=7"
    finally:
        server.close()
        if tasks:  # the clients are gone, so each play ends
            _, left = await asyncio.wait(tasks, timeout=10)
            for task in left:
                task.cancel()
            assert not left, "a play did not end"
        if faults:
            raise faults[0]
