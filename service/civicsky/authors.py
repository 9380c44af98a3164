"""Profiles of the authors of labelled posts, if the settings ask for them: looked up, kept, and told to the store.

Beside the labelling, and never in its way: it waits for nothing but the public API, and writes by short transactions.
Of a profile only what `views.Profile` has is kept: no display name, no description, no picture. Whose last labelled
post is gone is forgotten, here and in the store.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Final, Literal, NamedTuple, Protocol

from civicsky import log
from civicsky.document import Document, author_document
from civicsky.errors import BadInput, Refused, Transient, Usage
from civicsky.lifecycle import Stop, happened
from civicsky.metrics import Metrics
from civicsky.model import AuthorRow, now_us
from civicsky.settings import Authors as AuthorsSettings, expanded
from civicsky.sqlite import Database
from civicsky.views import Profile

PAGE: Final = 25
"""Accounts in one call: as many as the public API takes."""
BATCH: Final = 500
"""Documents in one write."""
NOBODY: Final = 5
"""Of so many accounts none there: it is the API that is at fault, unless it shows others that were there last."""
PAUSE_SECONDS: Final = 5.0
MAX_PAUSE_SECONDS: Final = 600.0
_DAY_US: Final = 24 * 3_600_000_000
_MINUTE: Final = 60.0
_DID: Final = re.compile(r"did:[a-z]+:[A-Za-z0-9._:%-]{1,2000}")
_HANDLE: Final = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+")


class AppViewShape(Protocol):
    """See `appview.AppView`."""

    async def profiles(self, dids: Sequence[str]) -> Mapping[str, Profile]:
        """Those that are there."""
        ...


class PutShape(Protocol):
    """See `store.Put`."""

    @property
    def refused(self) -> dict[str, str]:
        """Why, by id."""
        ...


class StoreShape(Protocol):
    """See `store.Store`."""

    async def put(self, collection: Literal["authors"], documents: Sequence[Document]) -> PutShape:
        """Write documents."""
        ...


# ---- lists -----------------------------------------------------------------------------------------------------------


class Listed(NamedTuple):
    """Who stands in one list."""

    dids: frozenset[str]
    handles: frozenset[str]


Lists = Mapping[str, Listed]


def read_lists(files: Mapping[str, Path]) -> Lists:
    """The user's lists by their names. Raises `Usage`, which names the file and the line that cannot be used."""
    return {name: _read_list(f"authors.lists: {name}: {path}", expanded(path)) for name, path in files.items()}


def _read_list(where: str, path: Path) -> Listed:
    dids, handles = set[str](), set[str]()
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for did, handle in _accounts(where, csv.DictReader(stream)):
                dids |= {did} - {""}
                handles |= {handle} - {""}
    except OSError as error:
        raise Usage(f"{where}: {error.strerror}; mend the path, or take the list out of the settings") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise Usage(f"{where}: not a CSV file in UTF-8 ({error})") from None
    return Listed(frozenset(dids), frozenset(handles))


def _accounts(where: str, rows: "csv.DictReader[str]") -> Iterator[tuple[str, str]]:
    """(DID, handle) of each line; one of them may be empty."""
    if not {"did", "handle"} & set(rows.fieldnames or ()):
        raise Usage(f"{where}: it has no column `did` and none `handle`; name one in its first line")
    for row in rows:
        did, handle = (row.get("did") or "").strip(), (row.get("handle") or "").strip().removeprefix("@").lower()
        if did and not _DID.fullmatch(did):
            raise Usage(f"{where}: line {rows.line_num}: {log.harmless(did)!r} is not a DID")
        if handle and not _HANDLE.fullmatch(handle):
            raise Usage(f"{where}: line {rows.line_num}: {log.harmless(handle)!r} is not a handle")
        if not did and not handle:
            raise Usage(f"{where}: line {rows.line_num}: neither a DID nor a handle; fill it in, or take the line out")
        yield did, handle


def names_of(lists: Lists, did: str, handle: str) -> list[str]:
    """The lists in which an account stands. A list of handles knows it by the handle that it has now."""
    return [name for name, listed in lists.items() if did in listed.dids or (handle and handle in listed.handles)]


# ---- what is kept ----------------------------------------------------------------------------------------------------


