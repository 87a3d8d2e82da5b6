"""RunStore: a run is a directory, and the directory is the protocol between the page and the training process.

config.json     what was chosen                      (written once, at creation)
state.json      where it stands                      (replaced atomically)
metrics.jsonl   one line per step and evaluation     (append only)
train.log       everything the process printed
versions.json   Python, libraries and device it ran on
heldout/        rows training never saw, one JSONL file per split
adapter/        the result                           (renamed into place when whole)
checkpoints/    what a run continues from; one is whole when it holds the file `whole`
stop            present once somebody asked to stop
lock, job.lock  held by the training process while it lives; shared by the jobs that work with the run
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from .catalog import located
from .config import TrainConfig
from .errors import ConfigError, RunError, one_line
from .records import BEFORE, LOG_ENDS, Message, RunState, Status, TrainMetrics
from .settings import LIMITS, Limits
from .stored import require_few, require_room
from .system.disk import new_folder, out_of_room, read_file, read_object, remove_folder, write_atomically, writing
from .system.locks import is_held
from .system.logs import without_tokens

_STATE, _METRICS, _MESSAGES = TypeAdapter(RunState), TypeAdapter(TrainMetrics), TypeAdapter(list[Message])
_CREATED = RunState("created")
_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[a-z0-9]+-[0-9a-f]{4}")
_README = """\
This folder is one training run. It can be read without the app.

