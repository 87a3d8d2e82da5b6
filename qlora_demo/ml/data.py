"""The rows a config asks for: read, told apart, split, and as the trainer takes them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from ..catalog import BUNDLED_DATASETS, TICKETS
from ..config import LossOn, TrainConfig, column_mapping
from ..errors import DataError, one_line
from ..hub import is_repo_id
from ..rows import tickets
from ..rows.files import FoundRow, is_data_file, iter_file
from ..rows.formats import Row, to_messages

datasets.disable_progress_bars()

_TICKET_ROWS = {"train": 2000, "test": 100, "hard": 100}


@dataclass(frozen=True)
class Splits:
    """Rows as chat messages (or ``{"text": ...}``): those to train on, and the held-out ones by split, of which no copy
    is trained on."""

    train: list[Row]
    heldout: dict[str, list[Row]]


def load_splits(config: TrainConfig) -> Splits:
    """The rows a config asks for; raises `DataError` that names the file and the line or row."""
    if config.dataset == TICKETS.name:
        return bundled_splits()
    rows: list[Row] = []
    for found in iter_rows(config):
        rows.append(usable(found, config, rows[0] if rows else None))
    if not rows:
        raise DataError(f"dataset: {config.dataset} holds no rows; give at least 2")
    if len(rows) < 2:
        raise DataError(f"dataset: {config.dataset} holds {len(rows)} row; give at least 2, one is held out")
    kept = heldout_places(len(rows), config)
    train = [rows[at] for at in trained_places([row_digest(row) for row in rows], kept)]
    if not train:
        raise DataError(f"dataset: {config.dataset} holds only copies of what is held out; give at least 2 other rows")
    return Splits(train, {"test": [rows[at] for at in sorted(kept)]})


def row_digest(row: Row) -> int:
    """64 bits that equal rows share."""
    text = json.dumps(row, sort_keys=True).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def rows_digest(splits: Splits) -> str:
    """Sixteen hex digits over all rows and how they are split."""
    seen = hashlib.blake2b(digest_size=8)
    for name, rows in [("train", splits.train), *splits.heldout.items()]:
        seen.update(name.encode())
        for row in rows:
            seen.update(json.dumps(row).encode())
    return seen.hexdigest()


def bundled_splits() -> Splits:
    """The bundled task, whose held-out splits share nothing with its training rows."""
    made = {split: tickets.rows(split, count) for split, count in _TICKET_ROWS.items()}  # type: ignore[arg-type]
    return Splits(made["train"], {"test": made["test"], "hard": made["hard"]})


def iter_rows(config: TrainConfig) -> Iterator[FoundRow]:
    """Raw rows of a file or of a hub data set's split, one at a time."""
    name = config.dataset
    path = Path(name).expanduser()
    if path.is_file():
        yield from iter_file(path)
    elif name.startswith((".", "/", "~")) or name.count("/") > 1 or is_data_file(name):
        raise DataError(f"dataset: there is no file {name}; check the path")
    else:
        for number, row in enumerate(_read_hub(config), 1):
            yield FoundRow(f"{name}, row {number}", row)


def usable(found: FoundRow, config: TrainConfig, first: Row | None = None) -> Row:
    """A row as messages, or text; raises `DataError` with its place where it cannot be used, or is of the other kind
    than the ``first`` row, where there is one."""
    where = f"dataset: {found.where}"
    if found.problem:
        raise DataError(f"{where}: {found.problem}")
    row = to_messages(found.row, column_mapping(config.columns), where)
    if first and row.keys() != first.keys():
        kinds = ("text", "messages") if "text" in row else ("messages", "text")
        raise DataError(f"{where}: is {kinds[0]} and the first row is {kinds[1]}; give each kind a data set of its own")
    return row


def heldout_places(count: int, config: TrainConfig) -> frozenset[int]:
    """Positions of the rows that are held out: a tenth, at most `eval_rows`, drawn with the seed."""
    held = min(config.eval_rows, max(1, count // 10))
    return frozenset(random.Random(config.seed).sample(range(count), held))


def trained_places(digests: Sequence[int], held: frozenset[int]) -> list[int]:
    """Positions of the rows that are trained on, by all rows' digests: none that is held out, and no copy of one."""
    unseen = {digests[at] for at in held}
    return [at for at, digest in enumerate(digests) if digest not in unseen]


def to_prompt_completion(row: Row) -> list[Row]:
    """One training example per assistant turn: the turns before it as prompt, the turn itself as completion.  A turn
    that opens the conversation is none: no template renders an empty prompt."""
    if "text" in row:
        return [row]
    messages = row["messages"]
    return [
        {"prompt": messages[:at], "completion": [message]}
        for at, message in enumerate(messages)
        if at and message["role"] == "assistant"
    ]


def training_set(rows: Iterable[Row], loss_on: LossOn) -> Dataset:
    """What `SFTTrainer` takes; it trains completions only, what a template marks, or whole rows."""
    if loss_on != "completion":
        return Dataset.from_list(list(rows))
    examples = [example for row in rows for example in to_prompt_completion(row)]
    if not examples:
        raise DataError("dataset: all rows to train on, or all held-out ones, are an answer alone; add what it answers")
    return Dataset.from_list(examples)


def _read_hub(config: TrainConfig) -> Iterable[Any]:
    name = config.dataset
    try:
        _check_hub_id(name)
        loaded: Any = datasets.load_dataset(name, config.dataset_config or None, split=config.dataset_split or None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as exc:
        raise DataError(
            f"dataset: {name!r} is no bundled data set ({', '.join(BUNDLED_DATASETS)}), no file, and the hub did not "
            f"give it ({type(exc).__name__}: {one_line(exc)}); "
            "give a file, or a hub id, configuration and split that can be reached"
        ) from exc
    if config.dataset_split:
        split: Iterable[Any] = loaded
        return split
    rows: Iterable[Any] = loaded["train"] if "train" in loaded else next(iter(loaded.values()))
    return rows


def _check_hub_id(name: str) -> None:
    """The library would also take a folder's name, or that of one of its readers, which reads what lies around here."""
    if not is_repo_id(name) or name in _PACKAGED_DATASETS_MODULES or Path(name).exists():
        raise ValueError(f"{name!r} is no data set's id")
