"""What an export's tables have: each column's name, type and meaning, and what it is taken from. Pure.

A cell is text, a time, a truth value or a number, never a list or a structure: a list is JSON text. A value of another
type than its column's is left out, never guessed. No cell holds a NUL or half a surrogate pair: U+FFFD stands there.

The level `public` has nothing that leads back to a post or a person: names are keyed pseudonyms, times are cut to the
hour. A model's probability to nine digits could be got again by putting known posts to the same model, and `p_sampled`
tells the place of a post within its hour, so both are rounded there.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, get_args

from civicsky.document import Document
from civicsky.export.pseudonyms import Pseudonyms
from civicsky.model import parse_time

Kind = Literal["text", "json", "time", "bool", "int", "float"]
Table = Literal["posts", "labels", "snapshots", "authors"]
Level = Literal["internal", "restricted", "public"]
Format = Literal["parquet", "csv", "jsonl"]
Tasks = Mapping[str, Sequence[str]]
"""By task, the names of its fields."""

TABLES: Final[dict[Level, tuple[Table, ...]]] = {
    "internal": get_args(Table),
    "restricted": ("posts",),
    "public": ("posts", "labels"),
}
"""What a level may have."""
HOUR_US: Final = 3_600_000_000
_DIGITS: Final = 3
_PLACES: Final = 2
_INT64: Final = 2**63
_UNFIT: Final = re.compile("[\x00\ud800-\udfff]")
_ENCODE: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class Row(NamedTuple):
    """What a row is made from."""

    post: Document
    author: Document
    """Empty when it was never looked up."""
    labels: Mapping[str, Document]
    """By task, the label to show."""
    unlabelled: Mapping[str, Document]
    about: Document
    """The label or the snapshot of its own; empty in the tables of posts and authors."""


class Column(NamedTuple):
    """One column."""

    name: str
    kind: Kind
    meaning: str
    take: Callable[[Row], Any]


def cells(columns: Sequence[Column], row: Row) -> list[Any]:
    """A row's cells: str, int (a time is microseconds since 1970 UTC), float, bool, or None."""
    return [_CELLS[column.kind](column.take(row)) for column in columns]


def columns_of(
    table: Table, level: Level, tasks: Tasks, names: Pseudonyms | None = None, gated: Collection[str] = ()
) -> list[Column]:
    """A table's columns at a level, names once each. `public` needs `names`; `gated`: tasks that ever had a gate."""
    if level == "restricted":
        return [_of("post", "uri", "text", "The post's AT-URI.")]
    if level == "public":
        assert names is not None
        return _public_posts(tasks, names, gated) if table == "posts" else _public_labels(tasks, names, gated)
    if table == "posts":
        return [*_POSTS, *_task_columns(tasks, _POSTS, _labelled, gated=gated)]
    if table == "labels":
        base = [*_LABELS, *(_gate_of_a_label(_plain) if gated else ())]
        return [*base, *_field_columns(tasks, base)]
    return [*(_SNAPSHOTS if table == "snapshots" else _AUTHORS)]


# ---- cells -----------------------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """Without what some format or reader cannot hold."""
    if text.isascii() and "\x00" not in text:
        return text
    return _UNFIT.sub("\ufffd", text)


def _text(value: Any) -> str | None:
    return clean(value) if isinstance(value, str) else None


def _json(value: Any) -> str | None:
    if value is None or value == []:
        return None if value is None else "[]"
    try:
        return clean(_ENCODE(value))
    except (ValueError, TypeError):
        return None


def _time(value: Any) -> int | None:
    return parse_time(value) if isinstance(value, str) else value if isinstance(value, int) else None


