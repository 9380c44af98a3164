"""Prometheus' own checker, as `tools/setup.sh test` fetches it."""

import shutil
import sys
from pathlib import Path

from conftest import skip


def promtool() -> str:
    """Its path."""
    own = Path(sys.executable).with_name("promtool")
    found = str(own) if own.is_file() else shutil.which("promtool")
    if found is None:
        skip("promtool is not installed (Debian: prometheus)")
    assert found is not None
    return found
