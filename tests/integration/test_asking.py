"""Jobs put to a slot that does as told, over a real ledger: what is asked, what it costs, what a failure counts as."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from civicsky import faults
from civicsky.asking import Asking, ContextsShape, Item
from civicsky.document import Document
from civicsky.errors import BadInput, Refused, Transient
from civicsky.labelling import Labelling
from civicsky.ledger import Ledger
from civicsky.lifecycle import Stop
from civicsky.metrics import Metrics
from civicsky.model import Answer, Asked, Change, FieldLabel, Key, PostRow, Question, Shown, Snapshot, Spend, post_uri
from civicsky.record import extract
from civicsky.rounds import Rounds, Wish, drift
from civicsky.sample import Drawing
from civicsky.settings import Label, Settings
from civicsky.store import SqliteStore
from civicsky.task import Task, load_task
from support.command import query

TASKS = {"civic": load_task("civic")[0]}
DID = "did:plc:a"
AT = 1_764_000_000_000_000
Result = Answer | BadInput


class Slot:
    """Answers, unless it `does` something else; notes what it was asked."""

    def __init__(self, does: Callable[[Sequence[Asked]], Awaitable[list[Result]]] | None = None) -> None:
        self.does, self.asked = does, list[str]()
        self.is_question = Question("h", "m", "{}")

    async def probe(self) -> None: ...

    async def is_well(self) -> tuple[bool, Spend]:
        return False, Spend("m", 0, 0, 0)

    async def write(self, messages: Sequence[dict[str, str]], max_tokens: int) -> tuple[str, Spend]:
        raise AssertionError((messages, max_tokens))

    def delay(self) -> float:
        return 0.0

    def abilities(self) -> Mapping[str, str]:
        return {"e": "json"}

    def question(self, _task: str) -> Question:
        return self.is_question

    async def ask(self, _task: str, posts: Sequence[Asked]) -> list[Result]:
        self.asked += [post.text for post in posts]
        return await self.does(posts) if self.does else [self.answer(post) for post in posts]

    def answer(self, post: Asked, civic: str = "civic") -> Answer:
        prompt, model, parameters = self.is_question
        return Answer(
            fields={"civic": FieldLabel(civic, 0.5)}, way="json", prompt_hash=prompt, model_asked=model,
            model_named=model, fingerprint=None, parameters=parameters, endpoint="e", input_hash=post.input_hash,
            tokens_in=10, tokens_out=2, latency_ms=5, calls=1, context_hash=post.context_hash, cost=0.5, currency="USD",
        )  # fmt: skip


class World:
    """A ledger with posts, and what asks about them."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ledger, self.rounds, self.file = ledger, Rounds(ledger.database), folder / "ledger.db"
        self.posts: dict[Key, PostRow] = {}

    async def write(self, *texts: str) -> None:
        rows = []
        for number, text in enumerate(texts, len(self.posts)):
            fields = {**extract({"text": text}), "filter": {}}
            rows.append(PostRow(f"{number:013}", DID, "r", "c1", "live", "relay", AT, AT, 1.0, fields))
        self.posts |= {(row.rkey, row.did): row for row in rows}
        changes = [Change(n, "put", row.did, row.rkey, "r", AT) for n, row in enumerate(rows, len(self.posts))]
        await self.ledger.follow(changes, rows, ("civic",), Drawing())

    async def items(self) -> list[Item]:
        jobs = await self.ledger.due(("civic",), (), 100)
        return [Item(job, self.posts[job.rkey, job.did].fields or {}) for job in jobs]

    def asking(self, contexts: ContextsShape | None = None, **settings: Any) -> Asking:
        chosen = Label(**{"model": "m", "pause_seconds": 1e-6, "pause_max_seconds": 1e-6, **settings})
        return Asking(self.ledger, self.rounds, contexts, TASKS, chosen, Metrics(), Stop())

    async def probe(self) -> None:
        """Have what was labelled yesterday asked again today."""
        with closing(sqlite3.connect(self.file)) as db, db:
            db.execute("UPDATE anchor SET at = at - 86400000000")
        assert await self.rounds.plan_probes([("civic", "h", "m")]) == 1

    def rows(self, sql: str) -> list[Any]:
        return query(self.file, sql)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    ledger = await Ledger.open(tmp_path / "ledger.db")
    yield World(ledger, tmp_path)
    await ledger.close()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path / "posts.db")
    yield opened
    await opened.close()


