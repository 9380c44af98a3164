"""`civicsky restore`: a backup becomes a data directory again, whole or not at all, with which the service goes on.

The cursors are older than they were, so the relay replays what came since, and nothing is doubled (see the rule of
order in docs/architecture.md). Deletions come with the replay; behind its window a gap is found, and posts are looked
up again. What people erased since the backup was made is erased once more.
"""

import asyncio
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from civicsky import backups, copies, datadir, faults
from civicsky.backup import SCHEMAS
from civicsky.beside import bars
from civicsky.errors import Failed, Usage
from civicsky.journal import Journal
from civicsky.model import now_us, parse_moment
from civicsky.settings import Settings, expanded

_REPLAYED_US: Final = 72 * 3_600_000_000
"""How far back a relay replays."""
_NOT_OURS: Final = frozenset({"lost+found"})
"""What a disk has at its root, and no data."""
_MARGIN: Final = 1_000_000


class Restored(NamedTuple):
    """What `civicsky restore` did."""

    folder: Path
    backup: Path
    told: dict[str, Any]
    """As in `backup.json`."""
    erased: Sequence[str]
    """What was erased again."""


def restore(settings: Settings, backup: Path) -> Restored:
    """Make the data directory of the settings from a backup.

    Raises `Usage` when that is no backup of ours or the directory cannot be used or is not empty, `Failed` when there
    is no room or a file is damaged: then the directory is as it was.
    """
    os.umask(0o077)
    backup = expanded(backup)
    told = backups.manifest(backup)
    for name, number in told.get("formats", {}).items():
        if name in SCHEMAS and number > len(SCHEMAS[name].steps):
            raise Usage(f"{backup / name} was written by a newer civicsky (format {number}); upgrade civicsky")
    folder = datadir.prepare(settings.data_dir)
    _want_empty(folder, _NOT_OURS)
    needed = sum(one["bytes"] for one in told["files"].values()) + _MARGIN
    copies.want_room(folder, needed, f"to restore {backup}")
    erased = backups.erased_since(backup)
    try:
        with _staging(folder) as staged:
            _stage(backup, staged, told["files"])
            if erased:
                asyncio.run(_erase(staged / datadir.JOURNAL, settings, erased))
            _note(staged, backup, told)
            _unstage(staged)
    except OSError as error:
        raise Failed(f"{error.filename or folder}: {error.strerror}; nothing was restored: mend it") from None
    return Restored(folder, backup, told, erased)


def _want_empty(folder: Path, but: frozenset[str]) -> None:
    if {path.name for path in folder.iterdir()} - but:
        raise Usage(f"{folder} is not empty; name a new folder with --data-dir")


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder in an empty data directory that is ours alone; after an error the directory is empty again.

    Raises `Usage` or `Held` when a service or another restore was faster since it was looked at, and leaves theirs.
    """
    staged = folder / datadir.RESTORING
    try:
        staged.mkdir(mode=0o700)
    except FileExistsError:
        raise Usage(f"data directory {folder} is being restored by another process") from None
    try:
        with datadir.locked(folder, ("collect", "label"), brief=True):
            _want_empty(folder, _NOT_OURS | {staged.name, "collect.lock", "label.lock"})
            try:
                yield staged
            except BaseException:
                _clear(folder)
                raise
    finally:
        with suppress(FileNotFoundError):
            staged.rmdir()


def _note(staged: Path, backup: Path, told: dict[str, Any]) -> None:
    """Remember the backup, and those beside it: they are of the same posts, and `erase` must reach them, too."""
    others: list[Path] = []
    with suppress(OSError):
        others = backups.beside(backup, str(told.get("of", "")))
    for path in [*reversed([one for one in others if one != backup]), backup]:
        backups.note(staged, path)


def _stage(backup: Path, staged: Path, files: dict[str, Any]) -> None:
    """Copy all files, and see that they are what the backup says that they are."""
    with bars("MB") as shown:
        for name, one in files.items():
            task = shown.add_task(name, total=one["bytes"] // 1_000_000)

            def show(done: int, _total: int, task: Any = task) -> None:
                shown.update(task, completed=done // 1_000_000)

            target = staged / name
            target.parent.mkdir(mode=0o700, exist_ok=True)
            if copies.copied(backup / name, target, show) != one["sha256"]:
                raise Failed(f"{backup / name} is damaged (its SHA-256 is another); restore another backup")
            if name in SCHEMAS:
                copies.with_log(target)
            copies.synced(target.parent)


async def _erase(journal: Path, settings: Settings, names: Sequence[str]) -> None:
    """Ledger and store follow when the service starts."""
    writer = await Journal.open(journal, settings.journal)
    try:
        for name in names:
            await writer.erase(name)
        await writer.database.truncate_log()
    finally:
        await writer.close()


def _unstage(staged: Path) -> None:
    """Put all in its place; until the last is there nothing starts on the folder."""
    for path in sorted(staged.iterdir()):
        path.rename(staged.parent / path.name)
        faults.point("restore.moved")
    copies.synced(staged.parent)
    staged.rmdir()
    copies.synced(staged.parent)


def _clear(folder: Path) -> None:
    """An empty folder again: it was one."""
    for path in folder.iterdir():
        if path.is_dir() and path.name not in _NOT_OURS:
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in _NOT_OURS:
            path.unlink(missing_ok=True)


def as_text(done: Restored) -> str:
    """For people."""
    counts = ", ".join(f"{done.told.get(name, 0):,} {name}" for name in ("posts", "labels", "stored"))
    lines = [f"{done.folder}: as of {done.told['at']}, {counts}"]
    if done.erased:
        lines.append(f"erased again: {len(done.erased):,} accounts or posts that were erased since")
    made = parse_moment(done.told["at"]) or 0
    if now_us() - made > _REPLAYED_US:
        lines.append("a relay replays 72 hours: what came before is a gap, and posts will be looked up again")
    if datadir.POSTS not in done.told["files"]:
        lines.append("the store was not in it: MongoDB as it is will do, or a dump made after the backup")
    lines.append(f"next: civicsky run --data-dir {done.folder}, with the settings that it had")
    return "\n".join(lines)


def as_json(done: Restored) -> dict[str, Any]:
    """For programs."""
    told = {**done.told, "of_data_dir": done.told.get("data_dir"), "data_dir": str(done.folder)}
    return {**told, "backup": str(done.backup), "erased_again": len(done.erased)}
