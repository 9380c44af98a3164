"""`civicsky coverage`, on a journal that a real run made."""

import json
from pathlib import Path

from support.command import LAST_SEQ, query, run


def test_coverage_shows_what_was_held_of_a_recording(relay: str, tmp_path: Path) -> None:
    ended = run(
        "collect", "--relay", relay, "--data-dir", tmp_path, "--max-frames", LAST_SEQ, source__start="window"
    )  # fmt: skip
    assert ended.code == 0, ended.err
    told, shown = (run("coverage", "--data-dir", tmp_path, *how) for how in (("--json",), ()))
    assert (told.code, shown.code) == (0, 0), told.err + shown.err
    found = json.loads(told.out)
    assert found["share_held"] == 1.0
    assert [stretch["kind"] for stretch in found["stretches"]] == ["held"]
    assert found["gaps"] == []
    (host,) = found["hosts"]
    ((frames,),) = query(tmp_path / "journal.db", "SELECT sum(n) FROM count WHERE unit = 'frame' AND outcome IN "
                         "('commit', 'account', 'identity', 'sync', 'info')")  # fmt: skip
    assert (host["host"], host["epoch"], host["connections"], host["frames"]) == (relay, 1, 1, frames)
    assert (found["from"], found["to"]) == (host["first_at"], host["last_at"])
    assert found["strip"] == "█" * 72
    first, strip, *_ = shown.out.splitlines()
    assert first.startswith(f"held             100.0000% of the time from {found['from']} to {found['to']}")
    assert strip.strip() == found["strip"]
    assert f"{relay}  epoch 1  {host['first_at']} to {host['last_at']}  {frames:,} frames" in shown.out


def test_coverage_without_anything_held_says_so_and_without_a_journal_says_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    missing = run("coverage", "--data-dir", folder)
    assert missing.code == 2
    assert missing.err.startswith("civicsky: ")
    assert "--data-dir" in missing.err
    ended = run("collect", "--relay", "ws://127.0.0.1:1", "--data-dir", folder, "--max-minutes", 0.0001)
    assert ended.code == 0, ended.err
    nothing = run("coverage", "--data-dir", folder)
    assert (nothing.code, nothing.out) == (0, "nothing was held yet\n")
    assert json.loads(run("coverage", "--data-dir", folder, "--json").out)["share_held"] is None
