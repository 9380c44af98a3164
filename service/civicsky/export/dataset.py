"""The dataset in the forms that researchers use: `civicsky export`. It reads the store alone, once, page by page.

Of the posts of a period the live ones go into the tables, with their labels, snapshots and authors: what was deleted
since the last export is gone from this one, in all tables. Memory: one page of posts with what belongs to them, and
what each file holds (see `writers`). The folder has its name when all of it is there, or not at all.
"""

import json
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import file_digest
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.progress import Progress

from civicsky import datadir, faults
from civicsky.document import Document
from civicsky.errors import Failed, Usage
from civicsky.export import writers
from civicsky.export.columns import TABLES, Column, Format, Level, Row, Table, cells, columns_of, feeds_of, is_from
from civicsky.export.manifest import CODEBOOK, MANIFEST, Asked, Tally, codebook_text, manifest
from civicsky.export.methods import METHODS, methods_text
from civicsky.export.pseudonyms import KEY, Pseudonyms, pseudonyms
from civicsky.export.writers import Writer, whole_folder
from civicsky.model import now_us, parse_time
from civicsky.research.files import progress_bars
from civicsky.settings import Settings, expanded
from civicsky.store import Collection, Store, open_existing
from civicsky.task import Task, file_hash, load_tasks
from civicsky.typed import moment_of

PAGE: Final = 500
"""Posts that are looked at together: their labels, snapshots and authors are asked for in one query each."""
CONSENT_MARK: Final = "no-unauthenticated"


class Wanted(NamedTuple):
    """What is asked for."""

    out: Path | None = None
    """None: `export-` and the time, in the current folder."""
    form: Format = "parquet"
    tables: Sequence[str] = ()
    """None: all that the level has."""
    level: Level = "internal"
    since: str = ""
    until: str = ""
    """Dates or RFC 3339 times, by `event_at`; `until` is not included."""
    tasks: Sequence[str] = ()
    """Names; none: those of the settings, and all others that have labels."""
    where: Sequence[str] = ()
    """FIELD=VALUE of the label shown; all must hold."""
    origin: str = "any"
    model: str = ""
    prompt: str = ""
    """The first digits of its hash."""
    key_file: Path | None = None


class Done(NamedTuple):
    """What came of it."""

    found: dict[str, Any]
    """Where it is, and its manifest."""
    text: str
    """For a terminal."""


class _Choice(NamedTuple):
    """Which posts are taken, and what of them."""

    asked: Asked
    tasks: Mapping[str, Sequence[str]]
    """By task, the names of its fields."""
    where: Sequence[tuple[str, str]]
    names: Pseudonyms | None


async def export(settings: Settings, wanted: Wanted, say: Callable[[str], None]) -> Done:
    """Write the folder; `say` tells what the user should know meanwhile.

    Raises `Usage` for what is asked wrongly, `Failed` for a full disk, `Transient` or `Refused` of the store.
    """
    since, until = _checked(wanted)
    writers.check(wanted.form)
    out = expanded(wanted.out or Path(f"export-{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}"))
    for part in writers.leftovers(out.parent):
        say(f"{part} was left by an export that was killed; nobody needs it: remove it")
    own = {task.name: (task, file_hash(text)) for task, text in load_tasks(settings.label.tasks)}
    os.umask(0o077)  # texts and addresses: their authors may delete them
    try:
        with whole_folder(out) as part, progress_bars() as progress:
            async with _store(settings) as store:
                found = await _filled(store, settings, wanted, (since, until), own, part, progress)
            faults.point("export.name")
    except OSError as error:
        why = error.strerror or str(error)
        raise Failed(f"{out}: {why}; nothing of it was kept: make room, or name another with --out") from None
    return Done({"folder": str(out), **found}, _text(out, found))


