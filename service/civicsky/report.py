"""Readable reports over a data directory and its store: text out, nothing printed here."""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from civicsky import datadir
from civicsky.app import Summary
from civicsky.document import Document
from civicsky.journal import JournalReader
from civicsky.model import post_uri
from civicsky.settings import Settings
from civicsky.share import Share
from civicsky.status import Balance, gather
from civicsky.store import open_store


def printable(text: str, width: int = 100) -> str:
    """A post's text for a terminal: one line, no control or direction-changing character, bounded."""
    plain = "".join(
        "?" if unicodedata.category(char) in {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"} else char
        for char in " ".join(text.split())
    )
    return plain if len(plain) <= width else plain[: width - 1] + "…"


async def rejects_listed(folder: Path, limit: int) -> list[dict[str, Any]]:
    """What the filter rejected (with the text, for the sampled share) and what it flagged, the newest of each."""
    from libipld import decode_dag_cbor  # noqa: PLC0415

    reader = await JournalReader.open(datadir.existing(folder) / datadir.JOURNAL)
    try:
        rejected, flagged = await reader.rejects(limit), await reader.flagged(limit)
    finally:
        await reader.close()
    rows: list[dict[str, Any]] = []
    for row in rejected:
        record = decode_dag_cbor(row["record"]) if row["record"] else {}
        text = record.get("text") if isinstance(record, dict) else None
        rows.append({"kind": "rejected", "why": row["reason"], "uri": post_uri(row["did"], row["rkey"]), "text": text})
    rows += [
        {"kind": "flagged", "why": ",".join(row["flags"]), "uri": post_uri(row["did"], row["rkey"]), "text": None}
        for row in flagged
    ]
    return rows


def rejects_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """For people."""
    lines = [
        f"{row['kind']:9} {row['why']:12} {row['uri']}" + (f"  {printable(row['text'], 80)}" if row["text"] else "")
        for row in rows
    ]
    return "\n".join(lines) or "nothing was rejected or flagged"


async def demo_report(settings: Settings, summary: Summary, truth_file: Path) -> str:
    """The report at the end of the demo."""
    # Not splitlines: it also breaks lines at characters that posts contain.
    lines_of_truth = truth_file.read_text(encoding="utf-8").strip("\n").split("\n")
    truth = {row["uri"]: row for row in map(json.loads, lines_of_truth)}
    store = await open_store(settings.store, settings.data_dir / datadir.POSTS)
    try:
        posts = [doc async for doc in store.documents("posts") if doc["_id"] in truth]
    finally:
        await store.close()
    status = await gather(settings.data_dir)
    labelled = [doc for doc in posts if doc.get("labels", {}).get("civic")]
    states = Counter(doc["state"] for doc in posts)
    lines = [
        "",
        f"== civicsky demo report, {summary.ended} ==",
        "",
        "What came in, and what became of it (each line must close)",
        *(f"  {Balance(row['unit'], row['received'], row['outcomes'])}" for row in status["balances"]),
        "  rejected: " + ", ".join(f"{why} {n}" for why, n in status["rejected"].items()),
        "  documents: " + ", ".join(f"{state} {n}" for state, n in sorted(states.items())),
        f"  labelled {summary.labelled} of {summary.kept} kept, failed {status['failed']}, waiting {summary.waiting}; "
        "the rest was edited, hidden or deleted before its turn",
        "",
        "What the model says (share, 95 % interval)",
        *_shares(labelled),
        "",
        "Agreement with the sample's own labels",
        *_agreement(labelled, truth),
        "",
        "One stored post",
        *_example(labelled),
        "",
        "Look for yourself",
        *_where(settings),
        "",
        "Not shown: accuracy on Bluesky. The texts are made up; the model is a very small one and cannot tell lean.",
    ]
    return "\n".join(lines)


def _value(doc: Document, name: str) -> str | None:
    field = doc["labels"]["civic"]["fields"].get(name)
    return field["value"] if field else None


def _shares(labelled: list[Document]) -> list[str]:
    civic = [doc for doc in labelled if _value(doc, "civic") == "civic"]
    lines = [f"  {'civic':28} {Share(len(civic), len(labelled))}"]
    for name, title in (("lean", "of these, lean"), ("us_politics", "of these, US")):
        values = Counter(_value(doc, name) for doc in civic)
        lines += [f"  {title + ' ' + str(value):28} {Share(n, len(civic))}" for value, n in values.most_common()]
    return lines


def _agreement(labelled: list[Document], truth: Mapping[str, Any]) -> list[str]:
    scored = [
        (doc, row)
        for doc in labelled
        if (row := truth[doc["_id"]])["civic"] is not None and row["true_lang"] == "en" and doc["state"] == "live"
    ]
    said = [(_value(doc, "civic") == "civic", row["civic"]) for doc, row in scored]
    civic = sum(right for _, right in said)
    lines = [
        f"  {'civic or not':28} {Share(sum(a == b for a, b in said), len(said))}",
        f"  {'always the majority':28} {Share(max(civic, len(said) - civic), len(said))}",
    ]
    leans = [(_value(doc, "lean"), row["lean"]) for doc, row in scored if row["lean"] and _value(doc, "lean")]
    common = Counter(right for _, right in leans).most_common(1)
    lines.append(f"  {'lean, where both say civic':28} {Share(sum(a == b for a, b in leans), len(leans))}")
    if common:
        lines.append(f"  {'always ' + common[0][0]:28} {Share(common[0][1], len(leans))}")
    return lines


def _example(labelled: list[Document]) -> list[str]:
    live = [doc for doc in labelled if doc["state"] == "live" and _value(doc, "civic") == "civic"]
    text = json.dumps(live[0] if live else None, indent=2)  # ASCII only: nothing in it can move the cursor
    return ["  " + line for line in text.splitlines()]


def _where(settings: Settings) -> list[str]:
    if settings.store.chosen == "mongo":
        name = settings.store.mongo_database
        return [
            f"  MongoDB database {name}",
            f'  mongosh "$CIVICSKY_STORE__MONGO_URI" --eval \'db.getSiblingDB("{name}").posts.find('
            '{"labels.civic.fields.civic.value": "civic"}).limit(10)\'',
        ]
    file = settings.data_dir / datadir.POSTS
    query = "SELECT lean, probability, text FROM civic WHERE civic = 'civic' AND state = 'live' LIMIT 10"
    return [
        f"  database  {file}",
        f'  query     sqlite3 -box {file} "{query}"',
        f"  or        python3 -c \"import sqlite3; db = sqlite3.connect('{file}'); "
        "print(*db.execute('SELECT civic, lean, text FROM civic LIMIT 10'), sep='\\n')\"",
    ]
