"""compose.yaml keeps what operations promise of it. No engine starts it here."""

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from nats import connect
from nats.aio.client import Client
from nats.errors import Error as NatsError
from pydantic import SecretStr
from ruamel.yaml import YAML

from civicsky.errors import Usage
from civicsky.loading import documented
from civicsky.settings import Settings, Workers
from civicsky.workers.bus import Bus
from docs.pages import ROOT, page, section
from support.command import until
from support.nats_server import BINARY
from support.recipe import pairs, stages

COMPOSE = ROOT / "compose.yaml"
MODELS = {"vllm", "llama-cpp", "llama-cpp-gpu"}
OURS = {"civicsky", "worker"}


def secret_settings() -> set[str]:
    groups = Settings.model_construct()
    return {
        f"{name}.{field}"
        for name in Settings.model_fields
        for field in getattr(type(getattr(groups, name)), "model_fields", {})
        if isinstance(getattr(getattr(groups, name), field), SecretStr)
    }


@pytest.fixture(scope="module")
def compose() -> Any:
    return YAML(typ="safe").load(COMPOSE)


@pytest.fixture(scope="module")
def services(compose: Any) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


def valid(file: Path) -> "subprocess.CompletedProcess[str]":
    program = str(Path(sys.executable).parent / "check-jsonschema")
    command = [program, "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_compose_file_fits_the_schema_of_compose_files(tmp_path: Path) -> None:
    found = valid(COMPOSE)
    assert found.returncode == 0, found.stdout
    (tmp_path / "wrong.yaml").write_text(page("compose.yaml").replace("cap_drop:", "cap_dropped:"), encoding="utf-8")
    assert valid(tmp_path / "wrong.yaml").returncode != 0


def test_nothing_of_it_listens_beyond_its_own_networks(compose: Any, services: dict[str, Any]) -> None:
    assert compose["networks"]["inside"] == {"internal": True}
    for name, service in services.items():
        assert not service.keys() & {"ports", "network_mode", "privileged", "pid", "ipc", "devices", "cap_add"}, name
        networks = set(service["networks"])
        assert networks == ({"inside", "outside"} if name in OURS else {"inside"}), name


def test_every_service_is_held_in_bounded_and_started_again(services: dict[str, Any]) -> None:
    assert set(services) == {*OURS, "mongodb", "nats", *MODELS}
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"] is True, name
        assert service["restart"] == "unless-stopped", name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name
        assert service.get("read_only", False) is (name != "vllm"), name
        assert name in OURS or service["healthcheck"]["test"][0] == "CMD", name


def test_civicsky_has_longer_to_stop_than_a_drain_takes(services: dict[str, Any]) -> None:
    drain = Settings.model_fields["limits"].default.drain_seconds
    assert float(services["civicsky"]["stop_grace_period"].removesuffix("s")) >= drain + 30


def test_civicsky_is_the_image_of_this_version_with_its_volume_and_its_check_of_health(
    compose: Any, services: dict[str, Any]
) -> None:
    service, image = services["civicsky"], stages(ROOT / "Dockerfile")[-1]
    version = tomllib.loads(page("pyproject.toml"))["project"]["version"]
    assert service["image"] == f"civicsky:{version}"
    assert service["volumes"] == [f"data:{image.one('VOLUME')}"]
    assert set(compose["volumes"]) == {"data", "mongodb"}
    assert not service.keys() & {"healthcheck", "user", "entrypoint", "command"}
    assert set(service["build"]["args"]) <= {
        name for line in stages(ROOT / "Dockerfile")[0].values("ARG") for name in pairs(line)
    }


def test_secrets_are_files_named_like_settings_and_stand_in_no_environment(
    compose: Any, services: dict[str, Any]
) -> None:
    assert set(compose["secrets"]) - {"mongo_admin_password"} < secret_settings()
    assert all(secret["file"] == f"${{SECRETS:-./secrets}}/{name}" for name, secret in compose["secrets"].items())
    assert set(services["civicsky"]["secrets"]) == {"store.mongo_uri", "label.api_key", "workers.token"}
    assert set(services["worker"]["secrets"]) == {"label.api_key", "workers.token"}
    known = {variable: name for name, _, variable in documented()}
    given = [name for service in services.values() for name in service.get("environment", {})]
    ours = {known[name] for name in given if name.startswith("CIVICSKY_")}
    assert ours == {"label.model_url", "label.model", "label.slots", "workers.url", "workers.in_clear",
                    "store.mongo_database"}  # fmt: skip
    assert services["mongodb"]["environment"]["CIVICSKY_STORE__MONGO_DATABASE"] == Settings().store.mongo_database
    for folder in ("/secrets/", "/models/", "/.env"):
        assert folder in page(".gitignore").splitlines()


def test_storing_begins_when_mongodb_has_its_user(compose: Any, services: dict[str, Any]) -> None:
    assert services["civicsky"]["depends_on"] == {"mongodb": {"condition": "service_healthy"}}
    check = services["mongodb"]["healthcheck"]["test"]
    (source,) = services["mongodb"]["configs"]
    assert check[-1] == source["target"]
    assert (ROOT / compose["configs"][source["source"]]["file"]).is_file()
    script = page("deploy/compose/mongodb.js")
    assert all(secret in script for secret in services["mongodb"]["secrets"])


def test_each_model_is_chosen_by_its_profile_and_asked_under_one_name(services: dict[str, Any]) -> None:
    for name in MODELS:
        assert services[name]["profiles"] == [name]
        assert services[name]["networks"]["inside"]["aliases"] == ["model"]
        assert services[name]["secrets"] == ["label.api_key"]
        assert "8000" in str(services[name]["command"])
        (volume,) = services[name]["volumes"]
        assert volume.endswith(":ro")
    assert services["civicsky"]["environment"]["CIVICSKY_LABEL__MODEL_URL"] == "${MODEL_URL:-http://model:8000/v1}"
    for name in ("vllm", "llama-cpp-gpu"):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]


