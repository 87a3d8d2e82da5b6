"""Every accepted shape of a row comes out as the same messages; what cannot is refused with its place."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_demo.errors import DataError
from qlora_demo.rows.formats import detect, out_of_order, to_messages

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


@pytest.mark.parametrize("row", SAME, ids=lambda row: " ".join(row))
def test_each_format_becomes_the_same_messages(row: dict[str, Any]) -> None:
    assert to_messages(row, {}, "rows") == {"messages": [QUESTION, ANSWER]}


def test_an_alpaca_input_joins_the_instruction() -> None:
    row = to_messages({"instruction": "sum up", "input": "long text", "output": "a"}, {}, "rows")
    assert row["messages"][0]["content"] == "sum up\n\nlong text"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "context": "c", "response": "a"},
        {"prompt": "q", "input": "c", "completion": "a"},
        {"question": "q", "input": "c", "output": "a"},
    ],
    ids=lambda row: " ".join(row),
)
def test_a_context_joins_a_prompt_whatever_the_prompt_is_called(row: dict[str, Any]) -> None:
    joined = {"role": "user", "content": "q\n\nc"}
    assert to_messages(row, {}, "rows") == {"messages": [joined, ANSWER]}


def test_a_column_that_is_the_prompt_by_hand_is_not_its_context_too() -> None:
    row = {"instruction": "x", "input": "q", "output": "a"}
    assert to_messages(row, {"prompt": "input"}, "rows") == {"messages": [QUESTION, ANSWER]}


def test_the_rendered_prompt_of_an_alpaca_row_which_holds_its_answer_is_not_read() -> None:
    row = {"instruction": "q", "input": "", "output": "a", "prompt": "### Instruction: q ### Output: a"}
    assert to_messages(row, {}, "rows") == {"messages": [QUESTION, ANSWER]}


def test_a_history_named_by_hand_is_read() -> None:
    row = {"prompt": "q", "history": "c", "response": "a"}
    assert to_messages(row, {"context": "history"}, "rows")["messages"][0]["content"] == "q\n\nc"


def test_marks_that_say_nothing_are_no_reason_to_refuse_a_row() -> None:
    """Parquet fills what only some rows have, and ShareGPT's weights are of every turn."""
    turns = [
        {"from": "human", "value": "q", "weight": 0, "tool_calls": None},
        {"from": "gpt", "value": "a", "weight": 1.0, "tool_calls": [], "reasoning_content": ""},
    ]
    assert to_messages({"conversations": turns, "tools": "[]"}, {}, "rows") == {"messages": [QUESTION, ANSWER]}


def test_plain_text_is_kept_whole() -> None:
    assert to_messages({"text": "all of it"}, {}, "rows") == {"text": "all of it"}


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
        (
            {"prompt": [QUESTION], "input": "c", "completion": "a"},
            r"row 1: context \(column 'input'\) has no place beside a list of turns; write it into a turn, or",
        ),
        ({"a": 1, "b": 2}, "row 1: columns a, b are not understood; use messages"),
        (
            {"role": "user", "content": "q"},
            r"row 1: is one turn \(user\); give a conversation's turns as one row's mess",
        ),
        (
            {"messages": [QUESTION, ANSWER | {"tool_calls": [{"function": {"name": "f"}}]}]},
            r"row 1, message 2: tool_calls is not trained on \(it is list\); write it into a turn, or leave it out",
        ),
        (
            {"messages": [QUESTION, ANSWER | {"reasoning_content": "hm"}]},
            r"row 1, message 2: reasoning_content is not trained on \(it is str\)",
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "thinking": "hm"}]},
            "row 1, message 2: thinking is not trained on",
        ),
        ({"messages": [QUESTION, ANSWER], "tools": [{"name": "f"}]}, "row 1: tools is not trained on"),
        ({"instruction": "q", "output": "a", "history": [["b", "c"]]}, "row 1: history is not trained on"),
        (
            {"messages": [QUESTION, ANSWER | {"weight": 0}, QUESTION, ANSWER | {"weight": 1}]},
            "row 1, message 2: weight is 0, but all answers are trained alike; leave weight or row out",
        ),
        (
            {"prompt": "q", "completion": "a", "label": False},
            "row 1: label is False, but all answers are trained alike; leave label or row out",
        ),
    ],
)
def test_a_bad_row_is_named_with_its_number(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_messages(row, {}, "rows.jsonl, row 1")


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
        {"system_prompt": "s", "question": "q", "response": "a"},
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
