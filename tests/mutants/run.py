"""Breaks one guarantee at a time by a small patch, and sees that a named test fails for it.

    python tests/mutants/run.py [NAME]... [--list]

Each mutant is a copy of the package with one text replaced. It must still start and label the recorded sample; then its
test must fail, by an assertion. Before that all those tests must pass on the code as it is.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from support.command import CIVICSKY, LAST_SEQ, model_server, sample_relay

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "service" / "civicsky"
PATIENCE = 400
LONGEST = 1800
"""Seconds for all tests of a mutant. One may hang beyond pytest's own bound: in the end of its process."""


class Mutant(NamedTuple):
    """One patch."""

    name: str
    guarantee: int
    """Its number in docs/architecture.md."""
    file: str
    old: str
    """Occurs once in the file; if not, the list has to follow the code."""
    new: str
    killed_by: str
    """The test, as pytest names it. What is marked `long` repeats the same more often, and is left out."""
    schedules: int = 0
    """How many schedules are enough, for the test that runs many."""


def read() -> list[Mutant]:
    """All mutants. Raises `ValueError` when one does not fit the code any more."""
    found = [Mutant(**told) for told in tomllib.loads(Path(__file__).with_name("mutants.toml").read_text())["mutant"]]
    for mutant in found:
        n = (PACKAGE / mutant.file).read_text().count(mutant.old)
        if n != 1:
            raise ValueError(f"{mutant.name}: its text stands {n} times in {mutant.file}")
    return found


def patch(mutant: Mutant, folder: Path) -> Path:
    """A copy of the package with the patch; gives the folder to import it from."""
    home = folder / mutant.name
    shutil.copytree(PACKAGE, home / "civicsky", ignore=shutil.ignore_patterns("__pycache__"))
    file = home / "civicsky" / mutant.file
    file.write_text(file.read_text().replace(mutant.old, mutant.new))
    return home


def environment(home: Path, mutant: Mutant | None = None) -> dict[str, str]:
    few = {"SCHEDULES": str(mutant.schedules), "INSTALLED": "0"} if mutant and mutant.schedules else {}
    return {**os.environ, "PYTHONPATH": str(home), "PYTHONDONTWRITEBYTECODE": "1", **few}


def starts(home: Path, folder: Path, relay: str, model: str) -> str:
    """Why the package at `home` does not label the sample; empty when it does."""
    where = subprocess.run(
        [sys.executable, "-c", "import civicsky; print(civicsky.__file__)"],
        env=environment(home), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    if not where.startswith(str(home)):
        return f"another package is imported: {where}"
    data = folder / (home.name + "-data")
    ran = subprocess.run(
        [CIVICSKY, "run", "--relay", relay, "--data-dir", data, "--model-url", model, "--model", "mock",
         "--max-frames", str(LAST_SEQ)],
        env={**environment(home), "CIVICSKY_SOURCE__START": "window", "CIVICSKY_APPVIEW__RECHECK": "false"},
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    return "" if ran.returncode == 0 else f"exit code {ran.returncode}: {ran.stderr[-300:]}"


def test(home: Path, mutant: Mutant) -> tuple[int, str]:
    """pytest's exit code and output, for the mutant's test."""
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout", str(PATIENCE),
             "-m", "not long", *shlex.split(mutant.killed_by)],
            env=environment(home, mutant), cwd=ROOT, capture_output=True, text=True, check=False, timeout=LONGEST,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return -1, f"its tests did not end within {LONGEST} s"
    return ran.returncode, ran.stdout


def is_killed(code: int, out: str) -> bool:
    """Whether a test failed by an assertion, also within a group of errors, and not for another reason."""
    failed = r"^(?:E| +\|) +(AssertionError|assert |Failed: DID NOT RAISE)"
    return code == 1 and bool(re.search(failed, out, re.MULTILINE))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--quick", action="store_true", help="leave out the run on the code as it is")
    told = parser.parse_args()
    mutants = [mutant for mutant in read() if not told.names or mutant.name in told.names]
    if unknown := set(told.names) - {mutant.name for mutant in mutants}:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    if told.list:
        for mutant in mutants:
            print(f"{mutant.guarantee:3} {mutant.name:40} {mutant.killed_by}")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="civicsky-mutants-"))
    alive: list[str] = []
    try:
        if not told.quick:
            for mutant in {(one.killed_by, one.schedules): one for one in mutants}.values():
                code, out = test(PACKAGE.parent, mutant)
                if code:
                    print(f"the code as it is fails {mutant.killed_by}:\n{out[-3000:]}")
                    return 1
            print(f"the code as it is passes the tests of all {len(mutants)} mutants", flush=True)
        with sample_relay() as relay, model_server(folder / "model.log") as model:
            for mutant in mutants:
                began = time.monotonic()
                home = patch(mutant, folder)
                why = starts(home, folder, relay, model)
                code, out = (0, "") if why else test(home, mutant)
                killed = is_killed(code, out)
                seconds = time.monotonic() - began
                test_name = re.search(r"^FAILED (\S+)", out, re.MULTILINE)
                said = f"killed by {test_name and test_name[1]}" if killed else f"ALIVE {why or out[-1500:]}"
                print(f"{mutant.guarantee:3} {mutant.name:40} {seconds:4.0f} s  {said}", flush=True)
                alive += [] if killed else [mutant.name]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(mutants) - len(alive)} of {len(mutants)} killed" + (f"; alive: {', '.join(alive)}" if alive else ""))
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
