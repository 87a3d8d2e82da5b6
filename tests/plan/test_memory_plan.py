"""The memory plan against figures that can be worked out by hand, and what follows from it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from qlora_demo.catalog import SHAPES
from qlora_demo.config import Method, TrainConfig
from qlora_demo.errors import ConfigError, ModelError
from qlora_demo.memory import ModelShape, activation_bytes
from qlora_demo.plan import choices
from qlora_demo.plan.choices import Situation, refuse_processes
from qlora_demo.plan.memory_plan import Kernels, Kind, MemoryPlan, On, paged_state_bytes, parse_memory, plan
from qlora_demo.plan.planning import plan_training
from qlora_demo.services import Services
from qlora_demo.units import GIB

LLAMA = SHAPES["llama-2-7b"]
ARTICLE = {
    "max_length": 512,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "target_modules": "attention",
    "r": 16,
}


def planned(*, checkpointing: bool = True, full: bool = False, **values: Any) -> MemoryPlan:
    return plan(LLAMA, TrainConfig(**{**ARTICLE, **values}), "cuda", checkpointing=checkpointing, full=full)


def item(found: MemoryPlan, name: str) -> int:
    return next(one.bytes for one in found.items if one.name == name)


def test_rank_16_on_q_k_v_o_of_llama_2_7b() -> None:
    found = planned()
    assert (found.trainable_parameters, found.all_parameters) == (16_777_216, 6_755_192_832)


def test_rank_16_on_all_linear_layers() -> None:
    assert planned(target_modules="all-linear").trainable_parameters == 39_976_960
    mlp, attention = planned(target_modules="mlp"), planned(target_modules="attention")
    assert mlp.trainable_parameters + attention.trainable_parameters == 39_976_960
    assert planned(target_modules="q_proj, v_proj").trainable_parameters == 8_388_608


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        ("q_proj", 32),
        ("self_attn.q_proj", 32),
        ("layers.5.self_attn.q_proj", 1),
        ("model.layers.15.self_attn.q_proj", 1),
    ],
)
def test_a_layer_named_by_its_number_is_counted_once(targets: str, layers: int) -> None:
    found = planned(target_modules=targets)
    assert found.trainable_parameters == layers * 16 * (4096 + 4096)


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text", "smollm3", "cohere2", "llama", "mistral"])
def test_a_config_that_does_not_tell_of_its_head_is_read_as_the_library_reads_it(model_type: str) -> None:
    config = CONFIG_MAPPING[model_type]()
    told = config.to_dict()
    told.pop("tie_word_embeddings", None)
    assert ModelShape.from_config(told).tie_word_embeddings == config.tie_word_embeddings
    assert not ModelShape.from_config(told | {"tie_word_embeddings": False}).tie_word_embeddings


def test_dora_adds_a_magnitude_per_output() -> None:
    assert planned(use_dora=True).trainable_parameters - planned().trainable_parameters == 32 * 4 * 4096


def test_nf4_with_double_quantization_takes_4_127_bits_a_weight() -> None:
    found = planned()
    stored = item(found, "4-bit weights") + item(found, "quantization constants")
    assert 8 * stored / LLAMA.linear_parameters == pytest.approx(4.127, abs=5e-4)
    single = planned(bnb_4bit_use_double_quant=False)
    assert 8 * item(single, "quantization constants") / LLAMA.linear_parameters == pytest.approx(0.5, abs=1e-6)


def test_full_fine_tuning_in_the_articles_accounting() -> None:
    found = planned(full=True)
    parts = sum(item(found, n) for n in ("16-bit weights", "16-bit leftovers", "gradients", "optimizer state"))
    assert parts == 12 * found.all_parameters
    assert parts / found.all_parameters * 7e9 == pytest.approx(84e9)
    assert found.trainable_parameters == found.all_parameters == 6_738_415_616


def test_the_ways_stand_in_the_order_that_makes_qlora_worth_it() -> None:
    qlora, lora, full = planned(), planned(method="lora"), planned(full=True)
    eight = planned(method="lora-8bit")
    assert qlora.total_bytes < eight.total_bytes < lora.total_bytes < full.total_bytes
    assert qlora.total_bytes < 10 * GIB and 14 * GIB < lora.total_bytes < 20 * GIB and full.total_bytes > 80 * GIB


def test_what_costs_memory_costs_it_in_the_plan() -> None:
    base = planned().total_bytes
    more: list[dict[str, Any]] = [
        {"checkpointing": False},
        {"max_length": 1024},
        {"per_device_train_batch_size": 8},
        {"r": 64},
        {"target_modules": "all-linear"},
        {"bnb_4bit_use_double_quant": False},
    ]
    assert all(planned(**values).total_bytes > base for values in more)
    assert planned(optim="paged_adamw_8bit").total_bytes < base


def test_norms_on_queries_and_keys_are_kept_for_the_backward_pass() -> None:
    shape = SHAPES["qwen3-0.6b"]
    plain = replace(shape, qk_norm=False)
    kept, without = (activation_bytes(one, 10, checkpointing=False) for one in (shape, plain))
    assert kept - without == 10 * 28 * (2048 + 1024) * (2 + 4)
    assert ModelShape.from_config({**asdict(plain), "model_type": "qwen3"}) == shape


def test_few_rows_are_scored_beside_the_heads_weights_in_fp32_on_a_cpu() -> None:
    shape, entries = SHAPES["qwen3-0.6b"], 32768

    def logits(kind: Kind, tokens: int) -> int:
        config = TrainConfig(per_device_train_batch_size=1, max_length=tokens)
        return item(plan(shape, config, kind, checkpointing=False), "logits")

    assert logits("cpu", 128) == entries * (128 * (2 + 4) + 1024 * 4)
    assert logits("cpu", 512) == entries * 512 * 31
    assert logits("cuda", 128) == entries * 128 * 2 + 128 * 1024 * 8


def test_fused_layers_keep_what_adapters_read_and_fp32_adapters_a_copy_each() -> None:
    def kept(**values: Any) -> int:
        config = TrainConfig(**{**ARTICLE, "lora_dropout": 0.0, "target_modules": "all-linear"} | values)
        found = plan(LLAMA, config, "cuda", checkpointing=False, kernels="fused")
        return item(found, "adapters' activations") // (32 * 2048) - 2 * 16 * len(modules)

    modules, hidden, middle = LLAMA.linear_sizes(), 4096, 11008
    adapters = sum(16 * (inputs + outputs) for inputs, outputs in modules.values())
    assert kept() == 2 * (hidden + hidden + middle)
    assert kept(method="lora") == 2 * (6 * hidden + middle) + 2 * adapters // 2048
    assert kept(use_dora=True) == kept() + 4 * sum(outputs for _, outputs in modules.values())
    assert kept(lora_dropout=0.05) == 3 * (6 * hidden + middle)


def test_without_bf16_adapters_of_quantized_layers_are_in_fp32_as_those_of_16_bit_layers_are() -> None:
    def taken(on: On, method: Method) -> list[int]:
        config = TrainConfig(**{**ARTICLE, "optim": "adamw_torch"}, method=method)
        found = plan(LLAMA, config, on, checkpointing=False, kernels="fused")
        return [item(found, name) for name in ("adapters", "gradients", "optimizer state", "adapters' activations")]

    trained = planned().trainable_parameters
    assert taken("cuda", "qlora")[:3] == [2 * trained, 2 * trained, 4 * trained]
    assert taken("cuda-fp16", "qlora")[:3] == [4 * trained, 4 * trained, 8 * trained]
    assert taken("cuda-fp16", "qlora") == taken("cuda-fp16", "lora") == taken("cuda", "lora")


def test_gradients_come_as_activations_go_unless_they_are_there_already() -> None:
    def gradients(**values: Any) -> int:
        return item(planned(checkpointing=False, **{"r": 256, "target_modules": "all-linear", **values}), "gradients")

    whole = 2 * planned(r=256, target_modules="all-linear").trainable_parameters
    assert gradients(gradient_accumulation_steps=2) == whole
    assert gradients(gradient_accumulation_steps=1) == 0
    assert 0 < gradients(gradient_accumulation_steps=1, max_length=16, per_device_train_batch_size=1) < whole
    recomputed = planned(r=256, target_modules="all-linear", gradient_accumulation_steps=1)
    assert item(recomputed, "gradients") == whole - 2 * 2048 * 32 * 4096


@pytest.mark.parametrize(
    ("values", "checkpointing", "layers"),
    [
        ({}, False, 32),
        ({}, True, 1),
        ({"method": "lora-8bit"}, False, 32),
        ({"lora_dropout": 0.0}, False, 0),
        ({"target_modules": "attention"}, False, 32),
    ],
)
def test_dora_with_dropout_keeps_quantized_layers_in_16_bit(
    values: dict[str, Any], checkpointing: bool, layers: int
) -> None:
    def kept(**more: Any) -> int:
        settings: dict[str, Any] = {"target_modules": "all-linear", "lora_dropout": 0.05, **values, **more}
        return item(planned(checkpointing=checkpointing, **settings), "adapters' activations")

    sizes = LLAMA.linear_sizes()
    adapted = sizes if "target_modules" not in values else {name: sizes[name] for name in sizes if name[1] == "_"}
    outputs = (1 if checkpointing else 32) * 2048 * 4 * sum(outputs for _, outputs in adapted.values())
    weights = 2 * layers * sum(inputs * outputs for inputs, outputs in adapted.values())
    assert kept(use_dora=True) - kept() == outputs + weights


@pytest.mark.parametrize(
    ("values", "matrices"),
    [({}, 0), ({"r": 32}, 8), ({"target_modules": "all-linear"}, 3), ({"optim": "adamw_8bit", "r": 32}, 0)],
)
def test_only_large_matrices_have_a_state_that_can_move_to_the_host(values: dict[str, Any], matrices: int) -> None:
    config = TrainConfig(**{**ARTICLE, **values})
    size = 11008 if "target_modules" in values else 4096
    assert paged_state_bytes(LLAMA, config, "cuda") == 32 * matrices * config.r * size * 8
    assert paged_state_bytes(LLAMA, config, "cpu") == 0
    why = next(
        one.why
        for one in choices.choose(config, LLAMA, Situation("cuda", True, GIB)).reasons
        if one.what == "Optimizer"
    )
    assert ("no matrix here is large enough" in why) == (matrices == 0 and config.optim == "auto")


@pytest.mark.parametrize(
    ("family", "installed", "kernels"),
    [
        ("llama", {"liger_kernel", "triton"}, "fused"),
        ("starcoder2", {"liger_kernel", "triton"}, "triton"),
        ("llama", {"triton"}, "triton"),
        ("llama", set(), "torch"),
    ],
)
def test_a_plan_expects_the_kernels_that_are_there_for_the_model(
    family: str, installed: set[str], kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "find_spec", lambda name: name in installed)
    shape = replace(LLAMA, family=family)
    assert choices.expected("cuda", shape, GIB).kernels == kernels
    assert choices.expected("cuda", shape, GIB, here=False).kernels == ("fused" if family == "llama" else "triton")
    assert choices.expected("cpu", shape, GIB).kernels == "torch"


def test_without_triton_a_gpu_s_loss_takes_what_torch_s_does() -> None:
    def logits(kernels: Kernels) -> int:
        return item(plan(LLAMA, TrainConfig(**ARTICLE), "cuda", checkpointing=False, kernels=kernels), "logits")

    assert logits("torch") - logits("triton") == 2048 * 32000 * (31 - 2)


@pytest.mark.parametrize("model", SHAPES)
def test_every_shape_of_the_catalog_is_planned_without_weights(services: Services, model: str) -> None:
    found = plan_training(services.settings, TrainConfig(model=model, **ARTICLE), 24 * GIB)
    assert found.chosen.total_bytes > 0 and found.fits


@pytest.mark.parametrize(("text", "size"), [("24GB", 24), ("24", 24), (" 7.5 gib ", 7.5)])
def test_sizes_of_cards(text: str, size: float) -> None:
    assert parse_memory(text) == size * GIB


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "nan", "1e9", "24MB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_memory(text)


@pytest.mark.parametrize("model", ["llama-2-7b", "tiny"])
def test_a_layer_that_the_model_does_not_have_is_refused_before_it_is_planned(
    services: Services, tiny_model: Path, model: str
) -> None:
    name = str(tiny_model) if model == "tiny" else model
    with pytest.raises(ConfigError, match="target_modules: 'query' is no layer that can be adapted; choose of down_pr"):
        plan_training(services.settings, TrainConfig(model=name, target_modules="q_proj,query", max_length=64))
    plan_training(services.settings, TrainConfig(model=name, target_modules="q_proj", max_length=64))


def test_a_layer_named_by_its_block_is_planned(services: Services, tiny_model: Path) -> None:
    plain, named = (
        plan_training(services.settings, TrainConfig(model=str(tiny_model), target_modules=name, max_length=64)).chosen
        for name in ("q_proj", "self_attn.q_proj")
    )
    assert plain.trainable_parameters == named.trainable_parameters > 0


def test_a_row_longer_than_the_model_was_made_for_is_refused_and_none_is_promised(
    services: Services, tiny_model: Path
) -> None:
    with pytest.raises(ConfigError, match="max_length: 257 is beyond the model's 256 positions; give at most that"):
        plan_training(services.settings, TrainConfig(model=str(tiny_model), max_length=257))
    found = plan_training(services.settings, TrainConfig(model=str(tiny_model), max_length=256), 1 << 40)
    assert found.longest_row == 256


def test_a_mixture_of_experts_is_refused() -> None:
    with pytest.raises(ModelError, match="num_experts is set; mixtures of experts can be neither planned nor trained"):
        ModelShape.from_config({"num_experts": 8, "hidden_size": 64})


def test_processes_that_the_machine_does_not_have_are_refused() -> None:
    refuse_processes(TrainConfig(), 64, gpus=0)
    with pytest.raises(ConfigError, match="processes: 3 are more than the GPUs here; give at most 2"):
        refuse_processes(TrainConfig(), 3, gpus=2)
    with pytest.raises(ConfigError, match="processes: fsdp shards over two or more"):
        refuse_processes(TrainConfig(parallel="fsdp"), 1, gpus=2)
