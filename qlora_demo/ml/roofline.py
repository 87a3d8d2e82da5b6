"""What this device can do at best: bytes read and products computed per second, which real work is held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from .device import compute_dtype, free_and_total
from .peak import give_back

_BYTES = {"cuda": 2 << 30, "cpu": 256 << 20}
"""Far more than any cache holds."""
_SHARE = 4
"""Of what is free, so that models fill the device and not this."""
_WIDTH = {"cuda": 8192, "cpu": 1536}
_ROUNDS, _AT_ONCE = 7, 4
"""A round waits once for several pieces of work, so that asking for them and for the answer weighs little."""


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second of reading memory once, by a sum over it: the best of seven rounds."""
    size = min(_BYTES[device.type], free_and_total()[0] // _SHARE)
    data = torch.ones(size // 4, dtype=torch.float32, device=device)
    found = data.nbytes / min(_round(data.sum) for _ in range(_ROUNDS))
    del data
    give_back()
    return found


def matmul_rate(device: torch.device) -> float:
    """Floating-point operations per second of a 16-bit product of random matrices: the best of seven rounds."""
    width = _WIDTH[device.type]
    left, right = (torch.randn(width, width, dtype=compute_dtype(), device=device) for _ in range(2))
    return 2 * width**3 / min(_round(lambda: (left @ right)[0, 0]) for _ in range(_ROUNDS))


def _round(work: Callable[[], Any]) -> float:
    """Seconds of one piece of work."""
    started = time.perf_counter()
    for _ in range(_AT_ONCE - 1):
        work()
    work().item()
    return (time.perf_counter() - started) / _AT_ONCE
