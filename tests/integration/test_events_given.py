"""What `Events` gives with posts: real folder, real index, and a writer of summaries that does as told."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from civicsky.errors import BadInput, Refused, Transient
from civicsky.events import events as module
from civicsky.events.events import Events
from civicsky.events.giving import Given
from civicsky.ledger import Ledger
from civicsky.model import Spend, parse_time
from civicsky.prompt import Message
from civicsky.settings import Events as EventsSettings
from support.events import EVENTS, article, both, write

POST = EVENTS[0]["posts"][0]
AT = parse_time("2026-11-22T12:00:00Z") or 0
ONE = Spend("m", 1, 100, 10, 0, 0.5)


class Writer:
    """Says, in turn, what it is told to; the last one again and again."""

    def __init__(self, *says: str | Exception) -> None:
        self.says, self.asked = list(says), list[str]()

    async def write(self, messages: Sequence[Message], max_tokens: int) -> tuple[str, Spend]:
        assert max_tokens > 0
        self.asked.append(messages[1]["content"])
        await asyncio.sleep(0)
        said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if isinstance(said, Exception):
            if isinstance(said, BadInput | Transient):
                said.spend = ONE
            raise said
        return said, ONE


class World:
    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self.folder, self.ledger = folder, ledger
        self.news = folder / "news"

    @asynccontextmanager
    async def events(self, model: str | None = "m", **settings: Any) -> AsyncIterator[Events]:
        async def paid(summaries: Sequence[tuple[int, Spend]]) -> None:
            await self.ledger.paid(summaries)

        chosen = EventsSettings(folder=self.news, **settings)
        opened = await Events.open(chosen, self.folder / "events.db", model, paid)
        try:
            await opened.sync()
            yield opened
        finally:
            await opened.close()

    async def calls(self) -> int:
        """Of whatever day: a midnight may come between two."""
        ((calls,),) = await self.ledger.database.rows("SELECT coalesce(sum(calls), 0) FROM spend")
        return int(calls)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    ledger = await Ledger.open(tmp_path / "ledger.db")
    write(tmp_path / "news" / "a.jsonl", both(0))
    yield World(tmp_path, ledger)
    await ledger.close()


async def of(events: Events, writer: Writer | None, text: str = POST, at: int = AT, *, named: bool = True) -> Given:
    given = await events.of(text, at, writer, named=named)
    assert given is not None
    return given


def summaries(given: Given) -> list[list[str]]:
    return [one["articles"] for one in json.loads(given.told)["summaries"]]


async def test_many_who_need_a_summary_at_once_wait_for_the_one_that_is_made(world: World) -> None:
    writer = Writer("Summed up.")
    async with world.events() as events:
        found = await asyncio.gather(*(of(events, writer) for _ in range(8)))
    assert len(writer.asked) == 2, "one a side"
    assert {given.text for given in found} == {found[0].text}
    assert found[0].text.count('"Summed up."') == 2
    assert await world.calls() == 2


async def test_a_summary_of_what_came_out_after_a_post_does_not_reach_that_post(world: World) -> None:
    write(
        world.news / "a.jsonl", [article(0, date="2026-11-21T00:00:00Z"), article(0, "right", "2026-11-19T00:00:00Z")]
    )
    # The same text under another title is farther from the post.
    write(world.news / "b.jsonl", [{**article(0), "title": "Families wait for what comes next"}])
    writer, between = Writer("Summed up."), parse_time("2026-11-20T12:00:00Z") or 0
    async with world.events(max_articles=2) as events:
        first = await of(events, writer)
        second = await of(events, writer, at=between)
    used = {one["id"]: one["at"] for one in json.loads(second.told)["articles"]}
    assert all(at <= "2026-11-20T12:00:00.000Z" for at in used.values())
    assert sorted(len(one) for one in summaries(first)) == [1, 1]
    assert summaries(second) == [one for one in summaries(first) if one[0] in used], "one is of a later article"
    assert len(summaries(second)) == 1
    assert EVENTS[0]["left"][1][:30] in second.text
    assert len(writer.asked) == 2


async def test_a_summary_of_what_is_too_far_from_a_post_does_not_reach_that_post(world: World) -> None:
    near = json.loads((await _given_near(world)).told)["articles"]
    async with world.events(max_distance=min(one["distance"] for one in near) + 1e-6) as events:
        given = await of(events, Writer("Summed up."))
    assert [one["id"] for one in json.loads(given.told)["articles"]] == [near[0]["id"]]
    assert summaries(given) == [[near[0]["id"]]]


async def _given_near(world: World) -> Given:
    async with world.events() as events:
        return await of(events, Writer("Summed up."))


async def test_after_three_vain_answers_articles_begin_instead_and_all_is_counted(world: World) -> None:
    write(world.news / "a.jsonl", [article(0)])
    writer = Writer(BadInput("refusal"))
    async with world.events() as events:
        for _ in range(5):
            given = await of(events, writer)
            assert summaries(given) == []
            assert EVENTS[0]["left"][0] in given.text
    assert len(writer.asked) == 3
    assert await world.calls() == 3


async def test_a_server_that_is_down_leaves_the_summary_to_be_asked_for_and_its_cost_is_counted(world: World) -> None:
    write(world.news / "a.jsonl", [article(0)])
    writer = Writer(*(Transient("down") for _ in range(5)), "Summed up.")
    async with world.events() as events:
        for _ in range(5):
            with pytest.raises(Transient):
                await of(events, writer)
        assert len(summaries(await of(events, writer))) == 1
    assert await world.calls() == 6


async def test_who_may_ask_nobody_gets_what_there_is(world: World) -> None:
    async with world.events() as events:
        assert summaries(await of(events, None)) == []
        await of(events, Writer("Summed up."))
        assert len(summaries(await of(events, None))) == 2
    assert await world.calls() == 2


@pytest.mark.parametrize("settings", [{"model": None}, {"summarise": False}])
async def test_without_a_model_for_it_nobody_is_asked_for_summaries(world: World, settings: dict[str, Any]) -> None:
    writer = Writer(Refused("never"))
    async with world.events(**settings) as events:
        assert summaries(await of(events, writer)) == []
    assert writer.asked == []


async def test_what_a_crash_kept_from_being_counted_is_counted_once_by_the_next_start(world: World) -> None:
    async def dies(_: Sequence[tuple[int, Spend]]) -> None:
        raise RuntimeError

    events = await Events.open(EventsSettings(folder=world.news), world.folder / "events.db", "m", dies)
    await events.sync()
    with pytest.raises(RuntimeError):
        await events.of(POST, AT, Writer("Summed up."), named=True)
    await events.close()
    assert await world.calls() == 0
    for _ in range(2):
        async with world.events():
            assert await world.calls() == 1
    async with world.events() as again:
        assert len(summaries(await of(again, None))) == 1, "and the summary is there"


async def test_the_folder_is_looked_at_again_while_it_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    async with world.events(model=None) as events, asyncio.timeout(60):
        watch = asyncio.create_task(events.run())
        (world.news / "a.jsonl").unlink()
        while await events.of(POST, AT, None, named=True):  # noqa: ASYNC110  (nobody tells)
            await asyncio.sleep(0.01)
        write(world.news / "b.jsonl", both(0))
        while not await events.of(POST, AT, None, named=True):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        watch.cancel()


async def test_a_post_that_names_nothing_is_given_nothing_until_it_is_asked_about_again(world: World) -> None:
    hint = "that vote of the senate at four in the morning was about the border and asylum claims"
    async with world.events(max_distance=1.0) as events:
        assert await events.of("nothing here is like it", AT, None, named=True) is None
        given = await events.of("My cat. He is a bill.", AT, None, named=False)
        assert given is not None
        assert json.loads(given.told)["why"] == "unclear"
        assert (await of(events, None, hint)).text
    async with world.events(max_distance=0.0) as events:
        assert await events.of(POST, AT, None, named=False) is None
