"""Which library opens a line: by the setting, by what is installed, and by the proxy that the environment names."""

from collections.abc import Awaitable, Callable
from functools import partial
from types import ModuleType
from typing import Literal, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from civicsky.errors import Usage
from civicsky.line.shape import Line, NoWebsocket
from civicsky.settings import Client, is_loopback

MISSING = (
    'source.client is "picows", which cannot be loaded ({why}): in civicsky\'s folder: '
    'pip install --require-hashes -r requirements/fast.txt, or set source.client = "auto"'
)


class Way(NamedTuple):
    """How a relay is reached."""

    client: Literal["picows", "websockets"]
    why: str
    """Why it is another client than the one that was to be used; mostly empty."""
    open: Callable[[float, int], Awaitable[Line]]
    """Seconds at most, bytes of a message at most."""


def way_to(url: str, client: Client) -> Way:
    """The way to an address. Raises `Usage` where `check` does."""
    proxy = named_proxy(url)
    fast = None if client == "websockets" else _picows(client)
    if fast is not None and proxy is None:
        return Way("picows", "", partial(_fast, fast, url))
    why = "" if fast is None else "the environment names a proxy"
    return Way("websockets", why, partial(_plain, url, proxy))


async def _plain(url: str, proxy: str | Literal[True] | None, seconds: float, max_bytes: int) -> Line:
    from civicsky.line import by_websockets  # noqa: PLC0415  (not loaded without need)

    return await by_websockets.open_line(url, seconds, max_bytes, proxy)


async def _fast(picows: ModuleType, url: str, seconds: float, max_bytes: int) -> Line:
    try:
        line: Line = await picows.open_line(url, seconds, max_bytes)
    except NoWebsocket as error:
        if error.what != "InvalidUpgrade":
            raise
        # It takes one way only of writing the header Connection; some servers between us and a relay have another.
        return await _plain(url, None, seconds, max_bytes)
    return line


def check(client: Client) -> None:
    """Raises `Usage` when the client that is asked for is not installed."""
    if client == "picows":
        _picows(client)


def _picows(client: Client) -> ModuleType | None:
    """None when it is not there and need not be."""
    try:
        from civicsky.line import by_picows  # noqa: PLC0415  (comes with an extra)
    except ImportError as error:
        if client == "picows":
            raise Usage(MISSING.format(why=error)) from error
        return None
    return by_picows


def named_proxy(url: str) -> str | Literal[True] | None:
    """How to get there. None: straight, as to anything on this machine. True: as websockets reads the environment.

    It does not read ALL_PROXY, as httpx and most programs do; one who sets only that means the relay, too.
    """
    parts = urlsplit(url)
    place = parts.netloc if ":" in parts.netloc else f"{parts.netloc}:{443 if parts.scheme == 'wss' else 80}"
    proxies = getproxies()
    known = {parts.scheme, "socks", "https"} | ({"http"} if parts.scheme == "ws" else set())
    if is_loopback(parts.hostname or "") or not proxies.keys() & (known | {"all"}) or proxy_bypass(place):
        return None
    return True if known & proxies.keys() else proxies["all"]
