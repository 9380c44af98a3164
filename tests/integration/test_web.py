"""The server of `http.listen` on real sockets, with clients that mean well and clients that do not."""

import asyncio
import json
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest

from civicsky.errors import Usage
from civicsky.page import hub
from civicsky.page.hub import LISTENERS, Hub, Listener
from civicsky.settings import Http
from civicsky.watch import paged, web

TOKEN = "a-token-of-some-length"


class Said:
    """What the service would say; a test changes it."""

    def __init__(self) -> None:
        self.stuck, self.ready, self.fails = "", True, False

    def answers(self) -> web.Answers:
        return web.Answers(lambda: self.stuck, lambda: (self.ready, {"ready": self.ready}), self._metrics)

    def _metrics(self) -> tuple[bytes, str]:
        if self.fails:
            raise ZeroDivisionError
        return b"one 1\n", "text/plain; version=0.0.4; charset=utf-8"


@asynccontextmanager
async def served(said: Said | None = None, shown: "Shown | None" = None, **settings: Any) -> AsyncIterator[int]:
    """The port of a server."""
    http = Http(**{"listen": "127.0.0.1:0", **settings})
    listener = web.listen(http)
    port = listener.getsockname()[1]
    async with web.serving(listener, http, (said or Said()).answers(), shown):
        yield port


class Shown:
    """A page whose news a test tells."""

    def __init__(self) -> None:
        kinds = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css"}
        names = ("index.html", "page.js", "page.css", "login.html", "login.js")
        self.files = {name: (name.encode(), kinds[name.rpartition(".")[2]]) for name in names}
        self.hub = Hub(list)

    @property
    def is_full(self) -> bool:
        return self.hub.is_full

    def join(self) -> Listener | None:
        return self.hub.join()

    def leave(self, listener: Listener) -> None:
        self.hub.leave(listener)


async def ask(
    port: int, path: str = "/livez", *, method: str = "GET", at: str = "127.0.0.1", body: str = "", **headers: str
) -> Any:
    """(status, headers, body) of one request; `host` and the like are headers."""
    reader, writer = await asyncio.open_connection(at, port)
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in {"host": f"{at}:{port}", **headers}.items()]
    lines += [f"content-length: {len(body)}"] if body else []
    writer.write("\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", body]).encode())
    head, _, told = (await asyncio.wait_for(reader.read(), 30)).partition(b"\r\n\r\n")
    writer.close()
    first, *rest = head.decode().split("\r\n")
    return int(first.split(" ")[1]), dict(line.lower().split(": ", 1) for line in rest), told


async def is_hung_up_on(reader: asyncio.StreamReader) -> bool:
    """Whether a connection ends before anything is said on it."""
    try:
        return await asyncio.wait_for(reader.read(), 30) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


async def test_it_answers_whether_it_is_alive_and_ready_and_its_metrics() -> None:
    said = Said()
    async with served(said) as port:
        assert (await ask(port, "/livez"))[::2] == (200, b"alive\n")
        assert (await ask(port, "/readyz"))[::2] == (200, b'{"ready":true}')
        assert (await ask(port, "/metrics"))[::2] == (200, b"one 1\n")
        said.stuck, said.ready = "no frame moves", False
        assert (await ask(port, "/livez"))[::2] == (503, b"stuck: no frame moves\n")
        status, headers, body = await ask(port, "/readyz")
        assert (status, headers["content-type"], json.loads(body)) == (503, "application/json", {"ready": False})


async def test_there_is_nothing_else() -> None:
    async with served() as port:
        for path in ["/", "/livez/", "//livez", "/..", "/../etc/passwd", "/%2e%2e/etc/passwd", "/static"]:
            assert (await ask(port, path))[0] == 404, path


async def test_only_get_and_head_are_answered_and_head_without_a_body() -> None:
    async with served() as port:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            assert (await ask(port, "/livez", method=method))[0] == 405
        status, headers, body = await ask(port, "/metrics", method="HEAD")
        assert (status, headers["content-length"], body) == (200, "6", b"")


