"""Two ranks are one trainer with twice the batch, whether each holds the model or a part of it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from qlora_demo import launcher
from qlora_demo.config import TrainConfig
from qlora_demo.runs import HELD, Run
from qlora_demo.services import Services
from tests.ml.sharded import SEEN, STOP_AFTER
from tests.ml.test_train import TINY, ended, trained_here, wait

pytestmark = pytest.mark.processes


@pytest.fixture
def config(tiny_model: Path, chat_file: Path) -> TrainConfig:
    changes = TINY | {"max_steps": 6, "eval_steps": 3, "save_steps": 3}
    return TrainConfig(model=str(tiny_model), dataset=str(chat_file), **changes)


def sharded_command(run: Run, processes: int) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*torchrun, "-m", "tests.ml.sharded", str(run.path), HELD]


def losses(services: Services, run: Run) -> dict[int, float]:
    return {line.step: line.loss for line in services.runs.metrics(run.id) if line.loss is not None}


def test_two_ranks_end_with_the_losses_of_one_process_with_twice_the_batch(
    services: Services, config: TrainConfig
) -> None:
    two = wait(services, services.launcher.start(config.changed(per_device_train_batch_size=2), processes=2), ended)
    one = trained_here(services, config.changed(per_device_train_batch_size=4))
    assert (two.state.status, one.state.status) == ("finished", "finished"), services.runs.log_tail(two.id)
    assert list(losses(services, two)) == list(range(1, 7))
    assert losses(services, two) == pytest.approx(losses(services, one), rel=5e-3)
    assert two.state.summary["eval_loss"] == pytest.approx(one.state.summary["eval_loss"], rel=5e-3)


def test_ranks_that_hold_a_part_each_train_stop_resume_and_save_as_one_process_that_holds_all(
    services: Services, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "refuse", lambda *_: None)
    monkeypatch.setattr(launcher, "train_command", sharded_command)
    config = config.changed(gradient_checkpointing="on", score_rows=2)
    monkeypatch.setenv(STOP_AFTER, "3")
    two = wait(services, services.launcher.start(config.changed(parallel="fsdp"), processes=2), ended)
    assert (two.state.status, two.resumable_from) == ("stopped", 4), services.runs.log_tail(two.id)
    monkeypatch.delenv(STOP_AFTER)
    services.launcher.resume(two.id)
    two = wait(services, two, ended)
    one = trained_here(services, config.changed(per_device_train_batch_size=4))
    assert (two.state.status, one.state.status) == ("finished", "finished"), services.runs.log_tail(two.id)

    held = json.loads((two.path / SEEN).read_text("utf-8"))
    base = [sizes for name, sizes in held.items() if "base_layer" in name]
    assert len(base) == 14 and all(here == math.prod(shape) // 2 for shape, here in base)
    assert losses(services, two) == pytest.approx(losses(services, one), rel=5e-3)
    saved, expected = (load_file(run.adapter / "adapter_model.safetensors") for run in (two, one))
    assert two.state.summary["score"]["rows"] == 2
    assert saved.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (saved[name] - tensor).norm() <= 0.1 * tensor.norm(), name
