"""Weights as the CPU's matrix kernels read them, for models that only answer.

oneDNN multiplies a row by packed bf16 weights faster than by those that lie row by row (docs/decode.md), with the same
result for the rows that are tried; Inductor packs them in the same way where it freezes a model.  A packed layer takes
the place of the plain one, so nothing is held twice: a head that is the embedding table as well stays as it is.
"""

from __future__ import annotations

import platform

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

_ROWS = 3
"""Of the product that a packed layer must repeat exactly before it is used."""


class PackedLinear(nn.Linear):
    """A linear layer over packed weights, for inference: no gradient passes it."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), 1)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = plain.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return made


class FoldedLinear(nn.Linear):
    """A linear layer over frozen plain weights that takes all rows as one matrix.

    For the last token of a prompt, a slice of a longer tensor, torch would transpose the whole table first.
    """

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        self.weight, self.bias = plain.weight, plain.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        folded = functional.linear(x.reshape(-1, self.in_features), self.weight, self.bias)
        return folded.reshape(*x.shape[:-1], self.out_features)


def pack(model: PreTrainedModel) -> PreTrainedModel:
    """The model, its 16-bit linear layers packed where the CPU has kernels for it and they give the same bits."""
    if model.device.type != "cpu":
        return model
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if type(layer) is not nn.Linear:
            continue
        tied = layer is head and layer.weight is table.weight
        model.set_submodule(name, FoldedLinear(layer) if tied else pack_layer(layer))
    return model.eval()


def pack_layer(layer: nn.Linear) -> nn.Linear:
    """The layer, packed where the CPU has kernels for it and they give the same bits; else as it is."""
    if layer.weight.dtype is not torch.bfloat16 or not _has_kernels():
        return layer
    packed = PackedLinear(layer)
    rows = torch.linspace(-1, 1, _ROWS * layer.in_features).reshape(1, _ROWS, -1).to(layer.weight.dtype)
    with torch.inference_mode():
        same = torch.equal(layer(rows), packed(rows))
    return packed if same else layer


def unpack(model: nn.Module) -> None:
    """Give packed layers plain weights again, for what computes with the weights themselves."""
    for layer in list(model.modules()):
        for name, inner in list(layer.named_children()):
            if isinstance(inner, PackedLinear):
                plain = nn.Linear(inner.in_features, inner.out_features, bias=False, device="meta")
                plain.weight = nn.Parameter(inner.weight.to_dense(), requires_grad=False)
                plain.bias = inner.bias
                layer.add_module(name, plain.eval())


def _has_kernels() -> bool:
    x86 = platform.machine() in ("x86_64", "AMD64")
    return x86 and torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
