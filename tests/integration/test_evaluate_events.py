"""`civicsky evaluate --events`, as installed: without and with articles on the same GOLD, held against each other."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.command import Ended, run
from support.events import EVENTS, both, write
from support.news_model import NewsModel, Prompt, labels, news_model

AT = "2026-11-22T12:00:00Z"
NAMED = [event["posts"][0] for event in EVENTS[:8]]
HINTS = [event["posts"][2] for event in EVENTS[:8]]


def gold(folder: Path, rows: list[dict[str, Any]]) -> Path:
    return write(folder / "gold.jsonl", [{"civic": "civic", "us_politics": "no", **row} for row in rows])


def evaluate(gold: Path, model: NewsModel, *more: str | Path, **settings: Any) -> Ended:
    return run(
        "evaluate", gold, "--model-url", model.url, "--model", "mock", "--out", gold.parent / "out", "--json", *more,
        data_dir=gold.parent / "none", log__level="error", **settings,
    )  # fmt: skip


@pytest.fixture
def news(tmp_path: Path) -> Path:
    return write(tmp_path / "news" / "a.jsonl", [one for number in range(8) for one in both(number)]).parent


def test_the_difference_that_articles_make_is_told_on_the_same_posts_with_its_interval(
    tmp_path: Path, news: Path
) -> None:
    """The model calls a post moderate when it is given articles, else unclear; gold says moderate of six of eight."""
    rows = [
        {"text": text, "event_at": AT, "author": str(n), "lean": "unclear" if n < 2 else "moderate"}
        for n, text in enumerate(NAMED)
    ]
    file = gold(tmp_path, rows)
    with news_model() as model:
        ended = evaluate(file, model, "--events", news, events__max_distance=0.6)
        assert ended.code == 0, ended.err
        asked = len(model.prompts)
        assert asked == 8 + 8 + 16, "each without, with, and two summaries for each event"
        again = evaluate(file, model, "--events", news, events__max_distance=0.6)
        assert len(model.prompts) == asked, "what was paid for is not asked again, and no summary is"
    found = json.loads(ended.out)
    without, with_articles = found["variants"]
    assert with_articles["name"] == without["name"] + ", with articles"
    assert with_articles["articles"] == {"given": 8, "asked_twice": 0, "without_time": 0, "summaries": 16}
    assert "articles" not in without
    (lean,) = [row["result"] for row in found["comparisons"] if row["field"] == "lean"]
    assert lean["difference"]["value"] == pytest.approx(2 / 8 - 6 / 8)
    assert lean["difference"]["low"] <= lean["difference"]["value"] <= lean["difference"]["high"]
    assert lean["difference"]["n"] == 8
    assert 0 < lean["p_value"] < 1
    assert without["effort"]["calls"] == 8
    assert with_articles["effort"]["calls"] == 8 + 16, "summaries count"
    assert json.loads(again.out)["variants"][1]["effort"]["calls"] == 8 + 16


def test_a_post_of_no_known_time_or_older_than_all_articles_is_given_none(tmp_path: Path, news: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": NAMED[0], "lean": "unclear"},
        {"text": NAMED[1], "lean": "unclear", "event_at": "no time"},
        {"text": NAMED[2], "lean": "unclear", "event_at": "2026-11-19T00:00:00Z"},
        # The key's time is the earlier one.
        {"text": NAMED[3], "lean": "unclear", "event_at": AT, "uri": "at://did:plc:a/app.bsky.feed.post/3n2mrbki22222"},
        {"text": NAMED[4], "lean": "unclear", "event_at": AT},
    ]
    with news_model() as model:
        ended = evaluate(gold(tmp_path, rows), model, "--events", news, events__summarise=False)
        assert ended.code == 0, ended.err
        assert {prompt.post for prompt in model.questions if prompt.context} == {NAMED[4]}
    told = json.loads(ended.out)["variants"][1]["articles"]
    assert (told["given"], told["without_time"]) == (1, 2)


def test_what_is_unclear_is_asked_again_and_a_vain_second_question_leaves_the_first_answer(
    tmp_path: Path, news: Path
) -> None:
    spoilt = HINTS[1]

    def says(prompt: Prompt) -> dict[str, str] | str | None:
        return "no JSON" if prompt.context and prompt.post == spoilt else labels(prompt)

    rows = [{"text": text, "event_at": AT, "lean": "moderate"} for text in HINTS]
    with news_model(says) as model:
        ended = evaluate(
            gold(tmp_path, rows), model, events__folder=news, events__max_distance=0.85, events__summarise=False,
            label__slots=1,
        )  # fmt: skip
        assert ended.code == 0, ended.err
    one = json.loads(ended.out)["variants"][1]
    (lean,) = [row for row in one["fields"] if row["field"] == "lean"]
    twice = one["articles"]["asked_twice"]
    assert twice > 1
    assert one["answered"] == 8
    assert lean["all"]["accuracy"]["value"] == pytest.approx(one["articles"]["given"] / 8), "but for the spoilt one"


def test_a_folder_that_is_none_ends_before_anything_is_asked(tmp_path: Path) -> None:
    with news_model() as model:
        ended = evaluate(gold(tmp_path, [{"text": NAMED[0], "lean": "unclear"}]), model, "--events", tmp_path / "none")
        assert model.prompts == []
    assert ended.code == 2
    assert "events.folder" in ended.err
