"""A server with the interface of OpenAI's that is as lean as can be: it answers every question the same, after a while.

    python -m bench.model_mock --latency 0.05

prints {"url": its address}; GET /counts tells how many questions it answered and how many it held at most. An answer
is as long as vLLM's to this task: 18 tokens with their log-probabilities, 2.3 kB. It runs on uvloop and parses no more
than it must, so that what is measured is the one who asks.
"""

import argparse
import asyncio
import json
import math
from typing import Any, Final

import uvloop

PIECES: Final = ('{"', "civic", '":', ' "', "not", " civic", '",', ' "', "lean", '":', " null", ",", ' "', "us", "_pol",
                 "itics", '":', " null", "}")  # fmt: skip
HEAD: Final = b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: mock\r\n"


def _http(body: dict[str, Any]) -> bytes:
    packed = json.dumps(body).encode()
    return HEAD + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(packed), packed)


def _answer() -> bytes:
    tokens = [
        {"token": piece, "logprob": math.log(0.9), "bytes": list(piece.encode()), "top_logprobs": []}
        for piece in PIECES
    ]
    choice = {
        "index": 0, "message": {"role": "assistant", "content": "".join(PIECES)}, "finish_reason": "stop",
        "logprobs": {"content": tokens, "refusal": None},
    }  # fmt: skip
    usage = {"prompt_tokens": 420, "completion_tokens": len(PIECES), "total_tokens": 420 + len(PIECES)}
    named = {"id": "chatcmpl-0", "object": "chat.completion", "created": 1_767_225_600, "model": "mock"}
    return _http({**named, "choices": [choice], "usage": usage, "system_fingerprint": "fp_0"})


ANSWER: Final = _answer()
MODELS: Final = _http({"object": "list", "data": [{"id": "mock", "object": "model"}]})


class Counts:
    """Of all connections."""

    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.answered = self.held = self.held_most = 0


class Connection(asyncio.Protocol):
    """One caller; one request at a time, as HTTP/1.1 has it."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._buffer = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            size = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0] or 0)
            if len(self._buffer) < end + 4 + size:
                return
            self._buffer = self._buffer[end + 4 + size :]
            self._asked(head)

    def _asked(self, head: bytes) -> None:
        counts = self._counts
        if head.startswith(b"post"):
            counts.held += 1
            counts.held_most = max(counts.held_most, counts.held)
            if counts.latency:
                asyncio.get_running_loop().call_later(counts.latency, self._answer)
            else:
                self._answer()
        elif b"/counts " in head:
            self._transport.write(_http({"answered": counts.answered, "held_most": counts.held_most}))
        else:
            self._transport.write(MODELS)

    def _answer(self) -> None:
        self._counts.held -= 1
        self._counts.answered += 1
        self._transport.write(ANSWER)


async def serve(latency: float) -> None:
    counts = Counts(latency)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(counts), "127.0.0.1", 0, backlog=512)
    print(json.dumps({"url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"}), flush=True)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    uvloop.run(serve(parser.parse_args().latency))


if __name__ == "__main__":
    main()
