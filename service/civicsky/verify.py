"""Looks up every post of the store in the public API, and removes what is gone: `civicsky hydrate --verify`.

By the rules of `recheck`, which knows only the posts that the journal still has. What is found is written into the
journal, so that ledger and store follow whether a service runs or not.
"""

import asyncio
import json
import os
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.progress import Progress, TaskID

from civicsky import datadir
from civicsky.appview import AppView
from civicsky.beside import bars, existing_store, followed, scrub
from civicsky.context import patiently
from civicsky.document import Document
from civicsky.errors import BadInput, CivicskyError, Failed, Refused, Transient, Usage
from civicsky.journal import Journal
from civicsky.model import format_time, now_us, parse_time, post_key
from civicsky.recheck import ALL_GONE, AppViewShape, Checked, Rechecks, look_up
from civicsky.settings import Settings
from civicsky.tables import RECHECK_PAGE
from civicsky.typed import moment_of

STATE: Final = "verify.json"
"""How far it came, in the data directory; not there when the last one is done."""
RESUME_DAYS: Final = 7
"""An interrupted one that began longer ago is begun anew."""
READ_AHEAD: Final = 40 * RECHECK_PAGE
"""Posts in memory, of which others than those of a page are asked for to see whether the API knows anything."""
_RECENT: Final = 1000
"""Authors whose posts changed last: when the store was told of them, it was told of those before."""
_DAY_US: Final = 24 * 3_600_000_000


class Verified(NamedTuple):
    """What was found."""

    begun: str
    """When, also of one that was interrupted and went on."""
    counts: dict[str, int]
    """looked_up = there + deleted + not_there (of accounts that are gone or hidden) + unclear; accounts_removed,
    accounts_hidden and accounts_shown are accounts; changed are posts with another text than ours."""
    why: str
    """Why the store has not followed; empty when it has."""


class Checker:
    """Looks posts of the store up and applies what is found."""

    def __init__(self, rechecks: Rechecks, appview: AppViewShape) -> None:
        self._rechecks, self._appview = rechecks, appview
        self._there: deque[str] = deque(maxlen=RECHECK_PAGE)
        self.counts: Counter[str] = Counter()
        self.authors: deque[str] = deque(maxlen=_RECENT)
        """Whose posts changed, the last ones."""

    async def check(self, posts: Sequence[Document], others: Sequence[str]) -> None:
        """Look up at most 25 posts (see `Store.by_time`); `others` are AT-URIs of posts that should be there.

        Raises `Failed` when the answer cannot be believed, `Transient` or `Refused` when the API cannot be asked.
        """
        known = await self._rechecks.rows_of([post_key(post["_id"]) for post in posts])
        statuses = await self._rechecks.statuses({post_key(post["_id"])[1] for post in posts})
        page = [known.get(post_key(post["_id"])) or _pruned(post, statuses) for post in posts]
        # What the journal knows as deleted the store will be told anyway.
        if page := [post for post in page if post.state != "deleted"]:
            control = [*self._there, *await self._rechecks.control(page), *others]
            mine = {post.uri for post in page}
            await self._check(page, [uri for uri in dict.fromkeys(control) if uri not in mine][:RECHECK_PAGE])

    async def _check(self, page: Sequence[Checked], control: Sequence[str]) -> None:
        try:
            found = await patiently(partial(look_up, self._appview, page, control))
        except BadInput as bad:
            if bad.reason == ALL_GONE:
                raise Failed("the public API shows no post of anybody; see to appview.url, and start again") from None
            if len(page) > 1:  # one of them spoils it for the others: each by itself
                for post in page:
                    await self._check([post], control)
                return
            self.counts.update(looked_up=1, unclear=1)
            return
        deleted = await self._rechecks.apply(None, page, found)
        statuses = Counter(_ACCOUNTS.get(status, "accounts_hidden") for status in found.accounts.values())
        self.counts.update(statuses)
        self.counts.update(looked_up=len(page), there=found.present, deleted=deleted, changed=found.changed)
        self.counts["not_there"] += len(page) - found.present - deleted
        if found.present:
            absent = {post.did for post in found.gone} | {did for did, how in found.accounts.items() if how != "active"}
            self._there.extend(post.uri for post in page if post.did not in absent and post.state == "live")
        self.authors.extend({post.did for post in found.gone} | found.accounts.keys())


_STATES: Final = {"active": "live", "deleted": "deleted"}
_ACCOUNTS: Final = {"active": "accounts_shown", "deleted": "accounts_removed"}


def _pruned(post: Document, statuses: Mapping[str, str]) -> Checked:
    """A post that the journal no longer has, as the store has it; of its account the journal knows more."""
    rkey, did = post_key(post["_id"])
    status = statuses.get(did)
    state = post["state"] if status is None else _STATES.get(status, "hidden")
    return Checked(0, rkey, did, post["rev"] or "", post["cid"], state, parse_time(post["event_at"]) or 0)


# ---- all of the store ------------------------------------------------------------------------------------------------


