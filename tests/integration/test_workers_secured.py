"""NATS with TLS, passwords and rights: who gets in, what is refused, and what nobody can read."""

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import pytest
from nkeys import PREFIX_BYTE_USER, encode_seed, from_seed

from civicsky.errors import Refused, Transient, Usage
from civicsky.settings import Settings, Workers
from civicsky.workers.bus import Bus
from support.command import CIVICSKY, environment, run, until
from support.nats_server import nats_server

PASSWORD = "hunter2-hunter2"


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


def certificates(folder: Path) -> str:
    """An authority, a server's and a client's certificate; NATS's lines for them."""
    folder.mkdir()
    openssl(folder, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout",
            "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=ours")  # fmt: skip
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    for name in ("server", "client"):
        openssl(folder, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout",
                f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")  # fmt: skip
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-out", f"{name}.pem", "-days", "2", "-extfile", "names")  # fmt: skip
    return (
        f'tls {{ cert_file: "{folder}/server.pem", key_file: "{folder}/server.key", ca_file: "{folder}/ca.pem", '
        "verify: true }\n"
    )


async def reaches(settings: Workers, seconds: float = 10) -> None:
    """Connect, once. Raises as `Bus.wait_up`."""
    bus = Bus(settings, "a test")
    task = asyncio.create_task(bus.run())
    try:
        await bus.wait_up(seconds)
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_password_and_certificates_let_in_and_nothing_less_does(tmp_path: Path) -> None:
    pem = tmp_path / "pem"
    config = certificates(pem) + f'authorization {{ user: u, password: "{PASSWORD}" }}\n'
    with nats_server(tmp_path / "nats", config) as nats:
        whole: dict[str, Any] = {
            "url": nats.url.replace("nats:", "tls:"), "user": "u", "password": PASSWORD,
            "ca": pem / "ca.pem", "certificate": pem / "client.pem", "key": pem / "client.key",
        }  # fmt: skip
        await reaches(Workers(**whole))
        with pytest.raises(Refused, match="does not let us in") as wrong:
            await reaches(Workers(**{**whole, "password": "wrong"}))
        assert "wrong" not in str(wrong.value)
        for less in (("certificate", "key"), ("ca",)):
            with pytest.raises((Transient, Refused)):
                await reaches(Workers(**{name: one for name, one in whole.items() if name not in less}), 2)


async def test_a_server_that_says_that_it_has_no_tls_is_told_nothing_where_tls_is_insisted_on() -> None:
    heard = bytearray()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.9.10","max_payload":1048576,"headers":true}\r\n')
        heard.extend(await reader.read(1000))
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Transient):
            await reaches(Workers(url=f"tls://127.0.0.1:{port}", user="u", password=PASSWORD), 2)
    assert heard == b""


async def test_a_secret_is_not_sent_in_clear_beyond_this_machine() -> None:
    with pytest.raises(Usage, match="in clear"):
        Bus(Workers(url="nats://192.0.2.1:4222", token=PASSWORD), "a test")
    Bus(Workers(url="nats://192.0.2.1:4222"), "a test")
    Bus(Workers(url="nats://127.0.0.1:4222", token=PASSWORD), "a test")


