"""Two ranks are one trainer with twice the batch, whether each holds the model or a part of it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from qlora_demo import launcher
from qlora_demo.config import TrainConfig
from qlora_demo.runs import HELD, Run
from qlora_demo.services import Services
from qlora_demo.system.locks import is_held
from tests.ml.sharded import SEEN, STOP_AFTER
from tests.ml.test_train import TINY, ended, trained_here, wait
from tests.queueing import until

pytestmark = pytest.mark.processes

_TORCHRUN = """
import fcntl, os, subprocess, sys
print(os.getpid(), flush=True)
os.environ["TORCHELASTIC_RUN_ID"] = "one"
alive = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(alive, fcntl.LOCK_EX)
rank = [sys.executable, "-m", "qlora_demo.ml.train", *sys.argv[2:]]
subprocess.Popen(rank, pass_fds=[alive], start_new_session=True).wait()
"""
"""What torchrun does with its ranks, for one, who holds the file `alive` while it lives."""


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


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels are not asked")
def test_ranks_do_not_outlive_a_torchrun_that_was_killed_nor_begin_without_it(
    services: Services, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = tmp_path / "alive"
    monkeypatch.setattr(
        launcher, "train_command", lambda run, _: [sys.executable, "-c", _TORCHRUN, str(alive), str(run.path), HELD]
    )
    run = services.launcher.start(config.changed(max_steps=5000))
    wait(services, run, lambda one: bool(services.runs.metrics(one.id)))
    os.kill(int((run.path / "train.log").read_text("utf-8").split()[0]), signal.SIGKILL)
    try:
        run = wait(services, run, ended)
        assert (run.state.status, services.lease.holder()) == ("failed", "")
        until(lambda: not is_held(alive), 20)
    finally:
        (run.path / "stop").touch()
    left = [sys.executable, "-m", "qlora_demo.ml.train", str(run.path), HELD]
    late = subprocess.run(left, capture_output=True, text=True, check=False)
    assert late.returncode and f"run {run.id}: whoever started this process is gone" in late.stderr
    assert services.runs.get(run.id).state.status == "failed"
