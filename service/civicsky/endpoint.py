"""The servers of a model and the calls to them: who is asked, when, and what a failure means; the home of httpx.

Every way in which a server can fail becomes one of three: `Transient` (it cannot just now), `Refused` (a person must
act), `BadInput` (this answer, or this question, is of no use). What is asked, and what an answer says, is `label`'s.

How the parts are put together:

    endpoints = open_endpoints(settings.label, local, await ledger.abilities(name), await ledger.spent())
    line = endpoints.line()                                   # one for each slot
    await endpoints.somewhere(lambda server: line.call(server, "POST", "/chat/completions", body))
"""

import asyncio
import json
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from time import monotonic, time
from typing import Any, Final, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from civicsky import log, pace, pulse
from civicsky.errors import BAD_PROXY, BadInput, Refused, TooLate, Transient, Unsent, Usage
from civicsky.exchange import Direct
from civicsky.lean import without
from civicsky.lifecycle import happened
from civicsky.model import Spend
from civicsky.settings import Label as LabelSettings, is_loopback

with without("click", "rich"):  # its own command line
    import httpx

MAX_ANSWER_BYTES: Final = 1_000_000
MAX_RAW_CHARS: Final = 10_000
MAX_RETRY_AFTER: Final = 3600.0
"""A server that asks for more is tried again after an hour all the same."""
SOON: Final = 1.0
"""A wait for a server's pace up to so many seconds is no reason to go elsewhere, nor to wait outside."""
PATIENCE: Final = 10.0
"""Seconds that a call waits for its server at most, before it is given back unsent."""
_BYTES_PER_TOKEN: Final = 3.0
"""A first guess, on the safe side; English has about 4. What answers say of their tokens takes its place."""

if "sniffio" not in sys.modules and find_spec("sniffio") is None:
    # httpcore looks for it several times in every call; what is not there is sought anew each time, a third of a call.
    sys.modules["sniffio"] = None  # type: ignore[assignment]

T = TypeVar("T")


class LocalShape(Protocol):
    """See `local.LocalServer`."""

    name: str
    api_key: str
    fingerprint: str
    program: str

    def base_url(self) -> str:
        """Its address now; it may move when it is started again."""
        ...


class Came(NamedTuple):
    """What came of one exchange with a server."""

    status: int
    headers: Mapping[str, str]
    """By name in lower case."""
    text: str
    by: str = ""
    """The server that answered, where it is not the one that was asked."""
    calls: int = 1
    """How often it was sent."""
    failure: Transient | BadInput | None = None
    """How it failed, where that is not raised: it was sent."""


May = Callable[[], bool]
"""Asked when a request can be sent at last: may it be now?"""
ALWAYS: Final[May] = lambda: True  # noqa: E731  (a constant)


class Far(Protocol):
    """A way to servers that others speak to. See `workers.dispatch.Dispatcher`."""

    async def exchange(self, method: str, path: str, content: bytes, seconds: float, may: May = ALWAYS) -> Came:
        """One request, which may take so many seconds once it is sent.

        Raises `Unsent` (`TooLate`: it might not be sent when it could be), and `Refused`: then nobody will take it.
        """
        ...


class Tokens(NamedTuple):
    """The tokens of one request, as its answer says; 0 where it does not."""

    read: int = 0
    written: int = 0
    reasoning: int = 0
    """Of those written."""
    cached: int = 0
    """Of those read."""


class Body(NamedTuple):
    """A question, as it is sent."""

    content: bytes
    """JSON."""
    said: int
    """Bytes of what its messages say."""
    max_tokens: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Body":
        """From the interface's own form, with `messages` and `max_tokens`."""
        said = sum(len(message["content"].encode(errors="replace")) for message in values["messages"])
        return cls(json.dumps(values).encode(), said, values["max_tokens"])


class Reply(NamedTuple):
    """An answer with status 200."""

    body: Any
    """Parsed JSON."""
    text: str
    tokens: Tokens
    by: str
    """The server's name."""


