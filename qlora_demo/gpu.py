"""The device: what it is, how much room it has, and who holds it: chat, training or a benchmark; never two."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Literal

from .errors import DeviceBusy
from .records import DeviceInfo
from .system.cgroup import free_and_total, processors
from .system.disk import writing
from .system.locks import HeldLock, is_held, read_note

Purpose = Literal["chat", "training", "evaluation", "merge", "benchmark"]

_EXIT_SECONDS = 3.0
"""A process that has written its end state needs a moment to leave, and to give its memory back."""


class Lease:
    """One home's device has one holder at a time, across processes."""

    def __init__(self, home: Path) -> None:
        self.path = home / "device.lock"
        self._kept: list[Purpose] = []

    @contextlib.contextmanager
    def kept_for(self, purpose: Purpose) -> Iterator[None]:
        """Meanwhile this app takes the device for nothing else: whoever waits for the models would otherwise have it
        again before the one for whom they were freed."""
        self._kept.append(purpose)
        try:
            yield
        finally:
            self._kept.remove(purpose)

    def acquire(self, purpose: Purpose, detail: str = "") -> HeldLock:
        """Hold the device until `release`, or until the last process that inherited the lock is gone."""
        if others := set(self._kept) - {purpose}:
            raise DeviceBusy(f"device: kept for {others.pop()}, which is about to begin; wait for it or stop it")
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        held = HeldLock.acquire(self.path, {"purpose": purpose, "detail": detail}, _EXIT_SECONDS)
        if held is None:
            raise DeviceBusy(f"device: held by {self.holder()}; wait for it or stop it")
        return held

    def is_held_for(self, purpose: Purpose) -> bool:
        """Whether the device is held, and for this."""
        return is_held(self.path) and read_note(self.path).get("purpose") == purpose

    def holder(self) -> str:
        """Who holds the device, in words; empty when it is free."""
        if not is_held(self.path):
            return ""
        note = read_note(self.path)
        return f"{note.get('purpose', 'another process')} {note.get('detail', '')}".strip()


def device_info() -> DeviceInfo:
    """The device without importing torch: the first GPU that `nvidia-smi` lists, else the processor."""
    return _nvidia() or _processor()


def gpu_count() -> int:
    """How many GPUs may be seen, without importing torch; 0 where `nvidia-smi` lists none."""
    listed = sum(line.strip().isdecimal() for line in _smi("index", every=True))
    visible = _visible()
    return listed if visible is None else min(listed, len(visible))


def has_bf16() -> bool:
    """Whether the device computes in bf16, without importing torch: GPUs do from compute capability 8.0 on."""
    capability = _capability()
    return capability is None or capability >= 8


def bf16_in_words() -> str:
    """The same, for people."""
    if (capability := _capability()) is None:
        return "yes, on the processor"
    return f"{'yes' if capability >= 8 else 'no, fp16 is used instead'} (compute capability {capability})"


def _capability() -> float | None:
    try:
        return float(_smi("compute_cap")[0])
    except (ValueError, IndexError):
        return None


def _processor() -> DeviceInfo:
    count = processors()
    return DeviceInfo("cpu", f"CPU, {count} core{'s' * (count > 1)} ({platform.machine()})", *free_and_total())


def driver_version() -> str:
    """The NVIDIA driver's version; empty where there is none."""
    lines = _smi("driver_version")
    return lines[0].strip() if lines else ""


def _nvidia() -> DeviceInfo | None:
    lines = _smi("name,memory.free,memory.total")
    try:
        name, free, total = (part.strip() for part in lines[0].split(","))
        return DeviceInfo("cuda", name, int(free) << 20, int(total) << 20)
    except (IndexError, ValueError):
        return None


def _visible() -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names; None where it is not set, and all may be seen.  CUDA sees none of those
    behind a name that is none, like -1 or nothing."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return None
    return list(takewhile(lambda name: name and not name.startswith("-"), (name.strip() for name in names.split(","))))


def _smi(fields: str, every: bool = False) -> list[str]:
    """What `nvidia-smi` says of the first GPU that may be seen where one is named, else of each; nothing where it
    cannot be asked."""
    visible = _visible()
    if visible == [] or not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    if visible and not every:
        query.append(f"--id={visible[0]}")
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (subprocess.SubprocessError, OSError):
        return []
