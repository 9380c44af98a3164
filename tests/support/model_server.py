"""A real HTTP server with the interface of OpenAI's, whose answers depend only on the post. Run as a program.

It misbehaves as told, by flags or while it runs:

    GET  /state     what happened so far
    POST /control   {"knobs": [...], ...}: any of `Told`'s names, and what it is from now on; "add": further knobs

See `support.model_knobs` for the knobs and `support.model_says` for the answers. It keeps two logs, each written before
it answers, so that calls can be counted across restarts: --log has a line with the SHA-256 of the user's message for
each question that the model was given, and --requests a JSON object for each request, with what was done about it.
"""

import argparse
import asyncio
import gzip
import hashlib
import json
import os
import random
import socket
import struct
import sys
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from email.utils import formatdate
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from support import model_says
from support.model_knobs import ITEMS, WIRE, Knob, answer, dumps, finish
from support.model_says import Obey, Posed, answer_for

__all__ = ["answer_for"]

DAY = 86_400
PAGE = b"<!DOCTYPE html><html><head><title>502</title></head><body><h1>Bad gateway</h1></body></html>"


REFUSALS = {
    "moderation": (403, "flagged by moderation", ""),
    "json_failed": (400, "Failed to generate JSON", "json_validate_failed"),
}


@dataclass(frozen=True)
class Told:
    """How it is to behave. All of it can be changed while it runs."""

    model: str = "mock"
    key: str = ""
    delay: float = 0.0
    """Seconds before each answer."""
    held: bool = False
    """Whether no question is answered until this is told otherwise."""
    status: int = 200
    say: str = ""
    """Each answer's message."""
    forbid: str = ""
    """Requests with this text get 403."""
    only_plain: bool = False
    """Whether a response format gets 400."""
    obey: Obey = ""
    """Whether it does what posts tell it."""
    seed: int = 0
    headers: str = ""
    """`openai` or `groq`: the style of `x-ratelimit-*`."""
    server: str = ""
    """What it calls itself where its models are listed."""
    retry_after: bool = True
    """Whether a 429 of a limit says when to come again."""
    limits: tuple[tuple[int, float, str], ...] = ()
    """(how much, in how many seconds, `requests` or `tokens`): in any stretch of time of this length."""


class Limit:
    """The server's own count of what came in, in any stretch of time so long."""

    def __init__(self, amount: int, seconds: float, unit: str) -> None:
        self.amount, self.seconds, self.unit = amount, seconds, unit
        self.taken: deque[tuple[float, int]] = deque()
        self.used = 0
        self.came: deque[tuple[float, int]] = deque()
        self.in_window = 0
        self.most = 0
        """The most that came within a stretch, turned away or not."""
        self.excess = 0
        """Requests turned away."""

    def weight(self, tokens: int) -> int:
        return tokens if self.unit == "tokens" else 1

    def come(self, now: float, tokens: int) -> bool:
        """A request; whether there is room for it. It takes none yet."""
        self.came.append((now, self.weight(tokens)))
        self.in_window += self.weight(tokens)
        self.in_window -= _let_go(self.came, now - self.seconds)
        self.used -= _let_go(self.taken, now - self.seconds)
        self.most = max(self.most, self.in_window)
        if self.used + self.weight(tokens) <= self.amount:
            return True
        self.excess += 1
        return False

    def take(self, now: float, tokens: int) -> None:
        self.taken.append((now, self.weight(tokens)))
        self.used += self.weight(tokens)

    def wait(self, now: float, tokens: int) -> float:
        """Seconds until a request of so many tokens has room."""
        over = self.used + self.weight(tokens) - self.amount
        for at, weight in self.taken:
            over -= weight
            if over <= 0:
                return max(0.0, at + self.seconds - now)
        return 0.0 if over <= 0 else self.seconds

    def reset(self, now: float) -> float:
        """Seconds until nothing counts any more."""
        return max(0.0, self.taken[-1][0] + self.seconds - now) if self.taken else 0.0


def _let_go(entries: deque[tuple[float, int]], before: float) -> int:
    gone = 0
    while entries and entries[0][0] <= before:
        gone += entries.popleft()[1]
    return gone


