"""Config fields <-> components: the only place that knows both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, get_args

import gradio as gr

from ..catalog import BUNDLED_DATASETS, BUNDLED_MODELS
from ..config import GenerationSettings, TrainConfig
from ..knobs import allowed, field_names, knob

Config = TypeVar("Config", TrainConfig, GenerationSettings)
Controls = dict[str, Any]
_SUGGESTIONS = {
    "model": list(BUNDLED_MODELS),
    "dataset": list(BUNDLED_DATASETS),
    "target_modules": ["all-linear", "attention", "mlp"],
}


def draw(config: type[TrainConfig] | type[GenerationSettings], group: str) -> Controls:
    """Components for one group of fields, in the order they are declared, by field name."""
    return {name: _control(config, name) for name in field_names(config) if _extra(config, name)["group"] == group}


def read(config: type[Config], names: Sequence[str], values: Sequence[Any]) -> Config:
    """The config that the components' values mean; raises `ConfigError` naming the field."""
    return config(**dict(zip(names, values, strict=True)))


def fill(config: TrainConfig | GenerationSettings, names: Sequence[str]) -> list[Any]:
    """A config's values for the components, in the order of their names."""
    values = config.model_dump()
    return [values[name] for name in names]


def _control(config: type[TrainConfig] | type[GenerationSettings], name: str) -> Any:
    field = knob(config, name)
    common: dict[str, Any] = {
        "label": _extra(config, name)["label"],
        "info": field.description if field.default == "" else f"{field.description} (default {field.default})",
        "value": field.default,
        "elem_id": f"{config.__name__}-{name}",
        "interactive": True,
        "min_width": 160,
    }
    if name in _SUGGESTIONS:
        return gr.Dropdown(_SUGGESTIONS[name], allow_custom_value=True, **common | {"min_width": 320})
    if field.annotation is bool:
        return gr.Checkbox(**common | {"min_width": 280})
    if field.annotation is str:
        return gr.Textbox(**common)
    if options := get_args(field.annotation):
        return gr.Radio([str(option) for option in options], **common)
    whole = allowed(config, name).startswith("a whole number")
    return gr.Number(precision=0 if whole else None, **common)


def _extra(config: type[TrainConfig] | type[GenerationSettings], name: str) -> dict[str, Any]:
    extra = knob(config, name).json_schema_extra
    assert isinstance(extra, dict)
    return extra
