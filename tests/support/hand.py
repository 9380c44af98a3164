"""A data directory with posts to label by hand, the installed command on it, and people who type."""

import asyncio
import json
import re
import signal
from collections.abc import Mapping, Sequence
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from cbor2 import dumps

from civicsky import datadir
from civicsky.annotate.annotating import Done, Wanted, export
from civicsky.document import Document
from civicsky.journal import Journal
from civicsky.loading import load
from civicsky.model import now_us
from civicsky.settings import Journal as JournalSettings, Settings
from civicsky.store import SqliteStore
from civicsky.tables import delete_posts
from support import command
from support.browser import Page
from support.command import until

DAY = "2026-11-20"
CIVIC = {"C": "1", "N": "2", "?": "0"}
LEAN = {"L": "1", "M": "2", "R": "3", "U": "4", "?": "0"}
US = {"y": "1", "n": "2", "u": "3"}


def uri_of(n: int) -> str:
    return f"at://did:plc:author{n}/app.bsky.feed.post/3k{n:011d}"


def post(n: int, text: str, civic: str = "civic", p: float = 0.91234, **more: Any) -> Document:
    """A labelled live post, each by another author."""
    uri = uri_of(n)
    return {
        "_id": uri, "uri": uri, "did": f"did:plc:author{n}", "v": 1, "state": "live", "cid": f"bafycid{n}",
        "event_at": f"{DAY}T12:00:{n % 60:02d}.000Z", "text": text, "link": None, "alts": [], "p_kept": 1.0,
        "reply_root": None, "unlabelled": {}, "origins": [{"kind": "firehose", "host": "wss://relay"}],
        "labels": {"civic": label(civic, p)}, **more,
    }  # fmt: skip


def label(civic: str, p: float, model: str = "the-model") -> dict[str, Any]:
    fields = {"civic": {"value": civic, "probability": p}}
    if civic == "civic":
        fields |= {
            "lean": {"value": "moderate", "probability": p},
            "us_politics": {"value": "no", "probability": p},
        }
    return {"fields": fields, "p_sampled": 0.5, "model": model, "prompt": "prompt", "label_id": "l", "cid": "c"}


def labels_of(n: int, *said: tuple[str, str]) -> list[Document]:
    """Labels of a post by several models, as (model, civic)."""
    return [
        {
            "_id": f"label {n} {model}", "uri": uri_of(n), "v": 1, "state": "live", "cid": f"bafycid{n}",
            "task": "civic", "fields": label(civic, 0.5)["fields"], "model": model, "prompt": "x", "way": "json",
            "at": f"{DAY}T13:00:00Z",
        }
        for model, civic in said
    ]  # fmt: skip


def fill(folder: Path, posts: Sequence[Document], labels: Sequence[Document] = ()) -> Path:
    """A data directory with these in its store, and an empty journal."""

    async def make() -> None:
        folder.mkdir(exist_ok=True, mode=0o700)
        store = await SqliteStore.open(folder / datadir.POSTS)
        await store.put("posts", posts)
        await store.put("labels", labels)
        await store.close()
        await (await Journal.open(folder / datadir.JOURNAL, JournalSettings())).close()

    asyncio.run(make())
    return folder


def change(folder: Path, document: Document) -> None:
    """Another version of a post in the store."""

    async def put() -> None:
        store = await SqliteStore.open(folder / datadir.POSTS)
        await store.put("posts", [document])
        await store.close()

    asyncio.run(put())


def reject(folder: Path, *posts: tuple[int, str, str]) -> None:
    """Rejected posts with their records in the journal, as (n, reason, text)."""
    journal(
        folder,
        "INSERT INTO reject VALUES (?,?,'3rev',0,?,?,?)",
        [
            (*key(n), why, now_us(), dumps({"$type": "app.bsky.feed.post", "text": text}, canonical=True))
            for n, why, text in posts
        ],
    )


def deleted(folder: Path, n: int) -> None:
    """What a deletion by the author does in the journal of a post that was kept."""

    async def delete() -> None:
        found = await Journal.open(folder / datadir.JOURNAL, JournalSettings())
        async with found.database.transaction() as db:
            rkey, did = key(n)
            await db.execute(
                "INSERT INTO post (rkey, did, rev, idx, cid, state, host, event_at, received_at) "
                "VALUES (?,?,'3r',0,'x','live','h',1,1)",
                (rkey, did),
            )
            await delete_posts(db, [(rkey, did, "3s")], now_us())
        await found.close()

    asyncio.run(delete())


def journal(folder: Path, sql: str, rows: Sequence[Sequence[Any]]) -> None:
    """Write into the journal."""

    async def write() -> None:
        found = await Journal.open(folder / datadir.JOURNAL, JournalSettings())
        async with found.database.transaction() as db:
            await db.executemany(sql, rows)
        await found.close()

    asyncio.run(write())


def key(n: int) -> tuple[str, str]:
    return uri_of(n).rpartition("/")[2], f"did:plc:author{n}"


def votes(folder: Path, columns: str = "annotator, uri, kind, english, answers, note") -> list[Any]:
    """What is in the file of votes."""
    return command.query(folder / datadir.ANNOTATIONS, f"SELECT {columns} FROM vote ORDER BY id")


