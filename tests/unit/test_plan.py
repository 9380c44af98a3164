"""What a labelling will take, against figures that were worked out by hand."""

from pathlib import Path
from typing import Any

import pytest

from civicsky.errors import Usage
from civicsky.gate import Gate, Measured
from civicsky.model import Asked, Spend, format_time
from civicsky.plan import (
    Load,
    behind,
    busy,
    drawn,
    estimated_load,
    gather,
    half_width,
    measured_load,
    money,
    rendered,
    sample_posts,
    way_of,
)
from civicsky.plan_text import as_text
from civicsky.prompt import messages, word_messages
from civicsky.settings import Gate as GateSettings, Label, Price, Sample, Settings
from civicsky.task import Task, file_hash, load_task

CIVIC, _ = load_task("civic")
SHORT = Task.model_validate(
    {
        "name": "short", "version": "1", "definition": "d",
        "fields": [{"name": "a", "values": ["yes", "no"], "description": "b"}],
    }
)  # fmt: skip


def label(**values: Any) -> Label:
    return Label.model_validate({"model": "m", **values})


def settings(*, sample: dict[str, Any] | None = None, **own: Any) -> Settings:
    return Settings(label=label(**own), sample=Sample.model_validate(sample or {}))


def test_tokens_are_a_quarter_of_the_characters_that_would_be_sent() -> None:
    posts = [Asked("x" * 40), Asked("y" * 60)]
    fixed = sum(len(message["content"]) for message in messages(SHORT, [Asked("")]))
    load = estimated_load(SHORT, label(), posts, 0)
    # 40 and 60 characters: 50 on average. The longest answer is {"a": "yes"}: 12 characters.
    assert load == Load(1, (fixed + 50) / 4, 12 / 4)


def test_each_part_of_a_context_counts_as_long_as_a_post() -> None:
    posts = [Asked("x" * 40), Asked("y" * 60)]
    without, with_context = (estimated_load(SHORT, label(), posts, parts) for parts in (0, 1.5))
    assert with_context.tokens_in - without.tokens_in == pytest.approx(1.5 * 50 / 4)


def test_posts_that_share_a_request_share_its_beginning() -> None:
    posts = [Asked("x" * 40)] * 4
    load = estimated_load(SHORT, label(posts_per_request=4), posts, 0)
    sent = messages(SHORT, posts, ["00000001", "00000002", "00000003", "00000004"])
    assert load.requests == 1 / 4
    assert load.tokens_in == sum(len(message["content"]) for message in sent) / 4 / 4


def test_an_answer_is_never_taken_to_be_longer_than_it_may_be() -> None:
    assert estimated_load(SHORT, label(max_tokens=1), [Asked("x")], 0).tokens_out == 1
    reasoned = SHORT.model_copy(update={"reason": True})
    assert estimated_load(reasoned, label(), [Asked("x")], 0).tokens_out > 20


def test_words_are_a_request_and_a_token_each() -> None:
    load = estimated_load(CIVIC, label(way="words"), [Asked("x" * 10)], 0)
    sent = [message["content"] for words in CIVIC.words for message in word_messages(words, Asked("x" * 10))]
    assert load == Load(len(CIVIC.words), len("".join(sent)) / 4, len(CIVIC.words))


def test_what_labels_took_so_far_counts_once_there_are_enough() -> None:
    assert measured_load(99, Spend("m", 99, 1, 1)) is None
    assert measured_load(200, Spend("m", 220, 180_000, 4_000)) == Load(1.1, 900, 20, 200)


def test_money_is_by_the_price_of_a_million_tokens() -> None:
    assert money(None, 1, 1) is None
    # 18 M read at 0.05 and 0.4 M written at 0.08
    assert money(Price(input=0.05, output=0.08), 18_000_000, 400_000) == pytest.approx(0.9 + 0.032)


