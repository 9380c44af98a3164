"""A real HTTP server with the interface of OpenAI's that keeps every prompt, and gives labels and summaries by rule."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

SUMMARY = "You write short summaries"
Answer = Callable[["Prompt"], dict[str, str] | str | None]


class Prompt(NamedTuple):
    """One request, as the model is given it."""

    system: str
    user: str
    body: dict[str, Any]

    @property
    def is_summary(self) -> bool:
        return self.system.startswith(SUMMARY)

    @property
    def post(self) -> str:
        return str(json.loads(_one("post", self.user)))

    @property
    def context(self) -> str:
        found = re.findall(r"<context>(.*?)</context>", self.user, re.DOTALL)
        return str(json.loads(found[0])) if found else ""

    @property
    def parts(self) -> list[tuple[str, str, str]]:
        """(side, outlets, text) of the reports in the context."""
        lines = self.context.split("\n")[1:]
        found = [
            re.fullmatch(r'("(?:[^"\\]|\\.)*") \(("(?:[^"\\]|\\.)*")\): ("(?:[^"\\]|\\.)*")', one) for one in lines
        ]
        assert all(found), f"a report is not quoted: {lines}"
        return [tuple(json.loads(one[at]) for at in (1, 2, 3)) for one in found if one]

    @property
    def articles(self) -> list[str]:
        """What a summary is asked of."""
        return [str(json.loads(one)) for one in re.findall(r"<article>(.*?)</article>", self.user, re.DOTALL)]


def labels(prompt: Prompt) -> dict[str, str] | str | None:
    """All is civic; the lean is clear when articles are given."""
    if prompt.is_summary:
        return f"Summed up: {prompt.articles[0][:60]}"
    return {"civic": "civic", "lean": "moderate" if prompt.context else "unclear", "us_politics": "no"}


class NewsModel:
    """The server's state. What `answers` gives as None is never answered: the call hangs until the client is gone."""

    def __init__(self, answers: Answer) -> None:
        self.answers = answers
        self.url = ""
        self.prompts: list[Prompt] = []
        self.done = threading.Event()

    @property
    def questions(self) -> list[Prompt]:
        return [prompt for prompt in self.prompts if not prompt.is_summary]

    @property
    def summaries(self) -> list[Prompt]:
        return [prompt for prompt in self.prompts if prompt.is_summary]


@contextmanager
def news_model(answers: Answer = labels) -> Iterator[NewsModel]:
    """A running one."""
    model = NewsModel(answers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send({"data": [{"id": "mock"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            system, user = (message["content"] for message in body["messages"])
            prompt = Prompt(system, user, body)
            model.prompts.append(prompt)
            said = model.answers(prompt)
            if said is None:
                model.done.wait()
                return
            content = said if isinstance(said, str) else json.dumps(said)
            self._send(
                {
                    "model": "mock",
                    "choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 10},
                }
            )

        def _send(self, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    model.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield model
    finally:
        model.done.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _one(kind: str, text: str) -> str:
    (found,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
    return str(found)
