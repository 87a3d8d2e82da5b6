"""What the situation decides, and why: defaults that would cost time or memory for nothing are not taken blindly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .config import TrainConfig
from .memory import ModelShape, activation_bytes, weight_bytes
from .records import Choice

GIB = 1 << 30
_ROOM = 0.6
"""Share of the free memory that weights and activations may take before checkpointing is turned on."""


@dataclass(frozen=True)
class Situation:
    """What a choice depends on; memory in bytes."""

    kind: Literal["cuda", "cpu"]
    has_bf16: bool
    free_bytes: int


@dataclass(frozen=True)
class Chosen:
    """Settings for the trainer, each with its reason in `reasons`."""

    gradient_checkpointing: bool
    optim: str
    bf16: bool
    fp16: bool
    reasons: tuple[Choice, ...]


def choose(config: TrainConfig, shape: ModelShape, situation: Situation) -> Chosen:
    """Decide what a person left to us, from the model's shape and the device."""
    checkpointing, checkpointing_choice = _checkpointing(config, shape, situation)
    cuda = situation.kind == "cuda"
    optim = "paged_adamw_32bit" if cuda else "adamw_torch"
    optim_why = "its state moves to the host when the GPU is full" if cuda else "paged optimizers need a CUDA device"
    mixed = cuda or config.method == "lora"
    number = Choice("Number format", *_number_format(situation))
    return Chosen(
        gradient_checkpointing=checkpointing,
        optim=optim,
        bf16=mixed and situation.has_bf16,
        fp16=mixed and not situation.has_bf16,
        reasons=(checkpointing_choice, Choice("Optimizer", optim, optim_why), number),
    )


def _number_format(situation: Situation) -> tuple[str, str]:
    if situation.has_bf16:
        return "bf16", "the device computes in bf16"
    return "fp16 with fp32 adapters", "the device has no bf16; fp16 gradients need fp32 adapters to be scaled"


def _checkpointing(config: TrainConfig, shape: ModelShape, situation: Situation) -> tuple[bool, Choice]:
    what = "Gradient checkpointing"
    if config.gradient_checkpointing != "auto":
        return config.gradient_checkpointing == "on", Choice(what, config.gradient_checkpointing, "chosen by hand")
    tokens = config.per_device_train_batch_size * config.max_length
    weights = weight_bytes(shape, "nf4" if config.method == "qlora" else "bf16")
    need = weights + activation_bytes(shape, tokens, checkpointing=False)
    figures = f"weights and activations need up to {need / GIB:.1f} GiB of {situation.free_bytes / GIB:.1f} GiB free"
    if need > _ROOM * situation.free_bytes:
        return True, Choice(what, "on", f"{figures}: recomputing activations saves memory")
    return False, Choice(what, "off", f"{figures}: there is room, and recomputing them would only cost time")
