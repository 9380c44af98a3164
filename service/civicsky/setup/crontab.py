"""Our lines in a user's crontab: how they are written, found again, replaced and taken out. Pure.

A line of ours ends in a comment that names its kind and the data directory; all other lines are the user's, and stay
byte for byte as they are. Texts are decoded with `surrogateescape`.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, get_args

from civicsky.errors import Usage

Kind = Literal["fetch", "keep-alive"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

MAX_COMMAND_BYTES: Final = 998
"""Debian's cron cuts a longer command off without a word (MAX_COMMAND in its cron.h)."""

_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\]")
"""What no quoting brings through both cron and the shell in every cron: backslashes, breaks, and bytes beyond UTF-8."""


def line(kind: Kind, when: str, command: Sequence[str], data_dir: Path, log: Path) -> str:
    """One line, without its end: at these times (five fields) run a command, and append both outputs to a log.

    It asks of the shell no more than /bin/sh can, and of the environment nothing. Raises `Usage` for a path that cron
    cannot be given.
    """
    words = " ".join(map(_quoted, command))
    told = f"{words} >> {_quoted(str(log))} 2>&1{_mark(kind, data_dir)}"
    if len(told.encode()) > MAX_COMMAND_BYTES:
        raise Usage(
            f"the command is longer than the {MAX_COMMAND_BYTES} bytes that cron takes; "
            f"use shorter paths than {data_dir}, or a timer (--timer)"
        )
    return f"{when} {told}"


def merged(text: str, data_dir: Path, lines: Mapping[Kind, str | None]) -> str:
    """A crontab with these lines of ours, each kind once; None takes a kind out.

    A kind that is not named stays as it is, and so does what belongs to another data directory. A line takes the place
    of its former self, else it is put at the end.
    """
    kept, left = [], dict(lines)
    for one in text.split("\n"):
        kind = kind_of(one, data_dir)
        if kind is None or kind not in lines:
            kept.append(one)
        elif (new := left.pop(kind, None)) is not None:
            kept.append(new)
    if added := [new for new in left.values() if new is not None]:
        kept[-1:] = [*filter(None, kept[-1:]), *added, ""]
    new_text = "\n".join(kept)
    # Cron takes no text whose last line has no end.
    return new_text if new_text in {text, ""} or new_text.endswith("\n") else new_text + "\n"


def kind_of(one: str, data_dir: Path) -> Kind | None:
    """What a line of a crontab is to a data directory; None: nothing of ours. A line that is commented out is not."""
    if one.startswith("#"):
        return None
    ends = (one, one.rstrip("\r"), one.rstrip("\r \t"))  # the folder's name may end in a space itself
    return next((kind for kind in KINDS if any(end.endswith(_mark(kind, data_dir)) for end in ends)), None)


def _mark(kind: Kind, data_dir: Path) -> str:
    return f" # civicsky {kind}: {_escaped(str(data_dir))}"


def _quoted(word: str) -> str:
    return _escaped(shlex.quote(word))


def _escaped(word: str) -> str:
    """A percent sign would be a line's end to cron; it takes the backslash away again, also within quotes."""
    if _UNSAFE.search(word):
        raise Usage(f"{word!a}: cron cannot be given a path with a backslash, a line break or such; rename it")
    return word.replace("%", r"\%")
