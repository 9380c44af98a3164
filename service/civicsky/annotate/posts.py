"""The posts to be labelled, where they lie: in the store, the journal and its sampled rejects. Only read from here.

A post's text is looked up each time before it is shown, and kept nowhere. What was deleted, at any of the places that
may know of it, is never shown.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from civicsky import datadir, store as stores, tables
from civicsky.annotate.draw import Among, Drawing, Kind, Pick, discord, shares_within, surety
from civicsky.document import ANY, Document, origins_of
from civicsky.errors import Usage
from civicsky.model import did_of, format_time, parse_time, post_key, post_uri
from civicsky.record import MAX_TEXT, extract, is_blank, readable
from civicsky.settings import Settings
from civicsky.shown import visible
from civicsky.sqlite import Database, reading
from civicsky.store import SqliteStore, Store

State = Literal["live", "hidden", "deleted", "not held"]
"""not held: the store or the journal no longer has it; whether it is there nobody can say."""
_PAGE: Final = 500
_CARD: Final = ("title", "description")

Window = tuple[int | None, int | None]
"""From when, and before when, in microseconds since 1970 UTC; None: without an end."""


class Text(NamedTuple):
    """What a model reads of a post, in its parts, fit to be shown."""

    text: str
    link: str
    """Title and description of the link card."""
    alts: list[str]
    whole: str
    """The same in one piece, as a model reads it: not fit to be shown."""


class Look(NamedTuple):
    """A post as it is now."""

    state: State
    version: str = ""
    text: Text | None = None
    """Of a live one."""


class Population(NamedTuple):
    """What is drawn from."""

    task: str
    kind: Kind
    among: Among
    origin: str
    window: Window


class Posts:
    """Reads them. One instance a data directory."""

    def __init__(self, journal: Database, store: Store | None) -> None:
        self._journal, self._store = journal, store

    async def look(self, uris: Sequence[str], *, rejects: bool = False) -> dict[str, Look]:
        """How these posts are now; `rejects`: the journal's sampled ones. Raises `Transient` without the store."""
        gone, hidden, live = await self._standing(uris)
        found: dict[str, Look] = {}
        rest = [uri for uri in uris if uri not in gone]
        held = await self._rejected(rest) if rejects else await self._stored(rest)
        for uri in uris:
            look = held.get(uri, Look("not held"))
            if uri in gone:
                found[uri] = Look("deleted")
            elif look.state == "live" and uri in hidden:
                found[uri] = Look("hidden")
            elif rejects and uri in live:
                found[uri] = Look("not held")  # an edit made it one that was kept
            else:
                found[uri] = look
        return found

    async def draw(self, population: Population, drawing: Drawing) -> None:
        """Offer a whole population to a drawing: one pass, page by page."""
        if population.kind == "rejects":
            await self._draw_rejects(population.window, drawing)
            return
        page: list[Document] = []
        async for document in self._documents():
            if _is_in(document, population):
                page.append(document)
            if len(page) == _PAGE:
                await self._offer(page, population, drawing)
                page = []
        await self._offer(page, population, drawing)

    async def kept_shares(self, first: int, last: int) -> list[tuple[int, float]]:
        """See `draw.shares_within`: by what the runs had as `journal.reject_sample`."""
        runs = await self._journal.rows("SELECT started, settings ->> '$.journal.reject_sample' FROM run ORDER BY id")
        return shares_within([(began, share) for began, share in runs if share is not None], first, last)

    async def _offer(self, page: Sequence[Document], population: Population, drawing: Drawing) -> None:
        gone, hidden, _ = await self._standing([document["_id"] for document in page])
        there = [document for document in page if document["_id"] not in gone | hidden]
        scores: Mapping[str, float | None] = {}
        if population.kind == "disagreement":
            scores = await self._discord(there, population.task)
        for document in there:
            label = (document.get("labels") or {}).get(population.task)
            about = label or (document.get("unlabelled") or {}).get(population.task) or {}
            score: float | None = 0.0
            if population.kind == "uncertainty":
                score = surety(label["fields"]) if label else None
            elif population.kind == "disagreement":
                score = scores[document["_id"]]
            if score is not None:
                p = about.get("p_sampled")
                p = None if p is None else p * about.get("p_asked", 1.0)  # a gate's lot is one more draw
                pick = Pick(document["_id"], document.get("cid") or "", p_kept=document.get("p_kept", 1.0), p_sampled=p)
                drawing.offer(pick, document["event_at"], score)

    async def _discord(self, page: Sequence[Document], task: str) -> dict[str, float | None]:
        """By post what its labels are to be drawn by; None where they agree."""
        assert self._store is not None
        cids = {document["_id"]: document.get("cid") for document in page}
        labels: dict[str, list[Document]] = {uri: [] for uri in cids}
        for one in await self._store.of_posts("labels", list(cids)):
            if one.get("task") == task and one.get("state") != "deleted" and one.get("cid") == cids[one["uri"]]:
                labels[one["uri"]].append(one)
        return {uri: -found if (found := discord(several)) else None for uri, several in labels.items()}

    def _documents(self) -> AsyncIterator[Document]:
        assert self._store is not None
        return self._store.documents("posts")

    async def _stored(self, uris: Sequence[str]) -> dict[str, Look]:
        assert self._store is not None
        found: dict[str, Look] = {}
        for document in await self._store.find("posts", uris):
            state: State = document.get("state", "not held")
            text = _text(document) if state == "live" else None
            if state == "live" and text is None:
                state = "not held"  # an edit left nothing to read
            found[document["_id"]] = Look(state, document.get("cid") or "", text)
        return found

    async def _draw_rejects(self, window: Window, drawing: Drawing) -> None:
        after = ("", "")
        while page := await self._journal.rows(
            "SELECT rkey, did, rev, reason, at, record FROM reject WHERE record IS NOT NULL AND (rkey, did) > (?,?) "
            f"ORDER BY rkey, did LIMIT {_PAGE}",
            after,
        ):
            after = page[-1][:2]
            uris = [post_uri(did, rkey) for rkey, did, *_ in page]
            gone, hidden, live = await self._standing(uris)
            for uri, (_, _, rev, reason, at, record) in zip(uris, page, strict=True):
                if uri in gone | hidden | live or not _within(at, window) or _record_text(record) is None:
                    continue
                drawing.offer(Pick(uri, rev, why=reason), format_time(at))

    async def _rejected(self, uris: Sequence[str]) -> dict[str, Look]:
        found = {}
        sql = "SELECT rkey, did, rev, record FROM reject WHERE record IS NOT NULL AND (rkey, did) IN ({keys})"
        for rkey, did, rev, record in await self._journal.rows_by_key(sql, map(post_key, uris)):
            text = _record_text(record)
            found[post_uri(did, rkey)] = Look("live", rev, text) if text else Look("not held")
        return found

    async def _standing(self, uris: Sequence[str]) -> tuple[set[str], set[str], set[str]]:
        """What the journal says of these posts: (deleted, or erased; hidden; live)."""
        by_state: dict[str, set[str]] = {"deleted": set(), "hidden": set(), "live": set()}
        sql = "SELECT rkey, did, state FROM post WHERE (rkey, did) IN ({keys})"
        for rkey, did, state in await self._journal.rows_by_key(sql, map(post_key, uris)):
            by_state[state].add(post_uri(did, rkey))
        names = list(dict.fromkeys([*uris, *map(did_of, uris)]))
        erased = {name for (name,) in await self._named("SELECT name FROM erased WHERE name IN ({marks})", names)}
        accounts = dict(await self._named("SELECT did, status FROM account WHERE did IN ({marks})", names))
        for uri in uris:
            status = accounts.get(did_of(uri), "active")
            # A post that came after its account's end is live in the journal: the account was made anew.
            if uri in erased or did_of(uri) in erased or (status == "deleted" and uri not in by_state["live"]):
                by_state["deleted"].add(uri)
            elif status not in {"active", "deleted"}:
                by_state["hidden"].add(uri)
        return by_state["deleted"], by_state["hidden"], by_state["live"]

    async def _named(self, sql: str, names: Sequence[str]) -> list[Any]:
        found: list[Any] = []
        for at in range(0, len(names), _PAGE):
            part = names[at : at + _PAGE]
            found += await self._journal.rows(sql.format(marks=",".join("?" * len(part))), part)
        return found


