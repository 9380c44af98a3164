import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from civicsky.errors import Usage
from civicsky.research.gold import CANNOT_TELL, MAX_BYTES, Gold, Item, Truth, read_gold, without_shown

FIELDS = {
    "civic": ("civic", "not civic"),
    "lean": ("left-leaning", "moderate", "right-leaning", "unclear"),
    "us_politics": ("yes", "no", "unclear"),
}
URI = "at://did:plc:abc/app.bsky.feed.post/3kx"


def read(text: str, name: str = "gold.csv") -> Gold:
    return read_gold(name, text.encode(), FIELDS)


def truths(gold: Gold, field: str) -> list[str | None]:
    return [item.truth(field).value for item in gold.items]


# ---- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"text,civic\nvote,civic\n",
        b"\xef\xbb\xbftext,civic\nvote,civic\n",
        b"text;civic\r\nvote;civic\r\n",
        b"sep=;\r\ntext;civic\r\nvote;civic\r\n",
        b"text\tcivic\nvote\tcivic",
        b'"text","civic"\n\n"vote","civic"\n,\n',
        b" Text , CIVIC \nvote,civic\n",
        b"text,civic\rvote,civic\r",
    ],
)
def test_the_usual_kinds_of_csv_are_read(data: bytes) -> None:
    gold = read_gold("gold.csv", data, FIELDS)
    assert [(item.text, item.truth("civic")) for item in gold.items] == [("vote", Truth("judged", "civic"))]
    assert gold.fields == ("civic",)
    assert gold.rows == 1


def test_a_quoted_cell_may_hold_line_breaks_and_errors_still_name_the_right_line() -> None:
    assert read('text,civic\n"a\r\nb ""c"", d",civic\n').items[0].text == 'a\r\nb "c", d'
    with pytest.raises(Usage, match=r"gold\.csv, line 5, column 'civic': 'perhaps' is none of 'civic', 'not civic'"):
        read('text,civic\n"a\nb\nc",civic\nd,perhaps\n')


def test_jsonl_is_known_by_its_name_or_its_first_character() -> None:
    line = json.dumps({"text": "a\u2028b", "civic": True, "lean": None, "id": 7})
    for name in ("gold.jsonl", "gold.ndjson", "gold"):
        (item,) = read("\ufeff" + line + "\n\n", name).items
        assert (item.text, item.key, item.judgements) == ("a\u2028b", "id 7", {"": {"civic": "civic"}})


def test_a_formula_is_only_a_text() -> None:
    gold = read('text,civic,author\n"=HYPERLINK(""http://x"")",civic,=1+1\n@SUM(A1),not civic,-2\n\'=3,civic,b\n')
    assert [item.text for item in gold.items] == ['=HYPERLINK("http://x")', "@SUM(A1)", "'=3"]
    assert [item.author for item in gold.items] == ["=1+1", "-2", "b"]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("civic", "civic"), (" Civic ", "civic"), ("NOT CIVIC", "not civic"),
        ("true", "civic"), ("TRUE", "civic"), ("1", "civic"), ("Yes", "civic"),
        ("false", "not civic"), ("0", "not civic"), ("no", "not civic"),
        ("?", CANNOT_TELL), ("can't tell", CANNOT_TELL), ("Can\u2019t tell", CANNOT_TELL), ("", None), ("  ", None),
    ],
)  # fmt: skip
def test_what_a_cell_of_a_field_of_two_values_means(cell: str, value: str | None) -> None:
    (item,) = read(f'text,civic\nx,"{cell}"\n').items
    assert item.judgements[""].get("civic") == value


def test_yes_and_no_are_themselves_where_the_field_has_them_and_nothing_for_other_fields() -> None:
    assert truths(read("text,us_politics\na,YES\nb,no\n"), "us_politics") == ["yes", "no"]
    with pytest.raises(Usage, match=r"line 2, column 'us_politics': 'true' is none of 'yes', 'no', 'unclear'"):
        read("text,us_politics\na,true\n")
    with pytest.raises(Usage, match="'1' is none of 'left-leaning'"):
        read("text,lean\na,1\n")


