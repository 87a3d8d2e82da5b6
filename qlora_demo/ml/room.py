"""How much of the device this process can still take, and whether an error means that it was too little."""

from __future__ import annotations

import torch

from .. import cgroup

_NO_MEMORY = ("out of memory", "defaultcpuallocator", "cublas_status_alloc_failed")


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
