"""What a worker makes of one record, called in this process."""

import json
import random
from typing import Any

import cbor2
import pytest
from hypothesis import given, strategies as st

from civicsky.decode import decode
from civicsky.filter import VERSION, Keep
from civicsky.model import Verdict
from civicsky.worker import judge_record
from support.tried import tried
from unit.recorded import POST, cid_of, encode, index, post, stream, truth

ENGLISH = "The city council votes on the new budget tomorrow evening."
GERMAN = "Der Stadtrat stimmt morgen Abend über den neuen Haushalt ab."
BAD = {"wrong_hash", "undecodable", "not_a_record", "wrong_type", "bad_text"}


def judge(block: bytes, keep: Keep = "english") -> Verdict:
    return judge_record(cid_of(block), block, keep)


def fields(verdict: Verdict) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(verdict.fields)
    return found


# ---- kept and rejected -----------------------------------------------------------------------------------------------


def test_an_english_post_is_kept_with_its_fields_and_the_filters_notes() -> None:
    verdict = judge(post(text=ENGLISH, langs=["en"], createdAt="1970-01-01T00:00:01Z"))
    assert verdict[:2] == ("kept", "")
    found = fields(verdict)
    scores = found["filter"].pop("scores")
    assert found == {
        "text": ENGLISH,
        "langs": ["en"],
        "created_at": 1_000_000,
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
        "filter": {"version": VERSION, "english_by": ["tag", "cld2", "fasttext"], "flags": [], "reason": None},
    }
    assert set(scores) == {"cld2", "fasttext"}
    assert 0.9 < scores["fasttext"] <= 1
    assert 0.9 < scores["cld2"] <= 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text": GERMAN, "langs": ["de"]}, "language"),
        ({"text": GERMAN, "langs": ["en"]}, "language"),
        ({"text": ""}, "no_text"),
        ({"text": ENGLISH, "langs": ["en"], "labels": {"values": [{"val": "porn"}]}}, "adult"),
    ],
)
def test_a_post_is_rejected_with_its_reason_and_keeps_its_fields(changes: dict[str, Any], reason: str) -> None:
    verdict = judge(post(**changes))
    assert verdict[:2] == ("rejected", reason)
    assert fields(verdict)["text"] == changes["text"]
    assert fields(verdict)["filter"]["version"] == VERSION


def test_every_language_is_kept_when_the_language_does_not_matter() -> None:
    block = post(text=GERMAN, langs=["de"])
    assert judge(block)[:2] == ("rejected", "language")
    verdict = judge(block, "any_language")
    assert verdict[:2] == ("kept", "")
    assert fields(verdict)["filter"]["english_by"] == []
    assert fields(verdict)["filter"]["flags"] == ["language"]
    assert judge(post(text=""), "any_language")[:2] == ("rejected", "no_text")


def test_everything_is_kept_when_nothing_matters_but_what_is_not_a_post() -> None:
    verdict = judge(post(text=""), "all")
    assert (verdict[:2], fields(verdict)["filter"]["flags"]) == (("kept", ""), ["no_text"])
    assert judge(post(text=7), "all") == Verdict("bad", "bad_text")
    assert judge(b"", "all") == Verdict("bad", "undecodable")


def test_every_recorded_post_is_kept_but_the_adult_and_the_empty_when_the_language_does_not_matter() -> None:
    verdicts: dict[str, Verdict] = {}
    for name in ("live", "sample"):
        for data in stream(name):
            found = decode(data)
            for one in found.posts:
                if one.action != "delete":
                    verdict = judge_record(one.cid, one.block, "any_language")
                    verdicts[f"at://{found.did}/{POST}/{one.rkey}"] = verdict
    adult = {"porn", "sexual", "nudity"}
    expected = {
        row["uri"]: "adult" if adult & set(row.get("self_labels", [])) else "" for row in truth() if row["text"].strip()
    }
    assert len(expected) == 598
    for row in index():
        for op in row.get("ops", []):
            if op["path"].startswith(POST) and op["action"] != "delete":
                labels = {value["val"] for value in op["truth"].get("labels", {}).get("values", [])}
                expected[f"at://{row['repo']}/{op['path']}"] = (
                    "adult" if adult & labels else "" if op["truth"]["text"].strip() else "no_text"
                )
    assert {uri: verdicts[uri].reason for uri in expected} == expected
    assert {verdicts[uri].kind for uri in expected} == {"kept", "rejected"}
    assert list(expected.values()).count("adult") == 12


