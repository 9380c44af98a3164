from typing import Any

import pytest
from hypothesis import given, strategies as st
from libipld import decode_dag_cbor

from civicsky.decode import decode
from civicsky.record import MAX_ITEMS, MAX_TEXT, extract, readable
from support.tried import tried
from unit.recorded import POST, index, stream

NOTHING: dict[str, Any] = {
    "text": "",
    "langs": [],
    "created_at": None,
    "reply_root": None,
    "reply_parent": None,
    "quote_uri": None,
    "link": None,
    "alts": [],
    "media": None,
    "tags": [],
    "links": [],
    "mentions": [],
    "self_labels": [],
}
BOARD = "at://did:plc:oad33l6rbjzqnu5ow23htckw/app.bsky.feed.post/3n2vmmxboik24"


def recorded(i: int) -> dict[str, Any]:
    """The fields of the one post in frame `i` of the stream `live`."""
    (post,) = decode(stream("live")[i]).posts
    return extract(decode_dag_cbor(post.block))


def at(hours: int, minutes: int, seconds: float) -> int:
    """A time of the day of the recording."""
    return 1_795_305_600_000_000 + round((hours * 3600 + minutes * 60 + seconds) * 1000) * 1000


# ---- real records ----------------------------------------------------------------------------------------------------


def test_a_real_post_with_facets_and_tags_gives_all_of_them_in_order() -> None:
    assert recorded(226) == NOTHING | {
        "text": "see https://example.com/p?x=1&y=2 @user16.test #atproto 🎉",
        "langs": ["en"],
        "created_at": at(12, 30, 53.721),
        "tags": ["atproto", "extra", "ハッシュ"],
        "links": ["https://example.com/p?x=1&y=2"],
        "mentions": ["did:plc:lzxprviyfrxmqlx75bsmngvk"],
    }


def test_a_real_post_with_a_link_card_gives_the_card() -> None:
    card = {
        "uri": "https://example.com/article",
        "title": "An article — “titled”",
        "description": "Descrição çom ácentos 🚀",
    }
    assert recorded(247) == NOTHING | {
        "text": "Worth a read",
        "langs": ["en"],
        "created_at": at(12, 30, 55.022),
        "link": card,
        "media": "external",
    }


def test_a_real_post_with_a_picture_gives_its_alt_text() -> None:
    assert recorded(248) == NOTHING | {
        "text": "with a picture",
        "langs": ["en"],
        "created_at": at(12, 30, 55.118),
        "alts": ["one pixel \u2013 alt text 写真"],
        "media": "images",
    }


def test_a_real_quote_gives_the_address_of_what_is_quoted_and_is_no_medium() -> None:
    assert recorded(249) == NOTHING | {
        "text": "quoting this",
        "langs": ["en"],
        "created_at": at(12, 30, 55.176),
        "quote_uri": BOARD,
    }


def test_a_real_quote_with_media_gives_both() -> None:
    assert recorded(250) == NOTHING | {
        "text": "quote with media",
        "langs": ["en"],
        "created_at": at(12, 30, 55.226),
        "quote_uri": BOARD,
        "link": {"uri": "https://example.net", "title": "t", "description": "d"},
        "media": "external",
    }


@pytest.mark.parametrize(
    ("i", "labels"),
    [
        (238, ["porn"]),
        (239, ["sexual"]),
        (240, ["nudity"]),
        (241, ["graphic-media"]),
        (242, ["porn", "sexual"]),
        (243, ["!no-unauthenticated"]),
        (244, ["!warn"]),
        (245, ["custom-label"]),
        (246, []),
    ],
)
def test_real_self_labels_are_told(i: int, labels: list[str]) -> None:
    assert recorded(i)["self_labels"] == labels


def test_every_recorded_post_gives_what_the_servers_api_said_of_it() -> None:
    compared = replies = 0
    for data, row in zip(stream("live"), index(), strict=True):
        told = [op["truth"] for op in row.get("ops", []) if op["path"].startswith(POST) and op["action"] != "delete"]
        blocks = [post.block for post in decode(data).posts if post.action != "delete"]
        for record, block in zip(told, blocks, strict=True):
            fields = extract(decode_dag_cbor(block))
            assert fields["text"] == record["text"]
            assert fields["langs"] == record.get("langs", [])
            assert fields["reply_root"] == record.get("reply", {}).get("root", {}).get("uri")
            assert fields["reply_parent"] == record.get("reply", {}).get("parent", {}).get("uri")
            compared, replies = compared + 1, replies + ("reply" in record)
    assert (compared, replies) == (345, 60)


# ---- kinds of embed --------------------------------------------------------------------------------------------------


def with_embed(kind: str, **embed: Any) -> dict[str, Any]:
    return extract({"embed": {"$type": f"app.bsky.embed.{kind}", **embed}})


