"""Any accepted row format -> chat messages -> what the trainer sees.

Accepted columns: ``messages``; ``prompt`` + ``completion`` (text or messages); ``instruction`` [+ ``input``] +
``output`` (alpaca); ``conversations`` with from/value (ShareGPT); ``text`` (every token is trained).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from .. import tickets
from ..catalog import BUNDLED_DATASETS, TICKETS
from ..config import TrainConfig
from ..errors import DataError
from ..records import Message

datasets.disable_progress_bars()

Row = dict[str, Any]

_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_FORMATS = "messages | prompt + completion | instruction + output | conversations | text"
_TICKET_ROWS = {"train": 2000, "test": 100, "hard": 100}


@dataclass(frozen=True)
class Splits:
    """Rows as chat messages (or ``{"text": ...}``): those to train on, and the held-out ones by split."""

    train: list[Row]
    heldout: dict[str, list[Row]]


def load_splits(config: TrainConfig) -> Splits:
    """The rows a config asks for; raises `DataError` that names the file and the line or row."""
    if config.dataset == TICKETS.name:
        return Splits(
            tickets.rows("train", _TICKET_ROWS["train"]),
            {split: tickets.rows(split, _TICKET_ROWS[split]) for split in ("test", "hard")},
        )
    rows = to_messages(read_rows(config.dataset), config.dataset)
    return _hold_out(rows, config)


def read_rows(name: str) -> list[Row]:
    """Raw rows of a file or of a hub data set's first split."""
    path = Path(name).expanduser()
    if path.is_file():
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise DataError(f"dataset: {path} ends in {path.suffix!r}; give one of {', '.join(_READERS)}")
        rows = reader(path)
    elif name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix.lower() in _READERS:
        raise DataError(f"dataset: there is no file {name}; check the path")
    else:
        rows = _read_hub(name)
    if not rows:
        raise DataError(f"dataset: {name} holds no rows; give at least 2")
    return rows


def to_messages(rows: Iterable[Row], name: str) -> list[Row]:
    """Each row as ``{"messages": [...]}``, or unchanged where it is plain ``text``."""
    return [_to_messages(row, f"dataset: {name}, row {number}") for number, row in enumerate(rows, 1)]


def to_prompt_completion(row: Row) -> list[Row]:
    """One training example per assistant turn: the turns before it as prompt, the turn itself as completion."""
    if "text" in row:
        return [row]
    messages = row["messages"]
    return [
        {"prompt": messages[:at], "completion": [message]}
        for at, message in enumerate(messages)
        if message["role"] == "assistant"
    ]


def training_set(rows: Iterable[Row]) -> Dataset:
    """What `SFTTrainer` takes."""
    return Dataset.from_list([example for row in rows for example in to_prompt_completion(row)])


def _hold_out(rows: list[Row], config: TrainConfig) -> Splits:
    if len(rows) < 2:
        raise DataError(f"dataset: {config.dataset} holds {len(rows)} row; give at least 2, one is held out")
    count = min(config.eval_rows, max(1, len(rows) // 10))
    shuffled: list[Row] = Dataset.from_list(rows).shuffle(seed=config.seed).to_list()
    return Splits(shuffled[count:], {"test": shuffled[:count]})


def _to_messages(row: Row, where: str) -> Row:
    if "messages" in row:
        return {"messages": _checked(row["messages"], where)}
    if "conversations" in row:
        return {"messages": _checked(_from_sharegpt(row["conversations"], where), where)}
    if "prompt" in row and "completion" in row:
        turns = _turns(row["prompt"], "user") + _turns(row["completion"], "assistant")
        return {"messages": _checked(turns, where)}
    if "instruction" in row and "output" in row:
        question = "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)
        turns = _turns(question, "user") + _turns(row["output"], "assistant")
        return {"messages": _checked(turns, where)}
    if "text" in row:
        if not isinstance(row["text"], str) or not row["text"].strip():
            raise DataError(f"{where}: text is empty; remove the row or fill it")
        return {"text": row["text"]}
    raise DataError(f"{where}: columns {', '.join(map(str, row)) or '(none)'} are not understood; use {_FORMATS}")


def _turns(value: Any, role: str) -> list[Any]:
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _from_sharegpt(turns: Any, where: str) -> list[Any]:
    if not isinstance(turns, list):
        raise DataError(f"{where}: conversations is {type(turns).__name__}; give a list of from/value turns")
    return [
        {"role": _SHAREGPT_ROLES.get(str(turn.get("from"))), "content": turn.get("value")}
        if isinstance(turn, dict)
        else turn
        for turn in turns
    ]


def _checked(turns: Any, where: str) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: holds no messages; give a list of role/content turns")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or turn.get("role") not in ("system", "user", "assistant"):
            raise DataError(f"{where}, message {number}: role is not system, user or assistant; correct it")
        if not isinstance(turn.get("content"), str) or not turn["content"].strip():
            what = "has no answer" if turn["role"] == "assistant" else f"has no {turn['role']} text"
            raise DataError(f"{where}, message {number}: {what}; remove the row or fill it")
    if turns[-1]["role"] != "assistant":
        raise DataError(f"{where}: has no answer (it ends with {turns[-1]['role']}); add an assistant message")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            rows.append(_row(_parse(line, f"{path}, line {number}"), f"{path}, line {number}"))
    return rows


def _read_json(path: Path) -> list[Row]:
    value = _parse(_text(path), str(path))
    if isinstance(value, dict):
        value = next((rows for rows in value.values() if isinstance(rows, list)), None)
    if not isinstance(value, list):
        raise DataError(f"dataset: {path} is no list of rows; give a JSON list of objects")
    return [_row(row, f"{path}, row {number}") for number, row in enumerate(value, 1)]


def _read_table(load: Callable[[str], Any]) -> Callable[[Path], list[Row]]:
    def read(path: Path) -> list[Row]:
        if not path.stat().st_size:
            return []
        try:
            rows: list[Row] = load(str(path)).to_list()
        except (ValueError, OSError, datasets.exceptions.DatasetsError) as exc:
            cause = " ".join(str(exc.__cause__ or exc).split())
            raise DataError(f"dataset: {path} cannot be read ({cause[:200]}); correct the file") from exc
        return rows

    return read


def _read_hub(name: str) -> list[Row]:
    try:
        loaded: Any = datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as exc:
        raise DataError(
            f"dataset: {name!r} is no bundled data set ({', '.join(BUNDLED_DATASETS)}), no file, and the hub did not "
            f"give it ({type(exc).__name__}); give a file, or a hub id that can be reached"
        ) from exc
    split = loaded["train"] if "train" in loaded else next(iter(loaded.values()))
    return list(split.to_list())


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = path.read_bytes()[: exc.start].count(b"\n") + 1
        raise DataError(f"dataset: {path}, line {line}: not UTF-8 text; save the file as UTF-8") from exc


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise DataError(f"dataset: {where}: not valid JSON ({exc}); correct it") from exc


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"dataset: {where}: is {type(value).__name__}, not an object; give one object per row")
    return value


_READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_table(Dataset.from_csv),
    ".parquet": _read_table(Dataset.from_parquet),
}
