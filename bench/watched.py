"""The collecting half as `civicsky collect` runs it, with one timer more on its loop, which says how late it was.

    python -m bench.watched FILE collect --data-dir DIR --relay URL

A timer is due each 5 ms. When the loop stands still for 50 ms, ten of them are late, by 50, 45, 40 ms and so on: so
what is measured is how long something would wait that becomes ready at any moment, and a long stall counts for as long
as it is. uvloop's timers are themselves up to 1 ms late. At its end FILE has two doubles for each: when it was due
(CLOCK_MONOTONIC), and by how many seconds it was late.
"""

import argparse
import asyncio
import sys
from array import array
from pathlib import Path
from time import monotonic
from typing import Final

import uvloop

from civicsky import app, log
from civicsky.loading import load
from civicsky.metrics import Metrics
from civicsky.settings import Settings

EVERY: Final = 0.005


class Timer:
    """Notes how late it is."""

    def __init__(self) -> None:
        self.noted = array("d")
        self._loop = asyncio.get_running_loop()
        self._due = monotonic() + EVERY
        self._loop.call_later(EVERY, self._tick)

    def _tick(self) -> None:
        now = monotonic()
        while self._due <= now:
            self.noted.extend((self._due, now - self._due))
            self._due += EVERY
        self._loop.call_later(max(0.001, self._due - now), self._tick)


async def watched(settings: Settings, file: Path) -> int:
    timer = Timer()
    try:
        return (await app.serve(settings, "collect", drain=False, metrics=Metrics())).exit_code
    finally:
        with file.open("wb") as stream:
            timer.noted.tofile(stream)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("what", choices=["collect"])
    parser.add_argument("--data-dir")
    parser.add_argument("--relay")
    told = parser.parse_args()
    settings = load(None, {"data_dir": told.data_dir, "source.relays": [told.relay]})
    log.configure(settings.log)
    return uvloop.run(watched(settings, told.file))


if __name__ == "__main__":
    sys.exit(main())
