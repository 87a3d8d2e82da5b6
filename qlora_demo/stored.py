"""Room for one more run or upload, by the limits on what is kept; the disk itself is `disk.py`'s."""

from __future__ import annotations

from pathlib import Path

from .disk import folder_bytes
from .errors import TooMany
from .settings import Limits, variable
from .units import memory


def require_room(runs: Path, names: list[str], limits: Limits) -> None:
    """Raises `TooMany` where so many runs, or bytes of runs, are kept that one more may not be made."""
    if len(names) >= limits.stored_runs:
        raise TooMany(
            f"runs: {len(names)} are kept and {limits.stored_runs} ({variable('stored_runs')}) is the most; "
            f"delete some, the oldest is {min(names)}"
        )
    sizes = {name: folder_bytes(runs / name) for name in names}
    most = limits.stored_gb * 10**9
    if sum(sizes.values()) >= most:
        largest = max(names, key=lambda name: sizes[name])
        raise TooMany(
            f"runs: {memory(sum(sizes.values()))} are kept and {memory(most)} ({variable('stored_gb')}) is the most; "
            f"delete some, the largest is {largest} with {memory(sizes[largest])}"
        )


def require_upload_room(uploads: Path, limits: Limits) -> None:
    """Raises `TooMany` where uploads alone take the room that all runs have."""
    most, kept = limits.stored_gb * 10**9, folder_bytes(uploads)
    if kept >= most:
        raise TooMany(
            f"uploads: {memory(kept)} are kept and {memory(most)} ({variable('stored_gb')}) is the most; "
            f"delete files in {uploads}"
        )
