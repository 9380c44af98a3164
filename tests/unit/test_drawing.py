import pytest
from hypothesis import given, strategies as st

from civicsky.shown import MAX_SHOWN, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\nand more", "plain\nand more"),
        ("a\u202eb", "a\u2039U+202E\u203ab"),
        ("\x00\x1b[31m\u200b\ufeff", "\u2039U+0000\u203a\u2039U+001B\u203a[31m\u2039U+200B\u203a\u2039U+FEFF\u203a"),
        ("\U000e0041", "\u2039U+E0041\u203a"),
        ("\r\n\u2028", "\u2039U+000D\u203a\n\u2039U+2028\u203a"),
        ("👩\u200d🚒 é", "👩\u200d🚒 é"),
        ("Z" + "\u0301" * 9 + "a\u0301", "Z" + "\u0301" * 4 + "a\u0301"),
        ("x" * (MAX_SHOWN + 1), "x" * MAX_SHOWN + "\u2026"),
    ],
)
def test_what_moves_hides_or_turns_other_text_is_named(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text())
def test_any_text_is_bounded_and_can_be_written(text: str) -> None:
    shown = visible(text)
    assert len(shown) <= MAX_SHOWN * len("<U+10FFFF>") + 1
    shown.encode()
