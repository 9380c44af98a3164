"""Sends requests of atproto's protocol (XRPC: https://atproto.com/specs/xrpc); the one home of atproto's client.

The SDK builds and sends the request. What this does not need of it is left out: some 300 modules of models for methods
that we never call. Its answer is handed on as bytes: the SDK would read one of any size, and its models refuse all of
it for a record that is not an object.

Every way in which a server can fail is one of three: `Transient` (wait, try again), `Refused` (a person must act),
`BadInput` (this answer is of no use). Nothing is tried again here.
"""

import asyncio
import json
import re
import zlib
from collections.abc import Coroutine
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from time import time
from types import SimpleNamespace
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import SecretStr

from civicsky import __version__, log
from civicsky.errors import BAD_PROXY, BadInput, Refused, Transient
from civicsky.lean import unused, without
from civicsky.settings import AppView as AppViewSettings, is_loopback

with without("click", "rich"):  # its own command line
    import httpx

MAX_ANSWER_BYTES: Final = 32_000_000
"""Bytes of one answer at most, packed or not. 25 posts are 100 kB. A post alone always fits: a record is at most 1 MB,
which is 6 MB of JSON when all of it must be escaped, and comes with two that it quotes."""
MAX_WAIT_SECONDS: Final = 3600.0
"""Longest wait that the API may ask for."""
_DENYING: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_REFUSING: Final = _DENYING | {HTTPStatus.PROXY_AUTHENTICATION_REQUIRED}
_NOT_SERVING: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.NOT_IMPLEMENTED})
_MOVED: Final = frozenset({HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.PERMANENT_REDIRECT})
_BUSY: Final = frozenset({HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_PASSING: Final = _BUSY | {
    HTTPStatus.FOUND,
    HTTPStatus.SEE_OTHER,
    HTTPStatus.TEMPORARY_REDIRECT,
    HTTPStatus.REQUEST_TIMEOUT,
}
_APPVIEW: Final = ("bsky_appview", "did:web:api.bsky.app")
"""To whom a server with logins passes requests on: https://docs.bsky.app/docs/advanced-guides/api-directory."""
_EARLY_SECONDS: Final = 60.0
"""A token that is good for less is not sent."""
_MAX_ERROR_BYTES: Final = 10_000


class _Told:
    """What the API says when it will not do what was asked; `error` and `told` are its own words."""

    def __init__(self, body: bytes, code: int) -> None:
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        said = value if isinstance(value, dict) else {}
        self.error, self.told = str(said.get("error", "")), str(said.get("message", ""))
        self.shown = f" (HTTP {code}{', ' + log.harmless(self.error) if self.error else ''})"


class Rejected(BadInput, _Told):
    """HTTP 400: the API will not have it."""

    def __init__(self, body: bytes) -> None:
        BadInput.__init__(self, "appview_answer")
        _Told.__init__(self, body, HTTPStatus.BAD_REQUEST)


class Denied(Refused, _Told):
    """HTTP 401 or 403: not to us."""

    def __init__(self, message: str, body: bytes, code: int) -> None:
        Refused.__init__(self, message)
        _Told.__init__(self, body, code)


def _sdk() -> SimpleNamespace:
    """What is used of the SDK, under its own names. Imported at the first call."""
    with unused("atproto_client.namespaces.async_ns", "atproto_client.namespaces.sync_ns"):
        from atproto_client import AsyncClient, models  # type: ignore[import-untyped]  # noqa: PLC0415
        from atproto_client.exceptions import AtProtocolError, NetworkError  # type: ignore[import-untyped]  # noqa: PLC0415
        from atproto_client.request import AsyncRequest  # type: ignore[import-untyped]  # noqa: PLC0415
        from atproto_server.auth.jwt import get_jwt_payload  # type: ignore[import-untyped]  # noqa: PLC0415

    return SimpleNamespace(
        AsyncClient=AsyncClient,
        AsyncRequest=AsyncRequest,
        AtProtocolError=AtProtocolError,
        NetworkError=NetworkError,
        get_jwt_payload=get_jwt_payload,
        models=models,
    )


class Client:
    """The SDK's client, held to our bounds. Making one imports the SDK (0.1 s, 12 MB): not in the event loop."""

    def __init__(self, settings: AppViewSettings, which: Literal["url", "login_url"]) -> None:
        sdk = _sdk()
        self._settings, self._models, self._token_payload = settings, sdk.models, sdk.get_jwt_payload
        self._network_error, self._protocol_error = sdk.NetworkError, sdk.AtProtocolError
        self._url, self._setting = getattr(settings, which), f"appview.{which}"
        try:
            request = sdk.AsyncRequest(
                timeout=settings.request_seconds,
                trust_env=not is_loopback(urlsplit(self._url).hostname or ""),
                event_hooks={"response": [self._take_over]},
            )
        except (ValueError, httpx.InvalidURL):  # its text may quote the address, which may hold a password
            raise Refused(f"appview: {BAD_PROXY}") from None
        contact = f" ({settings.contact})" if settings.contact else ""
        request.add_additional_header("User-Agent", f"civicsky/{__version__}{contact}")
        request.add_additional_header("Accept-Encoding", "gzip")
        self._sessions = sdk.AsyncClient(self._url, request)
        self._client = self._sessions if which == "url" else self._sessions.with_proxy(*_APPVIEW)
        self.date = ""

    async def close(self) -> None:
        """Release the connections."""
        for client in {self._client, self._sessions}:
            await client.request.close()

    def is_over(self, token: SecretStr) -> bool:
        """Whether a token says of itself that it is not good any more, or only for moments."""
        try:
            until = self._token_payload(token.get_secret_value()).exp
        except (self._protocol_error, ValueError):  # then the server may judge
            return False
        return until is not None and until < time() + _EARLY_SECONDS

    async def query(self, method: str, parameters: dict[str, Any], token: SecretStr | None = None) -> bytes:
        """One request by its method's name ("app.bsky.feed.getPosts"); the answer as it came, unpacked."""
        params = self._model(method).Params(**parameters)
        return await self._answer(self._client.invoke_query(method, params=params, headers=_bearer(token)))

    async def procedure(self, method: str, given: dict[str, Any], token: SecretStr | None = None) -> bytes:
        """The same, for a method of the server itself that changes something."""
        what = {"data": self._model(method).Data(**given), "input_encoding": "application/json"} if given else {}
        return await self._answer(self._sessions.invoke_procedure(method, **what, headers=_bearer(token)))

    def _model(self, method: str) -> Any:
        name = "".join(part[0].upper() + part[1:] for part in method.split("."))  # as the SDK calls the models
        return getattr(self._models, name)

    async def _answer(self, call: Coroutine[Any, Any, Any]) -> bytes:
        try:
            # The client's own bound is for each read; a server may drip for ever.
            async with asyncio.timeout(self._settings.request_seconds):
                response = await call
        except (httpx.InvalidURL, UnicodeEncodeError):  # what was asked cannot be put into an address
            raise BadInput("appview_answer") from None
        except (self._network_error, httpx.TransportError, TimeoutError) as error:
            # The SDK wraps some errors of httpx, and lets others through.
            why = error.__cause__ if isinstance(error, self._network_error) else error
            raise Transient(f"public API at {self._url} cannot be reached ({type(why).__name__})") from error
        answer: bytes = response.content
        return answer

    async def _take_over(self, response: httpx.Response) -> None:
        """Called when an answer's head is there: before the SDK reads it, and before a redirect is followed.

        The SDK would read an answer of any size, and would lose the status of one that has an odd body.
        """
        self.date = response.headers.get("date", "")
        assert isinstance(response.stream, httpx.AsyncByteStream)
        if response.status_code == HTTPStatus.BAD_REQUEST:
            raise Rejected(await _beginning(response))
        if response.status_code in _DENYING:
            raise Denied(str(self._failure(response)), await _beginning(response), response.status_code)
        if response.status_code != HTTPStatus.OK:
            raise self._failure(response)
        packed = bytearray()
        async for part in response.stream:
            packed += part
            if len(packed) > MAX_ANSWER_BYTES:
                raise BadInput("appview_answer")
        await response.stream.aclose()
        encoding = response.headers.pop("content-encoding", "identity").lower()
        response.stream = httpx.ByteStream(await asyncio.to_thread(_unpack, bytes(packed), encoding))
        response.headers["content-type"] = "application/octet-stream"  # so that the SDK does not parse it

    def _failure(self, response: httpx.Response) -> Exception:
        """What a status code other than 200 means for the caller."""
        code, url, mend = response.status_code, self._url, f"mend {self._setting}"
        if code in _REFUSING:
            return Refused(
                f"appview: the public API at {url} refuses us (HTTP {code}): it wants a login, or blocks this machine; "
                f"see to it, or {mend}, and start again"
            )
        if code in _NOT_SERVING:
            return Refused(f"appview: there is no public API at {url} (HTTP {code}); {mend} and start again")
        if code in _MOVED:
            to = response.headers.get("location", "")[:200]
            return Refused(
                f"appview: the public API at {url} has moved to {to!r} (HTTP {code}); {mend} and start again"
            )
        if code in _PASSING or code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            after = _wait(response.headers, code)
            return Transient(f"public API at {url} answers HTTP {code}", after, busy=code in _BUSY or after is not None)
        return BadInput("appview_answer")


async def _beginning(response: httpx.Response) -> bytes:
    """The first bytes of an answer that says why not."""
    found = b""
    async for part in response.aiter_bytes():
        found += part
        if len(found) > _MAX_ERROR_BYTES:
            break
    return found[:_MAX_ERROR_BYTES]


def _unpack(packed: bytes, encoding: str) -> bytes:
    """The bytes of an answer; bounded, since few bytes can be packed from many."""
    if encoding == "identity":
        return packed
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # 16: gzip
    try:
        answer = unpacker.decompress(packed, MAX_ANSWER_BYTES)
    except zlib.error:
        raise BadInput("appview_answer") from None
    if encoding != "gzip" or not unpacker.eof:
        raise BadInput("appview_answer")
    return answer


def _wait(headers: httpx.Headers, code: int) -> float | None:
    """Seconds that the API asks us to wait: `Retry-After` (seconds or a date), else `RateLimit-Reset` (Unix time)."""
    after, reset = headers.get("retry-after", ""), headers.get("ratelimit-reset", "")
    seconds: float | None = None
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{0,12})?", after):
        seconds = float(after)
    elif after:
        try:
            seconds = parsedate_to_datetime(after).timestamp() - time()
        except (ValueError, OverflowError):
            seconds = None
    if seconds is None and code == HTTPStatus.TOO_MANY_REQUESTS and re.fullmatch(r"[0-9]{1,12}", reset):
        seconds = float(reset) - time()
    return None if seconds is None or seconds < 0 else min(seconds, MAX_WAIT_SECONDS)


def _bearer(token: SecretStr | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
