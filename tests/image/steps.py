"""Makes the image by performing the Dockerfile's own steps in clean roots, runs it, and says how large it is.

    make image-steps [ARGS='--extras "export research" --folder FOLDER']

Where no container engine is at hand. It needs root, mmdebstrap and a Debian mirror. What differs from `docker build`:
Python is Debian's in place of the one in Python's image, and layers, labels and the network are not made.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from image.container import Image
from image.stage import make_base, perform
from support.command import LAST_SEQ, cursor, model_server, query, sample_relay, until
from support.contained import First
from support.recipe import health_command, stages

ROOT = Path(__file__).parents[2]
COMPILERS = {"cc", "gcc", "g++", "c++", "clang", "ld", "as", "make", "cmake", "cargo", "rustc", "go"}
KEY = "key-of-the-model"
SPILL = """
import sqlite3
db = sqlite3.connect("")
db.execute("PRAGMA cache_size=10")
n = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000)"
db.execute(f"CREATE TABLE t AS {n} SELECT randomblob(100000) AS b FROM n")
print(len(db.execute("SELECT b FROM t ORDER BY b").fetchall()))
"""
"""SQLite puts 100 MB aside, which a /tmp of 64 MB does not hold."""
LABELS = 373
"""Posts of the sample that are there at its end, and all get a label."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--extras", default="", help="as the build argument EXTRAS")
    parser.add_argument("--folder", type=Path, help="work here and leave the roots; a base that is there is used again")
    told = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("mmdebstrap"):
        print("image-steps: needs root, and what Debian calls mmdebstrap", file=sys.stderr)
        return 2
    with working_in(told.folder) as folder:
        image = built(folder, told.extras)
        sizes(folder / "base", image)
        nothing_to_build_with(folder / "base", image)
        with sample_relay() as relay, model_server(folder / "asked", "--key", KEY) as model:
            lives(image, relay, model)
        if {"export", "research"} <= set(told.extras.split()):
            writes_reports(image)
    print("image: all as it should be")
    return 0


@contextmanager
def working_in(chosen: Path | None) -> Iterator[Path]:
    if chosen:
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen
        return
    with TemporaryDirectory(prefix="civicsky-image-") as folder:
        yield Path(folder)


def built(folder: Path, extras: str) -> Image:
    if not (folder / "base").exists():
        print("image: a clean root with Debian's Python", flush=True)
        make_base(folder / "base")
    for old in ("build", "stage1", "data", "secrets"):
        shutil.rmtree(folder / old, ignore_errors=True)
    (folder / "asked").touch()
    made = perform(stages(ROOT / "Dockerfile"), folder / "base", folder, ROOT, {"EXTRAS": extras})
    data, secrets = folder / "data", folder / "secrets"
    # A fresh volume has the owner and the mode of the folder in the image.
    subprocess.run(["cp", "--archive", made.root / "data", data], check=True)
    secrets.mkdir()
    (secrets / "label.api_key").write_text(KEY + "\n")
    (made.root / "run/secrets").mkdir()
    return Image(made, data, secrets)


def megabytes(folder: Path, *, beside: Path | None = None) -> float:
    """Disk use as `du` has it; what is hard-linked counts once."""
    said = subprocess.run(["du", "-sk", folder], capture_output=True, text=True, check=True).stdout
    return int(said.split()[0]) / 1000 - (megabytes(beside) if beside else 0)


def sizes(base: Path, image: Image) -> None:
    root = image.made.root
    pack = ["sh", "-c", 'tar -C "$1" -c opt/civicsky | gzip | wc -c', "sh", str(root)]
    packed = subprocess.run(pack, capture_output=True, check=True).stdout
    print(f"image: the environment /opt/civicsky: {megabytes(root / 'opt/civicsky'):.0f} MB (du)")
    print(f"image: packed by gzip: {int(packed) / 1e6:.0f} MB")
    print(f"image: all that it adds to its base: {megabytes(root, beside=base):.0f} MB")
    print(f"image: with Debian's Python as base: {megabytes(root):.0f} MB")


