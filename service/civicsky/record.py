"""An author's post record in, the fields that we store out. Pure.

Every field is the author's claim and may have any type; a value of the wrong type is left out, never an error.
The record is an `app.bsky.feed.post`: https://docs.bsky.app/docs/advanced-guides/posts .
"""

import unicodedata
from typing import Any, Final

from civicsky.model import parse_time

MAX_TEXT: Final = 10_000
"""Characters kept of any one text. The lexicon allows 3,000 for a post; the record's own bytes stay whole."""
MAX_ITEMS: Final = 64
"""Entries kept of any one list (a commit's record may be 1 MB)."""
MAX_READABLE: Final = (MAX_ITEMS + 3) * (MAX_TEXT + 10)
"""Characters of `readable` at most: text, title, description and alt texts, each with its mark."""

_BLANK: Final = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})
_FILLERS: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0").union(
    map(chr, range(0xFE00, 0xFE10)), map(chr, range(0xE0100, 0xE01F0))
)
"""Characters that show nothing though Unicode counts them among letters, marks and symbols."""


_HOMES: Final = {"tag": ("tags", "tag"), "link": ("links", "uri"), "mention": ("mentions", "did")}
"""Of a facet's features: where its value goes, and what the value is called."""


def extract(record: dict[str, Any]) -> dict[str, Any]:
    """The fields of DATA's post table that come from the record itself.

    Keys: text, langs, created_at (microseconds or None), reply_root, reply_parent, quote_uri, link, alts, media, tags,
    links, mentions, self_labels. Absent things are None or an empty list.
    """
    reply = _map(record.get("reply"))
    embed = _map(record.get("embed"))
    created = record.get("createdAt")
    return {
        "text": _text(record.get("text")) or "",
        "langs": _texts(record.get("langs")),
        "created_at": parse_time(created) if isinstance(created, str) else None,
        "reply_root": _text(_map(reply.get("root")).get("uri")),
        "reply_parent": _text(_map(reply.get("parent")).get("uri")),
        **_embedded(embed),
        **_facets(record),
        "self_labels": [
            value for item in _list(_map(record.get("labels")).get("values")) if (value := _text(_map(item).get("val")))
        ],
    }


def readable(fields: dict[str, Any]) -> str:
    """All that the author chose to say: the text, then the link card, then alt texts; what the model reads.

    Parts that show nothing are left out.
    """
    link = fields["link"] or {"title": "", "description": ""}
    card = " - ".join(part for part in (link["title"], link["description"]) if not is_blank(part))
    parts = [] if is_blank(fields["text"]) else [fields["text"]]
    parts += ["Link: " + card] if card else []
    parts += ["Image: " + alt for alt in fields["alts"] if not is_blank(alt)]
    return "\n".join(parts)


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: it is empty, or all white space, control and invisible characters."""
    if text[:1].isalnum() and text[0] not in _FILLERS:  # nearly all texts, at once
        return False
    return all(unicodedata.category(char) in _BLANK or char in _FILLERS for char in set(text))


def _embedded(embed: dict[str, Any]) -> dict[str, Any]:
    """Quote, link card, alt texts and kind of media; recordWithMedia carries both a quote and a medium."""
    if not embed:
        return {"quote_uri": None, "link": None, "alts": [], "media": None}
    kind = _kind(embed)
    media = _map(embed.get("media")) if kind == "recordWithMedia" else embed
    # The record embed holds a strong reference; inside recordWithMedia it is one level further down.
    quoted = _map(embed.get("record"))
    quote = _text(quoted.get("uri")) or _text(_map(quoted.get("record")).get("uri"))
    external = _map(media.get("external"))
    link = None
    if external:
        link = {name: _text(external.get(name)) or "" for name in ("uri", "title", "description")}
    alts = [_text(_map(image).get("alt")) for image in _list(media.get("images"))]
    alts.append(_text(media.get("alt")))
    media_kind = _kind(media)
    return {
        "quote_uri": quote,
        "link": link,
        "alts": [alt for alt in alts if alt],
        "media": media_kind if media_kind and media_kind != "record" else None,
    }


def _facets(record: dict[str, Any]) -> dict[str, list[str]]:
    """Tags, links and mentions, each once, in the order in which they appear."""
    if not record.get("facets") and not record.get("tags"):
        return {"tags": [], "links": [], "mentions": []}
    found: dict[str, dict[str, None]] = {"tags": {}, "links": {}, "mentions": {}}
    for facet in _list(record.get("facets")):
        for feature in _list(_map(facet).get("features")):
            home = _HOMES.get((_text(_map(feature).get("$type")) or "").rpartition("#")[2])
            value = _text(_map(feature).get(home[1])) if home else None
            if home and value:
                found[home[0]][value] = None
    for tag in _texts(record.get("tags")):
        found["tags"][tag] = None
    return {name: list(values)[:MAX_ITEMS] for name, values in found.items()}


def _kind(embed: dict[str, Any]) -> str:
    """`app.bsky.embed.images` -> `images`."""
    return (_text(embed.get("$type")) or "").rpartition(".")[2][:64]


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value[:MAX_ITEMS] if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    return value[:MAX_TEXT] if isinstance(value, str) else None


def _texts(value: Any) -> list[str]:
    return [item[:MAX_TEXT] for item in _list(value) if isinstance(item, str)]
