from collections import Counter
from typing import get_args

from civicsky.model import FrameOutcome, PostOutcome
from civicsky.status import Balance, as_text, balance, reasons

COUNTS: Counter[tuple[str, str, str]] = Counter(
    {
        ("frame", "received", ""): 20,
        ("frame", "commit", ""): 12,
        ("frame", "account", ""): 3,
        ("frame", "ignored", "text"): 1,
        ("frame", "ignored", "unknown_kind"): 2,
        ("frame", "quarantined", "undecodable"): 2,
        ("post", "received", ""): 9,
        ("post", "kept", ""): 4,
        ("post", "rejected", "language"): 3,
        ("post", "rejected", "adult"): 1,
        ("post", "stale", ""): 1,
        ("record", "create", "app.bsky.feed.like"): 1000,
    }
)


def test_the_balance_sums_what_became_of_everything_received() -> None:
    frames = balance(COUNTS, "frame")
    assert (frames.unit, frames.received, frames.closes) == ("frame", 20, True)
    assert {name: n for name, n in frames.outcomes.items() if n} == {
        "commit": 12,
        "account": 3,
        "ignored": 3,
        "quarantined": 2,
    }
    posts = balance(COUNTS, "post")
    assert (posts.received, posts.closes) == (9, True)
    assert posts.outcomes == {
        "kept": 4,
        "rejected": 4,
        "shed": 0,
        "updated": 0,
        "deleted": 0,
        "stale": 1,
        "quarantined": 0,
    }


def test_every_outcome_is_part_of_the_balance() -> None:
    for unit, outcomes in (("frame", get_args(FrameOutcome)), ("post", get_args(PostOutcome))):
        counts = Counter({(unit, "received", ""): len(outcomes), **{(unit, name, "why"): 1 for name in outcomes}})
        found = balance(counts, unit)
        assert list(found.outcomes) == list(outcomes)
        assert found.closes


def test_a_balance_that_misses_one_or_has_one_too_many_does_not_close() -> None:
    for change in (1, -1):
        counts = COUNTS.copy()
        counts["frame", "commit", ""] += change
        assert not balance(counts, "frame").closes
        assert balance(counts, "post").closes


def test_an_outcome_that_is_not_known_does_not_help_to_close() -> None:
    counts = Counter({("post", "received", ""): 1, ("post", "vanished", ""): 1})
    assert not balance(counts, "post").closes


def test_nothing_received_closes() -> None:
    found = balance(Counter(), "frame")
    assert found.closes
    assert str(found) == "frame: received 0 = 0"


def test_a_balance_is_shown_without_what_did_not_happen() -> None:
    assert str(Balance("post", 1234, {"kept": 1200, "updated": 0, "stale": 34})) == (
        "post: received 1,234 = kept 1,200 + stale 34"
    )
    assert str(Balance("post", 3, {"kept": 2})) == "post: received 3 = kept 2   DOES NOT CLOSE"


def test_reasons_come_with_the_most_frequent_first() -> None:
    assert list(reasons(COUNTS, "post", "rejected").items()) == [("language", 3), ("adult", 1)]
    assert list(reasons(COUNTS, "frame", "ignored").items()) == [("unknown_kind", 2), ("text", 1)]
    assert reasons(COUNTS, "frame", "commit") == {}


def test_the_status_is_shown_line_by_line() -> None:
    status = {
        "data_dir": "/data",
        "journal_bytes": 12_345_678,
        "hosts": [
            {"host": "wss://a", "epoch": 2, "cursor": 17, "event_at": "x", "lag_s": 1234.5},
            {"host": "wss://b", "epoch": 1, "cursor": None, "event_at": None, "lag_s": None},
        ],
        "balances": [{"unit": "post", "received": 2, "outcomes": {"kept": 2}, "closes": True}],
        "rejected": {"language": 3000, "adult": 1},
        "quarantined": {"frame": {"undecodable": 2}, "post": {}},
        "gaps": [{"host": "wss://a", "epoch": 1, "cause": "renumbered", "after_seq": 9, "at": "x"}],
        "changes_to_follow": 5,
        "waiting": 1995,
        "labelled": 10,
        "failed": 3,
        "failed_by_reason": {"empty": 1, "refusal": 2},
        "spend": [
            {
                "model": "a",
                "calls": 2,
                "tokens_in": 1500,
                "tokens_out": 20,
                "cost": 0.5,
                "tokens_today": 1520,
                "cost_today": 0.25,
            },
            {
                "model": "b",
                "calls": 1,
                "tokens_in": 100,
                "tokens_out": 10,
                "cost": 0.0,
                "tokens_today": 110,
                "cost_today": 0.0,
            },
        ],
        "currency": "EUR",
        "unstored": 4,
    }
    assert as_text(status).split("\n") == [
        "data directory   /data",
        "journal          12.3 MB in use",
        "host             wss://a  epoch 2  cursor 17  lag 1,234.5 s",
        "host             wss://b  epoch 1  cursor None  lag -",
        "balance          post: received 2 = kept 2",
        "rejected         language 3,000, adult 1",
        "quarantined      frames: undecodable 2",
        "gap              wss://a epoch 1 after 9: renumbered",
        "labels           waiting 2,000, labelled 10, failed 3",
        "failed           refusal 2, empty 1",
        "spend            a: 2 calls, 1,520 tokens, 0.50 EUR; today 1,520 tokens, 0.25 EUR",
        "spend            b: 1 calls, 110 tokens; today 110 tokens",
        "store            4 documents wait",
    ]
