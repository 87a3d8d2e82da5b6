"""What the measuring makes of what it sees: budgets, frontiers that end inside their range or at its end, steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_demo.benchmark_cases import Case
from qlora_demo.benchmark_config import BenchmarkConfig
from qlora_demo.benchmark_tables import comparison, table
from qlora_demo.catalog import SHAPES
from qlora_demo.config import TrainConfig
from qlora_demo.errors import NoRoom
from qlora_demo.ml import limits, measure_training
from qlora_demo.ml.load import device, load_base, load_tokenizer
from qlora_demo.settings import Settings
from qlora_demo.units import GIB

TINY = TrainConfig(model="shape:tiny", max_length=64, r=4, target_modules="attention", method="lora")


def frontier(home: Path, monkeypatch: pytest.MonkeyPatch, most_tokens: int) -> dict[str, Any]:
    """The row of a frontier where a try fits up to so many tokens in all."""

    def tried(config: TrainConfig, *_: Any) -> dict[str, Any]:
        return {"fits": config.per_device_train_batch_size * config.max_length <= most_tokens, "peak_bytes": 1}

    monkeypatch.setattr(measure_training, "_try", tried)
    options = BenchmarkConfig(kind="frontier", gpu_memory="1GB")
    return next(measure_training.measure_frontier(Case("LoRA", TINY), options, Settings(home)))


def test_a_frontier_inside_the_range_is_found_within_three_per_cent(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = frontier(home, monkeypatch, 5000)
    assert 5000 * 31 / 32 - 64 <= row["longest_row"] <= 5000
    assert 5000 / 64 * 31 / 32 - 1 <= row["largest_batch"] <= 5000 / 64
    assert not {"longest_row", "largest_batch"} & set(row["capped"])
    assert {one["fits"] for one in row["tries"]} == {True, False}
    assert (row["budget_bytes"], row["note"]) == (GIB, "")


def test_a_try_counts_the_peak_of_every_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([100, 900, 400])
    monkeypatch.setattr(measure_training, "peak_memory_bytes", lambda: next(peaks, 300))
    shape = SHAPES["tiny"]
    loaded = [load_base(TINY.model, "16bit", "exact"), load_tokenizer(TINY.model)]
    assert measure_training._try(TINY.changed(max_steps=2), shape, loaded, 800) == {"fits": False, "peak_bytes": 900}


def test_a_search_that_ended_at_its_limit_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row: dict[str, Any] = {"case": "LoRA", "fits": True} | frontier(home, monkeypatch, 1 << 40)
    assert (row["longest_row"], row["largest_batch"]) == (32768, 1024)
    assert {"longest_row", "largest_batch"} <= set(row["capped"])
    assert row["planned_longest_row"] <= 32768 and row["planned_largest_batch"] <= 1024
    result = {"kind": "frontier", "rows": [row]}
    assert {"≥ 32,768", "≥ 1,024"} <= set(table(result).rows[0])
    assert [cells[2:] for cells in comparison(result, result).rows] == [
        ("≥ 32,768", "≥ 32,768", "–"),
        ("≥ 1,024", "≥ 1,024", "–"),
    ]


@pytest.mark.parametrize(
    ("free", "total", "held"),
    [(30.0, 40.0, 24.0), (23.2, 23.6, 23.2), (22.0, 22.5, 22.0), (23.5, 24.4, 23.5)],
)
def test_a_budget_of_about_the_device_is_what_is_free_of_it(free: float, total: float, held: float) -> None:
    assert measure_training.budget_on(24 * GIB, int(free * GIB), int(total * GIB)) == int(held * GIB)


@pytest.mark.parametrize(("free", "total"), [(20.0, 21.0), (10.0, 80.0)])
def test_a_budget_that_is_not_of_this_device_is_refused(free: float, total: float) -> None:
    with pytest.raises(NoRoom, match=r"24\.0 GiB are not free on this device"):
        measure_training.budget_on(24 * GIB, int(free * GIB), int(total * GIB))


def steps(seconds: list[float]) -> dict[str, Any]:
    """The figures of measured steps of a hundred tokens each."""
    watched: Any = SimpleNamespace(compute_loss=None, accelerator=SimpleNamespace(backward=None))
    phases = measure_training.Phases(watched)
    phases.peaks["load_peak_bytes"] = 1
    for took in [50.0, 50.0, *seconds]:
        phases.seconds.append(took)
        phases.on_log(None, None, None, {"num_tokens": 100 * len(phases.seconds)})
    return phases.figures()


def test_one_slow_step_does_not_change_the_speed_and_the_longest_of_few_is_called_so() -> None:
    few = steps([1.0, 1.0, 1.0, 1.0, 30.0])
    assert (few["tokens_per_second"], few["step_max_seconds"]) == (100.0, 30.0)
    assert "step_p95_seconds" not in few
    many = steps([1.0] * 18 + [2.0, 30.0])
    assert (many["step_p95_seconds"], many["step_max_seconds"]) == (2.0, 30.0)


def test_the_product_that_tells_the_rate_is_of_random_values(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[float] = []
    monkeypatch.setattr(limits, "_WIDTH", {"cpu": 32})

    def seen(work: Callable[[], Any]) -> float:
        found.append(float(work()))
        return 1.0

    monkeypatch.setattr(limits, "_round", seen)
    assert limits.matmul_rate(device()) == 2 * 32**3
    assert found[0] not in (0.0, 32.0)
