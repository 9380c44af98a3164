"""Folders of this machine that are fit for a data directory: on a local disk, and ours to write.

Of each only the type of its file system is asked before it is touched: a network mount that hangs would hang us.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from civicsky import datadir
from civicsky.errors import Usage

NAME: Final = "civicsky"
_MEMORY: Final = frozenset({"ramfs", "tmpfs", "devtmpfs"})
"""Gone with the machine's next start."""
_SHARED: Final = ("/scratch", "/local", "/localscratch", "/local_scratch", "/lscratch", "/var/tmp")  # noqa: S108


class Place(NamedTuple):
    """A folder that is there, or can be made."""

    folder: Path
    kind: str
    """Of its file system."""
    free: int
    """Bytes; what a quota leaves of them is not known."""

    def __str__(self) -> str:
        return f"{self.folder} ({self.kind}, {self.free / 1e9:,.0f} GB free)"


def candidates(
    environment: Mapping[str, str], user: str, kind_of: Callable[[Path], str] = datadir.kind_of
) -> list[Place]:
    """Where a data directory could be, the likeliest first; there may be none."""
    found: dict[Path, Place] = {}
    for base, folder in _bases(environment, user):
        if (place := _fit(base, folder, kind_of)) is not None:
            found.setdefault(folder, place)
    return list(found.values())


def check(folder: Path) -> None:
    """Look at a folder without making it. Raises `Usage` when it is not fit for a data directory."""
    datadir.refuse_network(folder)  # before it is touched
    try:
        datadir.refuse_network(folder.resolve())
        there = _nearest(folder)
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise Usage(f"data directory {folder} cannot be written; name another with --data-dir")
        if there == folder and folder.stat().st_uid != os.geteuid():  # who could read and change all in it
            raise Usage(f"data directory {folder} belongs to another user; name another with --data-dir")
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, a circle of links
        raise Usage(f"data directory {folder} cannot be looked at ({error}); name another with --data-dir") from None


def _nearest(folder: Path) -> Path:
    return next(one for one in (folder, *folder.parents) if os.path.lexists(one))


def _bases(environment: Mapping[str, str], user: str) -> Iterator[tuple[Path, Path]]:
    """Folders that must be there, with the one to make in each."""
    home = Path(environment.get("HOME", "/nonexistent"))
    yield home, Path(environment.get("XDG_DATA_HOME") or home / ".local" / "share") / NAME
    if scratch := environment.get("SCRATCH"):
        yield Path(scratch), Path(scratch) / NAME
    for shared in map(Path, _SHARED):
        yield shared / user, shared / user / NAME
        yield shared, shared / f"{NAME}-{user}"
    job, own = environment.get("SLURM_JOB_ID", ""), environment.get("TMPDIR", "")
    if own and own.rstrip("/") != "/tmp" and not (job and job in own):  # noqa: S108  (it goes with a start, or a job)
        yield Path(own), Path(own) / f"{NAME}-{user}"


def _fit(base: Path, folder: Path, kind_of: Callable[[Path], str]) -> Place | None:
    if not base.is_absolute() or kind_of(base) in datadir.NETWORK or kind_of(folder) in datadir.NETWORK:
        return None
    try:
        if not base.is_dir():
            return None
        check(folder)
        there = _nearest(folder)
        kind = kind_of(there.resolve())
        return None if kind in datadir.NETWORK | _MEMORY else Place(folder, kind, shutil.disk_usage(there).free)
    except (OSError, Usage):
        return None
