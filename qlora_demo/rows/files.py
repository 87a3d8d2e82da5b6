"""Rows out of a file, one at a time: JSONL, JSON, CSV, TSV, Parquet; one that cannot be read is told with its place."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO

from ..errors import DataError, one_line
from .formats import Row, detect, is_row

_LONGEST_ROW = 1 << 22
"""Bytes; the longest row that is trained, 131,072 tokens, is a tenth of it."""
_LARGEST_JSON = 1 << 28
"""Bytes of a file that is read as a whole."""
_PARQUET_ROWS, _PARQUET_BYTES = 1000, 1 << 26
_NAMED = 5
"""Lists of rows that an error names."""
_TOO_LONG = f"is longer than {_LONGEST_ROW >> 20} MiB; split it"


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
        for number, line in enumerate(_lines(file), 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if len(text) > _LONGEST_ROW:
                yield FoundRow(f"{path}, line {number}", {}, _TOO_LONG)
            elif text.strip():
                yield _json_line(text, f"{path}, line {number}")


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines; of one that is too long no more is kept than shows it."""
    while line := file.readline(_LONGEST_ROW + 1):
        yield line
        while len(line) > _LONGEST_ROW and not line.endswith(b"\n"):
            line = file.readline(_LONGEST_ROW + 1)


def _json_line(line: bytes, where: str) -> FoundRow:
    try:
        return _object(json.loads(line.decode("utf-8")), where)
    except UnicodeDecodeError:
        return FoundRow(where, {}, _NO_UTF8)
    except json.JSONDecodeError as exc:
        return FoundRow(where, {}, f"not valid JSON ({exc.msg}, character {exc.pos + 1}); correct it")
    except (ValueError, RecursionError) as exc:
        return FoundRow(where, {}, f"not valid JSON ({exc}); correct it")


def _json(path: Path) -> Iterator[FoundRow]:
    if path.stat().st_size > _LARGEST_JSON:
        raise DataError(f"dataset: {path} is larger than {_LARGEST_JSON >> 20} MiB; save it as JSONL, one row a line")
    try:
        value = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as exc:
        raise DataError(f"dataset: {path}: not valid JSON ({exc}); correct it") from exc
    for number, row in enumerate(_rows_in(value, path), 1):
        yield _object(row, f"{path}, row {number}")


def _rows_in(value: Any, path: Path) -> list[Any]:
    """The rows that a file's value is or holds; the value itself where it is one row."""
    if isinstance(value, dict):
        lists = [name for name, rows in value.items() if _holds_objects(rows)]
        known = [name for name in lists if any(map(is_row, value[name]))]
        if not known and detect(value):
            return [value]
        lists = known or lists
        if len(lists) > 1:
            names = ", ".join(lists[:_NAMED])
            raise DataError(f"dataset: {path} holds {len(lists)} lists of rows ({names}); give a file with one")
        value = value[lists[0]] if lists else None
    if not isinstance(value, list):
        raise DataError(f"dataset: {path} is no list of rows; give a JSON list of objects")
    return value


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, dict) for one in value)


def _object(value: Any, where: str) -> FoundRow:
    if isinstance(value, dict):
        return FoundRow(where, value)
    return FoundRow(where, {}, f"is {type(value).__name__}, not an object; give one object per row")


def _table(delimiter: str) -> Callable[[Path], Iterator[FoundRow]]:
    def read(path: Path) -> Iterator[FoundRow]:
        csv.field_size_limit(_LONGEST_ROW)
        try:
            with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                pieces = _Pieces(file)
                rows = csv.DictReader(pieces, delimiter=delimiter, strict=True)
                if rows.fieldnames and pieces.damaged:
                    raise DataError(f"dataset: {path}, line {rows.line_num}: {_NO_UTF8}")
                _refuse_twins(rows.fieldnames or (), path)
                for row in rows:
                    yield _cells(row, f"{path}, line {rows.line_num}", pieces.damaged)
                    pieces.begin_row()
        except csv.Error as exc:
            raise DataError(f"dataset: {path} cannot be read ({exc}); save it as plain UTF-8 text") from exc

    return read


def _refuse_twins(names: Sequence[str], path: Path) -> None:
    twins = [name for at, name in enumerate(names) if name and name in names[:at]]
    if twins:
        raise DataError(f"dataset: {path} has two columns {twins[0]!r}; give each a name of its own")


def _cells(row: dict[str | Any, Any], where: str, damaged: bool) -> FoundRow:
    if damaged:
        return FoundRow(where, {}, _NO_UTF8)
    cells = {str(name): value for name, value in row.items() if name is not None}
    return FoundRow(where, cells, _CELLS if None in row or None in row.values() else "")


class _Pieces:
    """A text file's lines for the csv module, which would read one row on and on, be it a file long.

    Bytes that are no UTF-8 arrive as halves of surrogate pairs, so that the rows behind them are still found;
    ``damaged`` tells that the row at hand holds some.
    """

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.begin_row()

    def begin_row(self) -> None:
        self.taken = 0
        self.damaged = False

    def __iter__(self) -> Iterator[str]:
        while line := self.file.readline(_LONGEST_ROW + 1):
            self.taken += len(line)
            if self.taken > _LONGEST_ROW:
                raise csv.Error(f"a row {_TOO_LONG}")
            self.damaged = self.damaged or not _is_whole(line)
            yield line


def _is_whole(line: str) -> bool:
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet(path: Path) -> Iterator[FoundRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        for batch in file.iter_batches(_parquet_rows(file.metadata)):
            for row in batch.to_pylist():
                number += 1
                if batch.nbytes > _LONGEST_ROW and len(repr(row)) > _LONGEST_ROW:
                    raise DataError(f"dataset: {path}, row {number}: {_TOO_LONG}")
                yield FoundRow(f"{path}, row {number}", row)
    except (pyarrow.ArrowException, ValueError) as exc:
        raise DataError(f"dataset: {path} cannot be read ({one_line(exc)}); correct the file") from exc


def _parquet_rows(metadata: Any) -> int:
    """Rows to unfold at once: a value may be stored once and meant by every row, and none is larger than its chunk."""
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    chunks = [group.column(at).total_uncompressed_size for group in groups for at in range(group.num_columns)]
    return max(1, min(_PARQUET_ROWS, _PARQUET_BYTES // max(chunks, default=1)))


_NO_UTF8 = "not UTF-8 text; save the file as UTF-8"
_CELLS = "has more or fewer cells than the head; correct the line"
_READERS: dict[str, Callable[[Path], Iterator[FoundRow]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".parquet": _parquet,
}
