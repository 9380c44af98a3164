"""Whatever a server does on a websocket, both clients make the same of it: messages, bounds, ends, words."""

import asyncio
import gc
import ssl
import struct
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from functools import wraps
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, TypeAlias

import pytest
import uvloop
from hypothesis import given, strategies as st

from civicsky.line import by_picows, by_websockets
from civicsky.line.connecting import way_to
from civicsky.line.shape import (
    HANDFUL,
    HANDFUL_BYTES,
    HandshakeRefused,
    Line,
    LineClosed,
    LineError,
    NoWebsocket,
)
from support.proxy import certificate
from support.raw import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    PING,
    PONG,
    TEXT,
    Connection,
    Play,
    close_frame,
    frame,
    raw_server,
)
from support.tried import tried

BOUND = 100_000
GOOD = b"a good message"
SENT = [frame(GOOD), frame(b"another")]
GOT = [GOOD, b"another"]
Test: TypeAlias = Callable[..., Awaitable[None]]


async def in_time(test: Awaitable[Any]) -> Any:
    """Of a loop of uvloop's, pytest's own bound ends nothing."""
    try:
        async with asyncio.timeout(40):
            return await test
    except TimeoutError as error:
        raise AssertionError("it did not end") from error


class Client(NamedTuple):
    """A client on a kind of event loop."""

    name: str
    loop: Callable[[], asyncio.AbstractEventLoop]

    async def __call__(self, url: str, seconds: float = 5, bound: int = BOUND) -> Line:
        if self.name == "websockets":
            return await by_websockets.open_line(url, seconds, bound, None)
        return await by_picows.open_line(url, seconds, bound)

    def run(self, test: Awaitable[Any], *, to_the_end: bool = True) -> Any:
        """Nothing may be left for the loop to complain of, once all is collected."""
        unheard: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=self.loop) as runner:
            runner.get_loop().set_exception_handler(lambda _loop, told: unheard.append(told))
            done = runner.run(in_time(test))
            if to_the_end:
                gc.collect()
        assert not unheard
        return done


CLIENTS = {
    "websockets": Client("websockets", uvloop.new_event_loop),
    "picows": Client("picows", uvloop.new_event_loop),
    "picows-asyncio": Client("picows", asyncio.new_event_loop),
}


def over(*names: str) -> Callable[[Test], Callable[..., None]]:
    """Run a test with each of these clients, as `open_line`."""

    def decorate(test: Test) -> Callable[..., None]:
        @wraps(test)
        def run(open_line: Client, **others: Any) -> None:
            open_line.run(test(open_line, **others))

        each: Callable[[Callable[..., None]], Callable[..., None]] = pytest.mark.parametrize(
            "open_line", [CLIENTS[name] for name in names], ids=names
        )
        return each(run)

    return decorate


over_each_client = over(*CLIENTS)
over_picows = over("picows", "picows-asyncio")


@asynccontextmanager
async def opened(open_line: Client, play: Play, **bounds: Any) -> AsyncIterator[Line]:
    async with raw_server(play) as url, aclosing(await open_line(url, **bounds)) as line:
        yield line


async def all_of(line: Line) -> tuple[list[bytes | str], LineClosed]:
    """Every message to the end, and the end."""
    got: list[bytes | str] = []
    while True:
        try:
            got += await line.receive()
        except LineClosed as end:
            return got, end


def sends(*chunks: bytes) -> Play:
    """Send these, and wait until the client has hung up."""

    async def play(connection: Connection) -> None:
        await connection.send(*chunks)
        await connection.gone()

    return play


# ---- messages --------------------------------------------------------------------------------------------------------


@over_each_client
async def test_messages_come_whole_and_in_order_a_handful_at_most_at_once(open_line: Client) -> None:
    messages = [struct.pack("!I", n) * (n % 2000) for n in range(3000)]
    blob = b"".join(map(frame, messages)) + close_frame(1000)
    handfuls: list[list[bytes | str]] = []
    async with opened(open_line, sends(blob)) as line:
        with suppress(LineClosed):
            while True:
                handfuls.append(await line.receive())
    assert [one for handful in handfuls for one in handful] == messages
    assert max(map(len, handfuls)) <= HANDFUL
    assert max(sum(map(len, handful[:-1])) for handful in handfuls) < HANDFUL_BYTES
    assert len(handfuls) < len(messages) / 4, "what is there is taken together"


