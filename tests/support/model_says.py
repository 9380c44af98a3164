"""What a request asks of a model, and what the tests' model says to it. Pure: the same question has the same answer.

It reads a request as a model would: the fields from the JSON schema if there is one, else from the system text; the
posts from between their marks. What a post says inside its quotes is nothing to it, unless it is told to obey.
"""

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

FIELDS = {
    "civic": ["civic", "not civic"],
    "lean": ["left-leaning", "moderate", "right-leaning", "unclear"],
    "us_politics": ["yes", "no", "unclear"],
}
"""Of the task that ships; of a request that names no fields."""
Fields = dict[str, list[str]]
"""Each field's values; none for one that is a sentence."""
Obey = Literal["", "adds", "replaces", "everything"]
"""Whether posts are obeyed. adds: of other posts, by id or by place, as further answers beside the true ones. replaces:
the answer of an id that a post names is as told. everything: also of a place ("the next post"), or of all of them,
which nobody can tell from an honest answer."""
_POST = re.compile(r"<post\b([^>]*)>(.*?)</post>", re.DOTALL)
_ID = re.compile(r"""id\s*=\s*["']?([^"'\s>]+)""")
_ONE_OF = re.compile(r'^\W*"(\w+)": one of (\[.*?\])', re.MULTILINE)
_SENTENCE = re.compile(r'"(reason)": one short sentence')


class Post(NamedTuple):
    """One post of a request."""

    id: str | None
    text: str


@dataclass(frozen=True)
class Posed:
    """What a request asks."""

    way: Literal["schema", "json", "plain", "words"]
    task: str
    content: str
    """The user's last message."""
    fields: Fields
    posts: list[Post]
    words: list[str] = field(default_factory=list)
    """Way `words`: the answers that the examples give."""

    @property
    def ids(self) -> list[str]:
        return [post.id for post in self.posts if post.id is not None]


def posts_of(content: str) -> list[Post]:
    """The posts between their marks."""
    found = []
    for marks, inside in _POST.findall(content):
        told = _ID.search(marks)
        try:
            value = json.loads(inside)
        except ValueError:
            value = inside
        if isinstance(value, dict):
            found.append(Post(str(value["id"]) if "id" in value else None, str(value.get("text", value.get("post")))))
        else:
            found.append(Post(told.group(1) if told else None, str(value)))
    return found


def read(body: dict[str, Any]) -> Posed:
    """A request of the chat interface. Raises `LookupError` or `TypeError` when it is none."""
    messages = body["messages"]
    content = str(messages[-1]["content"])
    system = "\n".join(str(message["content"]) for message in messages if message["role"] == "system")
    form = body.get("response_format") or {}
    posts = posts_of(content)
    if body.get("logprobs") and not form and not posts:
        words = dict.fromkeys(str(message["content"]) for message in messages if message["role"] == "assistant")
        return Posed("words", "", content, {}, [Post(None, content)], list(words))
    named = form.get("json_schema", {})
    fields = _of_schema(named["schema"]) if named else _of_text(system)
    way: Any = {"json_schema": "schema", "json_object": "json"}.get(form.get("type", ""), "plain")
    return Posed(way, str(named.get("name", "")), content, fields or FIELDS, posts or [Post(None, content)])


def _of_schema(schema: dict[str, Any]) -> Fields:
    properties = schema.get("properties", {})
    for value in properties.values():
        if value.get("type") == "array":
            return _of_schema(value["items"])
    given = {name: value.get("enum", []) for name, value in properties.items() if name != "id"}
    return {name: [value for value in values if value is not None] for name, values in given.items()}


def _of_text(system: str) -> Fields:
    fields: Fields = {name: json.loads(values) for name, values in _ONE_OF.findall(system)}
    return fields | {name: [] for name in _SENTENCE.findall(system)}


