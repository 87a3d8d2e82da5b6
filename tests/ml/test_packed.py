"""Packed weights give the same bits, take the same memory, and are plain again where somebody computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qlora_demo.columns import parse_all
from qlora_demo.errors import AdapterError
from qlora_demo.ml import load, packed
from qlora_demo.ml.packed import FoldedLinear, PackedLinear, pack, unpack
from qlora_demo.ml.variants import Variants, prove
from qlora_demo.services import Services
from tests.ml.test_variants import finished_run

pytestmark = pytest.mark.skipif(not packed._has_kernels(), reason="this CPU has no kernels for packed bf16 weights")
PROMPT = torch.arange(3, 40)[None]


def _logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(PROMPT, logits_to_keep=2).logits
    return logits


def _kinds(model: nn.Module) -> set[type]:
    return {type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)}


def test_a_packed_model_says_the_same_to_the_last_bit_in_the_same_memory(tiny_model: Path) -> None:
    plain = load.load_16bit(str(tiny_model))
    other = pack(load.load_16bit(str(tiny_model)))
    assert _kinds(other) == {PackedLinear, FoldedLinear}
    assert torch.equal(_logits(plain), _logits(other))
    packed_layers = [layer for layer in other.modules() if isinstance(layer, PackedLinear)]
    padding = sum((-layer.out_features % 64) * layer.in_features * 2 for layer in packed_layers)
    assert 0 <= load.tensor_bytes(other) - load.tensor_bytes(plain) <= padding
    assert load.precision_of(other) == "bf16"


def test_a_head_of_its_own_is_packed_and_its_table_is_not_counted_as_read(tiny_model: Path) -> None:
    model = load.load_16bit(str(tiny_model))
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    expected = _logits(model)
    assert torch.equal(_logits(pack(model)), expected)
    assert type(model.get_output_embeddings()) is PackedLinear
    assert load.untied_table_bytes(model) == model.get_input_embeddings().weight.nbytes


def test_a_layer_that_would_give_other_bits_stays_plain(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = PackedLinear.forward
    monkeypatch.setattr(PackedLinear, "forward", lambda self, x: forward(self, x) * 1.01)
    model = load.load_16bit(str(tiny_model))
    expected = _logits(model)
    assert torch.equal(_logits(pack(model)), expected)
    assert _kinds(model) == {nn.Linear, FoldedLinear}


def test_without_kernels_layers_stay_plain(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_has_kernels", lambda: False)
    assert _kinds(pack(load.load_16bit(str(tiny_model)))) == {nn.Linear, FoldedLinear}


def test_unpacked_weights_are_the_plain_ones(tiny_model: Path) -> None:
    plain, model = load.load_16bit(str(tiny_model)), pack(load.load_16bit(str(tiny_model)))
    unpack(model)
    assert _kinds(model) == {nn.Linear, FoldedLinear}
    for name, parameter in plain.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)


def test_the_head_of_a_frozen_model_is_not_transposed_for_a_prompt_s_last_token(tiny_model: Path) -> None:
    """It was: the merged model's prefill took twice the base's time, whose weights ask for gradients."""
    plain = load.load_16bit(str(tiny_model)).requires_grad_(False)
    assert _copies_of_the_table(plain) == 1
    assert _copies_of_the_table(pack(plain)) == 0


def _copies_of_the_table(model: Any) -> int:
    table = list(model.get_input_embeddings().weight.T.shape)
    with torch.profiler.profile(record_shapes=True) as seen, torch.inference_mode():
        model(PROMPT, logits_to_keep=1)
    return sum(event.name == "aten::copy_" and event.input_shapes[0][-2:] == table for event in seen.events())


@pytest.mark.parametrize("use_dora", [False, True])
def test_an_adapter_on_packed_weights_answers_as_on_plain_ones(
    use_dora: bool, services: Services, tiny_model: Path, tmp_path: Path
) -> None:
    run = finished_run(services, tiny_model, "lora")
    if use_dora:
        _save_dora(tiny_model, run.adapter)
    held = Variants(services.settings, services.runs)
    for _ in held.load(parse_all(["base", "adapter"], run.id)):
        pass
    plain = load.load_adapter(load.load_16bit(str(tiny_model)), run.adapter)
    adapter = held.loaded["adapter"]
    with adapter.activate():
        assert torch.equal(_logits(adapter.model), _logits(plain))
    base = held.loaded["base"]
    with base.activate():
        assert torch.equal(_logits(base.model), _logits(load.load_16bit(str(tiny_model))))


def test_dora_on_4_bit_weights_has_ones_that_no_pass_repacked(
    services: Services, tiny_model: Path, tmp_path: Path
) -> None:
    """Their norms cannot be taken of repacked ones; another adapter has answered on the same weights by then."""
    plain, dora = (finished_run(services, tiny_model, "qlora") for _ in range(2))
    _save_dora(tiny_model, dora.adapter)
    exact = load.load_adapter(load.load_quantized(str(tiny_model), "exact"), dora.adapter)
    held = Variants(services.settings, services.runs)
    for columns in (["adapter"], ["adapter", f"adapter@{dora.id}"]):
        for _ in held.load(parse_all(columns, plain.id)):
            pass
    other, one = (held.loaded[name] for name in columns)
    for _ in range(2):
        with one.activate():
            assert torch.equal(_logits(one.model), _logits(exact))
    assert (prove(other).adapter, prove(one).adapter) == ("on", "on")
    assert [bool(each.resident.shares) for each in (other, one)] == [False, True], "as one of them is said to"
    assert other.weights is one.weights is next(iter(held.held.values()))


def test_an_adapter_whose_config_cannot_be_read_is_told_and_what_is_said_to_be_in_memory_is(
    services: Services, tiny_model: Path
) -> None:
    plain, damaged = (finished_run(services, tiny_model, "qlora") for _ in range(2))
    (damaged.adapter / "adapter_config.json").write_text("{", "utf-8")
    held = Variants(services.settings, services.runs)
    for _ in held.load(parse_all(["adapter"], plain.id)):
        pass
    with pytest.raises(AdapterError):
        for _ in held.load(parse_all([f"adapter@{damaged.id}"], plain.id)):
            pass
    said = sum(place.added_bytes == 0 for place in held.plan(parse_all(["adapter"], plain.id)).places)
    assert said == len(held.held)


def _save_dora(model: Path, folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = load.load_16bit(str(model))
    config = LoraConfig(r=4, target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM")
    adapted = get_peft_model(base, config)
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder)
