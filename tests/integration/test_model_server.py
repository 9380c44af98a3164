"""The hostile model server does what its knobs say, and counts what it says it counts."""

import asyncio
import gzip
import hashlib
import http.client
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.command import model_server, until
from support.model_knobs import ANSWER, CHOICE, CONTENT, ITEMS, NAMES, WIRE
from support.model_says import FIELDS, answer_for

TEXTS = [f"Post number {n} of the test" for n in range(10)]
IDS = [f"k{n}x" for n in range(10)]


def quoted(text: str, name: str = "") -> str:
    marks = f' id="{name}"' if name else ""
    return f"<post{marks}>{json.dumps(text)}</post>"


def question(content: str, **parameters: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Label."}, {"role": "user", "content": content}]
    return {"model": "mock", "messages": messages, "max_tokens": 200, **parameters}


def one(text: str = TEXTS[0], **parameters: Any) -> dict[str, Any]:
    return question(quoted(text), **parameters)


def many(texts: list[str] = TEXTS, **parameters: Any) -> dict[str, Any]:
    return question("\n".join(map(quoted, texts, IDS)), **parameters)


def schema(fields: dict[str, list[str]], *, is_many: bool) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "object", "properties": {name: {"enum": told} for name, told in fields.items()}}
    if is_many:
        item["properties"]["id"] = {"type": "string"}
        item = {"type": "object", "properties": {"posts": {"type": "array", "items": item}}}
    return {"type": "json_schema", "json_schema": {"name": "toxicity", "strict": True, "schema": item}}


class Model:
    """One server, and a client that is no library's."""

    def __init__(self, url: str, log: Path, requests: Path) -> None:
        self.url, self.log, self.requests = url, log, requests
        self.port = int(url.split(":")[2].partition("/")[0])

    def connect(self, timeout: float = 30) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, body: dict[str, Any]) -> tuple[http.client.HTTPResponse, bytes]:
        with closing(self.connect()) as connection:
            connection.request("POST", "/v1/chat/completions", json.dumps(body))
            response = connection.getresponse()
            return response, response.read()

    def answer(self, body: dict[str, Any]) -> Any:
        response, data = self.ask(body)
        assert response.status == 200, data
        return json.loads(data)

    def said(self, body: dict[str, Any]) -> Any:
        return self.answer(body)["choices"][0]["message"]["content"]

    def items(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.said(body))["posts"]
        return found

    def tell(self, *knobs: dict[str, Any], **told: Any) -> Any:
        with closing(self.connect()) as connection:
            connection.request("POST", "/control", json.dumps({"knobs": knobs, **told}))
            response = connection.getresponse()
            data = json.loads(response.read())
            assert response.status == 200, data
            return data

    def state(self) -> Any:
        with closing(self.connect()) as connection:
            connection.request("GET", "/state")
            return json.loads(connection.getresponse().read())

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.requests.read_text().splitlines()]


@contextmanager
def served(folder: Path, *options: str) -> Iterator[Model]:
    log, requests = folder / "log", folder / "requests"
    with model_server(log, "--requests", str(requests), *options) as url:
        yield Model(url, log, requests)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with served(tmp_path_factory.mktemp("model")) as model:
        yield model


@pytest.fixture
def model(shared: Model) -> Iterator[Model]:
    """Without knobs and limits."""
    shared.tell(obey="", headers="", limits=[], seed=0, say="", only_plain=False, retry_after=True)
    yield shared
    assert shared.state()["crashes"] == 0


# ---- good answers ----------------------------------------------------------------------------------------------------


def test_a_post_has_the_same_answer_alone_and_among_others(model: Model) -> None:
    alone = json.loads(model.said(one(TEXTS[3])))
    assert alone == answer_for(TEXTS[3]) == answer_for(quoted(TEXTS[3]))
    items = model.items(many())
    assert [item["id"] for item in items] == IDS
    assert items[3] == {"id": IDS[3], **alone}
    assert len({json.dumps(answer_for(text)) for text in TEXTS}) > 3, "posts differ in their answers"


