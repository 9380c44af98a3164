"""The journal's tables, and the statements that more than one of its writers needs, each inside a transaction.

The stream's writer is `journal.py`; `holding.py` writes coverage in its transactions. `recheck.py` and the command line
have short ones of their own.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from civicsky.model import POSTS, now_us
from civicsky.sqlite import Connection, Schema, rows, write_many

_HOUR: Final = 3_600_000_000
RECHECK_PAGE: Final = 25
"""Posts that are looked up in one call: as many as the public API takes."""

_THIS_POST: Final = "did = new.did AND rkey = new.rkey"
_SHOWN: Final = ("snapshot", "moderation", "seen")
OF_FEEDS: Final = ("inboxed", *_SHOWN)
"""Tables of what feeds and the public API showed; triggers empty them of what is deleted."""


def _forget(name: str, when: str, whose: str) -> str:
    """Whatever deletes a post also takes away what feeds said of it, and has it scrubbed from their files."""
    forget = "".join(f"DELETE FROM {table} WHERE {whose};" for table in _SHOWN)
    # Not `OR IGNORE`: where the statement that fires it says what is done at a conflict, that goes for triggers, too.
    known = "SELECT 1 FROM scrub AS s WHERE s.file = inboxed.file AND s.did = inboxed.did AND s.rkey = inboxed.rkey"
    scrub = f"INSERT INTO scrub SELECT file, did, rkey FROM inboxed WHERE ({whose}) AND NOT EXISTS ({known});"
    return f"CREATE TRIGGER {name} AFTER {when} BEGIN {scrub}{forget} END;"


SCHEMA: Final = Schema(
    0x63737931,  # "csy1"
    (
        """
CREATE TABLE host (name TEXT PRIMARY KEY, epoch INTEGER NOT NULL, cursor INTEGER, event_at INTEGER) WITHOUT ROWID;
CREATE TABLE post (
  id INTEGER PRIMARY KEY, rkey TEXT NOT NULL, did TEXT NOT NULL, rev TEXT, idx INTEGER NOT NULL, cid TEXT NOT NULL,
  state TEXT NOT NULL, host TEXT NOT NULL, event_at INTEGER NOT NULL, received_at INTEGER NOT NULL,
  p_kept REAL NOT NULL DEFAULT 1, record BLOB, fields TEXT, UNIQUE (rkey, did));
CREATE INDEX post_by_author ON post (did);
CREATE TABLE change (
  n INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, did TEXT NOT NULL, rkey TEXT NOT NULL, rev TEXT NOT NULL,
  at INTEGER NOT NULL);
