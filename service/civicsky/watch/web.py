"""The server of `http.listen`: the home of starlette and uvicorn. It knows nothing of the service but what it is told.

`listen` takes the address, `serving` answers there until the end of its context. Clients are not trusted: each
connection carries one request, has `CONNECTION_SECONDS` in all and `HEADER_BYTES` for its head; of more than
`CONNECTIONS` the oldest is hung up on. It answers under loopback's names, its own address and `http.names` only: a web
page that has a name of its own point here (DNS rebinding) is refused, and so is what another site's page asks. Only GET
and HEAD, and a POST to sign in or out; nothing is read from a disk.

With a token every request must bring it, or the cookie that a browser gets for it. Who watches the page holds a
connection for as long as they like: those are bounded by themselves, and hung up on when they do not read.
"""

import asyncio
import errno
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final, NamedTuple, Protocol

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from civicsky import log
from civicsky.errors import Usage
from civicsky.page.door import Door
from civicsky.settings import Http, listening_at

CONNECTIONS: Final = 64
"""Open at once; some 10 kB each. A probe needs one for some milliseconds."""
CONNECTION_SECONDS: Final = 10.0
"""From the first byte to the last, both ways."""
HEADER_BYTES: Final = 16_384
"""Of a head that comes bit by bit no more is read; of one that comes at once no more is looked at."""
BACKLOG: Final = 64
SEND_SECONDS: Final = 30.0
"""Within which a part of what somebody watches must be taken off our hands."""
TOKEN_BYTES: Final = 1_000
"""Of a request to sign in; a token has 200 at most."""
EVENTS: Final = "/page/events"
LOGIN: Final = "/page/login"
LOGOUT: Final = "/page/logout"
OPEN_FILES: Final = frozenset({"login.html", "login.js", "page.css", "icon.svg"})
"""Those of the page that are shown to somebody who has no cookie yet."""

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Connection": "close",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Of the page: its own files and nothing else, and no text ever becomes markup or a program."""
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.%]{2,60}\]|[A-Za-z0-9_.-]{1,253})(?::[0-9]{1,5})?")
_REMEDIES: Final = {
    errno.EADDRINUSE: "another program listens there; name another port, or end that program",
    errno.EACCES: "ports below 1024 are not for everybody; name a higher one",
    errno.EADDRNOTAVAIL: "it is no address of this machine; name one that is, or 127.0.0.1",
}


class Answers(NamedTuple):
    """What is told; each is asked anew for every request, must not wait, and raises nothing."""

    stuck: Callable[[], str]
    """Why the service is no longer alive; empty while it is."""
    ready: Callable[[], tuple[bool, Mapping[str, Any]]]
    """Whether it is ready, and all that is to be said of it, as JSON."""
    metrics: Callable[[], tuple[bytes, str]]
    """The metrics and their content type."""


class ListenerShape(Protocol):
    """See `page.hub.Listener`."""

    async def next(self) -> bytes | None:
        """What to send next; None: hang up."""
        ...


class PageShape(Protocol):
    """See `page.gather.Page`."""

    @property
    def files(self) -> Mapping[str, tuple[bytes, str]]:
        """By name (content, content type)."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether nobody else can watch now."""
        ...

    def join(self) -> Any:
        """Somebody watches from now on: a `ListenerShape`, or None when too many do."""
        ...

    def leave(self, listener: Any) -> None:
        """Somebody watches no more."""
        ...


def listen(settings: Http) -> socket.socket:
    """Take the address. Raises `Usage` when it cannot be had, or lies beyond loopback and there is no token."""
    host, port = listening_at(settings.listen)
    if not ip_address(host).is_loopback and not settings.token.get_secret_value():
        raise Usage(
            f"http.listen: {_shown(host, port)} can be reached from other machines, and there is no token; "
            "set CIVICSKY_HTTP__TOKEN, or listen on 127.0.0.1"
        )
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[
        0
    ]
    taken = socket.socket(family, kind)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(BACKLOG)
    except OSError as error:
        taken.close()
        remedy = _REMEDIES.get(error.errno or 0, f"{error.strerror}; name another address")
        raise Usage(f"http.listen: cannot listen on {_shown(host, port)}: {remedy}") from None
    taken.setblocking(False)
    return taken


