"""What the data directory says by itself, whether civicsky runs or not."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

from civicsky import datadir, faults, rounds
from civicsky.coverage import Coverage, Hours, Stretch, cover
from civicsky.events import told as articles
from civicsky.journal import JournalReader
from civicsky.ledger import LedgerReader
from civicsky.log import harmless
from civicsky.model import FeedOutcome, FrameOutcome, Gap, Opened, PostOutcome, format_time, now_us
from civicsky.share import Share
from civicsky.window import Window, is_open, next_edge, openings, window_of
from civicsky.workers import told as workers

Counts = Counter[tuple[str, str, str]]


class Balance(NamedTuple):
    """One equation that must close: what was received is the sum of what became of it."""

    unit: str
    received: int
    outcomes: dict[str, int]

    @property
    def closes(self) -> bool:
        """Whether it does."""
        return self.received == sum(self.outcomes.values())

    def __str__(self) -> str:
        parts = " + ".join(f"{name} {n:,}" for name, n in self.outcomes.items() if n) or "0"
        return f"{self.unit}: received {self.received:,} = {parts}" + ("" if self.closes else "   DOES NOT CLOSE")


_OUTCOMES: Final = {
    "frame": get_args(FrameOutcome),
    "post": get_args(PostOutcome),
    "feed": get_args(FeedOutcome),
    "counts": get_args(FeedOutcome),
}
_ALWAYS: Final = ("frame", "post")


def balance(counts: Counts, unit: str) -> Balance:
    """The balance of frames, of post operations, of the items of feeds, or of posts that were counted again."""
    totals: Counter[str] = Counter()
    for (of, outcome, _reason), n in counts.items():
        if of == unit:
            totals[outcome] += n
    return Balance(unit, totals["received"], {outcome: totals[outcome] for outcome in _OUTCOMES[unit]})


def unbalanced(counts: Counts) -> str:
    """The balances that do not close, in words; empty when all do."""
    found = [balance(counts, unit) for unit in _OUTCOMES]
    return "; ".join(str(one) for one in found if not one.closes)


def reasons(counts: Counts, unit: str, outcome: str) -> dict[str, int]:
    """One outcome's reasons, the most frequent first."""
    found = Counter({reason: n for (of, what, reason), n in counts.items() if (of, what) == (unit, outcome) and reason})
    return dict(found.most_common())


async def gather_coverage(folder: Path) -> dict[str, Any]:
    """Everything that `civicsky coverage` shows. Raises `Usage` when there is no journal."""
    journal = await JournalReader.open(datadir.existing(folder) / datadir.JOURNAL)
    try:
        found, hours, opened = await covered(journal)
        told, _ = await window_told(journal)
    finally:
        await journal.close()
    ends = found.stretches
    return {
        "share_held": found.share,
        "from": format_time(ends[0].begin) if ends else None,
        "to": format_time(ends[-1].end) if ends else None,
        "seconds": {
            kind: round(found.seconds(kind), 3) for kind in dict.fromkeys(stretch.kind for stretch in ends)
        },
        "stretches": [
            {"kind": one.kind, "from": format_time(one.begin), "to": format_time(one.end),
             "seconds": round(one.seconds, 3)}
            for one in ends
        ],
        "hosts": [
            {**host, "first_at": format_time(host["first_at"]), "last_at": format_time(host["last_at"])}
            for host in found.hosts
        ],
        "gaps": [_gap(gap) for gap in found.gaps],
        "strip": _strip(ends),
        "window": window_shown(told, found, hours, opened),
    }  # fmt: skip


async def window_told(journal: JournalReader) -> tuple[dict[str, Any], Window | None]:
    """The newest run's settings of `source.window`, and the window; empty and None without one."""
    runs = await journal.runs()
    told = json.loads(runs[-1]["settings"]).get("source", {}).get("window", {}) if runs else {}
    return (told, window_of(told["from"], told["to"], told["zone"])) if told.get("from") else ({}, None)


async def covered(journal: JournalReader) -> tuple[Coverage, Hours, list[Opened]]:
    """What was held, what the window wanted to be held, and the openings in which anything came.

    The hours are those of the openings that there were, and between them, where nothing came, those of the newest run's
    settings.
    """
    opened = await journal.openings()
    _, window = await window_told(journal)
    held = await journal.held()
    wanted = [(one.opened, one.closes) for one in opened]
    if window is not None and opened and held:
        last = max(one.last_at for one in held)
        wanted += [
            (begin, end)
            for begin, end in openings(window, opened[0].opened, last)
            if not any(one.opened < end and one.closes > begin for one in opened)
        ]
    limited = [(one.ended_at, one.closes) for one in opened if one.ended_at is not None]
    hours = Hours(sorted(wanted), limited)
    return cover(held, await journal.gaps(), hours if opened else None), hours, opened


