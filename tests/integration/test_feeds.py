"""What was fetched is imported: one way in for all posts, one document each, and the firehose and deletions win."""

import asyncio
import json
import os
from base64 import b32decode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from civicsky import datadir, inbox
from civicsky.app import ledger_reader
from civicsky.feeds import Feeds, Imported
from civicsky.journal import Journal, JournalReader
from civicsky.model import cid_text, format_time, post_uri
from civicsky.settings import Filter, Journal as JournalSettings, Worker
from civicsky.worker import Pool
from support.command import end_when, finish, query, run, start, until
from support.drawing import draws_first
from support.frames import block_and_cid, cid_of, link, post
from support.inboxed import FETCHED, item, leave
from support.led import (
    FIRST,
    OTHER,
    SECOND,
    SECRET,
    A,
    B,
    Led,
    all_told,
    balance_closes,
    counts,
    files_that_hold,
    in_journal,
    in_ledger,
    in_store,
    led_relay,
    prune,
    service,
    three_posts,
    uri,
)

ENGLISH = "The council voted on the budget of the city, and nobody was surprised"
GERMAN = "Der Stadtrat hat gestern über den Haushalt abgestimmt, und niemand war überrascht"


@pytest.fixture
def relay() -> Iterator[Led]:
    with led_relay() as led:
        yield led


@asynccontextmanager
async def journal_of(folder: Path) -> AsyncIterator[tuple[Journal, Feeds]]:
    folder.mkdir(exist_ok=True)
    journal = await Journal.open(folder / "journal.db", JournalSettings())
    try:
        yield journal, Feeds(journal.database, folder, lambda: ledger_reader(folder))
    finally:
        await journal.close()


def has_open(pid: int, name: str) -> bool:
    """Whether a process has a file of this name open."""
    with suppress(FileNotFoundError):
        return any(Path(fd).name == name for fd in map(os.readlink, Path(f"/proc/{pid}/fd").iterdir()))
    return False


async def imported(folder: Path) -> list[Imported]:
    """What importing now gives; a pool of its own, as a command has it."""
    pool = Pool(Worker(processes=1), Filter())
    await pool.start()
    async with journal_of(folder) as (_, feeds):
        return await feeds.import_waiting(pool)


def draws_one_of_three(folder: Path) -> None:
    """Of `three_posts` the first is drawn where one a day is wished for, and not all others."""
    folder.mkdir()
    draws_first(folder, [uri(FIRST, A), uri(SECOND, A), uri(OTHER, B)])


def table(folder: Path, sql: str) -> list[Any]:
    return query(folder / "journal.db", sql)


# ---- the import ------------------------------------------------------------------------------------------------------


async def test_each_item_has_one_outcome_and_a_reason_and_the_balance_closes(tmp_path: Path) -> None:
    adult = post(ENGLISH, labels={"$type": "x#selfLabels", "values": [{"val": "porn"}]})
    items = [
        item(1, "3aaaaaaaaaaaa", ENGLISH),
        item(2, "3aaaaaaaaaaab", GERMAN),
        item(3, "3aaaaaaaaaaac", adult),
        item(4, "3aaaaaaaaaaad", ""),
        item(5, "3aaaaaaaaaaae", ENGLISH, record="{not JSON"),
        item(6, "3aaaaaaaaaaaf", ENGLISH, record="[" * 100_000),
        item(7, "3aaaaaaaaaaag", ENGLISH, record='{"$type": "app.bsky.feed.post", "text": "\\ud800"}'),
        item(8, "3aaaaaaaaaaah", ENGLISH, record='{"$type": "app.bsky.feed.like", "text": "x"}'),
        item(9, "3aaaaaaaaaaai", ENGLISH, uri="at://did:plc:a/app.bsky.feed.generator/x"),
        item(10, "3aaaaaaaaaaaj", ENGLISH, record=json.dumps(post(ENGLISH, n=2**70))),
    ]  # fmt: skip
    leave(tmp_path, items)
    (done,) = await imported(tmp_path)
    assert done.outcomes == {
        ("new", ""): 1,
        ("rejected", "language"): 1,
        ("rejected", "adult"): 1,
        ("rejected", "no_text"): 1,
        ("failed", "undecodable"): 4,
        ("failed", "wrong_type"): 1,
        ("failed", "bad_field"): 1,
    }
    assert done.fetched == 10 == done.outcomes.total()
    told = counts(tmp_path, "feed")
    assert told.pop("received") == sum(told.values()) == 10
    assert await imported(tmp_path) == [], "and a file is imported once"


