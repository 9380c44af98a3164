"""The folder `inbox/` of the data directory: what was fetched from the public API, one JSON Lines file for each fetch.

The first line is a `Header`, each further one an `Item`, or `{"erased": true}` where a deleted post stood. A file is
there whole or not at all. Nothing here knows a database or a network.
"""

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any, Final, Literal, NamedTuple

from civicsky.errors import BadInput, Usage
from civicsky.model import POSTS, Key, format_time, parse_time

FOLDER: Final = "inbox"
MAX_BYTES: Final = 256_000_000
"""Bytes of one file at most: 5,000 items of 50 kB. A larger one is none of ours, and is not read."""
LEFT_SECONDS: Final = 3600
"""Age after which a file that is only half written was left behind by a process that died."""
_YEAR_10000: Final = 253_402_300_800_000_000
"""Microseconds after which no time can be told."""
_NAME: Final = re.compile(r"(\d{8}T\d{6}\.\d{3}Z)-([A-Za-z0-9._-]{1,80})\.jsonl")
_POST: Final = re.compile(
    rf"at://(did:[a-z]+:[a-zA-Z0-9._:%-]{{1,2000}})/{re.escape(POSTS)}/([A-Za-z0-9._:~-]{{1,512}})"
)
"""DIDs and record keys as the stream has them: https://atproto.com/specs/did and …/record-key"""


class Header(NamedTuple):
    """What was asked for, and how it went."""

    kind: Literal["feed", "counts"]
    """feed: what a feed showed. counts: how often posts that we know were liked, at an age of theirs."""
    name: str
    """The feed's name in the settings, or its AT-URI; of counts the age: `24h`, `7d`."""
    uri: str
    """The feed's AT-URI; empty for counts."""
    at: int
    """When it was asked for, in microseconds since 1970 UTC."""
    complete: bool
    """Whether the end was reached; else these are the first items only."""
    why: str
    """What ended it: `end`, `limit`, or what was wrong."""
    pages: int


class Item(NamedTuple):
    """One post, as the public API showed it."""

    rank: int
    """Its place in the answer, from 1."""
    uri: str
    cid: str
    indexed_at: int
    """When the public API indexed it, in microseconds; 0 when it did not say."""
    likes: int
    reposts: int
    replies: int
    quotes: int
    moderation: list[dict[str, str]]
    """Labels of moderation services: {source (a DID), value, at}. The author's own are in the record."""
    record: str
    """The record's JSON as it came, which may be anything; empty for counts."""

    @property
    def key(self) -> Key | None:
        """(rkey, did); None when the URI is not that of a post."""
        found = _POST.fullmatch(self.uri)
        return (found[2], found[1]) if found else None


def write(data_dir: Path, header: Header, items: Iterable[Item]) -> Path:
    """Write a file, whole or not at all; it is safe on disk when this returns. Raises `Usage` when it cannot be."""
    folder = data_dir / FOLDER
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", header.name).strip("-.")[-80:] or "feed"
    stamp = format_time(header.at).replace("-", "").replace(":", "")
    path = folder / f"{stamp}-{label}.jsonl"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        _replace(path, [json.dumps(header._asdict()), *(json.dumps(item._asdict()) for item in items)])
    except OSError as error:
        raise Usage(f"{path} cannot be written: {error.strerror}; make room, or mend the folder's rights") from None
    return path


def files(data_dir: Path) -> list[Path]:
    """All files, the oldest fetch first."""
    with suppress(FileNotFoundError):
        return sorted(path for path in (data_dir / FOLDER).iterdir() if _NAME.fullmatch(path.name))
    return []


def read(path: Path) -> tuple[Header, list[Item]]:
    """A file's header and items, without the erased ones.

    Raises `BadInput("inbox_file")` when it is none of ours, and `OSError` when it cannot be read now.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadInput("inbox_file")
        lines = _lines(path)
        header = _header(next(lines, None))
        return header, [_item(line) for line in lines if "erased" not in line]
    except FileNotFoundError:
        raise BadInput("inbox_file_gone") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BadInput("inbox_file") from None


def scrub(path: Path, keys: Collection[Key]) -> int:
    """Take posts, by (rkey, did), out of a file for good; how many were there. A file that is gone holds nothing."""
    kept: list[str] = []
    n = 0
    try:
        lines = _lines(path)
        kept.append(json.dumps(next(lines, None)))
        for line in lines:
            found = _POST.fullmatch(line["uri"]) if "uri" in line else None
            if found and (found[2], found[1]) in keys:
                n += 1
                kept.append(json.dumps({"erased": True}))
            else:
                kept.append(json.dumps(line))
    except FileNotFoundError:
        return 0
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        path.unlink(missing_ok=True)  # none of ours, and it may hold the text
        return len(keys)
    if n:
        _replace(path, kept)
    return n


def tidy(data_dir: Path, before: int) -> list[str]:
    """Remove files of fetches before a time (microseconds), and what dead processes left half written; their names."""
    gone = []
    for path in files(data_dir):
        stamp = path.name.partition("-")[0]
        at = parse_time(f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:11]}:{stamp[11:13]}:{stamp[13:]}")
        if at is not None and at < before:
            path.unlink(missing_ok=True)
            gone.append(path.name)
    with suppress(FileNotFoundError):
        for path in (data_dir / FOLDER).iterdir():
            with suppress(FileNotFoundError):
                if path.name.startswith(".") and path.stat().st_mtime < time() - LEFT_SECONDS:
                    path.unlink()
    return gone


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise TypeError
            yield value


def _header(line: dict[str, Any] | None) -> Header:
    header = Header(**(line or {}))
    sound = header.kind in {"feed", "counts"} and isinstance(header.complete, bool)
    if not sound or not all(isinstance(number, int) for number in (header.at, header.pages)):
        raise ValueError
    if not 0 <= header.at < _YEAR_10000:
        raise ValueError
    for text in (header.name, header.uri, header.why):
        text.encode()  # which no text can that SQLite would not take
    return header


def _item(line: dict[str, Any]) -> Item:
    item = Item(**line)
    numbers = (item.rank, item.indexed_at, item.likes, item.reposts, item.replies, item.quotes)
    if not all(isinstance(number, int) and 0 <= number < 2**63 for number in numbers):
        raise ValueError
    if not isinstance(item.record, str) or item.indexed_at >= _YEAR_10000:
        raise ValueError
    for text in (item.uri, item.cid):
        text.encode()
    if not isinstance(item.moderation, list) or not all(isinstance(label, dict) for label in item.moderation):
        raise ValueError
    return item


def _replace(path: Path, lines: Iterable[str]) -> None:
    """Put lines in the place of a file, so that whoever reads finds the former ones or these."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
            stream.writelines(line + "\n" for line in lines)
            stream.flush()
            os.fsync(stream.fileno())
        half.replace(path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
