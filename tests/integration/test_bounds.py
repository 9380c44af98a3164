"""What lies on the disk has a bound: reading pauses, posts are shed by chance, and what has outlived its use goes."""

import asyncio
import json
import sqlite3
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Literal

import pytest

from civicsky.journal import PRUNED_AT_ONCE, Journal
from civicsky.model import Arrival, Batch, Committed, Event, Frame, Key, PostOp, Verdict, now_us
from civicsky.settings import Journal as JournalSettings
from support.command import finish, model_server, query, run, start, until
from support.fake import all_taken, begin, compare, cursors, playing
from support.frames import block_and_cid, cid_of, post, tid
from support.led import balance_closes, counts, did_of, in_journal, in_store, led_relay, prune

HOST = "wss://relay"
DAY = 86_400_000_000
KEPT = Verdict("kept", "", json.dumps({"text": "x", "filter": {"flags": []}}))


class Stream:
    """Commits that a journal is given, one batch after the other."""

    def __init__(self, journal: Journal) -> None:
        self.journal, self.n = journal, 0

    async def commit(
        self, action: Literal["create", "update", "delete"], keys: Sequence[Key], *, at: int | None = None,
        verdict: Verdict = KEPT, block: bytes = b"record",
    ) -> Committed:  # fmt: skip
        frames = []
        for rkey, did in keys:
            self.n += 1
            op = PostOp(0, action, rkey, b"" if action == "delete" else cid_of(block), block)
            time = now_us() if at is None else at
            event = Event("commit", seq=self.n, did=did, time=time, rev=tid(self.n), posts=[op])
            frames.append(Frame(Arrival(self.n, HOST, 1, 1, None, b"", time), event, "commit", ""))
        batch = Batch(frames)
        verdicts = [verdict] * len(batch.records())
        return await self.journal.commit(batch, verdicts, Counter(frame=len(keys), post=len(keys)))

    async def aside(self, data: bytes, at: int | None = None) -> None:
        self.n += 1
        arrival = Arrival(self.n, HOST, 1, 1, None, data, now_us() if at is None else at)
        frame = Frame(arrival, Event("quarantined"), "quarantined", "undecodable")
        await self.journal.commit(Batch([frame]), [], Counter(frame=1))


@asynccontextmanager
async def stream(folder: Path, **settings: Any) -> AsyncIterator[Stream]:
    journal = await Journal.open(folder / "journal.db", JournalSettings(**settings))
    try:
        yield Stream(journal)
    finally:
        await journal.close()


async def nothing_settled(_keys: Sequence[Key]) -> list[Key]:
    return []


async def all_settled(keys: Sequence[Key]) -> Sequence[Key]:
    return keys


def keys(first: int, last: int) -> list[Key]:
    return [(f"3aaaaaaa{n:05d}", did_of(n % 50)) for n in range(first, last)]


# ---- pause -----------------------------------------------------------------------------------------------------------


def log_until(process: "subprocess.Popen[str]", event: str) -> str:
    """What the service writes until it tells of this event."""
    assert process.stderr is not None
    log = ""
    for line in process.stderr:
        log += line
        if event in line:
            return log
    raise AssertionError(f"it ended without {event}: {log}")


