"""What each connection holds of the stream, and the gaps between them: the coverage ledger, written as it happens.

Its rows share the transaction of what was held.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from civicsky import coverage
from civicsky.model import Frame, Gap, GapCause, Held, Opened, Opening, Position, Resume, now_us
from civicsky.sqlite import Connection, rows
from civicsky.tables import ask_recheck, ask_recheck_of

HELD_COLUMNS: Final = "host, epoch, resume, first_seq, last_seq, first_at, last_at, frames"
OPENING_COLUMNS: Final = "opened, closes, resume, posts, kept, why, ended_at"
GAP_COLUMNS: Final = "host, epoch, cause, after_seq, at, from_at, until_seq, until_at"


class Holding:
    """Where the present connection stands in the coverage ledger."""

    def __init__(self, gap_seconds: float) -> None:
        self._tolerance_us = int(gap_seconds * 1e6)
        self._link = self._held_id = 0
        self._replayed = False
        self.gaps: list[GapCause] = []
        """The causes of those that the last `note` wrote down."""

    async def note(self, db: Connection, done: list[Frame], gaps: Sequence[Gap], before: Position) -> Resume | None:
        """Write down what is being held, one row for each connection; says how a new one follows on the last."""
        first = done[0].arrival
        self.gaps = [gap.cause for gap in gaps]
        if self._link != first.link:
            self._link, self._held_id, self._replayed = first.link, 0, False
        self._replayed |= any(f.event.seq == first.resumed_after for f in done if f.outcome == "duplicate")
        new = [f for f in done if f.event.seq is not None and f.outcome not in {"duplicate", "ignored"}]
        times = [frame.event.time for frame in new]
        for gap in gaps:
            if gap.from_at is not None:
                await _insert_gap(db, gap)
                continue
            earlier = [frame.event.time for frame in new if frame.arrival.n < gap.n]
            row = await _held_before(db, gap.host, gap.epoch)
            last_at = row.last_at if row else before.event_at  # a gap begins where what is held ends
            from_at = coverage.clock(earlier, last=True) if earlier else last_at
            await _insert_gap(db, gap._replace(from_at=from_at))
        if not new:
            return None
        resume = None if self._held_id else await self._begin(db, new[0], coverage.clock(times), gaps)
        seqs = [frame.event.seq or 0 for frame in new]
        await db.execute(
            "UPDATE held SET last_seq = max(last_seq, ?), last_at = ?, frames = frames + ? WHERE id = ?",
            (max(seqs), coverage.clock(times, last=True), len(new), self._held_id),
        )
        for did in [frame.event.did for frame in new if frame.outcome == "sync"]:
            await ask_recheck_of(db, did)
        return resume

    async def _begin(self, db: Connection, frame: Frame, first_at: int, gaps: Sequence[Gap]) -> Resume:
        arrival, seq = frame.arrival, frame.event.seq
        before = await _held_before(db, arrival.host, arrival.epoch)
        resume = coverage.resume_of(
            arrival.resumed_after, before, first_at, self._tolerance_us, replayed=self._replayed
        )
        # A gap that was noted behind this frame ends at a later one.
        later = [gap.at for gap in gaps if gap.n >= arrival.n]
        ended = await rows(
            db,
            "UPDATE gap SET until_seq = ?, until_at = ? WHERE host = ? AND until_at IS NULL AND at < ? "
            "RETURNING from_at",
            (seq, first_at, arrival.host, min(later, default=now_us() + 1)),
        )
        if ended and before is not None:
            resume = "gap"
        elif resume == "gap" and before is not None:
            self.gaps.append("not_replayed")
            noted = Gap(arrival.host, arrival.epoch, "not_replayed", arrival.resumed_after, now_us())
            await _insert_gap(db, noted._replace(from_at=before.last_at, until_seq=seq, until_at=first_at))
            ended = [(before.last_at,)]
        # Where nobody can tell, a deletion may be missing, too. That is rare: a busy stream is `unverified` only while
        # next to nothing of it was ever held, and of a quiet one there are few posts to ask about.
        if resume == "unverified" or any(from_at is not None and from_at < first_at for (from_at,) in ended):
            await ask_recheck(db, "gap", now_us())
        cursor = await db.execute(
            "INSERT INTO held (host, epoch, resumed_after, resume, first_seq, last_seq, first_at, last_at, frames) "
            "VALUES (?,?,?,?,?,?,?,?,0)",
            (arrival.host, arrival.epoch, arrival.resumed_after, resume, seq, seq, first_at, first_at),
        )
        self._held_id = cursor.lastrowid or 0
        return resume


async def _insert_gap(db: Connection, gap: Gap) -> None:
    await db.execute(f"INSERT INTO gap ({GAP_COLUMNS}) VALUES (?,?,?,?,?,?,?,?)", gap[:8])


async def _held_before(db: Connection, host: str, epoch: int) -> Held | None:
    """What was held of this epoch before, as if it had been one connection: its end, and its rate."""
    found = await rows(
        db, f"SELECT {HELD_COLUMNS} FROM held WHERE host = ? AND epoch = ? ORDER BY id DESC LIMIT 1", (host, epoch)
    )
    if not found:
        return None
    ((frames, lasted),) = await rows(
        db, "SELECT sum(frames), sum(max(0, last_at - first_at)) FROM held WHERE host = ? AND epoch = ?", (host, epoch)
    )
    last = Held(*found[0])
    return last._replace(first_at=last.last_at - lasted, frames=frames)


async def kept_left(db: Connection, opening: Opening | None) -> int | None:
    """How many posts may still be kept in an opening; None without such a limit."""
    if opening is None or opening.max_kept is None:
        return None
    found = await rows(db, "SELECT kept FROM opening WHERE opened = ?", (opening.opened,))
    return opening.max_kept - (found[0][0] if found else 0)


async def note_opening(db: Connection, opening: Opening | None, done: list[Frame], kept: int) -> str:
    """Count what came in an opening, and so many kept posts; says which limit of its is reached now."""
    if opening is None:
        return ""
    posts = sum(frame.event.new_posts for frame in done if frame.outcome == "commit")
    ((posts, kept),) = await rows(
        db,
        f"INSERT INTO opening ({OPENING_COLUMNS}) VALUES (?,?,?,?,?,'',NULL) ON CONFLICT (opened) DO UPDATE SET "
        "closes = excluded.closes, resume = excluded.resume, posts = posts + excluded.posts, "
        "kept = kept + excluded.kept, why = '', ended_at = NULL RETURNING posts, kept",
        (opening.opened, opening.closes, opening.resume, posts, kept),
    )
    if why := opening.reached(posts, kept):
        times = [frame.event.time for frame in done if frame.event.time and frame.outcome != "duplicate"]
        ended_at = coverage.clock(times, last=True) if times else None
        await db.execute("UPDATE opening SET why = ?, ended_at = ? WHERE opened = ?", (why, ended_at, opening.opened))
    return why


async def openings(read: Callable[[str], Awaitable[Sequence[Sequence[Any]]]]) -> list[Opened]:
    """All of them, in order."""
    return [Opened(*row) for row in await read(f"SELECT {OPENING_COLUMNS} FROM opening ORDER BY opened")]
