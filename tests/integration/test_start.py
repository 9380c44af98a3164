"""What a start loads, and how a command ends."""

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from civicsky.endpoint import open_endpoints
from civicsky.settings import Label
from support.command import CIVICSKY, environment, model_server, run

HEAVY = {
    "atproto",
    "atproto_client",
    "httpx",
    "motor",
    "picows",
    "pymongo",
    "pyarrow",
    "rich",
    "structlog",
    "uvloop",
    "websockets",
}
SETTINGS = {"civicsky.settings", "pydantic_settings", "asyncio", "importlib.metadata"}

WITH_A_POOL = """
async def main():
    from civicsky.settings import Filter, Worker
    from civicsky.worker import Pool

    pool = Pool(Worker(processes=1), Filter())
    await pool.start()
    print(await pool._run(eval, "' '.join(__import__('sys').modules)"))

if __name__ == "__main__":
    import asyncio

    asyncio.run(main())
"""


THREADS_OF_NUMPY = """
import os
import civicsky.cli.main
from civicsky.__main__ import main

def count():
    import numpy
    print(len(os.listdir("/proc/self/task")))
    return 0

civicsky.cli.main.run_command = count
main()
"""


def loaded(*args: str | Path) -> set[str]:
    """Names of all modules that a command imported; it must do well."""
    command = [sys.executable, "-X", "importtime", CIVICSKY, *map(str, args)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "civicsky.cli" in names, "what was loaded is seen"
    return names


def test_help_loads_neither_settings_nor_an_event_loop() -> None:
    assert not loaded("--help") & (HEAVY | SETTINGS | {"pydantic", "civicsky.model"})


@pytest.mark.parametrize(("told", "threads"), [({}, 1), ({"OPENBLAS_NUM_THREADS": "2"}, 2)], ids=["not told", "told"])
def test_a_command_reckons_with_one_thread_unless_it_is_told_otherwise(told: dict[str, str], threads: int) -> None:
    env = {name: value for name, value in environment().items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", THREADS_OF_NUMPY], env=env | told, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == min(threads, len(os.sched_getaffinity(0)))


def test_looking_where_things_stand_loads_no_log_and_no_network(tmp_path: Path, relay: str) -> None:
    assert run("collect", "--relay", relay, "--data-dir", tmp_path, "--max-frames", 10).code == 0
    for command in ("status", "coverage"):
        assert not loaded(command, "--data-dir", tmp_path) & HEAVY, command


def test_a_service_loads_nothing_that_draws_on_a_terminal(tmp_path: Path, relay: str) -> None:
    names = loaded("collect", "--relay", relay, "--data-dir", tmp_path, "--max-frames", "10")
    assert names >= {"structlog", "httpx"}, "it does what needs them"
    assert not names & {"rich.console", "click.core", "pygments"}


def test_labelling_without_articles_or_a_gate_loads_nothing_that_these_need(tmp_path: Path, relay: str) -> None:
    assert run("collect", "--relay", relay, "--data-dir", tmp_path, "--max-frames", 40).code == 0
    with model_server(tmp_path / "log") as model:
        names = loaded("label", "--data-dir", tmp_path, "--model-url", model, "--model", "mock", "--drain")
    assert names >= {"civicsky.gate", "civicsky.events.events", "httpx"}, "their ways in are there"
    assert not names & {"numpy", "safetensors", "tokenizers", "wordllama", "apsw", "sqlite_vec", "scipy"}


def test_a_worker_process_loads_only_what_judges_records(tmp_path: Path) -> None:
    program = tmp_path / "program.py"  # a child runs its parent's main file, too: this one, and not that of the tests
    program.write_text(WITH_A_POOL)
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True, timeout=120)
    names = set(done.stdout.split())
    assert "civicsky.filter" in names, "it is one that judges"
    assert not names & (HEAVY | SETTINGS | {"pydantic", "civicsky.logfile", "typer"})


@pytest.mark.parametrize("args", [("--version",), ("config", "--json")])
def test_output_that_has_no_room_is_told_and_is_no_success(args: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [CIVICSKY, *args],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    assert (done.returncode, "No space left on device" in done.stderr, done.stderr.count("\n")) == (1, True, 1)


def test_all_that_a_command_said_is_there_when_it_has_ended() -> None:
    with subprocess.Popen([CIVICSKY, "config"], env=environment(), stdout=subprocess.PIPE, text=True) as process:
        process.wait(timeout=120)  # it ended, and nobody has read yet
        assert process.stdout is not None
        said = process.stdout.read()
    assert said == run("config").out
    assert "task civic" in said.splitlines()[-1]


def test_asking_the_public_api_loads_only_what_it_needs_of_the_sdk() -> None:
    program = (
        "import sys\n"
        "from civicsky import settings, xrpc\n"
        "xrpc.Client(settings.AppView(), 'url')\n"
        "print([name for name in sys.modules if name.startswith(('atproto_firehose', 'atproto_client.namespaces.'))])\n"
        "print(len([name for name in sys.modules if name.startswith('atproto_client.models.')]))\n"
        "from atproto_client.namespaces import async_ns\n"
        "print(async_ns.__file__)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    dear, models, afterwards = ran.stdout.splitlines()
    assert dear == "[]"
    assert 0 < int(models) < 50, "of 300"
    assert afterwards.endswith("async_ns.py"), "whoever wants it has the real one"


@pytest.mark.parametrize(
    ("urls", "trusts"),
    [(["http://a.test/v1"], False), (["https://a.test/v1"], True), (["http://a.test/v1", "HTTPS://b.test/v1"], True)],
)
def test_authorities_are_loaded_for_servers_that_speak_tls_and_else_nobody_is_trusted(
    urls: list[str], trusts: bool
) -> None:
    settings = Label.model_validate({"model_url": urls[0], "more_urls": urls[1:], "model": "m"})
    tls = open_endpoints(settings)._tls
    assert (tls.verify_mode, tls.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert bool(tls.get_ca_certs()) == trusts
