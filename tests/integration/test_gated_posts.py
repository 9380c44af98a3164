"""Posts put to a gate over a real ledger: who is asked about, what is kept of it, and that it is decided once."""

import json
import re
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from civicsky.asking import Asking, GateShape
from civicsky.document import Document, post_changes, post_document
from civicsky.embedding import Embedding, load
from civicsky.errors import BadInput
from civicsky.gate import Gate, Gatekeeper, Measured
from civicsky.ledger import Ledger, LedgerReader
from civicsky.lifecycle import Stop
from civicsky.metrics import Metrics
from civicsky.model import Asked, Change, Judged, Outgoing, PostRow, post_uri
from civicsky.rounds import Wish
from civicsky.sample import Drawing, is_asked
from civicsky.settings import Label
from integration.test_asking import AT, DID, TASKS, Result, Slot, World
from support.drawing import known_lots

CIVIC = [f"Congress must pass the voting rights bill, says senator {n}" for n in range(5)]
AGAIN = "1234567890abc"
KEY = b"\3" * 32
OTHER = [f"my cat slept on the warm laundry {n} times today" for n in range(60)]


@pytest.fixture(scope="module")
def embedding() -> Embedding:
    return load()


def gate(embedding: Embedding, task: str = "civic", seed: int = 0) -> Gate:
    """It looks along the line from the one kind of text to the other."""
    kinds = embedding.vectors([*CIVIC, *OTHER])
    line = (kinds[: len(CIVIC)].mean(axis=0) - kinds[len(CIVIC) :].mean(axis=0)) * 20
    middle = float((kinds @ line)[[0, -1]].mean())
    share, (model, version, sha256) = Measured(value=0.9, low=0.8, high=1, n=9, authors=9), embedding.identity
    return Gate(
        made="now", task=task, task_version="2", task_sha256="0", field="civic", value="civic", model=model,
        model_version=version, model_sha256=sha256, gold_sha256="0", gold_posts=9, gold_positive=4, seed=seed,
        recall_wanted=0.95, recall=share, skipped=share, threshold=0.5, bias=-middle, weights=tuple(line.tolist()),
    )  # fmt: skip


class Gated(World):
    """A ledger with a gate that is on."""

    def __init__(self, ledger: Ledger, folder: Path, embedding: Embedding) -> None:
        super().__init__(ledger, folder)
        self.embedding, self.metrics = embedding, Metrics()

    async def gated(self, ask_anyway: float = 0.3, task: str = "civic", seed: int = 0, **settings: Any) -> Asking:
        made = gate(self.embedding, task, seed)
        await self.ledger.register_gate(task, made.version, made.text())
        return self.asking_behind(Gatekeeper(made, self.embedding, ask_anyway), **settings)

    def asking_behind(self, keeper: GateShape, **settings: Any) -> Asking:
        chosen = Label(**{"model": "m", "pause_seconds": 1e-6, "pause_max_seconds": 1e-6, **settings})
        return Asking(self.ledger, self.rounds, None, TASKS, chosen, self.metrics, Stop(), keeper)

    async def ask(self, asking: Asking, slot: Slot) -> None:
        await asking.ask(slot, "civic", await self.items())

    def lots(self, p: float) -> list[str]:
        """The posts without politics whose lot has them asked about all the same, by the ledger's own key."""
        ((key,),) = self.rows("SELECT value FROM secret WHERE name = 'sample'")
        return [
            (row.fields or {})["text"] for row in self.posts.values()
            if (row.fields or {})["text"] in OTHER and is_asked(key, post_uri(row.did, row.rkey), p)
        ]  # fmt: skip

    async def documents(self) -> dict[str, Document]:
        keys = list(self.posts)
        labels, vain = await self.ledger.labels_of(keys), await self.ledger.unlabelled_of(keys)
        gated, found = await self.ledger.gated_of(keys), {}
        for key, row in self.posts.items():
            out = Outgoing(row.did, row.rkey, 1, "live", AT, True, row.cid)
            document = post_document(out, row, labels.get(key, []), vain.get(key, []), gated=gated.get(key))
            assert document is not None
            found[document["text"]] = document
        return found

    async def change(self, row: PostRow, kind: Any = "put") -> None:
        n = await self.ledger.position()
        there = [] if kind == "delete" else [row]
        await self.ledger.follow([Change(n + 1, kind, row.did, row.rkey, "r", AT)], there, ("civic",), Drawing())


