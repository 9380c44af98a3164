"""What `civicsky service` writes: by the installed command, against a crontab of its own and, once, the real one."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from conftest import skip
from support.command import CIVICSKY, Ended, environment, is_up, query, start, until
from unit.test_crontab import as_cron_hands_it

SETTINGS = """
[feeds]
at = "16:15"
zone = "America/Chicago"
"""
SECRET = "sk-not-for-any-line"
ODD = 'it\'s "50%" of $HOME é'
# Like Debian's: no table is an error, and a text without its last line's end is not taken.
CRONTAB = """#!/bin/sh
cd "$(dirname "$0")" || exit 1
[ -e broken ] && { echo "crontab: you may not" >&2; exit 1; }
case "$1" in
    -l) [ -e table ] || { echo "no crontab for me" >&2; exit 1; }; exec cat table ;;
    -) cat >new; [ ! -s new ] || [ -z "$(tail -c 1 new)" ] || exit 1; echo >>written; exec mv new table ;;
    *) exit 1 ;;
esac
"""


class Machine:
    """A home, a crontab and a path of its own; settings are in a file, as cron needs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / ODD
        self.bin = self.folder / "bin"
        self.bin.mkdir(parents=True)
        self.data, self.config = self.folder / "data", self.folder / "civicsky.toml"
        self.config.write_text(SETTINGS, encoding="utf-8")
        self.units = self.folder / "config" / "systemd" / "user"
        self.table = self.bin / "table"

    def with_crontab(self) -> "Machine":
        program = self.bin / "crontab"
        program.write_text(CRONTAB, encoding="utf-8")
        program.chmod(0o755)
        return self

    def service(self, *words: str, path: str = "/usr/bin:/bin", **variables: str) -> Ended:
        named = ["--data-dir", "data", "--config", "civicsky.toml"]  # as a person would; what is written is absolute
        nobody = {"DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"}  # no service manager of whoever runs the tests
        outer = {name: value for name, value in environment().items() if name not in nobody}
        home = {"HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder / "config"), "PATH": f"{self.bin}:{path}"}
        ran = subprocess.run(
            [CIVICSKY, "service", *words, *named],
            env={**outer, **home, **variables}, cwd=self.folder, capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip
        return Ended(ran.returncode, ran.stdout, ran.stderr)

    def lines(self) -> list[str]:
        return self.table.read_text(encoding="utf-8").splitlines() if self.table.exists() else []

    def writes(self) -> int:
        file = self.bin / "written"
        return len(file.read_text(encoding="utf-8").splitlines()) if file.exists() else 0


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path).with_crontab()


@pytest.fixture
def bare(tmp_path: Path) -> Machine:
    """Without the program crontab."""
    return Machine(tmp_path)


def by_cron(one: str) -> "subprocess.CompletedProcess[bytes]":
    """What cron does with a line when its time has come, with an environment that is even barer than cron's."""
    command = ["env", "-i", "/bin/sh", "-c", as_cron_hands_it(one)]
    return subprocess.run(command, cwd="/", capture_output=True, check=False, timeout=120)


def test_two_installs_give_one_line_of_each_kind(machine: Machine) -> None:
    for _time in range(2):
        ended = machine.service("install", "--cron", "--keep-alive")
        assert (ended.code, ended.err) == (0, "")
    fetch, alive = machine.lines()
    assert fetch.startswith("15 * * * * ")
    assert " fetch --due " in fetch
    assert alive.startswith("*/5 * * * * ")
    assert "--if-not-running" in alive
    assert all(line in ended.out for line in (fetch, alive))
    assert machine.writes() == 1, "what stands there already is not written again"


def test_what_a_person_wrote_stays_and_a_changed_setting_replaces_our_line(machine: Machine) -> None:
    theirs = b"SHELL=/bin/sh\n# mine\r\n0 3 * * * backup 50\\% caf\xe9\n"
    machine.table.write_bytes(theirs)
    assert machine.service("install", "--cron", "--keep-alive").code == 0
    before = machine.table.read_bytes()
    assert before.startswith(theirs)
    machine.config.write_text(SETTINGS.replace("16:15", "16:40"), encoding="utf-8")
    assert machine.service("install", "--cron").code == 0, "without --keep-alive that line stays as it is"
    assert machine.table.read_bytes() == before.replace(b"\n15 * * * * ", b"\n40 * * * * ")
    machine.config.write_text("", encoding="utf-8")
    assert machine.service("install", "--cron", "--keep-alive").code == 0
    assert b"civicsky fetch" not in machine.table.read_bytes(), "a time that is set no more is kept no more"
    ended = machine.service("uninstall", "--cron")
    assert (ended.code, ended.out) == (0, "1 of our lines taken out of the crontab\n")
    assert machine.table.read_bytes() == theirs


def test_the_minute_of_a_zone_of_half_hours_is_that_of_the_machines_clock(machine: Machine) -> None:
    machine.config.write_text(SETTINGS.replace("America/Chicago", "Asia/Kolkata"), encoding="utf-8")
    assert machine.service("install", "--cron", TZ="UTC").code == 0
    assert machine.lines()[0].startswith("45 * * * * "), "16:15 there is 10:45 UTC"


def test_the_line_runs_as_cron_runs_it_and_leaves_rows_and_a_log(machine: Machine, relay: str) -> None:
    machine.config.write_text(
        f'{SETTINGS}[source]\nrelays = ["{relay}"]\n[limits]\nmax_frames = 400\n', encoding="utf-8"
    )
    ended = machine.service("install", "--cron", "--keep-alive")
    assert "no model is chosen, so posts are only collected" in ended.out
    log = machine.data / "cron.log"
    assert (log.stat().st_size, log.stat().st_mode & 0o777) == (0, 0o600), "nothing is done yet, and nothing told"
    ran = by_cron(machine.lines()[1])
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")
    text = log.read_text(encoding="utf-8")
    assert "400 frames" in text, "standard output is there"
    assert '"event": ' not in text, "what grows for ever has no log"
    own = machine.data / "civicsky-collect.log"
    assert '"event": "started"' in own.read_text(encoding="utf-8"), "the log has a file that is rotated"
    assert own.stat().st_mode & 0o777 == 0o600
    machine.config.write_text("[no]\n", encoding="utf-8")
    assert by_cron(machine.lines()[1]).returncode == 2
    assert "civicsky: " in log.read_text(encoding="utf-8"), "and standard error"
    ((n,),) = query(machine.data / "journal.db", "SELECT count(*) FROM post")
    assert n > 0


def test_who_named_a_file_for_the_log_keeps_it(machine: Machine) -> None:
    machine.config.write_text(f'{SETTINGS}[log]\nfile = "/var/log/mine.log"\n', encoding="utf-8")
    assert machine.service("install", "--cron", "--keep-alive").code == 0
    assert "--log-file" not in machine.lines()[1]


def test_the_line_of_the_fetch_runs_as_cron_runs_it_and_leaves_rows_and_a_log(machine: Machine) -> None:
    from support import appview_server as fake  # noqa: PLC0415

    shown: Any = import_module("support.shown")
    feed = shown.feed_uri("today")
    with fake.appview_server() as api:
        server: Any = api
        server.feeds[feed] = shown.english_posts(5)
        machine.config.write_text(
            f'{SETTINGS}lists = {{ today = "{feed}" }}\n[appview]\nurl = "{server.url}"\n', encoding="utf-8"
        )
        assert machine.service("install", "--cron").code == 0
        for _time in range(2):
            ran = by_cron(machine.lines()[0])
            assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")
            ((n, complete),) = query(machine.data / "journal.db", "SELECT count(*), sum(complete) FROM fetched")
            assert (n, complete) == (1, 1), "once it was fetched, nothing is due any more"
    assert query(machine.data / "journal.db", "SELECT count(*) FROM post")[0][0] > 0
    assert (machine.data / "cron.log").stat().st_size > 0


def test_what_goes_wrong_under_cron_is_in_the_log(machine: Machine) -> None:
    assert machine.service("install", "--cron", "--keep-alive").code == 0
    machine.config.write_text("[source]\nrelay = 1\n", encoding="utf-8")
    ran = by_cron(machine.lines()[1])
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, b"", b"")
    assert "no such setting 'source.relay'" in (machine.data / "cron.log").read_text(encoding="utf-8")


