"""The unit and its examples keep what the service relies on."""

import os
import re
import shutil
import subprocess
import tomllib
from configparser import RawConfigParser
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from civicsky import loading
from civicsky.errors import EXIT_USAGE
from civicsky.loading import load, secrets
from civicsky.schedule import last_due
from civicsky.settings import Settings
from civicsky.setup import unit
from civicsky.watch.watchdog import PATIENCE
from conftest import skip
from docs.pages import ROOT, page

FETCH, TIMER = "deploy/systemd/civicsky-fetch.service", "deploy/systemd/civicsky-fetch.timer"
UNIT = "deploy/systemd/civicsky.service"
HALVES: dict[str, unit.Half] = {unit.BOTH: "run", unit.COLLECT: "collect", unit.LABEL: "label"}
WORKER = "deploy/systemd/civicsky-worker@.service"
RISING, CREDENTIALS = "deploy/systemd/rising-delay.conf", "deploy/systemd/credentials.conf"
SETTINGS = "deploy/systemd/civicsky.toml.example"
SECRETS = "deploy/systemd/civicsky.env.example"


@pytest.fixture(scope="module")
def service() -> dict[str, str]:
    parser = RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(page(UNIT))
    return dict(parser["Service"])


def test_a_fault_that_a_person_must_mend_is_not_answered_with_a_restart(service: dict[str, str]) -> None:
    assert service["RestartPreventExitStatus"] == str(EXIT_USAGE)
    assert service["Restart"] == "on-failure"


def test_workers_and_model_outlive_the_signal_to_the_main_process(service: dict[str, str]) -> None:
    assert service["KillMode"] == "mixed"


def test_the_unit_waits_longer_than_a_drain_takes(service: dict[str, str]) -> None:
    assert float(service["TimeoutStopSec"]) > Settings.model_fields["limits"].default.drain_seconds


def test_the_unit_starts_the_installed_command_with_the_example_files(service: dict[str, str]) -> None:
    assert service["ExecStart"] == "%h/.local/bin/civicsky run --config %h/.config/civicsky/civicsky.toml"
    assert service["EnvironmentFile"] == "-%h/.config/civicsky/civicsky.env"


def uncommented(text: str) -> str:
    """The unit without the lines that are for people."""
    return "\n".join(line for line in text.splitlines() if line and not line.startswith("#"))


def verified(folder: Path, **files: str) -> "subprocess.CompletedProcess[str]":
    """What systemd says of the fetch's units, with these texts."""
    return verified_units(folder, {f"civicsky-fetch.{name}": text for name, text in files.items()})


