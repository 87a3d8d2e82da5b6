"""The plan, as it is now, against what was measured: the committed files say what training took."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from benchmarks.plan_truth import planned_bytes
from benchmarks.readme import RESULTS
from qlora_demo.benchmark.cases import cases
from qlora_demo.benchmark.config import BenchmarkConfig
from qlora_demo.catalog import shape_named
from qlora_demo.config import TrainConfig
from qlora_demo.plan.alternatives import compare
from qlora_demo.plan.memory_plan import parse_memory


def _ratios(name: str) -> list[float]:
    document: dict[str, Any] = json.loads((RESULTS / name).read_text("utf-8"))
    return [planned_bytes(document, row) / row["measured_bytes"] for row in document["rows"]]


def test_on_a_gpu_the_plan_is_within_ten_per_cent_and_never_low() -> None:
    ratios = _ratios("plan_h200.json")
    assert len(ratios) >= 12
    assert all(1 <= ratio <= 1.1 for ratio in ratios), ratios


def test_on_a_cpu_the_plan_is_near_though_processes_differ_by_some_per_cent() -> None:
    ratios = _ratios("plan_cpu.json")
    assert len(ratios) == 24
    assert all(0.95 <= ratio <= 1.11 for ratio in ratios), ratios


def test_what_the_plan_was_not_fitted_to_is_near_as_well() -> None:
    ratios = _ratios("plan_wider_cpu.json")
    assert len(ratios) >= 12
    assert all(0.95 <= ratio <= 1.13 for ratio in ratios), ratios


def test_what_the_plan_says_fits_a_budget_did_fit_it() -> None:
    result = json.loads((RESULTS / "frontier_h200.json").read_text("utf-8"))
    options, config = BenchmarkConfig(**result["options"]), TrainConfig(**result["config"])
    shape = replace(shape_named(config.model)[1], positions=32768)
    budget = parse_memory(options.gpu_memory)
    for case, row in zip(cases(options, config, "cuda"), result["rows"], strict=True):
        recomputes = case.config.gradient_checkpointing == "on"
        how: dict[str, Any] = {"checkpointing": recomputes, "kernels": "fused"}
        one_row = case.config.changed(per_device_train_batch_size=1)
        longest = compare(shape, one_row, "cuda", budget, **how).longest_row
        most = compare(shape, case.config, "cuda", budget, **how).largest_batch
        assert 0.9 * row["longest_row"] <= longest <= row["longest_row"]
        assert 0.9 * row["largest_batch"] <= most <= row["largest_batch"]
