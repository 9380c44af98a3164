"""A model asked about many posts, each answer kept on disk at once; for evaluations, whose posts have no ledger.

The file is a log of JSON lines that only grows: what it holds is never asked again, however the run before ended. The
key of a line is `Question.key`: the same question about the same text. A post's text is not in it, a reason may be.
"""

import asyncio
import fcntl
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self

from civicsky.errors import UNREACHABLE, BadInput, Failed, Transient, Usage
from civicsky.model import Answer, Asked, FieldLabel, Question, Spend, format_time, now_us
from civicsky.settings import Label

LONGEST_WAIT: Final = 900.0
"""Seconds: when a server allows no call for longer, the run ends and says so, instead of standing still."""
_SUM: Final = ("calls", "tokens_in", "tokens_out", "tokens_reasoning", "cost")


class SlotShape(Protocol):
    """See `label.Slot`."""

    async def probe(self) -> None:
        """Find out who the servers are. Raises `Transient`, `Refused`."""
        ...

    def delay(self) -> float:
        """Seconds until some server may be called."""
        ...

    def abilities(self) -> Mapping[str, str]:
        """What was found out about the servers, by their names."""
        ...

    def question(self, task_name: str) -> Question:
        """What would be asked now."""
        ...

    async def ask(self, task_name: str, posts: Sequence[Asked]) -> Sequence[Answer | BadInput]:
        """In the order asked. Raises `Transient`, `Refused`."""
        ...


