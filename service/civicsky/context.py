"""What stands around a post: the one that it quotes, the one that it answers, the first one of its thread.

They are fetched from the public API only when a setting and the task's `context_format` ask for them. `Contexts` serves
the labelling half; `texts_of` gives the texts of posts that are known by their addresses only.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, Generic, Literal, Protocol, TypeGuard, TypeVar

from civicsky.errors import BadInput, Transient
from civicsky.model import POSTS, now_us, post_uri
from civicsky.record import MAX_TEXT, readable
from civicsky.settings import Context
from civicsky.task import Task, context_text

MAX_PER_CALL: Final = 25
"""Posts in one call at most: https://docs.bsky.app/docs/api/app-bsky-feed-get-posts"""
MAX_GONE: Final = 50_000
"""Deletions remembered, 150 bytes each: an hour's of all of Bluesky, where the API shows them within seconds."""
NEW_US: Final = 600_000_000
"""A post that is younger than ten minutes may not be shown only because the API lags behind the stream."""
FOUND_AT_ONCE: Final = 500
"""Documents of the store in memory at most, each of a few kB."""
PAUSES: Final = (1.0, 2.0, 4.0, 8.0)
"""Seconds before an API that cannot be asked now is asked again by `records_of`."""
MAX_PAUSE_SECONDS: Final = 60.0

_FIELDS: Final = {"parent": "reply_parent", "root": "reply_root", "quote": "quote_uri"}
"""The field that names each part. A post that is two of them is given once, as the first of them here."""
_POST: Final = re.compile(
    rf"at://did:[a-z]{{1,20}}:[A-Za-z0-9._:%-]{{0,199}}[A-Za-z0-9._-]/{re.escape(POSTS)}/(?!\.{{1,2}}\Z)[A-Za-z0-9._:~-]{{1,200}}"
)
"""Addresses that the API takes: https://atproto.com/specs/at-uri-scheme . It refuses a whole call for one that it does
not. Shorter than the specification allows, so that 25 of them fit into a request; nobody's are longer."""
_DIGITS: Final = "234567abcdefghijklmnopqrstuvwxyz"
_TID: Final = re.compile(rf"[{_DIGITS[:16]}][{_DIGITS}]{{12}}")
"""https://atproto.com/specs/tid"""

Post = dict[str, Any]
A = TypeVar("A")
T = TypeVar("T")


class CacheShape(Protocol):
    """See `ledger.Ledger`."""

    async def contexts(self, uris: Sequence[str]) -> dict[str, str | None]:
        """Those that were kept: as JSON, or None for one that was gone."""
        ...

    async def keep_contexts(self, posts: Mapping[str, str | None]) -> None:
        """Keep these."""
        ...


class AppViewShape(Protocol):
    """See `appview.AppView`."""

    async def records(self, uris: Sequence[str]) -> dict[str, Post]:
        """What the authors of these posts wrote."""
        ...


class StoreShape(Protocol):
    """See `store.Store`."""

    async def find(self, collection: Literal["posts"], ids: Sequence[str]) -> list[dict[str, Any]]:
        """The documents with these ids."""
        ...


