"""The image's recipe keeps what operations promise of the container. `make image-steps` performs it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from docs.pages import ROOT, page
from support.recipe import Stage, copied, health_command, let_through, pairs, stages, words

RECIPE = ROOT / "Dockerfile"
IGNORED = ROOT / ".dockerignore"
HADOLINT = Path(sys.executable).parent / "hadolint"


@pytest.fixture(scope="module")
def recipe() -> list[Stage]:
    return stages(RECIPE)


@pytest.fixture(scope="module")
def image(recipe: list[Stage]) -> Stage:
    return recipe[-1]


def environment(stage: Stage) -> dict[str, str]:
    return {name: value for line in stage.values("ENV") for name, value in pairs(line).items()}


def hadolint(file: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([HADOLINT, "--no-color", file], capture_output=True, text=True, check=False, timeout=60)


def test_hadolint_finds_nothing_to_say_of_the_recipe() -> None:
    found = hadolint(RECIPE)
    assert (found.returncode, found.stdout) == (0, "")
    assert "hadolint ignore" not in page("Dockerfile")


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        ("DL3006", "ARG BASE=python:3.11-slim-bookworm", "ARG BASE=python:3.11-slim-bookworm\nFROM python"),
        ("DL3002", "USER 10001:10001", "USER root"),
        ("DL3025", 'ENTRYPOINT ["civicsky"]', "ENTRYPOINT civicsky"),
    ],
)
def test_hadolint_would_say_so(rule: str, old: str, new: str, tmp_path: Path) -> None:
    assert old in page("Dockerfile")
    (tmp_path / "Dockerfile").write_text(page("Dockerfile").replace(old, new), encoding="utf-8")
    assert rule in hadolint(tmp_path / "Dockerfile").stdout


def test_every_stage_begins_with_one_pinned_slim_python_that_the_package_takes(recipe: list[Stage]) -> None:
    (base,) = {stage.base for stage in recipe}
    version = re.fullmatch(r"python:(3\.\d+)-slim-bookworm", base)
    assert version
    project = tomllib.loads(page("pyproject.toml"))
    assert project["project"]["requires-python"] == f">={version[1]}"
    assert project["tool"]["ruff"]["target-version"] == f"py{version[1].replace('.', '')}"


def test_the_image_runs_as_a_fixed_user_and_hands_signals_to_the_command(image: Stage) -> None:
    assert image.one("USER") == "10001:10001"
    assert image.one("VOLUME") == image.one("WORKDIR") == environment(image)["CIVICSKY_DATA_DIR"] == "/data"
    assert image.one("STOPSIGNAL") == "SIGTERM"
    assert words(image.one("ENTRYPOINT")) == ["civicsky"]
    assert words(image.one("CMD")) == ["run"]
    order = [kind for kind, _ in image.steps]
    assert order.index("USER") > max(at for at, kind in enumerate(order) if kind in {"RUN", "COPY"})


def test_the_image_is_as_healthy_as_its_own_command_says(image: Stage) -> None:
    assert health_command(image.one("HEALTHCHECK")) == ["civicsky", "health", "--live"]
    assert environment(image)["CIVICSKY_HTTP__LISTEN"] == "127.0.0.1:9464"
    assert not image.values("EXPOSE")


def test_the_image_keeps_what_libraries_write_in_the_folder_that_may_be_forgotten(image: Stage) -> None:
    assert environment(image)["HOME"] == "/tmp"  # noqa: S108
    assert environment(image)["PYTHONDONTWRITEBYTECODE"] == "1"
    assert environment(image)["SQLITE_TMPDIR"] == image.one("VOLUME")


def test_the_image_takes_secrets_from_where_engines_mount_them(image: Stage) -> None:
    assert environment(image)["CREDENTIALS_DIRECTORY"] == "/run/secrets"


def test_the_image_installs_nothing_without_its_hash(recipe: list[Stage]) -> None:
    installs = [
        command.group()
        for stage in recipe
        for line in stage.values("RUN")
        for command in re.finditer(r"\bpip\b[^&;|]*\binstall\b[^&;|]*", line)
    ]
    assert len(installs) == 3
    for command in installs:
        assert "--require-hashes" in command or "--no-deps --no-index /dist/*.whl" in command
    assert not any(
        re.search(r"\b(apt|apt-get|curl|wget|git)\b", line) for stage in recipe for line in stage.values("RUN")
    )


def test_nothing_is_installed_in_the_last_stage(image: Stage) -> None:
    assert not any("pip" in line for line in image.values("RUN"))
    assert [copied(line).sources for line in image.values("COPY")] == [["/opt/civicsky"]]


def test_every_list_that_the_image_may_install_is_pinned_by_hash(recipe: list[Stage]) -> None:
    lists = [source for line in recipe[0].values("COPY") for source in copied(line).sources if source.endswith(".txt")]
    assert len(lists) == 6
    for name in lists:
        entries = re.findall(r"^[^\s#][^\\\n]*(?:\\\n[^\n]*)*", page(name), re.MULTILINE)
        assert entries
        assert all(re.match(r"[\w.-]+==[\w.!+-]+\s", entry) for entry in entries), name
        assert all("--hash=sha256:" in entry for entry in entries), name


def test_every_file_that_the_image_copies_is_there_and_let_through(recipe: list[Stage]) -> None:
    for stage in recipe:
        for step in map(copied, stage.values("COPY")):
            for source in step.sources if not step.stage else []:
                assert (ROOT / source).exists(), source
                assert let_through(IGNORED, source), source


def test_nothing_else_is_let_through(recipe: list[Stage]) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    files = [name for name in listed.decode().split("\0") if name and let_through(IGNORED, name)]
    wanted = {source for stage in recipe for line in stage.values("COPY") for source in copied(line).sources}
    assert files
    assert all(name in wanted or name.split("/")[0] in wanted for name in files)
    for name in (".git/config", "civicsky-data/journal.db", "secrets/x", "service/civicsky/__pycache__/x.pyc"):
        assert not let_through(IGNORED, name)


def test_the_labels_say_what_the_package_says_of_itself(image: Stage) -> None:
    project = tomllib.loads(page("pyproject.toml"))["project"]
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in pairs(image.one("LABEL")).items()}
    assert labels == {
        "title": project["name"],
        "description": project["description"],
        "version": project["version"],
        "licenses": project["license"],
    }
