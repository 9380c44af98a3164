"""A plain script, and ours beside it, over the same frames."""

import sqlite3
from contextlib import closing
from pathlib import Path

from bench import script
from bench.part import Ask, gather
from support.made_frames import Made


def test_the_script_keeps_what_is_tagged_english_and_saves_its_cursor_before_it_writes(
    made: Made, tmp_path: Path
) -> None:
    frames = [frame for frame, _ in made[:2000]]
    kept = script.plain(frames, tmp_path, waits=False).posts
    english = sum(post.lang == "en" and post.action == "create" for _, truth in made[:2000] for post in truth.posts)
    assert english * 0.8 < kept < english * 1.2
    with closing(sqlite3.connect(tmp_path / "script.db")) as db:
        ((cursor,),) = db.execute("SELECT cursor FROM state")
    assert cursor % 500 == 0
    assert made[0][1].seq + 500 < cursor <= made[1999][1].seq


def test_ours_keeps_what_is_english(made: Made, tmp_path: Path) -> None:
    frames = [frame for frame, _ in made[:2000]]
    posts = [post for _, truth in made[:2000] for post in truth.posts if post.action == "create" and not post.fault]
    kept = script.ours(frames, tmp_path).posts
    assert 0.85 < kept / sum(post.lang == "en" for post in posts) < 1.1


def test_a_round_measures_all_ways(own_cache: Path) -> None:
    measured = gather(script.PART, script.rounds(Ask(rounds=1, scale=0.05)))
    assert not list(own_cache.glob("tmp*"))
    assert set(measured.results) == set(script.WAYS)
    assert len(measured.ratios) == 2
    assert measured.facts["frames"] == 1000