async def test_a_record_is_what_its_author_wrote_links_and_bytes_included_or_is_flagged(tmp_path: Path) -> None:
    blob = cid_of(b"a picture")
    record = post(
        ENGLISH,
        embed={"$type": "app.bsky.embed.images", "images": [{"alt": "the mayor", "image": {"ref": link(blob)}}]},
        odd=b"\x00\x01\xfe",
    )
    as_json = json.loads(item(1, "x", post(ENGLISH)).record) | {
        "embed": {
            "$type": "app.bsky.embed.images",
            "images": [{"alt": "the mayor", "image": {"ref": {"$link": cid_text(blob)}}}],
        },
        "odd": {"$bytes": "AAH+"},
    }
    cid = cid_text(block_and_cid(record)[1])
    leave(
        tmp_path,
        [
            item(1, "3aaaaaaaaaaaa", ENGLISH, record=json.dumps(as_json), cid=cid),
            item(2, "3aaaaaaaaaaab", ENGLISH, record=json.dumps(as_json | {"text": ENGLISH + "!"}), cid=cid),
        ],
    )
    await imported(tmp_path)
    flags = dict(table(tmp_path, "SELECT rkey, fields ->> '$.filter.flags' FROM post"))
    assert flags == {"3aaaaaaaaaaaa": "[]", "3aaaaaaaaaaab": '["unverified"]'}
    ((block,),) = table(tmp_path, "SELECT record FROM post WHERE rkey = '3aaaaaaaaaaaa'")
    assert cid_of(block) == cid_bytes(cid)


def cid_bytes(text: str) -> bytes:
    coded = text[1:].upper()
    return b32decode(coded + "=" * (-len(coded) % 8))


async def test_the_same_feed_twice_gives_each_post_once_and_two_snapshots(tmp_path: Path) -> None:
    some = [
        (f"3aaaaaaaaa{n:03}".replace("0", "a").replace("1", "b").replace("8", "c").replace("9", "d"), n)
        for n in range(1, 60)
    ]
    leave(tmp_path, [item(n, rkey, f"{ENGLISH}, number {n}") for rkey, n in some])
    leave(tmp_path, [item(n, rkey, f"{ENGLISH}, number {n}", likes=5000) for rkey, n in some], at=FETCHED + 60_000_000)
    first, second = await imported(tmp_path)
    assert (first.outcomes["new", ""], second.outcomes["known", ""]) == (59, 59)
    assert table(tmp_path, "SELECT count(*), count(DISTINCT rkey) FROM post") == [(59, 59)]
    assert table(tmp_path, "SELECT n, count(*) FROM (SELECT count(*) AS n FROM snapshot GROUP BY rkey) GROUP BY n") == [
        (2, 59)
    ]
    assert table(tmp_path, "SELECT DISTINCT at FROM seen") == [(FETCHED,)], "when it was seen first"
    async with journal_of(tmp_path) as (_, feeds):
        await feeds.import_again(second.file)
    (again,) = await imported(tmp_path)
    assert again.outcomes == {("known", ""): 59}
    assert table(tmp_path, "SELECT count(*) FROM snapshot") == [(118,)], "the same fetch is the same snapshot"


async def test_a_file_that_is_none_of_ours_is_told_once_and_stops_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "inbox"
    folder.mkdir(parents=True)
    for name, text in {"a": "no JSON", "b": "{}", "c": '{"kind": "feed"}\n', "d": "[1]\n", "e": ""}.items():
        (folder / f"20261126T0{ord(name) - 96}0000.000Z-{name}.jsonl").write_text(text)
    (folder / "notes.txt").write_text("mine")
    leave(tmp_path, [item(1, "3aaaaaaaaaaaa", ENGLISH)])
    found = await imported(tmp_path)
    assert sorted((one.name, one.fetched) for one in found) == [("", 0)] * 5 + [("today", 1)]
    assert await imported(tmp_path) == []


