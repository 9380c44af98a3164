"""The openings of `source.window` as they happen: whether the stream may be held now, and until when.

It goes by `faults.clock`, which is the real one outside of tests. `window.py` has the reckoning.
"""

import asyncio
from math import inf
from typing import Final

from civicsky import faults, log
from civicsky.lifecycle import happened
from civicsky.metrics import Metrics
from civicsky.model import Opened, Opening, format_time
from civicsky.settings import Window as WindowSettings
from civicsky.window import is_open, next_edge, opened, was_closed, window_of

LONGEST_WAIT: Final = 60.0
"""Seconds until the clock is looked at again: it may have been set, or the machine have slept."""
SLACK_US: Final = 30_000_000
"""What an event's time may lie behind its arrival. Less than a minute, which is the shortest time between openings."""


class Gate:
    """Open while the stream may be held: always, when there is no window.

    `last` is the newest opening that the journal knows: its limits hold on after a restart.
    """

    def __init__(self, settings: WindowSettings, metrics: Metrics, last: Opened | None = None) -> None:
        self._settings, self._metrics = settings, metrics
        self._window = window_of(settings.begin, settings.to, settings.zone) if settings.is_set else None
        self._nudged = asyncio.Event()
        self._posts = (last.opened, last.posts) if last else (0, 0)
        self._over: tuple[int, str] | None = None
        if last is not None and (why := self._opening(last.opened, last.closes).reached(last.posts, last.kept)):
            self._over = (last.opened, why)
        self._edge = 0
        self._told: tuple[bool, int] | None = None
        self.opening: Opening | None = None
        """The present one; None while closed, and without a window."""

    @property
    def leaves_out(self) -> bool:
        """Whether what happens in closed hours is never asked for."""
        return self._window is not None and self._settings.resume == "live"

    def is_open(self) -> bool:
        """Whether the stream may be held now; takes note of it, in the log and the metrics, when that changes."""
        if self._window is None:
            return True
        now = faults.clock.now_us()
        self._edge, why = next_edge(self._window, now), ""
        self.opening = None
        if is_open(self._window, now):
            began = opened(self._window, now)
            if self._over is not None and self._over[0] == began:
                why, self._edge = self._over[1], next_edge(self._window, self._edge)
            else:
                self.opening = self._opening(began, self._edge)
        self._tell(why)
        return self.opening is not None

    def seconds_left(self) -> float:
        """Seconds until the next opening or closing."""
        return inf if self._window is None else max(0, self._edge - faults.clock.now_us()) / 1e6 / faults.clock.speed

    async def wait(self) -> None:
        """Until it opens or closes, an opening is ended, or `nudge`. Ask `is_open` before, and again after."""
        while (left := self.seconds_left()) > 0:
            if await happened(self._nudged, min(left, LONGEST_WAIT)):
                break
        self._nudged.clear()

    def nudge(self) -> None:
        """End the present `wait`, or else the next one."""
        self._nudged.set()

    def end(self, opening: Opening, why: str) -> None:
        """End an opening before its hours are over."""
        if self._over is None or self._over[0] != opening.opened:
            self._over = (opening.opened, why)
            self.nudge()

    def count(self, opening: Opening | None, posts: int) -> None:
        """New posts came in; ends the opening when that is its limit."""
        if opening is None or not posts:
            return
        before = self._posts[1] if self._posts[0] == opening.opened else 0
        self._posts = (opening.opened, before + posts)
        if why := opening.reached(before + posts, 0):
            self.end(opening, why)

    def was_closed_since(self, at: int) -> bool:
        """Whether hours that are left out lie between an event of this time and now."""
        now = faults.clock.now_us()
        return self._window is not None and at + SLACK_US < now and was_closed(self._window, at + SLACK_US, now)

    def _opening(self, began: int, closes: int) -> Opening:
        return Opening(began, closes, self._settings.resume, self._settings.max_posts, self._settings.max_kept)

    def _tell(self, why: str) -> None:
        state = (self.opening is not None, self._edge)
        if state == self._told:
            return
        self._told, until = state, format_time(self._edge)
        if self.opening is not None:
            log.event("window_opened", stage="source", until=until, resume=self.opening.resume)
            self._metrics.window_why = ""
        else:
            log.event("window_closed", stage="source", until=until, why=why)
            self._metrics.window_why = "window: closed until " + until + (f", {why}" if why else "")
