"""What the parts need of the machine: processes, their processor time, and what kind of machine it is."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from support.command import server

TICKS: Final = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and all that it started, and they."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError):
                parents.setdefault(int(_fields(int(entry.name))[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and of all that it started. Raises `ProcessLookupError` when it is gone."""
    total = 0
    for one in family(pid):
        try:
            fields = _fields(one)
        except OSError:
            if one == pid:
                raise ProcessLookupError(pid) from None
            continue
        total += sum(int(value) for value in fields[11:15])  # its own, and of those children that ended
    return total / TICKS


def _fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; the name before them may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


@contextmanager
def module_server(module: str, *options: str | Path | float) -> Iterator[str]:
    """A module of ours as a server in a process of its own; its address."""
    with server(sys.executable, "-m", module, *options) as url:
        yield str(url)
