"""How QLoRA works, measured on real tensors: one layer of a real model, one update that was really trained.

Every figure is computed here when it is asked for.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import NormalDist
from typing import Any

import bitsandbytes.functional as quantization
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig
from peft.tuners.lora.bnb import Linear4bit as AdaptedLinear4bit
from safetensors import safe_open
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ..errors import ModelError, RunError
from .load import compute_dtype, four_bit, keep_exact, tensor_bytes
from .lora_linear import LoRALinear
from .packed import pack_layer

_BLOCK = 64
_BINS = 64
_TOKENS = 64
_STEPS = 3
_PASSES = 25
_MOST_VALUES = 64


def layer_names(source: str) -> list[str]:
    """The two-dimensional weights of a model folder's linear layers, by name."""
    found = [name for path in _files(source) for name in _names(path)]
    return [name.removesuffix(".weight") for name in found if name.endswith("_proj.weight")]


def explain_layer(source: str, name: str) -> dict[str, Any]:
    """NF4 on one layer: ``levels``, ``histogram``, ``errors`` by type, ``bits``, ``memory`` of a pass, ``training``."""
    weight = _read(source, f"{name}.weight").float()
    return {
        "name": name,
        "shape": list(weight.shape),
        "levels": levels(),
        "histogram": histogram(weight),
        "errors": errors(weight),
        "bits": bits(weight),
        "memory": memory_of_a_pass(weight),
        "training": what_training_touches(weight),
    }


def explain_update(source: str, adapter: Path, name: str, alpha_over_r: float) -> dict[str, Any]:
    """A trained update's singular values: ``values``, how many carry 90% and 99% of its energy, and what share of it
    each smaller rank could have ``kept``; ``merged``: how much of it is left once it is written into the layer;
    ``token``: what merging costs and buys there."""
    with safe_open(str(adapter / "adapter_model.safetensors"), "pt") as file:
        keys = {key for key in file.keys() if f".{name}." in key}  # noqa: SIM118 - safe_open is no dictionary
        halves = [next((key for key in keys if f"lora_{half}." in key), "") for half in "AB"]
        if not all(halves):
            raise RunError(f"layer {name}: this run's adapter has no update for it; choose another layer or run")
        a, b = (file.get_tensor(key).float() for key in halves)
    update = alpha_over_r * b @ a
    values = torch.linalg.svdvals(update)[: a.shape[0]]
    energy = (values**2).cumsum(0) / (values**2).sum().clamp(min=1e-30)
    return {
        "rank": a.shape[0],
        "values": values[:_MOST_VALUES].tolist(),
        "rank_for_90": int((energy < 0.9).sum()) + 1,
        "rank_for_99": int((energy < 0.99).sum()) + 1,
        "kept": {rank: float(energy[rank - 1]) for rank in _ranks_up_to(len(energy))},
        "norm": float((values**2).sum().sqrt()),
        "merged": merged(_read(source, f"{name}.weight").float(), update),
        "token": of_a_token(_read(source, f"{name}.weight").float(), a, alpha_over_r * b),
    }


def _ranks_up_to(rank: int) -> list[int]:
    """Powers of two below a rank, and the rank itself."""
    return [1 << power for power in range(rank.bit_length()) if 1 << power < rank] + [rank]


def merged(weight: torch.Tensor, update: torch.Tensor) -> dict[str, dict[str, float]]:
    """An update written into the NF4 layer it was trained on, in 16 bit and rounded to NF4 again.

    ``error``: root mean square of what is off in the merged weights over the update's own; ``output``: the same for
    the layer's output to normally distributed inputs, as the next layers see it.
    """
    packed, state = quantization.quantize_4bit(weight, blocksize=_BLOCK, quant_type="nf4", compress_statistics=True)
    base = quantization.dequantize_4bit(packed, state)
    again, state = quantization.quantize_4bit(
        base + update, blocksize=_BLOCK, quant_type="nf4", compress_statistics=True
    )
    made = {
        "in 16 bit": (base + update).to(compute_dtype()).float(),
        "in NF4 again": quantization.dequantize_4bit(again, state),
    }
    x = torch.randn(_TOKENS, weight.shape[1], generator=torch.Generator().manual_seed(0))
    return {
        name: {
            "error": _relative(found - base, update),
            "output": _relative(x @ (found - base).T, x @ update.T),
        }
        for name, found in made.items()
    }


