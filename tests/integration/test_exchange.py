"""Exchanges with a real server on this machine, which does as it is told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest

from civicsky.exchange import MAX_WAITING, Direct

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Told:
    """A server that answers each request of a connection with the next of these bytes, and then hangs up."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = answers
        self.heard: list[bytes] = []
        self.connections = 0
        self.url = ""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            for answer in self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                self.heard.append(head + await reader.readexactly(size))
                writer.write(answer)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def serving(told: Serve) -> AsyncIterator[str]:
    server = await asyncio.start_server(told, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/x?y=z"


async def exchanged(direct: Direct, url: str, content: bytes | None = b"{}") -> tuple[int, bytes]:
    response = await direct.handle_async_request(httpx.Request("POST", url, content=content))
    try:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        return response.status_code, b"".join([part async for part in response.stream])
    finally:
        await response.aclose()


async def noticed(direct: Direct) -> None:
    """Until it has seen that the server hung up."""
    while direct._kept is not None and direct._kept.is_idle:  # noqa: ASYNC110  (it tells nobody)
        await asyncio.sleep(0.001)


async def test_exchanges_share_a_connection() -> None:
    told, direct = Told(OK, OK, OK), Direct()
    async with serving(told) as url:
        for _ in range(3):
            assert await exchanged(direct, url, b'{"a": 1}') == (200, b"ok")
        await direct.aclose()
    assert told.connections == 1
    assert told.heard[0].startswith(b"POST /v1/x?y=z HTTP/1.1\r\n")
    assert told.heard[0].endswith(b'\r\n\r\n{"a": 1}')


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"abc"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", b""),
    ],
)
async def test_responses_of_every_form_are_read_and_another_exchange_can_follow(answer: bytes, body: bytes) -> None:
    told, direct = Told(answer), Direct()
    async with serving(told) as url:
        for _ in range(2):
            assert (await exchanged(direct, url))[1] == body
            await noticed(direct)
        await direct.aclose()
    assert told.connections == 2


async def test_a_server_that_hung_up_meanwhile_is_connected_to_again() -> None:
    told, direct = Told(OK), Direct()
    async with serving(told) as url:
        for _ in range(3):
            assert await exchanged(direct, url) == (200, b"ok")
            await noticed(direct)
        await direct.aclose()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Le", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", httpx.RemoteProtocolError),
        (b"SSH-2.0-OpenSSH_9.6\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 50_000, httpx.RemoteProtocolError),
    ],
)
async def test_what_is_no_response_is_a_fault_of_the_transport_and_the_next_exchange_is_another_connections(
    answer: bytes, error: type[Exception]
) -> None:
    told, direct = Told(answer), Direct()
    async with serving(told) as url:
        for _ in range(2):
            with pytest.raises(error):
                await exchanged(direct, url)
        await direct.aclose()
    assert told.connections == 2


async def test_what_a_server_says_behind_its_response_is_never_taken_for_the_next_one() -> None:
    told, direct = Told(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", OK), Direct()
    async with serving(told) as url:
        assert await exchanged(direct, url) == (200, b"ok")
        told.answers = (OK,)
        assert await exchanged(direct, url) == (200, b"ok")
        await direct.aclose()
    assert told.connections == 2


async def test_nobody_listens() -> None:
    async with serving(Told()) as url:
        pass
    with pytest.raises(httpx.ConnectError):
        await exchanged(Direct(), url)


async def test_an_exchange_that_is_given_up_ends_its_connection() -> None:
    came, direct = asyncio.Event(), Direct()
    ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        came.set()
        with suppress(ConnectionError):
            ended.set_result(await reader.read())
        if not ended.done():
            ended.set_result(b"")
        writer.close()

    async with serving(silent) as url:
        task = asyncio.create_task(exchanged(direct, url))
        await came.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await ended == b""


async def test_a_body_that_nobody_reads_waits_with_the_server() -> None:
    """However much is sent: what is held is bounded."""
    sent, direct = [0], Direct()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        with suppress(ConnectionError):
            while True:
                writer.write(b"x" * 100_000)
                await writer.drain()
                sent[0] += 100_000

    async with serving(endless) as url:
        response = await direct.handle_async_request(httpx.Request("POST", url, content=b"{}"))
        before = -1
        while before != sent[0]:  # until it stands still
            before = sent[0]
            await asyncio.sleep(0.2)
        assert len(direct_connection(response)._came) <= MAX_WAITING + 1_000_000
        assert sent[0] < 100_000_000
        await response.aclose()


def direct_connection(response: httpx.Response) -> Any:
    return response.stream._connection  # type: ignore[union-attr]


async def test_only_plain_http_is_spoken() -> None:
    with pytest.raises(httpx.UnsupportedProtocol):
        await exchanged(Direct(), "https://127.0.0.1:1/")
