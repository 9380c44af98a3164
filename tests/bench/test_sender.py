"""The sender's stream, as real clients receive it."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from libipld import decode_dag_cbor_multi
from websockets.sync.client import ClientConnection, connect

from bench.processes import Broken, Sender, running
from bench.sender import PATH
from bench.tls import certificate
from bench.traffic import SPAN, read, recording
from bench.wire import Wire, head

N = 400


@contextmanager
def reading(sender: Sender, trusted: Path | None = None) -> Iterator[ClientConnection]:
    context = ssl.create_default_context(cafile=trusted) if trusted else None
    with connect(sender.url + PATH, ssl=context, proxy=None, max_size=None) as socket:
        sender.wait_for_reader()
        yield socket


@pytest.mark.parametrize("with_tls", [False, True])
def test_a_client_receives_every_frame_in_order_and_can_be_told_of_more(tmp_path: Path, with_tls: bool) -> None:
    tls = certificate(tmp_path) if with_tls else None
    options: list[str | Path] = ["--tls", tls] if tls else []
    file = recording(N)
    with running(Sender(file, *options)) as sender, reading(sender, tls) as socket:
        sender.send(100)
        first = [socket.recv(timeout=60) for _ in range(100)]
        sender.wait_sent()
        sender.send(N)
        rest = [socket.recv(timeout=60) for _ in range(N - 100)]
        sender.wait_sent()
        assert first + rest == read(file)


def test_behind_the_last_frame_the_recording_comes_again_with_higher_numbers_and_later_revisions() -> None:
    with running(Sender(recording(N))) as sender, reading(sender) as socket:
        sender.send(2 * N)
        turns = [[said(socket.recv(timeout=60)) for _ in range(N)] for _ in range(2)]
    for before, after in zip(*turns, strict=True):
        if "seq" in before:
            assert after["seq"] == before["seq"] + SPAN
        if isinstance(before.get("rev"), str) and "ops" in before:
            assert after["rev"] > before["rev"]
    assert {path for one in turns[0] for path in posts(one)}.isdisjoint(path for one in turns[1] for path in posts(one))


def test_frames_of_a_paced_stream_come_whole_and_never_before_they_are_due(tmp_path: Path) -> None:
    file, rate = recording(N), 2000.0
    with running(Sender(file, "--times", tmp_path / "times")) as sender, reading(sender) as socket:
        began = sender.send(N, rate)
        assert [socket.recv(timeout=60) for _ in range(N)] == read(file)
        sender.wait_sent()
    sent = memoryview((tmp_path / "times").read_bytes()).cast("d").tolist()
    assert len(sent) == N
    assert all(moment >= began + at / rate for at, moment in enumerate(sent))


def test_a_ping_is_answered_while_nothing_is_sent() -> None:
    with running(Sender(recording(N))) as sender, reading(sender) as socket:
        assert socket.ping().wait(timeout=60)
        sender.send(1)
        socket.recv(timeout=60)
        assert socket.ping().wait(timeout=60)


def test_a_reader_that_hangs_up_is_told_of() -> None:
    with running(Sender(recording(N))) as sender:
        with reading(sender) as socket:
            sender.send(1)
            socket.recv(timeout=60)
            sender.wait_sent()
        with pytest.raises(Broken, match="hung up after 1 frames"):
            sender.wait_sent()


def test_another_path_is_refused() -> None:
    with running(Sender(recording(N))) as sender, pytest.raises(HTTPError, match="404"):
        urlopen(sender.url.replace("ws:", "http:") + "/xrpc/another", timeout=60)  # noqa: S310


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, "8200"), (125, "827d"), (126, "827e007e"), (65535, "827effff"), (65536, "827f0000000000010000")],
)
def test_a_message_tells_its_length_as_rfc_6455_says(size: int, expected: str) -> None:
    assert head(size).hex() == expected


def test_pieces_are_as_small_as_asked_and_make_up_the_whole_also_across_turns() -> None:
    wire = Wire(recording(N))
    whole = b"".join(bytes(piece) for piece in wire.pieces(0, 2 * N, 1 << 30))
    parts = [bytes(piece) for at in range(0, 2 * N, 150) for piece in wire.pieces(at, min(at + 150, 2 * N), 5000)]
    assert b"".join(parts) == whole
    assert max(map(len, parts)) == 5000


def said(frame: str | bytes) -> dict[str, Any]:
    """A frame's body; of one that cannot be read nothing."""
    assert isinstance(frame, bytes)
    try:
        _, body = decode_dag_cbor_multi(frame)
    except ValueError:
        return {}
    assert isinstance(body, dict)
    return body


def posts(body: dict[str, Any]) -> set[str]:
    paths = {f"{body['repo']}/{op['path']}" for op in body.get("ops", ()) if isinstance(op["path"], str)}
    return {path for path in paths if "/app.bsky.feed.post/" in path}
