"""Which client reads the stream: by the setting, by what is installed, by the proxy that the environment names."""

import sys

import pytest

from civicsky.errors import Usage
from civicsky.line.connecting import check, way_to
from civicsky.metrics import Metrics
from civicsky.model import Position
from civicsky.settings import Client, Source as SourceSettings
from civicsky.source import Source

RELAY = "wss://relay.example/x"
PROXIES = ("WS_PROXY", "WSS_PROXY", "SOCKS_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def _no_proxy_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, *map(str.lower, PROXIES)):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def without_picows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is not installed: its import fails."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "picows"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "civicsky.line.by_picows", raising=False)
    monkeypatch.delattr("civicsky.line.by_picows", raising=False)
    monkeypatch.setitem(sys.modules, "picows", None)


def clients(*wanted: Client, url: str = RELAY) -> list[tuple[str, str]]:
    return [way_to(url, client)[:2] for client in wanted]


def test_picows_is_taken_when_it_is_there_unless_the_other_is_asked_for() -> None:
    assert clients("auto", "picows", "websockets") == [("picows", ""), ("picows", ""), ("websockets", "")]


@pytest.mark.usefixtures("without_picows")
def test_without_picows_it_is_websockets_and_to_ask_for_it_is_an_error_with_its_remedy() -> None:
    assert clients("auto", "websockets") == [("websockets", ""), ("websockets", "")]
    for ask in (lambda: check("picows"), lambda: way_to(RELAY, "picows")):
        with pytest.raises(Usage, match=r'source\.client is "picows".*-r requirements/fast\.txt.*"auto"'):
            ask()
    with pytest.raises(Usage, match="picows"):
        Source(SourceSettings(client="picows"), {"wss://bsky.network": Position("x", 1, None, 0)}, Metrics())


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "WSS_PROXY", "SOCKS_PROXY"])
def test_where_a_proxy_is_named_it_is_websockets_and_why(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "http://proxy.example:3128")
    named = ("websockets", "the environment names a proxy")
    assert clients("auto", "picows", "websockets") == [named, named, ("websockets", "")]


@pytest.mark.parametrize(
    ("url", "no_proxy"),
    [
        ("ws://127.0.0.1:80/x", ""), ("ws://localhost/x", ""), ("ws://[::1]:80/x", ""), (RELAY, "relay.example"),
        (RELAY, ".example"), (RELAY, "relay.example:443"), ("ws://relay.example:81/x", "relay.example:81"),
    ],
)  # fmt: skip
def test_what_no_proxy_stands_before_is_read_straight(url: str, no_proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES[:-1]:
        monkeypatch.setenv(name, "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert clients("auto", url=url) == [("picows", "")]


def test_a_proxy_for_http_alone_is_none_for_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    assert clients("auto") == [("picows", "")]
    assert clients("auto", url="ws://relay.example/x")[0][0] == "websockets"
