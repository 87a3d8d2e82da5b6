"""What frozen layers multiply in while something else is trained: fp32, where the processor is slow in bf16.

The weights stay as they are stored; a product is computed in fp32 from them and rounded to the type of its input.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from .device import faster_in_fp32

_FEW_ROWS = 16


class WideLinear(nn.Linear):
    """A frozen linear layer over 16-bit weights whose products are computed in fp32, but for a few rows, as of tokens
    that are decoded: widening the weights would take longer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() < _FEW_ROWS * self.in_features:
            return super().forward(x)
        made: torch.Tensor = _WideProduct.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return made


class _WideProduct(torch.autograd.Function):
    """Only the input gets a gradient.  The weights are widened again for it: kept, they would be a second model."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.of_x = x.dtype
        with torch.autocast("cpu", enabled=False):
            made = functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
        return made.to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        (gradient,) = gradients
        return (gradient.float() @ weight.float()).to(ctx.of_x), None, None


def widen_products(model: PreTrainedModel) -> None:
    """Have a model whose weights are frozen from now on multiply in fp32 where that is faster; what would be saved with
    it stays as it is.  The head is left out: its loss has a way of its own."""
    if not faster_in_fp32():
        return
    head = model.get_output_embeddings()
    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.compute_dtype, layer.compute_type_is_set = torch.float32, True
        elif type(layer) is nn.Linear and layer is not head:
            layer.__class__ = WideLinear