async def test_every_answer_tells_browsers_to_do_nothing_with_it() -> None:
    async with served() as port:
        for path in ("/livez", "/readyz", "/metrics", "/nothing"):
            _, headers, _ = await ask(port, path)
            assert headers["cache-control"] == "no-store"
            assert headers["content-security-policy"].startswith("default-src 'none'; frame-ancestors 'none'")
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "deny"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["connection"] == "close"
            assert "server" not in headers


OURS = ["localhost", "LOCALHOST:9", "localhost.", "127.0.0.1", "127.1.2.3:80", "[::1]", "[::1]:9464", "node17:9464"]
FOREIGN = [
    "evil.example", "evil.example:9464", "localhost.evil.example", "127.0.0.1.evil.example", "192.0.2.1", "[::2]",
    "localhost:x", "localhost@evil.example", "::1", "[::1", "2130706433", "",
]  # fmt: skip


async def test_it_answers_under_names_of_loopback_and_those_of_the_settings() -> None:
    async with served(names=("node17",)) as port:
        for host in OURS:
            assert (await ask(port, host=host))[0] == 200, host


async def test_a_page_whose_name_was_pointed_here_is_refused() -> None:
    async with served(names=("node17",)) as port:
        for host in FOREIGN:
            status, _, body = await ask(port, "/metrics", host=host)
            assert (status, body) == (421, b"this name is not served here; see http.names\n"), host


async def test_two_hosts_or_none_are_refused() -> None:
    async with served() as port:
        assert (await ask(port, Host="localhost", host="localhost"))[0] == 400
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /livez HTTP/1.0\r\n\r\n")
        assert b" 421 " in await reader.readline()
        writer.close()


async def test_with_a_token_nothing_is_told_without_it() -> None:
    async with served(token=TOKEN) as port:
        for given in ({}, {"authorization": TOKEN}, {"authorization": f"Basic {TOKEN}"},
                      {"authorization": f"Bearer {TOKEN}x"}, {"authorization": "Bearer"},
                      {"authorization": f"Bearer {TOKEN[:-1]}"}, {"authorization": "Bearer \xff"}):  # fmt: skip
            for path in ("/livez", "/readyz", "/metrics", "/nothing"):
                status, headers, body = await ask(port, path, **given)
                assert (status, headers["www-authenticate"], body) == (401, "bearer", b"a token is needed\n")
        assert (await ask(port, authorization=f"Bearer {TOKEN}"))[0] == 200
        assert (await ask(port, authorization=f"bearer {TOKEN}"))[0] == 200


async def test_everywhere_any_address_is_answered_and_no_name() -> None:
    async with served(listen="0.0.0.0:0", token=TOKEN) as port:
        bearer = f"Bearer {TOKEN}"
        assert (await ask(port, host="192.0.2.7:9464", authorization=bearer))[0] == 200
        assert (await ask(port, host="evil.example", authorization=bearer))[0] == 421


async def test_it_listens_on_an_ipv6_address() -> None:
    async with served(listen="[::1]:0") as port:
        reader, writer = await asyncio.open_connection("::1", port)
        writer.write(f"GET /livez HTTP/1.1\r\nhost: [::1]:{port}\r\n\r\n".encode())
        assert b" 200 " in await reader.readline()
        writer.close()


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:9464", "[::ffff:127.0.0.1]:0"])
def test_beyond_loopback_it_does_not_listen_without_a_token(listen: str) -> None:
    with pytest.raises(Usage, match=r"^http\.listen: .* there is no token; set CIVICSKY_HTTP__TOKEN, or listen on"):
        web.listen(Http(listen=listen))


def test_an_address_that_cannot_be_had_is_one_line_with_the_remedy() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        place = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(Usage) as taken:
            web.listen(Http(listen=place))
    assert str(taken.value) == (
        f"http.listen: cannot listen on {place}: another program listens there; name another port, or end that program"
    )
    with pytest.raises(Usage, match="it is no address of this machine"):
        web.listen(Http(listen="192.0.2.1:9464", token=TOKEN))