@over_each_client
async def test_a_message_in_fragments_is_put_together_around_pings_and_pongs(open_line: Client) -> None:
    chunks = [
        frame(b"one ", first=0), frame(b"", CONTINUATION, first=0), frame(b"p", PING), frame(b"two", CONTINUATION),
        frame(b"", PONG), frame("grün".encode()[:3], TEXT, first=0), frame("grün".encode()[3:], CONTINUATION),
        frame(b"", TEXT), frame(b""), frame(b"x" * BOUND), close_frame(1000),
    ]  # fmt: skip
    async with opened(open_line, sends(*chunks)) as line:
        assert (await all_of(line))[0] == [b"one two", "grün", "", b"", b"x" * BOUND]


@over_each_client
async def test_a_ping_is_answered_with_what_it_carried(open_line: Client) -> None:
    answers = []

    async def play(connection: Connection) -> None:
        await connection.send(frame(b"who", PING), frame(b"", PING), frame(b"after"))
        answers.extend([await connection.frame(), await connection.frame()])
        await connection.send(close_frame(1000))
        await connection.gone()

    async with opened(open_line, play) as line:
        assert (await all_of(line))[0] == [b"after"]
    assert answers == [(PONG, b"who"), (PONG, b"")]


@over_each_client
async def test_a_ping_of_ours_waits_for_its_own_pong(open_line: Client) -> None:
    asked = asyncio.Event()
    answer = asyncio.Event()

    async def play(connection: Connection) -> None:
        kind, payload = await connection.frame()
        assert kind == PING
        await connection.send(frame(b"", PONG), frame(b"none of it", PONG), frame(GOOD))
        asked.set()
        await answer.wait()
        await connection.send(frame(payload, PONG))
        await connection.gone()

    async with opened(open_line, play) as line:
        ping = asyncio.create_task(line.ping())
        await asked.wait()
        assert await line.receive() == [GOOD], "what came after the wrong pongs was read"
        assert not ping.done()
        answer.set()
        await asyncio.wait_for(ping, 5)


@over_each_client
async def test_a_ping_that_is_never_answered_ends_with_the_connection(open_line: Client) -> None:
    async def play(connection: Connection) -> None:
        await connection.frame()
        connection.reset()

    async with opened(open_line, play) as line:
        with pytest.raises(LineClosed, match="closed without a word"):
            await line.ping()
        with pytest.raises(LineClosed, match="closed without a word"):
            await line.ping()


# ---- ends ------------------------------------------------------------------------------------------------------------


@over_each_client
async def test_a_close_frame_tells_its_code_and_reason_and_is_answered(open_line: Client) -> None:
    answers = []

    async def play(connection: Connection) -> None:
        await connection.send(*SENT, close_frame(1008, "ConsumerTooSlow"))
        answers.append(await connection.frame())

    async with opened(open_line, play) as line:
        got, end = await all_of(line)
        with pytest.raises(LineClosed):
            await line.receive()
    assert got == GOT
    assert (str(end), end.too_large) == ("closed with 1008 ConsumerTooSlow", False)
    assert answers == [(CLOSE, struct.pack("!H", 1008) + b"ConsumerTooSlow")]


@pytest.mark.parametrize(("last", "why"), [
    (frame(b"", CLOSE), "closed with 1005"),
    (close_frame(1001), "closed with 1001"),
    (close_frame(1009, "too much"), "closed with 1009 too much"),
    (close_frame(4321, "grün"), "closed with 4321 grün"),
    (b"", "closed without a word"),
    (frame(b"abc")[:3], "closed without a word"),
])  # fmt: skip
@over_each_client
async def test_what_was_sent_before_the_end_arrives_and_the_end_is_told(
    open_line: Client, last: bytes, why: str
) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(*SENT, last)

    async with opened(open_line, play) as line:
        got, end = await all_of(line)
    assert (got, str(end), end.too_large) == (GOT, why, False)


