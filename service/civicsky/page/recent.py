"""The newest labelled posts, as the page lists them: which came, and which are gone. Bounded, and read turn by turn.

A turn looks at the jobs around where labelling is, takes on the newest that it has not seen, goes some way back into
the past until the list is full, and looks again at what it holds: at the `NEWEST` in every turn, at `CHECKED` of all by
turns. Whatever was deleted, hidden or edited is told as gone, and its text forgotten, at once or within ten turns.
"""

import asyncio
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from heapq import nlargest
from typing import Any, Final, NamedTuple

from civicsky.model import STREAM, Key
from civicsky.page import reads
from civicsky.page.hub import event
from civicsky.page.reads import JobRow, Said, Written
from civicsky.record import readable
from civicsky.sqlite import Database

MOST: Final = 10_000
"""Posts in the list."""
MOST_BYTES: Final = 8_000_000
"""Bytes of them, as they are sent; the oldest go."""
FRESH: Final = 200
"""New posts in a turn; when more are labelled, the newest are shown."""
BACK: Final = 1_000
"""Jobs of the past that are looked at in a turn, until the list is full."""
NEWEST: Final = 500
"""Posts that are looked at again in every turn: those that somebody has before their eyes."""
CHECKED: Final = 1_000
"""Posts of all that are looked at again in a turn, one part after the other."""
BEHIND: Final = 1_000
"""Jobs before the newest one seen that may still be under way when it is done."""
AHEAD: Final = 4_000
"""Jobs after it that are looked through for newer ones."""
TEXT_CHARS: Final = 1_000
CALLS: Final = 500
"""Calls of the model of which the times are kept."""
FAILED: Final = 50
"""Posts without a label that are kept."""
_AT_ONCE: Final = 200


class Entry(NamedTuple):
    """A post of the list."""

    number: int
    """Its job's."""
    v: int
    """The ledger's version of it that was read."""
    packed: str
    """As it is sent."""


class Turn(NamedTuple):
    """What a turn found."""

    posts: list[str]
    """New ones, and those that are another now; packed, the newest first."""
    gone: list[str]
    """Names of those that are no longer to be seen."""


