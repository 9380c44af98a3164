"""A real nats-server, and label workers beside it, as processes or within the test."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from civicsky.lifecycle import Stop
from civicsky.model import Spend
from civicsky.settings import Label, Settings
from civicsky.slots import model_endpoints
from civicsky.workers.serve import Worker
from support.command import until
from support.ports import free_port

BINARY = shutil.which("nats-server") or "/usr/sbin/nats-server"


class NatsServer:
    """One server on a port of its own, which it keeps over restarts. `config`: more lines of its configuration."""

    def __init__(self, folder: Path, config: str = "", host: str = "127.0.0.1", *before: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.host, self._before = folder, host, before
        self.port = free_port()
        self.file = folder / "nats.conf"
        self.file.write_text(
            f'listen: "{host}:{self.port}"\njetstream {{ store_dir: "{folder / "store"}" }}\n'
            f'log_file: "{folder / "log"}"\n{config}'
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://{self.host}:{self.port}"

    def start(self) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([*self._before, BINARY, "-c", self.file], **quiet)  # type: ignore[call-overload]
        until(self._is_up, "nats-server to listen")

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def wipe(self) -> None:
        """Killed, and all that it stored is gone."""
        self.kill()
        shutil.rmtree(self.folder / "store", ignore_errors=True)

    def _is_up(self) -> bool:
        assert self.process is not None
        log = self.folder / "log"
        assert self.process.poll() is None, log.read_text(errors="replace")[-2000:]
        command = [*self._before, "/bin/bash", "-c", f"exec 3<>/dev/tcp/{self.host}/{self.port}"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextmanager
def nats_server(folder: Path, config: str = "") -> Iterator[NatsServer]:
    server = NatsServer(folder, config)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@asynccontextmanager
async def worker_here(settings: Settings) -> AsyncIterator[tuple[Worker, Stop, "asyncio.Task[None]"]]:
    """A worker within this loop; when it was not stopped before, it is at the end."""
    stop = Stop()
    async with model_endpoints(settings.label, {}, None, {}, Spend("", 0, 0, 0)) as (endpoints, slots):
        worker = Worker(settings, endpoints, slots, stop)
        task = asyncio.create_task(worker.run())
        try:
            yield worker, stop, task
        finally:
            stop.request("the test ends")
            await task


def worker_settings(nats: NatsServer, model_url: str, **given: Any) -> Settings:
    """`workers__ack_seconds=2`, `label__slots=4`."""
    groups: dict[str, dict[str, Any]] = {
        "workers": {"url": nats.url},
        "label": {"model_url": model_url, "model": "mock"},
    }
    for name, value in given.items():
        group, _, field = name.partition("__")
        groups.setdefault(group, {})[field] = value
    return Settings.model_validate(groups)


def label_of(settings: Settings, **given: Any) -> Label:
    return settings.label.model_copy(update=given)
