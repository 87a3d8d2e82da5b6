"""Where Triton cannot launch its kernels, the loss is torch's and the run says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import trl.kernels.chunked_logprob
import trl.trainer.utils

from qlora_demo.ml import kernels
from qlora_demo.ml.trainer import loss_kernels

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU for who asks, with Triton installed; TRL as it was before the test."""
    for module in ("kernels", "load", "trainer"):
        monkeypatch.setattr(f"qlora_demo.ml.{module}.device", lambda: GPU)
    monkeypatch.setattr(trl.kernels.chunked_logprob, "_TRITON_AVAILABLE", True)
    for module in (trl.kernels.chunked_logprob, trl.trainer.utils):
        monkeypatch.setattr(module, "_use_triton", trl.kernels.chunked_logprob._use_triton)
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
