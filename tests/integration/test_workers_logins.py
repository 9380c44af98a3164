"""Each way into NATS on a real server: who is let in, what a wrong, ended or damaged one is told, what is replaced."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from nkeys import PREFIX_BYTE_USER

from civicsky.errors import Refused, Transient, Usage
from civicsky.lifecycle import Stop, happened
from civicsky.metrics import Metrics
from civicsky.settings import Settings, Workers
from civicsky.workers import bus as line
from civicsky.workers.bus import Bus
from civicsky.workers.dispatch import dispatching
from integration.test_workers import become
from integration.test_workers_secured import certificates, openssl, reaches
from support.command import run
from support.nats_accounts import Key, Operator
from support.nats_server import NatsServer, nats_server, worker_here

RIGHTS = {
    "pub": {"allow": ["$JS.API.CONSUMER.MSG.NEXT.civicsky.*", "$JS.ACK.civicsky.>", "civicsky.home.*.claim",
                      "civicsky.home.*.result", "civicsky.beat"]},
    "sub": {"allow": ["civicsky.inbox.worker.>", "civicsky.queue"]},
}  # fmt: skip


@asynccontextmanager
async def connected(settings: Workers) -> AsyncIterator[Bus]:
    """A connection that is kept."""
    bus = Bus(settings, "a test")
    task = asyncio.create_task(bus.run(), name="a bus")
    try:
        await bus.wait_up(20)
        yield bus
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def refused(settings: Workers) -> AsyncIterator[str]:
    """What is said to who is not let in."""
    with pytest.raises(Refused) as caught:
        await reaches(settings)
    assert len(str(caught.value).splitlines()) == 1
    yield str(caught.value)


# ---- credentials files -----------------------------------------------------------------------------------------------


async def test_home_and_worker_do_their_work_with_credentials_of_an_operators_account(
    tmp_path: Path, model: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    operator = Operator()
    home, worker = (
        operator.credentials(tmp_path / f"{name}.creds", rights) for name, rights in (("h", None), ("w", RIGHTS))
    )
    with nats_server(tmp_path / "nats", operator.config) as nats:
        own = [
            Settings.model_validate(
                {"workers": {"url": nats.url, "credentials": file}, "label": {"model": "mock", "model_url": model[0]}}
            )
            for file in (home, worker)
        ]
        async with (
            worker_here(own[1]) as (working, _, _),
            dispatching(own[0].workers, "mock", None, Metrics(), Stop()) as dispatcher,
        ):
            assert (await dispatcher.exchange("GET", "/models", b"", 5)).status == 200
            assert working.done == 1
    said = "".join(capsys.readouterr())
    assert "nats_forbids" not in said
    assert not any(line in said for file in (home, worker) for line in file.read_text().splitlines() if len(line) > 40)


async def test_credentials_of_another_operator_are_refused_and_those_that_ended_are_said_to_have(
    tmp_path: Path,
) -> None:
    ours, other = Operator(), Operator()
    with nats_server(tmp_path / "nats", ours.config) as nats:
        async with refused(Workers(url=nats.url, credentials=other.credentials(tmp_path / "a.creds"))) as said:
            assert "mend workers.user, token or credentials" in said
        async with refused(
            Workers(url=nats.url, credentials=ours.credentials(tmp_path / "b.creds", seconds=-5))
        ) as said:
            assert "b.creds ended at 20" in said
        async with refused(Workers(url=nats.url)):
            pass


async def test_credentials_that_end_while_they_are_used_are_read_anew(tmp_path: Path) -> None:
    operator, file = Operator(), tmp_path / "w.creds"
    operator.credentials(file, seconds=2)
    with nats_server(tmp_path / "nats", operator.config) as nats:
        bus = Bus(Workers(url=nats.url, credentials=file), "a test")
        task = asyncio.create_task(bus.run())
        try:
            while not await happened(bus.up, 1):  # the first may have ended before they were used
                operator.credentials(file, seconds=2)
            operator.credentials(file)
            await become(lambda: bus.connections == 2 and bus.up.is_set(), "it to come back with the new ones")
            assert bus.refused == ""
        finally:
            task.cancel()
            await asyncio.wait([task])


async def test_a_file_that_is_half_written_when_it_is_needed_is_read_again_until_it_is_whole(tmp_path: Path) -> None:
    operator, file = Operator(), tmp_path / "w.creds"
    operator.credentials(file)
    with nats_server(tmp_path / "nats", operator.config) as nats:
        async with connected(Workers(url=nats.url, credentials=file)) as bus:
            file.write_text(file.read_text()[:200])
            nats.kill()
            nats.start()
            await become(lambda: "has no user's key" in bus.why, "it to say so")
            assert bus.refused == ""
            operator.credentials(file)
            await become(bus.up.is_set, "it to come back")


@pytest.mark.parametrize(
    "text", ["", "\n", "-----BEGIN NATS USER JWT-----\n", "hunter2-hunter2", "SU" + "A" * 55, "\x00\xff"]
)
def test_a_file_without_a_key_is_told_at_once_and_nothing_of_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "w.creds"
    file.touch(mode=0o600)
    file.write_text(text)
    with pytest.raises(Usage, match="has no user's key") as caught:
        Bus(Workers(url="nats://127.0.0.1:4222", credentials=file), "a test")
    assert "hunter2" not in str(caught.value)


def test_credentials_without_the_package_that_signs_for_them_are_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Operator().credentials(tmp_path / "w.creds")
    monkeypatch.setattr(line, "find_spec", lambda name: None if name == "nkeys" else name)
    with pytest.raises(Usage, match="nkeys is not installed"):
        Bus(Workers(url="nats://127.0.0.1:4222", credentials=file), "a test")


async def test_a_key_alone_lets_in_where_nats_knows_it(tmp_path: Path) -> None:
    ours, other = Key(PREFIX_BYTE_USER), Key(PREFIX_BYTE_USER)
    files = []
    for key in (ours, other):
        files.append(tmp_path / f"{key.public}.nk")
        files[-1].touch(mode=0o600)
        files[-1].write_text(key.seed)
    with nats_server(tmp_path / "nats", f"authorization {{ users: [ {{ nkey: {ours.public} }} ] }}\n") as nats:
        await reaches(Workers(url=nats.url, credentials=files[0]))
        async with refused(Workers(url=nats.url, credentials=files[1])) as said:
            assert other.seed not in said


# ---- passwords -------------------------------------------------------------------------------------------------------


async def test_who_was_let_in_once_waits_a_while_for_a_nats_that_does_not_know_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nats_server(tmp_path / "nats", 'authorization { token: "one-of-its-tokens" }\n') as nats:
        config = nats.file.read_text()
        async with connected(Workers(url=nats.url, token="one-of-its-tokens")) as bus:
            for now, comes in (("another-of-its-tokens", False), ("one-of-its-tokens", True)):
                nats.kill()
                nats.file.write_text(config.replace("one-of-its-tokens", now))
                nats.start()
                if comes:
                    await become(bus.up.is_set, "it to come back")
                else:
                    await become(lambda: "does not let us in" in bus.why, "it to be refused")
                    assert bus.refused == ""
            monkeypatch.setattr(line, "REFUSED_SECONDS", 0)
            nats.kill()
            nats.file.write_text(config.replace("one-of-its-tokens", "another-of-its-tokens"))
            nats.start()
            await become(lambda: bus.refused, "it to be refused for good")


# ---- certificates ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `certificates` makes them; besides a server's that ended, one of another host, and a client's that ended."""
    folder = tmp_path_factory.mktemp("tls") / "pem"
    certificates(folder)
    (folder / "elsewhere").write_text("subjectAltName=DNS:elsewhere.example")
    for name, days, extension in (("ended", "-1", "names"), ("other", "2", "elsewhere")):
        openssl(folder, "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-out", f"{name}.pem", "-days", days, "-extfile", extension)  # fmt: skip
    openssl(folder, "x509", "-req", "-in", "client.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", "client-ended.pem", "-days", "-1")  # fmt: skip
    return folder


