from collections import Counter
from typing import Any, get_args

from civicsky.coverage import Hours, Stretch, cover
from civicsky.model import FrameOutcome, Gap, Held, Opened, PostOutcome
from civicsky.status import Balance, _strip, _window_text, as_text, balance, reasons, window_shown

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


def test_a_windows_state_is_shown_and_its_gaps_are_not_troubles() -> None:
    status: dict[str, Any] = {
        "data_dir": "/data", "journal_bytes": 0, "hosts": [], "balances": [], "rejected": {}, "quarantined": {},
        "gaps": [{"host": "wss://a", "epoch": 1, "cause": "window", "after_seq": 9, "at": "x"}],
        "changes_to_follow": 0, "waiting": 0, "labelled": 0, "failed": 0,
        "window": {"from": "16:00", "to": "20:00", "zone": "America/Chicago", "resume": "live", "open": False,
                   "until": "2026-05-05T21:00:00.000Z", "why": ""},
    }  # fmt: skip
    line = "window           16:00 to 20:00 America/Chicago, resume live; closed until 2026-05-05T21:00:00.000Z"
    assert as_text(status).split("\n")[2:-1] == [line]
    status["window"]["why"] = "limit of 5 posts kept in an opening"
    assert as_text(status).split("\n")[2] == line + " (limit of 5 posts kept in an opening)"


HOURS = Hours(wanted=[(0, 4_000_000), (10_000_000, 14_000_000), (20_000_000, 24_000_000)])
TOLD = {"from": "16:00", "to": "20:00", "zone": "UTC", "resume": "live"}


def an_hours_coverage() -> dict[str, Any]:
    held = [Held("wss://a", 1, "first", 1, 2, 1_000_000, 4_000_000, 50),
            Held("wss://a", 1, "gap", 3, 4, 21_000_000, 24_000_000, 50)]  # fmt: skip
    gap = Gap("wss://a", 1, "window", 2, 5, 4_000_000, 3, 21_000_000)
    opened = [Opened(0, 4_000_000, "live", 30, 20, "", None), Opened(20_000_000, 24_000_000, "live", 9, 5, "", None)]
    found = window_shown(TOLD, cover(held, [gap], HOURS), HOURS, opened)
    assert found is not None
    return found


def test_the_share_of_a_windows_hours_is_told_beside_that_of_the_whole_time() -> None:
    """Three openings of 4 s: the first from its second second on, when the collection began, the second missed."""
    found = an_hours_coverage()
    assert [(one["seconds"], one["seconds_held"], one["why"]) for one in found["openings"]] == [
        (3, 3, "its hours were over"), (4, 0, "nothing was collected"), (4, 3, "its hours were over")
    ]  # fmt: skip
    assert found["share_held"] == 6 / 11


def test_each_opening_has_a_line() -> None:
    first, *rest = _window_text(an_hours_coverage())
    assert first == "window           16:00 to 20:00 UTC, resume live: 54.5455% of its hours held, 3 openings"
    assert [line.partition("Z  ")[2] for line in rest] == [
        "live  100.0000% held, 30 posts, 20 kept; its hours were over",
        "-  0.0000% held, 0 posts, 0 kept; nothing was collected",
        "live  75.0000% held, 9 posts, 5 kept; its hours were over",
    ]


def test_without_a_window_nothing_is_told_of_one() -> None:
    assert window_shown({}, cover([], []), Hours(), []) is None


def test_closed_hours_are_drawn_otherwise_than_lost_ones() -> None:
    stretches = [Stretch(0, 24, "held"), Stretch(24, 48, "window"), Stretch(48, 72, "not_collected")]
    assert _strip(stretches) == "█" * 24 + "·" * 24 + " " * 24
