"""What `doctor` foretells, and how it tells what it found."""

from collections import Counter
from math import inf
from pathlib import Path
from typing import Any

import pytest

from civicsky import doctor
from civicsky.doctor import Context, Finding, Growth, as_text, examine, forecast, healthy, per_day
from civicsky.loading import load
from civicsky.model import now_us

HOUR = 3_600_000_000
GB = 1_000_000_000


def context(folder: Path, *, labels: bool = True, **flags: Any) -> Context:
    if labels:
        (folder / "ledger.db").touch()
    return Context(load(None, {name.replace("__", "."): value for name, value in flags.items()}), folder)


def hours(*kept: int) -> dict[int, Counter[tuple[str, str]]]:
    """The last hours, the present one last."""
    now = now_us() // HOUR * HOUR
    return {
        now - (len(kept) - 1 - n) * HOUR: Counter({("frame", "received"): 1, ("post", "kept"): one})
        for n, one in enumerate(kept)
    }


@pytest.mark.parametrize(
    ("kept", "rate"),
    [
        ((), None),
        ((9999, 100, 9999), None),  # one whole hour
        ((9999, 100, 300, 9999), 200 * 24),  # neither the first nor the present one is whole
        ((9999, 9999, *[100] * 24, 9999), 100 * 24),  # a day is enough
    ],
)
def test_the_rate_is_that_of_the_whole_hours_of_the_last_day(kept: tuple[int, ...], rate: float | None) -> None:
    assert per_day(hours(*kept)) == rate


def test_hours_in_which_nothing_ran_do_not_count() -> None:
    found = hours(9, 100, 300, 0, 0, 9)
    for hour in sorted(found)[3:5]:
        found[hour] = Counter({("recheck", "present"): 5})
    assert per_day(found) == 200 * 24


@pytest.mark.parametrize(
    ("growth", "labels", "to_bound", "to_full"),
    [
        # 1 GB a day for 7 days stays below 50 GB; then only the others grow: 7 of 80 GB go to the journal.
        (Growth(1000, 1e6, 1e6, 0, 80 * GB), True, inf, 73.0),
        (Growth(1000, 1e6, 0, 0, 80 * GB), True, inf, inf),
        # 10 GB a day for 7 days do not fit in 50 GB, of which 20 are in use.
        (Growth(10_000, 1e6, 0, 20 * GB, 800 * GB), True, 3.0, inf),
        # The disk is full before the journal is.
        (Growth(1000, 1e6, 1e6, 0, 6 * GB), True, inf, 3.0),
        # Nobody labels: nothing is dropped.
        (Growth(1000, 1e6, 0, 10 * GB, 800 * GB), False, 40.0, inf),
    ],
)
def test_what_is_foretold(tmp_path: Path, growth: Growth, labels: bool, to_bound: float, to_full: float) -> None:
    bound, disk = forecast(context(tmp_path, labels=labels), growth)
    for finding, days in ((bound, to_bound), (disk, to_full)):
        assert finding.what.endswith("not reached" if days == inf else f"reached in {days:.1f} days")
        assert finding.state == ("problem" if days < 14 else "ok")
        assert bool(finding.remedy) is (days < 14)


async def test_a_check_that_fails_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_context: Context) -> list[Finding]:
        raise ZeroDivisionError("hunter2 \x1b[31m")

    async def fine(_context: Context) -> list[Finding]:
        return [Finding("fine", "ok", "all is well")]

    monkeypatch.setattr(doctor, "NETWORK", (broken, fine))
    found = await examine(load(None, {"data_dir": tmp_path, "label.api_key": "hunter2"}))
    told = {finding.name: finding for finding in found}
    assert told["fine"].state == "ok"
    assert told["broken"].what == "this check failed: ZeroDivisionError: *** ?[31m"
    assert "report" in told["broken"].remedy
    assert not healthy(found)


async def test_the_same_trouble_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(name: str) -> doctor.Check:
        async def check(_context: Context) -> list[Finding]:
            return [Finding(name, "problem", "journal.db is damaged", "restore it"), Finding(name, "ok", "as ever")]

        return check

    monkeypatch.setattr(doctor, "NETWORK", tuple(damaged(name) for name in "abcb"))
    text = as_text(await examine(load(None, {"data_dir": tmp_path})), verbose=True)
    assert "problem  a              journal.db is damaged (so nothing is known of: b, c); restore it\n" in text
    assert text.count("as ever") == 4
    assert text.endswith("2 problems, 6 ok")


def test_what_is_in_order_is_shown_only_when_asked_for() -> None:
    found = [Finding("a", "ok", "fine"), Finding("b", "unknown", "who knows", "wait"), Finding("c", "problem", "bad")]
    assert as_text(found, verbose=False) == (
        "unknown  b              who knows; wait\nproblem  c              bad\n1 problem, 1 not known, 1 ok"
    )
    assert as_text(found[:1], verbose=False) == "no problems, 1 ok"
    assert healthy(found[:2])
