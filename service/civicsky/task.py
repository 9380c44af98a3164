"""A labelling task: what is asked, read from a TOML file and checked. Pure. How it is put to a model is in `prompt`."""

import hashlib
import re
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from civicsky.errors import Usage
from civicsky.model import FieldLabel
from civicsky.settings import expanded

CONTEXT_PARTS: Final = ("quote", "root", "parent")
"""What may stand around a post: the placeholders of `context_format`."""
_RESERVED: Final = ("id", "posts", "reason")
"""Keys that an answer has besides the fields."""


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name):
        raise ValueError(f"{name!r} must be lower-case letters, digits and underscores, 40 at most, a letter first")
    return name


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; say something there")
    return text


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Field(_Part):
    """One thing to say of a post."""

    name: str
    values: tuple[str, ...]
    description: str
    only_if: dict[str, str] = {}
    """The field is left out unless these fields above it have these values."""
    unclear: str | None = None
    """The value for "cannot be told", if there is one."""

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if name in _RESERVED:
            raise ValueError(f"{name!r} has a meaning of its own in an answer; name the field otherwise")
        return _plain_name(name)

    @field_validator("values")
    @classmethod
    def _distinct(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if not value.isprintable() or value != value.strip() or not value:
                raise ValueError(f"{value!r} is empty or has blanks around it or control characters; take them out")
        if len(values) < 2 or len(set(values)) < len(values):  # noqa: PLR2004 - one value would be no question
            raise ValueError("there must be two values or more, each once; add or remove some")
        return values


class Boundary(_Part):
    """A post that could be judged in two ways, and how it is judged."""

    post: str
    answer: dict[str, str]
    """The value of each field that applies."""
    why: str

    _not_empty = field_validator("post", "why")(_said)


class Example(_Part):
    """A post with its answer, for the ways that answer in JSON."""

    post: str
    answer: dict[str, str]
    """The value of each field that applies."""
    reason: str | None = None
    """The one sentence, when the task asks for one."""

    _not_empty = field_validator("post")(_said)


class Words(_Part):
    """How to ask for one field with one word."""

    field: str
    ask: str
    values: dict[str, str]
    examples: tuple[tuple[str, str], ...]


class Task(_Part):
    """A task file."""

    name: str
    version: str
    definition: str
    fields: tuple[Field, ...]
    boundaries: tuple[Boundary, ...] = ()
    """Cases on the boundary: given to the model, to those who label by hand, and to the readers of the codebook."""
    examples: tuple[Example, ...] = ()
    """Few-shot examples of the ways that answer in JSON."""
    words: tuple[Words, ...] = ()
    context_format: str = "Quoted post: {quote}\nFirst post of the thread: {root}\nPost that it answers: {parent}"
    """How what stands around a post is written; see `context_text`."""
    reasoning: Literal["off", "low"] = "off"
    """How much a model that can think may think before it answers."""
    reason: bool = False
    """Whether the model gives one sentence of reason after its answer."""
    tuned: dict[str, Any] = {}
    """What `civicsky dev tune` says of how the file came about. No prompt has any of it."""

    _not_empty = field_validator("version", "definition")(_said)

    def __hash__(self) -> int:
        return hash((self.name, self.version))

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        return _plain_name(name)

    @field_validator("context_format")
    @classmethod
    def _placeholders(cls, text: str) -> str:
        wanted = "write {quote}, {root} and {parent}, each once at most and on a line of its own"
        named = re.findall(r"\{([^{}]*)\}", text)
        for name in named:
            if name not in CONTEXT_PARTS:
                raise ValueError(f"there is no placeholder {{{name}}}; {wanted}")
        if re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", text)):
            raise ValueError(f"a brace stands alone; {wanted}")
        if not named or len(set(named)) < len(named) or any(line.count("{") > 1 for line in text.splitlines()):
            raise ValueError(f"the placeholders are missing, doubled, or two on a line; {wanted}")
        return text

    @model_validator(mode="after")
    def _consistent(self) -> "Task":
        if not self.fields:
            raise ValueError("fields: there is none; add a [[fields]] table for each thing to say of a post")
        for number, field in enumerate(self.fields):
            _check_field(f"fields.{number}", field, self.fields[:number])
        for number, boundary in enumerate(self.boundaries):
            _check_answer(f"boundaries.{number}.answer", boundary.answer, self.fields)
        for number, example in enumerate(self.examples):
            _check_answer(f"examples.{number}.answer", example.answer, self.fields)
            if self.reason and not (example.reason or "").strip():
                raise ValueError(
                    f"examples.{number}.reason: is missing; the task has reason = true, so give a sentence"
                )
            if example.reason is not None and not self.reason:
                raise ValueError(f"examples.{number}.reason: nobody asks for it; take it out, or set reason = true")
        for number, words in enumerate(self.words):
            _check_words(f"words.{number}", words, self.fields)
        self._check_order_of_words()
        return self

    def _check_order_of_words(self) -> None:
        """Fields are asked in turn, and one that depends on another needs its answer."""
        if not self.words:
            return
        asked, names = [words.field for words in self.words], [field.name for field in self.fields]
        if asked != [name for name in names if name in asked]:
            raise ValueError("words: must be one table a field, in the order of the fields; put them into that order")
        for number, field in enumerate(self.fields):
            if field.name not in asked and field.unclear is None:
                raise ValueError(
                    f"fields.{number}: {field.name!r} can never be answered with words; "
                    "add words for it, or give it a value for unclear"
                )


def _check_field(key: str, field: Field, above: Sequence[Field]) -> None:
    known = {other.name: other.values for other in above}
    if field.name in known:
        raise ValueError(f"{key}.name: there is a field {field.name!r} already; give each its own name")
    if field.unclear is not None and field.unclear not in field.values:
        raise ValueError(
            f"{key}.unclear: {field.unclear!r} is not among the field's values; add it there, or leave it out"
        )
    for name, value in field.only_if.items():
        if name not in known:
            raise ValueError(f"{key}.only_if: there is no field {name!r} above this one; name one of {list(known)}")
        if value not in known[name]:
            raise ValueError(
                f"{key}.only_if: the field {name!r} has no value {value!r}; name one of {list(known[name])}"
            )


def _check_answer(key: str, answer: dict[str, str], fields: Sequence[Field]) -> None:
    """An answer gives exactly the fields that apply."""
    labels: dict[str, FieldLabel] = {}
    for field in fields:
        value = answer.get(field.name)
        if not applies(field, labels):
            if value is not None:
                raise ValueError(f"{key}.{field.name}: the field does not apply to this answer (only_if); leave it out")
            continue
        if value is None:
            raise ValueError(f"{key}.{field.name}: is missing and applies; give it one of {list(field.values)}")
        if value not in field.values:
            raise ValueError(f"{key}.{field.name}: there is no value {value!r}; give it one of {list(field.values)}")
        labels[field.name] = FieldLabel(value, None)
    for name in answer:
        if name not in [field.name for field in fields]:
            raise ValueError(f"{key}.{name}: there is no such field; name one of {[field.name for field in fields]}")


def _check_words(key: str, words: Words, fields: Sequence[Field]) -> None:
    known = {field.name: field.values for field in fields}
    if words.field not in known:
        raise ValueError(
            f"{key}.field: words ask for the field {words.field!r}, which there is not; add it, or name another"
        )
    if "{post}" not in words.ask:
        raise ValueError(f"{key}.ask: the post is missing; put {{post}} where it should stand")
    for word, value in words.values.items():
        if not word or word != word.strip().lower():
            raise ValueError(f"{key}.values: {word!r} must be in lower case without blanks around it; write it so")
        if value not in known[words.field]:
            raise ValueError(
                f"{key}.values: words give the field {words.field!r} the value {value!r}, which it has not; "
                f"name one of {list(known[words.field])}"
            )
    if len(set(words.values.values())) < 2:  # noqa: PLR2004 - one value would be no question
        raise ValueError(f"{key}.values: the words must stand for two values or more; add some")
    for number, (_, word) in enumerate(words.examples):
        if word not in words.values:
            raise ValueError(
                f"{key}.examples.{number}: {word!r} is not among the words; answer with one of {list(words.values)}"
            )


def applies(field: Field, labels: Mapping[str, FieldLabel]) -> bool:
    """Whether a field is asked at all, given the others."""
    return all(name in labels and labels[name].value == value for name, value in field.only_if.items())


def applicable(task: Task, labels: Mapping[str, FieldLabel]) -> dict[str, FieldLabel]:
    """The task's fields in their order, without those whose condition is not met by the others that are left."""
    found: dict[str, FieldLabel] = {}
    for field in task.fields:
        if field.name in labels and applies(field, found):
            found[field.name] = labels[field.name]
    return found


def context_text(task: Task, parts: Mapping[str, str]) -> str:
    """What stands around a post, as `context_format` has it. A line whose part is missing or empty is left out.

    `parts`: texts by the names in `CONTEXT_PARTS`; they are put in as they are and never looked at for placeholders.
    "" when there is none of them.
    """
    if not any(parts.get(name) for name in CONTEXT_PARTS):
        return ""
    lines = []
    for line in task.context_format.splitlines():
        before, brace, rest = line.partition("{")
        name, _, after = rest.partition("}")
        if not brace:
            lines.append(line)
        elif parts.get(name):
            lines.append(before + parts[name] + after)
    return "\n".join(lines).strip()


def codebook(task: Task) -> str:
    """The task in Markdown, from the texts that the model is given: definition, fields, boundary cases, examples."""
    definition = textwrap.fill(_cell(task.definition), 126, break_long_words=False, break_on_hyphens=False)
    parts = [f"Version {task.version}. The definition:", textwrap.indent(definition, "> ")]
    fields = [
        [
            f"`{field.name}`",
            ", ".join(f"`{value}`" for value in field.values),
            _cell(field.description),
            "only when " + " and ".join(f"`{name}` is `{value}`" for name, value in field.only_if.items())
            if field.only_if
            else "always",
        ]
        for field in task.fields
    ]
    parts.append(_table(["field", "values", "question", "exists"], fields))
    if task.boundaries:
        cases = [[_cell(case.post), _said_of(case.answer), _cell(case.why)] for case in task.boundaries]
        parts += ["Cases on the boundary:", _table(["post", "answer", "why"], cases)]
    if task.examples:
        shown = [[_cell(one.post), _said_of(one.answer), _cell(one.reason or "")] for one in task.examples]
        head = ["post", "answer", "reason"] if task.reason else ["post", "answer"]
        parts += ["Examples:", _table(head, [row[: len(head)] for row in shown])]
    return "\n\n".join(parts)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, *rows]
    drawn = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([drawn[0], "|---" * len(head) + "|", *drawn[1:]])


