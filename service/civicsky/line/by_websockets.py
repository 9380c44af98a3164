"""A line by the library websockets; its client's one home. The only one that knows proxies."""

import asyncio
from typing import Final, Literal

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidProxy,
    InvalidProxyStatus,
    InvalidStatus,
    ProxyError,
    WebSocketException,
)
from websockets.http11 import Response

from civicsky.line.shape import (
    HANDFUL,
    HANDFUL_BYTES,
    TOO_BIG,
    USER_AGENT,
    HandshakeRefused,
    LineClosed,
    LineError,
    NoWebsocket,
    ProxyUnusable,
    closed,
)

QUEUED: Final = 4
"""Messages that the library holds ahead of ours."""


class WebsocketsLine:
    """See `shape.Line`. Takes messages off the library as they come, so that all that are there can be had at once.

    In memory at most a handful waits, and `QUEUED` messages and one that is on its way.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._messages: list[bytes | str] = []
        self._size = 0
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._error: Exception | None = None
        self.date = _header(socket.response, "Date")
        self._filling = asyncio.create_task(self._fill(), name="source-inlet")

    async def receive(self) -> list[bytes | str]:
        """See `shape.Line`."""
        await self._news.wait()
        self._news.clear()
        messages, self._messages, self._size = self._messages, [], 0
        self._room.set()
        if self._error is not None:
            self._news.set()
            if not messages:
                raise self._error
        return messages

    async def ping(self) -> None:
        """See `shape.Line`."""
        try:
            await (await self._socket.ping())
        except ConnectionClosed as error:
            raise _ended(error) from error

    def abort(self) -> None:
        """See `shape.Line`."""
        self._socket.transport.abort()

    async def aclose(self) -> None:
        """See `shape.Line`."""
        self._filling.cancel()
        try:
            await asyncio.wait([self._filling])
        finally:
            self._error = self._error or LineClosed()
            self._news.set()
            await self._socket.close()

    async def _fill(self) -> None:
        """Until the connection ends."""
        try:
            while True:
                data = await self._socket.recv()
                self._messages.append(data)
                self._size += len(data)
                self._news.set()
                if len(self._messages) >= HANDFUL or self._size >= HANDFUL_BYTES:
                    self._room.clear()
                    await self._room.wait()
        except ConnectionClosed as error:
            self._error = _ended(error)
        except Exception as error:  # noqa: BLE001  (whatever it is, `receive` raises it)
            self._error = error
        self._news.set()


async def open_line(url: str, seconds: float, max_bytes: int, proxy: str | Literal[True] | None) -> WebsocketsLine:
    """Open one; `proxy` as websockets takes it. Raises `LineError`, `OSError` or `TimeoutError`, and nothing else."""
    try:
        return WebsocketsLine(
            await connect(
                url,
                open_timeout=seconds,
                close_timeout=1,
                ping_interval=None,  # the library's keepalive closes a healthy socket behind a slow reader
                compression=None,
                max_size=max_bytes,
                max_queue=QUEUED,
                user_agent_header=USER_AGENT,
                proxy=proxy,
            )
        )
    except WebSocketException as error:
        raise _translated(error) from error
    except OSError:  # among them a certificate that nobody vouches for, which is a ValueError, too
        raise
    except ValueError:  # a port beyond numbers, say; its text may quote the address, which may hold a password
        raise ProxyUnusable(_BAD_PROXY + "its address cannot be read") from None


_BAD_PROXY = "the proxy that the environment names cannot be used: "


def _translated(error: WebSocketException) -> LineError:
    if isinstance(error, InvalidProxy):  # never its own text: the address may hold a password
        return ProxyUnusable(_BAD_PROXY + error.msg)
    if isinstance(error, InvalidProxyStatus):
        return ProxyUnusable(f"the proxy answers HTTP {error.response.status_code}")
    if isinstance(error, ProxyError):
        return ProxyUnusable("the proxy that the environment names does not answer as one")
    if isinstance(error, InvalidStatus):
        return HandshakeRefused(error.response.status_code, _header(error.response, "Retry-After"))
    if isinstance(error, InvalidHandshake | InvalidMessage):
        return NoWebsocket(type(error).__name__)
    return LineError(str(error) or type(error).__name__)


def _ended(error: ConnectionClosed) -> LineClosed:
    if (frame := error.rcvd or error.sent) is None:
        return LineClosed()
    ours = None if error.rcvd_then_sent else error.sent
    return closed(frame.code, frame.reason, too_large=ours is not None and ours.code == TOO_BIG)


def _header(response: Response | None, name: str) -> str:
    """The first header of a name: `get` raises when a relay sends several."""
    return next(iter(response.headers.get_all(name)), "") if response else ""
