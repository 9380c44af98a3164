"""Asking models through real HTTP servers that do as they are told: ways, batches, costs, limits, and failures."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from civicsky.endpoint import Endpoints, open_endpoints
from civicsky.errors import BadInput, CivicskyError, Refused, Transient, Usage
from civicsky.label import Slot
from civicsky.model import Answer, Asked, Question, Spend
from civicsky.settings import Label, Price
from civicsky.task import Task, load_task
from support.model_knobs import Knob
from support.model_says import answer_for
from support.model_server import ModelServer, Reply, Request, Told, serve

CIVIC = load_task("civic")[0]
POSTS = [Asked(f"Post number {n} about the election") for n in range(10)]
KEY = "sk-hunter2-hunter2"
QUICK = {"pause_seconds": 0.05, "pause_max_seconds": 0.2, "request_seconds": 5}


class Model:
    """A server, and what came to it."""

    def __init__(self, folder: Path, knobs: Sequence[Knob], told: Mapping[str, Any]) -> None:
        self.file = folder / "requests.jsonl"
        self.server = ModelServer(Told(**told), list(knobs), None, self.file)
        self.url = ""

    @property
    def requests(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()]

    def tell(self, *knobs: Knob, **told: Any) -> None:
        self.server.control({"knobs": [], **told})
        self.server.knobs = list(knobs)


ModelFactory = Callable[..., Awaitable[Model]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[ModelFactory]:
    listening: list[asyncio.Server] = []

    async def begin(*knobs: Knob, **told: Any) -> Model:
        folder = tmp_path / str(len(listening))
        folder.mkdir()
        model = Model(folder, knobs, told)
        server, model.url = await serve(model.server)
        listening.append(server)
        return model

    yield begin
    for server in listening:
        server.close()


def chosen(*models: Model, **settings: Any) -> Label:
    first, *more = [model.url for model in models]
    given = {"model": "mock", **QUICK, **settings}
    return Label.model_validate({"model_url": first, "more_urls": tuple(more), **given})


@asynccontextmanager
async def slots(
    settings: Label,
    n: int = 1,
    abilities: Mapping[str, str] | None = None,
    spend: Spend | None = None,
    tasks: Sequence[Task] = (CIVIC,),
) -> AsyncIterator[tuple[Endpoints, list[Slot]]]:
    endpoints = open_endpoints(settings, None, abilities, spend)
    made = [Slot(endpoints, {task.name: task for task in tasks}, settings) for _ in range(n)]
    try:
        yield endpoints, made
    finally:
        for slot in made:
            await slot.close()


async def one(slot: Slot, post: Asked = POSTS[0]) -> Answer:
    (answer,) = await slot.ask("civic", [post])
    assert isinstance(answer, Answer), answer
    return answer


async def bad(slot: Slot, post: Asked = POSTS[0]) -> BadInput:
    (answer,) = await slot.ask("civic", [post])
    assert isinstance(answer, BadInput), answer
    return answer


def question_of(answer: Answer) -> Question:
    return Question(answer.prompt_hash, answer.model_asked, answer.parameters)


def values(answer: Answer | BadInput) -> dict[str, str]:
    assert isinstance(answer, Answer), answer
    return {name: label.value for name, label in answer.fields.items()}


def expected(post: Asked) -> dict[str, str]:
    said = answer_for(post.text)
    return said if said["civic"] == "civic" else {"civic": said["civic"]}


# ---- one answer, and where it comes from -----------------------------------------------------------------------------


async def test_an_answer_says_all_that_is_needed_to_defend_it(start: ModelFactory) -> None:
    model = await start()
    async with slots(chosen(model)) as (_, (slot,)):
        question = slot.question("civic")
        answer = await one(slot)
    assert values(answer) == expected(POSTS[0])
    assert (answer.way, answer.model_asked, answer.model_named) == ("schema", "mock", "mock-0001")
    assert (answer.fingerprint, answer.endpoint) == ("fp_test", model.url.removesuffix("/v1"))
    assert question_of(answer) == question, "what is asked is known before"
    assert (answer.tokens_in, answer.tokens_out, answer.calls, answer.cost) == (100, 10, 1, None)
    assert (answer.input_hash, answer.context_hash) == (POSTS[0].input_hash, None)
    assert all(0 < label.probability <= 1 for label in answer.fields.values() if label.probability is not None)
    assert all(label.probability is not None for label in answer.fields.values()), "the server gives log-probabilities"


async def test_parameters_are_the_same_text_for_the_same_question_and_tell_all_that_matters(
    start: ModelFactory,
) -> None:
    model = await start()
    thinking = CIVIC.model_copy(update={"reasoning": "low"})
    settings = chosen(model, posts_per_request=5, max_chars=1234, max_tokens=77)
    async with slots(settings, tasks=[thinking]) as (_, (slot,)):
        parameters = slot.question("civic").parameters
        answers = await slot.ask("civic", POSTS[:3])
    assert json.loads(parameters) == {
        "temperature": 0, "max_tokens": 77, "max_chars": 1234, "way": "schema", "response_format": "json_schema",
        "posts_per_request": 5, "reasoning_effort": "low",
    }  # fmt: skip
    assert {answer.parameters for answer in answers if isinstance(answer, Answer)} == {parameters}


async def test_money_is_counted_by_the_price_table(start: ModelFactory) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
    details = {"prompt_tokens_details": {"cached_tokens": 400}, "completion_tokens_details": {"reasoning_tokens": 450}}
    async with _canned({"usage": {**usage, **details}}) as url:
        price = Price(input=10, output=100, cached=1)
        settings = Label(model_url=url, model="mock", prices={"mock": price}, currency="EUR")
        async with slots(settings) as (_, (slot,)):
            answer = await one(slot)
    assert (answer.tokens_in, answer.tokens_out, answer.tokens_reasoning) == (1000, 500, 450)
    assert answer.cost == pytest.approx((600 * 10 + 400 * 1 + 500 * 100) / 1e6)
    assert answer.currency == "EUR"
    assert answer.spend.cost == answer.cost


@asynccontextmanager
async def _canned(extra: Mapping[str, Any], headers: str = "", status: int = 200) -> AsyncIterator[str]:
    """A server that says the same to all."""

    open_ones = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.append(asyncio.current_task())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                sizes = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-len")]
                await reader.readexactly(int(sizes[0]) if sizes else 0)
                message = {"content": json.dumps(answer_for("x")), "role": "assistant"}
                whole: Any = {"choices": [{"message": message, "finish_reason": "stop"}], **extra}
                if head.startswith(b"GET /version"):
                    whole = {"version": "0.6.3"}
                body = json.dumps(whole).encode()
                lines = f"HTTP/1.1 {status} As-Told\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
                writer.write(lines.encode() + body)
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        await asyncio.gather(*filter(None, open_ones))  # the client has hung up


@pytest.mark.parametrize(
    ("header", "program"),
    [
        ("Server: llama.cpp\r\n", "llama.cpp"),
        ("Server: uvicorn\r\n", "vllm 0.6.3"),
        (f"Server: {'x' * 500}\r\n", "x" * 80),
        ("Server: a\x1b[31m\r\n", None),
        ("", None),
    ],
)
async def test_the_servers_program_and_version_are_noted_where_it_says_so(header: str, program: str | None) -> None:
    async with _canned({}, header) as url, slots(Label(model_url=url, model="m", way="json")) as (_, (slot,)):
        await slot.probe()
        assert (await one(slot)).server == program


# ---- ways ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refused", "ability", "tries"),
    [
        ([], "schema+logprobs", 1),
        (["logprobs"], "schema", 2),
        (["json_schema"], "json+logprobs", 3),
        (["json_schema", "logprobs"], "json", 4),
        (["response_format", "logprobs"], "plain", 6),
    ],
)
async def test_what_a_server_can_is_found_out_once_and_remembered(
    start: ModelFactory, refused: list[str], ability: str, tries: int
) -> None:
    model = await start(*(Knob("refuse", what=what) for what in refused))
    async with slots(chosen(model), n=8) as (endpoints, many):
        answers = await asyncio.gather(*(one(slot, post) for slot, post in zip(many, POSTS, strict=False)))
        assert len(model.requests) == 8 + tries - 1, "one finds it out, the others wait for it"
        assert [values(answer) for answer in answers] == [expected(post) for post in POSTS[:8]]
        assert {answer.way for answer in answers} == {ability.removesuffix("+logprobs")}
        assert many[0].question("civic") == question_of(answers[0])
        remembered = endpoints.abilities()
    assert list(remembered.values()) == [ability]
    async with slots(chosen(model), abilities=remembered) as (_, (slot,)):
        assert slot.question("civic") == question_of(answers[0]), "also after a restart, before anything was asked"
        await one(slot)
    assert len(model.requests) == 9 + tries - 1


async def test_one_post_that_is_refused_does_not_lower_the_way(start: ModelFactory) -> None:
    model = await start()
    async with slots(chosen(model)) as (endpoints, (slot,)):
        await one(slot)
        model.tell(Knob("status", status=400, times=1))
        refused = await bad(slot, POSTS[1])
        assert refused.reason == "request_rejected"
        assert refused.spend.calls == 1
        assert "HTTP 400" in refused.raw
        assert (await one(slot, POSTS[1])).way == "schema"
        assert list(endpoints.abilities().values()) == ["schema+logprobs"]


async def test_a_post_that_is_refused_in_every_way_teaches_nothing(start: ModelFactory) -> None:
    model = await start(Knob("status", status=400, text="number 0"))
    async with slots(chosen(model)) as (endpoints, (slot,)):
        assert (await bad(slot)).reason == "request_rejected"
        assert endpoints.abilities() == {}
        assert (await one(slot, POSTS[1])).way == "schema"


async def test_a_first_answer_that_is_no_json_does_not_lower_the_way(start: ModelFactory) -> None:
    """Some servers check the answer themselves, and say so with a 400: that is no word about what they can."""
    model = await start(Knob("json_failed", times=1))
    async with slots(chosen(model)) as (endpoints, (slot,)):
        assert (await bad(slot)).reason == "not_json"
        assert (await one(slot)).way == "schema"
        assert list(endpoints.abilities().values()) == ["schema+logprobs"]


async def test_a_remembered_ability_that_the_server_lost_is_lowered(start: ModelFactory) -> None:
    model = await start(Knob("refuse", what="json_schema"))
    name = model.url.removesuffix("/v1")
    async with slots(chosen(model), abilities={name: "schema"}) as (endpoints, (slot,)):
        assert (await one(slot)).way == "json"
        assert endpoints.abilities() == {name: "json+logprobs"}


@pytest.mark.parametrize(("way", "form"), [("schema", "json_schema"), ("json", "json_object"), ("plain", None)])
async def test_a_way_that_the_settings_name_is_the_only_one(start: ModelFactory, way: str, form: str | None) -> None:
    model = await start()
    async with slots(chosen(model, way=way)) as (endpoints, (slot,)):
        assert (await one(slot)).way == way
        assert endpoints.abilities() == {}, "what was not looked for is not remembered"
        model.tell(Knob("refuse", what=form) if form else Knob("status", status=400))
        assert (await bad(slot, POSTS[1])).reason == "request_rejected"
    assert {request["way"] for request in model.requests} == {way}


async def test_a_server_without_logprobs_gives_labels_without_probability(start: ModelFactory) -> None:
    model = await start(Knob("no_logprobs"))
    async with slots(chosen(model)) as (_, (slot,)):
        assert {label.probability for label in (await one(slot)).fields.values()} == {None}
        model.tell(Knob("odd_logprobs"))
        assert {label.probability for label in (await one(slot)).fields.values()} == {None}


async def test_words_are_asked_topic_first_and_lean_only_of_civic_posts(start: ModelFactory) -> None:
    model = await start()
    async with slots(chosen(model, way="words", margin=0)) as (_, (slot,)):
        question = slot.question("civic")
        answers = [await one(slot, post) for post in POSTS]
    civic = [answer for answer in answers if answer.fields["civic"].value == "civic"]
    assert 0 < len(civic) < len(POSTS)
    assert len(model.requests) == len(POSTS) + len(civic)
    assert all(answer.calls == 1 + (answer in civic) for answer in answers)
    assert all("lean" not in answer.fields for answer in answers if answer not in civic)
    assert {question_of(answer) for answer in answers} == {question}
    assert json.loads(question.parameters)["margin"] == 0
    assert all(answer.fields["civic"].probability is not None for answer in answers)


async def test_words_without_logprobs_are_of_no_use(start: ModelFactory) -> None:
    model = await start(Knob("no_logprobs"))
    async with slots(chosen(model, way="words")) as (_, (slot,)):
        found = await bad(slot)
    assert (found.reason, found.spend.calls, found.spend.tokens_in) == ("no_logprobs", 1, 100)
    assert "choices" in found.raw


async def test_a_task_without_words_cannot_be_asked_with_words(start: ModelFactory) -> None:
    model = await start()
    with pytest.raises(Usage, match=r"no words to ask for; add \[\[words\]\]"):
        async with slots(chosen(model, way="words"), tasks=[CIVIC.model_copy(update={"words": ()})]):
            pass


# ---- several posts in a request --------------------------------------------------------------------------------------


async def test_several_posts_share_a_request_and_its_cost(start: ModelFactory) -> None:
    model = await start()
    settings = chosen(model, posts_per_request=7, prices={"mock": Price(input=3, output=7)})
    async with slots(settings) as (_, (slot,)):
        answers = await slot.ask("civic", POSTS[:7])
    assert [values(answer) for answer in answers] == [expected(post) for post in POSTS[:7]]
    assert len(model.requests) == 1
    spends = [answer.spend for answer in answers]
    assert sum(spend.calls for spend in spends) == 1
    assert (sum(spend.tokens_in for spend in spends), sum(spend.tokens_out for spend in spends)) == (700, 70)
    assert sum(spend.cost for spend in spends) == pytest.approx((700 * 3 + 70 * 7) / 1e6)


async def test_ids_cannot_be_guessed_and_are_new_in_each_request(start: ModelFactory) -> None:
    model = await start()
    async with slots(chosen(model, posts_per_request=10)) as (_, (slot,)):
        await slot.ask("civic", POSTS)
        await slot.ask("civic", POSTS)
    ids = [name for request in model.requests for name in request["ids"]]
    assert len(set(ids)) == 20
    assert all(len(name) == 8 for name in ids)


@pytest.mark.parametrize(
    ("knob", "again"),
    [
        (Knob("missing", count=2, many=True), 2),
        (Knob("doubled", count=3, many=True), 3),
        (Knob("wrong_enum", count=1, many=True), 1),
        (Knob("unknown_instead", count=2, many=True), 2),
        (Knob("unordered", many=True), 0),
        (Knob("unknown", many=True), 0),
        (Knob("prose", many=True), 10),
        (Knob("length", many=True), 10),
        (Knob("html", many=True), 10),
        (Knob("big", many=True), 10),
        (Knob("status", status=400, many=True), 10),
    ],
)
async def test_good_answers_are_kept_and_the_others_asked_again_alone(
    start: ModelFactory, knob: Knob, again: int
) -> None:
    model = await start()
    async with slots(chosen(model, posts_per_request=10)) as (_, (slot,)):
        await one(slot)
        model.tell(knob)
        answers = await slot.ask("civic", POSTS)
    assert [values(answer) for answer in answers] == [expected(post) for post in POSTS]
    shared, *alone = model.requests[1:]
    assert len(shared["ids"]) == 10
    assert [request["ids"] for request in alone] == [[]] * again
    assert sum(answer.spend.calls for answer in answers) == 1 + again
    sent = 1000 if knob.name not in {"html", "big", "status"} else 0
    assert sum(answer.spend.tokens_in for answer in answers) == sent + 100 * again


async def test_what_is_bad_alone_too_comes_back_with_its_reason_cost_and_words(start: ModelFactory) -> None:
    model = await start(Knob("refusal", text="number 3", many=False), Knob("wrong_enum", count=10, many=True))
    async with slots(chosen(model, posts_per_request=10)) as (_, (slot,)):
        answers = await slot.ask("civic", POSTS)
    refused = answers[3]
    assert isinstance(refused, BadInput)
    assert refused.reason == "refusal"
    assert "I can't help" in refused.raw
    assert refused.spend.tokens_in == 200, "its part of the first request, and its own"
    assert sum(answer.spend.calls for answer in answers) == 11
    assert sum(isinstance(answer, Answer) for answer in answers) == 9


async def test_an_outage_in_the_midst_loses_nothing_that_was_paid_for(start: ModelFactory) -> None:
    model = await start(Knob("missing", count=4, many=True), Knob("status", status=503, many=False))
    async with slots(chosen(model, posts_per_request=10)) as (_, (slot,)):
        answers = await slot.ask("civic", POSTS)
    assert sum(isinstance(answer, Answer) for answer in answers) == 6
    reasons = [answer.reason for answer in answers if isinstance(answer, BadInput)]
    assert reasons == ["missing"] * 4
    assert sum(answer.spend.calls for answer in answers) == 2, "the server was left alone after it had failed"
    assert sum(answer.spend.tokens_in for answer in answers) == 1000


async def test_an_outage_with_nothing_to_keep_is_told_with_what_was_spent(start: ModelFactory) -> None:
    model = await start(Knob("prose", many=True), Knob("status", status=503, many=False))
    async with slots(chosen(model, posts_per_request=10)) as (_, (slot,)):
        with pytest.raises(Transient) as caught:
            await slot.ask("civic", POSTS)
    assert (caught.value.spend.calls, caught.value.spend.tokens_in) == (2, 1000)


# ---- answers of no use -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("length", "cut_off"),
        ("refusal", "refusal"),
        ("content_filter", "refusal"),
        ("empty", "empty"),
        ("blank", "empty"),
        ("null", "empty"),
        ("prose", "not_json"),
        ("half", "not_json"),
        ("deep", "not_json"),
        ("surrogate", "not_in_schema"),
        ("wrong_enum", "not_in_schema"),
        ("extra_keys", "not_in_schema"),
        ("big", "too_long"),
        ("gzip_bomb", "too_long"),
        ("html", "bad_response"),
        ("empty_body", "bad_response"),
        ("half_json", "bad_response"),
        ("deep_body", "bad_response"),
        ("not_utf8", "bad_response"),
        ("error_in_200", "bad_response"),
        ("no_message", "bad_response"),
        ("message_is_text", "bad_response"),
        ("null_choices", "bad_response"),
        ("choices_are_text", "bad_response"),
        ("moderation", "request_rejected"),
    ],
)
async def test_an_answer_of_no_use_has_a_reason_and_is_shown_bounded(
    start: ModelFactory, name: str, reason: str
) -> None:
    model = await start()
    async with slots(chosen(model)) as (_, (slot,)):
        await one(slot)
        model.tell(Knob(name, text="number 1"))
        found = await bad(slot, POSTS[1])
        model.tell()
        assert (await one(slot, POSTS[1])).calls == 1, "it is the answer that is bad, not the server"
    assert found.reason == reason
    assert found.spend.calls == (2 if name == "moderation" else 1), "a 403 may be the key's: that is asked, too"
    assert len(found.raw) <= 10_000
    assert found.raw or name == "empty_body"
    found.raw.encode()


@pytest.mark.parametrize("name", ["no_usage", "null_usage", "negative_usage", "text_usage", "huge_usage", "odd_names"])
async def test_odd_bookkeeping_spoils_no_answer(start: ModelFactory, name: str) -> None:
    model = await start(Knob(name))
    async with slots(chosen(model, tokens_per_minute=100_000)) as (_, (slot,)):
        answer = await one(slot)
    assert values(answer) == expected(POSTS[0])
    assert 0 <= answer.tokens_in < 2**40
    answer.model_named.encode()


async def test_tokens_that_the_model_thought_with_are_counted(start: ModelFactory) -> None:
    model = await start(Knob("reasoning"))
    async with slots(chosen(model)) as (_, (slot,)):
        answer = await one(slot)
    assert (answer.tokens_out, answer.tokens_reasoning) == (310, 300)


# ---- servers that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knob", "busy"),
    [
        (Knob("reset"), False),
        (Knob("close"), False),
        (Knob("reset_body"), False),
        (Knob("truncated"), False),
        (Knob("not_http"), False),
        (Knob("hang"), False),
        (Knob("drip", seconds=0.001), False),
        (Knob("status", status=500), False),
        (Knob("status", status=502), False),
        (Knob("status", status=429), True),
        (Knob("status", status=503), True),
        (Knob("status", status=425), True),
        (Knob("status", status=402), True),
    ],
)
async def test_a_server_that_cannot_just_now_is_transient_and_rests(
    start: ModelFactory, knob: Knob, busy: bool
) -> None:
    model = await start(knob)
    async with slots(chosen(model, request_seconds=0.5, pause_seconds=5, pause_max_seconds=5)) as (_, (slot,)):
        with pytest.raises(Transient) as caught:
            await one(slot)
        assert caught.value.busy is busy
        assert caught.value.spend.calls == 1
        assert 4 < slot.delay() <= 5


async def test_one_429_lets_all_callers_rest_once(start: ModelFactory) -> None:
    model = await start()
    async with slots(chosen(model, pause_seconds=20, pause_max_seconds=600), n=10) as (_, many):
        await one(many[0])
        model.tell(Knob("status", status=429), delay=0.2)
        results = await asyncio.gather(*(one(slot) for slot in many), return_exceptions=True)
        assert all(isinstance(result, Transient) for result in results)
        assert len(model.requests) == 11
        assert 19 < many[0].delay() <= 20, "ten in flight are one failure"
        with pytest.raises(Transient) as caught:
            await one(many[0])
    assert caught.value.spend.calls == 0, "it was not sent"
    assert caught.value.retry_after == pytest.approx(20, abs=1)


@pytest.mark.parametrize("as_date", [False, True])
async def test_retry_after_is_kept_to(start: ModelFactory, as_date: bool) -> None:
    model = await start(Knob("status", status=429, retry_after=300, as_date=as_date))
    async with slots(chosen(model)) as (_, (slot,)):
        with pytest.raises(Transient) as caught:
            await one(slot)
        assert caught.value.retry_after == pytest.approx(300, abs=2)
        assert slot.delay() == pytest.approx(300, abs=2)


async def test_the_rest_grows_while_nothing_succeeds_and_is_over_after_a_success(start: ModelFactory) -> None:
    model = await start(Knob("status", status=500))
    async with slots(chosen(model, pause_seconds=0.02, pause_max_seconds=3)) as (_, (slot,)):
        for _ in range(8):  # each waits for the rest before it
            with pytest.raises(Transient):
                await one(slot)
        assert 2 < slot.delay() <= 0.02 * 2**7
        model.tell()
        await asyncio.sleep(slot.delay())
        await one(slot)
        assert slot.delay() == 0


async def test_a_server_that_failed_is_tried_by_one_caller_at_a_time(start: ModelFactory) -> None:
    model = await start()
    async with slots(chosen(model), n=8) as (_, many):
        await one(many[0])
        model.tell(Knob("status", status=500, times=1))
        with pytest.raises(Transient):
            await one(many[0])
        model.tell(delay=0.1)
        model.server.most_in_flight = 0
        tries = [asyncio.ensure_future(one(slot)) for slot in many]
        await asyncio.wait(tries, return_when=asyncio.FIRST_COMPLETED)
        assert model.server.most_in_flight == 1
        await asyncio.gather(*tries)


async def test_the_least_loaded_server_is_asked(start: ModelFactory) -> None:
    slow, quick = await start(delay=0.3), await start()
    async with slots(chosen(slow, quick), n=6) as (_, many):
        await asyncio.gather(one(many[0]), one(many[1]))  # what they can is known now

        async def work(slot: Slot) -> None:
            for post in POSTS:
                await one(slot, post)

        await asyncio.gather(*map(work, many))
    assert len(slow.requests) + len(quick.requests) == 62
    assert len(quick.requests) > 2 * len(slow.requests) > 0
    assert slow.server.most_in_flight <= 4


async def test_when_one_fails_another_answers(start: ModelFactory) -> None:
    dead, well = await start(Knob("reset")), await start()
    async with slots(chosen(dead, well, pause_seconds=60, pause_max_seconds=60), n=4) as (_, many):
        asked = (one(slot, post) for slot, post in zip(many * 2, POSTS[:4], strict=False))
        results = await asyncio.gather(*asked, return_exceptions=True)
        answers = [result for result in results if isinstance(result, Answer)]
        assert [answer.endpoint for answer in answers] == [well.url.removesuffix("/v1")] * 4
        assert sum(answer.calls for answer in answers) == 5, "the vain call is counted where it was made"
        assert len(dead.requests) == 1, "it is left alone then"
        assert many[0].delay() == 0


async def test_a_key_that_one_server_refuses_does_not_stop_the_others(start: ModelFactory) -> None:
    strict, well = await start(key="another"), await start(key=KEY)
    settings = chosen(strict, well, api_key=KEY)
    async with slots(settings, n=2) as (endpoints, (slot, other)):
        with capture_logs() as logs:
            await slot.probe()
            answers = [await one(slot, post) for post in POSTS[:4]] + [await one(other)]
        assert {answer.endpoint for answer in answers} == {well.url.removesuffix("/v1")}
        assert [server.name for server in endpoints.asked()] == [well.url.removesuffix("/v1")]
        (left_out,) = [line for line in logs if line["event"] == "label_left_out"]
        assert "refuses the key (HTTP 401)" in left_out["why"]
        assert KEY not in str(logs)
        well.tell(key="changed")
        with pytest.raises(Refused, match="refuses the key"):
            await one(slot)
        with pytest.raises(Refused, match="refuses the key"):
            await one(other)
        assert slot.delay() == 0


async def test_a_model_that_the_server_does_not_know_is_refused(start: ModelFactory) -> None:
    model = await start(model="other")
    async with slots(chosen(model)) as (_, (slot,)):
        with pytest.raises(Refused, match=r"does not know the model 'mock'.*\(HTTP 404\)"):
            await one(slot)


async def test_a_probe_asks_each_server_once_for_all_slots(start: ModelFactory) -> None:
    model = await start(key=KEY)
    gets, reply = [], model.server.reply

    def noted(request: Request) -> tuple[Reply, float]:
        gets.append(request.method)
        return reply(request)

    model.server.reply = noted  # type: ignore[method-assign]
    async with slots(chosen(model, api_key=KEY), n=10) as (_, many):
        await asyncio.gather(*(slot.probe() for slot in many))
        assert gets == ["GET"]
        assert await many[0].models() == {"mock"}


async def test_a_server_that_is_not_there(start: ModelFactory) -> None:
    model = await start()
    settings = chosen(model, model_url="http://127.0.0.1:1/v1", pause_seconds=30, pause_max_seconds=30)
    async with slots(settings, n=10) as (_, many):
        results = await asyncio.gather(*(slot.probe() for slot in many), return_exceptions=True)
        assert all(isinstance(result, Transient) for result in results)
        assert many[0].delay() > 20


async def test_no_secret_is_in_any_error_log_or_repr(start: ModelFactory) -> None:
    echo = {"error": {"message": f"Incorrect API key provided: {KEY}"}}
    settings = {"model": "mock", "api_key": KEY, **QUICK}
    seen: list[str] = []
    with capture_logs() as logs:
        for status in (200, 400, 401, 403, 404, 429, 500):
            async with (
                _canned(echo, status=status) as url,
                slots(Label.model_validate({"model_url": url, **settings})) as (endpoints, (slot,)),
            ):
                try:
                    for found in await slot.ask("civic", POSTS[:1]):
                        seen += [repr(found), str(getattr(found, "raw", ""))]
                except CivicskyError as error:
                    seen += [repr(error), repr(error.__cause__)]
                seen += [repr(slot), repr(endpoints), repr(vars(slot)), repr(endpoints.servers)]
    assert any("***" in text for text in seen), "the server's echo was seen"
    assert all(KEY not in text for text in seen)
    assert KEY not in str(logs)


@pytest.mark.parametrize("key", ["line\nbreak", " sk-1", "ключ"])
async def test_a_key_that_no_header_can_hold_is_told_at_once(key: str) -> None:
    with pytest.raises(Usage, match=r"label\.api_key") as caught:
        open_endpoints(Label.model_validate({"model_url": "http://x/v1", "model": "m", "api_key": key}))
    assert key not in str(caught.value)


# ---- limits ----------------------------------------------------------------------------------------------------------


async def _label_all(many: Sequence[Slot], posts: Sequence[Asked]) -> list[Answer]:
    left, answers = list(posts), []

    async def work(slot: Slot) -> None:
        while left:
            if wait := slot.delay():
                await asyncio.sleep(min(wait, 0.2))
                continue
            post = left.pop()
            try:
                answers.append(await one(slot, post))
            except Transient:
                left.append(post)

    await asyncio.gather(*map(work, many))
    return answers


async def test_a_set_limit_is_kept_to_from_the_first_second(start: ModelFactory) -> None:
    """At 6,000 a minute 300 requests take three seconds, of which one may be caught up on."""
    model = await start(limits=((6_000, 60, "requests"),), delay=0.02)
    async with slots(chosen(model, requests_per_minute=6_000), n=16) as (_, many):
        assert len(await _label_all(many, [Asked(f"Post {n}") for n in range(300)])) == 300
    times = [request["time"] for request in model.requests]
    assert len(times) == 300
    assert times[-1] - times[0] >= 2


@pytest.mark.parametrize("style", ["openai", "groq"])
async def test_limits_are_learned_from_headers(start: ModelFactory, style: str) -> None:
    """60 tokens' worth of posts a minute: what is left is known after the first answer, and never exceeded."""
    unit = "requests" if style == "openai" else "tokens"
    amount = 12 if unit == "requests" else 12 * 110
    model = await start(limits=((amount, 60, unit),), headers=style, delay=0.01)
    async with slots(chosen(model, max_tokens=10), n=8) as (_, many):
        left = [Asked(f"Post {n}") for n in range(40)]

        async def work(slot: Slot) -> None:
            while left and slot.delay() == 0:
                await one(slot, left.pop())

        await asyncio.gather(*map(work, many), return_exceptions=True)
        waits = many[0].delay()
    assert not any(request["excess"] for request in model.requests), "no request came that was not allowed"
    assert 6 <= len(model.requests) <= 12
    assert 30 < waits <= 60


