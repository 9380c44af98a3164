"""What commands on judged posts share: reading such a file, writing one whole, what a model is shown, progress bars.

It loads little: no plots, no templates, no service.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from civicsky.errors import Usage
from civicsky.research.gold import MAX_BYTES
from civicsky.task import Task

__all__ = ["Progress", "TaskID"]


def read_file(file: Path) -> bytes:
    """A file of judged posts, as it is. Raises `Usage`."""
    try:
        if file.stat().st_size > MAX_BYTES:
            raise Usage(f"{file}: more than {MAX_BYTES:,} bytes; split the file")
        return file.read_bytes()
    except OSError as error:
        raise Usage(f"{file}: {error.strerror}; name a CSV or JSONL file of judged posts") from None


def write_whole(file: Path, text: str) -> None:
    """Whole, or not at all, and on the disk when this returns. Raises `Usage`."""
    part = file.with_suffix(".part")
    try:
        with part.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise Usage(f"{file}: {error.strerror}; name another folder with --out") from None


def shown_in(tasks: Iterable[Task]) -> list[str]:
    """The texts that a model is shown with their answers: to score these would be to score a copy."""
    shown: list[str] = []
    for task in tasks:
        shown += [case.post for case in task.boundaries]
        shown += [example.post for example in task.examples]
        shown += [text for words in task.words for text, _ in words.examples]
    return shown


def progress_bars() -> Progress:
    """On standard error, where that is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)
