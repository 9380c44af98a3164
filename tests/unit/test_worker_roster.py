"""Which workers are there, by what they last said."""

from civicsky.workers.messages import Beat
from civicsky.workers.roster import MAX_WORKERS, SILENT_SECONDS, Roster


class Told:
    """A roster, and what it told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []
        self.roster = Roster(
            lambda beat: self.events.append(("joined", beat.worker)),
            lambda beat, how: self.events.append((how, beat.worker)),
        )

    def hear(self, worker: str, now: float, why: str = "", *, leaving: bool = False) -> None:
        self.roster.heard(Beat(worker, "1", "s", 4, 0, 0, why, leaving), now)

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
    assert [beat.worker for beat in told.roster.working()] == ["a"]
    assert told.roster.working(besides="a") == []


def test_the_list_has_a_bound() -> None:
    told = Told()
    for n in range(MAX_WORKERS + 10):
        told.hear(str(n), 0)
    assert len(told.names()) == MAX_WORKERS


def test_why_nobody_took_a_question_names_what_keeps_those_that_are_there() -> None:
    told = Told()
    assert told.roster.why_nobody_took() == "no label worker is there"
    told.hear("a", 0, why="it is too old")
    assert told.roster.why_nobody_took() == "1 label worker is there, but takes nothing; a: it is too old"
    told.hear("b", 0, why="it is too old")
    assert told.roster.why_nobody_took().startswith("2 label workers are there, but take nothing; a: it")
    told.hear("c", 0)
    assert told.roster.why_nobody_took() == "those label workers that are there (1) are all at work"
