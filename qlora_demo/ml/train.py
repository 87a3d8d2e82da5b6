"""One training run, from its directory, as its own process.

    python -m qlora_demo.ml.train RUN_DIR

The directory is the whole protocol: it holds the config, takes the metrics, and shows a `stop` file when somebody
wants the run to end.  The end state is written here and nowhere else.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
import trl.trainer.utils
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from .. import __version__
from ..choices import Chosen, Situation, choose
from ..config import ATTENTION_MODULES, TrainConfig
from ..errors import DataError, DemoError, OutOfMemory, RequestError
from ..memory import ModelShape
from ..records import Choice, RunState
from ..runs import read_state, write_atomically
from ..settings import Settings, quiet_libraries
from ..sources import resolve, weights_digest
from .data import Splits, load_splits, training_set
from .load import device, load_base, load_tokenizer
from .reporter import Reporter, is_main, peak_memory_bytes, write_run_state

LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")


def main() -> None:
    """Train the run whose directory is the only argument."""
    quiet_libraries()
    path = Path(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: (path / "stop").touch())
    with EndState(path):
        train(path, TrainConfig.from_file(path / "config.json"), Settings.from_environment())


def train(path: Path, config: TrainConfig, settings: Settings) -> None:
    """Run the training and save its adapter; the state says how it ended."""
    write_run_state(path, RunState(status="loading", started_at=time.time()))
    splits = load_splits(config)
    _keep_heldout(path, splits)
    trainer, chosen = build_trainer(path, config, settings, splits)
    if is_main():
        ran_on = versions() | {"base_weights": weights_digest(resolve(settings, config.model))}
        write_atomically(path / "versions.json", json.dumps(ran_on, indent=2))
    reporter = Reporter(path, chosen.reasons + _data_choices(trainer, splits))
    trainer.add_callback(reporter)
    result = trainer.train()
    stopped = reporter.stopping
    if trainer.state.global_step:
        _save_adapter(path, trainer)
    trainable, total = trainer.model.get_nb_trainable_parameters()
    summary = {
        "steps": trainer.state.global_step,
        "train_loss": result.training_loss,
        "eval_loss": reporter.eval_loss,
        "tokens_per_second": reporter.tokens / reporter.seconds if reporter.seconds else 0.0,
        "peak_memory_bytes": peak_memory_bytes(),
        "trainable_parameters": trainable,
        "all_parameters": total,
    }
    _end(path, "stopped" if stopped else "finished", summary=summary)


def build_trainer(path: Path, config: TrainConfig, settings: Settings, splits: Splits) -> tuple[SFTTrainer, Chosen]:
    """An `SFTTrainer` for the config, and what was chosen for this device."""
    source = resolve(settings, config.model)
    tokenizer = load_tokenizer(source)
    model = load_base(source, config.base_form, "exact")
    chosen = choose(config, ModelShape.from_config(model.config.get_text_config().to_dict()), situation())
    _score_answers_only()
    heldout = splits.heldout["test"][: config.eval_rows]
    trainer = SFTTrainer(
        model=model,
        args=_sft_config(path, config, chosen),
        train_dataset=training_set(splits.train),
        eval_dataset=training_set(heldout),
        processing_class=tokenizer,
        peft_config=_lora_config(config),
    )
    if not len(trainer.train_dataset):
        raise DataError(f"max_length: no row keeps a trained token within {config.max_length} tokens; raise max_length")
    if chosen.fp16:
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return trainer, chosen


def situation() -> Situation:
    """The device this process trains on."""
    if device().type == "cuda":
        return Situation("cuda", torch.cuda.is_bf16_supported(), torch.cuda.mem_get_info()[0])
    return Situation("cpu", True, psutil.virtual_memory().available)


def versions() -> dict[str, str]:
    """Python, platform, device and libraries, as this process runs on them."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    return {
        "qlora_demo": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": gpu,
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


class EndState:
    """Whatever leaves the block unhandled becomes the run's end state: failed, with one line that says why.

    An error made for people ends the process with that line; any other keeps its traceback, which the log takes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is None:
            return
        if isinstance(exc, torch.OutOfMemoryError):
            exc = OutOfMemory(
                f"device: out of memory ({exc}); lower the batch, max_length or r, or turn checkpointing on"
            )
        message = str(exc) if isinstance(exc, DemoError) else f"{kind.__name__ if kind else ''}: {exc}"
        message = " ".join(message.split())[:1000]
        _end(self.path, "failed", error=message, refused=isinstance(exc, RequestError))
        if isinstance(exc, DemoError):
            print(f"error: {message}", file=sys.stderr)
            raise SystemExit(exc.exit_code) from exc


def _sft_config(path: Path, config: TrainConfig, chosen: Chosen) -> SFTConfig:
    on_cpu = device().type == "cpu"
    return SFTConfig(
        output_dir=str(path / "checkpoints"),
        max_length=config.max_length,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        num_train_epochs=config.num_train_epochs,
        max_steps=config.max_steps,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        seed=config.seed,
        activation_checkpointing=chosen.gradient_checkpointing,
        optim=chosen.optim,
        bf16=chosen.bf16,
        fp16=chosen.fp16,
        eval_strategy="steps",
        eval_steps=config.eval_steps,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and "WORLD_SIZE" in os.environ else None,
        dataloader_pin_memory=not on_cpu,
    )


def _lora_config(config: TrainConfig) -> LoraConfig:
    targets = "all-linear" if config.target_modules == "all-linear" else list(ATTENTION_MODULES)
    return LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


def _score_answers_only() -> None:
    """Let TRL's fused head project only the positions that have a label.

    TRL does so wherever Triton runs, and scores every position elsewhere to spare compilers changing shapes.  The CPU
    compiles nothing, and the head over a whole prompt is more than half of a small model's step.
    """
    if device().type == "cpu":
        trl.trainer.utils._use_triton = lambda device: True


def _data_choices(trainer: SFTTrainer, splits: Splits) -> tuple[Choice, ...]:
    rows, tokens = len(trainer.train_dataset), sum(map(len, trainer.train_dataset["input_ids"]))
    trained = sum(label != -100 for labels in trainer.train_dataset["labels"] for label in labels)
    return (
        Choice("Padding", "to the longest row of each batch", f"rows average {tokens / rows:.0f} tokens"),
        Choice(
            "Loss", "on the answer only", f"{trained / tokens:.0%} of {tokens:,} tokens in {rows:,} rows are trained"
        ),
    )


def _keep_heldout(path: Path, splits: Splits) -> None:
    if not is_main():
        return
    (path / "heldout").mkdir(exist_ok=True)
    for name, rows in splits.heldout.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        write_atomically(path / "heldout" / f"{name}.jsonl", "\n".join(lines) + "\n")


def _save_adapter(path: Path, trainer: SFTTrainer) -> None:
    if not is_main():
        return
    draft = path / ".adapter-new"
    shutil.rmtree(draft, ignore_errors=True)
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.save_pretrained(draft)
    trainer.processing_class.save_pretrained(draft)
    draft.rename(path / "adapter")


def _end(path: Path, status: Any, **values: Any) -> None:
    state = read_state(path)
    ended = time.time()
    summary = values.pop("summary", {}) | {"runtime_seconds": ended - (state.started_at or ended)}
    write_run_state(path, replace(state, status=status, ended_at=ended, summary=summary, **values))


if __name__ == "__main__":
    main()
