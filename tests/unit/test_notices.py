"""What is told, when, and in which words: without a clock, a file or a network."""

import json
from collections import Counter
from typing import Any, get_args

import pytest
from hypothesis import given, strategies as st

from civicsky.health import MEANINGS
from civicsky.notify.notices import ABOUT, Book, Kind, Notice, Seen, Who, message
from civicsky.settings import Notify

SECOND = 1_000_000
HOUR = 3600 * SECOND
AT = 1_800_000_000 * SECOND
WHO = Who("lab", "node7", "/data/civicsky", "collect", "0.2.0")


def settings(**values: Any) -> Notify:
    return Notify(**{"well_seconds": 120, "repeat_hours": 24, "per_hour": 12, **values})


def down(name: str = "relay_down", *, wanting: bool = True, why: str = "refused", since: int = AT) -> Seen:
    return Seen(name, why, since, wanting)


def told(notices: list[Notice]) -> list[tuple[str, str]]:
    return [(one.kind, one.name) for one in notices]


def test_a_problem_is_told_once_while_it_lasts_and_once_when_it_is_over_with_how_long_it_lasted() -> None:
    book, own = Book(), settings()
    assert told(book.see([down()], own, AT)) == [("problem", "relay_down")]
    for second in range(1, 600):
        assert book.see([down()], own, AT + second * SECOND) == []
    gone = AT + 600 * SECOND
    for second in range(120):
        assert book.see([], own, gone + second * SECOND) == []
    (over,) = book.see([], own, gone + 120 * SECOND)
    assert (over.kind, over.name, over.why) == ("recovered", "relay_down", "refused")
    assert message(over, WHO, "1")["lasted_seconds"] == 600
    assert book.see([], own, gone + 121 * SECOND) == []


def test_where_to_look_is_a_command_that_finds_the_same_settings() -> None:
    notice = Notice("problem", "relay_down", "", AT, AT)
    config = "/home/me/my settings.toml"
    told_of = message(notice, WHO._replace(config=config), "1")
    assert told_of["look"] == f"civicsky doctor --config '{config}' --data-dir /data/civicsky"
    assert told_of["config"] == config
    assert message(notice, WHO, "1")["look"] == "civicsky doctor --data-dir /data/civicsky"


def test_what_does_not_yet_want_a_human_is_not_told_and_its_end_is_not_either() -> None:
    book, own = Book(), settings()
    assert book.see([down(wanting=False)], own, AT) == []
    assert book.see([], own, AT + HOUR) == []


def test_what_comes_back_before_it_was_gone_for_long_is_the_same_problem_also_below_its_bound() -> None:
    book, own = Book(), settings()
    book.see([down()], own, AT)
    for turn in range(50):
        assert book.see([], own, AT + (100 * turn + 1) * SECOND) == []
        assert book.see([down(wanting=False)], own, AT + (100 * turn + 99) * SECOND) == []
    assert told(book.see([], own, AT + 6000 * SECOND)) == []
    assert told(book.see([], own, AT + 6120 * SECOND)) == [("recovered", "relay_down")]


@pytest.mark.parametrize(("hours", "reminders"), [(24, 3), (1, 84), (0, 0)])
def test_a_problem_that_lasts_is_told_again_after_the_hours_that_are_set(hours: float, reminders: int) -> None:
    book, own, counted = Book(), settings(repeat_hours=hours), Counter[str]()
    for minute in range(84 * 60 + 1):
        counted.update(one.kind for one in book.see([down()], own, AT + minute * 60 * SECOND))
    assert counted == Counter({"problem": 1, "still": reminders} if reminders else {"problem": 1})


def test_beyond_the_bound_of_an_hour_messages_are_left_out_and_counted_but_never_the_first_of_a_problem() -> None:
    book, own = Book(), settings(well_seconds=0, per_hour=4)
    kinds: list[tuple[str, str]] = []
    for turn in range(20):
        now = AT + turn * 60 * SECOND
        kinds += told(book.see([down()], own, now))
        kinds += told(book.see([], own, now + 1))
        kinds += told(book.see([], own, now + 2))
    assert len(kinds) == 4
    assert told(book.see([down("store_down")], own, AT + 21 * 60 * SECOND)) == [("problem", "store_down")]
    later = book.see([down("store_down")], own, AT + 2 * HOUR)
    assert told(later) == [("left_out", "left_out")]
    assert later[0].why == "36 messages left out (relay_down 36); problems that last now: store_down"
    assert book.see([down("store_down")], own, AT + 4 * HOUR) == []


