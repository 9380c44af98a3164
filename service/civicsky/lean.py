"""Leaves out what a library would load for uses that are none of ours: the start of a command pays for each import."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(*names: str) -> Iterator[None]:
    """What is imported within finds these packages not installed, unless they are loaded already.

    For packages that the imported one can do without, and says so: an extra of it.
    """
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: an import of it is an ImportError
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
