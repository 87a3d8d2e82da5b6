"""The machine and the libraries that a figure was measured with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from contextlib import suppress
from pathlib import Path

import torch

from .. import __version__
from ..gpu import driver_version
from ..units import counted

LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")
OPTIONAL = ("triton", "liger-kernel")


def versions() -> dict[str, str]:
    """Python, platform, device, driver and libraries, as this process runs on them."""
    gpu = torch.cuda.is_available()
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name() if gpu else f"CPU, {counted(threads, 'thread')} of {_processor()}"
    driver = {"driver": driver_version(), "cuda": str(torch.version.cuda)} if gpu else {}
    return {
        "qlora_demo": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": name,
        **driver,
        **{library: importlib.metadata.version(library) for library in LIBRARIES},
        **{name: version for name in OPTIONAL if (version := _version(name))},
    }


def _version(name: str) -> str:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return ""


def _processor() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{os.cpu_count()} ({platform.machine()})"