def test_the_alt_texts_of_several_pictures_are_told_without_the_empty_ones() -> None:
    images = [{"alt": "one"}, {"alt": ""}, {}, {"alt": "two"}]
    assert with_embed("images", images=images) == NOTHING | {"alts": ["one", "two"], "media": "images"}


def test_the_alt_text_of_a_video_is_told() -> None:
    assert with_embed("video", alt="a goal", video={}) == NOTHING | {"alts": ["a goal"], "media": "video"}


def test_a_quote_with_pictures_gives_both() -> None:
    media = {"$type": "app.bsky.embed.images", "images": [{"alt": "a cat"}]}
    quoted = {"$type": "app.bsky.embed.record", "record": {"uri": BOARD, "cid": "x"}}
    expected = NOTHING | {"quote_uri": BOARD, "alts": ["a cat"], "media": "images"}
    assert with_embed("recordWithMedia", record=quoted, media=media) == expected


def test_a_quote_with_a_video_gives_both() -> None:
    media = {"$type": "app.bsky.embed.video", "alt": "a dog"}
    quoted = {"record": {"uri": BOARD}}
    expected = NOTHING | {"quote_uri": BOARD, "alts": ["a dog"], "media": "video"}
    assert with_embed("recordWithMedia", record=quoted, media=media) == expected


def test_a_quote_with_media_that_has_no_media_is_still_a_quote() -> None:
    assert with_embed("recordWithMedia", record={"record": {"uri": BOARD}}) == NOTHING | {"quote_uri": BOARD}


def test_an_embed_of_an_unknown_kind_is_told_by_its_name() -> None:
    assert with_embed("hologram") == NOTHING | {"media": "hologram"}
    assert extract({"embed": {"$type": "com.example." + "x" * 100}})["media"] == "x" * 64
    assert extract({"embed": {}})["media"] is None


def test_a_link_card_without_title_and_description_has_empty_ones() -> None:
    expected = {"uri": "https://example.net", "title": "", "description": ""}
    assert with_embed("external", external={"uri": "https://example.net"})["link"] == expected


# ---- facets ----------------------------------------------------------------------------------------------------------


def facet(*features: Any) -> dict[str, Any]:
    return {"index": {"byteStart": 0, "byteEnd": 1}, "features": list(features)}


def feature(kind: str, **value: Any) -> dict[str, Any]:
    return {"$type": f"app.bsky.richtext.facet#{kind}", **value}


def test_each_tag_link_and_mention_is_told_once_in_the_order_of_appearance() -> None:
    found = extract(
        {
            "facets": [
                facet(feature("tag", tag="b"), feature("link", uri="u2")),
                facet(feature("tag", tag="a"), feature("mention", did="did:plc:x")),
                facet(feature("tag", tag="b"), feature("link", uri="u1"), feature("link", uri="u2")),
            ],
            "tags": ["a", "c", "b"],
        }
    )
    assert found == NOTHING | {"tags": ["b", "a", "c"], "links": ["u2", "u1"], "mentions": ["did:plc:x"]}


def test_features_of_unknown_kind_or_without_their_value_are_left_out() -> None:
    odd = [feature("sparkle", tag="x"), feature("tag", uri="x"), feature("link", tag="x"), feature("tag", tag="")]
    assert extract({"facets": [facet(*odd, {"tag": "x"}, {"$type": 7, "tag": "x"}, None, 7)]}) == NOTHING


# ---- values of the wrong type ----------------------------------------------------------------------------------------

WHOLE: dict[str, Any] = {
    "$type": POST,
    "text": "hello",
    "langs": ["en"],
    "createdAt": "1970-01-01T00:00:01Z",
    "reply": {"root": {"uri": "at://root"}, "parent": {"uri": "at://parent"}},
    "embed": {
        "$type": "app.bsky.embed.recordWithMedia",
        "record": {"record": {"uri": BOARD}},
        "media": {
            "$type": "app.bsky.embed.images",
            "images": [{"alt": "alt"}],
            "alt": "video",
            "external": {"uri": "u", "title": "t", "description": "d"},
        },
    },
    "facets": [facet(feature("tag", tag="tag"))],
    "tags": ["more"],
    "labels": {"values": [{"val": "label"}]},
}
WHOLE_FIELDS: dict[str, Any] = {
    "text": "hello",
    "langs": ["en"],
    "created_at": 1_000_000,
    "reply_root": "at://root",
    "reply_parent": "at://parent",
    "quote_uri": BOARD,
    "link": {"uri": "u", "title": "t", "description": "d"},
    "alts": ["alt", "video"],
    "media": "images",
    "tags": ["tag", "more"],
    "links": [],
    "mentions": [],
    "self_labels": ["label"],
}
NO_MEDIA: dict[str, Any] = {"link": None, "alts": [], "media": None}
NO_FACETS: dict[str, Any] = {"tags": ["more"]}