async def _filled(
    store: Store,
    settings: Settings,
    wanted: Wanted,
    period: tuple[int | None, int | None],
    own: Mapping[str, tuple[Task, str]],
    part: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Write all files; the manifest."""
    gated = set[str]()
    values = {} if wanted.level == "restricted" else await _values(store, own, wanted.tasks, gated, progress)
    tasks = {name: list(fields) for name, fields in values.items()}
    wishes = _wishes(wanted.where, values)
    names = pseudonyms(wanted.key_file or settings.data_dir / KEY) if wanted.level == "public" else None
    asked = Asked(wanted.level, wanted.form, *period, tuple(tasks), tuple(wanted.where), wanted.origin,
                  wanted.model, wanted.prompt, settings.authors.respect)  # fmt: skip
    tables = {
        table: columns_of(table, wanted.level, tasks, names, gated)
        for table in TABLES[wanted.level]
        if table in wanted.tables or not wanted.tables
    }
    choice = _Choice(asked, tasks, wishes, names)
    files, tally = await _write(store, choice, tables, part, progress)
    return await _told(store, choice, tables, files, tally, {name: own.get(name) for name in tasks}, part)


# ---- what is asked ---------------------------------------------------------------------------------------------------


def _checked(wanted: Wanted) -> tuple[int | None, int | None]:
    """The period. Raises `Usage` for what does not go together."""
    since, until = moment_of("--since", wanted.since), moment_of("--until", wanted.until)
    if since is not None and until is not None and since >= until:
        raise Usage(f"--since {wanted.since} is not before --until {wanted.until}")
    for table in wanted.tables:
        if table not in TABLES[wanted.level]:
            raise Usage(f"--table {table}: the level {wanted.level} has {' and '.join(TABLES[wanted.level])} only")
    if wanted.level == "restricted" and (wanted.where or wanted.model or wanted.prompt or wanted.tasks):
        raise Usage(
            "--level restricted: addresses chosen by their labels would tell the labels; leave out --where, --model, "
            "--prompt and --task"
        )
    if wanted.key_file is not None and wanted.level != "public":
        raise Usage(f"--key-file: the level {wanted.level} has no pseudonyms; add --level public, or leave it out")
    if wanted.origin not in {"any", "firehose"} and not re.fullmatch(r"feed:.+", wanted.origin):
        raise Usage(f"--origin {wanted.origin}: is neither any, nor firehose, nor feed:NAME")
    return since, until


_Values = dict[str, dict[str, dict[str, None]]]
"""By task and field, the values that it can have, or has had, in order."""


async def _values(
    store: Store, own: Mapping[str, tuple[Task, str]], chosen: Sequence[str], gated: set[str], progress: Progress
) -> _Values:
    """The tasks of the settings with their fields, and what else the labels have: other tasks, fields of old versions.

    Columns must stand before the first row, so all labels are looked at once for that. With `chosen`, these tasks only.
    Tasks that ever had a gate are added to `gated`.
    """
    values: _Values = {
        name: {field.name: dict.fromkeys(field.values) for field in task.fields} for name, (task, _) in own.items()
    }
    others: _Values = {}
    bar = progress.add_task("labels", total=await store.count("labels"))
    async for label in store.documents("labels"):
        progress.advance(bar)
        task = label.get("task")
        if label.get("state") == "deleted" or not isinstance(task, str):
            continue
        if "gate" in label:
            gated.add(task)
        fields = values.get(task)
        if fields is None:
            fields = others.setdefault(task, {})
        for name, said in (label.get("fields") or {}).items():
            fields.setdefault(name, {}).setdefault(said.get("value"))
    values |= {name: dict(sorted(others[name].items())) for name in sorted(others)}
    for name in chosen:
        if name not in values:
            raise Usage(f"--task {name}: neither in label.tasks nor among the labels; there are {', '.join(values)}")
    return {name: values[name] for name in chosen or values}


def _wishes(where: Sequence[str], values: _Values) -> list[tuple[str, str]]:
    wishes = []
    for text in where:
        field, _, value = text.partition("=")
        if not any(value in fields.get(field, ()) for fields in values.values()):
            known = "; ".join(
                f"{name}={'|'.join(map(str, said))}" for fields in values.values() for name, said in fields.items()
            )
            raise Usage(f"--where {text}: no task has such a field or value; there are {known}")
        wishes.append((field, value))
    return wishes


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[Store]:
    store = await open_existing(settings.store, settings.data_dir / datadir.POSTS)
    try:
        yield store
    finally:
        await store.close()


# ---- from page to page -----------------------------------------------------------------------------------------------


async def _write(
    store: Store, choice: _Choice, tables: Mapping[Table, Sequence[Column]], part: Path, progress: Progress
) -> tuple[dict[Table, Writer], Tally]:
    files = {table: _begun(part, table, columns, choice.asked) for table, columns in tables.items()}
    tally, author = Tally(), ""
    bar = progress.add_task("posts", total=await store.count("posts"))
    async for page in _pages(store):
        for row, labels, snapshots in await _taken(store, choice, page, tally, with_snapshots="snapshots" in tables):
            rows: dict[Table, list[Row]] = {
                "posts": [row],
                "labels": [row._replace(about=label) for label in labels],
                "snapshots": [row._replace(about=snapshot) for snapshot in snapshots],
                # Posts come in the order of their addresses, so those of an author come together.
                "authors": [row] if row.author and row.post["did"] != author else [],
            }
            author = row.post["did"]
            for table, columns in tables.items():
                for one in rows[table]:
                    files[table].write(cells(columns, one))
        progress.advance(bar, len(page))
        faults.point("export.page")
    for file in files.values():
        file.close()
    return files, tally


def _begun(part: Path, table: Table, columns: Sequence[Column], asked: Asked) -> Writer:
    writer = writers.open_file(part / _file(table, asked), columns, asked.form)
    return writers.Shuffled(writer, part / f"{table}.rows") if asked.level == "public" else writer


def _file(table: Table, asked: Asked) -> str:
    return f"{table}.{asked.form}"


async def _pages(store: Store) -> AsyncIterator[list[Document]]:
    page: list[Document] = []
    async for document in store.documents("posts"):
        page.append(document)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page


_Taken = tuple[Row, list[Document], list[Document]]
"""A post, its labels, its snapshots."""


async def _taken(
    store: Store, choice: _Choice, page: Sequence[Document], tally: Tally, *, with_snapshots: bool
) -> list[_Taken]:
    """What of a page goes into the tables; the rest is counted."""
    asked = choice.asked
    times = {document["_id"]: _at(document, asked) for document in page}
    inside = [document for document in page if times[document["_id"]] is not None]
    tally.states.update(str(document.get("state")) for document in inside)
    live = [document for document in inside if document.get("state") == "live"]
    dids = list(dict.fromkeys(document["did"] for document in live))
    authors = {doc["_id"]: doc for doc in await store.find("authors", dids) if doc.get("state") != "deleted"}
    posts = [post for post in live if _fits(post, authors.get(post["did"], {}), asked, tally)]
    uris = [post["_id"] for post in posts]
    labels = {} if asked.level == "restricted" else await _by_post(store, "labels", uris)
    snapshots = await _by_post(store, "snapshots", uris) if with_snapshots else {}
    taken = []
    for post in posts:
        mine = [label for label in labels.get(post["_id"], ()) if _is_asked_for(label, choice)]
        row = Row(post, authors.get(post["did"], {}), *_shown(post, mine, choice), {})
        tally.collected(row, choice.tasks)
        if not _meets(row, choice):
            tally.left_out["label"] += 1
            continue
        at = times[post["_id"]]
        assert at is not None
        tally.exported(row, at, marked=CONSENT_MARK in (row.author.get("marks") or ()))
        whole = {label["_id"]: label for label in mine}
        for task, label in row.labels.items():
            tally.made(task, whole.get(label.get("label_id"), label))
        taken.append((row, mine, snapshots.get(post["_id"], [])))
    return taken


def _at(document: Document, asked: Asked) -> int | None:
    """When a post was made; None when that is not in the period."""
    at = parse_time(document.get("event_at") or "")
    if at is None or (asked.since is not None and at < asked.since) or (asked.until is not None and at >= asked.until):
        return None
    return at


def _fits(post: Document, author: Document, asked: Asked, tally: Tally) -> bool:
    """Whether consent and origin let a live post through; else it is counted."""
    if asked.respect == "drop" and CONSENT_MARK in (author.get("marks") or ()):
        tally.left_out["consent"] += 1
        return False
    kind, _, name = asked.origin.partition(":")
    if (kind == "firehose" and not is_from(post, kind)) or (kind == "feed" and name not in feeds_of(post)):
        tally.left_out["origin"] += 1
        return False
    return True


async def _by_post(store: Store, collection: Collection, uris: Sequence[str]) -> dict[str, list[Document]]:
    found: dict[str, list[Document]] = {}
    for document in await store.of_posts(collection, uris):
        found.setdefault(document["uri"], []).append(document)
    return found


def _is_asked_for(label: Document, choice: _Choice) -> bool:
    """Whether a label is of a task, model and prompt that were asked for, and not a tombstone."""
    asked = choice.asked
    return (
        label.get("state") == "live"
        and label.get("task") in choice.tasks
        and (not asked.model or asked.model in {label.get("model"), label.get("model_asked")})
        and str(label.get("prompt")).startswith(asked.prompt)
    )


def _shown(
    post: Document, labels: Sequence[Document], choice: _Choice
) -> tuple[dict[str, Document], dict[str, Document]]:
    """(labels, reasons for none) by task, as the row of a post shows them.

    They are the post's current ones; when a model or prompt was asked for, the newest by it of the text as it is now.
    """
    if choice.asked.model or choice.asked.prompt:
        present = [label for label in labels if label.get("cid") == post.get("cid")]
        return {label["task"]: label for label in sorted(present, key=lambda label: str(label.get("at")))}, {}
    current, failed = post.get("labels") or {}, post.get("unlabelled") or {}
    return (
        {task: current[task] for task in choice.tasks if current.get(task)},
        {task: failed[task] for task in choice.tasks if failed.get(task)},
    )


def _meets(row: Row, choice: _Choice) -> bool:
    """Whether a post has the labels that were asked for."""
    if (choice.asked.model or choice.asked.prompt) and not row.labels:
        return False
    return all(
        any(((label.get("fields") or {}).get(field) or {}).get("value") == value for label in row.labels.values())
        for field, value in choice.where
    )


# ---- what goes with it -----------------------------------------------------------------------------------------------


async def _told(
    store: Store,
    choice: _Choice,
    tables: Mapping[Table, Sequence[Column]],
    files: Mapping[Table, Writer],
    tally: Tally,
    about: Mapping[str, tuple[Task, str] | None],
    part: Path,
) -> dict[str, Any]:
    """Write codebook, methods and manifest; the manifest."""
    asked = choice.asked
    runs = [document async for document in store.documents("runs")]
    coverage = [document async for document in store.documents("coverage")]
    check = choice.names.check() if choice.names else None
    found = manifest(asked, now_us(), tally, about, runs, coverage, check)
    _page(part / CODEBOOK, codebook_text(asked, tables, about))
    _page(part / METHODS, methods_text(found))
    found["files"] = [
        *(
            {
                **_described(part / _file(table, asked)),
                "table": table,
                "rows": files[table].rows,
                "columns": [{"name": column.name, "type": writers.TYPES[column.kind]} for column in columns],
            }
            for table, columns in tables.items()
        ),
        _described(part / CODEBOOK),
        _described(part / METHODS),
    ]
    _page(part / MANIFEST, json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    return found


def _described(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"name": file.name, "bytes": file.stat().st_size, "sha256": file_digest(stream, "sha256").hexdigest()}


def _page(file: Path, text: str) -> None:
    with file.open("w", encoding="utf-8", errors="replace", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _text(out: Path, found: Mapping[str, Any]) -> str:
    """For people."""
    posts, left = found["posts"], found["posts"]["left_out"]
    lines = [f"{file['rows']:>12,} rows   {file['bytes'] / 1e6:>9,.1f} MB  {file['name']}"
             for file in found["files"] if "rows" in file]  # fmt: skip
    lines.append(
        f"left out: {posts['deleted']:,} deleted, {posts['hidden']:,} hidden, {left['consent']:,} for consent, "
        f"{left['origin']:,} of other origins, {left['label']:,} without the labels asked for"
    )
    for name, task in found["tasks"].items():
        share = "" if task["share_labelled"] is None else f" ({task['share_labelled']:.1%})"
        rest = f"; {task['not_drawn_or_waiting']:,} not drawn, or waiting" if task["not_drawn_or_waiting"] else ""
        lines.append(f"{name}: {task['labelled']:,} labelled{share} of {task['drawn']:,} drawn{rest}")
    held = found["coverage"]["share_held"]
    lines.append("coverage of the period: " + ("not known" if held is None else f"{held:.2%} held"))
    if found["level"] == "internal":
        lines.append("the files hold posts that their authors may delete: keep them no longer than you need them")
    return "\n".join([*lines, f"export: {out}"])
