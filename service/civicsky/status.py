"""What the data directory says by itself, whether civicsky runs or not."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

from civicsky import datadir, rounds
from civicsky.coverage import Stretch, cover
from civicsky.journal import JournalReader
from civicsky.ledger import LedgerReader
from civicsky.log import harmless
from civicsky.model import FeedOutcome, FrameOutcome, Gap, PostOutcome, format_time, now_us
from civicsky.share import Share

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


def reasons(counts: Counts, unit: str, outcome: str) -> dict[str, int]:
    """One outcome's reasons, the most frequent first."""
    found = Counter({reason: n for (of, what, reason), n in counts.items() if (of, what) == (unit, outcome) and reason})
    return dict(found.most_common())


async def gather_coverage(folder: Path) -> dict[str, Any]:
    """Everything that `civicsky coverage` shows. Raises `Usage` when there is no journal."""
    journal = await JournalReader.open(datadir.existing(folder) / datadir.JOURNAL)
    try:
        found = cover(await journal.held(), await journal.gaps())
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
    }  # fmt: skip


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
    columns = [0.0] * _COLUMNS
    for one in stretches:
        if one.kind != "held":
            continue
        for at in range(int((one.begin - begin) / width), min(_COLUMNS, int((one.end - begin) / width) + 1)):
            low, high = begin + at * width, begin + (at + 1) * width
            columns[at] += max(0.0, min(one.end, high) - max(one.begin, low)) / width
    return "".join("█" if share > _FULL else "▓▒░ "[min(3, int((1 - share) * 4))] for share in columns)


def coverage_text(found: dict[str, Any]) -> str:
    """For people."""
    if found["from"] is None:
        return "nothing was held yet"
    share = _percent(found["share_held"])
    lines = [f"held             {share} of the time from {found['from']} to {found['to']} (times of the events)"]
    if found["strip"]:
        lines.append(f"                 {found['strip']}")
    lines += [f"{kind:16} {seconds:,.1f} s" for kind, seconds in found["seconds"].items()]
    for host in found["hosts"]:
        lines.append(
            f"host             {host['host']}  epoch {host['epoch']}  {host['first_at']} to {host['last_at']}  "
            f"{host['frames']:,} frames, {host['connections']:,} connections, "
            f"{_percent(host['share_held'])} held"
        )
    for gap in found["gaps"]:
        if gap["seconds"] is None:
            missing = "not over yet"
        else:
            missing = f"{gap['seconds']:,.1f} s" if gap["seconds"] else "read again from the host's window"
        lines.append(f"gap              {gap['host']}  after {gap['after_seq']}: {gap['cause']}, {missing}")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.4%}"


_DRIFTS: Final = 7
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
        fetches = await journal.fetches()
    finally:
        await journal.close()
    return {
        "data_dir": str(folder),
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
        **await _ledger(folder, last_change),
    }


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
    for gap in status["gaps"]:
        lines.append(f"gap              {gap['host']} epoch {gap['epoch']} after {gap['after_seq']}: {gap['cause']}")
    waiting = status["waiting"] + status["changes_to_follow"]
    lines.append(f"labels           waiting {waiting:,}, labelled {status['labelled']:,}, failed {status['failed']:,}")
    if status.get("failed_by_reason"):
        why = sorted(status["failed_by_reason"].items(), key=lambda one: -one[1])
        lines.append("failed           " + ", ".join(f"{name} {n:,}" for name, n in why))
    lines += _asked_text(status)
    if status.get("unstored"):
        lines.append(f"store            {status['unstored']:,} documents wait")
    return "\n".join(lines)


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
