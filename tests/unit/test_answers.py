"""The file of answers on a real disk, and asking against slots that do as told."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from civicsky.errors import BadInput, Failed, Refused, Transient, Usage
from civicsky.model import Answer, Asked, FieldLabel, Question, Spend
from civicsky.research.answers import LONGEST_WAIT, Asking, Kept
from civicsky.settings import Label

SETTINGS = Label(model="m", attempts=2, transport_attempts=3, overload_attempts=4)
QUESTION = Question("h", "m", "{}")
Does = Callable[[Sequence[Asked]], "list[Answer | BadInput]"]


def answer(post: Asked, **more: Any) -> Answer:
    return Answer(
        {"civic": FieldLabel("civic", 0.5)},
        "json",
        "h",
        "m",
        "m-1",
        None,
        "{}",
        "e",
        post.input_hash,
        10,
        2,
        5,
        1,
        **more,
    )


def bad(reason: str) -> BadInput:
    error = BadInput(reason)
    error.spend = Spend("m", 1, 10, 2, 0, 0.5)
    return error


def transient(*, busy: bool = False, calls: int = 1) -> Transient:
    error = Transient("model at e cannot be reached", busy=busy)
    error.spend = Spend("m", calls, 0, 0)
    return error


class Slot:
    """Answers as `does` says; counts what it was asked."""

    def __init__(self, does: Does, wait: float = 0) -> None:
        self.does, self.wait = does, wait
        self.asked: list[list[str]] = []

    async def probe(self) -> None:
        raise transient()

    def delay(self) -> float:
        return self.wait

    def abilities(self) -> Mapping[str, str]:
        return {"e": "json"}

    def question(self, task_name: str) -> Question:
        assert task_name == "civic"
        return QUESTION

    async def ask(self, task_name: str, posts: Sequence[Asked]) -> list[Answer | BadInput]:
        assert task_name == "civic"
        self.asked.append([post.text for post in posts])
        await asyncio.sleep(0)
        return self.does(posts)


def good(posts: Sequence[Asked]) -> list[Answer | BadInput]:
    return [answer(post) for post in posts]


async def ask(file: Path, slot: Slot, *texts: str, **settings: Any) -> tuple[Asking, int]:
    ticks = Counter[str]()
    with Kept(file) as kept:
        posts = [Asked(text) for text in texts]
        asking = Asking("civic", posts, kept, SETTINGS.model_copy(update=settings), lambda: ticks.update("t"))
        await asking.run([slot, slot])
    return asking, ticks["t"]


async def test_an_answer_is_kept_whole_and_not_asked_for_again(tmp_path: Path) -> None:
    slot = Slot(good)
    asking, ticks = await ask(tmp_path / "a", slot, "x", "y", "x")
    assert (sorted(slot.asked), ticks, asking.asked) == ([["x"], ["y"]], 2, 2)
    with Kept(tmp_path / "a") as kept:
        assert kept.answers[QUESTION.key(Asked("x"))] == answer(Asked("x"))
        assert kept.abilities == {"m auto": {"e": "json"}}
    asking, ticks = await ask(tmp_path / "a", slot, "x", "y")
    assert (len(slot.asked), ticks, asking.asked) == (2, 2, 0)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


async def test_an_answer_of_no_use_is_tried_again_to_its_bound_also_over_runs(tmp_path: Path) -> None:
    slot = Slot(lambda posts: [bad("not_json") for _ in posts])
    asking, ticks = await ask(tmp_path / "a", slot, "x")
    assert (len(slot.asked), ticks) == (2, 1)
    await ask(tmp_path / "a", slot, "x")
    assert len(slot.asked) == 2
    await ask(tmp_path / "a", slot, "x", attempts=3)
    assert len(slot.asked) == 3
    with Kept(tmp_path / "a") as kept:
        key = asking.keys[Asked("x")]
        assert kept.vain[key] == ["not_json"] * 3
        assert kept.vain_spend[key]["calls"] == 3
        assert kept.vain_spend[key]["cost"] == 1.5


async def test_posts_go_together_and_one_that_failed_goes_alone(tmp_path: Path) -> None:
    first = Slot(lambda posts: [bad("missing") if p.text == "b" and len(posts) > 1 else answer(p) for p in posts])
    asking, _ = await ask(tmp_path / "a", first, "a", "b", "c", posts_per_request=3)
    assert first.asked == [["a", "b", "c"], ["b"]]
    assert len(asking.keys) == 3


async def test_a_post_that_breaks_calls_is_given_up_while_others_succeed_and_is_asked_again_next_time(
    tmp_path: Path,
) -> None:
    def breaks(posts: Sequence[Asked]) -> list[Answer | BadInput]:
        if posts[0].text == "x":
            raise transient()
        return good(posts)

    slot = Slot(breaks)
    asking, ticks = await ask(tmp_path / "a", slot, "x", "1", "2", "3")
    assert (asking.unreached, ticks) == ({Asked("x"): "transport"}, 4)
    assert slot.asked.count(["x"]) == 3
    asking, _ = await ask(tmp_path / "a", Slot(good), "x", "1")
    assert (asking.unreached, asking.asked) == ({}, 1)


async def test_a_server_that_never_answers_ends_it(tmp_path: Path) -> None:
    def never(posts: Sequence[Asked]) -> list[Answer | BadInput]:
        raise transient(busy=True)

    with pytest.raises(Failed, match="model at e cannot be reached; what was answered is kept: run the same command"):
        await ask(tmp_path / "a", Slot(never), *"abcdefghij")


async def test_nobody_there_from_the_beginning_ends_it_soon(tmp_path: Path) -> None:
    def never(posts: Sequence[Asked]) -> list[Answer | BadInput]:
        raise transient()

    slot = Slot(never)
    with pytest.raises(Failed, match="cannot be reached"):
        await ask(tmp_path / "a", slot, *"abcdefghij", transport_attempts=5, overload_attempts=20)
    assert 6 <= len(slot.asked) <= 7, "with the call that was in flight"


async def test_a_turn_that_did_not_come_is_no_attempt(tmp_path: Path) -> None:
    turns = iter([transient(busy=True, calls=0)] * 30)

    def later(posts: Sequence[Asked]) -> list[Answer | BadInput]:
        for none in turns:
            raise none
        return good(posts)

    asking, _ = await ask(tmp_path / "a", Slot(later), "x")
    assert (asking.asked, asking.unreached) == (1, {})


async def test_a_server_that_allows_nothing_for_long_ends_it(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"allows no call for 2\.0 hours; run the same command again then"):
        await ask(tmp_path / "a", Slot(good, wait=7200), "x")
    assert LONGEST_WAIT < 7200


async def test_a_server_that_refuses_us_ends_it(tmp_path: Path) -> None:
    def refuses(posts: Sequence[Asked]) -> list[Answer | BadInput]:
        raise Refused("label: the model's server refuses the key")

    with pytest.raises(Refused, match="refuses the key"):
        await ask(tmp_path / "a", Slot(refuses), "x", "y")


async def test_a_line_that_a_kill_cut_is_dropped_and_its_post_asked_again(tmp_path: Path) -> None:
    file = tmp_path / "a"
    await ask(file, Slot(good), "x", "y")
    whole = file.read_bytes()
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        with Kept(file) as kept:
            assert len(kept.answers) == sum(b'"answer"' in line for line in whole[:cut].split(b"\n")[:-1])
    file.write_bytes(whole[:-5])
    slot = Slot(good)
    await ask(file, slot, "x", "y")
    assert len(slot.asked) == 1
    with Kept(file) as kept:
        assert len(kept.answers) == 2


def test_a_damaged_line_is_said_with_its_number(tmp_path: Path) -> None:
    file = tmp_path / "a"
    for line in ("{", "[]", "{}", json.dumps({"key": "k", "answer": {}}), "[" * 100_000):
        file.write_text(line + "\n")
        with pytest.raises(Failed, match=r"a, line 1: damaged; delete the line"), Kept(file):
            pass


def test_a_folder_in_use_and_one_that_cannot_be_written_are_said(tmp_path: Path) -> None:
    with Kept(tmp_path / "a"), pytest.raises(Usage, match="in use by another"), Kept(tmp_path / "a"):
        pass
    with pytest.raises(Usage, match="name another folder with --out"), Kept(tmp_path / "none" / "a"):
        pass
