import pytest

from civicsky.metrics import Metrics
from civicsky.model import now_us


@pytest.mark.parametrize(
    ("relay", "model", "store", "expected"),
    [
        ("", "", "", ("ok", "")),
        ("", "model is down", "", ("degraded", "model is down")),
        ("", "", "store is down", ("degraded", "store is down")),
        ("", "model is down", "store is down", ("degraded", "model is down")),
        ("relay is down", "", "", ("bad", "relay is down")),
        ("relay is down", "model is down", "store is down", ("bad", "relay is down")),
    ],
)
def test_the_health_is_as_bad_as_its_worst_part(relay: str, model: str, store: str, expected: tuple[str, str]) -> None:
    assert Metrics(relay_why=relay, model_why=model, store_why=store).health() == expected


def test_counts_begin_at_nothing_and_add_up() -> None:
    metrics = Metrics()
    assert metrics.counts["frames"] == 0
    metrics.add("frames")
    metrics.add("frames", 5)
    metrics.add("posts", 2)
    assert metrics.counts == {"frames": 6, "posts": 2}
    assert Metrics().counts == {}


def test_the_lag_is_how_old_the_last_frame_is() -> None:
    assert Metrics().lag_seconds is None
    then = now_us() - 90_000_000
    lag = Metrics(event_at=then).lag_seconds
    assert lag is not None
    assert 90 <= lag <= (now_us() - then) / 1e6


def test_the_lag_is_never_negative() -> None:
    assert Metrics(event_at=now_us() + 90_000_000).lag_seconds == 0


def test_a_rate_is_counted_since_the_same_reader_last_asked_or_the_beginning() -> None:
    metrics = Metrics()
    metrics.add("frames", 100)
    first = metrics.rate("a", "frames")
    assert first > 100  # so many in far less than a second
    assert metrics.rate("a", "frames") == 0
    metrics.add("frames", 50)
    assert metrics.rate("a", "frames") > 50
    assert metrics.rate("a", "frames") == 0
    assert metrics.rate("b", "frames") > 150
    assert metrics.rate("a", "posts") == 0
