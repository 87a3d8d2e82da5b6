"""Where Triton cannot launch its kernels, loss and layers are torch's and the run says so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import trl.kernels.chunked_logprob
import trl.trainer.utils

from qlora_demo.config import TrainConfig
from qlora_demo.memory import ModelShape
from qlora_demo.ml import kernels, load
from qlora_demo.ml.data import load_splits
from qlora_demo.ml.trainer import loss_kernels, make_trainer, situation
from qlora_demo.plan.choices import choose

GPU = torch.device("cuda")
TRLS_OWN = trl.kernels.chunked_logprob._use_triton
"""As it is before any test trains here."""


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU for who asks, with Triton installed; TRL as it was before the test."""
    for module in ("kernels", "load", "trainer"):
        monkeypatch.setattr(f"qlora_demo.ml.{module}.device", lambda: GPU)
    monkeypatch.setattr(trl.kernels.chunked_logprob, "_TRITON_AVAILABLE", True)
    for module in (trl.kernels.chunked_logprob, trl.trainer.utils):
        monkeypatch.setattr(module, "_use_triton", TRLS_OWN)
    kernels.triton_trouble.cache_clear()
    yield
    kernels.triton_trouble.cache_clear()


def used() -> tuple[bool, bool]:
    """Whether only positions with a label are scored, and whether Triton's kernels do it."""
    return trl.trainer.utils._use_triton(GPU), trl.kernels.chunked_logprob._use_triton(GPU)


def test_where_triton_launches_trl_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load_driver", lambda: None)
    assert loss_kernels() == ()
    assert used() == (True, True)


@pytest.mark.parametrize("trouble", [RuntimeError("Failed to find C compiler."), ImportError("no triton")])
def test_where_it_does_not_the_loss_is_torch_s_and_the_run_says_why(
    trouble: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_driver() -> None:
        raise trouble

    monkeypatch.setattr(kernels, "load_driver", load_driver)
    (choice,) = loss_kernels()
    assert (choice.what, choice.value) == ("Loss kernels", "torch's")
    assert str(trouble) in choice.why and "install gcc" in choice.why
    assert used() == (True, False)


def test_without_a_gpu_triton_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_demo.ml.kernels.device", lambda: torch.device("cpu"))
    monkeypatch.setattr(kernels, "load_driver", lambda: pytest.fail("asked"))
    assert kernels.triton_trouble() == ""


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Liger as it is where it is installed, but for its kernels; what it was asked to patch."""
    asked: list[dict[str, Any]] = []
    package, transformers_part, patches = (
        ModuleType(name)
        for name in ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch")
    )
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}  # type: ignore[attr-defined]
    transformers_part._apply_liger_kernel_to_instance = lambda **given: asked.append(given)  # type: ignore[attr-defined]
    for module in (package, transformers_part, patches):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    monkeypatch.setattr(kernels, "load_driver", lambda: None)
    return asked


def test_fused_kernels_load_where_triton_does_for_the_models_that_have_them(liger: list[dict[str, Any]]) -> None:
    assert kernels.fused_kernels_trouble("llama") == ""
    assert kernels.fused_kernels_trouble("gpt2") == "Liger has none for models of type gpt2"


def test_without_liger_triton_or_a_gpu_there_are_no_fused_kernels_and_the_reason_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load_driver() -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.setattr(kernels, "load_driver", lambda: None)
    assert "pip install -r requirements-gpu.txt" in kernels.fused_kernels_trouble("llama")
    kernels.triton_trouble.cache_clear()
    monkeypatch.setattr(kernels, "load_driver", load_driver)
    assert kernels.fused_kernels_trouble("llama").startswith("Triton cannot launch kernels (no compiler;")
    monkeypatch.setattr("qlora_demo.ml.kernels.device", lambda: torch.device("cpu"))
    assert kernels.fused_kernels_trouble("llama") == "they need a CUDA device"


@pytest.mark.parametrize("loads", [True, False])
def test_the_layers_are_fused_where_that_was_chosen_and_the_loss_stays_trl_s(
    loads: bool, liger: list[dict[str, Any]], tiny_model: Path, chat_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("kernels", "load", "trainer"):
        monkeypatch.setattr(f"qlora_demo.ml.{module}.device", lambda: torch.device("cpu"))
    config = TrainConfig(model=str(tiny_model), dataset=str(chat_file), max_steps=1)
    now = replace(situation("llama"), no_fused_kernels="" if loads else "for a reason")
    chosen = choose(config, ModelShape(64, 128, 2, 4, 2, 16, 259, True), now)
    model, tokenizer = load.load_quantized(str(tiny_model), "exact"), load.load_tokenizer(str(tiny_model))
    make_trainer(tiny_model.parent / "run", config, chosen, load_splits(config), (model, tokenizer))
    expected = [{"model": model, "cross_entropy": False, "fused_linear_cross_entropy": False}]
    assert liger == (expected if loads else [])
