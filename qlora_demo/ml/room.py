"""How much of the device this process can still take."""

from __future__ import annotations

import torch

from .. import cgroup


def free_and_total() -> tuple[int, int]:
    """Bytes that this process can take, and bytes of the device; what a GPU's allocator holds in reserve is free."""
    if not torch.cuda.is_available():
        return cgroup.free_and_total()
    free, total = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated(), total