async def test_a_token_lets_in(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats", f'authorization {{ token: "{PASSWORD}" }}\n') as nats:
        await reaches(Workers(url=nats.url, token=PASSWORD))
        with pytest.raises(Refused):
            await reaches(Workers(url=nats.url))


async def test_a_credentials_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    seed = encode_seed(b"7" * 32, PREFIX_BYTE_USER).decode()
    file = tmp_path / "worker.creds"
    file.write_text(
        f"-----BEGIN NATS USER JWT-----\nxx.yy.zz\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    assert from_seed(bytearray(seed.encode())).public_key
    file.chmod(0o644)
    with pytest.raises(Usage, match="chmod 600") as refused:
        Bus(Workers(url="tls://127.0.0.1:4222", credentials=file), "a test")
    assert seed not in str(refused.value)
    file.chmod(0o600)
    Bus(Workers(url="tls://127.0.0.1:4222", credentials=file), "a test")
    with pytest.raises(Usage, match="cannot be read"):
        Bus(Workers(url="tls://127.0.0.1:4222", credentials=tmp_path / "none"), "a test")


RIGHTS = """
authorization { users = [
  { user: home, password: "hunter2-hunter2" }
  { user: worker, password: "hunter2-hunter2", permissions: {
    publish: ["$JS.API.CONSUMER.MSG.NEXT.civicsky.*", "$JS.ACK.civicsky.>", "civicsky.home.*.claim",
              "civicsky.home.*.result", "civicsky.beat"]
    subscribe: ["civicsky.inbox.worker.>", "civicsky.queue"] } }
] }
"""


def test_a_worker_needs_no_more_rights_than_the_manual_says_and_shows_its_password_to_nobody(
    tmp_path: Path, model: tuple[str, Path]
) -> None:
    manual = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    for line in RIGHTS.splitlines()[4:7]:
        assert line.strip().removesuffix(" } }") in manual
    with nats_server(tmp_path / "nats", RIGHTS) as nats:
        log = tmp_path / "worker.log"
        words = [CIVICSKY, "label", "--worker", nats.url, "--model-url", model[0], "--model", "mock", "--log-file", log]
        worker = subprocess.Popen(
            list(map(str, words)), env=environment(workers__user="worker", workers__password=PASSWORD),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            until(lambda: log.exists() and "nats_up" in log.read_text(), "the worker to be let in")
            settings = Settings.model_validate(
                {"workers": {"url": nats.url, "user": "home", "password": PASSWORD}, "label": {"model": "mock"}}
            )
            asyncio.run(_ask(settings))
            arguments = Path(f"/proc/{worker.pid}/cmdline").read_bytes()
        finally:
            worker.terminate()
            out, err = worker.communicate(timeout=60)
    assert worker.returncode == 0, err
    assert "1 calls made" in out
    assert "nats_forbids" not in log.read_text()
    assert PASSWORD.encode() not in arguments
    assert PASSWORD not in log.read_text() + out + err


async def _ask(settings: Settings) -> None:
    from civicsky.lifecycle import Stop  # noqa: PLC0415
    from civicsky.metrics import Metrics  # noqa: PLC0415
    from civicsky.workers.dispatch import dispatching  # noqa: PLC0415

    async with dispatching(settings.workers, "mock", None, Metrics(), Stop()) as dispatcher:
        came = await dispatcher.exchange("GET", "/models", b"", 5)
        assert came.status == 200


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--worker", f"nats://u:{PASSWORD}@127.0.0.1:4222"), "CIVICSKY_WORKERS__USER"),
        (("--worker", "http://127.0.0.1"), "is not an address of NATS"),
        (("--worker", "nats://127.0.0.1:4222", "--drain"), "--worker goes with"),
        (("--worker", "nats://127.0.0.1:4222", "--data-dir", "x"), "--worker goes with"),
        (("--worker", "nats://127.0.0.1:4222"), "needs a model"),
        (("--worker", "nats://127.0.0.1:4222", "--model-url", "http://a/v1", "--model", "m", "--log-file", "x"),
         "whole path"),
    ],
)  # fmt: skip
def test_wrong_usage_is_told_in_one_line_without_a_secret(words: tuple[str, ...], says: str) -> None:
    ended = run("label", *words)
    assert ended.code == 2
    assert says in ended.err
    assert len(ended.err.splitlines()) == 1
    assert PASSWORD not in ended.err + ended.out


def test_without_workers_nothing_of_nats_is_imported() -> None:
    code = "import sys, civicsky.app, civicsky.status; assert not {'nats', 'nkeys'} & set(sys.modules)"
    subprocess.run([str(Path(CIVICSKY).with_name("python")), "-c", code], check=True)
