"""What comes while something is under way is done together in the next turn."""

import asyncio
import gc
from collections.abc import Sequence

import pytest

from civicsky.together import MOST, Together


class Doing:
    """Doubles numbers; each turn waits until it is let go."""

    def __init__(self) -> None:
        self.turns: list[list[int]] = []
        self.begun = asyncio.Semaphore(0)
        self.go = asyncio.Semaphore(0)
        self.fails = False

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.turns.append(list(items))
        self.begun.release()
        await self.go.acquire()
        if self.fails:
            raise OSError(28, "no room")
        return [2 * item for item in items]


async def behind_another(doing: Doing, together: Together[int, int], n: int) -> list[asyncio.Task[int]]:
    """One turn is under way with 0 alone, and the numbers up to n wait: all tasks, in this order."""
    tasks = [asyncio.create_task(together(number)) for number in range(n + 1)]
    await doing.begun.acquire()
    await asyncio.sleep(0)  # each task has run until it waits
    return tasks


async def test_what_comes_while_one_is_under_way_is_done_in_one_turn_after_it() -> None:
    doing = Doing()
    tasks = await behind_another(doing, Together(doing), 3)
    doing.go.release()
    doing.go.release()
    assert await asyncio.gather(*tasks) == [0, 2, 4, 6]
    assert doing.turns == [[0], [1, 2, 3]]


async def test_a_turn_has_a_bound() -> None:
    doing = Doing()
    tasks = await behind_another(doing, Together(doing), MOST + 2)
    for _ in range(3):
        doing.go.release()
    assert await asyncio.gather(*tasks) == [2 * n for n in range(MOST + 3)]
    assert [len(turn) for turn in doing.turns] == [1, MOST, 2]


async def test_a_failure_is_that_of_all_who_share_the_turn_and_of_nobody_else() -> None:
    doing = Doing()
    together = Together(doing)
    tasks = await behind_another(doing, together, 2)
    doing.go.release()
    assert await tasks[0] == 0
    doing.fails = True
    doing.go.release()
    found = await asyncio.gather(*tasks[1:], return_exceptions=True)
    assert [type(one) for one in found] == [OSError] * 2
    doing.fails = False
    doing.go.release()
    assert await together(5) == 10


async def test_who_is_cancelled_at_its_turn_ends_after_it_and_nothing_is_done_twice() -> None:
    doing = Doing()
    tasks = await behind_another(doing, Together(doing), 3)
    doing.go.release()
    await doing.begun.acquire()  # the turn of 1, for all three
    for _ in range(2):
        tasks[1].cancel()
        await asyncio.sleep(0)
    assert not tasks[1].done()
    doing.go.release()
    assert await asyncio.gather(tasks[0], *tasks[2:]) == [0, 4, 6]
    assert doing.turns == [[0], [1, 2, 3]]
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]


async def test_who_is_cancelled_while_its_turn_fails_leaves_no_complaint() -> None:
    doing, unheard = Doing(), []
    doing.fails = True
    asyncio.get_running_loop().set_exception_handler(lambda _loop, told: unheard.append(told))
    tasks = await behind_another(doing, Together(doing), 0)
    tasks[0].cancel()
    await asyncio.sleep(0)
    doing.go.release()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    tasks.clear()
    gc.collect()
    assert not unheard


async def test_who_is_cancelled_while_it_waits_has_nothing_done() -> None:
    doing = Doing()
    tasks = await behind_another(doing, Together(doing), 2)
    tasks[1].cancel()
    doing.go.release()
    doing.go.release()
    assert [await tasks[0], await tasks[2]] == [0, 4]
    assert doing.turns == [[0], [2]]
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
