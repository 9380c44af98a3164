"""What a batch costs does not grow with what is there already: counted in steps of SQLite's machine, not in seconds."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.large_journal import NEWEST, fill
from civicsky.app import catch_up
from civicsky.journal import Journal, JournalReader
from civicsky.ledger import Ledger
from civicsky.metrics import Metrics
from civicsky.model import Answer, Arrival, Batch, Change, Event, FieldLabel, Frame, Key, LabelRow, PostOp, Verdict
from civicsky.sample import Drawing
from civicsky.settings import Journal as JournalSettings, Settings
from civicsky.sqlite import Database
from support.command import query
from support.world import tid

FEW, MANY = 200, 6_000
AT_ONCE = 40
MORE = 2.0
"""Times as many steps as with a thirtieth of the posts: trees get a level deeper, pages split elsewhere."""
ANSWER = Answer(
    fields={"civic": FieldLabel("civic", 0.9)}, way="schema", prompt_hash="p", model_asked="m", model_named="m",
    fingerprint="f", parameters="{}", endpoint="e", input_hash="i", tokens_in=1, tokens_out=1, latency_ms=1, calls=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Data directories with few and with many posts that were followed and stored, and wait for a label."""
    made = {}
    for posts in (FEW, MANY):
        made[posts] = tmp_path_factory.mktemp(f"with-{posts}") / "data"
        fill(made[posts], posts, waiting=True)
    return made