async def test_a_client_that_says_nothing_or_drips_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web, "CONNECTION_SECONDS", 0.5)
    async with served() as port:
        silent, mute = await asyncio.open_connection("127.0.0.1", port)
        dripping, writer = await asyncio.open_connection("127.0.0.1", port)

        async def drip() -> None:
            with suppress(OSError):
                while True:
                    writer.write(b"x: y\r\n")
                    await writer.drain()
                    await asyncio.sleep(0.05)

        writer.write(b"GET /livez HTTP/1.1\r\n")
        drips = asyncio.create_task(drip())
        assert await is_hung_up_on(silent)
        assert await is_hung_up_on(dripping)
        drips.cancel()
        mute.close()
        writer.close()
        assert (await ask(port))[0] == 200


async def test_however_many_connections_are_held_open_a_probe_is_answered() -> None:
    async with served() as port, AsyncExitStack() as stack:
        for _ in range(web.CONNECTIONS * 4):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            writer.write(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nx: ")
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await ask(port, path))[0] == 200


async def test_of_more_connections_than_there_may_be_the_oldest_goes() -> None:
    async with served() as port, AsyncExitStack() as stack:
        opened = []
        for _ in range(web.CONNECTIONS + 1):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            opened.append(reader)
        assert await is_hung_up_on(opened[0])
        assert not any(reader.at_eof() for reader in opened[1:])


async def test_a_head_without_end_is_refused() -> None:
    async with served() as port:
        for size in [20_000, 300_000, 5_000_000]:
            await _send_a_head(port, size)
            assert (await ask(port))[0] == 200


async def _send_a_head(port: int, size: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with suppress(ConnectionError):
        writer.write(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * size + b"\r\n\r\n")
        await writer.drain()
    with suppress(ConnectionResetError):
        said = await asyncio.wait_for(reader.read(), 30)
        assert said[:12] in {b"", b"HTTP/1.1 400", b"HTTP/1.1 431"}
    writer.close()


NO_HTTP = [b"\0" * 100, b"\x16\x03\x01\x02\0", b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n" * 5000]


async def test_what_is_no_http_is_no_event_of_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    async with served() as port:
        for sent in NO_HTTP:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            writer.write_eof()
            with suppress(ConnectionResetError):
                await asyncio.wait_for(reader.read(), 30)
            writer.close()
            assert (await ask(port))[0] == 200
    said = capfd.readouterr()
    assert [line for line in (said.out + said.err).splitlines() if "http_up" not in line] == []


async def test_a_websocket_is_not_opened() -> None:
    async with served() as port:
        status, _, _ = await ask(port, "/livez", connection="upgrade", upgrade="websocket", sec_websocket_version="13")
        assert status == 200


async def test_a_defect_in_an_answer_is_told_in_the_log_and_ends_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    said = Said()
    said.fails = True
    async with served(said) as port:
        status, headers, body = await ask(port, "/metrics")
        assert (status, body, headers["x-frame-options"]) == (500, b"Internal Server Error", "deny")
        assert (await ask(port))[0] == 200
    said_in_log = capfd.readouterr()
    assert "http_failed" in said_in_log.out + said_in_log.err


async def test_open_connections_do_not_delay_its_end_and_the_port_is_free_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web, "CONNECTION_SECONDS", 3600.0)
    async with AsyncExitStack() as stack:
        async with served() as port:
            for _ in range(10):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                stack.callback(writer.close)
                writer.write(b"GET /livez HTTP/1.1\r\n")
        assert await is_hung_up_on(reader)
        web.listen(Http(listen=f"127.0.0.1:{port}")).close()


async def test_signals_and_the_log_stay_ours() -> None:
    loop = asyncio.get_running_loop()
    got = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, got.set)
    try:
        handlers = list(logging.getLogger().handlers)
        async with served() as port:
            assert (await ask(port))[0] == 200
            signal.raise_signal(signal.SIGTERM)
            await asyncio.wait_for(got.wait(), 30)
            assert (await ask(port))[0] == 200
        assert logging.getLogger().handlers == handlers
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


# ---- the page ----

POLICY = {
    "default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "connect-src": "'self'",
    "img-src": "'self'", "base-uri": "'none'", "form-action": "'self'", "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'", "trusted-types": "'none'",
}  # fmt: skip


