"""Runs that are interrupted, and what becomes of them."""

from __future__ import annotations

import math
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.optim import PagedAdamW32bit
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState

from qlora_demo.columns import parse_all
from qlora_demo.config import GenerationSettings, TrainConfig
from qlora_demo.errors import ConfigError, RunError
from qlora_demo.ml.checkpoints import Checkpoints
from qlora_demo.ml.load import load_16bit
from qlora_demo.ml.merge import load_merged
from qlora_demo.ml.reporter import Reporter
from qlora_demo.ml.train import EndState
from qlora_demo.records import AnswerRequest, Message
from qlora_demo.runs import CHECKPOINT_MARK, CHECKPOINTS, Run, last_checkpoint
from qlora_demo.services import Services
from qlora_demo.sources import find_adapter
from qlora_demo.system.halt import Halt
from tests.ml.test_train import TINY, ended, trained_here, wait
from tests.queueing import submit

pytestmark = [
    pytest.mark.processes,
    # Told to those who would keep such an adapter as it is: ours is saved as a plain one.
    pytest.mark.filterwarnings("ignore:(PiSSA|OLoRA) changes the base weights:UserWarning"),
    # The model is loaded before EVA looks at it: nothing to save there.
    pytest.mark.filterwarnings("ignore:.*eva initialization used with low_cpu_mem_usage:UserWarning"),
]


@pytest.fixture
def config(tiny_model: Path, chat_file: Path) -> TrainConfig:
    return TrainConfig(model=str(tiny_model), dataset=str(chat_file), **TINY)


def losses(services: Services, run: Run) -> dict[int, float]:
    return {line.step: line.loss for line in services.runs.metrics(run.id) if line.loss is not None}


@pytest.mark.parametrize(("step", "saved"), [(5, True), (6, False)])
def test_there_is_no_checkpoint_after_the_last_step(step: int, saved: bool) -> None:
    """From there the trainer would do a step more than it was asked for."""
    control, state = TrainerControl(should_training_stop=True), TrainerState(global_step=step, max_steps=6)
    Checkpoints(TrainConfig(save_steps=1)).on_step_end(None, state, control)
    assert control.should_save == saved


def test_optimizer_state_that_is_read_onto_a_gpu_is_not_moved_as_if_it_were_paged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved: list[Any] = []
    monkeypatch.setattr("bitsandbytes.functional.prefetch_tensor", moved.append)
    weights = torch.nn.Parameter(torch.zeros(200, 1000, device="meta"))  # which stands for a GPU here
    optimizer = PagedAdamW32bit([weights])
    saved = {name: torch.zeros_like(weights.data) for name in ("state1", "state2")}
    for value in saved.values():
        value.is_paged, value.page_deviceid = True, 0  # type: ignore[attr-defined]
    optimizer.load_state_dict(optimizer.state_dict() | {"state": {0: {"step": 3, **saved}}})
    Checkpoints(TrainConfig()).on_train_begin(None, None, None, optimizer=optimizer)
    optimizer.prefetch_state(weights)
    assert set(optimizer.state[weights]) == {"step", "state1", "state2"} and not moved


def whole_checkpoint(run: Run) -> bool:
    return last_checkpoint(run.path) is not None