class Contexts:
    """The contexts of posts, from the cache or else from the public API. Any number of tasks may ask at once.

    One call is under way at a time, for 25 posts at most; what is asked meanwhile goes together into the next one, each
    post once. So what waits is bounded by the callers: three posts each. A caller that is cancelled takes nothing from
    the others.

    A deleted post is never given again: the cache scrubs what it has, and `forget` tells of it here, for the answers
    that are on their way and since the API may still show the post for a while.
    """

    def __init__(self, settings: Context, max_chars: int, appview: AppViewShape, cache: CacheShape) -> None:
        self._settings, self._max_chars = settings, max_chars
        self._api, self._cache = _Api(appview.records), cache
        self._asked: dict[str, asyncio.Future[Post | Exception | None]] = {}
        self._fetching: asyncio.Task[None] | None = None
        self._gone: dict[str, None] = {}
        self.why = ""
        """Why the public API cannot be asked now, by the last call; empty when it can."""

    async def of(self, task: Task, fields: Mapping[str, Any]) -> str:
        """The context of a post with these fields (see `record.extract`): `max_chars` characters at most.

        "" when nothing is wanted, named or there; when nothing is wanted or named, nobody is asked. A post that is gone
        or has no text is left out, and so is one that the API cannot give while it gives others. Long texts are cut
        until all fit.

        Raises `Transient` when the API cannot be asked now, or gives no answer of use to anything, `Refused` when it
        will not have us, and whatever the cache raises.
        """
        wanted = self._wanted(task, fields)
        if not wanted:
            return ""
        posts = await self._posts(wanted.values())
        return self._rendered(task, {part: self._text(posts[uri]) for part, uri in wanted.items()})

    def forget(self, did: str, rkey: str = "") -> None:
        """A post, or (without `rkey`) an account, is deleted. To be called before the cache scrubs it."""
        name = post_uri(did, rkey) if rkey else did
        self._gone.pop(name, None)
        self._gone[name] = None
        while len(self._gone) > MAX_GONE:
            del self._gone[next(iter(self._gone))]

    def recall(self, did: str) -> None:
        """An account that was hidden is shown again. What it deleted by itself stays gone."""
        self._gone.pop(did, None)

    async def close(self) -> None:
        """End the call that is under way; whoever still waits for it is cancelled."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])
        for future in self._asked.values():
            future.cancel()
        self._asked.clear()

    # ---- what is wanted ----

    def _wanted(self, task: Task, fields: Mapping[str, Any]) -> dict[str, str]:
        """The AT-URIs of the parts that are wanted and named, each URI once."""
        wanted: dict[str, str] = {}
        for part, field in _FIELDS.items():
            uri = fields.get(field)
            if not getattr(self._settings, part) or f"{{{part}}}" not in task.context_format:
                continue
            if is_post(uri) and uri not in wanted.values():
                wanted[part] = uri
        return wanted

    def _text(self, post: Post | None) -> str:
        """What is given of a post."""
        if post is None:
            return ""
        return readable(post if self._settings.alts else {**post, "alts": []})

    def _rendered(self, task: Task, texts: Mapping[str, str]) -> str:
        """The context; where there is not room for all, the longest texts are cut."""
        there = {part: text for part, text in texts.items() if text}
        if not there:
            return ""
        room = self._max_chars - len(context_text(task, dict.fromkeys(there, "x"))) + len(there)
        for left, part in zip(range(len(there), 0, -1), sorted(there, key=lambda part: len(there[part])), strict=True):
            there[part] = there[part][: max(0, room // left)]
            room -= len(there[part])
        return context_text(task, there)[: self._max_chars]

    # ---- where it comes from ----

    async def _posts(self, uris: Iterable[str]) -> dict[str, Post | None]:
        """The posts by their URIs, None for one that is not there. Errors as for `of`."""
        there = [uri for uri in uris if not self._is_gone(uri)]
        kept = await self._cache.contexts(there) if there else {}
        found: dict[str, Post | None] = {uri: json.loads(post) if post else None for uri, post in kept.items()}
        futures = {uri: self._asked.get(uri) or self._ask(uri) for uri in there if uri not in found}
        if futures:
            await asyncio.wait(futures.values())  # which does not cancel them when we are cancelled
        for uri, future in futures.items():
            result = future.result()
            if isinstance(result, Exception):
                raise result
            found[uri] = result
        return {uri: None if self._is_gone(uri) else found[uri] for uri in uris}

    def _ask(self, uri: str) -> "asyncio.Future[Post | Exception | None]":
        """Put a post in line for the next call."""
        future = self._asked[uri] = asyncio.get_running_loop().create_future()
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch(), name="context")
        return future

    async def _fetch(self) -> None:
        """Ask for what is in line until nothing is; an error is given to whoever waits."""
        while uris := list(islice(self._asked, MAX_PER_CALL)):
            results: Mapping[str, Post | Exception | None]
            try:
                results = await self._fetch_some(uris)
                self.why = ""
            except Exception as error:  # noqa: BLE001  (they raise it)
                results = dict.fromkeys(uris, error)
                self.why = str(error) or type(error).__name__
            for uri in uris:
                self._asked.pop(uri).set_result(results[uri])

    async def _fetch_some(self, uris: Sequence[str]) -> dict[str, Post | None]:
        """Fetch and keep posts."""
        posts, doubtful = await self._api.posts(uris)
        kept = {uri: _cut(post) for uri, post in posts.items()}
        found = {uri: None if self._is_gone(uri) else kept.get(uri) for uri in uris}
        now = now_us()
        await self._cache.keep_contexts(
            {
                uri: None if post is None else json.dumps(post, ensure_ascii=False, separators=(",", ":"))
                for uri, post in found.items()
                if post is not None or not (uri in doubtful or _is_new(uri, now))
            }
        )
        # What was deleted just now may have been scrubbed before we kept it.
        if late := [uri for uri, post in found.items() if post is not None and self._is_gone(uri)]:
            await self._cache.keep_contexts(dict.fromkeys(late))
        return found

    def _is_gone(self, uri: str) -> bool:
        return uri in self._gone or _did(uri) in self._gone


class _Api(Generic[T]):
    """The public API, asked for posts whose URIs authors wrote: one that it stumbles over must not cost the others.

    At worst it takes two calls for each URI to find those; one call more than else when the API is down.
    """

    def __init__(self, ask: Callable[[Sequence[str]], Awaitable[dict[str, T]]]) -> None:
        self._ask = ask
        self._control: Sequence[str] = ()
        """A post that it answered for, there or not."""

    async def posts(self, uris: Sequence[str]) -> tuple[dict[str, T], list[str]]:
        """Of at most 25 posts those that are there, and the URIs that the API fails at though it answers for others.

        Raises `Transient` when it answers for none, `Refused`.
        """
        answer = await self._try(uris)
        if isinstance(answer, dict):
            return answer, []
        middle = len(uris) // 2
        for control in [self._control] if self._control else [uris[:middle], uris[middle:]]:
            if control and isinstance(await self._try(control), dict):
                return await self._without_doubtful(uris)
        raise answer

    async def _without_doubtful(self, uris: Sequence[str]) -> tuple[dict[str, T], list[str]]:
        """As `posts`, of those that cannot be asked for together."""
        if len(uris) == 1:
            return {}, list(uris)
        found: dict[str, T] = {}
        doubtful, middle = list[str](), len(uris) // 2
        for half in (uris[:middle], uris[middle:]):
            answer = await self._try(half)
            posts, failed = (answer, []) if isinstance(answer, dict) else await self._without_doubtful(half)
            found |= posts
            doubtful += failed
        return found, doubtful

    async def _try(self, uris: Sequence[str]) -> dict[str, T] | Transient:
        """One call; an error that one of the URIs may be the reason for is given, any other is raised."""
        try:
            posts = await self._ask(uris)
        except BadInput as error:
            return Transient(f"public API: its answer cannot be used ({error.reason})")
        except Transient as error:
            if error.busy or error.retry_after is not None:
                raise
            return error
        self._control = uris[:1]
        return posts


async def texts_of(
    uris: Iterable[str],
    store: StoreShape | None,
    appview: AppViewShape | None,
    told: Callable[[int], None] = lambda _done: None,
) -> dict[str, str | None]:
    """What a model would read of each of these posts (see `record.readable`): from the store, else from the public API.

    None for a post that is deleted, that neither has, or that shows nothing, and for what is no post's AT-URI with the
    author's DID. `told` is given how many are done, batch by batch. Of the API as `records_of`.

    Raises `Transient` or `Refused` when the store cannot be read or the API not be asked.
    """
    texts: dict[str, str | None] = dict.fromkeys(uris)
    asked = list(texts)
    if store is not None:
        asked = []
        for part in _batches(list(texts), FOUND_AT_ONCE):
            documents = {document["_id"]: document for document in await store.find("posts", part)}
            texts |= {uri: readable(doc) or None for uri, doc in documents.items() if doc.get("state") == "live"}
            # What is hidden may be shown again by now: the API knows. What is deleted stays so.
            asked += [uri for uri in part if uri not in documents or documents[uri].get("state") == "hidden"]
    asked = [uri for uri in asked if is_post(uri)] if appview else []
    done = len(texts) - len(asked)
    told(done)
    if appview is not None:
        async for part, posts in records_of(asked, appview):
            texts |= {uri: readable(post) or None for uri, post in posts.items()}
            done += len(part)
            told(done)
    return texts


async def records_of(
    uris: Iterable[str], appview: AppViewShape
) -> AsyncIterator[tuple[Sequence[str], dict[str, Post]]]:
    """Any number of posts as `appview.records` gives them. As `posts_of`."""
    async for batch in posts_of(uris, appview.records):
        yield batch


async def posts_of(
    uris: Iterable[str], ask: Callable[[Sequence[str]], Awaitable[dict[str, T]]]
) -> AsyncIterator[tuple[Sequence[str], dict[str, T]]]:
    """Any number of posts as `ask` gives 25 of them, in batches: each what was asked for, and what is there.

    What is no post's AT-URI with the author's DID is passed over, and what the API fails at while it answers for others
    counts as not there. While the API cannot be asked, it is tried again a few times; asked to wait for more than a
    minute, we do not. Raises `Transient` or `Refused` when it cannot be asked.
    """
    api = _Api(ask)
    for part in _batches([uri for uri in dict.fromkeys(uris) if is_post(uri)], MAX_PER_CALL):
        yield part, (await patiently(partial(api.posts, part)))[0]


async def patiently(ask: Callable[[], Awaitable[A]]) -> A:
    """Ask an API that cannot be asked now a few times; asked to wait for more than a minute, do not.

    Raises what `ask` raises.
    """
    for pause in PAUSES:
        try:
            return await ask()
        except Transient as error:
            if (error.retry_after or 0) > MAX_PAUSE_SECONDS:
                raise
            await asyncio.sleep(max(error.retry_after or 0, pause))
    return await ask()


def _batches(uris: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for at in range(0, len(uris), size):
        yield uris[at : at + size]


def _cut(post: Post) -> Post:
    """What is kept of a post: what `record.readable` reads, each kind of text bounded."""
    room, alts = MAX_TEXT, list[str]()
    for alt in post["alts"]:
        if room:
            alts.append(alt[:room])
            room -= len(alts[-1])
    return {"cid": post["cid"], "langs": post["langs"], "text": post["text"], "link": post["link"], "alts": alts}


def is_post(uri: object) -> TypeGuard[str]:
    """Whether it is the address of a post, with its author's DID, that the API takes."""
    return isinstance(uri, str) and _POST.fullmatch(uri) is not None


def _did(uri: str) -> str:
    return uri.split("/")[2]


def _is_new(uri: str, now: int) -> bool:
    """Whether a post was made in the last minutes, as far as its key tells: most programs make it from the time."""
    made = key_time(uri.rpartition("/")[2])
    return made is not None and abs(now - made) < NEW_US


def key_time(rkey: str) -> int | None:
    """The time in a post's key, in microseconds, as the author's program has it; None for a key that has none."""
    if not _TID.fullmatch(rkey):
        return None
    made = 0
    for digit in rkey:
        made = made * len(_DIGITS) + _DIGITS.index(digit)
    return made >> 10  # the last ten bits name the clock
