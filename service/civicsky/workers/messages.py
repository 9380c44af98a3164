"""What home node and workers say to each other, as bytes and back. Pure.

A message is one line of JSON, its head, and then the body as it is: the request's or the answer's own bytes. All that
comes from the other side is checked: `Foreign` is raised for a version that we do not know, `Garbled` for the rest.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

VERSION: Final = 1
PATHS: Final = frozenset({("POST", "/chat/completions"), ("GET", "/models"), ("GET", "/version")})
"""All that a worker asks its server for."""
MAX_HEADERS: Final = 40
MAX_CHARS: Final = 300
"""Of a header's value, a name, or a reason."""
MAX_SESSION: Final = 40
_SESSION: Final = re.compile(rf"[\w-]{{1,{MAX_SESSION}}}", re.ASCII)
_HEADERS: Final = ("retry-after", "server", "x-ratelimit-")
"""Beginnings of the headers that are read at home."""

Kind = Literal["reply", "unreachable", "unusable", "given_up"]
"""How a call ended: with a response; without one; with one of no use (`BadInput`); or it was delivered too often."""


class Garbled(Exception):
    """It is none of ours, or damaged."""


class Foreign(Exception):
    """A version that we do not know: it is for others."""


class Job(NamedTuple):
    """One request for a model's server."""

    id: str
    attempt: int
    home: str
    """The session that waits for it."""
    method: str
    path: str
    """Behind the server's /v1; /version: beside it."""
    seconds: float
    """What the call may take."""
    ack_seconds: float
    """After so many seconds of silence another worker gets it."""
    deliveries: int
    """After so many it is given up."""
    body: bytes


class Claim(NamedTuple):
    """A worker is about to send it."""

    id: str
    attempt: int
    delivery: int
    """1 for the first; more: others got it before."""
    worker: str
    proof: str = ""
    """A secret of this claim, that only the home node hears: with a result it shows whose it is."""
    void: bool = False
    """What was said to the claim before did not come in time: nothing is sent."""


class Result(NamedTuple):
    """What came of it."""

    id: str
    attempt: int
    worker: str
    kind: Kind
    by: str
    """The server that was asked, as the worker names it."""
    status: int = 0
    headers: Mapping[str, str] = {}
    why: str = ""
    """`unreachable`: what went wrong; `unusable`: the reason."""
    body: bytes = b""
    proof: str = ""
    """That of the claim."""


class Beat(NamedTuple):
    """A worker is there. It has these fields in every version: those who do not understand each other are told so."""

    worker: str
    version: str
    """Of civicsky."""
    server: str
    """Its model's server."""
    slots: int
    in_flight: int
    done: int
    """Results since it began."""
    why: str = ""
    """Why it takes nothing; empty while it does."""
    leaving: bool = False
    model: str = ""
    """What it asks, by the name of its settings."""
    key: str = ""
    """That of `model_key`: whose jobs it takes."""
    speaks: int = VERSION
    """The version of its messages."""


def unlike(beat: Beat, model: str, key: str, ours: str) -> str:
    """Why a worker gets nothing from a home node of the version `ours`, in words for both; empty: it may get jobs."""
    if beat.speaks != VERSION:
        older = "worker" if beat.speaks < VERSION else "home node"
        return (
            f"the worker (civicsky {beat.version}) speaks version {beat.speaks} of the messages, the home node "
            f"(civicsky {ours}) version {VERSION}: upgrade the {older}"
        )
    if beat.key in {"", key}:
        return ""
    if beat.model == model:
        return f"the worker has other weights of {model!r} than the home node: give both the same file"
    return f"the worker has the model {beat.model!r}, the home node asks for {model!r}: give both the same --model"


def model_key(model: str, fingerprint: str | None) -> str:
    """The token that stands for a model: who has other weights under the same name has another model."""
    return hashlib.blake2b(f"{model}\0{fingerprint or ''}".encode(), digest_size=8).hexdigest()


def subject_of_jobs(name: str, key: str, session: str, version: int = VERSION) -> str:
    """Where a home node's jobs for a model are."""
    return f"{name}.job.{version}.{key}.{session}"


def consumer_name(key: str, version: int = VERSION) -> str:
    """Whose jobs are those."""
    return f"label-{version}-{key}"


