from typing import Any

import pytest

from civicsky.report import printable, rejects_text
from civicsky.share import Share
from unit.recorded import truth

# Wilson's interval with z = 1.959964, worked out by hand:
# centre = (p + z²/2n) / (1 + z²/n), half = z/(1 + z²/n) · √(p(1-p)/n + z²/4n²).
WILSON = [
    (0, 1, 0.0, 0.793451),
    (1, 1, 0.206549, 1.0),
    (0, 10, 0.0, 0.277533),
    (10, 10, 0.722467, 1.0),
    (5, 10, 0.236593, 0.763407),
    (1, 2, 0.094531, 0.905469),
    (50, 100, 0.403832, 0.596168),
    (1, 100, 0.001767, 0.054487),
    (500_000, 1_000_000, 0.499020, 0.500980),
]


# Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
PUBLISHED = [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]


@pytest.mark.parametrize(("hits", "n", "low", "high"), WILSON)
def test_a_shares_interval_is_wilsons(hits: int, n: int, low: float, high: float) -> None:
    assert Share(hits, n).interval() == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize(("hits", "n", "low", "high"), PUBLISHED)
def test_a_shares_interval_is_the_published_one(hits: int, n: int, low: float, high: float) -> None:
    assert Share(hits, n).interval() == pytest.approx((low, high), abs=5e-5)


def test_without_data_any_share_is_possible() -> None:
    assert Share(0, 0).interval() == (0.0, 1.0)
    assert str(Share(0, 0)) == "no data"


def test_an_interval_never_leaves_the_possible_and_holds_the_share() -> None:
    for n in (1, 2, 3, 7, 50, 999):
        for hits in range(0, n + 1, max(1, n // 13)):
            low, high = Share(hits, n).interval()
            assert 0 <= low <= hits / n + 1e-12
            assert hits / n - 1e-12 <= high <= 1
            assert (low, high) == pytest.approx(tuple(1 - end for end in reversed(Share(n - hits, n).interval())))


def test_a_share_is_shown_with_its_interval_and_number() -> None:
    assert str(Share(81, 263)) == "0.308  [0.255, 0.366]  n = 263"
    assert str(Share(1, 2000)) == "0.001  [0.000, 0.003]  n = 2,000"
    assert str(Share(3, 3)) == "1.000  [0.439, 1.000]  n = 3"


# ---- texts on a terminal ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("plain", "plain"),
        ("é 日本 🔥", "é 日本 🔥"),
        ("a\nb\r\n\tc", "a b c"),
        ("  a   b  ", "a b"),
        ("a\u2028b\u2029c\u0085d", "a b c d"),
        ("\x1b[31mred\x1b[0m", "?[31mred?[0m"),
        ("\x1b]0;title\x07", "?]0;title?"),
        ("a\0b\x7fc\x9bd", "a?b?c?d"),
        ("\u202eabc\u202c", "?abc?"),
        ("\u2066a\u2069\u061c\u200f\u200e", "?a????"),
        ("a\u200bb\ufeffc\u00add", "a?b?c?d"),
        ("\ue000\U000f0000", "??"),
        ("a\udcffb", "a?b"),
        ("\U000e0041", "?"),
    ],
)
def test_a_text_is_shown_on_one_line_without_characters_that_move_or_turn_it(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_text_that_is_too_long_is_cut_and_says_so() -> None:
    assert printable("x" * 100) == "x" * 100
    assert printable("x" * 101) == "x" * 99 + "…"
    assert printable("abcdef", 4) == "abc…"


def test_every_text_of_the_sample_is_shown_on_one_line() -> None:
    for row in truth():
        shown = printable(row["text"], 80)
        assert len(shown) <= 80
        assert len(shown.splitlines()) == (1 if row["text"].strip() else 0)
        assert shown.isprintable()


def test_the_list_of_rejected_posts_shows_text_only_where_there_is_one() -> None:
    rows: list[dict[str, Any]] = [
        {"kind": "rejected", "why": "language", "uri": "at://a", "text": "Guten\nTag\x1b"},
        {"kind": "flagged", "why": "graphic", "uri": "at://b", "text": None},
    ]
    assert rejects_text(rows) == (
        "rejected  language     at://a  Guten Tag?\n"
        "flagged   graphic      at://b"
    )  # fmt: skip
    assert rejects_text([]) == "nothing was rejected or flagged"
