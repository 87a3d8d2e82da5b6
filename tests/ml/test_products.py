"""Frozen layers multiply in what the processor is fast in, and nothing else of a model changes by it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from qlora_demo.ml import device, load
from qlora_demo.ml.products import WideLinear
from qlora_demo.records import BaseForm

NO_UNITS, UNITS = {"avx512_bf16": True}, {"amx_bf16": True}
IDS = torch.arange(3, 43)[None]


def given(has: dict[str, Any], monkeypatch: pytest.MonkeyPatch, platform: str = "linux") -> None:
    """A processor with these capabilities."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(device, "sys", SimpleNamespace(platform=platform))


@pytest.mark.parametrize(
    ("has", "platform", "expected"),
    [
        (NO_UNITS, "linux", True),
        (UNITS, "linux", False),
        ({"bf16": True}, "linux", False),
        ({"bf16": True}, "darwin", True),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, "linux", True),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, "linux", False),
        ({"cpu_name": "AMD EPYC"}, "linux", True),
    ],
)
def test_a_processor_without_matrix_units_for_bf16_is_faster_in_fp32(
    has: dict[str, Any], platform: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(has, monkeypatch, platform)
    assert device.faster_in_fp32() is expected


@pytest.mark.parametrize("form", ["nf4", "16bit"])
@pytest.mark.parametrize(("has", "expected"), [(NO_UNITS, torch.float32), (UNITS, torch.bfloat16)])
def test_what_is_trained_multiplies_in_it_and_what_answers_does_not(
    tiny_model: Path, form: BaseForm, has: dict[str, Any], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(has, monkeypatch)
    multiplied = set[torch.dtype]()
    for owner, name in ((bitsandbytes, "matmul_4bit"), (torch.nn.functional, "linear")):
        product = getattr(owner, name)

        def watched(x: torch.Tensor, *rest: Any, product: Any = product, **named: Any) -> Any:
            multiplied.add(x.dtype)
            return product(x, *rest, **named)

        monkeypatch.setattr(owner, name, watched)
    trained, answering = (load.load_base(str(tiny_model), form, use) for use in ("training", "inference"))
    assert trained.get_decoder()(input_ids=IDS)[0].dtype is torch.bfloat16 and multiplied == {expected}
    multiplied.clear()
    answering.get_decoder()(input_ids=IDS)
    assert multiplied == {torch.bfloat16}


def test_what_would_be_saved_is_not_told_to_multiply_in_fp32(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(NO_UNITS, monkeypatch)
    load.load_base(str(tiny_model), "nf4", "training").save_pretrained(tmp_path)
    assert '"bnb_4bit_compute_dtype": "bfloat16"' in (tmp_path / "config.json").read_text("utf-8")


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_those_of_the_plain_layers(
    tiny_model: Path, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for has in (NO_UNITS, UNITS):
        given(has, monkeypatch)
        torch.manual_seed(0)
        base = load.load_base(str(tiny_model), "16bit", "training").train()
        model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        wide = sum(isinstance(layer, WideLinear) for layer in model.modules())
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        assert all(p.grad is None for name, p in model.named_parameters() if "lora_" not in name)
        found.append((wide > 0, loss.item(), grads.float()))
    (wide, wide_loss, wide_grads), (plain, plain_loss, plain_grads) = found
    assert (wide, plain) == (True, False)
    assert wide_loss == pytest.approx(plain_loss, rel=0.01)
    assert torch.nn.functional.cosine_similarity(wide_grads, plain_grads, dim=0) > 0.99
    assert wide_grads.norm() == pytest.approx(plain_grads.norm().item(), rel=0.05)


@pytest.mark.parametrize(("rows", "expected"), [(1, torch.bfloat16), (40, torch.float32)])
def test_a_few_rows_are_multiplied_as_the_weights_are_stored(
    rows: int, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = nn.Linear(16, 8, dtype=torch.bfloat16).requires_grad_(False)
    layer.__class__ = WideLinear
    multiplied, product = set[torch.dtype](), torch.nn.functional.linear

    def watched(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        multiplied.add(x.dtype)
        return product(x, *rest)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    layer(torch.ones(1, rows, 16, dtype=torch.bfloat16))
    assert multiplied == {expected}


def test_a_product_is_that_of_fp32_with_its_bias_and_its_gradient() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(16, 8).requires_grad_(False)
    x = torch.randn(2, 12, 16, requires_grad=True)
    found = []
    for kind in (nn.Linear, WideLinear):
        plain.__class__ = kind
        product = plain(x)
        found.append((product, *torch.autograd.grad(product.sum(), x)))
    assert all(torch.equal(left, right) for left, right in zip(*found, strict=True))