class Request(NamedTuple):
    """One HTTP request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Reply(NamedTuple):
    """What is answered, and how it goes over the wire."""

    status: int
    body: bytes
    headers: dict[str, str]
    how: str = ""
    """One of `WIRE`; empty: as it should."""
    seconds: float = 0


class ModelServer:
    """The server's state, shared by its connections."""

    def __init__(self, told: Told, knobs: list[Knob], log: Path | None, requests: Path | None) -> None:
        self.told, self.knobs = told, knobs
        self._log, self._requests = _append_to(log), _append_to(requests)
        self.limits = [Limit(*limit) for limit in told.limits]
        self.count = Counter[str]()
        self.in_flight = self.most_in_flight = 0
        self._came = Counter[bytes]()
        """How often each question came."""
        self.fired = Counter[str]()

    def control(self, change: dict[str, Any]) -> None:
        """Behave otherwise from now on. Raises `ValueError` or `TypeError` for what there is not."""
        change = dict(change)
        knobs = [Knob.read(one) for one in change.pop("knobs", [])] if "knobs" in change else list(self.knobs)
        knobs += [Knob.read(one) for one in change.pop("add", [])]
        self.told = replace(self.told, **change)
        self.knobs = knobs
        if "limits" in change:
            self.limits = [Limit(*limit) for limit in self.told.limits]

    def state(self) -> dict[str, Any]:
        """What happened so far."""
        return {
            **{name: self.count[name] for name in ("requests", "questions", "excess", "ok", "crashes")},
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
            "fired": dict(self.fired),
            "limits": [
                {"amount": one.amount, "seconds": one.seconds, "unit": one.unit, "most": one.most, "excess": one.excess}
                for one in self.limits
            ],
            "told": asdict(self.told),
        }

    # ---- one request -------------------------------------------------------------------------------------------------

    def reply(self, request: Request) -> tuple[Reply, float]:
        """What to answer to a request, and after how many seconds. It is in the logs then."""
        if self.told.key and request.headers.get("authorization") != f"Bearer {self.told.key}":
            return _error(401, "bad key"), 0
        if request.method == "GET" and not request.path.endswith("/models"):
            return _error(404, "no such page"), 0
        if request.method == "GET":
            named = {"Server": self.told.server} if self.told.server else {}
            return _json(200, {"object": "list", "data": [{"id": self.told.model}]}, named), 0
        try:
            body = json.loads(request.body)
            posed = model_says.read(body)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return _error(400, f"not a request: {error!r}"), 0
        digest = hashlib.sha256(posed.content.encode(errors="replace"))
        self.count["requests"] += 1
        self._came[digest.digest()] += 1
        entry: dict[str, Any] = {
            "time": time.time(), "sha256": digest.hexdigest(), "model": body.get("model"), "way": posed.way,
            "task": posed.task, "ids": posed.ids, "posts": [_sha256(post.text) for post in posed.posts], "did": [],
            "status": 200, "excess": False, "in_flight": self.in_flight,
        }  # fmt: skip
        reply, seconds = self._answer(body, posed, entry, f"{digest.hexdigest()}:{self._came[digest.digest()]}")
        _write(self._requests, json.dumps(entry | {"status": reply.status}))
        return reply, seconds

    def _answer(self, body: Any, posed: Posed, entry: dict[str, Any], key: str) -> tuple[Reply, float]:
        told = self.told
        if body.get("model") != told.model:
            return _error(404, "no such model"), 0
        limited = self._limited(entry, tokens=110 * len(posed.posts))
        if limited is not None:
            return limited, 0
        if told.only_plain and "response_format" in body:
            return _error(400, "response_format is not supported"), 0
        if told.forbid and told.forbid in posed.content:
            return _error(403, "flagged by moderation"), 0
        lot = random.Random(f"{told.seed}:{key}")
        knobs = [knob for knob in self.knobs if knob.acts_on(posed, body, lot)]
        self.fired.update(knob.name for knob in knobs)
        entry["did"] = [knob.name for knob in knobs]
        wire = next((knob for knob in knobs if knob.name in WIRE), None)
        seconds = told.delay + sum(knob.seconds for knob in knobs if knob.name == "slow")
        if wire is None or wire.name not in {"refuse", "moderation"}:
            self.count["questions"] += 1
            _write(self._log, entry["sha256"])
        if told.status != 200:
            return _error(told.status, "as told"), 0
        if wire is not None and (reply := _misbehave(wire)):
            return reply, seconds
        good = _json(200, self._said(body, posed, knobs, lot), self._rate_headers())
        if wire is None:
            self.count["ok"] += 1
        else:
            good = good._replace(how=wire.name, seconds=wire.seconds)
        return good, seconds

    def _said(self, body: Any, posed: Posed, knobs: list[Knob], lot: random.Random) -> dict[str, Any]:
        names = {"model": self.told.model + "-0001", "system_fingerprint": "fp_test"}
        if posed.way == "words":
            tokens = model_says.word_probabilities(posed, self.told.obey)
            choice = {
                "index": 0, "message": {"role": "assistant", "content": tokens[0][0]}, "finish_reason": "length",
                "logprobs": model_says.logprobs_of(tokens[:1], tokens[: body.get("top_logprobs", 0)]),
            }  # fmt: skip
            usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
            told: dict[str, Any] = {"object": "chat.completion", "choices": [choice], "usage": usage, **names}
            finish(told, [knob for knob in knobs if knob.name not in ITEMS])
            return told
        items = model_says.items_for(posed, self.told.obey)
        return {**names, **answer(posed, items, knobs, body, lot, self.told.say)}

    # ---- limits ------------------------------------------------------------------------------------------------------

    def _limited(self, entry: dict[str, Any], tokens: int) -> Reply | None:
        now = time.monotonic()
        full = [limit for limit in self.limits if not limit.come(now, tokens)]
        if not full:
            for limit in self.limits:
                limit.take(now, tokens)
            return None
        self.count["excess"] += 1
        entry["excess"] = True
        wait = max(limit.wait(now, tokens) for limit in full)
        after = {"Retry-After": str(ceil(wait))} if self.told.retry_after else {}
        return _error(429, "Rate limit reached", **self._rate_headers(), **after)

    def _rate_headers(self) -> dict[str, str]:
        now, told = time.monotonic(), {}
        for limit in self.limits:
            per_day = limit.unit == "requests" and self.told.headers == "groq"  # its tokens are by the minute
            if self.told.headers and limit.seconds == (DAY if per_day else 60):
                told[f"x-ratelimit-limit-{limit.unit}"] = str(limit.amount)
                told[f"x-ratelimit-remaining-{limit.unit}"] = str(limit.amount - limit.used)
                told[f"x-ratelimit-reset-{limit.unit}"] = duration(limit.reset(now), self.told.headers)
        return told