async def begin_to_watch(port: int, **headers: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream of events, after its head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{name}: {value}" for name, value in {"host": f"127.0.0.1:{port}", **headers}.items()]
    writer.write("\r\n".join(["GET /page/events HTTP/1.1", *lines, "", ""]).encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"content-type: text/event-stream" in head.lower()
    return reader, writer


async def test_the_pages_files_are_served_by_their_names_alone() -> None:
    shown = Shown()
    async with served(shown=shown) as port:
        assert (await ask(port, "/"))[::2] == (200, b"index.html")
        assert (await ask(port, "/page/page.js"))[::2] == (200, b"page.js")
        for path in (
            "/page/",
            "/page",
            "/page/../settings.py",
            "/page/%2e%2e%2fsettings.py",
            "/page/x/page.js",
            "/page.js",
        ):
            assert (await ask(port, path))[0] == 404, path
    async with served() as port:
        for path in ("/", "/page/page.js", "/page/events", "/page/login"):
            assert (await ask(port, path))[0] == 404, path


async def test_the_page_may_load_its_own_files_and_nothing_else() -> None:
    async with served(shown=Shown()) as port:
        for path in ("/", "/page/page.js", "/page/page.css"):
            _, headers, _ = await ask(port, path)
            parts = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
            assert parts == POLICY
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["cache-control"] == "no-store"
            assert headers["x-frame-options"] == "deny"
        _, headers, _ = await ask(port, "/livez")
        assert headers["content-security-policy"].startswith("default-src 'none'; frame-ancestors 'none'")


async def test_a_page_of_another_site_may_not_ask() -> None:
    async with served(shown=Shown()) as port:
        ours = f"http://127.0.0.1:{port}"
        for origin in ("http://evil.example", "null", "https://127.0.0.1", f"http://localhost:{port}", ours + "0", ""):
            for path in ("/", "/page/events", "/metrics"):
                status, _, body = await ask(port, path, origin=origin)
                assert (status, body) == (403, b"pages of other sites may not ask here\n"), origin
        for origin in (ours, f"https://127.0.0.1:{port}", ours.upper()):
            assert (await ask(port, "/", origin=origin))[0] == 200, origin


async def test_what_another_sites_page_has_loaded_without_telling_its_origin_is_refused() -> None:
    """As an image or a script, say: sixteen of these would take all places of those who watch."""
    shown = Shown()
    async with served(shown=shown) as port:
        for site in ("cross-site", "same-site"):
            for path in ("/", "/page/events", "/page/page.js", "/metrics"):
                for dest in ("image", "script", "iframe", "empty", "object", ""):
                    headers = {"sec_fetch_site": site, "sec_fetch_mode": "no-cors", "sec_fetch_dest": dest}
                    status, _, body = await ask(port, path, **headers)
                    assert (status, body) == (403, b"pages of other sites may not ask here\n"), (path, dest)
            followed = {"sec_fetch_site": site, "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
            assert (await ask(port, "/", **followed))[0] == 200, "a link may be followed"
            assert (await ask(port, "/page/events", **followed))[0] == 403
        for site in ("same-origin", "none"):
            assert (await ask(port, "/page/page.js", sec_fetch_site=site, sec_fetch_dest="script"))[0] == 200
        assert len(shown.hub) == 0


async def test_without_a_token_or_cookie_only_the_way_in_is_shown() -> None:
    async with served(shown=Shown(), token=TOKEN) as port:
        assert (await ask(port, "/"))[::2] == (401, b"login.html")
        for path in ("/page/login.js", "/page/page.css"):
            assert (await ask(port, path))[0] == 200
        for path in ("/page/page.js", "/page/index.html", "/page/events", "/page/logout", "/metrics", "/page/nothing"):
            assert (await ask(port, path))[::2] == (401, b"a token is needed\n"), path
        assert (await ask(port, "/", authorization=f"Bearer {TOKEN}"))[::2] == (200, b"index.html")


async def test_the_token_is_exchanged_for_a_cookie_which_opens_all_until_the_token_is_another() -> None:
    async with served(shown=Shown(), token=TOKEN) as port:
        ours = f"http://127.0.0.1:{port}"
        status, headers, _ = await ask(port, "/page/login", method="POST", body=TOKEN, origin=ours)
        assert status == 204
        assert {"httponly", "samesite=strict", "path=/"} <= set(headers["set-cookie"].split("; "))
        cookie = headers["set-cookie"].partition(";")[0]
        assert TOKEN not in cookie
        assert (await ask(port, "/", cookie=cookie))[::2] == (200, b"index.html")
        assert (await ask(port, "/metrics", cookie=cookie))[0] == 200
        _, headers, _ = await ask(port, "/page/logout", method="POST", origin=ours, cookie=cookie)
        assert headers["set-cookie"].startswith(f"{cookie.partition('=')[0]}=; ")
    async with served(shown=Shown(), token=TOKEN) as port:
        assert (await ask(port, "/", cookie=cookie))[0] == 200  # it outlives a restart
    async with served(shown=Shown(), token=TOKEN + "x") as port:
        assert (await ask(port, "/", cookie=cookie))[0] == 401


async def test_a_wrong_token_opens_nothing_and_tries_are_bounded() -> None:
    async with served(shown=Shown(), token=TOKEN) as port:
        ours = f"http://127.0.0.1:{port}"
        for body, origin in ((TOKEN, "http://evil.example"), (TOKEN, "null")):
            assert (await ask(port, "/page/login", method="POST", body=body, origin=origin))[0] == 403
        assert (await ask(port, "/page/login", method="POST", body=TOKEN))[0] == 403  # no browser of ours
        answers = [await ask(port, "/page/login", method="POST", body="x" * 900 * n, origin=ours) for n in range(12)]
        assert {headers.get("set-cookie") for _, headers, _ in answers} == {None}
        assert [status for status, _, _ in answers] == [403] * 10 + [429] * 2
        assert (await ask(port, "/page/login", method="POST", body=TOKEN, origin=ours))[0] == 429
        assert (await ask(port, "/livez", authorization=f"Bearer {TOKEN}"))[0] == 200


async def test_who_watches_hears_all_that_is_told_for_longer_than_a_connection_may_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web, "CONNECTION_SECONDS", 0.3)
    monkeypatch.setattr(hub, "HEARTBEAT_SECONDS", 0.2)
    shown = Shown()
    async with served(shown=shown) as port:
        reader, writer = await begin_to_watch(port)
        heartbeats = 0
        while heartbeats < 4:  # longer than 0.3 s
            heartbeats += b"still here" in await asyncio.wait_for(reader.readline(), 30)
        shown.hub.put("gone", ["x"])
        while (line := await asyncio.wait_for(reader.readline(), 30)) != b"event: gone\n":
            assert b"event" not in line
        assert shown.hub.somebody.is_set()
        writer.close()
        await _until(lambda: not shown.hub.somebody.is_set())


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(3_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited 30 s in vain")


async def test_those_who_watch_are_bounded_and_take_no_place_from_a_probe() -> None:
    shown = Shown()
    async with served(shown=shown) as port, AsyncExitStack() as stack:
        for _ in range(LISTENERS):
            _, writer = await begin_to_watch(port)
            stack.callback(writer.close)
        assert (await ask(port, "/page/events"))[0] == 503
        assert (await ask(port, "/page/events", method="HEAD"))[0] == 503
        for _ in range(web.CONNECTIONS * 2):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
        assert (await ask(port, "/livez"))[0] == 200
        assert len(shown.hub) == LISTENERS


async def test_who_watches_and_does_not_read_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged, "SEND_SECONDS", 0.2)
    shown = Shown()
    async with served(shown=shown) as port:
        _, writer = await begin_to_watch(port)
        for _ in range(200):
            shown.hub.put("posts", ["x" * 100_000])
        await _until(lambda: len(shown.hub) == 0)
        writer.close()


async def test_the_end_of_the_service_waits_for_nobody_who_watches() -> None:
    shown = Shown()
    async with served(shown=shown) as port:
        reader, writer = await begin_to_watch(port)
    assert await is_hung_up_on(reader)
    await _until(lambda: len(shown.hub) == 0)
    writer.close()