async def test_a_full_journal_makes_reading_pause_and_nothing_is_lost(tmp_path: Path) -> None:
    bounds: dict[str, Any] = {"worker__processes": 1, "worker__batch_frames": 16, "journal__max_bytes": 600_000}
    async with playing(events=4000) as relay:
        process = begin(tmp_path, relay, **bounds)
        log = await asyncio.to_thread(log_until, process, "journal_full")
        at_bound = counts(tmp_path, "frame")["received"]
        await asyncio.to_thread(until, lambda: relay.is_quiet, "the relay to have sent what the sockets take")
        process.terminate()
        ended = await asyncio.to_thread(finish, process)
        assert ended.code == 0, ended.err
        assert counts(tmp_path, "frame")["received"] <= at_bound + 4 * 16 + 2
        assert not all_taken(tmp_path, relay)
        assert (log + ended.err).count("journal_full") == 1

        # Nothing has changed at the next start but that there is no room.
        before = cursors(tmp_path, relay)
        process = begin(tmp_path, relay, **bounds)
        await asyncio.to_thread(log_until, process, "journal_full")
        process.terminate()
        await asyncio.to_thread(finish, process)
        assert counts(tmp_path, "frame")["received"] <= at_bound + 8 * 16 + 4
        assert cursors(tmp_path, relay)[0] >= before[0]

        process = begin(tmp_path, relay)
        await asyncio.to_thread(until, lambda: relay.is_quiet and all_taken(tmp_path, relay), "all to be held")
        process.terminate()
        assert (await asyncio.to_thread(finish, process)).code == 0
        told = relay.oracle(cursors=cursors(tmp_path, relay))
    assert told["lost"] == 0
    compare(tmp_path, told)
    assert balance_closes(tmp_path)


async def test_reading_goes_on_once_pruning_has_made_room(tmp_path: Path) -> None:
    async with stream(tmp_path, max_bytes=400_000, post_days=0) as led:
        number = 0
        while led.journal.room.is_set():
            await led.commit("create", keys(number, number + 100), block=b"x" * 500)
            number += 100
        await led.journal.prune(None, nothing_settled)
        assert not led.journal.room.is_set(), "what is not labelled and stored is kept"
        assert len(in_journal(tmp_path)) == number
        await led.journal.prune(led.n, all_settled)
        assert led.journal.room.is_set()
        assert in_journal(tmp_path) == {}


async def test_there_is_room_again_only_some_way_below_the_bound(tmp_path: Path) -> None:
    async with stream(tmp_path, max_bytes=10**9, post_days=0) as led:
        await led.commit("create", keys(0, 2000), block=b"x" * 500)
    size = await _size(tmp_path)
    for bound, is_set in ((size, False), (round(size * 1.05), False), (round(size * 1.2), True)):
        async with stream(tmp_path, max_bytes=bound) as led:
            led.journal.room.clear()
            await led.journal.prune(None, nothing_settled)
            assert led.journal.room.is_set() == is_set, bound


async def _size(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "journal.db")) as db:
        pages, free, size = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in
                             ("page_count", "freelist_count", "page_size"))  # fmt: skip
    return int((pages - free) * size)


# ---- shed ------------------------------------------------------------------------------------------------------------


async def test_shedding_keeps_new_posts_with_the_stored_probability_and_updates_of_kept_ones(tmp_path: Path) -> None:
    async with stream(tmp_path, max_bytes=1, at_bound="shed", shed_share=0.2) as led:
        before = await led.commit("create", keys(0, 10))
        assert before.counts["post", "kept", ""] == 10
        assert led.journal.shedding
        assert not led.journal.room.is_set(), "far beyond the bound reading pauses all the same"
        found = Counter[str]()
        for at in range(1000, 4000, 500):
            done = await led.commit("create", keys(at, at + 500))
            found += Counter({outcome: n for (unit, outcome, _), n in done.counts.items() if unit == "post"})
        assert found.keys() == {"kept", "shed"}
        assert found.total() == 3000
        assert 450 < found["kept"] < 750  # 600, and seven standard deviations
        kept = {rkey for rkey, _ in keys(1000, 4000)} & in_journal(tmp_path).keys()
        some = [key for key in keys(1000, 4000) if key[0] in kept]
        assert (await led.commit("update", some)).counts["post", "updated", ""] == len(some)
        assert (await led.commit("update", keys(0, 10))).counts["post", "updated", ""] == 10
        again = await led.commit("create", keys(1000, 1500))
        assert again.counts["post", "shed", ""] + again.counts["post", "updated", ""] == 500
    shares = query(tmp_path / "journal.db", "SELECT p_kept, count(*) FROM post GROUP BY 1 ORDER BY 1")
    assert shares == [(0.2, len(kept)), (1.0, 10)]
    assert balance_closes(tmp_path)


