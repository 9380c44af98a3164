"""Articles: what a line gives, what a post names, what is used, how it is written. Pure."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, strategies as st

from civicsky.errors import BadInput
from civicsky.events.articles import MAX_TEXT, MAX_TITLE, beginning, read_line
from civicsky.events.finding import Bounds, Hit, Terms, chosen, is_named, terms
from civicsky.events.writing import Part, context_of, part_of, read_summary, summary_hash, summary_messages
from civicsky.model import Asked, format_time
from civicsky.prompt import messages, word_messages
from civicsky.task import load_task
from support.events import EVENTS, article
from support.tried import tried

CIVIC = load_task("civic")[0]
HOSTILE = st.text(st.characters() | st.sampled_from('<>[]|"\\\u202e\uff1c/\n{}'), max_size=200)


def line(**other: Any) -> bytes:
    return json.dumps({**article(0), **other}).encode()


def hit(number: int = 1, side: str = "left", **other: Any) -> Hit:
    plain = Hit(f"{number:032x}", f"Title {number}", "First. Second.", "Paper", side, 1_000, number, 0.1, named=True)
    return plain._replace(**other)


# ---- a line ----


@pytest.mark.parametrize(
    ("date", "at"),
    [
        ("2026-11-20T08:30:00Z", "2026-11-20T08:30:00.000Z"),
        ("2026-11-20T08:30:00+02:00", "2026-11-20T06:30:00.000Z"),
        ("2026-11-20T08:30:00", "2026-11-20T08:30:00.000Z"),
        ("2026-11-20", "2026-11-20T23:59:59.999Z"),
    ],
)
def test_a_day_counts_as_its_end_since_an_article_must_not_count_as_older_than_it_is(date: str, at: str) -> None:
    assert format_time(read_line(line(date=date)).at) == at


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"title": None}, "title is missing"),
        ({"text": 5}, "text is no text"),
        ({"side": " \u00a0"}, "side is empty"),
        ({"outlet": "x" * 101}, "outlet is longer"),
        ({"date": "20.11.2026"}, "date is neither"),
        ({"date": "1969-12-31T23:00:00Z"}, "before 1970"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_without_a_word_of_it(other: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why) as bad:
        read_line(line(**other))
    assert "xxx" not in bad.value.reason


def test_texts_are_on_one_line_bounded_and_without_halves_of_characters() -> None:
    found = read_line(line(title="a\n\ud800 b" + "x" * 500, text="y " * 30_000, url="https://example.org/\n"))
    assert found.title.startswith("a ? b")
    assert (len(found.title), len(found.text)) == (MAX_TITLE, MAX_TEXT)
    assert found.url == "https://example.org/"


@given(st.binary(max_size=300))
def test_whatever_a_line_holds_it_is_an_article_or_bad_input(data: bytes) -> None:
    with pytest.raises(BadInput):
        read_line(data)


def test_a_beginning_has_whole_sentences_and_never_more_than_its_room() -> None:
    assert (
        beginning("It rained", "For days. Then it did not. Nobody knew why.", 40)
        == "It rained. For days. Then it did not."
    )
    for room in range(60):
        assert len(beginning("A title", "One. Two! Three? Four.", room)) <= room


# ---- what a post names ----


def test_names_are_words_written_large_within_a_sentence_hashtags_and_numbers() -> None:
    found = terms("Call Senator Harlow now! The bill #asylumNow passed 52-48, HR 4000 is law")
    assert {"senator", "harlow", "asylumnow", "hr", "4000"} <= set(found.names)
    assert {"bill", "passed"} <= set(found.words)
    assert "the" not in found.names + found.words


def test_a_text_in_capitals_names_nothing_by_that_and_terms_are_bounded() -> None:
    assert terms("THEY ARE COMING FOR ALL OF US AND NOBODY SEES THEM COMING TONIGHT FRIENDS").names == ()
    found = terms(
        " ".join(
            f"word{chr(97 + n % 26)}{chr(97 + n // 26)} Name{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(300)
        )
    )
    assert len(found.names) <= 24 >= len(found.words)


def test_one_name_or_two_words_that_an_article_has_are_needed() -> None:
    wanted = Terms(("harlow",), ("border", "vote"))
    assert [is_named(shared, wanted) for shared in ({"harlow"}, {"border"}, {"border", "vote"}, set())] == [
        True, False, True, False,
    ]  # fmt: skip


# ---- what is used ----

BOUNDS = Bounds(0.5, 100, 1_000, 4)


def test_nothing_beyond_the_distance_after_the_post_or_too_old_is_chosen() -> None:
    hits = [hit(1), hit(2, distance=0.51), hit(3, at=1_001), hit(4, at=99), hit(5, at=100, distance=0.5)]
    assert [one.event for one in chosen(hits, BOUNDS, {"left"})] == [1, 5]


def test_no_side_is_ahead_by_more_than_one_also_of_a_side_that_says_nothing() -> None:
    hits = [hit(n, "left", distance=n / 100) for n in range(5)] + [hit(9, "right", distance=0.4)]
    assert [(one.side, one.event) for one in chosen(hits, BOUNDS, {"left", "right"})] == [
        ("left", 0), ("right", 9), ("left", 1),
    ]  # fmt: skip
    assert [one.event for one in chosen(hits[:5], BOUNDS, {"left", "right"})] == [0]
    assert [one.event for one in chosen(hits[:5], BOUNDS, {"left"})] == [0, 1, 2, 3]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 2), st.integers(0, 2_000)), max_size=30),
    st.floats(0, 1),
    st.integers(1, 8),
)
def test_whatever_is_found_the_bounds_hold(found: list[tuple[str, float, int]], far: float, most: int) -> None:
    hits = [hit(n, side, distance=distance, at=at) for n, (side, distance, at) in enumerate(found)]
    bounds = Bounds(far, 500, 1_500, most)
    used = chosen(hits, bounds, {"a", "b", "c"})
    assert len(used) <= most
    assert all(one.distance <= far and 500 <= one.at <= 1_500 for one in used)
    counts = [sum(one.side == side for one in used) for side in "abc"]
    assert max(counts) - min(counts) <= 1


# ---- how it is written ----


@tried(300)
@given(st.lists(st.tuples(HOSTILE, HOSTILE, HOSTILE), min_size=1, max_size=4), st.integers(300, 3_000))
def test_hostile_articles_stay_quoted_and_bounded_in_every_way_of_asking(
    said: list[tuple[str, str, str]], room: int
) -> None:
    parts = [part_of([hit(1, side, title=title, text=text, outlet=title)], None, room) for side, title, text in said]
    context = context_of(parts, room)
    assert len(context) <= room
    (_, user) = messages(CIVIC, [Asked("The post.", context)])
    if context:
        heading, *lines = context.split("\n")
        assert heading.endswith(":")
        assert len(lines) == len(parts), "no article makes a line of its own"
        for one, part in zip(lines, parts, strict=True):
            found = re.fullmatch(r'("(?:[^"\\]|\\.)*") \("(?:[^"\\]|\\.)*"\): ("(?:[^"\\]|\\.)*")', one)
            assert found, one
            assert json.loads(found[1]) == part.side
            assert part.text.startswith(json.loads(found[2]))
        assert user["content"].count("<") == 4, "the marks of the context and of the post"
        assert json.loads(user["content"].split("</context>")[0].removeprefix("<context>")) == context
    for words in CIVIC.words:
        *_, last = word_messages(words, Asked("The post.", context))
        assert not re.search(r"<[|/A-Za-z_]", last["content"])


@given(HOSTILE, HOSTILE)
def test_hostile_articles_stay_quoted_in_the_question_for_a_summary(title: str, text: str) -> None:
    system, user = summary_messages([hit(title=title, text=text), hit(2)])
    assert "short summaries" in system["content"]
    assert re.findall(r"</?article>", user["content"]) == ["<article>", "</article>"] * 2
    assert user["content"].count("<") == 4


def test_a_summary_is_one_bounded_line_without_thoughts_and_nothing_is_none() -> None:
    assert read_summary("<think>hm</think> It\nrained.\u202e ") == "It rained."
    assert len(read_summary("word " * 1_000)) <= 500
    with pytest.raises(BadInput, match="empty"):
        read_summary("<think>hm</think>\n\u200b")


def test_a_summary_stands_in_the_place_of_its_articles_and_its_prompt_has_a_hash() -> None:
    part = part_of([hit(1), hit(2, outlet="Other")], "Summed up.", 500)
    assert part == Part("left", ("Paper, 1970-01-01", "Other, 1970-01-01"), "Summed up.")
    assert len(summary_hash()) == 64


def test_both_sides_of_made_up_events_fit_into_the_default_room() -> None:
    for event in EVENTS:
        parts = [
            part_of([hit(1, side, title=event[side][0], text=event[side][1])], None, 2_000)
            for side in ("left", "right")
        ]
        assert all(event[side][1][:80] in context_of(parts, 2_000) for side in ("left", "right"))