@asynccontextmanager
async def serving(
    listener: socket.socket, settings: Http, answers: Answers, page: PageShape | None = None
) -> AsyncIterator[asyncio.Task[None]]:
    """Answer on a socket of `listen`; at the end hang up on everybody, and close it. Ends within a moment.

    Gives the task that does it, which ends before only by a defect.
    """
    _silence()
    server = _Server(_config(_app(settings, answers, page)))
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http-server")
    log.event("http_up", url=f"http://{_shown(*listener.getsockname()[:2])}")
    try:
        yield task
    finally:
        server.end()
        try:
            await task
        finally:
            listener.close()


def _app(settings: Http, answers: Answers, page: PageShape | None) -> ASGIApp:
    async def livez(_request: Request) -> Response:
        why = answers.stuck()
        return PlainTextResponse(f"stuck: {why}\n" if why else "alive\n", 503 if why else 200)

    async def readyz(_request: Request) -> Response:
        ready, told = answers.ready()
        return JSONResponse(told, 200 if ready else 503)

    async def metrics(_request: Request) -> Response:
        text, kind = answers.metrics()
        return Response(text, media_type=kind)

    door = Door(settings.token.get_secret_value())
    # As coroutines, not functions: those would be run in threads.
    routes = [Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)]
    app = Starlette(routes=routes + (_page_routes(page, door) if page else []))
    app.router.redirect_slashes = False
    return _Guard(app, settings, door, page)


def _page_routes(page: PageShape, door: Door) -> list[Route]:
    async def index(_request: Request) -> Response:
        return _file(page, "index.html")

    async def file(request: Request) -> Response:
        return _file(page, request.path_params["name"])

    async def events(request: Request) -> Response:
        if request.method == "HEAD" and not page.is_full:
            return Response(media_type="text/event-stream")
        listener = None if page.is_full else page.join()
        if listener is None:
            return PlainTextResponse("too many watch already\n", 503, {"Retry-After": "10"})
        return _Events(page, listener)

    async def login(request: Request) -> Response:
        if not door.may_try():
            return PlainTextResponse("too many tries; wait a little\n", 429, {"Retry-After": "10"})
        given = await _body(request, TOKEN_BYTES)
        if given is None or not door.is_token(given):
            return PlainTextResponse("this is not the token\n", 403)
        return Response(status_code=HTTPStatus.NO_CONTENT, headers={"Set-Cookie": door.cookie()})

    async def logout(_request: Request) -> Response:
        return Response(status_code=HTTPStatus.NO_CONTENT, headers={"Set-Cookie": door.no_cookie()})

    return [
        Route("/", index),
        Route(EVENTS, events),
        Route(LOGIN, login, methods=["POST"]),
        Route(LOGOUT, logout, methods=["POST"]),
        Route("/page/{name}", file),
    ]


def _file(page: PageShape, name: str, status: int = 200) -> Response:
    """One of the page's own files, by its name among those in memory."""
    if name not in page.files:
        return PlainTextResponse("Not Found", 404)
    content, kind = page.files[name]
    return Response(content, status, {"Content-Security-Policy": _PAGE_POLICY}, media_type=kind)


async def _body(request: Request, most: int) -> str | None:
    """What was sent, as text; None when it is too much."""
    found = b""
    async for part in request.stream():
        found += part
        if len(found) > most:
            return None
    return found.decode(errors="replace").strip()