class Endpoint:
    """One server: its address, its pace, and what was found out about it. Shared by all slots."""

    def __init__(
        self,
        name: str,
        base_url: Callable[[], str],
        its_pace: pace.Pace,
        settings: LabelSettings,
        ability: str | None,
        far: Far | None = None,
    ) -> None:
        self.name, self.base_url, self._pace, self._settings = name, base_url, its_pace, settings
        self.far = far
        """Who speaks to it; None: we do, at its address."""
        self.ability = ability
        """What it can, as `label` names it; None until that is found out."""
        self.proven: set[str] = set()
        """Abilities that it has shown since the start: then a refusal is about the question."""
        self.finding_out = asyncio.Lock()
        """Held by the one who finds out what it can."""
        self.program: str | None = None
        """The server's program and its version, where it says so."""
        self.probed = False
        self.well_at = 0.0
        """When it last answered a question."""
        self.refused = ""
        """Why it will not be asked again; empty while it may be."""
        self.load = 0
        """Exchanges that are under way, or wait for its pace."""
        self.calls = 0
        self._flying = 0
        self._pause = 0.0
        self._paused_at = self._free_at = 0.0
        self._busy = False
        self._gate = asyncio.Lock()
        self._changed = asyncio.Event()
        self._bytes_per_token = _BYTES_PER_TOKEN
        self._typical = 0

    def check_since(self, came: float) -> None:
        """Raise `Transient` when it failed after this time: who waited for another's try does not try it at once."""
        if self._paused_at > came:
            raise Transient(f"model at {self.name} does not answer", busy=True)

    def expected(self) -> float:
        """About how many seconds a call that comes now would wait."""
        return self._wait(self._typical) + max(0, self.load - self._flying) * self._pace.spacing(self._typical)

    def estimate(self, prompt_bytes: int, max_tokens: int) -> int:
        """The most tokens that a request is likely to count as."""
        if not prompt_bytes:
            return 0
        self._typical = int(prompt_bytes / self._bytes_per_token) + 1 + max_tokens
        return self._typical

    async def turn(self, tokens: int) -> pace.Call:
        """Wait, in the order of coming, until a request may be sent; `over` must follow.

        Raises `Transient` when that would take longer than PATIENCE.
        """
        until = clock() + PATIENCE
        async with self._gate:
            while (wait := self._wait(tokens)) > 0:
                left = until - clock()
                if left <= 0 or (wait > left and not self._flying):  # an answer that is due may shorten it
                    raise Transient(f"model at {self.name} may only be asked in {wait:.0f} s", wait, busy=True)
                self._changed.clear()
                await happened(self._changed, min(wait, left))
            self.calls += 1
            self._flying += 1
            return self._pace.begin(tokens, clock())

    def may(self, call: pace.Call) -> bool:
        """Whether a request that waited elsewhere since its turn may be sent now; it counts as of now then.

        Limits are of when requests are sent: without this, what has piled up for hours would go at once.
        """
        return self._pace.recount(call, clock())

    def unsent(self, call: pace.Call) -> None:
        """A request was not sent after all: it counts as nothing; `over` must follow."""
        self._pace.withdraw(call)

    def besides(self, calls: int, tokens: int) -> None:
        """So many requests more were sent, of about so many tokens, by who speaks to it for us."""
        for _ in range(calls):
            self._pace.end(self._pace.begin(tokens, clock()), {}, clock())

    def over(self, call: pace.Call, headers: Mapping[str, str], tokens: int | None) -> None:
        """A request has ended, whatever came of it."""
        self._flying -= 1
        self._pace.end(call, headers, clock(), tokens)
        self._changed.set()
        said = headers.get("server", "")[:80]
        if said and self.program is None and said.isascii() and said.isprintable():
            self.program = said

    def failed(self, call: pace.Call, after: float | None, *, busy: bool) -> None:
        """Let all its callers rest, once for all calls that were under way together; longer while nothing succeeds."""
        now, bounds = clock(), self._settings
        if call.at >= self._paused_at:
            self._pause = min(max(bounds.pause_seconds, self._pause * 2), bounds.pause_max_seconds)
            self._paused_at = now
            self._free_at = max(self._free_at, now + self._pause)
        self._free_at = max(self._free_at, now + min(after or 0.0, MAX_RETRY_AFTER))
        self._busy = busy or (self._busy and self._free_at > now)

    def succeeded(self) -> None:
        """It answered, so it is there; if it asked for a rest, that goes on."""
        self._pause = 0.0
        if not self._busy:
            self._free_at = 0.0
        self._changed.set()

    def learn_size(self, prompt_bytes: int, tokens_in: int) -> None:
        """So many bytes were so many tokens: a running mean, a tenth on the safe side."""
        if prompt_bytes and tokens_in:
            self._bytes_per_token += 0.1 * (max(0.5, 0.9 * prompt_bytes / tokens_in) - self._bytes_per_token)

    def _wait(self, tokens: int) -> float:
        """Seconds until it may be asked. After a failure one call at a time finds out whether it is well again."""
        now = clock()
        trial = 2 * SOON if self._pause and self._flying else 0.0
        return max(0.0, trial, self._free_at - now, self._pace.delay(tokens, now))


