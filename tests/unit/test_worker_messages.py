"""What home node and workers say to each other, and what becomes of what is none of it."""

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from civicsky.workers.messages import (
    MAX_CHARS,
    PATHS,
    VERSION,
    Beat,
    Claim,
    Foreign,
    Garbled,
    Job,
    Result,
    consumer_name,
    decode_beat,
    decode_claim,
    decode_job,
    decode_result,
    encode,
    message_id,
    model_key,
    subject_of_jobs,
    told_headers,
    unlike,
)

JOB = Job("s-1", 2, "s", "POST", "/chat/completions", 60.0, 30.0, 5, b'{"a": "\n"}')
RESULT = Result("s-1", 2, "w", "reply", "http://a", 200, {"retry-after": "3"}, "", b"\xff\n{}", "proof")


def changed(message: bytes, **head: Any) -> bytes:
    line, _, body = message.partition(b"\n")
    return json.dumps({**json.loads(line), **head}).encode() + b"\n" + body


def test_what_is_said_is_what_is_heard() -> None:
    assert decode_job(encode(JOB)) == JOB
    assert decode_claim(encode(Claim("s-1", 2, 3, "w"))) == Claim("s-1", 2, 3, "w")
    assert decode_claim(encode(Claim("s-1", 2, 3, "w", "proof"))).proof == "proof"
    assert decode_result(encode(RESULT)) == RESULT
    beat = Beat("w", "1", "http://a", 4, 1, 7, "why", leaving=True, model="m", key="k")
    assert decode_beat(encode(beat)) == beat


@pytest.mark.parametrize("decode", [decode_job, decode_claim, decode_result, decode_beat])
@given(data=st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["v", "is", "id", "x"]), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_what_is_none_of_ours_is_garbled_or_foreign_and_never_a_crash(decode: Any, data: bytes) -> None:
    with pytest.raises((Garbled, Foreign)):
        decode(data)


@pytest.mark.parametrize("value", [None, "", 1.5, -1, True, [], float("nan"), 10**30])
@pytest.mark.parametrize("field", ["id", "attempt", "home", "method", "path", "seconds", "deliveries"])
def test_a_damaged_field_of_a_job_is_garbled(field: str, value: Any) -> None:
    if (field, value) in [("id", ""), ("seconds", 1.5)]:
        return  # well formed
    with pytest.raises(Garbled):
        decode_job(changed(encode(JOB), **{field: value}))


@pytest.mark.parametrize("message", [encode(JOB), encode(RESULT)])
def test_a_newer_version_is_foreign_whatever_else_it_says(message: bytes) -> None:
    decode = decode_job if b'"job"' in message else decode_result
    with pytest.raises(Foreign):
        decode(changed(message, v=2, **{"is": "something new"}))


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/models"), ("GET", "/chat/completions"), ("GET", "http://elsewhere/models"), ("GET", "/../admin")],
)
def test_a_job_can_name_no_address_and_nothing_that_is_not_listed(method: str, path: str) -> None:
    assert (method, path) not in PATHS
    with pytest.raises(Garbled):
        decode_job(encode(JOB._replace(method=method, path=path)))


@pytest.mark.parametrize("home", ["a.b", "*", ">", "a b", "a\r\nPUB x 0\r\n", "x" * 41, "\u00e4"])
def test_a_job_can_name_no_subject(home: str) -> None:
    with pytest.raises(Garbled):
        decode_job(changed(encode(JOB), home=home))


def test_a_job_can_not_have_its_worker_do_nothing_but_speak_up() -> None:
    with pytest.raises(Garbled):
        decode_job(changed(encode(JOB), ack_seconds=1e-9))


def test_of_headers_only_those_that_matter_come_home_and_bounded() -> None:
    sent = {"Retry-After": "1" * 1000, "X-RateLimit-Remaining-Tokens": "7", "Set-Cookie": "secret", "Server": "vllm"}
    assert told_headers(sent) == {"retry-after": "1" * MAX_CHARS, "x-ratelimit-remaining-tokens": "7", "server": "vllm"}
    assert len(told_headers({f"x-ratelimit-{n}": "1" for n in range(1000)})) == 40
    forged = changed(encode(RESULT), headers={"set-cookie": "a", "retry-after": 3})
    assert decode_result(forged).headers == {"retry-after": "3"}


def test_another_model_other_weights_and_another_version_are_other_jobs() -> None:
    keys = {model_key("a", None), model_key("b", None), model_key("a", "sha256:1"), model_key("a", "sha256:2")}
    assert len(keys) == 4
    subjects = {subject_of_jobs("n", key, "s", version) for key in keys for version in (1, 2)}
    assert len(subjects) == len({consumer_name(key, version) for key in keys for version in (1, 2)}) == 8


def test_a_beat_is_understood_whatever_its_version_and_whatever_more_it_says() -> None:
    beat = Beat("w", "9", "http://a", 4, 1, 7, "", False, "m", model_key("m", None))
    told = decode_beat(changed(encode(beat), v=2, more=[1]))
    assert told == beat._replace(speaks=2)
    with pytest.raises(Foreign):
        decode_claim(changed(encode(Claim("s-1", 2, 3, "w")), v=2))


def test_a_beat_of_a_time_when_no_model_was_said_fits_any() -> None:
    line = json.loads(encode(Beat("w", "0", "http://a", 4, 1, 7)).decode())
    del line["model"], line["key"]
    assert unlike(decode_beat(json.dumps(line).encode()), "m", model_key("m", None), "1") == ""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, ""),
        ({"speaks": VERSION + 1}, "upgrade the home node"),
        ({"speaks": VERSION - 1}, "upgrade the worker"),
        ({"model": "x", "key": model_key("x", None)}, "the model 'x', the home node asks for 'm'"),
        ({"key": model_key("m", "sha256:2")}, "other weights of 'm'"),
    ],
)
def test_what_keeps_a_worker_from_jobs_is_said_in_words(given: dict[str, Any], said: str) -> None:
    beat = Beat("w", "9", "http://a", 4, 1, 7, "", False, "m", model_key("m", None))
    why = unlike(beat._replace(**given), "m", model_key("m", None), "1")
    assert said in why
    assert bool(why) == bool(said)


def test_each_attempt_is_a_message_of_its_own() -> None:
    assert message_id(JOB) == message_id(JOB._replace(body=b"")) == "s-1.2"
    assert message_id(JOB._replace(attempt=3)) != message_id(JOB)
