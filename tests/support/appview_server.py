"""A real HTTP server with three methods of Bluesky's public API over tables, and troubles to be told beforehand."""

import gzip
import hashlib
import json
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
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
class Call:
    """One request as it came."""

    method: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    at: float
    """By the clock `monotonic`."""


class AppViewServer:
    """The tables and the troubles; tests change them while it runs."""

    def __init__(self) -> None:
        self.posts: dict[str, str] = {}
        """uri -> cid"""
        self.profiles: set[str] = set()
        self.handles: dict[str, str] = {}
        self.records: dict[str, bytes] = {}
        """uri -> its record, as JSON text of any kind."""
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
                profiles = [{"did": did, "handle": "a.test", "displayName": "}\ud800[", "labels": []} for did in dids]
                return 200, json.dumps({"profiles": profiles}).encode()
            case "app.bsky.actor.getProfile" if query["actor"][0] in self.profiles:
                return 200, json.dumps({"did": query["actor"][0], "handle": "a.test"}).encode()
            case "app.bsky.actor.getProfile":
                why = self.refusals.get(query["actor"][0], {"error": "InvalidRequest", "message": "Profile not found"})
                return 400, json.dumps(why).encode()
            case "com.atproto.identity.resolveHandle" if query["handle"][0] in self.handles:
                return 200, json.dumps({"did": self.handles[query["handle"][0]]}).encode()
            case "com.atproto.identity.resolveHandle":
                return 400, b'{"error": "InvalidRequest", "message": "Unable to resolve handle"}'
        return 404, b'{"error": "XRPCNotSupported", "message": "XRPCNotSupported"}'

    def _view(self, uri: str, cid: str) -> bytes:
        """A post as the API shows it; its record may be anything."""
        author = {"did": uri.split("/")[2], "handle": "a.test", "associated": {"chat": {"allowIncoming": "all"}}}
        view = {"uri": uri, "cid": cid, "author": author, "likeCount": 1, "indexedAt": "2026-11-22T12:00:00.000Z"}
        record = self.records.get(uri, b'{"$type": "app.bsky.feed.post", "text": "a \\" and a ] and a {"}')
        return json.dumps(view).encode()[:-1] + b', "record":' + record + b"}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    told: AppViewServer

    def do_GET(self) -> None:
        told = self.told
        parts = urlsplit(self.path)
        method, query = parts.path.removeprefix("/xrpc/"), parse_qs(parts.query)
        with told.lock:
            told.calls.append(Call(method, query, {k.lower(): v for k, v in self.headers.items()}, monotonic()))
            told.called.set()
            told.at_once += 1
            told.most_at_once = max(told.most_at_once, told.at_once)
            stumbling = [told.stumbles[uri] for uri in query.get("uris", ()) if uri in told.stumbles]
            trouble = told.next.popleft() if told.next else stumbling[0] if stumbling else None
        told.answering.wait()
        try:
            with suppress(ConnectionError):
                if trouble is None:
                    self._send(*told.answer(method, query), {})
                else:
                    self._fail(trouble, told.answer(method, query)[1])
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
