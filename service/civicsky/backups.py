"""What is known of backups and of copies before upgrades: their names, what they say of themselves, where they lie.

A backup is a folder `civicsky-TIME` with copies of our databases and `backup.json`. The data directory's own
`backups.json` lists the backups that were made of it, so that `civicsky erase` can name them. What is erased later is
noted in those that can still be reached, in `erased.txt`, and a restore erases it again.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from civicsky.copies import synced
from civicsky.errors import Usage
from civicsky.model import parse_moment
from civicsky.sqlite import UPGRADE_STAMP, UPGRADES

MANIFEST: Final = "backup.json"
NOTES: Final = "backups.json"
ERASED: Final = "erased.txt"
"""In a backup: the DIDs and AT-URIs that were erased after it was made, one a line."""
STAMP: Final = "%Y%m%dT%H%M%SZ"
KIND: Final = "civicsky backup"
_FILE: Final = re.compile(
    r"(?:journal|ledger|posts|annotations|events)\.db|pseudonyms\.key|inbox/[A-Za-z0-9_][A-Za-z0-9._-]*"
)
"""What may be in one: a name of anything else could lead out of the folder."""
_NAME: Final = re.compile(r"civicsky-\d{8}T\d{6}Z")
_HALF: Final = ".unfinished"
_KEPT: Final = re.compile(r"(?:journal|ledger|posts|annotations)-v\d+-(\d{8}T\d{6}Z)\.db")


# ---- one backup ------------------------------------------------------------------------------------------------------


def manifest(backup: Path) -> dict[str, Any]:
    """What a backup says of itself. Raises `Usage` when the folder is none."""
    try:
        told = json.loads((backup / MANIFEST).read_text(encoding="utf-8"))
        files = told["files"]
        if told["kind"] != KIND or not all(map(_FILE.fullmatch, files)) or parse_moment(told["at"]) is None:
            raise ValueError
        numbers = [one["bytes"] for one in files.values()] + list(told.get("formats", {}).values())
        numbers += [told.get(name, 0) for name in ("posts", "labels", "stored")]
        if not all(type(n) is int and n >= 0 for n in numbers) or not all(one["sha256"] for one in files.values()):
            raise ValueError
    except FileNotFoundError:
        raise Usage(f"{backup} is no backup: it has no {MANIFEST}; name a folder civicsky-TIME") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = getattr(error, "strerror", None) or "it is none of ours, or damaged"
        raise Usage(f"{backup / MANIFEST}: {why}; name another backup") from None
    return dict(told)


def write_json(file: Path, told: Any) -> None:
    """A file of ours, mode 600, whole or not at all, safe on disk."""
    half = file.with_name(f".{file.name}.{os.getpid()}")
    handle = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    half.replace(file)
    synced(file.parent)


def half_name(backup: Path) -> Path:
    """What a backup is called until it is whole."""
    return backup.with_name(f".{backup.name}{_HALF}")


def remove(backup: Path) -> None:
    """Remove a backup. It loses its name first: what a kill leaves of it is never taken for a whole one."""
    remove_half(backup)
    backup.rename(half_name(backup))
    remove_half(backup)


def remove_half(backup: Path) -> None:
    """Remove what there is of a backup that is not whole."""
    shutil.rmtree(half_name(backup), ignore_errors=True)


def older(made: Path, of: str, keep: int) -> list[Path]:
    """The backups beside `made`, of the same data directory, beyond the newest: `keep` remain in all.

    `made` is one of them whatever the names of the others say: a clock may have been ahead when they were made.
    """
    return [one for one in beside(made, of) if one != made][keep - 1 :]


def beside(backup: Path, of: str) -> list[Path]:
    """The backups of the data directory `of` (an identity) in the folder of a backup, the newest first."""
    place, mine = backup.parent, []
    for folder in sorted(place.iterdir(), reverse=True):
        if _NAME.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
            with suppress(Usage):
                if of and manifest(folder)["of"] == of:
                    mine.append(folder)
    return mine


# ---- those of a data directory ---------------------------------------------------------------------------------------


def noted(data_dir: Path) -> list[Path]:
    """The backups that were made of a data directory, or begun, the oldest first."""
    with suppress(OSError, ValueError, TypeError):
        return [Path(path) for path in json.loads((data_dir / NOTES).read_text(encoding="utf-8")) if path]
    return []


def note(data_dir: Path, backup: Path) -> None:
    """Remember a backup, and forget those that are known to be gone; one whose disk is away now is not."""
    there = [path for path in noted(data_dir) if path != backup and _may_be_there(path)]
    write_json(data_dir / NOTES, [str(path) for path in (*there, backup)])


def _may_be_there(backup: Path) -> bool:
    return backup.exists() or half_name(backup).exists() or not backup.parent.exists()


def note_erased(data_dir: Path, names: Iterable[str]) -> list[str]:
    """Have whatever restores a backup erase these again; what people should know, a line each."""
    told = []
    lines = "".join(f"{name}\n" for name in names)
    for backup in noted(data_dir):
        if not _may_be_there(backup):
            continue
        try:
            _append(backup, lines)
            told.append(f"backup {backup}: it keeps the texts until you remove it; a restore of it erases them again")
        except OSError as error:
            told.append(f"backup {backup}: {error.strerror}; if you restore it, erase these again")
    return told + [f"copy before an upgrade {path}: it keeps the texts until it is removed" for path in kept(data_dir)]


def _append(backup: Path, lines: str) -> None:
    """Into a backup, also one that is being made and may get its name meanwhile."""
    for folder in (backup, half_name(backup), backup):
        with suppress(FileNotFoundError):
            with os.fdopen(os.open(folder / ERASED, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as stream:
                stream.write(f"\n{lines}")  # a full disk may have left half a line
                stream.flush()
                os.fsync(stream.fileno())
            return
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def erased_since(backup: Path) -> list[str]:
    """What was erased after a backup was made."""
    with suppress(FileNotFoundError):
        return list(dict.fromkeys((backup / ERASED).read_text(encoding="utf-8").split()))
    return []


# ---- copies before upgrades ------------------------------------------------------------------------------------------


def kept(data_dir: Path) -> list[Path]:
    """The copies that upgrades left."""
    folder = data_dir / UPGRADES
    with suppress(OSError):
        return sorted(path for path in folder.iterdir() if _KEPT.fullmatch(path.name))
    return []


def tidy(data_dir: Path, days: float, now: datetime) -> Sequence[Path]:
    """Remove the copies that upgrades left more than so many days ago; which ones."""
    gone = []
    for path in kept(data_dir):
        found = _KEPT.fullmatch(path.name)
        assert found
        if datetime.strptime(found[1], UPGRADE_STAMP).replace(tzinfo=UTC) < now - timedelta(days=days):
            path.unlink(missing_ok=True)
            gone.append(path)
    with suppress(OSError):
        (data_dir / UPGRADES).rmdir()  # if it is empty now
    return gone
