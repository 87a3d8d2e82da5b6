"""The most memory that a stretch of work took: of the GPU what was allocated, elsewhere what was resident."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from ..system.heap import MMAP_THRESHOLD, set_option, trim

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_SMALL, _GROWN = 128 << 10, 32 << 20
"""Bytes from which glibc takes memory from the system and gives it back: while loading, and as its default grows."""
_RESET_PEAK = "5"
"""What Linux takes to forget the highest resident memory so far."""


def peak_memory_bytes() -> int:
    """The peak since `reset_peak` (elsewhere than on Linux or a GPU: since the process began)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() + paged_bytes()
    with suppress(OSError, StopIteration):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def paged_bytes() -> int:
    """What paged optimizers took beside the allocator; bitsandbytes never gives it back."""
    from bitsandbytes.functional import GlobalPageManager

    return sum(tensor.nbytes for tensor in GlobalPageManager.get_instance().paged_tensors)


def reset_peak() -> None:
    """Begin a new stretch of work."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK)


def give_back() -> None:
    """Return what is no longer used to the device, so that the next stretch begins without it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    else:
        trim()


@contextmanager
def nothing_hoarded() -> Iterator[None]:
    """Have what is freed within the block go back to the system at once, where glibc allocates.

    Reading and quantizing a model frees as much as it keeps; glibc would hold on to it, and did: 200 MiB for 106 MiB of
    4-bit weights.  Afterwards memory is kept for its next use, as ever: giving it back each time costs speed.
    """
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        set_option(MMAP_THRESHOLD, _SMALL)
    try:
        yield
    finally:
        if not on_gpu:
            set_option(MMAP_THRESHOLD, _GROWN)
