"""What can be wrong at a start: the exit code of the table of faults, and one line: what, where, and what to do.

What must not fail a start is below the table.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from civicsky import datadir
from conftest import skip
from support.command import CIVICSKY, LAST_SEQ, Ended, end_when, environment, query, run, start, until
from support.led import all_told, balance_closes

NOWHERE = ("--relay", "ws://127.0.0.1:1")
NO_HOME = "/proc/nowhere"
"""Not there, and nobody can make it."""
RUN = ("run", *NOWHERE, "--model-url", "http://127.0.0.1:1/v1", "--model", "m")
COLLECT = ("collect", *NOWHERE)
LABEL = ("label", "--model-url", "http://127.0.0.1:1/v1", "--model", "m")
BYTES = 100_000


class Place(NamedTuple):
    """Where a fault is arranged."""

    data: Path
    disk: Path
    """A small one."""
    stack: ExitStack


class Fault(NamedTuple):
    """A start that fails."""

    command: tuple[str, ...]
    code: int
    says: tuple[str, ...]
    """What, where, and what to do; DATA stands for the data directory."""
    arrange: Callable[[Place], str | Path | None] = lambda _: None
    """Gives the data directory, if it is another."""
    settings: Mapping[str, Any] = MappingProxyType({})


def newer(name: str) -> Callable[[Place], None]:
    def arrange(place: Place) -> None:
        with closing(sqlite3.connect(place.data / name)) as db:
            db.execute("PRAGMA user_version = 99")

    return arrange


def held_by_another(*roles: datadir.Role) -> Callable[[Place], None]:
    return lambda place: place.stack.enter_context(datadir.locked(place.data, roles))


def full(place: Place) -> Path:
    """The directory on a disk without room for even a page more."""
    data = place.disk / "data"
    shutil.copytree(place.data, data)
    fill(place.disk / "fill")
    return data


def full_before_anything(place: Place) -> Path:
    fill(place.disk / "fill")
    return place.disk / "data"


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as stream:
        try:
            while stream.write(b"\0" * 4096):
                pass
        except OSError:
            return


def read_only(place: Place) -> Path:
    shutil.copytree(place.data, place.disk / "data")
    subprocess.run(["mount", "-o", "remount,ro", place.disk], check=True)
    return place.disk / "data"


def under_a_file(place: Place) -> Path:
    (place.disk / "file").touch()
    return place.disk / "file" / "data"


NEWER = ("was written by a newer civicsky (format 99)", "upgrade civicsky")
SECOND = ("is held by", f'"pid": {os.getpid()}', "stop it, or use another --data-dir")
NO_ROOM = (" full", "make room on the disk and start again")
NO_SUCH_HOME = ("~nobody-at-all/x: there is no such home folder here", "write the path in full")

FAULTS: dict[str, Fault] = {
    "a newer journal": Fault(RUN, 2, ("DATA/journal.db", *NEWER), newer("journal.db")),
    "a newer journal, collect": Fault(COLLECT, 2, ("DATA/journal.db", *NEWER), newer("journal.db")),
    "a newer journal, label": Fault(LABEL, 2, ("DATA/journal.db", *NEWER), newer("journal.db")),
    "a newer ledger": Fault(RUN, 2, ("DATA/ledger.db", *NEWER), newer("ledger.db")),
    "a newer ledger, collect": Fault(COLLECT, 2, ("DATA/ledger.db", *NEWER), newer("ledger.db")),
    "a newer store": Fault(RUN, 2, ("DATA/posts.db", *NEWER), newer("posts.db")),
    "a second copy": Fault(RUN, 2, ("DATA", "'collect'", *SECOND), held_by_another("collect", "label")),
    "a second copy, collect": Fault(COLLECT, 2, ("DATA", "'collect'", *SECOND), held_by_another("collect")),
    "a second copy, label": Fault(LABEL, 2, ("DATA", "'label'", *SECOND), held_by_another("label")),
    "run beside label": Fault(RUN, 2, ("DATA", "'label'", *SECOND), held_by_another("label")),
    "a full disk": Fault(RUN, 1, ("DATA", *NO_ROOM), full),
    "a full disk, label": Fault(LABEL, 1, ("DATA", *NO_ROOM), full),
    "a full disk, nothing there yet": Fault(
        COLLECT, 1, ("DATA: No space left on device", NO_ROOM[1]), full_before_anything
    ),
    "a read-only disk": Fault(RUN, 2, ("DATA cannot be written", "--data-dir"), read_only),
    "a read-only disk, recheck": Fault(("recheck",), 2, ("DATA", "--data-dir"), read_only),
    "under a file": Fault(COLLECT, 2, ("DATA cannot be written: Not a directory", "--data-dir"), under_a_file),
    "being restored": Fault(
        RUN, 2, ("DATA is being restored", "restore again"), lambda place: (place.data / ".restoring").mkdir()
    ),
    **{
        f"nobody's home, {command[0]}": Fault(command, 2, NO_SUCH_HOME, lambda _: "~nobody-at-all/x")
        # Each way to the data directory; `~` is understood in one place.
        for command in (
            RUN, (*RUN, "--if-not-running"), ("status",), ("estimate",), ("doctor", "--offline"), ("backup", "x"),
            ("service", "install", "--cron", "--print"),
        )
    },
    "no model": Fault(("run", *NOWHERE), 2, ("no model chosen: give --model-url URL --model NAME",)),
    "no model of the workers": Fault(
        ("run", *NOWHERE), 2, ("no model chosen for label workers", "--model NAME"),
        settings={"workers__url": "nats://127.0.0.1:1"},
    ),
    "nobody's task file": Fault(RUN, 2, NO_SUCH_HOME, settings={"label__tasks": '["~nobody-at-all/x"]'}),
    "nobody's list": Fault(
        RUN, 2, NO_SUCH_HOME, settings={"authors__fetch": "true", "authors__lists": '{"a": "~nobody-at-all/x"}'}
    ),
    "nobody's log": Fault(RUN, 2, NO_SUCH_HOME, settings={"log__file": "~nobody-at-all/x"}),
    "nobody's log, logs": Fault(("logs", "~nobody-at-all/x"), 2, NO_SUCH_HOME),
    "nobody's backups": Fault(("backup", "~nobody-at-all/x"), 2, NO_SUCH_HOME),
    "nobody's backup": Fault(("restore", "~nobody-at-all/x"), 2, NO_SUCH_HOME),
    "nobody's export": Fault(("export", "--format", "csv", "--out", "~nobody-at-all/x"), 2, NO_SUCH_HOME),
}  # fmt: skip


@pytest.fixture(scope="module")
def labelled(relay: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with all three databases. Copy it before use."""
    folder = tmp_path_factory.mktemp("labelled") / "data"
    ended = run(*RUN, "--data-dir", folder, "--max-minutes", 0.001)
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def place(labelled: Path, small_disk: Path, tmp_path: Path) -> Iterator[Place]:
    data = Path(shutil.copytree(labelled, tmp_path / "data"))
    with ExitStack() as stack:
        yield Place(data, small_disk, stack)