class Endpoints:
    """All servers of a model. They have one key and one model's name."""

    def __init__(
        self,
        servers: Sequence[Endpoint],
        settings: LabelSettings,
        model: str,
        api_key: str,
        *,
        local: bool,
        fingerprint: str | None = None,
    ) -> None:
        self.servers, self.settings, self.model, self._api_key = tuple(servers), settings, model, api_key
        self.local = local
        self.fingerprint = fingerprint
        """The weights' own hash, where we know it better than the server says."""
        self._tls = _trusting(() if local else (settings.model_url, *settings.more_urls))

    def abilities(self) -> dict[str, str]:
        """What was found out so far: {server's name: ability}, to be remembered. {} when the settings name the way."""
        if self.settings.way != "auto":
            return {}
        return {server.name: server.ability for server in self.servers if server.ability is not None}

    def asked(self) -> list[Endpoint]:
        """The servers that do not refuse us."""
        return [server for server in self.servers if not server.refused]

    def delay(self) -> float:
        """Seconds until some server may be asked; 0: now, or so soon that the call itself may wait.

        Also 0 when all refuse us: then asking says so.
        """
        wait = min((server.expected() for server in self.asked()), default=0.0)
        return wait if wait > SOON else 0.0

    async def somewhere(self, exchange: Callable[[Endpoint], Awaitable[T]]) -> T:
        """Do it with the least loaded server; if that cannot, with one after the other that is free.

        Raises `Transient` of the last one tried, `Refused` when no server is left, and `BadInput`.
        """
        tried: list[Endpoint] = []
        while True:
            server = self._choose(tried)
            server.load += 1
            try:
                return await exchange(server)
            except Transient:
                tried.append(server)
                others = [other for other in self.asked() if other not in tried]
                if not any(other.expected() <= SOON for other in others):
                    raise
            except Refused:
                if not self.asked():
                    raise
            finally:
                server.load -= 1

    def line(self) -> "Line":
        """A way to the servers for one call at a time."""
        return Line(self, self._api_key, self._tls)

    def _choose(self, tried: Sequence[Endpoint]) -> Endpoint:
        servers = [server for server in self.asked() if server not in tried]
        if not servers:
            raise Refused(self.servers[0].refused)
        # While one finds out what a server can, the others go elsewhere, if they can.
        waits = {server: 2 * SOON if server.finding_out.locked() else server.expected() for server in servers}
        return min(
            servers, key=lambda server: (waits[server] if waits[server] > SOON else 0.0, server.load, server.calls)
        )