@pytest.mark.parametrize(
    ("own", "sample", "posts", "why"),
    [
        ({}, {}, 20_000, "sample.posts_per_day"),
        ({}, {"posts_per_day": 0}, 50_000, "all"),
        ({}, {"posts_per_day": 90_000}, 50_000, "all"),
        ({"budget_tokens": 9_000_000}, {}, 9_000, "label.budget_tokens"),
        ({"budget_tokens": 90_000_000}, {}, 20_000, "sample.posts_per_day"),
        ({"budget_money": 1.0}, {}, 10_000, "label.budget_money"),
        ({"budget_tokens": 9_000_000, "budget_money": 0.5}, {"posts_per_day": 0}, 5_000, "label.budget_money"),
    ],
)
def test_the_least_of_wish_budgets_and_traffic_is_drawn(
    own: dict[str, Any], sample: dict[str, Any], posts: float, why: str
) -> None:
    """50,000 posts are kept; one takes 1,000 tokens and 0.0001."""
    found = drawn(settings(sample=sample, **own), 50_000, 0, 1_000, 0.0001)
    assert found.posts == pytest.approx(posts)
    assert found.why == why


def test_a_budget_pays_for_the_probes_too() -> None:
    assert drawn(settings(budget_tokens=9_000_000), 50_000, 200, 1_000, None).posts == 9_000 - 200
    assert drawn(settings(budget_tokens=100_000), 50_000, 200, 1_000, None).posts == 0


async def test_what_is_drawn_costs_no_more_than_the_budget(tmp_path: Any) -> None:
    own = settings(prices={"m": {"input": 1.0, "output": 2.0}}, budget_money=3.0)
    plan = await gather(own.model_copy(update={"data_dir": tmp_path}))
    assert plan["sample"]["bounded_by"] == "label.budget_money"
    assert plan["cost"]["a_day"] == pytest.approx(3.0)


def test_a_budget_of_money_bounds_nothing_without_a_price() -> None:
    assert drawn(settings(budget_money=1.0), 50_000, 0, 1_000, None).why == "sample.posts_per_day"


def test_the_slowest_of_slots_and_limits_makes_the_hours() -> None:
    # 20,000 requests of 2 s over 4 slots: 10,000 s
    assert dict(busy(label(), 20_000, 18_000_000, 2)) == {"label.slots": pytest.approx(10_000 / 3600)}
    limited = label(requests_per_minute=100, tokens_per_minute=150_000, more_urls=("http://b/v1",))
    bounds = dict(busy(limited, 20_000, 18_000_000, 2))
    # two servers: 200 requests and 300,000 tokens a minute
    assert bounds["label.requests_per_minute"] == pytest.approx(20_000 / 200 / 60)
    assert bounds["label.tokens_per_minute"] == pytest.approx(60 / 60)
    assert busy(limited, 20_000, 180_000_000, 2)[0].name == "label.tokens_per_minute"


def test_a_limit_a_day_that_is_too_small_takes_more_than_a_day() -> None:
    slowest = busy(label(requests_per_day=14_400), 20_000, 1, 1)[0]
    assert slowest.name == "label.requests_per_day"
    assert slowest.hours == pytest.approx(100 / 3)


async def test_a_gate_takes_off_requests_tokens_and_money_and_the_plan_says_what_it_rests_on(tmp_path: Path) -> None:
    own = settings(prices={"m": {"input": 1.0, "output": 2.0}}, anchors=0)
    own = own.model_copy(update={"data_dir": tmp_path})
    without = await gather(own)
    file = tmp_path / "gate.json"
    file.write_text(a_gate("civic", skipped=0.6).text())
    plan = await gather(own.model_copy(update={"gate": GateSettings(file=file, ask_anyway=0.05)}))
    assert "gate" not in without
    assert plan["gate"] == {
        "task": "civic", "version": a_gate("civic", skipped=0.6).version, "asked": pytest.approx(0.43),
        "basis": "gold", "posts": 9,
    }  # fmt: skip
    for what, before in (
        (plan["requests_a_day"], without["requests_a_day"]),
        (plan["tokens"]["in_a_day"], without["tokens"]["in_a_day"]),
        (plan["cost"]["a_day"], without["cost"]["a_day"]),
        (plan["busy"]["hours_a_day"], without["busy"]["hours_a_day"]),
    ):
        assert what == pytest.approx(0.43 * before)
    assert plan["sample"] == without["sample"], "it keeps back what is drawn, and draws no less"
    assert "civic: the model is asked about 43% of the drawn (stated of its GOLD, 9 posts)" in as_text(plan)
    assert "\ngate " in as_text(plan)
    assert "\ngate " not in as_text(without)


