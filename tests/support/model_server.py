"""A real HTTP server with the interface of OpenAI's, whose answers depend only on the post. Run as a program.

It writes one line a request into --log before it answers, so that calls can be counted across restarts of civicsky.
"""

import argparse
import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FIELDS = {
    "civic": ["civic", "not civic"],
    "lean": ["left-leaning", "moderate", "right-leaning", "unclear"],
    "us_politics": ["yes", "no", "unclear"],
}


def answer_for(content: str) -> dict[str, str]:
    """The same answer for the same post, always."""
    digest = hashlib.sha256(content.encode()).digest()
    return {name: values[digest[at] % len(values)] for at, (name, values) in enumerate(FIELDS.items())}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    options: argparse.Namespace
    lock = threading.Lock()

    def do_GET(self) -> None:
        if self._refused():
            return
        self._send(200, {"object": "list", "data": [{"id": self.options.model}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused():
            return
        if body["model"] != self.options.model:
            self._send(404, {"error": {"message": "no such model"}})
            return
        if self.options.only_plain and "response_format" in body:
            self._send(400, {"error": {"message": "response_format is not supported"}})
            return
        content = body["messages"][-1]["content"]
        if self.options.forbid and self.options.forbid in content:
            self._send(403, {"error": {"message": "flagged by moderation"}})
            return
        with self.lock, Path(self.options.log).open("a", encoding="utf-8") as log:
            log.write(hashlib.sha256(content.encode()).hexdigest() + "\n")
        if self.options.status != 200:
            self._send(self.options.status, {"error": {"message": "as told"}})
            return
        if self.options.delay:
            threading.Event().wait(self.options.delay)
        text = self.options.say or json.dumps(answer_for(content))
        self._send(
            200,
            {
                "model": self.options.model + "-0001",
                "system_fingerprint": "fp_test",
                "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 10},
            },
        )

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""

    def _refused(self) -> bool:
        if not self.options.key or self.headers.get("Authorization") == f"Bearer {self.options.key}":
            return False
        self._send(401, {"error": {"message": "bad key"}})
        return True

    def _send(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | ValueError):  # a client that is killed is no error
            super().handle_error(request, client_address)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="mock")
    parser.add_argument("--key", default="")
    parser.add_argument("--delay", type=float, default=0)
    parser.add_argument("--status", type=int, default=200)
    parser.add_argument("--say", default="")
    parser.add_argument("--forbid", default="")
    parser.add_argument("--only-plain", action="store_true")
    Handler.options = parser.parse_args()
    Path(Handler.options.log).touch()
    server = Server(("127.0.0.1", Handler.options.port), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
