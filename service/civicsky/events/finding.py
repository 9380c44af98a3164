"""Which articles a post is about: what is looked for, and what of it is used. Pure."""

import re
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

MAX_TERMS: Final = 24
"""Terms looked for, of each kind; a post has 300 characters, its link card may have more."""
SHARED_WORDS: Final = 2
"""Words, none of them a name, that an article must share with a post that names no other way what it is about."""
_WORD: Final = re.compile(r"[^\W\d_][\w'\u2019-]*[^\W_]|\d{3,}", re.UNICODE)
_ENDS: Final = re.compile(r"[.!?:;\n\"\u201c(]\s*$")
_MIN_WORD: Final = 4
_COMMON: Final = frozenset(
    """
    about after again against already also always another anyone anything around away back because been before being
    between both came cannot com come could does doing done down each else even ever every everyone everything first
    from gets getting give goes going gonna good great have having here himself http https into it's itself just
    keep know last least less like literally little look made make making many maybe mean might more most much must
    myself need never next nobody nothing only other over people please post posted quite rather read really right
    said same says seen should since some somebody someone something soon still such sure take tell than that that's
    their them then there these they thing things think this those though through time today together tomorrow took
    under until upon very want wants well went were what when where which while whole whom whose will with within
    without won't work would www year years yesterday your yours
    """.split()  # noqa: SIM905  (a list of them would be a hundred lines)
)


class Terms(NamedTuple):
    """What an index is asked for."""

    names: tuple[str, ...]
    """Words written large within a sentence, in capitals, or as a hashtag, and long numbers."""
    words: tuple[str, ...]
    """Other words of four letters or more, without the most common ones."""


class Hit(NamedTuple):
    """An article that an index found for a post."""

    id: str
    title: str
    text: str
    outlet: str
    side: str
    at: int
    event: int
    """Articles about the same have the same number."""
    distance: float
    """Cosine distance between post and article, from 0 to 2."""
    named: bool
    """Whether it has a name of the post's, or several of its words."""


class Bounds(NamedTuple):
    """What may be used."""

    distance: float
    """At most."""
    since: int
    """Microseconds since 1970 UTC, inclusive."""
    until: int
    """Inclusive: the time of the post."""
    articles: int
    """At most."""


def terms(text: str) -> Terms:
    """What a post's text may name an event by. In lower case, each once."""
    names: dict[str, None] = {}
    words: dict[str, None] = {}
    for found in _WORD.finditer(text):
        word, low = found[0], found[0].lower()
        before = text[: found.start()]
        tagged = before.endswith("#")
        begins = not before.strip() or _ENDS.search(before[-3:]) is not None
        large = word[0].isupper() and (not begins or word.isupper())
        if low in _COMMON or len(word) < (2 if large or tagged else _MIN_WORD if word[0].isalpha() else 3):
            continue
        (names if tagged or large or word[0].isdigit() else words)[low] = None
    # A text in capitals throughout, or that writes every word large, names nothing by that.
    if len(names) > len(words) + 6:
        return Terms((), tuple([*names, *words][:MAX_TERMS]))
    return Terms(tuple(list(names)[:MAX_TERMS]), tuple(word for word in list(words) if word not in names)[:MAX_TERMS])


def is_named(shared: Collection[str], wanted: Terms) -> bool:
    """Whether an article that has these of the terms is named by the post."""
    return any(name in shared for name in wanted.names) or sum(word in shared for word in wanted.words) >= SHARED_WORDS


def chosen(hits: Iterable[Hit], bounds: Bounds, sides: Collection[str]) -> list[Hit]:
    """The articles to use, nearest first within a round: one of each side after the other.

    None is beyond the distance, after the post, or too old. No side of `sides` (all that the folder has) is ahead of
    another by more than one article: a folder that has only one side's reports of something must not decide by that
    what the post means.
    """
    left: dict[str, list[Hit]] = {}
    fit = (hit for hit in hits if hit.distance <= bounds.distance and bounds.since <= hit.at <= bounds.until)
    for hit in sorted(fit, key=_nearest):
        left.setdefault(hit.side, []).append(hit)
    found: list[Hit] = []
    whole = True
    while whole and any(left.values()):
        whole = all(left.get(side) for side in {*sides, *left})
        found += sorted((some.pop(0) for some in left.values() if some), key=_nearest)
    return found[: bounds.articles]  # of a last round the nearest: still no side is ahead by more than one


def _nearest(hit: Hit) -> tuple[float, str]:
    return hit.distance, hit.id
