"""What the page gathers from a real journal and ledger: bounded, by index, and as the commands have it."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from random import Random
from sqlite3 import connect
from typing import Any

import pytest

from civicsky import ledger as ledgers, sqlite, tables
from civicsky.metrics import Metrics
from civicsky.model import format_time, post_uri
from civicsky.page import facts, gather, reads, recent
from civicsky.page.recent import Recent
from civicsky.settings import Label, Settings
from civicsky.sqlite import Database, open_reader
from civicsky.store import SqliteStore
from civicsky.task import load_task
from support.command import run
from support.watched import HOUR, SECOND, Seed, put, seed, some

NOW = int(time.time()) * SECOND
CIVIC = load_task("civic")[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 posts of ten days, of which some wait, some got no label, and those of one day weigh four times as much."""
    place = tmp_path_factory.mktemp("page") / "data"
    chance, posts = Random(3), []
    for post in some(3_000, now=NOW, days=10):
        kind = chance.random()
        day = post._replace(p_sampled=0.25) if NOW - 72 * HOUR < post.at < NOW - 48 * HOUR else post
        if kind < 0.02:
            day = day._replace(state="dead", fields=None, reason="not_json")
        elif kind < 0.05:
            day = day._replace(state="pending", fields=None)
        posts.append(day)
    seed(place, posts)
    return place


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[Database, Database]]:
    ledger = await open_reader(folder / "ledger.db", ledgers.SCHEMA)
    journal = await open_reader(folder / "journal.db", tables.SCHEMA)
    try:
        yield ledger, journal
    finally:
        await ledger.close()
        await journal.close()


async def nothing() -> None:
    pass


