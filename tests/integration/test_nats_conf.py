"""deploy/nats/nats-server.conf: a real server by it lets home node and workers do their work, and workers no other."""

import asyncio
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from ssl import create_default_context
from typing import Any

import pytest
from nats import connect

from civicsky.lifecycle import Stop
from civicsky.metrics import Metrics
from civicsky.settings import Settings
from civicsky.workers.dispatch import dispatching
from integration.test_workers_secured import certificates
from support.command import until
from support.nats_server import BINARY, worker_here
from support.ports import free_port

CONFIG = Path(__file__).parents[2] / "deploy/nats/nats-server.conf"


class Server:
    """One by the file that ships, with other paths and another port."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url, self.pem = f"tls://127.0.0.1:{port}", folder / "pem"
        certificates(self.pem)
        text = CONFIG.read_text(encoding="utf-8")
        for there, here in (
            ("127.0.0.1:4222", f"127.0.0.1:{port}"), ("/var/lib/nats/civicsky", folder / "js"), ("/etc/nats", self.pem),
        ):  # fmt: skip
            assert there in text
            text = text.replace(there, str(here))
        self.file, self.log = folder / "nats.conf", folder / "log"
        self.file.write_text(text + f'log_file: "{self.log}"\n', encoding="utf-8")

    def user(self, name: str, **label: Any) -> Settings:
        word = {"home": "change-this-password-of-home", "worker": "change-this-password-of-workers"}[name]
        own = {"url": self.url, "user": name, "password": word, "ca": self.pem / "ca.pem"}
        return Settings.model_validate({"workers": own, "label": {"model": "mock", **label}})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("nats"), free_port())
    process = subprocess.Popen([BINARY, "-c", made.file])
    try:
        until(lambda: made.log.exists() and "Server is ready" in made.log.read_text(), "nats-server to listen")
        yield made
    finally:
        process.kill()
        process.wait()


def test_nats_finds_the_file_that_ships_valid_and_its_jobs_stay_in_memory(server: Server) -> None:
    said = subprocess.run([BINARY, "-t", "-c", server.file], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    log = server.log.read_text()
    assert "Max Memory:      256.00 MB" in log
    assert "Max Storage:     1.00 MB" in log
    assert stat.S_IMODE(CONFIG.stat().st_mode) & 0o022 == 0


async def test_home_node_and_workers_need_no_more_rights_than_it_gives(
    server: Server, model: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    home, stop, before = server.user("home"), Stop(), server.log.read_text()
    async with (
        worker_here(server.user("worker", model_url=model[0])) as (worker, _, _),
        dispatching(home.workers, "mock", None, Metrics(), stop) as dispatcher,
    ):
        for _ in range(3):
            assert (await dispatcher.exchange("GET", "/models", b"", 5)).status == 200
        assert worker.done == 3
    assert "nats_forbids" not in "".join(capsys.readouterr())
    assert "Violation" not in server.log.read_text().removeprefix(before)


@pytest.mark.parametrize(
    ("verb", "subject"),
    [
        ("publish", "civicsky.job.1.x"),
        ("publish", "$JS.API.STREAM.DELETE.civicsky"),
        ("publish", "$JS.API.STREAM.PURGE.civicsky"),
        ("publish", "civicsky.queue"),
        ("subscribe", "civicsky.job.>"),
        ("subscribe", "civicsky.home.>"),
        ("subscribe", "civicsky.inbox.home.>"),
        ("subscribe", "_INBOX.>"),
        ("subscribe", ">"),
    ],
)
async def test_a_worker_can_neither_make_jobs_nor_take_the_home_nodes_place(
    server: Server, verb: str, subject: str
) -> None:
    forbidden: asyncio.Queue[str] = asyncio.Queue()

    async def told(error: Exception) -> None:
        await forbidden.put(str(error))

    context = create_default_context(cafile=str(server.pem / "ca.pem"))
    own = server.user("worker").workers
    client = await connect(
        server.url, user=own.user, password=own.password.get_secret_value(), tls=context, error_cb=told
    )
    try:
        await getattr(client, verb)(subject)
        await client.flush()
        async with asyncio.timeout(30):
            said = await forbidden.get()
        assert subject.lower() in said.lower()
        assert "permissions violation" in said.lower()
    finally:
        await client.close()
