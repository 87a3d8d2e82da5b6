"""What the app is doing right now, as plain facts: for `/healthz`, and for whoever watches over it."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil

from .. import __version__
from ..services import Services
from ..settings import usable_home

T = TypeVar("T")
_BLOCK = b"\0" * 4096
"""What a disk takes room for: fewer bytes may go where the file's name is kept."""


class Kept(Generic[T]):
    """What ``read`` answers, read once in so many seconds; whoever asks while it is being read waits for that."""

    def __init__(self, read: Callable[[], T], seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._seconds = seconds
        self._now = now
        self._lock = threading.Lock()
        self._kept: tuple[float, T] | None = None

    def __call__(self) -> T:
        with self._lock:
            if self._kept is None or self._now() >= self._kept[0] + self._seconds:
                answer = self._read()
                self._kept = self._now(), answer
            return self._kept[1]


def facts(services: Services) -> dict[str, Any]:
    """``version``, ``uptime_seconds``, ``resident_models``, ``home_writable``, ``disk_free_bytes``, ``device_holder``
    (empty where it is free), ``queued_runs``; the last two are None where the home cannot be written, for locks are."""
    home = services.settings.home
    writable = _is_writable(home)
    return {
        "version": __version__,
        "uptime_seconds": round(time.time() - psutil.Process().create_time(), 1),
        "device_holder": services.lease.holder() if writable else None,
        "queued_runs": len(services.runs.waiting("checking", "queued")) if writable else None,
        "resident_models": [resident.title for resident in services.engine.resident()],
        "home_writable": writable,
        "disk_free_bytes": shutil.disk_usage(home).free if home.is_dir() else None,
    }


def _is_writable(home: Path) -> bool:
    try:
        usable_home(home)
        with tempfile.TemporaryFile(dir=home, buffering=0) as probe:
            probe.write(_BLOCK)
            os.fsync(probe.fileno())
    except OSError:
        return False
    return True