class Kept:
    """The answers of a folder, on disk. Raises `Usage` when another process has it, `Failed` when a line is damaged."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.answers: dict[str, Answer] = {}
        self.at: dict[str, str] = {}
        """When each answer was given."""
        self.vain: dict[str, list[str]] = {}
        """By key the reasons why answers were of no use, in their order."""
        self.vain_spend: dict[str, Counter[str]] = {}
        self.abilities: dict[str, dict[str, str]] = {}
        """By `Asking.whom` what its servers can, by their names (`Slot.abilities`): that decides how they are asked, so
        the key of an answer."""

    def __enter__(self) -> Self:
        # Answers cost money, and may quote posts: nobody else reads them.
        try:
            fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Usage(f"{self._file}: {error.strerror}; name another folder with --out") from None
        self._stream = os.fdopen(fd, "r+b", buffering=0)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self._stream.close()
            raise Usage(f"{self._file} is in use by another run; wait, or name another --out") from None
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def keep(self, key: str, answer: Answer) -> None:
        """A paid answer is on disk when this returns."""
        fields = {name: list(label) for name, label in answer.fields.items()}
        self._write({"key": key, "answer": {**answer.plain(), "fields": fields}})

    def keep_vain(self, key: str, bad: BadInput) -> None:
        """So is what was paid in vain."""
        spend = bad.spend._asdict() if isinstance(bad.spend, Spend) else {}
        self._write({"key": key, "failed": bad.reason, "spend": spend})

    def keep_abilities(self, whom: str, abilities: Mapping[str, str]) -> None:
        """Remember them for the next run."""
        if self.abilities.get(whom, {}) != abilities:
            self._write({"whom": whom, "abilities": dict(abilities)})

    def _write(self, line: dict[str, Any]) -> None:
        line["at"] = format_time(now_us())
        self._stream.write(json.dumps(line).encode() + b"\n")
        os.fsync(self._stream.fileno())
        self._take(line)

    def _read(self) -> None:
        whole = 0
        for number, data in enumerate(self._stream.readall().split(b"\n")[:-1], 1):  # behind the last: cut by a kill
            try:
                self._take(json.loads(data))
            except (ValueError, KeyError, TypeError, RecursionError):
                raise Failed(f"{self._file}, line {number}: damaged; delete the line, or name another --out") from None
            whole += len(data) + 1
        self._stream.truncate(whole)
        self._stream.seek(whole)

    def _take(self, line: dict[str, Any]) -> None:
        if "abilities" in line:
            self.abilities[str(line["whom"])] = dict(line["abilities"])
            return
        key = line["key"]
        if "failed" in line:
            self.vain.setdefault(key, []).append(str(line["failed"]))
            spend = {name: line["spend"].get(name, 0) for name in _SUM}
            self.vain_spend.setdefault(key, Counter()).update(spend)
            return
        answer = line["answer"]
        fields = {name: FieldLabel(*label) for name, label in answer["fields"].items()}
        self.answers[key] = Answer(**{**answer, "fields": fields})
        self.at[key] = str(line["at"])


class Asking:
    """Everything that is to be asked of one model under one task, by as many callers as there are slots.

    Of each text that several items share one is asked. Raises `Failed` when the server does not answer at all, or will
    not for long; what was answered is kept.
    """

    def __init__(
        self,
        task: str,
        posts: Iterable[Asked],
        kept: Kept,
        settings: Label,
        tick: Callable[[], None],
    ) -> None:
        self._task, self._kept, self._settings, self._tick = task, kept, settings, tick
        self._posts = list(dict.fromkeys(posts))
        self._todo: deque[Asked] = deque()
        self._vain: dict[Asked, Counter[str]] = {}
        self._in_a_row = 0
        self.keys: dict[Asked, str] = {}
        """Of every post that was asked about, in this run or before."""
        self.unreached: dict[Asked, str] = {}
        """Posts that no answer was had for, though others were, by reason. They are asked again by the next run."""
        self.asked = 0
        """Answers that were had now."""

    async def run(self, slots: Sequence[SlotShape]) -> None:
        """Until each post has an answer, or cannot have one."""
        question = slots[0].question(self._task)
        for post in self._posts:
            if self._is_done(question.key(post), post):
                self._tick()
            else:
                self._todo.append(post)
        if self._todo:
            with suppress(Transient):  # asking will tell
                await slots[0].probe()
        try:
            async with asyncio.TaskGroup() as group:
                for number, slot in enumerate(slots):
                    group.create_task(self._call(slot), name=f"evaluate-{number}")
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None

    @staticmethod
    def whom(settings: Label) -> str:
        """Who is asked and how: what a server was found able to do is true of that."""
        return f"{settings.model} {settings.way}"

    def _is_done(self, key: str, post: Asked) -> bool:
        if key not in self._kept.answers and len(self._kept.vain.get(key, ())) < self._settings.attempts:
            return False
        self.keys[post] = key
        return True

    async def _call(self, slot: SlotShape) -> None:
        while self._todo:
            wait = slot.delay()
            if wait > LONGEST_WAIT:
                raise Failed(
                    f"the model's server allows no call for {wait / 3600:.1f} hours; run the same command again then: "
                    "what was answered is kept"
                )
            if wait:
                await asyncio.sleep(wait)
                continue
            # A post that came back is asked alone: it may be what spoilt the others' answer.
            n = 1 if self._todo[0] in self._vain else self._settings.posts_per_request
            posts = [self._todo.popleft() for _ in range(min(n, len(self._todo)))]
            try:
                answers = await slot.ask(self._task, posts)
            except Transient as error:
                self._failed(posts, error)
                continue
            self._in_a_row = 0
            self._kept.keep_abilities(self.whom(self._settings), slot.abilities())
            for post, answer in zip(posts, answers, strict=True):
                self._answered(slot, post, answer)

    def _answered(self, slot: SlotShape, post: Asked, answer: Answer | BadInput) -> None:
        if isinstance(answer, BadInput) and answer.reason == UNREACHABLE:
            self._given_back(post, "transport")
            return
        if isinstance(answer, Answer):
            key = answer.key
            self._kept.keep(key, answer)
            self.asked += 1
        else:
            key = slot.question(self._task).key(post)
            self._kept.keep_vain(key, answer)
        if self._is_done(key, post):
            self._tick()
        else:
            self._vain.setdefault(post, Counter())
            self._todo.append(post)

    def _failed(self, posts: Sequence[Asked], error: Transient) -> None:
        """The server could not. A post is given up after its bound of such calls, but only while others succeed."""
        if isinstance(error.spend, Spend) and not error.spend.calls:  # it was its turn that did not come
            self._todo.extend(posts)
            return
        self._in_a_row += 1
        bounds = self._settings.transport_attempts, self._settings.overload_attempts
        # Nobody there from the beginning is a wrong address more often than a server that will come back.
        if self._in_a_row > (max(bounds) if error.busy or self.asked else bounds[0]):
            raise Failed(f"{error}; what was answered is kept: run the same command again when it is well")
        for post in posts:
            self._given_back(post, "overload" if error.busy else "transport")

    def _given_back(self, post: Asked, kind: Literal["transport", "overload"]) -> None:
        """No answer was had for it: later, if its attempts are not used up."""
        vain = self._vain.setdefault(post, Counter())
        vain[kind] += 1
        if vain[kind] < getattr(self._settings, f"{kind}_attempts"):
            self._todo.append(post)
        else:
            self.unreached[post] = kind
            self._tick()


class Put:
    """Posts put to one model, in several goes; all that came of it. `begin` takes how many, and gives what ticks."""

    def __init__(
        self,
        task: str,
        kept: Kept,
        settings: Label,
        slots: Sequence[SlotShape],
        begin: Callable[[int], Callable[[], None]],
    ) -> None:
        self._task, self._kept, self._settings, self._slots, self._begin = task, kept, settings, slots, begin
        self.keys: dict[Asked, str] = {}
        """As `Asking.keys`, and so on."""
        self.unreached: dict[Asked, str] = {}
        self.asked = 0

    async def all(self, asked: Mapping[str, Asked]) -> None:
        """Until each of these, by item, has an answer or cannot have one. Errors as of `Asking`."""
        posts = list(dict.fromkeys(asked.values()))
        asking = Asking(self._task, posts, self._kept, self._settings, self._begin(len(posts)))
        await asking.run(self._slots)
        self.keys |= asking.keys
        self.unreached |= asking.unreached
        self.asked += asking.asked

    def answers(self, asked: Mapping[str, Asked]) -> dict[str, Answer]:
        """Of these, by item, those that have one."""
        known = self._kept.answers
        return {key: known[at] for key, post in asked.items() if (at := self.keys.get(post)) in known}

    def why(self, post: Asked) -> str:
        """Why a post has none."""
        return self.unreached.get(post) or self._kept.vain[self.keys[post]][-1]
