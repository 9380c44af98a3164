"""A clock that the installed command and a fake relay share, so that hours of a day pass in seconds."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from support.fake_relay import FakeRelay, Options
from support.misbehave import Knob
from support.world import World


@dataclass
class Clock:
    """It showed `start` (microseconds since 1970) at `since` (seconds since 1970), and goes `speed` times as fast."""

    start: int
    speed: float
    since: float

    @property
    def told(self) -> str:
        """As CIVICSKY_CLOCK takes it."""
        shown = datetime.fromtimestamp(self.start / 1e6, UTC).isoformat()
        return f"{shown}*{self.speed}@{self.since}"

    def now_us(self) -> int:
        return self.start + int((time.time() - self.since) * self.speed * 1e6)


def micros(text: str) -> int:
    """A time in UTC as microseconds since 1970."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


@asynccontextmanager
async def days(
    start: str, *plan: dict[str, Any], speed: float = 200, rate: float = 100, hosts: int = 1, **options: Any
) -> AsyncIterator[tuple[FakeRelay, Clock]]:
    """A relay whose events' times follow a clock that shows `start` (UTC) now."""
    clock = Clock(micros(start), speed, time.time())
    world = World(5, clock.start, step=round(speed * 1e6 / rate), hostile=0, accounts=50)
    relay = FakeRelay(world, Options(rate=rate, **options), hosts=hosts, plan=[Knob.read(knob) for knob in plan])
    async with relay.serve():
        yield relay, clock