async def test_nobody_can_tell_beforehand_which_posts_are_shed(tmp_path: Path) -> None:
    drawn = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        async with stream(tmp_path / name, max_bytes=1, at_bound="shed", shed_share=0.5) as led:
            await led.commit("create", keys(0, 1))
            await led.commit("create", keys(1, 201))
        drawn.append(in_journal(tmp_path / name).keys())
    assert drawn[0] != drawn[1]


def test_the_probability_reaches_the_store(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with led_relay() as relay, model_server(tmp_path / "log") as model:
        for n in range(60):
            relay.post(f"3aaaaaaaaa{n:03d}", f"A post in plain English, number {n}", did=did_of(n))
        assert run("collect", "--relay", "ws://127.0.0.1:1", "--data-dir", folder, "--max-minutes", 0.0001).code == 0
        empty = json.loads(run("status", "--json", "--data-dir", folder).out)["journal_bytes"]
        ended = run(
            "collect", "--relay", relay.url, "--data-dir", folder, "--max-frames", 60, worker__batch_frames=1,
            journal__max_bytes=empty + 5000, journal__at_bound="shed", journal__shed_share=0.2,
        )  # fmt: skip
        assert ended.code == 0, ended.err
        assert run("label", "--drain", "--data-dir", folder, "--model-url", model, "--model", "mock").code == 0
    shed = counts(folder, "post")["shed"]
    assert 0 < shed < 60
    rows = dict(query(folder / "journal.db", "SELECT rkey, p_kept FROM post"))
    assert {rkey: doc["p_kept"] for rkey, doc in in_store(folder).items()} == rows
    assert set(rows.values()) == {0.2, 1.0}
    assert len(rows) + shed == 60
    assert balance_closes(folder)
    assert json.loads(run("status", "--json", "--data-dir", folder).out)["balances"][1]["outcomes"]["shed"] == shed
    assert "new posts are shed" in ended.err


# ---- what has outlived its use ---------------------------------------------------------------------------------------


def test_a_post_goes_once_it_is_labelled_and_stored_and_not_before(model: tuple[str, Path], tmp_path: Path) -> None:
    with led_relay() as relay:
        for n in range(6):
            relay.post(f"3aaaaaaaaaaa{'abcdef'[n]}", f"A post in plain English, number {n}")
        collected = run("collect", "--relay", relay.url, "--data-dir", tmp_path, "--max-frames", 6)
    assert collected.code == 0, collected.err
    # Stored, but not labelled: the model is not there.
    process = start("label", "--data-dir", tmp_path, "--model-url", "http://127.0.0.1:1/v1", "--model", "mock")
    until(lambda: len(in_store(tmp_path)) == 6, "all to be stored")
    process.terminate()
    finish(process)
    assert len(asyncio.run(_pruned(tmp_path))) == 6
    ended = run("label", "--drain", "--data-dir", tmp_path, "--model-url", model[0], "--model", "mock")
    assert ended.code == 0, ended.err
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as db, db:  # one of which the store does not know yet
        db.execute("UPDATE doc SET v = v + 1 WHERE rkey = '3aaaaaaaaaaab'")
    assert asyncio.run(_pruned(tmp_path, post_days=1)).keys() == in_store(tmp_path).keys(), "not old enough"
    assert asyncio.run(_pruned(tmp_path)).keys() == {"3aaaaaaaaaaab"}
    assert len(in_store(tmp_path)) == 6


async def _pruned(folder: Path, post_days: float = 0) -> dict[str, Any]:
    await prune(folder, post_days=post_days)
    return dict(in_journal(folder))


async def test_tombstones_stay_for_their_days_so_that_nothing_late_brings_a_post_back(tmp_path: Path) -> None:
    async with stream(tmp_path, tombstone_days=30, post_days=0) as led:
        for n, days in enumerate((40, 20)):
            await led.commit("create", keys(n, n + 1), at=now_us() - days * DAY)
            await led.commit("delete", keys(n, n + 1), at=now_us() - days * DAY)
        await led.journal.prune(led.n, all_settled)
    assert [state for state, _ in in_journal(tmp_path).values()] == ["deleted"]
    assert in_journal(tmp_path).keys() == {keys(1, 2)[0][0]}


async def test_changes_that_were_followed_and_old_rejects_go(tmp_path: Path) -> None:
    async with stream(tmp_path, reject_days=7) as led:
        await led.commit("create", keys(0, 10))
        rejected = Verdict("rejected", "language", "{}")
        await led.commit("create", keys(10, 11), at=now_us() - 8 * DAY, verdict=rejected)
        await led.commit("create", keys(11, 12), at=now_us() - 6 * DAY, verdict=rejected)
        await led.journal.prune(7, nothing_settled)
    assert query(tmp_path / "journal.db", "SELECT n FROM change") == [(8,), (9,), (10,)]
    assert query(tmp_path / "journal.db", "SELECT rkey FROM reject") == [(keys(11, 12)[0][0],)]


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"quarantine_rows": 3}, [7, 8, 9]),
        ({"quarantine_bytes": 2500}, [8, 9]),
        ({"quarantine_rows": 0}, []),
        ({"quarantine_days": 0.5}, [5, 6, 7, 8, 9]),
        ({}, list(range(10))),
    ],
)
async def test_of_what_was_put_aside_the_oldest_go_first(
    settings: dict[str, Any], left: list[int], tmp_path: Path
) -> None:
    async with stream(tmp_path, **settings) as led:
        for n in range(10):
            await led.aside(bytes([n]) * 1000, at=now_us() - (DAY if n < 5 else 0))
        await led.journal.prune(None, nothing_settled)
    found = query(tmp_path / "journal.db", "SELECT bytes FROM quarantine ORDER BY id")
    assert [row[0][0] for row in found] == left
    assert counts(tmp_path, "frame")["quarantined"] == 10, "the counts stay"


