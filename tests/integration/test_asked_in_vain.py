"""What is asked, what is not sent any more, and who is at fault: a real ledger, a real slot and a real server."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from civicsky.appview import AppView
from civicsky.asking import Asking
from civicsky.context import Contexts
from civicsky.endpoint import open_endpoints
from civicsky.label import Slot
from civicsky.ledger import Ledger
from civicsky.lifecycle import Stop
from civicsky.metrics import Metrics
from civicsky.model import Attempts, Change, Job, PostRow
from civicsky.rounds import Rounds, Wish
from civicsky.sample import Drawing
from civicsky.settings import AppView as AppViewSettings, Context, Label
from civicsky.surroundings import Item
from civicsky.task import load_task
from support.model_knobs import Knob
from support.model_server import ModelServer, Told, serve

CIVIC = load_task("civic")[0]
DID = "did:plc:a"
QUOTED = "at://did:plc:q/app.bsky.feed.post/3kquoted"


class Half:
    """A ledger with a few posts, and what asks about them."""

    def __init__(self, ledger: Ledger, contexts: Contexts, requests: Path, slot: Slot, asking: Asking) -> None:
        self.ledger, self.contexts, self.slot, self.asking = ledger, contexts, slot, asking
        self._requests = requests

    @property
    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._requests.read_text().splitlines()]

    async def due(self) -> list[Job]:
        return await self.ledger.due(("civic",), (), 100)

    async def ask(self, jobs: list[Job]) -> None:
        await self.asking.ask(self.slot, "civic", [Item(job, fields(int(job.rkey))) for job in jobs])

    async def quote(self, text: str) -> None:
        """What every post quotes, as it was fetched last."""
        await self.ledger.keep_contexts({QUOTED: json.dumps({"text": text, "link": None, "alts": []})})

    async def states(self) -> dict[int, tuple[str, Attempts]]:
        rows = await self.ledger.database.rows("SELECT rkey, state, attempts, broken, busy FROM job")
        return {int(rkey): (state, Attempts(*attempts)) for rkey, state, *attempts in rows}


def fields(number: int) -> dict[str, Any]:
    said = f"Post number {number} about the election"
    return {"text": said, "link": None, "alts": [], "reply_root": None, "quote_uri": QUOTED}


@asynccontextmanager
async def half(folder: Path, n: int, *knobs: Knob, **settings: Any) -> AsyncIterator[Half]:
    requests = folder / "requests.jsonl"
    server = ModelServer(Told(), list(knobs), None, requests)
    listening, url = await serve(server)
    label = Label.model_validate({"model_url": url, "model": "mock", "pause_seconds": 0.01, **settings})
    ledger = await Ledger.open(folder / "ledger.db")
    posts = [PostRow(f"{at:013}", DID, "r", "c", "live", "relay", at, at, 1.0, fields(at)) for at in range(n)]
    changes = [Change(1 + at, "put", DID, post.rkey, "r", at) for at, post in enumerate(posts)]
    await ledger.follow(changes, posts, ("civic",), Drawing())
    await ledger.keep_contexts({QUOTED: None})
    tasks = {"civic": CIVIC}
    slot = Slot(open_endpoints(label), tasks, label)
    contexts = Contexts(Context(quote=True), label.max_chars, AppView(AppViewSettings()), ledger)
    asking = Asking(ledger, Rounds(ledger.database), contexts, tasks, label, Metrics(), Stop())
    try:
        yield Half(ledger, contexts, requests, slot, asking)
    finally:
        await slot.close()
        await ledger.close()
        listening.close()


@pytest.mark.parametrize("kind", ["delete", "hide"])
async def test_what_is_deleted_or_hidden_while_it_waits_is_not_sent(tmp_path: Path, kind: Any) -> None:
    """The wait for a server's pace may be hours: a text that its author took back goes to nobody."""
    async with half(tmp_path, 1) as one:
        jobs = await one.due()
        rkey = jobs[0].rkey if kind == "delete" else ""
        await one.ledger.follow([Change(2, kind, DID, rkey, "r", 0)], [], ("civic",), Drawing())
        await one.ask(jobs)
        assert one.asked == []


async def test_who_was_not_asked_is_not_at_fault(tmp_path: Path) -> None:
    """Three posts, one after the other: the second breaks the call, and the third's turn never comes."""
    broken = Knob("status", status=500, text="number 1")
    async with half(tmp_path, 3, broken, way="words", posts_per_request=3) as one:
        await one.ask(await one.due())
        assert await one.states() == {
            0: ("done", Attempts(1)),
            1: ("pending", Attempts(transport=1)),
            2: ("pending", Attempts()),
        }


async def test_an_answer_for_several_is_kept_with_none_of_them(tmp_path: Path) -> None:
    """It may quote all of them, and each may be deleted by itself."""
    knobs = Knob("missing", count=1, many=True), Knob("status", status=503, many=False)
    async with half(tmp_path, 3, *knobs, posts_per_request=3) as one:
        await one.ask(await one.due())
        assert sorted(state for state, _ in (await one.states()).values()) == ["done", "done", "pending"]
        assert await one.ledger.database.rows("SELECT text FROM raw") == []


async def test_a_post_that_breaks_the_server_is_at_fault_though_nobody_else_is_asked(tmp_path: Path) -> None:
    """Else it would be asked about for ever, and `--drain` would never end."""
    async with half(tmp_path, 1, Knob("status", status=500, text="number 0"), transport_attempts=3) as one:
        for _attempt in range(3):
            await one.ledger.database.execute("UPDATE job SET next_at = 0")
            await one.ask(await one.due())
        assert await one.states() == {0: ("dead", Attempts(transport=3))}
        assert (await one.ledger.spent()).calls == len(one.asked)


async def test_an_outage_is_no_posts_fault(tmp_path: Path) -> None:
    async with half(tmp_path, 1, Knob("status", status=500), transport_attempts=3) as one:
        for _attempt in range(5):
            await one.ledger.database.execute("UPDATE job SET next_at = 0")
            await one.ask(await one.due())
        assert await one.states() == {0: ("pending", Attempts())}


async def test_a_label_in_another_context_is_another_label(tmp_path: Path) -> None:
    """`label --again` after a quoted post was edited: the former label, which was paid for, stays."""
    async with half(tmp_path, 1) as one:
        await one.quote("The first version")
        await one.ask(await one.due())
        again = Rounds(one.ledger.database)
        await again.begin("civic", Wish())
        while await again.extend(("civic",)):
            pass
        await one.quote("The second version")
        await one.ask(await one.due())
        ((first, second),) = (await one.ledger.labels_of([(f"{0:013}", DID)])).values()
        assert first.answer is not None
        assert second.answer is not None
        assert first.answer.context_hash != second.answer.context_hash


async def test_an_account_that_is_shown_again_is_context_again(tmp_path: Path) -> None:
    async with half(tmp_path, 1) as one:
        await one.quote("What it wrote")
        one.contexts.forget("did:plc:q")
        assert await one.contexts.of(CIVIC, fields(0)) == ""
        one.contexts.recall("did:plc:q")
        assert "What it wrote" in await one.contexts.of(CIVIC, fields(0))
