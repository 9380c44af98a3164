"""Leaves out what a library would load for uses that are none of ours: the start of a command pays for each import."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


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


@contextmanager
def unused(*names: str) -> Iterator[None]:
    """What is imported within finds stand-ins for these modules, unless they are loaded already.

    For modules whose import is dear and whose parts are made and never called: each name in a stand-in is a class that
    takes anything and does nothing. Whoever imports such a module afterwards gets the real one.
    """
    standing_in = {name: _StandIn(name) for name in names if name not in sys.modules}
    sys.modules.update(standing_in)
    try:
        yield
    finally:
        for name in standing_in:
            sys.modules.pop(name, None)


class _Nothing:
    def __init__(self, *_given: Any, **_named: Any) -> None:
        """Made, and never called."""


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> type[_Nothing]:
        if name.startswith("__"):  # what the import system looks for
            raise AttributeError(name)
        return _Nothing
