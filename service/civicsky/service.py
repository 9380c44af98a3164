"""`civicsky service`: have the machine start what must be started: lines in the user's crontab, a timer of the user's.

Nothing is said to be done before it was read back. What is not ours stays as it is. No secret gets into a line or a
unit: they name files only.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from civicsky import datadir, unit
from civicsky.crontab import KINDS, Kind, line, merged
from civicsky.errors import Failed, Usage
from civicsky.model import now_us
from civicsky.schedule import NO_TIME, last_due
from civicsky.settings import CONFIG_VARIABLE, ENV_PREFIX, Settings, expanded

KEEP_ALIVE: Final = "*/5 * * * *"
_FLAGS: Final = frozenset({CONFIG_VARIABLE, "CIVICSKY_DATA_DIR"})
"""Variables that become flags of the command."""
_SCHEDULE: Final = frozenset({"CIVICSKY_FEEDS__AT", "CIVICSKY_FEEDS__ZONE"})
_ESCAPES: Final = re.compile(rb"\\[rb]")
_NO_CRONTAB: Final = (
    "there is no program crontab here: install what Debian calls cron, use --timer if systemd is there, "
    "or give the lines above to the scheduler that you have"
)
_NEXT: Final = (
    "systemctl --user daemon-reload",
    f"systemctl --user enable --now {unit.TIMER}",
    "loginctl enable-linger",
)

Say = Callable[[str], None]


class Place(NamedTuple):
    """What is to be started, and where: all paths absolute."""

    settings: Settings
    program: Path
    config: Path | None
    data_dir: Path

    def command(self, *words: str) -> list[str]:
        """A command of ours that needs neither a folder to start in nor an environment."""
        config = ["--config", str(self.config)] if self.config else []
        return [str(self.program), *words, *config, "--data-dir", str(self.data_dir)]


def place_of(settings: Settings, config: Path | None) -> Place:
    """Where we are installed, and what was chosen. Raises `Usage` when the command's file cannot be found."""
    beside = Path(sys.executable).absolute().with_name("civicsky")
    found = str(beside) if beside.is_file() else shutil.which("civicsky")
    if found is None:
        raise Usage(f"there is no command civicsky beside {sys.executable}, nor in PATH; install the package")
    return Place(settings, Path(found).absolute(), config and config.absolute(), expanded(settings.data_dir))


# ---- cron ------------------------------------------------------------------------------------------------------------


def cron_lines(place: Place, *, keep_alive: bool) -> dict[Kind, str | None]:
    """Our lines by kind; None: not wanted by the settings. Raises `Usage` when none is wanted.

    Cron knows no time zones: so the fetch is started every hour, and finds out by itself whether it is due.
    """
    at, zone = place.settings.feeds.at, place.settings.feeds.zone
    if not at and not keep_alive:
        raise Usage(NO_TIME)
    log = place.data_dir / datadir.CRON_LOG
    lines: dict[Kind, str | None] = {"fetch": None}
    if at:
        minute = datetime.fromtimestamp(last_due(now_us(), at, zone) / 1e6).minute  # noqa: DTZ006  (cron's own clock)
        lines["fetch"] = line("fetch", f"{minute} * * * *", place.command("fetch", "--due"), place.data_dir, log)
    if keep_alive:
        half = "run" if place.settings.label.chosen else "collect"
        command = place.command(half, "--if-not-running")
        lines["keep-alive"] = line("keep-alive", KEEP_ALIVE, command, place.data_dir, log)
    return lines


def install_cron(place: Place, say: Say, *, keep_alive: bool, only_print: bool) -> None:
    """Write our lines into the user's crontab, each once. Raises `Usage` or `Failed`, and then it is as it was."""
    _check_environment(say)
    _check_paths(place.settings, say)
    lines = cron_lines(place, keep_alive=keep_alive)
    if only_print or not shutil.which("crontab"):
        _say_lines(lines, say)
        if not only_print:
            raise Usage(_NO_CRONTAB)
        return
    before = _crontab()
    folder = datadir.prepare(place.data_dir)
    (folder / datadir.CRON_LOG).touch(mode=0o600)
    _write_crontab(before, merged(before, place.data_dir, lines))
    say("in the crontab now:")
    _say_lines(lines, say)
    if lines["fetch"] is None:
        say("no daily fetch: feeds.at is not set")
    if keep_alive and not place.settings.label.chosen:
        say("no model is chosen, so posts are only collected")
    say(f"both outputs go to {folder / datadir.CRON_LOG}")
    where = place.config or "a settings file, named with --config"
    say(f"cron has no environment of yours: keys go into {where}, mode 600")


def uninstall_cron(place: Place, say: Say) -> None:
    """Take our lines for this data directory out of the user's crontab."""
    if not shutil.which("crontab"):
        raise Usage("there is no program crontab here, so there is nothing to take out")
    before = _crontab()
    after = merged(before, place.data_dir, dict.fromkeys(KINDS))
    _write_crontab(before, after)
    n = before.count("\n") - after.count("\n")
    say(f"{n} of our lines taken out of the crontab" if n else f"the crontab has no line for {place.data_dir}")


def _say_lines(lines: dict[Kind, str | None], say: Say) -> None:
    for one in filter(None, lines.values()):
        say(one)


