"""Shares on the page are those that `civicsky estimate` finds, from the same posts."""

from random import Random

import pytest
from scipy import special

from civicsky.page.shares import Drawn, of_field, t_quantile, weighted
from civicsky.research.measure import weighted_share
from civicsky.task import load_task

CIVIC, LEAN, _ = load_task("civic")[0].fields


def drawn(n: int, *, authors: int, unit: str = "post", seed: int = 1) -> list[Drawn]:
    chance = Random(seed)
    posts = []
    for at in range(n):
        author = f"did:{chance.randrange(authors)}"
        lot = {"post": str(at), "author": author, "thread": f"t{at % max(1, n // 3)}"}[unit]
        fields = (
            {"civic": "civic", "lean": chance.choice(LEAN.values)} if chance.random() < 0.3 else {"civic": "not civic"}
        )
        posts.append(Drawn(author, lot, 1 / chance.choice((1, 0.5, 0.1)), fields if chance.random() < 0.95 else None))
    return posts


@pytest.mark.parametrize("unit", ["post", "author", "thread"])
@pytest.mark.parametrize(("n", "authors"), [(2, 2), (9, 3), (60, 45), (800, 300)])
def test_share_and_interval_are_those_of_the_estimates(n: int, authors: int, unit: str) -> None:
    for seed in range(5):
        posts = drawn(n, authors=authors, unit=unit, seed=seed)
        for hits in (
            [post.fields is None for post in posts],
            [True] * n,
            [False] * n,
            [at % 3 == 0 for at in range(n)],
        ):
            mine = weighted(posts, hits)
            theirs = weighted_share(
                hits, [post.weight for post in posts], [post.author for post in posts], [post.unit for post in posts]
            ).population
            assert mine is not None
            assert mine.value == pytest.approx(theirs.value)
            assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=2e-3)
            assert (mine.n, mine.authors) == (theirs.n, theirs.clusters)


def test_without_posts_there_is_no_share_and_one_author_tells_next_to_nothing() -> None:
    assert weighted([], []) is None
    alone = weighted([Drawn("a", "1", 1, None), Drawn("a", "2", 1, None)], [True, False])
    assert alone == (0.5, 0.0, 1.0, 2, 1)


def test_the_quantile_is_students() -> None:
    for freedom in (1, 2, 3, 4, 5, 7.5, 12, 40, 200, 1e4):
        assert t_quantile(freedom) == pytest.approx(special.stdtrit(freedom, 0.975), rel=2e-3)


def test_posts_without_a_label_count_among_all_and_a_dependent_field_among_those_that_have_it() -> None:
    posts = [
        Drawn("a", "1", 1, {"civic": "civic", "lean": "moderate"}),
        Drawn("b", "2", 1, {"civic": "not civic"}),
        Drawn("c", "3", 2, None),
    ]
    civic = {value: figure.value for value, figure in of_field(posts, CIVIC) if figure}
    assert civic == {"civic": 0.25, "not civic": 0.25, "": 0.5}
    lean = {value: (figure.value, figure.n) for value, figure in of_field(posts, LEAN) if figure}
    assert lean["moderate"] == (1.0, 1)
    assert "" not in lean


def test_a_value_that_the_task_no_longer_has_is_shown_too() -> None:
    posts = [Drawn("a", "1", 1, {"civic": "former"}), Drawn("b", "2", 1, {"civic": "civic"})]
    assert [value for value, _ in of_field(posts, CIVIC)] == ["civic", "not civic", "former"]
