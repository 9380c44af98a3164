"""Receives messages and does nothing with them: the bound of what any collector can do with a websocket client.

    python -m bench.receive websockets|picows URL FRAMES

Both run in uvloop, as civicsky does, without compression, and give each message as `bytes`. When all are there it
prints the moment and their bytes, as JSON, and waits to be ended.
"""

import asyncio
import json
import sys
from time import monotonic
from typing import Final

import uvloop

MAX_BYTES: Final = 5_000_000
"""Bytes of one message at most."""


async def with_websockets(url: str, frames: int) -> int:
    """The library's way: `async for` over the connection."""
    from websockets.asyncio.client import connect  # noqa: PLC0415

    size = 0
    async with connect(url, compression=None, max_size=MAX_BYTES, ping_interval=None, proxy=None) as socket:
        async for message in socket:
            size += len(message)
            frames -= 1
            if not frames:
                break
        told(size)
        await asyncio.Event().wait()
    return 0


async def with_picows(url: str, frames: int) -> int:
    """The library's way: a listener that is called with each frame."""
    from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect  # noqa: PLC0415

    class Listener(WSListener):
        size, left = 0, frames

        def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:  # noqa: ARG002  (given by place)
            if frame.msg_type == WSMsgType.BINARY:
                self.size += len(frame.get_payload_as_bytes())
                self.left -= 1
                if not self.left:
                    told(self.size)

    transport, _ = await ws_connect(Listener, url, max_frame_size=MAX_BYTES)
    await transport.wait_disconnected()
    return 0


def told(size: int) -> None:
    print(json.dumps({"done": monotonic(), "bytes": size}), flush=True)


if __name__ == "__main__":
    _, client, address, count = sys.argv
    sys.exit(uvloop.run({"websockets": with_websockets, "picows": with_picows}[client](address, int(count))))
