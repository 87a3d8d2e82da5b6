"""What became of runs: notes and tags, figures side by side, and LoRA against QLoRA as a pair."""

from __future__ import annotations

import json
import secrets
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from ..errors import ConfigError
from ..jobs import read_result
from ..records import TrainMetrics
from ..runs import Run, RunStore
from ..system.disk import read_object, write_atomically
from ..units import duration, memory
from .tables import Table, score_told

PAIR_SCORE_ROWS = 16
"""Held-out rows that each run of a pair answers at its end, for the task's score."""
_LONGEST_NOTE, _LONGEST_TAGS = 2000, 200


@dataclass(frozen=True)
class RunNote:
    """What a person wrote about a run."""

    text: str = ""
    tags: tuple[str, ...] = ()


def read_note(run: Run) -> RunNote:
    """A run's note; empty where there is none that can be read."""
    found = read_object(run.path / "note.json")
    try:
        return RunNote(_plain(str(found["text"])), tuple(_plain(str(tag)) for tag in found["tags"]))
    except (KeyError, TypeError):
        return RunNote()


def write_note(run: Run, text: str, tags: str) -> RunNote:
    """Replace a run's note; tags are separated by commas."""
    if len(text) > _LONGEST_NOTE or len(tags) > _LONGEST_TAGS:
        raise ConfigError("note", f"{len(text)} characters are too many; write at most {_LONGEST_NOTE}")
    text, tags = _plain(text).strip(), _plain(tags)
    note = RunNote(text, tuple(dict.fromkeys(filter(None, (tag.strip() for tag in tags.split(","))))))
    write_atomically(run.path / "note.json", json.dumps(asdict(note), ensure_ascii=False))
    return note


def _plain(text: str) -> str:
    """Text that can be stored and sent: half of a surrogate pair is no character."""
    return text.encode("utf-8", "replace").decode()


def called(source: str) -> str:
    """A model or data set as people call it: of a path on this machine the last part."""
    path = Path(source)
    return path.name if path.is_absolute() or source.startswith(".") else source


def stamps(run: Run) -> list[int]:
    """Changes when the note or the evaluation does; costs no reading."""
    files = (run.path / "note.json", run.path / "results" / "evaluation.json")
    return [path.stat().st_mtime_ns if path.exists() else 0 for path in files]


def pair_of(config: TrainConfig, recomputes: bool) -> tuple[TrainConfig, TrainConfig]:
    """The same config on a 4-bit and on a 16-bit base; both answer held-out rows at their end.  ``recomputes``: whether
    the larger needs its activations recomputed, for then the smaller does the same: they are to be compared."""
    same: dict[str, Any] = {
        "score_rows": max(config.score_rows, PAIR_SCORE_ROWS),
        "gradient_checkpointing": "on" if recomputes else "off",
    }
    if config.init_lora_weights in ("pissa", "olora"):
        same["init_lora_weights"] = "default"
    return config.changed(method="qlora", **same), config.changed(method="lora", **same)


def pair_tag() -> str:
    """A tag that two runs share and no others."""
    return f"pair-{secrets.token_hex(4)}"


def score(run: Run) -> str:
    """The task's score and of how many rows it is: of the evaluation where one was ended, else of those answered at the
    run's end; nothing where there is none."""
    evaluation = read_result(run, "evaluation") or {}
    whole = evaluation.get("variants", {}).get("adapter") if evaluation.get("complete") else None
    return score_told(whole or run.state.summary.get("score"))


def side_by_side(store: RunStore, runs: Sequence[Run]) -> Table:
    """Loss, score, memory and time of runs, one column each."""
    names: dict[str, list[str]] = {
        "state": [run.state.status for run in runs],
        "method": [f"{run.config.method}, r {run.config.r}" for run in runs],
        "mean training loss": [_number(run.state.summary.get("train_loss"), ".4f") for run in runs],
        "held-out loss": [_number(run.state.summary.get("eval_loss"), ".4f") for run in runs],
        "score (exact match)": [score(run) or "–" for run in runs],
        "peak memory": [_memory(run.state.summary.get("peak_memory_bytes")) for run in runs],
        "median step": [_step(store.metrics(run.id)) for run in runs],
        "tokens/s": [_number(run.state.summary.get("tokens_per_second"), ",.0f") for run in runs],
        "trained parameters": [_number(run.state.summary.get("trainable_parameters"), ",") for run in runs],
    }
    rows = tuple((name, *cells) for name, cells in names.items())
    return Table(("", *(run.id for run in runs)), rows if runs else ())


def _step(metrics: Sequence[TrainMetrics]) -> str:
    seconds = [line.step_seconds for line in metrics if line.step_seconds is not None]
    return duration(statistics.median(seconds)) if seconds else "–"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _memory(value: int | None) -> str:
    return "–" if value is None else memory(value)
