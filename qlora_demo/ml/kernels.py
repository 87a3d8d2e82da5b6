"""Whether Triton can launch its kernels here.

Triton compiles one C module of its own at its first use, with a C compiler, unless its cache holds it already; the
Dockerfile puts it there.  Of what is used here only TRL's loss runs on Triton, and it can do without; bitsandbytes'
CUDA kernels come compiled.
"""

from __future__ import annotations

import functools
import subprocess

from .load import device


@functools.lru_cache
def triton_trouble() -> str:
    """What keeps Triton from launching kernels on this GPU, and the remedy; empty where nothing does, or no GPU is
    there to launch them on."""
    if device().type != "cuda":
        return ""
    try:
        load_driver()
    except (ImportError, RuntimeError, OSError, AssertionError, subprocess.SubprocessError) as exc:
        said = " ".join(str(exc).split())[:200]
        return f"{said or type(exc).__name__}; install gcc and Python's headers, or run the image, which needs neither"
    return ""


def load_driver() -> None:
    """Load Triton's C module, compiled first where its cache has none."""
    from triton.runtime import driver

    assert driver.active.utils is not None