def _crontab() -> str:
    """The user's crontab; empty when there is none. What cannot be read is never taken to be empty."""
    ran = _ran("crontab", "-l")
    said = ran.stderr.decode(errors="replace").strip()
    if ran.returncode == 0:
        shown = _unescaped(ran.stdout) if _ESCAPES.search(ran.stdout) else ran.stdout
        return shown.decode("utf-8", "surrogateescape")
    if "no crontab for" in said or "No such file" in said:
        return ""
    raise Failed(f"the crontab cannot be read, and is left alone: {said[:200] or f'exit code {ran.returncode}'}")


def _unescaped(shown: bytes) -> bytes:
    r"""The table byte for byte: Debian's `crontab -l` shows a carriage return as \r, an editor gets it as it is."""
    table = _ran("crontab", "-e", VISUAL="cat", EDITOR="cat").stdout
    if shown not in {table, table.replace(b"\r", rb"\r").replace(b"\b", rb"\b")}:
        raise Failed("the crontab cannot be read byte for byte, and is left alone; --print gives the lines to paste")
    return table


def _write_crontab(before: str, after: str) -> None:
    if after == before:
        return
    ran = _ran("crontab", "-", given=after.encode("utf-8", "surrogateescape"))
    if ran.returncode:
        said = ran.stderr.decode(errors="replace").strip()
        raise Failed(
            f"crontab does not take it: {said[:200] or f'exit code {ran.returncode}'}; --print gives the lines"
        )
    if _crontab() != after:
        raise Failed("the crontab is not what was written: somebody else writes it, too; look with `crontab -l`")


def _ran(*command: str, given: bytes = b"", **variables: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(  # noqa: S603  (our own words)
        command, input=given, env={**os.environ, "LC_ALL": "C", **variables}, capture_output=True, check=False
    )


def _check_environment(say: Say) -> None:
    """Name what is set here and will not be there; its values are nobody's business."""
    ours = {name for name in os.environ if name.upper().startswith(ENV_PREFIX) and name.upper() not in _FLAGS}
    if schedule := sorted(name for name in ours if name.upper() in _SCHEDULE):
        raise Usage(
            f"{', '.join(schedule)}: what is started has no environment of yours; use the settings file instead"
        )
    if ours:
        say(f"set here, and unknown to what is started: {', '.join(sorted(ours))}; write them into the settings file")


def _check_paths(settings: Settings, say: Say) -> None:
    """Name what would be looked for in another folder than now."""
    paths = [task for task in settings.label.tasks if task.endswith(".toml")]
    paths += [str(settings.label.gguf)] if settings.label.gguf else []
    for path in paths:
        if not path.startswith(("/", "~")):
            say(f"{path}: what is started begins in another folder; write the whole path into the settings file")


# ---- systemd ---------------------------------------------------------------------------------------------------------


def unit_texts(place: Place) -> dict[str, str]:
    """The units of the daily fetch, by their files' names. Raises `Usage` when no time is set."""
    feeds = place.settings.feeds
    if not feeds.at:
        raise Usage(NO_TIME)
    return {
        unit.SERVICE: unit.service_text(place.command("fetch", "--due")),
        unit.TIMER: unit.timer_text(feeds.at, feeds.zone),
    }


def install_timer(place: Place, say: Say, *, only_print: bool) -> None:
    """Write the units, and start the timer if a user manager is there; else say the commands that do."""
    _check_environment(say)
    texts = unit_texts(place)
    if only_print:
        for name, text in texts.items():
            say(f"== {name}\n{text}")
        return
    datadir.prepare(place.data_dir)
    folder = _units()
    for name in texts:
        _refuse_foreign(folder / name)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        _replace(folder / name, text)
        say(f"written: {folder / name}")
    if _managed("daemon-reload") and _managed("enable", "--now", unit.TIMER) and _managed("restart", unit.TIMER):
        say(f"started: {unit.TIMER}; `loginctl enable-linger` keeps it while you are not logged in")
        return
    say("no user manager of systemd answers here; when you are logged in:")
    for command in _NEXT:
        say(f"  {command}")


def uninstall_timer(say: Say) -> None:
    """Stop the timer if a user manager is there, and remove the units that we wrote."""
    folder = _units()
    files = [folder / name for name in (unit.TIMER, unit.SERVICE)]
    for file in files:
        _refuse_foreign(file)
    there = [file for file in files if file.exists()]
    if not there:
        say(f"there is no timer of ours in {folder}")
        return
    _managed("disable", "--now", unit.TIMER)
    (folder / "timers.target.wants" / unit.TIMER).unlink(missing_ok=True)  # if nobody was there to disable it
    for file in there:
        file.unlink()
        say(f"removed: {file}")
    _managed("daemon-reload")


def _units() -> Path:
    return expanded(Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config")) / "systemd" / "user"


def _refuse_foreign(file: Path) -> None:
    if file.exists() and not file.read_text(encoding="utf-8", errors="replace").startswith(unit.MARK):
        raise Usage(f"{file} was not written by us; move it away, or edit it by hand")


def _replace(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def _managed(*words: str) -> bool:
    """Ask the user's service manager; whether it did it."""
    if not shutil.which("systemctl"):
        return False
    return _ran("systemctl", "--user", *words).returncode == 0


def check_wanted(*, cron: bool, timer: bool, keep_alive: bool = False) -> None:
    """Raises `Usage` when nothing is asked for, or what does not go together."""
    if not cron and not timer:
        raise Usage("say where: --cron for lines in your crontab, --timer for a timer of systemd")
    if keep_alive and not cron:
        raise Usage("--keep-alive is for cron: add --cron; under systemd civicsky.service keeps itself alive")
