"""Whether this machine's clock is right, as far as others tell.

An HTTP date that was sent just now tells, and an event of the future. An old event tells nothing: it may be a replay.
A change is told once, and nothing else depends on it.
"""

from email.utils import parsedate_to_datetime
from typing import Final, Literal

from civicsky import log
from civicsky.model import now_us

SKEW_SECONDS: Final = 30
"""Difference between our clock and another's above which ours is suspected; an HTTP date has whole seconds."""


def skew_seconds(date: str) -> float | None:
    """How far an HTTP date that was sent just now is ahead of our clock; None when it is none."""
    try:
        return parsedate_to_datetime(date).timestamp() - now_us() / 1e6
    except (ValueError, OverflowError):  # whatever a header may hold: see the tests
        return None


def is_off(seconds: float) -> bool:
    """Whether such a difference is more than networks and rounding make."""
    return abs(seconds) > SKEW_SECONDS


class Clock:
    """What one kind of evidence says of our clock; of several that share `doubts` the first and the last are told."""

    def __init__(self, by: Literal["handshake", "event"], doubts: set[str]) -> None:
        self._by, self._doubts = by, doubts

    def look(self, host: str, ahead_seconds: float) -> None:
        """Heed how far this host's time is ahead of ours (negative: behind)."""
        before = bool(self._doubts)
        if is_off(ahead_seconds):
            self._doubts.add(self._by)
        else:
            self._doubts.discard(self._by)
        if bool(self._doubts) != before:
            name: Literal["clock_off", "clock_right"] = "clock_right" if before else "clock_off"
            log.event(name, stage="source", host=host, by=self._by, off_s=round(ahead_seconds))
