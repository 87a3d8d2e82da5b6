"""Files of rows made to fill the memory, to be unfolded, or to be no text: refused by name, in bounded memory."""

from __future__ import annotations

import gzip
import json
import lzma
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from qlora_demo.config import TrainConfig
from qlora_demo.errors import DataError
from qlora_demo.ml.data import load_splits
from qlora_demo.results.promptsets import read_prompts
from qlora_demo.rows.files import iter_file

_MOST_MIB = 400
"""What reading may take beyond an empty file's reading; each of these files would take more than a GiB."""

READ = """
import resource, sys
from pathlib import Path
from qlora_demo.errors import DataError
from qlora_demo.rows.files import iter_file
wrong = ""
try:
    for found in iter_file(Path(sys.argv[1])):
        wrong = wrong or found.problem
except DataError as exc:
    wrong = str(exc)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, wrong)
"""


def read_elsewhere(path: Path) -> tuple[int, str]:
    """A process's peak memory in MiB after reading a file, and what was wrong with it."""
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    peak, _, wrong = done.stdout.strip().partition(" ")
    return int(peak), wrong


def one_long_line(path: Path) -> None:
    """A GiB without a line end, which takes no room on the disk."""
    with path.open("wb") as file:
        file.write(b'prompt,completion\n"' if path.suffix in (".csv", ".tsv") else b'{"prompt": "')
        file.truncate(1 << 30)


def one_long_row(path: Path) -> None:
    """A row that never ends, in short lines."""
    with path.open("wb") as file:
        file.write(b"prompt,completion\n")
        for _ in range(64):
            file.write(b'"\n",' * (1 << 20))


def one_value_meant_by_every_row(path: Path) -> None:
    """Two KiB that unfold to a TiB."""
    value = pa.array(["a" * (50 << 20)])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), value)
    pa.parquet.write_table(pa.table({"text": column}), path, compression="zstd", dictionary_pagesize_limit=1 << 30)


def one_long_row_of_bad_bytes(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b'prompt,completion\n"')
        for _ in range(64):
            file.write(b"\xff" * (1 << 20))


LARGE: list[tuple[str, Callable[[Path], None], str]] = [
    ("rows.csv", one_long_line, "a row is longer than 4 MiB"),
    ("rows.tsv", one_long_line, "a row is longer than 4 MiB"),
    ("rows.jsonl", one_long_line, "is longer than 4 MiB"),
    ("rows.json", one_long_line, "is larger than 256 MiB"),
    ("endless.csv", one_long_row, "a row is longer than 4 MiB"),
    ("bytes.csv", one_long_row_of_bad_bytes, "a row is longer than 4 MiB"),
    ("bomb.parquet", one_value_meant_by_every_row, "row 1: is longer than 4 MiB"),
]


@pytest.mark.parametrize(("name", "make", "reason"), LARGE, ids=[name for name, *_ in LARGE])
def test_a_file_made_to_fill_the_memory_is_refused_without_filling_it(
    tmp_path: Path, name: str, make: Callable[[Path], None], reason: str
) -> None:
    empty = tmp_path / f"empty{Path(name).suffix}"
    pa.parquet.write_table(pa.table({"text": ["a"]}), empty) if empty.suffix == ".parquet" else empty.write_text("")
    path = tmp_path / name
    make(path)
    before, _ = read_elsewhere(empty)
    peak, wrong = read_elsewhere(path)
    assert reason in wrong
    assert peak - before < _MOST_MIB, f"{peak - before} MiB"


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "rows.json.gz": gzip.compress,
    "rows.jsonl.xz": lzma.compress,
    "rows.csv.gz": gzip.compress,
}


@pytest.mark.parametrize("name", [*PACKED, "rows.zip"])
def test_packed_files_are_not_unpacked(tmp_path: Path, name: str) -> None:
    path, rows = tmp_path / name, json.dumps({"text": "a" * 1000}).encode() * 1000
    if name in PACKED:
        path.write_bytes(PACKED[name](rows))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("rows.jsonl", rows)
    with pytest.raises(DataError, match=f"{name} ends in .*; give one of .jsonl"):
        load_splits(TrainConfig(dataset=str(path)))
    with pytest.raises(DataError, match=f"prompts: .*{name}.*give a UTF-8 text"):
        read_prompts(path)


def test_a_folder_is_not_read_as_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would read whatever a folder of that name holds, packed files too."""
    (tmp_path / "mine" / "rows").mkdir(parents=True)
    (tmp_path / "mine" / "rows" / "train.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 10))
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "mine" / "rows"), "mine/rows", "mine", "."):
        with pytest.raises(DataError, match=r"^dataset: "):
            load_splits(TrainConfig(dataset=name))


@pytest.mark.parametrize("name", ["json", "csv", "imagefolder", "pandas", "webdataset"])
def test_the_library_s_own_readers_are_no_data_sets(name: str) -> None:
    with pytest.raises(DataError, match=rf"^dataset: '{name}' is no bundled data set"):
        load_splits(TrainConfig(dataset=name))


HALF = "\\ud800"
NO_TEXT: list[tuple[str, bytes, str]] = [
    ("rows.jsonl", b'{"prompt": "\xff\xfe", "completion": "b"}\n', "line 1: not UTF-8 text"),
    ("rows.csv", b"prompt,completion\n\xff\xfe,b\n", "line 2: not UTF-8 text; save the file as UTF-8"),
    ("rows.csv", "prompt,completion\na,b\n".encode("utf-16"), "line 1: not UTF-8 text; save the file as UTF-8"),
    ("rows.json", b'[{"prompt": "\xff", "completion": "b"}]', "not valid JSON"),
    (
        "rows.jsonl",
        f'{{"prompt": "a{HALF}", "completion": "b"}}\n'.encode(),
        "line 1, message 1: holds half a character",
    ),
    ("rows.jsonl", f'{{"text": "a{HALF}"}}\n'.encode(), "line 1: text holds half a character"),
    ("rows.jsonl", b"[" * 100_000, "line 1: not valid JSON"),
    ("rows.json", b"[" * 100_000, "not valid JSON"),
    ("rows.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n", "line 1: not valid JSON"),
    ("rows.parquet", b"PAR1" + b"\x00" * 100 + b"PAR1", "cannot be read"),
]


@pytest.mark.parametrize(("name", "content", "reason"), NO_TEXT)
def test_what_is_no_text_is_refused_with_its_place(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        load_splits(TrainConfig(dataset=str(path)))


def test_control_characters_are_text(tmp_path: Path) -> None:
    """They are kept as they are: a tokenizer reads them, and everything that shows them escapes them."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "\x00\x1b[31m\u202e<script>", "completion": "\x07"}) + "\n", "utf-8")
    [found] = iter_file(path)
    assert found.row == {"prompt": "\x00\x1b[31m\u202e<script>", "completion": "\x07"}


def test_prompts_that_are_no_text_or_too_many_are_refused(tmp_path: Path) -> None:
    half, huge = tmp_path / "half.jsonl", tmp_path / "huge.txt"
    half.write_bytes(f'{{"prompt": "a{HALF}"}}\n'.encode())
    with huge.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(DataError, match=r"half\.jsonl, prompt 1 holds half a character"):
        read_prompts(half)
    with pytest.raises(DataError, match=r"huge\.txt is larger than 16 MiB"):
        read_prompts(huge)
