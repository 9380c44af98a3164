"""Posts of GOLD with the articles that the service would give them: which, when, and what that costs."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from civicsky.context import key_time, patiently
from civicsky.errors import Failed, Transient
from civicsky.events.events import Events
from civicsky.events.giving import WriterShape, is_unclear
from civicsky.model import Answer, Asked, Spend
from civicsky.research.gold import Item
from civicsky.settings import Events as EventsSettings
from civicsky.task import Task

FILE: Final = "events.db"


class Articles:
    """Gives articles with posts. A post whose time nobody knows gets none: an article could be later than it."""

    def __init__(self, events: Events, model: str, items: Iterable[Item]) -> None:
        self._events, self._model = events, model
        self._times = {item.key: made for item in items if (made := made_at(item)) is not None}
        self.spends: list[Spend] = []
        """What this model's summaries cost, in this run and before: each is made once."""
        self.asked_twice = 0

    async def named(self, asked: Mapping[str, Asked], writer: WriterShape) -> dict[str, Asked]:
        """Of these, by item, those that name an event, with articles. Raises `Failed` when a summary is not had."""
        return await self._given(asked, writer, named=True)

    async def unclear(
        self, task: Task, asked: Mapping[str, Asked], answers: Mapping[str, Answer], writer: WriterShape
    ) -> dict[str, Asked]:
        """Of these those whose answer leaves a field unclear, had no articles, and can have some now."""
        open_ones = {
            key: asked[key]
            for key, answer in answers.items()
            if not asked[key].events and is_unclear(task, answer, self._events.unclear)
        }
        found = await self._given(open_ones, writer, named=False)
        self.asked_twice = len(found)
        return found

    def told(self, asked: Mapping[str, Asked]) -> dict[str, Any]:
        """For the figures."""
        return {
            "given": sum(bool(post.events) for post in asked.values()),
            "asked_twice": self.asked_twice,
            "without_time": sum(key not in self._times for key in asked),
            "summaries": len(self.spends),
        }

    async def paid(self, summaries: Sequence[tuple[int, Spend]]) -> None:
        """See `events.events.Paid`."""
        self.spends += [spend for _, spend in summaries if spend.model == self._model]

    async def _given(self, asked: Mapping[str, Asked], writer: WriterShape, *, named: bool) -> dict[str, Asked]:
        found = {}
        for key, post in asked.items():
            if key not in self._times:
                continue
            try:
                given = await patiently(partial(self._events.of, post.text, self._times[key], writer, named=named))
            except Transient as error:
                raise Failed(
                    f"{error}; what was answered is kept: run the same command again when it is well"
                ) from None
            if given:
                found[key] = given.to(post)
        return found


@asynccontextmanager
async def articles_of(
    settings: EventsSettings | None, out: Path, model: str, items: Sequence[Item]
) -> AsyncIterator[Articles | None]:
    """The articles of the settings' folder, in a database that lies in the report's folder; None without a folder."""
    if settings is None:
        yield None
        return
    paid: list[Any] = []

    async def pay(summaries: Sequence[tuple[int, Spend]]) -> None:
        await paid[0].paid(summaries)

    events = await Events.open(settings, out / FILE, None if model == "local" else model, pay)
    try:
        articles = Articles(events, model, items)
        paid.append(articles)
        await events.sync()
        yield articles
    finally:
        await events.close()


def made_at(item: Item) -> int | None:
    """When a post was made, in microseconds: by its column `event_at` and by its address, the earlier one."""
    times = [item.at, key_time((item.uri or "").rpartition("/")[2])]
    return min((one for one in times if one is not None), default=None)