def test_json_values_of_another_type() -> None:
    rows = [{"text": "a", "civic": 1}, {"text": "b", "civic": 0.0}, {"text": "c", "civic": False}]
    gold = read("\n".join(map(json.dumps, rows)), "g.jsonl")
    assert truths(gold, "civic") == ["civic", "not civic", "not civic"]
    for bad in (2, [1], {"a": 1}, float("nan"), 10**40):
        with pytest.raises(Usage, match="line 1, column 'civic'"):
            read(json.dumps({"text": "a", "civic": bad}), "g.jsonl")
    for column in ("text", "uri", "author"):
        with pytest.raises(Usage, match=f"line 1, column '{column}'"):
            read(json.dumps({"text": "a", "civic": True, column: ["x"]}), "g.jsonl")


# ---- items and authors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", [URI, URI + "/", "https://bsky.app/profile/did:plc:abc/post/3kx"])
def test_the_author_is_taken_from_the_uri(uri: str) -> None:
    (item,) = read(f"uri,civic\n{uri},civic\n").items
    assert (item.uri, item.author, item.text) == (URI, "did:plc:abc", None)


@pytest.mark.parametrize(
    "uri", ["at://alice.bsky.social/app.bsky.feed.post/3kx", "at://did:plc:abc/app.bsky.feed.like/3", "x", URI + "?a"]
)
def test_what_is_no_address_of_a_post_is_said(uri: str) -> None:
    with pytest.raises(Usage, match=r"line 2, column 'uri': .* is not a post's address; give at://DID/"):
        read(f"uri,civic\n{uri},civic\n")


def test_rows_of_one_item_are_its_annotators_whatever_names_the_item() -> None:
    for columns, first, second in (
        ("uri,text", f"{URI},t", f"{URI},"),
        ("id,text", "7,t", "7,t"),
        ("text,author", "t,x", "t,x"),
    ):
        gold = read(f"{columns},annotator,civic\n{first},ann,civic\n{second},bob,not civic\n")
        (item,) = gold.items
        assert item.text == "t"
        assert item.judgements == {"ann": {"civic": "civic"}, "bob": {"civic": "not civic"}}
        assert gold.annotators == ("ann", "bob")
        assert gold.rows == 2


def test_the_same_text_with_another_id_is_another_item() -> None:
    assert len(read("id,text,civic\n1,same,civic\n2,same,not civic\n").items) == 2


@pytest.mark.parametrize(
    ("second", "why"),
    [
        ("1,t,x,ann,not civic", "'not civic', but the same item .line 2. is 'civic' by the same annotator .ann."),
        ("1,other,x,bob,civic", "column 'text': not the one in line 2"),
        ("1,t,y,bob,civic", "column 'author': not the one in line 2"),
        (",,x,bob,civic", "column 'text': neither a text nor a uri"),
    ],
)
def test_rows_that_contradict_each_other_are_an_error(second: str, why: str) -> None:
    with pytest.raises(Usage, match=f"^gold.csv, line 3, .*{why}"):
        read(f"id,text,author,annotator,civic\n1,t,x,ann,civic\n{second}\n")


def test_an_author_who_is_not_the_uris_is_an_error_and_a_plain_name_is_not() -> None:
    with pytest.raises(Usage, match="column 'author': 'did:plc:other' is not the author in the uri"):
        read(f"uri,author,civic\n{URI},did:plc:other,civic\n")
    assert read(f"uri,author,civic\n{URI},alice,civic\n").items[0].author == "alice"


# ---- one truth -------------------------------------------------------------------------------------------------------


def item_of(**said: str) -> Item:
    return Item("k", 1, "t", None, None, {who: {"lean": value} for who, value in said.items() if value})


@pytest.mark.parametrize(
    ("said", "truth"),
    [
        ({}, Truth("not_judged", None)),
        ({"a": ""}, Truth("not_judged", None)),
        ({"a": "moderate"}, Truth("judged", "moderate")),
        ({"a": "?"}, Truth("cannot_tell", None)),
        ({"a": "moderate", "b": "unclear"}, Truth("tie", None)),
        ({"a": "moderate", "b": "?"}, Truth("tie", None)),
        ({"a": "moderate", "b": "unclear", "c": "unclear"}, Truth("judged", "unclear")),
        ({"a": "moderate", "b": "?", "c": "?"}, Truth("cannot_tell", None)),
        ({"a": "moderate", "b": "unclear", "c": ""}, Truth("tie", None)),
        ({"a": "moderate", "b": "unclear", "c": "left-leaning", "d": "unclear"}, Truth("judged", "unclear")),
        ({"a": "moderate", "b": "moderate", "adjudicated": "unclear"}, Truth("judged", "unclear")),
        ({"a": "moderate", "b": "unclear", "adjudicated": "?"}, Truth("cannot_tell", None)),
        ({"a": "moderate", "b": "unclear", "adjudicated": ""}, Truth("tie", None)),
    ],
)
def test_the_adjudicated_value_wins_else_most_annotators_decide(said: dict[str, str], truth: Truth) -> None:
    assert item_of(**said).truth("lean") == truth