class Authors:
    """The table `author` of the ledger. `Ledger` adds whoever gets a label, and empties whoever is gone."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def due(self, before: int, limit: int = PAGE) -> list[str]:
        """Live accounts that were not looked up since then (microseconds), those that never were first."""
        found = await self._db.rows(
            "SELECT did FROM author WHERE state = 'live' AND at < ? ORDER BY at LIMIT ?", (before, limit)
        )
        return [did for (did,) in found]

    async def waiting(self, before: int) -> int:
        """How many of them there are."""
        ((n,),) = await self._db.rows("SELECT count(*) FROM author WHERE state = 'live' AND at < ?", (before,))
        return int(n)

    async def seen(self, limit: int, without: Sequence[str]) -> list[str]:
        """Live accounts whose profile is here, the last ones that were looked up first; none of `without`."""
        found = await self._db.rows(
            "SELECT did FROM author WHERE state = 'live' AND profile IS NOT NULL ORDER BY at DESC LIMIT ?",
            (limit + len(without),),
        )
        return [did for (did,) in found if did not in without][:limit]

    async def keep(self, asked: Sequence[str], profiles: Mapping[str, Profile], lists: Lists) -> None:
        """Keep what was found of these accounts. Of one that was not shown what was known stays."""
        now = now_us()
        async with self._db.transaction("ledger") as db:
            for did in asked:
                # Who was hidden or forgotten meanwhile stays so.
                await db.execute("UPDATE author SET at = ? WHERE did = ? AND state <> 'deleted'", (now, did))
                if profile := profiles.get(did):
                    await db.execute(
                        "UPDATE author SET handle = ?, profile = ?, v = max(v + 1, ?) "
                        "WHERE did = ? AND state <> 'deleted'",
                        (profile.handle, _packed(profile, lists, now), now, did),
                    )

    async def list_again(self, lists: Lists) -> int:
        """Hold all profiles against the lists as they are now; how many stand in others than before."""
        after, n = "", 0
        while page := await self._db.rows(
            "SELECT did, handle, profile FROM author WHERE profile IS NOT NULL AND did > ? ORDER BY did LIMIT ?",
            (after, BATCH),
        ):
            after = page[-1][0]
            changed = []
            for did, handle, packed in page:
                profile, names = json.loads(packed), names_of(lists, did, handle)
                if profile["lists"] != names:
                    changed.append((json.dumps({**profile, "lists": names}), now_us(), did, packed))
            async with self._db.transaction("ledger") as db:
                await db.executemany(
                    "UPDATE author SET profile = ?, v = max(v + 1, ?) WHERE did = ? AND profile = ?", changed
                )
            n += len(changed)
        return n

    async def tell(self, store: StoreShape) -> int:
        """Tell the store of all that changed; how many. Raises `Transient` or `Refused` of the store."""
        n = 0
        while outs := [
            AuthorRow(*[*row[:-1], None if row[-1] is None else json.loads(row[-1])])
            for row in await self._db.rows(
                "SELECT did, v, state, handle, profile FROM author WHERE v > stored_v ORDER BY v LIMIT ?", (BATCH,)
            )
        ]:
            put = await store.put("authors", [author_document(out) for out in outs])
            if put.refused:
                log.event("store_refused", stage="authors", n=len(put.refused), why=next(iter(put.refused.values())))
            async with self._db.transaction("ledger") as db:
                await db.executemany(
                    "UPDATE author SET stored_v = ?1 WHERE did = ?2 AND stored_v < ?1",
                    [(out.v, out.did) for out in outs],
                )
            n += len(outs)
        return n


def _packed(profile: Profile, lists: Lists, now: int) -> str:
    names = names_of(lists, profile.did, profile.handle)
    kept = {name: value for name, value in profile._asdict().items() if name not in {"did", "handle"}}
    return json.dumps({**kept, "lists": names, "looked_up_at": now})


# ---- the work --------------------------------------------------------------------------------------------------------


class Work:
    """Looks up who is due, and tells the store of what changed; see `run`."""

    def __init__(
        self,
        authors: Authors,
        appview: AppViewShape | None,
        store: StoreShape,
        settings: AuthorsSettings,
        lists: Lists,
        metrics: Metrics,
    ) -> None:
        """Without `appview` nobody is looked up, and the store is told of those who went."""
        self._authors, self._appview, self._store = authors, appview, store
        self._settings, self._lists, self._metrics = settings, lists, metrics
        self._alone = 0

    async def run(self, poll_seconds: float, stop: Stop) -> None:
        """Until only what is in hand is to be finished, or until cancelled."""
        if self._appview:
            await self._authors.list_again(self._lists)
        not_before, pause = 0.0, PAUSE_SECONDS
        while not stop.hurried:
            await self.tell()
            if self._appview and monotonic() >= not_before and (dids := await self.due()):
                began = monotonic()
                asked_to_wait = await self.look_up(dids)
                if asked_to_wait is None:
                    not_before, pause = began + self.seconds_a_call, PAUSE_SECONDS
                    continue
                not_before = monotonic() + max(self.seconds_a_call, asked_to_wait, pause)
                pause = min(pause * 2, MAX_PAUSE_SECONDS)
            left = not_before - monotonic()
            await happened(stop.hurry, min(poll_seconds, left) if left > 0 else poll_seconds)

    @property
    def seconds_a_call(self) -> float:
        """From one call to the next."""
        return _MINUTE / self._settings.calls_per_minute

    async def due(self) -> list[str]:
        """Who is to be looked up next."""
        return await self._authors.due(self.before, 1 if self._alone else PAGE)

    @property
    def before(self) -> int:
        """Whoever was looked up before then is due."""
        return now_us() - int(self._settings.refresh_days * _DAY_US)

    async def look_up(self, dids: Sequence[str]) -> float | None:
        """One call. None when it is done with; else how many seconds the API asks to wait: they are due still."""
        assert self._appview is not None
        try:
            profiles = await self._appview.profiles(dids)
            nobody = not profiles and len(dids) >= NOBODY and not await self._shows_others(dids)
        except (Transient, Refused) as error:
            self._note(str(error))
            return getattr(error, "retry_after", None) or 0.0
        except BadInput:
            if len(dids) > 1:
                self._alone = PAGE  # one of them spoils it for the others: each by itself
                return None
            profiles = {}
        else:
            if nobody:
                self._note("the public API shows nobody of whom it is asked")
                return 0.0
            self._note("")
        self._alone = max(0, self._alone - 1)
        await self._authors.keep(dids, profiles, self._lists)
        self._metrics.add("authors", len(profiles))
        return None

    async def _shows_others(self, dids: Sequence[str]) -> bool:
        """Whether the API shows anybody of those who were there when they were looked up last."""
        assert self._appview is not None
        others = await self._authors.seen(NOBODY, dids)
        return bool(others and await self._appview.profiles(others))

    async def tell(self) -> None:
        """Tell the store, if it can be told now; that it cannot, the labelling itself reports."""
        try:
            await self._authors.tell(self._store)
        except (Transient, Refused):
            return

    def _note(self, why: str) -> None:
        if bool(why) != bool(self._metrics.authors_why):
            log.event("appview_down" if why else "appview_up", stage="authors", **({"why": why} if why else {}))
        self._metrics.authors_why = why
