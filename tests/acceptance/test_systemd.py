"""The service under a real `systemd --user`: ready, watched, restarted, stopped; one manager for all of these tests.

Where none can run, the tests say so.
"""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from acceptance.test_kill import POSTS, is_gone, outcomes
from civicsky.datadir import locked
from civicsky.setup import unit
from conftest import skip
from support.command import CIVICSKY, LAST_SEQ, Ended, cursor, query, sample_relay, tell, until
from support.nats_server import nats_server
from support.user_manager import UserManager, user_manager, why_not

pytestmark = pytest.mark.timeout(180)
NOWHERE = "127.0.0.1:9"
WATCH = 4
"""Seconds of a watchdog here."""


@pytest.fixture(scope="module")
def shared_manager() -> Iterator[UserManager]:
    if why := why_not():
        skip(why)
    with user_manager() as manager:
        yield manager


@pytest.fixture
def manager(shared_manager: UserManager) -> Iterator[UserManager]:
    """The manager, of whose units none is left when a test is over."""
    yield shared_manager
    shared_manager.inside("systemctl", "--user", "kill", "--signal=KILL", "civicsky*.service", "test-*.service")
    shared_manager.inside("systemctl", "--user", "stop", "civicsky*.service", "test-*.service")
    for file in sorted(shared_manager.units.rglob("*"), reverse=True):
        if "shared-" not in str(file):
            file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
    shared_manager.systemctl("daemon-reload")
    shared_manager.inside("systemctl", "--user", "reset-failed")


