"""A small model as a gate: posts that it takes for hardly worth a question skip the model that is paid for.

`civicsky dev train-gate` makes a gate's file from posts that people have judged. In the service the gate stands behind
the draw and the cache of answers, before slots and budget: a post whose probability is not below the threshold passes.
Of the others a share is asked about all the same, by a lot of its own (`sample.is_asked`). So every post has a known
probability of being asked, above 0, that depends on its own text and the gate alone; shares weighted by
1 / (p_sampled * p_asked) are unbiased, whatever the gate does not see, and what it costs is seen in those asked anyway.

The decision is made once for a text and a task, and kept in the ledger before anybody is asked. A cached answer is
taken without a decision: whether it was there does not depend on this post's lot.
"""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from civicsky.embedding import Embedding, Identity, load
from civicsky.errors import Usage
from civicsky.model import Judged
from civicsky.settings import Gate as GateSettings, expanded
from civicsky.task import Task, file_hash
from civicsky.together import Together

FORMAT: Final = 1
MAX_BYTES: Final = 1_000_000
_PLACES: Final = 6


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class Measured(_Part):
    """A share with its 95 % interval, clustered by author, on posts that were not trained on."""

    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    n: int = Field(ge=0)
    authors: int = Field(ge=0)


class Gate(_Part):
    """A gate's file."""

    format: int = FORMAT
    made: str
    """When (UTC), and by which civicsky."""
    task: str
    task_version: str
    task_sha256: str
    """Of the task's file: the definition that the judgements followed."""
    field: str
    value: str
    """The posts that are looked for: those whose `field` has this value."""
    model: str
    model_version: str
    model_sha256: str
    gold_sha256: str
    gold_posts: int
    gold_positive: int
    """Of these the posts that have the value."""
    seed: int
    recall_wanted: float = Field(gt=0, lt=1)
    recall: Measured
    """Share of the posts with the value that pass."""
    skipped: Measured
    """Share of all of GOLD's posts that do not pass: the calls saved, in that mix of posts."""
    threshold: float = Field(ge=0, le=1)
    bias: float
    weights: tuple[float, ...]

    @field_validator("format")
    @classmethod
    def _known(cls, number: int) -> int:
        if number != FORMAT:
            raise ValueError(f"is of the format {number}, and this civicsky reads {FORMAT}; train it again")
        return number

    @cached_property
    def version(self) -> str:
        """16 hexadecimal digits: of all that decides, and of where it comes from; not of when it was made.

        Reckoned once: a changed gate is made by `Gate(...)`, since `model_copy` would keep it.
        """
        return hashlib.sha256(self.model_dump_json(exclude={"made"}).encode()).hexdigest()[:16]

    @property
    def identity(self) -> Identity:
        """The model whose vectors it needs."""
        return Identity(self.model, self.model_version, self.model_sha256)

    def text(self) -> str:
        """The file's text."""
        return json.dumps(self.model_dump(), indent=1) + "\n"

    def judge(self, probability: float, ask_anyway: float) -> Judged:
        """With which probability a post is asked about."""
        rounded = round(probability, _PLACES)  # one number in ledger, store and decision
        passed = rounded >= self.threshold
        return Judged(self.version, rounded, passed, 1.0 if passed else ask_anyway)


def read_gate(file: Path) -> Gate:
    """A gate from its file. Raises `Usage`."""
    again = "make one with `civicsky dev train-gate`"
    try:
        path = expanded(file)
        if path.stat().st_size > MAX_BYTES:
            raise Usage(f"gate.file: {file} has more than {MAX_BYTES:,} bytes and is no gate; {again}")
        return Gate.model_validate_json(path.read_bytes())
    except OSError as error:
        raise Usage(f"gate.file: {file}: {error.strerror}; {again}, or take the setting out") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        why = f"{where}: {first['msg']}".removeprefix(": ")
        raise Usage(f"gate.file: {file} is no gate's file ({why}); {again}") from None
    except RuntimeError:  # there is no home for ~
        raise Usage(f"gate.file: {file}: the home folder is not known; give the whole path") from None


class Gatekeeper:
    """A gate at work, for one task. Texts that come at the same time are looked at together, in a thread.

    Memory: the model, see `embedding`, and what waits in the callers' hands.
    """

    def __init__(self, gate: Gate, embedding: Embedding, ask_anyway: float) -> None:
        """Raises `Usage` when the gate was made with another model than this."""
        if gate.identity != embedding.identity or len(gate.weights) != embedding.width:
            raise Usage(
                f"gate.file was made with the model {gate.model} {gate.model_version} ({gate.model_sha256[:8]}), and "
                f"{embedding.identity.name} {embedding.identity.version} ({embedding.identity.sha256[:8]}) is "
                "installed; train it again with `civicsky dev train-gate`"
            )
        self.gate = gate
        self._embedding, self._ask_anyway = embedding, ask_anyway
        self._judge: Together[Sequence[str], list[Judged]] = Together(self._judge_all)

    @property
    def task(self) -> str:
        """The only task it is about."""
        return self.gate.task

    async def judge(self, texts: Sequence[str]) -> list[Judged]:
        """What the gate says of each text, as the model would read it, without what stands around the post."""
        return await self._judge(texts)

    async def _judge_all(self, wanted: Sequence[Sequence[str]]) -> list[list[Judged]]:
        flat = [text for texts in wanted for text in texts]
        found = iter(await asyncio.to_thread(self._embedding.probabilities, flat, self.gate.weights, self.gate.bias))
        return [[self.gate.judge(next(found), self._ask_anyway) for _ in texts] for texts in wanted]


def chosen(settings: GateSettings, tasks: Sequence[tuple[Task, str]]) -> Gate | None:
    """The gate's file of the settings; None without one. `tasks` with their files' texts. It loads no model.

    Raises `Usage` for a gate that is not about one of these tasks as it is now.
    """
    if settings.file is None:
        return None
    gate = read_gate(settings.file)
    known = {task.name: text for task, text in tasks}
    if gate.task not in known:
        raise Usage(f"gate.file is about the task {gate.task!r}, and label.tasks has {', '.join(known)}; name it there")
    text = known[gate.task]
    if file_hash(text) != gate.task_sha256:
        raise Usage(
            f"gate.file was made for version {gate.task_version} of the task {gate.task!r} "
            f"({gate.task_sha256[:8]}), and its file has changed since ({file_hash(text)[:8]}); "
            "train it again with `civicsky dev train-gate`"
        )
    return gate


def open_gate(settings: GateSettings, tasks: Sequence[tuple[Task, str]]) -> Gatekeeper | None:
    """The gate of the settings, ready to work; None without one. Raises `Usage`, also when it cannot be used here."""
    gate = chosen(settings, tasks)
    return None if gate is None else Gatekeeper(gate, load(), settings.ask_anyway)
