"""Looks posts up again whose deletion we may have missed: after a gap or what may be one, a `#sync`, or when asked.

A deletion made during a gap never comes through the stream. The public API is asked for each post that the journal
still holds, newest first, and what is gone is applied like a deletion.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple, Protocol

from civicsky import log
from civicsky.errors import BadInput, Refused, Transient
from civicsky.lifecycle import Stop, happened
from civicsky.metrics import Metrics
from civicsky.model import Key, now_us, post_uri
from civicsky.order import BEFORE_ALL, CHANGES, PostWrite
from civicsky.sqlite import Connection, Database, rows, write_many
from civicsky.tables import (
    RECHECK_PAGE,
    WRITE_POST,
    add_counts,
    ask_recheck,
    ask_recheck_of,
    change_posts,
    delete_posts,
)

PAUSE_SECONDS: Final = 5.0
ALL_GONE: Final = "all_gone"
DOUBTFUL: Final = 5
"""Posts of so many authors all gone, with every author there: it is the API that is at fault."""
_LAST_OF_COMMIT: Final = 2**31
"""Beyond the place of any operation: what the newest known commit of a post did lies behind its deletion."""


class AppViewShape(Protocol):
    """See `appview.AppView`."""

    async def posts(self, uris: Sequence[str]) -> dict[str, str]:
        """The CIDs of those that are there."""
        ...

    async def accounts(self, dids: Sequence[str]) -> set[str]:
        """Those that are there."""
        ...

    async def status(self, did: str) -> str:
        """`active`, or what became of the account: `deleted`, `takendown`, `deactivated`."""
        ...


class Checked(NamedTuple):
    """A post to look up, as the journal has it; one that it has pruned, as the store has it."""

    id: int
    """0 for one that the journal has pruned."""
    rkey: str
    did: str
    rev: str
    cid: str
    state: str
    event_at: int = 0
    """Of one that the journal has pruned."""

    @property
    def uri(self) -> str:
        """Its AT-URI."""
        return post_uri(self.did, self.rkey)


class Found(NamedTuple):
    """What became of the posts of one page."""

    gone: list[Checked]
    """Deleted, though their authors are there."""
    accounts: dict[str, str]
    """New status of accounts: gone, hidden, or to be seen again."""
    changed: int = 0
    """Posts that have another text now. They stay as they are: the operation that changed them is lost."""
    present: int = 0
    doubtful: int = 0
    """Posts of which the API gives no usable answer."""


class Round(NamedTuple):
    """A round as it was when its page was taken. Asked for once more meanwhile, it is another one: `at` has changed."""

    id: int
    at: int
    down_to: int


class Rechecks:
    """The rounds that are asked for, in the journal's database."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def waiting(self) -> int:
        """How many rounds are not finished."""
        ((n,),) = await self._db.rows("SELECT count(*) FROM recheck")
        return int(n)

    async def oldest(self) -> int | None:
        """When the oldest round that nobody but the stream asked for became due; None when there is none."""
        ((at,),) = await self._db.rows("SELECT min(at) FROM recheck WHERE why <> 'asked'")
        return None if at is None else int(at)

    async def next_page(self, asked_before: int, limit: int = RECHECK_PAGE) -> tuple[Round, list[Checked]] | None:
        """The next posts of the oldest round that was asked for before then; rounds that are done are taken away."""
        while found := await self._db.rows(
            "SELECT id, at, down_to, name, before_id FROM recheck WHERE at <= ? ORDER BY id LIMIT 1", (asked_before,)
        ):
            *values, name, before_id = found[0]
            taken = Round(*values)
            column = "rkey = ? AND did" if name.startswith("at://") else "did"
            did, _, rest = name.removeprefix("at://").partition("/")
            values = [rest.rpartition("/")[2], did] if rest else [did]
            page = await self._db.rows(
                "SELECT id, rkey, did, coalesce(rev, ''), cid, state FROM post WHERE id < ? AND id >= ? "
                f"AND state <> 'deleted' {f'AND {column} = ?' if name else ''} ORDER BY id DESC LIMIT {limit}",
                (before_id, taken.down_to, *(values if name else [])),
            )
            if page:
                return taken, [Checked(*row) for row in page]
            await self._db.execute("DELETE FROM recheck WHERE id = ? AND at = ? AND down_to = ?", taken)
        return None

    async def rows_of(self, keys: Sequence[Key]) -> dict[Key, Checked]:
        """These posts as the journal has them; deleted ones too, pruned ones not."""
        sql = "SELECT id, rkey, did, coalesce(rev, ''), cid, state FROM post WHERE (rkey, did) IN ({keys})"
        found = [Checked(*row) for row in await self._db.rows_by_key(sql, keys)]
        return {(post.rkey, post.did): post for post in found}

    async def statuses(self, dids: Collection[str]) -> dict[str, str]:
        """What the journal knows of these accounts' statuses."""
        marks = ",".join("?" * len(dids))
        return dict(await self._db.rows(f"SELECT did, status FROM account WHERE did IN ({marks})", [*dids]))

    async def apply(self, taken: Round | None, page: Sequence[Checked], found: Found) -> int:
        """Write down what was found, of a round or (None) beside them; how many posts were deleted.

        A post that changed meanwhile is left alone: the stream knows better.
        """
        now = now_us()
        async with self._db.transaction("journal") as db:
            gone = [post for post in found.gone if await _is_same(db, post)]
            pruned = [_tombstone(post, now) for post in gone if not post.id]
            await write_many(db, WRITE_POST, pruned)  # so that nothing late brings it back, and all that is left goes
            await delete_posts(db, [(post.rkey, post.did, post.rev) for post in gone], now)
            for did, status in found.accounts.items():
                await _change_account(db, did, status, now)
            counts = Counter(("recheck", "account", status) for status in found.accounts.values())
            counts["recheck", "deleted", ""] = len(gone)
            for name in ("changed", "present", "doubtful"):
                counts["recheck", name, ""] = getattr(found, name)
            await add_counts(db, counts)
            if taken:  # Asked for once more since the page was taken, it begins anew: this may be out of date.
                await db.execute(
                    "UPDATE recheck SET before_id = ? WHERE id = ? AND at = ?", (page[-1].id, taken.id, taken.at)
                )
        return len(gone)

    async def control(self, page: Sequence[Checked]) -> list[str]:
        """AT-URIs of other posts, to see whether the API knows anything at all."""
        mine = {post.id for post in page}
        found = await self._db.rows(
            f"SELECT id, did, rkey FROM post WHERE state = 'live' ORDER BY id DESC LIMIT {2 * RECHECK_PAGE}"
        )
        return [post_uri(did, rkey) for number, did, rkey in found if number not in mine][:RECHECK_PAGE]

    async def ask(self, names: Sequence[str]) -> None:
        """Ask for a round over the posts of each DID or AT-URI, at once; over all posts when there is none."""
        async with self._db.transaction() as db:
            if not names:
                await ask_recheck(db, "asked", 0)
            await db.executemany(
                "INSERT INTO recheck (why, name, at, before_id) "
                "SELECT 'asked', ?, 0, coalesce(max(id), 0) + 1 FROM post",
                [(name,) for name in names],
            )