def test_a_second_line_that_fires_leaves_the_running_one_alone(machine: Machine) -> None:
    machine.config.write_text('[source]\nrelays = ["ws://127.0.0.1:9"]\n', encoding="utf-8")
    assert machine.service("install", "--cron", "--keep-alive").code == 0
    running = start("collect", "--data-dir", machine.data, "--relay", "ws://127.0.0.1:9")
    until(lambda: is_up(running.pid), "it to run")
    assert by_cron(machine.lines()[0]).returncode == 0
    assert f'"pid": {running.pid}' in (machine.data / "cron.log").read_text(encoding="utf-8")
    assert running.poll() is None


def test_no_secret_gets_into_a_line_and_it_is_said_where_keys_go(machine: Machine) -> None:
    ended = machine.service("install", "--cron", "--keep-alive", CIVICSKY_LABEL__API_KEY=SECRET)
    assert ended.code == 0
    assert SECRET not in ended.out + ended.err + machine.table.read_text(encoding="utf-8")
    assert "unknown to what is started: CIVICSKY_LABEL__API_KEY" in ended.out
    assert f"keys go into {machine.config.with_suffix('.env')}, mode 600" in ended.out


def test_the_key_is_read_when_the_line_runs_and_not_before(machine: Machine) -> None:
    """Installed before there was a key: what is started reads the settings as they are then."""
    assert machine.service("install", "--cron", "--keep-alive").code == 0
    machine.config.write_text("[source]\nrelays = []\n", encoding="utf-8")
    assert by_cron(machine.lines()[1]).returncode == 2, "the change is seen"


