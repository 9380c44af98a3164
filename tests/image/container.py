"""Runs a stage's root as a container engine would: its user, no privilege, a root that cannot be written, process 1."""

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from image.stage import ALONE, INSIDE, Made
from support.command import Ended
from support.contained import First
from support.recipe import words

TMP = "rw,noexec,nosuid,nodev,size=64m,mode=1777"
"""As `--tmpfs /tmp` mounts it."""
READ_ONLY = f"""
mount -t tmpfs -o {TMP} tmpfs "$root/tmp"
mount --bind "$data" "$root/data"
mount --bind "$secrets" "$root/run/secrets"
mount -o remount,bind,ro "$root/run/secrets"
mount -o remount,bind,ro "$root"
"""


@dataclass
class Image:
    """A performed stage, and the volume and secrets that it is run with. The network is this machine's own."""

    made: Made
    data: Path
    secrets: Path

    def command(self, *args: str) -> list[str]:
        """The entrypoint with these arguments, or with the image's own."""
        given = list(args) or words(self.made.stage.one("CMD"))
        return [*words(self.made.stage.one("ENTRYPOINT")), *given]

    @contextmanager
    def running(self, *args: str, settings: Mapping[str, str]) -> Iterator[First]:
        """The container, as process 1 of its namespace; killed at the end if it still runs."""
        script = f'root="$1" data="$2" secrets="$3"\n{INSIDE}{READ_ONLY}\nexec chroot "$root" '
        line = shlex.join(self._as_user(self.command(*args), settings))
        process = subprocess.Popen(
            [*ALONE, script + line, "sh", self.made.root, self.data, self.secrets],
            stdout=subprocess.PIPE,
            stderr=(self.data.parent / "stderr").open("w"),
            text=True,
        )
        try:
            first = First(process)
            yield first
        finally:
            # The kernel forgets --kill-child when the user changes. Children of `unshare` are nobody else's.
            if process.poll() is None:
                os.kill(first.pid, signal.SIGKILL)
            process.communicate()

    def ended(self, first: First, how: signal.Signals | None = None) -> Ended:
        """Wait for the end, after a signal to process 1 if one is named."""
        if how:
            os.kill(first.pid, how)
        out, _ = first.process.communicate(timeout=120)
        return Ended(first.process.returncode, out, (self.data.parent / "stderr").read_text())

    def execute(self, first: First, command: list[str], settings: Mapping[str, str]) -> Ended:
        """A further command in the running container, as an engine's health check is."""
        enter = ["nsenter", "--target", str(first.pid), "--mount", "--pid", "--root", "--wd"]
        done = subprocess.run(
            [*enter, *self._as_user(command, settings)], capture_output=True, text=True, check=False, timeout=60
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def _as_user(self, command: list[str], settings: Mapping[str, str]) -> list[str]:
        user, group = self.made.user.split(":")
        drop = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        env = [f"{name}={value}" for name, value in {**self.made.env, **settings}.items()]
        cd = ["sh", "-c", f'cd {self.made.workdir} && exec "$@"', "sh"]
        return [
            "setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", *drop, "env", "-i", *env, *cd, *command
        ]  # fmt: skip
