"""Made-up events: two articles each, of two sides, and three posts that are about them: two name it, the last hints."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

EVENTS: Final[list[dict[str, list[str]]]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def article(number: int, side: str = "left", date: str = "2026-11-20T08:00:00Z", **other: Any) -> dict[str, Any]:
    """One of the two articles about an event, as a file has it."""
    title, text = EVENTS[number][side]
    return {"title": title, "text": text, "outlet": f"The {side} paper", "side": side, "date": date, **other}


def both(number: int, date: str = "2026-11-20T08:00:00Z") -> list[dict[str, Any]]:
    """The two of an event."""
    return [article(number, side, date) for side in ("left", "right")]


def write(file: Path, articles: Iterable[Any]) -> Path:
    """An article file; what is a string stands in its line as it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [one if isinstance(one, str) else json.dumps(one) for one in articles]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file
