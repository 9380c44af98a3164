"""Units of the user's service manager: written, started, looked at, taken away. What is not ours stays as it is."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from civicsky.errors import Usage
from civicsky.settings import expanded
from civicsky.setup import unit

Say = Callable[[str], None]


def folder() -> Path:
    """Where the user's units are."""
    return expanded(Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config")) / "systemd" / "user"


def refuse_foreign(files: Iterable[Path], data_dir: Path | None = None) -> None:
    """Raises `Usage` when one of them was not written by us, or was written for another data directory."""
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else unit.OURS
        if not text.startswith(unit.OURS):
            raise Usage(f"{file} was not written by us; move it away, or edit it by hand")
        if data_dir and unit.data_dir_of(text) not in {"", str(data_dir)}:
            there = unit.data_dir_of(text)
            raise Usage(f"{file} is for the data directory {there}; `civicsky service uninstall` it first")


def write(texts: Mapping[Path, str], say: Say) -> None:
    """Write files, each whole or not at all."""
    for file, text in texts.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(file.name + ".new")
        new.write_text(text, encoding="utf-8")
        new.replace(file)
        say(f"written: {file}")


def remove(files: Iterable[Path], say: Say) -> None:
    """Remove files, and the folders of drop-ins that are empty then."""
    for file in files:
        file.unlink()
        say(f"removed: {file}")
        if file.parent.suffix == ".d" and not any(file.parent.iterdir()):
            file.parent.rmdir()


def managed(*words: str) -> bool:
    """Ask the user's service manager; whether it did it."""
    if not shutil.which("systemctl"):
        return False
    return ran("systemctl", "--user", *words).returncode == 0


def answers() -> bool:
    """Whether there is a service manager of the user's."""
    return managed("show", "--property=Version")


def shown(name: str, *properties: str) -> dict[str, str]:
    """Properties of a unit, as the manager tells them."""
    wanted = ",".join(properties)
    said = ran("systemctl", "--user", "show", f"--property={wanted}", name).stdout.decode(errors="replace")
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def version() -> int:
    """Of systemd; 0 when there is none."""
    if not shutil.which("systemctl"):
        return 0
    found = re.match(rb"systemd (\d+)", ran("systemctl", "--version").stdout)
    return int(found[1]) if found else 0


def lingers() -> bool:
    """Whether what the user's manager runs goes on when the user is not logged in."""
    if not shutil.which("loginctl"):
        return False
    return ran("loginctl", "show-user", str(os.getuid()), "--property=Linger", "--value").stdout.strip() == b"yes"


def ran(*command: str, given: bytes = b"", **variables: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a program to its end."""
    return subprocess.run(  # noqa: S603  (our own words)
        command, input=given, env={**os.environ, "LC_ALL": "C", **variables}, capture_output=True, check=False
    )
