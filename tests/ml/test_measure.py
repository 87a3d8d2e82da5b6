"""What the measuring makes of what it sees: budgets, frontiers that end inside their range or at its end, steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bitsandbytes.functional import GlobalPageManager

from qlora_demo.benchmark.cases import Case
from qlora_demo.benchmark.comparison import comparison
from qlora_demo.benchmark.config import BenchmarkConfig
from qlora_demo.benchmark.tables import table
from qlora_demo.catalog import SHAPES
from qlora_demo.config import TrainConfig
from qlora_demo.errors import NoRoom
from qlora_demo.ml import measure_inference, measure_training, roofline, trainer
from qlora_demo.ml.device import device, free_and_total
from qlora_demo.ml.load import load_base, load_tokenizer
from qlora_demo.ml.measure_inference import Timed, over_generate
from qlora_demo.ml.peak import paged_bytes, peak_memory_bytes
from qlora_demo.plan.choices import Situation
from qlora_demo.settings import Settings
from qlora_demo.units import GIB
from tests.ml.test_fast_step import Rerun

pytestmark = pytest.mark.slow

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


def test_a_frontier_of_nothing_is_told_after_few_tries(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = frontier(home, monkeypatch, 0)
    assert (row["longest_row"], row["largest_batch"]) == (0, 0)
    assert not any(one["fits"] for one in row["tries"]) and len(row["tries"]) <= 12


def test_a_try_counts_the_peak_of_every_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([100, 900, 400])
    monkeypatch.setattr(measure_training, "peak_memory_bytes", lambda: next(peaks, 300))
    shape = SHAPES["tiny"]
    loaded = [load_base(TINY.model, "16bit", "exact"), load_tokenizer(TINY.model)]
    assert measure_training._try(TINY.changed(max_steps=2), shape, loaded, 800) == {"fits": False, "peak_bytes": 900}


def test_a_try_trains_in_fp32_where_there_is_no_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's settings are those of this CPU, which has no fp16."""
    given, t4 = trainer._sft_config, Situation("cuda", has_bf16=False, free_bytes=15 << 30)
    monkeypatch.setattr(measure_training, "situation", lambda _: t4)
    monkeypatch.setattr(
        trainer, "_sft_config", lambda path, config, chosen: given(path, config, replace(chosen, fp16=False))
    )
    config, shape = TINY.changed(method="qlora", loss_on="all"), SHAPES["tiny"]
    loaded = [load_base(config.model, "nf4", "exact"), load_tokenizer(config.model)]
    for _ in range(2):  # the second try goes on with the adapter of the first
        rows = measure_training.full_rows(shape.vocab_size, 2, 64)
        model = measure_training._phases(tmp_path, config, shape, rows, loaded).trainer.model
        assert {one.dtype for one in model.parameters() if one.requires_grad} == {torch.float32}


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


def test_a_budget_that_is_taken_already_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch, free=20, total=24, reserved=1, allocated=1)
    monkeypatch.setattr(measure_training, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    assert measure_training.limit_memory(10 * GIB) == 10 * GIB
    assert measure_training.limit_memory(24 * GIB) == 20 * GIB
    assert shares == [(10 - 3) / 24, 20 / 24]
    with pytest.raises(NoRoom, match=r"3\.0 GiB of 2\.0 GiB are taken already"):
        measure_training.limit_memory(2 * GIB)


def test_what_the_allocator_holds_in_reserve_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch, free=2, total=24, reserved=20, allocated=12)
    assert free_and_total() == (10 * GIB, 24 * GIB)


def test_what_paged_optimizers_take_is_part_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch, free=2, total=24, reserved=20, allocated=12)
    pages = GlobalPageManager.get_instance()
    monkeypatch.setattr(pages, "paged_tensors", [torch.zeros(1000), torch.zeros(24)])
    assert peak_memory_bytes() == 12 * GIB + 4096
    assert paged_bytes() == 4096


def test_reading_memory_takes_a_part_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    ones = torch.ones

    def noted(count: int, **options: Any) -> torch.Tensor:
        made.append(count)
        return ones(count, **options)

    monkeypatch.setattr(roofline, "free_and_total", lambda: (1 << 20, 1 << 30))
    monkeypatch.setattr(torch, "ones", noted)
    assert roofline.read_bandwidth(torch.device("cpu")) > 0
    assert made == [(1 << 20) // 4 // 4]


def on_gpu(monkeypatch: pytest.MonkeyPatch, **gib: int) -> None:
    """What torch says of a GPU's memory; GiB."""
    figures = {name: size * GIB for name, size in gib.items()}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (figures["free"], figures["total"]))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: figures["reserved"])
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: figures["allocated"])


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


