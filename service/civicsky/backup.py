"""`civicsky backup`: copies of all that a data directory needs to go on, as of one moment, also while it is in use.

The moment: nobody writes to any of the databases while the snapshots are taken (see `copies.one_moment`). So a backup
is what `kill -9` at that moment would have left on the disk, and that is safe by the guarantees: the journal has all
changes that the ledger has not followed, and the store has all that the ledger counts on.

MongoDB is no file of ours. It must be dumped after the backup: then it has all that the ledger counts on, too.
"""

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

from civicsky import __version__, backups, copies, datadir, faults, inbox, ledger, store, tables
from civicsky.annotate import votes
from civicsky.beside import bars
from civicsky.errors import Failed, Usage
from civicsky.events import tables as events
from civicsky.export.pseudonyms import KEY
from civicsky.model import format_time, now_us
from civicsky.settings import Settings, expanded
from civicsky.sqlite import UPGRADES, Schema, explain

SCHEMAS: Final[dict[str, Schema]] = {
    datadir.JOURNAL: tables.SCHEMA,
    datadir.LEDGER: ledger.SCHEMA,
    datadir.POSTS: store.SCHEMA,
    datadir.ANNOTATIONS: votes.SCHEMA,
    datadir.EVENTS: events.SCHEMA,  # its summaries were paid for
}
"""In the order in which they are copied: the log of the first grows fastest meanwhile."""
LEFT_OUT: Final = (
    "locks", "session.json", "cron.log", "civicsky.log*", "verify.json", "notified-*.json", f"{UPGRADES}/",
    "inbox/ (what is imported already)", "settings and secrets", "task files", "MongoDB",
)  # fmt: skip
"""What is not in a backup: it belongs to a machine, is made anew, or is a secret of its own."""
_MARGIN: Final = 1_000_000

Say = Callable[[str], None]
_Pinned = dict[Path, sqlite3.Connection]


class Done(NamedTuple):
    """What `civicsky backup` made."""

    path: Path
    told: dict[str, Any]
    """As in `backup.json`."""
    removed: Sequence[Path]
    """Older backups that were not to be kept."""
    mongo: str
    """How the store is to be backed up, if it is MongoDB."""


def back_up(settings: Settings, place: Path, keep: int | None, say: Say) -> Done:
    """Make a backup in a new folder of `place`; with `keep`, remove all but the newest so many of this data directory.

    Raises `Usage` for a place or a database that cannot be used, `Failed` when there is no room or a file is damaged.
    """
    os.umask(0o077)
    folder = datadir.existing(settings.data_dir)
    place = expanded(place)
    if place == folder or folder in place.parents:
        raise Usage(f"{place} is in the data directory itself; name a folder elsewhere, best on another disk")
    with datadir.locked(folder, ("backup",)):
        try:
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            _clear(folder, say)
            path = _new(place)
            backups.note(folder, path)
            told = _written(folder, path)
            removed = backups.older(path, told["of"], keep) if keep else []
            for former in removed:
                backups.remove(former)
            backups.note(folder, path)
        except sqlite3.Error as error:
            raise Failed(f"a database of {folder} could not be read: {error}; see `civicsky doctor`") from None
        except OSError as error:
            raise Failed(
                f"{error.filename or place}: {error.strerror}; there is no backup: mend it, or name another folder"
            ) from None
    return Done(path, told, removed, _mongo(settings, folder, path))


def _clear(folder: Path, say: Say) -> None:
    """Remove what backups left that were killed: we hold the lock, so nobody writes it."""
    for path in backups.noted(folder):
        if backups.half_name(path).is_dir():
            backups.remove_half(path)
            say(f"removed {backups.half_name(path)}, which was left when a backup was interrupted")


def _new(place: Path) -> Path:
    """A name that is not taken."""
    path = place / f"civicsky-{datetime.now(UTC):{backups.STAMP}}"
    if path.exists():
        raise Failed(f"{path} is there already; try again in a second")
    return path


def _written(folder: Path, path: Path) -> dict[str, Any]:
    """Write a backup under another name, and give it its own when all is checked and on the disk; `backup.json`."""
    half = backups.half_name(path)
    half.mkdir(mode=0o700)
    try:
        with copies.one_moment(partial(_present, folder)) as pinned:
            at = now_us()
            formats = {file.name: _format(file, pinned[file]) for file in pinned}
            told = _facts(folder, pinned) | {"at": format_time(at), "formats": formats}
            others = _others(folder, pinned)
            sizes = [copies.size_of(one) for one in pinned.values()] + [file.stat().st_size for file in others]
            copies.want_room(half, sum(sizes) + _MARGIN, f"a backup of {folder}")
            files = _copied(folder, half, pinned, others)
        told = {"kind": backups.KIND, "version": __version__, "data_dir": str(folder), **told}
        told |= {"files": files, "left_out": list(LEFT_OUT), "encrypted": False}
        backups.write_json(half / backups.MANIFEST, told)
        half.rename(path)
        copies.synced(path.parent)
    except BaseException:
        backups.remove_half(path)
        raise
    return told


def _present(folder: Path) -> list[Path]:
    return [folder / name for name in SCHEMAS if (folder / name).is_file()]