def duration(seconds: float, style: str) -> str:
    """A time as the header has it: `6m0s`, `1s`, `120ms` (openai), `2m59.56s`, `7.66s` (groq)."""
    if style == "openai" and seconds < 1:
        return f"{ceil(seconds * 1000)}ms"
    minutes, rest = divmod(ceil(seconds) if style == "openai" else round(seconds, 2), 60)
    return (f"{int(minutes)}m" if minutes else "") + f"{round(rest, 2):g}s"


def _misbehave(knob: Knob) -> Reply | None:
    """What a knob answers; None when it lies in how a good answer is sent."""
    match knob.name:
        case "status":
            after = knob.retry_after
            said = (
                "" if after is None else formatdate(time.time() + after, usegmt=True) if knob.as_date else f"{after:g}"
            )
            return _error(knob.status, "as told", **({"Retry-After": said} if said else {}))
        case "html":
            return Reply(200, PAGE, {"Content-Type": "text/html"})
        case "empty_body":
            return Reply(200, b"", {})
        case "not_utf8":
            return Reply(200, b'{"choices": "\xff\xfe\xff"}', {})
        case "deep_body":
            return Reply(200, b"[" * 100_000, {})
        case "gzip_bomb":
            return Reply(200, gzip.compress(b" " * knob.size), {"Content-Encoding": "gzip"})
        case "error_in_200":
            return _json(200, {"error": {"message": "the engine is gone", "code": 500}})
        case "moderation" | "json_failed":
            return _error(*REFUSALS[knob.name])
        case "refuse":
            return _error(400, f"{knob.what} is not supported")
    return None


def _json(status: int, body: Any, headers: dict[str, str] | None = None) -> Reply:
    return Reply(status, dumps(body), {"Content-Type": "application/json", **(headers or {})})


