"""Runs the installed command as a container does: as process 1 of a process namespace of its own."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from support.command import CIVICSKY, environment, until

AS_FIRST = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""util-linux: the next program is process 1; all in its namespace die with it."""


def why_not() -> str:
    """Why no namespace can be made here; empty when one can."""
    ran = subprocess.run([*as_first(), "true"], capture_output=True, text=True, check=False)
    return "" if ran.returncode == 0 else f"no process namespace can be made: {ran.stderr.strip()}"


def as_first() -> list[str]:
    """Without root it takes a user namespace, which not every machine allows."""
    return AS_FIRST if os.geteuid() == 0 else [*AS_FIRST, "--user", "--map-root-user"]


class First:
    """A running process 1; `pid` is its number outside."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.pid: int = until(self._child, "process 1 of the namespace")

    def _child(self) -> int | None:
        """The one child of `unshare`, once it is in its namespace and is not `unshare` any more."""
        assert self.process.poll() is None, self.process.communicate()
        with suppress(FileNotFoundError):
            outside = self.process.pid
            for pid in map(int, Path(f"/proc/{outside}/task/{outside}/children").read_text().split()):
                if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] != b"unshare":
                    return pid
        return None

    def members(self) -> dict[int, str]:
        """State by number (outside) of process 1 and all below it; `Z` is a zombie. Orphans become its children."""
        states, parents = {}, {}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                states[int(entry.name)], parents[int(entry.name)] = state, int(parent)
        return {pid: state for pid, state in states.items() if self._is_above(pid, parents)}

    def _is_above(self, pid: int, parents: dict[int, int]) -> bool:
        while pid and pid != self.pid:
            pid = parents.get(pid, 0)
        return pid == self.pid

    def zombies(self) -> list[int]:
        """Dead processes that nobody has asked about."""
        return [pid for pid, state in self.members().items() if state == "Z"]


@contextmanager
def contained(*args: str | Path, **settings: Any) -> Iterator[First]:
    """The command as process 1; whatever is left at the end is killed with it."""
    process = subprocess.Popen(
        [*as_first(), CIVICSKY, *map(str, args)],
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield First(process)
    finally:
        process.kill()
        process.communicate()
