"""What was measured, as JSON: `bench/results.json`. A part that is run again takes the place of its former figures.

{"parts": {"decode": {
    "title": ..., "what": ..., "at": ..., "commit": ..., "rounds": 5, "scale": 1.0, "quick": false, "seconds": ...,
    "machine": {...}, "load": {"average": ..., "others": ..., "stolen": ..., "not_idle": ""},
    "facts": {"frames": 100000},
    "figures": {"ours": {"unit": "frames/s", "n": 5, "median": ..., "min": ..., "max": ..., "values": [...],
                         "better": "higher", "bar": null, "met": null}},
    "ratios": {"ours over the SDK's way, frames/s": {"is": "a ratio", ..., "bar": 15.0, "at_least": true,
                                                     "met": true}},
    "left_out": ["what could not run, and why"],
    "failed": ""}}}
"""

import json
import statistics
from pathlib import Path
from typing import Any, Final

from bench.machine import Load
from bench.part import Ask, Measured, Ratio, Result, met

Entry = dict[str, Any]
"""One part."""
FORMAT: Final = 1


def entry(measured: Measured, ask: Ask, *, seconds: float, load: Load, failed: str, where: Entry) -> Entry:
    """A part's figures; `where` has the machine and the commit."""
    return {
        "title": measured.part.title,
        "what": measured.part.what,
        "at": measured.at,
        **where,
        "rounds": ask.rounds,
        "scale": ask.scale,
        "quick": ask.quick,
        "seconds": round(seconds, 1),
        "load": {
            "average": round(load.average, 2), "others": round(load.others, 3), "stolen": round(load.stolen, 3),
            "not_idle": load.why,
        },
        "facts": measured.facts,
        "figures": {
            name: {"unit": one.unit, **_values(one), "better": one.better} for name, one in measured.results.items()
        },
        "ratios": {name: {"is": "a ratio", **_values(one)} for name, one in measured.ratios.items()},
        "left_out": measured.left_out,
        "failed": failed,
    }  # fmt: skip


def _values(one: Result | Ratio) -> Entry:
    return {
        "n": len(one.values),
        "median": statistics.median(one.values),
        "min": min(one.values),
        "max": max(one.values),
        "values": one.values,
        "bar": one.bar,
        "at_least": one.at_least,
        "met": met(one),
    }


def named(one: Entry) -> dict[str, Entry]:
    """A part's figures and ratios by their names, figures first."""
    return {**one["figures"], **one["ratios"]}


def missed(one: Entry) -> list[str]:
    """Names of what does not keep to its bar."""
    return [name for name, value in named(one).items() if value["met"] is False]


def read(file: Path) -> dict[str, Entry]:
    """The parts; {} when there is no such file. Raises `ValueError` when it is of another format."""
    if not file.exists():
        return {}
    told = json.loads(file.read_text())
    if told.get("format") != FORMAT:
        raise ValueError(f"{file} is not of format {FORMAT}; move it away")
    parts: dict[str, Entry] = told["parts"]
    return parts


def write(file: Path, parts: dict[str, Entry]) -> None:
    """Replace the file at once."""
    half = file.with_suffix(".half")
    half.write_text(json.dumps({"format": FORMAT, "parts": parts}, indent=1, ensure_ascii=False) + "\n")
    half.replace(file)
