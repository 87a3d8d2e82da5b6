"""What the situation decides, and why: defaults that would cost time or memory for nothing are not taken blindly."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec

from ..config import Method, TrainConfig, target_names
from ..errors import ConfigError
from ..memory import ModelShape
from ..records import CHECKPOINTING, Choice
from ..units import GIB, counted, memory
from .alternatives import FASTER, ROOM, fewer_passes
from .memory_plan import Kernels, Kind, On, optimizer_of, paged_state_bytes, plan

_FUSED = {
    *("llama", "mistral", "ministral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text", "phi3"),
    *("granite", "olmo2", "olmo3", "glm4", "exaone4", "nemotron", "hunyuan_v1_dense"),
}
"""Types of models for which liger-kernel 0.8.5 has layer kernels, of those that can be trained here."""


_WIDENED: tuple[Method, ...] = ("qlora", "lora")
"""The methods whose frozen layers can multiply in fp32; 8-bit ones have a product of their own."""


@dataclass(frozen=True)
class Situation:
    """What a choice depends on; memory in bytes.  ``no_fused_kernels`` is why fused layer kernels do not load, empty
    where they do; ``triton``: whether a GPU's loss runs on it; ``fp32_products``: whether frozen layers multiply in
    fp32."""

    kind: Kind
    has_bf16: bool
    free_bytes: int
    no_fused_kernels: str = "they were not looked for"
    triton: bool = True
    fp32_products: bool = False

    @property
    def on(self) -> On:
        return self.kind if self.has_bf16 or self.kind == "cpu" else "cuda-fp16"

    @property
    def kernels(self) -> Kernels:
        if not self.no_fused_kernels:
            return "fused"
        return "triton" if self.kind == "cuda" and self.triton else "torch"


@dataclass(frozen=True)
class Chosen:
    """Settings for the trainer, each with its reason in `reasons`."""

    gradient_checkpointing: bool
    optim: str
    bf16: bool
    fp16: bool
    fp32_products: bool
    kernels: Kernels
    reasons: tuple[Choice, ...]


def choose(config: TrainConfig, shape: ModelShape, situation: Situation) -> Chosen:
    """Decide what a person left to us, from the model's shape and the device."""
    checkpointing, checkpointing_choice = _checkpointing(config, shape, situation)
    cuda = situation.kind == "cuda"
    widened = situation.fp32_products and config.method in _WIDENED
    mixed = cuda or config.method == "lora"
    return Chosen(
        gradient_checkpointing=checkpointing,
        optim=optimizer_of(config, situation.kind),
        bf16=mixed and situation.has_bf16,
        fp16=mixed and not situation.has_bf16,
        fp32_products=widened,
        kernels=situation.kernels,
        reasons=(
            checkpointing_choice,
            Choice("Optimizer", optimizer_of(config, situation.kind), _optimizer_why(config, shape, situation.kind)),
            Choice("Number format", *_number_format(situation, widened)),
            Choice("Fused kernels", *_fused_kernels(situation)),
            *_passes(config, shape, situation, checkpointing),
        ),
    )


def expected(kind: Kind, shape: ModelShape, free_bytes: int, *, here: bool = True, has_bf16: bool = True) -> Situation:
    """The situation on a device of a kind, as far as it can be told without loading anything: on this machine, or on
    another that has what requirements-gpu.txt installs."""
    fuses = kind == "cuda" and shape.family in _FUSED and (not here or bool(find_spec("liger_kernel")))
    trouble = "" if fuses else "they need a CUDA device, a model that Liger has kernels for, and liger-kernel"
    return Situation(kind, has_bf16, free_bytes, trouble, triton=not here or bool(find_spec("triton")))


