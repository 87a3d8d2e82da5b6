"""Room for one more of what is kept, by the limits on it; the disk itself is `system/disk.py`'s."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .errors import TooMany
from .settings import Limits, variable
from .system.disk import folder_bytes
from .units import memory

_KEPT = ("runs", "uploads", "benchmarks")
"""What counts together, by its folder in the home; exports are in their run's."""


def require_few(runs: Sequence[str], limits: Limits, more: int) -> None:
    """Raises `TooMany` where so many runs are kept that so many more may not be made."""
    if len(runs) + more > limits.stored_runs:
        wanted = f", {more} more are asked for" if more > 1 else ""
        remedy = f"delete some, the oldest is {min(runs)}" if runs else "start one at a time"
        most = f"{limits.stored_runs} ({variable('stored_runs')}) is the most"
        raise TooMany(f"runs: {len(runs)} are kept{wanted} and {most}; {remedy}")


def require_room(home: Path, limits: Limits) -> None:
    """Raises `TooMany` where runs, uploads and benchmarks take all the room they may have together.

    Looks at every file of them: for what somebody starts, and not for what a page asks by itself.
    """
    folders = [home / kind for kind in _KEPT]
    sizes = {path: folder_bytes(path) for folder in folders if folder.is_dir() for path in folder.iterdir()}
    kept, most = sum(sizes.values()), limits.stored_gb * 10**9
    if kept >= most:
        largest = max(sizes, key=lambda path: sizes[path])
        raise TooMany(
            f"storage: runs, uploads and benchmarks take {memory(kept)} and {memory(most)} ({variable('stored_gb')}) "
            f"is the most; delete some, the largest is {largest.relative_to(home)} with {memory(sizes[largest])}"
        )