async def test_a_gate_that_the_service_would_refuse_is_refused_by_the_plan_too(tmp_path: Path) -> None:
    file = tmp_path / "gate.json"
    file.write_text(a_gate("toxicity", skipped=0.6).text())
    own = settings().model_copy(update={"data_dir": tmp_path, "gate": GateSettings(file=file)})
    with pytest.raises(Usage, match=r"gate\.file is about the task 'toxicity'"):
        await gather(own)


def test_what_a_gate_did_counts_once_it_looked_at_enough() -> None:
    gate = a_gate("civic", skipped=0.6)
    few, enough = behind(gate, 0.05, 99, 99), behind(gate, 0.05, 100, 80)
    assert few.asked == pytest.approx(0.43)
    assert few.posts is None
    assert enough.asked == pytest.approx(0.24)
    assert enough.posts == 100
    assert behind(gate, 1.0, 100, 80).asked == 1.0


def a_gate(task: str, skipped: float) -> Gate:
    share = Measured(value=skipped, low=0, high=1, n=9, authors=9)
    return Gate(
        made="now", task=task, task_version="2", task_sha256=file_hash(load_task("civic")[1]), field="civic",
        value="civic", model="m", model_version="1", model_sha256="0", gold_sha256="0", gold_posts=9, gold_positive=4,
        seed=0, recall_wanted=0.95, recall=share, skipped=share, threshold=0.5, bias=0.0, weights=(0.0,),
    )  # fmt: skip


def test_half_an_interval_is_that_of_the_binomial() -> None:
    assert half_width(20_000) == pytest.approx(0.00693, abs=5e-6)
    assert half_width(100) == pytest.approx(0.098, abs=5e-5)
    assert half_width(0) is None


def test_the_way_is_the_one_that_is_tried_first() -> None:
    assert way_of(CIVIC, label()) == "schema"
    assert way_of(CIVIC, label(model="local")) == "words"
    assert way_of(SHORT, label(model="local")) == "schema"
    assert way_of(CIVIC, label(way="plain")) == "plain"
    with pytest.raises(Usage, match="no words"):
        way_of(SHORT, label(way="words"))


def test_the_prompts_shown_are_those_that_are_sent() -> None:
    posts = [Asked(f"post {n}") for n in range(9)]
    assert [one["messages"] for one in rendered(CIVIC, label(), posts)] == [messages(CIVIC, [one]) for one in posts[:3]]
    by_words = [one["messages"] for one in rendered(CIVIC, label(way="words"), posts)]
    assert by_words == [word_messages(words, one) for one in posts[:3] for words in CIVIC.words]
    together = rendered(CIVIC, label(posts_per_request=4), posts)
    assert [sum(f"post {n}" in one["messages"][1]["content"] for n in range(9)) for one in together] == [4, 4, 1]
    assert all("post id=" in one["messages"][1]["content"] for one in together), "the last one, too"


def test_the_sample_has_the_posts_that_the_demo_keeps() -> None:
    assert len(sample_posts()) > 380
    assert all(post["text"] or post["link"] or post["alts"] for post in sample_posts())


