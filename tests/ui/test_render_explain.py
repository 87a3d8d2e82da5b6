"""What the Explain tab tells of memory is the plan's own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import gradio as gr
import pytest
from safetensors.torch import save_file

from qlora_demo.catalog import SHAPES
from qlora_demo.config import TrainConfig
from qlora_demo.errors import ModelError
from qlora_demo.plan.alternatives import compare
from qlora_demo.plan.choices import expected
from qlora_demo.plan.memory_plan import MemoryPlan, plan
from qlora_demo.services import Services
from qlora_demo.ui import render_explain as show
from qlora_demo.ui.explain_tab import Explain
from qlora_demo.units import GIB, memory
from tests.calls import opened
from tests.tiny import save_adapter


def _text(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def _plan(shape: str, method: str, checkpointing: bool) -> MemoryPlan:
    config = TrainConfig(model=shape).changed(method=method, max_length=512, target_modules="attention")
    kernels = expected("cuda", SHAPES[shape], 24 * GIB, here=False).kernels
    return plan(SHAPES[shape], config, "cuda", checkpointing=checkpointing, kernels=kernels)


@pytest.mark.parametrize("shape", ["llama-2-7b", "qwen3-0.6b"])
@pytest.mark.parametrize("method", ["qlora", "lora-8bit"])
def test_the_ledger_and_the_paragraph_below_it_tell_the_same(shape: str, method: str, services: Services) -> None:
    ledger, paging = map(_text, Explain(services).ledger(shape, method, "24GB"))
    off, on = (_plan(shape, method, checkpointing) for checkpointing in (False, True))
    kept, recomputed = (memory({item.name: item.bytes for item in one.items}["activations"]) for one in (off, on))
    assert f"{recomputed} of activations instead of {kept} here" in paging
    assert f"{memory(on.total_bytes)} in total instead of {memory(off.total_bytes)}" in paging
    shown = on if "recomputed layer by layer" in ledger else off
    assert f"activations {recomputed if shown is on else kept} " in ledger.split("part", 1)[1]
    assert f"total {memory(shown.total_bytes)} " in ledger


@pytest.mark.parametrize(
    ("card", "activations"), [("80GB", "kept, without checkpointing"), ("8GB", "recomputed layer by layer")]
)
def test_the_ledger_says_what_it_is_for(card: str, activations: str, services: Services) -> None:
    told = _text(Explain(services).ledger("llama-2-7b", "qlora", card)[0])
    assert told.startswith("For batches of 4 rows of 512 tokens; adapters of rank 16 on attention; activations ")
    assert f"; activations {activations}" in told
    assert "; gradients of 16,777,216 x 2 bytes less the activations that are freed by then. Layers" in told
    assert " Layers and loss run on fused kernels, except for the layers of full fine-tuning." in told


def test_the_ledger_says_which_kernels_it_is_for() -> None:
    config = TrainConfig(model="tiny")
    found = compare(SHAPES["tiny"], config, "cuda", GIB, checkpointing=True, kernels="torch")
    told = _text(show.ledger(found, config))
    assert "recomputed layer by layer (checkpointing); gradients of " in told
    assert ". Neither layers nor loss run on fused kernels." in told


def test_only_what_can_page_is_said_to(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> str:
        return _text(Explain(services).ledger("llama-2-7b", "qlora", "24GB")[1])

    state = "of this plan's 128 MiB (16,777,216 x 8 bytes, paged_adamw_32bit) that is"
    assert f"{state} nothing ." in told()
    monkeypatch.setattr("qlora_demo.ui.explain_tab.paged_state_bytes", lambda shape, config, kind: config.r << 20)
    assert f"{state} 16 MiB ." in told()


def test_bytes_of_gradients_and_optimizer_state_are_those_of_each_way_s_plan(services: Services) -> None:
    told = _text(Explain(services).size(8, None))
    assert "for the whole layer 160 MiB with full fine-tuning (2 + 8 bytes per parameter);" in told
    assert "for the update 640 KiB with QLoRA, 4 bit (2 + 8 bytes per parameter)" in told
    assert "or 768 KiB with LoRA, 16 bit (4 + 8 bytes per parameter)" in told


@pytest.mark.parametrize(("r", "share"), [(1, "75.0%"), (3, "99.0%"), (4, "100.0%"), (256, "100.0%")])
def test_the_slider_s_rank_is_told_what_it_could_hold_of_the_update_looked_into(
    r: int, share: str, services: Services
) -> None:
    explain = Explain(services)
    looked = {"run": "a-run", "layer": "layers.0.q_proj", "energy": [0.75, 0.9, 0.99, 1.0]}
    told = _text(explain.size(r, looked))
    assert "Of the update that run a-run learned for layers.0.q_proj with rank 4, " in told
    assert f"with rank 4, rank {r} could hold {share} of the energy" in told
    assert _text(explain.open(r, looked, "tiny", "qlora", "24GB")[0]) == told
    assert "could hold" not in explain.size(r, None)


def test_a_base_that_is_not_here_is_told_to_who_asks_for_a_layer_of_it(
    services: Services, tmp_path: Path, tiny_model: Path
) -> None:
    run = services.runs.create(TrainConfig(model=str(tmp_path / "gone")))
    layers, *_ = Explain(services).layers(run.id, 2)
    assert (layers["choices"], layers["value"]) == ([], None), "the page lists by itself"
    assert "is no folder here" in layers["info"], "why it is empty stands beside it"
    with pytest.raises(ModelError, match="gone"):
        Explain(services).layer(run.id, None, 2)
    shutil.copytree(tiny_model, tmp_path / "gone")
    save_adapter(tiny_model, run.adapter)
    *_, layers = Explain(services).layer(run.id, None, 2)
    assert (layers["value"] in layers["choices"], layers["info"]) == (True, ""), "once it is here"


def test_what_the_slider_goes_on_with_is_of_the_update_looked_into(services: Services, tiny_model: Path) -> None:
    run = services.runs.create(TrainConfig(model=str(tiny_model), r=4, lora_alpha=8))
    save_adapter(tiny_model, run.adapter)
    layer = "model.layers.0.mlp.up_proj"
    spectrum, *_, looked, size, listed = Explain(services).layer(run.id, layer, 2)
    kept = re.search(r"energy it could hold 1 ([\d.]+%) 2 ([\d.]+%) 4 100.0%", _text(spectrum))
    assert kept and f"rank 2 could hold {kept[2]} of the energy" in _text(size)
    assert (looked["run"], looked["layer"], len(looked["energy"])) == (run.id, layer, 4)
    assert listed == gr.skip(), "the layer that was chosen stays chosen"
    assert Explain(services).layer(run.id, layer.replace("up", "gate"), 2)[-2] != size
    save_file({}, run.adapter / "adapter_model.safetensors")
    *_, looked, size, _ = Explain(services).layer(run.id, layer, 2)
    assert looked is None and "could hold" not in size, "not of the one before"


def test_no_figures_of_one_run_or_layer_stand_below_another_s_name(services: Services, tiny_model: Path) -> None:
    run = services.runs.create(TrainConfig(model=str(tiny_model)))
    _, _, *shown = Explain(services).layers(run.id, 2)
    assert shown == Explain(services).forget(2) == [show.LOOK, "", *[show.LOOK] * 3, None, shown[-1]]
    assert "could hold" not in shown[-1]
    page = opened(services)
    by_id = {part.elem_id: number for number, part in page.blocks.items()}
    for part, event, name in (("explain-run", "change", "layers"), ("explain-layer", "input", "forget")):
        [handler] = [one for one in page.fns.values() if (by_id[part], event) in one.targets]
        assert handler.name == name
        assert {"spectrum", "rounding", "nf4", "bits", "one-pass", "explain-size"} <= {
            part.elem_id for part in handler.outputs
        }
    page.close()