class Service:
    """One unit of ours, as it ships, with what a test needs to change."""

    def __init__(self, manager: UserManager, name: str, *args: str | Path, **settings: Any) -> None:
        self.manager, self.name, self.folder = manager, f"{name}.service", manager.folder / name
        self.log_file = manager.folder / f"{name}.log"
        self.settings = {"worker__processes": 1, "worker__batch_frames": 16, "source__start": "window"} | settings
        if args:
            command = [CIVICSKY, *map(str, args), "--data-dir", str(self.folder)]
            text = unit.run_text("run" if args[0] == "run" else "collect", command)
            (manager.units / self.name).write_text(text.replace("Conflicts", "#Conflicts"), encoding="utf-8")

    def change(self, *lines: str, **settings: Any) -> "Service":
        """Say otherwise, from the next start on."""
        self.settings |= settings
        variables = [f"Environment=CIVICSKY_{name.upper()}={value}" for name, value in self.settings.items()]
        told = [f"StandardError=append:{self.log_file}", f"StandardOutput=append:{self.log_file}", "RestartSec=1"]
        self.manager.drop_in(self.name, "\n".join(["[Service]", *told, *variables, *lines, ""]))
        return self

    def start(self) -> "Service":
        self.manager.systemctl("start", self.name)
        return self

    def stop(self) -> None:
        self.manager.systemctl("stop", self.name)

    def shown(self, name: str) -> str:
        return self.manager.shown(self.name, name)

    def log(self, event: str) -> list[dict[str, Any]]:
        """The log's lines of one event, of all lives."""
        if not self.log_file.exists():
            return []
        lines = [line for line in self.log_file.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
        return [line for line in map(json.loads, lines) if line["event"] == event]

    def restarts(self) -> int:
        return int(self.shown("NRestarts"))


@pytest.fixture(scope="module")
def undisturbed(shared_manager: UserManager) -> Path:
    """What a collector holds that nobody disturbed."""
    from acceptance.test_kill import collect_all  # noqa: PLC0415

    with sample_relay("--rate", "max") as relay:
        collect_all(shared_manager.folder / "undisturbed", relay)
    return shared_manager.folder / "undisturbed"


def holds_all(folder: Path, undisturbed: Path) -> None:
    assert query(folder / "journal.db", POSTS) == query(undisturbed / "journal.db", POSTS)
    assert outcomes(folder) == outcomes(undisturbed)


def children_of(service: Service) -> list[int]:
    return [pid for pid in service.manager.processes(service.name) if pid != service.manager.main(service.name)]


def config(manager: UserManager, text: str) -> Path:
    file = manager.home / "civicsky.toml"
    file.write_text(text, encoding="utf-8")
    return file


def install(manager: UserManager, *words: str, data: str = "data", **variables: str) -> Ended:
    named = ["--data-dir", str(manager.folder / data), "--config", str(manager.home / "civicsky.toml")]
    return manager.inside(CIVICSKY, "service", *words, *named, **variables)


class locked_for_a_moment:  # noqa: N801  (used as a statement)
    """A command's hold on a folder, until it is told to let go."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._lock = locked(folder, ("collect",), brief=True)
        self._held = False

    def __enter__(self) -> "Any":
        self._lock.__enter__()
        self._held = True
        return self._let_go

    def __exit__(self, *_error: object) -> None:
        self._let_go()

    def _let_go(self) -> None:
        if self._held:
            self._held = False
            self._lock.__exit__(None, None, None)


class Together(NamedTuple):
    """Services that run at the same time, since each of them must run for a while."""

    relay: str
    wedged: dict[str, "Service"]
    well: dict[str, "Service"]
    late: "Service"


@pytest.fixture(scope="module")
def together(shared_manager: UserManager) -> Iterator[Together]:
    """Each kind of trouble at once, for three periods of the watchdog and longer."""
    later = datetime.now(UTC) + timedelta(hours=2)
    window = {"from": f"{later:%H:%M}", "to": f"{later + timedelta(hours=1):%H:%M}", "zone": "UTC"}
    hours = {f"source__window__{name}": value for name, value in window.items()}
    down = ("run", "--relay", f"ws://{NOWHERE}", "--model-url", f"http://{NOWHERE}/v1", "--model", "m")

    def service(name: str, *args: str, **settings: Any) -> Service:
        return Service(shared_manager, f"shared-{name}", *args, **settings)

    with sample_relay("--rate", "max") as relay, locked_for_a_moment(shared_manager.folder / "shared-late") as let_go:
        collect = ("collect", "--relay", relay)
        late = service("late", *collect).change(f"TimeoutStartSec={2 * WATCH}")
        well = {
            "quiet": service("quiet", *collect),
            "full": service("full", *collect, journal__max_bytes=100_000),
            "down": service("down", *down, store__kind="mongo", store__mongo_uri=f"mongodb://{NOWHERE}"),
            "closed": service("closed", *collect, source__start="live", **hours),
        }
        wedged = {how: service(how, *collect, fault=f"journal.commit:3:{how}") for how in ("block", "hang")}
        both = [*well.values(), *wedged.values()]
        for one in both:
            one.change(f"WatchdogSec={WATCH}", limits__wedged_seconds=WATCH)
        shared_manager.systemctl("start", *(one.name for one in both))
        began = time.monotonic()
        for one in wedged.values():
            until(lambda: one.shown("Result") == "watchdog", "the watchdog to end it")  # noqa: B023
            del one.settings["fault"]
            one.change(f"WatchdogSec={WATCH}")
        # After the last reload, which makes systemd forget for how much longer it was asked to wait.
        shared_manager.systemctl("start", "--no-block", late.name)
        until(lambda: "starting" in late.shown("StatusText"), "it to say that it starts")
        late_since = time.monotonic()
        until(lambda: time.monotonic() > began + 3 * WATCH + 1, "three periods of the watchdog to pass")
        until(lambda: time.monotonic() > late_since + 2 * WATCH + 1, "the time that a start may take to pass")
        assert late.shown("ActiveState") == "activating", "a start that takes its time is not ended"
        let_go()
        yield Together(relay, wedged, well, late)
        names = [one.name for one in (*both, late)]
        shared_manager.inside("systemctl", "--user", "kill", "--signal=KILL", *names)
        shared_manager.inside("systemctl", "--user", "stop", *names)


@pytest.mark.parametrize(("how", "loop"), [("block", "event loop"), ("hang", "journal")])
def test_what_is_wedged_on_purpose_is_told_and_restarted_and_nothing_is_lost(
    how: str, loop: str, together: Together, undisturbed: Path
) -> None:
    service = together.wedged[how]
    until(lambda: cursor(service.folder) >= LAST_SEQ, "the next life to hold everything")
    assert service.restarts() >= 1
    service.stop()
    holds_all(service.folder, undisturbed)
    told, *_ = service.log("wedged")
    assert (told["level"], told["loop"]) == ("error", loop)
    assert how == "hang" or told["where"].startswith("faults.py:"), "it names the place"


@pytest.mark.parametrize(
    ("why", "sign"),
    [
        ("quiet", "lag"),
        ("full", "the disk bound is reached"),
        ("down", "relay: "),
        ("closed", "window: closed until"),
    ],
)
def test_silence_a_full_journal_far_sides_that_are_down_and_a_closed_window_starve_nobody(
    why: str, sign: str, together: Together
) -> None:
    service = together.well[why]
    assert (service.shown("ActiveState"), service.restarts()) == ("active", 0)
    assert not service.log("wedged")
    until(lambda: sign in service.shown("StatusText"), "STATUS to say so")
    if why == "quiet":
        assert cursor(service.folder) >= LAST_SEQ, "it had work before"


def test_a_start_that_takes_long_is_waited_for(together: Together) -> None:
    until(lambda: together.late.shown("ActiveState") == "active", "it to start once it can")
    assert together.late.restarts() == 0


WITH_MODEL = f"""
[source]
relays = ["ws://{NOWHERE}"]
[label]
model_url = "http://{NOWHERE}/v1"
model = "m"
[worker]
processes = 1
"""


def test_one_command_installs_starts_and_says_so_and_another_takes_it_away(manager: UserManager) -> None:
    """The relay is down meanwhile: READY is about us."""
    config(manager, WITH_MODEL)
    ended = install(manager, "install", "--systemd")
    assert (ended.code, ended.err) == (0, "")
    assert "started: civicsky.service" in ended.out
    assert "loginctl enable-linger" in ended.out
    service = Service(manager, "civicsky")
    assert (service.shown("ActiveState"), service.shown("UnitFileState")) == ("active", "enabled")
    until(lambda: "relay: " in service.shown("StatusText"), "STATUS to say that the relay is down")
    assert "0 waiting" in service.shown("StatusText")
    for child in children_of(service):
        assert "NOTIFY_SOCKET" not in Path(f"/proc/{child}/environ").read_text(encoding="utf-8")
    ended = install(manager, "install", "--systemd", "--split")
    assert (ended.code, ended.err) == (0, "")
    assert not (manager.units / "civicsky.service").exists(), "one way or the other"
    assert [manager.shown(name, "ActiveState") for name in (unit.COLLECT, unit.LABEL)] == ["active"] * 2
    manager.systemctl("stop", unit.COLLECT)
    assert manager.shown(unit.LABEL, "ActiveState") == "active", "it is not bound to the other half's life"
    ended = install(manager, "uninstall", "--systemd")
    assert (ended.code, ended.err) == (0, "")
    assert list(manager.units.rglob("civicsky*")) == []
    assert manager.processes(unit.LABEL) == []


def test_what_does_not_start_is_told_with_its_exit_code_and_is_not_started_again(manager: UserManager) -> None:
    config(manager, WITH_MODEL + "[store]\nkind = 'mongo'\n")
    ended = install(manager, "install", "--systemd")
    assert ended.code == 2
    assert "civicsky.service does not run (failed, exit-code, exit code 2)" in ended.err
    service = Service(manager, "civicsky")
    assert (service.shown("Result"), service.shown("ExecMainStatus"), service.restarts()) == ("exit-code", "2", 0)
    assert service.shown("ActiveState") == "failed"


def test_a_credential_reaches_the_service_and_no_unit_holds_it(manager: UserManager) -> None:
    config(manager, WITH_MODEL + "[store]\nkind = 'mongo'\n")
    folder = manager.home / ".config" / "civicsky" / "credentials"
    folder.mkdir(parents=True)
    secret = folder / "store.mongo_uri"
    secret.write_text(f"mongodb://me:very-secret@{NOWHERE}/\n", encoding="utf-8")
    try:
        secret.chmod(0o644)
        ended = install(manager, "install", "--systemd")
        assert (ended.code, "can be read by others" in ended.err) == (2, True)
        secret.chmod(0o600)
        ended = install(manager, "install", "--systemd")
        assert (ended.code, ended.err) == (0, ""), "without it there is no address of the store"
        text = "".join(file.read_text(encoding="utf-8") for file in manager.units.rglob("*.*") if file.is_file())
        assert f"LoadCredential=store.mongo_uri:{secret}" in text
        assert "very-secret" not in text + ended.out
        main = manager.main("civicsky.service")
        assert "very-secret" not in Path(f"/proc/{main}/environ").read_text(encoding="utf-8")
    finally:
        secret.unlink()


def test_a_unit_of_somebody_else_and_one_for_another_folder_are_left_alone(manager: UserManager) -> None:
    config(manager, WITH_MODEL)
    theirs = manager.units / "civicsky.service"
    theirs.write_text("[Service]\nExecStart=/bin/true\n", encoding="utf-8")
    for words in (("--systemd",), ("--systemd", "--split")):
        ended = install(manager, "install", *words)
        assert (ended.code, "was not written by us" in ended.err) == (2, True)
    assert install(manager, "uninstall", "--systemd").code == 0
    assert theirs.read_text(encoding="utf-8") == "[Service]\nExecStart=/bin/true\n"
    theirs.unlink()
    assert install(manager, "install", "--systemd").code == 0
    ended = install(manager, "install", "--systemd", data="other")
    assert (ended.code, "is for the data directory" in ended.err) == (2, True)
    assert "there is no unit of ours" in install(manager, "uninstall", "--systemd", data="other").out
    assert manager.shown("civicsky.service", "ActiveState") == "active"


def test_without_a_manager_it_is_written_not_started_and_said_what_to_do(manager: UserManager) -> None:
    config(manager, WITH_MODEL)
    ended = install(manager, "install", "--systemd", XDG_RUNTIME_DIR="/nowhere", DBUS_SESSION_BUS_ADDRESS="")
    assert ended.code == 1
    assert "systemctl --user enable --now civicsky.service" in ended.out
    assert "service install --cron --keep-alive" in ended.err
    assert (manager.units / "civicsky.service").exists()


def test_a_main_process_that_is_killed_is_started_again_and_nothing_is_lost(
    manager: UserManager, undisturbed: Path
) -> None:
    with sample_relay("--rate", "500") as relay:
        service = Service(manager, "test-killed", "collect", "--relay", relay).change("RestartSec=100ms").start()
        for moment in (300, 700, 1100):
            until(lambda: cursor(service.folder) >= moment and service.shown("MainPID") != "0", "the moment")  # noqa: B023
            before = manager.processes(service.name)
            manager.systemctl("kill", "--kill-who=main", "--signal=KILL", service.name)
            until(lambda: all(map(is_gone, before)), "the workers to end with it")  # noqa: B023
        until(lambda: cursor(service.folder) >= LAST_SEQ, "the end of the sample")
        assert service.restarts() == 3
        service.stop()
    holds_all(service.folder, undisturbed)


def test_a_stop_drains_and_leaves_no_process_of_pool_or_model(manager: UserManager) -> None:
    with sample_relay("--rate", "max") as relay:
        service = Service(manager, "test-stopped", "run", "--relay", relay, "--model", "local", worker__processes=2,
                          label__slots=1)  # fmt: skip
        service.change().start()
        until(lambda: service.log("model_started"), "the model to run")
        until(lambda: query(service.folder / "ledger.db", "SELECT 1 FROM label LIMIT 1"), "a first label")
        children = children_of(service)
        assert len(children) >= 3, "two workers and a model"
        service.stop()
    assert (service.shown("Result"), service.shown("ExecMainStatus")) == ("success", "0")
    assert manager.processes(service.name) == []
    assert all(map(is_gone, children))
    (summary,) = service.log("summary")
    labels = query(service.folder / "ledger.db", "SELECT count(*) FROM label")[0][0]
    stored = query(service.folder / "posts.db", "SELECT count(*) FROM labels")[0][0]
    assert summary["labelled"] == labels == stored, "what was in flight was finished"


def test_a_drain_that_is_longer_than_the_units_patience_is_not_cut_off(
    manager: UserManager, model: tuple[str, Path]
) -> None:
    url, _ = model
    tell(url, delay=0.5)
    with sample_relay("--rate", "max") as relay:
        service = Service(manager, "test-drain", "run", "--relay", relay, "--model-url", url, "--model", "mock",
                          label__slots=1, limits__drain_seconds=8)  # fmt: skip
        service.change("TimeoutStopSec=2", f"WatchdogSec={WATCH}").start()
        until(lambda: service.log("label_up"), "the model to answer")
        before = tell(url, delay=600)["requests"]  # and from now on no more
        until(lambda: tell(url)["requests"] > before, "a call that will not be answered")
        service.stop()
    assert (service.shown("Result"), service.shown("ExecMainStatus")) == ("success", "0")
    assert service.log("drain_over"), "it took its whole time"
    assert query(service.folder / "ledger.db", "SELECT 1 FROM job WHERE state = 'pending' LIMIT 1"), "there was work"


def worker_unit(manager: UserManager, url: str, model_url: str, token: str) -> Service:
    """An instance of the unit that ships; the command is this installation's, and its files lie where it says."""
    text = (Path(__file__).parents[2] / "deploy/systemd/civicsky-worker@.service").read_text(encoding="utf-8")
    (manager.units / "civicsky-worker@.service").write_text(
        text.replace("%h/.local/bin/civicsky", CIVICSKY), encoding="utf-8"
    )
    folder = manager.home / ".config" / "civicsky"
    folder.mkdir(parents=True, exist_ok=True)
    model = f'[label]\nmodel_url = "{model_url}"\nmodel = "mock"\n'
    (folder / "worker-gpu0.toml").write_text(model, encoding="utf-8")
    secret = folder / "worker-gpu0.env"
    secret.touch(mode=0o600)
    secret.write_text(f"CIVICSKY_WORKERS__TOKEN='{token}'\n", encoding="utf-8")
    service = Service(manager, "civicsky-worker@gpu0")
    service.settings = {"workers__url": url}
    return service.change()


def test_an_instance_of_the_worker_is_ready_when_nats_answers_starts_again_and_drains(
    manager: UserManager, model: tuple[str, Path]
) -> None:
    with nats_server(manager.folder / "nats", 'authorization { token: "the-token" }\n') as nats:
        service = worker_unit(manager, nats.url, model[0], "the-token").start()
        assert service.shown("ActiveState") == "active"
        until(lambda: "0 in flight, 0 done" in service.shown("StatusText"), "STATUS")
        main = manager.main(service.name)
        assert "the-token" not in Path(f"/proc/{main}/cmdline").read_text(encoding="utf-8")
        manager.systemctl("kill", "--kill-who=main", "--signal=KILL", service.name)
        until(lambda: service.restarts() == 1 and service.shown("ActiveState") == "active", "it to start again")
        service.stop()
    assert (service.shown("Result"), service.shown("ExecMainStatus")) == ("success", "0")
    assert manager.processes(service.name) == []


def test_a_worker_that_nats_does_not_let_in_is_not_started_again(manager: UserManager, model: tuple[str, Path]) -> None:
    with nats_server(manager.folder / "nats", 'authorization { token: "the-token" }\n') as nats:
        service = worker_unit(manager, nats.url, model[0], "wrong")
        manager.inside("systemctl", "--user", "start", service.name)
        until(lambda: service.shown("ActiveState") == "failed", "it to end")
    assert (service.shown("ExecMainStatus"), service.restarts()) == ("2", 0)
