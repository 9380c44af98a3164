"""The ways in which the tests' model server misbehaves.

A knob acts on a share of the requests, on those whose posts contain a text, on the next `times` of them, or on all.
Whether it acts depends only on the server's seed, the request's content and how often it came before: not on the order
in which requests arrive. All knobs that match act, in their order; of those that decide how the connection goes
(`WIRE`), the first one.
"""

import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from support.model_says import Posed, answer_for, content_of, logprobs_of, tokens_of

WIRE = {
    "hang": "takes the request and never answers",
    "status": "answers `status`, with `retry_after` seconds (a date if `as_date`)",
    "close": "hangs up instead of answering",
    "reset": "resets the connection instead of answering",
    "reset_body": "resets it in the middle of the body",
    "truncated": "hangs up in the middle of the body",
    "drip": "answers one byte each `seconds`, without an end",
    "html": "a page of a proxy, with status 200",
    "empty_body": "status 200 and nothing",
    "half_json": "a whole body, whose JSON is half",
    "not_utf8": "a body that is not UTF-8",
    "deep_body": "a body nested 100,000 deep",
    "gzip_bomb": "`size` bytes that were a few thousand on the wire",
    "not_http": "something else than HTTP",
    "error_in_200": "an error object with status 200",
    "moderation": "403 for this post",
    "json_failed": "400: the server itself found that the model's answer is no JSON (as Groq says it)",
    "refuse": "400 for a request with the parameter, or the format, `what`",
}
"""How the connection goes, one for each request."""


@dataclass
class Knob:
    """One misbehaviour."""

    name: str
    share: float = 1
    text: str = ""
    """Acts only on requests with a post that contains it."""
    times: int | None = None
    """Requests on which it acts; None: without an end."""
    many: bool | None = None
    """Only on requests of several posts, or only on those of one."""
    seconds: float = 1
    status: int = 503
    retry_after: float | None = None
    as_date: bool = False
    size: int = 10_000_000
    what: str = "json_schema"
    count: int = 1
    """Posts of a request."""
    fired: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"no such knob: {self.name}; there are: {', '.join(sorted(NAMES))}")

    @classmethod
    def read(cls, told: dict[str, Any]) -> "Knob":
        """From JSON. Raises `ValueError`."""
        try:
            return cls(**told)
        except TypeError as error:
            raise ValueError(str(error)) from None

    def acts_on(self, posed: Posed, body: dict[str, Any], lot: random.Random) -> bool:
        """Whether it acts on this request; it is noted if so."""
        drawn = lot.random() < self.share
        if (
            not drawn
            or (self.times is not None and self.fired >= self.times)
            or (self.text and not any(self.text in post.text for post in posed.posts))
            or (self.many is not None and self.many != bool(posed.ids))
            or (self.name == "refuse" and not has(body, self.what))
        ):
            return False
        self.fired += 1
        return True


def has(body: dict[str, Any], what: str) -> bool:
    """Whether a request has a parameter, or asks for a format."""
    return what in body or (body.get("response_format") or {}).get("type") == what


# ---- what an answer says ---------------------------------------------------------------------------------------------

Items = list[dict[str, Any]]
ItemsKnob = Callable[[Knob, Items, Posed, random.Random], Items]
_OTHER = {"civic": "maybe civic"}


def _missing(knob: Knob, items: Items, _posed: Posed, lot: random.Random) -> Items:
    gone = set(lot.sample(range(len(items)), min(knob.count, len(items))))
    return [item for at, item in enumerate(items) if at not in gone]


def _unordered(_knob: Knob, items: Items, _posed: Posed, lot: random.Random) -> Items:
    return lot.sample(items, len(items))


def _unknown(knob: Knob, items: Items, posed: Posed, lot: random.Random) -> Items:
    others = [answer_for(f"other {lot.random()}", posed.fields) for _ in range(knob.count)]
    return items + [{"id": f"other-{at}", **other} for at, other in enumerate(others)]


def _unknown_instead(knob: Knob, items: Items, posed: Posed, lot: random.Random) -> Items:
    return _unknown(knob, _missing(knob, items, posed, lot), posed, lot)


