"""The page's part of the server: its files, who may see them, and the stream of events for whoever watches.

It sees the page as a small shape. Who watches holds a connection for as long as they like: they are bounded by the
page, and hung up on when they do not read.
"""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from civicsky.page.door import Door

SEND_SECONDS: Final = 30.0
"""Within which a part of what somebody watches must be taken off our hands."""
TOKEN_BYTES: Final = 1_000
"""Of a request to sign in; a token has 200 at most."""
EVENTS: Final = "/page/events"
LOGIN: Final = "/page/login"
LOGOUT: Final = "/page/logout"
OPEN_FILES: Final = frozenset({"login.html", "login.js", "page.css", "icon.svg"})
"""Those of the page that are shown to somebody who has no cookie yet."""

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Of the page: its own files and nothing else, and no text ever becomes markup or a program."""


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


def routes(page: PageShape, door: Door) -> list[Route]:
    """What is served of a page. Who may ask was seen to before."""

    async def index(_request: Request) -> Response:
        return file_of(page, "index.html")

    async def file(request: Request) -> Response:
        return file_of(page, request.path_params["name"])

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


def file_of(page: PageShape, name: str, status: int = 200) -> Response:
    """One of the page's own files, by its name among those in memory."""
    if name not in page.files:
        return PlainTextResponse("Not Found", 404)
    content, kind = page.files[name]
    return Response(content, status, {"Content-Security-Policy": POLICY}, media_type=kind)


async def _body(request: Request, most: int) -> str | None:
    """What was sent, as text; None when it is too much, or did not come."""
    found = b""
    try:
        async for part in request.stream():
            found += part
            if len(found) > most:
                return None
    except ClientDisconnect:
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
