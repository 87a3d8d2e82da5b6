"""Adapter -> merged 16-bit model, onto the original base or onto the dequantized base; never into 4-bit weights.

An adapter trained on NF4 learned to correct the *quantized* base.  Merged onto the dequantized base it stays the model
that was trained; merged onto the original base it meets weights it has never seen.  Which is better is measured, not
assumed: see `merge_fidelity` in judge.py.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from ..errors import RequestError, WrongModel
from ..memory import weight_bytes
from ..records import MergeBase
from ..sources import Origin, shape_of
from ..system import cgroup
from .device import device, free_and_total
from .load import load_16bit, load_adapter, load_dequantized

_FITS = 1.5
"""The merged weights times this must be free: the base is dequantized, and a layer merged, beside them."""


def where_to_merge(model: str) -> torch.device:
    """The device, or the processor where only that has room for a model's merge in 16 bit."""
    needed = _FITS * weight_bytes(shape_of(model), "16bit")
    if free_and_total()[0] < needed <= cgroup.free_and_total()[0]:
        return torch.device("cpu")
    return device()


def load_merged(origin: Origin, onto: MergeBase, on: torch.device | None = None) -> PreTrainedModel:
    """A plain 16-bit model with the adapter merged in by PEFT, checked to hold exactly the adapter's update."""
    if onto == "dequantized" and origin.form == "16bit":
        raise RequestError(
            "onto: dequantized is for adapters trained on a 4-bit or 8-bit base; this one was not, use original"
        )
    base = load_dequantized(origin.model, origin.form, on) if onto == "dequantized" else load_16bit(origin.model, on)
    peft_model = load_adapter(base, origin.adapter)
    name, expected = _first_update(peft_model)
    merged: PreTrainedModel = peft_model.merge_and_unload(safe_merge=True)
    if not torch.equal(merged.get_submodule(name).weight, expected):
        raise WrongModel(f"merged model: layer {name} does not hold base + adapter; load the run again")
    return merged.eval()


def _first_update(model: PeftModel) -> tuple[str, torch.Tensor]:
    """The first adapted layer's name and the weights it must have once merged: base + update, and with DoRA each
    output's weights scaled to the learned magnitude."""
    name, layer = next((n, m) for n, m in model.get_base_model().named_modules() if isinstance(m, LoraLayer))
    base, delta = layer.get_base_layer().weight.detach().clone(), layer.get_delta_weight("default")
    if "default" not in layer.lora_magnitude_vector:
        return name, base + delta.to(base.dtype)
    magnitude = layer.lora_magnitude_vector["default"]
    norm = magnitude.get_weight_norm(base, delta, scaling=1).detach()
    factor = (magnitude.weight / norm).view(-1, 1)
    return name, (factor * (base + delta)).to(base.dtype)
