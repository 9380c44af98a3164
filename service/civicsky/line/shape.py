"""What the source needs of an open websocket, and how one fails. Knows no library; imports nothing of ours."""

from typing import Final, Protocol

HANDFUL: Final = 256
"""Messages that `receive` gives at once at most, and that wait for it."""
HANDFUL_BYTES: Final = 1_000_000
"""The same in bytes; one message may go beyond."""
USER_AGENT: Final = "civicsky"

# Codes of close frames (RFC 6455, 7.4).
NORMAL: Final = 1000
PROTOCOL_ERROR: Final = 1002
NO_STATUS: Final = 1005
"""Stands for a close frame without a code; never sent."""
BAD_TEXT: Final = 1007
TOO_BIG: Final = 1009


class Line(Protocol):
    """An open websocket. Its one reader gets every message whole, once, and in order."""

    @property
    def date(self) -> str:
        """The other side's clock, as the handshake told it (an HTTP date); empty when it did not."""

    async def receive(self) -> list[bytes | str]:
        """The messages that are there, a handful at most, waiting for the first; `str` are text frames.

        Once a handful waits nothing more is read off the socket, so TCP makes the other side wait. After the last
        message: raises `LineClosed`, each time.
        """

    async def ping(self) -> None:
        """Until the other side has answered. Raises `LineClosed`."""

    def abort(self) -> None:
        """Be closed at once, without a word. What waits may still be received."""

    async def aclose(self) -> None:
        """Close it, politely if that is quick."""


class LineError(Exception):
    """The text says why, in words for the log; it never quotes an address, which may hold a password."""


class ProxyUnusable(LineError):
    """The proxy that the environment names cannot be used, or does not let us through."""


class HandshakeRefused(LineError):
    """The other side answers with another HTTP status than 101. `retry_after` is its header, empty without one."""

    def __init__(self, status: int, retry_after: str) -> None:
        super().__init__(f"HTTP {status}")
        self.retry_after = retry_after


class NoWebsocket(LineError):
    """What answers there speaks no websocket. `what` is the kind of its fault."""

    def __init__(self, what: str) -> None:
        super().__init__(f"no websocket there ({what})")
        self.what = what


class LineClosed(LineError):
    """The connection has ended, by whichever side.

    `too_large`: we ended it, for a message above the bound, which was not held in memory.
    """

    def __init__(self, why: str = "closed without a word", *, too_large: bool = False) -> None:
        super().__init__(why)
        self.too_large = too_large


def closed(code: int, reason: str, *, too_large: bool = False) -> LineClosed:
    """As after a close frame with these."""
    return LineClosed(f"closed with {code} {reason}".strip(), too_large=too_large)
