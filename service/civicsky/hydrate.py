"""Fills a list of posts with the texts of those that still exist: `civicsky hydrate FILE`. And `--authors`.

The list may be one that others share: it needs no data directory. What comes of it is one JSON object a line, for each
line of the list whose post is there now. Of the others nothing is written, so that the file proves no deletion.
"""

import asyncio
import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, Literal, NamedTuple, Self

from civicsky import datadir, log
from civicsky.app import lock_soon, open_labelling
from civicsky.appview import MAX_PER_CALL, AppView
from civicsky.authors import Authors, Work, read_lists
from civicsky.beside import bars
from civicsky.context import is_post, posts_of
from civicsky.errors import Failed, Held, Refused, Transient, Usage
from civicsky.lifecycle import Stop
from civicsky.metrics import Metrics
from civicsky.model import format_time, now_us, post_uri
from civicsky.settings import Settings
from civicsky.views import PostView, fields

TOLD: Final = 20
"""Bad lines that are told one by one; the others are only counted."""
_PAGE: Final = re.compile(r"https://bsky\.app/profile/(did:[^/]+)/post/([^/?#]+)/?(?:[?#].*)?")
_MAX_LINE: Final = 1_000_000
"""Characters of one line at most."""
_UNAUTHENTICATED: Final = "no-unauthenticated"

Respect = Literal["flag", "drop"]
Row = tuple[int, str]
"""A line's number, from 1, and what it names."""


class Hydrated(NamedTuple):
    """What became of a list."""

    out: Path
    counts: dict[str, int]
    """listed = there + not_shown + dropped + bad. not_shown: gone or hidden. dropped: its author asks not to be shown
    to the public, and `respect` is `drop`. bad: the line names no post."""


async def hydrate(
    settings: Settings, file: Path, out: Path | None, respect: Respect | None, say: Callable[[str], None]
) -> Hydrated:
    """Look up all posts of a list. `say` is told of bad lines.

    One that was interrupted goes on. Raises `Usage`, and `Failed` when the API cannot be asked: what was got until
    then is kept, and the next one goes on from there.
    """
    os.umask(0o077)  # what we write holds texts that their authors may delete: nobody else should have copied them
    respect = respect or settings.authors.respect
    out = out or file.with_name(f"{file.stem}.hydrated.jsonl")
    if out.exists():
        raise Usage(f"{out} is there already; name another file with --out, or remove it")
    rows = _rows(file)
    wanted = {"list": _digest(file), "respect": respect}
    appview = AppView(settings.appview)
    try:
        with _Part(out, wanted) as part, bars("posts") as progress:
            bar = progress.add_task(log.harmless(file.name), total=None)
            for batch in _batches(islice(rows, part.counts["listed"], None)):
                part.keep(*await _look_up(batch, appview, respect, say))
                progress.update(bar, completed=part.counts["listed"])
            progress.update(bar, total=part.counts["listed"])
            part.finish()
            return Hydrated(out, {name: part.counts[name] for name in _COUNTS})
    except (Transient, Refused) as error:
        raise Failed(f"{error}; what was got is kept in {part.name}, and the same command goes on from there") from None
    finally:
        await appview.close()


_COUNTS: Final = ("listed", "there", "not_shown", "dropped", "bad")