def of_a_token(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> dict[str, dict[str, float]]:
    """One token through the layer in NF4 with the update b a beside it, and merged in 16 bit: ``bytes`` held, and
    median ``seconds`` of passes taken in turn, both on the processor."""
    ways = answering_layers(weight, a, b)
    row = torch.randn(1, 1, weight.shape[1]).to(compute_dtype())
    taken: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for layer in ways.values():
            layer(row)  # the first pass repacks the 4-bit weights
        for name, layer in [*ways.items()] * _PASSES:
            began = time.perf_counter()
            layer(row)
            taken[name].append(time.perf_counter() - began)
    return {
        name: {"bytes": tensor_bytes(layer), "seconds": statistics.median(taken[name])} for name, layer in ways.items()
    }


def answering_layers(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> dict[str, nn.Module]:
    """The layer with the update b a as the columns hold it: NF4 under PEFT's layer, and merged in 16 bit and packed."""
    unscaled = {"r": a.shape[0], "lora_alpha": a.shape[0]}
    beside = AdaptedLinear4bit(four_bit(_plain(weight)), "default", LoraConfig(**unscaled), **unscaled).eval()
    for half, given in ((beside.lora_A, a), (beside.lora_B, b)):
        half["default"].weight.data = given.to(compute_dtype())
    return {"NF4, the update beside it": beside, "merged in 16 bit": pack_layer(_plain(weight + b @ a))}


def levels() -> dict[str, list[float]]:
    """NF4's 16 levels as the library stores them, and as quantiles of the normal distribution give them.

    Eight quantiles on the positive side and seven on the negative, evenly spaced in probability, and zero; scaled so
    that the outermost is 1 (Dettmers et al. 2023, QLoRA).
    """
    offset = 0.9677083
    normal = NormalDist()

    def side(count: int) -> list[float]:
        steps = [offset + (0.5 - offset) * at / count for at in range(count)]
        return [normal.inv_cdf(share) for share in steps]

    positive, negative = side(8), side(7)
    made = sorted([*positive, 0.0, *(-value for value in negative)])
    most = max(made)
    return {
        "stored": quantization.get_4bit_type("nf4", device="cpu").tolist(),
        "from_quantiles": [value / most for value in made],
    }


def histogram(weight: torch.Tensor) -> dict[str, list[float]]:
    """The layer's weights over their block's largest one, binned, and how often each NF4 level is used."""
    scaled = _blocks(weight) / _blocks(weight).abs().amax(1, keepdim=True).clamp(min=1e-30)
    counts = torch.histc(scaled, _BINS, -1.0, 1.0) / scaled.numel()
    nf4 = torch.tensor(quantization.get_4bit_type("nf4", device="cpu").tolist())
    nearest = (scaled.flatten()[:, None] - nf4).abs().argmin(1)
    used = torch.bincount(nearest, minlength=16) / nearest.numel()
    middles = [(-1 + (2 * at + 1) / _BINS) for at in range(_BINS)]
    return {"at": middles, "share": counts.tolist(), "level_share": used.tolist()}


def errors(weight: torch.Tensor) -> dict[str, float]:
    """Root mean square error over the weights' own, in blocks of 64: NF4, FP4, and evenly spaced int4."""
    found: dict[str, float] = {}
    for kind in ("nf4", "fp4"):
        packed, state = quantization.quantize_4bit(weight, blocksize=_BLOCK, quant_type=kind)
        found[kind] = _relative(quantization.dequantize_4bit(packed, state), weight)
    blocks = _blocks(weight)
    scale = blocks.abs().amax(1, keepdim=True).clamp(min=1e-30) / 7
    found["int4 (absmax)"] = _relative((blocks / scale).round().clamp(-7, 7) * scale, blocks)
    return found


def bits(weight: torch.Tensor) -> dict[str, float]:
    """Bits per weight by arithmetic and as stored, without and with double quantization."""
    found = {"arithmetic, single": 4 + 32 / _BLOCK, "arithmetic, double": 4 + 8 / _BLOCK + 32 / (_BLOCK * 256)}
    for name, double in (("single", False), ("double", True)):
        packed, state = quantization.quantize_4bit(
            weight, blocksize=_BLOCK, quant_type="nf4", compress_statistics=double
        )
        found[f"stored, {name}"] = 8 * (packed.nbytes + _constant_bytes(state)) / weight.numel()
    return found


def memory_of_a_pass(weight: torch.Tensor) -> dict[str, int]:
    """Bytes: the layer as stored, its constants and theirs with it, and in 16 bit, and the peak of new memory in a
    forward and a backward pass; all ``on`` the processor, whatever device the models are on."""
    layer = _frozen(weight)
    x = torch.randn(_TOKENS, weight.shape[1], dtype=compute_dtype(), requires_grad=True)
    with _peak() as forward:
        y = layer(x)
    with _peak() as backward:
        y.float().sum().backward()
    return {
        "tokens": _TOKENS,
        "on": "the processor",
        "stored": layer.weight.nbytes + _constant_bytes(layer.weight.quant_state),
        "in_16_bit": 2 * weight.numel(),
        "forward_peak": forward(),
        "backward_peak": backward(),
    }


def what_training_touches(weight: torch.Tensor) -> dict[str, Any]:
    """A few steps of AdamW on an update over the quantized layer: what has a gradient, and what changed."""
    base: Any = _frozen(weight)
    layer = LoRALinear(base, r=8, alpha=16).to(compute_dtype())
    optimizer = torch.optim.AdamW([layer.A, layer.B], lr=1e-2)
    before, start = _checksum(base.weight), {"A": layer.A.detach().clone(), "B": layer.B.detach().clone()}
    x, target = (torch.randn(_TOKENS, size, dtype=compute_dtype()) for size in reversed(weight.shape))
    gradients: dict[str, bool] = {}
    for _ in range(_STEPS):
        optimizer.zero_grad()
        (layer(x) - target).float().pow(2).mean().backward()
        gradients = {name: parameter.grad is not None for name, parameter in layer.named_parameters()}
        optimizer.step()
    return {
        "steps": _STEPS,
        "frozen_before": before,
        "frozen_after": _checksum(base.weight),
        "gradients": gradients,
        "changed": {name: bool((getattr(layer, name) != kept).any()) for name, kept in start.items()},
    }


def _constant_bytes(state: Any) -> int:
    """The blocks' constants, and where these are quantized, theirs."""
    return int(state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0))


def _plain(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.to(compute_dtype()), requires_grad=False)
    return layer


def _frozen(weight: torch.Tensor) -> Linear4bit:
    """The layer as training holds it."""
    return keep_exact(four_bit(_plain(weight)))


@contextmanager
def _peak() -> Iterator[Callable[[], int]]:
    """The most memory that was newly held at any moment within the block, in bytes."""
    found: list[int] = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        yield lambda: found[0]
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    found.append(most)


def _blocks(weight: torch.Tensor) -> torch.Tensor:
    flat = weight.flatten()
    return flat[: flat.numel() // _BLOCK * _BLOCK].view(-1, _BLOCK)


def _relative(made: torch.Tensor, given: torch.Tensor) -> float:
    return float((made - given).pow(2).mean().sqrt() / given.pow(2).mean().sqrt().clamp(min=1e-30))


def _checksum(tensor: torch.Tensor) -> str:
    return hashlib.blake2b(tensor.data.cpu().numpy().tobytes(), digest_size=8).hexdigest()


def _files(source: str) -> list[Path]:
    files = sorted(Path(source).glob("*.safetensors"))
    if not files:
        raise ModelError(f"model: {source} is no folder with safetensors; choose a model that is on this disk")
    return files


def _names(path: Path) -> list[str]:
    with safe_open(str(path), "pt") as file:
        return list(file.keys())


def _read(source: str, name: str) -> torch.Tensor:
    for path in _files(source):
        with safe_open(str(path), "pt") as file:
            if name in file.keys():  # noqa: SIM118 - safe_open is no dictionary
                tensor: torch.Tensor = file.get_tensor(name)
                return tensor
    raise ModelError(f"model: {source} has no layer {name.removesuffix('.weight')}; choose one of its own")
