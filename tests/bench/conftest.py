"""Made-up frames for all tests of the benchmark."""

from pathlib import Path

import pytest

from bench import traffic
from bench.hostile import WAYS
from bench.traffic import HOSTILE_EVERY, frames
from bench.truth import Truth

Made = list[tuple[bytes, Truth]]


@pytest.fixture(scope="session")
def made() -> Made:
    """As many frames as it takes to see every hostile way once."""
    return list(frames(HOSTILE_EVERY * len(WAYS)))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where recordings are kept while a test runs."""
    monkeypatch.setattr(traffic, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"