async def _look_up(
    batch: Sequence[Row], appview: AppView, respect: Respect, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """(what is written, what is counted) of some rows."""
    uris = [_uri(name) for _, name in batch]
    for (number, name), uri in zip(batch, uris, strict=True):
        if uri is None:
            say(
                f"line {number:,}: {log.harmless(name)[:80]!r} names no post; an address is at://did/.../rkey, "
                "with the author's DID and not a handle"
            )
    shown: dict[str, PostView] = {}
    async for _, some in posts_of([uri for uri in uris if uri], appview.shown):
        shown |= some
    at, written, counts = format_time(now_us()), list[dict[str, Any]](), Counter(listed=len(batch))
    for uri in uris:
        view = shown.get(uri or "")
        what = "bad" if uri is None else "not_shown" if view is None else "there"
        if view and respect == "drop" and _UNAUTHENTICATED in view.marks:
            what = "dropped"
        elif view:
            written.append(_line(view, at))
        counts[what] += 1
    return written, counts


def _line(view: PostView, at: str) -> dict[str, Any]:
    item = view.item
    said = fields(item.record)
    created = said["created_at"]
    said["created_at"] = None if created is None else format_time(created)
    return {
        "uri": item.uri,
        "cid": item.cid,
        "did": item.uri.split("/")[2],
        **said,
        "indexed_at": format_time(item.indexed_at) if item.indexed_at else None,
        "likes": item.likes,
        "reposts": item.reposts,
        "replies": item.replies,
        "quotes": item.quotes,
        "moderation": [{**label, "at": label["at"] or None} for label in item.moderation],
        "marks": view.marks,
        "looked_up_at": at,
    }


def _uri(name: str) -> str | None:
    """The AT-URI that a line names; None when it names no post by its author's DID."""
    if page := _PAGE.fullmatch(name):
        name = post_uri(page[1], page[2])
    return name if is_post(name) else None


# ---- the list --------------------------------------------------------------------------------------------------------


def _rows(file: Path) -> Iterator[Row]:
    """What each line names, by the kind of file that its name says. Raises `Usage`."""
    kind = file.suffix.lower()
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".ndjson": _json_rows, ".parquet": _parquet_rows}
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise Usage(f"{file}: {error.strerror}; name a list of posts") from None
    return readers.get(kind, _text_rows)(file)


