"""Only local folders that are ours to write are offered for the databases."""

import os
from pathlib import Path

import pytest

from civicsky import places
from civicsky.errors import Usage
from civicsky.places import candidates, check

FAR = "nfs4"


def kinds(**by_folder: str):  # type: ignore[no-untyped-def]
    """Types of file systems by the end of a path; all else is local."""
    return lambda path: next((kind for end, kind in by_folder.items() if end in Path(path).parts), "ext4")


def offered(tmp_path: Path, **environment: str) -> list[Path]:
    home = {"HOME": str(tmp_path / "home")}
    return [one.folder for one in candidates(home | environment, "me", kinds(far=FAR, mem="tmpfs"))]


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("home", "scratch", "far", "mem", "shared", "shared/me", "job42"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(places, "_SHARED", (str(tmp_path / "shared"), str(tmp_path / "missing")))


def test_a_local_home_comes_first_then_scratch_then_what_all_share(tmp_path: Path) -> None:
    found = offered(tmp_path, SCRATCH=str(tmp_path / "scratch"), TMPDIR=str(tmp_path / "job42"))
    assert found == [
        tmp_path / "home/.local/share/civicsky",
        tmp_path / "scratch/civicsky",
        tmp_path / "shared/me/civicsky",
        tmp_path / "shared/civicsky-me",
        tmp_path / "job42/civicsky-me",
    ]


def test_network_file_systems_memory_and_what_is_not_there_are_not_offered(tmp_path: Path) -> None:
    for name in ("far", "mem", "nowhere", ""):
        found = offered(tmp_path, SCRATCH=str(tmp_path / name) if name else "", HOME=str(tmp_path / "far"))
        assert found == [tmp_path / "shared/me/civicsky", tmp_path / "shared/civicsky-me"]


def test_a_link_to_a_network_file_system_is_not_offered(tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(tmp_path / "far")
    assert tmp_path / "linked/civicsky" not in offered(tmp_path, SCRATCH=str(tmp_path / "linked"))


def test_a_folder_that_goes_with_the_job_or_the_next_start_is_not_offered(tmp_path: Path) -> None:
    folder = tmp_path / "job42"
    assert folder / "civicsky-me" not in offered(tmp_path, TMPDIR=str(folder), SLURM_JOB_ID="42")
    assert folder / "civicsky-me" in offered(tmp_path, TMPDIR=str(folder), SLURM_JOB_ID="43")
    assert Path("/tmp/civicsky-me") not in offered(tmp_path, TMPDIR="/tmp/")  # noqa: S108


def test_each_is_told_with_its_kind_and_room(tmp_path: Path) -> None:
    (first, *_) = candidates({"HOME": str(tmp_path / "home")}, "me", kinds())
    assert first.kind == "ext4"
    assert first.free == pytest.approx(os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize, rel=0.2)
    assert f"{first.folder} (ext4, " in str(first)
    assert " GB free)" in str(first)


def test_a_folder_that_belongs_to_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shared" / "civicsky-me"
    folder.mkdir(mode=0o777)
    check(folder)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(Usage, match="belongs to another user"):
        check(folder)
    assert folder not in offered(tmp_path)


@pytest.mark.parametrize("name", ["file/below", "loop/x"])
def test_a_folder_that_cannot_be_there_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(Usage, match="name another with --data-dir"):
        check(tmp_path / name)
