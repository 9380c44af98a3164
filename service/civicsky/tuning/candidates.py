"""What is tried: a wording and a few-shot set, and the task that they make of the old one. Pure."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Final, Literal, NamedTuple

from civicsky.errors import Usage
from civicsky.prompt import prompt_hash
from civicsky.research.figures import truths
from civicsky.research.gold import Item
from civicsky.task import Example, Field, Task, Words

Kind = Literal["words", "json"]
"""Which examples a model is shown: those of `[[words]]`, or `[[examples]]`."""

LONGEST: Final = 300
"""Characters of a post that may be an example: as many as a post itself may have. Link cards make texts longer."""
POOL: Final = 40
"""Posts of each value from which sets are drawn: what a set costs beforehand, and what a search can learn of each."""


class Wording(NamedTuple):
    """How the question is put. Of the fields' values it says nothing: they are the old task's."""

    name: str
    definition: str
    descriptions: dict[str, str]
    """By field."""
    asks: dict[str, str]
    """By field, of the way `words`."""


class Shot(NamedTuple):
    """One post that can be an example, with all that an example needs."""

    text: str
    value: str
    """Of the field that decides."""
    answer: dict[str, str]
    reason: str | None
    word: str
    """Kind `words`: the word that is the answer."""
    uri: str | None


class Candidate(NamedTuple):
    """One thing to try, as numbers, so that a search can make it."""

    wording: int
    shots: tuple[int, ...]
    """Places in the pool, in their order in the prompt."""
    keep: bool
    """Whether the old examples stand before them."""


class Space(NamedTuple):
    """All that can be tried."""

    base: Task
    field: str
    kind: Kind
    wordings: tuple[Wording, ...]
    """The first is the old one."""
    pool: tuple[Shot, ...]
    sizes: tuple[int, ...]
    """How many examples a set may have."""
    keeps: tuple[bool, ...]

    def by_value(self) -> list[list[int]]:
        """The pool's places, for each value that has any."""
        found: dict[str, list[int]] = {}
        for at, shot in enumerate(self.pool):
            found.setdefault(shot.value, []).append(at)
        return [found[value] for value in sorted(found)]

    def task(self, candidate: Candidate) -> Task:
        """The task that is asked about. It has the old one's name, since that is part of a prompt."""
        shots = [self.pool[at] for at in candidate.shots]
        return made(self, self.wordings[candidate.wording], shots, keep=candidate.keep)

    def prompt(self, candidate: Candidate) -> str:
        """Two candidates of one prompt are the same."""
        return prompt_hash(self.task(candidate), "words" if self.kind == "words" else "schema")


def made(space: Space, wording: Wording, shots: Sequence[Shot], *, keep: bool) -> Task:
    """The old task in another wording, with these examples of the kind."""
    base = space.base
    update: dict[str, object] = {}
    if space.kind == "words":
        update["words"] = tuple(
            words.model_copy(
                update={
                    "ask": wording.asks.get(words.field, words.ask),
                    **({"examples": _pairs(words, shots, keep=keep)} if words.field == space.field else {}),
                }
            )
            for words in base.words
        )
    else:
        own = base.examples if keep else ()
        drawn = tuple(Example(post=shot.text, answer=shot.answer, reason=shot.reason) for shot in shots)
        update |= {"definition": wording.definition, "examples": own + drawn}
        update["fields"] = tuple(
            field.model_copy(update={"description": wording.descriptions.get(field.name, field.description)})
            for field in base.fields
        )
    return base.model_copy(update=update)


def _pairs(words: Words, shots: Sequence[Shot], *, keep: bool) -> tuple[tuple[str, str], ...]:
    return (words.examples if keep else ()) + tuple((shot.text, shot.word) for shot in shots)


def random_sets(space: Space, n: int, seed: int) -> list[Candidate]:
    """So many different sets under the old wording, balanced over the values; fewer when there are not so many."""
    rng = Random(f"sets {seed}")  # noqa: S311  (nobody is to be kept from guessing it)
    known = {space.prompt(Candidate(0, (), True))}
    found: list[Candidate] = []
    groups = space.by_value()
    for _ in range(20 * n):
        if len(found) == n or not groups:
            break
        size, keep = rng.choice(space.sizes), rng.choice(space.keeps)
        drawn = balanced(groups, size, rng)
        rng.shuffle(drawn)
        one = Candidate(0, tuple(drawn), keep)
        if (prompt := space.prompt(one)) not in known:
            known.add(prompt)
            found.append(one)
    return found


def balanced(groups: Sequence[Sequence[int]], size: int, rng: Random) -> list[int]:
    """So many places, in turn from each group, as long as there are any."""
    piles = [rng.sample(list(group), len(group)) for group in rng.sample(list(groups), len(groups))]
    drawn: list[int] = []
    while len(drawn) < size and any(piles):
        for pile in piles:
            if pile and len(drawn) < size:
                drawn.append(pile.pop())
    return drawn


# ---- the pool --------------------------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """A post that may be an example, and what people said of it."""

    item: Item
    value: str
    answer: dict[str, str]
    """Of the fields that apply, as far as they were judged."""
    whole: bool
    """Whether that is all of them; else a model must say the rest."""


