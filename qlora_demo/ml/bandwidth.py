"""How fast this device reads its memory: what a decode step, which reads every weight once, is held against."""

from __future__ import annotations

import time

import torch

_BYTES = {"cuda": 2 << 30, "cpu": 256 << 20}
"""Far more than any cache holds."""
_ROUNDS = 7


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second of reading memory once, by a sum over it: the best of seven rounds."""
    data = torch.ones(_BYTES[device.type] // 4, dtype=torch.float32, device=device)
    return data.nbytes / min(_round(data) for _ in range(_ROUNDS))


def _round(data: torch.Tensor) -> float:
    started = time.perf_counter()
    data.sum().item()
    return time.perf_counter() - started
