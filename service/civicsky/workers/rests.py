"""Which of a worker's servers cannot be used now, until when, and why. Pure: `now` is passed in, in seconds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from civicsky.endpoint import MAX_RETRY_AFTER

NOT_YET: Final = "its model is not reached yet"


@dataclass
class _Server:
    why: str = NOT_YET
    """Empty while it may be used."""
    gone: bool = True
    """Whether it must be seen to be there before it is used again."""
    until: float = 0.0
    since: float = 0.0
    pause: float = 0.0


class Rests:
    """Servers by name. At first all of them have to be seen to be there."""

    def __init__(self, names: Iterable[str], shortest: float, longest: float) -> None:
        """A rest is `shortest` seconds, and doubles up to `longest` until a call is answered."""
        self._servers = {name: _Server() for name in names}
        self._shortest, self._longest = shortest, longest

    @property
    def why(self) -> str:
        """Why none can be used; empty while one can."""
        reasons = [server.why for server in self._servers.values()]
        return "" if "" in reasons else reasons[0]

    def free(self) -> set[str]:
        """Those that can be used."""
        return {name for name, server in self._servers.items() if not server.why}

    def due(self, now: float) -> list[tuple[str, bool]]:
        """Those whose rest is over, and whether each must be seen to be there first."""
        return [(name, one.gone) for name, one in self._servers.items() if one.why and now >= one.until]

    def failed(self, name: str, why: str, began: float, now: float, *, after: float = 0.0, gone: bool = True) -> bool:
        """A call that began then failed; it asks for a rest of `after` seconds. Whether it was in use until now.

        Calls that were under way together count once.
        """
        server = self._servers[name]
        was_free = not server.why
        if began >= server.since or server.why == NOT_YET:
            server.pause = min(self._longest, max(self._shortest, 2 * server.pause))
            server.since = now
        server.until = max(server.until, now + max(server.pause, min(after, MAX_RETRY_AFTER)))
        server.why, server.gone = why, gone
        return was_free

    def over(self, name: str) -> None:
        """It may be used again."""
        self._servers[name].why = ""

    def answered(self, name: str) -> None:
        """It answered a question."""
        self._servers[name].pause = 0.0