@pytest.fixture
async def world(tmp_path: Path, embedding: Embedding) -> AsyncIterator[Gated]:
    """By the key of its ledger no post here is asked about for its lot where that has a probability of 0.01."""
    file = tmp_path / "ledger.db"
    await known_lots(file, KEY)
    opened = Gated(await Ledger.open(file), tmp_path, embedding)
    assert not any(is_asked(KEY, post_uri(DID, rkey), 0.01) for rkey in (*map("{:013}".format, range(70)), AGAIN))
    yield opened
    await opened.ledger.close()


def content(file: Path, *tables: str) -> str:
    """All rows, without what the clock says."""
    with closing(sqlite3.connect(file)) as db:
        found = {}
        for table in tables:
            names = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            kept = ", ".join(name for name in names if name not in {"at", "v", "first_used", "started"})
            found[table] = db.execute(f"SELECT {kept} FROM {table} ORDER BY {kept}").fetchall()
    return repr(found)


# ---- who is asked about ----------------------------------------------------------------------------------------------


async def test_posts_under_the_threshold_are_not_asked_about_but_for_those_of_the_lot(world: Gated) -> None:
    await world.write(*CIVIC, *OTHER)
    slot = Slot()
    await world.ask(await world.gated(), slot)
    lot = world.lots(0.3)
    assert 5 < len(lot) < 35
    assert sorted(slot.asked) == sorted([*CIVIC, *lot])
    states = dict(world.rows("SELECT state, count(*) FROM job GROUP BY state"))
    assert states == {"done": len(CIVIC) + len(lot), "gated": len(OTHER) - len(lot)}, "every post has one outcome"
    assert world.metrics.counts["gated"] == world.metrics.labels["civic", "gated"] == states["gated"]
    assert await world.items() == []


async def test_each_post_has_its_probability_of_being_asked_and_the_gates_word(world: Gated) -> None:
    await world.write(*CIVIC, *OTHER)
    await world.ask(await world.gated(), Slot())
    version = gate(world.embedding).version
    for text, document in (await world.documents()).items():
        label, kept = document["labels"].get("civic"), document.get("gated", {}).get("civic")
        assert (label is None) != (kept is None)
        about = label or kept
        assert about["gate"]["version"] == version
        assert about["gate"]["passed"] == (about["gate"]["probability"] >= 0.5) == (text in CIVIC)
        assert about["p_asked"] == (1.0 if text in CIVIC else 0.3)
        assert about["p_sampled"] == 1.0
    ((text,),) = world.rows("SELECT text FROM gate_file")
    assert Gate.model_validate_json(text).version == version


async def test_an_answer_that_is_there_already_is_taken_without_asking_the_gate(world: Gated) -> None:
    await world.write(OTHER[0])
    await world.ask(world.asking(), Slot())
    await world.write(OTHER[0])
    slot = Slot()
    await world.ask(await world.gated(ask_anyway=0.01), slot)
    assert slot.asked == []
    assert world.rows("SELECT state FROM job") == [("done",), ("done",)]
    assert world.rows("SELECT count(*) FROM gate") == [(0,)]
    for document in (await world.documents()).values():
        assert "p_asked" not in document["labels"]["civic"]


async def test_with_every_post_asked_about_the_gate_only_says_what_it_would_have_done(world: Gated) -> None:
    await world.write(*CIVIC, *OTHER)
    slot = Slot()
    await world.ask(await world.gated(ask_anyway=1), slot)
    assert sorted(slot.asked) == sorted([*CIVIC, *OTHER])
    passed = {text for text, one in (await world.documents()).items() if one["labels"]["civic"]["gate"]["passed"]}
    assert passed == set(CIVIC)


async def test_posts_that_share_a_request_are_looked_at_one_by_one_and_each_gets_its_own_answer(world: Gated) -> None:
    await world.write(*CIVIC, *OTHER)
    requests: list[list[str]] = []

    async def by_text(posts: Sequence[Asked]) -> list[Result]:
        requests.append([post.text for post in posts])
        return [slot.answer(post, "civic" if post.text in CIVIC else "not civic") for post in posts]

    slot, asking, items = Slot(by_text), await world.gated(posts_per_request=7), await world.items()
    for at in range(0, len(items), 7):
        await asking.ask(slot, "civic", items[at : at + 7])
    lot = world.lots(0.3)
    assert sorted(text for request in requests for text in request) == sorted([*CIVIC, *lot])
    assert all(requests), "a request of posts that were all kept back is not sent"
    assert max(map(len, requests)) > 1
    for text, document in (await world.documents()).items():
        said = document["labels"].get("civic", {}).get("fields", {}).get("civic", {}).get("value")
        assert said == ("civic" if text in CIVIC else "not civic" if text in lot else None)


