"""The training process on the tiny model: what it writes, how it ends, what it leaves alone."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_demo.config import TrainConfig
from qlora_demo.errors import DataError
from qlora_demo.ml import load
from qlora_demo.ml.data import load_splits
from qlora_demo.ml.train import score_answers, train
from qlora_demo.ml.trainer import adapters_to_fp32, build_trainer
from qlora_demo.runs import Run
from qlora_demo.services import Services

pytestmark = pytest.mark.processes

TINY: dict[str, Any] = {
    "max_length": 64,
    "r": 4,
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "eval_steps": 2,
    "eval_rows": 4,
}


@pytest.fixture
def config(tiny_model: Path, chat_file: Path) -> TrainConfig:
    return TrainConfig(model=str(tiny_model), dataset=str(chat_file), **TINY)


def wait(services: Services, run: Run, until: Callable[[Run], bool], seconds: float = 120) -> Run:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        run = services.runs.get(run.id)
        if until(run):
            return run
        time.sleep(0.1)
    raise AssertionError(f"{run.state}\n{services.runs.log_tail(run.id)}")


def ended(run: Run) -> bool:
    return run.state.ended and not run.alive


def trained_here(services: Services, config: TrainConfig) -> Run:
    """A finished run, trained in this process: starting one takes longer than these trainings."""
    run = services.runs.create(config)
    train(run.path, config, services.settings)
    return services.runs.get(run.id)


@pytest.mark.parametrize("method", ["qlora", "lora"])
def test_a_run_writes_its_metrics_adapter_and_end_state(services: Services, config: TrainConfig, method: str) -> None:
    if method == "qlora":
        run = wait(services, services.launcher.start(config), ended)
    else:
        run = trained_here(services, config.changed(method=method))
    assert run.state.status == "finished", services.runs.log_tail(run.id)
    assert run.has_adapter
    metrics = services.runs.metrics(run.id)
    assert [m.step for m in metrics if m.loss is not None] == [1, 2, 3, 4]
    assert [m.step for m in metrics if m.eval_loss is not None] == [2, 4]
    assert sum(m.tokens or 0 for m in metrics) > 0
    summary = run.state.summary
    assert summary["steps"] == 4
    assert summary["trainable_parameters"] == 2 * 4 * (64 + 64 + 64 + 32 + 64 + 32 + 64 + 64 + 3 * (64 + 128))
    assert summary["eval_loss"] == [m.eval_loss for m in metrics if m.eval_loss is not None][-1]
    assert {choice.what for choice in run.state.choices} >= {"Gradient checkpointing", "Padding", "Loss"}
    assert (run.path / "versions.json").is_file()
    assert len(services.runs.heldout(run.id)["test"]) == 4
    assert services.lease.holder() == ""


def test_a_killed_run_reads_as_failed_and_frees_the_device(
    services: Services, config: TrainConfig, trainers: list[int]
) -> None:
    run = services.launcher.start(config.changed(max_steps=5000))
    run = wait(services, run, lambda r: bool(services.runs.metrics(r.id)))
    os.kill(trainers.pop(), signal.SIGKILL)
    run = wait(services, run, lambda r: not r.alive)
    assert run.state.status == "failed"
    assert "ended without reporting an error" in run.state.error
    assert not run.has_adapter
    assert services.lease.holder() == ""


@pytest.mark.usefixtures("trainers")
def test_a_wrong_request_ends_as_refused_with_one_line(services: Services, config: TrainConfig) -> None:
    run = wait(services, services.launcher.start(config.changed(dataset="missing.jsonl")), ended)
    assert (run.state.status, run.state.refused) == ("failed", True)
    assert run.state.error == "dataset: there is no file missing.jsonl; check the path"
    assert not run.has_adapter
    log = services.runs.log_tail(run.id)
    assert "error: dataset: there is no file missing.jsonl" in log
    assert "Traceback" not in log


def test_rows_cut_before_their_answer_are_refused(services: Services, config: TrainConfig, chat_file: Path) -> None:
    long = "x" * 300
    chat_file.write_text("\n".join(f'{{"prompt": "{at}{long}", "completion": "a"}}' for at in range(4)), "utf-8")
    with pytest.raises(DataError, match="max_length: no row keeps a trained token within 64 tokens; raise max_length"):
        trained_here(services, config)


def test_the_base_weights_are_bit_identical_before_and_after(services: Services, config: TrainConfig) -> None:
    run = services.runs.create(config)
    trainer, _ = build_trainer(run.path, config, services.settings, load_splits(config))
    before = frozen_checksum(trainer.model)
    adapter_before = trainable_checksum(trainer.model)
    trainer.train()
    assert trainable_checksum(trainer.model) != adapter_before
    assert frozen_checksum(trainer.model) == before


def test_the_loss_is_on_the_answer_and_its_stop_token_only(services: Services, config: TrainConfig) -> None:
    run = services.runs.create(config)
    trainer, _ = build_trainer(run.path, config, services.settings, load_splits(config))
    tokenizer: Any = trainer.processing_class
    row = trainer.train_dataset[0]
    trained = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    text = tokenizer.decode(trained)
    assert text.startswith('{"n":')
    assert text.rstrip("\n").endswith("<|im_end|>")


def test_only_answer_positions_are_projected_through_the_head(
    services: Services, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trl.trainer.utils as trl_utils

    run = services.runs.create(config)
    trainer, _ = build_trainer(run.path, config, services.settings, load_splits(config))
    projected: list[int] = []
    original = trl_utils._ChunkedLogProbFunction.apply

    def counting(hidden: torch.Tensor, *rest: Any) -> Any:
        projected.append(len(hidden))
        return original(hidden, *rest)

    monkeypatch.setattr(trl_utils._ChunkedLogProbFunction, "apply", counting)
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    with torch.no_grad():
        trainer.compute_loss(trainer.model, batch)
    assert projected == [int((batch["labels"][:, 1:] != -100).sum())]


def test_the_rows_answered_at_the_end_are_taken_some_at_a_time_and_none_that_is_too_long(
    services: Services, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = load_splits(config)
    trainer, _ = build_trainer(tmp_path, config, services.settings, splits)
    batches: list[int] = []

    def counted(model: Any, tokenizer: Any, conversations: Any, *rest: Any) -> list[str]:
        batches.append(len(conversations))
        return [""] * len(conversations)

    monkeypatch.setattr("qlora_demo.ml.evaluate.complete", counted)
    long = {"messages": [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y"}]}
    assert score_answers(trainer, [long, *splits.train[:30]])["rows"] == sum(batches) == 30
    assert batches == [24, 6]
    assert score_answers(trainer, [long]) == {}


@pytest.mark.usefixtures("unusable_gpu")
def test_a_gpu_that_torch_cannot_use_ends_the_run_and_not_in_training_on_the_processor(
    services: Services, config: TrainConfig
) -> None:
    run = wait(services, services.launcher.start(config), ended)
    assert (run.state.status, run.state.refused) == ("failed", True)
    assert run.state.error.startswith("device: driver 470.1 lists NVIDIA T4, and torch ")


def frozen_checksum(model: Any) -> str:
    """Over every frozen tensor and quantization constant."""
    digest = _digest(parameter for parameter in model.parameters() if not parameter.requires_grad)
    for layer in load.four_bit_layers(model):
        digest.update(layer.weight.quant_state.absmax.numpy().tobytes())
    return str(digest.hexdigest())


def trainable_checksum(model: Any) -> str:
    """Over every trained tensor."""
    return str(_digest(parameter for parameter in model.parameters() if parameter.requires_grad).hexdigest())


def _digest(tensors: Any) -> Any:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest


def test_without_bf16_the_adapters_are_trained_in_fp32_and_the_base_stays_as_it_is(
    services: Services, config: TrainConfig, tmp_path: Path
) -> None:
    trainer, _ = build_trainer(tmp_path, config, services.settings, load_splits(config))
    frozen = {name: p.dtype for name, p in trainer.model.named_parameters() if not p.requires_grad}
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.bfloat16}
    adapters_to_fp32(trainer.model)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    assert {name: p.dtype for name, p in trainer.model.named_parameters() if not p.requires_grad} == frozen
