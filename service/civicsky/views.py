"""Reads what the public API answers: its views of posts, accounts and feeds. Pure.

What authors wrote is cut out unread, as bytes, since one author could otherwise spoil the answer for all others: a
JSON reader refuses nesting beyond its depth and numbers beyond its length. Where it is wanted, each record's bytes are
read by themselves.
"""

import json
import re
from collections.abc import Collection
from typing import Any, Final, NamedTuple

from civicsky.errors import BadInput
from civicsky.inbox import Item
from civicsky.model import did_of, format_time, parse_time
from civicsky.record import extract

_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["{}\[\]]', re.DOTALL)
"""A whole string, or a bracket; a quote alone is a string without an end. Never reads a byte twice."""
_LEVELS: Final = 3
"""An answer is an object (1) with a list (2) of objects (3), whose own fields are all that is read."""
_FEED_LEVELS: Final = 4
"""A feed's answer has each post one level further down, beside why it is shown."""
_LABEL_LEVELS: Final = 2
_AUTHOR_LEVELS: Final = 1
"""Of an author's view its own fields are read."""
_RECORD_LEVELS: Final = 8
"""More than `record.extract` looks at: five, for the alt text of a picture that stands beside a quote."""
_MAX_RECORD_BYTES: Final = 8_000_000
"""Bytes of one record's JSON: 1 MB is the most that a record may have, and each byte may be escaped by six."""
_MAX_CURSOR: Final = 4000
"""Characters of a cursor, which is a part of the next address; servers refuse addresses of more than 8 kB or so."""
_MAX_URI: Final = 8192
"""Characters: https://atproto.com/specs/at-uri-scheme."""
_MAX_CID: Final = 256
_MAX_LABELS: Final = 100
"""Labels of one post at most; each is cut to `_MAX_LABEL` characters, and a source to `_MAX_SOURCE`."""
_MAX_LABEL: Final = 128
_MAX_SOURCE: Final = 2048
_MAX_HANDLE: Final = 253
_DIGITS: Final = 19
"""Digits of the longest number that is read as such: 2**63 has so many."""


MARKS: Final = {"!no-unauthenticated": "no-unauthenticated", "bot": "automated"}
"""What an account's own labels mean, in our words. The first asks that only people who are signed in be shown what the
account says (https://docs.bsky.app/docs/advanced-guides/moderation); with the second its owner says that a program
writes its posts. Labels of others of the same value say nothing."""
_NO_HANDLE: Final = "handle.invalid"
"""https://atproto.com/specs/handle"""
UNREADABLE: Final = Item(0, "", "", 0, 0, 0, 0, 0, [], "")
"""In the place of a post of which the API does not say what it is."""


class PostView(NamedTuple):
    """A post as the public API shows it when it is asked for by name."""

    item: Item
    """Its rank is 0."""
    marks: list[str]
    """What the author's profile says of itself; see `MARKS`."""


class Profile(NamedTuple):
    """An account's profile: what is made use of, and nothing else of it. Names and words are left where they are."""

    did: str
    handle: str
    """In lower case; empty when the API does not say, or the handle is not the account's any more."""
    created_at: int | None
    """When the account says that it was made, in microseconds; None when it does not."""
    followers: int
    follows: int
    posts: int
    marks: list[str]
    """What the account says of itself; see `MARKS`."""
    moderation: list[dict[str, str]]
    """Labels of others about the account: {source, value, at}."""


class Page(NamedTuple):
    """One page of a feed."""

    items: list[Item]
    """In the feed's order, their ranks 0. What cannot be read is `UNREADABLE`."""
    cursor: str | None
    """Where the next page begins; None at the feed's end."""


def read(answer: bytes, levels: int = _LEVELS) -> dict[str, Any]:
    """The object that an answer is. What lies below so many levels is there as its bytes, unread.

    Raises `BadInput("appview_answer")`, as all here do, when it is none.
    """
    try:
        shallow, cut = _shallow(answer, levels)
        value = json.loads(shallow.decode(errors="replace"), parse_int=_number)
    except (ValueError, RecursionError):
        raise BadInput("appview_answer") from None
    if not isinstance(value, dict):
        raise BadInput("appview_answer")
    for name, item in value.items():
        value[name] = _put_back(item, cut, levels - 1)
    return value


def listed(answer: dict[str, Any], key: str) -> list[Any]:
    """The list that an answer has under a name."""
    found = answer.get(key)
    if not isinstance(found, list):
        raise BadInput("appview_answer")
    return found


def text(item: Any, key: str) -> str:
    """A field that the API itself wrote. An item without it is no sign that something is gone: all is of no use."""
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, str) or not value:
        raise BadInput("appview_answer")
    return value


