"""Which workers are there, by what they last said."""

from civicsky.workers.messages import Beat
from civicsky.workers.roster import MAX_WORKERS, NEWS, SILENT_SECONDS, Roster


class Told:
    """A roster, and what it told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []
        self.roster = Roster(
            lambda beat: self.events.append(("joined", beat.worker)),
            lambda beat, how: self.events.append((how, beat.worker)),
        )

    def hear(self, worker: str, now: float, why: str = "", *, leaving: bool = False, key: str = "k") -> None:
        self.roster.heard(Beat(worker, "1", "s", 4, 0, 0, why, leaving, f"model-{key}\x1b[2J", key), now)

    def names(self) -> list[str]:
        return [beat.worker for beat in self.roster.there()]


def test_a_worker_is_there_from_its_first_word_until_it_is_silent_for_long() -> None:
    told = Told()
    told.hear("a", 0)
    told.hear("a", SILENT_SECONDS)
    told.roster.turn(2 * SILENT_SECONDS)
    assert told.names() == ["a"]
    told.roster.turn(2 * SILENT_SECONDS + 0.1)
    assert told.names() == []
    assert told.events == [("joined", "a"), ("silent", "a")]


def test_a_worker_that_says_that_it_leaves_is_gone_at_once() -> None:
    told = Told()
    told.hear("a", 0)
    told.hear("a", 1, leaving=True)
    told.hear("b", 1, leaving=True)
    assert told.names() == []
    assert told.events == [("joined", "a"), ("leaving", "a")]


def test_a_resting_worker_is_there_and_does_not_work() -> None:
    told = Told()
    told.hear("a", 0)
    told.hear("b", 0, why="its model is away")
    assert told.names() == ["a", "b"]
    assert [beat.worker for beat in told.roster.working("k")] == ["a"]
    assert told.roster.working("k", besides="a") == []


def test_the_list_has_a_bound() -> None:
    told = Told()
    for n in range(MAX_WORKERS + 10):
        told.hear(str(n), 0)
    assert len(told.names()) == MAX_WORKERS


def test_who_says_no_more_than_a_name_floods_no_log() -> None:
    told = Told()
    for n in range(100_000):
        told.hear(f"w{n}", n / 10_000)
        told.hear(f"w{n}", n / 10_000, leaving=True)
    assert len(told.events) < NEWS + 10
    told.hear("one more", 10_000)
    assert told.events[-1] == ("joined", "one more"), "later it is told again"


def test_that_somebody_speaks_in_an_unknown_version_is_news_once() -> None:
    told = Told()
    assert told.roster.heard_foreign(1)
    assert not told.roster.heard_foreign(2)
    assert told.roster.heard_foreign(100), "after a silence it is again"


def test_why_nobody_takes_a_question_is_told_with_what_to_do() -> None:
    told = Told()
    assert told.roster.shortage("k", "m") == "no label worker is there"
    told.hear("a", 3, key="other")
    said = told.roster.shortage("k", "m")
    assert "model-other?[2J, here m" in said
    assert "same --model" in said
    told.hear("b", 3, why="its model is away")
    assert told.roster.shortage("k", "m") == "of 1 label workers none takes questions: its model is away"
    told.hear("b", 4)
    assert told.roster.shortage("k", "m") == ""
    assert [beat.worker for beat in told.roster.working("k")] == ["b"]
    told.hear("b", 100, leaving=True)
    told.hear("a", 100, why="the key is refused", leaving=True)
    assert told.roster.shortage("k", "m") == "no label worker is there; the last one left: the key is refused"