def own_lines(ended: Ended) -> list[str]:
    return [line for line in ended.err.splitlines() if not line.startswith("{")]


@pytest.mark.parametrize("name", FAULTS)
def test_a_start_that_fails_says_why_in_one_line_with_its_exit_code(name: str, place: Place) -> None:
    fault = FAULTS[name]
    data = fault.arrange(place) or place.data
    before = {path: path.read_bytes() for path in place.data.glob("*.db")}
    ended = run(*fault.command, "--data-dir", data, **fault.settings)
    assert ended.code == fault.code, ended.err
    (line,) = own_lines(ended)
    assert line.startswith("civicsky: ")
    for part in fault.says:
        assert part.replace("DATA", str(data)) in line
    if "newer" in name:
        (touched,) = [path for path in before if path.name in " ".join(fault.says)]
        assert touched.read_bytes() == before[touched]


# ---- what must not fail a start --------------------------------------------------------------------------------------


def start_in(folder: Path, *command: str | Path, env: dict[str, str], cwd: str = "/") -> Ended:
    """Start it, and stop it once it has started."""
    err = folder / "err"
    with err.open("w") as stream:
        process = subprocess.Popen(
            [*map(str, command), "--data-dir", folder / "data"], env=env, cwd=cwd, stdout=subprocess.PIPE,
            stderr=stream, text=True,
        )  # fmt: skip
        until(lambda: '"source_down"' in err.read_text() or process.poll() is not None, "it to look for the relay")
        process.terminate()
        out, _ = process.communicate(timeout=60)
    return Ended(process.returncode, out, err.read_text())


def events(ended: Ended) -> list[str]:
    return [json.loads(line)["event"] for line in ended.err.splitlines()]


