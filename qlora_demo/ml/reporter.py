"""What the trainer does, into the run directory; and the stop that somebody asked for, out of it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..config import TrainConfig
from ..records import Choice, RunState, TrainMetrics
from ..runs import append_metrics, read_state, write_state
from .peak import peak_memory_bytes
from .ranks import agreed, is_main

_WINDOW, _DIVERGED = 10, 2.0
"""A run diverges where the mean loss of the last steps is so many times that of the first ones."""


class Reporter(TrainerCallback):
    """Writes what the trainer does into the run directory, and stops it when somebody asks.  ``earlier``: what a
    resumed run measured up to its checkpoint."""

    def __init__(
        self, path: Path, config: TrainConfig, choices: tuple[Choice, ...], earlier: Sequence[TrainMetrics] = ()
    ) -> None:
        self.path = path
        self.config = config
        self.choices = choices
        self.trouble = ""
        self.eval_loss: float | None = None
        self.tokens = 0
        self.seconds = 0.0
        self._began = 0.0
        self._step_seconds = 0.0
        self._losses = [line.loss for line in earlier if line.loss is not None]
        self._heldout = [line.eval_loss for line in earlier if line.eval_loss is not None]

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
            self._check_heldout(state, control)
            self._append(TrainMetrics(state.global_step, time.time(), eval_loss=self.eval_loss))
        elif "loss" in logs:
            self._check_loss(float(logs["loss"]), state.global_step, control)
            if not (math.isfinite(float(logs["loss"])) and math.isfinite(float(logs["grad_norm"]))):
                control.should_save = False  # nobody would want to go on from there
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
        if agreed((self.path / "stop").exists()):
            control.should_training_stop = True

    def _check_loss(self, loss: float, step: int, control: Any) -> None:
        self._losses.append(loss)
        if not math.isfinite(loss):
            self._end_for(f"the loss is {loss} at step {step}", control)
        elif len(self._losses) >= 3 * _WINDOW:
            began, now = (statistics.fmean(part) for part in (self._losses[:_WINDOW], self._losses[-_WINDOW:]))
            if now > _DIVERGED * began:
                self._end_for(f"the loss rose from {began:.2f} to {now:.2f} by step {step}", control)

    def _end_for(self, trouble: str, control: Any) -> None:
        self.trouble = f"{trouble}; lower learning_rate ({self.config.learning_rate:g} now) or raise warmup_steps"
        if self.config.stop_on_divergence:
            control.should_training_stop = True

    def _check_heldout(self, state: Any, control: Any) -> None:
        self._heldout.append(self.eval_loss or 0.0)
        patience = self.config.early_stopping_patience
        since_best = len(self._heldout) - 1 - self._heldout.index(min(self._heldout))
        if patience and since_best >= patience and state.global_step < state.max_steps:
            self.trouble = f"stopped early: {since_best} held-out losses were no better than {min(self._heldout):.4f}"
            control.should_training_stop = True


def write_run_state(path: Path, state: RunState) -> None:
    """Replace the run's state, from the first rank only."""
    if is_main():
        write_state(path, state)