def test_the_fields_are_those_of_the_schema_else_those_of_the_text(model: Model) -> None:
    fields = {"toxic": ["very", "barely"], "about": ["people", "things", "nobody"]}
    for body in (
        one(response_format=schema(fields, is_many=False)),
        many(response_format=schema(fields, is_many=True)),
    ):
        said = json.loads(model.said(body))
        for item in said.get("posts", [said]):
            assert set(item) - {"id"} == set(fields)
            assert all(item[name] in values for name, values in fields.items())
    body = one()
    lines = "\n".join(f'- "{name}": one of {json.dumps(values)}. As said.' for name, values in fields.items())
    body["messages"][0]["content"] = lines + '\n{..., and "reason": one short sentence that says why}'
    said = json.loads(model.said(body))
    assert set(said) == {"toxic", "about", "reason"}


def test_words_have_probabilities_that_depend_on_the_post(model: Model) -> None:
    def ask(post: str, top: int = 20) -> Any:
        messages = [
            {"role": "user", "content": "Post: a\nTopic:"}, {"role": "assistant", "content": "politics"},
            {"role": "user", "content": "Post: b\nTopic:"}, {"role": "assistant", "content": "sports"},
            {"role": "user", "content": f"Post: {post}\nTopic:"},
        ]  # fmt: skip
        body = {"model": "mock", "messages": messages, "max_tokens": 1, "logprobs": True, "top_logprobs": top}
        return model.answer(body)["choices"][0]["logprobs"]["content"][0]

    first = ask("x")
    assert first == ask("x")
    tokens = {item["token"]: item["logprob"] for item in first["top_logprobs"]}
    assert len(tokens) == 4
    assert max(tokens.values()) <= 0
    assert first["token"] == max(tokens, key=tokens.__getitem__)
    assert len({json.dumps(ask(text)["top_logprobs"]) for text in TEXTS}) == len(TEXTS)
    assert len(ask("x", 2)["top_logprobs"]) == 2


def test_tokens_of_a_json_answer_spell_it(model: Model) -> None:
    choice = model.answer(one(logprobs=True, response_format={"type": "json_object"}))["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
    assert all(token["logprob"] <= 0 for token in tokens)


# ---- logs ------------------------------------------------------------------------------------------------------------


def test_each_request_is_in_the_log_before_it_is_answered(tmp_path: Path) -> None:
    with served(tmp_path, "--knob", '{"name": "hang", "text": "number 7"}') as model:
        model.ask(many(TEXTS[:3], response_format=schema(FIELDS, is_many=True)))
        with closing(model.connect()) as connection:
            connection.request("POST", "/v1/chat/completions", json.dumps(one(TEXTS[7])))
            until(lambda: len(model.entries()) == 2, "the request to be noted")
            assert model.state()["in_flight"] == 1
        until(lambda: model.state()["in_flight"] == 0, "the server to notice that the client is gone")
    first, second = model.entries()
    content = "\n".join(map(quoted, TEXTS[:3], IDS))
    assert first["sha256"] == hashlib.sha256(content.encode()).hexdigest()
    assert (first["ids"], first["task"], first["way"], first["did"]) == (IDS[:3], "toxicity", "schema", [])
    assert first["posts"] == [hashlib.sha256(text.encode()).hexdigest() for text in TEXTS[:3]]
    assert (second["did"], second["in_flight"], second["ids"]) == (["hang"], 1, [])
    assert model.log.read_text().split() == [first["sha256"], second["sha256"]]


def test_refused_requests_are_no_questions(tmp_path: Path) -> None:
    with served(tmp_path, "--forbid", "number 5", "--only-plain", "--model", "m") as model:
        for body in (one(), one(TEXTS[5]) | {"model": "m"}, one(response_format={"type": "text"}) | {"model": "m"}):
            assert model.ask(body)[0].status in {400, 403, 404}
        assert model.ask(one() | {"model": "m"})[0].status == 200
        assert [entry["status"] for entry in model.entries()] == [404, 403, 400, 200]
        assert len(model.log.read_text().split()) == 1


# ---- knobs on the wire -----------------------------------------------------------------------------------------------


def wire(knob: str, **more: Any) -> dict[str, Any]:
    return {"name": knob, **more}


@pytest.mark.parametrize(
    ("knob", "raises"),
    [("close", http.client.RemoteDisconnected), ("reset", ConnectionResetError), ("reset_body", ConnectionResetError),
     ("truncated", http.client.IncompleteRead), ("not_http", http.client.BadStatusLine)],
)  # fmt: skip
def test_connections_that_break(model: Model, knob: str, raises: type[Exception]) -> None:
    model.tell(wire(knob))
    with pytest.raises(raises):
        model.ask(one())
    model.tell()
    assert model.ask(one())[0].status == 200


def test_an_answer_that_never_begins(model: Model) -> None:
    model.tell(wire("hang"))
    with closing(model.connect(timeout=0.3)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(one()))
        with pytest.raises(TimeoutError):
            connection.getresponse()
    until(lambda: model.state()["in_flight"] == 0, "the server to notice that the client is gone")


def test_an_answer_that_drips_and_never_ends(model: Model) -> None:
    good = model.ask(one())[1]
    model.tell(wire("drip", seconds=0.01))
    with closing(model.connect()) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(one()))
        response = connection.getresponse()
        assert response.headers["Content-Length"] == "10000000"
        assert response.read(5) == good[:5]
        assert model.state()["in_flight"] == 1
    until(lambda: model.state()["in_flight"] == 0, "the server to notice that the client is gone")


