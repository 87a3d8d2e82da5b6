"""Prompt sets: from every accepted file, and every column's answer kept."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_demo.columns import parse_all
from qlora_demo.config import GenerationSettings
from qlora_demo.engine import Engine
from qlora_demo.errors import DataError
from qlora_demo.records import Answer, AnswerRequest, AnswerTiming
from qlora_demo.results.promptsets import ask_all, checked, conversation, read_prompts
from qlora_demo.system.halt import Halt


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "one\n\n two \n"),
        ("p.TXT", "\ufeffone\r\ntwo"),
        ("p.csv", 'id,prompt\n1,one\n2,"two"\n3,\n'),
        (
            "p.jsonl",
            '{"prompt": "one"}\n\n'
            '{"messages": [{"role": "user", "content": "two"}, {"role": "assistant", "content": "x"}]}',
        ),
        ("p.csv", "prompt\r\none\r\ntwo\r\n"),
    ],
)
def test_every_format(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    assert read_prompts(path) == ["one", "two"]


@pytest.fixture
def usual_csv_fields() -> Iterator[None]:
    """The csv module's own limit: reading data raises it for the whole process."""
    before = csv.field_size_limit(1 << 17)
    yield
    csv.field_size_limit(before)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", "p.txt holds 0; give 1 to 1000"),
        ("p.txt", b"x\n" * 1001, "p.txt holds 1001"),
        ("p.txt", b"\xff\xfe\x00", "cannot read .*p.txt"),
        ("p.csv", b"text\nhello\n", r"p.csv has the columns \['text'\]; one must be called prompt"),
        ("p.csv", b"x" * 200_000, "p.csv, line 1: field larger than field limit .*; write a plain CSV file"),
        ("p.jsonl", b'{"prompt": "a"}\n{oops', "p.jsonl, line 2"),
        ("p.jsonl", b'{"prompt": 3}', "p.jsonl, line 1: prompt is a int; write a text"),
        ("p.jsonl", b'"text"', "p.jsonl, line 1"),
        ("p.csv", b'prompt\n"one\ntwo\n', "p.csv, line 2: unexpected end of data; write a plain CSV file"),
        ("p.csv", b'prompt\n"one\n"two"\n', "p.csv, line 2: ',' expected after '\"'; write a plain CSV file"),
        (
            "p.csv",
            b"prompt\none, two\n",
            "p.csv, line 2: has more cells than the head; put a prompt that holds a comma",
        ),
        ("p.jsonl", b'{"messages": []}', "p.jsonl, line 1: messages ask nothing; end them with a user turn"),
        ("p.jsonl", b'{"messages": [{"role": "assistant", "content": "x"}]}', "p.jsonl, line 1: messages ask nothing"),
        ("p.jsonl", b'{"messages": [{"role": "tool", "content": "x"}]}', "p.jsonl, line 1, message 1: role is not"),
        ("p.jsonl", b"[" * 100_000, "p.jsonl, line 1"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(
    tmp_path: Path, name: str, content: bytes, message: str, usual_csv_fields: None
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompts(path)


def test_only_a_line_end_parts_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("one\u2028and\x0cmore\r\ntwo\x85\x1ethree\n", "utf-8")
    assert read_prompts(path) == ["one\u2028and\x0cmore", "two\x85\x1ethree"]


def test_a_run_s_held_out_rows_are_asked_as_they_stand_but_for_the_answer(tmp_path: Path) -> None:
    system, first, answer, last = (
        {"role": role, "content": text}
        for role, text in (("system", "be brief"), ("user", "one"), ("assistant", "x"), ("user", "and then?"))
    )
    rows = [[system, first, answer, last, answer], [first, answer, last], [system, first, answer], [first]]
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(json.dumps({"messages": row}) for row in rows), "utf-8")
    prompts = read_prompts(path)
    assert [conversation("usual", prompt) for prompt in prompts] == [
        (system, first, answer, last),
        ({"role": "system", "content": "usual"}, first, answer, last),
        (system, first),
        ({"role": "system", "content": "usual"}, first),
    ]
    assert [conversation("", prompt) for prompt in prompts][1:] == [(first, answer, last), (system, first), (first,)]


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*nothing\.txt"):
        read_prompts(tmp_path / "nothing.txt")


def test_what_the_box_holds_is_checked_alike() -> None:
    assert checked([" a ", ""], "the box") == ["a"]
    with pytest.raises(DataError, match="the box holds 0"):
        checked([""], "the box")


class Echo:
    """Answers with what it was asked; the second column fails."""

    def answer(self, request: AnswerRequest, halt: Halt) -> Iterator[tuple[Answer, ...]]:
        first, second = request.columns
        text = request.conversations[first.name][-1]["content"]
        yield (Answer(first.name),)
        yield (
            Answer(first.name, text, (1,), AnswerTiming(3, 1, 0.5, 0.5), "stop"),
            Answer(second.name, error="failed"),
        )


def test_every_column_answers_every_prompt(engine: Engine) -> None:
    columns = parse_all(["base", "adapter"], "R")
    asked = [conversation("be brief", "one"), conversation(" ", "two")]
    *_, last = ask_all(engine, columns, asked, GenerationSettings(), Halt())
    assert last.progress.fraction == 1.0
    assert [row["prompt"] for row in last.result["prompts"]] == ["one", "two"]
    first = last.result["prompts"][0]["answers"]
    assert (first["base"]["text"], first["base"]["ttft_seconds"], first["adapter"]["error"]) == ("one", 0.5, "failed")
    assert [row["system"] for row in last.result["prompts"]] == ["be brief", ""]


def test_a_prompt_that_ends_a_conversation_is_told_with_it(engine: Engine) -> None:
    turns = [("system", "be brief"), ("user", "one"), ("assistant", "1"), ("user", "and in French?")]
    asked = [tuple({"role": role, "content": text} for role, text in turns)]
    *_, last = ask_all(engine, parse_all(["base", "adapter"], "R"), asked, GenerationSettings(), Halt())
    [row] = last.result["prompts"]
    assert (row["system"], row["prompt"]) == ("be brief", "user: one\n\nassistant: 1\n\nuser: and in French?")


def test_a_stop_keeps_only_whole_prompts(engine: Engine) -> None:
    halt = Halt()
    asked = [conversation("", text) for text in ("one", "two", "three")]
    found = []
    for step in ask_all(engine, parse_all(["base", "adapter"], "R"), asked, GenerationSettings(), halt):
        found.append(step.result["prompts"])
        halt.set()
    assert [len(prompts) for prompts in found] == [1]


@pytest.fixture
def engine() -> Engine:
    return Echo()  # type: ignore[return-value]
