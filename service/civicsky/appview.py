"""Asks Bluesky's public API whether posts and accounts are there, and for texts; the one home of atproto's client.

Of an answer only the names are read: uri and cid of a post, DID of an account. What authors wrote is cut out unread,
since one author could otherwise spoil the answer for 24 others: the SDK's models refuse all of it for a record that is
not an object, and its reader (pydantic's) refuses nesting beyond 200 levels and half of a surrogate pair. So the SDK
builds and sends the request, and hands the answer on as bytes. Where texts are wanted, each record's bytes are read by
themselves: one that cannot be read counts as a post without text.

Every way in which the API can fail is one of three: `Transient` (wait, try again), `Refused` (a person must act),
`BadInput` (this answer is of no use). Nothing is tried again here: that is the caller's business.
"""

import asyncio
import json
import re
import zlib
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from time import monotonic, time
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from civicsky import __version__
from civicsky.errors import BadInput, Refused, Transient, Usage
from civicsky.record import extract
from civicsky.settings import AppView as AppViewSettings

MAX_PER_CALL: Final = 25
"""Names in one call at most: https://docs.bsky.app/docs/api/app-bsky-feed-get-posts and …-actor-get-profiles."""
MAX_ANSWER_BYTES: Final = 32_000_000
"""Bytes of one answer at most, packed or not. 25 posts are 100 kB. A post alone always fits: a record is at most 1 MB,
which is 6 MB of JSON when all of it must be escaped, and comes with two that it quotes."""
MAX_WAIT_SECONDS: Final = 3600.0
"""Longest wait that the API may ask for."""

