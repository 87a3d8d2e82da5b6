"""The memory arithmetic against known figures, and what is decided from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from qlora_demo.catalog import SHAPES
from qlora_demo.config import Method, Switch, TrainConfig
from qlora_demo.errors import ModelError
from qlora_demo.memory import BITS_PER_WEIGHT, ModelShape, activation_bytes, weight_bytes
from qlora_demo.plan.choices import Situation, choose, expected
from qlora_demo.plan.memory_plan import On, plan
from qlora_demo.plan.planning import plan_training
from qlora_demo.records import BaseForm
from qlora_demo.services import Services
from qlora_demo.units import GIB
from tests.system.test_locks_gpu import fake_nvidia_smi

LLAMA_2_7B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
LLAMA_2_7B_PARAMETERS = 6_738_415_616
SHAPE = ModelShape.from_config(LLAMA_2_7B)
H200 = Situation("cuda", has_bf16=True, free_bytes=140 * GIB)
T4 = Situation("cuda", has_bf16=False, free_bytes=14 * GIB)
LAPTOP = Situation("cpu", has_bf16=True, free_bytes=8 * GIB)


def test_the_parameters_of_llama_2_7b_are_counted_exactly() -> None:
    assert SHAPE.linear_parameters == 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert SHAPE.linear_parameters + SHAPE.other_parameters == LLAMA_2_7B_PARAMETERS


def test_tied_embeddings_are_counted_once() -> None:
    tied = replace(SHAPE, tie_word_embeddings=True)
    assert SHAPE.other_parameters - tied.other_parameters == 32000 * 4096


def test_grouped_query_attention_has_smaller_key_and_value_projections() -> None:
    grouped = ModelShape.from_config({**LLAMA_2_7B, "num_key_value_heads": 8})
    assert grouped.kv_size == 1024
    assert SHAPE.linear_parameters - grouped.linear_parameters == 32 * 2 * 4096 * (4096 - 1024)


def test_a_head_dimension_of_its_own_is_taken_from_the_config() -> None:
    wide = ModelShape.from_config({**LLAMA_2_7B, "head_dim": 256})
    assert (SHAPE.head_dim, wide.head_dim, wide.kv_size) == (128, 256, 32 * 256)


@pytest.mark.parametrize("left_out", ["num_key_value_heads", "tie_word_embeddings"])
def test_what_older_configs_leave_out_has_the_meaning_it_had(left_out: str) -> None:
    assert ModelShape.from_config({k: v for k, v in LLAMA_2_7B.items() if k != left_out}) == SHAPE


@pytest.mark.parametrize(
    "field", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
)
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(ModelError, match=rf"^config\.json: .{field}. is missing"):
        ModelShape.from_config({k: v for k, v in LLAMA_2_7B.items() if k != field})


@pytest.mark.parametrize(
    ("form", "bits"), [("nf4", 4.127), ("fp4", 4.127), ("nf4-single", 4.5), ("int8", 8), ("16bit", 16)]
)
def test_bits_per_linear_weight(form: BaseForm, bits: float) -> None:
    assert BITS_PER_WEIGHT[form] == pytest.approx(bits, abs=5e-4)


def test_plain_weights_take_their_width() -> None:
    assert weight_bytes(SHAPE, "16bit") == 2 * LLAMA_2_7B_PARAMETERS


def test_quantization_shrinks_the_linear_layers_and_only_them() -> None:
    other = 2 * SHAPE.other_parameters
    linear = {form: weight_bytes(SHAPE, form) - other for form in BITS_PER_WEIGHT}
    assert linear["nf4"] / linear["16bit"] == pytest.approx(4.127 / 16, rel=1e-4)
    assert weight_bytes(SHAPE, "nf4") / GIB == pytest.approx(3.60, abs=0.01)


def test_activations_grow_with_the_tokens_and_checkpointing_keeps_less() -> None:
    kept = activation_bytes(SHAPE, 512, checkpointing=False)
    assert activation_bytes(SHAPE, 1024, checkpointing=False) == 2 * kept
    assert 0 < activation_bytes(SHAPE, 512, checkpointing=True) < kept / 10


def test_checkpointing_is_off_where_there_is_room() -> None:
    chosen = choose(TrainConfig(), SHAPE, H200)
    assert not chosen.gradient_checkpointing
    assert (chosen.reasons[0].value, "140.0 GiB free" in chosen.reasons[0].why) == ("off", True)


def test_checkpointing_is_on_where_memory_is_short() -> None:
    chosen = choose(TrainConfig(), SHAPE, T4)
    assert chosen.gradient_checkpointing
    assert (chosen.reasons[0].value, "14.0 GiB free" in chosen.reasons[0].why) == ("on", True)


def test_the_room_depends_on_the_rows_and_on_the_method() -> None:
    def checkpoints(free: int, **values: Any) -> bool:
        return choose(TrainConfig(**values), SHAPE, replace(H200, free_bytes=free * GIB)).gradient_checkpointing

    assert not checkpoints(30, max_length=512, per_device_train_batch_size=1)
    assert checkpoints(30, max_length=4096, per_device_train_batch_size=1)
    assert checkpoints(30, max_length=512, per_device_train_batch_size=8)
    assert not checkpoints(20, max_length=512, per_device_train_batch_size=1, method="qlora")
    assert checkpoints(20, max_length=512, per_device_train_batch_size=1, method="lora")


@pytest.mark.parametrize(("switch", "situation"), [("on", H200), ("off", T4)])
def test_checkpointing_chosen_by_hand_is_kept_against_the_figures(switch: Switch, situation: Situation) -> None:
    chosen = choose(TrainConfig(gradient_checkpointing=switch), SHAPE, situation)
    assert chosen.gradient_checkpointing == (switch == "on")
    assert (chosen.reasons[0].value, chosen.reasons[0].why) == (switch, "chosen by hand")


@pytest.mark.parametrize("method", ["qlora", "lora"])
def test_a_gpu_trains_in_bf16_where_it_has_it_and_else_in_fp16(method: Method) -> None:
    modern, older = (choose(TrainConfig(method=method), SHAPE, situation) for situation in (H200, T4))
    assert (modern.bf16, modern.fp16) == (True, False)
    assert (older.bf16, older.fp16) == (False, True)
    assert "fp16" in older.reasons[2].value


def test_qlora_on_the_processor_mixes_no_number_formats() -> None:
    chosen = choose(TrainConfig(method="qlora"), SHAPE, LAPTOP)
    assert (chosen.bf16, chosen.fp16) == (False, False)


def test_lora_on_the_processor_trains_in_bf16() -> None:
    chosen = choose(TrainConfig(method="lora"), SHAPE, LAPTOP)
    assert (chosen.bf16, chosen.fp16) == (True, False)


@pytest.mark.parametrize(("kind", "optim"), [("cuda", "paged_adamw_32bit"), ("cpu", "adamw_torch")])
def test_the_optimizer_is_paged_on_a_gpu_only(kind: Literal["cuda", "cpu"], optim: str) -> None:
    chosen = choose(TrainConfig(), SHAPE, Situation(kind, has_bf16=True, free_bytes=GIB))
    assert chosen.optim == optim
    assert optim in [reason.value for reason in chosen.reasons]


@pytest.mark.parametrize(
    ("method", "value", "why"),
    [
        (
            "qlora",
            "bf16, frozen layers multiply in fp32",
            "a processor without matrix units for bf16 is faster in fp32",
        ),
        ("lora", "bf16, frozen layers multiply in fp32", "a processor without matrix units for bf16 is faster in fp32"),
        ("lora-8bit", "bf16", "the device computes in bf16"),
    ],
)
def test_a_processor_that_is_slow_in_bf16_says_what_it_multiplies_in(method: Method, value: str, why: str) -> None:
    told = choose(TrainConfig(method=method), SHAPE, replace(LAPTOP, fp32_products=True)).reasons[2]
    assert (told.what, told.value) == ("Number format", value) and told.why.startswith(why)
    assert choose(TrainConfig(method=method), SHAPE, LAPTOP).reasons[2].value == "bf16"


def test_each_choice_comes_with_its_reason() -> None:
    chosen = choose(TrainConfig(), SHAPE, LAPTOP)
    what = ["Gradient checkpointing", "Optimizer", "Number format", "Fused kernels"]
    assert [reason.what for reason in chosen.reasons] == what
    assert all(reason.value and reason.why for reason in chosen.reasons)


def test_fused_kernels_are_taken_where_they_load_and_the_reason_is_kept_where_not() -> None:
    loads = choose(TrainConfig(), SHAPE, replace(H200, no_fused_kernels=""))
    lacks = choose(TrainConfig(), SHAPE, replace(H200, no_fused_kernels="liger-kernel is not installed"))
    assert (loads.kernels, loads.reasons[-1].value) == ("fused", "Liger's norms, rotary positions and MLP")
    assert (lacks.kernels, lacks.reasons[-1].value) == ("triton", "none")
    assert lacks.reasons[-1].why == "liger-kernel is not installed"


@pytest.mark.parametrize(("capability", "on"), [("7.5", "cuda-fp16"), ("8.0", "cuda")])
def test_a_plan_for_this_gpu_knows_whether_it_has_bf16_and_one_for_another_expects_it(
    services: Services, capability: str, on: On, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = f'case "$*" in *compute_cap*) echo {capability};; *) echo "T4, 15000, 15360";; esac'
    fake_nvidia_smi(tmp_path, monkeypatch, says)
    config = TrainConfig(model="llama-2-7b", gradient_checkpointing="on")
    here, there = (plan_training(services.settings, config, size).chosen.total_bytes for size in (None, 16 * GIB))
    how: dict[str, Any] = {"checkpointing": True, "kernels": expected("cuda", SHAPE, GIB).kernels}
    shape = SHAPES["llama-2-7b"]
    assert here == plan(shape, config, on, **how).total_bytes
    assert there == plan(shape, config, "cuda", **how).total_bytes


def test_checkpointing_is_decided_by_what_fp32_adapters_take() -> None:
    config = TrainConfig(r=64)
    free = round(plan(SHAPE, config, "cuda", checkpointing=False).total_bytes / 0.8) + GIB // 4
    assert not choose(config, SHAPE, replace(H200, free_bytes=free)).gradient_checkpointing
    assert choose(config, SHAPE, replace(T4, free_bytes=free)).gradient_checkpointing