def records(items: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By URI, what `AppView.records` gives of the posts of an answer."""
    return {
        uri: {"uri": uri, "cid": text(item, "cid"), "did": uri.split("/")[2], **_written(item.get("record"))}
        for uri, item in items.items()
    }


def posts(items: dict[str, Any]) -> dict[str, PostView]:
    """By URI, the posts of an answer that has them by name."""
    found = {}
    for uri, item in items.items():
        did = did_of(uri)
        found[uri] = PostView(_post(item), _marks(_author_labels(item.get("author")), did))
    return found


def fields(record: str) -> dict[str, Any]:
    """All keys of `record.extract`, of a record's JSON as an `Item` has it; in sound Unicode."""
    return _written(record.encode(errors="replace"))


def profiles(items: list[Any], dids: Collection[str]) -> dict[str, Profile]:
    """By DID, those of an answer that were asked for."""
    return {profile.did: profile for profile in map(_profile, items) if profile.did in dids}


def _profile(item: Any) -> Profile:
    did = text(item, "did")
    handle = _sound(item.get("handle"))[:_MAX_HANDLE].lower()
    said = _labels(item.get("labels"))
    return Profile(
        did=did,
        handle="" if handle == _NO_HANDLE else handle,
        created_at=parse_time(_sound(item.get("createdAt"))),
        followers=_count(item.get("followersCount")),
        follows=_count(item.get("followsCount")),
        posts=_count(item.get("postsCount")),
        marks=_marks(said, did),
        moderation=_others(said, did),
    )


def page(answer: bytes) -> Page:
    """A page of a feed (https://docs.bsky.app/docs/api/app-bsky-feed-get-feed)."""
    value = read(answer, _FEED_LEVELS)
    cursor = value.get("cursor") or None
    if cursor is not None and not (isinstance(cursor, str) and len(cursor) <= _MAX_CURSOR):
        raise BadInput("appview_answer")
    return Page([_item(item) for item in listed(value, "feed")], cursor)


def _item(shown: Any) -> Item:
    """A post that a feed shows, whether by itself, as an answer, or because somebody reposted it."""
    post = shown.get("post") if isinstance(shown, dict) else None
    return _post(post if isinstance(post, dict) else {})


def _post(post: dict[str, Any]) -> Item:
    uri, cid = _sound(post.get("uri")), _sound(post.get("cid"))
    if not 0 < len(uri) <= _MAX_URI or not 0 < len(cid) <= _MAX_CID:
        return UNREADABLE
    return Item(
        rank=0,
        uri=uri,
        cid=cid,
        indexed_at=parse_time(_sound(post.get("indexedAt"))) or 0,
        likes=_count(post.get("likeCount")),
        reposts=_count(post.get("repostCount")),
        replies=_count(post.get("replyCount")),
        quotes=_count(post.get("quoteCount")),
        moderation=_others(_labels(post.get("labels")), did_of(uri)),
        record=_as_text(post.get("record")),
    )


def _as_text(record: Any) -> str:
    """The JSON of a record as it came; it may be anything, or nothing."""
    if isinstance(record, bytes):
        return record.decode(errors="replace") if len(record) <= _MAX_RECORD_BYTES else ""
    return "" if record is None else json.dumps(record)


def _labels(labels: Any) -> dict[tuple[str, str], str]:
    """When labels were given, by (source, value), each once and without those that were taken back."""
    if not isinstance(labels, bytes):
        return {}
    try:
        shallow, _ = _shallow(labels, _LABEL_LEVELS)
        return _told_labels(json.loads(shallow.decode(errors="replace"), parse_int=_number))
    except ValueError:
        return {}


def _told_labels(values: Any) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for label in values if isinstance(values, list) else []:
        if not isinstance(label, dict):
            continue
        key = (_sound(label.get("src"))[:_MAX_SOURCE], _sound(label.get("val"))[:_MAX_LABEL])
        found.pop(key, None)
        if all(key) and label.get("neg") is not True:
            at = parse_time(_sound(label.get("cts")))
            found[key] = "" if at is None else format_time(at)
    return found


def _author_labels(author: Any) -> dict[tuple[str, str], str]:
    """The labels in the view of a post's author, which is there as its bytes."""
    try:
        return _labels(read(author, _AUTHOR_LEVELS).get("labels")) if isinstance(author, bytes) else {}
    except BadInput:
        return {}


def _others(said: dict[tuple[str, str], str], author: str) -> list[dict[str, str]]:
    """What services say: not the author's own labels."""
    found = [{"source": source, "value": value, "at": at} for (source, value), at in said.items() if source != author]
    return found[:_MAX_LABELS]


def _marks(said: dict[tuple[str, str], str], author: str) -> list[str]:
    """What an account says of itself."""
    return [mark for value, mark in MARKS.items() if (author, value) in said]


def _written(record: Any) -> dict[str, Any]:
    """The fields of a record, in sound Unicode: a half of a surrogate pair becomes a question mark."""
    fields: dict[str, Any] = json.loads(
        json.dumps(extract(_record(record)), ensure_ascii=False).encode(errors="replace")
    )
    return fields


def _record(text: Any) -> dict[str, Any]:
    """A record from the JSON that an author had written; empty when it is none, or cannot be read."""
    if not isinstance(text, bytes) or len(text) > _MAX_RECORD_BYTES:
        return {}
    try:
        shallow, _ = _shallow(text, _RECORD_LEVELS)
        value = json.loads(shallow.decode(errors="replace"), parse_int=float)  # which may have any number of digits
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _put_back(value: Any, cut: list[bytes], levels: int) -> Any:
    """A value of so many levels, with what was cut out below them in its places, as bytes."""
    if not levels:  # A list at this level is ours: the place of what was cut out.
        return cut[value[0]] if isinstance(value, list) else value
    if isinstance(value, dict):
        return {name: _put_back(item, cut, levels - 1) for name, item in value.items()}
    return [_put_back(item, cut, levels - 1) for item in value] if isinstance(value, list) else value


def _shallow(text: bytes, levels: int) -> tuple[bytes, list[bytes]]:
    """JSON with `[n]` for each object and list below so many levels, and what was cut out, of which this is the nth.

    What is cut out may be as deep and odd as you like. Raises ValueError when a string or a bracket is not closed.
    """
    kept, cut, depth, begin = list[bytes](), list[bytes](), 0, 0
    for token in _TOKEN.finditer(text):
        match token[0]:
            case b"{" | b"[":
                depth += 1
                if depth == levels + 1:
                    kept += [text[begin : token.start()], b"[%d]" % len(cut)]
                    begin = token.start()
            case b"}" | b"]":
                depth -= 1
                if depth == levels:
                    cut.append(text[begin : token.end()])
                    begin = token.end()
            case b'"':
                raise ValueError("a string has no end")
    if depth:
        raise ValueError("brackets do not close")
    return b"".join([*kept, text[begin:]]), cut


def _number(digits: str) -> int:
    """A whole number; one that is too long for any use is none."""
    return int(digits) if len(digits) <= _DIGITS else -1


def _count(value: Any) -> int:
    """How often something was done; 0 when the API does not say."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else 0


def _sound(value: Any) -> str:
    """A text in sound Unicode; empty when it is none."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""
