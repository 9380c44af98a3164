"""What people write, for made-up frames: texts of the packaged sample, drawn as often as their languages are written.

Shares are those of the network's posts, roughly: 35 % English, a quarter Japanese, then Portuguese, German, Spanish.
"""

import json
from collections import defaultdict
from functools import cache
from importlib.resources import files
from random import Random
from typing import Final, NamedTuple

SHARES: Final = {
    "en": 35.0, "ja": 24.0, "pt": 11.0, "de": 6.0, "es": 6.0, "ko": 3.0, "fr": 3.0, "und": 3.0, "tr": 2.0, "it": 1.5,
    "nl": 1.5, "zh": 1.5, "id": 1.0, "pl": 0.5, "sv": 0.5, "uk": 0.5,
}  # fmt: skip
"""Percent of posts by the language that they are in; `und`: nobody can tell ("lol", emoji, nothing at all)."""
_WITHOUT_TAG: Final = 0.05
_WRONG_TAG: Final = 0.02
_TWICE: Final = 0.35
"""Share of texts that are two of the sample's, one after the other."""


class Text(NamedTuple):
    text: str
    lang: str
    """The language that it is in."""
    tags: list[str] | None
    """What its client said of that; None: nothing."""


def draw(random: Random) -> Text:
    """One post's text."""
    lang = random.choices(list(SHARES), cum_weights=_cumulated())[0]
    pool = _pool()[lang]
    text = random.choice(pool)
    if lang != "und" and random.random() < _TWICE:
        text += "\n\n" + random.choice(pool)
    return Text(text[:300], lang, _tags(random, lang))


def _tags(random: Random, lang: str) -> list[str] | None:
    chance = random.random()
    if chance < _WITHOUT_TAG:
        return None
    if lang == "und" or chance < _WITHOUT_TAG + _WRONG_TAG:
        return [random.choice(["en", "ja", "pt", "de"])]
    return [lang]


@cache
def _cumulated() -> list[float]:
    total, sums = 0.0, []
    for share in SHARES.values():
        total += share
        sums.append(total)
    return sums


@cache
def _pool() -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    truth = files("civicsky") / "data" / "sample" / "truth.jsonl"
    for line in truth.read_text(encoding="utf-8").strip().split("\n"):  # texts have other line ends in them
        post = json.loads(line)
        found[post["true_lang"]].append(post["text"])
    return found
