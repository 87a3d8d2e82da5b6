"""A column is what it says it is, or it does not answer."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from qlora_demo.columns import parse_all
from qlora_demo.config import TrainConfig
from qlora_demo.errors import AdapterError, NoRoom, RunError, WrongModel
from qlora_demo.memory import weight_bytes
from qlora_demo.ml import load, merge, variants
from qlora_demo.ml.evaluate import divergences, fidelity_figures, reference_targets
from qlora_demo.ml.variants import Loaded, Variants, prove
from qlora_demo.ml.weights import Weights
from qlora_demo.plan.placement import Device, Unit
from qlora_demo.records import RunState
from qlora_demo.runs import Run, write_state
from qlora_demo.services import Services
from qlora_demo.sources import Origin, find_adapter, shape_of, weights_digest
from qlora_demo.system.disk import write_atomically
from tests.tiny import save_adapter

ROWS = [[{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"done {n}"}] for n in range(5)]


def loaded(held: Variants, run: Run, names: list[str]) -> list[Loaded]:
    """Load to the end; the named ones."""
    for _ in held.load(parse_all(names, run.id)):
        pass
    return [held.loaded[name] for name in names]


def variants_of(services: Services) -> Variants:
    return Variants(services.settings, services.runs)


def origin_of(services: Services, run: Run) -> Origin:
    return find_adapter(services.settings, services.runs, run.id)


def make_tight(held: Variants, run: Run, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that has just room for the columns when they share what they can."""
    columns = parse_all(names, run.id)
    for free in range(0, 1 << 30, 1 << 14):
        device = Device("cpu", free, free)
        monkeypatch.setattr("qlora_demo.ml.variants.device_now", lambda device=device: device)
        if held.plan(columns).fits:
            return


def finished_run(services: Services, model: Path, method: Any, scale: float = 0.1) -> Run:
    run = services.runs.create(TrainConfig(model=str(model), method=method))
    save_adapter(model, run.adapter, scale)
    write_state(run.path, RunState(status="finished"))
    return services.runs.get(run.id)


def test_three_columns_are_what_they_say(services: Services, run: Run) -> None:
    three = loaded(variants_of(services), run, ["base", "adapter", "merged"])
    proofs = {one.resident.column.name: prove(one) for one in three}
    assert {name: (proof.precision, proof.adapter) for name, proof in proofs.items()} == {
        "base": ("bf16", "none"),
        "adapter": ("nf4", "on"),
        "merged": ("bf16", "merged"),
    }


