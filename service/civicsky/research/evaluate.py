"""`civicsky evaluate`: posts that people have judged are put to models, and the answers held against the judgements.

It needs no data directory and runs wherever a model can be reached. In its folder lie `answers.jsonl` (every answer,
kept as it comes; see `answers`), `figures.json` and `report.html`.
"""

import asyncio
import hashlib
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

from civicsky import __version__, datadir, log
from civicsky.appview import AppView
from civicsky.context import Contexts, records_of, texts_of
from civicsky.errors import BadInput, Failed, Usage
from civicsky.events.folder import check
from civicsky.local import find_weights
from civicsky.model import Answer, Asked, Spend, format_time, now_us
from civicsky.prompt import Way
from civicsky.research import evaluation_report, figures
from civicsky.research.answers import Asking, Kept, Put
from civicsky.research.files import Progress, progress_bars, read_file, shown_in, write_whole
from civicsky.research.gold import Gold, Item, read_gold, without_shown
from civicsky.research.with_articles import articles_of
from civicsky.settings import Events, Label, Settings, expanded
from civicsky.slots import model_slots
from civicsky.store import Store, open_store
from civicsky.task import Field, Task, load_task

WAYS: Final = (*get_args(Way), "auto")
ANSWERS: Final = "answers.jsonl"
FIGURES: Final = "figures.json"
REPORT: Final = "report.html"


class Wanted(NamedTuple):
    """What the user asked for. Empty: as the settings say."""

    gold: Path
    out: Path | None = None
    tasks: Sequence[str] = ()
    models: Sequence[str] = ()
    ways: Sequence[str] = ()


class Loaded(NamedTuple):
    """A task file."""

    name: str
    task: Task
    text: str


class Variant(NamedTuple):
    """One task, asked of one model in one way."""

    loaded: Loaded
    settings: Label
    events: Events | None = None
    """With articles from its folder."""


class Done(NamedTuple):
    """What came of it."""

    found: dict[str, Any]
    """All figures, as JSON values."""
    text: str
    """For a terminal."""
    whole: bool
    """Whether every post was asked about; else the same command asks about the rest."""


async def evaluate(settings: Settings, wanted: Wanted, say: Callable[[str], None]) -> Done:
    """Ask, reckon, write the report; `say` tells what the user should know meanwhile.

    Raises `CivicskyError` with one line for the user.
    """
    loaded = _tasks(wanted.tasks or settings.label.tasks)
    gold = _gold(wanted.gold, _fields(loaded))
    if not any(said for item in gold.items for said in item.judgements.values()):
        raise Usage(
            f"{wanted.gold}: nobody judged anything: the columns {', '.join(gold.fields)} are blank; fill them in"
        )
    if gold.skewed:
        say(f"{wanted.gold}: drawn by {log.harmless(gold.skewed)}: the figures are of such posts, and not of all")
    variants = _variants(settings, loaded, wanted)
    out = wanted.out or Path(f"evaluation-{datetime.now(UTC):%Y-%m-%d}")
    os.umask(0o077)  # texts and answers: their authors may delete them
    _prepare(out, gold.sha256, say)
    appview = AppView(settings.appview)
    try:
        items, dropped = without_shown(
            await with_texts(gold.items, settings, appview), shown_in(one.task for one in loaded)
        )
        known = [item for item in items if item.text is not None]
        contexts = await _contexts(known, loaded, settings, appview)
    except BadInput as error:
        raise Failed(f"public API: its answer cannot be used ({error.reason}); try again later") from None
    finally:
        await appview.close()
    said: list[tuple[figures.Said, dict[str, Any]]] = []
    unreached = 0
    with Kept(out / ANSWERS) as kept, progress_bars(logged=True) as progress:
        for variant in variants:
            one, row = await _ask(variant, known, contexts, kept, progress, out)
            said.append((one, row))
            unreached += row.pop("unreached")
    found = _found(wanted.gold.name, gold, loaded, known, said)
    found["gold"] |= {"shown": len(dropped), "without_text": len(items) - len(known), "asked": len(known)}
    texts = {item.key: item.text or "" for item in known}
    page = evaluation_report.html_page(found, texts)
    write_whole(out / FIGURES, json.dumps(found, indent=1, allow_nan=False) + "\n")
    write_whole(out / REPORT, page)
    if unreached:
        say(f"{unreached:,} question{'s' * (unreached > 1)} could not be put; run the same command again to put them")
    return Done(found, evaluation_report.text_table(found) + f"\n\nreport: {out / REPORT}", not unreached)


# ---- what is asked ---------------------------------------------------------------------------------------------------


def _tasks(names: Sequence[str]) -> list[Loaded]:
    """The task files, each with a name that tells it from the others."""
    read = [(name, *load_task(name)) for name in names]
    same = Counter((task.name, task.version) for _, task, _ in read)
    loaded = []
    for name, task, text in read:
        twins = same[task.name, task.version] > 1
        loaded.append(Loaded(f"{task.name} {task.version}" + (f" ({Path(name).name})" if twins else ""), task, text))
    if len({one.name for one in loaded}) < len(loaded):
        raise Usage("--task: two task files have the same name and version; give the changed one another version")
    return loaded


