"""How an export's tables become files, and its folder whole or not at all. The one home of pyarrow.

pyarrow comes with the extra `export` and is needed for Parquet only. Each file takes rows as they come and holds
`ROWS` of them, or `BYTES`, at most.
"""

import csv
import fcntl
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

from civicsky.errors import Usage
from civicsky.export.columns import Column, Format, Kind
from civicsky.model import format_time

TYPES: Final[dict[Kind, str]] = {
    "text": "string", "json": "string", "time": "timestamp[us, tz=UTC]", "bool": "bool", "int": "int64",
    "float": "double",
}  # fmt: skip
"""Arrow's names of the columns' types. In CSV and JSONL, times are RFC 3339."""
ROWS: Final = 10_000
"""Rows in a row group of a Parquet file."""
BYTES: Final = 32_000_000
"""A row group has fewer rows when they take more, so that long texts cannot fill the memory."""
CHUNK: Final = 1_000
"""Rows that are held as Python's objects, which take many times what Arrow's do."""
UNFINISHED: Final = ".unfinished-"
"""In the name of a folder that is being written, before the process's id."""
_ENCODE: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_FILLERS: Final = "\u115f\u1160\u3164\uffa0"
"""Letters that are not to be seen."""
_HELD: Final = 8_000_000
"""Characters of `Shuffled` rows held at most before they go to disk."""


class Writer(Protocol):
    """One table's file."""

    rows: int
    """Written so far."""

    def write(self, row: Sequence[Any]) -> None:
        """Take a row, cells as `columns.cells` gives them. Raises `OSError`."""
        ...

    def close(self) -> None:
        """Write what is held, and have it on the disk. Raises `OSError`."""
        ...


def open_file(file: Path, columns: Sequence[Column], form: Format) -> Writer:
    """Begin a file. Raises `OSError`, and `Usage` when pyarrow is needed and missing."""
    kinds: dict[Format, type[ParquetFile | CsvFile | JsonlFile]] = {
        "parquet": ParquetFile, "csv": CsvFile, "jsonl": JsonlFile
    }  # fmt: skip
    return kinds[form](file, columns)


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415
    except ModuleNotFoundError:
        raise Usage(
            "Parquet needs the extra `export` (pyarrow is missing): pip install --require-hashes "
            "-r requirements/export.txt in the folder with civicsky's source, or take --format csv or jsonl"
        ) from None
    # Its own pools keep what was freed: a sixth more memory for no time.
    pa.set_memory_pool(pa.system_memory_pool())
    return pa, parquet


def check(form: Format) -> None:
    """Raise `Usage` when what the format needs is missing."""
    if form == "parquet":
        _arrow()


class ParquetFile:
    """Row groups of `ROWS`, compressed; each column has its declared type, also when it is null throughout."""

    def __init__(self, file: Path, columns: Sequence[Column]) -> None:
        pa, parquet = _arrow()
        types = {
            "text": pa.string(), "json": pa.string(), "time": pa.timestamp("us", tz="UTC"), "bool": pa.bool_(),
            "int": pa.int64(), "float": pa.float64(),
        }  # fmt: skip
        self._pa = pa
        self._schema = pa.schema([(column.name, types[column.kind]) for column in columns])
        self._stream = file.open("wb")
        self._writer = parquet.ParquetWriter(self._stream, self._schema, compression="zstd")
        self._held: list[Sequence[Any]] = []
        self._batches: list[Any] = []
        self.rows = 0

    def write(self, row: Sequence[Any]) -> None:
        """See `Writer.write`."""
        self._held.append(row)
        self.rows += 1
        if len(self._held) == CHUNK:
            self._pack()

    def close(self) -> None:
        """See `Writer.close`."""
        self._pack()
        self._flush()
        self._writer.close()
        _finish(self._stream)

    def _pack(self) -> None:
        if self._held:
            arrays = [
                self._pa.array(values, kind)
                for values, kind in zip(zip(*self._held, strict=True), self._schema.types, strict=True)
            ]
            self._held = []
            self._batches.append(self._pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        if sum(len(batch) for batch in self._batches) >= ROWS or sum(batch.nbytes for batch in self._batches) >= BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._batches:
            self._writer.write_table(self._pa.Table.from_batches(self._batches, self._schema))
            self._batches = []


# ---- text ------------------------------------------------------------------------------------------------------------


class JsonlFile:
    """One object a line, in UTF-8; times are RFC 3339."""

    def __init__(self, file: Path, columns: Sequence[Column]) -> None:
        self._names = [column.name for column in columns]
        self._times = _times(columns)
        self._stream = file.open("w", encoding="utf-8", newline="\n")
        self.rows = 0

    def write(self, row: Sequence[Any]) -> None:
        """See `Writer.write`."""
        self._stream.write(_ENCODE(dict(zip(self._names, _said(row, self._times), strict=True))) + "\n")
        self.rows += 1

    def close(self) -> None:
        """See `Writer.close`."""
        _finish(self._stream)


class CsvFile:
    """RFC 4180 in UTF-8 with a header; no text is a formula to a spreadsheet, see `guarded`."""

    def __init__(self, file: Path, columns: Sequence[Column]) -> None:
        self._times = _times(columns)
        self._stream = file.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._stream)  # its line ends are CR LF, as RFC 4180 has it
        self._writer.writerow([column.name for column in columns])
        self.rows = 0

    def write(self, row: Sequence[Any]) -> None:
        """See `Writer.write`."""
        self._writer.writerow([_in_csv(value) for value in _said(row, self._times)])
        self.rows += 1

    def close(self) -> None:
        """See `Writer.close`."""
        _finish(self._stream)