def test_a_time_that_stands_in_the_environment_alone_is_refused(machine: Machine) -> None:
    ended = machine.service("install", "--cron", CIVICSKY_FEEDS__AT="17:00")
    assert ended.code == 2
    assert "CIVICSKY_FEEDS__AT: what is started has no environment of yours" in ended.err
    assert machine.lines() == []


def test_without_a_time_there_is_nothing_to_install(machine: Machine) -> None:
    machine.config.write_text("", encoding="utf-8")
    for where in ("--cron", "--timer"):
        ended = machine.service("install", where)
        assert ended.code == 2
        assert "set feeds.at and feeds.zone" in ended.err
        assert ("or add --keep-alive" in ended.err) == (where == "--cron")
    assert machine.lines() == []
    assert not machine.units.exists()


def test_a_crontab_that_cannot_be_read_is_left_alone_and_no_success_is_told(machine: Machine) -> None:
    machine.table.write_text("0 3 * * * backup\n", encoding="utf-8")
    (machine.bin / "broken").touch()
    for words in (("install", "--cron", "--keep-alive"), ("uninstall", "--cron")):
        ended = machine.service(*words)
        assert (ended.code, ended.out) == (1, "")
        assert "cannot be read, and is left alone: crontab: you may not" in ended.err
    assert machine.lines() == ["0 3 * * * backup"]