async def test_shares_are_those_of_estimate(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same posts in a store, over the same week, by the command itself."""
    monkeypatch.setattr(facts, "DRAWN", 5_000)
    with closing(connect(folder / "ledger.db")) as db, closing(connect(folder / "journal.db")) as journal:
        rows = db.execute("SELECT rkey, did, state, p_sampled, reason FROM job").fetchall()
        labels = dict(db.execute("SELECT rkey || did, answer FROM label").fetchall())
        times = dict(journal.execute("SELECT rkey || did, event_at FROM post").fetchall())
    since = NOW - 7 * 24 * HOUR
    documents = [_document(row, labels, times) for row in rows if row[2] != "pending"]
    await _store(tmp_path / "posts.db", documents)
    told = run("estimate", "--json", "--since", format_time(since), "--data-dir", tmp_path)
    assert told.code == 0, told.err
    theirs = {
        (table["field"], row["value"].partition(":")[0]): row["share"]
        for table in json.loads(told.out)["estimates"]
        for row in table["rows"]
    }
    async with opened(folder) as (ledger, store):
        mine = await facts.shares(ledger, store, [CIVIC], "post", NOW, nothing)
    assert mine["periods"]["week"]["all"]
    for field in mine["tasks"][0]["fields"]:
        for row in field["values"]:
            other = theirs[field["name"], row["value"] or "unlabelled"]
            assert row["week"]["value"] == pytest.approx(other["value"])
            assert (row["week"]["low"], row["week"]["high"]) == pytest.approx((other["low"], other["high"]), abs=1e-3)
            assert (row["week"]["n"], row["week"]["authors"]) == (other["n"], other["authors"])


def _document(row: tuple[Any, ...], labels: dict[str, str], times: dict[str, int]) -> dict[str, Any]:
    rkey, did, state, p, reason = row
    answer = labels.get(rkey + did)
    fields = {name: {"value": pair[0]} for name, pair in json.loads(answer)["fields"].items()} if answer else {}
    label = {"fields": fields, "p_sampled": p, "model": "mock", "prompt": "p"}
    return {
        "_id": post_uri(did, rkey), "uri": post_uri(did, rkey), "did": did, "v": 1, "state": "live",
        "event_at": format_time(times[rkey + did]), "p_kept": 1.0, "reply_root": None,
        "origins": [{"kind": "firehose", "host": "x"}], "labels": {"civic": label} if state == "done" else {},
        "unlabelled": {"civic": {"reason": reason, "p_sampled": p}} if state == "dead" else {},
    }  # fmt: skip


async def _store(path: Path, documents: list[dict[str, Any]]) -> None:
    store = await SqliteStore.open(path)
    await store.put("posts", documents)
    await store.close()


async def test_a_period_tells_how_many_posts_it_is_of_and_how_many_wait(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "DRAWN", 5_000)
    async with opened(folder) as (ledger, journal):
        told = (await facts.shares(ledger, journal, [CIVIC], "post", NOW, nothing))["periods"]
        with closing(connect(folder / "ledger.db")) as db:
            for name, seconds in facts.PERIODS.items():
                counted = dict(
                    db.execute(
                        "SELECT job.state, count(*) FROM job JOIN doc USING (rkey, did) WHERE event_at >= ? GROUP BY 1",
                        (NOW - seconds * SECOND,),
                    ).fetchall()
                )
                done, pending = counted.get("done", 0), counted.get("pending", 0)
                assert told[name]["tasks"] == {"civic": {"n": done, "pending": pending, "of": sum(counted.values())}}


async def test_of_many_posts_some_are_drawn_and_the_interval_holds_the_truth(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "DRAWN", 5_000)
    async with opened(folder) as (ledger, journal):
        whole = await facts.shares(ledger, journal, [CIVIC], "post", NOW, nothing)
        monkeypatch.setattr(facts, "DRAWN", 400)
        some_of = await facts.shares(ledger, journal, [CIVIC], "post", NOW, nothing)
    period = some_of["periods"]["week"]
    assert not period["all"]
    assert 100 < period["tasks"]["civic"]["n"] <= 400
    assert period["tasks"]["civic"]["of"] == pytest.approx(whole["periods"]["week"]["tasks"]["civic"]["of"], rel=0.1)
    found, truth = (one["tasks"][0]["fields"][0]["values"][0]["week"] for one in (some_of, whole))
    assert found["low"] < truth["value"] < found["high"]


async def test_every_query_of_the_page_is_answered_by_an_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No table that grows is read from end to end, and the newest coverage only as far as its bound."""
    asked: set[tuple[str, str]] = set()
    real = sqlite.rows

    async def noted(connection: sqlite.Connection, sql: str, values: Any = ()) -> list[Any]:
        asked.update((sql, detail) for *_, detail in await real(connection, f"EXPLAIN QUERY PLAN {sql}", values))
        return await real(connection, sql, values)

    monkeypatch.setattr(sqlite, "rows", noted)
    settings = Settings(label=Label(model="mock"))
    async with opened(folder) as (ledger, journal):
        page = Recent()
        for _ in range(3):
            await page.turn(ledger, journal)
        await facts.shares(ledger, journal, [CIVIC], "post", NOW, nothing)
        await facts.counts(journal, NOW)
        await facts.coverage(journal, NOW)
        await facts.cost(ledger, settings, NOW)
        await facts.drift(ledger, settings)
    assert len(asked) > 10
    read_whole = {
        sql
        for sql, detail in asked
        if re.match(r"SCAN (?!\(|\d+ CONSTANT)", detail) and not sql.endswith(f"LIMIT {facts.ROWS}")
    }
    assert {sql for sql in read_whole if not re.search(r"LIMIT \?\) AS job|LIMIT 1|sqlite_schema", sql)} == set()
    assert any(detail.startswith("SEARCH job USING INTEGER PRIMARY KEY") for _, detail in asked)


async def test_the_moment_of_a_job_is_found_by_halves(folder: Path) -> None:
    async with opened(folder) as (ledger, _):
        last = await reads.last_job(ledger)
        for hours in (1, 24, 100, 239):
            at = await reads.first_since(ledger, NOW - hours * HOUR, last)
            assert abs(at - (last - hours * last / 240)) < 20
        assert await reads.first_since(ledger, 0, last) == 1
        assert await reads.first_since(ledger, NOW + HOUR, last) > last - 10


# ---- the newest posts ----


def texts(packed: list[str]) -> list[str]:
    return [json.loads(one)["text"] for one in packed]


async def test_the_newest_posts_come_first_and_the_list_fills_up_into_the_past(tmp_path: Path) -> None:
    posts = [*some(2_500, now=NOW), *(one._replace(state="pending", fields=None) for one in some(300, now=NOW, seed=2))]
    seed(tmp_path / "data", posts)
    page = Recent()
    async with opened(tmp_path / "data") as (ledger, journal):
        first = await page.turn(ledger, journal)
        assert texts(first.posts)[0] == posts[2_499].text
        for _ in range(30):
            await page.turn(ledger, journal)
    assert len(page) == 2_500
    numbers = [one["n"] for part in list(page.events())[1:] for one in json.loads(part.partition(b"data: ")[2])]
    assert numbers == sorted(numbers, reverse=True)
    assert len(numbers) == 2_500


async def test_new_posts_are_found_beyond_however_many_jobs_of_a_round(tmp_path: Path) -> None:
    """`label --again` over ten thousand posts makes their jobs in a row."""
    posts = some(60, now=NOW)
    seed(tmp_path / "data", posts[:50])
    with (
        closing(connect(tmp_path / "data" / "ledger.db")) as ledger,
        closing(connect(tmp_path / "data" / "journal.db")) as journal,
    ):
        page = Recent()
        async with opened(tmp_path / "data") as readers:
            assert len((await page.turn(*readers)).posts) == 50
            ledger.executemany(
                "INSERT INTO job (rkey, did, cid, task, state, p_sampled, run) VALUES (?,?,'x','civic','done',1,?)",
                [(posts[n % 50].rkey, posts[n % 50].did, n + 1) for n in range(10_000)],
            )
            put(journal, ledger, posts[50:])
            journal.commit()
            ledger.commit()
            found = [text for _ in range(3) for text in texts((await page.turn(*readers)).posts)]
            assert found == [post.text for post in reversed(posts[50:])]


async def test_what_is_deleted_hidden_or_edited_is_told_as_gone_and_forgotten(tmp_path: Path) -> None:
    posts = some(50, now=NOW)
    seed(tmp_path / "data", posts)
    page = Recent()
    async with opened(tmp_path / "data") as (ledger, journal):
        await page.turn(ledger, journal)
        names = [f"{post.did}/{post.rkey}" for post in posts]
        _do(tmp_path, "journal", "UPDATE post SET state = 'deleted', cid = '', fields = NULL WHERE rkey = ?", posts[1])
        _do(tmp_path, "ledger", "UPDATE doc SET state = 'hidden', v = v + 1 WHERE rkey = ?", posts[2])
        _do(tmp_path, "journal", "UPDATE post SET cid = 'other' WHERE rkey = ?", posts[3])
        turn = await page.turn(ledger, journal)
        assert set(turn.gone) == {names[1], names[2], names[3]}
        assert len(page) == 47
        whole = b"".join(page.events())
        assert not any(posts[n].text.encode() in whole for n in (1, 2, 3))
        assert posts[4].text.encode() in whole
        _do(tmp_path, "journal", "DELETE FROM post WHERE rkey = ?", posts[5])  # pruned: the ledger still knows it
        assert (await page.turn(ledger, journal)).gone == []


async def test_what_goes_while_the_list_is_told_is_not_told(tmp_path: Path) -> None:
    posts = some(450, now=NOW)
    seed(tmp_path / "data", posts)
    page = Recent()
    async with opened(tmp_path / "data") as (ledger, journal):
        for _ in range(4):
            await page.turn(ledger, journal)
        parts = page.events()
        first = next(parts) + next(parts)
        _do(tmp_path, "journal", "UPDATE post SET state = 'deleted', cid = '', fields = NULL WHERE rkey = ?", posts[1])
        assert len((await page.turn(ledger, journal)).gone) == 1
        rest = b"".join(parts)
    assert posts[449].text.encode() in first
    assert posts[2].text.encode() in rest
    assert posts[1].text.encode() not in first + rest


async def test_a_post_that_is_labelled_anew_is_told_again_and_one_that_is_only_stored_is_not(tmp_path: Path) -> None:
    posts = some(20, now=NOW)
    seed(tmp_path / "data", posts)
    page = Recent()
    async with opened(tmp_path / "data") as (ledger, journal):
        await page.turn(ledger, journal)
        _do(tmp_path, "ledger", "UPDATE doc SET v = v + 1 WHERE rkey = ?", posts[1])
        _do(tmp_path, "ledger", "UPDATE doc SET v = v + 1 WHERE rkey = ?", posts[2])
        other = "UPDATE label SET answer = json_set(answer, '$.fields.civic[0]', 'other') WHERE rkey = ?"
        _do(tmp_path, "ledger", other, posts[2])
        turn = await page.turn(ledger, journal)
        assert texts(turn.posts) == [posts[2].text]
        assert turn.gone == []
        assert (await page.turn(ledger, journal)) == ([], [])


async def test_the_list_has_its_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed(tmp_path / "data", some(600, now=NOW))
    monkeypatch.setattr(recent, "MOST", 100)
    page = Recent()
    async with opened(tmp_path / "data") as (ledger, journal):
        told = {name for _ in range(6) for name in map(_name, (await page.turn(ledger, journal)).posts)}
        assert len(page) == 100
        assert len(told) <= 200
    monkeypatch.setattr(recent, "MOST_BYTES", 5_000)
    page = Recent()
    async with opened(tmp_path / "data") as (ledger, journal):
        await page.turn(ledger, journal)
        assert sum(map(len, page.events())) < 8_000


def _name(packed: str) -> str:
    return str(json.loads(packed)["id"])


async def test_posts_without_a_label_are_listed_by_their_reason_until_they_are_tried_again(tmp_path: Path) -> None:
    posts = some(10, now=NOW)
    posts[4] = posts[4]._replace(state="dead", fields=None, reason="refusal")
    seed(tmp_path / "data", posts)
    page = Recent()
    async with opened(tmp_path / "data") as (ledger, journal):
        await page.turn(ledger, journal)
        (failed,) = page.failed.values()
        assert (failed["reason"], failed["id"]) == ("refusal", f"{posts[4].did}/{posts[4].rkey}")
        _do(tmp_path, "ledger", "UPDATE job SET state = 'pending' WHERE rkey = ?", posts[4])
        await page.turn(ledger, journal)
        assert page.failed == {}


async def test_a_long_text_is_cut_and_hostile_ones_stay_what_they_are(tmp_path: Path) -> None:
    posts = [
        Seed("a" * 10_000, NOW - SECOND, "did:plc:x", "3aaa", {"civic": ("civic", None)}),
        Seed("</script>\n\nevent: gone\ud800\u202e", NOW, "did:plc:y", "3aab", {"civic": ("civic", 0.5)}),
    ]
    seed(tmp_path / "data", posts)
    page = Recent()
    async with opened(tmp_path / "data") as (ledger, journal):
        shown = texts((await page.turn(ledger, journal)).posts)
    assert shown == ["</script>\n\nevent: gone\ud800\u202e", "a" * recent.TEXT_CHARS + "…"]
    assert b"\n\nevent: gone" not in b"".join(page.events())


def _do(place: Path, name: str, sql: str, post: Seed) -> None:
    with closing(connect(place / "data" / f"{name}.db", timeout=30)) as db:
        assert db.execute(sql, (post.rkey,)).rowcount == 1
        db.commit()


# ---- whoever watches ----


class Readers:
    """Counts the page's connections, which are real ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = self.closed = 0
        self._patch = monkeypatch
        monkeypatch.setattr(gather, "open_reader", self._open)
        monkeypatch.setattr(gather, "TURN_SECONDS", 0.02)
        monkeypatch.setattr(gather, "LINGER_SECONDS", 0.1)

    async def _open(self, path: Path, schema: sqlite.Schema) -> Database:
        database = await open_reader(path, schema)
        self.opened += 1
        real = database.close

        async def close() -> None:
            self.closed += 1
            await real()

        self._patch.setattr(database, "close", close)
        return database


def ready() -> tuple[bool, dict[str, Any]]:
    return True, {"reasons": [], "pending": [], "quiet": False, "window": ""}


@asynccontextmanager
async def gathering(
    folder: Path, readiness: Callable[[], tuple[bool, dict[str, Any]]] = ready
) -> AsyncIterator[gather.Page]:
    page = gather.Page(Settings(data_dir=folder), Metrics(), readiness, "both")
    task = asyncio.create_task(page.gather())
    try:
        yield page
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(3_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited 30 s in vain")


async def heard(listener: Any, words: bytes) -> bytes:
    """All that is told until these words come."""
    found = b""
    async with asyncio.timeout(30):
        while words not in found:
            found += await listener.next()
    return found


async def test_nothing_is_gathered_when_nobody_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed(tmp_path / "data", some(30, now=NOW))
    readers = Readers(monkeypatch)
    async with gathering(tmp_path / "data") as page:
        await asyncio.sleep(0.2)
        assert readers.opened == 0
        listener = page.join()
        assert listener
        told = await heard(listener, b"event: posts\ndata: [{")
        assert (readers.opened, readers.closed) == (2, 0)
        page.leave(listener)
        await until(lambda: readers.closed == 2)
        await asyncio.sleep(0.2)
        assert readers.opened == 2
        again = page.join()
        assert again
        assert b"event: hello" in told
        assert b"event: shares" in await heard(again, b"event: shares")
        assert readers.opened == 4
        page.leave(again)


async def test_who_comes_in_the_midst_of_the_end_is_told_what_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts = some(30, now=NOW)
    seed(tmp_path / "data", posts)
    Readers(monkeypatch)
    async with gathering(tmp_path / "data") as page:
        listener = page.join()
        for n in range(5):
            assert listener
            await heard(listener, posts[29].text.encode())
            page.leave(listener)
            await asyncio.sleep(0.09 + n * 0.01)
            listener = page.join()
        assert listener
        await heard(listener, posts[29].text.encode())
        _do(tmp_path, "journal", "UPDATE post SET state = 'deleted', cid = '', fields = NULL WHERE rkey = ?", posts[3])
        await heard(listener, posts[3].rkey.encode() + b'"]')


async def test_a_database_that_is_not_there_yet_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Readers(monkeypatch)
    async with gathering(tmp_path / "data") as page:
        listener = page.join()
        assert listener
        await heard(listener, b"event: state")
        seed(tmp_path / "data", some(3, now=NOW))
        await heard(listener, b"event: posts\ndata: [{")


async def test_what_cannot_be_read_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Readers(monkeypatch)
    monkeypatch.setattr(gather, "AGAIN_SECONDS", 0.05)
    seed(tmp_path / "data", some(3, now=NOW))
    whole = (tmp_path / "data" / "ledger.db").read_bytes()
    (tmp_path / "data" / "ledger.db").write_bytes(b"no database at all, but long enough" * 100)
    async with gathering(tmp_path / "data") as page:
        listener = page.join()
        assert listener
        assert b"is damaged" in await heard(listener, b"is damaged")
        (tmp_path / "data" / "ledger.db").write_bytes(whole)
        await heard(listener, b"event: posts\ndata: [{")


async def test_a_defect_in_telling_the_state_ends_neither_the_page_nor_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Readers(monkeypatch)
    monkeypatch.setattr(gather, "AGAIN_SECONDS", 0.05)
    seed(tmp_path / "data", some(3, now=NOW))
    fails = [ZeroDivisionError()] * 4

    def readiness() -> tuple[bool, dict[str, Any]]:
        if fails:
            raise fails.pop()
        return ready()

    async with gathering(tmp_path / "data", readiness) as page:
        listener = page.join()
        assert listener
        await heard(listener, b"event: posts\ndata: [{")


async def test_where_not_all_connections_are_laid_out_coverage_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that breaks every minute has so many that older days are not looked at."""
    seed(tmp_path / "data", some(3, now=NOW))
    async with opened(tmp_path / "data") as (_, journal):
        assert (await facts.coverage(journal, NOW))["whole"]
        monkeypatch.setattr(facts, "ROWS", 2)
        told = await facts.coverage(journal, NOW)
    assert (told["whole"], told["connections"]) == (False, 2)