async def test_what_is_deleted_while_the_gate_looks_at_it_counts_as_saved_for_nobody(world: Gated) -> None:
    await world.write(OTHER[0], OTHER[1])
    first, second = await world.items()

    class Late(Gatekeeper):
        async def judge(self, texts: Sequence[str]) -> list[Judged]:
            found = await super().judge(texts)
            await world.change(world.posts[first.job.rkey, DID], "delete")
            return found

    asking = world.asking_behind(Late(gate(world.embedding), world.embedding, 0.01))
    await asking.ask(Slot(), "civic", [first, second])
    assert world.rows("SELECT state FROM job ORDER BY id") == [("cancelled",), ("gated",)]
    assert world.metrics.counts["gated"] == world.metrics.labels["civic", "gated"] == 1
    assert world.rows("SELECT count(*) FROM gate") == [(1,)]


# ---- it is decided once ----------------------------------------------------------------------------------------------


async def test_neither_an_attempt_in_vain_nor_a_restart_nor_another_gate_decides_anew(
    world: Gated, tmp_path: Path
) -> None:
    await world.write(*CIVIC, *OTHER)

    async def useless(posts: Sequence[Asked]) -> list[Result]:
        return [BadInput("not_json") for _ in posts]

    slot = Slot(useless)
    await world.ask(await world.gated(), slot)
    first = sorted(slot.asked)
    before = content(world.file, "gate")
    await world.ledger.close()
    world.ledger = await Ledger.open(world.file)
    other, slot = await world.gated(ask_anyway=0.01, seed=1), Slot()
    for _ in range(2):
        await world.ask(other, slot)
    assert sorted(slot.asked) == first
    assert content(world.file, "gate") == before
    documents = await world.documents()
    assert {documents[text]["labels"]["civic"]["p_asked"] for text in world.lots(0.3)} == {0.3}


async def test_a_post_that_comes_again_keeps_its_outcome(world: Gated) -> None:
    await world.write(*OTHER)
    await world.ask(await world.gated(ask_anyway=0.01), Slot())
    before = content(world.file, "job", "gate")
    for row in world.posts.values():
        await world.change(row)
    assert content(world.file, "job", "gate") == before


async def test_an_edited_text_is_judged_anew_and_the_former_ones_word_is_not_shown(world: Gated) -> None:
    await world.write(OTHER[0])
    asking, slot = await world.gated(ask_anyway=0.01), Slot()
    await world.ask(asking, slot)
    (key,) = world.posts
    row = world.posts[key]
    world.posts[key] = row._replace(cid="c2", fields={**(row.fields or {}), "text": CIVIC[0]})
    await world.change(world.posts[key])
    await world.ask(asking, slot)
    assert slot.asked == [CIVIC[0]]
    (document,) = (await world.documents()).values()
    assert "gated" not in document
    assert document["labels"]["civic"]["p_asked"] == 1
    world.posts[key] = row
    await world.change(row)  # the edit is taken back
    (document,) = (await world.documents()).values()
    assert document["gated"]["civic"]["p_asked"] == 0.01
    assert await world.items() == []


async def test_nothing_that_the_gate_made_of_a_deleted_post_is_left_and_it_can_come_again(world: Gated) -> None:
    await world.write(OTHER[0])
    asking = await world.gated(ask_anyway=0.01)
    items = await world.items()
    (row,) = world.posts.values()
    await world.change(row, "delete")
    await asking.ask(Slot(), "civic", items)  # it was on its way
    assert world.rows("SELECT count(*) FROM gate") == [(0,)]
    (row,) = world.posts.values()
    again = row._replace(rkey=AGAIN, cid="c9")
    world.posts = {(again.rkey, again.did): again}
    await world.change(again)
    await world.ask(asking, Slot())
    assert world.rows("SELECT count(*) FROM gate") == [(1,)]
    await world.change(again, "delete")
    assert world.rows("SELECT count(*) FROM gate") == [(0,)]
    assert world.rows("SELECT state FROM job WHERE cid = 'c9'") == [("cancelled",)]


