"""What the Explain tab says is true: our layer is PEFT's, the figures are those of the tensors."""

from __future__ import annotations

import copy
import operator
import re
import shutil
from pathlib import Path
from typing import Any, get_args

import bitsandbytes.functional as quantization
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from qlora_demo.config import TrainConfig
from qlora_demo.errors import ModelError, RunError
from qlora_demo.ml import explain, load, rounding
from qlora_demo.ml.lora_linear import LoRALinear
from qlora_demo.ml.packed import pack
from qlora_demo.records import BaseForm
from qlora_demo.services import Services
from qlora_demo.ui import render_explain
from tests.tiny import save_adapter

WRITTEN_OUT, ORIGINAL = "onto the dequantized base, in", "onto the original base, in NF4"
MERGES = {
    "16bit": ["in 16 bit", "in NF4"],
    "int8": [f"{WRITTEN_OUT} 16 bit", f"{WRITTEN_OUT} NF4", ORIGINAL],
    "fp4": [f"{WRITTEN_OUT} 16 bit", f"{WRITTEN_OUT} NF4 again", ORIGINAL],
}


def _pair(dropout: float = 0.0) -> tuple[LoRALinear, Any]:
    """Our layer and PEFT's, on the same weights."""
    torch.manual_seed(0)
    base = nn.Linear(24, 40)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["0"])
    theirs = get_peft_model(nn.Sequential(copy.deepcopy(base)), config).base_model.model[0]
    ours = LoRALinear(base, r=4, alpha=8, dropout=dropout)
    with torch.no_grad():
        ours.A.copy_(theirs.lora_A["default"].weight)
        theirs.lora_B["default"].weight.normal_()
        ours.B.copy_(theirs.lora_B["default"].weight)
    return ours, theirs


@pytest.fixture
def pair() -> tuple[LoRALinear, Any]:
    return _pair()


def test_training_starts_at_the_frozen_layer_exactly() -> None:
    base = nn.Linear(24, 40)
    x = torch.randn(5, 24)
    assert torch.equal(LoRALinear(base, r=4, alpha=8)(x), base(x))


