import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from civicsky.datadir import NETWORK, Role, existing, file_system, holding, locked, prepare
from civicsky.errors import Usage

# Lines of /proc/self/mountinfo as they stand on a workstation, a cluster node and in a container.
WORKSTATION = """\
22 28 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
28 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw,errors=remount-ro
31 28 0:26 / /dev/shm rw,nosuid,nodev shared:4 - tmpfs tmpfs rw,inode64
95 28 259:1 / /boot/efi rw,relatime shared:50 - vfat /dev/nvme0n1p1 rw,fmask=0077
101 28 8:1 / /home rw,relatime shared:55 - xfs /dev/sda1 rw,attr2
130 101 0:52 / /home/me/nas rw,relatime shared:70 - cifs //nas/me rw,vers=3.1.1
131 101 0:53 / /home/me/My\\040Files rw,relatime shared:71 - fuse.sshfs me@far: rw
132 28 0:54 / /mnt/tab\\011new\\012line\\134slash rw,relatime shared:72 - nfs far:/x rw
"""
CLUSTER = """\
60 0 0:20 / / rw,relatime - rootfs rootfs rw
61 60 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw
77 61 0:40 / /home rw,relatime shared:31 - nfs4 filer:/export/home rw,vers=4.2,hard
80 61 0:41 / /scratch rw,relatime shared:32 - lustre 10.0.0.1@o2ib:/scratch rw,flock
83 61 0:44 / /work rw,relatime shared:34 master:2 - gpfs gpfs0 rw
85 77 8:17 / /home/local rw,relatime shared:36 - xfs /dev/sdb1 rw
88 61 0:47 / /net rw,relatime shared:38 - autofs /etc/auto.net rw,fd=6
89 88 0:48 / /net/a rw,relatime shared:39 - autofs auto.a rw,fd=7
90 89 0:49 / /net/a rw,relatime shared:40 - nfs4 a:/x rw
"""
CONTAINER = """\
1213 1101 0:240 / / rw,relatime master:411 - overlay overlay rw,lowerdir=/var/l1:/var/l2,upperdir=/var/u,workdir=/var/w
1214 1213 0:243 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
1220 1213 254:1 /docker/volumes/v1/_data /data rw,relatime - ext4 /dev/vda1 rw,discard
1221 1213 0:250 / /data/shared rw,relatime - nfs4 filer:/shared rw
1222 1213 254:1 /docker/x/resolv.conf /etc/resolv.conf rw,relatime - ext4 /dev/vda1 rw,discard
"""


# ---- the file system under a path ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mountinfo", "path", "kind"),
    [
        (WORKSTATION, "/", "ext4"),
        (WORKSTATION, "/srv/data", "ext4"),
        (WORKSTATION, "/home", "xfs"),
        (WORKSTATION, "/home/me/data", "xfs"),
        (WORKSTATION, "/homestead", "ext4"),
        (WORKSTATION, "/home/me/nas", "cifs"),
        (WORKSTATION, "/home/me/nas/data", "cifs"),
        (WORKSTATION, "/home/me/nasty", "xfs"),
        (WORKSTATION, "/home/me/My Files/data", "fuse.sshfs"),
        (WORKSTATION, "/home/me/My", "xfs"),
        (WORKSTATION, "/mnt/tab\tnew\nline\\slash/data", "nfs"),
        (WORKSTATION, "/proc/1", "proc"),
        (CLUSTER, "/opt/data", "ext4"),
        (CLUSTER, "/home/me", "nfs4"),
        (CLUSTER, "/home/local/me", "xfs"),
        (CLUSTER, "/home/localhost", "nfs4"),
        (CLUSTER, "/scratch/me/data", "lustre"),
        (CLUSTER, "/work/me", "gpfs"),
        (CLUSTER, "/net/a/b", "nfs4"),
        (CLUSTER, "/net/b", "autofs"),
        (CONTAINER, "/", "overlay"),
        (CONTAINER, "/var/lib/data", "overlay"),
        (CONTAINER, "/data", "ext4"),
        (CONTAINER, "/data/x", "ext4"),
        (CONTAINER, "/data/shared/x", "nfs4"),
        (CONTAINER, "/etc/resolv.conf", "ext4"),
    ],
)
def test_the_innermost_mount_that_holds_a_path_decides(mountinfo: str, path: str, kind: str) -> None:
    assert file_system(Path(path), mountinfo) == kind


