"""What commands on judged posts share: reading such a file, writing one whole, what a model is shown, progress bars.

It loads little: no plots, no templates, no service.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from civicsky import log
from civicsky.errors import Usage
from civicsky.research.gold import MAX_BYTES
from civicsky.task import Task

__all__ = ["Progress", "TaskID"]

LINE_SECONDS: Final = 60.0
"""From one line of the log to the next, of what takes long where there is no terminal."""


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


class Logged(Progress):
    """Shows no bars: a line of the log when something begins, and once a minute how far it is."""

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        super().__init__(disable=True)
        self._now, self._last = now, now()

    def add_task(
        self,
        description: str,
        start: bool = True,  # noqa: FBT001, FBT002  (as the library has it)
        total: float | None = 100.0,
        completed: int = 0,
        visible: bool = True,  # noqa: FBT001, FBT002
        **fields: Any,
    ) -> TaskID:
        """As the library's, told in the log."""
        task = super().add_task(description, start, total, completed, visible, **fields)
        self._tell(task)
        return task

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """As the library's; told if nothing was for a minute."""
        super().advance(task_id, advance)
        if self._now() - self._last >= LINE_SECONDS:
            self._tell(task_id)

    def _tell(self, task: TaskID) -> None:
        one, self._last = self._tasks[task], self._now()
        log.event(
            "progress", what=one.description, done=int(one.completed), of=None if one.total is None else int(one.total)
        )


def progress_bars(*, logged: bool = False) -> Progress:
    """On standard error, where that is a terminal; else nothing, or (`logged`) lines of the log now and then."""
    console = Console(stderr=True)
    if logged and not console.is_terminal:
        return Logged()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)
