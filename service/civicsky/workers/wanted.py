"""Whether what is being asked is still wanted: said by who asks, and heard by who sends it much later.

Between both lie the ways of asking, the limits and the line to a server, which need not know of it.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from civicsky.errors import Unsent


class Withdrawn(Unsent):
    """Nobody wants it any more, and nothing was sent: its post was deleted or updated while it waited."""


Wanted = Callable[[], Awaitable[bool]]
_current: ContextVar[Wanted | None] = ContextVar("wanted", default=None)


@contextmanager
def wanted_while(wanted: Wanted) -> Iterator[None]:
    """What is asked within is asked for only as long as this says so."""
    token = _current.set(wanted)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Wanted | None:
    """What to ask for it later, also from elsewhere; None: it is wanted in any case."""
    return _current.get()
