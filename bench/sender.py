"""A relay that costs next to nothing: one reader is sent websocket messages that were made beforehand.

    python -m bench.sender RECORDING [--tls FILE] [--times FILE]

RECORDING is one of `traffic`'s; FILE has a certificate and its key. It talks in lines
of JSON on standard output, and is told on standard input how far to send:

    {"url": "ws://127.0.0.1:40123"}            it listens
    {"connected": 12.3}                        somebody reads
    100000                                     told: send until 100,000 frames in all are sent
    {"began": 12.4, "first": 0}                the first of them goes out
    {"ended": 14.2, "sent": 100000}            the last is with the kernel
    9000000 450                                told: so many a second, each as it is due
    {"gone": 14.9, "sent": 100300}             the reader has hung up: that is the end

Moments are those of CLOCK_MONOTONIC, which all processes share. When it is told of more frames than the recording has,
it goes on with the next turn of the recording (see `wire.Wire`). With `--times` the moment of each frame sent at a rate
is appended there, a double each.
"""

import argparse
import base64
import hashlib
import json
import os
import select
import socket
import ssl
import sys
from array import array
from pathlib import Path
from time import monotonic
from typing import Any, Final

from bench.wire import Wire

PATH: Final = "/xrpc/com.atproto.sync.subscribeRepos"
CHUNK: Final = 1 << 20
"""Bytes in one call."""
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_PING, _CLOSE = 0x9, 0x8


class Gone(Exception):
    """The reader has hung up."""


class Reader:
    """The far end of the one connection: what it says between our messages is answered."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._said = b""

    def shake_hands(self) -> None:
        """Answer its request for a websocket; no extension is agreed on."""
        while b"\r\n\r\n" not in self._said:
            self._receive()
        head, _, self._said = self._said.partition(b"\r\n\r\n")
        request, *lines = head.split(b"\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        if request.split()[1].partition(b"?")[0] != PATH.encode():
            self.connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            raise Gone
        accept = base64.b64encode(hashlib.sha1(headers[b"sec-websocket-key"] + _GUID).digest())  # noqa: S324  (RFC 6455)
        self.connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )

    def wait(self, seconds: float | None, *others: int) -> bool:
        """Answer it until the time is over or something can be read from `others`; whether it can."""
        end = None if seconds is None else monotonic() + seconds
        while True:
            left = None if end is None else max(0.0, end - monotonic())
            ready, _, _ = select.select([self.connection.fileno(), *others], [], [], left)
            if self.connection.fileno() in ready:
                self._receive()
                self._answer()
            if any(other in ready for other in others):
                return True
            if not ready:
                return False

    def _receive(self) -> None:
        self._said += self._some()
        while isinstance(self.connection, ssl.SSLSocket) and self.connection.pending():
            self._said += self._some()

    def _some(self) -> bytes:
        some = self.connection.recv(4096)
        if not some:
            raise Gone
        return some

    def _answer(self) -> None:
        """Pings get their pong, a farewell is returned. What a client says is short and masked."""
        while len(self._said) > 1 and len(self._said) >= (end := 6 + (self._said[1] & 0x7F)):
            opcode, mask, payload = self._said[0] & 0x0F, self._said[2:6], self._said[6:end]
            self._said = self._said[end:]
            plain = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
            if opcode == _PING:
                self.connection.sendall(bytes((0x8A, len(plain))) + plain)
            elif opcode == _CLOSE:
                self.connection.sendall(bytes((0x88, len(plain))) + plain)
                raise Gone


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--tls", type=Path)
    parser.add_argument("--times", type=Path)
    told = parser.parse_args()
    wire = Wire(told.recording)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        say(url=f"{'wss' if told.tls else 'ws'}://127.0.0.1:{listener.getsockname()[1]}")
        connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if told.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(told.tls)
        connection = context.wrap_socket(connection, server_side=True)
    with connection:
        serve(Reader(connection), wire, told.times)
    return 0


def serve(reader: Reader, wire: Wire, times: Path | None) -> None:
    """Send what we are told to send, until the reader or whoever tells us is gone."""
    sent = 0
    try:
        reader.shake_hands()
        say(connected=monotonic())
        while reader.wait(None, 0) and (line := os.read(0, 1000)):
            until, *rate = line.split()
            say(began=monotonic(), first=sent)
            if rate:
                sent = send_paced(reader, wire, sent, int(until), float(rate[0]), times)
            else:
                for piece in wire.pieces(sent, int(until), CHUNK):
                    reader.connection.sendall(piece)
                sent = int(until)
            say(ended=monotonic(), sent=sent)
    except (Gone, OSError):
        say(gone=monotonic(), sent=sent)


def send_paced(reader: Reader, wire: Wire, sent: int, until: int, rate: float, times: Path | None) -> int:
    """Send each frame when it is due; gives how many are sent in all."""
    began, first, moments = monotonic(), sent, array("d")
    try:
        while sent < until:
            due = began + (sent - first) / rate
            if (left := due - monotonic()) > 0:
                reader.wait(left)
            (piece,) = wire.pieces(sent, sent + 1, CHUNK << 3)
            moments.append(monotonic())
            reader.connection.sendall(piece)
            sent += 1
    finally:
        if times:
            with times.open("ab") as file:
                moments.tofile(file)
    return sent


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    sys.exit(main())