def test_adjudicated_is_no_annotator_and_is_known_however_it_is_written() -> None:
    gold = read("text,annotator,civic\nt,ann,civic\nt, Adjudicated ,not civic\n")
    assert gold.annotators == ("ann",)
    assert truths(gold, "civic") == ["not civic"]


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no column `text` or `uri`"),
        (b"text,civic\n", "no rows"),
        (b"post,civic\nx,civic\n", "line 1: no column `text` or `uri`"),
        (b"text,label\nx,civic\n", "no column is named like a field of the task .civic, lean, us_politics.*'text', "),
        (b"text,civic,civic\nx,civic,civic\n", "line 1: the column 'civic' is there twice"),
        (b"text,civic\nx,civic,y\n", "line 2: 3 cells under 2 columns"),
        (b'text,civic\n"x,civic\n', "line 2: .*; put cells"),
        (b"text,civic\n\xff,civic\n", "not UTF-8 .byte 11.; save it as `CSV UTF-8`"),
        ("text,civic\nx,civic".encode("utf-16"), "not UTF-8"),
        (b'{"civic": 1, "text": "' + b"x" * 800_000 + b'"}', "line 1, column 'text': 800,000 characters are more than"),
        (b"text,civic\n" + b"x" * 200_000 + b",civic\n", "line 2: field larger"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(data: bytes, why: str) -> None:
    with pytest.raises(Usage, match=rf"^gold\.csv[,:].*{why}"):
        read_gold("gold.csv", data, FIELDS)


@pytest.mark.parametrize(("line", "why"), [("{", "not JSON"), ("[1]", "no object"), ("[" * 100_000, "not JSON")])
def test_a_bad_line_of_json_is_named(line: str, why: str) -> None:
    with pytest.raises(Usage, match=f"g.jsonl, line 2: .*{why}"):
        read('{"text": "a", "civic": 1}\n' + line, "g.jsonl")


def test_a_file_beyond_the_bound_is_refused_unread() -> None:
    with pytest.raises(Usage, match="64,000,001 bytes are more than 64,000,000; split the file"):
        read_gold("gold.csv", bytes(MAX_BYTES + 1), FIELDS)


# ---- whatever a cell holds -------------------------------------------------------------------------------------------

texts = st.text(max_size=40).filter(lambda text: text.strip())


@given(
    st.lists(st.tuples(texts, st.sampled_from(["civic", "not civic", ""])), min_size=1, unique_by=lambda row: row[0])
)
def test_every_text_comes_back_as_it_was_from_both_formats(rows: list[tuple[str, str]]) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "civic"), *rows])
    lines = "\n".join(json.dumps({"text": text, "civic": civic or None}) for text, civic in rows)
    for gold in (read(file.getvalue()), read(lines, "gold.jsonl")):
        assert [(item.text, item.judgements[""].get("civic", "")) for item in gold.items] == rows


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: ("text,civic\n" + text).encode()))
def test_any_bytes_are_read_or_refused_with_one_line(data: bytes) -> None:
    for name in ("g.csv", "g.jsonl"):
        try:
            gold = read_gold(name, data, FIELDS)
        except Usage as refused:
            assert str(refused).startswith(name)  # noqa: PT017
            assert str(refused).isprintable()  # noqa: PT017
        else:
            assert gold.items


def test_half_a_surrogate_pair_can_be_sent_and_written() -> None:
    (item,) = read('{"text": "a\\ud800b", "civic": 1}', "g.jsonl").items
    assert item.text == "a\ufffdb"


# ---- examples --------------------------------------------------------------------------------------------------------


def test_items_that_the_model_is_shown_as_examples_are_dropped_however_they_are_written() -> None:
    rows: list[Any] = ["Call  your\nSENATOR https://x.example/a?b", "call your senator.", "https://only.example", URI]
    items = [Item(str(n), n, text, None, None) for n, text in enumerate(rows[:3])]
    items.append(Item("3", 3, None, URI, None))
    asked, dropped = without_shown(items, ["call your senator", "", "https://other.example"])
    assert [item.key for item in dropped] == ["0"]
    assert [item.key for item in asked] == ["1", "2", "3"]
