"""What the articles' database says of itself for a status, whether the service runs or not: counts, and no article."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from civicsky import datadir
from civicsky.errors import CivicskyError
from civicsky.events.tables import SCHEMA
from civicsky.log import harmless
from civicsky.model import format_time
from civicsky.sqlite import reading


async def read(folder: Path) -> dict[str, Any] | None:
    """What a data directory has of articles; None without any. A file that cannot be read is told as `why`."""
    file = folder / datadir.EVENTS
    if not file.is_file():
        return None
    try:
        async with reading(file, SCHEMA) as database:
            ((files, bad, left_out),) = await database.rows(
                "SELECT count(*), coalesce(sum(bad), 0), coalesce(sum(left_out), 0) FROM file"
            )
            ((articles, newest),) = await database.rows("SELECT count(*), max(at) FROM article")
            ((summaries,),) = await database.rows("SELECT count(text) FROM summary")
    except CivicskyError as error:  # all else of the status is to be seen all the same
        return {"why": str(error)}
    return {
        "articles": articles,
        "files": files,
        "newest": None if newest is None else format_time(newest),
        "summaries": summaries,
        "bad_lines": bad,
        "left_out": left_out,
    }


def as_text(told: Mapping[str, Any] | None) -> list[str]:
    """For people."""
    if told is None:
        return []
    if "why" in told:
        return [f"articles         {harmless(told['why'])}"]
    newest = f", the newest of {told['newest']}" if told["newest"] else ""
    parts = [f"{told['articles']:,} of {told['files']:,} file{'s' * (told['files'] != 1)}{newest}"]
    parts.append(f"{told['summaries']:,} summar{'y' if told['summaries'] == 1 else 'ies'}")
    if told["bad_lines"]:
        parts.append(f"{told['bad_lines']:,} line{'s' * (told['bad_lines'] != 1)} of no use")
    if told["left_out"]:
        parts.append(f"{told['left_out']:,} left out for want of room")
    return ["articles         " + "; ".join(parts)]