class Line:
    """Calls, one at a time, over connections of its own: a shared pool of connections is slow beyond a few dozen."""

    def __init__(self, endpoints: Endpoints, api_key: str, tls: Any) -> None:
        self._endpoints, self._settings, self._api_key, self._tls = endpoints, endpoints.settings, api_key, tls
        self._ways: dict[str, httpx.AsyncBaseTransport] = {}
        self._addresses: dict[str, tuple[httpx.URL, bool]] = {}
        """Parsed, and whether it is of this machine: a handful for each server, or for each start of the local one."""
        key = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        own = {"User-Agent": "civicsky", "Content-Type": "application/json", "Accept-Encoding": "identity"}
        self._headers = httpx.Headers({**own, "Accept": "*/*", **key})
        self.sent = 0
        """Requests sent so far, whatever came of them."""

    async def close(self) -> None:
        """Release the connections."""
        for way in self._ways.values():
            await way.aclose()

    async def call(self, server: Endpoint, method: str, path: str, body: Body | None = None) -> Reply:
        """One request, in its turn.

        Raises `Transient`; `Refused`, and then leaves the server out from now on; and `BadInput`: "request_rejected",
        "refusal", "too_long" or "bad_response".
        """
        came = clock()
        try:
            return await self._call(server, method, path, body)
        except _Doubtful:
            if server.well_at < came:  # else it answered others meanwhile
                await self.check(server)
            raise

    async def check(self, server: Endpoint) -> Tokens:
        """Ask what nobody can object to: when that is answered, it is a post that was refused, or that broke something.

        Gives what that took. Raises `Transient`, and `Refused` when the key or the model's name is not accepted.
        """
        messages = [{"role": "user", "content": "Answer with the word yes."}]
        try:
            body = Body.of({"model": self._endpoints.model, "messages": messages, "max_tokens": 16})
            return (await self._call(server, "POST", "/chat/completions", body)).tokens
        except _Doubtful as bad:
            raise self._left_out(server, Refused(self._refusal(server.name, bad.code))) from None
        except BadInput:
            return Tokens()  # it answers, which is all that was asked

    async def _call(self, server: Endpoint, method: str, path: str, body: Body | None) -> Reply:
        """As `call`, but what a 403 or 404 is about is left open."""
        while True:
            with suppress(TooLate):
                return await self._call_in_turn(server, method, path, body)

    async def _call_in_turn(self, server: Endpoint, method: str, path: str, body: Body | None) -> Reply:
        """As `_call`. Raises `TooLate` as well."""
        estimate = server.estimate(body.said, body.max_tokens) if body else 0
        call = await server.turn(estimate)
        headers: Mapping[str, str] = {}
        tokens: int | None = None
        self.sent += 1
        try:
            content = body.content if body else b""
            came = await self._sent(server, method, path, content, lambda: server.may(call))
            headers = came.headers
            self.sent += came.calls - 1
            server.besides(came.calls - 1, estimate)
            if came.failure:
                raise came.failure
            if came.status != httpx.codes.OK:
                raise self._failure(came.by or server.name, came, has_body=body is not None)
            reply = _reply(came.text, came.by or server.name)
            if reply.tokens.read:
                tokens = sum(reply.tokens[:2])
                server.learn_size(body.said if body else 0, reply.tokens.read)
        except Unsent:
            self.sent -= 1  # it says nothing of a server
            server.unsent(call)
            raise
        except Transient as error:
            server.failed(call, error.retry_after, busy=error.busy)
            raise
        except BadInput as bad:
            bad.raw = bad.raw[:MAX_RAW_CHARS]
            if self._api_key:
                bad.raw = bad.raw.replace(self._api_key, "***")
            server.succeeded()
            raise
        except Refused as error:
            raise self._left_out(server, error) from None
        finally:
            server.over(call, headers, tokens)
            pulse.moved()
        server.succeeded()
        if body is not None:
            server.well_at = clock()
        return reply

    def _left_out(self, server: Endpoint, error: Refused) -> Refused:
        server.refused = str(error)
        if self._endpoints.asked():
            log.event("label_left_out", stage="label", why=str(error))
        return error

    async def version(self, server: Endpoint) -> None:
        """Ask vLLM, which hides behind its HTTP server's name, for its version; whatever goes wrong, it may."""
        root = server.base_url().removesuffix("/v1")
        with suppress(Transient, BadInput):
            came = await self._sent(server, "GET", "/version" if server.far else root + "/version", b"")
            told = _json(came.text) if came.status == httpx.codes.OK else None
            if isinstance(told, dict) and set(told) == {"version"}:
                version = str(told["version"])[:40]
                if version.isascii() and version.isprintable():
                    server.program = f"vllm {version}"

    async def _sent(self, server: Endpoint, method: str, path: str, content: bytes, may: May = ALWAYS) -> Came:
        if server.far:
            return await server.far.exchange(method, path, content, self._settings.request_seconds, may)
        return await self.exchange(server, method, path, content, self._settings.request_seconds)

    async def exchange(self, server: Endpoint, method: str, path: str, content: bytes, seconds: float) -> Came:
        """One request out of turn, whose text is bounded; what its status means is the caller's business.

        Raises `Transient`, `BadInput`, or `Refused` for our proxy.
        """
        address = path if path.startswith("http") else server.base_url() + path
        try:
            url, near = self._parsed(address)
            request = httpx.Request(method, url, headers=self._headers, content=content or None)
            # One bound for all of it: a server may drip for ever.
            async with asyncio.timeout(seconds):
                response = await self._way(url, near=near).handle_async_request(request)
                try:
                    text = await _read(response)
                finally:
                    await response.aclose()
        except (httpx.TransportError, TimeoutError) as error:
            why = f"model at {server.name} cannot be reached ({type(error).__name__})"
            raise Transient(why) from error
        except (httpx.InvalidURL, httpx.DecodingError) as error:
            raise BadInput("bad_response") from error
        # Lower case; looked up ten times, which httpx's own are slow at.
        return Came(response.status_code, dict(response.headers.items()), text)

    def _parsed(self, address: str) -> tuple[httpx.URL, bool]:
        """Raises `httpx.InvalidURL`."""
        if address not in self._addresses:
            self._addresses[address] = httpx.URL(address), is_loopback(urlsplit(address).hostname or "")
        return self._addresses[address]

    def _way(self, url: httpx.URL, *, near: bool) -> httpx.AsyncBaseTransport:
        """A connection of its own. Nothing of this machine goes through a proxy; elsewhere the environment decides."""
        kind = "direct" if near and url.scheme == "http" else "pool" if near or not getproxies() else "proxy"
        if kind not in self._ways:
            try:
                self._ways[kind] = _WAYS[kind](self._tls)
            except (ValueError, httpx.InvalidURL):  # its text may quote the address, which may hold a password
                raise Refused(f"label: {BAD_PROXY}") from None
        return self._ways[kind]

    def _failure(self, name: str, came: Came, *, has_body: bool) -> Exception:
        """What a status code other than 200 means for the caller."""
        code, text = came.status, came.text
        if code == httpx.codes.UNAUTHORIZED:
            return Refused(self._refusal(name, code))
        after = pace.retry_after(came.headers, clock())
        if passes(code):
            busy = code in {402, 425, 429, 503} or after is not None
            seconds = None if after is None else min(after, MAX_RETRY_AFTER)
            return Transient(f"model at {name} answers HTTP {code}", seconds, busy=busy)
        said = next((why for mark, why in _SAID.items() if mark in text[:MAX_RAW_CHARS]), None)
        bad = BadInput(said or "request_rejected")
        if has_body and code in {403, 404} and said is None:
            bad = _Doubtful(bad.reason, code)
        bad.raw = f"HTTP {code}\n{text}"
        return bad

    def _refusal(self, name: str, code: int) -> str:
        if code == httpx.codes.NOT_FOUND:
            return (
                f"label: the server at {name} does not know the model {self._endpoints.model!r}, or the address lacks "
                "its /v1 (HTTP 404); mend --model or --model-url and start again"
            )
        return (
            f"label: the model's server at {name} refuses the key (HTTP {code}); "
            "set CIVICSKY_LABEL__API_KEY and start again"
        )


