"""The unit, its examples and the image's recipe keep what the service relies on."""

import re
import tomllib
from configparser import RawConfigParser

import pytest

from civicsky.errors import EXIT_USAGE
from civicsky.settings import Settings, documented, load
from docs.pages import ROOT, page

UNIT = "deploy/systemd/civicsky.service"
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


def test_the_example_settings_choose_a_model_and_mongodb() -> None:
    settings = load(ROOT / SETTINGS)
    assert settings.label.chosen
    assert settings.store.chosen == "mongo"
    assert "mongo_uri" not in tomllib.loads(page(SETTINGS))["store"]


def test_the_example_environment_names_the_secrets_and_sets_none() -> None:
    variables = re.findall(r"^#?(CIVICSKY_\w+)=", page(SECRETS), re.MULTILINE)
    assert set(variables) <= {variable for _, _, variable in documented()}
    assert len(variables) == 3
    assert all(line.startswith("#") or not line for line in page(SECRETS).splitlines())


def test_the_image_runs_as_a_fixed_user_and_hands_signals_to_the_command() -> None:
    recipe = page("Dockerfile").splitlines()
    for line in (
        "USER 10001:10001",
        "VOLUME /data",
        "STOPSIGNAL SIGTERM",
        'ENTRYPOINT ["civicsky"]',
        'CMD ["run"]',
    ):
        assert line in recipe
    assert "CIVICSKY_DATA_DIR=/data" in page("Dockerfile")


def test_the_image_installs_nothing_without_its_hash() -> None:
    for line in page("Dockerfile").splitlines():
        if "pip install" in line and "-r " in line:
            assert "--require-hashes" in line
    assert page("Dockerfile").count("--require-hashes") == 2


def test_every_file_that_the_image_copies_is_let_through() -> None:
    let_through = {line[1:] for line in page(".dockerignore").splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.*)$", page("Dockerfile"), re.MULTILINE):
        *sources, _ = line.split()
        assert set(sources) <= let_through
        assert all((ROOT / source).exists() for source in sources)
