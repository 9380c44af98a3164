"""The runner: what it prints, writes and says of what went wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import machine, page, results, run
from bench.part import Against, Ask, CannotRun, Fact, Figure, Measure, Part
from bench.results import Entry
from bench.shown import lines, number

IDLE = machine.Load(0.1, 0.0, 0.0)


def part(*measures: Measure | Exception, name: str = "decode") -> Any:
    """A module of one part that measures just this; what cannot run at the end ends it."""

    def rounds(_ask: Ask) -> Iterator[Measure]:
        for one in measures:
            if isinstance(one, Exception) and (one is measures[-1] or not isinstance(one, CannotRun)):
                raise one
            yield one

    return SimpleNamespace(PART=Part(name, "Decoding", "ours against theirs"), rounds=rounds)


def entry(*measures: Measure | Exception, ask: Ask = Ask(rounds=2)) -> Entry:  # noqa: B008  (it cannot change)
    return run.run_part("decode", ask, lambda _: part(*measures))


GOOD: tuple[Measure, ...] = (
    Fact("frames", 1000),
    *(Figure("ours", "frames/s", 90.0 + n) for n in range(3)),
    *(Against("ours over theirs, frames/s", 9.0 + n, bar=8) for n in range(3)),
)
MISSED: tuple[Measure, ...] = tuple(Against("ours over theirs, frames/s", 3.0 + n, bar=8) for n in range(3))


def test_a_part_has_its_date_commit_machine_and_every_value() -> None:
    one = entry(*GOOD)
    assert one["machine"]["processors"] >= 1
    assert one["machine"]["libraries"]["libipld"]
    assert one["at"].endswith("+00:00")
    assert one["commit"] == machine.commit()
    assert one["facts"] == {"frames": 1000}
    assert one["figures"]["ours"] == {
        "unit": "frames/s", "n": 3, "median": 91.0, "min": 90.0, "max": 92.0, "values": [90.0, 91.0, 92.0],
        "better": "higher", "bar": None, "at_least": True, "met": None,
    }  # fmt: skip
    assert one["ratios"]["ours over theirs, frames/s"]["is"] == "a ratio"
    assert one["ratios"]["ours over theirs, frames/s"]["met"] is True
    assert not results.missed(one)


def test_a_bar_that_fails_is_told_in_the_output_the_results_and_the_page() -> None:
    one = entry(*MISSED)
    assert results.missed(one) == ["ours over theirs, frames/s"]
    assert "NOT MET" in "\n".join(lines("decode", one))
    assert "**not met**" in page.render("{{bars}}", {"decode": one}, run.PARTS, {})


def test_a_part_that_breaks_says_so_and_keeps_what_it_measured_before(capsys: pytest.CaptureFixture[str]) -> None:
    one = entry(Figure("ours", "frames/s", 1.0), OSError(28, "no room"))
    assert one["failed"].startswith("OSError")
    assert "no room" in capsys.readouterr().err
    assert one["figures"]["ours"]["n"] == 1
    assert "FAILED: OSError" in "\n".join(lines("decode", one))
    assert "It failed" in page.render("{{part decode}}", {"decode": one}, run.PARTS, {})


def test_what_cannot_run_is_told_everywhere() -> None:
    one = entry(CannotRun("no mongod"), *GOOD)
    assert one["left_out"] == ["no mongod"]
    assert one["figures"]["ours"]["n"] == 3
    assert "left out: no mongod" in "\n".join(lines("decode", one))
    assert "Left out: no mongod" in page.render("{{part decode}}", {"decode": one}, run.PARTS, {})
    whole = entry(CannotRun("no room on the disk"))
    assert whole["failed"] == "cannot run: no room on the disk"
    assert "| decode | cannot run: no room on the disk |" in page.render("{{bars}}", {"decode": whole}, run.PARTS, {})


def test_a_part_whose_module_is_missing_cannot_run() -> None:
    def load(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    assert run.run_part("script", Ask(), load)["failed"] == "cannot run: bench.script is not there"


def test_a_part_that_is_run_alone_takes_the_place_of_its_former_figures_and_leaves_the_others(tmp_path: Path) -> None:
    run.write(tmp_path, {"decode": entry(*GOOD), "label": entry(*GOOD)})
    before = results.read(tmp_path / "bench" / "results.json")
    run.write(tmp_path, {"decode": entry(*MISSED)})
    after = results.read(tmp_path / "bench" / "results.json")
    assert after["label"] == before["label"]
    assert after["decode"]["ratios"]["ours over theirs, frames/s"]["met"] is False
    assert list(after) == ["decode", "label"]
    told = (tmp_path / "docs" / "performance.md").read_text()
    assert "| decode | ours over theirs, frames/s | at least 8" in told
    assert "Not measured yet." in told
    assert "{{" not in told
    for name in ("bars", "decode", "label"):
        assert f"](performance-{name}.svg)" in told
        assert (tmp_path / "docs" / f"performance-{name}.svg").read_text().startswith("<?xml")


def test_results_of_another_format_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    file = tmp_path / "bench" / "results.json"
    file.write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="move it away"):
        run.write(tmp_path, {"decode": entry(*GOOD)})
    assert json.loads(file.read_text()) == {"format": 99}


def test_the_same_figures_are_drawn_the_same(tmp_path: Path) -> None:
    one = entry(*GOOD)
    drawn = []
    for turn in ("a", "b"):
        run.write(tmp_path / turn, {"decode": one})
        drawn.append((tmp_path / turn / "docs" / "performance-decode.svg").read_bytes())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("measures", "words", "code"),
    [(GOOD, [], 0), (MISSED, [], 1), (MISSED, ["--quick"], 0), ((*GOOD, OSError(28, "no room")), ["--quick"], 1)],
)
def test_the_exit_code_tells_of_missed_bars_and_broken_parts(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    measures: tuple[Measure | Exception, ...],
    words: list[str],
    code: int,
) -> None:
    given: dict[str, Any] = {}
    really = run.run_part

    def instead(name: str, ask: Ask) -> Entry:
        given[name] = ask
        return really(name, ask, lambda _: part(*measures))

    monkeypatch.setattr(run, "run_part", instead)
    assert run.main(["--only", "decode,label", "--into", str(tmp_path), *words]) == code
    assert list(given) == ["decode", "label"]
    assert given["decode"].rounds == (1 if words else 5)
    assert given["decode"].quick == bool(words)


def test_a_part_that_does_not_exist_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--only", "decode,colect"]) == 2
    assert "there is no part colect" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("load", "why"),
    [
        (IDLE, ""),
        (machine.Load(3.0, 0.4, 0.0), "other processes took 40% of the processors"),
        (machine.Load(0.1, 0.0, 0.2), "20% of the processors' time was stolen"),
    ],
)
def test_a_machine_that_was_not_idle_is_told(load: machine.Load, why: str) -> None:
    assert load.why == why
    one = {**entry(*GOOD), "load": {"average": 0.1, "others": 0.0, "stolen": 0.0, "not_idle": why}}
    assert ("not idle" in "\n".join(lines("decode", one))) == bool(why)
    assert ("not idle" in page.render("{{machine}}", {"decode": one}, run.PARTS, {})) == bool(why)


def test_numbers_have_the_digits_that_count() -> None:
    assert [number(value) for value in (0, 0.0123456, 1.5, 99.99, 123.4, 12345.6)] == [
        "0", "0.0123", "1.5", "100", "123", "12,346",
    ]  # fmt: skip
