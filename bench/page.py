"""Writes docs/performance.md and its plots from the results and the text in `performance.md.in`.

The text has marks for what is measured: `{{bars}}`, `{{machine}}` and, for each part, `{{part NAME}}`. A part that was
never measured is said to be so on the page.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from bench import plots
from bench.results import Entry, named
from bench.shown import bar, number, spread

TEXT: Final = Path(__file__).with_name("performance.md.in")
NAME: Final = "performance.md"


def write(docs: Path, parts: dict[str, Entry], order: Sequence[str]) -> None:
    """Write the page and its plots into a folder."""
    drawn = plots.draw(docs, parts)
    (docs / NAME).write_text(render(TEXT.read_text(), parts, order, drawn))


def render(text: str, parts: dict[str, Entry], order: Sequence[str], drawn: dict[str, str]) -> str:
    """The page. `drawn`: by part (or "bars") the file of its plot. Raises `KeyError` for a mark of another name."""
    blocks = {"bars": "\n".join(_bars(parts, drawn)), "machine": "\n".join(_machine(parts))}
    blocks |= {f"part {name}": "\n".join(_part(name, parts.get(name), drawn)) for name in order}
    return re.sub(r"\{\{([^{}]*)\}\}", lambda mark: blocks[mark[1]], text)


def _bars(parts: dict[str, Entry], drawn: dict[str, str]) -> Iterator[str]:
    """Everything that has a bar, whether it was met."""
    if "bars" in drawn:
        yield f"![Each median over its bar: right of the line is met]({drawn['bars']})\n"
    yield "| part | what | wanted | median | spread | n | |"
    yield "|---|---|---|---|---|---|---|"
    for name, part in parts.items():
        for what, one in named(part).items():
            if one["bar"] is not None:
                wanted, _, is_met = bar(one).partition(": ")
                unit = one.get("unit", "")
                met = (is_met if is_met == "met" else "**not met**") + " (quick: means nothing)" * part["quick"]
                if part["scale"] != 1:
                    met += f", at {part['scale']:g} of the full size"
                yield (
                    f"| {name} | {_cell(what)} | {wanted} {unit} | {number(one['median'])} | {spread(one)} "
                    f"| {one['n']} | {met} |"
                )
        if part["failed"]:
            yield f"| {name} | {_cell(part['failed'])} | | | | 0 | **failed** |"


def _machine(parts: dict[str, Entry]) -> Iterator[str]:
    """Each machine on which parts were measured, with the parts' dates."""
    seen: list[Entry] = []
    for part in parts.values():
        if part["machine"] not in seen:
            seen.append(part["machine"])
    for one in seen:
        libraries = ", ".join(f"{name} {version}" for name, version in one["libraries"].items())
        yield (
            f"- {one['processors']} processors ({one['processor']}), {one['memory_gb']} GB of memory, {one['system']}, "
            f"Python {one['python']}, SQLite {one['sqlite']}; {libraries}"
        )
        for name, part in parts.items():
            if part["machine"] == one:
                idle = part["load"]["not_idle"]
                yield (
                    f"    - {name}: {part['at'][:16].replace('T', ' ')} UTC, commit {part['commit'] or 'unknown'}, "
                    f"{part['rounds']} rounds, {part['seconds']:,.0f} s"
                    + (f"; **the machine was not idle: {idle}**" if idle else "")
                )


def _part(name: str, part: Entry | None, drawn: dict[str, str]) -> Iterator[str]:
    if part is None:
        yield "Not measured yet."
        return
    if part["failed"]:
        yield f"**It failed:** {_cell(part['failed'])}\n"
    if name in drawn:
        yield f"![{part['title']}]({drawn[name]})\n"
    for what, value in part["facts"].items():
        yield f"- {_cell(what)}: {_cell(_told(value))}"
    if part["facts"]:
        yield ""
    yield "| what | median | unit | spread | n | bar |"
    yield "|---|---|---|---|---|---|"
    for what, one in named(part).items():
        yield (
            f"| {_cell(what)} | {number(one['median'])} | {one.get('unit', 'ratio')} | {spread(one)} | {one['n']} "
            f"| {bar(one)} |"
        )
    for why in part["left_out"]:
        yield f"\nLeft out: {_cell(why)}."


def _told(value: Any) -> str:
    """A fact in words: `{"a": {"b": 1}}` is "a (b 1)"."""
    if isinstance(value, dict):
        return ", ".join(
            f"{name} ({_told(one)})" if isinstance(one, dict) else f"{name} {_told(one)}" for name, one in value.items()
        )
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cell(text: str) -> str:
    """A text that cannot end its cell."""
    return " ".join(text.split()).replace("|", "\\|")