def window_shown(
    told: dict[str, Any], found: Coverage, hours: Hours, opened: Sequence[Opened]
) -> dict[str, Any] | None:
    """What was held of a window's hours; None when there never was one."""
    if not told and not opened:
        return None
    begin, now = (found.stretches[0].begin if found.stretches else 0), faults.clock.now_us()
    known = {one.opened: one for one in opened}
    rows: list[dict[str, Any]] = []
    for opens, closes in hours.wanted:
        start, stop = max(opens, begin), min(closes, now)
        seconds, held = max(0, stop - start) / 1e6, found.held_within(start, stop)
        row = known.get(opens)
        rows.append(
            {"opened": format_time(opens), "closes": format_time(closes), "resume": row.resume if row else None,
             "seconds": round(seconds, 3), "seconds_held": round(held, 3),
             "share_held": held / seconds if seconds else None, "posts": row.posts if row else 0,
             "kept": row.kept if row else 0, "why": _why_ended(row, closes, now)}
        )  # fmt: skip
    whole = sum(row["seconds"] for row in rows)
    share = sum(row["seconds_held"] for row in rows) / whole if whole else None
    return {
        **{name: told.get(name) for name in ("from", "to", "zone", "resume")},
        "share_held": share,
        "openings": rows,
    }


def _why_ended(row: Opened | None, closes: int, now: int) -> str:
    if row is None:
        return "nothing was collected"
    return row.why or ("its hours were over" if closes <= now else "goes on")


def _gap(gap: Gap) -> dict[str, Any]:
    times = {name: None if at is None else format_time(at) for name, at in
             (("noted", gap.at), ("from", gap.from_at), ("until", gap.until_at))}  # fmt: skip
    missing = None if gap.from_at is None or gap.until_at is None else max(0, gap.until_at - gap.from_at) / 1e6
    return {
        "host": gap.host, "epoch": gap.epoch, "cause": gap.cause, "after_seq": gap.after_seq,
        "until_seq": gap.until_seq, **times, "seconds": missing,
    }  # fmt: skip


def _strip(stretches: Sequence[Stretch]) -> str:
    """The whole time in 72 columns: the more of a column was held, the fuller it is."""
    begin, end = (stretches[0].begin, stretches[-1].end) if stretches else (0, 0)
    if begin == end:
        return ""
    width = (end - begin) / _COLUMNS
    columns = [defaultdict[str, float](float) for _ in range(_COLUMNS)]
    for one in stretches:
        for at in range(int((one.begin - begin) / width), min(_COLUMNS, int((one.end - begin) / width) + 1)):
            low, high = begin + at * width, begin + (at + 1) * width
            columns[at][one.kind] += max(0.0, min(one.end, high) - max(one.begin, low)) / width
    return "".join(map(_column, columns))


def _column(kinds: Mapping[str, float]) -> str:
    share = kinds["held"]
    if share > _FULL:
        return "█"
    shown = "▓▒░ "[min(3, int((1 - share) * 4))]
    return "·" if shown == " " and kinds["window"] > share else shown


def coverage_text(found: dict[str, Any]) -> str:
    """For people."""
    if found["from"] is None:
        return "nothing was held yet"
    share = _percent(found["share_held"])
    lines = [f"held             {share} of the time from {found['from']} to {found['to']} (times of the events)"]
    if found["strip"]:
        lines.append(f"                 {found['strip']}")
    lines += [f"{kind:16} {seconds:,.1f} s" for kind, seconds in found["seconds"].items()]
    lines += _window_text(found["window"]) if found["window"] else []
    for host in found["hosts"]:
        lines.append(
            f"host             {host['host']}  epoch {host['epoch']}  {host['first_at']} to {host['last_at']}  "
            f"{host['frames']:,} frames, {host['connections']:,} connection{'s' * (host['connections'] != 1)}, "
            f"{_percent(host['share_held'])} held"
        )
    for gap in (one for one in found["gaps"] if one["cause"] != "window"):  # the openings tell of those
        if gap["seconds"] is None:
            missing = "not over yet"
        else:
            missing = f"{gap['seconds']:,.1f} s" if gap["seconds"] else "read again from the host's window"
        lines.append(f"gap              {gap['host']}  after {gap['after_seq']}: {gap['cause']}, {missing}")
    return "\n".join(lines)


