"""No committed file names the host of a package registry: which one is used is each machine's own business."""

import subprocess

from docs.pages import ROOT

# Put together from pieces, so that this file is not found by itself.
HOSTS = [
    "pypi" + ".org",
    "pypi.python" + ".org",
    "python" + "hosted.org",
    "npm" + "js.org",
    "npm" + "js.com",
    "yarn" + "pkg.com",
    "deb.deb" + "ian.org",
    "ftp.deb" + "ian.org",
    "security.deb" + "ian.org",
    "archive.deb" + "ian.org",
    "snapshot.deb" + "ian.org",
    "packages.deb" + "ian.org",
]


def test_no_committed_file_names_the_host_of_a_package_registry() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    files = [ROOT / name for name in listed.decode().split("\0") if name]
    assert len(files) > 50
    found = [
        f"{file.relative_to(ROOT)}: {host}"
        for file in files
        if file.is_file()
        for host in HOSTS
        if host.encode() in file.read_bytes().lower()
    ]
    assert not found
