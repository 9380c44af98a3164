"""Figures as lines of text, for terminals, logs and the page."""

from collections.abc import Iterator
from typing import Any

from bench.results import Entry, named


def number(value: float) -> str:
    """Three digits that count, with commas: 12,300; 0.0123."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def spread(one: Entry) -> str:
    """From the smallest to the largest."""
    return f"{number(one['min'])} to {number(one['max'])}"


def bar(one: Entry) -> str:
    """What is wanted, and whether it is so; empty without a bar."""
    if one["bar"] is None:
        return ""
    wanted = f"at {'least' if one['at_least'] else 'most'} {number(one['bar'])}"
    return f"{wanted}: {'met' if one['met'] else 'NOT MET'}"


def lines(name: str, part: Entry) -> Iterator[str]:
    """A part, as a table."""
    yield f"{name}: {part['title']} ({part['seconds']:.0f} s)" + (" QUICK: these figures mean nothing" * part["quick"])
    for fact, value in part["facts"].items():
        yield f"  {fact}: {_plain(value)}"
    for one, value in named(part).items():
        unit = value.get("unit", "")
        told = f"{number(value['median'])} {unit}".strip()
        yield f"  {one:<70} {told:>18}   {spread(value)}, n={value['n']}   {bar(value)}".rstrip()
    for why in part["left_out"]:
        yield f"  left out: {why}"
    if part["failed"]:
        yield f"  FAILED: {part['failed']}"
    if part["load"]["not_idle"]:
        yield f"  The machine was not idle: {part['load']['not_idle']}. Ratios may stand; rates do not."


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