@pytest.mark.parametrize(
    "how",
    [
        {"at": 10**30}, {"at": 5 * 10**17}, {"at": -1}, {"at": "today"}, {"complete": [1]}, {"pages": {}},
        {"name": "\ud800"}, {"uri": "\ud800"}, {"why": "\udfff"}, {"why": 7},
    ],
)  # fmt: skip
async def test_a_file_whose_header_no_database_takes_is_none_of_ours(how: dict[str, Any], tmp_path: Path) -> None:
    file = leave(tmp_path, [item(1, "3aaaaaaaaaaaa", ENGLISH)])
    head, _, rest = file.read_text().partition("\n")
    file.write_text(json.dumps({**json.loads(head), **how}) + "\n" + rest)
    (done,) = await imported(tmp_path)
    assert (done.file, done.name, done.fetched) == (file.name, "", 0)


@pytest.mark.parametrize(
    "how", [{"cid": "\ud800"}, {"uri": "at://did:plc:\ud800/x"}, {"indexed_at": 5 * 10**17}, {"cid": None}]
)
async def test_a_file_with_an_item_that_no_database_takes_is_none_of_ours(how: dict[str, Any], tmp_path: Path) -> None:
    leave(tmp_path, [item(1, "3aaaaaaaaaaaa", ENGLISH)._replace(**how)])
    (done,) = await imported(tmp_path)
    assert (done.name, done.fetched) == ("", 0)


