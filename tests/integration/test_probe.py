"""`civicsky health` and what may answer it, on real sockets."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

import pytest

from civicsky.errors import Usage
from civicsky.settings import Http
from civicsky.watch import probe as probes
from civicsky.watch.probe import probe


@contextmanager
def answering(said: bytes | None) -> Iterator[str]:
    """The address of somebody who says this once; None: who takes the connection and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = Thread(target=_answer, args=(listener, said))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def _answer(listener: socket.socket, said: bytes | None) -> None:
    with listener.accept()[0] as client, suppress(OSError):
        client.recv(10_000)
        if said is not None:
            client.sendall(said)
        else:
            client.recv(1)  # until it hangs up


def http(body: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body.encode())}\r\n\r\n{body}".encode()


DOWN = (
    '{"ready": false, "reasons": [{"name": "relay_down", "seconds": 131.4, "why": "relay: HTTP 502"}, {"name": "x"}]}'
)


@pytest.mark.parametrize(
    ("said", "good", "line"),
    [
        (http('{"ready": true, "reasons": [], "quiet": false}'), True, "ready"),
        (http('{"ready": true, "reasons": [], "quiet": true}'), True, "ready, and the stream is quiet"),
        (http(DOWN, "503 Bad"), False, "not ready: relay_down for 131 s (relay: HTTP 502); x (None)"),
        (
            http('{"ready": false, "reasons": [{"name": "x", "why": "y", "seconds": 1%s}]}' % ("0" * 400), "503 Bad"),
            False,
            "not ready: x (y)",
        ),
        (http("[" * 60_000, "503 Bad"), False, "HTTP 503, and no answer of civicsky"),
        (http("ok"), False, "HTTP 200, and no answer of civicsky"),
        (http("[]"), False, "HTTP 200, and no answer of civicsky"),
        (http('{"ready": "yes", "reasons": []}'), False, "HTTP 200, and no answer of civicsky"),
        (http("", "302 Found\r\nlocation: http://127.0.0.1:1/"), False, "HTTP 302: "),
        (http("\x1b[2Jgone", "418 "), False, "HTTP 418: ?[2Jgone"),
        (b"SSH-2.0-x\r\n", False, "BadStatusLine"),
        (b"", False, "RemoteDisconnected"),
    ],
)
def test_only_what_civicsky_says_makes_it_ready_and_nothing_harms_a_terminal(
    said: bytes, good: bool, line: str
) -> None:
    with answering(said) as url:
        found = probe(Http(), url, live=False)
    assert found.good is good
    assert found.line == line if said.startswith(b"HTTP") else found.line.endswith(line)


@pytest.mark.parametrize(
    ("said", "good", "line"),
    [
        (http("alive\n"), True, "alive"),
        (http("stuck: no frame moves\n", "503 Bad"), False, "stuck: no frame moves"),
        (http("<html>"), False, "HTTP 200, and no answer of civicsky"),
    ],
)
def test_alive_is_what_says_so(said: bytes, good: bool, line: str) -> None:
    with answering(said) as url:
        assert probe(Http(), url, live=True) == (good, line)


def test_who_takes_the_connection_and_says_nothing_does_not_hold_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "SECONDS", 0.3)
    with answering(None) as url:
        found = probe(Http(), url, live=False)
    assert not found.good
    assert found.line.startswith(f"no answer from {url}: ")


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:9464", "http://user:word@127.0.0.1:1", "http://", "http://[x"])
def test_what_is_no_address_is_a_wrong_use_and_is_not_shown(url: str) -> None:
    with pytest.raises(Usage, match=r"^--url: an http:// or https:// address is needed"):
        probe(Http(), url, live=False)


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("9464", "http://127.0.0.1:9464"),
        ("0.0.0.0:9464", "http://127.0.0.1:9464"),
        ("[::]:9464", "http://[::1]:9464"),
        ("[::1]:9464", "http://[::1]:9464"),
        ("192.0.2.1:80", "http://192.0.2.1:80"),
    ],
)
def test_it_asks_where_the_settings_listen(listen: str, url: str) -> None:
    assert probes.own_url(Http(listen=listen)) == url


def test_port_0_can_be_anything() -> None:
    with pytest.raises(Usage, match="http_up"):
        probes.own_url(Http(listen="127.0.0.1:0"))
