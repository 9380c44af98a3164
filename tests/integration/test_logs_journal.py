"""`civicsky logs` finds the service in the journal of systemd: a real journald, in a mount namespace of its own."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import skip
from support.command import CIVICSKY, environment, until

JOURNALD = "/lib/systemd/systemd-journald"
SOCKET = "/run/systemd/journal/socket"


def line(n: int, event: str = "minute") -> str:
    return json.dumps({"n": n, "event": event, "level": "info", "timestamp": "2026-11-24T00:37:49Z"})


def say(unit: str, message: str) -> None:
    """What journald gets from a service of the user's manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto(f"MESSAGE={message}\nUSER_UNIT={unit}.service\n".encode(), SOCKET)


def inside(folder: Path) -> dict[str, Any]:
    """Done within the namespace, with a /run of its own."""
    Path("/run/systemd/system").mkdir(parents=True)
    journald = subprocess.Popen([JOURNALD], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    command = [CIVICSKY, "logs", "--data-dir", str(folder)]
    try:
        until(lambda: Path(SOCKET).exists(), "journald")
        nothing = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        for unit, n in (("civicsky", 1), ("other", 2), ("civicsky-label", 3)):
            say(unit, line(n))
        say("civicsky", "civicsky: the disk is full")

        def shown() -> str:
            ran = subprocess.run([*command, "--json"], env=environment(), capture_output=True, text=True, check=False)
            return ran.stdout if ran.stdout.count("\n") == 2 else ""

        whole = until(shown, "both lines")
        out = folder / "followed"
        with out.open("w") as stream:
            follower = subprocess.Popen([*command, "--follow"], env=environment(), stdout=stream)
        until(lambda: "disk is full" in out.read_text(), "the last lines")
        say("civicsky-collect", line(4))
        until(lambda: "n=4" in out.read_text(), "a new line")
        follower.send_signal(2)
        code = follower.wait(30)
        left = subprocess.run(["pgrep", "-P", str(follower.pid)], capture_output=True, text=True, check=False).stdout
        return {
            "nothing": [nothing.returncode, nothing.stderr], "whole": whole, "followed": out.read_text(),
            "code": code, "left": left,
        }  # fmt: skip
    finally:
        journald.terminate()
        journald.wait()


def test_the_journal_of_systemd_is_read_by_itself_and_followed(tmp_path: Path) -> None:
    if os.geteuid() or not shutil.which("journalctl") or not Path(JOURNALD).exists():
        skip("a journald of its own needs root and systemd's programs")
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh", sys.executable, __file__,
         tmp_path],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    code, err = found["nothing"]
    assert (code, "nor systemd's journal of civicsky is there" in err) == (2, True)
    assert [json.loads(one)["n"] for one in found["whole"].splitlines()] == [1, 3]
    followed = found["followed"].splitlines()
    assert [one.rpartition(" ")[2] for one in followed] == ["n=1", "n=3", "full", "n=4"]
    assert (found["code"], found["left"]) == (0, "")


if __name__ == "__main__":
    print(json.dumps(inside(Path(sys.argv[1]))))
