"""Asks a language model about one post, over the API that OpenAI-compatible servers share; the home of httpx.

It turns every way in which a server can fail into one of three: `Transient` (wait, try again), `Refused` (a person must
act), `BadInput` (this answer is of no use). It keeps nothing: what is done with an answer is its caller's business.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from math import exp
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from civicsky import log
from civicsky.errors import BadInput, Refused, Transient
from civicsky.model import Answer, FieldLabel, Spend
from civicsky.record import readable
from civicsky.settings import Label as LabelSettings
from civicsky.task import Prompt, answer_schema, applies, parse_answer, read_words, schema_messages, word_messages

MAX_ANSWER_BYTES: Final = 1_000_000
TOP_LOGPROBS: Final = 20
"""As many alternatives as OpenAI's interface allows."""
_FORMATS: Final = ("json_schema", "json_object", "none")
"""How to hold a server to JSON, strictest first; one that refuses a format is asked with the next."""


@dataclass
class Model:
    """Which model is asked, and what was found out about its server. One for all slots."""

    settings: LabelSettings
    prompt: Prompt
    base_url: Callable[[], str]
    """The server's address now; a local server may move when it is started again."""
    name: str
    endpoint: str
    """For provenance: the server's address without its path, or `local`."""
    api_key: str = ""
    fingerprint: str | None = None
    """The weights' own hash, where we know it better than the server says."""
    format: str = field(default=_FORMATS[0])
    answered: bool = False
    """Whether it ever gave an answer: then key, name and format are right."""


