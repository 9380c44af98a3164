"""Which workers are there, by what they last said. Pure: `now` is passed in, in seconds."""

from collections.abc import Callable
from math import inf
from typing import Final, NamedTuple

from civicsky import log
from civicsky.workers.messages import Beat

BEAT_SECONDS: Final = 2.0
ASK_SECONDS: Final = 1.0
"""So long an idle worker waits for the reply to a beat before it counts the time to the next one."""
SILENT_SECONDS: Final = 8.0
"""A worker that is silent for so long counts as gone."""
MAX_WORKERS: Final = 1_000
"""More are not listed; they work all the same. A record has some hundred bytes."""
NEWS: Final = 200
NEWS_SECONDS: Final = 3.0
"""So many workers may come or go at once, and then one every few seconds, to be told in the log."""


class Seen(NamedTuple):
    """A worker's last beat, and when it came."""

    beat: Beat
    at: float


class Roster:
    """The workers."""

    def __init__(self, joined: Callable[[Beat], None], left: Callable[[Beat, str], None]) -> None:
        """Those two are told of each that comes, and of each that goes, and how: `leaving` or `silent`."""
        self._seen: dict[str, Seen] = {}
        self._joined, self._left = joined, left
        self._left_since = ""
        """Why the last one that left did so, where it said."""
        self._foreign_at = -inf
        """When somebody spoke in a version that we do not know."""
        self._now = 0.0
        self._news = 0.0
        """When all that was told would have been told, at one each NEWS_SECONDS."""

    def heard(self, beat: Beat, now: float) -> None:
        """A worker said how it is."""
        self._now = now
        known = beat.worker in self._seen
        if beat.leaving:
            self._left_since = log.harmless(beat.why)
            if known:
                del self._seen[beat.worker]
                if self._may_tell():
                    self._left(beat, "leaving")
        elif known or len(self._seen) < MAX_WORKERS:
            self._seen[beat.worker] = Seen(beat, now)
            if not known and self._may_tell():
                self._joined(beat)

    def heard_foreign(self, now: float) -> bool:
        """Somebody spoke in a version that we do not know. Whether that is news."""
        news = now - self._foreign_at > SILENT_SECONDS
        self._now = self._foreign_at = now
        return news and self._may_tell()

    def rests(self, worker: str, why: str) -> None:
        """Its server could not be used just now. It says more itself with its next word."""
        if worker in self._seen:
            beat, at = self._seen[worker]
            self._seen[worker] = Seen(beat._replace(why=beat.why or why), at)

    def turn(self, now: float) -> None:
        """Time has passed: who is silent for too long is gone."""
        self._now = now
        for name, seen in list(self._seen.items()):
            if now - seen.at > SILENT_SECONDS:
                del self._seen[name]
                if self._may_tell():
                    self._left(seen.beat, "silent")

    def there(self) -> list[Beat]:
        """All that are there, by name."""
        return [self._seen[name].beat for name in sorted(self._seen)]

    def working(self, key: str, *, besides: str = "") -> list[Beat]:
        """Those that take the jobs of this model."""
        return [beat for beat in self.there() if not beat.why and beat.worker != besides and beat.key in {key, ""}]

    def shortage(self, key: str, model: str) -> str:
        """Why nobody takes the jobs of this model, and what to do; empty when somebody does."""
        there = self.there()
        if self.working(key):
            return ""
        if resting := [beat for beat in there if beat.key in {key, ""}]:
            return f"of {len(resting)} label workers none takes questions: {log.harmless(resting[0].why)}"
        if there:
            theirs = ", ".join(sorted({log.harmless(beat.model[:60]) for beat in there})[:3])
            return (
                f"{len(there)} label workers are there, but with another model or other weights ({theirs}, here "
                f"{model}); give them the same --model"
            )
        return "no label worker is there" + (f"; the last one left: {self._left_since}" if self._left_since else "")

    def _may_tell(self) -> bool:
        """Whoever is let into NATS can come and go as often as he likes; the log is no place for that."""
        self._news = max(self._news, self._now)
        if self._news - self._now >= NEWS * NEWS_SECONDS:
            return False
        self._news += NEWS_SECONDS
        return True
