"""The tiny model with an adapter, loaded once for each file that needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_demo.ml import load
from tests.tiny import save_adapter


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load.load_tokenizer(str(tiny_model))


@pytest.fixture(scope="module")
def adapted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = save_adapter(tiny_model, tmp_path_factory.mktemp("adapter") / "adapter")
    return load.load_adapter(load.load_quantized(str(tiny_model), "inference"), folder)
