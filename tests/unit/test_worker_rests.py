"""Which of a worker's servers rest, and for how long."""

from civicsky.endpoint import MAX_RETRY_AFTER
from civicsky.workers.rests import Rests


def rests(*names: str) -> Rests:
    made = Rests(names, 1.0, 8.0)
    for name in names:
        made.over(name)
    return made


def test_at_first_no_server_may_be_used_until_it_was_seen_to_be_there() -> None:
    made = Rests(("a", "b"), 1, 8)
    assert made.due(0) == [("a", True), ("b", True)]
    assert made.why
    made.over("b")
    assert (made.free(), made.why) == ({"b"}, "")


def test_a_rest_doubles_up_to_a_bound_until_a_call_is_answered() -> None:
    made, now, waited = rests("a"), 0.0, []
    for _ in range(5):
        assert made.failed("a", "away", now, now)
        began = now
        while not made.due(now):
            now += 0.5
        waited.append(now - began)
        made.over("a")
    assert waited == [1, 2, 4, 8, 8]
    made.answered("a")
    made.failed("a", "away", now, now)
    assert made.due(now + 0.9) == []
    assert made.due(now + 1.0) == [("a", True)]


def test_calls_that_were_under_way_together_are_one_failure() -> None:
    made = rests("a")
    assert made.failed("a", "away", 0.0, 10.0)
    assert not made.failed("a", "away", 1.0, 10.1)
    assert made.due(11.2) == [("a", True)]


def test_a_server_that_asks_for_a_rest_has_it_up_to_a_bound_and_need_not_be_looked_after() -> None:
    made = rests("a", "b")
    made.failed("a", "HTTP 429", 0, 0, after=30, gone=False)
    assert made.why == "", "another one is there"
    assert made.due(29.9) == []
    assert made.due(30) == [("a", False)]
    made.failed("b", "HTTP 429", 0, 0, after=1e9, gone=False)
    assert made.why == "HTTP 429"
    assert [name for name, _ in made.due(MAX_RETRY_AFTER)] == ["a", "b"]
