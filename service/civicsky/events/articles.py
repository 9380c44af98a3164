"""One line of an article file in, one article out; what of it is put into a prompt. Pure.

An article is data that somebody else wrote, like a post: every part of it is bounded here, and quoted where it is used.
"""

import json
import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from hashlib import sha256
from typing import Any, Final, NamedTuple

from civicsky.errors import BadInput

MAX_LINE: Final = 1_000_000
"""Bytes of a line; a longer one is bad."""
MAX_TITLE: Final = 300
MAX_TEXT: Final = 20_000
"""Characters kept of a text; the rest is cut. A long report has some 8,000."""
MAX_NAME: Final = 100
"""Characters of an outlet's and of a side's name; longer ones are bad, since they would be told apart by their ends."""
MAX_URL: Final = 2_000
_WANTED: Final = ("title", "text", "outlet", "side", "date")
_SENTENCE: Final = re.compile(r"(?<=[.!?])[\"'\u201d\u2019)]*\s+")
_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


class Article(NamedTuple):
    """One article."""

    id: str
    """32 hexadecimal digits of the SHA-256 of its normalised title and text: the same article has the same id, wherever
    and however often it comes."""
    title: str
    text: str
    """On one line."""
    outlet: str
    side: str
    at: int
    """When it came out, in microseconds since 1970 UTC."""
    url: str | None


def read_line(line: bytes) -> Article:
    """An article of one line: a JSON object with title, text, outlet, side, date, and url if it has one.

    `date`: a day, or a time as of RFC 3339. A day alone counts as its last microsecond (UTC), and a time without a zone
    as UTC: an article must never count as older than it is. Other keys are left alone. Raises `BadInput`, whose reason
    is for people and quotes nothing of the line.
    """
    if len(line) > MAX_LINE:
        raise BadInput(f"longer than {MAX_LINE:,} bytes")
    try:
        found = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise BadInput("not a JSON object in UTF-8") from None
    if not isinstance(found, dict):
        raise BadInput("not a JSON object")
    values = {name: _text(found, name) for name in _WANTED}
    for name in ("outlet", "side"):
        if len(values[name]) > MAX_NAME:
            raise BadInput(f"{name} is longer than {MAX_NAME} characters")
    url = found.get("url")
    title, text = values["title"][:MAX_TITLE], values["text"][:MAX_TEXT]
    return Article(
        id=_id(title, text),
        title=title,
        text=text,
        outlet=values["outlet"],
        side=values["side"],
        at=_time(values["date"]),
        url=_one_line(url)[:MAX_URL] or None if isinstance(url, str) else None,
    )


def beginning(title: str, text: str, room: int) -> str:
    """The title and the first whole sentences that there is room for (characters); never more than `room`."""
    said = title if title.endswith((".", "!", "?")) else f"{title}."
    for sentence in _SENTENCE.split(text):
        if len(said) + 1 + len(sentence) > room:
            break
        said += f" {sentence}"
    return said[:room]


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str):
        raise BadInput(f"{name} is missing" if value is None else f"{name} is no text")
    value = _one_line(value)
    if not value:
        raise BadInput(f"{name} is empty")
    return value


def _one_line(text: str) -> str:
    return " ".join(text.encode(errors="replace").decode().split())


def _id(title: str, text: str) -> str:
    plain = unicodedata.normalize("NFKC", f"{title}\n{text}").casefold()
    return sha256("".join(char for char in plain if char.isalnum()).encode()).hexdigest()[:32]


def _time(text: str) -> int:
    try:
        if _DAY.fullmatch(text):
            day = datetime.combine(date.fromisoformat(text), time(), UTC)
            found = day + timedelta(days=1, microseconds=-1)
        else:
            found = datetime.fromisoformat(text)
        if found.tzinfo is None:
            found = found.replace(tzinfo=UTC)
        micros = (found - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        raise BadInput("date is neither a day (2026-11-20) nor a time (2026-11-20T08:30:00Z)") from None
    if micros < 0:
        raise BadInput("date is before 1970")
    return micros