def _doubled(knob: Knob, items: Items, posed: Posed, lot: random.Random) -> Items:
    """The second one says something else."""
    twice = lot.sample(items, min(knob.count, len(items)))
    return items + [item | answer_for(f"again {lot.random()}", posed.fields) for item in twice]


def _doubled_alike(knob: Knob, items: Items, _posed: Posed, lot: random.Random) -> Items:
    return items + lot.sample(items, min(knob.count, len(items)))


def _swapped_ids(_knob: Knob, items: Items, _posed: Posed, _lot: random.Random) -> Items:
    """Ids that are numbers of places, as servers give them that do not echo."""
    return [item | {"id": at} for at, item in enumerate(items, 1)]


def _some(change: Callable[[dict[str, Any]], dict[str, Any]]) -> ItemsKnob:
    def act(knob: Knob, items: Items, _posed: Posed, lot: random.Random) -> Items:
        chosen = set(lot.sample(range(len(items)), min(knob.count, len(items))))
        return [change(item) if at in chosen else item for at, item in enumerate(items)]

    return act


def _of_values(change: Callable[[Any], Any]) -> ItemsKnob:
    return _some(lambda item: {name: value if name == "id" else change(value) for name, value in item.items()})


def _first(item: dict[str, Any]) -> str:
    return next(name for name in item if name != "id")


ITEMS: dict[str, ItemsKnob] = {
    "missing": _missing,
    "unordered": _unordered,
    "unknown": _unknown,
    "unknown_instead": _unknown_instead,
    "doubled": _doubled,
    "doubled_alike": _doubled_alike,
    "places_for_ids": _swapped_ids,
    "wrong_enum": _of_values(lambda value: _OTHER.get(value, f"maybe {value}")),
    "wrong_case": _of_values(lambda value: str(value).upper()),
    "wrong_type": _of_values(lambda value: [value]),
    "null_values": _of_values(lambda _value: None),
    "extra_keys": _some(lambda item: item | {"confidence": 0.9, "author": "someone"}),
    "missing_key": _some(lambda item: {name: value for name, value in item.items() if name != _first(item)}),
    "nan": _some(lambda item: item | {next(reversed(item)): float("nan")}),
}
"""They change the answers of `count` posts of a request (all that are `unordered`)."""