def _format(file: Path, source: sqlite3.Connection) -> int:
    """The number of a database's format. Raises `Usage` or `Failed` when it is not for us."""
    owner, number = copies.format_of(source)
    schema = SCHEMAS[file.name]
    if owner != schema.application_id:
        raise Failed(f"{file} is not the civicsky database that its name says; move it away and start again")
    if number > len(schema.steps):
        raise Usage(f"{file} was written by a newer civicsky (format {number}); upgrade civicsky")
    return number


def _facts(folder: Path, pinned: _Pinned) -> dict[str, Any]:
    """What the snapshots say of themselves, to be held against one another and against a restore; any format does."""
    journal = pinned[folder / datadir.JOURNAL]
    first = journal.execute("SELECT started, version, settings_hash FROM run ORDER BY id LIMIT 1").fetchall()
    facts: dict[str, Any] = {
        "of": sha256(repr(first).encode()).hexdigest()[:16] if first else "",
        "cursors": [
            {"host": host, "epoch": epoch, "cursor": cursor, "event_at": event_at and format_time(event_at)}
            for host, epoch, cursor, event_at in journal.execute("SELECT name, epoch, cursor, event_at FROM host")
        ],
        "last_change": _one(journal, "SELECT max(seq) FROM sqlite_sequence WHERE name = 'change'") or 0,
        "posts": _one(journal, "SELECT count(*) FROM post WHERE state <> 'deleted'"),
    }
    if found := pinned.get(folder / datadir.LEDGER):
        facts |= {
            "followed": _one(found, "SELECT max(n) FROM position WHERE name = 'journal'") or 0,
            "labels": _one(found, "SELECT count(*) FROM label WHERE answer IS NOT NULL"),
            "spend": _one(found, "SELECT coalesce(sum(calls), 0) FROM spend"),
        }
    if found := pinned.get(folder / datadir.POSTS):
        facts |= {"stored": _one(found, "SELECT count(*) FROM posts")}
    return facts


def _one(source: sqlite3.Connection, sql: str) -> Any:
    ((value,),) = source.execute(sql).fetchall()
    return value


def _others(folder: Path, pinned: _Pinned) -> list[Path]:
    """Files beside the databases: the pseudonyms' key, and what was fetched and is not imported."""
    imported: set[str] = set()
    with suppress(sqlite3.OperationalError):  # a journal of 0.1.0 knows of no feeds
        found = pinned[folder / datadir.JOURNAL].execute("SELECT file FROM fetched WHERE imported_at IS NOT NULL")
        imported = {name for (name,) in found}
    key = folder / KEY
    return [key] * key.is_file() + [file for file in inbox.files(folder) if file.name not in imported]


def _copied(folder: Path, half: Path, pinned: _Pinned, others: Sequence[Path]) -> dict[str, Any]:
    """Copy all; size and SHA-256 of each file as it now lies in the backup."""
    files: dict[str, Any] = {}
    with bars("MB") as shown:
        for file, source in pinned.items():
            task = shown.add_task(file.name, total=None)

            def show(done: int, total: int, task: Any = task) -> None:
                shown.update(task, completed=done // 1_000_000, total=total // 1_000_000)

            target = half / file.name
            try:
                copies.write(source, target, show)
            except sqlite3.Error as error:
                raise explain(error, target) from error
            source.close()  # its log may be truncated again
            faults.point("backup.copied")
            files[file.name] = {"bytes": target.stat().st_size, "sha256": copies.digest(target)}
    for file in others:
        target = half / file.relative_to(folder)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):  # imported and gone meanwhile: its posts come again with the stream's
            digest = copies.copied(file, target)
            files[str(file.relative_to(folder))] = {"bytes": target.stat().st_size, "sha256": digest}
    for place in {half / name for name in files if "/" in name}:
        copies.synced(place.parent)
    return files


def _mongo(settings: Settings, folder: Path, path: Path) -> str:
    """The command that backs up a store that is not ours; the address, with its password, comes from a file."""
    is_mongo = settings.store.chosen == "mongo"
    if not is_mongo and ((folder / datadir.POSTS).exists() or not (folder / datadir.LEDGER).exists()):
        return ""
    name = settings.store.mongo_database
    return f"mongodump --config=FILE --db={name} --gzip --out={path}-mongodb"


def as_text(done: Done) -> str:
    """For people."""
    lines = [str(done.path)]
    for name, one in done.told["files"].items():
        lines.append(f"  {name:12} {one['bytes'] / 1e6:12,.1f} MB  {one['sha256'][:16]}")
    facts = {name: done.told.get(name, 0) for name in ("posts", "labels", "stored")}
    counts = ", ".join(f"{n:,} {name}" for name, n in facts.items())
    lines.append(f"as of {done.told['at']}: {counts}; the ledger has followed {_behind(done.told)}")
    lines += [f"removed {path}" for path in done.removed]
    if done.mongo:
        lines.append("the store is not in it: if it is MongoDB, dump it now, after this, with FILE (mode 600) holding")
        lines.append(f"  the line `uri: ...`: {done.mongo}")
    lines.append("not encrypted: it holds texts that their authors may delete; keep it no longer than you need it")
    return "\n".join(lines)


def _behind(told: dict[str, Any]) -> str:
    left = told["last_change"] - told.get("followed", 0)
    return "all changes" if left <= 0 else f"all but {left:,} changes"


def as_json(done: Done) -> dict[str, Any]:
    """For programs."""
    removed = [str(path) for path in done.removed]
    return {"path": str(done.path), "removed": removed, "mongodump": done.mongo, **done.told}
