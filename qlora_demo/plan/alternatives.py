"""A memory plan beside what else could be chosen: other ways, longer rows and larger batches, lighter settings, fewer
passes.  Arithmetic, as the plan is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..config import MOST_ROWS, MOST_TOKENS, TrainConfig
from ..errors import ConfigError
from ..memory import ModelShape
from ..records import Lighter
from .memory_plan import Kernels, MemoryPlan, On, plan

ROOM = 0.8
"""Share of the free memory that a plan may take where there is a choice: a run that ends out of memory costs more than
recomputing, or than more passes."""
FASTER = "faster where the GPU waits for its CPU, though rows of unequal length are padded more"
"""What fewer passes are, in words."""
_BUSY_TOKENS = 8192
"""Of a pass, which keep an H200 busy with a model of 7B (docs/gpu.md); a slower GPU, or a larger model, takes fewer."""


@dataclass(frozen=True)
class Passes:
    """How the rows of a step go through the model: so many times so many rows; the plan's total in bytes."""

    rows: int
    count: int
    total_bytes: int

    def told(self) -> dict[str, int]:
        """By the names of the fields that would have to be set."""
        fields = {"per_device_train_batch_size": self.rows, "gradient_accumulation_steps": self.count}
        return fields | {"total_bytes": self.total_bytes}


@dataclass(frozen=True)
class Comparison:
    """The chosen way on a device, what else would take, and how far it goes.  ``checkpointed_bytes``: the total with
    activations recomputed; ``largest_batch`` and ``longest_row`` are 0 where nothing fits; ``fewer_passes``: the same
    step with less accumulation and the same checkpointing, None where that does not fit or would gain nothing."""

    chosen: MemoryPlan
    others: tuple[MemoryPlan, ...]
    checkpointed_bytes: int
    device_bytes: int
    largest_batch: int
    longest_row: int
    fewer_passes: Passes | None = None

    @property
    def fits(self) -> bool:
        return self.chosen.total_bytes <= self.device_bytes


def compare(
    shape: ModelShape,
    config: TrainConfig,
    on: On,
    device_bytes: int,
    *,
    checkpointing: bool,
    kernels: Kernels = "triton",
) -> Comparison:
    """The plan beside plain LoRA and full fine-tuning, with the largest batch and the longest row that fit."""

    def planned(changed: TrainConfig, recomputes: bool = checkpointing, full: bool = False) -> MemoryPlan:
        return plan(shape, changed, on, checkpointing=recomputes, kernels=kernels, full=full)

    def fits(changed: TrainConfig) -> bool:
        return planned(changed).total_bytes <= device_bytes

    longest = min(MOST_TOKENS, shape.positions or MOST_TOKENS)
    others = [
        planned(config.changed(method=way, init_lora_weights="default"))
        for way in ("qlora", "lora")
        if way != config.method
    ]
    others.append(planned(config, full=True))
    return Comparison(
        chosen=planned(config),
        others=tuple(others),
        checkpointed_bytes=planned(config, recomputes=True).total_bytes,
        device_bytes=device_bytes,
        largest_batch=_largest(MOST_ROWS, lambda rows: fits(config.changed(per_device_train_batch_size=rows))),
        longest_row=_largest(longest, lambda tokens: fits(config.changed(max_length=max(16, tokens)))),
        fewer_passes=fewer_passes(shape, config, on, device_bytes, checkpointing=checkpointing, kernels=kernels),
    )


def fewer_passes(
    shape: ModelShape,
    config: TrainConfig,
    on: On,
    free_bytes: int,
    *,
    checkpointing: bool,
    kernels: Kernels = "triton",
) -> Passes | None:
    """The fewest passes in which the rows of a step go through the model and leave some memory free, none larger than
    keeps a GPU busy; None where those that were chosen are, and on a CPU, which one row keeps busy."""
    batch, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    if on == "cpu":
        return None
    for count in (count for count in range(1, accumulation) if accumulation % count == 0):
        rows = batch * (accumulation // count)
        if rows > MOST_ROWS or rows * config.max_length > _BUSY_TOKENS:
            continue
        total = plan(shape, config.in_passes(count), on, checkpointing=checkpointing, kernels=kernels).total_bytes
        if total <= ROOM * free_bytes:
            return Passes(rows, count, total)
    return None


def lighter(
    shape: ModelShape, config: TrainConfig, on: On, *, checkpointing: bool, kernels: Kernels = "triton"
) -> tuple[Lighter, ...]:
    """The three changes of a config that save most memory by the plan, the largest saving first."""
    batch, length = config.per_device_train_batch_size, config.max_length
    wanted: list[dict[str, Any]] = [
        {"gradient_checkpointing": "on"},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": batch * config.gradient_accumulation_steps},
        {"max_length": max(16, length // 2)},
        {"method": "qlora", "init_lora_weights": "default"},
        {"r": max(1, config.r // 2)},
        {"target_modules": "attention"},
    ]
    now = plan(shape, config, on, checkpointing=checkpointing, kernels=kernels).total_bytes

    def saves(changes: dict[str, Any]) -> int:
        recomputes = checkpointing or changes.get("gradient_checkpointing") == "on"
        try:
            changed = config.changed(**changes)
        except ConfigError:  # beyond a field's range, or at odds with another
            return 0
        return now - plan(shape, changed, on, checkpointing=recomputes, kernels=kernels).total_bytes

    found = sorted((Lighter(changes, saves(changes)) for changes in wanted), key=lambda one: -one.saves_bytes)
    return tuple(one for one in found if one.saves_bytes > 0)[:3]


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `most` that fits; 0 where 1 does not."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
