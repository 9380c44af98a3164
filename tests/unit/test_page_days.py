"""Coverage as a calendar."""

from civicsky.coverage import Stretch
from civicsky.page.days import CELL_US, CELLS, DAY_US, calendar

DAY = 20_000 * DAY_US


def test_each_quarter_of_an_hour_says_what_it_was() -> None:
    stretches = [
        Stretch(DAY + 4 * CELL_US, DAY + 8 * CELL_US, "held"),
        Stretch(DAY + 8 * CELL_US, DAY + 9 * CELL_US + 1_000_000, "not_replayed"),
        Stretch(DAY + 9 * CELL_US + 1_000_000, DAY + 12 * CELL_US, "held"),
        Stretch(DAY + 12 * CELL_US, DAY + 13 * CELL_US, "window"),
        Stretch(DAY + 13 * CELL_US, DAY + 14 * CELL_US, "unverified"),
        Stretch(DAY + 14 * CELL_US, DAY + 15 * CELL_US, "not_collected"),
        Stretch(DAY + 15 * CELL_US, DAY + 16 * CELL_US, "held"),
    ]
    (day,) = calendar(stretches, DAY + DAY_US - 1, 7)
    assert day["day"] == "2024-10-04"
    assert day["cells"] == "." * 4 + "hhhh" + "gg" + "hh" + "w" + "u" + "n" + "h" + "." * 80
    assert len(day["cells"]) == CELLS
    assert day["held"] == (8 * 900 - 1) / (12 * 900)
    assert day["seconds"] == {"not_replayed": 901.0, "window": 900.0, "unverified": 900.0, "not_collected": 900.0}


def test_a_loss_of_less_than_a_second_does_not_colour_a_cell_but_counts() -> None:
    gap = Stretch(DAY + 100, DAY + 500_100, "not_replayed")
    stretches = [Stretch(DAY, gap.begin, "held"), gap, Stretch(gap.end, DAY + CELL_US, "held")]
    (day,) = calendar(stretches, DAY + CELL_US, 7)
    assert day["cells"][0] == "h"
    assert day["held"] < 1
    assert day["seconds"] == {"not_replayed": 0.5}


def test_the_newest_day_comes_first_and_none_before_the_first_event() -> None:
    stretches = [Stretch(DAY - 3 * DAY_US + 5, DAY + 7, "held")]
    found = calendar(stretches, DAY + 9, 28)
    assert [day["day"] for day in found] == ["2024-10-04", "2024-10-03", "2024-10-02", "2024-10-01"]
    assert len(calendar(stretches, DAY + 9, 2)) == 2
    assert calendar(stretches, DAY + 2 * DAY_US, 28)[0]["held"] is None
    assert calendar([], DAY, 28) == []
