"""Posts that people have judged: a CSV or JSONL file in, items with their judgements and one truth a field out. Pure.

Columns: `text` or `uri` (either or both), `author`, `annotator`, `id`, and one for each field of the task, named like
it; others are left alone. Several rows of one item (the same `uri`, else `id`, else text) are its several annotators.
What a cell says is data, whatever it looks like: nothing is evaluated, fetched or shown from here.
"""

import csv
import hashlib
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Final, Literal, NamedTuple

from civicsky.errors import Usage
from civicsky.model import parse_time, post_uri
from civicsky.record import MAX_READABLE, MAX_TEXT, readable

MAX_BYTES: Final = 64_000_000
"""Bytes of a file at most; it is read as a whole. 200,000 long posts."""
MAX_ROWS: Final = 200_000
MAX_NAME: Final = 300
"""Characters of an author's or annotator's name and of an id."""
ADJUDICATED: Final = "adjudicated"
"""The annotator whose word is the last one."""
CANNOT_TELL: Final = "?"
"""A judgement: looked at, and nobody could say. It is counted and never scored."""

_CANNOT_TELL: Final = frozenset({"?", "can't tell", "can\u2019t tell", "cant tell", "cannot tell"})
_FIRST: Final = frozenset({"true", "1", "yes"})
_SECOND: Final = frozenset({"false", "0", "no"})
_OWN: Final = ("text", "uri", "author", "annotator", "id")
_ABOUT: Final = ("draw_", "vote_")
"""What begins the names of columns about draws and votes, which `civicsky annotate` writes."""
UNIFORM: Final = "uniform"
_POST: Final = r"app\.bsky\.feed\.post"
_URI: Final = re.compile(
    rf"(?:at://(?P<a>[^/\s]+)/{_POST}/(?P<r>[\w.~:-]{{1,512}})"
    rf"|https://bsky\.app/profile/(?P<b>[^/\s]+)/post/(?P<s>[\w.~:-]{{1,512}}))/?"
)
_DID: Final = re.compile(r"did:[a-z]+:[a-zA-Z0-9._:%-]{1,2000}")
_URL: Final = re.compile(r"(?:https?://|www\.)\S+")

Outcome = Literal["judged", "not_judged", "cannot_tell", "tie"]
"""What the annotators made of a field of an item together."""


class Truth(NamedTuple):
    """What is held to be right of one field of one item."""

    outcome: Outcome
    value: str | None
    """One of the field's; None unless `judged`."""


@dataclass
class Item:
    """One post, by all who judged it."""

    key: str
    line: int
    """Where it stands first, from 1."""
    text: str | None
    uri: str | None
    author: str | None
    """Whoever wrote it, for intervals that respect that an author's posts are alike; None when nobody said."""
    judgements: dict[str, dict[str, str]] = field(default_factory=dict)
    """By annotator and field: one of the field's values, or `CANNOT_TELL`. What is blank is not there."""
    at: int | None = None
    """When it was made, by a column `event_at`, in microseconds since 1970 UTC; None when nobody said."""

    def truth(self, name: str) -> Truth:
        """`adjudicated` decides; else what most annotators say. A tie for the first place is none."""
        votes = {who: said[name] for who, said in self.judgements.items() if name in said}
        if not votes:
            return Truth("not_judged", None)
        (first, most), *others = Counter(votes.values()).most_common()
        if ADJUDICATED in votes:
            first = votes[ADJUDICATED]
        elif others and others[0][1] == most:
            return Truth("tie", None)
        return Truth("cannot_tell", None) if first == CANNOT_TELL else Truth("judged", first)


class Frame(NamedTuple):
    """How posts were drawn to be judged, as far as the file says so."""

    kind: str
    """`uniform`, or what they were drawn by."""
    origin: str
    """How the posts came that could be drawn: `firehose`, `feed:NAME`, `any`."""
    since: str
    until: str
    """Their times, RFC 3339; `until` is not included."""


class Gold(NamedTuple):
    """A whole file."""

    items: tuple[Item, ...]
    fields: tuple[str, ...]
    """Of the fields asked for, those that have a column."""
    annotators: tuple[str, ...]
    """Without `adjudicated`, sorted."""
    rows: int
    sha256: str
    ignored: tuple[str, ...]
    """Columns that are none of ours."""
    frames: tuple[Frame, ...] = ()
    """All different ones; empty when nobody said how the posts were drawn."""

    @property
    def skewed(self) -> str:
        """What posts were drawn by that were not drawn uniformly; empty: nothing says that some were."""
        return min({frame.kind for frame in self.frames} - {UNIFORM}, default="")


