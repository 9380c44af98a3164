"""The routes of the part about decoding find the same, which is the truth."""

from pathlib import Path

import pytest

from bench import decode
from bench.decode import ROUTES, SAME, check
from bench.part import Ask, gather
from support.made_frames import Made


@pytest.mark.parametrize("name", SAME)
def test_every_route_finds_all_posts_of_flawless_frames(made: Made, name: str) -> None:
    flawless = [(frame, truth) for frame, truth in made if not truth.hostile]
    found = check(ROUTES[name], *zip(*flawless, strict=True))
    assert found.wrong == 0
    assert found.posts == sum(len(truth.posts) for _, truth in flawless) > 800


def test_only_ours_is_right_about_hostile_frames_too(made: Made) -> None:
    hostile = [(frame, truth) for frame, truth in made if truth.hostile]
    wrong = {name: check(ROUTES[name], *zip(*hostile, strict=True)).hostile for name in SAME}
    assert wrong.pop("ours") == 0
    assert all(wrong.values())


def test_the_check_sees_what_is_left_out_and_what_is_too_much(made: Made) -> None:
    frames, known = zip(*made, strict=True)
    with_posts = sum(bool(decode.expected(truth)) and not truth.hostile for truth in known)
    assert check(lambda _: [], frames, known).wrong == with_posts
    assert check(lambda data: decode.ours(data) * 2, frames, known).wrong == with_posts


def test_a_round_measures_every_route_and_holds_the_bar_against_the_documented_way(own_cache: Path) -> None:
    measured = gather(decode.PART, decode.rounds(Ask(rounds=2, quick=True, scale=0.3)))
    assert own_cache.exists()
    assert measured.facts["frames"] == 600
    assert all(same["wrong"] == 0 and same["posts"] > 30 for same in measured.facts["same as the truth"].values())
    assert set(ROUTES) < set(measured.results)
    bars = {name: ratio.bar for name, ratio in measured.ratios.items() if ratio.bar is not None}
    assert bars == {"ours over the SDK's documented way, frames/s": 15}
    assert all(len(ratio.values) == 2 for ratio in measured.ratios.values())
