"""A model's decoder layers as a compiler sees them: one function over any of them, compiled once for all.

Layers differ in their weights, in their number and in which part of the cache is theirs.  Weights are inputs to a
compiled function; the other two are put in the same place for every layer while such a pass runs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

Forward = Callable[..., Any]


def layer_pass(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """One decoder layer's pass."""
    return type(layer).forward(layer, *args, **kwargs)


class Part:
    """One layer's part of a static cache, whatever number the layer asks for."""

    def __init__(self, part: StaticLayer) -> None:
        self._part = _unmarked(part)

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
        return self._part.update(keys, values, *args, **kwargs)


class LayerPasses:
    """The layers of a model over a static cache that holds something already, to be run by `forward`, which was
    compiled from `layer_pass`.  A layer that is not given the cache as such raises `TypeError`."""

    def __init__(self, layers: list[nn.Module], cache: StaticCache, forward: Forward) -> None:
        pairs = zip(layers, cache.layers, strict=True)
        self._passes = [(layer, _over(forward, layer, (cache, Part(part)))) for layer, part in pairs]

    @contextmanager
    def first(self, count: int) -> Iterator[None]:
        """So many layers run by the function within the block; every other pass of the model is as ever."""
        taken = self._passes[:count]
        numbered: list[Any] = [
            module for layer, _ in taken for module in layer.modules() if hasattr(module, "layer_idx")
        ]
        numbers = [module.layer_idx for module in numbered]
        eager = [vars(layer).get("forward") for layer, _ in taken]
        try:
            for layer, forward in taken:
                layer.forward = forward
            for module in numbered:
                module.layer_idx = 0
            yield
        finally:
            for module, number in zip(numbered, numbers, strict=True):
                module.layer_idx = number
            for (layer, _), before in zip(taken, eager, strict=True):
                del layer.forward
                if before is not None:
                    layer.forward = before


def _over(forward: Forward, layer: nn.Module, caches: tuple[StaticCache, Part]) -> Forward:
    """The layer's pass by a function, over its part where it is given the whole cache, under whatever name."""
    whole, part = caches

    def run(*args: Any, **kwargs: Any) -> Any:
        if not any(given is whole for given in (*args, *kwargs.values())):
            raise TypeError(f"{type(layer).__name__} is not given the cache")
        replaced = [part if given is whole else given for given in args]
        return forward(layer, *replaced, **{name: part if given is whole else given for name, given in kwargs.items()})

    return run


def _unmarked(part: StaticLayer) -> StaticLayer:
    """The same memory under tensors that are not marked as never moving: for a compiler each mark is a case of its
    own."""
    twin = copy.copy(part)
    for name in ("keys", "values", "cumulative_length"):
        tensor = getattr(part, name)
        setattr(twin, name, tensor.view_as(tensor))
    return twin