config.json     what was chosen
state.json      where the run stands: status, times, error, final figures
metrics.jsonl   one JSON line per training step or held-out evaluation
train.log       everything the training process printed
versions.json   Python, library versions and the device
heldout/        rows that training never saw (chat messages, JSONL)
adapter/        the LoRA adapter and tokenizer; PEFT loads it
checkpoints/    what an interrupted run continues from; gone once it has finished
results/        evaluation, merge fidelity, prompt sets, chosen conversations (JSON)
report/         the report as HTML, JSON and CSV, once it was made
tensorboard/    its logs, where they were asked for
exports/        what was merged or exported, each with a model card
earlier/        what was measured, exported and reported of the adapter before the run was resumed
initial-adapter/ where an adapter that changes its base (PiSSA, OLoRA) began
note.json       a person's note and tags
lock, job.lock, stop  held while it trains; while a job works with it; there once somebody asked for its end
"""
_LARGEST = 1 << 53
"""No step, token or byte is counted further; a float holds every whole number up to here."""
CHECKPOINTS, CHECKPOINT_MARK, JOB_LOCK = "checkpoints", "whole", "job.lock"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
HELD = "--held"
"""What tells a training process that its run and the device are held for it."""


@dataclass(frozen=True)
class Run:
    """A run as it stood when it was read."""

    id: str
    path: Path
    config: TrainConfig
    state: RunState

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def has_adapter(self) -> bool:
        return self.adapter.is_dir()

    @property
    def adapter_since(self) -> float:
        """When the adapter of a resumed run took the place of the one before, in seconds since the epoch; 0 where there
        was none before."""
        if not self.state.earlier_seconds:
            return 0.0
        try:
            return (self.adapter / ADAPTER_WEIGHTS).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    @property
    def resumable(self) -> bool:
        """Whether the run has ended before its last step and can go on."""
        return self.state.ended and self.state.status != "finished"

    @property
    def resumable_from(self) -> int:
        """The step that a resumable run would continue from; 0 where it would begin again."""
        checkpoint = last_checkpoint(self.path)
        return checkpoint[0] if checkpoint and self.resumable else 0

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def alive(self) -> bool:
        """Whether the training process still exists, now."""
        return is_held(self.lock)


class RunStore:
    """All runs under one directory of a home."""

    def __init__(self, root: Path, limits: Limits = LIMITS) -> None:
        self.root = root
        self.limits = limits

    def create(self, config: TrainConfig, state: RunState = _CREATED) -> Run:
        """A new run; see `create_all`."""
        return self.create_all([config], state)[0]

    def create_all(self, configs: Sequence[TrainConfig], state: RunState) -> list[Run]:
        """New runs, all or none; they appear under their names only when each is whole.  Raises `TooMany` where more
        would be kept than the limits say."""
        require_few(self.names(), self.limits, len(configs))
        require_room(self.root.parent, self.limits)
        with contextlib.ExitStack() as drafts:
            made = [drafts.enter_context(new_folder(self.root, one.method.replace("-", ""))) for one in configs]
            for config, (_, draft) in zip(configs, made, strict=True):
                (draft / "config.json").write_text(located(config).model_dump_json(indent=2), "utf-8")
                (draft / "README").write_text(_README, "utf-8")
                write_state(draft, state)
        return [self.get(name) for name, _ in made]

    def get(self, name: str) -> Run:
        """One run.  A process that died without an end state reads as failed, with the tail of its log."""
        path = self.path(name)
        try:
            config = TrainConfig.from_file(path / "config.json")
            return Run(name, path, config, _settled(path, read_state(path)))
        except (ConfigError, OSError, ValueError) as exc:
            raise RunError(
                f"run {name}: cannot be read ({one_line(exc, 300)}); delete it or restore its files"
            ) from exc

    def path(self, name: str) -> Path:
        """The directory of a run that exists; names are checked, so none leads elsewhere."""
        path = self.root / name
        if not _ID.fullmatch(name) or path.is_symlink() or not path.is_dir():
            raise RunError(f"run {name!r}: no such run; `python -m qlora_demo runs list` shows them")
        return path

    def names(self) -> list[str]:
        """Newest first."""
        if not self.root.is_dir():
            return []
        return sorted((p.name for p in self.root.iterdir() if _ID.fullmatch(p.name)), reverse=True)

    def all(self) -> list[Run]:
        """Newest first; a run whose files are damaged is left out here and reported by `get`."""
        return list(self._readable())

    def _readable(self) -> Iterator[Run]:
        for name in self.names():
            try:
                yield self.get(name)
            except RunError:
                continue

    def active(self) -> Run | None:
        """The run that is at work, if there is one."""
        begun = (run for run in self.all() if not run.state.ended and run.state.status not in BEFORE)
        return next((run for run in begun if run.alive), None)

    def waiting(self, *statuses: Status) -> list[Run]:
        """The runs in one of these states, the one that has been in it longest first."""
        waiting = [run for run in self.all() if run.state.status in statuses]
        return sorted(waiting, key=lambda run: _written_at(run.path / "state.json"))

    def read_since(self, name: str, offset: int) -> tuple[list[TrainMetrics], int]:
        """Whole metrics lines from a byte offset on, and the offset to continue from."""
        return read_metrics(self.path(name), offset)

    def metrics(self, name: str) -> list[TrainMetrics]:
        return self.read_since(name, 0)[0]

    def log_tail(self, name: str, lines: int = 30) -> str:
        return _log_tail(self.path(name), lines)

    def versions(self, name: str) -> dict[str, str]:
        """Python, libraries and device a run ran on; empty before it began."""
        return {key: str(value) for key, value in read_object(self.path(name) / "versions.json").items()}

    def adapter_since(self, run: str) -> Callable[[str], float]:
        """Of a column's name: `Run.adapter_since` of the run whose adapter it has, which may be another; else 0."""

        @functools.cache
        def since(name: str) -> float:
            recipe, _, source = name.partition("@")
            with contextlib.suppress(RunError):  # a folder's or the hub's, or deleted
                return 0.0 if recipe == "base" else self.get(source or run).adapter_since
            return 0.0

        return since

    def heldout(self, name: str) -> dict[str, list[list[Message]]]:
        """Held-out conversations by split, `test` first; rows of plain text hold none."""
        folder = self.path(name) / "heldout"
        splits = sorted(folder.glob("*.jsonl"), reverse=True)
        try:
            return {split.stem: _conversations(split) for split in splits}
        except (OSError, ValueError, RecursionError) as exc:
            raise RunError(
                f"run {name}: heldout cannot be read ({one_line(exc, 300)}); restore it or train again"
            ) from exc

    def request_stop(self, name: str) -> None:
        """Ask the training process to stop after the step it is in and save its adapter."""
        run = self.get(name)
        if run.state.ended:
            raise RunError(f"run {name}: already {run.state.status}; there is nothing to stop")
        with writing(run.path / "stop"):
            (run.path / "stop").touch()
        if run.state.status in BEFORE:  # it may begin at this moment: then it finds the file
            write_state(run.path, replace(run.state, status="stopped", error="taken out of the queue"))

    def delete(self, name: str) -> None:
        """Remove a run that is not alive and that no job works with."""
        path = self.path(name)
        if is_held(path / "lock"):
            raise RunError(f"run {name}: still running; stop it first")
        if is_held(path / JOB_LOCK, shared=True):
            raise RunError(f"run {name}: a job works with it; wait for its end or stop it")
        remove_folder(path)