def _said_of(answer: dict[str, str]) -> str:
    return ", ".join(f"`{name}`: {_cell(value)}" for name, value in answer.items())


def _cell(text: str) -> str:
    """On one line, without what Markdown would take for its own."""
    return re.sub(r"[\\|<>*_`\[\]]", r"\\\g<0>", " ".join(text.split()))


# ---- the file --------------------------------------------------------------------------------------------------------


def load_task(name_or_path: str) -> tuple[Task, str]:
    """A task and its file's text, by the name of one that ships, or by a path: what ends in .toml or holds a "/".

    Raises `Usage`, which names file, key, fault and remedy, when the file cannot be read or is not a task.
    """
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        return _read(Path(name_or_path))
    folder = Path(str(files("civicsky"))) / "data" / "tasks"
    shipped = sorted(file.stem for file in folder.glob("*.toml"))
    if name_or_path not in shipped:
        raise Usage(
            f"task {name_or_path!r}: no such task ships with civicsky; "
            f"name one of {shipped}, or the path of a task file (.toml)"
        )
    return _read(folder / f"{name_or_path}.toml")


def load_tasks(names: Sequence[str]) -> list[tuple[Task, str]]:
    """Several tasks, as `load_task`. Raises `Usage` also when two have one name: their labels would be one."""
    loaded: dict[str, tuple[Task, str]] = {}
    for name in names:
        task, text = load_task(name)
        if task.name in loaded:
            raise Usage(f"label.tasks: {name!r} is the second task with the name {task.name!r}; rename or remove one")
        loaded[task.name] = task, text
    return list(loaded.values())


def file_hash(text: str) -> str:
    """SHA-256 of a task file's text, as hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _read(file: Path) -> tuple[Task, str]:
    try:
        text = expanded(file).read_text(encoding="utf-8")
        return Task.model_validate(tomllib.loads(text)), text
    except OSError as error:
        raise Usage(f"task file {file}: {error.strerror}; name a task file that is there and can be read") from None
    except ValidationError as error:
        raise Usage(f"task file {file}: {_explained(error)}") from None
    except (ValueError, RecursionError, RuntimeError) as error:  # RuntimeError: there is no home for ~
        raise Usage(f"task file {file}: not valid TOML in UTF-8, correct it: {error}") from None


def _explained(error: ValidationError) -> str:
    first: Any = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    why = {
        "missing": "is missing; add it",
        "string_type": "must be text; put it in quotation marks",
        "extra_forbidden": "there is no such key in a task file; remove it, or correct its name",
    }.get(first["type"], first["msg"].removeprefix("Value error, "))
    return f"{key}: {why}" if key else why
