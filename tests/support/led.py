"""A relay that a test leads by the hand, frame by frame, and what the service makes of it, seen from outside."""

import json
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Event, State
from websockets.sync.server import ServerConnection, serve

from civicsky.journal import Journal
from civicsky.ledger import LedgerReader
from civicsky.settings import Journal as JournalSettings
from support.command import query, start
from support.frames import DID, POSTS, car, commit, frame, post, rfc3339, root_block, tid

NOW = int(time.time()) * 1_000_000
"""When the tests began."""


class Led:
    """One address; each connection gets what is sent from then on, whatever it asks for."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str] = []
        """The query of each connection, in order."""
        self.pings = 0
        self.seq = 0
        self.ended = threading.Event()
        self.deaf = False
        """Whether nothing leaves it, no pong either, though the socket stands."""
        self.clock_ahead = 0.0
        """Seconds by which the date in its handshakes is ahead."""
        self.refusals = 0
        """So many handshakes more are refused, with each header twice."""
        self._out: deque[bytes | str | None] = deque()
        self._news = threading.Event()

    def send(self, *messages: bytes | str) -> None:
        self._out += messages
        self._news.set()

    def hang_up(self) -> None:
        """End the connection once all was sent."""
        self._out.append(None)
        self._news.set()

    def next(self) -> int:
        """The next sequence number."""
        self.seq += 1
        return self.seq

    def post(self, rkey: str, text: str, *, did: str = DID, action: str = "create", at: int | None = None) -> None:
        """Create or update a post."""
        seq = self.next()
        self.send(commit(seq, [(action, rkey, post(text))], did=did, time=moment(seq, at)))

    def delete(self, rkey: str, *, did: str = DID, at: int | None = None) -> None:
        seq = self.next()
        self.send(commit(seq, [("delete", rkey, None)], did=did, time=moment(seq, at)))

    def account(self, status: str, *, did: str = DID, at: int | None = None) -> None:
        seq = self.next()
        told = {"active": True} if status == "active" else {"active": False, "status": status}
        self.send(frame("#account", {"seq": seq, "did": did, "time": moment(seq, at), **told}))

    def sync(self, *, did: str = DID, at: int | None = None) -> None:
        seq = self.next()
        root, cid = root_block(did, tid(seq))
        body = {"seq": seq, "did": did, "time": moment(seq, at), "rev": tid(seq), "blocks": car(cid, [(root, cid)])}
        self.send(frame("#sync", body))

    def play(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        number = len(self.asked)
        self.asked.append(connection.request.path.partition("?")[2])
        with suppress(ConnectionClosed):
            while not self.ended.is_set() and number == len(self.asked) - 1:
                self._news.wait(0.05)
                self._news.clear()
                while self._out and connection.protocol.state is State.OPEN:
                    message = self._out[0]
                    if message is not None:
                        connection.send(message)
                    self._out.popleft()
                    if message is None:
                        return


@contextmanager
def led_relay(before: Led | None = None) -> Iterator[Led]:
    """A running one; or one that ran before, again at its address."""
    led = before or Led()
    led.ended.clear()

    class Counting(ServerConnection):
        def process_event(self, event: Event) -> None:
            led.pings += isinstance(event, Frame) and event.opcode is Opcode.PING
            super().process_event(event)

        def send_data(self) -> None:
            if not led.deaf:
                super().send_data()

    def shake(_connection: ServerConnection, request: Request, response: Response) -> Response | None:
        response.headers.pop("Date", None)
        response.headers["Date"] = formatdate(time.time() + led.clock_ahead, usegmt=True)
        if not led.refusals:
            return None
        led.refusals -= 1
        twice = [(name, value) for name in ("Retry-After", "Date") for value in ("0", "1")]
        return Response(503, "Service Unavailable", Headers(twice), b"")

    port = int(led.url.rpartition(":")[2] or 0)
    with serve(
        led.play, "127.0.0.1", port, compression=None, ping_interval=None, create_connection=Counting,
        process_response=shake,
    ) as server:  # fmt: skip
        led.url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield led
        finally:
            led.ended.set()
            server.shutdown()
            thread.join()


def moment(seq: int, at: int | None = None) -> str:
    """The time of an event: `at`, or some hours ago, a second after the one before."""
    return rfc3339(NOW - 36_000_000_000 + seq * 1_000_000 if at is None else at)


def now_moment(age_seconds: float = 0) -> int:
    """The time of an event that happens now, or did so many seconds ago."""
    return int((time.time() - age_seconds) * 1_000_000)


def did_of(n: int) -> str:
    """One of many accounts."""
    return f"did:plc:{n:024d}".replace("0", "a").replace("1", "b").replace("8", "c").replace("9", "d")


def uri(rkey: str, did: str = DID) -> str:
    return f"at://{did}/{POSTS}/{rkey}"


# ---- what is held ----------------------------------------------------------------------------------------------------


def in_journal(folder: Path) -> dict[str, tuple[str, str | None]]:
    """State and text of every post in the journal, by record key."""
    rows = query(folder / "journal.db", "SELECT rkey, state, fields ->> '$.text' FROM post")
    return {rkey: (state, text) for rkey, state, text in rows}


def in_ledger(folder: Path) -> dict[str, str]:
    """State of every post in the ledger, by record key."""
    return dict(query(folder / "ledger.db", "SELECT rkey, state FROM doc"))


def in_store(folder: Path) -> dict[str, dict[str, Any]]:
    """Every document of a post in the SQLite store, by record key."""
    rows = query(folder / "posts.db", "SELECT _id, doc FROM posts")
    return {name.rpartition("/")[2]: json.loads(doc) for name, doc in rows}


def states(folder: Path) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """State of each post in journal, ledger and store."""
    return (
        {rkey: state for rkey, (state, _) in in_journal(folder).items()},
        in_ledger(folder),
        {rkey: doc["state"] for rkey, doc in in_store(folder).items()},
    )


def all_told(folder: Path) -> bool:
    """Whether ledger and store have followed all that the journal has, and nothing waits for a label."""
    last = query(folder / "journal.db", "SELECT seq FROM sqlite_sequence WHERE name = 'change'")
    return (
        bool(last)
        and query(folder / "ledger.db", "SELECT n FROM position WHERE name = 'journal'") == last
        and query(
            folder / "ledger.db",
            "SELECT count(*) FROM job JOIN doc USING (rkey, did) WHERE job.state = 'pending' AND doc.state = 'live'",
        )
        == [(0,)]
        # Last, since a label makes a document new.
        and query(folder / "ledger.db", "SELECT count(*) FROM doc WHERE v > stored_v") == [(0,)]
    )


def files_that_hold(folder: Path, text: str) -> list[str]:
    """The files of a data directory in which a text stands, in whatever place."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file.name for file in files if text.encode() in file.read_bytes())


