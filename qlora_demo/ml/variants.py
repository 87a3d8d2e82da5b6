"""Which models are resident, in what precision, sharing which weights.  A column is data: one entry in `BUILDERS`."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig, PreTrainedModel

from ..catalog import VARIANTS
from ..errors import ConfigError, RunError, WrongModel
from ..memory import ModelShape, weight_bytes
from ..records import AdapterUse, Progress, Proof, Resident
from ..runs import Run
from ..settings import Settings
from .generate import Activate, warm_up
from .load import (
    device,
    load_16bit,
    load_adapter,
    load_nf4,
    load_tokenizer,
    precision_of,
    resolve,
    tensor_bytes,
)
from .merge import default_base, load_merged

_HEADROOM = 1.15
"""Weights times this must fit: caches and activations want room too."""


@dataclass(frozen=True)
class Loaded:
    """A variant ready to answer.  ``activate`` is entered around each of its passes."""

    resident: Resident
    model: Any
    activate: Activate = nullcontext


class Variants:
    """The variants of one run that are in memory."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.run: Run | None = None
        self.source = ""
        self.tokenizer: Any = None
        self.loaded: dict[str, Loaded] = {}

    def load(self, run: Run, names: Sequence[str]) -> Iterator[Progress]:
        """Bring the named variants of a run into `loaded`, one per step; another run's variants are freed first."""
        _check(run, names)
        if self.run is None or self.run.id != run.id:
            self.release()
            self.source = resolve(self.settings, run.config.model)
            self.tokenizer = load_tokenizer(str(run.adapter))
            self.run = run
        for place, name in enumerate(sorted(names, key=list(BUILDERS).index)):
            if name not in self.loaded:
                yield Progress(f"loading {VARIANTS[name]}", place / len(names))
                self.loaded[name] = self._load(run, name)

    def release(self) -> None:
        """Forget every model and give the memory back."""
        self.run = None
        self.tokenizer = None
        self.loaded.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _load(self, run: Run, name: str) -> Loaded:
        loaded = BUILDERS[name](self, run)
        prove(loaded)
        warm_up(loaded.model, loaded.activate)
        return loaded

    def _adapter(self, run: Run) -> Loaded:
        four_bit = run.config.method == "qlora"
        base = load_nf4(self.source, "inference") if four_bit else load_16bit(self.source)
        model = load_adapter(base, run.adapter)
        note = "4-bit base + LoRA" if four_bit else "16-bit base + LoRA"
        return Loaded(_resident("adapter", model, "on", note=note), model)

    def _base(self, run: Run) -> Loaded:
        if run.config.method == "qlora" and self._base_fits():
            model = load_16bit(self.source)
            return Loaded(_resident("base", model, "none", note="the model before training"), model)
        if "adapter" not in self.loaded:
            self.loaded["adapter"] = self._load(run, "adapter")
        model = self.loaded["adapter"].model
        note = "the adapter column's weights with the adapter off"
        return Loaded(_resident("base", model, "off", shares="adapter", note=note), model, model.disable_adapter)

    def _merged(self, run: Run) -> Loaded:
        onto = default_base(run.config)
        model = load_merged(self.source, run.adapter, run.config, onto)
        return Loaded(_resident("merged", model, "merged", note=f"merged onto the {onto} base"), model)

    def _base_fits(self) -> bool:
        config = AutoConfig.from_pretrained(self.source).get_text_config().to_dict()
        return base_fits(ModelShape.from_config(config), free_bytes())


BUILDERS = {"adapter": Variants._adapter, "base": Variants._base, "merged": Variants._merged}
"""In loading order: `base` may share the weights of `adapter`."""


def base_fits(shape: ModelShape, free: int) -> bool:
    """Whether a 16-bit base of its own fits beside the merged 16-bit model in `free` bytes."""
    return 2 * weight_bytes(shape, "bf16") * _HEADROOM <= free


def free_bytes() -> int:
    """Free memory of the device, now."""
    if device().type == "cuda":
        return torch.cuda.mem_get_info()[0]
    return int(psutil.virtual_memory().available)


def prove(loaded: Loaded, fingerprint: str = "") -> Proof:
    """What the model in this column really is; raises `WrongModel` where that is not what the column says."""
    with loaded.activate():
        precision, adapter = precision_of(loaded.model), _adapter_use(loaded.model)
    expected = loaded.resident
    seen = "merged" if adapter == "none" and expected.adapter == "merged" else adapter
    if (precision, seen) != (expected.precision, expected.adapter):
        raise WrongModel(
            f"{expected.variant}: expected {expected.precision} weights with adapter {expected.adapter}, found "
            f"{precision} with adapter {adapter}; press Free memory and load the run again"
        )
    return Proof(precision, seen, fingerprint)


def _adapter_use(model: PreTrainedModel | PeftModel) -> AdapterUse:
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    if not layers:
        return "none"
    disabled = {layer.disable_adapters for layer in layers}
    if len(disabled) != 1 or any(layer.merged for layer in layers):
        raise WrongModel("adapter: it is on in some layers and off in others; press Free memory and load the run again")
    return "off" if disabled.pop() else "on"


def _resident(variant: str, model: Any, adapter: AdapterUse, shares: str = "", note: str = "") -> Resident:
    precision = precision_of(model)
    title = VARIANTS[variant]
    if variant == "adapter" and precision != "nf4":
        title = f"{precision} + adapter"
    return Resident(variant, title, precision, adapter, tensor_bytes(model), shares, note)


def _check(run: Run, names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in VARIANTS]
    if unknown or not names:
        raise ConfigError("variants", f"{', '.join(unknown) or 'none'} is not known; choose from {', '.join(VARIANTS)}")
    if not run.has_adapter:
        raise RunError(f"run {run.id}: {run.state.status}, it has no adapter; choose a finished run")
