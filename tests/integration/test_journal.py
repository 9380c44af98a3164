"""The journal by itself."""

from collections import Counter
from pathlib import Path

from civicsky.journal import Journal
from civicsky.model import Arrival, Batch, Event, Frame, PostOp, Verdict
from civicsky.settings import Journal as JournalSettings
from civicsky.worker import judge_record
from support.world import DID, block_and_cid, post, tid

KEPT, REJECTED = Verdict("kept", "", "{}"), Verdict("rejected", "language", "{}")


async def test_a_rejection_that_is_newer_than_a_tombstone_decides_what_is_late(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.db", JournalSettings())
    outcomes = []
    steps = [("create", 1, KEPT), ("delete", 2, None), ("create", 5, REJECTED), ("update", 3, KEPT)]
    for seq, (action, rev, verdict) in enumerate(steps, 1):
        op = PostOp(0, action, "rkey", b"" if action == "delete" else b"c" * 36, b"" if action == "delete" else b"b")  # type: ignore[arg-type]
        event = Event("commit", seq=seq, did=DID, time=seq, rev=tid(rev), posts=[op])
        frame = Frame(Arrival(seq, "wss://a", 1, 1, None, b"", seq), event, "commit", "")
        done = await journal.commit(Batch([frame]), [verdict] if verdict else [], Counter(frame=1, post=1))
        outcomes += [outcome for unit, outcome, _ in done.counts if unit == "post"]
    await journal.close()
    assert outcomes == ["kept", "deleted", "rejected", "stale"]


async def test_an_account_that_is_deleted_leaves_feeds_files_though_it_is_back_at_once(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.db", JournalSettings())
    await journal.database.execute("INSERT INTO inboxed (did, rkey, file) VALUES (?, 'rkey', 'file')", (DID,))
    await journal.database.execute("INSERT INTO moderation (rkey, did, at, labels) VALUES ('rkey', ?, 1, '[]')", (DID,))
    frames = [
        Frame(
            Arrival(seq, "wss://a", 1, 1, None, b"", seq),
            Event("account", seq=seq, did=DID, time=seq, status=status),
            "account",
            "",
        )
        for seq, status in enumerate(["deleted", "active"], 1)
    ]
    await journal.commit(Batch(frames), [], Counter(frame=2))
    left = [await journal.database.rows(f"SELECT did FROM {table}") for table in ("scrub", "moderation")]
    await journal.close()
    assert left == [[(DID,)], []]


async def test_a_post_that_is_deleted_leaves_feeds_files_though_it_is_made_again_at_once(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.db", JournalSettings())
    db = journal.database

    async def take(seq: int, *ops: PostOp) -> None:
        event = Event("commit", seq=seq, did=DID, time=seq, rev=tid(seq), posts=ops)
        frame = Frame(Arrival(seq, "wss://a", 1, 1, None, b"", seq), event, "commit", "")
        verdicts = [KEPT._replace(cid=f"cid{seq}") for op in ops if op.needs_verdict]
        await journal.commit(Batch([frame]), verdicts, Counter(frame=1, post=len(ops)))

    await take(1, PostOp(0, "create", "rkey", b"c" * 36, b"b"))
    await db.execute("INSERT INTO inboxed (did, rkey, file) VALUES (?, 'rkey', 'file')", (DID,))
    await db.execute("INSERT INTO moderation (rkey, did, at, labels) VALUES ('rkey', ?, 1, '[]')", (DID,))
    aside = "INSERT INTO quarantine (sha256, host, epoch, reason, bytes, at, did) VALUES ('', '', 1, '', '', 1, ?)"
    await db.execute(aside, (DID,))
    await take(2, PostOp(0, "delete", "rkey", b"", b""), PostOp(1, "create", "rkey", b"d" * 36, b"b"))
    left = [await db.rows(f"SELECT did FROM {table}") for table in ("scrub", "moderation", "quarantine")]
    post = await db.rows("SELECT cid, state, idx, event_at FROM post")
    await journal.close()
    assert (left, post) == ([[(DID,)], [], []], [("cid2", "live", 1, 2)])


async def test_what_is_to_be_scrubbed_already_may_be_deleted_once_more(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.db", JournalSettings())
    await journal.database.execute("INSERT INTO inboxed (did, rkey, file) VALUES (?, 'rkey', 'file')", (DID,))
    for seq in range(1, 5):
        op = PostOp(0, "create", "rkey", b"c" * 36, b"b") if seq % 2 else PostOp(0, "delete", "rkey", b"", b"")
        event = Event("commit", seq=seq, did=DID, time=seq, rev=tid(seq), posts=[op])
        frame = Frame(Arrival(seq, "wss://a", 1, 1, None, b"", seq), event, "commit", "")
        await journal.commit(Batch([frame]), [KEPT] if op.needs_verdict else [], Counter(frame=1, post=1))
    left = await journal.database.rows("SELECT file, did, rkey FROM scrub")
    await journal.close()
    assert left == [("file", DID, "rkey")]


async def test_what_is_put_aside_behind_a_deletion_in_the_same_batch_stays(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.db", JournalSettings())
    bad = [PostOp(1, "create", f"bad{n}", b"c" * 36, b"", "no_block") for n in (1, 2, 3)]
    gone = PostOp(0, "delete", "rkey", b"", b"")
    frames = [
        Frame(
            Arrival(seq, "wss://a", 1, 1, None, ops[-1].rkey.encode(), seq),
            Event("commit", seq=seq, did=DID, time=seq, rev=tid(seq), posts=ops),
            "commit",
            "",
        )
        for seq, ops in enumerate([[bad[0]], [gone, bad[1]], [bad[2]]], 1)
    ]
    await journal.commit(Batch(frames), [], Counter(frame=3, post=4))
    left = await journal.database.rows("SELECT CAST(bytes AS TEXT) FROM quarantine")
    await journal.close()
    assert left == [("bad3",)], "a frame that deletes may hold what it deletes"


def test_a_hostile_record_is_judged_in_time_and_never_ends_the_worker() -> None:
    nested: object = "x"
    for _ in range(900):
        nested = [nested]
    facets = [{"index": {}, "features": [{"$type": nested}]}]
    alts = [{"alt": "a-" * 5000} for _ in range(64)]
    hostile = post("", facets=facets, embed={"$type": "app.bsky.embed.images", "images": alts})
    block, cid = block_and_cid(hostile)
    assert judge_record(cid, block).kind in {"kept", "rejected"}
