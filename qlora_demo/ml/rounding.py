"""Weights as they come back from the forms that they can be stored in."""

from __future__ import annotations

import bitsandbytes.functional as quantization
import torch

from ..records import BaseForm

BLOCK = 64
"""Weights that share a constant."""


def rounded(values: torch.Tensor, kind: str = "nf4", *, double: bool = True) -> torch.Tensor:
    """The values as they come back from a 4-bit type."""
    packed, state = quantization.quantize_4bit(values, blocksize=BLOCK, quant_type=kind, compress_statistics=double)
    back: torch.Tensor = quantization.dequantize_4bit(packed, state)
    return back


def as_trained(weight: torch.Tensor, form: BaseForm) -> torch.Tensor:
    """A layer's weights as the forward pass of training writes them out."""
    if form == "16bit":
        return weight
    if form == "int8":
        stored, scales, _ = quantization.int8_vectorwise_quant(weight.half())
        written: torch.Tensor = quantization.int8_vectorwise_dequant(stored, scales)
        return written
    kind, _, single = form.partition("-")
    return rounded(weight, kind, double=not single)


def evenly_spaced(blocks: torch.Tensor) -> torch.Tensor:
    """Blocks of weights, one a row, rounded to 15 values around zero that are evenly spaced up to the largest."""
    scale = largest(blocks) / 7
    return (blocks / scale).round().clamp(-7, 7) * scale


def largest(blocks: torch.Tensor) -> torch.Tensor:
    """The largest size of a weight in each block, one a row."""
    return blocks.abs().amax(1, keepdim=True).clamp(min=1e-30)
