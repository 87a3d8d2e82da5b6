"""What a result's table and the lines under it say: figures reckoned when they are shown, and how far to trust them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from qlora_demo.benchmark_cases import QLORA, cases
from qlora_demo.benchmark_config import BenchmarkConfig
from qlora_demo.benchmark_notes import notes
from qlora_demo.benchmark_tables import brief, table
from qlora_demo.catalog import SHAPES
from qlora_demo.memory_plan import plan
from qlora_demo.presets import ARTICLE
from qlora_demo.units import memory

GPU, CPU = {"device": "a card", "cuda": "13.0"}, {"device": "CPU"}
ANSWERED: dict[str, Any] = {"fits": True, "prompt_tokens": 8, "batch": 1, "tpot_median_seconds": 0.5}


def answered(method: str = "", **processes: float) -> dict[str, Any]:
    """An inference result with a row a column, of 4 GB that are read in half a second; GB/s of each process."""
    rows = [
        {"case": name, "read_bytes": 4e9, "bandwidth_share": 0.9, "bandwidth_bytes_per_second": 1e9 * found} | ANSWERED
        for name, found in processes.items()
    ]
    return {"kind": "inference", "rows": rows, "method": method}


def cells(result: dict[str, Any], column: str, short: bool = False) -> list[str]:
    """One column of a result's table."""
    found = (brief if short else table)(result)
    return [row[found.head.index(column)] for row in found.rows]


def test_a_share_is_of_the_median_bandwidth_whatever_the_file_holds() -> None:
    result = answered(base=33.0, adapter=32.0, merged=60.0, again=33.0)
    assert cells(result, "of the bandwidth") == cells(result, "of the bandwidth", short=True) == ["24.2%"] * 4
    assert cells(answered() | {"rows": [{"case": "a"} | ANSWERED]}, "of the bandwidth") == ["–"]


def test_the_limit_its_spread_and_what_that_means_are_told_once() -> None:
    apart = notes(answered("Each column.", base=33.0, adapter=32.0, merged=60.0, again=33.0))
    assert apart.startswith(
        "Each column. The share of the bandwidth counts each weight once per token, over 33.0 GB/s,"
    )
    assert "(32.0 GB/s to 60.0 GB/s)" in apart
    assert apart.endswith("The processes are 85% apart, so the shares are rough.")
    assert "apart" not in notes(answered(base=33.0, adapter=32.0))


def test_what_a_file_of_before_says_of_the_share_is_not_repeated() -> None:
    before = (
        "Each column. The share of the bandwidth counts each, over the most that any reached; keys are not counted."
    )
    told = notes(answered(before, base=33.0))
    assert told.startswith("Each column. The share") and told.count("The share") == 1 and "any reached" not in told


def trained(machine: dict[str, str], model: str = ARTICLE.model, **row: Any) -> dict[str, Any]:
    """A training result with one row, of QLoRA without checkpointing, which holds a plan of before."""
    held = {"case": QLORA, "fits": True, "planned_bytes": 1, "checkpointing": False} | row
    return {"kind": "training", "rows": [held], "machine": machine, "config": ARTICLE.changed(model=model).model_dump()}


def by_the_plan(shape: str, kind: Any, **how: Any) -> str:
    config = cases(BenchmarkConfig(), ARTICLE, kind)[1].config
    return memory(plan(SHAPES[shape], config, kind, checkpointing=False, **how).total_bytes)


def test_what_is_planned_is_the_plan_of_now_not_the_one_in_the_file() -> None:
    on_card = trained(GPU, kernels="fused")
    assert (
        cells(on_card, "planned")
        == cells(on_card, "planned", short=True)
        == [by_the_plan("llama-2-7b", "cuda", kernels="fused")]
    )
    assert by_the_plan("llama-2-7b", "cuda", kernels="torch") != by_the_plan("llama-2-7b", "cuda", kernels="fused")
    assert cells(trained(CPU), "planned") == [by_the_plan("llama-2-7b", "cpu")]


def test_a_model_that_is_no_shape_is_planned_by_the_dimensions_in_its_row() -> None:
    told = trained(CPU, "/models/mine", shape=asdict(SHAPES["qwen3-0.6b"]))
    assert cells(told, "planned") == [by_the_plan("qwen3-0.6b", "cpu")]


@pytest.mark.parametrize(
    "result",
    [
        trained(GPU),
        trained(GPU, kernels="other"),
        trained({}, kernels="fused"),
        trained(CPU, case="another"),
        trained(CPU, checkpointing=None),
        trained(CPU, "/models/mine"),
        trained(CPU, "shape:none"),
        trained(CPU, shape={"hidden_size": "wide"}),
        trained(CPU) | {"config": {"model": "m", "unknown": 1}},
    ],
)
def test_nothing_is_planned_of_what_a_file_does_not_tell(result: dict[str, Any]) -> None:
    assert cells(result, "planned") == ["–"]
