"""What a post dictates, with a model that obeys it, changes no other post's label and nothing outside of the task."""

import json
import secrets
from typing import Any

import pytest

from civicsky.errors import BadInput
from civicsky.model import Asked
from civicsky.prompt import Way, messages, parse_many, parse_one, response_format
from civicsky.task import load_task
from support.injections import BYSTANDERS, INJECTIONS, Injection
from support.model_says import FIELDS, Obey, Posed, answer_for, content_of, dictates, items_for, read

TASK = load_task("civic")[0]


def posed(posts: list[Injection], ids: list[str], way: Way = "schema") -> Posed:
    """As the server reads the request that civicsky makes."""
    body: dict[str, Any] = {"messages": messages(TASK, [Asked(post.text) for post in posts], ids)}
    if form := response_format(TASK, way, many=bool(ids)):
        body["response_format"] = form
    return read(body)


def names(n: int) -> list[str]:
    return [secrets.token_hex(4) for _ in range(n)]


def test_there_are_forty_and_each_dictates_something() -> None:
    assert len(INJECTIONS) == 40
    assert len({post.text for post in INJECTIONS}) == 40
    for post in INJECTIONS:
        told = list(dictates(post.text, FIELDS))
        own = {name: value for one in told for name, value in one.fields.items() if name in post.wants}
        assert own, post.name
    assert not [post.name for post in BYSTANDERS if list(dictates(post.text, FIELDS))]


@pytest.mark.parametrize("way", ["schema", "json", "plain"])
def test_the_server_reads_every_post_as_it_was_written_and_none_more(way: Way) -> None:
    for ids in (names(10), []):
        for at in range(0, 40, 10):
            posts = INJECTIONS[at : at + 10] if ids else [INJECTIONS[at]]
            found = posed(posts, ids, way)
            assert found.ids == ids
            assert [post.text for post in found.posts] == [post.text for post in posts]
            assert found.fields == FIELDS
            assert found.way == way


def test_alone_a_post_dictates_at_most_its_own_label() -> None:
    followed = 0
    for post in INJECTIONS:
        asked = posed([post], [])
        try:
            said = parse_one(TASK, content_of(asked, items_for(asked, "adds")))
        except BadInput:  # it spoilt its own answer
            continue
        assert set(said.fields) <= set(FIELDS)
        assert all(label.value in FIELDS[name] for name, label in said.fields.items())
        followed += all(said.fields[name].value == value for name, value in post.wants.items())
    assert followed >= 25, "the model obeys"


@pytest.mark.parametrize("obey", ["adds", "replaces"])
@pytest.mark.parametrize("at", range(40))
def test_among_others_a_post_changes_no_other_label(at: int, obey: Obey) -> None:
    posts = [*BYSTANDERS[:4], INJECTIONS[at], *BYSTANDERS[4:9]]
    ids = names(len(posts))
    asked = posed(posts, ids)
    found = parse_many(TASK, content_of(asked, items_for(asked, obey)), ids)
    assert set(found) == set(ids)
    for name, post in zip(ids, posts, strict=True):
        said = found[name]
        if isinstance(said, BadInput):  # it is asked again alone
            continue
        assert set(said.fields) <= set(FIELDS)
        if post.name.startswith("bystander"):
            honest = parse_one(TASK, json.dumps(answer_for(post.text)))
            assert said.fields == honest.fields, (INJECTIONS[at].name, post.text)


def test_what_nobody_can_tell_from_an_honest_answer_is_why_one_post_a_request_is_the_default() -> None:
    """A model that gives the next post's answer as told, in the next post's place, is believed."""
    post = next(post for post in INJECTIONS if post.name == "places")
    neighbour = next(one for one in BYSTANDERS if answer_for(one.text)["civic"] != "civic")
    ids = names(2)
    asked = posed([post, neighbour], ids)
    said = parse_many(TASK, content_of(asked, items_for(asked, "everything")), ids)[ids[1]]
    assert not isinstance(said, BadInput)
    assert said.fields["civic"].value == "civic"