def _window_text(window: dict[str, Any]) -> list[str]:
    rows = window["openings"]
    hours = "none any more" if window["from"] is None else _hours(window)
    openings = f"{len(rows):,} opening{'s' * (len(rows) != 1)}"
    lines = [f"window           {hours}: {_percent(window['share_held'])} of its hours held, {openings}"]
    if len(rows) > _OPENINGS:
        lines.append(f"opening          {len(rows) - _OPENINGS:,} earlier ones: --json has them")
    for row in rows[-_OPENINGS:]:
        lines.append(
            f"opening          {row['opened']} to {row['closes']}  {row['resume'] or '-'}  "
            f"{_percent(row['share_held'])} held, {row['posts']:,} posts, {row['kept']:,} kept; {row['why']}"
        )
    return lines


def _hours(window: dict[str, Any]) -> str:
    return f"{window['from']} to {window['to']} {window['zone']}, resume {window['resume']}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.4%}"


_DRIFTS: Final = 7
_OPENINGS: Final = 14
_COLUMNS: Final = 72
_FULL: Final = 0.999


async def gather(folder: Path) -> dict[str, Any]:
    """Everything that `civicsky status` shows. Raises `Usage` when there is no journal."""
    folder = datadir.existing(folder)
    journal = await JournalReader.open(folder / datadir.JOURNAL)
    try:
        counts = await journal.counts()
        positions = await journal.positions()
        last_change = await journal.last_change()
        gaps = await journal.gaps()
        size = await journal.size()
        told, window = await window_told(journal)
        opened = await journal.openings()
        fetches = await journal.fetches()
    finally:
        await journal.close()
    return {
        "data_dir": str(folder),
        "window": {**told, **_window_now(window, opened)} if window else None,
        "journal_bytes": size,
        "hosts": [
            {
                "host": at.host,
                "epoch": at.epoch,
                "cursor": at.cursor,
                "event_at": None if at.event_at is None else format_time(at.event_at),
                "lag_s": None if at.event_at is None else round((now_us() - at.event_at) / 1e6, 1),
            }
            for at in positions
        ],
        "balances": [
            {**found._asdict(), "closes": found.closes}
            for unit in _OUTCOMES
            if (found := balance(counts, unit)).received or unit in _ALWAYS
        ],
        "rejected": reasons(counts, "post", "rejected"),
        "quarantined": {unit: reasons(counts, unit, "quarantined") for unit in ("frame", "post")},
        "gaps": [
            {
                "host": gap.host,
                "epoch": gap.epoch,
                "cause": gap.cause,
                "after_seq": gap.after_seq,
                "at": format_time(gap.at),
            }
            for gap in gaps
        ],
        "fetches": [_fetch(row) for row in {row["name"]: row for row in fetches if row["name"]}.values()],
        "workers": workers.read(folder),
        "articles": await articles.read(folder),
        **await _ledger(folder, last_change),
    }


def _window_now(window: Window, opened: Sequence[Opened]) -> dict[str, Any]:
    """Whether it is open, and until when, by the clock alone."""
    now = faults.clock.now_us()
    edge, opens = next_edge(window, now), is_open(window, now)
    why = next((one.why for one in reversed(opened) if one.opened <= now < one.closes), "") if opens else ""
    return {"open": opens and not why, "until": format_time(next_edge(window, edge) if why else edge), "why": why}


def _fetch(row: dict[str, Any]) -> dict[str, Any]:
    """A feed's last fetch."""
    outcomes: Counter[str] = Counter()
    for outcome, _reason, n in row["outcomes"]:
        outcomes[outcome] += n
    return {
        "name": row["name"],
        "at": format_time(row["at"]),
        "complete": bool(row["complete"]),
        "why": row["why"],
        "items": row["items"],
        "outcomes": {name: outcomes[name] for name in _OUTCOMES["feed"]},
    }


async def _ledger(folder: Path, last_change: int) -> dict[str, Any]:
    if not (folder / datadir.LEDGER).is_file():
        return {"changes_to_follow": last_change, "waiting": 0, "labelled": 0, "failed": 0}
    ledger = await LedgerReader.open(folder / datadir.LEDGER)
    try:
        return {
            "changes_to_follow": last_change - await ledger.position(),
            **await ledger.summary(),
            "rounds": await rounds.listed(ledger.database),
            "drift": [_with_interval(row) for row in await rounds.drift(ledger.database)],
        }
    finally:
        await ledger.close()


