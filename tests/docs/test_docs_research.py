"""docs/research.md says of retention, signals and what is sent what the code does."""

import re

from civicsky import filter as filters
from civicsky.loading import documented
from civicsky.model import HIDING
from civicsky.settings import Group, Settings
from docs.pages import page, quoted, rows, section

RESEARCH = "docs/research.md"


def default(name: str) -> object:
    group, _, field = name.partition(".")
    value = Settings.model_fields[group].default
    assert isinstance(value, Group)
    return value.model_dump(mode="json")[field]


def test_every_retention_is_that_of_its_setting() -> None:
    told = [cells for cells in rows(section(RESEARCH, "What is stored, and for how long"))[1:] if quoted(cells[3])]
    assert {name for cells in told for name in quoted(cells[3])} == {
        name for name, _, _ in documented() if re.search(r"(post|reject|quarantine|cache|raw)_days$", name)
    }
    for *_, setting, days in told:
        (name,) = quoted(setting)
        assert days == f"{default(name):g} days"


def test_every_setting_that_is_named_is_one() -> None:
    groups = "|".join(Settings.model_fields)
    named = {word for word in quoted(page(RESEARCH)) if re.fullmatch(rf"({groups})\.[a-z_]+", word)}
    assert len(named) > 8
    assert named <= {name for name, _, _ in documented()}


def test_every_self_label_and_status_that_is_heeded_is_told() -> None:
    signals = section(RESEARCH, "Consent signals")
    assert set(quoted(signals)) >= filters.ADULT | filters.GRAPHIC
    for status in HIDING - {"takendown"}:
        assert status in signals
    assert "taken down" in signals


def test_the_sample_and_the_anchors_are_as_many_as_the_page_says() -> None:
    assert f"({default('sample.posts_per_day'):,})" in section(RESEARCH, "How the sample is drawn")
    assert f"Each day {default('label.anchors')} labelled posts" in section(
        RESEARCH, "Drift, the cache, labelling again"
    )
    assert default("journal.reject_sample") == 0.01, "1 % of the rejected ones"


def test_both_paragraphs_leave_blanks_and_name_where_their_figures_come_from() -> None:
    ethics, methods = (
        section(RESEARCH, "A paragraph for an ethics application"),
        section(RESEARCH, "A methods paragraph"),
    )
    assert ethics.count("[") >= 10
    sources = dict(re.findall(r"\*\*\((\w)\)\*\* (.*?)[,.]", methods, re.DOTALL))
    assert set(re.findall(r" \((\w)\)", methods.partition(">")[2])) == set(sources)
