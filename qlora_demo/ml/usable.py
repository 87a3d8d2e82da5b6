"""Whether torch can use the GPU that the driver lists; else all would run on the processor, at the price of the GPU.

    python -m qlora_demo.ml.usable

says what keeps it from that, and nothing where nothing does.
"""

from __future__ import annotations

import torch

from ..errors import RequestError
from ..gpu import device_info, driver_version

REMEDY = (
    "install a torch built for CUDA, or a driver that is new enough for it; to use the processor, set "
    "CUDA_VISIBLE_DEVICES to nothing"
)


def gpu_trouble() -> str:
    """What keeps torch from the GPU that is listed; empty where it can use it, or where none is listed or all are
    hidden."""
    if torch.cuda.is_available() or (listed := device_info()).kind != "cuda":
        return ""
    built = f"built for CUDA {torch.version.cuda or 'none'}"
    return f"driver {driver_version()} lists {listed.name}, and torch {torch.__version__}, {built}, cannot use it"


def require_usable_gpu() -> None:
    """Raise `RequestError` where there is such a trouble."""
    if trouble := gpu_trouble():
        raise RequestError(f"device: {trouble}; {REMEDY}")


if __name__ == "__main__":
    if said := gpu_trouble():
        print(f"{said}; {REMEDY}", end="")