async def test_a_days_limit_begins_with_what_the_ledger_knows(start: ModelFactory) -> None:
    model = await start()
    spend = Spend("mock", calls=8, tokens_in=100, tokens_out=10)
    async with slots(chosen(model, requests_per_day=10), spend=spend) as (_, (slot,)):
        await one(slot)
        await one(slot)
        assert slot.delay() > 0
        with pytest.raises(Transient) as caught:
            await one(slot)
    assert len(model.requests) == 2
    assert (caught.value.busy, caught.value.spend.calls) == (True, 0)


async def test_a_call_that_waits_for_its_pace_can_be_cancelled_and_blocks_nobody(start: ModelFactory) -> None:
    model = await start()
    async with slots(chosen(model, requests_per_minute=60), n=3) as (_, many):
        await one(many[0])
        waiting = [asyncio.ensure_future(one(slot)) for slot in many[:2]]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.wait(waiting)
        assert waiting[0].cancelled()
        assert waiting[1].result().calls == 1
    assert len(model.requests) == 2


# ---- 403 and 404: of the post, of the key, of the model's name -------------------------------------------------------


async def test_a_first_post_that_is_forbidden_is_no_refused_key(start: ModelFactory) -> None:
    """Moderation answers 403, too."""
    model = await start(forbid="number 0")
    async with slots(chosen(model)) as (endpoints, (slot,)):
        assert (await bad(slot)).reason == "request_rejected"
        assert endpoints.asked(), "nobody refused us"
        assert values(await one(slot, POSTS[1])) == expected(POSTS[1])


async def test_a_key_that_is_forbidden_from_the_first_call_is_refused(start: ModelFactory) -> None:
    model = await start(Knob("status", status=403))
    async with slots(chosen(model)) as (_, (slot,)):
        with pytest.raises(Refused, match=r"refuses the key \(HTTP 403\)"):
            await one(slot)


@pytest.mark.parametrize(("told", "says"), [({"forbid": ""}, "refuses the key"), ({"model": "n"}, "know the model")])
async def test_a_key_or_a_model_that_is_withdrawn_costs_no_post(
    start: ModelFactory, told: dict[str, str], says: str
) -> None:
    """A key's own limit (403), a model that is no longer served (404): else each post would fail for good."""
    model = await start()
    async with slots(chosen(model)) as (_, (slot,)):
        await one(slot)
        model.tell(*([Knob("status", status=403)] if "forbid" in told else []), **told)
        with pytest.raises(Refused, match=says):
            await slot.ask("civic", [POSTS[1]])