BAD = {
    "masked": (b"\x82\x83abcdxyz", 1002),
    "reserved bit 1": (frame(b"x", first=FIN | 0x40), 1002),
    "reserved bit 3": (frame(b"x", first=FIN | 0x10), 1002),
    "reserved bit in a ping": (frame(b"x", PING, first=FIN | 0x20), 1002),
    "reserved bit in a text": (frame(b"x", TEXT, first=FIN | 0x20), 1002),
    "unknown kind": (frame(b"x", 3), 1002),
    "unknown control": (frame(b"x", 11), 1002),
    "long ping": (frame(b"x" * 126, PING), 1002),
    "fragmented ping": (frame(b"x", PING, first=0), 1002),
    "continuation of nothing": (frame(b"x", CONTINUATION), 1002),
    "a message within another": (frame(b"x", first=0) + frame(b"y"), 1002),
    "a text within another": (frame(b"x", first=0) + frame(b"y", TEXT), 1002),
    "length with its highest bit": (struct.pack("!BBQ", FIN | BINARY, 127, 1 << 63), None),
    "close frame of one byte": (frame(b"x", CLOSE), 1002),
    "close frame with a code that is none": (frame(b"\0\x01", CLOSE), 1002),
    "reason that is no text": (frame(b"\x03\xe8\xff", CLOSE), 1007),
    "text that is none": (frame(b"ab\xff", TEXT), 1007),
    "text that is none, in fragments": (frame(b"\xc3", TEXT, first=0) + frame(b"x", CONTINUATION), 1007),
    "too large": (frame(b"x" * (BOUND + 1)), 1009),
    "too large in fragments": (frame(b"x" * BOUND, first=0) + frame(b"y", CONTINUATION), 1009),
    "too large as it says": (frame(b"x", size=1 << 62), 1009),
}


@pytest.mark.parametrize("name", BAD)
@over_each_client
async def test_a_frame_that_may_not_be_ends_the_connection_and_nothing_behind_it_counts(
    open_line: Client, name: str
) -> None:
    bad, code = BAD[name]
    answers = []

    async def play(connection: Connection) -> None:
        await connection.send(b"".join([*SENT, bad, frame(b"behind it")]))
        answers.append(await connection.frame())

    async with opened(open_line, play) as line:
        got, end = await all_of(line)
    ((kind, payload),) = answers
    told = struct.unpack("!H", payload[:2])[0]
    assert (kind, got) == (CLOSE, GOT)
    assert str(end).startswith(f"closed with {told} ")
    assert told == code or (code is None and told in {1002, 1009})
    assert end.too_large == (told == 1009)


