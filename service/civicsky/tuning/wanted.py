"""What the user asked for, checked before the first question. Raises `Usage` with one line for the user."""

import os
from pathlib import Path
from typing import Final, Literal, NamedTuple

from civicsky.errors import Usage
from civicsky.settings import Label, Settings
from civicsky.task import Field, Task, load_task
from civicsky.tuning import candidates
from civicsky.tuning.asked import Budget
from civicsky.tuning.candidates import Wording
from civicsky.tuning.search import Measure

CHOICE: Final = "choice.json"
"""What was chosen; when it is there the held-out posts may have been opened."""


class Wanted(NamedTuple):
    """What the user asked for."""

    task: str
    gold: Path
    out: Path
    field: str = ""
    """The field that decides; empty: the task's first."""
    by: Measure = "f1"
    search: Literal["random", "tpe"] = "random"
    candidates: int = 24
    """Few-shot sets to try; with `tpe` sets and wordings together."""
    sizes: tuple[int, ...] = (4, 8, 12)
    wordings: Path | None = None
    """A task file, or a folder of them, whose wordings are tried."""
    write: int = 0
    """Wordings that the model is to write."""
    replace: bool = False
    """Whether sets may also take the place of the old examples."""
    no_texts: bool = False
    """Sets of the task's own examples only: no post of GOLD comes into the file."""
    seed: int = 1
    budget: Budget = Budget()


def field_of(base: Task, wanted: Wanted) -> Field:
    """The field that decides."""
    names = [field.name for field in base.fields]
    if wanted.field and wanted.field not in names:
        raise Usage(f"--field {wanted.field}: the task has no such field; name one of {names}")
    return base.fields[names.index(wanted.field) if wanted.field else 0]


def label_of(settings: Settings, wanted: Wanted) -> Label:
    """How the model is asked."""
    label = settings.label
    if not label.chosen:
        raise Usage("no model chosen: give --model-url URL --model NAME, or --model local")
    if wanted.budget.money is not None and label.model not in label.prices:
        raise Usage(f"--max-money: the model {label.model!r} has no price; set label.prices, or use --max-tokens")
    if wanted.write and label.model == "local":
        raise Usage("--write: the packaged model is too small to write instructions; give --wordings, or another model")
    if not wanted.sizes or min(wanted.sizes) < 1:
        raise Usage("--examples: give numbers of 1 or more, such as 4,8,12")
    return label


def asks_by_words(label: Label, base: Task) -> bool:
    """Whether posts are asked about with one word."""
    return label.way == "words" or (label.way == "auto" and label.model == "local" and bool(base.words))


def wordings_of(base: Task, wanted: Wanted) -> tuple[Wording, ...]:
    """The old one, then those of files."""
    found = [candidates.wording_of(f"{base.name} {base.version}", base)]
    if wanted.wordings is not None:
        files = sorted(wanted.wordings.glob("*.toml")) if wanted.wordings.is_dir() else [wanted.wordings]
        if not files:
            raise Usage(f"--wordings {wanted.wordings}: no task file (.toml) is in it")
        for file in files:
            other, _ = load_task(str(file))
            candidates.check_same(base, other, file.name)
            found.append(candidates.wording_of(file.name, other))
    return tuple(found)


def prepare(wanted: Wanted) -> Path:
    """The folder beside the new file."""
    out = wanted.out
    if out.suffix != ".toml":
        raise Usage(f"--out {out}: name a task file, which ends in .toml")
    folder = out.with_suffix(".tuning")
    if out.exists() and not (folder / CHOICE).exists():
        raise Usage(f"{out} is there already; name another file with --out")
    os.umask(0o077)  # texts and answers: their authors may delete them
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Usage(f"{folder}: {error.strerror}; name another file with --out") from None
    return folder
