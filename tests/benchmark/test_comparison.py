"""Two results side by side: which settings differ is told, and no ratio is given of what is not comparable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_demo.benchmark.comparison import comparison, contrast, differences
from qlora_demo.benchmark.config import BenchmarkConfig
from qlora_demo.cli import main
from qlora_demo.config import TrainConfig
from qlora_demo.errors import ConfigError
from qlora_demo.presets import ARTICLE, LAPTOP
from qlora_demo.services import Services
from qlora_demo.ui.benchmark_tab import Bench
from qlora_demo.ui.render_benchmark import compared
from tests.abandoned import abandoned

TRAINED = {"case": "r 8, mlp", "fits": True, "peak_bytes": 4, "step_median_seconds": 2.0, "tokens_per_second": 1.0}
ANSWERED = {"case": "base", "fits": True, "prompt_tokens": 8, "batch": 1, "tpot_median_seconds": 1.0}
ROWS: dict[str, dict[str, Any]] = {
    "training": TRAINED,
    "rank": TRAINED,
    "frontier": {"case": "a", "fits": True, "longest_row": 64, "largest_batch": 2},
    "inference": ANSWERED,
}


def result(kind: Any, config: TrainConfig = ARTICLE, device: str = "a card", **options: Any) -> dict[str, Any]:
    asked = BenchmarkConfig(kind=kind, **options).model_dump()
    return {
        "kind": kind,
        "rows": [ROWS[kind]],
        "config": config.model_dump(),
        "options": asked,
        "machine": {"device": device},
    }


def ratios(older: dict[str, Any], newer: dict[str, Any]) -> set[str]:
    return {row[-1] for row in comparison(older, newer).rows}


def test_another_model_and_batch_have_no_ratio_and_are_named() -> None:
    small, large = result("training", LAPTOP), result("training")
    assert ratios(small, large) == {"–"} and len(comparison(small, large).rows) == 3
    assert contrast(small, large) == (
        "Their settings differ. Base model: shape:smollm2-135m versus shape:llama-2-7b; "
        "Longest row (tokens): 128 versus 512; Batch size: 2 versus 4; Accumulation: 1 versus 4. So no ratio is given."
    )


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *[("training", change) for change in ({"r": 8}, {"target_modules": "mlp"}, {"packing": True})],
        ("training", {"gradient_accumulation_steps": 8}),
        *[("inference", change) for change in ({"method": "lora"}, {"bnb_4bit_quant_type": "fp4"})],
        ("rank", {"method": "lora"}),
        ("rank", {"gradient_checkpointing": "on"}),
        ("rank", {"score_rows": 4}),
        ("frontier", {"max_length": 256}),
        ("inference", {"r": 8}),
    ],
)
def test_a_setting_that_figures_depend_on_leaves_no_ratio(kind: str, changes: dict[str, Any]) -> None:
    assert ratios(result(kind), result(kind, ARTICLE.changed(**changes))) == {"–"}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("training", {"method": "lora", "gradient_checkpointing": "on", "learning_rate": 1e-3, "max_steps": 5}),
        ("rank", {"r": 8, "target_modules": "mlp", "dataset": "other", "max_steps": 5}),
        ("frontier", {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}),
        ("inference", {"per_device_train_batch_size": 1, "max_length": 64}),
    ],
)
def test_a_setting_that_the_cases_choose_themselves_is_none(kind: str, changes: dict[str, Any]) -> None:
    other = result(kind, ARTICLE.changed(**changes))
    assert differences(result(kind), other) == [] and contrast(result(kind), other) == ""
    assert ratios(result(kind), other) == {"1.00"}


@pytest.mark.parametrize(
    ("kind", "options", "told", "ratio"),
    [
        ("training", {"steps": 9}, "Measured steps: 5 versus 9.", "1.00"),
        ("rank", {"ranks": "8"}, "Ranks: 8,64,256 versus 8.", "1.00"),
        ("inference", {"prompt_tokens": "32"}, "Prompt lengths: 32,512 versus 32.", "1.00"),
        ("inference", {"new_tokens": 64}, "New tokens: 32 versus 64. So no ratio is given.", "–"),
        ("inference", {"run": "mine"}, "Run: none versus mine. So no ratio is given.", "–"),
        ("frontier", {"gpu_memory": "8GB"}, "Memory budget: 24GB versus 8GB. So no ratio is given.", "–"),
    ],
)
def test_options_are_named_and_those_that_change_what_is_measured_leave_no_ratio(
    kind: str, options: dict[str, Any], told: str, ratio: str
) -> None:
    older, newer = result(kind), result(kind, **options)
    assert (contrast(older, newer), ratios(older, newer)) == (f"Their settings differ. {told}", {ratio})


def test_a_budget_is_what_held_whatever_was_asked() -> None:
    older, newer = (result("frontier", gpu_memory=asked) for asked in ("24GB", "24 GiB"))
    for one, held in ((older, 24 << 30), (newer, 23 << 30)):
        one["rows"] = [ROWS["frontier"] | {"budget_bytes": held}]
    assert "Memory budget: 24.0 GiB versus 23.0 GiB" in contrast(older, newer) and ratios(older, newer) == {"–"}
    newer["rows"] = older["rows"]
    assert contrast(older, newer) == "" and ratios(older, newer) == {"1.00"}


def test_a_run_s_columns_do_not_depend_on_the_training_settings() -> None:
    assert differences(result("inference", run="mine"), result("inference", LAPTOP, run="mine")) == []


def test_answers_that_were_scored_depend_on_the_data() -> None:
    scored = ARTICLE.changed(score_rows=4)
    assert ratios(result("rank", scored), result("rank", scored.changed(max_steps=7))) == {"–"}


def test_settings_that_a_file_does_not_tell_are_not_taken_for_the_same() -> None:
    bare = {"kind": "training", "rows": [TRAINED]}
    assert ratios(bare, bare) == {"1.00"} and contrast(bare, bare) == ""
    assert "Base model: unknown versus shape:llama-2-7b" in contrast(bare, result("training"))
    assert ratios(bare, result("training")) == {"–"}


def test_columns_held_in_different_precisions_have_no_ratio() -> None:
    def told(precision: str = "") -> dict[str, Any]:
        return result("inference") | {"rows": [ANSWERED | ({"precision": precision} if precision else {})]}

    assert ratios(told("bf16"), told("bf16")) == ratios(told(), told("nf4")) == {"1.00"}
    assert ratios(told("bf16"), told("nf4")) == {"–"}


def test_a_setting_that_an_old_file_does_not_know_is_its_default() -> None:
    older = result("training")
    del older["config"]["packing"]
    assert differences(older, result("training")) == []
    assert [one.label for one in differences(older, result("training", ARTICLE.changed(packing=True)))] == ["Packing"]


def test_the_command_and_the_page_name_settings_and_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, large = result("training", LAPTOP, "CPU <1>"), result("training")
    for name, one in (("a", small), ("b", large)):
        (tmp_path / f"{name}.json").write_text(json.dumps(one), "utf-8")
    assert main(["benchmark", "diff", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "smollm2-135m" in found["first"] and "CPU <1>" in found["first"] and found["second"].endswith("; a card")
    assert found["differing"] == contrast(small, large)
    assert [one["ratio"] for one in found["figures"]] == ["–"] * 3
    shown = compared(small, large)
    assert contrast(small, large) in shown and "CPU &lt;1&gt;" in shown and "a card" in shown
    assert "share no case" in compared(small, result("rank"))


def test_one_file_is_laid_beside_the_chosen_result_and_two_beside_each_other(
    services: Services, tmp_path: Path
) -> None:
    bench = Bench(services, [], [], ARTICLE)
    paths = [str(tmp_path / f"{name}.json") for name in "abc"]
    for path, device in zip(paths, ("one", "two", "three"), strict=True):
        Path(path).write_text(json.dumps(result("training", device=device)), "utf-8")
    two = bench.compare(None, None, paths[:2])
    assert "Measured on one" in two and "Measured on two" in two
    with pytest.raises(ConfigError, match="3 files were sent; give one or two"):
        bench.compare(None, None, paths)
    with pytest.raises(ConfigError, match="none is chosen"):
        bench.compare(None, None, paths[:1])
    own = abandoned(services.benchmarks, BenchmarkConfig(), LAPTOP)
    kept = services.benchmarks.path(own) / "result.json"
    kept.write_text(json.dumps(json.loads(kept.read_text("utf-8")) | {"rows": [TRAINED]}), "utf-8")
    assert "Measured on one" in bench.compare(own, None, paths[:1])
    assert "share no case" not in bench.compare(own, own, None)