CONTENT: dict[str, Callable[[Knob, str], str | None]] = {
    "prose": lambda _knob, text: f"Sure! Here is the label you asked for:\n\n{text}\n\nLet me know if you need more.",
    "fenced": lambda _knob, text: f"```json\n{text}\n```",
    "think": lambda _knob, text: f'<think>\nThe post says {{"civic": "civic"}}, or does it?\n</think>\n\n{text}',
    "think_without_end": lambda _knob, text: f"<think>\nLet me see. {text}",
    "empty": lambda _knob, _text: "",
    "blank": lambda _knob, _text: " \n\t",
    "null": lambda _knob, _text: None,
    "half": lambda _knob, text: text[: len(text) // 2],
    "single_quotes": lambda _knob, text: text.replace('"', "'"),
    "list": lambda _knob, text: f"[{text}]",
    "twice": lambda _knob, text: f"{text}\n{text}",
    "deep": lambda _knob, _text: "[" * 100_000,
    "surrogate": lambda _knob, text: text.replace("civic", "\ud800", 1),
    "nul": lambda _knob, text: text.replace("civic", "\0", 1),
    "big": lambda knob, text: text + " " * knob.size,
    "endless_number": lambda _knob, _text: '{"civic": ' + "9" * 100_000 + "}",
}
"""They change the message's text."""


def _length(choice: dict[str, Any]) -> None:
    content = choice["message"]["content"] or ""
    choice["finish_reason"] = "length"
    choice["message"]["content"] = content[: len(content) // 2]


def _refusal(choice: dict[str, Any]) -> None:
    choice["message"] = {"role": "assistant", "content": None, "refusal": "I'm sorry, I can't help with that."}


def _odd_logprobs(choice: dict[str, Any]) -> None:
    choice["logprobs"] = {"content": [{"token": 7, "logprob": "high", "top_logprobs": [{"token": None}, 3]}]}


CHOICE: dict[str, Callable[[dict[str, Any]], None]] = {
    "refusal": _refusal,
    "content_filter": lambda choice: choice.update(finish_reason="content_filter"),
    "length": _length,
    "no_message": lambda choice: choice.pop("message"),
    "message_is_text": lambda choice: choice.update(message="civic"),
    "no_logprobs": lambda choice: choice.update(logprobs=None),
    "odd_logprobs": _odd_logprobs,
}
"""They change the choice."""


def _usage(value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda answer: answer.update(usage=value)


def _reasoning(answer: dict[str, Any]) -> None:
    answer["choices"][0]["message"]["reasoning_content"] = "Let me think about it."
    answer["usage"]["completion_tokens"] += 300
    answer["usage"]["total_tokens"] += 300
    answer["usage"]["completion_tokens_details"] = {"reasoning_tokens": 300}


ANSWER: dict[str, Callable[[dict[str, Any]], None]] = {
    "no_usage": lambda answer: answer.pop("usage"),
    "null_usage": _usage(None),
    "negative_usage": _usage({"prompt_tokens": -5, "completion_tokens": -1, "total_tokens": -6}),
    "text_usage": _usage({"prompt_tokens": "many", "completion_tokens": "1e9", "total_tokens": [3]}),
    "huge_usage": _usage({"prompt_tokens": 10**30, "completion_tokens": 1e300, "total_tokens": True}),
    "odd_details": _usage({"prompt_tokens": 7, "completion_tokens": 3, "completion_tokens_details": "none"}),
    "reasoning": _reasoning,
    "no_choices": lambda answer: answer.update(choices=[]),
    "null_choices": lambda answer: answer.update(choices=None),
    "choices_are_text": lambda answer: answer.update(choices=["civic"]),
    "other_model": lambda answer: answer.update(model="other-model", system_fingerprint="fp_other"),
    "odd_names": lambda answer: answer.update(model={"name": "x"}, system_fingerprint=["\ud800" * 300]),
}
"""They change the whole answer."""

NAMES = {"slow", *WIRE, *ITEMS, *CONTENT, *CHOICE, *ANSWER}
"""`slow` waits `seconds` before it answers, whatever it answers."""


def answer(
    posed: Posed, items: Items, knobs: list[Knob], body: dict[str, Any], lot: random.Random, say: str = ""
) -> dict[str, Any]:
    """A good answer, and what the knobs make of it. `say`: the message, instead of the answers."""
    for knob in knobs:
        if knob.name in ITEMS:
            with _as_far_as_it_goes():
                items = ITEMS[knob.name](knob, items, posed, lot)
    content: str | None = say or (content_of(posed, items) if items or posed.ids else "{}")
    for knob in knobs:
        if knob.name in CONTENT and content is not None:
            content = CONTENT[knob.name](knob, content)
    n = len(posed.posts)
    choice: dict[str, Any] = {
        "index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop", "logprobs": None,
    }  # fmt: skip
    if body.get("logprobs") and content and len(content) < 20_000:  # a token of logprobs is a hundred times its text
        choice["logprobs"] = logprobs_of(tokens_of(content))
    told: dict[str, Any] = {
        "object": "chat.completion",
        "choices": [choice],
        "usage": {"prompt_tokens": 100 * n, "completion_tokens": 10 * n, "total_tokens": 110 * n},
    }
    finish(told, knobs)
    return told


def finish(told: dict[str, Any], knobs: list[Knob]) -> None:
    """What the knobs of the choice and of the whole answer make of it."""
    for knob in knobs:
        if knob.name in CHOICE:
            with _as_far_as_it_goes():
                CHOICE[knob.name](told["choices"][0])
    for knob in knobs:
        if knob.name in ANSWER:
            with _as_far_as_it_goes():
                ANSWER[knob.name](told)


def _as_far_as_it_goes() -> suppress:
    """An earlier knob may have taken away what this one is to spoil."""
    return suppress(KeyError, IndexError, TypeError, AttributeError, StopIteration)


def dumps(value: Any) -> bytes:
    """JSON, which may hold half a pair of surrogates."""
    return json.dumps(value).encode()
