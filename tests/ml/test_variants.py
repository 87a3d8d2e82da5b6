"""A column is what it says it is, or it does not answer; a merge is the model that was trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from qlora_demo.config import TrainConfig
from qlora_demo.errors import ConfigError, RequestError, RunError, WrongModel
from qlora_demo.memory import ModelShape
from qlora_demo.ml import load, merge, variants
from qlora_demo.ml.evaluate import fidelity, reference_targets
from qlora_demo.ml.variants import Loaded, Variants, base_fits, prove
from qlora_demo.records import MergeBase, RunState
from qlora_demo.runs import Run, write_state
from qlora_demo.services import Services
from tests.tiny import save_adapter

ROWS = [[{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"done {n}"}] for n in range(5)]


@pytest.fixture
def run(services: Services, tiny_model: Path) -> Run:
    """A finished QLoRA run of the tiny model with a random adapter."""
    return finished_run(services, tiny_model, "qlora")


def loaded(held: Variants, run: Run, names: list[str]) -> list[Loaded]:
    """Load to the end; the named ones."""
    for _ in held.load(run, names):
        pass
    return [held.loaded[name] for name in names]


def finished_run(services: Services, model: Path, method: Any, scale: float = 0.1) -> Run:
    run = services.runs.create(TrainConfig(model=str(model), method=method))
    save_adapter(model, run.adapter, scale)
    write_state(run.path, RunState(status="finished"))
    return services.runs.get(run.id)


def test_three_columns_are_what_they_say(services: Services, run: Run) -> None:
    three = loaded(Variants(services.settings), run, ["base", "adapter", "merged"])
    proofs = {one.resident.variant: prove(one) for one in three}
    assert {name: (proof.precision, proof.adapter) for name, proof in proofs.items()} == {
        "base": ("bf16", "none"),
        "adapter": ("nf4", "on"),
        "merged": ("bf16", "merged"),
    }


def test_a_base_that_does_not_fit_shares_the_adapter_columns_weights(
    services: Services, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "free_bytes", lambda: 0)
    base, adapter = loaded(Variants(services.settings), run, ["base", "adapter"])
    assert base.model is adapter.model
    assert base.resident.shares == "adapter"
    assert (prove(base).precision, prove(base).adapter) == ("nf4", "off")
    assert prove(adapter).adapter == "on"


def test_a_16_bit_run_shares_its_base(services: Services, tiny_model: Path) -> None:
    run = finished_run(services, tiny_model, "lora")
    base, adapter = loaded(Variants(services.settings), run, ["base", "adapter"])
    assert base.model is adapter.model
    assert (base.resident.precision, adapter.resident.title) == ("bf16", "bf16 + adapter")


def test_an_adapter_left_on_in_the_base_column_is_caught(services: Services, run: Run) -> None:
    held = Variants(services.settings)
    [adapter] = loaded(held, run, ["adapter"])
    pretender = replace(adapter, resident=replace(adapter.resident, variant="base", adapter="off"))
    with pytest.raises(WrongModel, match="base: expected nf4 weights with adapter off, found nf4 with adapter on"):
        prove(pretender)


def test_a_wrong_base_in_the_merged_column_is_caught(services: Services, run: Run) -> None:
    [adapter] = loaded(Variants(services.settings), run, ["adapter"])
    pretender = replace(
        adapter, resident=replace(adapter.resident, variant="merged", adapter="merged", precision="bf16")
    )
    with pytest.raises(WrongModel, match="merged: expected bf16"):
        prove(pretender)


def test_an_adapter_on_in_some_layers_only_is_caught(services: Services, run: Run) -> None:
    [adapter] = loaded(Variants(services.settings), run, ["adapter"])
    next(m for m in adapter.model.modules() if isinstance(m, BaseTunerLayer)).enable_adapters(False)
    with pytest.raises(WrongModel, match="on in some layers and off in others"):
        prove(adapter)


def test_another_run_replaces_the_one_in_memory(services: Services, run: Run, tiny_model: Path) -> None:
    held = Variants(services.settings)
    loaded(held, run, ["base", "adapter"])
    other = finished_run(services, tiny_model, "lora")
    loaded(held, other, ["adapter"])
    assert held.run is not None and held.run.id == other.id
    assert set(held.loaded) == {"adapter"}


def test_unknown_columns_and_unfinished_runs_are_refused(services: Services, run: Run) -> None:
    held = Variants(services.settings)
    with pytest.raises(ConfigError, match="variants: nonsense is not known; choose from base, adapter, merged"):
        loaded(held, run, ["nonsense"])
    unfinished = services.runs.create(TrainConfig())
    with pytest.raises(RunError, match="created, it has no adapter"):
        loaded(held, unfinished, ["base"])


def test_a_zero_adapter_makes_adapter_equal_base_exactly(
    services: Services, tiny_model: Path, monkeypatch: Any
) -> None:
    run = finished_run(services, tiny_model, "qlora", scale=0.0)
    monkeypatch.setattr(variants, "free_bytes", lambda: 0)
    held = Variants(services.settings)
    base, adapter = loaded(held, run, ["base", "adapter"])
    ours, theirs = (list(reference_targets(one, held.tokenizer, ROWS)) for one in (base, adapter))
    assert all(torch.equal(a.log_probs, b.log_probs) for a, b in zip(ours, theirs, strict=True))
    assert fidelity(adapter, base, held.tokenizer, ROWS)["kl_worst"] == 0


def test_the_merge_holds_base_plus_update_in_every_layer(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    config = TrainConfig(model=str(tiny_model), method="qlora")
    merged = merge.load_merged(str(tiny_model), adapter, config, "dequantized")
    reference = load.load_adapter(load.load_dequantized(str(tiny_model)), adapter)
    for name, layer in reference.get_base_model().named_modules():
        if hasattr(layer, "get_delta_weight"):
            expected = layer.get_base_layer().weight + layer.get_delta_weight("default")
            assert torch.equal(merged.get_submodule(name).weight, expected), name


def test_the_merge_onto_the_dequantized_base_is_nearer_to_the_adapter_model(services: Services, run: Run) -> None:
    held = Variants(services.settings)
    [adapter] = loaded(held, run, ["adapter"])
    distance = {}
    bases: tuple[MergeBase, ...] = ("original", "dequantized")
    for onto in bases:
        model = merge.load_merged(held.source, run.adapter, run.config, onto)
        merged = replace(adapter, model=model)
        distance[onto] = fidelity(merged, adapter, held.tokenizer, ROWS)["kl_mean"]
    assert distance["dequantized"] < distance["original"] / 3


def test_a_merge_that_does_not_hold_the_update_is_caught(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    monkeypatch.setattr("peft.PeftModel.merge_and_unload", lambda self, **_: self.unload(), raising=False)
    with pytest.raises(WrongModel, match="does not hold base \\+ adapter"):
        merge.load_merged(str(tiny_model), adapter, TrainConfig(method="lora"), "original")


def test_a_16_bit_run_is_not_merged_onto_a_dequantized_base(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    with pytest.raises(RequestError, match="onto: dequantized is for adapters trained on a 4-bit base"):
        merge.load_merged(str(tiny_model), adapter, TrainConfig(method="lora"), "dequantized")


def test_whether_a_16_bit_base_fits_is_arithmetic() -> None:
    llama = ModelShape(4096, 11008, 32, 32, 32, 128, 32000, tie_word_embeddings=False)
    gib = 1 << 30
    assert not base_fits(llama, 24 * gib)
    assert base_fits(llama, 40 * gib)
