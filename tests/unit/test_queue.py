import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from civicsky.queue import Closed, Queue


async def started(doing: Awaitable[Any]) -> "asyncio.Task[Any]":
    """A task that has run until it waits or ends."""
    task = asyncio.ensure_future(doing)
    assert isinstance(task, asyncio.Task)
    await settled()
    return task


async def settled() -> None:
    """Let every task that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_items_come_out_in_the_order_in_which_they_went_in() -> None:
    queue: Queue[int] = Queue(10, 100)
    for n in range(5):
        await queue.put(n, 1)
    assert len(queue) == 5
    assert [await queue.get() for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(queue) == 0


async def test_a_reader_waits_for_an_item() -> None:
    queue: Queue[str] = Queue(1, 100)
    reader = await started(queue.get())
    assert not reader.done()
    await queue.put("item")
    assert await reader == "item"


async def test_a_writer_waits_while_there_are_as_many_items_as_may_be() -> None:
    queue: Queue[int] = Queue(2, 100)
    await queue.put(1)
    await queue.put(2)
    writer = await started(queue.put(3))
    assert (writer.done(), len(queue)) == (False, 2)
    assert await queue.get() == 1
    await writer
    assert [await queue.get(), await queue.get()] == [2, 3]


async def test_a_writer_waits_while_there_are_as_many_bytes_as_may_be() -> None:
    queue: Queue[str] = Queue(100, 10)
    await queue.put("a", 4)
    await queue.put("b", 6)
    writer = await started(queue.put("c", 1))
    assert (writer.done(), len(queue)) == (False, 2)
    assert await queue.get() == "a"
    await writer
    assert len(queue) == 2


async def test_room_for_some_bytes_is_not_room_for_more() -> None:
    queue: Queue[str] = Queue(100, 10)
    await queue.put("a", 4)
    await queue.put("b", 4)
    large = await started(queue.put("large", 7))
    assert await queue.get() == "a"
    await settled()
    assert not large.done()
    assert await queue.get() == "b"
    await large
    assert await queue.get() == "large"


async def test_an_item_larger_than_the_bound_is_let_in_when_the_queue_is_empty() -> None:
    queue: Queue[str] = Queue(100, 10)
    await queue.put("huge", 1000)
    writer = await started(queue.put("tiny", 0))
    assert not writer.done()
    assert await queue.get() == "huge"
    await writer
    assert await queue.get() == "tiny"


async def test_items_without_a_size_are_bounded_by_their_number_only() -> None:
    queue: Queue[int] = Queue(3, 1)
    for n in range(3):
        await queue.put(n)
    assert not (await started(queue.put(3))).done()
    await queue.close(discard=True)


async def test_what_is_left_in_a_closed_queue_can_still_be_read() -> None:
    queue: Queue[int] = Queue(10, 100)
    await queue.put(1)
    await queue.put(2)
    await queue.close()
    assert [await queue.get(), await queue.get()] == [1, 2]
    with pytest.raises(Closed):
        await queue.get()


async def test_what_is_left_in_a_closed_queue_is_gone_when_it_is_to_be_discarded() -> None:
    queue: Queue[int] = Queue(10, 100)
    await queue.put(1, 50)
    await queue.close(discard=True)
    assert len(queue) == 0
    with pytest.raises(Closed):
        await queue.get()


async def test_nothing_can_be_put_into_a_closed_queue() -> None:
    queue: Queue[int] = Queue(10, 100)
    await queue.close()
    with pytest.raises(Closed):
        await queue.put(1)
    assert len(queue) == 0


async def test_closing_wakes_every_writer_and_every_reader() -> None:
    full: Queue[int] = Queue(1, 100)
    await full.put(0)
    writers = [await started(full.put(n)) for n in (1, 2)]
    empty: Queue[int] = Queue(1, 100)
    readers = [await started(empty.get()) for _ in range(2)]
    await full.close()
    await empty.close()
    found = await asyncio.gather(*writers, *readers, return_exceptions=True)
    assert [type(one) for one in found] == [Closed] * 4
    assert await full.get() == 0


async def test_closing_twice_is_no_error() -> None:
    queue: Queue[int] = Queue(1, 100)
    await queue.put(1)
    await queue.close()
    await queue.close(discard=True)
    with pytest.raises(Closed):
        await queue.get()


async def test_a_reader_that_was_cancelled_takes_nothing() -> None:
    queue: Queue[int] = Queue(1, 100)
    reader = await started(queue.get())
    reader.cancel()
    await asyncio.wait([reader])
    await queue.put(1)
    assert await queue.get() == 1


async def test_a_writer_that_was_cancelled_leaves_nothing() -> None:
    queue: Queue[int] = Queue(1, 100)
    await queue.put(1)
    writer = await started(queue.put(2))
    writer.cancel()
    await asyncio.wait([writer])
    assert await queue.get() == 1
    assert len(queue) == 0
    await queue.put(3)
    assert await queue.get() == 3


@pytest.mark.parametrize(("items", "size"), [(1, 1000), (3, 1000), (100, 7), (2, 5)])
async def test_many_writers_and_readers_lose_nothing_and_keep_the_bounds(items: int, size: int) -> None:
    queue: Queue[tuple[int, int]] = Queue(items, size)
    most = 0
    found: list[tuple[int, int]] = []

    async def write(writer: int) -> None:
        nonlocal most
        for n in range(50):
            await queue.put((writer, n), 2)
            most = max(most, len(queue))

    async def read() -> None:
        while True:
            try:
                found.append(await queue.get())
            except Closed:
                return

    async with asyncio.TaskGroup() as readers:
        for _ in range(3):
            readers.create_task(read())
        async with asyncio.TaskGroup() as writers:
            for writer in range(4):
                writers.create_task(write(writer))
        await queue.close()
    assert sorted(found) == [(writer, n) for writer in range(4) for n in range(50)]
    for writer in range(4):
        assert [n for who, n in found if who == writer] == list(range(50))
    assert most <= min(items, size // 2)
