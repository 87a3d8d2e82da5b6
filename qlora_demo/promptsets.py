"""A set of prompts, from a file or pasted, and every column's answer to each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .answers import kept
from .config import GenerationSettings
from .errors import DataError
from .halt import Halt
from .records import AnswerRequest, Column, Message, Progress, Step
from .row_formats import check_characters
from .services import Engine

MOST = 1000
"""Prompts in one set."""
_LARGEST = 1 << 24
"""Bytes of their file."""


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: one a line (.txt), a ``prompt`` column (.csv), ``prompt`` or ``messages`` (.jsonl).

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


def checked(prompts: Sequence[str], name: str) -> list[str]:
    """The prompts that are not empty; refused where there are none or too many."""
    found = [prompt.strip() for prompt in prompts if prompt.strip()]
    if not 1 <= len(found) <= MOST:
        raise DataError(f"prompts: {name} holds {len(found)}; give 1 to {MOST}, one a line")
    for number, prompt in enumerate(found, 1):
        check_characters(prompt, f"prompts: {name}, prompt {number}")
    return found


def conversation(system: str, prompt: str) -> tuple[Message, ...]:
    """One prompt, behind a system prompt where there is one."""
    opening = ({"role": "system", "content": system},) if system.strip() else ()
    return (*opening, {"role": "user", "content": prompt})


def ask_all(
    engine: Engine,
    columns: Sequence[Column],
    conversations: Sequence[tuple[Message, ...]],
    settings: GenerationSettings,
    halt: Halt,
) -> Iterator[Step]:
    """Every column's answer to every conversation: ``columns``, ``settings``, ``prompts[].answers.{column}``."""
    done: list[dict[str, Any]] = []
    names = [column.name for column in columns]
    head = {"columns": names, "settings": settings.model_dump()}
    for turns in conversations:
        asked = AnswerRequest(tuple(columns), dict.fromkeys(names, turns), settings)
        *_, last = (), *engine.answer(asked, halt)
        if halt.is_set():
            return
        done.append({"prompt": turns[-1]["content"], "answers": {answer.column: kept(answer) for answer in last}})
        text = f"prompt {len(done)} of {len(conversations)}"
        yield Step(Progress(text, len(done) / len(conversations)), {**head, "prompts": list(done)})


def _from_lines(text: str, name: str) -> list[str]:
    return text.splitlines()


def _from_csv(text: str, name: str) -> list[str]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if "prompt" not in (rows.fieldnames or ()):
            raise DataError(f"prompts: {name} has the columns {rows.fieldnames}; one must be called prompt")
        return [row["prompt"] or "" for row in rows]
    except csv.Error as exc:
        raise DataError(f"prompts: {name}, line {rows.line_num}: {exc}; write a plain CSV file") from exc


def _from_jsonl(text: str, name: str) -> list[str]:
    return [_from_json(line, f"{name}, line {at}") for at, line in enumerate(text.split("\n"), 1) if line.strip()]


def _from_json(line: str, where: str) -> str:
    try:
        row = json.loads(line)
        found = row["prompt"] if "prompt" in row else _last_user(row["messages"])
    except (ValueError, TypeError, LookupError, RecursionError) as exc:
        raise DataError(f'prompts: {where}: {exc!r}; write {{"prompt": "..."}}') from exc
    if not isinstance(found, str):
        raise DataError(f"prompts: {where}: prompt is a {type(found).__name__}; write a text")
    return found


def _last_user(messages: Any) -> Any:
    return [message["content"] for message in messages if message["role"] == "user"][-1]
