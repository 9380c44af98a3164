"""`civicsky init` at a real terminal and without one: what it asks, writes and tries out."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from civicsky.errors import EXIT_FAILED, EXIT_USAGE
from civicsky.loading import load, secrets_file
from conftest import Mongod, skip
from support.command import CIVICSKY, HANGING_MOUNT, Ended, environment, model_server, run
from support.ports import free_port
from support.typed import COLUMNS, Typed

KEY, MONGO = "CIVICSKY_LABEL__API_KEY", "CIVICSKY_STORE__MONGO_URI"
SECRET = "sk-sekret-123"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own; nothing of the machine's shows."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "SCRATCH", "TMPDIR", "SLURM_JOB_ID", KEY, MONGO):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / ".config" / "civicsky" / "civicsky.toml"


def init(*args: str | Path, **settings: Any) -> Ended:
    """Without a terminal; everything but the data directory and the model is given."""
    return run("init", *args, **settings)


def line(ended: Ended) -> str:
    """The only line on standard error."""
    assert ended.err.startswith("civicsky: ")
    assert ended.err.count("\n") == 1, ended.err
    return ended.err


def modes(*files: Path) -> list[str]:
    return [f"{file.stat().st_mode & 0o777:o}" for file in files]


@contextmanager
def keyed(log: Path) -> Iterator[str]:
    """A model's server that wants a key."""
    with model_server(log, "--key", SECRET) as url:
        yield url


# ---- at a terminal ---------------------------------------------------------------------------------------------------


def test_a_person_is_asked_and_what_was_answered_works(
    relay: str, mongod: Mongod, mongo_database: str, tmp_path: Path, config: Path
) -> None:
    with keyed(tmp_path / "log") as url, Typed("init", HOME=str(tmp_path)) as terminal:
        terminal.until(" GB free)").answer("Data directory [", str(tmp_path / "my data"))
        terminal.answer("Relays [wss://bsky.network]", relay)
        terminal.answer("Store [sqlite]", "mongo")
        terminal.answer("MongoDB's address", mongod.uri, unseen=True)
        terminal.answer("Model's address [none]", url)
        terminal.answer("Model's name", "mock")
        terminal.answer("The server's key", SECRET, unseen=True)
        assert terminal.end() == 0, terminal.shown
        shown = terminal.shown
        assert re.findall(r"^ok +(relay|model|store) ", shown, re.MULTILINE) == ["relay", "model", "store"]
        assert "problem" not in shown
        assert SECRET not in shown
        assert mongod.uri not in shown
        assert f"civicsky run --config {config}" in shown
        assert modes(config, secrets_file(config), config.parent, tmp_path / "my data") == ["600", "600", "700", "700"]
        settings = load(config)
        assert (settings.data_dir, settings.source.relays) == (tmp_path / "my data", (relay,))
        assert (settings.label.model_url, settings.label.model, settings.store.kind) == (url, "mock", "mongo")
        assert settings.label.api_key.get_secret_value() == SECRET
        assert settings.store.mongo_uri.get_secret_value() == mongod.uri
        assert SECRET not in config.read_text()
        assert sorted(file.name for file in config.parent.iterdir()) == ["civicsky.env", "civicsky.toml"]

        ended = run(
            "run", "--config", config, "--max-frames", 200,
            source__start="window", store__mongo_database=mongo_database, appview__recheck="false",
        )  # fmt: skip
        assert ended.code == 0, ended.err
        assert re.search(r"[1-9]\d* labelled", ended.out)


def test_a_bad_answer_is_told_and_asked_again_in_lines_that_fit(relay: str, tmp_path: Path, config: Path) -> None:
    with Typed("init", "--offline", HOME=str(tmp_path)) as terminal:
        terminal.answer("Data directory [", "/proc/nowhere").until("cannot be written")
        terminal.answer("Data directory [", "")
        terminal.answer("Relays [", "http://x\x1b[2J\x01").until("is not an address")
        terminal.answer("Relays [", f"{relay}, wss://b.example")
        terminal.answer("Store [", "oracle").until("mongo or sqlite")
        terminal.answer("Store [", "mongo")
        terminal.answer("MongoDB's address", f"http://me:{SECRET}@x", unseen=True).until(
            "is not a MongoDB connection string"
        )
        terminal.answer("MongoDB's address", f"mongodb://me:{SECRET}'@h/", unseen=True).until("write them as %27")
        terminal.answer("MongoDB's address", f"mongodb://me:{SECRET}%27@h/", unseen=True)
        terminal.answer("Model's address", f"http://me:{SECRET}@h/v1").until("put the key into")
        terminal.answer("Model's address", "local")
        assert terminal.end() == 0, terminal.shown
        assert SECRET not in terminal.shown.replace(f"me:{SECRET}@h/v1", "", 1)  # that one was typed where all is shown
        assert "\x1b[2J" not in terminal.shown
        told = [one for one in terminal.shown.splitlines() if ": " not in one and "/" not in one]
        assert len(told) > 5
        assert all(len(one) <= COLUMNS for one in told), told
    settings = load(config)
    assert settings.source.relays == (relay, "wss://b.example")
    assert settings.store.mongo_uri.get_secret_value() == f"mongodb://me:{SECRET}%27@h/"
    assert (settings.label.model, settings.label.model_url) == ("local", "")
    assert settings.data_dir == tmp_path / ".local/share/civicsky"


