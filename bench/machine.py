"""The machine on which figures were taken, and whether it was idle meanwhile."""

import os
import platform
import re
import sqlite3
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic
from typing import Any, Final

LIBRARIES: Final = (
    "aiosqlite", "anyio", "atproto", "cbor2", "fasttext-predict", "httpx", "libipld", "motor", "picows", "pycld2",
    "uvloop", "websockets",
)  # fmt: skip
"""Those that matter for speed."""
OTHERS: Final = 0.05
"""Share of all processors that others may take while it counts as idle."""
STOLEN: Final = 0.01
"""Share that the machine below may take away."""
ROOT: Final = Path(__file__).parent.parent


def describe() -> dict[str, Any]:
    """Processors, memory, kernel and versions."""
    libraries: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            libraries[name] = "not installed"
    return {
        "processors": len(os.sched_getaffinity(0)),
        "processor": _line("/proc/cpuinfo", r"model name\s*:\s*(.*)") or platform.machine(),
        "memory_gb": round(int(_line("/proc/meminfo", r"MemTotal:\s*(\d+)") or 0) / 1024**2, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "libraries": libraries,
    }


def commit() -> str:
    """Of the source: its short name, with a "+" when files differ from it; empty where that cannot be told."""
    said = _git("rev-parse", "--short=12", "HEAD")
    return said and said + (
        "+" if _git("status", "--porcelain", "--untracked-files=no", "--", "service", "bench") else ""
    )


@dataclass(frozen=True, slots=True)
class Load:
    """What else the machine did."""

    average: float
    """The load average over a minute when it began."""
    others: float
    """Share of all processors that went to processes that are not ours."""
    stolen: float
    """Share of all processors that the machine below took away."""

    @property
    def why(self) -> str:
        """Why it was not idle; empty when it was."""
        said = []
        if self.others > OTHERS:
            said.append(f"other processes took {self.others:.0%} of the processors")
        if self.stolen > STOLEN:
            said.append(f"{self.stolen:.0%} of the processors' time was stolen")
        return " and ".join(said)


class Watch:
    """Looks at the machine's own counts from when it is made until `load` is called."""

    def __init__(self) -> None:
        self._began, self._ours, self._all = monotonic(), _ours(), _jiffies()
        self._average = os.getloadavg()[0]

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return monotonic() - self._began

    def load(self) -> Load:
        """What others did since then; processes of ours that still run count as others."""
        now, ours = _jiffies(), _ours() - self._ours
        tick = os.sysconf("SC_CLK_TCK")
        spent = [(after - before) / tick for before, after in zip(self._all, now, strict=True)]
        total = sum(spent) or 1.0
        busy = total - spent[3] - spent[4] - spent[7]  # idle, waiting for disks, stolen
        return Load(self._average, max(0.0, busy - ours) / total, spent[7] / total)


def _ours() -> float:
    return sum(os.times()[:4])


def _jiffies() -> list[int]:
    return list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))


def _line(file: str, pattern: str) -> str:
    found = re.search(pattern, Path(file).read_text())
    return found[1].strip() if found else ""


def _git(*words: str) -> str:
    ran = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S607
    return ran.stdout.strip() if ran.returncode == 0 else ""
