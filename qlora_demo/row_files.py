"""Rows out of a file, one at a time: JSONL, JSON, CSV, TSV, Parquet; one that cannot be read is told with its place."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DataError
from .row_formats import Row

_LONGEST_CELL = 1 << 24
_PARQUET_ROWS = 1000


@dataclass(frozen=True)
class FoundRow:
    """One row and its place, or what keeps it from being read."""

    where: str
    row: Row
    problem: str = ""


def iter_file(path: Path) -> Iterator[FoundRow]:
    """Every row of a file; raises `DataError` where the file as a whole cannot be read."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"dataset: {path} ends in {path.suffix!r}; give one of {', '.join(_READERS)}")
    if not path.stat().st_size:
        return
    try:
        yield from reader(path)
    except OSError as exc:
        raise DataError(f"dataset: {path} cannot be read ({exc.strerror}); check the file") from exc


def is_data_file(name: str) -> bool:
    """Whether a name ends like a file that is read here."""
    return Path(name).suffix.lower() in _READERS


def _jsonl(path: Path) -> Iterator[FoundRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.strip():
                yield _json_line(text, f"{path}, line {number}")


def _json_line(line: bytes, where: str) -> FoundRow:
    try:
        return _object(json.loads(line.decode("utf-8")), where)
    except UnicodeDecodeError:
        return FoundRow(where, {}, "not UTF-8 text; save the file as UTF-8")
    except (ValueError, RecursionError) as exc:
        return FoundRow(where, {}, f"not valid JSON ({exc}); correct it")


def _json(path: Path) -> Iterator[FoundRow]:
    try:
        value = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as exc:
        raise DataError(f"dataset: {path}: not valid JSON ({exc}); correct it") from exc
    if isinstance(value, dict):
        value = next((rows for rows in value.values() if isinstance(rows, list)), None)
    if not isinstance(value, list):
        raise DataError(f"dataset: {path} is no list of rows; give a JSON list of objects")
    for number, row in enumerate(value, 1):
        yield _object(row, f"{path}, row {number}")


def _object(value: Any, where: str) -> FoundRow:
    if isinstance(value, dict):
        return FoundRow(where, value)
    return FoundRow(where, {}, f"is {type(value).__name__}, not an object; give one object per row")


def _table(delimiter: str) -> Callable[[Path], Iterator[FoundRow]]:
    def read(path: Path) -> Iterator[FoundRow]:
        csv.field_size_limit(_LONGEST_CELL)
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(file, delimiter=delimiter, strict=True)
                for row in rows:
                    where = f"{path}, line {rows.line_num}"
                    wrong = None in row or None in row.values()
                    cells = {str(name): value for name, value in row.items() if name is not None}
                    yield FoundRow(where, cells, _CELLS if wrong else "")
        except (csv.Error, UnicodeDecodeError) as exc:
            raise DataError(f"dataset: {path} cannot be read ({exc}); save it as plain UTF-8 text") from exc

    return read


def _parquet(path: Path) -> Iterator[FoundRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(_PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield FoundRow(f"{path}, row {number}", row)
    except (pyarrow.ArrowException, ValueError) as exc:
        cause = " ".join(str(exc).split())
        raise DataError(f"dataset: {path} cannot be read ({cause[:200]}); correct the file") from exc


_CELLS = "has more or fewer cells than the head; correct the line"
_READERS: dict[str, Callable[[Path], Iterator[FoundRow]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".parquet": _parquet,
}
