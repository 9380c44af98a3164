"""Reads the Dockerfile and .dockerignore: stages of instructions, with build arguments put in."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dockerfile_parse import DockerfileParser


@dataclass
class Stage:
    """What stands between one FROM and the next."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    """(instruction, value) in order."""

    def values(self, instruction: str) -> list[str]:
        return [value for kind, value in self.steps if kind == instruction]

    def one(self, instruction: str) -> str:
        (value,) = self.values(instruction)
        return value


def stages(dockerfile: Path, **args: str) -> list[Stage]:
    """All stages, the last of which is the image. Of build arguments only those before the first FROM are put in."""
    with dockerfile.open("rb") as stream:
        steps = [(s["instruction"], s["value"]) for s in DockerfileParser(fileobj=stream).structure]
    known: dict[str, str] = {}
    found: list[Stage] = []
    for kind, value in steps:
        if kind == "COMMENT":
            continue
        if kind == "FROM":
            base, _, name = re.sub(r"\$\{(\w+)\}", lambda m: known[m[1]], value).partition(" AS ")
            found.append(Stage(base, name))
        elif found:
            found[-1].steps.append((kind, value))
        else:
            assert kind == "ARG", f"{kind} before FROM"
            name, _, default = value.partition("=")
            known[name] = args.get(name, default)
    return found


def words(value: str) -> list[str]:
    """A command in JSON form, or words."""
    return [str(word) for word in json.loads(value)] if value.startswith("[") else shlex.split(value)


def pairs(value: str) -> dict[str, str]:
    """`NAME=VALUE ...` of ENV, ARG and LABEL."""
    return {name: given for name, _, given in (word.partition("=") for word in shlex.split(value))}


@dataclass
class Copied:
    """A COPY: sources, target, and the stage that they come from; empty: the folder of the build."""

    sources: list[str]
    target: str
    stage: str


def copied(value: str) -> Copied:
    given = words(value)
    stage = ""
    while given[0].startswith("--"):
        name, _, what = given.pop(0).partition("=")
        assert name == "--from", f"COPY {name} is not known here"
        stage = what
    return Copied(given[:-1], given[-1], stage)


def health_command(value: str) -> list[str]:
    """The command of a HEALTHCHECK."""
    return words(value.partition("CMD ")[2])


def let_through(dockerignore: Path, path: str) -> bool:
    """Whether a file gets into the build's folder: the last rule that fits it, or a folder above it, decides."""
    through = True
    for line in dockerignore.read_text(encoding="utf-8").splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = _pattern(rule.removeprefix("!"))
        places = [str(place) for place in (PurePosixPath(path), *PurePosixPath(path).parents)][:-1]
        if any(pattern.fullmatch(place) for place in places):
            through = rule.startswith("!")
    return through


def _pattern(rule: str) -> re.Pattern[str]:
    """Docker's: `*` within a name, `**` over any number of folders."""
    pieces = re.split(r"(\*\*/|\*\*|\*)", rule)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return re.compile("".join(meaning.get(piece, re.escape(piece)) for piece in pieces))
