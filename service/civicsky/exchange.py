"""One HTTP/1.1 exchange after the other with a server on this machine, over one connection; the home of h11.

It is a transport of httpx's: the same requests, responses and errors. httpx's own keeps a pool of connections, and
takes half a millisecond of processor time for each exchange, as much as all else that is done for a label. Beside a
model on the same machine that counts; for one elsewhere, with its names, ciphers and proxies, httpx's own is better.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import h11

from civicsky.lean import without

with without("click", "rich"):  # its own command line
    import httpx

MAX_HEAD: Final = 100_000
"""Bytes of a response's head; more is no HTTP. The body's bound is its reader's business."""
MAX_WAITING: Final = 1 << 18
"""Bytes that were received and not read yet, above which the server waits."""


class Direct(httpx.AsyncBaseTransport):
    """A connection that is kept for the next exchange. One exchange at a time; the caller bounds its time.

    Raises httpx's `TransportError`s.
    """

    def __init__(self) -> None:
        self._kept: _Connection | None = None
        self._kept_for: tuple[str, int] | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it, and read the head of the response. Whoever reads or closes its stream ends the exchange."""
        connection = await self._connection(request.url)
        try:
            head = await connection.ask(request)
        except BaseException:
            connection.drop()
            raise
        return httpx.Response(head.status_code, headers=list(head.headers), stream=_Body(self, connection))

    async def aclose(self) -> None:
        """Release the connection."""
        if self._kept:
            self._kept.drop()
            self._kept = None

    async def _connection(self, url: httpx.URL) -> "_Connection":
        if url.scheme != "http":
            raise httpx.UnsupportedProtocol(f"no way to speak {url.scheme!r}")
        where = url.raw_host.decode("ascii"), url.port or 80
        kept, self._kept = self._kept, None
        if kept is not None and self._kept_for == where and kept.is_idle:
            return kept
        if kept is not None:
            kept.drop()
        self._kept_for = where
        try:
            _, connection = await asyncio.get_running_loop().create_connection(_Connection, *where)
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        return connection

    def keep(self, connection: "_Connection") -> None:
        """For the next exchange."""
        self._kept = connection


class _Connection(asyncio.Protocol):
    """The bytes of one connection, and what they mean."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._transport: Any = None
        self._came = bytearray()
        self._lost = False
        self._why: Exception | None = None
        self._more = asyncio.Event()

    # ---- what the loop calls ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._came += data
        if len(self._came) > MAX_WAITING:
            self._transport.pause_reading()
        self._more.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost, self._why = True, exc
        self._more.set()

    # ---- what the transport calls ----

    @property
    def is_idle(self) -> bool:
        """Whether it may be used again: nothing came, not even its end."""
        return not self._came and not self._lost and not self._transport.is_closing()

    async def ask(self, request: httpx.Request) -> h11.Response:
        """Send a request and wait for the head of its response."""
        try:
            head = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
            body = request.content
            events = [head, h11.Data(data=body), h11.EndOfMessage()] if body else [head, h11.EndOfMessage()]
            self._transport.write(b"".join(self._http.send(event) or b"" for event in events))
        except h11.LocalProtocolError as error:
            raise httpx.LocalProtocolError(str(error)) from error
        while not isinstance(event := await self.event(), h11.Response):
            if isinstance(event, h11.ConnectionClosed):
                raise httpx.RemoteProtocolError("the server hung up without a response")
        return event

    async def event(self) -> Any:
        """The next thing that the server says."""
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._received())
        except h11.RemoteProtocolError as error:
            raise httpx.RemoteProtocolError(str(error)) from error
        if event is h11.PAUSED:
            raise httpx.RemoteProtocolError("the server goes on after its response")
        return event

    async def _received(self) -> bytes:
        """What came, once something did; b"" at the end."""
        while not self._came and not self._lost:
            self._more.clear()
            await self._more.wait()
        if not self._came:
            if self._why is not None:
                raise httpx.ReadError(str(self._why)) from self._why
            return b""
        data = bytes(self._came)
        self._came.clear()
        self._transport.resume_reading()
        return data

    def renew(self) -> bool:
        """After a response: whether another exchange may follow."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return self.is_idle and not self._http.trailing_data[0]

    def drop(self) -> None:
        """Hang up."""
        self._transport.abort()


class _Body(httpx.AsyncByteStream):
    """The rest of a response. The connection is kept when it was read to its end."""

    def __init__(self, transport: Direct, connection: _Connection) -> None:
        self._transport, self._connection = transport, connection
        self._is_open = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while isinstance(event := await self._connection.event(), h11.Data):
            yield bytes(event.data)
        if self._is_open and isinstance(event, h11.EndOfMessage) and self._connection.renew():
            self._is_open = False
            self._transport.keep(self._connection)

    async def aclose(self) -> None:
        """End the exchange."""
        if self._is_open:
            self._is_open = False
            self._connection.drop()
