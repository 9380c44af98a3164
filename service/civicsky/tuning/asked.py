"""Questions of a tuning: put within a budget, each answer kept on disk at once, nothing asked twice.

What was spent is summed over what this run had need of, whether it was asked now or by a run before it. So a run that
was killed and begun again takes every decision as it did before.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from math import inf
from pathlib import Path
from typing import Any, Final, NamedTuple

from civicsky.errors import BadInput, Failed, Transient
from civicsky.label import Slot
from civicsky.model import Answer, Asked, Spend
from civicsky.research.answers import Asking, Kept
from civicsky.research.files import write_whole
from civicsky.settings import Label
from civicsky.task import Task
from civicsky.tuning.search import Spent

KEY: Final = "tuned"
"""By which the slots know the task that is asked about now."""
WRITTEN_TOKENS: Final = 2_000


class Budget(NamedTuple):
    """What a tuning may take in all its runs; None: as much as it needs."""

    calls: int | None = None
    tokens: int | None = None
    money: float | None = None
    """By `label.prices`."""

    def room(self, spent: Spend, more: Sequence[float]) -> bool:
        """Whether so many more (calls, tokens, money) are allowed."""
        used = (spent.calls, spent.tokens_in + spent.tokens_out, spent.cost)
        limits = (inf if limit is None else limit for limit in self)
        return all(one + other <= limit for one, other, limit in zip(used, more, limits, strict=True))


class Asker:
    """Asks one model in one way, a task at a time."""

    def __init__(
        self,
        label: Label,
        slots: Sequence[Slot],
        tasks: dict[str, Task],
        kept: Kept,
        budget: Budget,
        tick: Callable[[], None],
    ) -> None:
        """`tasks`: those of the slots, in which the one to be asked about is put under `KEY`."""
        self._label, self._slots, self._tasks, self._kept = label, slots, tasks, kept
        self._budget, self._tick = budget, tick
        self._most: tuple[float, ...] = (1.0, 0.0, 0.0)
        """(calls, tokens, money) for a post, under the dearest prompt so far."""
        self._counted: set[str] = set()
        self.reserve = 0
        """Questions that must be left for the end."""
        self.spent = Spend(label.model, 0, 0, 0)
        self.asked = 0
        """Answers that were had now."""
        self.model = label.model
        """As the servers are asked for it."""

    async def ask(self, task: Task, posts: Sequence[Asked], *, last: bool = False) -> dict[Asked, Answer]:
        """The answers of use; posts that had none are left out, and count as answered wrong.

        Raises `Spent` before the budget is, unless it is the last thing that is asked; `Failed` when questions could
        not be put: what was answered is kept.
        """
        bounded = not last and self._budget != Budget()
        step = max(16, 4 * len(self._slots)) if bounded else max(1, len(posts))
        found: dict[Asked, Answer] = {}
        for at in range(0, len(posts), step):
            self._tasks[KEY] = task
            if bounded:
                self._check(task, posts[at : at + step])
            asking = Asking(KEY, posts[at : at + step], self._kept, self._label, self._tick)
            await asking.run(self._slots)
            self.asked += asking.asked
            if asking.unreached:
                raise Failed(
                    f"{len(asking.unreached):,} questions could not be put; what was answered is kept: "
                    "run the same command again when the model is well"
                )
            self._count(asking.keys.values())
            found |= {post: self._kept.answers[key] for post, key in asking.keys.items() if key in self._kept.answers}
        return found

    def _check(self, task: Task, posts: Sequence[Asked]) -> None:
        question = self._slots[0].question(KEY)
        new = len({question.key(post) for post in posts} - self._counted)
        if new and not self._budget.room(self.spent, [each * (new + self.reserve) for each in self._most]):
            raise Spent(task.name)

    def _count(self, keys: Iterable[str]) -> None:
        """Add up what these questions took, each once."""
        new, before = set(keys) - self._counted, self.spent
        self._counted |= new
        for key in sorted(new):
            if answer := self._kept.answers.get(key):
                self.spent = self.spent.plus(answer.spend)
            if vain := self._kept.vain_spend.get(key):
                self.spent = self.spent.plus(_spend(self.spent.model, vain))
        if new:
            tokens = self.spent.tokens_in + self.spent.tokens_out - before.tokens_in - before.tokens_out
            took = (self.spent.calls - before.calls, tokens, self.spent.cost - before.cost)
            self._most = tuple(max(most, one / len(new)) for most, one in zip(self._most, took, strict=True))

    async def write(self, messages: list[dict[str, str]], folder: Path) -> dict[str, Any]:
        """The JSON object that the model answers with, kept in a file of its own; {} when it is of no use."""
        digest = hashlib.sha256(json.dumps([self._label.model, messages]).encode()).hexdigest()[:16]
        file = folder / f"wording-{digest}.json"
        if not file.exists():
            if not self._budget.room(self.spent, [each * (1 + self.reserve) for each in self._most]):
                raise Spent(file.name)
            try:
                text, spend = await self._slots[0].write(messages, WRITTEN_TOKENS)
            except BadInput as bad:
                text, spend = "", bad.spend
            except Transient as error:
                raise Failed(
                    f"{error}; what was answered is kept: run the same command again when it is well"
                ) from None
            write_whole(file, json.dumps({"text": text, "spend": spend._asdict()}) + "\n")
        told = json.loads(file.read_bytes())
        self.spent = self.spent.plus(_spend(self.spent.model, told["spend"]))
        try:
            value = json.loads(told["text"].strip().removeprefix("```json").removeprefix("```").removesuffix("```"))
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}


def _spend(model: str, told: Any) -> Spend:
    names = ("calls", "tokens_in", "tokens_out", "tokens_reasoning", "cost")
    return Spend(model, *(told.get(name, 0) for name in names))