CREATE TABLE account (did TEXT PRIMARY KEY, status TEXT NOT NULL, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE reject (
  rkey TEXT NOT NULL, did TEXT NOT NULL, rev TEXT NOT NULL, idx INTEGER NOT NULL, reason TEXT NOT NULL,
  at INTEGER NOT NULL, record BLOB, PRIMARY KEY (rkey, did)) WITHOUT ROWID;
CREATE INDEX reject_sampled ON reject (did) WHERE record IS NOT NULL;
CREATE INDEX reject_by_time ON reject (at);
CREATE TABLE count (
  hour INTEGER NOT NULL, unit TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL, n INTEGER NOT NULL,
  PRIMARY KEY (hour, unit, outcome, reason)) WITHOUT ROWID;
CREATE TABLE held (
  id INTEGER PRIMARY KEY, host TEXT NOT NULL, epoch INTEGER NOT NULL, resumed_after INTEGER, proved INTEGER NOT NULL,
  first_seq INTEGER, last_seq INTEGER, first_at INTEGER, last_at INTEGER, frames INTEGER NOT NULL);
CREATE TABLE gap (
  id INTEGER PRIMARY KEY, host TEXT NOT NULL, epoch INTEGER NOT NULL, cause TEXT NOT NULL, after_seq INTEGER,
  at INTEGER NOT NULL);
CREATE TABLE quarantine (
  id INTEGER PRIMARY KEY, sha256 TEXT NOT NULL, host TEXT NOT NULL, epoch INTEGER NOT NULL, after_seq INTEGER,
  reason TEXT NOT NULL, bytes BLOB NOT NULL, at INTEGER NOT NULL, did TEXT NOT NULL, rkey TEXT NOT NULL);
CREATE INDEX quarantine_by_author ON quarantine (did);
CREATE TABLE run (
  id INTEGER PRIMARY KEY, started INTEGER NOT NULL, version TEXT NOT NULL, filter_version TEXT NOT NULL,
  settings TEXT NOT NULL, settings_hash TEXT NOT NULL);
""",
        """
ALTER TABLE held ADD COLUMN resume TEXT NOT NULL DEFAULT 'unverified';
UPDATE held SET resume = CASE WHEN proved THEN 'replayed' WHEN resumed_after IS NULL THEN 'first' ELSE resume END;
ALTER TABLE held DROP COLUMN proved;
DELETE FROM held WHERE first_at IS NULL;
CREATE INDEX held_by_host ON held (host, epoch);
ALTER TABLE gap ADD COLUMN from_at INTEGER;
ALTER TABLE gap ADD COLUMN until_seq INTEGER;
ALTER TABLE gap ADD COLUMN until_at INTEGER;
ALTER TABLE quarantine DROP COLUMN rkey;
DELETE FROM quarantine WHERE id NOT IN (SELECT min(id) FROM quarantine GROUP BY sha256, host, epoch, after_seq);
CREATE UNIQUE INDEX quarantine_once ON quarantine (sha256, host, epoch, after_seq);
UPDATE change SET kind = CASE (SELECT status FROM account WHERE account.did = change.did)
  WHEN 'active' THEN 'show' WHEN 'deleted' THEN 'remove' ELSE 'hide' END WHERE kind = 'account';
CREATE INDEX post_gone ON post (received_at) WHERE state = 'deleted';
CREATE TABLE erased (name TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE recheck (
  id INTEGER PRIMARY KEY, why TEXT NOT NULL, name TEXT NOT NULL, at INTEGER NOT NULL, before_id INTEGER NOT NULL,
  down_to INTEGER NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX recheck_once ON recheck (name) WHERE why = 'sync';
CREATE TABLE secret (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
INSERT INTO secret VALUES ('shed', randomblob(32));
""",
        """
CREATE TABLE fetched (
  file TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, uri TEXT NOT NULL, at INTEGER NOT NULL,
  complete INTEGER NOT NULL, why TEXT NOT NULL, items INTEGER NOT NULL, imported_at INTEGER, outcomes TEXT NOT NULL)
  WITHOUT ROWID;
CREATE TABLE inboxed (did TEXT NOT NULL, rkey TEXT NOT NULL, file TEXT NOT NULL, PRIMARY KEY (did, rkey, file))
  WITHOUT ROWID;
CREATE INDEX inboxed_by_file ON inboxed (file);
CREATE TABLE scrub (file TEXT NOT NULL, did TEXT NOT NULL, rkey TEXT NOT NULL, PRIMARY KEY (file, did, rkey))
  WITHOUT ROWID;
CREATE TABLE seen (
  rkey TEXT NOT NULL, did TEXT NOT NULL, name TEXT NOT NULL, rank INTEGER NOT NULL, at INTEGER NOT NULL,
  PRIMARY KEY (rkey, did, name)) WITHOUT ROWID;
CREATE TABLE snapshot (
  n INTEGER PRIMARY KEY AUTOINCREMENT, rkey TEXT NOT NULL, did TEXT NOT NULL, at INTEGER NOT NULL, why TEXT NOT NULL,
  rank INTEGER, likes INTEGER NOT NULL, reposts INTEGER NOT NULL, replies INTEGER NOT NULL, quotes INTEGER NOT NULL,
  UNIQUE (rkey, did, at, why));
CREATE TABLE moderation (
  rkey TEXT NOT NULL, did TEXT NOT NULL, at INTEGER NOT NULL, labels TEXT NOT NULL, PRIMARY KEY (rkey, did))
  WITHOUT ROWID;
CREATE TABLE opening (
  opened INTEGER PRIMARY KEY, closes INTEGER NOT NULL, resume TEXT NOT NULL, posts INTEGER NOT NULL,
  kept INTEGER NOT NULL, why TEXT NOT NULL, ended_at INTEGER);
CREATE INDEX snapshot_by_author ON snapshot (did);
CREATE INDEX moderation_by_author ON moderation (did);
CREATE INDEX seen_by_author ON seen (did);
"""
        + _forget("post_gone", "UPDATE OF state ON post WHEN new.state = 'deleted'", _THIS_POST)
        + _forget("tombstone_made", "INSERT ON post WHEN new.state = 'deleted'", _THIS_POST)
        + _forget("account_gone", "INSERT ON account WHEN new.status = 'deleted'", "did = new.did")
        + _forget("account_gone_later", "UPDATE ON account WHEN new.status = 'deleted'", "did = new.did")
        + _forget(
            "erased_by_name", "INSERT ON erased", f"did = new.name OR 'at://' || did || '/{POSTS}/' || rkey = new.name"
        ),
    ),
)


WRITE_POST: Final = (
    "INSERT INTO post (rkey, did, rev, idx, cid, state, host, event_at, received_at, p_kept, record, fields) "
    "VALUES {rows} ON CONFLICT (rkey, did) DO UPDATE SET rev = excluded.rev, "
    "idx = excluded.idx, cid = excluded.cid, host = excluded.host, record = excluded.record, "
    "fields = excluded.fields, event_at = excluded.event_at, received_at = excluded.received_at, "
    # An edit does not draw the lot again.
    "p_kept = CASE state WHEN 'deleted' THEN excluded.p_kept ELSE p_kept END, state = excluded.state"
)
"""Write `order.PostWrite`s, with `write_many`."""


async def add_counts(db: Connection, counts: Mapping[tuple[str, str, str], int]) -> None:
    """Add to the present hour's counts, by (unit, outcome, reason)."""
    hour = now_us() // _HOUR * _HOUR
    await write_many(
        db,
        "INSERT INTO count VALUES {rows} ON CONFLICT DO UPDATE SET n = n + excluded.n",
        [(hour, *name, n) for name, n in counts.items() if n],
    )


async def change_posts(db: Connection, did: str, status: str) -> None:
    """What an account's new status does to its posts, and to everything else that holds their text."""
    if status == "deleted":
        await db.execute(
            "UPDATE post SET state = 'deleted', cid = '', record = NULL, fields = NULL, received_at = ? "
            "WHERE did = ? AND state <> 'deleted'",
            (now_us(), did),
        )
        await db.execute("UPDATE reject SET record = NULL WHERE did = ? AND record IS NOT NULL", (did,))
        await db.execute("DELETE FROM quarantine WHERE did = ?", (did,))
    else:
        state = "live" if status == "active" else "hidden"
        await db.execute("UPDATE post SET state = ? WHERE did = ? AND state <> 'deleted'", (state, did))


async def delete_posts(db: Connection, posts: Sequence[tuple[str, str, str]], at: int) -> None:
    """Delete posts, given as (rkey, did, rev), for another reason than an operation of the stream."""
    for rkey, did, rev in posts:
        await db.execute(
            "UPDATE post SET state = 'deleted', cid = '', record = NULL, fields = NULL, received_at = ? "
            "WHERE rkey = ? AND did = ?",
            (at, rkey, did),
        )
        await db.execute("DELETE FROM reject WHERE rkey = ? AND did = ?", (rkey, did))
        await db.execute("DELETE FROM quarantine WHERE did = ?", (did,))
        await db.execute(
            "INSERT INTO change (kind, did, rkey, rev, at) VALUES ('delete',?,?,?,?)", (did, rkey, rev, at)
        )


async def ask_recheck(db: Connection, why: str, at: int) -> None:
    """Have all posts that are there now looked up again, some time after `at`; see `recheck.py`."""
    # The oldest round goes on below where it is, down to the end; the new one takes what lies above, also of rounds in
    # between, and once more the page whose answer may be on its way.
    oldest = await rows(db, "SELECT id, before_id FROM recheck WHERE name = '' ORDER BY id LIMIT 1")
    number, before_id = oldest[0] if oldest else (0, 0)
    await db.execute("UPDATE recheck SET down_to = 0 WHERE id = ?", (number,))
    await db.execute("DELETE FROM recheck WHERE name = '' AND id > ?", (number,))
    ((down_to,),) = await rows(
        db,
        "SELECT coalesce(min(id), 0) FROM "
        "(SELECT id FROM post WHERE id < ? AND state <> 'deleted' ORDER BY id DESC LIMIT ?)",
        (before_id, RECHECK_PAGE),
    )
    await db.execute(
        "INSERT INTO recheck (why, name, at, before_id, down_to) "
        "SELECT ?, '', ?, coalesce(max(id), 0) + 1, ? FROM post",
        (why, at, down_to),
    )


async def ask_recheck_of(db: Connection, did: str) -> None:
    """Have an account's posts looked up again, after some time; one round an account is enough."""
    await db.execute(
        "INSERT INTO recheck (why, name, at, before_id) SELECT 'sync', did, ?2, max(id) + 1 FROM post "
        "WHERE did = ?1 AND state <> 'deleted' GROUP BY did "
        "ON CONFLICT (name) WHERE why = 'sync' DO UPDATE SET at = excluded.at, before_id = excluded.before_id",
        (did, now_us()),
    )