def test_operations_name_every_profile_secret_and_variable_of_the_compose_file(compose: Any) -> None:
    text = section("docs/operations.md", "With compose")
    variables = ("MODEL_NAME", "MODEL_FILE", "MODEL_URL", "MODELS", "MODEL_MEMORY", "WORKERS_URL", "WORKER_SLOTS",
                 "WORKERS_IN_CLEAR")  # fmt: skip
    for name in (*MODELS, "workers", *compose["secrets"], *variables):
        assert name in text, name


# ---- workers ---------------------------------------------------------------------------------------------------------


def test_workers_and_nats_come_by_their_profile_alone_and_as_many_as_are_wanted(services: dict[str, Any]) -> None:
    assert {name for name, one in services.items() if one.get("profiles") == ["workers"]} == {"nats", "worker"}
    worker = services["worker"]
    assert not worker.keys() & {"container_name", "hostname", "build"}, "--scale makes several of it"
    assert worker["image"] == services["civicsky"]["image"]
    assert worker["command"] == ["label", "--worker", "${WORKERS_URL:-nats://nats:4222}"]
    assert worker["depends_on"] == {"nats": {"condition": "service_healthy"}}
    assert services["civicsky"]["environment"]["CIVICSKY_WORKERS__URL"] == "${WORKERS_URL:-}", (
        "without the profile: none"
    )
    drain = Settings.model_fields["limits"].default.drain_seconds
    assert float(worker["stop_grace_period"].removesuffix("s")) >= drain + 30
    assert any(line.split(":")[0] == stages(ROOT / "Dockerfile")[-1].one("VOLUME") for line in worker["tmpfs"])


def test_home_and_workers_reach_nats_with_its_token_by_the_addresses_that_are_given_there(
    services: dict[str, Any], compose: Any
) -> None:
    given = services["civicsky"]["environment"]
    in_clear = given["CIVICSKY_WORKERS__IN_CLEAR"].removeprefix("${WORKERS_IN_CLEAR:-").removesuffix("}")
    url = services["worker"]["command"][-1].removeprefix("${WORKERS_URL:-").removesuffix("}")
    assert services["worker"]["environment"] | given == services["worker"]["environment"]
    assert urlsplit(url).hostname in services
    Bus(Workers.model_validate({"url": url, "in_clear": in_clear, "token": "the-token"}), "a test")
    with pytest.raises(Usage, match="in clear"):
        Bus(Workers.model_validate({"url": url, "in_clear": "false", "token": "the-token"}), "a test")
    assert services["nats"]["networks"] == ["inside"]
    assert compose["networks"]["inside"] == {"internal": True}, "else others could listen in"


def test_the_image_has_what_workers_need() -> None:
    lists = [line for line in stages(ROOT / "Dockerfile")[0].values("RUN") if "for list in" in line]
    assert "for list in base fast nats " in lists[0]


def script_of_nats(services: dict[str, Any], folder: Path, port: int) -> str:
    """What its container would run, with other paths and another port."""
    text = page("deploy/compose/nats.conf").replace("0.0.0.0:4222", f"127.0.0.1:{port}")
    text = text.replace('http: "127.0.0.1:8222"', "").replace("/tmp/nats", str(folder / "js"))  # noqa: S108
    (folder / "base.conf").write_text(text, encoding="utf-8")
    (script,) = services["nats"]["command"]
    for there, here in (
        ("$$", "$"), ("/tmp/nats.conf", folder / "made.conf"), ("cat /nats.conf", f"cat {folder}/base.conf"),  # noqa: S108
        ("/run/secrets/workers.token", folder / "workers.token"), ("exec nats-server", f"exec {BINARY}"),
    ):  # fmt: skip
        assert there in script
        script = script.replace(there, str(here))
    return str(script)


@contextmanager
def nats_of_compose(
    services: dict[str, Any], folder: Path, port: int, token: str
) -> "Iterator[subprocess.Popen[bytes]]":
    """A real server, started as its container would start it."""
    (folder / "workers.token").write_text(token, encoding="utf-8")
    with (folder / "log").open("wb") as log:
        script = script_of_nats(services, folder, port)
        server = subprocess.Popen(["sh", "-ec", script], stdout=log, stderr=log)
    try:
        until(lambda: b"Server is ready" in (folder / "log").read_bytes() or server.poll() is not None, "nats-server")
        yield server
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize("token", ["0123e45", "a-token_of-24-characters"])
async def test_nats_wants_the_token_of_its_file_which_stands_on_no_command_line(
    services: dict[str, Any], tmp_path: Path, unused_tcp_port: int, token: str
) -> None:
    address = f"nats://127.0.0.1:{unused_tcp_port}"
    with nats_of_compose(services, tmp_path, unused_tcp_port, token) as server:
        assert token.encode() not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
        assert (tmp_path / "made.conf").stat().st_mode & 0o077 == 0
        client = await connect(address, token=token, allow_reconnect=False)
        assert (await client.jetstream().account_info()).limits.max_memory != 0
        await client.close()
        stranger = Client()
        with pytest.raises(NatsError, match=r"(?i)authorization"):
            await stranger.connect(address, token="wrong", allow_reconnect=False, error_cb=silent)
        await stranger.close()  # a connection that was refused stays open else


async def silent(_error: Exception) -> None:
    """The library would log it."""
