"""Config fields <-> components: the only place that knows both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, get_args

import gradio as gr

from ..benchmark.config import BenchmarkConfig
from ..catalog import BUNDLED_DATASETS, BUNDLED_MODELS, SHAPE_PREFIX, SHAPES
from ..config import GenerationSettings, TrainConfig
from ..knobs import Knobs, allowed, field_names, knob, shelf

Config = TypeVar("Config", TrainConfig, GenerationSettings, BenchmarkConfig)
Controls = dict[str, Any]
_SEEN_AT_ONCE = 3
"""Choices that lie open; more are a list to unfold."""
_SUGGESTIONS = {
    "model": [*BUNDLED_MODELS, *(SHAPE_PREFIX + name for name in SHAPES)],
    "dataset": list(BUNDLED_DATASETS),
    "target_modules": ["all-linear", "attention", "mlp"],
    "run": [""],
}


def draw(config: type[Knobs], group: str) -> Controls:
    """Components for one group of fields, in the order they are declared, by field name."""
    names = (name for name in field_names(config) if group_of(config, name) == group)
    return {name: _control(config, name, knob(config, name).default) for name in names}


def draw_some(values: Knobs, names: Sequence[str], place: str) -> Controls:
    """Components for some fields with a config's own values; ``place`` tells their ids from those of another tab."""
    return {name: _control(type(values), name, getattr(values, name), place) for name in names}


def read(config: type[Config], names: Sequence[str], values: Sequence[Any]) -> Config:
    """The config that the components' values mean; raises `ConfigError` naming the field."""
    return config(**dict(zip(names, values, strict=True)))


def fill(config: Knobs, names: Sequence[str]) -> list[Any]:
    """A config's values for the components, in the order of their names."""
    values = config.model_dump()
    return [values[name] for name in names]


def group_of(config: type[Knobs], name: str) -> str:
    """The group that a field is drawn in."""
    return str(shelf(config, name)["group"])


def _control(config: type[Knobs], name: str, value: Any, place: str = "") -> Any:
    field = knob(config, name)
    common: dict[str, Any] = {
        "label": shelf(config, name)["label"],
        "info": field.description if value == "" else f"{field.description} (default {value})",
        "value": value,
        "elem_id": f"{place}{config.__name__}-{name}",
        "interactive": True,
        "min_width": 160,
    }
    wide = common | {"min_width": 320}
    if name in _SUGGESTIONS:
        return gr.Dropdown(_SUGGESTIONS[name], allow_custom_value=True, **wide)
    if field.annotation is bool:
        return gr.Checkbox(elem_classes="tick", **common)
    if field.annotation is str:
        return gr.Textbox(**common)
    if options := [str(option) for option in get_args(field.annotation)]:
        return gr.Radio(options, **wide) if len(options) <= _SEEN_AT_ONCE else gr.Dropdown(options, **common)
    whole = allowed(config, name).startswith("a whole number")
    return gr.Number(precision=0 if whole else None, **common)