def test_without_a_network_it_starts_and_waits(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        skip("a network of its own needs root")
    asks = ("--model-url", "https://api.example.org/v1", "--model", "m")
    ended = start_in(tmp_path, "unshare", "--net", CIVICSKY, "run", *asks, env=environment())
    assert ended.code == 0, ended.err
    assert events(ended)[0] == "started"
    assert events(ended).count("source_down") == 1
    assert "Temporary failure in name resolution" in ended.err or "Name or service not known" in ended.err


def test_doctor_without_a_network_names_what_cannot_be_reached(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        skip("a network of its own needs root")
    command = [CIVICSKY, "doctor", "--data-dir", str(tmp_path), "--seconds", "3"]
    ran = subprocess.run(
        ["unshare", "--net", *command], capture_output=True, text=True, env=environment(), check=False, timeout=60
    )
    assert ran.returncode == 1, ran.stderr
    assert "wss://bsky.network" in ran.stdout
    assert ran.stderr == ""


@pytest.mark.parametrize("home", [NO_HOME, None])
def test_it_needs_no_home(home: str | None, tmp_path: Path) -> None:
    env = environment()
    env.pop("HOME", None)
    env |= {"HOME": home} if home else {}
    ended = start_in(tmp_path, CIVICSKY, *RUN, env=env, cwd="/proc")
    assert ended.code == 0, ended.err
    assert events(ended)[0] == "started"


def test_a_report_needs_no_home(tmp_path: Path, relay: str, model: tuple[str, Path]) -> None:
    """What draws its plots wants to keep a cache there."""
    asks = ("--relay", relay, "--model-url", model[0], "--model", "mock")
    ended = run("run", *asks, "--data-dir", tmp_path, "--max-frames", 300, source__start="window")
    assert ended.code == 0, ended.err
    ran = subprocess.run(
        [CIVICSKY, "report", "--data-dir", tmp_path, "--out", tmp_path / "page.html"],
        env={**environment(), "HOME": NO_HOME, "XDG_CACHE_HOME": NO_HOME, "XDG_CONFIG_HOME": NO_HOME},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (tmp_path / "page.html").stat().st_size > 1000


@pytest.mark.parametrize("by", ["+1h", "-1h"])
def test_with_a_clock_that_is_an_hour_off_nothing_is_lost_and_all_is_right_once_it_is_set(
    by: str, tmp_path: Path, relay: str, model: tuple[str, Path]
) -> None:
    preload = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if preload is None:
        skip("needs Debian's faketime")
    assert preload
    asks = ("--relay", relay, "--model-url", model[0], "--model", "mock", "--data-dir", tmp_path)
    wrong = {**environment(source__start="window"), "LD_PRELOAD": str(preload), "FAKETIME": by}
    ran = subprocess.run(
        [CIVICSKY, "run", *asks, "--max-frames", "900"], env=wrong, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    before = query(tmp_path / "ledger.db", "SELECT count(*) FROM job WHERE state = 'done'")
    assert before[0][0] > 100
    newest = f"SELECT max(v) > (unixepoch() + {1800 if by == '+1h' else -1800}) * 1000000 FROM doc"
    assert query(tmp_path / "ledger.db", newest) == [(int(by == "+1h"),)], "its clock was off"
    process = start("run", *asks)
    at = "SELECT cursor FROM host"
    ended = end_when(
        process,
        lambda: query(tmp_path / "journal.db", at) == [(LAST_SEQ,)] and all_told(tmp_path),
        "all to be labelled and stored",
    )
    assert ended.code == 0, ended.err
    assert balance_closes(tmp_path)
    assert query(tmp_path / "ledger.db", "SELECT 1 FROM label GROUP BY rkey, did, cid HAVING count(*) > 1") == []
    stored = "SELECT count(*) FROM posts WHERE doc ->> '$.labels.civic.cid' = doc ->> '$.cid' AND state = 'live'"
    assert query(tmp_path / "posts.db", stored) == [(373,)]


def test_python_itself_is_not_looked_for_in_a_home(tmp_path: Path) -> None:
    """A worker is a process of its own: it starts without a home, too."""
    env = {**environment(), "HOME": NO_HOME}
    ended = subprocess.run(
        [sys.executable, "-c", "import civicsky.worker, civicsky.filter; civicsky.filter.load()"],
        env=env, capture_output=True, text=True, check=False, cwd="/proc",
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
