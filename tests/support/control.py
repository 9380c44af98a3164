"""The fake relay's control server, which is also its AppView. Plain HTTP on loopback, JSON out.

    GET  /state                         what happened so far
    GET  /oracle[?rechecked=1][&cursor=HOST:SEQ]...   what a perfect collector would hold
    GET  /story?uri=..                  what happened to a post, and which of it counts as held
    POST /knob {"name": ..., ...}       one more misbehaviour, or a list of them
    POST /make {"events": N}            make so many events now
    POST /forget {"host": N}            the client ended with nothing of this host committed
    GET  /xrpc/app.bsky.feed.getPosts?uris=..&uris=..
    GET  /xrpc/app.bsky.actor.getProfiles?actors=..
    GET  /xrpc/app.bsky.actor.getProfile?actor=..
    GET  /xrpc/com.atproto.identity.resolveHandle?handle=..

The AppView answers from the world as it is at this moment.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import cbor2

from support.frames import POSTS, cid_text, rfc3339
from support.misbehave import Knob
from support.oracle import story
from support.world import Account, World

if TYPE_CHECKING:
    from support.fake_relay import FakeRelay

MOST = 25
"""URIs or accounts in one call."""


class Refused(Exception):
    """The call cannot be answered: the message, and the error's name if it has one of its own."""


@asynccontextmanager
async def serve_control(relay: "FakeRelay", port: int = 0) -> AsyncIterator[str]:
    """Listen; gives the address."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            method, target, body = await _request(reader)
            try:
                status, told = "200 OK", answer(relay, method, target, body)
            except (Refused, ValueError, LookupError) as error:
                name = error.args[1] if len(error.args) > 1 else "InvalidRequest"
                status, told = "400 Bad Request", {"error": name, "message": str(error.args[0])}
            data = json.dumps(told).encode()
            head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
            writer.write(head.encode() + b"Connection: close\r\n\r\n" + data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", port)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def _request(reader: asyncio.StreamReader) -> tuple[str, str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ")
    length = next((int(line.partition(":")[2]) for line in lines if line.lower().startswith("content-length:")), 0)
    return method, target, await reader.readexactly(length)


def answer(relay: "FakeRelay", method: str, target: str, body: bytes) -> Any:
    """Answer one call. Raises `Refused`, `ValueError` or `LookupError` when it cannot be."""
    path, asked = urlsplit(target).path, parse_qs(urlsplit(target).query)
    match method, path:
        case "GET", "/state":
            return relay.state()
        case "GET", "/oracle":
            cursors = {int(host): int(seq) for host, _, seq in (one.partition(":") for one in asked.get("cursor", []))}
            return relay.oracle(rechecked="rechecked" in asked, cursors=cursors)
        case "GET", "/story":
            return story(relay.world, relay.sent, asked["uri"][0])
        case "POST", "/knob":
            told = json.loads(body)
            for knob in [Knob.read(one) for one in (told if isinstance(told, list) else [told])]:
                relay.turn(knob)
            return relay.state()
        case "POST", "/forget":
            relay.sent.forget(json.loads(body)["host"])
            return relay.state()
        case "POST", "/make":
            for _ in range(json.loads(body)["events"]):
                relay.make()
            relay.wake()
            return relay.state()
        case "GET", _:
            return appview(relay.world, path, asked)
    raise Refused(f"no such method: {method} {path}")


def appview(world: World, path: str, asked: dict[str, list[str]]) -> Any:
    """Answer a call of the API."""
    match path.removeprefix("/xrpc/"):
        case "app.bsky.feed.getPosts":
            return {"posts": [view for uri in _few(asked, "uris") if (view := post_view(world, uri))]}
        case "app.bsky.actor.getProfiles":
            found = (account_of(world, actor) for actor in _few(asked, "actors"))
            return {"profiles": [profile(account) for account in found if account and account.status == "active"]}
        case "app.bsky.actor.getProfile":
            one = account_of(world, asked["actor"][0])
            if one is None or one.status == "deleted":
                raise Refused("Profile not found")
            if one.status == "active":
                return profile(one)
            is_taken_down = one.status in {"takendown", "suspended"}
            raise Refused("not to be seen", "AccountTakedown" if is_taken_down else "AccountDeactivated")
        case "com.atproto.identity.resolveHandle":
            account = account_of(world, asked["handle"][0])
            if account is None or account.status != "active":
                raise Refused("Unable to resolve handle")
            return {"did": account.did}
    raise Refused(f"no such method: {path}")


def post_view(world: World, uri: str) -> dict[str, Any] | None:
    """A post as the API shows it; None when it is not there, or its account is not."""
    did, collection, rkey = uri.removeprefix("at://").split("/")
    if collection != POSTS or world.state(did, rkey) != "live":
        return None
    account = world.accounts[did]
    record, cid = account.posts[rkey]
    return {
        "$type": "app.bsky.feed.defs#postView",
        "uri": uri,
        "cid": cid,
        "author": _author(account),
        "record": _json(record),
        "bookmarkCount": 0,
        "replyCount": 0,
        "repostCount": 0,
        "likeCount": 0,
        "quoteCount": 0,
        "indexedAt": record["createdAt"],
        "labels": [],
    }


def profile(account: Account) -> dict[str, Any]:
    """An account as the API shows it."""
    return {**_author(account), "followersCount": 0, "followsCount": 0, "postsCount": len(account.posts)}


def account_of(world: World, actor: str) -> Account | None:
    """An account by its DID or its present handle."""
    if actor.startswith("did:"):
        return world.accounts.get(actor)
    return next((account for account in world.accounts.values() if account.handle == actor), None)


def _author(account: Account) -> dict[str, Any]:
    return {"did": account.did, "handle": account.handle, "displayName": "", "labels": [], "createdAt": rfc3339(0)}


def _few(asked: dict[str, list[str]], name: str) -> list[str]:
    found = asked.get(name, [])
    if not 0 < len(found) <= MOST:
        raise Refused(f"{name} must not have more than {MOST} elements, nor fewer than 1")
    return found


def _json(value: Any) -> Any:
    """A record in the API's JSON, in which a link is an object."""
    if isinstance(value, cbor2.CBORTag):
        return {"$link": cid_text(value.value[1:])}
    if isinstance(value, dict):
        return {name: _json(item) for name, item in value.items()}
    return [_json(item) for item in value] if isinstance(value, list) else value