def _bool(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64 else None


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e308 < value < 1e308:  # noqa: PLR2004
        return None
    return float(value)


_CELLS: Final[dict[Kind, Callable[[Any], Any]]] = {
    "text": _text, "json": _json, "time": _time, "bool": _bool, "int": _int, "float": _float
}  # fmt: skip


# ---- where a cell comes from -----------------------------------------------------------------------------------------


def _of(where: Literal["post", "author", "about"], name: str, kind: Kind, meaning: str, *path: str) -> Column:
    """A column that is a key of one of the row's documents, or a key of a map there."""
    outer, inner = path if len(path) == 2 else ((*path, name)[0], None)  # noqa: PLR2004
    at = Row._fields.index(where)
    if inner is None:
        return Column(name, kind, meaning, lambda row: row[at].get(outer))
    return Column(name, kind, meaning, lambda row: (row[at].get(outer) or {}).get(inner))


def is_from(post: Document, kind: str) -> bool:
    """Whether one of a post's origins is of this kind."""
    return any(origin.get("kind") == kind for origin in post.get("origins") or ())


def feeds_of(post: Document) -> list[str]:
    """Names of the feeds that showed a post, in order, each once."""
    names = {str(one.get("name")) for one in post.get("origins") or () if one.get("kind") == "feed"}
    return sorted(names)


def weight(post: Document, about: Document | None) -> float | None:
    """For how many posts one that was drawn stands: 1 / (p_kept * p_sampled * p_asked); p_asked is 1 without a gate.

    None: it was not drawn, waits, or a gate kept it from the model.
    """
    p_kept, p_sampled = _float(post.get("p_kept", 1.0)), _float((about or {}).get("p_sampled"))
    p_asked = _float((about or {}).get("p_asked", 1.0))
    return 1 / (p_kept * p_sampled * p_asked) if p_kept and p_sampled and p_asked else None


def hour(text: Any) -> int | None:
    """A time, cut to its hour."""
    at = _time(text)
    return None if at is None else at - at % HOUR_US


def digits(value: Any) -> float | None:
    """A number, to three digits."""
    number = _float(value)
    return None if number is None else float(f"{number:.{_DIGITS}g}")


def _places(value: Any) -> float | None:
    number = _float(value)
    return None if number is None else round(number, _PLACES)


def _field(label: Document | None, field: str, part: str) -> Any:
    return (((label or {}).get("fields") or {}).get(field) or {}).get(part)


def _drawn(row: Row, task: str) -> Document | None:
    return row.labels.get(task) or row.unlabelled.get(task)


_POSTS: Final = (
    _of("post", "uri", "text", "The post's AT-URI. It names its author."),
    _of("post", "did", "text", "The author's account."),
    _of("post", "rkey", "text", "The record's key."),
    _of("post", "cid", "text", "Hash of the record as it is now."),
    _of("post", "rev", "text", "Revision of the author's repository. Null for a post that only a feed showed."),
    _of("post", "event_at", "time", "When the relay says that the post was made; of a post that only a feed "
        "showed, when the public API first saw it. Periods go by it."),
    _of("post", "created_at", "time", "When the author's program says so; anything is possible."),
    _of("post", "received_at", "time", "When it came in here."),
    _of("post", "backdated", "bool", "`created_at` lies more than 24 h before `event_at`."),
    _of("post", "text", "text", "The post's text."),
    _of("post", "langs", "json", "Languages as the author's program set them; a list."),
    _of("post", "reply_root", "text", "AT-URI of the thread's first post."),
    _of("post", "reply_parent", "text", "AT-URI of the post that this answers."),
    _of("post", "quote_uri", "text", "AT-URI of what is quoted."),
    _of("post", "link_uri", "text", "Link card: its address.", "link", "uri"),
    _of("post", "link_title", "text", "Link card: its title.", "link", "title"),
    _of("post", "link_description", "text", "Link card: its description.", "link", "description"),
    _of("post", "alts", "json", "Alt texts of pictures and video; a list."),
    _of("post", "media", "text", "Kind of what is embedded."),
    _of("post", "tags", "json", "Hashtags; a list."),
    _of("post", "links", "json", "Addresses linked in the text; a list."),
    _of("post", "mentions", "json", "Accounts mentioned in the text; a list."),
    _of("post", "self_labels", "json", "Labels that the author gave the post; a list."),
    _of("post", "moderation", "json", "Labels by moderation services, each with `source`, `value`, `at`; a list."),
    Column("from_firehose", "bool", "The stream brought it.", lambda row: is_from(row.post, "firehose")),
    Column("from_feed", "bool", "A feed showed it.", lambda row: is_from(row.post, "feed")),
    Column("feeds", "json", "Names of the feeds that showed it; a list.", lambda row: feeds_of(row.post)),
    _of("post", "origins", "json", "All origins, with relay, rank and time; a list."),
    Column("author_marks", "json", "What the author's profile says, such as `no-unauthenticated` and `automated`; a "
           "list. Null: not looked up.", lambda row: row.author.get("marks")),
    Column("author_lists", "json", "Your own lists that the author is on; a list. Null: not looked up.",
           lambda row: row.author.get("lists")),
    _of("post", "filter_version", "text", "Version of the filter's rules.", "filter", "version"),
    _of("post", "filter_english_by", "json", "Who said English; a list.", "filter", "english_by"),
    Column("filter_fasttext", "float", "fastText's probability of English.",
           lambda row: ((row.post.get("filter") or {}).get("scores") or {}).get("fasttext")),
    Column("filter_cld2", "float", "CLD2's share of English.",
           lambda row: ((row.post.get("filter") or {}).get("scores") or {}).get("cld2")),
    _of("post", "filter_flags", "json", "What you may want to leave out; a list.", "filter", "flags"),
    _of("post", "filter_reason", "text", "Why an edit would have been rejected.", "filter", "reason"),
    _of("post", "p_kept", "float", "Probability with which it was kept while the disk's bound was reached; else 1."),
)  # fmt: skip

_LABELS: Final = (
    _of("about", "label_id", "text", "Made from post, text, task, prompt, model and parameters.", "_id"),
    _of("about", "uri", "text", "The post."),
    _of("about", "cid", "text", "The text that was read."),
    Column("current_text", "bool", "It is the text that the post has now.",
           lambda row: row.about.get("cid") == row.post.get("cid")),
    _of("about", "task", "text", "Name of the task."),
    _of("about", "task_version", "text", "Its version."),
    _of("about", "run", "int", "0: labelled as the post came in. Above: the round of `label --again`."),
    _of("about", "prompt", "text", "Hash of everything that the model was given besides the post."),
    _of("about", "model", "text", "The model as the server named it."),
    _of("about", "model_asked", "text", "The model as it was asked for."),
    _of("about", "fingerprint", "text", "What the server says of its set-up."),
    _of("about", "server", "text", "Program and version of the server."),
    _of("about", "way", "text", "How the question was put: `schema`, `json`, `plain` or `words`."),
    _of("about", "parameters", "text", "The request's parameters; JSON."),
    _of("about", "endpoint", "text", "The server's address, or `local`."),
    _of("about", "input_hash", "text", "SHA-256 of what the model read."),
    _of("about", "context_hash", "text", "SHA-256 of the context that it read."),
    _of("about", "reason", "text", "The model's sentence, if the task asks for one. It may quote the post."),
    _of("about", "p_sampled", "float", "Probability with which the post was drawn for labelling."),
    _of("about", "tokens_in", "int", "Tokens read."),
    _of("about", "tokens_out", "int", "Tokens written."),
    _of("about", "tokens_reasoning", "int", "Of these the ones that the model thought with."),
    _of("about", "cost", "float", "By `label.prices`."),
    _of("about", "currency", "text", "Of the cost."),
    _of("about", "cached_from", "text", "The label whose answer this is."),
    _of("about", "latency_ms", "float", "Milliseconds from the first call to the answer."),
    _of("about", "calls", "int", "Requests that it took."),
    _of("about", "attempts", "int", "Which attempt succeeded."),
    _of("about", "at", "time", "When the answer was stored."),
)  # fmt: skip

_SNAPSHOTS: Final = (
    _of("about", "uri", "text", "The post."),
    _of("about", "at", "time", "When the counts were read."),
    _of("about", "why", "text", "The feed that showed the post, or the age at which it was looked up (`24h`)."),
    _of("about", "rank", "int", "Place in the feed, from 1; null when looked up."),
    _of("about", "likes", "int", "Likes then."),
    _of("about", "reposts", "int", "Reposts then."),
    _of("about", "replies", "int", "Replies then."),
    _of("about", "quotes", "int", "Quotes then."),
)

_AUTHORS: Final = (
    _of("author", "did", "text", "The account."),
    _of("author", "handle", "text", "Its handle when it was looked up."),
    _of("author", "created_at", "time", "When the account was made."),
    _of("author", "followers", "int", "Followers."),
    _of("author", "follows", "int", "Accounts that it follows."),
    _of("author", "posts", "int", "Posts."),
    _of("author", "marks", "json", "What the profile says, such as `no-unauthenticated` and `automated`; a list."),
    _of("author", "lists", "json", "Your own lists that it is on; a list."),
    _of("author", "moderation", "json", "Labels by moderation services; a list."),
    _of("author", "looked_up_at", "time", "When all this was read."),
)


# ---- the columns of tasks --------------------------------------------------------------------------------------------


def _plain(_kind: str, value: Any) -> Any:
    return value


def _rounded(kind: str, value: Any) -> Any:
    return _places(value) if kind == "probability" else digits(value)


_Round = Callable[[str, Any], Any]


class _Names:
    """Names that are taken: a task may be called like another's field. A second one gets underscores at its end."""

    def __init__(self, columns: Iterable[Column]) -> None:
        self._taken = {column.name for column in columns}

    def free(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _labelled(task: str, names: _Names) -> list[Column]:
    """What posts tell of their label besides values and weight; not at the level `public`."""
    return [
        Column(names.free(f"{task}_label_id"), "text", "The whole label, in the table `labels`.",
               lambda row: _label_id(row.labels.get(task))),
        Column(names.free(f"{task}_at"), "time", "When the answer was stored.",
               lambda row: (row.labels.get(task) or {}).get("at")),
    ]  # fmt: skip


def _label_id(label: Document | None) -> Any:
    # A label of the collection is its own; the post's current one points to it.
    return None if label is None else label.get("label_id") or label.get("_id")


def _task_columns(
    tasks: Tasks,
    others: Iterable[Column],
    more: Callable[[str, _Names], list[Column]] | None,
    rounding: _Round = _plain,
    gated: Collection[str] = (),
) -> list[Column]:
    names = _Names(others)
    found: list[Column] = []
    for task, fields in tasks.items():
        for field in fields:
            found += _pair(task, field, names, rounding, _label_of(task))
        found += _drawing_columns(task, names, rounding)
        found += _gate_columns(task, names, rounding) if task in gated else []
        found += more(task, names) if more else []
    return found


def _label_of(task: str) -> Callable[[Row], Document | None]:
    return lambda row: row.labels.get(task)


def _pair(
    task: str, field: str, names: _Names, rounding: _Round, label: Callable[[Row], Document | None]
) -> list[Column]:
    """A field's value, and the probability that the model gives it."""
    return [
        Column(names.free(f"{task}_{field}"), "text", f"The value of `{field}`. Null: no label, or it does not apply.",
               lambda row: _field(label(row), field, "value")),
        Column(names.free(f"{task}_{field}_probability"), "float", "The model's own; not calibrated.",
               lambda row: rounding("probability", _field(label(row), field, "probability"))),
    ]  # fmt: skip


def _drawing_columns(task: str, names: _Names, rounding: _Round) -> list[Column]:
    def label(row: Row, key: str) -> Any:
        return (row.labels.get(task) or {}).get(key)

    return [
        Column(names.free(f"{task}_p_sampled"), "float", "Probability with which the post was drawn for labelling. "
               "Null: not drawn, or it waits.",
               lambda row: rounding("p", (_drawn(row, task) or {}).get("p_sampled"))),
        Column(names.free(f"{task}_weight"), "float", "1 / (p_kept * p_sampled), also of posts that were drawn and got "
               "no label.", lambda row: rounding("p", weight(row.post, _drawn(row, task)))),
        Column(names.free(f"{task}_unlabelled"), "text", "Why a post that was drawn has no label.",
               lambda row: (row.unlabelled.get(task) or {}).get("reason")),
        Column(names.free(f"{task}_model"), "text", "The model as the server named it.",
               lambda row: label(row, "model")),
        Column(names.free(f"{task}_prompt"), "text", "Hash of everything that the model was given besides the post.",
               lambda row: label(row, "prompt")),
    ]  # fmt: skip


def _gate_columns(task: str, names: _Names, rounding: _Round) -> list[Column]:
    """Only for a task that ever had a gate."""

    def judged(row: Row) -> Document:
        return _drawn(row, task) or (row.post.get("gated") or {}).get(task) or {}

    return [
        Column(names.free(f"{task}_p_asked"), "float", "Probability with which the gate had the model asked. Null: no "
               "gate was asked; then it counts as 1.", lambda row: rounding("p", judged(row).get("p_asked"))),
        Column(names.free(f"{task}_gate"), "text", "Version of the gate.",
               lambda row: (judged(row).get("gate") or {}).get("version")),
        Column(names.free(f"{task}_gate_probability"), "float", "The gate's own; not calibrated.",
               lambda row: rounding("probability", (judged(row).get("gate") or {}).get("probability"))),
        Column(names.free(f"{task}_gate_passed"), "bool", "Not below the gate's threshold.",
               lambda row: (judged(row).get("gate") or {}).get("passed")),
        Column(names.free(f"{task}_gated"), "bool", "The gate kept it from the model: drawn, not asked about, and of "
               "no weight.", lambda row: task in (row.post.get("gated") or {})),
    ]  # fmt: skip


def _gate_of_a_label(rounding: _Round) -> list[Column]:
    """Only where a task ever had a gate."""

    def gate(row: Row, key: str) -> Any:
        return (row.about.get("gate") or {}).get(key)

    return [
        Column("p_asked", "float", "Probability with which the gate had the model asked. Null: no gate was asked; "
               "then it counts as 1.", lambda row: rounding("p", row.about.get("p_asked"))),
        Column("gate", "text", "Version of the gate.", lambda row: gate(row, "version")),
        Column("gate_probability", "float", "The gate's own; not calibrated.",
               lambda row: rounding("probability", gate(row, "probability"))),
        Column("gate_passed", "bool", "Not below the gate's threshold.", lambda row: gate(row, "passed")),
    ]  # fmt: skip


def _field_columns(tasks: Tasks, others: Iterable[Column], rounding: _Round = _plain) -> list[Column]:
    """The values of a label's fields; null in the columns of other tasks."""
    names = _Names(others)

    def label_of(task: str) -> Callable[[Row], Document | None]:
        return lambda row: row.about if row.about.get("task") == task else None

    return [
        column
        for task, fields in tasks.items()
        for field in fields
        for column in _pair(task, field, names, rounding, label_of(task))
    ]


# ---- the level `public` ----------------------------------------------------------------------------------------------

_HARMLESS: Final = ("current_text", "task", "task_version", "run", "prompt", "model", "model_asked", "fingerprint",
                    "server", "way", "parameters")  # fmt: skip
"""Columns of labels that are about the instrument. Left out: ids and hashes, made from the text; tokens, cost and
latency, which go with its length; `reason`, which may quote it; `cached_from`, which joins posts of the same text; and
`endpoint`, which is the researchers' own."""


def _public_posts(tasks: Tasks, names: Pseudonyms, gated: Collection[str]) -> list[Column]:
    base = [
        _post_name(names),
        Column("author", "text", "Stands for the author.", lambda row: names.author(row.post["did"])),
        Column("event_hour", "time", "The hour (UTC) in which the relay says that the post was made.",
               lambda row: hour(row.post.get("event_at"))),
        *(column for column in _POSTS if column.name in {"from_firehose", "from_feed", "filter_version"}),
        Column("p_kept", "float", "Probability with which it was kept while the disk's bound was reached; else 1.",
               lambda row: digits(row.post.get("p_kept"))),
    ]  # fmt: skip
    return [*base, *_task_columns(tasks, base, None, _rounded, gated)]


def _public_labels(tasks: Tasks, names: Pseudonyms, gated: Collection[str]) -> list[Column]:
    base = [
        _post_name(names),
        *(column for column in _LABELS if column.name in _HARMLESS),
        Column("p_sampled", "float", "Probability with which the post was drawn for labelling.",
               lambda row: digits(row.about.get("p_sampled"))),
        Column("label_hour", "time", "The hour (UTC) in which the answer was stored.",
               lambda row: hour(row.about.get("at"))),
        *(_gate_of_a_label(_rounded) if gated else ()),
    ]  # fmt: skip
    return [*base, *_field_columns(tasks, base, _rounded)]


def _post_name(names: Pseudonyms) -> Column:
    return Column("post", "text", "Stands for the post.", lambda row: names.post(row.post["uri"]))