class Recent:
    """See above. One for as long as somebody watches."""

    def __init__(self) -> None:
        self._entries: dict[Key, Entry] = {}
        self._bytes = 0
        self._seen: set[int] = set()
        self._low = self._high = 0
        self._todo: list[Key] = []
        self._is_full = False
        self.calls: deque[float] = deque(maxlen=CALLS)
        """Seconds of the newest calls of the model, one a label."""
        self.failed: dict[int, dict[str, Any]] = {}
        """By job the newest posts that got no label."""

    def __len__(self) -> int:
        return len(self._entries)

    def events(self) -> Iterator[bytes]:
        """All of it, for somebody who begins to watch: the newest first, and before it that what was there is not.

        Made part by part, as it is asked for: what goes meanwhile is left out, and no copy of the rest is held.
        """
        keys = sorted(self._entries, key=lambda key: self._entries[key].number, reverse=True)
        yield event("reset", {})
        for at in range(0, len(keys), _AT_ONCE):
            yield packed_event(self._entries[key].packed for key in keys[at : at + _AT_ONCE] if key in self._entries)

    async def turn(self, ledger: Database, journal: Database) -> Turn:
        """Look once."""
        last = await reads.last_job(ledger)
        if not self._high:
            self._high = await reads.last_settled(ledger, last)
            self._low = max(1, self._high - BEHIND)
        posts, gone = await self._check(ledger, journal)
        posts += await self._read_fresh(ledger, journal, last)
        if not self._is_full and self._low > 1:
            posts += await self._read_back(ledger, journal)
        await self._check_failed(ledger)
        if beyond := self._bounded():
            self._is_full = True
            gone += beyond
            kept = {one.packed for one in self._entries.values()}
            posts = [one for one in posts if one in kept]
        return Turn(posts, gone)

    async def _read_fresh(self, ledger: Database, journal: Database, last: int) -> list[str]:
        low, high = max(self._low, self._high - BEHIND), min(last, self._high + AHEAD)
        found = await ledger.rows(
            f"SELECT id FROM job WHERE id BETWEEN ? AND ? AND run = {STREAM} AND state IN ('done', 'dead')", (low, high)
        )
        fresh = sorted({number for (number,) in found} - self._seen, reverse=True)[:FRESH]
        self._seen = {number for number in self._seen if number >= low} | set(fresh)
        if fresh and fresh[0] > high - BEHIND and high < last:  # it runs away from us
            self._high = max(fresh[0], await reads.last_settled(ledger, last))
        elif fresh:
            self._high = max(self._high, fresh[0])
        elif high < last and await reads.goes_on(ledger, high + 1, last):  # rounds and probes lie between
            self._high = max(self._high, await reads.last_settled(ledger, last))
        rows: list[JobRow] = []
        for at in range(0, len(fresh), reads.KEYS_AT_ONCE):
            rows += await reads.jobs(ledger, fresh[at : at + reads.KEYS_AT_ONCE])
        posts, calls = await self._take(rows, ledger, journal)
        self.calls += calls
        return posts

    async def _read_back(self, ledger: Database, journal: Database) -> list[str]:
        low = max(1, self._low - BACK)
        rows = await reads.settled(ledger, low, self._low - 1, BACK)
        self._low = low
        posts, _ = await self._take(rows, ledger, journal)
        return posts

    async def _take(self, rows: Sequence[JobRow], ledger: Database, journal: Database) -> tuple[list[str], list[float]]:
        """Take posts on; gives them packed, the newest first, and how long the model took for each, in seconds."""
        current = sorted((row for row in rows if row.is_current), reverse=True)
        for row in current:
            if row.state == "dead":
                self.failed[row.id] = _failure(row)
        self.failed = dict(sorted(self.failed.items(), reverse=True)[:FAILED])
        done = [row for row in current if row.state == "done"]
        posts, calls = list[str](), list[float]()
        for at in range(0, len(done), reads.KEYS_AT_ONCE):
            part = await self._take_part(done[at : at + reads.KEYS_AT_ONCE], ledger, journal)
            posts += part[0]
            calls += part[1]
            await asyncio.sleep(0)
        return posts, calls

    async def _take_part(
        self, done: Sequence[JobRow], ledger: Database, journal: Database
    ) -> tuple[list[str], list[float]]:
        labels = await reads.said(ledger, [row.key for row in done])
        texts = await reads.written(journal, [row.key for row in done])
        posts, calls = list[str](), list[float]()
        for row in done:
            own = {task: one for task, one in labels.get(row.key, {}).items() if one.cid == row.cid}
            if row.task in own and own[row.task].calls:
                calls.append(own[row.task].latency_ms / own[row.task].calls / 1000)
            packed = _packed(row, own, texts.get(row.key))
            if packed:
                self._put(row.key, Entry(row.id, row.v, packed))
                posts.append(packed)
        return posts, calls

    def _put(self, key: Key, entry: Entry) -> None:
        before = self._entries.pop(key, None)
        if before:
            self._bytes -= len(before.packed)
            entry = entry._replace(number=max(before.number, entry.number))
        self._entries[key] = entry
        self._bytes += len(entry.packed)

    def _drop(self, key: Key) -> str:
        self._bytes -= len(self._entries.pop(key).packed)
        return name_of(key)

    async def _check(self, ledger: Database, journal: Database) -> tuple[list[str], list[str]]:
        """Look at some of the list again; gives what is another now, and the names of what is gone."""
        self._todo = self._todo or list(self._entries)
        newest = nlargest(NEWEST, self._entries, key=lambda key: self._entries[key].number)
        keys = list({*newest, *(key for key in self._todo[:CHECKED] if key in self._entries)})
        del self._todo[:CHECKED]
        if not keys:
            return [], []
        told = await reads.states(ledger, keys)
        held = await reads.journal_states(journal, keys)
        gone, other = [], []
        for key in keys:
            state, cid, v = told.get(key, ("deleted", "", 0))
            # The journal knows it first; what it has pruned, the ledger knows.
            if state != "live" or held.get(key, ("live", cid)) != ("live", cid):
                gone.append(self._drop(key))
            elif v != self._entries[key].v:
                other.append(key)
        return await self._read_again(other, ledger, journal, gone), gone

    async def _read_again(self, keys: Sequence[Key], ledger: Database, journal: Database, gone: list[str]) -> list[str]:
        """Those that were touched: labelled once more, or edited; or only told to the store."""
        posts: list[str] = []
        numbers = [self._entries[key].number for key in keys]
        for at in range(0, len(numbers), reads.KEYS_AT_ONCE):
            rows = await reads.jobs(ledger, numbers[at : at + reads.KEYS_AT_ONCE])
            was = {self._entries[row.key].packed for row in rows}
            taken, _ = await self._take([row for row in rows if row.is_current], ledger, journal)
            posts += [one for one in taken if one not in was]
            gone += [self._drop(row.key) for row in rows if not row.is_current]
        return posts

    def _bounded(self) -> list[str]:
        """Let the oldest go beyond the bounds; their names."""
        if len(self._entries) <= MOST and self._bytes <= MOST_BYTES:
            return []
        oldest = sorted(self._entries, key=lambda key: self._entries[key].number)
        gone = []
        for key in oldest:
            if len(self._entries) <= MOST and self._bytes <= MOST_BYTES:
                break
            gone.append(self._drop(key))
        return gone

    async def _check_failed(self, ledger: Database) -> None:
        """Posts that were tried again, or deleted, are no longer without a label."""
        if self.failed:
            rows = await reads.jobs(ledger, list(self.failed))
            self.failed = {row.id: _failure(row) for row in rows if row.state == "dead" and row.is_current}


def packed_event(packed: Iterable[str]) -> bytes:
    """The event that tells of posts."""
    return f"event: posts\ndata: [{','.join(packed)}]\n\n".encode("ascii")


def name_of(key: Key) -> str:
    """A post's name on the page: what an address at bsky.app is made of."""
    rkey, did = key
    return f"{did}/{rkey}"


def _failure(row: JobRow) -> dict[str, Any]:
    return {
        "id": name_of(row.key),
        "n": row.id,
        "task": row.task,
        "reason": row.reason or "",
        "at": row.event_at // 1000,
    }


def _packed(row: JobRow, labels: dict[str, Said], text: Written | None) -> str:
    """A post as JSON; empty when there is nothing to show: no label of this text, or the journal has no text."""
    if not labels or text is None or text.fields is None or (text.state, text.cid) != ("live", row.cid):
        return ""
    whole = readable(text.fields)
    return json.dumps(
        {
            "id": name_of(row.key),
            "n": row.id,
            "at": row.event_at // 1000,
            "text": whole[:TEXT_CHARS] + ("…" if len(whole) > TEXT_CHARS else ""),
            "labels": {
                task: {"fields": {name: list(pair) for name, pair in one.fields.items()}, "model": one.model}
                for task, one in sorted(labels.items())
            },
        },
        separators=(",", ":"),
    )
