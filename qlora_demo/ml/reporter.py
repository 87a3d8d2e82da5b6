"""What the trainer does, into the run directory; and the stop that somebody asked for, out of it."""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback

from ..records import Choice, RunState, TrainMetrics
from ..runs import append_metrics, read_state, write_state
from .load import device


class Reporter(TrainerCallback):
    """Writes what the trainer does into the run directory, and stops it when somebody asks."""

    def __init__(self, path: Path, choices: tuple[Choice, ...]) -> None:
        self.path = path
        self.choices = choices
        self.stopping = False
        self.eval_loss: float | None = None
        self.tokens = 0
        self.seconds = 0.0
        self._began = 0.0
        self._step_seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = read_state(self.path)
        write_run_state(self.path, replace(now, status="running", max_steps=state.max_steps, choices=self.choices))
        self._check_stop(control)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._step_seconds = time.perf_counter() - self._began
        self.seconds += self._step_seconds
        self._check_stop(control)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "eval_loss" in logs:
            self.eval_loss = float(logs["eval_loss"])
            self._append(TrainMetrics(state.global_step, time.time(), eval_loss=self.eval_loss))
        elif "loss" in logs:
            tokens = int(logs["num_tokens"]) - self.tokens
            self.tokens += tokens
            self._append(
                TrainMetrics(
                    step=state.global_step,
                    time=time.time(),
                    loss=float(logs["loss"]),
                    learning_rate=float(logs["learning_rate"]),
                    grad_norm=float(logs["grad_norm"]),
                    token_accuracy=float(logs["mean_token_accuracy"]),
                    step_seconds=self._step_seconds,
                    tokens=tokens,
                    memory_bytes=peak_memory_bytes(),
                )
            )

    def _append(self, metrics: TrainMetrics) -> None:
        if is_main():
            append_metrics(self.path, metrics)

    def _check_stop(self, control: Any) -> None:
        self.stopping = _agreed((self.path / "stop").exists())
        if self.stopping:
            control.should_training_stop = True


def peak_memory_bytes() -> int:
    """Peak so far: GPU memory allocated, or without a GPU this process's resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def write_run_state(path: Path, state: RunState) -> None:
    """Replace the run's state, from the first rank only."""
    if is_main():
        write_state(path, state)


def is_main() -> bool:
    """Whether this process is the one that writes: the first of its ranks."""
    return os.environ.get("RANK", "0") == "0"


def _agreed(stop: bool) -> bool:
    """Rank 0's answer on every rank: ranks that saw the stop file at different steps would wait for each other."""
    if not distributed.is_initialized():
        return stop
    answer = torch.tensor([stop], dtype=torch.uint8, device=device())
    distributed.broadcast(answer, src=0)
    return bool(answer.item())
