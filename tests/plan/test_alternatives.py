"""What a plan is held against: how far the device goes, what is lighter, and the same step in fewer passes."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_demo.catalog import SHAPES
from qlora_demo.config import TrainConfig
from qlora_demo.plan.alternatives import ROOM, compare, fewer_passes, lighter
from qlora_demo.plan.choices import Situation, choose
from qlora_demo.plan.memory_plan import On, plan
from qlora_demo.presets import ARTICLE
from qlora_demo.units import GIB

LLAMA = SHAPES["llama-2-7b"]


def test_the_largest_batch_and_the_longest_row_are_the_last_that_fit() -> None:
    config = ARTICLE
    found = compare(LLAMA, config, "cuda", 24 * GIB, checkpointing=True)
    assert found.fits

    def total(**values: Any) -> int:
        return plan(LLAMA, config.changed(**values), "cuda", checkpointing=True).total_bytes

    assert total(per_device_train_batch_size=found.largest_batch) <= 24 * GIB
    assert total(per_device_train_batch_size=found.largest_batch + 1) > 24 * GIB
    assert total(max_length=found.longest_row) <= 24 * GIB < total(max_length=found.longest_row + 1)
    assert [other.way for other in found.others] == ["lora", "full"]


def test_where_nothing_fits_nothing_is_promised() -> None:
    found = compare(LLAMA, ARTICLE, "cuda", 2 * GIB, checkpointing=True)
    assert (found.fits, found.largest_batch, found.longest_row) == (False, 0, 0)


def test_lighter_settings_are_ranked_by_what_they_save_and_each_does_save() -> None:
    heavy = TrainConfig(method="lora", per_device_train_batch_size=8, max_length=2048, r=64)
    found = lighter(LLAMA, heavy, "cuda", checkpointing=False)
    assert len(found) == 3
    assert [one.saves_bytes for one in found] == sorted((one.saves_bytes for one in found), reverse=True)
    before = plan(LLAMA, heavy, "cuda", checkpointing=False).total_bytes
    for one in found:
        recomputes = one.changes.get("gradient_checkpointing") == "on"
        after = plan(LLAMA, heavy.changed(**one.changes), "cuda", checkpointing=recomputes).total_bytes
        assert before - after == one.saves_bytes > 0
    assert {"gradient_checkpointing": "on"} in [one.changes for one in found]


def test_what_is_as_light_as_it_can_be_has_nothing_lighter() -> None:
    least = TrainConfig(r=1, max_length=16, per_device_train_batch_size=1, target_modules="attention")
    assert lighter(LLAMA, least, "cuda", checkpointing=True) == ()


def test_the_article_s_step_is_one_pass_where_there_is_room_for_it() -> None:
    found = fewer_passes(LLAMA, ARTICLE, "cuda", 24 * GIB, checkpointing=True)
    merged = ARTICLE.changed(per_device_train_batch_size=16, gradient_accumulation_steps=1)
    total = plan(LLAMA, merged, "cuda", checkpointing=True).total_bytes
    assert found is not None and (found.rows, found.count, found.total_bytes) == (16, 1, total)
    assert compare(LLAMA, ARTICLE, "cuda", 24 * GIB, checkpointing=True).fewer_passes == found


def test_less_room_takes_more_passes_and_none_is_told_of_where_the_chosen_ones_are_the_fewest() -> None:
    def sought(free: float) -> tuple[int, int] | None:
        found = fewer_passes(LLAMA, ARTICLE, "cuda", round(free), checkpointing=True)
        return (found.rows, found.count) if found else None

    def needed(rows: int, count: int) -> float:
        merged = ARTICLE.changed(per_device_train_batch_size=rows, gradient_accumulation_steps=count)
        return plan(LLAMA, merged, "cuda", checkpointing=True).total_bytes / ROOM

    assert sought(needed(16, 1) + 8) == (16, 1)
    assert sought(needed(16, 1) - 8) == (8, 2)
    assert sought(needed(8, 2) - 8) is None


@pytest.mark.parametrize(
    ("on", "batch", "accumulation", "tokens"),
    [("cpu", 4, 4, 16), ("cuda", 4, 1, 16), ("cuda", 4096, 2, 16), ("cuda", 16, 2, 512), ("cuda", 1, 8, 8192)],
)
def test_where_nothing_is_gained_or_may_be_asked_for_there_is_none(
    on: On, batch: int, accumulation: int, tokens: int
) -> None:
    sized = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_length": tokens}
    config = ARTICLE.changed(**sized)
    assert fewer_passes(LLAMA, config, on, 1 << 60, checkpointing=True) is None


def test_a_run_says_what_fewer_passes_it_could_take_and_takes_those_that_were_chosen() -> None:
    card = Situation("cuda", has_bf16=True, free_bytes=24 * GIB)
    told = choose(ARTICLE.changed(gradient_checkpointing="on"), LLAMA, card).reasons[-1]
    assert (told.what, told.value) == ("Passes", "4 passes of 4 rows")
    assert "batch size 16 with accumulation 1 is the same step and would fit too (9." in told.why
    silent = choose(ARTICLE.changed(gradient_accumulation_steps=1), LLAMA, card).reasons
    assert "Passes" not in {one.what for one in silent}
