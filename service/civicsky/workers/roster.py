"""Which workers are there, by what they last said. Pure: `now` is passed in, in seconds."""

from collections.abc import Callable
from typing import Final, NamedTuple

from civicsky.workers.messages import Beat

BEAT_SECONDS: Final = 2.0
SILENT_SECONDS: Final = 8.0
"""A worker that is silent for so long counts as gone."""
MAX_WORKERS: Final = 1_000
"""More are not listed; they work all the same. A record has some hundred bytes."""


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

    def heard(self, beat: Beat, now: float) -> None:
        """A worker said how it is."""
        known = beat.worker in self._seen
        if beat.leaving:
            if known:
                del self._seen[beat.worker]
                self._left(beat, "leaving")
        elif known or len(self._seen) < MAX_WORKERS:
            self._seen[beat.worker] = Seen(beat, now)
            if not known:
                self._joined(beat)

    def turn(self, now: float) -> None:
        """Time has passed: who is silent for too long is gone."""
        for name, seen in list(self._seen.items()):
            if now - seen.at > SILENT_SECONDS:
                del self._seen[name]
                self._left(seen.beat, "silent")

    def there(self) -> list[Beat]:
        """All that are there, by name."""
        return [self._seen[name].beat for name in sorted(self._seen)]

    def why_nobody_took(self) -> str:
        """A question."""
        there, working = self.there(), self.working()
        if working:
            return f"those label workers that are there ({len(working)}) are all at work"
        if not there:
            return "no label worker is there"
        many = f"{len(there)} label workers are there, but take nothing"
        many = "1 label worker is there, but takes nothing" if len(there) == 1 else many
        return f"{many}; {there[0].worker}: {there[0].why}"

    def working(self, *, besides: str = "") -> list[Beat]:
        """Those that take jobs."""
        return [beat for beat in self.there() if not beat.why and beat.worker != besides]
