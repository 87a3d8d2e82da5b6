"""One training run, from its directory, as its own process.

    python -m qlora_demo.ml.train RUN_DIR [--held]

``--held``: whoever starts the process holds the run and the device for it.
The directory is the whole protocol: it holds the config, takes the metrics, and shows a `stop` file when somebody
wants the run to end.  The end state is written here and nowhere else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from trl import SFTTrainer

from ..config import TrainConfig
from ..errors import DemoError, DeviceBusy, OutOfMemory, RequestError, RunError, WorkError, one_line
from ..gpu import Lease, device_info
from ..plan.alternatives import lighter
from ..plan.memory_plan import plan
from ..records import Choice, Lighter, RunState, TrainMetrics
from ..results.scoring import Score, score, summarize
from ..runs import CHECKPOINT_MARK, CHECKPOINTS, HELD, cut_metrics, last_checkpoint, read_metrics, read_state
from ..settings import Settings
from ..sources import resolve, shape_of, weights_digest
from ..system import logs
from ..system.disk import is_full, write_atomically
from ..system.heap import collect_as_usual
from ..system.locks import HeldLock, is_held
from ..units import memory
from .checkpoints import Checkpoints
from .data import Splits, load_splits, rows_digest
from .device import device, ran_out
from .evaluate import ANSWER_BATCH, ANSWER_TOKENS, batches, greedy_answers, that_fit
from .machine import versions
from .peak import peak_memory_bytes
from .ranks import agreed, end_with_torchrun, is_main
from .reporter import Reporter, write_run_state
from .trainer import INITIAL_DRAFT, build_trainer, gathered_weights, save_adapter, situation
from .usable import require_usable_gpu

_LOSS = {"completion": "on each answer", "assistant": "on the assistant's turns", "all": "on every token"}


def main() -> None:
    """Train the run whose directory is the first argument."""
    path = Path(sys.argv[1])
    collect_as_usual()
    end_with_torchrun()
    signal.signal(signal.SIGTERM, lambda *_: (path / "stop").touch())
    if device().type == "cuda":
        torch.cuda.set_device(device())
    logs.set_up()
    settings = Settings.from_environment()
    held_for_us = HELD in sys.argv[2:]
    held = contextlib.nullcontext() if held_for_us or not is_main() else _holding(path, settings)
    try:
        if held_for_us and not is_held(path / "lock"):  # it was gone before this process could be told
            raise RunError(f"run {path.name}: whoever started this process is gone; resume the run")
        with logs.of(run=path.name), held, EndState(path):
            train(path, TrainConfig.from_file(path / "config.json"), settings)
    except DemoError as exc:
        print(f"error: {exc}", file=sys.stderr)
        raise SystemExit(exc.exit_code) from exc


@contextlib.contextmanager
def _holding(path: Path, settings: Settings) -> Iterator[None]:
    """Hold the run and the device, as a launcher would; raises `DeviceBusy`."""
    with contextlib.ExitStack() as held:
        run = HeldLock.acquire(path / "lock", {})
        if run is None:
            raise DeviceBusy(f"run {path.name}: it is at work already; wait for it or stop it")
        held.callback(run.release)
        held.callback(Lease(settings.home).acquire("training", path.name).release)
        yield


def train(path: Path, config: TrainConfig, settings: Settings) -> None:
    """Run the training and save its adapter; the state says how it ended."""
    if config.report_to == "tensorboard":
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(path / "tensorboard"))
    before, lines = read_state(path), read_metrics(path)[0]
    earlier = before.earlier_seconds + _sitting_seconds(before, lines)
    # What was decided, and the figures, are of the adapter that is there until another takes its place.
    loading = replace(before, status="loading", started_at=time.time(), ended_at=None, earlier_seconds=earlier)
    write_run_state(path, replace(loading, error="", refused=False, lighter=()))
    require_usable_gpu()
    checkpoint = last_checkpoint(path)
    splits = load_splits(config)
    began = _began_with(path) if checkpoint or (path / "adapter").is_dir() else {}
    rows = rows_digest(splits)
    _require_same(began.get("rows"), rows, f"dataset: {config.dataset} holds other rows")
    _keep_heldout(path, splits)
    trainer, chosen = build_trainer(path, config, settings, splits)
    base = weights_digest(resolve(settings, config.model))
    _require_same(began.get("base_weights"), base, f"model: {config.model} has other weights")
    kept = [line for line in lines if checkpoint and line.step <= checkpoint[0]]
    if is_main():
        cut_metrics(path, checkpoint[0] if checkpoint else 0)
        ran_on = versions() | {"base_weights": base, "rows": rows}
        write_atomically(path / "versions.json", json.dumps(ran_on, indent=2))
    logs.event("training.loaded", rows=len(trainer.train_dataset), resumed_from=checkpoint[0] if checkpoint else 0)
    choices = chosen.reasons + _data_choices(trainer, config) + _resumed(checkpoint)
    reporter = Reporter(path, config, choices, kept)
    trainer.add_callback(reporter)
    trainer.add_callback(Checkpoints(config))
    trainer.train(resume_from_checkpoint=str(checkpoint[1]) if checkpoint else None)
    _finish(path, config, splits, trainer, reporter)


def _began_with(path: Path) -> dict[str, Any]:
    """What a run wrote down of its base and its rows when it began."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((path / "versions.json").read_text("utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _require_same(began: str | None, now: str, what: str) -> None:
    if began and began != now:
        raise RunError(
            f"{what} than this run began with (digest {now}, then {began}), and it would go on with both; "
            "restore what it began with, or start a new run with its settings"
        )