class Steps:
    """Counts what one connection does, in hundreds."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self) -> int:
        self.n += 1
        return 0

    async def of(self, database: Database, doing: Callable[[], Awaitable[Any]]) -> int:
        await database._connection.set_progress_handler(self, 100)
        before = self.n
        await doing()
        return self.n - before


def held(folder: Path) -> list[Key]:
    return [(rkey, did) for rkey, did in query(folder / "journal.db", "SELECT rkey, did FROM post")][:: FEW // AT_ONCE]


async def taken(folder: Path) -> int:
    """Steps of a batch with new posts, rejected ones, deletions of posts that were held or never seen, and accounts."""
    journal = await Journal.open(folder / "journal.db", JournalSettings())
    try:
        known = held(folder)[:AT_ONCE]
        ops = [PostOp(0, "create", tid(n), b"c" * 36, b"b") for n in range(2 * AT_ONCE)]
        authors = [f"did:plc:new{n}" for n in range(2 * AT_ONCE)]
        ops += [PostOp(0, "delete", rkey, b"", b"") for rkey, _ in known]
        authors += [did for _, did in known]
        ops += [PostOp(0, "delete", tid(1000 + n), b"", b"") for n in range(AT_ONCE)]
        authors += [f"did:plc:other{n}" for n in range(AT_ONCE)]
        events = [
            Event("commit", seq=seq, did=did, time=NEWEST + seq, rev=tid(10**9 + seq), posts=[op])
            for seq, (did, op) in enumerate(zip(authors, ops, strict=True), 1)
        ]
        frames = [
            Frame(Arrival(event.seq or 0, "wss://a", 1, 1, None, b"", NEWEST), event, "commit", "") for event in events
        ]
        ((fields,),) = query(folder / "journal.db", "SELECT fields FROM post WHERE id = 1")
        verdicts = [Verdict("kept", "", fields), Verdict("rejected", "language", "{}")] * AT_ONCE
        received = Counter(frame=len(frames), post=len(frames))
        return await Steps().of(journal.database, lambda: journal.commit(Batch(frames), verdicts, received))
    finally:
        await journal.close()


async def test_a_batch_of_the_stream_costs_the_same_with_many_posts_as_with_few(folders: dict[int, Path]) -> None:
    few, many = [await taken(folders[posts]) for posts in (FEW, MANY)]
    assert many < MORE * few, f"{few} hundred steps with {FEW} posts, {many} with {MANY}"
    assert query(folders[MANY] / "journal.db", "SELECT count(*) FROM post WHERE state = 'deleted'") == [(2 * AT_ONCE,)]


async def test_what_the_labelling_half_reads_of_the_journal_costs_the_same(folders: dict[int, Path]) -> None:
    found: dict[str, list[int]] = {}
    for posts in (FEW, MANY):
        reader = await JournalReader.open(folders[posts] / "journal.db")
        keys = held(folders[posts])[:AT_ONCE]
        doings: dict[str, Callable[[], Awaitable[Any]]] = {
            "posts": partial(reader.posts, keys),
            "shown": partial(reader.shown, keys),
            "counted": partial(reader.counted, keys, "feed"),
            "changes": partial(reader.changes, 10, AT_ONCE),
            "snapshots": partial(reader.snapshots, 0, AT_ONCE),
        }
        for name, doing in doings.items():
            found.setdefault(name, []).append(await Steps().of(reader._db, doing))
        await reader.close()
    assert {name: steps for name, steps in found.items() if steps[1] > MORE * steps[0] + 2} == {}


@asynccontextmanager
async def ledger_of(folder: Path) -> AsyncIterator[Ledger]:
    await catch_up(folder, Settings.model_validate({"sample": {"posts_per_day": 0}}), Metrics())
    ledger = await Ledger.open(folder / "ledger.db")
    try:
        yield ledger
    finally:
        await ledger.close()


async def test_what_the_labelling_half_does_in_its_ledger_costs_the_same(folders: dict[int, Path]) -> None:
    found: dict[str, list[int]] = {}
    for posts in (FEW, MANY):
        async with ledger_of(folders[posts]) as ledger:
            for name, steps in await in_ledger(ledger, folders[posts]):
                found.setdefault(name, []).append(steps)
    assert min(steps[0] for steps in found.values()) >= 1, found
    assert {name: steps for name, steps in found.items() if steps[1] > MORE * steps[0] + 2} == {}


async def in_ledger(ledger: Ledger, folder: Path) -> list[tuple[str, int]]:
    """(what is done, hundreds of steps), in the order of a post's life."""
    jobs = (await ledger.due(("civic",), (), 3 * AT_ONCE))[:AT_ONCE]
    reader = await JournalReader.open(folder / "journal.db")
    keys = [(job.rkey, job.did) for job in jobs]
    rows = list((await reader.posts(keys)).values())
    await reader.close()
    n = await ledger.position()
    edits = [Change(n + at, "put", row.did, row.rkey, "r", row.event_at) for at, row in enumerate(rows, 1)]
    gone = [Change(n + 100 + at, "delete", did, rkey, "r", NEWEST) for at, (rkey, did) in enumerate(keys, 1)]
    labels = [
        LabelRow(f"l{job.id}", job.did, job.rkey, job.cid, "civic", "2", job.run, 1.0, NEWEST, 1, ANSWER)
        for job in jobs
    ]

    async def answered() -> None:
        for job, label in zip(jobs, labels, strict=True):
            assert await ledger.answered(job, label)

    async def stored() -> None:
        outs = await ledger.outgoing(AT_ONCE)
        assert len(outs) == AT_ONCE
        await ledger.stored(outs, {})

    doings: dict[str, Callable[[], Awaitable[Any]]] = {
        "follow edits": lambda: ledger.follow(edits, rows, ("civic",), Drawing()),
        "due": lambda: ledger.due(("civic",), (), AT_ONCE),
        "still due": lambda: ledger.looked_up(jobs, ()),
        "cached": lambda: ledger.looked_up((), [f"k{n}" for n in range(AT_ONCE)]),
        "answered": answered,
        "stored": stored,
        "labels of": lambda: ledger.labels_of(keys),
        "unlabelled of": lambda: ledger.unlabelled_of(keys),
        "follow deletions": lambda: ledger.follow(gone, [], ("civic",), Drawing()),
    }
    looked_up = {"still due", "cached"}
    return [
        (name, await Steps().of(ledger._looking if name in looked_up else ledger.database, doing))
        for name, doing in doings.items()
    ]
