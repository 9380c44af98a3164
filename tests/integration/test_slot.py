"""What a slot makes of a model server that does all that servers do: an answer, a reason, or a wait; never a crash."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from civicsky.endpoint import open_endpoints
from civicsky.errors import BadInput, Transient
from civicsky.label import Slot
from civicsky.model import Answer, Asked
from civicsky.settings import Label
from civicsky.task import load_task
from support.injections import BYSTANDERS, INJECTIONS
from support.model_knobs import ANSWER, CHOICE, CONTENT, ITEMS, NAMES, WIRE
from support.model_says import FIELDS, Obey
from support.told_model import ToldModel, honest, told_model

TASK = load_task("civic")[0]
QUICK: dict[str, Any] = {"model": "mock", "request_seconds": 0.5, "pause_seconds": 0.01, "pause_max_seconds": 0.02}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToldModel]:
    with told_model(tmp_path_factory.mktemp("model")) as model:
        yield model


@pytest.fixture
def server(shared: ToldModel) -> Iterator[ToldModel]:
    shared.tell(obey="", limits=[])
    shared.requests.write_text("")
    yield shared
    assert shared.state()["crashes"] == 0


@asynccontextmanager
async def slots(server: ToldModel, n: int = 1, **settings: Any) -> AsyncIterator[list[Slot]]:
    label = Label(**QUICK | {"model_url": server.url} | settings)
    endpoints = open_endpoints(label)
    made = [Slot(endpoints, {"civic": TASK}, label) for _ in range(n)]
    try:
        yield made
    finally:
        for slot in made:
            await slot.close()


def values(answer: Answer | BadInput) -> dict[str, str] | str:
    """The answer's values, or its reason."""
    return answer.reason if isinstance(answer, BadInput) else {name: one.value for name, one in answer.fields.items()}


POSTS = [post.text for post in BYSTANDERS[:10]]

TRANSIENT = "hang", "status", "close", "reset", "reset_body", "truncated", "drip", "not_http"
GOOD = {
    "slow", "fenced", "think", "no_logprobs", "odd_logprobs", *(ANSWER.keys() - {"no_choices", "null_choices"}),
    "unordered", "unknown", "doubled_alike", "doubled", "unknown_instead", "places_for_ids",
} - {"choices_are_text"}  # fmt: skip
REASONS = {
    "html": "bad_response", "empty_body": "bad_response", "half_json": "bad_response", "not_utf8": "bad_response",
    "deep_body": "bad_response", "gzip_bomb": "too_long", "error_in_200": "bad_response",
    "moderation": "request_rejected", "missing": "not_in_schema",
    "wrong_enum": "not_in_schema", "wrong_case": "not_in_schema", "wrong_type": "not_in_schema",
    "null_values": "not_in_schema", "extra_keys": "not_in_schema", "missing_key": "not_in_schema", "nan": "not_json",
    "prose": "not_json", "think_without_end": "not_json", "empty": "empty", "blank": "empty", "null": "empty",
    "half": "not_json", "single_quotes": "not_json", "list": "not_in_schema", "twice": "not_json", "deep": "not_json",
    "surrogate": "not_in_schema", "nul": "not_json", "big": "too_long", "endless_number": "not_json",
    "refusal": "refusal", "content_filter": "refusal", "length": "cut_off", "no_message": "bad_response",
    "message_is_text": "bad_response", "no_choices": "bad_response", "null_choices": "bad_response",
    "choices_are_text": "bad_response", "json_failed": "not_json",
}  # fmt: skip
"""Of one post, when the server does it every time."""


def test_every_knob_has_an_end_that_is_known() -> None:
    assert {*TRANSIENT, *GOOD, *REASONS, "refuse"} == NAMES
    assert {*WIRE, *ITEMS, *CONTENT, *CHOICE, *ANSWER, "slow"} == NAMES


TEXT = next(text for text in POSTS if honest(text)["civic"] == "civic")
"""One whose answer has all fields."""


@pytest.mark.parametrize("knob", TRANSIENT)
async def test_a_server_that_cannot_is_one_to_wait_for(server: ToldModel, knob: str) -> None:
    async with slots(server) as (slot,):
        await slot.ask("civic", [Asked("first")])
        server.tell({"name": knob, "times": 1})
        with pytest.raises(Transient) as caught:
            await slot.ask("civic", [Asked(TEXT)])
        assert caught.value.busy == (knob == "status")
        assert caught.value.spend.calls == 1
        (again,) = await slot.ask("civic", [Asked(TEXT)])
        assert values(again) == honest(TEXT)


@pytest.mark.parametrize("knob", sorted(REASONS))
async def test_an_answer_of_no_use_has_its_reason(server: ToldModel, knob: str) -> None:
    async with slots(server, request_seconds=30) as (slot,):
        await slot.ask("civic", [Asked("first")])
        server.tell({"name": knob, "text": TEXT})
        (bad,) = await slot.ask("civic", [Asked(TEXT)])
        assert values(bad) == REASONS[knob]
        assert isinstance(bad, BadInput)
        assert bad.spend.calls == (2 if knob == "moderation" else 1), "a 403 may be the key's: that is asked, too"
        assert len(bad.raw) <= 10_000
        server.tell()
        assert values((await slot.ask("civic", [Asked(TEXT)]))[0]) == honest(TEXT)


@pytest.mark.parametrize("knob", sorted(GOOD))
async def test_an_answer_in_odd_clothes_is_an_answer(server: ToldModel, knob: str) -> None:
    async with slots(server, request_seconds=30) as (slot,):
        server.tell({"name": knob, "seconds": 0.1})
        (answer,) = await slot.ask("civic", [Asked(TEXT)])
        assert values(answer) in (honest(TEXT), "not_in_schema" if knob in ITEMS else None)
        if knob in {"no_usage", "null_usage", "negative_usage", "text_usage", "huge_usage"}:
            assert (answer.spend.tokens_in, answer.spend.tokens_out) == (0, 0)
        if knob == "reasoning":
            assert answer.spend.tokens_reasoning == 300


