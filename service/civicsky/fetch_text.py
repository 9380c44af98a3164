"""What `fetch` says at its end, for people and for programs. Pure."""

from collections.abc import Iterable
from typing import Any

from civicsky import inbox, log
from civicsky.feeds import Outcomes
from civicsky.fetch import Fetched, Report
from civicsky.paging import ENDS, WHOLE


def as_text(report: Report) -> str:
    """For people; everything that others chose is escaped."""
    lines = [_line(feed, report.english) for feed in report.feeds] or ["nothing is due"]
    if report.stored.counts:
        told = ", ".join(f"{n:,} {name}" for name, n in report.stored.counts.items())
        lines.append("store: " + (report.stored.why or told))
    return "\n".join(lines)


def as_json(report: Report) -> dict[str, Any]:
    """For programs."""
    feeds = []
    for feed in report.feeds:
        told = {name: _by_reason(feed.outcomes, name) for name in ("rejected", "failed")} if feed.outcomes else {}
        kept = {name: _sum(feed.outcomes, name) for name in ("new", "known")} if feed.outcomes else {}
        feeds.append(
            {
                "name": feed.name, "uri": feed.uri, "file": feed.file, "fetched": feed.items, "pages": feed.pages,
                "complete": feed.why in WHOLE, "why": feed.why, "imported": feed.outcomes is not None, **kept, **told,
                "english_share": _share(feed.outcomes) if report.english and feed.outcomes else None,
            }
        )  # fmt: skip
    store = {**report.stored.counts, "why": report.stored.why} if report.stored.counts else None
    return {"good": report.good, "feeds": feeds, "store": store}


def _line(feed: Fetched, english: bool) -> str:  # noqa: FBT001
    name = log.harmless(feed.name)
    if not feed.file:
        return f"{name}: nothing fetched: {log.harmless(feed.why)}"
    how = ENDS.get(feed.why) or f"not complete: {log.harmless(feed.why)}"
    said = f"{name}: {feed.items:,} fetched on {feed.pages:,} page{'s' * (feed.pages != 1)} ({how})"
    if feed.outcomes is None:
        return f"{said}; the running service has not imported it yet; it will; {inbox.FOLDER}/{feed.file}"
    parts = [f"{_sum(feed.outcomes, 'new'):,} new, {_sum(feed.outcomes, 'known'):,} known"]
    for outcome in ("rejected", "failed"):
        reasons = ", ".join(f"{why} {n:,}" for why, n in _by_reason(feed.outcomes, outcome).items())
        parts.append(f"{_sum(feed.outcomes, outcome):,} {outcome}" + (f" ({reasons})" if reasons else ""))
    share = _share(feed.outcomes) if english else None
    parts += [f"{100 * share:.1f} % English"] if share is not None else []
    return f"{said}: {', '.join(parts)}; {inbox.FOLDER}/{feed.file}"


def _sum(outcomes: Outcomes, name: str) -> int:
    return sum(n for (outcome, _), n in outcomes.items() if outcome == name)


def _by_reason(outcomes: Outcomes, name: str) -> dict[str, int]:
    found: Iterable[tuple[str, int]] = ((why, n) for (outcome, why), n in outcomes.items() if outcome == name)
    return dict(sorted(found, key=lambda one: (-one[1], one[0])))


def _share(outcomes: Outcomes) -> float | None:
    """Of the posts that were kept, or rejected for their language alone, how many were kept."""
    kept = _sum(outcomes, "new") + _sum(outcomes, "known")
    judged = kept + outcomes["rejected", "language"]
    return kept / judged if judged else None
