from typing import Any

import pytest
from libipld import decode_dag_cbor

from civicsky.decode import decode
from civicsky.filter import MANY_MENTIONS, MANY_TAGS, SURE, VERSION, Judgement, Keep, is_english, judge
from civicsky.model import cid_text
from civicsky.record import extract
from unit.recorded import stream, truth

ENGLISH = "The city council votes on the new budget tomorrow evening."
GERMAN = "Der Stadtrat stimmt morgen Abend über den neuen Haushalt ab."
ADULT = {"porn", "sexual", "nudity"}
UNLESS_ALL: tuple[Keep, ...] = ("english", "any_language")


def fields(**changes: Any) -> dict[str, Any]:
    return {**extract({"text": ENGLISH, "langs": ["en"]}), **changes}


def of_sample() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(what is known of it, its fields) of every post of the sample."""
    blocks = {cid_text(op.cid): op.block for data in stream("sample") for op in decode(data).posts if op.cid}
    return [(row, extract(decode_dag_cbor(blocks[row["cid"]]))) for row in truth()]


# ---- the vote on the sample ------------------------------------------------------------------------------------------


def test_on_the_sample_nearly_all_english_posts_are_kept_and_nearly_no_others() -> None:
    right = wrongly_kept = wrongly_rejected = 0
    texts = []
    for row, found in of_sample():
        if row["true_lang"] == "und" or ADULT & set(row.get("self_labels", [])):
            continue
        if not any(char.isalpha() for char in row["text"]):
            continue
        kept, english = judge(found).reason is None, row["true_lang"] == "en"
        right += kept and english
        wrongly_kept += kept and not english
        wrongly_rejected += english and not kept
        if kept != english:
            texts.append((row["true_lang"], row["langs"], row["text"]))
    assert right + wrongly_rejected == 402
    precision, recall = right / (right + wrongly_kept), right / (right + wrongly_rejected)
    assert (precision >= 0.985, recall >= 0.98) == (True, True), f"{precision=:.4f} {recall=:.4f} {texts}"


def test_on_the_sample_the_vote_beats_the_authors_own_tags() -> None:
    by_tag = by_vote = 0
    for row, found in of_sample():
        if row["true_lang"] != "und":
            english = row["true_lang"] == "en"
            by_tag += any(tag.startswith("en") for tag in found["langs"]) != english
            by_vote += is_english(found["text"], found["langs"])[0] != english
    assert by_tag > 50
    assert by_vote <= 6


def test_on_the_sample_adult_labels_reject_and_graphic_ones_flag() -> None:
    found = {row["id"]: (row["self_labels"], judge(f)) for row, f in of_sample() if "self_labels" in row}
    assert len(found) == 11
    assert sum(judgement.reason == "adult" for labels, judgement in found.values() if ADULT & set(labels)) == 8
    graphic = [judgement for labels, judgement in found.values() if labels == ["graphic-media"]]
    assert [(judgement.reason, judgement.notes["flags"]) for judgement in graphic] == [(None, ["graphic"])] * 3


def test_on_the_sample_only_the_post_of_white_space_has_no_text() -> None:
    assert [row["text"] for row, found in of_sample() if judge(found).reason == "no_text"] == ["  \n\n \t "]


# ---- reasons ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", sorted(ADULT))
def test_an_adult_label_rejects_in_every_language(label: str) -> None:
    for keep in UNLESS_ALL:
        judgement = judge(fields(self_labels=["!warn", label, "graphic-media"]), keep)
        assert judgement.reason == "adult"
        assert judgement.notes["flags"] == ["graphic"]


@pytest.mark.parametrize("label", ["graphic-media", "gore"])
def test_a_graphic_label_flags_and_keeps(label: str) -> None:
    judgement = judge(fields(self_labels=[label]))
    assert (judgement.reason, judgement.notes["flags"]) == (None, ["graphic"])


@pytest.mark.parametrize("label", ["!warn", "!no-unauthenticated", "Porn", "pornography", "spoiler", ""])
def test_any_other_label_neither_rejects_nor_flags(label: str) -> None:
    judgement = judge(fields(self_labels=[label]))
    assert (judgement.reason, judgement.notes["flags"]) == (None, [])


BLANK = [
    "", " ", "\n\t", "\u2028\u00a0", "\u200b", "\ufeff", "\u2060", "\u00ad", "\0\x1b\x7f\x85", "\u200d\ufe0f",
    "\u202e\u2066", "\u3164", "\u2800", " \u200b\n\ufeff ",
]  # fmt: skip


@pytest.mark.parametrize("text", BLANK)
def test_a_post_without_any_text_is_rejected_for_that(text: str) -> None:
    for keep in UNLESS_ALL:
        assert judge(fields(text=text), keep).reason == "no_text"


@pytest.mark.parametrize("text", BLANK)
def test_a_post_of_blank_parts_is_no_text_and_one_other_part_speaks_for_it(text: str) -> None:
    card = {"uri": "https://example.com", "title": text, "description": text}
    assert judge(fields(text=text, alts=[text], link=card)).reason == "no_text"
    assert judge(fields(text=text, alts=[text, ENGLISH], link=card)).reason is None
    assert judge(fields(text=text, alts=[text], link=card | {"title": GERMAN})).reason == "language"


def test_a_link_card_without_words_is_no_text() -> None:
    card = {"uri": "https://example.com", "title": "", "description": ""}
    assert judge(fields(text="", link=card)).reason == "no_text"


def test_alt_texts_and_link_cards_count_as_text() -> None:
    card = {"uri": "https://example.com", "title": ENGLISH, "description": ""}
    assert judge(fields(text="", alts=[ENGLISH])).reason is None
    assert judge(fields(text="", link=card)).reason is None
    assert judge(fields(text="", alts=[GERMAN], langs=["de"])).reason == "language"
    assert judge(fields(text="🔥🔥", alts=[GERMAN])).reason == "language"


def test_the_authors_own_text_decides_over_alt_texts_and_card() -> None:
    card = {"uri": "https://example.com", "title": GERMAN, "description": GERMAN}
    assert judge(fields(alts=[GERMAN] * 3, link=card)).reason is None
    assert judge(fields(text=GERMAN, alts=[ENGLISH] * 3)).reason == "language"


def test_the_reasons_are_told_in_a_fixed_order() -> None:
    assert judge(fields(text="", self_labels=["porn"], langs=["de"])).reason == "no_text"
    assert judge(fields(text=GERMAN, self_labels=["porn"], langs=["de"])).reason == "adult"


@pytest.mark.parametrize(
    ("changes", "kept_by", "reason"),
    [
        ({"text": GERMAN}, {"any_language", "all"}, "language"),
        ({"text": ""}, {"all"}, "no_text"),
        ({"self_labels": ["porn"]}, {"all"}, "adult"),
    ],
)
@pytest.mark.parametrize("keep", ["english", "any_language", "all"])
def test_what_would_have_been_a_reason_to_reject_is_a_flag_of_what_is_kept_all_the_same(
    changes: dict[str, Any], kept_by: set[str], reason: str, keep: Keep
) -> None:
    judgement = judge(fields(**changes), keep)
    expected = (None, [reason]) if keep in kept_by else (reason, [])
    assert (judgement.reason, judgement.notes["flags"]) == expected


# ---- the vote --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["🔥🔥🔥", "???", "8675309", "🏳️\u200d🌈", "https://example.com/x", "@someone.example.com"]
)
@pytest.mark.parametrize(
    ("langs", "english"),
    [
        (["en"], True),
        (["en-GB"], True),
        (["EN"], True),
        (["de", "en"], True),
        (["de"], False),
        (["eng"], False),
        ([], False),
    ],
)
def test_a_post_without_words_follows_its_tag(text: str, langs: list[str], english: bool) -> None:
    assert is_english(text, langs) == (english, ["tag"] if english else [], {})


@pytest.mark.parametrize("langs", [["en"], ["en-US"], ["de"], ["ja"], ["de", "en"], []])
def test_plain_english_is_english_whatever_the_tag_says(langs: list[str]) -> None:
    english, by, _ = is_english(ENGLISH, langs)
    assert english
    assert by == [*(["tag"] if "en" in str(langs) else []), "cld2", "fasttext"]


@pytest.mark.parametrize("langs", [["en"], ["de"], ["en", "de"], []])
def test_plain_german_is_not_english_whatever_the_tag_says(langs: list[str]) -> None:
    english, by, scores = is_english(GERMAN, langs)
    assert not english
    assert by == (["tag"] if "en" in langs else [])
    assert scores["cld2"] == 0
    assert scores["fasttext"] < 0.1


BOTH_UNSURE = "New tank cycled, ammonia zero, nitrites zero. The shrimp move in on friday 🦐"
ONLY_CLD2 = "undefined is not a function and neither am I before 9am"
ONLY_FASTTEXT = "Fcbvyre: gur ohgyre qvq vg (rot13, don't @ me)"


@pytest.mark.parametrize(
    ("text", "langs", "english"),
    [
        (BOTH_UNSURE, ["en"], True),
        (BOTH_UNSURE, [], True),
        (BOTH_UNSURE, ["de"], False),
        (ONLY_CLD2, ["en"], True),
        (ONLY_CLD2, [], False),
        (ONLY_CLD2, ["de"], False),
        (ONLY_FASTTEXT, ["en"], True),
        (ONLY_FASTTEXT, [], False),
        (ONLY_FASTTEXT, ["de"], False),
    ],
)
def test_where_the_models_disagree_or_doubt_the_tag_decides_what_is_enough(
    text: str, langs: list[str], *, english: bool
) -> None:
    voters = {BOTH_UNSURE: ["cld2", "fasttext"], ONLY_CLD2: ["cld2"], ONLY_FASTTEXT: ["fasttext"]}[text]
    found, by, scores = is_english(text, langs)
    assert (found, by) == (english, [*(["tag"] if "en" in langs else []), *voters])
    assert (scores["fasttext"] > SURE) == (text == ONLY_FASTTEXT)


def test_scores_are_shares() -> None:
    _, _, scores = is_english(ENGLISH, [])
    assert (list(scores), scores["cld2"]) == (["fasttext", "cld2"], 0.98)
    assert scores["fasttext"] == pytest.approx(0.9056, abs=0.001)


def test_addresses_handles_and_hash_signs_do_not_vote() -> None:
    noise = (
        " https://www.example.com/the/city/council/votes/on/the/budget @thecouncil.example.com example.com/budget/vote"
    )
    assert is_english(GERMAN + noise * 3, ["de"]) == is_english(GERMAN, ["de"])


def test_capital_letters_do_not_hide_a_language() -> None:
    assert is_english(ENGLISH.upper(), []) == is_english(ENGLISH.lower(), [])
    assert is_english(GERMAN.upper(), [])[0] is False


@pytest.mark.parametrize(
    "odd",
    ["\n", "\r\n", "\0", "\x1b[31m", "\x85", "\u2028", "\u200b", "\ufeff", "\u202e", "\ud7ff", "\ufffe", "\U0010ffff"],
)
def test_control_and_invisible_characters_neither_raise_nor_vote(odd: str) -> None:
    words = ENGLISH.split(" ")
    assert is_english(odd + f"{odd} ".join(words) + odd, [])[:2] == (True, ["cld2", "fasttext"])
    assert is_english(odd * 50, ["en"])[0] is True
    assert judge(fields(text=odd + ENGLISH)).reason is None


@pytest.mark.parametrize("char", ["\u0301", "\u0e31", "あ", "ß", "\u1d400"])
def test_a_text_of_one_repeated_character_does_not_raise(char: str) -> None:
    assert is_english(char * 2000, [])[0] is False


# ---- notes -----------------------------------------------------------------------------------------------------------


def test_the_notes_tell_version_voters_scores_and_flags() -> None:
    judgement = judge(fields())
    _, by, scores = is_english(ENGLISH, ["en"])
    notes = {"version": VERSION, "english_by": by, "scores": scores, "flags": [], "reason": None}
    assert judgement == Judgement(None, notes)


def test_the_notes_of_a_rejected_post_tell_the_reason() -> None:
    for changes, reason in (
        ({"text": GERMAN}, "language"),
        ({"text": ""}, "no_text"),
        ({"self_labels": ["porn"]}, "adult"),
    ):
        judgement = judge(fields(**changes))
        assert (judgement.reason, judgement.notes["reason"]) == (reason, reason)
        assert judge(fields(**changes), "all").notes["reason"] is None


def test_many_tags_and_many_mentions_are_flagged_from_their_bound_on() -> None:
    few = fields(tags=["t"] * (MANY_TAGS - 1), mentions=["m"] * (MANY_MENTIONS - 1))
    many = fields(tags=["t"] * MANY_TAGS, mentions=["m"] * MANY_MENTIONS)
    assert judge(few) == judge(fields())
    assert (judge(many).reason, judge(many).notes["flags"]) == (None, ["many_tags", "many_mentions"])


def test_a_post_of_nothing_but_a_link_is_flagged() -> None:
    link = ["https://example.com/x"]
    assert judge(fields(text="https://example.com/x", links=link)).notes["flags"] == ["only_link"]
    assert judge(fields(text="https://example.com/x", links=[])).notes["flags"] == []
    assert judge(fields(text=f"{ENGLISH} https://example.com/x", links=link)).notes["flags"] == []
