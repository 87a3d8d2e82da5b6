"""Every kind of file gives the same rows; they are split, told apart, and named with their place where they are bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qlora_demo.config import TrainConfig
from qlora_demo.errors import DataError
from qlora_demo.ml import data
from qlora_demo.rows.files import iter_file

QUESTION = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
TALK = {"messages": [QUESTION, ANSWER]}
PAIR = {"prompt": "q", "completion": "a"}


def read(name: str) -> list[dict[str, Any]]:
    """The raw rows of a data set, with the first problem raised."""
    found = list(data.iter_rows(TrainConfig(dataset=name)))
    for one in found:
        if one.problem:
            raise DataError(f"{one.where}: {one.problem}")
    if not found:
        data.load_splits(TrainConfig(dataset=name))
    return [one.row for one in found]


def test_each_assistant_turn_is_one_example_with_the_turns_before_it_as_prompt() -> None:
    more = {"role": "user", "content": "again"}
    examples = data.to_prompt_completion({"messages": [QUESTION, ANSWER, more, ANSWER]})
    assert [len(example["prompt"]) for example in examples] == [1, 3]
    assert all(example["completion"] == [ANSWER] for example in examples)


def test_an_answer_to_nothing_is_no_example() -> None:
    opened = {"messages": [ANSWER, QUESTION, ANSWER]}
    (example,) = data.training_set([opened], "completion")
    assert (example["prompt"], example["completion"]) == ([ANSWER, QUESTION], [ANSWER])
    with pytest.raises(DataError, match="are an answer alone; add what it answers"):
        data.training_set([{"messages": [ANSWER]}], "completion")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_file_type_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = [{"prompt": f"q{n}", "completion": f"ä\u2028 {n}"} for n in range(3)]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", "utf-8")
    elif suffix == ".json":
        path.write_text(json.dumps(rows), "utf-8")
    elif suffix in (".csv", ".tsv"):
        pd.DataFrame(rows).to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
    else:
        pd.DataFrame(rows).to_parquet(path)
    assert read(str(path)) == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "rows.jsonl",
            b'{"text": "a"}\n{"text": \n',
            r"line 2: not valid JSON \(Expecting value, character 11\)",
        ),
        ("rows.jsonl", b'{"text": "a"}\n[1]\n', r"rows\.jsonl, line 2: is list, not an object"),
        ("rows.jsonl", b'{"text": "a"}\n\xff\xfe\n', r"rows\.jsonl, line 2: not UTF-8"),
        ("rows.jsonl", b"", "holds no rows"),
        ("rows.json", b'"text"', "is no list of rows"),
        ("rows.json", b"[" * 100_000, "not valid JSON"),
        ("rows.csv", b"", "holds no rows"),
        ("rows.csv", b"a,b\n1,2\n1,2,3,4\n", r"rows\.csv, line 3: has more or fewer cells"),
        ("rows.csv", b'a,b\n1,"2\n', "cannot be read"),
        ("rows.csv", b"a,b,,\n1,2,,\n1,2,3\n", r"rows\.csv, line 3: has more or fewer cells"),
        ("rows.csv", b"prompt,completion,completion\nq,good,bad\n", r"rows\.csv has two columns 'completion'"),
        ("rows.tsv", b"a\tb\n1\t\xff\n", r"rows\.tsv, line 2: not UTF-8 text; save the file as UTF-8"),
        ("rows.csv", b"a,\xff\n1,2\n", r"rows\.csv, line 1: not UTF-8 text; save the file as UTF-8"),
        ("rows.parquet", b"PAR1 not really", "cannot be read"),
        ("rows.xlsx", b"x", r"ends in '\.xlsx'; give one of \.jsonl"),
    ],
)
def test_a_bad_file_is_named_with_the_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(str(path))


def test_a_bad_byte_costs_its_own_row_of_a_table_only(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'\xef\xbb\xbfprompt,completion\rq1,a1\r"q\r\xff",a2\r\rq3,\xc3\xa4\r')
    found = [(one.where.rpartition(", ")[2], one.row, one.problem) for one in iter_file(path)]
    assert found == [
        ("line 2", {"prompt": "q1", "completion": "a1"}, ""),
        ("line 4", {}, "not UTF-8 text; save the file as UTF-8"),
        ("line 6", {"prompt": "q3", "completion": "ä"}, ""),
    ]


@pytest.mark.parametrize("name", ["missing.jsonl", "/nowhere/rows.csv", "a/b/c"])
def test_a_missing_file_is_named(name: str) -> None:
    with pytest.raises(DataError, match=f"there is no file {name}"):
        read(name)


def test_a_hub_id_without_a_hub_says_what_was_tried() -> None:
    with pytest.raises(DataError, match=r"'nobody/rows' is no bundled data set \(tickets\), no file, and the hub"):
        read("nobody/rows")


def test_held_out_rows_are_not_trained_on(chat_file: Path) -> None:
    splits = data.load_splits(TrainConfig(dataset=str(chat_file), eval_rows=4))
    assert len(splits.heldout["test"]) == 4
    assert len(splits.train) == 36
    assert all(row not in splits.train for row in splits.heldout["test"])


def test_one_row_is_too_few(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"text": "a"}', "utf-8")
    with pytest.raises(DataError, match="holds 1 row; give at least 2"):
        data.load_splits(TrainConfig(dataset=str(path)))


@pytest.mark.parametrize(
    ("odd", "at", "message"),
    [
        ({"text": "t"}, 2, "line 3: is text and the first row is messages; give each kind a data set of its own"),
        ({"text": "t"}, 0, "line 2: is messages and the first row is text; give each kind a data set of its own"),
    ],
)
def test_text_among_conversations_is_named(tmp_path: Path, odd: dict[str, Any], at: int, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [odd if place == at else TALK for place in range(4)]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with pytest.raises(DataError, match=message):
        data.load_splits(TrainConfig(dataset=str(path)))


def test_a_json_file_of_one_conversation_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(TALK), "utf-8")
    assert read(str(path)) == [TALK]


@pytest.mark.parametrize(
    "beside", [{"conversations": [TALK]}, {"content": "of 2024", "rows": [PAIR]}, {"text": [PAIR]}]
)
def test_a_list_of_rows_is_no_row_whatever_it_is_called(tmp_path: Path, beside: dict[str, Any]) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(beside), "utf-8")
    [row] = read(str(path))
    assert row in (TALK, PAIR)


def test_a_conversation_with_turns_of_another_name_and_tools_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    path.write_text(json.dumps({"conversations": turns, "sources": [{"page": 1}]}), "utf-8")
    assert len(read(str(path))) == 1


def test_the_rows_of_a_json_file_are_its_only_list_of_objects(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"tags": ["a"], "data": [PAIR]}), "utf-8")
    assert read(str(path)) == [PAIR]
    path.write_text(json.dumps({"train": [PAIR], "test": [PAIR]}), "utf-8")
    with pytest.raises(DataError, match=r"rows\.json holds 2 lists of rows \(train, test\); give a file with one"):
        read(str(path))


def test_the_bundled_task_has_both_held_out_splits() -> None:
    splits = data.load_splits(TrainConfig())
    assert {name: len(rows) for name, rows in splits.heldout.items()} == {"test": 100, "hard": 100}


def test_a_hub_data_set_is_read_with_its_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the library's loader: what it is asked for, and which split is taken where none is named."""
    rows = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(4)]
    asked: list[tuple[Any, ...]] = []

    def load(name: str, config: str | None, split: str | None) -> Any:
        asked.append((name, config, split))
        return rows if split else {"test": rows[:1], "train": rows}

    monkeypatch.setattr("qlora_demo.ml.data.datasets.load_dataset", load)
    named = TrainConfig(dataset="someone/rows", dataset_config="main", dataset_split="train[:4]")
    for config in (named, TrainConfig(dataset="someone/rows")):
        splits = data.load_splits(config)
        assert (len(splits.train), len(splits.heldout["test"])) == (3, 1)
    assert asked == [("someone/rows", "main", "train[:4]"), ("someone/rows", None, None)]
    assert next(iter(data.iter_rows(named))).where == "someone/rows, row 1"