def test_a_base_that_does_not_fit_shares_the_adapter_columns_weights(
    services: Services, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = variants_of(services)
    make_tight(held, run, ["base", "adapter"], monkeypatch)
    base, adapter = loaded(held, run, ["base", "adapter"])
    assert base.model is adapter.model
    assert base.resident.shares == "adapter"
    assert (prove(base).precision, prove(base).adapter) == ("nf4", "off")
    assert prove(adapter).adapter == "on"


def test_a_16_bit_run_shares_its_base(services: Services, tiny_model: Path) -> None:
    run = finished_run(services, tiny_model, "lora")
    base, adapter = loaded(variants_of(services), run, ["base", "adapter"])
    assert base.model is adapter.model
    assert (base.resident.precision, adapter.resident.title) == ("bf16", "Base + adapter")


def test_an_adapter_left_on_in_the_base_column_is_caught(services: Services, run: Run) -> None:
    held = variants_of(services)
    [adapter] = loaded(held, run, ["adapter"])
    pretender = replace(
        adapter, resident=replace(adapter.resident, column=parse_all(["base"], run.id)[0], adapter="off")
    )
    with pytest.raises(WrongModel, match="base: expected nf4 weights with adapter off, found nf4 with adapter on"):
        prove(pretender)


def test_a_wrong_base_in_the_merged_column_is_caught(services: Services, run: Run) -> None:
    [adapter] = loaded(variants_of(services), run, ["adapter"])
    pretender = replace(
        adapter,
        resident=replace(adapter.resident, column=parse_all(["merged"], run.id)[0], adapter="merged", precision="bf16"),
    )
    with pytest.raises(WrongModel, match="merged: expected bf16"):
        prove(pretender)


def test_an_adapter_on_in_some_layers_only_is_caught(services: Services, run: Run) -> None:
    [adapter] = loaded(variants_of(services), run, ["adapter"])
    next(m for m in adapter.model.modules() if isinstance(m, BaseTunerLayer)).enable_adapters(False)
    with pytest.raises(WrongModel, match="on in some layers and off in others"):
        adapter.weights.adapter_use(adapter.adapter)


def test_two_runs_side_by_side_share_one_base_and_answer_with_their_own_adapters(
    services: Services, run: Run, tiny_model: Path
) -> None:
    other = finished_run(services, tiny_model, "qlora", scale=0.3)
    names = ["adapter", f"adapter@{other.id}"]
    mine, theirs = loaded(variants_of(services), run, names)
    assert mine.model is theirs.model
    assert theirs.resident.shares == "adapter"
    apart = [logits(one) for one in (mine, theirs, mine)]
    assert torch.equal(apart[0], apart[2])
    assert not torch.equal(apart[0], apart[1])
    [alone] = loaded(variants_of(services), other, ["adapter"])
    assert torch.equal(logits(alone), apart[1])
    with theirs.activate(), pytest.raises(WrongModel, match=f"another one than {run.id} is on"):
        mine.weights.adapter_use(mine.adapter)


def test_bytes_of_a_column_leave_other_adapters_out(services: Services, run: Run, tiny_model: Path) -> None:
    held = variants_of(services)
    [alone] = loaded(held, run, ["adapter"])
    other = finished_run(services, tiny_model, "qlora")
    first, _ = loaded(held, run, ["adapter", f"adapter@{other.id}"])
    assert first.resident.model_bytes == alone.resident.model_bytes
    assert first.weights.bytes_with(None) < first.resident.model_bytes


@pytest.mark.parametrize("names", [["base", "merged"], ["base", "adapter", "merged-4bit"]])
def test_a_turn_of_columns_that_are_here_goes_through_no_model(
    services: Services, run: Run, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = variants_of(services)
    before = loaded(held, run, names)
    for one in before:
        assert one.resident.model_bytes == load.tensor_bytes(one.model), "as its layers are since their first pass"
    for walks in ("tensor_bytes", "telling_layer"):
        monkeypatch.setattr(f"qlora_demo.ml.weights.{walks}", lambda *_: pytest.fail("a model was gone through"))
    assert [one.resident for one in loaded(held, run, names)] == [one.resident for one in before]
    assert [prove(one).precision for one in before] == [one.resident.precision for one in before]


def test_what_failed_before_its_first_pass_has_it_when_it_is_asked_for_again(
    services: Services, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = variants_of(services)
    with monkeypatch.context() as patch, pytest.raises(AdapterError):
        patch.setattr(variants, "load_tokenizer", lambda _: (_ for _ in ()).throw(AdapterError("damaged")))
        loaded(held, run, ["adapter"])
    [again] = loaded(held, run, ["adapter"])
    assert again.resident.warm_up_seconds > 0
    for _ in range(2):
        logits(again)
        assert again.resident.model_bytes == load.tensor_bytes(again.model)


def test_an_adapter_from_a_folder_is_a_column(services: Services, run: Run, tiny_model: Path, tmp_path: Path) -> None:
    folder = save_adapter(tiny_model, tmp_path / "elsewhere", scale=0.3)
    mine, theirs = loaded(variants_of(services), run, ["adapter", f"adapter@{folder}"])
    assert not torch.equal(logits(mine), logits(theirs))


@pytest.mark.parametrize("recipe", ["adapter", "merged"])
def test_an_adapter_that_took_another_s_place_is_the_one_that_answers(
    services: Services, run: Run, tiny_model: Path, tmp_path: Path, recipe: str
) -> None:
    held, folder = variants_of(services), save_adapter(tiny_model, tmp_path / "mine", scale=0.3)
    [before] = loaded(held, run, [f"{recipe}@{folder}"])
    earlier = logits(before)
    shutil.copytree(run.adapter, folder, dirs_exist_ok=True)
    (folder / "adapter_model.safetensors").touch()
    [after] = loaded(held, run, [f"{recipe}@{folder}"])
    assert not torch.equal(logits(after), earlier)
    assert len(after.weights.adapters) == (recipe == "adapter")  # the one before is gone
    [alone] = loaded(variants_of(services), run, [recipe])
    assert torch.equal(logits(after), logits(alone))


def test_an_adapter_that_does_not_fit_leaves_nothing_of_itself(
    services: Services, run: Run, tiny_model: Path, tmp_path: Path
) -> None:
    other = finished_run(services, tiny_model, "qlora", scale=0.3)
    expected = logits(loaded(variants_of(services), other, ["adapter"])[0])
    bad = save_adapter(tiny_model, tmp_path / "bad")
    config, weights = bad / "adapter_config.json", bad / "adapter_model.safetensors"
    config.write_text(config.read_text("utf-8").replace('"lora_alpha": 8', '"lora_alpha": 64'), "utf-8")
    tensors = load_file(weights)
    save_file(tensors | {max(tensors): tensors[max(tensors)][:, :2].contiguous()}, weights)
    held = variants_of(services)
    loaded(held, run, ["adapter"])
    with pytest.raises(AdapterError, match="does not fit"):
        loaded(held, run, [f"adapter@{bad}"])
    assert torch.equal(logits(loaded(held, other, ["adapter"])[0]), expected)


def test_a_plan_is_made_while_weights_change(services: Services, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    held = variants_of(services)
    loaded(held, run, ["base", "adapter"])
    monkeypatch.setattr(Weights, "bytes_with", lambda *_: pytest.fail("weights were walked"))
    plan = held.plan(parse_all(["base", "adapter"], run.id))
    assert plan.fits and not any(one.added_bytes for one in plan.places)


def test_another_run_uses_the_base_that_is_there(services: Services, run: Run, tiny_model: Path) -> None:
    held = variants_of(services)
    [first] = loaded(held, run, ["adapter"])
    other = finished_run(services, tiny_model, "qlora")
    [second] = loaded(held, other, ["adapter"])
    assert second.weights is first.weights


def test_the_least_recently_used_weights_make_room(
    services: Services, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = variants_of(services)
    loaded(held, run, ["merged:original"])
    loaded(held, run, ["merged"])
    columns = parse_all(["adapter"], run.id)
    placement = held.plan(columns)
    missing = placement.needed_bytes - sum(size for _, size in placement.resident)
    monkeypatch.setattr("qlora_demo.ml.variants.device_now", lambda: Device("cpu", missing - 1, 1 << 30))
    loaded(held, run, ["adapter"])
    assert [(unit.kind, unit.onto) for unit in held.held] == [("merged", "dequantized"), ("nf4", None)]


def test_what_cannot_fit_is_refused_before_anything_is_loaded_or_freed(
    services: Services, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = variants_of(services)
    make_tight(held, run, ["base", "adapter"], monkeypatch)
    with pytest.raises(NoRoom, match=r"base, adapter, merged need .* do not fit .* choose"):
        loaded(held, run, ["base", "adapter", "merged"])
    assert held.held == {}


def test_the_merged_model_quantized_again_is_what_a_reload_in_4_bit_gives(
    services: Services, run: Run, tmp_path: Path
) -> None:
    [again] = loaded(variants_of(services), run, ["merged-4bit:dequantized"])
    assert (prove(again).precision, prove(again).adapter) == ("nf4", "merged")
    merge.load_merged(origin_of(services, run), "dequantized").save_pretrained(tmp_path / "merged")
    reloaded = load.load_quantized(str(tmp_path / "merged"), "inference")
    assert torch.equal(logits(again), logits(replace(again, weights=Weights(reloaded, "", 0.0))))


@pytest.mark.parametrize(
    ("free", "elsewhere", "merged_on"),
    [(1.6, 9, "cuda:0"), (0.4, 9, "cpu"), (0.4, 1, "cuda:0")],
    ids=["room on the GPU", "room in the host's memory", "room in neither"],
)
def test_a_merge_to_be_quantized_is_made_where_it_has_room_and_ends_on_the_gpu(
    services: Services, run: Run, monkeypatch: pytest.MonkeyPatch, free: float, elsewhere: float, merged_on: str
) -> None:
    size, gpu = weight_bytes(shape_of(run.config.model), "16bit"), torch.device("cuda", 0)
    monkeypatch.setattr("qlora_demo.system.cgroup.free_and_total", lambda: (int(elsewhere * size), 9 * size))
    monkeypatch.setattr(merge, "free_and_total", lambda: (int(free * size), 9 * size))
    monkeypatch.setattr(merge, "device", lambda: gpu)
    monkeypatch.setattr(variants, "device", lambda: gpu)
    monkeypatch.setattr(variants, "load_merged", lambda origin, onto, on=gpu: str(on))
    monkeypatch.setattr(variants, "quantize_nf4", lambda model, on: f"{model}, {on}")
    monkeypatch.setattr(variants, "pack", lambda made: made)
    monkeypatch.setattr(variants, "Weights", lambda made, *_: made)
    unit = Unit("merged-4bit", run.config.model, run.id, "original")
    assert str(variants._read(unit, origin_of(services, run))) == f"{merged_on}, cuda:0"


def test_another_base_under_the_adapter_is_caught(services: Services, tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    run = finished_run(services, model, "qlora")
    write_atomically(run.path / "versions.json", json.dumps({"base_weights": weights_digest(str(model))}))
    [adapter] = loaded(variants_of(services), run, ["adapter"])
    assert prove(adapter).adapter == "on"
    wrong = LlamaForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    torch.nn.init.normal_(wrong.model.layers[1].mlp.up_proj.weight)
    wrong.save_pretrained(model)
    for name in ("base", "adapter", "merged"):
        with pytest.raises(WrongModel, match=f"{name}: the files of .* are not those that .* was trained on"):
            loaded(held := variants_of(services), run, [name])
        assert held.plan(parse_all([name], run.id)).resident  # what was read stays, and is seen


def test_unfinished_runs_are_refused(services: Services) -> None:
    unfinished = services.runs.create(TrainConfig())
    with pytest.raises(RunError, match="created, it has no adapter"):
        loaded(variants_of(services), unfinished, ["base"])


def logits(one: Loaded) -> torch.Tensor:
    ids = torch.arange(3, 12)[None]
    with torch.inference_mode(), one.activate():
        return torch.Tensor(one.model(input_ids=ids).logits)


def test_a_zero_adapter_makes_adapter_equal_base_exactly(
    services: Services, tiny_model: Path, monkeypatch: Any
) -> None:
    run = finished_run(services, tiny_model, "qlora", scale=0.0)
    held = variants_of(services)
    make_tight(held, run, ["base", "adapter"], monkeypatch)
    base, adapter = loaded(held, run, ["base", "adapter"])
    ours, theirs = (list(reference_targets(one, ROWS)) for one in (base, adapter))
    assert all(torch.equal(a.log_probs, b.log_probs) for a, b in zip(ours, theirs, strict=True))
    assert fidelity_figures(list(divergences(adapter, base, ROWS)))["kl_worst"] == 0
