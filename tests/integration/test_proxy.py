"""Where the environment names a proxy, relay, model and public API are reached through it; this machine never is."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from civicsky.appview import AppView
from civicsky.endpoint import open_endpoints
from civicsky.errors import CivicskyError, Refused, Transient
from civicsky.label import Slot
from civicsky.settings import AppView as AppViewSettings, Label as LabelSettings, Source as SourceSettings
from civicsky.source import reach
from support.appview_server import appview_server
from support.command import query, run
from support.proxy import Proxy, certificate, running

RELAY, MODEL = "relay.example", "model.example"
NOWHERE = "http://127.0.0.1:1"
PASSWORD = "s3cr3t"
VARIABLES = ("WS_PROXY", "WSS_PROXY", "SOCKS_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
SETTINGS = SourceSettings(connect_seconds=5)

Behind = Callable[..., tuple[Proxy, list[str]]]


@pytest.fixture(autouse=True)
def _no_proxy_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, *map(str.lower, VARIABLES)):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Behind]:
    """A proxy, and addresses with TLS behind it that lead to those servers; this process trusts their certificate."""
    file = certificate(tmp_path / "tls.pem", RELAY, MODEL)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with ExitStack() as stack:

        def start(*urls: str, login: str = "") -> tuple[Proxy, list[str]]:
            proxy = Proxy(login)
            ports = stack.enter_context(running(proxy, file, *(urlsplit(url).port or 0 for url in urls)))
            there = []
            for url, port in zip(urls, ports, strict=True):
                is_relay = urlsplit(url).scheme == "ws"
                there.append(f"wss://{RELAY}:{port}" if is_relay else f"https://{MODEL}:{port}{urlsplit(url).path}")
            return proxy, there

        yield start


async def models(url: str) -> frozenset[str] | set[str]:
    settings = LabelSettings(model_url=url, model="mock", request_seconds=5)
    slot = Slot(open_endpoints(settings), {}, settings)
    try:
        return set(await slot.models())
    finally:
        await slot.close()


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("scheme", ["http", "socks5h"])
async def test_relay_and_model_are_reached_through_the_proxy_that_the_environment_names(
    relay: str, model: tuple[str, Path], behind: Behind, monkeypatch: pytest.MonkeyPatch, variable: str, scheme: str
) -> None:
    proxy, (relay_there, model_there) = behind(relay, model[0])
    monkeypatch.setenv(variable, f"{scheme}://127.0.0.1:{proxy.port}")
    assert (await reach(relay_there, SETTINGS, 5)).first
    assert await models(model_there) == {"mock"}
    assert proxy.targets == [urlsplit(relay_there).netloc, urlsplit(model_there).netloc]


async def test_the_public_api_is_reached_through_the_proxy_too(behind: Behind, monkeypatch: pytest.MonkeyPatch) -> None:
    with appview_server() as server:
        proxy, (there,) = behind(server.url)
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        api = AppView(AppViewSettings(url=there, request_seconds=5))
        await api.accounts(["did:plc:a"])
        await api.close()
    assert proxy.targets == [urlsplit(there).netloc]


async def test_a_relay_without_tls_is_reached_through_the_proxy_too(
    relay: str, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, _ = behind()
    there = f"ws://{RELAY}:{urlsplit(relay).port}"
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
    assert (await reach(there, SETTINGS, 5)).first
    assert proxy.targets == [urlsplit(there).netloc]


async def test_this_machine_is_never_reached_through_a_proxy(
    relay: str, model: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES[:-1]:
        monkeypatch.setenv(name, NOWHERE)
    for host in ("127.0.0.1", "localhost"):
        assert (await reach(relay.replace("127.0.0.1", host), SETTINGS, 5)).first
        assert await models(model[0].replace("127.0.0.1", host)) == {"mock"}


@pytest.mark.parametrize("no_proxy", [f"{RELAY},{MODEL}", ".example", "example"])
async def test_what_no_proxy_names_is_reached_without_one(
    relay: str, model: tuple[str, Path], behind: Behind, monkeypatch: pytest.MonkeyPatch, no_proxy: str
) -> None:
    proxy, (relay_there, model_there) = behind(relay, model[0])
    for name in ("HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    with pytest.raises(Transient):  # nobody else knows these names
        await reach(relay_there, SETTINGS, 5)
    with pytest.raises(Transient):
        await models(model_there)
    assert proxy.targets == []


async def test_a_proxy_that_wants_a_password_gets_it_and_else_says_so(
    relay: str, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, (there,) = behind(relay, login=f"me:{PASSWORD}")
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
    with pytest.raises(Transient, match="the proxy answers HTTP 407"):
        await reach(there, SETTINGS, 5)
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{PASSWORD}@127.0.0.1:{proxy.port}")
    assert (await reach(there, SETTINGS, 5)).first


@pytest.mark.parametrize(
    "address",
    [
        f"ftp://me:{PASSWORD}@proxy.example", f"http://me:{PASSWORD}@proxy.example:port",
        f"http://me:{PASSWORD}@proxy.example/path", f"socks9://me:{PASSWORD}@proxy.example", f"{PASSWORD}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
async def test_a_proxy_that_cannot_be_used_is_told_without_its_address(
    monkeypatch: pytest.MonkeyPatch, address: str, variable: str
) -> None:
    monkeypatch.setenv(variable, address)
    api = AppView(AppViewSettings(url=f"https://{MODEL}", request_seconds=2))
    for call in (reach(f"wss://{RELAY}", SETTINGS, 1), models(f"https://{MODEL}/v1"), api.accounts(["did:plc:a"])):
        with pytest.raises((Transient, Refused)) as caught:
            await call
        assert isinstance(caught.value, CivicskyError)
        assert PASSWORD not in str(caught.value)
    await api.close()


def test_a_whole_run_goes_through_a_proxy_with_a_password_that_no_output_and_no_file_holds(
    relay: str, model: tuple[str, Path], behind: Behind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, (relay_there, model_there) = behind(relay, model[0], login=f"me:{PASSWORD}")
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{PASSWORD}@127.0.0.1:{proxy.port}")
    ended = run(
        "run", "--relay", relay_there, "--data-dir", tmp_path / "data", "--model-url", model_there, "--model", "mock",
        "--max-frames", 300, source__start="window", log__level="debug", appview__recheck="false",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert query(tmp_path / "data" / "ledger.db", "SELECT count(*) FROM label")[0][0] > 10
    assert {target.partition(":")[0] for target in proxy.targets} == {RELAY, MODEL}
    assert PASSWORD not in ended.out + ended.err
    for file in (tmp_path / "data").rglob("*"):
        assert not file.is_file() or PASSWORD.encode() not in file.read_bytes(), file
    assert os.environ["HTTPS_PROXY"]