@pytest.mark.parametrize("in_fragments", [False, True])
@over_each_client
async def test_of_a_message_above_the_bound_next_to_nothing_is_taken(open_line: Client, in_fragments: bool) -> None:
    size = 2_000_000_000
    told = []

    async def play(connection: Connection) -> None:
        told.append(connection)
        await connection.send(frame(GOOD))
        part = frame(bytes(BOUND // 2), CONTINUATION, first=0) if in_fragments else bytes(65536)
        await connection.send(frame(first=0) if in_fragments else frame(size=size))
        gone = asyncio.create_task(connection.gone())
        while connection.sent < size and not gone.done():
            await connection.send(part)

    tracemalloc.start()
    try:
        async with opened(open_line, play) as line:
            got, end = await all_of(line)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (got, end.too_large) == ([GOOD], True)
    assert told[0].sent < 64_000_000, "what the sockets hold"
    assert peak < 3_000_000


@over_each_client
async def test_what_nobody_takes_stays_at_the_server_and_none_of_it_is_lost(open_line: Client) -> None:
    n, body = 3000, bytes(40_000)
    told = []

    async def play(connection: Connection) -> None:
        told.append(connection)
        for seq in range(n):
            await connection.send(frame(struct.pack("!I", seq) + body))
        await connection.send(close_frame(1000))
        await connection.gone()

    async with opened(open_line, play) as line:
        first = await line.receive()
        sent, since = 0, monotonic()
        while monotonic() - since < 0.3:  # as long as more gets through
            if told[0].sent != sent:
                sent, since = told[0].sent, monotonic()
            await asyncio.sleep(0.01)
        assert sent < n * len(body) / 2, "the server waits"
        rest, _ = await all_of(line)
    assert [struct.unpack("!I", one[:4])[0] for one in first + rest] == list(range(n))  # type: ignore[arg-type]


@over_picows  # websockets keeps pongs without a bound
async def test_one_who_takes_no_pongs_is_read_no_further(open_line: Client) -> None:
    told = []
    pings = frame(bytes(125), PING) * 500

    async def play(connection: Connection) -> None:
        told.append(connection)
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        while connection.sent < 200_000_000:
            await connection.send(pings)

    async with opened(open_line, play) as line:
        reader = asyncio.create_task(line.receive())
        sent, since = 0, monotonic()
        while monotonic() - since < 0.3:
            if told and told[0].sent != sent:
                sent, since = told[0].sent, monotonic()
            await asyncio.sleep(0.01)
        assert sent < 100_000_000
        line.abort()
        with pytest.raises(LineClosed):
            await reader


@over_each_client
async def test_an_aborted_line_ends_its_reader_and_the_socket(open_line: Client) -> None:
    gone = asyncio.Event()

    async def play(connection: Connection) -> None:
        await connection.send(frame(GOOD))
        await connection.gone()
        gone.set()

    async with opened(open_line, play) as line:
        assert await line.receive() == [GOOD]
        reader = asyncio.create_task(line.receive())
        await asyncio.sleep(0)
        line.abort()
        with pytest.raises(LineClosed, match="closed without a word"):
            await reader
        await asyncio.wait_for(gone.wait(), 5)


@over_each_client
async def test_a_line_that_is_closed_says_so_to_the_other_side(open_line: Client) -> None:
    answers: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()

    async def play(connection: Connection) -> None:
        answers.put_nowait(await connection.frame())
        await connection.send(close_frame(1000))

    async with opened(open_line, play):
        pass
    assert answers.get_nowait() == (CLOSE, struct.pack("!H", 1000))


@over_each_client
async def test_who_still_reads_from_a_line_that_is_closed_is_told(open_line: Client) -> None:
    async with opened(open_line, sends(frame(GOOD))) as line:
        assert await line.receive() == [GOOD]
        reader = asyncio.create_task(line.receive())
        await asyncio.sleep(0)
    for waiting in (reader, line.receive()):
        with pytest.raises(LineClosed):
            await waiting


# ---- the handshake ---------------------------------------------------------------------------------------------------


def says(*lines: str) -> Play:
    async def play(connection: Connection) -> None:
        await connection.say(*lines)

    return play


async def refusal(open_line: Client, play: Play, **bounds: Any) -> Exception:
    async with raw_server(play, shake=False) as url:
        with pytest.raises((LineError, OSError, TimeoutError)) as caught:
            await open_line(url, **bounds)
    return caught.value


@over_each_client
async def test_what_is_asked_for_names_us_and_offers_no_compression(open_line: Client) -> None:
    told = []

    async def play(connection: Connection) -> None:
        told.append(connection.request.lower())
        await connection.gone()

    async with opened(open_line, play):
        pass
    assert told[0].startswith("get /x?cursor=7 http/1.1\r\n")
    assert "\r\nuser-agent: civicsky\r\n" in told[0]
    assert "extensions" not in told[0]


@over_each_client
async def test_the_date_of_the_handshake_is_told_the_first_of_several(open_line: Client) -> None:
    async def play(connection: Connection) -> None:
        await connection.shake("Date: Thu, 26 Nov 2026 10:00:00 GMT", "Date: no date")
        await connection.gone()

    async with raw_server(play, shake=False) as url, aclosing(await open_line(url)) as line:
        assert line.date == "Thu, 26 Nov 2026 10:00:00 GMT"
    async with opened(open_line, sends()) as line:
        assert line.date == ""


@over_each_client
async def test_what_comes_with_the_handshake_is_not_lost(open_line: Client) -> None:
    async def play(connection: Connection) -> None:
        connection.writer.transport.set_write_buffer_limits(high=65536)
        await asyncio.gather(connection.shake(), connection.send(b"".join(SENT) + close_frame(1000)))
        await connection.gone()

    async with raw_server(play, shake=False) as url, aclosing(await open_line(url)) as line:
        assert (await all_of(line))[0] == GOT


@pytest.mark.parametrize("status", ["404 Not Found", "429 Too Many Requests", "503 No", "520 unknown to the standard"])
@over_each_client
async def test_another_status_is_told_with_how_long_to_wait(open_line: Client, status: str) -> None:
    answer = says(f"HTTP/1.1 {status}", "Retry-After: 17", "Retry-After: 9", "Content-Length: 0")
    error = await refusal(open_line, answer)
    assert isinstance(error, HandshakeRefused)
    assert (str(error), error.retry_after) == (f"HTTP {status[:3]}", "17")
    error = await refusal(open_line, says(f"HTTP/1.1 {status}", "Content-Length: 0"))
    assert isinstance(error, HandshakeRefused)
    assert error.retry_after == ""


@pytest.mark.parametrize("lines", [
    ("SSH-2.0-OpenSSH_9.2", ""),
    ("HTTP/1.1 101 Switching Protocols",),
    ("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Accept: none"),
    ("HTTP/1.1 101 Switching Protocols", "Upgrade: h2c", "Connection: Upgrade"),
    ("HTTP/1.1 101 Switching Protocols", "no header"),
    ("HTTP/1.1 101 Switching Protocols", *[f"H{n}: x" for n in range(300)]),
    ("HTTP/1.1 101 Switching Protocols", "H: " + "x" * 100_000),
])  # fmt: skip
@over_each_client
async def test_an_answer_that_is_no_handshake_is_refused(open_line: Client, lines: tuple[str, ...]) -> None:
    assert isinstance(await refusal(open_line, says(*lines)), NoWebsocket)


@over_each_client
async def test_a_server_that_hangs_up_in_place_of_an_answer_is_none(open_line: Client) -> None:
    async def play(_connection: Connection) -> None:
        pass

    assert str(await refusal(open_line, play)) == "no websocket there (InvalidMessage)"


@over_each_client
async def test_a_server_that_never_answers_is_given_up_and_its_socket_closed(open_line: Client) -> None:
    gone = asyncio.Event()

    async def play(connection: Connection) -> None:
        await connection.gone()
        gone.set()

    async with raw_server(play, shake=False) as url:
        with pytest.raises(TimeoutError):
            await open_line(url, seconds=0.3)
        await asyncio.wait_for(gone.wait(), 5)


@over_each_client
async def test_an_answer_that_comes_after_it_was_given_up_opens_nothing(open_line: Client) -> None:
    asked, given_up, over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def play(connection: Connection) -> None:
        asked.set()
        await given_up.wait()
        try:
            await connection.shake()
            await connection.gone()
        finally:
            over.set()

    async with raw_server(play, shake=False) as url:
        opening = asyncio.create_task(open_line(url))
        await asked.wait()
        opening.cancel()
        await asyncio.wait([opening])
        assert opening.cancelled()
        given_up.set()
        await asyncio.wait_for(over.wait(), 5)


@over_each_client
async def test_nobody_there_is_an_error_of_the_system(open_line: Client) -> None:
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await open_line("ws://127.0.0.1:1/")


@over_each_client
async def test_a_redirection_is_followed_but_not_out_of_tls(
    open_line: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = certificate(tmp_path / "tls.pem", "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    async with raw_server(sends(frame(GOOD))) as there:
        elsewhere = says("HTTP/1.1 302 Found", f"Location: {there}", "Content-Length: 0")
        async with raw_server(elsewhere, shake=False) as url, aclosing(await open_line(url)) as line:
            assert await line.receive() == [GOOD]
        async with raw_server(elsewhere, shake=False, tls=context(file)) as url:
            with pytest.raises(LineError):
                await open_line(url)
    nowhere = await refusal(
        open_line, says("HTTP/1.1 302 Found", "Location: ws://127.0.0.1:123456/", "Content-Length: 0")
    )
    assert isinstance(nowhere, LineError)


# ---- TLS -------------------------------------------------------------------------------------------------------------


def context(file: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(file)
    return made


@over_each_client
async def test_tls_is_spoken_with_whom_the_environments_certificates_vouch_for(
    open_line: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = certificate(tmp_path / "tls.pem", "localhost")
    messages = [bytes([n % 256]) * (n * 37 % 5000) for n in range(2000)]
    play = sends(b"".join(map(frame, messages)) + close_frame(1000))
    async with raw_server(play, tls=context(file)) as url:
        with pytest.raises(ssl.SSLCertVerificationError):
            await open_line(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        async with aclosing(await open_line(url)) as line:
            assert (await all_of(line))[0] == messages
        with pytest.raises(ssl.SSLCertVerificationError, match=r"127\.0\.0\.1"):
            await open_line(url.replace("localhost", "127.0.0.1"))


# ---- both clients, side by side --------------------------------------------------------------------------------------


class Script(NamedTuple):
    """What a server sends, and what a client must make of it."""

    data: bytes
    cuts: list[int]
    messages: list[bytes | str]
    code: int | None


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    data, messages = b"", []
    sizes = st.integers(0, 300) | st.sampled_from([125, 126, 127, 65535, 65536, BOUND])
    for n in range(draw(st.integers(0, 12))):
        is_text = draw(st.booleans())
        payload = (f"grün {n} " * 20_000).encode()[: draw(sizes)]
        payload = payload.decode(errors="ignore").encode() if is_text else payload
        messages.append(payload.decode() if is_text else payload)
        ends = [0, *sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4))), len(payload)]
        for at, (begin, end) in enumerate(pairwise(ends)):
            kind = CONTINUATION if at else TEXT if is_text else BINARY
            data += frame(payload[begin:end], kind, first=FIN if at == len(ends) - 2 else 0)
            if draw(st.integers(0, 3)) == 0:
                data += frame(b"p" * draw(st.integers(0, 125)), draw(st.sampled_from([PING, PONG])))
    last, code = draw(st.sampled_from([(close_frame(1000), 1000), *(BAD[name] for name in BAD if BAD[name][1])]))
    data += last + draw(st.sampled_from([b"", frame(b"behind it")]))
    return Script(data, sorted(draw(st.lists(st.integers(0, len(data)), max_size=12))), messages, code)


@tried(80)
@given(scripts())
def test_however_messages_are_cut_both_clients_make_the_same_of_them(script: Script) -> None:
    async def play(connection: Connection) -> None:
        places = [0, *script.cuts, len(script.data)]
        for begin, end in pairwise(places):
            await connection.send(script.data[begin:end])
            await asyncio.sleep(0)
        await connection.gone()

    async def told(open_line: Client) -> tuple[list[bytes | str], int]:
        async with opened(open_line, play) as line:
            got, end = await all_of(line)
        return got, int(str(end).split()[2])

    for client in CLIENTS.values():
        assert client.run(told(client), to_the_end=False) == (script.messages, script.code)


# ---- what picows alone would not take --------------------------------------------------------------------------------


async def test_an_answer_that_only_picows_refuses_is_taken_by_the_other_client() -> None:
    async def play(connection: Connection) -> None:
        await connection.shake(connection="keep-alive, Upgrade")
        await sends(frame(GOOD))(connection)

    async with raw_server(play, shake=False) as url:
        way = way_to(url, "picows")
        assert way.client == "picows"
        async with aclosing(await way.open(5, BOUND)) as line:
            assert await line.receive() == [GOOD]