def refuse(config: TrainConfig, kind: Kind) -> None:
    """Raise `ConfigError`, with the reason, for what the libraries or the device cannot do."""
    cuda = kind == "cuda"
    if config.optim not in ("auto", "adamw_torch") and not cuda:
        raise ConfigError("optim", f"{config.optim} needs a CUDA device; choose auto or adamw_torch")
    if config.packing and not (cuda and find_spec("flash_attn")):
        raise ConfigError(
            "packing",
            "needs FlashAttention, which keeps packed rows apart; rows would see each other here: leave it off",
        )
    if config.use_dora and config.method == "lora-8bit" and not cuda:
        raise ConfigError("use_dora", "needs a CUDA device on an 8-bit base; choose method qlora or lora, or no DoRA")
    if config.parallel == "fsdp" and not cuda:
        raise ConfigError("parallel", "fsdp shards over GPUs and there is none here; choose ddp")
    if config.report_to != "none" and not find_spec(config.report_to):
        raise ConfigError("report_to", f"{config.report_to} is not installed; pip install {config.report_to}, or none")


def refuse_processes(config: TrainConfig, processes: int, gpus: int) -> None:
    """Raise `ConfigError` for more processes than GPUs, where there are any, and for shards of one process."""
    if gpus and processes > gpus:
        raise ConfigError("processes", f"{processes} are more than the GPUs here; give at most {gpus}")
    if config.parallel == "fsdp" and processes < 2:
        raise ConfigError("processes", "fsdp shards over two or more; give as many, or choose ddp")


def refuse_targets(config: TrainConfig, linear: Collection[str]) -> None:
    """Raise `ConfigError` where a layer is named that is not among a model's linear ones, given by their full names."""
    known = sorted({name.rpartition(".")[2] for name in linear} - {"lm_head"})
    for wanted in target_names(config.target_modules) or ():
        if not any(name == wanted or name.endswith(f".{wanted}") for name in linear) or wanted == "lm_head":
            raise ConfigError(
                "target_modules", f"{wanted!r} is no layer that can be adapted; choose of {', '.join(known)}"
            )


def _optimizer_why(config: TrainConfig, shape: ModelShape, kind: Kind) -> str:
    if config.optim != "auto":
        return "chosen by hand"
    if kind == "cpu":
        return "paged optimizers need a CUDA device"
    if moves := paged_state_bytes(shape, config, kind):
        return f"{memory(moves)} of its state move to the host when the GPU is full"
    return "its state would move to the host when the GPU is full, but no matrix here is large enough to be paged"


def _number_format(situation: Situation, widened: bool) -> tuple[str, str]:
    if widened:
        return "bf16, frozen layers multiply in fp32", "a processor without matrix units for bf16 is faster in fp32"
    if situation.has_bf16:
        return "bf16", "the device computes in bf16"
    return "fp16 with fp32 adapters", "the device has no bf16; fp16 gradients need fp32 adapters to be scaled"


def _fused_kernels(situation: Situation) -> tuple[str, str]:
    if situation.no_fused_kernels:
        return "none", situation.no_fused_kernels
    return "Liger's norms, rotary positions and MLP", "they load here: fewer launches, and less is kept for backward"


def _passes(config: TrainConfig, shape: ModelShape, situation: Situation, recomputes: bool) -> tuple[Choice, ...]:
    """What fewer passes a step would take, where they fit; the config's are taken."""
    kernels, free = situation.kernels, situation.free_bytes
    found = fewer_passes(shape, config, situation.on, free, checkpointing=recomputes, kernels=kernels)
    if not found:
        return ()
    taken = f"{config.gradient_accumulation_steps} passes of {counted(config.per_device_train_batch_size, 'row')}"
    fits = f"({memory(found.total_bytes)} of {memory(free)} free)"
    other = f"batch size {found.rows} with accumulation {found.count} is the same step and would fit too {fits}"
    return (Choice("Passes", taken, f"as chosen; {other}: {FASTER}"),)


def _checkpointing(config: TrainConfig, shape: ModelShape, situation: Situation) -> tuple[bool, Choice]:
    what = CHECKPOINTING
    if config.gradient_checkpointing != "auto":
        return config.gradient_checkpointing == "on", Choice(what, config.gradient_checkpointing, "chosen by hand")
    need = plan(shape, config, situation.on, checkpointing=False, kernels=situation.kernels).total_bytes
    figures = f"the plan without is {need / GIB:.1f} GiB of {situation.free_bytes / GIB:.1f} GiB free"
    if need > ROOM * situation.free_bytes:
        return True, Choice(what, "on", f"{figures}: recomputing activations saves memory")
    return False, Choice(what, "off", f"{figures}: there is room, and recomputing them would only cost time")
