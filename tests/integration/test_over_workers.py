"""What `make over-workers` does not let pass: tests that go by no worker, and exceptions that are out of date."""

import os
import re
import subprocess
import sys
from pathlib import Path

from support.over_workers import OUTSIDE

ROOT = Path(__file__).parents[2]
DIRECT = """
import subprocess
from civicsky import endpoint
from civicsky.errors import Transient
from civicsky.settings import Label
from support.command import CIVICSKY

async def test_asks_the_model_itself():
    endpoints = endpoint.open_endpoints(Label(model_url="http://127.0.0.1:1/v1", model="m"))
    line = endpoints.line()
    try:
        await line.exchange(endpoints.servers[0], "GET", "/models", b"", 1)
    except Transient:
        pass
    await line.close()

def test_tells_a_command_where_the_model_is(tmp_path):
    words = [CIVICSKY, "label", "--model-url", "http://127.0.0.1:1/v1", "--model", "m"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process.kill()
    process.wait()
"""
SILENT = """
def test_asks_nobody():
    pass
"""


def over_workers(folder: Path, **files: str) -> subprocess.CompletedProcess[str]:
    """Run these files as the target does."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    options = ("-o", "asyncio_mode=auto", "-p", "no:cacheprovider", "--rootdir", str(folder))
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "support.over_workers", *options, folder],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")}, capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip


def test_who_asks_a_model_without_a_worker_fails_and_so_does_a_file_that_asks_nobody(tmp_path: Path) -> None:
    ended = over_workers(tmp_path, test_direct=DIRECT, test_silent=SILENT)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "3 passed, 2 errors" in ended.stdout
    told = re.findall(r"^E +AssertionError: somebody asks a model without a worker", ended.stdout, re.MULTILINE)
    assert len(told) == 2
    assert "workers made 0 calls for these tests" in ended.stdout
    assert "FAILED test_silent.py: no worker made a call for it" in ended.stdout


def test_an_exception_that_is_no_test_any_more_fails(tmp_path: Path) -> None:
    told = "from support import over_workers\nover_workers.OUTSIDE = {'test_silent.py::test_gone': 'why'}\n"
    ended = over_workers(tmp_path, conftest=told, test_silent=SILENT)
    assert ended.returncode == 4, ended.stdout + ended.stderr
    assert "OUTSIDE names tests that are not there: test_silent.py::test_gone" in ended.stderr


def test_every_exception_is_of_a_file_that_the_target_runs() -> None:
    (listed,) = re.findall(r"^LABELLING = ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    files = listed.replace("\\\n", " ").split()
    assert all((ROOT / file).is_file() for file in files)
    assert {name.partition("::")[0] for name in OUTSIDE} <= set(files)
