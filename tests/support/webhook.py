"""A webhook: a real HTTP server on loopback that notes what it gets, and misbehaves as told."""

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

HUGE = 50_000_000
"""Bytes of an answer that nobody should read."""


@dataclass
class Heard:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def values(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass
class Webhook:
    """What it does next, and what it heard."""

    url: str = ""
    behave: str = "ok"
    """A status, or: huge, slow (until `release` is set), drip, hang_up."""
    retry_after: str = ""
    heard: list[Heard] = field(default_factory=list)
    release: Event = field(default_factory=Event)
    written: int = 0
    """Bytes of a huge answer that somebody took."""

    def told(self) -> list[tuple[str, str]]:
        """(kind, problem) of each message in the format `json`."""
        return [(one.values["kind"], one.values["problem"]) for one in list(self.heard)]


class _Handler(BaseHTTPRequestHandler):
    webhook: Webhook

    def do_POST(self) -> None:
        hook = self.webhook
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hook.heard.append(Heard(self.path, dict(self.headers), body))
        if hook.behave == "hang_up":
            return
        if hook.behave == "slow":
            hook.release.wait(60)
        with suppress(OSError):  # whoever asked has gone
            self._answer(hook)

    def do_GET(self) -> None:
        """Where a redirect that is followed would come out."""
        self.webhook.heard.append(Heard("GET " + self.path, {}, b""))
        self.send_response(200)
        self.end_headers()

    def _answer(self, hook: Webhook) -> None:
        self.send_response(int(hook.behave) if hook.behave.isdecimal() else 200)
        if hook.behave.startswith("30"):
            self.send_header("Location", "/elsewhere")
        if hook.retry_after:
            self.send_header("Retry-After", hook.retry_after)
        if hook.behave == "huge":
            self.send_header("Content-Length", str(HUGE))
        self.end_headers()
        while hook.behave == "huge" and hook.written < HUGE:
            self.wfile.write(b"x" * 100_000)
            hook.written += 100_000
        while hook.behave == "drip":
            self.wfile.write(b"x")
            hook.release.wait(0.05)

    def log_message(self, *_args: Any) -> None:
        """Nothing on standard error."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_args: Any) -> None:
        """Who hangs up, or does not trust us, is no news."""


@contextmanager
def webhook(path: str = "/hook", port: int = 0, context: ssl.SSLContext | None = None) -> Iterator[Webhook]:
    """One that listens; with a context it speaks TLS."""
    hook = Webhook()
    server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"webhook": hook}))
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    hook.url = f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}{path}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hook
    finally:
        hook.behave = "ok"
        hook.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