def _text_rows(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", errors="replace", newline="\n") as stream:
        for number, line in enumerate(_lines(file, stream), 1):
            if name := line.strip():
                yield number, name


def _json_rows(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", errors="replace", newline="\n") as stream:
        for number, line in enumerate(_lines(file, stream), 1):
            value: Any = None
            with suppress(ValueError, RecursionError):
                value = json.loads(line) if line.strip() else None
            name = value.get("uri") if isinstance(value, dict) else value
            if line.strip():
                yield number, name if isinstance(name, str) else line.strip()


def _csv_rows(file: Path) -> Iterator[Row]:
    try:
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            reader = csv.DictReader(_lines(file, stream))
            if "uri" not in (reader.fieldnames or ()):
                raise Usage(f"{file}: it has no column `uri`; name the column of the posts' addresses so")
            for row in reader:
                yield reader.line_num, (row["uri"] or "").strip()
    except csv.Error as error:
        raise Usage(f"{file}: not a CSV file ({error})") from None


def _parquet_rows(file: Path) -> Iterator[Row]:
    try:
        from pyarrow import parquet  # noqa: PLC0415  (an extra)
    except ImportError:
        raise Usage(
            f"{file}: Parquet needs the extra `export` (pyarrow is missing); install it, or give CSV, JSONL or text"
        ) from None
    try:
        table = parquet.ParquetFile(file)
        if "uri" not in table.schema_arrow.names:
            raise Usage(f"{file}: it has no column `uri`; name the column of the posts' addresses so")
        number = 0
        for batch in table.iter_batches(batch_size=1000, columns=["uri"]):
            for name in batch.column(0).to_pylist():
                number += 1
                yield number, str(name or "")
    except (OSError, ValueError) as error:  # pyarrow's errors are kinds of these
        raise Usage(f"{file}: it cannot be read as Parquet ({log.harmless(str(error))[:100]})") from None


def _lines(file: Path, stream: IO[str]) -> Iterator[str]:
    while line := stream.readline(_MAX_LINE):
        if len(line) == _MAX_LINE:
            raise Usage(f"{file}: a line has more than {_MAX_LINE:,} characters; give a list of posts")
        yield line


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while batch := list(islice(rows, MAX_PER_CALL)):
        yield batch


def _digest(file: Path) -> str:
    digest = sha256()
    with file.open("rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


# ---- the file that is being written ----------------------------------------------------------------------------------


class _Part:
    """`OUT.part`, and beside it `OUT.part.json`, which says how much of both list and file is done.

    What stands in `OUT.part` beyond that is of a process that was killed, and is written again.
    """

    def __init__(self, out: Path, wanted: dict[str, str]) -> None:
        self._out, self._wanted = out, wanted
        self.name = out.with_name(out.name + ".part")
        self._note = out.with_name(out.name + ".part.json")
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Self:
        """Open it, at its end as far as it is good. Raises `Usage`."""
        try:
            told = self._told()
            self._stream = self.name.open("r+b" if told else "wb")
            self._stream.truncate(told.get("bytes", 0))
            self._stream.seek(0, os.SEEK_END)
        except OSError as error:
            raise Usage(f"{self.name} cannot be written: {error.strerror}; name another file with --out") from None
        self.counts.update(told.get("counts", {}))
        return self

    def __exit__(self, *_error: object) -> None:
        """Let go of it; nothing stays of one that never began."""
        self._stream.close()
        if not self._note.exists() and self.name.exists():
            self.name.unlink()

    def keep(self, lines: Sequence[dict[str, Any]], counts: Counter[str]) -> None:
        """Write lines, and what they add to the counts."""
        for line in lines:
            self._stream.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._stream.flush()
        self.counts.update(counts)
        half = self._note.with_name(f".{self._note.name}.{os.getpid()}")
        done = {**self._wanted, "bytes": self._stream.tell(), "counts": self.counts}
        half.write_text(json.dumps(done), encoding="utf-8")
        half.replace(self._note)

    def finish(self) -> None:
        """All is done: it gets its name."""
        os.fsync(self._stream.fileno())
        self.name.replace(self._out)
        self._note.unlink(missing_ok=True)

    def _told(self) -> dict[str, Any]:
        """How far it came; empty for a new one."""
        if not (self.name.exists() and self._note.exists()):
            return {}
        try:
            told = json.loads(self._note.read_bytes())
            wanted = {name: told[name] for name in self._wanted}
            sound = isinstance(told["bytes"], int) and told["bytes"] <= self.name.stat().st_size
        except (ValueError, TypeError, KeyError):
            wanted, sound = {}, False
        if not sound or wanted != self._wanted:
            raise Usage(
                f"{self.name} is of another list or of other options; remove it with {self._note.name}, "
                "or name another file with --out"
            )
        return dict(told)


def as_text(done: Hydrated) -> str:
    """For people."""
    n = done.counts
    return (
        f"{n['listed']:,} listed: {n['there']:,} there, {n['not_shown']:,} not shown, {n['dropped']:,} left out at "
        f"their authors' wish, {n['bad']:,} bad lines; {done.out}"
    )


def as_json(done: Hydrated) -> dict[str, Any]:
    """For programs."""
    return {"out": str(done.out), **done.counts}


# ---- authors ---------------------------------------------------------------------------------------------------------


async def look_up_authors(settings: Settings) -> int | None:
    """Look up all authors of labelled posts that are due; how many are there. None when a running service does it.

    Raises `Failed` when the API cannot be asked: what was got is kept.
    """
    folder = datadir.existing(settings.data_dir)
    lists = read_lists(settings.authors.lists)
    metrics = Metrics()
    try:
        async with lock_soon(folder, "label"), AsyncExitStack() as stack:
            parts = await open_labelling(stack, folder, settings, metrics, Stop(), strict=True)
            appview = AppView(settings.appview)
            stack.push_async_callback(appview.close)
            authors = Authors(parts.ledger.database)
            work = Work(authors, appview, parts.store, settings.authors, lists, metrics)
            await authors.list_again(lists)
            try:
                await _look_up_all(work, authors, metrics)
            finally:
                await authors.tell(parts.store)
    except Held as held:
        if settings.authors.fetch and not held.brief:
            return None
        raise
    return metrics.counts["authors"]


async def _look_up_all(work: Work, authors: Authors, metrics: Metrics) -> None:
    with bars("authors") as progress:
        bar = progress.add_task("looked up", total=await authors.waiting(work.before))
        pause = 0.0
        while dids := await work.due():
            await asyncio.sleep(pause)
            if await work.look_up(dids) is not None:
                raise Failed(f"{metrics.authors_why}; what was got is kept, and the same command goes on from there")
            progress.update(bar, advance=len(dids))
            pause = work.seconds_a_call
