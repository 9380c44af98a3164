"""A real HTTP server with methods of Bluesky's public API over tables, logins too, and troubles as told beforehand."""

import gzip
import hashlib
import json
import sys
import threading
from base64 import urlsafe_b64encode
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic, time
from typing import Any
from urllib.parse import parse_qs, urlsplit

PIECE = b"x" * 1_000_000


@dataclass
class Trouble:
    """What becomes of one call instead of its answer."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": "AsTold", "message": "as told"}'
    cut: bool = False
    """The connection ends after half of the true answer."""
    drip: bool = False
    """A byte now and then, for ever."""
    endless: bool = False
    """An answer that is a list of posts without an end."""


@dataclass
class FeedPage:
    """One page, as a feed gives it."""

    items: list[bytes]
    cursor: str | None


@dataclass
class Call:
    """One request as it came."""

    method: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    at: float
    """By the clock `monotonic`."""
    body: bytes = b""


class AppViewServer:
    """The tables and the troubles; tests change them while it runs."""

    def __init__(self) -> None:
        self.posts: dict[str, str] = {}
        """uri -> cid"""
        self.profiles: set[str] = set()
        self.handles: dict[str, str] = {}
        self.records: dict[str, bytes] = {}
        """uri -> its record, as JSON text of any kind."""
        self.likes: dict[str, int] = {}
        """uri -> how often a post was liked; 1 when it is not told."""
        self.labels: dict[str, list[dict[str, Any]]] = {}
        """uri or DID -> the labels that are shown with it."""
        self.named_as: dict[str, str] = {}
        """DID -> handle; a.test when it is not told."""
        self.always: dict[str, str] = {}
        """uri -> cid of posts that are in every answer, asked for or not."""
        self.next: deque[Trouble] = deque()
        """For the next calls, one each."""
        self.stumbles: dict[str, Trouble] = {}
        """What becomes of each call that names this post."""
        self.answering = threading.Event()
        """While it is not set, calls come in and wait for their answers."""
        self.answering.set()
        self.packed = True
        """Whether answers are gzip, where the caller takes it."""
        self.refusals: dict[str, dict[str, str]] = {}
        """Why an account cannot be seen, if not because nobody knows it."""
        self.feeds: dict[str, list[bytes]] = {}
        """A feed's AT-URI -> what it shows, each item as JSON text; see `support.shown`."""
        self.pages: dict[str, list[FeedPage]] = {}
        """The same for feeds that page as they are told; beyond the last page they go on with it."""
        self.breaks: dict[str, list[Trouble | None]] = {}
        """By feed, what becomes of its calls, in their order; None: nothing."""
        self.private: set[str] = set()
        """Feeds that want a login."""
        self.logins: dict[str, str] = {}
        """handle -> app password"""
        self.access_seconds = 7200
        """How long a new access token is good, as it says itself."""
        self.access: set[str] = set()
        self.refresh: set[str] = set()
        """Tokens that are good; take one out, and it is not."""
        self.expired: set[str] = set()
        """Access tokens of which it is said that they have expired, whatever they say themselves."""
        self.calls: list[Call] = []
        self.most_at_once = 0
        self.at_once = 0
        self.called = threading.Event()
        """Set by the first call."""
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.url = ""

    def write(
        self,
        uri: str,
        text: str,
        *,
        langs: Sequence[str] = (),
        alts: Sequence[str] = (),
        quote: str = "",
        link: dict[str, str] | None = None,
        created_at: str = "",
    ) -> None:
        """Have a post with such a record, its embed as Bluesky's own program makes it."""
        media: dict[str, Any] = {}
        if link:
            media = {"$type": "app.bsky.embed.external", "external": link}
        elif alts:
            images = [{"alt": alt, "image": {"$type": "blob", "size": 1}} for alt in alts]
            media = {"$type": "app.bsky.embed.images", "images": images}
        quoted: dict[str, Any] = {"$type": "app.bsky.embed.record", "record": {"uri": quote, "cid": "bafyquoted"}}
        both = {"$type": "app.bsky.embed.recordWithMedia", "record": quoted, "media": media}
        embed = both if quote and media else quoted if quote else media
        record = {"$type": "app.bsky.feed.post", "text": text, "langs": [*langs], "embed": embed}
        self.posts.setdefault(uri, "bafyrei" + hashlib.sha256(uri.encode()).hexdigest())
        self.records[uri] = json.dumps(record | ({"createdAt": created_at} if created_at else {})).encode()

    def named(self, method: str) -> list[Call]:
        """The calls of one method ("getPosts")."""
        return [call for call in self.calls if call.method.endswith("." + method)]

    def answer(self, method: str, query: dict[str, list[str]]) -> tuple[int, bytes]:
        match method:
            case "app.bsky.feed.getPosts":
                found = {uri: self.posts[uri] for uri in query["uris"] if uri in self.posts} | self.always
                views = [self._view(uri, cid) for uri, cid in found.items()]
                return 200, b'{"posts":[' + b",".join(views) + b"]}"
            case "app.bsky.actor.getProfiles":
                dids = [did for did in query["actors"] if did in self.profiles]
                return 200, json.dumps({"profiles": [self._profile(did) for did in dids]}).encode()
            case "app.bsky.actor.getProfile" if query["actor"][0] in self.profiles:
                return 200, json.dumps({"did": query["actor"][0], "handle": "a.test"}).encode()
            case "app.bsky.actor.getProfile":
                why = self.refusals.get(query["actor"][0], {"error": "InvalidRequest", "message": "Profile not found"})
                return 400, json.dumps(why).encode()
            case "com.atproto.identity.resolveHandle" if query["handle"][0] in self.handles:
                return 200, json.dumps({"did": self.handles[query["handle"][0]]}).encode()
            case "com.atproto.identity.resolveHandle":
                return 400, b'{"error": "InvalidRequest", "message": "Unable to resolve handle"}'
            case "app.bsky.feed.getFeed":
                return self._feed(query)
        return 404, b'{"error": "XRPCNotSupported", "message": "XRPCNotSupported"}'

    def refused(self, method: str, query: dict[str, list[str]], token: str) -> tuple[int, bytes] | None:
        """Why a call is not answered, by its token."""
        if token in self.expired:
            return 400, b'{"error": "ExpiredToken", "message": "Token has expired"}'
        if token and token not in self.access:
            return 400, b'{"error": "InvalidToken", "message": "Token could not be verified"}'
        if not token and method == "app.bsky.feed.getFeed" and query["feed"][0] in self.private:
            return 401, b'{"error": "AuthMissing", "message": "Authentication Required"}'
        return None

    def log_in(self, method: str, body: bytes, token: str) -> tuple[int, bytes]:
        """createSession or refreshSession."""
        if method.endswith(".createSession"):
            asked = json.loads(body)
            if self.logins.get(asked["identifier"]) != asked["password"]:
                return 401, b'{"error": "AuthenticationRequired", "message": "Invalid identifier or password"}'
        elif token not in self.refresh:
            return 400, b'{"error": "ExpiredToken", "message": "Token has been revoked"}'
        self.refresh.discard(token)
        until = int(time()) + self.access_seconds
        made = {name: _token(name, len(self.calls), until) for name in ("access", "refresh")}
        self.access.add(made["access"])
        self.refresh.add(made["refresh"])
        session = {"did": "did:plc:me", "handle": "me.test", "active": True}
        return 200, json.dumps(session | {f"{name}Jwt": token for name, token in made.items()}).encode()

    def _feed(self, query: dict[str, list[str]]) -> tuple[int, bytes]:
        feed, cursor, limit = query["feed"][0], query.get("cursor", [""])[0], int(query.get("limit", ["50"])[0])
        if pages := self.pages.get(feed):
            n = sum(call.query.get("feed") == [feed] for call in self.named("getFeed"))
            page = pages[min(n, len(pages)) - 1]
        elif feed in self.feeds:
            begin = int(cursor or 0)
            shown = self.feeds[feed]
            page = FeedPage(shown[begin : begin + limit], str(begin + limit) if begin + limit < len(shown) else None)
        else:
            return 400, b'{"error": "UnknownFeed", "message": "could not find feed"}'
        told = b"" if page.cursor is None else b', "cursor": ' + json.dumps(page.cursor).encode()
        return 200, b'{"feed": [' + b",".join(page.items) + b"]" + told + b"}"

    def _profile(self, did: str) -> dict[str, Any]:
        return {
            "did": did,
            "handle": self.named_as.get(did, "a.test"),
            "displayName": "}\ud800[ the display name",
            "description": "what the account says of itself",
            "createdAt": "2024-02-06T12:00:00.000Z",
            "followersCount": 30,
            "followsCount": 20,
            "postsCount": 10,
            "labels": self.labels.get(did, []),
        }

    def _view(self, uri: str, cid: str) -> bytes:
        """A post as the API shows it; its record may be anything."""
        did = uri.split("/")[2]
        author = {
            "did": did,
            "handle": self.named_as.get(did, "a.test"),
            "associated": {"chat": {"allowIncoming": "all"}},
            "labels": self.labels.get(did, []),
        }
        view = {
            "uri": uri,
            "cid": cid,
            "author": author,
            "likeCount": self.likes.get(uri, 1),
            "repostCount": 2,
            "replyCount": 3,
            "quoteCount": 4,
            "labels": self.labels.get(uri, []),
            "indexedAt": "2026-11-22T12:00:00.000Z",
        }
        record = self.records.get(uri, b'{"$type": "app.bsky.feed.post", "text": "a \\" and a ] and a {"}')
        return json.dumps(view).encode()[:-1] + b', "record":' + record + b"}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    told: AppViewServer

    def do_GET(self) -> None:
        self._do(
            lambda method, query, token: self.told.refused(method, query, token) or self.told.answer(method, query)
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self._do(lambda method, _query, token: self.told.log_in(method, body, token), body)

    def _do(self, answer: Callable[[str, dict[str, list[str]], str], tuple[int, bytes]], body: bytes = b"") -> None:
        told = self.told
        parts = urlsplit(self.path)
        method, query = parts.path.removeprefix("/xrpc/"), parse_qs(parts.query)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        with told.lock:
            headers = {k.lower(): v for k, v in self.headers.items()}
            told.calls.append(Call(method, query, headers, monotonic(), body))
            told.called.set()
            told.at_once += 1
            told.most_at_once = max(told.most_at_once, told.at_once)
            stumbling = [told.stumbles[uri] for uri in query.get("uris", ()) if uri in told.stumbles]
            trouble = told.next.popleft() if told.next else stumbling[0] if stumbling else None
            breaks = told.breaks.get(query.get("feed", [""])[0])
            trouble = breaks.pop(0) if breaks else trouble
        told.answering.wait()
        try:
            with suppress(ConnectionError):
                if trouble is None:
                    self._send(*answer(method, query, token), {})
                else:
                    self._fail(trouble, answer(method, query, token)[1])
        finally:
            with told.lock:
                told.at_once -= 1

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""

    def _fail(self, trouble: Trouble, answer: bytes) -> None:
        if trouble.cut or trouble.drip or trouble.endless:
            self.close_connection = True
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            if trouble.cut:
                self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer[: len(answer) // 2] if trouble.cut else b'{"posts":["')
            while not trouble.cut and not self.told.ended.wait(0.01 if trouble.drip else 0):
                self.wfile.write(PIECE[:1] if trouble.drip else PIECE)
        else:
            self._send(trouble.status, trouble.body, trouble.headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        if self.told.packed and "gzip" in self.headers.get("Accept-Encoding", "") and not headers:
            body, headers = gzip.compress(body), {"Content-Encoding": "gzip"}
        self.send_response(status)
        for name, value in {"Content-Type": "application/json; charset=utf-8", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _token(name: str, n: int, until: int) -> str:
    """One as servers make them: readable, and good for some time. Its signature is none."""
    parts = ({"typ": "at+jwt", "alg": "ES256K"}, {"sub": "did:plc:me", "jti": f"{name}-{n}", "exp": until}, "none")
    return ".".join(urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that hangs up is no error
            super().handle_error(request, client_address)


@contextmanager
def appview_server() -> Iterator[AppViewServer]:
    """A running one; `url` is its address."""
    told = AppViewServer()
    server = _Server(("127.0.0.1", 0), type("Told", (Handler,), {"told": told}))
    told.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.05))
    thread.start()
    try:
        yield told
    finally:
        told.ended.set()
        told.answering.set()
        server.shutdown()
        thread.join()
        server.server_close()
