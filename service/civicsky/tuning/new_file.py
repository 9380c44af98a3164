"""The text of the new task file: the old one with other examples or words, and how they were found. Pure.

Posts in it are hostile: each is one TOML string with everything invisible escaped, so that neither a parser nor the eye
of somebody who opens the file is led astray.
"""

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, Final

import tomlkit
from tomlkit.items import String, StringType, Trivia

from civicsky.errors import Failed
from civicsky.task import Task
from civicsky.tuning.candidates import Kind

_SHORT: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t"}


def new_text(old: str, base: Task, new: Task, kind: Kind, tuned: Mapping[str, Any], head: Iterable[str]) -> str:
    """The old file's text with what is new in `new`, its comments kept where they can be, and the table `tuned`.

    `head`: lines of a comment above it all. Raises `Failed` when the text would not be read as just that task.
    """
    document = tomlkit.parse(old)
    document["version"] = quoted(new.version)
    if kind == "words":
        _words(document, base, new)
    else:
        _json(document, base, new)
    document.pop("tuned", None)
    document.add("tuned", _table(tuned))
    text = "".join(f"# {line}\n" for line in head) + tomlkit.dumps(document)
    read = Task.model_validate(tomllib.loads(text))
    if read != new.model_copy(update={"tuned": read.tuned}):
        raise Failed("the new task file would not be read as the task that was tuned: this is a defect of civicsky")
    return text


def quoted(text: str) -> String:
    """A basic string of TOML, on one line, with everything escaped that cannot be seen."""
    return String(StringType.SLB, text, "".join(map(_escaped, text)), Trivia())


def _escaped(char: str) -> str:
    if char in _SHORT:
        return _SHORT[char]
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"  # noqa: PLR2004 - TOML's short form


def _words(document: Any, base: Task, new: Task) -> None:
    for table, before, words in zip(document["words"], base.words, new.words, strict=True):
        if words.ask != before.ask:
            table["ask"] = quoted(words.ask)
        if words.examples != before.examples:
            rows = tomlkit.array()
            for text, word in words.examples:
                rows.add_line(_list([text, word]))
            rows.add_line(indent="")
            table["examples"] = rows


def _json(document: Any, base: Task, new: Task) -> None:
    if new.definition != base.definition:
        document["definition"] = quoted(new.definition)
    for table, before, field in zip(document["fields"], base.fields, new.fields, strict=True):
        if field.description != before.description:
            table["description"] = quoted(field.description)
    if new.examples == base.examples:
        return
    keep = len(base.examples) if new.examples[: len(base.examples)] == base.examples else 0
    if keep and isinstance(document["examples"], tomlkit.items.AoT):
        tables = document["examples"]
    else:
        keep, tables = 0, tomlkit.aot()
        document.pop("examples", None)
        document.add("examples", tables)
    for example in new.examples[keep:]:
        table = tomlkit.table()
        table.add("post", quoted(example.post))
        answer = tomlkit.inline_table()
        for name, value in example.answer.items():
            answer.add(name, quoted(value))
        table.add("answer", answer)
        if example.reason is not None:
            table.add("reason", quoted(example.reason))
        tables.append(table)


def _table(values: Mapping[str, Any]) -> Any:
    """A table of what JSON could hold; what is None is left out."""
    table = tomlkit.table()
    for name, value in sorted(values.items(), key=lambda pair: isinstance(pair[1], Mapping)):  # tables come last
        if value is not None:
            table.add(name, _item(value))
    return table


def _item(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _table(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list | tuple):
        return _list(value)
    return tomlkit.item(value)


def _list(values: Iterable[Any]) -> Any:
    array = tomlkit.array()
    for value in values:
        array.append(_item(value))
    return array
