"""The memory plan as it is drawn: every part of every way, in its own colour."""

from __future__ import annotations

from html import escape

import pytest

from qlora_demo.catalog import SHAPES
from qlora_demo.config import TrainConfig
from qlora_demo.plan.alternatives import compare
from qlora_demo.plan.memory_plan import Kind
from qlora_demo.presets import ARTICLE
from qlora_demo.ui import render_training as show
from qlora_demo.units import GIB


@pytest.mark.parametrize("method", ["qlora", "lora", "lora-8bit"])
@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_each_way_is_drawn_with_every_part(method: str, kind: Kind) -> None:
    config = TrainConfig(method=method, lora_dropout=0.1)
    found = compare(SHAPES["llama-2-7b"], config, kind, 24 * GIB, checkpointing=True)
    drawn = show.memory_plan(found)
    plans = (found.chosen, *found.others)
    assert drawn.count('class="stack"') == 1 + len(plans)
    assert drawn.count("<details>") == len(plans)
    for plan in plans:
        assert all(escape(item.name) in drawn for item in plan.items)
    colours = [show._COLOURS[item.name] for item in found.chosen.items]
    assert len(set(colours)) == len(colours)


@pytest.mark.parametrize(("accumulation", "told"), [(4, True), (1, False)])
def test_the_same_step_in_fewer_passes_is_told_where_there_is_one(accumulation: int, told: bool) -> None:
    config = ARTICLE.changed(gradient_accumulation_steps=accumulation)
    drawn = show.memory_plan(compare(SHAPES["llama-2-7b"], config, "cuda", 24 * GIB, checkpointing=True))
    assert ("Batch size 16 with accumulation 1 is the same step and also fits" in drawn) is told
