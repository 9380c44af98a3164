"""Asking again: rounds over labelled posts (`label --again`), and the daily probes that show whether a model drifts.

Its tables lie in the ledger. A round lists its posts page by page and remembers how far it came, so a kill costs
nothing; its jobs come after those of fresh posts. A probe is never kept as a label: it is compared with the first one.
"""

import json
import sqlite3
from collections.abc import Collection, Sequence
from time import monotonic
from typing import Any, Final, NamedTuple

from civicsky.ledger import Also, keep_spend
from civicsky.model import STREAM, Answer, Job, LabelRow, format_time, now_us
from civicsky.sqlite import Connection, Database, rows

PAGE: Final = 500
BELIEVED: Final = 60.0
"""Seconds in which labels are not looked at as anchors once there are enough."""
AFTER_FRESH: Final = 1
"""Priority of rounds and probes; posts as they come have 0."""
DAY_US: Final = 24 * 3_600_000_000
_WAITING: Final = (
    "SELECT count(*) FROM job JOIN doc ON doc.rkey = job.rkey AND doc.did = job.did "
    "WHERE run = round.id AND job.state = 'pending' AND doc.state = 'live'"
)
"""Posts of a round that can be asked about. A hidden one may stay so for ever."""


class Wish(NamedTuple):
    """Which posts a round takes: of those that were drawn, live ones."""

    since: int | None = None
    """Events from this time on, in microseconds since 1970 UTC."""
    until: int | None = None
    """Events before this time."""
    field: str = ""
    """Only posts whose newest label of the task has `value` in this field."""
    value: str = ""
    question: str = ""
    """A hash of what is asked, and of whom. After a change of that an unfinished round is another one."""


