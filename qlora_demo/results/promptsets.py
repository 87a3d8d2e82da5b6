"""A set of prompts, from a file or pasted, and every column's answer to each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..config import GenerationSettings
from ..engine import Engine
from ..errors import DataError
from ..records import AnswerRequest, Column, Message, Progress, Step
from ..rows.formats import check_characters, checked_turns
from ..system.halt import Halt
from .answers import asked, kept

Prompt = str | tuple[Message, ...]
"""A question, or a conversation that ends with one."""
MOST = 1000
"""Prompts in one set."""
_LARGEST = 1 << 24
"""Bytes of their file."""


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file: one a line (.txt), a ``prompt`` column (.csv), ``prompt`` or ``messages`` (.jsonl).  Of
    messages the last answer is left out: a run's own held-out rows are such a file.

    Raises `DataError` naming the file and the line.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"prompts: {path} is larger than {_LARGEST >> 20} MiB; give at most {MOST} prompts")
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"prompts: cannot read {path} ({exc}); give a UTF-8 text, CSV or JSONL file") from exc
    kinds = {".csv": _from_csv, ".jsonl": _from_jsonl}
    return checked(kinds.get(path.suffix.lower(), _from_lines)(text, path.name), path.name)


def checked(prompts: Sequence[Prompt], name: str) -> list[Prompt]:
    """The prompts that are not empty; refused where there are none or too many."""
    stripped = [prompt.strip() if isinstance(prompt, str) else prompt for prompt in prompts]
    found = [prompt for prompt in stripped if prompt]
    if not 1 <= len(found) <= MOST:
        raise DataError(f"prompts: {name} holds {len(found)}; give 1 to {MOST}, one a line")
    for number, prompt in enumerate(found, 1):
        if isinstance(prompt, str):
            check_characters(prompt, f"prompts: {name}, prompt {number}")
    return found


def conversation(system: str, prompt: Prompt) -> tuple[Message, ...]:
    """One prompt, behind a system prompt where there is one and the prompt has none of its own."""
    turns: tuple[Message, ...] = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
    own = not system.strip() or turns[0]["role"] == "system"
    return turns if own else ({"role": "system", "content": system}, *turns)


def ask_all(
    engine: Engine,
    columns: Sequence[Column],
    conversations: Sequence[tuple[Message, ...]],
    settings: GenerationSettings,
    halt: Halt,
) -> Iterator[Step]:
    """Every column's answer to every conversation: ``columns``, ``settings``, ``prompts[].answers.{column}``; a prompt
    that ends several turns is told with them."""
    done: list[dict[str, Any]] = []
    names = [column.name for column in columns]
    head = {"columns": names, "settings": settings.model_dump()}
    for turns in conversations:
        request = AnswerRequest(tuple(columns), dict.fromkeys(names, turns), settings)
        *_, last = (), *engine.answer(request, halt)
        if halt.is_set():
            return
        answers = {answer.column: kept(answer) for answer in last}
        done.append({"system": _system(turns), "prompt": asked(turns), "answers": answers})
        text = f"prompt {len(done)} of {len(conversations)}"
        yield Step(Progress(text, len(done) / len(conversations)), {**head, "prompts": list(done)})


def _system(turns: Sequence[Message]) -> str:
    return next((turn["content"] for turn in turns if turn["role"] == "system"), "")


def _from_lines(text: str, name: str) -> list[Prompt]:
    return list(text.split("\n"))


def _from_csv(text: str, name: str) -> list[Prompt]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if "prompt" not in (rows.fieldnames or ()):
            raise DataError(f"prompts: {name} has the columns {rows.fieldnames}; one must be called prompt")
        return [_from_cells(row, f"prompts: {name}, line {rows.line_num}") for row in rows]
    except csv.Error as exc:
        raise DataError(f"prompts: {name}, line {rows.line_num + 1}: {exc}; write a plain CSV file") from exc


def _from_cells(row: dict[str | Any, Any], where: str) -> str:
    if None in row:
        raise DataError(f"{where}: has more cells than the head; put a prompt that holds a comma in quotes")
    return row["prompt"] or ""


def _from_jsonl(text: str, name: str) -> list[Prompt]:
    lines = enumerate(text.split("\n"), 1)
    return [_from_json(line, f"prompts: {name}, line {at}") for at, line in lines if line.strip()]


def _from_json(line: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
        found = row["prompt"] if "prompt" in row else list(row["messages"])
    except (ValueError, TypeError, LookupError, RecursionError) as exc:
        raise DataError(f'{where}: {exc!r}; write {{"prompt": "..."}}') from exc
    if "prompt" not in row:
        return _asked(found, where)
    if not isinstance(found, str):
        raise DataError(f"{where}: prompt is a {type(found).__name__}; write a text")
    return found


def _asked(turns: list[Any], where: str) -> Prompt:
    """What leads to a conversation's last answer; a question alone is told as text."""
    answered = bool(turns) and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant"
    messages = checked_turns(turns[:-1] if answered else turns, where)
    if not messages or messages[-1]["role"] != "user":
        raise DataError(f"{where}: messages ask nothing; end them with a user turn, and an answer or none")
    return messages[0]["content"] if len(messages) == 1 else tuple(messages)
