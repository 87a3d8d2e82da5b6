"""Python's garbage, and glibc's heap, told how to keep and give back memory; elsewhere nothing happens to that.
Imports no torch."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress

from .. import LOOKS

MMAP_THRESHOLD = -3
"""The size from which memory comes from the system and goes back to it; its default grows."""
ARENA_MAX = -8
"""How many heaps threads share; its default is eight for each core."""


def set_option(option: int, value: int) -> None:
    """glibc's `mallopt`."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).mallopt(option, value)


def trim() -> None:
    """Give back what is free."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)


def collect_as_usual() -> None:
    """Have Python look for garbage as often as it does by itself, where tensors come and go."""
    gc.set_threshold(*LOOKS)
