"""How QLoRA works, measured on real tensors: one layer of a real model, one update that was really trained.

Every figure is computed here when it is asked for.
"""

from __future__ import annotations

import hashlib
import math
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
from ..records import BaseForm
from ..runs import ADAPTER_WEIGHTS
from ..sources import linear_layers, weight_files
from .device import compute_dtype
from .load import four_bit, keep_exact, tensor_bytes
from .lora_linear import LoRALinear
from .packed import pack_layer
from .rounding import BLOCK, as_trained, evenly_spaced, largest, rounded

_BINS = 64
_PART = 1 << 20
_TOKENS = 64
_STEPS = 3
_PASSES = 25
_MOST_VALUES = 64
_NOT_4_BIT = ("16bit", "int8")


def layer_names(source: str) -> list[str]:
    """The two-dimensional weights of a model folder's linear layers, by name."""
    _files(source)
    return [name for name in linear_layers(source) if name.endswith("_proj")]


def explain_layer(source: str, name: str) -> dict[str, Any]:
    """NF4 on one layer: ``levels``, ``histogram``, ``level_share``, ``errors`` by type, ``bits``, ``memory`` of a pass,
    ``training``."""
    weight = _read(source, f"{name}.weight")
    layer = frozen_layer(weight)
    return {
        "name": name,
        "shape": list(weight.shape),
        "levels": levels(),
        "histogram": histogram(weight),
        "level_share": level_share(layer),
        "errors": errors(weight),
        "bits": bits(weight, layer),
        "memory": memory_of_a_pass(layer),
        "training": what_training_touches(layer),
    }


def explain_update(source: str, adapter: Path, name: str, alpha_over_r: float, form: BaseForm) -> dict[str, Any]:
    """A trained update's singular values: ``values``, how many carry 90% and 99% of its energy, and what share of it
    the first 1, 2, ... hold together, ``energy``, of which ``kept`` is told; ``merged``: how much of it is left once it
    is written into the layer, which training held in ``form``; ``token``: what merging costs and buys there."""
    with safe_open(str(adapter / ADAPTER_WEIGHTS), "pt") as file:
        keys = {key for key in file.keys() if f".{name}." in key}  # noqa: SIM118 - safe_open is no dictionary
        halves = [next((key for key in keys if f"lora_{half}." in key), "") for half in "AB"]
        if not all(halves):
            raise RunError(f"layer {name}: this run's adapter has no update for it; choose another layer or run")
        a, b = (file.get_tensor(key).float() for key in halves)
    b = alpha_over_r * b
    values, weight = singular_values(a, b), _read(source, f"{name}.weight")
    energy = (values**2).cumsum(0) / (values**2).sum().clamp(min=1e-30)
    return {
        "rank": a.shape[0],
        "values": values[:_MOST_VALUES].tolist(),
        "rank_for_90": int((energy < 0.9).sum()) + 1,
        "rank_for_99": int((energy < 0.99).sum()) + 1,
        "energy": energy.tolist(),
        "kept": {rank: float(energy[rank - 1]) for rank in _ranks_up_to(len(energy))},
        "norm": float((values**2).sum().sqrt()),
        "form": form,
        "merged": merged(weight, b @ a, form),
        "token": of_a_token(weight, a, b),
    }