async def test_a_plan_without_a_data_directory_says_that_it_assumes(tmp_path: Any) -> None:
    own = settings(prices={"m": {"input": 1.0, "output": 2.0}}, anchors=100)
    plan = await gather(own.model_copy(update={"data_dir": tmp_path / "none"}))
    assert not list(tmp_path.iterdir()), "nothing is made"
    assert (plan["traffic"]["basis"], plan["tokens"]["basis"], plan["prompts_of"]) == ("assumed", "estimated", "sample")
    assert plan["requests_a_day"] == 20_100
    tokens = plan["tokens"]
    assert tokens["in_a_day"] == pytest.approx(20_100 * tokens["in_a_label"])
    assert plan["cost"]["a_day"] == pytest.approx((tokens["in_a_day"] + 2 * tokens["out_a_day"]) / 1e6)
    assert plan["cost"]["a_month"] == pytest.approx(30 * plan["cost"]["a_day"])
    disk = plan["disk"]
    assert disk["journal"]["a_day"] == pytest.approx(972_000 * 1_500)
    assert disk["journal"]["steady"] == pytest.approx(7 * disk["journal"]["a_day"])
    assert disk["ledger"]["a_day"] == pytest.approx(972_000 * 240 + 20_000 * 1_840)
    assert "assumed" in as_text(plan)


async def test_how_long_posts_take_is_told_with_what_it_rests_on(tmp_path: Any) -> None:
    now = 1_795_000_000_000_000
    plan = await gather(settings().model_copy(update={"data_dir": tmp_path}), posts=1_000, now=now)
    # 25 posts a second, 45 % of them kept
    assert plan["time"]["seconds"] == pytest.approx(40)
    assert plan["time"]["kept_seconds"] == pytest.approx(40 / 0.45)
    assert (plan["time"]["basis"], plan["time"]["days"]) == ("assumed", 0)
    assert plan["time"]["from"] == format_time(now)
    assert plan["traffic"]["posts_an_hour"] == 90_000
    assert plan["traffic"]["frames_an_hour"] == 369 * 3600
    text = " ".join(as_text(plan).split())
    assert "1,000 posts in 40 s, 1,000 English ones in 89 s, from 2026-11-18T11:06Z on" in text
    assert "all hours alike, though the busiest have 36 posts/s" in text
    assert (
        "2,160,000 posts a day, 972,000 English ones, 31,881,600 frames; 90,000, 40,500 and 1,328,400 an hour" in text
    )


async def test_a_model_without_a_price_has_no_cost(tmp_path: Any) -> None:
    plan = await gather(settings().model_copy(update={"data_dir": tmp_path}))
    assert plan["cost"]["a_day"] is None
    assert "no price given for m: set label.prices" in as_text(plan)


async def test_a_budget_of_money_that_nothing_holds_to_is_said(tmp_path: Any) -> None:
    plan = await gather(settings(budget_money=5).model_copy(update={"data_dir": tmp_path}))
    assert "until then label.budget_money bounds nothing" in " ".join(as_text(plan).split())


async def test_people_see_a_prompts_beginning_once_and_figures_that_fit(tmp_path: Any) -> None:
    text = as_text(await gather(settings().model_copy(update={"data_dir": tmp_path})))
    figures, _, prompts = text.partition("What would be sent")
    assert f"{tmp_path} (nothing was collected there: all is assumed)" in " ".join(figures.split())
    assert max(map(len, figures.split("\n"))) <= 100
    assert prompts.count(CIVIC.definition) == 1
    assert prompts.count("(the same as above)") == 2
    assert prompts.count("-- user") == 3


async def test_nothing_of_a_prompt_moves_the_cursor_and_nothing_is_cut(tmp_path: Any) -> None:
    plan = await gather(settings(way="words").model_copy(update={"data_dir": tmp_path}))
    evil = "a\x1b[2J\u202eb" + "c" * 3000
    plan["prompts"][0]["messages"][0]["content"] = evil
    text = as_text(plan)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "c" * 3000 in text
