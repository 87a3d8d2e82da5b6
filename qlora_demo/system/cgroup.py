"""What a container may have of the machine's memory and processors: its cgroups hold it below what the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil

_ROOT = Path("/")
# Of the second version of cgroups and of the first.
_MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_and_total(root: Path = _ROOT) -> tuple[int, int]:
    """Bytes of memory that can still be taken here, and bytes in all."""
    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    for folder in _folders(root, "memory"):
        for limit, used, cached in _MEMORY:
            if (most := _number(folder / limit)) is not None:
                taken = (_number(folder / used) or 0) - _stat(folder / "memory.stat", cached)
                free, total = min(free, max(0, most - taken)), min(total, most)
    return free, total


def processors(root: Path = _ROOT) -> int:
    """How many processors can be used at once here, at least one."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _folders(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        quota = quota or _text(folder / "cpu.cfs_quota_us")
        period = period or _text(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):
            usable = min(usable, max(1, int(quota) // int(period)))
    return usable


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The cgroup of this process that has to do with something, and those around it."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(",") or not controllers:
            mount = root / "sys/fs/cgroup" / (controller if controllers else "")
            own = PurePosixPath(path.lstrip("/"))
            yield from (mount / one for one in (own, *own.parents))


def _text(path: Path) -> str:
    """What a file holds; nothing where it is not there."""
    with suppress(OSError):
        return path.read_text("utf-8").strip()
    return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _stat(path: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in _text(path).splitlines() if line.startswith(f"{name} ")), 0)