# ---- bad records -----------------------------------------------------------------------------------------------------


def test_a_block_that_is_not_the_one_its_cid_names_has_the_wrong_hash() -> None:
    block = post(text=ENGLISH)
    for at in range(len(block)):
        changed = block[:at] + bytes([block[at] ^ 1]) + block[at + 1 :]
        assert judge_record(cid_of(block), changed) == Verdict("bad", "wrong_hash")


@pytest.mark.parametrize(
    "prefix",
    [
        b"",
        b"\x01\x55\x12\x20",
        b"\x01\x70\x12\x20",
        b"\x00\x71\x12\x20",
        b"\x01\x71\x13\x20",
        b"\x01\x71\x12\x21",
        b"\x12\x20",
    ],
)
def test_a_cid_of_another_kind_has_the_wrong_hash_even_with_the_right_digest(prefix: bytes) -> None:
    block = post(text=ENGLISH)
    assert judge(block).kind == "kept"
    assert judge_record(prefix + cid_of(block)[4:], block) == Verdict("bad", "wrong_hash")


@pytest.mark.parametrize("value", [[], [post()], b"bytes", "text", 7, None, True])
def test_a_block_that_is_not_a_map_is_not_a_record(value: Any) -> None:
    assert judge(encode(value)) == Verdict("bad", "not_a_record")


@pytest.mark.parametrize("kind", [..., None, 7, b"x", [POST], {}, "", "app.bsky.feed.like", f"{POST}#main", f" {POST}"])
def test_a_record_whose_type_is_not_a_posts_has_the_wrong_type(kind: Any) -> None:
    assert judge(post(text=ENGLISH, **{"$type": kind})) == Verdict("bad", "wrong_type")


@pytest.mark.parametrize("text", [..., None, 7, True, b"text", ["text"], {"text": "text"}])
def test_a_text_that_is_not_a_text_is_bad(text: Any) -> None:
    assert judge(post(text=text)) == Verdict("bad", "bad_text")


def raw(*pairs: tuple[str, bytes]) -> bytes:
    """A map with these pairs as they are, in this order."""
    head = bytes([0xA0 + len(pairs)])
    return head + b"".join(cbor2.dumps(name) + value for name, value in pairs)


TEXT = ("text", cbor2.dumps(ENGLISH))
TYPE = ("$type", cbor2.dumps(POST))


@pytest.mark.parametrize(
    "block",
    [
        b"",
        post(text=ENGLISH)[:-1],
        post(text=ENGLISH) + b"\0",
        b"\x81" * 10_000 + b"\0",
        raw(TEXT, TYPE, ("a", b"\x81" * 10_000 + b"\0")),
        raw(TEXT, TYPE, ("a", b"\xa1\x61a" * 10_000 + b"\0")),
        raw(TEXT, TEXT, TYPE),
        raw(("text", b"\x63\xed\xa0\x80"), TYPE),
        raw(("text", b"\x62\xc3\x28"), TYPE),
        raw(TEXT, TYPE, ("a", b"\xfb\x7f\xf8" + b"\0" * 6)),
        raw(TEXT, TYPE, ("a", b"\xfb\x7f\xf0" + b"\0" * 6)),
        raw(TEXT, TYPE, ("a", b"\xc2\x49\x01" + b"\0" * 8)),
        raw(TEXT, TYPE, ("a", b"\x9b" + b"\xff" * 8)),
        raw(TEXT, TYPE, ("a", b"\x5b\x00\x00\x00\x7f\xff\xff\xff\xff")),
        raw(TEXT, TYPE, ("a", b"\xd8\x2a\x41\x00")),
        b"\xa3" + cbor2.dumps("text") + TEXT[1] + b"\x00\x00" + cbor2.dumps("$type") + TYPE[1],
    ],
    ids=lambda block: block[:60].hex(),
)
def test_what_is_not_dag_cbor_is_undecodable(block: bytes) -> None:
    assert judge(block) == Verdict("bad", "undecodable")


