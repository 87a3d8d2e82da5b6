"""What loading columns, or training, would take on this device: nothing is loaded, torch is not needed."""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence

from ..catalog import SHAPES
from ..config import TrainConfig
from ..errors import ConfigError
from ..gpu import device_info, has_bf16
from ..records import Column
from ..runs import RunStore
from ..settings import Settings
from ..sources import Origin, adapter_bytes, linear_layers, origin_of, planned_shape, resolve, shape_of
from .alternatives import Comparison, compare
from .choices import choose, expected, refuse_targets
from .memory_plan import Kind
from .placement import Device, Placement, Wanted, place


def wanted(column: Column, origin: Origin, attached: Container[Origin] = ()) -> Wanted:
    """A column and what it is placed by; an adapter that is attached already takes no more room."""
    extra = 0 if origin in attached else adapter_bytes(origin.adapter)
    return Wanted(column, origin.model, shape_of(origin.model), origin.form, extra, origin.version)


def plan_empty(settings: Settings, runs: RunStore, columns: Sequence[Column]) -> Placement:
    """What loading the columns would do while nothing is in memory."""
    found = [wanted(column, origin_of(settings, runs, column)) for column in columns]
    info = device_info()
    return place(found, {}, Device(info.kind, info.free_bytes, info.total_bytes))


def plan_training(settings: Settings, config: TrainConfig, gpu_bytes: int | None = None) -> Comparison:
    """The memory plan of a config on this device, or on a GPU of so many bytes; works from a model's config alone."""
    shape, info = planned_shape(settings, config.model), device_info()
    if linear := _known_layers(settings, config.model):
        refuse_targets(config, linear)
    if shape.positions and config.max_length > shape.positions:
        raise ConfigError(
            "max_length", f"{config.max_length} is beyond the model's {shape.positions} positions; give at most that"
        )
    kind: Kind = "cuda" if gpu_bytes else info.kind
    device_bytes = gpu_bytes or info.total_bytes
    bf16 = bool(gpu_bytes) or has_bf16()
    now = expected(kind, shape, device_bytes, here=kind == info.kind, has_bf16=bf16)
    chosen = choose(config, shape, now)
    return compare(
        shape, config, now.on, device_bytes, checkpointing=chosen.gradient_checkpointing, kernels=chosen.kernels
    )


def _known_layers(settings: Settings, model: str) -> Collection[str]:
    """Names of a model's linear layers where they can be told; empty where its files are elsewhere."""
    return SHAPES[model].linear_sizes() if model in SHAPES else linear_layers(resolve(settings, model))
