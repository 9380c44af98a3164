"""What is said to the service manager that started us, by sd_notify(3): datagrams to the socket in NOTIFY_SOCKET.

Nothing here ever blocks or fails: what the manager does not take is left out, and said again with the next change.
"""

import os
import socket
from collections.abc import MutableMapping
from typing import Final

from civicsky.health import Look
from civicsky.log import harmless
from civicsky.metrics import Metrics

_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_STATUS_CHARS: Final = 200


class Manager:
    """The service manager; one without an address is nobody, and is told nothing."""

    def __init__(self, address: str = "", watchdog_seconds: float = 0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address  # an abstract socket has no file
        self.watchdog_seconds = watchdog_seconds
        """How long we may be silent; 0: nobody minds."""

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> "Manager":
        """Who started us. Its variables are taken out of the environment, so that no child speaks in our name."""
        address, microseconds, pid = (environment.pop(name, "") for name in _VARIABLES)
        meant = microseconds.isdecimal() and pid in {"", str(os.getpid())}
        return cls(address if address[:1] in {"/", "@"} else "", int(microseconds) / 1e6 if meant else 0)

    @property
    def watches(self) -> bool:
        """Whether it ends us, and starts us again, when we are silent for `watchdog_seconds`."""
        return bool(self._address and self.watchdog_seconds)

    def tell(self, *lines: str) -> bool:
        """Send lines such as `READY=1`; whether there is somebody who took them."""
        if not self._address:
            return False
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            with socket.socket(socket.AF_UNIX, kind) as channel:
                channel.sendto("\n".join(lines).encode(errors="replace"), self._address)
        except OSError:  # also when we have too many files open
            return False
        return True


def extended(seconds: float) -> str:
    """The line that asks the manager to wait so much longer with a start or a stop."""
    return f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}"


def status(metrics: Metrics, look: Look, *, stopping: str = "") -> str:
    """How things stand, in one short line. `stopping`: why the work ends."""
    parts = [f"stopping: {stopping}"] if stopping else []
    parts += [metrics.host] if metrics.connected else []
    parts += ["quiet"] if look.quiet else []
    if metrics.lag_seconds is not None:
        parts.append(f"lag {metrics.lag_seconds:,.0f} s")
    parts.append(f"{metrics.waiting:,} waiting")
    parts += [one.why for one in look.conditions] or [metrics.window_why or "ok"]
    return harmless(", ".join(parts))[:_STATUS_CHARS]
