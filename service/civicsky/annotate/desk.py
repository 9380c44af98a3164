"""What the page is told, and what it may do: one person's desk, with everything looked up anew before it is shown.

Blind: a view has a post's text, the person's own answers and how far they are. No label, probability, author or
address, nor the draw's kind or seed, is in it. Who adjudicates also sees the others' votes, under letters.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from civicsky.annotate.draw import lettered, order_for
from civicsky.annotate.posts import Posts, Text
from civicsky.annotate.sitting import (
    COMMANDS,
    MAX_NOTE,
    Known,
    Sitting,
    checked,
    disputed,
    keys_of,
)
from civicsky.annotate.votes import Draw, NewVote, Vote, VoteKind, Votes, newest
from civicsky.shown import visible
from civicsky.task import Task

View = dict[str, Any]


class Desk:
    """One person at one draw."""

    def __init__(
        self, votes: Votes, posts: Posts, draw: Draw, task: tuple[Task, str], person: str, *, adjudicates: bool
    ) -> None:
        """`task`: it and the SHA-256 of its file."""
        self._votes, self._posts, self._draw = votes, posts, draw
        self._task, self._sha256 = task
        self._person, self._kind = person, "adjudication" if adjudicates else "vote"
        self._order: list[str] = []
        self._known: dict[str, Known] = {}

    @property
    def adjudicates(self) -> bool:
        """Whether decisions are made here."""
        return self._kind == "adjudication"

    async def prepare(self) -> None:
        """Look all posts up, and forget what was said of deleted ones."""
        items = await self._votes.items(self._draw.id)
        self._order = order_for(self._draw.seed, self._person, [item.uri for item in items])
        self._known = {item.uri: Known("deleted", "") for item in items}
        await self._look([item.uri for item in items if item.gone is None])

    async def begin(self) -> View:
        """All that the page needs, and the first post."""
        task = self._task
        keys = keys_of(task)
        same = f"{self._draw.id} {self._draw.seed} {self._kind} {self._person}"
        return {
            "desk": sha256(same.encode()).hexdigest()[:16],  # what was not sent before a restart belongs here
            "person": self._person,
            "adjudicates": self.adjudicates,
            "commands": COMMANDS,
            "task": {
                "name": task.name,
                "version": task.version,
                "definition": task.definition,
                "fields": [
                    {
                        "name": field.name,
                        "description": field.description,
                        "only_if": field.only_if,
                        "values": [{"key": key, "value": value} for key, value in keys[field.name].items()],
                    }
                    for field in task.fields
                ],
                "cases": [
                    *[{"post": one.post, "answer": one.answer, "why": one.why} for one in task.boundaries],
                    *[{"post": one.post, "answer": one.answer, "why": one.reason or ""} for one in task.examples],
                ],
            },
            "view": await self.next(-1),
        }

    async def told(self) -> str:
        """How far it is, for a terminal."""
        progress = (await self._sitting())[0].progress()
        away = f", {progress.away:,} no longer there" if progress.away else ""
        return f"{progress.done:,} of {progress.of:,} posts done{away}"

    async def next(self, after: int) -> View:
        """The next post to answer behind a place."""
        sitting, votes = await self._sitting()
        while (at := sitting.next(after) if self._order else None) is not None:
            if view := await self._view(at, sitting, votes):
                return view
        return {**self._progress(sitting), "over": True}

    async def step(self, at: int, by: int) -> View:
        """The neighbour of a place; the place itself where there is none."""
        sitting, votes = await self._sitting()
        self._want_place(at)
        wanted = at
        while (found := sitting.step(wanted, by)) is not None:
            if view := await self._view(found, sitting, votes):
                return view
            wanted = found
        return await self._view(at, sitting, votes) or await self.next(at)

    async def last(self) -> View:
        """The post that was answered last, to answer it again."""
        sitting, votes = await self._sitting()
        at = sitting.last()
        view = await self._view(at, sitting, votes) if at is not None else None
        return view or await self.next(-1)

    async def vote(self, said: Mapping[str, Any]) -> View:
        """Keep a vote or a skip, and give the next post. Raises ValueError for what is none."""
        at, kind, seen = said.get("at"), said.get("kind"), said.get("seen")
        self._want_place(at)
        assert isinstance(at, int)
        if kind not in ("vote", "skip"):  # no set: it may be a list
            raise ValueError("a vote is of the kind vote or skip")
        uri = self._order[at]
        await self._look([uri])
        state, version = self._known[uri]
        if state != "live":
            return {**await self.next(at), "told": "gone"}
        if seen != self._seal(uri):  # in whichever tab, and before whichever restart, it was read
            sitting, votes = await self._sitting()
            return {**(await self._view(at, sitting, votes) or await self.next(at)), "told": "edited"}
        await self._votes.keep(self._new(said, "skip" if kind == "skip" else self._kind, uri, version))  # type: ignore[arg-type]
        return await self.next(at)

    def _new(self, said: Mapping[str, Any], kind: VoteKind, uri: str, version: str) -> NewVote:
        """What is to be kept. Raises ValueError."""
        token, seconds, note, english = (said.get(name) for name in ("token", "seconds", "note", "english"))
        if not (isinstance(token, str) and token.isascii() and token.isprintable() and 16 <= len(token) <= 64):  # noqa: PLR2004
            raise ValueError("a vote has a token of its own")
        if not (isinstance(seconds, int | float) and 0 <= seconds < 1e6):  # noqa: PLR2004
            raise ValueError("seconds are a number, 0 or more")
        if not (isinstance(note, str) and len(note) <= MAX_NOTE):
            raise ValueError(f"a note is a text of {MAX_NOTE} characters at most")
        answers: dict[str, str] | None = None
        if kind == "skip":
            english, note = None, ""
        elif not isinstance(english, bool):
            raise ValueError("english is true or false")
        elif english:
            answers = checked(self._task, said.get("answers"))
        whole = note.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a pair cannot be written
        return NewVote(
            f"{self._draw.id} {token}", self._draw.id, uri, version, kind, self._person, self._task.version,
            self._sha256, english, answers, whole, float(seconds),
        )  # fmt: skip

    async def _sitting(self) -> tuple[Sitting, dict[str, dict[str, Vote]]]:
        """The way as of now, and, for who adjudicates, the others' votes on it."""
        if not self.adjudicates:
            mine = await self._votes.of(self._draw.id, self._person)
            return Sitting(self._order, self._known.keys(), mine, "vote", self._person, self._known), {}
        every = await self._votes.of(self._draw.id)
        votes = newest(every)
        # Whoever decided last, it is decided.
        asked = disputed(votes, self._known)
        return Sitting(self._order, asked, every, "adjudication", self._person, self._known), votes

    async def _view(self, at: int, sitting: Sitting, votes: Mapping[str, Mapping[str, Vote]]) -> View | None:
        """A post as the page gets it; None when it is not to be seen any more."""
        uri = self._order[at]
        text: Text | None = await self._look([uri])
        if text is None or self._known[uri].state != "live":
            return None
        said = sitting.said(at)
        view = {
            **self._progress(sitting),
            "over": False,
            "at": at,
            "place": sitting.place(at),
            "seen": self._seal(uri),
            "post": {"text": text.text, "link": text.link, "alts": text.alts},
            "said": _said(said, said.note) if said else None,
        }
        if self.adjudicates:
            others = {who: vote for who, vote in votes.get(uri, {}).items() if vote.version == self._known[uri].version}
            letters = lettered(self._draw.seed, uri, others)
            view["votes"] = [
                {"letter": letter, **_said(others[who], visible(others[who].note, MAX_NOTE))}
                for letter, who in letters.items()
            ]
        return view

    async def _look(self, uris: list[str]) -> Text | None:
        """Look posts up, and forget the deleted ones; the text of the last one that is live."""
        text: Text | None = None
        looks = await self._posts.look(uris, rejects=self._draw.kind == "rejects")
        for uri, look in looks.items():
            self._known[uri] = Known(look.state, look.version)
            text = look.text or text
        await self._votes.forget([uri for uri, look in looks.items() if look.state == "deleted"])
        return text

    def _seal(self, uri: str) -> str:
        """What a vote brings back of the text that it is on. It says nothing of the post."""
        return sha256(f"{self._draw.seed}\n{uri}\n{self._known[uri].version}".encode()).hexdigest()[:16]

    def _progress(self, sitting: Sitting) -> View:
        return {"progress": sitting.progress()._asdict(), "told": ""}

    def _want_place(self, at: Any) -> None:
        if not (isinstance(at, int) and not isinstance(at, bool) and 0 <= at < len(self._order)):
            raise ValueError("there is no such place")


def _said(vote: Vote, note: str) -> View:
    return {"english": vote.english, "answers": vote.answers or {}, "note": note}