LOST: list[tuple[tuple[str | int, ...], dict[str, Any]]] = [
    (("text",), {"text": ""}),
    (("langs",), {"langs": []}),
    (("langs", 0), {"langs": []}),
    (("createdAt",), {"created_at": None}),
    (("reply",), {"reply_root": None, "reply_parent": None}),
    (("reply", "root"), {"reply_root": None}),
    (("reply", "root", "uri"), {"reply_root": None}),
    (("reply", "parent"), {"reply_parent": None}),
    (("reply", "parent", "uri"), {"reply_parent": None}),
    (("embed",), {"quote_uri": None, **NO_MEDIA}),
    (("embed", "record"), {"quote_uri": None}),
    (("embed", "record", "record"), {"quote_uri": None}),
    (("embed", "record", "record", "uri"), {"quote_uri": None}),
    (("embed", "media"), NO_MEDIA),
    (("embed", "media", "$type"), {"media": None}),
    (("embed", "media", "images"), {"alts": ["video"]}),
    (("embed", "media", "images", 0), {"alts": ["video"]}),
    (("embed", "media", "images", 0, "alt"), {"alts": ["video"]}),
    (("embed", "media", "alt"), {"alts": ["alt"]}),
    (("embed", "media", "external"), {"link": None}),
    (("embed", "media", "external", "uri"), {"link": {"uri": "", "title": "t", "description": "d"}}),
    (("embed", "media", "external", "title"), {"link": {"uri": "u", "title": "", "description": "d"}}),
    (("embed", "media", "external", "description"), {"link": {"uri": "u", "title": "t", "description": ""}}),
    (("facets",), NO_FACETS),
    (("facets", 0), NO_FACETS),
    (("facets", 0, "features"), NO_FACETS),
    (("facets", 0, "features", 0), NO_FACETS),
    (("facets", 0, "features", 0, "$type"), NO_FACETS),
    (("facets", 0, "features", 0, "tag"), NO_FACETS),
    (("tags",), {"tags": ["tag"]}),
    (("tags", 0), {"tags": ["tag"]}),
    (("labels",), {"self_labels": []}),
    (("labels", "values"), {"self_labels": []}),
    (("labels", "values", 0), {"self_labels": []}),
    (("labels", "values", 0, "val"), {"self_labels": []}),
]