def _times(columns: Sequence[Column]) -> list[int]:
    return [at for at, column in enumerate(columns) if column.kind == "time"]


def _said(row: Sequence[Any], times: Sequence[int]) -> list[Any]:
    """A row with its times as RFC 3339."""
    said = [*row]
    for at in times:
        if said[at] is not None:
            said[at] = format_time(said[at])
    return said


def _in_csv(value: Any) -> Any:
    if isinstance(value, str):
        return guarded(value)
    return ("true" if value else "false") if isinstance(value, bool) else value


def guarded(text: str) -> str:
    """Text that no spreadsheet takes for a formula: with an apostrophe before it, if need be.

    Need is where the first character that is to be seen, apostrophes aside, is = + - or @, also in its wide and small
    forms, or where a tab or a carriage return comes before it. Apostrophes of the text's own do not change that, so
    whoever takes one away under the same rule has the text again: see `unguarded`.
    """
    plain = text[:1].isalnum() and text[0] not in _FILLERS
    return f"'{text}" if not plain and _risky(text) else text


def unguarded(cell: str) -> str:
    """What `guarded` was given."""
    return cell[1:] if cell.startswith("'") and _risky(cell) else cell


def _risky(text: str) -> bool:
    return _formulas().match(text) is not None


@cache
def _formulas() -> re.Pattern[str]:
    """White space, what is not to be seen, and apostrophes; then what begins a formula, in any of its forms."""
    characters = [chr(code) for code in (*range(0x3165), *range(0xF900, 0x10000), *range(0xE0000, 0xE0200))]
    unseen = [
        one for one in characters
        if one == "'" or one.isspace() or unicodedata.category(one) in {"Cc", "Cf", "Mn"} or one in _FILLERS
    ]  # fmt: skip
    begin = [one for one in characters if unicodedata.normalize("NFKC", one)[:1] in {*"=+-@\u2212"}]
    skipped = "[" + re.escape("".join(unseen)) + "]*"
    return re.compile(f"{skipped}[\t\r]|{skipped}[{re.escape(''.join(begin))}]")


def _finish(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())
    stream.close()


# ---- an order that tells nothing -------------------------------------------------------------------------------------


class Shuffled:
    """Writes rows in the order of their first cell, a pseudonym: the store's order is that of accounts and times.

    Rows wait in files beside the real one, by the first two digits, and are sorted file by file. Memory: `_HELD`, and
    then one 256th of the rows.
    """

    def __init__(self, writer: Writer, folder: Path) -> None:
        self._writer, self._folder = writer, folder
        folder.mkdir()
        self._held: dict[str, list[str]] = {}
        self._characters = self.rows = 0

    def write(self, row: Sequence[Any]) -> None:
        """See `Writer.write`."""
        packed = json.dumps(row)
        self._held.setdefault(row[0][:2], []).append(packed)
        self._characters += len(packed)
        self.rows += 1
        if self._characters >= _HELD:
            self._spill()

    def close(self) -> None:
        """See `Writer.close`."""
        self._spill()
        for file in sorted(self._folder.iterdir()):
            with file.open(encoding="utf-8") as stream:
                rows = sorted(map(json.loads, stream), key=lambda row: row[0])
            file.unlink()
            for row in rows:
                self._writer.write(row)
        self._folder.rmdir()
        self._writer.close()

    def _spill(self) -> None:
        for name, rows in self._held.items():
            with (self._folder / name).open("a", encoding="utf-8") as stream:
                stream.writelines(f"{row}\n" for row in rows)
        self._held, self._characters = {}, 0


# ---- the folder ------------------------------------------------------------------------------------------------------


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name when all is done, and is removed when anything fails.

    Raises `OSError`, and `Usage` when there is something of that name.
    """
    if out.exists() or out.is_symlink():
        raise Usage(f"{out} is there already, and what was exported stays; name another folder with --out")
    part = out.with_name(f"{out.name}{UNFINISHED}{os.getpid()}")
    try:
        part.mkdir(mode=0o700)
        handle = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Usage(f"{out} cannot be written: {error.strerror}; name another folder with --out") from None
    try:
        with suppress(OSError):  # some network file systems have no locks on folders
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield part
        os.fsync(handle)
        if out.exists():
            raise Usage(f"{out} was made meanwhile; name another folder with --out")
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        os.close(handle)


def leftovers(folder: Path) -> Iterable[Path]:
    """Folders that an export was killed in."""
    for part in sorted(folder.glob(f"*{UNFINISHED}[0-9]*")):
        try:
            handle = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # somebody is writing it
        else:
            yield part
        finally:
            os.close(handle)
