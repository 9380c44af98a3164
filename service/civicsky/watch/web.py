"""The server of `http.listen`: the home of starlette and uvicorn. It knows nothing of the service but what it is told.

`listen` takes the address, `serving` answers there until the end of its context. Clients are not trusted: each
connection carries one request, has `CONNECTION_SECONDS` in all and `HEADER_BYTES` for its head; of more than
`CONNECTIONS` the oldest is hung up on. It answers under loopback's names, its own address and `http.names` only: a web
page that has a name of its own point here (DNS rebinding) is refused, and so is what another site's page asks. Only GET
and HEAD, and a POST to sign in or out; nothing is read from a disk.

With a token every request must bring it, or the cookie that a browser gets for it. Whoever watches the page holds a
connection of their own; see `paged.py`.
"""

import asyncio
import errno
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final, NamedTuple

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
from civicsky.watch import paged

CONNECTIONS: Final = 64
"""Open at once; some 10 kB each. A probe needs one for some milliseconds."""
CONNECTION_SECONDS: Final = 10.0
"""From the first byte to the last, both ways."""
HEADER_BYTES: Final = 16_384
"""Of a head that comes bit by bit no more is read; of one that comes at once no more is looked at."""
BACKLOG: Final = 64

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Connection": "close",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
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


def listen(settings: Http) -> socket.socket:
    """Take the address. Raises `Usage` when it cannot be had, or lies beyond loopback and there is no token."""
    host, port = listening_at(settings.listen)
    if not ip_address(host).is_loopback and not settings.token.get_secret_value():
        raise Usage(
            f"http.listen: {_shown(host, port)} can be reached from other machines, and there is no token; "
            "set CIVICSKY_HTTP__TOKEN, or listen on 127.0.0.1"
        )
    try:
        return bound(host, port)
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, f"{error.strerror}; name another address")
        raise Usage(f"http.listen: cannot listen on {_shown(host, port)}: {remedy}") from None


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens at an address (numbers, no name), for `answering`. Raises `OSError`."""
    ((family, kind, _, _, address), *_) = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )
    taken = socket.socket(family, kind)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(BACKLOG)
    except OSError:
        taken.close()
        raise
    taken.setblocking(False)
    return taken


@asynccontextmanager
async def serving(
    listener: socket.socket, settings: Http, answers: Answers, page: paged.PageShape | None = None
) -> AsyncIterator[asyncio.Task[None]]:
    """Answer on a socket of `listen`; at the end hang up on everybody, and close it. Ends within a moment.

    Gives the task that does it, which ends before only by a defect.
    """
    async with answering(listener, _app(settings, answers, page)) as task:
        log.event("http_up", url=f"http://{_shown(*listener.getsockname()[:2])}")
        yield task


@asynccontextmanager
async def answering(listener: socket.socket, app: ASGIApp) -> AsyncIterator[asyncio.Task[None]]:
    """The same for any application, which guards itself."""
    _silence()
    server = _Server(_config(app))
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http-server")
    try:
        yield task
    finally:
        server.end()
        try:
            await task
        finally:
            listener.close()


def _app(settings: Http, answers: Answers, page: paged.PageShape | None) -> ASGIApp:
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
    app = Starlette(routes=routes + (paged.routes(page, door) if page else []))
    app.router.redirect_slashes = False
    return _Guard(app, settings, door, page)


class _Guard:
    """Stands before the pages: whom we answer at all, and what every answer carries."""

    def __init__(self, app: ASGIApp, settings: Http, door: Door, page: paged.PageShape | None) -> None:
        self._app, self._door, self._page = app, door, page
        self._address = ip_address(listening_at(settings.listen)[0])
        self._names = {"localhost", *settings.names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update({name: value for name, value in HEADERS.items() if name not in headers})
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
        if (
            any(origin.lower() not in _origins(hosts[0]) for origin in origins)
            or (scope["method"] == "POST" and scope["path"] in {paged.LOGIN, paged.LOGOUT} and not origins)
            or _is_of_others(scope["path"], headers)
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
            return paged.file_of(self._page, "login.html", 401)
        if self._page and (path == paged.LOGIN or path.removeprefix("/page/") in paged.OPEN_FILES):
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


def _is_of_others(path: str, headers: Headers) -> bool:
    """Whether another site's page has it loaded without an Origin, as for an image; a link to us may be followed."""
    is_link = headers.get("sec-fetch-dest") == "document" and path != paged.EVENTS
    return headers.get("sec-fetch-site", "none") not in {"none", "same-origin"} and not is_link


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