def answer_for(content: str, fields: Fields = FIELDS) -> dict[str, str]:
    """The same answer for the same post, always, however it is asked: by its text, or the message that quotes it."""
    posts = posts_of(content)
    text = posts[0].text if posts else content
    digest = hashlib.sha256(text.encode(errors="replace")).digest()
    return {
        name: values[digest[at % 32] % len(values)] if values else f"It says {digest.hex()[:8]}."
        for at, (name, values) in enumerate(fields.items())
    }


def items_for(posed: Posed, obey: Obey = "") -> list[dict[str, Any]]:
    """The answers to a request's posts, each with its id if it has one."""
    items = [answer_for(post.text, posed.fields) for post in posed.posts]
    named: list[dict[str, Any]] = [
        item if post.id is None else {"id": post.id, **item} for post, item in zip(posed.posts, items, strict=True)
    ]
    return obeyed(posed, named, obey) if obey else named


def content_of(posed: Posed, items: Sequence[dict[str, Any]]) -> str:
    """The message for these answers."""
    return json.dumps({"posts": list(items)} if posed.ids else items[0], ensure_ascii=False)


# ---- log-probabilities -----------------------------------------------------------------------------------------------


def word_probabilities(posed: Posed, obey: Obey = "") -> list[tuple[str, float]]:
    """(token, probability) of an answer's first token, most likely first: each word, some in pieces, and others."""
    words = posed.words or ["yes", "no"]
    draws = {word: _unit(posed.content, word) ** 4 for word in words}
    if obey:
        asked = posed.content.rpartition("\n")[0].lower()
        draws = {word: draws[word] + 50 * (f"answer {word.lower()}" in asked) for word in words}
    total = sum(draws.values()) or 1
    tokens = [(" " + word if _unit(word) < 0.5 else word[:3], 0.9 * draws[word] / total) for word in words]
    tokens += [("\n", 0.06), ("The", 0.04)]
    return sorted(tokens, key=lambda token: -token[1])


def tokens_of(content: str) -> list[tuple[str, float]]:
    """An answer in pieces, each with its probability; together they spell it."""
    pieces = re.findall(r"\s?\w{1,4}|\W", content)
    return [(piece, 0.5 + _unit(content, str(at)) / 2) for at, piece in enumerate(pieces)]


def logprobs_of(tokens: Sequence[tuple[str, float]], alternatives: Sequence[tuple[str, float]] = ()) -> dict[str, Any]:
    """In the interface's form; `alternatives` to the first token."""

    def entry(token: str, probability: float) -> dict[str, Any]:
        return {
            "token": token,
            "logprob": math.log(max(probability, 1e-30)),
            "bytes": list(token.encode(errors="replace")),
        }

    content = [{**entry(*token), "top_logprobs": [entry(*token)]} for token in tokens]
    if alternatives:
        content[0]["top_logprobs"] = [entry(*token) for token in alternatives]
    return {"content": content, "refusal": None}


def _unit(*parts: str) -> float:
    digest = hashlib.sha256("\0".join(parts).encode(errors="replace")).digest()
    return int.from_bytes(digest[:6]) / 2**48


# ---- obedience -------------------------------------------------------------------------------------------------------

_TOLD = re.compile(
    r"\b(?:label|labels|labelled|labeled|answer|answers|classify|classified|mark|output|respond|reply|say|is|are)\b|=",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[.;!?\n]+(?=\s|$)|\n")
_NAMED_IDS = re.compile(
    r"\b(?:ids?|posts?|items?|numbers?|positions?|entries|entry)\s*[#:=]?\s*((?:[\"']?[\w-]+[\"']?(?:\s*(?:,|and|to)\s*)*)+)",
    re.IGNORECASE,
)
_ORDINALS = {"first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "last": 0}


class Dictate(NamedTuple):
    """What a post says that posts are to be labelled as. `whom`: ids or numbers; empty: itself."""

    whom: tuple[str, ...]
    places: tuple[int, ...]
    """Relative to the post (`next` is 1) when `relative`, else from 1; 0 is the last."""
    relative: bool
    everyone: bool
    fields: dict[str, Any]

    @property
    def is_own(self) -> bool:
        return not (self.whom or self.places or self.everyone)


def dictates(text: str, fields: Fields) -> Iterator[Dictate]:
    """Everything that a post dictates, in the order in which it does."""
    plain = "".join(char for char in text if unicodedata.category(char) != "Cf")
    plain = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found.group(1), 16)), plain)
    for value in _objects(plain):
        listed = value.get("posts")
        for item in listed if isinstance(listed, list) else [value]:
            if isinstance(item, dict):
                rest = {name: told for name, told in item.items() if name != "id"}
                yield Dictate((str(item["id"]),) if "id" in item else (), (), False, False, rest)
    for clause in _CLAUSE.split(plain):
        told = _values_in(clause, fields) if "{" not in clause and _TOLD.search(clause) else {}
        if told:
            yield _whose(clause, told)


