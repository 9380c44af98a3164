"""The installed package as another release of it: a copy with a version and messages of its own, run as processes."""

import os
import shutil
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import civicsky
from support.command import environment

MESSAGES = "workers/messages.py"


def release(folder: Path, version: str, speaks: int | None = None) -> Path:
    """A copy of that version; gives the folder that holds it, for `of`.

    With `speaks`, its messages are of that version, and its jobs have a field more, without which it takes none.
    """
    package = Path(civicsky.__file__).parent
    shutil.copytree(package, folder / "civicsky", copy_function=_linked, ignore=shutil.ignore_patterns("__pycache__"))
    metadata = distribution("civicsky").read_text("METADATA") or ""
    info = folder / f"civicsky-{version}.dist-info"
    info.mkdir()
    changed = replaced(metadata, f"\nVersion: {distribution('civicsky').version}\n", f"\nVersion: {version}\n")
    (info / "METADATA").write_text(changed)
    if speaks is not None:
        file = folder / "civicsky" / MESSAGES
        text = replaced(file.read_text(), "VERSION: Final = 1\n", f"VERSION: Final = {speaks}\n")
        text = replaced(
            text, "\n    body: bytes\n\n\nclass Claim", "\n    body: bytes\n    rank: int = 7\n\n\nclass Claim"
        )
        text = replaced(
            text, "    if (job.method, job.path)", "    _number(head, 'rank')\n    if (job.method, job.path)"
        )
        file.unlink()  # it is the installed one's, too
        file.write_text(text)
    return folder


def of(release: Path | None, **settings: Any) -> dict[str, str]:
    """The environment in which the command is that release; None: the installed one."""
    return environment(**settings) | ({"PYTHONPATH": str(release)} if release else {})


def replaced(text: str, old: str, new: str) -> str:
    """Once; fails when there is nothing to replace, or more than one."""
    assert text.count(old) == 1, old
    return text.replace(old, new)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