async def _is_same(db: Connection, post: Checked) -> bool:
    """Whether the journal still has a post as it was when it was looked up."""
    found = await rows(
        db, "SELECT id, coalesce(rev, ''), cid FROM post WHERE rkey = ? AND did = ?", (post.rkey, post.did)
    )
    return bool(found == [(post.id, post.rev, post.cid)] if post.id else not found)


def _tombstone(post: Checked, now: int) -> PostWrite:
    """The row of a post that the journal had pruned."""
    rev, idx = post.rev or None, _LAST_OF_COMMIT if post.rev else BEFORE_ALL[1]
    return PostWrite(post.rkey, post.did, rev, idx, "", "deleted", "", post.event_at, now, 1.0, None, None)


async def _change_account(db: Connection, did: str, status: str, now: int) -> None:
    # The API may lag: whatever the stream still says of the account wins, unless it is gone for good.
    await db.execute(
        "INSERT INTO account VALUES (?,?,?) ON CONFLICT DO UPDATE SET status = excluded.status, "
        "at = max(at, excluded.at)",
        (did, status, now if status == "deleted" else 0),
    )
    await change_posts(db, did, status)
    if status == "active":
        await ask_recheck_of(db, did)
    await db.execute(
        "INSERT INTO change (kind, did, rkey, rev, at) VALUES (?,?,'','',?)", (CHANGES.get(status, "hide"), did, now)
    )