@pytest.mark.parametrize(
    "name", ["Müller", "日本 語", "\\x41", "\\n", "\\101", "a\x85b\u2028c", "a\rb", "\udcff", "tab\t", "x#y"]
)
def test_a_mount_may_have_any_name(name: str) -> None:
    escaped = name
    for char in "\\ \t\n":
        escaped = escaped.replace(char, f"\\{ord(char):03o}")
    mountinfo = f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:9 / /mnt/{escaped} rw shared:1 - nfs4 far:/x rw\n"
    assert file_system(Path(f"/mnt/{name}/data"), mountinfo) == "nfs4"
    assert file_system(Path("/mnt/other"), mountinfo) == "ext4"


def test_the_table_of_mounts_may_hold_names_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Path("/proc/self/mountinfo").read_bytes() + b"9 1 0:9 / /mnt/\xff\r rw - nfs4 far:/x rw\n"
    monkeypatch.setattr(Path, "read_bytes", lambda _path: table)
    assert prepare(tmp_path) == tmp_path
    with pytest.raises(Usage, match=r"on a network file system \(nfs4\)"):
        prepare(Path(os.fsdecode(b"/mnt/\xff\r/data")))


def test_of_two_mounts_at_one_place_the_later_lies_on_top() -> None:
    local, far = "61 60 8:2 / /data rw - ext4 /dev/sda2 rw\n", "62 60 0:4 / /data rw - nfs4 far:/x rw\n"
    assert file_system(Path("/data/x"), local + far) == "nfs4"
    assert file_system(Path("/data/x"), far + local) == "ext4"


def test_optional_fields_of_a_mount_change_nothing() -> None:
    for optional in ("", "shared:1 ", "shared:1 master:2 propagate_from:3 unbindable "):
        line = f"61 60 8:2 / /data rw,relatime {optional}- lustre a@tcp:/x rw\n"
        assert file_system(Path("/data/x"), line) == "lustre"


def test_without_a_mount_that_holds_the_path_there_is_no_answer() -> None:
    assert file_system(Path("/data"), "") == ""
    assert file_system(Path("/data"), "61 60 8:2 / /other rw - ext4 /dev/sda2 rw\n") == ""


def test_the_network_file_systems_of_clusters_are_known_and_local_ones_are_not_among_them() -> None:
    assert {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "ceph", "fuse.sshfs", "9p", "afs"} <= NETWORK
    assert not {"ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs", "ext3", "vfat"} & NETWORK


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_the_folder_is_made_with_its_parents_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert prepare(folder) == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_there_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    assert prepare(tmp_path) == tmp_path
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_relative_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert prepare(Path("data")) == tmp_path / "data"
    assert prepare(Path("~/data")) == tmp_path / "home" / "data"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(Usage) as caught:
            prepare(folder)
        assert str(caught.value).startswith(f"data directory {folder} cannot be written: ")
        assert "--data-dir" in str(caught.value)


