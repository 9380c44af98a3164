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
from math import exp
from time import monotonic
from typing import Any, Final, NamedTuple, cast

from civicsky import log
from civicsky.endpoint import MAX_RAW_CHARS, Endpoint, Endpoints, Line, Reply, Tokens
from civicsky.errors import BadInput, Refused, Transient, Usage
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
        self._hashes: dict[tuple[str, Way], str] = {}

    async def close(self) -> None:
        """Release the connections."""
        await self._line.close()

    async def probe(self) -> None:
        """Find out once, for all slots, whether the servers can be reached and what they are.

        Raises `Transient` when none can be reached, `Refused` when all refuse the key.
        """
        failed: Transient | Refused | None = None
        for server in self._endpoints.asked():
            async with server.finding_out:
                if server.probed:
                    continue
                try:
                    if server.resting:  # another slot has just tried
                        raise Transient(f"model at {server.name} cannot be reached")
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

        What is missing from a shared answer, or doubled, or of no use, is asked again alone, at once. Raises `Transient`
        (nothing was sent if its `spend.calls` is 0) and `Refused`, but never when a post was answered: then the rest is
        `BadInput`, with the reason for which it was asked again.
        """
        task = self._tasks[task_name]
        if len(posts) > 1 and self._way(task) != "words":
            return await self._ask_together(task, posts)
        return await self._ask_each(task, posts, {}, [BadInput("unreachable") for _ in posts])

    # ---- one post or several ----

    async def _ask_together(self, task: Task, posts: Sequence[Asked]) -> list[Answer | BadInput]:
        tally, began = _Tally(self._line), monotonic()
        ids = _new_ids(len(posts))
        good: dict[int, Answer] = {}
        try:
            said = await self._endpoints.somewhere(lambda server: self._ask_json(server, task, posts, ids, tally))
            found = _read(lambda: parse_many(task, said.content, ids), said)
        except Transient as error:
            error.spend = self._spend(tally.total())
            raise
        except BadInput as bad:
            found = dict.fromkeys(ids, bad)
        shares = tally.shares(len(posts))
        bads = []
        for at, (asked, name) in enumerate(zip(posts, ids, strict=True)):
            one = found[name]
            if isinstance(one, BadInput):
                bad = BadInput(one.reason)
                bad.raw, bad.spend = one.raw or said.raw, self._spend(shares[at])
                bads.append(bad)
            else:
                good[at] = self._answer(task, asked, said, one.fields, one.reason, shares[at], began)
                bads.append(BadInput(""))
        return await self._ask_each(task, posts, good, bads)

    async def _ask_each(
        self, task: Task, posts: Sequence[Asked], good: dict[int, Answer], bads: Sequence[BadInput]
    ) -> list[Answer | BadInput]:
        """Ask alone about every post that is not among the `good`; `bads` has for each why, and what that cost."""
        found: dict[int, Answer | BadInput] = dict(good)
        for at, asked in enumerate(posts):
            if at in good:
                continue
            try:
                found[at] = await self._ask_alone(task, asked, _cost_of(bads[at].spend))
            except (Transient, Refused) as error:
                if not any(isinstance(one, Answer) for one in found.values()):
                    ...
                    raise
                break
        return [found.get(at, bads[at]) for at in range(len(posts))]