def singular_values(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Those of b a, (outputs, r) by (r, inputs), that can be more than nothing, the largest first.

    The orthogonal factors of b and of a's transpose do not change them, so they are those of a product of r by r.
    """
    left, right = (torch.linalg.qr(half.double(), mode="r").R for half in (b, a.T))
    values: torch.Tensor = torch.linalg.svdvals(left @ right.T)
    return values


def _ranks_up_to(rank: int) -> list[int]:
    """Powers of two below a rank, and the rank itself."""
    return [1 << power for power in range(rank.bit_length()) if 1 << power < rank] + [rank]


def merged(weight: torch.Tensor, update: torch.Tensor, form: BaseForm = "nf4") -> dict[str, dict[str, float]]:
    """An update written into the layer it was trained on, in 16 bit and rounded to NF4; where that layer is no original
    one, into the original as well, rounded to NF4.

    ``error``: root mean square of what is off in the merged weights over the update's own; ``output``: the same for
    the layer's output to normally distributed inputs, as the next layers see it; ``kept``: how much of the update is in
    what the merge changed, 1 where all of it is (its projection on the update).
    """
    original = weight.to(compute_dtype())
    base = as_trained(original, form).float()
    x = torch.randn(_TOKENS, weight.shape[1], generator=torch.Generator().manual_seed(0))
    whole = (base + update).to(compute_dtype())
    onto = "" if form == "16bit" else "onto the dequantized base, "
    ways = {f"{onto}in 16 bit": whole, f"{onto}in NF4{'' if form in _NOT_4_BIT else ' again'}": rounded(whole)}
    if form != "16bit":
        ways["onto the original base, in NF4"] = rounded((original.float() + update).to(compute_dtype()))
    found = {}
    for name, made in ways.items():
        kept = made.float().sub_(base)
        off = {"error": _relative(kept, update), "output": _relative(x @ kept.T, x @ update.T)}
        found[name] = off | {"kept": float((kept * update).sum() / update.square().sum().clamp(min=1e-30))}
    return found


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
    that the outermost is 1 (Dettmers et al. 2023, QLoRA).  The quantile of probability 1 is infinite, so the outermost
    stands half a step before it: of the mean of 15 levels' steps and 16 levels'.
    """
    outermost = 1 - (1 / 30 + 1 / 32) / 2
    normal = NormalDist()

    def side(count: int) -> list[float]:
        steps = [outermost + (0.5 - outermost) * at / count for at in range(count)]
        return [normal.inv_cdf(share) for share in steps]

    positive, negative = side(8), side(7)
    made = sorted([*positive, 0.0, *(-value for value in negative)])
    most = max(made)
    return {
        "stored": quantization.get_4bit_type("nf4", device="cpu").tolist(),
        "from_quantiles": [value / most for value in made],
    }


def histogram(weight: torch.Tensor) -> dict[str, list[float]]:
    """The layer's weights over their block's largest one, binned: the bins' middles ``at``, and their ``share``."""
    counts = torch.zeros(_BINS)
    for blocks in _parts(weight):
        counts += torch.histc(blocks / largest(blocks), _BINS, -1.0, 1.0)
    middles = [(-1 + (2 * at + 1) / _BINS) for at in range(_BINS)]
    return {"at": middles, "share": (counts / counts.sum()).tolist()}


def level_share(layer: Linear4bit) -> list[float]:
    """How often each of the 16 levels stands in a layer's stored weights, two of which share a byte."""
    pairs = layer.weight.data.flatten()
    high, low = (torch.bincount(half, minlength=16) for half in (pairs >> 4, pairs & 15))
    shares: list[float] = ((high + low) / (2 * len(pairs))).tolist()
    return shares


def errors(weight: torch.Tensor) -> dict[str, float]:
    """Root mean square error over the weights' own, in blocks of 64: NF4, FP4, and evenly spaced int4."""
    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "nf4": lambda blocks: rounded(blocks, "nf4", double=False),
        "fp4": lambda blocks: rounded(blocks, "fp4", double=False),
        "int4 (absmax)": evenly_spaced,
    }
    off, own = dict.fromkeys(ways, 0.0), 0.0
    for blocks in _parts(weight):
        own += float(blocks.square().sum())
        for name, way in ways.items():
            off[name] += float((way(blocks) - blocks).square().sum())
    return {name: math.sqrt(found / max(own, 1e-30)) for name, found in off.items()}


def bits(weight: torch.Tensor, layer: Linear4bit) -> dict[str, float]:
    """Bits per weight by arithmetic and as stored, without double quantization and with it, as the layer has it."""
    found = {"arithmetic, single": 4 + 32 / BLOCK, "arithmetic, double": 4 + 8 / BLOCK + 32 / (BLOCK * 256)}
    single = (quantization.quantize_4bit(part, blocksize=BLOCK, quant_type="nf4") for part in _parts(weight))
    found["stored, single"] = 8 * sum(_stored_bytes(*part) for part in single) / weight.numel()
    found["stored, double"] = 8 * _stored_bytes(layer.weight, layer.weight.quant_state) / weight.numel()
    return found