def _finish(path: Path, config: TrainConfig, splits: Splits, trainer: SFTTrainer, reporter: Reporter) -> None:
    """Save the adapter, unless it holds no numbers, and write how the run ended."""
    metrics = read_metrics(path)[0] if is_main() else []
    losses = [line.loss for line in metrics if line.loss is not None]
    heldout = next((line for line in reversed(metrics) if line.eval_loss is not None), None)
    trainable, total = trainer.model.get_nb_trainable_parameters()
    summary = {
        "steps": trainer.state.global_step,
        "train_loss": statistics.fmean(losses) if losses else None,
        "eval_loss": heldout.eval_loss if heldout else None,
        "eval_step": heldout.step if heldout else None,
        "tokens_per_second": reporter.tokens / reporter.seconds if reporter.seconds else 0.0,
        "peak_memory_bytes": max([peak_memory_bytes(), *(line.memory_bytes or 0 for line in metrics)]),
        "trainable_parameters": trainable,
        "all_parameters": total,
    }
    broken = agreed(bool(losses) and not math.isfinite(losses[-1]))  # or some would save, and wait for the others
    saved = trainer.state.global_step > 0 and not broken
    if saved:
        _save_adapter(path, config, trainer)
    elif (path / "adapter").is_dir():
        summary = read_state(path).summary  # of the adapter that stays
    early = trainer.state.global_step < trainer.state.max_steps
    status = "failed" if broken else "stopped" if early else "finished"
    write_run_state(path, replace(read_state(path), summary=summary))
    unscored = ""
    if config.score_rows and saved:
        rows = splits.heldout["test"][: config.score_rows]
        summary["score"], unscored = _scored(trainer, rows, path / "stop")
    _end(path, status, summary=summary, error=reporter.trouble or unscored)
    if status == "finished" and is_main():
        shutil.rmtree(path / CHECKPOINTS, ignore_errors=True)


def _scored(trainer: SFTTrainer, rows: list[Any], stop: Path) -> tuple[dict[str, Any], str]:
    """The score, or why there is none: what was trained is saved, and needs no more room.  Not where each rank holds a
    part: the others would wait for one that goes on without them."""

    def stopped() -> bool:
        return agreed(stop.exists()) if trainer.is_fsdp_enabled else stop.exists()

    try:
        return score_answers(trainer, rows, stopped), ""
    except WorkError as exc:
        why, told = one_line(exc), f"score_rows: {exc}"
    except (RuntimeError, MemoryError) as exc:
        if trainer.is_fsdp_enabled or not ran_out(exc):
            raise
        why = one_line(exc)
        told = f"score_rows: the device had no room to answer {len(rows)} rows; the adapter is saved: evaluate it"
    logs.event("training.unscored", logging.WARNING, why=why)
    return {}, told