def fits(items: Sequence[Item], task: Task, field: str, judged: Sequence[str], seed: int) -> list[Fit]:
    """Training posts for the pool: at most `POOL` of each value, drawn by the seed.

    Left out are long posts, and those of which people could not tell a field that applies: that teaches nothing.
    """
    held = {one.name: truths(items, one, judged) for one in task.fields}
    found: list[Fit] = []
    for item in items:
        answer: dict[str, str] = {}
        whole = True
        for one in task.fields:
            outcome, value = held[one.name][item.key]
            if any(name in answer and answer[name] != wanted for name, wanted in one.only_if.items()):
                continue
            if value is not None:
                answer[one.name] = value
            elif outcome == "not_judged":
                whole = False
            elif outcome != "not_applicable":
                break
        else:
            if field in answer and len(item.text or "") <= LONGEST:
                found.append(Fit(item, answer[field], answer, whole))
    Random(f"pool {seed}").shuffle(found)  # noqa: S311
    taken: dict[str, int] = {}
    pool = []
    for fit in found:
        if taken.get(fit.value, 0) < POOL:
            taken[fit.value] = taken.get(fit.value, 0) + 1
            pool.append(fit)
    return pool


def words_of(task: Task, field: str, value: str) -> list[str]:
    """The words that stand for a value."""
    (words,) = (words for words in task.words if words.field == field)
    return [word for word, meant in words.values.items() if meant == value]


def choosing(task: Task, field: str, value: str) -> Task:
    """A task whose answer is one of the words that stand for a value, each word being a value of its own.

    A post that people gave the value may be an example with any of them; a model says which one it would continue with.
    """
    (words,) = (words for words in task.words if words.field == field)
    chosen = words_of(task, field, value)
    return task.model_copy(
        update={
            "fields": (Field(name=field, values=tuple(chosen), description=value),),
            "boundaries": (),
            "examples": (),
            "words": (
                words.model_copy(
                    update={
                        "values": {word: word for word in chosen},
                        "examples": tuple(pair for pair in words.examples if pair[1] in chosen),
                    }
                ),
            ),
        }
    )


def own_shots(task: Task, field: str, kind: Kind) -> list[Shot]:
    """The task's own examples as a pool, for those who want no posts of others in the file."""
    if kind == "json":
        return [
            Shot(one.post, one.answer[field], one.answer, one.reason, "", None)
            for one in task.examples
            if field in one.answer
        ]
    (words,) = (words for words in task.words if words.field == field)
    return [Shot(text, words.values[word], {}, None, word, None) for text, word in words.examples]


# ---- wordings --------------------------------------------------------------------------------------------------------


def wording_of(name: str, task: Task) -> Wording:
    """A task file's wording."""
    return Wording(
        name,
        task.definition,
        {field.name: field.description for field in task.fields},
        {words.field: words.ask for words in task.words},
    )


def check_same(base: Task, other: Task, name: str) -> None:
    """Raises `Usage` unless the other task differs in words only, not in what may be answered."""
    ours, theirs = (
        [(field.name, field.values, field.only_if, field.unclear) for field in task.fields] for task in (base, other)
    )
    if ours != theirs:
        raise Usage(f"--wordings: {name} has other fields or values than the task; a wording changes words only")


def written_request(task: Task, kind: Kind, field: str, number: int) -> list[dict[str, str]]:
    """What a model is asked for another wording. No post is in it: it could dictate the words that judge all others."""
    if kind == "words":
        (words,) = (words for words in task.words if words.field == field)
        what = (
            "Below is a template that a language model continues with one word. Write another template for the same "
            f'question (number {number}, worded otherwise than you would first). It contains "{{post}}" exactly once, '
            "where the post stands, and ends where the word is to come. Answer with one JSON object and nothing else: "
            '{"ask": "..."}.'
        )
        told = f"Template: {words.ask}\nThe words: {', '.join(words.values)}"
    else:
        what = (
            "Below are the instructions by which a language model labels posts. Write them anew, clearer and without "
            f"changing what any label means (version {number}, worded otherwise than you would first). Answer with one "
            'JSON object and nothing else: {"definition": "...", "descriptions": {"FIELD": "..."}}, with one '
            "description for each field."
        )
        fields = [f"Field {one.name}, one of {list(one.values)}: {one.description.strip()}" for one in task.fields]
        told = "\n".join([f"Definition: {task.definition.strip()}", *fields])
    return [{"role": "system", "content": what}, {"role": "user", "content": told}]


def read_written(task: Task, kind: Kind, field: str, name: str, said: Mapping[str, object]) -> Wording | None:
    """The wording that a model wrote; None when it is of no use: not text, far longer than ours, or without its place.

    It stands in every prompt, so it is held to plain text of one kind: printable, and without angle brackets.
    """
    own = wording_of(name, task)
    if kind == "words":
        ask = said.get("ask")
        if not isinstance(ask, str) or ask.count("{post}") != 1 or not _plain(ask.replace("\n", " "), own.asks[field]):
            return None
        return own._replace(asks={**own.asks, field: ask.rstrip(" ")})
    definition, descriptions = said.get("definition"), said.get("descriptions")
    if not isinstance(definition, str) or not _plain(definition, own.definition) or not isinstance(descriptions, dict):
        return None
    chosen = dict(own.descriptions)
    for one, text in descriptions.items():
        if one not in chosen or not isinstance(text, str) or not _plain(text, own.descriptions[one]):
            return None
        chosen[one] = text
    return own._replace(definition=definition, descriptions=chosen)


def _plain(text: str, ours: str) -> bool:
    return bool(text.strip()) and text.isprintable() and not set("<>") & set(text) and len(text) <= 3 * len(ours) + 200
