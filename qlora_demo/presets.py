"""Configs under a name, a config as a command line, and what two configs differ in."""

from __future__ import annotations

import shlex
from typing import Any

from .config import TrainConfig
from .knobs import field_names, knob
from .plan.memory_plan import Kind

PRESETS: dict[str, TrainConfig] = {
    "First look": TrainConfig(max_steps=30, eval_steps=30, target_modules="attention", r=8, lora_alpha=16),
    "Balanced": TrainConfig(),
    "Best quality": TrainConfig(r=64, lora_alpha=64, use_rslora=True, max_steps=-1, num_train_epochs=2, eval_steps=100),
    "Longest context": TrainConfig(
        max_length=8192,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        gradient_checkpointing="on",
        r=8,
        lora_alpha=16,
        target_modules="attention",
    ),
}
"""What a person asks for in words; the defaults are the balanced one."""
ARTICLE = TrainConfig(
    model="shape:llama-2-7b",
    per_device_train_batch_size=4,
    max_length=512,
    gradient_accumulation_steps=4,
    r=16,
    lora_alpha=32,
    lora_dropout=0.05,
    target_modules="attention",
    learning_rate=2e-4,
)
"""The article's settings, on which its figures of LoRA against QLoRA stand."""
LAPTOP = ARTICLE.changed(
    model="shape:smollm2-135m", max_length=128, per_device_train_batch_size=2, gradient_accumulation_steps=1
)
"""What a machine without a GPU measures in minutes."""
COMPARED: dict[Kind, TrainConfig] = {"cuda": ARTICLE, "cpu": LAPTOP}
"""What benchmarks begin with, by device."""
KEPT = ("model", "dataset", "dataset_config", "dataset_split", "columns", "eval_rows", "seed")
"""What a preset leaves as it is: it says how to train, not what, nor which rows are held out."""


def apply_preset(name: str, config: TrainConfig) -> TrainConfig:
    """A preset's way of training on the config's own model and data."""
    return PRESETS[name].changed(**{field: getattr(config, field) for field in KEPT})


def command_line(config: TrainConfig, processes: int = 1) -> str:
    """The command that trains the same: every field that is not at its default."""
    values = config.model_dump()
    changed = [name for name in field_names(TrainConfig) if values[name] != knob(TrainConfig, name).default]
    flags = [f"--{name.replace('_', '-')}={shlex.quote(str(values[name]))}" for name in changed]
    several = [f"--processes {processes}"] if processes > 1 else []
    return " ".join(["python -m qlora_demo train", *flags, *several])


def config_difference(left: TrainConfig, right: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """The fields in which two configs differ: their values."""
    ours, theirs = left.model_dump(), right.model_dump()
    return {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}