def message_id(job: Job) -> str:
    """`Nats-Msg-Id`: a publication that is repeated is one."""
    return f"{job.id}.{job.attempt}"


def told_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Those of a response that matter at home, bounded."""
    kept = [(name.lower(), value[:MAX_CHARS]) for name, value in headers.items()]
    return dict([(name, value) for name, value in kept if name.startswith(_HEADERS)][:MAX_HEADERS])


def encode(what: Job | Claim | Result | Beat) -> bytes:
    """As bytes."""
    head = {"v": VERSION, "is": type(what).__name__.lower(), **what._asdict()}
    body: bytes = head.pop("body", b"")
    head.pop("speaks", None)  # "v" says so
    return json.dumps(head).encode() + b"\n" + body


def decode_job(data: bytes) -> Job:
    """Raises `Foreign` or `Garbled`."""
    head, body = _opened(data, "job")
    if not _SESSION.fullmatch(home := _text(head, "home")):
        raise Garbled("it names no home node")  # it is part of a subject
    job = Job(
        _text(head, "id"), _number(head, "attempt"), home, _text(head, "method"), _text(head, "path"),
        _seconds(head, "seconds"), _seconds(head, "ack_seconds"), _number(head, "deliveries"), body,
    )  # fmt: skip
    if job.ack_seconds < 1:  # who speaks up three times as often would do nothing else
        raise Garbled("its ack wait is none")
    if (job.method, job.path) not in PATHS:
        raise Garbled("it asks for what no worker does")
    return job


def decode_claim(data: bytes) -> Claim:
    """Raises `Foreign` or `Garbled`."""
    head, _ = _opened(data, "claim")
    names = [_text(head, name) for name in ("id", "worker")]
    return Claim(names[0], _number(head, "attempt"), _number(head, "delivery"), names[1], _text(head, "proof", ""),
                 head.get("void") is True)  # fmt: skip


def decode_result(data: bytes) -> Result:
    """Raises `Foreign` or `Garbled`."""
    head, body = _opened(data, "result")
    kind, headers = head.get("kind"), head.get("headers")
    if kind not in {"reply", "unreachable", "unusable", "given_up"} or not isinstance(headers, dict):
        raise Garbled("it has no kind, or no headers")
    told = told_headers({str(name): str(value) for name, value in headers.items()})
    return Result(
        _text(head, "id"), _number(head, "attempt"), _text(head, "worker"), kind, _text(head, "by"),
        _number(head, "status"), told, _text(head, "why"), body, _text(head, "proof", ""),
    )  # fmt: skip


def decode_beat(data: bytes) -> Beat:
    """Of whatever version. Raises `Garbled`."""
    head, _ = _opened(data, "beat", any_version=True)
    names = [_text(head, name) for name in ("worker", "version", "server")]
    numbers = [_number(head, name) for name in ("slots", "in_flight", "done")]
    return Beat(names[0], names[1], names[2], numbers[0], numbers[1], numbers[2], _text(head, "why"),
                head.get("leaving") is True, _text(head, "model", ""), _text(head, "key", ""), head["v"])  # fmt: skip


def _opened(data: bytes, what: str, *, any_version: bool = False) -> tuple[dict[str, Any], bytes]:
    line, _, body = data.partition(b"\n")
    try:
        head = json.loads(line)
    except (ValueError, RecursionError):
        raise Garbled("its head is no JSON") from None
    if not isinstance(head, dict) or type(head.get("v")) is not int:
        raise Garbled("it has no version")
    if head["v"] != VERSION and not any_version:
        raise Foreign(f"version {head['v']}")
    if head.get("is") != what:
        raise Garbled(f"it is no {what}")
    return head, body


def _text(head: Mapping[str, Any], name: str, otherwise: str | None = None) -> str:
    value = head.get(name, otherwise)
    if not isinstance(value, str):
        raise Garbled(f"it has no {name}")
    return value[:MAX_CHARS].encode(errors="replace").decode()


def _number(head: Mapping[str, Any], name: str) -> int:
    value = head.get(name)
    if type(value) is not int or not 0 <= value < 2**53:
        raise Garbled(f"it has no {name}")
    return value


def _seconds(head: Mapping[str, Any], name: str) -> float:
    value = head.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 86_400:  # noqa: PLR2004  (a day; also no NaN)
        raise Garbled(f"it has no {name}")
    return float(value)
