"""A real HTTP server with the interface of OpenAI's that learns from the examples in its prompt. Run as a program.

A post names a topic ("topic3"). The model gives it the label of the last example with that topic, and "not civic" to
a topic that no example has; with the words "Mind the topics" in its instructions it knows the topics 0 and 1 by itself.
So how good it is depends on examples and wording, and on nothing else. --log has a JSON object for each question.
"""

import argparse
import json
import os
import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOPIC = re.compile(r"topic\d+")
SHOWN = re.compile(r"<post>(.*?)</post>\n(\{.*?\})\n", re.DOTALL)
MINDFUL = "Mind the topics"
WROTE = f"A post is civic when it is about politics. {MINDFUL}."


def topic_of(text: str) -> str:
    found = TOPIC.findall(text)
    return found[-1] if found else ""


def reply(body: dict[str, Any], *, deaf: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the answer's choice, what the log is told)."""
    messages = body["messages"]
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    asked = messages[-1]["content"]
    if system.startswith("Below "):
        said = {"definition": WROTE, "descriptions": {}, "ask": f"{MINDFUL}. Post: {{post}}\nTopic:"}
        return _text(json.dumps(said)), {"kind": "write", "asked": asked, "system": system}
    if system:
        known = {topic_of(post): json.loads(answer) for post, answer in SHOWN.findall(system + "\n")}
        fallback: Any = {"civic": "not civic"}
        mindful = MINDFUL in system
    else:
        turns = zip(messages[:-1:2], messages[1:-1:2], strict=True)
        known = {topic_of(user["content"]): answer["content"] for user, answer in turns}
        fallback, mindful = "food", MINDFUL in asked
    topic = topic_of(asked)
    given = known.get(topic, fallback)
    if mindful and topic in {"topic0", "topic1"}:
        given = {"civic": "civic"} if system else "politics"
    if deaf:
        given = fallback
    told = {"kind": "label", "asked": asked, "shown": sorted(known), "n": len(messages)}
    if system:
        form = body["response_format"]["json_schema"]["schema"]["properties"]
        filled = {name: given.get(name, one["enum"][-1]) for name, one in form.items()}
        return _text(json.dumps(filled)), told
    top = [{"token": f" {given}", "logprob": -0.1}]
    return {**_text(given), "logprobs": {"content": [{**top[0], "top_logprobs": top}]}}, told


def _text(content: str) -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    log: int
    deaf: bool
    whole: bool
    delay: float

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": "learner"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choice, told = reply(body, deaf=self.deaf)
        if self.whole:
            told["messages"] = body["messages"]
        os.write(self.log, (json.dumps(told) + "\n").encode())
        time.sleep(self.delay)
        usage = {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}
        self._send({"object": "chat.completion", "model": "learner-1", "choices": [choice], "usage": usage})

    def _send(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (its name there)
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--deaf", action="store_true", help="learn nothing")
    parser.add_argument("--whole", action="store_true", help="log whole prompts")
    told = parser.parse_args()
    Handler.log = os.open(told.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    Handler.deaf, Handler.whole, Handler.delay = told.deaf, told.whole, told.delay
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