async def test_space_that_became_free_is_given_back_to_the_disk(tmp_path: Path) -> None:
    async with stream(tmp_path, post_days=0) as led:
        await led.commit("create", keys(0, 3000), block=block_and_cid(post("x" * 2000))[0])
        await led.journal.database.truncate_log()
        before = (tmp_path / "journal.db").stat().st_size
        for _ in range(4):
            await led.journal.prune(led.n, all_settled)
        assert (tmp_path / "journal.db").stat().st_size < before / 4


async def test_what_outlived_its_use_by_the_thousand_goes_in_pages_and_commits_need_not_wait_for_all(
    tmp_path: Path,
) -> None:
    """As after a stop of a week, when all that was rejected is too old at once."""
    n = 4 * PRUNED_AT_ONCE
    async with stream(tmp_path) as it:
        journal = it.journal
        async with journal.database.transaction() as db:
            await db.executemany(
                "INSERT INTO reject VALUES (?,'did:plc:x','',0,'language',0,NULL)", [(tid(at),) for at in range(n)]
            )
            await db.executemany(
                "INSERT INTO change (kind, did, rkey, rev, at) VALUES ('put','did:plc:x',?,'',0)",
                [(tid(at),) for at in range(n)],
            )
        left: dict[str, set[int]] = {"reject": set(), "change": set()}
        pruning = asyncio.create_task(journal.prune(n - 1, _nothing))
        while not pruning.done():
            for table, seen in left.items():
                seen.update(*await journal.database.rows(f"SELECT count(*) FROM {table}"))
        await pruning
        for table, end in (("reject", 0), ("change", 1)):
            assert left[table] - {0, 1, n}, "somebody had a turn in the midst of it"
            assert await journal.database.rows(f"SELECT count(*) FROM {table}") == [(end,)]


async def _nothing(_keys: Sequence[Key]) -> Sequence[Key]:
    return []