async def verify(settings: Settings, since: str = "", until: str = "") -> Verified:
    """Look up all posts of the store that are not deleted, or those of a time (dates or RFC 3339 times).

    One that was interrupted goes on. Raises `Usage`, and `Failed` when the API cannot be asked: what was found until
    then is applied, and the next one goes on from there.
    """
    folder = datadir.existing(settings.data_dir)
    asked = (moment_of("--since", since), moment_of("--until", until))
    with datadir.locked(folder, ("verify",)):
        state = _begin(folder / STATE, asked)
        store = await existing_store(settings, folder)
        journal = await Journal.open(folder / datadir.JOURNAL, settings.journal)
        appview = AppView(settings.appview)
        checker = Checker(Rechecks(journal.database), appview)
        checker.counts.update(state.counts)
        try:
            with bars("of the time, in seconds") as progress:
                bar = progress.add_task("verified", total=None)
                async for chunk in _chunks(store.by_time(format_time(state.at), format_time(state.until))):
                    await _look_up_chunk(checker, chunk, folder / STATE, state, progress, bar)
        except (Transient, Refused, Failed) as error:
            raise _ended(error, checker) from None
        finally:
            await scrub(journal, folder)
            for part in (appview, journal, store):
                await part.close()
        why = await followed(settings, folder, set(checker.authors))
        (folder / STATE).unlink(missing_ok=True)
    return Verified(format_time(state.begun), _all(checker.counts), why)


class _State(NamedTuple):
    """How far it came."""

    asked: tuple[int | None, int | None]
    begun: int
    until: int
    at: int
    """All events before this time are looked up."""
    counts: dict[str, int]


async def _look_up_chunk(
    checker: Checker, chunk: Sequence[Document], file: Path, state: _State, progress: Progress, bar: TaskID
) -> None:
    first = parse_time(chunk[0]["event_at"]) or 0
    if progress.tasks[bar].total is None:
        progress.update(bar, total=max(1, (state.until - first) // 1_000_000))
    begin = state.until - int(progress.tasks[bar].total or 1) * 1_000_000
    for n in range(0, len(chunk), RECHECK_PAGE):
        page = chunk[n : n + RECHECK_PAGE]
        others = [post["_id"] for post in chunk if post not in page and post["state"] == "live"]
        await checker.check(page, others[:: max(1, len(others) // RECHECK_PAGE)])
        following = chunk[n + RECHECK_PAGE : n + RECHECK_PAGE + 1] or page[-1:]
        at = parse_time(following[0]["event_at"]) or state.at
        await asyncio.to_thread(_save, file, state._replace(at=at, counts=dict(checker.counts)))
        progress.update(bar, completed=max(0, at - begin) // 1_000_000)


async def _chunks(posts: AsyncIterator[Document]) -> AsyncIterator[list[Document]]:
    chunk: list[Document] = []
    async for post in posts:
        chunk.append(post)
        if len(chunk) == READ_AHEAD:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _begin(file: Path, asked: tuple[int | None, int | None]) -> _State:
    """Where to go on, or a new beginning."""
    now = now_us()
    try:
        told = _State(**json.loads(file.read_bytes()))
        if tuple(told.asked) == asked and told.begun > now - RESUME_DAYS * _DAY_US:
            return told
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError):
        raise Usage(f"{file} cannot be read; remove it, and start again") from None
    since, until = asked
    return _State(asked, now, now if until is None else until, since or 0, {})


def _save(file: Path, state: _State) -> None:
    half = file.with_name(f".{file.name}.{os.getpid()}")
    half.write_text(json.dumps(state._asdict()), encoding="utf-8")
    half.replace(file)


def _ended(error: CivicskyError, checker: Checker) -> Failed:
    return Failed(f"{error}; {checker.counts['looked_up']:,} posts are looked up, the next --verify goes on from there")


def _all(counts: Counter[str]) -> dict[str, int]:
    return {name: counts[name] for name in _NAMES}


_NAMES: Final = (
    "looked_up", "there", "deleted", "not_there", "unclear", "changed",
    "accounts_removed", "accounts_hidden", "accounts_shown",
)  # fmt: skip


def as_text(verified: Verified) -> str:
    """For people."""
    n = verified.counts
    lines = [
        f"{n['looked_up']:,} posts looked up since {verified.begun}: {n['there']:,} there, {n['deleted']:,} deleted, "
        f"{n['not_there']:,} of accounts that are gone or hidden, {n['unclear']:,} unclear; "
        f"{n['changed']:,} have another text now",
        f"accounts: {n['accounts_removed']:,} removed, {n['accounts_hidden']:,} hidden, "
        f"{n['accounts_shown']:,} shown again",
    ]
    return "\n".join([*lines, *([f"the store follows: {verified.why}"] if verified.why else [])])


def as_json(verified: Verified) -> dict[str, Any]:
    """For programs."""
    return {"begun": verified.begun, **verified.counts, "stored": not verified.why, "why": verified.why}