class Slot:
    """One call at a time, over a connection of its own: a shared pool of connections is slow beyond a few dozen."""

    def __init__(self, model: Model) -> None:
        self._model = model
        headers = {"Authorization": f"Bearer {model.api_key}"} if model.api_key else {}
        self._client = httpx.AsyncClient(
            timeout=model.settings.request_seconds,
            headers={"User-Agent": "civicsky", **headers},
            trust_env=not _is_loopback(model.base_url()),
            follow_redirects=False,
        )

    async def close(self) -> None:
        """Release the connection."""
        await self._client.aclose()

    async def probe(self) -> None:
        """Ask the server who it is. Raises `Transient` when it cannot be reached, `Refused` when it refuses the key."""
        await self.models()

    async def models(self) -> set[str]:
        """The names of the models that the server says it has; none when it does not list them. Errors as above."""
        with suppress(BadInput):  # not every server lists its models, nor for every key
            answer = await self._call("GET", "/models", None)
            listed = answer.get("data") if isinstance(answer, dict) else None
            if isinstance(listed, list):
                return {_name(item.get("id")) for item in listed if isinstance(item, dict)} - {""}
        return set()

    async def ask(self, fields: dict[str, Any]) -> Answer:
        """Label one post by its fields (see `record.extract`). Raises `Transient`, `Refused` or `BadInput`."""
        post = readable(fields)[: self._model.settings.max_chars]
        call = _Call(self, self._model)
        ask = self._by_words if self._model.prompt.way == "words" else self._by_schema
        began = monotonic()
        try:
            labels = await ask(call, post)
        except (BadInput, Transient) as error:
            error.spend = Spend(self._model.name, call.calls, call.tokens_in, call.tokens_out)
            raise
        return Answer(
            fields=labels,
            way=self._model.prompt.way,
            model_asked=self._model.name,
            model_named=call.model_named or self._model.name,
            fingerprint=self._model.fingerprint or call.fingerprint,
            parameters=json.dumps(call.parameters, sort_keys=True),
            endpoint=self._model.endpoint,
            input_hash=hashlib.sha256(post.encode()).hexdigest(),
            tokens_in=call.tokens_in,
            tokens_out=call.tokens_out,
            latency_ms=round((monotonic() - began) * 1000),
            calls=call.calls,
        )

    async def _by_schema(self, call: "_Call", post: str) -> dict[str, FieldLabel]:
        task, model = self._model.prompt.task, self._model
        for form in _FORMATS[_FORMATS.index(model.format) :]:
            parameters: dict[str, Any] = {"temperature": 0, "max_tokens": model.settings.max_tokens}
            if form == "json_schema":
                parameters["response_format"] = answer_schema(task)
            elif form == "json_object":
                parameters["response_format"] = {"type": "json_object"}
            try:
                choice = await call.complete(schema_messages(task, post), parameters)
            except BadInput as bad:
                if bad.reason != "request_rejected" or form == _FORMATS[-1]:
                    raise
                continue
            if form != model.format and not model.answered:  # else it was this one post that the server refused
                model.format = form
                log.event("label_way", stage="label", way=f"schema ({form})")
            model.answered = True
            return parse_answer(task, _content(choice))
        raise AssertionError

    async def _by_words(self, call: "_Call", post: str) -> dict[str, FieldLabel]:
        task = self._model.prompt.task
        fields = {item.name: item for item in task.fields}
        labels: dict[str, FieldLabel] = {}
        parameters = {"temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        for words in task.words:
            if applies(fields[words.field], labels):
                choice = await call.complete(word_messages(words, post), parameters)
                self._model.answered = True
                probabilities = _first_token(choice)
                labels[words.field] = read_words(words, fields[words.field], probabilities, self._model.settings.margin)
        for item in task.fields:  # a field that has no words is not asked
            if item.name not in labels and item.unclear and applies(item, labels):
                labels[item.name] = FieldLabel(item.unclear, None)
        return labels

    async def _call(self, method: str, path: str, body: Any) -> Any:
        """One request; its answer as parsed JSON."""
        address = self._model.base_url() + path
        try:
            # The client's own bound is for each read; a server may drip for ever.
            async with (
                asyncio.timeout(self._model.settings.request_seconds),
                self._client.stream(method, address, json=body) as response,
            ):
                text = await _read(response)
        except (httpx.TransportError, TimeoutError) as error:
            raise Transient(f"model at {self._model.endpoint} cannot be reached ({type(error).__name__})") from error
        except (httpx.InvalidURL, httpx.DecodingError) as error:
            raise BadInput("bad_response") from error
        if response.status_code != httpx.codes.OK:
            raise self._failure(response, has_body=body is not None)
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise BadInput("bad_response") from None

    def _failure(self, response: httpx.Response, *, has_body: bool) -> Exception:
        """What a status code other than 200 means for the caller."""
        code, endpoint = response.status_code, self._model.endpoint
        if code in {403, 404} and (not has_body or self._model.answered):
            return BadInput("request_rejected")  # this key and model have worked: it is about this post
        if code in {401, 403}:
            return Refused(
                f"label: the model's server at {endpoint} refuses the key (HTTP {code}); "
                "set CIVICSKY_LABEL__API_KEY and start again"
            )
        if code == httpx.codes.NOT_FOUND:
            return Refused(
                f"label: the server at {endpoint} does not know the model {self._model.name!r}, or the address lacks "
                "its /v1 (HTTP 404); mend --model or --model-url and start again"
            )
        if code in {408, 409, 425, 429} or code >= httpx.codes.INTERNAL_SERVER_ERROR:
            after = response.headers.get("retry-after", "")
            seconds = min(float(after), 3600.0) if after.replace(".", "", 1).isdecimal() else None
            busy = code in {425, 429, 503} or seconds is not None
            return Transient(f"model at {endpoint} answers HTTP {code}", seconds, busy=busy)
        return BadInput("request_rejected")


async def is_healthy(address: str) -> bool:
    """Whether a server on this machine answers its health address with 200."""
    async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
        try:
            return (await client.get(address)).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


class _Call:
    """The requests made for one post, and what they cost together."""

    def __init__(self, slot: Slot, model: Model) -> None:
        self._slot, self._model = slot, model
        self.calls = self.tokens_in = self.tokens_out = 0
        self.model_named = ""
        self.fingerprint: str | None = None
        self.parameters: dict[str, Any] = {}

    async def complete(self, messages: Any, parameters: dict[str, Any]) -> dict[str, Any]:
        """One chat completion; its first choice."""
        self.parameters = parameters
        body = {"model": self._model.name, "messages": messages, **parameters}
        answer = await self._slot._call("POST", "/chat/completions", body)  # noqa: SLF001
        self.calls += 1
        if not isinstance(answer, dict):
            raise BadInput("bad_response")
        usage = answer.get("usage")
        if isinstance(usage, dict):
            self.tokens_in += _count(usage.get("prompt_tokens"))
            self.tokens_out += _count(usage.get("completion_tokens"))
        self.model_named = _name(answer.get("model"))
        self.fingerprint = _name(answer.get("system_fingerprint")) or None
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise BadInput("bad_response")
        return choices[0]


def _content(choice: dict[str, Any]) -> str:
    message = choice.get("message")
    if not isinstance(message, dict):
        raise BadInput("bad_response")
    if message.get("refusal"):
        raise BadInput("refusal")
    if choice.get("finish_reason") == "length":
        raise BadInput("cut_off")
    if choice.get("finish_reason") == "content_filter":
        raise BadInput("refusal")
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        raise BadInput("empty")
    return content


def _first_token(choice: dict[str, Any]) -> list[tuple[str, float]]:
    """(token, probability) of the alternatives for the answer's first token."""
    try:
        top = choice["logprobs"]["content"][0]["top_logprobs"]
        return [(str(item["token"]), exp(min(0.0, float(item["logprob"])))) for item in top]
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        raise BadInput("no_logprobs") from None


async def _read(response: httpx.Response) -> bytes:
    parts, size = [], 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise BadInput("too_long")
        parts.append(part)
    return b"".join(parts)


def _name(value: Any) -> str:
    """What a server calls something: bounded, and text that every database takes."""
    return str(value or "")[:200].encode(errors="replace").decode()


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**40 else 0


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")
