"""Tells the store of runs, coverage and hours; its posts are told by the labelling half."""

from itertools import starmap
from typing import Any, Final

from civicsky import log
from civicsky.document import Document, hour_document
from civicsky.errors import Refused, Transient
from civicsky.journal import JournalReader
from civicsky.lifecycle import Stop, happened
from civicsky.metrics import Metrics
from civicsky.model import format_time, now_us
from civicsky.sample import HOUR_US
from civicsky.store import Collection, Store

PUBLISH_SECONDS: Final = 60.0
PUBLISH_DOCUMENTS: Final = 500


async def publish(reader: JournalReader, store: Store, metrics: Metrics, stop: Stop, *, strict: bool) -> None:
    """Tell the store of runs, coverage and hours: at once, which shows if we may write, regularly, and at the end."""
    told: dict[str, Document] = {}
    since = 0
    while True:
        last = stop.collected.is_set()
        now = now_us()
        runs = {doc["_id"]: doc for doc in map(run_document, await reader.runs())}
        rows = [{"kind": "held", **one._asdict()} for one in await reader.held()]
        rows += [{"kind": "gap", **one._asdict()} for one in await reader.gaps()]
        coverage = {doc["_id"]: doc for doc in map(coverage_document, rows)}
        counts = await reader.hours_told(since)
        hours = {doc["_id"]: doc for doc in starmap(hour_document, counts.items())}
        try:
            collections: tuple[tuple[Collection, dict[str, Document]], ...] = (
                ("runs", runs),
                ("coverage", coverage),
                ("hours", hours),
            )
            for name, documents in collections:
                changed = [doc for key, doc in documents.items() if told.get(key) != doc]
                for at in range(0, len(changed), PUBLISH_DOCUMENTS):
                    part = [{**doc, "v": now} for doc in changed[at : at + PUBLISH_DOCUMENTS]]
                    await store.put(name, part)
            told = runs | coverage | hours
            since = max(counts, default=0) - HOUR_US  # what is counted now goes to the present hour
        except Transient:
            pass  # the documents' own loop reports it, and tries again
        except Refused as error:
            if strict:
                raise
            if not metrics.store_why:
                log.event("store_parked", stage="store", why=str(error))
            metrics.store_why = metrics.store_parked = str(error)
            return
        if last:
            return
        await happened(stop.collected, PUBLISH_SECONDS)


def run_document(row: dict[str, Any]) -> Document:
    """A row of the journal's runs, as the store has it."""
    return {**row, "_id": str(row["started"]), "started": format_time(row["started"])}


def coverage_document(row: dict[str, Any]) -> Document:
    """What was held, or a gap, as the store has it."""
    row.pop("n", None)  # of the process, not of the gap
    names = ("at", "first_at", "last_at", "from_at", "until_at")
    times = {name: format_time(row[name]) for name in names if row.get(name) is not None}
    identity = (row["kind"], row["host"], row["epoch"], row.get("first_at") or row.get("at"))
    return {**row, **times, "_id": "/".join(map(str, identity))}
