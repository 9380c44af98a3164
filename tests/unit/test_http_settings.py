from pathlib import Path

import pytest

from civicsky.errors import Usage
from civicsky.loading import load
from civicsky.settings import Http, listening_at


@pytest.mark.parametrize(
    ("listen", "place"),
    [
        ("9464", ("127.0.0.1", 9464)),
        (":9464", ("127.0.0.1", 9464)),
        ("localhost:9464", ("127.0.0.1", 9464)),
        ("LocalHost:0", ("127.0.0.1", 0)),
        ("127.0.0.2:65535", ("127.0.0.2", 65535)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),  # noqa: S104
        ("[::1]:9464", ("::1", 9464)),
        ("[::]:9464", ("::", 9464)),
        ("[2001:DB8::0:1]:9464", ("2001:db8::1", 9464)),
    ],
)
def test_a_port_alone_means_loopback_and_an_address_may_be_either_kind(listen: str, place: tuple[str, int]) -> None:
    assert listening_at(listen) == place
    assert Http(listen=listen).listen == listen


@pytest.mark.parametrize(
    "listen",
    ["x", "127.0.0.1", "127.0.0.1:", ":", "::1:9464", "[127.0.0.1]:9464", "127.0.0.1:65536", "127.0.0.1:-1", "+1",
     "example.org:80", "[::1:80", "::1]:80", "[]:80", "127.0.0.1: 80", "http://127.0.0.1:80", "127.0.0.1:8O", "[::1]",
     "127.1:80", "١٢٣"],
)  # fmt: skip
def test_what_is_no_address_is_one_line_that_says_how_to_write_one(listen: str) -> None:
    with pytest.raises(Usage) as wrong:
        load(None, {"http.listen": listen})
    assert str(wrong.value).startswith("flag or setting: http.listen: ")
    assert "\n" not in str(wrong.value)


def test_tomls_number_is_a_port(tmp_path: Path) -> None:
    file = tmp_path / "civicsky.toml"
    file.write_text("[http]\nlisten = 9464\n", encoding="utf-8")
    assert load(file).http.listen == "9464"
    file.write_text("[http]\nlisten = true\n", encoding="utf-8")
    with pytest.raises(Usage, match=r"http\.listen"):
        load(file)


@pytest.mark.parametrize(
    "token",
    ["short", "x" * 15, "with a space in the midst", "umlaut-ä-in-a-token", "x" * 201, "line\nbreak-in-a-token"],
)
def test_a_token_that_cannot_be_sent_or_is_short_is_refused_without_showing_it(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIVICSKY_HTTP__TOKEN", token)
    with pytest.raises(Usage) as wrong:
        load()
    assert "CIVICSKY_HTTP__TOKEN: http.token: a token is 16 to 200" in str(wrong.value)
    assert token not in str(wrong.value)


def test_a_name_is_a_host_without_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Http(names=("Node17.cluster", "civicsky")).names == ("node17.cluster", "civicsky")
    monkeypatch.setenv("CIVICSKY_HTTP__NAMES", '["node17:9464"]')
    with pytest.raises(Usage, match="is no name of a host: write it without a port"):
        load()