@pytest.mark.parametrize("method", ["qlora", "lora"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    services: Services, config: TrainConfig, trainers: list[int], method: str
) -> None:
    """Same rows in the same order, same optimizer, same schedule: the curve continues the old one."""
    config = config.changed(method=method, max_steps=12, save_steps=5, eval_steps=6, lora_dropout=0.1)
    whole = trained_here(services, config)
    assert whole.state.status == "finished" and whole.resumable_from == 0
    assert not (whole.path / CHECKPOINTS).exists()

    cut = services.launcher.start(config)
    wait(services, cut, whole_checkpoint)
    os.kill(trainers.pop(), signal.SIGKILL)
    cut = wait(services, cut, ended)
    at = cut.resumable_from
    assert cut.state.status == "failed" and at >= 5
    services.launcher.resume(cut.id)
    cut = wait(services, cut, ended)
    assert cut.state.status == "finished", services.runs.log_tail(cut.id)
    ours, theirs = losses(services, cut), losses(services, whole)
    assert list(ours) == list(theirs) == list(range(1, 13))
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert f"from step {at}" in {choice.value for choice in cut.state.choices}
    left, right = (load_file(run.adapter / "adapter_model.safetensors") for run in (cut, whole))
    assert all(torch.allclose(left[name].float(), right[name].float(), atol=1e-3) for name in right)


@pytest.mark.usefixtures("trainers")
def test_a_stopped_run_has_its_adapter_and_can_go_on_from_where_it_was_stopped(
    services: Services, config: TrainConfig
) -> None:
    run = services.launcher.start(config.changed(max_steps=5000, save_steps=0, save_minutes=0.02, eval_steps=5000))
    wait(services, run, whole_checkpoint)
    by_time = last_checkpoint(run.path)
    services.runs.request_stop(run.id)
    run = wait(services, run, ended)
    assert run.state.status == "stopped" and run.has_adapter
    assert by_time is not None and 0 < by_time[0] < run.state.summary["steps"] < 5000
    assert run.resumable_from == run.state.summary["steps"]
    with pytest.raises(RunError, match="already stopped"):
        services.runs.request_stop(run.id)
    services.launcher.resume(run.id)
    wait(services, run, lambda r: len(losses(services, r)) > run.resumable_from + 1)
    services.runs.request_stop(run.id)
    run = wait(services, run, ended)
    assert run.has_adapter and list(losses(services, run)) == list(range(1, len(losses(services, run)) + 1))


def test_a_checkpoint_that_a_kill_cut_short_is_skipped(services: Services, config: TrainConfig) -> None:
    run = services.runs.create(config)
    for step in (5, 10):
        folder = run.path / CHECKPOINTS / f"checkpoint-{step}"
        folder.mkdir(parents=True)
    (run.path / CHECKPOINTS / "checkpoint-5" / CHECKPOINT_MARK).touch()
    assert last_checkpoint(run.path) == (5, run.path / CHECKPOINTS / "checkpoint-5")


def test_what_cannot_go_on_says_why(services: Services, config: TrainConfig) -> None:
    run = services.runs.create(config)
    with pytest.raises(RunError, match="created, it has not ended"):
        services.launcher.resume(run.id)


@pytest.mark.usefixtures("trainers")
def test_a_second_start_waits_its_turn(services: Services, config: TrainConfig) -> None:
    first = submit(services, config.changed(max_steps=5000))
    second = submit(services, config.changed(max_steps=2, eval_steps=2))
    third = submit(services, config)
    assert first.alive and first.state.status != "queued" and second.state.status == "queued"
    assert [run.id for run in services.runs.waiting("queued")] == [second.id, third.id]
    services.runs.request_stop(third.id)
    assert services.runs.get(third.id).state.status == "stopped"
    assert services.launcher.start_next() is None
    wait(services, first, lambda run: run.state.status == "running")
    services.runs.request_stop(first.id)
    wait(services, first, ended)
    started = services.launcher.start_next()
    assert started is not None and started.id == second.id
    assert wait(services, second, ended).state.status == "finished"


@pytest.mark.parametrize(
    ("losses", "trouble"),
    [
        ([2.0, math.nan], "the loss is nan at step 2; lower learning_rate"),
        ([2.0, math.inf], "the loss is inf at step 2"),
        ([1.0] * 10 + [3.0] * 20, "the loss rose from 1.00 to "),
        ([3.0] * 10 + [0.1] * 20 + [2.9] * 10, ""),
        ([1.0, 9.0, 1.0], ""),
    ],
)
@pytest.mark.parametrize("stop", [True, False])
def test_a_run_that_diverges_says_so_and_ends_where_that_is_chosen(
    tmp_path: Path, losses: list[float], trouble: str, stop: bool
) -> None:
    reporter, control = Reporter(tmp_path, TrainConfig(stop_on_divergence=stop), ()), TrainerControl()
    for step, loss in enumerate(losses, 1):
        logs: dict[str, Any] = {
            "loss": loss,
            "learning_rate": 1e-3,
            "grad_norm": 1.0,
            "mean_token_accuracy": 0.5,
            "num_tokens": step,
        }
        reporter.on_log(None, TrainerState(global_step=step), control, logs)
    assert trouble in reporter.trouble and bool(trouble) == bool(reporter.trouble)
    assert control.should_training_stop == (bool(trouble) and stop)


def test_no_better_held_out_loss_ends_the_run_early(services: Services, config: TrainConfig) -> None:
    patient = config.changed(max_steps=200, eval_steps=1, early_stopping_patience=2, learning_rate=1e-8)
    run = trained_here(services, patient)
    assert run.state.status == "stopped" and run.has_adapter
    assert "stopped early: 2 held-out losses were no better" in run.state.error


METHODS: list[dict[str, Any]] = [
    {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False},
    {"method": "lora-8bit"},
    {"use_dora": True},
    {"use_rslora": True, "target_modules": "q_proj,down_proj", "neftune_noise_alpha": 5.0, "eval_on_start": True},
    {"init_lora_weights": "eva"},
    {"method": "lora", "init_lora_weights": "pissa"},
    {"method": "lora", "init_lora_weights": "olora"},
    {"loss_on": "all"},
]


@pytest.mark.parametrize("values", METHODS, ids=lambda values: "-".join(map(str, values.values())))
def test_every_method_trains_answers_and_merges(
    services: Services, config: TrainConfig, values: dict[str, Any]
) -> None:
    run = trained_here(services, config.changed(**{"max_steps": 2, "learning_rate": 1e-2, **values}))
    assert run.state.status == "finished", services.runs.log_tail(run.id)
    columns = parse_all(["base", "adapter", "merged"], run.id)
    hello: tuple[Message, ...] = ({"role": "user", "content": "hi"},)
    turns = dict.fromkeys(["base", "adapter", "merged"], hello)
    request = AnswerRequest(columns, turns, GenerationSettings(max_new_tokens=2))
    *_, answers = services.engine().answer(request, Halt())
    proofs = {answer.column: answer.proof for answer in answers}
    assert all(not answer.error for answer in answers), [answer.error for answer in answers]
    expected = {"fp4": "fp4", "lora-8bit": "int8", "lora": "bf16"}
    kind = expected.get(values.get("bnb_4bit_quant_type", "")) or expected.get(values.get("method", ""), "nf4")
    assert proofs["adapter"] is not None and proofs["adapter"].precision == kind
    services.engine.release()


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_changed_its_base_is_saved_for_the_base_as_it_is(
    services: Services, config: TrainConfig, init: str
) -> None:
    """Trained for one step at a rate of nearly nothing, it must be the base model: its start is taken out."""
    still = config.changed(method="lora", init_lora_weights=init, learning_rate=1e-9, max_steps=1)
    run = trained_here(services, still)
    told = (run.path / "README").read_text("utf-8")
    assert [path.name for path in run.path.iterdir() if path.name != "README" and path.name not in told] == []
    merged = load_merged(find_adapter(services.settings, services.runs, run.id), "original")
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        ours, theirs = merged(input_ids=ids).logits, load_16bit(config.model)(input_ids=ids).logits
    assert torch.allclose(ours.float(), theirs.float(), atol=0.05)


def test_assistant_turns_are_refused_where_the_template_does_not_mark_them(
    services: Services, config: TrainConfig
) -> None:
    with pytest.raises(ConfigError, match=r"loss_on: assistant cannot be used here .*; choose completion"):
        trained_here(services, config.changed(loss_on="assistant"))


def test_layers_that_the_model_does_not_have_are_refused_with_those_it_has(
    services: Services, config: TrainConfig
) -> None:
    with pytest.raises(ConfigError, match="'query' is no layer that can be adapted; choose of down_proj, gate_proj"):
        trained_here(services, config.changed(target_modules="q_proj,query"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("Tried to allocate 20.00 MiB. GPU 0 has 1.00 MiB free"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 20 bytes."),
    ],
    ids=["gpu", "cpu"],
)
def test_running_out_of_memory_says_what_would_take_less(
    services: Services, config: TrainConfig, error: RuntimeError
) -> None:
    run = services.runs.create(config.changed(method="lora", per_device_train_batch_size=8))
    with pytest.raises(SystemExit) as left, EndState(run.path):
        raise error
    assert left.value.code == 1
    state = services.runs.get(run.id).state
    assert state.status == "failed" and f"out of memory ({error}); by the plan the run takes " in state.error
    assert re.search(r"takes [\d.]+ [MG]iB and the device has [\d.]+ GiB; take one of the lighter", state.error)
    assert len(state.lighter) == 3
    saved = [one.saves_bytes for one in state.lighter]
    assert saved == sorted(saved, reverse=True) and saved[-1] > 0
    assert all(run.config.changed(**one.changes) != run.config for one in state.lighter)
