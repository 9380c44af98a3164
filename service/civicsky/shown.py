"""Texts of others as pages may show them: what is invisible in them is named, and their length is bounded. Pure.

Escaping is the page's business.
"""

import unicodedata
from typing import Final

MAX_SHOWN: Final = 1_000
"""Characters shown of a text."""
MAX_MARKS: Final = 4
"""Accents on one letter; more of them would paint over the lines around."""
_JOINERS: Final = frozenset("\u200d\u200c")
"""They make emoji, and letters of some scripts, out of several characters."""


def visible(text: str, most: int = MAX_SHOWN) -> str:
    """A text of others for a page: what would move, hide or turn other text is named instead; bounded."""
    shown: list[str] = []
    marks = 0
    for char in text[:most]:
        kind = unicodedata.category(char)
        marks = marks + 1 if kind in {"Mn", "Me"} else 0
        if marks > MAX_MARKS:
            continue
        if kind in {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"} and char not in _JOINERS and char != "\n":
            shown.append(f"\u2039U+{ord(char):04X}\u203a")
        else:
            shown.append(char)
    return "".join(shown) + ("\u2026" if len(text) > most else "")
