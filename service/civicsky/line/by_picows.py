"""A line by the library picows; its one home. It copies each message once, and wakes the reader once for many.

picows parses frames and checks what stands in one header. What it leaves to its user is done here: messages in
fragments, the reserved bits, text, pings, the closing handshake, and the bound on what waits.
"""

import asyncio
import logging
import os
from collections import deque
from contextlib import suppress
from email.message import Message
from email.parser import BytesHeaderParser
from typing import Final

from picows import (
    WSCloseCode,
    WSError,
    WSFrame,
    WSHandshakeError,
    WSListener,
    WSMsgType,
    WSTransport,
    ws_connect,
)

from civicsky.line.shape import (
    BAD_TEXT,
    HANDFUL,
    HANDFUL_BYTES,
    NO_STATUS,
    NORMAL,
    PROTOCOL_ERROR,
    TOO_BIG,
    USER_AGENT,
    HandshakeRefused,
    LineClosed,
    LineError,
    NoWebsocket,
    closed,
)

CLOSE_SECONDS: Final = 1.0
"""How long `aclose` waits until what was written has left."""
REDIRECTS: Final = 10
_BINARY: Final = WSMsgType.BINARY


class PicowsLine(WSListener):
    """See `shape.Line`.

    In memory waits at most a handful, with what came in the same read of the socket: that is no more than the kernel
    had kept of the connection, some MB. A message that is on its way takes at most twice its size.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.date = ""
        self._loop = asyncio.get_running_loop()
        self._transport: WSTransport
        self._handfuls: deque[list[bytes | str]] = deque()
        """Full ones."""
        self._messages: list[bytes | str] = []
        self._size = 0
        self._whole = True
        """Neither a message in fragments has begun, nor is the connection over for us."""
        self._parts = bytearray()
        self._is_text = False
        self._reader: asyncio.Future[None] | None = None
        self._pong: tuple[bytes, asyncio.Future[None]] | None = None
        self._over = self._stuck = self._held = self._unwanted = False
        self._error: LineClosed | None = None
        self._seen_off: asyncio.Task[None]

    # ---- for the reader ----------------------------------------------------------------------------------------------

    async def receive(self) -> list[bytes | str]:
        """See `shape.Line`."""
        while not self._handfuls and not self._messages:
            if self._error is not None:
                raise self._error
            self._reader = self._loop.create_future()
            await self._reader
        if self._handfuls:
            messages = self._handfuls.popleft()
        else:
            messages, self._messages, self._size = self._messages, [], 0
        self._go_on()
        return messages

    async def ping(self) -> None:
        """See `shape.Line`."""
        if self._error is not None:
            raise self._error
        self._pong = os.urandom(4), self._loop.create_future()
        self._transport.send_ping(self._pong[0])
        await self._pong[1]

    def abort(self) -> None:
        """See `shape.Line`."""
        self._end()
        self._transport.disconnect(graceful=False)

    async def aclose(self) -> None:
        """See `shape.Line`."""
        if not self._over:
            self._end()
            self._transport.send_close(WSCloseCode(NORMAL))
            self._transport.disconnect()
        try:
            await asyncio.wait([self._seen_off], timeout=CLOSE_SECONDS)
        finally:
            self._transport.disconnect(graceful=False)
        await self._seen_off

    def abandon(self) -> None:
        """Nobody waits for it any more; its handshake may still be answered, and then it ends at once."""
        self._unwanted = True
        if hasattr(self, "_transport"):
            self.abort()

    # ---- called by picows --------------------------------------------------------------------------------------------

    def on_ws_connected(self, transport: WSTransport) -> None:
        """The handshake is done."""
        self._transport = transport
        self.date = transport.response.headers.get("Date", "")
        self._seen_off = self._loop.create_task(_until_gone(transport), name="source-socket")
        if self._unwanted:
            self.abort()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """A frame that is whole, and not above the bound."""
        if (
            self._whole
            and frame.msg_type is _BINARY
            and frame.fin
            and not (frame.rsv1 or frame.rsv2 or frame.rsv3)
        ):  # fmt: skip
            self._take(frame.get_payload_as_bytes())
        elif not self._over:
            self._odd(transport, frame)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """The connection is gone. What picows found wrong with a frame it has told the other side itself."""
        handshake = transport.close_handshake
        if handshake is not None and handshake.sent is not None and not handshake.recv_then_sent:
            code = int(handshake.sent.code)  # type: ignore[call-overload]  # an IntEnum, whatever its stub says
            self._stop_with(closed(code, handshake.sent.reason, too_large=code == TOO_BIG))
        self._stop_with(LineClosed())

    def pause_writing(self) -> None:
        """It does not take our pongs: no more pings are read."""
        self._stuck = True
        self._hold()

    def resume_writing(self) -> None:
        """It takes them again."""
        self._stuck = False
        self._go_on()

    def is_broken(self) -> None:
        """A frame was found wrong, and picows will hang up: nothing more is read. The frame before may still come."""
        self._hold()
        self._loop.call_soon(self._end)

    # ---- messages ----------------------------------------------------------------------------------------------------

    def _take(self, data: bytes | str) -> None:
        messages = self._messages
        messages.append(data)
        self._size += len(data)
        if self._reader is not None:
            self._wake()
        if self._size >= HANDFUL_BYTES or len(messages) >= HANDFUL:
            self._handfuls.append(messages)
            self._messages, self._size = [], 0
            self._hold()

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)

    def _odd(self, transport: WSTransport, frame: WSFrame) -> None:
        """All but whole binary messages."""
        kind = frame.msg_type
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            self._fail(PROTOCOL_ERROR, "reserved bits must be 0")
        elif kind is WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        elif kind is WSMsgType.PONG:
            if self._pong and self._pong[0] == frame.get_payload_as_bytes() and not self._pong[1].done():
                self._pong[1].set_result(None)
        elif kind is WSMsgType.CLOSE:
            self._closed(transport, frame.get_payload_as_bytes())
        elif (kind is WSMsgType.CONTINUATION) == self._whole:
            self._fail(PROTOCOL_ERROR, f"{'unexpected' if self._whole else 'expected a'} continuation frame")
        else:
            self._add(frame, is_text=kind is WSMsgType.TEXT)

    def _add(self, frame: WSFrame, *, is_text: bool) -> None:
        """A text, or a part of a message; gathered within the bound, however many parts there are."""
        if self._whole:
            self._whole, self._is_text = False, is_text
        size = len(self._parts)
        if size + frame.payload_size > self._max_bytes:
            told = f"frame with {frame.payload_size} bytes after reading {size} bytes exceeds limit of "
            self._fail(TOO_BIG, f"{told}{self._max_bytes} bytes")
            return
        self._parts += frame.get_payload_as_memoryview()
        if not frame.fin:
            return
        self._whole, parts, self._parts = True, self._parts, bytearray()
        try:
            self._take(parts.decode() if self._is_text else bytes(parts))
        except UnicodeDecodeError as error:
            self._fail(BAD_TEXT, f"{error.reason} at position {error.start}")

    # ---- the end -----------------------------------------------------------------------------------------------------

    def _fail(self, code: int, reason: str) -> None:
        """End it for a fault of the other side, and tell that."""
        self._transport.send_close(WSCloseCode(code), reason)
        self._hang_up(closed(code, reason, too_large=code == TOO_BIG))

    def _closed(self, transport: WSTransport, payload: bytes) -> None:
        """The other side closes, with a code and a reason that picows has looked at; it gets the same back."""
        code = int.from_bytes(payload[:2], "big") if payload else NO_STATUS
        transport.send(WSMsgType.CLOSE, payload)
        self._hang_up(closed(code, payload[2:].decode()))

    def _hang_up(self, error: LineClosed) -> None:
        self._end()
        self._transport.disconnect()
        self._stop_with(error)

    def _end(self) -> None:
        """Take nothing more."""
        self._hold()
        self._over, self._whole, self._parts = True, False, bytearray()

    def _stop_with(self, error: LineClosed) -> None:
        """The first one says why."""
        self._error = self._error or error
        self._wake()
        if self._pong is not None and not self._pong[1].done():
            self._pong[1].set_exception(self._error)

    # ---- the bound ---------------------------------------------------------------------------------------------------

    def _hold(self) -> None:
        """Read nothing more off the socket for now."""
        below = self._transport.underlying_transport
        if not (self._held or below.is_closing()):
            below.pause_reading()
            self._held = True

    def _go_on(self) -> None:
        """Read again once there is room."""
        below = self._transport.underlying_transport
        if self._held and not (self._handfuls or self._stuck or self._over or below.is_closing()):
            below.resume_reading()
            self._held = False


async def _until_gone(transport: WSTransport) -> None:
    """Picows raises here what it has told already; unheard, it would end up as a complaint of the event loop."""
    with suppress(WSError):
        await transport.wait_disconnected()


class _Alarm(logging.Handler):
    """Hears of a frame that picows finds wrong as soon as it does: it says so in its log, and hangs up only later.

    Meanwhile it would go on to read, and to keep in memory, what is above the bound.
    """

    def __init__(self, line: PicowsLine) -> None:
        super().__init__(logging.ERROR)
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        """See the class."""
        self._line.is_broken()


async def open_line(url: str, seconds: float, max_bytes: int) -> PicowsLine:
    """Open one, straight. Raises `LineError`, `OSError` or `TimeoutError`, and nothing else."""
    line = PicowsLine(max_bytes)
    try:
        await _connect(line, url, seconds, max_bytes)
    except BaseException:
        line.abandon()
        raise
    return line


async def _connect(line: PicowsLine, url: str, seconds: float, max_bytes: int) -> None:
    logger = logging.Logger("picows", logging.ERROR)  # noqa: LOG001  (its own: nothing of picows gets into our log)
    logger.addHandler(_Alarm(line))
    try:
        async with asyncio.timeout(seconds):
            _, listener = await ws_connect(
                lambda _request, _response: line,
                url,
                websocket_handshake_timeout=seconds,  # closes what our own bound leaves behind
                logger_name=logger,
                enable_auto_pong=False,
                max_frame_size=max_bytes,
                extra_headers={"User-Agent": USER_AGENT},
                max_redirects=REDIRECTS,
                use_aiofastnet=False,  # TLS stays with the event loop and Python's own module
            )
    except WSHandshakeError as error:
        raise _translated(error) from error
    except OSError:  # among them a certificate that nobody vouches for, which is a ValueError, too
        raise
    except (WSError, ValueError) as error:  # where it redirects us to is no address
        raise NoWebsocket("InvalidURI") from error
    if listener is None:  # it hung up before it answered
        raise NoWebsocket("InvalidMessage")


def _translated(error: WSHandshakeError) -> LineError:
    """By the answer itself: picows does not know every status."""
    first, _, headers = (error.raw_header or b"").partition(b"\r\n")
    version, _, status = first.partition(b" ")
    if version == b"HTTP/1.1" and status[:3].isdigit() and int(status[:3]) != 101:  # noqa: PLR2004
        told: Message = BytesHeaderParser().parsebytes(headers)
        return HandshakeRefused(int(status[:3]), str(told.get("Retry-After", "")))
    return NoWebsocket(type(error).__name__.removeprefix("WS").removesuffix("Error"))
