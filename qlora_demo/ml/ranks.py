"""Several training processes as one: who writes, and what all of them do at the same step."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

import torch
from torch import distributed

from .device import device

_PR_SET_PDEATHSIG = 1


def end_with_torchrun() -> None:
    """Have the kernel end this process when the torchrun that started it is gone, however that went: torchrun alone
    holds the run and the device, and hands neither on.  On Linux only."""
    if distributed.is_torchelastic_launched() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


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
