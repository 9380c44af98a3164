"""`civicsky service`: have the machine start what must be started: lines in the user's crontab, a timer of the user's.

Nothing is said to be done before it was read back. What is not ours stays as it is. No secret gets into a line or a
unit: they name files only.
"""

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from civicsky import datadir
from civicsky.errors import EXIT_USAGE, Failed, Usage
from civicsky.loading import CONFIG_VARIABLE, secrets, secrets_file
from civicsky.model import now_us
from civicsky.schedule import NO_TIME, last_due
from civicsky.settings import ENV_PREFIX, Settings, expanded
from civicsky.setup import unit, units
from civicsky.setup.crontab import KINDS, Kind, line, merged
from civicsky.setup.units import Say, managed, ran

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

_NOBODY: Final = "no user manager of systemd answers here; when you are logged in:"
_KEEP_ALIVE: Final = "`civicsky service install --cron --keep-alive` does the same without systemd"
_CREDENTIALS: Final = Path("~/.config/civicsky/credentials")


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
        raise Usage(f"{NO_TIME}; or add --keep-alive, to have the service started")
    log = place.data_dir / datadir.CRON_LOG
    lines: dict[Kind, str | None] = {"fetch": None}
    if at:
        minute = datetime.fromtimestamp(last_due(now_us(), at, zone) / 1e6).minute  # noqa: DTZ006  (cron's own clock)
        lines["fetch"] = line("fetch", f"{minute} * * * *", place.command("fetch", "--due"), place.data_dir, log)
    if keep_alive:
        half = "run" if place.settings.asks else "collect"
        # What cron starts has no other log than a file; that of both outputs would grow for ever.
        to_file = [] if place.settings.log.file else ["--log-file", datadir.LOG]
        command = place.command(half, "--if-not-running", *to_file)
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
    if keep_alive and not place.settings.asks:
        say("no model is chosen, so posts are only collected")
    say(f"both outputs go to {folder / datadir.CRON_LOG}")
    if keep_alive:
        say(f"the service's log: civicsky logs --follow --data-dir {folder}")
    where = secrets_file(place.config) if place.config else "the file of secrets beside a settings file"
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
    listed = ran("crontab", "-l")
    said = listed.stderr.decode(errors="replace").strip()
    if listed.returncode == 0:
        shown = _unescaped(listed.stdout) if _ESCAPES.search(listed.stdout) else listed.stdout
        return shown.decode("utf-8", "surrogateescape")
    if "no crontab for" in said or "No such file" in said:
        return ""
    raise Failed(f"the crontab cannot be read, and is left alone: {said[:200] or f'exit code {listed.returncode}'}")


def _unescaped(shown: bytes) -> bytes:
    r"""The table byte for byte: Debian's `crontab -l` shows a carriage return as \r, an editor gets it as it is."""
    table = ran("crontab", "-e", VISUAL="cat", EDITOR="cat").stdout
    if shown not in {table, table.replace(b"\r", rb"\r").replace(b"\b", rb"\b")}:
        raise Failed("the crontab cannot be read byte for byte, and is left alone; --print gives the lines to paste")
    return table


def _write_crontab(before: str, after: str) -> None:
    if after == before:
        return
    taken = ran("crontab", "-", given=after.encode("utf-8", "surrogateescape"))
    if taken.returncode:
        said = taken.stderr.decode(errors="replace").strip()
        raise Failed(
            f"crontab does not take it: {said[:200] or f'exit code {taken.returncode}'}; --print gives the lines"
        )
    if _crontab() != after:
        raise Failed("the crontab is not what was written: somebody else writes it, too; look with `crontab -l`")


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


# ---- systemd: the daily fetch ----------------------------------------------------------------------------------------


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
    texts = unit_texts(place) | credentials(unit.SERVICE)
    if only_print:
        _print(texts, say)
        return
    datadir.prepare(place.data_dir)
    files = {units.folder() / name: text for name, text in texts.items()}
    units.refuse_foreign(files)
    units.write(files, say)
    if managed("daemon-reload") and managed("enable", "--now", unit.TIMER) and managed("restart", unit.TIMER):
        say(f"started: {unit.TIMER}; `loginctl enable-linger` keeps it while you are not logged in")
        return
    say(_NOBODY)
    for command in _NEXT:
        say(f"  {command}")


def uninstall_timer(say: Say) -> None:
    """Stop the timer if a user manager is there, and remove the units that we wrote."""
    if not _take_out([unit.TIMER, unit.SERVICE], None, say):
        say(f"there is no timer of ours in {units.folder()}")


# ---- systemd: the service --------------------------------------------------------------------------------------------


def systemd_texts(place: Place, *, split: bool) -> dict[str, str]:
    """The service's units and drop-ins, by their files' names. Raises `Usage` when there is nothing to label with."""
    chosen = place.settings.asks
    if split and not chosen:
        raise Usage("--split needs a model for the half that labels: set label.model_url and label.model")
    halves: dict[str, unit.Half] = {unit.COLLECT: "collect", unit.LABEL: "label"}
    if not split:
        halves = {unit.BOTH: "run"}
    texts = {}
    for name, half in halves.items():
        verb = half if chosen else "collect"
        texts[name] = unit.run_text(half, place.command(verb), unit.head_of(place.data_dir))
        if units.version() >= unit.RISING_SINCE:
            texts[f"{name}.d/{unit.RISING}"] = unit.rising_text()
        texts |= credentials(name)
    return texts


