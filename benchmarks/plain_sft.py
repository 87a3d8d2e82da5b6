"""The yardstick: fine-tuning as a tutorial would, with the app's settings and TRL's own defaults.

    python -m benchmarks.plain_sft CONFIG.json CHECKPOINTING(on|off)

CONFIG.json holds the app's training settings; its steps are a multiple of `LAST_STEPS`.  Prints one JSON line: tokens
trained on, the seconds from the first step's begin to the last one's end, when each step ended, and the mean loss of
the last steps.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
from trl import SFTConfig, SFTTrainer

from qlora_demo.catalog import TICKETS, is_shape
from qlora_demo.config import TrainConfig
from qlora_demo.ml.data import load_splits
from qlora_demo.ml.shapes import build_shape, shape_tokenizer
from qlora_demo.rows.tickets import rows
from qlora_demo.settings import Settings
from qlora_demo.sources import resolve

LAST_STEPS = 5
"""Steps over which a loss is averaged."""


def main(app: TrainConfig, checkpointing: bool) -> None:
    model, tokenizer = loaded(app.model)
    with TemporaryDirectory() as out:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=out,
                max_steps=app.max_steps,
                per_device_train_batch_size=app.per_device_train_batch_size,
                learning_rate=app.learning_rate,
                lr_scheduler_type=app.lr_scheduler_type,
                warmup_steps=app.warmup_steps,
                max_length=app.max_length,
                seed=app.seed,
                activation_checkpointing=checkpointing,
                use_cpu=not torch.cuda.is_available(),
                bf16=torch.cuda.is_available(),
                logging_steps=LAST_STEPS,
                save_strategy="no",
                report_to="none",
            ),
            train_dataset=Dataset.from_list(examples(app)),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=app.r, lora_alpha=app.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
        )
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
        seconds = clock.ends[-1] - clock.began
    tokens = next(line["num_tokens"] for line in reversed(trainer.state.log_history) if "num_tokens" in line)
    loss = next(line["loss"] for line in reversed(trainer.state.log_history) if "loss" in line)
    print(json.dumps({"tokens": tokens, "seconds": seconds, "ends": clock.ends, "last_loss": loss}))


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds at which the first step began, and at which each ended."""

    def __init__(self) -> None:
        self.began = 0.0
        self.ends: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = self.began or time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def loaded(name: str) -> tuple[Any, Any]:
    """The 4-bit model and its tokenizer: from a folder as a tutorial does, or a shape's random weights."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    if is_shape(name):
        where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return build_shape(name, quantization, torch.bfloat16, (where, None)), shape_tokenizer(name)
    source = resolve(Settings.from_environment(), name)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, quantization_config=quantization)
    return model, AutoTokenizer.from_pretrained(source)


def examples(app: TrainConfig) -> list[dict[str, Any]]:
    """The rows that the app trains."""
    if app.dataset != TICKETS.name:
        return load_splits(app).train
    return [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows("train", 2000)]


if __name__ == "__main__":
    main(TrainConfig.from_json(Path(sys.argv[1]).read_text("utf-8"), sys.argv[1]), sys.argv[2] == "on")