def test_a_slow_answer_is_a_good_one_that_comes_later(model: Model) -> None:
    fast = model.ask(one())[1]
    model.tell(wire("slow", seconds=0.2))
    began = time.monotonic()
    assert model.ask(one())[1] == fast
    assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_statuses(model: Model, status: int) -> None:
    model.tell(wire("status", status=status))
    response, _ = model.ask(one())
    assert (response.status, response.headers["Retry-After"]) == (status, None)
    model.tell(wire("status", status=status, retry_after=7))
    assert model.ask(one())[0].headers["Retry-After"] == "7"
    model.tell(wire("status", status=status, retry_after=100, as_date=True))
    date = parsedate_to_datetime(model.ask(one())[0].headers["Retry-After"])
    assert 90 < date.timestamp() - time.time() <= 101


def test_bodies_that_are_no_answer(model: Model) -> None:
    good = model.ask(one())[1]
    bodies = {}
    for knob in ("html", "empty_body", "half_json", "not_utf8", "deep_body", "error_in_200"):
        model.tell(wire(knob))
        response, bodies[knob] = model.ask(one())
        assert response.status == 200
    assert bodies["html"].startswith(b"<!DOCTYPE html>")
    assert bodies["empty_body"] == b""
    assert good.startswith(bodies["half_json"])
    with pytest.raises(UnicodeDecodeError):
        bodies["not_utf8"].decode()
    with pytest.raises(RecursionError):
        json.loads(bodies["deep_body"])
    assert "error" in json.loads(bodies["error_in_200"])
    model.tell(wire("gzip_bomb", size=3_000_000))
    response, data = model.ask(one())
    assert response.headers["Content-Encoding"] == "gzip"
    assert len(data) < 10_000
    assert len(gzip.decompress(data)) == 3_000_000


@pytest.mark.parametrize("what", ["json_schema", "json_object", "logprobs"])
def test_parameters_that_are_refused(model: Model, what: str) -> None:
    model.tell(wire("refuse", what=what))
    parameters: dict[str, Any] = {
        "json_schema": {"response_format": schema(FIELDS, is_many=False)},
        "json_object": {"response_format": {"type": "json_object"}},
        "logprobs": {"logprobs": True},
    }
    asked = {name: model.ask(one(**told))[0].status for name, told in parameters.items()}
    assert asked == dict.fromkeys(parameters, 200) | {what: 400}


# ---- knobs of what is said -------------------------------------------------------------------------------------------