@pytest.mark.parametrize("keys", [b"\x03", b"\x04"])
def test_who_breaks_off_has_written_nothing(tmp_path: Path, config: Path, keys: bytes) -> None:
    with Typed("init", HOME=str(tmp_path)) as terminal:
        terminal.answer("Data directory [", "").until("Relays [").until("]: ")
        assert terminal.end(pressing=keys) == EXIT_FAILED
        assert "civicsky: ended before all was answered; nothing was written" in terminal.shown
        assert "Traceback" not in terminal.shown
    assert not config.parent.exists()


def test_answers_that_are_never_of_use_end_it(tmp_path: Path, config: Path) -> None:
    with Typed("init", "--data-dir", tmp_path / "data", HOME=str(tmp_path)) as terminal:
        for _ in range(5):
            terminal.answer("Relays [", "nothing").until("is not a ws:// or wss:// address")
        assert terminal.end() == EXIT_USAGE
    assert not config.parent.exists()


# ---- without one -----------------------------------------------------------------------------------------------------


def test_flags_are_enough_and_a_problem_is_told_with_exit_code_1_and_the_file_is_there(
    relay: str, tmp_path: Path, config: Path
) -> None:
    far = f"http://127.0.0.1:{free_port()}/v1"
    ended = init("--data-dir", tmp_path / "data", "--relay", relay, "--model-url", far, "--model", "m")
    assert ended.code == EXIT_FAILED
    assert not ended.err
    assert re.search(rf"^ok +relay +{relay} sends", ended.out, re.MULTILINE)
    assert re.search(r"^problem +model +.* cannot be reached .*; start the server", ended.out, re.MULTILINE)
    assert re.search(r"^ok +store +SQLite", ended.out, re.MULTILINE)
    assert "not all is well yet; the settings are written all the same" in ended.out
    settings = load(config)
    assert (settings.label.model_url, settings.label.model, settings.store.kind) == (far, "m", "sqlite")


def test_what_is_missing_and_has_no_default_is_one_line(tmp_path: Path, config: Path) -> None:
    for args, missing in (
        ([], "--model (a name, local or none) is missing"),
        (["--yes"], "--model (a name, local or none) is missing"),
        (["--model", "m"], "--model-url is missing"),
        (["--model-url", "http://h/v1"], "--model is missing"),
        (["--model", "none", "--store", "mongo"], f"set {MONGO} in the environment"),
        (["--model", "none", "--model-url", "http://h/v1"], "leave --model-url out"),
        (["--model", "none", "--relay", "http://h"], "is not a ws:// or wss:// address"),
        (["--model", "m", "--model-url", f"http://me:{SECRET}@h/v1"], "put the key into"),
    ):
        ended = init(*args)
        assert (ended.code, ended.out) == (EXIT_USAGE, "")
        assert missing in line(ended)
        assert SECRET not in ended.err
    assert list(tmp_path.iterdir()) == []


def test_with_yes_nothing_is_asked_at_a_terminal_either(tmp_path: Path, config: Path) -> None:
    with Typed("init", "--yes", "--model", "none", "--offline", HOME=str(tmp_path)) as terminal:
        assert terminal.end() == 0
    assert load(config).data_dir == tmp_path / ".local/share/civicsky"
    assert not load(config).label.chosen
    assert "civicsky collect --config" in terminal.shown


def test_secrets_come_from_the_environment_and_show_nowhere(tmp_path: Path, config: Path) -> None:
    uri = f"mongodb://me:{SECRET}@127.0.0.1:{free_port()}/"
    with keyed(tmp_path / "log") as url:
        ended = init(
            "--model", "mock", "--model-url", url, "--store", "mongo", "--relay", f"ws://127.0.0.1:{free_port()}",
            label__api_key=SECRET, store__mongo_uri=uri, appview__app_password=SECRET, label__slots="7",
        )  # fmt: skip
    assert ended.code == EXIT_FAILED
    assert re.search(r"^ok +model ", ended.out, re.MULTILINE), "the key was not used"
    assert re.search(r"^problem +store ", ended.out, re.MULTILINE)
    assert SECRET not in ended.out + ended.err + config.read_text()
    assert "set in the environment, and not written: CIVICSKY_LABEL__SLOTS" in ended.out
    settings = load(config)
    assert settings.store.mongo_uri.get_secret_value() == uri
    assert settings.label.api_key.get_secret_value() == settings.appview.app_password.get_secret_value() == SECRET
    assert settings.label.slots != 7
    shown = run("config", "--config", config)
    assert shown.code == 0
    assert SECRET not in shown.out


