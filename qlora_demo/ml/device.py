"""The device of this process: which it is, what it computes in, what it has room for, whether that was too little."""

from __future__ import annotations

import os
import sys

import torch

from ..records import Precision
from ..system import cgroup

_NO_MEMORY = ("out of memory", "defaultcpuallocator", "cublas_status_alloc_failed")

# Torch asks how many processors the machine has.
torch.set_num_threads(min(torch.get_num_threads(), cgroup.processors()))


def device() -> torch.device:
    """The one device that this process's models live on; under torchrun each process has its own GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def has_bf16() -> bool:
    """Whether the device computes in bf16 itself; older GPUs take it and emulate it slowly."""
    return device().type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)


def compute_dtype() -> torch.dtype:
    """bfloat16, or float16 on a GPU that has no bfloat16."""
    return torch.bfloat16 if has_bf16() else torch.float16


def faster_in_fp32() -> bool:
    """Whether this is a processor without matrix units for bf16, whose products take it twice fp32's time, and tens of
    times without AVX-512.  AMD's with AVX512-BF16 are said to multiply at twice fp32's rate; that was not measured."""
    if device().type != "cpu":
        return False
    has = torch.cpu.get_capabilities()
    on_arm = has.get("bf16") and sys.platform == "linux"  # elsewhere torch does not use what Arm processors have
    on_amd = has.get("avx512_bf16") and "AMD" in str(has.get("cpu_name"))
    return not (has.get("amx_bf16") or on_arm or on_amd)


def sixteen_bit() -> Precision:
    """The name of the device's 16-bit type."""
    return "bf16" if compute_dtype() is torch.bfloat16 else "fp16"


def free_and_total() -> tuple[int, int]:
    """Bytes that this process can take, and bytes of the device; what a GPU's allocator holds in reserve is free."""
    if not torch.cuda.is_available():
        return cgroup.free_and_total()
    free, total = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated(), total


def ran_out(exc: BaseException) -> bool:
    """Whether an error means that memory ran out; beside its GPU allocator torch says so with a plain RuntimeError."""
    said = str(exc).lower() if isinstance(exc, RuntimeError) else ""
    return isinstance(exc, torch.OutOfMemoryError | MemoryError) or any(words in said for words in _NO_MEMORY)