def score_answers(trainer: SFTTrainer, rows: list[Any], stopped: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """The task's own score of greedy answers to held-out rows, by the model that was just trained; ranks that hold a
    part of it each answer together.  Raises `WorkError` where it is ``stopped`` before a batch."""
    talks = [row["messages"] for row in rows if "messages" in row]
    if not talks or not (is_main() or trainer.is_fsdp_enabled):
        return {}
    model, tokenizer = trainer.accelerator.unwrap_model(trainer.model).eval(), trainer.processing_class
    scores: list[Score] = []
    for batch in batches(talks, ANSWER_BATCH):
        if stopped():
            raise WorkError(f"the run was stopped after {len(scores)} of {len(talks)} answers; evaluate its adapter")
        fitting = that_fit(model, tokenizer, batch, ANSWER_TOKENS)
        answers = greedy_answers(model, tokenizer, fitting) if fitting else []
        scores += [score(answer, talk[-1]["content"]) for answer, talk in zip(answers, fitting, strict=True)]
    return summarize(scores) if scores else {}


class EndState:
    """Whatever leaves the block unhandled becomes the run's end state: failed, with one line that says why.

    An error made for people ends the process with that line; any other keeps its traceback, which the log takes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lighter: tuple[Lighter, ...] = ()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is None:
            return
        if ran_out(exc):
            exc, self.lighter = _out_of_memory(self.path, exc)
        elif is_full(exc, None if isinstance(exc, DemoError) else self.path):
            exc = _out_of_disk(self.path)
        message = str(exc) if isinstance(exc, DemoError) else f"{kind.__name__ if kind else ''}: {exc}"
        message = " ".join(message.split())[:1000]
        kept = (self.path / "adapter").is_dir() or last_checkpoint(self.path) is not None
        refused = isinstance(exc, RequestError) and not kept
        _end(self.path, "failed", error=message, refused=refused, lighter=self.lighter)
        if isinstance(exc, DemoError):
            print(f"error: {message}", file=sys.stderr)
            raise SystemExit(exc.exit_code) from exc


def _data_choices(trainer: SFTTrainer, config: TrainConfig) -> tuple[Choice, ...]:
    rows, tokens = len(trainer.train_dataset), sum(map(len, trainer.train_dataset["input_ids"]))
    trained = sum(label != -100 for labels in trainer.train_dataset["labels"] for label in labels)
    padding = "none, rows are packed" if config.packing else "to the longest row of each batch"
    return (
        Choice("Padding", padding, f"rows average {tokens / rows:.0f} tokens"),
        Choice(
            "Loss", _LOSS[config.loss_on], f"{trained / tokens:.0%} of {tokens:,} tokens in {rows:,} rows are trained"
        ),
    )


def _keep_heldout(path: Path, splits: Splits) -> None:
    if not is_main():
        return
    (path / "heldout").mkdir(exist_ok=True)
    for name, rows in splits.heldout.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        write_atomically(path / "heldout" / f"{name}.jsonl", "\n".join(lines) + "\n")


def _out_of_disk(path: Path) -> WorkError:
    """Take away what was half written, which also makes the room to say so; the error that says it."""
    unfinished = [one for one in (path / CHECKPOINTS).glob("*") if not (one / CHECKPOINT_MARK).is_file()]
    for folder in (path / ".adapter-new", path / INITIAL_DRAFT, *unfinished):
        shutil.rmtree(folder, ignore_errors=True)
    found = last_checkpoint(path)
    remedy = f"resume the run from step {found[0]}" if found else "start the run again"
    return WorkError(f"{path}: the disk is full; remove files there, then {remedy}")


def _out_of_memory(path: Path, exc: BaseException) -> tuple[OutOfMemory, tuple[Lighter, ...]]:
    """What was needed and what there was, and what would have taken less; the choices that were made tell whether
    activations were recomputed."""
    config = TrainConfig.from_file(path / "config.json")
    shape = shape_of(resolve(Settings.from_environment(), config.model))
    now = situation(shape.family)
    how: dict[str, Any] = {"checkpointing": bool(read_state(path).checkpointing), "kernels": now.kernels}
    needed = plan(shape, config, now.on, **how).total_bytes
    told = OutOfMemory(
        f"device: out of memory ({exc}); by the plan the run takes {memory(needed)} and the device has "
        f"{memory(device_info().total_bytes)}; take one of the lighter settings below and start again"
    )
    return told, lighter(shape, config, now.on, **how)


def _sitting_seconds(before: RunState, lines: Sequence[TrainMetrics]) -> float:
    """How long the sitting before this one was at work, up to the last that it measured."""
    return max(0.0, lines[-1].time - before.started_at) if lines and before.started_at else 0.0


def _resumed(checkpoint: tuple[int, Path] | None) -> tuple[Choice, ...]:
    if checkpoint is None:
        return ()
    return (Choice("Resumed", f"from step {checkpoint[0]}", "same order of rows, optimizer and schedule"),)


def _save_adapter(path: Path, config: TrainConfig, trainer: SFTTrainer) -> None:
    weights = gathered_weights(trainer)
    if not is_main():
        return
    draft, older, final = path / ".adapter-new", path / ".adapter-old", path / "adapter"
    for folder in (draft, older):
        shutil.rmtree(folder, ignore_errors=True)
    save_adapter(path, config, trainer, draft, weights)
    if final.exists():
        _set_aside(path, f"of-{time.strftime('%Y%m%d-%H%M%S', time.localtime(final.stat().st_mtime))}")
        final.rename(older)
    draft.rename(final)
    shutil.rmtree(older, ignore_errors=True)


def _set_aside(path: Path, name: str) -> None:
    """What was measured, exported and reported of the adapter that another will replace; what was seen of the data
    stays."""
    root = path / "earlier" / name
    if root.exists():  # of the same adapter, from before a kill at this very place
        root = root.with_name(f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    results = [one for one in (path / "results").glob("*.json") if one.stem != "preflight"]
    for one in [*results, *(path / "exports").glob("[!.]*"), *(path / "report").glob("[!.]*")]:
        aside = root / one.parent.name
        aside.mkdir(parents=True, exist_ok=True)
        one.rename(aside / one.name)


def _end(path: Path, status: Any, **values: Any) -> None:
    state = read_state(path)
    ended = time.time()
    summary = values.pop("summary", state.summary) | {"runtime_seconds": state.seconds(ended) or 0.0}
    write_run_state(path, replace(state, status=status, ended_at=ended, summary=summary, **values))
    logs.event("training.ended", state=status)


if __name__ == "__main__":
    main()
