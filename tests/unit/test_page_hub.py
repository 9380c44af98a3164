"""Those who watch: each with a bound, and none in the way of another."""

import asyncio
import json
from collections.abc import Iterator

from civicsky.page import hub
from civicsky.page.hub import HEARTBEAT, LISTENERS, QUEUED, Hub, event


def read(part: bytes | None) -> list[tuple[str, object]]:
    assert part is not None
    found = []
    for one in part.decode().split("\n\n")[:-1]:
        name, _, data = one.partition("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


async def test_who_joins_gets_what_holds_now_then_the_posts_then_the_news() -> None:
    mine = Hub(lambda: [event("reset", {}), event("posts", [1])])
    mine.replace("state", 1)
    mine.replace("state", 2)
    listener = mine.join()
    assert listener
    assert mine.somebody.is_set()
    mine.put("gone", ["x"])
    got = [*read(await listener.next()), *read(await listener.next()), *read(await listener.next())]
    assert got == [("state", 2), ("reset", {}), ("posts", [1]), ("gone", ["x"])]


async def test_the_list_is_told_part_by_part_as_it_is_read_and_before_all_news() -> None:
    made: list[int] = []

    def parts() -> Iterator[bytes]:
        for n in range(3):
            made.append(n)
            yield event("posts", [n])

    mine = Hub(parts)
    listener = mine.join()
    assert listener
    mine.put("gone", ["x"])
    got = [read(await listener.next())[0] for _ in range(2)]
    assert made == [0, 1]
    got += [read(await listener.next())[0] for _ in range(2)]
    assert got == [("posts", [0]), ("posts", [1]), ("posts", [2]), ("gone", ["x"])]


async def test_a_slow_listener_gets_the_newest_state_alone() -> None:
    mine = Hub(list)
    listener = mine.join()
    assert listener
    for n in range(10_000):
        mine.replace("state", n)
    assert read(await listener.next()) == [("state", 9_999)]


async def test_who_does_not_read_is_let_go_and_others_are_not() -> None:
    mine = Hub(list)
    slow, quick = mine.join(), mine.join()
    assert slow
    assert quick
    for n in range(QUEUED + 1):
        mine.put("posts", [n])
        assert read(await quick.next()) == [("posts", [n])]
    assert slow.is_over
    assert await slow.next() is None
    mine.put("posts", ["more"])
    assert await slow.next() is None
    assert not quick.is_over


async def test_there_is_a_bound_for_how_many_watch_and_room_again_when_one_goes() -> None:
    mine = Hub(list)
    joined = [mine.join() for _ in range(LISTENERS)]
    assert mine.join() is None
    assert mine.is_full
    assert joined[0]
    mine.leave(joined[0])
    assert mine.join()
    for one in joined[1:]:
        assert one
        mine.leave(one)
    assert mine.somebody.is_set()


async def test_a_quiet_listener_hears_a_heartbeat(monkeypatch: object) -> None:
    mine = Hub(list)
    listener = mine.join()
    assert listener
    before, hub.HEARTBEAT_SECONDS = hub.HEARTBEAT_SECONDS, 0.01  # type: ignore[misc]
    try:
        assert await listener.next() == HEARTBEAT
    finally:
        hub.HEARTBEAT_SECONDS = before  # type: ignore[misc]


async def test_at_the_end_everybody_is_let_go_who_waits_too() -> None:
    mine = Hub(list)
    listener = mine.join()
    assert listener
    waiting = asyncio.create_task(listener.next())
    await asyncio.sleep(0)
    mine.end()
    assert await waiting is None


def test_nothing_in_an_event_can_end_it() -> None:
    told = event("posts", ["a\n\nevent: x\r\n\u2028\ud800"])
    assert told.count(b"\n") == 3
    assert told.isascii()
