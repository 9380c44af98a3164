"""`civicsky logs`: the log's JSON lines as people read them, from files, standard input or systemd's journal.

All that is read is hostile: a line may be endless, no JSON, or made to move the cursor. None is shown as it is.
"""

import heapq
import json
import os
import re
import select
import shutil
import stat
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from math import isinf
from pathlib import Path
from typing import Any, Final, NamedTuple

from civicsky import datadir, log
from civicsky.errors import Usage
from civicsky.logfile import HALVES, path_of
from civicsky.model import format_time, now_us, parse_moment, parse_time
from civicsky.settings import Settings, expanded

STDIN: Final = "-"
UNITS: Final = ("civicsky", "civicsky-collect", "civicsky-label")
LEVELS: Final = ("debug", "info", "warning", "error")
LAST: Final = 10
"""Lines of before that `--follow` begins with."""
MAX_BYTES: Final = 65_536
"""Of a line; the rest of it is not read into memory. Ours have some hundreds."""
MAX_CHARS: Final = 4_000
"""Of a line that is shown."""
LOOK_MS: Final = 250
"""Between two looks at files that grow."""

_PLAIN: Final = re.compile(r"[^\s\"'=]+")
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,5}")
_AGO: Final = re.compile(r"(\d{1,6})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_COLOURS: Final = {"debug": "2", "warning": "33", "error": "1;31"}


class Wanted(NamedTuple):
    """Which lines; nothing chosen: all."""

    stages: Sequence[str] = ()
    events: Sequence[str] = ()
    level: str = "debug"
    since: int | None = None
    """Microseconds since 1970 UTC."""


class Line(NamedTuple):
    """A line of a log."""

    at: int
    """When, in microseconds since 1970 UTC; of a line that does not say so when the one before was written."""
    text: str
    values: dict[str, Any] | None
    """None: it is no JSON object, such as a part of a traceback."""


# ---- lines, pure -----------------------------------------------------------------------------------------------------


def moment(text: str) -> int | None:
    """What `--since` says: a date, an RFC 3339 time, or how long ago, such as `90s`, `30m`, `2h`, `3d`.

    Raises `Usage`.
    """
    if not text:
        return None
    if ago := _AGO.fullmatch(text):
        return now_us() - int(ago[1]) * _SECONDS[ago[2]] * 1_000_000
    found = parse_moment(text)
    if found is None:
        raise Usage(f"--since {text!a}: give a date, an RFC 3339 time, or how long ago, such as 30m, 2h or 3d")
    return found


class Cutter:
    """Cuts bytes into lines; of a line's bytes only the first `MAX_BYTES` are kept."""

    def __init__(self) -> None:
        self._part = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that end in these bytes."""
        *ends, rest = data.split(b"\n")
        for end in ends:
            self._add(end)
            yield self.rest()
        self._add(rest)

    def rest(self) -> bytes:
        """What has no end yet, and not again."""
        line, self._part = bytes(self._part), bytearray()
        return line

    def _add(self, data: bytes) -> None:
        self._part += data[: MAX_BYTES - len(self._part)]


class Reader:
    """Makes lines of one source's bytes."""

    def __init__(self) -> None:
        self._at = 0

    def read(self, raw: bytes) -> Line:
        """A line as it was found."""
        text = raw.decode(errors="replace").rstrip("\r")
        try:
            values = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            return Line(self._at, text, None)
        self._at = parse_time(str(values.get("timestamp"))) or self._at
        return Line(self._at, text, values)


def _refuse_constant(name: str) -> None:
    raise ValueError(name)  # NaN is no JSON, and jq would stop at it


def _finite(digits: str) -> float:
    value = float(digits)
    if isinf(value):
        raise ValueError(digits)  # it would be written as Infinity, which is no JSON either
    return value


def is_wanted(line: Line, wanted: Wanted) -> bool:
    """Whether a line is to be shown.

    What is no JSON is mostly the end of a service, so no level leaves it out; of a stage or an event it is none.
    """
    if wanted.since is not None and line.at < wanted.since:
        return False
    if line.values is None:
        return bool(line.text.strip()) and not wanted.stages and not wanted.events
    level = line.values.get("level")
    return (
        (level not in LEVELS or LEVELS.index(level) >= LEVELS.index(wanted.level))
        and (not wanted.stages or line.values.get("stage") in wanted.stages)
        and (not wanted.events or line.values.get("event") in wanted.events)
    )


def as_json(line: Line) -> str | None:
    """A line for programs, in ASCII alone, which no terminal obeys; None when it is no JSON."""
    return None if line.values is None else json.dumps(line.values)


def as_text(line: Line, *, colour: bool) -> str:
    """A line for people: time (UTC), level, stage, event, and what else it says."""
    if line.values is None:
        return log.harmless(line.text)
    values: dict[str, Any] = log.cleaned(line.values)
    when = format_time(line.at)[:19] + "Z" if parse_time(str(values.pop("timestamp", None))) else "-"
    level, stage, event = (_word(values.pop(name, "")) for name in ("level", "stage", "event"))
    head = f"{when:20} {level:7} {stage:7} "
    rest = " ".join(f"{_word(key)}={_word(value)}" for key, value in values.items())
    room = max(0, MAX_CHARS - len(f"{head}{event:17} ..."))
    rest = rest if len(rest) <= room else rest[:room] + "..."
    if not colour:
        return f"{head}{event:17} {rest}".rstrip()
    code = _COLOURS.get(level)
    return f"{_painted(head, code)}{_painted(f'{event:17}', code or '1')} {rest}".rstrip()


def _word(value: Any) -> str:
    """A value of which one sees where it ends; it is harmless already."""
    if isinstance(value, str) and (_PLAIN.fullmatch(value) or not value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _painted(text: str, code: str | None) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if code else text


# ---- where they come from --------------------------------------------------------------------------------------------


class Tail:
    """A file that may grow, be rotated, cut short, or not be there yet.

    `former`: begin with its oldest former self (`.1` is the newest).
    """

    def __init__(self, path: Path, *, former: bool) -> None:
        self._path, self._former = path, former
        self._file: int | None = None
        self._cutter, self._reader = Cutter(), Reader()

    def lines(self) -> Iterator[Line]:
        """What is there, and was not given yet."""
        if self._file is None and not self._open_first():
            return
        while True:
            # Looked at before the rest is read: a file that has moved gets no more lines.
            moved = self._has_moved()
            yield from map(self._reader.read, self._rest())
            if not moved or not self._open_next():
                return

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def unfinished(self) -> Iterator[Line]:
        """A last line without an end."""
        if rest := self._cutter.rest():
            yield self._reader.read(rest)

    def _rest(self) -> Iterator[bytes]:
        assert self._file is not None
        while data := os.read(self._file, MAX_BYTES):
            yield from self._cutter.feed(data)

    def _has_moved(self) -> bool:
        assert self._file is not None
        ours = os.fstat(self._file)
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return True
        if not os.path.samestat(ours, now):
            return True
        if os.lseek(self._file, 0, os.SEEK_CUR) > now.st_size:
            os.lseek(self._file, 0, os.SEEK_SET)  # it was cut short, as `copytruncate` does
        return False

    def _open_first(self) -> bool:
        found = self._selves() if self._former else _opened([self._path])
        return self._take(found, len(found) - 1)

    def _open_next(self) -> bool:
        """The next newer one; the oldest there is, when ours is gone."""
        assert self._file is not None
        found, ours = self._selves(), os.fstat(self._file)
        at = next((n for n, file in enumerate(found) if os.path.samestat(ours, os.fstat(file))), len(found))
        return self._take(found, at - 1)

    def _take(self, found: list[int], at: int) -> bool:
        for n, file in enumerate(found):
            if n != at:
                os.close(file)
        if at < 0:
            return False
        self.close()
        self._file = found[at]
        return True

    def _selves(self) -> list[int]:
        """The file and its former selves, open, each once, the newest first.

        In that order none is missed that is renamed meanwhile, though one may be met twice.
        """
        mark = f"{self._path.name}."
        ends = [path.name.removeprefix(mark) for path in self._path.parent.glob("*") if path.name.startswith(mark)]
        numbers = {int(end) for end in ends if _NUMBER.fullmatch(end)}
        numbers |= {n + 1 for n in numbers} | {1}
        return _opened([self._path, *(self._path.with_name(f"{mark}{n}") for n in sorted(numbers))])


def _opened(paths: Sequence[Path]) -> list[int]:
    found: list[int] = []
    for path in paths:
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except FileNotFoundError:
            continue
        now = os.fstat(file)
        # A pipe or a device in a log's place has no lines of ours, and may never end.
        if not stat.S_ISREG(now.st_mode) or any(os.path.samestat(now, os.fstat(other)) for other in found):
            os.close(file)
        else:
            found.append(file)
    return found


class Stream:
    """Standard input, or what a program says, as it comes."""

    def __init__(self, file: int, program: "subprocess.Popen[bytes] | None" = None) -> None:
        self._file, self._program = file, program
        self._cutter, self._reader = Cutter(), Reader()

    def lines(self) -> Iterator[Line]:
        """Until it ends, or nobody reads what we say of it."""
        poll = _poll_reader()
        poll.register(self._file, select.POLLIN)
        while all(file == self._file for file, _ in poll.poll()) and (data := os.read(self._file, MAX_BYTES)):
            yield from map(self._reader.read, self._cutter.feed(data))
        if rest := self._cutter.rest():
            yield self._reader.read(rest)

    def close(self) -> None:
        """End the program."""
        if self._program is not None:
            self._program.terminate()
            self._program.communicate()


class Found(NamedTuple):
    """Where the lines are."""

    tails: tuple[Tail, ...] = ()
    stream: Stream | None = None


def find(settings: Settings, file: str | None, *, follow: bool, since: int | None) -> Found:
    """What was named; else the settings' log files, else systemd's journal. Raises `Usage` when there is none."""
    if file == STDIN:
        return Found(stream=Stream(sys.stdin.fileno()))
    if file is not None:
        path = expanded(Path(file))
        if not path.exists() and not follow:
            raise Usage(f"{file!a} is not there; name a file, or - for standard input")
        if path.is_dir():
            raise Usage(f"{file!a} is a folder; name a file in it")
        if path.exists() and not path.is_file():
            return Found(stream=Stream(os.open(path, os.O_RDONLY | os.O_CLOEXEC)))
        return Found((Tail(path, former=False),))
    name = settings.log.file or datadir.LOG
    paths = [path_of(name, settings.data_dir, halves) for halves in HALVES]
    there = [path for path in paths if path.exists()]
    if there or (follow and settings.log.file):
        return Found(tuple(Tail(path, former=True) for path in (paths if follow else there)))
    if stream := _journal(follow=follow, since=since):
        return Found(stream=stream)
    raise Usage(
        f"no log found: neither {paths[0]} nor systemd's journal of {UNITS[0]} is there; "
        "name a FILE, or give the service --log-file FILE"
    )


def _journal(*, follow: bool, since: int | None) -> Stream | None:
    """What systemd's journal has of our units; None when it has nothing."""
    program = shutil.which("journalctl")
    if program is None:
        return None
    # Not `--user`: that leaves out what lies in the machine's own files, as where the journal is lost at a reboot.
    units = (f"--user-unit={unit}" for unit in UNITS)
    command = [program, "--quiet", "--no-pager", "--all", "--output=cat", *units]
    if not subprocess.run([*command, "--lines=1"], capture_output=True, check=False).stdout:  # noqa: S603
        return None
    if follow:
        command += ["--follow", f"--lines={LAST if since is None else 'all'}"]
    if since is not None:
        command.append(f"--since=@{since // 1_000_000}")
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)  # noqa: S603
    assert child.stdout is not None
    return Stream(child.stdout.fileno(), child)


# ---- showing ---------------------------------------------------------------------------------------------------------


def show(found: Found, wanted: Wanted, say: Callable[[Line], None], *, follow: bool) -> None:
    """Say each wanted line, in the order of time; with `follow` until nobody reads any more.

    Memory: a piece of each file, and with `follow` the last `LAST` lines.
    """
    with ExitStack() as stack:
        for tail in found.tails:
            stack.callback(tail.close)
        if found.stream is not None:
            stack.callback(found.stream.close)
            for line in found.stream.lines():
                if is_wanted(line, wanted):
                    say(line)
            return
        _show_files(found.tails, wanted, say, follow=follow)


def _show_files(tails: Sequence[Tail], wanted: Wanted, say: Callable[[Line], None], *, follow: bool) -> None:
    lines = (line for line in _merged(tails) if is_wanted(line, wanted))
    for line in deque(lines, LAST) if follow and wanted.since is None else lines:
        say(line)
    if not follow:
        for line in chain.from_iterable(tail.unfinished() for tail in tails):
            if is_wanted(line, wanted):
                say(line)
    while follow and not _nobody_reads():
        for line in _merged(tails):
            if is_wanted(line, wanted):
                say(line)


def _merged(tails: Sequence[Tail]) -> Iterator[Line]:
    return heapq.merge(*(tail.lines() for tail in tails), key=lambda line: line.at)


def _nobody_reads() -> bool:
    """Wait until the next look; whether standard output was closed by its reader meanwhile."""
    return bool(_poll_reader().poll(LOOK_MS))


def _poll_reader() -> select.poll:
    """Wakes up when standard output is closed by its reader, which else shows at the next line only."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return poll
