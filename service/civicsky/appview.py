"""Asks Bluesky's public API whether posts and accounts are there, for texts, and for feeds.

`xrpc.py` sends the request, and `views.py` reads the answer: of most only the names, uri and cid of a post, DID of an
account. Where texts are wanted, each record is read by itself: one that cannot be read counts as a post without text.

Every way in which the API can fail is one of three: `Transient` (wait, try again), `Refused` (a person must act),
`BadInput` (this answer is of no use). Nothing is tried again here: that is the caller's business.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Final

from civicsky import log, login, views, xrpc
from civicsky.errors import BadInput, Refused, Usage
from civicsky.settings import AppView as AppViewSettings

MAX_PER_CALL: Final = 25
"""Names in one call at most: https://docs.bsky.app/docs/api/app-bsky-feed-get-posts and …-actor-get-profiles."""
MAX_PAGE: Final = 100
"""Posts on one page of a feed at most: https://docs.bsky.app/docs/api/app-bsky-feed-get-feed."""

_HANDLE: Final = re.compile(
    r"(?=.{3,253}\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
)
"""https://atproto.com/specs/handle"""
_DID: Final = re.compile(r"did:[a-z]+:[a-zA-Z0-9._:%-]{1,2000}")
"""https://atproto.com/specs/did"""
_WANTS_LOGIN: Final = frozenset({"AuthMissing", "AuthRequired", "AuthenticationRequired"})
_EXPIRED: Final = "ExpiredToken"
_STALE: Final = _WANTS_LOGIN | {_EXPIRED, "InvalidToken", "BadJwt", "MissingJwt"}
"""What is said of a token that is not good (any more)."""
_STATUSES: Final = {
    "AccountTakedown": "takendown",
    "AccountDeactivated": "deactivated",
    "Profile not found": "deleted",
}
"""What getProfile says of an account that cannot be seen: its `error`, or its `message` where the error is general.
From its source, packages/bsky/src/api/app/bsky/actor/getProfile.ts in bluesky-social/atproto."""