def counts(folder: Path, unit: str) -> dict[str, int]:
    """Outcomes of frames or posts, and `received`."""
    return dict(query(folder / "journal.db", "SELECT outcome, sum(n) FROM count WHERE unit = ? GROUP BY outcome", unit))


def balance_closes(folder: Path) -> bool:
    """Whether frames and posts that were received are the sum of what became of them."""
    found = [counts(folder, unit) for unit in ("frame", "post")]
    return all(2 * one.get("received", 0) == sum(one.values()) for one in found)


# ---- posts with a text to look for -----------------------------------------------------------------------------------

SECRET = "zanzibar quagmire"
A, B = did_of(1), did_of(2)
FIRST, SECOND, OTHER = "3aaaaaaaaaaaa", "3aaaaaaaaaaab", "3aaaaaaaaaaac"
QUICK: dict[str, Any] = {"worker__batch_seconds": 0.05, "appview__recheck": "false"}


def three_posts(relay: Led) -> None:
    """Two of A with the secret, and one of B without."""
    for rkey, word in ((FIRST, "budget"), (SECOND, "plans")):  # the same text twice may be asked about only once
        relay.post(rkey, f"The {SECRET} of the council's {word}", did=A)
    relay.post(OTHER, "Another post, in plain English", did=B)


def service(folder: Path, relay: Led, model: tuple[str, Path], **settings: Any) -> "subprocess.Popen[str]":
    """Both halves, with the deterministic model."""
    asks = ("--model-url", model[0], "--model", "mock")
    return start("run", "--relay", relay.url, "--data-dir", folder, *asks, **QUICK | settings)


async def prune(folder: Path, **settings: Any) -> None:
    """What the service does every minute: let go of posts that are labelled and stored, here however new they are."""
    journal = await Journal.open(folder / "journal.db", JournalSettings(**{"post_days": 0, **settings}))
    ledger = await LedgerReader.open(folder / "ledger.db")
    try:
        await journal.prune(await ledger.position(), ledger.settled)
    finally:
        await ledger.close()
        await journal.close()
