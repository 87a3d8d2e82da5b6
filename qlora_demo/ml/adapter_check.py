"""What PEFT would follow in an adapter's files, refused before it does: code to import, layers to multiply, ranks that
its weights do not have, patterns that never end, weights that stay on the base when another adapter's turn comes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig
from safetensors import SafetensorError, safe_open

from ..errors import AdapterError
from ..runs import ADAPTER_WEIGHTS

_FOREIGN = ("megatron_config", "layer_replication", "arrow_config", "modules_to_save", "trainable_token_indices")
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin with that leave the base as it is."""
_ENDLESS, _REPEATED, _MOST_REPEATED = re.compile(r"\)[*+{]"), re.compile(r"[*+}]"), 3
"""A repeated group may take for ever on one name; so may many repetitions after each other."""


def check_adapter(config: PeftConfig, folder: Path) -> None:
    """Raise `AdapterError` for an adapter that asks for more than LoRA layers of its own rank."""
    if not isinstance(config, LoraConfig):
        raise AdapterError(f"adapter {folder}: is {config.peft_type}, not LORA; give a LoRA adapter")
    if asked := [name for name in _FOREIGN if getattr(config, name)]:
        raise AdapterError(f"adapter {folder}: {asked[0]} is not supported; give an adapter of LoRA layers only")
    if config.bias != "none":
        raise AdapterError(
            f"adapter {folder}: bias {config.bias!r} is not supported; give an adapter of LoRA layers only"
        )
    if config.init_lora_weights not in _PLAIN_STARTS:
        raise AdapterError(
            f"adapter {folder}: init_lora_weights {config.init_lora_weights!r} changes the base that others share; "
            "save it with path_initial_model_for_weight_conversion, see PEFT's guide"
        )
    named = (config.target_modules, config.exclude_modules, config.layers_pattern, config.modules_to_save)
    for pattern in (one for part in (*named, config.rank_pattern, config.alpha_pattern) for one in _texts(part)):
        if _ENDLESS.search(pattern) or len(_REPEATED.findall(pattern)) > _MOST_REPEATED:
            raise AdapterError(f"adapter {folder}: {pattern[:80]!r} repeats too much; name the layers instead")
    shapes = _shapes(folder)
    if beside := [name for name in shapes if "lora_" not in name]:
        raise AdapterError(
            f"adapter {folder}: holds {beside[0][:80]} beside its layers' updates, which would stay on the base for "
            "other adapters; give an adapter of LoRA layers only, or merge this one into its base"
        )
    ranks = sorted({shape[0] for name, shape in shapes.items() if "lora_A" in name})
    asked_for = [config.r, *(config.rank_pattern or {}).values()]
    if not all(isinstance(rank, int) and rank <= max(ranks, default=0) for rank in asked_for):
        raise AdapterError(f"adapter {folder}: says rank {asked_for} and its weights have {ranks}; train again")


def check_landed(found: Any, folder: Path, name: str) -> None:
    """Raise `AdapterError` where part of an adapter is on no layer, or a layer has none, by what its loading `found`:
    PEFT only warns, and the base would answer in the adapter's name."""
    if astray := found.unexpected_keys:
        raise AdapterError(
            f"adapter {folder}: holds {astray[0][:80]}, which is no layer of the base ({len(astray)} such); give the "
            "base that it was trained on, or save it from the language model itself"
        )
    if missing := [key for key in found.missing_keys if f".{name}." in key]:
        raise AdapterError(
            f"adapter {folder}: lacks {missing[0][:80]}, which its configuration asks for ({len(missing)} such); train "
            "again or restore the file"
        )


def _texts(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else [str(name) for name in names or ()]


def _shapes(folder: Path) -> dict[str, list[int]]:
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as exc:
        raise AdapterError(
            f"adapter {folder}: {ADAPTER_WEIGHTS} does not fit the base model or is damaged ({exc}); train again"
        ) from exc
