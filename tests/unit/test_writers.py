"""Files of exports: any text comes back, nothing is a formula, and a folder is whole or not there."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, strategies as st
from pyarrow import parquet

from civicsky.errors import Usage
from civicsky.export import writers
from civicsky.export.columns import Column, Format, Kind, clean
from civicsky.export.writers import ROWS, Shuffled, guarded, leftovers, open_file, unguarded, whole_folder
from support.command import until
from support.tried import tried

WIDE, SMALL = "\uff1d\uff0b\uff0d\uff20", "\ufe66\ufe62\ufe63\ufe6b"
SIGNS = ["=", "+", "-", "@", "\u2212", "\u207a", *WIDE, *SMALL]
BEFORE = [
    *("", "'", "''", " ", "\t", "\r", "\n", "\x01", "\x1f", "\x85", "\u00a0", "\u00ad", "\u200b", "\u2028", "\u202e"),
    *("\u3000", "\u3164", "\ufe0f", "\ufeff", "\U000e0020", "' \u200b"),
]
FORMULAS = [before + sign + "1+cmd|' /C calc'!A0" for before in BEFORE for sign in SIGNS]
HARMLESS = [
    *("", " ", "plain", "'", "''", "'a", '"=1', "a,b", 'a"b', "a\nb", "a\r\nb", "a\rb", "a;=1", "a\x85b", "a\u2028b"),
    *("(=1)", "\U0001f600 =1", "\u202eevil", "nul \ufffd", "NA", "null", "1e5", "0x1", "true", "1+1", "#x"),
]
HOSTILE = [*FORMULAS, *HARMLESS, "\tx", "\rx", " \tx", "'\tx"]
PIECES = [*"=+-@'\t\r\n \"a,;", "\u200b", WIDE[0], "\x01"]
TEXTS = st.text() | st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


def columns(*kinds: Kind) -> list[Column]:
    return [Column(f"{kind}_{n}", kind, "", lambda _row: None) for n, kind in enumerate(kinds)]


def written(folder: Path, form: Format, kinds: list[Kind], rows: list[list[Any]]) -> Path:
    file = folder / f"t.{form}"
    writer = open_file(file, columns(*kinds), form)
    for row in rows:
        writer.write(row)
    writer.close()
    assert writer.rows == len(rows)
    return file


def test_what_a_spreadsheet_would_reckon_has_an_apostrophe_before_it() -> None:
    for text in FORMULAS:
        assert guarded(text) == f"'{text}"
        assert unguarded(guarded(text)) == text


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_formula_is_left_as_it_is(text: str) -> None:
    assert guarded(text) == text == unguarded(text)


@pytest.mark.parametrize("text", ["\tx", "\rx", " \tx", "'\tx"])
def test_a_tab_or_carriage_return_at_the_beginning_counts_as_one(text: str) -> None:
    assert guarded(text) == f"'{text}"


@given(TEXTS)
def test_taking_the_apostrophe_away_by_the_same_rule_gives_any_text_again(text: str) -> None:
    cell = guarded(text)
    assert cell in {text, f"'{text}"}
    assert unguarded(cell) == text
    assert cell[:1] not in {*SIGNS, "\t", "\r"}


@tried(100, HealthCheck.function_scoped_fixture)
@given(st.lists(TEXTS.map(clean), min_size=1, max_size=5))
def test_any_text_comes_back_from_csv_with_two_readers(tmp_path: Path, texts: list[str]) -> None:
    file = written(tmp_path, "csv", ["text", "int"], [[text, n] for n, text in enumerate(texts)])
    with file.open(encoding="utf-8", newline="") as stream:
        head, *rows = csv.reader(stream)
    assert head == ["text_0", "int_1"]
    assert [(unguarded(text), int(n)) for text, n in rows] == [(text, n) for n, text in enumerate(texts)]
    frame = pd.read_csv(file, keep_default_na=False, dtype={"text_0": object}, encoding="utf-8")
    assert [unguarded(text) for text in frame["text_0"]] == texts


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_hostile_texts_come_back_from_every_format(tmp_path: Path, form: Format) -> None:
    rows: list[list[Any]] = [[text, -1.5, n, True, 1_500_000] for n, text in enumerate(HOSTILE)]
    file = written(tmp_path, form, ["text", "float", "int", "bool", "time"], [*rows, [None] * 5])
    if form == "parquet":
        found = [list(row.values()) for row in pd.read_parquet(file).to_dict("records")]
        assert [row[0] for row in found[:-1]] == HOSTILE
        assert found[0][4] == pd.Timestamp("1970-01-01T00:00:01.5Z")
    elif form == "jsonl":
        lines = file.read_bytes().decode().split("\n")
        assert [json.loads(line)["text_0"] for line in lines[:-2]] == HOSTILE
        first = {
            "text_0": HOSTILE[0],
            "float_1": -1.5,
            "int_2": 0,
            "bool_3": True,
            "time_4": "1970-01-01T00:00:01.500Z",
        }
        assert json.loads(lines[0]) == first
        assert set(json.loads(lines[-2]).values()) == {None}
    else:
        with file.open(encoding="utf-8", newline="") as stream:
            _, *found = csv.reader(stream)
        assert [unguarded(row[0]) for row in found[:-1]] == HOSTILE
        assert found[0][1:] == ["-1.5", "0", "true", "1970-01-01T00:00:01.500Z"], "numbers stay numbers"
        assert found[-1] == [""] * 5


def test_lines_of_csv_end_as_rfc_4180_has_it(tmp_path: Path) -> None:
    assert written(tmp_path, "csv", ["text"], [["a"], ['b"c']]).read_bytes() == b'text_0\r\na\r\n"b""c"\r\n'


def test_a_parquet_column_that_is_null_throughout_keeps_its_type(tmp_path: Path) -> None:
    kinds: list[Kind] = ["text", "json", "time", "bool", "int", "float"]
    for rows in ([[None] * 6], []):
        schema = parquet.read_schema(written(tmp_path, "parquet", kinds, rows))
        assert [str(kind) for kind in schema.types] == [writers.TYPES[kind] for kind in kinds]
        assert schema.field("time_2").type == pa.timestamp("us", tz="UTC")


def test_row_groups_have_ten_thousand_rows_and_fewer_when_texts_are_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def groups(text: str, n: int) -> list[int]:
        about = parquet.ParquetFile(written(tmp_path, "parquet", ["text"], [[text]] * n)).metadata
        return [about.row_group(k).num_rows for k in range(about.num_row_groups)]

    assert groups("a", 2 * ROWS + 5) == [ROWS, ROWS, 5]
    monkeypatch.setattr(writers, "BYTES", 1_000_000)
    assert max(groups("a" * 1000, 3000)) == 1000


def test_shuffled_rows_come_in_the_order_of_their_pseudonyms_and_none_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "_HELD", 1000)
    rows = [[f"{(n * 7919) % 65536:04x}", n, None] for n in range(3000)]
    writer = Shuffled(open_file(tmp_path / "t.jsonl", columns("text", "int", "text"), "jsonl"), tmp_path / "rows")
    for row in rows:
        writer.write(row)
    assert len(list((tmp_path / "rows").iterdir())) > 100, "rows wait on disk"
    writer.close()
    found = [list(json.loads(line).values()) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert found == sorted(rows)
    assert not (tmp_path / "rows").exists()
    assert writer.rows == 3000


def test_a_folder_has_its_name_when_all_is_done(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with whole_folder(out) as part:
        (part / "a").write_text("a")
        assert not out.exists()
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "a"]


def test_a_folder_in_which_something_failed_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), whole_folder(tmp_path / "out") as part:  # noqa: PT012
        (part / "a").mkdir()
        (part / "a").write_text("a")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(Usage, match="is there already"), whole_folder(tmp_path / "out"):
        pass
    with pytest.raises(Usage, match="cannot be written"), whole_folder(tmp_path / "no" / "out"):
        pass
    with pytest.raises(Usage, match="made meanwhile"), whole_folder(tmp_path / "new"):
        (tmp_path / "new").mkdir()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new", "out"]


def test_a_folder_of_an_export_that_was_killed_is_told_from_one_that_is_being_written(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from civicsky.export.writers import whole_folder\n"
        "with whole_folder(pathlib.Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "out"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        assert list(leftovers(tmp_path)) == []
        process.kill()
    (left,) = until(lambda: list(leftovers(tmp_path)), "the lock to be free")
    assert left.name == f"out.unfinished-{process.pid}"
    assert list(tmp_path.iterdir()) == [left]


def test_without_pyarrow_only_parquet_is_refused_and_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Usage, match=r"extra `export`.*-r requirements/export\.txt.*--format csv or jsonl"):
        writers.check("parquet")
    writers.check("csv")
    writers.check("jsonl")


@pytest.mark.parametrize("out", ["/", "/usr"])
def test_a_folder_that_is_there_is_told_even_when_it_has_no_name(out: str) -> None:
    with pytest.raises(Usage, match=f"^{out} is there already"), whole_folder(Path(out)):
        pass
