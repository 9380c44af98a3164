"""Performs the Dockerfile's instructions, each stage in a folder of its own that is its root. Needs root itself."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from support.recipe import Stage, copied, let_through, pairs

PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
LENT = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
"""What a step that installs sees of this machine, so that it gets to the package index as this machine does."""
DEVICES = "null zero full random urandom tty"
ALONE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc"]
INSIDE = f"""
mount --bind "$root" "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t tmpfs -o nosuid,mode=755 tmpfs "$root/dev"
for device in {DEVICES}; do touch "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"; done
"""
"""Shell: `$root` gets what the kernel lends a container, in this mount namespace alone."""


@dataclass
class Made:
    """A stage that was performed, and what it says of itself."""

    root: Path
    stage: Stage
    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH, "HOME": "/root"})
    workdir: str = "/"
    user: str = "0:0"
    args: dict[str, str] = field(default_factory=dict)


def make_base(root: Path) -> None:
    """Debian 12 with its own Python where the recipe begins with Python's image; both put `python` into /usr/local/bin.

    The packages come from where this machine has them from.
    """
    sources = [*Path("/etc/apt").glob("sources.list"), *Path("/etc/apt/sources.list.d").glob("*.sources")]
    sources += Path("/etc/apt/sources.list.d").glob("*.list")
    options = root.with_suffix(".apt")
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    options.write_text("\n".join(re.findall(r"^Acquire::(?:https?|Check|Retries).*;$", dump, re.MULTILINE)) + "\n")
    subprocess.run(
        [
            "mmdebstrap", "--quiet", "--variant=minbase", f"--aptopt={options}",
            "--include=python3.11,python3.11-venv,ca-certificates,netbase,tzdata", "bookworm", root, *sources,
        ],
        check=True,
    )  # fmt: skip
    for name in ("python", "python3"):
        (root / "usr/local/bin" / name).symlink_to("/usr/bin/python3.11")


def perform(stages: list[Stage], base: Path, folder: Path, context: Path, given: Mapping[str, str]) -> Made:
    """All stages in their order; the last one. `given` are build arguments."""
    made: dict[str, Made] = {}
    for number, stage in enumerate(stages):
        one = Made(folder / (stage.name or f"stage{number}"), stage)
        subprocess.run(["cp", "--archive", "--reflink=auto", base, one.root], check=True)
        for kind, value in stage.steps:
            print(f"image: {one.root.name}: {kind} {value[:110]}", flush=True)
            step(one, kind, value, made, context, given)
        made[stage.name] = one
    return one


def step(one: Made, kind: str, value: str, made: Mapping[str, Made], context: Path, given: Mapping[str, str]) -> None:
    """One instruction. An unknown one is an error: what is not performed is not shown to work."""
    match kind:
        case "ARG":
            one.args |= {name: given.get(name, default) for name, default in pairs(value).items()}
        case "ENV":
            one.env |= {name: put_in(text, one.env) for name, text in pairs(value).items()}
        case "WORKDIR":
            one.workdir = value
            below(one.root, value).mkdir(parents=True, exist_ok=True)
        case "USER":
            one.user = value
        case "COPY":
            copy(one, value, made, context)
        case "RUN":
            run(one, value)
        case "LABEL" | "VOLUME" | "HEALTHCHECK" | "STOPSIGNAL" | "ENTRYPOINT" | "CMD":
            pass  # they say how the image is run
        case _:
            raise AssertionError(f"{kind} is not known here")


def put_in(text: str, env: Mapping[str, str]) -> str:
    """Variables by their values."""
    return re.sub(r"\$\{?(\w+)\}?", lambda found: env[found[1]], text)


def below(root: Path, path: str) -> Path:
    return root / str(PurePosixPath("/", path)).lstrip("/")


def copy(one: Made, value: str, made: Mapping[str, Made], context: Path) -> None:
    """Of a folder its contents, as Docker does; of the build's folder only what .dockerignore lets through."""
    given = copied(value)
    for source in given.sources:
        target = below(one.root, str(PurePosixPath(one.workdir, given.target)))
        origin = below(made[given.stage].root, source) if given.stage else context / source
        if origin.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif given.target.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
            target /= origin.name
        if given.stage:
            subprocess.run(["cp", "--archive", f"{origin}/.", target], check=True)
            continue
        for file in sorted(origin.rglob("*")) if origin.is_dir() else [origin]:
            if file.is_file() and let_through(context / ".dockerignore", str(file.relative_to(context))):
                place = target / file.relative_to(origin) if origin.is_dir() else target
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
                place.chmod(0o755 if os.access(file, os.X_OK) else 0o644)


def run(one: Made, command: str) -> None:
    """A RUN by `sh -c`, as the stage's user, with the network of this machine."""
    lent = [Path(path) for path in LENT if Path(path).exists()]
    fresh = [place for path in lent if not (place := below(one.root, str(path))).exists()]
    for place in fresh:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    machine = {
        name: text for name, text in os.environ.items() if name.startswith("PIP_") or name.lower().endswith("_proxy")
    }
    binds = "\n".join(f'mount --bind {path} "$root{path}"' for path in lent)
    env = [f"{name}={text}" for name, text in {**machine, **one.env, **one.args}.items()]
    line = shlex.join(["env", "-i", *env, "sh", "-c", f"cd {shlex.quote(one.workdir)}\n{command}"])
    script = f'root="$1"\n{INSIDE}{binds}\nexec chroot --userspec={one.user} "$root" {line}'
    try:
        subprocess.run([*ALONE, script, "sh", one.root], check=True)
    finally:
        for place in fresh:
            place.unlink()
