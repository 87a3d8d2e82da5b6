"""A merge is the model that was trained, or there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qlora_demo.errors import RequestError, WrongModel
from qlora_demo.ml import load, merge
from qlora_demo.ml.evaluate import divergences, fidelity_figures
from qlora_demo.ml.weights import Weights
from qlora_demo.records import MergeBase
from qlora_demo.runs import Run
from qlora_demo.services import Services
from tests.ml.test_variants import ROWS, finished_run, loaded, origin_of, variants_of


def test_the_merge_holds_base_plus_update_in_every_layer(services: Services, run: Run, tiny_model: Path) -> None:
    merged = merge.load_merged(origin_of(services, run), "dequantized")
    reference = load.load_adapter(load.load_dequantized(str(tiny_model)), run.adapter)
    for name, layer in reference.get_base_model().named_modules():
        if hasattr(layer, "get_delta_weight"):
            expected = layer.get_base_layer().weight + layer.get_delta_weight("default")
            assert torch.equal(merged.get_submodule(name).weight, expected), name


def test_the_merge_onto_the_dequantized_base_is_nearer_to_the_adapter_model(services: Services, run: Run) -> None:
    [adapter] = loaded(variants_of(services), run, ["adapter"])
    distance = {}
    bases: tuple[MergeBase, ...] = ("original", "dequantized")
    for onto in bases:
        model = merge.load_merged(origin_of(services, run), onto)
        merged = replace(adapter, weights=Weights(model, "", 0.0), adapter=None)
        distance[onto] = fidelity_figures(list(divergences(merged, adapter, ROWS)))["kl_mean"]
    assert distance["dequantized"] < distance["original"] / 3


def test_a_merge_that_does_not_hold_the_update_is_caught(
    services: Services, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peft.PeftModel.merge_and_unload", lambda self, **_: self.unload(), raising=False)
    with pytest.raises(WrongModel, match="does not hold base \\+ adapter"):
        merge.load_merged(origin_of(services, run), "original")


def test_a_16_bit_run_is_not_merged_onto_a_dequantized_base(services: Services, tiny_model: Path) -> None:
    run = finished_run(services, tiny_model, "lora")
    with pytest.raises(RequestError, match="onto: dequantized is for adapters trained on a 4-bit or 8-bit base"):
        merge.load_merged(origin_of(services, run), "dequantized")
