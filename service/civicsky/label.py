"""Asks a language model about posts: the ways of asking, and what makes an answer one that can be defended later.

Which server is asked, and when, is `endpoint`'s business; what is sent and how answers are read is `prompt`'s. It keeps
nothing but what it found out about the servers: what is done with an answer is its caller's business.

    endpoints = open_endpoints(settings.label, local, await ledger.abilities(model), await ledger.spent())
    slots = [Slot(endpoints, {task.name: task, ...}, settings.label) for _ in range(n)]
    ...
    question = slot.question("civic")              # what would be asked now: for the cache
    answers = await slot.ask("civic", [Asked(text, context)])
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from math import exp, isnan
from time import monotonic
from typing import Any, Final, NamedTuple, cast

from civicsky import log
from civicsky.endpoint import MAX_RAW_CHARS, Body, Endpoint, Endpoints, Line, Reply, Tokens, clock
from civicsky.errors import UNREACHABLE, BadInput, Refused, Transient, Usage
from civicsky.model import Answer, Asked, FieldLabel, Question, Spend
from civicsky.prompt import (
    Message,
    Parsed,
    Way,
    messages,
    parse_many,
    parse_one,
    prompt_hash,
    read_words,
    response_format,
    values_probability,
    word_messages,
)
from civicsky.settings import Label as LabelSettings
from civicsky.task import Task, applies

TOP_LOGPROBS: Final = 20
"""As many alternatives as OpenAI's interface allows."""
WITH_PROBABILITIES: Final = "+logprobs"
_WAYS: Final[tuple[Way, ...]] = ("schema", "json", "plain")
"""The ways that answer in JSON, strictest first."""


def abilities_of(way: str) -> tuple[str, ...]:
    """What a server may be able to do under a setting of `label.way`, best first; one that refuses gets the next."""
    ways = _WAYS if way == "auto" else (way,)
    return tuple(one + end for one in ways for end in (WITH_PROBABILITIES, ""))


def ways_of(settings: LabelSettings) -> tuple[Way, ...]:
    """How posts may come to be asked about under these settings."""
    if settings.way != "auto":
        return (settings.way,)
    return ("words", *_WAYS) if settings.model == "local" else _WAYS


