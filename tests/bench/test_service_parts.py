"""The parts that run the service's own halves and stores, in sizes that say nothing: whether they work."""

from pathlib import Path
from types import ModuleType

import pytest

from bench import growth, label, store
from bench.large_journal import fill
from bench.part import Ask, CannotRun, Measured, gather
from conftest import _loadable
from support.command import query

TINY = Ask(rounds=1, scale=0.05, quick=True)


def measured(part: ModuleType) -> Measured:
    return gather(part.PART, part.rounds(TINY))


def test_labelling_is_measured_from_the_ledger_of_the_installed_command() -> None:
    found = measured(label)
    assert not found.left_out
    assert found.results["16 in flight, 50 ms"].values[0] > 0
    assert 0 < found.ratios["64 in flight, 50 ms: answers/s over ideal (1,280/s)"].values[0] <= 1.5
    assert found.ratios["64 in flight, 50 ms: answers/s over ideal (1,280/s)"].bar == 0.6
    assert found.results["posts followed and stored, before any is labelled"].values[0] > 0


def test_both_stores_write_every_document_new_and_newer() -> None:
    found = measured(store)
    names = ["SQLite"] + ([] if _loadable() else ["MongoDB"])
    assert bool(found.left_out) == (len(names) == 1)
    for name in names:
        for motion in ("inserts", "updates"):
            assert found.results[f"{name}, {motion}"].values[0] > 0


def test_collecting_is_measured_over_journals_of_all_sizes() -> None:
    found = measured(growth)
    assert not found.left_out
    assert set(growth.JOURNALS) <= set(found.results)
    assert found.ratios["10 M posts over 10 k posts, frames/s"].bar == 0.8


def test_a_disk_without_room_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(growth, "BYTES_A_POST", 10**15)
    with pytest.raises(CannotRun, match="see TMPDIR"):
        list(growth.rounds(TINY))


@pytest.mark.parametrize("waiting", [False, True])
def test_a_made_journal_is_as_the_service_makes_it(tmp_path: Path, waiting: bool) -> None:
    fill(tmp_path / "data", 500, waiting=waiting)
    journal = tmp_path / "data" / "journal.db"
    assert query(journal, "PRAGMA integrity_check") == [("ok",)]
    assert query(
        journal, "SELECT count(*), count(DISTINCT fields ->> '$.text'), count(DISTINCT did) < 500 FROM post"
    ) == [(500, 500, 1)]
    assert query(journal, "SELECT count(*) FROM change") == [(500 * waiting,)]
    ((rising,),) = query(
        journal, "SELECT min(later) FROM (SELECT rkey > lag(rkey) OVER (ORDER BY id) AS later FROM post)"
    )
    assert rising == 1
    fill(tmp_path / "other", 0)
    names = "SELECT type, name, sql FROM sqlite_schema ORDER BY name"
    assert query(journal, names) == query(tmp_path / "other" / "journal.db", names)
