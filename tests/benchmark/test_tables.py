"""What a result's table and the lines under it say: figures reckoned when they are shown, and how far to trust them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from benchmarks import readme
from qlora_demo.benchmark.cases import QLORA, cases
from qlora_demo.benchmark.config import BenchmarkConfig
from qlora_demo.benchmark.notes import notes, standing
from qlora_demo.benchmark.tables import COLUMNS, table
from qlora_demo.catalog import SHAPES
from qlora_demo.commands.benchmark import print_benchmark
from qlora_demo.plan.memory_plan import plan
from qlora_demo.presets import ARTICLE
from qlora_demo.ui import render_benchmark
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
    found = table(result, short=short)
    return [row[found.head.index(column)] for row in found.rows]


def test_a_share_is_of_the_median_bandwidth_whatever_the_file_holds() -> None:
    result = answered(base=33.0, adapter=32.0, merged=60.0, again=33.0)
    assert cells(result, "share of bandwidth") == cells(result, "share of bandwidth", short=True) == ["24.2%"] * 4
    assert cells(answered() | {"rows": [{"case": "a"} | ANSWERED]}, "share of bandwidth") == ["–"]


def test_the_limit_its_spread_and_what_that_means_are_told_once() -> None:
    apart = notes(answered("Each column.", base=33.0, adapter=32.0, merged=60.0, again=33.0))
    assert apart.startswith("Each column. ")
    assert "The share of bandwidth counts each weight once per token, relative to 33.0 GB/s, the median" in apart
    assert "(32.0 GB/s to 60.0 GB/s)" in apart
    assert apart.endswith("The processes differ by 85%, so the shares are rough.")
    assert "differ by" not in notes(answered(base=33.0, adapter=32.0))


def test_what_a_file_of_before_says_of_the_share_is_not_repeated() -> None:
    before = (
        "Each column. The share of the bandwidth counts each, over the most that any reached; keys are not counted."
    )
    told = notes(answered(before, base=33.0))
    assert told.startswith("Each column. ") and told.count("The share") == 1 and "any reached" not in told


def trained(machine: dict[str, str], model: str = ARTICLE.model, **row: Any) -> dict[str, Any]:
    """A training result with one row, of QLoRA without checkpointing, which holds a plan of before."""
    held = {"case": QLORA, "fits": True, "planned_bytes": 1, "checkpointing": False} | row
    return {"kind": "training", "rows": [held], "machine": machine, "config": ARTICLE.changed(model=model).model_dump()}


def by_the_plan(shape: str, kind: Any, **how: Any) -> str:
    config = cases(BenchmarkConfig(), ARTICLE, kind.removesuffix("-fp16"))[1].config
    return memory(plan(SHAPES[shape], config, kind, checkpointing=False, **how).total_bytes)


def test_what_is_planned_is_the_plan_of_now_not_the_one_in_the_file() -> None:
    on_card = trained(GPU, kernels="fused")
    assert (
        cells(on_card, "planned")
        == cells(on_card, "planned", short=True)
        == [by_the_plan("llama-2-7b", "cuda", kernels="fused")]
    )
    assert by_the_plan("llama-2-7b", "cuda", kernels="torch") != by_the_plan("llama-2-7b", "cuda", kernels="fused")
    on_t4 = trained(GPU, kernels="torch", fp16=True)
    assert cells(on_t4, "planned") == [by_the_plan("llama-2-7b", "cuda-fp16", kernels="torch")]
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


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"kind": "training", "state": "finished", "cases": 1}, "finished"),
        ({"kind": "training", "state": "running", "cases": 3}, "running"),
        ({"kind": "training", "state": "stopped", "cases": 3}, "stopped after 1 of 3 cases"),
        ({"kind": "rank", "state": "failed", "cases": 9}, "failed after 1 of 9 cases"),
        ({"kind": "frontier", "state": "stopped"}, "stopped after 1 case"),
        ({"kind": "inference", "state": "stopped", "cases": 2, "options": {}}, "stopped after 1 of 8 rows"),
        ({"kind": "inference", "state": "stopped", "options": {"batch_sizes": "x"}}, "stopped after 1 row"),
    ],
)
def test_one_that_ended_early_says_how_far_it_came(result: dict[str, Any], said: str) -> None:
    assert standing(result | {"rows": [{"case": "a"}]}) == said


def test_the_page_the_readme_and_the_command_tell_a_result_that_was_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    result = trained(CPU) | {"id": "one", "state": "stopped", "error": "", "cases": 5, "started_at": 1, "ended_at": 4}
    assert "stopped after 1 of 5 cases in 3.0 s" in render_benchmark.progress(result)
    failed = render_benchmark.progress(result | {"state": "failed", "error": "<it>"})
    assert "failed after 1 of 5 cases: &lt;it&gt;" in failed
    assert (
        readme.told(result, "x.json")
        .split("\n")[0]
        .endswith("(benchmarks/results/x.json), CPU, stopped after 1 of 5 cases)")
    )
    assert "stopped" not in readme.told(result | {"state": "finished"}, "x.json")
    print_benchmark(result)
    assert capsys.readouterr().out.startswith("one: stopped after 1 of 5 cases\n")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("training", ("FLOP utilisation is", "Needed on the device is", "Planned is")),
        ("frontier", ("where the search began",)),
        ("inference", ("Peak is our loop's",)),
    ],
)
def test_columns_that_a_label_does_not_explain_are_explained_where_they_are_shown(
    kind: str, words: tuple[str, ...]
) -> None:
    told = notes({"kind": kind, "rows": []})
    assert all(word in told for word in words)
    assert not any(word in notes({"kind": kind, "rows": []}, short=True) for word in words if "Planned" not in word)


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_column_of_a_table_has_a_label_of_its_own(kind: str) -> None:
    labels = [label for label, _ in COLUMNS[kind].values()]
    assert sorted(set(labels)) == sorted(labels)


def test_a_score_comes_with_its_answers_and_its_interval() -> None:
    rows = [
        {"case": "r 8, mlp", "fits": True, "score": {"rows": 40, "exact_match": 0.175}},
        {"case": "r 16, mlp", "fits": True, "score": {}},
        {"case": "r 32, mlp", "fits": False, "error": "no room"},
    ]
    found = table({"kind": "rank", "rows": rows})
    assert found.head[-3:] == ("answers", "exact match", "95% interval")
    assert [row[-3:] for row in found.rows] == [("40", "17.5%", "8.7% to 31.9%"), ("–",) * 3, ("",) * 3]
    assert {len(row) for row in found.rows} == {len(found.head)}
    assert "95% interval" in notes({"kind": "rank", "rows": rows})
    assert "95% interval" not in notes({"kind": "rank", "rows": rows[2:]})


@pytest.mark.parametrize("kind", ["training", "rank"])
def test_what_frozen_layers_multiplied_in_is_told_where_it_was_not_their_type(kind: str) -> None:
    told, rows = "Frozen layers multiplied in fp32", [{"case": "a", "fp32_products": False}, {"case": "b"}]
    assert told not in notes({"kind": kind, "rows": rows})
    assert told in notes({"kind": kind, "rows": [*rows, {"case": "c", "fp32_products": True}]}, short=True)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (2.1, "took 5.0% more time; smaller differences are noise."),
        (1.9, "took 5.0% less time;"),
        (2.0, "took 0.0% less time"),
    ],
)
def test_how_far_the_machine_drifted_is_told_under_the_table(seconds: float, said: str) -> None:
    rows = [{"case": "r 8, mlp", "step_median_seconds": 2.0}, {"case": "r 16, mlp", "step_median_seconds": 9.0}]
    result = {"kind": "rank", "rows": rows, "again": {"case": "r 8, mlp", "step_median_seconds": seconds}}
    assert f"r 8, mlp was measured once more at the end: its median step {said}" in notes(result, short=True)


def test_of_a_machine_s_drift_nothing_is_told_where_nothing_is_known() -> None:
    rows = [{"case": "r 8, mlp", "step_median_seconds": 2.0}]
    for again in (
        {},
        {"case": "r 8, mlp", "step_median_seconds": None},
        {"case": "r 9, mlp", "step_median_seconds": 1},
    ):
        assert "once more" not in notes({"kind": "rank", "rows": rows, "again": again})