@asynccontextmanager
async def opened(settings: Settings, folder: Path, *, rejects: bool = False) -> AsyncIterator[Posts]:
    """The posts of a data directory. For `rejects` no store is needed. Raises `Usage` when there is nothing to read."""
    async with reading(folder / datadir.JOURNAL, tables.SCHEMA) as journal:
        if rejects:
            yield Posts(journal, None)
        elif settings.store.chosen == "mongo":
            mongo = await stores.open_existing(settings.store, folder / datadir.POSTS)
            try:
                yield Posts(journal, mongo)
            finally:
                await mongo.close()
        else:
            file = folder / datadir.POSTS
            if not file.is_file():
                raise Usage(f"there is no store {file}; name its folder with --data-dir, or MongoDB with --store mongo")
            async with reading(file, stores.SCHEMA) as database:
                yield Posts(journal, SqliteStore(database, file))


def _is_in(document: Document, population: Population) -> bool:
    if document.get("state") != "live":
        return False
    if population.origin != ANY and population.origin not in origins_of(document):
        return False
    if population.among == "labelled" and population.task not in (document.get("labels") or {}):
        return False
    at = parse_time(document.get("event_at") or "")
    return at is not None and _within(at, population.window) and _text(document) is not None


def _within(at: int, window: Window) -> bool:
    since, until = window
    return (since is None or at >= since) and (until is None or at < until)


def _text(fields: Mapping[str, Any]) -> Text | None:
    """None when there is nothing to read."""
    link = fields.get("link") or {}
    parts = [str(link.get(name) or "") for name in _CARD]
    card = " - ".join(part for part in parts if not is_blank(part))
    text = "" if is_blank(fields.get("text") or "") else fields["text"]
    alts = [alt for alt in fields.get("alts") or () if not is_blank(alt)]
    if not (text or card or alts):
        return None
    whole = readable({"text": text, "link": {name: link.get(name) or "" for name in _CARD}, "alts": alts})
    return Text(_shown(text), _shown(card), list(map(_shown, alts)), whole)


def _record_text(record: bytes) -> Text | None:
    from libipld import decode_dag_cbor  # noqa: PLC0415

    decoded = decode_dag_cbor(record)
    return _text(extract(decoded)) if isinstance(decoded, dict) else None


def _shown(text: str) -> str:
    return visible(text, MAX_TEXT)
