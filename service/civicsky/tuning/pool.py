"""Training posts that can be examples, each with all that an example needs.

What people did not say, and an example must, a model says under the old task: the other fields, the reason, which of
the words that stand for a value. Where its answer does not agree with people's, the post is no example.
"""

from collections.abc import Callable, Sequence

from civicsky.model import Answer, Asked
from civicsky.research.gold import Gold
from civicsky.task import Task
from civicsky.tuning import candidates
from civicsky.tuning.asked import Asker
from civicsky.tuning.candidates import Fit, Shot


class Pool:
    """Makes it, asking where it must."""

    def __init__(
        self,
        asker: Asker,
        gold: Gold,
        base: Task,
        field: str,
        seed: int,
        max_chars: int,
        begin: Callable[[str, int], None],
    ) -> None:
        """`begin`: is told what is asked next, and about how many posts."""
        self._asker, self._base, self._field, self._begin = asker, base, field, begin
        self._fits = candidates.fits(gold.items, base, field, gold.fields, seed)
        self._asked = {fit.item.key: Asked((fit.item.text or "")[:max_chars]) for fit in self._fits}

    async def of_json(self) -> list[Shot]:
        """For `[[examples]]`."""
        base = self._base
        lacking = [fit for fit in self._fits if not fit.whole or base.reason]
        answers = await self._answers("training posts", base, lacking)
        shots = []
        for fit in self._fits:
            if fit.whole and not base.reason:
                shots.append(Shot(fit.item.text or "", fit.value, fit.answer, None, "", fit.item.uri))
                continue
            said = answers.get(self._asked[fit.item.key])
            if said is None or (base.reason and not said.reason):
                continue
            answer = {name: label.value for name, label in said.fields.items()}
            if all(answer.get(name) == value for name, value in fit.answer.items()):
                shots.append(Shot(fit.item.text or "", fit.value, answer, said.reason, "", fit.item.uri))
        return shots

    async def of_words(self) -> list[Shot]:
        """For `[[words]]`."""
        shots = []
        for value in sorted({fit.value for fit in self._fits}):
            fits = [fit for fit in self._fits if fit.value == value]
            words = candidates.words_of(self._base, self._field, value)
            chosen: dict[Asked, Answer] = {}
            if len(words) > 1:
                task = candidates.choosing(self._base, self._field, value)
                chosen = await self._answers(f"training posts: {value}", task, fits)
            for fit in fits:
                said = chosen.get(self._asked[fit.item.key])
                word = said.fields[self._field].value if said else words[0] if len(words) == 1 else ""
                if word:
                    shots.append(Shot(fit.item.text or "", value, {}, None, word, fit.item.uri))
        return shots

    async def _answers(self, what: str, task: Task, fits: Sequence[Fit]) -> dict[Asked, Answer]:
        posts = [self._asked[fit.item.key] for fit in fits]
        if not posts:
            return {}
        self._begin(what, len(set(posts)))
        return await self._asker.ask(task, posts)