def test_answers_for_several_posts_that_do_not_fit(model: Model) -> None:
    good = model.items(many())
    found = {}
    for knob in ITEMS:
        model.tell(wire(knob, count=2))
        found[knob] = model.items(many())
        assert found[knob] != good, knob
    by_id = {item["id"]: item for item in good}
    assert len(found["missing"]) == 8
    assert sorted(item["id"] for item in found["unordered"]) == IDS
    assert {item["id"] for item in found["unknown"]} > set(IDS)
    assert len(found["unknown_instead"]) == 10
    doubled = Counter(item["id"] for item in found["doubled"])
    assert sorted(doubled.values()) == [1] * 8 + [2] * 2
    assert [item for item in found["doubled"] if item != by_id[item["id"]]], "the second says something else"
    assert all(item == by_id[item["id"]] for item in found["doubled_alike"])
    assert [item["id"] for item in found["places_for_ids"]] == list(range(1, 11))
    for knob in ("wrong_enum", "wrong_case", "wrong_type", "null_values", "extra_keys", "missing_key", "nan"):
        assert sum(item != by_id[item["id"]] for item in found[knob]) == 2, knob


def test_messages_that_are_not_the_answer_alone(model: Model) -> None:
    good = model.said(one())
    found = {}
    for knob in CONTENT:
        model.tell(wire(knob, size=100_000))
        found[knob] = model.said(one())
        assert found[knob] != good or "civic" not in good, knob
    assert good in found["prose"]
    assert found["fenced"] == f"```json\n{good}\n```"
    assert found["think"].endswith(f"</think>\n\n{good}")
    assert (found["empty"], found["null"]) == ("", None)
    assert found["big"].strip() == good
    assert len(found["big"]) == len(good) + 100_000


def test_choices_and_answers_that_are_odd(model: Model) -> None:
    good = model.answer(one(logprobs=True))
    for knob in (*CHOICE, *ANSWER):
        model.tell(wire(knob))
        assert model.answer(one(logprobs=True)) != good, knob
    model.tell(wire("refusal"))
    choice = model.answer(one())["choices"][0]
    assert choice["message"]["content"] is None
    assert choice["message"]["refusal"]
    model.tell(wire("length"))
    assert model.answer(one())["choices"][0]["finish_reason"] == "length"
    model.tell(wire("reasoning"))
    assert model.answer(one())["usage"]["completion_tokens_details"] == {"reasoning_tokens": 300}


def test_ten_megabytes_are_sent_whole(model: Model) -> None:
    model.tell(wire("big"))
    assert len(model.ask(one())[1]) > 10_000_000


# ---- which requests --------------------------------------------------------------------------------------------------


def test_a_knob_acts_on_a_share_a_text_or_the_next_few(model: Model) -> None:
    def hit(*knobs: dict[str, Any], bodies: list[dict[str, Any]], **told: Any) -> list[bool]:
        model.tell(*knobs, **told)
        return [model.ask(body)[0].status != 200 for body in bodies]

    each = [one(text) for text in TEXTS]
    assert hit(wire("status", text="number 4"), bodies=each) == [n == 4 for n in range(10)]
    assert hit(wire("status", times=3), bodies=each) == [True] * 3 + [False] * 7
    assert hit(wire("status", many=True), bodies=[one(), many()]) == [False, True]
    assert hit(wire("status", many=False), bodies=[one(), many()]) == [True, False]
    fresh = [one(f"fresh {n}") for n in range(400)]
    drawn = hit(wire("status", share=0.25), bodies=fresh)
    assert 60 <= sum(drawn) <= 140
    again = [one(f"fresh {n}") for n in range(400)]
    assert hit(wire("status", share=0.25), bodies=again) != drawn, "the second time a question comes is drawn anew"


def test_chance_depends_on_the_seed_and_the_question_not_on_the_order(tmp_path: Path) -> None:
    def drawn(seed: str, texts: list[str]) -> dict[str, int]:
        with served(tmp_path, "--seed", seed, "--knob", '{"name": "status", "share": 0.5}') as model:
            return {text: model.ask(one(text))[0].status for text in texts}

    first = drawn("1", TEXTS)
    assert drawn("1", TEXTS[::-1]) == first
    assert drawn("2", TEXTS) != first