@pytest.mark.parametrize("what", ["json_schema", "json_object", "logprobs", "response_format"])
async def test_what_a_server_refuses_is_found_out_once(server: ToldModel, what: str) -> None:
    server.tell({"name": "refuse", "what": what})
    async with slots(server) as (slot,):
        assert values((await slot.ask("civic", [Asked(TEXT)]))[0]) == honest(TEXT)
        asked = len(server.entries())
        for text in POSTS:
            assert values((await slot.ask("civic", [Asked(text)]))[0]) == honest(text)
        assert len(server.entries()) == asked + len(POSTS)


@pytest.mark.parametrize("knob", sorted({*ITEMS, "length", "prose", "empty", "refusal", "html"}))
async def test_ten_posts_of_which_some_have_no_good_answer_are_all_answered_and_none_twice(
    server: ToldModel, knob: str
) -> None:
    """The good ones are kept; only the others are asked again, alone."""
    server.tell({"name": knob, "many": True, "count": 3})
    async with slots(server) as (slot,):
        answers = await slot.ask("civic", [Asked(text) for text in POSTS])
        assert list(map(values, answers)) == list(map(honest, POSTS))
    first, *others = server.entries()
    assert len(first["ids"]) == 10
    assert all(not entry["ids"] for entry in others)
    again = [post for entry in others for post in entry["posts"]]
    assert len(set(again)) == len(again)
    wanted = {"unordered": 0, "unknown": 0, "length": 10, "prose": 10, "empty": 10, "refusal": 10, "html": 10,
              "nan": 10, "places_for_ids": 10}  # fmt: skip
    assert len(again) == wanted.get(knob, 3)


@pytest.mark.parametrize("n", [1, 10])
@pytest.mark.parametrize("obey", ["adds", "replaces"])
async def test_posts_that_are_obeyed_change_no_other_post_and_say_nothing_outside_the_task(
    server: ToldModel, n: int, obey: Obey
) -> None:
    mixed: list[str] = []
    for at, post in enumerate(INJECTIONS):
        mixed += [post.text, BYSTANDERS[at].text]
    server.tell(obey=obey)
    answers: list[Answer | BadInput] = []
    async with slots(server) as (slot,):
        for at in range(0, len(mixed), n):
            answers += await slot.ask("civic", [Asked(text) for text in mixed[at : at + n]])
    followed = 0
    for at, (text, answer) in enumerate(zip(mixed, answers, strict=True)):
        said = values(answer)
        if at % 2:
            assert said == honest(text)
        elif isinstance(said, str):
            assert said == "not_in_schema"
        else:
            assert all(value in FIELDS[name] for name, value in said.items())
            followed += said != honest(text)
    assert followed >= 10, "the model obeys"


# ---- limits ----------------------------------------------------------------------------------------------------------

RATE = 100.0
"""A second: 6,000 a minute."""
TRIES = 3
"""A machine that had other things to do may have kept us from the rate; nothing may make us exceed it."""


@pytest.mark.timeout(200)
async def test_2000_posts_at_6000_a_minute_use_the_rate_and_never_exceed_it(tmp_path: Path) -> None:
    """The server turns away what is above 6,000 in any minute, and above two seconds' worth in any one.

    To the latter it adds what is under way: requests may come together that were sent apart.
    """
    used = 0.0
    for attempt in range(TRIES):
        entries = await asked_at_the_limit(tmp_path / str(attempt))
        assert [entry["status"] for entry in entries] == [200] * 2000
        came = sorted(entry["time"] for entry in entries)
        used = (len(came) - 1) / (came[-1] - came[0]) / RATE
        print(f"{used:.1%} of the permitted rate")
        assert used <= 1
        if used >= 0.95:
            break
    assert used >= 0.95


async def asked_at_the_limit(folder: Path) -> list[dict[str, Any]]:
    """The requests of 2,000 posts."""
    left = [Asked(f"Post {number}") for number in range(2000)]

    async def work(slot: Slot) -> None:
        while left:
            (answer,) = await slot.ask("civic", [left.pop()])
            assert isinstance(answer, Answer)

    with told_model(folder, "--limit", "6000/60", "--limit", "216/1", "--delay", "0.02") as server:
        async with slots(server, 16, requests_per_minute=6000, request_seconds=30) as made:
            await asyncio.gather(*map(work, made))
        return server.entries()


async def test_a_limit_that_nobody_told_us_of_is_met_once_for_all_slots(tmp_path: Path) -> None:
    """429 stops all slots, not each of them after the other: what is turned away was under way already."""
    n, room = 8, 40
    left = [Asked(f"Post {number}") for number in range(100)]

    async def work(slot: Slot) -> None:
        while left:
            asked = left.pop()
            try:
                await slot.ask("civic", [asked])
            except Transient:
                left.append(asked)
                await asyncio.sleep(slot.delay())

    with told_model(tmp_path, "--limit", f"{room}/1", "--delay", "0.01") as server:
        async with slots(server, n, request_seconds=30) as made:
            await asyncio.gather(*map(work, made))
        entries = server.entries()
    answered = [entry for entry in entries if entry["status"] == 200]
    assert len(answered) == 100
    seconds = entries[-1]["time"] - entries[0]["time"]
    assert len(entries) - len(answered) <= n * (seconds + 1), "no more than one for each slot in each of its stretches"
