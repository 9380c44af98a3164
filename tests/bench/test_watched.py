"""The timer that says how late a loop is."""

import asyncio
from time import monotonic, sleep

from bench.watched import EVERY, Timer


async def test_a_stall_makes_every_moment_in_it_late() -> None:
    timer = Timer()
    await noted_more(timer, 0)
    before, began = len(timer.noted), monotonic()
    sleep(0.1)  # noqa: ASYNC251  (the stall)
    ended = monotonic()
    await noted_more(timer, before)
    noted = list(zip(timer.noted[before::2], timer.noted[before + 1 :: 2], strict=True))
    inside = [(due, late) for due, late in noted if began <= due < ended]
    assert len(inside) >= 19  # 0.1 s of 5 ms each
    assert all(late >= ended - due for due, late in inside)


async def noted_more(timer: Timer, than: int) -> None:
    while len(timer.noted) == than:  # noqa: ASYNC110  (the timer tells nobody)
        await asyncio.sleep(EVERY)