def test_a_round_waits_once_for_several_pieces_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that work moves by a second, and the one wait by two."""
    clock = [0.0]

    def passes(seconds: float) -> None:
        clock[0] += seconds

    def work() -> SimpleNamespace:
        passes(1.0)
        return SimpleNamespace(item=lambda: passes(2.0))

    monkeypatch.setattr(roofline, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert roofline._round(work) == 1.5


def test_the_speed_over_generate_is_of_pairs_of_whole_answers() -> None:
    """A repeat in which the machine was slow counts once, for both."""
    ours = [Timed(1.0, per_token, (0.1,)) for per_token in (1.0, 4.0, 1.0)]
    theirs = [Timed(1.0, per_token) for per_token in (2.0, 8.0, 3.0)]
    assert over_generate(ours, theirs) == 2.0


def test_an_answer_of_ours_takes_what_passes_between_its_passes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 15.0])
    passes = [SimpleNamespace(seconds=1.0, decode="eager")] * 3
    monkeypatch.setattr(measure_inference, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(measure_inference, "decode", lambda *_: iter(passes))
    loaded: Any = SimpleNamespace(model=None, activate=None, fast=None)
    assert measure_inference._decoded(loaded, {}, 3) == Timed(1.0, 2.5, (1.0, 1.0), "eager")


def test_the_product_that_tells_the_rate_is_of_random_values(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[float] = []
    monkeypatch.setattr(roofline, "_WIDTH", {"cpu": 32})

    def seen(work: Callable[[], Any]) -> float:
        found.append(float(work()))
        return 1.0

    monkeypatch.setattr(roofline, "_round", seen)
    assert roofline.matmul_rate(device()) == 2 * 32**3
    assert found[0] not in (0.0, 32.0)


def test_only_the_rank_benchmark_trains_the_settings_own_rows(home: Path) -> None:
    config = TrainConfig(model="shape:tiny", score_rows=8, max_steps=1, max_length=64)
    for kind, steps in (("training", 7), ("rank", 1)):
        made, splits = measure_training._prepared(config, BenchmarkConfig(kind=kind), Settings(home))
        assert (made.max_steps, made.score_rows) == (steps, 8 * (kind == "rank"))
        assert ("input_ids" in splits.train[0]) == (kind == "training")


@pytest.mark.parametrize("method", ["qlora", "lora"])
def test_the_columns_of_a_random_adapter_are_held_as_the_settings_say(home: Path, method: Any) -> None:
    config = TrainConfig(model="shape:tiny", method=method)
    options = BenchmarkConfig(kind="inference", prompt_tokens="8,16", batch_sizes="1,2", new_tokens=2)
    rows = list(measure_inference.measure_inference(Case("adapter", config, "adapter"), options, Settings(home)))
    assert {row["precision"] for row in rows} == {"nf4" if method == "qlora" else "bf16"}
    assert [(row["batch"], row["prompt_tokens"]) for row in rows] == [(1, 8), (1, 16), (2, 8), (2, 16)]


def test_a_batch_is_measured_without_the_step_of_one_row(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    decode = measure_inference._decoded
    monkeypatch.setattr("qlora_demo.ml.fast_step.recorders_for", lambda device: [Rerun()])

    def watched(loaded: Any, *rest: Any) -> Timed:
        held.append(sum(path._step is not None for path in loaded.weights._fast.values()))
        return decode(loaded, *rest)

    monkeypatch.setattr(measure_inference, "_decoded", watched)
    options = BenchmarkConfig(kind="inference", prompt_tokens="8", batch_sizes="2,1", new_tokens=2)
    case = Case("base", TrainConfig(model="shape:tiny"), "base")
    one, two = measure_inference.measure_inference(case, options, Settings(home))
    assert (one["batch"], two["batch"]) == (1, 2)
    assert held == [1] * 6 + [0] * 6


def test_a_frontier_searches_no_longer_rows_than_a_run_may_have(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_training, "MOST_TOKENS", 4096)
    assert frontier(home, monkeypatch, 1 << 40)["longest_row"] == 4096
