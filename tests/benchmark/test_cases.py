"""What a benchmark measures, as data, and the search for what fits."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qlora_demo.benchmark.cases import READ, cases, largest
from qlora_demo.benchmark.config import BenchmarkConfig, BenchmarkKind
from qlora_demo.catalog import SHAPES
from qlora_demo.config import TrainConfig
from qlora_demo.errors import ConfigError
from qlora_demo.plan.flops import train_flops
from qlora_demo.presets import ARTICLE


def test_training_lays_lora_beside_qlora_with_and_without_checkpointing() -> None:
    found = cases(BenchmarkConfig(), ARTICLE, "cuda")
    seen = [(case.config.method, case.config.gradient_checkpointing, case.config.base_form) for case in found]
    assert seen == [
        ("lora", "off", "16bit"),
        ("qlora", "off", "nf4"),
        ("lora", "on", "16bit"),
        ("qlora", "on", "nf4"),
        *[("lora", "on", "16bit"), ("qlora", "on", "nf4")],
        ("qlora", "off", "nf4-single"),
        *[("qlora", "off", "nf4")] * 3,
    ]
    assert [(case.name, case.config.optim) for case in found[7:]] == [
        ("QLoRA, NF4, torch's AdamW, state in the adapters' type", "adamw_torch"),
        ("QLoRA, NF4, 8-bit AdamW, paged", "paged_adamw_8bit"),
        ("QLoRA, NF4, 8-bit AdamW, not paged", "adamw_8bit"),
    ]
    assert {case.config.optim for case in found[:7]} == {"auto"}
    assert len({case.name for case in found}) == len(found)
    assert len(cases(BenchmarkConfig(), ARTICLE, "cpu")) == 5


def test_the_rows_of_a_step_are_trained_at_once_too_where_they_are_not_anyway() -> None:
    found = cases(BenchmarkConfig(), ARTICLE, "cuda")[4:6]
    assert [case.name for case in found] == [
        "LoRA, 16 bit, checkpointing, 16 rows at once",
        "QLoRA, NF4, checkpointing, 16 rows at once",
    ]
    assert all(
        (case.config.per_device_train_batch_size, case.config.gradient_accumulation_steps) == (16, 1) for case in found
    )
    for changes in ({"gradient_accumulation_steps": 1}, {"gradient_accumulation_steps": 2048}):
        assert not any("at once" in case.name for case in cases(BenchmarkConfig(), ARTICLE.changed(**changes), "cuda"))


def test_ranks_and_targets_are_every_pair_and_alpha_follows_the_rank() -> None:
    options = BenchmarkConfig(kind="rank", ranks="8, 256", targets="attention,all-linear")
    found = cases(options, TrainConfig(), "cpu")
    assert [(c.config.r, c.config.lora_alpha, c.config.target_modules) for c in found] == [
        (8, 16, "attention"),
        (256, 512, "attention"),
        (8, 16, "all-linear"),
        (256, 512, "all-linear"),
    ]


@pytest.mark.parametrize("kind", list(READ))
def test_a_setting_that_changes_no_case_is_not_asked_for(kind: BenchmarkKind) -> None:
    options, config = BenchmarkConfig(kind=kind), TrainConfig(max_length=64)
    for name, value in {"method": "lora", "r": 99, "target_modules": "mlp", "max_length": 65}.items():
        if cases(options, config.changed(**{name: value}), "cpu") == cases(options, config, "cpu"):
            assert name not in READ[kind]


@pytest.mark.parametrize(
    ("field", "value"), [("ranks", "8,x"), ("prompt_tokens", "0"), ("batch_sizes", ","), ("repeats", 4)]
)
def test_a_list_that_is_no_list_of_numbers_is_refused_with_its_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        BenchmarkConfig(**{field: value})


@given(truth=st.integers(0, 5000), guess=st.integers(0, 6000), grain=st.sampled_from([1, 16, 64]))
@example(truth=5000, guess=4000, grain=1)
def test_the_search_finds_what_fits_within_three_per_cent(truth: int, guess: int, grain: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= truth

    found = largest(fits, guess, 4096, grain)
    limit = min(truth, 4096) // grain * grain
    assert found <= limit <= max(found + grain, found * 33 / 32 + grain)
    assert len(tried) <= 2 * (4096).bit_length() + 1
    assert all(0 < size <= 4096 and size % grain == 0 for size in tried)
    assert found == 4096 or truth < 4096, "the end of the range is tried before it is told"


@given(truth=st.integers(200, 4000), error=st.floats(-0.1, 0.1))
def test_a_guess_that_is_near_is_a_short_search(truth: int, error: float) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= truth

    largest(fits, round(truth * (1 + error)), 4096, 1)
    assert len(tried) <= 6


def test_a_frozen_weight_takes_four_operations_and_an_adapters_six() -> None:
    shape = SHAPES["llama-2-7b"]
    weights = shape.linear_parameters + shape.vocab_size * shape.hidden_size
    short = train_flops(shape, 0, 0)
    assert short == 4 * weights
    assert train_flops(shape, 1000, 0) - short == 6000
    assert train_flops(shape, 0, 512) - short == 3 * 2 * 2 * 32 * 4096 * 256