def _fields(loaded: Sequence[Loaded]) -> dict[str, Field]:
    """The fields of all tasks. A field that several have is judged once, so it must mean the same."""
    fields: dict[str, Field] = {}
    for one in loaded:
        for field in one.task.fields:
            other = fields.setdefault(field.name, field)
            if (other.values, other.only_if) != (field.values, field.only_if):
                raise Usage(
                    f"--task: the field {field.name!r} of {one.name} has other values or another only_if than in the "
                    "tasks before it, so no judgement fits both; evaluate them one by one"
                )
    return fields


def _gold(file: Path, fields: Mapping[str, Field]) -> Gold:
    return read_gold(file.name, read_file(file), {name: field.values for name, field in fields.items()})


def _variants(settings: Settings, loaded: Sequence[Loaded], wanted: Wanted) -> list[Variant]:
    unknown = set(wanted.ways) - set(WAYS)
    if unknown:
        raise Usage(f"--way: {min(unknown)!r} is none of {', '.join(WAYS)}")
    variants = []
    events = settings.events
    for one in loaded:
        for model in dict.fromkeys(wanted.models) or [settings.label.model]:
            for way in dict.fromkeys(wanted.ways) or [settings.label.way]:
                label = settings.label.model_copy(update={"model": model, "way": way})
                if not label.chosen:
                    raise Usage("no model chosen: give --model-url URL --model NAME, or --model local")
                if way == "words" and not one.task.words:
                    raise Usage(
                        f"--way words: the task {one.name} has no words; add them to its file, or leave this way"
                    )
                variants.append(Variant(one, label))
                if events.folder:
                    variants.append(Variant(one, label, events))
    if events.folder:
        check(expanded(events.folder))
    return variants


async def with_texts(items: Sequence[Item], settings: Settings, appview: AppView) -> list[Item]:
    """Items that have only an address get their post's text, where it is still there: from the store, or the API."""
    uris = [item.uri for item in items if item.text is None and item.uri]
    if not uris:
        return list(items)
    async with _store(settings) as store:
        texts = await texts_of(uris, store, appview)
    return [item if item.text else replace(item, text=texts.get(item.uri or "")) for item in items]


class _Memory:
    """What `Contexts` keeps, for the length of a run."""

    def __init__(self) -> None:
        self._posts: dict[str, str | None] = {}

    async def contexts(self, uris: Sequence[str]) -> dict[str, str | None]:
        return {uri: self._posts[uri] for uri in uris if uri in self._posts}

    async def keep_contexts(self, posts: Mapping[str, str | None]) -> None:
        self._posts |= posts


async def _contexts(
    items: Sequence[Item], loaded: Sequence[Loaded], settings: Settings, appview: AppView
) -> dict[tuple[str, str], str]:
    """By task and item what stands around its post, where the settings want it: as the public API has it now."""
    wanted = settings.context
    uris = {item.uri: item.key for item in items if item.uri}
    if not (wanted.quote or wanted.root or wanted.parent) or not uris:
        return {}
    contexts = Contexts(wanted, settings.label.max_chars, appview, _Memory())
    found: dict[tuple[str, str], str] = {}
    try:
        async for _, posts in records_of(uris, appview):
            for one in loaded:
                given = await asyncio.gather(*(contexts.of(one.task, fields) for fields in posts.values()))
                found |= {(one.name, uris[uri]): context for uri, context in zip(posts, given, strict=True)}
    finally:
        await contexts.close()
    return found


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[Store | None]:
    """The store of the settings, if there is one yet."""
    file = settings.data_dir / datadir.POSTS
    if settings.store.chosen == "sqlite" and not file.exists():
        yield None
        return
    store = await open_store(settings.store, file)
    try:
        yield store
    finally:
        await store.close()


# ---- asking ----------------------------------------------------------------------------------------------------------


