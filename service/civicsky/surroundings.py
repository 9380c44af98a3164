"""What a model reads of a post: its own text, the posts around it, and articles on what it is about.

It knows contexts and articles only by small shapes. Nothing is given back here: what cannot be had now is handed on.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from civicsky import log
from civicsky.errors import BadInput, Refused, Transient
from civicsky.events.giving import EventsShape, WriterShape
from civicsky.metrics import Metrics
from civicsky.model import Asked, Job
from civicsky.record import readable
from civicsky.settings import Label as LabelSettings
from civicsky.task import Task


class ContextsShape(Protocol):
    """See `context.Contexts`."""

    why: str

    async def of(self, task: Task, fields: dict[str, Any]) -> str:
        """The posts around one, as the task wants them."""
        ...

    def forget(self, did: str, rkey: str = "") -> None:
        """A post, or all of an account, is gone."""
        ...

    def recall(self, did: str) -> None:
        """An account is there again."""
        ...


class Item(NamedTuple):
    """What waits in the queue."""

    job: Job
    fields: dict[str, Any]
    """Of the post, as `record.extract` or the store's document has them."""
    at: int = 0
    """When it was made, in microseconds since 1970 UTC, by the relay or the author's program: the earlier one."""


def requests_of(items: Sequence[Item]) -> list[list[Item]]:
    """The posts that share a request: of one task. One that came back is asked alone: it may be what spoilt others'."""
    shared: dict[tuple[str, int], list[Item]] = {}
    for item in items:
        shared.setdefault((item.job.task, item.job.id if any(item.job.attempts) else 0), []).append(item)
    return list(shared.values())


class Surroundings:
    """Posts of the queue as they are asked about."""

    def __init__(
        self, contexts: ContextsShape | None, tasks: Mapping[str, Task], settings: LabelSettings, metrics: Metrics
    ) -> None:
        self._contexts, self._tasks, self._settings, self._metrics = contexts, tasks, settings, metrics

    async def of(self, task: str, items: Sequence[Item]) -> list[Asked | Transient]:
        """Each post as the model reads it, but for articles; in its place why its surroundings cannot be had now."""
        contexts: list[str | Transient] = [""] * len(items)
        if self._contexts is not None:
            contexts = await asyncio.gather(*(self._context(self._contexts, task, item) for item in items))
        self._note(self._contexts.why if self._contexts else "")
        found: list[Asked | Transient] = []
        for item, context in zip(items, contexts, strict=True):
            if isinstance(context, str):
                self._metrics.appview_why = "" if context else self._metrics.appview_why
                found.append(Asked(readable(item.fields)[: self._settings.max_chars], context))
            else:
                found.append(context)
        return found

    async def _context(self, contexts: ContextsShape, task: str, item: Item) -> str | Transient:
        try:
            return await contexts.of(self._tasks[task], item.fields)
        except (Transient, Refused) as error:
            return error if isinstance(error, Transient) else Transient(str(error))
        except BadInput as bad:
            return Transient(f"the public API's answer cannot be used ({bad.reason})")

    def _note(self, why: str) -> None:
        if bool(why) != bool(self._metrics.context_why):
            log.event("appview_down" if why else "appview_up", stage="label", **({"why": why} if why else {}))
        self._metrics.context_why = why


async def with_articles(
    events: EventsShape, job: Job, asked: Asked, at: int, writer: WriterShape | None, *, named: bool
) -> Asked:
    """The post, made at `at`, with articles if there are some. Raises as `events.Events.of`.

    A probe is given none: anchors had none.
    """
    given = None if job.is_probe else await events.of(asked.text, at, writer, named=named)
    return given.to(asked) if given else asked