async def look_up(appview: AppViewShape, page: Sequence[Checked], control: Sequence[str]) -> Found:
    """Ask for one page of posts.

    Raises `BadInput` when the answer cannot be believed: everything gone, though everybody is there, and of the
    `control` posts nothing there either.
    """
    there = await appview.posts([post.uri for post in page])
    missing = [post for post in page if post.uri not in there]
    authors = sorted({post.did for post in missing})
    present = await appview.accounts(authors) if authors else set()
    if gone := [post for post in missing if post.did in present]:
        # An account may have come back between two questions: a post is gone when its author was there before and
        # after, and it was not.
        there |= await appview.posts([post.uri for post in gone])
        still = await appview.accounts(sorted({post.did for post in gone}))
        gone = [post for post in gone if post.uri not in there and post.did in still]
    if not there and len({post.did for post in gone}) >= DOUBTFUL and not await appview.posts(control):
        raise BadInput(ALL_GONE)
    accounts = {post.did: "active" for post in page if post.uri in there and post.state == "hidden"}
    for did in authors:
        if did not in present and (status := await appview.status(did)) != "active":
            accounts[did] = status
    # A hidden account's posts are hidden already; only its end is news.
    live = {post.did for post in page if post.state == "live"}
    news = {did: status for did, status in accounts.items() if did in live or status in CHANGES}
    changed = sum(there[post.uri] != post.cid for post in page if post.uri in there)
    return Found(gone, news, changed, len(there))


async def recheck(
    rechecks: Rechecks, appview: AppViewShape, metrics: Metrics, stop: Stop, *, delay_seconds: float, endless: bool
) -> None:
    """Work off the rounds that were asked for at least so long ago: the API lags behind the stream.

    Until `stop`; without `endless`, until none is left. Never in the way of the stream: it waits for nothing but the
    API and short transactions.
    """
    pause, alone = PAUSE_SECONDS, 0
    while not stop.requested.is_set():
        next_page = await rechecks.next_page(now_us() - int(delay_seconds * 1e6), 1 if alone else RECHECK_PAGE)
        if next_page is None:
            if not endless:
                return
            await happened(stop.requested, min(5.0, delay_seconds or 0.2))
            continue
        taken, page = next_page
        try:
            found = await look_up(appview, page, await rechecks.control(page))
        except (Transient, BadInput, Refused) as error:
            if isinstance(error, BadInput) and error.reason != ALL_GONE:
                if len(page) > 1:
                    alone = RECHECK_PAGE  # one of them spoils it for the others: each by itself
                    continue
                found = Found([], {}, doubtful=1)
            else:
                if not endless:
                    raise
                _note(metrics, str(error))
                await happened(stop.requested, max(pause, getattr(error, "retry_after", None) or 0.0))
                pause = min(pause * 2, 600.0)
                continue
        _note(metrics, "")
        pause, alone = PAUSE_SECONDS, max(0, alone - 1)
        await rechecks.apply(taken, page, found)
        metrics.add("rechecked", len(page))
        if found.gone or found.accounts or found.changed:
            log.event(
                "rechecked",
                stage="appview",
                gone=len(found.gone),
                accounts=len(found.accounts),
                changed=found.changed,
            )


def _note(metrics: Metrics, why: str) -> None:
    if bool(why) != bool(metrics.appview_why):
        log.event("appview_down" if why else "appview_up", stage="appview", **({"why": why} if why else {}))
    metrics.appview_why = why