async def _ask(
    variant: Variant,
    items: Sequence[Item],
    contexts: Mapping[tuple[str, str], str],
    kept: Kept,
    progress: Progress,
    out: Path,
) -> tuple[figures.Said, dict[str, Any]]:
    """What the variant says of the items, and where that comes from."""
    settings, task = variant.settings, variant.loaded.task
    asked = {
        item.key: Asked((item.text or "")[: settings.max_chars], contexts.get((variant.loaded.name, item.key), ""))
        for item in items
    }
    weights = find_weights(settings.gguf) if settings.model == "local" else None
    abilities = kept.abilities.get(Asking.whom(settings), {})
    async with model_slots(settings, {task.name: task}, weights, abilities, Spend("", 0, 0, 0)) as slots:
        title = f"{variant.loaded.name} {settings.model} {settings.way}"
        put = Put(task.name, kept, settings, slots, partial(_bar, progress, title))
        async with articles_of(variant.events, out, settings.model, items) as articles:
            if articles:
                asked |= await articles.named(asked, slots[0])
            await put.all(asked)
            if articles:
                again = await articles.unclear(task, asked, put.answers(asked), slots[0])
                await put.all(again)
                asked |= {
                    key: post for key, post in again.items() if key in put.answers(again)
                }  # else the first stands
        model = slots[0].question(task.name).model
    answers = put.answers(asked)
    failed = {key: put.why(post) for key, post in asked.items() if key not in answers}
    keys = put.keys.values()
    mine = [kept.answers[key] for key in keys if key in kept.answers]
    vain: list[Mapping[str, float]] = [kept.vain_spend[key] for key in keys if key in kept.vain_spend]
    times = sorted(kept.at[key] for key in keys if key in kept.at)
    way = settings.way if settings.way != "auto" else f"auto: {'/'.join(dict.fromkeys(one.way for one in mine))}"
    name = f"{variant.loaded.name}, {model}, {way}" + (", with articles" if articles else "")
    if articles:
        vain += [spend._asdict() for spend in articles.spends]
    row: dict[str, Any] = {
        "name": name,
        "task": {
            "name": task.name,
            "version": task.version,
            "text": variant.loaded.text,
            "sha256": hashlib.sha256(variant.loaded.text.encode()).hexdigest(),
        },
        "model": model,
        **_origins(mine),
        "first_at": times[0] if times else None,
        "last_at": times[-1] if times else None,
        "asked_now": put.asked,
        "answered": len(answers),
        "with_context": sum(bool(post.context) for post in asked.values()),
        "failed": dict(Counter(failed.values())),
        "effort": figures.plain(figures.effort(mine, vain, len(asked))),
        "unreached": len(put.unreached),
        **({"articles": articles.told(asked)} if articles else {}),
    }
    return figures.Said(name, tuple(field.name for field in task.fields), answers, failed), row


def _origins(answers: Sequence[Answer]) -> dict[str, Any]:
    """Where answers come from."""
    return {
        "models_named": sorted({answer.model_named for answer in answers}),
        "fingerprints": sorted({answer.fingerprint for answer in answers if answer.fingerprint}),
        "endpoints": sorted({answer.endpoint for answer in answers}),
        "servers": sorted({answer.server for answer in answers if answer.server}),
        "ways": dict(Counter(answer.way for answer in answers)),
        "prompts": sorted({answer.prompt_hash for answer in answers}),
        "parameters": sorted({answer.parameters for answer in answers}),
    }


# ---- what comes of it ------------------------------------------------------------------------------------------------


def _found(
    name: str,
    gold: Gold,
    loaded: Sequence[Loaded],
    items: Sequence[Item],
    said: Sequence[tuple[figures.Said, dict[str, Any]]],
) -> dict[str, Any]:
    """All figures, as JSON values."""
    fields = [field for field in _fields(loaded).values() if field.name in gold.fields]
    variants = [one for one, _ in said]
    wrong = {field.name: figures.disagreements(items, field, gold.fields, variants) for field in fields}
    rows = [
        row
        | {
            "fields": figures.plain(
                [figures.field_scores(items, field, gold.fields, one) for field in fields if field.name in one.fields]
            )
        }
        for one, row in said
    ]
    listed = {row.key for some in wrong.values() for row in some}
    return {
        "civicsky": __version__,
        "at": format_time(now_us()),
        "gold": {
            "file": name,
            "sha256": gold.sha256,
            "rows": gold.rows,
            "items": len(gold.items),
            "annotators": list(gold.annotators),
            "ignored": list(gold.ignored),
            "authors": len({item.author for item in items if item.author}),
            "without_author": sum(item.author is None for item in items),
        },
        "fields": figures.plain([figures.gold_field(items, field, gold.fields) for field in fields]),
        "variants": rows,
        "comparisons": figures.plain(
            [row for field in fields for row in figures.comparisons(items, field, gold.fields, variants)]
        ),
        "disagreements": figures.plain([row for some in wrong.values() for row in some]),
        "disagreed": {name: len(some) for name, some in wrong.items()},
        "lines": {item.key: item.line for item in items if item.key in listed},
        "authors_of": {item.key: item.author for item in items if item.key in listed},
    }


def _prepare(out: Path, sha256: str, say: Callable[[str], None]) -> None:
    """The folder, with a report of another GOLD moved aside: its answers may be of use, its figures must stay."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        told = json.loads((out / FIGURES).read_bytes())["gold"]["sha256"]
    except FileNotFoundError:
        return
    except OSError as error:
        raise Usage(f"{out}: {error.strerror}; name a folder that can be written with --out") from None
    except (ValueError, KeyError, TypeError):
        raise Usage(f"{out / FIGURES} is none of civicsky's; name another folder with --out") from None
    if told == sha256:
        return
    mark = str(told)[:8]
    for name in (FIGURES, REPORT):
        file = out / name
        if file.exists():
            aside = file.with_name(f"{file.stem}-{mark}{file.suffix}")
            file.rename(aside)
            say(f"{file} was made from another GOLD; it is now {aside}")


def _bar(progress: Progress, title: str, total: int) -> Callable[[], None]:
    """A new bar; what moves it on by one."""
    bar = progress.add_task(title, total=total)
    return lambda: progress.advance(bar)