def test_a_knob_that_there_is_not_is_told_so(model: Model) -> None:
    with closing(model.connect()) as connection:
        connection.request("POST", "/control", '{"knobs": [{"name": "explode"}]}')
        response = connection.getresponse()
        assert response.status == 400
        assert b"no such knob: explode" in response.read()
    assert {*WIRE, *ITEMS, *CONTENT, *CHOICE, *ANSWER} < NAMES


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_more_than_the_limit_is_turned_away_and_noted(model: Model) -> None:
    model.requests.write_text("")
    model.tell(limits=[[3, 60, "requests"]])
    replies = [model.ask(one(text))[0] for text in TEXTS[:5]]
    assert [reply.status for reply in replies] == [200, 200, 200, 429, 429]
    assert 50 < int(replies[4].headers["Retry-After"]) <= 60
    assert [entry["excess"] for entry in model.entries()] == [False] * 3 + [True] * 2
    (limit,) = model.state()["limits"]
    assert (limit["most"], limit["excess"]) == (5, 2)
    model.tell(limits=[[3, 60, "requests"]], retry_after=False)
    assert [model.ask(one())[0].headers["Retry-After"] for _ in range(4)] == [None] * 4


def test_a_limit_is_of_any_stretch_of_time(model: Model) -> None:
    model.tell(limits=[[2, 0.5, "requests"]])
    assert [model.ask(one())[0].status for _ in range(3)] == [200, 200, 429]
    until(lambda: model.ask(one())[0].status == 200, "the stretch to pass")


def test_tokens_are_limited_by_what_answers_cost(model: Model) -> None:
    model.tell(limits=[[1_000, 60, "tokens"]])
    usage = model.answer(many(TEXTS[:5]))["usage"]
    assert usage["total_tokens"] == 550
    assert model.ask(many(TEXTS[:5]))[0].status == 429
    assert model.ask(many(TEXTS[:4]))[0].status == 200


def test_headers_say_what_is_left(model: Model) -> None:
    model.tell(headers="openai", limits=[[100, 60, "requests"], [100_000, 60, "tokens"]])
    headers = model.ask(one())[0].headers
    assert headers["x-ratelimit-limit-requests"] == "100"
    assert headers["x-ratelimit-remaining-requests"] == "99"
    assert headers["x-ratelimit-reset-requests"] == "1m0s"
    assert headers["x-ratelimit-remaining-tokens"] == str(100_000 - 110)
    model.tell(headers="groq", limits=[[1_000, 86_400, "requests"], [100_000, 60, "tokens"]])
    headers = model.ask(one())[0].headers
    assert headers["x-ratelimit-limit-requests"] == "1000"
    assert headers["x-ratelimit-reset-requests"] == "1440m0s"
    assert headers["x-ratelimit-limit-tokens"] == "100000"
    model.tell(headers="openai", limits=[[1, 0.5, "requests"], [5, 60, "tokens"]])
    assert model.ask(one())[0].status == 429


async def test_it_is_no_bottleneck(model: Model) -> None:
    """Sixteen clients at once, each over a connection of its own: all are answered, over connections that stay."""

    async def ask(number: int) -> int:
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            replies = [await client.post(model.url + "/chat/completions", json=one(f"{number} {n}")) for n in range(25)]
            return sum(reply.status_code == 200 for reply in replies)

    assert await asyncio.gather(*map(ask, range(16))) == [25] * 16


def test_all_knobs_together_make_an_answer_and_no_crash(model: Model) -> None:
    each = [*ITEMS, *CONTENT, *CHOICE, *ANSWER]
    for seed in range(30):
        model.tell(*(wire(knob, share=0.3, size=1000) for knob in each), seed=seed)
        for body in (one(logprobs=True), many()):
            assert model.ask(body)[0].status == 200
    assert set(model.state()["fired"]) >= set(each)
