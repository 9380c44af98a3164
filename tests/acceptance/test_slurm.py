"""The job scripts in a real shell: commands of Slurm that only note what was asked, and the service itself."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.command import CIVICSKY, environment, query, until
from support.ports import free_port

SLURM = Path(__file__).parents[2] / "deploy" / "slurm"
NOTE = 'printf "%s\\n" "$(basename "$0") $*" >> "$NOTES"\n'
KEY = "sk-sekret-123"


class Node:
    """A node's commands, and what was asked of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        self.notes = folder / "notes"
        self.notes.touch()
        self.variables = {
            "NOTES": str(self.notes), "HOME": str(folder), "SCRIPT": "/home/me/civicsky.sbatch", "BACKUPS": "",
            "DATA_DIR": str(folder / "data"), "CONFIG": str(folder / "civicsky.toml"),
            "PATH": f"{self.bin}:{os.environ['PATH']}", "SLURM_JOB_NAME": "civicsky",
        }  # fmt: skip
        self.command("sbatch", 'echo 43 >> "$HOME/pending"')
        self.command("squeue", 'cat "$HOME/pending" 2>/dev/null; true')
        self.command("scancel", 'rm -f "$HOME/pending"')

    def command(self, name: str, then: str = "") -> Path:
        file = self.bin / name
        file.write_text(f"#!/bin/sh\n{NOTE}{then}\n")
        file.chmod(0o755)
        return file

    def start(self, script: str, **variables: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["bash", SLURM / script], env=environment() | self.variables | variables, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def asked(self, name: str = "") -> list[str]:
        return [line for line in self.notes.read_text().splitlines() if line.startswith(name)]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def started(node: Node) -> Iterator[list["subprocess.Popen[str]"]]:
    """What a test starts; a group that is left is ended with it."""
    jobs: list[subprocess.Popen[str]] = []
    yield jobs
    for job in jobs:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.communicate()


def ended(job: "subprocess.Popen[str]") -> tuple[int, str]:
    out, _ = job.communicate(timeout=60)
    return job.returncode, out


def service(node: Node, code: int) -> str:
    """A service that only says what it was called with."""
    return str(node.command("civicsky", f"case $1 in run) exit {code};; esac"))


# ---- the job that starts itself again --------------------------------------------------------------------------------


def test_the_signal_before_the_end_reaches_the_service_which_drains_and_one_successor_waits(
    node: Node, relay: str, started: list["subprocess.Popen[str]"]
) -> None:
    (node.folder / "civicsky.toml").write_text(
        f'[source]\nrelays = ["{relay}"]\nstart = "window"\n[appview]\nrecheck = false\n[label]\nmodel = ""\n'
    )
    # Without a model `run` would refuse: the half that collects is enough to see it drain.
    node.command("collects", f'test "$1" != run || {{ shift; exec {CIVICSKY} collect "$@"; }}')
    job = node.start("civicsky.sbatch", CIVICSKY=str(node.bin / "collects"))
    started.append(job)
    journal = node.folder / "data" / "journal.db"
    until(lambda: query(journal, "SELECT count(*) FROM post")[:1] > [(100,)], "posts")
    assert node.asked("sbatch") == ["sbatch --job-name=civicsky --begin=now+5minutes /home/me/civicsky.sbatch"]
    os.kill(job.pid, signal.SIGTERM)  # as --signal=B: does, to the shell alone
    code, out = ended(job)
    assert code == 0, out
    assert re.search(r"^started .*, ended .* kept$", out, re.MULTILINE), "the service's own summary: it drained"
    assert '"why": "SIGTERM"' in out
    assert len(node.asked("sbatch")) == 1
    assert not node.asked("scancel")
    with pytest.raises(ProcessLookupError):  # nobody of its group is left
        os.killpg(job.pid, 0)


def test_a_successor_that_waits_already_is_enough(node: Node, started: list["subprocess.Popen[str]"]) -> None:
    (node.folder / "pending").write_text("42\n")
    job = node.start("civicsky.sbatch", CIVICSKY=service(node, 0))
    started.append(job)
    assert ended(job)[0] == 0
    assert not node.asked("sbatch")


@pytest.mark.parametrize("code", [0, 1])
def test_however_it_ends_there_is_one_successor_and_it_never_comes_at_once(
    node: Node, started: list["subprocess.Popen[str]"], code: int
) -> None:
    for _round in range(3):
        job = node.start("civicsky.sbatch", CIVICSKY=service(node, code))
        started.append(job)
        assert ended(job)[0] == code
    assert len(node.asked("sbatch")) == 1
    assert "--begin=now+5minutes" in node.asked("sbatch")[0]


def test_what_a_person_must_mend_ends_the_chain(node: Node, started: list["subprocess.Popen[str]"]) -> None:
    job = node.start("civicsky.sbatch", CIVICSKY=service(node, 2))
    started.append(job)
    code, out = ended(job)
    assert code == 2
    assert "submit /home/me/civicsky.sbatch again" in out
    assert re.fullmatch(r"scancel --user=\w+ --name=civicsky --state=PENDING", node.asked("scancel")[0])
    assert not (node.folder / "pending").exists()


def test_a_controller_that_does_not_answer_is_asked_again_at_the_end(
    node: Node, started: list["subprocess.Popen[str]"]
) -> None:
    node.command("squeue", 'test -e "$HOME/answers"')
    service(node, 0)
    node.command("late", 'touch "$HOME/answers"; exec civicsky "$@"')
    job = node.start("civicsky.sbatch", CIVICSKY=str(node.bin / "late"))
    started.append(job)
    assert ended(job)[0] == 0
    assert len(node.asked("squeue")) == 2
    assert len(node.asked("sbatch")) == 1


def test_on_another_node_the_newest_backup_comes_back_and_at_the_end_one_is_made(
    node: Node, started: list["subprocess.Popen[str]"]
) -> None:
    backups = node.folder / "back ups"
    for name in (
        "civicsky-20261101T000000Z",
        "civicsky-20261102T000000Z",
        "civicsky-20261102T000000Z-mongodb",
        "other",
    ):
        (backups / name).mkdir(parents=True)
    made = 'case $1 in restore) mkdir -p "$DATA_DIR"; touch "$DATA_DIR/journal.db";; esac'
    program = str(node.command("civicsky", made))
    where = f"--config {node.folder}/civicsky.toml --data-dir {node.folder}/data"
    expected = [
        f"civicsky restore {backups}/civicsky-20261102T000000Z {where}",
        f"civicsky run --if-not-running {where}",
        f"civicsky backup {backups} --keep 3 {where}",
    ]
    for round_ in (expected, expected[1:]):  # what lies here already goes on
        node.notes.write_text("")
        job = node.start("civicsky.sbatch", CIVICSKY=program, BACKUPS=str(backups))
        started.append(job)
        assert ended(job)[0] == 0
        assert node.asked("civicsky") == round_


@pytest.mark.parametrize("code", [1, 2])
def test_a_backup_that_cannot_come_back_starts_no_empty_service(
    node: Node, started: list["subprocess.Popen[str]"], code: int
) -> None:
    (node.folder / "backups" / "civicsky-20261101T000000Z").mkdir(parents=True)
    program = str(node.command("civicsky", f"case $1 in restore) exit {code};; esac"))
    job = node.start("civicsky.sbatch", CIVICSKY=program, BACKUPS=str(node.folder / "backups"))
    started.append(job)
    assert ended(job)[0] == code
    assert [line.split()[1] for line in node.asked("civicsky")] == ["restore"]
    assert bool(node.asked("scancel")) == (code == 2), "who must be asked for help is not called every five minutes"


def test_before_its_end_a_job_has_time_for_what_is_held_and_only_one_runs() -> None:
    text = (SLURM / "civicsky.sbatch").read_text()
    (seconds,) = re.findall(r"^#SBATCH --signal=B:TERM@(\d+)$", text, re.MULTILINE)
    assert int(seconds) >= 180
    for name in ("civicsky.sbatch", "vllm.sbatch", "llama-cpp.sbatch"):
        assert re.search(r"^#SBATCH --dependency=singleton$", (SLURM / name).read_text(), re.MULTILINE)


# ---- the model's server ----------------------------------------------------------------------------------------------

SERVER = """
import os, signal, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
arguments = sys.argv[1:]
port = int(arguments[arguments.index("--port") + 1])
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *_): pass
signal.signal(signal.SIGTERM, lambda *_: (print("server: over", flush=True), os._exit(0)))
with open(os.environ["HOME"] + "/server.pid", "w") as pid:
    pid.write(str(os.getpid()))
with open(os.environ["NOTES"], "a") as notes:
    key = os.environ.get("VLLM_API_KEY") or os.environ.get("LLAMA_API_KEY", "")
    notes.write(f"server {' '.join(arguments)} key={key}\\n")
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


# ---- label workers as an array ---------------------------------------------------------------------------------------

WORKER = """
case $1 in label) ;; *) exit 9 ;; esac
echo "key=$CIVICSKY_LABEL__API_KEY slots=$CIVICSKY_LABEL__SLOTS" >> "$NOTES"
trap 'echo "worker: over" >> "$NOTES"; exit 0' TERM
while :; do sleep 0.05; done
"""


def worker_node(node: Node, program: str, worker: str = WORKER) -> dict[str, str]:
    """What a task of the array needs: a server that can be started, and a worker."""
    variables = model_node(node, program)
    if not shutil.which("curl"):
        node.command(
            "curl", f'exec {sys.executable} -c "import sys, urllib.request as u; u.urlopen(sys.argv[-1])" "$@"'
        )
    variables |= {"NATS": "tls://nats.example.org:4222", "MODEL": "m", "GGUF": "", "PAUSE": "0", "SLOTS": "12"}
    return variables | {
        "CIVICSKY": str(node.command("civicsky", worker)), "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3",
    }  # fmt: skip


@pytest.mark.parametrize(("gguf", "program"), [("", "vllm"), ("/models/Llama 3.gguf", "llama-server")])
def test_a_task_of_the_array_serves_a_model_has_a_worker_ask_it_and_ends_the_worker_first(
    node: Node, started: list["subprocess.Popen[str]"], gguf: str, program: str
) -> None:
    variables = worker_node(node, program) | {"GGUF": gguf}
    job = node.start("worker.sbatch", **variables)
    started.append(job)
    until(lambda: node.asked("key="), "the worker")
    (called,) = node.asked("civicsky")
    model = f"--model-url http://127.0.0.1:{variables['PORT']}/v1 --model m --config {node.folder}/civicsky.toml"
    assert called == f"civicsky label --worker tls://nats.example.org:4222 {model}"
    (key, slots) = re.findall(r"=(\S+)", node.asked("key=")[0])
    assert len(key) == 32, "a key of its own"
    assert slots == "12"
    assert not [line for line in node.asked() if key in line and not line.startswith(("key=", "server"))]
    assert f"--host 127.0.0.1 --port {variables['PORT']}" in node.asked(program)[0]
    os.kill(job.pid, signal.SIGTERM)  # as --signal=B: does, to the shell alone
    code, out = ended(job)
    assert code == 0, out
    assert node.asked()[-1] == "worker: over"
    assert "server: over" in out, "the shell waited for it"
    assert "civicsky" not in out, "nothing was said to be wrong"
    assert not node.asked("scancel")
    with pytest.raises(ProcessLookupError):  # nobody of its group is left
        os.killpg(job.pid, 0)


def test_a_worker_that_a_person_must_help_takes_the_tasks_behind_it_away(
    node: Node, started: list["subprocess.Popen[str]"]
) -> None:
    job = node.start("worker.sbatch", **worker_node(node, "vllm", "exit 2"))
    started.append(job)
    code, out = ended(job)
    assert code == 2
    assert "server: over" in out
    assert node.asked("scancel") == ["scancel --state=PENDING 77"]


def test_a_model_that_dies_ends_its_worker_which_could_only_wait_for_it(
    node: Node, started: list["subprocess.Popen[str]"]
) -> None:
    variables = worker_node(node, "vllm")
    job = node.start("worker.sbatch", **variables)
    started.append(job)
    until(lambda: node.asked("key="), "the worker")
    os.kill(int((node.folder / "server.pid").read_text()), signal.SIGKILL)
    code, out = ended(job)
    assert code == 1
    assert "the model's server ended by itself" in out
    assert node.asked()[-1] == "worker: over"


def test_no_worker_starts_without_an_address_of_nats(node: Node, started: list["subprocess.Popen[str]"]) -> None:
    job = node.start("worker.sbatch", **worker_node(node, "vllm") | {"NATS": ""})
    started.append(job)
    code, out = ended(job)
    assert code != 0
    assert "NATS=tls://HOST:4222 sbatch worker.sbatch" in out
    assert not node.asked("vllm")


# ---- what the model's server is here ---------------------------------------------------------------------------------


def model_node(node: Node, program: str) -> dict[str, str]:
    (node.folder / "server.py").write_text(SERVER)
    node.command(program, f'exec {sys.executable} "$HOME/server.py" "$@"')
    (node.folder / "key").write_text(KEY + "\n")
    (node.folder / "key").chmod(0o600)
    return {
        "KEY_FILE": str(node.folder / "key"), "ADDRESS_FILE": str(node.folder / "address"), "PORT": str(free_port()),
        "GGUF": "/models/Llama 3.gguf",
    }  # fmt: skip


@pytest.mark.parametrize(("script", "program"), [("vllm.sbatch", "vllm"), ("llama-cpp.sbatch", "llama-server")])
def test_a_models_server_tells_its_address_when_it_is_ready_and_ends_with_its_job(
    node: Node, started: list["subprocess.Popen[str]"], script: str, program: str
) -> None:
    if not shutil.which("curl"):
        node.command(
            "curl", f'exec {sys.executable} -c "import sys, urllib.request as u; u.urlopen(sys.argv[-1])" "$@"'
        )
    variables = model_node(node, program)
    job = node.start(script, **variables)
    started.append(job)
    address = Path(variables["ADDRESS_FILE"])
    until(address.exists, "the address")
    assert address.read_text().split()[0] == f"http://127.0.0.1:{variables['PORT']}/v1"
    (called,) = node.asked(program)
    assert KEY not in called, "every user of the node could read it"
    assert "--host 127.0.0.1" in called
    (served,) = node.asked("server")
    assert (f"key={KEY}" in served) == (program == "vllm")
    assert program == "vllm" or f"--api-key-file {variables['KEY_FILE']}" in called
    os.kill(job.pid, signal.SIGTERM)
    code, out = ended(job)
    assert code == 0, out
    assert "server: over" in out, "the shell did not wait for it"
    assert not address.exists()
    assert KEY not in out


@pytest.mark.parametrize("script", ["vllm.sbatch", "llama-cpp.sbatch"])
def test_a_key_that_others_can_read_starts_no_server(
    node: Node, started: list["subprocess.Popen[str]"], script: str
) -> None:
    variables = model_node(node, "vllm") | model_node(node, "llama-server")
    (node.folder / "key").chmod(0o644)
    job = node.start(script, **variables)
    started.append(job)
    code, out = ended(job)
    assert code == 2
    assert "must be yours alone" in out
    assert not node.asked()


@pytest.mark.parametrize(
    ("script", "variables", "code"),
    [("vllm.sbatch", model_node, 7), ("worker.sbatch", worker_node, 1)],
    ids=["alone, with its code", "beside a worker, which does not start"],
)
def test_a_model_that_dies_before_it_is_ready_ends_its_job(
    script: str,
    variables: Callable[[Node, str], dict[str, str]],
    code: int,
    node: Node,
    started: list["subprocess.Popen[str]"],
) -> None:
    told = variables(node, "vllm")
    node.command("vllm", "exit 7")
    node.command("curl", "exit 7")
    node.command("sleep")
    job = node.start(script, **told)
    started.append(job)
    assert ended(job)[0] == code
    assert not node.asked("civicsky")
    assert not (node.folder / "address").exists()
    assert script == "vllm.sbatch" or node.asked("sleep"), "a worker's task that fails at once gives way slowly"


def test_the_tunnel_leads_to_the_node_that_the_address_names_and_is_made_again(
    node: Node, started: list["subprocess.Popen[str]"]
) -> None:
    node.command("ssh", 'echo "http://127.0.0.1:23456/v1 gpu08" > "$HOME/address"')
    (node.folder / "address").write_text("http://127.0.0.1:23456/v1 gpu07\n")
    job = node.start("tunnel.sh", ADDRESS_FILE=str(node.folder / "address"), PAUSE="0.05")
    started.append(job)
    until(lambda: len(node.asked("ssh")) > 2, "three tunnels")
    first, second, *_ = node.asked("ssh")
    assert first.endswith("-L 127.0.0.1:23456:127.0.0.1:23456 gpu07")
    assert second.endswith("-L 127.0.0.1:23456:127.0.0.1:23456 gpu08")