@given(
    st.lists(
        st.tuples(st.integers(1, 900), st.sets(st.sampled_from(["relay_down", "behind", "store_down"]))),
        max_size=200,
    )
)
def test_whatever_comes_and_goes_no_hour_has_more_messages_than_the_bound_and_the_first_of_each(
    steps: list[tuple[int, set[str]]],
) -> None:
    book, own, now = Book(), settings(well_seconds=0, per_hour=3, repeat_hours=0.1), AT
    times: list[int] = []
    believed: set[str] = set()
    for seconds, names in [*steps, (7200, set()), (7200, set())]:
        now += seconds * SECOND
        for one in book.see([down(name) for name in names], own, now):
            times.append(now)
            if one.kind == "left_out":
                believed = set(one.why.rpartition(": ")[2].split(", ")) - {"none"}
            else:
                (believed.discard if one.kind == "recovered" else believed.add)(one.name)
        assert sum(now - HOUR < at for at in times) <= 3 + 3 + 1
    assert believed == set() == set(book.problems), "in the end nobody takes for lasting what is over"


def test_a_book_that_comes_back_from_disk_says_nothing_again_and_waits_anew_before_it_says_that_all_is_well() -> None:
    book, own = Book(), settings()
    book.see([down()], own, AT)
    book.see([], own, AT + SECOND)
    for life in range(100):
        book = Book.of_values(json.loads(json.dumps(book.as_values())))
        now = AT + life * 200 * SECOND
        assert book.see([], own, now) == [], "a restart is no proof that it is over"
        assert book.see([], own, now + 100 * SECOND) == []
    over = now + 120 * SECOND
    assert told(book.see([], own, over)) == [("recovered", "relay_down")]


def test_the_bound_of_an_hour_outlives_a_restart() -> None:
    book, own, n = Book(), settings(well_seconds=0, per_hour=2), 0
    for turn in range(30):
        book = Book.of_values(json.loads(json.dumps(book.as_values())))
        now = AT + turn * 60 * SECOND
        n += len(book.see([down()], own, now)) + len(book.see([], own, now + 1)) + len(book.see([], own, now + 2))
    assert n == 2
    assert sum(book.left_out.values()) == 58


def test_a_clock_that_is_put_back_neither_repeats_nor_silences_for_ever() -> None:
    book, own = Book(), settings(repeat_hours=1)
    book.see([down()], own, AT)
    back = AT - 1000 * HOUR
    assert book.see([down()], own, back) == []
    assert told(book.see([down()], own, back + HOUR)) == [("still", "relay_down")]
    book.see([], own, back + HOUR + 1)
    again = back - 1000 * HOUR
    book.see([], own, again)
    assert told(book.see([], own, again + 120 * SECOND)) == [("recovered", "relay_down")]


@pytest.mark.parametrize("values", [[], {}, {"problems": {"a": [1]}}, {**Book().as_values(), "sent": [[1]]}, None, 7])
def test_a_book_that_is_none_is_refused(values: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        Book.of_values(values)


# ---- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("name", ABOUT)
def test_every_message_says_who_what_since_when_and_where_to_look(kind: Kind, name: str) -> None:
    values = message(Notice(kind, name, "a reason", AT, AT - 90 * SECOND, AT), WHO, "7")
    assert values["text"].startswith("civicsky: ")
    over = kind == "recovered"  # what is told of it is no more so
    reason, meaning = ("it was: `a reason`", "what it meant: ") if over else ("why: `a reason`", "what it means: ")
    for part in ("[lab]", reason, meaning, ABOUT[name].means, "collect on node7, civicsky 0.2.0"):
        assert part in values["text"]
    assert f"civicsky {ABOUT[name].look[0]} --data-dir /data/civicsky" in values["text"]
    assert f"docs/operations.md#{ABOUT[name].section}" in values["text"]
    assert (values["id"], values["kind"], values["problem"], values["lasted_seconds"]) == ("7", kind, name, 90)
    assert values["since"] == "2027-01-15T07:58:30.000Z"
    assert json.loads(json.dumps(values)) == values


def test_every_condition_of_health_can_be_told() -> None:
    assert set(MEANINGS) <= set(ABOUT)


@pytest.mark.parametrize(
    "hostile",
    ["`@everyone`", "a\nCivicsky: all is well", "\x1b[2J", "\u202eevil", "\udcff\ud800", "x" * 100_000, "```@all"],
)
def test_words_of_a_far_side_stay_within_their_quotes_and_their_line(hostile: str) -> None:
    values = message(Notice("problem", "relay_down", hostile, AT, AT), WHO, "7")
    assert len(values["text"].splitlines()) == 5
    (why,) = [line for line in values["text"].splitlines() if line.startswith("why: ")]
    assert why.count("`") == 2
    assert why.endswith("`")
    assert len(values["text"]) < 1500
    assert not {"\x1b", "\u202e"} & set(values["text"])
    assert values["text"].encode().decode() == values["text"]
