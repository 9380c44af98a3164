"""The facts of a period, from real stores and a real ledger, against what was put there and reckoned by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from civicsky.document import Document
from civicsky.errors import Failed, Usage
from civicsky.ledger import Ledger
from civicsky.loading import load
from civicsky.model import format_time, now_us, parse_time
from civicsky.research.period import DAY_US, TOP, Wanted, domain, gather
from civicsky.settings import Settings
from civicsky.store import Collection, SqliteStore, Store, open_store
from conftest import Mongod
from support.twenty import BY_DAY, DAYS, SHARES, twenty

HOUR = "2026-11-20T16:00:00.000Z"


def settings(folder: Path, **more: Any) -> Settings:
    return load(None, {"data_dir": str(folder), **{name.replace("__", "."): value for name, value in more.items()}})


async def fill(folder: Path, **documents: list[Document]) -> None:
    """Put documents into a store, by collection; each gets a version."""
    await fill_store(await SqliteStore.open(folder / "posts.db"), **documents)


async def fill_store(store: Store, **documents: list[Document]) -> None:
    """The same, into one that is open; it is closed then."""
    for name, some in documents.items():
        collection: Collection = name  # type: ignore[assignment]
        put = await store.put(collection, [{"v": 1, **one} for one in some])
        assert put.written == len(some)
    await store.close()


async def facts(folder: Path, wanted: Wanted = Wanted(), **more: Any) -> dict[str, Any]:  # noqa: B008
    found = await gather(settings(folder, **more), wanted)
    text = json.dumps(found, allow_nan=False)
    assert found == json.loads(text), "JSON values all through"
    return found


def shares(found: dict[str, Any], field: str, period: str = "all") -> dict[str, float]:
    (table,) = [one for one in found["estimates"] if (one["field"], one["period"]) == (field, period)]
    return {row["value"]: row["share"]["value"] for row in table["rows"]}


async def test_the_weighted_shares_of_twenty_posts_are_those_reckoned_by_hand(tmp_path: Path) -> None:
    await fill(tmp_path, posts=twenty())
    found = await facts(tmp_path)
    for field, by_hand in SHARES.items():
        assert shares(found, field) == pytest.approx(by_hand), field
    for day, by_hand in BY_DAY.items():
        assert shares(found, "civic", day) == pytest.approx(by_hand), day
    assert found["posts"]["by_day"] == DAYS
    assert (found["since"], found["until"]) == ("2026-11-20T06:00:00.000Z", "2026-11-21T06:00:00.001Z")
    one_day = await facts(tmp_path, Wanted(since="2026-11-21", until="2026-11-22"))
    assert shares(one_day, "civic") == pytest.approx(BY_DAY["2026-11-21"])
    assert {one["period"] for one in one_day["estimates"]} == {"all"}
    assert "no such" not in json.dumps(found["missing"])
    assert len(found["missing"]) == 4, "hours, coverage, runs, ledger"


def an_hour(hour: str, kept: int, language: int, *, adult: int = 0, shed: int = 0) -> Document:
    post = {"received": kept + language + adult + shed, "kept": kept, "rejected": language + adult, "shed": shed}
    return {
        "_id": hour, "hour": hour, "rejected": {"language": language, "adult": adult}, "quarantined": {"bad_text": 1},
        "counts": {"frame": {"received": 100}, "post": post, "record": {}, "feed": {"new": 3}}, "feed_rejected": {},
        "feed_failed": {},
    }  # fmt: skip


async def test_hours_give_the_english_share_and_the_reasons_and_end_where_the_period_does(tmp_path: Path) -> None:
    names = [f"2026-11-20T{n:02d}:00:00.000Z" for n in range(24)]
    await fill(
        tmp_path,
        hours=[an_hour(names[3], 5, 5), an_hour(names[4], 6, 2, adult=3, shed=2), an_hour(names[6], 0, 0, adult=1)],
    )
    found = await facts(tmp_path, Wanted(since=names[4], until="2026-11-20T06:30:00Z"))
    assert found["hours"] == [
        {"hour": names[4], "posts": 13, "kept": 6, "shed": 2, "rejected": 5, "not_english": 2, "english": 0.8},
        {"hour": names[6], "posts": 1, "kept": 0, "shed": 0, "rejected": 1, "not_english": 0, "english": None},
    ]
    assert found["rejected"] == {"adult": 4, "language": 2}
    assert found["quarantined"] == {"bad_text": 2}
    assert found["received"]["frame"] == {"received": 200}
    assert found["received"]["feed"] == {"new": 6}


def held(begin: str, end: str, resume: str = "first") -> Document:
    return {
        "_id": f"held/{begin}", "kind": "held", "host": "wss://r", "epoch": 1, "resume": resume, "first_seq": 1,
        "last_seq": 2, "first_at": begin, "last_at": end, "frames": 3,
    }  # fmt: skip


def gap(begin: str, end: str, cause: str) -> Document:
    return {
        "_id": f"gap/{begin}", "kind": "gap", "host": "wss://r", "epoch": 1, "cause": cause, "after_seq": 1,
        "at": end, "from_at": begin, "until_seq": 3, "until_at": end,
    }  # fmt: skip


async def test_all_of_the_period_is_covered_by_what_was_held_and_gaps_with_their_causes(tmp_path: Path) -> None:
    at = [f"2026-11-20T{n:02d}:00:00.000Z" for n in range(24)]
    await fill(
        tmp_path,
        coverage=[
            held(at[2], at[6]),
            gap(at[6], at[8], "not_replayed"),
            held(at[8], at[10], "gap"),
            held(at[12], at[16]),
        ],
    )
    found = (await facts(tmp_path, Wanted(since=at[0], until=at[20])))["coverage"]
    assert [(one["kind"], one["from"], one["to"]) for one in found["stretches"]] == [
        ("not_collected", at[0], at[2]),
        ("held", at[2], at[6]),
        ("not_replayed", at[6], at[8]),
        ("held", at[8], at[10]),
        ("not_collected", at[10], at[12]),
        ("held", at[12], at[16]),
        ("not_collected", at[16], at[20]),
    ]
    assert found["share_held"] == pytest.approx(10 / 20)
    assert [one["cause"] for one in found["gaps"]] == ["not_replayed"]
    inside = (await facts(tmp_path, Wanted(since=at[3], until=at[5])))["coverage"]
    assert (inside["share_held"], inside["gaps"]) == (1.0, [])
    whole = await facts(tmp_path)
    assert (whole["since"], whole["until"]) == (at[2], at[16])
    coming = format_time(now_us() + 5 * DAY_US)
    future = await facts(tmp_path, Wanted(since=at[2], until=coming))
    assert parse_time(future["coverage"]["stretches"][-1]["to"]) <= now_us(), "what has not been yet is no gap"  # type: ignore[operator]


async def test_posts_that_a_feed_showed_are_of_the_period_though_nothing_was_held_then(tmp_path: Path) -> None:
    at = [f"2026-11-20T{n:02d}:00:00.000Z" for n in range(24)]
    fed = [{"kind": "feed", "name": "week", "rank": 1, "fetched_at": at[9]}]
    await fill(
        tmp_path, coverage=[held(at[4], at[8])], posts=[a_post(1, at[6], **civic()), a_post(2, at[2], origins=fed)]
    )
    for origin, since, share in (("firehose", at[4], 1.0), ("feed:week", at[2], 4 / 6), ("any", at[2], 4 / 6)):
        found = await facts(tmp_path, Wanted(origin=origin))
        assert (found["since"], found["until"]) == (since, at[8])
        assert found["coverage"]["share_held"] == pytest.approx(share)


def a_run(at: str, version: str, filter_version: str, keep: str = "english") -> Document:
    return {
        "_id": at, "started": at, "version": version, "filter_version": filter_version,
        "settings": json.dumps({"filter": {"keep": keep}}), "settings_hash": "x",
    }  # fmt: skip


def a_post(n: int, at: str, **more: Any) -> Document:
    did = more.pop("did", f"did:plc:{n}")
    uri = f"at://{did}/app.bsky.feed.post/{n:013d}"
    return {
        "_id": uri, "uri": uri, "did": did, "state": "live", "event_at": at, "text": "SECRET", "p_kept": 1.0,
        "reply_root": None, "labels": {}, "unlabelled": {}, "origins": [{"kind": "firehose", "host": "wss://r"}],
        "filter": {"flags": []}, "tags": [], "links": [], "link": None, **more,
    }  # fmt: skip


def civic(model: str = "m", prompt: str = "p", value: str = "civic") -> dict[str, Any]:
    fields = {"civic": {"value": value, "probability": None}}
    return {"labels": {"civic": {"fields": fields, "p_sampled": 1.0, "model": model, "prompt": prompt}}}


async def test_breaks_are_where_program_filter_prompt_or_model_changed(tmp_path: Path) -> None:
    days = [f"2026-11-{n}T00:00:00.000Z" for n in range(10, 30)]
    await fill(
        tmp_path,
        runs=[
            a_run(days[0], "1", "f1"),
            a_run(days[4], "1", "f2"),
            a_run(days[5], "1", "f2"),
            a_run(days[6], "2", "f2"),
            a_run(days[7], "2", "f2", "all"),
            a_run(days[19], "3", "f3"),
        ],
        posts=[
            a_post(1, days[2], **civic("m", "p")),
            a_post(2, days[8], **civic("m", "q")),
            a_post(3, days[9], **civic("m", "p")),
            a_post(4, days[10], **civic("n", "q")),
        ],
    )
    found = await facts(tmp_path, Wanted(since=days[1], until=days[15]))
    told = [(one["at"], one["kind"], one["task"], one["was"], one["now"]) for one in found["breaks"]]
    keep = ('{"keep": "english"}', '{"keep": "all"}')
    assert told == [
        (days[4], "filter", None, "f1", "f2"),
        (days[6], "civicsky", None, "1", "2"),
        (days[7], "filter settings", None, *keep),
        (days[8], "prompt", "civic", "p", "q"),
        (days[10], "model", "civic", "m", "n"),
    ]
    assert [(one["model"], one["prompt"], one["posts"]) for one in found["makers"]] == [
        ("m", "p", 2), ("m", "q", 1), ("n", "q", 1)
    ]  # fmt: skip
    assert not found["english_only"], "the run that began on the 17th kept all languages"
    assert (await facts(tmp_path, Wanted(since=days[1], until=days[7])))["english_only"]


async def test_costs_are_those_of_the_labels_beside_those_of_all_calls_and_drift_is_the_ledgers(tmp_path: Path) -> None:
    today = now_us() // DAY_US
    days = [format_time((today - n) * DAY_US)[:10] for n in range(5)]

    def label(n: int, day: str, **more: Any) -> Document:
        return {
            "_id": f"l{n}", "uri": f"u{n}", "state": "live", "task": "civic", "model": "named", "model_asked": "asked",
            "at": f"{day}T12:00:00.000Z", "tokens_in": 100, "tokens_out": 5, "calls": 1, "cost": 0.25,
            "currency": "EUR", "cached_from": None, **more,
        }  # fmt: skip

    copied = {"cached_from": "l1", "tokens_in": 0, "tokens_out": 0, "calls": 0, "cost": 0.0}
    tombstone = {"_id": "l9", "uri": "u9", "state": "deleted", "event_at": f"{days[1]}T12:00:00.000Z"}
    await fill(
        tmp_path,
        posts=[a_post(1, f"{days[1]}T12:00:00.000Z")],
        labels=[
            label(1, days[1]), label(2, days[1]), label(3, days[1], **copied), label(4, days[2]),
            label(5, days[4]), label(6, days[2], cost=None, currency=None, model_asked="free"), tombstone,
        ],
    )  # fmt: skip
    wanted = Wanted(since=days[3], until=days[0])
    one = {"labels": 1, "copied": 0, "calls": 1, "tokens_in": 100, "tokens_out": 5}
    without = await facts(tmp_path, wanted)
    assert without["cost"] == {
        "spend": None,
        "labels": [
            {"day": days[2], "model": "asked", "currency": "EUR", **one, "cost": 0.25},
            {"day": days[2], "model": "free", "currency": None, **one, "cost": 0},
            {"day": days[1], "model": "asked", "currency": "EUR", "labels": 3, "copied": 1, "calls": 2,
             "tokens_in": 200, "tokens_out": 10, "cost": 0.5},
        ],
    }  # fmt: skip
    assert without["drift"] is None
    ledger = await Ledger.open(tmp_path / "ledger.db")
    for day, cost in ((days[4], 9.0), (days[1], 2.0)):
        await ledger.database.execute(
            "INSERT INTO spend (day, model, calls, tokens_in, tokens_out, tokens_reasoning, cost, posts) "
            "VALUES (?,'asked',7,900,50,0,?,2)",
            (day, cost),
        )
    for n, (back, said) in enumerate([(1, "civic"), (1, "not civic"), (1, None), (2, "civic"), (4, "not civic")]):
        fields = None if said is None else json.dumps({"civic": said})
        await ledger.database.execute(
            "INSERT INTO probe VALUES (?,'civic','p','asked',?,'did:plc:a',1,NULL,NULL,NULL,?,?)",
            (today - back, f"r{n}", fields, json.dumps({"civic": "civic"})),
        )
    await ledger.close()
    found = await facts(tmp_path, wanted)
    assert [(row["day"], row["calls"], row["cost"]) for row in found["cost"]["spend"]] == [(days[1], 7, 2.0)]
    told = [(row["day"], row["share"]["value"], row["share"]["n"], row["failed"]) for row in found["drift"]]
    assert told == [(days[2], 0.0, 1, 0), (days[1], 0.5, 2, 1)]
    assert len(found["missing"]) == len(without["missing"]) - 1


async def test_only_domains_and_hashtags_of_civic_posts_are_shown_and_none_of_who_asks_not_to_be(
    tmp_path: Path,
) -> None:
    at = HOUR
    card = {"uri": "https://www.card.example/x", "title": "", "description": ""}
    links = [
        "https://WWW.a.example/1?q=1",
        "http://a.example:8080/",
        "javascript:alert(1)",
        "https://[bad",
        "b.example",
    ]
    fed = [{"kind": "feed", "name": "today", "rank": 1, "fetched_at": at}]
    many = [a_post(100 + n, at, tags=[f"t{n % TOP}", f"only{n}"], **civic()) for n in range(2 * TOP)]
    await fill(
        tmp_path,
        posts=[
            a_post(1, at, did="did:plc:a", tags=["Vote", "vote", " "], links=links, link=card, **civic()),
            a_post(2, at, did="did:plc:a", tags=["VOTE", "0" * 10_000], links=["https://a.example/2"], **civic()),
            a_post(3, at, did="did:plc:b", tags=["vote"], links=["https://a.example"], link=card, **civic()),
            a_post(30, at, did="did:plc:c", tags=["shy", "0" * 10_001], links=["https://shy.example"], **civic()),
            a_post(4, at, tags=["no"], links=["https://no.example"], **civic(value="not civic")),
            a_post(5, at, tags=["no"], links=["https://no.example"]),
            a_post(6, at, tags=["no"], **{**civic(), "state": "hidden"}),
            a_post(7, at, did="did:plc:shy", tags=["shy"], links=["https://shy.example"], **civic()),
            a_post(8, at, tags=["fed"], origins=fed, **civic()),
            a_post(9, at, tags=["fed", "alone"], origins=fed, **civic()),
            *many,
        ],
        authors=[
            {"_id": "did:plc:shy", "did": "did:plc:shy", "marks": ["automated", "no-unauthenticated"]},
            {"_id": "did:plc:b", "did": "did:plc:b", "marks": ["automated"]},
        ],
    )  # fmt: skip
    flagged = (await facts(tmp_path))["posts"]
    assert flagged["tags"][0] == {"word": "vote", "posts": 3, "authors": 2}
    assert {"word": "shy", "posts": 2, "authors": 2} in flagged["tags"]
    assert len(flagged["tags"]) == TOP, "no more, and none of one author alone"
    assert {"word": "0" * 200, "posts": 2, "authors": 2} in flagged["tags"]
    assert flagged["domains"] == [
        {"word": "a.example", "posts": 3, "authors": 2},
        {"word": "card.example", "posts": 2, "authors": 2},
        {"word": "shy.example", "posts": 2, "authors": 2},
    ]
    assert flagged["left_out"] == 0
    found = await facts(tmp_path, authors__respect="drop")
    dropped = found["posts"]
    assert dropped["left_out"] == 1
    assert not [one for one in [*dropped["tags"], *dropped["domains"]] if "shy" in one["word"]]
    assert dropped["counted"] == flagged["counted"] == 7 + 2 * TOP, "shares are of all of them"
    assert (await facts(tmp_path, Wanted(origin="feed:today")))["posts"]["tags"] == [
        {"word": "fed", "posts": 2, "authors": 2}
    ]
    shown = json.dumps(found)
    assert "SECRET" not in shown
    assert "did:plc" not in shown
    assert "at://" not in shown


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("https://user:pass@www.Example.com:443/path", "example.com"),
        ("http://xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("ftp://a.example/", ""),
        ("https://", ""),
        ("//a.example", ""),
        ("https://a.example" + "x" * 10_000, "a.example" + "x" * 191),
    ],
)
def test_a_links_domain_is_its_host(address: str, host: str) -> None:
    assert domain(address) == host


async def test_flags_states_reasons_and_feeds_are_counted(tmp_path: Path) -> None:
    fed = [{"kind": "feed", "name": "today", "rank": 1, "fetched_at": HOUR}]
    both = [{"kind": "firehose", "host": "wss://r"}, *fed]
    refused = {"unlabelled": {"civic": {"reason": "refusal", "p_sampled": 1.0}}}

    def snapshot(n: int, at: str, why: str, rank: int | None) -> Document:
        return {"_id": f"s{n}", "uri": f"u{n}", "at": at, "why": why, "rank": rank, "likes": 1}

    later = "2026-11-20T17:00:00.000Z"
    await fill(
        tmp_path,
        posts=[
            a_post(1, HOUR, filter={"flags": ["only_link", "many_tags"]}, **refused),
            a_post(2, HOUR, filter={"flags": ["only_link"]}, origins=both, **civic()),
            a_post(3, HOUR, filter={"flags": ["only_link"]}, state="hidden"),
            {"_id": "x", "uri": "x", "state": "deleted", "event_at": HOUR},
            a_post(4, HOUR, origins=fed),
        ],
        snapshots=[
            snapshot(1, HOUR, "today", 1), snapshot(2, HOUR, "today", 2), snapshot(3, later, "today", 1),
            snapshot(4, later, "24h", None), snapshot(5, "2026-11-19T17:00:00.000Z", "week", 1),
        ],
    )  # fmt: skip
    found = await facts(tmp_path, Wanted(since="2026-11-20", until="2026-11-21"))
    assert found["posts"]["flags"] == {"only_link": 2, "many_tags": 1}
    assert found["posts"]["states"] == {"live": 3, "hidden": 1, "deleted": 1}
    assert found["posts"]["labelled"] == {"civic": 1}
    assert found["posts"]["unlabelled"] == {"civic": {"refusal": 1}}
    assert found["feeds"] == [
        {"name": "today", "fetches": 2, "items": 3, "first": HOUR, "last": later, "posts": 1}
    ]  # fmt: skip


async def test_hand_labels_are_held_against_the_stored_ones(tmp_path: Path) -> None:
    posts = [a_post(n, HOUR, **civic(value="civic" if n < 6 else "not civic")) for n in range(10)]
    await fill(tmp_path, posts=posts)
    gold = tmp_path / "gold.jsonl"
    rows = [
        {"uri": post["uri"], "civic": "civic" if n in {0, 1, 2, 7} else "not civic"} for n, post in enumerate(posts[:8])
    ]
    elsewhere = {"uri": "at://did:plc:z/app.bsky.feed.post/1", "civic": "civic"}
    gold.write_text("".join(json.dumps(row) + "\n" for row in [*rows, elsewhere]))
    found = await facts(tmp_path, Wanted(gold=gold))
    (row,) = found["agreement"]
    # 0, 1, 2 and 6 are right; 3, 4, 5 and 7 are not. Gold has four of each.
    assert (row["field"], row["n"], row["accuracy"]["value"], row["baseline"]["value"]) == ("civic", 8, 0.5, 0.5)
    (table,) = [one for one in found["estimates"] if one["field"] == "civic"]
    assert table["gold"] == 8
    assert table["rows"][0]["corrected"]["n"] == 8
    assert (await facts(tmp_path))["agreement"] == []


async def test_a_store_with_nothing_of_the_period_is_told(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="there is no store"):
        await facts(tmp_path)
    await fill(tmp_path)
    with pytest.raises(Failed, match="there is nothing in the store yet"):
        await facts(tmp_path)
    found = await facts(tmp_path, Wanted(since="2026-11-20", until="2026-11-21"))
    assert (found["posts"]["counted"], found["hours"], found["coverage"]["share_held"]) == (0, [], 0.0)
    with pytest.raises(Usage, match="--origin feed: give"):
        await facts(tmp_path, Wanted(origin="feed"))
    with pytest.raises(Usage, match="not before --until"):
        await facts(tmp_path, Wanted(since="2026-11-20", until="2026-11-20"))


async def test_the_facts_from_mongodb_are_those_from_a_file(
    tmp_path: Path, mongod: Mongod, mongo_database: str
) -> None:
    at = [f"2026-11-{n}T06:00:00.000Z" for n in range(19, 23)]
    documents = {
        "posts": twenty(),
        "hours": [an_hour(at[1], 5, 5), an_hour(at[2], 6, 2, adult=3)],
        "coverage": [held(at[0], at[1]), gap(at[1], at[2], "not_replayed"), held(at[2], at[3], "gap")],
        "runs": [a_run(at[0], "1", "f1"), a_run(at[2], "2", "f1")],
    }
    await fill(tmp_path, **documents)
    mongo: dict[str, Any] = {"store__mongo_uri": mongod.uri, "store__mongo_database": mongo_database}
    await fill_store(await open_store(settings(tmp_path, **mongo).store, tmp_path / "none"), **documents)
    in_file, in_mongo = await facts(tmp_path), await facts(tmp_path / "elsewhere", **mongo)
    assert in_mongo["hours"]
    assert in_mongo["breaks"]
    assert in_mongo["coverage"]["gaps"]
    assert {**in_mongo, "at": ""} == {**in_file, "at": ""}