def transient(*, busy: bool, calls: int = 1) -> Transient:
    error = Transient("model at e cannot be reached", busy=busy)
    error.spend = Spend("m", calls, 7 * calls, 0)
    return error


# ---- what is paid for ------------------------------------------------------------------------------------------------


async def test_a_copy_of_an_answer_that_was_paid_for_costs_nothing(world: World) -> None:
    await world.write("same", "same")
    asking, slot = world.asking(), Slot()
    for item in await world.items():
        await asking.ask(slot, "civic", [item])
    assert slot.asked == ["same"]
    assert await world.ledger.spent() == Spend("", 1, 10, 2, 0, 0.5)
    assert await world.ledger.spent_a_post() == (1, Spend("", 1, 10, 2, 0, 0.5))
    labels = await world.ledger.labels_of(world.posts)
    answers = [label.answer for own in labels.values() for label in own]
    assert [(one.tokens_in, one.cost) for one in answers if one and one.cached_from] == [(0, 0.0)]
    assert {str(one.fields) for one in answers if one} == {str(slot.answer(Asked("same")).fields)}


async def test_a_probe_is_asked_past_the_cache_and_is_no_label(world: World) -> None:
    await world.write("an anchor")
    asking, slot = world.asking(anchors=1), Slot()
    await asking.ask(slot, "civic", await world.items())
    await world.probe()

    async def flips(posts: Sequence[Asked]) -> list[Result]:
        return [slot.answer(post, "not civic") for post in posts]

    slot.does = flips
    await asking.ask(slot, "civic", await world.items())
    assert slot.asked == ["an anchor"] * 2
    assert await world.items() == []
    assert world.rows("SELECT run, answer ->> '$.fields.civic[0]' FROM label") == [(0, "civic")]
    (day,) = await drift(world.ledger.database)
    assert (day["n"], day["flipped"]) == (1, 1)
    assert (await world.ledger.spent()).calls == 2, "a probe is paid for once"


async def test_what_is_queued_when_the_budget_is_spent_waits_but_for_what_was_paid_for(world: World) -> None:
    await world.write("first", "second", "first")
    asking, slot = world.asking(budget_tokens=12), Slot()
    for item in await world.items():
        await asking.ask(slot, "civic", [item])
    assert slot.asked == ["first"]
    assert world.rows("SELECT state FROM job ORDER BY id") == [("done",), ("pending",), ("done",)]


# ---- what a failure counts as ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "succeeds", "counted"),
    [
        (transient(busy=True), True, (0, 0, 1)),
        (transient(busy=False), True, (0, 1, 0)),
        (transient(busy=False), False, (0, 0, 0)),
        (transient(busy=True, calls=0), True, (0, 0, 0)),
        (BadInput("not_json"), False, (1, 0, 0)),
    ],
    ids=["turned away", "broken", "while nobody is served", "never sent", "of no use"],
)
async def test_each_vain_attempt_counts_as_what_it_was(
    world: World, error: Transient | BadInput, succeeds: bool, counted: tuple[int, int, int]
) -> None:
    await world.write("in vain", "another")
    asking = world.asking()
    first, second = await world.items()

    async def fails(_posts: Sequence[Asked]) -> list[Result]:
        if succeeds:  # meanwhile, on another line
            await asking.ask(Slot(), "civic", [second])
        if isinstance(error, BadInput):
            return [error]
        raise error

    await asking.ask(Slot(fails), "civic", [first])
    ((state, *attempts),) = world.rows("SELECT state, attempts, broken, busy FROM job ORDER BY id LIMIT 1")
    assert (state, tuple(attempts)) == ("pending", counted)
    vain = error.spend.calls if isinstance(error, Transient) and error.spend else 0
    assert (await world.ledger.spent()).calls == vain + succeeds, "what it cost is kept"


async def test_a_probe_without_an_answer_is_counted_and_its_post_keeps_its_label(world: World) -> None:
    await world.write("an anchor")
    asking = world.asking(anchors=1, attempts=1)
    await asking.ask(Slot(), "civic", await world.items())
    await world.probe()

    async def refuses(_posts: Sequence[Asked]) -> list[Result]:
        return [BadInput("refusal")]

    await asking.ask(Slot(refuses), "civic", await world.items())
    assert await world.items() == []
    days = await drift(world.ledger.database)
    assert [(day["n"], day["failed"], day["flipped"]) for day in days] == [(0, 1, 0)]
    assert await world.ledger.unlabelled_of(world.posts) == {}
    assert world.rows("SELECT state FROM job") == [("done",)]