class Sitting:
    """One person's running command."""

    def __init__(self, folder: Path, *args: str | int, **settings: Any) -> None:
        self.folder = folder
        self.process = command.start("annotate", *args, "--data-dir", folder, log__level="error", **settings)
        self.said: list[str] = []
        self.address = self.invited()

    def invited(self) -> str:
        """The next address that it tells."""
        out = self.process.stdout
        assert out is not None
        for line in out:
            self.said.append(line.strip())
            if found := re.search(r"http://127\.0\.0\.1:\d+/#\S+", line):
                return found[0]
        _, err = self.process.communicate()
        raise AssertionError(f"it ended: {err}")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2].partition("/")[0])

    def end(self) -> str:
        """Ctrl-C; what it said last."""
        self.process.send_signal(signal.SIGINT)
        ended = command.finish(self.process, 30)
        assert ended.code == 0, ended
        return ended.out.strip().splitlines()[-1]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class Caller:
    """Somebody who asks without a browser."""

    def __init__(self, address: str) -> None:
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/#(\S+)", address)
        assert found
        self.port, self.key = int(found[1]), found[2]
        self.cookie = self.tab = ""
        self._seen: dict[int, str] = {}
        """By place what a vote brings back of the text that was shown there."""

    def ask(self, path: str, said: Any = None, method: str = "POST", **headers: str) -> tuple[int, str, dict[str, str]]:
        """(status, body, headers). An empty header is left out."""
        told: dict[str, Any] = {
            "host": f"127.0.0.1:{self.port}", "origin": f"http://127.0.0.1:{self.port}",
            "content-type": "application/json", "cookie": self.cookie, "x-civicsky-tab": self.tab,
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }  # fmt: skip
        body = said if isinstance(said, bytes) else json.dumps(said or {}).encode()
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in told.items():
                if value:
                    connection.putheader(name, value.encode("latin-1"))
            if method == "POST":
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body if method == "POST" else None)
            answer = connection.getresponse()
            told = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, answer.read().decode(), told

    def enter(self) -> "Caller":
        """Exchange the key."""
        status, body, headers = self.ask("/api/key", {"key": self.key})
        assert status == 200, body
        self.tab, self.cookie = json.loads(body)["tab"], headers["set-cookie"].partition(";")[0]
        return self

    def json(self, path: str, said: Any = None) -> Any:
        status, body, _ = self.ask(path, said)
        assert status == 200, body
        told = json.loads(body)
        view = told.get("view", told)
        if "seen" in view:
            self._seen[view["at"]] = view["seen"]
        return told

    def vote(self, said: dict[str, Any]) -> Any:
        """Vote on the text that was shown last at this place; a place that was not shown yet is looked at before."""
        return self.json("/api/vote", {"seen": self.seen(said["at"]), **said})

    def seen(self, at: int) -> str:
        shown = at if at in self._seen else self.json("/api/begin")["view"]["at"]
        while shown != at:
            shown = self.json("/api/step", {"at": shown, "back": at < shown})["at"]
        return self._seen[at]


def place(page: Page) -> str:
    return str(page.evaluate("document.getElementById('place').textContent"))


def shown(page: Page) -> str:
    """The post's own words."""
    return str(page.evaluate("(document.querySelector('#text .words') || {}).textContent || ''"))


def idle(page: Page) -> None:
    """Wait until nothing is under way."""
    until(
        lambda: page.evaluate("document.getElementById('desk').getAttribute('aria-busy') === 'false'"), "an answer", 20
    )


def done(page: Page) -> int:
    return int(str(page.evaluate("document.getElementById('far').textContent || '-1'")).split(" ")[0])


def type_answer(page: Page, keys: str) -> None:
    """Type an answer, and wait until the page says that it is kept and shows something else."""
    before = page.evaluate("document.getElementById('far').textContent + document.getElementById('place').textContent")
    for one in keys:
        page.strike(one)
    until(
        lambda: (
            page.evaluate("document.getElementById('far').textContent + document.getElementById('place').textContent")
            != before
        ),
        f"the page to go on after {keys}",
        20,
    )
    idle(page)


def work(page: Page, answers: Mapping[str, str]) -> list[str]:
    """Answer whatever is shown, by the keys for each text, until nothing is left; the texts in their order."""
    until(lambda: place(page), "the page to begin", 20)
    order = []
    while place(page).startswith("Post"):
        order.append(shown(page))
        type_answer(page, answers[order[-1]])
    return order


def keys_for(said: str) -> str:
    """`C L y` -> the keys; `N` not civic, `?` can't tell, `x` not English."""
    if said == "x":
        return "x"
    civic, *rest = said.split()
    return CIVIC[civic] + (LEAN[rest[0]] + US[rest[1]] if rest else "")


def settings_of(folder: Path) -> Settings:
    return load(None, {"data_dir": str(folder), "store.kind": "sqlite"})


def exported(folder: Path, out: Path, *, with_text: bool = False, **wanted: Any) -> tuple[Done, list[dict[str, Any]]]:
    """What `annotate export` tells, and the rows of GOLD: in this process, which has loaded numpy once."""
    done = asyncio.run(export(settings_of(folder), Wanted(**wanted), out, print, with_text=with_text))
    return done, [json.loads(line) for line in out.read_text().splitlines()]


def run(folder: Path, *args: str | int | Path, **settings: Any) -> command.Ended:
    return command.run("annotate", *args, "--data-dir", folder, **settings)


def labelled_all(folder: Path) -> command.Ended:
    """Run `civicsky label --drain`: it follows the journal, and asks nobody where nothing waits."""
    nobody = "http://127.0.0.1:9/v1"
    return command.run("label", "--drain", "--data-dir", folder, "--model-url", nobody, "--model", "nobody")