def test_a_crontab_that_is_not_taken_is_no_success(machine: Machine) -> None:
    program = machine.bin / "crontab"
    program.write_text('#!/bin/sh\n[ "$1" = -l ] && exit 0\necho "bad minute" >&2; exit 1\n', encoding="utf-8")
    ended = machine.service("install", "--cron", "--keep-alive")
    assert (ended.code, ended.out) == (1, "")
    assert "crontab does not take it: bad minute" in ended.err
    program.write_text('#!/bin/sh\n[ "$1" = -l ] && exit 0\ncat >/dev/null\n', encoding="utf-8")
    ended = machine.service("install", "--cron", "--keep-alive")
    assert (ended.code, ended.out) == (1, "")
    assert "the crontab is not what was written" in ended.err


def test_without_the_program_crontab_the_lines_are_there_to_paste(bare: Machine) -> None:
    ended = bare.service("install", "--cron", "--keep-alive", path="/nowhere")
    assert ended.code == 2
    assert "install what Debian calls cron" in ended.err
    fetch, alive = ended.out.splitlines()
    assert "fetch --due" in fetch
    assert "--if-not-running" in alive
    assert bare.service("uninstall", "--cron", path="/nowhere").code == 2


def test_print_prints_and_writes_nothing(machine: Machine) -> None:
    ended = machine.service("install", "--cron", "--keep-alive", "--timer", "--print")
    assert ended.code == 0
    assert ended.out.count("cron.log") == 2
    assert "OnCalendar=*-*-* 16:15:00 America/Chicago" in ended.out
    assert machine.lines() == []
    assert not machine.units.exists()
    assert not machine.data.exists()


@pytest.mark.parametrize("words", [("install",), ("uninstall",), ("install", "--timer", "--keep-alive")])
def test_what_is_asked_for_must_be_said(machine: Machine, words: tuple[str, ...]) -> None:
    ended = machine.service(*words)
    assert ended.code == 2
    assert "--cron" in ended.err


def test_paths_that_lead_elsewhere_under_cron_are_named(machine: Machine) -> None:
    with machine.config.open("a", encoding="utf-8") as file:
        file.write('[label]\ntasks = ["civic", "toxicity.toml", "/srv/other.toml"]\n')
    out = machine.service("install", "--cron", "--keep-alive").out
    assert "toxicity.toml: what is started begins in another folder" in out
    assert "/srv/other.toml" not in out


@pytest.fixture
def real_crontab() -> Iterator[None]:
    """The real program and its table, which is as before when the test is over."""
    if not shutil.which("crontab"):
        skip("the program crontab is not installed (Debian: cron)")
    before = real_table()
    yield
    if before is None:
        subprocess.run(["crontab", "-r"], capture_output=True, check=False)
    else:
        subprocess.run(["crontab", "-"], input=before, check=True)


