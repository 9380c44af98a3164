"""Draws, orders and ways through them; what may be answered."""

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, strategies as st

from civicsky.annotate.draw import Drawing, Pick, discord, lettered, order_for, shares_within, surety
from civicsky.annotate.sitting import COMMANDS, KEYS, Known, Sitting, checked, disputed, keys_of, name_of
from civicsky.annotate.votes import Vote, VoteKind
from civicsky.errors import Usage
from civicsky.task import Field, Task, load_task

CIVIC = load_task("civic")[0]
URIS = [f"at://did:plc:a{n}/app.bsky.feed.post/3k{n}" for n in range(40)]


def drawn(seed: int, n: int, uris: list[str], scores: dict[str, float] | None = None) -> set[str]:
    drawing = Drawing(seed, n)
    for uri in uris:
        drawing.offer(Pick(uri), "2026-11-20T00:00:00.000Z", (scores or {}).get(uri, 0.0))
    assert drawing.population == len(uris)
    return {pick.uri for pick in drawing.drawn()}


def test_a_draw_is_the_same_in_whatever_order_the_posts_are_read_and_grows_by_adding() -> None:
    backwards = list(reversed(URIS))
    for seed in range(20):
        assert drawn(seed, 7, URIS) == drawn(seed, 7, backwards)
        assert drawn(seed, 7, URIS) < drawn(seed, 12, URIS)
    assert drawn(1, 7, URIS) != drawn(2, 7, URIS)
    assert drawn(1, 100, URIS) == set(URIS)


def test_every_post_and_every_pair_of_posts_is_drawn_equally_often() -> None:
    few, times = URIS[:8], 4_000
    singles: Counter[str] = Counter()
    pairs: Counter[frozenset[str]] = Counter()
    for seed in range(times):
        found = sorted(drawn(seed, 3, few))
        singles.update(found)
        pairs.update(frozenset((one, two)) for i, one in enumerate(found) for two in found[i + 1 :])
    # 3/8 and 3*2/(8*7); six standard deviations.
    for counts, p, n in ((singles, 3 / 8, 8), (pairs, 6 / 56, 28)):
        assert len(counts) == n
        spread = (times * p * (1 - p)) ** 0.5
        assert all(abs(count - times * p) < 6 * spread for count in counts.values())