@pytest.mark.parametrize("number", [2**63, 2**64 - 1, -(2**63), -(2**64), 2**53 + 1])
def test_a_number_of_64_bits_anywhere_in_a_record_costs_nothing(number: int) -> None:
    block = post(text=ENGLISH, langs=["en", number], embed={"width": number}, reply=number, tags=[number])
    verdict = judge(block)
    assert verdict[:2] == ("kept", "")
    assert fields(verdict)["langs"] == ["en"]
    assert fields(verdict)["tags"] == []


def test_a_nul_in_a_text_is_kept_as_it_is() -> None:
    text = f"{ENGLISH}\0 And on the buses.\0"
    verdict = judge(post(text=text, langs=["en"]))
    assert verdict[:2] == ("kept", "")
    assert fields(verdict)["text"] == text


def test_characters_beyond_ascii_are_kept_as_they_are() -> None:
    text = f"{ENGLISH} é 日本 🏳️\u200d🌈 \u2028 \u202e \ufeff \ufffe \x7f \x1b[31m"
    verdict = judge(post(text=text, langs=["en"]))
    assert verdict.kind == "kept"
    assert fields(verdict)["text"] == text
    assert "日本" in verdict.fields


def test_moderate_nesting_in_a_field_that_we_read_is_left_out() -> None:
    nested: Any = "en"
    for _ in range(100):
        nested = [nested]
    verdict = judge(post(text=ENGLISH, langs=nested, facets=nested, embed=nested, labels={"values": nested}))
    assert verdict.kind == "kept"
    assert fields(verdict)["langs"] == []


# ---- anything --------------------------------------------------------------------------------------------------------


def test_random_blocks_with_the_right_hash_are_bad_and_never_an_error() -> None:
    randomness = random.Random(20261122)
    for _ in range(3000):
        verdict = judge(randomness.randbytes(randomness.randrange(60)))
        assert verdict.kind == "bad"
        assert verdict.reason in BAD - {"wrong_hash"}
        assert verdict.fields == ""


scalars = st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.text(max_size=30) | st.binary(max_size=9)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)
names = st.sampled_from(["text", "langs", "createdAt", "reply", "embed", "facets", "tags", "labels", "$type"])


@tried(400)
@given(st.dictionaries(names, values, max_size=5), st.text(max_size=80))
def test_any_record_gets_one_verdict_and_fields_unless_it_is_bad(changes: dict[str, Any], text: str) -> None:
    verdict = judge(post(**{"text": text, **changes}))
    if verdict.kind == "bad":
        assert (verdict.reason in BAD, verdict.fields) == (True, "")
    else:
        assert (verdict.kind == "kept") == (verdict.reason == "")
        assert verdict.reason in {"", "language", "no_text", "adult"}
        assert fields(verdict)["text"] == changes.get("text", text)


@tried(300)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_real_record_with_a_flipped_byte_gets_one_verdict(at: int, flip: int) -> None:
    block = bytearray(decode(stream("live")[226]).posts[0].block)
    block[at % len(block)] ^= flip
    verdict = judge(bytes(block))
    assert verdict.kind in {"kept", "rejected", "bad"}
    assert (verdict.kind == "bad") == (verdict.fields == "")
