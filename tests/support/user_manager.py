"""A real `systemd --user` with a home of its own, which needs no booted machine: namespaces, a bus, and cgroups.

Its processes have pids of their own; files and loopback are shared. What it leaves in the hierarchy of cgroups is
removed in the end.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support.command import CIVICSKY, Ended, environment, until

SYSTEMD = "/usr/lib/systemd/systemd"
CGROUPS = Path("/sys/fs/cgroup")
# Process 1 of the namespace must outlive its children. What is mounted for a unit, such as its credentials, is seen by
# all inside only if it is shared.
BOOT = f"""
set -e
for group in $GROUPS_OF_IT; do echo $$ >$group/cgroup.procs; done
mount --make-rshared /
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system $XDG_RUNTIME_DIR
chmod 700 $XDG_RUNTIME_DIR
dbus-daemon --session --address=$DBUS_SESSION_BUS_ADDRESS --nofork --nopidfile &
while ! [ -S $XDG_RUNTIME_DIR/bus ]; do sleep 0.01; done
{SYSTEMD} --user --log-target=console --log-level=warning &
echo $! >$HOME/pid
wait
"""


def why_not() -> str:
    """Why none can run here; empty when one can."""
    for program, package in (("unshare", "util-linux"), ("dbus-daemon", "dbus-daemon"), ("systemctl", "systemd")):
        if not shutil.which(program):
            return f"{program} is not installed (Debian: {package})"
    if os.getuid():
        return "a user manager of one's own needs root for its namespaces"
    if not _hierarchies():
        return "there is no hierarchy of cgroups that can be written"
    return ""


class UserManager:
    """One manager. `systemctl` and `civicsky` are run inside of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.units = self.home / ".config" / "systemd" / "user"
        self.groups = [hierarchy / f"civicsky-test-{folder.name}" for hierarchy in _hierarchies()]
        self._first: subprocess.Popen[bytes] | None = None
        self._variables = {
            "PATH": f"{Path(CIVICSKY).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": "/run/user/0",
            "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/user/0/bus",
        }

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.units.mkdir(parents=True)
        for group in self.groups:
            group.mkdir()
        variables = {**self._variables, "GROUPS_OF_IT": " ".join(map(str, self.groups))}
        log = (self.folder / "manager.log").open("wb")
        with log:
            self._first = subprocess.Popen(
                ["unshare", "-m", "-p", "-f", "--mount-proc", "--kill-child", "/bin/sh", "-c", BOOT],
                env=variables, stdout=log, stderr=log, cwd="/",
            )  # fmt: skip
        until(lambda: self._is_over() or self._is_up(), "the manager to answer")
        assert not self._is_over(), (self.folder / "manager.log").read_text(encoding="utf-8")

    def stop(self) -> None:
        """End it and all that it runs, and remove its cgroups."""
        assert self._first is not None
        self._first.kill()
        self._first.wait()
        until(lambda: not self.processes(), "all of it to end")
        for group in self.groups:
            for inner in sorted(group.rglob("*"), reverse=True):
                if inner.is_dir():
                    inner.rmdir()
            group.rmdir()

    def processes(self, unit: str = "") -> list[int]:
        """Pids, as they are out here, of all that runs in a unit's cgroup; of all when none is named."""
        found = set[int]()
        for group in self.groups:
            for file in group.rglob(f"{unit}/cgroup.procs" if unit else "cgroup.procs"):
                with suppress(FileNotFoundError, OSError):
                    found |= set(map(int, file.read_text(encoding="utf-8").split()))
        return sorted(found)

    def inside(self, *command: str | Path, **variables: str) -> Ended:
        """Run a command inside, as its user would."""
        ran = subprocess.run(
            ["nsenter", "-t", str(self._pid()), "-m", "-p", *map(str, command)],
            env={**self._variables, **variables}, cwd="/", capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        return Ended(ran.returncode, ran.stdout, ran.stderr)

    def systemctl(self, *words: str) -> str:
        """What `systemctl --user` says; it must succeed."""
        ended = self.inside("systemctl", "--user", *words)
        assert ended.code == 0, (words, ended.err)
        return ended.out

    def shown(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", "--property", name, "--value", unit).strip()

    def drop_in(self, unit: str, text: str, name: str = "test") -> None:
        """Change a unit, or take the change away with an empty text."""
        file = self.units / f"{unit}.d" / f"{name}.conf"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        self.systemctl("daemon-reload")

    def main(self, unit: str) -> int:
        """The pid out here of a unit's main process; 0 when there is none."""
        inner = self.shown(unit, "MainPID")
        for pid in self.processes(unit):
            with suppress(FileNotFoundError, ProcessLookupError):
                status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
                if f"\t{inner}\n" in status.partition("NSpid:")[2].partition("\n")[0] + "\n":
                    return pid
        return 0

    def _pid(self) -> int:
        assert self._first is not None
        (child,) = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text().split()
        return int(child)

    def _is_up(self) -> bool:
        with suppress(ValueError, FileNotFoundError):
            return self.inside("systemctl", "--user", "show", "--property=Version").code == 0
        return False

    def _is_over(self) -> bool:
        return self._first is not None and self._first.poll() is not None


@contextmanager
def user_manager() -> Iterator[UserManager]:
    """A manager for a while."""
    folder = Path(tempfile.mkdtemp(prefix="cs", dir="/tmp"))  # short, as names of sockets must be
    manager = UserManager(folder)
    try:
        manager.start()
        yield manager
    finally:
        manager.stop()
        shutil.rmtree(folder)


def _hierarchies() -> list[Path]:
    """Where systemd keeps its folders of processes: the one hierarchy of today, or the named one of former times."""
    own = [CGROUPS / "systemd", CGROUPS / "unified"]
    there = [one for one in own if (one / "cgroup.procs").exists()] or [CGROUPS]
    return [one for one in there if (one / "cgroup.procs").exists() and os.access(one, os.W_OK)]


__all__ = ["UserManager", "environment", "user_manager", "why_not"]
