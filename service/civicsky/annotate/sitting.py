"""One person's way through a draw: what comes next, what is done, what may be answered. Pure.

Posts are named by their place in the person's own order, which says nothing of why they were drawn.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from civicsky.annotate.posts import State
from civicsky.annotate.votes import Vote, VoteKind
from civicsky.errors import Usage
from civicsky.model import FieldLabel
from civicsky.task import Task, applies

CANNOT_TELL: Final = "?"
"""Looked at, and nobody could say; as in GOLD."""
KEYS: Final = "123456789adeghijklmopqrtvwyz"
"""One for each value of a field, in order. What is missing are the page's own: `COMMANDS`."""
COMMANDS: Final = {
    "0": "can\u2019t tell",
    "x": "not English",
    "u": "undo",
    "b": "back",
    "f": "forth",
    "s": "skip",
    "n": "note",
    "c": "codebook",
}
MAX_NOTE: Final = 2_000
"""Characters of a note."""
MAX_NAME: Final = 60
"""Characters of an annotator's name."""

Standing = Literal["done", "skipped", "open", "away"]


class Known(NamedTuple):
    """What was last seen of a post."""

    state: State
    version: str


class Progress(NamedTuple):
    """How far a person is."""

    of: int
    """Posts to be answered, without those that are away."""
    done: int
    skipped: int
    """Put off, and not answered yet."""
    away: int
    """Deleted, hidden, or no longer held."""


class Sitting:
    """The way, as of now."""

    def __init__(
        self,
        order: Sequence[str],
        asked: Collection[str],
        votes: Iterable[Vote],
        kind: VoteKind,
        person: str,
        known: Mapping[str, Known],
    ) -> None:
        """`asked`: those of the posts that this person is asked about; `votes`: those that settle a post, in order.

        `known` may change meanwhile.
        """
        self._order, self._asked, self._known = order, asked, known
        self._said: dict[str, Vote] = {}
        self._skipped: set[str] = set()
        self._last: str | None = None
        for vote in votes:
            if vote.kind == "skip" and vote.annotator == person:
                self._skipped.add(vote.uri)
            elif vote.kind == kind and vote.english is not None:
                self._said[vote.uri] = vote
                if vote.annotator == person:
                    self._last = vote.uri

    def said(self, at: int) -> Vote | None:
        """The newest vote that settles a post, on the text that it has now."""
        uri = self._order[at]
        vote = self._said.get(uri)
        return vote if vote and vote.version == self._known[uri].version else None

    def standing(self, at: int) -> Standing:
        """What there is to do about a post."""
        if self._known[self._order[at]].state != "live":
            return "away"
        if self.said(at):
            return "done"
        return "skipped" if self._order[at] in self._skipped else "open"

    def next(self, after: int) -> int | None:
        """The next post to answer behind a place, round the end; those that were put off come last. None: all done."""
        places = [(after + step) % len(self._order) for step in range(1, len(self._order) + 1)]
        standing = {at: self.standing(at) for at in places if self._order[at] in self._asked}
        for wanted in ("open", "skipped"):
            for at, found in standing.items():
                if found == wanted:
                    return at
        return None

    def step(self, at: int, by: int) -> int | None:
        """The neighbour of a place, forth (1) or back (-1), that can be shown. None: there is none."""
        while 0 <= (at := at + by) < len(self._order):
            if self._order[at] in self._asked and self.standing(at) != "away":
                return at
        return None

    def last(self) -> int | None:
        """The post that was answered last, if it can be shown."""
        if self._last is None or self._known[self._last].state != "live":
            return None
        return self._order.index(self._last)

    def place(self, at: int) -> int:
        """Which one it is of those asked about that can be shown, from 1."""
        return sum(uri in self._asked and self._known[uri].state == "live" for uri in self._order[: at + 1])

    def progress(self) -> Progress:
        """How far it is."""
        found = [self.standing(at) for at, uri in enumerate(self._order) if uri in self._asked]
        away = found.count("away")
        return Progress(len(found) - away, found.count("done"), found.count("skipped"), away)


def disputed(votes: Mapping[str, Mapping[str, Vote]], known: Mapping[str, Known]) -> set[str]:
    """The posts on which those who voted on their present text differ. `votes`: the newest, by post and person."""
    found = set()
    for uri, by_person in votes.items():
        said = [(vote.english, vote.answers) for vote in by_person.values() if vote.version == known[uri].version]
        if any(one != said[0] for one in said):
            found.add(uri)
    return found


def checked(task: Task, answers: Any) -> dict[str, str]:
    """An answer as it is kept: exactly the fields that apply, each one of its values or "can't tell".

    Raises ValueError for anything else.
    """
    if not isinstance(answers, dict) or not all(isinstance(value, str) for value in answers.values()):
        raise ValueError("an answer is an object of texts")
    found: dict[str, str] = {}
    labels: dict[str, FieldLabel] = {}
    for field in task.fields:
        if not applies(field, labels):
            continue
        value = answers.get(field.name)
        if value not in (*field.values, CANNOT_TELL):
            raise ValueError(f"the field {field.name} applies and has no value of its own")
        found[field.name] = value
        labels[field.name] = FieldLabel(value, None)
    if found.keys() != answers.keys():
        raise ValueError("there are answers to what was not asked")
    return found


def keys_of(task: Task) -> dict[str, dict[str, str]]:
    """By field the values' keys. Raises `Usage` for a field with more values than there are keys."""
    for field in task.fields:
        if len(field.values) > len(KEYS):
            raise Usage(
                f"task {task.name}: the field {field.name!r} has more than {len(KEYS)} values; label it elsewhere"
            )
    return {field.name: dict(zip(KEYS, field.values, strict=False)) for field in task.fields}


def name_of(flag: str, given: str) -> str:
    """An annotator's name. Raises `Usage`."""
    name = given.strip()
    if not name:
        raise Usage(f"{flag}: who labels? give a name or a sign, the same one each time")
    if len(name) > MAX_NAME or not name.isprintable():
        raise Usage(f"{flag}: a name has {MAX_NAME} characters at most, on one line; give another")
    if name.casefold() == "adjudicated":
        raise Usage(f"{flag}: {name!r} is what GOLD calls the decided value; give another")
    return name
