"""The desk over HTTP, on loopback only: the page's files, and its few requests. The server itself is `watch.web`'s.

Other people of the machine must not read posts here. So a request needs three things that only the browser has which
was given the address: a cookie that no script reads, a secret of its tab in a header (cookies are shared by all ports
of a machine, and a header cannot be sent by another page), and an Origin and Host that are ours. The address carries a
key in its fragment, which browsers send to nobody; the page exchanges it, once, for the other two.
"""

import hmac
import json
import re
import secrets
import socket
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any, Final

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from civicsky import log
from civicsky.annotate.desk import Desk, View
from civicsky.errors import CivicskyError, Usage

COOKIE: Final = "civicsky-desk-{port}"
"""Browsers tell the cookies of a machine's ports apart by their names only."""
TAB: Final = "x-civicsky-tab"
MAX_BODY: Final = 32_000
"""Bytes of a request: a note of 2,000 characters and some answers."""
_MAX_READ: Final = 1_000_000
"""Bytes of a request that are read before it is refused: who is still sending would not hear why."""
BACKLOG: Final = 64
_FILES: Final = {
    "/": ("annotate.html", "text/html; charset=utf-8"),
    "/annotate.css": ("annotate.css", "text/css; charset=utf-8"),
    "/annotate.js": ("annotate.js", "text/javascript; charset=utf-8"),
}
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Connection": "close",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_HOST: Final = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
"""Any port: it may come through a tunnel."""


def listen(port: int) -> socket.socket:
    """Take a port of loopback; 0: any that is free. Raises `Usage` when it cannot be had."""
    taken = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen(BACKLOG)
    except OSError as error:
        taken.close()
        raise Usage(f"--port {port}: {error.strerror}; name another port, or none") from None
    taken.setblocking(False)
    return taken


class Keys:
    """Who may come in."""

    def __init__(self, port: int, invite: Callable[[str], None]) -> None:
        """`invite` is told the key for the next one, now and whenever one was used."""
        self.name = COOKIE.format(port=port)
        self._invite = invite
        self._cookie = secrets.token_urlsafe(32)
        self._tabs: list[str] = []
        self._key = ""
        self._renew()

    def exchange(self, key: str) -> tuple[str, str] | None:
        """(cookie, secret of the tab) for a key, which is then used up."""
        if not hmac.compare_digest(key.encode(errors="replace"), self._key.encode()):
            return None
        tab = secrets.token_urlsafe(32)
        self._tabs = [*self._tabs[-9:], tab]
        self._renew()
        return self._cookie, tab

    def lets_in(self, cookie: str, tab: str) -> bool:
        """Whether these were given out here."""
        given = tab.encode(errors="replace")
        is_known = any(hmac.compare_digest(given, one.encode()) for one in self._tabs)
        return hmac.compare_digest(cookie.encode(errors="replace"), self._cookie.encode()) and is_known

    def _renew(self) -> None:
        self._key = secrets.token_urlsafe(32)
        self._invite(self._key)


def application(desk: Desk, keys: Keys) -> ASGIApp:
    """The desk's pages and requests."""
    folder = files("civicsky") / "annotate" / "static"
    routes = [Route(path, _file((folder / name).read_bytes(), kind)) for path, (name, kind) in _FILES.items()]
    routes.append(Route("/favicon.ico", _nothing))

    async def key(request: Request) -> Response:
        given = _said(request, await _read(request)).get("key")
        found = keys.exchange(given) if isinstance(given, str) else None
        if found is None:
            return PlainTextResponse("this key was used, or is none; the terminal shows the one to use\n", 403)
        answer = JSONResponse({"tab": found[1]})
        answer.set_cookie(keys.name, found[0], path="/api", httponly=True, samesite="strict")
        return answer

    def known(work: Callable[[dict[str, Any]], Awaitable[View]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            sent = await _read(request)
            if not keys.lets_in(request.cookies.get(keys.name, ""), request.headers.get(TAB, "")):
                return PlainTextResponse("open the address that the terminal shows\n", 401)
            return JSONResponse(await work(_said(request, sent)))

        return answer

    async def begin(_said: dict[str, Any]) -> View:
        return await desk.begin()

    async def step(said: dict[str, Any]) -> View:
        return await desk.step(said.get("at", -1), -1 if said.get("back") else 1)

    async def last(_said: dict[str, Any]) -> View:
        return await desk.last()

    routes.append(Route("/api/key", key, methods=["POST"]))
    for name, work in {"begin": begin, "step": step, "last": last, "vote": desk.vote}.items():
        routes.append(Route(f"/api/{name}", known(work), methods=["POST"]))
    app = Starlette(routes=routes, exception_handlers={ValueError: _wrong, CivicskyError: _failed})
    app.router.redirect_slashes = False
    return _Guard(app)


class _Guard:
    """Stands before all of it: whom we answer at all, and what every answer carries."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        try:
            refusal = _refusal(scope["method"], Headers(scope=scope))
            if refusal:
                await _read(Request(scope, receive))
            await (refusal or self._app)(scope, receive, send_with_headers)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001  (a defect here must not end the sitting; it was answered with 500)
            log.event("http_failed", path=scope["path"], why=repr(error))


def _refusal(method: str, headers: Headers) -> Response | None:
    """Other pages have other names, or send their Origin; a browser says of each request from where it comes."""
    hosts, origins = headers.getlist("host"), headers.getlist("origin")
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        return PlainTextResponse("this name is not served here\n", 421)
    if (origins or method == "POST") and origins != [f"http://{hosts[0]}"]:
        return PlainTextResponse("another page may not ask here\n", 403)
    if (
        headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}
        and headers.get("sec-fetch-dest") != "document"
    ):
        return PlainTextResponse("another page may not ask here\n", 403)
    return None


async def _wrong(_request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", 400)


async def _failed(_request: Request, error: Exception) -> Response:
    """Such as a store that cannot be reached: the page tries again."""
    return PlainTextResponse(f"{log.harmless(str(error))}\n", 503)


async def _read(request: Request) -> bytes:
    """What was sent, or so much of it that it is too much."""
    sent, size = b"", 0
    async for part in request.stream():
        size += len(part)
        sent += part if len(sent) <= MAX_BODY else b""
        if size > _MAX_READ:
            break
    return sent


def _said(request: Request, sent: bytes) -> dict[str, Any]:
    """A request's JSON object. Raises ValueError."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise ValueError("a request is JSON")
    if len(sent) > MAX_BODY:
        raise ValueError(f"a request has {MAX_BODY:,} bytes at most")
    try:
        said = json.loads(sent)
    except RecursionError:
        said = None
    if not isinstance(said, dict):
        raise ValueError("a request is an object")  # noqa: TRY004  (whatever is wrong with a request is one error)
    return said


def _file(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_request: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


async def _nothing(_request: Request) -> Response:
    return Response(status_code=204)