class _Events(Response):
    """What somebody watches: server-sent events, until they go or the page lets them go."""

    def __init__(self, page: PageShape, listener: ListenerShape) -> None:
        super().__init__(media_type="text/event-stream")
        del self.headers["content-length"]
        self._page, self._listener = page, listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = scope["state"]["connection"]
        connection.stay()
        gone = asyncio.create_task(_until_gone(receive), name="http-gone")
        try:
            await self._send(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while not gone.done():
                coming = asyncio.create_task(self._listener.next(), name="http-next")
                try:
                    await asyncio.wait({gone, coming}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    coming.cancel()
                part = coming.result() if coming.done() and not coming.cancelled() else None
                if part is None:
                    break
                await self._send(send, {"type": "http.response.body", "body": part, "more_body": True})
        except TimeoutError:
            pass  # it does not read
        finally:
            gone.cancel()
            self._page.leave(self._listener)
            connection.hang_up()

    async def _send(self, send: Send, message: Message) -> None:
        async with asyncio.timeout(SEND_SECONDS):
            await send(message)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Guard:
    """Stands before the pages: whom we answer at all, and what every answer carries."""

    def __init__(self, app: ASGIApp, settings: Http, door: Door, page: PageShape | None) -> None:
        self._app, self._door, self._page = app, door, page
        self._address = ip_address(listening_at(settings.listen)[0])
        self._names = {"localhost", *settings.names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update({name: value for name, value in _HEADERS.items() if name not in headers})
            await send(message)

        try:
            answer = self._refusal(scope, Headers(scope=scope)) or self._app
            await answer(scope, receive, send_with_headers)
        except Exception as error:  # noqa: BLE001  (a defect here must not end the service; it was answered with 500)
            log.event("http_failed", path=scope["path"], why=repr(error))

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        hosts = headers.getlist("host")
        if not self._is_ours(hosts):
            return PlainTextResponse("this name is not served here; see http.names\n", 421)
        origins = headers.getlist("origin")
        if any(origin.lower() not in _origins(hosts[0]) for origin in origins) or (
            scope["method"] == "POST" and scope["path"] in {LOGIN, LOGOUT} and not origins
        ):
            return PlainTextResponse("pages of other sites may not ask here\n", 403)
        if sum(len(name) + len(value) for name, value in headers.raw) > HEADER_BYTES:
            return PlainTextResponse("too many words\n", 431)
        if self._door.is_open or self._is_allowed(headers):
            return None
        return self._for_strangers(scope)

    def _for_strangers(self, scope: Scope) -> Response | None:
        """What is answered to somebody without token or cookie; None: what everybody is."""
        path = scope["path"]
        if self._page and path == "/":
            return _file(self._page, "login.html", 401)
        if self._page and (path == LOGIN or path.removeprefix("/page/") in OPEN_FILES):
            return None
        return PlainTextResponse("a token is needed\n", 401, {"WWW-Authenticate": "Bearer"})

    def _is_ours(self, hosts: list[str]) -> bool:
        found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if found is None:
            return False
        name = found[1].strip("[]").lower()
        try:
            address = ip_address(name)
        except ValueError:
            return name.removesuffix(".") in self._names
        return self._is_at(address)

    def _is_at(self, address: IPv4Address | IPv6Address) -> bool:
        # Listening everywhere we do not know our addresses; but an address, unlike a name, cannot be pointed elsewhere.
        return address.is_loopback or address == self._address or self._address.is_unspecified

    def _is_allowed(self, headers: Headers) -> bool:
        given, cookies = headers.getlist("authorization"), headers.getlist("cookie")
        scheme, _, token = (given[0] if len(given) == 1 else "").partition(" ")
        same = self._door.is_token(token.strip())
        return (same and scheme.lower() == "bearer") or (len(cookies) == 1 and self._door.knows(cookies[0]))


def _origins(host: str) -> set[str]:
    """What a browser says of a page of ours, whether a proxy before us speaks TLS or not."""
    return {f"{scheme}://{host.lower()}" for scheme in ("http", "https")}


class _Server(Server):
    """uvicorn's, without its hands on our signals."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    def end(self) -> None:
        """Wait for nobody."""
        self.should_exit = self.force_exit = True
        for connection in tuple(self.server_state.connections):
            assert isinstance(connection, _Connection)
            connection.hang_up()


class _Connection(H11Protocol):
    """uvicorn's, with an end in any case: it would wait for ever for the head of a request, or for a slow reader."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {"connection": self}
        self.began, self.stays = self.loop.time(), False
        self._deadline = self.loop.call_later(CONNECTION_SECONDS, self.hang_up)
        brief = [one for one in self.connections if isinstance(one, _Connection) and not one.stays]
        if len(brief) > CONNECTIONS:
            min(brief, key=lambda one: one.began).hang_up()

    def stay(self) -> None:
        """Whoever answers it says when it ends."""
        self.stays = True
        self._deadline.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def hang_up(self) -> None:
        """At once, whatever is still to be sent."""
        self.connections.discard(self)  # not again the oldest, though it is told of its end a little later
        self.transport.abort()


def _config(app: ASGIApp) -> Config:
    return Config(
        app,
        loop="none",
        http=_Connection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )


def _silence() -> None:
    """What a client does wrong is no event of ours: it would fill the log, and not in our form."""
    logger = logging.getLogger("uvicorn")
    logger.propagate = False
    logger.handlers = [logging.NullHandler()]
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it would put its lines together all the same


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