async def test_what_a_feed_shows_passes_also_when_it_was_kept_back_before(world: Gated) -> None:
    await world.write(OTHER[0], OTHER[1])
    asking, slot = await world.gated(ask_anyway=0.01), Slot()
    first, second = await world.items()
    await asking.ask(slot, "civic", [first])
    assert slot.asked == []
    n = await world.ledger.position()
    changes = [Change(n + 1 + at, "put", DID, rkey, "r", AT) for at, (rkey, _) in enumerate(world.posts)]
    await world.ledger.follow(changes, world.posts.values(), ("civic",), Drawing(), set(world.posts))
    assert second.job.id in {item.job.id for item in await world.items()}
    await world.ask(asking, slot)
    assert sorted(slot.asked) == sorted([OTHER[0], OTHER[1]])
    documents = await world.documents()
    assert {one["labels"]["civic"]["p_asked"] for one in documents.values()} == {1.0}
    assert not any("gated" in one for one in documents.values())
    key, gated = next(iter(world.posts)), await world.ledger.gated_of(list(world.posts))
    out = Outgoing(DID, key[0], 1, "live", AT, True, "c1")
    assert post_changes(out, [], gated=gated[key])["gated"] == {}, "a stored document forgets it, too"


async def test_a_round_leaves_out_what_the_gate_kept_back_and_no_probe_is_put_to_it(world: Gated) -> None:
    await world.write(*CIVIC, *OTHER)
    asking, slot = await world.gated(anchors=1), Slot()
    await world.ask(asking, slot)
    asked = sorted(slot.asked)
    await world.rounds.begin("civic", Wish())
    while await world.rounds.extend(["civic"]):
        pass
    again = Slot()
    again.is_question = again.is_question._replace(prompt_hash="other")
    await world.ask(asking, again)
    assert sorted(again.asked) == asked
    weights = world.rows("SELECT run, count(*) FROM label GROUP BY run")
    assert weights == [(0, len(asked)), (1, len(asked))]
    labels = await world.ledger.labels_of(world.posts)
    assert all(len({label.judged for label in own}) == 1 for own in labels.values()), "both by the same probability"
    await world.probe()
    probed = Slot()
    await world.ask(asking, probed)
    assert len(probed.asked) == 1


# ---- what is told ----------------------------------------------------------------------------------------------------


async def test_the_ledgers_summary_counts_what_was_saved_and_what_was_asked_about_all_the_same(world: Gated) -> None:
    await world.write(*CIVIC, *OTHER)
    await world.ask(await world.gated(), Slot())
    reader = await LedgerReader.open(world.file)
    found, version = await reader.summary(), gate(world.embedding).version
    looked_at = [await reader.looked_at(*of) for of in (("civic", version), ("civic", "other"), ("other", version))]
    await reader.close()
    lot = len(world.lots(0.3))
    assert looked_at == [(len(CIVIC) + len(OTHER), len(OTHER)), (0, 0), (0, 0)], "what the plan reckons by"
    assert found["gate"] == {"skipped": len(OTHER) - lot, "asked_anyway": lot, "passed": len(CIVIC)}


async def test_without_a_gate_of_its_task_no_request_row_or_document_changes_by_a_byte(
    world: Gated, tmp_path: Path, embedding: Embedding
) -> None:
    seen = []
    (tmp_path / "other").mkdir()
    opened = await Ledger.open(tmp_path / "other" / "ledger.db")
    other = Gated(opened, tmp_path / "other", embedding)
    for one, asking in ((world, world.asking()), (other, await other.gated(task="toxicity"))):
        await one.write(*CIVIC, *OTHER)
        slot = Slot()
        await one.ask(asking, slot)
        documents = re.sub(r'"at": "[^"]+"', "", json.dumps(list((await one.documents()).values())))
        seen.append((slot.asked, content(one.file, "job", "label", "doc", "gate", "hour", "spend"), documents))
    await other.ledger.close()
    assert seen[0] == seen[1]
    assert seen[0][0] == [*CIVIC, *OTHER]
    assert not any(word in seen[0][2] for word in ('"p_asked"', '"gate"', '"gated"'))