def read_gold(name: str, data: bytes, fields: Mapping[str, tuple[str, ...]]) -> Gold:
    """The items of a file's bytes. `fields`: the values of each field that may be judged.

    A value is matched without regard to case and to white space around it. true, 1 and yes stand for the first value of
    a field of exactly two, false, 0 and no for the second, unless such a word is itself one of the field's values.
    Raises `Usage`, which names file, line, column, value and remedy.
    """
    if len(data) > MAX_BYTES:
        raise Usage(f"{name}: {len(data):,} bytes are more than {MAX_BYTES:,}; split the file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Usage(f"{name}: not UTF-8 (byte {error.start:,}); save it as `CSV UTF-8` or as JSONL") from None
    reading = _Reading(name, fields)
    is_json = name.lower().endswith((".jsonl", ".ndjson", ".json")) or text.lstrip()[:1] == "{"
    for line, row in _json_rows(name, text) if is_json else _csv_rows(name, text):
        reading.take(line, row)
    return reading.done(hashlib.sha256(data).hexdigest())


def normalised(text: str) -> str:
    """What two copies of a text share whatever was done to case, white space, compatibility forms and addresses."""
    plain = _URL.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(plain.split())


def without_shown(items: Iterable[Item], shown: Iterable[str]) -> tuple[list[Item], list[Item]]:
    """(items to ask about, items whose text stands among the examples that the model is shown)."""
    known = {normalised(text) for text in shown} - {""}
    asked: list[Item] = []
    dropped: list[Item] = []
    for item in items:
        (dropped if item.text is not None and normalised(item.text) in known else asked).append(item)
    return asked, dropped


def sample_rows() -> list[dict[str, Any]]:
    """The packaged sample's labels as rows of GOLD: live, English posts without an adult label, whose label is known.

    A text is what a model reads of the post. The texts and labels are made up, one person's, and not adjudicated.
    """
    from civicsky.filter import ADULT  # noqa: PLC0415  (it loads language models)

    file = files("civicsky") / "data" / "sample" / "truth.jsonl"
    posts = [json.loads(line) for line in file.read_text(encoding="utf-8").strip("\n").split("\n")]
    return [
        {
            "uri": post["uri"],
            "author": post["did"],
            "text": readable({"text": post["text"], "link": post.get("external"), "alts": post.get("alt", [])}),
            "civic": post["civic"],
            "lean": post["lean"],
        }
        for post in posts
        if post["final"] == "live"
        and post["true_lang"] == "en"
        and post["civic"] is not None
        and not ADULT.intersection(post.get("self_labels", ()))
    ]


class _Reading:
    """Rows in, items out."""

    def __init__(self, name: str, fields: Mapping[str, tuple[str, ...]]) -> None:
        self._name, self._fields = name, fields
        self._items: dict[str, Item] = {}
        self._columns: dict[str, None] = {}
        self._frames: dict[Frame, None] = {}
        self._rows = 0

    def take(self, line: int, row: Mapping[str, Any]) -> None:
        self._rows += 1
        if self._rows > MAX_ROWS:
            raise self._bad(line, "", f"more than {MAX_ROWS:,} rows; split the file")
        self._columns.update(dict.fromkeys(row))
        text, given, author, annotator, own = (self._cell(line, name, row.get(name)) for name in _OWN)
        uri, did = self._uri(line, given) if given else (None, None)
        if kind := self._cell(line, "draw_kind", row.get("draw_kind")):
            told = [self._cell(line, name, row.get(name)) for name in ("draw_origin", "draw_since", "draw_until")]
            self._frames[Frame(kind, *told)] = None
        if not text.strip() and uri is None:
            raise self._bad(line, "text", "neither a text nor a uri; give one of them")
        if author and did and author.startswith("did:") and author != did:
            raise self._bad(line, "author", f"{author!r} is not the author in the uri; correct one of them")
        key = f"uri {uri}" if uri else f"id {own}" if own else f"text {text}"
        made = row.get("event_at")
        item = Item(key, line, text if text.strip() else None, uri, author or did)
        item.at = parse_time(made.strip()) if isinstance(made, str) else None
        item = self._merged(line, self._items.setdefault(key, item), item)
        said = {name: value for name in self._fields if (value := self._value(line, name, row.get(name))) is not None}
        who = ADJUDICATED if annotator.strip().lower() == ADJUDICATED else annotator.strip()
        before = item.judgements.setdefault(who, {})
        for name, value in said.items():
            if before.setdefault(name, value) != value:
                raise self._bad(
                    line,
                    name,
                    f"{value!r}, but the same item (line {item.line}) is {before[name]!r} by the same annotator "
                    f"({who or 'no name'}); tell annotators apart in a column `annotator`, and posts in a column `id`",
                )

    def done(self, sha256: str) -> Gold:
        if not self._rows:
            raise Usage(f"{self._name}: no rows; give at least one judged post")
        present = tuple(name for name in self._fields if name in self._columns)
        if not present:
            raise Usage(
                f"{self._name}: no column is named like a field of the task ({', '.join(self._fields)}); "
                f"its columns are {', '.join(map(repr, list(self._columns)[:20]))}"
            )
        names = {who for item in self._items.values() for who in item.judgements} - {ADJUDICATED}
        ignored = tuple(
            name
            for name in self._columns
            if name not in self._fields and name not in _OWN and name != "draw" and not name.startswith(_ABOUT)
        )
        frames = tuple(self._frames)
        return Gold(tuple(self._items.values()), present, tuple(sorted(names)), self._rows, sha256, ignored, frames)

    def _merged(self, line: int, item: Item, new: Item) -> Item:
        for name in ("text", "author"):
            old, other = getattr(item, name), getattr(new, name)
            if other and old and other != old:
                raise self._bad(line, name, f"not the one in line {item.line}, of the same item; correct one of them")
            setattr(item, name, old or other)
        item.at = new.at if item.at is None else item.at
        return item

    def _cell(self, line: int, column: str, cell: Any) -> str:
        if cell is None:
            return ""
        if isinstance(cell, int | float) and column != "text":  # an id or a name may be a number
            cell = str(cell)
        if not isinstance(cell, str):
            raise self._bad(line, column, f"{_shown(cell)} is no text; give a string")
        longest = MAX_READABLE if column == "text" else MAX_NAME if column != "uri" else 2 * MAX_TEXT
        if len(cell) > longest:
            raise self._bad(line, column, f"{len(cell):,} characters are more than {longest:,}; no post has so many")
        # Half of a surrogate pair cannot be sent, hashed or written.
        whole = cell.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return whole if column == "text" else whole.strip()

    def _uri(self, line: int, given: str) -> tuple[str, str]:
        """(AT-URI, DID of its author)."""
        found = _URI.fullmatch(given)
        did = (found["a"] or found["b"]) if found else ""
        if found is None or not _DID.fullmatch(did):
            wanted = "at://DID/app.bsky.feed.post/RKEY or https://bsky.app/profile/DID/post/RKEY"
            raise self._bad(line, "uri", f"{_shown(given)} is not a post's address; give {wanted}, or leave it blank")
        return post_uri(did, found["r"] or found["s"]), did

    def _value(self, line: int, column: str, cell: Any) -> str | None:
        """One of the field's values, `CANNOT_TELL`, or None for a blank."""
        values = self._fields[column]
        if isinstance(cell, bool):
            cell = "true" if cell else "false"
        elif isinstance(cell, int | float) and cell in {0, 1}:
            cell = str(int(cell))
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            return None
        said = cell.strip() if isinstance(cell, str) else None
        if said in values:
            return said
        word = (said or "").casefold()
        for value in values:
            if word == value.casefold():
                return value
        if word in _CANNOT_TELL:
            return CANNOT_TELL
        if len(values) == 2 and word in _FIRST | _SECOND:  # noqa: PLR2004
            return values[word in _SECOND]
        allowed = ", ".join(map(repr, values))
        raise self._bad(line, column, f"{_shown(cell)} is none of {allowed}; write one of them, ? or nothing")

    def _bad(self, line: int, column: str, why: str) -> Usage:
        return Usage(f"{self._name}, line {line}" + (f", column {column!r}" if column else "") + f": {why}")


def _shown(value: Any) -> str:
    return repr(value if not isinstance(value, str) or len(value) <= 80 else value[:79] + "…")[:120]  # noqa: PLR2004


def _json_rows(name: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    # Not splitlines: it also breaks lines at characters that posts contain.
    for line, row in enumerate(text.split("\n"), 1):
        if not row.strip():
            continue
        try:
            value = json.loads(row)
        except (ValueError, RecursionError) as error:
            raise Usage(f"{name}, line {line}: not JSON ({error}); give one JSON object a line") from None
        if not isinstance(value, dict):
            raise Usage(f"{name}, line {line}: {_shown(value)} is no object; give one JSON object a line")
        yield line, value


def _csv_rows(name: str, text: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    delimiter, begin = _delimiter(name, text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise Usage(
                f"{name}, line {line}: {error}; put cells with a quote, a line break or the separator in quotes, "
                "and double the quotes inside"
            ) from None
        if line < begin or not any(cell.strip() for cell in cells):
            continue
        if not header:
            header = [cell.strip().lower() for cell in cells]
            twice = [cell for cell, n in Counter(filter(None, header)).items() if n > 1]
            if twice:
                raise Usage(f"{name}, line {line}: the column {twice[0]!r} is there twice; rename one")
            continue
        if any(cell.strip() for cell in cells[len(header) :]):
            raise Usage(f"{name}, line {line}: {len(cells)} cells under {len(header)} columns; quote its cells")
        yield line, {column: cell for column, cell in zip(header, cells, strict=False) if column}


def _delimiter(name: str, text: str) -> tuple[str, int]:
    """(separator, line of the header). Excel writes `;` in countries with a decimal comma; some add `sep=;`."""
    head, *rest = re.split(r"\r\n?|\n", text, maxsplit=2)
    begin = 1
    if re.fullmatch(r"sep=.", head, re.IGNORECASE) and rest:
        begin, head = 2, rest[0]
    for delimiter in ",;\t":
        try:
            columns = {cell.strip().lower() for cell in next(csv.reader([head], delimiter=delimiter), [])}
        except csv.Error:
            continue
        if columns & {"text", "uri"}:
            return delimiter, begin
    raise Usage(f"{name}, line {begin}: no column `text` or `uri` in the first line; name the columns there")
