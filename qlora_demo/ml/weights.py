"""Weights held once, and the adapters attached to them, which take turns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer

from ..errors import WrongModel
from ..records import AdapterUse, Precision
from ..sources import Origin
from .fast_step import FastPath
from .generate import stop_ids
from .load import (
    four_bit_layers,
    keep_exact,
    load_adapter,
    read_adapter_config,
    stored_in,
    telling_layer,
    tensor_bytes,
    untied_table_bytes,
)
from .packed import unpack


def uses_weights(origin: Origin) -> bool:
    """Whether an adapter computes with its base's weights themselves, as DoRA does with their norms."""
    return bool(read_adapter_config(origin.adapter).use_dora)


class Weights:
    """A model in memory.  ``digest`` is that of the files its base was read from, ``stops`` the tokens that by them end
    an answer; seconds are what loading took."""

    def __init__(self, model: Any, digest: str, load_seconds: float) -> None:
        self.model = model
        self.digest = digest
        self.stops = stop_ids(model)
        self.load_seconds = load_seconds
        self.warm_up_seconds = 0.0
        self.warm = False
        self._names: dict[Origin, str] = {}
        self._numbers = itertools.count()
        self._layers: list[LoraLayer] = []
        self._telling = telling_layer(model)
        self._bytes: dict[Origin | None, int] = {}
        self._fast: dict[Origin | None, FastPath] = {}

    @property
    def precision(self) -> Precision:
        """How the linear weights are stored, read from a layer of the model, now."""
        return stored_in(self.model.get_submodule(self._telling))

    @property
    def adapters(self) -> frozenset[Origin]:
        """The origins whose adapters are attached."""
        return frozenset(self._names)

    @property
    def repacked(self) -> bool:
        """Whether a pass has stored the 4-bit weights in a way that they can only be multiplied in."""
        states = (layer.weight.quant_state for layer in four_bit_layers(self.model))
        return any(getattr(state, "packing_format_for_cpu", False) for state in states)

    def attach(self, origin: Origin) -> None:
        """Put one more adapter on the weights; it is read once, and takes the place of what its folder held before.
        Where that fails, half of it may be on them."""
        if origin in self._names:
            return
        name = f"adapter{next(self._numbers)}"
        if uses_weights(origin):
            unpack(keep_exact(self.model))
        self.model = load_adapter(self.model, origin.adapter, name)
        self._names[origin] = name
        self._layers = [layer for layer in self.model.modules() if isinstance(layer, LoraLayer)]
        self._telling = telling_layer(self.model)
        self.warm = False
        self._bytes.clear()
        self._fast.clear()
        with self.using(origin):
            for former in [one for one in self._names if one.adapter == origin.adapter and one != origin]:
                self.model.delete_adapter(self._names.pop(former))

    def warmed_up(self, seconds: float) -> None:
        """A first pass took so long; the layers may be stored otherwise since, and are not again."""
        self.warm, self.warm_up_seconds = True, seconds

    def fast(self, origin: Origin | None) -> FastPath:
        """How the model decodes with one adapter on, or none: a captured step holds for that state alone, and for the
        layers as they were captured, so attaching another adapter drops it."""
        if origin not in self._fast:
            self._fast[origin] = FastPath(self.model, lambda: self.using(origin))
        return self._fast[origin]

    def drop_steps(self) -> None:
        """Give up the captured steps and their caches; who answers next begins anew."""
        self._fast.clear()

    @contextmanager
    def using(self, origin: Origin | None) -> Iterator[None]:
        """One adapter on, or none, until somebody asks for another."""
        for layer in self._layers:
            if layer.disable_adapters is (origin is not None):
                layer.enable_adapters(origin is not None)
            if origin is not None and layer.active_adapters != [self._names[origin]]:
                layer.set_adapter([self._names[origin]], inference_mode=True)
        yield

    def adapter_use(self, origin: Origin | None) -> AdapterUse:
        """What the layers say; raises `WrongModel` where they do not agree, or another adapter than the one is on."""
        if not self._layers:
            return "none"
        disabled = {layer.disable_adapters for layer in self._layers}
        active = {tuple(layer.active_adapters) for layer in self._layers}
        if len(disabled) != 1 or any(layer.merged for layer in self._layers):
            raise WrongModel("adapter: it is on in some layers and off in others; press Free memory and load it again")
        if disabled == {True}:
            return "off"
        if origin is None or active != {(self._names.get(origin),)}:
            wanted = origin.name if origin else "none"
            raise WrongModel(f"adapter: another one than {wanted} is on; press Free memory and load it again")
        return "on"

    def bytes_with(self, origin: Origin | None) -> int:
        """Bytes of the base and of one adapter (or none), whatever else is attached."""
        if origin in self._bytes:  # every turn asks, and going through a model takes longer than a token
            return self._bytes[origin]
        name = self._names[origin] if origin else None
        found = tensor_bytes(self.model, lambda full: "lora_" in full and f".{name}." not in full)
        if self.warm:
            self._bytes[origin] = found
        return found

    def read_bytes(self, origin: Origin | None) -> int:
        """Bytes that each new token reads."""
        inner = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        return self.bytes_with(origin) - untied_table_bytes(inner)
