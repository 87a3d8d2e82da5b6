"""Whether models can run here: the GPU and its driver, 4-bit kernels on a real product, the bundled model."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import bitsandbytes
import torch

from ..catalog import BundledModel, bundled_path, is_fetched
from ..errors import ModelError, WorkError
from ..gpu import driver_version
from ..settings import Settings
from ..sources import weights_digest
from ..upkeep.doctor import Check, attempt
from .device import compute_dtype, device, has_bf16
from .kernels import triton_trouble
from .load import load_16bit
from .usable import REMEDY, gpu_trouble

_WIDTH, _ROWS = 256, (1, 64)
"""Of the product that is tried; one row and many take different kernels."""
_TOLERANCE = 0.02
"""Share of the result's norm: bf16 has 8 bits, of which each product and sum may round the last."""


def examine(settings: Settings, model: BundledModel) -> Iterator[Check]:
    """The GPU, number format, Triton, 4-bit kernels, and the bundled model."""
    yield gpu()
    yield Check("number format", True, "bf16" if has_bf16() else "fp16: this GPU does not compute in bf16")
    if device().type == "cuda":
        trouble = triton_trouble()
        remedy = "see what is said; training works without, its loss takes more memory"
        yield Check("triton", not trouble, trouble or "launches kernels", remedy, needed=False)
    remedy = "reinstall bitsandbytes as requirements.txt pins it; `python -m bitsandbytes` says what it found"
    yield attempt("4-bit product", remedy, four_bit_product)
    remedy = f"remove {bundled_path(settings, model.name)} if it is there, then run python -m qlora_demo fetch"
    yield attempt("bundled model", remedy, functools.partial(bundled, settings, model))


def gpu() -> Check:
    """Whether torch sees the GPU that the driver lists."""
    if trouble := gpu_trouble():
        return Check("gpu", False, trouble, REMEDY)
    if not torch.cuda.is_available():
        return Check("gpu", True, "none; the processor is used")
    major, minor = torch.cuda.get_device_capability()
    what = f"{torch.cuda.get_device_name()}, driver {driver_version()}, CUDA {torch.version.cuda}, {major}.{minor}"
    return Check("gpu", major >= 6, what, "4-bit needs compute capability 6.0 or more; use a newer GPU")


def four_bit_product() -> str:
    """An NF4 layer's results and gradients against those of its own dequantized weights; the largest error.

    Raises `WorkError` where they differ by more than rounding.
    """
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(
        _WIDTH, _WIDTH, bias=False, compute_dtype=compute_dtype(), compress_statistics=True, quant_type="nf4"
    ).to(device())
    weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    errors = []
    for rows in _ROWS:
        given = torch.randn(rows, _WIDTH, device=device(), dtype=compute_dtype(), requires_grad=True)
        result = layer(given)
        (gradient,) = torch.autograd.grad(result.float().sum(), given)
        errors += [_error(result, given.float() @ weight.T), _error(gradient, weight.sum(0).expand(rows, -1))]
    if not max(errors) <= _TOLERANCE:
        raise WorkError(f"results differ by {max(errors):.1%} from those of the dequantized weights")
    return f"right on {device().type}: largest error {max(errors):.2%} of {_TOLERANCE:.0%} allowed"


def bundled(settings: Settings, model: BundledModel) -> str:
    """The bundled model's folder, checked against the digest of its weights, and loaded."""
    if not is_fetched(settings, model.name):
        raise ModelError(f"{bundled_path(settings, model.name)} is not there yet")
    source = str(bundled_path(settings, model.name))
    if (digest := weights_digest(source)) != model.digest:
        raise ModelError(f"{source} holds other weights: digest {digest}, {model.digest} is expected")
    loaded = load_16bit(source, torch.device("cpu"))
    return f"{source}, {loaded.num_parameters():,} parameters, digest {digest}"


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.detach().float() - wanted.detach()).norm() / wanted.detach().norm())
