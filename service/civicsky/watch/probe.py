"""`civicsky health`: asks a running service whether it is ready, or alive. The standard library alone, to be quick."""

import json
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from ipaddress import ip_address
from threading import Timer
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

from civicsky.errors import Usage
from civicsky.log import harmless
from civicsky.settings import Http, listening_at

SECONDS: Final = 5.0
"""For all of it: a service whose loop stands still accepts a connection, and does not answer."""
_MOST_BYTES: Final = 65_536
_OK: Final = 200
_BUSY: Final = 503
_SHOWN: Final = 5
_MOST_SECONDS: Final = 1e12
"""What lasts longer is no time: an endless number would not be shown, but raise."""


class Probed(NamedTuple):
    """What was answered."""

    good: bool
    line: str


def probe(settings: Http, url: str, *, live: bool) -> Probed:
    """Ask `url`, else where the settings listen. Raises `Usage` when nobody says where that is."""
    parts = _split(url or own_url(settings))
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
    text = body.decode("utf-8", "replace").strip()
    found = _of_livez(answer.status, text) if live else _of_readyz(answer.status, text)
    return found._replace(line=harmless(found.line))


def own_url(settings: Http) -> str:
    """Where a service with these settings answers. Raises `Usage` when that cannot be known."""
    if not settings.listen:
        raise Usage("http.listen is not set, so nothing answers: give the service --http PORT, or this command --url")
    host, port = listening_at(settings.listen)
    if not port:
        raise Usage("http.listen has port 0, which is any: the event http_up in the log has the url; give it as --url")
    address = ip_address(host)
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"  # noqa: PLR2004
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _of_livez(status: int, text: str) -> Probed:
    if status == _BUSY and text.startswith("stuck: "):
        return Probed(good=False, line=text)
    return Probed(good=True, line=text) if (status, text) == (_OK, "alive") else _stranger(status, text)


def _of_readyz(status: int, text: str) -> Probed:
    found: Any = None
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
    told = found if isinstance(found, dict) and isinstance(found.get("reasons"), list) else {}
    if status == _OK and told.get("ready") is True:
        return Probed(good=True, line="ready, and the stream is quiet" if told.get("quiet") else "ready")
    if status == _BUSY and told.get("ready") is False:
        reasons = "; ".join(_reason(one) for one in told["reasons"][:_SHOWN] if isinstance(one, dict))
        return Probed(good=False, line=f"not ready: {reasons}")
    return _stranger(status, text)


def _stranger(status: int, text: str) -> Probed:
    what = ", and no answer of civicsky" if status in {_OK, _BUSY} else f": {text}"
    return Probed(good=False, line=f"HTTP {status}{what}")


def _reason(one: dict[str, Any]) -> str:
    seconds = one.get("seconds")
    known = isinstance(seconds, int | float) and 0 <= seconds <= _MOST_SECONDS
    lasted = f" for {seconds:.0f} s" if known else ""
    return f"{one.get('name')}{lasted} ({one.get('why')})"


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        int(parts.port or 0)  # one that is none raises only now
    except ValueError:
        return SplitResult("", "", "", "", "")
    return parts


def _end(connection: HTTPConnection) -> None:
    with suppress(OSError, AttributeError):  # it is not connected, or no more
        connection.sock.shutdown(2)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing within {SECONDS:g} s"
    return getattr(error, "strerror", None) or type(error).__name__
