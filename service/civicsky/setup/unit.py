"""The systemd units of the service and of the daily fetch, as text. Pure.

`deploy/systemd/` has the same for those who would rather copy files; a test compares them.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from civicsky.errors import Usage

SERVICE: Final = "civicsky-fetch.service"
TIMER: Final = "civicsky-fetch.timer"
Half = Literal["run", "collect", "label"]
BOTH: Final = "civicsky.service"
COLLECT: Final = "civicsky-collect.service"
LABEL: Final = "civicsky-label.service"
RISING: Final = "rising-delay.conf"
CREDENTIALS: Final = "credentials.conf"
OURS: Final = "# Written by `civicsky service install"
"""How the first line of what is ours to replace begins."""
MARK: Final = f"{OURS} --timer`; the next one replaces it."
SERVICE_MARK: Final = f"{OURS} --systemd`; the next one replaces it."
RISING_SINCE: Final = 254
"""The version of systemd that knows a delay which rises."""
CREDENTIALS_SINCE: Final = 250
"""The version that gives credentials to user units."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9_@+=:,./-]+")
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_DATA_DIR: Final = re.compile(r"^# Data directory: (.*)$", re.MULTILINE)

_HARDENING: Final = """\
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
# A core file would hold posts and keys.
LimitCORE=0
"""

_RUN_TEXT: Final = """\
{head}
[Unit]
Description=civicsky: {what}
Documentation=man:systemd.service(5)
{order}
[Service]
# Threads for the databases: without this each would keep freed memory of its own.
Environment=MALLOC_ARENA_MAX=2
# It says itself that it is ready ({ready}), how it is (STATUS), and that the flow moves.
Type=notify
NotifyAccess=main
ExecStart={command}
# Secrets only, mode 600. Without the file the settings alone count.
EnvironmentFile=-%h/.config/civicsky/civicsky.env

# Without a sign of life for so long it is ended and started again. Nothing is lost by that.
WatchdogSec=3min
# Exit 1: starting again may help (full disk, dead worker pool). Exit 2: a person must act, so a restart is no use.
Restart=on-failure
RestartPreventExitStatus=2
# Stays below every start limit. With systemd 254 rising-delay.conf makes it rise.
RestartSec=30
# A large database that must be brought up takes long. Beyond this, too, as it asks for more time itself.
TimeoutStartSec=15min

# SIGTERM for the main process only: it still needs its children to finish what it holds.
KillMode=mixed
# Above limits.drain_seconds (60 s) with room for the last batches. If that is raised it asks for more time itself.
TimeoutStopSec=90

# {memory}
MemoryHigh={high}
MemoryMax={most}
# A child that the kernel ends is replaced by the service itself; if it was the main process, Restart= is for that.
OOMPolicy=continue

{hardening}
[Install]
WantedBy=default.target
"""

_ORDER: Final[dict[Half, str]] = {
    "run": f"# The halves alone need the same locks.\nConflicts={COLLECT} {LABEL}\n",
    "collect": f"# That one needs the same lock.\nConflicts={BOTH}\n",
    "label": f"""\
# That one needs the same lock.
Conflicts={BOTH}
# The other half makes the journal. This one goes on when that one stops.
Wants={COLLECT}
After={COLLECT}
""",
}
_TOLD: Final[dict[Half, dict[str, str]]] = {
    "run": {
        "what": "Bluesky's posts, labelled as civic or not",
        "ready": "locks held, databases open, pool up",
        "memory": "Four workers and the local model take half a GB. Four times that is slowed down, then ended.",
        "high": "2G",
        "most": "3G",
    },
    "collect": {
        "what": "the collecting half",
        "ready": "lock held, database open, pool up",
        "memory": "With four workers it takes .2 GB. Five times that is slowed down, then ended.",
        "high": "1G",
        "most": "2G",
    },
    "label": {
        "what": "the labelling half",
        "ready": "lock held, databases open",
        "memory": "With the local model it takes .3 GB. Three times that is slowed down, then ended.",
        "high": "1G",
        "most": "2G",
    },
}

_RISING_TEXT: Final = """\
{head}
[Service]
# From 30 s to ten minutes in five steps, as long as it does not stay up.
RestartSteps=5
RestartMaxDelaySec=10min
"""

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

{hardening}"""

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


def run_text(half: Half, command: Sequence[str], head: str = SERVICE_MARK) -> str:
    """The service, or one half of it. Raises `Usage` for a path that a unit cannot hold."""
    return _RUN_TEXT.format(
        head=head, command=_command(command), order=_ORDER[half], hardening=_HARDENING, **_TOLD[half]
    )


def head_of(data_dir: Path) -> str:
    """The first lines of a unit for this folder, by which the next installation knows it."""
    _check_path(str(data_dir))
    return f"{SERVICE_MARK}\n# Data directory: {data_dir}"


def data_dir_of(text: str) -> str:
    """The folder of a unit that we wrote; empty when it does not say."""
    found = _DATA_DIR.search(text)
    return found[1] if found else ""


def rising_text(head: str = SERVICE_MARK) -> str:
    """A drop-in for systemd 254: the delay before a restart rises."""
    return _RISING_TEXT.format(head=head)


def credentials_text(files: Mapping[str, Path], head: str = SERVICE_MARK) -> str:
    """A drop-in that hands files to the service as credentials, each named like its setting. Raises `Usage`."""
    lines = [f"LoadCredential={name}:{_path(str(file))}" for name, file in files.items()]
    return "\n".join([head, "[Service]", *lines, ""])


def service_text(command: Sequence[str], head: str = MARK) -> str:
    """The service that fetches once. Raises `Usage` for a path that a unit cannot hold."""
    return _SERVICE_TEXT.format(head=head, command=_command(command), hardening=_HARDENING)


def timer_text(at: str, zone: str, head: str = MARK) -> str:
    """The timer that starts it daily at HH:MM by the clocks of a zone (IANA name)."""
    first = datetime.strptime(at, "%H:%M")  # noqa: DTZ007  (a time of the day only)
    times = [
        f"OnCalendar=*-*-* {first:%H:%M}:00 {zone}",
        "# An hour later once more, for the day on which the clocks may jump over the first. Else nothing is due then.",
        f"OnCalendar=*-*-* {first + timedelta(hours=1):%H:%M}:00 {zone}",
    ]
    return _TIMER_TEXT.format(head=head, times="\n".join(times))


def _command(words: Sequence[str]) -> str:
    return " ".join([_quoted(words[0]), *map(_argument, words[1:])])


def _argument(word: str) -> str:
    return _quoted(word).replace("$", "$$")


def _quoted(word: str) -> str:
    """As systemd reads a command (man 5 systemd.service): C escapes within quotes, and %% for a percent sign."""
    word = _path(word)
    return word if _PLAIN.fullmatch(word) else '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _path(word: str) -> str:
    """As systemd reads a path that is a whole value: specifiers, and no quotes."""
    _check_path(word)
    return word.replace("%", "%%")


def _check_path(word: str) -> None:
    if _UNSAFE.search(word):
        raise Usage(f"{word!a}: a unit cannot hold a path with a line break or such; rename it")
