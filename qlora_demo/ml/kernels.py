"""Whether Triton can launch its kernels here, and which of them are there.

Triton compiles one C module of its own at its first use, with a C compiler, unless its cache holds it already; the
Dockerfile puts it there.  Of what training uses, TRL's loss and Liger's layer kernels run on Triton, and it can do
without; bitsandbytes' CUDA kernels come compiled.
"""

from __future__ import annotations

import functools
import subprocess

from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel

from ..errors import one_line
from .device import device


@functools.lru_cache
def triton_trouble() -> str:
    """What keeps Triton from launching kernels on this GPU, and the remedy; empty where nothing does, or no GPU is
    there to launch them on."""
    if device().type != "cuda":
        return ""
    try:
        load_driver()
    except (ImportError, RuntimeError, OSError, AssertionError, subprocess.SubprocessError) as exc:
        said = one_line(exc)
        return f"{said or type(exc).__name__}; install gcc and Python's headers, or run the image, which needs neither"
    return ""


def load_driver() -> None:
    """Load Triton's C module, compiled first where its cache has none."""
    from triton.runtime import driver

    assert driver.active.utils is not None


def fused_kernels_trouble(model_type: str) -> str:
    """What keeps Liger's layer kernels from a model of this type; empty where they load."""
    if device().type != "cuda":
        return "they need a CUDA device"
    if trouble := triton_trouble():
        return f"Triton cannot launch kernels ({trouble})"
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as known
    except ImportError as exc:
        return f"liger-kernel is not installed ({exc}); pip install -r requirements-gpu.txt"
    return "" if model_type in known else f"Liger has none for models of type {model_type}"


def fuse_layers(model: PreTrainedModel) -> None:
    """Put Liger's kernels into a model's layers, around its linear ones; the loss stays TRL's own fused one, which
    replaces the model's forward as Liger's would."""
    apply_liger_kernel(model, {"cross_entropy": False, "fused_linear_cross_entropy": False})
