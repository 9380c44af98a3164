"""A data directory with labelled posts of the last days, made at once, and a real service with its page."""

import asyncio
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from random import Random
from sqlite3 import Connection, connect
from typing import Any, NamedTuple
from zlib import crc32

import httpx

from civicsky.journal import Journal
from civicsky.ledger import Ledger, pack
from civicsky.model import Answer, FieldLabel
from civicsky.settings import Journal as JournalSettings
from support.command import CIVICSKY, environment, until
from support.converge import CLIENT
from support.frames import tid
from support.led import Led, did_of
from support.ports import free_port
from support.words import english

SECOND = 1_000_000
HOUR = 3600 * SECOND
LEANS = ("left-leaning", "moderate", "right-leaning", "unclear")


class Seed(NamedTuple):
    """A post to be there."""

    text: str
    at: int
    """Microseconds."""
    did: str
    rkey: str
    fields: dict[str, tuple[str, float | None]] | None
    """Its label; None: it has none."""
    state: str = "done"
    """Its job's: done, pending, dead."""
    p_sampled: float = 1.0
    p_kept: float = 1.0
    reason: str | None = None


def some(n: int, *, now: int, days: float = 7, seed: int = 1, civic: float = 0.3) -> list[Seed]:
    """So many labelled posts, evenly spread over the last days, the oldest first; a third of them civic."""
    chance = Random(seed)
    posts = []
    for at in range(n):
        when = now - int((n - 1 - at) * days * 24 * HOUR / max(1, n)) - SECOND
        is_civic = chance.random() < civic
        fields: dict[str, tuple[str, float | None]] = {
            "civic": ("civic" if is_civic else "not civic", round(chance.uniform(0.7, 1), 2))
        }
        if is_civic:
            fields["lean"] = (chance.choice(LEANS), round(chance.uniform(0.4, 1), 2))
            fields["us_politics"] = (chance.choice(("yes", "no")), round(chance.uniform(0.4, 1), 2))
        posts.append(Seed(english(chance, at), when, did_of(chance.randrange(400)), tid(when // SECOND + at), fields))
    return posts


def seed(folder: Path, posts: Sequence[Seed], *, held_days: float = 7) -> None:
    """Make a journal and a ledger of these."""
    with ThreadPoolExecutor(1) as pool:  # a test may run a loop of its own
        pool.submit(lambda: asyncio.run(_make(folder))).result()
    with closing(connect(folder / "journal.db")) as journal, closing(connect(folder / "ledger.db")) as ledger:
        put(journal, ledger, posts)
        _hold(journal, posts[-1].at, held_days)
        journal.commit()
        ledger.commit()


async def _make(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    await (await Journal.open(folder / "journal.db", JournalSettings())).close()
    await (await Ledger.open(folder / "ledger.db")).close()


def put(journal: Connection, ledger: Connection, posts: Sequence[Seed]) -> None:
    """More of them."""
    made = [(post, f"cid-{post.rkey}-{post.did}") for post in posts]
    journal.executemany(
        "INSERT INTO post (rkey, did, rev, idx, cid, state, host, event_at, received_at, p_kept, fields) "
        "VALUES (?,?,?,0,?,'live','wss://relay.example',?,?,?,?)",
        [
            (post.rkey, post.did, post.rkey, cid, post.at, post.at, post.p_kept, _fields(post.text))
            for post, cid in made
        ],
    )
    ledger.executemany(
        "INSERT INTO doc VALUES (?,?,'live',?,?,?,1,?,NULL)",
        [(post.rkey, post.did, cid, post.at, post.at, post.at) for post, cid in made],
    )
    ledger.executemany(
        "INSERT INTO job (rkey, did, cid, task, state, p_sampled, reason) VALUES (?,?,?,'civic',?,?,?)",
        [(post.rkey, post.did, cid, post.state, post.p_sampled, post.reason) for post, cid in made],
    )
    ledger.executemany(
        "INSERT INTO label (label_id, rkey, did, cid, task, task_version, prompt_hash, p_sampled, at, attempts, "
        "answer) VALUES (?,?,?,?,'civic','2','p',?,?,1,?)",
        [
            (f"{post.rkey}{post.did}", post.rkey, post.did, cid, post.p_sampled, post.at, _answer(post))
            for post, cid in made
            if post.fields is not None
        ],
    )


def _fields(text: str) -> str:
    plain: dict[str, Any] = dict.fromkeys(("reply_root", "reply_parent", "quote_uri", "link", "media"))
    lists: dict[str, Any] = {name: [] for name in ("langs", "alts", "tags", "links", "mentions", "self_labels")}
    return json.dumps({"text": text, "created_at": None, "filter": {}, **plain, **lists})


def _answer(post: Seed) -> str:
    assert post.fields is not None
    fields = {name: FieldLabel(*pair) for name, pair in post.fields.items()}
    ms = 150 + crc32(post.rkey.encode()) % 400
    return pack(Answer(fields, "schema", "p", "mock", "mock", None, "{}", "http://x", "h", 100, 20, ms, 1))


def _hold(journal: Connection, end: int, days: float) -> None:
    """Coverage of so many days, with a gap of two hours about a noon in the middle, which no midnight parts."""
    begin = end - int(days * 24 * HOUR)
    middle = (begin + end) // 2 // (24 * HOUR) * 24 * HOUR + 12 * HOUR
    host = "wss://relay.example"
    for resume, first, last in (("first", begin, middle - HOUR), ("gap", middle + HOUR, end)):
        journal.execute(
            "INSERT INTO held (host, epoch, resume, first_seq, last_seq, first_at, last_at, frames) "
            "VALUES (?,1,?,1,9,?,?,99)",
            (host, resume, first, last),
        )
    journal.execute(
        "INSERT INTO gap (host, epoch, cause, after_seq, at, from_at, until_seq, until_at) "
        "VALUES (?,1,'outdated_cursor',5,?,?,6,?)",
        (host, middle, middle - HOUR, middle + HOUR),
    )


# ---- the service -----------------------------------------------------------------------------------------------------


class Watched:
    """A service that can be ended and started again, always at one address."""

    def __init__(self, folder: Path, relay: Led, model: str, **settings: Any) -> None:
        self.folder, self.relay, self.model, self.settings = folder, relay, model, settings
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.headers: dict[str, str] = {}
        self.log = folder.parent / "service.log"
        self.process: subprocess.Popen[str] | None = None
        self._numbers = count(int(time.time() * SECOND) // SECOND)

    def begin(self) -> None:
        quick = {"worker__processes": 1, "worker__batch_seconds": 0.05, "source__backoff_seconds": 0.05,
                 "source__start": "window", "appview__recheck": "false", "ledger__poll_seconds": 0.05}  # fmt: skip
        with self.log.open("a") as log:
            self.process = subprocess.Popen(  # not by `command.start`, which lets it live for one test only
                [CIVICSKY, "run", "--relay", self.relay.url, "--data-dir", self.folder, "--http", str(self.port),
                 "--model-url", self.model, "--model", "mock"],
                env=environment(**quick | self.settings), stdout=subprocess.DEVNULL, stderr=log, text=True,
            )  # fmt: skip
        until(self.is_alive, "the service to answer")

    def is_alive(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            return CLIENT.get(self.url + "/livez", headers=self.headers).status_code == 200
        except httpx.TransportError:
            return False

    def end(self, *, kill: bool = False) -> None:
        assert self.process is not None
        (self.process.kill if kill else self.process.terminate)()
        self.process.wait(60)
        self.process = None

    def post(self, text: str, *, did: str = did_of(7)) -> str:
        """Have somebody post now; the name of the post on the page."""
        rkey = tid(next(self._numbers))
        self.relay.post(rkey, text, did=did, at=int(time.time() * SECOND))
        return f"{did}/{rkey}"


@contextmanager
def watched(folder: Path, relay: Led, model: str, **settings: Any) -> Iterator[Watched]:
    """A running one."""
    service = Watched(folder, relay, model, **settings)
    service.begin()
    try:
        yield service
    finally:
        if service.process is not None:
            service.end(kill=True)


def shows(evaluate: Callable[[str], Any], expression: str, what: str, seconds: float = 60) -> Any:
    """Wait until an expression is true in a page."""
    return until(lambda: evaluate(f"Boolean({expression})"), what, seconds)