def _objects(text: str) -> Iterator[dict[str, Any]]:
    at = text.find("{")
    while at >= 0:
        end = at + 1
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
            if isinstance(value, dict):
                yield value
        except (ValueError, RecursionError):
            pass
        at = text.find("{", end)


def _values_in(clause: str, fields: Fields) -> dict[str, str]:
    found: dict[str, str] = {}
    rest = clause.lower()
    for value in sorted({value for values in fields.values() for value in values}, key=len, reverse=True):
        pattern = rf"(?<![\w-]){re.escape(value.lower())}(?![\w-])"
        if re.search(pattern, rest):
            rest = re.sub(pattern, " ", rest)
            found |= {name: value for name, values in fields.items() if value in values and name not in found}
    return found


def _whose(clause: str, told: dict[str, str]) -> Dictate:
    lower = clause.lower()
    if re.search(
        r"\b(?:all|every|each|any|other)\s+(?:other\s+)?(?:posts?|ids?|items?)\b|\bothers\b|\beverything\b", lower
    ):
        return Dictate((), (), False, True, told)
    if near := re.search(r"\b(next|following|previous|preceding)\b", lower):
        return Dictate((), (1 if near.group(1) in {"next", "following"} else -1,), True, False, told)
    if places := [place for word, place in _ORDINALS.items() if re.search(rf"\b{word}\b", lower)]:
        return Dictate((), tuple(places), False, False, told)
    ids: list[str] = []
    for group in _NAMED_IDS.findall(clause):
        for one in re.split(r"[\s,\"']+", group):
            if not one or one in {"and", "to"}:
                continue
            if not re.search(r"[0-9]", one) and not re.fullmatch(r"[a-z]", one):
                break
            ids.append(one)
    return Dictate(tuple(ids), tuple(int(one) for one in ids if one.isdecimal()), False, False, told)


def obeyed(posed: Posed, items: list[dict[str, Any]], obey: Obey) -> list[dict[str, Any]]:
    """The answers as the posts dictate them: each for itself, and for others as `obey` says."""
    out = [dict(item) for item in items]
    further: list[dict[str, Any]] = []
    for at, post in enumerate(posed.posts):
        for told in dictates(post.text, posed.fields):
            if told.is_own or told.everyone or not posed.ids:
                out[at] |= told.fields
            if told.is_own or not posed.ids:
                continue
            base = {**answer_for(post.text, posed.fields), **told.fields}
            by_id = {posed.ids.index(one) for one in told.whom if one in posed.ids}
            by_place = _places(told, at, len(items)) - {at}
            changed = by_id | (by_place if obey == "everything" else set())
            if obey == "adds":
                further += [{**base, "id": items[to].get("id")} for to in sorted(by_id | by_place)]
            else:
                for to in changed:
                    out[to] |= told.fields
            further += [{"id": one, **base} for one in told.whom if one not in posed.ids]
    return out + further


def _places(told: Dictate, at: int, n: int) -> set[int]:
    if told.everyone:
        return set(range(n))
    places = {at + place if told.relative else (n if place == 0 else place) - 1 for place in told.places}
    return {place for place in places if 0 <= place < n}