def real_table() -> bytes | None:
    """Byte for byte, as an editor gets it: `crontab -l` shows some bytes otherwise."""
    if subprocess.run(["crontab", "-l"], capture_output=True, check=False).returncode:
        return None
    cat = {**os.environ, "VISUAL": "cat", "EDITOR": "cat"}
    return subprocess.run(["crontab", "-e"], env=cat, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout


def test_the_real_crontab_takes_the_lines_and_gives_them_back(real_crontab: None, bare: Machine) -> None:
    theirs = (real_table() or b"") + b"# caf\xe9, by the tests of civicsky\r\n0 3 1 1 * true 50\\% '\\bone\\b'\n"
    subprocess.run(["crontab", "-"], input=theirs, check=True)
    for _time in range(2):
        ended = bare.service("install", "--cron", "--keep-alive", path=os.environ["PATH"])
        assert (ended.code, ended.err) == (0, "")
        ours = (real_table() or b"").removeprefix(theirs).decode().splitlines()
        assert len(ours) == 2
        assert all(line in ended.out for line in ours)
    assert bare.service("uninstall", "--cron", path=os.environ["PATH"]).code == 0
    assert real_table() == theirs


# ---- the timer -------------------------------------------------------------------------------------------------------


def verified(*files: Path | str) -> "subprocess.CompletedProcess[str]":
    """What systemd says of units, without one that runs."""
    if not shutil.which("systemd-analyze"):
        skip("systemd-analyze is not installed (Debian: systemd)")
    with tempfile.TemporaryDirectory(dir="/tmp") as runtime:  # short, as names of sockets must be
        return subprocess.run(
            ["systemd-analyze", "--user", "verify", *map(str, files)],
            env={"PATH": os.environ["PATH"], "HOME": runtime, "XDG_RUNTIME_DIR": runtime},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip


def test_the_timer_that_is_written_is_one_that_systemd_takes(machine: Machine) -> None:
    for _time in range(2):
        ended = machine.service("install", "--timer")
        assert (ended.code, ended.err) == (0, "")
    files = sorted(machine.units.iterdir())
    assert [file.name for file in files] == ["civicsky-fetch.service", "civicsky-fetch.timer"]
    assert "systemctl --user enable --now civicsky-fetch.timer" in ended.out, "nobody is there to do it"
    found = verified(*files)
    assert (found.returncode, found.stderr) == (0, "")
    assert "OnCalendar=*-*-* 16:15:00 America/Chicago\n" in files[1].read_text(encoding="utf-8")
    ended = machine.service("uninstall", "--timer")
    assert ended.code == 0
    assert list(machine.units.iterdir()) == []
    assert "there is no timer of ours" in machine.service("uninstall", "--timer").out


def test_with_a_user_manager_the_timer_is_started_and_stopped(machine: Machine) -> None:
    """What is asked of the manager, in order; systemctl itself is a stand-in that keeps what it is told."""
    told = machine.bin / "told"
    program = machine.bin / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >>"{told.name}"\n'.replace("echo", 'cd "$(dirname "$0")"\necho'), "utf-8")
    program.chmod(0o755)
    ended = machine.service("install", "--timer")
    assert "started: civicsky-fetch.timer" in ended.out
    assert told.read_text(encoding="utf-8").splitlines() == [
        "--user daemon-reload", "--user enable --now civicsky-fetch.timer", "--user restart civicsky-fetch.timer",
    ]  # fmt: skip
    told.unlink()
    assert machine.service("uninstall", "--timer").code == 0
    assert told.read_text(encoding="utf-8").splitlines() == [
        "--user disable --now civicsky-fetch.timer", "--user daemon-reload",
    ]  # fmt: skip


@pytest.mark.parametrize("words", ["install", "uninstall"])
def test_a_unit_that_somebody_else_wrote_stays(machine: Machine, words: str) -> None:
    machine.units.mkdir(parents=True)
    theirs = machine.units / "civicsky-fetch.timer"
    theirs.write_text("[Timer]\nOnCalendar=daily\n", encoding="utf-8")
    ended = machine.service(words, "--timer")
    assert ended.code == 2
    assert "was not written by us" in ended.err
    assert [file.name for file in machine.units.iterdir()] == ["civicsky-fetch.timer"]
    assert theirs.read_text(encoding="utf-8") == "[Timer]\nOnCalendar=daily\n"


def test_no_credential_is_read_at_import() -> None:
    """Whatever reads credentials at import does so for every command, and as they were then."""
    code = """
import os
class Seen(dict):
    def __getitem__(self, name): asked.add(name); return dict.__getitem__(self, name)
    def get(self, name, default=None): asked.add(name); return dict.get(self, name, default)
    def items(self): asked.update(self); return dict.items(self)
    def __iter__(self): asked.update(dict.keys(self)); return dict.__iter__(self)
asked, os.environ = set(), Seen(os.environ)
import civicsky.cli.main, civicsky.setup.service, civicsky.app
from civicsky.loading import load
print([name for name in asked if name.startswith("CIVICSKY_")])
load()
print([name for name in asked if name.startswith("CIVICSKY_")])
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(label__api_key=SECRET), capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    before, after = ran.stdout.splitlines()
    assert "CIVICSKY_LABEL__API_KEY" not in before
    assert "CIVICSKY_LABEL__API_KEY" in after, "it would have been seen"