def verified_units(folder: Path, files: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """What systemd says of units of these texts; the command is one that is there."""
    if not shutil.which("systemd-analyze"):
        skip("systemd-analyze is not installed (Debian: systemd)")
    for name, text in files.items():
        program = text.replace("%h/.local/bin/civicsky", "/bin/true")
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(program, encoding="utf-8")
    with TemporaryDirectory(dir="/tmp") as runtime:  # short, as names of sockets must be
        return subprocess.run(
            ["systemd-analyze", "--user", "verify", *(folder / name for name in files if "/" not in name)],
            env={"PATH": os.environ["PATH"], "HOME": runtime, "XDG_RUNTIME_DIR": runtime},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip


def test_the_units_of_the_service_are_those_that_the_command_writes() -> None:
    for name, half in HALVES.items():
        command = ["HOME/.local/bin/civicsky", half, "--config", "HOME/.config/civicsky/civicsky.toml"]
        assert uncommented(page(f"deploy/systemd/{name}")) == uncommented(
            unit.run_text(half, command).replace("HOME", "%h")
        )
    assert uncommented(page(RISING)) == uncommented(unit.rising_text())
    files = {name: Path("HOME/.config/civicsky/credentials") / name for name in secrets()}
    assert uncommented(page(CREDENTIALS).replace("#Load", "Load")) == uncommented(
        unit.credentials_text(files).replace("HOME", "%h")
    )


def test_systemd_has_nothing_to_say_about_the_units_that_ship(tmp_path: Path) -> None:
    texts = {name: page(f"deploy/systemd/{name}") for name in HALVES}
    credentials = {f"{name}.d/credentials.conf": page(CREDENTIALS).replace("#Load", "Load") for name in HALVES}
    found = verified_units(tmp_path, texts | credentials)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
    found = verified_units(tmp_path, texts | {unit.BOTH: texts[unit.BOTH] + "[Service]\nRestartStep=5\n"})
    assert "Unknown key 'RestartStep'" in found.stderr, "it would"


def test_the_halves_are_held_in_and_watched_as_the_whole_is_and_labelling_outlives_collecting() -> None:
    own = {"ExecStart", "MemoryHigh", "MemoryMax"}
    shared = [line for line in uncommented(page(UNIT)).splitlines() if "=" in line and line.split("=")[0] not in own]
    for name in (unit.COLLECT, unit.LABEL):
        lines = uncommented(page(f"deploy/systemd/{name}")).splitlines()
        assert not [line for line in shared if line not in lines and not line.startswith(("Description", "Conflicts"))]
        assert not [line for line in lines if line.startswith(("BindsTo", "Requires", "PartOf"))]


def test_a_worker_is_held_in_and_watched_as_the_half_that_labels_is_and_needs_no_lock() -> None:
    own = {"Description", "ExecStart", "EnvironmentFile", "TimeoutStartSec"}
    not_its = {"Conflicts", "Wants", "After"}
    of_label, of_worker = (
        {line for line in uncommented(page(file)).splitlines() if line.split("=")[0] not in own}
        for file in (f"deploy/systemd/{unit.LABEL}", WORKER)
    )
    assert {line.split("=")[0] for line in of_label - of_worker} == not_its
    assert of_worker - of_label == {"Environment=CIVICSKY_WORKERS__URL=nats://127.0.0.1:4222"}


def test_an_instance_of_the_worker_is_a_settings_file_and_its_secrets_stand_beside_it() -> None:
    (command,) = re.findall(r"^ExecStart=(.*)$", page(WORKER), re.MULTILINE)
    (secret,) = re.findall(r"^EnvironmentFile=-(.*)$", page(WORKER), re.MULTILINE)
    config = command.split("--config ")[1]
    assert config == "%h/.config/civicsky/worker-%i.toml"
    assert secret == str(loading.secrets_file(Path(config)))
    assert "label --worker ${CIVICSKY_WORKERS__URL} " in command


def test_systemd_has_nothing_to_say_about_an_instance_of_the_worker(tmp_path: Path) -> None:
    name = "civicsky-worker@gpu0.service"
    credentials = {f"{name}.d/credentials.conf": page(CREDENTIALS).replace("#Load", "Load")}
    found = verified_units(tmp_path, {name: page(WORKER)} | credentials)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
    found = verified_units(tmp_path, {name: page(WORKER).replace("WatchdogSec", "WatchSec")})
    assert "Unknown key 'WatchSec'" in found.stderr, "it would"


def test_the_service_is_watched_for_as_long_as_it_is_patient_by_itself(service: dict[str, str]) -> None:
    assert (service["Type"], service["NotifyAccess"], service["WatchdogSec"]) == ("notify", "main", "3min")
    assert PATIENCE == 180


def test_no_unit_holds_a_secret() -> None:
    for file in (ROOT / "deploy/systemd").glob("*.service"):
        assert "API_KEY" not in file.read_text(encoding="utf-8")
        assert "SetCredential" not in file.read_text(encoding="utf-8")


def test_the_units_of_the_fetch_are_those_that_the_command_writes() -> None:
    command = ["HOME/.local/bin/civicsky", "fetch", "--due", "--config", "HOME/.config/civicsky/civicsky.toml"]
    assert uncommented(page(FETCH)) == uncommented(unit.service_text(command).replace("HOME", "%h"))
    times = page(TIMER).replace("#OnCalendar=", "OnCalendar=")
    assert uncommented(times) == uncommented(unit.timer_text("16:15", "America/Chicago"))


def test_the_fetch_is_held_in_as_the_service_is() -> None:
    hardening = [
        "UMask",
        "NoNewPrivileges",
        "LockPersonality",
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "LimitCORE",
    ]
    hardening += ["RestrictAddressFamilies", "SystemCallArchitectures", "SystemCallFilter", "SystemCallErrorNumber"]
    for name in (*hardening, "EnvironmentFile", "RestartPreventExitStatus"):
        (line,) = re.findall(rf"^{name}=.*$", page(UNIT), re.MULTILINE)
        assert line in page(FETCH).splitlines()


def test_the_timer_that_ships_has_no_zone_and_does_not_work_before_it_was_given_one(tmp_path: Path) -> None:
    assert "OnCalendar" not in uncommented(page(TIMER))
    found = verified(tmp_path, service=page(FETCH), timer=page(TIMER))
    assert found.returncode != 0
    assert "Timer unit lacks value setting. Refusing." in found.stderr
    found = verified(tmp_path, service=page(FETCH), timer=page(TIMER).replace("#OnCalendar=", "OnCalendar="))
    assert (found.returncode, found.stderr) == (0, "")


def next_starts(at: str, zone: str, base: str) -> list[datetime]:
    """When a timer of ours fires next, by each of its times, as systemd reads them."""
    if not shutil.which("systemd-analyze"):
        skip("systemd-analyze is not installed (Debian: systemd)")
    times = re.findall(r"^OnCalendar=(.*)$", unit.timer_text(at, zone), re.MULTILINE)
    assert len(times) == 2
    starts = []
    for time in times:
        ran = subprocess.run(
            ["systemd-analyze", "calendar", f"--base-time={base} UTC", time],
            env={**os.environ, "TZ": "UTC", "LC_ALL": "C"}, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        (shown,) = re.findall(r"Next elapse: \w+ (\S+ \S+) UTC$", ran.stdout, re.MULTILINE)
        starts.append(datetime.fromisoformat(shown).replace(tzinfo=UTC))
    return sorted(starts)


@pytest.mark.parametrize("at", ["16:15", "02:30", "01:30", "23:30", "00:00"])
@pytest.mark.parametrize("zone", ["America/Chicago", "Asia/Kolkata", "Europe/Berlin", "Australia/Lord_Howe"])
def test_systemd_starts_the_fetch_soon_after_it_is_due_on_every_day_also_when_the_clocks_change(
    at: str, zone: str
) -> None:
    for day in ("2026-03-07", "2026-03-29", "2026-04-04", "2026-07-01", "2026-10-03", "2026-10-24", "2026-10-31"):
        base = datetime.fromisoformat(f"{day}T12:00:00+00:00")
        now = base + timedelta(days=1, hours=2)  # the second of two starts is an hour after the first
        was_due = datetime.fromtimestamp(last_due(int(now.timestamp()) * 1_000_000, at, zone) / 1e6, UTC)
        before = was_due - timedelta(seconds=1)
        first, *_ = next_starts(at, zone, f"{before:%Y-%m-%d %H:%M:%S}")
        assert was_due <= first <= was_due + timedelta(hours=1), (day, at, zone)


def test_the_example_settings_choose_a_model_and_mongodb() -> None:
    settings = load(ROOT / SETTINGS)
    assert settings.label.chosen
    assert settings.store.chosen == "mongo"
    assert "mongo_uri" not in tomllib.loads(page(SETTINGS))["store"]


def test_the_example_environment_names_the_secrets_and_sets_none() -> None:
    assert re.findall(r"^#?(CIVICSKY_\w+)=", page(SECRETS), re.MULTILINE) == list(loading.SECRETS)
    assert all(line.startswith("#") or not line for line in page(SECRETS).splitlines())