def test_forward_and_gradients_are_pefts(pair: tuple[LoRALinear, Any]) -> None:
    ours, theirs = pair
    x, given = (torch.randn(5, 24, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in pair)
    ours(x).pow(2).sum().backward()
    theirs(given).pow(2).sum().backward()
    assert torch.allclose(ours(x), theirs(given), atol=1e-5)
    assert x.grad is not None and given.grad is not None
    assert torch.allclose(x.grad, given.grad, rtol=1e-4, atol=1e-3)
    assert ours.A.grad is not None and ours.B.grad is not None
    assert torch.allclose(ours.A.grad, theirs.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-3)
    assert torch.allclose(ours.B.grad, theirs.lora_B["default"].weight.grad, rtol=1e-4, atol=1e-3)
    assert ours.base.weight.grad is None and theirs.base_layer.weight.grad is None


def test_dropout_is_pefts_in_training_and_none_in_answering() -> None:
    ours, theirs = _pair(dropout=0.5)
    x = torch.randn(5, 24)
    drawn = []
    for layer in (ours, theirs):
        torch.manual_seed(1)
        drawn.append(layer(x))
    assert torch.allclose(drawn[0], drawn[1], atol=1e-5)
    on_average = torch.stack([ours(x) for _ in range(4000)]).mean(0)
    answered = ours.eval()(x)
    assert torch.allclose(answered, theirs.eval()(x), atol=1e-5) and torch.equal(answered, ours(x))
    assert torch.allclose(on_average, answered, atol=0.3)
    assert not torch.allclose(drawn[0], answered, atol=1.0)


def test_a_is_drawn_as_peft_draws_it() -> None:
    torch.manual_seed(0)
    base = nn.Linear(256, 8)
    theirs = get_peft_model(nn.Sequential(copy.deepcopy(base)), LoraConfig(r=64, target_modules=["0"]))
    drawn = (LoRALinear(base, r=64, alpha=1).A, theirs.base_model.model[0].lora_A["default"].weight)
    for a in drawn:
        shares = torch.quantile(16 * a.detach(), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
        assert shares.tolist() == pytest.approx([-1, -0.5, 0, 0.5, 1], abs=0.03), "evenly up to 1 / sqrt(256)"


def test_merging_is_pefts_and_can_be_undone(pair: tuple[LoRALinear, Any]) -> None:
    ours, theirs = pair
    x, before = torch.randn(5, 24), ours.base.weight.clone()
    unmerged = ours(x)
    ours.merge()
    theirs.merge()
    assert torch.allclose(ours.base.weight, theirs.base_layer.weight, atol=1e-6)
    assert torch.allclose(ours(x), unmerged, atol=1e-4)
    ours.unmerge()
    assert torch.allclose(ours.base.weight, before, atol=1e-6)
    assert torch.linalg.matrix_rank(ours.update()) == 4


def test_the_levels_come_from_the_normal_distribution() -> None:
    found = explain.levels()
    stored = quantization.get_4bit_type("nf4", device="cpu").tolist()
    assert (found["stored"], len(stored)) == (stored, 16)
    assert found["from_quantiles"] == pytest.approx(stored, abs=1e-6)


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(128, 256, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def layer(weight: torch.Tensor) -> Any:
    return explain.frozen_layer(weight)


def test_nf4_is_nearest_to_normal_weights(weight: torch.Tensor) -> None:
    errors = explain.errors(weight)
    assert errors["nf4"] < errors["fp4"] and errors["nf4"] < errors["int4 (absmax)"]
    uniform = explain.errors(torch.rand(128, 256) * 2 - 1)
    assert uniform["int4 (absmax)"] < uniform["nf4"], "and not to others"


def test_a_layer_s_parts_add_up_to_the_whole(weight: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    errors, histogram = explain.errors(weight), explain.histogram(weight)
    monkeypatch.setattr(explain, "_PART", 192)
    assert explain.errors(weight) == pytest.approx(errors)
    assert explain.histogram(weight) == histogram
    packed, state = quantization.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    off = quantization.dequantize_4bit(packed, state) - weight
    assert errors["nf4"] == pytest.approx(float(off.norm() / weight.norm()))


def test_bits_as_stored_are_those_of_the_arithmetic(weight: torch.Tensor, layer: Any) -> None:
    found = explain.bits(weight, layer)
    assert found["arithmetic, double"] == pytest.approx(4.127, abs=5e-4)
    assert found["stored, single"] == found["arithmetic, single"] == 4.5
    assert found["stored, double"] == pytest.approx(found["arithmetic, double"], abs=1e-3)


def test_the_histogram_holds_every_weight_once(weight: torch.Tensor) -> None:
    found = explain.histogram(weight)
    assert sum(found["share"]) == pytest.approx(1.0)
    blocks = weight.view(-1, 64)
    scaled = blocks / blocks.abs().amax(1, keepdim=True)
    assert [64 * share for share in found["share"][-2:]] == pytest.approx(
        [64 * float(((scaled >= low) & (scaled <= low + 2 / 64)).float().mean()) for low in (60 / 64, 62 / 64)]
    )


def test_the_share_of_each_level_is_that_of_the_weights_nearest_to_it(weight: torch.Tensor, layer: Any) -> None:
    blocks = weight.to(torch.bfloat16).float().view(-1, 64)
    scaled = blocks / blocks.abs().amax(1, keepdim=True)
    nearest = (scaled.flatten()[:, None] - torch.tensor(explain.levels()["stored"])).abs().argmin(1)
    expected = torch.bincount(nearest, minlength=16) / weight.numel()
    assert explain.level_share(layer) == pytest.approx(expected.tolist())


@pytest.mark.parametrize(("outputs", "inputs", "r"), [(96, 64, 8), (64, 96, 8), (4, 96, 8), (96, 4, 8)])
def test_singular_values_of_an_update_are_those_of_the_whole_product(outputs: int, inputs: int, r: int) -> None:
    made = torch.Generator().manual_seed(0)
    a, b = torch.randn(r, inputs, generator=made), torch.randn(outputs, r, generator=made)
    found, whole = explain.singular_values(a, b), torch.linalg.svdvals(b @ a)[:r]
    assert found.tolist() == pytest.approx(whole.tolist(), abs=1e-6 * float(whole[0]))


def test_a_pass_holds_the_layer_in_16_bit_for_a_moment(weight: torch.Tensor, layer: Any) -> None:
    found = explain.memory_of_a_pass(layer)
    assert found["stored"] == weight.numel() * explain.bits(weight, layer)["stored, double"] / 8
    assert found["stored"] < found["in_16_bit"] / 3
    assert found["in_16_bit"] <= found["forward_peak"] < 4 * found["in_16_bit"]
    assert found["in_16_bit"] <= found["backward_peak"]


def test_training_leaves_the_frozen_weights_alone(layer: Any) -> None:
    found = explain.what_training_touches(layer)
    assert found["frozen_before"] == found["frozen_after"]
    assert found["gradients"] == {"A": True, "B": True, "base.weight": False}
    assert found["changed"] == {"A": True, "B": True}
    assert found["input_gradient"] > 0
    through_nothing = explain.what_training_touches(explain.frozen_layer(torch.zeros(128, 256)))
    assert through_nothing["input_gradient"] == 0, "it comes through the frozen weights alone"


@pytest.mark.parametrize("part", ["weight.data", "code", "absmax", "offset", "state2.absmax", "state2.code"])
def test_the_checksum_is_of_the_constants_too(part: str, layer: Any) -> None:
    before = explain._checksum(layer)
    tensor = operator.attrgetter(part)(layer if part == "weight.data" else layer.weight.quant_state)
    tensor.copy_(tensor.flip(0) if tensor.dim() else tensor + 1)
    assert explain._checksum(layer) != before


def test_layers_of_a_real_folder(tiny_model: Path) -> None:
    names = explain.layer_names(str(tiny_model))
    assert len(names) == 2 * 7 and "model.layers.1.mlp.down_proj" in names
    assert explain.explain_layer(str(tiny_model), names[0])["name"] == names[0]
    with pytest.raises(ModelError, match="has no layer nothing; choose one of its own"):
        explain.explain_layer(str(tiny_model), "nothing")
    with pytest.raises(ModelError, match="is no folder with safetensors"):
        explain.layer_names("nobody/nothing")


def test_a_layer_that_lies_in_a_second_file_too_is_offered_once(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    shutil.copy(tiny_model / "model.safetensors", tmp_path / "model" / "consolidated.safetensors")
    assert explain.layer_names(str(tmp_path / "model")) == explain.layer_names(str(tiny_model))


def test_a_small_update_is_kept_in_16_bit_and_lost_in_nf4() -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    small = 0.01 * torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    found = explain.merged(weight, small)
    whole, again, original = MERGES["fp4"]
    assert found[whole]["error"] < 0.3 < 0.7 < found[again]["error"]
    assert found[whole]["kept"] > 0.9 and found[again]["kept"] < 0.5
    assert found[original]["kept"] > 0.5, "its values do not lie on the grid"
    assert explain.merged(weight, small, "16bit")["in NF4"]["kept"] > 0.5, "noise on a fresh grid takes nothing out"
    large = explain.merged(weight, 100 * small)
    assert large[again]["error"] < found[again]["error"]
    assert large[whole]["output"] < 0.01
    tiny = explain.merged(weight, 1e-4 * small)
    assert 0.9 < tiny[whole]["error"] <= 1, "it is lost where weights are not zero, and nothing else is off"


@pytest.mark.parametrize("form", get_args(BaseForm))
def test_a_merge_is_compared_with_the_layer_that_the_run_trained_on(tiny_model: Path, form: BaseForm) -> None:
    source, name = str(tiny_model), "model.layers.0.mlp.up_proj"
    weight = load.load_16bit(source).get_submodule(name).weight.detach()
    base = load.load_16bit(source) if form == "16bit" else load.load_dequantized(source, form)
    trained = rounding.as_trained(weight, form).float()
    assert torch.allclose(trained, base.get_submodule(name).weight.detach().float(), atol=2e-3, rtol=1e-2)
    assert (trained == weight.float()).all() == (form == "16bit")


def test_the_update_of_a_run_is_told_of_the_base_it_trained_on_and_dora_s_is_not(
    services: Services, tiny_model: Path
) -> None:
    told = {}
    for method, quantized in (("lora", "nf4"), ("lora-8bit", "nf4"), ("qlora", "fp4")):
        run = services.runs.create(TrainConfig(model=str(tiny_model), method=method, bnb_4bit_quant_type=quantized))
        save_adapter(tiny_model, run.adapter)
        found = services.engine().explain_update(run.id, "model.layers.0.mlp.up_proj")
        told[found["form"]] = re.search(r"into the (\S+) layer it was trained on", render_explain.rounding(found))
        assert list(found["merged"]) == MERGES[found["form"]]
        assert all(f">merged {name}<" in render_explain.rounding(found) for name in found["merged"])
    assert {form: there and there[1] for form, there in told.items()} == {
        "16bit": "16-bit",
        "int8": "8-bit",
        "fp4": "FP4",
    }
    run = services.runs.create(TrainConfig(model=str(tiny_model), use_dora=True))
    save_adapter(tiny_model, run.adapter)
    with pytest.raises(RunError, match=f"run {run.id}: DoRA's update is more than B times A"):
        services.engine().explain_update(run.id, "model.layers.0.mlp.up_proj")


def test_what_one_token_takes_is_told_of_both_ways() -> None:
    weight, a, b = torch.randn(128, 64), torch.randn(4, 64), torch.zeros(128, 4)
    found = explain.of_a_token(weight, a, b)
    beside, merged = found["NF4, the update beside it"], found["merged in 16 bit"]
    assert merged["bytes"] == 2 * weight.numel()
    assert weight.numel() // 2 + 2 * 4 * (64 + 128) < beside["bytes"] < merged["bytes"]
    assert min(beside["seconds"], merged["seconds"]) > 0


def test_one_token_takes_the_way_that_it_takes_in_a_column(tiny_model: Path, tmp_path: Path) -> None:
    base = load.load_base(str(tiny_model), "nf4", "inference")
    column = load.load_adapter(pack(base), save_adapter(tiny_model, tmp_path / "adapter"))
    theirs = column.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    weight = load.load_16bit(str(tiny_model)).get_submodule("model.layers.0.mlp.up_proj").weight
    a, b = theirs.lora_A["default"].weight, theirs.scaling["default"] * theirs.lora_B["default"].weight
    ours, merged = explain.answering_layers(weight, a, b).values()
    plain = pack(load.load_16bit(str(tiny_model))).get_submodule("model.layers.0.mlp.up_proj")
    x = torch.randn(1, 1, 64, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert torch.allclose(ours(x), theirs(x), rtol=0.02, atol=0.02)
        assert torch.allclose(merged(x), plain(x) + x @ (b @ a).T, rtol=0.02, atol=0.02)
    assert (_held(ours), type(merged)) == (_held(theirs), type(plain))
    assert [one["bytes"] for one in explain.of_a_token(weight, a, b).values()] == list(
        map(load.tensor_bytes, (theirs, plain))
    )


def _held(layer: Any) -> tuple[Any, ...]:
    """What decides which way a pass through PEFT's layer over a 4-bit one takes."""
    base = layer.base_layer
    return (
        type(layer),
        layer.lora_A["default"].weight.dtype,
        base.training,
        base.weight.dtype,
        vars(base.weight.quant_state).keys(),
    )


@pytest.mark.parametrize(("rank", "ranks"), [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_smaller_ranks_are_powers_of_two_and_the_last_is_its_own(rank: int, ranks: list[int]) -> None:
    assert explain._ranks_up_to(rank) == ranks
