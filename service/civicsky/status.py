"""What the data directory says by itself, whether civicsky runs or not."""

from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

from civicsky import datadir
from civicsky.journal import JournalReader
from civicsky.ledger import LedgerReader
from civicsky.model import FrameOutcome, PostOutcome, format_time, now_us

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


_OUTCOMES: Final = {"frame": get_args(FrameOutcome), "post": get_args(PostOutcome)}


def balance(counts: Counts, unit: str) -> Balance:
    """The balance of frames, or of post operations."""
    totals: Counter[str] = Counter()
    for (of, outcome, _reason), n in counts.items():
        if of == unit:
            totals[outcome] += n
    return Balance(unit, totals["received"], {outcome: totals[outcome] for outcome in _OUTCOMES[unit]})


def reasons(counts: Counts, unit: str, outcome: str) -> dict[str, int]:
    """One outcome's reasons, the most frequent first."""
    found = Counter({reason: n for (of, what, reason), n in counts.items() if (of, what) == (unit, outcome) and reason})
    return dict(found.most_common())


async def gather(folder: Path) -> dict[str, Any]:
    """Everything that `civicsky status` shows. Raises `Usage` when there is no journal."""
    folder = datadir.existing(folder)
    journal = await JournalReader.open(folder / datadir.JOURNAL)
    try:
        counts = await journal.counts()
        positions = await journal.positions()
        last_change = await journal.last_change()
        gaps = [row for row in await journal.coverage() if row["kind"] == "gap"]
    finally:
        await journal.close()
    return {
        "data_dir": str(folder),
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
            {**found._asdict(), "closes": found.closes} for found in (balance(counts, "frame"), balance(counts, "post"))
        ],
        "rejected": reasons(counts, "post", "rejected"),
        "quarantined": {unit: reasons(counts, unit, "quarantined") for unit in ("frame", "post")},
        "gaps": [{**gap, "at": format_time(gap["at"])} for gap in gaps],
        **await _ledger(folder, last_change),
    }


async def _ledger(folder: Path, last_change: int) -> dict[str, Any]:
    if not (folder / datadir.LEDGER).is_file():
        return {"changes_to_follow": last_change, "waiting": 0, "labelled": 0, "failed": 0}
    ledger = await LedgerReader.open(folder / datadir.LEDGER)
    try:
        return {"changes_to_follow": last_change - await ledger.position(), **await ledger.summary()}
    finally:
        await ledger.close()


def as_text(status: dict[str, Any]) -> str:
    """For people."""
    lines = [f"data directory   {status['data_dir']}"]
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
    for gap in status["gaps"]:
        lines.append(f"gap              {gap['host']} epoch {gap['epoch']} after {gap['after_seq']}: {gap['cause']}")
    waiting = status["waiting"] + status["changes_to_follow"]
    lines.append(f"labels           waiting {waiting:,}, labelled {status['labelled']:,}, failed {status['failed']:,}")
    if status.get("unstored"):
        lines.append(f"store            {status['unstored']:,} documents wait")
    return "\n".join(lines)