class _ByProxy(httpx.AsyncBaseTransport):
    """By way of the proxies in the environment. Only httpx's client knows how to read them.

    A call through the client takes a third more processor time than one through a transport: it merges addresses and
    headers, and looks for cookies, redirects and passwords, of which we have none.
    """

    def __init__(self, tls: Any) -> None:
        self._client = httpx.AsyncClient(verify=tls, follow_redirects=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One request; the caller bounds its time and closes the response."""
        return await self._client.send(request, stream=True)

    async def aclose(self) -> None:
        """Release the connections."""
        await self._client.aclose()


_WAYS: Final[dict[str, Callable[[Any], httpx.AsyncBaseTransport]]] = {
    "direct": lambda _tls: Direct(),
    "pool": lambda tls: httpx.AsyncHTTPTransport(verify=tls),
    "proxy": _ByProxy,
}

_SAID: Final = {'"content_filter"': "refusal", '"json_validate_failed"': "not_json"}
"""Codes in the body of a failure that are about the answer, not the request: Azure's, and Groq's of JSON mode."""


class _Doubtful(BadInput):
    """HTTP 403 or 404 to a question: of the post (moderation), the key (or its limit), or the model's name."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.code = code


_NOT_BUILT: Final = 501
"""A server that cannot do what a request asks for, and never will."""


def passes(code: int) -> bool:
    """Whether a status says that the server cannot just now, whatever it is asked."""
    return code in {402, 408, 409, 425, 429} or (code >= httpx.codes.INTERNAL_SERVER_ERROR and code != _NOT_BUILT)


def open_endpoints(
    settings: LabelSettings,
    local: LocalShape | None = None,
    abilities: Mapping[str, str] | None = None,
    used_today: Spend | None = None,
    fars: Mapping[str, Far] | None = None,
) -> Endpoints:
    """All servers by the settings, or the one local model; with `fars` those, by name, which others speak to.

    `abilities`: as `Endpoints.abilities` gave them before, of this model. `used_today`: what was spent since midnight
    UTC; the day's limits of several servers are counted as if each had borne its part. Raises `Usage`.
    """
    key = local.api_key if local else settings.api_key.get_secret_value()
    if not (key.isascii() and key.isprintable() and key == key.strip()):
        raise Usage("label.api_key: it has blanks around it, a line break, or characters that no key has; mend it")
    if fars:
        addresses: dict[str, Callable[[], str]] = dict.fromkeys(fars, _always(""))
    elif local is not None:
        addresses = {"local": local.base_url}
    else:
        urls = (settings.model_url, *settings.more_urls)
        addresses = {url.split("/v1")[0]: _always(url) for url in reversed(urls)}
        addresses = dict(reversed(addresses.items()))
    used = used_today or Spend("", 0, 0, 0)
    each: dict[pace.Unit, int] = {
        "requests": -(-used.calls // len(addresses)),
        "tokens": -(-(used.tokens_in + used.tokens_out) // len(addresses)),
    }
    minute: dict[pace.Unit, int | None] = {
        "requests": settings.requests_per_minute,
        "tokens": settings.tokens_per_minute,
    }
    day: dict[pace.Unit, int | None] = {"requests": settings.requests_per_day, "tokens": settings.tokens_per_day}
    known = (abilities or {}) if settings.way == "auto" else {}
    servers = [
        Endpoint(
            name, address, pace.pace(minute, day, each, clock()), settings, known.get(name), (fars or {}).get(name)
        )
        for name, address in addresses.items()
    ]
    if local is None:
        return Endpoints(servers, settings, settings.model, key, local=False)
    if not fars:
        servers[0].program = local.program
    return Endpoints(servers, settings, local.name, key, local=True, fingerprint=local.fingerprint)


def _trusting(urls: Sequence[str]) -> ssl.SSLContext:
    """What TLS to these servers trusts. To load authorities takes 40 ms: where none speaks TLS, nobody is trusted."""
    if any(urlsplit(url).scheme == "https" for url in urls):
        return httpx.create_ssl_context()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _always(url: str) -> Callable[[], str]:
    return lambda: url


async def is_healthy(address: str) -> bool:
    """Whether a server on this machine answers its health address with 200."""
    async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
        try:
            return (await client.get(address)).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


_EPOCH: Final = time() - monotonic()


def clock() -> float:
    """Unix seconds that never go back, whatever is done to the machine's clock."""
    return _EPOCH + monotonic()


def _reply(text: str, by: str) -> Reply:
    body = _json(text)
    if body is None:
        bad = BadInput("bad_response")
        bad.raw = text
        raise bad
    usage = body.get("usage") if isinstance(body, dict) else None
    return Reply(body, text, _usage(usage) if isinstance(usage, dict) else Tokens(), by)


def _usage(usage: dict[str, Any]) -> Tokens:
    read, written = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    thought, cached = usage.get("completion_tokens_details"), usage.get("prompt_tokens_details")
    reasoning = _count(thought.get("reasoning_tokens")) if isinstance(thought, dict) else 0
    reused = _count(cached.get("cached_tokens")) if isinstance(cached, dict) else 0
    return Tokens(read, written, min(reasoning, written), min(reused, read))


def _json(text: str) -> Any:
    """Parsed; None when it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


async def _read(response: httpx.Response) -> str:
    parts, size = [], 0
    assert isinstance(response.stream, httpx.AsyncByteStream)
    # Nobody is asked to pack an answer; one that came packed all the same is unpacked.
    async for part in response.aiter_bytes() if "content-encoding" in response.headers else response.stream:
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            bad = BadInput("too_long")
            bad.raw = b"".join(parts)[: 4 * MAX_RAW_CHARS].decode(errors="replace")
            raise bad
    return b"".join(parts).decode(errors="replace")


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**40 else 0