def credentials(name: str) -> dict[str, str]:
    """The drop-in that hands a unit the files of secrets that are there; empty when there are none.

    Raises `Usage` when others can read one.
    """
    folder = expanded(_CREDENTIALS)
    there = {one: folder / one for one in secrets() if (folder / one).is_file()}
    if not there or units.version() < unit.CREDENTIALS_SINCE:
        return {}
    for file in there.values():
        if file.stat().st_mode & 0o077:
            raise Usage(f"{file} can be read by others; chmod 600 {file}")
    return {f"{name}.d/{unit.CREDENTIALS}": unit.credentials_text(there)}


def install_systemd(place: Place, say: Say, *, split: bool, only_print: bool) -> None:
    """Write the units, start them, and look whether they run. Raises `Usage` or `Failed` when they do not."""
    _check_environment(say)
    _check_paths(place.settings, say)
    texts = systemd_texts(place, split=split)
    if only_print:
        _print(texts, say)
        return
    datadir.prepare(place.data_dir)
    names = [name for name in texts if name.endswith(".service")]
    others = [name for name in (unit.BOTH, unit.COLLECT, unit.LABEL) if name not in names]
    files = {units.folder() / name: text for name, text in texts.items()}
    units.refuse_foreign([*files, *(units.folder() / name for name in others)], place.data_dir)
    _take_out(others, place.data_dir, say)
    units.remove([file for name in names for file in _drop_ins(name) if file not in files], say)
    units.write(files, say)
    if not place.settings.asks:
        say("no model is chosen, so posts are only collected")
    if not units.answers():
        for command in ("daemon-reload", f"enable --now {' '.join(names)}"):
            say(f"  systemctl --user {command}")
        raise Failed(f"written, and not started: {_NOBODY} the commands above, or else {_KEEP_ALIVE}")
    _start(names, say)
    _tell_of_linger(say)


def uninstall_systemd(place: Place, say: Say) -> None:
    """Stop the service, and remove the units that we wrote for this data directory."""
    if not _take_out([unit.BOTH, unit.COLLECT, unit.LABEL], place.data_dir, say):
        say(f"there is no unit of ours for {place.data_dir} in {units.folder()}")


def _start(names: Sequence[str], say: Say) -> None:
    """Start units, anew if they run, and wait until they say that they are ready."""
    done = managed("daemon-reload") and managed("enable", *names) and managed("restart", *names)
    for name in names:
        now = units.shown(name, "ActiveState", "UnitFileState", "Result", "ExecMainStatus", "StatusText")
        if now.get("ActiveState") != "active" or now.get("UnitFileState") != "enabled" or not done:
            code = now.get("ExecMainStatus", "")
            why = f"{now.get('ActiveState')}, {now.get('Result')}" + (f", exit code {code}" if code != "0" else "")
            kind = Usage if code == str(EXIT_USAGE) else Failed
            raise kind(f"{name} does not run ({why}); `journalctl --user -u {name} -n 20` says more")
        say(f"started: {name}: {now.get('StatusText', '')}")


def _tell_of_linger(say: Say) -> None:
    if units.lingers():
        say("it runs on while you are not logged in: linger is on")
        return
    say("linger is off: it ends when you log out, and does not start with the machine, until you allow it once:")
    say("  loginctl enable-linger")
    say(f"where that is not allowed: {_KEEP_ALIVE}")


def _take_out(names: Sequence[str], data_dir: Path | None, say: Say) -> bool:
    """Stop and remove those units that are ours, and for this folder if one is named; whether there were any."""
    files = [units.folder() / name for name in names]
    if data_dir is None:
        units.refuse_foreign(files)
    there = [file for file in files if file.exists() and _is_for(file, data_dir)]
    if not there:
        return False
    managed("disable", "--now", *(file.name for file in there if file.name != unit.SERVICE))  # the timer's, not enabled
    for wanted in ("timers.target.wants", "default.target.wants"):  # if nobody was there to disable it
        for file in there:
            (units.folder() / wanted / file.name).unlink(missing_ok=True)
    units.remove([*there, *(drop_in for file in there for drop_in in _drop_ins(file.name))], say)
    managed("daemon-reload")
    return True


def _is_for(file: Path, data_dir: Path | None) -> bool:
    text = file.read_text(encoding="utf-8", errors="replace")
    return data_dir is None or (text.startswith(unit.OURS) and unit.data_dir_of(text) == str(data_dir))


def _drop_ins(name: str) -> list[Path]:
    """Those that we wrote for a unit; what its user added stays."""
    files = [units.folder() / f"{name}.d" / drop_in for drop_in in (unit.RISING, unit.CREDENTIALS)]
    return [file for file in files if file.exists() and file.read_text(encoding="utf-8").startswith(unit.OURS)]


def _print(texts: Mapping[str, str], say: Say) -> None:
    for name, text in texts.items():
        say(f"== {name}\n{text}")


def check_wanted(
    *, cron: bool, timer: bool, systemd: bool = False, keep_alive: bool = False, split: bool = False
) -> None:
    """Raises `Usage` when nothing is asked for, or what does not go together."""
    if not cron and not timer and not systemd:
        raise Usage(
            "say where: --cron for lines in your crontab, --systemd for the service as a unit of systemd, "
            "--timer for the daily fetch as a timer of systemd"
        )
    if keep_alive and not cron:
        raise Usage("--keep-alive is for cron: add --cron; under systemd civicsky.service keeps itself alive")
    if split and not systemd:
        raise Usage("--split is for --systemd: two units, one for each half")
