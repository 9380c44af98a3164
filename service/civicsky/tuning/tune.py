"""`civicsky dev tune`: a task's few-shot examples and wording are made better on judged posts.

    training     examples are drawn from it
    validation   candidates are judged on it, so the chosen one's figures there are too good
    held-out     opened once the choice is on disk; old and new task are asked about it, and the difference is reported

Beside the new task file NEW.toml lies a folder NEW.tuning: the three parts, every answer as it comes, the choice, all
figures, and what is told of them. The same command goes on where a killed one stopped, and asks nothing twice.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from civicsky import __version__
from civicsky.errors import Usage, first_of
from civicsky.local import find_weights
from civicsky.model import Answer, Asked, Spend, format_time, now_us
from civicsky.prompt import Way, prompt_hash
from civicsky.research import figures
from civicsky.research.answers import Asking, Kept
from civicsky.research.files import TaskID, progress_bars, shown_in, write_whole
from civicsky.research.gold import Gold, Item, without_shown
from civicsky.settings import Label, Settings
from civicsky.slots import model_slots
from civicsky.task import Field, Task, file_hash, load_task
from civicsky.tuning import candidates, told
from civicsky.tuning.asked import KEY, Asker
from civicsky.tuning.candidates import Candidate, Kind, Shot, Space, Wording
from civicsky.tuning.new_file import new_text
from civicsky.tuning.pool import Pool
from civicsky.tuning.search import KEEP, Judged, Spent, best_first, halve, rungs, score, spread
from civicsky.tuning.split import HELD_OUT, TRAINING, VALIDATION, Order, read_part, split
from civicsky.tuning.wanted import CHOICE, Wanted, asks_by_words, field_of, label_of, prepare, wordings_of

ANSWERS: Final = "answers.jsonl"
FIGURES: Final = "figures.json"
REPORT: Final = "report.txt"


class Done(NamedTuple):
    """What came of it."""

    found: dict[str, Any]
    """All figures, as JSON values."""
    text: str
    """For a terminal."""


def tune(settings: Settings, wanted: Wanted, say: Callable[[str], None]) -> Done:
    """Split, search, choose, and hold the choice against the old task; `say` tells what the user should know meanwhile.

    Raises `CivicskyError` with one line for the user.
    """
    base, text = load_task(wanted.task)
    field = field_of(base, wanted)
    label = label_of(settings, wanted)
    kind: Kind = "words" if asks_by_words(label, base) else "json"
    if kind == "words" and field.name not in [words.field for words in base.words]:
        raise Usage(f"--field {field.name}: the task has no words for it; name another, or another --way")
    if wanted.search == "tpe":
        from civicsky.tuning import tpe  # noqa: F401, PLC0415  (an extra: better told now than after the first answers)
    wordings = wordings_of(base, wanted)
    folder = prepare(wanted)
    if settings.context.quote or settings.context.root or settings.context.parent:
        say("context.*: posts are asked about alone here, without what stands around them")
    with Kept(folder / ANSWERS) as kept:
        record = split(Order(wanted.gold, folder, base, field.name, wanted.seed, settings))
        plan = _Plan(wanted, base, text, field, kind, label, wordings, folder, record)
        try:
            return asyncio.run(_Run(plan, kept).run())
        except BaseExceptionGroup as several:  # the local model is watched beside it
            raise first_of(several) from None


class _Plan(NamedTuple):
    """All that is known before the first question."""

    wanted: Wanted
    base: Task
    text: str
    field: Field
    kind: Kind
    label: Label
    wordings: tuple[Wording, ...]
    folder: Path
    record: Mapping[str, Any]
    """Of the split."""


class _Part(NamedTuple):
    """Posts to be asked about, with what people hold of the field that decides."""

    gold: Gold
    items: list[Item]
    values: list[str]
    asked: list[Asked]

    def given(self, answers: Mapping[Asked, Answer], field: str, n: int | None = None) -> list[str | None]:
        """What the answers say of the first so many; None where there is none of use."""
        labels = [answers[post].fields.get(field) if post in answers else None for post in self.asked[:n]]
        return [label.value if label else None for label in labels]


class _Run:
    """From the split to the new file."""

    def __init__(self, plan: _Plan, kept: Kept) -> None:
        self._plan, self._kept = plan, kept
        self._progress = progress_bars(logged=True)
        self._bar: TaskID | None = None
        self._useless = 0
        """Wordings that the model wrote and that are of no use."""

    async def run(self) -> Done:
        """All of it."""
        async with self._asker() as asker:
            validation = self._part(VALIDATION)
            try:
                old = await self._about("the old task", asker, self._plan.base, validation)
                space = await self._space(asker)
            except Spent:
                raise Usage("the budget does not reach beyond the old task's answers; allow more") from None
            old_score = self._score(validation, old)
            judged = await self._search(space, asker, validation)
            best = judged[0] if judged else None
            if best is None or best.score <= old_score:
                return self._nothing_better(old_score, best, asker)
            new, version = space.task(best.candidate), self._version(space.task(best.candidate))
            on_validation = await asker.ask(new, validation.asked, last=True)
            at = self._choose(new, version, best, old_score)
            held_out = self._without(self._part(HELD_OUT), [self._plan.base, new])
            old_last = await self._about("held-out: the old task", asker, self._plan.base, held_out, last=True)
            new_last = await self._about("held-out: the new task", asker, new, held_out, last=True)
            shots = [space.pool[shot] for shot in best.candidate.shots]
            sides = {
                "validation": self._side(validation, old, on_validation),
                "held_out": self._side(held_out, old_last, new_last),
            }
            told_by = {"wording": space.wordings[best.candidate.wording].name, "way": _ways(new_last)}
            found = self._found(asker) | {"at": at} | told_by | sides
            return self._written(new.model_copy(update={"version": version}), best, shots, found)

    @asynccontextmanager
    async def _asker(self) -> AsyncIterator[Asker]:
        plan = self._plan
        weights = find_weights(plan.label.gguf) if plan.label.model == "local" else None
        known = self._kept.abilities.get(Asking.whom(plan.label), {})
        tasks = {KEY: plan.base}
        async with model_slots(plan.label, tasks, weights, known, Spend("", 0, 0, 0)) as slots:
            with self._progress:
                asker = Asker(plan.label, slots, tasks, self._kept, plan.wanted.budget, self._tick)
                asker.model = slots[0].question(KEY).model
                asker.reserve = 2 * plan.record["parts"][HELD_OUT]["posts"]
                yield asker

    def _tick(self) -> None:
        if self._bar is not None:
            self._progress.advance(self._bar)

    def _begin(self, what: str, total: int) -> None:
        self._bar = self._progress.add_task(what, total=total)

    # ---- posts ----

    def _part(self, name: str) -> _Part:
        plan = self._plan
        gold = read_part(plan.folder, plan.record, name, plan.base)
        held = figures.truths(gold.items, plan.field, gold.fields)
        judged = [(item, value) for item in gold.items if (value := held[item.key][1]) is not None]
        ordered = spread(judged, [value for _, value in judged], plan.wanted.seed)
        asked = [Asked((item.text or "")[: plan.label.max_chars]) for item, _ in ordered]
        return _Part(gold, [item for item, _ in ordered], [value for _, value in ordered], asked)

    def _without(self, part: _Part, tasks: Sequence[Task]) -> _Part:
        """Without what either task shows as an example: by the split there is none, unless wordings bring one."""
        left = {item.key for item in without_shown(part.items, shown_in(tasks))[0]}
        at = [n for n, item in enumerate(part.items) if item.key in left]
        return _Part(part.gold, [part.items[n] for n in at], [part.values[n] for n in at], [part.asked[n] for n in at])

    async def _about(
        self, what: str, asker: Asker, task: Task, part: _Part, *, last: bool = False
    ) -> dict[Asked, Answer]:
        self._begin(what, len(set(part.asked)))
        return await asker.ask(task, part.asked, last=last)

    def _score(self, part: _Part, answers: Mapping[Asked, Answer], n: int | None = None) -> float:
        return score(part.values[:n], part.given(answers, self._plan.field.name, n), self._plan.wanted.by)

    # ---- what is tried ----

    async def _space(self, asker: Asker) -> Space:
        plan, wanted = self._plan, self._plan.wanted
        if wanted.no_texts:
            pool = candidates.own_shots(plan.base, plan.field.name, plan.kind)
        else:
            gold = read_part(plan.folder, plan.record, TRAINING, plan.base)
            one = Pool(asker, gold, plan.base, plan.field.name, wanted.seed, plan.label.max_chars, self._begin)
            pool = await (one.of_words() if plan.kind == "words" else one.of_json())
        wordings = list(plan.wordings)
        for number in range(1, wanted.write + 1):
            request = candidates.written_request(plan.base, plan.kind, plan.field.name, number)
            said = await asker.write(request, plan.folder)
            name = f"written {number}"
            wording = candidates.read_written(plan.base, plan.kind, plan.field.name, name, said)
            if wording:
                wordings.append(wording)
            self._useless += wording is None
        keeps = (False,) if wanted.no_texts else (True, False) if wanted.replace else (True,)
        return Space(
            plan.base, plan.field.name, plan.kind, tuple(wordings), tuple(pool), tuple(sorted(set(wanted.sizes))), keeps
        )

    async def _search(self, space: Space, asker: Asker, part: _Part) -> list[Judged]:
        """Candidates that were judged on all validation posts, best first."""
        wanted = self._plan.wanted

        async def judge(one: Candidate, n: int) -> float:
            return self._score(part, await asker.ask(space.task(one), part.asked[:n]), n)

        if wanted.search == "tpe":
            from civicsky.tuning.tpe import tpe  # noqa: PLC0415  (an extra)

            sizes = rungs(len(part.asked), wanted.candidates)
            self._begin("search", _planned(wanted.candidates, sizes))
            return await tpe(space, wanted.candidates, sizes, wanted.seed, judge)
        sets = candidates.random_sets(space, wanted.candidates, wanted.seed)
        sizes = rungs(len(part.asked), len(sets))
        self._begin(f"{len(sets)} sets of examples", _planned(len(sets), sizes))
        judged = await halve(sets, sizes, judge) if sets else []
        first = judged[0].candidate if judged else Candidate(0, (), True)
        others = [one._replace(wording=at) for at in range(1, len(space.wordings)) for one in (first,)]
        others += [Candidate(at, (), True) for at in range(1, len(space.wordings))] if first.shots else []
        others = _different(space, others, [Candidate(0, (), True), *sets])
        if not others:
            return judged
        sizes = rungs(len(part.asked), len(others))
        self._begin(f"{len(others)} wordings", _planned(len(others), sizes))
        return best_first(judged + await halve(others, sizes, judge))

    # ---- the choice, and what comes of it ----

    def _version(self, new: Task) -> str:
        way: Way = "words" if self._plan.kind == "words" else "schema"
        return f"{self._plan.base.version}-tuned-{prompt_hash(new, way)[:8]}"

    def _choose(self, new: Task, version: str, best: Judged, old_score: float) -> str:
        """On disk before the held-out posts are opened; gives its time. Raises `Usage` when another one was there."""
        file = self._plan.folder / CHOICE
        if file.exists():
            before = json.loads(file.read_bytes())
            if before["version"] != version:
                raise Usage(
                    f"{file}: the held-out posts were opened for another choice ({before['version']}), so a second "
                    "one's figures would be too good; name another file with --out, and have other posts judged"
                )
            return str(before["at"])
        at = format_time(now_us())
        choice = {
            "version": version,
            "at": at,
            "candidate": best.candidate._asdict(),
            "score": best.score,
            "old_score": old_score,
            "task": new.model_dump(mode="json", exclude={"tuned"}),
        }
        write_whole(file, json.dumps(choice, indent=1) + "\n")
        return at

    def _side(self, part: _Part, old: Mapping[Asked, Answer], new: Mapping[Asked, Answer]) -> dict[str, Any]:
        of_items = [
            {item.key: answers[post] for item, post in zip(part.items, part.asked, strict=True) if post in answers}
            for answers in (old, new)
        ]
        return told.side(part.items, part.gold.fields, self._plan.base, self._plan.field, *of_items)

    def _found(self, asker: Asker) -> dict[str, Any]:
        plan, wanted = self._plan, self._plan.wanted
        spent = asker.spent
        return {
            "civicsky": __version__,
            "from": {"name": plan.base.name, "version": plan.base.version, "sha256": file_hash(plan.text)},
            "field": plan.field.name,
            "measure": wanted.by,
            "model": asker.model,
            "way": plan.kind if plan.kind == "words" else plan.label.way,
            "split": plan.record,
            "search": {
                "kind": wanted.search,
                "seed": wanted.seed,
                "candidates": wanted.candidates,
                "sizes": list(wanted.sizes),
                "wordings": [one.name for one in plan.wordings[1:]],
                "written": wanted.write,
                "written_in_vain": self._useless,
                "replace": wanted.replace,
                "no_texts": wanted.no_texts,
            },
            "effort": {
                "calls": spent.calls,
                "tokens_in": spent.tokens_in,
                "tokens_out": spent.tokens_out,
                "cost": spent.cost if asker.model in plan.label.prices else None,
                "currency": plan.label.currency if asker.model in plan.label.prices else None,
                "asked_now": asker.asked,
            },
        }

    def _nothing_better(self, old_score: float, best: Judged | None, asker: Asker) -> Done:
        found = self._found(asker) | {
            "verdict": "none",
            "validation_scores": {"old": old_score, "best": best.score if best else None},
        }
        return self._kept_as(found, told.nothing_better(found))

    def _written(self, new: Task, best: Judged, shots: Sequence[Shot], found: dict[str, Any]) -> Done:
        plan = self._plan
        found["verdict"] = told.verdict(found)
        found["new"] = {"name": new.name, "version": new.version, "examples": len(shots), "kept": best.candidate.keep}
        posts = [shot.uri or "" for shot in shots] if not plan.wanted.no_texts else []
        earlier = list(plan.base.tuned.get("posts", [])) if best.candidate.keep else []
        tuned = told.tuned(found, earlier + posts)
        text = new_text(plan.text, plan.base, new, plan.kind, tuned, told.head(found, len(earlier + posts)))
        write_whole(plan.wanted.out, text)
        found["new"]["sha256"] = file_hash(text)
        return self._kept_as(found, told.text(found, str(plan.wanted.out), str(plan.folder)))

    def _kept_as(self, found: dict[str, Any], text: str) -> Done:
        write_whole(self._plan.folder / FIGURES, json.dumps(found, indent=1, allow_nan=False) + "\n")
        write_whole(self._plan.folder / REPORT, text + "\n")  # what a terminal showed is soon gone
        return Done(found, text)


def _ways(answers: Mapping[Asked, Answer]) -> str:
    """How it was asked in the end."""
    return "/".join(sorted({answer.way for answer in answers.values()}))


def _different(space: Space, some: Sequence[Candidate], tried: Sequence[Candidate]) -> list[Candidate]:
    known = {space.prompt(one) for one in tried}
    found = []
    for one in some:
        if (prompt := space.prompt(one)) not in known:
            known.add(prompt)
            found.append(one)
    return found


def _planned(n: int, sizes: Sequence[int]) -> int:
    """Questions of a successive halving at most."""
    total = 0
    for size in sizes:
        total += n * size
        n = max(1, n // KEEP)
    return total
