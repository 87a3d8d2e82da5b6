"""Checkpoints by steps or time, known to be whole by a mark that is written last; a half-written one is skipped."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..config import TrainConfig
from ..runs import CHECKPOINT_MARK
from ..system.disk import write_atomically
from .ranks import agreed, is_main

_KEPT = 2


class Checkpoints(TrainerCallback):
    """Asks the trainer to save, and marks what it has saved.

    Never after the last step: resumed from there, the trainer would do one step too many.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.steps, self.seconds = config.save_steps, 60 * config.save_minutes
        self._saved = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Optimizer state that was saved as paged is not when it is read onto a GPU, as several processes do each, and
        still says so; bitsandbytes would end the process as it moves it."""
        for values in optimizer.state.values() if optimizer else ():
            for value in values.values():
                if isinstance(value, torch.Tensor) and value.device.type != "cpu":  # paged memory counts as the host's
                    vars(value).pop("is_paged", None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        by_step = self.steps and state.global_step % self.steps == 0
        by_time = self.seconds and agreed(time.monotonic() - self._saved >= self.seconds)
        if state.global_step < state.max_steps and (by_step or by_time or control.should_training_stop):
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._saved = time.monotonic()
        if is_main():
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_atomically(folder / CHECKPOINT_MARK, json.dumps({"step": state.global_step, "time": time.time()}))
            _remove_older(folder.parent)


def _remove_older(checkpoints: Path) -> None:
    """Keep the last whole ones, by their steps: the library would go by the clock, which may have been set back."""
    steps = {int(folder.name.rpartition("-")[2]): folder for folder in checkpoints.glob("checkpoint-[0-9]*")}
    whole = sorted(step for step, folder in steps.items() if (folder / CHECKPOINT_MARK).is_file())
    for step in steps.keys() - set(whole[-_KEPT:]):
        shutil.rmtree(steps[step], ignore_errors=True)