def _with_interval(row: dict[str, Any]) -> dict[str, Any]:
    """The flip rate of the probes, with its 95 % interval."""
    share = Share(row["flipped"], row["n"])
    return {**row, "flip_rate": share.hits / share.n if share.n else None, "interval": share.interval()}


def as_text(status: dict[str, Any]) -> str:
    """For people."""
    lines = [f"data directory   {status['data_dir']}"]
    lines.append(f"journal          {status['journal_bytes'] / 1e6:,.1f} MB in use")
    for host in status["hosts"]:
        lag = "-" if host["lag_s"] is None else f"{host['lag_s']:,} s"
        lines.append(f"host             {host['host']}  epoch {host['epoch']}  cursor {host['cursor']}  lag {lag}")
    lines += _window_line(status.get("window"))
    for found in status["balances"]:
        lines.append("balance          " + str(Balance(found["unit"], found["received"], found["outcomes"])))
    if status["rejected"]:
        lines.append("rejected         " + ", ".join(f"{name} {n:,}" for name, n in status["rejected"].items()))
    for unit, found in status["quarantined"].items():
        if found:
            lines.append(f"quarantined      {unit}s: " + ", ".join(f"{name} {n:,}" for name, n in found.items()))
    for fetch in status.get("fetches", ()):
        whole = "" if fetch["complete"] else f", not whole: {harmless(fetch['why'])}"
        parts = ", ".join(f"{name} {n:,}" for name, n in fetch["outcomes"].items())
        lines.append(f"fetched          {harmless(fetch['name'])}  {fetch['at']}  {fetch['items']:,}: {parts}{whole}")
    for gap in (one for one in status["gaps"] if one["cause"] != "window"):
        lines.append(f"gap              {gap['host']} epoch {gap['epoch']} after {gap['after_seq']}: {gap['cause']}")
    waiting = status["waiting"] + status["changes_to_follow"]
    lines.append(f"labels           waiting {waiting:,}, labelled {status['labelled']:,}, failed {status['failed']:,}")
    if status.get("failed_by_reason"):
        why = sorted(status["failed_by_reason"].items(), key=lambda one: -one[1])
        lines.append("failed           " + ", ".join(f"{name} {n:,}" for name, n in why))
    lines += workers.as_text(status.get("workers"))
    lines += _gate_text(status.get("gate"))
    lines += articles.as_text(status.get("articles"))
    lines += _asked_text(status)
    if status.get("unstored"):
        lines.append(f"store            {status['unstored']:,} documents wait")
    return "\n".join(lines)


def _window_line(window: dict[str, Any] | None) -> list[str]:
    """Whether the window is open, and until when."""
    if window is None:
        return []
    reason = f" ({window['why']})" if window["why"] else ""
    state = "open" if window["open"] else "closed"
    return [f"window           {_hours(window)}; {state} until {window['until']}{reason}"]


def _gate_text(gate: dict[str, int] | None) -> list[str]:
    """What a gate saved, if there ever was one."""
    if not gate or not any(gate.values()):
        return []
    seen = sum(gate.values())
    return [
        f"gate             {gate['skipped']:,} of {seen:,} calls saved; {gate['passed']:,} posts passed, "
        f"{gate['asked_anyway']:,} under the threshold were asked about all the same"
    ]


def _asked_text(status: dict[str, Any]) -> list[str]:
    """What was drawn, what it cost, what is asked again, and whether the model still says the same."""
    lines = []
    drawn = status.get("sample", {"seen": 0, "drawn": 0})
    if drawn["seen"]:
        lines.append(f"sample           {drawn['drawn']:,} of {drawn['seen']:,} posts drawn for labelling")
    for spend in status.get("spend", ()):
        tokens = spend["tokens_in"] + spend["tokens_out"]
        unit = harmless(status.get("currency") or "")
        cost, today = (
            f", {spend[name]:,.2f} {unit}".rstrip() if spend["cost"] else "" for name in ("cost", "cost_today")
        )
        lines.append(
            f"spend            {harmless(spend['model'])}: {spend['calls']:,} calls, {tokens:,} tokens{cost}; "
            f"today {spend['tokens_today']:,} tokens{today}"
        )
    for one in status.get("rounds", ()):
        state = "listing" if not one["listed"] else "waiting" if one["waiting"] else "done"
        lines.append(
            f"again            round {one['round']} of {one['task']}: {one['posts']:,} posts, "
            f"{one['waiting']:,} wait, {state}"
        )
    for row in status.get("drift", ())[:_DRIFTS]:
        share = Share(row["flipped"], row["n"])
        lines.append(f"drift            {row['day']}  {row['task']}: labels changed {share}")
    return lines
