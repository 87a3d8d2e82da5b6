"""What reaches the libraries for GPUs that are not here: a config's settings, and the refusals where there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trl import SFTConfig

from qlora_demo.catalog import SMOLLM2
from qlora_demo.config import TrainConfig
from qlora_demo.errors import ConfigError, ModelError
from qlora_demo.memory import ModelShape
from qlora_demo.ml import trainer
from qlora_demo.ml.data import Splits, load_splits
from qlora_demo.ml.train import _save_adapter
from qlora_demo.plan import choices
from qlora_demo.plan.choices import Situation, choose, refuse
from qlora_demo.services import Services
from tests.ml.test_train import TINY

SHAPE = ModelShape(64, 128, 2, 4, 2, 16, 259, True)
H100 = Situation("cuda", has_bf16=True, free_bytes=80 << 30)
T4 = Situation("cuda", has_bf16=False, free_bytes=15 << 30)


def settings(config: TrainConfig, situation: Situation, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What would be handed to `SFTConfig` on a GPU."""
    monkeypatch.setattr(trainer, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(trainer, "SFTConfig", dict)
    return dict(trainer._sft_config(Path("run"), config, choose(config, SHAPE, situation)))


def test_the_held_out_loss_is_the_mean_over_trained_tokens_whatever_the_batch(
    services: Services, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"q{at}", "completion": "long answer " * (at % 4) + "x"} for at in range(60)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    found = set()
    for batch in (1, 2, 3):
        sized = TINY | {"eval_rows": 6, "per_device_train_batch_size": batch}
        config = TrainConfig(model=str(tiny_model), dataset=str(file), **sized)
        made, _ = trainer.build_trainer(tmp_path / str(batch), config, services.settings, load_splits(config))
        found.add(round(made.evaluate()["eval_loss"], 2))
    assert len(found) == 1


def test_a_step_is_the_same_in_one_pass_and_in_several(services: Services, tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{at}", "completion": "long answer " * (at % 4) + "x"} for at in range(60)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    found = []
    for batch, passes in ((2, 4), (8, 1)):
        sized = TINY | {"per_device_train_batch_size": batch, "gradient_accumulation_steps": passes, "method": "lora"}
        config = TrainConfig(model=str(tiny_model), dataset=str(file), **sized)
        made, _ = trainer.build_trainer(tmp_path / str(batch), config, services.settings, load_splits(config))
        made.train()
        found.append([(line["loss"], line["grad_norm"]) for line in made.state.log_history if "grad_norm" in line])
    assert len(found[0]) >= 3
    for several, one in zip(*found, strict=True):
        assert one == pytest.approx(several, rel=0.02)


def test_where_no_held_out_token_is_trained_there_is_no_held_out_loss(
    services: Services, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"q{at}" + " long" * 40 * (at % 2), "completion": "x"} for at in range(12)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    config = TrainConfig(model=str(tiny_model), dataset=str(file), **TINY)
    splits = load_splits(config)
    splits.heldout["test"] = [row for row in splits.train if "long" in str(row)][:2]
    made, _ = trainer.build_trainer(tmp_path / "run", config, services.settings, splits)
    assert "eval_loss" not in made.evaluate()


def test_what_an_adapter_began_as_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    config = TrainConfig(init_lora_weights="pissa", method="lora")

    def full(folder: Path) -> None:
        folder.mkdir()
        raise OSError(28, "No space left on device")

    model = SimpleNamespace(peft_config={"default": SimpleNamespace()}, save_pretrained=full)
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            trainer._initialise(tmp_path, config, SimpleNamespace(model=model))
        assert not (tmp_path / trainer.INITIAL).exists()
    model.save_pretrained = Path.mkdir
    trainer._initialise(tmp_path, config, SimpleNamespace(model=model))
    assert [one.name for one in tmp_path.iterdir()] == [trainer.INITIAL]


def test_an_adapter_names_the_bundled_model_as_every_home_knows_it(services: Services, tmp_path: Path) -> None:
    config = TrainConfig(model=SMOLLM2.name)

    def save(draft: Path, **_: Any) -> None:
        draft.mkdir(exist_ok=True)
        (draft / "adapter_config.json").write_text('{"base_model_name_or_path": "/home/ada/model", "r": 4}', "utf-8")

    saves = SimpleNamespace(save_pretrained=save)
    made = SimpleNamespace(
        accelerator=SimpleNamespace(unwrap_model=lambda _: saves), model=None, processing_class=saves
    )
    trainer.save_adapter(tmp_path, config.changed(model="/home/ada/model"), made, tmp_path / "theirs", None)
    assert json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())["base_model_name_or_path"][0] == "/"
    saves.save_pretrained(tmp_path / "own")
    made.processing_class = SimpleNamespace(save_pretrained=lambda _: None)
    trainer.save_adapter(tmp_path, config, made, tmp_path / "own", None)
    told = json.loads((tmp_path / "own" / "adapter_config.json").read_text())
    assert told == {"base_model_name_or_path": SMOLLM2.name, "r": 4}


def test_a_processor_runs_no_kernels_of_a_gpu() -> None:
    assert trainer.situation("llama").kernels == "torch"


@pytest.mark.parametrize(
    ("values", "situation", "expected"),
    [
        ({}, H100, {"optim": "paged_adamw_32bit", "bf16": True, "fp16": False, "use_cpu": False}),
        ({}, T4, {"optim": "paged_adamw_32bit", "bf16": False, "fp16": True}),
        ({"method": "lora"}, T4, {"bf16": False, "fp16": True}),
        ({"optim": "paged_adamw_8bit"}, H100, {"optim": "paged_adamw_8bit"}),
        ({"packing": True}, H100, {"packing": True}),
        ({"gradient_checkpointing": "on"}, H100, {"activation_checkpointing": True}),
        ({"loss_on": "assistant", "neftune_noise_alpha": 5.0}, H100, {"assistant_only_loss": True}),
        ({"neftune_noise_alpha": 5.0}, H100, {"neftune_noise_alpha": 5.0}),
        ({"report_to": "wandb", "eval_on_start": True}, H100, {"report_to": "wandb", "eval_on_start": True}),
        ({}, H100, {"neftune_noise_alpha": None, "ddp_backend": None, "dataloader_pin_memory": True}),
    ],
)
def test_what_is_chosen_reaches_the_trainer_of_a_gpu(
    values: dict[str, Any], situation: Situation, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(TrainConfig(**values), situation, monkeypatch)
    assert {name: given[name] for name in expected} == expected
    assert "fsdp" not in given


@pytest.mark.parametrize("visible", [1, 2])
def test_one_process_trains_on_one_gpu_however_many_it_sees(
    visible: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(trainer, "Trainer", SimpleNamespace)
    config = TrainConfig(loss_on="all")
    rows = [{"input_ids": [1, 2]}]
    made = trainer.make_trainer(
        tmp_path, config, choose(config, SHAPE, H100), Splits(rows, {"test": rows}), (None, None)
    )
    assert (made.args.n_gpu, made.args.device, made.args.train_batch_size) == (
        1,
        torch.device("cuda", 0),
        config.per_device_train_batch_size,
    )


@pytest.mark.parametrize("checkpointing", ["on", "off"])
def test_fsdp2_shards_whole_layers_and_leaves_recomputing_to_the_model(
    checkpointing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(parallel="fsdp", gradient_checkpointing=checkpointing)
    given = settings(config, H100, monkeypatch)
    fsdp = {name: given[name] for name in ("fsdp", "fsdp_config", "activation_checkpointing")}
    plugin = SFTConfig("run", bf16=False, use_cpu=True, **fsdp).fsdp_plugin_args
    assert plugin is not None and (plugin["fsdp_version"], plugin["state_dict_type"]) == (2, "FULL_STATE_DICT")
    assert plugin["auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
    assert "activation_checkpointing" not in plugin and given["activation_checkpointing"] == (checkpointing == "on")


@pytest.mark.parametrize(
    ("values", "dtype", "attention"),
    [
        ({}, torch.uint8, None),
        ({"parallel": "fsdp"}, torch.bfloat16, None),
        ({"packing": True}, torch.uint8, "flash_attention_2"),
    ],
)
def test_a_sharded_base_is_stored_in_its_dtype_and_packed_rows_meet_the_kernel_that_keeps_them_apart(
    services: Services,
    tiny_model: Path,
    values: dict[str, Any],
    dtype: torch.dtype,
    attention: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, Any] = {}

    def read(source: str, **how: Any) -> Any:
        seen.update(how)
        raise ValueError("seen")

    monkeypatch.setattr(trainer, "refuse", lambda *_: None)
    monkeypatch.setattr("qlora_demo.ml.load.AutoModelForCausalLM.from_pretrained", read)
    config = TrainConfig(model=str(tiny_model), **values)
    with pytest.raises(ModelError):
        trainer.build_trainer(Path("run"), config, services.settings, load_splits(config))
    assert seen["quantization_config"].bnb_4bit_quant_storage == dtype
    assert seen["attn_implementation"] == attention


def test_sharded_weights_are_gathered_by_every_rank_and_saved_by_the_first(
    services: Services, tiny_model: Path, chat_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(model=str(tiny_model), dataset=str(chat_file), **TINY)
    run = services.runs.create(config)
    made, _ = trainer.build_trainer(run.path, config, services.settings, load_splits(config))
    asked: list[str] = []

    def gather(model: Any) -> dict[str, torch.Tensor]:
        asked.append("rank")
        return {name: torch.full_like(p, 7.0) for name, p in model.named_parameters() if "lora_" in name}

    monkeypatch.setattr(made, "is_fsdp_enabled", True)
    monkeypatch.setattr(made.accelerator, "get_state_dict", gather)
    monkeypatch.setenv("RANK", "1")
    _save_adapter(run.path, config, made)
    assert not services.runs.get(run.id).has_adapter
    monkeypatch.setenv("RANK", "0")
    _save_adapter(run.path, config, made)
    assert asked == ["rank", "rank"]
    saved = load_file(run.adapter / "adapter_model.safetensors")
    assert saved and all((tensor == 7.0).all() for tensor in saved.values())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim": "paged_adamw_32bit"}, "optim: paged_adamw_32bit needs a CUDA device; choose auto or adamw_torch"),
        ({"optim": "adamw_8bit"}, "optim: adamw_8bit needs a CUDA device"),
        ({"packing": True}, "packing: needs FlashAttention, .* rows would see each other here: leave it off"),
        ({"method": "lora-8bit", "use_dora": True}, "use_dora: needs a CUDA device on an 8-bit base; choose method"),
        ({"parallel": "fsdp"}, "parallel: fsdp shards over GPUs and there is none here; choose ddp"),
        ({"report_to": "wandb"}, "report_to: wandb is not installed; pip install wandb, or none"),
    ],
)
def test_what_the_device_or_the_libraries_lack_is_refused_with_the_reason(
    values: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=message):
        refuse(TrainConfig(**values), "cpu")


def test_a_gpu_with_flash_attention_takes_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(optim="paged_adamw_8bit", packing=True, parallel="fsdp", report_to="wandb")
    monkeypatch.setattr(choices, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="packing"):
        refuse(config, "cuda")
    monkeypatch.setattr(choices, "find_spec", lambda name: object())
    refuse(config, "cuda")


def test_where_there_is_no_bf16_what_is_trained_is_in_fp32(
    services: Services, tiny_model: Path, chat_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer's settings are those of this CPU, which has no fp16; what becomes of its model is the same."""
    given = trainer._sft_config
    monkeypatch.setattr(trainer, "choose", lambda *known: replace(choose(*known), fp16=True))
    monkeypatch.setattr(
        trainer, "_sft_config", lambda path, config, chosen: given(path, config, replace(chosen, fp16=False))
    )
    config = TrainConfig(model=str(tiny_model), dataset=str(chat_file), max_length=64, r=4, max_steps=1)
    run = services.runs.create(config)
    built, _ = trainer.build_trainer(run.path, config, services.settings, load_splits(config))
    assert {one.dtype for one in built.model.parameters() if one.requires_grad} == {torch.float32}