def tls(pem: Path, server: str) -> str:
    """NATS's lines for one of the server's certificates."""
    files = f'cert_file: "{pem}/{server}.pem", key_file: "{pem}/server.key", ca_file: "{pem}/ca.pem"'
    return f"tls {{ {files}, verify: true }}\n"


@pytest.mark.parametrize(
    ("server", "authorities", "says"),
    [("ended", "ca", "certificate has expired"), ("other", "ca", "not valid for '127.0.0.1'"),
     ("server", "client", "unable to get")],
)  # fmt: skip
async def test_a_server_whose_certificate_is_not_trusted_is_waited_for_and_it_is_said_why(
    tmp_path: Path, pem: Path, server: str, authorities: str, says: str
) -> None:
    with nats_server(tmp_path / "nats", tls(pem, server)) as nats:
        own: dict[str, Any] = {"certificate": pem / "client.pem", "key": pem / "client.key"}
        bus = Bus(Workers(url=nats.url.replace("nats:", "tls:"), ca=pem / f"{authorities}.pem", **own), "a test")
        task = asyncio.create_task(bus.run())
        try:
            await become(lambda: "not trusted" in bus.why, "it to say so")
            assert says in bus.why
            assert bus.refused == ""
            assert not bus.up.is_set()
        finally:
            task.cancel()
            await asyncio.wait([task])


