"""The yardstick: fine-tuning the bundled task as a tutorial would, with the app's settings and TRL's own defaults.

    python -m benchmarks.plain_sft STEPS CHECKPOINTING(on|off)

Prints one JSON line: tokens trained on and the seconds of `trainer.train()`.
"""

from __future__ import annotations

import json
import sys
import time
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

from qlora_demo.catalog import SMOLLM2, bundled_path
from qlora_demo.config import TrainConfig
from qlora_demo.settings import Settings
from qlora_demo.tickets import rows


def main(steps: int, checkpointing: bool) -> None:
    app = TrainConfig()
    source = bundled_path(Settings.from_environment(), SMOLLM2.name)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    )
    examples = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows("train", 2000)]
    with TemporaryDirectory() as out:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=out,
                max_steps=steps,
                per_device_train_batch_size=app.per_device_train_batch_size,
                learning_rate=app.learning_rate,
                lr_scheduler_type=app.lr_scheduler_type,
                warmup_steps=app.warmup_steps,
                max_length=app.max_length,
                seed=app.seed,
                activation_checkpointing=checkpointing,
                use_cpu=not torch.cuda.is_available(),
                bf16=torch.cuda.is_available(),
                save_strategy="no",
                report_to="none",
            ),
            train_dataset=Dataset.from_list(examples),
            processing_class=AutoTokenizer.from_pretrained(source),
            peft_config=LoraConfig(
                r=app.r, lora_alpha=app.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    tokens = next(line["num_tokens"] for line in reversed(trainer.state.log_history) if "num_tokens" in line)
    loss = next(line["loss"] for line in reversed(trainer.state.log_history) if "loss" in line)
    print(json.dumps({"tokens": tokens, "seconds": seconds, "last_loss": loss}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "on")
