"""Databases that earlier versions left behind are taken up where they were."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from support.command import LAST_SEQ, query, run

VERSIONS = sorted((Path(__file__).parents[1] / "upgrades").iterdir())


def posts(folder: Path) -> dict[str, Any]:
    """State and text of every post, and for a live one whether it has a label."""
    docs = [json.loads(doc) for (doc,) in query(folder / "posts.db", "SELECT doc FROM posts")]
    return {
        doc["_id"]: (doc["state"], doc.get("text"), "civic" in doc["labels"] if doc["state"] == "live" else None)
        for doc in docs
    }


def labels(folder: Path) -> dict[tuple[str, str], Any]:
    """The labels under this version's prompt, and those that an earlier version left: by post and prompt."""
    docs = [json.loads(doc) for (doc,) in query(folder / "posts.db", "SELECT doc FROM labels")]
    return {(doc["uri"], doc["prompt"]): doc["fields"] for doc in docs if doc["state"] == "live"}


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_databases_of_an_earlier_version_are_taken_up_and_end_as_a_fresh_run_does(
    version: Path, relay: str, tmp_path: Path, model: tuple[str, Path]
) -> None:
    """They hold the first 800 frames of the sample, from a relay at another address, the last 100 not yet labelled."""
    old, fresh = tmp_path / "old", tmp_path / "fresh"
    old.mkdir()
    for file in version.glob("*.db.gz"):
        (old / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    before = run("status", "--json", "--data-dir", old)
    assert before.code == 2
    assert "older civicsky" in before.err
    assert query(old / "journal.db", "SELECT cursor FROM host") == [(800,)]
    for folder in (old, fresh):
        ended = run(
            "run", "--relay", relay, "--data-dir", folder, "--model-url", model[0], "--model", "mock",
            "--max-frames", LAST_SEQ, source__start="window",
        )  # fmt: skip
        assert ended.code == 0, ended.err
    assert posts(old) == posts(fresh)
    # What was labelled stays as it was, with the prompt of its time; what waited is labelled as in a fresh directory.
    new, former = labels(fresh), labels(old)
    assert len({prompt for _, prompt in former}) == 2
    assert former.keys() & new.keys()
    for name in former.keys() & new.keys():
        assert former[name] == new[name]
    tasks = query(old / "ledger.db", "SELECT prompt_hash FROM task")
    assert {prompt for _, prompt in former} <= {prompt for (prompt,) in tasks}, "each label's task file is kept"
    after = json.loads(run("status", "--json", "--data-dir", old).out)
    assert after["balances"][1]["outcomes"]["stale"] > 200, "what the other relay repeats is recognised"
    assert all(balance["closes"] for balance in after["balances"])