class AppView:
    """The public API: getPosts, getProfiles, getProfile, getFeed, resolveHandle. Keeps nothing but a login's session.

    One call at a time, `per_second` at most; more callers wait in line. Every call raises `Transient`, `Refused` or
    `BadInput("appview_answer")`. Since one name in a call may be the reason why its answer is of no use, the caller may
    ask again with fewer.
    """

    def __init__(self, settings: AppViewSettings, folder: Path | None = None) -> None:
        """`folder` is where the session of a login is kept; without one it is forgotten."""
        self._settings = settings
        self._line = asyncio.Lock()
        self._not_before = 0.0
        self._sdk: xrpc.Client | None = None
        self._account = _Account(settings, folder, self._turn)
        self._with_login: set[str] = set()

    async def posts(self, uris: Sequence[str]) -> dict[str, str]:
        """Of at most 25 posts (AT-URIs that name their authors by DID) those that are there, with their CIDs.

        A post that is not in the answer was not shown to us: it, or its author's account, is gone or hidden.
        """
        items = await self._listed("app.bsky.feed.getPosts", "uris", uris, "posts")
        found = {views.text(item, "uri"): item for item in items}
        return {uri: views.text(found[uri], "cid") for uri in uris if uri in found}

    async def records(self, uris: Sequence[str]) -> dict[str, dict[str, Any]]:
        """As `posts`, with what each author wrote: `uri`, `cid`, the author's `did`, and all keys of `record.extract`.

        Every text is sound Unicode, and bounded as `extract` says. A record that cannot be read leaves its post there,
        without text, and does nothing to the others.
        """
        items = await self._listed("app.bsky.feed.getPosts", "uris", uris, "posts")
        found = {views.text(item, "uri"): item for item in items}
        return await asyncio.to_thread(views.records, {uri: found[uri] for uri in uris if uri in found})

    async def shown(self, uris: Sequence[str]) -> dict[str, views.PostView]:
        """As `posts`, each with what was counted of it, its record, and what its author's profile says of itself."""
        items = await self._listed("app.bsky.feed.getPosts", "uris", uris, "posts")
        found = {views.text(item, "uri"): item for item in items}
        asked = {uri: found[uri] for uri in uris if uri in found}
        for item in asked.values():
            views.text(item, "cid")
        return await asyncio.to_thread(views.posts, asked)

    async def profiles(self, dids: Sequence[str]) -> dict[str, views.Profile]:
        """Of at most 25 accounts (DIDs) the profiles of those that are there."""
        items = await self._listed("app.bsky.actor.getProfiles", "actors", dids, "profiles")
        return await asyncio.to_thread(views.profiles, items, set(dids))

    async def accounts(self, dids: Sequence[str]) -> set[str]:
        """Of at most 25 accounts (DIDs) those that are there: neither gone nor deactivated nor taken down."""
        items = await self._listed("app.bsky.actor.getProfiles", "actors", dids, "profiles")
        return {views.text(item, "did") for item in items} & set(dids)

    async def status(self, did: str) -> str:
        """What became of an account: `active`, `takendown`, `deactivated`, or `deleted` when nobody knows it."""
        try:
            await self._call("app.bsky.actor.getProfile", actor=did)
        except xrpc.Rejected as rejected:
            status = _STATUSES.get(rejected.error) or _STATUSES.get(rejected.told)
            if status is None:
                raise
            return status
        return "active"

    async def resolve(self, handle: str) -> str:
        """The DID of a handle, with or without its @. Raises `Usage` for one that is none or that nobody has."""
        name = handle.strip().removeprefix("@").lower()
        if not _HANDLE.fullmatch(name):
            raise Usage(f"{handle!r} is not a handle; give one like alice.bsky.social")
        try:
            answer = await self._call("com.atproto.identity.resolveHandle", handle=name)
        except xrpc.Rejected:
            raise Usage(f"handle {name!r}: no account has it; check its spelling, or give the DID") from None
        did = views.text(answer, "did")
        if not _DID.fullmatch(did):
            raise BadInput("appview_answer")
        return did

    async def feed(self, uri: str, cursor: str | None = None, limit: int = MAX_PAGE) -> views.Page:
        """A page of a feed (its AT-URI), with about so many posts: feeds need not heed it.

        With a login when the feed wants one, or the settings always do. Raises `Usage` for a feed that nobody knows.
        """
        parameters = {"feed": uri, "limit": limit, **({"cursor": cursor} if cursor else {})}
        try:
            answer = await self._feed(uri, parameters)
        except xrpc.Rejected as error:
            told = log.harmless(f"{error.error}: {error.told}")
            if error.error == "UnknownFeed" or "feed" in error.told.lower():
                raise Usage(
                    f"the public API knows no feed {uri} ({told}); it may be gone: "
                    "look at it on bsky.app, and mend its address or feeds.lists"
                ) from None
            raise Refused(f"the public API rejects what was asked of feed {uri} ({told})") from None
        return await asyncio.to_thread(views.page, answer)

    async def _feed(self, uri: str, parameters: dict[str, Any]) -> bytes:
        method = "app.bsky.feed.getFeed"
        if self._settings.login == "needed" and uri not in self._with_login:
            try:
                return await self._send(method, parameters)
            except (xrpc.Rejected, xrpc.Denied) as error:
                if not isinstance(error, xrpc.Denied) and error.error not in _WANTS_LOGIN:
                    raise
                if not login.are_set(self._settings):
                    why = f"wants a login{error.shown}, or the public API blocks this machine"
                    raise Refused(f"feed {uri} {why}; {login.NONE_SET}") from None
            self._with_login.add(uri)
        async with self._line:
            return await self._account.query(method, parameters)

    @property
    def date(self) -> str:
        """The API's clock, as the head of its last answer told it (an HTTP date); empty before the first."""
        return self._sdk.date if self._sdk else ""

    async def close(self) -> None:
        """Release the connection. Not while a call is under way."""
        await self._account.close()
        if self._sdk is not None:
            await self._sdk.close()
            self._sdk = None

    async def _listed(self, method: str, parameter: str, names: Sequence[str], key: str) -> list[Any]:
        """The list under `key` of an answer about `names`; nobody is asked about none."""
        asked = list(dict.fromkeys(names))
        if len(asked) > MAX_PER_CALL:
            raise ValueError(f"{len(asked)} names in one call: the public API takes {MAX_PER_CALL}")
        if not asked:
            return []
        return views.listed(await self._call(method, **{parameter: asked}), key)

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One call, when it is its turn; its answer as `views.read` gives it."""
        return await asyncio.to_thread(views.read, await self._send(method, parameters))

    async def _send(self, method: str, parameters: dict[str, Any]) -> bytes:
        """The same; its answer as it came."""
        async with self._line:
            if self._sdk is None:
                self._sdk = await asyncio.to_thread(xrpc.Client, self._settings, "url")
            await self._turn()
            return await self._sdk.query(method, parameters)

    async def _turn(self) -> None:
        """Wait until a call may be made, by the settings. The caller stands first in line."""
        await asyncio.sleep(max(0.0, self._not_before - monotonic()))
        self._not_before = monotonic() + 1 / self._settings.per_second


class _Account:
    """Asks with a login.

    The session is made when it is first needed, kept for later runs, refreshed when it is over, and made anew once
    when it is refused. One call at a time: the caller holds the line.
    """

    def __init__(self, settings: AppViewSettings, folder: Path | None, turn: Callable[[], Awaitable[None]]) -> None:
        self._settings, self._folder, self._turn = settings, folder, turn
        self._sdk: xrpc.Client | None = None
        self._who: login.Credentials | None = None
        self._session: login.Session | None = None
        self._created = False
        self._refused: Refused | None = None

    async def close(self) -> None:
        """Release the connection. The session stays good."""
        if self._sdk is not None:
            await self._sdk.close()
            self._sdk = None

    async def query(self, method: str, parameters: dict[str, Any]) -> bytes:
        """One call. Raises `Usage` when there are no credentials, `Refused` when they are not good."""
        if self._who is None:
            self._who = login.credentials(self._settings)
        if self._sdk is None:
            self._sdk = await asyncio.to_thread(xrpc.Client, self._settings, "login_url")
        who, sdk = self._who, self._sdk
        await self._begin(sdk, who)
        try:
            return await self._ask(sdk, method, parameters)
        except (xrpc.Rejected, xrpc.Denied) as error:
            if error.error == _EXPIRED:
                renew = self._refresh
            elif not self._created and (isinstance(error, xrpc.Denied) or error.error in _STALE):
                renew = self._create
            else:
                raise self._meant(error) from None
        await renew(sdk, who)
        try:
            return await self._ask(sdk, method, parameters)
        except (xrpc.Rejected, xrpc.Denied) as error:
            raise self._meant(error) from None

    async def _begin(self, sdk: xrpc.Client, who: login.Credentials) -> None:
        """Have a session, as far as we can tell a good one."""
        if self._session is None and self._folder is not None:
            self._session = login.kept(self._folder, self._settings, who)
        if self._session is None:
            await self._create(sdk, who)
        elif sdk.is_over(self._session.access):
            await self._refresh(sdk, who)

    async def _ask(self, sdk: xrpc.Client, method: str, parameters: dict[str, Any]) -> bytes:
        assert self._session is not None
        await self._turn()
        return await sdk.query(method, parameters, self._session.access)

    async def _create(self, sdk: xrpc.Client, who: login.Credentials) -> None:
        if self._refused is not None:  # asked again and again the server would bar the account
            raise self._refused
        given = {"identifier": who.handle, "password": who.password.get_secret_value()}
        await self._turn()
        try:
            answer = await sdk.procedure("com.atproto.server.createSession", given)
        except (xrpc.Rejected, xrpc.Denied) as error:
            self._refused = Refused(
                f"appview: the server at {self._settings.login_url} refuses the login of {who.handle}{error.shown}; "
                "it takes a handle and an app password: look at both, and start again"
            )
            raise self._refused from None
        self._created = True
        self._keep(answer, who, "created")

    async def _refresh(self, sdk: xrpc.Client, who: login.Credentials) -> None:
        assert self._session is not None
        await self._turn()
        try:
            answer = await sdk.procedure("com.atproto.server.refreshSession", {}, self._session.refresh)
        except (xrpc.Rejected, xrpc.Denied):
            await self._create(sdk, who)
        else:
            self._keep(answer, who, "refreshed")

    def _keep(self, answer: bytes, who: login.Credentials, how: str) -> None:
        self._session = login.session(views.read(answer), self._settings, who)
        if self._folder is not None:
            login.keep(self._folder, self._session)
        log.event("login", stage="appview", how=how, handle=who.handle, server=self._settings.login_url)

    def _meant(self, error: xrpc.Rejected | xrpc.Denied) -> Exception:
        """What a refusal means when our session is as good as can be."""
        if isinstance(error, xrpc.Rejected) and error.error not in _STALE:
            return error
        handle = log.harmless(self._settings.handle) or "of the credentials file"
        return Refused(f"appview: the account {handle} may not have what was asked for{error.shown}; see to its rights")
