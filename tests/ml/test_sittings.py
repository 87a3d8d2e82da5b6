"""A run in several sittings is one run: nothing of the first is lost by what goes wrong in the second."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerControl, TrainerState

from qlora_demo.cli import main
from qlora_demo.commands.console import follow
from qlora_demo.config import TrainConfig
from qlora_demo.errors import DataError, RunError
from qlora_demo.jobs import read_result, save_result
from qlora_demo.memory import ModelShape
from qlora_demo.ml.reporter import Reporter
from qlora_demo.ml.train import EndState, _sitting_seconds, train
from qlora_demo.plan.alternatives import lighter
from qlora_demo.records import RunState, TrainMetrics
from qlora_demo.runs import CHECKPOINTS, Run, append_metrics, last_checkpoint, write_state
from qlora_demo.services import Services
from tests.ml.test_train import TINY, wait
from tests.queueing import submit

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tiny_model: Path, chat_file: Path) -> TrainConfig:
    return TrainConfig(model=str(tiny_model), dataset=str(chat_file), **TINY | {"save_steps": 2})


def stopped_after(services: Services, config: TrainConfig, step: int, patch: pytest.MonkeyPatch) -> Run:
    """A run that was stopped from outside, with its checkpoint."""
    run = services.runs.create(config)

    def stops(path: Path, metrics: TrainMetrics) -> None:
        append_metrics(path, metrics)
        if metrics.step == step:
            (path / "stop").touch()

    with patch.context() as inner:
        inner.setattr("qlora_demo.ml.reporter.append_metrics", stops)
        train(run.path, config, services.settings)
    (run.path / "stop").unlink()
    return services.runs.get(run.id)


def test_a_request_that_is_wrong_only_when_it_is_resumed_costs_nothing(
    services: Services, config: TrainConfig, chat_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped_after(services, config, 1, monkeypatch)
    assert run.resumable_from == 2 and run.has_adapter
    chat_file.rename(chat_file.with_suffix(".moved"))
    with pytest.raises(SystemExit), EndState(run.path):
        train(run.path, config, services.settings)
    run = services.runs.get(run.id)
    assert (run.state.status, run.state.refused, run.resumable_from) == ("failed", False, 2)
    assert "there is no file" in run.state.error


def test_a_run_goes_on_only_with_the_rows_and_the_base_that_it_began_with(
    services: Services, config: TrainConfig, chat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(config.model, model)
    config = config.changed(model=str(model))
    run = stopped_after(services, config, 1, monkeypatch)
    kept = (services.runs.versions(run.id), services.runs.heldout(run.id))
    append_metrics(run.path, TrainMetrics(9, time.time(), loss=1.0))  # beyond the checkpoint
    told = (run.state.choices, services.runs.metrics(run.id))
    rows = chat_file.read_text("utf-8")
    chat_file.write_text("\n".join([rows, *rows.splitlines()[:4]]), "utf-8")
    with pytest.raises(RunError, match=f"dataset: {chat_file} holds other rows .* start a new run"):
        train(run.path, config, services.settings)
    chat_file.write_text(rows, "utf-8")
    weights = load_file(model / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match=f"model: {model} has other weights .* start a new run"):
        train(run.path, config, services.settings)
    assert (services.runs.versions(run.id), services.runs.heldout(run.id)) == kept
    assert (services.runs.get(run.id).state.choices, services.runs.metrics(run.id)) == told
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    train(run.path, config, services.settings)
    assert services.runs.get(run.id).state.status == "finished"


def test_what_was_measured_and_exported_before_a_run_went_on_is_not_told_of_what_it_became(
    services: Services, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped_after(services, config, 1, monkeypatch)
    for kind in ("evaluation", "preflight"):
        save_result(run, kind, {"told": kind})
    (run.path / "exports" / "merged").mkdir(parents=True)
    (run.path / "report").mkdir()
    (run.path / "report" / "of it.html").touch()
    assert run.adapter_since == 0
    metrics = services.runs.metrics(run.id)
    (run.path / "metrics.jsonl").unlink()
    for line in metrics:
        append_metrics(run.path, replace(line, memory_bytes=1 << 50))
    train(run.path, config, services.settings)
    assert services.runs.get(run.id).state.summary["peak_memory_bytes"] == 1 << 50, "of all its sittings"
    assert read_result(run, "evaluation") is None and not (run.path / "exports" / "merged").exists()
    assert (read_result(run, "preflight") or {})["told"] == "preflight"
    assert services.runs.get(run.id).adapter_since == (run.adapter / "adapter_model.safetensors").stat().st_mtime
    [aside] = (run.path / "earlier").iterdir()
    assert sorted(str(one.relative_to(aside)) for one in aside.glob("*/*")) == [
        "exports/merged",
        "report/of it.html",
        "results/evaluation.json",
    ]


def test_a_run_that_fails_when_it_goes_on_keeps_the_figures_of_its_adapter(
    services: Services, config: TrainConfig, chat_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped_after(services, config, 1, monkeypatch)
    chat_file.unlink()
    with pytest.raises(SystemExit), EndState(run.path):
        train(run.path, config, services.settings)
    assert services.runs.get(run.id).state.summary["train_loss"] == run.state.summary["train_loss"]


def test_a_run_that_diverges_when_it_goes_on_keeps_the_figures_of_its_adapter(
    services: Services, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped_after(services, config, 1, monkeypatch)
    own: list[bool] = []

    def says_the_first_rank(mine: bool) -> bool:
        own.append(mine)
        return True

    monkeypatch.setattr("qlora_demo.ml.train.agreed", says_the_first_rank)
    train(run.path, run.config, services.settings)
    state = services.runs.get(run.id).state
    assert state.status == "failed" and "train_loss" in state.summary and own == [False]
    assert state.summary == run.state.summary | {"runtime_seconds": state.summary["runtime_seconds"]}


def test_a_held_out_loss_is_told_with_the_step_it_was_measured_at(
    services: Services, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped_after(services, config, 3, monkeypatch)
    summary = run.state.summary
    assert (summary["steps"], summary["eval_step"]) == (4, 4)
    earlier = stopped_after(services, config.changed(eval_steps=2), 2, monkeypatch)
    assert (earlier.state.summary["steps"], earlier.state.summary["eval_step"]) == (3, 2)


def test_what_fails_while_the_answers_are_scored_leaves_the_checkpoint(
    services: Services, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = services.runs.create(config)
    with monkeypatch.context() as patch:
        patch.setattr("qlora_demo.ml.train.score_answers", lambda *_: (_ for _ in ()).throw(DataError("scored: no")))
        with pytest.raises(SystemExit), EndState(run.path):
            train(run.path, config.changed(score_rows=2), services.settings)
    assert services.runs.get(run.id).resumable_from == 2
    train(run.path, config, services.settings)
    assert services.runs.get(run.id).state.status == "finished"
    assert not (run.path / CHECKPOINTS).exists()


def test_a_clock_that_was_set_back_costs_no_checkpoint(
    services: Services, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.changed(max_steps=8)
    run = stopped_after(services, config, 3, monkeypatch)
    assert sorted(one.name for one in (run.path / CHECKPOINTS).glob("*-*")) == ["checkpoint-2", "checkpoint-4"]
    for folder in (run.path / CHECKPOINTS).glob("*-*"):
        os.utime(folder, (time.time() + 9000, time.time() + 9000))
    kept: list[list[str]] = []

    def look(path: Path, metrics: TrainMetrics) -> None:
        kept.append(sorted(one.name for one in (path / CHECKPOINTS).glob("*-*")))

    monkeypatch.setattr("qlora_demo.ml.reporter.append_metrics", look)
    train(run.path, config, services.settings)
    assert services.runs.get(run.id).state.status == "finished"
    assert kept[-1] == ["checkpoint-4", "checkpoint-6"]


def test_a_run_whose_answers_found_no_memory_is_finished_without_their_score(
    services: Services, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("qlora_demo.ml.train.greedy_answers", failing)
    run = services.runs.create(config)
    train(run.path, config.changed(score_rows=2), services.settings)
    run = services.runs.get(run.id)
    assert (run.state.status, run.has_adapter, run.state.summary["score"]) == ("finished", True, {})
    assert run.state.error.startswith("score_rows: the device had no room to answer 2 rows; the adapter is saved")
    assert "training.unscored" in caplog.messages


def test_a_stop_ends_the_scoring_between_two_batches_and_a_run_that_was_stopped_is_not_scored(
    services: Services, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = services.runs.create(config)
    asked: list[int] = []

    def is_stopped_meanwhile(_model: Any, _tokenizer: Any, rows: Any) -> list[str]:
        asked.append(len(rows))
        (run.path / "stop").touch()
        return [""] * len(rows)

    monkeypatch.setattr("qlora_demo.ml.train.greedy_answers", is_stopped_meanwhile)
    monkeypatch.setattr("qlora_demo.ml.train.ANSWER_BATCH", 2)
    train(run.path, config.changed(score_rows=4), services.settings)
    finished, stopped = services.runs.get(run.id), stopped_after(services, config.changed(score_rows=4), 1, monkeypatch)
    assert asked == [2]
    for ended, status, answers in ((finished, "finished", 2), (stopped, "stopped", 0)):
        assert (ended.state.status, ended.has_adapter, ended.state.summary["score"]) == (status, True, {})
        told = f"score_rows: the run was stopped after {answers} of 4 answers; evaluate its adapter"
        assert ended.state.error == told


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (2.0, math.nan), (2.0, math.inf)])
def test_weights_that_are_no_numbers_are_not_kept_to_go_on_from(tmp_path: Path, loss: float, norm: float) -> None:
    reporter, control = Reporter(tmp_path, TrainConfig(), ()), TrainerControl(should_save=True)
    logs: dict[str, Any] = {"loss": loss, "learning_rate": 1e-3, "grad_norm": norm, "mean_token_accuracy": 0.5}
    reporter.on_log(None, TrainerState(global_step=1), control, logs | {"num_tokens": 1})
    assert not control.should_save


def test_patience_and_divergence_remember_the_sittings_before(tmp_path: Path) -> None:
    earlier = [TrainMetrics(step, step, loss=1.0) for step in range(1, 11)]
    earlier += [TrainMetrics(10, 10, eval_loss=0.5)]
    write_state(tmp_path, RunState("running"))
    reporter, control = Reporter(tmp_path, TrainConfig(early_stopping_patience=1), (), earlier), TrainerControl()
    last = TrainerState(global_step=11, max_steps=11)
    reporter.on_log(None, last, control, {"eval_loss": 0.7})
    assert not control.should_training_stop and not reporter.trouble, "it is at its end anyway"
    reporter.on_log(None, replace(last, max_steps=20), control, {"eval_loss": 0.6})
    assert control.should_training_stop and "no better than 0.5000" in reporter.trouble
    assert reporter._losses == [1.0] * 10


def test_a_run_s_time_leaves_out_what_lay_between_its_sittings() -> None:
    before = RunState("failed", started_at=1000.0, earlier_seconds=50.0)
    assert _sitting_seconds(before, [TrainMetrics(1, 1030.0, loss=1.0)]) == 30
    assert _sitting_seconds(before, []) == 0
    now = replace(before, started_at=9000.0, earlier_seconds=80.0)
    assert (now.seconds(9010.0), RunState("queued").seconds(1.0)) == (90, None)


@pytest.mark.processes
@pytest.mark.usefixtures("trainers")
def test_a_run_without_a_checkpoint_begins_again(services: Services, config: TrainConfig) -> None:
    run = services.runs.create(config)
    write_state(run.path, RunState("failed", error="killed", processes=1))
    append_metrics(run.path, TrainMetrics(1, 1.0, loss=9.0))
    assert last_checkpoint(run.path) is None
    services.launcher.resume(run.id)
    run = wait(services, run, lambda one: one.state.status == "finished" and not one.alive)
    assert [line.step for line in services.runs.metrics(run.id) if line.loss is not None] == [1, 2, 3, 4]


@pytest.mark.processes
def test_the_command_line_begins_a_run_that_waits_when_the_device_is_free(
    services: Services, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = services.lease.acquire("chat", "somebody")
    run = submit(services, config)
    assert run.state.status == "queued"
    started: list[str] = []

    def spawn(run: Run, *_: Any) -> None:
        started.append(run.id)
        write_state(run.path, RunState("finished"))

    monkeypatch.setattr(services.launcher, "_spawn", spawn)
    monkeypatch.setattr("time.sleep", lambda _: held.release())
    assert follow(services, run).state.status == "finished"
    assert started == [run.id]


@pytest.mark.processes
def test_a_run_whose_processes_are_started_by_hand_is_alive_and_holds_the_device(
    services: Services, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.json"
    file.write_text(config.changed(max_steps=5000).model_dump_json(), "utf-8")
    assert main(["train", "--json", "--prepare", "--config", str(file)]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["state"] == "created"
    command = [sys.executable, "-m", "qlora_demo.ml.train", made["path"]]
    by_hand = subprocess.Popen(command)
    run = wait(services, services.runs.get(made["run"]), lambda one: one.state.status == "running")
    assert run.alive and run.id in services.lease.holder()
    with pytest.raises(RunError, match="still running; stop it first"):
        services.runs.delete(run.id)
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 2 and "it is at work already" in second.stderr
    services.runs.request_stop(run.id)
    assert by_hand.wait(60) == 0
    assert services.runs.get(run.id).state.status == "stopped" and services.lease.holder() == ""


def test_a_lighter_setting_beyond_a_field_s_range_is_none(services: Services) -> None:
    shape = ModelShape(64, 128, 2, 4, 2, 16, 300, True)
    config = TrainConfig(per_device_train_batch_size=64, gradient_accumulation_steps=128)
    found = lighter(shape, config, "cpu", checkpointing=False)
    assert found and all("gradient_accumulation_steps" not in one.changes for one in found)
