"""A frozen record of knobs: each declared once with its default, range and meaning, validated when it is built."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from .errors import ConfigError, one_line

_FORMER = {
    "max_seq_length": "it is called max_length now",
    "lora_r": "it is called r now",
    "torch_dtype": "the device decides it now, so leave it out",
}


def declare(default: Any, group: str, label: str, meaning: str, **limits: Any) -> Any:
    """A field of a config; ``limits`` are pydantic's (ge, lt, min_length ...)."""
    extra: dict[str, Any] = {"group": group, "label": label}
    return Field(default, description=meaning, json_schema_extra=extra, **limits)


class Knobs(BaseModel):
    """A frozen record whose construction raises `ConfigError` naming the field, the value and the remedy."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as exc:
            raise _translate(type(self), exc) from exc

    @classmethod
    def from_json(cls, text: str, source: str) -> Self:
        """Parse one JSON object; ``source`` is the file's name, for the message."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise ConfigError(source, f"not valid JSON ({exc}); write one JSON object of config fields") from exc
        if not isinstance(values, dict):
            raise ConfigError(source, f"holds a {type(values).__name__}; write one JSON object of config fields")
        return cls(**values)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read a JSON file of config fields."""
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError("config", f"cannot read {path} ({exc}); give a JSON file") from exc
        return cls.from_json(text, str(path))

    def changed(self, **values: Any) -> Self:
        """A copy with other values, validated."""
        return type(self)(**{**self.model_dump(), **values})


def field_names(config: type[Knobs]) -> tuple[str, ...]:
    """The fields in the order they are declared."""
    return tuple(config.model_fields)


def knob(config: type[Knobs], name: str) -> FieldInfo:
    """One field's declaration: default, limits, meaning, and in ``json_schema_extra`` its group and label."""
    return config.model_fields[name]


def shelf(config: type[Knobs], name: str) -> dict[str, Any]:
    """Where a field stands for people: its ``group`` and its ``label``."""
    extra = knob(config, name).json_schema_extra
    assert isinstance(extra, dict)
    return extra


def allowed(config: type[Knobs], name: str) -> str:
    """The allowed values of a field in words, read from its declaration."""
    schema = _schema(config)[name]
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    words = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:g}" for key, sign in words.items() if key in schema]
    if schema["type"] == "boolean":
        return "true or false"
    if schema["type"] == "string":
        return f"a text of {schema['minLength']} to {schema['maxLength']} characters"
    kinds = {"integer": "a whole number", "number": "a number"}
    return " ".join([kinds[schema["type"]], " and ".join(limits)]).strip()


@functools.cache
def _schema(config: type[Knobs]) -> dict[str, Any]:
    """Every field's schema; reading one takes as long as reading all."""
    found: dict[str, Any] = config.model_json_schema()["properties"]
    return found


def _translate(config: type[Knobs], exc: ValidationError) -> ConfigError:
    first = exc.errors()[0]
    name = one_line(first["loc"][0], 80) if first["loc"] else "config"
    if first["type"] == "extra_forbidden":
        newer = f"; {_FORMER[name]}" if name in _FORMER else ""
        return ConfigError(name, f"unknown field{newer}; known are {', '.join(field_names(config))}")
    if name not in config.model_fields:
        return ConfigError(name, f"cannot be read ({first['msg']}); known are {', '.join(field_names(config))}")
    return ConfigError(name, f"{repr(first['input'])[:80]} is not allowed; give {allowed(config, name)}")