def test_low_scores_are_taken_first_and_lots_decide_among_equals() -> None:
    scores = {uri: float(n // 10) for n, uri in enumerate(URIS)}
    for seed in range(20):
        found = drawn(seed, 15, URIS, scores)
        assert set(URIS[:10]) < found < set(URIS[:20])


def test_which_shares_of_rejects_were_kept_within_a_draw_tells_whether_their_chances_were_equal() -> None:
    runs = [(10, 0.01), (20, 0.01), (30, 0.05), (40, 0.01), (50, 0.01)]
    assert shares_within(runs, 10, 29) == [(10, 0.01)], "a restart changes nothing"
    assert shares_within(runs, 25, 30) == [(20, 0.01), (30, 0.05)]
    assert shares_within(runs, 30, 39) == [(30, 0.05)], "what was before is over"
    assert shares_within(runs, 0, 99) == [(10, 0.01), (30, 0.05), (40, 0.01)], "also when it is back"
    assert shares_within(runs, 60, 99) == [(50, 0.01)]
    assert shares_within([], 0, 99) == []


def test_each_person_has_an_order_of_their_own_that_says_nothing_of_the_scores() -> None:
    anna, ben = order_for(7, "anna", URIS), order_for(7, "ben", URIS)
    assert sorted(anna) == sorted(ben) == sorted(URIS)
    assert len({tuple(order_for(seed, "anna", URIS)) for seed in range(9)} | {tuple(ben)}) == 10
    assert anna == order_for(7, "anna", Random(1).sample(URIS, len(URIS)))
    first = Counter(order_for(seed, "anna", URIS[:4])[0] for seed in range(2_000))
    assert all(abs(n - 500) < 6 * (2_000 * 0.25 * 0.75) ** 0.5 for n in first.values())


def test_letters_change_from_post_to_post_so_that_nobody_is_known_by_one() -> None:
    letters = Counter(next(iter(lettered(7, uri, ["anna", "ben"]).values())) for uri in URIS)
    assert set(letters) == {"anna", "ben"}
    assert min(letters.values()) >= 8
    assert list(lettered(7, URIS[0], "zyx")) == ["A", "B", "C"]


def test_uncertainty_is_that_of_the_least_sure_value_and_disagreement_that_of_the_newest_labels() -> None:
    assert surety({"a": {"probability": 0.9}, "b": {"probability": 0.6}, "c": {"probability": None}}) == 0.6
    assert surety({"a": {"probability": None}}) is None

    def label(model: str, value: str, at: int) -> dict[str, Any]:
        return {"model": model, "prompt": "p", "way": "json", "at": str(at), "fields": {"civic": {"value": value}}}

    assert discord([label("a", "x", 1)]) == 0.0
    assert discord([label("a", "x", 1), label("a", "y", 2), label("b", "y", 1)]) == 0.0, "a's newest counts"
    assert discord([label("a", "x", 1), label("b", "y", 1), label("c", "y", 1)]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("answers", "good"),
    [
        ({"civic": "not civic"}, True),
        ({"civic": "civic", "lean": "?", "us_politics": "no"}, True),
        ({"civic": "?"}, True),
        ({"civic": "civic"}, False),
        ({"civic": "not civic", "lean": "unclear"}, False),
        ({"civic": "?", "lean": "unclear"}, False),
        ({"civic": "CIVIC"}, False),
        ({"civic": "not civic", "more": "x"}, False),
        ({"civic": 1}, False),
        ({}, False),
        (None, False),
        (["civic"], False),
    ],
)
def test_an_answer_has_exactly_the_fields_that_apply(answers: Any, good: bool) -> None:
    if good:
        assert checked(CIVIC, answers) == answers
        return
    with pytest.raises(ValueError, match=r"."):
        checked(CIVIC, answers)


def test_no_key_means_two_things_and_too_many_values_are_refused() -> None:
    assert len(set(KEYS) | set(COMMANDS)) == len(KEYS) + len(COMMANDS)
    assert keys_of(CIVIC)["lean"] == {
        "1": "left-leaning", "2": "moderate", "3": "right-leaning", "4": "unclear",
    }  # fmt: skip
    many = Field(name="many", values=tuple(map(str, range(len(KEYS) + 1))), description="x")
    with pytest.raises(Usage, match="more than 28 values"):
        keys_of(Task(name="t", version="1", definition="x", fields=(many,)))


@pytest.mark.parametrize("name", ["", "  ", "x" * 61, "a\nb", "Adjudicated", "\u202ex"])
def test_a_name_that_gold_could_not_hold_is_refused(name: str) -> None:
    with pytest.raises(Usage, match="--annotator"):
        name_of("--annotator", name)
    assert name_of("--annotator", " anna ") == "anna"


# ---- the way through a draw ------------------------------------------------------------------------------------------


def vote(n: int, kind: VoteKind = "vote", who: str = "anna", version: str = "v", civic: str = "civic") -> Vote:
    answers = None if kind == "skip" else {"civic": civic}
    return Vote(n, URIS[n], version, kind, who, "1", "x", None if kind == "skip" else True, answers, "", 1.0, n)


def sitting(votes: list[Vote], known: dict[str, Known] | None = None, n: int = 4) -> Sitting:
    every = {uri: Known("live", "v") for uri in URIS[:n]} | (known or {})
    return Sitting(URIS[:n], every.keys(), votes, "vote", "anna", every)


def test_what_is_open_comes_next_round_the_end_and_what_was_skipped_last() -> None:
    assert sitting([]).next(-1) == 0
    assert sitting([vote(3)]).next(2) == 0
    assert sitting([vote(1, "skip")]).next(0) == 2
    assert sitting([vote(1, "skip"), vote(0), vote(2), vote(3)]).next(3) == 1
    assert sitting([vote(1, "skip"), vote(0), vote(2), vote(3), vote(1)]).next(1) is None


def test_what_is_away_is_passed_over_in_every_direction_and_is_no_part_of_the_number() -> None:
    away = {URIS[1]: Known("deleted", ""), URIS[2]: Known("hidden", "v")}
    found = sitting([vote(0)], away)
    assert (found.next(0), found.step(0, 1), found.step(3, -1), found.step(3, 1)) == (3, 3, 0, None)
    assert (found.place(0), found.place(3)) == (1, 2)
    assert found.progress() == (2, 1, 0, 2)


def test_a_vote_on_a_former_text_is_none_on_the_present_one() -> None:
    found = sitting([vote(0, version="old")])
    assert (found.said(0), found.next(-1)) == (None, 0)
    assert found.progress().done == 0


def test_people_differ_where_their_votes_on_the_present_text_do() -> None:
    known = {uri: Known("live", "v") for uri in URIS[:4]}
    votes = {
        URIS[0]: {"anna": vote(0), "ben": vote(0, who="ben")},
        URIS[1]: {"anna": vote(1), "ben": vote(1, who="ben", civic="?")},
        URIS[2]: {"anna": vote(2), "ben": vote(2, who="ben", civic="?", version="old")},
        URIS[3]: {"anna": vote(3)},
    }
    assert disputed(votes, known) == {URIS[1]}


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["vote", "skip"])), max_size=30))
def test_whatever_was_done_before_answering_what_comes_next_ends_with_all_done(done: list[tuple[int, Any]]) -> None:
    votes = [vote(n, kind) for n, kind in done]
    at, seen = -1, 0
    while (after := sitting(votes, n=6).next(at)) is not None:
        votes.append(vote(after))
        at, seen = after, seen + 1
    assert seen == 6 - len({n for n, kind in done if kind == "vote"})
    assert sitting(votes, n=6).progress() == (6, 6, 0, 0)