async def test_after_its_bound_of_vain_attempts_of_a_kind_a_post_is_given_up(world: World) -> None:
    await world.write("in vain")
    asking = world.asking(attempts=2)

    async def useless(_posts: Sequence[Asked]) -> list[Result]:
        return [BadInput("not_json")]

    slot = Slot(useless)
    while items := await world.items():
        await asking.ask(slot, "civic", items)
    assert len(slot.asked) == 2
    ((failure,),) = (await world.ledger.unlabelled_of(world.posts)).values()
    assert failure.reason == "not_json"


async def test_what_a_server_can_is_remembered_with_its_model(world: World) -> None:
    await world.write("a post")
    await world.asking().ask(Slot(), "civic", await world.items())
    assert await world.ledger.abilities("m") == {"e": "json"}
    assert await world.ledger.abilities("another") == {}


# ---- what stands around a post ---------------------------------------------------------------------------------------


class Around:
    """Contexts that cannot be fetched at first."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.forgotten, self.recalled = list(errors), list[tuple[str, str]](), list[str]()
        self.why = ""

    async def of(self, _task: Task, fields: Mapping[str, Any]) -> str:
        if self.errors and fields["text"] == "in a thread":
            raise self.errors.pop()
        return "its thread" if fields["text"] == "in a thread" else ""

    def forget(self, did: str, rkey: str = "") -> None:
        self.forgotten.append((did, rkey))

    def recall(self, did: str) -> None:
        self.recalled.append(did)


@pytest.mark.parametrize(
    "error",
    [Transient("public API: HTTP 500"), Refused("public API: HTTP 403"), BadInput("appview_answer")],
    ids=["away", "refuses", "of no use"],
)
async def test_a_post_whose_thread_cannot_be_fetched_now_waits_and_is_no_failure(
    world: World, error: Exception
) -> None:
    await world.write("in a thread", "alone")
    asking, slot = world.asking(Around(error), attempts=1, transport_attempts=1), Slot()
    await asking.ask(slot, "civic", await world.items())
    assert slot.asked == ["alone"]
    assert world.rows("SELECT state, attempts, broken, busy, reason FROM job ORDER BY id LIMIT 1") == [
        ("pending", 0, 0, 0, "context_unreachable")
    ]
    await asking.ask(slot, "civic", await world.items())
    assert slot.asked == ["alone", "in a thread"]
    hashes = world.rows("SELECT answer ->> '$.context_hash' FROM label ORDER BY rkey")
    assert hashes == [(Asked("", "its thread").context_hash,), (None,)], "and is asked with it"


async def test_contexts_hear_of_every_deletion_and_of_every_account_that_goes(world: World, store: SqliteStore) -> None:
    await world.write("a post")
    reader, around = Reader(world), Around()
    kinds: list[Any] = ["put", "show", "delete", "hide", "remove"]
    n = await world.ledger.position()
    for kind in kinds:
        n += 1
        of_post = kind in {"put", "delete"}
        reader.news.append(Change(n, kind, f"did:plc:{kind}", "r1" if of_post else "", "", AT))
    labelling = Labelling(
        reader, world.ledger, world.rounds, around, TASKS, Settings(), Metrics(), Stop(), strict=True
    )  # fmt: skip
    await labelling.catch_up(store)
    assert around.forgotten == [("did:plc:delete", "r1"), ("did:plc:hide", ""), ("did:plc:remove", "")]
    assert around.recalled == ["did:plc:show"], "what a shown account wrote may be context again"


# ---- posts that the journal has pruned -------------------------------------------------------------------------------


class Reader:
    """The journal as it was, and what is left of it."""

    def __init__(self, world: World) -> None:
        self.left, self.news = dict(world.posts), list[Change]()

    async def changes(self, after: int, _limit: int) -> list[Change]:
        return [change for change in self.news if change.n > after]

    async def last_change(self) -> int:
        return 0

    async def posts(self, keys: Any) -> dict[Key, PostRow]:
        return {key: self.left[key] for key in keys if key in self.left}

    async def shown(self, _keys: Any) -> dict[Key, Shown]:
        return {}

    async def snapshots(self, _after: int, _limit: int) -> list[Snapshot]:
        return []


async def label_all(world: World, reader: Reader, slot: Slot, store: SqliteStore) -> None:
    stop = Stop()
    stop.request("test", drain=True)
    stop.collected.set()
    settings = Settings.model_validate({"label": {"model": "m", "anchors": 0}, "ledger": {"poll_seconds": 0.01}})
    labelling = Labelling(
        reader, world.ledger, world.rounds, None, TASKS, settings, Metrics(), stop, strict=True
    )  # fmt: skip
    await labelling.run([slot], store)


async def test_a_pruned_post_is_labelled_again_by_the_stores_text_and_failed_only_if_that_is_gone_too(
    world: World, store: SqliteStore
) -> None:
    await world.write("of the council", "of the mayor")
    slot, reader = Slot(), Reader(world)
    await label_all(world, reader, slot, store)
    reader.left.clear()
    slot.is_question = Question("reworded", "m", "{}")
    for uri in (post_uri(did, rkey) for rkey, did in list(world.posts)[1:]):
        (document,) = await store.find("posts", [uri])
        gone: Document = {**document, "v": document["v"] + 1, "text": None}
        await store.put("posts", [gone])
    await world.rounds.begin("civic", Wish())
    await label_all(world, reader, slot, store)
    assert slot.asked == ["of the council", "of the mayor", "of the council"]
    assert world.rows("SELECT state, reason FROM job WHERE run > 0 ORDER BY rkey") == [
        ("done", None),
        ("dead", "text_gone"),
    ]


# ---- what stands still, and what only waits --------------------------------------------------------------------------


async def hung(metrics: Metrics, looks: int) -> str:
    """The loop whose work is the same, and late, over twenty looks; empty when none is over so many."""
    before, same = None, 0
    for _look in range(looks):
        metrics.pulse.turn(1_000_000)
        work = metrics.pulse.stillest()
        before, same = work, same + 1 if work and work is before else 0
        if work and same == 20:
            return work.loop
        await asyncio.sleep(0.01)
    return ""


@asynccontextmanager
async def labelling_on(world: World, slot: Slot, store: SqliteStore, items: int = 100) -> AsyncIterator[Metrics]:
    """The labelling half at work; it is cancelled in the end."""
    settings = Settings.model_validate(
        {"label": {"model": "m", "anchors": 0}, "ledger": {"poll_seconds": 0.01}, "queue": {"items": items}}
    )
    metrics = Metrics()
    labelling = Labelling(
        Reader(world), world.ledger, world.rounds, None, TASKS, settings, metrics, Stop(), strict=True
    )  # fmt: skip
    task = asyncio.create_task(labelling.run([slot], store), name="labelling")
    try:
        yield metrics
    finally:
        faults.arm("")
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize(
    ("place", "loops"),
    [
        ("label.answer", {"label"}),
        ("store.write", {"store"}),
        ("ledger.commit", {"ledger", "queue", "label", "store"}),
    ],
)
async def test_a_step_of_the_labelling_half_that_hangs_is_named(
    place: str, loops: set[str], world: World, store: SqliteStore
) -> None:
    await world.write("of the council", "of the mayor")
    faults.arm(f"{place}:1:hang")
    async with labelling_on(world, Slot(), store) as metrics:
        assert await hung(metrics, looks=3000) in loops


class Busy(Slot):
    """Never free."""

    def delay(self) -> float:
        return 100.0


class Away(SqliteStore):
    """Cannot be reached."""

    async def put(self, *_args: Any, **_more: Any) -> Any:
        raise Transient("it is away")


@pytest.mark.parametrize("why", ["nothing to do", "the model is busy", "a full queue", "the store is away"])
async def test_a_labelling_half_that_only_waits_is_never_late(why: str, world: World, tmp_path: Path) -> None:
    if why != "nothing to do":
        await world.write(*(f"of the council, {n}" for n in range(9)))
    store = await (Away if why == "the store is away" else SqliteStore).open(tmp_path / "posts.db")
    slot = Busy() if why in {"the model is busy", "a full queue"} else Slot()
    async with labelling_on(world, slot, store, items=1 if why == "a full queue" else 100) as metrics:
        assert await hung(metrics, looks=100) == ""
        assert why != "the store is away" or metrics.store_why
    await store.close()