@pytest.mark.parametrize("certificate", ["", "client-ended"])
async def test_a_client_whose_certificate_nats_does_not_accept_is_told_to_mend_it(
    tmp_path: Path, pem: Path, certificate: str
) -> None:
    own = {"certificate": pem / f"{certificate}.pem", "key": pem / "client.key"} if certificate else {}
    with nats_server(tmp_path / "nats", tls(pem, "server")) as nats:
        async with refused(Workers(url=nats.url.replace("nats:", "tls:"), ca=pem / "ca.pem", **own)) as said:
            assert "mend workers.certificate" in said


# ---- as a command ----------------------------------------------------------------------------------------------------


def test_a_worker_that_is_not_let_in_ends_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    ours, other = Operator(), Operator()
    file = other.credentials(tmp_path / "w.creds")
    with nats_server(tmp_path / "nats", ours.config) as nats:
        words = ("label", "--worker", nats.url, "--model-url", "http://127.0.0.1:9/v1", "--model", "mock")
        ended = run(*words, workers__credentials=file)
    assert ended.code == 2
    assert "does not let us in; mend" in ended.err.splitlines()[-1]
    assert all(part not in ended.err + ended.out for part in file.read_text().splitlines() if len(part) > 50)
    assert "Traceback" not in ended.err


async def test_a_connection_that_is_cancelled_ends_whatever_it_is_at() -> None:
    for steps in range(60):
        bus = Bus(Workers(url="nats://127.0.0.1:9"), "a test")
        task = asyncio.create_task(bus.run())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(10):
            await asyncio.wait([task])
        assert task.cancelled(), steps


def lines_to(nats: NatsServer) -> int:
    """Connections to it that are open, seen from this side, by the kernel's own list."""
    there = f"0100007F:{nats.port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return sum(words[2:4] == [there, "01"] for words in lines)


async def test_a_connection_whose_end_is_cut_short_is_closed_all_the_same(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as nats:
        for steps in range(12):
            async with connected(Workers(url=nats.url)):
                (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "a bus")
                assert lines_to(nats) == 1
                task.cancel()
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
            await become(lambda: lines_to(nats) == 0, f"it to be closed: cut short after {steps} steps")


async def test_a_nats_that_hears_nothing_is_left_though_much_is_still_to_be_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "PING_SECONDS", 0.2)
    monkeypatch.setattr(line, "SAY_SECONDS", 1)
    with nats_server(tmp_path / "nats") as nats:
        async with connected(Workers(url=nats.url)) as bus:
            assert nats.process is not None
            nats.process.send_signal(signal.SIGSTOP)

            async def talk() -> None:
                while True:
                    await bus.publish("elsewhere", b"x" * 500_000)

            talks = asyncio.create_task(talk())
            await become(lambda: not bus.up.is_set(), "its silence to be noticed")
            assert "cannot be reached" in bus.why
            with pytest.raises(Transient):
                await talks
            nats.process.send_signal(signal.SIGCONT)
            await become(lambda: bus.connections == 2 and bus.up.is_set(), "it to come back")


async def test_what_listens_there_and_is_no_nats_ends_nobody(tmp_path: Path) -> None:
    words = [b"SSH-2.0-OpenSSH_9\r\n", b"INFO 7\r\n", b"INFO []\r\n", b"INFO " + b"x" * 200_000, b"\x00\xff\r\n", b"",
             b'INFO {"max_payload": "x", "connect_urls": [7]}\r\n']  # fmt: skip
    said = 0

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal said
        writer.write(words[said % len(words)])
        said += 1
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        bus = Bus(Workers(url=f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", token="a-token"), "a test")
        task = asyncio.create_task(bus.run())
        await become(lambda: said > len(words), "all to be said")
        assert not task.done()
        assert not bus.up.is_set()
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()
