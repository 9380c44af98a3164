"""The data directory: where the files are, who may write them, and whether the disk is fit for them."""

import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import Any, Final, Literal, NamedTuple

from civicsky.errors import FULL, CivicskyError, Failed, Held, Usage
from civicsky.model import format_time, now_us
from civicsky.settings import expanded

JOURNAL: Final = "journal.db"
LEDGER: Final = "ledger.db"
POSTS: Final = "posts.db"
EVENTS: Final = "events.db"
"""Articles on current events; made anew from their folder when it is not there."""
ANNOTATIONS: Final = "annotations.db"
"""What people labelled by hand; not there before anybody did."""
CRON_LOG: Final = "cron.log"
"""Both outputs of what cron starts."""
LOG: Final = "civicsky.log"
"""Where the service that cron keeps alive logs, unless the settings name another file."""
RESTORING: Final = ".restoring"
"""The folder in a data directory that is being restored; it goes when all is in its place."""

Role = Literal["collect", "label", "fetch", "counts", "verify", "backup"]
Halves = Literal["both", "collect", "label"]
"""What a command runs."""
_TRIES: Final = 4
_TRY_SECONDS: Final = 0.05

NETWORK: Final = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "cvmfs", "fuse.ceph", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs",
        "fuse.sshfs", "glusterfs", "gpfs", "lustre", "mmfs", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "pvfs2",
        "smb2", "smb3", "smbfs", "wekafs",
    }
)  # fmt: skip
"""File systems on which SQLite's write-ahead log, which shares memory between processes, breaks."""

_ESCAPED: Final = re.compile(r"\\(040|011|012|134)")
"""What mountinfo escapes in a name: space, tab, newline, backslash. All else stands as it is."""


def prepare(folder: Path) -> Path:
    """Make the data directory if need be; the absolute path.

    Raises `Usage` when it cannot be written, lies on a network file system or is being restored, `Failed` when its disk
    is full.
    """
    folder = expanded(folder)
    refuse_network(folder)  # before it is touched: a network mount that hangs would hang us
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = folder / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _unwritable(folder, error) from None
    refuse_network(folder.resolve())
    _refuse_half_restored(folder)
    return folder


def existing(folder: Path) -> Path:
    """The data directory that must be there already. Raises `Usage` when it holds no journal, or is being restored."""
    folder = expanded(folder)
    _refuse_half_restored(folder)
    if not (folder / JOURNAL).is_file():
        raise Usage(
            f"data directory {folder} holds no {JOURNAL}; "
            "name the right one with --data-dir or --config, or collect first"
        )
    return folder


def _unwritable(folder: Path, error: OSError) -> CivicskyError:
    """A person must choose another place; but a full disk may have room again by itself."""
    if error.errno in FULL:
        return Failed(
            f"data directory {folder}: {error.strerror}; nothing is lost: make room on the disk and start again"
        )
    return Usage(f"data directory {folder} cannot be written: {error.strerror}; name another with --data-dir")


def _refuse_half_restored(folder: Path) -> None:
    if (folder / RESTORING).exists():
        raise Usage(
            f"data directory {folder} is being restored, or a restore was interrupted there; "
            "if none is at work, remove the folder and restore again"
        )


def refuse_network(folder: Path) -> None:
    """Raises `Usage` when a folder lies on a network file system. The folder itself is not touched."""
    kind = kind_of(folder)
    if kind in NETWORK:
        raise Usage(
            f"data directory {folder} is on a network file system ({kind}), where SQLite loses data; "
            "name a folder on a local disk with --data-dir"
        )


def kind_of(folder: Path) -> str:
    """The type of the file system that holds a folder; the folder itself is not touched."""
    return file_system(folder, os.fsdecode(Path("/proc/self/mountinfo").read_bytes()))


def file_system(path: Path, mountinfo: str) -> str:
    """The type of the file system that holds a path, from the text of /proc/self/mountinfo (see man 5 proc)."""
    best, kind = "", ""
    for line in filter(None, mountinfo.split("\n")):  # a name may hold any other line break
        left, _, right = line.partition(" - ")
        mount = _ESCAPED.sub(lambda code: chr(int(code[1], 8)), left.split(" ")[4])
        inside = mount == "/" or path == Path(mount) or Path(mount) in path.parents
        if inside and len(mount) >= len(best):  # the last of equals lies on top
            best, kind = mount, right.split(" ")[0]
    return kind


def roles_of(halves: Halves) -> tuple[Role, ...]:
    """The locks that a command takes for what it runs."""
    return ("collect", "label") if halves == "both" else (halves,)


@contextmanager
def locked(folder: Path, roles: tuple[Role, ...], *, brief: bool = False) -> Iterator[None]:
    """Hold the locks of these roles. Raises `Held`, naming the holder, when another process has one; as `prepare` does.

    The kernel lets go of a lock when its process ends, however it ends. `brief`: a service that starts meanwhile waits.
    """
    files = []
    try:
        for role in roles:
            try:
                files.append(_lock(folder, role, brief=brief))
            except OSError as error:
                raise _unwritable(folder, error) from None
        yield
    finally:
        for file in files:
            os.close(file)


def _lock(folder: Path, role: Role, *, brief: bool) -> int:
    """The file of a lock that is taken now. Raises `Held`."""
    file = os.open(folder / f"{role}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _taken(file):
            raise _held(folder, role, os.pread(file, 500, 0).decode(errors="replace").strip())
        os.ftruncate(file, 0)
        os.pwrite(file, _holder(brief=brief).encode(), 0)
    except BaseException:
        os.close(file)
        raise
    return file


class Holding(NamedTuple):
    """One role's lock."""

    held: bool
    holder: str
    """Who took it last; it stays in the file when the lock is free again."""


def holding(folder: Path, role: Role) -> Holding:
    """Look at a role's lock. Nothing is changed, though it is shared for a moment, for which `locked` is prepared."""
    try:
        file = os.open(folder / f"{role}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return Holding(False, "")
    try:
        holder = os.pread(file, 500, 0).decode(errors="replace").strip()
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Holding(True, holder)
        return Holding(False, holder)
    finally:
        os.close(file)


def running(folder: Path, roles: tuple[Role, ...]) -> Held | None:
    """What `locked` would raise now, if another process has one of these locks, and not only for a moment.

    Nothing is made or changed.

    Raises `Usage` when the folder lies on a network file system.
    """
    folder = expanded(folder)
    refuse_network(folder)  # before it is touched, as in `prepare`
    for role in roles:
        found = holding(folder, role)
        if found.held and not (held := _held(folder, role, found.holder)).brief:
            return held
    return None


def _held(folder: Path, role: Role, holder: str) -> Held:
    brief = False
    with suppress(ValueError, AttributeError):
        brief = bool(json.loads(holder).get("brief"))
    return Held(
        f"data directory {folder}: the role {role!r} is held by {holder or 'another process'}; "
        "stop it, or use another --data-dir",
        brief=brief,
    )


def _taken(file: int) -> bool:
    """Take a lock; not at once given up, since somebody may only be looking at it."""
    for _try in range(_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sleep(_TRY_SECONDS)
        else:
            return True
    return False


def _holder(*, brief: bool) -> str:
    who: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), "since": format_time(now_us())}
    return json.dumps(who | ({"brief": True} if brief else {})) + "\n"
