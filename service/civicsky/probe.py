"""`civicsky health`: asks a running service whether it is ready, or alive. The standard library alone, to be quick."""

import json
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from ipaddress import ip_address
from threading import Timer
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from civicsky.errors import Usage
from civicsky.log import harmless
from civicsky.settings import Http, listening_at

SECONDS: Final = 5.0
"""For all of it: a service whose loop stands still accepts a connection, and does not answer."""
_MOST_BYTES: Final = 65_536
_OK: Final = 200
_SHOWN: Final = 5


class Probed(NamedTuple):
    """What was answered."""

    good: bool
    line: str


def probe(settings: Http, url: str, *, live: bool) -> Probed:
    """Ask `url`, else where the settings listen. Raises `Usage` when nobody says where that is."""
    url = url or _own(settings)
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
        raise Usage("--url: an http:// or https:// address is needed, such as http://127.0.0.1:9464")
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = connect(parts.hostname, parts.port, timeout=SECONDS)
    token = settings.token.get_secret_value()
    path = parts.path.rstrip("/") + ("/livez" if live else "/readyz")
    end = Timer(SECONDS, _end, [connection])
    end.daemon = True
    end.start()
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        body = answer.read(_MOST_BYTES)
    except (OSError, HTTPException, ValueError) as error:
        return Probed(good=False, line=f"no answer from {parts.scheme}://{parts.netloc}: {_why(error)}")
    finally:
        end.cancel()
        connection.close()
    return Probed(answer.status == _OK, harmless(_line(answer.status, body, live=live)))


def _own(settings: Http) -> str:
    if not settings.listen:
        raise Usage("http.listen is not set, so nothing answers: give the service --http PORT, or this command --url")
    host, port = listening_at(settings.listen)
    if not port:
        raise Usage("http.listen has port 0, which is any: the event http_up in the log has the url; give it as --url")
    address = ip_address(host)
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"  # noqa: PLR2004
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _line(status: int, body: bytes, *, live: bool) -> str:
    text = body.decode("utf-8", "replace").strip()
    if live or status not in {_OK, 503}:
        return text if status in {_OK, 503} else f"HTTP {status}: {text}"
    found: Any = None
    with suppress(ValueError):
        found = json.loads(text)
    if not isinstance(found, dict) or not isinstance(found.get("reasons"), list):
        return f"HTTP {status}, and no answer of civicsky"
    if status == _OK:
        return "ready, and the stream is quiet" if found.get("quiet") else "ready"
    return "not ready: " + "; ".join(_reason(one) for one in found["reasons"][:_SHOWN] if isinstance(one, dict))


def _reason(one: dict[str, Any]) -> str:
    seconds = one.get("seconds")
    lasted = f" for {seconds:.0f} s" if isinstance(seconds, int | float) else ""
    return f"{one.get('name')}{lasted} ({one.get('why')})"


def _end(connection: HTTPConnection) -> None:
    with suppress(OSError, AttributeError):  # it is not connected, or no more
        connection.sock.shutdown(2)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing within {SECONDS:g} s"
    return getattr(error, "strerror", None) or type(error).__name__