class Slot:
    """One question at a time, over a line of its own. All slots share the endpoints, and so what is found out."""

    def __init__(self, endpoints: Endpoints, tasks: Mapping[str, Task], settings: LabelSettings) -> None:
        """Raises `Usage` when a task has no words and the settings ask for the way `words`."""
        for task in tasks.values():
            if settings.way == "words" and not task.words:
                raise Usage(
                    f"label.way: the task {task.name!r} has no words to ask for; "
                    "add [[words]] to its file, or set label.way to auto"
                )
        self._endpoints, self._tasks, self._settings = endpoints, tasks, settings
        self._line = endpoints.line()
        self._ladder = abilities_of("auto" if settings.way == "words" else settings.way)
        self._questions: dict[tuple[Task, Way], Question] = {}

    async def close(self) -> None:
        """Release the connections."""
        await self._line.close()

    async def probe(self) -> None:
        """Find out once, for all slots, whether the servers can be reached and what they are.

        Raises `Transient` when none can be reached, `Refused` when all refuse the key.
        """
        failed: Transient | Refused | None = None
        for server in self._endpoints.asked():
            came = clock()
            async with server.finding_out:
                if server.probed:
                    continue
                try:
                    server.check_since(came)
                    await self._listed(server)
                    if server.program == "uvicorn":
                        await self._line.version(server)
                    server.probed = True
                except (Transient, Refused) as error:
                    failed = error
        if failed and not any(server.probed for server in self._endpoints.asked()):
            raise failed

    async def models(self) -> set[str]:
        """The names of the models that the servers say they have; none when they do not list them.

        Raises `Transient` or `Refused` of the last server when none of them could say anything.
        """
        names: set[str] = set()
        failures: list[Transient | Refused] = []
        for server in self._endpoints.servers:
            try:
                names |= await self._listed(server)
            except (Transient, Refused) as error:
                failures.append(error)
        if len(failures) == len(self._endpoints.servers):
            raise failures[-1]
        return names

    async def is_well(self) -> tuple[bool, Spend]:
        """Whether a server answers what nobody can object to: then a call that broke is its post's fault; and the cost.

        Raises `Refused`.
        """
        tally = _Tally(self._line)
        try:
            tally.add(await self._endpoints.somewhere(self._line.check))
        except Transient:
            return False, self._spend(tally.cost)
        return True, self._spend(tally.cost)

    def abilities(self) -> Mapping[str, str]:
        """What was found out about the servers so far: {server's name: ability}, to be remembered."""
        return self._endpoints.abilities()

    def delay(self) -> float:
        """Seconds until some server may be called; 0: now, or so soon that the call itself may wait for it."""
        return self._endpoints.delay()

    def question(self, task_name: str) -> Question:
        """What would be asked now.

        It changes only when a server turns out not to be able to do what was tried first: then an answer's own question
        is the true one.
        """
        task = self._tasks[task_name]
        return self._question(task, self._way(task))

    async def ask(self, task_name: str, posts: Sequence[Asked]) -> list[Answer | BadInput]:
        """Label posts, in their order: one request for all of them, where the way answers in JSON.

        What is missing from a shared answer, or doubled, or of no use, is asked again alone, at once. Each `BadInput`
        has its `spend`, and as `raw` what was said of it alone. Raises `Transient` (nothing was sent if its
        `spend.calls` is 0) and `Refused`, but never when a post was answered: then the rest is `BadInput`, with the
        reason for which it was to be asked again, or `UNREACHABLE` (without `spend`: it was not asked about at all).
        """
        task = self._tasks[task_name]
        if len(posts) > 1 and self._way(task) != "words":
            return await self._ask_together(task, posts)
        return await self._ask_each(task, posts, [BadInput(UNREACHABLE) for _ in posts], [_Cost() for _ in posts])

    async def write(self, messages: Sequence[Message], max_tokens: int) -> tuple[str, Spend]:
        """A text about no post, and what it cost.

        Raises `Refused`, and `Transient` or `BadInput` with its `spend` (nothing was sent if its `calls` is 0).
        """
        tally = _Tally(self._line)
        body = Body.of(
            {"model": self._endpoints.model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        )
        try:
            reply = await self._endpoints.somewhere(
                lambda server: self._line.call(server, "POST", "/chat/completions", body)
            )
            tally.add(reply.tokens)
            return _content(reply), self._spend(tally.cost)
        except (BadInput, Transient) as error:
            error.spend = self._spend(tally.cost)
            raise

    # ---- one post or several ----

    async def _ask_together(self, task: Task, posts: Sequence[Asked]) -> list[Answer | BadInput]:
        """One request for all; then what it did not answer alone."""
        tally, began, ids = _Tally(self._line), monotonic(), _new_ids(len(posts))
        said: _Said | None = None
        found: Mapping[str, Parsed | BadInput]
        try:
            said = await self._endpoints.somewhere(lambda server: self._ask_json(server, task, posts, ids, tally))
            found = parse_many(task, said.content, ids)
        except Transient as error:
            error.spend = self._spend(tally.cost)
            raise
        except BadInput as bad:
            found = dict.fromkeys(ids, bad)
        costs = tally.cost.shared(len(posts))
        results: list[Answer | BadInput] = []
        for asked, name, cost in zip(posts, ids, costs, strict=True):
            one = found[name]
            if isinstance(one, BadInput):
                results.append(self._bad(BadInput(one.reason), "", cost))  # what it said may quote the other posts
            else:
                assert said is not None
                results.append(self._answer(task, asked, said, one, cost, began))
        return await self._ask_each(task, posts, results, costs)

    async def _ask_each(
        self, task: Task, posts: Sequence[Asked], results: list[Answer | BadInput], costs: list["_Cost"]
    ) -> list[Answer | BadInput]:
        """Ask alone about every post that has no answer yet; `costs` is what each has cost so far.

        When no server can go on, what was answered is kept.
        """
        for at, asked in enumerate(posts):
            earlier = results[at]
            if isinstance(earlier, Answer):
                continue
            tally = _Tally(self._line, costs[at])
            try:
                results[at] = await self._ask_alone(task, asked, tally)
            except (Transient, Refused) as error:
                earlier.spend = self._spend(tally.cost)
                costs[at] = tally.cost
                if any(isinstance(one, Answer) for one in results):
                    break
                if isinstance(error, Transient):
                    error.spend = self._spend(_Cost.summed(costs))
                raise
            costs[at] = tally.cost
        return results

    async def _ask_alone(self, task: Task, asked: Asked, tally: "_Tally") -> Answer | BadInput:
        """One post in a request of its own, or in one for each word."""
        began, raw = monotonic(), ""
        try:
            if self._way(task) == "words":
                said, parsed = await self._endpoints.somewhere(
                    lambda server: self._ask_words(server, task, asked, tally)
                )
            else:
                said = await self._endpoints.somewhere(lambda server: self._ask_json(server, task, [asked], (), tally))
                raw = said.content
                parsed = _with_probabilities(task, said, parse_one(task, said.content))
        except BadInput as bad:
            return self._bad(bad, raw, tally.cost)
        return self._answer(task, asked, said, parsed, tally.cost, began)

    # ---- the ways ----

    async def _ask_json(
        self, server: Endpoint, task: Task, posts: Sequence[Asked], ids: Sequence[str], tally: "_Tally"
    ) -> "_Said":
        """One JSON answer, in the strictest way that the server can."""
        if server.proven:
            return await self._descend(server, task, posts, ids, tally)
        came = clock()
        async with server.finding_out:
            if not server.proven:
                server.check_since(came)
                return await self._descend(server, task, posts, ids, tally)
        return await self._descend(server, task, posts, ids, tally)

    async def _descend(
        self, server: Endpoint, task: Task, posts: Sequence[Asked], ids: Sequence[str], tally: "_Tally"
    ) -> "_Said":
        ladder, first = self._ladder, self._ability(server)
        sent = messages(task, posts, ids)
        for ability in ladder[ladder.index(first) :]:
            way = _way_of(ability)
            max_tokens = self._settings.max_tokens * len(posts)
            form = _form(task, ability, self._endpoints.model, max_tokens, many=bool(ids))
            body = form.body(sent[1]["content"])
            try:
                reply = await self._line.call(server, "POST", "/chat/completions", body)
            except BadInput as bad:
                # Once it has shown that it can, it is this question that it refuses.
                if bad.reason != "request_rejected" or ability in server.proven or ability == ladder[-1]:
                    raise
                continue
            tally.add(reply.tokens)
            self._note(server, ability, lowered=ability != first)
            return _said(server, way, reply, _content(reply))
        raise AssertionError

    async def _ask_words(self, server: Endpoint, task: Task, asked: Asked, tally: "_Tally") -> tuple["_Said", Parsed]:
        """One word a field, for the fields that apply by the words before; a field that has no words is not asked."""
        words_for = {words.field: words for words in task.words}
        labels: dict[str, FieldLabel] = {}
        said: _Said | None = None
        for field in task.fields:
            if not applies(field, labels):
                continue
            if field.name not in words_for:
                if field.unclear:
                    labels[field.name] = FieldLabel(field.unclear, None)
                continue
            words = words_for[field.name]
            body = Body.of({
                "model": self._endpoints.model,
                "messages": word_messages(words, asked),
                "temperature": 0,
                "max_tokens": 1,
                "logprobs": True,
                "top_logprobs": TOP_LOGPROBS,
            })  # fmt: skip
            reply = await self._line.call(server, "POST", "/chat/completions", body)
            tally.add(reply.tokens)
            server.proven.add("words")
            said = _said(server, "words", reply, "")
            try:
                labels[field.name] = read_words(words, field, _first_token(reply), self._settings.margin)
            except BadInput as bad:
                bad.raw = reply.text[:MAX_RAW_CHARS]
                raise
        assert said is not None
        return said, Parsed(labels, None)

    async def _listed(self, server: Endpoint) -> set[str]:
        """The names of a server's models; none when it does not list them. Errors as of `Line.call`."""
        with suppress(BadInput):  # not every server lists its models, nor for every key
            body = (await self._line.call(server, "GET", "/models")).body
            listed = body.get("data") if isinstance(body, dict) else None
            if isinstance(listed, list):
                return {_name(item.get("id")) for item in listed if isinstance(item, dict)} - {""}
        return set()

    # ---- what servers can, and what is asked ----

    def _way(self, task: Task) -> Way:
        """How the task is asked about: with several servers as the least able one can, so that all answers compare."""
        way = self._settings.way
        if way == "words" or (way == "auto" and self._endpoints.local and task.words):
            return "words"
        known = [self._ladder.index(server.ability) for server in self._endpoints.asked() if self._knows(server)]
        return _way_of(self._ladder[max(known, default=0)])

    def _knows(self, server: Endpoint) -> bool:
        return server.ability in self._ladder

    def _ability(self, server: Endpoint) -> str:
        """What is tried first with a server: what it can, held to the way of all."""
        common = max(
            (self._ladder.index(other.ability) for other in self._endpoints.asked() if self._knows(other)), default=0
        )
        way = _way_of(self._ladder[common])
        own = server.ability if self._knows(server) else None
        if own is None or own.endswith(WITH_PROBABILITIES):
            return way + WITH_PROBABILITIES
        return way

    def _note(self, server: Endpoint, ability: str, *, lowered: bool) -> None:
        """A server has shown what it can."""
        if ability not in server.proven and (lowered or not self._knows(server)):
            log.event("label_way", stage="label", way=ability, model=self._endpoints.model, endpoint=server.name)
            server.ability = ability
        server.proven.add(ability)

    def _question(self, task: Task, way: Way) -> Question:
        if (task, way) not in self._questions:
            hashed, parameters = prompt_hash(task, way), self._parameters(task, way)
            self._questions[task, way] = Question(hashed, self._endpoints.model, parameters)
        return self._questions[task, way]

    def _parameters(self, task: Task, way: Way) -> str:
        """All that may change an answer besides prompt, model and post; asking for probabilities does not."""
        own = self._settings
        given: dict[str, Any] = {"temperature": 0, "way": way, "max_chars": own.max_chars}
        if way == "words":
            given |= {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS, "margin": own.margin}
        else:
            given["max_tokens"] = own.max_tokens
            if form := response_format(task, way, many=False):
                given["response_format"] = form["type"]
            if own.posts_per_request > 1:
                given["posts_per_request"] = own.posts_per_request
            if task.reasoning == "low":
                given["reasoning_effort"] = "low"
        if self._endpoints.fingerprint:
            given["weights"] = self._endpoints.fingerprint
        return json.dumps(given, sort_keys=True)

    # ---- results ----

    def _answer(self, task: Task, asked: Asked, said: "_Said", parsed: Parsed, cost: "_Cost", began: float) -> Answer:
        question = self._question(task, said.way)
        priced = self._endpoints.model in self._settings.prices
        return Answer(
            fields=parsed.fields,
            way=said.way,
            prompt_hash=question.prompt_hash,
            model_asked=question.model,
            model_named=said.model or question.model,
            fingerprint=self._endpoints.fingerprint or said.fingerprint,
            parameters=question.parameters,
            endpoint=said.endpoint,
            input_hash=asked.input_hash,
            tokens_in=cost.tokens.read,
            tokens_out=cost.tokens.written,
            latency_ms=round((monotonic() - began) * 1000),
            calls=cost.calls,
            context_hash=asked.context_hash,
            tokens_reasoning=cost.tokens.reasoning,
            cost=self._money(cost) if priced else None,
            currency=self._settings.currency if priced else None,
            server=said.program,
            reason=parsed.reason,
            events=asked.events or None,
        )

    def _bad(self, why: BadInput, raw: str, cost: "_Cost") -> BadInput:
        """One of its own for each post, with its own cost."""
        bad = BadInput(why.reason)
        bad.raw = (why.raw or raw)[:MAX_RAW_CHARS].encode(errors="replace").decode()
        bad.spend = self._spend(cost)
        return bad

    def _spend(self, cost: "_Cost") -> Spend:
        tokens = cost.tokens
        return Spend(
            self._endpoints.model, cost.calls, tokens.read, tokens.written, tokens.reasoning, self._money(cost)
        )

    def _money(self, cost: "_Cost") -> float:
        """By the price table; 0 for a model without a price."""
        price, tokens = self._settings.prices.get(self._endpoints.model), cost.tokens
        if price is None:
            return 0.0
        cached = price.input if price.cached is None else price.cached
        plain = tokens.read - tokens.cached
        return (plain * price.input + tokens.cached * cached + tokens.written * price.output) / 1_000_000


class _Form(NamedTuple):
    """A request without its post: what is the same in all of them is written as JSON once."""

    before: str
    behind: str
    said: int
    """Bytes of what its messages say besides."""
    max_tokens: int

    def body(self, asked: str) -> Body:
        """The request with what the user's turn says."""
        content = f"{self.before}{json.dumps(asked)}{self.behind}".encode()
        return Body(content, self.said + len(asked.encode(errors="replace")), self.max_tokens)


@lru_cache(maxsize=64)
def _form(task: Task, ability: str, model: str, max_tokens: int, *, many: bool) -> _Form:
    way, gap = _way_of(ability), secrets.token_hex(16)  # no task can hold it
    fixed, turn = messages(task, [Asked("")], ["0"] if many else ())
    body: dict[str, Any] = {
        "model": model,
        "messages": [fixed, {**turn, "content": gap}],
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    if form := response_format(task, way, many=many):
        body["response_format"] = form
    if task.reasoning == "low":
        body["reasoning_effort"] = "low"
    if ability.endswith(WITH_PROBABILITIES):
        body["logprobs"] = True
    before, behind = json.dumps(body).split(json.dumps(gap))
    return _Form(before, behind, len(fixed["content"].encode(errors="replace")), max_tokens)


class _Said(NamedTuple):
    """What a server answered, and who it was."""

    content: str
    tokens: list[tuple[str, float]]
    """(text, probability) of the content's tokens; empty when the server does not give them."""
    way: Way
    model: str
    fingerprint: str | None
    endpoint: str
    program: str | None


class _Cost(NamedTuple):
    """What was paid."""

    calls: int = 0
    tokens: Tokens = Tokens()

    def shared(self, n: int) -> "list[_Cost]":
        """In n parts as equal as whole numbers can be, whose sum is exactly this."""
        parts = [[number // n + (at < number % n) for at in range(n)] for number in (self.calls, *self.tokens)]
        return [_Cost(calls, Tokens(*tokens)) for calls, *tokens in zip(*parts, strict=True)]

    @staticmethod
    def summed(costs: "Sequence[_Cost]") -> "_Cost":
        """All together."""
        tokens = [sum(numbers) for numbers in zip(*(cost.tokens for cost in costs), strict=True)]
        return _Cost(sum(cost.calls for cost in costs), Tokens(*tokens))


class _Tally:
    """What the requests over a line cost from now on, above what was paid earlier."""

    def __init__(self, line: Line, earlier: _Cost = _Cost()) -> None:  # noqa: B008  (it cannot change)
        self._line, self._calls, self._tokens = line, earlier.calls - line.sent, earlier.tokens

    def add(self, tokens: Tokens) -> None:
        """An answer says what it cost."""
        self._tokens = Tokens(*(one + more for one, more in zip(self._tokens, tokens, strict=True)))

    @property
    def cost(self) -> _Cost:
        """So far."""
        return _Cost(self._calls + self._line.sent, self._tokens)


def _new_ids(n: int) -> list[str]:
    """Ids that no post can know, and so not speak for another."""
    ids: set[str] = set()
    while len(ids) < n:
        ids.add(secrets.token_hex(4))
    return list(ids)


def _way_of(ability: str) -> Way:
    return cast("Way", ability.removesuffix(WITH_PROBABILITIES))


def _with_probabilities(task: Task, said: _Said, parsed: Parsed) -> Parsed:
    found = values_probability(task, said.content, said.tokens, parsed.fields) if said.tokens else {}
    fields = {name: label._replace(probability=found.get(name)) for name, label in parsed.fields.items()}
    return parsed._replace(fields=fields)


# ---- reading a reply -------------------------------------------------------------------------------------------------


def _said(server: Endpoint, way: Way, reply: Reply, content: str) -> _Said:
    body = reply.body
    return _Said(
        content,
        _tokens(reply) if content else [],
        way,
        _name(body.get("model")),
        _name(body.get("system_fingerprint")) or None,
        reply.by,
        server.program,
    )


def _choice(reply: Reply) -> dict[str, Any]:
    choices = reply.body.get("choices") if isinstance(reply.body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _unusable("bad_response", reply)
    return choices[0]


def _content(reply: Reply) -> str:
    choice = _choice(reply)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise _unusable("bad_response", reply)
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        raise _unusable("refusal", reply)
    if choice.get("finish_reason") == "length":
        raise _unusable("cut_off", reply)
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        raise _unusable("empty", reply)
    return content


def _unusable(reason: str, reply: Reply) -> BadInput:
    bad = BadInput(reason)
    bad.raw = reply.text[:MAX_RAW_CHARS]
    return bad


def _first_token(reply: Reply) -> list[tuple[str, float]]:
    """(token, probability) of the alternatives for the answer's first token."""
    choice = _choice(reply)
    try:
        top = choice["logprobs"]["content"][0]["top_logprobs"]
        return [(str(item["token"]), _probability(item["logprob"])) for item in top]
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        raise BadInput("no_logprobs") from None


def _tokens(reply: Reply) -> list[tuple[str, float]]:
    """(text, probability) of the answer's tokens; empty when there are none, or of another form."""
    try:
        return [(str(item["token"]), _probability(item["logprob"])) for item in _choice(reply)["logprobs"]["content"]]
    except (KeyError, TypeError, ValueError, OverflowError):
        return []


def _probability(logprob: Any) -> float:
    value = float(logprob)
    if isnan(value):
        raise ValueError
    return exp(min(0.0, value))


def _name(value: Any) -> str:
    """What a server calls something: bounded, and text that every database takes."""
    return str(value or "")[:200].encode(errors="replace").decode()