def write_state(path: Path, state: RunState) -> None:
    """Replace a run directory's state."""
    write_atomically(path / "state.json", json.dumps(asdict(state), indent=2))


def read_state(path: Path) -> RunState:
    """The state as it was last written; raises `OSError`, or `ValueError` where it is none."""
    state = _STATE.validate_json(read_file(path / "state.json"))
    return replace(state, summary=_figures(state.summary))


def read_metrics(path: Path, offset: int = 0) -> tuple[list[TrainMetrics], int]:
    """Whole metrics lines of a run directory from a byte offset on, and the offset to continue from.

    A line that a full disk or a crash cut short is no measurement and is left out.
    """
    try:
        data = read_file(path / "metrics.jsonl", offset)
    except OSError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return list(_measured(whole)), offset + len(whole)


def _measured(lines: bytes) -> Iterator[TrainMetrics]:
    for line in lines.splitlines():
        with contextlib.suppress(ValidationError):
            found = _METRICS.validate_json(line)
            counts = (value for value in vars(found).values() if isinstance(value, int))
            times = (found.time, found.step_seconds or 0)
            if all(0 <= value < _LARGEST for value in (*counts, *times)):
                yield found


def cut_metrics(path: Path, step: int) -> None:
    """Keep a run directory's metrics up to a step: what followed is trained again."""
    kept = "".join(_metrics_line(line) for line in read_metrics(path)[0] if line.step <= step)
    file = path / "metrics.jsonl"
    if file.exists() and kept.encode() != file.read_bytes():  # a line cut short would swallow the next one
        write_atomically(file, kept)


def last_checkpoint(path: Path) -> tuple[int, Path] | None:
    """The last whole checkpoint of a run directory and its step; one that a kill cut short has no mark."""
    whole = [mark.parent for mark in (path / CHECKPOINTS).glob(f"checkpoint-[0-9]*/{CHECKPOINT_MARK}")]
    steps = {int(found.name.rpartition("-")[2]): found for found in whole}
    return max(steps.items()) if steps else None


def append_metrics(path: Path, metrics: TrainMetrics) -> None:
    """Append one line to a run directory's metrics."""
    file = path / "metrics.jsonl"
    with writing(file), file.open("a", encoding="utf-8") as lines:
        lines.write(_metrics_line(metrics))


def _metrics_line(metrics: TrainMetrics) -> str:
    return json.dumps({key: value for key, value in asdict(metrics).items() if value is not None}) + "\n"


def _conversations(split: Path) -> list[list[Message]]:
    rows = [json.loads(line) for line in read_file(split).split(b"\n") if line]
    found = [_MESSAGES.validate_python(row["messages"]) for row in rows if isinstance(row, dict) and "messages" in row]
    if not all({"role", "content"} <= set(message) for row in found for message in row):
        raise ValueError(f"a message in {split.name} has no role or no content")
    return found


def _figures(found: dict[str, Any]) -> dict[str, Any]:
    """What a summary holds of figures, and of figures of its own."""
    kept = {name: _figures(value) if isinstance(value, dict) else value for name, value in found.items()}
    return {name: value for name, value in kept.items() if isinstance(value, int | float | dict | None)}


def _written_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # deleted meanwhile
        return 0


def _settled(path: Path, state: RunState) -> RunState:
    if state.ended or state.status in BEFORE or is_held(path / "lock"):
        return state
    state = read_state(path)  # it may have ended between the first read and the probe
    if state.ended:
        return state
    tail = "; ".join(filter(None, map(str.strip, _log_tail(path, 3).splitlines())))
    full = "; its disk is full, remove files there" if out_of_room(path) else ""
    error = f"the training process ended without reporting an error{full}{LOG_ENDS}{tail}"
    seen = max(_written_at(path / name) for name in ("state.json", "metrics.jsonl", "train.log"))
    return replace(state, status="failed", error=error, ended_at=state.ended_at or seen / 1e9)


def _log_tail(path: Path, lines: int) -> str:
    """The last lines of a training process's log, without tokens."""
    most = 400 * lines
    try:
        data = read_file(path / "train.log", last=most)
    except OSError:
        return ""
    text = data.decode("utf-8", "replace")
    if len(data) == most:  # what may be the rest of a token
        text = re.sub(r"\A\S+", "", text)
    text = without_tokens(text)
    return "\n".join(line.rsplit("\r", 1)[-1] for line in text.split("\n")[-lines - 1 :])