def replaced(whole: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A copy of a record with another value at a path."""
    if not path:
        return value
    copy: Any = dict(whole) if isinstance(whole, dict) else list(whole)
    copy[path[0]] = replaced(whole[path[0]], path[1:], value)
    return copy


def test_a_whole_record_gives_every_field_but_links_and_mentions() -> None:
    assert extract(WHOLE) == WHOLE_FIELDS


@pytest.mark.parametrize(("path", "lost"), LOST, ids=lambda value: ".".join(map(str, value)))
@pytest.mark.parametrize("wrong", [None, True, 7, -(2**63), b"bytes"], ids=str)
def test_a_value_of_the_wrong_type_is_left_out_and_costs_nothing_else(
    path: tuple[str | int, ...], lost: dict[str, Any], wrong: Any
) -> None:
    assert extract(replaced(WHOLE, path, wrong)) == WHOLE_FIELDS | lost


@pytest.mark.parametrize("path", [path for path, _ in LOST], ids=lambda value: ".".join(map(str, value)))
@pytest.mark.parametrize("wrong", [[], {}, [[]], [{}], {"uri": {}}, {"$type": {}}, "", "word"], ids=str)
def test_every_field_keeps_its_type_whatever_the_author_wrote(path: tuple[str | int, ...], wrong: Any) -> None:
    well_formed(extract(replaced(WHOLE, path, wrong)))


def well_formed(fields: dict[str, Any]) -> None:
    assert list(fields) == list(NOTHING)
    assert type(fields["text"]) is str
    assert fields["created_at"] is None or type(fields["created_at"]) is int
    for name in ("reply_root", "reply_parent", "quote_uri", "media"):
        assert fields[name] is None or type(fields[name]) is str
    for name in ("langs", "alts", "tags", "links", "mentions", "self_labels"):
        assert all(type(item) is str for item in fields[name])
    if fields["link"] is not None:
        assert [(name, type(value)) for name, value in fields["link"].items()] == [
            ("uri", str),
            ("title", str),
            ("description", str),
        ]


def names_in(value: Any) -> set[str]:
    """Every key of a record, at any depth."""
    if isinstance(value, dict):
        return set(value).union(*(names_in(item) for item in value.values()))
    return set().union(*(names_in(item) for item in value)) if isinstance(value, list) else set()


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.binary(max_size=10)
names = st.sampled_from(sorted({*NOTHING, "did", *names_in(WHOLE)}))
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4))


@tried(300)
@given(st.dictionaries(names, values, max_size=8))
def test_any_record_at_all_gives_fields_of_the_right_types(record: dict[str, Any]) -> None:
    well_formed(extract(record))


@pytest.mark.parametrize(
    ("created", "expected"),
    [
        ("2026-11-22T12:30:53.721Z", at(12, 30, 53.721)),
        ("2026-11-22T12:30:53Z", at(12, 30, 53)),
        ("2026-11-22T14:30:53.721+02:00", at(12, 30, 53.721)),
        ("2026-11-22T12:30:53.721", None),
        ("1969-12-31T23:59:59Z", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_the_time_that_the_author_claims_is_told_when_it_is_one(created: str, expected: int | None) -> None:
    assert extract({"createdAt": created})["created_at"] == expected


# ---- bounds ----------------------------------------------------------------------------------------------------------


def test_no_text_is_longer_than_its_bound() -> None:
    long = "é" * (MAX_TEXT + 1)
    fields = extract(
        {
            "text": long,
            "langs": [long],
            "reply": {"root": {"uri": long}, "parent": {"uri": long}},
            "embed": {
                "$type": long,
                "record": {"uri": long},
                "images": [{"alt": long}],
                "external": {"uri": long, "title": long, "description": long},
            },
            "facets": [facet(feature("tag", tag=long), feature("link", uri=long), feature("mention", did=long))],
            "tags": [long],
            "labels": {"values": [{"val": long}]},
        }
    )
    cut = "é" * MAX_TEXT
    assert fields == {
        "text": cut,
        "langs": [cut],
        "created_at": None,
        "reply_root": cut,
        "reply_parent": cut,
        "quote_uri": cut,
        "link": {"uri": cut, "title": cut, "description": cut},
        "alts": [cut],
        "media": "é" * 64,
        "tags": [cut],
        "links": [cut],
        "mentions": [cut],
        "self_labels": [cut],
    }


def test_no_list_is_longer_than_its_bound() -> None:
    many = [str(n) for n in range(MAX_ITEMS + 1)]
    cut = many[:MAX_ITEMS]
    fields = extract(
        {
            "langs": many,
            "embed": {"images": [{"alt": alt} for alt in many]},
            "facets": [facet(feature("link", uri=uri), feature("mention", did=uri)) for uri in many],
            "tags": many,
            "labels": {"values": [{"val": value} for value in many]},
        }
    )
    names = ("langs", "alts", "links", "mentions", "tags", "self_labels")
    assert {name: fields[name] for name in names} == dict.fromkeys(names, cut)


def test_many_features_in_many_facets_are_bounded_too() -> None:
    facets = [facet(*[feature("tag", tag=f"{n}-{m}") for m in range(100)]) for n in range(100)]
    assert extract({"facets": facets})["tags"] == [f"0-{m}" for m in range(MAX_ITEMS)]


# ---- what there is to read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, ""),
        ({"text": "hello"}, "hello"),
        ({"text": " \n "}, ""),
        ({"text": "hello", "alts": ["a cat", "a dog"]}, "hello\nImage: a cat\nImage: a dog"),
        ({"alts": ["a cat"]}, "Image: a cat"),
        ({"text": "x", "link": {"uri": "u", "title": "t", "description": "d"}}, "x\nLink: t - d"),
        ({"link": {"uri": "u", "title": "t", "description": ""}}, "Link: t"),
        ({"link": {"uri": "u", "title": "", "description": "d"}}, "Link: d"),
        ({"link": {"uri": "u", "title": "", "description": ""}}, ""),
        (
            {"text": "x", "alts": ["a"], "link": {"uri": "u", "title": "t", "description": ""}},
            "x\nLink: t\nImage: a",
        ),
        ({"text": "\u200b", "alts": [" ", "\u2060", "a"]}, "Image: a"),
        ({"text": "x", "link": {"uri": "u", "title": "\u00ad", "description": "\n"}}, "x"),
        ({"link": {"uri": "u", "title": "\ufeff", "description": "d"}}, "Link: d"),
        ({"text": "\u200b \u200b x \ufeff"}, "\u200b \u200b x \ufeff"),
        ({"text": "."}, "."),
        ({"text": "\u2764\ufe0f"}, "\u2764\ufe0f"),
        ({"tags": ["tag"], "quote_uri": BOARD, "self_labels": ["porn"]}, ""),
    ],
)
def test_what_the_author_chose_to_say_is_text_then_card_then_alt_texts(fields: dict[str, Any], text: str) -> None:
    assert readable(NOTHING | fields) == text
