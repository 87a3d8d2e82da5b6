"""Several training processes as one: who writes, and what all of them do at the same step."""

from __future__ import annotations

import os

import torch
from torch import distributed

from .device import device


def is_main() -> bool:
    """Whether this process is the one that writes: the first of its ranks."""
    return os.environ.get("RANK", "0") == "0"


def agreed(wish: bool) -> bool:
    """Rank 0's answer on every rank: ranks that decide at different steps would wait for each other."""
    if not distributed.is_initialized():
        return wish
    answer = torch.tensor([wish], dtype=torch.uint8, device=device())
    distributed.broadcast(answer, src=0)
    return bool(answer.item())