_REFUSING: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED})
_NOT_SERVING: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.NOT_IMPLEMENTED})
_MOVED: Final = frozenset({HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.PERMANENT_REDIRECT})
_BUSY: Final = frozenset({HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_PASSING: Final = _BUSY | {
    HTTPStatus.FOUND,
    HTTPStatus.SEE_OTHER,
    HTTPStatus.TEMPORARY_REDIRECT,
    HTTPStatus.REQUEST_TIMEOUT,
}
_HANDLE: Final = re.compile(
    r"(?=.{3,253}\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
)
"""https://atproto.com/specs/handle"""
_DID: Final = re.compile(r"did:[a-z]+:[a-zA-Z0-9._:%-]{1,2000}")
"""https://atproto.com/specs/did"""
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["{}\[\]]', re.DOTALL)
"""A whole string, or a bracket; a quote alone is a string without an end. Never reads a byte twice."""
_MAX_ERROR_BYTES: Final = 10_000
_STATUSES: Final = {
    "AccountTakedown": "takendown",
    "AccountDeactivated": "deactivated",
    "Profile not found": "deleted",
}
"""What getProfile says of an account that cannot be seen: its `error`, or its `message` where the error is general.
From its source, packages/bsky/src/api/app/bsky/actor/getProfile.ts in bluesky-social/atproto."""
_LEVELS: Final = 3
"""An answer is an object (1) with a list (2) of objects (3), whose own fields are all that is read."""
_RECORD_LEVELS: Final = 8
"""More than `record.extract` looks at: five, for the alt text of a picture that stands beside a quote."""
_MAX_RECORD_BYTES: Final = 8_000_000
"""Bytes of one record's JSON: 1 MB is the most that a record may have, and each byte may be escaped by six."""


class AppView:
    """The public API: getPosts, getProfiles, getProfile, resolveHandle. Keeps nothing.

    One call at a time, `per_second` at most; more callers wait in line. Every call raises `Transient`, `Refused` or
    `BadInput("appview_answer")`. Since one name in a call may be the reason why its answer is of no use, the caller may
    ask again with fewer.
    """

    def __init__(self, settings: AppViewSettings) -> None:
        self._settings = settings
        self._line = asyncio.Lock()
        self._not_before = 0.0
        self._sdk: _Sdk | None = None

    async def posts(self, uris: Sequence[str]) -> dict[str, str]:
        """Of at most 25 posts (AT-URIs that name their authors by DID) those that are there, with their CIDs.

        A post that is not in the answer was not shown to us: it, or its author's account, is gone or hidden.
        """
        items = await self._listed("app.bsky.feed.getPosts", "uris", uris, "posts")
        found = {_text(item, "uri"): item for item in items}
        return {uri: _text(found[uri], "cid") for uri in uris if uri in found}

    async def records(self, uris: Sequence[str]) -> dict[str, dict[str, Any]]:
        """As `posts`, with what each author wrote: `uri`, `cid`, the author's `did`, and all keys of `record.extract`.

        Every text is sound Unicode, and bounded as `extract` says. A record that cannot be read leaves its post there,
        without text, and does nothing to the others.
        """
        items = await self._listed("app.bsky.feed.getPosts", "uris", uris, "posts")
        found = {_text(item, "uri"): item for item in items}
        return await asyncio.to_thread(_records, {uri: found[uri] for uri in uris if uri in found})

    async def accounts(self, dids: Sequence[str]) -> set[str]:
        """Of at most 25 accounts (DIDs) those that are there: neither gone nor deactivated nor taken down."""
        items = await self._listed("app.bsky.actor.getProfiles", "actors", dids, "profiles")
        return {_text(item, "did") for item in items} & set(dids)

    async def status(self, did: str) -> str:
        """What became of an account: `active`, `takendown`, `deactivated`, or `deleted` when nobody knows it."""
        try:
            await self._call("app.bsky.actor.getProfile", actor=did)
        except _Rejected as rejected:
            status = _STATUSES.get(rejected.error) or _STATUSES.get(rejected.told)
            if status is None:
                raise
            return status
        return "active"

    async def resolve(self, handle: str) -> str:
        """The DID of a handle, with or without its @. Raises `Usage` for one that is none or that nobody has."""
        name = handle.strip().removeprefix("@").lower()
        if not _HANDLE.fullmatch(name):
            raise Usage(f"{handle!r} is not a handle; give one like alice.bsky.social")
        try:
            answer = await self._call("com.atproto.identity.resolveHandle", handle=name)
        except _Rejected:
            raise Usage(f"handle {name!r}: no account has it; check its spelling, or give the DID") from None
        did = _text(answer, "did")
        if not _DID.fullmatch(did):
            raise BadInput("appview_answer")
        return did

    @property
    def date(self) -> str:
        """The API's clock, as the head of its last answer told it (an HTTP date); empty before the first."""
        return self._sdk.date if self._sdk else ""

    async def close(self) -> None:
        """Release the connection. Not while a call is under way."""
        if self._sdk is not None:
            await self._sdk.close()
            self._sdk = None

    async def _listed(self, method: str, parameter: str, names: Sequence[str], key: str) -> list[Any]:
        """The list under `key` of an answer about `names`; nobody is asked about none."""
        asked = list(dict.fromkeys(names))
        if len(asked) > MAX_PER_CALL:
            raise ValueError(f"{len(asked)} names in one call: the public API takes {MAX_PER_CALL}")
        if not asked:
            return []
        listed = (await self._call(method, **{parameter: asked})).get(key)
        if not isinstance(listed, list):
            raise BadInput("appview_answer")
        return listed

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One call, when it is its turn; its answer as `_read` gives it."""
        async with self._line:
            if self._sdk is None:
                self._sdk = await asyncio.to_thread(_Sdk, self._settings)
            await asyncio.sleep(max(0.0, self._not_before - monotonic()))
            self._not_before = monotonic() + 1 / self._settings.per_second
            answer = await self._sdk.query(method, parameters)
        return await asyncio.to_thread(_read, answer)


class _Rejected(BadInput):
    """HTTP 400: the API will not have what was asked; `error` and `told` are its own words."""

    def __init__(self, body: bytes) -> None:
        super().__init__("appview_answer")
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        told = value if isinstance(value, dict) else {}
        self.error, self.told = str(told.get("error", "")), str(told.get("message", ""))


class _Sdk:
    """The SDK's client, held to our bounds. Making one imports the SDK (0.7 s, 67 MB): not in the event loop."""

    def __init__(self, settings: AppViewSettings) -> None:
        import atproto  # type: ignore[import-untyped]  # noqa: PLC0415
        from atproto.exceptions import NetworkError  # type: ignore[import-untyped]  # noqa: PLC0415

        self._settings, self._models, self._network_error = settings, atproto.models, NetworkError
        request = atproto.AsyncRequest(
            timeout=settings.request_seconds,
            trust_env=not _is_loopback(settings.url),
            event_hooks={"response": [self._take_over]},
        )
        contact = f" ({settings.contact})" if settings.contact else ""
        request.add_additional_header("User-Agent", f"civicsky/{__version__}{contact}")
        request.add_additional_header("Accept-Encoding", "gzip")
        self._client = atproto.AsyncClient(settings.url, request)
        self.date = ""

    async def close(self) -> None:
        await self._client.request.close()

    async def query(self, method: str, parameters: dict[str, Any]) -> bytes:
        """One request by its method's name ("app.bsky.feed.getPosts"); the answer as it came, unpacked."""
        name = "".join(part[0].upper() + part[1:] for part in method.split("."))  # as the SDK calls the models
        params = getattr(self._models, name).Params(**parameters)
        try:
            # The client's own bound is for each read; a server may drip for ever.
            async with asyncio.timeout(self._settings.request_seconds):
                response = await self._client.invoke_query(method, params=params)
        except (httpx.InvalidURL, UnicodeEncodeError):  # what was asked cannot be put into an address
            raise BadInput("appview_answer") from None
        except (self._network_error, httpx.TransportError, TimeoutError) as error:
            # The SDK wraps some errors of httpx, and lets others through.
            why = error.__cause__ if isinstance(error, self._network_error) else error
            raise Transient(f"public API at {self._settings.url} cannot be reached ({type(why).__name__})") from error
        answer: bytes = response.content
        return answer

    async def _take_over(self, response: httpx.Response) -> None:
        """Called when an answer's head is there: before the SDK reads it, and before a redirect is followed.

        The SDK would read an answer of any size, and would lose the status of one that has an odd body.
        """
        self.date = response.headers.get("date", "")
        assert isinstance(response.stream, httpx.AsyncByteStream)
        if response.status_code == HTTPStatus.BAD_REQUEST:
            raise _Rejected(await _beginning(response))
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
        code, url = response.status_code, self._settings.url
        if code in _REFUSING:
            return Refused(
                f"appview: the public API at {url} refuses us (HTTP {code}): it wants a login, or blocks this machine; "
                "see to it, or mend appview.url, and start again"
            )
        if code in _NOT_SERVING:
            return Refused(f"appview: there is no public API at {url} (HTTP {code}); mend appview.url and start again")
        if code in _MOVED:
            to = response.headers.get("location", "")[:200]
            return Refused(
                f"appview: the public API at {url} has moved to {to!r} (HTTP {code}); mend appview.url and start again"
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


def _read(answer: bytes) -> dict[str, Any]:
    """The object that an answer is. What lies below its third level is there as its bytes, unread."""
    try:
        shallow, cut = _shallow(answer, _LEVELS)
        value = json.loads(shallow.decode(errors="replace"))
    except ValueError:
        raise BadInput("appview_answer") from None
    if not isinstance(value, dict):
        raise BadInput("appview_answer")
    for items in value.values():
        for item in items if isinstance(items, list) else []:
            if isinstance(item, dict):
                # A list at this level is ours: the place of what was cut out.
                item |= {name: cut[at[0]] for name, at in item.items() if isinstance(at, list)}
    return value


def _records(items: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By URI, what `AppView.records` gives of the posts of an answer."""
    return {
        uri: {"uri": uri, "cid": _text(item, "cid"), "did": uri.split("/")[2], **_written(item.get("record"))}
        for uri, item in items.items()
    }


def _written(record: Any) -> dict[str, Any]:
    """The fields of a record, in sound Unicode: a half of a surrogate pair becomes a question mark."""
    fields: dict[str, Any] = json.loads(
        json.dumps(extract(_record(record)), ensure_ascii=False).encode(errors="replace")
    )
    return fields


def _record(text: Any) -> dict[str, Any]:
    """A record from the JSON that an author had written; empty when it is none, or cannot be read."""
    if not isinstance(text, bytes) or len(text) > _MAX_RECORD_BYTES:
        return {}
    try:
        shallow, _ = _shallow(text, _RECORD_LEVELS)
        value = json.loads(shallow.decode(errors="replace"), parse_int=float)  # which may have any number of digits
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _shallow(text: bytes, levels: int) -> tuple[bytes, list[bytes]]:
    """JSON with `[n]` for each object and list below so many levels, and what was cut out, of which this is the nth.

    What is cut out may be as deep and odd as you like. Raises ValueError when a string or a bracket is not closed.
    """
    kept, cut, depth, begin = list[bytes](), list[bytes](), 0, 0
    for token in _TOKEN.finditer(text):
        match token[0]:
            case b"{" | b"[":
                depth += 1
                if depth == levels + 1:
                    kept += [text[begin : token.start()], b"[%d]" % len(cut)]
                    begin = token.start()
            case b"}" | b"]":
                depth -= 1
                if depth == levels:
                    cut.append(text[begin : token.end()])
                    begin = token.end()
            case b'"':
                raise ValueError("a string has no end")
    if depth:
        raise ValueError("brackets do not close")
    return b"".join([*kept, text[begin:]]), cut


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


def _text(item: Any, key: str) -> str:
    """A field that the API itself wrote. An item without it is no sign that something is gone: all is of no use."""
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, str) or not value:
        raise BadInput("appview_answer")
    return value


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


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")