def _error(status: int, message: str, code: str = "", **headers: str) -> Reply:
    return _json(status, {"error": {"message": message, **({"code": code} if code else {})}}, headers)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def _append_to(file: Path | None) -> int | None:
    return None if file is None else os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def _write(file: int | None, line: str) -> None:
    if file is not None:
        os.write(file, line.encode() + b"\n")


# ---- the wire --------------------------------------------------------------------------------------------------------


async def serve(model: ModelServer, port: int = 0) -> tuple[asyncio.Server, str]:
    """Listen; gives the address of the interface."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError):  # a client that is gone is no error
                while await _one(model, reader, writer):
                    pass
        except BaseException:
            model.count["crashes"] += 1
            raise
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", port, limit=1 << 20, backlog=1024)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def _one(model: ModelServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """One request of a connection; whether it goes on."""
    request = await _read(reader)
    if request.path in {"/state", "/control"}:
        await _send(writer, _control(model, request))
        return True
    model.in_flight += 1
    model.most_in_flight = max(model.most_in_flight, model.in_flight)
    try:
        reply, seconds = model.reply(request)
        while model.told.held and request.method == "POST":
            await _pause(reader, 0.01)
        if seconds:
            await _pause(reader, seconds)
        return await _act(reader, writer, reply)
    finally:
        model.in_flight -= 1


def _control(model: ModelServer, request: Request) -> Reply:
    try:
        if request.method == "POST":
            model.control(json.loads(request.body))
    except (ValueError, TypeError) as error:
        return _error(400, str(error))
    return _json(200, model.state())


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Request(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))


async def _pause(reader: asyncio.StreamReader, seconds: float | None) -> None:
    """Wait, or until the client hangs up, which ends the connection."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await reader.readexactly(1)
        raise ConnectionError


async def _act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reply: Reply) -> bool:
    half = len(reply.body) // 2
    match reply.how:
        case "hang":
            await _pause(reader, None)
        case "close":
            return False
        case "reset":
            return _reset(writer)
        case "reset_body":
            writer.write(_head(reply) + reply.body[:half])
            await writer.drain()
            await _pause(reader, 0.05)  # it shall arrive
            return _reset(writer)
        case "truncated":
            writer.write(_head(reply) + reply.body[:half])
            await writer.drain()
            return False
        case "drip":
            writer.write(_head(reply._replace(body=b" " * 10_000_000)))
            for byte in reply.body + b" " * 10_000_000:
                writer.write(bytes([byte]))
                await writer.drain()
                await _pause(reader, reply.seconds)
        case "half_json":
            await _send(writer, reply._replace(body=reply.body[:half]))
            return True
        case "not_http":
            writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
            await writer.drain()
            return False
        case _:
            await _send(writer, reply)
            return True
    return False


def _reset(writer: asyncio.StreamWriter) -> bool:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


def _head(reply: Reply) -> bytes:
    lines = [f"HTTP/1.1 {reply.status} As-Told", *(f"{name}: {value}" for name, value in reply.headers.items())]
    return ("\r\n".join([*lines, f"Content-Length: {len(reply.body)}"]) + "\r\n\r\n").encode("latin-1")


async def _send(writer: asyncio.StreamWriter, reply: Reply) -> None:
    writer.write(_head(reply) + reply.body)
    await writer.drain()


def _limit(text: str) -> tuple[int, float, str]:
    amount, seconds, *unit = text.split("/")
    return int(amount), float(seconds), unit[0] if unit else "requests"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--requests", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--knob", type=json.loads, action="append", default=[], help='{"name": "slow", "share": 0.1}')
    parser.add_argument(
        "--limit", type=_limit, action="append", dest="limits", default=[], help="6000/60 or 90000/60/tokens"
    )
    for one in fields(Told):
        flag = "--" + one.name.replace("_", "-")
        if isinstance(one.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=one.default)
        elif one.name != "limits":
            parser.add_argument(flag, type=type(one.default), default=one.default)
    told = vars(parser.parse_args())
    log, requests, port = told.pop("log"), told.pop("requests"), told.pop("port")
    knobs = [Knob.read(one) for one in told.pop("knob")]
    model = ModelServer(Told(**told | {"limits": tuple(told["limits"])}), knobs, log, requests)
    asyncio.run(_serve_for_ever(model, port))


async def _serve_for_ever(model: ModelServer, port: int) -> None:
    server, url = await serve(model, port)
    print(url, flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    main()