@pytest.fixture
def disk_is_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every file system here counts as a network one; gives the kind of the one that tests write to."""
    kind = file_system(tmp_path, Path("/proc/self/mountinfo").read_text())
    assert kind
    monkeypatch.setattr("civicsky.datadir.NETWORK", NETWORK | {kind})
    return kind


def test_a_folder_on_a_network_file_system_is_refused_before_it_is_touched(tmp_path: Path, disk_is_far: str) -> None:
    with pytest.raises(Usage) as caught:
        prepare(tmp_path / "data")
    assert str(caught.value) == (
        f"data directory {tmp_path / 'data'} is on a network file system ({disk_is_far}), where SQLite loses data; "
        "name a folder on a local disk with --data-dir"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_journal_is_not_a_data_directory(tmp_path: Path) -> None:
    with pytest.raises(
        Usage, match=f"data directory {tmp_path} holds no journal.db; name the right one with --data-dir"
    ):
        existing(tmp_path)
    (tmp_path / "journal.db").mkdir()
    with pytest.raises(Usage):
        existing(tmp_path)
    (tmp_path / "journal.db").rmdir()
    (tmp_path / "journal.db").touch()
    assert existing(tmp_path) == tmp_path


# ---- locks -----------------------------------------------------------------------------------------------------------

HOLD = """
import sys
import threading
from pathlib import Path
from civicsky.datadir import locked
with locked(Path(sys.argv[1]), tuple(sys.argv[2:])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, *roles: Role) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds locks until this context ends, or it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *roles], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def refused(folder: Path, *roles: Role) -> str:
    with pytest.raises(Usage) as caught, locked(folder, roles):
        pass
    return str(caught.value)


def test_a_lock_that_another_process_holds_is_refused_and_its_holder_named(tmp_path: Path) -> None:
    with holder(tmp_path, "collect") as process:
        told = refused(tmp_path, "collect")
        assert f'the role \'collect\' is held by {{"pid": {process.pid}, "host": ' in told
        assert told.startswith(f"data directory {tmp_path}: ")
        assert told.endswith("; stop it, or use another --data-dir")
        assert "\n" not in told


def test_each_role_has_a_lock_of_its_own(tmp_path: Path) -> None:
    with holder(tmp_path, "collect"):
        with locked(tmp_path, ("label",)):
            pass
        assert "'collect'" in refused(tmp_path, "label", "collect")
        # What was taken before the refusal is given back.
        with locked(tmp_path, ("label",)):
            pass
    with holder(tmp_path, "collect", "label"):
        assert "'collect'" in refused(tmp_path, "collect")
        assert "'label'" in refused(tmp_path, "label")


def test_two_data_directories_do_not_mind_each_other(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with holder(tmp_path / "a", "collect"), locked(tmp_path / "b", ("collect",)):
        pass


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    with holder(tmp_path, "collect") as process:
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        with locked(tmp_path, ("collect",)):
            said = json.loads((tmp_path / "collect.lock").read_text())
            assert said["pid"] == os.getpid()
            assert set(said) == {"pid", "host", "since"}


def test_a_lock_ends_with_its_context(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path, ("collect", "label")):
            assert "'collect'" in refused(tmp_path, "collect")
    with holder(tmp_path, "collect", "label"):
        pass


def test_a_lock_ends_with_its_context_also_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path, ("collect",)):
        raise ZeroDivisionError
    with locked(tmp_path, ("collect",)):
        pass


def test_a_holder_with_a_shorter_name_leaves_nothing_of_the_former_one(tmp_path: Path) -> None:
    (tmp_path / "collect.lock").write_text("x" * 400)
    with locked(tmp_path, ("collect",)):
        assert json.loads((tmp_path / "collect.lock").read_text())["pid"] == os.getpid()


def test_who_only_looks_at_a_lock_keeps_nobody_from_taking_it(tmp_path: Path) -> None:
    with locked(tmp_path, ("label",)):
        assert holding(tmp_path, "label").held
        assert f'"pid": {os.getpid()}' in holding(tmp_path, "label").holder
    left = holding(tmp_path, "label")
    assert (left.held, f'"pid": {os.getpid()}' in left.holder) == (False, True)
    assert holding(tmp_path, "collect") == (False, "")
    with (tmp_path / "label.lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        done = threading.Timer(0.08, fcntl.flock, (looking, fcntl.LOCK_UN))
        done.start()
        with locked(tmp_path, ("label",)):
            assert holding(tmp_path, "label").held
        done.join()
