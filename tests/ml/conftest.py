"""The tiny model with an adapter: loaded once for each file that needs it, and as a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_demo.ml import load
from qlora_demo.runs import Run
from qlora_demo.services import Services
from tests.tiny import save_adapter


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load.load_tokenizer(str(tiny_model))


@pytest.fixture(scope="module")
def adapted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = save_adapter(tiny_model, tmp_path_factory.mktemp("adapter") / "adapter")
    return load.load_adapter(load.load_quantized(str(tiny_model), "inference"), folder)


@pytest.fixture
def run(services: Services, tiny_model: Path) -> Run:
    """A finished QLoRA run of the tiny model with a random adapter."""
    from tests.ml.test_variants import finished_run

    return finished_run(services, tiny_model, "qlora")
