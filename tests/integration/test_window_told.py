"""What `doctor` and `plan` make of a window: closed hours are no trouble, and a day has fewer posts."""

import json
from pathlib import Path
from typing import Any

import pytest

from civicsky import datadir, doctor
from civicsky.doctor import Context
from civicsky.journal import Journal
from civicsky.loading import effective, load
from civicsky.model import now_us
from civicsky.settings import Journal as JournalSettings
from support.command import run

HOUR = 3_600_000_000


def clock_time(micros: int) -> str:
    """HH:MM in UTC."""
    minutes = micros // 60_000_000 % 1440
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


async def context(folder: Path, cause: str, *, opens_in: int, lasts: int) -> Context:
    """A journal whose newest run has a window by the real clock (in hours), and a gap of this cause."""
    begin, end = clock_time(now_us() + opens_in * HOUR), clock_time(now_us() + (opens_in + lasts) * HOUR)
    flags = {"source.window.from": begin, "source.window.to": end, "source.window.zone": "UTC", "data_dir": folder}
    settings = load(None, flags) if lasts else load(None, {"data_dir": folder})
    journal = await Journal.open(folder / "journal.db", JournalSettings())
    await journal.begin_run("1", "1", json.dumps(effective(settings)), "hash", {})
    await journal._db.execute("UPDATE run SET started = ?", (now_us() - 9 * HOUR,))
    await journal._db.execute(
        "INSERT INTO gap (host, epoch, cause, after_seq, at) VALUES ('wss://a', 1, ?, 1, ?)", (cause, now_us())
    )
    await journal.close()
    return Context(settings, folder)


@pytest.mark.parametrize(("cause", "state"), [("window", "ok"), ("outdated_cursor", "problem")])
async def test_a_gap_by_the_window_is_no_problem(tmp_path: Path, cause: str, state: str) -> None:
    (found,) = await doctor._gaps(await context(tmp_path, cause, opens_in=2, lasts=2))
    assert found.state == state


@pytest.mark.parametrize(("opens_in", "lasts", "state"), [(2, 2, "ok"), (-4, 8, "problem"), (0, 0, "problem")])
async def test_that_nothing_came_is_a_problem_only_while_something_should_have(
    tmp_path: Path, opens_in: int, lasts: int, state: str
) -> None:
    looked_at = await context(tmp_path, "window", opens_in=opens_in, lasts=lasts)
    with datadir.locked(tmp_path, ("collect",)):
        (found,) = await doctor._collecting(looked_at)
    assert found.state == state


def traffic(folder: Path, **settings: Any) -> dict[str, Any]:
    told = run("plan", "--json", "--model", "m", "--data-dir", folder, **settings)
    assert told.code == 0, told.err
    found: dict[str, Any] = json.loads(told.out)["traffic"]
    return found


def test_a_plan_counts_the_windows_hours_only(tmp_path: Path) -> None:
    window = {"source__window__from": "22:00", "source__window__to": "02:00", "source__window__zone": "UTC"}
    whole, part = traffic(tmp_path), traffic(tmp_path, **window)
    assert (whole["hours_a_day"], part["hours_a_day"]) == (24, 4)
    assert part["posts_a_day"] == pytest.approx(whole["posts_a_day"] / 6)
    assert traffic(tmp_path, **window, source__window__resume="cursor")["hours_a_day"] == 24
