"""A real proxy: HTTP's CONNECT and SOCKS 5 on one port. Every name leads to this machine, and each target is noted.

So what is reached under a name that nobody else knows was reached through it. With TLS it stands in for the far side.
"""

import asyncio
import base64
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter


class Proxy:
    """What it was asked for. `login`: NAME:PASSWORD that it wants, by HTTP only."""

    def __init__(self, login: str = "") -> None:
        self.targets: list[str] = []
        self.port = 0
        self._login = login

    async def serve_one(self, reader: Reader, writer: Writer) -> None:
        async with closing(writer):
            first = await reader.readexactly(1)
            port = await (self._socks(reader, writer) if first == b"\x05" else self._http(first, reader, writer))
            if port:
                await join(reader, writer, port)

    async def _http(self, first: bytes, reader: Reader, writer: Writer) -> int:
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = head.split(maxsplit=2)
        wanted = "Basic " + base64.b64encode(self._login.encode()).decode()
        if self._login and f"proxy-authorization: {wanted}".lower() not in head.lower():
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return 0
        assert method == "CONNECT"
        self.targets.append(target)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        return int(target.rpartition(":")[2])

    async def _socks(self, reader: Reader, writer: Writer) -> int:
        """See RFC 1928; a target must be given by its name."""
        await reader.readexactly((await reader.readexactly(1))[0])
        writer.write(b"\x05\x00")
        assert await reader.readexactly(4) == b"\x05\x01\x00\x03"
        host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        (port,) = struct.unpack("!H", await reader.readexactly(2))
        self.targets.append(f"{host}:{port}")
        writer.write(b"\x05\x00\x00\x01" + bytes(6))
        return int(port)


@asynccontextmanager
async def closing(writer: Writer) -> AsyncIterator[None]:
    """Close it in the end, whatever the other side does; that it hangs up is no fault."""
    try:
        with suppress(OSError, EOFError):
            yield
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def join(reader: Reader, writer: Writer, port: int) -> None:
    """Pass on what comes on either side of a way to a port of this machine, until one ends."""

    async def pipe(source: Reader, sink: Writer) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()

    other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port)
    async with closing(other_writer):
        pipes = [asyncio.create_task(pipe(reader, other_writer)), asyncio.create_task(pipe(other_reader, writer))]
        try:
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in pipes:
                one.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)


@contextmanager
def running(proxy: Proxy, behind: Path | None = None, *ports: int) -> Iterator[list[int]]:
    """The proxy, and for each of these ports one that speaks TLS before it, with the certificate of that file."""
    loop = asyncio.new_event_loop()
    told: list[int] = []

    async def start() -> list[asyncio.Server]:
        servers = [await asyncio.start_server(proxy.serve_one, "127.0.0.1", 0)]
        for port in ports:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            assert behind is not None
            context.load_cert_chain(behind)
            servers.append(await asyncio.start_server(before(port), "127.0.0.1", 0, ssl=context))
        proxy.port, *told[:] = [server.sockets[0].getsockname()[1] for server in servers]
        return servers

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers = asyncio.run_coroutine_threadsafe(start(), loop).result(10)

    async def end() -> None:
        for server in servers:
            server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    try:
        yield told
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def before(port: int) -> Callable[[Reader, Writer], Awaitable[None]]:
    """What unpacks TLS for a server on this machine."""

    async def serve_one(reader: Reader, writer: Writer) -> None:
        async with closing(writer):
            await join(reader, writer, port)

    return serve_one


def certificate(file: Path, *names: str) -> Path:
    """A key and a certificate of these names, which vouches for itself, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "civicsky tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return file