async def test_what_services_say_in_no_sound_unicode_is_told_to_the_store_all_the_same(
    relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    said = [{"source": "did:plc:\ud800", "value": "\udfff", "at": ""}]
    leave(folder, [item(1, FIRST, ENGLISH, moderation=said)])
    process = service(folder, relay, model)
    ended = end_when(process, lambda: in_store(folder), "the post to be stored")
    assert ended.code == 0, ended.err
    assert in_store(folder)[FIRST]["moderation"] == [{"source": "did:plc:?", "value": "?", "at": None}]


@pytest.mark.parametrize("rkey", ["a b", "a\nb", "a\x00b", "é", "a" * 513])
async def test_a_post_whose_key_the_stream_would_not_take_is_not_taken_from_a_feed(rkey: str, tmp_path: Path) -> None:
    leave(tmp_path, [item(1, rkey, ENGLISH)])
    (done,) = await imported(tmp_path)
    assert done.outcomes == {("failed", "bad_field"): 1}


async def test_a_file_that_cannot_be_read_now_is_imported_when_it_can(tmp_path: Path) -> None:
    file = leave(tmp_path, [item(1, "3aaaaaaaaaaaa", ENGLISH)])
    content = file.read_bytes()
    file.unlink()
    file.mkdir()  # which nobody can read as a file, not even root
    leave(tmp_path, [item(1, "3aaaaaaaaaaab", ENGLISH)], at=FETCHED + 1000)
    (other,) = await imported(tmp_path)
    assert other.outcomes == {("new", ""): 1}
    file.rmdir()
    file.write_bytes(content)
    (done,) = await imported(tmp_path)
    assert (done.file, done.outcomes) == (file.name, {("new", ""): 1})


def test_an_inbox_that_cannot_be_used_ends_no_service(relay: Led, tmp_path: Path) -> None:
    (tmp_path / "inbox").write_text("no folder")
    three_posts(relay)
    process = start("collect", "--data-dir", tmp_path, "--relay", relay.url, worker__batch_seconds=0.05)
    until(lambda: len(in_journal(tmp_path)) == 3 or process.poll() is not None, "the posts to be kept")
    relay.post("3aaaaaaaaaaad", ENGLISH)
    ended = end_when(process, lambda: len(in_journal(tmp_path)) == 4, "one more to be kept")
    assert ended.code == 0, ended.err
    assert ended.err.count("feed_unreadable") == 1, "it is told once"


async def test_a_killed_import_leaves_nothing_and_is_done_again(tmp_path: Path) -> None:
    leave(tmp_path, [item(n, f"3aaaaaaaaaa{n:02}".replace("0", "z"), f"{ENGLISH} {n}") for n in range(2, 9)])
    ended = run("collect", "--data-dir", tmp_path, "--relay", "ws://127.0.0.1:9", fault="journal.commit:1")
    assert ended.code == -9
    assert table(tmp_path, "SELECT count(*) FROM post") == [(0,)]
    (done,) = await imported(tmp_path)
    assert done.outcomes == {("new", ""): 7}


# ---- with the firehose -----------------------------------------------------------------------------------------------


def test_a_post_that_both_show_is_one_document_with_both_origins_and_is_labelled_for_certain(
    relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    three_posts(relay)
    draws_one_of_three(folder)
    process = service(folder, relay, model, sample__posts_per_day=1)
    until(lambda: len(in_store(folder)) == 3, "three posts to be stored")
    text = f"The {SECRET} of the council's budget"
    moderation = [
        {"source": "did:plc:mod", "value": "rude", "at": "2026-11-22T12:00:00Z"},
        {"source": "did:plc:mod", "value": "spam", "at": "never"},
    ]
    leave(folder, [item(4, FIRST, text, did=A, moderation=moderation), item(5, "3zzzzzzzzzzzz", ENGLISH, did=B)])
    until(lambda: len(in_store(folder)) == 4 and in_store(folder)[FIRST]["origins"][1:], "the feed to be imported")
    end_when(process, lambda: all_told(folder), "all to be labelled")
    found = in_store(folder)
    both, alone = found[FIRST], found["3zzzzzzzzzzzz"]
    seen = {"kind": "feed", "name": "today", "rank": 4, "fetched_at": format_time(FETCHED)}
    assert both["origins"] == [{"kind": "firehose", "host": relay.url}, seen]
    assert both["rev"]
    assert both["moderation"] == [
        {"source": "did:plc:mod", "value": "rude", "at": "2026-11-22T12:00:00.000Z"},
        {"source": "did:plc:mod", "value": "spam", "at": None},
    ]
    assert alone["origins"] == [{**seen, "rank": 5}]
    assert alone["rev"] is None
    assert alone["event_at"] == format_time(FETCHED - 5_000_000), "when the public API saw it"
    for document in (both, alone):
        assert "civic" in document["labels"], "each is labelled"
        assert document["labels"]["civic"]["p_sampled"] == 1
    assert query(folder / "ledger.db", "SELECT sum(seen) FROM hour") == [(3,)], (
        "the feed's own is no part of the sample"
    )
    snapshots = query(folder / "posts.db", "SELECT doc ->> '$.why', doc ->> '$.likes', doc ->> '$.rank' FROM snapshots")
    assert sorted(snapshots) == [("today", 995, 5), ("today", 996, 4)]
    assert balance_closes(folder)


def test_any_operation_of_the_firehose_wins_over_what_a_feed_showed(
    relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    leave(folder, [item(1, FIRST, ENGLISH, did=A), item(2, SECOND, ENGLISH, did=A), item(3, OTHER, ENGLISH, did=B)])
    process = service(folder, relay, model)
    until(lambda: len(in_store(folder)) == 3, "the feed to be stored")
    relay.post(FIRST, "What the author really wrote, in plain English", did=A)
    relay.delete(SECOND, did=A)
    until(lambda: in_store(folder)[FIRST]["rev"] and in_store(folder)[SECOND]["state"] == "deleted", "the firehose")
    later = [
        item(1, FIRST, ENGLISH, did=A),
        item(2, SECOND, ENGLISH, did=A),
        item(3, OTHER, "Changed, says the feed", did=B),
    ]
    leave(folder, later, at=FETCHED + 60_000_000)
    until(lambda: len(table(folder, "SELECT 1 FROM fetched")) == 2, "the second feed")
    end_when(process, lambda: all_told(folder), "all to be told")
    found = in_store(folder)
    assert found[FIRST]["text"] == "What the author really wrote, in plain English"
    assert [one["kind"] for one in found[FIRST]["origins"]] == ["firehose", "feed"]
    assert found[FIRST]["event_at"] != format_time(FETCHED - 1_000_000), "the relay knows better when it was made"
    assert "text" not in found[SECOND]
    assert found[OTHER]["text"] == "Changed, says the feed", "but among feeds the later one is right"
    told = counts(folder, "feed")
    assert (told["new"], told["known"], told["rejected"]) == (3, 2, 1)
    assert counts(folder, "post") == {"received": 2, "updated": 1, "deleted": 1}
    uris = query(folder / "posts.db", "SELECT DISTINCT uri FROM snapshots ORDER BY uri")
    assert uris == sorted([(post_uri(A, FIRST),), (post_uri(B, OTHER),)]), "a deleted post's snapshots are gone"


@pytest.mark.parametrize("how", ["delete", "account", "erase", "erase one", "rejected"])
def test_a_deleted_post_leaves_every_file_also_that_of_the_fetch(
    how: str, relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    text = f"The {SECRET} of the council's budget"
    if how == "rejected":  # none of ours, but its text lies in the file
        text = f"Der {SECRET} des Stadtrats ist ein Haushalt, über den niemand gerne spricht, sagt man"
    relay.post("3bbbbbbbbbbbb", "Another post, in plain English", did=B)
    kept = leave(folder, [item(1, FIRST, text, did=A), item(2, OTHER, ENGLISH, did=B)])
    process = service(folder, relay, model)
    until(lambda: len(in_store(folder)) == (2 if how == "rejected" else 3), "the feed to be stored")
    assert kept.name in files_that_hold(folder, SECRET), "the test looks in the right place"
    if how.startswith("erase"):
        ended = run("erase", A if how == "erase" else post_uri(A, FIRST), "--data-dir", folder)
        assert ended.code == 0, ended.err
    elif how == "account":
        relay.account("deleted", did=A)
    else:
        relay.delete(FIRST, did=A)
    waits = "SELECT count(*) FROM scrub"
    until(lambda: SECRET not in kept.read_text() and table(folder, waits) == [(0,)], "the file to be scrubbed")
    end_when(process, lambda: all_told(folder), "all to be told")
    assert files_that_hold(folder, SECRET) == []
    _, items = inbox.read(kept)
    assert [one.key for one in items] == [(OTHER, B)], "and nothing else is"
    assert table(folder, f"SELECT count(*) FROM seen WHERE did = '{A}'") == [(0,)]


async def test_what_is_erased_while_nothing_runs_leaves_the_file_of_the_fetch(tmp_path: Path) -> None:
    kept = leave(tmp_path, [item(1, FIRST, f"The {SECRET} of the council's budget", did=A), item(2, OTHER, ENGLISH)])
    await imported(tmp_path)
    ended = run("erase", A, "--data-dir", tmp_path)
    assert ended.code == 0, ended.err
    assert files_that_hold(tmp_path, SECRET) == []
    assert len(inbox.read(kept)[1]) == 1
    leave(tmp_path, [item(1, FIRST, f"The {SECRET} again", did=A)], at=FETCHED + 1000)
    (done,) = await imported(tmp_path)
    assert done.outcomes == {("rejected", "erased"): 1}
    assert files_that_hold(tmp_path, SECRET) == []


def test_what_is_erased_while_a_command_is_at_work_leaves_the_file_and_the_store(
    relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    kept = leave(folder, [item(1, FIRST, f"The {SECRET} of the council's budget", did=A), item(2, OTHER, ENGLISH)])
    relay.post("3bbbbbbbbbbbb", "Another post, in plain English", did=B)
    process = service(folder, relay, model)
    end_when(process, lambda: len(in_store(folder)) == 3 and all_told(folder), "all to be stored")
    with datadir.locked(folder, ("collect",), brief=True), datadir.locked(folder, ("label",), brief=True):
        process = start("erase", A, "--data-dir", folder)
        until(lambda: has_open(process.pid, "collect.lock"), "it to try the lock")
        until(lambda: not has_open(process.pid, "collect.lock"), "it to find the lock taken")
        assert process.poll() is None, "it waits for the command"
        assert kept.name in files_that_hold(folder, SECRET)
    ended = finish(process)
    assert ended.code == 0, ended.out
    assert files_that_hold(folder, SECRET) == []


async def test_a_tombstone_beats_an_import_that_comes_later_and_its_file_is_scrubbed(
    relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    three_posts(relay)
    relay.delete(FIRST, did=A)
    process = service(folder, relay, model)
    end_when(process, lambda: len(in_journal(folder)) == 3 and all_told(folder), "all to be told")
    kept = leave(folder, [item(1, FIRST, f"The {SECRET}", did=A)])
    (done,) = await imported(folder)
    assert done.outcomes == {("rejected", "deleted"): 1}
    assert SECRET not in kept.read_text()
    assert "fields" not in in_store(folder)[FIRST]
    # Also when the journal has forgotten, and only the ledger knows.
    await prune(folder, tombstone_days=0)
    assert FIRST not in in_journal(folder)
    leave(folder, [item(1, FIRST, f"The {SECRET}", did=A)], at=FETCHED + 1000)
    (done,) = await imported(folder)
    assert done.outcomes == {("rejected", "deleted"): 1}


async def test_a_pruned_post_that_a_feed_shows_is_known_and_gets_origin_label_and_snapshot(
    relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    three_posts(relay)
    await asyncio.to_thread(draws_one_of_three, folder)
    process = service(folder, relay, model, sample__posts_per_day=1)
    end_when(process, lambda: len(in_store(folder)) == 3 and all_told(folder), "all to be told")
    unlabelled = [rkey for rkey, doc in in_store(folder).items() if not doc["labels"]]
    await prune(folder)
    assert in_journal(folder) == {}
    chosen = unlabelled[0]
    did = B if chosen == OTHER else A
    text = in_store(folder)[chosen]["text"]
    leave(folder, [item(7, chosen, text, did=did)])
    (done,) = await imported(folder)
    assert done.outcomes == {("known", ""): 1}
    process = service(folder, relay, model, sample__posts_per_day=1)
    end_when(process, lambda: in_store(folder)[chosen]["labels"] and all_told(folder), "it to be labelled")
    document = in_store(folder)[chosen]
    assert [(one["kind"], one.get("rank")) for one in document["origins"]] == [("firehose", None), ("feed", 7)]
    assert document["text"] == text
    assert document["rev"]
    assert document["labels"]["civic"]["p_sampled"] == 1
    assert query(folder / "posts.db", "SELECT count(*) FROM snapshots") == [(1,)]


def test_a_hidden_account_stays_hidden_whatever_a_feed_shows(
    relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    relay.post(OTHER, "Another post, in plain English", did=B)
    relay.account("takendown", did=A)
    process = service(folder, relay, model)
    until(lambda: len(table(folder, "SELECT 1 FROM account")) == 1, "the account to be hidden")
    leave(folder, [item(1, FIRST, ENGLISH, did=A)])
    until(lambda: FIRST in in_store(folder), "the feed to be stored")
    assert in_store(folder)[FIRST]["state"] == "hidden"
    relay.account("active", did=A)
    until(lambda: in_store(folder)[FIRST]["state"] == "live", "it to be shown again")
    end_when(process, lambda: all_told(folder), "all to be told")
    assert in_ledger(folder)[FIRST] == "live"


async def test_a_lost_journal_numbers_its_snapshots_from_where_the_store_is(
    relay: Led, model: tuple[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    leave(folder, [item(1, FIRST, ENGLISH, did=A), item(2, OTHER, ENGLISH, did=B)])
    process = service(folder, relay, model)
    end_when(process, lambda: len(in_store(folder)) == 2 and all_told(folder), "the feed to be stored")
    for file in folder.glob("journal.db*"):
        file.unlink()
    leave(folder, [item(1, FIRST, ENGLISH, did=A)], at=FETCHED + 60_000_000)
    process = service(folder, relay, model)
    stored = "SELECT count(*) FROM snapshots"
    end_when(process, lambda: query(folder / "posts.db", stored) == [(3,)], "the new snapshot to be stored")
    assert query(folder / "posts.db", stored) == [(3,)]


async def test_what_the_last_fetch_of_each_feed_gave_is_shown(tmp_path: Path) -> None:
    leave(tmp_path, [item(1, "3aaaaaaaaaaaa", ENGLISH)], at=FETCHED - 1000)
    leave(
        tmp_path, [item(1, "3aaaaaaaaaaaa", ENGLISH), item(2, "3aaaaaaaaaaab", GERMAN)], complete=False, why="HTTP 500"
    )
    await imported(tmp_path)
    ended = run("status", "--data-dir", tmp_path)
    assert (
        f"fetched          today  {format_time(FETCHED)}  2: new 0, known 1, rejected 1, failed 0, not whole: HTTP 500"
        in ended.out
    )
    assert "feed: received 3 = new 1 + known 1 + rejected 1" in ended.out
    reader = await JournalReader.open(tmp_path / "journal.db")
    try:
        assert [(row["name"], row["items"], row["complete"]) for row in await reader.fetches()] == [
            ("today", 1, 1),
            ("today", 2, 0),
        ]
    finally:
        await reader.close()
