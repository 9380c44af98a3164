"""The report of a period: facts in (see `period`), one HTML page that loads nothing and runs nothing, or a short text.

Contract: the page holds no post's text, address or author. Hashtags, domains, and the names of models, fields, values,
feeds and reasons are hostile: the template escapes them, `visible` shows what is invisible in them, each has a bound.
The page is written whole or not at all, and takes the place of nothing but a former report.
"""

import os
from pathlib import Path
from typing import Final, NamedTuple

from civicsky.errors import Usage
from civicsky.report import printable
from civicsky.research import period_plots as plots
from civicsky.research.drawing import day_of, figure_text, page
from civicsky.research.estimate import note_of
from civicsky.research.period import MIN_AUTHORS, Facts, Wanted, gather
from civicsky.settings import Settings

GENERATOR: Final = "civicsky report"
"""By this a former report is known."""
MAX_MARKS: Final = 30
"""Breaks drawn and listed."""
MAX_GAPS: Final = 100
"""Gaps listed: the longest ones."""
HOURS_LISTED: Final = 48
"""Above so many hours tables are by day."""
_HEAD_BYTES: Final = 2_000


class Done(NamedTuple):
    """What came of it."""

    found: Facts
    text: str
    """For a terminal."""


async def report(settings: Settings, wanted: Wanted, out: Path | None, *, with_page: bool = True) -> Done:
    """Gather the facts and write the page, to `report-SINCE-UNTIL.html` unless `out` names a file.

    Errors as of `period.gather`, and `Usage` when the file cannot be written or is none of ours.
    """
    if out is not None:
        _check(out)
    found = await gather(settings, wanted)
    if not with_page:
        return Done(found, text_table(found))
    file = out or Path(f"report-{_stamp(found['since'])}-{_stamp(found['until'])}.html")
    _check(file)
    _write(file, html_page(found))
    return Done(found, f"{text_table(found)}\n\nreport: {file}")


def html_page(found: Facts) -> str:
    """The page."""
    marks = {n: day_of(one["at"]) for n, one in enumerate(found["breaks"][:MAX_MARKS], 1)}
    gaps = sorted(found["coverage"]["gaps"], key=plots.length, reverse=True)[:MAX_GAPS]
    return page(
        "period.html.j2",
        found=found,
        generator=GENERATOR,
        title=_title(found["since"], found["until"]),
        min_authors=MIN_AUTHORS,
        note_origin=note_of(found["origin"]),
        words=plots.WORDS,
        posts=plots.posts(found, marks),
        hours=plots.by_day(found["hours"]) if len(found["hours"]) > HOURS_LISTED else found["hours"],
        tables=plots.tables(found, marks),
        rejects=plots.bars(found["rejected"], "rejects"),
        strip=plots.strip(found),
        gaps=sorted(gaps, key=lambda one: one["from_at"] or one["at"]),
        breaks=[{**one, "was": _brief(one, "was"), "now": _brief(one, "now")} for one in found["breaks"][:MAX_MARKS]],
        drift=plots.drift(found, marks),
        cost=plots.cost(found, marks),
        vain=plots.vain(found["cost"]),
    )


def text_table(found: Facts) -> str:
    """The figures that matter most, for a terminal."""
    live, held = found["posts"]["counted"], found["coverage"]["share_held"]
    received = {name: sum(one[name] for one in found["hours"]) for name in ("posts", "kept")}
    came = f"{received['posts']:,} posts came in, {received['kept']:,} kept; " if found["hours"] else ""
    lines = [
        f"{found['since']} to {found['until']}, origin {printable(found['origin'])}",
        f"  {held:.2%} of the time held",
        f"  {came}the store has {live:,} live posts",
    ]
    for table in found["estimates"]:
        if table["period"] == "all":
            lines.append(f"  {printable(table['task'], 40)}: {printable(table['field'], 40)}")
            lines += [f"    {printable(row['value'], 40):40} {figure_text(row['share'])}" for row in table["rows"]]
    lines += [f"  {one['at']}: {_break_text(one)}" for one in found["breaks"][:MAX_MARKS]]
    return "\n".join([*lines, *(f"  ! {one}" for one in found["missing"])])


def _title(since: str, until: str) -> str:
    """The period for a headline: its days, or times where it begins or ends within a day."""
    midnight = "T00:00:00.000Z"
    if since.endswith(midnight) and until.endswith(midnight):
        return f"{since[:10]} to {until[:10]}"
    digits = 16 if since[:16] != until[:16] else 19
    return f"{since[:digits]} to {until[:digits]}".replace("T", " ")


def _break_text(one: Facts) -> str:
    what = one["kind"] if one["task"] is None else f"{one['task']}, {one['kind']}"
    return printable(f"{what}: {_brief(one, 'was')} to {_brief(one, 'now')}", 160)


def _brief(one: Facts, side: str) -> str:
    """A side of a break; of a prompt the first digits of its hash."""
    return str(one[side][:12] if one["kind"] == "prompt" else one[side])


# ---- the file --------------------------------------------------------------------------------------------------------


def _stamp(time: str) -> str:
    """A time for a file's name: its date, if it is a day's beginning."""
    return time[:10] if time[10:] == "T00:00:00.000Z" else time[:16].replace(":", "")


def _check(file: Path) -> None:
    """Whether a report may be written there. Raises `Usage`."""
    try:
        with file.open("rb") as stream:
            ours = f'content="{GENERATOR}"'.encode() in stream.read(_HEAD_BYTES)
    except FileNotFoundError:
        if not file.parent.is_dir():
            raise Usage(f"{file.parent} is no folder; make it, or name another file with --out") from None
        return
    except OSError as error:
        raise Usage(f"{file}: {error.strerror}; name another file with --out") from None
    if not ours:
        raise Usage(f"{file} is there and is no report of a period; name another file with --out")


def _write(file: Path, text: str) -> None:
    """Whole, or not at all; for us alone to read."""
    half = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
            stream.write(text)
        half.replace(file)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise Usage(f"{file}: {error.strerror}; name another file with --out") from None
