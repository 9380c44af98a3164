"""The ways in which a fake relay misbehaves towards a connection.

A host has a plan: knobs in their order, of which the first is armed. Once `after` more frames were sent on the current
connection, it acts, and the next one is armed. A knob acts once a connection, on `times` connections. A knob of the
handshake acts on the next connection: if there is one now, that is hung up on after `after` frames. Those of `GAPS`
wait for a connection with a cursor.
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from support.host import Host, Link

GAPS = ("go_live_after_gap", "outdated_cursor")
HANDSHAKE = ("refuse", "slow_start", "accept_then_hang_up", *GAPS)
TOO_MANY = 10
"""Bad frames in a row after which a collector hangs up."""
TOO_SLOW = bytes.fromhex(
    "a1626f7020a2656572726f726f436f6e73756d6572546f6f536c6f77676d657373616765781853747265616d20636f6e7375"
    "6d657220746f6f20736c6f77"
)
FUTURE = bytes.fromhex(
    "a1626f7020a2656572726f726c467574757265437572736f72676d65737361676575437572736f7220696e20746865206675747572652e"
)
OUTDATED = bytes.fromhex(
    "a261746523696e666f626f7001a2646e616d656e4f75746461746564437572736f72676d6573736167657838526571756573"
    "74656420637572736f72206578636565646564206c696d69742e20506f737369626c79206d697373696e67206576656e7473"
)
"""As a real server sends them."""


@dataclass
class Knob:
    """One misbehaviour to come."""

    name: str
    host: int = 0
    after: int = 0
    times: int = 1
    """Connections on which it acts."""
    seconds: float = 1
    """Of a stall, a slow start, or a host that is down."""
    skip: int = 10
    jump_seconds: float = 0
    status: int = 503
    retry_after: int | None = 1
    bytes: int = 5_000_000
    count: int = 10
    """Bad frames in a row."""
    fired: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.name not in {*ACTIONS, *HANDSHAKE}:
            raise ValueError(f"no such knob: {self.name}")

    @classmethod
    def read(cls, told: dict[str, Any]) -> "Knob":
        """From JSON. Raises `ValueError`."""
        try:
            return cls(**told)
        except TypeError as error:
            raise ValueError(str(error)) from None


async def _close(_host: "Host", link: "Link", _knob: Knob) -> bool:
    """What was sent arrives; then the socket is closed, without a close frame."""
    link.connection.transport.close()
    return False


async def _reset(_host: "Host", link: "Link", _knob: Knob) -> bool:
    """RST: what was sent may be lost on its way."""
    link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.connection.transport.abort()
    return False


async def _stall(_host: "Host", _link: "Link", knob: Knob) -> bool:
    await asyncio.sleep(knob.seconds)
    return True


async def _stall_deaf(_host: "Host", link: "Link", knob: Knob) -> bool:
    link.connection.transport.pause_reading()
    await asyncio.sleep(knob.seconds)
    link.connection.transport.abort()
    return False


async def _too_slow(_host: "Host", link: "Link", _knob: Knob) -> bool:
    await link.connection.send(TOO_SLOW)
    await link.connection.close(1008, "ConsumerTooSlow")
    return False


async def _duplicate(host: "Host", link: "Link", _knob: Knob) -> bool:
    """The frame that was sent last, again; if there is none, the next one twice."""
    if link.last is None:
        await host.send_next(link)
    if link.last is not None:
        await link.connection.send(link.last)
    return True


async def _out_of_order(host: "Host", link: "Link", _knob: Knob) -> bool:
    """The next two neighbours that both carry a number change places."""
    while not await host.send_swapped(link):
        await host.send_next(link)
    return True


async def _renumber(host: "Host", link: "Link", knob: Knob) -> bool:
    """A host that was set up anew: lower numbers for all it has, from the next connection on."""
    host.renumber()
    return await _close(host, link, knob)


async def _down(host: "Host", link: "Link", knob: Knob) -> bool:
    """Hang up, and refuse TCP connections for a while."""
    host.go_down(knob.seconds)
    return await _close(host, link, knob)


async def _big_frame(host: "Host", _link: "Link", knob: Knob) -> bool:
    host.relay.make_big(knob.bytes)
    return True


async def _too_big_frame(host: "Host", _link: "Link", knob: Knob) -> bool:
    """A frame that no client takes; it stands in the stream for good."""
    host.relay.make_big(knob.bytes, too_large=True)
    return True


async def _bad_frames(_host: "Host", link: "Link", knob: Knob) -> bool:
    """The same ones each time, outside of the stream: a cursor goes past them."""
    if knob.count >= TOO_MANY and link.extent.sure is None:
        link.extent.sure = link.extent.last
    for n in range(knob.count):
        await link.connection.send(b"\xff bad frame %d" % n)
    return True


ACTIONS: dict[str, Callable[["Host", "Link", Knob], Awaitable[bool]]] = {
    "close_without_close_frame": _close,
    "reset": _reset,
    "stall_answering_pings": _stall,
    "stall_deaf": _stall_deaf,
    "consumer_too_slow": _too_slow,
    "duplicate": _duplicate,
    "out_of_order": _out_of_order,
    "renumber": _renumber,
    "down": _down,
    "big_frame": _big_frame,
    "too_big_frame": _too_big_frame,
    "bad_frames_in_a_row": _bad_frames,
}
"""Each says whether the connection goes on."""
