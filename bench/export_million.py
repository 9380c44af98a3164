"""Exports a large store of made-up posts with the installed command: time, peak memory, and what other readers see.

    PYTHONPATH=tests .venv/bin/python bench/export_million.py [--posts N] [--format parquet ...] [--folder DIR]

Exit code 1 when the command needed 300 MB of memory or more, or when a file is not what it should be.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from support.large_store import fill, run_with_peak

CIVICSKY = Path(sys.executable).with_name("civicsky")
LIMIT_MB = 300


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", type=int, default=1_000_000)
    parser.add_argument("--format", choices=["parquet", "csv", "jsonl"], action="append")
    parser.add_argument("--level", choices=["internal", "public"], default="internal")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=told.folder) as name:
        folder = Path(name)
        began = time.monotonic()
        fill(folder, told.posts)
        size = (folder / "posts.db").stat().st_size / 1e9
        print(f"store: {told.posts:,} posts, {size:.2f} GB, {time.monotonic() - began:.0f} s", flush=True)
        return max(measure(folder, told.posts, form, told.level) for form in told.format or ["parquet"])


def measure(folder: Path, posts: int, form: str, level: str) -> int:
    """Export once; 0 when all is well."""
    out, began = folder / "out", time.monotonic()
    command: list[str | Path] = [
        CIVICSKY,
        "export",
        "--data-dir",
        folder,
        "--out",
        out,
        "--format",
        form,
        "--level",
        level,
        "--json",
    ]
    told, peak = run_with_peak(command)
    seconds, found = time.monotonic() - began, json.loads(told)
    rows = {file["name"]: file["rows"] for file in found["files"] if "rows" in file}
    megabytes = sum(file["bytes"] for file in found["files"]) / 1e6
    print(f"{form}: {rows}, {megabytes:,.0f} MB, {seconds:.0f} s, {posts / seconds:,.0f} posts/s, peak {peak:.0f} MB")
    wrong = [f"peak of {peak:.0f} MB"] if peak >= LIMIT_MB else []
    for table in ("posts", "labels"):
        wrong += [f"{table}: {what}" for what in READ[form](out / f"{table}.{form}", rows[f"{table}.{form}"])]
    for what in wrong:
        print(f"  wrong: {what}")
    shutil.rmtree(out)
    return int(bool(wrong))


# ---- what others read ------------------------------------------------------------------------------------------------


def read_parquet(file: Path, rows: int) -> Iterator[str]:
    opened = parquet.ParquetFile(file)
    for field in opened.schema_arrow:
        if pa.types.is_null(field.type) or pa.types.is_nested(field.type):
            yield f"{field.name} is {field.type}"
        if pa.types.is_timestamp(field.type) and str(field.type) != "timestamp[us, tz=UTC]":
            yield f"{field.name} is {field.type}"
    if opened.metadata.num_rows != rows:
        yield f"pyarrow sees {opened.metadata.num_rows:,} rows"
    narrow = [name for name in opened.schema_arrow.names if "civic" in name or name in {"event_at", "event_hour", "at"}]
    frame = pd.read_parquet(file, columns=narrow)
    if len(frame) != rows:
        yield f"pandas sees {len(frame):,} rows"
    counted = _ask(f"SELECT count(*), count(civic_civic) FROM '{file}'")[0]
    if counted != (rows, int(frame["civic_civic"].notna().sum())) or not counted[1]:
        yield f"DuckDB sees {counted}"
    described = _ask(f"SELECT DISTINCT column_type FROM (DESCRIBE '{file}') ORDER BY 1")
    types = ", ".join(kind for (kind,) in described)
    print(f"  {file.name}: {opened.metadata.num_row_groups} row groups, {len(opened.schema_arrow)} columns: {types}")


def read_csv(file: Path, rows: int) -> Iterator[str]:
    yield from _counted(file, rows, f"read_csv('{file}', header=true, all_varchar=true)")


def read_jsonl(file: Path, rows: int) -> Iterator[str]:
    yield from _counted(file, rows, f"read_json('{file}', format='newline_delimited')")


def _counted(file: Path, rows: int, source: str) -> Iterator[str]:
    counted = _ask(f"SELECT count(*), count(civic_civic) FROM {source}")[0]
    if counted[0] != rows or not counted[1]:
        yield f"DuckDB sees {counted}"
    print(f"  {file.name}: {counted}")


def _ask(sql: str) -> list[Any]:
    found = duckdb.sql(sql)
    assert found is not None, sql
    return found.fetchall()


READ: dict[str, Callable[[Path, int], Iterator[str]]] = {"parquet": read_parquet, "csv": read_csv, "jsonl": read_jsonl}


if __name__ == "__main__":
    sys.exit(main())