class Rounds:
    """Short transactions on the ledger; for the service, and for the command line beside it."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._full: dict[tuple[str, str, str], float] = {}
        """Questions that had anchors enough, and until when that is believed: an anchor goes with its post."""

    # ---- label --again ----

    async def begin(self, task: str, wish: Wish) -> int:
        """Have posts labelled once more under a task; gives the round's number.

        A round with the same wish that is not done yet is that round: asking for it again goes on with it.
        """
        async with self._db.transaction() as db:
            same = await rows(
                db,
                f"SELECT id FROM round WHERE task = ? AND wish = ? AND (NOT listed OR ({_WAITING}) > 0)",
                (task, json.dumps(wish._asdict())),
            )
            if same:
                return int(same[0][0])
            cursor = await db.execute(
                "INSERT INTO round (started, task, wish) VALUES (?,?,?)", (now_us(), task, json.dumps(wish._asdict()))
            )
            return cursor.lastrowid or 0

    async def extend(self, tasks: Collection[str]) -> int:
        """List one more page of the oldest round of these tasks that is not listed yet; gives how many posts it read.

        0 means that all rounds are listed.
        """
        async with self._db.transaction("ledger") as db:
            found = await rows(db, "SELECT id, task, wish, rkey, did FROM round WHERE NOT listed ORDER BY id")
            mine = [row for row in found if row[1] in tasks]
            if not mine:
                return 0
            number, task, wish, rkey, did = mine[0]
            page = await rows(
                db,
                "SELECT rkey, did, cid, event_at FROM doc WHERE (rkey, did) > (?,?) AND state = 'live' "
                f"ORDER BY rkey, did LIMIT {PAGE}",
                (rkey, did),
            )
            added = await _list(db, number, task, Wish(**json.loads(wish)), page)
            last = page[-1][:2] if page else (rkey, did)
            await db.execute(
                "UPDATE round SET rkey = ?, did = ?, posts = posts + ?, listed = ? WHERE id = ?",
                (*last, added, len(page) < PAGE, number),
            )
            return max(1, len(page))

    # ---- drift ----

    def anchoring(self, label: LabelRow, most: int) -> Also | None:
        """What takes a fresh label as one that is asked again every day, as long as there are fewer than `most`.

        It is to be done in the transaction that keeps the label, and gives whether the label was taken. None: it is no
        label to take, or there are enough.
        """
        answer = label.answer
        if answer is None or answer.cached_from or label.run != STREAM:
            return None
        question = (label.task, answer.prompt_hash, answer.model_asked)
        if monotonic() < self._full.get(question, 0.0):
            return None
        fields = json.dumps(_values(answer))

        def take(db: sqlite3.Connection) -> bool:
            changed = db.execute(
                "INSERT OR IGNORE INTO anchor SELECT ?1,?2,?3,?4,?5,?6,?7,?8 WHERE "
                "(SELECT count(*) FROM anchor WHERE task = ?1 AND prompt_hash = ?2 AND model = ?3) < ?9 "
                # Not one that was deleted or edited meanwhile.
                "AND EXISTS (SELECT 1 FROM doc WHERE rkey = ?4 AND did = ?5 AND cid = ?6 AND state <> 'deleted')",
                (*question, label.rkey, label.did, label.cid, now_us(), fields, most),
            ).rowcount
            if not changed:
                where = "WHERE task = ? AND prompt_hash = ? AND model = ?"
                ((n,),) = db.execute(f"SELECT count(*) FROM anchor {where}", question)
                self._full |= {question: monotonic() + BELIEVED} if n >= most else {}
            return changed > 0

        return take

    async def plan_probes(self, questions: Sequence[tuple[str, str, str]]) -> int:
        """Have all anchors of these (task, prompt hash, model) asked again that were not yet today; how many."""
        day, now = now_us() // DAY_US, now_us()
        added = 0
        async with self._db.transaction() as db:
            # What was not asked on its day is of no use.
            await db.execute("DELETE FROM job WHERE run < 0 AND run <> ? AND state <> 'done'", (-day,))
            for question in questions:
                cursor = await db.execute(
                    "INSERT OR IGNORE INTO job (rkey, did, cid, task, run, state, priority) "
                    f"SELECT rkey, did, cid, task, ?1, 'pending', {AFTER_FRESH} FROM anchor "
                    "WHERE task = ?2 AND prompt_hash = ?3 AND model = ?4 AND at < ?5 AND NOT EXISTS ("
                    "SELECT 1 FROM probe WHERE day = ?6 AND task = ?2 AND prompt_hash = ?3 AND model = ?4 "
                    "AND probe.rkey = anchor.rkey AND probe.did = anchor.did)",
                    (-day, *question, now - DAY_US // 2, day),
                )
                added += max(0, cursor.rowcount)
        return added

    async def probed(self, job: Job, answer: Answer | None, reason: str = "") -> bool:
        """Keep what the model said this time and what that cost, or why it said nothing; the job is gone then.

        False when nobody wants it any more.
        """
        async with self._db.transaction("ledger") as db:
            if answer:
                await keep_spend(db, answer.spend, posts=0)
            gone = await db.execute("DELETE FROM job WHERE id = ? AND state = 'pending'", (job.id,))
            if not gone.rowcount:
                return False
            found = await rows(
                db,
                "SELECT prompt_hash, model, fields FROM anchor WHERE task = ? AND rkey = ? AND did = ? AND cid = ?",
                (job.task, job.rkey, job.did, job.cid),
            )
            for prompt_hash, model, was in found:
                if answer and (answer.prompt_hash, answer.model_asked) != (prompt_hash, model):
                    continue  # it was asked otherwise
                await db.execute(
                    "INSERT OR REPLACE INTO probe VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
                    (-job.run, job.task, prompt_hash, model, job.rkey, job.did, now_us(),
                     answer.fingerprint if answer else None, answer.server if answer else None,
                     reason or None, json.dumps(_values(answer)) if answer else None, was),
                )  # fmt: skip
        return True


async def drift(database: Database, days: int = 30) -> list[dict[str, Any]]:
    """For each day, task, prompt and model: anchors asked again, and how many said something else, by field.

    The newest day first. `n` counts those that gave an answer; `failed` those that gave none.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for day, task, prompt, model, fingerprint, server, fields, was in await database.rows(
        "SELECT day, task, prompt_hash, model, fingerprint, server, fields, was FROM probe WHERE day > ? "
        "ORDER BY day DESC, task, prompt_hash, model",
        (now_us() // DAY_US - days,),
    ):
        row = found.setdefault(
            (day, task, prompt, model),
            {"day": format_time(day * DAY_US)[:10], "task": task, "prompt": prompt, "model": model, "n": 0,
             "failed": 0, "flipped": 0, "flipped_by_field": {}, "fingerprints": [], "servers": []},
        )  # fmt: skip
        for name, value in (("fingerprints", fingerprint), ("servers", server)):
            if value and value not in row[name]:
                row[name].append(value)
        if fields is None:
            row["failed"] += 1
            continue
        row["n"] += 1
        now, then = json.loads(fields), json.loads(was)
        row["flipped"] += now != then
        for field in sorted(now.keys() | then.keys()):
            row["flipped_by_field"].setdefault(field, 0)
            row["flipped_by_field"][field] += now.get(field) != then.get(field)
    return list(found.values())


async def listed(database: Database) -> list[dict[str, Any]]:
    """All rounds, the newest first, and how far they are."""
    return [
        {"round": number, "task": task, "started": format_time(started), "wish": json.loads(wish), "posts": posts,
         "listed": bool(is_listed), "waiting": waiting}
        for number, task, started, wish, posts, is_listed, waiting in await database.rows(
            "SELECT id, task, started, wish, posts, listed, "
            f"({_WAITING}) FROM round ORDER BY id DESC"
        )
    ]  # fmt: skip


async def _list(db: Connection, number: int, task: str, wish: Wish, page: Sequence[Any]) -> int:
    """Jobs for those posts of a page that were drawn and are wished for."""
    added = 0
    for rkey, did, cid, event_at in page:
        if (wish.since is not None and event_at < wish.since) or (wish.until is not None and event_at >= wish.until):
            continue
        drawn = await rows(
            db, f"SELECT p_sampled, state FROM job WHERE rkey = ? AND did = ? AND run = {STREAM} LIMIT 1", (rkey, did)
        )
        # About what the gate did not let pass nobody was asked: a round goes over the others once more.
        is_gated = await rows(
            db,
            "SELECT 1 FROM job WHERE rkey = ? AND did = ? AND cid = ? AND task = ? AND state = 'gated'",
            (rkey, did, cid, task),
        )
        if not drawn or is_gated or (wish.field and not await _has(db, (rkey, did, cid, task), wish)):
            continue
        cursor = await db.execute(
            "INSERT OR IGNORE INTO job (rkey, did, cid, task, run, state, priority, p_sampled) "
            f"SELECT ?1,?2,?3,?4,?5,'pending',{AFTER_FRESH},?6 WHERE NOT EXISTS ("
            # What waits for a label anyway is not asked twice; a probe makes none.
            "SELECT 1 FROM job WHERE rkey = ?1 AND did = ?2 AND cid = ?3 AND task = ?4 AND state = 'pending' "
            f"AND run >= {STREAM})",
            (rkey, did, cid, task, number, drawn[0][0]),
        )
        added += max(0, cursor.rowcount)
    return added


async def _has(db: Connection, about: tuple[str, str, str, str], wish: Wish) -> bool:
    """Whether the newest label says so."""
    found = await rows(
        db,
        "SELECT answer ->> ? FROM label WHERE rkey = ? AND did = ? AND cid = ? AND task = ? AND answer IS NOT NULL "
        "ORDER BY at DESC LIMIT 1",
        (f'$.fields."{wish.field}"[0]', *about),
    )
    return bool(found) and found[0][0] == wish.value


def _values(answer: Answer) -> dict[str, str]:
    return {name: label.value for name, label in answer.fields.items()}
