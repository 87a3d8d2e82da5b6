"""Every accepted format comes out as the same messages; every bad row is named with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qlora_demo.config import TrainConfig
from qlora_demo.errors import DataError
from qlora_demo.ml import data
from qlora_demo.row_files import iter_file
from qlora_demo.row_formats import detect, out_of_order, to_messages

SYSTEM = {"role": "system", "content": "s"}
QUESTION = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
SAME = [
    {"messages": [QUESTION, ANSWER]},
    {"prompt": "q", "completion": "a"},
    {"prompt": [QUESTION], "completion": [ANSWER]},
    {"instruction": "q", "input": "", "output": "a"},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"Question": "q", "Answer": "a"},
    {"question": "q", "context": None, "response": "a", "id": 7},
]


def read(name: str) -> list[dict[str, Any]]:
    """The raw rows of a data set, with the first problem raised."""
    found = list(data.iter_rows(TrainConfig(dataset=name)))
    for one in found:
        if one.problem:
            raise DataError(f"{one.where}: {one.problem}")
    if not found:
        data.load_splits(TrainConfig(dataset=name))
    return [one.row for one in found]


@pytest.mark.parametrize("row", SAME, ids=lambda row: " ".join(row))
def test_each_format_becomes_the_same_messages(row: dict[str, Any]) -> None:
    assert to_messages(row, {}, "rows") == {"messages": [QUESTION, ANSWER]}


def test_an_alpaca_input_joins_the_instruction() -> None:
    row = to_messages({"instruction": "sum up", "input": "long text", "output": "a"}, {}, "rows")
    assert row["messages"][0]["content"] == "sum up\n\nlong text"


def test_plain_text_is_kept_whole() -> None:
    assert to_messages({"text": "all of it"}, {}, "rows") == {"text": "all of it"}


def test_each_assistant_turn_is_one_example_with_the_turns_before_it_as_prompt() -> None:
    more = {"role": "user", "content": "again"}
    examples = data.to_prompt_completion({"messages": [QUESTION, ANSWER, more, ANSWER]})
    assert [len(example["prompt"]) for example in examples] == [1, 3]
    assert all(example["completion"] == [ANSWER] for example in examples)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "row 1: holds no messages"),
        ({"messages": "hello"}, "row 1: holds no messages"),
        ({"prompt": "q", "completion": "a", "messages": 3}, "row 1: holds no messages"),
        ({"messages": [QUESTION]}, r"row 1: has no answer \(it ends with user\)"),
        ({"messages": [QUESTION, {"role": "assistant", "content": " "}]}, "row 1, message 2: has no answer"),
        ({"messages": [{"role": "robot", "content": "q"}, ANSWER]}, "row 1, message 1: role is not"),
        ({"prompt": "q", "completion": None}, "row 1, message 2: has no answer"),
        ({"conversations": "q"}, "row 1: holds no messages"),
        ({"conversations": [{"value": "q"}]}, "row 1, message 1: role is not"),
        ({"text": ""}, "row 1: text is empty"),
        ({"prompt": "q", "completion": 7}, r"row 1, message 2: the answer is no text \(it is int\); write it as text"),
        (
            {"messages": [{"role": "user", "content": ["q"]}, ANSWER]},
            r"message 1: the user text is no text \(it is list",
        ),
        ({"Question": {"de": "q"}, "answer": "a"}, r"row 1: prompt \(column 'Question'\) is no text \(it is dict\)"),
        (
            {"instruction": "q", "input": 3, "output": "a"},
            r"context \(column 'input'\) is no text \(it is int\); write",
        ),
        ({"prompt": "q", "completion": "a", "system": False}, r"row 1: system \(column 'system'\) is no text"),
        ({"messages": [QUESTION, ANSWER], "system": ["s"]}, r"row 1: system \(column 'system'\) is no text"),
        ({"messages": [QUESTION, ANSWER], "system": "\ud800"}, "row 1: system holds half a character"),
        (
            {"instruction": [QUESTION], "context": "c", "output": "a"},
            r"row 1: context \(column 'context'\) has no place beside a list of turns; write it into a turn, or",
        ),
        ({"a": 1, "b": 2}, "row 1: columns a, b are not understood; use messages"),
    ],
)
def test_a_bad_row_is_named_with_its_number(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_messages(row, {}, "rows.jsonl, row 1")


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


def test_the_bundled_task_has_both_held_out_splits() -> None:
    splits = data.load_splits(TrainConfig())
    assert {name: len(rows) for name, rows in splits.heldout.items()} == {"test": 100, "hard": 100}


@pytest.mark.parametrize(
    ("mapping", "row", "expected"),
    [
        (
            {"prompt": "frage", "completion": "antwort"},
            {"frage": "q", "antwort": "a"},
            {"messages": [QUESTION, ANSWER]},
        ),
        ({"completion": "b"}, {"prompt": "q", "completion": "x", "b": "a"}, {"messages": [QUESTION, ANSWER]}),
        ({"text": "prompt"}, {"prompt": "q", "completion": "a"}, {"text": "q"}),
        (
            {"prompt": "p", "completion": "c"},
            {"messages": [ANSWER], "p": "q", "c": "a"},
            {"messages": [QUESTION, ANSWER]},
        ),
    ],
)
def test_what_is_said_by_hand_goes_before_what_was_detected(
    mapping: dict[str, str], row: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert to_messages(row, mapping, "rows") == expected


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match="has no column 'frage' \\(it has a, b\\); correct columns"):
        to_messages({"a": "q", "b": "a"}, {"prompt": "frage", "completion": "b"}, "rows")


def test_a_context_stands_behind_the_question_and_a_system_prompt_before_it() -> None:
    row = {"question": "q", "context": "passage", "answer": "a", "system": "be brief"}
    messages = to_messages(row, {}, "rows")["messages"]
    assert [(m["role"], m["content"]) for m in messages] == [
        ("system", "be brief"),
        ("user", "q\n\npassage"),
        ("assistant", "a"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [QUESTION, ANSWER], "System": "s"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
        {"messages": [SYSTEM, QUESTION, ANSWER], "system": "another"},
        {"conversation": [{"from": "system", "value": "s"}, QUESTION, ANSWER], "system": "another"},
        {"prompt": [QUESTION], "completion": "a", "system": "s"},
        {"prompt": [SYSTEM, QUESTION], "completion": [ANSWER], "system": "another"},
        {"messages": [SYSTEM, QUESTION, ANSWER], "system": None},
        {"prompt": [SYSTEM, QUESTION], "completion": "a", "system": " "},
    ],
)
def test_a_system_column_opens_turns_that_have_no_system_turn_of_their_own(row: dict[str, Any]) -> None:
    assert to_messages(row, {}, "rows") == {"messages": [SYSTEM, QUESTION, ANSWER]}


def test_a_system_column_named_by_hand_opens_the_turns() -> None:
    row = {"talk": [QUESTION, ANSWER], "rules": "s"}
    assert to_messages(row, {"messages": "talk", "system": "rules"}, "rows") == {"messages": [SYSTEM, QUESTION, ANSWER]}


def test_a_context_named_by_hand_has_no_place_beside_messages() -> None:
    row = {"messages": [QUESTION, ANSWER], "passage": "p"}
    with pytest.raises(DataError, match=r"rows: context \(column 'passage'\) has no place beside a list of turns"):
        to_messages(row, {"context": "passage"}, "rows")
    assert to_messages(row | {"passage": " "}, {"context": "passage"}, "rows") == {"messages": [QUESTION, ANSWER]}


def test_a_context_that_belongs_to_other_columns_than_the_chosen_messages_is_left_out() -> None:
    row = {"talk": [QUESTION, ANSWER], "question": "x", "answer": "y", "context": "z"}
    assert to_messages(row, {"messages": "talk"}, "rows") == {"messages": [QUESTION, ANSWER]}


def test_columns_that_mean_nothing_are_not_guessed_at() -> None:
    assert detect(["a", "b"]) == {}
    assert detect(["Instruction", "Input", "Output"]) == {
        "prompt": "Instruction",
        "completion": "Output",
        "context": "Input",
    }


def test_turns_that_do_not_take_turns_are_seen() -> None:
    system = {"role": "system", "content": "s"}
    assert not out_of_order([system, QUESTION, ANSWER, QUESTION, ANSWER])
    assert (
        out_of_order([ANSWER])
        and out_of_order([QUESTION, QUESTION, ANSWER])
        and out_of_order([QUESTION, system, ANSWER])
    )


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
