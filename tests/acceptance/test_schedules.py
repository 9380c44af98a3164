"""Stops, kills and misbehaviour as drawn from seeds: in the end journal, ledger and store equal the oracle."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from civicsky.faults import IN_SERVICE
from support import schedules

ENOUGH = 40
"""So many reach each crash point both ways, and turn each knob; no mutant that is left to schedules outlives 30."""
FORKED = range(int(os.environ.get("SCHEDULES", ENOUGH)))
INSTALLED = range(10_000, 10_000 + int(os.environ.get("INSTALLED", "8")))
"""The seeds: each repeats its schedule, with `python tests/support/schedules.py --seeds N:N+1 --folder DIR`."""
PARTS = 4
"""Tests that share the seeds, so that several workers of pytest run them; each has some of each kind of schedule."""


def run(seeds: range, folder: Path, *options: str) -> list[dict[str, Any]]:
    """Run them, shared among the processors; what each one did.

    A schedule waits for a third of its time (for stalls, backoff, answers), so there are more drivers than processors;
    one, where other workers of pytest run beside this one.
    """
    beside = "PYTEST_XDIST_WORKER" in os.environ
    jobs = min(len(seeds), 1 if beside else (3 * min(4, len(os.sched_getaffinity(0))) + 1) // 2)
    drivers = []
    for job in range(jobs):
        part = seeds[job::jobs]  # neighbours are alike: each driver has some of each kind
        command = [sys.executable, schedules.__file__, "--seeds", f"{part.start}:{part.stop}:{part.step}"]
        command += ["--folder", str(folder / str(job)), *options]
        drivers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    told = [driver.communicate()[0] for driver in drivers]
    return [json.loads(line) for out in told for line in out.splitlines()]


def check(done: list[dict[str, Any]], seeds: range) -> Counter[str]:
    """Each ended right, and with a fault that fired; how often each fired."""
    assert sorted(one["seed"] for one in done) == list(seeds)
    wrong = {one["seed"]: one["wrong"] for one in done if one["wrong"]}
    assert not wrong, json.dumps(wrong, indent=1)
    fired = Counter[str]()
    for one in done:
        own = [name for name in one["fired"] if name != "at rest"]
        assert own, f"no fault fired in seed {one['seed']}"
        fired.update(own + list(one["acted"]))
    assert sum(one["posts"] for one in done) > 50 * len(done), "there was something to lose"
    print(f"{len(done)} schedules, fired:", dict(sorted(fired.items())))
    return fired


@pytest.fixture(scope="session")
def of_all_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of pytest share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "schedules-fired"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.timeout(7200 if "SCHEDULES" in os.environ else 600)
@pytest.mark.parametrize("part", range(min(PARTS, len(FORKED))))
def test_nothing_is_lost_doubled_or_wrong_after_any_schedule(part: int, tmp_path: Path, of_all_parts: Path) -> None:
    seeds = FORKED[part::PARTS]
    half = tmp_path / "fired"
    half.write_text(json.dumps(check(run(seeds, tmp_path), seeds)))
    half.replace(of_all_parts / str(part))
    told = list(of_all_parts.iterdir())
    if len(told) < PARTS or len(FORKED) < ENOUGH:
        return  # another part is the last, or there are too few for each kind
    fired = {name for one in told for name in json.loads(one.read_text())}
    assert {f"{place}:{how}" for place in IN_SERVICE for how in ("kill", "term")} <= fired
    assert {knob["name"] for knob in schedules.KNOBS} | {"down"} <= fired


@pytest.mark.timeout(7200 if "SCHEDULES" in os.environ else 600)
@pytest.mark.parametrize("part", range(min(2, len(INSTALLED))))
def test_nothing_is_lost_doubled_or_wrong_after_any_schedule_of_the_installed_command(
    part: int, tmp_path: Path
) -> None:
    seeds = INSTALLED[part::2]
    fired = check(run(seeds, tmp_path, "--installed"), seeds)
    assert any(name.endswith(":kill") for name in fired)