def nothing_to_build_with(base: Path, image: Image) -> None:
    """No compiler, no installer, nothing that gives a user more rights, beyond what the base has."""
    root = image.made.root
    new = {path.relative_to(root) for path in root.rglob("*")} - {path.relative_to(base) for path in base.rglob("*")}
    programs = {path.name for path in new if path.parent.name in {"bin", "sbin"}}
    assert "civicsky" in programs
    assert not programs & {*COMPILERS, "pip", "pip3"}
    assert not any("site-packages/pip" in str(path) for path in new)
    assert not [path for path in new if not (root / path).is_symlink() and (root / path).stat().st_mode & 0o6000]


def lives(image: Image, relay: str, model: str) -> None:
    """It collects, labels and stores, is healthy by its own command, leaves no zombie, and ends on SIGTERM with 0."""
    settings = {
        "CIVICSKY_SOURCE__RELAYS": json.dumps([relay]),
        "CIVICSKY_SOURCE__START": "window",
        "CIVICSKY_LABEL__MODEL_URL": model,
        "CIVICSKY_LABEL__MODEL": "mock",
        "CIVICSKY_SAMPLE__POSTS_PER_DAY": "0",
        "CIVICSKY_WORKER__PROCESSES": "2",
    }
    health = health_command(image.made.stage.one("HEALTHCHECK"))
    with image.running(settings=settings) as first:
        until(lambda: cursor(image.data) > 0 or not running(first), "the first frames")
        assert running(first), image.ended(first).err
        workers = [pid for pid in first.members() if "anyio" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert len(workers) == 2
        until(lambda: cursor(image.data) >= LAST_SEQ, "the end of the sample")
        until(lambda: labelled(image.data) == LABELS, "all labels in the store")
        until(lambda: image.execute(first, health, settings).code == 0, "the health check's 0")
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not set(workers) & set(first.members()), "process 1 to ask about its dead workers")
        confined(first.pid)
        written = image.execute(first, ["find", "/tmp", "-mindepth", "1"], settings).out.split()  # noqa: S108
        refused = image.execute(first, ["touch", "/opt/civicsky/x", "/x", "/run/secrets/x"], settings).err
        assert refused.count("Read-only file system") == 3, refused
        spilled = image.execute(first, ["python", "-c", SPILL], settings)
        assert spilled.out == "1000\n", spilled.err
        ended = image.ended(first, signal.SIGTERM)
    assert ended.code == 0, ended.err
    assert re.search(r"1,649 frames, 601 posts, 416 kept, \d+ labelled$", ended.out.strip()), ended.out
    print(f"image: {ended.out.strip()}")
    print(f"image: written beside the volume: {', '.join(written) or 'nothing'}")
    files = {file.name: oct(file.stat().st_mode & 0o777) for file in image.data.iterdir()}
    assert all(file.stat().st_uid == 10001 for file in image.data.iterdir())
    print(f"image: written to the volume: {files}")
    with image.running(*health[1:], settings=settings) as first:
        assert image.ended(first).code == 1, "healthy without a service"


def running(first: First) -> bool:
    return first.process.poll() is None


def labelled(folder: Path) -> int:
    sql = "SELECT count(*) FROM posts WHERE doc ->> '$.labels.civic' IS NOT NULL AND doc ->> '$.state' = 'live'"
    rows = query(folder / "posts.db", sql)
    return int(rows[0][0]) if rows else 0


def confined(pid: int) -> None:
    """Its user, no capability at all, and no way to one."""
    said = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert set(said["Uid"].split()) == set(said["Gid"].split()) == {"10001"}
    assert {said[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert said["NoNewPrivs"] == "1"
    assert said["NSpid"].split()[-1] == "1"


def writes_reports(image: Image) -> None:
    """The extras: Parquet and figures, from a root that cannot be written."""
    days = ["--since", "2020-01-01", "--until", "2030-01-01"]
    for command in (
        ["export", "--format", "parquet", "--out", "/data/export"],
        ["report", *days, "--out", "/data/report"],
    ):
        with image.running(*command, settings={}) as first:
            ended = image.ended(first)
            assert ended.code == 0, ended.err
    print(f"image: {sorted(path.name for path in (image.data / 'export').iterdir())}, report")


if __name__ == "__main__":
    sys.exit(main())
