"""The installed command against the fake relay, and its journal against the oracle."""

import json
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from support import command
from support.converge import covers
from support.fake_relay import FakeRelay, Options
from support.host import Host
from support.misbehave import Knob
from support.world import World


@asynccontextmanager
async def playing(
    *plan: dict[str, Any], hosts: int = 1, hostile: float = 0, accounts: int = 50, **options: Any
) -> AsyncIterator[FakeRelay]:
    """A relay whose clock goes with ours if it has a rate; its addresses are those of `relay.hosts`."""
    rate = options.get("rate")
    clock = {"start": int(time.time() * 1e6), "step": round(1e6 / rate)} if rate else {}
    world = World(5, hostile=hostile, accounts=accounts, **clock)
    relay = FakeRelay(world, Options(**options), hosts=hosts, plan=[Knob.read(knob) for knob in plan])
    async with relay.serve():
        yield relay


def begin(
    folder: Path, relay: FakeRelay, *args: Any, verb: str = "collect", **settings: Any
) -> "subprocess.Popen[str]":
    """Start the command on all hosts of a relay, from their windows' beginning."""
    relays = [part for host in relay.hosts for part in ("--relay", host.address)]
    quick = {"worker__batch_seconds": 0.05, "source__backoff_seconds": 0.05, "source__start": "window",
             "appview__url": relay.control, "appview__per_second": 1000, "appview__recheck": "false"}  # fmt: skip
    return command.start(verb, *relays, "--data-dir", folder, *args, **quick | settings)


def collect(folder: Path, relay: FakeRelay, **settings: Any) -> command.Ended:
    """Run the command until it holds everything; runs in a thread."""
    process = begin(folder, relay, **settings)
    ended = command.end_when(process, lambda: relay.is_quiet and all_taken(folder, relay), "all to be held")
    assert ended.code == 0, ended.err
    return ended


def cursors(folder: Path, relay: FakeRelay) -> dict[int, int]:
    """What is committed, by the number of the host."""
    told = dict(command.query(folder / "journal.db", "SELECT name, cursor FROM host WHERE cursor IS NOT NULL"))
    return {host.number: told[host.address] for host in relay.hosts if host.address in told}


def all_taken(folder: Path, relay: FakeRelay) -> bool:
    held = cursors(folder, relay)
    return covers(relay.state(), held)


def compare(folder: Path, told: dict[str, Any], *, least: int = 100) -> None:
    """The journal holds what the oracle says."""
    posts = {
        f"at://{did}/app.bsky.feed.post/{rkey}": {"state": state, "cid": cid, "text": text}
        for did, rkey, state, cid, text in command.query(
            folder / "journal.db", "SELECT did, rkey, state, cid, fields ->> '$.text' FROM post"
        )
    }
    assert len(told["posts"]) > least
    assert {uri: posts.get(uri) for uri in told["posts"]} == told["posts"]
    others = [post for uri, post in posts.items() if uri not in told["posts"]]
    assert all(post == {"state": "deleted", "cid": "", "text": None} for post in others)


def coverage(folder: Path) -> dict[str, Any]:
    """What `civicsky coverage --json` says."""
    told = command.run("coverage", "--json", "--data-dir", folder)
    assert told.code == 0, told.err
    found: dict[str, Any] = json.loads(told.out)
    return found


def events(ended: command.Ended, name: str) -> list[dict[str, Any]]:
    """The log's lines of one event."""
    lines = [json.loads(line) for line in ended.err.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


def asked(host: Host) -> list[int]:
    """The cursors with which a host was asked."""
    return [cursor for cursor in host.cursors if cursor]
