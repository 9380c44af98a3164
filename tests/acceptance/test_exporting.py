"""The installed `civicsky export`: whole or not there, in bounded memory, and told what to do."""

import json
import subprocess
from pathlib import Path

import pytest
from pyarrow import parquet

from support import command, large_store
from support.command import CIVICSKY, environment, run

POSTS = 1500


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    large_store.fill(folder, POSTS)
    return folder


def test_the_installed_command_exports_and_says_what(data: Path, tmp_path: Path) -> None:
    ended = run("export", "--data-dir", data, "--out", tmp_path / "out")
    assert (ended.code, ended.err) == (0, "")
    rows = parquet.read_metadata(tmp_path / "out" / "posts.parquet").num_rows
    assert rows == POSTS - POSTS // 50
    assert f"{rows:,} rows" in ended.out
    assert f"export: {tmp_path / 'out'}" in ended.out
    assert "left out: 0 deleted, 30 hidden" in ended.out
    told = run(
        "export", "--data-dir", data, "--out", tmp_path / "csv", "--format", "csv", "--table", "labels", "--json"
    )
    found = json.loads(told.out)
    assert sorted(file.name for file in (tmp_path / "csv").iterdir()) == sorted(
        ["manifest.json", *(file["name"] for file in found["files"])]
    )
    assert found["files"][0]["name"] == "labels.csv"


def test_the_folder_is_named_by_the_time_unless_told(data: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        [CIVICSKY, "export", "--data-dir", data, "--format", "jsonl"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    (out,) = tmp_path.iterdir()
    assert len(out.name) == len("export-2026-11-26T105133Z")
    assert f"export: {out}" in ended.stdout


@pytest.mark.parametrize("place", ["export.page:2", "export.name:1"])
@pytest.mark.parametrize("level", ["internal", "public"])
def test_an_export_that_is_killed_leaves_nothing_of_its_name_and_the_next_one_says_so(
    data: Path, tmp_path: Path, place: str, level: str
) -> None:
    out = tmp_path / "out"
    wanted: list[str | Path] = ["export", "--data-dir", data, "--out", out, "--level", level]
    wanted += ["--key-file", tmp_path / "key"] if level == "public" else []
    killed = run(*wanted, fault=place)
    assert killed.code == -9
    assert not out.exists()
    (left,) = (file for file in tmp_path.iterdir() if file.name.startswith("out"))
    assert left.name.startswith("out.unfinished-")
    ended = run(*wanted)
    assert ended.code == 0
    assert f"{left} was left by an export that was killed" in ended.err
    assert (out / "manifest.json").is_file()
    again = run(*wanted)
    assert (again.code, again.out) == (2, "")
    assert f"{out} is there already" in again.err


def test_a_full_disk_ends_with_one_line_and_leaves_nothing(data: Path, tmp_path: Path) -> None:
    # A bound on the size of files is what a full disk is to a writer: a write fails half-way.
    code = 'ulimit -f 200 && exec "$0" export --data-dir "$1" --out "$2" --format jsonl'
    ended = subprocess.run(
        ["sh", "-c", code, CIVICSKY, data, tmp_path / "out"],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"civicsky: {tmp_path / 'out'}: File too large; nothing of it was kept")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_read(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = run("export", "--data-dir", data, "--out", tmp_path / "file" / "out")
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert (
        line
        == f"civicsky: {tmp_path / 'file' / 'out'} cannot be written: Not a directory; name another folder with --out"
    )


@pytest.mark.parametrize(
    ("form", "fewer", "more", "bound"), [("jsonl", 2_000, 20_000, 20), ("parquet", 12_000, 36_000, 40)]
)
def test_more_rows_need_no_more_memory(tmp_path: Path, form: str, fewer: int, more: int, bound: float) -> None:
    """Held as Python's objects a post takes more than 5 kB here: 18,000 of them 90 MB, 24,000 of them 120 MB."""
    peaks = []
    for posts in (fewer, more):
        folder = tmp_path / str(posts)
        folder.mkdir()
        large_store.fill(folder, posts)
        told, peak = large_store.run_with_peak(
            [CIVICSKY, "export", "--data-dir", folder, "--out", folder / "out", "--format", form, "--json"]
        )
        assert json.loads(told)["posts"]["exported"] == posts - posts // 50
        peaks.append(peak)
    assert peaks[1] - peaks[0] < bound, peaks


def test_the_help_names_every_level(data: Path) -> None:
    out = command.run("export", "--help").out
    assert all(level in out for level in ("internal", "restricted", "public"))
