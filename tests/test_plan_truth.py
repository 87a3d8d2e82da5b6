"""The plan, as it is now, against what was measured: the committed files say what training took."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.plan_truth import planned_bytes
from benchmarks.readme import RESULTS


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


@pytest.mark.parametrize("case", ["longest_row", "largest_batch"])
def test_what_the_plan_says_fits_a_budget_did_fit_it(case: str) -> None:
    rows = json.loads((RESULTS / "frontier_h200.json").read_text("utf-8"))["rows"]
    assert all(0.9 <= row[f"planned_{case}"] / row[case] <= 1 for row in rows)
