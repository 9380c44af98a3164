"""What the tests of questions to the public API share: posts of given ages, labelled, and what the API is to know."""

from pathlib import Path
from typing import Any

from support.appview_server import AppViewServer
from support.command import query, run
from support.led import NOW, Led, did_of, uri

HOUR_US = 3_600_000_000
ASKS: dict[str, Any] = {"appview__per_second": 1000, "appview__recheck": "false", "worker__batch_seconds": 0.05}
GIVES_UP = {"Retry-After": "120"}
"""The API asks to wait for longer than a command does."""


def rkey(n: int) -> str:
    return f"3aaaaaaa{n:05d}".replace("0", "z").replace("1", "y").replace("8", "x").replace("9", "w")


def did(n: int) -> str:
    """Of the author of post n, when there are 7."""
    return did_of(n % 7)


def post_uri(n: int) -> str:
    return uri(rkey(n), did(n))


def collected(folder: Path, relay: Led, hours: list[float], **settings: Any) -> None:
    """Collect English posts of these ages, the oldest first: post 0, 1, 2, ..."""
    assert hours == sorted(hours, reverse=True)
    for n, age in enumerate(hours):
        at = NOW - int(age * HOUR_US)
        relay.post(rkey(n), f"A post in plain English about the council, number {n}", did=did(n), at=at)
    ended = run(
        "collect", "--relay", relay.url, "--data-dir", folder, "--max-frames", len(hours), **{**ASKS, **settings}
    )
    assert ended.code == 0, ended.err


def labelled(folder: Path, model: tuple[str, Path], **settings: Any) -> None:
    """Label and store all that waits."""
    ended = run(
        "label", "--drain", "--data-dir", folder, "--model-url", model[0], "--model", "mock", **{**ASKS, **settings}
    )
    assert ended.code == 0, ended.err


def know(appview: AppViewServer, folder: Path) -> None:
    """Let the API know every post that the journal holds, and its author."""
    for name, key, cid in query(folder / "journal.db", "SELECT did, rkey, cid FROM post WHERE state <> 'deleted'"):
        appview.posts[uri(key, name)] = cid
        appview.profiles.add(name)


def asked(appview: AppViewServer, method: str = "getPosts") -> list[str]:
    """Of whom or what it was asked, in order."""
    names = "uris" if method == "getPosts" else "actors"
    return [name for call in appview.named(method) for name in call.query[names]]