def memory_of_a_pass(layer: Linear4bit) -> dict[str, Any]:
    """Bytes: the layer as stored, its constants and theirs with it, and in 16 bit, and the peak of new memory in a
    forward and a backward pass; all ``on`` the processor, whatever device the models are on."""
    x = torch.randn(_TOKENS, layer.in_features, dtype=compute_dtype(), requires_grad=True)
    with _peak() as forward:
        y = layer(x)
    with _peak() as backward:
        y.float().sum().backward()
    return {
        "tokens": _TOKENS,
        "on": "the processor",
        "stored": _stored_bytes(layer.weight, layer.weight.quant_state),
        "in_16_bit": 2 * layer.in_features * layer.out_features,
        "forward_peak": forward(),
        "backward_peak": backward(),
    }


def what_training_touches(base: Linear4bit) -> dict[str, Any]:
    """A few steps of AdamW on an update over the quantized layer: what has a gradient, and what changed.

    ``input_gradient``: the root mean square of what reached the layer's input in the first step.  B is zero then, so it
    came through the frozen weights.
    """
    layer = LoRALinear(base, r=8, alpha=16).to(compute_dtype())
    optimizer = torch.optim.AdamW([layer.A, layer.B], lr=1e-2)
    before, start = _checksum(base), {"A": layer.A.detach().clone(), "B": layer.B.detach().clone()}
    x, target = (torch.randn(_TOKENS, size, dtype=compute_dtype()) for size in (base.in_features, base.out_features))
    reached: list[float] = []
    for _ in range(_STEPS):
        optimizer.zero_grad()
        given = x.clone().requires_grad_()
        (layer(given) - target).float().pow(2).mean().backward()
        reached.append(0.0 if given.grad is None else float(given.grad.float().pow(2).mean().sqrt()))
        optimizer.step()
    return {
        "steps": _STEPS,
        "frozen_before": before,
        "frozen_after": _checksum(base),
        "gradients": {name: parameter.grad is not None for name, parameter in layer.named_parameters()},
        "input_gradient": reached[0],
        "changed": {name: bool((getattr(layer, name) != kept).any()) for name, kept in start.items()},
    }


def frozen_layer(weight: torch.Tensor) -> Linear4bit:
    """A layer of weights (outputs, inputs) in NF4 as training holds it: never repacked."""
    return keep_exact(four_bit(_plain(weight)))


def _plain(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.to(compute_dtype()), requires_grad=False)
    return layer


def _stored_bytes(packed: torch.Tensor, state: Any) -> int:
    """The weights, their blocks' constants, and where these are quantized, theirs."""
    return int(packed.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0))


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


def _parts(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """The weights in fp32 in blocks of 64, some at a time: whole copies of a large layer would take gigabytes."""
    flat = weight.flatten()[: weight.numel() // BLOCK * BLOCK]
    for at in range(0, len(flat), _PART):
        yield flat[at : at + _PART].float().view(-1, BLOCK)


def _relative(made: torch.Tensor, given: torch.Tensor) -> float:
    """Root mean square of what is off, over that of what was given."""
    return float((made - given).pow_(2).mean().sqrt() / given.pow(2).mean().sqrt().clamp(min=1e-30))


def _checksum(layer: Linear4bit) -> str:
    """Of all that a layer's 4-bit weights are read from: codes, constants, and what those are read from."""
    state, digest = layer.weight.quant_state, hashlib.blake2b(digest_size=8)
    for tensor in (layer.weight.data, state.code, state.absmax, state.offset, state.state2.absmax, state.state2.code):
        digest.update(tensor.numpy())
    return digest.hexdigest()


def _files(source: str) -> list[Path]:
    files = weight_files(Path(source))
    if not files:
        raise ModelError(f"model: {source} is no folder with safetensors; choose a model that is on this disk")
    return files


def _read(source: str, name: str) -> torch.Tensor:
    for path in _files(source):
        with safe_open(str(path), "pt") as file:
            if name in file.keys():  # noqa: SIM118 - safe_open is no dictionary
                tensor: torch.Tensor = file.get_tensor(name)
                return tensor
    raise ModelError(f"model: {source} has no layer {name.removesuffix('.weight')}; choose one of its own")
