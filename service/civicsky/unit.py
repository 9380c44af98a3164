"""The systemd units of the daily fetch, as text. Pure.

`deploy/systemd/` has the same for those who would rather copy files, with a time that they must fill in.
"""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from civicsky.errors import Usage

SERVICE: Final = "civicsky-fetch.service"
TIMER: Final = "civicsky-fetch.timer"
MARK: Final = "# Written by `civicsky service install --timer`; the next one replaces it."
"""First line of what is ours to replace."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9_@+=:,./-]+")
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

_SERVICE_TEXT: Final = """\
{head}
[Unit]
Description=civicsky: the daily fetch of the most liked posts
Documentation=man:systemd.service(5)
# Half a day of attempts, then the next day's.
StartLimitIntervalSec=12h
StartLimitBurst=12

[Service]
# Threads for the databases: without this each would keep freed memory of its own.
Environment=MALLOC_ARENA_MAX=2
Type=oneshot
# --due: what was fetched since the day's time is not fetched again, so a start too many does no harm.
ExecStart={command}
# Secrets only, mode 600. Without the file the settings alone count.
EnvironmentFile=-%h/.config/civicsky/civicsky.env
TimeoutStartSec=30min

# Exit 1: a feed or the network was down, and what is missing is fetched later. Exit 2: a person must act.
Restart=on-failure
RestartPreventExitStatus=2
RestartSec=20min

# What a user unit can do without root and without user namespaces. The databases are for this user alone.
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"""

_TIMER_TEXT: Final = """\
{head}
[Unit]
Description=civicsky: the time of the daily fetch
Documentation=man:systemd.timer(5)

[Timer]
{times}
# After the machine was off: at once.
Persistent=true
RandomizedDelaySec=5min

[Install]
WantedBy=timers.target
"""


def service_text(command: Sequence[str], head: str = MARK) -> str:
    """The service that fetches once. Raises `Usage` for a path that a unit cannot hold."""
    return _SERVICE_TEXT.format(head=head, command=" ".join([_quoted(command[0]), *map(_argument, command[1:])]))


def timer_text(at: str, zone: str, head: str = MARK) -> str:
    """The timer that starts it daily at HH:MM by the clocks of a zone (IANA name)."""
    first = datetime.strptime(at, "%H:%M")  # noqa: DTZ007  (a time of the day only)
    times = [
        f"OnCalendar=*-*-* {first:%H:%M}:00 {zone}",
        "# An hour later once more, for the day on which the clocks may jump over the first. Else nothing is due then.",
        f"OnCalendar=*-*-* {first + timedelta(hours=1):%H:%M}:00 {zone}",
    ]
    return _TIMER_TEXT.format(head=head, times="\n".join(times))


def _argument(word: str) -> str:
    return _quoted(word).replace("$", "$$")


def _quoted(word: str) -> str:
    """As systemd reads a command (man 5 systemd.service): C escapes within quotes, and %% for a percent sign."""
    if _UNSAFE.search(word):
        raise Usage(f"{word!a}: a unit cannot hold a path with a line break or such; rename it")
    word = word.replace("%", "%%")
    return word if _PLAIN.fullmatch(word) else '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