def test_a_file_that_is_there_is_left_alone_and_with_force_kept_beside(tmp_path: Path, config: Path) -> None:
    args = ("--model", "none", "--offline")
    assert init(*args, label__api_key="x").code == 0
    config.write_text("mine")
    secrets_file(config).write_text("also mine")
    ended = init(*args)
    assert ended.code == EXIT_USAGE
    assert f"{config} is there already" in line(ended)
    assert config.read_text() == "mine"
    config.rename(tmp_path / "away")
    assert f"{secrets_file(config)} is there already" in line(init(*args))
    (tmp_path / "away").rename(config)
    ended = init(*args, "--force")
    assert ended.code == 0
    assert load(config).data_dir == tmp_path / ".local/share/civicsky"
    kept = [Path(one) for one in re.findall(r"^the former one is kept: (.*)$", ended.out, re.MULTILINE)]
    assert [file.read_text() for file in kept] == ["mine", "also mine"]
    assert len(list(config.parent.iterdir())) == 4


def test_a_file_is_whole_or_not_there(tmp_path: Path, config: Path) -> None:
    """The disk is full after some bytes: as a bound on the size of files would have it."""
    limited = f'ulimit -f 1; trap "" XFSZ; exec {CIVICSKY} init --model none --offline'
    ran = subprocess.run(["bash", "-c", limited], env=environment(), capture_output=True, text=True, check=False)
    assert ran.returncode == EXIT_USAGE
    assert "cannot be written" in ran.stderr
    assert list(config.parent.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be written" in line(init("--model", "none", "--offline", "--config", tmp_path / "file" / "x.toml"))
    assert "cannot be written" in line(init("--model", "none", "--offline", "--data-dir", tmp_path / "file" / "x"))
    assert "cannot be written" in line(init("--model", "none", "--offline", "--data-dir", tmp_path / ("x" * 300)))


def test_the_environment_can_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "odd name.conf"
    ended = init("--model", "none", "--offline", config=str(file))
    assert ended.code == 0, ended.err
    assert modes(file, tmp_path / "odd name.conf.env") == ["600", "600"]
    assert f"--config '{file}'" in ended.out


@pytest.mark.parametrize("name", ['a"b', "a'b", "a\nb", '"""', "# é \u2028", "\x1b[2J$(id)`"])
def test_odd_names_of_folders_and_models_are_written_right_and_shown_harmless(
    tmp_path: Path, config: Path, name: str
) -> None:
    ended = init("--model", name, "--model-url", "http://h/v1", "--data-dir", tmp_path / name, "--offline")
    assert ended.code == 0, ended.err
    assert tomllib.loads(config.read_text())["data_dir"] == str(tmp_path / name)
    assert load(config).label.model == name
    assert "\x1b" not in ended.out


# ---- network file systems --------------------------------------------------------------------------------------------


def mounted(command: Sequence[str | Path], mount: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run a command where a network file system that never answers lies on a folder; needs a namespace of its own."""
    unshare = ["unshare", "-m", "--propagation", "private", sys.executable, "-c", HANGING_MOUNT, mount, *command]
    return subprocess.run(
        [*map(str, unshare)], env=environment() | more, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """A folder that will be one."""
    if not os.access("/dev/fuse", os.W_OK) or os.geteuid():
        skip("a mount of a network file system needs root and /dev/fuse")
    folder = tmp_path / "far"
    folder.mkdir()
    return folder


def test_a_network_file_system_is_refused_and_local_folders_are_offered(far: Path, tmp_path: Path) -> None:
    local = tmp_path / "scratch"
    local.mkdir()
    command: list[str | Path] = [CIVICSKY, "init", "--model", "none", "--offline", "--data-dir", far / "data"]
    ended = mounted(command, far, SCRATCH=str(local))
    assert ended.returncode == EXIT_USAGE, ended.stderr
    assert "is on a network file system (fuse.sshfs)" in ended.stderr
    assert re.search(rf"fit here: .*{local}/civicsky \(\w+, [\d,]+ GB free\)", ended.stderr)
    assert ended.stderr.count("\n") == 1


def test_a_home_on_a_network_file_system_is_no_default_for_data(far: Path, tmp_path: Path) -> None:
    local = tmp_path / "scratch"
    local.mkdir()
    config = tmp_path / "c.toml"
    command: list[str | Path] = [CIVICSKY, "init", "--model", "none", "--offline", "--config", config]
    ended = mounted(command, far, HOME=str(far), SCRATCH=str(local))
    assert ended.returncode == EXIT_USAGE
    assert "--data-dir is missing: your home is not on a local disk; fit here: " in ended.stderr
    assert str(local / "civicsky") in ended.stderr
    assert not config.exists()
